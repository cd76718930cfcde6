//! The engine for asynchronous callers: the same journal with a commit thread of its own, so that no
//! append ever blocks a thread of the runtime on the disk.

mod subscription;

pub use subscription::{AsyncLog, AsyncSubscription};

use crate::engine::{Conditions, Engine, Filter, NewRecord, Nudge, Receipt, Start, Ticket, closed};
use crate::error::{Error, Result};
use crate::position::{StreamId, Time};
use crate::record::{Body, RunPrepared};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// How much may be accepted and not yet taken up by a commit, in KiB; every append counts as one at
/// least. A further one waits for its place, first come, first served.
pub const MAX_WAITING_KIB: u32 = 8 << 10;

/// A handle on an engine, cheap to clone; all clones share one commit thread.
///
/// # Cancellation
/// A future of [`append`](Self::append) that is dropped before it has its place in the queue has
/// written nothing. Dropped later, the append goes on without it: the record is in the journal, whole,
/// or it is not. [`submit`](Self::submit) tells the two apart.
#[derive(Debug, Clone)]
pub struct AsyncEngine {
    server: Arc<Server>,
    log: AsyncLog,
}

/// The commit thread, for as long as somebody may need it.
#[derive(Debug)]
struct Server {
    /// Dropped before the thread is told to end: it is the thread that has the last one, and waits for
    /// what there is to wait for.
    engine: Engine,
    room: Arc<Semaphore>,
    end: End,
}

/// Ends the commit thread when it is dropped.
#[derive(Debug)]
struct End {
    nudge: Nudge,
    state: Arc<Mutex<State>>,
}

impl Drop for End {
    fn drop(&mut self) {
        hold(&self.state).stop = true;
        self.nudge.nudge();
    }
}

#[derive(Debug, Default)]
struct State {
    /// The thread ends with what is left.
    stop: bool,
    /// Who waits for the engine to be closed.
    closing: Option<oneshot::Sender<Result<()>>>,
}

fn hold(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records that were accepted, and are made durable whether this is waited for or not.
#[derive(Debug)]
#[must_use = "whether it became durable is known when it has been awaited"]
pub struct AsyncTicket {
    ticket: Ticket,
    _server: Arc<Server>,
}

impl Future for AsyncTicket {
    type Output = Result<Receipt>;

    /// To be polled until it is ready, and not again.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.ticket.poll(context)
    }
}

impl AsyncEngine {
    /// Takes an engine over.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) where the commit thread cannot be started.
    pub fn new(engine: Engine) -> Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let end = End { nudge: engine.nudge(), state: Arc::clone(&state) };
        let for_thread = engine.clone();
        std::thread::Builder::new()
            .name("runwal-commit".to_owned())
            .spawn(move || serve(&for_thread, &state))
            .map_err(|e| Error::io("starting the commit thread", e))?;
        let log = AsyncLog::of(&engine);
        let room = Arc::new(Semaphore::new(MAX_WAITING_KIB as usize));
        Ok(Self { server: Arc::new(Server { engine, room, end }), log })
    }

    /// The blocking engine behind it: for reading, and for threads that may block.
    pub fn engine(&self) -> &Engine {
        &self.server.engine
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
        self.submit(stream, conditions, records).await?.await
    }

    /// The same in two steps: waits for a place in the queue, of which there are
    /// [`MAX_WAITING_KIB`], and hands out a ticket, to be awaited for the receipt.
    ///
    /// # Errors
    /// What can be told of the records without a look at the journal, and that the engine was closed.
    pub async fn submit(
        &self,
        stream: StreamId,
        conditions: impl Into<Conditions>,
        records: Vec<NewRecord>,
    ) -> Result<AsyncTicket> {
        let conditions = conditions.into();
        let place = self.place(records.iter().map(|record| &record.body)).await?;
        self.hand_in(|engine| engine.submit_queued(stream, conditions, &records, Some(Box::new(place))))
    }

    /// The same for records that nobody waits for: see [`Engine::buffer`]. The commit thread takes them up as soon
    /// as it has nothing else to do, which is well within [`Options::buffer_for`](crate::Options::buffer_for).
    ///
    /// # Errors
    /// As [`submit`](Self::submit); and [`ErrorKind::Reopen`](crate::ErrorKind::Reopen) where an earlier write
    /// failed, so that who never waits is told too.
    pub async fn buffer(
        &self,
        stream: StreamId,
        conditions: impl Into<Conditions>,
        records: Vec<NewRecord>,
    ) -> Result<AsyncTicket> {
        let conditions = conditions.into();
        let place = self.place(records.iter().map(|record| &record.body)).await?;
        self.hand_in(|engine| engine.buffer_queued(stream, conditions, &records, Some(Box::new(place))))
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
        let first = Body::Run(Box::new(request));
        let place = self.place(then.iter().map(|record| &record.body).chain([&first])).await?;
        let Body::Run(request) = first else { return Err(closed()) };
        self.hand_in(|engine| {
            engine.submit_run_queued(&request, created_at, conditions, &then, Some(Box::new(place)))
        })?
        .await
    }

    /// Commits everything accepted so far and ends in order. Appends of other clones fail from
    /// then on.
    ///
    /// # Errors
    /// As [`Engine::close`].
    pub async fn close(self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = hold(&self.server.end.state);
            if state.stop {
                return Err(closed());
            }
            *state = State { stop: true, closing: Some(answer) };
        }
        self.server.room.close();
        self.server.end.nudge.nudge();
        answered.await.map_err(|_| closed())?
    }

    /// Waits for room for records.
    async fn place(&self, bodies: impl Iterator<Item = &Body>) -> Result<OwnedSemaphorePermit> {
        let mut len = 0;
        for body in bodies {
            len += body.encode()?.0.len();
        }
        let wanted = u32::try_from(len / 1024).unwrap_or(MAX_WAITING_KIB).clamp(1, MAX_WAITING_KIB);
        Arc::clone(&self.server.room).acquire_many_owned(wanted).await.map_err(|_| closed())
    }

    fn hand_in(&self, submit: impl FnOnce(&Engine) -> Result<Ticket>) -> Result<AsyncTicket> {
        let ticket = submit(&self.server.engine)?;
        Ok(AsyncTicket { ticket, _server: Arc::clone(&self.server) })
    }
}

/// The commit thread.
fn serve(engine: &Engine, state: &Mutex<State>) {
    engine.serve(&|| hold(state).stop);
    let closing = hold(state).closing.take();
    if let Some(closing) = closing {
        // Whoever dropped the future does not want to know.
        let _ = closing.send(engine.close());
    }
}
