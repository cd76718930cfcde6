//! Which streams there are by name, of the segments that are sealed: made of their indexes once and kept in the
//! cache, so that whoever opens a long journal next need not read all of them.
//!
//! The file is disposable. It is believed where its checksum is right and the segment behind the last one that it
//! covers goes on from the same chain hash, which is one over all that stands before.

use super::view::View;
use crate::disk::{Disk, Open, read_whole};
use crate::error::Result;
use crate::format::Digest;
use crate::position::StreamId;

/// The hash of each name, with its stream.
pub(super) type Names = Vec<(u64, StreamId)>;

const FILE: &str = "cache/names";
const TEMPORARY: &str = "cache/tmp-names";
const MAGIC: [u8; 8] = *b"RWNAMES1";
/// Magic, checksum of the rest, identity of the journal, last segment, chain hash behind it.
const HEADER_LEN: usize = 8 + 4 + 16 + 8 + 32;
const PAIR_LEN: usize = 16;
/// Longer ones are made anew each time.
const MAX_LEN: u64 = 64 << 20;
/// How many segments must have been looked at for it to be kept anew.
const KEPT_EVERY: usize = 16;

/// What the cache has.
struct Kept {
    journal: [u8; 16],
    upto: u64,
    chain: Digest,
    names: Names,
}

impl Kept {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + PAIR_LEN * self.names.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.journal);
        out.extend_from_slice(&self.upto.to_le_bytes());
        out.extend_from_slice(&self.chain);
        for (hash, id) in &self.names {
            out.extend_from_slice(&hash.to_le_bytes());
            out.extend_from_slice(&id.0.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, pairs) = bytes.split_at_checked(HEADER_LEN)?;
        let crc = crc32fast::hash(&bytes[12..]).to_le_bytes();
        if head[..8] != MAGIC || head[8..12] != crc || pairs.len() % PAIR_LEN != 0 {
            return None;
        }
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
        let pair = |pair: &[u8]| Some((number(&pair[..8])?, StreamId(number(&pair[8..])?)));
        Some(Self {
            journal: head[12..28].try_into().ok()?,
            upto: number(&head[28..36])?,
            chain: head[36..].try_into().ok()?,
            names: pairs.chunks_exact(PAIR_LEN).map(pair).collect::<Option<_>>()?,
        })
    }
}

/// The names in all segments before the active one, sorted.
pub(super) fn of_sealed(view: &mut View, disk: &dyn Disk) -> Result<Names> {
    let journal = view.segment.header.journal;
    let kept = read_whole(disk, FILE, MAX_LEN).ok().and_then(|bytes| Kept::decode(&bytes));
    let kept = kept.filter(|kept| {
        let behind = kept.upto.checked_add(1).and_then(|number| view.reopen(number).ok());
        kept.journal == journal && behind.is_some_and(|behind| behind.header.chain == kept.chain)
    });
    let (upto, mut names) = kept.map_or((0, Names::new()), |kept| (kept.upto, kept.names));
    let (mut looked_at, mut last, mut whole) = (0, upto, true);
    for number in view.sealed_behind(upto)? {
        let index = view.sealed(number)?;
        // What is missing today may be back tomorrow: no name of it may be missing then.
        let behind = view.reopen(number + 1).ok();
        whole &= number == last + 1 && behind.is_some_and(|behind| behind.header.chain == index.chain);
        names.extend(index.names.iter().copied());
        (looked_at, last) = (looked_at + 1, number);
    }
    names.sort_unstable();
    let chain = view.segment.header.chain;
    if view.is_writable() && whole && looked_at >= KEPT_EVERY && last + 1 == view.segment.number() {
        let kept = Kept { journal, upto: last, chain, names };
        // Failing to keep it costs the next one a look at the indexes.
        let _ = store(disk, &kept.encode());
        names = kept.names;
    }
    Ok(names)
}

/// Only under the journal's lock: what stands at the temporary name was left by somebody who died.
fn store(disk: &dyn Disk, bytes: &[u8]) -> Result<()> {
    disk.create_dir("cache")?;
    if disk.stat(TEMPORARY)?.is_some() {
        disk.remove(TEMPORARY)?;
    }
    disk.open(TEMPORARY, Open::CreateNew)?.write_at(bytes, 0)?;
    disk.rename(TEMPORARY, FILE, true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_nothing_that_was_changed() {
        let names = vec![(1, StreamId(7)), (u64::MAX, StreamId(u64::MAX)), (5, StreamId(0))];
        let kept = Kept { journal: [3; 16], upto: 1 << 40, chain: [9; 32], names: names.clone() };
        let bytes = kept.encode();
        let back = Kept::decode(&bytes).unwrap();
        assert_eq!((back.journal, back.upto, back.chain, back.names), ([3; 16], 1 << 40, [9; 32], names));
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert!(Kept::decode(&wrong).is_none(), "{at}");
            assert!(Kept::decode(&bytes[..at]).is_none(), "{at}");
        }
    }
}
