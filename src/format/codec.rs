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
