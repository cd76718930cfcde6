//! Bringing projections to the disk: live beside a run that goes on, and rebuilt from the journal.
//!
//! Nothing here is synced: what a crash takes is rebuilt. A file is appended to at a known offset,
//! or written under a temporary name and renamed; a reader never sees half of one. What stands at
//! a file's place and is no regular file is moved to `journal/quarantine/`, never followed and
//! never removed. Length and time of change of each file are kept in `cache/files/`, so that whoever looks
//! notices a missing, cut, stale or edited one without reading it.

mod live;
mod rebuild;

pub(crate) use live::{LiveRun, LiveTicks};
pub(crate) use rebuild::Rebuild;
pub use rebuild::{Difference, Rebuilt};

use crate::disk::{Disk, File, Kind, Open, read_whole};
use crate::error::{Error, ErrorKind, Result};
use crate::position::Position;
use crate::record::RunName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The folder of the daily files of the timed jobs.
pub(crate) const TICKS_FOLDER: &str = "timed-jobs";

const QUARANTINE: &str = "journal/quarantine";
const STATE: &str = "state.json";
const RUN_FOLDERS: [&str; 2] = ["checkpoints", "artifacts"];
/// From how many bytes on what goes to a file is written at once.
const PIECE: usize = 256 << 10;
const MAX_CACHE_LEN: u64 = 16 << 20;

/// What is known of a file that was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CachedFile {
    length: u64,
    modified_ns: i64,
}

/// What is known of the files of a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cached {
    /// The boot in which it was noted. Files are not synced when they are published: a power cut may
    /// leave their lengths and times without their bytes, so what is from before is looked at anew.
    #[serde(default)]
    boot: String,
    /// The position of the last record they show, and its sequence.
    position: u64,
    #[serde(default)]
    sequence: u64,
    files: BTreeMap<String, CachedFile>,
}

impl Cached {
    /// Notes how a file of `folder` was left.
    fn note(&mut self, disk: &dyn Disk, folder: &str, name: &str, length: u64) -> Result<()> {
        let modified_ns = disk.stat(&format!("{folder}/{name}"))?.map_or(0, |stat| stat.modified_ns);
        self.files.insert(name.to_owned(), CachedFile { length, modified_ns });
        Ok(())
    }
}

fn cache_name(folder: &str) -> String {
    format!("cache/files/{folder}.json")
}

fn this_boot(disk: &dyn Disk) -> Result<String> {
    Ok(format!("{:032x}", u128::from_be_bytes(disk.session()?.boot)))
}

fn load_cached(disk: &dyn Disk, folder: &str) -> Option<Cached> {
    let bytes = read_whole(disk, &cache_name(folder), MAX_CACHE_LEN).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn store_cached(disk: &dyn Disk, folder: &str, cached: &mut Cached) -> Result<()> {
    let name = cache_name(folder);
    cached.boot = this_boot(disk)?;
    if let Some((parent, _)) = name.rsplit_once('/') {
        make_folders(disk, parent)?;
    }
    let bytes = serde_json::to_vec(cached).unwrap_or_default();
    replace(disk, &name, &bytes)
}

/// Whether everything published for `folder` still looks as it was left, and shows all records up
/// to `position`.
pub(crate) fn looks_right(disk: &dyn Disk, folder: &str, position: Position) -> bool {
    let Some(cached) = load_cached(disk, folder) else { return false };
    cached.position == position.0
        && this_boot(disk).is_ok_and(|boot| boot == cached.boot)
        && cached.files.iter().all(|(name, file)| {
            matches!(disk.stat(&format!("{folder}/{name}")), Ok(Some(stat))
                if stat.kind == Kind::File && stat.len == file.length && stat.modified_ns == file.modified_ns)
        })
}

/// The lock that says who publishes a folder; `None` while somebody else does.
pub(crate) fn lock_folder(disk: &dyn Disk, folder: &str) -> Result<Option<Arc<dyn File>>> {
    make_folders(disk, folder)?;
    let file = disk.open(folder, Open::Directory)?;
    Ok(file.try_lock()?.then_some(file))
}

/// Makes a folder and those above it. What stands in the way and is no folder is moved aside.
fn make_folders(disk: &dyn Disk, folder: &str) -> Result<()> {
    if matches!(disk.stat(folder), Ok(Some(stat)) if stat.kind == Kind::Directory) {
        return Ok(());
    }
    let ends = folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]);
    for end in ends {
        let part = &folder[..end];
        if disk.stat(part)?.is_some_and(|stat| stat.kind != Kind::Directory) {
            move_aside(disk, part)?;
        }
        disk.create_dir(part)?;
    }
    Ok(())
}

/// Makes the folders that the runs of a task share: what stands in their way must not be moved aside by two who
/// meet there.
pub(crate) fn make_shared_folders(disk: &dyn Disk, run: &RunName) -> Result<()> {
    let folder = run.folder();
    for shared in [folder.clone(), cache_name(&folder)] {
        make_folders(disk, shared.rsplit_once('/').map_or(&*shared, |(parent, _)| parent))?;
    }
    Ok(())
}

/// Moves what is no projection out of a projection's place, under a name that is free.
fn move_aside(disk: &dyn Disk, name: &str) -> Result<()> {
    disk.create_dir(QUARANTINE)?;
    let last = name.rsplit('/').next().unwrap_or(name);
    let hash = blake3::hash(name.as_bytes()).to_hex();
    for n in 0..1_000_000 {
        if disk.rename(name, &format!("{QUARANTINE}/{}-{n}-{last}", &hash[..12]), false)? {
            return Ok(());
        }
    }
    Err(Error::new(
        ErrorKind::Io,
        format!("{name} cannot be moved aside: the quarantine is full of its likes"),
    ))
}

/// The temporary name of a file that is being replaced.
fn temporary(name: &str) -> String {
    let (folder, last) = name.rsplit_once('/').unwrap_or((".", name));
    format!("{folder}/.tmp-{last}")
}

fn create_temporary(disk: &dyn Disk, name: &str) -> Result<Arc<dyn File>> {
    match disk.open(name, Open::CreateNew) {
        Err(_) if disk.stat(name)?.is_some() => {
            clear(disk, name)?;
            if disk.stat(name)?.is_some() {
                disk.remove(name)?;
            }
            disk.open(name, Open::CreateNew)
        }
        other => other,
    }
}

/// Moves aside what is not a regular file, and leaves one.
fn clear(disk: &dyn Disk, name: &str) -> Result<()> {
    match disk.stat(name)? {
        Some(stat) if stat.kind != Kind::File => move_aside(disk, name),
        _ => Ok(()),
    }
}

/// Replaces a file in one step.
fn replace(disk: &dyn Disk, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = temporary(name);
    create_temporary(disk, &temporary)?.write_at(bytes, 0)?;
    clear(disk, name)?;
    disk.rename(&temporary, name, true)?;
    Ok(())
}
