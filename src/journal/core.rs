//! One process's turn at the journal: lock, catch up, check, write, sync, publish, unlock.

mod admission;
mod giving_up;
mod group;

use super::append::Encoder;
use super::index;
use super::mark::{Lock, MarkFile, MarkView, Standing, create_mark};
use super::recovery::{self, Inspection, Plan};
use super::segment::{Bound, FOLDER, Segment, Spot, file_name};
use super::spare::{self, Blank, Filler, Spares};
use super::view::{View, bound_of, known_journal, newest};
use super::{JournalOptions, OpenReport, Receipt, Recovered, Told};
use crate::clock::{Clock, Entropy};
use crate::disk::{Disk, Open};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::format::{BATCH_HEADER_LEN, Mark, Phase, SegmentHeader};
use crate::observe;
use crate::position::{Position, Seq};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// How often catching up may find something new to settle before it must be done.
const MAX_ROUNDS: usize = 6;
/// Up to which length, on average, groups gain from blocks that were written before: a flood would
/// write all of it twice.
const SMALL_GROUP_LEN: u64 = 256 << 10;
/// How many times what an index takes in memory must have been written before it is kept once more.
const KEPT_SHARE: u64 = 4;

/// The answer to one append.
pub(super) type Answer = Result<Receipt>;

#[derive(Debug)]
pub(super) struct Core {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) options: JournalOptions,
    lock: Lock,
    mark: MarkFile,
    mark_view: MarkView,
    pub(super) view: Option<View>,
    filler: Filler,
    written: Written,
    pub(super) encoder: Arc<Encoder>,
    /// What others are told.
    pub(super) told: Arc<Told>,
}

/// What this process wrote since it last rolled.
#[derive(Debug, Default)]
struct Written {
    groups: u64,
    len: u64,
}

impl Written {
    /// Whether its groups are so small that blocks written before are worth their price: a flood would write
    /// everything twice.
    fn are_small(&self) -> bool {
        self.len / self.groups.max(1) < SMALL_GROUP_LEN
    }
}

