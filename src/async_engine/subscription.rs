//! Watching a journal from a runtime: one thread reads for all who watch, through descriptors of its
//! own, so that neither a thread of the runtime nor a writer ever waits for a reader.
//!
//! A subscription that wants more leaves its place with the thread. There it stays until there is
//! something that it wants: what its filter leaves out wakes nobody, and a thousand that wait cost
//! one look at the mark. The thread lives as long as there are subscriptions.

use crate::engine::{Bell, Course, Cursor, Delivery, Engine, Entry, Filter, LOOK, Log, Start, Step, World};
use crate::error::{Error, ErrorKind, Result};
use crate::position::Position;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// How much is given to one subscription before it is another one's turn.
const MAX_GIVEN: usize = 256;
const MAX_GIVEN_BYTES: u64 = 1 << 20;
/// How many bytes are looked at in vain before it is.
const MAX_PASSED_BYTES: u64 = 4 << 20;
/// What a record weighs beside its payload.
const RECORD_BYTES: u64 = 128;

/// A journal for asynchronous readers; cheap to clone, all clones share one reading thread.
#[derive(Debug, Clone)]
pub struct AsyncLog(Arc<Desk>);

/// Where subscriptions and the thread meet.
#[derive(Debug)]
struct Desk {
    world: World,
    bell: Arc<Bell>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many subscriptions there are.
    seats: usize,
    /// Whether there is a thread.
    staffed: bool,
    asked: Vec<Asked>,
}

#[derive(Debug)]
enum Asked {
    Begin { start: Start, filter: Filter, answer: oneshot::Sender<Result<Begun>> },
    More(Reading),
}

#[derive(Debug)]
struct Begun {
    course: Box<Course>,
    cursor: Cursor,
}

/// A subscription that waits for more.
#[derive(Debug)]
struct Reading {
    course: Box<Course>,
    given: VecDeque<Delivery>,
    /// Up to where everything was looked at and nothing was given.
    looked: Arc<AtomicU64>,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
struct Answer {
    course: Box<Course>,
    given: VecDeque<Delivery>,
    failed: Option<Error>,
    cursor: Cursor,
}

impl AsyncLog {
    /// The journal of an existing data directory, whoever writes to it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is no data directory.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::open_in(&World::existing(dir.as_ref())?))
    }

    /// The same in a world of the caller's.
    pub fn open_in(world: &World) -> Self {
        Self::with_bell(world, Arc::default())
    }

    /// That of an engine of this process, whose records are seen at once. It goes on when the engine
    /// is closed.
    pub fn of(engine: &Engine) -> Self {
        Self::with_bell(engine.world(), Arc::clone(engine.bell()))
    }

    fn with_bell(world: &World, bell: Arc<Bell>) -> Self {
        Self(Arc::new(Desk { world: world.clone(), bell, state: Mutex::default() }))
    }

    /// Reads on from some place, also what is still to come.
    ///
    /// # Errors
    /// As [`Log::open`] and [`Log::position_of`]; [`ErrorKind::Io`] where the reading thread cannot be
    /// started.
    pub async fn subscribe(&self, start: Start, filter: Filter) -> Result<AsyncSubscription> {
        let seat = Seat::take(&self.0)?;
        let (answer, answered) = oneshot::channel();
        seat.ask(Asked::Begin { start, filter, answer });
        let Begun { course, cursor } = answered.await.map_err(|_| gone())??;
        Ok(AsyncSubscription {
            seat,
            course: Some(course),
            asked: None,
            given: VecDeque::new(),
            failed: None,
            at: cursor,
            behind: cursor,
            looked: Arc::default(),
        })
    }
}

/// A read that goes on, as [`Subscription`](crate::engine::Subscription), for a runtime.
///
/// It may be dropped at any moment, and leaves nothing running. Not asking for more costs its owner
/// the wait and nobody else anything.
///
/// ```
/// use runwal::async_engine::AsyncEngine;
/// use runwal::engine::{Entry, Filter, Start};
/// use runwal::record::{Id, Kind};
/// use runwal::run::{End, Outcome, Recorder, RunRequest};
/// use runwal::{Engine, Options};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let dir = dir.path().join("data");
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # runtime.block_on(async {
/// let (engine, _report) = Engine::open(&dir, Options::default())?;
/// let watching = AsyncEngine::new(engine.clone())?;
/// let only = Filter::default().task(Id::new("T-016")?).kind(Kind::Lifecycle);
/// let mut watched = watching.subscribe(Start::Now, only).await?;
///
/// let worker = std::thread::spawn(move || {
///     let request = RunRequest::new(Id::new("T-016")?, Id::new("r-1")?, Id::new("build")?);
///     Recorder::prepare(&engine, request)?.finish(End::new(Outcome::Completed, "Done.").exit_code(0))
/// });
/// loop {
///     let delivery = watched.next().await?;
///     let Entry::Record(record) = delivery.what else { continue };
///     if record.ends {
///         println!("{:?} is over; go on behind {}", delivery.run, delivery.cursor);
///         break;
///     }
/// }
/// worker.join().unwrap()?;
/// watching.close().await
/// # })?;
/// # Ok::<(), runwal::Error>(())
/// ```
#[derive(Debug)]
pub struct AsyncSubscription {
    seat: Seat,
    /// Where it is, while nothing is asked for.
    course: Option<Box<Course>>,
    asked: Option<oneshot::Receiver<Answer>>,
    given: VecDeque<Delivery>,
    failed: Option<Error>,
    /// Behind the last delivery.
    at: Cursor,
    /// Behind everything in `given`, and what was left out after it.
    behind: Cursor,
    looked: Arc<AtomicU64>,
}

