//! The ledger of a test: what was handed in, what was answered, what was shown. It knows what the
//! log promises and nothing of how the log keeps it.

use crate::error::{Error, ErrorKind};
use crate::journal::Receipt;
use crate::position::StreamId;
use crate::record::{Body, Record, Status, event, terminal};
use std::collections::BTreeMap;

/// What became of a batch, as far as its writer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A receipt was given: it must be there, at this place, for ever.
    Acknowledged(Receipt),
    /// Nothing was written: it must never appear.
    Refused,
    /// It may appear or not; once seen it must stay.
    Unknown,
}

#[derive(Debug, Clone)]
struct Submitted {
    bodies: Vec<Body>,
    answer: Answer,
}

/// See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    batches: Vec<Submitted>,
    shown: Vec<Record>,
}

/// What a check says.
pub type Finding = Result<(), String>;

fn unless(right: bool, complaint: impl FnOnce() -> String) -> Finding {
    if right { Ok(()) } else { Err(complaint()) }
}

impl Ledger {
    /// Notes a batch that is about to be handed in; answers with its number.
    pub fn submit(&mut self, bodies: Vec<Body>) -> usize {
        self.batches.push(Submitted { bodies, answer: Answer::Unknown });
        self.batches.len() - 1
    }

    /// Notes what its writer was told.
    pub fn answered(&mut self, batch: usize, answer: &Result<Receipt, Error>) {
        self.batches[batch].answer = match answer {
            Ok(receipt) => Answer::Acknowledged(*receipt),
            Err(error) => match error.kind() {
                ErrorKind::Reopen | ErrorKind::Full => Answer::Unknown,
                _ => Answer::Refused,
            },
        };
    }

    /// Notes that a batch was refused for certain.
    pub fn refused(&mut self, batch: usize) {
        self.batches[batch].answer = Answer::Refused;
    }

    /// Whether a receipt was given or a record was shown.
    pub fn promised(&self) -> bool {
        !self.shown.is_empty() || self.acknowledged() > 0
    }

    /// How many batches have a receipt.
    pub fn acknowledged(&self) -> usize {
        self.batches.iter().filter(|b| matches!(b.answer, Answer::Acknowledged(_))).count()
    }

