//! One tick.

use super::config::Identity;
use super::queue::{self, Entry, Role};
use super::runner::{Context, Registered, Report, RunnerError};
use super::{Inner, hold};
use crate::clock::Clock;
use crate::engine::tickers::Asked;
use crate::record::{JsonText, Tick as Record};
use serde::Serialize;
use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A future that was put on the heap.
pub type BoxFuture<'f, T> = Pin<Box<dyn Future<Output = T> + Send + 'f>>;

/// Why there is a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trigger {
    /// The interval is over.
    Interval,
    /// Somebody asked for it.
    #[default]
    Manual,
}

impl Trigger {
    /// Its word in records.
    pub fn word(self) -> &'static str {
        match self {
            Self::Interval => "interval",
            Self::Manual => "manual",
        }
    }
}

/// What became of a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Its work was done, whether or not all runners did well.
    Scheduled,
    /// Another tick was in flight.
    SkippedBusy,
    /// There was nobody to call.
    SkippedNoRunners,
    /// The hook said that another conductor leads.
    SkippedNotLeader,
    /// The hook said that the system is paused.
    SkippedSystemPaused,
    /// The hook failed.
    Failed,
}

impl Decision {
    /// Its word in records.
    pub fn word(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::SkippedBusy => "skipped_busy",
            Self::SkippedNoRunners => "skipped_no_runners",
            Self::SkippedNotLeader => "skipped_not_leader",
            Self::SkippedSystemPaused => "skipped_system_paused",
            Self::Failed => "failed",
        }
    }
}

/// A tick that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    /// What became of it.
    pub decision: Decision,
    /// By which its records are known.
    pub batch_id: String,
    /// How many runners were registered when it began.
    pub runner_count: usize,
}

/// The answer of a schedule hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The work was done, or will not be.
    Scheduled,
    /// Another conductor leads: the work was not done.
    SkippedNotLeader,
    /// The system is paused: the work was not done.
    SkippedSystemPaused,
}

/// Decides whether a tick's work is done, and in whose name.
///
/// ```
/// use runwal::timed_jobs::{Answer, BoxFuture, Identity, RunnerError, Schedule, Work};
///
/// struct Lease;
/// impl Lease {
///     fn held(&self) -> Option<u64> { Some(7) }
/// }
/// impl Schedule for Lease {
///     fn schedule(&self, work: Work) -> BoxFuture<'_, Result<Answer, RunnerError>> {
///         Box::pin(async move {
///             let Some(term) = self.held() else { return Ok(Answer::SkippedNotLeader) };
///             work.run(Identity { term: Some(term), ..Identity::new("conductor-1") }).await;
///             Ok(Answer::Scheduled)
///         })
///     }
/// }
/// ```
pub trait Schedule: Send + Sync + 'static {
    /// Runs the work, or drops it, and answers which. What was run counts as scheduled whatever the
    /// answer; only an error, or a panic, makes the tick a failed one in any case.
    fn schedule(&self, work: Work) -> BoxFuture<'_, std::result::Result<Answer, RunnerError>>;
}

/// By what the records of a tick are known.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) id: String,
    pub(super) counter: u64,
}

/// What runners came to.
#[derive(Debug, Default)]
struct Tally {
    began: AtomicBool,
    /// It was to be run in a term that is over.
    over: AtomicBool,
    successful: AtomicUsize,
    failed: AtomicUsize,
}

/// The work of a tick: all runners, one after the other. It can be run once, by whoever has it; the
/// tick is over when it was run or dropped.
#[derive(Debug)]
pub struct Work {
    jobs: Arc<Inner>,
    runners: Vec<Arc<Registered>>,
    batch: Batch,
    trigger: Trigger,
    tally: Arc<Tally>,
    /// Gone with this and its runners: whoever waits for the end of the work waits for that.
    over: watch::Sender<()>,
}

impl Work {
    /// Runs it in somebody's name. Dropping the future stops the runner it has come to, at its next
    /// await; the tick is not over before that.
    ///
    /// Where this process has seen that the identity's term is over, nothing is run, and the tick is one
    /// that was skipped as this conductor does not lead. That is seen with what is recorded: a tick that
    /// comes right behind the take-over may still be run, and its records are refused.
    pub async fn run(self, identity: Identity) {
        if identity.term.is_some_and(|term| self.jobs.engine.seems_over(term)) {
            self.tally.over.store(true, Ordering::SeqCst);
            return;
        }
        self.tally.began.store(true, Ordering::SeqCst);
        for runner in &self.runners {
            self.call(runner, &identity).await;
        }
    }

