//! The next attempt: made of a run that has ended, from its last git diff on, and nothing of the old
//! run is touched.

#![expect(clippy::disallowed_methods, reason = "plays the user, who reads and damages files")]

use crate::cli::{Place, text, wait_until};
use crate::git::{git, no_git};
use runwal::engine::{Engine, Log, NewRecord, Options, RunInfo};
use runwal::position::{Seq, Time};
use runwal::record::{Body, Channel, Checkpoint, FileFormat, Id, ParentRun, Record, Replay, RunName};
use runwal::run::{
    Answer, Cancel, Checkpoints, Discard, End, Executor, ExecutorError, NextAttempt, Outcome, ProcessOptions,
    Recorder, RunRequest, Step, record_process, run_step,
};
use runwal::{ErrorKind, JournalOptions};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the recorder finds its work that is to be killed at it.
const KILLED: &str = "RUNWAL_TEST_KILLED";

fn id(text: &str) -> Id {
    Id::new(text).unwrap()
}

fn name(run: &str) -> RunName {
    RunName { task: id("t"), run: id(run) }
}

fn request(run: &str) -> RunRequest {
    RunRequest::new(id("t"), id(run), id("build"))
}

fn open(place: &Place) -> Engine {
    Engine::open(place.data(), Options::default()).unwrap().0
}

fn failed() -> End {
    End::new(Outcome::Failed, "No.").exit_code(1)
}

fn parent(run: &str, checkpoint: Option<u32>) -> ParentRun {
    ParentRun { name: name(run), checkpoint }
}

fn next_of(place: &Place, run: &str, next: &str) -> runwal::error::Result<NextAttempt> {
    let mut log = Log::open(place.data()).unwrap();
    let run = log.resolve(run).unwrap();
    NextAttempt::of(&mut log, &run, id(next))
}

/// A checkout with a commit, beside the data directory.
fn checkout(place: &Place) -> PathBuf {
    let top = place.0.path().join("tree");
    fs::create_dir_all(top.join("dir")).unwrap();
    git(&top, &["init", "-q"]);
    for (name, content) in [("a", "1\n2\n3\n"), ("gone", "x\n"), ("dir/b", "b\n"), (".gitignore", "*.tmp\n")]
    {
        fs::write(top.join(name), content).unwrap();
    }
    git(&top, &["add", "."]);
    git(&top, &["commit", "-qm", "first"]);
    top
}

/// Another checkout of the same commit, clean.
fn fresh(place: &Place, name: &str) -> PathBuf {
    let to = place.0.path().join(name);
    let from = place.0.path().join("tree");
    git(&from, &["worktree", "add", "-q", "--detach", to.to_str().unwrap(), "HEAD"]);
    to
}

