//! What a segment contains: built while it is written or scanned, stored as its footer, or, where
//! it has none, as a disposable file under `cache/index/`. Of a segment that is still written to, such a
//! file has the beginning.

use super::segment::{self, Bound, DIGEST_DIFFERS, Damage, Scanner, Segment, Spot, Step, Unopened};
use crate::disk::{Disk, Open, read_whole};
use crate::error::{Place, Result};
use crate::format::{
    BATCH_HEADER_LEN, BatchHeader, FOOTER_HEADER_LEN, Flaw, Footer, MAX_FOOTER_LEN, MAX_SEGMENT_LEN,
    OpenStream, Records, SegmentHeader, StreamEntry, WireRecord, name_hash,
};
use crate::position::{Position, Seq, StreamId, Time};
use std::collections::BTreeMap;

/// Batches are noted by position about this often.
const POSITION_STRIDE: u64 = 64 << 10;
const SIDECARS: &str = "cache/index";

/// An index with nothing in it, for a segment that begins as `header` says.
pub(crate) fn empty(header: &SegmentHeader, open: BTreeMap<StreamId, OpenStream>, term: u64) -> Footer {
    Footer {
        first_position: header.first_position,
        last_position: Position(header.first_position.0 - 1),
        chain: header.chain,
        open,
        term,
        ..Footer::default()
    }
}

/// Records of one stream that stand side by side in a batch: what an index wants to know of them. Only the
/// first of them may open its stream or have a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) stream: StreamId,
    /// The hash of the stream's name.
    pub(crate) opens: Option<u64>,
    /// The hash of the key.
    pub(crate) key: Option<u64>,
    pub(crate) first_position: Position,
    pub(crate) first_seq: Seq,
    pub(crate) count: u64,
    /// The earliest and the latest time.
    pub(crate) times: (Time, Time),
    /// The highest term; 0 where there is none.
    pub(crate) term: u64,
    /// Whether one of them ends the stream.
    pub(crate) closes: bool,
}

impl Stretch {
    fn of(record: &WireRecord<'_>) -> Self {
        Self {
            stream: record.stream,
            opens: record.opens.map(name_hash),
            key: record.key.map(name_hash),
            first_position: record.position,
            first_seq: record.seq,
            count: 1,
            times: (record.time, record.time),
            term: record.term.unwrap_or(0),
            closes: record.closes,
        }
    }

    pub(crate) fn last_seq(&self) -> Seq {
        Seq(self.first_seq.0 + (self.count - 1))
    }

    fn last_position(&self) -> Position {
        Position(self.first_position.0 + (self.count - 1))
    }

    /// Puts it behind others: as one with the last of them, where it goes on with that.
    pub(crate) fn put(self, all: &mut Vec<Self>) {
        let last = all.last_mut().filter(|last| {
            let begins = self.opens.is_some() || self.key.is_some();
            last.stream == self.stream && !begins && last.last_seq().next() == Some(self.first_seq)
        });
        match last {
            Some(last) => last.extend(&self),
            None => all.push(self),
        }
    }

    /// Takes in what goes on with it.
    pub(crate) fn extend(&mut self, next: &Self) {
        self.count += next.count;
        self.times = (self.times.0.min(next.times.0), self.times.1.max(next.times.1));
        self.term = self.term.max(next.term);
        self.closes |= next.closes;
    }
}

/// The stretches of a body.
pub(crate) fn stretches(header: &BatchHeader, body: &[u8]) -> Result<Vec<Stretch>, Flaw> {
    let mut all = Vec::new();
    for record in Records::new(header, body) {
        Stretch::of(&record?).put(&mut all);
    }
    Ok(all)
}

/// Adds a batch that stands at `offset`. A body that is not made of records changes nothing.
pub(crate) fn add(index: &mut Footer, offset: u64, header: &BatchHeader, body: &[u8]) -> Result<(), Flaw> {
    add_stretches(index, offset, header, &stretches(header, body)?)
}