impl Core {
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        options: JournalOptions,
    ) -> Result<Self> {
        if let Some(kind) = disk.unreliable()? {
            let message =
                format!("the data directory is on {kind}, where locks and syncs cannot be relied upon");
            return Err(Error::new(ErrorKind::Unsupported, message)
                .hint("Put the data directory on a local file system; nothing was written."));
        }
        disk.create_dir(FOLDER)?;
        let lock = Lock::find_or_make(&*disk)?;
        let mark = create_mark(&*disk)?;
        Ok(Self {
            disk,
            clock,
            entropy,
            options,
            lock,
            mark,
            mark_view: MarkView::ABSENT,
            view: None,
            filler: Filler::default(),
            encoder: Arc::new(Encoder::new(options.compress_from)),
            written: Written::default(),
            told: Arc::default(),
        })
    }

    /// Runs `work` with the lock held and everything of others caught up with. Those who are told of it
    /// (subscribers, a disk of the embedder's) are not ours: where one panics, nobody else waits for ever.
    pub(super) fn locked<T>(&mut self, work: impl FnOnce(&mut Self, &OpenReport) -> Result<T>) -> Result<T> {
        if let Some(why) = self.told.poisoned.get() {
            return Err(poisoned(why));
        }
        self.lock.take(&*self.disk, &*self.clock, self.options.patience, &self.mark)?;
        let done = catch_unwind(AssertUnwindSafe(|| self.catch_up().and_then(|report| work(self, &report))));
        let result = done.unwrap_or_else(|_| {
            // Where it stopped is as little known as after a failed write.
            self.poison("something panicked in the middle of it".to_owned());
            Err(Error::new(ErrorKind::Reopen, "something panicked under the journal's lock").hint(
                "Whether what was being written is in the journal is not known. Open it anew: that settles it.",
            ))
        });
        let unlocked = self.lock.give_back();
        if let Some(view) = &self.view {
            self.told.saw(view.spot.position, view.index.term);
        }
        let value = result?;
        unlocked?;
        Ok(value)
    }

    /// The view, which is there once anything was caught up with.
    pub(super) fn view(&mut self) -> Result<&mut View> {
        self.view.as_mut().ok_or_else(|| Error::misuse("the journal has not been looked at yet"))
    }

    fn catch_up(&mut self) -> Result<OpenReport> {
        let mut report = OpenReport::default();
        // Nobody has written since this process did: the common case, and nothing is decoded for it.
        if self.view.is_some() && self.mark_view.is_current() && self.mark.is_still(&self.mark_view)? {
            return Ok(report);
        }
        for _ in 0..MAX_ROUNDS {
            let mark = self.mark.read()?;
            if let Some(best) = mark.best.filter(|_| mark.is_current())
                && !self.is_behind(best.segment)?
                && self.follow(&best)?
            {
                self.mark_view = mark;
                return Ok(report);
            }
            self.settle(&mark, &mut report)?;
        }
        Err(Error::new(
            ErrorKind::Retry,
            "the journal kept changing while it was caught up with under its lock",
        ))
    }

    /// Whether a file with a segment's name stands behind this one. Whoever opens looks for the names of
    /// all: a file far ahead is in the way later, in the middle of the work.
    fn is_behind(&self, number: u64) -> Result<bool> {
        if self.view.is_none() {
            return Ok(newest(&*self.disk)?.is_some_and(|newest| newest > number));
        }
        Ok(self.disk.stat(&file_name(number + 1))?.is_some())
    }

    /// Indexes what others made durable, if nothing stands behind the mark.
    fn follow(&mut self, mark: &Mark) -> Result<bool> {
        if self.view.as_ref().is_none_or(|view| view.segment.number() > mark.segment) {
            match Segment::open(&*self.disk, mark.segment, Open::Write) {
                Ok(segment) => {
                    self.view = Some(View::at_start(Arc::clone(&self.disk), segment, bound_of(mark), true)?);
                }
                Err(super::segment::Unopened::Missing | super::segment::Unopened::Damaged(_)) => {
                    return Ok(false);
                }
                Err(unopened) => return Err(unopened.into_error(mark.segment)),
            }
        }
        let view = self.view()?;
        let known_damage = view.damage.len();
        view.advance(mark.segment, bound_of(mark))?;
        if view.damage.len() > known_damage || view.segment.header.journal != mark.journal {
            self.view = None;
            return Ok(false);
        }
        let mut head = [0; BATCH_HEADER_LEN];
        let read = self.view()?.segment.file.read_at(&mut head, mark.end)?;
        Ok(head[..read].iter().all(|b| *b == 0))
    }

    /// Finds out what the newest segment holds and does what the plan says.
    fn settle(&mut self, mark: &MarkView, report: &mut OpenReport) -> Result<()> {
        let told = mark.evidence().map(|m| m.position);
        let Some(number) = newest(&*self.disk)? else {
            return match told.filter(|p| *p != Position::ZERO) {
                Some(position) => Err(missing(1, position)),
                None => self.create_first(mark),
            };
        };
        if let Some(named) = mark.evidence().filter(|m| m.segment > number) {
            return Err(missing(number + 1, named.position));
        }
        let segment = Segment::open(&*self.disk, number, Open::Write)
            .map_err(|unopened| with_way_on(unopened.into_error(number)))?;
        let journal = known_journal(&*self.disk, mark)?;
        if journal.is_some_and(|journal| journal != segment.header.journal) {
            let damage = super::Damage::new(number, 0, "the segment belongs to another journal");
            let named = mark.best.map_or(Position::ZERO, |best| best.position);
            return Err(with_way_on(damage.losing(segment.header.first_position, named).to_error()));
        }
        let known = self.view.as_ref().filter(|v| v.segment.number() == number && v.damage.is_empty());
        let known = match (known, told) {
            (Some(view), _) => Some(view.spot),
            // Of this boot: what is told is still what the file has.
            (None, Some(position)) if mark.standing == Standing::Current => {
                let bound = Bound { offset: u64::MAX, position: Some(position) };
                index::of_beginning(&*self.disk, &segment, bound)?.map(|(_, spot)| spot)
            }
            (None, _) => None,
        };
        let found = recovery::inspect(segment, known, told)?;
        let facts = found.facts(mark);
        let plan = recovery::plan(facts);
        if plan != Plan::Refuse && found.is_unnamed(mark) {
            self.settle_name(mark, &found)?;
        }
        match plan {
            Plan::Refuse => Err(with_way_on(found.loss().to_error())),
            Plan::Publish => self.publish_found(mark, &found),
            Plan::SyncThenPublish => {
                self.guard(|_| found.segment.file.sync())?;
                report.settled_records += found.good.position.0 - found.proven.position.0;
                self.publish_found(mark, &found)
            }
            Plan::Recover => {
                self.recover(&found, report)?;
                Ok(())
            }
        }
    }

    /// Makes a name durable whose maker may have died before it was: nothing may be built on it
    /// before.
    fn settle_name(&mut self, mark: &MarkView, found: &Inspection) -> Result<()> {
        self.guard(|core| {
            if !found.has_nothing_of_its_own(&*core.disk, mark)? {
                return core.disk.sync_dir(FOLDER);
            }
            let temporary = spare::temporary(&*core.entropy)?;
            recovery::sync_name(&*core.disk, &file_name(found.segment.number()), &temporary)
        })
    }

    fn publish_found(&mut self, mark: &MarkView, found: &Inspection) -> Result<()> {
        self.mark.publish(mark, mark_at(&found.segment.header, &found.good), &*self.entropy)?;
        Ok(())
    }

    fn create_first(&mut self, mark: &MarkView) -> Result<()> {
        self.guard(|core| {
            spare::sweep(&*core.disk)?;
            // Whoever made the folder may have died before it was durable.
            core.disk.sync_dir(".")?;
            let mut header = recovery::first_header(&*core.entropy, &*core.clock)?;
            header.capacity = core.options.first_capacity;
            let blank = Blank::fresh(&*core.disk, &*core.entropy)?;
            let (segment, spot) = recovery::create_segment(&*core.disk, blank, header, &[])?;
            core.mark.publish(mark, mark_at(&segment.header, &spot), &*core.entropy)?;
            Ok(())
        })
    }

    /// An empty file for a segment that goes on behind another one. The first one of a journal grows: most journals
    /// are small, and stay so.
    fn blank(&self, capacity: u64) -> Result<Blank> {
        if self.options.spares == Spares::Never || !self.written.are_small() {
            return Blank::fresh(&*self.disk, &*self.entropy);
        }
        Blank::filled(&*self.disk, &*self.entropy, capacity)
    }

    /// Goes on in a new segment with what is whole, and sets aside what is not.
    fn recover(&mut self, found: &Inspection, report: &mut OpenReport) -> Result<()> {
        self.guard(|core| {
            core.mark.set_busy(Phase::Recovering, core.clock.now())?;
            spare::sweep(&*core.disk)?;
            if let Some((from, to)) = found.garbage {
                recovery::quarantine(&*core.disk, &found.segment, from, to)?;
            }
            let copies = recovery::read_batches(&found.segment, &found.doubt)?;
            let salt = core.entropy.number()?;
            let old = &found.segment.header;
            let mut header = recovery::successor(old, &found.proven, salt, &*core.clock)?;
            header.epoch = header.next_epoch();
            header.born_upto = found.good.position;
            let blank = Blank::fresh(&*core.disk, &*core.entropy)?;
            let (segment, spot) = recovery::create_segment(&*core.disk, blank, header, &copies)?;
            let mark = core.mark.read()?;
            core.mark.publish(&mark, mark_at(&segment.header, &spot), &*core.entropy)?;
            let kept_records = found.good.position.0 - found.proven.position.0;
            let quarantined_bytes = found.garbage_len();
            report.recovered.push(Recovered { segment: old.segment, quarantined_bytes, kept_records });
            observe::recovered(old.segment, quarantined_bytes, kept_records);
            Ok(())
        })
    }

    /// Seals the active segment with its footer and makes the next one.
    fn roll(&mut self) -> Result<()> {
        self.check_name()?;
        self.guard(|core| {
            core.mark.set_busy(Phase::Rolling, core.clock.now())?;
            let (salt, max) = (core.entropy.number()?, core.options.max_capacity);
            let view = core.view()?;
            let (old, end) = (view.segment.header, view.spot);
            let footer = view.index.encode(&old.site(), end.offset);
            if let Some(footer) = &footer {
                view.segment.file.write_at(footer, end.offset)?;
                view.segment.file.sync()?;
            }
            let mut header = recovery::successor(&old, &end, salt, &*core.clock)?;
            header.prev_footer_len = match footer {
                Some(footer) => u32::try_from(footer.len())
                    .map_err(|_| Error::new(ErrorKind::Full, "the index of a segment is too long"))?,
                None => 0,
            };
            let next = grown(old.capacity, max);
            spare::sweep(&*core.disk)?;
            let (blank, capacity) = match Blank::spare(&*core.disk, &*core.entropy, [max, next]) {
                Ok(Some(spare)) => spare,
                // Whatever is wrong with a spare, the journal does not need one.
                Ok(None) | Err(_) => (core.blank(next)?, next),
            };
            header.capacity = capacity;
            let (segment, spot) = recovery::create_segment(&*core.disk, blank, header, &[])?;
            let mark = mark_at(&segment.header, &spot);
            core.mark_view = core.mark.publish(&core.mark_view, mark, &*core.entropy)?;
            core.view()?.enter(segment);
            Ok(())
        })?;
        let header = &self.view()?.segment.header;
        observe::rolled(header.segment, header.capacity);
        if std::mem::take(&mut self.written).are_small() {
            let len = grown(self.view()?.segment.header.capacity, self.options.max_capacity);
            self.filler.ask(&self.disk, &*self.entropy, len, self.options.spares);
        }
        Ok(())
    }

    /// How many bytes fit into the active segment, if its blocks were all written before.
    pub(super) fn reserved_here(&mut self) -> Result<u64> {
        let view = self.view()?;
        let (len, capacity) = (view.segment.file.stat()?.len, view.segment.header.capacity);
        Ok(if len >= capacity { capacity.saturating_sub(view.spot.offset) } else { 0 })
    }

    /// Goes on in what was reserved, unless the active segment is.
    pub(super) fn enter_reserved(&mut self) -> Result<()> {
        if self.reserved_here()? == 0 { self.roll() } else { Ok(()) }
    }

    /// Runs what writes. Any error in it poisons: what is on the disk is not known any more, and
    /// only opening anew finds out. The busy word stays set.
    fn guard<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        match work(self) {
            Ok(value) => Ok(value),
            Err(error) => {
                let why = error.to_string();
                observe::poisoned(&why);
                self.poison(why);
                let kind = if error.kind() == ErrorKind::Full { ErrorKind::Full } else { ErrorKind::Reopen };
                Err(error.into_kind(kind).hint(
                    "Whether what was being written is in the journal is not known. Open it anew: that settles it.",
                ))
            }
        }
    }

    /// Whether the segment that is written to still has its name: somebody may have removed it.
    pub(super) fn check_name(&mut self) -> Result<()> {
        let disk = Arc::clone(&self.disk);
        let segment = &self.view()?.segment;
        let (open, name) = (segment.file.stat()?, file_name(segment.number()));
        let named = disk.stat(&name)?;
        if named.is_some_and(|named| (named.device, named.inode) == (open.device, open.inode)) {
            return Ok(());
        }
        let number = segment.number();
        let reason = format!("{name} was removed or replaced while it was written to");
        let lost = (segment.header.first_position, self.view()?.spot.position);
        Err(with_way_on(super::Damage::new(number, 0, reason).losing(lost.0, lost.1).to_error()))
    }

    /// Spares whoever opens next a look at what is there, where that is worth it: at the `end` of this
    /// handle even a little.
    pub(super) fn keep_index(&mut self, end: bool) {
        let every = self.options.index_every;
        if let Some(view) = &mut self.view {
            let (least, times) = if end { (every / 16, 0) } else { (every, KEPT_SHARE) };
            view.keep_index(least, times);
        }
    }

    /// Fills no more spares.
    pub(super) fn stop_filling(&mut self) {
        self.filler = Filler::default();
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.told.poisoned.get().is_some()
    }

    fn poison(&self, why: String) {
        // What was wrong first is what is told.
        let _ = self.told.poisoned.set(why);
    }
}

