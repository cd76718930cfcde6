//! An index for git to write to: a copy of the user's, in the data directory.

use crate::clock::{Entropy, System};
use crate::disk::os::OsDisk;
use crate::disk::{Disk, File, Open};
use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const ROOM: &str = "cache";
const PREFIX: &str = "scratch-";
/// What may stand behind the name of a scratch file; the file without an ending goes last, as its
/// lock says that somebody is at work with the others.
const ENDINGS: [&str; 3] = [".index.lock", ".index", ""];

/// The files of one diff, gone when it is dropped. Those of a process that was killed are removed
/// by the next one.
#[derive(Debug)]
pub(super) struct Scratch {
    disk: OsDisk,
    name: String,
    _lock: Arc<dyn File>,
}

impl Scratch {
    /// In an existing data directory, whose path is absolute.
    pub(super) fn new(data_dir: &Path) -> Result<Self> {
        const ATTEMPTS: usize = 8;
        let disk = OsDisk::open(data_dir)?;
        disk.create_dir(ROOM)?;
        sweep(&disk)?;
        for _ in 0..ATTEMPTS {
            let name = format!("{ROOM}/{PREFIX}{}", crate::engine::hex(&System.id()?));
            let lock = disk.open(&name, Open::CreateNew)?;
            // Between the two, somebody may have taken it for a leftover.
            let inode = lock.stat()?.inode;
            if lock.try_lock()? && disk.stat(&name)?.is_some_and(|stat| stat.inode == inode) {
                return Ok(Self { disk, name, _lock: lock });
            }
        }
        Err(Error::new(ErrorKind::Retry, "a scratch file of the git diff could not be kept"))
    }

    /// Copies an index. Its time comes along: by it, git knows which files may have changed in the
    /// moment they were added.
    pub(super) fn take(&self, index: &Path) -> Result<PathBuf> {
        let name = format!("{}.index", self.name);
        self.remove();
        self.disk.copy_in(index, &name)?;
        Ok(self.disk.path().join(name))
    }

    fn remove(&self) {
        for ending in &ENDINGS[..2] {
            let _ = self.disk.remove(&format!("{}{ending}", self.name));
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
        let _ = self.disk.remove(&self.name);
    }
}

/// Removes what processes left behind that are gone.
fn sweep(disk: &dyn Disk) -> Result<()> {
    let mut names = BTreeSet::new();
    disk.list(ROOM, &mut |name, _| {
        if name.starts_with(PREFIX) {
            let own = name.split_once('.').map_or(name, |(own, _)| own);
            names.insert(format!("{ROOM}/{own}"));
        }
    })?;
    for name in names {
        let lock = match disk.open(&name, Open::Write) {
            Ok(file) if !file.try_lock()? => continue,
            other => other,
        };
        for ending in ENDINGS {
            let _ = disk.remove(&format!("{name}{ending}"));
        }
        drop(lock);
    }
    Ok(())
}
