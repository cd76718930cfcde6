//! The crash explorer: interrupts a workload at every operation, in every way the simulated disk
//! knows, and lets the ledger judge what is left, what opening makes of it, and what can be done
//! with it afterwards. Opening is itself interrupted everywhere.
//!
//! A case is named by workload, operation and choice, for example `roll/31/cut.7/open.12/kill`:
//! the name alone leads there again.

use super::oracle::Ledger;
use super::stage::Stage;
use super::workloads::Workload;
use crate::disk::sim::{Choices, Fault, Operation, SECTOR, SimWorld};
use crate::journal::Verdict;
use crate::record::Record;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How far to go.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Every how many operations of the workload to interrupt it.
    pub stride: u64,
    /// Up to how many volatile units all subsets are tried.
    pub exhaustive: usize,
    /// Samples of all fates beyond the systematic ones.
    pub samples: u64,
    /// How often opening may be interrupted in a row, and every how many operations.
    pub depth: u32,
    /// Every how many operations opening is interrupted.
    pub open_stride: u64,
    /// Of the images of one power cut, every which is judged.
    pub image_stride: usize,
    /// Judge only cases whose names begin so.
    pub only: Option<String>,
}

impl Bounds {
    /// Every so many operations, images and operations of opening; with 1 everything. A step that
    /// shares no divisor with the five operations of a commit meets all of them.
    pub fn every(step: u64) -> Self {
        let (exhaustive, samples) = if step == 1 { (6, 16) } else { (3, 1) };
        let image_stride = usize::try_from(step).unwrap_or(usize::MAX);
        Self { stride: step, exhaustive, samples, depth: 1, open_stride: step, image_stride, only: None }
    }

    /// Every operation of the workload, of what a power cut may leave the systematic choices in
    /// steps, and of opening every so many operations: minutes.
    pub fn quick() -> Self {
        let (image_stride, open_stride) = (5, 17);
        Self { stride: 1, exhaustive: 2, samples: 0, depth: 1, open_stride, image_stride, only: None }
    }
}

/// What an exploration came to.
#[derive(Debug, Clone, Default)]
pub struct Explored {
    /// Operations of the workload.
    pub operations: u64,
    /// Ways in which they were interrupted.
    pub faults: u64,
    /// Machines that were judged, each distinct one once.
    pub states: u64,
    /// Machines that were judged before in the same state.
    pub duplicates: u64,
    /// How often a reader was put off by a damaged slot under a busy word.
    pub retries: u64,
    /// What was wrong, by the name of the case.
    pub violations: BTreeMap<String, String>,
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, faults, states, duplicates, retries, violations } = self;
        write!(
            f,
            "{operations} operations, {faults} faults, {states} states judged, {duplicates} seen before, \
             {retries} readers put off, {} violations",
            violations.len()
        )
    }
}

impl Explored {
    /// Adds another exploration to this one.
    pub fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.faults += other.faults;
        self.states += other.states;
        self.duplicates += other.duplicates;
        self.retries += other.retries;
        self.violations.extend(other.violations);
    }
}

/// More violations than this are not looked for.
const ENOUGH: usize = 40;
const EIO: i32 = 5;
const EINTR: i32 = 4;
const ENOSPC: i32 = 28;

/// The operations of a workload that nothing disturbs.
pub fn operations(workload: &Workload) -> Vec<Operation> {
    let mut stage = (workload.setting)();
    (workload.before)(&mut stage);
    stage.world.record();
    (workload.act)(&mut stage);
    stage.world.trace()
}

/// Explores one workload.
pub fn explore(workload: &Workload, bounds: &Bounds) -> Explored {
    let mut base = (workload.setting)();
    (workload.before)(&mut base);
    let mut explorer = Explorer { bounds, found: Explored::default(), seen: BTreeSet::new() };
    explorer.complain(workload.name, &base.problems);
    let operations = explorer.undisturbed(workload, &base);
    let mut marks = Vec::new();
    for (n, operation) in (0..).zip(&operations) {
        if let Ok(mark) =
            Explorer::run(workload, &base, operation.number, Fault::PowerCut).world.read_file(MARK)
        {
            marks.push(mark);
        }
        if n % bounds.stride == 0 && explorer.found.violations.len() < ENOUGH {
            explorer.interrupt(workload, &base, operation, &marks);
        }
    }
    explorer.found
}