fn mark_at(header: &SegmentHeader, end: &Spot) -> Mark {
    Mark {
        counter: 0,
        session: crate::position::Session::default(),
        inode: 0,
        journal: header.journal,
        segment: header.segment,
        end: end.offset,
        position: end.position,
        chain: recovery::chain_at(end),
    }
}

/// The capacity of the segment after one of this capacity.
fn grown(capacity: u64, max: u64) -> u64 {
    capacity.saturating_mul(4).min(max).max(capacity)
}

fn next(position: Position) -> Result<Position> {
    position.next().ok_or_else(|| Error::new(ErrorKind::Full, "the positions of this journal are used up"))
}

fn next_seq(seq: Seq) -> Result<Seq> {
    seq.next().ok_or_else(|| Error::new(ErrorKind::Full, "the sequences of this stream are used up"))
}

pub(super) fn poisoned(why: &str) -> Error {
    Error::new(ErrorKind::Reopen, format!("an earlier write failed, so nothing more is written here: {why}"))
        .hint("Reading goes on. Open the journal anew to write: that settles what is in it.")
}

fn missing(segment: u64, position: Position) -> Error {
    with_way_on(
        Error::new(
            ErrorKind::Corrupt,
            format!("segment {segment} is missing; records up to position {position} were durable"),
        )
        .at(Place { segment, offset: 0, position: Some(position) }),
    )
}

/// Tells the way on after corruption at the end of the journal.
pub(super) fn with_way_on(error: Error) -> Error {
    if error.kind() != ErrorKind::Corrupt {
        return error;
    }
    error.hint(
        "Reading what is left goes on. Bring the files back from a copy if there is one; \
         else `runwal recover --accept-damage` gives up what is lost and goes on, deleting nothing.",
    )
}
