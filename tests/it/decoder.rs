//! The second decoder, written from FORMAT.md alone, reads the same as the first.

#![expect(clippy::disallowed_methods, reason = "makes and damages journals behind the library's back")]

use runwal::JournalOptions;
use runwal::clock::{ManualClock, SeededEntropy};
use runwal::engine::{Engine, NewRecord, Options, World};
use runwal::format::{self, BatchHeader, Codec, Durability};
use runwal::position::{Position, Time};
use runwal::record::{
    Body, Channel, FileFormat, Id, JsonText, Level, Lifecycle, ParentRun, Replay, RunName, StatePatch,
    Status, Tick,
};
use runwal::run::{End, Outcome, Recorder, RunRequest};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tempfile::TempDir;

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

/// Small segments, so that there are several, and a few batches that are compressed.
fn options(capacity: u64) -> Options {
    let journal = JournalOptions {
        first_capacity: capacity,
        max_capacity: capacity,
        compress_from: 900,
        ..JournalOptions::default()
    };
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
    for n in 0..18 {
        let name = format!("r-{n}-{}", "x".repeat(n % 12 * 10));
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

/// Short runs, so that segments of 4 KiB fill quickly.
fn short_runs(dir: &Path, seed: u64, count: u64) {
    let clock = Arc::new(ManualClock::new(Time(START)));
    let (engine, _) = Engine::open_in(world(dir, &clock, seed), options(4 << 10)).unwrap();
    for n in 0..count {
        clock.advance(Duration::from_millis(17));
        let request = RunRequest::new(id("T"), id(&format!("{seed}-{n}")), id("s"));
        let mut run = Recorder::prepare(&engine, request).unwrap();
        run.finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
    }
    engine.close().unwrap();
}

// --- The two decoders, side by side ---

/// The Python to run; a word instead where there is none.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let asked =
            std::process::Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
        let path = String::from_utf8(asked.ok().filter(|o| o.status.success())?.stdout).ok()?;
        Some(PathBuf::from(path.trim()))
    };
    let found = PYTHON.get_or_init(find).as_deref();
    if found.is_none() {
        println!("skipped: there is no python3");
    }
    found
}

/// The first decoder; one that does not end within 20 s is killed, which shows as no exit code.
fn first(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_runwal"));
    command.arg("--dir").arg(dir).args(arguments).timeout(Duration::from_secs(20)).output().unwrap()
}

/// Where the second decoder lies.
fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decoder/runwal_decode.py")
}

/// Calls the second decoder again and again: starting it and hashing the same bodies is what takes
/// its time. Reads lines of arguments, answers with exit code and lengths, stdout and stderr.
const SERVE: &str = r#"
import functools, io, os, sys, traceback
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import runwal_decode as decoder
digest = functools.lru_cache(maxsize=1000)(decoder.blake3)
decoder.blake3 = lambda data: digest(bytes(data))
requests, answers = sys.stdin, sys.stdout.buffer
for line in requests:
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    try:
        code = decoder.main(line.rstrip("\n").split("\t"))
    except Exception:
        code = 99
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = sys.stdout.buffer.getvalue(), sys.stderr.buffer.getvalue()
    answers.write(b"%d %d %d\n" % (code, len(out), len(err)) + out + err)
    answers.flush()
"#;

/// A second decoder that stays; it ends when this is dropped.
struct Server {
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What a call of the second decoder gave.
struct Answer {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Server {
    fn start() -> Self {
        let mut command = std::process::Command::new(python().unwrap());
        command.args(["-IS", "-c", SERVE]).arg(script()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        Self { asks: child.stdin.unwrap(), answers: BufReader::new(child.stdout.unwrap()) }
    }

    fn call(&mut self, arguments: &[&str]) -> Answer {
        writeln!(self.asks, "{}", arguments.join("\t")).unwrap();
        let mut head = String::new();
        self.answers.read_line(&mut head).unwrap();
        let numbers: Vec<usize> = head.split_whitespace().map(|n| n.parse().unwrap()).collect();
        let (mut stdout, mut stderr) = (vec![0; numbers[1]], vec![0; numbers[2]]);
        self.answers.read_exact(&mut stdout).unwrap();
        self.answers.read_exact(&mut stderr).unwrap();
        let code = i32::try_from(numbers[0]).ok();
        Answer { code, stdout, stderr: String::from_utf8(stderr).unwrap() }
    }
}

thread_local! {
    static SECOND: RefCell<Server> = RefCell::new(Server::start());
}

/// The second decoder.
fn second(dir: &Path, arguments: &[&str]) -> Answer {
    let all = [arguments, &[dir.to_str().unwrap()]].concat();
    let answer = SECOND.with_borrow_mut(|second| second.call(&all));
    assert!(!answer.stderr.contains("Traceback"), "{}: {}", dir.display(), answer.stderr);
    answer
}

/// What the two say differently about a directory; nothing where they agree.
fn differences(dir: &Path, lines: bool) -> Vec<String> {
    let mut found = verify_differences(dir, true);
    if lines {
        found.extend(line_differences(dir));
    }
    found
}

/// Verdict, counts and, if asked for, the list of damage.
fn verify_differences(dir: &Path, places: bool) -> Vec<String> {
    let (one, two) = (first(dir, &["verify", "-o", "json"]), second(dir, &["--verify"]));
    if one.status.code() != two.code {
        let said = String::from_utf8_lossy(&one.stderr).into_owned();
        return vec![format!("exit code {:?}, second {:?}; {said}", one.status.code(), two.code)];
    }
    if two.code == Some(6) {
        return Vec::new();
    }
    let parsed = |stdout: &[u8]| serde_json::from_slice::<serde_json::Value>(stdout).unwrap();
    let (one, two) = (parsed(&one.stdout), parsed(&two.stdout));
    let keys = ["verdict", "records", "batches", "segments", "bytes", "durable"];
    let differing = keys.iter().filter(|key| one[**key].is_null() || one[**key] != two[**key]);
    let mut found: Vec<String> =
        differing.map(|key| format!("{key} {}, second {}", one[*key], two[*key])).collect();
    if places && damage(&one) != damage(&two) {
        found.push(format!("damage {}, second {}", one["damage"], two["damage"]));
    }
    found
}

/// The places of the damage: segment, offset, from, to, accepted. FORMAT.md names no order.
fn damage(report: &serde_json::Value) -> Vec<[String; 5]> {
    let place =
        |d: &serde_json::Value| ["segment", "offset", "from", "to", "accepted"].map(|key| d[key].to_string());
    let mut places: Vec<_> = report["damage"].as_array().unwrap().iter().map(place).collect();
    places.sort();
    places.dedup();
    places
}

/// The records, byte for byte; the first line that differs.
fn line_differences(dir: &Path) -> Option<String> {
    let one = first(dir, &["log", "-o", "json"]).stdout;
    let two = second(dir, &[]).stdout;
    let one: Vec<Vec<u8>> = one.split(|b| *b == b'\n').map(without_cursor).collect();
    let two: Vec<&[u8]> = two.split(|b| *b == b'\n').collect();
    let at =
        (0..one.len().max(two.len())).find(|i| one.get(*i).map(Vec::as_slice) != two.get(*i).copied())?;
    let shown = |line: Option<&[u8]>| {
        line.map_or("none".into(), |l| String::from_utf8_lossy(&l[..l.len().min(300)]).into_owned())
    };
    let (left, right) = (shown(one.get(at).map(Vec::as_slice)), shown(two.get(at).copied()));
    Some(format!(
        "{} and {} lines; line {}:\n    {left}\n    second:\n    {right}",
        one.len(),
        two.len(),
        at + 1
    ))
}

/// A line of `runwal log -o json` as the second decoder prints it.
fn without_cursor(line: &[u8]) -> Vec<u8> {
    let key = b",\"cursor\":\"";
    match line.windows(key.len()).rposition(|w| w == key) {
        Some(at) => [&line[..at], b"}"].concat(),
        None => line.to_vec(),
    }
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// All files under some folders of a directory.
fn files(dir: &Path) -> Files {
    fn collect(root: &Path, dir: &Path, found: &mut Files) {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(root, &path, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    let mut found = Files::new();
    ["runs", "timed-jobs"].iter().for_each(|part| collect(dir, &dir.join(part), &mut found));
    found
}

/// The projected files of `dir` against those that the second decoder makes from its journal.
fn assert_same_files(dir: &Path) {
    assert_same_files_of(dir, "");
}

/// The same of one folder.
fn assert_same_files_of(dir: &Path, folder: &str) {
    let out = tempfile::tempdir().unwrap();
    second(dir, &["--files", out.path().to_str().unwrap()]);
    let [one, two] = [dir, out.path()].map(|dir| {
        let mut found = files(dir);
        found.retain(|path, _| path.starts_with(folder));
        found
    });
    let only = |a: &Files, b: &Files| a.keys().filter(|k| !b.contains_key(*k)).cloned().collect::<Vec<_>>();
    assert_eq!((only(&one, &two), only(&two, &one)), (Vec::new(), Vec::new()), "only in one of them");
    for (path, bytes) in &one {
        let shown = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        assert!(*bytes == two[path], "{}:\n{}\nsecond:\n{}", path.display(), shown(bytes), shown(&two[path]));
    }
}

// --- Journals to damage ---

/// A copy of a journal, whose mark counts (as if the damage came to the original) or does not.
struct Scratch(TempDir);

impl Scratch {
    fn new(from: &Path, own: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("journal")).unwrap();
        for entry in std::fs::read_dir(from.join("journal")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), dir.path().join("journal").join(entry.file_name())).unwrap();
            }
        }
        let scratch = Self(dir);
        if own {
            scratch.adopt_mark();
        }
        scratch
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.dir().join(format!("journal/{number:010}.seg"))
    }

