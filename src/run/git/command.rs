//! One git process: with a deadline, without a terminal, and running nothing that is configured.

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::record::escape_line;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a wait for a git process looks away at most.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long a killed process may take to go; one stuck in the kernel is left behind.
const FAREWELL: Duration = Duration::from_secs(2);
/// How much of what git complains is kept.
const COMPLAINT_LEN: usize = 4 << 10;
/// How much is read or written at once.
const CHUNK_LEN: usize = 64 << 10;

/// What is inherited of git's variables: whether there is a repository, and the user's settings.
/// All others point a git process at something else than the directory it is asked about, as a hook
/// finds them, or change what it prints.
const KEPT: &[&str] = &[
    "GIT_CEILING_DIRECTORIES",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM",
    "GIT_EXEC_PATH",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
];
/// Those of them with a number at the end.
const KEPT_NUMBERED: &[&str] = &["GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_"];

/// Nothing that a repository or its user configured is run, fetched or written beside the index.
const SETTINGS: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.splitIndex=false",
    "core.untrackedCache=false",
    "core.ignoreStat=false",
    "core.safecrlf=false",
    "protocol.allow=never",
    "gc.auto=0",
    "maintenance.auto=false",
    "diff.suppressBlankEmpty=false",
    "apply.whitespace=nowarn",
    "apply.ignoreWhitespace=no",
];

/// How long git may take in all, and who may stop it earlier.
pub(crate) struct Budget<'b> {
    clock: &'b dyn Clock,
    end_ns: u64,
    limit: Duration,
    stop: &'b dyn Fn() -> bool,
    environment: Vec<(&'static str, String)>,
}

impl<'b> Budget<'b> {
    /// From now on.
    pub(crate) fn new(clock: &'b dyn Clock, limit: Duration, stop: &'b dyn Fn() -> bool) -> Self {
        let ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Self { clock, end_ns: clock.monotonic_ns().saturating_add(ns), limit, stop, environment: Vec::new() }
    }

    /// With variables by which its processes are known.
    pub(crate) fn with_environment(self, environment: Vec<(&'static str, String)>) -> Self {
        Self { environment, ..self }
    }

    fn check(&self) -> Result<()> {
        if (self.stop)() {
            return Err(Error::new(ErrorKind::Retry, "git was stopped before it was done"));
        }
        if self.clock.monotonic_ns() >= self.end_ns {
            let message = format!("git was not done within {} s", self.limit.as_secs());
            return Err(Error::new(ErrorKind::Retry, message));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Budget<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget").field("end_ns", &self.end_ns).finish_non_exhaustive()
    }
}

/// A directory to run git in.
#[derive(Debug)]
pub(super) struct Git<'b> {
    dir: PathBuf,
    switches: Vec<OsString>,
    index: Option<PathBuf>,
    /// The filter drivers that are configured, and switched off.
    pub(super) filters: BTreeSet<Vec<u8>>,
    budget: &'b Budget<'b>,
}

impl<'b> Git<'b> {
    /// For questions that touch no content: filters are as they are.
    pub(super) fn asking(dir: &Path, budget: &'b Budget<'b>) -> Self {
        let dir = dir.to_owned();
        Self { dir, switches: Vec::new(), index: None, filters: BTreeSet::new(), budget }
    }

    /// In the working tree at `dir`, of the repository `git_dir` whatever its settings say now;
    /// every configured filter is switched off.
    pub(super) fn working(dir: &Path, git_dir: Option<&Path>, budget: &'b Budget<'b>) -> Result<Self> {
        let mut git = Self::asking(dir, budget);
        if let Some(git_dir) = git_dir {
            git.switches.extend(["--git-dir".into(), git_dir.into(), "--work-tree".into(), dir.into()]);
        }
        let named = git.call(["config", "-z", "--name-only", "--get-regexp", r"^filter\."]).run()?;
        // 1 says that there is none.
        let names = if named.code == Some(1) { Vec::new() } else { named.fine("listing git's filters")? };
        for key in names.split(|b| *b == 0) {
            let Some(name) = key.strip_prefix(b"filter.") else { continue };
            let Some(dot) = name.iter().rposition(|b| *b == b'.') else { continue };
            git.filters.insert(name[..dot].to_vec());
        }
        for name in &git.filters {
            if name.contains(&b'=') {
                let shown = shown(name);
                return Err(Error::misuse(format!(
                    "the filter {shown} of git's settings cannot be switched off"
                )));
            }
            for (key, value) in [("clean", ""), ("smudge", ""), ("process", ""), ("required", "false")] {
                let mut setting = b"filter.".to_vec();
                setting.extend_from_slice(name);
                setting.extend_from_slice(format!(".{key}={value}").as_bytes());
                git.switches.extend(["-c".into(), OsStr::from_bytes(&setting).to_owned()]);
            }
        }
        Ok(git)
    }

