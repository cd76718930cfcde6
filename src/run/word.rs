//! The worker's own word: what it says of its outcome, and the files it leaves.
//!
//! Both come from a process that may be anything. Nothing is followed out of the data directory,
//! nothing is read past its limit, and what is refused is told.

use crate::disk::{Disk, Kind, Open, read_whole};
use crate::engine::outcome_name;
use crate::error::{Error, ErrorKind, Result};
use crate::position::StreamId;
use crate::run::cancel::Cancel;
use crate::run::recorder::{Artifact, Outcome};
use serde::Deserialize;
use std::ffi::OsString;
use std::path::Path;

/// The longest file that tells an outcome.
const MAX_OUTCOME_LEN: u64 = 64 << 10;
/// The longest summary in it.
const MAX_SUMMARY_LEN: usize = 4 << 10;
/// How many of its files are listed, so that the list fits into the batch that ends the run.
const MAX_ARTIFACTS: usize = 1_000;
/// How long all of their names may be together, as JSON.
const MAX_NAMES_LEN: usize = 256 << 10;
/// How many entries of its folders are looked at.
const MAX_ENTRIES: u64 = 50_000;
/// How many bytes of its files are read for their digests, in all.
const MAX_DIGESTED_LEN: u64 = 8 << 30;
/// How deep folders may stand in each other.
const MAX_DEPTH: usize = 32;

/// What a worker says of its outcome.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) outcome: Outcome,
    pub(super) summary: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    outcome: Option<ToldOutcome>,
    summary: Option<String>,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    needs_human: bool,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum ToldOutcome {
    Completed,
    Failed,
    Blocked,
    NeedsHuman,
    Cancelled,
}

impl Told {
    fn word(self) -> Result<Word, String> {
        let outcome = match (self.outcome, self.blocked, self.needs_human) {
            (Some(ToldOutcome::Completed), false, false) => Outcome::Completed,
            (Some(ToldOutcome::Failed), false, false) => Outcome::Failed,
            (Some(ToldOutcome::Cancelled), false, false) => Outcome::Cancelled,
            (None | Some(ToldOutcome::Blocked | ToldOutcome::Failed), true, false) => Outcome::Blocked,
            (Some(ToldOutcome::Blocked), false, false) => Outcome::Blocked,
            (None | Some(ToldOutcome::NeedsHuman | ToldOutcome::Failed), false, true) => Outcome::NeedsHuman,
            (Some(ToldOutcome::NeedsHuman), false, false) => Outcome::NeedsHuman,
            (None, false, false) => return Err("it tells no outcome".to_owned()),
            _ => return Err("outcome, blocked and needsHuman contradict each other".to_owned()),
        };
        let summary = self.summary.filter(|summary| !summary.is_empty());
        if summary.as_ref().is_some_and(|summary| summary.len() > MAX_SUMMARY_LEN) {
            return Err(format!("its summary is over the limit of {MAX_SUMMARY_LEN} bytes"));
        }
        Ok(Word { outcome, summary })
    }
}

/// The places a worker is told of.
#[derive(Debug)]
pub(super) struct Places {
    artifacts: String,
    outcome: String,
}

impl Places {
    /// Makes them. They are told to the worker only where the data directory has a path.
    pub(super) fn make(disk: &dyn Disk, folder: &str, stream: StreamId) -> Result<Self> {
        let artifacts = format!("{folder}/artifacts");
        for (i, _) in artifacts.match_indices('/') {
            disk.create_dir(&artifacts[..i])?;
        }
        disk.create_dir(&artifacts)?;
        disk.create_dir("cache")?;
        let outcome = outcome_name(stream);
        if disk.stat(&outcome)?.is_some() {
            disk.remove(&outcome)?;
        }
        Ok(Self { artifacts, outcome })
    }

    /// The variables that tell a worker of them.
    pub(super) fn variables(&self, data: &Path) -> [(OsString, OsString); 2] {
        [
            ("RUNWAL_ARTIFACTS".into(), data.join(&self.artifacts).into_os_string()),
            ("RUNWAL_OUTCOME".into(), data.join(&self.outcome).into_os_string()),
        ]
    }

