//! The batch header: 116 bytes before each batch's body.

use super::bytes::Take;
use super::{Digest, Flaw, MAX_BATCH_RECORDS, MAX_BODY_LEN, Site};
use crate::position::{Position, Time};

/// Bytes of a batch header.
pub const BATCH_HEADER_LEN: usize = 116;

const MAGIC: [u8; 4] = *b"RWB1";
const CRC_OFFSET: usize = BATCH_HEADER_LEN - 4;
const CODEC_NONE: u8 = 0;

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
    /// What its writer asked for.
    pub durability: Durability,
    /// Bytes of the body.
    pub body_len: u32,
    /// Records in the body.
    pub count: u32,
    /// CRC-32 of the body.
    pub body_crc: u32,
    /// The position of the first record.
    pub first_position: Position,
    /// When the batch was made: the base of its records' times.
    pub time: Time,
    /// The position proven durable before the group this batch was written in.
    pub durable_upto: Position,
    /// BLAKE3 of the body.
    pub body_digest: Digest,
    /// The chain hash after this batch.
    pub chain: Digest,
}

impl BatchHeader {
    /// The position of the last record.
    pub fn last_position(&self) -> Position {
        Position(self.first_position.0 + u64::from(self.count) - 1)
    }

    /// Bytes of header and body.
    pub fn frame_len(&self) -> u64 {
        BATCH_HEADER_LEN as u64 + u64::from(self.body_len)
    }

    /// The chain hash this batch must have after one that ended in `prev`.
    pub fn expected_chain(&self, prev: &Digest) -> Digest {
        chain(prev, self.first_position, self.count, self.time, &self.body_digest)
    }

    /// Writes it for the place where it will stand.
    pub fn encode(&self, site: &Site, offset: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[CODEC_NONE, u8::from(self.durability == Durability::Buffered), 0, 0]);
        out.extend_from_slice(&self.body_len.to_le_bytes());
        out.extend_from_slice(&self.body_len.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.body_crc.to_le_bytes());
        out.extend_from_slice(&self.first_position.0.to_le_bytes());
        out.extend_from_slice(&self.time.0.to_le_bytes());
        out.extend_from_slice(&self.durable_upto.0.to_le_bytes());
        out.extend_from_slice(&self.body_digest);
        out.extend_from_slice(&self.chain);
        debug_assert_eq!(out.len() - start, CRC_OFFSET);
        let crc = site.checksum(offset, &out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
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
        if codec != CODEC_NONE {
            return Some(Err(Flaw::Unsupported("the batch uses a codec this version does not know")));
        }
        // The high byte holds flags that change the meaning, the low byte flags that do not.
        if flags >> 8 != 0 || durability > 1 {
            return Some(Err(Flaw::Unsupported("the batch uses a feature this version does not know")));
        }
        let (body_len, raw_len) = (take.u32()?, take.u32()?);
        let header = Self {
            durability: if durability == 0 { Durability::Durable } else { Durability::Buffered },
            body_len,
            count: take.u32()?,
            body_crc: take.u32()?,
            first_position: Position(take.u64()?),
            time: Time(take.i64()?),
            durable_upto: Position(take.u64()?),
            body_digest: take.array()?,
            chain: take.array()?,
        };
        let end = header.first_position.0.checked_add(u64::from(header.count));
        if body_len != raw_len
            || body_len as usize > MAX_BODY_LEN
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