    /// With an index of one's own.
    pub(super) fn with_index(self, index: PathBuf) -> Self {
        Self { index: Some(index), ..self }
    }

    /// A command with its arguments.
    pub(super) fn call<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Call<'_> {
        let mut command = Command::new("git");
        command.current_dir(&self.dir).arg("--no-pager");
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.args(&self.switches).args(args);
        for (name, _) in std::env::vars_os() {
            let bytes = name.as_bytes();
            let kept = KEPT.iter().any(|k| bytes == k.as_bytes())
                || KEPT_NUMBERED.iter().any(|k| bytes.starts_with(k.as_bytes()));
            if bytes.starts_with(b"GIT_") && !kept {
                command.env_remove(&name);
            }
        }
        let fixed = [
            ("LC_ALL", "C"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            // What keeps versions without GIT_NO_LAZY_FETCH from fetching.
            ("GIT_ALLOW_PROTOCOL", "none"),
        ];
        command.envs(fixed).envs(self.budget.environment.iter().map(|(name, value)| (name, value)));
        command.env_remove("SSH_ASKPASS").process_group(0);
        if let Some(index) = &self.index {
            command.env("GIT_INDEX_FILE", index);
        }
        Call { command, input: b"", limit: u64::MAX, each: None, budget: self.budget }
    }
}

/// A git process that is to be run.
pub(super) struct Call<'c> {
    command: Command,
    input: &'c [u8],
    limit: u64,
    each: Option<&'c mut dyn FnMut(&[u8])>,
    budget: &'c Budget<'c>,
}

/// What a git process answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its exit code; `None` where a signal ended it.
    pub(super) code: Option<i32>,
    /// What it printed.
    pub(super) out: Vec<u8>,
    /// Whether it was ended because it printed more than the limit.
    pub(super) cut: bool,
    /// The beginning of what it complained.
    pub(super) complaint: Vec<u8>,
}

impl Answer {
    /// What it printed, if it ended well.
    pub(super) fn fine(self, doing: &str) -> Result<Vec<u8>> {
        if self.cut {
            return Err(Error::new(ErrorKind::Retry, format!("{doing}: git's answer is too long")));
        }
        if self.code != Some(0) {
            return Err(Error::new(ErrorKind::Io, format!("{doing}: git said {}", self.words())));
        }
        Ok(self.out)
    }

    /// What it complained, in a line.
    pub(super) fn words(&self) -> String {
        let text = String::from_utf8_lossy(&self.complaint);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
        if lines.is_empty() {
            return self
                .code
                .map_or("nothing, and was killed".to_owned(), |code| format!("nothing, and {code}"));
        }
        format!("\"{}\"", escape_line(&lines.join("; ")))
    }
}

impl<'c> Call<'c> {
    /// With something on its stdin.
    pub(super) fn input(self, input: &'c [u8]) -> Self {
        Self { input, ..self }
    }

    /// Ended as soon as it prints more than this many bytes.
    pub(super) fn limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// Every record that it prints, ended by a NUL, is handed on and not kept.
    pub(super) fn each(self, each: &'c mut dyn FnMut(&[u8])) -> Self {
        Self { each: Some(each), ..self }
    }

