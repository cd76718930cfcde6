//! The damage matrix: a small journal, damaged in every single place, and what reading, verifying,
//! opening for writing and giving up make of it.

use super::stage::{Stage, read_all};
use crate::disk::sim::{Fate, Fault, SECTOR, SimWorld};
use crate::engine::Engine;
use crate::error::ErrorKind;
use crate::format::{BatchHeader, HeaderBlock, SEGMENT_DATA_START};
use crate::journal::{Damage, Verdict, Verification};
use crate::position::Position;
use crate::record::Record;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What is done to a file of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// One bit is turned over.
    Flip {
        /// Which byte.
        byte: usize,
        /// Which of its bits.
        bit: u8,
    },
    /// The file is cut to a length.
    Cut(usize),
    /// A sector reads as zeros.
    Zero(usize),
    /// The file is gone.
    Delete,
    /// It changes places with another segment.
    Swap(u64),
    /// Another segment gets its bytes.
    Over(u64),
    /// It is replaced by the segment of the same number of another journal.
    Foreign,
}

impl Harm {
    fn word(self) -> &'static str {
        match self {
            Self::Flip { .. } => "one bit flipped",
            Self::Cut(_) => "cut short",
            Self::Zero(_) => "sector of zeros",
            Self::Delete => "file deleted",
            Self::Swap(_) => "swapped with another",
            Self::Over(_) => "copied over another",
            Self::Foreign => "from another journal",
        }
    }
}

/// Where the damaged directory is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// In the directory itself, in the same boot.
    InPlace,
    /// There, after the machine was started anew.
    Rebooted,
    /// In a copy of the directory.
    Copied,
}

/// All of them.
pub const SETTINGS: [Setting; 3] = [Setting::InPlace, Setting::Rebooted, Setting::Copied];

#[derive(Debug, Clone, Copy)]
struct Extent {
    segment: u64,
    from: usize,
    to: usize,
    first: u64,
    last: u64,
}

/// The undamaged journal, and what there is to know about it.
#[derive(Debug)]
pub struct Specimen {
    stage: Stage,
    foreign: SimWorld,
    records: Vec<Record>,
    batches: Vec<Extent>,
    files: BTreeMap<String, Vec<u8>>,
    active: u64,
}

/// One damage.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file it is done to.
    pub file: String,
    /// What is done.
    pub harm: Harm,
}

/// What came of one damage in one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict and what it cost, in words.
    pub verdict: String,
    /// Whether opening for writing went on or refused.
    pub writing: &'static str,
}

fn segment_name(number: u64) -> String {
    format!("journal/{number:010}.seg")
}

fn number_in(file: &str) -> Option<u64> {
    file.strip_prefix("journal/")?.strip_suffix(".seg")?.parse().ok()
}

/// Three segments with a footer, one that was closed by recovery, and the active one.
fn make(seed: usize) -> Stage {
    let mut stage = Stage::new(2600, 2600).seeded(seed as u64);
    let Some(writer) = stage.open(1) else { return stage };
    let run = stage.begin(&writer, "a");
    for len in [60 + seed, 20, 300, 40, 200] {
        stage.append(&writer, run, &[len, 10]);
    }
    // Killed at the sync: the next one goes on in a new segment.
    stage.world.fail_at(stage.world.operations() + 3, Fault::Kill);
    stage.expect_faults(true);
    stage.append(&writer, run, &[30]);
    stage.expect_faults(false);
    stage.world.clear_faults();
    let Some(writer) = stage.open(1) else { return stage };
    let run = stage.begin(&writer, "b");
    for len in [90, 120, 15, 25] {
        stage.append(&writer, run, &[len, 8]);
    }
    stage.finish(&writer, run);
    stage.close(writer);
    stage.world = stage.world.fork();
    // Reading may sync; nothing is left for that to change.
    stage.world.volatile().iter().for_each(|unit| stage.world.write_back(unit));
    stage
}

