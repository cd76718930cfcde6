//! A step that an executor of the embedder's does: anything that can be called.

use super::cancel::Cancel;
use super::checkpoints::{AtEnd, Checkpoints};
use super::recorder::{Artifact, End, Outcome, Recorder, RunRequest, RunResult};
use super::started::{StartedData, warning};
use super::word::Places;
use crate::engine::{Engine, NewRecord, Receipt};
use crate::error::Result;
use crate::record::{Body, Bytes, Channel, FileFormat, Level, Lifecycle, MAX_PAYLOAD_LEN, Replay, event};
use serde::Serialize;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// How many bytes of returned lines go into one batch.
const BATCH_LEN: usize = 4 << 20;

/// The longest summary of a step that is recorded; what is longer is cut.
const MAX_SUMMARY_LEN: usize = 64 << 10;

/// Why an executor failed, in words of its own.
pub type ExecutorError = Box<dyn std::error::Error + Send + Sync>;

/// Does the work of a step.
pub trait Executor: Send + Sync {
    /// Does it, and answers how it went. An error or a panic is recorded as a failed step.
    fn execute(&self, step: &mut Step<'_>) -> std::result::Result<Answer, ExecutorError>;
}

/// Puts every step off: answers `prepared`, so that the step can be executed later, elsewhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deferred;

impl Executor for Deferred {
    fn execute(&self, _: &mut Step<'_>) -> std::result::Result<Answer, ExecutorError> {
        Ok(Answer::new(Outcome::Prepared, "Execution was deferred."))
    }
}

/// What an executor answers. What it leaves out follows from the outcome; the exit code is 0 if it
/// is ok, else 1.
#[derive(Debug, Clone)]
pub struct Answer {
    /// How it went.
    pub outcome: Outcome,
    /// Whether it did what was asked.
    pub ok: bool,
    /// How it went, in a sentence; cut after 64 KiB.
    pub summary: String,
    /// An exit code of its own.
    pub exit_code: Option<i32>,
    /// Whether it cannot go on by itself.
    pub blocked: Option<bool>,
    /// Whether a person has to look.
    pub needs_human: Option<bool>,
    /// Lines to be recorded as stdout, a chunk each, a newline added where one is missing.
    pub stdout: Vec<Bytes>,
    /// Lines to be recorded as stderr, behind those of stdout.
    pub stderr: Vec<Bytes>,
    /// Files it leaves, beside those in its directory for them.
    pub artifacts: Vec<Artifact>,
}

impl Answer {
    /// With an outcome and a sentence; whether it is ok follows from the outcome.
    pub fn new(outcome: Outcome, summary: impl Into<String>) -> Self {
        Self {
            outcome,
            ok: outcome.is_ok(),
            summary: summary.into(),
            exit_code: None,
            blocked: None,
            needs_human: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            artifacts: Vec::new(),
        }
    }
}

/// A step that is being executed.
#[derive(Debug)]
pub struct Step<'a> {
    recorder: &'a mut Recorder,
    request: &'a RunRequest,
    cancel: &'a Cancel,
    artifacts: Option<PathBuf>,
    at_end: &'a AtEnd,
}

impl Step<'_> {
    /// What was asked for.
    pub fn request(&self) -> &RunRequest {
        self.request
    }

    /// Whether the conductor wants it to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// The directory for files it leaves; `None` where the data directory is simulated.
    pub fn artifacts(&self) -> Option<&std::path::Path> {
        self.artifacts.as_deref()
    }

    /// Records a lifecycle event. Durable on return.
    pub fn event(&mut self, event: Lifecycle) -> Result<Receipt> {
        self.recorder.event(event)
    }

    /// Records output as it comes. Durable on return.
    pub fn chunk(&mut self, channel: Channel, bytes: &[u8]) -> Result<Receipt> {
        self.recorder.chunk(channel, bytes)
    }

    /// Takes a checkpoint; answers with its number. Durable on return.
    pub fn checkpoint(
        &mut self,
        kind: &str,
        format: FileFormat,
        replay: Replay,
        summary: &str,
        content: Vec<u8>,
    ) -> Result<u32> {
        self.recorder.checkpoint(kind, format, replay, summary, content)
    }

    /// Takes a checkpoint of all that was changed in the working tree so far, where that is a git
    /// checkout and [`Checkpoints::git_diff`] is on: the next attempt can go on from it, whatever
    /// becomes of this one. Answers with its number; `None` where it was not taken. Why it was skipped
    /// is recorded. Durable on return.
    pub fn git_diff(&mut self) -> Result<Option<u32>> {
        self.at_end.git_diff_now(self.recorder, self.cancel)
    }
}

/// Runs one step and records it from preparing to the end.
///
/// # Errors
/// Those of preparing, before anything is executed or recorded. When the journal fails later, that
/// error; opening it again ends the run as interrupted.
pub fn run_step(
    engine: &Engine,
    request: RunRequest,
    executor: &dyn Executor,
    checkpoints: &Checkpoints,
    cancel: &Cancel,
) -> Result<RunResult> {
    let mut open = OpenStep::begin(engine, request, checkpoints, cancel)?;
    let OpenStep { recorder, request, at_end, .. } = &mut open;
    let artifacts = artifacts_of(engine, recorder);
    let mut step = Step { recorder, request, cancel, artifacts, at_end };
    let answered = catch_unwind(AssertUnwindSafe(|| executor.execute(&mut step)));
    let came = match answered {
        Ok(Ok(answer)) => Came::Answer(answer),
        Ok(Err(_)) if cancel.is_cancelled() => Came::Cancelled,
        Ok(Err(error)) => Came::Failed(error.to_string()),
        Err(payload) => Came::Failed(panic_text(&*payload)),
    };
    open.finish(came, cancel)
}

