//! The crash explorer: interrupts a workload at every operation, in every way the simulated disk
//! knows, and lets the ledger judge what is left, what opening makes of it, and what can be done
//! with it afterwards. Opening is itself interrupted everywhere.
//!
//! A case is named by workload, operation and choice, for example `roll/31/cut.noon/open.12/kill`, with
//! a letter for the fate of each thing that was volatile: the name alone leads there again.
//!
//! # What is judged how often
//!
//! A machine with what is demanded of it is a *state*; each is judged once, wherever it comes up
//! again: it is read as it lies, opened for writing, and read again. What comes after that (opening
//! twice, going on, losing power, verifying, retrying keys, comparing files) follows from the machine
//! that opening left; of those that show the same records in files of the same lengths, one is followed,
//! or one in [`Bounds::look_share`] such kinds, and one in [`Bounds::life_share`] of the others.

use super::stage::Stage;
use super::workloads::Workload;
use crate::disk::sim::{Choices, Fate, Fault, Operation, SECTOR, SimWorld};
use crate::journal::Verdict;
use crate::record::Record;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How far to go. A share of `n` takes one state in `n`, which one following from the state.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Every how many operations of the workload to interrupt it.
    pub stride: u64,
    /// Up to how many volatile units all subsets are tried.
    pub exhaustive: usize,
    /// Samples of all fates beyond the systematic ones.
    pub samples: u64,
    /// With how many of the [`ERRNOS`] operations fail.
    pub errnos: usize,
    /// Whether looks at the disk fail, too.
    pub looks: bool,
    /// How often opening may be interrupted in a row.
    pub depth: u32,
    /// The share of the states whose opening is.
    pub nested_share: u64,
    /// The share of those that look like none before once opened, and are followed.
    pub look_share: u64,
    /// The share of those that look like another, and are followed nevertheless.
    pub life_share: u64,
    /// Judge only cases whose names begin so.
    pub only: Option<String>,
    /// More violations than this are not looked for.
    pub enough: usize,
}

impl Bounds {
    /// Every operation, every fault, of what a power cut may leave all subsets of up to so many units.
    pub fn exhaustive(units: usize) -> Self {
        Self {
            stride: 1,
            exhaustive: units,
            samples: 8,
            errnos: ERRNOS.len(),
            looks: true,
            depth: 0,
            nested_share: 1,
            look_share: 1,
            life_share: 32,
            only: None,
            enough: 20,
        }
    }

    /// The same with opening interrupted so often in a row, of this share of the states.
    #[must_use]
    pub fn nested(self, depth: u32, share: u64) -> Self {
        Self { depth, nested_share: share, ..self }
    }

    /// One case, as a violation was reported.
    #[must_use]
    pub fn only(self, case: &str) -> Self {
        Self { only: Some(case.to_owned()), nested_share: 1, look_share: 1, life_share: 1, ..self }
    }
}

/// What an exploration came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Explored {
    /// Operations of the workload.
    pub operations: u64,
    /// Ways in which they were interrupted.
    pub faults: u64,
    /// States that were judged, by how often opening was interrupted on the way to them.
    pub states: [u64; 4],
    /// States that were judged before.
    pub duplicates: u64,
    /// Machines that were followed to the end.
    pub lives: u64,
    /// How often a reader was put off by a damaged slot under a busy word.
    pub retries: u64,
    /// What was wrong, by the name of the case.
    pub violations: BTreeMap<String, String>,
}

impl Explored {
    /// Adds another exploration to this one.
    pub fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.faults += other.faults;
        self.states.iter_mut().zip(other.states).for_each(|(sum, n)| *sum += n);
        self.duplicates += other.duplicates;
        self.lives += other.lives;
        self.retries += other.retries;
        self.violations.extend(other.violations);
    }
}

/// The errors of the operating system that operations fail with: EIO, ENOSPC, EDQUOT, EROFS, EACCES,
/// ENOMEM, EMFILE, EINTR.
pub const ERRNOS: [(&str, i32); 8] = [
    ("eio", 5),
    ("enospc", 28),
    ("edquot", 122),
    ("erofs", 30),
    ("eacces", 13),
    ("enomem", 12),
    ("emfile", 24),
    ("eintr", 4),
];

const MARK: &str = "journal/mark";

/// What was judged before, by 64 bits of its digest: of 10⁸ states not one in a thousand such sets
/// takes two for the same. Shared by all threads.
#[derive(Debug)]
pub struct Seen {
    shards: Vec<Mutex<Keys>>,
    /// What was not seen before the last time this was asked for, where it will be.
    new: Option<Mutex<Vec<u64>>>,
}

