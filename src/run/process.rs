//! A child process as a worker: both pipes journaled as read, passed through at once.
//!
//! The thread that called reads the pipes and passes them on; a second one journals. What was read
//! and is not durable yet is bounded ([`MAX_UNWRITTEN_LEN`]): a flood makes the reader wait for the
//! journal, and so the worker for its pipe.

use super::recorder::{End, Outcome, Recorder, RunRequest, RunResult, host_name};
use crate::clock::Clock;
use crate::engine::{Engine, NewRecord, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::processes::{RECORDER_VARIABLE, RUN_VARIABLE, identity};
use crate::record::{Body, Channel, Level, Lifecycle, StatePatch, Status, event};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde::Serialize;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How much is read from a pipe at once, and so the longest chunk.
const CHUNK_LEN: usize = 64 << 10;
/// How much may have been read and not be durable.
pub(crate) const MAX_UNWRITTEN_LEN: usize = 16 << 20;
/// How much goes into one batch.
const BATCH_LEN: usize = 7 << 20;
/// How much a pipe is asked to hold, so that a flood is read in few pieces.
const PIPE_LEN: usize = 1 << 20;
/// How long the first chunk waits for others to share its sync.
const GATHER: Duration = Duration::from_millis(20);
/// From how many bytes on it does not wait any longer.
const ENOUGH_LEN: usize = BATCH_LEN;
/// How long the threads that watch a worker look away at most.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long pipes are drained that somebody keeps open after the worker exited.
const DRAIN: Duration = Duration::from_secs(2);

/// Where the worker's output passes on to.
pub trait Output {
    /// Passes bytes on. An error closes the channel towards the worker, as a closed pipe would.
    fn write(&mut self, channel: Channel, bytes: &[u8]) -> std::io::Result<()>;
    /// Is told of an engine failure in mid-run, at once. By default it does nothing: the error
    /// also comes back at the end.
    fn engine_failed(&mut self, _error: &Error) {}
}

/// Passes nothing on: the output is only recorded.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl Output for Discard {
    fn write(&mut self, _: Channel, _: &[u8]) -> std::io::Result<()> {
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

/// Asks a recorded process to stop, from any thread or signal handler's thread.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<CancelInner>);

#[derive(Debug)]
struct CancelInner {
    signal: AtomicI32,
    wake: OwnedFd,
}

impl Cancel {
    /// A handle that has asked for nothing yet.
    pub fn new() -> Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::io("making an event descriptor", e.into()))?;
        Ok(Self(Arc::new(CancelInner { signal: AtomicI32::new(0), wake })))
    }

    /// Hands a signal on to the worker, by its number (15 is SIGTERM); the run will end as
    /// cancelled, by force once the grace is over.
    pub fn cancel(&self, signal: i32) {
        self.0.signal.store(signal, Ordering::SeqCst);
        let _ = rustix::io::write(&self.0.wake, &1_u64.to_ne_bytes());
    }

    fn take(&self) -> Option<i32> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0.wake, &mut count);
        Some(self.0.signal.swap(0, Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}

/// How to run the process.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// Variables set in its environment beside those of this process.
    pub environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    /// Whether it gets a process group of its own, so that all of it can be ended.
    pub own_group: bool,
    /// What to do when the journal fails in mid-run: stop the worker, or let it go on.
    pub stop_on_failure: bool,
}

impl Default for ProcessOptions {
    /// No more variables, a group of its own, stopped when the journal fails.
    fn default() -> Self {
        Self { environment: Vec::new(), own_group: true, stop_on_failure: true }
    }
}

/// What was read, on its way to the journal.
#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<NewRecord>,
    len: usize,
    first_at_ns: u64,
    urgent: bool,
    closed: bool,
    failed: Option<Error>,
}

