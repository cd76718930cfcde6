//! The seam to the world of files: everything the crate does to a disk goes through [`Disk`] and
//! [`File`].
//!
//! A disk is rooted at one data directory. Names are relative to it, `/`-separated, and are never
//! followed out of it: no component may be a symbolic link, `..` or empty. Two implementations
//! stand behind the contract, the operating system ([`os`]) and, under the feature `testing`, a
//! simulated one; one conformance suite runs on both.
//!
//! # What may be assumed
//!
//! * A read sees what was written before it, by any process of the same boot, synced or not.
//! * After [`File::sync`] returned `Ok`, the file's bytes and its length as of the call survive a
//!   power cut. Nothing else does: not the file's name, not other files.
//! * After [`Disk::sync_dir`] returned `Ok`, the entries of that directory as of the call survive.
//! * A [`Disk::rename`] is atomic for every other process, and for a power cut is either undone or done.
//! * A file that grew reads as zeros where nothing was written.
//! * Bytes that are not written over do not change because their neighbours are written.
//!
//! # What may not be assumed
//!
//! * Unsynced bytes may survive in any order and any subset of sectors.
//! * After a failed sync nothing is known of that file, and a second sync that succeeds says nothing.
//!   The same holds for a directory and the names in it.
//! * A lock says nothing about what its last holder had finished.

pub mod os;
#[cfg(feature = "testing")]
pub mod sim;

use crate::error::Result;
pub use crate::position::Session;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

/// How a file is opened. None of them follows a symbolic link, and all but `Directory` refuse what
/// is not a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Existing, for reading.
    Read,
    /// Existing, for reading and writing.
    Write,
    /// For reading and writing, made (with mode 0600) where it does not exist.
    WriteOrCreate,
    /// Made now (with mode 0600), for reading and writing; an existing one is an error.
    CreateNew,
    /// An existing directory, only to be locked.
    Directory,
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device.
    Special,
}

impl Kind {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::File => "a regular file",
            Self::Directory => "a directory",
            Self::Symlink => "a symbolic link",
            Self::Special => "a FIFO, socket or device",
        }
    }
}

/// What is known of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub len: u64,
    /// Bytes on the disk, as far as allocated.
    pub allocated: u64,
    /// Inode number.
    pub inode: u64,
    /// Device number.
    pub device: u64,
    /// Last change of the content, nanoseconds since 1970.
    pub modified_ns: i64,
}

/// A data directory. See the [module](self) for what may be assumed.
pub trait Disk: Send + Sync + Debug {
    /// Opens a file. The error of a missing one says so (`NotFound` of the operating system).
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn File>>;
    /// Makes a directory with mode 0700; tells whether it was made or already there.
    fn create_dir(&self, name: &str) -> Result<bool>;
    /// Gives `from` the name `to`. With `replace` an existing `to` goes in the same step; without,
    /// an existing `to` is left alone and the answer is `false`.
    fn rename(&self, from: &str, to: &str, replace: bool) -> Result<bool>;
    /// Removes a file (not a directory).
    fn remove(&self, name: &str) -> Result<()>;
    /// Visits the entries of a directory, in no particular order, without `.` and `..`.
    fn list(&self, name: &str, visit: &mut dyn FnMut(&str, Kind)) -> Result<()>;
    /// Looks at a name without following or opening it; `None` where nothing is.
    fn stat(&self, name: &str) -> Result<Option<Stat>>;
    /// Whether a name stands for this file of this device, without opening it. What leads to it is not
    /// looked at.
    fn is_named(&self, name: &str, device: u64, inode: u64) -> Result<bool> {
        Ok(self.stat(name)?.is_some_and(|stat| (stat.device, stat.inode) == (device, inode)))
    }
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, name: &str) -> Result<()>;
    /// Makes everything on the file system durable, in one call: for disposable files in bulk.
    fn sync_all(&self) -> Result<()>;
    /// Where it is in the file system that other programs see; `None` where they do not see it.
    fn path(&self) -> Option<PathBuf> {
        None
    }
    /// The session this disk is seen in.
    fn session(&self) -> Result<Session>;
    /// The file system's name if it is one on which locks or syncs cannot be relied upon.
    fn unreliable(&self) -> Result<Option<&'static str>>;
}

/// An open file. Positions are explicit; there is no cursor.
pub trait File: Send + Sync + Debug {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;
    /// Writes all of `bytes` at `offset`. After an error any part of them may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Writes parts one behind the other, the first at `offset`: the same as all of their bytes with one
    /// [`write_at`](Self::write_at), without their being copied together. By itself a call for each.
    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> Result<()> {
        let mut at = offset;
        for part in parts {
            self.write_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
    /// Makes bytes and length durable. After an error the file must not be synced again.
    fn sync(&self) -> Result<()>;
    /// Cuts or grows (with zeros) to `len` bytes.
    fn set_len(&self, len: u64) -> Result<()>;
    /// Looks at the open file, which may have lost its name.
    fn stat(&self) -> Result<Stat>;
    /// Takes the exclusive lock of this open file if it is free. It goes when the last handle of
    /// this opening does, also with a killed process; a second opening in one process conflicts.
    fn try_lock(&self) -> Result<bool>;
    /// Gives the lock back.
    fn unlock(&self) -> Result<()>;
    /// Begins to bring what was written there to the device, so that a later [`sync`](Self::sync) has less
    /// to do. Advice: it may do nothing, and proves nothing.
    fn begin_writing_back(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }
    /// Drops cached clean pages, so that the next read asks the device. Advice: it may do nothing.
    fn drop_cache(&self) -> Result<()>;
}

/// Reads the whole of a small file, refusing one longer than `limit` bytes.
pub(crate) fn read_whole(disk: &dyn Disk, name: &str, limit: u64) -> Result<Vec<u8>> {
    let file = disk.open(name, Open::Read)?;
    let len = file.stat()?.len;
    if len > limit {
        return Err(crate::error::Error::new(
            crate::error::ErrorKind::Corrupt,
            format!("{name} has {len} bytes, more than the limit of {limit}"),
        ));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let n = file.read_at(&mut bytes, 0)?;
    bytes.truncate(n);
    Ok(bytes)
}
