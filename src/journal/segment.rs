//! One segment file: naming, headers, and the one scanner that reads batches.

use crate::disk::{Disk, File, Kind, Open};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::format::{
    BATCH_HEADER_LEN, BatchHeader, Codec, Digest, FOOTER_HEADER_LEN, Flaw, Footer, HeaderBlock,
    MAX_SEGMENT_LEN, MAX_SEGMENT_NUMBER, SEGMENT_DATA_START, SegmentHeader, decode_body,
};
use crate::position::{Position, to_usize};
use std::sync::Arc;

/// The folder of segments, lock and mark.
pub(crate) const FOLDER: &str = "journal";

/// What is wrong with a body whose checksum is right and whose digest is not.
pub(super) const DIGEST_DIFFERS: &str = "the batch's body does not match its digest";

/// How much is read at once, first and at most.
const FIRST_PIECE_LEN: usize = 16 << 10;
const PIECE_LEN: usize = 256 << 10;

/// The name of a segment's file.
pub(crate) fn file_name(number: u64) -> String {
    format!("{FOLDER}/{number:010}.seg")
}

/// The number in a segment's file name, if it is exactly what [`file_name`] makes.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let number = digits.parse().ok().filter(|number| (1..=MAX_SEGMENT_NUMBER).contains(number))?;
    let padded = digits.len() == 10 || (digits.len() > 10 && !digits.starts_with('0'));
    (padded && digits.bytes().all(|digit| digit.is_ascii_digit())).then_some(number)
}

/// The numbers of all segments that have a file, ascending.
pub(crate) fn list(disk: &dyn Disk) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    disk.list(FOLDER, &mut |name, _| numbers.extend(number_of(name)))?;
    numbers.sort_unstable();
    Ok(numbers)
}

/// Bytes that are not what they should be, and what that costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: u64,
    /// Where in its file.
    pub offset: u64,
    /// The first position that cannot be read because of it; zero where no record is lost.
    pub from: Position,
    /// The last such position.
    pub to: Position,
    /// What is wrong, in words.
    pub reason: String,
    /// Checksums are right and yet the chain of hashes is not: somebody changed it on purpose.
    pub tampered: bool,
    /// It was given up on by `recover --accept-damage` before.
    pub accepted: bool,
    /// The position of the batch whose chain hash is wrong, where that is the damage.
    pub(crate) unchained: Option<Position>,
}

impl Damage {
    pub(crate) fn new(segment: u64, offset: u64, reason: impl Into<String>) -> Self {
        let (from, to) = (Position::ZERO, Position::ZERO);
        let (tampered, accepted, unchained) = (false, false, None);
        Self { segment, offset, from, to, reason: reason.into(), tampered, accepted, unchained }
    }

    pub(crate) fn losing(mut self, from: Position, to: Position) -> Self {
        if from <= to {
            (self.from, self.to) = (from, to);
        }
        self
    }

    /// The error that says so.
    pub fn to_error(&self) -> Error {
        let verb = if self.tampered { "trusted" } else { "read" };
        let lost = match (self.from, self.to) {
            (Position::ZERO, _) => "no record is lost by it".to_owned(),
            (from, to) if from == to => format!("record {from} cannot be {verb}"),
            (from, to) => format!("records {from} to {to} cannot be {verb}"),
        };
        let position = Some(self.from).filter(|p| *p != Position::ZERO);
        let place = Place { segment: self.segment, offset: self.offset, position };
        Error::corrupt(format!("{}; {lost}", self.reason), place)
    }
}

/// An open segment whose header was found valid.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn File>,
    pub(crate) header: SegmentHeader,
    /// Set where one of the two header copies is damaged.
    pub(crate) damaged_copy: Option<u64>,
}

/// Why a segment cannot be opened.
#[derive(Debug)]
pub(crate) enum Unopened {
    /// There is no such file.
    Missing,
    /// There is one, and it is not a readable segment of this number.
    Damaged(Damage),
    /// It is of a newer format, or the operating system refused.
    Failed(Error),
}

