//! Reading: from a position to the durable one and on, a stream by its index, and the time range.
//!
//! A reader sees what is durable and nothing else, in any process, without waiting for the lock.
//! Damage does not end it: it is handed out as an item of its own, and what stands behind it is
//! read.

use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::Result;
use crate::journal::Journal;
pub(crate) use crate::journal::read::RawRecord;
use crate::journal::read::{Batch, ReadHandle, Walked, Walker};
use crate::journal::segment::Damage;
use crate::journal::verify::{Verification, verify};
use crate::position::{Position, Seq, StreamId, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The shortest and longest pause between two looks at the mark: half of the longest is what whoever follows
/// is late, and a look takes some microseconds.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(8));

/// For how many items a sequence keeps room while it waits.
const KEPT_ITEMS: usize = 64;

/// What reading gives.
#[derive(Debug)]
pub(crate) enum Item {
    Record(RawRecord),
    Damage(Damage),
}

/// A handle on a journal for reading.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) handle: ReadHandle,
    pub(crate) clock: Arc<dyn Clock>,
}

/// What reading batch by batch gives.
#[derive(Debug)]
pub(crate) enum Lent<'a> {
    Batch(Batch<'a>),
    Damage(Damage),
}

/// Where a read in order is, batch by batch.
#[derive(Debug)]
pub(crate) struct Scan {
    walker: Walker,
    from: Position,
    /// How much of the damage at the end was told.
    told: usize,
}

/// The same record by record. Digests and the records' own checksums are compared too: nothing that
/// happens to bytes by accident shows there alone.
#[derive(Debug)]
pub(crate) struct Sequence {
    scan: Scan,
    ready: VecDeque<Item>,
}

impl Sequence {
    fn new(walker: Walker, from: Position) -> Self {
        let walker = walker.with_digests();
        Self { scan: Scan { walker, from, told: 0 }, ready: VecDeque::new() }
    }
}

impl Reader {
    pub(crate) fn open(disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) -> Result<Self> {
        Ok(Self { handle: ReadHandle::open(disk)?, clock })
    }

    /// Begins to read in order, with the record at `from`.
    pub(crate) fn sequence(&mut self, from: Position) -> Result<Sequence> {
        Ok(Sequence::new(Walker::from(&mut self.handle, from)?, from))
    }

    /// The same batch by batch, by checksums alone: digests are not compared.
    pub(crate) fn scan(&mut self, from: Position) -> Result<Scan> {
        let walker = Walker::from(&mut self.handle, from)?;
        Ok(Scan { walker, from, told: 0 })
    }

    /// Begins in the first segment that has records of `time` or later.
    pub(crate) fn sequence_since(&mut self, time: Time) -> Result<Sequence> {
        let mut number = self.handle.active().max(1);
        if let Some(view) = self.handle.view() {
            for sealed in view.before_active()? {
                let index = view.sealed(sealed)?;
                if index.records > 0 && index.max_time >= time {
                    number = sealed;
                    break;
                }
            }
        }
        Ok(Sequence::new(Walker::from_segment(number), Position::ZERO))
    }

    /// The next item; `None` at the durable end, as it was at the last [`refresh`](Self::refresh).
    pub(crate) fn next(&mut self, sequence: &mut Sequence) -> Result<Option<Item>> {
        let Sequence { scan, ready } = sequence;
        while ready.is_empty() {
            match self.next_batch(scan)? {
                Some(Lent::Batch(batch)) => match batch.checked(true)? {
                    Ok(batch) => {
                        ready.extend(batch.into_iter().flatten().map(|r| Item::Record(RawRecord::of(&r))));
                    }
                    Err(mut damage) => {
                        damage.accepted = self.handle.accepts(damage.segment, &damage)?;
                        return Ok(Some(Item::Damage(damage)));
                    }
                },
                Some(Lent::Damage(damage)) => return Ok(Some(Item::Damage(damage))),
                None => {
                    ready.shrink_to(KEPT_ITEMS);
                    return Ok(None);
                }
            }
        }
        Ok(ready.pop_front())
    }

