//! The batch header: 116 bytes before each batch's body.

use super::bytes::Take;
use super::{Codec, Digest, Flaw, MAX_BATCH_RECORDS, MAX_BODY_LEN, Site};
use crate::position::{Position, Time};

/// Bytes of a batch header.
pub const BATCH_HEADER_LEN: usize = 116;

const MAGIC: [u8; 4] = *b"RWB1";
const CRC_OFFSET: usize = BATCH_HEADER_LEN - 4;

/// What the writer of a batch asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Answered only when it was durable.
    #[default]
    Durable,
    /// Answered before, with a named time by which it would be.
    Buffered,
}

/// The header of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// How the body is stored.
    pub codec: Codec,
    /// What its writer asked for.
    pub durability: Durability,
    /// Bytes of the body as stored.
    pub body_len: u32,
    /// Bytes of the body decoded.
    pub decoded_len: u32,
    /// Records in the body.
    pub count: u32,
    /// CRC-32 of the body as stored.
    pub body_crc: u32,
    /// The position of the first record.
    pub first_position: Position,
    /// When the batch was made: the base of its records' times.
    pub time: Time,
    /// The position proven durable before the group this batch was written in.
    pub durable_upto: Position,
    /// BLAKE3 of the body decoded.
    pub body_digest: Digest,
    /// The chain hash after this batch.
    pub chain: Digest,
}

impl BatchHeader {
    /// The position of the last record.
    pub fn last_position(&self) -> Position {
        Position(self.first_position.0 + u64::from(self.count) - 1)
    }

    /// Bytes of header and body as stored.
    pub fn frame_len(&self) -> u64 {
        BATCH_HEADER_LEN as u64 + u64::from(self.body_len)
    }

    /// The chain hash this batch must have after one that ended in `prev`.
    pub fn expected_chain(&self, prev: &Digest) -> Digest {
        chain(prev, self.first_position, self.count, self.time, &self.body_digest)
    }

    /// Its bytes for the place where it will stand.
    pub fn encode(&self, site: &Site, offset: u64) -> [u8; BATCH_HEADER_LEN] {
        let mut out = Vec::with_capacity(BATCH_HEADER_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[
            self.codec.number(),
            u8::from(self.durability == Durability::Buffered),
            0,
            0,
        ]);
        out.extend_from_slice(&self.body_len.to_le_bytes());
        out.extend_from_slice(&self.decoded_len.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.body_crc.to_le_bytes());
        out.extend_from_slice(&self.first_position.0.to_le_bytes());
        out.extend_from_slice(&self.time.0.to_le_bytes());
        out.extend_from_slice(&self.durable_upto.0.to_le_bytes());
        out.extend_from_slice(&self.body_digest);
        out.extend_from_slice(&self.chain);
        let mut bytes = [0; BATCH_HEADER_LEN];
        let (content, crc) = bytes.split_at_mut(CRC_OFFSET);
        content.copy_from_slice(&out);
        crc.copy_from_slice(&site.checksum(offset, &out).to_le_bytes());
        bytes
    }

    /// Reads the header that stands at `offset`. A valid one has been written there, and whole.
    pub fn decode(bytes: &[u8], site: &Site, offset: u64) -> Result<Self, Flaw> {
        let Some(bytes) = bytes.get(..BATCH_HEADER_LEN) else {
            return Err(if bytes.iter().all(|b| *b == 0) {
                Flaw::Absent
            } else {
                Flaw::Garbage("the file ends within a batch header")
            });
        };
        if bytes[..4] != MAGIC {
            return Err(if bytes.iter().all(|b| *b == 0) {
                Flaw::Absent
            } else {
                Flaw::Garbage("no batch header stands here")
            });
        }
        let (content, crc) = bytes.split_at(CRC_OFFSET);
        if crc != site.checksum(offset, content).to_le_bytes() {
            return Err(Flaw::Garbage("the batch header's checksum does not match"));
        }
        let mut take = Take(&content[4..]);
        Self::fields(&mut take).unwrap_or(Err(Flaw::Garbage("the batch header is too short")))
    }

    fn fields(take: &mut Take<'_>) -> Option<Result<Self, Flaw>> {
        let (codec, durability, flags) = (take.u8()?, take.u8()?, take.u16()?);
        let Some(codec) = Codec::of_number(codec) else {
            return Some(Err(Flaw::Unsupported("the batch uses a codec this version does not know")));
        };
        // The high byte holds flags that change the meaning, the low byte flags that do not.
        if flags >> 8 != 0 || durability > 1 {
            return Some(Err(Flaw::Unsupported("the batch uses a feature this version does not know")));
        }
        let header = Self {
            codec,
            durability: if durability == 0 { Durability::Durable } else { Durability::Buffered },
            body_len: take.u32()?,
            decoded_len: take.u32()?,
            count: take.u32()?,
            body_crc: take.u32()?,
            first_position: Position(take.u64()?),
            time: Time(take.i64()?),
            durable_upto: Position(take.u64()?),
            body_digest: take.array()?,
            chain: take.array()?,
        };
        let end = header.first_position.0.checked_add(u64::from(header.count));
        let lengths_fit = match codec {
            Codec::None => header.body_len == header.decoded_len,
            Codec::Lz4 => header.body_len < header.decoded_len,
        };
        if !lengths_fit
            || header.decoded_len as usize > MAX_BODY_LEN
            || header.count == 0
            || header.count > MAX_BATCH_RECORDS
            || header.first_position.0 == 0
            || header.durable_upto >= header.first_position
            || end.is_none()
        {
            return Some(Err(Flaw::Limit("a number in the batch header is outside its limits")));
        }
        Some(Ok(header))
    }

