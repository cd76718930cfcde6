//! What the crash explorer finds wrong in some seconds; the atlas looks for minutes and hours.

use runwal::disk::sim::{Fault, SimWorld};
use runwal::engine::{Engine, Options};
use runwal::error::{Error, ErrorKind};
use runwal::record::{Body, Channel, Id};
use runwal::run::{Recorder, RunRequest};
use runwal::testing::explorer::{Bounds, Explored, Seen, explore};
use runwal::testing::sequences::Sequence;
use runwal::testing::stage::Stage;
use runwal::testing::workloads::{ALL, Workload};

/// Every crash and every failure of what a process does to an empty and to a used journal in one call,
/// and some of the named workloads.
#[test]
fn every_crash_keeps_the_promises() {
    let seen = Seen::default();
    let mut total = Explored::default();
    let fewer = Bounds { stride: 5, errnos: 1, looks: false, ..Bounds::exhaustive(2) };
    for named in ALL {
        total.add(explore(&Workload::Named(named), &fewer, &seen));
    }
    for sequence in Sequence::all(1) {
        let bounds = Bounds { stride: 2, errnos: 1, life_share: 256, ..Bounds::exhaustive(2).nested(1, 256) };
        total.add(explore(&Workload::Sequence(sequence), &bounds, &seen));
    }
    println!("{total:?}");
    assert!(total.violations.is_empty(), "{:#?}", total.violations);
    assert!(total.states.iter().sum::<u64>() > 5_000, "{total:?}");
}

/// Looks that fail, of which one right behind taking the lock left it taken; and marks of before the file
/// system was lost and mounted anew, which readers believed.
#[test]
fn looks_that_fail_and_stale_marks_cost_nothing() {
    let bounds = Bounds { errnos: 1, samples: 0, ..Bounds::exhaustive(0) };
    for named in ALL.iter().filter(|named| ["two-narrow", "appends"].contains(&named.name)) {
        let explored = explore(&Workload::Named(named), &bounds, &Seen::default());
        assert!(explored.violations.is_empty(), "{:#?}", explored.violations);
    }
}

/// One process's sync fails, another one goes on; the first one's handle writes no more, and what
/// it had written is kept or lost as a whole.
#[test]
fn a_handle_whose_sync_failed_writes_no_more() {
    for survivors in [0, 1, 2, u64::MAX] {
        let mut stage = Stage::new(64 << 10, 64 << 10);
        let one = stage.open(1).expect("opened");
        let run = stage.begin(&one, "one");
        stage.look(1);
        stage.expect_faults(true);
        // Busy word, frames, then the sync.
        let fault = Fault::Error { errno: 5, sticky: false, survivors };
        stage.world.fail_at(stage.world.operations() + 3, fault);
        assert_eq!(stage.append(&one, run, &[700]), None);
        assert!(one.engine().is_poisoned());
        stage.look(1);
        let two = stage.open(1).expect("opened beside it");
        stage.tick(&two);
        stage.look(2);
        assert_eq!(stage.append(&one, run, &[10]), None, "a poisoned handle wrote");
        stage.tick(&two);
        stage.expect_faults(false);
        drop(one);
        stage.close(two);
        for keep in [false, true] {
            let mut later = stage.fork();
            later.restart(keep);
            later.look(1);
            let writer = later.open(1).expect("opened after the power cut");
            later.look(1);
            later.close(writer);
            assert!(later.problems.is_empty(), "{:?}", later.problems);
        }
    }
}

/// A bug that panics within a commit, wherever it does: nobody waits for ever, the handle writes no more,
/// its lock is free, and what is opened anew has every record that has a receipt.
#[test]
fn a_commit_that_panics_leaves_a_poisoned_handle_and_no_lock() {
    for n in 1..8 {
        let mut stage = Stage::new(64 << 10, 64 << 10);
        let one = stage.open(1).expect("opened");
        let run = stage.begin(&one, "one").expect("begun");
        stage.world.fail_at(stage.world.operations() + n, Fault::Panic);
        let engine = one.engine().clone();
        let chunk = || Body::Chunk(Channel::Stdout, b"x".to_vec()).into();
        let append = || engine.append(run, None, &[chunk()]).map_err(|error| error.kind());
        let answer = append();
        stage.world.clear_faults();
        assert_eq!(one.engine().is_poisoned(), answer.is_err(), "{n}");
        if answer.is_ok() {
            assert!(n > 3, "a commit has more operations than {n}");
            continue;
        }
        assert_eq!((answer, append()), (Err(ErrorKind::Reopen), Err(ErrorKind::Reopen)), "{n}");
        let beside =
            Engine::open_in(one.engine().world().clone(), stage.options()).expect("the lock is free").0;
        assert!(beside.log().unwrap().run_of(run).unwrap().is_some(), "{n}");
        beside.close().unwrap();
    }
}

