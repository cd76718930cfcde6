//! raft-engine: a region for each stream, synced writes, which it groups itself.
//!
//! Where small single appends are measured, its log files are written before they are used, as it can. A
//! journal is filled with a batch for each burst, the only way in which it takes several events at once.

use super::{Engine, Reader, Setup, Writer};
use crate::Result;
use crate::event::{BURST, Events, Layout, Seen, sequence_of};
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine as Log, LogBatch, MessageExt, ReadableSize};
use std::path::Path;

/// From this length on it was slower with files that were written before they were used.
const LARGE_LEN: usize = 4096;

/// How many entries are read at once.
const PAGE: u64 = 1024;

pub(crate) struct RaftEngine(Log);

/// An event says itself which one of its stream it is.
struct Event;

impl MessageExt for Event {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        sequence_of(entry.get_value()).unwrap_or_default()
    }
}

impl RaftEngine {
    pub(crate) fn open(dir: &Path, setup: &Setup) -> Result<Self> {
        let dir = dir.to_str().ok_or("a path that is not UTF-8")?.to_owned();
        let mut config = Config { dir, ..Config::default() };
        if setup.durable && setup.len < LARGE_LEN {
            let room = (setup.events * (setup.len as u64 + 64)).max(config.target_file_size.0);
            config.prefill_for_recycle = true;
            config.prefill_limit = Some(ReadableSize(room));
        }
        Ok(Self(Log::open(config)?))
    }
}

fn entry(event: &[u8]) -> BytesValue {
    let mut entry = BytesValue::new();
    entry.set_value(event.to_vec());
    entry
}

/// Regions count from 1.
fn region(stream: u32) -> u64 {
    u64::from(stream) + 1
}

impl Engine for RaftEngine {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(Handle { log: &self.0, batch: LogBatch::default() }))
    }

    fn fill(&self, layout: &Layout, events: &mut Events) -> Result<()> {
        let mut batch = LogBatch::default();
        for (stream, first) in layout.bursts() {
            let entries: Vec<_> = (first..first + BURST).map(|seq| entry(events.make(seq))).collect();
            batch.add_entries::<Event>(region(stream), &entries)?;
            self.0.write(&mut batch, false)?;
        }
        // Only a write syncs, and an empty one is none.
        batch.put(region(layout.streams), b"end".to_vec(), Vec::new())?;
        self.0.write(&mut batch, true)?;
        Ok(())
    }

    fn scan(&self) -> Result<Seen> {
        let mut seen = Seen::default();
        let mut entries = Vec::new();
        for region in self.0.raft_groups() {
            let (Some(mut from), Some(last)) = (self.0.first_index(region), self.0.last_index(region)) else {
                continue;
            };
            while from <= last {
                let to = (from + PAGE).min(last + 1);
                self.0.fetch_entries_to::<Event>(region, from, to, None, &mut entries)?;
                entries.drain(..).for_each(|entry: BytesValue| seen.see(entry.get_value()));
                from = to;
            }
        }
        Ok(seen)
    }

    fn reader(&self, _layout: &Layout) -> Result<Option<Box<dyn Reader + '_>>> {
        Ok(Some(Box::new(Handle { log: &self.0, batch: LogBatch::default() })))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct Handle<'r> {
    log: &'r Log,
    batch: LogBatch,
}

impl Writer for Handle<'_> {
    fn append(&mut self, stream: u32, _seq: u64, event: &[u8]) -> Result<()> {
        self.batch.add_entries::<Event>(region(stream), &[entry(event)])?;
        self.log.write(&mut self.batch, true)?;
        Ok(())
    }
}

impl Reader for Handle<'_> {
    fn read(&mut self, stream: u32, seq: u64, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        let entry = self.log.get_entry::<Event>(region(stream), seq)?.ok_or("no such event")?;
        visit(entry.get_value());
        Ok(())
    }
}
