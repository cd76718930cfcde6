//! `runwal ticks`

use crate::args::{Global, TicksArgs};
use crate::log::finish;
use crate::{Done, Failure, show};
use runwal::Damage;
use runwal::engine::{Cursor, Entry, Filter, Log, Start};
use runwal::position::{Position, Seq, StreamId, Time};
use runwal::projection::tick_line;
use runwal::record::{Body, Kind, Record, Tick, escape_line};
use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

/// How many records `-f` begins with.
const FOLLOW_LAST: usize = 10;

pub(crate) fn ticks(global: &Global, args: &TicksArgs) -> Done {
    let day = args.day.as_deref().map(day).transpose()?;
    let Some(mut log) = global.log()? else { return Ok(0) };
    let mut printer =
        Printer { json: global.json(), colored: global.colored(), day, out: std::io::stdout().lock() };
    let stream = log.ticks()?;
    let end = log.durable();
    let damage = match stream {
        Some(stream) if args.follow => last(&mut log, stream, &mut printer)?,
        Some(stream) => all(&mut log, stream, &mut printer)?,
        None => nameless(&mut log)?,
    };
    for found in &damage {
        show::damage(found, global.json());
    }
    printer.out.flush()?;
    if args.follow {
        return follow(log, stream, end, &mut printer, global);
    }
    let damaged = damage.iter().any(|found| !found.accepted);
    finish(&mut log, damaged, global)
}

/// A day as it stands in the names of the daily files.
fn day(text: &str) -> Result<String, Failure> {
    let is_day = Time::parse(&format!("{text}T00:00:00Z")).is_some_and(|time| time.day() == text);
    let wrong = || Failure::Usage(format!("\"{}\" is no day such as 2026-04-01", text.escape_debug()));
    is_day.then(|| text.to_owned()).ok_or_else(wrong)
}

/// Prints ticks of the day that is asked for.
struct Printer<'o> {
    json: bool,
    colored: bool,
    day: Option<String>,
    out: std::io::StdoutLock<'o>,
}

impl Printer<'_> {
    /// The line of a record; `None` where it is not wanted.
    fn line(&self, record: &Record) -> Option<String> {
        let Body::Tick(tick) = &record.body else { return None };
        if self.day.as_ref().is_some_and(|day| *day != record.created_at.day()) {
            return None;
        }
        Some(if self.json {
            tick_line(tick, record.created_at)
        } else {
            tick_text(tick, record.created_at, self.colored)
        })
    }

    fn print(&mut self, line: &str) -> std::io::Result<()> {
        writeln!(self.out, "{line}")
    }
}

/// A tick on one line for people, with nothing in it that could move the cursor.
fn tick_text(tick: &Tick, time: Time, colored: bool) -> String {
    let mut text = format!("{} {} {}", tick.stage, tick.runner, tick.result.as_deref().unwrap_or("-"));
    text.push(' ');
    text.push_str(&tick.duration_ms.map_or_else(|| "-".to_owned(), show::duration));
    if let Some(error) = &tick.error {
        text.push_str(" error: ");
        text.push_str(error);
    }
    if tick.details.as_str() != "{}" {
        text.push(' ');
        text.push_str(tick.details.as_str());
    }
    let text = escape_line(&text);
    let failed = tick.error.is_some() || tick.stage.ends_with("_failed");
    let text = match () {
        () if colored && failed => format!("\x1b[31m{text}\x1b[0m"),
        () if colored && tick.stage.contains("_skipped") => format!("\x1b[33m{text}\x1b[0m"),
        () => text,
    };
    format!("{} {text}", time.to_millis_string())
}

/// Prints all of them.
fn all(log: &mut Log, stream: StreamId, printer: &mut Printer<'_>) -> Result<Vec<Damage>, Failure> {
    let mut failed = None;
    let damage = log.stream(stream, Seq(1), &mut |record| {
        let Some(line) = printer.line(record) else { return Ok(true) };
        failed = printer.print(&line).err();
        Ok(failed.is_none())
    })?;
    failed.map_or(Ok(damage), |error| Err(error.into()))
}

/// Prints the last ones. Those of one day may stand anywhere, as ticks can be recorded late.
fn last(log: &mut Log, stream: StreamId, printer: &mut Printer<'_>) -> Result<Vec<Damage>, Failure> {
    let end = log.end_of(stream)?.map_or(Seq::ZERO, |(seq, _)| seq);
    let from = match printer.day {
        Some(_) => Seq(1),
        None => Seq(end.0.saturating_sub(FOLLOW_LAST as u64 - 1).max(1)),
    };
    let mut held = VecDeque::new();
    let damage = log.stream(stream, from, &mut |record| {
        held.extend(printer.line(record));
        if held.len() > FOLLOW_LAST {
            held.pop_front();
        }
        Ok(true)
    })?;
    for line in held {
        printer.print(&line)?;
    }
    Ok(damage)
}

/// Where no stream has the name of the timed jobs: what may have taken it away.
fn nameless(log: &mut Log) -> Result<Vec<Damage>, Failure> {
    let segments = log.unreadable_segments()?.len();
    // Of no stream in particular, as its number is nobody's.
    let damage = log.stream(StreamId::ZERO, Seq(1), &mut |_| Ok(true))?;
    if segments > 0 {
        let message = format!("{segments} segments cannot be read; the timed jobs may be in them");
        return Err(Failure::Engine(runwal::Error::corrupt_data(
            message,
            "`runwal verify` tells what is damaged.",
        )));
    }
    Ok(damage)
}

/// Goes on behind a position for as long as somebody reads it.
fn follow(
    log: Log,
    mut stream: Option<StreamId>,
    end: Position,
    printer: &mut Printer<'_>,
    global: &Global,
) -> Done {
    let start = Start::After(Cursor::new(log.journal_id(), end));
    // Its name is looked up beside the read, which holds its own handle.
    let mut names = global.log()?.ok_or_else(|| Failure::Usage("the journal went away".to_owned()))?;
    let mut ticks = log.subscribe(start, Filter::default().kind(Kind::Tick))?;
    loop {
        let Some(delivery) = ticks.next()? else {
            printer.out.flush()?;
            while !ticks.wait(Duration::from_secs(1))? {}
            continue;
        };
        let record = match delivery.what {
            Entry::Record(record) => record,
            Entry::Damage(found) => {
                show::damage(&found, global.json());
                continue;
            }
        };
        if stream.is_none() {
            names.refresh()?;
            stream = names.ticks()?;
        }
        if stream == Some(record.stream)
            && let Some(line) = printer.line(&record)
        {
            printer.print(&line)?;
        }
    }
}
