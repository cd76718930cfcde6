//! The files of runs while an engine goes on: what they cost, and what shows in them that comes late.

use runwal::clock::{Clock, System};
use runwal::disk::Open;
use runwal::engine::{Conditions, Engine, NewRecord, Options, Receipt, World};
use runwal::record::{Body, Channel, Level, Lifecycle};
use runwal::testing::stage::prepared;
use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

fn open(dir: &Path) -> Engine {
    Engine::open(dir.join("data"), Options::default()).unwrap().0
}

fn begin(engine: &Engine, run: &str) -> Receipt {
    engine.begin_run(&prepared(engine, "t", run).unwrap(), None, Conditions::none(), &[]).unwrap()
}

fn chunk(bytes: &[u8]) -> NewRecord {
    Body::Chunk(Channel::Stdout, bytes.to_vec()).into()
}

fn end(engine: &Engine, run: &Receipt) -> Receipt {
    let end =
        NewRecord { ends: true, ..Body::Lifecycle(Lifecycle::new("over", Level::Info, "Over.")).into() };
    engine.append(run.stream, None, &[end]).unwrap()
}

fn stdout(dir: &Path, run: &str) -> String {
    std::fs::read_to_string(dir.join(format!("data/runs/t/{run}/stdout.log"))).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "does what somebody does who tidies up")]
fn remove(dir: &Path, name: &str) {
    std::fs::remove_file(dir.join("data").join(name)).unwrap();
}

/// How many descriptors this process has open below the folder of the runs.
#[expect(clippy::disallowed_methods, reason = "asks the operating system")]
fn open_files_of_runs(dir: &Path) -> usize {
    let runs = dir.canonicalize().unwrap().join("data/runs");
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|at| at.starts_with(&runs))).count()
}

/// Waits for what takes some milliseconds: what does not happen is a failure, and no hang.
fn until(happened: impl Fn() -> bool) {
    let since_ns = System.monotonic_ns();
    while !happened() {
        assert!(System.monotonic_ns() - since_ns < 60_000_000_000, "it does not happen");
        System.pause(Duration::from_millis(1));
    }
}

fn nothing_is_left_to_repair(dir: &Path) {
    let (engine, report) = Engine::open(dir.join("data"), Options::default()).unwrap();
    assert_eq!((report.rewritten_files, report.problems), (0, Vec::new()));
    engine.close().unwrap();
}

/// An engine that begins run after run, for as long as it likes, runs out of nothing.
#[test]
fn a_run_that_goes_on_holds_one_descriptor_and_one_that_ended_none() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for round in 0..3 {
        let runs: Vec<_> = (0..20).map(|n| begin(&engine, &format!("r{round}-{n}"))).collect();
        for run in &runs {
            engine.append(run.stream, None, &[chunk(b"line\n")]).unwrap();
        }
        until(|| (0..20).all(|n| stdout(dir.path(), &format!("r{round}-{n}")) == "line\n"));
        until(|| open_files_of_runs(dir.path()) == 20);
        for run in &runs {
            end(&engine, run);
        }
        until(|| open_files_of_runs(dir.path()) == 0);
    }
    engine.close().unwrap();
    nothing_is_left_to_repair(dir.path());
}

/// Whoever appends it, and however: its own engine, or one that has begun others.
#[test]
fn what_comes_behind_the_end_of_a_run_is_shown_in_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, other) = (open(dir.path()), open(dir.path()));
    let run = begin(&engine, "r");
    engine.wait_published(&end(&engine, &run)).unwrap();
    until(|| open_files_of_runs(dir.path()) == 0);
    let late = engine.append(run.stream, None, &[chunk(b"late\n")]).unwrap();
    engine.wait_published(&late).unwrap();
    assert_eq!(stdout(dir.path(), "r"), "late\n");
    let late = other.append(run.stream, None, &[chunk(b"other\n")]).unwrap();
    other.wait_published(&late).unwrap();
    assert_eq!(stdout(dir.path(), "r"), "late\nother\n");
    drop(engine.buffer(run.stream, None, &[chunk(b"buffered\n")]).unwrap());
    until(|| stdout(dir.path(), "r") == "late\nother\nbuffered\n");
    until(|| open_files_of_runs(dir.path()) == 0);
    engine.close().unwrap();
    other.close().unwrap();
    nothing_is_left_to_repair(dir.path());
}

/// A record that others have made durable before anybody asked for that.
#[test]
fn what_comes_behind_the_end_is_shown_whoever_makes_it_durable() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (ended, going) = (begin(&engine, "ended"), begin(&engine, "going"));
    engine.wait_published(&end(&engine, &ended)).unwrap();
    until(|| open_files_of_runs(dir.path()) == 1);
    drop(engine.buffer(ended.stream, None, &[chunk(b"one\n")]).unwrap());
    engine.wait_published(&engine.append(going.stream, None, &[chunk(b"x")]).unwrap()).unwrap();
    until(|| stdout(dir.path(), "ended") == "one\n");
    let ticket = engine.submit(ended.stream, None, &[chunk(b"two\n")]).unwrap();
    engine.wait_published(&engine.append(going.stream, None, &[chunk(b"x")]).unwrap()).unwrap();
    engine.wait_published(&ticket.wait().unwrap()).unwrap();
    assert_eq!(stdout(dir.path(), "ended"), "one\ntwo\n");
    // Nobody will ask for these two.
    drop(engine.submit(ended.stream, None, &[chunk(b"three\n")]).unwrap());
    drop(engine.buffer(ended.stream, None, &[chunk(b"four\n")]).unwrap());
    end(&engine, &going);
    engine.close().unwrap();
    assert_eq!(stdout(dir.path(), "ended"), "one\ntwo\nthree\nfour\n");
    nothing_is_left_to_repair(dir.path());
}

