//! `runwal log`

use crate::args::{Global, LevelName, LogArgs, moment};
use crate::{Done, Failure, complain, show};
use runwal::clock::Clock;
use runwal::engine::{Damage, Entry, Log, Records, RunInfo};
use runwal::error::Error;
use runwal::position::{Position, Seq, StreamId, Time};
use runwal::record::{Body, Kind, Level, Record, RunName};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::time::Duration;

/// How many records `-f` begins with.
const FOLLOW_LAST: usize = 10;
/// How many names of runs are remembered.
const MAX_NAMES: usize = 10_000;

struct Filter {
    run: Option<RunInfo>,
    /// Whether the index tells where its records are: not where a segment may have had any of them.
    by_index: bool,
    since: Option<Time>,
    until: Option<Time>,
    kinds: Vec<Kind>,
    level: Option<Level>,
    from: Position,
}

impl Filter {
    fn new(log: &mut Log, args: &LogArgs) -> Result<Self, Failure> {
        let now = runwal::clock::System.now();
        let time = |text: &Option<String>| text.as_deref().map(|at| moment(at, now)).transpose();
        let level = args.level.map(|level| match level {
            LevelName::Debug => Level::Debug,
            LevelName::Info => Level::Info,
            LevelName::Warn => Level::Warn,
            LevelName::Error => Level::Error,
        });
        let run = args.run.as_deref().map(|run| log.resolve(run)).transpose()?;
        let mut from = Position(1);
        if let Some(cursor) = &args.after_cursor {
            from = Position(log.position_of(&cursor.parse()?)?.0.saturating_add(1));
        } else if let Some(run) = &run {
            from = Position(run.stream.0);
        }
        Ok(Self {
            by_index: run.is_some() && log.unreadable_segments()?.is_empty(),
            run,
            since: time(&args.since)?,
            until: time(&args.until)?,
            kinds: args.kinds.clone(),
            level,
            from,
        })
    }

    fn fits(&self, record: &Record) -> bool {
        record.position >= self.from
            && self.run.as_ref().is_none_or(|run| run.stream == record.stream)
            && self.since.is_none_or(|since| record.time >= since)
            && self.until.is_none_or(|until| record.time <= until)
            && (self.kinds.is_empty()
                || record.body.known_kind().is_some_and(|kind| self.kinds.contains(&kind)))
            && self.level.is_none_or(|level| matches!(&record.body, Body::Lifecycle(e) if e.level >= level))
    }
}

/// Prints records, and remembers the names of their runs.
struct Printer<'g> {
    global: &'g Global,
    journal: [u8; 16],
    names: BTreeMap<StreamId, Option<RunName>>,
    damaged: bool,
}

impl Printer<'_> {
    fn line(&mut self, log: &mut Log, record: &Record) -> Result<String, Error> {
        if !self.names.contains_key(&record.stream) {
            if self.names.len() >= MAX_NAMES {
                self.names.clear();
            }
            let name = log.run_of(record.stream)?.map(|run| run.name);
            self.names.insert(record.stream, name);
        }
        Ok(self.rendered(record))
    }

    fn rendered(&self, record: &Record) -> String {
        let name = self.names.get(&record.stream).and_then(Option::as_ref);
        if self.global.json() {
            show::record_json(record, name, &self.journal)
        } else {
            show::record_text(record, name, self.global.colored())
        }
    }

    fn damage(&mut self, found: &Damage) {
        show::damage(found, self.global.json());
        self.damaged |= !found.accepted;
    }
}

pub(crate) fn log(global: &Global, args: &LogArgs) -> Done {
    let last =
        match args.last.as_deref() {
            None if args.follow => Some(FOLLOW_LAST),
            None | Some("all") => None,
            Some(text) => Some(text.parse().map_err(|_| {
                Failure::Usage(format!("\"{}\" is no number of records", text.escape_debug()))
            })?),
        };
    let Some(mut log) = global.log()? else { return Ok(0) };
    let filter = Filter::new(&mut log, args)?;
    let known = filter.run.iter().map(|run| (run.stream, Some(run.name.clone())));
    let names = known.collect();
    let mut printer = Printer { global, journal: log.journal_id(), names, damaged: false };
    let mut out = std::io::stdout().lock();
    let durable = log.durable();
    let told = match (last, filter.indexed()) {
        (Some(last), _) => print_last(&mut out, &mut log, &filter, &mut printer, (last, args.reverse))?,
        (None, _) if args.reverse => {
            print_last(&mut out, &mut log, &filter, &mut printer, (usize::MAX, true))?
        }
        (None, Some(stream)) => print_run(&mut out, &mut log, &filter, &mut printer, stream)?,
        (None, None) => print_all(&mut out, &mut log, &filter, &mut printer)?,
    };
    out.flush()?;
    if args.follow {
        let from = Position(durable.0.saturating_add(1));
        follow(&mut out, &mut log, &filter, &mut printer, (from, told))?;
    }
    drop(out);
    finish(&mut log, printer.damaged, global)
}

/// Prints what is there, as it is read.
fn print_all(
    out: &mut impl Write,
    log: &mut Log,
    filter: &Filter,
    printer: &mut Printer<'_>,
) -> Result<Vec<Damage>, Failure> {
    let mut told = Vec::new();
    let mut records = filter.records(log)?;
    while let Some(entry) = records.next()? {
        match entry {
            Entry::Damage(found) => {
                printer.damage(&found);
                told.push(found);
            }
            Entry::Record(record) if filter.fits(&record) => {
                let line = printer.line(records.log(), &record)?;
                writeln!(out, "{line}")?;
            }
            Entry::Record(_) => {}
        }
    }
    Ok(told)
}

