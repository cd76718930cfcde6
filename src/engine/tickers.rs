//! Who ticks. Each ticker of the timed jobs has a stream of its own, open for as long as it lives:
//! so whoever opens the journal finds the ones that died among the open streams, without reading
//! what they recorded, and two who find the same one cannot both account for what it missed.

use super::repair::Report;
use super::{Engine, Log, NewRecord};
use crate::error::{ErrorKind, Result};
use crate::journal::Conditions;
use crate::position::{Position, Seq, StreamId, Time};
use crate::record::{Body, JsonText, Level, Lifecycle, Tick};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The runner's name in the framework's own records.
pub(crate) const FRAMEWORK: &str = "timed-jobs.framework";

/// What the names of their streams begin with; the recorder's id and a number follow.
const PREFIX: &str = "timed-jobs:";
const STARTED: &str = "ticker_started";
const INTERRUPTED: &str = "ticker_interrupted";
const DIED: &str = "The process of the timed jobs died.";

/// How many tick records are looked through first, and how much that grows.
const WINDOW: u64 = 256;
const WINDOW_GROWTH: u64 = 8;

#[cfg(feature = "tokio")]
mod living;
#[cfg(feature = "tokio")]
pub(crate) use living::{Asked, Ticker, account, missed_details};

/// Intervals that passed while nobody ticked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissedTicks {
    /// When the first of them was planned.
    pub planned: Time,
    /// How many there are, up to now. None is accounted for until timed jobs are started again,
    /// which records them all.
    pub count: u64,
    /// How far apart they were planned.
    pub interval: Duration,
}

/// A ticker whose process died.
#[derive(Debug, Clone)]
struct DeadTicker {
    stream: StreamId,
    name: String,
}

