//! Files that are published while their records are made.

use super::{
    Cached, PIECE, RUN_FOLDERS, STATE, TICKS_FOLDER, load_cached, lock_folder, looks_right, make_folders,
    replace, store_cached,
};
use crate::disk::{Disk, File, Open};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Position, Seq};
use crate::projection::{Change, LogFile, RunFold, TickFold};
use crate::record::{Record, RunName};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Feeds all records of a stream, in order, to what it is given, and answers whether that was
/// certainly all of them.
pub(crate) type Source<'s> = dyn FnMut(&mut dyn FnMut(&Record)) -> Result<bool> + 's;

/// The daily files of the timed jobs, published as their records become durable, whoever recorded
/// them: by the one that holds the folder's lock at the moment.
#[derive(Debug)]
pub(crate) struct LiveTicks {
    disk: Arc<dyn Disk>,
}

impl LiveTicks {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk }
    }

    /// The last record that the files show, if they are as they were left by whoever published last; otherwise
    /// they have to be rebuilt. The folder's lock is held.
    pub(crate) fn shown(&self) -> Option<(Seq, Position)> {
        let cached = load_cached(&*self.disk, TICKS_FOLDER)?;
        let (sequence, position) = (Seq(cached.sequence), Position(cached.position));
        (sequence > Seq::ZERO && looks_right(&*self.disk, TICKS_FOLDER, position))
            .then_some((sequence, position))
    }

    /// Publishes the records that `source` gives, which begin behind what is [`shown`](Self::shown);
    /// `false` where the files have to be rebuilt. The folder's lock is held.
    pub(crate) fn publish(&self, source: &mut Source<'_>) -> Result<bool> {
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
            let noted = cached.files.get(&day).map(|noted| noted.length);
            if noted.is_none() {
                replace(&*self.disk, &full, b"")?;
            }
            let length = noted.unwrap_or(0);
            self.disk.open(&full, Open::Write)?.write_at(&lines, length)?;
            cached.note(&*self.disk, TICKS_FOLDER, &day, length + lines.len() as u64)?;
        }
        cached.position = fold.last_position().0;
        cached.sequence = fold.last_seq().0;
        store_cached(&*self.disk, TICKS_FOLDER, &mut cached)?;
        Ok(true)
    }
}

/// The files of a run that goes on, published as its records become durable.
#[derive(Debug)]
pub(crate) struct LiveRun {
    disk: Arc<dyn Disk>,
    folder: String,
    fold: RunFold,
    logs: [LiveLog; 3],
    wholes: Vec<(String, Vec<u8>)>,
    cached: Cached,
    /// `state.json` as it was written last.
    state: Vec<u8>,
    dirty: bool,
    _lock: Arc<dyn File>,
}

/// One that grows. It is open only while it is written to, so that many runs can go on at once.
#[derive(Debug)]
struct LiveLog {
    name: &'static str,
    full: String,
    len: u64,
    pending: Vec<u8>,
    /// Something else stands in its place.
    is_displaced: bool,
}

impl LiveLog {
    /// Takes bytes in; many of them are written at once, without being copied.
    fn append(&mut self, disk: &dyn Disk, bytes: &[u8]) -> Result<()> {
        if self.pending.len() + bytes.len() < PIECE {
            self.pending.extend_from_slice(bytes);
            return Ok(());
        }
        self.write_pending(disk)?;
        self.write(disk, bytes)
    }

