//! Appends that are durable one by one, by threads, by tickets and by tasks.

use crate::cell::{print, settle};
use crate::engines::runwal::{Runwal, chunk};
use crate::engines::{Engine, Kind, Setup};
use crate::event::{Content, Events};
use crate::table::percentile;
use crate::turns::Turns;
use crate::workload::{EVENT_LEN, Load, Workload};
use crate::{Args, Result};
use ::runwal::engine::Conditions;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many are in flight with `w2-async` and `w2-tickets`.
const IN_FLIGHT: usize = 64;

impl Load {
    fn setup(&self, args: &Args) -> Setup {
        let seconds = (args.seconds + args.warm_up).max(0.1);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few million")]
        let events = args.appends.unwrap_or((seconds * self.rate_limit as f64) as u64);
        Setup { events: events.max(u64::from(self.writers)), len: self.len, durable: true }
    }
}

/// Measures appends for the time that is asked for, and prints the figures.
pub(crate) fn append(workload: Workload, kind: Kind, dir: &Path, args: &Args) -> Result<()> {
    let load = workload.load().ok_or("not a workload of single appends")?;
    let setup = load.setup(args);
    let (mut took_ns, elapsed) = if kind.is_runwal() && workload == Workload::W2Async {
        append_async(kind, dir, &load, &setup, args)?
    } else if kind.is_runwal() && workload == Workload::W2Tickets {
        let mut engine = Runwal::open_as(kind, dir, &setup)?;
        engine.begin(0..load.streams)?;
        settle(dir)?;
        let threads = Load { writers: 2, ..load };
        let done = in_threads(&threads, &setup, args, |writer, pace| {
            let mine: Vec<u32> = (writer..load.streams).step_by(2).collect();
            append_tickets(&engine, &mine, pace)
        })?;
        Box::new(engine).close()?;
        done
    } else {
        let mut engine = kind.open(dir, &setup)?;
        engine.begin(0..load.streams)?;
        settle(dir)?;
        let done =
            in_threads(&load, &setup, args, |writer, pace| append_one_by_one(&*engine, &load, writer, pace))?;
        engine.close()?;
        done
    };
    took_ns.sort_unstable();
    print("figure", took_ns.len() as f64 / elapsed.as_secs_f64());
    print("appends", took_ns.len() as f64);
    // Tickets that are in flight while others have their turns would count those.
    let shares: &[_] =
        if workload == Workload::W2Tickets { &[] } else { &[("p50_us", 0.5), ("p99_us", 0.99)] };
    for (name, share) in shares.iter().copied() {
        print(name, percentile(&took_ns, share).map_or(0.0, |ns| ns as f64 / 1e3));
    }
    Ok(())
}

/// What a writer appends, and when.
#[derive(Clone, Copy)]
struct Pace<'p> {
    turns: &'p Turns,
    /// How many appends one writer makes at most.
    most: u64,
    len: usize,
    seed: u64,
}

/// How long each append took that counts, in ns.
type Measured = Vec<u64>;

impl Pace<'_> {
    /// Calls `append` with 1, 2, 3 and so on until it is over. It answers with how long the append took
    /// that came to its end, if one did.
    fn run(&self, mut append: impl FnMut(u64) -> Result<Option<u64>>) -> Result<Measured> {
        let mut all = Vec::with_capacity(1 << 16);
        for nth in 1..=self.most {
            if !self.turns.pass() {
                break;
            }
            let took_ns = append(nth)?;
            if self.turns.counts() {
                all.extend(took_ns);
            }
        }
        Ok(all)
    }
}