/// What its stream says of it.
#[derive(Debug, Default)]
struct Life {
    next: Option<Seq>,
    /// When its timer began, and the interval.
    began: Option<(Time, u64)>,
    /// The last interval it accounted for, and when that was planned; known once it was looked for.
    settled: Option<(u64, Time)>,
    /// Why not all of that is known.
    damage: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StartedData {
    interval_ns: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct InterruptedData {
    accounted: u64,
    planned_ns: i64,
}

/// What there is in the details of intervals that were due together with a later one.
#[derive(Debug, Deserialize)]
struct CoalescedData {
    count: u64,
}

fn event(what: &str, level: Level, message: &str, data: JsonText) -> NewRecord {
    Body::Lifecycle(Lifecycle { event: what.to_owned(), level, message: message.to_owned(), data }).into()
}

/// A record of a ticker's stream and one of the timed jobs in one batch, if nobody else has written
/// to the former.
fn append_with(
    engine: &Engine,
    stream: StreamId,
    expected: Option<Seq>,
    own: NewRecord,
    tick: Option<NewRecord>,
) -> Result<()> {
    let records: Vec<_> = [(Some(stream), own)].into_iter().chain(tick.map(|tick| (None, tick))).collect();
    engine.submit_ticks(&records, Conditions::from(expected))?.wait().map(drop)
}

/// The recorder that a ticker's stream belongs to, by its name; `None` where it is not a ticker's.
fn recorder_of(name: &str) -> Option<[u8; 16]> {
    let (id, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let mut recorder = [0; 16];
    if id.len() != 32 || !id.is_ascii() {
        return None;
    }
    for (byte, at) in recorder.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&id[at..at + 2], 16).ok()?;
    }
    Some(recorder)
}

/// The tickers whose process died, and that nobody has accounted for.
fn dead(engine: &Engine, log: &mut Log) -> Result<Vec<DeadTicker>> {
    let mut found = Vec::new();
    for stream in log.reader.open_streams() {
        let Some(name) = log.reader.name(stream)?.and_then(|name| String::from_utf8(name).ok()) else {
            continue;
        };
        let Some(recorder) = recorder_of(&name) else { continue };
        let is_dead = recorder != engine.recorder_id()
            && crate::journal::live::Dead::certify(engine.journal(), &recorder)?.is_some();
        if is_dead {
            found.push(DeadTicker { stream, name });
        }
    }
    Ok(found)
}

/// Ends the ticks that dead tickers were in the middle of, and notes what they accounted for. Done
/// twice, it changes nothing more.
pub(super) fn settle(engine: &Engine, log: &mut Log, report: &mut Report) -> Result<()> {
    let dead = dead(engine, log)?;
    for (ticker, left) in look(log, dead)? {
        match settle_one(engine, &ticker, left) {
            Ok((interrupted, life)) => {
                report.interrupted_ticks.extend(interrupted);
                report.missed_ticks.extend(life.missed(engine.world().clock.now()));
                report.problems.extend(life.damage.map(|why| format!("timed jobs of a dead process: {why}")));
            }
            // Somebody else was faster.
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a dead ticker has left behind.
struct Left {
    life: Life,
    /// The tick it was in the middle of.
    unfinished: Option<Tick>,
    /// Whether somebody has looked before, and said so in its stream.
    settled: bool,
}

fn look(log: &mut Log, tickers: Vec<DeadTicker>) -> Result<Vec<(DeadTicker, Left)>> {
    if tickers.is_empty() {
        return Ok(Vec::new());
    }
    log.refresh()?;
    let (mut all, mut open) = (Vec::new(), Vec::new());
    for ticker in tickers {
        let life = read_life(log, ticker.stream)?;
        match life.settled {
            Some(_) => all.push((ticker, Left { life, unfinished: None, settled: true })),
            None => open.push((ticker, life)),
        }
    }
    let mut last = last_of(log, open.iter().map(|(ticker, _)| ticker))?;
    for (ticker, mut life) in open {
        let last = last.remove(&ticker.stream).unwrap_or_default();
        life.settled = life.began.map(|(began, interval)| match last.accounted {
            None => (0, began),
            Some(Accounted { nth, at, next_is_due }) => {
                // Its planned moment is as far back as that of one that was ticked in time.
                let back = if next_is_due { i64::try_from(interval).unwrap_or(i64::MAX) } else { 0 };
                (nth, planned(began, interval, nth, Time(at.0.saturating_sub(back))))
            }
        });
        all.push((ticker, Left { life, unfinished: last.in_flight.flatten(), settled: false }));
    }
    Ok(all)
}

/// The batch ids of the ticks that [`settle`] would end, and what was missed, as far as reading can
/// tell.
pub(super) fn left_behind(log: &mut Log, now: Time) -> Result<(Vec<String>, Vec<MissedTicks>)> {
    let mut dead = Vec::new();
    for stream in log.reader.open_streams() {
        let Some(name) = log.reader.name(stream)?.and_then(|name| String::from_utf8(name).ok()) else {
            continue;
        };
        let Some(recorder) = recorder_of(&name) else { continue };
        if crate::journal::live::seems_alive(&**log.reader.handle.disk(), &recorder) {
            continue;
        }
        dead.push(DeadTicker { stream, name });
    }
    let (mut ticks, mut missed) = (Vec::new(), Vec::new());
    for (_, left) in look(log, dead)? {
        ticks.extend(left.unfinished.map(|tick| tick.batch_id));
        missed.extend(left.life.missed(now));
    }
    Ok((ticks, missed))
}

/// Answers with the batch id of the tick that was ended, and what is known of the ticker then.
fn settle_one(engine: &Engine, ticker: &DeadTicker, left: Left) -> Result<(Option<String>, Life)> {
    let Left { mut life, unfinished, settled } = left;
    if settled {
        return Ok((None, life));
    }
    let now = engine.world().clock.now();
    let interrupted = unfinished.as_ref().map(|tick| tick.batch_id.clone());
    let tick = unfinished.map(|tick| {
        let tick = Tick {
            runner: FRAMEWORK.to_owned(),
            stage: "tick_failed".to_owned(),
            result: Some("interrupted".to_owned()),
            error: Some("The process died before the tick ended.".to_owned()),
            duration_ms: None,
            ..tick
        };
        NewRecord { created_at: Some(now), ..Body::Tick(tick).into() }
    });
    let own = match life.settled {
        Some((accounted, planned)) => {
            let data = JsonText::of(&InterruptedData { accounted, planned_ns: planned.0 })?;
            event(INTERRUPTED, Level::Warn, DIED, data)
        }
        // Without a timer there is nothing to miss, and nothing more to account for.
        None => NewRecord { ends: true, ..event(INTERRUPTED, Level::Warn, DIED, JsonText::empty()) },
    };
    append_with(engine, ticker.stream, life.next, own, tick)?;
    life.next = life.next.and_then(Seq::next);
    Ok((interrupted, life))
}

fn read_life(log: &mut Log, stream: StreamId) -> Result<Life> {
    let mut life = Life { next: Some(Seq(1)), ..Life::default() };
    let damage = log.stream(stream, Seq(1), &mut |record| {
        life.next = record.seq.next();
        let Body::Lifecycle(happened) = &record.body else { return Ok(true) };
        let data = happened.data.as_str();
        if happened.event == STARTED
            && let Ok(data) = serde_json::from_str::<StartedData>(data)
        {
            life.began = Some((record.created_at, data.interval_ns.max(1)));
        } else if happened.event == INTERRUPTED
            && let Ok(data) = serde_json::from_str::<InterruptedData>(data)
        {
            life.settled = Some((data.accounted, Time(data.planned_ns)));
        }
        Ok(true)
    })?;
    if let Some(damage) = damage.first() {
        // What it missed cannot be told; it must not stand in anybody's way for that.
        let next = log.end_of(stream)?.and_then(|(last, _)| last.next());
        life = Life { next, damage: Some(damage.to_error().to_string()), ..Life::default() };
    }
    Ok(life)
}

/// The last that a ticker recorded.
#[derive(Debug, Default)]
struct Last {
    accounted: Option<Accounted>,
    /// The tick that has no end, or that there is none; `None` where nothing tells.
    in_flight: Option<Option<Tick>>,
}

/// The interval that a ticker accounted for last.
#[derive(Debug)]
struct Accounted {
    nth: u64,
    /// When that was.
    at: Time,
    /// Whether the one behind it was due by then, too: that has a record of its own, or none.
    next_is_due: bool,
}

impl Accounted {
    fn of(tick: &Tick, first: u64, at: Time) -> Self {
        if tick.stage != "tick_missed" {
            return Self { nth: first, at, next_is_due: false };
        }
        let count = serde_json::from_str(tick.details.as_str()).map_or(1, |CoalescedData { count }| count);
        Self { nth: first.saturating_add(count.saturating_sub(1)), at, next_is_due: true }
    }
}

impl Last {
    fn is_known(&self) -> bool {
        self.accounted.is_some() && self.in_flight.is_some()
    }

    /// Takes a record of the ticker in, by what its key says of it.
    fn take(&mut self, what: &str, tick: &Tick, at: Time) {
        if let Ok(nth) = what.parse() {
            self.accounted = Some(Accounted::of(tick, nth, at));
        }
        // One that is skipped as another is in flight does not tell when that began.
        if tick.stage == "tick_started" {
            self.in_flight = Some(Some(tick.clone()));
        } else if what.starts_with('e') || tick.stage == "tick_skipped_no_runners" {
            self.in_flight = Some(None);
        }
    }
}

/// Looks from the end of the records of the timed jobs back, for all of them at once, and no further
/// than the oldest of them is old of which not all is known.
fn last_of<'t>(
    log: &mut Log,
    tickers: impl Iterator<Item = &'t DeadTicker>,
) -> Result<BTreeMap<StreamId, Last>> {
    let mut known: BTreeMap<StreamId, Last> = BTreeMap::new();
    let Some(ticks) = log.ticks()? else { return Ok(known) };
    let Some((end, _)) = log.end_of(ticks)? else { return Ok(known) };
    let mut wanted: BTreeMap<&str, StreamId> =
        tickers.map(|ticker| (ticker.name.as_str(), ticker.stream)).collect();
    let mut window = WINDOW;
    while !wanted.is_empty() {
        let from = Seq(end.0.saturating_sub(window).max(1));
        let (mut found, mut first) = (BTreeMap::<StreamId, Last>::new(), Position(u64::MAX));
        // Damage here takes at most the knowledge of a tick; the rest is accounted for.
        log.stream(ticks, from, &mut |record| {
            first = first.min(record.position);
            let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
            if let Some((name, what)) = key.and_then(|key| key.rsplit_once('/'))
                && let (Some(stream), Body::Tick(tick)) = (wanted.get(name), &record.body)
            {
                found.entry(*stream).or_default().take(what, tick, record.created_at);
            }
            Ok(true)
        })?;
        wanted.retain(|_, stream| {
            let last = found.remove(stream).unwrap_or_default();
            let is_all = from == Seq(1) || first.0 < stream.0 || last.is_known();
            if is_all {
                known.insert(*stream, last);
            }
            !is_all
        });
        window = window.saturating_mul(WINDOW_GROWTH);
    }
    Ok(known)
}

/// When an interval that was accounted for at `at` had been planned. The wall clock may have been
/// set since the timer began: then the moment itself is the best that is known.
fn planned(began: Time, interval_ns: u64, nth: u64, at: Time) -> Time {
    let offset = i64::try_from(u128::from(interval_ns) * u128::from(nth)).unwrap_or(i64::MAX);
    let planned = Time(began.0.saturating_add(offset));
    let late = i128::from(at.0) - i128::from(planned.0);
    if (0..i128::from(interval_ns)).contains(&late) { planned } else { at }
}

impl Life {
    /// The intervals that were planned and have passed by `now`.
    fn missed(&self, now: Time) -> Option<MissedTicks> {
        let ((_, interval), (_, last)) = (self.began?, self.settled?);
        let passed = u64::try_from(i128::from(now.0) - i128::from(last.0)).unwrap_or(0);
        let count = passed / interval;
        let planned = Time(last.0.saturating_add(i64::try_from(interval).unwrap_or(i64::MAX)));
        (count > 0).then_some(MissedTicks { planned, count, interval: Duration::from_nanos(interval) })
    }
}
