//! Short uses of the log, each of them to be interrupted everywhere.

use super::sequences::{Players, Sequence};
use super::stage::Stage;
use std::fmt;

/// What is done to a machine: first undisturbed, then with a crash or a failure somewhere.
#[derive(Debug, Clone)]
pub enum Workload {
    /// One of [`ALL`].
    Named(&'static Named),
    /// The last call of a sequence is what is disturbed.
    Sequence(Sequence),
}

/// A workload that has a name.
#[derive(Debug)]
pub struct Named {
    /// What it is called in reports.
    pub name: &'static str,
    setting: fn() -> Stage,
    before: fn(&mut Stage),
    act: fn(&mut Stage),
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(named) => f.write_str(named.name),
            Self::Sequence(sequence) => sequence.fmt(f),
        }
    }
}

impl Workload {
    /// The one that a case was reported under: what stands before the first slash.
    pub fn of_case(case: &str) -> Option<Self> {
        let name = case.split('/').next()?;
        let named = ALL.iter().find(|named| named.name == name).map(Self::Named);
        named.or_else(|| Sequence::parse(name).map(Self::Sequence))
    }

    /// The machine before anything of it is done.
    pub fn base(&self) -> Stage {
        match self {
            Self::Named(named) => {
                let mut stage = (named.setting)();
                (named.before)(&mut stage);
                stage
            }
            Self::Sequence(sequence) => {
                let mut stage = sequence.setting.stage();
                sequence.setting.before(&mut stage);
                stage
            }
        }
    }

    /// Does it; before the part that is to be disturbed, `plan` is asked to.
    pub fn act(&self, stage: &mut Stage, plan: impl FnOnce(&mut Stage)) {
        match self {
            Self::Named(named) => {
                plan(stage);
                (named.act)(stage);
            }
            Self::Sequence(sequence) => {
                let Some((last, before)) = sequence.calls.split_last() else { return };
                let mut players = Players::default();
                before.iter().for_each(|call| players.play(stage, *call));
                plan(stage);
                players.play(stage, *last);
            }
        }
    }
}

const ROOMY: fn() -> Stage = || Stage::new(64 << 10, 64 << 10);
const NARROW: fn() -> Stage = || Stage::new(1400, 1400);
const PACKED: fn() -> Stage = || Stage::new(1400, 1400).compressing();
const SPARES: fn() -> Stage = || Stage::new(1400, 1400).with_spares().keeping_indexes();

/// All of them.
pub const ALL: &[Named] = &[
    Named { name: "create", setting: ROOMY, before: nothing, act: open_and_close },
    Named { name: "appends", setting: ROOMY, before: nothing, act: appends },
    Named { name: "continue", setting: ROOMY, before: a_run_that_ended, act: appends },
    Named { name: "keys", setting: ROOMY, before: nothing, act: keys },
    Named { name: "keys-narrow", setting: NARROW, before: a_run_without_end, act: keys },
    Named { name: "large", setting: ROOMY, before: a_run_that_ended, act: large_batch },
    Named { name: "group", setting: ROOMY, before: nothing, act: group },
    Named { name: "packed", setting: PACKED, before: a_run_without_end, act: large_batch },
    Named { name: "packed-group", setting: PACKED, before: nothing, act: group },
    Named { name: "roll", setting: NARROW, before: a_run_that_ended, act: rolls },
    Named { name: "ticks", setting: NARROW, before: a_run_that_ended, act: ticks },
    Named { name: "dead-recorder", setting: ROOMY, before: a_run_without_end, act: open_and_close },
    Named { name: "dead-narrow", setting: NARROW, before: a_run_without_end, act: appends },
    Named { name: "next-boot", setting: ROOMY, before: another_boot, act: appends },
    Named { name: "doubt-next-boot", setting: ROOMY, before: doubt_then_boot, act: reading_then_writing },
    Named { name: "doubt-same-boot", setting: ROOMY, before: doubt, act: reading_then_writing },
    Named { name: "two-processes", setting: ROOMY, before: nothing, act: two_processes },
    Named { name: "two-narrow", setting: NARROW, before: a_run_that_ended, act: two_processes },
    Named { name: "two-mounts", setting: ROOMY, before: another_boot, act: two_mounts },
    Named { name: "readers", setting: NARROW, before: a_run_that_ended, act: readers_between },
    Named { name: "copied", setting: ROOMY, before: a_copy, act: appends },
    Named { name: "after-roll-crash", setting: NARROW, before: roll_cut_short, act: appends },
    Named { name: "after-unnamed-roll", setting: NARROW, before: roll_unnamed, act: open_and_close },
    Named { name: "spares", setting: SPARES, before: a_run_that_ended, act: rolls },
    Named { name: "spares-of-others", setting: SPARES, before: a_spare_of_the_dead, act: appends },
];

fn nothing(_: &mut Stage) {}

fn open_and_close(stage: &mut Stage) {
    if let Some(writer) = stage.open(1) {
        stage.close(writer);
    }
}

fn keys(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    let run = stage.begin(&writer, "a");
    stage.append_keyed(&writer, run, 20);
    stage.append(&writer, run, &[300]);
    stage.append_keyed(&writer, run, 400);
    let Some(other) = stage.open(1) else { return };
    // Opened behind the death of the first one, it has ended the run.
    if writer.disk.is_alive() {
        stage.append_keyed(&other, run, 400);
    }
    stage.close(other);
    stage.close(writer);
}