#[expect(clippy::disallowed_types, reason = "only asked whether something is in it")]
type Keys = std::collections::HashSet<u64, BuildHasherDefault<Same>>;

/// What is hashed is a digest already.
#[derive(Debug, Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

fn hold<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Seen {
    fn default() -> Self {
        Self { shards: (0..64).map(|_| Mutex::default()).collect(), new: None }
    }
}

impl Seen {
    fn insert(&self, key: u64) -> bool {
        let shard = usize::try_from(key >> 58).unwrap_or(0);
        let new = hold(&self.shards[shard]).insert(key);
        if let Some(all) = self.new.as_ref().filter(|_| new) {
            hold(all).push(key);
        }
        new
    }

    /// Remembers what another set had seen, and from then on what is new.
    pub fn remember(&mut self, keys: impl Iterator<Item = u64>) {
        keys.for_each(|key| _ = self.insert(key));
        self.new = Some(Mutex::default());
    }

    /// What is new since the last time, or since it was [remembered](Self::remember).
    pub fn take_new(&self) -> Vec<u64> {
        self.new.as_ref().map_or_else(Vec::new, |new| std::mem::take(&mut *hold(new)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| hold(shard).len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The operations of a workload that nothing disturbs.
pub fn operations(workload: &Workload) -> Vec<Operation> {
    let mut stage = workload.base();
    workload.act(&mut stage, |stage| stage.world.record());
    stage.world.trace()
}

/// Explores one workload.
pub fn explore(workload: &Workload, bounds: &Bounds, seen: &Seen) -> Explored {
    let mut base = workload.base();
    let name = workload.to_string();
    let mut explorer = Explorer { bounds, found: Explored::default(), seen };
    explorer.complain(&name, &base.problems);
    base.problems.clear();
    let mut undisturbed = base.fork();
    let mut looks = 0;
    workload.act(&mut undisturbed, |stage| {
        stage.world.record();
        looks = stage.world.looks();
    });
    let operations = undisturbed.world.trace();
    let looks = looks..undisturbed.world.looks();
    explorer.found.operations = operations.len() as u64;
    explorer.judge_machine(&format!("{name}/end"), &undisturbed, 0);
    let before = operations.first().map_or(0, |first| first.number);
    let mut marks = BTreeSet::new();
    for operation in &operations {
        let n = operation.number - before;
        if n.is_multiple_of(bounds.stride) {
            explorer.interrupt(workload, &base, &format!("{name}/{n}"), operation, &mut marks);
        }
    }
    if bounds.looks {
        explorer.blind(workload, &base, &name, looks);
    }
    explorer.found
}

struct Explorer<'b> {
    bounds: &'b Bounds,
    found: Explored,
    seen: &'b Seen,
}

impl Explorer<'_> {
    fn complain(&mut self, case: &str, problems: &[String]) {
        // What follows the first problem mostly follows from it.
        let Some(first) = problems.first() else { return };
        let told = if self.bounds.only.is_some() { problems.join("\n    ") } else { first.clone() };
        self.found.violations.entry(case.to_owned()).or_insert(told);
    }

    /// Runs the workload with what is planned for it.
    fn run(workload: &Workload, base: &Stage, plan: impl FnOnce(&SimWorld)) -> Stage {
        let mut stage = base.fork();
        workload.act(&mut stage, |stage| {
            stage.expect_faults(true);
            plan(&stage.world);
        });
        stage.world.clear_faults();
        stage.expect_faults(false);
        stage
    }

    fn interrupt(
        &mut self,
        workload: &Workload,
        base: &Stage,
        name: &str,
        at: &Operation,
        marks: &mut BTreeSet<Vec<u8>>,
    ) {
        if !self.wanted(name) || self.found.violations.len() >= self.bounds.enough {
            return;
        }
        let run = |fault| Self::run(workload, base, |world| world.fail_at(at.number, fault));
        let cut = run(Fault::PowerCut);
        self.found.faults += 1;
        self.power_cut(&format!("{name}/cut"), &cut, self.bounds.exhaustive, self.bounds.samples, 0);
        self.stale_marks(&format!("{name}/mark"), &cut, marks);
        marks.extend(cut.world.read_file(MARK));
        for (choice, fault) in faults(at, self.bounds.errnos) {
            let name = format!("{name}/{choice}");
            if !self.wanted(&name) {
                continue;
            }
            self.found.faults += 1;
            let stage = run(fault);
            self.judge_machine(&name, &stage, 0);
            if matches!(fault, Fault::Kill) {
                continue;
            }
            let evicted = stage.fork();
            if evict(&evicted.world) {
                self.judge_machine(&format!("{name}/evict"), &evicted, 0);
            }
            self.power_cut(&format!("{name}/cut"), &stage, self.bounds.exhaustive.min(3), 0, 0);
        }
    }

    /// Lets every look at the disk fail.
    fn blind(&mut self, workload: &Workload, base: &Stage, name: &str, looks: std::ops::Range<u64>) {
        for look in looks.clone().step_by(usize::try_from(self.bounds.stride).unwrap_or(1)) {
            for (word, errno) in &ERRNOS[..self.bounds.errnos] {
                for (often, sticky) in [("", false), (".sticky", true)] {
                    let name = format!("{name}/look.{}/{word}{often}", look - looks.start);
                    if !self.wanted(&name) || self.found.violations.len() >= self.bounds.enough {
                        continue;
                    }
                    self.found.faults += 1;
                    let plan = |world: &SimWorld| world.fail_look_at(look + 1, *errno, sticky);
                    let stage = Self::run(workload, base, plan);
                    self.judge_machine(&name, &stage, 0);
                }
            }
        }
    }

    fn wanted(&self, case: &str) -> bool {
        self.bounds.only.as_ref().is_none_or(|only| only.starts_with(case) || case.starts_with(only))
    }

    /// Every machine that a power cut now may leave.
    fn power_cut(&mut self, case: &str, stage: &Stage, exhaustive: usize, samples: u64, level: u32) {
        if !self.wanted(case) {
            return;
        }
        self.complain(case, &stage.problems);
        let demanded = stage.ledger.digest();
        let seed = u64::from_le_bytes(demanded[..8].try_into().unwrap_or_default());
        let wanted = self.bounds.only.as_ref().and_then(|only| only.strip_prefix(case)?.strip_prefix('.'));
        if let Some(wanted) = wanted {
            let mut fates = wanted.chars().map(|letter| Fate::of_letter(letter).unwrap_or(Fate::Old));
            let world = stage.world.power_cut(&mut |_| fates.next().unwrap_or(Fate::Old));
            let letters = wanted.split('/').next().unwrap_or_default();
            let key = key_of(&[&world.digest().to_le_bytes(), &demanded]);
            return self.judge_image(&format!("{case}.{letters}"), stage.on(world), key, level);
        }
        for image in Choices::new(&stage.world, exhaustive, samples, seed) {
            let key = key_of(&[&image.digest.to_le_bytes(), &demanded]);
            if self.is_new(key) {
                let fates: String = image.fates.iter().map(|fate| fate.letter()).collect();
                self.judge_image(&format!("{case}.{fates}"), stage.on(image.world()), key, level);
            }
        }
    }

    /// Whether a state was not judged before; it counts as judged from now on.
    fn is_new(&mut self, key: u64) -> bool {
        let new = self.seen.insert(key) || self.bounds.only.is_some();
        self.found.duplicates += u64::from(!new);
        new
    }

    /// Of a machine that has lost its power; now and then only its file system was lost.
    fn judge_image(&mut self, case: &str, stage: Stage, key: u64, level: u32) {
        let stage = if (key >> 48).is_multiple_of(8) { stage.remounted() } else { stage };
        self.judge(case, stage, key, level);
    }

    /// The kernel may have written any earlier state of the mark to the disk.
    fn stale_marks(&mut self, case: &str, stage: &Stage, marks: &BTreeSet<Vec<u8>>) {
        if !self.wanted(case) {
            return;
        }
        for keep in [false, true] {
            for (n, mark) in marks.iter().enumerate() {
                let mut stage = stage.fork();
                stage.restart(keep);
                if stage.world.read_file(MARK).is_ok() && stage.world.write_file(MARK, mark).is_ok() {
                    let case = format!("{case}.{keep}.{n}");
                    for (word, stage) in [("boot", stage.fork()), ("mount", stage.remounted())] {
                        let digest = stage.world.digest_of_all().to_le_bytes();
                        let key = key_of(&[word.as_bytes(), &digest, &stage.ledger.digest()]);
                        if self.is_new(key) {
                            self.judge(&format!("{case}.{word}"), stage, key, 0);
                        }
                    }
                }
            }
        }
    }

    fn judge_machine(&mut self, case: &str, stage: &Stage, level: u32) {
        if !self.wanted(case) {
            return;
        }
        self.complain(case, &stage.problems);
        let key = key_of(&[&stage.world.digest_of_all().to_le_bytes(), &stage.ledger.digest()]);
        if self.is_new(key) {
            self.judge(case, stage.fork(), key, level);
        }
    }

    /// Judges one machine: as it is, while it is opened, when it is open, and after more was done.
    fn judge(&mut self, case: &str, mut stage: Stage, key: u64, level: u32) {
        if !self.wanted(case) {
            return;
        }
        if !stage.problems.is_empty() || self.found.violations.len() >= self.bounds.enough {
            return;
        }
        self.found.states[level as usize % 4] += 1;
        // Now and then through another mount; which one follows from the state, to be found again.
        let mount = |shift: u32| 1 + u64::from((key >> shift).is_multiple_of(5));
        let share = |n: u64, shift: u32| (key >> shift).is_multiple_of(n.max(1));
        if let Some(mut log) = stage.open_log(mount(8)) {
            if stage.is_remounted() {
                stage.judge_remounted(&mut log);
            } else {
                stage.judge(&mut log);
            }
            if share(self.bounds.life_share, 16) {
                stage.verify(&mut log, Verdict::Torn);
            }
        }
        if level < self.bounds.depth && share(self.bounds.nested_share.pow(level + 1), 24) {
            self.interrupt_opening(case, &stage, level + 1);
        }
        if let Some(writer) = stage.open(mount(32)) {
            if let Some(mut log) = stage.open_log(mount(32)) {
                let records = stage.judge(&mut log);
                stage.problems.extend(stage.ledger.check_ends(&records).err());
            }
            stage.close(writer);
            let follow = if self.seen.insert(look_of(&stage)) {
                self.bounds.look_share
            } else {
                self.bounds.life_share
            };
            if share(follow, 40) {
                self.found.lives += 1;
                stage.retry_keys(mount(32));
                life_after(&mut stage, mount(32));
            }
        }
        self.complain(case, &stage.problems);
        self.found.retries += stage.retries;
    }

    /// Opens for writing with a crash at every operation of it.
    fn interrupt_opening(&mut self, case: &str, stage: &Stage, level: u32) {
        let mut trial = stage.fork();
        let before = trial.world.operations();
        trial.world.record();
        drop(trial.open(1));
        let trace = trial.world.trace();
        for operation in &trace {
            let n = operation.number - before;
            for (word, fault) in [("kill", Fault::Kill), ("cut", Fault::PowerCut), ("eio", Fault::once(5))] {
                let name = format!("{case}/open.{n}/{word}");
                let parent = (operation.kind, &*operation.file) == ("sync_dir", ".");
                if !self.wanted(&name) || (word == "eio" && parent) {
                    continue;
                }
                self.found.faults += 1;
                let mut stage = stage.fork();
                stage.expect_faults(true);
                stage.world.fail_at(operation.number, fault);
                drop(stage.open(1));
                stage.world.clear_faults();
                stage.expect_faults(false);
                if word == "cut" {
                    self.power_cut(&name, &stage, self.bounds.exhaustive.min(4), 1, level);
                } else {
                    self.judge_machine(&name, &stage, level);
                }
            }
        }
    }
}

/// The faults to plan for one operation, but for the power cut.
fn faults(at: &Operation, errnos: usize) -> Vec<(String, Fault)> {
    let mut faults = vec![("kill".to_owned(), Fault::Kill)];
    // Of the data directory's own entries no later sync tells more either; it is a new journal's
    // first act, and there is nothing yet to be lost.
    if (at.kind, &*at.file) == ("sync_dir", ".") {
        return faults;
    }
    for (name, errno) in &ERRNOS[..errnos] {
        // A directory that cannot be synced, and then not be changed either, has no way out.
        if at.kind != "sync_dir" {
            faults.push((format!("{name}.sticky"), Fault::sticky(*errno)));
        }
        faults.push(((*name).to_owned(), Fault::once(*errno)));
    }
    match at.kind {
        "write" => {
            let sectors = (at.offset + at.len).div_ceil(SECTOR) - at.offset / SECTOR;
            faults.extend((1..=sectors).map(|k| (format!("kill.{k}"), Fault::KillAfterSectors(k))));
            for bytes in [1, at.len / 2, at.len.saturating_sub(1)] {
                let bytes = usize::try_from(bytes).unwrap_or(0);
                faults.push((format!("short.{bytes}"), Fault::Short { bytes, errno: ERRNOS[1].1 }));
            }
        }
        "sync" | "sync_dir" => {
            let prefixes = (1..8).map(|k| (1 << k) - 1);
            let singles = (0..8).map(|k| 1 << k);
            let omissions = (0..8).map(|k| !(1 << k));
            let masks = prefixes.chain(singles).chain(omissions).chain([u64::MAX]);
            // One bit for each unit; without any, `eio` above is the same.
            let units =
                1_u64.checked_shl(u32::try_from(at.len).unwrap_or(64)).map_or(u64::MAX, |bit| bit - 1);
            let masks: BTreeSet<u64> = masks.map(|mask| mask & units).filter(|mask| *mask > 0).collect();
            let failed = |survivors| Fault::Error { errno: ERRNOS[0].1, sticky: false, survivors };
            faults
                .extend(masks.into_iter().map(|survivors| (format!("eio.{survivors:x}"), failed(survivors))));
        }
        _ => {}
    }
    faults
}

/// Evicts every clean page; tells whether that changed what is read.
fn evict(world: &SimWorld) -> bool {
    let mut changed = false;
    for name in world.names() {
        let Ok(before) = world.read_file(&name) else { continue };
        for sector in 0..(before.len() as u64).div_ceil(SECTOR) {
            let _ = world.evict(&name, sector);
        }
        changed |= world.read_file(&name).is_ok_and(|after| after != before);
    }
    changed
}

fn key_of(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| _ = hasher.update(part));
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().unwrap_or_default())
}