#[derive(Debug, Default)]
struct Pipeline {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Pipeline {
    fn hold(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands records on; waits while too much is unwritten.
    fn push(&self, clock: &dyn Clock, records: Vec<NewRecord>, urgent: bool) {
        let mut queue = self.hold();
        while queue.len > MAX_UNWRITTEN_LEN && queue.failed.is_none() {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.failed.is_some() {
            return;
        }
        let before = queue.len;
        let first = queue.records.is_empty();
        if first {
            queue.first_at_ns = clock.monotonic_ns();
        }
        queue.len += records.iter().map(record_len).sum::<usize>();
        queue.records.extend(records);
        queue.urgent |= urgent;
        // Whoever gathers has to be woken for the first record and for the one that is enough.
        if first || urgent || (before < ENOUGH_LEN && queue.len >= ENOUGH_LEN) {
            self.changed.notify_all();
        }
    }

    fn close(&self) {
        self.hold().closed = true;
        self.changed.notify_all();
    }

    /// The next batch, once it is worth a sync; `None` at the end. What is left at the end, if it
    /// is little, stays for the batch that ends the run.
    fn next(&self, clock: &dyn Clock) -> Option<Vec<NewRecord>> {
        let mut queue = self.hold();
        loop {
            if queue.closed && queue.len <= BATCH_LEN {
                return None;
            }
            if queue.records.is_empty() {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = Duration::from_nanos(clock.monotonic_ns().saturating_sub(queue.first_at_ns));
            if queue.urgent || queue.closed || queue.len >= ENOUGH_LEN || waited >= GATHER {
                break;
            }
            let left = GATHER.saturating_sub(waited);
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.urgent = false;
        let mut batch = Vec::new();
        let mut len = 0;
        while let Some(record) = queue.records.front() {
            len += record_len(record);
            if len > BATCH_LEN && !batch.is_empty() {
                break;
            }
            batch.extend(queue.records.pop_front());
        }
        queue.first_at_ns = clock.monotonic_ns();
        Some(batch)
    }

    fn written(&self, len: usize) {
        let mut queue = self.hold();
        queue.len = queue.len.saturating_sub(len);
        self.changed.notify_all();
    }

    fn fail(&self, error: Error) {
        let mut queue = self.hold();
        queue.failed = Some(error);
        queue.records.clear();
        self.changed.notify_all();
    }
}

fn record_len(record: &NewRecord) -> usize {
    64 + match &record.body {
        Body::Chunk(_, bytes) => bytes.len(),
        Body::Lifecycle(event) => event.message.len() + event.data.as_str().len(),
        _ => 64,
    }
}

/// How the child ended.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    timed_out: bool,
    cancelled: Option<i32>,
    drained: bool,
}

/// Runs the request's command and records it from preparing to the end. Its output is passed on as
/// it comes, and journaled within 50 ms of being read, or as soon as the disk can.
///
/// A command that cannot be started is recorded as a failed run; the result says why.
///
/// # Errors
/// Those of preparing, before anything is started or recorded. When the journal fails later, the worker is
/// stopped or goes on, as the options say; its exit status then stands in the error's message.
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
    let (command, tree) = (request.command.clone(), request.working_tree.clone());
    let (timeout_ms, grace_ms) = (request.timeout_ms, request.grace_ms);
    let (step_kind, worker_kind) = (request.step_kind.clone(), request.worker_kind.clone());
    let mut recorder = Recorder::prepare(engine, request)?;
    let mut child = match spawn(engine, &recorder, &command, tree.as_deref(), options) {
        Ok(child) => child,
        Err(error) => {
            let shown = String::from_utf8_lossy(command.first().map_or(b"", Vec::as_slice)).into_owned();
            let summary = format!("Could not start {shown}: {error}.");
            let run = recorder.finish(End::new(Outcome::Failed, summary))?;
            return Ok(ProcessResult { run, status: None, start_error: Some(error), timed_out: false });
        }
    };
    let clock = &*engine.world().clock;
    let started = Started {
        step_kind,
        worker_kind,
        timeout_sec: timeout_ms.map(|ms| ms.div_ceil(1000)),
        worktree: tree.map(|t| String::from_utf8_lossy(&t).into_owned()),
        pid: child.id(),
        start_ticks: identity(child.id()).map(|i| i.start_ticks),
        host: host_name(),
    };
    let pipeline = Pipeline::default();
    pipeline.push(clock, started.records(&command)?, true);
    let limits = Limits { timeout_ms, grace_ms };
    let worker = Worker::of(&child, options.own_group);
    let (mut recorder, ended, failure) = std::thread::scope(|scope| -> Result<_> {
        let journal = std::thread::Builder::new()
            .name("runwal-journal".to_owned())
            .spawn_scoped(scope, || {
                journal(&pipeline, clock, &mut recorder);
                recorder
            })
            .map_err(|e| Error::io("starting the journal thread", e));
        let watched = match (&journal, &worker) {
            (Ok(_), Ok(worker)) => {
                let guard = || worker.guard(clock, cancel, &pipeline, options, &limits);
                std::thread::Builder::new()
                    .name("runwal-guard".to_owned())
                    .spawn_scoped(scope, guard)
                    .map_err(|e| Error::io("starting the guarding thread", e))
                    .and_then(|_| watch(&mut child, worker, clock, &pipeline, output))
            }
            _ => Err(Error::new(ErrorKind::Retry, "the worker cannot be watched, or not journaled")),
        };
        if watched.is_err() {
            end_at_once(&mut child, options.own_group);
        }
        pipeline.close();
        let recorder =
            journal?.join().map_err(|_| Error::new(ErrorKind::Reopen, "the journal thread panicked"))?;
        let failure = pipeline.hold().failed.take();
        Ok((recorder, watched?, failure))
    })?;
    let now = clock.now();
    let summary = ended.summary(now.millis_since(recorder.fold().state().started_at.unwrap_or(now)));
    if let Some(error) = failure {
        return Err(failed_in_mid_run(error, &ended));
    }
    let mut rest: Vec<NewRecord> = pipeline.hold().records.drain(..).collect();
    rest.extend(ended.exited_records(&summary)?);
    let (outcome, ok) = ended.outcome();
    let status = ended.status;
    let end = End::new(outcome, summary).ok(ok).exit_code(status.code()).after(rest);
    match recorder.finish(end) {
        Ok(run) => {
            let timed_out = ended.timed_out;
            Ok(ProcessResult { run, status: Some(status), start_error: None, timed_out })
        }
        Err(error) => {
            output.engine_failed(&error);
            Err(failed_in_mid_run(error, &ended))
        }
    }
}

fn failed_in_mid_run(error: Error, ended: &Ended) -> Error {
    Error::new(ErrorKind::Reopen, format!("{error}; the worker ended with {}", ended.status))
        .hint("What was acknowledged before is safe. Opening the journal again ends this run as interrupted.")
}

/// The journaling thread: batches until the pipeline is closed or the journal fails. The next batch
/// is encoded while the one before is being synced, by a second thread.
fn journal(pipeline: &Pipeline, clock: &dyn Clock, recorder: &mut Recorder) {
    std::thread::scope(|scope| {
        let (tickets, waiting) = std::sync::mpsc::sync_channel::<(Ticket, usize)>(0);
        let committer = std::thread::Builder::new().name("runwal-commit".to_owned());
        let started = committer.spawn_scoped(scope, move || {
            for (ticket, len) in waiting {
                match ticket.wait() {
                    Ok(_) => pipeline.written(len),
                    Err(error) => return pipeline.fail(error),
                }
            }
        });
        if let Err(error) = started {
            return pipeline.fail(Error::io("starting the committing thread", error));
        }
        while let Some(batch) = pipeline.next(clock) {
            let len = batch.iter().map(record_len).sum();
            match recorder.submit(&batch) {
                Ok(ticket) => {
                    // A committer that is gone has said why.
                    if tickets.send((ticket, len)).is_err() {
                        return;
                    }
                }
                Err(error) => return pipeline.fail(error),
            }
        }
    });
}

fn spawn(
    engine: &Engine,
    recorder: &Recorder,
    command: &[Vec<u8>],
    tree: Option<&[u8]>,
    options: &ProcessOptions,
) -> std::io::Result<Child> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidInput, "the command is empty"))?;
    let mut process = Command::new(OsStr::from_bytes(program));
    process.args(arguments.iter().map(|arg| OsStr::from_bytes(arg)));
    process.stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::piped());
    process.env(RUN_VARIABLE, recorder.name().to_string());
    process.env(RECORDER_VARIABLE, crate::engine::hex(&engine.recorder_id()));
    process.envs(options.environment.iter().map(|(k, v)| (k, v)));
    if let Some(tree) = tree {
        process.current_dir(OsStr::from_bytes(tree));
    }
    if options.own_group {
        process.process_group(0);
    }
    process.spawn()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Started {
    step_kind: Option<String>,
    worker_kind: Option<String>,
    timeout_sec: Option<u64>,
    worktree: Option<String>,
    pid: u32,
    start_ticks: Option<u64>,
    host: String,
}

