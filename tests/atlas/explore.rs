//! The simulated disk, crashed at every operation in every way that its contract permits: named
//! workloads, every sequence of up to three calls, then sequences by chance for as long as there is
//! time.

use crate::{Asked, Found};
use runwal::testing::explorer::{Bounds, Explored, Seen, explore};
use runwal::testing::sequences::Sequence;
use runwal::testing::workloads::{ALL, Workload};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

/// How often the deep part says how far it is.
const TELL: Duration = Duration::from_secs(20);
/// How often it is kept how far it is, where that is asked for.
const SAVE: Duration = Duration::from_mins(10);

type Work = Box<dyn Iterator<Item = (Workload, Bounds)> + Send>;

pub(crate) fn run(asked: &Asked) -> Found {
    if let Some(case) = &asked.case {
        return again(case);
    }
    let deep = asked.until.is_some() || asked.count.is_some();
    let mut work = if deep { deep_work() } else { quick_work() };
    let (mut total, mut taken, mut seen) = (Explored::default(), 0, Seen::default());
    let kept = asked.resume.as_ref().map(|dir| Kept::in_dir(dir));
    if let Some(kept) = &kept {
        (total, taken) = kept.load(&mut seen);
        // What was done is passed over.
        (0..taken).for_each(|_| _ = work.next());
        eprintln!("{} states so far", total.states.iter().sum::<u64>());
    }
    let (before, begun) = (total.states.iter().sum::<u64>(), cpu_seconds());
    let told = (Instant::now(), Instant::now());
    let course = Mutex::new(Course { work, taken, total, told: told.0, saved: told.1 });
    // Held by whoever explores: where nobody does, all that was taken is done.
    let exploring = RwLock::new(());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while asked.until.is_none_or(|until| Instant::now() < until) {
                    let here = exploring.read().unwrap();
                    let Some((workload, mut bounds)) = course.lock().unwrap().next() else { break };
                    if asked.first {
                        bounds.enough = 1;
                    }
                    let mut explored = explore(&workload, &bounds, &seen);
                    if !asked.first && !explored.violations.is_empty() {
                        explored.violations = shrunk(&workload, &bounds, explored.violations);
                    }
                    let mut now = course.lock().unwrap();
                    now.total.add(explored);
                    let (states, wrong) = (now.total.states.iter().sum::<u64>(), now.total.violations.len());
                    if now.told.elapsed() > TELL {
                        now.told = Instant::now();
                        eprintln!("{states} states so far, {wrong} wrong; at {workload}");
                    }
                    let due = now.saved.elapsed() > SAVE;
                    drop(now);
                    drop(here);
                    if let Some(kept) = kept.as_ref().filter(|_| due) {
                        let _alone = exploring.write().unwrap();
                        kept.save(&mut course.lock().unwrap(), &seen);
                    }
                    if (asked.first && wrong > 0) || asked.count.is_some_and(|count| states >= count) {
                        break;
                    }
                }
            });
        }
    });
    let mut course = course.into_inner().unwrap();
    if let Some(kept) = &kept {
        kept.save(&mut course, &seen);
    }
    let states = course.total.states.iter().sum::<u64>();
    let mut found = found(course.total);
    found.count("states per second of a core", (states - before) / (cpu_seconds() - begun).max(1));
    found
}

/// How far an exploration is.
struct Course {
    work: Work,
    /// How much of the work was taken.
    taken: u64,
    total: Explored,
    told: Instant,
    saved: Instant,
}

impl Course {
    fn next(&mut self) -> Option<(Workload, Bounds)> {
        let next = self.work.next()?;
        self.taken += 1;
        Some(next)
    }
}

/// An exploration that can be stopped at any moment: the keys of what was seen, one behind the other,
/// and how many of them count.
struct Kept {
    keys: PathBuf,
    progress: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct Progress {
    /// The digest of this program: another one may do other things in another order.
    program: String,
    keys: u64,
    taken: u64,
    total: Explored,
}

impl Kept {
    fn in_dir(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        Self { keys: dir.join("seen"), progress: dir.join("progress.json") }
    }

    fn program() -> String {
        blake3::hash(&fs::read(std::env::current_exe().unwrap()).unwrap()).to_string()
    }

    fn progress(&self) -> Progress {
        let Ok(text) = fs::read(&self.progress) else {
            return Progress { program: Self::program(), ..Progress::default() };
        };
        let progress: Progress = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            progress.program,
            Self::program(),
            "{} was begun by another build",
            self.progress.display()
        );
        progress
    }

    fn load(&self, seen: &mut Seen) -> (Explored, u64) {
        let Progress { keys, taken, total, .. } = self.progress();
        let mut known = Vec::new();
        if keys > 0 {
            fs::File::open(&self.keys).unwrap().take(8 * keys).read_to_end(&mut known).unwrap();
        }
        assert_eq!(known.len() as u64, 8 * keys, "{} is too short", self.keys.display());
        seen.remember(known.chunks_exact(8).map(|key| u64::from_le_bytes(key.try_into().unwrap())));
        (total, taken)
    }

    fn save(&self, course: &mut Course, seen: &Seen) {
        let mut progress = Progress { taken: course.taken, total: course.total.clone(), ..self.progress() };
        let new: Vec<u8> = seen.take_new().into_iter().flat_map(u64::to_le_bytes).collect();
        let keys = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&self.keys).unwrap();
        keys.write_all_at(&new, 8 * progress.keys).unwrap();
        progress.keys += new.len() as u64 / 8;
        let temporary = self.progress.with_extension("tmp");
        fs::write(&temporary, serde_json::to_vec(&progress).unwrap()).unwrap();
        fs::rename(&temporary, &self.progress).unwrap();
        course.saved = Instant::now();
    }
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