/// The same for a batch whose stretches are known.
pub(crate) fn add_stretches(
    index: &mut Footer,
    offset: u64,
    header: &BatchHeader,
    stretches: &[Stretch],
) -> Result<(), Flaw> {
    let at = u32::try_from(offset).map_err(|_| Flaw::Limit("a batch stands beyond 4 GiB"))?;
    if stretches.iter().map(|stretch| stretch.count).sum::<u64>() != u64::from(header.count) {
        return Err(Flaw::Garbage("the batch has other records than its header says"));
    }
    for stretch in stretches {
        let (last_seq, last_position) = (stretch.last_seq(), stretch.last_position());
        if index.records == 0 {
            (index.min_time, index.max_time) = stretch.times;
        }
        index.records += stretch.count;
        index.min_time = index.min_time.min(stretch.times.0);
        index.max_time = index.max_time.max(stretch.times.1);
        index.term = index.term.max(stretch.term);
        if let Some(name) = stretch.opens {
            insert_sorted(&mut index.names, (name, stretch.stream));
            let open = OpenStream { last_seq: Seq::ZERO, last_position: Position::ZERO, term: 0 };
            index.open.insert(stretch.stream, open);
        }
        if let Some(key) = stretch.key {
            index.keys.insert((key, stretch.first_position));
        }
        let entry = index.streams.entry(stretch.stream).or_insert_with(|| StreamEntry {
            first_seq: stretch.first_seq,
            last_seq,
            last_position,
            term: 0,
            closed: false,
            batches: Vec::new(),
        });
        if entry.batches.last().is_none_or(|(last, _)| *last != at) {
            entry.batches.push((at, stretch.first_seq));
        }
        (entry.last_seq, entry.last_position) = (last_seq, last_position);
        entry.term = entry.term.max(stretch.term);
        entry.closed |= stretch.closes;
        if stretch.closes {
            index.open.remove(&stretch.stream);
        } else if let Some(open) = index.open.get_mut(&stretch.stream) {
            (open.last_seq, open.last_position) = (last_seq, last_position);
            open.term = open.term.max(stretch.term);
        }
    }
    if index.positions.last().is_none_or(|(_, last)| offset - last >= POSITION_STRIDE) {
        index.positions.push((header.first_position, offset));
    }
    index.batches += 1;
    index.last_position = header.last_position();
    index.chain = header.chain;
    Ok(())
}

fn insert_sorted<T: Ord>(list: &mut Vec<T>, item: T) {
    let at = list.partition_point(|other| *other < item);
    list.insert(at, item);
}

/// Scans a segment into `index`, from where it ends; answers with the damage met on the way.
pub(crate) fn scan(index: &mut Footer, scanner: &mut Scanner) -> Result<Vec<Damage>> {
    let mut damage = Vec::new();
    let number = scanner.number();
    while let Some(step) = scanner.step()? {
        match step {
            Step::Batch { offset, header, body } => {
                if let Err(flaw) = add(index, offset, &header, body) {
                    damage.push(flaw_in(number, offset, flaw, &header, body)?);
                }
            }
            Step::Damage(found) => damage.push(found),
        }
    }
    Ok(damage)
}

/// A body that matches its checksum and yet is not made of records: damage, unless a newer version
/// wrote it. What does not match its digest is nobody's version.
pub(crate) fn flaw_in(
    segment: u64,
    offset: u64,
    flaw: Flaw,
    header: &BatchHeader,
    body: &[u8],
) -> Result<Damage> {
    let lost = (header.first_position, header.last_position());
    // Whoever did not compare the records' own checksums may have come upon a later one by mistake.
    let flaw = Records::new(header, body).checked().find_map(Result::err).unwrap_or(flaw);
    let damage = if *blake3::hash(body).as_bytes() != header.body_digest {
        Damage { tampered: true, ..Damage::new(segment, offset, DIGEST_DIFFERS) }
    } else if let Flaw::Unsupported(what) = flaw {
        let place = Place { segment, offset, position: Some(lost.0) };
        return Err(crate::error::Error::new(crate::error::ErrorKind::Unsupported, what).at(place));
    } else {
        Damage::new(segment, offset, flaw.describe())
    };
    Ok(damage.losing(lost.0, lost.1))
}