/// A bug that panics while the files of a run are brought to the disk, wherever it does: whoever waits for
/// them is told, and so is who ends the run or closes; the journal goes on.
#[test]
fn a_panic_while_publishing_is_told_to_who_waits() {
    struct Published {
        world: SimWorld,
        waited: Result<(), Error>,
        closed: Result<(), Error>,
    }
    let publishing = |fault: Option<u64>| {
        let mut stage = Stage::new(64 << 10, 64 << 10);
        let (_, world) = stage.process(1);
        let engine = Engine::open_in(world, Options { publish: true, ..stage.options() }).unwrap().0;
        stage.world.record();
        fault.into_iter().for_each(|n| stage.world.fail_at(n, Fault::Panic));
        let ids = ["t", "r", "s"].map(|id| Id::new(id).unwrap());
        let [task, run, step] = ids;
        let mut recorder = Recorder::prepare(&engine, RunRequest::new(task, run, step)).unwrap();
        let waited = engine.wait_published(&recorder.last_receipt());
        recorder.chunk(Channel::Stdout, b"The journal takes records.").unwrap();
        drop(recorder);
        Published { world: stage.world, waited, closed: engine.close() }
    };
    let undisturbed = publishing(None);
    undisturbed.waited.unwrap();
    let trace = undisturbed.world.trace();
    let files: Vec<_> = trace.iter().filter(|at| at.file.starts_with("runs/")).map(|at| at.number).collect();
    assert!(files.len() > 3, "{trace:?}");
    for n in &files[..3] {
        let disturbed = publishing(Some(*n));
        let told = disturbed.waited.expect_err("told");
        assert!(told.to_string().contains("panicked"), "{n}: {told}");
        assert!(disturbed.closed.unwrap_err().to_string().contains("panicked"), "{n}");
    }
}

/// Whoever reads an error in the night looks for the file it names.
#[test]
fn an_error_behind_a_roll_names_the_segment() {
    for spares in [false, true] {
        let stage = Stage::new(1400, 1400);
        let mut stage = if spares { stage.with_spares().keeping_indexes() } else { stage };
        let writer = stage.open(1).expect("opened");
        let run = stage.begin(&writer, "one");
        let mut rolled = 1;
        while rolled < 4 {
            stage.append(&writer, run, &[900]).expect("appended");
            rolled = stage.world.names().iter().filter(|name| name.starts_with("journal/00")).count();
        }
        stage.world.fail_at(stage.world.operations() + 2, Fault::sticky(5));
        let chunk = Body::Chunk(Channel::Stdout, b"x".to_vec()).into();
        let error = writer.engine().append(run.unwrap(), None, &[chunk]).unwrap_err();
        assert!(error.to_string().contains("journal/0000000004.seg"), "{error}");
    }
}

/// A recovery that dies behind the name of its segment and before the mark: a reader through another mount,
/// which does not go by the mark alone, shows nothing that one through the same mount does not show yet.
#[test]
fn readers_through_two_mounts_show_nothing_that_is_not_shown_later() {
    for survivors in [1, u64::MAX] {
        let mut stage = Stage::new(64 << 10, 64 << 10);
        let writer = stage.open(1).expect("opened");
        stage.expect_faults(true);
        let fault = Fault::Error { errno: 5, sticky: false, survivors };
        stage.world.fail_at(stage.world.operations() + 3, fault);
        stage.tick(&writer);
        assert!(writer.engine().is_poisoned());
        writer.disk.kill();
        for n in 1..30 {
            let mut later = stage.fork();
            later.world.fail_at(later.world.operations() + n, Fault::Kill);
            drop(later.open(1));
            later.world.clear_faults();
            later.expect_faults(false);
            for mount in [1, 2, 1] {
                later.look(mount);
            }
            assert!(later.problems.is_empty(), "{survivors} {n}: {:?}", later.problems);
        }
    }
}
