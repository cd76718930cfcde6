//! The commands that show runs, as their users run them.

#![expect(clippy::disallowed_methods, reason = "plays the user, who reads and damages files")]

use crate::cli::{Place, text};
use runwal::JournalOptions;
use runwal::clock::{ManualClock, SeededEntropy};
use runwal::engine::{Engine, NewRecord, Options, World};
use runwal::error::ErrorKind;
use runwal::position::Time;
use runwal::record::{
    Body, Channel, FileFormat, Id, JsonText, Level, Lifecycle, ParentRun, Replay, RunName, StatePatch, Status,
};
use runwal::run::{End, Outcome, Recorder, RunRequest};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// 2026-03-22T00:13:40.123456789Z.
const START: i64 = 1_774_138_420_123_456_789;
/// What would not be seen, would move the cursor, or turn what is seen around.
const ODD: &str = "odd \u{1b}]0;title\u{7}\u{1b}[2J\u{202e}\u{85}\r\nforged";

/// An engine whose time is the test's, with small segments.
fn engine(place: &Place, clock: &Arc<ManualClock>) -> Engine {
    let entropy = Arc::new(SeededEntropy::new(1));
    let world = World { clock: clock.clone(), entropy, ..World::create(&place.data()).unwrap() };
    let journal = JournalOptions { first_capacity: 8 << 10, max_capacity: 8 << 10, ..Default::default() };
    Engine::open_in(world, Options { journal, ..Options::default() }).unwrap().0
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Time(START)))
}

fn id(text: &str) -> Id {
    Id::new(text).unwrap()
}

fn request(task: &str, run: &str) -> RunRequest {
    RunRequest::new(id(task), id(run), id("build"))
}

fn done() -> End {
    End::new(Outcome::Completed, "Done.").exit_code(0)
}

/// What a command prints that ends well.
fn prints(place: &Place, args: &[&str]) -> String {
    text(&place.ends(0, args).stdout)
}

fn keys(value: &Value, line: &str) -> Vec<String> {
    let mut keys: Vec<_> =
        value.as_object().unwrap().keys().map(|key| (line.find(&format!("\"{key}\":")), key)).collect();
    keys.sort();
    keys.into_iter().map(|(_, key)| key.clone()).collect()
}

// --- Reading what is damaged ---

#[test]
fn a_hole_in_a_run_is_told_by_every_command_that_reads_it() {
    let place = Place::new();
    let clock = clock();
    let engine = engine(&place, &clock);
    let mut run = Recorder::prepare(&engine, request("t", "r")).unwrap();
    for n in 0..40_u8 {
        run.chunk(Channel::Stdout, &[b'a' + n % 26; 1000]).unwrap();
    }
    run.finish(done()).unwrap();
    engine.close().unwrap();
    assert!(place.segment(5).exists());
    fs::remove_file(place.segment(3)).unwrap();
    for args in [
        &["output", "t/r"][..],
        &["state", "t/r"],
        &["show", "t/r"],
        &["-o", "json", "show", "t/r"],
        &["replay", "--instant", "t/r"],
        &["checkpoints", "t/r"],
    ] {
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
    for args in [
        &["output", "t/r"][..],
        &["state", "t/r"],
        &["show", "t/r"],
        &["replay", "t/r"],
        &["checkpoints", "t/r"],
    ] {
        let output = place.ends(3, args);
        assert!(text(&output.stderr).contains("cannot be read"), "{args:?}: {output:?}");
    }
    for run in ["t/whole", "t/other"] {
        place.ends(0, &["output", run]);
        place.ends(0, &["show", run]);
    }
}

// --- `output` ---

#[test]
fn the_two_channels_keep_their_order_where_they_meet_again() {
    let place = Place::new();
    let clock = clock();
    let engine = engine(&place, &clock);
    let mut run = Recorder::prepare(&engine, request("t", "r")).unwrap();
    run.chunk(Channel::Stdout, b"Compiling ... ").unwrap();
    run.chunk(Channel::Stderr, b"warning\n").unwrap();
    run.chunk(Channel::Stdout, b"done\n").unwrap();
    run.finish(done()).unwrap();
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
    let clock = clock();
    let engine = engine(&place, &clock);
    let mut run = Recorder::prepare(&engine, request("t", "r")).unwrap();
    let odd = StatePatch { signal: Some(Some("\u{1b}[2J\u{202e}".to_owned())), ..StatePatch::default() };
    run.patch(odd).unwrap();
    engine.close().unwrap();
    let shown = prints(&place, &["runs"]);
    assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}'), "{shown:?}");
}

