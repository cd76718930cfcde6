//! The journal: opaque records in checksummed batches, in segments, shared by any number of
//! processes.
//!
//! This room never names an event. It knows streams, sequences and positions, and keeps three
//! promises: what a [`Receipt`] was given for survives; a reader never sees what could still be
//! lost; damage is told and never shortened away.

mod append;
pub(crate) mod bell;
mod commit;
mod compression;
mod core;
mod directory;
mod due;
mod index;
mod keys;
pub(crate) mod live;
mod mark;
mod names;
pub(crate) mod read;
mod recovery;
pub(crate) mod segment;
mod spare;
mod sync;
pub(crate) mod verify;
mod view;

pub use read::{Batch, BatchRecords};
pub use segment::Damage;
pub use spare::Spares;
pub use verify::{Verdict, Verification};

pub(crate) use self::append::{Append, Queued};
use self::append::{Arrivals, Encoder, Ready};
use self::bell::Bell;
use self::commit::{Commit, Commits, Place};
use self::core::{Answer, Core};
pub(crate) use self::due::Due;
use crate::clock::{Clock, Entropy};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, FIRST_CAPACITY, MAX_CAPACITY, SEGMENT_DATA_START};
pub(crate) use crate::format::{Draft, Target, WireRecord};
use crate::observe;
use crate::position::{Position, Seq, StreamId};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
#[cfg(feature = "tokio")]
use std::task::{Context, Poll};
use std::time::Duration;

/// How many bytes may wait to be committed before whoever hands more in, and does not wait, commits them first.
pub const MAX_WAITING_LEN: usize = 16 << 20;

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
    /// After how many bytes the index of the segment that is written to is kept in the cache anew, or
    /// after more where it is large. Whoever opens the journal has that much to look at, at most.
    /// Default: 4 MiB.
    pub index_every: u64,
    /// From how many bytes on the records of a batch are compressed where that makes them shorter. What
    /// does not get shorter costs next to nothing, as it is tried ever more seldom. Default: 4 KiB;
    /// `u64::MAX` for never.
    pub compress_from: u64,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            first_capacity: FIRST_CAPACITY,
            max_capacity: MAX_CAPACITY,
            spares: Spares::default(),
            index_every: 4 << 20,
            compress_from: 4 << 10,
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

/// The proof that an append is durable.
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
    /// The chain hash over the journal up to and with the batch that these records stand in, maybe with
    /// others.
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
    commits: Commits<Core>,
    encoder: Arc<Encoder>,
    told: Arc<Told>,
}

/// What is known as of the last turn that this process had.
#[derive(Debug, Default)]
struct Told {
    durable: AtomicU64,
    /// The highest term that was seen.
    term: AtomicU64,
    /// Why nothing more is written, once that is so.
    poisoned: OnceLock<String>,
    bell: Arc<Bell>,
}

impl Told {
    /// Notes what is known after everything was caught up with.
    fn saw(&self, durable: Position, term: u64) {
        self.durable.fetch_max(durable.0, Ordering::SeqCst);
        self.term.fetch_max(term, Ordering::SeqCst);
    }
}

impl Commit for Core {
    type Collected = Arrivals;
    type Answer = Answer;

    fn commit(&mut self, arrivals: &mut Arrivals) -> Vec<Answer> {
        Self::commit(self, arrivals)
    }

    fn count(arrivals: &Arrivals) -> usize {
        arrivals.count()
    }

    fn len(arrivals: &Arrivals) -> usize {
        arrivals.len()
    }

    fn answered(count: usize) {
        // Who counts is not ours, and must not keep the others waiting.
        let _ = catch_unwind(|| (0..count).for_each(|_| observe::answered()));
    }

    fn lost() -> Answer {
        Err(Error::new(ErrorKind::Reopen, "the commit panicked; this is a bug").hint(
            "Whether what was being written is in the journal is not known. Open it anew: that settles it.",
        ))
    }
}

/// An append that was accepted and is not known to be durable yet.
#[derive(Debug)]
pub(crate) struct Ticket {
    journal: Journal,
    place: Place<Core>,
}

