//! Bodies of batches as they are stored: as they are, or as one LZ4 block.

use super::BatchHeader;

/// No LZ4 block decodes to more than so many times its own length.
const MAX_RATIO: usize = 255;

/// How a body is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// As it is.
    #[default]
    None,
    /// As one LZ4 block, without a frame or a dictionary, that is shorter than what it decodes to.
    Lz4,
}

impl Codec {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
        }
    }

    pub(super) fn of_number(number: u8) -> Option<Self> {
        [Self::None, Self::Lz4].into_iter().find(|codec| codec.number() == number)
    }
}

/// Compresses a body: behind `room` bytes of zeros for its header, where that makes it shorter by an
/// eighth at least.
pub fn compress(body: &[u8], room: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; room + lz4_flex::block::get_maximum_output_size(body.len())];
    let len = lz4_flex::block::compress_into(body, &mut out[room..]).ok()?;
    out.truncate(room + len);
    (len <= body.len() - body.len() / 8).then_some(out)
}

/// The body that is stored as `stored`, which matches its checksum, put into `buffer` where it has to be
/// decoded. What does not decode to as much as its header says is no body, and gives an empty one: no record
/// is in it, and no digest is its own. Nothing longer than the header's limit is allocated.
pub fn decode<'a>(header: &BatchHeader, stored: &'a [u8], buffer: &'a mut Vec<u8>) -> &'a [u8] {
    if header.codec == Codec::None {
        return stored;
    }
    let len = header.decoded_len as usize;
    if len / MAX_RATIO > stored.len() {
        return &[];
    }
    buffer.resize(len, 0);
    if lz4_flex::block::decompress_into(stored, buffer).ok() != Some(len) {
        buffer.clear();
    }
    buffer
}

#[cfg(test)]
mod tests {
    use super::super::Durability;
    use super::*;
    use crate::position::{Position, Time};

    fn header(stored: &[u8], decoded_len: usize) -> BatchHeader {
        BatchHeader {
            codec: Codec::Lz4,
            durability: Durability::Durable,
            body_len: u32::try_from(stored.len()).unwrap(),
            decoded_len: u32::try_from(decoded_len).unwrap(),
            count: 1,
            body_crc: 0,
            first_position: Position(1),
            time: Time(0),
            durable_upto: Position::ZERO,
            body_digest: [0; 32],
            chain: [0; 32],
        }
    }

    /// Bytes that do not repeat.
    fn noise(len: u32) -> Vec<u8> {
        (0..len).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..1].to_vec()).collect()
    }

    #[test]
    fn what_repeats_is_packed_behind_the_room_and_comes_back() {
        let body = b"the same line again\n".repeat(400);
        for room in [0, 7, 136] {
            let packed = compress(&body, room).unwrap();
            let stored = &packed[room..];
            assert!(packed[..room].iter().all(|byte| *byte == 0) && stored.len() < body.len() / 20);
            let mut buffer = vec![9; 3];
            assert_eq!(decode(&header(stored, body.len()), stored, &mut buffer), body);
            // One more or less than there is, or a number that none can have, is no body.
            for len in [0, body.len() - 1, body.len() + 1, stored.len() * 300] {
                assert!(decode(&header(stored, len), stored, &mut Vec::new()).is_empty(), "{len}");
            }
            // Nothing is allocated for a number that none can have.
            let mut buffer = Vec::new();
            assert!(decode(&header(stored, stored.len() * 300), stored, &mut buffer).is_empty());
            assert_eq!(buffer.capacity(), 0);
        }
        let plain = BatchHeader { codec: Codec::None, ..header(&body, body.len()) };
        assert_eq!(decode(&plain, &body, &mut Vec::new()), body);
    }

    #[test]
    fn what_does_not_get_shorter_by_an_eighth_stays_as_it_is() {
        assert_eq!(compress(&noise(4_000), 8), None);
        let (mut shorter, mut not) = (0, 0);
        for zeros in 300..900 {
            let body = [noise(4_000), vec![0; zeros]].concat();
            let len = lz4_flex::block::compress(&body).len();
            let packed = compress(&body, 8).map(|packed| packed.len() - 8);
            assert_eq!(packed, (body.len() - len >= body.len() / 8).then_some(len), "{zeros}");
            shorter += usize::from(packed.is_some());
            not += usize::from(packed.is_none());
        }
        assert!(shorter > 100 && not > 100, "{shorter} {not}");
    }
}
