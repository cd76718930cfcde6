//! What workers said on their pipes, and what has to be in the journal because of it. It shares no
//! code with the engine, and is told bodies by their prints alone.

use crate::machine::{Pretence, world};
use crate::worker::{options, print};
use runwal::engine::{Engine, Entry, Log};
use runwal::position::Position;
use runwal::record::{Body, Status, checkpoint_type, event, terminal};
use runwal::{ErrorKind, Verdict};
use std::collections::BTreeMap;
use std::path::Path;

/// What its worker was told of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// Stream, first and last position, last sequence.
    Acknowledged([u64; 4]),
    Refused,
    Unknown,
}

#[derive(Debug)]
struct Batch {
    name: String,
    stream: u64,
    keyed: bool,
    prints: Vec<u64>,
    answer: Answer,
    /// It was given out to be handed in again.
    retried: bool,
}

/// What opening for writing adds to a run without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Added {
    Exited,
    Interrupted,
    Patch,
    Tail,
}

/// A record as a reader shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    position: u64,
    stream: u64,
    seq: u64,
    ends: bool,
    print: u64,
    begins_run: bool,
    added: Option<Added>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    batches: Vec<Batch>,
    names: BTreeMap<String, usize>,
    firsts: BTreeMap<u64, usize>,
    shown: Vec<Shown>,
    /// What was found wrong while listening.
    broken: Vec<String>,
    /// How many batches have a receipt.
    pub(crate) acknowledged: u64,
    /// How many were refused, and how many have no answer.
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    /// Whether the disk drops pages that it could not write: of the mark, which is never synced, too.
    pub(crate) drops_pages: bool,
}

/// What a check says.
pub(crate) type Finding<T = ()> = Result<T, String>;

