//! The process table: who runs, since when, and how to end what a dead recorder left behind.
//!
//! A process is only ever signalled through a handle on that very process, after its identity was
//! compared: a process id alone may be another process's by now.

use crate::clock::Clock;
use crate::disk::os::OsDisk;
use crate::disk::{Disk, Kind, Open};
use crate::error::{Error, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::path::Path;
use std::time::Duration;

/// The variable that tells a worker which run it belongs to, as `task/run`.
pub(crate) const RUN_VARIABLE: &str = "RUNWAL_RUN";
/// The variable that tells which recorder started a worker: random, so that a run of the same name
/// in another data directory is not taken for this one.
pub(crate) const RECORDER_VARIABLE: &str = "RUNWAL_RECORDER";

const POLL: Duration = Duration::from_millis(5);
const MAX_FILE_LEN: usize = 1 << 20;

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

/// Process group and start time out of `/proc/PID/stat`, whose second field may contain anything.
fn parse_stat(stat: &[u8]) -> Option<(u32, u64, u8)> {
    let behind_name = stat.iter().rposition(|b| *b == b')')? + 2;
    let fields: Vec<&[u8]> = stat.get(behind_name..)?.split(|b| *b == b' ').collect();
    let number = |i: usize| std::str::from_utf8(fields.get(i)?).ok()?.trim().parse::<u64>().ok();
    Some((u32::try_from(number(2)?).ok()?, number(19)?, *fields.first()?.first()?))
}

/// The identity of a running process; `None` if there is none of this id.
pub(crate) fn identity(pid: u32) -> Option<Identity> {
    let stat = read(&table().ok()?, &format!("{pid}/stat")).ok()?;
    parse_stat(&stat).map(|(_, start_ticks, _)| Identity { pid, start_ticks })
}

/// All processes that belong to a run: in the group of its worker (if the worker's identity still
/// holds for that group) or with the run's variables in their environment.
fn members(run: &str, recorder: &str, worker: Option<Identity>) -> Result<Vec<Identity>> {
    let proc_fs = table()?;
    let wanted = [format!("{RUN_VARIABLE}={run}"), format!("{RECORDER_VARIABLE}={recorder}")];
    let mut pids: Vec<u32> = Vec::new();
    proc_fs.list(".", &mut |name, kind| {
        if kind == Kind::Directory
            && let Ok(pid) = name.parse()
        {
            pids.push(pid);
        }
    })?;
    // The group's number is the worker's id; it is free for others only once the whole group and
    // the worker are gone, so a leader with another start time means it was given away.
    let group = worker.filter(|w| identity(w.pid).is_none_or(|now| now == *w)).map(|w| w.pid);
    let mut found = Vec::new();
    for pid in pids {
        // Processes come and go while they are looked at.
        let Some((its_group, start_ticks, state)) =
            read(&proc_fs, &format!("{pid}/stat")).ok().and_then(|stat| parse_stat(&stat))
        else {
            continue;
        };
        if state == b'Z' || pid == std::process::id() {
            continue;
        }
        let environ = read(&proc_fs, &format!("{pid}/environ")).unwrap_or_default();
        let marked = wanted.iter().all(|w| environ.split(|b| *b == 0).any(|v| v == w.as_bytes()));
        if marked || group == Some(its_group) {
            found.push(Identity { pid, start_ticks });
        }
    }
    Ok(found)
}

fn signal(process: Identity, signal: Signal) -> bool {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    identity(process.pid) == Some(process) && pidfd_send_signal(&handle, signal).is_ok()
}

/// Ends what is left of a run whose recorder is dead: asks, waits for `grace`, then kills. Answers
/// with how many processes it found.
pub(crate) fn end_orphans(
    clock: &dyn Clock,
    run: &str,
    recorder: &str,
    worker: Option<Identity>,
    grace: Duration,
) -> Result<usize> {
    let found = members(run, recorder, worker)?;
    if found.is_empty() {
        return Ok(0);
    }
    let count = found.len();
    found.iter().for_each(|p| {
        signal(*p, Signal::TERM);
        // A stopped process does not hear until it is let go on.
        signal(*p, Signal::CONT);
    });
    let start = clock.monotonic_ns();
    let mut killed = false;
    loop {
        let left = members(run, recorder, worker)?;
        if left.is_empty() {
            return Ok(count);
        }
        let waited = Duration::from_nanos(clock.monotonic_ns().saturating_sub(start));
        if waited >= grace {
            left.iter().for_each(|p| {
                signal(*p, Signal::KILL);
            });
            killed = true;
        }
        if killed && waited >= grace + Duration::from_secs(5) {
            let pids: Vec<String> = left.iter().map(|p| p.pid.to_string()).collect();
            return Err(Error::new(
                crate::error::ErrorKind::Retry,
                format!("processes {} of run {run} do not end", pids.join(", ")),
            ));
        }
        clock.pause(POLL);
    }
}