impl AsyncSubscription {
    /// The next delivery, waited for.
    ///
    /// # Cancellation
    /// A future that is dropped loses nothing and repeats nothing: the next one goes on.
    ///
    /// # Errors
    /// What reading met; the next call tries again. [`ErrorKind::Reopen`] where the reading thread is
    /// gone: subscribe anew, from the [`cursor`](Self::cursor).
    pub async fn next(&mut self) -> Result<Delivery> {
        loop {
            if let Some(delivery) = self.given.pop_front() {
                self.at = if self.given.is_empty() { self.behind } else { delivery.cursor };
                return Ok(delivery);
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            if self.asked.is_none() {
                let course = self.course.take().ok_or_else(gone)?;
                let (answer, asked) = oneshot::channel();
                self.looked.store(0, Ordering::Release);
                let looked = Arc::clone(&self.looked);
                self.seat.ask(Asked::More(Reading { course, given: VecDeque::new(), looked, answer }));
                self.asked = Some(asked);
            }
            let Some(asked) = &mut self.asked else { continue };
            let answer = asked.await;
            self.asked = None;
            let answer = answer.map_err(|_| gone())?;
            self.course = Some(answer.course);
            (self.given, self.failed, self.behind) = (answer.given, answer.failed, answer.cursor);
            if self.given.is_empty() {
                self.at = self.behind;
            }
        }
    }

    /// Behind everything that was given out or left out: where to go on after a restart.
    pub fn cursor(&self) -> Cursor {
        let looked = Position(self.looked.load(Ordering::Acquire));
        // Before the first record of all, the journal has no id yet.
        if self.asked.is_some() && looked > self.at.position() && self.at != Cursor::default() {
            return Cursor::new(self.at.journal(), looked);
        }
        self.at
    }
}

/// The right to be served: the thread lives as long as there is one.
#[derive(Debug)]
struct Seat(Arc<Desk>);

impl Seat {
    fn take(desk: &Arc<Desk>) -> Result<Self> {
        let mut state = desk.hold();
        if !state.staffed {
            let for_thread = Arc::clone(desk);
            std::thread::Builder::new()
                .name("runwal-watch".to_owned())
                .spawn(move || serve(&for_thread))
                .map_err(|e| Error::io("starting the reading thread", e))?;
            state.staffed = true;
        }
        state.seats += 1;
        Ok(Self(Arc::clone(desk)))
    }

    fn ask(&self, asked: Asked) {
        {
            let mut state = self.0.hold();
            // Without a thread the question is dropped, which its asker sees.
            if state.staffed {
                state.asked.push(asked);
            }
        }
        self.0.bell.ring();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let last = {
            let mut state = self.0.hold();
            state.seats -= 1;
            state.seats == 0
        };
        if last {
            self.0.bell.ring();
        }
    }
}

impl Desk {
    fn hold(&self) -> MutexGuard<'_, State> {
        // No code that holds it panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was asked for meanwhile; `None` where nobody is left to serve.
    fn take_asked(&self) -> Option<Vec<Asked>> {
        let mut state = self.hold();
        if state.seats == 0 {
            state.staffed = false;
            state.asked.clear();
            return None;
        }
        Some(std::mem::take(&mut state.asked))
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Reopen, "the reading thread is gone").hint("Subscribe anew, from the cursor.")
}

/// Takes back what was asked for where the thread ends in a panic, so that nobody waits for ever.
struct Shift<'d>(&'d Desk);

impl Drop for Shift<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.hold();
            state.staffed = false;
            state.asked.clear();
        }
    }
}

/// The reading thread.
fn serve(desk: &Desk) {
    let _shift = Shift(desk);
    let mut log: Option<Log> = None;
    let mut queue: VecDeque<Reading> = VecDeque::new();
    let mut waiting: Vec<Reading> = Vec::new();
    let mut seen = Position::ZERO;
    loop {
        // Listening begins before the look: what comes between them rings.
        let listener = desk.bell.listen();
        let Some(asked) = desk.take_asked() else { return };
        for asked in asked {
            match asked {
                Asked::Begin { start, filter, answer } => {
                    // Whoever dropped the future does not want to know.
                    let _ = answer.send(begin(desk, &mut log, start, filter));
                }
                Asked::More(reading) if log.is_some() => queue.push_back(reading),
                // It was begun by a thread that is no more.
                Asked::More(_) => {}
            }
        }
        if let Some(log) = &mut log {
            // An error is for everybody to know, and each is to have one of its own.
            let failed = log.refresh().is_err();
            // Whoever began just now may have moved it on, too.
            if failed || log.durable() != seen {
                queue.extend(waiting.drain(..));
                seen = log.durable();
            }
            for _ in 0..queue.len() {
                let Some(reading) = queue.pop_front() else { break };
                if reading.answer.is_closed() {
                    continue;
                }
                match reading.go_on(log, failed) {
                    Turn::Over => {}
                    Turn::More(reading) => queue.push_back(reading),
                    Turn::End(reading) => waiting.push(reading),
                }
            }
        }
        waiting.retain(|reading| !reading.answer.is_closed());
        if queue.is_empty() {
            listener.wait(LOOK);
        }
    }
}

