//! okaywal: an entry for each append, one log file that is written before it is used.
//!
//! It hands events out while it opens and never again, so a scan is another opening; it finds no event by
//! its stream and sequence. Nothing is ever checkpointed, which would give the events up.

use super::{Engine, Reader, Setup, Writer};
use crate::Result;
use crate::event::{BURST, Events, Layout, Seen};
use okaywal::{
    Configuration, Entry, EntryId, EntryWriter, LogManager, ReadChunkResult, SegmentReader, WriteAheadLog,
};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What it adds to an event, at most: the entry, the chunk, the stream.
const EVENT_OVERHEAD: u64 = 32;

/// Each chunk begins with the stream.
const STREAM_LEN: usize = 4;

pub(crate) struct Okaywal {
    dir: PathBuf,
    setup: Setup,
    log: WriteAheadLog,
}

impl Okaywal {
    pub(crate) fn open(dir: &Path, setup: &Setup) -> Result<Self> {
        let log = open(dir, setup, &Arc::default())?;
        Ok(Self { dir: dir.to_owned(), setup: *setup, log })
    }
}

fn open(dir: &Path, setup: &Setup, seen: &Arc<Mutex<Seen>>) -> Result<WriteAheadLog> {
    let room = setup.events * (setup.len as u64 + EVENT_OVERHEAD);
    let config = Configuration::default_for(dir.join("okaywal"))
        .preallocate_bytes(u32::try_from(room.max(1 << 20))?)
        .checkpoint_after_bytes(u64::MAX)
        .buffer_bytes(64 << 10);
    Ok(config.open(Manager(Arc::clone(seen)))?)
}

/// Checks everything that is recovered.
#[derive(Debug)]
struct Manager(Arc<Mutex<Seen>>);

impl LogManager for Manager {
    fn recover(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut content = Vec::new();
        while let ReadChunkResult::Chunk(mut chunk) = entry.read_chunk()? {
            content.clear();
            chunk.read_to_end(&mut content)?;
            if !chunk.check_crc()? {
                return Err(io::Error::other("a broken chunk"));
            }
            seen.see(content.get(STREAM_LEN..).unwrap_or_default());
        }
        Ok(())
    }

    fn checkpoint_to(&mut self, _: EntryId, _: &mut SegmentReader, _: &WriteAheadLog) -> io::Result<()> {
        Ok(())
    }
}

fn write(entry: &mut EntryWriter<'_>, stream: u32, event: &[u8]) -> Result<()> {
    let mut chunk = entry.begin_chunk(u32::try_from(STREAM_LEN + event.len())?)?;
    chunk.write_all(&stream.to_le_bytes())?;
    chunk.write_all(event)?;
    chunk.finish()?;
    Ok(())
}

impl Engine for Okaywal {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(Handle(&self.log)))
    }

    fn fill(&self, layout: &Layout, events: &mut Events) -> Result<()> {
        let mut entry = self.log.begin_entry()?;
        for (stream, first) in layout.bursts() {
            for seq in first..first + BURST {
                write(&mut entry, stream, events.make(seq))?;
            }
        }
        entry.commit()?;
        Ok(())
    }

    fn scan(&self) -> Result<Seen> {
        let seen = Arc::default();
        open(&self.dir, &self.setup, &seen)?.shutdown()?;
        let seen = *seen.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(seen)
    }

    fn reader(&self, _layout: &Layout) -> Result<Option<Box<dyn Reader + '_>>> {
        Ok(None)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.log.shutdown()?)
    }
}

struct Handle<'o>(&'o WriteAheadLog);

impl Writer for Handle<'_> {
    fn append(&mut self, stream: u32, _seq: u64, event: &[u8]) -> Result<()> {
        let mut entry = self.0.begin_entry()?;
        write(&mut entry, stream, event)?;
        entry.commit()?;
        Ok(())
    }
}
