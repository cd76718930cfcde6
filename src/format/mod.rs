#![doc = include_str!("FORMAT.md")]

mod batch;
mod bytes;
mod codec;
mod footer;
mod header;
mod mark;
mod record;

pub use batch::{BATCH_HEADER_LEN, BatchHeader, Durability, chain};
pub use codec::{Codec, compress, decode as decode_body};
pub(crate) use footer::PAIR_LEN;
pub use footer::{FOOTER_HEADER_LEN, Footer, OpenStream, StreamEntry, name_hash};
pub use header::{HEADER_COPY_LEN, HeaderBlock, SEGMENT_DATA_START, SegmentHeader};
pub use mark::{BUSY_OFFSET, Busy, MARK_LEN, MARK_SLOT_OFFSETS, Mark, Phase};
pub(crate) use record::without_checksums;
pub use record::{Draft, Records, Target, WireRecord, encode_body};

/// The format version this crate writes, and the highest it reads.
pub const VERSION: u16 = 1;

/// The longest payload of one record; longer content spans records.
pub const MAX_PAYLOAD_LEN: usize = 1 << 20;
/// The longest body of one batch, stored and decoded.
pub const MAX_BODY_LEN: usize = 8 << 20;
/// The most records in one batch.
pub const MAX_BATCH_RECORDS: u32 = 1 << 16;
/// The longest name of a stream.
pub const MAX_NAME_LEN: usize = 512;
/// The longest idempotency key.
pub const MAX_KEY_LEN: usize = 256;
/// The longest body of a footer; a segment whose index would be longer is sealed without one.
pub const MAX_FOOTER_LEN: usize = 16 << 20;
/// The longest segment file that is looked at.
pub const MAX_SEGMENT_LEN: u64 = 256 << 20;
/// The capacity of a journal's first segment.
pub const FIRST_CAPACITY: u64 = 256 << 10;
/// The capacity that segments grow to.
pub const MAX_CAPACITY: u64 = 64 << 20;

/// The highest number of a segment, and the most recoveries: far out of reach, and whatever is read
/// can be counted on from.
pub(crate) const MAX_SEGMENT_NUMBER: u64 = i64::MAX.cast_unsigned();

/// A 256-bit BLAKE3 digest.
pub type Digest = [u8; 32];

/// Why bytes are not what they should be at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing but zeros, or the end of the file: nothing was written here.
    Absent,
    /// Neither magic nor checksum fit.
    Garbage(&'static str),
    /// A length or number breaks its limit although its checksum is right.
    Limit(&'static str),
    /// Written by a version or with a feature that this one does not know.
    Unsupported(&'static str),
}

impl Flaw {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Absent => "nothing is written here",
            Self::Garbage(what) | Self::Limit(what) | Self::Unsupported(what) => what,
        }
    }
}

/// Where a checksummed header stands: mixed into its checksum, so that the same bytes at another
/// place, in another segment or in another journal are not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// The journal's random id.
    pub journal: [u8; 16],
    /// The segment's number.
    pub segment: u64,
    /// The segment's random salt.
    pub salt: u64,
}

impl Site {
    /// CRC-32 of journal id, segment, salt, offset and then `bytes`.
    fn checksum(&self, offset: u64, bytes: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.journal);
        crc.update(&self.segment.to_le_bytes());
        crc.update(&self.salt.to_le_bytes());
        crc.update(&offset.to_le_bytes());
        crc.update(bytes);
        crc.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In bytes, as the text has them in mebibytes.
    #[test]
    fn limits_are_those_of_the_text() {
        assert_eq!((MAX_PAYLOAD_LEN, MAX_BODY_LEN, MAX_FOOTER_LEN), (1_048_576, 8_388_608, 16_777_216));
        assert_eq!((MAX_BATCH_RECORDS, MAX_NAME_LEN, MAX_KEY_LEN), (65_536, 512, 256));
        assert_eq!((MAX_SEGMENT_LEN, MAX_CAPACITY, FIRST_CAPACITY), (268_435_456, 67_108_864, 262_144));
        assert_eq!(MAX_SEGMENT_NUMBER, 9_223_372_036_854_775_807);
    }

    #[test]
    fn a_flaw_is_described_by_its_own_words() {
        for flaw in [Flaw::Garbage("what"), Flaw::Limit("what"), Flaw::Unsupported("what")] {
            assert_eq!(flaw.describe(), "what");
        }
        assert_eq!(Flaw::Absent.describe(), "nothing is written here");
    }

    #[test]
    fn a_checksum_is_over_the_place_and_then_the_bytes() {
        let site = Site { journal: *b"0123456789abcdef", segment: 0x0102, salt: 0x0304 };
        let all = b"0123456789abcdef\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0\x06\x05\0\0\0\0\0\0bytes";
        assert_eq!(site.checksum(0x0506, b"bytes"), crc32fast::hash(all));
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926, "the check value of the text");
    }
}
