//! A small conductor: tasks of steps, worker processes under a limit, one leader, timed jobs; killed
//! at any moment and started again it goes on where it was. This is the guide to embedding: read it
//! from [`main`] on.
//!
//! ```sh
//! cargo run --example conductor --features tokio -- DATA TASKS.json
//! ```
//!
//! where TASKS.json says what is to be done, the steps of a task one after the other:
//!
//! ```json
//! {"tasks": [
//!   {"id": "T-1", "steps": [
//!     {"id": "build", "command": ["make"], "attempts": 3, "timeoutSec": 600},
//!     {"id": "test",  "command": ["make", "test"]}]}]}
//! ```
//!
//! It ends with 0 when every step of every task has completed, with 1 when a step has used up its
//! attempts, with 130 when it was asked to stop, and with 2 when it cannot go on: what it is told to
//! do makes no sense, or what it does cannot be recorded. A second one on the same data directory
//! waits until the first is gone, and takes over.

#![expect(clippy::disallowed_methods, reason = "reads its own files; the crate itself has one door to them")]

use runwal::Error;
use runwal::engine::{Engine, Log, Options, RunInfo};
use runwal::record::{Id, Status};
use runwal::run::{Cancel, Discard, NextAttempt, ProcessOptions, RunRequest, Steps};
use runwal::timed_jobs::{
    Answer, BoxFuture, Config, Context, Identity, Report, RunnerError, Schedule, TimedJobs, TimedJobsOptions,
    Work,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// How many workers may be at work at once.
const WORKERS: usize = 4;
/// How far apart ticks are. A real conductor would take a minute.
const TICK: Duration = Duration::from_millis(250);

// ---- What is to be done. -----------------------------------------------------------------------

#[derive(Deserialize)]
struct Plan {
    tasks: Vec<Task>,
}

#[derive(Deserialize)]
struct Task {
    id: String,
    steps: Vec<Step>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Step {
    id: String,
    command: Vec<String>,
    #[serde(default = "three")]
    attempts: u32,
    timeout_sec: Option<u64>,
}

fn three() -> u32 {
    3
}

impl Plan {
    fn read(path: &Path) -> Result<Self, Error> {
        let reading = || format!("reading {}", path.display());
        let text = std::fs::read(path).map_err(|e| Error::io(reading(), e))?;
        let plan: Self =
            serde_json::from_slice(&text).map_err(|e| Error::io(reading(), std::io::Error::other(e)))?;
        // What no attempt could be made of is said now, and not by each attempt.
        for task in &plan.tasks {
            Id::new(task.id.as_str())?;
            for step in &task.steps {
                Id::new(step.id.as_str())?;
                Step::run(&step.id, u32::MAX)?;
                if step.command.is_empty() {
                    let message = format!("step {} of task {} has no command", step.id, task.id);
                    return Err(Error::io(reading(), std::io::Error::other(message)));
                }
            }
        }
        Ok(plan)
    }
}

impl Step {
    /// The names of runs follow from what they are for. So a run that another conductor has begun cannot
    /// be begun again: its name is taken.
    fn run(step: &str, attempt: u32) -> Result<Id, Error> {
        Id::new(format!("{step}-{attempt}"))
    }
}

// ---- Who may do it. ----------------------------------------------------------------------------

/// The lease: a lock on a file, which goes with its holder, however that dies. It says who leads; that
/// nobody else *writes* is for the journal to see to, by the term. Conductors on several machines would
/// take their lease, and the term with it, from a service; nothing else would change.
struct Lease {
    _file: File,
}

impl Lease {
    /// Waits until nobody else has it.
    fn take(path: &Path) -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        Ok(Self { _file: file })
    }
}

// ---- The conductor. ----------------------------------------------------------------------------

struct Conductor {
    engine: Engine,
    plan: Plan,
    term: u64,
    steps: Steps,
    cancel: Cancel,
    /// What this process knows of the runs. It follows from the journal, and is nowhere else.
    known: Mutex<Known>,
    changed: Notify,
}

#[derive(Default)]
struct Known {
    /// The last attempt at each step of each task, and how it went.
    last: BTreeMap<(String, String), Last>,
    /// The tasks of which a step is under way.
    busy: BTreeSet<String>,
    /// Whether an attempt could not be recorded.
    failed: bool,
}

#[derive(Clone)]
struct Last {
    run: RunInfo,
    attempt: u32,
    status: Status,
    /// How many attempts went wrong by themselves. One that was interrupted, or called off, did not.
    failures: u32,
}

impl Last {
    fn new(run: RunInfo, attempt: u32, status: Status, before: Option<&Self>) -> Self {
        let own = matches!(status, Status::Failed | Status::Blocked | Status::NeedsHuman);
        Self { run, attempt, status, failures: before.map_or(0, |last| last.failures) + u32::from(own) }
    }
}

/// What there is to do for a task.
enum Todo {
    Nothing,
    /// A step has used up its attempts.
    Hopeless,
    First(Step),
    Again(Step, Last),
}

impl Conductor {
    /// Reads how all runs went. Whatever was under way when the last conductor died has an end by now:
    /// opening the engine gave it one.
    fn read_runs(log: &mut Log) -> Result<BTreeMap<(String, String), Last>, Error> {
        let mut last: BTreeMap<_, Last> = BTreeMap::new();
        for run in log.runs()? {
            let (fold, damage) = log.fold(run.stream)?;
            for damage in damage {
                eprintln!("conductor: run {}: {}", run.name, damage.reason);
            }
            let (Some(request), Some(status)) = (fold.request(), fold.state().status) else { continue };
            let key = (run.name.task.to_string(), request.step.to_string());
            // In the order of their beginning, so that the last attempt comes last.
            let this = Last::new(run, request.attempt, status, last.get(&key));
            last.insert(key, this);
        }
        Ok(last)
    }

    fn todo(known: &Known, task: &Task) -> Todo {
        for step in &task.steps {
            return match known.last.get(&(task.id.clone(), step.id.clone())) {
                None => Todo::First(step.clone()),
                Some(last) if last.status == Status::Completed => continue,
                Some(last) if last.failures < step.attempts => Todo::Again(step.clone(), last.clone()),
                Some(_) => Todo::Hopeless,
            };
        }
        Todo::Nothing
    }

    /// Begins what can begin: the next step of every task of which none is under way. Steps that went
    /// wrong are begun again only where `retry` says so.
    fn advance(self: &Arc<Self>, retry: bool) -> usize {
        let mut begun = 0;
        for task in &self.plan.tasks {
            let todo = {
                let mut known = lock(&self.known);
                if known.failed || known.busy.contains(&task.id) {
                    continue;
                }
                let todo = Self::todo(&known, task);
                if !matches!((&todo, retry), (Todo::First(_), _) | (Todo::Again(..), true)) {
                    continue;
                }
                known.busy.insert(task.id.clone());
                todo
            };
            begun += 1;
            let (conductor, task) = (Arc::clone(self), task.id.clone());
            tokio::spawn(async move {
                let done = conductor.run(&task, todo).await;
                if let Err(error) = &done {
                    eprintln!("conductor: task {task}: {error}");
                    if let Some(advice) = error.advice() {
                        eprintln!("conductor: {advice}");
                    }
                }
                {
                    let mut known = lock(&conductor.known);
                    known.busy.remove(&task);
                    // A worker that fails is recorded. This is worse: the disk fails, or another leads.
                    // The next attempt would fare no better.
                    known.failed |= done.is_err();
                }
                // The next step of the task, if this one went well; a retry is the timer's.
                if conductor.cancel.signal() == 0 {
                    conductor.advance(false);
                }
                conductor.changed.notify_waiters();
            });
        }
        begun
    }

    /// One attempt at one step.
    async fn run(&self, task: &str, todo: Todo) -> Result<(), Error> {
        let (step, mut request) = match todo {
            Todo::First(step) => {
                let run = Step::run(&step.id, 1)?;
                let request = RunRequest::new(Id::new(task)?, run, Id::new(step.id.as_str())?);
                (step, request)
            }
            // The request of the run before, one attempt further, which names that run as its parent. A
            // conductor whose workers change a git checkout would restore it now:
            // `next.restore_into(fresh_worktree)`.
            Todo::Again(step, last) => {
                let run = Step::run(&step.id, last.attempt.saturating_add(1))?;
                let engine = self.engine.clone();
                // Reading may wait for the disk, which is nothing for a thread of the runtime.
                let next =
                    tokio::task::spawn_blocking(move || NextAttempt::of(&mut engine.log()?, &last.run, run));
                let next = next.await.map_err(|e| Error::io("reading the last attempt", e.into()))??;
                (step, next.request)
            }
            Todo::Nothing | Todo::Hopeless => return Ok(()),
        };
        let key = (task.to_owned(), step.id.clone());
        let attempt = request.attempt;
        request.command = step.command.iter().map(|word| word.clone().into_bytes()).collect();
        request.timeout_ms = step.timeout_sec.map(|seconds| seconds.saturating_mul(1000));
        // Every record of the run bears the term. Once a higher one was seen, nothing more of this run
        // is written, and its worker is stopped.
        request.term = Some(self.term);
        request.controller = Some("example".to_owned());
        let result = self.steps.process(request, ProcessOptions::default(), Discard, &self.cancel).await?;
        println!("conductor: {} {:?}: {}", result.run.run.name, result.run.outcome, result.run.summary);
        let mut known = lock(&self.known);
        let this = Last::new(result.run.run, attempt, result.run.outcome.status(), known.last.get(&key));
        known.last.insert(key, this);
        Ok(())
    }

    /// Whether nothing is left to do: and then, whether all went well.
    fn is_over(&self) -> Option<bool> {
        let known = lock(&self.known);
        let mut well = true;
        for task in &self.plan.tasks {
            match Self::todo(&known, task) {
                Todo::Nothing => {}
                Todo::Hopeless => well = false,
                Todo::First(_) | Todo::Again(..) => return None,
            }
        }
        known.busy.is_empty().then_some(well)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

// ---- What is done from time to time. -----------------------------------------------------------

/// Begins again what went wrong or was interrupted. It holds the conductor weakly: timed jobs are a part
/// of it, not its owner.
struct Retry(Weak<Conductor>);

impl runwal::timed_jobs::Runner for Retry {
    async fn run(&self, context: Context) -> Result<Report, RunnerError> {
        let Some(conductor) = self.0.upgrade() else { return Ok(Report::of("over")) };
        let begun = conductor.advance(true);
        if begun > 0 {
            context.log("begun", |entry| entry.details(&BTreeMap::from([("count", begun)])));
        }
        Ok(Report::of(if begun > 0 { "begun" } else { "idle" }))
    }
}

/// Says how the journal does.
async fn health(context: Context) -> Result<Report, RunnerError> {
    if context.engine().is_poisoned() {
        return Err("a write failed: this conductor has to be started again".into());
    }
    let log = context.engine().log()?;
    Ok(Report::of("healthy").details(&BTreeMap::from([("durable", log.durable().0)]))?)
}

/// A tick's work is done in the name of the leader, for as long as it leads. This one holds its lease
/// until it dies; one that could lose it would look here, and answer `SkippedNotLeader`.
struct Leads {
    term: u64,
}

impl Schedule for Leads {
    fn schedule(&self, work: Work) -> BoxFuture<'_, Result<Answer, RunnerError>> {
        Box::pin(async move {
            work.run(Identity { term: Some(self.term), ..Identity::new("example") }).await;
            Ok(Answer::Scheduled)
        })
    }
}

// ---- From the start to the end. ----------------------------------------------------------------

#[tokio::main]
async fn main() -> ExitCode {
    match conduct().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("conductor: {error}");
            if let Some(advice) = error.advice() {
                eprintln!("conductor: {advice}");
            }
            ExitCode::from(2)
        }
    }
}