    async fn call(&self, runner: &Arc<Registered>, identity: &Identity) {
        let context = Context {
            runner: runner.name.clone(),
            batch: self.batch.clone(),
            trigger: self.trigger,
            identity: identity.clone(),
            settings: Arc::clone(&self.jobs.settings),
            engine: self.jobs.engine.clone(),
            jobs: Arc::clone(&self.jobs),
        };
        let config = &self.jobs.settings.config;
        let mut turn = Turn {
            record: Record {
                runner: runner.name.clone(),
                ..queue::framework(&self.batch, "runner_started", None)
            },
            term: identity.term,
            began: self.jobs.engine.world().clock.monotonic_ns(),
            clock: Arc::clone(&self.jobs.engine.world().clock),
            work: self,
            over: false,
        };
        let details = StartedDetails {
            controller_id: &identity.controller_id,
            host: &identity.host,
            max_messages_per_tick: config.max_messages_per_tick,
            max_tasks_per_tick: config.max_tasks_per_tick,
            settle_delay_ms: u64::try_from(config.settle_delay.as_millis()).unwrap_or(u64::MAX),
            term: identity.term,
            trigger: self.trigger.word(),
        };
        turn.put(Record {
            result: Some("running".to_owned()),
            details: json(&details),
            ..turn.record.clone()
        });
        let (called, registered) = (context, Arc::clone(runner));
        let over = self.over.clone();
        // In a task of its own, so that a panic ends it alone, also one of its error's. Where it is
        // given up, it goes on up to its next await.
        let task = AbortOnDrop(tokio::spawn(async move {
            let came = registered.call(called).await.map_err(|error| error.to_string());
            drop(over);
            came
        }));
        let came = task.join().await;
        turn.end(came);
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> AbortOnDrop<T> {
    async fn join(mut self) -> std::result::Result<T, tokio::task::JoinError> {
        (&mut self.0).await
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One runner's part. Dropped before its end, it records that.
struct Turn<'w> {
    record: Record,
    term: Option<u64>,
    began: u64,
    clock: Arc<dyn Clock>,
    work: &'w Work,
    over: bool,
}

impl Turn<'_> {
    fn put(&self, record: Record) {
        self.work.jobs.queue.push(Entry { term: self.term, ..Entry::plain(record) });
    }

    fn end(
        &mut self,
        came: std::result::Result<std::result::Result<Report, String>, tokio::task::JoinError>,
    ) {
        let error = match came {
            Ok(Ok(report)) => {
                self.over = true;
                self.work.tally.successful.fetch_add(1, Ordering::SeqCst);
                self.put(Record {
                    stage: "runner_completed".to_owned(),
                    result: Some(report.result.unwrap_or_else(|| "ok".to_owned())),
                    duration_ms: Some(millis_since(&*self.clock, self.began)),
                    details: report.details.unwrap_or(JsonText::empty()),
                    ..self.record.clone()
                });
                return;
            }
            Ok(Err(error)) => Some(error),
            Err(error) => panic_text(error),
        };
        self.fail(error);
    }

    fn fail(&mut self, error: Option<String>) {
        self.over = true;
        self.work.tally.failed.fetch_add(1, Ordering::SeqCst);
        self.put(Record {
            stage: "runner_failed".to_owned(),
            result: Some("failed".to_owned()),
            error: error.filter(|text| !text.is_empty()),
            duration_ms: Some(millis_since(&*self.clock, self.began)),
            ..self.record.clone()
        });
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.fail(Some("The work was given up before the runner ended.".to_owned()));
        }
    }
}

/// The payload of a panic.
fn panic_text(error: tokio::task::JoinError) -> Option<String> {
    let payload: Box<dyn Any + Send> = error.try_into_panic().ok()?;
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
}

fn millis_since(clock: &dyn Clock, began_ns: u64) -> u64 {
    clock.monotonic_ns().saturating_sub(began_ns) / 1_000_000
}

#[derive(Serialize)]
struct StartedDetails<'d> {
    controller_id: &'d str,
    host: &'d str,
    max_messages_per_tick: u64,
    max_tasks_per_tick: u64,
    settle_delay_ms: u64,
    term: Option<u64>,
    trigger: &'static str,
}

#[derive(Serialize)]
struct TriggerDetails {
    trigger: &'static str,
}

#[derive(Serialize)]
struct CompletedDetails {
    failed_runner_count: usize,
    runner_count: usize,
    successful_runner_count: usize,
    trigger: &'static str,
}

/// These serialize to objects.
fn json(details: &impl Serialize) -> JsonText {
    JsonText::of(details).unwrap_or(JsonText::empty())
}

/// While there is one of these, no other tick begins.
pub(super) struct InFlight(Arc<Inner>);

impl InFlight {
    /// `None` while there is another.
    pub(super) fn take(jobs: &Arc<Inner>) -> Option<Self> {
        let begins = jobs.flight.send_if_modified(|in_flight| !std::mem::replace(in_flight, true));
        begins.then(|| Self(Arc::clone(jobs)))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.flight.send_replace(false);
    }
}

/// The end of a tick that is going on in a task of its own.
pub(super) type Flight = BoxFuture<'static, Tick>;

