//! How a worker stands to the terminal that a person sits before.

#[cfg(feature = "terminal")]
mod foreground;
#[cfg(feature = "terminal")]
mod pseudo;

use crate::engine::NewRecord;
use crate::run::started::WindowSize;
use rustix::process::Pid;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// How a worker stands to the terminal.
#[derive(Debug, Clone, Default)]
pub enum Terminal {
    /// It has none: it gets a process group of its own, which is ended as a whole.
    #[default]
    Detached,
    /// It stays in this process's group, and has the terminal where that has it. Ctrl-C and Ctrl-Z
    /// reach both; what it starts cannot be ended with it by its group. For pipelines, whose other
    /// members need the terminal too.
    Shared,
    /// It gets a process group of its own, and that is put in the foreground while it runs: Ctrl-C,
    /// Ctrl-Z and what reads keys work as without a recorder.
    #[cfg(feature = "terminal")]
    Foreground(Foreground),
    /// It gets a pseudo-terminal, which is recorded as one channel, stdout.
    #[cfg(feature = "terminal")]
    Pseudo(Pseudo),
}

#[cfg_attr(not(feature = "terminal"), allow(clippy::unused_self, reason = "no terminal to speak of"))]
impl Terminal {
    /// What fits this process: `Detached` where it has no terminal; `Foreground` where its stdout is
    /// one, and it begins its process group or its stdin is the terminal too; `Shared` in a
    /// pipeline, whose other members need the terminal as well.
    #[cfg(feature = "terminal")]
    pub fn of_process() -> Self {
        use std::io::IsTerminal;
        match Foreground::of_process() {
            Some(foreground) if std::io::stdout().is_terminal() && foreground.is_alone() => {
                Self::Foreground(foreground)
            }
            Some(_) => Self::Shared,
            None => Self::Detached,
        }
    }

    pub(super) fn gives_own_group(&self) -> bool {
        !matches!(self, Self::Shared)
    }

    /// Whether a person at the terminal can send signals to the worker past its recorder.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Shared) || self.is_foreground()
    }

    /// Whether the worker can be stopped with a key.
    pub(super) fn is_foreground(&self) -> bool {
        #[cfg(feature = "terminal")]
        return matches!(self, Self::Foreground(_));
        #[cfg(not(feature = "terminal"))]
        false
    }

    /// Whether what this process reads is to be passed on.
    pub(super) fn is_pseudo(&self) -> bool {
        #[cfg(feature = "terminal")]
        return matches!(self, Self::Pseudo(_));
        #[cfg(not(feature = "terminal"))]
        false
    }

    /// Passes on what this process reads, until the worker has exited.
    pub(super) fn forward(&self, exit: &OwnedFd) {
        #[cfg(feature = "terminal")]
        if let Self::Pseudo(pseudo) = self {
            pseudo.forward(exit);
        }
        let _ = exit;
    }

    /// Gives the terminal to a worker's group, and has it go on.
    pub(super) fn give(&self, worker: Option<Pid>, go_on: &dyn Fn()) {
        #[cfg(feature = "terminal")]
        if let Self::Foreground(foreground) = self {
            foreground.give(worker, go_on);
        }
        let _ = (worker, go_on);
    }

    /// Takes the terminal back from a worker that is gone.
    pub(super) fn take_back(&self) {
        #[cfg(feature = "terminal")]
        if let Self::Foreground(foreground) = self {
            foreground.take_back();
        }
    }

    /// Leaves the terminal as it was, once nothing of the worker comes any more.
    pub(super) fn restore(&self) {
        self.take_back();
        #[cfg(feature = "terminal")]
        if let Self::Pseudo(pseudo) = self {
            pseudo.restore();
        }
    }

    /// Stops this process as the worker was stopped, and lets both go on together. What stops is
    /// run within `pause`, where no commit is under way.
    pub(super) fn suspend(&self, worker: Option<Pid>, go_on: &dyn Fn(), pause: &dyn Fn(&dyn Fn())) {
        #[cfg(feature = "terminal")]
        if let Self::Foreground(foreground) = self {
            foreground.suspend(worker, go_on, pause);
        }
        let _ = (worker, go_on, pause);
    }

    /// The size of the worker's own window.
    pub(super) fn size(&self) -> Option<WindowSize> {
        #[cfg(feature = "terminal")]
        if let Self::Pseudo(pseudo) = self {
            return Some(pseudo.size());
        }
        None
    }

    /// Passes a change of the window's size on to the worker; answers with the record of it.
    pub(super) fn resized(&self) -> Option<NewRecord> {
        #[cfg(feature = "terminal")]
        if let Self::Pseudo(pseudo) = self {
            return pseudo.resized();
        }
        None
    }

    /// What signals ask of this process, for whoever catches them: a handler of SIGTSTP sets it to 1, one
    /// of SIGCONT to 0. Whoever then stops the process does so while no commit is under way, only if it
    /// is still 1 by then, and sets it to 0 when it goes on; stopping together with the worker sets it to
    /// 0 too. So nobody stops for what is over.
    pub fn asked(&self) -> Arc<AtomicUsize> {
        #[cfg(feature = "terminal")]
        if let Self::Foreground(foreground) = self {
            return foreground.asked();
        }
        Arc::default()
    }

    /// Is to be called when this process goes on after it was stopped, as by SIGTSTP.
    pub fn resumed(&self) {
        #[cfg(feature = "terminal")]
        if let Self::Pseudo(pseudo) = self {
            pseudo.resumed();
        }
    }
}

#[cfg(feature = "terminal")]
pub use foreground::Foreground;
#[cfg(feature = "terminal")]
pub use pseudo::Pseudo;