/// Runs of two tasks, begun a minute apart, of every kind of end.
fn several_runs(place: &Place) {
    let clock = clock();
    let engine = engine(place, &clock);
    let ends = [
        ("a", "r1", Some(Outcome::Completed), "ci=yes"),
        ("b", "r2", Some(Outcome::Failed), "ci=no"),
        ("a", "r3", Some(Outcome::Failed), "ci=yes"),
        ("b", "r4", Some(Outcome::NeedsHuman), "ci=yes"),
        ("a", "r5", None, "ci=no"),
        ("a", "r6", Some(Outcome::Prepared), "ci=no"),
    ];
    for (task, run, outcome, label) in ends {
        let (key, value) = label.split_once('=').unwrap();
        let labels = vec![(key.to_owned(), value.to_owned()), ("run".to_owned(), run.to_owned())];
        let command = vec![b"make".to_vec(), run.as_bytes().to_vec()];
        let mut run =
            Recorder::prepare(&engine, RunRequest { labels, command, ..request(task, run) }).unwrap();
        clock.advance(Duration::from_millis(1_500));
        run.chunk(Channel::Stdout, b"x").unwrap();
        if let Some(outcome) = outcome {
            let code = i32::from(outcome != Outcome::Completed);
            run.finish(End::new(outcome, "Over.").exit_code(code)).unwrap();
        }
        clock.advance(Duration::from_millis(58_500));
    }
    engine.close().unwrap();
}

#[test]
fn runs_are_listed_by_what_is_asked_for() {
    let place = Place::new();
    several_runs(&place);
    let ids = |args: &[&str]| -> String {
        let args = [&["-o", "json", "runs"], args].concat();
        place.json(0, &args).iter().map(|run| run["runId"].as_str().unwrap()).collect::<Vec<_>>().join(" ")
    };
    let minute = |n: i64| Time(START + n * 60_000_000_000).to_nanos_string();
    for (args, expected) in [
        (&[][..], "r1 r2 r3 r4 r5 r6"),
        (&["--task", "a"], "r1 r3 r5 r6"),
        (&["--task", "nobody"], ""),
        (&["--status", "failed"], "r2 r3"),
        (&["--status", "needs_human"], "r4"),
        (&["--status", "prepared"], "r5 r6"),
        (&["--status", "interrupted"], ""),
        (&["--label", "ci=yes"], "r1 r3 r4"),
        (&["--label", "ci=yes", "--label", "run=r3"], "r3"),
        (&["--label", "ci=maybe"], ""),
        (&["-n", "2"], "r5 r6"),
        (&["-n", "0"], ""),
        (&["-n", "100"], "r1 r2 r3 r4 r5 r6"),
        (&["--since", &minute(0)], "r1 r2 r3 r4 r5 r6"),
        (&["--since", &minute(3)], "r4 r5 r6"),
        (&["--since", &minute(6)], ""),
        (&["--since", "2026-03-22T01:15:40.123456789+01:00"], "r3 r4 r5 r6"),
        (&["--since", "-10m"], ""),
        (&["--task", "a", "--status", "failed"], "r3"),
        (&["--task", "a", "--label", "ci=yes", "-n", "1"], "r3"),
        (&["--task", "b", "--since", &minute(2), "--status", "needs_human", "--label", "ci=yes"], "r4"),
        (&["--task", "b", "--status", "completed"], ""),
    ] {
        assert_eq!(ids(args), expected, "{args:?}");
    }
    let refused = text(&place.ends(2, &["runs", "--status", "done"]).stderr);
    for status in Status::ALL {
        assert!(refused.contains(status.word()), "{refused}");
    }
    place.ends(2, &["runs", "--label", "ci"]);
    place.ends(2, &["runs", "--since", "noon"]);
    place.ends(2, &["runs", "-n", "few"]);
}