impl Unopened {
    /// What is wrong, in words, as a damage of its own; the error where it is none.
    pub(crate) fn into_damage(self, number: u64) -> Result<Damage> {
        match self {
            Self::Missing => Ok(Damage::new(number, 0, format!("segment {number} is missing"))),
            Self::Damaged(damage) => Ok(damage),
            Self::Failed(error) => Err(error),
        }
    }

    pub(crate) fn into_error(self, number: u64) -> Error {
        self.into_damage(number).map_or_else(|error| error, |damage| damage.to_error())
    }
}

/// Why what stands at a segment's name could not be opened.
fn unopened(disk: &dyn Disk, number: u64, name: &str, error: Error) -> Unopened {
    match disk.stat(name) {
        Ok(Some(stat)) if stat.kind != Kind::File => {
            let reason = format!("{name} is {}, not a regular file", stat.kind.describe());
            Unopened::Damaged(Damage::new(number, 0, reason))
        }
        _ => Unopened::Failed(error),
    }
}

impl Segment {
    pub(crate) fn open(disk: &dyn Disk, number: u64, how: Open) -> Result<Self, Unopened> {
        let name = file_name(number);
        let file = match disk.open(&name, how) {
            Ok(file) => file,
            Err(error) if error.is_missing() => return Err(Unopened::Missing),
            Err(error) => return Err(unopened(disk, number, &name, error)),
        };
        let mut block = vec![0; to_usize(SEGMENT_DATA_START)];
        let read = file.read_at(&mut block, 0).map_err(Unopened::Failed)?;
        let block = HeaderBlock::decode(&block[..read]).map_err(|flaw| match flaw {
            Flaw::Unsupported(what) => Unopened::Failed(
                Error::new(ErrorKind::Unsupported, what)
                    .at(Place { segment: number, offset: 0, position: None })
                    .hint("Use the version of runwal that wrote it, or a newer one; nothing is damaged."),
            ),
            Flaw::Absent => {
                Unopened::Damaged(Damage::new(number, 0, "the segment is empty where its header should be"))
            }
            Flaw::Garbage(what) | Flaw::Limit(what) => Unopened::Damaged(Damage::new(number, 0, what)),
        })?;
        let header = block.header;
        if header.segment != number {
            let reason = format!("{name} contains segment {}", header.segment);
            return Err(Unopened::Damaged(Damage::new(number, 0, reason)));
        }
        Ok(Self { file, header, damaged_copy: block.damaged_copy })
    }

    /// The same, but a segment of another journal does not count as this one's.
    pub(crate) fn open_of(
        disk: &dyn Disk,
        journal: &[u8; 16],
        number: u64,
        how: Open,
    ) -> Result<Self, Unopened> {
        let segment = Self::open(disk, number, how)?;
        if segment.header.journal != *journal {
            return Err(Unopened::Damaged(Damage::new(number, 0, "the segment belongs to another journal")));
        }
        Ok(segment)
    }

    pub(crate) fn number(&self) -> u64 {
        self.header.segment
    }

    /// Bytes of the file that are looked at.
    pub(crate) fn len(&self) -> Result<u64> {
        Ok(self.file.stat()?.len.min(MAX_SEGMENT_LEN))
    }

    fn unsupported(&self, what: &'static str, offset: u64, position: Option<Position>) -> Error {
        Error::new(ErrorKind::Unsupported, what).at(Place { segment: self.number(), offset, position })
    }

    /// Reads the batch at `offset`: its header, and its body as stored into `body`. What does not match its
    /// checksum is damage, and what this version does not know an error.
    pub(crate) fn read_batch(&self, offset: u64, body: &mut Vec<u8>) -> Result<Result<BatchHeader, Damage>> {
        let mut head = [0; BATCH_HEADER_LEN];
        let read = self.file.read_at(&mut head, offset)?;
        let header = match BatchHeader::decode(&head[..read], &self.header.site(), offset) {
            Ok(header) => header,
            Err(Flaw::Unsupported(what)) => {
                return Err(self.unsupported(what, offset, None));
            }
            Err(flaw) => return Ok(Err(Damage::new(self.number(), offset, flaw.describe()))),
        };
        body.resize(header.body_len as usize, 0);
        let read = self.file.read_at(body, offset + BATCH_HEADER_LEN as u64)?;
        if read < body.len() || crc32fast::hash(body) != header.body_crc {
            let damage = Damage::new(self.number(), offset, "the batch's body does not match its checksum");
            return Ok(Err(damage.losing(header.first_position, header.last_position())));
        }
        Ok(Ok(header))
    }
}

