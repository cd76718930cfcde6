//! Bringing projections to the disk: live beside a run that goes on, and rebuilt from the journal.
//!
//! Nothing here is synced: what a crash takes is rebuilt. A file is appended to at a known offset,
//! or written under a temporary name and renamed; a reader never sees half of one. What stands at
//! a file's place and is no regular file is moved to `journal/quarantine/`, never followed and
//! never removed. Length, time of change and digest of each file are kept in `cache/files/`, so
//! that a missing, cut, stale or edited one is noticed without reading it.

use super::{Change, LogFile, RunFold, TickFold};
use crate::disk::{Disk, File, Kind, Open, read_whole};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Position, Seq};
use crate::record::{Record, RunName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The folder of the daily files of the timed jobs.
pub const TICKS_FOLDER: &str = "timed-jobs";

const QUARANTINE: &str = "journal/quarantine";
const STATE: &str = "state.json";
const RUN_FOLDERS: [&str; 2] = ["checkpoints", "artifacts"];
const BUFFER_LEN: usize = 256 << 10;
const MAX_CACHE_LEN: u64 = 16 << 20;

/// What is known of a file that was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CachedFile {
    length: u64,
    modified_ns: i64,
    digest: String,
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
pub fn looks_right(disk: &dyn Disk, folder: &str, position: Position) -> bool {
    let Some(cached) = load_cached(disk, folder) else { return false };
    cached.position == position.0
        && this_boot(disk).is_ok_and(|boot| boot == cached.boot)
        && cached.files.iter().all(|(name, file)| {
            matches!(disk.stat(&format!("{folder}/{name}")), Ok(Some(stat))
                if stat.kind == Kind::File && stat.len == file.length && stat.modified_ns == file.modified_ns)
        })
}

/// The lock that says who publishes a folder; `None` while somebody else does.
pub fn lock_folder(disk: &dyn Disk, folder: &str) -> Result<Option<Arc<dyn File>>> {
    make_folders(disk, folder)?;
    let file = disk.open(folder, Open::Directory)?;
    Ok(file.try_lock()?.then_some(file))
}

/// Makes a folder and those above it. What stands in the way and is no folder is moved aside.
fn make_folders(disk: &dyn Disk, folder: &str) -> Result<()> {
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

/// What a fold says about files, independent of which fold it is.
trait Render {
    /// Takes a record in; `sink` is told name, bytes, and whether they follow what is there.
    fn record(&mut self, record: &Record, sink: &mut dyn FnMut(&str, &[u8], bool));
    /// Called once behind the last record.
    fn end(&mut self, sink: &mut dyn FnMut(&str, &[u8], bool));
    /// Whether records were missing.
    fn has_gap(&self) -> bool;
    fn position(&self) -> Position;
    fn sequence(&self) -> Seq;
    /// Folders that stand beside the files, whether or not there is anything in them.
    fn folders(&self) -> &'static [&'static str];
}

impl Render for RunFold {
    fn record(&mut self, record: &Record, sink: &mut dyn FnMut(&str, &[u8], bool)) {
        if self.request().is_none() {
            LogFile::ALL.iter().for_each(|log| sink(log.file_name(), b"", true));
        }
        self.apply(record, &mut |change| match change {
            Change::Append(log, bytes) => sink(log.file_name(), bytes, true),
            Change::Whole(name, bytes) => sink(&name, &bytes, false),
        });
    }

    fn end(&mut self, sink: &mut dyn FnMut(&str, &[u8], bool)) {
        sink(STATE, &self.state_json(), false);
    }

    fn has_gap(&self) -> bool {
        self.has_gap()
    }

    fn position(&self) -> Position {
        self.last_position()
    }

    fn sequence(&self) -> Seq {
        self.last_seq()
    }

    fn folders(&self) -> &'static [&'static str] {
        &RUN_FOLDERS
    }
}

impl Render for TickFold {
    fn record(&mut self, record: &Record, sink: &mut dyn FnMut(&str, &[u8], bool)) {
        if let Some((name, line)) = self.apply(record) {
            sink(&name, &line, true);
        }
    }

    fn end(&mut self, _: &mut dyn FnMut(&str, &[u8], bool)) {}

    fn has_gap(&self) -> bool {
        false
    }

    fn position(&self) -> Position {
        self.last_position()
    }

    fn sequence(&self) -> Seq {
        self.last_seq()
    }

    fn folders(&self) -> &'static [&'static str] {
        &[]
    }
}

/// A file of a folder that is not what the journal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The file, relative to the data directory.
    pub file: String,
    /// How it differs.
    pub what: &'static str,
}