impl Started {
    fn records(&self, command: &[Vec<u8>]) -> Result<Vec<NewRecord>> {
        const SHOWN: usize = 200;
        let words: Vec<_> = command.iter().map(|arg| String::from_utf8_lossy(arg)).collect();
        let mut shown: String = words.join(" ").chars().take(SHOWN + 1).collect();
        if shown.chars().count() > SHOWN {
            shown.pop();
            shown.push('…');
        }
        let message = format!("{shown}, pid {}", self.pid);
        let started = Lifecycle::new(event::WORKER_STARTED, Level::Info, message).with_data(self)?;
        let patch =
            StatePatch { status: Some(Status::Running), pid: Some(Some(self.pid)), ..StatePatch::default() };
        Ok(vec![Body::Lifecycle(started).into(), Body::StatePatch(patch).into()])
    }
}

struct Limits {
    timeout_ms: Option<u64>,
    grace_ms: u64,
}

/// What the thread that reads and the one that guards the worker know of each other.
#[derive(Debug)]
struct Worker {
    pid: Option<Pid>,
    /// Readable once the worker has exited.
    exit: OwnedFd,
    group: bool,
    /// Whether it was waited for, so that its id may be another's.
    gone: Mutex<bool>,
    timed_out: AtomicBool,
    /// The signal it was cancelled with; 0 for none.
    cancelled: AtomicI32,
}

