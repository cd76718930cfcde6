//! A fault at every system call of a real process on a real disk: the call is not made, and fails.
//!
//! A write that claims fewer bytes than it wrote cannot be had this way, as none would be written;
//! the layer of failing disks has real ones.

use crate::journal::{Journal, keep, place};
use crate::ledger::{Finding, check_files};
use crate::machine::Pretence;
use crate::process::{End, FILE_CALLS, Life, Process, can_trace, command, on_all_processors, strace};
use crate::{Asked, Found};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Faults of the quick part.
const QUICK: u64 = 300;

/// Those that the system interrupts, and that are made again then, so that nobody notices. A sync is
/// not among them: whether it took effect is not known.
const REPEATED: &[&str] =
    &["pwrite64", "pwritev", "read", "pread64", "openat2", "ftruncate", "fallocate", "flock"];

/// What the calls fail with; the last one is a write that makes no progress.
const ERRORS: &[&str] =
    &["EIO", "ENOSPC", "EINTR", "EMFILE", "EROFS", "EDQUOT", "EACCES", "ENOMEM", "nothing"];

/// What the worker does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    /// Makes a journal, and appends over several segments.
    Normal,
    /// Opens one whose last writer was killed with a batch written and not synced, and appends.
    Recovery,
    /// Opens one whose files are gone, and makes them anew.
    Projection,
}

const SCENES: [(Scene, &str); 3] =
    [(Scene::Normal, "normal"), (Scene::Recovery, "recovery"), (Scene::Projection, "projection")];

/// One fault: which call, the how manieth of its thread, and how it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    scene: Scene,
    call: String,
    error: String,
    /// All calls from this one on fail; without, only this one. An interruption happens four times.
    sticky: bool,
    nth: u64,
}

impl Fault {
    fn name(&self) -> String {
        let scene = SCENES.iter().find(|(scene, _)| *scene == self.scene).unwrap().1;
        let how = if self.sticky { "sticky" } else { "once" };
        format!("{scene}/{}/{}/{how}/{}", self.call, self.error, self.nth)
    }

    fn parse(name: &str) -> Option<Self> {
        let words: Vec<_> = name.split('/').collect();
        let [scene, call, error, how, nth] = *words else { return None };
        Some(Self {
            scene: SCENES.iter().find(|(_, name)| *name == scene)?.0,
            call: call.to_owned(),
            error: error.to_owned(),
            sticky: how == "sticky",
            nth: nth.parse().ok()?,
        })
    }

    fn injection(&self) -> String {
        let how = match &*self.error {
            "nothing" => "retval=0".to_owned(),
            error => format!("error={error}"),
        };
        let last = match (self.sticky, &*self.error) {
            (true, "EINTR") => format!("..{}", self.nth + 3),
            (true, _) => "+".to_owned(),
            (false, _) => String::new(),
        };
        format!("inject=?{}:{how}:when={}{last}", self.call, self.nth)
    }

    /// Whether nobody may notice it.
    fn is_invisible(&self) -> bool {
        self.error == "EINTR" && REPEATED.contains(&&*self.call)
    }
}

pub(crate) fn run(asked: &Asked) -> Found {
    let found = Mutex::new(Found::default());
    if let Err(why) = can_trace() {
        found.lock().unwrap().skipped.push(format!("faults at every call: {why}"));
        return found.into_inner().unwrap();
    }
    if let Some(case) = &asked.case {
        if let Some(fault) = Fault::parse(case) {
            note(&fault, &found);
        }
        return found.into_inner().unwrap();
    }
    let all = match every_fault() {
        Ok(all) => all,
        Err(complaint) => {
            found.lock().unwrap().problems.insert("without a fault".to_owned(), complaint);
            return found.into_inner().unwrap();
        }
    };
    found.lock().unwrap().notes.push(format!("of {} faults that there are", all.len()));
    let (begun, len) = (Instant::now(), all.len() as u64);
    // A step that shares no factor with the length goes through all of them, and a sample of it is one
    // of everything.
    let step = (len * 61_803 / 100_000..=len + 1).find(|step| common_factor(*step, len) == 1).unwrap();
    on_all_processors(|next| {
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if nth >= len || !asked.goes_on(nth, QUICK) {
                return;
            }
            note(&all[usize::try_from(nth * step % len).unwrap()], &found);
        }
    });
    let mut found = found.into_inner().unwrap();
    let faults: u64 = found.counts.values().sum();
    found.rate("faults", faults, begun);
    found
}

fn common_factor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_factor(b, a % b) }
}

/// Every fault that there is: each call of each scene, as often as it is made without one, and each way
/// for it to fail.
fn every_fault() -> Finding<Vec<Fault>> {
    let mut all = Vec::new();
    for (scene, _) in SCENES {
        let place = place();
        let mut journal = staged(scene, place.path())?;
        let trace = place.path().join("trace");
        // A call that this machine does not have is no error.
        let calls = FILE_CALLS.map(|call| format!("?{call}")).join(",");
        let options = ["-e".to_owned(), format!("trace={calls}")];
        let life = traced(&mut journal, &options, Some(&trace))?;
        if life.end != End::Well {
            return Err(format!("{life:?}"));
        }
        for (call, count) in calls_of_one_thread(&trace) {
            for error in ERRORS.iter().filter(|error| **error != "nothing" || call.starts_with("pwrite")) {
                for (sticky, nth) in [false, true].into_iter().flat_map(|s| (1..=count).map(move |n| (s, n)))
                {
                    all.push(Fault { scene, call: call.clone(), error: (*error).to_owned(), sticky, nth });
                }
            }
        }
    }
    Ok(all)
}