/// What who comes too late is told.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Reopen, "the engine was closed, so nothing more is written through it")
        .hint("Nothing was written of this, and nothing is lost. Open the data directory anew to go on.")
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
        let told = Arc::clone(&core.told);
        let encoder = Arc::clone(&core.encoder);
        let shared = Shared { commits: Commits::new(core), encoder, told };
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

    /// Hands an append in. It is committed by whoever waits next; dropping the ticket does not take
    /// it back. Where too much waits by then, that is committed here, unless it comes out of a queue.
    pub(crate) fn submit(&self, append: Append<'_>) -> Result<Ticket> {
        let queued = append.place.is_some();
        let append = Ready::new(append, &self.0.encoder)?;
        // Told first: it must not be told later than its answer.
        observe::accepted();
        let add = |arrivals: &mut Arrivals| arrivals.add(append, &self.0.encoder);
        let Some((place, len)) = self.0.commits.hand_in(add) else {
            observe::answered();
            return Err(closed());
        };
        let ticket = Ticket { journal: self.clone(), place };
        if !queued && len > MAX_WAITING_LEN {
            self.flush();
        }
        Ok(ticket)
    }

    /// Has room for so many bytes, in blocks that were written before: in spare segments, filled by the caller
    /// while others append, of which the first is begun with.
    pub(crate) fn reserve(&self, len: u64) -> Result<()> {
        let (disk, entropy, max, here) = self.locked(|core| {
            let (disk, entropy) = (Arc::clone(&core.disk), Arc::clone(&core.entropy));
            Ok((disk, entropy, core.options.max_capacity, core.reserved_here()?))
        })?;
        if here >= len {
            return Ok(());
        }
        let each = max.saturating_sub(SEGMENT_DATA_START).max(1);
        spare::reserve(&*disk, &*entropy, max, (len - here).div_ceil(each))?;
        if spare::reserved(&*disk, max)? > 0 { self.locked(Core::enter_reserved) } else { Ok(()) }
    }

    /// Commits everything handed in so far.
    pub(crate) fn flush(&self) {
        self.0.commits.flush();
    }

    /// Takes nothing more in, and commits what was handed in. Behind that nothing is appended by this handle.
    pub(crate) fn close(&self) {
        self.0.commits.close();
        // Here, and not where the last one is dropped: that may be a thread that must not wait.
        self.0.commits.core().stop_filling();
    }

    /// Bytes that wait to be committed.
    pub(crate) fn waiting_len(&self) -> usize {
        self.0.commits.waiting_len()
    }

    /// Whether anything can be written still, without waiting for a commit that is under way.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.0.told.poisoned.get().map_or(Ok(()), |why| Err(core::poisoned(why)))
    }

    /// The last position known to be durable in this process.
    pub(crate) fn durable(&self) -> Position {
        Position(self.0.told.durable.load(Ordering::SeqCst))
    }

    /// What rings when this handle has made something durable.
    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.0.told.bell
    }

    /// Runs `work` while no commit of this process is under way, and so without the journal's lock.
    pub(crate) fn between_commits<T>(&self, work: impl FnOnce() -> T) -> T {
        let _core = self.0.commits.core();
        work()
    }

    /// Runs `work` under the lock, everything caught up with.
    fn locked<T>(&self, work: impl FnOnce(&mut Core) -> Result<T>) -> Result<T> {
        self.0.commits.core().locked(|core, _| work(core))
    }

    /// A handle for reading that begins with what is known here, instead of finding it out again. Waits
    /// for the commit that is under way.
    pub(crate) fn reader(&self) -> Result<read::ReadHandle> {
        let (disk, view) = {
            let core = self.0.commits.core();
            (Arc::clone(&core.disk), core.view.as_ref().map(view::View::for_reading))
        };
        read::ReadHandle::from_view(disk, view)
    }

    /// Moves a handle for reading on to what is durable now, with the help of what is known here. Waits for the
    /// commit that is under way.
    pub(crate) fn refresh(&self, handle: &mut read::ReadHandle) -> Result<bool> {
        let before = handle.durable();
        if let Some(view) = &self.0.commits.core().view {
            handle.follow_writer(view);
        }
        handle.refresh()?;
        Ok(handle.durable() > before)
    }

    /// The streams that have not ended, by what is known here.
    pub(crate) fn open_streams(&self) -> Result<Vec<StreamId>> {
        self.locked(|core| Ok(core.view()?.open_streams().keys().copied().collect()))
    }

    /// The highest term that an append was made in, by any process, as of the last time that this one
    /// had its turn.
    pub(crate) fn seen_term(&self) -> u64 {
        self.0.told.term.load(Ordering::SeqCst)
    }

    /// The stream of this name.
    pub(crate) fn find_name(&self, name: &[u8]) -> Result<Option<StreamId>> {
        self.locked(|core| core.view()?.find_name(name))
    }

    /// Whether a write failed, so that nothing more is written through this handle.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.0.commits.core().is_poisoned()
    }
}

impl Journal {
    /// Commits whatever is handed in until `stop` says so, and then what is left.
    #[cfg(feature = "tokio")]
    pub(crate) fn serve(&self, stop: &dyn Fn() -> bool) {
        self.0.commits.serve(stop);
    }

    /// Has [`serve`](Self::serve) ask whether to stop.
    #[cfg(feature = "tokio")]
    pub(crate) fn nudge(&self) {
        self.0.commits.nudge();
    }
}

impl Ticket {
    /// The answer, if it is there, for a task; somebody has to [`serve`](Journal::serve).
    #[cfg(feature = "tokio")]
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Result<Receipt>> {
        Commits::poll(&self.place, context)
    }

    /// Waits until the append is durable or refused.
    pub(crate) fn wait(self) -> Result<Receipt> {
        self.journal.0.commits.wait(self.place)
    }
}
