//! The parent: starts a process for each measurement, the engines in turn, and collects what they print.

use crate::cell::Cell;
use crate::engines::Kind;
use crate::event::Layout;
use crate::table::{FIGURE, Sample};
use crate::turns::Turner;
use crate::workload::{EVENT_LEN, Workload};
use crate::{Args, Result};
use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long one engine appends before it is the next one's turn.
const TURN: Duration = Duration::from_millis(100);

/// How many bytes an event takes in the limit's log: what the sizes of `flat` are reckoned with.
const FRAME_LEN: u64 = EVENT_LEN as u64 + 17;

/// More than an engine writes in a turn.
const MAX_TURN_LEN: u64 = 128 << 20;

/// What is written beyond that is mostly on the disk by then, and its memory free again.
const MAX_WARMED_LEN: u64 = 4 << 30;

/// What was measured, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) samples: Vec<Sample>,
    pub(crate) failures: Vec<String>,
}

impl Results {
    fn add(
        &mut self,
        round: u32,
        (workload, size_mb): (Workload, Option<u64>),
        kind: Kind,
        figures: Vec<(String, f64)>,
    ) {
        let sample = |(name, value)| Sample { round, workload, size_mb, kind, name, value };
        self.samples.extend(figures.into_iter().map(sample));
    }

    /// One engine that fails does not end the measurement of the others.
    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.failures.push(error.to_string())).ok()
    }
}

/// Where the journals are.
fn root() -> PathBuf {
    std::env::var_os("RUNWAL_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into)
}

/// A new directory there, which is removed when it is dropped.
pub(crate) fn fresh_dir() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("runwal-peers-").tempdir_in(root())?)
}

/// The command line of one measurement.
pub(crate) fn cell_args(args: &Args, cell: Cell, workload: Workload, kind: Kind, dir: &Path) -> Vec<String> {
    use clap::ValueEnum;
    // The other program may know nothing of others.
    let kind = if kind == Kind::RunwalOther { Kind::Runwal } else { kind };
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let mut line = vec!["--cell".to_owned(), name(cell.to_possible_value())];
    let mut option = |name: &str, value: String| line.extend([format!("--{name}"), value]);
    option("workload", workload.word().to_owned());
    option("engine", kind.word().to_owned());
    option("dir", dir.display().to_string());
    option("events", args.events.to_string());
    option("streams", args.streams.to_string());
    option("seconds", args.seconds.to_string());
    option("warm-up", args.warm_up.to_string());
    option("round", args.round.to_string());
    if let Some(appends) = args.appends {
        option("appends", appends.to_string());
    }
    line
}

/// What is run for an engine.
fn program(args: &Args, kind: Kind) -> Result<PathBuf> {
    match (kind, &args.other) {
        (Kind::RunwalOther, Some(other)) => Ok(other.clone()),
        _ => Ok(std::env::current_exe()?),
    }
}

/// Has the page cache ready for as much as a measurement writes. A virtual machine may have given the memory that
/// it did not use back to its host, and each page of it takes ten times as long then: that would be charged to
/// whoever writes new files, and not to whoever wrote them before.
fn warm_up_memory(len: u64) -> Result<()> {
    let mut file = tempfile::tempfile_in(root())?;
    let piece = vec![1; 1 << 20];
    (0..len >> 20).try_for_each(|_| Ok(file.write_all(&piece)?))
}

fn run(args: &Args, cell: Cell, workload: Workload, kind: Kind, dir: &Path) -> Result<Vec<(String, f64)>> {
    eprintln!("{} {} {cell:?}", workload.word(), kind.word());
    match cell {
        Cell::Fill => warm_up_memory((args.events * 3 * EVENT_LEN as u64).min(MAX_WARMED_LEN))?,
        Cell::Append | Cell::Open | Cell::Scan | Cell::Read | Cell::Kill | Cell::Flat => {}
    }
    let line = cell_args(args, cell, workload, kind, dir);
    let output = Command::new(program(args, kind)?).args(line).stderr(Stdio::inherit()).output()?;
    let killed = output.status.signal() == Some(9);
    let as_wanted = if cell == Cell::Kill { killed } else { output.status.success() };
    if !as_wanted {
        let (workload, kind) = (workload.word(), kind.word());
        return Err(format!("{workload} {kind}: {cell:?} ended with {}", output.status).into());
    }
    figures(&String::from_utf8(output.stdout)?)
}