/// How often the thread that makes a call most often makes it: faults are counted in each by itself.
fn calls_of_one_thread(trace: &Path) -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in std::fs::read_to_string(trace).unwrap().lines() {
        let (thread, rest) = line.split_once(' ').unwrap();
        if let Some((call, _)) = rest.trim_start().split_once('(')
            && FILE_CALLS.contains(&call)
        {
            *counts.entry((call.to_owned(), thread.to_owned())).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, u64> = BTreeMap::new();
    for ((call, _), count) in counts {
        let known = most.entry(call).or_default();
        *known = count.max(*known);
    }
    most
}

/// The journal that a worker of this scene finds.
fn staged(scene: Scene, place: &Path) -> Finding<Journal> {
    let mut journal = Journal::new(place, 0);
    match scene {
        Scene::Normal => {}
        Scene::Recovery => {
            let kill = ["-e".to_owned(), "inject=fdatasync:signal=KILL:when=12".to_owned()];
            let life = traced(&mut journal, &kill, None)?;
            if life.end != End::Killed(9) {
                return Err(format!("it should have been killed: {life:?}"));
            }
        }
        Scene::Projection => {
            traced(&mut journal, &["-e".to_owned(), "trace=none".to_owned()], None)?;
            for folder in ["runs", "cache", "timed-jobs"] {
                let _ = std::fs::remove_dir_all(journal.dir.join(folder));
            }
        }
    }
    Ok(journal)
}

fn traced(journal: &mut Journal, options: &[String], trace: Option<&Path>) -> Finding<Life> {
    let orders = journal.orders(18);
    Process::start(&mut command(&strace(options, trace), &orders))?.end(&mut journal.ledger)
}

fn note(fault: &Fault, found: &Mutex<Found>) {
    let place = place();
    let done = suffer(fault, place.path());
    let mut found = found.lock().unwrap();
    match done {
        Ok(became) => found.count(became, 1),
        Err(complaint) => {
            found.problems.insert(fault.name(), keep(place, &complaint));
        }
    }
}

/// Lets a fault happen, and judges what became of it.
fn suffer(fault: &Fault, place: &Path) -> Finding<&'static str> {
    let mut journal = staged(fault.scene, place)?;
    let trace = place.join("trace");
    let syncs = fault.call == "fdatasync" || fault.call == "fsync";
    let mut options = vec!["-e".to_owned(), fault.injection()];
    if syncs {
        options.extend(["-y", "-e", "trace=fdatasync,fsync"].map(str::to_owned));
    }
    let life = traced(&mut journal, &options, syncs.then_some(&*trace))?;
    let noticed = !life.complaints.is_empty() || life.end != End::Well;
    if fault.is_invisible() && life.started && noticed {
        return Err(format!("it was not just done again: {life:?}"));
    }
    // None of these is a finding about the data, or the caller's fault.
    let wrong = ["corrupt", "unsupported", "misuse", "conflict", "not_found", "locked"];
    let blames = |line: &&String| line.split(' ').take(3).any(|word| wrong.contains(&word));
    if let Some(line) = life.complaints.iter().find(blames) {
        return Err(format!("a failed call is told as something else: {line}"));
    }
    if syncs {
        no_second_sync(&trace)?;
    }
    journal.look(true)?;
    check_files(&journal.dir)?;
    journal.ledger.check_writing(&journal.dir, Pretence::default())?;
    Ok(match (life.started, life.begun, noticed) {
        (false, ..) => "faults before the program",
        (true, _, false) => "faults that nobody noticed",
        (true, false, true) => "faults that kept it from opening",
        (true, true, true) => "faults that were told",
    })
}

/// What a sync said that failed holds: nobody asks a second time.
pub(crate) fn no_second_sync(trace: &Path) -> Finding {
    let (mut failed, mut begun) = (BTreeSet::new(), BTreeMap::new());
    let trace = std::fs::read_to_string(trace).map_err(|error| format!("reading the trace: {error}"))?;
    for line in trace.lines() {
        let (thread, rest) = line.split_once(' ').unwrap();
        // A line of its own tells how a call ended that others came between.
        let path = match rest.trim_start().split_once('(').and_then(|(_, rest)| rest.split_once('<')) {
            Some((_, path)) => path.split('>').next().unwrap_or_default(),
            None => begun.remove(thread).unwrap_or_default(),
        };
        if rest.contains("<unfinished") {
            begun.insert(thread, path);
        } else if failed.contains(path) {
            return Err(format!("{path} was synced again after a sync of it had failed"));
        } else if rest.contains("= -1") {
            failed.insert(path);
        }
    }
    Ok(())
}
