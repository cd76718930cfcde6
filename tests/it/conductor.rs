//! The example conductor, killed at random moments beside a second one that waits for its place.

#![expect(clippy::disallowed_methods, reason = "plays the user, who starts and kills processes")]

use crate::cli::Dice;
use runwal::engine::{Entry, Log};
use runwal::position::{Position, Seq};
use runwal::record::{Body, Id, Status, event, terminal};
use runwal::run::{Recorder, RunRequest};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The example. `cargo test` has built it, and then this finds nothing to do; where this test was asked
/// for alone, it is built here, in the same way as this test.
fn example() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_runwal")).with_file_name("examples").join("conductor");
    let features = [
        (true, "tokio"),
        (cfg!(feature = "testing"), "testing"),
        (cfg!(feature = "tracing"), "tracing"),
        (cfg!(feature = "metrics"), "metrics"),
        (cfg!(feature = "tracing-layer"), "tracing-layer"),
    ];
    let features: Vec<_> = features.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--profile", "test", "--example", "conductor", "--features"]);
    let target = beside.ancestors().nth(3).unwrap();
    cargo.arg(features.join(",")).arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(cargo.status().unwrap().success());
    beside
}

/// A conductor process.
struct Conductor {
    child: Child,
    leads: Arc<AtomicBool>,
    reader: std::thread::JoinHandle<()>,
}

impl Conductor {
    fn start(example: &Path, dir: &Path, said: &Arc<Mutex<Vec<String>>>) -> Self {
        let mut child = Command::new(example)
            .args(["data", "tasks.json"])
            .current_dir(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let leads = Arc::new(AtomicBool::new(false));
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sees, said) = (Arc::clone(&leads), Arc::clone(said));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if line.contains("leading in term") {
                    sees.store(true, Ordering::SeqCst);
                }
            }
            said.lock().unwrap().extend(BufReader::new(err).lines().map_while(Result::ok));
        });
        Self { child, leads, reader }
    }

    fn leads(&self) -> bool {
        self.leads.load(Ordering::SeqCst)
    }

    /// Answers whether it led, and did not end by itself just before.
    fn kill(mut self) -> bool {
        // Its workers hold no end of its pipes, so that they end with it.
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        self.reader.join().unwrap();
        self.leads.load(Ordering::SeqCst) && status.signal().is_some()
    }
}

fn plan(dir: &Path, round: usize, dice: &mut Dice) {
    let task = |n: usize, dice: &mut Dice| {
        let step = |s: usize, dice: &mut Dice| {
            let ms = dice.roll(80);
            // A step in seven goes wrong by itself, at its first attempt.
            let fails = if dice.roll(7) == 0 { "case $RUNWAL_RUN in *-1) exit 3;; esac; " } else { "" };
            let script = format!("{fails}echo T-{round}-{n}-{s}; sleep 0.{ms:03}; echo done");
            serde_json::json!({ "id": format!("s{s}"), "command": ["sh", "-c", script], "attempts": 50 })
        };
        let steps: Vec<_> = (0..4).map(|s| step(s, dice)).collect();
        serde_json::json!({ "id": format!("T-{round}-{n}"), "steps": steps })
    };
    let tasks: Vec<_> = (0..12).map(|n| task(n, dice)).collect();
    let text = serde_json::json!({ "tasks": tasks }).to_string();
    fs::write(dir.join("tasks.json"), text).unwrap();
}