fn extents(number: u64, bytes: &[u8], out: &mut Vec<Extent>) -> Option<()> {
    let header = HeaderBlock::decode(&bytes[..usize::try_from(SEGMENT_DATA_START).ok()?]).ok()?.header;
    let mut from = usize::try_from(SEGMENT_DATA_START).ok()?;
    while let Ok(batch) = BatchHeader::decode(&bytes[from..], &header.site(), from as u64) {
        let to = from + usize::try_from(batch.frame_len()).ok()?;
        let (first, last) = (batch.first_position.0, batch.last_position().0);
        // What stands in doubt at the end of a segment stands again in the next one.
        out.retain(|before| before.first != first);
        out.push(Extent { segment: number, from, to, first, last });
        from = to;
    }
    Some(())
}

impl Specimen {
    /// Makes it.
    pub fn new() -> Result<Self, String> {
        let mut stage = make(0);
        stage.look(1);
        let mut log = stage.open_log(1).ok_or("the specimen cannot be read")?;
        let (records, damage) = read_all(&mut log).map_err(|error| error.to_string())?;
        if !stage.problems.is_empty() || !damage.is_empty() {
            return Err(format!("the specimen is damaged: {:?} {damage:?}", stage.problems));
        }
        let mut files = BTreeMap::new();
        let (mut batches, mut active) = (Vec::new(), 0);
        for name in stage.world.names() {
            let bytes = stage.world.read_file(&name).map_err(|error| error.to_string())?;
            if let Some(number) = number_in(&name) {
                extents(number, &bytes, &mut batches);
                active = active.max(number);
            } else if name != "journal/mark" && !name.starts_with("cache/index/") {
                continue;
            }
            files.insert(name, bytes);
        }
        let foreign = make(7).world;
        Ok(Self { stage, foreign, records, batches, files, active })
    }

    /// Every damage there is: each bit, each length, each sector that falls on `step`, and
    /// everything that is done to whole files.
    pub fn cases(&self, step: usize) -> Vec<Case> {
        let mut cases = Vec::new();
        for (file, bytes) in &self.files {
            let mut add = |harm| cases.push(Case { file: file.clone(), harm });
            for bit in (0..bytes.len() * 8).step_by(step) {
                add(Harm::Flip { byte: bit / 8, bit: u8::try_from(bit % 8).unwrap_or(0) });
            }
            (0..bytes.len()).step_by(step.div_ceil(8)).for_each(|len| add(Harm::Cut(len)));
            let sector = usize::try_from(SECTOR).unwrap_or(512);
            (0..bytes.len().div_ceil(sector)).for_each(|sector| add(Harm::Zero(sector)));
            add(Harm::Delete);
            let Some(number) = number_in(file) else { continue };
            add(Harm::Foreign);
            for other in (1..=self.active + 1).filter(|other| *other != number) {
                add(Harm::Over(other));
                if other > number && other <= self.active {
                    add(Harm::Swap(other));
                }
            }
        }
        cases
    }

    /// Which part of the journal a damage concerns.
    pub fn part(&self, case: &Case) -> String {
        let Some(number) = number_in(&case.file) else {
            let name = if case.file == "journal/mark" { "mark" } else { "index in the cache" };
            return name.to_owned();
        };
        let kind = if number == self.active { "active segment" } else { "sealed segment" };
        let Harm::Flip { byte, .. } = case.harm else { return kind.to_owned() };
        let start = usize::try_from(SEGMENT_DATA_START).unwrap_or(0);
        let mut here = self.batches.iter().filter(|b| b.segment == number);
        let what = if byte < start {
            "header"
        } else if here.any(|b| (b.from..b.to).contains(&byte)) {
            "batch"
        } else {
            "behind the batches"
        };
        format!("{kind}, {what}")
    }