    /// Reads what the worker says, once. `Err` has the reason why it does not count.
    pub(super) fn word(&self, disk: &dyn Disk) -> Result<Option<Word>, String> {
        let told = match disk.stat(&self.outcome) {
            Ok(None) => return Ok(None),
            Ok(Some(stat)) if stat.kind != Kind::File => {
                Err(format!("it is {}, not a regular file", stat.kind.describe()))
            }
            Ok(Some(_)) => read_whole(disk, &self.outcome, MAX_OUTCOME_LEN).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        // Read or not, it has had its say. A directory stays.
        let _ = disk.remove(&self.outcome);
        let told: Told =
            serde_json::from_slice(&told?).map_err(|e| format!("it is not what it should be: {e}"))?;
        told.word().map(Some)
    }

    /// The worker's files by name, with size and digest, and what is not among them, in words.
    /// Stops taking digests once `cancel` asks to stop another time.
    pub(super) fn artifacts(&self, disk: &dyn Disk, cancel: &Cancel) -> (Vec<Artifact>, Vec<String>) {
        let before = cancel.count();
        let stop = || cancel.count() != before;
        let mut found = Found {
            listed: Vec::new(),
            names_len: 0,
            entries: 0,
            over: 0,
            refused: Vec::new(),
            bytes_left: MAX_DIGESTED_LEN,
            stop: &stop,
        };
        found.folder(disk, &self.artifacts, 0);
        found.listed.sort_by(|a, b| a.path.cmp(&b.path));
        let mut words = found.refused;
        if found.over > 0 {
            words.push(format!(
                "{} more files are over the limit of {MAX_ARTIFACTS} that are listed",
                found.over
            ));
        }
        let prefix = self.artifacts.len() - "artifacts".len();
        found.listed.iter_mut().for_each(|artifact| drop(artifact.path.drain(..prefix)));
        (found.listed, words)
    }
}

struct Found<'f> {
    listed: Vec<Artifact>,
    names_len: usize,
    entries: u64,
    over: u64,
    refused: Vec<String>,
    bytes_left: u64,
    stop: &'f dyn Fn() -> bool,
}

impl Found<'_> {
    fn refuse(&mut self, name: &str, why: &str) {
        const ENOUGH: usize = 20;
        if self.refused.len() < ENOUGH {
            self.refused.push(format!("{}: {why}", name.escape_debug()));
        }
    }

    fn folder(&mut self, disk: &dyn Disk, folder: &str, depth: usize) {
        let mut entries = Vec::new();
        let mut more = 0;
        let listed = disk.list(folder, &mut |name, kind| {
            if entries.len() <= 2 * MAX_ARTIFACTS {
                entries.push((format!("{folder}/{name}"), kind));
            } else {
                more += 1;
            }
        });
        self.over += more;
        if let Err(error) = listed {
            return self.refuse(folder, &error.to_string());
        }
        entries.sort_unstable();
        for (name, kind) in entries {
            self.entries += 1;
            match kind {
                _ if self.entries > MAX_ENTRIES => self.over += 1,
                Kind::Directory if depth >= MAX_DEPTH => {
                    self.refuse(&name, &format!("folders deeper than {MAX_DEPTH} are not looked into"));
                }
                Kind::Directory => self.folder(disk, &name, depth + 1),
                Kind::File => self.file(disk, name),
                other => self.refuse(&name, &format!("{} is not listed", other.describe())),
            }
        }
    }

    fn file(&mut self, disk: &dyn Disk, path: String) {
        let name_len = serde_json::to_string(&path).map_or(usize::MAX, |json| json.len());
        if self.listed.len() >= MAX_ARTIFACTS || name_len > MAX_NAMES_LEN - self.names_len {
            self.over += 1;
            return;
        }
        match self.digest(disk, &path) {
            Ok((bytes, digest)) => {
                self.names_len += name_len;
                if digest.is_none() {
                    self.refuse(&path, "it is listed without a digest: it is too long, or there was a hurry");
                }
                self.listed.push(Artifact { path, bytes: Some(bytes), digest });
            }
            Err(error) => self.refuse(&path, &error.to_string()),
        }
    }

    /// Length and BLAKE3 of a file, in hex: of what it is at first, should it go on growing.
    fn digest(&mut self, disk: &dyn Disk, name: &str) -> Result<(u64, Option<String>)> {
        let file = disk.open(name, Open::Read)?;
        let len = file.stat()?.len;
        if len > self.bytes_left {
            return Ok((len, None));
        }
        self.bytes_left -= len;
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; 1 << 18];
        let mut at = 0;
        while at < len {
            if (self.stop)() {
                self.bytes_left = 0;
                return Ok((len, None));
            }
            let want = piece.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
            let read = file.read_at(&mut piece[..want], at)?;
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            at += read as u64;
        }
        Ok((at, Some(hasher.finalize().to_hex().to_string())))
    }
}

/// A file that the worker was to write, as it was before it ran.
#[derive(Debug)]
pub(super) struct Expected {
    folder: crate::disk::os::OsDisk,
    name: String,
    before: Option<crate::disk::Stat>,
}

impl Expected {
    /// Looks at it before the worker runs. Where its folder is not there yet, that is all there is
    /// to say about it.
    pub(super) fn look(path: &Path) -> Result<Self> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| Error::misuse(format!("\"{}\" is no name of a file in UTF-8", path.display())))?;
        let folder = crate::disk::os::OsDisk::open(folder)?;
        let before = folder.stat(name)?;
        Ok(Self { folder, name: name.to_owned(), before })
    }

    /// What the worker wrote; `Err` has the reason why there is nothing.
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>, String> {
        let after = self.folder.stat(&self.name).map_err(|e| e.to_string())?;
        let Some(after) = after else { return Err("the worker did not write it".to_owned()) };
        if after.kind != Kind::File {
            return Err(format!("it is {}, not a regular file", after.kind.describe()));
        }
        if Some(after) == self.before {
            return Err("the worker left it as it was before".to_owned());
        }
        match read_whole(&self.folder, &self.name, limit) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                Err(format!("it has {} bytes, more than the limit of {limit}", after.len))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}