/// What a machine looks like from some way off: the lengths of its files, and what its readers were
/// shown.
fn look_of(stage: &Stage) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"look").update(&stage.ledger.digest());
    stage.world.lengths(&mut |name, len| {
        if !name.starts_with("journal/live/") {
            hasher.update(name.as_bytes()).update(&len.to_le_bytes());
        }
    });
    key_of(&[hasher.finalize().as_bytes()])
}

/// The files of the journal, but for those that say who is alive.
fn journal_files(world: &SimWorld) -> BTreeMap<String, Vec<u8>> {
    let names = world.names().into_iter();
    let kept = names.filter(|name| name.starts_with("journal/") && !name.starts_with("journal/live/"));
    kept.map(|name| (name.clone(), world.read_file(&name).unwrap_or_default())).collect()
}

/// Opens, checks, opens again, goes on, loses power, and checks once more: what every machine must be
/// good for, whatever became of those who wrote on it. They have to be gone.
pub fn life_after(stage: &mut Stage, mount: u64) {
    let Some(first) = open_and_read(stage, mount) else { return };
    let files = journal_files(&stage.world);
    let Some(second) = open_and_read(stage, mount) else { return };
    if first != second {
        stage.problems.push("opening twice gave different records".to_owned());
    }
    if let Some(name) = difference(&files, &journal_files(&stage.world)) {
        stage.problems.push(format!("opening twice changed {name}"));
    }
    let Some(writer) = stage.open(mount) else { return };
    let run = stage.begin(&writer, "after");
    if stage.append(&writer, run, &[40, 300]).is_none() {
        stage.problems.push("nothing could be appended afterwards".to_owned());
    }
    stage.tick(&writer);
    stage.finish(&writer, run);
    stage.close(writer);
    verified(stage, mount, "at the end");
    stage.restart(false);
    stage.look(mount);
    let _ = open_and_read(stage, mount);
    verified(stage, mount, "after opening at last");
    stage.check_files(mount);
}

fn open_and_read(stage: &mut Stage, mount: u64) -> Option<Vec<Record>> {
    let writer = stage.open(mount)?;
    let records = verified(stage, mount, "open for writing");
    if let Err(complaint) = stage.ledger.check_ends(&records) {
        stage.problems.push(complaint);
    }
    stage.close(writer);
    Some(records)
}

/// Reads and verifies from another process: there is something to be read, and it is clean.
fn verified(stage: &mut Stage, mount: u64, when: &str) -> Vec<Record> {
    let Some(mut log) = stage.open_log(mount) else {
        stage.problems.push(format!("{when}: nothing to read"));
        return Vec::new();
    };
    let records = stage.judge(&mut log);
    stage.verify(&mut log, Verdict::Clean);
    records
}

fn difference(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>) -> Option<String> {
    let names: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    names.into_iter().find(|name| one.get(*name) != other.get(*name)).cloned()
}
