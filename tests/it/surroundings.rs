//! The tool where its surroundings refuse: threads, descriptors, room in files, a full output.

use crate::cli::{Place, strace_found, text};
use std::path::Path;
use std::process::{Command, Stdio};

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