    /// Where in `bytes`, the first of which stands at `offset`, the next valid header begins:
    /// how reading goes on behind damage.
    pub fn find(bytes: &[u8], site: &Site, offset: u64) -> Option<usize> {
        for at in memchr::memmem::find_iter(bytes, &MAGIC) {
            let candidate = &bytes[at..];
            // A header cut off by the end of `bytes` is found from the next piece.
            if candidate.len() < BATCH_HEADER_LEN {
                return None;
            }
            let decoded = Self::decode(candidate, site, offset + at as u64);
            if !matches!(decoded, Err(Flaw::Garbage(_) | Flaw::Absent)) {
                return Some(at);
            }
        }
        None
    }
}

/// The chain hash over a batch: it binds content, order and time, and says nothing of the place,
/// so that a copy into another segment keeps it.
pub fn chain(prev: &Digest, first: Position, count: u32, time: Time, body_digest: &Digest) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(prev);
    hasher.update(&first.0.to_le_bytes());
    hasher.update(&count.to_le_bytes());
    hasher.update(&time.0.to_le_bytes());
    hasher.update(body_digest);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: Site = Site { journal: *b"0123456789abcdef", segment: 2, salt: 3 };
    const OFFSET: u64 = 5_000;

    fn header() -> BatchHeader {
        BatchHeader {
            codec: Codec::None,
            durability: Durability::Buffered,
            body_len: 0x08,
            decoded_len: 0x08,
            count: 0x10,
            body_crc: 0x14,
            first_position: Position(0x18),
            time: Time(-0x20),
            durable_upto: Position(0x17),
            body_digest: [0x30; 32],
            chain: [0x50; 32],
        }
    }

    /// The header above, as the table of the format has it, with other bytes at a place.
    fn bytes(changes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = b"RWB1\0\x01\0\0".to_vec();
        bytes.extend([0x08_u32, 0x08, 0x10, 0x14].map(u32::to_le_bytes).concat());
        bytes.extend([0x18_u64, (-0x20_i64).cast_unsigned(), 0x17].map(u64::to_le_bytes).concat());
        bytes.extend([[0x30; 32], [0x50; 32]].concat());
        for (at, new) in changes {
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
        let place = [2_u64, 3, OFFSET].map(u64::to_le_bytes).concat();
        let crc = crc32fast::hash(&[b"0123456789abcdef".as_slice(), &place, &bytes].concat());
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    fn changed(changes: &[(usize, &[u8])]) -> Result<BatchHeader, Flaw> {
        BatchHeader::decode(&bytes(changes), &SITE, OFFSET)
    }

    #[test]
    fn each_field_stands_where_the_format_has_it() {
        assert_eq!(header().encode(&SITE, OFFSET), *bytes(&[]));
        assert_eq!(changed(&[]), Ok(header()));
        let durable = BatchHeader { durability: Durability::Durable, ..header() };
        assert_eq!(durable.encode(&SITE, OFFSET), *bytes(&[(5, &[0])]));
        assert_eq!(changed(&[(5, &[0])]), Ok(durable));
        let compressed = BatchHeader { codec: Codec::Lz4, decoded_len: 0x09, ..header() };
        assert_eq!(compressed.encode(&SITE, OFFSET), *bytes(&[(4, &[1]), (12, &[9])]));
        assert_eq!(changed(&[(4, &[1]), (12, &[9])]), Ok(compressed));
        let behind = [bytes(&[]), vec![7; 9]].concat();
        assert_eq!(BatchHeader::decode(&behind, &SITE, OFFSET), Ok(header()));
    }

    #[test]
    fn the_same_bytes_elsewhere_are_not_valid() {
        for (site, offset) in [
            (SITE, OFFSET + 1),
            (Site { journal: [0; 16], ..SITE }, OFFSET),
            (Site { segment: 3, ..SITE }, OFFSET),
            (Site { salt: 4, ..SITE }, OFFSET),
        ] {
            let found = BatchHeader::decode(&bytes(&[]), &site, offset);
            assert!(matches!(found, Err(Flaw::Garbage(_))), "{site:?} {offset}: {found:?}");
        }
        for at in 0..116 {
            let mut bytes = bytes(&[]);
            bytes[at] ^= 1;
            let found = BatchHeader::decode(&bytes, &SITE, OFFSET);
            assert!(matches!(found, Err(Flaw::Garbage(_))), "{at}: {found:?}");
        }
    }

    #[test]
    fn zeros_are_no_batch_and_no_damage() {
        for len in [0, 1, 115, 116, 200] {
            assert_eq!(BatchHeader::decode(&vec![0; len], &SITE, OFFSET), Err(Flaw::Absent), "{len}");
            if len > 0 {
                let found = BatchHeader::decode(&vec![1; len], &SITE, OFFSET);
                assert!(matches!(found, Err(Flaw::Garbage(_))), "{len}: {found:?}");
            }
        }
        let cut = BatchHeader::decode(&bytes(&[])[..115], &SITE, OFFSET);
        assert!(matches!(cut, Err(Flaw::Garbage(_))), "{cut:?}");
    }

    #[test]
    fn what_is_unknown_is_unsupported() {
        for (at, value) in [(4, 2), (4, 0xff), (5, 2), (5, 0xff), (7, 1), (7, 0x80)] {
            for buffered in [0, 1] {
                let found = changed(&[(5, &[buffered]), (at, &[value])]);
                assert!(matches!(found, Err(Flaw::Unsupported(_))), "{value} at {at}: {found:?}");
            }
        }
        assert_eq!(changed(&[(6, &[0xff])]), Ok(header()), "the low byte of the flags is ignored");
    }

    #[test]
    fn each_number_is_held_to_its_limit() {
        let len =
            |stored: u32, decoded: u32| changed(&[(8, &stored.to_le_bytes()), (12, &decoded.to_le_bytes())]);
        let lz4 = |stored: u32, decoded: u32| {
            changed(&[(4, &[1]), (8, &stored.to_le_bytes()), (12, &decoded.to_le_bytes())])
        };
        let count = |count: u32| changed(&[(16, &count.to_le_bytes())]);
        let position =
            |first: u64, upto: u64| changed(&[(24, &first.to_le_bytes()), (40, &upto.to_le_bytes())]);
        let good = [
            ("no body", len(0, 0)),
            ("8 MiB", len(8 << 20, 8 << 20)),
            ("8 MiB in a byte", lz4(1, 8 << 20)),
            ("one byte less", lz4((8 << 20) - 1, 8 << 20)),
            ("nothing for one byte", lz4(0, 1)),
            ("one record", count(1)),
            ("65,536 records", count(65_536)),
            ("the first position", position(1, 0)),
            ("the last position", position(u64::MAX - 0x10, u64::MAX - 0x11)),
            ("nothing durable", position(0x18, 0)),
        ];
        for (what, found) in good {
            assert!(found.is_ok(), "{what}: {found:?}");
        }
        let bad = [
            ("two lengths", len(0x08, 0x09)),
            ("over 8 MiB", len((8 << 20) + 1, (8 << 20) + 1)),
            ("over 8 MiB in a byte", lz4(1, (8 << 20) + 1)),
            ("compressed to as much", lz4(9, 9)),
            ("compressed to more", lz4(10, 9)),
            ("compressed nothing", lz4(0, 0)),
            ("no record", count(0)),
            ("65,537 records", count(65_537)),
            ("position 0", position(0, 0)),
            ("behind the last position", position(u64::MAX - 0x0f, 0)),
            ("durable up to itself", position(0x18, 0x18)),
            ("durable up to a later one", position(0x18, u64::MAX)),
        ];
        for (what, found) in bad {
            assert!(matches!(found, Err(Flaw::Limit(_))), "{what}: {found:?}");
        }
    }

    #[test]
    fn a_batch_reaches_from_its_first_record_to_its_last() {
        assert_eq!(header().last_position(), Position(0x18 + 0x10 - 1));
        assert_eq!(header().frame_len(), 116 + 8);
    }

    #[test]
    fn the_chain_hash_is_over_what_the_format_says() {
        let mut all = vec![9; 32];
        all.extend(0x18_u64.to_le_bytes());
        all.extend(0x10_u32.to_le_bytes());
        all.extend((-0x20_i64).to_le_bytes());
        all.extend([0x30; 32]);
        assert_eq!(header().expected_chain(&[9; 32]), *blake3::hash(&all).as_bytes());
    }

    #[test]
    fn the_next_header_is_found_behind_damage() {
        let piece = |before: &[u8], header: &[u8]| {
            let bytes = [before, header].concat();
            BatchHeader::find(&bytes, &SITE, OFFSET - before.len() as u64)
        };
        // What only begins like a header, and one that was written elsewhere, are passed over.
        let elsewhere = [bytes(&[]), vec![0; 300]].concat();
        let begun = [b"xRWB1RWB1".as_slice(), &[7; 200]].concat();
        for before in [&[][..], &[0; 1], &[0xff; 1_000], b"RWB", &begun, &elsewhere] {
            assert_eq!(piece(before, &bytes(&[])), Some(before.len()));
            assert_eq!(piece(before, &[bytes(&[]), vec![1; 50]].concat()), Some(before.len()));
            assert_eq!(piece(before, &bytes(&[])[..115]), None, "found from the next piece");
            assert_eq!(piece(before, &[0; 200]), None);
        }
        // Right as a whole, and not for this version: whoever reads it has to say so.
        assert_eq!(piece(b"abc", &bytes(&[(7, &[1])])), Some(3));
        assert_eq!(piece(b"abc", &bytes(&[(16, &[0; 4])])), Some(3));
    }
}
