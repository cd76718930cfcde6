//! The simulated disk, crashed at every operation in every way that its contract permits: named
//! workloads, every sequence of up to three calls, then sequences by chance for as long as there is
//! time.

use crate::{Asked, Found};
use runwal::testing::explorer::{Bounds, Explored, Seen, explore};
use runwal::testing::sequences::Sequence;
use runwal::testing::workloads::{ALL, Workload};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often the deep part says how far it is.
const TELL: Duration = Duration::from_secs(20);

type Work = Box<dyn Iterator<Item = (Workload, Bounds)> + Send>;

pub(crate) fn run(asked: &Asked) -> Found {
    if let Some(case) = &asked.case {
        return again(case);
    }
    let deep = asked.until.is_some() || asked.count.is_some();
    let work = Mutex::new(if deep { deep_work() } else { quick_work() });
    let seen = Seen::default();
    let total = Mutex::new((Explored::default(), Instant::now()));
    let begun = cpu_seconds();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while asked.until.is_none_or(|until| Instant::now() < until) {
                    let Some((workload, mut bounds)) = work.lock().unwrap().next() else { break };
                    if asked.first {
                        bounds.enough = 1;
                    }
                    let mut explored = explore(&workload, &bounds, &seen);
                    if !asked.first && !explored.violations.is_empty() {
                        explored.violations = shrunk(&workload, &bounds, explored.violations);
                    }
                    let mut total = total.lock().unwrap();
                    total.0.add(explored);
                    let states: u64 = total.0.states.iter().sum();
                    if total.1.elapsed() > TELL {
                        total.1 = Instant::now();
                        eprintln!(
                            "{states} states so far, {} wrong; at {workload}",
                            total.0.violations.len()
                        );
                    }
                    let found = asked.first && !total.0.violations.is_empty();
                    if found || asked.count.is_some_and(|count| states >= count) {
                        break;
                    }
                }
            });
        }
    });
    let (explored, _) = total.into_inner().unwrap();
    let mut found = found(explored);
    let states: u64 =
        found.counts.iter().filter(|(what, _)| what.starts_with("states")).map(|(_, n)| n).sum();
    found.count("states per second of a core", states / (cpu_seconds() - begun).max(1));
    found
}

/// What this process has had of all cores: what the machine does beside it doesn't count.
fn cpu_seconds() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0)
}

fn found(explored: Explored) -> Found {
    let mut found = Found::default();
    found.count("operations", explored.operations);
    found.count("faults", explored.faults);
    for (depth, states) in explored.states.into_iter().enumerate() {
        found.count(&format!("states with opening interrupted {depth} times"), states);
    }
    found.count("seen before", explored.duplicates);
    found.count("followed to the end", explored.lives);
    found.count("readers put off", explored.retries);
    found.problems = explored.violations;
    found
}

fn again(case: &str) -> Found {
    let Some(workload) = Workload::of_case(case) else {
        let mut found = Found::default();
        found.problems.insert(case.to_owned(), "names no workload and no sequence".to_owned());
        return found;
    };
    for operation in runwal::testing::explorer::operations(&workload) {
        println!("    {operation}");
    }
    let depth = u32::try_from(case.matches("/open.").count()).unwrap_or(0);
    let bounds = Bounds::exhaustive(10).nested(depth, 1).only(case);
    found(explore(&workload, &bounds, &Seen::default()))
}

/// The same finding in a sequence with as few calls as possible.
fn shrunk(
    workload: &Workload,
    bounds: &Bounds,
    found: std::collections::BTreeMap<String, String>,
) -> std::collections::BTreeMap<String, String> {
    let Workload::Sequence(sequence) = workload else { return found };
    for shorter in sequence.shorter() {
        let shorter = Workload::Sequence(shorter);
        let again = explore(&shorter, bounds, &Seen::default()).violations;
        if !again.is_empty() {
            return shrunk(&shorter, bounds, again);
        }
    }
    found
}

fn named(bounds: Bounds) -> impl Iterator<Item = (Workload, Bounds)> + Send {
    ALL.iter().map(move |named| (Workload::Named(named), bounds.clone()))
}

fn sequences(len: usize, bounds: Bounds) -> impl Iterator<Item = (Workload, Bounds)> + Send {
    std::iter::once_with(move || Sequence::all(len))
        .flatten()
        .map(move |sequence| (Workload::Sequence(sequence), bounds.clone()))
}

fn quick_work() -> Work {
    let named_fewer = Bounds { errnos: 2, looks: false, ..Bounds::exhaustive(2).nested(1, 256) };
    let two_calls =
        Bounds { errnos: 1, looks: false, look_share: 8, life_share: 256, ..Bounds::exhaustive(3) };
    Box::new(
        named(named_fewer)
            .chain(sequences(1, Bounds::exhaustive(3).nested(1, 64)))
            .chain(sequences(2, two_calls).step_by(4)),
    )
}

fn deep_work() -> Work {
    // What one does with machines that look like another is nothing new after the quick part.
    let seldom = |bounds: Bounds| Bounds { look_share: 8, life_share: 256, ..bounds };
    let single = Bounds { errnos: 1, looks: false, ..seldom(Bounds::exhaustive(6)) };
    let by_chance = (0_u64..).map(move |seed| {
        // Mostly short: what comes last is met with fewer calls to be done again for each fault.
        let len = if seed % 8 == 0 { 10 + seed % 40 } else { 4 + seed % 8 };
        let sequence = Sequence::random(seed, usize::try_from(len).unwrap_or(4));
        let bounds = Bounds { errnos: 1, looks: false, ..seldom(Bounds::exhaustive(6).nested(3, 32)) };
        (Workload::Sequence(sequence), bounds)
    });
    Box::new(
        quick_work()
            .chain(sequences(1, seldom(Bounds::exhaustive(10).nested(2, 1))))
            .chain(named(seldom(Bounds::exhaustive(8).nested(2, 16))))
            .chain(sequences(2, seldom(Bounds::exhaustive(8).nested(2, 16))))
            .chain(sequences(3, single.nested(1, 16)))
            .chain(by_chance),
    )
}
