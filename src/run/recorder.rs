//! The recorder of one run: the only writer of its stream.

pub use crate::engine::Artifact;
#[cfg(feature = "tracing-layer")]
use crate::engine::Beside;
use crate::engine::{
    Conditions, Ending, EndingData, Engine, NewRecord, Receipt, RunInfo, Ticket, ending_records, preview,
};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{StreamId, Time};
use crate::projection::{Counts, RENDERER, RunFold, summary_json};
use crate::record::{
    Body, Bytes, Channel, Checkpoint, FileFormat, Id, JsonText, Level, Lifecycle, MAX_PAYLOAD_LEN, ParentRun,
    Replay, RunName, RunPrepared, StatePatch, Status, checkpoint_type, event, terminal,
};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The most content of a checkpoint that one record carries.
const PART_LEN: usize = MAX_PAYLOAD_LEN - (64 << 10);

/// The files every run has.
const FILES: [&str; 5] = ["meta.json", "state.json", "worker.log", "stdout.log", "stderr.log"];

/// What is asked for.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// Task and run.
    pub name: RunName,
    /// The step of the task.
    pub step: Id,
    /// Which attempt at the step it is, from 1.
    pub attempt: u32,
    /// What kind of step, in the conductor's words.
    pub step_kind: Option<String>,
    /// What kind of worker, in the conductor's words.
    pub worker_kind: Option<String>,
    /// The program and its arguments, each as it is: no shell reads them.
    pub command: Vec<Bytes>,
    /// The directory it works in, recorded as it is given. `None`: that of this process, and no git diff.
    pub working_tree: Option<Bytes>,
    /// The variables of its environment that may be recorded.
    pub environment: Vec<(Bytes, Bytes)>,
    /// How long it may take.
    pub timeout_ms: Option<u64>,
    /// How long between asking it to end and ending it.
    pub grace_ms: u64,
    /// Whether checkpoints are taken.
    pub checkpoints: bool,
    /// The conductor.
    pub controller: Option<String>,
    /// The conductor's term: nothing of the run is written once a higher one was seen, by whatever
    /// process, and its worker is stopped, within about a second if it says nothing. The run is ended as
    /// interrupted once the engine is closed, by whoever opens the journal next.
    pub term: Option<u64>,
    /// What to find the run by.
    pub labels: Vec<(String, String)>,
    /// What it goes on from.
    pub parent: Option<ParentRun>,
    /// When it was asked for; by default the moment of preparing.
    pub created_at: Option<Time>,
}

impl RunRequest {
    /// The first attempt at a step, with checkpoints and a grace of 5 s.
    pub fn new(task: Id, run: Id, step: Id) -> Self {
        Self {
            name: RunName { task, run },
            step,
            attempt: 1,
            step_kind: None,
            worker_kind: None,
            command: Vec::new(),
            working_tree: None,
            environment: Vec::new(),
            timeout_ms: None,
            grace_ms: 5_000,
            checkpoints: true,
            controller: None,
            term: None,
            labels: Vec::new(),
            parent: None,
            created_at: None,
        }
    }
}

/// How a run ended, in the executor's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Execution was put off.
    Prepared,
    /// It did what was asked.
    Completed,
    /// It did not.
    Failed,
    /// It cannot go on by itself.
    Blocked,
    /// A person has to look.
    NeedsHuman,
    /// The conductor called it off.
    Cancelled,
}

impl Outcome {
    /// Whether nothing went wrong.
    pub(super) fn is_ok(self) -> bool {
        matches!(self, Self::Completed | Self::Prepared)
    }

    /// The status that a run has after it.
    pub fn status(self) -> Status {
        self.terminal().2
    }

    /// Terminal event, level and status.
    fn terminal(self) -> (&'static str, Level, Status) {
        match self {
            Self::Prepared => (terminal::PREPARED, Level::Info, Status::Prepared),
            Self::Completed => (terminal::COMPLETED, Level::Info, Status::Completed),
            Self::Failed => (terminal::FAILED, Level::Error, Status::Failed),
            Self::Blocked => (terminal::BLOCKED, Level::Warn, Status::Blocked),
            Self::NeedsHuman => (terminal::NEEDS_HUMAN, Level::Warn, Status::NeedsHuman),
            Self::Cancelled => (terminal::CANCELLED, Level::Warn, Status::Cancelled),
        }
    }
}

