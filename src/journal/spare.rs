//! Spare segments: the next segment's blocks, written with zeros before they are needed.
//!
//! A sync of blocks that were written before has no allocation to make durable, and takes half the
//! time. A spare is filled outside the lock under a temporary name, synced, and only then named
//! `spare-*`; whoever rolls next claims it under the lock by giving it a temporary name of its own,
//! and makes a segment of it as of any new file. A spare proves nothing and promises nothing: it
//! may be missing, of another length, or removed at any time.

use super::segment::FOLDER;
use crate::clock::Entropy;
use crate::disk::{Disk, File, Kind, Open};
use crate::error::Result;
use crate::format::SEGMENT_DATA_START;
use crate::position::to_usize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// How much is written at once.
const PIECE_LEN: usize = 1 << 20;
/// How much is written between two syncs: a commit waits behind no more than this.
const SYNC_LEN: u64 = 4 << 20;
/// Up to which length a segment's blocks are written by whoever makes it, where there is no spare.
const MAX_INLINE_LEN: u64 = 1 << 20;
const SPARE: &str = "spare-";
const TEMPORARY: &str = "tmp-";

/// Who fills the next segment ahead of time, once a journal has rolled for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spares {
    /// A thread that ends with the handle.
    #[default]
    Thread,
    /// Whoever rolls, before it goes on: for simulations, where operations need one order.
    Inline,
    /// Nobody. Segments grow as they are written.
    Never,
}

/// An empty file under a temporary name, to become a segment.
#[derive(Debug)]
pub(super) struct Blank {
    pub(super) name: String,
    pub(super) file: Arc<dyn File>,
}

impl Blank {
    /// A new one.
    pub(super) fn fresh(disk: &dyn Disk, entropy: &dyn Entropy) -> Result<Self> {
        let name = temporary(entropy)?;
        let file = disk.open(&name, Open::CreateNew)?;
        Ok(Self { name, file })
    }

    /// The same with its blocks written, where they are few: whoever syncs it next has them synced in the same
    /// step. That they cannot be written is no error.
    pub(super) fn filled(disk: &dyn Disk, entropy: &dyn Entropy, len: u64) -> Result<Self> {
        let blank = Self::fresh(disk, entropy)?;
        if len <= MAX_INLINE_LEN && blank.file.write_at(&vec![0; to_usize(len)], 0).is_err() {
            blank.file.set_len(0)?;
        }
        Ok(blank)
    }

    /// A spare of one of these lengths, of the first one that there is, and its length. Others are removed: no
    /// segment will be made of them. Only under the lock, with the busy word set.
    pub(super) fn spare(
        disk: &dyn Disk,
        entropy: &dyn Entropy,
        lens: [u64; 2],
    ) -> Result<Option<(Self, u64)>> {
        let mut found = Vec::new();
        for spare in begins_with(disk, SPARE)? {
            let Some(stat) = disk.stat(&spare)? else { continue };
            match lens.iter().position(|len| *len == stat.len) {
                Some(nth) => found.push((nth, spare)),
                None => disk.remove(&spare)?,
            }
        }
        found.sort_unstable();
        for (nth, spare) in found {
            let (name, len) = (temporary(entropy)?, lens[nth]);
            if !disk.rename(&spare, &name, false)? {
                continue;
            }
            // Opened by the name that is one's own: it is what was claimed.
            let file = disk.open(&name, Open::Write)?;
            if file.stat()?.len == len && begins_with_zeros(&*file)? {
                return Ok(Some((Self { name, file }, len)));
            }
            disk.remove(&name)?;
        }
        Ok(None)
    }
}

/// On a file system that can lose half of a rename, a segment in use may still have the name of the
/// spare it was made of. It has a header.
fn begins_with_zeros(file: &dyn File) -> Result<bool> {
    let mut head = vec![1; to_usize(SEGMENT_DATA_START)];
    Ok(file.read_at(&mut head, 0)? == head.len() && head.iter().all(|b| *b == 0))
}

