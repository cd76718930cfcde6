//! `runwal log`

use crate::args::{Global, LevelName, LogArgs, moment};
use crate::{Done, Failure, complain, show};
use runwal::clock::Clock;
use runwal::engine::{Entry, Log, RunInfo};
use runwal::error::Error;
use runwal::position::{Position, StreamId, Time};
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
            run,
            since: time(&args.since)?,
            until: time(&args.until)?,
            kinds: args.kinds.clone(),
            level,
            from,
        })
    }

    fn fits(&self, record: &Record) -> bool {
        self.run.as_ref().is_none_or(|run| run.stream == record.stream)
            && self.since.is_none_or(|since| record.time >= since)
            && self.until.is_none_or(|until| record.time <= until)
            && (self.kinds.is_empty()
                || record.body.known_kind().is_some_and(|kind| self.kinds.contains(&kind)))
            && self.level.is_none_or(|level| matches!(&record.body, Body::Lifecycle(e) if e.level >= level))
    }
}

/// Prints records, and remembers the names of their runs.
struct Printer {
    json: bool,
    colored: bool,
    journal: [u8; 16],
    names: BTreeMap<StreamId, Option<RunName>>,
}

impl Printer {
    fn line(&mut self, log: &mut Log, record: &Record) -> Result<String, Error> {
        if !self.names.contains_key(&record.stream) {
            if self.names.len() >= MAX_NAMES {
                self.names.clear();
            }
            let name = log.run_of(record.stream)?.map(|run| run.name);
            self.names.insert(record.stream, name);
        }
        let name = self.names.get(&record.stream).and_then(Option::as_ref);
        Ok(if self.json {
            show::record_json(record, name, &self.journal)
        } else {
            show::record_text(record, name, self.colored)
        })
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
    // Names are looked up beside the read, which holds its own handle.
    let mut names = global.log()?.ok_or_else(|| Failure::Usage("the journal went away".to_owned()))?;
    let mut printer = Printer {
        json: global.json(),
        colored: global.colored(),
        journal: log.journal_id(),
        names: BTreeMap::new(),
    };
    let mut out = std::io::stdout().lock();
    let mut damaged = false;
    let mut ended = false;
    let mut held: VecDeque<String> = VecDeque::new();
    let mut caught_up = false;
    {
        let since_start = filter.since.filter(|_| filter.from == Position(1));
        let mut records = match since_start {
            Some(since) => log.records_since(since)?,
            None => log.records(filter.from)?,
        };
        loop {
            match records.next()? {
                Some(Entry::Damage(found)) => {
                    show::damage(&found, global.json());
                    damaged |= !found.accepted;
                }
                Some(Entry::Record(record)) => {
                    ended |= record.ends && filter.run.as_ref().is_some_and(|r| r.stream == record.stream);
                    if !filter.fits(&record) {
                        continue;
                    }
                    let line = printer.line(&mut names, &record)?;
                    let hold = args.reverse || last.is_some();
                    if caught_up || !hold {
                        writeln!(out, "{line}")?;
                    } else {
                        held.push_back(line);
                        if last.is_some_and(|last| held.len() > last) {
                            held.pop_front();
                        }
                    }
                }
                None => {
                    if !caught_up {
                        print_held(&mut out, &mut held, args.reverse, last)?;
                        caught_up = true;
                    }
                    out.flush()?;
                    if !args.follow || ended {
                        break;
                    }
                    if records.wait(Duration::from_secs(1))? {
                        names.refresh()?;
                    }
                }
            }
        }
    }
    out.flush()?;
    drop(out);
    finish(&mut log, damaged, global)
}

fn print_held(
    out: &mut impl Write,
    held: &mut VecDeque<String>,
    reverse: bool,
    last: Option<usize>,
) -> std::io::Result<()> {
    if reverse {
        let count = last.unwrap_or(held.len());
        held.iter().rev().take(count).try_for_each(|line| writeln!(out, "{line}"))?;
        held.clear();
        return Ok(());
    }
    held.drain(..).try_for_each(|line| writeln!(out, "{line}"))
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
