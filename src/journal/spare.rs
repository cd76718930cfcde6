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

    /// A spare of this length, where there is one. Only under the lock, with the busy word set.
    pub(super) fn spare(disk: &dyn Disk, entropy: &dyn Entropy, len: u64) -> Result<Option<Self>> {
        for spare in begins_with(disk, SPARE)? {
            let name = temporary(entropy)?;
            if !disk.rename(&spare, &name, false)? {
                continue;
            }
            // Opened by the name that is one's own: it is what was claimed.
            let file = disk.open(&name, Open::Write)?;
            if file.stat()?.len == len && begins_with_zeros(&*file)? {
                return Ok(Some(Self { name, file }));
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
        let (Ok(name), Ok(number)) = (temporary(entropy), entropy.number()) else { return };
        let spare = format!("{FOLDER}/{SPARE}{number:016x}");
        if how == Spares::Inline {
            fill(&**disk, &name, &spare, len, &self.stop);
            return;
        }
        let (disk, stop) = (Arc::clone(disk), Arc::clone(&self.stop));
        let thread = std::thread::Builder::new().name("runwal-spare".to_owned());
        self.thread = thread.spawn(move || fill(&*disk, &name, &spare, len, &stop)).ok();
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

/// Makes a spare, or nothing.
fn fill(disk: &dyn Disk, name: &str, spare: &str, len: u64, stop: &AtomicBool) {
    let Ok(file) = disk.open(name, Open::CreateNew) else { return };
    // Locked, so that nobody takes it for what a dead one left.
    let written = file.try_lock().and_then(|locked| Ok(locked && write_zeros(&*file, len, stop)?));
    // Named only behind a sync that succeeded, and not written to any more: a later sync, of another
    // descriptor too, could not vouch for these blocks.
    let named = matches!(written, Ok(true)) && disk.rename(name, spare, false).unwrap_or(false);
    if !named {
        let _ = disk.remove(name);
    }
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