/// Up to where a scan goes, and which position is known to stand last before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) offset: u64,
    pub(crate) position: Option<Position>,
}

/// The place between two batches: what was read up to here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Where the next batch stands.
    pub(crate) offset: u64,
    /// The last position before it.
    pub(crate) position: Position,
    /// The chain hash there; unknown behind damage.
    pub(crate) chain: Option<Digest>,
}

impl Spot {
    /// Before the first batch of a segment.
    pub(crate) fn start(header: &SegmentHeader) -> Self {
        let position = Position(header.first_position.0 - 1);
        Self { offset: SEGMENT_DATA_START, position, chain: Some(header.chain) }
    }
}

/// One step of a scan.
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// A batch whose header and body checksums are right.
    Batch { offset: u64, header: BatchHeader, body: &'a [u8] },
    /// Something else; the next step goes on behind it.
    Damage(Damage),
}

/// Walks the batches of one segment. Every reader of batches goes through here: reading, catching
/// up, recovery, verification.
#[derive(Debug)]
pub(crate) struct Scanner {
    segment: Segment,
    bound: Bound,
    spot: Spot,
    digests: bool,
    buffer: Vec<u8>,
    buffer_start: u64,
    /// The body of the last batch, where it had to be decoded, and else nothing of use.
    decoded: Vec<u8>,
    /// How much is read at once: little at first, as many look at one batch only.
    piece_len: usize,
    held: Option<(u64, BatchHeader)>,
    proven: Position,
}

impl Scanner {
    pub(crate) fn new(segment: Segment, from: Spot, bound: Bound) -> Self {
        Self {
            segment,
            bound,
            spot: from,
            digests: false,
            buffer: Vec::new(),
            buffer_start: 0,
            decoded: Vec::new(),
            piece_len: FIRST_PIECE_LEN,
            held: None,
            proven: Position::ZERO,
        }
    }

    /// Also compares each body with its digest.
    #[must_use]
    pub(crate) fn with_digests(mut self) -> Self {
        self.digests = true;
        self
    }

    pub(crate) fn number(&self) -> u64 {
        self.segment.number()
    }

    pub(crate) fn spot(&self) -> Spot {
        self.spot
    }

    pub(crate) fn salt(&self) -> u64 {
        self.segment.header.salt
    }

    pub(crate) fn prev_salt(&self) -> u64 {
        self.segment.header.prev_salt
    }

    /// Whether the bound is reached with nothing left to say.
    pub(crate) fn at_end(&self) -> bool {
        self.held.is_none()
            && self.spot.offset >= self.bound.offset
            && self.bound.position.is_none_or(|last| last <= self.spot.position)
    }

    /// The highest `durable_upto` of any valid batch header met, behind damage too.
    pub(crate) fn proven(&self) -> Position {
        self.proven
    }

    /// Where nothing says how far the segment goes, because the next one cannot be read: it ends at
    /// its footer, or with nothing but zeros.
    pub(crate) fn end_by_itself(&mut self) -> Result<()> {
        if self.held.is_some() || self.bound.position.is_some() || self.spot.offset >= self.bound.offset {
            return Ok(());
        }
        self.fill(self.spot.offset, FOOTER_HEADER_LEN)?;
        let head = self.slice(self.spot.offset, FOOTER_HEADER_LEN);
        let footer = Footer::decode_header(head, &self.segment.header.site(), self.spot.offset);
        if let Err(Flaw::Unsupported(what)) = footer {
            return Err(self.unsupported(what, self.spot.offset));
        }
        if footer.is_ok() || (footer == Err(Flaw::Absent) && self.only_zeros()?) {
            self.spot.offset = self.bound.offset;
        }
        Ok(())
    }

