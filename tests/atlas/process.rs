//! A worker as its parent sees it: a pipe to listen to, and a process to kill.

use crate::ledger::Ledger;
use crate::worker::{FAILED, Orders};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a worker may say nothing before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(90);

/// Longer than anything takes that does not hang.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// The system calls by which a worker touches the files of its journal.
pub(crate) const FILE_CALLS: [&str; 27] = [
    "pwrite64",
    "pwritev",
    "read",
    "pread64",
    "fdatasync",
    "fsync",
    "syncfs",
    "openat",
    "openat2",
    "close",
    "renameat2",
    "renameat",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "ftruncate",
    "fallocate",
    "flock",
    "fchmod",
    "fchmodat",
    "newfstatat",
    "fstat",
    "statx",
    "getdents64",
    "fstatfs",
    "fadvise64",
    "clone3",
];

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All went well.
    Well,
    /// It told a failure.
    Failed,
    Killed(i32),
    Other(i32),
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(0), _) => Self::Well,
            (Some(code), _) if code == i32::from(FAILED) => Self::Failed,
            (Some(code), _) => Self::Other(code),
            (None, signal) => Self::Killed(signal.unwrap_or(0)),
        }
    }
}

/// See the [module](self). Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    out: ChildStdout,
    heard: Vec<u8>,
    /// The worker's own id: the child may be whoever traces it.
    pid: Option<Pid>,
    /// How many batches it handed in and has not said the answer to.
    waiting: i64,
    life: Life,
}

/// What a worker told of itself, but for its batches.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) end: End,
    /// It got as far as its own program.
    pub(crate) started: bool,
    /// It had the journal open for writing.
    pub(crate) begun: bool,
    /// How many records it says it read.
    pub(crate) read: Option<u64>,
    /// The failures that it told.
    pub(crate) complaints: Vec<String>,
}

/// The command of a worker, behind the words of whatever runs it.
pub(crate) fn command(wrapper: &[OsString], orders: &Orders) -> Command {
    let mut words = wrapper.to_vec();
    words.push(std::env::current_exe().unwrap().into());
    words.extend(orders.to_args().into_iter().map(OsString::from));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self, String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = spawn(command).map_err(|error| format!("starting a worker: {error}"))?;
        let out = child.stdout.take().unwrap();
        let life = Life { end: End::Well, started: false, begun: false, read: None, complaints: Vec::new() };
        Ok(Self { child, out, heard: Vec::new(), pid: None, waiting: 0, life })
    }

    /// Listens until so many receipts were given, or `time` is over; answers whether it still talks.
    pub(crate) fn listen(&mut self, ledger: &mut Ledger, acks: u64, time: Duration) -> Result<bool, String> {
        let (begun, enough) = (Instant::now(), ledger.acknowledged.saturating_add(acks));
        while ledger.acknowledged < enough {
            let left = time.saturating_sub(begun.elapsed());
            let timeout = Timespec::try_from(left).unwrap();
            let mut fds = [PollFd::new(&self.out, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(format!("waiting for a worker: {error}")),
            }
            if !self.hear(ledger) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes what is in the pipe; `false` at its end.
    fn hear(&mut self, ledger: &mut Ledger) -> bool {
        let mut piece = [0; 1 << 12];
        let read = self.out.read(&mut piece).unwrap();
        self.heard.extend_from_slice(&piece[..read]);
        while let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.heard.drain(..=end).collect();
            let line = std::str::from_utf8(&line[..end]).unwrap();
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "pid" => self.pid = Pid::from_raw(rest.parse().unwrap()),
                "begun" => self.life.begun = true,
                "read" => self.life.read = rest.parse().ok(),
                "submit" => self.waiting += 1,
                "ack" | "refused" | "unknown" => self.waiting -= 1,
                _ => {}
            }
            if matches!(word, "failed" | "refused" | "unknown") {
                self.life.complaints.push(line.to_owned());
            }
            ledger.hear(line);
        }
        read > 0
    }

    /// Kills it, as nothing can be caught or delayed.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Listens to the end. Whatever becomes of it: it neither hangs nor panics, and unless it is killed,
    /// every batch has an answer.
    pub(crate) fn end(mut self, ledger: &mut Ledger) -> Result<Life, String> {
        if self.listen(ledger, u64::MAX, PATIENCE)? {
            return Err(format!("it hung for {PATIENCE:?}"));
        }
        let status = self.child.wait().map_err(|error| format!("waiting for a worker: {error}"))?;
        let started = self.pid.is_some();
        let life = Life { end: status.into(), started, ..self.life.clone() };
        match life.end {
            End::Other(_) | End::Killed(6) if started => Err(format!("it panicked or aborted: {life:?}")),
            End::Well | End::Failed if self.waiting != 0 => {
                Err(format!("{} batches were not answered", self.waiting))
            }
            _ => Ok(life),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that was waited for has given its id back: it is nobody's to signal.
        if let Ok(None) = self.child.try_wait() {
            // Whoever is traced goes on when its tracer is killed: it comes first.
            if let Some(pid) = self.pid {
                let _ = kill_process(pid, Signal::KILL);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The words that run a worker under strace with these options, and where its trace goes, if anywhere.
pub(crate) fn strace(options: &[String], trace: Option<&Path>) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["strace", "-f", "--seccomp-bpf", "-o"].map(OsString::from).into();
    words.push(trace.unwrap_or(Path::new("/dev/null")).into());
    words.extend(options.iter().map(OsString::from));
    words
}

/// Whether workers can be run under strace here; if not, why.
pub(crate) fn can_trace() -> Result<(), String> {
    let args = ["-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=openat", "true"];
    tool("strace", &args).map(drop)
}

/// Runs `work` on as many threads as there are processors, each with numbers of its own.
pub(crate) fn on_all_processors(work: impl Fn(&AtomicU64) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| work(&next));
        }
    });
}

/// Held while a process is started. Until it is another program it has all files open that this one
/// has: nothing can be unmounted meanwhile.
static STARTING: Mutex<()> = Mutex::new(());

/// Runs `work` while no process is being started.
pub(crate) fn between_starts<T>(work: impl FnOnce() -> T) -> T {
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    work()
}

fn spawn(command: &mut Command) -> std::io::Result<Child> {
    between_starts(|| command.spawn())
}

/// Runs a program of the system's to its end, and answers with what it prints.
pub(crate) fn tool(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = spawn(&mut command).and_then(Child::wait_with_output);
    let output = output.map_err(|error| format!("{program} does not start: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{program} {}` ends with {}: {}", args.join(" "), output.status, said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
