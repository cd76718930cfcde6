//! Steps for asynchronous callers: many at once, under a limit, each of them recorded to its end
//! whatever becomes of the future that waits for it.

use super::cancel::Cancel;
use super::checkpoints::Checkpoints;
use super::process::{Output, ProcessOptions, ProcessResult, record_process};
use super::recorder::{Recorder, RunRequest, RunResult};
use super::step::{Answer, Came, ExecutorError, OpenStep, artifacts_of, panic_text};
use crate::engine::{Engine, Receipt};
use crate::error::{Error, ErrorKind, Result};
use crate::record::{Channel, FileFormat, Lifecycle, Replay};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The number of SIGTERM.
const TERMINATE: i32 = 15;

/// Does the work of a step without blocking a thread.
pub trait AsyncExecutor: Send + Sync + 'static {
    /// Does it, and answers how it went. An error or a panic is recorded as a failed step. When the
    /// step is cancelled or its time is up, the future is dropped.
    fn execute(
        &self,
        step: AsyncStep,
    ) -> impl Future<Output = std::result::Result<Answer, ExecutorError>> + Send;
}

/// Runs steps on an engine, at most so many at once; cheap to clone, all clones share the limit.
#[derive(Debug, Clone)]
pub struct Steps {
    engine: Engine,
    limit: Arc<Semaphore>,
}

impl Steps {
    /// With a limit of at least 1.
    pub fn new(engine: &Engine, limit: usize) -> Self {
        Self { engine: engine.clone(), limit: Arc::new(Semaphore::new(limit.max(1))) }
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.limit).acquire_owned().await;
        place.map_err(|_| Error::new(ErrorKind::Reopen, "the steps were closed"))
    }

    /// Records a child process, as [`record_process`] does, in a thread of the runtime's that may
    /// block.
    ///
    /// # Cancellation
    /// Dropped before it is its turn, nothing was started or recorded. Dropped later, the worker is
    /// ended and the run recorded as cancelled; both go on without the future, and keep its place
    /// under the limit until they are done.
    pub async fn process(
        &self,
        request: RunRequest,
        options: ProcessOptions,
        mut output: impl Output + Send + 'static,
        cancel: &Cancel,
    ) -> Result<ProcessResult> {
        let place = self.place().await?;
        // Of one's own: dropping this future must not stop others that `cancel` stands for too.
        let own = Cancel::new()?;
        if cancel.is_cancelled() {
            own.cancel(cancel.signal());
        }
        let (engine, stop) = (self.engine.clone(), own.clone());
        let guard = CancelOnDrop(Some(own.clone()));
        let mut done = tokio::task::spawn_blocking(move || {
            let _place = place;
            record_process(&engine, request, &options, &mut output, &stop)
        });
        let result = tokio::select! {
            result = &mut done => result,
            () = cancel.cancelled() => {
                own.cancel(cancel.signal());
                done.await
            }
        };
        let result = result.map_err(panicked);
        guard.forget();
        result?
    }

    /// Runs a step by an executor of the embedder's.
    ///
    /// # Errors
    /// As [`run_step`](super::run_step).
    ///
    /// # Cancellation
    /// Dropped before it is its turn, nothing was executed or recorded. Dropped later, the
    /// executor's future is dropped and the run recorded as cancelled.
    pub async fn execute(
        &self,
        request: RunRequest,
        executor: &Arc<impl AsyncExecutor>,
        checkpoints: &Checkpoints,
        cancel: &Cancel,
    ) -> Result<RunResult> {
        let place = self.place().await?;
        let engine = self.engine.clone();
        let (timeout, term) = (request.timeout_ms.map(Duration::from_millis), request.term);
        let shared = Shared::default();
        let unfinished = Unfinished { step: Some(shared.clone()), cancel: cancel.clone(), _place: place };
        let begins = shared.clone();
        let (asked, stop) = (checkpoints.clone(), cancel.clone());
        let artifacts = blocking(move || begins.begin(&engine, request, &asked, &stop)).await?;
        let step = AsyncStep { step: shared, artifacts };
        let executor = Arc::clone(executor);
        let work = AbortOnDrop(tokio::spawn(async move { executor.execute(step).await }));
        let over = is_over(self.engine.clone(), term);
        let came = came_of(work, timeout, cancel, over).await;
        blocking(move || unfinished.finish(came)).await
    }
}

async fn came_of(
    mut work: AbortOnDrop<std::result::Result<Answer, ExecutorError>>,
    timeout: Option<Duration>,
    cancel: &Cancel,
    over: impl Future<Output = ()>,
) -> Came {
    let late = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        answered = &mut work.0 => match answered {
            Ok(Ok(answer)) => Came::Answer(answer),
            Ok(Err(_)) if cancel.is_cancelled() => Came::Cancelled,
            Ok(Err(error)) => Came::Failed(error.to_string()),
            Err(error) => match error.try_into_panic() {
                Ok(payload) => Came::Failed(panic_text(&*payload)),
                Err(_) => Came::Cancelled,
            },
        },
        () = cancel.cancelled() => Came::Cancelled,
        () = late => Came::TimedOut,
        // Recording it as cancelled will be refused: that is the answer.
        () = over => Came::Cancelled,
    }
}