    /// The newest segment.
    fn last(&self) -> PathBuf {
        self.segment(self.segments().into_iter().max().unwrap())
    }

    fn mark(&self) -> PathBuf {
        self.dir().join("journal/mark")
    }

    /// Writes the inode of the copied mark into it.
    fn adopt_mark(&self) {
        let inode = std::fs::metadata(self.mark()).unwrap().ino();
        edit(&self.mark(), |mark| {
            for at in [0, 512] {
                if mark[at..at + 4] == *b"RWM1" {
                    mark[at + 48..at + 56].copy_from_slice(&inode.to_le_bytes());
                    let sum = crc32fast::hash(&mark[at..at + 128]);
                    mark[at + 128..at + 132].copy_from_slice(&sum.to_le_bytes());
                }
            }
        });
    }

    fn segments(&self) -> Vec<u64> {
        (1..100).filter(|n| self.segment(*n).is_file()).collect()
    }
}

/// Changes a file in place: its inode stays.
fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Where the batches of a segment stand; its end as the last.
fn batches(segment: &[u8]) -> Vec<usize> {
    let mut found = vec![1024];
    while let Some(&at) = found.last()
        && segment.get(at..at + 4) == Some(b"RWB1")
    {
        let len = u32::from_le_bytes(segment[at + 8..at + 12].try_into().unwrap());
        found.push(at + 116 + usize::try_from(len).unwrap());
    }
    found
}

/// The rich journal, made once.
fn rich() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        rich_journal(dir.path());
        dir
    });
    made.path()
}

/// Damages copies of the rich journal, in place and not, and compares.
fn compare_damaged(cases: Vec<(String, Box<dyn Fn(&Scratch) + '_>)>) {
    let mut failed = Vec::new();
    for (name, damage) in &cases {
        for own in [true, false] {
            let scratch = Scratch::new(rich(), own);
            damage(&scratch);
            let found = differences(scratch.dir(), true);
            if !found.is_empty() {
                failed.push(format!(
                    "{name}, {}: {}",
                    if own { "in place" } else { "a copy" },
                    found.join("\n    ")
                ));
            }
        }
    }
    assert!(failed.is_empty(), "{} of {} differ:\n{}", failed.len(), 2 * cases.len(), failed.join("\n"));
}

fn case<'a>(name: impl Into<String>, damage: impl Fn(&Scratch) + 'a) -> (String, Box<dyn Fn(&Scratch) + 'a>) {
    (name.into(), Box::new(damage))
}

// --- Whole journals ---

#[test]
fn both_decoders_read_a_rich_journal_alike() {
    let Some(_) = python() else { return };
    for own in [true, false] {
        let scratch = Scratch::new(rich(), own);
        assert!(scratch.segments().len() >= 5, "several segments");
        assert_eq!(differences(scratch.dir(), true), Vec::<String>::new());
        assert!(first(scratch.dir(), &["rebuild"]).status.success());
        assert!(files(scratch.dir()).len() > 50);
        assert_same_files(scratch.dir());
    }
}

/// What the engine brought to the disk while it ran, before anybody rebuilt it: the runs. It leaves the
/// files of the timed jobs to `rebuild`.
#[test]
fn what_was_published_is_what_the_journal_says() {
    let Some(_) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    rich_journal(dir.path());
    assert_same_files_of(dir.path(), "runs");
}

#[test]
fn both_decoders_read_what_the_tool_recorded_alike() {
    let Some(_) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let script =
        "printf 'a\\377\\n'; printf '\\342\\202' >&2; printf '\\254x' >&2; head -c 300000 /dev/zero; exit 3";
    let odd = std::ffi::OsStr::from_bytes(b"\xff\x1b \xe2\x82\xac");
    for arguments in
        [vec!["sh".as_ref(), "-c".as_ref(), script.as_ref(), odd], vec!["true".as_ref()], vec![odd]]
    {
        let mut command = assert_cmd::Command::cargo_bin("runwal").unwrap();
        command.arg("run").arg("--dir").arg(dir.path()).args([
            "--label",
            "a=b\u{202e}",
            "--record-env",
            "ODD",
        ]);
        command.env("ODD", odd).arg("--").args(arguments).timeout(Duration::from_secs(20)).output().unwrap();
    }
    assert_eq!(differences(dir.path(), true), Vec::<String>::new());
    assert_same_files(dir.path());
}

#[test]
fn both_decoders_read_what_a_killed_recorder_left_alike() {
    let Some(_) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let script = "echo before; sleep 0.3; kill -9 $PPID; echo after";
    first(dir.path(), &["run", "--", "sh", "-c", script]);
    assert_eq!(differences(dir.path(), true), Vec::<String>::new());
    assert!(first(dir.path(), &["recover"]).status.success());
    assert_eq!(differences(dir.path(), true), Vec::<String>::new());
    assert_same_files(dir.path());
}

