//! The operating system's disk as a process of a chosen boot sees it, or one whose syncs lie.

use runwal::Error;
use runwal::disk::os::OsDisk;
use runwal::disk::{Disk, File, Kind, Open, Session, Stat};
use runwal::engine::World;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is pretended. The default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pretence {
    /// The boot of the machine: after a power cut it is another one, which an unmounted file system
    /// alone cannot show.
    pub(crate) boot: Option<u64>,
    /// No sync reaches the disk, and all of them succeed.
    pub(crate) lie: bool,
}

/// The world of a process, with the data directory made where it is to be written.
pub(crate) fn world(dir: &Path, pretence: Pretence, write: bool) -> Result<World, Error> {
    let world = if write { World::create(dir)? } else { World::existing(dir)? };
    if pretence == Pretence::default() {
        return Ok(world);
    }
    let disk = if write { OsDisk::create(dir)? } else { OsDisk::open(dir)? };
    Ok(World { disk: Arc::new(Pretending { disk, pretence }), ..world })
}

#[derive(Debug)]
struct Pretending {
    disk: OsDisk,
    pretence: Pretence,
}

impl Disk for Pretending {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn File>, Error> {
        let file = self.disk.open(name, how)?;
        Ok(if self.pretence.lie { Arc::new(Unsynced(file)) } else { file })
    }

    fn create_dir(&self, name: &str) -> Result<bool, Error> {
        self.disk.create_dir(name)
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> Result<bool, Error> {
        self.disk.rename(from, to, replace)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.disk.remove(name)
    }

    fn list(&self, name: &str, visit: &mut dyn FnMut(&str, Kind)) -> Result<(), Error> {
        self.disk.list(name, visit)
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>, Error> {
        self.disk.stat(name)
    }

    fn sync_dir(&self, name: &str) -> Result<(), Error> {
        if self.pretence.lie { Ok(()) } else { self.disk.sync_dir(name) }
    }

    fn sync_all(&self) -> Result<(), Error> {
        if self.pretence.lie { Ok(()) } else { self.disk.sync_all() }
    }

    fn path(&self) -> Option<PathBuf> {
        Disk::path(&self.disk)
    }

    fn session(&self) -> Result<Session, Error> {
        let mut session = self.disk.session()?;
        if let Some(boot) = self.pretence.boot {
            session.boot[..8].copy_from_slice(&boot.to_le_bytes());
        }
        Ok(session)
    }

    fn unreliable(&self) -> Result<Option<&'static str>, Error> {
        self.disk.unreliable()
    }
}

#[derive(Debug)]
struct Unsynced(Arc<dyn File>);

impl File for Unsynced {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, Error> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.0.write_at(bytes, offset)
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        self.0.set_len(len)
    }

    fn stat(&self) -> Result<Stat, Error> {
        self.0.stat()
    }

    fn try_lock(&self) -> Result<bool, Error> {
        self.0.try_lock()
    }

    fn unlock(&self) -> Result<(), Error> {
        self.0.unlock()
    }

    fn drop_cache(&self) -> Result<(), Error> {
        self.0.drop_cache()
    }
}
