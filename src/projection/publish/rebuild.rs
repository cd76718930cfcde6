//! Files compared with what their records say and, where that is asked for, made so.

use super::{
    Cached, PIECE, RUN_FOLDERS, STATE, TICKS_FOLDER, clear, create_temporary, make_folders, store_cached,
    temporary,
};
use crate::disk::{Disk, Kind, Open};
use crate::error::{Error, Result};
use crate::position::{Position, Seq};
use crate::projection::{Change, LogFile, RunFold, TickFold};
use crate::record::{Record, RunName};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

/// In what steps a file is read to be compared or copied.
const STEP: usize = 64 << 10;

/// How many bytes one folder keeps at most.
const MOST_KEPT: usize = 4 << 20;

/// What a fold says about files, independent of which fold it is.
trait Render: Debug + Send {
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

/// The files of one folder, compared with the folder's records as these come, in one pass. A file that is
/// missing, or turns out to be another, is written anew from there on under its temporary name; all of
/// them get their names in the end, when it is known that no record was missing.
///
/// Files are open only while something is read or written, so that many folders can be gone through at once.
#[derive(Debug)]
pub(crate) struct Rebuild {
    files: Files,
    render: Box<dyn Render>,
}

#[derive(Debug)]
struct Files {
    disk: Arc<dyn Disk>,
    folder: String,
    write: bool,
    by_name: BTreeMap<String, Target>,
    /// Memory taken by bytes that wait to be compared or written.
    kept: usize,
    failed: Option<Error>,
}

#[derive(Debug)]
struct Target {
    found: Found,
    /// How many bytes were compared or written.
    len: u64,
    pending: Vec<u8>,
}

/// What stands in a file's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// The same, as far as it was compared.
    Same,
    /// A file with other bytes.
    Other,
    /// No file: why not.
    Nothing(&'static str),
}

impl Rebuild {
    /// Begins with a run's files; with `write` makes them what they should be.
    pub(crate) fn of_run(disk: Arc<dyn Disk>, name: &RunName, write: bool) -> Self {
        Self::new(disk, name.folder(), write, Box::new(RunFold::for_state()))
    }

    /// The same for the daily files of the timed jobs.
    pub(crate) fn of_ticks(disk: Arc<dyn Disk>, write: bool) -> Self {
        Self::new(disk, TICKS_FOLDER.to_owned(), write, Box::<TickFold>::default())
    }

    fn new(disk: Arc<dyn Disk>, folder: String, write: bool, render: Box<dyn Render>) -> Self {
        let files = Files { disk, folder, write, by_name: BTreeMap::new(), kept: 0, failed: None };
        Self { files, render }
    }

    /// Takes the next record in.
    pub(crate) fn record(&mut self, record: &Record) -> Result<()> {
        let Self { files, render } = self;
        render.record(record, &mut |name, bytes, append| files.put(name, bytes, append));
        files.failed.take().map_or(Ok(()), Err)?;
        if files.kept > MOST_KEPT { files.flush() } else { Ok(()) }
    }

    /// How much memory bytes take that are kept until they are more.
    pub(crate) fn kept(&self) -> usize {
        self.files.kept
    }

    /// Keeps none.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.files.flush()
    }

    /// Behind the last record. `last` is the position of the folder's last record as the index knows it;
    /// `whole` says that nothing else is known to be missing.
    pub(crate) fn finish(mut self, last: Position, whole: bool) -> Result<Rebuilt> {
        let Self { files, render } = &mut self;
        render.end(&mut |name, bytes, append| files.put(name, bytes, append));
        files.failed.take().map_or(Ok(()), Err)?;
        files.flush()?;
        let differences = files.differences()?;
        let damaged = !whole || render.has_gap() || render.position() != last;
        let mut rebuilt = Rebuilt { differences, damaged, rewritten: 0 };
        if !files.write {
            return Ok(rebuilt);
        }
        if damaged {
            files.abandon()?;
            return Ok(rebuilt);
        }
        rebuilt.rewritten = files.give_names()?;
        if rebuilt.rewritten > 0 {
            for sub in render.folders() {
                make_folders(&*files.disk, &format!("{}/{sub}", files.folder))?;
            }
        }
        files.note(last, render.sequence())?;
        Ok(rebuilt)
    }
}

impl Files {
    /// Takes bytes in: those that follow in a file, or the whole of one. An error is kept for who asks.
    fn put(&mut self, name: &str, bytes: &[u8], append: bool) {
        if self.failed.is_none() {
            self.failed = self.try_to_put(name, bytes, append).err();
        }
    }

    fn try_to_put(&mut self, name: &str, bytes: &[u8], append: bool) -> Result<()> {
        if !append || !self.by_name.contains_key(name) {
            let target = self.look_at(name)?;
            if let Some(before) = self.by_name.insert(name.to_owned(), target) {
                self.kept -= before.pending.capacity();
            }
        }
        let Some(target) = self.by_name.get_mut(name) else { return Ok(()) };
        if append && target.pending.len() + bytes.len() < PIECE {
            self.kept -= target.pending.capacity();
            target.pending.extend_from_slice(bytes);
            self.kept += target.pending.capacity();
            return Ok(());
        }
        let full = format!("{}/{name}", self.folder);
        let pending = std::mem::take(&mut target.pending);
        self.kept -= pending.capacity();
        target.take(&*self.disk, &full, &pending, self.write)?;
        target.take(&*self.disk, &full, bytes, self.write)?;
        // There will be as much again.
        target.pending = pending;
        target.pending.clear();
        self.kept += target.pending.capacity();
        Ok(())
    }