/// As it is called by hand.
#[test]
fn the_second_decoder_is_a_tool() {
    let Some(python) = python() else { return };
    let scratch = Scratch::new(rich(), true);
    let call = |arguments: &[&str]| {
        std::process::Command::new(python).arg(script()).args(arguments).output().unwrap()
    };
    let dir = scratch.dir().to_str().unwrap();
    let clean = call(&[dir]);
    assert_eq!((clean.status.code(), clean.stderr.len()), (Some(0), 0));
    assert_eq!(clean.stdout, second(scratch.dir(), &[]).stdout);
    edit(&scratch.segment(3), |bytes| bytes[2000] ^= 1);
    let corrupt = call(&["--verify", dir]);
    assert_eq!(corrupt.status.code(), Some(3));
    assert_eq!(String::from_utf8(corrupt.stderr).unwrap().lines().count(), 1);
    assert_eq!(call(&[]).status.code(), Some(2));
    assert_eq!(call(&["/nowhere"]).status.code(), Some(1));
}

// --- Torn, flipped, cut ---

#[test]
fn both_decoders_judge_torn_ends_alike() {
    let Some(_) = python() else { return };
    let newest = |s: &Scratch| s.segment(*s.segments().last().unwrap());
    let cut = |s: &Scratch, back: usize, more: i64| {
        edit(&newest(s), |bytes| {
            let all = batches(bytes);
            bytes
                .truncate(usize::try_from(i64::try_from(all[all.len() - 1 - back]).unwrap() + more).unwrap());
        });
    };
    let mut cases = vec![
        case("whole", |_| ()),
        case("garbage", |s| edit(&newest(s), |b| b.extend(b"garbage"))),
        case("half a batch behind", |s| edit(&newest(s), |b| b.extend_from_within(1024..1200))),
        case("a batch of another place behind", |s| {
            edit(&newest(s), |b| b.extend_from_within(1024..batches(b)[1]));
        }),
        case("zeros", |s| edit(&newest(s), |b| b.extend([0; 5000]))),
        case("zeros, garbage", |s| edit(&newest(s), |b| b.extend([[0; 5000].as_slice(), b"x"].concat()))),
        case("garbage behind a sealed one", |s| edit(&s.segment(3), |b| b.extend(b"garbage"))),
        case("no mark", |s| std::fs::remove_file(s.mark()).unwrap()),
        case("an empty mark", |s| edit(&s.mark(), Vec::clear)),
        case("somebody died writing", |s| {
            edit(&s.mark(), |b| b[1024..1032].copy_from_slice(b"RWZ1\x01\0\0\0"))
        }),
    ];
    for back in 1..4 {
        for more in [0, 1, 50, 116, 130] {
            cases.push(case(format!("cut {more} bytes into the batch {back} before the end"), move |s| {
                cut(s, back, more)
            }));
        }
    }
    compare_damaged(cases);
}

/// Places spread over a length: not all at the same distance, always the same.
fn places(len: usize, count: usize) -> impl Iterator<Item = (usize, u8)> {
    (0..count).map(move |i| {
        let jitter = i.wrapping_mul(2_654_435_761) >> 7;
        ((i * len / count + jitter % (len / count).max(1)).min(len - 1), 1 << (jitter % 8))
    })
}

/// Flips bits of one file one after the other and compares.
fn flip_differences(scratch: &Scratch, path: &Path, count: usize) -> Vec<String> {
    let len = usize::try_from(std::fs::metadata(path).unwrap().len()).unwrap();
    let mut failed = Vec::new();
    for (i, (at, bit)) in places(len, count).enumerate() {
        edit(path, |bytes| bytes[at] ^= bit);
        let found = differences(scratch.dir(), i % 4 == 0);
        if !found.is_empty() {
            failed.push(format!("{} at {at}, bit {bit}: {}", path.display(), found.join("\n    ")));
        }
        edit(path, |bytes| bytes[at] ^= bit);
    }
    failed
}

