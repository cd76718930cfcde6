//! A child process as a worker: its output journaled as read, passed through at once.
//!
//! The thread that called reads the worker's output and passes it on ([`watch`]); others journal
//! what was read ([`pipeline`]) and guard the worker ([`worker`]).

mod ended;
mod pipeline;
mod terminal;
mod watch;

mod worker;

use self::ended::Ended;
use self::pipeline::{Pipeline, journal};
use self::watch::{Sinks, watch};
use self::worker::{Limits, Start, Started, Worker, end_at_once};
use super::cancel::Cancel;
use super::checkpoints::{AtEnd, Checkpoints};
use super::recorder::{End, Outcome, Recorder, RunRequest, RunResult};
use super::started::{StartedData, warning};
use super::word::Places;
use crate::clock::Clock;
use crate::engine::{Engine, NewRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::processes::{Identity, RECORDER_VARIABLE, RUN_VARIABLE, identity, left_of};
use crate::record::{Channel, event};
use rustix::process::Signal;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::time::Duration;
pub use terminal::Terminal;
#[cfg(feature = "terminal")]
pub use terminal::{Foreground, Pseudo};

/// Where the worker's output passes on to.
pub trait Output {
    /// Passes bytes on. An error closes the channel towards the worker, as a closed pipe would.
    ///
    /// Where that has to wait for whoever reads, it gives up with an error once `pointless` says
    /// so: the worker was ended, and nothing waits for its output any more but the journal.
    fn write(&mut self, channel: Channel, bytes: &[u8], pointless: &dyn Fn() -> bool) -> std::io::Result<()>;
    /// Is told of an engine failure in mid-run, at once. By default it does nothing: the error
    /// also comes back at the end.
    fn engine_failed(&mut self, _error: &Error) {}
}

/// Passes nothing on: the output is only recorded.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl Output for Discard {
    fn write(&mut self, _: Channel, _: &[u8], _: &dyn Fn() -> bool) -> std::io::Result<()> {
        Ok(())
    }
}

/// What came of a recorded process.
#[derive(Debug)]
pub struct ProcessResult {
    /// The run's result.
    pub run: RunResult,
    /// The worker's own exit status; `None` where it was not started.
    pub status: Option<ExitStatus>,
    /// Why it was not started: the run is recorded as failed all the same.
    pub start_error: Option<std::io::Error>,
    /// Whether it was ended because its time was up.
    pub timed_out: bool,
}

/// How to run the process.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// Variables set in its environment beside those of this process.
    pub environment: Vec<(OsString, OsString)>,
    /// What to do when the journal fails in mid-run: stop the worker, or let it go on.
    pub stop_on_failure: bool,
    /// How it stands to the terminal.
    pub terminal: Terminal,
    /// How long its output is read that others keep open after it exited, behind what it had written
    /// itself by then.
    pub drain: Duration,
    /// Which checkpoints are taken at the end.
    pub checkpoints: Checkpoints,
}

impl Default for ProcessOptions {
    /// No more variables, stopped when the journal fails, no terminal, read for 2 s after its exit.
    fn default() -> Self {
        Self {
            environment: Vec::new(),
            stop_on_failure: true,
            terminal: Terminal::default(),
            drain: Duration::from_secs(2),
            checkpoints: Checkpoints::default(),
        }
    }
}

