//! Reading, from any process, beside any writer, without waiting for the lock and without writing.

use super::directory::{Directory, Found};
use super::index::flaw_in;
use super::mark::{Activity, Lock, MarkFile, MarkView, Standing};
use super::recovery;
use super::segment::{self, Damage, FOLDER, Scanner, Segment, Step, Unopened};
use super::view::{BatchPlace, View, bound_of, known_journal, scanner_in};
use crate::disk::{Disk, Open};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BATCH_HEADER_LEN, BatchHeader, Digest, Flaw, Mark, Records, WireRecord};
use crate::position::{Position, Seq, StreamId, Time};
use std::sync::Arc;

/// How often a mark that moves while the end is looked for is followed.
const MAX_ROUNDS: usize = 8;
/// How many times what an index takes in memory must have been written before it is shared instead of being made
/// once more: the next commit copies it.
const COPIED_SHARE: u64 = 8;

/// A record with everything but the meaning of its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawRecord {
    pub(crate) position: Position,
    pub(crate) stream: StreamId,
    pub(crate) seq: Seq,
    pub(crate) kind: u8,
    pub(crate) version: u8,
    /// The stream's name, where this record opens it.
    pub(crate) opens: Option<Vec<u8>>,
    pub(crate) closes: bool,
    pub(crate) more: bool,
    pub(crate) time: Time,
    pub(crate) created: Time,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) term: Option<u64>,
    pub(crate) payload: Vec<u8>,
}

impl RawRecord {
    pub(crate) fn of(record: &WireRecord<'_>) -> Self {
        Self {
            position: record.position,
            stream: record.stream,
            seq: record.seq,
            kind: record.kind,
            version: record.version,
            opens: record.opens.map(<[u8]>::to_vec),
            closes: record.closes,
            more: record.more,
            time: record.time,
            created: record.created,
            key: record.key.map(<[u8]>::to_vec),
            term: record.term,
            payload: record.payload.to_vec(),
        }
    }
}

/// The records of one batch, borrowed from what was read: nothing is copied, and nothing is kept.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    place: BatchPlace,
    header: BatchHeader,
    body: &'a [u8],
    /// How many of its records stand before what was asked for.
    before: u64,
}

/// Goes through the records of a [`Batch`]. A body that matches its checksum and is yet not made of
/// records, which only a faulty or a hostile writer makes, gives an error of kind
/// [`ErrorKind::Corrupt`] and ends it.
#[derive(Debug, Clone)]
pub struct BatchRecords<'a> {
    batch: Batch<'a>,
    records: Records<'a>,
}

impl<'a> Batch<'a> {
    /// A batch whose body is known to match its checksum.
    pub(crate) fn new(place: BatchPlace, header: BatchHeader, body: &'a [u8]) -> Self {
        Self { place, header, body, before: 0 }
    }

    /// The same, beginning with the record at a position if that is within it.
    pub(crate) fn from(self, position: Position) -> Self {
        Self { before: position.0.saturating_sub(self.header.first_position.0), ..self }
    }

    /// Whether it is made of records, with `thorough` of records that match their own checksums, and so
    /// can be gone through without an error.
    pub(crate) fn checked(self, thorough: bool) -> Result<Result<Self, Damage>> {
        let records = Records::new(&self.header, self.body);
        let mut records = if thorough { records.checked() } else { records };
        records.find_map(Result::err).map_or(Ok(Ok(self)), |flaw| self.damage(flaw).map(Err))
    }

    fn damage(&self, flaw: Flaw) -> Result<Damage> {
        flaw_in(self.place.segment, self.place.offset, flaw, &self.header, self.body)
    }
}

impl<'a> IntoIterator for Batch<'a> {
    type Item = Result<WireRecord<'a>>;
    type IntoIter = BatchRecords<'a>;

    fn into_iter(self) -> Self::IntoIter {
        let mut records = Records::new(&self.header, self.body);
        let passed = (0..self.before).take_while(|_| matches!(records.next(), Some(Ok(_)))).count();
        debug_assert!(passed as u64 <= self.before);
        BatchRecords { batch: self, records }
    }
}