impl Ledger {
    /// Takes a line from a worker's pipe.
    pub(crate) fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match *words {
            ["submit", name, stream, keyed, ref prints @ ..] => self.submitted(Batch {
                name: name.to_owned(),
                stream: stream.parse().unwrap(),
                keyed: keyed == "keyed",
                prints: prints.iter().map(|print| u64::from_str_radix(print, 16).unwrap()).collect(),
                answer: Answer::Unknown,
                retried: false,
            }),
            ["ack", name, stream, first, last, seq] => {
                let receipt = [stream, first, last, seq].map(|number| number.parse().unwrap());
                self.acknowledged += 1;
                self.answered(name, Answer::Acknowledged(receipt));
            }
            ["refused", name, ..] => {
                self.refused += 1;
                self.answered(name, Answer::Refused);
            }
            ["unknown", name, ..] => {
                self.unknown += 1;
                self.answered(name, Answer::Unknown);
            }
            ["broken", ..] => self.broken.push(line.to_owned()),
            _ => {}
        }
    }

    fn submitted(&mut self, batch: Batch) {
        if self.names.contains_key(&batch.name) {
            return;
        }
        self.names.insert(batch.name.clone(), self.batches.len());
        self.firsts.insert(batch.prints[0], self.batches.len());
        self.batches.push(batch);
    }

    /// A later answer to the same batch, which was handed in again under its key, adds to what is
    /// known: a receipt stays one, and a refusal says nothing of an earlier try without an answer.
    fn answered(&mut self, name: &str, answer: Answer) {
        let batch = &mut self.batches[self.names[name]];
        match (&batch.answer, &answer) {
            (Answer::Acknowledged(before), Answer::Acknowledged(now)) if before != now => {
                self.broken.push(format!("batch {name} has two receipts: {before:?} and {now:?}"));
            }
            (Answer::Acknowledged(_), _) => {}
            (Answer::Unknown, Answer::Refused) if batch.retried => {}
            _ => batch.answer = answer,
        }
    }

    /// The last append under a key if it has no answer: whoever comes next can say it again.
    pub(crate) fn retry(&mut self) -> Option<(String, u64)> {
        let last = self.batches.last_mut().filter(|batch| batch.keyed && batch.answer == Answer::Unknown)?;
        last.retried = true;
        Some((last.name.clone(), last.stream))
    }

    /// How many batches were handed in.
    pub(crate) fn submissions(&self) -> u64 {
        self.batches.len() as u64
    }

    /// How many records the last reader showed.
    pub(crate) fn records(&self) -> u64 {
        self.shown.len() as u64
    }

    /// Opens the journal for reading, beside nobody, and judges all that is shown.
    pub(crate) fn check_reading(&mut self, dir: &Path, pretence: Pretence, verify: bool) -> Finding {
        let opened = world(dir, pretence, false).and_then(|world| Log::open_in(&world));
        let mut log = match opened {
            Ok(log) => log,
            // Nothing was made yet that could have been promised.
            Err(error) if error.kind() == ErrorKind::NotFound && !self.promised() => return self.unbroken(),
            // Somebody died at the mark: the next writer tells what is durable.
            Err(error) if error.kind() == ErrorKind::Retry => return Ok(()),
            Err(error) => return Err(format!("opening for reading: {error:?}")),
        };
        self.check(read(&mut log)?)?;
        if verify {
            let found = log.verify(&mut |_| {}).map_err(|error| format!("verifying: {error:?}"))?;
            if found.verdict > Verdict::Torn || !found.damage.is_empty() {
                return Err(format!("verified before recovery: {found:?}"));
            }
        }
        self.unbroken()
    }

    /// Opens the journal for writing, twice, with no other writer alive, and judges what it has become.
    pub(crate) fn check_writing(&mut self, dir: &Path, pretence: Pretence) -> Finding {
        let failed = |doing: &str, error: runwal::Error| format!("{doing}: {error:?}");
        let open = || {
            let world = world(dir, pretence, true)?;
            let (engine, report) = Engine::open_in(world.clone(), options())?;
            engine.close()?;
            Log::open_in(&world).map(|log| (log, report))
        };
        let (mut log, report) = open().map_err(|error| failed("opening for writing", error))?;
        if !report.problems.is_empty() || !report.damaged_runs.is_empty() {
            return Err(format!("opening for writing says {report:?}"));
        }
        self.check(read(&mut log)?)?;
        self.check_ends()?;
        check_clean(&mut log)?;
        let before = self.shown.len();
        let (mut log, again) = open().map_err(|error| failed("opening again", error))?;
        // A mark that the disk has dropped makes the last commit one that nobody was told of.
        let done = again.quarantined_bytes > 0 || again.kept_records > 0 || again.verdict != Verdict::Clean;
        if done && !(self.drops_pages && again.quarantined_bytes == 0) {
            return Err(format!("opening again found something to do: {again:?}"));
        }
        self.check(read(&mut log)?)?;
        if self.shown.len() != before {
            return Err(format!("opening again made {before} records {}", self.shown.len()));
        }
        check_clean(&mut log)?;
        self.unbroken()
    }

    fn promised(&self) -> bool {
        self.acknowledged > 0 || !self.shown.is_empty()
    }

    fn unbroken(&self) -> Finding {
        self.broken.first().map_or(Ok(()), |first| Err(first.clone()))
    }

    fn check(&mut self, shown: Vec<Shown>) -> Finding {
        contiguous(&shown)?;
        if let Some((before, now)) = self.shown.iter().zip(&shown).find(|(before, now)| before != now) {
            return Err(format!("shown before was {before:?}, now {now:?}"));
        }
        if shown.len() < self.shown.len() {
            return Err(format!("{} records were shown before, now {}", self.shown.len(), shown.len()));
        }
        self.batches_are_whole(&shown)?;
        self.promises_are_kept(&shown)?;
        self.shown = shown;
        Ok(())
    }

    /// Every record belongs to a batch that was handed in, each of which is there once and whole; or it
    /// is what opening for writing adds.
    fn batches_are_whole(&self, shown: &[Shown]) -> Finding {
        let mut placed = vec![false; self.batches.len()];
        let mut ended = BTreeMap::new();
        let mut at = 0;
        while let Some(first) = shown.get(at) {
            let len = if let Some(nth) = self.firsts.get(&first.print) {
                let batch = &self.batches[*nth];
                let found = shown[at..].iter().take(batch.prints.len());
                if !found.map(|record| record.print).eq(batch.prints.iter().copied()) {
                    return Err(format!("batch {} at {} is there in part", batch.name, first.position));
                }
                if std::mem::replace(&mut placed[*nth], true) {
                    return Err(format!("batch {} is there twice, also at {}", batch.name, first.position));
                }
                if batch.answer == Answer::Refused {
                    return Err(format!("batch {} was refused, and is at {}", batch.name, first.position));
                }
                batch.prints.len()
            } else {
                interruption(&shown[at..])?
            };
            for record in shown[at..at + len].iter().filter(|record| record.ends) {
                if ended.insert(record.stream, record.position).is_some() {
                    return Err(format!("the run of stream {} ends twice", record.stream));
                }
            }
            at += len;
        }
        Ok(())
    }

    fn promises_are_kept(&self, shown: &[Shown]) -> Finding {
        for batch in &self.batches {
            let Answer::Acknowledged([stream, first, last, seq]) = batch.answer else { continue };
            let place = usize::try_from(first - 1).unwrap();
            let found = shown.get(place..place + batch.prints.len());
            let right = found.is_some_and(|found| {
                let end = &found[found.len() - 1];
                found.iter().map(|record| record.print).eq(batch.prints.iter().copied())
                    && [found[0].stream, found[0].position, end.position, end.seq]
                        == [stream, first, last, seq]
            });
            if !right {
                let (name, len) = (&batch.name, shown.len());
                return Err(format!(
                    "batch {name} has a receipt for {first} to {last} of {len}, and is not there"
                ));
            }
        }
        Ok(())
    }

    /// Nobody records any more: every run has its end.
    fn check_ends(&self) -> Finding {
        let open = self
            .shown
            .iter()
            .filter(|record| record.begins_run)
            .find(|begun| !self.shown.iter().any(|record| record.ends && record.stream == begun.stream));
        open.map_or(Ok(()), |begun| Err(format!("the run of stream {} has no end", begun.stream)))
    }
}

