//! When what nobody waits for is to be committed: some time after the first of it was handed in, or at
//! once where it is much.

use super::sync::{AtomicBool, Condvar, Mutex, Ordering, hold, wait, wait_while};
use std::time::Duration;

/// How many bytes may wait before they are committed at once: as much as is worth a sync, so that whoever
/// appends goes on meanwhile.
const ENOUGH_LEN: usize = 4 << 20;

/// Between those who append and do not wait, and the one thread that commits for them.
#[derive(Debug)]
pub(crate) struct Due {
    /// Whether the thread knows that something waits, and that it is much. Asked for at each append, where
    /// a lock would be for nothing, and a notification a system call.
    wanted: AtomicBool,
    urgent: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    urgent: bool,
    stop: bool,
}

impl Due {
    pub(crate) fn new() -> Self {
        let (wanted, urgent) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { wanted, urgent, state: Mutex::new(State::default()), changed: Condvar::new() }
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        change(&mut hold(&self.state));
        self.changed.notify_all();
    }

    /// Has what was handed in before committed: the thread finds it behind its next [`wait`](Self::wait).
    pub(crate) fn ask(&self, waiting_len: usize) {
        if !self.wanted.swap(true, Ordering::SeqCst) {
            self.tell(|state| state.wanted = true);
        }
        if waiting_len >= ENOUGH_LEN && !self.urgent.swap(true, Ordering::SeqCst) {
            self.tell(|state| state.urgent = true);
        }
    }

    /// Ends the waiting for good.
    pub(crate) fn stop(&self) {
        self.tell(|state| state.stop = true);
    }

    /// Waits until something is asked for, and then for so long; answers whether to commit it.
    pub(crate) fn wait(&self, after: Duration) -> bool {
        let mut state = hold(&self.state);
        while !state.wanted && !state.stop {
            state = wait(&self.changed, state);
        }
        let mut state = wait_while(&self.changed, state, after, |state| !state.urgent && !state.stop);
        (state.wanted, state.urgent) = (false, false);
        // What is handed in from here on is asked for once more; what was before is committed now.
        self.wanted.store(false, Ordering::SeqCst);
        self.urgent.store(false, Ordering::SeqCst);
        !state.stop
    }
}