/// What a process of one measurement printed.
pub(crate) fn figures(text: &str) -> Result<Vec<(String, f64)>> {
    let figure = |line: &str| {
        let (name, value) = line.split_once(' ').ok_or_else(|| format!("not a figure: {line}"))?;
        Ok((name.to_owned(), value.parse()?))
    };
    text.lines().map(figure).collect()
}

/// All rounds of all workloads that are asked for.
pub(crate) fn measure(args: &Args) -> Result<Results> {
    let mut results = Results::default();
    let wanted = args.workloads();
    for round in 0..args.rounds {
        let args = Args { round, ..args.clone() };
        for workload in wanted.iter().copied().filter(|workload| workload.load().is_some()) {
            measure_appends(&args, workload, &mut results)?;
        }
        let filled = [Workload::W3, Workload::W4, Workload::W4Kill, Workload::W5, Workload::W6, Workload::W7];
        let wanted_of_filled: Vec<_> = filled.into_iter().filter(|w| wanted.contains(w)).collect();
        for kind in args.engines().into_iter().filter(|kind| Workload::W3.suits(*kind)) {
            if !wanted_of_filled.is_empty() {
                let measured = measure_filled(&args, kind, &wanted_of_filled, &mut results);
                results.note(measured);
            }
            if wanted.contains(&Workload::W6b) && Workload::W6b.suits(kind) {
                let measured = measure_json(&args, kind, &mut results);
                results.note(measured);
            }
        }
    }
    if wanted.contains(&Workload::Flat) {
        measure_flat(args, &mut results)?;
    }
    Ok(results)
}

/// Single appends of all engines, in turns.
fn measure_appends(args: &Args, workload: Workload, results: &mut Results) -> Result<()> {
    let mut running = Vec::new();
    for kind in args.engines().into_iter().filter(|kind| workload.suits(*kind)) {
        let dir = fresh_dir()?;
        let turner = begin(args, workload, kind, dir.path());
        running.extend(results.note(turner).map(|turner| (kind, dir, turner)));
    }
    let turns = |seconds: f64| (Duration::from_secs_f64(seconds).as_nanos() / TURN.as_nanos()).max(1);
    let not_counted = if args.warm_up > 0.0 { turns(args.warm_up) } else { 0 };
    for nth in 0..not_counted + turns(args.seconds) {
        warm_up_memory((running.len() as u64 * MAX_TURN_LEN).min(MAX_WARMED_LEN))?;
        let mut still = Vec::with_capacity(running.len());
        for (kind, dir, mut turner) in running {
            let turn = turner.turn(TURN, nth >= not_counted).map_err(|error| named(workload, kind, &*error));
            still.extend(results.note(turn).map(|()| (kind, dir, turner)));
        }
        // Another one is the first in the next.
        let first = usize::from(still.len() > 1);
        still.rotate_left(first);
        running = still;
    }
    for (kind, _, turner) in running {
        let ended = turner.end().and_then(|printed| figures(&printed));
        let ended = ended.map_err(|error| named(workload, kind, &*error));
        if let Some(figures) = results.note(ended) {
            results.add(args.round, (workload, None), kind, figures);
        }
    }
    Ok(())
}

/// Starts a process that appends in turns.
fn begin(args: &Args, workload: Workload, kind: Kind, dir: &Path) -> Result<Turner> {
    eprintln!("{} {}", workload.word(), kind.word());
    let child = Command::new(program(args, kind)?)
        .args(cell_args(args, Cell::Append, workload, kind, dir))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    Turner::new(child).map_err(|error| named(workload, kind, &*error))
}

fn named(workload: Workload, kind: Kind, error: &dyn Error) -> Box<dyn Error + Send + Sync> {
    format!("{} {}: {error}", workload.word(), kind.word()).into()
}

