//! Where single records stand, learnt while they are read: so that one that is asked for by its stream
//! and sequence is read without the batch around it.
//!
//! The indexes of the segments name the batches of a stream. What stands where within a batch is seen
//! when it is first read, and noted here, as far as the memory goes. Nothing of it is kept on the disk.

use super::read::RawRecord;
use super::segment::Segment;
use super::view::{BatchPlace, View};
use crate::disk::Open;
use crate::error::Result;
use crate::format::{BATCH_HEADER_LEN, BatchHeader, Codec, Records, StreamEntry};
use crate::position::{Position, Seq, StreamId, Time};
use std::collections::BTreeMap;

/// How much of a batch, about, is read for one record.
const STRIDE: u32 = 512;
/// The memory that is used, about.
const KEPT_LEN: usize = 24 << 20;

/// Before all streams.
const HAND: (StreamId, u64) = (StreamId(0), 0);
/// How many segments are kept open.
const KEPT_OPEN: usize = 64;

/// What is known of all streams that were asked for.
#[derive(Debug)]
pub(super) struct Directory {
    streams: BTreeMap<StreamId, Stream>,
    /// The memory that it takes.
    len: usize,
    /// What was forgotten last.
    hand: (StreamId, u64),
    /// Segments that were read from.
    open: BTreeMap<u64, Segment>,
    buffer: Vec<u8>,
}

/// Where a stream has records.
#[derive(Debug, Default)]
struct Stream {
    /// Its segments, ascending.
    parts: Vec<Part>,
    /// Up to which sealed segment they were looked for.
    looked: u64,
}

/// The records of a stream in one segment.
#[derive(Debug)]
struct Part {
    segment: u64,
    first_seq: Seq,
    /// Its batches, as far as they are known.
    batches: Vec<Noted>,
    /// The first sequence of the last one.
    last_first_seq: Seq,
    /// Whether that is all of them.
    whole: bool,
}

/// A batch with records of the stream.
#[derive(Debug)]
struct Noted {
    offset: u32,
    first_seq: Seq,
    /// Records of the stream, some way apart; none where it was not read yet.
    points: Box<[Point]>,
    /// The sequences before the last of them.
    last_seqs: u16,
    /// Where the last one ends, from the beginning of the body.
    end: u32,
    time: Time,
    first_position: Position,
    /// Whether the stream is opened in it.
    opens: bool,
}

/// Where a record begins. A batch has at most 65,536 of them.
#[derive(Debug, Clone, Copy)]
struct Point {
    /// How many bytes of the body stand before it.
    offset: u32,
    /// How many records.
    records: u16,
    /// How many sequences of the stream.
    seqs: u16,
}

/// What was found.
pub(super) enum Found {
    Record(RawRecord),
    /// Such a record is not where it would be.
    Nothing,
    /// The batch that it would be in has to be read as a whole.
    Within(BatchPlace),
}

impl Directory {
    pub(super) fn new() -> Self {
        Self { streams: BTreeMap::new(), len: 0, hand: HAND, open: BTreeMap::new(), buffer: Vec::new() }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.streams.clear();
        self.open.clear();
        self.len = 0;
    }

    /// Forgets the batches of a stream in a segment, in turns.
    fn drop_some(&mut self) {
        let (id, segment) = self.hand;
        for (at, stream) in self.streams.range_mut(id..) {
            let loaded = |part: &&mut Part| !part.batches.is_empty() && (*at, part.segment) > (id, segment);
            if let Some(part) = stream.parts.iter_mut().find(loaded) {
                self.hand = (*at, part.segment);
                self.len -= part.len();
                (part.batches, part.whole) = (Vec::new(), false);
                return;
            }
        }
        if self.hand == HAND {
            self.clear();
        }
        self.hand = HAND;
    }

