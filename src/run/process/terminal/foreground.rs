//! Lending a worker the terminal of this process.

use nix::sys::signal::{SigSet, SigmaskHow, Signal as NixSignal};
use rustix::process::{
    Pid, Signal, getpgid, getpgrp, getpid, getppid, getsid, kill_process, kill_process_group,
};
use rustix::termios::{tcgetpgrp, tcsetpgrp};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The terminal of this process, to be lent to a worker.
#[derive(Debug, Clone)]
pub struct Foreground(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    terminal: OwnedFd,
    own: Pid,
    lent: AtomicBool,
    asked: Arc<AtomicUsize>,
}

impl Foreground {
    /// The controlling terminal, where stdin, stdout or stderr is it.
    pub(super) fn of_process() -> Option<Self> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let standard = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        // Of a terminal that is not the controlling one this is an error.
        let terminal = standard.into_iter().find(|fd| tcgetpgrp(fd).is_ok())?;
        let terminal = terminal.try_clone_to_owned().ok()?;
        Some(Self(Arc::new(Inner {
            terminal,
            own: getpgrp(),
            lent: AtomicBool::new(false),
            asked: Arc::default(),
        })))
    }

    /// Whether nobody stands before this process in a pipeline.
    pub(super) fn is_alone(&self) -> bool {
        use std::io::IsTerminal;
        std::io::stdin().is_terminal() || self.0.own == getpid()
    }

    /// See [`Terminal::asked`](super::Terminal::asked).
    pub(super) fn asked(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.asked)
    }

    fn holder(&self) -> Option<Pid> {
        tcgetpgrp(&self.0.terminal).ok()
    }

    /// Puts a group in the foreground. Done from the background, that would stop us.
    fn put(&self, group: Pid) {
        let mut stops = SigSet::empty();
        stops.add(NixSignal::SIGTTOU);
        let Ok(before) = stops.thread_swap_mask(SigmaskHow::SIG_BLOCK) else { return };
        // Refused for a group that is gone by now, and then there is nothing to give.
        let _ = tcsetpgrp(&self.0.terminal, group);
        let _ = before.thread_set_mask();
    }

    pub(super) fn give(&self, worker: Option<Pid>, go_on: &dyn Fn()) {
        if let Some(group) = worker.filter(|_| self.holder() == Some(self.0.own)) {
            self.0.lent.store(true, Ordering::SeqCst);
            self.put(group);
        }
        // It may have asked for the terminal before it had it, and been stopped for that.
        go_on();
    }

    /// Takes it from whatever group has it that the worker may have given it to, but not from the
    /// shell that took it itself while we were stopped.
    pub(super) fn take_back(&self) {
        let shell = getsid(None).and_then(|leader| getpgid(Some(leader))).ok();
        if self.0.lent.swap(false, Ordering::SeqCst) && self.holder() != shell {
            self.put(self.0.own);
        }
    }

    pub(super) fn suspend(&self, worker: Option<Pid>, go_on: &dyn Fn(), pause: &dyn Fn(&dyn Fn())) {
        if self.holder() == Some(self.0.own) {
            // It wanted the terminal while somebody else had it, and we have got it back meanwhile.
            return self.give(worker, go_on);
        }
        match those_who_wait() {
            None => self.take_back(),
            Some(waiting) => {
                // The shell takes the terminal itself once the job has stopped.
                self.0.lent.store(false, Ordering::SeqCst);
                pause(&|| {
                    // What is to stop may have been let go on meanwhile, with the terminal.
                    if self.holder() != Some(self.0.own) {
                        stop_with(&waiting);
                        // Whatever stop was asked for before, this was it.
                        self.0.asked.store(0, Ordering::SeqCst);
                    }
                });
            }
        }
        self.give(worker, go_on);
    }
}

/// Stops these and this process. The shell may let the job go on as soon as the others have stopped, and
/// whoever stops after that stays stopped: so where nobody wants to see it coming, as an editor does, the
/// group is stopped at one blow, with whatever else a key would have stopped in it. Otherwise raised in
/// this thread, so that it is not passed before all of us have stopped.
fn stop_with(waiting: &[Pid]) {
    let sees_it = |process: &Pid| crate::processes::catches(*process, Signal::TSTP.as_raw());
    if !waiting.is_empty() && !waiting.iter().any(sees_it) {
        let _ = kill_process_group(getpgrp(), Signal::STOP);
        return;
    }
    for process in waiting {
        let _ = kill_process(*process, Signal::TSTP);
    }
    let _ = nix::sys::signal::raise(NixSignal::SIGSTOP);
}

/// The processes of our group that wait for us, as a script or a `make` does: a shell sees the
/// job as stopped once they are too. `None` where no shell is there to see it, that is, nobody
/// of another group in our session: Ctrl-Z then does nothing, as to any process.
fn those_who_wait() -> Option<Vec<Pid>> {
    let (session, group) = (getsid(None).ok(), getpgrp());
    let mut waiting = Vec::new();
    let mut next = getppid();
    while let Some(process) = next.filter(|process| getsid(Some(*process)).ok() == session) {
        if getpgid(Some(process)).ok() != Some(group) {
            return Some(waiting);
        }
        waiting.push(process);
        next = crate::processes::parent(process);
    }
    None
}