impl Worker {
    fn of(child: &Child, group: bool) -> Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let exit = pid
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .ok_or_else(|| Error::new(ErrorKind::Retry, "the worker's process cannot be watched"))?;
        let (gone, timed_out, cancelled) = (Mutex::new(false), AtomicBool::new(false), AtomicI32::new(0));
        Ok(Self { pid, exit, group, gone, timed_out, cancelled })
    }

    fn signal(&self, signal: Signal) {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if !*gone {
            signal_worker(self.pid, self.group, signal);
        }
    }

    fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let status = child.wait().map_err(|e| Error::io("waiting for the worker", e))?;
        *gone = true;
        Ok(status)
    }

    /// Ends the worker when its time is up, hands signals on, and ends it for good once its grace
    /// is over: in a thread of its own, as the one that reads may be waiting for whoever reads our
    /// output, or for the disk.
    fn guard(
        &self,
        clock: &dyn Clock,
        cancel: &Cancel,
        pipeline: &Pipeline,
        options: &ProcessOptions,
        limits: &Limits,
    ) {
        let start = clock.monotonic_ns();
        let since = |from: u64| clock.monotonic_ns().saturating_sub(from) / 1_000_000;
        let mut stopping = None;
        loop {
            let mut fds = [
                PollFd::new(&self.exit, PollFlags::IN),
                PollFd::from_borrowed_fd(cancel.0.wake.as_fd(), PollFlags::IN),
            ];
            // An interrupted poll is looked at as one whose time was up.
            let _ = poll(&mut fds, Some(&PATIENCE));
            if !fds[0].revents().is_empty() {
                return;
            }
            if let Some(number) = cancel.take() {
                self.cancelled.store(number, Ordering::SeqCst);
                stopping.get_or_insert(clock.monotonic_ns());
                self.signal(Signal::from_named_raw(number).unwrap_or(Signal::TERM));
            }
            let failed = options.stop_on_failure && pipeline.hold().failed.is_some();
            let late = limits.timeout_ms.is_some_and(|limit| since(start) >= limit);
            if stopping.is_none() && (failed || late) {
                self.timed_out.store(late && !failed, Ordering::SeqCst);
                stopping = Some(clock.monotonic_ns());
                self.signal(Signal::TERM);
            }
            if stopping.is_some_and(|at| since(at) >= limits.grace_ms) {
                self.signal(Signal::KILL);
            }
        }
    }
}

