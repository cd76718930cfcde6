//! Timed jobs: registered runners, called at an interval, every tick of it in the journal.
//!
//! ```
//! use runwal::engine::{Engine, Options};
//! use runwal::timed_jobs::{Config, Context, Report, RunnerError, TimedJobs, TimedJobsOptions, Trigger};
//! use std::time::Duration;
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path().join("data");
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let (engine, _) = Engine::open(&dir, Options::default())?;
//! let jobs = TimedJobs::new(&engine, TimedJobsOptions::new(Config::every(Duration::from_secs(60)), "conductor-1"))?;
//! jobs.register("health", "Looks whether all is well.", |context: Context| async move {
//!     context.log("checking", |entry| entry.result("disk"));
//!     Ok::<_, RunnerError>(Report::of("healthy").details(&[("free_gb", 41)].into_iter().collect::<std::collections::BTreeMap<_, _>>())?)
//! })?;
//! jobs.start().await?; // the first tick comes in a minute
//! let tick = jobs.tick(Trigger::Manual).await; // this one at once
//! assert_eq!((tick.decision.word(), tick.runner_count), ("scheduled", 1));
//! jobs.stop().await?; // all of it is durable now
//! engine.close()?; // and in `timed-jobs/<day>.jsonl`
//! # Ok::<(), runwal::Error>(()) }).unwrap();
//! ```
//!
//! # What is recorded
//!
//! Each record has a *stage* (`started`, `tick_started`, `runner_started`, `runner_completed` …), a
//! result, the runner it is about, and the tick's batch id, `timed-jobs-<unix ms>-<counter>`.
//! The framework's own have the runner `timed-jobs.framework`. Records stand in the order of the
//! calls. A detail whose key is taken by one of the seven keys that every line of the daily files
//! has, or by an earlier detail, stands there as `detail_<key>`, with a number if need be.
//!
//! # No interval is lost
//!
//! Intervals are planned from [`TimedJobs::start`] on, by a clock that cannot be set. Each of them is
//! accounted for exactly once: by a tick (`tick_started`), also a late one; by a skipped one
//! (`tick_skipped_busy`, `tick_skipped_no_runners`); or by `tick_missed`, which tells when the first
//! one was planned and how many there are. Several that are due at once, as the process was held up,
//! make one tick, and the others are missed with the result `coalesced`. What passed while no
//! process lived is recorded by the next start, of whatever process, once; [`Missed`] says what
//! else is done about it. By the wall clock, as no other is there: a clock set back while nobody
//! lived hides what was missed.
//!
//! # Two conductors
//!
//! Both may tick on one data directory: who leads is for the [`Schedule`] hook to say. Records of
//! work that it ran bear the term it gave, and are refused once a higher one was seen.
//!
//! # When writing is slow, or fails
//!
//! No tick waits for the disk: records go to a thread of their own through a queue of
//! [`QUEUE_LEN`] records, and as many bytes as [`QUEUE_BYTES`]. What does not fit is not recorded; the next record that fits is preceded by one of
//! the stage `records_lost` with the `count`. This, and every record that could not be written, is
//! told to [`TimedJobsOptions::on_write_error`]; ticks go on, and later records are tried anew.

mod config;
mod queue;
mod runner;
mod tick;
mod timer;

pub use config::{Config, Identity, Missed, NotWritten, TimedJobsOptions};
pub use queue::{QUEUE_BYTES, QUEUE_LEN};
pub use runner::{Context, LogEntry, Report, Runner, RunnerError};
pub use tick::{Answer, BoxFuture, Decision, Schedule, Tick, Trigger, Work};

