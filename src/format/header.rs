//! The segment header: two copies of 512 bytes at the start of each segment file.

use super::bytes::Take;
use super::{
    Digest, FOOTER_HEADER_LEN, Flaw, MAX_CAPACITY, MAX_FOOTER_LEN, MAX_SEGMENT_LEN, MAX_SEGMENT_NUMBER, Site,
    VERSION,
};
use crate::position::{Position, Time};

/// Bytes of one copy of the header.
pub const HEADER_COPY_LEN: usize = 512;
/// Where the first batch stands.
pub const SEGMENT_DATA_START: u64 = 1024;

const MAGIC: [u8; 8] = *b"RUNWAL\r\n";
const CRC_OFFSET: usize = HEADER_COPY_LEN - 4;

/// What a segment says of itself and of its predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The journal's random id.
    pub journal: [u8; 16],
    /// The segment's number, from 1.
    pub segment: u64,
    /// How many times the journal was recovered before: a roll keeps it, a recovery adds one.
    pub epoch: u64,
    /// Random, new for each segment.
    pub salt: u64,
    /// The predecessor's salt; zero in segment 1.
    pub prev_salt: u64,
    /// The position of the first record in this segment.
    pub first_position: Position,
    /// Where the predecessor's last valid batch ends; zero in segment 1.
    pub prev_end: u64,
    /// Bytes of the footer that stands there, with its header; zero for none.
    pub prev_footer_len: u32,
    /// The chain hash before the first batch; zeros in segment 1.
    pub chain: Digest,
    /// The position up to which records were durable when the segment got its name, the batches
    /// copied into it included.
    pub born_upto: Position,
    /// The bytes this segment is meant to grow to.
    pub capacity: u64,
    /// When it was made.
    pub created: Time,
    /// The first and last position given up as damaged before this segment; zeros for none.
    pub lost: (Position, Position),
}

impl SegmentHeader {
    /// The place its batches stand in.
    pub fn site(&self) -> Site {
        Site { journal: self.journal, segment: self.segment, salt: self.salt }
    }

    /// The epoch of a segment that recovery makes behind this one.
    pub(crate) fn next_epoch(&self) -> u64 {
        (self.epoch + 1).min(MAX_SEGMENT_NUMBER)
    }

    /// Both copies, as they stand at the start of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(HEADER_COPY_LEN);
        copy.extend_from_slice(&MAGIC);
        copy.extend_from_slice(&VERSION.to_le_bytes());
        copy.extend_from_slice(&[0; 6]); // incompatible and compatible flags
        copy.extend_from_slice(&self.journal);
        for number in [
            self.segment,
            self.epoch,
            self.salt,
            self.prev_salt,
            self.first_position.0,
            self.prev_end,
            u64::from(self.prev_footer_len),
        ] {
            copy.extend_from_slice(&number.to_le_bytes());
        }
        copy.extend_from_slice(&self.chain);
        copy.extend_from_slice(&self.born_upto.0.to_le_bytes());
        copy.extend_from_slice(&self.capacity.to_le_bytes());
        copy.extend_from_slice(&self.created.0.to_le_bytes());
        copy.extend_from_slice(&self.lost.0.0.to_le_bytes());
        copy.extend_from_slice(&self.lost.1.0.to_le_bytes());
        copy.resize(CRC_OFFSET, 0);
        copy.extend_from_slice(&crc32fast::hash(&copy).to_le_bytes());
        copy.extend_from_within(..);
        copy
    }

    /// One copy.
    fn decode(copy: &[u8]) -> Result<Self, Flaw> {
        let Some(copy) = copy.get(..HEADER_COPY_LEN) else { return Err(Flaw::Absent) };
        if copy.iter().all(|b| *b == 0) {
            return Err(Flaw::Absent);
        }
        let (content, crc) = copy.split_at(CRC_OFFSET);
        if crc != crc32fast::hash(content).to_le_bytes() {
            return Err(Flaw::Garbage("the segment header's checksum does not match"));
        }
        let mut take = Take(content);
        Self::fields(&mut take).unwrap_or(Err(Flaw::Garbage("the segment header is too short")))
    }

    fn fields(take: &mut Take<'_>) -> Option<Result<Self, Flaw>> {
        if take.array()? != MAGIC {
            return Some(Err(Flaw::Garbage("the segment header's magic is wrong")));
        }
        if take.u16()? != VERSION {
            return Some(Err(Flaw::Unsupported("the segment was written by a newer format version")));
        }
        if take.u16()? != 0 {
            return Some(Err(Flaw::Unsupported("the segment uses a feature this version does not know")));
        }
        let _compatible = take.u32()?;
        let header = Self {
            journal: take.array()?,
            segment: take.u64()?,
            epoch: take.u64()?,
            salt: take.u64()?,
            prev_salt: take.u64()?,
            first_position: Position(take.u64()?),
            prev_end: take.u64()?,
            prev_footer_len: u32::try_from(take.u64()?).unwrap_or(u32::MAX),
            chain: take.array()?,
            born_upto: Position(take.u64()?),
            capacity: take.u64()?,
            created: Time(take.i64()?),
            lost: (Position(take.u64()?), Position(take.u64()?)),
        };
        if header.segment == 0
            || header.segment.max(header.epoch) > MAX_SEGMENT_NUMBER
            || header.first_position.0 == 0
            || header.capacity > MAX_CAPACITY
            || header.prev_end > MAX_SEGMENT_LEN
            || header.prev_footer_len as usize > FOOTER_HEADER_LEN + MAX_FOOTER_LEN
        {
            return Some(Err(Flaw::Limit("a number in the segment header is outside its limits")));
        }
        Some(Ok(header))
    }
}

/// The first [`SEGMENT_DATA_START`] bytes of a segment, looked at.
#[derive(Debug, Clone, Copy)]
pub struct HeaderBlock {
    /// The header, from whichever copy is valid.
    pub header: SegmentHeader,
    /// The offset of a copy that is damaged although the other is not.
    pub damaged_copy: Option<u64>,
}

impl HeaderBlock {
    /// Looks at both copies. An unsupported version in either wins over damage in the other.
    pub fn decode(block: &[u8]) -> Result<Self, Flaw> {
        let first = SegmentHeader::decode(block);
        let second = SegmentHeader::decode(block.get(HEADER_COPY_LEN..).unwrap_or_default());
        match (first, second) {
            (Ok(header), Ok(other)) if header == other => Ok(Self { header, damaged_copy: None }),
            (Ok(_), Ok(_)) => Err(Flaw::Garbage("the two copies of the segment header disagree")),
            (Err(flaw @ Flaw::Unsupported(_)), _) | (_, Err(flaw @ Flaw::Unsupported(_))) => Err(flaw),
            (Ok(header), Err(_)) => Ok(Self { header, damaged_copy: Some(HEADER_COPY_LEN as u64) }),
            (Err(_), Ok(header)) => Ok(Self { header, damaged_copy: Some(0) }),
            (Err(Flaw::Absent), Err(flaw)) | (Err(flaw), Err(_)) => Err(flaw),
        }
    }
}
