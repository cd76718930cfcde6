//! The one place that knows bincode: fixed-width little-endian integers, 64-bit lengths, a limit,
//! and nothing left over.

use crate::error::{Error, Result};
use bincode::config::{Configuration, Fixint, Limit, LittleEndian};

/// Counts memory, not bytes on the wire, so it lies above the limit of a payload.
const LIMIT: usize = 8 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<LIMIT>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>();

pub(super) fn encode<T: bincode::Encode>(value: &T) -> Result<Vec<u8>> {
    bincode::encode_to_vec(value, CONFIG).map_err(|e| Error::misuse(format!("the record is too large: {e}")))
}

pub(super) fn decode<T: bincode::Decode<()>>(bytes: &[u8]) -> Result<T, String> {
    let (value, used) = bincode::decode_from_slice(bytes, CONFIG).map_err(|e| e.to_string())?;
    if used == bytes.len() { Ok(value) } else { Err(format!("{} bytes are left over", bytes.len() - used)) }
}