impl<'a> Iterator for BatchRecords<'a> {
    type Item = Result<WireRecord<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self.records.next()? {
            Ok(record) => Some(Ok(record)),
            Err(flaw) => Some(self.batch.damage(flaw).and_then(|damage| Err(damage.to_error()))),
        }
    }
}

/// What lies behind the durable end, as far as that can be judged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    /// Segment, offset and length of bytes that are no whole batch.
    pub(crate) torn: Option<(u64, u64, u64)>,
    /// Whole records that nobody was told are durable.
    pub(crate) in_doubt: u64,
}

/// A handle for reading.
#[derive(Debug)]
pub(crate) struct ReadHandle {
    disk: Arc<dyn Disk>,
    mark: Option<MarkFile>,
    seen: MarkView,
    view: Option<View>,
    directory: Directory,
    /// Damage at the end, which no scan of what is readable meets.
    pub(crate) end_damage: Vec<Damage>,
    /// In a copied directory that ends early: up to where the original went.
    pub(crate) incomplete: Option<Position>,
    /// What the next segment gives up, behind which one, with which one active: looked up once, as there
    /// may be very much damage and very many files.
    given_up: Option<((u64, u64), (Position, Position))>,
}

impl ReadHandle {
    pub(crate) fn open(disk: Arc<dyn Disk>) -> Result<Self> {
        if disk.stat(FOLDER)?.is_none() {
            return Err(Error::new(ErrorKind::NotFound, "there is no journal in this data directory"));
        }
        Self::from_view(disk, None)
    }

    /// From what a writer of this process knows, which need not be found out again.
    pub(crate) fn from_view(disk: Arc<dyn Disk>, view: Option<View>) -> Result<Self> {
        let mut handle = Self {
            disk,
            mark: None,
            seen: MarkView::ABSENT,
            view,
            directory: Directory::new(),
            end_damage: Vec::new(),
            incomplete: None,
            given_up: None,
        };
        handle.refresh()?;
        Ok(handle)
    }

    /// Moves on by what a writer of this process knows, where finding that out again would take much longer than
    /// copying it does, which the writer's next commit has to.
    pub(super) fn follow_writer(&mut self, known: &View) {
        let Some(view) = &self.view else { return };
        let whole = view.damage.is_empty() && known.damage.is_empty() && self.end_damage.is_empty();
        let same = view.segment.header.journal == known.segment.header.journal && self.incomplete.is_none();
        if whole && same && view.len_to(known) > COPIED_SHARE * known.index.memory_len() as u64 {
            self.view = Some(known.for_reading());
        }
    }

    /// Moves on to what is durable now. Answers whether that is more than before.
    pub(crate) fn refresh(&mut self) -> Result<bool> {
        let before = self.durable();
        if self.mark.is_none() {
            self.mark = MarkFile::open(&*self.disk, Open::Read)?;
        }
        for _ in 0..MAX_ROUNDS {
            let mark = self.read_mark()?;
            if self.view.is_some() && mark.same(&self.seen) {
                return Ok(self.durable() > before);
            }
            let done = match &mark.best {
                Some(best) if self.is_live(mark.standing, best)? => {
                    self.follow(best)? || self.settle(&mark)?
                }
                _ => self.settle(&mark)?,
            };
            if done {
                self.seen = mark;
                return Ok(self.durable() > before);
            }
        }
        if self.view.is_some() {
            // Never a shorter answer than before; the next refresh looks again.
            return Ok(self.durable() > before);
        }
        Err(Error::new(ErrorKind::Retry, "the mark is damaged while a writer is at work, or died at it")
            .hint("Nothing is lost. Try again; if no writer is at work, `runwal recover` settles it."))
    }

    /// The mark, if it is evidence of what is in this directory.
    pub(crate) fn evidence(&self) -> Result<Option<Mark>> {
        Ok(self.read_mark()?.evidence().copied())
    }