use crate::engine::tickers::{self, FRAMEWORK};
use crate::engine::{Engine, MissedTicks};
use crate::error::{Conflict, Error, ErrorKind, Result};
use config::Settings;
use queue::{Entry, Queue};
use runner::Registered;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A ticker with its runners; cheap to clone, all clones are one. Needs a tokio runtime with time.
///
/// # After a crash
/// A tick that was in flight is ended as `interrupted` by whoever opens the journal next; intervals
/// that nobody ticked in are recorded by the next start. Dropping the last clone without
/// [`stop`](Self::stop) counts as a crash, but that everything recorded so far is still written, unless
/// the engine is closed meanwhile: [`stop`](Self::stop) or [`flush`](Self::flush) before
/// [`Engine::close`].
#[derive(Debug, Clone)]
pub struct TimedJobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    settings: Arc<Settings>,
    queue: Queue,
    runners: Mutex<Vec<Arc<Registered>>>,
    counter: AtomicU64,
    /// Whether a tick is in flight.
    flight: watch::Sender<bool>,
    phase: Mutex<Phase>,
}

/// What became of a stop, once it is over.
type Stopped = Option<Option<(ErrorKind, String)>>;

#[derive(Debug)]
enum Phase {
    Idle,
    /// Being started: what was missed is looked for.
    Starting(watch::Receiver<()>),
    Started(Option<JoinHandle<()>>),
    Draining(watch::Receiver<Stopped>),
}

/// A start or a stop under way. Where it comes to no end, as its runtime does, nothing is started,
/// and whoever waits for it goes on.
struct Turning<T> {
    jobs: Option<Arc<Inner>>,
    over: watch::Sender<T>,
}

impl<T> Turning<T> {
    fn new(jobs: &Arc<Inner>, over: watch::Sender<T>) -> Self {
        Self { jobs: Some(Arc::clone(jobs)), over }
    }

    fn to(&mut self, phase: Phase) {
        if let Some(jobs) = self.jobs.take() {
            *hold(&jobs.phase) = phase;
        }
    }
}

impl<T> Drop for Turning<T> {
    fn drop(&mut self) {
        self.to(Phase::Idle);
    }
}

