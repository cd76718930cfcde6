//! The tool where its surroundings refuse: threads, descriptors, room in files, a full output.

#![expect(clippy::disallowed_methods, reason = "plays the user, who reads and damages files")]

use crate::cli::{Place, processes_of, strace_found, text, wait_until};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `runwal` behind another command's words, as `prlimit --nofile=9`.
fn behind(place: &Place, words: &[&str], program: &Path, args: &[&str]) -> Command {
    let bare = place.command(&[]);
    let Some((first, rest)) = words.split_first() else { return place.command(args) };
    let mut command = Command::new(first);
    command.args(rest).arg(program).args(args).stdin(Stdio::null());
    command.current_dir(bare.get_current_dir().unwrap());
    for (name, value) in bare.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

fn runwal() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_runwal"))
}

/// Whether a command can be run here; says so where it cannot.
fn works(words: &[&str]) -> bool {
    let works = Command::new(words[0]).args(&words[1..]).output().is_ok_and(|o| o.status.success());
    if !works {
        println!("skipped: `{}` does not work here", words.join(" "));
    }
    works
}

/// What came of recording a worker that says a word and then goes on until its input ends.
#[derive(Debug)]
struct Came {
    code: Option<i32>,
    said: bool,
    stderr: String,
}

/// Records such a worker, lets it go once its word has come through, and looks for processes of the
/// run before anything else could end them.
fn record_until_let_go(place: &Place, words: &[&str], program: &Path, run: &str) -> Came {
    let (out, err) = (place.0.path().join("out"), place.0.path().join("err"));
    // It also stays where nobody reads its word: only who ends it makes it go.
    let script = "trap '' PIPE; echo word; read go; exit 0";
    let args = ["-q", "run", "--task", "t", "--run", run, "--", "sh", "-c", script];
    let mut child = behind(place, words, program, &args)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take();
    let said = || fs::read(&out).unwrap() == b"word\n";
    wait_until("the worker's word, or the end", || said() || child.try_wait().unwrap().is_some());
    let said = said();
    if said {
        input = None;
    }
    let code = {
        wait_until("the end", || child.try_wait().unwrap().is_some());
        child.wait().unwrap().code()
    };
    assert_eq!(processes_of(run), Vec::<String>::new(), "{words:?}: a worker is left");
    drop(input);
    Came { code, said, stderr: fs::read_to_string(err).unwrap() }
}

/// What must be true whatever was refused: recorded properly, or failed as the engine does; and what
/// there is of the run is ended by the next opening.
fn check(place: &Place, words: &[&str], user: &[&str], run: &str, came: &Came) {
    match came.code {
        Some(0) => assert!(came.said, "{words:?}: {came:?}"),
        Some(125) => {
            assert!(!came.stderr.is_empty(), "{words:?}: failed without a word");
            // A worker that ran to its end is told of; any other was ended or never started.
            assert_eq!(came.said, came.stderr.contains("the worker ended with"), "{words:?}: {came:?}");
        }
        _ => panic!("{words:?}: {came:?}"),
    }
    if !place.data().join("journal").exists() {
        return;
    }
    for _ in 0..2 {
        let recovered = behind(place, user, runwal(), &["-o", "json", "recover"]);
        let recovered = { recovered }.output().unwrap();
        assert_eq!(recovered.status.code(), Some(0), "{words:?}: {recovered:?}");
    }
    place.ends(0, &["verify", "--deep"]);
    assert_eq!(place.json(0, &["-o", "json", "info"])[0]["openRuns"], 0, "{words:?}");
    let name = format!("t/{run}");
    if came.code == Some(0) {
        assert_eq!(text(&place.ends(0, &["output", &name]).stdout), "word\n", "{words:?}");
        let state: serde_json::Value =
            serde_json::from_slice(&place.ends(0, &["state", &name]).stdout).unwrap();
        assert_eq!(state["status"], "completed", "{words:?}");
    }
}

