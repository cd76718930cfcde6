//! A disk that tells of each call before it is made: who counts calls, or keeps one waiting until something
//! else has happened, needs no luck with times.

use crate::disk::{Disk, File, Kind, Open, Session, Stat};
use crate::error::Result;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// What is about to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`Disk::open`].
    Open,
    /// [`Disk::rename`] over what has that name; the name is the new one.
    Replace,
    /// [`File::read_at`].
    Read,
    /// [`File::write_at`] and [`File::write_parts_at`].
    Write,
    /// [`File::sync`].
    Sync,
    /// [`Disk::sync_dir`] and [`Disk::sync_all`].
    SyncDir,
    /// Anything else.
    Other,
}

type Watch = dyn Fn(Call, &str) + Send + Sync;

/// See the [module](self).
#[derive(Clone)]
pub struct Watched {
    disk: Arc<dyn Disk>,
    watch: Arc<Watch>,
}

struct WatchedFile {
    file: Arc<dyn File>,
    name: String,
    watch: Arc<Watch>,
}

impl Watched {
    /// Calls `watch` with each call and the name of its file, by whichever thread makes it.
    pub fn new(disk: Arc<dyn Disk>, watch: impl Fn(Call, &str) + Send + Sync + 'static) -> Self {
        Self { disk, watch: Arc::new(watch) }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.disk).finish()
    }
}

impl fmt::Debug for WatchedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WatchedFile").field(&self.name).finish()
    }
}

impl Disk for Watched {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn File>> {
        (self.watch)(Call::Open, name);
        let file = self.disk.open(name, how)?;
        Ok(Arc::new(WatchedFile { file, name: name.to_owned(), watch: Arc::clone(&self.watch) }))
    }

    fn create_dir(&self, name: &str) -> Result<bool> {
        (self.watch)(Call::Other, name);
        self.disk.create_dir(name)
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> Result<bool> {
        (self.watch)(if replace { Call::Replace } else { Call::Other }, to);
        self.disk.rename(from, to, replace)
    }

    fn remove(&self, name: &str) -> Result<()> {
        (self.watch)(Call::Other, name);
        self.disk.remove(name)
    }

    fn list(&self, name: &str, visit: &mut dyn FnMut(&str, Kind)) -> Result<()> {
        (self.watch)(Call::Other, name);
        self.disk.list(name, visit)
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>> {
        (self.watch)(Call::Other, name);
        self.disk.stat(name)
    }

    fn is_named(&self, name: &str, device: u64, inode: u64) -> Result<bool> {
        (self.watch)(Call::Other, name);
        self.disk.is_named(name, device, inode)
    }

    fn sync_dir(&self, name: &str) -> Result<()> {
        (self.watch)(Call::SyncDir, name);
        self.disk.sync_dir(name)
    }

    fn sync_all(&self) -> Result<()> {
        (self.watch)(Call::SyncDir, ".");
        self.disk.sync_all()
    }

    fn path(&self) -> Option<PathBuf> {
        self.disk.path()
    }

    fn session(&self) -> Result<Session> {
        self.disk.session()
    }

    fn unreliable(&self) -> Result<Option<&'static str>> {
        self.disk.unreliable()
    }
}

impl File for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        (self.watch)(Call::Read, &self.name);
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        (self.watch)(Call::Write, &self.name);
        self.file.write_at(bytes, offset)
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> Result<()> {
        (self.watch)(Call::Write, &self.name);
        self.file.write_parts_at(parts, offset)
    }

    fn sync(&self) -> Result<()> {
        (self.watch)(Call::Sync, &self.name);
        self.file.sync()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        (self.watch)(Call::Other, &self.name);
        self.file.set_len(len)
    }

    fn stat(&self) -> Result<Stat> {
        (self.watch)(Call::Other, &self.name);
        self.file.stat()
    }

    fn try_lock(&self) -> Result<bool> {
        (self.watch)(Call::Other, &self.name);
        self.file.try_lock()
    }

    fn unlock(&self) -> Result<()> {
        (self.watch)(Call::Other, &self.name);
        self.file.unlock()
    }

    fn begin_writing_back(&self, offset: u64, len: u64) {
        (self.watch)(Call::Other, &self.name);
        self.file.begin_writing_back(offset, len);
    }

    fn drop_cache(&self) -> Result<()> {
        (self.watch)(Call::Other, &self.name);
        self.file.drop_cache()
    }
}
