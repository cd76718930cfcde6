//! The second decoder, written from FORMAT.md alone, reads the same as the first.

#![expect(clippy::disallowed_methods, reason = "makes and damages journals behind the library's back")]

use runwal::JournalOptions;
use runwal::clock::{ManualClock, SeededEntropy};
use runwal::engine::{Engine, NewRecord, Options, World};
use runwal::position::Time;
use runwal::record::{
    Body, Channel, FileFormat, Id, JsonText, Level, Lifecycle, ParentRun, Replay, RunName, StatePatch,
    Status, Tick,
};
use runwal::run::{End, Outcome, Recorder, RunRequest};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// 2026-03-22T00:13:40.123456789Z.
const START: i64 = 1_774_138_420_123_456_789;
/// What would not be seen, or turns what is seen around; and what JSON escapes.
const ODD: &str = "a\\b \"q\" \u{0}\u{1b}[31m\t\r\n\u{7f}\u{85}\u{9f}\u{a0}é漢😀\u{200b}\u{200e}\u{2028}\u{202e}\u{2060}\u{206f}\u{2070}\u{feff}/";

fn id(text: &str) -> Id {
    Id::new(text).unwrap()
}

/// A world whose time and chance are the test's; its disk is real.
fn world(dir: &Path, clock: &Arc<ManualClock>, seed: u64) -> World {
    World { clock: clock.clone(), entropy: Arc::new(SeededEntropy::new(seed)), ..World::create(dir).unwrap() }
}

/// Small segments, so that there are several.
fn options(capacity: u64) -> Options {
    let journal =
        JournalOptions { first_capacity: capacity, max_capacity: capacity, ..JournalOptions::default() };
    Options { journal, ..Options::default() }
}

/// A run with everything a run can have.
fn rich_request() -> RunRequest {
    RunRequest {
        attempt: 3,
        step_kind: Some(ODD.to_owned()),
        worker_kind: Some(String::new()),
        command: vec![b"cargo".to_vec(), b"\xff\xfe\0".to_vec(), Vec::new(), ODD.as_bytes().to_vec()],
        working_tree: Some(b"/src/\xe9".to_vec()),
        environment: vec![
            (b"LANG".to_vec(), b"C".to_vec()),
            (b"BYTES".to_vec(), b"\x80".to_vec()),
            (ODD.as_bytes().to_vec(), ODD.as_bytes().to_vec()),
        ],
        timeout_ms: Some(u64::MAX),
        grace_ms: 0,
        checkpoints: true,
        controller: Some("c\u{202e}".to_owned()),
        term: Some(7),
        labels: vec![("ci".to_owned(), "yes".to_owned()), (ODD.to_owned(), ODD.to_owned())],
        parent: Some(ParentRun { name: RunName { task: id("T-0"), run: id("r.0_") }, checkpoint: Some(3) }),
        created_at: Some(Time(START - 5_000_000_001)),
        ..RunRequest::new(id("T-1"), id("r-1"), id("build"))
    }
}

