//! A pseudo-terminal for a worker.

use crate::engine::NewRecord;
use crate::record::{Body, Level, Lifecycle, event};
use crate::run::started::WindowSize;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::io::ioctl_fionbio;
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What ends the input of a terminal that reads lines.
const END_OF_INPUT: [u8; 2] = [4; 2];
/// The size of a window that nobody looks at.
const DEFAULT: WindowSize = WindowSize { rows: 24, columns: 80 };

/// A pseudo-terminal for a worker. What this process reads from stdin goes to it; where stdin
/// is a terminal, that one is raw meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Pseudo(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    master: Option<OwnedFd>,
    size: WindowSize,
    /// The outer terminal's modes before they were made raw.
    modes: Option<Termios>,
}

impl WindowSize {
    fn of_process() -> Self {
        let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin()));
        match size {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
                Self { rows: size.ws_row, columns: size.ws_col }
            }
            _ => DEFAULT,
        }
    }

    fn set(self, master: &OwnedFd) {
        let size = Winsize { ws_row: self.rows, ws_col: self.columns, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = tcsetwinsize(master, size);
    }
}

impl Pseudo {
    /// One that is made when the worker is started, as large as this process's window.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a command on it; answers with the end its output is read from.
    pub(in crate::run::process) fn spawn(&self, command: Command) -> std::io::Result<(Child, OwnedFd)> {
        let plain = |error| match error {
            pty_process::Error::Io(error) => error,
            pty_process::Error::Rustix(errno) => errno.into(),
        };
        let (pty, inner) = pty_process::blocking::open().map_err(plain)?;
        let master = OwnedFd::from(pty);
        let size = WindowSize::of_process();
        size.set(&master);
        // Before the worker can say anything, which the outer terminal would change; but not where
        // that is another program's to draw on.
        if std::io::stdout().is_terminal() {
            self.state().modes = tcgetattr(std::io::stdin()).ok();
            make_raw();
        }
        let child = pty_process::blocking::Command::from(command).spawn(inner).map_err(plain)?;
        // Writing to it may have to wait for a worker that never reads, and never ends.
        ioctl_fionbio(&master, true)?;
        let output = master.try_clone()?;
        let mut state = self.state();
        (state.master, state.size) = (Some(master), size);
        Ok((child, output))
    }

    /// The size of the worker's window.
    pub(super) fn size(&self) -> WindowSize {
        self.state().size
    }

    pub(super) fn resized(&self) -> Option<NewRecord> {
        let mut state = self.state();
        let size = WindowSize::of_process();
        if size == state.size {
            return None;
        }
        state.size = size;
        if let Some(master) = &state.master {
            size.set(master);
        }
        let message = format!("The window has {} rows and {} columns now.", size.rows, size.columns);
        let event = Lifecycle::new(event::TERMINAL_RESIZED, Level::Debug, message);
        event.with_data(&size).ok().map(|event| Body::Lifecycle(event).into())
    }

    /// Gives the outer terminal the modes back that it had.
    pub(super) fn restore(&self) {
        if let Some(modes) = self.state().modes.take() {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &modes);
        }
    }

    pub(super) fn resumed(&self) {
        if self.state().modes.is_some() {
            make_raw();
        }
    }

    /// Passes stdin on until the worker has exited.
    pub(in crate::run::process) fn forward(&self, exit: &OwnedFd) {
        let Some(master) = self.state().master.as_ref().and_then(|master| master.try_clone().ok()) else {
            return;
        };
        let stdin = std::io::stdin();
        let mut buffer = [0; 4096];
        let (mut open, mut in_line) = (true, false);
        loop {
            let waited_for = if open { stdin.as_fd() } else { exit.as_fd() };
            let mut fds =
                [PollFd::new(exit, PollFlags::IN), PollFd::from_borrowed_fd(waited_for, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
            if !fds[0].revents().is_empty() {
                break;
            }
            if fds[1].revents().is_empty() {
                continue;
            }
            let bytes = match rustix::io::read(&stdin, &mut buffer) {
                Ok(0) => {
                    open = false;
                    // Within a line, the first one only ends that.
                    &END_OF_INPUT[..=usize::from(in_line)]
                }
                Ok(read) => {
                    in_line = buffer[read - 1] != b'\n';
                    &buffer[..read]
                }
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(_) => {
                    open = false;
                    continue;
                }
            };
            if !pass_on(&master, bytes, exit) {
                break;
            }
        }
    }
}

/// Writes all of it, unless the worker exits first.
fn pass_on(master: &OwnedFd, mut bytes: &[u8], exit: &OwnedFd) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(master, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::new(exit, PollFlags::IN), PollFd::new(master, PollFlags::OUT)];
                let _ = poll(&mut fds, None);
                if !fds[0].revents().is_empty() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

fn make_raw() {
    let stdin = std::io::stdin();
    if let Ok(mut modes) = tcgetattr(&stdin) {
        modes.make_raw();
        let _ = tcsetattr(&stdin, OptionalActions::Drain, &modes);
    }
}
