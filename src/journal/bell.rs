//! How those who read are told at once what was written in their own process. Other processes are
//! seen by looking at the mark.

use super::hold;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Rung after each commit. Costs one look at a number while nobody listens, and never waits for
/// whoever does.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    listeners: AtomicUsize,
    rung: Mutex<u64>,
    heard: Condvar,
}

/// Somebody who hears the bell, from the moment this was made.
#[derive(Debug)]
pub(crate) struct Listener<'b> {
    bell: &'b Bell,
    since: u64,
}

impl Bell {
    /// Wakes all who listen.
    pub(crate) fn ring(&self) {
        if self.listeners.load(Ordering::SeqCst) > 0 {
            *hold(&self.rung) += 1;
            self.heard.notify_all();
        }
    }

    /// Begins to listen: to be called before looking whether there is something to wait for.
    pub(crate) fn listen(&self) -> Listener<'_> {
        self.listeners.fetch_add(1, Ordering::SeqCst);
        let since = *hold(&self.rung);
        Listener { bell: self, since }
    }
}

impl Listener<'_> {
    /// Waits for the bell; answers whether it rang.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let rung = hold(&self.bell.rung);
        let waited = self.bell.heard.wait_timeout_while(rung, patience, |rung| *rung == self.since);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.bell.listeners.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever listens has an hour of patience: a bell that is not heard hangs the test.
    #[test]
    fn who_listens_hears_what_was_rung_since() {
        let bell = Bell::default();
        bell.ring();
        std::thread::scope(|scope| {
            for _ in 0..50 {
                let listeners: Vec<_> = (0..4).map(|_| bell.listen()).collect();
                for listener in listeners {
                    scope.spawn(move || assert!(listener.wait(Duration::from_hours(1))));
                }
                bell.ring();
            }
        });
        let listener = bell.listen();
        assert!(!listener.wait(Duration::ZERO), "what was rung before is not heard");
        bell.ring();
        assert!(listener.wait(Duration::ZERO));
    }
}
