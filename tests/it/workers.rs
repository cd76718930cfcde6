//! Workers of every kind: what they print, how they end, what they leave.

#![expect(clippy::disallowed_methods, reason = "looks at the disk behind the library's back")]

use crate::cli::{Place, processes_of, text};
use runwal::engine::{Engine, Options};
use runwal::record::{Channel, Id};
use runwal::run::{Cancel, Outcome, Output, ProcessOptions, RunRequest, record_process};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Duration;

fn bare(place: &Place, script: &str) -> std::process::Output {
    Command::new("bash")
        .args(["-c", script])
        .current_dir(place.0.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn recorded(place: &Place, run: &str, options: &[&str], command: &[&str]) -> std::process::Output {
    let args = [&["-q", "run", "--task", "t", "--run", run], options, &["--"], command].concat();
    place.command(&args).output().unwrap()
}

fn state(place: &Place, run: &str) -> Value {
    serde_json::from_slice(&place.ends(0, &["state", &format!("t/{run}")]).stdout).unwrap()
}

/// The data of an event of a run.
fn event(place: &Place, run: &str, kind: &str) -> Value {
    let log = place.ends(0, &["log", &format!("t/{run}"), "-o", "json"]).stdout;
    let lines = text(&log);
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut found: Vec<_> = events.filter(|event| event["type"] == kind).collect();
    found.pop().unwrap_or_else(|| panic!("{kind} is missing: {lines}"))
}

/// What a worker prints, byte for byte, and its exit code, with and without a recorder.
#[test]
fn workers_are_recorded_as_they_are() {
    let place = Place::new();
    // A script, the status that comes of it, and the signal.
    let table = [
        ("true", "completed", None),
        ("exit 7", "failed", None),
        ("exit 255", "failed", None),
        ("exit 124", "failed", None),
        ("echo out; echo err >&2", "completed", None),
        ("exec >&-; echo lost; exit 3", "failed", None),
        ("exec 2>&-; echo out", "completed", None),
        ("exec >&- 2>&-; exit 0", "completed", None),
        ("kill -SEGV $$", "failed", Some("SIGSEGV")),
        ("kill -KILL $$", "failed", Some("SIGKILL")),
        ("kill -TERM $$", "failed", Some("SIGTERM")),
        ("kill -HUP $$", "failed", Some("SIGHUP")),
        ("kill -INT $$", "failed", Some("SIGINT")),
        ("kill -PIPE $$", "failed", Some("SIGPIPE")),
        ("kill -USR1 $$", "failed", Some("SIGUSR1")),
        ("for i in 1 2 3 4 5; do printf 'step %s\\r' $i; done; echo", "completed", None),
        ("printf 'a\\0b\\0'", "completed", None),
        ("printf '\\377\\376\\x80 \\xc3\\x28 \\xed\\xa0\\x80'", "completed", None),
        ("printf '\\033[31mred\\033[0m \\033]0;title\\007 \\u202e'", "completed", None),
        ("head -c 300000 /dev/zero | tr '\\0' x", "completed", None),
        ("seq 1 20000; seq 1 2000 >&2", "completed", None),
        ("(echo child; exit 0) & wait; echo parent", "completed", None),
        ("exec 3>&1; (for i in 1 2 3; do echo late $i; done >&3) & exit 5", "failed", None),
        ("yes | head -n 1000", "completed", None),
        ("read x; echo \"got $x\"; exit 9", "failed", None),
    ];
    for (n, (script, status, signal)) in table.into_iter().enumerate() {
        let run = format!("kind-of-worker-{n}");
        let (plain, ours) = (bare(&place, script), recorded(&place, &run, &[], &["bash", "-c", script]));
        use std::os::unix::process::ExitStatusExt;
        let code = plain.status.code().unwrap_or_else(|| 128 + plain.status.signal().unwrap());
        assert_eq!(ours.status.code(), Some(code), "{script}");
        assert!(
            ours.stdout == plain.stdout,
            "{script}: {} and {} bytes",
            ours.stdout.len(),
            plain.stdout.len()
        );
        assert!(ours.stderr == plain.stderr, "{script}: {:?} {:?}", text(&ours.stderr), text(&plain.stderr));
        let again = place.ends(0, &["output", &format!("t/{run}")]);
        assert!(again.stdout == plain.stdout && again.stderr == plain.stderr, "{script}");
        let state = state(&place, &run);
        let exit_code = plain.status.code().map_or(Value::Null, Into::into);
        assert_eq!((&state["status"], &state["exitCode"]), (&status.into(), &exit_code), "{script}");
        assert_eq!(state["signal"], signal.map_or(Value::Null, Into::into), "{script}");
        assert!(processes_of(&run).is_empty(), "{script}");
    }
    place.ends(0, &["verify", "--deep"]);
}

#[test]
fn what_cannot_be_started_is_a_failed_run() {
    let place = Place::new();
    std::fs::write(place.0.path().join("plain"), "no program").unwrap();
    let table =
        [("./missing", 127), ("surely-no-such-program", 127), ("./plain", 126), (".", 126), ("/", 126)];
    for (n, (command, code)) in table.into_iter().enumerate() {
        let run = format!("r{n}");
        let output = recorded(&place, &run, &[], &[command]);
        assert_eq!(output.status.code(), Some(code), "{command}: {output:?}");
        assert!(text(&output.stderr).contains(command), "{command}");
        let state = state(&place, &run);
        assert_eq!((&state["status"], &state["pid"]), (&"failed".into(), &Value::Null), "{command}");
        assert!(state["summary"].as_str().unwrap().contains("Could not start"), "{state}");
    }
    place.ends(0, &["verify", "--deep"]);
}

#[test]
fn a_worker_that_does_not_hear_is_ended_after_its_grace_with_all_it_started() {
    let place = Place::new();
    let script = "trap '' TERM; sleep 1000 & echo on; while :; do wait; done";
    let output =
        recorded(&place, "deaf-worker", &["--timeout", "100ms", "--grace", "100ms"], &["bash", "-c", script]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(124), "on\n"));
    let state = state(&place, "deaf-worker");
    assert_eq!((&state["status"], &state["signal"]), (&"failed".into(), &"SIGKILL".into()));
    assert!(state["summary"].as_str().unwrap().starts_with("Timed out after"), "{state}");
    assert_eq!(event(&place, "deaf-worker", "worker_exited")["data"]["outcome"], "timed_out");
    assert!(processes_of("deaf-worker").is_empty());
}

#[test]
fn a_signal_to_the_recorder_is_handed_on_and_the_run_is_cancelled() {
    for (signal, name, code) in [("INT", "SIGINT", 130), ("TERM", "SIGTERM", 143), ("HUP", "SIGHUP", 129)] {
        let place = Place::new();
        let mut child = place
            .command(&[
                "-q",
                "run",
                "--task",
                "t",
                "--run",
                "r",
                "--",
                "sh",
                "-c",
                "echo on; exec sleep 1000",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut on = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut on).unwrap();
        let sent =
            Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        let state = state(&place, "r");
        assert_eq!((&state["status"], &state["signal"]), (&"cancelled".into(), &name.into()), "{signal}");
        assert_eq!(event(&place, "r", "step_cancelled")["level"], "warn");
    }
}

#[test]
fn a_storm_of_signals_ends_the_run_once() {
    let place = Place::new();
    let script = "trap '' TERM INT HUP; echo on; while :; do sleep 0.01; done";
    let args = ["-q", "run", "--task", "t", "--run", "storm", "--grace", "300ms", "--", "sh", "-c", script];
    let mut child = place.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut on = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut on).unwrap();
    let recorder = rustix::process::Pid::from_child(&child);
    let mut sent = 0;
    while child.try_wait().unwrap().is_none() {
        for signal in
            [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP]
        {
            sent += u32::from(rustix::process::kill_process(recorder, signal).is_ok());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(129 | 130 | 137 | 143)), "{code:?}");
    assert!(sent > 30, "{sent} were sent");
    assert_eq!(state(&place, "storm")["status"], "cancelled");
    let log = text(&place.ends(0, &["log", "t/storm", "-o", "json", "--kind", "lifecycle"]).stdout);
    assert_eq!(log.matches("\"step_cancelled\"").count(), 1, "{log}");
    assert!(processes_of("storm").is_empty());
    let recovered = place.json(0, &["-o", "json", "recover"]);
    assert_eq!(recovered[0]["interruptedRuns"], serde_json::json!([]));
    place.ends(0, &["verify", "--deep"]);
}

/// What keeps a pipe open cannot hold up the end for long; what is left running is named.
#[test]
fn what_a_worker_leaves_running_stays_and_is_named() {
    let place = Place::new();
    let table = [
        // A grandchild that keeps stdout, one with output of its own in a session of its own, none.
        ("sleep 1000 & echo $!; exit 4", 4, false, 1),
        ("setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!", 0, true, 1),
        ("sleep 1000 >/dev/null 2>&1 & echo $!; sleep 1000 >/dev/null 2>&1 & echo $!", 0, true, 2),
        ("echo", 0, true, 0),
    ];
    for (n, (script, code, drained, left)) in table.into_iter().enumerate() {
        let run = format!("r{n}");
        let output = recorded(&place, &run, &[], &["bash", "-c", script]);
        assert_eq!(output.status.code(), Some(code), "{script}");
        let exited = event(&place, &run, "worker_exited");
        assert_eq!(
            (&exited["data"]["drained"], &exited["data"]["leftRunningCount"]),
            (&drained.into(), &left.into()),
            "{script}: {exited}"
        );
        let mut named: Vec<String> =
            exited["data"]["leftRunning"].as_array().unwrap().iter().map(|l| l["pid"].to_string()).collect();
        let mut pids: Vec<String> = text(&output.stdout).split_whitespace().map(str::to_owned).collect();
        named.sort();
        pids.sort();
        assert_eq!(named, pids, "{script}");
        for pid in pids {
            assert!(
                Command::new("kill").args(["-KILL", &pid]).status().unwrap().success(),
                "{script}: {pid} is gone"
            );
        }
    }
}

#[test]
fn how_long_and_how_much_it_took_is_recorded() {
    let place = Place::new();
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; head -c 40000000 /dev/zero | tail -c 40000000 | wc -c";
    assert!(recorded(&place, "r", &[], &["bash", "-c", script]).status.success());
    let data = event(&place, "r", "worker_exited")["data"].clone();
    let number = |key: &str| data[key].as_u64().unwrap_or_else(|| panic!("{key}: {data}"));
    assert!(number("userMs") + number("systemMs") > 0, "{data}");
    assert!(number("durationMs") > 0, "{data}");
    assert!(number("maxRssBytes") > 40_000_000, "what it waited for counts too: {data}");
}

/// Passes on only once the worker is gone.
struct Late(Option<String>);

impl Output for Late {
    fn write(&mut self, _: Channel, bytes: &[u8], _: &dyn Fn() -> bool) -> std::io::Result<()> {
        let line = || text(bytes).lines().next().unwrap().to_owned();
        let worker = self.0.get_or_insert_with(line);
        let stat = || std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
        while !stat().is_empty() && !stat().contains(") Z ") {
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// However long passing on takes: what the worker wrote is read to its end.
#[test]
fn a_slow_reader_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = Engine::open(dir.path().join("data"), Options::default()).unwrap();
    let id = |text: &str| Id::new(text).unwrap();
    let mut request = RunRequest::new(id("t"), id("r"), id("s"));
    let script = "echo $$; exec seq 100000";
    request.command = ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
    let options = ProcessOptions { drain: Duration::ZERO, ..ProcessOptions::default() };
    let cancel = Cancel::new().unwrap();
    let result = record_process(&engine, request, &options, &mut Late(None), &cancel).unwrap();
    assert_eq!(result.run.counts.channel_lines, [100_001, 0]);
}

#[test]
fn a_stop_that_comes_before_the_worker_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = Engine::open(dir.path().join("data"), Options::default()).unwrap();
    let id = |text: &str| Id::new(text).unwrap();
    let mut request = RunRequest::new(id("t"), id("r"), id("s"));
    let started = dir.path().join("started");
    request.command = vec![b"touch".to_vec(), started.to_str().unwrap().as_bytes().to_vec()];
    let cancel = Cancel::new().unwrap();
    cancel.cancel(15);
    let options = ProcessOptions::default();
    let result = record_process(&engine, request, &options, &mut Late(None), &cancel).unwrap();
    assert_eq!((result.run.outcome, result.status, cancel.signal()), (Outcome::Cancelled, None, 15));
    assert!(!started.exists());
}

/// Who never reads does not keep a run from ending whose time is up.
#[test]
fn a_reader_that_is_stuck_holds_up_no_timeout() {
    let place = Place::new();
    let args =
        ["-q", "run", "--task", "t", "--run", "r", "--timeout", "100ms", "--grace", "100ms", "--", "yes"];
    let mut child = place.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let unread = child.stdout.take().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(124));
    drop(unread);
    assert_eq!(state(&place, "r")["status"], "failed");
    place.ends(0, &["verify", "--deep"]);
}

/// Whether our stdout blocks is for those to say who share it.
#[test]
fn a_stdout_that_does_not_block_gets_everything() {
    let place = Place::new();
    let (mut read, write) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    let args = ["-q", "run", "--task", "t", "--run", "r", "--", "seq", "100000"];
    let mut child = place.command(&args).stdout(write).spawn().unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut read, &mut bytes).unwrap();
    assert_eq!((child.wait().unwrap().code(), bytes.len()), (Some(0), 588_895));
}

#[test]
fn an_artifact_too_long_for_a_digest_is_listed_without_one() {
    let place = Place::new();
    let script = "truncate -s 1T \"$RUNWAL_ARTIFACTS/sparse\"; echo x > \"$RUNWAL_ARTIFACTS/a\"";
    assert!(recorded(&place, "r", &[], &["sh", "-c", script]).status.success());
    let listed = event(&place, "r", "step_completed")["data"]["artifacts"].clone();
    assert_eq!((&listed[1]["bytes"], &listed[1]["digest"]), (&(1_u64 << 40).into(), &Value::Null));
    assert!(listed[0]["digest"].is_string(), "{listed}");
    assert!(event(&place, "r", "artifact_skipped")["message"].as_str().unwrap().contains("sparse"));
}