/// How a run ends.
///
/// ```
/// use runwal::run::{End, Outcome};
/// let end = End::new(Outcome::Failed, "Two tests failed.").exit_code(101);
/// ```
#[derive(Debug, Clone)]
pub struct End {
    outcome: Outcome,
    ok: bool,
    blocked: bool,
    needs_human: bool,
    exit_code: Option<i32>,
    summary: String,
    before: Vec<NewRecord>,
    artifacts: Vec<Artifact>,
}

impl End {
    /// With an outcome and a sentence; whether it is ok, blocked or needs a human follows from the
    /// outcome.
    pub fn new(outcome: Outcome, summary: impl Into<String>) -> Self {
        Self {
            outcome,
            ok: outcome.is_ok(),
            blocked: outcome == Outcome::Blocked,
            needs_human: outcome == Outcome::NeedsHuman,
            exit_code: None,
            summary: summary.into(),
            before: Vec::new(),
            artifacts: Vec::new(),
        }
    }

    /// With the worker's exit code.
    pub fn exit_code(self, code: impl Into<Option<i32>>) -> Self {
        Self { exit_code: code.into(), ..self }
    }

    /// With another word on whether it is ok; where it disagrees with the outcome, the terminal
    /// event is an error.
    pub fn ok(self, ok: bool) -> Self {
        Self { ok, ..self }
    }

    /// With another word on whether it is blocked.
    pub fn blocked(self, blocked: bool) -> Self {
        Self { blocked, ..self }
    }

    /// With another word on whether a person has to look.
    pub fn needs_human(self, needs_human: bool) -> Self {
        Self { needs_human, ..self }
    }

    /// With the files that the worker left.
    pub fn artifacts(self, artifacts: Vec<Artifact>) -> Self {
        Self { artifacts, ..self }
    }

    /// With records in the same batch, in front of the terminal event.
    pub fn after(self, before: Vec<NewRecord>) -> Self {
        Self { before, ..self }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct RunResult {
    /// The run.
    pub run: RunInfo,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether it did what was asked.
    pub ok: bool,
    /// Whether it cannot go on by itself.
    pub blocked: bool,
    /// Whether a person has to look.
    pub needs_human: bool,
    /// The worker's exit code, if it had one.
    pub exit_code: Option<i32>,
    /// How it went, in a sentence.
    pub summary: String,
    /// From its beginning to its end.
    pub duration_ms: u64,
    /// What its log consists of.
    pub counts: Counts,
    /// Its checkpoints.
    pub checkpoints: Vec<Taken>,
    /// The run's own files first, then the worker's, all within the run's directory.
    pub artifacts: Vec<Artifact>,
    /// Why its files may lag behind the journal, which has every record: `runwal rebuild`, or
    /// opening the journal again, makes them right.
    pub publish_error: Option<Error>,
}

/// Records one run. Dropped without [`finish`](Self::finish), the run stays open until the engine
/// is closed, and is ended as interrupted by the next one that opens the journal.
#[derive(Debug)]
pub struct Recorder {
    engine: Engine,
    name: RunName,
    stream: StreamId,
    term: Option<u64>,
    fold: Arc<RunFold>,
    last: Receipt,
    published: Result<()>,
    checkpoints: Vec<Taken>,
    #[cfg(feature = "tracing-layer")]
    beside: Arc<Beside>,
}

/// A checkpoint of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its number.
    pub number: u32,
    /// Its type.
    pub kind: String,
    /// Its file within the run's directory.
    pub file: String,
}

impl Recorder {
    /// Prepares a run: its first records are durable on return, and its files exist, if they can be
    /// made. That they cannot stops nothing; the result of the run tells.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] where a run of this name exists, or the term is over; nothing was
    /// written then.
    pub fn prepare(engine: &Engine, request: RunRequest) -> Result<Self> {
        check_names("label", request.labels.iter().map(|(name, _)| name.as_bytes()))?;
        check_names("variable", request.environment.iter().map(|(name, _)| name.as_slice()))?;
        let now = engine.world().clock.now();
        let created = request.created_at.unwrap_or(now);
        let run = RunPrepared {
            name: request.name,
            step: request.step,
            attempt: request.attempt,
            step_kind: request.step_kind,
            worker_kind: request.worker_kind,
            command: request.command,
            working_tree: request.working_tree,
            environment: request.environment,
            timeout_ms: request.timeout_ms,
            grace_ms: request.grace_ms,
            checkpoints: request.checkpoints,
            recorder: engine.recorder_id(),
            boot: engine.boot_id(),
            controller: request.controller,
            host: host_name(),
            labels: request.labels,
            parent: request.parent,
            renderer: RENDERER,
        };
        let mut fold = engine.new_fold();
        let first = NewRecord { created_at: Some(created), ..Body::Run(Box::new(run.clone())).into() };
        preview(&mut fold, &first, now);
        let then = first_records(&run, request.term, created, &fold)?;
        let receipt = engine.begin_run(&run, Some(created), in_term(request.term), &then)?;
        let published = engine.wait_published(&receipt);
        let mut recorder = Self {
            engine: engine.clone(),
            #[cfg(feature = "tracing-layer")]
            beside: Beside::new(engine, &run.name, receipt.stream, in_term(request.term)),
            name: run.name,
            stream: receipt.stream,
            term: request.term,
            fold: Arc::new(fold),
            last: receipt,
            published,
            checkpoints: Vec::new(),
        };
        recorder.note(&then, now);
        #[cfg(feature = "tracing-layer")]
        recorder.beside.begin(&recorder.fold);
        Ok(recorder)
    }

