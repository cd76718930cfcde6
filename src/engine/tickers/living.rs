//! What timed jobs do with tickers: live as one, and account for those that died.

use super::super::repair::hex;
use super::{
    FRAMEWORK, MissedTicks, PREFIX, STARTED, StartedData, append_with, dead, event, look, settle_one,
};
use crate::engine::{Engine, NewRecord};
use crate::error::{Conflict, ErrorKind, Result};
use crate::position::{Seq, StreamId, Time};
use crate::record::{Body, JsonText, Level, Tick};
use serde::Serialize;
use std::sync::atomic::Ordering;
use std::time::Duration;

const OPENED: &str = "ticker_opened";
const STOPPED: &str = "ticker_stopped";

/// The details of a tick that began or failed.
#[derive(Debug, Serialize)]
pub(crate) struct Asked {
    pub(crate) runner_count: usize,
    pub(crate) trigger: String,
}

#[derive(Debug, Serialize)]
struct Missed {
    planned_time: String,
    count: u64,
}

/// The details of `tick_missed`.
pub(crate) fn missed_details(planned: Time, count: u64) -> Result<JsonText> {
    JsonText::of(&Missed { planned_time: planned.to_millis_string(), count })
}

/// A living ticker.
#[derive(Debug)]
pub(crate) struct Ticker {
    name: String,
    stream: StreamId,
    next: Option<Seq>,
    has_timer: bool,
}

impl Ticker {
    /// Begins a life; durable on return.
    pub(crate) fn open(engine: &Engine) -> Result<Self> {
        let number = engine.0.tickers.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", hex(&engine.recorder_id()));
        let receipt = engine.open_stream(
            &name,
            &event(OPENED, Level::Info, "Timed jobs of this process.", JsonText::empty()),
        )?;
        Ok(Self { name, stream: receipt.stream, next: receipt.last_seq.next(), has_timer: false })
    }

    /// The idempotency key of the record that accounts for an interval.
    pub(crate) fn key_of_interval(&self, nth: u64) -> String {
        format!("{}/{nth}", self.name)
    }

    /// The keys of the records that begin, by hand, and end a tick.
    pub(crate) fn key_of_tick(&self, counter: u64) -> String {
        format!("{}/m{counter}", self.name)
    }

    /// See [`key_of_tick`](Self::key_of_tick).
    pub(crate) fn key_of_end(&self, counter: u64) -> String {
        format!("{}/e{counter}", self.name)
    }

    /// Its timer begins at `at`; the tick record `started` goes with it.
    pub(crate) fn started(
        &mut self,
        engine: &Engine,
        interval: Duration,
        at: Time,
        started: NewRecord,
    ) -> Result<()> {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        let data = JsonText::of(&StartedData { interval_ns })?;
        let record =
            NewRecord { created_at: Some(at), ..event(STARTED, Level::Info, "Their timer runs.", data) };
        self.append(engine, record, Some(started))?;
        self.has_timer = true;
        Ok(())
    }

    /// Whether its timer began: one life has one, whose intervals are counted from 1.
    pub(crate) fn has_timer(&self) -> bool {
        self.has_timer
    }

    /// Ends it; the tick record `stopped` goes with it, if its stop came so far.
    pub(crate) fn stopped(mut self, engine: &Engine, stopped: Option<NewRecord>) -> Result<()> {
        let record =
            NewRecord { ends: true, ..event(STOPPED, Level::Info, "They were stopped.", JsonText::empty()) };
        self.append(engine, record, stopped)
    }

    fn append(&mut self, engine: &Engine, own: NewRecord, tick: Option<NewRecord>) -> Result<()> {
        append_with(engine, self.stream, self.next, own, tick)?;
        self.next = self.next.and_then(Seq::next);
        Ok(())
    }
}

/// The same, and accounts for what was missed since: each dead ticker by whoever comes first.
/// `word` is the policy's; `batch_id` gives the records theirs. Answers with what was missed, and
/// what could not be found out.
pub(crate) fn account(
    engine: &Engine,
    word: &str,
    batch_id: &mut dyn FnMut() -> String,
) -> Result<(Vec<MissedTicks>, Vec<String>)> {
    let mut log = engine.log()?;
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    let dead = dead(engine, &mut log)?;
    for (ticker, left) in look(&mut log, dead)? {
        let accounted = settle_one(engine, &ticker, left).and_then(|(_, life)| {
            problems.extend(life.damage.clone());
            if life.settled.is_none() {
                return Ok(None);
            }
            let now = engine.world().clock.now();
            let missed = life.missed(now);
            let tick = match &missed {
                Some(missed) => Some(Tick {
                    batch_id: batch_id(),
                    runner: FRAMEWORK.to_owned(),
                    stage: "tick_missed".to_owned(),
                    result: Some(word.to_owned()),
                    error: None,
                    duration_ms: None,
                    details: missed_details(missed.planned, missed.count)?,
                }),
                None => None,
            };
            let own = NewRecord {
                ends: true,
                ..event(STOPPED, Level::Info, "What they missed is accounted for.", JsonText::empty())
            };
            let tick = tick.map(|tick| NewRecord { created_at: Some(now), ..Body::Tick(tick).into() });
            append_with(engine, ticker.stream, life.next, own, tick)?;
            Ok(missed)
        });
        match accounted {
            Ok(missed) => all.extend(missed),
            Err(error) if matches!(error.conflict(), Some(Conflict::Sequence { .. })) => {}
            // Ended by somebody else in between.
            Err(error) if error.kind() == ErrorKind::Misuse => {}
            Err(error) => return Err(error),
        }
    }
    Ok((all, problems))
}
