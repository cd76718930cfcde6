//! `runwal run`

use crate::args::{Global, RunArgs};
use crate::{Done, Failure, complain, show};
use runwal::clock::{Clock, Entropy};
use runwal::engine::{Engine, Options};
use runwal::error::{Error, ErrorKind};
use runwal::record::{Channel, Id, ParentRun, RunName, escape_line};
use runwal::run::{
    Cancel, Checkpoints, NextAttempt, Output, ProcessOptions, ProcessResult, Pseudo, RunRequest, Terminal,
    record_process,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU};
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const ENGINE_FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
const TIMED_OUT: i32 = 124;
// Numbers of Linux, the same on all of its architectures.
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// Passes the worker's output on to our own.
struct PassThrough {
    json: bool,
    stdout: OwnedFd,
    stderr: OwnedFd,
    told: bool,
}

impl PassThrough {
    /// Our descriptors without the buffers that the standard library puts before them.
    fn new(json: bool) -> std::io::Result<Self> {
        let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
        let stderr = std::io::stderr().as_fd().try_clone_to_owned()?;
        Ok(Self { json, stdout, stderr, told: false })
    }
}

impl Output for PassThrough {
    fn write(&mut self, channel: Channel, bytes: &[u8], pointless: &dyn Fn() -> bool) -> std::io::Result<()> {
        let to = match channel {
            Channel::Stdout => &self.stdout,
            Channel::Stderr => &self.stderr,
        };
        let result = write_all(to, bytes, pointless);
        if let Err(error) = &result
            && !matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::TimedOut)
            && !std::mem::replace(&mut self.told, true)
        {
            complain(&format!("runwal: the worker's {} cannot be passed on: {error}", channel.word()));
        }
        result
    }

    fn engine_failed(&mut self, error: &Error) {
        show::error(error, self.json);
        complain("runwal: the journal failed; the worker goes on, and is not recorded any more");
    }
}

