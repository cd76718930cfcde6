//! What is called in a tick, and what it finds there.

use super::config::{Config, Identity, Settings};
use super::queue::{Entry, Queue};
use super::tick::{Batch, BoxFuture, Trigger};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::record::{JsonText, Tick};
use serde::Serialize;
use std::any::Any;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Why a runner failed: any error.
pub type RunnerError = Box<dyn std::error::Error + Send + Sync>;

/// Does something in every tick. Closures that return a future are runners.
pub trait Runner: Send + Sync + 'static {
    /// Does it. An error or a panic is recorded, and stops neither the next runner nor later ticks.
    fn run(&self, context: Context) -> impl Future<Output = std::result::Result<Report, RunnerError>> + Send;
}

impl<F, R> Runner for F
where
    F: Fn(Context) -> R + Send + Sync + 'static,
    R: Future<Output = std::result::Result<Report, RunnerError>> + Send,
{
    fn run(&self, context: Context) -> impl Future<Output = std::result::Result<Report, RunnerError>> + Send {
        self(context)
    }
}

/// How a runner did, in its own words.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub(super) result: Option<String>,
    pub(super) details: Option<JsonText>,
}

impl Report {
    /// It did well: `ok`.
    pub fn ok() -> Self {
        Self::default()
    }

    /// With a word of its own.
    pub fn of(result: impl Into<String>) -> Self {
        Self { result: Some(result.into()), ..Self::default() }
    }

    /// With details: what serializes to a JSON object, in its order.
    ///
    /// # Errors
    /// [`ErrorKind::Misuse`](crate::error::ErrorKind::Misuse) where it does not.
    pub fn details(self, details: &impl Serialize) -> Result<Self> {
        Ok(Self { details: Some(object(details)?), ..self })
    }
}

fn object(details: &impl Serialize) -> Result<JsonText> {
    let text = JsonText::of(details)?;
    match text.members() {
        Some(_) => Ok(text),
        None => Err(Error::misuse("the details of a tick must be a JSON object")),
    }
}

/// What a runner wants recorded while it is at work.
#[derive(Debug, Clone, Default)]
pub struct LogEntry {
    result: Option<String>,
    error: Option<String>,
    duration_ms: Option<u64>,
    details: Option<JsonText>,
}

impl LogEntry {
    /// With a result.
    pub fn result(self, result: impl Into<String>) -> Self {
        Self { result: Some(result.into()), ..self }
    }

    /// With what went wrong; an empty text is none.
    pub fn error(self, error: impl Into<String>) -> Self {
        Self { error: Some(error.into()).filter(|text| !text.is_empty()), ..self }
    }

    /// With how long it took.
    pub fn duration(self, duration: Duration) -> Self {
        Self { duration_ms: Some(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)), ..self }
    }

    /// With details: what serializes to a JSON object, in its order. What does not stands under
    /// `unserializable`, with the reason.
    pub fn details(self, details: &impl Serialize) -> Self {
        let details = object(details).unwrap_or_else(|error| {
            JsonText::of(
                &[("unserializable", error.message())]
                    .into_iter()
                    .collect::<std::collections::BTreeMap<_, _>>(),
            )
            .unwrap_or(JsonText::empty())
        });
        Self { details: Some(details), ..self }
    }
}

/// What a runner finds when it is called.
#[derive(Clone)]
pub struct Context {
    pub(super) runner: String,
    pub(super) batch: Batch,
    pub(super) trigger: Trigger,
    pub(super) identity: Identity,
    pub(super) settings: Arc<Settings>,
    pub(super) engine: Engine,
    pub(super) jobs: Arc<super::Inner>,
}

impl Context {
    /// The name it is registered under.
    pub fn runner(&self) -> &str {
        &self.runner
    }

    /// The conductor, by the schedule hook's word.
    pub fn controller_id(&self) -> &str {
        &self.identity.controller_id
    }

    /// The machine.
    pub fn host(&self) -> &str {
        &self.identity.host
    }

    /// The conductor's term, if it has one.
    pub fn term(&self) -> Option<u64> {
        self.identity.term
    }

    /// Which tick it is.
    pub fn batch_id(&self) -> &str {
        &self.batch.id
    }

    /// Why it ticks.
    pub fn trigger(&self) -> Trigger {
        self.trigger
    }

    /// A copy of the configuration.
    pub fn config(&self) -> Config {
        self.settings.config.clone()
    }

    /// Where the daily files are written; `None` where they are not.
    pub fn log_dir(&self) -> Option<PathBuf> {
        self.engine.ticks_dir()
    }

    /// What the embedder gave, if it gave one of this type.
    pub fn store<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(self.settings.store.as_ref()?).downcast().ok()
    }

    /// The engine, to append, read and begin runs by.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Records something, at any stage of one's own choosing, in the name of this runner and tick.
    /// Does not wait for it to be written.
    pub fn log(&self, stage: impl Into<String>, entry: impl FnOnce(LogEntry) -> LogEntry) {
        let entry = entry(LogEntry::default());
        self.queue().push(Entry {
            term: self.identity.term,
            ..Entry::plain(Tick {
                batch_id: self.batch.id.clone(),
                runner: self.runner.clone(),
                stage: stage.into(),
                result: entry.result,
                error: entry.error,
                duration_ms: entry.duration_ms,
                details: entry.details.unwrap_or(JsonText::empty()),
            })
        });
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.jobs.queue
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("runner", &self.runner)
            .field("batch_id", &self.batch.id)
            .field("trigger", &self.trigger)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

type Call = dyn Fn(Context) -> BoxFuture<'static, std::result::Result<Report, RunnerError>> + Send + Sync;

/// A runner with its name.
pub(super) struct Registered {
    pub(super) name: String,
    pub(super) description: String,
    call: Box<Call>,
}

impl Registered {
    pub(super) fn new(name: &str, description: &str, runner: impl Runner) -> Self {
        let runner = Arc::new(runner);
        let call = move |context| -> BoxFuture<'static, _> {
            let runner = Arc::clone(&runner);
            Box::pin(async move { runner.run(context).await })
        };
        Self { name: name.to_owned(), description: description.trim().to_owned(), call: Box::new(call) }
    }

    pub(super) fn call(
        &self,
        context: Context,
    ) -> BoxFuture<'static, std::result::Result<Report, RunnerError>> {
        (self.call)(context)
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("name", &self.name).finish_non_exhaustive()
    }
}