/// What a rebuild found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// What was not as the journal says.
    pub differences: Vec<Difference>,
    /// How many files were written anew.
    pub rewritten: u64,
    /// Whether records are missing, so that nothing was touched.
    pub damaged: bool,
}

/// Feeds all records of a stream, in order, to what it is given, and answers whether that was
/// certainly all of them; may be asked to do it again.
pub type Source<'s> = dyn FnMut(&mut dyn FnMut(&Record)) -> Result<bool> + 's;

/// Compares the files of a run with its records, and with `write` makes them what they should be.
/// `last` is the position of the run's last record as the index knows it.
pub fn rebuild_run(
    disk: &dyn Disk,
    name: &RunName,
    last: Position,
    source: &mut Source<'_>,
    write: bool,
) -> Result<Rebuilt> {
    rebuild(disk, &name.folder(), last, source, write, &|| Box::new(RunFold::for_state()))
}

/// The same for the daily files of the timed jobs.
pub fn rebuild_ticks(
    disk: &dyn Disk,
    last: Position,
    source: &mut Source<'_>,
    write: bool,
) -> Result<Rebuilt> {
    rebuild(disk, TICKS_FOLDER, last, source, write, &|| Box::<TickFold>::default())
}

fn rebuild(
    disk: &dyn Disk,
    folder: &str,
    last: Position,
    source: &mut Source<'_>,
    write: bool,
    fresh: &dyn Fn() -> Box<dyn Render>,
) -> Result<Rebuilt> {
    let mut sums: BTreeMap<String, (u64, blake3::Hasher)> = BTreeMap::new();
    let mut sum = |name: &str, bytes: &[u8], append: bool| {
        let entry = match sums.get_mut(name) {
            Some(entry) => entry,
            None => sums.entry(name.to_owned()).or_default(),
        };
        if !append {
            *entry = Default::default();
        }
        entry.0 += bytes.len() as u64;
        entry.1.update(bytes);
    };
    let mut render = fresh();
    let source_is_whole = source(&mut |record| render.record(record, &mut sum))?;
    render.end(&mut sum);
    let whole = source_is_whole && !render.has_gap() && render.position() == last;
    let mut rebuilt = Rebuilt { damaged: !whole, ..Rebuilt::default() };
    let wanted: BTreeMap<String, (u64, blake3::Hash)> =
        sums.into_iter().map(|(name, (len, hasher))| (name, (len, hasher.finalize()))).collect();
    for (name, (len, digest)) in &wanted {
        let file = format!("{folder}/{name}");
        if let Some(what) = differs(disk, &file, *len, digest)? {
            rebuilt.differences.push(Difference { file, what });
        }
    }
    if !write || rebuilt.damaged {
        return Ok(rebuilt);
    }
    if !rebuilt.differences.is_empty() {
        let names = rebuilt.differences.iter().filter_map(|d| d.file.strip_prefix(folder)?.strip_prefix('/'));
        let names: BTreeSet<String> = names.map(str::to_owned).collect();
        rewrite(disk, folder, &names, source, &mut *fresh())?;
        for sub in render.folders() {
            make_folders(disk, &format!("{folder}/{sub}"))?;
        }
        rebuilt.rewritten = names.len() as u64;
    }
    let (position, sequence) = (last.0, render.sequence().0);
    let mut cached = Cached { position, sequence, ..Cached::default() };
    for (name, (length, digest)) in wanted {
        let stat = disk.stat(&format!("{folder}/{name}"))?;
        let modified_ns = stat.map_or(0, |s| s.modified_ns);
        cached.files.insert(name, CachedFile { length, modified_ns, digest: digest.to_hex().to_string() });
    }
    store_cached(disk, folder, &mut cached)?;
    Ok(rebuilt)
}

/// How a file differs from what it should be; `None` where it does not.
fn differs(disk: &dyn Disk, name: &str, len: u64, digest: &blake3::Hash) -> Result<Option<&'static str>> {
    // A parent that is no folder makes every name under it absent.
    let parents: Vec<_> = name.match_indices('/').map(|(at, _)| &name[..at]).collect();
    for parent in parents {
        match disk.stat(parent)? {
            Some(stat) if stat.kind == Kind::Directory => {}
            Some(_) => return Ok(Some("stands in what should be a folder and is none")),
            None => return Ok(Some("is missing")),
        }
    }
    match disk.stat(name)? {
        None => return Ok(Some("is missing")),
        Some(stat) if stat.kind != Kind::File => return Ok(Some("is not a regular file")),
        Some(stat) if stat.len < len => return Ok(Some("is shorter than it should be")),
        Some(stat) if stat.len > len => return Ok(Some("is longer than it should be")),
        Some(_) => {}
    }
    let file = disk.open(name, Open::Read)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; BUFFER_LEN];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut piece, at)?;
        if read == 0 {
            break;
        }
        hasher.update(&piece[..read]);
        at += read as u64;
    }
    Ok((hasher.finalize() != *digest).then_some("has other bytes"))
}