/// Events of all levels, with odd messages and data.
fn events() -> Vec<Lifecycle> {
    let data = [
        r#"{"b":1.50,"a":1e400,"a":-0,"\u0041":"\ud800\/é"}"#.to_owned(),
        format!(r#"["{}",[],{{}},null,true]"#, "\u{7f}\u{9f}\u{200b}\u{feff}\u{2029}漢"),
        r#""text""#.to_owned(),
        format!("{}{}", "[".repeat(150), "]".repeat(150)),
    ];
    let event = |(level, data): (&Level, &String)| Lifecycle {
        data: JsonText::parse(data).unwrap(),
        ..Lifecycle::new("odd_event_0", *level, format!("{level:?} {ODD}"))
    };
    Level::ALL.iter().zip(&data).map(event).collect()
}

/// A tick with odd details.
fn tick(n: u64, details: &str) -> Tick {
    Tick {
        batch_id: format!("timed-jobs-{n}"),
        runner: format!("health{ODD}"),
        stage: String::new(),
        result: n.is_multiple_of(2).then(|| "ok".to_owned()),
        error: n.is_multiple_of(3).then(|| ODD.to_owned()),
        duration_ms: n.is_multiple_of(4).then_some(u64::MAX),
        details: JsonText::parse(details).unwrap(),
    }
}

/// The run with everything, from its first record to its last.
fn rich_run(engine: &Engine, clock: &ManualClock) {
    let mut run = Recorder::prepare(engine, rich_request()).unwrap();
    for event in events() {
        clock.advance(Duration::from_micros(1_234_567));
        run.event(event).unwrap();
    }
    run.chunk(Channel::Stdout, b"plain\nlines \xe2\x82").unwrap();
    run.chunk(Channel::Stdout, "\u{20ac}\r\n\u{1b}[0m\0\u{7f}".as_bytes()).unwrap();
    run.chunk(Channel::Stderr, &(0..=255).collect::<Vec<u8>>()).unwrap();
    let patch = StatePatch {
        status: Some(Status::NeedsHuman),
        started_at: Some(Some(Time(-1))),
        updated_at: Some(Time(i64::MAX)),
        finished_at: Some(Some(Time(i64::MIN))),
        summary: Some(Some(ODD.to_owned())),
        exit_code: Some(Some(i32::MIN)),
        signal: Some(Some("SIGKILL".to_owned())),
        pid: Some(Some(u32::MAX)),
    };
    run.patch(patch).unwrap();
    let cleared = StatePatch {
        started_at: Some(None),
        finished_at: Some(None),
        summary: Some(None),
        exit_code: Some(None),
        signal: Some(None),
        pid: Some(None),
        ..StatePatch::default()
    };
    run.patch(cleared).unwrap();
    run.patch(StatePatch::default()).unwrap();
    let diff = "diff\n".repeat(200).into_bytes();
    run.checkpoint("git_diff_2", FileFormat::Patch, Replay::GitApplyBinary, ODD, diff).unwrap();
    run.checkpoint("empty", FileFormat::Text, Replay::None, "", Vec::new()).unwrap();
    parts(&mut run, &[b"part one,".as_slice(), b"", b"part two \xff"], 100);
    let late =
        NewRecord { created_at: Some(Time(START)), ..Body::Chunk(Channel::Stdout, b"late".to_vec()).into() };
    let before = vec![late];
    run.finish(End::new(Outcome::Failed, ODD).exit_code(-3).after(before)).unwrap();
    run.checkpoint("after_the_end", FileFormat::Json, Replay::None, "after", b"{}".to_vec()).unwrap();
}

/// A checkpoint in parts of the test's own choosing.
fn parts(run: &mut Recorder, parts: &[&[u8]], number: u32) {
    let total_len = parts.iter().map(|p| p.len() as u64).sum();
    for (i, part) in parts.iter().enumerate() {
        let body = Body::Checkpoint(runwal::record::Checkpoint {
            number,
            kind: "test_output".to_owned(),
            format: FileFormat::Text,
            replay: Replay::None,
            summary: "in parts".to_owned(),
            total_len,
            content: part.to_vec(),
        });
        run.append(vec![NewRecord { more: i + 1 < parts.len(), ..body.into() }]).unwrap();
    }
}

/// A journal of several segments with records of all kinds.
fn rich_journal(dir: &Path) {
    let clock = Arc::new(ManualClock::new(Time(START)));
    let (engine, _) = Engine::open_in(world(dir, &clock, 1), options(8 << 10)).unwrap();
    rich_run(&engine, &clock);
    let details = [
        "{}",
        r#" { "checked" : 3 , "ts" : 1 , "detail_ts" : [ 1.0 , { "x" : "\u202e" } ] , "ts" : 2 } "#,
        r#"{"a":1,"\u0061":2,"detail_a":3,"\ud83d\ude00":"\/","":null,"k\u0000\"\\":1e999}"#,
        "{\"\u{200b}\u{7f}\":\"\u{2066}\",\"batch_id\":{},\"error\":[[]],\"detail_detail_error\":0,\"detail_error\":1}",
    ];
    for (n, details) in (0_u64..).zip(details.iter().cycle().take(24)) {
        clock.advance(Duration::from_secs(3_601));
        let created = (n % 5 == 0).then(|| Time(START - n.cast_signed() * 90_000_000_000_000));
        engine.append_tick(tick(n, details), created).unwrap();
    }
    for n in 0..12 {
        let name = format!("r-{n}-{}", "x".repeat(n * 10));
        let request =
            RunRequest { checkpoints: n % 2 == 0, ..RunRequest::new(id("T_2."), id(&name), id("s")) };
        let mut run = Recorder::prepare(&engine, request).unwrap();
        clock.advance(Duration::from_millis(17));
        run.chunk(Channel::Stdout, format!("line {n}\n").repeat(30).as_bytes()).unwrap();
        run.event(Lifecycle::new("step", Level::Info, "Going on.")).unwrap();
        if n % 3 != 0 {
            run.finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
        }
    }
    engine.close().unwrap();
}

#[test]
fn export() {
    let dir = std::env::var("EXPORT").unwrap();
    rich_journal(Path::new(&dir));
    small(&std::path::PathBuf::from(format!("{dir}-other")), 77, 14);
    let diverge = std::path::PathBuf::from(format!("{dir}-a"));
    small(&diverge, 5, 6);
    let b = std::path::PathBuf::from(format!("{dir}-b"));
    assert!(std::process::Command::new("cp").arg("-r").arg(&diverge).arg(&b).status().unwrap().success());
    small(&diverge, 6, 16);
    small(&b, 7, 16);
}
fn small(dir: &Path, seed: u64, n: u64) {
    let clock = Arc::new(ManualClock::new(Time(START)));
    let (engine, _) = Engine::open_in(world(dir, &clock, seed), options(4096)).unwrap();
    for i in 0..n {
        clock.advance(Duration::from_millis(17));
        let mut run =
            Recorder::prepare(&engine, RunRequest::new(id("T"), id(&format!("{seed}-{i}")), id("s")))
                .unwrap();
        run.finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
    }
    engine.close().unwrap();
}