/// Begins a tick, which goes on by itself; or says why there is none. `nth` is the interval that it
/// accounts for.
pub(super) fn begin(jobs: &Arc<Inner>, trigger: Trigger, nth: Option<u64>) -> Result<Flight, Tick> {
    let runners = hold(&jobs.runners).clone();
    let batch = jobs.next_batch();
    let count = runners.len();
    let over = |decision| Tick { decision, batch_id: batch.id.clone(), runner_count: count };
    let role = nth.map(Role::Interval);
    let skipped = |decision: Decision| {
        let stage = format!("tick_{}", decision.word());
        let details = json(&TriggerDetails { trigger: trigger.word() });
        let record = Record { details, ..queue::framework(&batch, &stage, Some(decision.word())) };
        jobs.queue.push(Entry { role: role.clone().unwrap_or_default(), ..Entry::plain(record) });
        over(decision)
    };
    let Some(flight) = InFlight::take(jobs) else {
        return Err(skipped(Decision::SkippedBusy));
    };
    if runners.is_empty() {
        return Err(skipped(Decision::SkippedNoRunners));
    }
    let asked = json(&Asked { runner_count: count, trigger: trigger.word().to_owned() });
    let record = Record { details: asked, ..queue::framework(&batch, "tick_started", Some("running")) };
    let role = role.unwrap_or(Role::Tick(batch.counter));
    jobs.queue.push(Entry { role, ..Entry::plain(record) });
    let failed = over(Decision::Failed);
    let task = tokio::spawn(fly(Arc::clone(jobs), runners, batch, trigger, flight));
    Ok(Box::pin(async move { task.await.unwrap_or(failed) }))
}

async fn fly(
    jobs: Arc<Inner>,
    runners: Vec<Arc<Registered>>,
    batch: Batch,
    trigger: Trigger,
    flight: InFlight,
) -> Tick {
    let clock = Arc::clone(&jobs.engine.world().clock);
    let began = clock.monotonic_ns();
    let (over, mut is_over) = watch::channel(());
    let tally = Arc::new(Tally::default());
    let work = Work {
        jobs: Arc::clone(&jobs),
        runners: runners.clone(),
        batch: batch.clone(),
        trigger,
        tally: Arc::clone(&tally),
        over,
    };
    let answer = ask(&jobs, work).await;
    // Wherever the hook has moved the work to: the tick is not over before it is.
    let _ = is_over.changed().await;
    let put = |stage: &str, result: &str, error: Option<String>, details: JsonText| {
        let record = Record {
            error,
            details,
            duration_ms: Some(millis_since(&*clock, began)),
            ..queue::framework(&batch, stage, Some(result))
        };
        jobs.queue.push(Entry { role: Role::End(batch.counter), ..Entry::plain(record) });
    };
    let asked = || json(&Asked { runner_count: runners.len(), trigger: trigger.word().to_owned() });
    let answer = match answer {
        Ok(Answer::Scheduled) if tally.over.load(Ordering::SeqCst) => Ok(Answer::SkippedNotLeader),
        other => other,
    };
    let decision = match answer {
        Err(error) => {
            put("tick_failed", "failed", error.filter(|text| !text.is_empty()), asked());
            Decision::Failed
        }
        Ok(answer) if answer == Answer::Scheduled || tally.began.load(Ordering::SeqCst) => {
            let failed = tally.failed.load(Ordering::SeqCst);
            let details = CompletedDetails {
                failed_runner_count: failed,
                runner_count: runners.len(),
                successful_runner_count: tally.successful.load(Ordering::SeqCst),
                trigger: trigger.word(),
            };
            let result = if failed > 0 { "completed_with_failures" } else { Decision::Scheduled.word() };
            put("tick_completed", result, None, json(&details));
            Decision::Scheduled
        }
        Ok(answer) => {
            let decision = match answer {
                Answer::SkippedSystemPaused => Decision::SkippedSystemPaused,
                Answer::SkippedNotLeader | Answer::Scheduled => Decision::SkippedNotLeader,
            };
            for runner in &runners {
                let record = Record {
                    runner: runner.name.clone(),
                    duration_ms: Some(0),
                    details: json(&TriggerDetails { trigger: trigger.word() }),
                    ..queue::framework(&batch, "runner_skipped", Some(decision.word()))
                };
                jobs.queue.push(Entry::plain(record));
            }
            put("tick_completed", decision.word(), None, asked());
            decision
        }
    };
    drop(flight);
    Tick { decision, batch_id: batch.id, runner_count: runners.len() }
}

/// Hands the work to the hook, or does it where there is none. An error is what went wrong with the
/// hook.
async fn ask(jobs: &Arc<Inner>, work: Work) -> std::result::Result<Answer, Option<String>> {
    let Some(hook) = jobs.settings.schedule.clone() else {
        work.run(jobs.settings.identity.clone()).await;
        return Ok(Answer::Scheduled);
    };
    let asked = async move { hook.schedule(work).await.map_err(|error| error.to_string()) };
    let task = AbortOnDrop(tokio::spawn(asked));
    match task.join().await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Some(error)),
        Err(error) => Err(panic_text(error)),
    }
}
