//! The tool as its users run it, on real processes.

#![expect(clippy::disallowed_methods, reason = "plays the user, who reads and damages files")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A data directory of its own for each test.
pub(crate) struct Place(pub(crate) tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runwal"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        for name in ["RUNWAL_DIR", "NO_COLOR", "CLICOLOR_FORCE", "RUNWAL_RUN", "RUNWAL_RECORDER"] {
            command.env_remove(name);
        }
        command.env("RUNWAL_DIR", self.data());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs, and expects an exit code.
    pub(crate) fn ends(&self, code: i32, args: &[&str]) -> Output {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        output
    }

    /// The lines of a command that answers with JSON.
    pub(crate) fn json(&self, code: i32, args: &[&str]) -> Vec<serde_json::Value> {
        let output = self.ends(code, args);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn record(&self, run: &str, script: &str) -> Output {
        self.run(&["-q", "run", "--task", "t", "--run", run, "--", "sh", "-c", script])
    }

    pub(crate) fn segment(&self, number: u32) -> PathBuf {
        self.data().join(format!("journal/{number:010}.seg"))
    }

    /// Everything under `runs/`, by name.
    pub(crate) fn tree(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.data().join("runs"), "", &mut files);
        files
    }

    /// The journal's files, to see that nothing changed.
    fn journal(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.data().join("journal"), "", &mut files);
        files
    }
}

fn collect(dir: &Path, name: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = format!("{name}/{}", path.file_name().unwrap().to_string_lossy());
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            files.insert(format!("{name}/"), Vec::new());
            collect(&path, &name, files);
        } else if kind.is_file() {
            files.insert(name, fs::read(&path).unwrap());
        } else {
            files.insert(format!("{name}@"), Vec::new());
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Small reproducible random numbers.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    pub(crate) fn pick(&mut self, len: usize) -> usize {
        usize::try_from(self.roll(len as u64)).unwrap()
    }
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_mins(1), "{what} did not happen within a minute");
        std::thread::yield_now();
    }
}

#[test]
fn output_and_exit_code_are_those_of_the_command() {
    let place = Place::new();
    let script = "printf 'a\\0b\\377'; printf 'e\\033[31m' >&2; exit 7";
    let bare = Command::new("sh").args(["-c", script]).output().unwrap();
    let recorded = place.record("r", script);
    assert_eq!(recorded.stdout, bare.stdout);
    assert_eq!(recorded.stderr, bare.stderr);
    assert_eq!(recorded.status.code(), Some(7));
    let again = place.ends(0, &["output", "t/r"]);
    assert_eq!((again.stdout, again.stderr), (bare.stdout.clone(), bare.stderr));
    assert_eq!(fs::read(place.data().join("runs/t/r/stdout.log")).unwrap(), bare.stdout);
    let state = place.json(0, &["-o", "json", "runs"]);
    assert_eq!((&state[0]["status"], &state[0]["exitCode"]), (&"failed".into(), &7.into()));
}

