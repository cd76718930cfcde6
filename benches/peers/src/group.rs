//! Writers that wait share one commit: the first of a group leads it, nobody runs in the background.

use crate::Result;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a leader waits for the writers that the last commit woke to come back.
const LINGER: Duration = Duration::from_micros(100);

/// Collects what writers hand in into a `T`, and has one of them commit it.
#[derive(Debug)]
pub(crate) struct Group<T> {
    state: Mutex<State<T>>,
    /// On which the leader of the next group waits, and nobody else.
    turn: Condvar,
}

#[derive(Debug)]
struct State<T> {
    collected: T,
    spare: T,
    members: usize,
    outcome: Arc<Outcome>,
    committing: bool,
    /// How many the last commit answered.
    woken: usize,
}

type Outcome = OnceLock<std::result::Result<(), String>>;

impl<T: Default> Group<T> {
    pub(crate) fn new() -> Self {
        let state = State {
            collected: T::default(),
            spare: T::default(),
            members: 0,
            outcome: Arc::default(),
            committing: false,
            woken: 0,
        };
        Self { state: Mutex::new(state), turn: Condvar::new() }
    }

    fn hold(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands something in with `add`, and returns when a `commit` took it, this caller's or another's.
    /// `commit` leaves the `T` empty.
    pub(crate) fn submit(
        &self,
        add: impl FnOnce(&mut T),
        commit: impl FnOnce(&mut T) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.hold();
        add(&mut state.collected);
        state.members += 1;
        let outcome = Arc::clone(&state.outcome);
        if state.members > 1 {
            drop(state);
            return Ok(outcome.wait().clone()?);
        }
        while state.committing {
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.committing = true;
        let mut state = self.linger(state);
        let spare = std::mem::take(&mut state.spare);
        let mut collected = std::mem::replace(&mut state.collected, spare);
        state.outcome = Arc::default();
        let members = std::mem::take(&mut state.members);
        drop(state);
        let committed = commit(&mut collected).map_err(|error| error.to_string());
        let mut state = self.hold();
        state.spare = collected;
        state.committing = false;
        state.woken = members;
        drop(state);
        self.turn.notify_one();
        outcome.get_or_init(|| committed).clone()?;
        Ok(())
    }

    /// Whoever was just woken is about to come back: one sync for all of them is cheaper than two.
    fn linger<'s>(&'s self, mut state: MutexGuard<'s, State<T>>) -> MutexGuard<'s, State<T>> {
        if state.members >= state.woken {
            return state;
        }
        let begun = Instant::now();
        while state.members < state.woken && begun.elapsed() < LINGER {
            drop(state);
            std::thread::yield_now();
            state = self.hold();
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn everything_is_committed_once_before_its_writer_goes_on() {
        let group = Group::<Vec<usize>>::new();
        let committed = Mutex::new(Vec::new());
        let commits = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let (group, committed, commits) = (&group, &committed, &commits);
                scope.spawn(move || {
                    for n in 0..200 {
                        let mine = writer * 1000 + n;
                        let done = group.submit(
                            |all| all.push(mine),
                            |all| {
                                commits.fetch_add(1, Ordering::Relaxed);
                                committed.lock().unwrap().append(all);
                                Ok(())
                            },
                        );
                        done.unwrap();
                        assert!(committed.lock().unwrap().contains(&mine));
                    }
                });
            }
        });
        let mut committed = committed.into_inner().unwrap();
        committed.sort_unstable();
        committed.dedup();
        assert_eq!(committed.len(), 1600);
        assert!(commits.into_inner() <= 1600);
    }

    #[test]
    fn a_commit_that_fails_is_told_to_everybody() {
        let group = Group::<Vec<u8>>::new();
        let failed = group.submit(|all| all.push(1), |_| Err("no".into()));
        assert_eq!(failed.unwrap_err().to_string(), "no");
    }
}