/// Fills a journal, and does with it whatever is wanted.
fn measure_filled(args: &Args, kind: Kind, wanted: &[Workload], results: &mut Results) -> Result<()> {
    let dir = fresh_dir()?;
    let round = args.round;
    for workload in wanted_with_fill(wanted) {
        if !workload.suits(kind) {
            continue;
        }
        let cell = match workload {
            Workload::W3 => Cell::Fill,
            Workload::W5 => Cell::Scan,
            Workload::W7 => Cell::Read,
            Workload::W6 => {
                let figures = sizes(dir.path(), events(args))?;
                results.add(round, (workload, None), kind, figures);
                continue;
            }
            Workload::W4Kill => {
                run(args, Cell::Kill, workload, kind, dir.path())?;
                Cell::Open
            }
            _ => Cell::Open,
        };
        let figures = run(args, cell, workload, kind, dir.path())?;
        if wanted.contains(&workload) {
            results.add(round, (workload, None), kind, figures);
        }
    }
    Ok(())
}

/// In the order in which they do not disturb each other: the size first, the kill last.
fn wanted_with_fill(wanted: &[Workload]) -> impl Iterator<Item = Workload> {
    let order = [Workload::W3, Workload::W6, Workload::W4, Workload::W5, Workload::W7, Workload::W4Kill];
    order.into_iter().filter(|workload| *workload == Workload::W3 || wanted.contains(workload))
}

fn measure_json(args: &Args, kind: Kind, results: &mut Results) -> Result<()> {
    let dir = fresh_dir()?;
    run(args, Cell::Fill, Workload::W6b, kind, dir.path())?;
    let figures = sizes(dir.path(), events(args))?;
    results.add(args.round, (Workload::W6b, None), kind, figures);
    Ok(())
}

/// Journals of several sizes, each made once and opened in every round.
fn measure_flat(args: &Args, results: &mut Results) -> Result<()> {
    let kinds = if args.engine.is_empty() { vec![Kind::Limit, Kind::Runwal] } else { args.engine.clone() };
    for size_mb in &args.sizes {
        let args = Args { events: size_mb * 1_000_000 / FRAME_LEN, ..args.clone() };
        let mut journals = Vec::new();
        for kind in kinds.iter().copied().filter(|kind| Workload::Flat.suits(*kind)) {
            let dir = fresh_dir()?;
            let filled = run(&args, Cell::Fill, Workload::Flat, kind, dir.path());
            if results.note(filled).is_some() {
                journals.push((kind, dir));
            }
        }
        for round in 0..args.rounds {
            let args = Args { round, ..args.clone() };
            for (kind, dir) in &journals {
                let figures = run(&args, Cell::Flat, Workload::Flat, *kind, dir.path());
                if let Some(figures) = results.note(figures) {
                    results.add(round, (Workload::Flat, Some(*size_mb)), *kind, figures);
                }
            }
        }
    }
    Ok(())
}

fn events(args: &Args) -> u64 {
    Layout::new(args.events, args.streams, EVENT_LEN).events()
}

/// Bytes per event in all files below a directory, and the bytes that the file system gave them.
fn sizes(dir: &Path, events: u64) -> Result<Vec<(String, f64)>> {
    let (mut used, mut allocated) = (0, 0);
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                dirs.push(entry.path());
            } else {
                used += used_len(&File::open(entry.path())?)?;
                allocated += metadata.blocks() * 512;
            }
        }
    }
    let per_event = |bytes: u64| bytes as f64 / events as f64;
    Ok(vec![(FIGURE.to_owned(), per_event(used)), ("allocated".to_owned(), per_event(allocated))])
}

/// The length of a file without the zeros at its end: room that was prepared is not used yet.
fn used_len(file: &File) -> Result<u64> {
    let mut piece = vec![0; 1 << 20];
    let mut end = file.metadata()?.len();
    while end > 0 {
        let len = usize::try_from(end)?.min(piece.len());
        let start = end - len as u64;
        file.read_exact_at(&mut piece[..len], start)?;
        if let Some(last) = piece[..len].iter().rposition(|byte| *byte != 0) {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_end_are_not_used() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(used_len(&file).unwrap(), 0);
        file.set_len(3 << 20).unwrap();
        assert_eq!(used_len(&file).unwrap(), 0);
        file.write_all_at(b"x", (1 << 20) - 1).unwrap();
        assert_eq!(used_len(&file).unwrap(), 1 << 20);
    }

    #[test]
    fn figures_are_names_with_numbers() {
        let read = figures("figure 12.5\npeak_mib 3\n").unwrap();
        assert_eq!(read, [("figure".to_owned(), 12.5), ("peak_mib".to_owned(), 3.0)]);
        assert!(figures("panicked").is_err());
    }
}
