//! `runwal runs`

use crate::args::{Global, RunsArgs, moment};
use crate::{Done, Failure, show};
use runwal::clock::Clock;
use runwal::engine::{Damage, Entry, Log};
use runwal::error::Error;
use runwal::position::{Position, StreamId, Time};
use runwal::projection::RunFold;
use runwal::record::{Status, escape_line};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

/// How many runs are read together.
const AT_ONCE: usize = 1_024;

pub(crate) fn runs(global: &Global, args: &RunsArgs) -> Done {
    let status = match &args.status {
        Some(word) => Some(Status::parse(word).ok_or_else(|| {
            let known: Vec<_> = Status::ALL.iter().map(|s| s.word()).collect();
            Failure::Usage(format!("\"{}\" is no status; they are {}", word.escape_debug(), known.join(", ")))
        })?),
        None => None,
    };
    let since = args.since.as_deref().map(|at| moment(at, runwal::clock::System.now())).transpose()?;
    let Some(mut log) = global.log()? else { return Ok(0) };
    let fits = |fold: &RunFold| {
        fold.request().is_some_and(|request| {
            args.task.as_ref().is_none_or(|task| request.name.task.as_str() == task)
                && status.is_none_or(|status| fold.state().status == Some(status))
                && since.is_none_or(|since| fold.state().started_at.is_some_and(|at| at >= since))
                && args.labels.iter().all(|label| request.labels.contains(label))
        })
    };
    let mut found = Found::default();
    let by_request = args.last.is_some() || args.task.is_some() || !args.labels.is_empty();
    // What is in a segment that cannot be read is told by reading past it.
    if (since.is_none() && !by_request) || !log.unreadable_segments()?.is_empty() {
        found.add_all(&mut log, &fits)?;
    } else {
        let streams = match since {
            Some(since) => found.recent(&mut log, since)?,
            None => found.asked_for(&mut log, args, status.is_some())?,
        };
        found.add_newest(&mut log, &streams, args.last, &fits)?;
    }
    found.keep(args.last);
    let damaged = found.damage.iter().any(|met| !met.accepted);
    found.damage.iter().for_each(|met| show::damage(met, global.json()));
    let shown: Vec<&RunFold> = found.runs.values().collect();
    let mut out = std::io::stdout().lock();
    if global.json() {
        for fold in shown {
            let state = fold.state().to_compact(fold.request());
            let counts = fold.counts();
            let open = state.strip_suffix('}').unwrap_or(&state);
            writeln!(out, "{open},\"records\":{},\"bytes\":{}}}", counts.records, counts.bytes)?;
        }
    } else {
        table(&mut out, &shown)?;
    }
    out.flush()?;
    crate::log::finish(&mut log, damaged, global)
}

/// The runs that are to be shown, and the damage met on the way to them.
#[derive(Default)]
struct Found {
    runs: BTreeMap<StreamId, RunFold>,
    damage: Vec<Damage>,
}

impl Found {
    /// In one pass over everything: what is damaged is met, whosever it was.
    fn add_all(&mut self, log: &mut Log, fits: &dyn Fn(&RunFold) -> bool) -> Result<(), Error> {
        let mut records = log.records(Position(1))?;
        while let Some(entry) = records.next()? {
            match entry {
                Entry::Damage(met) => self.damage.push(met),
                Entry::Record(record) => {
                    let fold = self.runs.entry(record.stream).or_insert_with(RunFold::for_state);
                    fold.apply(&record, &mut |_| {});
                }
            }
        }
        self.runs.retain(|_, fold| fits(fold));
        Ok(())
    }

    /// Those with records of that time or later, the newest first: whatever began then, and has records of that, is
    /// among them.
    fn recent(&mut self, log: &mut Log, since: Time) -> Result<Vec<StreamId>, Error> {
        let (mut recent, mut records) = (BTreeSet::new(), log.records_since(since)?);
        while let Some(entry) = records.next()? {
            match entry {
                Entry::Damage(met) => self.damage.push(met),
                Entry::Record(record) => drop(recent.insert(record.stream)),
            }
        }
        let mut runs = Vec::new();
        for stream in recent.into_iter().rev() {
            runs.extend(log.run_of(stream)?.map(|run| run.stream));
        }
        Ok(runs)
    }

    /// Those of which the request says that they may be meant, the newest first; more than are shown only where
    /// something else decides too.
    fn asked_for(&mut self, log: &mut Log, args: &RunsArgs, more: bool) -> Result<Vec<StreamId>, Error> {
        let most = args.last.filter(|_| !more).unwrap_or(usize::MAX);
        let mut asked = Vec::new();
        let damage = log.requests(&mut |stream, request| {
            if asked.len() < most
                && args.task.as_ref().is_none_or(|task| request.name.task.as_str() == task)
                && args.labels.iter().all(|label| request.labels.contains(label))
            {
                asked.push(stream);
            }
            Ok(asked.len() < most)
        })?;
        self.damage.extend(damage);
        Ok(asked)
    }

    /// The last of these that fit, which come the newest first.
    fn add_newest(
        &mut self,
        log: &mut Log,
        streams: &[StreamId],
        last: Option<usize>,
        fits: &dyn Fn(&RunFold) -> bool,
    ) -> Result<(), Error> {
        let last = last.unwrap_or(usize::MAX);
        for some in streams.chunks(AT_ONCE) {
            if self.runs.len() >= last {
                break;
            }
            let (folds, damage) = log.folds(some)?;
            self.damage.extend(damage);
            self.runs.extend(folds.into_iter().filter(|(_, fold)| fits(fold)));
        }
        Ok(())
    }

    /// Keeps the last runs, and of damage each once.
    fn keep(&mut self, last: Option<usize>) {
        while last.is_some_and(|last| self.runs.len() > last) {
            self.runs.pop_first();
        }
        self.damage.sort_by_key(|met| (met.segment, met.offset));
        self.damage.dedup_by_key(|met| (met.segment, met.offset));
    }
}

fn table(out: &mut impl Write, runs: &[&RunFold]) -> std::io::Result<()> {
    const HEAD: [&str; 10] =
        ["RUN", "TASK", "STEP", "STATUS", "STARTED", "DURATION", "EXIT", "RECORDS", "BYTES", "COMMAND"];
    const MAX_COMMAND: usize = 40;
    let mut rows = vec![HEAD.map(str::to_owned)];
    for fold in runs {
        let (state, counts) = (fold.state(), fold.counts());
        let Some(request) = fold.request() else { continue };
        let command: Vec<_> = request.command.iter().map(|arg| String::from_utf8_lossy(arg)).collect();
        let duration = match (state.started_at, state.finished_at) {
            (Some(from), Some(to)) => {
                let ms = to.millis_since(from);
                format!("{}.{:03}s", ms / 1000, ms % 1000)
            }
            _ => "-".to_owned(),
        };
        let exit = match (state.exit_code, &state.signal) {
            (Some(code), _) => code.to_string(),
            (None, Some(signal)) => escape_line(signal),
            (None, None) => "-".to_owned(),
        };
        rows.push([
            request.name.run.to_string(),
            request.name.task.to_string(),
            request.step.to_string(),
            state.status.map_or("-", Status::word).to_owned(),
            state.started_at.map_or_else(|| "-".to_owned(), runwal::position::Time::to_millis_string),
            duration,
            exit,
            counts.records.to_string(),
            counts.bytes.to_string(),
            show::shortened(&escape_line(&command.join(" ")), MAX_COMMAND),
        ]);
    }
    show::table(out, &rows)
}