    /// Task and run.
    pub fn name(&self) -> &RunName {
        &self.name
    }

    /// Its stream in the journal.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// Where it stands, as of its last record. What was written beside it since, with the feature
    /// `tracing-layer`, is seen by its next one.
    pub fn fold(&self) -> &RunFold {
        &self.fold
    }

    /// Appends records, all or nothing. Durable on return.
    ///
    /// # Errors
    /// [`ErrorKind::Misuse`] for a change of state after the run ended; [`ErrorKind::Conflict`]
    /// where somebody else has written to the run, another process that took it for dead and ended it, or
    /// [`Engine::append`] in this one; or where the term is over. The recorder can't go on then: what opens
    /// the journal next ends the run as interrupted.
    pub fn append(&mut self, records: Vec<NewRecord>) -> Result<Receipt> {
        if records.is_empty() {
            return Ok(self.last);
        }
        self.in_turn(true, |recorder| recorder.append_now(&records))
    }

    fn append_now(&mut self, records: &[NewRecord]) -> Result<Receipt> {
        let changes_state = |r: &NewRecord| matches!(r.body, Body::StatePatch(_)) || r.ends;
        if self.fold.ended() && records.iter().any(changes_state) {
            return Err(Error::misuse(format!(
                "run {} has ended; its state does not change any more",
                self.name
            )));
        }
        let now = self.engine.world().clock.now();
        let receipt = self.engine.append(self.stream, self.conditions(), records)?;
        self.note(records, now);
        self.last = receipt;
        Ok(receipt)
    }

    /// Does `work` while nobody writes to the run beside this recorder, behind what they left.
    /// Whether that `waits` for what they left to be durable, or counts on it.
    #[cfg(feature = "tracing-layer")]
    fn in_turn<T>(&mut self, waits: bool, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let beside = Arc::clone(&self.beside);
        let turn = beside.turn(&mut self.fold);
        let ahead = turn.ahead(&mut self.fold);
        let done = work(self);
        let settled = if waits { turn.settle(ahead, &mut self.fold) } else { Ok(()) };
        turn.pass(&self.fold);
        // Behind what failed nothing else could be written: that is the reason, then.
        done.or_else(|error| settled.and(Err(error)))
    }