    fn apply(&self, case: &Case) -> Option<SimWorld> {
        let world = self.stage.world.fork();
        let bytes = &self.files[&case.file];
        let mut new = bytes.clone();
        match case.harm {
            Harm::Flip { byte, bit } => new[byte] ^= 1 << bit,
            Harm::Cut(len) => new.truncate(len),
            Harm::Zero(sector) => {
                let end = new.len().min((sector + 1) * 512);
                new[sector * 512..end].fill(0);
            }
            Harm::Delete => return world.remove_file(&case.file).ok().map(|()| world),
            Harm::Swap(other) => {
                world.rename_file(&case.file, "x").ok()?;
                world.rename_file(&segment_name(other), &case.file).ok()?;
                world.rename_file("x", &segment_name(other)).ok()?;
                return Some(world);
            }
            Harm::Over(other) => return world.write_file(&segment_name(other), bytes).ok().map(|()| world),
            Harm::Foreign => new = self.foreign.read_file(&case.file).ok()?,
        }
        world.write_file(&case.file, &new).ok()?;
        Some(world)
    }

    /// The positions that a damage may cost: those of the batches it touches.
    fn at_stake(&self, case: &Case) -> BTreeSet<u64> {
        let Some(number) = number_in(&case.file) else { return BTreeSet::new() };
        let start = usize::try_from(SEGMENT_DATA_START).unwrap_or(0);
        let touched = |batch: &&Extent| {
            let mine = batch.segment == number;
            match case.harm {
                Harm::Flip { byte, .. } => mine && (batch.from..batch.to).contains(&byte),
                Harm::Cut(len) => mine && (batch.to > len || len < start / 2),
                Harm::Zero(sector) => mine && batch.from < (sector + 1) * 512 && batch.to > sector * 512,
                Harm::Delete | Harm::Foreign => mine,
                Harm::Swap(other) => mine || batch.segment == other,
                Harm::Over(other) => batch.segment == other,
            }
        };
        self.batches.iter().filter(touched).flat_map(|batch| batch.first..=batch.last).collect()
    }

    /// Damages a copy of the specimen and judges all that is made of it.
    pub fn examine(&self, case: &Case, setting: Setting) -> Result<Outcome, String> {
        let world = self.apply(case).ok_or("the damage could not be done")?;
        let world = match setting {
            Setting::InPlace => world,
            Setting::Rebooted => world.power_cut(&mut |_| Fate::New),
            Setting::Copied => world.copy_to_new_inodes(),
        };
        let mut stage = self.stage.on(world);
        let before = (stage.world.digest(), contents(&stage.world));
        let seen = look(&mut stage)?;
        if (stage.world.digest(), contents(&stage.world)) != before {
            return Err("reading changed something on the disk".to_owned());
        }
        let lost = self.judge(case, setting, &seen)?;
        let writing = self.write(case, &mut stage, &seen, &lost)?;
        Ok(Outcome { verdict: in_words(&seen, lost.len()), writing })
    }

    /// What is read is what was written; what is not read is told, and was damaged.
    fn judge(&self, case: &Case, setting: Setting, seen: &Seen) -> Result<BTreeSet<u64>, String> {
        let mut lost: BTreeSet<u64> = self.records.iter().map(|r| r.position.0).collect();
        for record in &seen.records {
            let right = self.records.iter().find(|r| r.position == record.position);
            if right != Some(record) {
                return Err(format!("record {} is read as {record:?}", record.position));
            }
            if !lost.remove(&record.position.0) {
                return Err(format!("record {} is read twice", record.position));
            }
        }
        let (read, verified) = (told(&seen.damage), told(&seen.verification.damage));
        // On one disk this cannot be told from a write that was cut short; it still has to be said.
        // So has the end of a copy that its mark names and that is not there.
        let cut = seen.verification.notes.iter().any(|note| note.contains("incomplete"));
        let residual = |position: u64| setting == Setting::Copied && (cut || self.in_last_batches(position));
        let at_stake = self.at_stake(case);
        for position in &lost {
            if !at_stake.contains(position) {
                return Err(format!("record {position} is not damaged and not read: {:?}", seen.damage));
            }
            let silent = !read.contains(position) || !verified.contains(position);
            if silent && !(residual(*position) && seen.verification.verdict >= Verdict::Torn) {
                return Err(format!("record {position} is missing without a word: {:?}", seen.verification));
            }
        }
        if let Some(wrong) = verified.iter().find(|position| !lost.contains(position)) {
            return Err(format!("record {wrong} is called lost and is read: {:?}", seen.verification.damage));
        }
        Ok(lost)
    }