/// Runs the request's command and records it from preparing to the end. Its output is passed on as
/// it comes, and journaled within 50 ms of being read, or as soon as the disk can.
///
/// A worker that writes a JSON object with `outcome`, `summary`, `blocked` and `needsHuman` to the
/// file that `RUNWAL_OUTCOME` names decides how the run ends; else its exit code does. Files it
/// leaves in the directory that `RUNWAL_ARTIFACTS` names are listed in the result.
///
/// A command that cannot be started is recorded as a failed run; the result says why.
///
/// # Errors
/// Those of preparing, before anything is started or recorded. When the journal fails later, the worker is
/// stopped or goes on, as the options say; its exit status then stands in the error's message.
/// [`ErrorKind::Conflict`] where the request's term is over.
pub fn record_process(
    engine: &Engine,
    request: RunRequest,
    options: &ProcessOptions,
    output: &mut dyn Output,
    cancel: &Cancel,
) -> Result<ProcessResult> {
    if request.command.is_empty() {
        return Err(Error::misuse("the command is empty"));
    }
    let asked = request.clone();
    let mut recorder = Recorder::prepare(engine, request)?;
    let (at_end, places) =
        (AtEnd::look(engine, &asked, &options.checkpoints, cancel), place(engine, &recorder));
    let job = Job { engine, asked: &asked, options, places, at_end };
    if cancel.is_cancelled() {
        let run = recorder.finish(End::new(Outcome::Cancelled, "Cancelled before it was started."))?;
        return Ok(ProcessResult { run, status: None, start_error: None, timed_out: false });
    }
    let Started { mut child, outputs } = match job.start(&recorder) {
        Ok(started) => started,
        Err(error) => return not_started(&mut recorder, &asked, error),
    };
    let (mut recorder, ended, failure) = job.run(recorder, &mut child, outputs, output, cancel)?;
    if let Some(error) = failure.error {
        return Err(failed_in_mid_run(&error, ended.status));
    }
    let (status, timed_out) = (ended.status, ended.timed_out);
    match job.finish(&mut recorder, &ended, failure.rest, cancel) {
        Ok(run) => Ok(ProcessResult { run, status: Some(status), start_error: None, timed_out }),
        Err(error) => {
            output.engine_failed(&error);
            Err(failed_in_mid_run(&error, status))
        }
    }
}

fn place(engine: &Engine, recorder: &Recorder) -> Result<Places, String> {
    let folder = recorder.name().folder();
    Places::make(&*engine.world().disk, &folder, recorder.stream()).map_err(|error| error.to_string())
}

fn not_started(recorder: &mut Recorder, asked: &RunRequest, error: std::io::Error) -> Result<ProcessResult> {
    let shown = String::from_utf8_lossy(asked.command.first().map_or(b"", Vec::as_slice)).into_owned();
    let summary = format!("Could not start {shown}: {error}.");
    let run = recorder.finish(End::new(Outcome::Failed, summary))?;
    Ok(ProcessResult { run, status: None, start_error: Some(error), timed_out: false })
}

fn failed_in_mid_run(error: &Error, status: ExitStatus) -> Error {
    if let Some(conflict) = error.conflict() {
        return Error::conflict_of(conflict, format!("{error}; the worker ended with {status}")).hint(
            "What was acknowledged before is safe. The run is ended as interrupted once this engine is closed.",
        );
    }
    Error::new(ErrorKind::Reopen, format!("{error}; the worker ended with {status}"))
        .hint("What was acknowledged before is safe. Opening the journal again ends this run as interrupted.")
}

/// What the journal did not get, and why.
struct Unwritten {
    error: Option<Error>,
    rest: Vec<NewRecord>,
}

/// One worker from its start to its end.
struct Job<'a> {
    engine: &'a Engine,
    asked: &'a RunRequest,
    options: &'a ProcessOptions,
    places: Result<Places, String>,
    at_end: AtEnd,
}

