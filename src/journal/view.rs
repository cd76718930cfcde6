//! What a process knows of the journal: where the durable end is, and what stands where.

use super::index::{self, Stretch};
use super::keys::Keys;
use super::mark::MarkView;
use super::names;
use super::segment::{self, Bound, Damage, Scanner, Segment, Spot, Step, Unopened};
use crate::disk::{Disk, Open};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::format::{
    BatchHeader, Codec, Digest, Footer, Mark, OpenStream, Records, SegmentHeader, StreamEntry, decode_body,
    name_hash,
};
use crate::position::{Position, Seq, StreamId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How much memory the indexes of sealed segments may take. One is kept in any case.
const KEPT_LEN: usize = 8 << 20;

/// How many sealed segments stay open for who goes on reading: a segment, the one that says where it
/// ends, and the one a reader came from.
const KEPT_OPEN: usize = 3;

/// The place of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BatchPlace {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// The state of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamState {
    pub(crate) last_seq: Seq,
    pub(crate) last_position: Position,
    pub(crate) open: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct View {
    disk: Arc<dyn Disk>,
    pub(crate) segment: Segment,
    /// The durable end, up to which the active segment is indexed.
    pub(crate) spot: Spot,
    /// The active segment's index; shared with readers of this process until somebody adds to it.
    pub(crate) index: Arc<Footer>,
    /// What was found damaged while indexing it.
    pub(crate) damage: Vec<Damage>,
    /// Sealed segments that were read a moment ago, the last one first.
    recent: Vec<Segment>,
    sealed: BTreeMap<u64, Arc<Footer>>,
    /// The memory that they take.
    sealed_len: usize,
    /// The segments before the active one that have a file, ascending, each with its first position
    /// where its header can be read. What is sealed does not change.
    before: Option<Vec<(u64, Option<Position>)>>,
    names: Option<Arc<names::Names>>,
    keys: Option<Keys>,
    /// Up to where the cache has the active segment's index, and from where on it is worth keeping anew.
    kept: u64,
    worth_keeping: u64,
    writable: bool,
}

impl View {
    /// In a segment that is durable up to a place, as far as its index is in the cache, otherwise before
    /// its first batch, knowing which streams were open there.
    pub(crate) fn at_start(
        disk: Arc<dyn Disk>,
        segment: Segment,
        bound: Bound,
        writable: bool,
    ) -> Result<Self> {
        let header = segment.header;
        let (index, spot) = if let Some(begun) = index::of_beginning(&*disk, &segment, bound)? {
            begun
        } else {
            let before = match segment.number() {
                1 => Footer::default(),
                number => index::of_sealed(&*disk, &header.journal, number - 1, Some(header), writable)?,
            };
            (index::empty(&header, before.open, before.term), Spot::start(&header))
        };
        let kept = if index.batches > 0 { spot.offset } else { 0 };
        Ok(Self {
            disk,
            segment,
            spot,
            index: Arc::new(index),
            damage: Vec::new(),
            recent: Vec::new(),
            sealed: BTreeMap::new(),
            sealed_len: 0,
            before: None,
            names: None,
            keys: None,
            kept,
            worth_keeping: 0,
            writable,
        })
    }

    /// The same for a reader, which goes on from here by itself.
    pub(crate) fn for_reading(&self) -> Self {
        Self {
            disk: Arc::clone(&self.disk),
            segment: self.segment.clone(),
            spot: self.spot,
            index: Arc::clone(&self.index),
            damage: self.damage.clone(),
            recent: self.recent.clone(),
            sealed: self.sealed.clone(),
            sealed_len: self.sealed_len,
            before: self.before.clone(),
            names: self.names.clone(),
            keys: None,
            kept: self.kept,
            worth_keeping: 0,
            writable: false,
        }
    }

    /// About how many bytes of batches there are from here to another view; 0 where that is not ahead.
    pub(crate) fn len_to(&self, ahead: &Self) -> u64 {
        if ahead.spot.position <= self.spot.position {
            return 0;
        }
        let sealed = ahead.segment.number().saturating_sub(self.segment.number());
        let sealed_len = self.segment.header.capacity.saturating_mul(sealed);
        (sealed_len + ahead.spot.offset).saturating_sub(self.spot.offset)
    }

    /// Opens a segment of this journal.
    pub(crate) fn open(&self, number: u64, how: Open) -> Result<Segment, Unopened> {
        Segment::open_of(&*self.disk, &self.segment.header.journal, number, how)
    }

    /// A segment of this journal for reading, opened now or a moment ago.
    pub(crate) fn reopen(&mut self, number: u64) -> Result<Segment, Unopened> {
        if number == self.segment.number() {
            return Ok(self.segment.clone());
        }
        if let Some(found) = self.recent.iter().find(|segment| segment.number() == number) {
            return Ok(found.clone());
        }
        let segment = self.open(number, Open::Read)?;
        self.recent.truncate(KEPT_OPEN - 1);
        self.recent.insert(0, segment.clone());
        Ok(segment)
    }

    /// Looks at every file anew from here on.
    pub(crate) fn forget_files(&mut self) {
        self.recent.clear();
    }

    /// What the segment behind a sealed one says of it, if there is one that can be read.
    fn successor_of(&mut self, number: u64) -> Option<SegmentHeader> {
        self.reopen(number + 1).ok().map(|segment| segment.header)
    }

    /// Moves on to a place that is known to be durable.
    pub(crate) fn advance(&mut self, to_segment: u64, to: Bound) -> Result<()> {
        while self.segment.number() < to_segment {
            let how = if self.writable { Open::Write } else { Open::Read };
            match self.open(self.segment.number() + 1, how) {
                Ok(next) => {
                    self.scan_to(index::sealed_bound(&next.header))?;
                    self.enter(next);
                }
                Err(Unopened::Failed(error)) => return Err(error),
                // What lies between cannot be read; reading says so. Go on where there is a header.
                Err(_) => {
                    let target = Segment::open(&*self.disk, to_segment, how)
                        .map_err(|unopened| unopened.into_error(to_segment))?;
                    *self = Self::at_start(Arc::clone(&self.disk), target, to, self.writable)?;
                }
            }
        }
        self.scan_to(to)
    }

    fn scan_to(&mut self, bound: Bound) -> Result<()> {
        if bound.offset <= self.spot.offset && bound.position.is_none_or(|p| p <= self.spot.position) {
            return Ok(());
        }
        let mut scanner = Scanner::new(self.segment.clone(), self.spot, bound);
        let found = index::scan(Arc::make_mut(&mut self.index), &mut scanner)?;
        self.damage.extend(found);
        self.spot = scanner.spot();
        Ok(())
    }

    /// Makes the next segment the active one: what was indexed so far is sealed.
    pub(crate) fn enter(&mut self, next: Segment) {
        let fresh = index::empty(&next.header, self.index.open.clone(), self.index.term);
        let old = std::mem::replace(&mut self.index, Arc::new(fresh));
        if let Some(names) = &mut self.names {
            let names = Arc::make_mut(names);
            names.extend(old.names.iter().copied());
            // Both parts are in order already.
            names.sort();
        }
        let number = self.segment.number();
        if let Some(before) = &mut self.before {
            before.push((number, Some(self.segment.header.first_position)));
        }
        self.spot = Spot::start(&next.header);
        let damaged = self.damage.iter().any(|d| d.segment == number);
        let old_segment = std::mem::replace(&mut self.segment, next);
        if self.writable && !damaged && self.segment.header.prev_footer_len == 0 {
            // Disposable: failing to keep it costs the next one a scan.
            let _ = index::store(&*self.disk, &old_segment, &old);
        } else if self.writable && self.kept > 0 {
            index::forget(&*self.disk, number);
        }
        (self.kept, self.worth_keeping) = (0, 0);
        if let Some(keys) = self.keys.as_mut().filter(|_| !old.keys.is_empty()) {
            let place = index::place_of(&old_segment, Some(&self.segment.header));
            keys.add(number, &old, place.unwrap_or_default());
        }
        self.keep(number, old);
    }

    /// Adds a batch that this process has just made durable.
    pub(crate) fn added(&mut self, offset: u64, header: &BatchHeader, stretches: &[Stretch]) -> Result<()> {
        index::add_stretches(Arc::make_mut(&mut self.index), offset, header, stretches).map_err(|flaw| {
            let message = format!("a batch of one's own is not what it was made of: {}", flaw.describe());
            Error::new(ErrorKind::Misuse, message)
        })?;
        self.spot = Spot {
            offset: offset + header.frame_len(),
            position: header.last_position(),
            chain: Some(header.chain),
        };
        Ok(())
    }

    /// Keeps the active segment's index in the cache, where so many bytes have been written since the last
    /// time, and so many times what the index takes: whoever opens next has as much less to look at. Only
    /// under the journal's lock.
    pub(crate) fn keep_index(&mut self, least: u64, times: u64) {
        let written = self.spot.offset - self.kept;
        let wanted = if times > 0 { least.max(self.worth_keeping) } else { least };
        if !self.writable || !self.damage.is_empty() || written < wanted {
            return;
        }
        // What it takes is not counted each time: that is as long as it is.
        self.worth_keeping = times * self.index.memory_len() as u64;
        if written >= self.worth_keeping {
            // Disposable: failing to keep it costs the next one a scan.
            let _ = index::store(&*self.disk, &self.segment, &self.index);
            self.kept = self.spot.offset;
        }
    }

    fn keep(&mut self, number: u64, index: Arc<Footer>) {
        self.sealed_len += index.memory_len();
        while self.sealed_len > KEPT_LEN
            && let Some((_, gone)) = self.sealed.pop_first()
        {
            self.sealed_len -= gone.memory_len();
        }
        if let Some(before) = self.sealed.insert(number, index) {
            self.sealed_len -= before.memory_len();
        }
    }

    /// The index of a sealed segment.
    pub(crate) fn sealed(&mut self, number: u64) -> Result<Arc<Footer>> {
        if let Some(index) = self.sealed.get(&number) {
            return Ok(Arc::clone(index));
        }
        let successor = self.successor_of(number);
        let journal = &self.segment.header.journal;
        let index = Arc::new(index::of_sealed(&*self.disk, journal, number, successor, self.writable)?);
        self.keep(number, Arc::clone(&index));
        Ok(index)
    }

    /// The streams that have not ended.
    pub(crate) fn open_streams(&self) -> &BTreeMap<StreamId, OpenStream> {
        &self.index.open
    }

    /// Where a stream stands; `None` where there is no such stream.
    pub(crate) fn stream(&mut self, id: StreamId) -> Result<Option<StreamState>> {
        if let Some(open) = self.index.open.get(&id) {
            let (last_seq, last_position) = (open.last_seq, open.last_position);
            return Ok(Some(StreamState { last_seq, last_position, open: true }));
        }
        let closed = |entry: &StreamEntry| StreamState {
            last_seq: entry.last_seq,
            last_position: entry.last_position,
            open: false,
        };
        if let Some(entry) = self.index.streams.get(&id) {
            return Ok(Some(closed(entry)));
        }
        for number in self.numbers_from(0)?.into_iter().rev() {
            let index = self.sealed(number)?;
            if let Some(entry) = index.streams.get(&id) {
                return Ok(Some(closed(entry)));
            }
            if index.first_position.0 <= id.0 && index.records > 0 {
                break;
            }
        }
        Ok(None)
    }

    /// The segments that may have records of a stream from `from` on, in order.
    pub(crate) fn segments_of(&mut self, id: StreamId, from: Seq) -> Result<Vec<u64>> {
        let active = self.segment.number();
        // The common case of a run that is going on: nothing older is asked for.
        if self.index.streams.get(&id).is_some_and(|entry| entry.first_seq <= from) {
            return Ok(vec![active]);
        }
        let first = self.segment_with(Position(id.0))?;
        let mut numbers = self.numbers_from(first)?;
        numbers.push(active);
        Ok(numbers)
    }

    /// The batches of a segment with records of these streams, each from a sequence on, in order.
    pub(crate) fn batches_in(
        &mut self,
        number: u64,
        from: impl IntoIterator<Item = (StreamId, Seq)>,
    ) -> Result<BTreeSet<BatchPlace>> {
        self.with_index(number, |index| {
            let mut places = BTreeSet::new();
            for (id, from) in from {
                let entry = index.streams.get(&id).filter(|entry| entry.last_seq >= from);
                let batches = entry.map_or(&[][..], |entry| &entry.batches);
                let start = batches.partition_point(|(_, seq)| *seq <= from).max(1) - 1;
                let place =
                    |(offset, _): &(u32, Seq)| BatchPlace { segment: number, offset: u64::from(*offset) };
                places.extend(batches.get(start..).unwrap_or_default().iter().map(place));
            }
            places
        })
    }

    /// The streams that begin in a segment, each with the first batch of it that the index names.
    pub(crate) fn begun_in(&mut self, number: u64) -> Result<Vec<(StreamId, BatchPlace)>> {
        let first = |(id, entry): (&StreamId, &StreamEntry)| {
            let (offset, _) = entry.batches.first()?;
            Some((*id, BatchPlace { segment: number, offset: u64::from(*offset) }))
        };
        self.with_index(number, |index| {
            index.streams.range(StreamId(index.first_position.0)..).filter_map(first).collect()
        })
    }

    /// The numbers of the segments before the active one that have a file, ascending. A number says
    /// nothing about how many there are: a hostile header can name any.
    pub(crate) fn before_active(&self) -> Result<Vec<u64>> {
        let mut numbers = segment::list(&*self.disk)?;
        numbers.retain(|number| *number < self.segment.number());
        Ok(numbers)
    }

    /// The same, looked at once, with their first positions.
    fn known_before(&mut self) -> Result<&[(u64, Option<Position>)]> {
        if self.before.is_none() {
            let mut before = Vec::new();
            for number in self.before_active()? {
                let first = match self.reopen(number) {
                    Ok(segment) => Some(segment.header.first_position),
                    Err(Unopened::Failed(error)) => return Err(error),
                    Err(_) => None,
                };
                before.push((number, first));
            }
            self.before = Some(before);
        }
        Ok(self.before.as_deref().unwrap_or_default())
    }

    /// Their numbers from one on.
    pub(crate) fn numbers_from(&mut self, first: u64) -> Result<Vec<u64>> {
        let known = self.known_before()?;
        Ok(known.iter().map(|(number, _)| *number).filter(|number| *number >= first).collect())
    }

    /// The sealed segments behind one, by their files.
    pub(crate) fn sealed_behind(&self, number: u64) -> Result<Vec<u64>> {
        Ok(self.before_active()?.into_iter().filter(|at| *at > number).collect())
    }

    /// Whether it is that of somebody who holds the journal's lock.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// The segment that holds a position, by the headers. An unreadable one counts as part of the
    /// one before it.
    pub(crate) fn segment_with(&mut self, position: Position) -> Result<u64> {
        if position >= self.segment.header.first_position {
            return Ok(self.segment.number());
        }
        let known = self.known_before()?;
        let behind = known.iter().rev().find(|(_, first)| first.is_some_and(|first| first <= position));
        Ok(behind.map_or(1, |(number, _)| *number))
    }

    /// Where to begin scanning for a position, in the segment that holds it.
    pub(crate) fn near(&mut self, position: Position) -> Result<BatchPlace> {
        let segment = self.segment_with(position)?;
        let offset = self.with_index(segment, |index| {
            let at = index.positions.partition_point(|(first, _)| *first <= position).max(1) - 1;
            index.positions.get(at).map_or(crate::format::SEGMENT_DATA_START, |(_, offset)| *offset)
        })?;
        Ok(BatchPlace { segment, offset })
    }

    /// Looks at the index of a segment, sealed or not.
    fn with_index<T>(&mut self, number: u64, look: impl FnOnce(&Footer) -> T) -> Result<T> {
        if number == self.segment.number() {
            return Ok(look(&self.index));
        }
        Ok(look(&*self.sealed(number)?))
    }

    /// The stream of this name.
    pub(crate) fn find_name(&mut self, name: &[u8]) -> Result<Option<StreamId>> {
        let hash = name_hash(name);
        let mut candidates: Vec<StreamId> = Vec::new();
        candidates.extend(matching(&self.index.names, hash));
        if self.names.is_none() {
            let disk = Arc::clone(&self.disk);
            self.names = Some(Arc::new(names::of_sealed(self, &*disk)?));
        }
        if let Some(names) = &self.names {
            candidates.extend(matching(names, hash));
        }
        for id in candidates {
            // Where the name itself cannot be read any more, its hash has to do: better than a second
            // stream of the same name.
            if self.name_of(id)?.is_none_or(|found| found == name) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// The batch with the record that bears this idempotency key.
    pub(crate) fn find_key(&mut self, key: &[u8]) -> Result<Option<(BatchHeader, Vec<u8>)>> {
        let hash = name_hash(key);
        let mut keys = match self.keys.take() {
            Some(keys) => keys,
            None => self.load_keys()?,
        };
        let disk = Arc::clone(&self.disk);
        let found = keys.find(&*disk, hash, &mut |number| self.sealed(number));
        self.keys = Some(keys);
        let mut candidates = found?;
        let here = (hash, Position::ZERO)..=(hash, Position(u64::MAX));
        candidates.extend(self.index.keys.range(here).map(|(_, position)| *position));
        for position in candidates {
            let Some((header, body)) = self.batch_with(position)? else {
                let message = "a record with this idempotency key, or one of the same hash, cannot be read";
                let place =
                    Place { segment: self.segment_with(position)?, offset: 0, position: Some(position) };
                return Err(Error::corrupt(message, place)
                    .hint("Nothing was written. `runwal verify` tells what is damaged; another key is not concerned."));
            };
            if Records::new(&header, &body).flatten().any(|r| r.position == position && r.key == Some(key)) {
                return Ok(Some((header, body)));
            }
        }
        Ok(None)
    }

    fn load_keys(&mut self) -> Result<Keys> {
        let mut keys = Keys::default();
        for number in self.numbers_from(0)? {
            let index = self.sealed(number)?;
            if index.keys.is_empty() {
                continue;
            }
            let successor = self.successor_of(number);
            let place = match self.reopen(number) {
                Ok(segment) => index::place_of(&segment, successor.as_ref())?,
                Err(_) => None,
            };
            keys.add(number, &index, place);
        }
        Ok(keys)
    }

    /// The highest term seen in a stream.
    pub(crate) fn stream_term(&mut self, id: StreamId) -> Result<u64> {
        if let Some(open) = self.index.open.get(&id) {
            return Ok(open.term);
        }
        // One that has ended is looked up wherever it has records.
        let mut term = self.index.streams.get(&id).map_or(0, |entry| entry.term);
        let first = self.segment_with(Position(id.0))?;
        for number in self.numbers_from(first)? {
            term = term.max(self.sealed(number)?.streams.get(&id).map_or(0, |entry| entry.term));
        }
        Ok(term)
    }

    /// All streams, in the order of their opening.
    pub(crate) fn all_streams(&mut self) -> Result<Vec<StreamId>> {
        let mut all = Vec::new();
        for number in self.numbers_from(0)? {
            all.extend(self.sealed(number)?.names.iter().map(|(_, id)| *id));
        }
        all.extend(self.index.names.iter().map(|(_, id)| *id));
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// The name a stream was opened with; `None` also where it cannot be read any more.
    pub(crate) fn name_of(&mut self, id: StreamId) -> Result<Option<Vec<u8>>> {
        let place = self.near(Position(id.0))?;
        let found = match self.first_batch_of(id, place.segment)? {
            Some(offset) => self.batch(BatchPlace { offset, ..place })?.ok(),
            None => self.batch_from(place, Position(id.0))?,
        };
        let Some((header, body)) = found else { return Ok(None) };
        let mut records = Records::new(&header, &body).flatten();
        let first = records.find(|record| record.position.0 == id.0);
        Ok(first.and_then(|record| record.opens.map(<[u8]>::to_vec)))
    }

    /// Where a stream begins, if that is in this segment and its index says so.
    fn first_batch_of(&mut self, id: StreamId, segment: u64) -> Result<Option<u64>> {
        self.with_index(segment, |index| {
            let entry = index.streams.get(&id).filter(|entry| entry.first_seq == Seq(1));
            entry.and_then(|entry| entry.batches.first()).map(|(offset, _)| u64::from(*offset))
        })
    }

    /// Reads one batch at a place the index named, and nothing around it.
    pub(crate) fn batch(&mut self, place: BatchPlace) -> Result<Result<(BatchHeader, Vec<u8>), Damage>> {
        let segment = match self.reopen(place.segment) {
            Ok(segment) => segment,
            Err(unopened) => return unopened.into_damage(place.segment).map(Err),
        };
        let mut body = Vec::new();
        let header = match segment.read_batch(place.offset, &mut body)? {
            Ok(header) => header,
            Err(damage) => return Ok(Err(damage)),
        };
        if header.codec != Codec::None {
            let mut decoded = Vec::new();
            let len = decode_body(&header, &body, &mut decoded).len();
            decoded.truncate(len);
            body = decoded;
        }
        Ok(Ok((header, body)))
    }

    /// The batch that holds a position; `None` where it cannot be read any more.
    fn batch_with(&mut self, position: Position) -> Result<Option<(BatchHeader, Vec<u8>)>> {
        let place = self.near(position)?;
        self.batch_from(place, position)
    }

    /// The chain hash behind the batch that ends with a position; `None` where no batch that can be read does.
    pub(crate) fn chain_at(&mut self, position: Position) -> Result<Option<Digest>> {
        if self.spot.position == position {
            return Ok(self.spot.chain);
        }
        if position > self.spot.position || position == Position::ZERO {
            return Ok(None);
        }
        let found = self.batch_with(position)?;
        Ok(found.filter(|(header, _)| header.last_position() == position).map(|(header, _)| header.chain))
    }

    /// The batch that holds a position, looked for from a place that is not behind it.
    fn batch_from(
        &mut self,
        place: BatchPlace,
        position: Position,
    ) -> Result<Option<(BatchHeader, Vec<u8>)>> {
        let mut scanner = match self.scanner_at(place) {
            Ok(scanner) => scanner,
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(None),
            Err(error) => return Err(error),
        };
        while let Some(step) = scanner.step()? {
            if let Step::Batch { header, body, .. } = step {
                if header.first_position > position {
                    break;
                }
                if header.last_position() >= position {
                    return Ok(Some((header, body.to_vec())));
                }
            }
        }
        Ok(None)
    }

    /// A scanner over a segment up to its durable end, from a batch of it.
    pub(crate) fn scanner_at(&mut self, place: BatchPlace) -> Result<Scanner> {
        let (segment, bound) = self.bounded(place.segment).map_err(|u| u.into_error(place.segment))?;
        scanner_in(segment, bound, place.offset)
    }

    /// A segment and the end of what is durable in it.
    pub(crate) fn bounded(&mut self, number: u64) -> Result<(Segment, Bound), Unopened> {
        if number == self.segment.number() {
            let bound = Bound { offset: self.spot.offset, position: Some(self.spot.position) };
            return Ok((self.segment.clone(), bound));
        }
        if number > self.segment.number() {
            let place = Place { segment: number, offset: 0, position: None };
            let early = Error::misuse(format!("segment {number} is not there yet")).at(place);
            return Err(Unopened::Failed(early));
        }
        let segment = self.reopen(number)?;
        let bound = match self.successor_of(number) {
            Some(successor) => index::sealed_bound(&successor),
            None => Bound { offset: segment.len().map_err(Unopened::Failed)?, position: None },
        };
        Ok((segment, bound))
    }
}

/// A scanner over an open segment up to a bound, from the batch at an offset.
pub(crate) fn scanner_in(segment: Segment, bound: Bound, offset: u64) -> Result<Scanner> {
    let spot = if offset <= crate::format::SEGMENT_DATA_START {
        Spot::start(&segment.header)
    } else {
        // The position before a batch in the middle is what its own header says.
        let mut head = [0; crate::format::BATCH_HEADER_LEN];
        let read = segment.file.read_at(&mut head, offset)?;
        match BatchHeader::decode(&head[..read], &segment.header.site(), offset) {
            Ok(header) => Spot { offset, position: Position(header.first_position.0 - 1), chain: None },
            Err(_) => Spot::start(&segment.header),
        }
    };
    Ok(Scanner::new(segment, spot, bound))
}

fn matching(names: &[(u64, StreamId)], hash: u64) -> impl Iterator<Item = StreamId> + '_ {
    let from = names.partition_point(|(h, _)| *h < hash);
    names[from..].iter().take_while(move |(h, _)| *h == hash).map(|(_, id)| *id)
}

/// The journal that this directory is known to hold: the mark's, of a copied mark only where there
/// is a segment of it, as the mark may itself be what does not belong here. `None` where nothing
/// says so: then it is that of the newest segment that can be opened.
pub(crate) fn known_journal(disk: &dyn Disk, mark: &MarkView) -> Result<Option<[u8; 16]>> {
    let Some(best) = mark.best else { return Ok(None) };
    if mark.evidence().is_some() {
        return Ok(Some(best.journal));
    }
    for number in segment::list(disk)?.into_iter().rev() {
        match Segment::open_of(disk, &best.journal, number, Open::Read) {
            Ok(_) => return Ok(Some(best.journal)),
            Err(Unopened::Failed(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(None)
}

/// The bound a mark stands for.
pub(crate) fn bound_of(mark: &Mark) -> Bound {
    Bound { offset: mark.end.min(crate::format::MAX_SEGMENT_LEN), position: Some(mark.position) }
}

/// The newest segment number with a file, and how many there are.
pub(crate) fn newest(disk: &dyn Disk) -> Result<Option<u64>> {
    Ok(segment::list(disk)?.last().copied())
}