#[test]
fn with_too_few_threads_no_worker_is_left_and_nothing_is_half_recorded() {
    let place = Place::new();
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    // Root is exempt from the limit; a user of its own has no other processes that count.
    let id = (1_000_000_000 + std::process::id()).to_string();
    let (reuid, regid) = (format!("--reuid={id}"), format!("--regid={id}"));
    let user: Vec<&str> =
        if root { vec!["setpriv", &reuid, &regid, "--clear-groups"] } else { vec!["unshare", "-U"] };
    if !works(&[&user[..], &["prlimit", "--nproc=9", "true"]].concat()) {
        return;
    }
    // The directory that the tests were built in may be closed to that user. Copied by a process of
    // its own: a descriptor of ours would be inherited by others, and what is open is not executed.
    let program = place.0.path().join("runwal");
    assert!(Command::new("cp").arg(runwal()).arg(&program).status().unwrap().success());
    if root {
        let id = id.parse().unwrap();
        chown(place.0.path(), Some(id), Some(id)).unwrap();
    }
    let mut told = String::new();
    for n in 0..32 {
        let limit = format!("--nproc={n}");
        let words = [&user[..], &["prlimit", &limit]].concat();
        let run = format!("threads-{n}");
        let came = record_until_let_go(&place, &words, &program, &run);
        check(&place, &words, &user, &run, &came);
        told += &came.stderr;
        if came.code == Some(0) {
            // Which of them is the one too many is up to the scheduler; the next test takes each in turn.
            assert!(told.contains("starting the ") && told.contains(" thread"), "{told}");
            return;
        }
    }
    panic!("nothing was recorded with 31 threads");
}

#[test]
fn whichever_thread_cannot_be_started_no_worker_is_left() {
    if !strace_found() {
        return;
    }
    let place = Place::new();
    let mut told = String::new();
    for n in 1..32 {
        let inject = format!("inject=clone,clone3:error=EAGAIN:when={n}");
        let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=clone,clone3", "-e", &inject];
        let run = format!("thread-{n}");
        let came = record_until_let_go(&place, &words, runwal(), &run);
        check(&place, &words, &[], &run, &came);
        told += &came.stderr;
        if came.code == Some(0) {
            for what in ["publishing thread", "watch for signals", "journal thread", "threads that watch"] {
                assert!(told.contains(what), "{what}: {told}");
            }
            return;
        }
    }
    panic!("nothing was recorded with 31 threads and processes");
}

#[test]
fn with_too_few_descriptors_no_worker_is_left_and_nothing_is_half_recorded() {
    if !works(&["prlimit", "--nofile=32", "true"]) {
        return;
    }
    let mut good = 0;
    for n in 3..128 {
        let place = Place::new();
        let limit = format!("--nofile={n}");
        let words = ["prlimit", &limit];
        let run = format!("descriptors-{n}");
        let came = record_until_let_go(&place, &words, runwal(), &run);
        if came.stderr.contains("while loading shared libraries") {
            continue;
        }
        check(&place, &words, &[], &run, &came);
        good = if came.code == Some(0) && came.stderr.is_empty() { good + 1 } else { 0 };
        if good == 3 {
            return;
        }
    }
    panic!("nothing was recorded with 127 descriptors");
}

#[test]
fn a_worker_that_cannot_be_watched_is_ended_and_told() {
    if !strace_found() {
        return;
    }
    let place = Place::new();
    let inject = ["-e", "trace=pidfd_open", "-e", "inject=pidfd_open:error=ENOSYS"];
    let words = [&["strace", "-f", "-qq", "-o", "/dev/null"][..], &inject].concat();
    let came = record_until_let_go(&place, &words, runwal(), "unwatched");
    assert_eq!(came.code, Some(125), "{came:?}");
    assert!(!came.said && came.stderr.contains("cannot be watched"), "{came:?}");
    check(&place, &words, &[], "unwatched", &came);
    let state: serde_json::Value =
        serde_json::from_slice(&place.ends(0, &["state", "t/unwatched"]).stdout).unwrap();
    assert_eq!(state["status"], "interrupted");
}