#[test]
fn the_example_killed_a_hundred_times_finishes_its_tasks_and_completes_no_step_twice() {
    let kills: usize = std::env::var("RUNWAL_CONDUCTOR_KILLS").map_or(100, |kills| kills.parse().unwrap());
    let example = example();
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(0xc0de);
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let (mut killed, mut killed_leaders, mut finished, mut round) = (0, 0, 0, 0);
    while killed_leaders < kills {
        plan(dir.path(), round, &mut dice);
        round += 1;
        let start = || Conductor::start(&example, dir.path(), &said);
        let mut both = [start(), start()];
        // Killed at a moment of their own, until one of them says that all is done; the last ones live.
        loop {
            let over = both.iter_mut().position(|one| one.child.try_wait().unwrap().is_some());
            if let Some(over) = over {
                let status = both[over].child.wait().unwrap();
                assert_eq!(status.code(), Some(0), "{:#?}", said.lock().unwrap());
                finished += 1;
                break;
            }
            let leader = both.iter().position(Conductor::leads);
            if killed_leaders >= kills || (leader.is_none() && dice.roll(3000) > 0) {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let ms = if dice.roll(4) == 0 { dice.roll(900) } else { dice.roll(150) };
            std::thread::sleep(Duration::from_millis(ms));
            // Mostly the one that leads; sometimes one that waits, or that is just about to lead.
            let leader = leader.unwrap_or(0);
            let which = if dice.roll(8) == 0 { 1 - leader } else { leader };
            if both.iter_mut().any(|one| one.child.try_wait().unwrap().is_some()) {
                continue;
            }
            let dead = std::mem::replace(&mut both[which], start());
            killed += 1;
            killed_leaders += usize::from(dead.kill());
        }
        // The other one finds nothing to do, and ends by itself.
        for mut one in both {
            let status = one.child.wait().unwrap();
            assert_eq!(status.code(), Some(0), "{:#?}", said.lock().unwrap());
            one.reader.join().unwrap();
        }
    }
    println!("{killed} killed, {killed_leaders} of them leading; {round} plans, {finished} of them finished");
    judge(&dir.path().join("data"), round, killed_leaders, &said.lock().unwrap());
}

/// How a conductor ends that has until then to do so, and what it says. Nobody listens meanwhile: one
/// that never stops talking does not fill the disk.
fn ends(example: &Path, dir: &Path, plan: &serde_json::Value) -> (Option<i32>, String) {
    fs::write(dir.join("tasks.json"), plan.to_string()).unwrap();
    let mut child = Command::new(example)
        .args(["data", "tasks.json"])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_attempt_that_cannot_be_recorded_ends_the_example_and_is_not_made_again_and_again() {
    let example = example();
    let dir = tempfile::tempdir().unwrap();
    let plan = |task: &str, step: &str, command: &[&str]| {
        let step = serde_json::json!({"id": step, "command": command});
        serde_json::json!({"tasks": [{"id": task, "steps": [step]}]})
    };
    // Said before anything is begun.
    for plan in [plan("../T", "a", &["true"]), plan("T", "a/b", &["true"]), plan("T", "a", &[])] {
        let (code, said) = ends(&example, dir.path(), &plan);
        assert_eq!((code, said.lines().count() <= 2), (Some(2), true), "{said}");
        assert!(!dir.path().join("data").exists());
    }
    // Another conductor that leads without a lease has begun it.
    let data = dir.path().join("data");
    let (engine, _) = runwal::Engine::open(&data, runwal::Options::default()).unwrap();
    let id = |text: &str| Id::new(text).unwrap();
    let other = RunRequest::new(id("T"), id("a-1"), id("other"));
    let run = Recorder::prepare(&engine, other).unwrap();
    let (code, said) = ends(&example, dir.path(), &plan("T", "a", &["true"]));
    assert_eq!(code, Some(2), "{said}");
    assert_eq!(said.matches("T/a-1 exists already").count(), 1, "{said}");
    drop(run);
    // A term above which there is none.
    let last = RunRequest { term: Some(u64::MAX), ..RunRequest::new(id("T"), id("r"), id("other")) };
    drop(Recorder::prepare(&engine, last).unwrap());
    engine.close().unwrap();
    let (code, said) = ends(&example, dir.path(), &plan("T", "b", &["true"]));
    assert_eq!((code, said.contains("used up")), (Some(2), true), "{said}");
}

fn judge(data: &Path, rounds: usize, killed_leaders: usize, said: &[String]) {
    let mut log = Log::open(data).unwrap();
    let mut completed: BTreeMap<(String, String), u32> = BTreeMap::new();
    let mut interrupted = 0;
    for run in log.runs().unwrap() {
        let (fold, damage) = log.fold(run.stream).unwrap();
        assert!(damage.is_empty() && fold.ended(), "{} has no end", run.name);
        let request = fold.request().unwrap();
        if fold.state().status == Some(Status::Completed) {
            *completed.entry((run.name.task.to_string(), request.step.to_string())).or_default() += 1;
        }
        interrupted += usize::from(fold.state().status == Some(Status::Interrupted));
        // Each attempt but the first names the one before as its parent.
        assert_eq!(request.attempt > 1, request.parent.is_some(), "{}", run.name);
    }
    assert_eq!(completed.len(), rounds * 12 * 4, "every step of every task");
    assert!(completed.values().all(|times| *times == 1), "{completed:?}");
    // Every leader said when it began, and those that were not killed when they ended.
    let (mut started, mut stopped) = (0, 0);
    let ticks = log.ticks().unwrap().unwrap();
    log.stream(ticks, Seq(1), &mut |record| {
        if let Body::Tick(tick) = &record.body {
            started += usize::from(tick.stage == "started");
            stopped += usize::from(tick.stage == "stopped");
        }
        Ok(true)
    })
    .unwrap();
    // Two of each plan may have been killed when they had nothing left to do, and had said so.
    println!("{interrupted} runs interrupted; {started} leaders began, {stopped} ended in order: {said:#?}");
    assert!(started - stopped + 2 * rounds >= killed_leaders, "{started} {stopped} {killed_leaders}");
    // Terms only grow, and a run bears one.
    let mut terms = Vec::new();
    let mut records = log.records(Position(1)).unwrap();
    while let Some(entry) = records.next().unwrap() {
        let Entry::Record(record) = entry else { panic!("{entry:?}") };
        if let Body::Lifecycle(happened) = &record.body
            && happened.event == event::RUN_PREPARED
        {
            assert!(record.term.is_some());
        }
        if let Body::Lifecycle(happened) = &record.body
            && happened.event == terminal::INTERRUPTED
        {
            assert!(record.term.is_none(), "ended by recovery, in nobody's name");
        }
        terms.extend(record.term);
    }
    assert!(terms.is_sorted(), "a stale write came after a take-over");
    let mut deep = Command::new(env!("CARGO_BIN_EXE_runwal"));
    let deep = deep.arg("--dir").arg(data).args(["verify", "--deep"]).output().unwrap();
    assert_eq!(deep.status.code(), Some(0), "{}", String::from_utf8_lossy(&deep.stdout));
}
