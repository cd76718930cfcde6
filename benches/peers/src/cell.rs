//! What a process of one measurement does.

use crate::append::append;
use crate::engines::{Engine, Kind, Setup};
use crate::event::{Content, Events, Layout, Random, sequence_of};
use crate::workload::{EVENT_LEN, Workload};
use crate::{Args, Result};
use rustix::process::{Signal, getpid, kill_process};
use std::fs::File;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many single appends a process makes before it is killed.
const BEFORE_KILL: u64 = 256;

/// How many single appends are measured in a journal of some size.
const FLAT_APPENDS: u64 = 2000;

/// Room for what is appended to a journal after it was filled.
const SPARE_EVENTS: u64 = 1 << 16;

/// One process of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Cell {
    Append,
    Fill,
    Open,
    Scan,
    Read,
    /// Appends, and kills itself.
    Kill,
    /// Opens and appends.
    Flat,
}

/// Does what a process of one measurement does, and prints its figures, a name and a number a line.
pub(crate) fn run(cell: Cell, args: &Args) -> Result<()> {
    let dir = args.dir.as_deref().ok_or("no directory was given")?;
    let (Some(kind), Some(workload)) = (args.engine.first().copied(), args.workload.first().copied()) else {
        return Err("an engine and a workload are needed".into());
    };
    let content = if workload == Workload::W6b { Content::Json } else { Content::Random };
    let layout = Layout::new(args.events, args.streams, EVENT_LEN);
    let setup = Setup { events: layout.events() + SPARE_EVENTS, len: EVENT_LEN, durable: false };
    let mut events = Events::new(content, EVENT_LEN, 1);
    match cell {
        Cell::Append => append(workload, kind, dir, args)?,
        Cell::Fill => {
            let mut engine = kind.open(dir, &setup)?;
            engine.begin(0..layout.streams)?;
            settle(dir)?;
            let begun = Instant::now();
            engine.fill(&layout, &mut events)?;
            print("figure", layout.events() as f64 / begun.elapsed().as_secs_f64());
            engine.close()?;
        }
        Cell::Open => {
            // What was reserved is there.
            let kind = if kind == Kind::RunwalReserved { Kind::Runwal } else { kind };
            let (engine, took) = timed(|| kind.open(dir, &setup))?;
            print("figure", millis(took));
            let acknowledged = layout.events() + BEFORE_KILL;
            if workload == Workload::W4Kill && engine.scan()?.events < acknowledged {
                return Err(format!("there are not {acknowledged} events after the kill").into());
            }
            engine.close()?;
        }
        Cell::Scan => {
            let engine = kind.open(dir, &setup)?;
            let (seen, took) = timed(|| engine.scan())?;
            if seen != layout.seen() {
                return Err(format!("{seen:?} was scanned, and not {:?}", layout.seen()).into());
            }
            print("figure", seen.events as f64 / took.as_secs_f64());
            engine.close()?;
        }
        Cell::Read => {
            let engine = kind.open(dir, &setup)?;
            if let Some(rate) = read(&*engine, &layout, args.seconds)? {
                print("figure", rate);
            }
            engine.close()?;
        }
        Cell::Kill => {
            let mut engine = kind.open(dir, &setup)?;
            engine.begin(layout.streams..layout.streams + 1)?;
            append_until_killed(&*engine, layout.streams, &mut events)?;
        }
        Cell::Flat => {
            let (mut engine, took) = timed(|| kind.open(dir, &setup))?;
            // The same journal is opened in every round.
            let stream = layout.streams + args.round;
            let ((), first) = timed(|| {
                engine.begin(stream..stream + 1)?;
                append_to(&*engine, stream, 1..=1, &mut events)
            })?;
            print("figure", millis(took));
            print("open_and_append_ms", millis(took + first));
            let ((), took) = timed(|| append_to(&*engine, stream, 2..=1 + FLAT_APPENDS, &mut events))?;
            print("append_us", millis(took) * 1e3 / FLAT_APPENDS as f64);
            engine.close()?;
        }
    }
    print("peak_mib", peak_mib()?);
    Ok(())
}

/// Prints a figure for the parent.
pub(crate) fn print(name: &str, value: f64) {
    println!("{name} {value}");
}

/// Has the disk finish what was written before, so that it does not count.
pub(crate) fn settle(dir: &Path) -> Result<()> {
    Ok(rustix::fs::syncfs(File::open(dir)?)?)
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let begun = Instant::now();
    let done = work()?;
    Ok((done, begun.elapsed()))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The most memory this process has had.
fn peak_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().next().ok_or("no figure")?.parse::<f64>()? / 1024.0)
}

fn append_to(
    engine: &dyn Engine,
    stream: u32,
    mut seqs: RangeInclusive<u64>,
    events: &mut Events,
) -> Result<()> {
    let mut writer = engine.writer()?;
    seqs.try_for_each(|seq| writer.append(stream, seq, events.make(seq)))
}

/// Appends, and has this process killed when enough is acknowledged: whenever that happens to be, which is in the
/// middle of a commit most often.
fn append_until_killed(engine: &dyn Engine, stream: u32, events: &mut Events) -> Result<()> {
    let mut writer = engine.writer()?;
    let acknowledged = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while acknowledged.load(Ordering::SeqCst) < BEFORE_KILL {
                std::thread::yield_now();
            }
            kill_process(getpid(), Signal::KILL)
        });
        (1..=SPARE_EVENTS).try_for_each(|seq| {
            writer.append(stream, seq, events.make(seq))?;
            acknowledged.store(seq, Ordering::SeqCst);
            Ok(())
        })
    })
}

/// Single events at random places, for so long.
fn read(engine: &dyn Engine, layout: &Layout, seconds: f64) -> Result<Option<f64>> {
    let Some(mut reader) = engine.reader(layout)? else { return Ok(None) };
    let (mut random, mut count) = (Random::new(5), 0_u64);
    let begun = Instant::now();
    while begun.elapsed().as_secs_f64() < seconds {
        for _ in 0..16 {
            let stream = u32::try_from(random.next() % u64::from(layout.streams))?;
            let seq = random.next() % layout.per_stream + 1;
            let mut found = None;
            reader.read(stream, seq, &mut |event| found = sequence_of(event))?;
            if found != Some(seq) {
                return Err(format!("{found:?} was read, and not {seq}").into());
            }
            count += 1;
        }
    }
    Ok(Some(count as f64 / begun.elapsed().as_secs_f64()))
}