/// Writes some files of a folder anew, under temporary names first; `state.json` appears last.
fn rewrite(
    disk: &dyn Disk,
    folder: &str,
    names: &BTreeSet<String>,
    source: &mut Source<'_>,
    render: &mut dyn Render,
) -> Result<()> {
    make_folders(disk, folder)?;
    let mut files: BTreeMap<&str, (Arc<dyn File>, u64, Vec<u8>)> = BTreeMap::new();
    for name in names {
        let full = format!("{folder}/{name}");
        if let Some((parent, _)) = full.rsplit_once('/') {
            make_folders(disk, parent)?;
        }
        files.insert(name, (create_temporary(disk, &temporary(&full))?, 0, Vec::new()));
    }
    let mut failed = None;
    let mut put = |name: &str, bytes: &[u8], append: bool| {
        let Some((file, len, buffer)) = files.get_mut(name) else { return };
        if !append {
            *len = 0;
            buffer.clear();
            failed = file.set_len(0).err().or(failed.take());
        }
        buffer.extend_from_slice(bytes);
        if buffer.len() >= BUFFER_LEN {
            failed = file.write_at(buffer, *len).err().or(failed.take());
            *len += buffer.len() as u64;
            buffer.clear();
        }
    };
    source(&mut |record| render.record(record, &mut put))?;
    render.end(&mut put);
    if let Some(error) = failed {
        return Err(error);
    }
    for (file, len, buffer) in files.values() {
        file.write_at(buffer, *len)?;
    }
    drop(files);
    let last = |name: &&String| name.as_str() == STATE;
    for name in names.iter().filter(|n| !last(n)).chain(names.iter().filter(last)) {
        let full = format!("{folder}/{name}");
        clear(disk, &full)?;
        disk.rename(&temporary(&full), &full, true)?;
    }
    Ok(())
}

/// The daily files of the timed jobs, published as their records become durable, whoever recorded
/// them: by the one that holds the folder's lock at the moment.
#[derive(Debug)]
pub struct LiveTicks {
    disk: Arc<dyn Disk>,
    /// The file that was written to last, with what was noted of it.
    day: Option<(String, CachedFile, blake3::Hasher)>,
}

impl LiveTicks {
    /// Nothing was published yet.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, day: None }
    }

    /// From which sequence on records are to be published, if the files are as they were left by
    /// whoever published last; otherwise they have to be rebuilt. The folder's lock is held.
    pub fn next(&self) -> Option<Seq> {
        let cached = load_cached(&*self.disk, TICKS_FOLDER)?;
        (cached.sequence > 0 && looks_right(&*self.disk, TICKS_FOLDER, Position(cached.position)))
            .then_some(Seq(cached.sequence + 1))
    }

    /// Publishes the records that `source` gives, which begin where [`next`](Self::next) said;
    /// `false` where the files have to be rebuilt. The folder's lock is held.
    pub fn publish(&mut self, source: &mut Source<'_>) -> Result<bool> {
        let Some(mut cached) = load_cached(&*self.disk, TICKS_FOLDER) else { return Ok(false) };
        let mut fold = TickFold::default();
        let mut days: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let whole = source(&mut |record| {
            if let Some((day, line)) = fold.apply(record) {
                days.entry(day).or_default().extend_from_slice(&line);
            }
        })?;
        if !whole || fold.last_seq() == Seq::ZERO {
            return Ok(whole);
        }
        for (day, lines) in days {
            let full = format!("{TICKS_FOLDER}/{day}");
            let noted = cached.files.get(&day).cloned();
            let (noted, mut hasher) = match (noted, self.day.take()) {
                (Some(noted), Some((last, left, hasher))) if last == day && left == noted => {
                    (Some(noted), hasher)
                }
                (Some(noted), _) => {
                    let bytes = read_whole(&*self.disk, &full, noted.length)?;
                    let mut hasher = blake3::Hasher::new();
                    hasher.update(&bytes);
                    if hasher.finalize().to_hex().as_str() != noted.digest {
                        return Ok(false);
                    }
                    (Some(noted), hasher)
                }
                (None, _) => {
                    replace(&*self.disk, &full, b"")?;
                    (None, blake3::Hasher::new())
                }
            };
            let length = noted.map_or(0, |noted| noted.length);
            let file = self.disk.open(&full, Open::Write)?;
            file.write_at(&lines, length)?;
            hasher.update(&lines);
            let noted = CachedFile {
                length: length + lines.len() as u64,
                modified_ns: file.stat()?.modified_ns,
                digest: hasher.finalize().to_hex().to_string(),
            };
            cached.files.insert(day.clone(), noted.clone());
            self.day = Some((day, noted, hasher));
        }
        cached.position = fold.last_position().0;
        cached.sequence = fold.last_seq().0;
        store_cached(&*self.disk, TICKS_FOLDER, &mut cached)?;
        Ok(true)
    }
}