pub(super) fn artifacts_of(engine: &Engine, recorder: &Recorder) -> Option<PathBuf> {
    Some(engine.world().disk.path()?.join(recorder.name().folder()).join("artifacts"))
}

/// What came of executing.
pub(super) enum Came {
    Answer(Answer),
    /// It failed, with this reason.
    Failed(String),
    #[cfg(feature = "tokio")]
    TimedOut,
    Cancelled,
}

/// The text of a panic.
pub(super) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.map_or_else(|| "The executor panicked.".to_owned(), |text| format!("The executor panicked: {text}"))
}

/// A step between its beginning and its end.
#[derive(Debug)]
pub(super) struct OpenStep {
    pub(super) recorder: Recorder,
    pub(super) request: RunRequest,
    places: std::result::Result<Places, String>,
    pub(super) at_end: AtEnd,
    engine: Engine,
    start_ns: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Exited {
    outcome: &'static str,
    exit_code: i32,
    duration_ms: u64,
}

impl OpenStep {
    /// Prepares the run and records that its worker began.
    pub(super) fn begin(
        engine: &Engine,
        request: RunRequest,
        checkpoints: &Checkpoints,
        cancel: &Cancel,
    ) -> Result<Self> {
        let mut recorder = Recorder::prepare(engine, request.clone())?;
        let disk = &*engine.world().disk;
        let places = Places::make(disk, &recorder.name().folder(), recorder.stream());
        let message = format!("Step {} of task {}.", request.step, request.name.task);
        let at_end = AtEnd::look(engine, &request, checkpoints, cancel);
        let mut started = StartedData::of(&request);
        started.base_commit = at_end.base_commit();
        recorder.append(started.records(message)?)?;
        let start_ns = engine.world().clock.monotonic_ns();
        let places = places.map_err(|error| error.to_string());
        Ok(Self { recorder, request, places, at_end, engine: engine.clone(), start_ns })
    }

    /// Records what came of it, and ends the run.
    pub(super) fn finish(mut self, came: Came, cancel: &Cancel) -> Result<RunResult> {
        let failed = |outcome, summary| Answer::new(outcome, summary);
        let waited = self.engine.world().clock.monotonic_ns().saturating_sub(self.start_ns) / 1_000_000;
        let after = format!("after {}.{} s", waited / 1000, waited % 1000 / 100);
        let (word, mut answer) = match came {
            Came::Answer(answer) => ("answered", answer),
            Came::Failed(why) => ("failed", failed(Outcome::Failed, why)),
            #[cfg(feature = "tokio")]
            Came::TimedOut => ("timed_out", failed(Outcome::Failed, format!("Timed out {after}."))),
            Came::Cancelled => ("cancelled", failed(Outcome::Cancelled, format!("Cancelled {after}."))),
        };
        answer.summary.truncate(answer.summary.floor_char_boundary(MAX_SUMMARY_LEN));
        self.lines(&answer)?;
        let exit_code = answer.exit_code.unwrap_or(i32::from(!answer.ok));
        let mut rest = Vec::new();
        if answer.outcome == Outcome::Prepared {
            let event = Lifecycle::new(event::WORKER_EXECUTION_DEFERRED, Level::Info, answer.summary.clone());
            rest.push(Body::Lifecycle(event).into());
        }
        let level = if exit_code == 0 { Level::Info } else { Level::Error };
        let data = Exited { outcome: word, exit_code, duration_ms: waited };
        let exited = Lifecycle::new(event::WORKER_EXITED, level, answer.summary.clone()).with_data(&data)?;
        rest.push(Body::Lifecycle(exited).into());
        let disk = &*self.engine.world().disk;
        let mut artifacts = answer.artifacts;
        if let Ok(places) = &self.places {
            let (left, refused) = places.artifacts(disk, cancel);
            artifacts.extend(left);
            rest.extend(refused.into_iter().map(|why| warning(event::ARTIFACT_SKIPPED, why)));
        }
        self.at_end.take(&mut self.recorder, &mut rest, cancel)?;
        let mut end = End::new(answer.outcome, answer.summary).ok(answer.ok).exit_code(exit_code);
        if let Some(blocked) = answer.blocked {
            end = end.blocked(blocked);
        }
        if let Some(needs_human) = answer.needs_human {
            end = end.needs_human(needs_human);
        }
        self.recorder.finish(end.artifacts(artifacts).after(rest))
    }

    /// Records the lines that were returned, a chunk each.
    fn lines(&mut self, answer: &Answer) -> Result<()> {
        let (mut records, mut len) = (Vec::<NewRecord>::new(), 0);
        for (channel, lines) in [(Channel::Stdout, &answer.stdout), (Channel::Stderr, &answer.stderr)] {
            for line in lines {
                let mut line = line.clone();
                if line.last() != Some(&b'\n') {
                    line.push(b'\n');
                }
                for part in line.chunks(MAX_PAYLOAD_LEN) {
                    if len + part.len() > BATCH_LEN || records.len() >= 10_000 {
                        self.recorder.append(std::mem::take(&mut records))?;
                        len = 0;
                    }
                    len += part.len();
                    records.push(Body::Chunk(channel, part.to_vec()).into());
                }
            }
        }
        self.recorder.append(records).map(drop)
    }
}