    /// Whether only the last group of the active segment is behind this position.
    fn in_last_batches(&self, position: u64) -> bool {
        self.batches.iter().rev().take(1).any(|batch| position >= batch.first)
    }

    /// Opening for writing goes on and loses nothing, or refuses; then giving up is the way on.
    fn write(
        &self,
        case: &Case,
        stage: &mut Stage,
        seen: &Seen,
        lost: &BTreeSet<u64>,
    ) -> Result<&'static str, String> {
        let (_, world) = stage.process(1);
        let opened = Engine::open_in(world, stage.options()).map(drop);
        let writing = match opened {
            Ok(()) => "goes on",
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let sealed = number_in(&case.file).is_some_and(|number| number < self.active);
                if sealed && !matches!(case.harm, Harm::Swap(_) | Harm::Over(_)) {
                    return Err(format!("damage in a sealed segment stops writing: {error}"));
                }
                Self::give_up(stage)?;
                "refused"
            }
            Err(error) => return Err(format!("opening for writing: {error}")),
        };
        let Some(writer) = stage.open(1) else {
            return Err(format!("{writing}, then: {:?}", stage.problems));
        };
        stage.tick(&writer);
        let run = stage.begin(&writer, "after");
        stage.finish(&writer, run);
        stage.close(writer);
        if !stage.problems.is_empty() {
            return Err(format!("{writing}, then: {:?}", stage.problems));
        }
        let after = look(stage)?;
        let missing = seen.records.iter().find(|record| !after.records.contains(record));
        if let Some(record) = missing {
            return Err(format!("{writing}: record {} was read before, now not", record.position));
        }
        if after.records.len() < seen.records.len() + 5 {
            return Err(format!("{writing}: what was appended is not read"));
        }
        let told = told(&after.verification.damage);
        if let Some(silent) = lost.iter().find(|position| {
            !told.contains(position) && !after.records.iter().any(|r| r.position.0 == **position)
        }) && seen.verification.verdict >= Verdict::Corrupt
        {
            return Err(format!("{writing}: record {silent} is not told to be lost any more"));
        }
        let given_up = |d: &Damage| !d.accepted && self.batches.iter().any(|b| self.concerns(b, d));
        let bad = after.verification.damage.iter().any(given_up);
        if writing == "refused" && bad {
            return Err(format!("what was given up is not accepted: {:?}", after.verification.damage));
        }
        Ok(writing)
    }

    fn concerns(&self, batch: &Extent, damage: &Damage) -> bool {
        batch.segment == self.active && (damage.from.0..=damage.to.0).contains(&batch.first)
    }

    fn give_up(stage: &mut Stage) -> Result<(), String> {
        let (_, world) = stage.process(1);
        match Engine::accept_damage(world, &stage.options()) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err("opening refused, and nothing was to be given up".to_owned()),
            Err(error) => Err(format!("giving up: {error}")),
        }
    }
}

/// What a reader and a verification found.
#[derive(Debug)]
struct Seen {
    records: Vec<Record>,
    damage: Vec<Damage>,
    verification: Verification,
}

fn look(stage: &mut Stage) -> Result<Seen, String> {
    let (_, world) = stage.process(1);
    let mut log = crate::engine::Log::open_in(&world).map_err(|e| format!("opening for reading: {e}"))?;
    let (records, damage) = read_all(&mut log).map_err(|e| format!("reading: {e}"))?;
    let verification = log.verify(&mut |_| {}).map_err(|e| format!("verifying: {e}"))?;
    Ok(Seen { records, damage, verification })
}