/// A rebuild has the folders of many runs for as long as it takes.
#[test]
fn a_locked_folder_of_a_run_that_ended_holds_up_no_other_run() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (ended, going) = (begin(&engine, "ended"), begin(&engine, "going"));
    engine.wait_published(&end(&engine, &ended)).unwrap();
    until(|| open_files_of_runs(dir.path()) == 1);
    let world = World::existing(&dir.path().join("data")).unwrap();
    let folder = world.disk.open("runs/t/ended", Open::Directory).unwrap();
    assert!(folder.try_lock().unwrap());
    engine.append(ended.stream, None, &[chunk(b"late\n")]).unwrap();
    engine.wait_published(&engine.append(going.stream, None, &[chunk(b"x\n")]).unwrap()).unwrap();
    assert_eq!((stdout(dir.path(), "ended"), stdout(dir.path(), "going")), (String::new(), "x\n".to_owned()));
    drop(folder);
    until(|| stdout(dir.path(), "ended") == "late\n");
    engine.wait_published(&end(&engine, &going)).unwrap();
    engine.close().unwrap();
    nothing_is_left_to_repair(dir.path());
}

/// Somebody tidies up.
#[test]
fn a_file_that_is_removed_while_its_run_goes_on_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let run = begin(&engine, "r");
    let first = engine.append(run.stream, None, &[chunk(b"one\n")]).unwrap();
    engine.wait_published(&first).unwrap();
    remove(dir.path(), "runs/t/r/stdout.log");
    let second = engine.append(run.stream, None, &[chunk(b"two\n")]).unwrap();
    engine.wait_published(&second).unwrap();
    assert_eq!(stdout(dir.path(), "r"), "one\ntwo\n");
    // Another file in its place is no better.
    remove(dir.path(), "runs/t/r/stdout.log");
    #[expect(clippy::disallowed_methods, reason = "does what somebody does who tidies up")]
    std::fs::write(dir.path().join("data/runs/t/r/stdout.log"), "rotated").unwrap();
    let third = engine.append(run.stream, None, &[chunk(b"three\n")]).unwrap();
    engine.wait_published(&third).unwrap();
    assert_eq!(stdout(dir.path(), "r"), "one\ntwo\nthree\n");
    engine.wait_published(&end(&engine, &run)).unwrap();
    engine.close().unwrap();
    nothing_is_left_to_repair(dir.path());
}

/// Asked for once more, as by a conductor that has lost the answer, while it goes on and when it has ended.
#[test]
fn a_run_that_is_begun_again_under_its_key_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let request = prepared(&engine, "t", "r").unwrap();
    let begin = || engine.begin_run(&request, None, Conditions::none().key("r"), &[]).unwrap();
    let run = begin();
    engine.wait_published(&run).unwrap();
    assert_eq!(begin(), run);
    engine.wait_published(&engine.append(run.stream, None, &[chunk(b"on\n")]).unwrap()).unwrap();
    assert_eq!(stdout(dir.path(), "r"), "on\n");
    engine.wait_published(&end(&engine, &run)).unwrap();
    until(|| open_files_of_runs(dir.path()) == 0);
    assert_eq!(begin(), run);
    engine.wait_published(&run).unwrap();
    assert_eq!(stdout(dir.path(), "r"), "on\n");
    engine.close().unwrap();
    nothing_is_left_to_repair(dir.path());
}

/// Three that one sync has made durable, the last of which is shown before anybody asks for the others.
#[test]
fn a_run_that_is_not_hurried_is_not_said_to_be_shown() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for round in 0..5 {
        let submit = |run: &str| {
            let request = prepared(&engine, "t", &format!("{run}{round}")).unwrap();
            engine.submit_run(&request, None, Conditions::none(), &[chunk(b"here\n")]).unwrap()
        };
        let (first, second, last) = (submit("first"), submit("second"), submit("last"));
        // All of them have their turn with whom is waited for after a while.
        System.pause(Duration::from_millis(25));
        engine.wait_published(&last.wait().unwrap()).unwrap();
        let (first, second) = (first.wait().unwrap(), second.wait().unwrap());
        engine.wait_published(&second).unwrap();
        engine.wait_published(&first).unwrap();
        assert_eq!(stdout(dir.path(), &format!("first{round}")), "here\n");
    }
    engine.close().unwrap();
}

/// Some of them are waited for while others are gathered.
#[test]
fn whoever_waits_among_many_sees_his_own_run() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for round in 0..20 {
        let all = Barrier::new(16);
        std::thread::scope(|scope| {
            for n in 0..16 {
                let (engine, all, dir) = (&engine, &all, dir.path());
                scope.spawn(move || {
                    let name = format!("r{round}-{n}");
                    all.wait();
                    let run = begin(engine, &name);
                    let printed = engine.append(run.stream, None, &[chunk(b"here\n")]).unwrap();
                    engine.wait_published(&printed).unwrap();
                    assert_eq!(stdout(dir, &name), "here\n", "{name}");
                    if n % 2 == 0 {
                        end(engine, &run);
                    }
                });
            }
        });
    }
    engine.close().unwrap();
}