/// A recording that fails before its worker is started ends with 125 and says so.
fn assert_not_started(place: &Place, mut command: Command) {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{command:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{command:?}: {output:?}");
    let told = text(&output.stderr);
    assert!(told.ends_with("runwal: nothing was started\n"), "{command:?}: {told}");
    let error: serde_json::Value = serde_json::from_str(told.lines().next().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "io", "{told}");
    if place.data().exists() {
        let found = place.json(0, &["-o", "json", "recover"]);
        assert_eq!(found[0]["interruptedRuns"], serde_json::json!([]), "{command:?}");
    }
}

#[test]
fn what_fails_before_the_worker_starts_ends_with_125() {
    let place = Place::new();
    let args = ["-o", "json", "run", "--", "echo", "started"];
    let mut gone = Command::new("sh");
    gone.args(["-c", "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"", "sh"]);
    gone.arg(runwal()).args(args).current_dir(place.0.path()).env("RUNWAL_DIR", place.data());
    assert_not_started(&place, gone);
    if !strace_found() {
        return;
    }
    // What names are made up from; what signals and cancelling are heard through.
    for call in ["getrandom:error=ENOSYS", "eventfd2:error=EMFILE", "socketpair:error=EMFILE"] {
        let (trace, _) = call.split_once(':').unwrap();
        let (trace, inject) = (format!("trace={trace}"), format!("inject={call}"));
        let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        assert_not_started(&place, behind(&place, &words, runwal(), &args));
    }
}

#[test]
fn a_directory_whose_maker_may_have_died_is_made_durable_first() {
    if !strace_found() {
        return;
    }
    let place = Place::new();
    let parent = fs::canonicalize(place.0.path()).unwrap();
    fs::create_dir(place.data()).unwrap();
    let trace = place.0.path().join("trace");
    let record = || {
        let status = Command::new("strace")
            .args(["-f", "-qq", "-y", "-e", "trace=fsync,fdatasync,syncfs,openat,openat2,mkdirat", "-o"])
            .arg(&trace)
            .arg(runwal())
            .arg("--dir")
            .arg(place.data())
            .args(["-q", "run", "--", "true"])
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        fs::read_to_string(&trace).unwrap()
    };
    let of_parent = format!("<{}>)", parent.display());
    let synced = |line: &str| line.contains(" fsync(") && line.contains(&of_parent);
    let first = record();
    let sync = first.lines().position(synced).unwrap_or_else(|| panic!("never synced:\n{first}"));
    let makes = |line: &str| line.contains("O_CREAT") || line.contains(" mkdirat(") && line.ends_with("= 0");
    assert!(first.lines().position(makes).unwrap() > sync, "something was made in it before:\n{first}");
    // Once there is a journal, its name has been synced.
    assert!(!record().lines().any(synced));
}

#[test]
fn a_new_directory_is_made_durable_before_anything_is_made_in_it() {
    if !strace_found() {
        return;
    }
    let place = Place::new();
    let trace = place.0.path().join("trace");
    let status = Command::new("strace")
        .args(["-f", "-qq", "-y", "-e", "trace=fsync,openat,openat2,mkdirat", "-o"])
        .arg(&trace)
        .arg(runwal())
        .args(["--dir", place.data().to_str().unwrap(), "-q", "run", "--", "true"])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let trace = fs::read_to_string(&trace).unwrap();
    let parent = fs::canonicalize(place.0.path()).unwrap();
    let (of_parent, inside) = (format!("<{}>)", parent.display()), format!("<{}/data>", parent.display()));
    let sync = trace.lines().position(|line| line.contains(" fsync(") && line.contains(&of_parent));
    let makes = |line: &str| {
        (line.contains("O_CREAT") || line.contains(" mkdirat("))
            && line.contains(&inside)
            && !line.contains("= -1")
    };
    let first = trace.lines().position(makes);
    assert!(first.is_some() && sync.is_some() && sync < first, "{sync:?}, {first:?}:\n{trace}");
}

#[test]
fn files_of_one_run_that_cannot_be_written_hold_up_no_other() {
    let place = Place::new();
    place.record("a", "echo one");
    place.record("b", "echo two");
    let before = place.tree();
    let state = |run: &str| place.data().join(format!("runs/t/{run}/state.json"));
    // A folder in the place of a file is moved aside, with what is in it; here there is nowhere to.
    let quarantine = place.data().join("journal/quarantine");
    fs::remove_file(state("a")).unwrap();
    fs::create_dir(state("a")).unwrap();
    fs::write(state("a").join("mine"), "precious").unwrap();
    fs::write(&quarantine, "no folder").unwrap();
    fs::write(state("b"), "edited").unwrap();
    let output = place.record("c", "echo three");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "three\n".to_owned()), "{output:?}");
    let told = place.run(&["recover"]);
    assert_eq!(told.status.code(), Some(7), "{told:?}");
    assert!(text(&told.stderr).contains("repairing files"), "{told:?}");
    assert_eq!(fs::read_to_string(state("a").join("mine")).unwrap(), "precious");
    assert_eq!(fs::read(state("b")).unwrap(), before["/t/b/state.json"], "b's files are mended all the same");
    fs::remove_file(&quarantine).unwrap();
    place.ends(0, &["recover"]);
    assert_eq!(fs::read(state("a")).unwrap(), before["/t/a/state.json"]);
    place.ends(0, &["rebuild", "--check"]);
    let aside = fs::read_dir(&quarantine).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_to_string(aside.join("mine")).unwrap(), "precious");
}