const MARK: &str = "journal/mark";

struct Explorer<'b> {
    bounds: &'b Bounds,
    found: Explored,
    seen: BTreeSet<[u8; blake3::OUT_LEN]>,
}

impl Explorer<'_> {
    fn complain(&mut self, case: &str, problems: &[String]) {
        // What follows the first problem mostly follows from it.
        let Some(first) = problems.first() else { return };
        let told = if self.bounds.only.is_some() { problems.join("\n    ") } else { first.clone() };
        self.found.violations.entry(case.to_owned()).or_insert(told);
    }

    /// Runs the workload without a fault; answers with its operations.
    fn undisturbed(&mut self, workload: &Workload, base: &Stage) -> Vec<Operation> {
        let mut stage = base.fork();
        stage.world.record();
        (workload.act)(&mut stage);
        let operations = stage.world.trace();
        self.found.operations = operations.len() as u64;
        self.judge(&format!("{}/end", workload.name), &stage, self.bounds.depth);
        operations
    }

    /// Runs the workload with one fault.
    fn run(workload: &Workload, base: &Stage, at: u64, fault: Fault) -> Stage {
        let mut stage = base.fork();
        stage.expect_faults(true);
        stage.world.fail_at(at, fault);
        (workload.act)(&mut stage);
        stage.world.clear_faults();
        stage.expect_faults(false);
        stage
    }

    fn interrupt(&mut self, workload: &Workload, base: &Stage, at: &Operation, marks: &[Vec<u8>]) {
        let name = |choice: &str| format!("{}/{}/{choice}", workload.name, at.number);
        let cut = Self::run(workload, base, at.number, Fault::PowerCut);
        self.found.faults += 1;
        self.power_cut(&name("cut"), &cut, self.bounds.depth);
        self.stale_marks(&name("mark"), &cut, marks);
        for (choice, fault) in faults(at) {
            if !self.wanted(&name(&choice)) {
                continue;
            }
            self.found.faults += 1;
            let stage = Self::run(workload, base, at.number, fault);
            let name = name(&choice);
            self.judge(&name, &stage, self.bounds.depth);
            if matches!(fault, Fault::Kill) {
                continue;
            }
            let evicted = stage.fork();
            if evict(&evicted.world) {
                self.judge(&format!("{name}/evict"), &evicted, self.bounds.depth);
            }
            self.power_cut(&format!("{name}/cut"), &stage, 0);
        }
    }

    fn wanted(&self, case: &str) -> bool {
        self.bounds.only.as_ref().is_none_or(|only| only.starts_with(case) || case.starts_with(only))
    }

    /// Every machine that a power cut now may leave.
    fn power_cut(&mut self, case: &str, stage: &Stage, depth: u32) {
        if !self.wanted(case) {
            return;
        }
        let exhaustive = if depth == 0 { self.bounds.exhaustive.min(2) } else { self.bounds.exhaustive };
        let samples = if depth == 0 { 0 } else { self.bounds.samples };
        let choices = Choices::new(&stage.world, exhaustive, samples, 1);
        for (n, (_, image)) in choices.enumerate() {
            if n < 2 || n % self.bounds.image_stride == 0 {
                self.judge(&format!("{case}.{n}"), &stage.on(image), depth);
            }
        }
    }

    /// The kernel may have written any earlier state of the mark to the disk.
    fn stale_marks(&mut self, case: &str, stage: &Stage, marks: &[Vec<u8>]) {
        if !self.wanted(case) {
            return;
        }
        for keep in [false, true] {
            for (n, mark) in marks.iter().enumerate().step_by(self.bounds.image_stride) {
                let mut stage = stage.fork();
                stage.restart(keep);
                if stage.world.read_file(MARK).is_ok() && stage.world.write_file(MARK, mark).is_ok() {
                    self.judge(&format!("{case}.{keep}.{n}"), &stage, 0);
                }
            }
        }
    }

    /// Judges one machine: as it is, while it is opened, when it is open, and after more was done.
    fn judge(&mut self, case: &str, stage: &Stage, depth: u32) {
        if !self.wanted(case) {
            return;
        }
        self.complain(case, &stage.problems);
        if !stage.problems.is_empty() || self.found.violations.len() >= ENOUGH {
            return;
        }
        let digest = digest(&stage.world, &stage.ledger);
        if !self.seen.insert(digest) && self.bounds.only.is_none() {
            self.found.duplicates += 1;
            return;
        }
        self.found.states += 1;
        // Now and then through another mount; which one follows from the state, to be found again.
        let mount = |at: usize| 1 + u64::from(digest[at] % 5 / 4);
        let mut stage = stage.fork();
        if let Some(mut log) = stage.open_log(mount(0)) {
            stage.judge(&mut log);
            stage.verify(&mut log, Verdict::Torn);
        }
        if depth > 0 {
            self.interrupt_opening(case, &stage, depth);
        }
        self.found.retries += stage.retries;
        stage.retries = 0;
        stage.retry_keys(mount(1));
        life_after(&mut stage, mount(1));
        self.complain(case, &stage.problems);
        self.found.retries += stage.retries;
    }

    /// Opens for writing with a crash at every operation of it.
    fn interrupt_opening(&mut self, case: &str, stage: &Stage, depth: u32) {
        let mut trial = stage.fork();
        let before = trial.world.operations();
        trial.world.record();
        drop(trial.open(1));
        let trace = trial.world.trace();
        for operation in trace.iter().filter(|o| (o.number - before).is_multiple_of(self.bounds.open_stride))
        {
            let n = operation.number - before;
            for (word, fault) in [("kill", Fault::Kill), ("cut", Fault::PowerCut), ("eio", Fault::once(EIO))]
            {
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
                    self.power_cut(&name, &stage, depth - 1);
                } else {
                    self.judge(&name, &stage, depth - 1);
                }
            }
        }
    }
}

