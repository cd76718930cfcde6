//! A journal in a directory of its own, with the ledger of all that was promised of it.

use crate::ledger::{Finding, Ledger};
use crate::machine::Pretence;
use crate::process::tool;
use crate::worker::Orders;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A journal with its ledger.
pub(crate) struct Journal {
    pub(crate) dir: PathBuf,
    seed: u64,
    pub(crate) life: u64,
    pub(crate) ledger: Ledger,
}

impl Journal {
    /// One that is still to be made, in this directory.
    pub(crate) fn new(place: &Path, seed: u64) -> Self {
        Self { dir: place.join("data"), seed, life: 0, ledger: Ledger::default() }
    }

    /// The orders of the next process.
    pub(crate) fn orders(&mut self, steps: u64) -> Orders {
        self.life += 1;
        Orders {
            dir: self.dir.clone(),
            seed: self.seed,
            life: self.life,
            steps,
            retry: self.ledger.retry(),
            ..Orders::default()
        }
    }

    /// Checks what was left, by reading and perhaps by opening for writing.
    pub(crate) fn look(&mut self, write: bool) -> Finding {
        self.ledger.check_reading(&self.dir, Pretence::default(), write)?;
        if write { self.ledger.check_writing(&self.dir, Pretence::default()) } else { Ok(()) }
    }
}

/// A new directory for a journal, in memory where the system has such a place.
pub(crate) fn place() -> TempDir {
    let memory = Path::new("/dev/shm");
    let at = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("runwal-atlas-").tempdir_in(at).unwrap()
}

/// Keeps what a complaint is about, and says where.
pub(crate) fn keep(place: TempDir, complaint: &str) -> String {
    format!("{complaint} (kept in {})", place.keep().display())
}

/// Keeps a copy of a journal, as its disk goes, and says where.
pub(crate) fn keep_copy(dir: &Path) -> String {
    let kept = tempfile::Builder::new().prefix("runwal-atlas-").tempdir().unwrap().keep();
    match tool("cp", &["-a", dir.to_str().unwrap(), kept.to_str().unwrap()]) {
        Ok(_) => format!("a copy is kept in {}", kept.display()),
        Err(why) => format!("no copy could be kept: {why}"),
    }
}