/// Changes, makes and deletes files, as a worker does: text, binary, executable, a link, odd names.
fn work(top: &Path, mark: &str) {
    let mut noise = vec![0; 100_000];
    blake3::Hasher::new().update(mark.as_bytes()).finalize_xof().fill(&mut noise);
    fs::write(top.join("a"), format!("1\n{mark}\n3")).unwrap();
    let _ = fs::remove_file(top.join("gone"));
    fs::create_dir_all(top.join("new/deep")).unwrap();
    fs::write(top.join(format!("new/deep/{mark} ä\t")), &noise).unwrap();
    fs::write(top.join("tool"), format!("#!/bin/sh\necho {mark}\n")).unwrap();
    fs::set_permissions(top.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    let _ = fs::remove_file(top.join("link"));
    symlink(format!("to-{mark}"), top.join("link")).unwrap();
    fs::write(top.join("ignored.tmp"), mark).unwrap();
}

/// Every file of a checkout but git's own and the ignored ones.
fn tree(top: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    fn collect(top: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let inside = path.strip_prefix(top).unwrap().to_owned();
            if inside == Path::new(".git") || inside.extension().is_some_and(|e| e == "tmp") {
            } else if meta.is_dir() {
                collect(top, &path, found);
            } else if meta.is_symlink() {
                found.insert(inside, (0, fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()));
            } else {
                found.insert(inside, (meta.permissions().mode() & 0o100, fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(top, top, &mut found);
    found
}

/// What belongs to one run: its files with their times, and its records.
fn all_of(place: &Place, run: &str) -> (BTreeMap<PathBuf, (std::time::SystemTime, Vec<u8>)>, Vec<Record>) {
    let mut log = Log::open(place.data()).unwrap();
    let found = log.resolve(&format!("t/{run}")).unwrap();
    let mut records = Vec::new();
    log.stream(found.stream, Seq(1), &mut |record| {
        records.push(record.clone());
        Ok(true)
    })
    .unwrap();
    let folder = place.data().join(found.name.folder());
    let mut files = BTreeMap::new();
    for dir in [folder.clone(), folder.join("checkpoints"), folder.join("artifacts")] {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let content = if meta.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            files.insert(path, (meta.modified().unwrap(), content));
        }
    }
    assert!(files.len() > 5 && records.len() > 3);
    (files, records)
}

/// All segments, to see that nothing was written.
fn segments(place: &Place) -> Vec<Vec<u8>> {
    (1..).map_while(|number| fs::read(place.segment(number)).ok()).collect()
}

/// Turns one byte of what is in the journal.
fn damage(place: &Place, word: &str) {
    for number in 1.. {
        let bytes = fs::read(place.segment(number)).unwrap();
        if let Some(at) = bytes.windows(word.len()).position(|w| w == word.as_bytes()) {
            let file = fs::File::options().write(true).open(place.segment(number)).unwrap();
            return file.write_all_at(b"#", at as u64).unwrap();
        }
    }
}

/// An engine whose segments are small.
fn open_small(place: &Place) -> Engine {
    let journal = JournalOptions { first_capacity: 8 << 10, max_capacity: 8 << 10, ..Default::default() };
    Engine::open(place.data(), Options { journal, ..Options::default() }).unwrap().0
}

/// Has everything so far in older segments, so that damage there does not stop writing.
fn roll(engine: &Engine) {
    let mut run = Recorder::prepare(engine, RunRequest { step: id("roll"), ..request("roll") }).unwrap();
    for _ in 0..12 {
        run.chunk(Channel::Stdout, &[b'x'; 1000]).unwrap();
    }
    run.finish(failed()).unwrap();
}

fn take_diff(run: &mut Recorder, content: impl Into<Vec<u8>>) -> u32 {
    let replay = Replay::GitApplyBinary;
    run.checkpoint("git_diff", FileFormat::Patch, replay, "The tree.", content.into()).unwrap()
}

// --- A recorder that is killed ---

/// Works in a checkout, takes a git diff in the middle, works on and never ends.
struct Midway;

impl Executor for Midway {
    fn execute(&self, step: &mut Step<'_>) -> Result<Answer, ExecutorError> {
        let top = PathBuf::from(std::ffi::OsStr::from_bytes(step.request().working_tree.as_ref().unwrap()));
        work(&top, "before");
        assert_eq!(step.git_diff()?, Some(2));
        let around = top.parent().unwrap();
        assert!(Command::new("cp").arg("-a").arg(&top).arg(around.join("then")).status()?.success());
        work(&top, "behind");
        step.chunk(Channel::Stdout, b"behind\n")?;
        fs::write(around.join("ready"), "")?;
        loop {
            std::thread::park();
        }
    }
}

/// No test of its own: another one starts it in a process that it kills.
#[test]
fn a_recorder_to_be_killed() {
    let Some(dir) = std::env::var_os(KILLED).map(PathBuf::from) else { return };
    let (engine, _) = Engine::open(dir.join("data"), Options::default()).unwrap();
    let tree = dir.join("tree").into_os_string().into_encoded_bytes();
    let asked = RunRequest { working_tree: Some(tree), ..request("r1") };
    run_step(&engine, asked, &Midway, &Checkpoints::default(), &Cancel::new().unwrap()).unwrap();
}

#[test]
fn a_run_whose_recorder_was_killed_is_gone_on_with_where_its_last_diff_was() {
    if no_git() {
        return;
    }
    let place = Place::new();
    let top = checkout(&place);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "attempt::a_recorder_to_be_killed"])
        .env(KILLED, place.0.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the work", || place.0.path().join("ready").exists() || child.try_wait().unwrap().is_some());
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    let next = next_of(&place, "t/r1", "r2").unwrap_err();
    assert_eq!(next.kind(), ErrorKind::Misuse, "nobody has ended it yet: {next}");

    let (engine, report) = Engine::open(place.data(), Options::default()).unwrap();
    assert_eq!(report.interrupted.len(), 1, "{report:?}");
    let lost = &report.interrupted[0];
    let lost = RunInfo { name: lost.name.clone(), stream: lost.stream };
    let before = all_of(&place, "r1");
    let mut next = NextAttempt::of(&mut engine.log().unwrap(), &lost, id("r2")).unwrap();
    assert_eq!((next.damage.len(), next.notes.len(), next.request.attempt), (0, 0, 2));
    // 1 is the summary, and behind the diff comes the tail of the logs.
    assert_eq!(next.request.parent, Some(parent("r1", Some(2))));
    let head = text(&git(&top, &["rev-parse", "HEAD"]));
    let summary = format!("The working tree against {}.", head.trim());
    assert_eq!(next.git_diff().map(|diff| &*diff.summary), Some(summary.as_str()));
    assert_eq!(next.base_commit(), Some(head.trim()));

    let was = next.request.clone();
    for wrong in [&top, &place.data(), &place.0.path().join("nowhere")] {
        let error = next.restore_into(wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misuse, "{error}");
        assert_eq!(format!("{:?}", next.request), format!("{was:?}"), "a failure changes nothing");
    }
    let to = fresh(&place, "second");
    let restored = next.restore_into(&to).unwrap().unwrap();
    assert!(restored.files >= 5 && restored.notes.is_empty(), "{restored:?}");
    assert_eq!(next.request.working_tree.as_deref(), Some(to.as_os_str().as_bytes()));
    assert_eq!(tree(&to), tree(&place.0.path().join("then")));
    assert_ne!(tree(&to), tree(&top), "what came behind the diff is lost");

    let asked = RunRequest { command: vec![b"true".to_vec()], ..next.request };
    record_process(&engine, asked, &ProcessOptions::default(), &mut Discard, &Cancel::new().unwrap())
        .unwrap();
    engine.close().unwrap();
    assert!(all_of(&place, "r1") == before, "the old run stays as it was");
    // The diff of the second attempt carries all of the first one's.
    let mut third = next_of(&place, "t/r2", "r3").unwrap();
    let to = fresh(&place, "third");
    third.restore_into(&to).unwrap().unwrap();
    assert_eq!(tree(&to), tree(&place.0.path().join("then")));
    place.ends(0, &["verify", "--deep"]);
}

#[test]
fn a_run_that_was_killed_before_any_diff_is_gone_on_with_in_whatever_directory_is_named() {
    let place = Place::new();
    let asked = ["-q", "run", "--task", "t", "--run", "r1", "--step", "build", "--"];
    let mut child = place
        .command(&[&asked[..], &["sh", "-c", "echo on >ready; exec sleep 1000"]].concat())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the work", || {
        place.0.path().join("ready").exists() && text(&place.run(&["log", "r1"]).stdout).contains("started")
    });
    child.kill().unwrap();
    child.wait().unwrap();
    place.ends(0, &["recover"]);
    let before = all_of(&place, "r1");
    let mut next = next_of(&place, "r1", "r2").unwrap();
    assert!(next.git_diff().is_none() && next.damage.is_empty());
    assert!(next.notes[0].contains("r1 left no git diff: what it changed is in "), "{:?}", next.notes);
    assert_eq!(next.request.parent, Some(parent("r1", Some(2))), "the tail of the logs is the last one");
    assert_eq!(next.request.command, [&b"sh"[..], b"-c", b"echo on >ready; exec sleep 1000"]);
    let was = next.request.working_tree.clone();
    assert_eq!(was.as_deref(), Some(place.0.path().as_os_str().as_bytes()));
    let error = next.restore_into(place.0.path().join("nowhere")).unwrap_err();
    assert_eq!((error.kind(), &next.request.working_tree), (ErrorKind::Misuse, &was));
    let dir = place.0.path().join("new");
    fs::create_dir(&dir).unwrap();
    assert_eq!(next.restore_into(&dir).unwrap(), None);
    assert_eq!(next.request.working_tree.as_deref(), Some(dir.as_os_str().as_bytes()));
    assert!(all_of(&place, "r1") == before);
}

/// Two deaths in a row must not lose what the first attempt left.
#[test]
fn where_a_run_left_no_diff_that_of_the_run_it_went_on_from_is_taken() {
    let place = Place::new();
    let engine = open(&place);
    let mut run = Recorder::prepare(&engine, request("r1")).unwrap();
    let number = take_diff(&mut run, "the work of r1");
    run.finish(failed()).unwrap();
    drop(run);
    engine.close().unwrap();
    for attempt in 2..=4 {
        let engine = open(&place);
        let next = next_of(&place, &format!("t/r{}", attempt - 1), &format!("r{attempt}")).unwrap();
        assert_eq!(next.git_diff().unwrap().content, b"the work of r1");
        assert_eq!((next.git_diff().unwrap().number, next.git_diff_left_by()), (number, &name("r1")));
        if attempt > 2 {
            let told = format!("That of checkpoint {number} of t/r1 is taken");
            assert!(next.notes[0].contains(&told), "{:?}", next.notes);
        }
        assert_eq!(next.request.parent.as_ref().unwrap().name, name(&format!("r{}", attempt - 1)));
        // It dies before it leaves anything.
        drop(Recorder::prepare(&engine, next.request).unwrap());
        engine.close().unwrap();
        drop(open(&place));
    }
    let further = ["run", "--task", "t", "--step", "build", "--attempt", "5", "--", "true"];
    let told = text(&place.ends(0, &further).stderr);
    assert!(told.contains("goes on from t/r4") && told.contains("restore t/r1 --into DIR"), "{told}");
    let told = text(&place.ends(1, &["restore", "t/r4", "--into", "."]).stderr);
    assert!(told.contains("It went on from t/r3: `runwal restore t/r3"), "{told}");
}

// --- What follows from the run before ---

#[test]
fn attempts_follow_one_another_each_from_what_the_last_one_left() {
    if no_git() {
        return;
    }
    let place = Place::new();
    let mut top = checkout(&place);
    let engine = open(&place);
    let script = "printf '%s\\n' $RUNWAL_RUN >> a; mkdir -p n; head -c 5000 /dev/urandom > n/${RUNWAL_RUN#t/}; \
                  rm -f gone; exit 3";
    let asked = RunRequest {
        command: ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec(),
        working_tree: Some(top.clone().into_os_string().into_encoded_bytes()),
        ..request("r1")
    };
    let record = |asked: RunRequest| {
        record_process(&engine, asked, &ProcessOptions::default(), &mut Discard, &Cancel::new().unwrap())
            .unwrap()
    };
    record(asked);
    let mut before = Vec::new();
    for attempt in 2..=4 {
        let old = format!("r{}", attempt - 1);
        before.push((old.clone(), all_of(&place, &old)));
        let mut next = next_of(&place, &format!("t/{old}"), &format!("r{attempt}")).unwrap();
        let to = fresh(&place, &format!("tree{attempt}"));
        next.restore_into(&to).unwrap().unwrap();
        assert_eq!(tree(&to), tree(&top), "attempt {attempt}");
        assert_eq!(next.request.parent, Some(parent(&old, Some(2))));
        top = to;
        record(next.request);
        let meta = fs::read(place.data().join(format!("runs/t/r{attempt}/meta.json"))).unwrap();
        let meta: Value = serde_json::from_slice(&meta).unwrap();
        assert_eq!((&meta["attempt"], &meta["stepId"]), (&json!(attempt), &json!("build")));
        assert_eq!(meta["parent"], json!({"taskId": "t", "runId": old, "checkpoint": 2}));
    }
    assert_eq!(fs::read(top.join("a")).unwrap(), b"1\n2\n3\nt/r1\nt/r2\nt/r3\nt/r4\n");
    assert_eq!(fs::read_dir(top.join("n")).unwrap().count(), 4);
    for (old, then) in before {
        assert!(all_of(&place, &old) == then, "{old} stays as it was");
    }
    engine.close().unwrap();
    place.ends(0, &["verify", "--deep"]);
}

#[test]
fn the_request_is_the_old_one_but_for_what_is_the_new_conductors() {
    let place = Place::new();
    let engine = open(&place);
    let asked = RunRequest {
        attempt: 6,
        step_kind: Some("compile".to_owned()),
        worker_kind: Some("codex".to_owned()),
        command: vec![b"make".to_vec(), b"\xff".to_vec()],
        working_tree: Some(b"/src".to_vec()),
        environment: vec![(b"LANG".to_vec(), b"C".to_vec())],
        timeout_ms: Some(1_500),
        grace_ms: 70,
        checkpoints: false,
        controller: Some("c".to_owned()),
        term: Some(7),
        labels: vec![("k".to_owned(), "v".to_owned())],
        parent: Some(parent("r0", Some(9))),
        created_at: Some(Time(1)),
        ..request("r1")
    };
    Recorder::prepare(&engine, asked.clone()).unwrap().finish(End::new(Outcome::Completed, "Done.")).unwrap();
    let wanted = RunRequest {
        name: name("r2"),
        attempt: 7,
        controller: None,
        term: None,
        parent: Some(parent("r1", None)),
        created_at: None,
        ..asked
    };
    let next = next_of(&place, "r1", "r2").unwrap();
    assert_eq!(format!("{:?}", next.request), format!("{wanted:?}"));
    // What comes behind the end counts too.
    let mut run = Recorder::prepare(&engine, request("r3")).unwrap();
    run.finish(failed()).unwrap();
    let number = take_diff(&mut run, "");
    assert_eq!(next_of(&place, "r3", "r4").unwrap().request.parent, Some(parent("r3", Some(number))));
    drop(run);
    engine.close().unwrap();
}

#[test]
fn what_cannot_be_gone_on_from_is_refused_and_nothing_is_written() {
    let place = Place::new();
    let engine = open(&place);
    let open_run = Recorder::prepare(&engine, request("open")).unwrap();
    let most = RunRequest { attempt: u32::MAX, ..request("most") };
    Recorder::prepare(&engine, most).unwrap().finish(failed()).unwrap();
    let asked = RunRequest { command: vec![b"precious".to_vec()], checkpoints: false, ..request("blind") };
    let mut run = Recorder::prepare(&engine, asked).unwrap();
    run.chunk(Channel::Stdout, b"more\n").unwrap();
    run.finish(failed()).unwrap();
    let blind = RunInfo { name: name("blind"), stream: run.stream() };
    let before = segments(&place);

    let error = next_of(&place, "open", "next").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misuse);
    assert!(error.message().contains("t/open has not ended; its recorder may be alive"), "{error}");
    assert!(error.advice().unwrap().contains("opening the journal for writing"), "{error:?}");
    let error = next_of(&place, "most", "next").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misuse);
    assert!(error.message().contains("4294967295") && error.advice().is_some(), "{error}");
    let mut log = Log::open(place.data()).unwrap();
    let nobody = RunInfo { name: name("nobody"), stream: runwal::position::StreamId(999_999) };
    assert_eq!(NextAttempt::of(&mut log, &nobody, id("next")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(segments(&place) == before);

    damage(&place, "precious");
    let mut log = Log::open(place.data()).unwrap();
    let error = NextAttempt::of(&mut log, &blind, id("next")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let at = error.place().unwrap();
    assert_eq!((at.segment, at.position.map(|p| p.0)), (1, Some(blind.stream.0)), "{error}");
    assert!(error.message().contains("the first record of run t/blind cannot be read"), "{error}");
    drop((open_run, run));
    engine.close().unwrap();
}

#[test]
fn a_diff_that_is_damaged_or_cut_short_is_told_and_the_one_before_it_is_not_taken_silently() {
    if no_git() {
        return;
    }
    let place = Place::new();
    let top = checkout(&place);
    let engine = open_small(&place);
    let patch = |content: &str| {
        fs::write(top.join("a"), format!("1\n{content}\n3\n")).unwrap();
        let patch = git(&top, &["diff", "--binary"]);
        git(&top, &["checkout", "-q", "."]);
        patch
    };
    let (first, second) = (patch("first"), patch("precious"));
    // One whose recorder died between two parts.
    let mut run = Recorder::prepare(&engine, request("cut")).unwrap();
    take_diff(&mut run, first.clone());
    let part = Checkpoint {
        number: 3,
        kind: "git_diff".to_owned(),
        format: FileFormat::Patch,
        replay: Replay::GitApplyBinary,
        summary: "In parts.".to_owned(),
        total_len: 1_000,
        content: second[..10].to_vec(),
    };
    run.append(vec![NewRecord { more: true, ..Body::Checkpoint(part).into() }]).unwrap();
    drop(run);
    engine.close().unwrap();
    let engine = open_small(&place);
    let mut run = Recorder::prepare(&engine, request("r1")).unwrap();
    take_diff(&mut run, first);
    take_diff(&mut run, second);
    run.finish(failed()).unwrap();
    roll(&engine);
    engine.close().unwrap();
    let sound = next_of(&place, "r1", "r2").unwrap();
    assert_eq!((sound.request.parent, sound.damage.len()), (Some(parent("r1", Some(3))), 0));

    let cut = next_of(&place, "cut", "r2").unwrap();
    assert_eq!((&cut.request.parent, cut.damage.len()), (&Some(parent("cut", Some(2))), 0));
    assert_eq!(cut.notes, ["The git diff of checkpoint 3 is not whole, and not used."]);

    damage(&place, "precious");
    let mut next = next_of(&place, "r1", "r2").unwrap();
    assert_eq!((next.damage.len(), &next.request.parent), (1, &Some(parent("r1", Some(2)))));
    next.restore_into(fresh(&place, "next")).unwrap().unwrap();
    // As the command does.
    let into = fresh(&place, "by-command");
    let output = place.ends(3, &["restore", "t/r1", "--into", into.to_str().unwrap()]);
    assert!(text(&output.stdout).contains("checkpoint 2 of run t/r1"), "{output:?}");
    assert_eq!(tree(&place.0.path().join("next")), tree(&into));
    let asked = ["run", "--task", "t", "--step", "build", "--run", "x", "--attempt", "2", "--", "true"];
    let said = text(&place.ends(0, &asked).stderr);
    assert!(said.contains("cannot be read") && said.contains("goes on from t/r1, checkpoint 2"), "{said}");
}

#[test]
fn what_a_run_could_not_take_in_full_is_told() {
    if no_git() {
        return;
    }
    let place = Place::new();
    checkout(&place);
    let script = "head -c 9000000 /dev/urandom > big; exit 1";
    let asked = ["run", "-q", "--task", "t", "--run", "r1", "-C", "tree", "--", "sh", "-c", script];
    place.ends(1, &asked);
    let next = next_of(&place, "r1", "r2").unwrap();
    assert!(next.git_diff().is_none());
    assert_eq!(next.notes.len(), 1, "{:?}", next.notes);
    assert!(next.notes[0].starts_with("No git_diff"), "{:?}", next.notes);
    let said = text(&place.ends(0, &["run", "--task", "t", "--attempt", "2", "--", "true"]).stderr);
    assert!(said.contains("left no git diff") && said.contains("t/r1: No git_diff"), "{said}");
}

// --- How the run before is found ---

#[test]
fn the_newest_run_is_found_by_first_records_alone() {
    let place = Place::new();
    let engine = open_small(&place);
    let record = |run: &str, attempt: u32, word: &str, said: &str| {
        let command = vec![word.as_bytes().to_vec()];
        let mut recorder =
            Recorder::prepare(&engine, RunRequest { attempt, command, checkpoints: false, ..request(run) })
                .unwrap();
        recorder.chunk(Channel::Stdout, said.as_bytes()).unwrap();
        recorder.finish(failed()).unwrap();
    };
    record("older", 1, "damaged-older", "x");
    record("found", 1, "x", "damaged-output");
    record("other", 2, "x", "damaged-output-too");
    record("hidden", 1, "damaged-newer", "x");
    engine.append_tick(tick(), None).unwrap();
    roll(&engine);
    engine.close().unwrap();
    let look = |attempt: u32| {
        let mut log = Log::open(place.data()).unwrap();
        let (found, damage) =
            log.newest(&id("t"), &|run| run.attempt == attempt && run.step == id("build")).unwrap();
        (found.map(|run| run.name.run.to_string()), damage.len())
    };
    assert_eq!(look(1), (Some("hidden".to_owned()), 0));
    assert_eq!(look(2), (Some("other".to_owned()), 0));
    damage(&place, "damaged-older");
    assert_eq!(look(1), (Some("hidden".to_owned()), 0), "it is not looked at");
    damage(&place, "damaged-newer");
    assert_eq!(look(1), (Some("found".to_owned()), 1), "a newer one may be hidden");
    assert_eq!(look(3), (None, 2));
    let mut log = Log::open(place.data()).unwrap();
    assert_eq!(log.newest(&id("nobody"), &|_| true).unwrap().0, None);
    let asked = ["run", "--task", "t", "--step", "build", "--run", "x", "--attempt", "2", "--", "true"];
    let said = text(&place.ends(0, &asked).stderr);
    assert!(said.contains("goes on from t/found") && said.contains("cannot be read"), "{said}");
}

#[test]
fn what_is_not_a_first_record_is_not_read_to_find_a_run() {
    let place = Place::new();
    let engine = open(&place);
    let mut run = Recorder::prepare(&engine, RunRequest { checkpoints: false, ..request("r") }).unwrap();
    run.chunk(Channel::Stdout, b"damaged-output").unwrap();
    run.chunk(Channel::Stdout, b"more").unwrap();
    run.finish(failed()).unwrap();
    engine.close().unwrap();
    let mut log = Log::open(place.data()).unwrap();
    damage(&place, "damaged-output");
    let (found, met) = log.newest(&id("t"), &|_| true).unwrap();
    assert_eq!((found.map(|run| run.name), met.len()), (Some(name("r")), 0));
    let stream = log.resolve("t/r").unwrap().stream;
    assert_eq!(log.fold(stream).unwrap().1.len(), 1, "reading it in full meets the damage");

    // In the newest segment too, where no index was written that would know of it.
    let place = Place::new();
    let engine = open(&place);
    for run in ["r", "blind"] {
        let asked = RunRequest { command: vec![format!("made-by-{run}").into_bytes()], ..request(run) };
        let mut run = Recorder::prepare(&engine, asked).unwrap();
        run.chunk(Channel::Stdout, b"some").unwrap();
        run.finish(failed()).unwrap();
    }
    engine.close().unwrap();
    damage(&place, "made-by-blind");
    let mut log = Log::open(place.data()).unwrap();
    let (found, met) = log.newest(&id("t"), &|_| true).unwrap();
    assert_eq!((found.map(|run| run.name), met.len()), (Some(name("r")), 1), "{met:?}");
    damage(&place, "made-by-r");
    let mut log = Log::open(place.data()).unwrap();
    let (found, met) = log.newest(&id("t"), &|_| true).unwrap();
    assert!(found.is_none() && met.len() == 2, "{met:?}");
}

fn tick() -> runwal::record::Tick {
    runwal::record::Tick {
        batch_id: "b".to_owned(),
        runner: "r".to_owned(),
        stage: "s".to_owned(),
        result: None,
        error: None,
        duration_ms: None,
        details: runwal::record::JsonText::empty(),
    }
}

#[test]
fn the_command_finds_what_an_attempt_goes_on_from() {
    if no_git() {
        return;
    }
    let place = Place::new();
    checkout(&place);
    let run = |code: i32, run: &str, more: &[&str], script: &str| {
        let asked = [&["run", "--task", "t", "--run", run, "-C", "tree"], more, &["--", "sh", "-c", script]];
        text(&place.ends(code, &asked.concat()).stderr)
    };
    let meta = |run: &str| -> Value {
        serde_json::from_slice(&fs::read(place.data().join(format!("runs/t/{run}/meta.json"))).unwrap())
            .unwrap()
    };
    let step = ["--step", "build"];
    assert_eq!(run(1, "r1", &step, "echo one >> a; exit 1"), "");
    assert_eq!(run(1, "newer", &step, "echo newer >> a; exit 1"), "");
    assert_eq!(run(1, "elsewhere", &["--step", "test"], "exit 1"), "");
    assert_eq!(meta("r1")["parent"], Value::Null);

    let second = [&step[..], &["--attempt", "2"]].concat();
    let said = run(1, "r2", &second, "exit 1");
    assert_eq!(
        said,
        "runwal: attempt 2 goes on from t/newer, checkpoint 2; its working tree: `runwal restore t/newer --into \
         DIR`\n"
    );
    assert_eq!(meta("r2")["parent"], json!({"taskId": "t", "runId": "newer", "checkpoint": 2}));
    assert!(text(&place.ends(0, &["show", "r2"]).stdout).contains("parent       t/newer, checkpoint 2\n"));
    let page = &place.json(0, &["-o", "json", "show", "r2"])[0];
    assert_eq!(page["request"]["parent"]["runId"], "newer");
    let to = fresh(&place, "to");
    place.ends(0, &["restore", "t/newer", "--into", to.to_str().unwrap()]);
    assert_eq!(tree(&to), tree(&place.0.path().join("tree")));

    // Another step's attempt, one that is not told of, a number of the caller's own, a task made up.
    let said = run(0, "t2", &["--step", "test", "--attempt", "2", "--no-diff"], "true");
    assert!(said.contains("goes on from t/elsewhere, checkpoint"), "{said}");
    let asked =
        ["-q", "run", "--task", "t", "--run", "r3", "--step", "build", "--attempt", "3", "--", "true"];
    assert_eq!(text(&place.ends(0, &asked).stderr), "");
    assert_eq!(meta("r3")["parent"]["runId"], "r2");
    let said = run(0, "r9", &[&step[..], &["--attempt", "9"]].concat(), "true");
    assert_eq!(said, "runwal: attempt 9 has no parent: there is no attempt 8 at step build of task t\n");
    assert_eq!((&meta("r9")["parent"], &meta("r9")["attempt"]), (&Value::Null, &json!(9)));
    let said = text(&place.ends(0, &["run", "--attempt", "2", "--", "true"]).stderr);
    assert!(said.contains("attempt 2 has no parent"), "{said}");
    let said = run(0, "first", &["--step", "other", "--attempt", "1"], "true");
    assert_eq!(said, "");
}

#[test]
fn an_attempt_is_not_begun_beside_the_one_before_it() {
    let place = Place::new();
    let engine = open(&place);
    let mut first = Recorder::prepare(&engine, request("r1")).unwrap();
    let before = segments(&place);
    let asked =
        ["run", "--task", "t", "--step", "build", "--run", "r2", "--attempt", "2", "--", "touch", "started"];
    let output = place.ends(2, &asked);
    let said = text(&output.stderr);
    assert!(said.contains("t/r1 has not ended; its recorder may be alive"), "{said}");
    assert!(said.contains("nothing was started"), "{said}");
    assert!(segments(&place) == before && !place.0.path().join("started").exists());
    assert!(!place.data().join("runs/t/r2").exists());
    let json = place.ends(2, &[&["-o", "json"], &asked[..]].concat());
    let told: Value = serde_json::from_str(text(&json.stderr).lines().next().unwrap()).unwrap();
    assert_eq!(told["error"]["code"], "misuse");
    for bad in ["0", "-1", "x", "4294967296"] {
        place.ends(2, &["run", "--attempt", bad, "--", "touch", "started"]);
    }
    assert!(segments(&place) == before && !place.0.path().join("started").exists());
    first.finish(failed()).unwrap();
    engine.close().unwrap();
    place.ends(0, &asked);
    assert!(place.0.path().join("started").exists());

    // One whose recorder died is ended by the same command that goes on from it.
    let engine = open(&place);
    drop(Recorder::prepare(&engine, RunRequest { attempt: 7, ..request("dead") }).unwrap());
    engine.close().unwrap();
    let asked = ["run", "--task", "t", "--step", "build", "--run", "r8", "--attempt", "8", "--", "true"];
    let said = text(&place.ends(0, &asked).stderr);
    assert!(
        said.contains("t/dead was found without an end") && said.contains("goes on from t/dead"),
        "{said}"
    );
}