/// The faults to plan for one operation, but for the power cut.
fn faults(at: &Operation) -> Vec<(String, Fault)> {
    let mut faults = vec![("kill".to_owned(), Fault::Kill)];
    // Of the data directory's own entries no later sync tells more either; it is a new journal's
    // first act, and there is nothing yet to be lost.
    if (at.kind, &*at.file) == ("sync_dir", ".") {
        return faults;
    }
    for (name, errno) in [("eio", EIO), ("enospc", ENOSPC)] {
        // A directory that cannot be synced, and then not be changed either, has no way out.
        if at.kind != "sync_dir" {
            faults.push((format!("{name}.sticky"), Fault::sticky(errno)));
        }
        faults.push((name.to_owned(), Fault::once(errno)));
    }
    match at.kind {
        "write" => {
            let sectors = (at.offset + at.len).div_ceil(SECTOR) - at.offset / SECTOR;
            faults.extend((1..=sectors).map(|k| (format!("kill.{k}"), Fault::KillAfterSectors(k))));
            for bytes in [1, at.len / 2, at.len.saturating_sub(1)] {
                let bytes = usize::try_from(bytes).unwrap_or(0);
                faults.push((format!("short.{bytes}"), Fault::Short { bytes, errno: EINTR }));
            }
        }
        "sync" | "sync_dir" => {
            let prefixes = (1..8).map(|k| (1 << k) - 1);
            let singles = (0..8).map(|k| 1 << k);
            let omissions = (0..8).map(|k| !(1 << k));
            let masks: BTreeSet<u64> = prefixes.chain(singles).chain(omissions).chain([u64::MAX]).collect();
            faults.extend(masks.into_iter().map(|survivors| {
                (format!("eio.{survivors:x}"), Fault::Error { errno: EIO, sticky: false, survivors })
            }));
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

/// What is read, what is durable, what lies between, and what is demanded.
fn digest(world: &SimWorld, ledger: &Ledger) -> [u8; blake3::OUT_LEN] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&world.digest()).update(&ledger.digest());
    let volatile = world.volatile();
    for name in world.names().iter().filter(|_| !volatile.is_empty()) {
        hasher.update(name.as_bytes()).update(&world.read_file(name).unwrap_or_default());
    }
    for unit in volatile {
        hasher.update(world.describe(&unit).as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The files of the journal, but for those that say who is alive.
fn journal_files(world: &SimWorld) -> BTreeMap<String, Vec<u8>> {
    let names = world.names().into_iter();
    let kept = names.filter(|name| name.starts_with("journal/") && !name.starts_with("journal/live/"));
    kept.map(|name| (name.clone(), world.read_file(&name).unwrap_or_default())).collect()
}

/// Opens, checks, opens again, goes on, loses power, and checks once more.
fn life_after(stage: &mut Stage, mount: u64) {
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