    /// The record of a stream with a sequence.
    pub(super) fn find(&mut self, view: &mut View, id: StreamId, seq: Seq) -> Result<Found> {
        while self.len > KEPT_LEN {
            self.drop_some();
        }
        let stream = self.streams.entry(id).or_default();
        self.len += stream.look(view, id)?;
        let nth = stream.parts.partition_point(|part| part.first_seq <= seq);
        let Some(part) = nth.checked_sub(1).and_then(|nth| stream.parts.get_mut(nth)) else {
            return Ok(Found::Nothing);
        };
        self.len += part.load(view, id)?;
        let segment = part.segment;
        let Some(noted) = part.with(seq) else { return Ok(Found::Nothing) };
        let place = BatchPlace { segment, offset: u64::from(noted.offset) };
        if noted.points.is_empty() {
            return Ok(Found::Within(place));
        }
        let Some(segment) = opened(&mut self.open, view, segment) else { return Ok(Found::Within(place)) };
        // Whatever is not as it was noted is told by who reads the whole batch.
        let found = noted.read(segment, (id, seq), &mut self.buffer)?;
        Ok(found.map_or(Found::Within(place), Found::Record))
    }

    /// Reads a batch that was [found](Self::find), gives the record that was looked for, and notes where others
    /// stand. `None` where anything is not as it should be, or has to be decoded first.
    pub(super) fn learn(
        &mut self,
        view: &View,
        place: BatchPlace,
        (id, seq): (StreamId, Seq),
    ) -> Result<Option<RawRecord>> {
        let Some(segment) = opened(&mut self.open, view, place.segment) else { return Ok(None) };
        let Ok(header) = segment.read_batch(place.offset, &mut self.buffer)? else { return Ok(None) };
        if header.codec != Codec::None {
            return Ok(None);
        }
        let parts = self.streams.get_mut(&id).map(|stream| &mut stream.parts);
        let part = parts.and_then(|parts| parts.iter_mut().find(|part| part.segment == place.segment));
        let noted =
            part.and_then(|part| part.batches.iter_mut().find(|b| u64::from(b.offset) == place.offset));
        let Some(noted) = noted else { return Ok(None) };
        let found = noted.learn((id, seq), &header, &self.buffer);
        self.len += size_of_val(&*noted.points);
        Ok(found)
    }
}

/// A segment, opened now or before.
fn opened<'o>(open: &'o mut BTreeMap<u64, Segment>, view: &View, number: u64) -> Option<&'o Segment> {
    if !open.contains_key(&number) {
        if open.len() >= KEPT_OPEN {
            open.clear();
        }
        open.insert(number, view.open(number, Open::Read).ok()?);
    }
    open.get(&number)
}

impl Stream {
    /// Finds out which segments have records of it, since the last time.
    fn look(&mut self, view: &mut View, id: StreamId) -> Result<usize> {
        let (active, known) = (view.segment.number(), self.parts.len());
        if self.looked + 1 < active {
            let begun = view.segment_with(Position(id.0))?;
            for segment in view.numbers_from(begun.max(self.looked + 1))? {
                if let Some(entry) = view.sealed(segment)?.streams.get(&id) {
                    self.meet(segment, entry.first_seq);
                }
            }
            self.looked = active - 1;
        }
        if let Some(entry) = view.index.streams.get(&id) {
            self.meet(active, entry.first_seq);
        }
        Ok((self.parts.len() - known) * size_of::<Part>())
    }

    fn meet(&mut self, segment: u64, first_seq: Seq) {
        if self.parts.last().is_none_or(|last| last.segment < segment) {
            let (batches, last_first_seq) = (Vec::new(), first_seq);
            self.parts.push(Part { segment, first_seq, batches, last_first_seq, whole: false });
        }
    }
}

