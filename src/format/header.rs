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

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            journal: *b"0123456789abcdef",
            segment: 0x20,
            epoch: 0x28,
            salt: 0x30,
            prev_salt: 0x38,
            first_position: Position(0x40),
            prev_end: 0x48,
            prev_footer_len: 0x50,
            chain: [0x58; 32],
            born_upto: Position(0x78),
            capacity: 0x80,
            created: Time(-0x88),
            lost: (Position(0x90), Position(0x98)),
        }
    }

    /// One copy of the header above, as the table of the format has it.
    fn copy() -> Vec<u8> {
        let mut copy = b"RUNWAL\r\n\x01\0\0\0\0\0\0\0".to_vec();
        copy.extend(b"0123456789abcdef");
        copy.extend([0x20_u64, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50].map(u64::to_le_bytes).concat());
        copy.extend([0x58; 32]);
        copy.extend([0x78_u64, 0x80, (-0x88_i64).cast_unsigned(), 0x90, 0x98].map(u64::to_le_bytes).concat());
        copy.resize(512, 0);
        sealed(copy, 0, &[])
    }

    /// With other bytes at a place, and the checksum made for them.
    fn sealed(mut copy: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = crc32fast::hash(&copy[..508]);
        copy[508..].copy_from_slice(&crc.to_le_bytes());
        copy
    }

    /// What is found in a block of two such copies.
    fn both(at: usize, bytes: &[u8]) -> Result<SegmentHeader, Flaw> {
        let copy = sealed(copy(), at, bytes);
        let found = HeaderBlock::decode(&[copy.clone(), copy].concat())?;
        assert_eq!(found.damaged_copy, None);
        Ok(found.header)
    }

    #[test]
    fn each_field_stands_where_the_format_has_it() {
        assert_eq!(header().encode(), [copy(), copy()].concat());
        assert_eq!(both(0, &[]), Ok(header()));
        let site = Site { journal: *b"0123456789abcdef", segment: 0x20, salt: 0x30 };
        assert_eq!(header().site(), site);
    }

    #[test]
    fn each_number_is_held_to_its_limit() {
        for (at, most) in [
            (32, (1_u64 << 63) - 1),
            (40, (1 << 63) - 1),
            (64, u64::MAX),
            (72, 256 << 20),
            (80, (16 << 20) + 24),
            (128, 64 << 20),
        ] {
            assert!(both(at, &most.to_le_bytes()).is_ok(), "{most} at {at}");
            let beyond = [most.wrapping_add(1), most | 1 << 62 | 1 << 63].into_iter().filter(|n| *n != most);
            for number in beyond {
                let found = both(at, &number.to_le_bytes());
                assert!(matches!(found, Err(Flaw::Limit(_))), "{number} at {at}: {found:?}");
            }
        }
        for at in [32, 64] {
            assert!(both(at, &1_u64.to_le_bytes()).is_ok());
            assert!(matches!(both(at, &0_u64.to_le_bytes()), Err(Flaw::Limit(_))), "none at {at}");
        }
        for at in [40, 72, 80, 128] {
            assert!(both(at, &0_u64.to_le_bytes()).is_ok(), "none at {at}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        for (at, value) in [(8, 0), (8, 2), (9, 1), (10, 1), (11, 0x80)] {
            assert!(matches!(both(at, &[value]), Err(Flaw::Unsupported(_))), "{value} at {at}");
            // Also where the other copy is whole, and where it is gone.
            let newer = sealed(copy(), at, &[value]);
            for other in [copy(), vec![0; 512], vec![0xff; 512]] {
                for block in [[newer.clone(), other.clone()], [other.clone(), newer.clone()]] {
                    let found = HeaderBlock::decode(&block.concat());
                    assert!(matches!(found, Err(Flaw::Unsupported(_))), "{found:?}");
                }
            }
        }
        assert_eq!(both(12, &[0xff; 4]), Ok(header()), "compatible flags are ignored");
        assert!(matches!(both(0, b"r"), Err(Flaw::Garbage(_))), "another magic");
    }

    #[test]
    fn one_copy_is_enough() {
        for bad in [vec![0; 512], vec![0xff; 512], [copy()[..511].to_vec(), vec![copy()[511] ^ 1]].concat()] {
            let first = HeaderBlock::decode(&[bad.clone(), copy()].concat()).unwrap();
            let second = HeaderBlock::decode(&[copy(), bad.clone()].concat()).unwrap();
            assert_eq!((first.header, first.damaged_copy), (header(), Some(0)));
            assert_eq!((second.header, second.damaged_copy), (header(), Some(512)));
            assert!(HeaderBlock::decode(&[bad.clone(), bad].concat()).is_err());
        }
        let cut = HeaderBlock::decode(&copy()).unwrap();
        assert_eq!((cut.header, cut.damaged_copy), (header(), Some(512)));
        let other = sealed(copy(), 48, &[0x31]);
        assert!(
            matches!(HeaderBlock::decode(&[copy(), other].concat()), Err(Flaw::Garbage(_))),
            "two truths"
        );
    }

    #[test]
    fn zeros_and_nothing_are_no_damaged_header() {
        for len in [0, 511, 512, 600, 1024] {
            assert!(matches!(HeaderBlock::decode(&vec![0; len]), Err(Flaw::Absent)), "{len}");
        }
        assert!(matches!(HeaderBlock::decode(&[0xff; 1024]), Err(Flaw::Garbage(_))));
    }

    #[test]
    fn a_recovery_adds_one_to_the_epoch_up_to_the_last() {
        let after = |epoch| SegmentHeader { epoch, ..header() }.next_epoch();
        assert_eq!((after(0), after(5)), (1, 6));
        assert_eq!(
            (after(MAX_SEGMENT_NUMBER - 1), after(MAX_SEGMENT_NUMBER)),
            (MAX_SEGMENT_NUMBER, MAX_SEGMENT_NUMBER)
        );
    }
}