    /// Runs it to its end, or until time is up.
    ///
    /// # Errors
    /// Where there is no git, the error says that it is missing.
    pub(super) fn run(mut self) -> Result<Answer> {
        self.budget.check()?;
        let stdin = if self.input.is_empty() { Stdio::null() } else { Stdio::piped() };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|e| Error::io("starting git", e))?;
        let watched = self.watch(&mut child);
        if !matches!(watched, Ok(Answer { cut: false, .. })) {
            end(&mut child, self.budget.clock);
        }
        watched
    }

    fn watch(&mut self, child: &mut Child) -> Result<Answer> {
        let watching = |e: rustix::io::Errno| Error::io("watching git", e.into());
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let exit =
            pidfd_open(pid.ok_or_else(|| Error::misuse("git has no process id"))?, PidfdFlags::empty())
                .map_err(watching)?;
        let mut stdin = child.stdin.take().map(OwnedFd::from);
        if let Some(stdin) = &stdin {
            rustix::io::ioctl_fionbio(stdin, true).map_err(watching)?;
        }
        let mut pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        let mut answer = Answer { code: None, out: Vec::new(), cut: false, complaint: Vec::new() };
        let (mut buffer, mut total, mut exited) = (vec![0; CHUNK_LEN], 0_u64, false);
        while !exited || pipes.iter().any(Option::is_some) {
            self.budget.check()?;
            let mut fds = Vec::with_capacity(4);
            let descriptors =
                [stdin.as_ref(), pipes[0].as_ref(), pipes[1].as_ref(), Some(&exit).filter(|_| !exited)];
            let mut which = Vec::with_capacity(4);
            for (i, fd) in descriptors.into_iter().enumerate() {
                let Some(fd) = fd else { continue };
                fds.push(PollFd::new(fd, if i == 0 { PollFlags::OUT } else { PollFlags::IN }));
                which.push(i);
            }
            match poll(&mut fds, Some(&PATIENCE)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(watching(e)),
            }
            let ready: Vec<usize> =
                fds.iter().zip(&which).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, i)| *i).collect();
            drop(fds);
            for i in ready {
                match i {
                    0 if !self.feed(stdin.as_ref()) => stdin = None,
                    0 => {}
                    3 => exited = true,
                    _ => match read(pipes[i - 1].as_ref(), &mut buffer) {
                        Some(0) => pipes[i - 1] = None,
                        Some(read) if i == 1 => {
                            total += read as u64;
                            if total > self.limit {
                                answer.cut = true;
                                return Ok(answer);
                            }
                            answer.out.extend_from_slice(&buffer[..read]);
                            self.hand_on(&mut answer.out);
                        }
                        Some(read) => {
                            let room = COMPLAINT_LEN - answer.complaint.len();
                            answer.complaint.extend_from_slice(&buffer[..read.min(room)]);
                        }
                        None => {}
                    },
                }
            }
        }
        answer.code = child.wait().map_err(|e| Error::io("waiting for git", e))?.code();
        Ok(answer)
    }

    /// Writes what its stdin takes; `false` once there is nothing more to write.
    fn feed(&mut self, stdin: Option<&OwnedFd>) -> bool {
        let Some(stdin) = stdin else { return false };
        let part = &self.input[..self.input.len().min(CHUNK_LEN)];
        match rustix::io::write(stdin, part) {
            Ok(written) => self.input = &self.input[written..],
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // It has ended, or does not want more: its exit code says which.
            Err(_) => return false,
        }
        !self.input.is_empty()
    }

    fn hand_on(&mut self, out: &mut Vec<u8>) {
        let Some(each) = &mut self.each else { return };
        let Some(last) = memchr::memrchr(0, out) else { return };
        out[..last].split(|b| *b == 0).for_each(each);
        out.drain(..=last);
    }
}

/// Reads once; `None` where there is nothing at the moment.
fn read(pipe: Option<&OwnedFd>, buffer: &mut [u8]) -> Option<usize> {
    match rustix::io::read(pipe?.as_fd(), buffer) {
        Ok(read) => Some(read),
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => None,
        Err(_) => Some(0),
    }
}

/// Kills what is left of it, with its whole group.
fn end(child: &mut Child, clock: &dyn Clock) {
    // Waited for: its id may be another's.
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    let start = clock.monotonic_ns();
    let waited = || Duration::from_nanos(clock.monotonic_ns().saturating_sub(start));
    while matches!(child.try_wait(), Ok(None)) && waited() < FAREWELL {
        clock.pause(Duration::from_millis(2));
    }
}

/// A name of any bytes, for people.
pub(super) fn shown(name: &[u8]) -> String {
    format!("\"{}\"", String::from_utf8_lossy(name).escape_debug())
}

/// Some names of many.
pub(super) fn shown_some(names: &[Vec<u8>]) -> String {
    const SOME: usize = 5;
    let some: Vec<String> = names.iter().take(SOME).map(|name| shown(name)).collect();
    match names.len().saturating_sub(SOME) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}
