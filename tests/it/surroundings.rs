//! The tool where its surroundings refuse: threads, descriptors, room in files, a full output.

#![expect(clippy::disallowed_methods, reason = "plays the user, who reads and damages files")]

use crate::cli::{Place, strace_found, text};
use std::fs;
use std::io::{BufRead, BufReader};
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
