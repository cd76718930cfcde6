//! The worker as a process: starting it, watching over it, ending it.

use super::ProcessOptions;
use super::ended::Ended;
use super::pipeline::Pipeline;
use super::terminal::Terminal;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::run::cancel::Cancel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, waitid};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use wait4::{ResUse, Wait4};

/// How long the threads that watch a worker look away at most.
pub(super) const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// What to start, and in what surroundings.
pub(super) struct Start<'a> {
    pub(super) command: &'a [Vec<u8>],
    pub(super) tree: Option<&'a [u8]>,
    pub(super) environment: Vec<(OsString, OsString)>,
}

/// A worker that was started, and the ends of its output that are read: stdout, and stderr where it
/// has one of its own.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) outputs: [Option<OwnedFd>; 2],
}

impl Start<'_> {
    pub(super) fn spawn(self, terminal: &Terminal) -> std::io::Result<Started> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidInput, "the command is empty"))?;
        let mut command = Command::new(OsStr::from_bytes(program));
        command.args(arguments.iter().map(|arg| OsStr::from_bytes(arg)));
        command.envs(self.environment);
        if let Some(tree) = self.tree {
            command.current_dir(OsStr::from_bytes(tree));
        }
        #[cfg(feature = "terminal")]
        if let Terminal::Pseudo(pseudo) = terminal {
            let (child, output) = pseudo.spawn(command).inspect_err(|_| terminal.restore())?;
            return Ok(Started { child, outputs: [Some(output), None] });
        }
        command.stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if terminal.gives_own_group() {
            command.process_group(0);
        }
        let mut child = command.spawn()?;
        let outputs = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        Ok(Started { child, outputs })
    }
}

pub(super) struct Limits {
    pub(super) timeout_ms: Option<u64>,
    pub(super) grace_ms: u64,
}

/// What the thread that reads and the one that guards the worker know of each other.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) pid: Option<Pid>,
    /// Readable once the worker has exited.
    pub(super) exit: OwnedFd,
    cancel: Cancel,
    group: bool,
    start_ns: u64,
    /// Whether it was waited for, so that its id may be another's.
    gone: Mutex<bool>,
    timed_out: AtomicBool,
    /// The signal it was cancelled with; 0 for none.
    cancelled: AtomicI32,
}

impl Worker {
    pub(super) fn of(child: &Child, group: bool, clock: &dyn Clock, cancel: &Cancel) -> Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let exit = pid
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .ok_or_else(|| Error::new(ErrorKind::Retry, "the worker's process cannot be watched"))?;
        Ok(Self {
            pid,
            exit,
            cancel: cancel.clone(),
            group,
            start_ns: clock.monotonic_ns(),
            gone: Mutex::new(false),
            timed_out: AtomicBool::new(false),
            cancelled: AtomicI32::new(0),
        })
    }

    pub(super) fn signal(&self, signal: Signal) {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if !*gone {
            signal_worker(self.pid, self.group, signal);
        }
    }

    /// Takes leave of a worker that has exited.
    pub(super) fn wait(&self, child: &mut Child, clock: &dyn Clock, terminal: &Terminal) -> Result<Ended> {
        let duration = Duration::from_nanos(clock.monotonic_ns().saturating_sub(self.start_ns));
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever traces it is told first that it has exited.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.exit.as_fd()), options))
            .map_err(|e| Error::io("waiting for the worker", e.into()))?;
        let used = child.try_wait4().map_err(|e| Error::io("waiting for the worker", e))?;
        let Some(ResUse { status, rusage }) = used else {
            return Err(Error::new(ErrorKind::Retry, "the worker exited and cannot be waited for"));
        };
        *gone = true;
        let by_hand = terminal.is_shared() && status.signal().is_some_and(is_from_keyboard);
        Ok(Ended {
            status,
            timed_out: self.timed_out.load(Ordering::SeqCst),
            cancelled: self.cancelled.load(Ordering::SeqCst) != 0 || by_hand,
            drained: false,
            duration,
            max_rss_bytes: rusage.maxrss,
            user: rusage.utime,
            system: rusage.stime,
            left: Vec::new(),
        })
    }

    /// Whether it was asked to end, and did.
    pub(super) fn was_ended(&self) -> bool {
        let asked = self.timed_out.load(Ordering::SeqCst) || self.cancel.is_cancelled();
        asked && {
            let mut exit = [PollFd::new(&self.exit, PollFlags::IN)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut exit, Some(&at_once)).is_ok_and(|ready| ready > 0)
        }
    }

    /// Whether it was stopped since this was asked last, as by Ctrl-Z.
    fn was_stopped(&self) -> bool {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        matches!(waitid(WaitId::PidFd(self.exit.as_fd()), options), Ok(Some(status)) if status.stopped())
    }

    /// Ends the worker when its time is up, hands signals on, and ends it for good once its grace
    /// is over: in a thread of its own, as the one that reads may be waiting for whoever reads our
    /// output, or for the disk.
    pub(super) fn guard(
        &self,
        clock: &dyn Clock,
        pipeline: &Pipeline,
        options: &ProcessOptions,
        limits: &Limits,
        suspend: &dyn Fn(&dyn Fn()),
        is_over: &dyn Fn() -> bool,
    ) {
        let since = |from: u64| clock.monotonic_ns().saturating_sub(from) / 1_000_000;
        let (mut stopping, mut handed_on) = (None, 0);
        loop {
            // The first signal wakes; others have the same handle, so that it stays readable.
            let wake = if handed_on == 0 { self.cancel.wake() } else { self.exit.as_fd() };
            let mut fds =
                [PollFd::new(&self.exit, PollFlags::IN), PollFd::from_borrowed_fd(wake, PollFlags::IN)];
            // An interrupted poll is looked at as one whose time was up.
            let _ = poll(&mut fds, Some(&PATIENCE));
            if !fds[0].revents().is_empty() {
                return;
            }
            let asked = self.cancel.handed_on();
            if asked != handed_on {
                handed_on = asked;
                let number = self.cancel.signal();
                self.cancelled.store(number, Ordering::SeqCst);
                stopping.get_or_insert(clock.monotonic_ns());
                self.signal(Signal::from_named_raw(number).unwrap_or(Signal::TERM));
                // What is stopped does not hear.
                self.signal(Signal::CONT);
            }
            let failed =
                options.stop_on_failure && (pipeline.has_failed() || (stopping.is_none() && is_over()));
            let late = limits.timeout_ms.is_some_and(|limit| since(self.start_ns) >= limit);
            if stopping.is_none() && (failed || late) {
                self.timed_out.store(late && !failed, Ordering::SeqCst);
                stopping = Some(clock.monotonic_ns());
                self.signal(Signal::TERM);
                self.signal(Signal::CONT);
            }
            if stopping.is_some_and(|at| since(at) >= limits.grace_ms) {
                self.signal(Signal::KILL);
            }
            if options.terminal.is_foreground() && self.was_stopped() {
                options.terminal.suspend(self.pid, &|| self.signal(Signal::CONT), suspend);
            }
            if let Some(record) = options.terminal.resized() {
                pipeline.push(clock, vec![record], false);
            }
        }
    }
}

/// Whether a signal is one that a person sends with a key, or by closing the terminal.
fn is_from_keyboard(signal: i32) -> bool {
    [Signal::INT, Signal::QUIT, Signal::HUP].iter().any(|known| known.as_raw() == signal)
}

/// Ends a worker that cannot be watched: it must not be left without a recorder.
pub(super) fn end_at_once(child: &mut Child, group: bool) {
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
