//! The ledger of a test: what was handed in, what was answered, what was shown. It knows what the
//! log promises and nothing of how the log keeps it.

use crate::error::{Error, ErrorKind};
use crate::journal::Receipt;
use crate::position::StreamId;
use crate::record::{Body, Channel, Record, Status, event, terminal};
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// The number of the first batch that was committed with it.
    commit: usize,
}

/// See the [module](self).
///
/// A copy is cheap: what two copies have in common they share.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    batches: Vec<Arc<Submitted>>,
    shown: Vec<Arc<Record>>,
}

/// What a check says.
pub type Finding = Result<(), String>;

fn unless(right: bool, complaint: impl FnOnce() -> String) -> Finding {
    if right { Ok(()) } else { Err(complaint()) }
}

impl Ledger {
    /// Notes a batch that is about to be handed in; answers with its number.
    pub fn submit(&mut self, bodies: Vec<Body>) -> usize {
        let commit = self.batches.len();
        self.batches.push(Arc::new(Submitted { bodies, answer: Answer::Unknown, commit }));
        self.batches.len() - 1
    }

    /// Notes that batches were committed as one.
    pub fn together(&mut self, batches: &[usize]) {
        for batch in batches {
            Arc::make_mut(&mut self.batches[*batch]).commit = batches[0];
        }
    }

    /// Notes what its writer was told.
    pub fn answered(&mut self, batch: usize, answer: &Result<Receipt, Error>) {
        Arc::make_mut(&mut self.batches[batch]).answer = match answer {
            Ok(receipt) => Answer::Acknowledged(*receipt),
            Err(error) => match error.kind() {
                ErrorKind::Reopen | ErrorKind::Full => Answer::Unknown,
                _ => Answer::Refused,
            },
        };
    }

    /// Notes that a batch was refused for certain.
    pub fn refused(&mut self, batch: usize) {
        Arc::make_mut(&mut self.batches[batch]).answer = Answer::Refused;
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
        for record in &self.shown {
            let owner = self.batches.iter().position(|b| b.bodies.contains(&record.body));
            let owner = owner.map_or(u64::MAX, |owner| owner as u64);
            for part in [record.position.0, record.stream.0, record.seq.0, owner] {
                hasher.update(&part.to_le_bytes());
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// Judges everything a reader was shown, from the first record on, and remembers it.
    pub fn check(&mut self, records: &[Record]) -> Finding {
        contiguous(records)?;
        self.nothing_unshown(records)?;
        self.batches_are_whole(records)?;
        self.promises_are_kept(records)?;
        let more = records.iter().skip(self.shown.len());
        self.shown.extend(more.cloned().map(Arc::new));
        Ok(())
    }

    /// Judges what a reader shows that is open for long: it may lag behind, where a damaged mark and a
    /// dead writer keep it from telling what is durable, and shows nothing else.
    pub fn check_follower(&self, records: &[Record]) -> Finding {
        contiguous(records)?;
        self.batches_are_whole(records)?;
        let differs = self.shown.iter().zip(records).find(|(before, now)| ***before != **now);
        unless(differs.is_none(), || format!("a follower shows {differs:?}"))
    }

    /// Judges what a reader shows of a file system that was lost with a commit under way and mounted anew
    /// in the same boot, before anybody has opened the journal for writing: what the last commit with a
    /// receipt wrote may not be shown.
    pub fn check_lagging(&self, records: &[Record]) -> Finding {
        self.check_follower(records)?;
        let receipts = self.batches.iter().filter_map(|batch| match batch.answer {
            Answer::Acknowledged(receipt) => Some((receipt.last.0, batch.commit)),
            _ => None,
        });
        let last = receipts.clone().max().map(|(_, commit)| commit);
        let told = receipts.filter(|(_, commit)| Some(*commit) != last).map(|(at, _)| at).max().unwrap_or(0);
        let shown = records.len() as u64;
        unless(shown >= told, || {
            format!("{shown} records are shown, {told} have receipts that are not the last")
        })
    }

    fn nothing_unshown(&self, records: &[Record]) -> Finding {
        unless(records.len() >= self.shown.len(), || {
            format!("{} records were shown before, now {}", self.shown.len(), records.len())
        })?;
        for (before, now) in self.shown.iter().zip(records) {
            unless(**before == *now, || format!("record {} was {before:?}, now {now:?}", before.position))?;
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

/// What the files of all runs and of the timed jobs have to contain, but for `state.json` and
/// `meta.json`: written down again from the words of the promise.
pub fn expected_files(records: &[Record]) -> BTreeMap<String, Vec<u8>> {
    let mut folders: BTreeMap<StreamId, String> = BTreeMap::new();
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for record in records {
        let folder = folders.get(&record.stream).cloned().unwrap_or_default();
        let mut append = |name: &str, bytes: &[u8]| {
            files.entry(format!("{folder}/{name}")).or_default().extend_from_slice(bytes);
        };
        match &record.body {
            Body::Run(request) => {
                let folder = format!("runs/{}/{}", request.name.task, request.name.run);
                folders.insert(record.stream, folder);
            }
            Body::Chunk(Channel::Stdout, bytes) => append("stdout.log", bytes),
            Body::Chunk(Channel::Stderr, bytes) => append("stderr.log", bytes),
            Body::Lifecycle(event) if !folder.is_empty() => {
                let level = format!("{:?}", event.level).to_uppercase();
                let (created, data) = (record.created_at.to_millis_string(), event.data.as_str());
                let line = format!("{created} {level} {} {} {data}\n", event.event, event.message);
                append("worker.log", line.as_bytes());
            }
            _ => {}
        }
    }
    files
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
