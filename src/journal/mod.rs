//! The journal: opaque records in checksummed batches, in segments, shared by any number of
//! processes.
//!
//! This room never names an event. It knows streams, sequences and positions, and keeps three
//! promises: what a [`Receipt`] was given for survives; a reader never sees what could still be
//! lost; damage is told and never shortened away.

pub(crate) mod bell;
mod core;
mod index;
mod keys;
pub(crate) mod live;
mod mark;
pub(crate) mod read;
mod recovery;
pub(crate) mod segment;
mod spare;
pub(crate) mod verify;
mod view;

pub use segment::Damage;
pub use spare::Spares;
pub use verify::{Verdict, Verification};

use self::bell::Bell;
use self::core::{Answer, Core, Encoded};
use crate::clock::{Clock, Entropy};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::{
    Digest, FIRST_CAPACITY, MAX_BATCH_RECORDS, MAX_BODY_LEN, MAX_CAPACITY, MAX_KEY_LEN, MAX_NAME_LEN,
    MAX_PAYLOAD_LEN,
};
pub(crate) use crate::format::{Draft, Target};
use crate::observe;
use crate::position::{Position, Seq, StreamId};
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Settings of a journal.
#[derive(Debug, Clone, Copy)]
pub struct JournalOptions {
    /// How long to wait for another process's turn to end. Default: 30 s.
    pub patience: Duration,
    /// The capacity of a new journal's first segment in bytes. Default: 256 KiB.
    pub first_capacity: u64,
    /// The capacity segments grow to, fourfold each. Default and limit: 64 MiB.
    pub max_capacity: u64,
    /// Who fills the next segment ahead of time. Default: a thread.
    pub spares: Spares,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            first_capacity: FIRST_CAPACITY,
            max_capacity: MAX_CAPACITY,
            spares: Spares::default(),
        }
    }
}

/// What must hold for an append to be written. They are checked under the journal's lock, with
/// everything seen that any process has written: there is no moment between check and write.
///
/// ```
/// use runwal::engine::Conditions;
/// use runwal::position::Seq;
/// let conditions = Conditions::none().expecting(Seq(5)).term(3).key("invoice-17");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    expected: Option<Seq>,
    term: Option<(u64, Scope)>,
    key: Option<Vec<u8>>,
}

/// Where a higher term stands against a lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Journal,
    Stream,
}

impl Conditions {
    /// None: the append is written wherever it fits.
    pub fn none() -> Self {
        Self::default()
    }

    /// The first record must get this sequence in its stream: nobody else has written to it.
    /// Otherwise [`Conflict::Sequence`](crate::error::Conflict::Sequence).
    pub fn expecting(self, seq: Seq) -> Self {
        Self { expected: Some(seq), ..self }
    }

    /// The append is made in the name of a conductor of this term. All its records bear the term;
    /// from then on whoever comes with a lower one is refused, in any stream, by any process:
    /// [`Conflict::Term`](crate::error::Conflict::Term). Appends without a term are not compared.
    pub fn term(self, term: u64) -> Self {
        Self { term: Some((term, Scope::Journal)), ..self }
    }

    /// The same, compared with the terms of this stream alone: for conductors that lead some
    /// streams each. It counts for those who compare with the whole journal.
    pub fn stream_term(self, term: u64) -> Self {
        Self { term: Some((term, Scope::Stream)), ..self }
    }

    /// The append happens once: where one with this key is in the journal, nothing is written and
    /// the receipt of that one is given, before any other condition is looked at. A key is at most
    /// 256 bytes, of the whole journal, and remembered for as long as the journal is.
    ///
    /// What is compared is the stream, and of each record what it says, `created_at` where it was
    /// given, and its flags; not the append time and not the term. Other content is
    /// [`Conflict::Key`](crate::error::Conflict::Key).
    pub fn key(self, key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..self }
    }
}

impl From<Seq> for Conditions {
    fn from(seq: Seq) -> Self {
        Self::none().expecting(seq)
    }
}

impl From<Option<Seq>> for Conditions {
    fn from(seq: Option<Seq>) -> Self {
        Self { expected: seq, ..Self::none() }
    }
}

/// Records that become durable together or not at all.
#[derive(Debug, Clone)]
pub(crate) struct Batch<'p> {
    /// At least one.
    pub(crate) drafts: Vec<Draft<'p>>,
    /// What must hold for it. Its key and term become those of the drafts.
    pub(crate) conditions: Conditions,
    /// Whether the stream of the first record must not have ended.
    pub(crate) open: bool,
}

/// The proof that a batch is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The stream of the first record.
    pub stream: StreamId,
    /// The position of the first record.
    pub first: Position,
    /// The position of the last record.
    pub last: Position,
    /// The sequence of the last record in its stream.
    pub last_seq: Seq,
    /// The chain hash over the journal up to and with this batch.
    pub chain: Digest,
}