    /// Begins with a file.
    fn look_at(&self, name: &str) -> Result<Target> {
        let full = format!("{}/{name}", self.folder);
        let found = what_stands_at(&*self.disk, &full)?;
        if self.write && found != Found::Same {
            begin_anew(&*self.disk, &full)?;
        }
        Ok(Target { found, len: 0, pending: Vec::new() })
    }

    fn flush(&mut self) -> Result<()> {
        for (name, target) in &mut self.by_name {
            let full = format!("{}/{name}", self.folder);
            let pending = std::mem::take(&mut target.pending);
            target.take(&*self.disk, &full, &pending, self.write)?;
        }
        self.kept = 0;
        Ok(())
    }

    /// What differs, now that all bytes are known.
    fn differences(&mut self) -> Result<Vec<Difference>> {
        let mut differences = Vec::new();
        for (name, target) in &mut self.by_name {
            let file = format!("{}/{name}", self.folder);
            let what = match target.found {
                Found::Nothing(what) => what,
                found => match self.disk.stat(&file)?.map(|stat| stat.len.cmp(&target.len)) {
                    None => "is missing",
                    Some(Ordering::Less) => "is shorter than it should be",
                    Some(Ordering::Greater) => "is longer than it should be",
                    Some(Ordering::Equal) if found == Found::Same => continue,
                    Some(Ordering::Equal) => "has other bytes",
                },
            };
            if target.found == Found::Same {
                target.turn_out_to_be_other(&*self.disk, &file, self.write)?;
            }
            differences.push(Difference { file, what });
        }
        Ok(differences)
    }

    /// Gives what was written its names, `state.json` last; answers how many there were.
    fn give_names(&self) -> Result<u64> {
        let written = self.by_name.iter().filter(|(_, target)| target.found != Found::Same);
        let (last, first): (Vec<_>, Vec<_>) = written.map(|(name, _)| name).partition(|name| *name == STATE);
        for name in first.iter().chain(&last) {
            let full = format!("{}/{name}", self.folder);
            clear(&*self.disk, &full)?;
            self.disk.rename(&temporary(&full), &full, true)?;
        }
        Ok((first.len() + last.len()) as u64)
    }

    /// Removes what was written.
    fn abandon(&self) -> Result<()> {
        for (name, _) in self.by_name.iter().filter(|(_, target)| target.found != Found::Same) {
            self.disk.remove(&temporary(&format!("{}/{name}", self.folder)))?;
        }
        Ok(())
    }

    fn note(&self, last: Position, sequence: Seq) -> Result<()> {
        let mut cached = Cached { position: last.0, sequence: sequence.0, ..Cached::default() };
        for (name, target) in &self.by_name {
            cached.note(&*self.disk, &self.folder, name, target.len)?;
        }
        store_cached(&*self.disk, &self.folder, &mut cached)
    }
}

impl Target {
    /// Compares the next bytes, or writes them.
    fn take(&mut self, disk: &dyn Disk, full: &str, bytes: &[u8], write: bool) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.found == Found::Same && !is_at(disk, full, self.len, bytes)? {
            self.turn_out_to_be_other(disk, full, write)?;
        }
        if write && self.found != Found::Same {
            disk.open(&temporary(full), Open::Write)?.write_at(bytes, self.len)?;
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// What was the same so far is not what it should be: it is written anew, with what was the same.
    fn turn_out_to_be_other(&mut self, disk: &dyn Disk, full: &str, write: bool) -> Result<()> {
        self.found = Found::Other;
        if !write {
            return Ok(());
        }
        begin_anew(disk, full)?;
        if self.len == 0 {
            return Ok(());
        }
        let (from, to) = (disk.open(full, Open::Read)?, disk.open(&temporary(full), Open::Write)?);
        let (mut piece, mut at) = (vec![0; STEP], 0);
        while at < self.len {
            let wanted = piece.len().min(usize::try_from(self.len - at).unwrap_or(usize::MAX));
            let read = from.read_at(&mut piece[..wanted], at)?;
            if read == 0 {
                return Err(Error::new(
                    crate::error::ErrorKind::Retry,
                    format!("{full} was cut off by somebody while it was compared"),
                ));
            }
            to.write_at(&piece[..read], at)?;
            at += read as u64;
        }
        Ok(())
    }
}

/// What stands at a name, without a look at its bytes.
fn what_stands_at(disk: &dyn Disk, name: &str) -> Result<Found> {
    // A parent that is no folder makes every name under it absent.
    for (at, _) in name.match_indices('/') {
        match disk.stat(&name[..at])? {
            Some(stat) if stat.kind == Kind::Directory => {}
            Some(_) => return Ok(Found::Nothing("stands in what should be a folder and is none")),
            None => return Ok(Found::Nothing("is missing")),
        }
    }
    Ok(match disk.stat(name)? {
        None => Found::Nothing("is missing"),
        Some(stat) if stat.kind != Kind::File => Found::Nothing("is not a regular file"),
        Some(_) => Found::Same,
    })
}

/// An empty file under the temporary name.
fn begin_anew(disk: &dyn Disk, full: &str) -> Result<()> {
    if let Some((parent, _)) = full.rsplit_once('/') {
        make_folders(disk, parent)?;
    }
    create_temporary(disk, &temporary(full)).map(drop)
}

/// Whether these bytes stand there in a file.
fn is_at(disk: &dyn Disk, name: &str, offset: u64, bytes: &[u8]) -> Result<bool> {
    let file = disk.open(name, Open::Read)?;
    let mut piece = vec![0; STEP.min(bytes.len())];
    let mut at = offset;
    for wanted in bytes.chunks(STEP) {
        let read = file.read_at(&mut piece[..wanted.len()], at)?;
        if piece[..read] != *wanted {
            return Ok(false);
        }
        at += read as u64;
    }
    Ok(true)
}