#[test]
fn every_way_to_end_has_its_exit_code() {
    let place = Place::new();
    assert_eq!(place.record("segv", "kill -SEGV $$").status.code(), Some(128 + 11));
    place.ends(127, &["-q", "run", "--", "/no/such/program"]);
    place.ends(126, &["-q", "run", "--", "/etc/passwd"]);
    place.ends(124, &["-q", "run", "--timeout", "100ms", "--", "sleep", "60"]);
    assert_eq!(place.record("segv", "true").status.code(), Some(2), "a run that exists");
    place.ends(2, &["run", "--task", "../x", "--", "true"]);
    place.ends(2, &["run", "--"]);
    place.ends(2, &["run", "-C", "/no/such/dir", "--", "true"]);
    place.ends(1, &["state", "nobody"]);
    place.ends(1, &["--dir", "/no/such/data", "runs"]);
    place.ends(2, &["log", "--since", "yesterdayish"]);
    let state: serde_json::Value =
        serde_json::from_slice(&place.ends(0, &["state", "t/segv"]).stdout).unwrap();
    assert_eq!(state["signal"], "SIGSEGV");
    let error = place.ends(1, &["-o", "json", "state", "nobody"]).stderr;
    let error: serde_json::Value = serde_json::from_slice(&error).unwrap();
    assert_eq!(error["error"]["code"], "not_found");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let place = Place::new();
    place.record("r", "seq 10000");
    let mut child =
        place.command(&["output", "t/r"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
    // A recorded command whose reader goes away is told as the bare one is.
    let mut child = place
        .command(&["-q", "run", "--", "yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 2];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(128 + 13));
}

#[test]
fn a_burst_on_both_channels_keeps_its_bytes_and_its_syncs_are_few() {
    let place = Place::new();
    let script = "i=0; while [ $i -lt 2000 ]; do echo $i.a; echo $i.b; echo $i.c; echo $i.d; echo $i.e; \
                  echo $i.f; echo $i.g; echo $i.h; echo $i.i; echo $i.j; echo $i.x >&2; i=$((i+1)); done";
    let bare = Command::new("sh").args(["-c", script]).output().unwrap();
    let recorded = place.record("burst", script);
    assert_eq!(recorded.stdout, bare.stdout);
    assert_eq!(recorded.stderr, bare.stderr);
    let dir = place.data().join("runs/t/burst");
    assert_eq!(fs::read(dir.join("stdout.log")).unwrap(), bare.stdout);
    assert_eq!(fs::read(dir.join("stderr.log")).unwrap(), bare.stderr);
    let batches = place.json(0, &["-o", "json", "verify"])[0]["batches"].as_u64().unwrap();
    assert!(batches < 2000, "{batches} batches for 22,000 lines");
    place.ends(0, &["rebuild", "--check"]);
}

#[test]
fn a_long_line_and_much_output_come_through() {
    let place = Place::new();
    let script = "head -c 15000000 /dev/urandom | base64 -w 0";
    let recorded = place.record("line", script);
    assert_eq!(recorded.stdout.len(), 20_000_000);
    assert_eq!(fs::metadata(place.data().join("runs/t/line/stdout.log")).unwrap().len(), 20_000_000);
    let tail = fs::read(place.data().join("runs/t/line/checkpoints/0002-log-tail.txt")).unwrap();
    assert!(tail.len() <= 64 << 10);
    place.ends(0, &["verify", "--deep"]);
    assert!(place.segment(3).exists(), "the journal rolled on the way");
}

pub(crate) fn strace_found() -> bool {
    let found = Command::new("strace").arg("-V").output().is_ok();
    if !found {
        println!("skipped: strace is not found");
    }
    found
}

/// Syncs of a whole recorded command.
fn syncs(place: &Place, script: &str) -> u64 {
    let trace = place.0.path().join("trace");
    let status = Command::new("strace")
        .args(["-f", "-e", "trace=fdatasync,fsync,sync_file_range,syncfs,sync", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_runwal"))
        .arg("--dir")
        .arg(place.data())
        .args(["-q", "run", "--", "sh", "-c", script])
        .current_dir(place.0.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    fs::read_to_string(&trace).unwrap().lines().filter(|line| line.contains("sync(")).count() as u64
}

#[test]
fn a_recorded_true_costs_four_syncs_at_most_and_a_thousand_lines_a_handful() {
    if !strace_found() {
        return;
    }
    let place = Place::new();
    place.record("first", "true");
    assert!(syncs(&place, "true") <= 4);
    assert!(syncs(&place, "seq 1000") <= 8);
}

#[test]
fn what_becomes_of_projected_files_is_noticed_and_mended() {
    let place = Place::new();
    place.record("a", "echo out; echo err >&2");
    place.record("b", "seq 100; exit 3");
    let before = place.tree();
    let outside = place.0.path().join("outside");
    fs::write(&outside, "mine").unwrap();
    let run = place.data().join("runs/t/a");
    let replace = |path: &Path, with: &dyn Fn(&Path)| {
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
        with(path);
    };
    let fifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let surgeries: Vec<(&str, Box<dyn Fn()>)> = vec![
        ("runs/ deleted", Box::new(|| fs::remove_dir_all(place.data().join("runs")).unwrap())),
        (
            "a log cut",
            Box::new(|| {
                fs::File::options().write(true).open(run.join("stdout.log")).unwrap().set_len(1).unwrap();
            }),
        ),
        (
            "a log longer",
            Box::new(|| {
                fs::File::options()
                    .append(true)
                    .open(run.join("stderr.log"))
                    .unwrap()
                    .write_all(b"x")
                    .unwrap();
            }),
        ),
        (
            "state edited",
            Box::new(|| {
                let text =
                    fs::read_to_string(run.join("state.json")).unwrap().replace("completed", "complicated");
                fs::write(run.join("state.json"), text).unwrap();
            }),
        ),
        (
            "a checkpoint gone",
            Box::new(|| fs::remove_file(run.join("checkpoints/0001-summary.json")).unwrap()),
        ),
        ("a file a directory", Box::new(|| replace(&run.join("meta.json"), &|p| fs::create_dir(p).unwrap()))),
        ("a file a link", Box::new(|| replace(&run.join("worker.log"), &|p| symlink(&outside, p).unwrap()))),
        (
            "a file a hard link",
            Box::new(|| replace(&run.join("stdout.log"), &|p| fs::hard_link(&outside, p).unwrap())),
        ),
        ("a file a FIFO", Box::new(|| replace(&run.join("state.json"), &fifo))),
        ("a folder a link", Box::new(|| replace(&run.join("checkpoints"), &|p| symlink("/tmp", p).unwrap()))),
        ("a folder a file", Box::new(|| replace(&run, &|p| fs::write(p, "no folder").unwrap()))),
        ("runs/ a link", Box::new(|| replace(&place.data().join("runs"), &|p| symlink("/tmp", p).unwrap()))),
        ("the cache gone", Box::new(|| fs::remove_dir_all(place.data().join("cache")).unwrap())),
        (
            "the cache nonsense",
            Box::new(|| replace(&place.data().join("cache"), &|p| fs::write(p, "?").unwrap())),
        ),
    ];
    for (what, surgery) in &surgeries {
        surgery();
        let touches_files = !what.starts_with("the cache");
        place.ends(i32::from(touches_files), &["rebuild", "--check"]);
        place.ends(0, &["recover"]);
        assert!(place.tree() == before, "{what}: not mended by opening");
        place.ends(0, &["rebuild", "--check"]);
        if touches_files {
            surgery();
            place.ends(0, &["rebuild"]);
            assert!(place.tree() == before, "{what}: not mended by rebuild");
        }
        place.ends(0, &["verify", "--deep"]);
    }
    assert_eq!(fs::read_to_string(&outside).unwrap(), "mine", "no link was followed");
}

#[test]
fn a_file_whose_records_are_damaged_is_left_alone() {
    let place = Place::new();
    place.record("a", "echo precious");
    place.record("b", "echo other");
    let bytes = fs::read(place.segment(1)).unwrap();
    let at = bytes.windows(9).position(|w| w == b"precious\n").unwrap() as u64;
    let file = fs::File::options().write(true).open(place.segment(1)).unwrap();
    file.write_all_at(b"P", at).unwrap();
    let before = place.tree();
    let output = place.ends(3, &["rebuild"]);
    assert!(text(&output.stderr).contains("t/a"), "{output:?}");
    assert!(place.tree() == before, "the last good copy of the output was overwritten");
    assert_eq!(text(&place.ends(0, &["output", "t/b"]).stdout), "other\n");
    let log = place.ends(3, &["log", "-o", "json"]);
    assert!(text(&log.stdout).contains("other"), "what stands behind the damage is read");
    let damage = &place.json(3, &["-o", "json", "verify"])[0]["damage"][0];
    assert_eq!(damage["segment"], 1);
    assert!(damage["from"].as_u64().unwrap() > 0 && damage["offset"].as_u64().unwrap() < at);
}

#[test]
fn a_torn_tail_is_told_and_set_aside_and_reading_changes_nothing() {
    let place = Place::new();
    place.record("a", "echo one");
    let end = fs::metadata(place.segment(1)).unwrap().len();
    let file = fs::File::options().write(true).open(place.segment(1)).unwrap();
    file.write_all_at(b"half a batch", end).unwrap();
    let before = place.journal();
    place.ends(4, &["verify"]);
    place.ends(4, &["log"]);
    place.ends(4, &["runs"]);
    place.ends(4, &["recover", "--dry-run"]);
    place.ends(0, &["info"]);
    assert!(place.journal() == before, "reading wrote something");
    let report = &place.json(0, &["-o", "json", "recover"])[0];
    assert_eq!((&report["verdict"], &report["quarantinedBytes"]), (&"torn".into(), &12.into()));
    place.ends(0, &["verify", "--deep"]);
    let again = &place.json(0, &["-o", "json", "recover"])[0];
    assert_eq!((&again["verdict"], &again["quarantinedBytes"]), (&"clean".into(), &0.into()));
    let kept = fs::read_dir(place.data().join("journal/quarantine")).unwrap().next().unwrap().unwrap();
    assert_eq!(fs::read(kept.path()).unwrap(), b"half a batch");
}

#[test]
fn lost_records_are_refused_until_they_are_given_up() {
    let place = Place::new();
    place.record("a", "echo one");
    place.record("b", "echo two");
    let len = fs::metadata(place.segment(1)).unwrap().len();
    fs::File::options().write(true).open(place.segment(1)).unwrap().set_len(len - 100).unwrap();
    let report = &place.json(3, &["-o", "json", "verify"])[0];
    assert_eq!(report["verdict"], "corrupt");
    let output = place.record("c", "echo three");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(output.stdout.is_empty(), "nothing was started");
    assert!(text(&output.stderr).contains("--accept-damage"));
    place.ends(3, &["recover"]);
    place.ends(0, &["recover", "--accept-damage"]);
    assert_eq!(place.record("c", "echo three").status.code(), Some(0));
    let verified = &place.json(0, &["-o", "json", "verify"])[0];
    assert_eq!(verified["damage"][0]["accepted"], true);
    assert_eq!(text(&place.ends(0, &["output", "t/a"]).stdout), "one\n");
    place.ends(0, &["recover", "--accept-damage"]);
}

/// The highest memory use of a child, as far as it could be watched.
fn watch_memory(child: &mut Child) -> u64 {
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
        most = most.max(kib);
        std::thread::yield_now();
    }
    most
}

#[test]
fn a_hostile_directory_is_an_error_or_a_word_never_a_hang() {
    let sparse = |place: &Place| fs::File::create(place.segment(9)).unwrap().set_len(1 << 40).unwrap();
    let many = |place: &Place| {
        for i in 10..100_010 {
            fs::File::create(place.segment(i)).unwrap();
        }
    };
    let huge_length = |place: &Place| {
        let file = fs::File::options().write(true).open(place.segment(1)).unwrap();
        file.write_all_at(&[0xff; 8], 1024 + 8).unwrap();
    };
    let newer = |place: &Place| {
        let mut bytes = fs::read(place.segment(1)).unwrap();
        for copy in [0, 512] {
            bytes[copy + 8] = 2;
            let crc = crc32fast::hash(&bytes[copy..copy + 508]);
            bytes[copy + 508..copy + 512].copy_from_slice(&crc.to_le_bytes());
        }
        fs::write(place.segment(1), bytes).unwrap();
    };
    let plants: Vec<(&str, Box<dyn Fn(&Place)>, i32)> = vec![
        ("a sparse terabyte", Box::new(sparse), 3),
        ("100,000 empty segments", Box::new(many), 3),
        ("a huge length", Box::new(huge_length), 3),
        ("a newer version", Box::new(newer), 6),
        ("a link", Box::new(|p| symlink("/dev/zero", p.segment(2)).unwrap()), 3),
        ("a directory", Box::new(|p| fs::create_dir(p.segment(2)).unwrap()), 3),
        (
            "a FIFO",
            Box::new(|p| assert!(Command::new("mkfifo").arg(p.segment(2)).status().unwrap().success())),
            3,
        ),
        (
            "a copy of another name",
            Box::new(|p| assert!(fs::copy(p.segment(1), p.segment(2)).unwrap() > 0)),
            3,
        ),
        (
            "a mark that is a FIFO",
            Box::new(|p| {
                let mark = p.data().join("journal/mark");
                fs::remove_file(&mark).unwrap();
                assert!(Command::new("mkfifo").arg(mark).status().unwrap().success());
            }),
            3,
        ),
        (
            "foreign names",
            Box::new(|p| {
                for name in ["1.seg", "00000000001.seg", "x.seg", "0000000000.seg", "-1.seg", "é\u{301}"] {
                    fs::write(p.data().join("journal").join(name), "?").unwrap();
                }
            }),
            0,
        ),
    ];
    for (what, plant, code) in plants {
        let place = Place::new();
        place.record("a", "echo one");
        plant(&place);
        let before = what.contains("FIFO").then(BTreeMap::new).unwrap_or_else(|| place.journal_names());
        for args in [&["verify"][..], &["log"], &["runs"], &["output", "t/a"], &["info"]] {
            let mut child = place.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let memory = watch_memory(&mut child);
            let output = child.wait_with_output().unwrap();
            assert!(output.status.signal().is_none(), "{what}: {args:?}: {output:?}");
            assert!(!text(&output.stderr).contains("panicked"), "{what}: {args:?}: {output:?}");
            assert!(memory < 64 << 10, "{what}: {args:?} took {memory} KiB");
            if args == ["verify"] {
                assert_eq!(output.status.code(), Some(code), "{what}: {output:?}");
            }
        }
        if !before.is_empty() {
            assert!(place.journal_names() == before, "{what}: reading changed something");
        }
        let output = place.record("b", "echo two");
        assert!(matches!(output.status.code(), Some(0 | 125)), "{what}: {output:?}");
        assert!(!text(&output.stderr).contains("panicked"), "{what}: {output:?}");
    }
}

impl Place {
    /// Names and lengths, where reading the bytes is not wanted.
    fn journal_names(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.data().join("journal")).unwrap();
        entries
            .map(|entry| {
                let entry = entry.unwrap();
                let len = fs::symlink_metadata(entry.path()).unwrap().len();
                (entry.file_name().to_string_lossy().into_owned(), len.to_le_bytes().to_vec())
            })
            .collect()
    }
}

#[test]
fn files_are_private_under_every_umask() {
    for umask in ["000", "077", "777"] {
        let place = Place::new();
        let script = format!(
            "umask {umask}; exec {} --dir {} -q run -- true",
            env!("CARGO_BIN_EXE_runwal"),
            place.data().display()
        );
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success(), "umask {umask}");
        let mut stack = vec![place.data()];
        while let Some(dir) = stack.pop() {
            assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700, "{}", dir.display());
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    stack.push(path);
                } else {
                    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                    assert_eq!(mode, 0o600, "{}", path.display());
                }
            }
        }
    }
}

#[test]
fn eight_recorders_at_once_some_killed_leave_a_whole_journal() {
    let place = Place::new();
    let script =
        |i: usize| format!("n=0; while [ $n -lt 200 ]; do echo {i} $n; n=$((n+1)); done; echo done {i} >&2");
    for round in 0..2 {
        let children: Vec<Child> = (0..8)
            .map(|i| {
                let run = format!("r{round}{i}");
                place
                    .command(&["-q", "run", "--task", "t", "--run", &run, "--", "sh", "-c", &script(i)])
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let mut killed = Vec::new();
        for (i, mut child) in children.into_iter().enumerate() {
            if i % 3 == 2 {
                child.kill().unwrap();
                killed.push(i);
            }
            let output = child.wait_with_output().unwrap();
            assert!(killed.contains(&i) || output.status.success(), "{output:?}");
        }
        place.ends(0, &["recover"]);
        place.ends(0, &["verify", "--deep"]);
        for i in (0..8).filter(|i| !killed.contains(i)) {
            let output = place.ends(0, &["output", &format!("t/r{round}{i}"), "--channel", "stdout"]);
            let lines: Vec<String> = (0..200).map(|n| format!("{i} {n}\n")).collect();
            let expected = lines.concat();
            assert_eq!(text(&output.stdout), expected);
        }
    }
    let positions: Vec<u64> =
        place.json(0, &["log", "-o", "json"]).iter().map(|r| r["position"].as_u64().unwrap()).collect();
    assert!(positions.iter().copied().eq(1..=positions.len() as u64));
}

#[test]
fn output_is_followed_while_it_comes_and_ends_with_the_run() {
    let place = Place::new();
    let script = "echo begun; read line < gate; echo $line";
    let gate = place.0.path().join("gate");
    assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
    let mut run = place
        .command(&["-q", "run", "--task", "t", "--run", "r", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the run", || text(&place.run(&["output", "t/r"]).stdout) == "begun\n");
    let mut follower = place.command(&["output", "-f", "t/r"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "begun");
    fs::write(&gate, "later\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "later");
    assert!(lines.next().is_none());
    assert!(follower.wait().unwrap().success());
    assert!(run.wait().unwrap().success());
}

#[test]
fn damage_in_a_sealed_segment_is_told_by_every_command() {
    let place = Place::new();
    place.record("a", "echo one");
    place.record("b", "head -c 400000 /dev/urandom");
    place.record("c", "echo three");
    assert!(place.segment(2).exists());
    fs::remove_file(place.segment(1)).unwrap();
    for args in
        [&["verify"][..], &["runs"], &["log"], &["rebuild"], &["rebuild", "--check"], &["state", "t/a"]]
    {
        let output = place.ends(3, args);
        assert!(!output.stderr.is_empty() || args == ["verify"], "{args:?} said nothing");
    }
    place.ends(3, &["recover"]);
    assert_eq!(text(&place.ends(0, &["output", "t/c"]).stdout), "three\n");
    assert_eq!(place.record("d", "echo four").status.code(), Some(0), "appending goes on");
}

#[test]
fn a_follower_sees_each_record_once_in_order_and_ends_with_the_run() {
    let place = Place::new();
    place.record("before", "true");
    let mut follower = place
        .command(&["log", "-f", "-n", "all", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    // However late it begins, it shows what was there and then what comes.
    place.record("live", "for i in 1 2 3; do echo $i; sleep 0.05; done");
    let all = place.json(0, &["log", "-o", "json", "t/live"]);
    let mut seen = Vec::new();
    while seen.len() < all.len() {
        let line: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if line["run"] == "live" {
            seen.push(line);
        }
    }
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert_eq!(seen, all);
    let cursor = all[2]["cursor"].as_str().unwrap();
    let rest = place.json(0, &["log", "-o", "json", "t/live", "--after-cursor", cursor]);
    assert_eq!(rest, all[3..]);
    // With a run, following ends when the run does, also when it ended before.
    let output = place.ends(0, &["log", "-f", "-n", "all", "-o", "json", "t/live"]);
    assert_eq!(text(&output.stdout).lines().count(), all.len());
    assert_eq!(text(&place.ends(0, &["output", "-f", "t/live"]).stdout), "1\n2\n3\n");
}

#[test]
fn state_of_any_moment_is_what_it_was_then() {
    let place = Place::new();
    place.record("r", "echo x; exit 1");
    let records = place.json(0, &["log", "-o", "json", "t/r"]);
    let mut statuses = Vec::new();
    for record in &records {
        let seq = record["seq"].to_string();
        let state = place.ends(0, &["state", "t/r", "--at", &seq]).stdout;
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        statuses.push(state["status"].as_str().unwrap().to_owned());
    }
    statuses.dedup();
    assert_eq!(statuses, ["prepared", "running", "failed"]);
    let end = place.ends(0, &["state", "t/r"]).stdout;
    assert_eq!(end, fs::read(place.data().join("runs/t/r/state.json")).unwrap());
    place.ends(1, &["state", "t/r", "--at", "2000-01-01T00:00:00Z"]);
}

/// One recorder killed at a random moment, and what must be true then.
fn kill_once(place: &Place, dice: &mut Dice, n: u64) {
    let scripts = [
        "while :; do echo line; done",
        "exec sleep 1000",
        "echo begun; (trap '' TERM; sleep 1001) & wait",
        "while :; do head -c 300000 /dev/zero; done",
        "trap '' TERM PIPE HUP; while :; do sleep 0.01; done",
    ];
    let script = scripts[usize::try_from(dice.roll(scripts.len() as u64)).unwrap()];
    let run = format!("k{n}");
    let mut child = place
        .command(&["-q", "run", "--task", "t", "--run", &run, "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    if n.is_multiple_of(2) {
        // The killing is at a moment given by how much was done, not by a clock.
        let mut out = child.stdout.take().unwrap();
        if script.contains("echo") || script.contains("head") {
            let mut piece = vec![0; usize::try_from(1 + dice.roll(200_000)).unwrap()];
            let read = out.read(&mut piece).unwrap();
            seen.extend_from_slice(&piece[..read]);
        }
        child.kill().unwrap();
    } else {
        let spins = dice.roll(2_000_000);
        let mut sink = 0_u64;
        for i in 0..spins {
            sink = std::hint::black_box(sink.wrapping_add(i));
        }
        child.kill().unwrap();
    }
    child.wait().unwrap();
    if !place.data().exists() {
        return;
    }
    let promised: Vec<String> =
        text(&place.run(&["log", "-o", "json"]).stdout).lines().map(str::to_owned).collect();
    let report = &place.json(0, &["-o", "json", "recover"])[0];
    let begun = !text(&place.run(&["runs", "-o", "json"]).stdout).is_empty()
        && place.run(&["state", &format!("t/{run}")]).status.code() == Some(0);
    let interrupted = report["interruptedRuns"].as_array().unwrap();
    assert_eq!(interrupted.len(), usize::from(begun), "{run}: {report}");
    let now: Vec<String> =
        text(&place.ends(0, &["log", "-o", "json"]).stdout).lines().map(str::to_owned).collect();
    assert_eq!(&now[..promised.len()], &promised[..], "what a reader saw stays");
    if begun {
        let ends = now
            .iter()
            .filter(|line| line.contains(&format!("\"run\":\"{run}\"")) && line.contains("step_interrupted"));
        assert_eq!(ends.count(), 1, "{run}");
    }
    let again = &place.json(0, &["-o", "json", "recover"])[0];
    assert_eq!(again["interruptedRuns"].as_array().unwrap().len(), 0);
    assert_eq!((&again["projectionsRewritten"], &again["position"]), (&0.into(), &report["position"]));
    assert_eq!(processes_of(&run), Vec::<String>::new(), "{run}: no worker is left");
}

/// Processes that carry a run's name in their environment.
pub(crate) fn processes_of(run: &str) -> Vec<String> {
    let wanted = format!("RUNWAL_RUN=t/{run}");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        let state = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let zombie = state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
        if !zombie && environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes()) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

/// `RUNWAL_KILLS` says how many; a few in every run of the tests.
#[test]
fn a_recorder_killed_at_any_moment_loses_nothing_it_promised() {
    let kills = std::env::var("RUNWAL_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let place = Place::new();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for n in 0..kills {
        kill_once(&place, &mut dice, n);
    }
    place.ends(0, &["verify", "--deep"]);
    place.ends(0, &["rebuild", "--check"]);
}

#[test]
fn a_signal_is_handed_on_and_the_run_ends_as_cancelled() {
    let place = Place::new();
    let child = place
        .command(&[
            "-q",
            "run",
            "--task",
            "t",
            "--run",
            "signalled",
            "--",
            "sh",
            "-c",
            "echo ready; exec sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = child;
    let mut first = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    let state: serde_json::Value =
        serde_json::from_slice(&place.ends(0, &["state", "t/signalled"]).stdout).unwrap();
    assert_eq!(state["status"], "cancelled");
    wait_until("the end of the worker", || processes_of("signalled").is_empty());
}

#[test]
fn a_stopped_recorder_keeps_nobody_waiting() {
    let place = Place::new();
    // The worker goes on once it is let, so that the signal finds a recorder at work.
    let script = "n=0; while [ $n -lt 1500 ]; do echo $n; n=$((n+1)); done; read go < gate; \
                  while [ $n -lt 3000 ]; do echo $n; n=$((n+1)); done";
    let gate = place.0.path().join("gate");
    assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
    let mut child = place
        .command(&["-q", "run", "--task", "t", "--run", "stopped", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    let signal = |name: &str| {
        let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
        assert!(status.success());
    };
    signal("-TSTP");
    let stat = format!("/proc/{}/stat", child.id());
    wait_until("the stop", || {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    });
    // Stopped within a commit it would hold the lock, and this would wait for half a minute.
    assert_eq!(place.record("beside", "echo beside").status.code(), Some(0));
    signal("-CONT");
    fs::write(&gate, "go\n").unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!((first + &rest).lines().count(), 3000);
    place.ends(0, &["verify", "--deep"]);
}

#[test]
fn when_the_journal_fails_the_worker_goes_on_and_the_end_says_so() {
    if !strace_found() {
        return;
    }
    let place = Place::new();
    place.record("before", "echo kept");
    let output = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fdatasync",
            "-e",
            "inject=fdatasync:error=EIO:when=2",
        ])
        .arg(env!("CARGO_BIN_EXE_runwal"))
        .arg("--dir")
        .arg(place.data())
        .args(["-q", "run", "--task", "t", "--run", "r", "--", "sh", "-c", "echo one; echo two >&2; exit 7"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(text(&output.stdout), "one\n");
    let said = text(&output.stderr);
    assert!(said.contains("two\n") && said.contains("exit status: 7"), "{said}");
    // What was in doubt is settled by the next opening: it is there as a whole, or the run is ended
    // as interrupted. Either way it has one end.
    place.ends(0, &["recover"]);
    let ends = text(&place.ends(0, &["log", "t/r", "--kind", "lifecycle"]).stdout);
    assert_eq!(ends.matches(" step_").count(), 1, "{ends}");
    place.ends(0, &["verify", "--deep"]);
    assert_eq!(text(&place.ends(0, &["output", "t/before"]).stdout), "kept\n");
}

#[test]
fn a_journal_removed_while_it_is_written_is_told() {
    let place = Place::new();
    let script = format!("rm {}; echo x", place.segment(1).display());
    let output = place.record("r", &script);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(text(&output.stderr).contains("removed"), "{output:?}");
    for args in [&["verify"][..], &["runs"], &["info"], &["rebuild"], &["log"]] {
        place.ends(3, args);
    }
    assert_eq!(place.record("b", "true").status.code(), Some(125));
    place.ends(0, &["recover", "--accept-damage"]);
    assert_eq!(place.record("b", "true").status.code(), Some(0));
}

/// The directory is held open: what it is called meanwhile is nothing to whoever writes, and nobody makes
/// another one in its place.
#[test]
fn a_data_directory_that_is_moved_is_written_to_where_it_went() {
    let place = Place::new();
    place.record("before", "true");
    let moved = place.0.path().join("moved");
    let script = format!("echo one; mv {} {}; echo two", place.data().display(), moved.display());
    let output = place.record("r", &script);
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(0), "one\ntwo\n".to_owned()),
        "{output:?}"
    );
    assert!(!place.data().exists());
    let there = moved.to_str().unwrap();
    assert_eq!(text(&place.ends(0, &["--dir", there, "output", "t/r"]).stdout), "one\ntwo\n");
    place.ends(0, &["--dir", there, "verify", "--deep"]);
    place.ends(0, &["--dir", there, "rebuild", "--check"]);
}

#[test]
fn one_directory_under_several_names_is_one_journal() {
    let place = Place::new();
    fs::create_dir(place.0.path().join("beside")).unwrap();
    symlink(place.data(), place.0.path().join("link")).unwrap();
    place.record("before", "true");
    let names =
        [place.data().to_str().unwrap().to_owned(), "link".into(), "data".into(), "beside/../data".into()];
    let children: Vec<Child> = names
        .iter()
        .enumerate()
        .map(|(n, name)| {
            let run = format!("r{n}");
            let args = ["--dir", name, "-q", "run", "--task", "t", "--run", &run, "--", "seq", "2000"];
            place.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    place.ends(0, &["verify", "--deep"]);
    let wanted = (1..=2000).map(|n| format!("{n}\n")).collect::<Vec<_>>().concat();
    for n in 0..names.len() {
        assert_eq!(text(&place.ends(0, &["output", &format!("t/r{n}")]).stdout), wanted);
    }
}

#[test]
fn a_run_whose_folder_is_removed_meanwhile_is_recorded_all_the_same() {
    let place = Place::new();
    place.record("a", "echo one");
    let state = place.data().join("runs/t/a/state.json");
    fs::remove_file(&state).unwrap();
    // The worker takes the folders away that its own files are published to.
    let script = format!("rm -r {0}; echo two", place.data().join("runs").display());
    let output = place.record("b", &script);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "two\n".to_owned()), "{output:?}");
    place.ends(0, &["rebuild"]);
    place.ends(0, &["rebuild", "--check"]);
    assert_eq!(fs::read(place.data().join("runs/t/b/stdout.log")).unwrap(), b"two\n");
}

#[test]
fn a_stray_file_with_a_far_name_is_told_and_set_aside() {
    let place = Place::new();
    place.record("a", "echo one");
    fs::write(place.data().join("journal/3000000000.seg"), "").unwrap();
    fs::remove_file(place.data().join("journal/mark")).unwrap();
    place.ends(3, &["verify"]);
    assert_eq!(place.record("b", "true").status.code(), Some(125));
    place.ends(0, &["recover", "--accept-damage"]);
    assert_eq!(place.record("b", "true").status.code(), Some(0));
    place.ends(0, &["verify", "--deep"]);
    assert!(place.segment(2).exists() || !place.segment(3).exists());
}

/// Where numbers go on, it would be in the way in the middle of somebody's work.
#[test]
fn a_stray_file_ahead_is_told_by_whoever_opens_before_anything_is_started() {
    let place = Place::new();
    place.record("a", "echo one");
    fs::write(place.segment(12), "").unwrap();
    place.ends(3, &["verify"]);
    for args in [&["log"][..], &["runs"], &["output", "t/a"]] {
        place.ends(0, args);
    }
    let refused = place.record("b", "echo started > started");
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    let told = text(&refused.stderr);
    assert!(told.contains("--accept-damage"), "{told}");
    assert!(!place.0.path().join("started").exists());
    place.ends(3, &["recover"]);
    let set_aside = place.ends(0, &["recover", "--accept-damage"]);
    assert!(
        text(&set_aside.stdout).contains("12") || text(&set_aside.stderr).contains("12"),
        "{set_aside:?}"
    );
    assert!(!place.segment(12).exists() && !place.segment(2).exists());
    assert_eq!(place.record("b", "true").status.code(), Some(0));
    place.ends(0, &["verify", "--deep"]);
}

#[test]
fn the_last_lines_backwards_are_the_last_lines() {
    let place = Place::new();
    place.record("a", "seq 50");
    let all: Vec<String> = text(&place.ends(0, &["log"]).stdout).lines().map(str::to_owned).collect();
    let mut last: Vec<String> =
        text(&place.ends(0, &["log", "-r", "-n", "3"]).stdout).lines().map(str::to_owned).collect();
    last.reverse();
    assert_eq!(last, all[all.len() - 3..]);
    let cursor = format!("{}:{}", "0".repeat(32), u64::MAX);
    place.ends(2, &["log", "--after-cursor", &cursor]);
}

#[test]
fn a_timeout_ends_the_worker_also_while_nobody_reads_our_output() {
    let place = Place::new();
    let mut child = place
        .command(&[
            "-q",
            "run",
            "--task",
            "t",
            "--run",
            "unread",
            "--timeout",
            "3s",
            "--grace",
            "100ms",
            "--",
            "yes",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Nothing is read until the worker is gone.
    wait_until("the worker's start", || !processes_of("unread").is_empty());
    wait_until("the worker's end", || processes_of("unread").is_empty());
    let mut rest = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(124));
    let runs = place.json(0, &["-o", "json", "runs"]);
    assert_eq!((&runs[0]["status"], &runs[0]["signal"]), (&"failed".into(), &"SIGTERM".into()));
}