#[test]
fn a_line_of_runs_has_the_keys_of_state_json_and_records_and_bytes() {
    let place = Place::new();
    several_runs(&place);
    let lines = prints(&place, &["-o", "json", "runs"]);
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    let state = prints(&place, &["state", "a/r1"]);
    let mut expected = keys(&serde_json::from_str(&state).unwrap(), &state);
    expected.extend(["records".to_owned(), "bytes".to_owned()]);
    assert_eq!(keys(&first, lines.lines().next().unwrap()), expected);
    let records = place.json(0, &["-o", "json", "log", "a/r1"]).len();
    assert_eq!(first["records"], records);
    let table = prints(&place, &["runs"]);
    let row = |n: usize| table.lines().nth(n).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(
        row(0)[..9],
        ["RUN", "TASK", "STEP", "STATUS", "STARTED", "DURATION", "EXIT", "RECORDS", "BYTES"]
    );
    assert_eq!(row(2)[..7], ["r2", "b", "build", "failed", "2026-03-22T00:14:40.123Z", "1.500s", "1"]);
    assert_eq!(row(5)[..7], ["r5", "a", "build", "prepared", "2026-03-22T00:17:40.123Z", "-", "-"]);
    assert_eq!(row(2)[7], first["records"].to_string());
}

// --- `show` ---

/// A run with everything a page can show, and everything in it that would spoil a page.
fn rich_run(place: &Place) {
    let clock = clock();
    let engine = engine(place, &clock);
    let request = RunRequest {
        attempt: 2,
        step_kind: Some(ODD.to_owned()),
        worker_kind: Some("codex".to_owned()),
        command: vec![b"sh".to_vec(), b"-c".to_vec(), ODD.as_bytes().to_vec(), b"\xff".to_vec(), Vec::new()],
        working_tree: Some(b"/src/my tree".to_vec()),
        environment: vec![(b"LANG".to_vec(), b"C".to_vec()), (b"ODD".to_vec(), ODD.as_bytes().to_vec())],
        timeout_ms: Some(600_000),
        controller: Some(ODD.to_owned()),
        term: Some(7),
        labels: vec![("ci".to_owned(), ODD.to_owned())],
        parent: Some(ParentRun { name: RunName { task: id("t"), run: id("r0") }, checkpoint: Some(3) }),
        ..request("t", "r")
    };
    let mut run = Recorder::prepare(&engine, request).unwrap();
    clock.advance(Duration::from_millis(1_500));
    run.event(Lifecycle::new("worker_started", Level::Info, ODD)).unwrap();
    run.chunk(Channel::Stdout, format!("first\n\u{1b}[31mred\u{1b}[0m\n10%\r99%\n{ODD}\n").as_bytes())
        .unwrap();
    run.chunk(Channel::Stderr, b"no newline").unwrap();
    let diff = b"diff\n".to_vec();
    run.checkpoint("git_diff", FileFormat::Patch, Replay::GitApplyBinary, ODD, diff).unwrap();
    clock.advance(Duration::from_hours(25));
    let terminal = Lifecycle {
        data: JsonText::parse(&format!(
            r#"{{"ok":false,"artifacts":[{{"path":{},"bytes":1234,"digest":"b3:00ff"}}]}}"#,
            json!(ODD)
        ))
        .unwrap(),
        ..Lifecycle::new("step_failed", Level::Error, ODD)
    };
    let patch = StatePatch {
        status: Some(Status::Failed),
        finished_at: Some(Some(Time(START + 90_001_500_000_000))),
        summary: Some(Some(ODD.to_owned())),
        exit_code: Some(Some(101)),
        signal: Some(Some(ODD.to_owned())),
        ..StatePatch::default()
    };
    let terminal = NewRecord { ends: true, ..Body::Lifecycle(terminal).into() };
    run.append(vec![terminal, Body::StatePatch(patch).into()]).unwrap();
    engine.close().unwrap();
}