fn begin(desk: &Desk, log: &mut Option<Log>, start: Start, filter: Filter) -> Result<Begun> {
    let log = match log {
        Some(log) => log,
        None => log.insert(Log::open_in(&desk.world)?),
    };
    let course = Box::new(Course::begin(log, start, filter)?);
    let cursor = Cursor::new(log.journal_id(), course.looked());
    Ok(Begun { course, cursor })
}

/// How a reading's turn went.
enum Turn {
    /// It was answered.
    Over,
    /// There is more to look at, and nothing to give yet.
    More(Reading),
    /// There is nothing more now.
    End(Reading),
}

impl Reading {
    fn go_on(mut self, log: &mut Log, failed: bool) -> Turn {
        if failed && let Err(error) = log.refresh() {
            return self.answer(log, Some(error));
        }
        let (mut bytes, mut passed) = (0, 0);
        loop {
            match self.course.step(log) {
                Ok(Step::Given(delivery)) => {
                    if let Entry::Record(record) = &delivery.what {
                        bytes += record.len;
                    }
                    bytes += RECORD_BYTES;
                    self.given.push_back(*delivery);
                    if self.given.len() >= MAX_GIVEN || bytes >= MAX_GIVEN_BYTES {
                        return self.answer(log, None);
                    }
                }
                Ok(Step::Passed(len)) => {
                    passed += len + RECORD_BYTES;
                    if passed >= MAX_PASSED_BYTES {
                        return if self.given.is_empty() {
                            self.note();
                            Turn::More(self)
                        } else {
                            self.answer(log, None)
                        };
                    }
                }
                Ok(Step::End) if self.given.is_empty() => {
                    self.note();
                    return Turn::End(self);
                }
                Ok(Step::End) => return self.answer(log, None),
                Err(error) => return self.answer(log, Some(error)),
            }
        }
    }

    /// Tells how far it has come in vain.
    fn note(&self) {
        self.looked.store(self.course.looked().0, Ordering::Release);
    }

    fn answer(self, log: &Log, failed: Option<Error>) -> Turn {
        let Self { course, given, answer, .. } = self;
        let cursor = Cursor::new(log.journal_id(), course.looked());
        // Whoever dropped the subscription does not want to know.
        let _ = answer.send(Answer { course, given, failed, cursor });
        Turn::Over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Options;

    fn wait_until(mut done: impl FnMut() -> bool) {
        for _ in 0..60_000 {
            if done() {
                return;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
        panic!("it did not happen within a minute");
    }

    /// The thread holds the desk as long as it lives.
    #[tokio::test]
    async fn dropped_at_any_moment_nothing_is_left_running() {
        let dir = tempfile::tempdir().unwrap();
        let (engine, _) = Engine::open(dir.path().join("data"), Options::default()).unwrap();
        let log = AsyncLog::of(&engine);
        for polls in 0..4 {
            assert_eq!(Arc::strong_count(&log.0), 1, "there is no thread without a subscription");
            {
                let mut begins = std::pin::pin!(log.subscribe(Start::Now, Filter::default()));
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                for _ in 0..polls {
                    if begins.as_mut().poll(&mut context).is_ready() {
                        break;
                    }
                }
            }
            wait_until(|| Arc::strong_count(&log.0) == 1);
            let mut watched = log.subscribe(Start::Now, Filter::default()).await.unwrap();
            let second = log.subscribe(Start::Now, Filter::default()).await.unwrap();
            if polls > 0 {
                let within = tokio::time::timeout(LOOK * polls, watched.next());
                assert!(within.await.is_err());
            }
            drop(watched);
            assert!(log.0.hold().staffed, "the second one is served");
            drop(second);
            wait_until(|| Arc::strong_count(&log.0) == 1);
        }
    }

    /// Nobody waits for ever for an answer that went down with it.
    #[tokio::test]
    async fn a_reading_thread_that_dies_is_told_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (engine, _) = Engine::open(dir.path().join("data"), Options::default()).unwrap();
        let log = AsyncLog::of(&engine);
        let mut watched = log.subscribe(Start::Now, Filter::default()).await.unwrap();
        let cursor = watched.cursor();
        let desk = Arc::clone(&log.0);
        let died = std::thread::spawn(move || {
            let _shift = Shift(&desk);
            panic!("on purpose");
        });
        assert!(died.join().is_err());
        assert_eq!(watched.next().await.unwrap_err().kind(), ErrorKind::Reopen);
        drop(log.subscribe(Start::After(cursor), Filter::default()).await.unwrap());
    }
}