/// Writes all of it, waiting for whoever reads for as long as that has a point. The descriptor is
/// also others', so whether it blocks is not ours to change.
fn write_all(to: &OwnedFd, mut bytes: &[u8], pointless: &dyn Fn() -> bool) -> std::io::Result<()> {
    // What fits into any pipe that has room at all.
    const SAFE_LEN: usize = 4096;
    const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let mut at_once = true;
    while !bytes.is_empty() {
        let written = if std::mem::replace(&mut at_once, true) {
            pwritev2(to, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT)
        } else {
            let mut room = [PollFd::new(to, PollFlags::OUT)];
            while poll(&mut room, Some(&PATIENCE))? == 0 {
                if pointless() {
                    return Err(std::io::ErrorKind::TimedOut.into());
                }
            }
            rustix::io::write(to, &bytes[..bytes.len().min(SAFE_LEN)])
        };
        match written {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Full, or no way to ask not to wait.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => {
                at_once = false;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What is needed beside the request before the worker is started.
struct Ready {
    engine: Engine,
    cancel: Cancel,
    terminal: Terminal,
    output: PassThrough,
    signals: Signals,
}

pub(crate) fn run(global: &Global, args: &RunArgs) -> Done {
    let mut request = match request(args) {
        Err(Failure::Engine(error)) if error.kind() != ErrorKind::Misuse => {
            return Ok(not_started(&error, global));
        }
        other => other?,
    };
    let Ready { engine, cancel, terminal, mut output, signals } = match prepare(global, args.pty) {
        Err(Failure::Engine(error)) => return Ok(not_started(&error, global)),
        other => other?,
    };
    if args.attempt > 1 {
        match goes_on_from(global, args, &engine, &request) {
            Ok(parent) => request.parent = parent,
            Err(error) => {
                signals.close();
                let code = not_started(&error, global);
                return Ok(if error.kind() == ErrorKind::Misuse { 2 } else { code });
            }
        }
    }
    if !global.quiet && (args.task.is_none() || args.run.is_none()) {
        complain(&format!("runwal: recording {}", request.name));
    }
    let name = request.name.clone();
    let options = ProcessOptions {
        stop_on_failure: false,
        terminal,
        checkpoints: Checkpoints {
            git_diff: !args.no_diff,
            test_output: args.test_output.clone(),
            ..Checkpoints::default()
        },
        ..ProcessOptions::default()
    };
    let result = record_process(&engine, request, &options, &mut output, &cancel);
    signals.close();
    let code = match result {
        Ok(result) => {
            if let Some(error) = &result.run.publish_error {
                show::error(error, global.json());
            }
            if global.verbose {
                tell_how_it_went(&name, &result);
            }
            worker_code(&result, &cancel)
        }
        Err(error) => failed(&error, global),
    };
    match engine.close() {
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            show::error(&error, global.json());
            Ok(ENGINE_FAILED)
        }
        // Files that lag behind were told of, and are repaired by the next command.
        _ => Ok(code),
    }
}

fn prepare(global: &Global, pty: bool) -> Result<Ready, Failure> {
    let cancel = Cancel::new()?;
    let output = PassThrough::new(global.json())
        .map_err(|error| Error::io("making descriptors to pass the output on to", error))?;
    let (engine, report) = Engine::open_in(global.created()?, Options::default())?;
    if !global.quiet {
        for run in &report.interrupted {
            complain(&format!("runwal: run {} was found without an end and is interrupted now", run.name));
        }
        report.problems.iter().for_each(|problem| complain(&format!("runwal: {problem}")));
    }
    let terminal = if pty { Terminal::Pseudo(Pseudo::new()) } else { Terminal::of_process() };
    let signals = watch_signals(&engine, &cancel, &terminal)
        .map_err(|error| Error::io("beginning to watch for signals", error))?;
    Ok(Ready { engine, cancel, terminal, output, signals })
}

/// What a further attempt goes on from: the newest run of the same step that was one attempt before,
/// with a word on it. Where there is none, the number is the caller's own, and is believed.
fn goes_on_from(
    global: &Global,
    args: &RunArgs,
    engine: &Engine,
    request: &RunRequest,
) -> Result<Option<ParentRun>, Error> {
    let before = request.attempt - 1;
    let tell = |message: String| {
        if !global.quiet {
            complain(&format!("runwal: {message}"));
        }
    };
    let mut log = engine.log()?;
    // A task whose name was made up a moment ago has no runs.
    let (found, hidden) = match &args.task {
        Some(_) => {
            log.newest(&request.name.task, &|run| run.step == request.step && run.attempt == before)?
        }
        None => (None, Vec::new()),
    };
    hidden.iter().for_each(|met| show::damage(met, global.json()));
    if args.task.is_some() && !log.unreadable_segments()?.is_empty() {
        complain("runwal: segments cannot be read, and runs that began in them are not known");
    }
    let Some(found) = found else {
        let (step, task) = (&request.step, &request.name.task);
        tell(format!(
            "attempt {} has no parent: there is no attempt {before} at step {step} of task {task}",
            request.attempt
        ));
        return Ok(None);
    };
    let next = NextAttempt::of(&mut log, &found, request.name.run.clone())?;
    let met_now = next.damage.iter().filter(|met| !hidden.contains(met));
    met_now.for_each(|met| show::damage(met, global.json()));
    let at = match next.request.parent.as_ref().and_then(|parent| parent.checkpoint) {
        Some(number) => format!("{}, checkpoint {number}", found.name),
        None => found.name.to_string(),
    };
    let how = match next.git_diff() {
        Some(_) => {
            let left_by = next.git_diff_left_by();
            format!("; its working tree: `{} restore {left_by} --into DIR`", global.invocation())
        }
        None => ", which left no git diff".to_owned(),
    };
    tell(format!("attempt {} goes on from {at}{how}", request.attempt));
    next.notes.iter().for_each(|note| tell(format!("{}: {}", found.name, escape_line(note))));
    Ok(next.request.parent)
}

/// A line on how a recorded run went.
fn tell_how_it_went(name: &RunName, result: &ProcessResult) {
    let counts = &result.run.counts;
    let [out, err] = counts.channel_bytes;
    let summary = escape_line(&result.run.summary);
    complain(&format!(
        "runwal: {name}: {summary} {} records; {out} bytes on stdout, {err} on stderr",
        counts.records
    ));
}

/// Something failed before anything was started.
fn not_started(error: &Error, global: &Global) -> u8 {
    show::error(error, global.json());
    complain("runwal: nothing was started");
    ENGINE_FAILED
}

fn failed(error: &Error, global: &Global) -> u8 {
    show::error(error, global.json());
    match error.kind() {
        ErrorKind::Conflict | ErrorKind::Misuse => {
            complain("runwal: nothing was started");
            2
        }
        _ => ENGINE_FAILED,
    }
}

/// The exit code that stands for how the worker ended, or why it was not started.
fn worker_code(result: &ProcessResult, cancel: &Cancel) -> u8 {
    if let Some(error) = &result.start_error {
        complain(&format!("runwal: {}", result.run.summary));
        return match error.kind() {
            std::io::ErrorKind::NotFound => NOT_FOUND,
            // Out of descriptors, processes or memory: nothing is said about the command.
            _ if matches!(error.raw_os_error(), Some(EAGAIN | ENOMEM | ENFILE | EMFILE)) => ENGINE_FAILED,
            _ => NOT_EXECUTABLE,
        };
    }
    let Some(status) = result.status else {
        complain("runwal: nothing was started");
        return u8::try_from(128 + cancel.signal()).unwrap_or(u8::MAX);
    };
    let code = match (status.code(), status.signal()) {
        _ if result.timed_out => TIMED_OUT,
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or(0),
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn request(args: &RunArgs) -> Result<RunRequest, Failure> {
    let made_up = make_up_id()?;
    let id = |given: &Option<String>, letter: char| match given {
        Some(text) => Id::new(text.as_str()),
        None => Id::new(format!("{letter}-{made_up}")),
    };
    let mut request =
        RunRequest::new(id(&args.task, 't')?, id(&args.run, 'r')?, Id::new(args.step.as_str())?);
    request.attempt = args.attempt;
    request.worker_kind.clone_from(&args.worker);
    request.command = args.command.iter().map(|arg| arg.as_bytes().to_vec()).collect();
    let tree = match &args.directory {
        Some(dir) if !dir.is_dir() => {
            return Err(Failure::Usage(format!("{} is no directory to work in", dir.display())));
        }
        Some(dir) => std::path::absolute(dir),
        None => std::env::current_dir(),
    };
    let tree = tree.map_err(|error| Error::io("asking for the current directory", error))?;
    request.working_tree = Some(tree.into_os_string().into_vec());
    request.environment = args
        .record_env
        .iter()
        .filter_map(|name| Some((name.as_bytes().to_vec(), std::env::var_os(name)?.into_vec())))
        .collect();
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    request.timeout_ms = args.timeout.map(millis);
    request.grace_ms = millis(args.grace);
    request.checkpoints = !args.no_checkpoints;
    request.labels.clone_from(&args.labels);
    Ok(request)
}

/// Time in milliseconds, then 40 random bits, in an alphabet that sorts as the numbers do.
fn make_up_id() -> Result<String, Failure> {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let system = runwal::clock::System;
    let millis = u64::try_from(system.now().0 / 1_000_000).unwrap_or(0);
    let random = system.number()? & 0xff_ffff_ffff;
    let digits = |number: u64, count: u32| {
        (0..count)
            .rev()
            .map(move |i| char::from(DIGITS[usize::try_from((number >> (5 * i)) & 31).unwrap_or(0)]))
            .collect::<String>()
    };
    Ok(digits(millis, 10) + &digits(random, 8))
}

struct Signals {
    handle: signal_hook::iterator::Handle,
    thread: std::thread::JoinHandle<()>,
}

impl Signals {
    /// Ends the thread, which gives the engine up.
    fn close(self) {
        self.handle.close();
        if self.thread.join().is_err() {
            complain("runwal: the signal thread panicked");
        }
    }
}

/// What was asked of this process last.
const GO_ON: usize = 0;
const STOP: usize = 1;

/// Hands the signals that ask us to end on to the worker. From a terminal that we share with it,
/// Ctrl-C reaches the worker by itself.
fn watch_signals(engine: &Engine, cancel: &Cancel, terminal: &Terminal) -> std::io::Result<Signals> {
    let all = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU];
    let heard = all.into_iter().filter(|signal| !crate::is_ignored(*signal));
    let last = terminal.asked();
    for signal in [SIGTSTP, SIGTTIN, SIGTTOU].into_iter().filter(|signal| !crate::is_ignored(*signal)) {
        signal_hook::flag::register_usize(signal, Arc::clone(&last), STOP)?;
    }
    signal_hook::flag::register_usize(SIGCONT, Arc::clone(&last), GO_ON)?;
    let mut signals = signal_hook::iterator::Signals::new(heard)?;
    let handle = signals.handle();
    let (engine, cancel, terminal) = (engine.clone(), cancel.clone(), terminal.clone());
    let thread = std::thread::Builder::new().name("runwal-signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            match signal {
                // A process that is stopped in a commit keeps everybody else waiting for the lock. Until
                // the commit is over, the shell may have let the job go on already.
                SIGTSTP | SIGTTIN | SIGTTOU => {
                    engine.between_commits(|| {
                        if last.load(Ordering::SeqCst) == STOP {
                            let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
                            last.store(GO_ON, Ordering::SeqCst);
                        }
                    });
                    terminal.resumed();
                }
                SIGINT | SIGQUIT if matches!(terminal, Terminal::Shared) => cancel.interrupted(signal),
                _ => cancel.cancel(signal),
            }
        }
    })?;
    Ok(Signals { handle, thread })
}