impl Part {
    /// Learns of batches that are not known yet. Answers how much memory that took.
    fn load(&mut self, view: &mut View, id: StreamId) -> Result<usize> {
        if self.whole {
            return Ok(0);
        }
        let known = self.batches.len();
        let mut extend = |entry: Option<&StreamEntry>| {
            let all = entry.map_or(&[][..], |entry| &entry.batches);
            let new = all.get(known..).unwrap_or_default().iter();
            self.batches.extend(new.map(|(offset, first_seq)| Noted::new(*offset, *first_seq)));
        };
        if self.segment == view.segment.number() {
            extend(view.index.streams.get(&id));
        } else {
            extend(view.sealed(self.segment)?.streams.get(&id));
            self.whole = true;
        }
        self.last_first_seq = self.batches.last().map_or(self.first_seq, |last| last.first_seq);
        Ok((self.batches.len() - known) * size_of::<Noted>())
    }

    /// The memory that its batches take.
    fn len(&self) -> usize {
        let points = |noted: &Noted| size_of::<Noted>() + size_of_val(&*noted.points);
        self.batches.iter().map(points).sum()
    }

    /// The batch that would have the record with this sequence.
    fn with(&mut self, seq: Seq) -> Option<&mut Noted> {
        let ends = (self.first_seq.0, self.last_first_seq.0);
        let nth = last_not_behind(self.batches.len(), ends, seq.0, |nth| self.batches[nth].first_seq.0)?;
        self.batches.get_mut(nth)
    }
}

impl Noted {
    fn new(offset: u32, first_seq: Seq) -> Self {
        let (points, last_seqs, end, opens) = (Box::default(), 0, 0, false);
        let (time, first_position) = (Time::default(), Position::ZERO);
        Self { offset, first_seq, points, last_seqs, end, time, first_position, opens }
    }

    /// Notes where the records of a stream stand in a body, and gives the one with this sequence.
    fn learn(&mut self, (id, seq): (StreamId, Seq), header: &BatchHeader, body: &[u8]) -> Option<RawRecord> {
        let (mut points, mut at) = (Vec::<Point>::new(), 0);
        let (mut opens, mut end, mut found) = (false, 0, None);
        let mut records = Records::new(header, body);
        while let Some(record) = records.next() {
            let record = record.ok()?;
            // What has no checksum of its own is nothing without its batch. Numbers that are out of proportion
            // are those of a hostile writer: it is read as a whole each time.
            if !records.last_has_checksum() {
                return None;
            }
            let behind = u32::try_from(body.len() - records.rest_len()).ok()?;
            if record.stream == id {
                opens |= record.opens.is_some();
                end = behind;
                if record.seq == seq && found.is_none() {
                    found = Some(RawRecord::of(&record));
                }
                if points.last().is_none_or(|last| at - last.offset >= STRIDE) {
                    let seqs = u16::try_from(record.seq.0.checked_sub(self.first_seq.0)?).ok()?;
                    let records = u16::try_from(record.position.0 - header.first_position.0).ok()?;
                    points.push(Point { offset: at, records, seqs });
                }
            }
            at = behind;
        }
        self.last_seqs = points.last().map_or(0, |last| last.seqs);
        (self.points, self.end, self.opens) = (points.into(), end, opens);
        (self.time, self.first_position) = (header.time, header.first_position);
        found
    }

    /// The last point that is not behind a sequence.
    fn nearest(&self, seq: Seq) -> Option<usize> {
        let seqs = seq.0.checked_sub(self.first_seq.0)?;
        let ends = (0, u64::from(self.last_seqs));
        last_not_behind(self.points.len(), ends, seqs, |nth| u64::from(self.points[nth].seqs))
    }