    /// A digest of all answers and of what was shown: two ledgers with the same one demand the same.
    pub fn digest(&self) -> [u8; blake3::OUT_LEN] {
        let mut hasher = blake3::Hasher::new();
        for batch in &self.batches {
            hasher.update(&[match batch.answer {
                Answer::Acknowledged(_) => 0,
                Answer::Refused => 1,
                Answer::Unknown => 2,
            }]);
        }
        hasher.update(&self.shown.len().to_le_bytes());
        for record in &self.shown {
            hasher.update(format!("{record:?}").as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// Judges everything a reader was shown, from the first record on, and remembers it.
    pub fn check(&mut self, records: &[Record]) -> Finding {
        contiguous(records)?;
        self.nothing_unshown(records)?;
        self.batches_are_whole(records)?;
        self.promises_are_kept(records)?;
        self.shown = records.to_vec();
        Ok(())
    }

    /// Judges what a reader shows that is open for long: it may lag behind, where a damaged mark and a
    /// dead writer keep it from telling what is durable, and shows nothing else.
    pub fn check_follower(&self, records: &[Record]) -> Finding {
        contiguous(records)?;
        self.batches_are_whole(records)?;
        let differs = self.shown.iter().zip(records).find(|(before, now)| before != now);
        unless(differs.is_none(), || format!("a follower shows {differs:?}"))
    }

    fn nothing_unshown(&self, records: &[Record]) -> Finding {
        unless(records.len() >= self.shown.len(), || {
            format!("{} records were shown before, now {}", self.shown.len(), records.len())
        })?;
        for (before, now) in self.shown.iter().zip(records) {
            unless(before == now, || format!("record {} was {before:?}, now {now:?}", before.position))?;
        }
        Ok(())
    }

    /// Every record belongs to a batch that was handed in, each batch is there once and whole, in
    /// its order; or it is what opening for writing adds to a run without an end.
    fn batches_are_whole(&self, records: &[Record]) -> Finding {
        let mut placed = vec![false; self.batches.len()];
        let mut ended: BTreeMap<StreamId, usize> = BTreeMap::new();
        let mut at = 0;
        while at < records.len() {
            let first = &records[at];
            let owner = self.batches.iter().position(|b| b.bodies[0] == first.body);
            let Some(owner) = owner else {
                at += interruption(&records[at..])?;
                *ended.entry(first.stream).or_default() += 1;
                continue;
            };
            unless(!placed[owner], || format!("batch {owner} is there twice, also at {}", first.position))?;
            placed[owner] = true;
            let bodies = &self.batches[owner].bodies;
            let found: Vec<_> = records[at..].iter().take(bodies.len()).collect();
            unless(found.iter().map(|r| &r.body).eq(bodies.iter()), || {
                format!("batch {owner} at {} is there in part", first.position)
            })?;
            unless(!ended.contains_key(&first.stream), || {
                format!("batch {owner} at {} stands behind the end of its run", first.position)
            })?;
            if found.iter().any(|r| r.ends) {
                *ended.entry(first.stream).or_default() += 1;
            }
            unless(self.batches[owner].answer != Answer::Refused, || {
                format!("batch {owner} was refused, and is there at {}", first.position)
            })?;
            at += bodies.len();
        }
        match ended.iter().find(|(_, count)| **count > 1) {
            Some((stream, count)) => Err(format!("the run of stream {stream} ended {count} times")),
            None => Ok(()),
        }
    }

    fn promises_are_kept(&self, records: &[Record]) -> Finding {
        for (i, batch) in self.batches.iter().enumerate() {
            let Answer::Acknowledged(receipt) = batch.answer else { continue };
            let from = usize::try_from(receipt.first.0 - 1).unwrap_or(usize::MAX);
            let found = records.get(from..from + batch.bodies.len());
            let Some(found) = found else {
                let last = records.len();
                return Err(format!("batch {i} has a receipt for {}, the log ends at {last}", receipt.first));
            };
            unless(found.iter().map(|r| &r.body).eq(batch.bodies.iter()), || {
                format!("batch {i} is not at {}, for which there is a receipt", receipt.first)
            })?;
            let last = &found[found.len() - 1];
            let there = (found[0].stream, found[0].position, last.position, last.seq);
            let told = (receipt.stream, receipt.first, receipt.last, receipt.last_seq);
            unless(there == told, || format!("batch {i} is at {there:?}, the receipt says {told:?}"))?;
        }
        Ok(())
    }

    /// After opening for writing with no other recorder alive: every run has exactly one end.
    pub fn check_ends(&self, records: &[Record]) -> Finding {
        let mut runs: BTreeMap<StreamId, usize> = BTreeMap::new();
        for record in records {
            if matches!(record.body, Body::Run(_)) {
                runs.insert(record.stream, 0);
            }
            if let Some(ends) = runs.get_mut(&record.stream) {
                *ends += usize::from(record.ends);
            }
        }
        match runs.iter().find(|(_, ends)| **ends != 1) {
            Some((stream, ends)) => Err(format!("the run of stream {stream} has {ends} ends")),
            None => Ok(()),
        }
    }
}

fn contiguous(records: &[Record]) -> Finding {
    let mut sequences: BTreeMap<StreamId, u64> = BTreeMap::new();
    for (expected, record) in (1..).zip(records) {
        unless(record.position.0 == expected, || {
            format!("position {} stands where {expected} should", record.position)
        })?;
        let last = sequences.entry(record.stream).or_default();
        unless(record.seq.0 == *last + 1, || {
            format!("record {expected} has sequence {}, the one before it {last}", record.seq)
        })?;
        unless(*last > 0 || record.stream.0 == expected, || {
            format!("stream {} begins at {expected}", record.stream)
        })?;
        *last += 1;
    }
    Ok(())
}

/// The records that end an interrupted run: how many there are at the front.
fn interruption(records: &[Record]) -> Result<usize, String> {
    let stream = records[0].stream;
    let is_event = |record: &Record, name: &str| {
        record.stream == stream && matches!(&record.body, Body::Lifecycle(l) if l.event == name)
    };
    let mut at = usize::from(is_event(&records[0], event::WORKER_EXITED));
    let phantom = || format!("record {} was never handed in: {:?}", records[0].position, records[0].body);
    let end = records.get(at).ok_or_else(phantom)?;
    unless(is_event(end, terminal::INTERRUPTED) && end.ends, phantom)?;
    at += 1;
    let patch = records.get(at).filter(|record| {
        let interrupted =
            matches!(&record.body, Body::StatePatch(p) if p.status == Some(Status::Interrupted));
        record.stream == stream && interrupted
    });
    unless(patch.is_some(), || format!("the end of stream {stream} is there in part"))?;
    Ok(at + 1)
}