    /// Whether nothing but zeros stands from here to the bound.
    pub(crate) fn only_zeros(&mut self) -> Result<bool> {
        let mut at = self.spot.offset;
        // Most often a batch stands here, and no more than its beginning is looked at.
        let mut len = BATCH_HEADER_LEN;
        while at < self.bound.offset {
            self.fill(at, len)?;
            let piece = self.slice(at, len);
            if piece.is_empty() {
                break;
            }
            // A sum is made faster than byte by byte is compared.
            if piece.iter().fold(0, |sum, byte| sum | byte) != 0 {
                return Ok(false);
            }
            at += piece.len() as u64;
            len = PIECE_LEN;
        }
        Ok(true)
    }

    fn unsupported(&self, what: &'static str, offset: u64) -> Error {
        self.segment.unsupported(what, offset, self.spot.position.next())
    }

    /// Moves the bound on, as the durable end does.
    pub(crate) fn extend(&mut self, bound: Bound) {
        self.bound = bound;
    }

    /// Gives the buffer back: there may be many who wait at the end for long.
    pub(crate) fn rest(&mut self) {
        (self.buffer, self.buffer_start, self.decoded) = (Vec::new(), 0, Vec::new());
    }

    /// Makes `len` bytes from `offset` stand in the buffer, fewer at the bound.
    fn fill(&mut self, offset: u64, len: usize) -> Result<()> {
        let len = len.min(usize::try_from(self.bound.offset.saturating_sub(offset)).unwrap_or(len));
        let have_from = self.buffer_start;
        let have_to = have_from + self.buffer.len() as u64;
        if offset >= have_from && offset + len as u64 <= have_to {
            return Ok(());
        }
        let room = usize::try_from(self.bound.offset.saturating_sub(offset)).unwrap_or(PIECE_LEN);
        let want = len.max(self.piece_len.min(room));
        self.piece_len = (4 * self.piece_len).min(PIECE_LEN);
        // What is durable does not change: the beginning of a batch that was cut off is kept.
        let mut kept = 0;
        if offset >= have_from && offset < have_to {
            let from = usize::try_from(offset - have_from).unwrap_or(0);
            self.buffer.copy_within(from.., 0);
            kept = (self.buffer.len() - from).min(want);
        }
        self.buffer.resize(want, 0);
        let read = self.segment.file.read_at(&mut self.buffer[kept..], offset + kept as u64)?;
        self.buffer.truncate(kept + read);
        self.buffer_start = offset;
        Ok(())
    }

    /// The buffered bytes from `offset`, at most `len`.
    fn slice(&self, offset: u64, len: usize) -> &[u8] {
        let from = usize::try_from(offset - self.buffer_start).unwrap_or(usize::MAX).min(self.buffer.len());
        &self.buffer[from..(from + len).min(self.buffer.len())]
    }

    /// What stands at `offset`: the header of a batch that fits before the bound.
    fn header_at(&mut self, offset: u64) -> Result<Result<BatchHeader, Flaw>> {
        self.fill(offset, BATCH_HEADER_LEN)?;
        let site = self.segment.header.site();
        let header = BatchHeader::decode(self.slice(offset, BATCH_HEADER_LEN), &site, offset);
        if let Ok(header) = &header {
            self.proven = self.proven.max(header.durable_upto);
        }
        Ok(header)
    }