    /// Does `work`: nobody writes to the run beside this recorder.
    #[cfg(not(feature = "tracing-layer"))]
    fn in_turn<T>(&mut self, _waits: bool, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        work(self)
    }

    /// Hands records in without waiting for them to be durable. What comes behind them counts on
    /// them: if the ticket fails, everything after it does.
    pub(super) fn submit(&mut self, records: &[NewRecord]) -> Result<Ticket> {
        self.in_turn(false, |recorder| {
            let now = recorder.engine.world().clock.now();
            let ticket = recorder.engine.submit(recorder.stream, recorder.conditions(), records)?;
            recorder.note(records, now);
            Ok(ticket)
        })
    }

    /// Nobody else writes to the run, and nobody took over from its conductor.
    fn conditions(&self) -> Conditions {
        let conditions = in_term(self.term);
        match self.fold.last_seq().next() {
            Some(next) => conditions.expecting(next),
            None => conditions,
        }
    }

    /// Takes in what was handed to the engine.
    fn note(&mut self, records: &[NewRecord], now: Time) {
        let fold = Arc::make_mut(&mut self.fold);
        for record in records {
            preview(fold, record, now);
            if let Body::Checkpoint(part) = &record.body
                && !record.more
            {
                let file = format!("checkpoints/{}", part.file_name());
                self.checkpoints.push(Taken { number: part.number, kind: part.kind.clone(), file });
            }
        }
    }

    /// Records a lifecycle event.
    pub fn event(&mut self, event: Lifecycle) -> Result<Receipt> {
        self.append(vec![Body::Lifecycle(event).into()])
    }

    /// Records bytes of the worker's output.
    pub fn chunk(&mut self, channel: Channel, bytes: &[u8]) -> Result<Receipt> {
        let records = bytes.chunks(MAX_PAYLOAD_LEN).map(|part| Body::Chunk(channel, part.to_vec()).into());
        self.append(records.collect())
    }

    /// Changes the run's state.
    pub fn patch(&mut self, patch: StatePatch) -> Result<Receipt> {
        self.append(vec![Body::StatePatch(patch).into()])
    }

    /// Takes a checkpoint, also after the end. Text that lacks a newline at its end gets one.
    /// Answers with its number.
    pub fn checkpoint(
        &mut self,
        kind: &str,
        format: FileFormat,
        replay: Replay,
        summary: &str,
        mut content: Vec<u8>,
    ) -> Result<u32> {
        if format != FileFormat::Patch && content.last().is_some_and(|b| *b != b'\n') {
            content.push(b'\n');
        }
        if content.len() as u64 > crate::projection::MAX_CONTENT_LEN {
            return Err(Error::misuse(format!("a checkpoint of {} bytes is over the limit", content.len())));
        }
        let number = self.fold.state().last_checkpoint_seq.unwrap_or(0) + 1;
        let whole = Checkpoint {
            number,
            kind: kind.to_owned(),
            format,
            replay,
            summary: summary.to_owned(),
            total_len: content.len() as u64,
            content: Vec::new(),
        };
        let mut parts: Vec<&[u8]> = content.chunks(PART_LEN).collect();
        if parts.is_empty() {
            parts.push(b"");
        }
        let last = parts.len() - 1;
        let mut tickets = Vec::with_capacity(parts.len());
        for (i, part) in parts.into_iter().enumerate() {
            let body = Body::Checkpoint(Checkpoint { content: part.to_vec(), ..whole.clone() });
            tickets.push(self.submit(&[NewRecord { more: i < last, ..body.into() }])?);
        }
        for ticket in tickets {
            self.last = ticket.wait()?;
        }
        Ok(number)
    }