#[test]
fn what_cannot_be_noted_in_the_cache_stops_no_recording() {
    let place = Place::new();
    place.record("a", "echo one");
    place.record("b", "head -c 400000 /dev/urandom");
    place.record("c", "echo three");
    assert!(place.segment(2).exists());
    let projected = place.data().join("cache/projected");
    let _ = fs::remove_file(&projected);
    fs::create_dir_all(projected.join("mine")).unwrap();
    let output = place.record("d", "echo four");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "four\n".to_owned()), "{output:?}");
    let told = place.run(&["recover"]);
    assert_eq!(told.status.code(), Some(7), "{told:?}");
    assert!(text(&told.stderr).contains("noting what is projected"), "{told:?}");
    fs::remove_dir_all(&projected).unwrap();
    place.ends(0, &["recover"]);
    assert!(fs::metadata(&projected).unwrap().is_file());
}

fn full() -> fs::File {
    fs::File::options().write(true).open("/dev/full").unwrap()
}

/// Everything that reads, in both formats.
const READERS: &[&[&str]] = &[
    &["log"],
    &["log", "-r"],
    &["log", "-n", "2"],
    &["log", "-f", "t/r"],
    &["output", "@last"],
    &["output", "-f", "t/r"],
    &["output", "t/unended"],
    &["info"],
    &["runs"],
    &["state", "t/r"],
    &["verify"],
    &["verify", "--deep"],
    &["recover"],
    &["recover", "--dry-run"],
    &["--help"],
    &["--version"],
];

#[test]
fn a_full_output_is_told_and_a_closed_one_is_not() {
    let place = Place::new();
    place.record("unended", "printf unended");
    place.record("r", "echo out; echo err >&2");
    let assert_told = |args: &[&str], output: &Output| {
        assert_eq!(output.status.code(), Some(7), "{args:?}: {output:?}");
        let told = text(&output.stderr);
        assert!(told.contains("writing the output: No space left on device"), "{args:?}: {told}");
    };
    let assert_quiet = |args: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = place.command(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert!(!text(&output.stderr).contains("runwal:"), "{args:?}: {output:?}");
    };
    for format in ["short", "json"] {
        for args in READERS {
            let args = [&["-o", format], *args].concat();
            let output = place.command(&args).stdout(full()).stderr(Stdio::piped()).output().unwrap();
            assert_told(&args, &output);
            assert_quiet(&args);
        }
        // What they would say depends on the files.
        for args in [&["rebuild", "--check"][..], &["rebuild"]] {
            let args = [&["-o", format], args].concat();
            fs::write(place.data().join("runs/t/r/state.json"), "edited").unwrap();
            let output = place.command(&args).stdout(full()).stderr(Stdio::piped()).output().unwrap();
            assert_told(&args, &output);
            fs::write(place.data().join("runs/t/r/state.json"), "edited").unwrap();
            assert_quiet(&args);
        }
    }
    // Where stderr is full as well there is nobody to tell.
    let status = place.command(&["log"]).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(7));
    let status = place.command(&["state", "nobody"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_worker_whose_output_cannot_be_passed_on_is_recorded_all_the_same() {
    let place = Place::new();
    let record = |run: &str, script: &str| {
        let mut command =
            place.command(&["-q", "run", "--task", "t", "--run", run, "--", "sh", "-c", script]);
        command.stderr(Stdio::piped());
        command
    };
    let output = record("hi", "echo hi; exit 3").stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stderr).contains("the worker's stdout cannot be passed on"), "{output:?}");
    assert_eq!(text(&place.ends(0, &["output", "t/hi"]).stdout), "hi\n");
    // Who goes on writing is told as by a closed pipe.
    let output = record("on", "exec head -c 100000000 /dev/zero").stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 13), "{output:?}");
    let state: serde_json::Value = serde_json::from_slice(&place.ends(0, &["state", "t/on"]).stdout).unwrap();
    assert_eq!((&state["status"], &state["signal"]), (&"failed".into(), &"SIGPIPE".into()));
    let status = record("err", "echo out; echo err >&2; exit 4").stderr(full()).output().unwrap();
    assert_eq!((status.status.code(), text(&status.stdout)), (Some(4), "out\n".to_owned()));
    let again = place.ends(0, &["output", "t/err"]);
    assert_eq!((text(&again.stdout), text(&again.stderr)), ("out\n".to_owned(), "err\n".to_owned()));
    place.ends(0, &["verify", "--deep"]);
}