/// What starting found and did.
#[derive(Debug, Clone, Default)]
pub struct Started {
    /// Whether it had been started before: then nothing was done.
    pub already: bool,
    /// What dead processes missed, and this start has recorded.
    pub missed: Vec<MissedTicks>,
    /// What could not be found out of them, as records are damaged. It stopped nothing.
    pub problems: Vec<String>,
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that holds one of these panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TimedJobs {
    /// A ticker without runners that was not started.
    ///
    /// # Errors
    /// [`ErrorKind::Misuse`] for an interval of zero; [`ErrorKind::Io`] where the writing thread
    /// cannot be started.
    pub fn new(engine: &Engine, options: TimedJobsOptions) -> Result<Self> {
        if options.config.interval.is_zero() {
            return Err(Error::misuse("timed jobs need an interval above zero"));
        }
        let settings = Arc::new(Settings::from(options));
        let queue = Queue::start(engine, &settings)?;
        Ok(Self(Arc::new(Inner {
            engine: engine.clone(),
            settings,
            queue,
            runners: Mutex::default(),
            counter: AtomicU64::new(0),
            flight: watch::Sender::new(false),
            phase: Mutex::new(Phase::Idle),
        })))
    }

    /// Registers a runner under a name, of which spaces around are cut off. It takes part in ticks
    /// that begin from now on, behind those registered before. The description may be empty.
    ///
    /// # Errors
    /// [`ErrorKind::Misuse`] for an empty name and for `timed-jobs.framework`;
    /// [`ErrorKind::Conflict`] for one that is taken.
    pub fn register(&self, name: &str, description: &str, runner: impl Runner) -> Result<()> {
        let name = name.trim();
        if name.is_empty() || name == FRAMEWORK {
            let message = format!("\"{}\" cannot be the name of a runner", name.escape_debug());
            return Err(Error::misuse(message));
        }
        let mut runners = hold(&self.0.runners);
        if runners.iter().any(|runner| runner.name == name) {
            let message = format!("a runner named \"{}\" is registered already", name.escape_debug());
            return Err(Error::conflict_of(Conflict::Exists, message).hint("Choose another name."));
        }
        runners.push(Arc::new(Registered::new(name, description, runner)));
        Ok(())
    }

    /// What it was configured with.
    pub fn config(&self) -> Config {
        self.0.settings.config.clone()
    }

    /// The names of the runners in the order of their registration.
    pub fn runner_names(&self) -> Vec<String> {
        hold(&self.0.runners).iter().map(|runner| runner.name.clone()).collect()
    }

    /// What a runner is said to do; `None` where there is no such runner, or nothing is said.
    pub fn description(&self, runner: &str) -> Option<String> {
        let runners = hold(&self.0.runners);
        let found = runners.iter().find(|registered| registered.name == runner)?;
        Some(found.description.clone()).filter(|text| !text.is_empty())
    }

    /// Whether it was started, and not stopped since.
    pub fn is_started(&self) -> bool {
        matches!(*hold(&self.0.phase), Phase::Started(_) | Phase::Starting(_))
    }

    /// Starts it: records what dead processes missed, then `started`, and ticks from one interval on,
    /// unless [`Config::auto_start`] is off. A second start does nothing; one while a stop is under
    /// way waits for its end.
    ///
    /// # Errors
    /// Those of reading what dead processes left; nothing was started then. That a record could not
    /// be written is none: it is told to [`TimedJobsOptions::on_write_error`].
    pub async fn start(&self) -> Result<Started> {
        let begun = loop {
            let (mut stopping, mut starting) = (None, None);
            {
                let mut phase = hold(&self.0.phase);
                match &*phase {
                    Phase::Started(_) => return Ok(Started { already: true, ..Started::default() }),
                    Phase::Starting(over) => starting = Some(over.clone()),
                    Phase::Draining(over) => stopping = Some(over.clone()),
                    Phase::Idle => {
                        let (begun, over) = watch::channel(());
                        *phase = Phase::Starting(over);
                        break begun;
                    }
                }
            }
            // Either ends when its sender goes.
            if let Some(mut over) = stopping.take() {
                let _ = over.wait_for(Option::is_some).await;
            }
            if let Some(mut over) = starting.take() {
                let _ = over.changed().await;
            }
        };
        let (jobs, mut turning) = (self.clone(), Turning::new(&self.0, begun));
        // Of its own, so that a caller who does not wait for it leaves nothing half started.
        let work = tokio::spawn(async move { Inner::start(&jobs.0, &mut turning).await });
        work.await.map_err(|_| Error::new(ErrorKind::Io, "starting timed jobs was interrupted"))?
    }

    /// Stops it: no tick begins by itself any more, the one in flight ends, `stopped` is recorded, and
    /// all records are durable on return. Where nothing was started and nothing is in flight, nothing
    /// is written. Stops at once share one.
    ///
    /// A runner, or a hook, that waits for it waits for itself, and nobody's stop comes to an end: let a
    /// task of its own do that.
    ///
    /// # Errors
    /// Why `stopped` could not be written; and, where no [`TimedJobsOptions::on_write_error`] is set,
    /// why other records could not. It is stopped all the same.
    pub async fn stop(&self) -> Result<()> {
        let mut over = loop {
            let (done, over) = watch::channel(None);
            let mut starting = None;
            let before = {
                let mut phase = hold(&self.0.phase);
                match &*phase {
                    Phase::Draining(over) => break Some(over.clone()),
                    Phase::Idle if !*self.0.flight.borrow() => break None,
                    Phase::Starting(over) => {
                        starting = Some(over.clone());
                        Phase::Idle
                    }
                    Phase::Idle | Phase::Started(_) => {
                        std::mem::replace(&mut *phase, Phase::Draining(over.clone()))
                    }
                }
            };
            if let Some(mut starting) = starting {
                // It ends when its sender goes.
                let _ = starting.changed().await;
                continue;
            }
            let timer = if let Phase::Started(timer) = before { timer } else { None };
            timer.iter().for_each(JoinHandle::abort);
            let (jobs, mut turning) = (self.clone(), Turning::new(&self.0, done));
            tokio::spawn(async move {
                let outcome = jobs.0.drain(timer).await.err();
                turning.to(Phase::Idle);
                turning.over.send_replace(Some(outcome.map(|e| (e.kind(), e.message()))));
            });
            break Some(over);
        };
        let Some(over) = &mut over else {
            self.flush().await;
            return self.0.settings.untold();
        };
        let outcome = over.wait_for(Option::is_some).await;
        match outcome.as_deref() {
            Ok(Some(None)) => self.0.settings.untold(),
            Ok(Some(Some((kind, message)))) => Err(Error::new(*kind, message.clone())),
            _ => Err(Error::new(ErrorKind::Io, "the runtime ended before timed jobs were stopped")),
        }
    }

    /// Ticks once, now: before a start, without a timer and after a stop too. Where a tick is in
    /// flight, this one is skipped at once.
    ///
    /// # Cancellation
    /// A tick that has begun goes on to its end without the future.
    pub async fn tick(&self, trigger: Trigger) -> Tick {
        match tick::begin(&self.0, trigger, None) {
            Ok(flight) => flight.await,
            Err(skipped) => skipped,
        }
    }

    /// Waits until everything recorded so far is durable, or told to be not written.
    pub async fn flush(&self) {
        self.0.queue.flush().await;
    }
}

impl Inner {
    async fn start(self: &Arc<Self>, turning: &mut Turning<()>) -> Result<Started> {
        let policy = if self.settings.config.auto_start { self.settings.missed } else { Missed::RecordOnly };
        let jobs = Arc::clone(self);
        let missed = tokio::task::spawn_blocking(move || {
            tickers::account(&jobs.engine, policy.word(), &mut || jobs.next_batch().id)
        });
        let missed =
            missed.await.map_err(|_| Error::new(ErrorKind::Io, "looking for missed ticks was interrupted"));
        let (missed, problems) = missed.and_then(|accounted| accounted)?;
        let batch = self.next_batch();
        let interval = self.settings.config.auto_start.then_some(self.settings.config.interval);
        let word = if interval.is_some() { "loop_enabled" } else { "loop_disabled" };
        let record = queue::framework(&batch, "started", Some(word));
        // No await between the moment that is recorded and the one that the timer counts from.
        self.queue.push(Entry::started(record, interval));
        let timer = interval.map(|interval| timer::spawn(self, interval));
        turning.to(Phase::Started(timer));
        if policy == Missed::RunOnce && !missed.is_empty() {
            // It goes on by itself.
            drop(tick::begin(self, Trigger::Interval, None));
        }
        Ok(Started { already: false, missed, problems })
    }

    async fn drain(self: &Arc<Self>, timer: Option<JoinHandle<()>>) -> Result<()> {
        if let Some(timer) = timer {
            // It may be about to begin a tick, on another thread.
            let _ = timer.await;
        }
        let room = self.queue.room().await?;
        let mut flight = self.flight.subscribe();
        let between = loop {
            // Its sender is held here: it cannot end without saying so.
            let _ = flight.wait_for(|in_flight| !in_flight).await;
            if let Some(between) = tick::InFlight::take(self) {
                break between;
            }
        };
        let batch = self.next_batch();
        let stopping = room.stop(queue::framework(&batch, "stopped", Some("stopped")));
        drop(between);
        stopping.wait().await
    }

    fn next_batch(&self) -> tick::Batch {
        let counter = self.counter.fetch_add(1, Ordering::SeqCst) + 1;
        let ms = self.engine.world().clock.now().0.div_euclid(1_000_000);
        tick::Batch { id: format!("timed-jobs-{ms}-{counter}"), counter }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Phase::Started(Some(timer)) = &*hold(&self.phase) {
            timer.abort();
        }
    }
}