fn appends(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[20]);
    stage.append(&writer, run, &[300, 10, 500]);
    stage.finish(&writer, run);
    stage.close(writer);
}

fn a_run_that_ended(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    let run = stage.begin(&writer, "before");
    stage.append(&writer, run, &[100]);
    stage.finish(&writer, run);
    stage.close(writer);
}

fn large_batch(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[3000]);
    stage.append(&writer, run, &[1, 1500]);
    stage.close(writer);
}

fn group(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    let run = stage.begin(&writer, "a");
    stage.group(&writer, run, &[400, 700, 30, 500]);
    stage.group(&writer, run, &[600, 10]);
}

fn rolls(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    let run = stage.begin(&writer, "a");
    for len in [200, 700, 900] {
        stage.append(&writer, run, &[len]);
    }
    stage.finish(&writer, run);
    stage.close(writer);
}

fn ticks(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    for _ in 0..4 {
        stage.tick(&writer);
    }
    stage.close(writer);
}

fn a_run_without_end(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    let run = stage.begin(&writer, "left");
    stage.append(&writer, run, &[100]);
    writer.disk.kill();
}

fn another_boot(stage: &mut Stage) {
    a_run_that_ended(stage);
    stage.restart(false);
}

/// A group that was written and not synced, by a process that died.
fn doubt(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    let run = stage.begin(&writer, "left");
    let start = stage.world.operations();
    // Busy word, frames; then the sync.
    stage.world.fail_at(start + 3, crate::disk::sim::Fault::Kill);
    stage.expect_faults(true);
    stage.append(&writer, run, &[700]);
    stage.expect_faults(false);
    stage.world.clear_faults();
}

fn doubt_then_boot(stage: &mut Stage) {
    doubt(stage);
    stage.restart(true);
}

fn reading_then_writing(stage: &mut Stage) {
    stage.look(1);
    if let Some(writer) = stage.open(1) {
        stage.look(1);
        let run = stage.begin(&writer, "a");
        stage.append(&writer, run, &[100]);
        stage.look(1);
        stage.finish(&writer, run);
    }
    stage.look(1);
}

fn two_processes(stage: &mut Stage) {
    let one = stage.open(1);
    let run_one = one.as_ref().and_then(|w| stage.begin(w, "one"));
    let two = stage.open(1);
    let run_two = two.as_ref().and_then(|w| stage.begin(w, "two"));
    for len in [100, 300, 600] {
        if let Some(writer) = &one {
            stage.append(writer, run_one, &[len]);
        }
        stage.look(1);
        if let Some(writer) = &two {
            stage.append(writer, run_two, &[len, 20]);
        }
    }
    for (writer, run) in [(one, run_one), (two, run_two)] {
        if let Some(writer) = writer {
            stage.finish(&writer, run);
            stage.close(writer);
        }
    }
}

fn two_mounts(stage: &mut Stage) {
    stage.look(2);
    let one = stage.open(1);
    let run = one.as_ref().and_then(|w| stage.begin(w, "one"));
    stage.look(2);
    if let Some(two) = stage.open(2) {
        stage.tick(&two);
        stage.look(1);
        if let Some(writer) = &one {
            stage.append(writer, run, &[100]);
        }
        stage.look(2);
        stage.tick(&two);
        stage.close(two);
    }
    if let Some(writer) = one {
        stage.finish(&writer, run);
        stage.close(writer);
    }
}

fn readers_between(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    let mut follower = stage.open_log(1);
    let run = stage.begin(&writer, "a");
    for len in [300, 900, 20] {
        stage.append(&writer, run, &[len]);
        if let Some(log) = &mut follower {
            stage.follow(log);
        }
        stage.look(2);
    }
    stage.close(writer);
}

fn a_copy(stage: &mut Stage) {
    a_run_that_ended(stage);
    stage.world = stage.world.copy_to_new_inodes();
}

/// A writer that rolled, and died with a spare made and a run under way.
fn a_spare_of_the_dead(stage: &mut Stage) {
    let Some(writer) = stage.open(1) else { return };
    let run = stage.begin(&writer, "left");
    for len in [200, 700] {
        stage.append(&writer, run, &[len]);
    }
    writer.disk.kill();
}

/// A roll that died before the next segment had its name: at its sync.
fn roll_cut_short(stage: &mut Stage) {
    roll_that_dies(stage, 6);
}

/// A roll that died before the name of the next segment was durable: at the directory's sync.
fn roll_unnamed(stage: &mut Stage) {
    roll_that_dies(stage, 8);
}

/// The operations: busy word, footer, its sync, the temporary file, its content, its sync, its
/// name, the directory's sync.
fn roll_that_dies(stage: &mut Stage, operation: u64) {
    a_run_that_ended(stage);
    let Some(writer) = stage.open(1) else { return };
    let run = stage.begin(&writer, "left");
    stage.append(&writer, run, &[200]);
    let start = stage.world.operations();
    stage.world.fail_at(start + operation, crate::disk::sim::Fault::Kill);
    stage.expect_faults(true);
    stage.append(&writer, run, &[900]);
    stage.expect_faults(false);
    stage.world.clear_faults();
}