    /// Reads the record with this sequence, if it stands where it would, and matches its checksum.
    fn read(
        &self,
        segment: &Segment,
        (id, seq): (StreamId, Seq),
        buffer: &mut Vec<u8>,
    ) -> Result<Option<RawRecord>> {
        let Some(nth) = self.nearest(seq) else { return Ok(None) };
        let point = self.points[nth];
        let end = self.points.get(nth + 1).map_or(self.end, |next| next.offset);
        let len = end.saturating_sub(point.offset) as usize;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let body = u64::from(self.offset) + BATCH_HEADER_LEN as u64;
        let read = segment.file.read_at(&mut buffer[..len], body + u64::from(point.offset))?;
        let opened = self.opens.then_some(id);
        let position = Position(self.first_position.0 + u64::from(point.records));
        let mut records = Records::part(self.time, position, opened, &buffer[..read]);
        loop {
            let here = records.clone();
            match records.next() {
                Some(Ok(record)) if record.stream == id && record.seq == seq => {
                    let checked = here.checked().next();
                    return Ok(checked.and_then(Result::ok).map(|record| RawRecord::of(&record)));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}

/// The last of so many ascending numbers, of which the first and the last are given, that is not above `wanted`.
/// Mostly they are about as far from each other, so that the first look finds it: each look at another one is a
/// wait for memory.
fn last_not_behind(
    count: usize,
    (low, high): (u64, u64),
    wanted: u64,
    number: impl Fn(usize) -> u64,
) -> Option<usize> {
    let last = count.checked_sub(1)?;
    if wanted < low {
        return None;
    }
    if wanted >= high {
        return Some(last);
    }
    let share = u128::from(wanted - low) * last as u128 / u128::from(high - low);
    let guess = usize::try_from(share).unwrap_or(last);
    let (mut from, mut to) = (0, last);
    for guess in [guess, guess.saturating_sub(1), guess + 1] {
        if number(guess) > wanted {
            to = to.min(guess);
        } else if number(guess + 1) > wanted {
            return Some(guess);
        } else {
            from = from.max(guess + 1);
        }
    }
    // Not behind at `from`, behind at `to`.
    while to - from > 1 {
        let middle = from.midpoint(to);
        if number(middle) > wanted {
            to = middle;
        } else {
            from = middle;
        }
    }
    Some(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_last_that_is_not_behind_is_found_however_they_lie(
            mut numbers in prop::collection::vec(prop_oneof![0..40_u64, 0..5_000_u64, any::<u64>()], 0..60),
            wanted in prop_oneof![0..50_u64, 0..6_000_u64, any::<u64>()],
        ) {
            numbers.sort_unstable();
            let ends = (numbers.first().copied().unwrap_or(0), numbers.last().copied().unwrap_or(0));
            let found = last_not_behind(numbers.len(), ends, wanted, |nth| numbers[nth]);
            prop_assert_eq!(found, numbers.partition_point(|number| *number <= wanted).checked_sub(1));
        }
    }

    #[test]
    fn what_is_dropped_is_what_was_counted_until_nothing_is_left() {
        let mut directory = Directory::new();
        for id in 1..40 {
            let part = |segment: u64| {
                let mut batches: Vec<_> = (0..id).map(|n| Noted::new(1_024 + 9 * n, Seq(1))).collect();
                batches[0].points = vec![Point { offset: 0, records: 0, seqs: 0 }; 3].into();
                Part { segment, first_seq: Seq(1), batches, last_first_seq: Seq(1), whole: true }
            };
            let parts = vec![part(1), part(2), part(3)];
            directory.len += parts.iter().map(|part| part.len() + size_of::<Part>()).sum::<usize>();
            directory.streams.insert(StreamId(u64::from(id)), Stream { parts, looked: 3 });
        }
        let parts = |directory: &Directory| {
            let all = directory.streams.values().flat_map(|stream| &stream.parts);
            all.map(|part| part.len() + size_of::<Part>()).sum::<usize>()
        };
        let mut turns = 0;
        while directory.len > 0 {
            let before = directory.len;
            assert_eq!(before, parts(&directory), "turn {turns}");
            directory.drop_some();
            assert!(directory.len < before || directory.hand == HAND, "turn {turns}");
            turns += 1;
        }
        assert!((39 * 3..39 * 3 + 3).contains(&turns), "one after the other: {turns}");
        assert!(directory.streams.is_empty());
    }
}
