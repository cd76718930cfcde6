//! The engine for asynchronous callers: the same journal behind a commit thread of its own, so
//! that no append ever blocks a thread of the runtime on the disk.

mod subscription;

pub use subscription::{AsyncLog, AsyncSubscription};

use crate::engine::{Conditions, Engine, Filter, NewRecord, Receipt, Start, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{StreamId, Time};
use crate::record::RunPrepared;
use tokio::sync::{mpsc, oneshot};

/// How many appends may be accepted and not yet taken up; a further one waits for a place.
pub const MAX_WAITING: usize = 1024;

#[derive(Debug)]
enum Job {
    Append {
        stream: StreamId,
        conditions: Conditions,
        records: Vec<NewRecord>,
        answer: Answer,
    },
    Begin {
        request: Box<RunPrepared>,
        created_at: Option<Time>,
        conditions: Conditions,
        then: Vec<NewRecord>,
        answer: Answer,
    },
    Close {
        answer: oneshot::Sender<Result<()>>,
    },
}

type Answer = oneshot::Sender<Result<Receipt>>;

/// A handle on an engine, cheap to clone; all clones share one commit thread.
///
/// # Cancellation
/// A future dropped before it was polled to the end of its queueing has written nothing. Dropped
/// later, the append goes on without it: the record is in the journal, whole, or it is not.
#[derive(Debug, Clone)]
pub struct AsyncEngine {
    jobs: mpsc::Sender<Job>,
    engine: Engine,
    log: AsyncLog,
}

impl AsyncEngine {
    /// Takes an engine over.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where the commit thread cannot be started.
    pub fn new(engine: Engine) -> Result<Self> {
        let (jobs, waiting) = mpsc::channel(MAX_WAITING);
        let for_thread = engine.clone();
        std::thread::Builder::new()
            .name("runwal-commit".to_owned())
            .spawn(move || commit(&for_thread, waiting))
            .map_err(|e| Error::io("starting the commit thread", e))?;
        let log = AsyncLog::of(&engine);
        Ok(Self { jobs, engine, log })
    }

    /// The blocking engine behind it: for reading, and for threads that may block.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Reads on from some place, also what is still to come: see [`AsyncSubscription`].
    ///
    /// # Errors
    /// As [`AsyncLog::subscribe`].
    pub async fn subscribe(&self, start: Start, filter: Filter) -> Result<AsyncSubscription> {
        self.log.subscribe(start, filter).await
    }

    /// Appends records to a stream, all or nothing. Durable when the future is ready.
    ///
    /// # Errors
    /// As [`Engine::append`].
    pub async fn append(
        &self,
        stream: StreamId,
        conditions: impl Into<Conditions>,
        records: Vec<NewRecord>,
    ) -> Result<Receipt> {
        let conditions = conditions.into();
        self.ask(|answer| Job::Append { stream, conditions, records, answer }).await
    }

    /// Opens the stream of a run with its first records. Durable when the future is ready.
    ///
    /// # Errors
    /// As [`Engine::begin_run`].
    pub async fn begin_run(
        &self,
        request: RunPrepared,
        created_at: Option<Time>,
        conditions: Conditions,
        then: Vec<NewRecord>,
    ) -> Result<Receipt> {
        let request = Box::new(request);
        self.ask(|answer| Job::Begin { request, created_at, conditions, then, answer }).await
    }

    /// Commits everything accepted so far and ends in order. Appends of other clones fail from
    /// then on.
    ///
    /// # Errors
    /// As [`Engine::close`].
    pub async fn close(self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job::Close { answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(job(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Reopen, "the engine was closed")
}

/// The commit thread: hands in whatever waits, so that it shares a sync, then answers.
fn commit(engine: &Engine, mut waiting: mpsc::Receiver<Job>) {
    let mut jobs = Vec::new();
    while waiting.blocking_recv_many(&mut jobs, MAX_WAITING) > 0 {
        let mut pending: Vec<(Answer, Result<Ticket>)> = Vec::new();
        let mut close = None;
        for job in jobs.drain(..) {
            match job {
                Job::Append { stream, conditions, records, answer } => {
                    pending.push((answer, engine.submit(stream, conditions, &records)));
                }
                Job::Begin { request, created_at, conditions, then, answer } => {
                    pending.push((answer, engine.submit_run(&request, created_at, conditions, &then)));
                }
                Job::Close { answer } => close = Some(answer),
            }
        }
        for (answer, ticket) in pending {
            // Whoever dropped the future does not want to know; the record is written all the same.
            let _ = answer.send(ticket.and_then(Ticket::wait));
        }
        if let Some(answer) = close {
            waiting.close();
            let _ = answer.send(engine.close());
            return;
        }
    }
}
