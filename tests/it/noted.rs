//! What opening need not look at: files that were found right before, in this session and on this disk.

use runwal::disk::sim::Fate;
use runwal::engine::{Engine, Options};
use runwal::testing::stage::{Stage, Writer};

const NOTE: &str = "cache/projected";
/// More than are looked at again and again.
const MANY: usize = 40;

fn journal() -> Stage {
    Stage::new(16 << 20, 16 << 20)
}

fn add_runs(stage: &mut Stage, writer: &Writer, count: usize) {
    for _ in 0..count {
        let run = stage.begin(writer, "a");
        stage.append(writer, run, &[100]);
        stage.finish(writer, run);
    }
}

/// Opens as a conductor does, and answers how many looks at the disk that took.
fn open_with_files(stage: &mut Stage) -> u64 {
    let (_, world) = stage.process(1);
    let before = stage.world.looks();
    let (engine, report) = Engine::open_in(world, Options { publish: true, ..stage.options() }).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    let looks = stage.world.looks() - before;
    engine.close().unwrap();
    looks
}

fn noted(stage: &Stage) -> serde_json::Value {
    serde_json::from_slice(&stage.world.read_file(NOTE).unwrap()).unwrap()
}

fn files_are_right(stage: &mut Stage) {
    stage.check_files(1);
    assert!(stage.problems.is_empty(), "{:?}", stage.problems);
}

/// However many runs have ended, none of which is in a sealed segment.
#[test]
fn what_was_found_right_is_not_looked_at_again() {
    let looks = |runs: usize| {
        let mut stage = journal();
        let writer = stage.open(1).unwrap();
        add_runs(&mut stage, &writer, runs);
        stage.close(writer);
        files_are_right(&mut stage);
        let looks = open_with_files(&mut stage);
        // A few more are looked at each time, and noted once they are many.
        let writer = stage.open(1).unwrap();
        add_runs(&mut stage, &writer, 3);
        stage.close(writer);
        files_are_right(&mut stage);
        (looks, open_with_files(&mut stage))
    };
    let (some, many) = (looks(MANY), looks(10 * MANY));
    assert!(many.0 <= some.0 + 4 && many.1 <= some.1 + 4, "{some:?} {many:?}");
}

/// Nothing of the files was synced: a power cut may leave their lengths and times without their bytes.
#[test]
fn what_was_noted_in_another_boot_is_not_believed() {
    let mut stage = journal();
    let writer = stage.open(1).unwrap();
    add_runs(&mut stage, &writer, MANY);
    stage.close(writer);
    files_are_right(&mut stage);
    assert!(noted(&stage)["published"].as_u64() > noted(&stage)["position"].as_u64());
    let mut lost = 0;
    let world = stage.world.power_cut(&mut |unit| {
        let told = stage.world.describe(unit);
        let is_lost = told.starts_with("sector") && told.ends_with("stdout.log");
        lost += usize::from(is_lost);
        if is_lost { Fate::Zero } else { Fate::New }
    });
    let mut stage = stage.on(world);
    assert!(lost >= MANY && stage.world.read_file(NOTE).is_ok(), "{lost}");
    files_are_right(&mut stage);
}

/// What was copied beside the note may be from before it was made.
#[test]
fn what_was_noted_of_other_files_is_not_believed_of_a_copy() {
    let mut stage = journal();
    let writer = stage.open(1).unwrap();
    add_runs(&mut stage, &writer, MANY);
    stage.close(writer);
    files_are_right(&mut stage);
    let mut copy = stage.on(stage.world.copy_to_new_inodes());
    copy.world.remove_file("runs/a/r1/stdout.log").unwrap();
    files_are_right(&mut copy);
}

/// A recorder that has ended its run, and dies before the files show it.
#[test]
fn whose_files_were_not_there_yet_is_looked_at_again() {
    let mut stage = journal();
    let (writer, slow) = (stage.open(1).unwrap(), stage.open(1).unwrap());
    add_runs(&mut stage, &slow, 2);
    add_runs(&mut stage, &writer, MANY);
    stage.close(writer);
    // The files of a recorder that lives are its own to make.
    open_with_files(&mut stage);
    let left = noted(&stage);
    assert_eq!(left["but"].as_array().map(Vec::len), Some(2), "{left}");
    slow.disk.kill();
    files_are_right(&mut stage);
    // One that is right by now is left out no longer than until it is noted anew.
    let writer = stage.open(1).unwrap();
    add_runs(&mut stage, &writer, MANY);
    stage.close(writer);
    files_are_right(&mut stage);
    let left = noted(&stage);
    assert_eq!(left["but"].as_array().map(Vec::len), Some(0), "{left}");
}

/// Somebody brought an older journal back, and goes on: what was noted of records that are gone says nothing of those
/// that come to have their positions.
#[test]
fn what_was_noted_of_records_that_are_gone_is_forgotten_at_once() {
    let mut stage = journal();
    let writer = stage.open(1).unwrap();
    let older = stage.fork();
    add_runs(&mut stage, &writer, MANY);
    stage.close(writer);
    files_are_right(&mut stage);
    let later = noted(&stage);
    for name in ["journal/0000000001.seg", "journal/mark"] {
        stage.world.write_file(name, &older.world.read_file(name).unwrap()).unwrap();
    }
    let mut stage = older.on(stage.world.fork());
    open_with_files(&mut stage);
    assert!(noted(&stage)["published"].as_u64() < later["published"].as_u64());
    let writer = stage.open(1).unwrap();
    add_runs(&mut stage, &writer, MANY + 5);
    stage.close(writer);
    files_are_right(&mut stage);
}