#[test]
fn a_limit_on_the_length_of_files_is_told_and_takes_nothing_that_was_acknowledged() {
    if !works(&["prlimit", "--fsize=0", "true"]) {
        return;
    }
    let lines = |place: &Place| -> Vec<String> {
        text(&place.run(&["log", "-o", "json"]).stdout).lines().map(str::to_owned).collect()
    };
    let expected = (1..=2000).map(|n| format!("{n}\n")).collect::<Vec<_>>().concat();
    for before in [false, true] {
        let place = Place::new();
        let mut ended_well = false;
        let mut limits: Vec<u64> = (0..12).map(|i| 512 << i).collect();
        limits.extend([0, 1, 2, 100]);
        limits.sort_unstable();
        for n in limits {
            if !before && place.data().exists() {
                fs::remove_dir_all(place.data()).unwrap();
            } else if before && !place.data().exists() {
                place.record("before", "echo kept");
            }
            let limit = format!("--fsize={n}");
            let words = ["prlimit", limit.as_str()];
            let run = format!("r{n}");
            let args = ["-q", "run", "--task", "t", "--run", &run, "--", "seq", "2000"];
            let output = behind(&place, &words, runwal(), &args).output().unwrap();
            assert!(matches!(output.status.code(), Some(0 | 125)), "{n}: {output:?}");
            ended_well = output.status.success();
            assert!(ended_well || text(&output.stderr).contains("File too large"), "{n}: {output:?}");
            if !place.data().exists() {
                continue;
            }
            let promised = lines(&place);
            for args in [&["recover"][..], &["rebuild"]] {
                let output = behind(&place, &words, runwal(), args).output().unwrap();
                assert!(matches!(output.status.code(), Some(0 | 7)), "{n}: {args:?}: {output:?}");
            }
            place.ends(0, &["recover"]);
            place.ends(0, &["verify", "--deep"]);
            assert_eq!(lines(&place)[..promised.len()], promised[..], "{n}: what a reader saw stays");
            if ended_well {
                assert_eq!(text(&place.ends(0, &["output", &format!("t/{run}")]).stdout), expected, "{n}");
            }
            if before {
                assert_eq!(text(&place.ends(0, &["output", "t/before"]).stdout), "kept\n", "{n}");
            }
        }
        assert!(ended_well, "the largest limit is none");
    }
    // The worker is ended by the limit as it would be without a recorder.
    let place = Place::new();
    let args = ["-q", "run", "--", "truncate", "-s", "2M", "long"];
    let output = behind(&place, &["prlimit", "--fsize=1048576"], runwal(), &args).output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 25), "{output:?}");
}