    fn write_pending(&mut self, disk: &dyn Disk) -> Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        let result = self.write(disk, &pending);
        pending.clear();
        self.pending = pending;
        result
    }

    fn write(&mut self, disk: &dyn Disk, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let file = disk.open(&self.full, Open::Write);
        let file = file.and_then(|file| Ok(file.stat()?.len == self.len).map(|same| same.then_some(file)));
        self.is_displaced = !matches!(file, Ok(Some(_)));
        let Some(file) = file? else {
            let message = format!("somebody has changed {} while its run goes on", self.full);
            return Err(Error::new(ErrorKind::Io, message));
        };
        file.write_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl LiveRun {
    /// Makes the run's folder with its empty logs and takes its lock; `None` while somebody else,
    /// a rebuild, has it.
    pub(crate) fn create(disk: Arc<dyn Disk>, name: &RunName) -> Result<Option<Self>> {
        let folder = name.folder();
        let Some(lock) = lock_folder(&*disk, &folder)? else { return Ok(None) };
        for sub in RUN_FOLDERS {
            make_folders(&*disk, &format!("{folder}/{sub}"))?;
        }
        let log = |log: LogFile| -> Result<LiveLog> {
            let full = format!("{folder}/{}", log.file_name());
            replace(&*disk, &full, b"")?;
            Ok(LiveLog { name: log.file_name(), full, len: 0, pending: Vec::new(), is_displaced: false })
        };
        let logs = [log(LogFile::Worker)?, log(LogFile::Stdout)?, log(LogFile::Stderr)?];
        Ok(Some(Self {
            disk,
            folder,
            fold: RunFold::for_state(),
            logs,
            wholes: Vec::new(),
            cached: Cached::default(),
            state: Vec::new(),
            dirty: false,
            _lock: lock,
        }))
    }

    /// What the records say so far.
    pub(crate) fn fold(&self) -> &RunFold {
        &self.fold
    }

    /// Whether a log was not there any more when it was to be written to, or was another.
    pub(crate) fn is_displaced(&self) -> bool {
        self.logs.iter().any(|log| log.is_displaced)
    }

    /// Takes a durable record in.
    pub(crate) fn apply(&mut self, record: &Record) -> Result<()> {
        let (disk, logs, wholes) = (&*self.disk, &mut self.logs, &mut self.wholes);
        let mut result = Ok(());
        self.fold.apply(record, &mut |change| match change {
            Change::Append(log, bytes) => {
                let written = logs[log as usize].append(disk, bytes);
                result = std::mem::replace(&mut result, Ok(())).and(written);
            }
            Change::Whole(name, bytes) => wholes.push((name, bytes)),
        });
        self.dirty = true;
        if self.fold.has_gap() {
            let message = format!("records of {} before record {} are missing", self.folder, record.position);
            return Err(Error::corrupt_data(message, "`runwal verify` tells what is damaged."));
        }
        result
    }

    /// Brings the files to what the records say: logs first, then checkpoints, then `state.json`.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        self.logs.iter_mut().try_for_each(|log| log.write_pending(&*self.disk))?;
        for (name, bytes) in std::mem::take(&mut self.wholes) {
            replace(&*self.disk, &format!("{}/{name}", self.folder), &bytes)?;
            self.cached.note(&*self.disk, &self.folder, &name, bytes.len() as u64)?;
        }
        let state = self.fold.state_json();
        if state != self.state {
            replace(&*self.disk, &format!("{}/{STATE}", self.folder), &state)?;
            self.state = state;
        }
        Ok(())
    }

    /// Notes how the files were left, so that the next one who opens the journal need not compare them.
    /// Whatever keeps it from that costs him the comparison and nothing else.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.flush()?;
        for log in &self.logs {
            self.cached.note(&*self.disk, &self.folder, log.name, log.len)?;
        }
        self.cached.note(&*self.disk, &self.folder, STATE, self.state.len() as u64)?;
        self.cached.position = self.fold.last_position().0;
        store_cached(&*self.disk, &self.folder, &mut self.cached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimWorld;
    use crate::position::{StreamId, Time};
    use crate::record::{Body, Channel};

    fn said(seq: u64, bytes: &[u8]) -> Record {
        Record {
            position: Position(10 + seq),
            stream: StreamId(1),
            seq: Seq(seq),
            time: Time(1),
            created_at: Time(1),
            ends: false,
            more: false,
            key: None,
            term: None,
            len: bytes.len() as u64,
            body: Body::Chunk(Channel::Stdout, bytes.to_vec()),
        }
    }

    #[test]
    fn a_hole_in_the_records_ends_the_publishing_of_a_run() {
        let disk: Arc<dyn Disk> = Arc::new(SimWorld::new().process(0));
        let mut run = LiveRun::create(disk, &RunName::parse(b"task/run").unwrap()).unwrap().unwrap();
        run.apply(&said(1, b"a")).unwrap();
        run.apply(&said(2, b"b")).unwrap();
        let error = run.apply(&said(4, b"d")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("before record 14 are missing"), "{error}");
    }
}