async fn conduct() -> Result<ExitCode, Error> {
    let mut args = std::env::args_os().skip(1);
    let (Some(data), Some(tasks)) = (args.next(), args.next()) else {
        eprintln!("usage: conductor DATA TASKS.json");
        return Ok(ExitCode::from(2));
    };
    let plan = Plan::read(Path::new(&tasks))?;

    // 1. Lead, or wait to. The lease stands beside the data directory: what is in that is the engine's.
    let mut lease = data.clone();
    lease.push(".lease");
    let lease = tokio::task::spawn_blocking(move || Lease::take(Path::new(&lease)));
    let lease = lease.await.map_err(std::io::Error::from).and_then(|lease| lease);
    let _lease = lease.map_err(|e| Error::io("taking the lease", e))?;

    // 2. Open. Whatever the last conductor's death left is settled now: a torn tail is set aside, runs
    //    without an end get one, workers that are still running are ended, files are mended. The report
    //    tells all of it; twice changes nothing more.
    let (engine, report) = Engine::open(&data, Options::default())?;
    for run in &report.interrupted {
        println!("conductor: {} was interrupted, attempt {}", run.name, run.attempt);
    }
    for missed in &report.missed_ticks {
        println!("conductor: {} ticks were missed since {}", missed.count, missed.planned.to_millis_string());
    }
    for problem in &report.problems {
        eprintln!("conductor: {problem}");
    }

    // 3. A term above every one that was seen. The first record that bears it shuts out whoever still
    //    writes in the name of a lower one, wherever that process is.
    let mut log = engine.log()?;
    let Some(term) = log.term().checked_add(1) else {
        return Err(Error::io("leading", std::io::Error::other("the terms of this journal are used up")));
    };

    // 4. What was done so far, from the journal alone.
    let known = Known { last: Conductor::read_runs(&mut log)?, ..Known::default() };
    drop(log);
    let conductor = Arc::new(Conductor {
        steps: Steps::new(&engine, WORKERS),
        engine: engine.clone(),
        plan,
        term,
        cancel: Cancel::new()?,
        known: Mutex::new(known),
        changed: Notify::new(),
    });

    // 5. Timed jobs. Records of theirs that cannot be written stop nothing, so somebody has to be told.
    let mut options = TimedJobsOptions::new(Config::every(TICK), "example");
    options.schedule = Some(Arc::new(Leads { term }));
    options.on_write_error = Some(Arc::new(|lost| eprintln!("conductor: not recorded: {lost:?}")));
    let jobs = TimedJobs::new(&engine, options)?;
    jobs.register("retry", "Begins again what went wrong.", Retry(Arc::downgrade(&conductor)))?;
    jobs.register("health", "Says how the journal does.", health)?;
    jobs.start().await?;
    jobs.flush().await;
    println!("conductor: leading in term {term}");

    // 6. Work, until nothing is left or somebody asks to stop.
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Error::io("listening for SIGTERM", e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Error::io("listening for SIGINT", e))?;
    conductor.advance(false);
    let code = loop {
        // Listen first, then look: what changes in between is heard.
        let changed = conductor.changed.notified();
        // A failed write poisons the engine. What was acknowledged is safe; only opening anew goes on.
        if lock(&conductor.known).failed || engine.is_poisoned() {
            break ExitCode::from(2);
        }
        if let Some(well) = conductor.is_over() {
            break ExitCode::from(u8::from(!well));
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(TICK) => {}
            _ = terminate.recv() => break ExitCode::from(130),
            _ = interrupt.recv() => break ExitCode::from(130),
        }
    };

    // 7. Stop in order: no tick begins any more, workers are asked to end and are recorded as cancelled,
    //    and everything is durable and in the files when `close` returns. Killed here, or anywhere
    //    else, the next one goes on from step 1.
    let stopped = jobs.stop().await;
    conductor.cancel.cancel(15);
    loop {
        let changed = conductor.changed.notified();
        if lock(&conductor.known).busy.is_empty() {
            break;
        }
        changed.await;
    }
    let closed = engine.close();
    stopped.and(closed)?;
    Ok(code)
}