#[test]
fn both_decoders_judge_flipped_bits_alike() {
    let Some(_) = python() else { return };
    let failed = std::thread::scope(|scope| {
        let workers: Vec<_> = [(true, 20), (false, 8)]
            .map(|(own, count)| {
                scope.spawn(move || {
                    let scratch = Scratch::new(rich(), own);
                    let flipped = |n: u64| flip_differences(&scratch, &scratch.segment(n), count);
                    scratch.segments().into_iter().flat_map(flipped).collect::<Vec<_>>()
                })
            })
            .into_iter()
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn both_decoders_judge_flipped_bits_of_headers_and_mark_alike() {
    let Some(_) = python() else { return };
    let scratch = Scratch::new(rich(), true);
    let mut cases: Vec<(PathBuf, usize)> = Vec::new();
    for at in [
        0, 5, 9, 20, 50, 60, 75, 85, 100, 120, 130, 515, 530, 560, 580, 600, 640, 1024, 1040, 1060, 2000,
        4095,
    ] {
        cases.push((scratch.mark(), at));
    }
    for number in [1, 4, 6] {
        let header = [0, 8, 10, 33, 50, 66, 80, 300, 508, 512, 520, 700, 1020];
        let batch = [0, 4, 6, 9, 13, 17, 22, 26, 34, 42, 50, 90, 113, 116, 117].map(|at| 1024 + at);
        cases.extend(header.into_iter().chain(batch).map(|at| (scratch.segment(number), at)));
    }
    let mut failed = Vec::new();
    for (path, at) in cases {
        edit(&path, |bytes| bytes[at] ^= 4);
        let found = differences(scratch.dir(), false);
        if !found.is_empty() {
            failed.push(format!("{} at {at}: {}", path.display(), found.join("\n    ")));
        }
        edit(&path, |bytes| bytes[at] ^= 4);
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn both_decoders_judge_cut_files_alike() {
    let Some(_) = python() else { return };
    let mut cases = Vec::new();
    for number in [1, 3, 5, 6] {
        for len in [0, 100, 512, 1000, 1024, 1030, 1200, 4000, 7000, 7900] {
            cases.push(case(format!("segment {number} cut to {len}"), move |s: &Scratch| {
                edit(&s.segment(number), |bytes| bytes.truncate(len));
            }));
        }
    }
    for (number, from, len) in
        [(2, 1024, 10), (2, 2000, 3000), (4, 1500, 9000), (6, 1024, 500), (6, 3000, 64), (6, 7000, 5000)]
    {
        cases.push(case(format!("segment {number} from {from}, {len} zeros"), move |s: &Scratch| {
            edit(&s.segment(number), |bytes| {
                let end = bytes.len().min(from + len);
                bytes[from..end].fill(0);
            });
        }));
    }
    compare_damaged(cases);
}

// --- Segments that are gone or others ---

#[test]
fn both_decoders_judge_missing_and_strange_segments_alike() {
    let Some(_) = python() else { return };
    let other = tempfile::tempdir().unwrap();
    short_runs(other.path(), 77, 14);
    let other = Scratch::new(other.path(), false);
    let remove = |s: &Scratch, n| std::fs::remove_file(s.segment(n)).unwrap();
    let copy = |s: &Scratch, from: u64, to: u64| drop(std::fs::copy(s.segment(from), s.segment(to)).unwrap());
    let foreign = |s: &Scratch, n| drop(std::fs::copy(other.segment(n), s.segment(n)).unwrap());
    let mut cases = Vec::new();
    for n in [1, 2, 3, 5, 6] {
        cases.push(case(format!("segment {n} missing"), move |s: &Scratch| remove(s, n)));
        cases.push(case(format!("segment {n} of another journal"), move |s: &Scratch| foreign(s, n)));
    }
    for (a, b) in [(1, 2), (2, 5), (5, 6), (1, 6)] {
        cases.push(case(format!("{a} and {b} swapped"), move |s: &Scratch| {
            let (one, two) = (std::fs::read(s.segment(a)).unwrap(), std::fs::read(s.segment(b)).unwrap());
            std::fs::write(s.segment(a), two).unwrap();
            std::fs::write(s.segment(b), one).unwrap();
        }));
    }
    for (from, to) in [(2, 3), (3, 2), (5, 6), (6, 7), (1, 7), (6, 9), (6, 1)] {
        cases.push(case(format!("{from} again as {to}"), move |s: &Scratch| copy(s, from, to)));
    }
    for n in [1, 3, 6] {
        cases.push(case(format!("{n} is a link"), move |s: &Scratch| {
            std::fs::rename(s.segment(n), s.dir().join("journal/else")).unwrap();
            std::os::unix::fs::symlink("else", s.segment(n)).unwrap();
        }));
        cases.push(case(format!("{n} is a directory"), move |s: &Scratch| {
            remove(s, n);
            std::fs::create_dir(s.segment(n)).unwrap();
        }));
    }
    cases.push(case("other files", |s| {
        for name in ["1.seg", "00000000002.seg", "0000000000.seg", "0000000001.SEG", "tmp-1", "spare-1", "x"]
        {
            std::fs::copy(s.segment(1), s.dir().join("journal").join(name)).unwrap();
        }
    }));
    compare_damaged(cases);
}

/// What one damage leaves open another one may ask for.
#[test]
fn both_decoders_judge_several_damages_alike() {
    let Some(_) = python() else { return };
    let other = tempfile::tempdir().unwrap();
    short_runs(other.path(), 77, 14);
    let other = Scratch::new(other.path(), false);
    let remove = |s: &Scratch, n| std::fs::remove_file(s.segment(n)).unwrap();
    let foreign = |s: &Scratch, n| drop(std::fs::copy(other.segment(n), s.segment(n)).unwrap());
    let spoil = |s: &Scratch, n, at: usize| edit(&s.segment(n), |bytes| bytes[at] ^= 1);
    let lengthen = |s: &Scratch, n| edit(&s.segment(n), |bytes| bytes.resize(bytes.len() + 3_000, 0));
    let give_up =
        |s: &Scratch, n| rewrite_header(&s.segment(n), 144, &[1, 1 << 20].map(u64::to_le_bytes).concat());
    compare_damaged(vec![
        case("zeros at the end, and the next one missing", |s| {
            let ends = end_before(s, 3);
            edit(&s.segment(2), |bytes| bytes.truncate(ends));
            lengthen(s, 2);
            remove(s, 3);
        }),
        case("a damaged copy of a foreign header", |s| {
            foreign(s, 3);
            spoil(s, 3, 60);
        }),
        case("the newest one foreign, and one before it missing", |s| {
            foreign(s, 6);
            remove(s, 4);
        }),
        case("a copy of the header that cannot be, beside a right one", |s| {
            rewrite_header(&s.segment(2), 40, &u64::MAX.to_le_bytes());
            edit(&s.segment(2), |bytes| bytes.copy_within(512..1024, 0));
            let whole = std::fs::read(rich().join("journal/0000000002.seg")).unwrap();
            edit(&s.segment(2), |bytes| bytes[..512].copy_from_slice(&whole[..512]));
        }),
        case("given up behind a missing one", |s| {
            spoil(s, 3, 1100);
            remove(s, 4);
            give_up(s, 5);
        }),
        case("the first one begins far away", |s| {
            rewrite_header(&s.segment(1), 64, &9_999_u64.to_le_bytes())
        }),
        case("a mark that is a folder", |s| {
            std::fs::remove_file(s.mark()).unwrap();
            std::fs::create_dir(s.mark()).unwrap();
        }),
    ]);
}

/// Where the header of a segment says that the one before it ends.
fn end_before(scratch: &Scratch, number: u64) -> usize {
    let header = std::fs::read(scratch.segment(number)).unwrap();
    usize::try_from(u64::from_le_bytes(header[72..80].try_into().unwrap())).unwrap()
}

#[test]
fn both_decoders_tell_a_diverged_copy() {
    let Some(_) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    short_runs(dir.path(), 5, 6);
    let fork = Scratch::new(dir.path(), false);
    short_runs(dir.path(), 6, 8);
    short_runs(fork.dir(), 7, 8);
    let differs = |n: &u64| {
        std::fs::read(fork.segment(*n)).unwrap()
            != std::fs::read(Scratch::new(dir.path(), true).segment(*n)).unwrap()
    };
    let numbers = fork.segments();
    let begin = *numbers.iter().find(|n| differs(n)).unwrap();
    for n in [begin, begin + 1, begin + 3] {
        for own in [true, false] {
            let scratch = Scratch::new(dir.path(), own);
            std::fs::copy(fork.segment(n), scratch.segment(n)).unwrap();
            assert_eq!(
                differences(scratch.dir(), true),
                Vec::<String>::new(),
                "segment {n} of {begin} and up, {own}"
            );
        }
    }
}

#[test]
fn both_decoders_read_what_recovery_made_alike() {
    let Some(_) = python() else { return };
    let mut failed = Vec::new();
    let damages: [(&str, &dyn Fn(&mut Vec<u8>)); 5] = [
        ("garbage", &|b| b.extend(b"garbage")),
        ("a cut batch", &|b| b.truncate(batches(b)[batches(b).len() - 2] + 130)),
        ("a broken body", &|b| {
            let at = batches(b)[4] + 130;
            b[at] ^= 1;
        }),
        ("a broken header", &|b| {
            let at = batches(b)[4] + 13;
            b[at] ^= 1;
        }),
        ("no batch", &|b| b.truncate(1024)),
    ];
    for (name, damage) in damages {
        for own in [true, false] {
            let scratch = Scratch::new(rich(), own);
            edit(&scratch.last(), damage);
            first(scratch.dir(), &["recover", "--accept-damage"]);
            let accepted = differences(scratch.dir(), true);
            first(scratch.dir(), &["run", "--", "true"]);
            failed.extend(
                accepted
                    .into_iter()
                    .chain(differences(scratch.dir(), true))
                    .map(|d| format!("{name}, {own}: {d}")),
            );
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

// --- Journals whose checksums are right ---

/// Puts a segment header's checksums right.
fn seal_header(bytes: &mut [u8]) {
    for at in [0, 512] {
        let sum = crc32fast::hash(&bytes[at..at + 508]);
        bytes[at + 508..at + 512].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Changes the header in both copies.
fn rewrite_header(path: &Path, at: usize, field: &[u8]) {
    edit(path, |bytes| {
        for copy in [0, 512] {
            bytes[copy + at..copy + at + field.len()].copy_from_slice(field);
        }
        seal_header(bytes);
    });
}

/// What is put right behind a change.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Right {
    Sums,
    Digest,
    Chain,
}

/// Changes batch `index`, puts its checksums right, and more if asked for: with `Chain`, of all behind it.
fn rewrite_batch(path: &Path, index: usize, right: Right, change: impl Fn(&mut [u8])) {
    edit(path, |bytes| {
        let all = batches(bytes);
        let start = all[index];
        let chain_at = if index == 0 { 88 } else { all[index - 1] + 80 };
        let mut chain: [u8; 32] = bytes[chain_at..chain_at + 32].try_into().unwrap();
        change(&mut bytes[start..all[index + 1]]);
        let end = if right == Right::Chain { all.len() - 1 } else { index + 1 };
        for window in all[index..=end].windows(2) {
            chain = seal_batch(bytes, window[0], window[1], right, &chain);
        }
    });
}

/// The body of a batch.
fn decoded(batch: &[u8]) -> Vec<u8> {
    let mut buffer = Vec::new();
    // Only what says how it is stored counts here.
    let header = BatchHeader {
        codec: if batch[4] == 1 { Codec::Lz4 } else { Codec::None },
        durability: Durability::Durable,
        body_len: u32::try_from(batch.len() - 116).unwrap(),
        decoded_len: u32::from_le_bytes(batch[12..16].try_into().unwrap()),
        count: 1,
        body_crc: 0,
        first_position: Position(1),
        time: Time(0),
        durable_upto: Position::ZERO,
        body_digest: [0; 32],
        chain: [0; 32],
    };
    format::decode_body(&header, &batch[116..], &mut buffer).to_vec()
}

/// Puts a batch's sums right; gives the chain hash after it.
fn seal_batch(bytes: &mut [u8], at: usize, end: usize, right: Right, chain: &[u8]) -> [u8; 32] {
    let sum = crc32fast::hash(&bytes[at + 116..end]);
    bytes[at + 20..at + 24].copy_from_slice(&sum.to_le_bytes());
    if right >= Right::Digest {
        let digest = blake3::hash(&decoded(&bytes[at..end]));
        bytes[at + 48..at + 80].copy_from_slice(digest.as_bytes());
    }
    if right == Right::Chain {
        let linked = [
            chain,
            &bytes[at + 24..at + 32],
            &bytes[at + 16..at + 20],
            &bytes[at + 32..at + 40],
            &bytes[at + 48..at + 80],
        ];
        let chain = blake3::hash(&linked.concat());
        bytes[at + 80..at + 112].copy_from_slice(chain.as_bytes());
    }
    let place = u64::try_from(at).unwrap().to_le_bytes();
    let sum = crc32fast::hash(&[&bytes[16..40], &bytes[48..56], &place, &bytes[at..at + 112]].concat());
    bytes[at + 112..at + 116].copy_from_slice(&sum.to_le_bytes());
    bytes[at + 80..at + 112].try_into().unwrap()
}

/// The last byte of a batch is one of the last record's payload.
fn change_last(batch: &mut [u8]) {
    let last = batch.len() - 1;
    batch[last] ^= 1;
}

#[test]
fn both_decoders_tell_a_body_or_chain_that_was_changed() {
    let Some(_) = python() else { return };
    for own in [true, false] {
        for number in [2, 5, 6] {
            for (right, index) in [(Right::Sums, 0), (Right::Sums, 3), (Right::Sums, 5)] {
                let scratch = Scratch::new(rich(), own);
                rewrite_batch(&scratch.segment(number), index, right, change_last);
                assert_eq!(
                    verify_differences(scratch.dir(), true),
                    Vec::<String>::new(),
                    "body {index} of {number}, {own}"
                );
                assert_eq!(first(scratch.dir(), &["verify"]).status.code(), Some(3));
            }
            for at in [80, 32] {
                let scratch = Scratch::new(rich(), own);
                rewrite_batch(&scratch.segment(number), 3, Right::Sums, |batch| batch[at] ^= 1);
                assert_eq!(
                    differences(scratch.dir(), true),
                    Vec::<String>::new(),
                    "byte {at} of a header in {number}, {own}"
                );
            }
        }
    }
}

/// Whoever also has the checksum of the record right, or a record without one, is told by the digest alone.
#[test]
fn a_changed_record_without_a_checksum_of_its_own_is_told() {
    let Some(_) = python() else { return };
    let event = Hand::new(2, lifecycle("step", 1, "m", "{}"));
    let dir = hand_made(&[vec![opening().bytes()], vec![event.bytes()]]);
    let segment = dir.path().join("journal/0000000001.seg");
    rewrite_batch(&segment, 1, Right::Sums, |batch| {
        let text = batch.len() - 11;
        assert_eq!(batch[text], b'm');
        batch[text] = b'n';
    });
    assert_eq!(verify_differences(dir.path(), true), Vec::<String>::new());
    assert_eq!(first(dir.path(), &["verify"]).status.code(), Some(3));
}

/// FORMAT.md, "From segment to segment": "Its first chain hash is the last one of N".
#[test]
fn both_decoders_tell_a_sealed_segment_that_was_written_anew() {
    let Some(_) = python() else { return };
    let newest = *Scratch::new(rich(), true).segments().last().unwrap();
    // Of the newest one, only the mark knows.
    for number in [1, 2, 5, newest] {
        let scratch = Scratch::new(rich(), true);
        rewrite_batch(&scratch.segment(number), 3, Right::Chain, |batch| batch[32] ^= 1);
        assert_eq!(verify_differences(scratch.dir(), false), Vec::<String>::new(), "segment {number}");
        assert_eq!(first(scratch.dir(), &["verify"]).status.code(), Some(3));
    }
}

/// Right checksums around what are no records are not what a crash leaves: opening refuses, and giving
/// up is a way on.
#[test]
fn a_last_batch_that_is_no_records_is_told_and_can_be_given_up() {
    for own in [true, false] {
        let scratch = Scratch::new(rich(), own);
        let newest = *scratch.segments().last().unwrap();
        let index = batches(&std::fs::read(scratch.segment(newest)).unwrap()).len() - 2;
        // The first record's length.
        rewrite_batch(&scratch.segment(newest), index, Right::Chain, |batch| batch[116] ^= 1);
        let verified = first(scratch.dir(), &["verify"]);
        assert_eq!(verified.status.code(), Some(3), "{own}: {}", String::from_utf8_lossy(&verified.stderr));
        let refused = first(scratch.dir(), &["recover"]);
        assert_eq!(refused.status.code(), Some(3), "{own}: {}", String::from_utf8_lossy(&refused.stderr));
        let accepted = first(scratch.dir(), &["recover", "--accept-damage"]);
        assert_eq!(accepted.status.code(), Some(0), "{own}: {accepted:?}");
        let run = first(scratch.dir(), &["run", "--", "true"]);
        assert_eq!(run.status.code(), Some(0), "{own}: {run:?}");
    }
}

/// What was given up stays given up, also where something whole stands behind it.
#[test]
fn a_batch_in_the_middle_that_is_no_records_stays_given_up() {
    let Some(_) = python() else { return };
    let scratch = Scratch::new(rich(), true);
    let newest = *scratch.segments().last().unwrap();
    let index = batches(&std::fs::read(scratch.segment(newest)).unwrap()).len() - 3;
    rewrite_batch(&scratch.segment(newest), index, Right::Chain, |batch| batch[116] ^= 1);
    let status = |args: &[&str]| first(scratch.dir(), args).status.code();
    assert_eq!(status(&["recover"]), Some(3));
    assert_eq!(status(&["recover", "--accept-damage"]), Some(0));
    assert_eq!(verify_differences(scratch.dir(), true), Vec::<String>::new());
    assert_eq!((status(&["verify"]), status(&["log"])), (Some(0), Some(0)));
}

/// A right checksum with a wrong chain is not what a crash leaves, also where nothing says that the
/// batch was durable.
#[test]
fn both_decoders_tell_a_last_batch_whose_chain_was_changed() {
    let Some(_) = python() else { return };
    for own in [true, false] {
        for body_too in [true, false] {
            let scratch = Scratch::new(rich(), own);
            let path = scratch.segment(*scratch.segments().last().unwrap());
            let boundaries = batches(&std::fs::read(&path).unwrap());
            rewrite_batch(&path, boundaries.len() - 2, Right::Sums, |batch| batch[80] ^= 1);
            if body_too {
                edit(&path, |bytes| bytes[boundaries[boundaries.len() - 1] - 1] ^= 1);
            }
            let found = verify_differences(scratch.dir(), true);
            assert_eq!(found, Vec::<String>::new(), "{own}, {body_too}");
            let verified = first(scratch.dir(), &["verify", "-o", "json"]);
            assert!(String::from_utf8_lossy(&verified.stdout).contains("\"tampered\""), "{verified:?}");
            assert_eq!(first(scratch.dir(), &["recover"]).status.code(), Some(3), "{own}, {body_too}");
            let accepted = first(scratch.dir(), &["recover", "--accept-damage"]);
            assert_eq!(accepted.status.code(), Some(0), "{own}, {body_too}: {accepted:?}");
            assert_eq!(first(scratch.dir(), &["run", "--", "true"]).status.code(), Some(0));
        }
    }
}

/// The journal of a directory is the one its mark names, wherever a segment of it is there, however
/// many of another there are.
#[test]
fn both_decoders_agree_whose_directory_it_is() {
    let Some(_) = python() else { return };
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    short_runs(one.path(), 8, 6);
    short_runs(other.path(), 9, 12);
    for kept in [0, 1, 2] {
        for mark in [true, false] {
            let scratch = Scratch::new(one.path(), false);
            let foreign = Scratch::new(other.path(), false);
            for number in foreign.segments() {
                if number > kept {
                    std::fs::copy(foreign.segment(number), scratch.segment(number)).unwrap();
                }
            }
            if !mark {
                std::fs::remove_file(scratch.dir().join("journal/mark")).unwrap();
            }
            assert_eq!(differences(scratch.dir(), true), Vec::<String>::new(), "{kept} kept, mark {mark}");
        }
    }
}

/// Each byte of a compressed body is another one, with right checksums: some are no body any more, some are
/// that of other records, and with a right digest those are as good as any.
#[test]
fn both_decoders_unpack_alike() {
    let Some(_) = python() else { return };
    let (mut packed, mut verdicts) = (0, BTreeSet::new());
    for number in 1.. {
        let Ok(bytes) = std::fs::read(Scratch::new(rich(), true).segment(number)) else { break };
        let all = batches(&bytes);
        let found = all.windows(2).position(|batch| bytes[batch[0] + 4] == 1);
        let Some(index) = found else { continue };
        packed += 1;
        for at in (116..all[index + 1] - all[index]).step_by(11) {
            for (right, change) in [(Right::Sums, 1), (Right::Chain, 1), (Right::Chain, 0xf0)] {
                let scratch = Scratch::new(rich(), true);
                rewrite_batch(&scratch.segment(number), index, right, |batch| batch[at] ^= change);
                let what = format!("segment {number}, byte {at} of batch {index}, {right:?}, {change}");
                assert_eq!(verify_differences(scratch.dir(), true), Vec::<String>::new(), "{what}");
                verdicts.insert(first(scratch.dir(), &["verify"]).status.code());
            }
        }
    }
    assert!(packed > 0 && verdicts.len() > 1, "{packed} {verdicts:?}");
}

#[test]
fn both_decoders_refuse_what_is_unsupported() {
    let Some(_) = python() else { return };
    for number in [1, 3, 6] {
        for (at, value) in [(8, 2), (10, 1), (11, 128)] {
            let scratch = Scratch::new(rich(), true);
            rewrite_header(&scratch.segment(number), at, &[value]);
            assert_eq!(verify_differences(scratch.dir(), true), Vec::<String>::new());
            assert_eq!(first(scratch.dir(), &["verify"]).status.code(), Some(6));
        }
        for (at, value) in [(4, 2), (4, 255), (5, 2), (7, 1)] {
            let scratch = Scratch::new(rich(), true);
            rewrite_batch(&scratch.segment(number), 4, Right::Sums, |batch| batch[at] = value);
            assert_eq!(verify_differences(scratch.dir(), true), Vec::<String>::new());
            assert_eq!(first(scratch.dir(), &["verify"]).status.code(), Some(6));
            // Also where damage stands before it.
            let before = batches(&std::fs::read(scratch.segment(number)).unwrap())[3];
            edit(&scratch.segment(number), |bytes| bytes[before + 8] ^= 1);
            assert_eq!(verify_differences(scratch.dir(), true), Vec::<String>::new());
            assert_eq!(first(scratch.dir(), &["verify"]).status.code(), Some(6));
        }
    }
}

/// Headers whose checksum is right and whose words are not.
#[test]
fn both_decoders_judge_lying_headers_alike() {
    let Some(_) = python() else { return };
    let mut failed = Vec::new();
    let fields: &[(&str, usize, u64)] = &[
        ("number", 32, 9),
        ("epoch", 40, 99),
        ("salt", 48, 1),
        ("predecessor's salt", 56, 5),
        ("no first position", 64, 0),
        ("predecessor's end far away", 72, 1 << 63),
        ("no footer", 80, 0),
        ("footer of another length", 80, 77),
        ("footer too long", 80, 1 << 62),
        ("capacity over the limit", 128, 65 << 20),
        ("capacity of nothing", 128, 0),
        ("made in another time", 136, 1 << 63),
        ("given up from", 144, 7),
        ("given up to", 152, 7),
    ];
    for number in [1, 3, 6] {
        for (name, at, value) in fields {
            let scratch = Scratch::new(rich(), true);
            rewrite_header(&scratch.segment(number), *at, &value.to_le_bytes());
            let found = differences(scratch.dir(), true);
            failed.extend(found.into_iter().map(|d| format!("{name} of {number}: {d}")));
        }
    }
    let scratch = Scratch::new(rich(), true);
    rewrite_header(&scratch.last(), 120, &1_000_000_u64.to_le_bytes());
    failed.extend(differences(scratch.dir(), true).into_iter().map(|d| format!("born up to: {d}")));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// What `verify` does not count, `log` does not print: digest or a record's checksum are wrong.
#[test]
fn both_decoders_print_only_what_is_valid() {
    let Some(_) = python() else { return };
    for right in [Right::Sums, Right::Chain] {
        let scratch = Scratch::new(rich(), true);
        rewrite_batch(&scratch.last(), 3, right, change_last);
        assert_eq!(line_differences(scratch.dir()), None);
        assert_eq!(verify_differences(scratch.dir(), true), Vec::<String>::new());
    }
}

/// Segments that are missing one after the other are one damage; a name makes nobody count to it.
#[test]
fn both_decoders_tell_a_gap_once() {
    let Some(_) = python() else { return };
    let scratch = Scratch::new(rich(), true);
    std::fs::remove_file(scratch.segment(3)).unwrap();
    std::fs::remove_file(scratch.segment(4)).unwrap();
    let near = differences(scratch.dir(), true);
    let scratch = Scratch::new(rich(), false);
    let far = 40_000_000_000_u64;
    std::fs::rename(scratch.last(), scratch.segment(far)).unwrap();
    rewrite_header(&scratch.segment(far), 32, &far.to_le_bytes());
    edit(&scratch.segment(far), |bytes| bytes.truncate(1024));
    let far = differences(scratch.dir(), true);
    assert_eq!(near.into_iter().chain(far).collect::<Vec<_>>(), Vec::<String>::new());
}

// --- Records made by hand ---

/// A record of the stream that position 1 opened, as the format has it.
#[derive(Clone)]
struct Hand {
    kind: u8,
    version: u8,
    flags: u8,
    stream: u64,
    sequence: u64,
    time: i64,
    created: Option<i64>,
    name: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    term: Option<u64>,
    payload: Vec<u8>,
}

impl Hand {
    fn new(kind: u8, payload: Vec<u8>) -> Self {
        let (stream, sequence) = (1, 2);
        let none = (None, None, None, None);
        let (created, name, key, term) = none;
        Self { kind, version: 1, flags: 0, stream, sequence, time: 0, created, name, key, term, payload }
    }

    fn bytes(&self) -> Vec<u8> {
        let zigzag = |n: i64| varint((n << 1 ^ n >> 63).cast_unsigned());
        let sized = |bytes: &[u8]| [varint(bytes.len() as u64), bytes.to_vec()].concat();
        let flag = |bit: u8, set: bool| if set { bit } else { 0 };
        let flags = self.flags
            | flag(1, self.name.is_some())
            | flag(8, self.created.is_some())
            | flag(16, self.key.is_some())
            | flag(32, self.term.is_some());
        let mut all = varint(self.payload.len() as u64);
        all.extend([self.kind, self.version, flags]);
        all.extend([varint(self.stream), varint(self.sequence), zigzag(self.time)].concat());
        all.extend(self.created.map(zigzag).unwrap_or_default());
        all.extend(self.name.as_deref().map(sized).unwrap_or_default());
        all.extend(self.key.as_deref().map(sized).unwrap_or_default());
        all.extend(self.term.map(varint).unwrap_or_default());
        let sum = crc32fast::hash(&[all.as_slice(), &self.payload].concat()).to_le_bytes();
        all.extend(if flags & 64 == 0 { &[] } else { sum.as_slice() });
        [all, self.payload.clone()].concat()
    }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push(value.to_le_bytes()[0] | 128);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
    bytes
}

/// A length and the bytes.
fn sized(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&(bytes.as_ref().len() as u64).to_le_bytes(), bytes.as_ref()].concat()
}

fn lifecycle(kind: &str, level: u8, message: impl AsRef<[u8]>, data: &str) -> Vec<u8> {
    [sized(kind), vec![level], sized(message), sized(data)].concat()
}

/// A journal of one segment with these batches.
fn hand_made(batches: &[Vec<Vec<u8>>]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 1024];
    for at in [0, 512] {
        bytes[at..at + 10].copy_from_slice(b"RUNWAL\r\n\x01\0");
        bytes[at + 16..at + 32].fill(b'J');
        bytes[at + 32] = 1;
        bytes[at + 48] = 77;
        bytes[at + 64] = 1;
        bytes[at + 130] = 4;
    }
    seal_header(&mut bytes);
    let (mut chain, mut position) = ([0; 32], 1_u64);
    for records in batches {
        let (at, body) = (bytes.len(), records.concat());
        let [size, count] = [body.len(), records.len()].map(|n| u32::try_from(n).unwrap().to_le_bytes());
        bytes.extend([b"RWB1\0\0\0\0".as_slice(), &size, &size, &count, &[0; 4]].concat());
        bytes.extend([position, START.cast_unsigned(), position - 1].map(u64::to_le_bytes).concat());
        bytes.extend([&[0; 68], body.as_slice()].concat());
        let end = bytes.len();
        chain = seal_batch(&mut bytes, at, end, Right::Chain, &chain);
        position += records.len() as u64;
    }
    std::fs::create_dir(dir.path().join("journal")).unwrap();
    std::fs::write(dir.path().join("journal/0000000001.seg"), bytes).unwrap();
    std::fs::write(dir.path().join("journal/lock"), b"").unwrap();
    dir
}

/// The record that opens the run `t/r`.
fn opening() -> Hand {
    let mut payload = [sized("t"), sized("r"), sized("s"), vec![1, 0, 0, 0, 0, 0]].concat();
    payload
        .extend([0_u64.to_le_bytes().as_slice(), &[0], &0_u64.to_le_bytes(), &[0], &[0; 8], &[0]].concat());
    payload.extend(
        [[7; 16].as_slice(), &[8; 16], &[0], &sized("h"), &0_u64.to_le_bytes(), &[0], &[1, 0]].concat(),
    );
    Hand { stream: 0, sequence: 1, name: Some(b"t/r".to_vec()), ..Hand::new(1, payload) }
}

/// Records that are valid, whatever their payloads are.
fn odd_records() -> Vec<Hand> {
    let event = || Hand::new(2, lifecycle("step", 1, "m", "{}"));
    let mut all: Vec<Hand> = vec![
        Hand::new(0, b"x".to_vec()),
        Hand::new(99, Vec::new()),
        Hand { version: 2, ..event() },
        Hand { version: 0, ..event() },
        Hand { flags: 64, key: Some(b"k".repeat(256)), term: Some(u64::MAX), ..event() },
        Hand { key: Some(Vec::new()), sequence: u64::MAX, ..event() },
        Hand { time: i64::MAX, created: Some(i64::MAX), ..event() },
        Hand { time: i64::MIN, created: Some(i64::MIN), ..event() },
        Hand { flags: 2, ..Hand::new(3, Vec::new()) },
        Hand::new(3, vec![0xed, 0xa0, 0x80]),
        Hand::new(1, opening().payload),
        Hand::new(5, vec![0; 8]),
        Hand::new(5, vec![1, 9, 0, 0, 0, 0, 0, 0, 0]),
        Hand::new(5, vec![2, 0, 0, 0, 0, 0, 0, 0]),
        Hand::new(5, vec![0, 1, 2, 0, 0, 0, 0, 0, 0]),
        Hand::new(5, vec![0; 9]),
        Hand::new(2, u64::MAX.to_le_bytes().to_vec()),
        Hand::new(2, Vec::new()),
    ];
    for (kind, level) in [
        ("A", 1),
        ("", 1),
        ("a\n", 1),
        ("\u{e9}", 1),
        ("step", 4),
        (&"a".repeat(64), 3),
        (&"a".repeat(65), 3),
    ] {
        all.push(Hand::new(2, lifecycle(kind, level, "m", "{}")));
    }
    let good = r#"true nullnull "\ud800" {}{} [[[[]]]] {"a":1,"a":{"a":[]}} 1e999999 1e5 -0.0E-0"#;
    let bad = r#"{ {}} {,} [1,] [,1] {"a"} {1:2} NaN 01 1. - +1 1e tru "\x" "\u12" 'a' " [} {"a":}"#;
    let others = ["", "\u{feff}{}", "\"\u{1}\"", "\u{660}"];
    for data in good.split(' ').chain(bad.split(' ')).chain(others) {
        all.push(Hand::new(2, lifecycle("step", 1, ODD, data)));
    }
    all.push(Hand::new(2, lifecycle("step", 1, b"\xff", "{}")));
    all.push(Hand::new(2, lifecycle("step", 1, "m", &format!("{}{}", "[".repeat(9_000), "]".repeat(9_000)))));
    all
}

#[test]
fn both_decoders_read_odd_records_alike() {
    let Some(_) = python() else { return };
    let one_each: Vec<Vec<Vec<u8>>> =
        std::iter::once(opening()).chain(odd_records()).map(|record| vec![record.bytes()]).collect();
    let dir = hand_made(&one_each);
    assert_eq!(differences(dir.path(), true), Vec::<String>::new());
    assert_eq!(first(dir.path(), &["verify"]).status.code(), Some(0));
    let many = format!("{{{}\"x\":1}}", "\"x\":0,".repeat(200));
    let deep = format!("{{\"a\":{}1{},\"z\":0}}", "[".repeat(5_000), "]".repeat(5_000));
    for details in
        ["[]", "1", "{\"a\":1,\"a\":1,\"detail_a\":1}", "{\"\\u0061\":1,\"a\\/\":\"\\/\"}", &deep, &many]
    {
        let head = [sized("b"), sized("r"), sized("s"), vec![0, 0, 0], sized(details)].concat();
        let tick = Hand { stream: 0, sequence: 1, name: Some(b"timed-jobs".to_vec()), ..Hand::new(7, head) };
        let dir = hand_made(&[vec![tick.bytes()]]);
        assert_eq!(
            differences(dir.path(), true),
            Vec::<String>::new(),
            "{}",
            &details[..details.len().min(40)]
        );
        assert!(first(dir.path(), &["rebuild"]).status.success());
        assert_same_files(dir.path());
    }
}

#[test]
fn both_decoders_refuse_the_same_bodies() {
    let Some(_) = python() else { return };
    let event = || Hand::new(2, lifecycle("step", 1, "m", "{}"));
    let open = opening().bytes();
    let mut long_way = event().bytes();
    long_way.splice(0..1, [long_way[0] | 128, 0]);
    let bodies: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("sequence 0", vec![Hand { sequence: 0, ..event() }.bytes()]),
        ("a stream to come", vec![Hand { stream: 3, ..event() }.bytes()]),
        ("a stream of nothing", vec![Hand { stream: 0, ..event() }.bytes()]),
        ("a key too long", vec![Hand { key: Some(vec![0; 257]), ..event() }.bytes()]),
        (
            "a name too long",
            vec![Hand { name: Some(vec![0; 513]), stream: 0, sequence: 1, ..event() }.bytes()],
        ),
        ("opens another", vec![Hand { name: Some(b"t/q".to_vec()), ..event() }.bytes()]),
        ("a varint spelt long", vec![long_way]),
        ("bytes behind", vec![event().bytes(), b"x".to_vec()]),
        ("cut", vec![event().bytes()[..9].to_vec()]),
        ("a payload over the limit", vec![Hand::new(3, vec![b'x'; (1 << 20) + 1]).bytes()]),
    ];
    for (name, body) in bodies {
        let count = body.len();
        let dir = hand_made(&[vec![open.clone()], body]);
        assert_eq!(differences(dir.path(), true), Vec::<String>::new(), "{name} ({count})");
        assert_eq!(first(dir.path(), &["verify"]).status.code(), Some(3), "{name}");
    }
    for body in [vec![Hand { stream: 2, ..event() }.bytes()], vec![Hand { flags: 64, ..event() }.bytes()]] {
        assert_eq!(differences(hand_made(&[vec![open.clone()], body]).path(), true), Vec::<String>::new());
    }
    let reserved = hand_made(&[vec![open, Hand { flags: 128, ..event() }.bytes()]]);
    assert_eq!(verify_differences(reserved.path(), true), Vec::<String>::new());
    assert_eq!(first(reserved.path(), &["verify"]).status.code(), Some(6));
}

/// Where sequences or positions are used up, nothing begins anew and nothing is taken twice: what can be
/// written is, and then it is told.
#[test]
fn where_numbers_are_used_up_it_is_told_and_nothing_is_damaged() {
    let last_sequence = |sequence| {
        let event = Hand { sequence, ..Hand::new(2, lifecycle("step", 1, "m", "{}")) };
        (
            hand_made(&[vec![opening().bytes()], vec![event.bytes()]]),
            "the sequences of this stream are used up",
        )
    };
    let first_position = |position: u64| {
        let dir = hand_made(&[vec![opening().bytes()]]);
        let segment = dir.path().join("journal/0000000001.seg");
        rewrite_header(&segment, 64, &position.to_le_bytes());
        rewrite_header(&segment, 144, &[1, position - 1].map(u64::to_le_bytes).concat());
        rewrite_batch(&segment, 0, Right::Chain, |batch| {
            batch[24..32].copy_from_slice(&position.to_le_bytes());
            batch[40..48].copy_from_slice(&(position - 1).to_le_bytes());
        });
        (dir, "the positions of this journal are used up")
    };
    // The run that is there has to be ended, with two records; then comes another one.
    for ((dir, told), ends) in [
        (last_sequence(u64::MAX), false),
        (last_sequence(u64::MAX - 1), false),
        (first_position(u64::MAX - 1), false),
        (first_position(u64::MAX - 4), true),
    ] {
        let lines = |output: &std::process::Output| output.stdout.iter().filter(|b| **b == b'\n').count();
        let before = lines(&first(dir.path(), &["log"]));
        for _ in 0..2 {
            let recovered = first(dir.path(), &["recover"]);
            assert_eq!(recovered.status.code(), Some(if ends { 0 } else { 7 }), "{recovered:?}");
            let run = first(dir.path(), &["run", "--", "true"]);
            assert_eq!(run.status.code(), Some(125), "{run:?}");
            assert!(String::from_utf8_lossy(&run.stderr).contains(told), "{run:?}");
            let verified = first(dir.path(), &["verify"]);
            assert_eq!(verified.status.code(), Some(0), "{verified:?}");
            let after = lines(&first(dir.path(), &["log"]));
            assert_eq!(after, before + if ends { 2 } else { 0 });
        }
    }
}
