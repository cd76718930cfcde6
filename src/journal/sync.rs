//! The locks of [`commit`](super::commit): the standard library's, or, under `--cfg shuttle`, those of a
//! scheduler that tries the orders in which threads can meet.

#[cfg(shuttle)]
pub(super) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(shuttle))]
pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long whoever leads waits for others at most.
pub(super) const LINGER: Duration = Duration::from_micros(100);

/// Holds a lock. No code that holds one of these panics half-way through a change; the data is whole.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits to be notified.
pub(super) fn wait<'m, T>(condition: &Condvar, guard: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Waits at most so long, and as long as it has to.
#[cfg(not(shuttle))]
pub(super) fn wait_for_a_while<'m, T>(
    _mutex: &'m Mutex<T>,
    condition: &Condvar,
    guard: MutexGuard<'m, T>,
    most: Duration,
    has_to: impl Fn(&T) -> bool,
) -> MutexGuard<'m, T> {
    let waited = condition.wait_timeout_while(guard, most, |value| has_to(value));
    waited.unwrap_or_else(PoisonError::into_inner).0
}

/// The same where time is not what ends it: others get their turn, or do not.
#[cfg(shuttle)]
pub(super) fn wait_for_a_while<'m, T>(
    mutex: &'m Mutex<T>,
    _condition: &Condvar,
    guard: MutexGuard<'m, T>,
    _most: Duration,
    has_to: impl Fn(&T) -> bool,
) -> MutexGuard<'m, T> {
    let mut guard = guard;
    for _ in 0..2 {
        if !has_to(&guard) {
            break;
        }
        drop(guard);
        shuttle::thread::yield_now();
        guard = hold(mutex);
    }
    guard
}
