//! The process table: who runs, since when, and how to end what a dead recorder left behind.
//!
//! A process is only ever signalled through a handle on that very process, after its identity was
//! compared: a process id alone may be another process's by now.

use crate::clock::Clock;
use crate::disk::os::OsDisk;
use crate::disk::{Disk, Kind, Open};
use crate::error::{Error, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// The variable that tells a worker which run it belongs to, as `task/run`.
pub(crate) const RUN_VARIABLE: &str = "RUNWAL_RUN";
/// The variable that tells which recorder started a worker: random, so that a run of the same name
/// in another data directory is not taken for this one.
pub(crate) const RECORDER_VARIABLE: &str = "RUNWAL_RECORDER";

const POLL: Duration = Duration::from_millis(5);
const MAX_FILE_LEN: usize = 1 << 20;
/// The flag of a thread of the kernel: `PF_KTHREAD` in Linux's `include/linux/sched.h`.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// How often a process is looked at that becomes another program.
const MAX_LOOKS: usize = 1_000;

/// What tells a process from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its id.
    pub pid: u32,
    /// When it was started, in clock ticks since the machine was.
    pub start_ticks: u64,
}

fn table() -> Result<OsDisk> {
    OsDisk::open(Path::new("/proc"))
}

fn read(proc_fs: &dyn Disk, name: &str) -> Result<Vec<u8>> {
    let file = proc_fs.open(name, Open::Read)?;
    let mut bytes = vec![0; 8192];
    let mut len = 0;
    loop {
        let read = file.read_at(&mut bytes[len..], len as u64)?;
        len += read;
        if len < bytes.len() || len >= MAX_FILE_LEN {
            break;
        }
        bytes.resize(len * 2, 0);
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// What `/proc/PID/stat` says. Its second field may contain anything.
struct Status {
    state: u8,
    #[cfg(feature = "terminal")]
    parent: u32,
    group: u32,
    flags: u64,
    start_ticks: u64,
}

fn parse_stat(stat: &[u8]) -> Option<Status> {
    let behind_name = stat.iter().rposition(|b| *b == b')')? + 2;
    let fields: Vec<&[u8]> = stat.get(behind_name..)?.split(|b| *b == b' ').collect();
    let number = |i: usize| std::str::from_utf8(fields.get(i)?).ok()?.trim().parse::<u64>().ok();
    Some(Status {
        state: *fields.first()?.first()?,
        #[cfg(feature = "terminal")]
        parent: u32::try_from(number(1)?).ok()?,
        group: u32::try_from(number(2)?).ok()?,
        flags: number(6)?,
        start_ticks: number(19)?,
    })
}

/// The parent of a process.
#[cfg(feature = "terminal")]
pub(crate) fn parent(pid: Pid) -> Option<Pid> {
    let stat = read(&table().ok()?, &format!("{}/stat", pid.as_raw_nonzero())).ok()?;
    i32::try_from(parse_stat(&stat)?.parent).ok().and_then(Pid::from_raw)
}

/// Whether a process has a handler for a signal.
#[cfg(feature = "terminal")]
pub(crate) fn catches(pid: Pid, signal: i32) -> bool {
    let read = |table| read(&table, &format!("{}/status", pid.as_raw_nonzero())).ok();
    let status = table().ok().and_then(read).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// The identity of a running process; `None` if there is none of this id.
pub(crate) fn identity(pid: u32) -> Option<Identity> {
    let stat = read(&table().ok()?, &format!("{pid}/stat")).ok()?;
    parse_stat(&stat).map(|status| Identity { pid, start_ticks: status.start_ticks })
}

/// A process that a worker left running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Left {
    /// Its id.
    pub pid: u32,
    /// The beginning of its command line.
    pub command: String,
}

/// What is left running of a worker that has exited.
pub(crate) fn left_of(run: &str, recorder: &str, worker: Identity) -> Vec<Left> {
    const SHOWN: usize = 200;
    let Ok(proc_fs) = table() else { return Vec::new() };
    let younger = (last_pid(&proc_fs) >= Some(worker.pid)).then_some(worker.pid);
    let found = Snapshot::take(younger).map(|seen| seen.members(run, recorder, Some(worker)));
    let command = |pid: u32| {
        let line = read(&proc_fs, &format!("{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        words.join(" ").trim_end().chars().take(SHOWN).collect()
    };
    found.unwrap_or_default().into_iter().map(|p| Left { pid: p.pid, command: command(p.pid) }).collect()
}

/// The id that was given away last.
fn last_pid(proc_fs: &dyn Disk) -> Option<u32> {
    let text = read(proc_fs, "loadavg").ok()?;
    std::str::from_utf8(&text).ok()?.split_whitespace().last()?.parse().ok()
}

/// All processes, as they were at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot(Vec<Process>);

#[derive(Debug)]
struct Process {
    identity: Identity,
    group: u32,
    is_zombie: bool,
    /// Its variables that tell of a run.
    marks: Vec<Vec<u8>>,
}

impl Snapshot {
    /// Takes it. With `younger`, only of those with higher ids than that: ids are given away upwards, and whoever
    /// asks knows that they have not begun anew.
    pub(crate) fn take(younger: Option<u32>) -> Result<Self> {
        let proc_fs = table()?;
        let mut pids: Vec<u32> = Vec::new();
        proc_fs.list(".", &mut |name, kind| {
            if kind == Kind::Directory
                && let Ok(pid) = name.parse()
                && younger.is_none_or(|than| pid > than)
            {
                pids.push(pid);
            }
        })?;
        let mut all = Vec::new();
        for pid in pids.into_iter().filter(|pid| *pid != std::process::id()) {
            // Processes come and go while they are looked at.
            let stat = read(&proc_fs, &format!("{pid}/stat")).ok();
            let Some(status) = stat.and_then(|stat| parse_stat(&stat)) else { continue };
            let is_zombie = status.state == b'Z';
            let environ = if is_zombie { Vec::new() } else { environment(&proc_fs, pid, &status) };
            let told = environ.split(|b| *b == 0).filter(|variable| {
                let name = variable.split(|b| *b == b'=').next().unwrap_or_default();
                name == RUN_VARIABLE.as_bytes() || name == RECORDER_VARIABLE.as_bytes()
            });
            let marks = told.map(<[u8]>::to_vec).collect();
            let identity = Identity { pid, start_ticks: status.start_ticks };
            all.push(Process { identity, group: status.group, is_zombie, marks });
        }
        Ok(Self(all))
    }

    /// All that belong to a run: in the group of its worker (if the worker's identity still holds for that group)
    /// or with the run's variables in their environment.
    pub(crate) fn members(&self, run: &str, recorder: &str, worker: Option<Identity>) -> Vec<Identity> {
        let wanted = [format!("{RUN_VARIABLE}={run}"), format!("{RECORDER_VARIABLE}={recorder}")];
        // The group's number is the worker's id; it is free for others only once the whole group and
        // the worker are gone, so a leader with another start time means it was given away.
        let group = worker.filter(|w| identity(w.pid).is_none_or(|now| now == *w)).map(|w| w.pid);
        let is_marked = |p: &Process| wanted.iter().all(|w| p.marks.iter().any(|mark| mark == w.as_bytes()));
        let alive = self.0.iter().filter(|process| !process.is_zombie);
        alive.filter(|p| group == Some(p.group) || is_marked(p)).map(|p| p.identity).collect()
    }

    /// Asks those to end that say of themselves that they belong to a run.
    pub(crate) fn ask_to_end(&self, run: &str, recorder: &str) {
        self.members(run, recorder, None).into_iter().for_each(ask_to_end);
    }
}

fn ask_to_end(process: Identity) {
    signal(process, Signal::TERM);
    // A stopped process does not hear until it is let go on.
    signal(process, Signal::CONT);
}

/// The variables of a process. One that is just becoming another program has none for a moment, and no
/// arguments either: it is looked at again.
fn environment(proc_fs: &dyn Disk, pid: u32, status: &Status) -> Vec<u8> {
    let of = |what: &str| read(proc_fs, &format!("{pid}/{what}")).ok();
    let mut environ = of("environ").unwrap_or_default();
    for _ in 0..MAX_LOOKS {
        let kernel = status.flags & KERNEL_THREAD != 0;
        if kernel || !environ.is_empty() || of("cmdline").is_none_or(|arguments| !arguments.is_empty()) {
            break;
        }
        std::thread::yield_now();
        environ = of("environ").unwrap_or_default();
    }
    environ
}

fn signal(process: Identity, signal: Signal) -> bool {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    identity(process.pid) == Some(process) && pidfd_send_signal(&handle, signal).is_ok()
}

/// Ends what was left at some moment of a run whose recorder is dead: asks, waits, then kills. Those that say of
/// themselves that they belong to it were asked at `asked`, of the clock that never goes back. Answers with how many
/// processes there were.
pub(crate) fn end_orphans(
    clock: &dyn Clock,
    seen: &Snapshot,
    (run, recorder): (&str, &str),
    worker: Option<Identity>,
    (asked, grace): (Duration, Duration),
) -> Result<usize> {
    const MOST: Duration = Duration::from_secs(5);
    let found = seen.members(run, recorder, worker);
    if found.is_empty() {
        return Ok(0);
    }
    let count = found.len();
    let monotonic = || Duration::from_nanos(clock.monotonic_ns());
    let were_asked = seen.members(run, recorder, None);
    // Only now it is known that the others belong to it.
    let all_were = found.iter().all(|process| were_asked.contains(process));
    let patient_until = if all_were { asked } else { monotonic() }.saturating_add(grace);
    found.into_iter().for_each(ask_to_end);
    let mut killed_at = None;
    loop {
        let left = Snapshot::take(None)?.members(run, recorder, worker);
        if left.is_empty() {
            return Ok(count);
        }
        let now = monotonic();
        if now >= patient_until {
            left.iter().for_each(|process| {
                signal(*process, Signal::KILL);
            });
            if now.saturating_sub(*killed_at.get_or_insert(now)) >= MOST {
                let pids: Vec<String> = left.iter().map(|p| p.pid.to_string()).collect();
                return Err(Error::new(
                    crate::error::ErrorKind::Retry,
                    format!("processes {} of run {run} do not end", pids.join(", ")),
                ));
            }
        }
        clock.pause(POLL);
    }
}
