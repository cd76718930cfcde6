//! Who is alive: each writing engine holds the lock on a file of its own for as long as it lives.
//! A process id can be another process's by now; a lock goes with its holder.

use super::Journal;
use super::segment::FOLDER;
use crate::disk::{File, Open};
use crate::error::{Error, ErrorKind, Result};
use std::fmt::Write as _;
use std::sync::Arc;

fn folder() -> String {
    format!("{FOLDER}/live")
}

fn file_name(recorder: &[u8; 16]) -> String {
    let mut name = folder();
    name.push('/');
    for byte in recorder {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// The lock that says "this recorder is alive"; given up by [`Alive::end`] or with the process.
#[derive(Debug)]
pub(crate) struct Alive {
    journal: Journal,
    name: String,
    _file: Arc<dyn File>,
}

impl Alive {
    /// Begins a life. Under the journal's lock, so that nobody sees the file before it is locked.
    pub(crate) fn begin(journal: &Journal, recorder: &[u8; 16]) -> Result<Self> {
        let name = file_name(recorder);
        let file = journal.locked(|core| {
            core.disk.create_dir(&folder())?;
            let file = core.disk.open(&name, Open::CreateNew)?;
            if !file.try_lock()? {
                return Err(Error::new(ErrorKind::Io, format!("{name} was locked by somebody else at once")));
            }
            Ok(file)
        })?;
        Ok(Self { journal: journal.clone(), name, _file: file })
    }

    /// Ends it in order: nothing of this recorder is left to be recovered.
    pub(crate) fn end(self) -> Result<()> {
        self.journal.locked(|core| {
            core.keep_index(true);
            let named = core.check_name();
            let removed = core.disk.remove(&self.name);
            named.and(removed)
        })
    }
}

/// The certainty that a recorder is dead, for as long as this is held.
#[derive(Debug)]
pub(crate) struct Dead {
    _file: Option<Arc<dyn File>>,
}

impl Dead {
    /// `None` if the recorder is alive.
    pub(crate) fn certify(journal: &Journal, recorder: &[u8; 16]) -> Result<Option<Self>> {
        let name = file_name(recorder);
        journal.locked(|core| match core.disk.open(&name, Open::Write) {
            Ok(file) => Ok(file.try_lock()?.then_some(Self { _file: Some(file) })),
            Err(error) if error.is_missing() => Ok(Some(Self { _file: None })),
            Err(error) => Err(error),
        })
    }
}

/// Removes the files of recorders that are dead; one without a file is as dead as one without a
/// lock.
pub(crate) fn sweep(journal: &Journal) -> Result<()> {
    journal.locked(|core| {
        let mut names = Vec::new();
        core.disk.list(&folder(), &mut |name, _| names.push(format!("{}/{name}", folder())))?;
        for name in names {
            let dead = core.disk.open(&name, Open::Write).is_ok_and(|file| file.try_lock().unwrap_or(false));
            if dead {
                core.disk.remove(&name)?;
            }
        }
        Ok(())
    })
}

/// Whether a recorder's lock is held, as far as a look without the journal's lock can tell.
pub(crate) fn seems_alive(disk: &dyn crate::disk::Disk, recorder: &[u8; 16]) -> bool {
    match disk.open(&file_name(recorder), Open::Read) {
        Ok(file) => !file.try_lock().unwrap_or(false),
        Err(_) => false,
    }
}
