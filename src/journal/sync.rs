//! The locks of [`commit`](super::commit) and [`due`](super::due): the standard library's, or, under `--cfg shuttle`, those of a
//! scheduler that tries the orders in which threads can meet.

#[cfg(shuttle)]
pub(super) use shuttle::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::yield_now,
};
use std::sync::{OnceLock, PoisonError};
use std::time::Duration;
#[cfg(not(shuttle))]
pub(super) use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::yield_now,
};

/// A value that is set once, and waited for by many: nobody needs a lock to look at it, so that those
/// who are woken do not wait for each other.
#[derive(Debug)]
pub(super) struct Once<T> {
    value: OnceLock<T>,
    #[cfg(shuttle)]
    set: (Mutex<bool>, Condvar),
}

#[cfg(not(shuttle))]
impl<T> Once<T> {
    pub(super) const fn new() -> Self {
        Self { value: OnceLock::new() }
    }

    pub(super) fn set(&self, value: T) {
        let _ = self.value.set(value);
    }

    pub(super) fn get(&self) -> Option<&T> {
        self.value.get()
    }

    pub(super) fn wait(&self) -> &T {
        self.value.wait()
    }
}

#[cfg(shuttle)]
impl<T> Once<T> {
    pub(super) fn new() -> Self {
        Self { value: OnceLock::new(), set: (Mutex::new(false), Condvar::new()) }
    }

    pub(super) fn set(&self, value: T) {
        let _ = self.value.set(value);
        *hold(&self.set.0) = true;
        self.set.1.notify_all();
    }

    pub(super) fn get(&self) -> Option<&T> {
        self.value.get().filter(|_| *hold(&self.set.0))
    }

    pub(super) fn wait(&self) -> &T {
        let mut set = hold(&self.set.0);
        while !*set {
            set = wait(&self.set.1, set);
        }
        self.value.wait()
    }
}

/// How often whoever leads gives way to others at most before it begins: some 100 µs where there are
/// none, as long as a short sync takes.
pub(super) const LINGER: usize = if cfg!(shuttle) { 2 } else { 250 };

/// Holds a lock. No code that holds one of these panics half-way through a change; the data is whole.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for as long as something holds, at most so long. Where the order of threads is a scheduler's, no
/// time goes by.
pub(super) fn wait_while<'m, T>(
    condition: &Condvar,
    guard: MutexGuard<'m, T>,
    at_most: Duration,
    holds: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    #[cfg(shuttle)]
    {
        let _ = (condition, at_most, holds);
        guard
    }
    #[cfg(not(shuttle))]
    condition.wait_timeout_while(guard, at_most, holds).unwrap_or_else(PoisonError::into_inner).0
}

/// Waits to be notified.
pub(super) fn wait<'m, T>(condition: &Condvar, guard: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}