#[test]
fn the_page_of_a_run_tells_what_was_asked_how_it_went_and_what_is_next() {
    let place = Place::new();
    rich_run(&place);
    let page = prints(&place, &["show", "t/r"]);
    let shown = "odd \\u{1b}]0;title\\u{7}\\u{1b}[2J\\u{202e}\\u{85}\\r\\nforged";
    for expected in [
        "t/r  failed",
        shown,
        "command      sh -c",
        "$'\\377' ''",
        "directory    '/src/my tree'",
        "attempt 2",
        "worker       codex",
        "environment  LANG=C",
        "timeout      10m, then SIGTERM, and SIGKILL 5s later",
        "parent       t/r0, checkpoint 3",
        "in term 7",
        "started      2026-03-22T00:13:40.123Z",
        "finished     2026-03-23T01:13:41.623Z",
        "duration     1 d 01 h",
        "exit code    101",
        "stdout       5 lines,",
        "stderr       0 lines, 10 bytes",
        "events       1 error, 2 info, 1 debug",
        "Events of 2026-03-22, UTC\n  00:13:40.123 info  run_prepared",
        "Events of 2026-03-23, UTC\n  01:13:41.623 error step_failed",
        "checkpoints/0002-git-diff.patch",
        "1,234 bytes, b3:00ff",
        "  | red\n  | 99%\n",
        "  | no newline\n",
        "runs/t/r",
        "runwal output t/r ",
        "runwal restore t/r --checkpoint 2 --into DIR",
        "runwal run --task t --step build --attempt 3 -C DIR --worker codex --timeout 10m",
    ] {
        assert!(page.contains(expected), "{expected:?} is not in\n{page}");
    }
    assert!(!page.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')), "{page:?}");
    assert!(!page.lines().any(|line| line.starts_with("forged")));
    let coloured = prints(&place, &["--color", "always", "show", "t/r"]);
    assert!(coloured.contains("\u{1b}[1;31mfailed\u{1b}[0m"));
    let mut plain = coloured;
    for code in ["0", "1", "2", "33", "1;31", "1;32"] {
        plain = plain.replace(&format!("\u{1b}[{code}m"), "");
    }
    assert_eq!(plain.replace(' ', ""), page.replace(' ', ""), "colour changes nothing but the colour");
}

#[test]
fn the_page_as_json_has_the_state_the_request_and_everything_that_happened() {
    let place = Place::new();
    rich_run(&place);
    let line = prints(&place, &["-o", "json", "show", "t/r"]);
    assert_eq!(line.lines().count(), 1);
    let page: Value = serde_json::from_str(&line).unwrap();
    let state: Value = serde_json::from_str(&prints(&place, &["state", "t/r"])).unwrap();
    for (key, value) in state.as_object().unwrap() {
        assert_eq!(&page[key], value, "{key}");
    }
    let meta = fs::read(place.data().join("runs/t/r/meta.json")).unwrap();
    assert_eq!(page["request"], serde_json::from_slice::<Value>(&meta).unwrap());
    let order = [
        "taskId",
        "stepId",
        "runId",
        "attempt",
        "status",
        "startedAt",
        "updatedAt",
        "finishedAt",
        "summary",
        "exitCode",
        "signal",
        "pid",
        "lastEventSeq",
        "lastCheckpointSeq",
        "records",
        "bytes",
        "durationMs",
        "ended",
        "abandoned",
        "folder",
        "request",
        "counts",
        "checkpoints",
        "artifacts",
        "events",
    ];
    let mut at = 0;
    for key in order {
        let found = line[at..].find(&format!("\"{key}\":"));
        at += found.unwrap_or_else(|| panic!("{key} is missing or out of order"));
    }
    assert_eq!(page.as_object().unwrap().len(), order.len());
    assert_eq!(page["durationMs"], 90_001_500);
    assert_eq!(page["counts"]["events"], json!({"debug": 1, "info": 2, "warn": 0, "error": 1}));
    assert_eq!(page["counts"]["stderr"], json!({"lines": 0, "bytes": 10}));
    assert_eq!(page["artifacts"], json!([{"path": ODD, "bytes": 1234, "digest": "b3:00ff"}]));
    assert_eq!(page["events"][2]["message"], ODD);
    assert_eq!(page["events"].as_array().unwrap().len(), 4);
    assert_eq!(page["checkpoints"].as_array().unwrap().len(), 2);
    assert_eq!((&page["ended"], &page["abandoned"]), (&json!(true), &json!(false)));
}

#[test]
fn the_page_of_a_run_whose_recorder_died_says_how_to_go_on() {
    let place = Place::new();
    let clock = clock();
    let first = engine(&place, &clock);
    let command = vec![b"make".to_vec(), b"all targets".to_vec()];
    let run = Recorder::prepare(&first, RunRequest { command, ..request("t", "r") }).unwrap();
    let page = prints(&place, &["show", "@last"]);
    assert!(page.contains("t/r  prepared\n") && page.contains("runwal output -f t/r"), "{page}");
    drop(run);
    first.close().unwrap();
    let page = prints(&place, &["show", "r"]);
    assert!(page.contains("abandoned") && page.contains("runwal recover"), "{page}");
    assert_eq!(place.json(0, &["-o", "json", "show", "r"])[0]["abandoned"], true);
    place.ends(0, &["recover"]);
    let data = place.data();
    let page = prints(&place, &["--dir", data.to_str().unwrap(), "show", "r"]);
    assert!(page.contains("t/r  interrupted"), "{page}");
    let again = format!(
        "runwal --dir {} run --task t --step build --attempt 2 -- make 'all targets'\n",
        data.display()
    );
    assert!(page.contains(&again) && page.contains("\nNext\n"), "{page}");
    place.ends(1, &["show", "nobody"]);
    place.ends(2, &["show"]);
}

#[test]
fn what_a_worker_took_and_left_running_stands_on_the_page() {
    let place = Place::new();
    let clock = clock();
    let engine = engine(&place, &clock);
    let mut run = Recorder::prepare(&engine, request("t", "r")).unwrap();
    let data = r#"{"maxRssBytes":5382144,"userMs":1200,"systemMs":34,"leftRunningCount":3,
        "leftRunning":[{"pid":4711,"command":"sleep \u001b[2J 60"}]}"#;
    let data = JsonText::parse(data).unwrap();
    run.event(Lifecycle { data, ..Lifecycle::new("worker_exited", Level::Error, "Exited.") }).unwrap();
    run.finish(End::new(Outcome::NeedsHuman, "Look.").exit_code(0)).unwrap();
    engine.close().unwrap();
    let page = prints(&place, &["show", "t/r"]);
    for expected in [
        "used         1.234 s of processor time, at most 5,256 KiB of memory\n",
        "left running 4711: sleep \\u{1b}[2J 60\n",
        "left running 2 more\n",
    ] {
        assert!(page.contains(expected), "{expected:?} is not in\n{page}");
    }
}

