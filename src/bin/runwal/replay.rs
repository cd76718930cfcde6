//! `runwal replay`

use crate::args::{At, Global, ReplayArgs, not_begun};
use crate::sink::{Sinks, Wanted};
use crate::{Done, complain, show, sink};
use runwal::clock::{Clock, System};
use runwal::position::{Seq, Time};
use runwal::record::{Body, Record, escape_line};
use std::time::Duration;

/// How far we may lag behind before the time that was lost is given up: the longest rush after a
/// stop, or after a terminal that took its time.
const MAX_LAG: Duration = Duration::from_millis(500);

/// Lets pass between two things the time that passed between them then.
#[derive(Debug)]
struct Pace<'c> {
    clock: &'c dyn Clock,
    speed: f64,
    max_gap: Duration,
    /// The time of what was shown last.
    last: Option<Time>,
    /// When that was due, on the monotonic clock.
    due: Duration,
}

impl<'c> Pace<'c> {
    fn new(clock: &'c dyn Clock, speed: f64, max_gap: Option<Duration>) -> Self {
        let max_gap = max_gap.unwrap_or(Duration::MAX);
        let due = Duration::from_nanos(clock.monotonic_ns());
        Self { clock, speed, max_gap, last: None, due }
    }

    /// Waits until it is time for what happened at `time`. A clock that went back then makes nobody
    /// wait now.
    fn reach(&mut self, time: Time) {
        let gap = time.0.saturating_sub(self.last.unwrap_or(time).0).max(0);
        self.last = Some(time);
        #[expect(clippy::cast_precision_loss, reason = "what a float cannot hold of years, nobody waits for")]
        let scaled = gap as f64 / 1e9 / self.speed;
        let gap = Duration::try_from_secs_f64(scaled).unwrap_or(Duration::MAX).min(self.max_gap);
        self.due = self.due.saturating_add(gap);
        let now = Duration::from_nanos(self.clock.monotonic_ns());
        match self.due.checked_sub(now) {
            Some(early) => self.clock.pause(early),
            None if now.saturating_sub(self.due) > MAX_LAG => self.due = now,
            None => {}
        }
    }
}

pub(crate) fn replay(global: &Global, args: &ReplayArgs) -> Done {
    let until = At::parse(args.until.as_deref())?;
    let (mut log, run) = global.find(&args.run)?;
    let mut sinks = Sinks::new(Wanted { raw: args.raw, ..Wanted::default() });
    let mut pace = (!args.instant).then(|| Pace::new(&System, args.speed, args.max_gap));
    let (mut begun, mut failed) = (false, None);
    let damage = log.stream(run.stream, Seq(1), &mut |record| {
        if !until.includes(record) {
            return Ok(false);
        }
        if !std::mem::replace(&mut begun, true)
            && let Some(pace) = &mut pace
        {
            pace.reach(record.time);
        }
        failed = play(global, record, &mut sinks, pace.as_mut()).err();
        Ok(failed.is_none())
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    sinks.finish()?;
    for found in &damage {
        show::damage(found, global.json());
    }
    if !begun && damage.is_empty() {
        return Err(not_begun(&run));
    }
    crate::log::finish(&mut log, !damage.is_empty(), global)
}

/// Shows what a record has to show, when it is time for it.
fn play(
    global: &Global,
    record: &Record,
    sinks: &mut Sinks,
    pace: Option<&mut Pace<'_>>,
) -> std::io::Result<()> {
    let shown = match &record.body {
        Body::Chunk(..) => true,
        Body::Lifecycle(_) => global.verbose,
        _ => false,
    };
    if !shown {
        return Ok(());
    }
    if let Some(pace) = pace {
        sink::flush()?;
        pace.reach(record.time);
    }
    match &record.body {
        Body::Chunk(channel, bytes) => sinks.write(*channel, bytes, record.created_at),
        Body::Lifecycle(event) => {
            sink::flush()?;
            let (time, level) = (record.created_at.to_millis_string(), event.level.word());
            complain(&format!("runwal: {time} {level} {} {}", event.event, escape_line(&event.message)));
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runwal::clock::ManualClock;

    const SECOND: i64 = 1_000_000_000;

    /// When each of some moments, in seconds, is reached, in milliseconds from the first.
    fn reached(speed: f64, max_gap: Option<Duration>, seconds: &[i64]) -> Vec<u64> {
        let clock = ManualClock::new(Time(0));
        let mut pace = Pace::new(&clock, speed, max_gap);
        let reach = |second: &i64| {
            pace.reach(Time(second.saturating_mul(SECOND)));
            clock.monotonic_ns() / 1_000_000
        };
        seconds.iter().map(reach).collect()
    }

    #[test]
    fn time_passes_as_it_did() {
        assert_eq!(reached(1.0, None, &[100, 101, 101, 3701]), [0, 1000, 1000, 3_601_000]);
        assert_eq!(reached(4.0, None, &[100, 101, 103]), [0, 250, 750]);
        assert_eq!(reached(0.5, None, &[100, 101]), [0, 2000]);
        let capped = Some(Duration::from_secs(2));
        assert_eq!(reached(1.0, capped, &[0, 1, 3600, 3601]), [0, 1000, 3000, 4000]);
        assert_eq!(reached(2.0, capped, &[0, 3, 3600]), [0, 1500, 3500], "as long as one has to wait");
    }

    #[test]
    fn a_clock_that_went_back_makes_nobody_wait() {
        assert_eq!(reached(1.0, None, &[100, 102, 50, 51, 10, 10]), [0, 2000, 2000, 3000, 3000, 3000]);
        let far = reached(1e9, None, &[i64::MIN, i64::MAX, i64::MIN, 0]);
        assert!(far.is_sorted(), "{far:?}");
    }

    #[test]
    fn what_showing_took_is_made_up_for_and_a_long_stop_is_not() {
        let clock = ManualClock::new(Time(0));
        let mut pace = Pace::new(&clock, 1.0, None);
        pace.reach(Time(0));
        clock.advance(Duration::from_millis(300));
        pace.reach(Time(SECOND));
        assert_eq!(clock.monotonic_ns(), 1_000_000_000, "waits for the rest");
        clock.advance(Duration::from_mins(10));
        pace.reach(Time(2 * SECOND));
        let after = clock.monotonic_ns();
        pace.reach(Time(3 * SECOND));
        assert_eq!(clock.monotonic_ns() - after, 1_000_000_000, "goes on as before the stop");
    }
}