    /// Ends the run: terminal event, patch and log tail in one batch. Durable, and in the files, on
    /// return. The terminal event is not the run's last record: patch and log tail follow it, and
    /// more checkpoints and output may.
    ///
    /// # Errors
    /// [`ErrorKind::Misuse`] where it has ended already; otherwise as [`append`](Self::append).
    pub fn finish(&mut self, end: End) -> Result<RunResult> {
        let End { outcome, ok, blocked, needs_human, exit_code, summary, before, artifacts } = end;
        let (event, level, status) = outcome.terminal();
        let level = if ok == outcome.is_ok() { level } else { Level::Error };
        let data = EndingData { ok, blocked, needs_human, exit_code, artifacts: &artifacts };
        let data = JsonText::of(&data)?;
        let ending = Ending { event, level, status, summary: summary.clone(), exit_code, data };
        let (now, receipt) = self.in_turn(true, |recorder| {
            let now = recorder.engine.world().clock.now();
            let records = ending_records(&recorder.fold, now, before, ending);
            Ok((now, recorder.append_now(&records)?))
        })?;
        let published = std::mem::replace(&mut self.published, Ok(()));
        let publish_error = published.and(self.engine.wait_published(&receipt)).err();
        let started = self.fold.state().started_at.unwrap_or(now);
        let counts = *self.fold.counts();
        let duration_ms = now.millis_since(started);
        let checkpoints = self.checkpoints.clone();
        let own = FILES.map(str::to_owned).into_iter().chain(checkpoints.iter().map(|c| c.file.clone()));
        let artifacts = own.map(Artifact::of_run).chain(artifacts).collect();
        Ok(RunResult {
            run: RunInfo { name: self.name.clone(), stream: self.stream },
            outcome,
            ok,
            blocked,
            needs_human,
            exit_code,
            summary,
            duration_ms,
            counts,
            checkpoints,
            artifacts,
            publish_error,
        })
    }

    /// The last receipt.
    pub fn last_receipt(&self) -> Receipt {
        self.last
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        #[cfg(feature = "tracing-layer")]
        self.beside.end();
        self.engine.forget_run(self.stream);
    }
}

fn in_term(term: Option<u64>) -> Conditions {
    term.map_or_else(Conditions::none, |term| Conditions::none().term(term))
}

/// Names become keys of one object: none may come twice.
fn check_names<'n>(what: &str, names: impl Iterator<Item = &'n [u8]>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            let name = String::from_utf8_lossy(name);
            return Err(Error::misuse(format!("the {what} \"{}\" is given twice", name.escape_debug())));
        }
    }
    Ok(())
}

/// What follows the record "run prepared" in the same batch.
fn first_records(
    run: &RunPrepared,
    term: Option<u64>,
    created: Time,
    fold: &RunFold,
) -> Result<Vec<NewRecord>> {
    #[derive(Serialize)]
    struct Attempt {
        attempt: u32,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Slot {
        last_checkpoint: u32,
    }
    let mut records: Vec<NewRecord> = Vec::new();
    if run.checkpoints {
        let content = summary_json(run, term, created, fold.state());
        let checkpoint = Checkpoint {
            number: 1,
            kind: checkpoint_type::SUMMARY.to_owned(),
            format: FileFormat::Json,
            replay: Replay::None,
            summary: "The request and the state at the start.".to_owned(),
            total_len: content.len() as u64,
            content,
        };
        if checkpoint.content.len() > PART_LEN {
            return Err(Error::new(ErrorKind::Misuse, "the request is too large to be recorded"));
        }
        records.push(Body::Checkpoint(checkpoint).into());
    }
    let message = format!("Prepared step {} of task {}.", run.step, run.name.task);
    let prepared = Lifecycle::new(event::RUN_PREPARED, Level::Info, message);
    let prepared = Body::Lifecycle(prepared.with_data(&Attempt { attempt: run.attempt })?);
    records.push(NewRecord { created_at: Some(created), ..prepared.into() });
    if run.checkpoints {
        let message = "Reserved a number for the next checkpoint; the last one is 1.";
        let slot = Lifecycle::new(event::CHECKPOINT_SLOT_RESERVED, Level::Debug, message);
        records.push(Body::Lifecycle(slot.with_data(&Slot { last_checkpoint: 1 })?).into());
    }
    Ok(records)
}

/// The machine's name.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