/// Where a sealed segment's batches end, as its successor says.
pub(crate) fn sealed_bound(successor: &SegmentHeader) -> Bound {
    let last = Position(successor.first_position.0 - 1);
    Bound { offset: successor.prev_end.min(MAX_SEGMENT_LEN), position: Some(last) }
}

/// The footer behind a sealed segment's batches: `None` where its successor says there is none.
pub(crate) fn read_footer(
    segment: &Segment,
    successor: &SegmentHeader,
) -> Result<Option<Result<Footer, Flaw>>> {
    if successor.prev_footer_len == 0 {
        return Ok(None);
    }
    let offset = successor.prev_end;
    if offset > MAX_SEGMENT_LEN {
        return Ok(Some(Err(Flaw::Limit("it should stand beyond the end of any segment"))));
    }
    let mut head = [0; FOOTER_HEADER_LEN];
    let read = segment.file.read_at(&mut head, offset)?;
    let (len, crc) = match Footer::decode_header(&head[..read], &segment.header.site(), offset) {
        Ok(found) => found,
        Err(flaw) => return Ok(Some(Err(flaw))),
    };
    if FOOTER_HEADER_LEN as u64 + u64::from(len) != u64::from(successor.prev_footer_len) {
        return Ok(Some(Err(Flaw::Garbage("its length is not what the next segment says"))));
    }
    let mut body = vec![0; len as usize];
    let read = segment.file.read_at(&mut body, offset + FOOTER_HEADER_LEN as u64)?;
    Ok(Some(Footer::decode_body(&body[..read], crc)))
}

/// The index of a sealed segment, of which the next one is given where it is known. Taken from its
/// footer or its file in the cache; otherwise made by scanning, going back as far as is needed to know
/// which streams were open.
pub(crate) fn of_sealed(
    disk: &dyn Disk,
    journal: &[u8; 16],
    number: u64,
    successor: Option<SegmentHeader>,
    writable: bool,
) -> Result<Footer> {
    let (mut missing, mut found) = (Vec::new(), None);
    let (mut next, mut successor) = (Some(number), successor);
    // From the first segment on that is not there, as the directory tells it: a number says nothing about
    // how many there are, as a hostile header can name any.
    let mut listed = None;
    while let Some(at) = next.filter(|at| *at > 0) {
        match Segment::open_of(disk, journal, at, Open::Read) {
            Ok(segment) => {
                if let Some(index) = stored(disk, &segment, successor.as_ref())? {
                    found = Some(index);
                    break;
                }
                next = Some(at - 1);
                let header = segment.header;
                missing.push((segment, successor.replace(header)));
            }
            Err(Unopened::Failed(error)) => return Err(error),
            Err(_) => {
                successor = None;
                let below = match &mut listed {
                    Some(below) => below,
                    None => listed.insert(segment::list(disk)?),
                };
                next = std::iter::from_fn(|| below.pop()).find(|number| *number < at);
            }
        }
    }
    let mut index = found.unwrap_or_default();
    while let Some((segment, successor)) = missing.pop() {
        let bound = match &successor {
            Some(successor) => sealed_bound(successor),
            None => Bound { offset: segment.len()?, position: None },
        };
        let bound = Bound { offset: bound.offset.min(segment.len()?), ..bound };
        let from;
        (index, from) = match of_beginning(disk, &segment, bound)? {
            Some(begun) => begun,
            None => (empty(&segment.header, index.open, index.term), Spot::start(&segment.header)),
        };
        let damage = scan(&mut index, &mut Scanner::new(segment.clone(), from, bound))?;
        if damage.is_empty() && writable {
            // Disposable: failing to keep it costs the next one a scan.
            let _ = store(disk, &segment, &index);
        }
    }
    Ok(index)
}