/// Removes what dead writers left under temporary names. Only under the lock, so that the only ones
/// alive are those that fill spares, and they hold the locks of their files.
pub(super) fn sweep(disk: &dyn Disk) -> Result<()> {
    for name in begins_with(disk, TEMPORARY)? {
        let removed = match disk.open(&name, Open::Write) {
            Ok(file) if file.try_lock()? => disk.remove(&name),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        // A filler that just finished has renamed it.
        removed.or_else(|error| if error.is_missing() { Ok(()) } else { Err(error) })?;
    }
    Ok(())
}

/// A name under which a file is no part of the journal.
pub(super) fn temporary(entropy: &dyn Entropy) -> Result<String> {
    Ok(format!("{FOLDER}/{TEMPORARY}{:016x}", entropy.number()?))
}

fn begins_with(disk: &dyn Disk, prefix: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    disk.list(FOLDER, &mut |name, kind| {
        if name.starts_with(prefix) && kind == Kind::File {
            names.push(format!("{FOLDER}/{name}"));
        }
    })?;
    names.sort_unstable();
    Ok(names)
}

/// Fills at most one spare at a time.
#[derive(Debug, Default)]
pub(super) struct Filler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Filler {
    /// Has a spare of this length made, unless there is one. That it cannot be made is no error: the
    /// next segment then grows as it is written.
    pub(super) fn ask(&mut self, disk: &Arc<dyn Disk>, entropy: &dyn Entropy, len: u64, how: Spares) {
        if how == Spares::Never || self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        if begins_with(&**disk, SPARE).is_ok_and(|found| !found.is_empty()) {
            return;
        }
        let Ok(names) = names(entropy) else { return };
        if how == Spares::Inline {
            let _ = fill(&**disk, &names, len, &self.stop);
            return;
        }
        let (disk, stop) = (Arc::clone(disk), Arc::clone(&self.stop));
        let thread = std::thread::Builder::new().name("runwal-spare".to_owned());
        self.thread = thread.spawn(move || drop(fill(&*disk, &names, len, &stop))).ok();
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Has as many spares of this length as are asked for, whoever made them.
pub(super) fn reserve(disk: &dyn Disk, entropy: &dyn Entropy, len: u64, count: u64) -> Result<()> {
    for _ in reserved(disk, len)?..count {
        fill(disk, &names(entropy)?, len, &AtomicBool::new(false))?;
    }
    Ok(())
}

/// How many spares of this length there are.
pub(super) fn reserved(disk: &dyn Disk, len: u64) -> Result<u64> {
    let mut count = 0;
    for spare in begins_with(disk, SPARE)? {
        count += u64::from(disk.stat(&spare)?.is_some_and(|stat| stat.len == len));
    }
    Ok(count)
}

/// The temporary name of a file, and the one that it has as a spare.
fn names(entropy: &dyn Entropy) -> Result<(String, String)> {
    Ok((temporary(entropy)?, format!("{FOLDER}/{SPARE}{:016x}", entropy.number()?)))
}

/// Makes a spare, or nothing.
fn fill(disk: &dyn Disk, (name, spare): &(String, String), len: u64, stop: &AtomicBool) -> Result<()> {
    let file = disk.open(name, Open::CreateNew)?;
    // Locked, so that nobody takes it for what a dead one left.
    let written = file.try_lock().and_then(|locked| Ok(locked && write_zeros(&*file, len, stop)?));
    // Named only behind a sync that succeeded, and not written to any more: a later sync, of another
    // descriptor too, could not vouch for these blocks.
    let named = written.and_then(|written| Ok(written && disk.rename(name, spare, false)?));
    if !matches!(named, Ok(true)) {
        let _ = disk.remove(name);
    }
    named.map(drop)
}

/// Answers whether the file is whole and synced.
fn write_zeros(file: &dyn File, len: u64, stop: &AtomicBool) -> Result<bool> {
    let zeros = vec![0; PIECE_LEN.min(usize::try_from(len).unwrap_or(PIECE_LEN))];
    let mut at = 0;
    while at < len {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let piece = &zeros[..zeros.len().min(usize::try_from(len - at).unwrap_or(usize::MAX))];
        file.write_at(piece, at)?;
        at += piece.len() as u64;
        if at % SYNC_LEN == 0 || at == len {
            file.sync()?;
        }
    }
    Ok(len > 0)
}