/// Ready once another conductor has taken over.
async fn is_over(engine: Engine, term: Option<u64>) {
    let Some(term) = term else { return std::future::pending().await };
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let engine = engine.clone();
        if let Ok(Ok(true)) = tokio::task::spawn_blocking(move || engine.is_over(term)).await {
            return;
        }
    }
}

/// Runs what may wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(panicked)?
}

fn panicked(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Reopen, format!("a thread of the step ended early: {error}"))
        .hint("What was acknowledged is safe. Opening the journal again ends the run as interrupted.")
}

/// Ends the worker of a future that nobody waits for any more.
struct CancelOnDrop(Option<Cancel>);

impl CancelOnDrop {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(cancel) = &self.0 {
            cancel.cancel(TERMINATE);
        }
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A step that its executor and its end both reach.
#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    step: Option<OpenStep>,
    /// Nobody waits for it any more.
    abandoned: bool,
}

impl Shared {
    fn hold(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers with the directory for what the step leaves.
    fn begin(
        &self,
        engine: &Engine,
        request: RunRequest,
        checkpoints: &Checkpoints,
        cancel: &Cancel,
    ) -> Result<Option<PathBuf>> {
        let begun = OpenStep::begin(engine, request, checkpoints, cancel)?;
        let artifacts = artifacts_of(engine, &begun.recorder);
        let mut held = self.hold();
        if held.abandoned {
            drop(held);
            begun.finish(Came::Cancelled, cancel)?;
        } else {
            held.step = Some(begun);
        }
        Ok(artifacts)
    }

    /// Takes the step in order to end it.
    fn take(&self) -> Option<OpenStep> {
        let mut held = self.hold();
        held.abandoned = true;
        held.step.take()
    }

    fn with<T>(&self, work: impl FnOnce(&mut Recorder) -> Result<T>) -> Result<T> {
        self.with_step(|step| work(&mut step.recorder))
    }

    fn with_step<T>(&self, work: impl FnOnce(&mut OpenStep) -> Result<T>) -> Result<T> {
        let mut held = self.hold();
        work(held.step.as_mut().ok_or_else(|| Error::misuse("the step has ended"))?)
    }
}

/// Ends a step in any case: as it went, or as cancelled.
struct Unfinished {
    step: Option<Shared>,
    cancel: Cancel,
    _place: OwnedSemaphorePermit,
}

impl Unfinished {
    fn finish(mut self, came: Came) -> Result<RunResult> {
        let step = self.step.take().and_then(|shared| shared.take());
        step.ok_or_else(|| Error::misuse("the step has ended"))?.finish(came, &self.cancel)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(step) = self.step.take().and_then(|shared| shared.take()) else { return };
        // Nobody waits for it, and waiting for the disk is not for a thread of the runtime. Where
        // no thread can be had, the next one that opens the journal ends the run.
        let ending = std::thread::Builder::new().name("runwal-cancel".to_owned());
        let cancel = self.cancel.clone();
        let _ = ending.spawn(move || step.finish(Came::Cancelled, &cancel));
    }
}

/// A step that is being executed asynchronously.
#[derive(Debug, Clone)]
pub struct AsyncStep {
    step: Shared,
    artifacts: Option<PathBuf>,
}

impl AsyncStep {
    /// What was asked for; `None` once the step has ended.
    pub fn request(&self) -> Option<crate::record::RunPrepared> {
        self.step.hold().step.as_ref().and_then(|open| open.recorder.fold().request().cloned())
    }

    /// The directory for files it leaves; `None` where the data directory is simulated.
    pub fn artifacts(&self) -> Option<&Path> {
        self.artifacts.as_deref()
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Recorder) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let step = self.step.clone();
        blocking(move || step.with(work)).await
    }

    /// Records a lifecycle event. Durable when the future is ready.
    pub async fn event(&self, event: Lifecycle) -> Result<Receipt> {
        self.with(|recorder| recorder.event(event)).await
    }

    /// Records output as it comes. Durable when the future is ready.
    pub async fn chunk(&self, channel: Channel, bytes: Vec<u8>) -> Result<Receipt> {
        self.with(move |recorder| recorder.chunk(channel, &bytes)).await
    }

    /// Takes a checkpoint of all that was changed in the working tree so far, as
    /// [`Step::git_diff`](super::Step::git_diff) does. Durable when the future is ready.
    pub async fn git_diff(&self) -> Result<Option<u32>> {
        let step = self.step.clone();
        blocking(move || {
            let cancel = Cancel::new()?;
            step.with_step(|open| open.at_end.git_diff_now(&mut open.recorder, &cancel))
        })
        .await
    }

    /// Takes a checkpoint; answers with its number. Durable when the future is ready.
    pub async fn checkpoint(
        &self,
        kind: impl Into<String>,
        format: FileFormat,
        replay: Replay,
        summary: impl Into<String>,
        content: Vec<u8>,
    ) -> Result<u32> {
        let (kind, summary) = (kind.into(), summary.into());
        self.with(move |recorder| recorder.checkpoint(&kind, format, replay, &summary, content)).await
    }
}