/// The file that a sealed segment's index stands in, and where, if that is its own. One in the cache is
/// not for being read in parts: it may change at any time, and has to be checked each time.
pub(crate) fn place_of(
    segment: &Segment,
    successor: Option<&SegmentHeader>,
) -> Result<Option<(String, u64)>> {
    let Some(successor) = successor else { return Ok(None) };
    if successor.prev_footer_len > 0 && matches!(read_footer(segment, successor)?, Some(Ok(_))) {
        return Ok(Some((segment::file_name(segment.number()), successor.prev_end)));
    }
    Ok(None)
}

fn sidecar_name(number: u64) -> String {
    format!("{SIDECARS}/{number:010}.idx")
}

fn stored(disk: &dyn Disk, segment: &Segment, successor: Option<&SegmentHeader>) -> Result<Option<Footer>> {
    let Some(successor) = successor else { return Ok(None) };
    if let Some(Ok(footer)) = read_footer(segment, successor)? {
        return Ok(Some(footer));
    }
    let fits = |index: &Footer| {
        index.chain == successor.chain && index.last_position.next() == Some(successor.first_position)
    };
    Ok(cached(disk, segment).filter(fits))
}

/// What the cache has of a segment, if it is of this one; up to where has to be seen.
fn cached(disk: &dyn Disk, segment: &Segment) -> Option<Footer> {
    let limit = (FOOTER_HEADER_LEN + MAX_FOOTER_LEN) as u64;
    let bytes = read_whole(disk, &sidecar_name(segment.number()), limit).ok()?;
    let (len, crc) = Footer::decode_header(&bytes, &segment.header.site(), 0).ok()?;
    // Behind it may be the end of a longer one.
    Footer::decode_body(bytes[FOOTER_HEADER_LEN..].get(..len as usize)?, crc).ok()
}

/// What the cache has of the beginning of a segment, and where that ends, which is not behind `bound`.
/// It was made of what was durable, and is believed where the last batch it names stands in its place
/// with the same chain hash: that is one over all before it.
pub(crate) fn of_beginning(
    disk: &dyn Disk,
    segment: &Segment,
    bound: Bound,
) -> Result<Option<(Footer, Spot)>> {
    let Some(index) = cached(disk, segment) else { return Ok(None) };
    let last = index.streams.values().filter_map(|entry| entry.batches.last()).map(|(at, _)| *at).max();
    let Some(last) = last.map(u64::from) else { return Ok(None) };
    let mut head = [0; BATCH_HEADER_LEN];
    let read = segment.file.read_at(&mut head, last)?;
    let Ok(header) = BatchHeader::decode(&head[..read], &segment.header.site(), last) else {
        return Ok(None);
    };
    let end = Spot {
        offset: last + header.frame_len(),
        position: header.last_position(),
        chain: Some(header.chain),
    };
    let fits = (index.first_position, index.last_position, index.chain)
        == (segment.header.first_position, end.position, header.chain);
    let within = end.offset <= bound.offset && bound.position.is_none_or(|last| end.position <= last);
    Ok((fits && within).then_some((index, end)))
}

/// Removes what the cache has of a segment.
pub(crate) fn forget(disk: &dyn Disk, number: u64) {
    // Disposable, and of no use to anybody: it may as well stay.
    let _ = disk.remove(&sidecar_name(number));
}

/// Keeps an index in the cache, over the one of before: it may be read while it is written, and whoever dies
/// in the midst of that leaves one that does not match its checksum. Only under the journal's lock.
pub(crate) fn store(disk: &dyn Disk, segment: &Segment, index: &Footer) -> Result<()> {
    let Some(bytes) = index.encode(&segment.header.site(), 0) else { return Ok(()) };
    let name = sidecar_name(segment.number());
    let file = match disk.open(&name, Open::WriteOrCreate) {
        Err(error) if error.is_missing() => {
            disk.create_dir("cache")?;
            disk.create_dir(SIDECARS)?;
            disk.open(&name, Open::WriteOrCreate)?
        }
        found => found?,
    };
    file.write_at(&bytes, 0)
}