/// Runs writers in threads, each told its number. Answers with all that was measured, and how long that
/// took.
fn in_threads(
    load: &Load,
    setup: &Setup,
    args: &Args,
    writer: impl Fn(u32, Pace<'_>) -> Result<Measured> + Sync,
) -> Result<(Measured, Duration)> {
    let turns = Turns::new(load.writers as usize);
    let pace = |number: u32| Pace {
        turns: &turns,
        most: setup.events / u64::from(load.writers),
        len: load.len,
        seed: u64::from(number) + 1,
    };
    let begun = Instant::now();
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.writers)
            .map(|number| {
                let (writer, pace, entered) = (&writer, pace(number), turns.enter());
                scope.spawn(move || {
                    let _entered = entered;
                    writer(number, pace)
                })
            })
            .collect();
        let told = be_told(&turns, args);
        let results: Vec<_> =
            threads.into_iter().map(|thread| thread.join().map_err(|_| "a writer panicked")).collect();
        told.map(|()| results)
    })?;
    let mut all = Vec::new();
    for result in results {
        all.extend(result??);
    }
    Ok((all, if args.appends.is_some() { begun.elapsed() } else { turns.counted() }))
}

/// Has the writers append in turns as the parent says, or all that they are to append.
fn be_told(turns: &Turns, args: &Args) -> Result<()> {
    if args.appends.is_some() {
        turns.run_freely();
        return Ok(());
    }
    turns.obey(std::io::stdin().lock(), std::io::stdout().lock())
}

/// A writer that goes round the streams that are its own.
fn append_one_by_one(engine: &dyn Engine, load: &Load, number: u32, pace: Pace<'_>) -> Result<Measured> {
    let mut events = Events::new(Content::Random, pace.len, pace.seed);
    let mine: Vec<u32> = (number..load.streams).step_by(load.writers as usize).collect();
    let mut writer = engine.writer()?;
    pace.run(|nth| {
        let (round, turn) = ((nth - 1) / mine.len() as u64, (nth - 1) % mine.len() as u64);
        let event = events.make(round + 1);
        let begun = Instant::now();
        writer.append(mine[usize::try_from(turn)?], round + 1, event)?;
        Ok(Some(nanos(begun)))
    })
}

/// A thread with half of the tickets: hands the next one in as soon as the oldest is durable.
fn append_tickets(engine: &Runwal, mine: &[u32], pace: Pace<'_>) -> Result<Measured> {
    let mut events = Events::new(Content::Random, pace.len, pace.seed);
    let mut flying = VecDeque::with_capacity(IN_FLIGHT / 2);
    pace.run(|nth| {
        let place = usize::try_from(nth)? % mine.len();
        flying.push_back((engine.submit(mine[place], events.make(nth))?, Instant::now()));
        if flying.len() < IN_FLIGHT / 2 {
            return Ok(None);
        }
        let Some((oldest, begun)) = flying.pop_front() else { return Ok(None) };
        oldest.wait()?;
        Ok(Some(nanos(begun)))
    })
}

fn append_async(
    kind: Kind,
    dir: &Path,
    load: &Load,
    setup: &Setup,
    args: &Args,
) -> Result<(Measured, Duration)> {
    let mut engine = Runwal::open_as(kind, dir, setup)?;
    engine.begin(0..load.streams)?;
    settle(dir)?;
    let streams = (0..load.streams).map(|stream| engine.stream(stream)).collect::<Result<Vec<_>>>()?;
    let handle = engine.asynchronous()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let most = setup.events / streams.len() as u64;
    let turns = Arc::new(Turns::new(streams.len()));
    let begun = Instant::now();
    let tasks: Vec<_> = (1..)
        .zip(streams)
        .map(|(seed, stream)| {
            let (handle, turns) = (handle.clone(), Arc::clone(&turns));
            let mut events = Events::new(Content::Random, EVENT_LEN, seed);
            runtime.spawn(async move {
                let _entered = turns.enter();
                let mut all = Vec::new();
                for seq in 1..=most {
                    if !turns.pass_as_task().await {
                        break;
                    }
                    let record = chunk(events.make(seq));
                    let before = Instant::now();
                    handle.append(stream, Conditions::none(), vec![record]).await?;
                    if turns.counts() {
                        all.push(nanos(before));
                    }
                }
                Ok::<_, ::runwal::Error>(all)
            })
        })
        .collect();
    be_told(&turns, args)?;
    let mut all = Vec::new();
    for task in tasks {
        all.extend(runtime.block_on(task)??);
    }
    let took = if args.appends.is_some() { begun.elapsed() } else { turns.counted() };
    runtime.block_on(handle.close())?;
    Ok((all, took))
}

fn nanos(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