    /// The next step; `None` at the end.
    pub(crate) fn step(&mut self) -> Result<Option<Step<'_>>> {
        if let Some((offset, header)) = self.held.take() {
            return self.batch(offset, header).map(Some);
        }
        if self.spot.offset >= self.bound.offset {
            return Ok(self.missing_end().map(Step::Damage));
        }
        let offset = self.spot.offset;
        match self.header_at(offset)? {
            Ok(header) if Some(header.first_position) == self.spot.position.next() => {
                if let Some(prev) = self.spot.chain
                    && header.expected_chain(&prev) != header.chain
                {
                    let first = header.first_position;
                    self.held = Some((offset, header));
                    self.spot.chain = Some(header.chain);
                    let mut damage = self.damage(offset, "the chain of hashes is broken before this batch");
                    (damage.tampered, damage.unchained) = (true, Some(first));
                    return Ok(Some(Step::Damage(damage)));
                }
                self.batch(offset, header).map(Some)
            }
            Ok(_) => self.resync(offset, "a batch of another position stands here").map(Some),
            Err(Flaw::Unsupported(what)) => Err(self.unsupported(what, offset)),
            Err(flaw) => self.resync(offset, flaw.describe()).map(Some),
        }
    }

    fn batch(&mut self, offset: u64, header: BatchHeader) -> Result<Step<'_>> {
        let len = usize::try_from(header.frame_len()).unwrap_or(usize::MAX);
        self.fill(offset, len)?;
        self.spot =
            Spot { offset: offset + len as u64, position: header.last_position(), chain: Some(header.chain) };
        let lost = (header.first_position, header.last_position());
        let frame = self.slice(offset, len);
        let reason = if frame.len() < len {
            "the file ends within a batch"
        } else if crc32fast::hash(&frame[BATCH_HEADER_LEN..]) != header.body_crc {
            "the batch's body does not match its checksum"
        } else {
            self.decode(&header);
            if self.digests && *blake3::hash(self.body(&header)).as_bytes() != header.body_digest {
                let mut damage = self.damage(offset, DIGEST_DIFFERS);
                damage.tampered = true;
                return Ok(Step::Damage(damage.losing(lost.0, lost.1)));
            }
            return Ok(Step::Batch { offset, header, body: self.body(&header) });
        };
        Ok(Step::Damage(self.damage(offset, reason).losing(lost.0, lost.1)))
    }

    fn decode(&mut self, header: &BatchHeader) {
        if header.codec == Codec::None {
            return;
        }
        let mut decoded = std::mem::take(&mut self.decoded);
        let len = decode_body(header, self.stored(header), &mut decoded).len();
        decoded.truncate(len);
        self.decoded = decoded;
    }

    /// The body of the batch that the last step gave, as stored.
    fn stored(&self, header: &BatchHeader) -> &[u8] {
        let len = header.body_len as usize;
        self.slice(self.spot.offset.saturating_sub(len as u64), len)
    }

    /// The body of the batch that the last step gave.
    pub(crate) fn body(&self, header: &BatchHeader) -> &[u8] {
        if header.codec == Codec::None { self.stored(header) } else { &self.decoded }
    }

    fn damage(&self, offset: u64, reason: &str) -> Damage {
        Damage::new(self.segment.number(), offset, reason)
    }

    /// Searches for the next valid header behind `offset` and says what lies between.
    fn resync(&mut self, offset: u64, reason: &str) -> Result<Step<'_>> {
        let site = self.segment.header.site();
        let start = self.spot.position;
        let mut at = offset + 1;
        while at + (BATCH_HEADER_LEN as u64) <= self.bound.offset {
            self.fill(at, PIECE_LEN)?;
            let piece = self.slice(at, PIECE_LEN);
            if piece.len() < BATCH_HEADER_LEN {
                break;
            }
            let Some(found) = BatchHeader::find(piece, &site, at) else {
                at += (piece.len() - BATCH_HEADER_LEN + 1) as u64;
                continue;
            };
            at += found as u64;
            match self.header_at(at)? {
                Ok(header) if header.first_position > start => {
                    let lost_to = Position(header.first_position.0 - 1);
                    self.spot = Spot { offset: at, position: lost_to, chain: None };
                    let damage = self.damage(offset, reason);
                    return Ok(Step::Damage(damage.losing(Position(start.0 + 1), lost_to)));
                }
                Err(Flaw::Unsupported(what)) => return Err(self.unsupported(what, at)),
                _ => at += 1,
            }
        }
        self.spot = Spot { offset: self.bound.offset, position: start, chain: None };
        let mut damage = self.damage(offset, reason);
        if let Some(last) = self.bound.position {
            damage = damage.losing(Position(start.0 + 1), last);
            self.spot.position = last.max(start);
        }
        Ok(Step::Damage(damage))
    }

    /// At the bound: whether records that must stand before it were not there.
    fn missing_end(&mut self) -> Option<Damage> {
        let last = self.bound.position.filter(|last| *last > self.spot.position)?;
        let damage = self.damage(self.spot.offset, "batches that were written before this place are missing");
        let from = Position(self.spot.position.0 + 1);
        self.spot.position = last;
        self.spot.chain = None;
        Some(damage.losing(from, last))
    }
}
