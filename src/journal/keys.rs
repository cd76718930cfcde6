//! The idempotency keys of sealed segments, found in the indexes on the disk: what is kept in memory
//! is a fixed amount for each segment, however many keys there are.

use crate::disk::{Disk, Open};
use crate::error::Result;
use crate::format::{Footer, PAIR_LEN};
use crate::position::Position;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many entries are read at once.
const BLOCK: usize = 256;

/// Where the sorted keys of a segment stand: a file, the offset of the first one, how many.
#[derive(Debug)]
struct Table {
    file: String,
    offset: u64,
    count: u64,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The tables; `None` for a segment whose index has to be asked for as a whole.
    segments: BTreeMap<u64, Option<Table>>,
}

impl Keys {
    /// Notes the keys of a sealed segment, whose index stands whole and checked at `place`.
    pub(super) fn add(&mut self, number: u64, index: &Footer, place: Option<(String, u64)>) {
        if index.keys.is_empty() {
            return;
        }
        let table = place.map(|(file, offset)| Table {
            file,
            offset: offset + index.keys_offset(),
            count: index.keys.len() as u64,
        });
        self.segments.insert(number, table);
    }

    /// The positions of the records whose key has this hash; `whole` gives a segment's index.
    pub(super) fn find(
        &mut self,
        disk: &dyn Disk,
        hash: u64,
        whole: &mut dyn FnMut(u64) -> Result<Arc<Footer>>,
    ) -> Result<Vec<Position>> {
        let mut found = Vec::new();
        for (number, table) in &mut self.segments {
            let read = match table {
                Some(table) => table.find(disk, hash, &mut found)?,
                None => false,
            };
            if !read {
                // The cache is disposable: it may be gone at any time.
                *table = None;
                let range = (hash, Position::ZERO)..=(hash, Position(u64::MAX));
                found.extend(whole(*number)?.keys.range(range).map(|(_, position)| *position));
            }
        }
        Ok(found)
    }
}

impl Table {
    /// Adds what has this hash to `found`; `false` where the table cannot be read. Hashes are evenly
    /// spread, so the place of one is guessed from its value, and the guess bettered by what is there.
    fn find(&self, disk: &dyn Disk, hash: u64, found: &mut Vec<Position>) -> Result<bool> {
        let Ok(file) = disk.open(&self.file, Open::Read) else { return Ok(false) };
        let mut buffer = [0; BLOCK * PAIR_LEN];
        // Invariant: the first entry of this hash or above is in low..=high.
        let (mut low, mut high) = (0, self.count);
        let mut guess = u64::try_from((u128::from(hash) * u128::from(self.count)) >> 64).unwrap_or(0);
        while low < high {
            let start = guess.saturating_sub(BLOCK as u64 / 2).clamp(low, high - 1);
            let count = usize::try_from(self.count - start).map_or(BLOCK, |left| left.min(BLOCK));
            let wanted = &mut buffer[..count * PAIR_LEN];
            if file.read_at(wanted, self.offset + start * PAIR_LEN as u64)? < wanted.len() {
                return Ok(false);
            }
            let entries: Vec<(u64, u64)> = wanted.chunks_exact(PAIR_LEN).map(pair).collect();
            let before = entries.partition_point(|(h, _)| *h < hash);
            if before == 0 && start > low {
                high = start;
            } else if before == count {
                low = start + count as u64;
            } else {
                found.extend(
                    entries[before..].iter().take_while(|(h, _)| *h == hash).map(|(_, p)| Position(*p)),
                );
                return Ok(true);
            }
            guess = low + (high - low) / 2;
        }
        Ok(true)
    }
}

fn pair(bytes: &[u8]) -> (u64, u64) {
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(number)
    };
    (number(0), number(8))
}
