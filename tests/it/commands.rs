//! The commands that show runs, as their users run them.

#![expect(clippy::disallowed_methods, reason = "plays the user, who reads and damages files")]

use runwal::JournalOptions;
use runwal::clock::{ManualClock, SeededEntropy};
use runwal::engine::{Engine, Options, World};
use runwal::position::Time;
use runwal::record::{Channel, Id};
use runwal::run::{End, Outcome, Recorder, RunRequest};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

/// 2026-03-22T00:13:40.123456789Z.
const START: i64 = 1_774_138_420_123_456_789;

/// A data directory of its own for each test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runwal"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        for name in ["NO_COLOR", "CLICOLOR_FORCE", "RUNWAL_RUN", "RUNWAL_RECORDER"] {
            command.env_remove(name);
        }
        command.env("RUNWAL_DIR", self.data());
        command
    }

    /// Runs, and expects an exit code.
    fn ends(&self, code: i32, args: &[&str]) -> Output {
        let output = self.command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        output
    }

    /// What a command prints that ends well.
    fn prints(&self, args: &[&str]) -> String {
        text(&self.ends(0, args).stdout)
    }

    /// The lines of a command that answers with JSON.
    fn json(&self, code: i32, args: &[&str]) -> Vec<Value> {
        let output = self.ends(code, args);
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn record(&self, run: &str, script: &str) -> Output {
        self.command(&["-q", "run", "--task", "t", "--run", run, "--", "sh", "-c", script]).output().unwrap()
    }

    fn segment(&self, number: u32) -> PathBuf {
        self.data().join(format!("journal/{number:010}.seg"))
    }

    /// An engine whose time is the test's.
    fn engine(&self, clock: &Arc<ManualClock>) -> Engine {
        let entropy = Arc::new(SeededEntropy::new(1));
        let world = World { clock: clock.clone(), entropy, ..World::create(&self.data()).unwrap() };
        let journal = JournalOptions { first_capacity: 8 << 10, max_capacity: 8 << 10, ..Default::default() };
        Engine::open_in(world, Options { journal, ..Options::default() }).unwrap().0
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn id(text: &str) -> Id {
    Id::new(text).unwrap()
}

fn request(task: &str, run: &str) -> RunRequest {
    RunRequest::new(id(task), id(run), id("build"))
}

// --- Reading what is damaged ---

#[test]
fn a_hole_in_a_run_is_told_by_every_command_that_reads_it() {
    let place = Place::new();
    let clock = Arc::new(ManualClock::new(Time(START)));
    let engine = place.engine(&clock);
    let mut run = Recorder::prepare(&engine, request("t", "r")).unwrap();
    for n in 0..40_u8 {
        run.chunk(Channel::Stdout, &[b'a' + n % 26; 1000]).unwrap();
    }
    run.finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
    engine.close().unwrap();
    assert!(place.segment(5).exists());
    fs::remove_file(place.segment(3)).unwrap();
    for args in [&["output", "t/r"][..], &["state", "t/r"]] {
        let output = place.ends(3, args);
        assert!(!output.stdout.is_empty(), "{args:?} printed nothing of what can be read");
        assert!(text(&output.stderr).contains("cannot be read"), "{args:?}: {output:?}");
        assert_eq!(text(&output.stderr).lines().count(), 1, "{args:?} says it once: {output:?}");
    }
}

#[test]
fn an_end_that_may_be_lost_is_told_by_every_command_that_reads_the_run() {
    let place = Place::new();
    place.record("whole", "echo whole");
    place.record("r", "echo precious; exit 3");
    place.record("other", "echo other");
    let bytes = fs::read(place.segment(1)).unwrap();
    let at = bytes.windows(9).position(|w| w == b"precious\n").unwrap() as u64;
    fs::File::options().write(true).open(place.segment(1)).unwrap().write_all_at(b"P", at).unwrap();
    for args in [&["output", "t/r"][..], &["state", "t/r"]] {
        let output = place.ends(3, args);
        assert!(text(&output.stderr).contains("cannot be read"), "{args:?}: {output:?}");
    }
    for run in ["t/whole", "t/other"] {
        place.ends(0, &["output", run]);
    }
}

// --- `output` ---

#[test]
fn the_two_channels_keep_their_order_where_they_meet_again() {
    let place = Place::new();
    let clock = Arc::new(ManualClock::new(Time(START)));
    let engine = place.engine(&clock);
    let mut run = Recorder::prepare(&engine, request("t", "r")).unwrap();
    run.chunk(Channel::Stdout, b"Compiling ... ").unwrap();
    run.chunk(Channel::Stderr, b"warning\n").unwrap();
    run.chunk(Channel::Stdout, b"done\n").unwrap();
    run.finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
    engine.close().unwrap();
    let both = place.0.path().join("both");
    let file = fs::File::create(&both).unwrap();
    let status =
        place.command(&["output", "t/r"]).stdout(file.try_clone().unwrap()).stderr(file).status().unwrap();
    assert!(status.success());
    assert_eq!(fs::read_to_string(&both).unwrap(), "Compiling ... warning\ndone\n");
}

// --- Errors ---

#[test]
fn with_json_every_error_is_one_object() {
    let place = Place::new();
    place.record("r", "true");
    for (code, args) in [
        (2, &["-o", "json", "runs", "--status", "finished"][..]),
        (2, &["-o", "json", "log", "--since", "yesterdayish"]),
        (2, &["-o", "json", "log", "--after-cursor", "x"]),
        (1, &["-o", "json", "state", "nobody"]),
    ] {
        let output = place.ends(code, args);
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        let expected = if code == 2 { "misuse" } else { "not_found" };
        assert_eq!(error["error"]["code"], expected, "{args:?}");
        assert!(error["error"]["message"].is_string() && error["error"]["hint"].is_string(), "{args:?}");
    }
}

// --- `runs` ---

#[test]
fn what_an_embedder_says_of_a_signal_cannot_move_the_cursor() {
    let place = Place::new();
    let clock = Arc::new(ManualClock::new(Time(START)));
    let engine = place.engine(&clock);
    let mut run = Recorder::prepare(&engine, request("t", "r")).unwrap();
    let odd = runwal::record::StatePatch {
        signal: Some(Some("\u{1b}[2J\u{202e}".to_owned())),
        ..runwal::record::StatePatch::default()
    };
    run.patch(odd).unwrap();
    engine.close().unwrap();
    let shown = place.prints(&["runs"]);
    assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}'), "{shown:?}");
}