/// The same of one run, without a look at what others have recorded beside it.
fn print_run(
    out: &mut impl Write,
    log: &mut Log,
    filter: &Filter,
    printer: &mut Printer<'_>,
    stream: StreamId,
) -> Result<Vec<Damage>, Failure> {
    let mut written = Ok(());
    let told = log.stream(stream, Seq(1), &mut |record| {
        if filter.fits(record) {
            written = writeln!(out, "{}", printer.rendered(record));
        }
        Ok(written.is_ok())
    })?;
    written?;
    told.iter().for_each(|found| printer.damage(found));
    Ok(told)
}

/// Prints the last records of what is there. Reads from near the end on, and from further away where that was not
/// enough of what is asked for.
fn print_last(
    out: &mut impl Write,
    log: &mut Log,
    filter: &Filter,
    printer: &mut Printer<'_>,
    (last, reverse): (usize, bool),
) -> Result<Vec<Damage>, Failure> {
    let end = match filter.indexed() {
        Some(stream) => log.end_of(stream)?.map_or(0, |(seq, _)| seq.0),
        None => log.durable().0,
    };
    let (mut held, mut width) = (Held::new(last), last as u64);
    let told = loop {
        let first = end.saturating_sub(width).saturating_add(1);
        held.records.clear();
        let told = match filter.indexed() {
            Some(stream) => log.stream(stream, Seq(first), &mut |record| {
                held.push(filter, record);
                Ok(true)
            })?,
            None => filter.hold_from(log, Position(first), &mut held)?,
        };
        let is_all =
            first == 1 || (filter.indexed().is_none() && first <= filter.from.0) || filter.begins_by_time();
        if held.records.len() >= last || is_all {
            break told;
        }
        width = width.max(64).saturating_mul(4);
    };
    told.iter().for_each(|found| printer.damage(found));
    if reverse {
        held.records.make_contiguous().reverse();
    }
    for record in held.records {
        let line = printer.line(log, &record)?;
        writeln!(out, "{line}")?;
    }
    Ok(told)
}

/// The last records that fit.
struct Held {
    most: usize,
    records: VecDeque<Record>,
}

impl Held {
    fn new(most: usize) -> Self {
        Self { most, records: VecDeque::new() }
    }

    fn push(&mut self, filter: &Filter, record: &Record) {
        if filter.fits(record) {
            self.records.push_back(record.clone());
        }
        if self.records.len() > self.most {
            self.records.pop_front();
        }
    }
}

impl Filter {
    /// The stream that is read by the index.
    fn indexed(&self) -> Option<StreamId> {
        self.run.as_ref().filter(|_| self.by_index).map(|run| run.stream)
    }

    /// Whether reading begins where the time is about to be, which no position tells.
    fn begins_by_time(&self) -> bool {
        self.since.is_some() && self.run.is_none() && self.from == Position(1)
    }

    fn records<'l>(&self, log: &'l mut Log) -> Result<Records<'l>, Error> {
        match self.since.filter(|_| self.begins_by_time()) {
            Some(since) => log.records_since(since),
            None => log.records(self.from),
        }
    }

    fn hold_from(&self, log: &mut Log, first: Position, held: &mut Held) -> Result<Vec<Damage>, Error> {
        let mut told = Vec::new();
        let mut records =
            if self.begins_by_time() { self.records(log)? } else { log.records(first.max(self.from))? };
        while let Some(entry) = records.next()? {
            match entry {
                Entry::Damage(found) => told.push(found),
                Entry::Record(record) => held.push(self, &record),
            }
        }
        Ok(told)
    }
}

/// Prints what comes from a position on, until the run ends or for ever.
fn follow(
    out: &mut impl Write,
    log: &mut Log,
    filter: &Filter,
    printer: &mut Printer<'_>,
    (from, told): (Position, Vec<Damage>),
) -> Result<(), Failure> {
    let mut ended = match &filter.run {
        Some(run) => log.has_ended(run.stream)?,
        None => false,
    };
    let mut records = log.records(from)?;
    while !ended {
        match records.next()? {
            Some(Entry::Damage(found)) if told.contains(&found) => {}
            Some(Entry::Damage(found)) => printer.damage(&found),
            Some(Entry::Record(record)) if filter.fits(&record) => {
                let line = printer.line(records.log(), &record)?;
                writeln!(out, "{line}")?;
            }
            Some(Entry::Record(_)) => {}
            None => {
                out.flush()?;
                if let Some(run) = &filter.run {
                    ended = records.log().has_ended(run.stream)?;
                }
                if !ended {
                    records.wait(Duration::from_secs(1))?;
                }
            }
        }
    }
    Ok(())
}

/// The exit code of a command that read to the end, with a word on stderr where it is not 0.
pub(crate) fn finish(log: &mut Log, damaged: bool, global: &Global) -> Done {
    if damaged {
        return Ok(3);
    }
    let torn = log.is_torn()? == Some(true);
    for found in log.damage_at_end() {
        show::damage(found, global.json());
    }
    if !log.damage_at_end().is_empty() {
        return Ok(3);
    }
    if !torn {
        return Ok(0);
    }
    if !global.quiet {
        complain("runwal: a write that was cut short stands at the end; `runwal recover` settles it");
    }
    Ok(4)
}