fn contents(world: &SimWorld) -> Vec<(String, Vec<u8>)> {
    world.names().into_iter().map(|name| (name.clone(), world.read_file(&name).unwrap_or_default())).collect()
}

fn told(damage: &[Damage]) -> BTreeSet<u64> {
    damage.iter().filter(|d| d.from != Position::ZERO).flat_map(|d| d.from.0..=d.to.0).collect()
}

fn in_words(seen: &Seen, lost: usize) -> String {
    let Verification { verdict, notes, damage, .. } = &seen.verification;
    let cost = match (verdict, lost) {
        (Verdict::Clean, _) if damage.is_empty() && notes.is_empty() => "",
        (Verdict::Clean, _) => ", noted",
        (_, 0) => ", nothing lost",
        (_, _) => ", records lost",
    };
    format!("{}{cost}", verdict.word())
}

/// What the matrix is made of: counts of outcomes by kind of damage, part and setting.
pub type Matrix = BTreeMap<(&'static str, String), BTreeMap<Setting, BTreeMap<String, u64>>>;

/// Examines everything that falls on `step`. The complaints come with their cases.
pub fn matrix(specimen: &Specimen, step: usize) -> (Matrix, Vec<String>) {
    let (mut matrix, mut complaints) = (Matrix::new(), Vec::new());
    for case in specimen.cases(step) {
        for setting in SETTINGS {
            match specimen.examine(&case, setting) {
                Ok(Outcome { verdict, writing }) => {
                    let row = matrix.entry((case.harm.word(), specimen.part(&case))).or_default();
                    let cell = row.entry(setting).or_default();
                    *cell.entry(format!("{verdict}; {writing}")).or_default() += 1;
                }
                Err(why) => complaints.push(format!("{:?} of {}, {setting:?}: {why}", case.harm, case.file)),
            }
        }
    }
    (matrix, complaints)
}

/// Every how many bits, and eighths of that bytes of length, the published table is made of.
pub const PUBLISHED_STEP: usize = 257;

/// The page `src/docs/verdicts.md`, as this version makes it.
pub fn page() -> Result<String, String> {
    let (matrix, complaints) = matrix(&Specimen::new()?, PUBLISHED_STEP);
    match complaints.first() {
        Some(first) => Err(format!("{} complaints, the first: {first}", complaints.len())),
        None => Ok(format!("{INTRODUCTION}{}", table(&matrix))),
    }
}

const INTRODUCTION: &str = "# What becomes of damage

A small journal of a few sealed segments, one of them ended by a recovery, and an active one is damaged
in one place at a time: bits and lengths in steps over every file, every sector, every file as a whole.
Each damage is looked at three times: in the directory itself, there after the machine was started
anew, and in a copy of the directory. A cell counts how often `verify` came to which verdict, what it
cost, and whether opening for writing went on or refused until the damage was accepted.

What the count stands for has been checked in every case: no record is read that was not written, none
that the damage does not touch is missing, what is missing is named (but for the very last batch of a
copy, of which only the cut is told), reading changes nothing on the disk, and after opening, or after
accepting, what was read before is read again and new records can be written.

This page is made by `cargo run --example verdicts --features testing`, and a test holds it to that.

";

/// The matrix as a table in Markdown.
pub fn table(matrix: &Matrix) -> String {
    let mut text =
        String::from("| damage | where | in place | after a reboot | in a copy |\n|---|---|---|---|---|\n");
    for ((harm, part), row) in matrix {
        let _ = write!(text, "| {harm} | {part} |");
        for setting in SETTINGS {
            let counts: Vec<String> = row
                .get(&setting)
                .into_iter()
                .flatten()
                .map(|(outcome, count)| format!("{count} × {outcome}"))
                .collect();
            let _ = write!(text, " {} |", counts.join("<br>"));
        }
        text.push('\n');
    }
    text
}