/// Everything that a fresh reader shows.
fn read(log: &mut Log) -> Finding<Vec<Shown>> {
    let mut shown = Vec::new();
    let mut records = log.records(Position(1)).map_err(|error| format!("reading: {error:?}"))?;
    while let Some(entry) = records.next().map_err(|error| format!("reading: {error:?}"))? {
        let record = match entry {
            Entry::Record(record) => record,
            Entry::Damage(damage) => return Err(format!("reading meets {damage:?}")),
        };
        shown.push(Shown {
            position: record.position.0,
            stream: record.stream.0,
            seq: record.seq.0,
            ends: record.ends,
            print: print(&record.body),
            begins_run: matches!(record.body, Body::Run(_)),
            added: added(&record.body),
        });
    }
    Ok(shown)
}

/// Compares the files of all runs with the journal, once opening for writing has mended them.
pub(crate) fn check_files(dir: &Path) -> Finding {
    match differing(dir, false)?.first() {
        Some(run) => Err(format!("the files of {run} are not what the journal says")),
        None => Ok(()),
    }
}

/// The same where a disk lost blocks of files without changing their lengths and times, which only a
/// comparison shows: makes them anew, and answers how many runs they were of.
pub(crate) fn rebuild_files(dir: &Path) -> Finding<usize> {
    let mended = differing(dir, true)?.len();
    check_files(dir).map(|()| mended)
}

/// The runs whose files are not what the journal says; with `write` they are afterwards.
fn differing(dir: &Path, write: bool) -> Finding<Vec<String>> {
    let failed = |error: runwal::Error| format!("comparing files: {error:?}");
    let mut log = Log::open(dir).map_err(failed)?;
    let mut found = Vec::new();
    for run in log.runs().map_err(failed)? {
        let compared = log.rebuild(run.stream, write).map_err(failed)?;
        if compared.is_none_or(|compared| compared.damaged || !compared.differences.is_empty()) {
            found.push(run.name.to_string());
        }
    }
    Ok(found)
}

fn added(body: &Body) -> Option<Added> {
    match body {
        Body::Lifecycle(l) if l.event == event::WORKER_EXITED => Some(Added::Exited),
        Body::Lifecycle(l) if l.event == terminal::INTERRUPTED => Some(Added::Interrupted),
        Body::StatePatch(patch) if patch.status == Some(Status::Interrupted) => Some(Added::Patch),
        Body::Checkpoint(tail) if tail.kind == checkpoint_type::LOG_TAIL => Some(Added::Tail),
        _ => None,
    }
}

fn check_clean(log: &mut Log) -> Finding {
    let found = log.verify(&mut |_| {}).map_err(|error| format!("verifying: {error:?}"))?;
    let clean = found.verdict == Verdict::Clean && found.damage.is_empty() && found.torn_bytes == 0;
    if clean { Ok(()) } else { Err(format!("verified after recovery: {found:?}")) }
}

fn contiguous(shown: &[Shown]) -> Finding {
    let mut sequences: BTreeMap<u64, u64> = BTreeMap::new();
    for (expected, record) in (1..).zip(shown) {
        let last = sequences.entry(record.stream).or_default();
        if record.position != expected || record.seq != *last + 1 || (*last == 0 && record.stream != expected)
        {
            return Err(format!("position {expected}, behind sequence {last}, holds {record:?}"));
        }
        *last += 1;
    }
    Ok(())
}

/// How many records at the front end an interrupted run.
fn interruption(shown: &[Shown]) -> Finding<usize> {
    let is = |at: usize, what: Added| {
        shown.get(at).is_some_and(|record| record.stream == shown[0].stream && record.added == Some(what))
    };
    let exited = usize::from(is(0, Added::Exited));
    if !is(exited, Added::Interrupted) {
        return Err(format!("nobody handed in {:?}", shown[0]));
    }
    if !is(exited + 1, Added::Patch) {
        return Err(format!("the end of stream {} is there in part", shown[0].stream));
    }
    Ok(exited + 2 + usize::from(is(exited + 2, Added::Tail)))
}