/// One recovery of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The segment whose end was fixed.
    pub segment: u64,
    /// Bytes set aside because they were no whole batch.
    pub quarantined_bytes: u64,
    /// Whole records that nobody had been told were durable, and that now are.
    pub kept_records: u64,
}

/// What opening for writing found to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OpenReport {
    /// Recoveries, usually none or one.
    pub recovered: Vec<Recovered>,
    /// Whole records found after a power cut that nobody had been told were durable.
    pub settled_records: u64,
}

/// One handle on the journal for writing; cheap to clone, shared between threads.
#[derive(Debug, Clone)]
pub(crate) struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    core: Mutex<Core>,
    queue: Mutex<Queue>,
    changed: Condvar,
    durable: Mutex<Position>,
    bell: Arc<Bell>,
    /// The highest term that was seen.
    term: AtomicU64,
}

impl Shared {
    /// Notes what is known after everything was caught up with.
    fn saw(&self, core: &Core) {
        if let Some(view) = &core.view {
            self.term.fetch_max(view.index.term, Ordering::SeqCst);
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(Encoded, Arc<Slot>)>,
    leading: bool,
    guesses: BTreeMap<StreamId, Seq>,
}

#[derive(Debug, Default)]
struct Slot(Mutex<Option<Answer>>);

/// A batch that was accepted and is not known to be durable yet.
#[derive(Debug)]
pub(crate) struct Ticket {
    journal: Journal,
    slot: Arc<Slot>,
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that holds one of these panics half-way through a change; the data is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Opens for writing: takes part in the protocol, creates what is missing, recovers what a
    /// crash left.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        options: JournalOptions,
    ) -> Result<(Self, OpenReport)> {
        let mut core = Core::open(disk, clock, entropy, options)?;
        let report = core.locked(|_, report| Ok(report.clone()))?;
        let durable = core.view()?.spot.position;
        let shared = Shared {
            core: Mutex::new(core),
            queue: Mutex::default(),
            changed: Condvar::new(),
            durable: Mutex::new(durable),
            bell: Arc::default(),
            term: AtomicU64::new(0),
        };
        Ok((Self(Arc::new(shared)), report))
    }

    /// Gives up what is damaged at the end of the journal, so that it can be written again.
    /// Answers with what was given up; `None` where nothing needed to be.
    pub(crate) fn accept_damage(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        options: JournalOptions,
    ) -> Result<Option<Damage>> {
        Core::open(disk, clock, entropy, options)?.accept_damage()
    }

    /// Hands a batch in. It is committed by whoever waits next; dropping the ticket does not take
    /// it back.
    pub(crate) fn submit(&self, mut batch: Batch<'_>) -> Result<Ticket> {
        if let Some(first) = batch.drafts.first_mut() {
            first.key.clone_from(&batch.conditions.key);
        }
        for draft in &mut batch.drafts {
            draft.term = batch.conditions.term.map(|(term, _)| term);
        }
        check_limits(&batch)?;
        {
            let mut queue = hold(&self.0.queue);
            guess(&mut batch, &mut queue.guesses);
        }
        let encoded = Encoded::new(&batch);
        if encoded.body.len() > MAX_BODY_LEN {
            let message =
                format!("a batch of {} bytes is over the limit of {MAX_BODY_LEN}", encoded.body.len());
            return Err(Error::misuse(message));
        }
        let slot = Arc::new(Slot::default());
        // Told first: it must not be told later than its answer.
        observe::accepted();
        hold(&self.0.queue).waiting.push((encoded, Arc::clone(&slot)));
        Ok(Ticket { journal: self.clone(), slot })
    }

    /// Commits everything handed in so far.
    pub(crate) fn flush(&self) {
        let mut queue = hold(&self.0.queue);
        while !queue.waiting.is_empty() || queue.leading {
            queue = self.lead_or_wait(queue);
        }
    }

    /// Becomes the leader of all that waits, or waits for the one there is.
    fn lead_or_wait<'q>(&'q self, mut queue: MutexGuard<'q, Queue>) -> MutexGuard<'q, Queue> {
        if queue.leading {
            return self.0.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.leading = true;
        let group = std::mem::take(&mut queue.waiting);
        drop(queue);
        let (batches, slots): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let mut refused = false;
        let mut core = hold(&self.0.core);
        core.commit(batches, &mut |i, answer| {
            match &answer {
                Ok(receipt) => {
                    let mut durable = hold(&self.0.durable);
                    *durable = (*durable).max(receipt.last);
                }
                Err(_) => refused = true,
            }
            *hold(&slots[i].0) = Some(answer);
        });
        self.0.saw(&core);
        drop(core);
        // Who counts is not ours either, and must not keep the others waiting.
        let _ = catch_unwind(|| slots.iter().for_each(|_| observe::answered()));
        self.0.bell.ring();
        let mut queue = hold(&self.0.queue);
        queue.leading = false;
        if refused {
            queue.guesses.clear();
        }
        self.0.changed.notify_all();
        queue
    }

    /// The last position known to be durable in this process.
    pub(crate) fn durable(&self) -> Position {
        *hold(&self.0.durable)
    }

    /// What rings when this handle has made something durable.
    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.0.bell
    }

    /// Runs `work` while no commit of this process is under way, and so without the journal's lock.
    pub(crate) fn between_commits<T>(&self, work: impl FnOnce() -> T) -> T {
        let _core = hold(&self.0.core);
        work()
    }

    /// Runs `work` under the lock, everything caught up with.
    fn locked<T>(&self, work: impl FnOnce(&mut Core) -> Result<T>) -> Result<T> {
        let mut core = hold(&self.0.core);
        let done = core.locked(|core, _| work(core));
        self.0.saw(&core);
        done
    }

    /// A handle for reading that begins with what is known here, instead of finding it out again. Waits
    /// for the commit that is under way.
    pub(crate) fn reader(&self) -> Result<read::ReadHandle> {
        let (disk, view) = {
            let core = hold(&self.0.core);
            (Arc::clone(&core.disk), core.view.as_ref().map(view::View::for_reading))
        };
        read::ReadHandle::from_view(disk, view)
    }

    /// The streams that have not ended, by what is known here.
    pub(crate) fn open_streams(&self) -> Result<Vec<StreamId>> {
        self.locked(|core| Ok(core.view()?.open_streams().keys().copied().collect()))
    }

    /// The highest term that an append was made in, by any process, as of the last time that this one
    /// had its turn.
    pub(crate) fn seen_term(&self) -> u64 {
        self.0.term.load(Ordering::SeqCst)
    }

    /// The stream of this name.
    pub(crate) fn find_name(&self, name: &[u8]) -> Result<Option<StreamId>> {
        self.locked(|core| core.view()?.find_name(name))
    }

    /// Whether a write failed, so that nothing more is written through this handle.
    pub(crate) fn is_poisoned(&self) -> bool {
        hold(&self.0.core).is_poisoned()
    }
}

impl Ticket {
    /// Waits until the batch is durable or refused.
    pub(crate) fn wait(self) -> Result<Receipt> {
        let mut queue = hold(&self.journal.0.queue);
        loop {
            if let Some(answer) = hold(&self.slot.0).take() {
                return answer;
            }
            queue = self.journal.lead_or_wait(queue);
        }
    }
}

/// Gives records the sequences they will have if nobody else writes to their streams.
fn guess(batch: &mut Batch<'_>, guesses: &mut BTreeMap<StreamId, Seq>) {
    let mut opened = Seq::ZERO;
    for (nth, draft) in batch.drafts.iter_mut().enumerate() {
        let last = match &draft.target {
            Target::Open(_) => {
                opened = Seq::ZERO;
                &mut opened
            }
            Target::Opened => &mut opened,
            Target::Stream(id) => guesses.entry(*id).or_default(),
        };
        if let Some(expected) = batch.conditions.expected.filter(|_| nth == 0) {
            *last = Seq(expected.0.saturating_sub(1));
        }
        *last = Seq(last.0.saturating_add(1));
        draft.seq = *last;
    }
}

fn check_limits(batch: &Batch<'_>) -> Result<()> {
    let refuse = |message: String| Err(Error::misuse(message));
    if batch.drafts.is_empty() {
        return refuse("a batch needs at least one record".to_owned());
    }
    if batch.drafts.len() > MAX_BATCH_RECORDS as usize {
        return refuse(format!("{} records are over the limit of {MAX_BATCH_RECORDS}", batch.drafts.len()));
    }
    for draft in &batch.drafts {
        let len = draft.payload.len();
        if len > MAX_PAYLOAD_LEN {
            return refuse(format!("a record of {len} bytes is over the limit of {MAX_PAYLOAD_LEN}"));
        }
        if let Target::Open(name) = &draft.target
            && name.len() > MAX_NAME_LEN
        {
            return refuse(format!(
                "a stream's name of {} bytes is over the limit of {MAX_NAME_LEN}",
                name.len()
            ));
        }
        if draft.key.as_ref().is_some_and(|key| key.is_empty() || key.len() > MAX_KEY_LEN) {
            return refuse(format!("an idempotency key has 1 to {MAX_KEY_LEN} bytes"));
        }
    }
    Ok(())
}