/// The files of a run that goes on, published as its records become durable.
#[derive(Debug)]
pub struct LiveRun {
    disk: Arc<dyn Disk>,
    folder: String,
    fold: RunFold,
    logs: [LiveLog; 3],
    wholes: Vec<(String, Vec<u8>)>,
    cached: Cached,
    dirty: bool,
    _lock: Arc<dyn File>,
}

#[derive(Debug)]
struct LiveLog {
    name: &'static str,
    file: Arc<dyn File>,
    len: u64,
    hasher: blake3::Hasher,
    pending: Vec<u8>,
}

impl LiveLog {
    /// Takes bytes in; many of them are written at once, without being copied.
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.pending.len() + bytes.len() < BUFFER_LEN {
            self.pending.extend_from_slice(bytes);
            return Ok(());
        }
        self.write_pending()?;
        self.write(bytes)
    }

    fn write_pending(&mut self) -> Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        let result = self.write(&pending);
        pending.clear();
        self.pending = pending;
        result
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.file.write_at(bytes, self.len)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl LiveRun {
    /// Makes the run's folder with its empty logs and takes its lock; `None` while somebody else,
    /// a rebuild, has it.
    pub fn create(disk: Arc<dyn Disk>, name: &RunName) -> Result<Option<Self>> {
        let folder = name.folder();
        let Some(lock) = lock_folder(&*disk, &folder)? else { return Ok(None) };
        for sub in RUN_FOLDERS {
            make_folders(&*disk, &format!("{folder}/{sub}"))?;
        }
        let log = |log: LogFile| -> Result<LiveLog> {
            let full = format!("{folder}/{}", log.file_name());
            replace(&*disk, &full, b"")?;
            let file = disk.open(&full, Open::Write)?;
            let (name, hasher) = (log.file_name(), blake3::Hasher::new());
            Ok(LiveLog { name, file, len: 0, hasher, pending: Vec::new() })
        };
        let logs = [log(LogFile::Worker)?, log(LogFile::Stdout)?, log(LogFile::Stderr)?];
        Ok(Some(Self {
            disk,
            folder,
            fold: RunFold::for_state(),
            logs,
            wholes: Vec::new(),
            cached: Cached::default(),
            dirty: false,
            _lock: lock,
        }))
    }

    /// What the records say so far.
    pub fn fold(&self) -> &RunFold {
        &self.fold
    }

    /// Takes a durable record in.
    pub fn apply(&mut self, record: &Record) -> Result<()> {
        let (logs, wholes) = (&mut self.logs, &mut self.wholes);
        let mut result = Ok(());
        self.fold.apply(record, &mut |change| match change {
            Change::Append(log, bytes) => {
                let written = logs[log as usize].append(bytes);
                result = std::mem::replace(&mut result, Ok(())).and(written);
            }
            Change::Whole(name, bytes) => wholes.push((name, bytes)),
        });
        self.dirty = true;
        result
    }

    fn write_logs(&mut self) -> Result<()> {
        self.logs.iter_mut().try_for_each(LiveLog::write_pending)
    }

    /// Brings the files to what the records say: logs first, then checkpoints, then `state.json`.
    pub fn flush(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        self.write_logs()?;
        let mut wholes = std::mem::take(&mut self.wholes);
        wholes.push((STATE.to_owned(), self.fold.state_json()));
        for (name, bytes) in wholes {
            let full = format!("{}/{name}", self.folder);
            replace(&*self.disk, &full, &bytes)?;
            let digest = blake3::hash(&bytes).to_hex().to_string();
            self.note(&name, bytes.len() as u64, digest)?;
        }
        let logs: Vec<_> = self
            .logs
            .iter()
            .map(|log| (log.name, log.len, log.hasher.finalize().to_hex().to_string()))
            .collect();
        for (name, len, digest) in logs {
            self.note(name, len, digest)?;
        }
        self.cached.position = self.fold.last_position().0;
        store_cached(&*self.disk, &self.folder, &mut self.cached)
    }

    fn note(&mut self, name: &str, length: u64, digest: String) -> Result<()> {
        let stat = self.disk.stat(&format!("{}/{name}", self.folder))?;
        let modified_ns = stat.map_or(0, |s| s.modified_ns);
        self.cached.files.insert(name.to_owned(), CachedFile { length, modified_ns, digest });
        Ok(())
    }
}
