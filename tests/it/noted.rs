//! What opening need not look at: files that were found right before, in this session and on this disk.

use runwal::disk::sim::Fate;
use runwal::disk::{Disk, Open};
use runwal::engine::{Engine, Options};
use runwal::record::Id;
use runwal::run::{End, Outcome, Recorder, RunRequest};
use runwal::testing::stage::{Stage, Writer};
use runwal::testing::watched::{Call, Watched};
use std::sync::{Arc, Mutex};

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

/// A journal in which so many runs have ended, whose recorder has gone and has made none of their files.
fn with_runs(count: usize) -> Stage {
    let mut stage = journal();
    let writer = stage.open(1).unwrap();
    add_runs(&mut stage, &writer, count);
    stage.close(writer);
    stage
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
        let mut stage = with_runs(runs);
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
    let mut stage = with_runs(MANY);
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
    let mut stage = with_runs(MANY);
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

/// Somebody brought an older journal back, in which runs had not ended, and goes on: what was noted of records that
/// are gone says nothing of those that come to have their positions, however soon that is.
#[test]
fn what_was_noted_of_records_that_are_gone_is_not_believed_of_others() {
    let mut stage = journal();
    let writer = stage.open(1).unwrap();
    add_runs(&mut stage, &writer, MANY);
    let runs: Vec<_> = (0..6).map(|_| stage.begin(&writer, "a")).collect();
    let older = stage.fork();
    // It ends with fewer records than opening gives to one that has no end.
    stage.finish(&writer, runs[0]);
    stage.close(writer);
    files_are_right(&mut stage);
    let later = noted(&stage)["published"].as_u64().unwrap();
    for name in ["journal/0000000001.seg", "journal/mark"] {
        stage.world.write_file(name, &older.world.read_file(name).unwrap()).unwrap();
    }
    let mut stage = older.on(stage.world.fork());
    // Opening ends all of them, and with that the journal is longer than what was noted.
    files_are_right(&mut stage);
    assert!(stage.open_log(1).unwrap().durable().0 >= later);
}

/// What others write and seal while one who opens repairs files: it has not looked at theirs.
#[test]
fn what_is_sealed_meanwhile_is_not_noted_as_projected() {
    let mut stage = Stage::new(1400, 1400);
    let writer = stage.open(1).unwrap();
    add_runs(&mut stage, &writer, 3);
    stage.close(writer);
    let writer = stage.open(1).unwrap();
    let writer = Mutex::new(Some(writer));
    let before = stage.open_log(1).unwrap().durable();
    let (disk, mut world) = stage.process(1);
    // While it looks at the first file, the other one records runs, of which nobody makes files, until the journal
    // has rolled.
    world.disk = Arc::new(Watched::new(Arc::new(disk), move |call, name| {
        if call == Call::Open
            && name.starts_with("cache/files/")
            && let Some(writer) = writer.lock().unwrap().take()
        {
            for n in 0..8 {
                let id = |text: &str| Id::new(text).unwrap();
                let request = RunRequest::new(id("meanwhile"), id(&format!("m{n}")), id("s"));
                let mut run = Recorder::prepare(writer.engine(), request).unwrap();
                run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
            }
            std::mem::forget(writer);
        }
    }));
    let (engine, report) = Engine::open_in(world, Options { publish: true, ..stage.options() }).unwrap();
    assert!(report.rewritten_files > 0 && report.problems.is_empty(), "{report:?}");
    engine.close().unwrap();
    assert!(stage.open_log(1).unwrap().segments().unwrap().len() > 4);
    assert!(noted(&stage)["position"].as_u64().unwrap() <= before.0, "{} {before}", noted(&stage));
}

/// Several may open at once.
#[test]
fn who_notes_at_the_same_time_is_in_nobodys_way() {
    let mut stage = with_runs(MANY);
    open_with_files(&mut stage);
    let first = noted(&stage);
    let writer = stage.open(1).unwrap();
    add_runs(&mut stage, &writer, MANY);
    stage.close(writer);
    let (other, _) = stage.process(1);
    let folder = other.open("cache", Open::Directory).unwrap();
    assert!(folder.try_lock().unwrap());
    open_with_files(&mut stage);
    assert_eq!(noted(&stage), first);
    folder.unlock().unwrap();
    open_with_files(&mut stage);
    assert!(noted(&stage)["published"].as_u64() > first["published"].as_u64());
}

/// Of a run that is damaged all records are read to find that out: each opening does so, and tells it, while the
/// run is in the newest segment, and one more.
#[test]
fn what_is_damaged_is_told_until_it_is_sealed() {
    // What opening knows of the newest segment is in the cache, so that it does not look at what is damaged.
    let mut stage = Stage::new(256 << 10, 256 << 10).keeping_indexes();
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[1_000]);
    stage.finish(&writer, run);
    add_runs(&mut stage, &writer, 2);
    stage.close(writer);
    let name = "journal/0000000001.seg";
    let mut bytes = stage.world.read_file(name).unwrap();
    let at = bytes.windows(100).position(|bytes| bytes == [b'x'; 100]).unwrap();
    bytes[at] = b'y';
    stage.world.write_file(name, &bytes).unwrap();
    let opened = |stage: &mut Stage| {
        let (_, world) = stage.process(1);
        let (engine, report) = Engine::open_in(world, Options { publish: true, ..stage.options() }).unwrap();
        engine.close().unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        report.damaged_runs.len()
    };
    assert_eq!([opened(&mut stage), opened(&mut stage)], [1, 1]);
    let writer = stage.open(1).unwrap();
    add_runs(&mut stage, &writer, MANY);
    stage.close(writer);
    assert_eq!([opened(&mut stage), opened(&mut stage)], [1, 1], "with a note");
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    while stage.world.read_file("journal/0000000002.seg").is_err() {
        stage.append_noise(&writer, run, 100_000);
    }
    stage.finish(&writer, run);
    stage.close(writer);
    assert_eq!([opened(&mut stage), opened(&mut stage), opened(&mut stage)], [1, 0, 0], "sealed");
}