impl Job<'_> {
    fn clock(&self) -> &dyn Clock {
        &*self.engine.world().clock
    }

    fn start(&self, recorder: &Recorder) -> std::io::Result<Started> {
        let mut environment = vec![
            (RUN_VARIABLE.into(), recorder.name().to_string().into()),
            (RECORDER_VARIABLE.into(), crate::engine::hex(&self.engine.recorder_id()).into()),
        ];
        if let (Ok(places), Some(data)) = (&self.places, self.engine.world().disk.path()) {
            environment.extend(places.variables(&data));
        }
        environment.extend(self.options.environment.iter().cloned());
        let tree = self.asked.working_tree.as_deref();
        Start { command: &self.asked.command, tree, environment }.spawn(&self.options.terminal)
    }

    fn started_records(&self, pid: u32, known: Option<Identity>) -> Result<Vec<NewRecord>> {
        const SHOWN: usize = 200;
        let words: Vec<_> = self.asked.command.iter().map(|arg| String::from_utf8_lossy(arg)).collect();
        let mut shown: String = words.join(" ").chars().take(SHOWN + 1).collect();
        if shown.chars().count() > SHOWN {
            shown.pop();
            shown.push('…');
        }
        let mut data = StartedData::of(self.asked);
        (data.pid, data.start_ticks) = (Some(pid), known.map(|k| k.start_ticks));
        data.terminal = self.options.terminal.size();
        data.base_commit = self.at_end.base_commit();
        data.records(format!("{shown}, pid {pid}"))
    }

    /// Records the worker until it is gone and its output was read.
    fn run(
        &self,
        mut recorder: Recorder,
        child: &mut Child,
        outputs: [Option<OwnedFd>; 2],
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<(Recorder, Ended, Unwritten)> {
        let (clock, terminal) = (self.clock(), &self.options.terminal);
        let group = terminal.gives_own_group();
        let known = identity(child.id());
        let pipeline = Pipeline::default();
        let started = self.started_records(child.id(), known).inspect_err(|_| {
            end_at_once(child, group);
            terminal.restore();
        })?;
        pipeline.push(clock, started, true);
        let limits = Limits { timeout_ms: self.asked.timeout_ms, grace_ms: self.asked.grace_ms };
        let worker = Worker::of(child, group, clock, cancel);
        let suspend = |stop: &dyn Fn()| self.engine.between_commits(stop);
        // A worker that says nothing would not find out by being refused.
        let is_over = || self.asked.term.is_some_and(|term| self.engine.is_over(term).unwrap_or(false));
        let (recorder, mut ended) = std::thread::scope(|scope| -> Result<_> {
            let journal = thread("runwal-journal")
                .spawn_scoped(scope, || {
                    journal(&pipeline, clock, &mut recorder);
                    recorder
                })
                .map_err(|e| Error::io("starting the journal thread", e));
            let watched = match (&journal, &worker) {
                (Ok(_), Ok(worker)) => {
                    terminal.give(worker.pid, &|| worker.signal(Signal::CONT));
                    let guard = || worker.guard(clock, &pipeline, self.options, &limits, &suspend, &is_over);
                    let mut sinks = Sinks { clock, pipeline: &pipeline, output };
                    let input = || {
                        let thread = terminal.is_pseudo().then(|| thread("runwal-input"));
                        thread.map(|t| t.spawn_scoped(scope, || terminal.forward(&worker.exit))).transpose()
                    };
                    thread("runwal-guard")
                        .spawn_scoped(scope, guard)
                        .and_then(|_| input())
                        .map_err(|e| Error::io("starting the threads that watch the worker", e))
                        .and_then(|_| watch(child, outputs, worker, terminal, self.options.drain, &mut sinks))
                }
                _ => Err(Error::new(ErrorKind::Retry, "the worker cannot be watched, or not journaled")),
            };
            if watched.is_err() {
                end_at_once(child, group);
            }
            terminal.restore();
            pipeline.close();
            let recorder =
                journal?.join().map_err(|_| Error::new(ErrorKind::Reopen, "the journal thread panicked"))?;
            Ok((recorder, watched?))
        })?;
        if let Some(known) = known {
            let run = recorder.name().to_string();
            ended.left = left_of(&run, &crate::engine::hex(&self.engine.recorder_id()), known);
        }
        let unwritten = Unwritten { error: pipeline.take_failure(), rest: pipeline.take_rest() };
        Ok((recorder, ended, unwritten))
    }

    /// Records how the worker ended, takes the checkpoints that come then, and ends the run.
    fn finish(
        &self,
        recorder: &mut Recorder,
        ended: &Ended,
        mut rest: Vec<NewRecord>,
        cancel: &Cancel,
    ) -> Result<RunResult> {
        let disk = &*self.engine.world().disk;
        rest.extend(ended.records()?);
        let word = match &self.places {
            Ok(places) => places.word(disk),
            Err(why) => Err(why.clone()),
        };
        let word = word.unwrap_or_else(|why| {
            let message = format!("The worker's file of its outcome does not count: {why}.");
            rest.push(warning(event::OUTCOME_REFUSED, message));
            None
        });
        let (artifacts, refused) =
            self.places.as_ref().map_or_else(|_| Default::default(), |p| p.artifacts(disk, cancel));
        for why in refused {
            rest.push(warning(event::ARTIFACT_SKIPPED, why));
        }
        self.at_end.take(recorder, &mut rest, cancel)?;
        let (outcome, ok) = ended.outcome(word.as_ref());
        let said = word.filter(|word| word.outcome == outcome).and_then(|word| word.summary);
        let summary = said.unwrap_or_else(|| ended.summary());
        let end = End::new(outcome, summary).ok(ok).exit_code(ended.status.code());
        recorder.finish(end.artifacts(artifacts).after(rest))
    }
}

fn thread(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned())
}