#[test]
fn artifacts_in_a_form_that_is_not_known_are_shown_as_they_are() {
    let place = Place::new();
    let clock = clock();
    let engine = engine(&place, &clock);
    for (run, data, expected) in [
        ("none", r#"{"artifacts":[]}"#, None),
        ("odd", r#"{"artifacts":{"a\u001bb":1}}"#, Some(r#"{"a\\u001bb":1}"#)),
        ("more", r#"{"artifacts":[{"path":"log.txt","mode":"0600"}]}"#, Some("log.txt")),
    ] {
        let mut run = Recorder::prepare(&engine, request("t", run)).unwrap();
        let data = JsonText::parse(data).unwrap();
        let event = Lifecycle { data, ..Lifecycle::new("step_completed", Level::Info, "Done.") };
        run.append(vec![NewRecord { ends: true, ..Body::Lifecycle(event).into() }]).unwrap();
        let page = prints(&place, &["show", &run.name().to_string()]);
        assert_eq!(page.contains("Artifacts"), expected.is_some(), "{page}");
        assert!(page.contains(expected.unwrap_or_default()), "{page}");
    }
    engine.close().unwrap();
}

#[test]
fn a_long_list_of_events_is_cut_in_the_middle_and_whole_where_it_is_asked_for() {
    let place = Place::new();
    let clock = clock();
    let engine = engine(&place, &clock);
    let mut run = Recorder::prepare(&engine, request("t", "r")).unwrap();
    for n in 0..500 {
        run.event(Lifecycle::new("step", Level::Info, format!("number {n}."))).unwrap();
    }
    run.finish(done()).unwrap();
    engine.close().unwrap();
    let page = prints(&place, &["show", "t/r"]);
    assert!(page.contains("number 5.") && page.contains("number 499.") && !page.contains("number 250."));
    assert!(page.contains("`runwal log t/r --kind lifecycle`") && page.lines().count() < 100, "{page}");
    assert!(prints(&place, &["-v", "show", "t/r"]).contains("number 250."));
    assert_eq!(place.json(0, &["-o", "json", "show", "t/r"])[0]["events"].as_array().unwrap().len(), 503);
}

#[test]
fn a_damaged_run_is_shown_as_far_as_it_can_be_read() {
    let place = Place::new();
    place.record("r", "echo precious; exit 3");
    let bytes = fs::read(place.segment(1)).unwrap();
    let at = bytes.windows(9).position(|w| w == b"precious\n").unwrap() as u64;
    fs::File::options().write(true).open(place.segment(1)).unwrap().write_all_at(b"P", at).unwrap();
    let output = place.ends(3, &["show", "t/r"]);
    let page = text(&output.stdout);
    assert!(page.contains("Records of this run cannot be read") && page.contains("run_prepared"), "{page}");
    assert!(page.contains("runwal verify"), "{page}");
    assert!(text(&output.stderr).contains("segment 1, offset"), "{output:?}");
    let output = place.ends(3, &["-o", "json", "show", "t/r"]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["runId"], "r");
    assert_eq!(serde_json::from_slice::<Value>(&output.stderr).unwrap()["error"]["code"], "corrupt");
}

#[test]
fn a_torn_tail_is_told_by_the_commands_that_show_a_run() {
    let place = Place::new();
    place.record("r", "echo one");
    let end = fs::metadata(place.segment(1)).unwrap().len();
    let file = fs::File::options().write(true).open(place.segment(1)).unwrap();
    file.write_all_at(b"half a batch", end).unwrap();
    for args in [
        &["show", "t/r"][..],
        &["state", "t/r"],
        &["output", "t/r"],
        &["checkpoints", "t/r"],
        &["replay", "t/r"],
    ] {
        let output = place.ends(4, args);
        assert!(!output.stdout.is_empty() && text(&output.stderr).contains("runwal recover"), "{output:?}");
    }
}

// --- `checkpoints` ---

#[test]
fn checkpoints_are_listed_with_their_files() {
    let place = Place::new();
    rich_run(&place);
    let table = prints(&place, &["checkpoints", "t/r"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NUMBER", "TYPE", "FILE", "BYTES", "REPLAY", "TIME", "SUMMARY"]);
    let file = "checkpoints/0002-git-diff.patch";
    assert_eq!(rows[2][..6], ["2", "git_diff", file, "5", "git_apply_binary", "2026-03-22T00:13:41.623Z"]);
    assert!(rows.len() == 3 && !table.contains('\u{1b}') && !table.contains('\u{202e}'), "{table:?}");
    let lines = prints(&place, &["-o", "json", "checkpoints", "t/r"]);
    let second = lines.lines().nth(1).unwrap();
    let json: Value = serde_json::from_str(second).unwrap();
    let logged = place.json(0, &["-o", "json", "log", "--kind", "checkpoint", "t/r"]);
    for key in ["number", "type", "format", "replay", "summary", "bytes", "createdAt"] {
        assert_eq!(json[key], logged[1][key], "{key}");
    }
    assert_eq!(
        keys(&json, second),
        ["number", "type", "format", "replay", "summary", "bytes", "file", "createdAt"]
    );
    let content = fs::read(place.data().join("runs/t/r").join(json["file"].as_str().unwrap())).unwrap();
    assert_eq!(content.len() as u64, json["bytes"].as_u64().unwrap());
    place.ends(1, &["checkpoints", "nobody"]);
}

#[test]
fn a_checkpoint_in_parts_is_one_and_one_without_its_end_is_none() {
    let place = Place::new();
    let clock = clock();
    let engine = engine(&place, &clock);
    let mut run = Recorder::prepare(&engine, request("t", "r")).unwrap();
    let part = |content: &[u8], more: bool| NewRecord {
        more,
        ..Body::Checkpoint(runwal::record::Checkpoint {
            number: 2,
            kind: "test_output".to_owned(),
            format: FileFormat::Text,
            replay: Replay::None,
            summary: "In parts.".to_owned(),
            total_len: 8,
            content: content.to_vec(),
        })
        .into()
    };
    run.append(vec![part(b"one\n", true)]).unwrap();
    assert_eq!(place.json(0, &["-o", "json", "checkpoints", "r"]).len(), 1);
    run.append(vec![part(b"two\n", false)]).unwrap();
    let all = place.json(0, &["-o", "json", "checkpoints", "r"]);
    assert_eq!((all.len(), &all[1]["bytes"]), (2, &json!(8)));
    let plain = RunRequest { checkpoints: false, ..request("t", "none") };
    Recorder::prepare(&engine, plain).unwrap().finish(done()).unwrap();
    assert!(place.json(0, &["-o", "json", "checkpoints", "t/none"]).is_empty());
    drop(run);
    engine.close().unwrap();
}

// --- `replay` ---

/// Output on both channels with an hour between each two chunks, and once a clock that goes back.
fn slow_run(place: &Place) -> Vec<u8> {
    let clock = clock();
    let engine = engine(place, &clock);
    let mut run = Recorder::prepare(&engine, request("t", "slow")).unwrap();
    let mut both = Vec::new();
    for (i, piece) in
        ["out\0 ", "err\n", "\u{1b}[31mput\n", "\u{1b}]0;title\u{7}", "end"].into_iter().enumerate()
    {
        clock.advance(Duration::from_hours(1));
        if i == 3 {
            clock.set_wall(Time(START - 1));
        }
        let channel = if i % 2 == 0 { Channel::Stdout } else { Channel::Stderr };
        run.chunk(channel, piece.as_bytes()).unwrap();
        both.extend_from_slice(piece.as_bytes());
    }
    clock.advance(Duration::from_hours(1));
    run.finish(done()).unwrap();
    engine.close().unwrap();
    both
}

#[test]
fn a_replay_gives_the_same_bytes_on_the_same_channels_in_the_same_order() {
    let place = Place::new();
    let both = slow_run(&place);
    let fast = ["replay", "t/slow", "--speed", "1e9"];
    for args in
        [&fast[..], &["replay", "t/slow", "--instant"], &["replay", "t/slow", "--max-gap", "0s", "--raw"]]
    {
        let output = place.ends(0, args);
        assert_eq!(text(&output.stdout), "out\0 \u{1b}[31mput\nend");
        assert_eq!(text(&output.stderr), "err\n\u{1b}]0;title\u{7}");
        let file = place.0.path().join("both");
        let one = fs::File::create(&file).unwrap();
        let status = place.command(args).stdout(one.try_clone().unwrap()).stderr(one).status().unwrap();
        assert!(status.success());
        assert_eq!(fs::read(&file).unwrap(), both, "{args:?}");
    }
    let seqs: Vec<String> = place
        .json(0, &["-o", "json", "log", "t/slow", "--kind", "stdout"])
        .iter()
        .map(|record| record["seq"].to_string())
        .collect();
    let until = |at: &str| text(&place.ends(0, &["replay", "t/slow", "--instant", "--until", at]).stdout);
    assert_eq!(until(&seqs[0]), "out\0 ");
    assert_eq!(until(&seqs[1]), "out\0 \u{1b}[31mput\n");
    assert_eq!(until("1"), "");
    assert_eq!(until("2026-03-22T02:00:00Z"), "out\0 ");
    assert_eq!(until("-10m"), "out\0 \u{1b}[31mput\nend");
    place.ends(1, &["replay", "t/slow", "--until", "2000-01-01T00:00:00Z"]);
    place.ends(1, &["replay", "nobody"]);
    for wrong in [
        &["--speed", "0"][..],
        &["--speed", "-1"],
        &["--speed", "nan"],
        &["--speed", "inf"],
        &["--speed", "x"],
        &["--max-gap", "x"],
        &["--until", "x"],
        &["--instant", "--speed", "2"],
        &["--instant", "--max-gap", "2s"],
    ] {
        place.ends(2, &[&["replay", "t/slow"], wrong].concat());
    }
}

#[test]
fn a_replay_tells_the_events_where_it_is_asked_to() {
    let place = Place::new();
    slow_run(&place);
    let output = place.ends(0, &["-v", "replay", "t/slow", "--instant", "--until", "6"]);
    let told = text(&output.stderr);
    let event = "runwal: 2026-03-22T00:13:40.123Z info run_prepared Prepared step build of task t.\n";
    assert!(told.starts_with("runwal: data directory ") && told.contains(event), "{told}");
    assert!(told.find(event) < told.find("err\n") && told.contains("err\n"), "{told}");
}

#[test]
fn a_replay_shows_what_there_is_before_it_waits_and_a_closed_pipe_ends_it_quietly() {
    let place = Place::new();
    let clock = clock();
    let engine = engine(&place, &clock);
    let mut run = Recorder::prepare(&engine, request("t", "r")).unwrap();
    run.chunk(Channel::Stdout, b"no newline yet").unwrap();
    clock.advance(Duration::from_hours(24 * 365));
    run.chunk(Channel::Stdout, b"a year later").unwrap();
    engine.close().unwrap();
    let mut child = place.command(&["replay", "t/r"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 14];
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut first).unwrap();
    assert_eq!(&first, b"no newline yet");
    assert!(child.try_wait().unwrap().is_none(), "the second is a year away");
    child.kill().unwrap();
    child.wait().unwrap();
    place.record("much", "seq 100000");
    let mut child = place
        .command(&["replay", "t/much", "--instant"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

// --- `completions`, `man`, -v ---

#[test]
fn every_shell_has_a_script_that_knows_commands_and_options() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = prints(&place, &["completions", shell]);
        for word in ["checkpoints", "replay", "max-gap", "accept-damage"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let script = place.ends(0, &["completions", "bash"]).stdout;
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(&script).unwrap();
    assert!(bash.wait().unwrap().success());
    place.ends(2, &["completions", "tcsh"]);
    place.ends(2, &["completions"]);
    assert!(!place.data().exists(), "they need no data directory");
}

#[test]
fn the_manual_has_every_command_and_exit_code() {
    let place = Place::new();
    let page = prints(&place, &["man"]);
    assert!(page.contains(".TH"));
    let help = prints(&place, &["--help"]);
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<&str> = commands
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|n| !n.is_empty())
        .collect();
    assert!(names.contains(&"show") && names.len() > 10, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        assert!(page.contains(&format!(".SS \"runwal {name}\"")), "{name}");
    }
    let shown = Command::new("man")
        .args(["--warnings", "-l", "-"])
        .env("MANWIDTH", "80")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut man) = shown else { return println!("skipped: there is no man") };
    man.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = man.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "", "a formatter has nothing to complain of");
}

#[test]
fn with_v_every_command_says_which_data_directory_it_is_about() {
    let place = Place::new();
    let recorded = place.run(&["-v", "run", "--task", "t", "--run", "r", "--", "echo", "x"]);
    let told = text(&recorded.stderr);
    assert!(told.contains("t/r: Exited with code 0") && told.contains("2 bytes on stdout"), "{told}");
    for args in [
        &["runs"][..],
        &["show", "r"],
        &["state", "r"],
        &["log"],
        &["output", "r"],
        &["checkpoints", "r"],
        &["replay", "r"],
        &["rebuild"],
        &["recover"],
        &["verify"],
        &["info"],
        &["ticks"],
    ] {
        let quiet = place.ends(0, args);
        assert!(quiet.stderr.is_empty(), "{quiet:?}");
        let told = text(&place.ends(0, &[&["-v"], args].concat()).stderr);
        let dir = place.data();
        assert!(
            told.starts_with(&format!("runwal: data directory {} (named by $RUNWAL_DIR)\n", dir.display())),
            "{told}"
        );
    }
}

// --- The page of errors ---

#[test]
fn every_code_and_every_exit_code_has_its_section() {
    let page = include_str!("../../src/docs/errors.md");
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    for kind in ErrorKind::ALL {
        let section = format!("`{}`", kind.code());
        let text =
            page.split(&format!("## {section}")).nth(1).unwrap_or_else(|| panic!("no section {section}"));
        let text = text.split("\n## ").next().unwrap();
        for part in ["**Data at stake:**", "**What to do:**", "```text\nrunwal: "] {
            assert!(text.contains(part), "{section} lacks {part}");
        }
    }
    let codes = ["0", "1", "2", "3", "4", "5", "6", "7", "124", "125", "126", "127", "128 + signal"];
    for code in codes {
        assert!(page.contains(&format!("\n| {code} |")), "exit code {code}");
    }
    assert_eq!(sections.len(), ErrorKind::ALL.len(), "{sections:?}");
    let place = Place::new();
    fs::write(place.0.path().join("f"), "").unwrap();
    place.ends(0, &["-q", "run", "--task", "T-016", "--run", "r-1", "--", "true"]);
    for (code, args) in [
        (1, &["show", "r-7"][..]),
        (2, &["run", "--task", "../etc", "--", "true"]),
        (2, &["run", "--task", "T-016", "--run", "r-1", "--", "true"]),
        (125, &["--dir", "f", "run", "--", "true"]),
    ] {
        let told = text(&place.ends(code, args).stderr);
        let example = told.strip_suffix("runwal: nothing was started\n").unwrap_or(&told);
        assert!(page.contains(&format!("```text\n{example}```")), "{args:?}: {example}");
    }
}