    fn read_mark(&self) -> Result<MarkView> {
        self.mark.as_ref().map_or(Ok(MarkView::ABSENT), MarkFile::read)
    }

    /// Whether a mark tells all that is durable. One that was written through another mount may not: it
    /// is never synced, and where the file system was lost and mounted anew it may be an earlier one.
    /// Whoever has found out what is durable once only goes forward with it.
    fn is_live(&self, standing: Standing, mark: &Mark) -> Result<bool> {
        match standing {
            Standing::Current => Ok(true),
            Standing::OtherMount => {
                let known = self.view.as_ref().is_some_and(|view| view.segment.number() <= mark.segment);
                Ok(known || self.is_end(mark)?)
            }
            _ => Ok(false),
        }
    }

    /// Whether nothing stands behind a mark.
    fn is_end(&self, mark: &Mark) -> Result<bool> {
        if self.disk.stat(&segment::file_name(mark.segment + 1))?.is_some() {
            return Ok(false);
        }
        let Some(segment) = self.openable(mark.segment)? else { return Ok(false) };
        let mut head = [0; BATCH_HEADER_LEN];
        let read = segment.file.read_at(&mut head, mark.end)?;
        Ok(head[..read].iter().all(|byte| *byte == 0))
    }

    /// Shows up to the mark. `false` where the segment it names cannot be read.
    fn follow(&mut self, mark: &Mark) -> Result<bool> {
        if self.view.as_ref().is_none_or(|view| view.segment.number() > mark.segment) {
            let segment = self.openable(mark.segment)?.filter(|s| s.header.journal == mark.journal);
            let Some(segment) = segment else { return Ok(false) };
            self.view = Some(View::at_start(Arc::clone(&self.disk), segment, bound_of(mark), false)?);
        }
        let Some(view) = &mut self.view else { return Ok(false) };
        match view.advance(mark.segment, bound_of(mark)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn openable(&self, number: u64) -> Result<Option<Segment>> {
        match Segment::open(&*self.disk, number, Open::Read) {
            Ok(segment) => Ok(Some(segment)),
            Err(Unopened::Failed(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Without a mark to go by: shows all whole batches, once they are synced and the mark has not
    /// moved meanwhile.
    fn settle(&mut self, mark: &MarkView) -> Result<bool> {
        let told = mark.evidence().map_or(Position::ZERO, |m| m.position);
        let named = mark.evidence().map_or(0, |m| m.segment);
        self.end_damage.clear();
        self.incomplete = None;
        self.directory.clear();
        let (newest, strays) = self.newest(mark)?;
        let Some(segment) = newest else {
            self.view = None;
            let last = strays.last().copied().unwrap_or(0).max(named);
            if last > 0 {
                let damage = Damage::new(last, 0, "no segment of the journal can be read");
                self.end_damage.push(damage.losing(Position(1), told));
            }
            return Ok(true);
        };
        let number = segment.number();
        // What the mark says of a later segment is not to be found in this one.
        let found = recovery::inspect(segment, None, (named <= number).then_some(told))?;
        found.segment.file.sync()?;
        // With a slot damaged, or through another mount, what was seen may be of a writer that has not
        // synced yet, and whose sync may fail. Both looks are needed: the slots for one that finished,
        // the word for one that did not.
        let again = self.read_mark()?;
        let unproven = matches!(mark.standing, Standing::OneSlot | Standing::Absent | Standing::OtherMount);
        let busy = unproven && again.activity == Activity::Now;
        if !again.same(mark) || (busy && mark.standing != Standing::OtherMount) {
            return Ok(false);
        }
        // Both slots of another mount's mark are whole: what its writer has told is durable all the same.
        let end = if busy { found.proven_end() } else { found.shown_end() };
        let mut view = View::at_start(Arc::clone(&self.disk), found.segment.clone(), end, false)?;
        view.advance(number, end)?;
        self.view = Some(view);
        let last = end.position.unwrap_or_default();
        let missing = (named > number).then_some(number + 1);
        if let Some(at) = missing.or(strays.first().copied()) {
            let reason = format!("segment {at} is missing, cut off or cannot be read");
            self.end_damage.push(Damage::new(at, 0, reason).losing(Position(last.0 + 1), told));
        }
        let original = mark.best.filter(|_| mark.standing == Standing::Copied).map(|m| m.position);
        self.incomplete = original.filter(|original| *original > last);
        Ok(true)
    }

    /// The newest segment of the journal that can be opened, and the numbers of what stands behind it.
    fn newest(&self, mark: &MarkView) -> Result<(Option<Segment>, Vec<u64>)> {
        let journal = known_journal(&*self.disk, mark)?;
        let own = |s: &Segment| journal.is_none_or(|journal| journal == s.header.journal);
        let mut numbers = segment::list(&*self.disk)?;
        for at in (0..numbers.len()).rev() {
            if let Some(segment) = self.openable(numbers[at])?.filter(own) {
                return Ok((Some(segment), numbers.split_off(at + 1)));
            }
        }
        Ok((None, numbers))
    }

    /// The last position that is shown.
    pub(crate) fn durable(&self) -> Position {
        self.view.as_ref().map_or(Position::ZERO, |view| view.spot.position)
    }

    /// The journal's id; zeros where nothing was ever written.
    pub(crate) fn journal(&self) -> [u8; 16] {
        self.view.as_ref().map_or([0; 16], |view| view.segment.header.journal)
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// What is known of the segments, if there is any.
    pub(crate) fn view(&mut self) -> Option<&mut View> {
        self.view.as_mut()
    }

    /// The number of the active segment; zero for none.
    pub(crate) fn active(&self) -> u64 {
        self.view.as_ref().map_or(0, |view| view.segment.number())
    }

    /// Which slots of the mark are damaged, in a journal that has one.
    pub(crate) fn damaged_slots(&self) -> Result<Vec<usize>> {
        let mark = self.read_mark()?;
        Ok((0..2).filter(|i| self.mark.is_some() && mark.damaged[*i]).collect())
    }

    /// Whether the next segment that can be read says that what this damage in a segment costs was
    /// given up.
    pub(crate) fn accepts(&mut self, number: u64, damage: &Damage) -> Result<bool> {
        let place = (number, self.active());
        let (from, to) = match self.given_up {
            Some((known, lost)) if known == place => lost,
            _ => {
                let lost = self.given_up_behind(number)?;
                self.given_up = Some((place, lost));
                lost
            }
        };
        let (first, last) = damage.unchained.map_or((damage.from, damage.to), |at| (at, at));
        Ok(from != Position::ZERO && first >= from && last <= to)
    }

    fn given_up_behind(&self, number: u64) -> Result<(Position, Position)> {
        let journal = self.journal();
        let lost = |s: Segment| (s.header.journal == journal).then_some(s.header.lost);
        if let Some(lost) = self.openable(number + 1)?.and_then(lost) {
            return Ok(lost);
        }
        for behind in segment::list(&*self.disk)?.into_iter().filter(|behind| *behind > number) {
            if let Some(lost) = self.openable(behind)?.and_then(lost) {
                return Ok(lost);
            }
        }
        Ok((Position::ZERO, Position::ZERO))
    }

    /// Looks behind the durable end if nobody is writing right now; `None` if somebody is. Whoever is not
    /// `thorough` believes a mark that says that nothing stands there, as writers do.
    pub(crate) fn judge_tail(&mut self, thorough: bool) -> Result<Option<Tail>> {
        let Some(lock) = Lock::find(&*self.disk)? else { return self.tail(true).map(Some) };
        if !lock.try_take()? {
            return Ok(None);
        }
        let tail = self.refresh().and_then(|_| self.tail(thorough));
        lock.give_back()?;
        tail.map(Some)
    }

    fn tail(&mut self, thorough: bool) -> Result<Tail> {
        let mark = self.read_mark()?;
        if let Some(best) = mark.best.filter(|_| !thorough && mark.is_current() && mark.same(&self.seen))
            && self.end_damage.is_empty()
            && self.is_end(&best)?
        {
            return Ok(Tail::default());
        }
        let Some(segment) = self.newest(&mark)?.0 else { return Ok(Tail::default()) };
        let number = segment.number();
        let told = mark.evidence().filter(|m| m.segment <= number).map(|m| m.position);
        // What this handle shows is not in doubt: it was looked at here, or by whoever kept the index.
        let known =
            self.view.as_ref().filter(|view| view.segment.number() == number && view.damage.is_empty());
        let found = recovery::inspect(segment, known.map(|view| view.spot), told)?;
        if found.evidence > found.good.position {
            // The mark may have hidden it: what stands before it is all there.
            let loss = found.loss();
            if !self.end_damage.contains(&loss) && self.durable() <= found.good.position {
                self.end_damage.push(loss);
            }
            return Ok(Tail::default());
        }
        let torn = found.garbage.map(|(from, to)| (number, from, to - from));
        Ok(Tail { torn, in_doubt: found.good.position.0.saturating_sub(self.durable().0) })
    }

    /// The record of a stream with a sequence, read by itself where that was done nearby before; `None`
    /// where the index knows of no such record.
    pub(crate) fn record(&mut self, id: StreamId, seq: Seq) -> Result<Result<Option<RawRecord>, Damage>> {
        let Some(view) = &mut self.view else { return Ok(Ok(None)) };
        let place = match self.directory.find(view, id, seq)? {
            Found::Record(record) => return Ok(Ok(Some(record))),
            Found::Nothing => return Ok(Ok(None)),
            Found::Within(place) => place,
        };
        if let Some(record) = self.directory.learn(view, place, (id, seq))? {
            return Ok(Ok(Some(record)));
        }
        let (header, body) = match self.batch(place)? {
            Ok(found) => found,
            Err(damage) => return Ok(Err(damage)),
        };
        let batch = match Batch::new(place, header, &body).checked(false)? {
            Ok(batch) => batch,
            Err(damage) => return Ok(Err(damage)),
        };
        let mut records = batch.into_iter().flatten();
        Ok(Ok(records.find(|record| record.stream == id && record.seq == seq).map(|r| RawRecord::of(&r))))
    }

    /// Reads one batch at a place the index named.
    pub(crate) fn batch(&mut self, place: BatchPlace) -> Result<Result<(BatchHeader, Vec<u8>), Damage>> {
        match &mut self.view {
            Some(view) => view.batch(place),
            None => Unopened::Missing.into_damage(place.segment).map(Err),
        }
    }
}

/// One step of reading on.
#[derive(Debug)]
pub(crate) enum Walked<'a> {
    /// A batch, with its place.
    Batch { place: BatchPlace, header: BatchHeader, body: &'a [u8] },
    /// Something that cannot be read; the next step goes on behind it.
    Damage(Damage),
}

/// Walks the whole journal in order, across segments, from a position to the durable end and on.
#[derive(Debug)]
pub(crate) struct Walker {
    number: u64,
    scanner: Option<Scanner>,
    from: Option<BatchPlace>,
    last: Position,
    /// The chain hash at the end of the segment before, where it is known.
    chain: Option<Digest>,
    /// Its salt.
    salt: Option<u64>,
    digests: bool,
    /// Whether the end of the segment is known for good: it was sealed when it was looked at.
    ends: bool,
}

impl Walker {
    /// From the batch that holds `position`, or the first one.
    pub(crate) fn from(handle: &mut ReadHandle, position: Position) -> Result<Self> {
        let mut walker = Self::from_segment(1);
        if position.0 > 1
            && let Some(view) = handle.view()
        {
            let at = position.min(Position(view.spot.position.0.max(1)));
            let place = view.near(at)?;
            walker.number = place.segment;
            walker.from = Some(place);
            walker.last = Position(at.0 - 1);
        }
        Ok(walker)
    }

    /// From the start of a segment.
    pub(crate) fn from_segment(number: u64) -> Self {
        Self {
            number,
            scanner: None,
            from: None,
            last: Position::ZERO,
            chain: None,
            salt: None,
            digests: false,
            ends: false,
        }
    }

    /// Also compares each body with its digest.
    #[must_use]
    pub(crate) fn with_digests(mut self) -> Self {
        self.digests = true;
        self
    }

    /// Holds no more memory than it takes to go on.
    pub(crate) fn rest(&mut self) {
        if let Some(scanner) = &mut self.scanner {
            scanner.rest();
        }
    }

    /// The body of the batch that the last step gave.
    pub(crate) fn body(&self, header: &BatchHeader) -> &[u8] {
        self.scanner.as_ref().map_or(&[], |scanner| scanner.body(header))
    }

    /// The next step; `None` at the durable end, behind which it goes on after a refresh.
    pub(crate) fn step(&mut self, handle: &mut ReadHandle) -> Result<Option<Walked<'_>>> {
        loop {
            if self.number > handle.active() {
                return Ok(None);
            }
            if self.scanner.is_none()
                && let Some(damage) = self.enter(handle)?
            {
                return Ok(Some(Walked::Damage(damage)));
            }
            let Some(scanner) = &mut self.scanner else { continue };
            if let Some(view) = handle.view().filter(|_| !self.ends) {
                let (_, bound) = view.bounded(self.number).map_err(|u| u.into_error(self.number))?;
                scanner.extend(bound);
                self.ends = self.number < view.segment.number();
            }
            scanner.end_by_itself()?;
            if !scanner.at_end() {
                break;
            }
            self.last = self.last.max(scanner.spot().position);
            (self.chain, self.salt) = (scanner.spot().chain, Some(scanner.salt()));
            if self.number >= handle.active() {
                return Ok(None);
            }
            self.number += 1;
            self.scanner = None;
        }
        let number = self.number;
        let Some(scanner) = &mut self.scanner else { return Ok(None) };
        Ok(match scanner.step()? {
            Some(Step::Batch { offset, header, body }) => {
                let place = BatchPlace { segment: number, offset };
                Some(Walked::Batch { place, header, body })
            }
            Some(Step::Damage(mut damage)) => {
                damage.accepted = handle.accepts(number, &damage)?;
                Some(Walked::Damage(damage))
            }
            None => None,
        })
    }

    /// Opens the segment that comes next, or says what is lost with it.
    fn enter(&mut self, handle: &mut ReadHandle) -> Result<Option<Damage>> {
        let place = self.from.take().filter(|place| place.segment == self.number);
        let place = place.unwrap_or(BatchPlace { segment: self.number, offset: 0 });
        let Some(view) = handle.view() else { return Ok(None) };
        let (segment, bound) = match view.bounded(self.number) {
            Ok(found) => found,
            Err(unopened) => {
                let damage = unopened.into_damage(self.number)?;
                return self.skip(handle, damage).map(Some);
            }
        };
        self.ends = self.number < view.segment.number();
        let scanner = scanner_in(segment, bound, place.offset)?;
        let scanner = if self.digests { scanner.with_digests() } else { scanner };
        let starts_at = scanner.spot().position;
        let gap = self.last < starts_at && place.offset == 0;
        let chain = scanner.spot().chain.filter(|_| place.offset == 0 && !gap);
        // A segment of another lineage is told as such; its chain is right in its own.
        let follows = self.salt == Some(scanner.prev_salt());
        let broken = follows && chain.is_some() && self.chain.is_some() && chain != self.chain;
        self.scanner = Some(scanner);
        if broken {
            let reason = "the chain of hashes is broken between the segment before and this one";
            let mut damage = Damage::new(self.number, 0, reason);
            damage.tampered = true;
            return Ok(Some(damage));
        }
        // Who begins in the middle has no position before it.
        if gap && (self.last != Position::ZERO || self.number == 1) {
            let damage = Damage::new(self.number, 0, "records before this segment are missing");
            let mut damage = damage.losing(Position(self.last.0 + 1), starts_at);
            damage.accepted = handle.accepts(self.number - 1, &damage)?;
            self.last = starts_at;
            return Ok(Some(damage));
        }
        Ok(None)
    }

    /// Goes on behind a segment that cannot be read, and says what that costs.
    fn skip(&mut self, handle: &mut ReadHandle, damage: Damage) -> Result<Damage> {
        let number = self.number;
        self.number += 1;
        self.chain = None;
        let Some(view) = handle.view() else { return Ok(damage) };
        let mut behind = view.before_active()?;
        behind.retain(|n| *n > number);
        behind.push(view.segment.number());
        let next = behind.into_iter().find_map(|n| view.open(n, Open::Read).ok());
        if let Some(next) = &next {
            // Those between are as unreadable, and are named by what is lost with all of them.
            self.number = next.number();
        }
        let upto = next.as_ref().map_or(view.spot.position, |s| Position(s.header.first_position.0 - 1));
        let mut damage = damage.losing(Position(self.last.0 + 1), upto);
        if let Some(next) = next {
            damage.accepted = handle.accepts(next.number() - 1, &damage)?;
        }
        self.last = self.last.max(upto);
        Ok(damage)
    }
}

/// The segments that have a file, whatever is in them.
pub(crate) fn segment_numbers(disk: &dyn Disk) -> Result<Vec<u64>> {
    segment::list(disk)
}

/// All streams in the order of their opening.
pub(crate) fn all_streams(view: &mut View) -> Result<Vec<StreamId>> {
    view.all_streams()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{SeededEntropy, System};
    use crate::disk::sim::SimWorld;
    use crate::format::{Draft, Target};
    use crate::journal::{Append, Conditions, Journal, JournalOptions, Spares};

    fn append(journal: &Journal, target: Target, len: usize) -> StreamId {
        let draft = Draft {
            target,
            seq: Seq::ZERO,
            kind: 3,
            version: 1,
            close: false,
            more: false,
            time: Time(5),
            created: None,
            key: None,
            term: None,
            payload: vec![1; len].into(),
        };
        let conditions = Conditions::none();
        let append = Append { drafts: vec![draft], conditions, open: false, place: None, buffered: false };
        journal.submit(append).unwrap().wait().unwrap().stream
    }

    #[test]
    fn a_writer_that_is_behind_takes_no_reader_back() {
        const CAPACITY: u64 = 64 << 10;
        let world = SimWorld::new();
        let open = |seed| {
            let options = JournalOptions {
                first_capacity: CAPACITY,
                max_capacity: CAPACITY,
                compress_from: u64::MAX,
                spares: Spares::Never,
                ..JournalOptions::default()
            };
            let entropy = Arc::new(SeededEntropy::new(seed));
            Journal::open(Arc::new(world.process(1)), Arc::new(System), entropy, options).unwrap().0
        };
        let (writer, other) = (open(1), open(2));
        let stream = append(&writer, Target::Open(b"name".to_vec()), 9);
        let mut ahead = writer.reader().unwrap();
        for _ in 0..5 {
            append(&writer, Target::Stream(stream), 9_000);
        }
        let known = || writer.0.commits.core().view.as_ref().map(View::for_reading).unwrap();
        // What the writer knows is taken over, without any look at the segment.
        let before = ahead.durable();
        ahead.follow_writer(&known());
        assert!(ahead.durable() > before && ahead.durable() == writer.durable());
        // Somebody else goes on in the next segment, at whose beginning the reader stands then.
        while known().segment.number() == ahead.view().unwrap().segment.number() {
            append(&other, Target::Stream(stream), 9_000);
            ahead.refresh().unwrap();
        }
        let durable = ahead.durable();
        assert!(durable > writer.durable());
        ahead.follow_writer(&known());
        assert_eq!(ahead.durable(), durable);
        assert!(!writer.refresh(&mut ahead).unwrap() && ahead.durable() == durable);
    }
}
