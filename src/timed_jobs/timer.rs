//! When it is time to tick.

use super::Inner;
use super::queue::{self, Entry, Role};
use super::tick::{self, Trigger};
use crate::engine::tickers::missed_details;
use crate::position::Time;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Begins to tick, one interval from now.
pub(super) fn spawn(jobs: &Arc<Inner>, interval: Duration) -> JoinHandle<()> {
    let (begun, weak) = (Instant::now(), Arc::downgrade(jobs));
    tokio::spawn(run(weak, begun, interval))
}

async fn run(jobs: Weak<Inner>, begun: Instant, interval: Duration) {
    let mut next = 1;
    while let Some(at) = planned(begun, interval, next) {
        tokio::time::sleep_until(at).await;
        let Some(jobs) = jobs.upgrade() else { return };
        let now = Instant::now();
        let due = u64::try_from(now.duration_since(begun).as_nanos() / interval.as_nanos());
        let due = due.unwrap_or(u64::MAX).max(next);
        if due > next {
            coalesced(&jobs, next, due - next, now.duration_since(at));
        }
        // It goes on by itself: the timer does not wait for it.
        drop(tick::begin(&jobs, Trigger::Interval, Some(due)));
        next = due.saturating_add(1);
    }
}

/// When an interval is over; `None` beyond what clocks can tell.
fn planned(begun: Instant, interval: Duration, nth: u64) -> Option<Instant> {
    let ns = interval.as_nanos().checked_mul(u128::from(nth))?;
    begun.checked_add(Duration::from_nanos(u64::try_from(ns).ok()?))
}

/// Intervals from `first` on that were due together with a later one.
fn coalesced(jobs: &Inner, first: u64, count: u64, late: Duration) {
    let now = jobs.engine.world().clock.now();
    let late = i64::try_from(late.as_nanos()).unwrap_or(i64::MAX);
    let tick = queue::framework(&jobs.next_batch(), "tick_missed", Some("coalesced"));
    let details =
        missed_details(Time(now.0.saturating_sub(late)), count).unwrap_or_else(|_| tick.details.clone());
    let tick = crate::record::Tick { details, ..tick };
    jobs.queue.push(Entry { role: Role::Interval(first), ..Entry::plain(tick) });
}
