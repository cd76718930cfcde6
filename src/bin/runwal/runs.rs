//! `runwal runs`

use crate::args::{Global, RunsArgs, moment};
use crate::{Done, Failure, show};
use runwal::clock::Clock;
use runwal::engine::Entry;
use runwal::position::{Position, StreamId};
use runwal::projection::RunFold;
use runwal::record::{Status, escape_line};
use std::collections::BTreeMap;
use std::io::Write;

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
    let mut damaged = false;
    let mut folds: BTreeMap<StreamId, RunFold> = BTreeMap::new();
    {
        // One pass over everything: what is damaged is met, whosever it was.
        let mut records = log.records(Position(1))?;
        while let Some(entry) = records.next()? {
            match entry {
                Entry::Damage(found) => {
                    show::damage(&found, global.json());
                    damaged |= !found.accepted;
                }
                Entry::Record(record) => {
                    let fold = folds.entry(record.stream).or_insert_with(RunFold::for_state);
                    fold.apply(&record, &mut |_| {});
                }
            }
        }
    }
    let fits = |fold: &RunFold| {
        fold.request().is_some_and(|request| {
            args.task.as_ref().is_none_or(|task| request.name.task.as_str() == task)
                && status.is_none_or(|status| fold.state().status == Some(status))
                && since.is_none_or(|since| fold.state().started_at.is_some_and(|at| at >= since))
                && args.labels.iter().all(|label| request.labels.contains(label))
        })
    };
    let mut shown: Vec<RunFold> = folds.into_values().filter(fits).collect();
    if let Some(last) = args.last {
        shown.drain(..shown.len().saturating_sub(last));
    }
    let mut out = std::io::stdout().lock();
    if global.json() {
        for fold in &shown {
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

fn table(out: &mut impl Write, runs: &[RunFold]) -> std::io::Result<()> {
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
