//! runwal through its public interface: a run for each stream, each event a chunk of its output.
//!
//! Files are not published, as no peer makes any; everything else is as it comes. A run is ended when the
//! journal is closed in order, and left open where the process is killed.

use super::{Engine, Kind, Reader, Setup, Writer};
use crate::Result;
use crate::event::{BURST, Events, Layout, Seen, sequence_of};
use ::runwal::async_engine::AsyncEngine;
use ::runwal::engine::{BatchEntry, Conditions, Log, NewRecord, Ticket};
use ::runwal::position::{Position, Seq, StreamId};
use ::runwal::record::{Body, Channel, Id, RunName, RunPrepared, kind};
use ::runwal::{Engine as Journal, Options};
use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;

/// How many tickets for new runs are held at once.
const BEGIN_WINDOW: usize = 1024;

/// What a single append takes beside its event, at most.
const EXTRA_LEN: u64 = 160;

#[derive(Debug)]
pub(crate) struct Runwal {
    journal: Journal,
    /// The number of the first stream in `streams`.
    first: u32,
    streams: Vec<StreamId>,
}

impl Runwal {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let options = Options { publish: false, ..Options::default() };
        let (journal, _) = Journal::open(dir.join("data"), options)?;
        Ok(Self { journal, first: 0, streams: Vec::new() })
    }

    /// The same with room for all events.
    pub(crate) fn open_reserved(dir: &Path, setup: &Setup) -> Result<Self> {
        let engine = Self::open(dir)?;
        engine.journal.reserve(setup.events * (setup.len as u64 + EXTRA_LEN))?;
        Ok(engine)
    }

    /// Opens as the kind says.
    pub(crate) fn open_as(kind: Kind, dir: &Path, setup: &Setup) -> Result<Self> {
        if kind == Kind::RunwalReserved { Self::open_reserved(dir, setup) } else { Self::open(dir) }
    }

    /// The handle for tasks of a runtime. It has to be made outside of one.
    pub(crate) fn asynchronous(&self) -> Result<AsyncEngine> {
        Ok(AsyncEngine::new(self.journal.clone())?)
    }

    /// The stream with this number, which was begun.
    pub(crate) fn stream(&self, stream: u32) -> Result<StreamId> {
        let nth = stream.checked_sub(self.first).ok_or("a stream that was not begun")?;
        Ok(*self.streams.get(nth as usize).ok_or("a stream that was not begun")?)
    }

    /// Hands an event in without waiting for it.
    pub(crate) fn submit(&self, stream: u32, event: &[u8]) -> Result<Ticket> {
        Ok(self.journal.submit(self.stream(stream)?, Conditions::none(), &[chunk(event)])?)
    }

    fn begin_one(&self, stream: u32) -> Result<Ticket> {
        let run = RunPrepared {
            name: name(stream)?,
            step: Id::new("append")?,
            attempt: 1,
            step_kind: None,
            worker_kind: None,
            command: Vec::new(),
            working_tree: None,
            environment: Vec::new(),
            timeout_ms: None,
            grace_ms: 0,
            checkpoints: false,
            recorder: self.journal.recorder_id(),
            boot: self.journal.boot_id(),
            controller: None,
            host: "bench".to_owned(),
            labels: Vec::new(),
            parent: None,
            renderer: ::runwal::projection::RENDERER,
        };
        Ok(self.journal.submit_run(&run, None, Conditions::none(), &[])?)
    }

    /// A buffered append of many events, of which the last is waited for.
    fn append_buffered(&self, bursts: impl Iterator<Item = Result<(u32, Vec<NewRecord>)>>) -> Result<()> {
        let mut last = None;
        for burst in bursts {
            let (stream, records) = burst?;
            last = Some(self.journal.buffer(self.stream(stream)?, Conditions::none(), &records)?);
        }
        wait(last)
    }
}

/// An event as it is handed in.
pub(crate) fn chunk(event: &[u8]) -> NewRecord {
    Body::Chunk(Channel::Stdout, event.to_vec()).into()
}

fn name(stream: u32) -> Result<RunName> {
    Ok(RunName { task: Id::new("peers")?, run: Id::new(format!("r-{stream}"))? })
}

fn wait(tickets: impl IntoIterator<Item = Ticket>) -> Result<()> {
    for ticket in tickets {
        ticket.wait()?;
    }
    Ok(())
}

impl Engine for Runwal {
    fn begin(&mut self, streams: Range<u32>) -> Result<()> {
        self.first = streams.start;
        self.streams.clear();
        let mut window = VecDeque::new();
        for stream in streams {
            window.push_back(self.begin_one(stream)?);
            if window.len() == BEGIN_WINDOW {
                self.streams.extend(window.pop_front().map(Ticket::wait).transpose()?.map(|run| run.stream));
            }
        }
        for ticket in window {
            self.streams.push(ticket.wait()?.stream);
        }
        Ok(())
    }

    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(Handle(self)))
    }

    fn fill(&self, layout: &Layout, events: &mut Events) -> Result<()> {
        self.append_buffered(layout.bursts().map(|(stream, first)| {
            Ok((stream, (first..first + BURST).map(|seq| chunk(events.make(seq))).collect()))
        }))
    }

    fn scan(&self) -> Result<Seen> {
        let mut seen = Seen::default();
        let mut log = self.journal.log()?;
        let mut batches = log.batches(Position::ZERO)?;
        while let Some(entry) = batches.next()? {
            match entry {
                BatchEntry::Batch(batch) => {
                    for record in batch {
                        let record = record?;
                        if record.kind == kind::STDOUT && !record.payload.is_empty() {
                            seen.see(record.payload);
                        }
                    }
                }
                BatchEntry::Damage(damage) => return Err(format!("{damage:?}").into()),
            }
        }
        Ok(seen)
    }

    fn reader(&self, layout: &Layout) -> Result<Option<Box<dyn Reader + '_>>> {
        let mut log = self.journal.log()?;
        let streams = (0..layout.streams)
            .map(|stream| Ok(log.find(&name(stream)?.to_string())?.ok_or("no such run")?))
            .collect::<Result<_>>()?;
        Ok(Some(Box::new(ByIndex { log, streams })))
    }

    fn close(self: Box<Self>) -> Result<()> {
        let ends = self.streams.iter().map(|stream| {
            let end = NewRecord { ends: true, ..chunk(b"") };
            Ok(self.journal.submit(*stream, Conditions::none(), &[end])?)
        });
        wait(ends.collect::<Result<Vec<_>>>()?)?;
        Ok(self.journal.close()?)
    }
}

struct Handle<'r>(&'r Runwal);

impl Writer for Handle<'_> {
    fn append(&mut self, stream: u32, _seq: u64, event: &[u8]) -> Result<()> {
        self.0.submit(stream, event)?.wait()?;
        Ok(())
    }
}

struct ByIndex {
    log: Log,
    streams: Vec<StreamId>,
}

impl Reader for ByIndex {
    fn read(&mut self, stream: u32, seq: u64, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        // Before the events of a run stands the request.
        let seq_in_run = Seq(seq + 1);
        let record = self.log.record(self.streams[stream as usize], seq_in_run)?.ok_or("no such record")?;
        let Body::Chunk(_, event) = &record.body else { return Err("something else".into()) };
        debug_assert_eq!(sequence_of(event), Some(seq));
        visit(event);
        Ok(())
    }
}