    /// The next batch, or what stands in its place.
    pub(crate) fn next_batch<'s>(&mut self, scan: &'s mut Scan) -> Result<Option<Lent<'s>>> {
        let (place, header) = loop {
            match scan.walker.step(&mut self.handle)? {
                Some(Walked::Batch { header, .. }) if header.last_position() < scan.from => {}
                Some(Walked::Batch { place, header, .. }) => break (place, header),
                Some(Walked::Damage(damage)) => return Ok(Some(Lent::Damage(damage))),
                None => {
                    let damage = self.handle.end_damage.get(scan.told).cloned();
                    scan.told += usize::from(damage.is_some());
                    if damage.is_none() {
                        scan.walker.rest();
                    }
                    return Ok(damage.map(Lent::Damage));
                }
            }
        };
        Ok(Some(Lent::Batch(Batch::new(place, header, scan.walker.body(&header)).from(scan.from))))
    }

    /// The clock that never goes back.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.monotonic_ns()
    }

    /// Moves on to what is durable now.
    pub(crate) fn refresh(&mut self) -> Result<bool> {
        self.handle.refresh()
    }

    /// The same with the help of what a writer of this process knows.
    pub(crate) fn refresh_with(&mut self, journal: &Journal) -> Result<bool> {
        journal.refresh(&mut self.handle)
    }

    /// Waits until more is durable, at most `patience`; answers whether it is.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<bool> {
        let start = self.clock.monotonic_ns();
        let mut pause = LOOK.0;
        loop {
            if self.refresh()? {
                return Ok(true);
            }
            if u128::from(self.clock.monotonic_ns().saturating_sub(start)) >= patience.as_nanos() {
                return Ok(false);
            }
            self.clock.pause(pause);
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// Hands the records of a stream from `from` on to `visit`, in order, by the index. Answers
    /// with the damage met; a hole in the sequences is damage also where nothing is left to tell why,
    /// and so is what may have taken the end of a stream away.
    pub(crate) fn stream(
        &mut self,
        id: StreamId,
        from: Seq,
        visit: &mut dyn FnMut(RawRecord) -> Result<bool>,
    ) -> Result<Vec<Damage>> {
        let mut damage = Vec::new();
        let segments = match self.handle.view() {
            Some(view) => view.segments_of(id, from)?,
            None => Vec::new(),
        };
        let (mut next, mut last) = (from.max(Seq(1)), None);
        let (mut explained, mut closed) = (false, false);
        // One after the other: whoever has enough of the first needs no index of the others.
        for number in segments {
            let Some(view) = self.handle.view() else { break };
            for place in view.batches_in(number, [(id, from)])? {
                let found = self.handle.batch(place)?;
                let batch = match &found {
                    Ok((header, body)) => Batch::new(place, *header, body).checked(true)?,
                    Err(found) => Err(found.clone()),
                };
                match batch {
                    Ok(batch) => {
                        for record in batch.into_iter().flatten().filter(|r| r.stream == id && r.seq >= from)
                        {
                            if record.seq > next && !explained {
                                let missing = record.seq.0 - next.0;
                                let reason =
                                    format!("{missing} records of the stream before this place are missing");
                                let after = last.map_or(id.0, |last: Position| last.0.saturating_add(1));
                                let hole = Damage::new(place.segment, place.offset, reason);
                                damage.push(
                                    hole.losing(
                                        Position(after),
                                        Position(record.position.0.saturating_sub(1)),
                                    ),
                                );
                            }
                            (explained, closed) = (false, closed || record.closes);
                            (next, last) = (record.seq.next().unwrap_or(record.seq), Some(record.position));
                            if !visit(RawRecord::of(&record))? {
                                self.accept(&mut damage)?;
                                return Ok(damage);
                            }
                        }
                    }
                    Err(found) => {
                        explained = true;
                        damage.push(found);
                    }
                }
            }
        }
        let mut lost_behind = self.lost_behind(id)?;
        // Nothing says that it goes on, and nothing was read that ends it.
        let goes_on = self.handle.view().is_none_or(|view| view.open_streams().contains_key(&id));
        if from <= Seq(1) && !closed && damage.is_empty() && !goes_on {
            lost_behind.extend(self.missing_behind(last)?);
        }
        for lost in lost_behind {
            if !damage.iter().any(|told| (told.segment, told.offset) == (lost.segment, lost.offset)) {
                damage.push(lost);
            }
        }
        self.accept(&mut damage)?;
        Ok(damage)
    }

    /// Notes of damage what was given up before.
    fn accept(&mut self, damage: &mut [Damage]) -> Result<()> {
        for met in damage.iter_mut().filter(|met| !met.accepted) {
            // A hole is met behind the segment that has lost its records.
            let lost_in = self.handle.view().map_or(Ok(met.segment), |view| view.segment_with(met.from))?;
            met.accepted = self.handle.accepts(met.segment, met)?
                || self.handle.accepts(lost_in.min(met.segment), met)?;
        }
        Ok(())
    }

    /// Hands the records of several streams on to `visit`, each stream's from a sequence on, in the order of
    /// the journal; a batch that several of them have records in is read once. What cannot be read is
    /// missing: the sequences show it.
    pub(crate) fn several(
        &mut self,
        from: &BTreeMap<StreamId, Seq>,
        visit: &mut dyn FnMut(RawRecord) -> Result<()>,
    ) -> Result<()> {
        let Some(view) = self.handle.view() else { return Ok(()) };
        let mut segments = BTreeSet::new();
        for (id, seq) in from {
            segments.extend(view.segments_of(*id, *seq)?);
        }
        for number in segments {
            let Some(view) = self.handle.view() else { break };
            for place in view.batches_in(number, from.iter().map(|(id, seq)| (*id, *seq)))? {
                let Ok((header, body)) = self.handle.batch(place)? else { continue };
                let Ok(batch) = Batch::new(place, header, &body).checked(false)? else { continue };
                for record in batch.into_iter().flatten() {
                    if from.get(&record.stream).is_some_and(|seq| record.seq >= *seq) {
                        visit(RawRecord::of(&record))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// One record of a stream; `None` where the stream has none with this sequence. Where it may have
    /// had one that cannot be read, that is an error.
    pub(crate) fn record(&mut self, id: StreamId, seq: Seq) -> Result<Option<RawRecord>> {
        match self.handle.record(id, seq)? {
            Ok(Some(record)) => return Ok(Some(record)),
            Ok(None) => {}
            Err(damage) => return Err(damage.to_error()),
        }
        // Reading on from there tells why it is missing.
        let damage = self.stream(id, seq, &mut |_| Ok(false))?;
        damage.first().map_or(Ok(None), |damage| Err(damage.to_error()))
    }

    /// Hands the first record of every stream on to `visit`, newest first, until that has enough. Goes
    /// back segment by segment, by their indexes. Answers with the damage behind which there may be
    /// others.
    pub(crate) fn beginnings(
        &mut self,
        visit: &mut dyn FnMut(RawRecord) -> Result<bool>,
    ) -> Result<Vec<Damage>> {
        let Some(view) = self.handle.view() else { return Ok(Vec::new()) };
        let mut numbers = view.before_active()?;
        numbers.push(view.segment.number());
        let (mut damage, mut holes, mut reached) = (Vec::<Damage>::new(), Vec::new(), Position::ZERO);
        'all: for number in numbers.into_iter().rev() {
            let begun = self.handle.view().map_or(Ok(Vec::new()), |view| view.begun_in(number))?;
            for (id, place) in begun.into_iter().rev() {
                let found = self.handle.batch(place)?;
                let batch = match &found {
                    Ok((header, body)) => Batch::new(place, *header, body).checked(false)?,
                    Err(met) => Err(met.clone()),
                };
                match batch.map(|batch| batch.into_iter().flatten().find(|record| record.position.0 == id.0))
                {
                    Ok(Some(record)) => {
                        if !visit(RawRecord::of(&record))? {
                            reached = Position(id.0);
                            break 'all;
                        }
                    }
                    // Only what stands behind it is left, and tells of the hole.
                    Ok(None) => holes.extend(self.stream(id, Seq(1), &mut |_| Ok(false))?),
                    Err(met) => damage.push(met),
                }
            }
        }
        damage.extend(self.damage_behind(reached));
        // A hole is worth a word where nothing else explains it.
        holes.retain(|hole| !damage.iter().any(|met| met.from <= hole.from && hole.to <= met.to));
        damage.extend(holes);
        damage.sort_by_key(|met| (met.segment, met.offset));
        damage.dedup_by_key(|met| (met.segment, met.offset));
        self.accept(&mut damage)?;
        Ok(damage)
    }

    /// The stream of this name.
    pub(crate) fn find(&mut self, name: &[u8]) -> Result<Option<StreamId>> {
        self.handle.view().map_or(Ok(None), |view| view.find_name(name))
    }

    /// The name of a stream.
    pub(crate) fn name(&mut self, id: StreamId) -> Result<Option<Vec<u8>>> {
        self.handle.view().map_or(Ok(None), |view| view.name_of(id))
    }

    /// All streams in the order of their opening.
    pub(crate) fn streams(&mut self) -> Result<Vec<StreamId>> {
        self.handle.view().map_or(Ok(Vec::new()), crate::journal::read::all_streams)
    }

    /// The streams with records behind `position`, each with the position of its last record.
    pub(crate) fn streams_after(&mut self, position: Position) -> Result<Vec<(StreamId, Position)>> {
        let Some(view) = self.handle.view() else { return Ok(Vec::new()) };
        let mut last = BTreeMap::new();
        let first = if position == Position::ZERO { 1 } else { view.segment_with(position)? };
        for number in view.before_active()?.into_iter().filter(|number| *number >= first) {
            for (id, entry) in &view.sealed(number)?.streams {
                last.insert(*id, entry.last_position);
            }
        }
        for (id, entry) in &view.index.streams {
            last.insert(*id, entry.last_position);
        }
        Ok(last.into_iter().filter(|(_, at)| *at > position).collect())
    }

    /// Damage behind the last known record of a stream that has not ended, met when the index was
    /// made: records of the stream may be among those that were lost there.
    pub(crate) fn lost_behind(&mut self, id: StreamId) -> Result<Vec<Damage>> {
        // The end of an old run may be many segments away.
        if self.damage_behind(Position::ZERO).is_empty() {
            return Ok(Vec::new());
        }
        let Some(view) = self.handle.view() else { return Ok(Vec::new()) };
        let last = match view.stream(id)? {
            Some(state) if !state.open => return Ok(Vec::new()),
            Some(state) => state.last_position,
            None => Position(id.0),
        };
        Ok(self.damage_behind(last))
    }

    /// Damage behind a position, met when the index was made: it may have taken the beginning of a
    /// stream away.
    pub(crate) fn damage_behind(&mut self, position: Position) -> Vec<Damage> {
        let Some(view) = self.handle.view() else { return Vec::new() };
        let all = view.damage.clone().into_iter().chain(self.handle.end_damage.iter().cloned());
        all.filter(|damage| damage.to > position).collect()
    }

    /// The segments up to the active one that cannot be opened.
    pub(crate) fn unreadable_segments(&mut self) -> Result<Vec<u64>> {
        let mut numbers: Vec<u64> = self.handle.end_damage.iter().map(|damage| damage.segment).collect();
        let Some(view) = self.handle.view() else { return Ok(numbers) };
        let mut expected = 1;
        for number in view.before_active()? {
            if number > expected {
                numbers.push(expected);
            }
            expected = number + 1;
            if let Err(unopened) = view.open(number, crate::disk::Open::Read) {
                unopened.into_damage(number)?;
                numbers.push(number);
            }
        }
        if view.segment.number() > expected {
            numbers.push(expected);
        }
        Ok(numbers)
    }

    /// The segments behind a record that cannot be opened, as the damage that they are.
    fn missing_behind(&mut self, last: Option<Position>) -> Result<Vec<Damage>> {
        let Some(last) = last else { return Ok(Vec::new()) };
        let from = self.handle.view().map_or(Ok(0), |view| view.segment_with(last))?;
        let missing = self.unreadable_segments()?.into_iter().filter(|number| *number > from);
        Ok(missing.map(|number| Damage::new(number, 0, format!("segment {number} cannot be read"))).collect())
    }

    /// The streams that have not ended.
    pub(crate) fn open_streams(&mut self) -> Vec<StreamId> {
        self.handle.view().map_or_else(Vec::new, |view| view.open_streams().keys().copied().collect())
    }

    /// Records and batches.
    pub(crate) fn counts(&mut self) -> Result<(u64, u64)> {
        let Some(view) = self.handle.view() else { return Ok((0, 0)) };
        let mut counts = (view.index.records, view.index.batches);
        for number in view.before_active()? {
            let index = view.sealed(number)?;
            counts.0 += index.records;
            counts.1 += index.batches;
        }
        Ok(counts)
    }

    /// How many bytes of segments there are from the one on that holds a position.
    pub(crate) fn len_from(&mut self, position: Position) -> Result<u64> {
        let Some(view) = self.handle.view() else { return Ok(0) };
        let (first, mut len) = (view.segment_with(position)?, view.spot.offset);
        for number in view.numbers_from(first)? {
            let stat = self.handle.disk().stat(&crate::journal::segment::file_name(number))?;
            len += stat.map_or(0, |stat| stat.len);
        }
        Ok(len)
    }

    /// The chain hash behind the batch that ends with a position; `None` where no batch that can be read does.
    pub(crate) fn chain_at(&mut self, position: Position) -> Result<Option<[u8; 32]>> {
        self.handle.view().map_or(Ok(None), |view| view.chain_at(position))
    }

    /// The position before the active segment: everything up to it is sealed.
    pub(crate) fn sealed_upto(&mut self) -> Position {
        self.handle.view().map_or(Position::ZERO, |v| Position(v.segment.header.first_position.0 - 1))
    }

    /// The last sequence and position of a stream.
    pub(crate) fn stream_end(&mut self, id: StreamId) -> Result<Option<(Seq, Position)>> {
        let Some(view) = self.handle.view() else { return Ok(None) };
        Ok(view.stream(id)?.map(|state| (state.last_seq, state.last_position)))
    }

    /// Checks everything.
    pub(crate) fn verify(&mut self, progress: &mut dyn FnMut(u64)) -> Result<Verification> {
        verify(&mut self.handle, progress)
    }
}
