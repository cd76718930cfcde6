//! What timed jobs are told once.

use super::hold;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Tick;
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// When to tick, and what runners are told of how much to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How far apart ticks are; above zero.
    pub interval: Duration,
    /// How many messages a runner should handle in a tick. Handed on, not enforced. Default: 100.
    pub max_messages_per_tick: u64,
    /// How many tasks a runner should begin in a tick. Handed on, not enforced. Default: 10.
    pub max_tasks_per_tick: u64,
    /// How long a runner should let things settle. Handed on, not enforced. Default: none.
    pub settle_delay: Duration,
    /// Whether starting begins to tick. Default: yes; without, ticks are made by hand.
    pub auto_start: bool,
}

impl Config {
    /// The defaults, with this interval.
    pub fn every(interval: Duration) -> Self {
        Self {
            interval,
            max_messages_per_tick: 100,
            max_tasks_per_tick: 10,
            settle_delay: Duration::ZERO,
            auto_start: true,
        }
    }
}

/// In whose name a tick's work is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The conductor.
    pub controller_id: String,
    /// The machine.
    pub host: String,
    /// The conductor's term, if it has one: what the work records is refused once a higher one was
    /// seen in the journal.
    pub term: Option<u64>,
}

impl Identity {
    /// A conductor on this machine, without a term.
    pub fn new(controller_id: impl Into<String>) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { controller_id: controller_id.into(), host, term: None }
    }
}

/// What a start does about the intervals that passed while no process lived. They are recorded as
/// `tick_missed` in either case, with this word as the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missed {
    /// One tick at once for all of them: `run_once`.
    #[default]
    RunOnce,
    /// Nothing more: `record_only`. So it is too where starting does not begin to tick.
    RecordOnly,
}

impl Missed {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::RunOnce => "run_once",
            Self::RecordOnly => "record_only",
        }
    }
}

/// A record that is not in the journal, and why.
#[derive(Debug)]
#[non_exhaustive]
pub struct NotWritten<'t> {
    /// The record.
    pub tick: &'t Tick,
    /// Why it could not be written; `None` where the queue was full.
    pub error: Option<&'t Error>,
}

type OnWriteError = dyn Fn(&NotWritten<'_>) + Send + Sync;

/// What timed jobs are made of.
#[derive(Clone)]
pub struct TimedJobsOptions {
    /// When to tick.
    pub config: Config,
    /// In whose name, where no hook says otherwise.
    pub identity: Identity,
    /// Who decides whether a tick's work is done. Default: nobody, it always is.
    pub schedule: Option<Arc<dyn super::Schedule>>,
    /// Whatever the embedder wants its runners to find in their context.
    pub store: Option<Arc<dyn Any + Send + Sync>>,
    /// What to do about intervals that were missed.
    pub missed: Missed,
    /// Is told of every record that is not in the journal, by the thread that made it where the queue
    /// was full, otherwise by the one that writes. It should not block; if it panics, that stops
    /// nothing. Default: nobody is told at once, and [`TimedJobs::stop`](super::TimedJobs::stop) answers
    /// with an error.
    pub on_write_error: Option<Arc<OnWriteError>>,
}

impl TimedJobsOptions {
    /// The defaults.
    pub fn new(config: Config, controller_id: impl Into<String>) -> Self {
        Self {
            config,
            identity: Identity::new(controller_id),
            schedule: None,
            store: None,
            missed: Missed::default(),
            on_write_error: None,
        }
    }
}

impl fmt::Debug for TimedJobsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimedJobsOptions")
            .field("config", &self.config)
            .field("identity", &self.identity)
            .field("missed", &self.missed)
            .finish_non_exhaustive()
    }
}

/// The same, once it does not change any more.
pub(super) struct Settings {
    pub(super) config: Config,
    pub(super) identity: Identity,
    pub(super) schedule: Option<Arc<dyn super::Schedule>>,
    pub(super) store: Option<Arc<dyn Any + Send + Sync>>,
    pub(super) missed: Missed,
    on_write_error: Option<Arc<OnWriteError>>,
    untold: Mutex<Untold>,
}

/// Records that are not written, where nobody wants to be told at once.
#[derive(Default)]
struct Untold {
    count: u64,
    first: Option<(ErrorKind, String)>,
}

impl From<TimedJobsOptions> for Settings {
    fn from(options: TimedJobsOptions) -> Self {
        let TimedJobsOptions { config, identity, schedule, store, missed, on_write_error } = options;
        Self { config, identity, schedule, store, missed, on_write_error, untold: Mutex::default() }
    }
}

impl Settings {
    pub(super) fn not_written(&self, tick: &Tick, error: Option<&Error>) {
        if let Some(told) = &self.on_write_error {
            // Neither the tick nor the thread that writes ends with the embedder's panic.
            let _ = catch_unwind(AssertUnwindSafe(|| told(&NotWritten { tick, error })));
            return;
        }
        let mut untold = hold(&self.untold);
        untold.count += 1;
        untold.first.get_or_insert_with(|| match error {
            Some(error) => (error.kind(), error.to_string()),
            None => (ErrorKind::Retry, "the queue was full".to_owned()),
        });
    }

    /// What nobody was told of since this was asked for last.
    pub(super) fn untold(&self) -> Result<()> {
        let Untold { count, first } = std::mem::take(&mut *hold(&self.untold));
        let Some((kind, first)) = first else { return Ok(()) };
        let message = format!("{count} records of the timed jobs are not in the journal; the first: {first}");
        Err(Error::new(kind, message).hint("Whoever sets `on_write_error` is told of each, when it happens."))
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("config", &self.config).finish_non_exhaustive()
    }
}