/// Reads the pipes until the worker is gone and they are drained.
fn watch(
    child: &mut Child,
    worker: &Worker,
    clock: &dyn Clock,
    pipeline: &Pipeline,
    output: &mut dyn Output,
) -> Result<Ended> {
    for pipe in [child.stdout.as_ref().map(AsFd::as_fd), child.stderr.as_ref().map(AsFd::as_fd)] {
        // Refused where the user's pipes hold much already; then it is read in more pieces.
        let _ = pipe.map(|pipe| rustix::pipe::fcntl_setpipe_size(pipe, PIPE_LEN));
    }
    let mut watch = Watch {
        pipes: [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)],
        buffer: vec![0; CHUNK_LEN],
        told_failure: false,
    };
    let since = |from: u64| clock.monotonic_ns().saturating_sub(from) / 1_000_000;
    let mut status = None;
    let mut exited_at = 0;
    loop {
        if let Some(status) = status {
            let drained = watch.pipes.iter().all(Option::is_none);
            if drained || u128::from(since(exited_at)) >= DRAIN.as_millis() {
                let timed_out = worker.timed_out.load(Ordering::SeqCst);
                let cancelled = Some(worker.cancelled.load(Ordering::SeqCst)).filter(|signal| *signal != 0);
                return Ok(Ended { status, timed_out, cancelled, drained });
            }
        }
        if watch.wait(&worker.exit, status.is_some(), clock, pipeline, output)? && status.is_none() {
            status = Some(worker.wait(child)?);
            exited_at = clock.monotonic_ns();
        }
        if let Some(error) = pipeline.hold().failed.as_ref().filter(|_| !watch.told_failure) {
            watch.told_failure = true;
            output.engine_failed(error);
        }
    }
}

/// Ends a worker that cannot be watched: it must not be left without a recorder.
fn end_at_once(child: &mut Child, group: bool) {
    if let Ok(None) = child.try_wait() {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        signal_worker(pid, group, Signal::KILL);
        let _ = child.wait();
    }
}

fn signal_worker(pid: Option<Pid>, group: bool, signal: Signal) {
    let Some(pid) = pid else { return };
    // The worker has not been waited for, so neither its id nor its group's can be another's.
    let _ = if group {
        rustix::process::kill_process_group(pid, signal)
    } else {
        rustix::process::kill_process(pid, signal)
    };
}

struct Watch {
    pipes: [Option<OwnedFd>; 2],
    buffer: Vec<u8>,
    told_failure: bool,
}

