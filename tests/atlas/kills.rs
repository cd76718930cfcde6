//! Processes killed at random moments, and at every system call of theirs.
//!
//! The data is in memory where the system has a place for that: what a killed process wrote is in
//! the cache of the kernel either way, and the device has no part in it.

use crate::chance::Chance;
use crate::journal::{Journal, keep, place};
use crate::ledger::{Finding, check_files};
use crate::machine::Pretence;
use crate::process::{End, FILE_CALLS, LONG, Process, can_trace, command, on_all_processors, strace};
use crate::{Asked, Found};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Kills of the quick part.
const QUICK: u64 = 200;
/// The most lives on one journal: all of it is read after each.
const LIVES: u64 = 12;
/// The calls at which it is killed beside [`FILE_CALLS`]: by one a worker tells what happened.
const OTHER_CALLS: [&str; 2] = ["write", "rename"];
/// Steps of the run that is killed at each of its calls: several segments long.
const STEPS: u64 = 15;

pub(crate) fn run(asked: &Asked) -> Found {
    let found = Mutex::new(Found::default());
    let case = asked.case.as_deref();
    if case.is_none_or(|case| !case.contains('/')) {
        random(asked, &found);
    }
    match can_trace() {
        Ok(()) if asked.count.is_none() => every_call(case, &found),
        Ok(()) => {}
        Err(why) => found.lock().unwrap().skipped.push(format!("kills at every call: {why}")),
    }
    found.into_inner().unwrap()
}

fn random(asked: &Asked, found: &Mutex<Found>) {
    let (begun, killed) = (Instant::now(), AtomicU64::new(0));
    let goes_on = || asked.goes_on(killed.load(Ordering::Relaxed), QUICK);
    let only = asked.case.as_ref().map(|case| case.parse::<u64>().unwrap());
    on_all_processors(|next| {
        while goes_on() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            one_journal(only.unwrap_or(seed), &killed, &goes_on, found);
        }
    });
    found.lock().unwrap().rate("kills", killed.load(Ordering::Relaxed), begun);
}

/// The lives of a journal: each is killed, and the next one, or whoever checks, opens what it left.
fn one_journal(seed: u64, killed: &AtomicU64, goes_on: &dyn Fn() -> bool, found: &Mutex<Found>) {
    let mut chance = Chance::of(&[seed]);
    let place = place();
    let mut journal = Journal::new(place.path(), seed);
    let lives = 1 + chance.below(LIVES);
    let mut done = Ok(());
    while done.is_ok() && journal.life < lives && goes_on() {
        done = journal.live_and_die(&mut chance);
        killed.fetch_add(1, Ordering::Relaxed);
    }
    let done = done.and_then(|()| {
        journal.ledger.check_writing(&journal.dir, Pretence::default())?;
        check_files(&journal.dir)
    });
    let mut found = found.lock().unwrap();
    found.count("kills at random moments", journal.life);
    found.count("acknowledged batches", journal.ledger.acknowledged);
    found.count("batches handed in", journal.ledger.submissions());
    found.count("journals", 1);
    if let Err(complaint) = done {
        found.problems.insert(seed.to_string(), keep(place, &complaint));
    }
}

impl Journal {
    fn live_and_die(&mut self, chance: &mut Chance) -> Finding {
        let mut worker = Process::start(&mut command(&[], &self.orders(u64::MAX)))?;
        // In its opening or soon behind it, or behind so many receipts and a moment.
        let early = chance.one_in(3);
        let acks = if early { u64::MAX } else { chance.below(8) };
        let still =
            worker.listen(&mut self.ledger, acks, if early { micros(chance, 5_000) } else { LONG })?;
        if still && !early {
            worker.listen(&mut self.ledger, u64::MAX, micros(chance, 600))?;
        }
        worker.kill();
        let life = worker.end(&mut self.ledger)?;
        if life.end != End::Killed(9) || !life.complaints.is_empty() {
            return Err(format!("life {}: {life:?}", self.life));
        }
        self.look(chance.one_in(4)).map_err(|complaint| format!("life {}: {complaint}", self.life))
    }
}

fn micros(chance: &mut Chance, below: u64) -> Duration {
    Duration::from_micros(chance.below(below))
}

/// Kills a run at the first, the second, ... of its calls of each kind, until it is done before the
/// one that is waited for. Once each on a new journal, and once on one that all the killed ones before
/// have had: there the opening is killed, too.
fn every_call(case: Option<&str>, found: &Mutex<Found>) {
    let sweeps: Vec<_> =
        OTHER_CALLS.iter().chain(&FILE_CALLS).flat_map(|call| [("new", *call), ("left", *call)]).collect();
    on_all_processors(|next| {
        while let Some((kind, call)) =
            sweeps.get(usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap())
        {
            let name = format!("{kind}/{call}");
            if case.is_some_and(|case| case != name) {
                continue;
            }
            let shared = place();
            let mut journal = Journal::new(shared.path(), 0);
            for n in 1.. {
                let fresh = (*kind == "new").then(place);
                if let Some(fresh) = &fresh {
                    journal = Journal::new(fresh.path(), 0);
                }
                let done = killed_at(&mut journal, call, n);
                let mut found = found.lock().unwrap();
                match done {
                    Ok(true) => found.count("kills at a chosen call", 1),
                    Ok(false) => break,
                    Err(complaint) => {
                        let kept = keep(fresh.unwrap_or(shared), &format!("at call {n}: {complaint}"));
                        found.problems.insert(name, kept);
                        break;
                    }
                }
            }
        }
    });
}

/// Answers whether it was killed before it was done.
fn killed_at(journal: &mut Journal, call: &str, n: u64) -> Finding<bool> {
    let inject = ["-e".to_owned(), format!("inject=?{call}:signal=KILL:when={n}")];
    let traced = strace(&inject, None);
    let orders = journal.orders(STEPS);
    let life = Process::start(&mut command(&traced, &orders))?.end(&mut journal.ledger)?;
    if !life.complaints.is_empty() || !matches!(life.end, End::Killed(9) | End::Well) {
        return Err(format!("{life:?}"));
    }
    journal.look(true)?;
    Ok(life.end != End::Well)
}