/// The masks that the kernel shows of a process, by name.
fn mask(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[test]
fn what_is_ignored_stays_ignored_as_under_nohup() {
    const HUP_INT_TERM: [u64; 3] = [1, 2, 1 << 14];
    let place = Place::new();
    let shell = ["sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh"];
    let args = ["-q", "run", "--task", "t", "--run", "nohup", "--", "sh", "-c", "echo $$; read go; exit 0"];
    let mut child =
        behind(&place, &shell, runwal(), &args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut worker = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut worker).unwrap();
    let worker = worker.trim().parse().unwrap();
    assert_eq!(HUP_INT_TERM.map(|bit| mask(child.id(), "SigIgn:") & bit != 0), [true, true, false]);
    assert_eq!(HUP_INT_TERM.map(|bit| mask(child.id(), "SigCgt:") & bit != 0), [false, false, true]);
    assert_eq!(HUP_INT_TERM.map(|bit| mask(worker, "SigIgn:") & bit != 0), [true, true, false]);
    assert!(Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap().success());
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// What the operating system was asked, in order: the calls of a whole recorded command, with the
/// paths behind their descriptors.
fn calls(place: &Place, run: &str) -> Vec<String> {
    let trace = place.0.path().join("trace");
    let calls = "trace=pwrite64,pwritev,fdatasync,fsync,syncfs,renameat2,renameat,openat2,mkdirat";
    let words = ["strace", "-f", "-qq", "-y", "-s", "8", "-o", trace.to_str().unwrap(), "-e", calls];
    let args = ["-q", "run", "--task", "t", "--run", run, "--", "seq", "20000"];
    assert!(behind(place, &words, runwal(), &args).stdout(Stdio::null()).status().unwrap().success());
    fs::read_to_string(&trace).unwrap().lines().map(str::to_owned).collect()
}

/// A receipt, and the mark that tells others of it, stands on syncs that the operating system was
/// really asked for.
#[test]
fn nothing_is_called_durable_before_the_operating_system_has_synced_it() {
    if !strace_found() {
        return;
    }
    let place = Place::new();
    for run in ["first", "second"] {
        let (mut written, mut named, mut marks) = (None, None, 0);
        for call in calls(&place, run) {
            let of_segment = call.contains("/journal/0") || call.contains("/journal/tmp-");
            if call.contains(" pwrite") && of_segment {
                written = Some(call);
            } else if call.contains(" fdatasync(") && of_segment {
                written = None;
            } else if call.contains(" renameat2(") && call.contains(".seg") {
                named = Some(call);
            } else if call.contains(" fsync(") && call.contains("/journal>") {
                named = None;
            } else if call.contains("/journal/mark>")
                && call.contains(" pwrite64(")
                && !call.contains(", 40, 1024)")
            {
                assert_eq!((&written, &named), (&None, &None), "{call} comes too early");
                marks += 1;
            }
        }
        assert!(marks > 1, "{marks}");
    }
}

/// Any call may be interrupted by a signal. Only a sync is not asked for again: whether it took effect
/// is not known.
#[test]
fn calls_that_a_signal_interrupts_are_made_again() {
    if !strace_found() {
        return;
    }
    let place = Place::new();
    let calls = "openat2,pwrite64,pwritev,flock,ftruncate";
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error=EINTR:when=1+2"));
    let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    for run in ["first", "second"] {
        let args = ["-q", "run", "--task", "t", "--run", run, "--", "echo", "word"];
        let output = behind(&place, &words, runwal(), &args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&place.ends(0, &["output", &format!("t/{run}")]).stdout), "word\n");
    }
    place.ends(0, &["verify", "--deep"]);
}

/// One run out of many is found by its name, and read, without the others: by what the system was asked for. The end
/// of the newest segment, of which no index was kept yet, is looked at.
#[test]
fn one_run_out_of_many_costs_its_own_bytes() {
    if !strace_found() {
        return;
    }
    const RUNS: u64 = 24;
    const LEN: u64 = 600_000;
    const AT_MOST: u64 = 2 * LEN + (4 << 20);
    let place = Place::new();
    let noise = place.0.path().join("noise");
    let script = format!("head -c {LEN} /dev/urandom > {0}; cat {0}", noise.display());
    for run in 0..RUNS {
        place.ends(0, &["-q", "run", "--task", "t", "--run", &format!("r{run}"), "--", "sh", "-c", &script]);
    }
    let trace = place.0.path().join("trace");
    let words = ["strace", "-f", "-qq", "-y", "-o", trace.to_str().unwrap(), "-e", "trace=read,pread64"];
    for name in ["t/r3", "t/r23", "@last"] {
        let output = behind(&place, &words, runwal(), &["output", name]).output().unwrap();
        assert!(output.status.success() && output.stdout.len() as u64 == LEN, "{output:?}");
        let text = fs::read_to_string(&trace).unwrap();
        let of_journal = text.lines().filter(|line| line.contains("/journal/"));
        let read = of_journal.filter_map(|line| line.rsplit_once(" = ")?.1.parse::<u64>().ok()).sum::<u64>();
        assert!((LEN..AT_MOST).contains(&read), "{read} bytes were read for {name}");
    }
}

/// Whoever traces a worker is told of its end before who started it.
#[test]
fn a_worker_that_is_traced_is_recorded_to_its_end() {
    if !strace_found() {
        return;
    }
    let place = Place::new();
    let words = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=renameat2"];
    for n in 0..20 {
        let run = format!("r{n}");
        let args = ["-q", "run", "--task", "t", "--run", &run, "--", "true"];
        let output = behind(&place, &words, runwal(), &args).output().unwrap();
        assert!(output.status.success(), "{n}: {output:?}");
    }
}