impl Watch {
    /// Waits for something to happen, and reads what there is to read. Answers whether the worker
    /// has exited.
    fn wait(
        &mut self,
        exit: &OwnedFd,
        exited: bool,
        clock: &dyn Clock,
        pipeline: &Pipeline,
        output: &mut dyn Output,
    ) -> Result<bool> {
        const CHANNELS: [Channel; 2] = [Channel::Stdout, Channel::Stderr];
        let mut fds = Vec::with_capacity(4);
        let mut pipes = Vec::with_capacity(2);
        for (i, pipe) in self.pipes.iter().enumerate() {
            if let Some(pipe) = pipe {
                fds.push(PollFd::new(pipe, PollFlags::IN));
                pipes.push(i);
            }
        }
        if !exited {
            fds.push(PollFd::new(exit, PollFlags::IN));
        }
        match poll(&mut fds, Some(&PATIENCE)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io("waiting for the worker's output", e.into())),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for (nth, i) in pipes.iter().enumerate() {
            if ready[nth] && !self.read(*i, CHANNELS[*i], clock, pipeline, output) {
                self.pipes[*i] = None;
            }
        }
        Ok(!exited && ready.get(pipes.len()).copied().unwrap_or(false))
    }

    /// Reads once from a pipe; `false` where it is done with.
    fn read(
        &mut self,
        i: usize,
        channel: Channel,
        clock: &dyn Clock,
        pipeline: &Pipeline,
        output: &mut dyn Output,
    ) -> bool {
        let Some(pipe) = &self.pipes[i] else { return false };
        let read = match rustix::io::read(pipe, &mut self.buffer) {
            Ok(0) => return false,
            Ok(read) => read,
            Err(rustix::io::Errno::INTR) => return true,
            Err(_) => return false,
        };
        let bytes = &self.buffer[..read];
        let record = NewRecord { time: Some(clock.now()), ..Body::Chunk(channel, bytes.to_vec()).into() };
        pipeline.push(clock, vec![record], false);
        output.write(channel, bytes).is_ok()
    }
}

impl Ended {
    /// What its end says without the worker's own word, and whether it is ok.
    fn outcome(&self) -> (Outcome, bool) {
        match self {
            Self { cancelled: Some(_), .. } => (Outcome::Cancelled, false),
            Self { timed_out: true, .. } => (Outcome::Failed, false),
            Self { status, .. } if status.success() => (Outcome::Completed, true),
            Self { .. } => (Outcome::Failed, false),
        }
    }

    fn summary(&self, duration_ms: u64) -> String {
        let after = format!("after {}.{} s", duration_ms / 1000, duration_ms % 1000 / 100);
        match (self.status.code(), self.status.signal()) {
            _ if self.timed_out => format!("Timed out {after}."),
            (_, _) if self.cancelled.is_some() => format!("Cancelled {after}."),
            (Some(code), _) => format!("Exited with code {code} {after}."),
            (None, signal) => format!("Ended by {} {after}.", signal_name(signal.unwrap_or(0))),
        }
    }

    fn exited_records(&self, summary: &str) -> Result<Vec<NewRecord>> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Data {
            outcome: &'static str,
            exit_code: Option<i32>,
            signal: Option<String>,
            drained: bool,
        }
        let signal = self.status.signal().map(signal_name);
        let outcome = match self {
            Self { timed_out: true, .. } => "timed_out",
            Self { cancelled: Some(_), .. } => "cancelled",
            Self { status, .. } if status.success() => "completed",
            Self { .. } => "failed",
        };
        let level = if self.status.success() { Level::Info } else { Level::Error };
        let data =
            Data { outcome, exit_code: self.status.code(), signal: signal.clone(), drained: self.drained };
        let exited = Lifecycle::new(event::WORKER_EXITED, level, summary).with_data(&data)?;
        let mut records = vec![Body::Lifecycle(exited).into()];
        if signal.is_some() {
            let patch = StatePatch { signal: Some(signal), ..StatePatch::default() };
            records.push(Body::StatePatch(patch).into());
        }
        Ok(records)
    }
}

/// `SIGKILL` for 9.
fn signal_name(number: i32) -> String {
    match Signal::from_named_raw(number) {
        Some(signal) => {
            let shown = format!("{signal:?}");
            let name: String = shown.chars().filter(char::is_ascii_alphanumeric).collect();
            let name = name.strip_prefix("Signal").unwrap_or(&name).to_uppercase();
            if name.starts_with("SIG") { name } else { format!("SIG{name}") }
        }
        None => format!("signal {number}"),
    }
}
