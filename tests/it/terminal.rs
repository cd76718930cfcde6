//! What a person at a terminal sees and types, driven through a pseudo-terminal with a shell on it:
//! as without a recorder.

use pty_process::Size;
use pty_process::blocking::{Command, Pts, Pty, open};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::process::Child;
use tempfile::TempDir;

/// After how long without a byte a test is given up.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
const PROMPT: &str = "ready> ";

/// A terminal with an interactive shell on it.
struct Terminal {
    pty: Pty,
    shell: Child,
    dir: TempDir,
    seen: String,
}

impl Terminal {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (pty, pts): (Pty, Pts) = open().unwrap();
        pty.resize(Size::new(24, 80)).unwrap();
        let shell = Command::new("bash")
            .args(["--norc", "--noprofile", "-i"])
            .current_dir(dir.path())
            .env("PS1", PROMPT)
            .env("TERM", "xterm")
            .env("HISTFILE", "")
            .env("RUNWAL", env!("CARGO_BIN_EXE_runwal"))
            .env_remove("RUNWAL_DIR")
            .spawn(pts)
            .unwrap();
        let mut terminal = Self { pty, shell, dir, seen: String::new() };
        terminal.expect(PROMPT);
        terminal
    }

    fn send(&mut self, keys: &str) {
        self.pty.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until `wanted` has come; answers with everything up to its end.
    fn expect(&mut self, wanted: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.seen.find(wanted) {
                let rest = self.seen.split_off(at + wanted.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let mut fds = [PollFd::new(&self.pty, PollFlags::IN)];
            let ready = poll(&mut fds, Some(&PATIENCE)).unwrap();
            assert!(ready > 0, "\"{wanted}\" does not come; so far: {:?}", self.seen);
            let read = self.pty.read(&mut buffer).unwrap_or(0);
            assert!(read > 0, "the terminal was closed before \"{wanted}\"; so far: {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }

    /// Types a line; answers with what comes up to the next prompt.
    fn line(&mut self, line: &str) -> String {
        self.send(&format!("{line}\n"));
        self.expect(PROMPT)
    }

    /// Types a line and waits for the command to say something.
    fn begin(&mut self, line: &str, said: &str) {
        self.send(&format!("{line}\n"));
        self.expect("\n");
        self.expect(said);
    }

    /// Sends a signal to the process whose id stands in a file.
    fn kill(&self, signal: &str, file: &str) -> bool {
        let kill = format!("kill {signal} $(cat {file})");
        let done = std::process::Command::new("sh").args(["-c", &kill]).current_dir(self.dir.path()).status();
        done.unwrap().success()
    }

    fn state(&mut self, key: &str) -> String {
        let state = std::process::Command::new(env!("CARGO_BIN_EXE_runwal"))
            .args(["state", "@last"])
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state.stdout).unwrap();
        state[key].as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[test]
fn ctrl_c_ends_the_worker_and_the_run_is_cancelled() {
    let mut terminal = Terminal::new();
    terminal.begin("$RUNWAL -q run -- sh -c 'echo begun; exec sleep 1000'", "begun");
    terminal.send("\u{3}");
    terminal.expect(PROMPT);
    assert!(terminal.line("echo code $?").contains("code 130"));
    assert_eq!((terminal.state("status"), terminal.state("signal")), ("cancelled".into(), "SIGINT".into()));
}

/// As for any command that reads Ctrl-C itself.
#[test]
fn a_worker_that_goes_on_after_ctrl_c_goes_on() {
    let mut terminal = Terminal::new();
    // It reads only once it has heard: what `read` makes of a signal depends on the moment.
    let waits = r#"trap "heard=y" INT; echo begun; until [ "$heard" ]; do sleep 0.02; done"#;
    let script = format!("{waits}; echo heard; read x; echo got $x; exit 7");
    terminal.begin(&format!("$RUNWAL -q run -- bash -c '{script}'"), "begun");
    terminal.send("\u{3}");
    terminal.expect("heard");
    terminal.send("one\n");
    terminal.expect("got one");
    terminal.expect(PROMPT);
    assert!(terminal.line("echo code $?").contains("code 7"));
    assert_eq!(terminal.state("status"), "failed");
}

#[test]
fn ctrl_z_stops_recorder_and_worker_and_fg_lets_both_go_on() {
    let reads = "sh -c 'echo begun; read x; echo got $x'";
    // Alone, and below a script that waits for it, in the same process group.
    for command in [
        format!("$RUNWAL -q run -- {reads}"),
        format!("sh -c \"\\$RUNWAL -q run -- {}\"", reads.replace('$', "\\$")),
    ] {
        let mut terminal = Terminal::new();
        terminal.begin(&command, "begun");
        terminal.send("\u{1a}");
        terminal.expect("Stopped");
        terminal.expect(PROMPT);
        // The shell may lose what is typed in the moment it takes the terminal back.
        assert!(terminal.line("    jobs").contains("Stopped"), "{command}");
        terminal.begin("fg", "RUNWAL");
        terminal.send("abc\n");
        terminal.expect("got abc");
        terminal.expect(PROMPT);
        assert!(terminal.line("echo code $?").contains("code 0"), "{command}");
        assert_eq!(terminal.state("status"), "completed", "{command}");
    }
}

/// A recorder that is in the middle of a commit is the last to stop, and the shell may let the job go on
/// as soon as the script has stopped: then the recorder must not stop any more.
#[test]
#[expect(clippy::disallowed_methods, reason = "plays another process, and looks at processes")]
fn fg_before_the_recorder_has_stopped_lets_it_go_on() {
    let mut terminal = Terminal::new();
    let reads = "sh -c 'echo $$ > worker; echo begun; read x; echo got $x'";
    let script = format!(
        "sh -c 'echo $$ > script; \"$RUNWAL\" -q run -- {}; true'",
        reads.replace('\'', "\"").replace('$', "\\$")
    );
    terminal.send(&format!("{script}\n"));
    terminal.expect("\rbegun\r");
    let dir = terminal.dir.path().to_owned();
    let is_stopped = |file: &str| {
        let pid = std::fs::read_to_string(dir.join(file)).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    };
    // Somebody else's commit takes long, and so does the recorder's.
    let other = std::fs::File::open(dir.join(".runwal/journal/lock")).unwrap();
    other.lock().unwrap();
    terminal.send("\u{1a}");
    crate::cli::wait_until("stopping the worker", || is_stopped("worker"));
    // What would be wrong is seen at once; what is right cannot be seen, but by what follows.
    let looked = std::time::Instant::now();
    while !is_stopped("script") && looked.elapsed() < std::time::Duration::from_millis(500) {
        std::thread::yield_now();
    }
    let too_early = is_stopped("script");
    if !too_early {
        other.unlock().unwrap();
    }
    terminal.expect("Stopped");
    terminal.expect(PROMPT);
    // The shell may lose what is typed in the moment it takes the terminal back.
    terminal.line("   true");
    terminal.begin("fg", "RUNWAL");
    let _ = other.unlock();
    terminal.send("abc\n");
    terminal.expect("got abc");
    terminal.expect(PROMPT);
}

/// Others record meanwhile: a recorder that is stopped holds no lock.
#[test]
fn a_stopped_recorder_holds_up_nobody() {
    let mut terminal = Terminal::new();
    terminal.begin("$RUNWAL -q run --task t --run a -- sh -c 'echo begun; read x'", "begun");
    terminal.send("\u{1a}");
    terminal.expect(PROMPT);
    assert!(terminal.line("$RUNWAL -q run -- echo other").contains("other"));
    terminal.begin("fg", "RUNWAL");
    terminal.send("\n");
    terminal.expect(PROMPT);
    assert!(terminal.line("$RUNWAL runs").contains("completed"));
    assert!(terminal.line("$RUNWAL verify; echo code $?").contains("code 0"));
}

#[test]
fn a_worker_in_the_background_stops_when_it_wants_to_read() {
    let mut terminal = Terminal::new();
    terminal.send("$RUNWAL -q run -- sh -c 'read x; echo got $x' &\n");
    terminal.expect(PROMPT);
    // The shell tells of stopped jobs with a prompt.
    let mut told = String::new();
    while !told.contains("Stopped") {
        told = terminal.line("jobs");
        assert!(!told.contains("Done"), "{told}");
    }
    terminal.begin("fg", "RUNWAL");
    terminal.send("abc\n");
    terminal.expect("got abc");
    terminal.expect(PROMPT);
    assert_eq!(terminal.state("status"), "completed");
}

/// Also where the worker, a shell, had given it to a job of its own and was killed then: what comes
/// next in a script can read.
#[test]
fn the_terminal_comes_back_from_whoever_has_it() {
    let mut terminal = Terminal::new();
    let inner = "echo $$ > pid; sh -c 'echo $$ > job; echo begun; exec sleep 1000'";
    let outer = "$RUNWAL -q run -- bash --norc -i inner; read x; echo got $x";
    for (name, script) in [("inner", inner), ("outer", outer)] {
        terminal.line(&format!("cat > {name} <<'END'\n{script}\nEND"));
    }
    terminal.begin("sh outer", "begun");
    assert!(terminal.kill("-KILL", "pid"));
    terminal.send("abc\n");
    terminal.expect("got abc");
    terminal.expect(PROMPT);
    assert!(terminal.kill("-KILL", "job"), "it stays, and is named");
}

/// What reads the recorder's output needs the terminal for its keys.
#[test]
fn a_pipeline_leaves_the_terminal_to_the_others() {
    let mut terminal = Terminal::new();
    let pager = "sh -c 'cat >/dev/null; read key </dev/tty; echo key $key'";
    terminal.send(&format!("$RUNWAL -q run -- seq 3 | {pager}\nabc\n"));
    terminal.expect("key abc");
    terminal.expect(PROMPT);
    assert!(terminal.line("echo code ${PIPESTATUS[*]}").contains("code"));
    assert_eq!(terminal.state("status"), "completed");
}

/// Whoever stands before us in a pipeline reads the terminal, and hears Ctrl-C.
#[test]
fn a_pipeline_before_the_recorder_has_the_terminal() {
    let mut terminal = Terminal::new();
    terminal.begin("sh -c 'echo begun; exec cat' | $RUNWAL -q run -- cat", "begun\r\n");
    terminal.send("abc\n");
    terminal.expect("abc\r\nabc\r\n");
    terminal.send("\u{4}");
    terminal.expect(PROMPT);
    assert_eq!(terminal.state("status"), "completed");
    terminal.begin("sh -c 'echo begun >&2; exec sleep 1000' | $RUNWAL -q run -- cat", "begun");
    terminal.send("\u{3}");
    terminal.expect(PROMPT);
}

/// A recorder that was stopped from elsewhere, and a worker that wanted to read meanwhile.
#[test]
fn a_recorder_that_was_stopped_alone_goes_on_with_fg() {
    let mut terminal = Terminal::new();
    let script =
        "echo $PPID > pid; echo $$ > worker; echo begun; until test -e go; do :; done; read x; echo got $x";
    terminal.begin(&format!("$RUNWAL -q run -- sh -c '{script}'"), "begun");
    assert!(terminal.kill("-STOP", "pid"));
    terminal.expect("Stopped");
    terminal.expect(PROMPT);
    terminal.line("touch go; until grep -q '^State:.T' /proc/$(cat worker)/status; do :; done");
    terminal.begin("fg", "RUNWAL");
    terminal.send("abc\n");
    terminal.expect("got abc");
    terminal.expect(PROMPT);
    assert_eq!(terminal.state("status"), "completed");
}

#[test]
fn a_pseudo_terminal_in_a_pipeline_ends_with_it() {
    let mut terminal = Terminal::new();
    assert!(terminal.line("$RUNWAL -q run --pty -- yes | head -n 1").contains("y\r"));
    assert_eq!(terminal.state("signal"), "SIGPIPE");
    for input in ["abc", "abc\\n", "", "abc\\ndef"] {
        let wanted = input.rsplit("\\n").next().unwrap();
        let shown = terminal.line(&format!("printf '{input}' | $RUNWAL -q run --pty -- cat; echo code $?"));
        assert!(shown.contains("code 0") && shown.contains(wanted), "{input}: {shown}");
    }
}

#[test]
fn a_password_is_not_echoed_and_the_modes_are_as_before() {
    let mut terminal = Terminal::new();
    let before = terminal.line("stty -g").lines().nth(1).unwrap().to_owned();
    let asks = "sh -c 'stty -echo; echo password; read x; stty echo; echo got ${#x}'";
    for pty in ["", "--pty"] {
        terminal.begin(&format!("$RUNWAL -q run {pty} -- {asks}"), "password");
        terminal.send("secret\n");
        let shown = terminal.expect("got 6");
        assert!(!shown.contains("secret"), "{shown:?}");
        terminal.expect(PROMPT);
        assert_eq!(terminal.line("stty -g").lines().nth(1).unwrap(), before, "{pty}");
    }
}

#[test]
fn a_pseudo_terminal_has_the_window_and_its_changes_are_recorded() {
    let mut terminal = Terminal::new();
    let asks = "sh -c 'tty; stty size; read x; stty size'";
    terminal.begin(&format!("$RUNWAL -q run --pty -- {asks}"), "24 80");
    terminal.pty.resize(Size::new(31, 99)).unwrap();
    // Once it is recorded, the worker has it too.
    let mut follow = std::process::Command::new(env!("CARGO_BIN_EXE_runwal"))
        .args(["log", "-f", "-n", "all"])
        .current_dir(terminal.dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    let resized = lines.map(Result::unwrap).find(|line| line.contains("terminal_resized")).unwrap();
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert!(resized.contains("31 rows and 99 columns"), "{resized}");
    terminal.send("\n");
    terminal.expect("31 99");
    terminal.expect(PROMPT);
    // Ctrl-C goes through the inner terminal.
    terminal.begin("$RUNWAL -q run --pty -- sh -c 'echo begun; exec sleep 1000'", "begun");
    terminal.send("\u{3}");
    terminal.expect(PROMPT);
    assert!(terminal.line("echo code $?").contains("code 130"));
}

/// A program, how it is started, and what is typed once it has shown something.
type Steps = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// What full-screen programs write is what they write without a recorder.
#[test]
fn full_screen_programs_look_as_without_a_recorder() {
    const LESS: Steps = ("less", "less text", &[("\u{1b}[7mtext", " "), (":", "/150\n"), ("150", "q")]);
    const TPUT: Steps =
        ("tput", "sh -c 'tput smcup; tput cup 3 4; echo here; read x; tput rmcup'", &[("here", "\n")]);
    const VIM: Steps =
        ("vim", "vim -u NONE -i NONE -n written", &[("[New", "ihello"), ("hello", "\u{1b}"), ("", ":wq\n")]);
    for (needs, command, steps) in [LESS, TPUT, VIM] {
        let found = std::process::Command::new("which").arg(needs).output();
        if !found.is_ok_and(|output| output.status.success()) {
            println!("skipped: {needs} not found");
            continue;
        }
        let run = |recorder: &str| {
            let mut terminal = Terminal::new();
            terminal.line("seq 1 200 > text");
            terminal.send(&format!("{recorder} {command}; PS1='done''> '\n"));
            terminal.expect("\n");
            let mut shown = String::new();
            for (expected, keys) in steps {
                shown += &terminal.expect(expected);
                terminal.send(keys);
            }
            shown += &terminal.expect("done> ");
            terminal.send("cat written\n");
            (shown, terminal.expect("done> ").contains("hello"))
        };
        let (bare, recorded) = (run(""), run("$RUNWAL -q run --pty --"));
        assert_eq!((bare.1, recorded.1), (needs == "vim", needs == "vim"), "{command}");
        if needs == "vim" {
            // What it draws depends on how fast keys come.
            let left = |shown: &str| shown.contains("\u{1b}[?1049h") && shown.contains("\u{1b}[?1049l");
            assert!(left(&bare.0) && left(&recorded.0), "{:?}\n{:?}", bare.0, recorded.0);
        } else {
            assert_eq!(bare.0, recorded.0, "{command}");
        }
    }
}
