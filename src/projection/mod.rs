//! Projections: every file under `runs/` and `timed-jobs/` as a function of the records.
//!
//! A fold is pure: it takes records in the order of their stream and says what changes in which
//! file. It asks no clock and reads no file, so replaying any prefix anywhere gives the same bytes.
//! [`publish`] is what brings the bytes to the disk, live or rebuilt.

mod checkpoints;
mod logs;
pub mod publish;
mod state;
mod ticks;

pub use logs::{LogTail, worker_line};
pub use state::{RunState, meta_json, meta_value, summary_json};
pub use ticks::{TickFold, tick_line};

use crate::position::{Position, Seq, Time};
use crate::record::{Body, Channel, Record, RunPrepared, event};
pub(crate) use checkpoints::{MAX_CONTENT_LEN, Parts};

/// The version of the rendering rules that new runs name. Older ones stay.
pub const RENDERER: u16 = 1;

/// The log files of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogFile {
    /// One line per lifecycle event.
    Worker,
    /// What the worker wrote to stdout.
    Stdout,
    /// What the worker wrote to stderr.
    Stderr,
}

impl LogFile {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Worker, Self::Stdout, Self::Stderr];

    /// The file's name in the run's folder.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Worker => "worker.log",
            Self::Stdout => "stdout.log",
            Self::Stderr => "stderr.log",
        }
    }
}

/// What a record changes.
#[derive(Debug, PartialEq, Eq)]
pub enum Change<'r> {
    /// Bytes at the end of a log.
    Append(LogFile, &'r [u8]),
    /// A whole file, by its name in the run's folder.
    Whole(String, Vec<u8>),
}

/// What a fold needs to know of a record beside its body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) position: Position,
    pub(crate) seq: Seq,
    pub(crate) created_at: Time,
    pub(crate) ends: bool,
    pub(crate) more: bool,
    pub(crate) term: Option<u64>,
    pub(crate) len: u64,
}

/// The fold over one run's records. `state.json` follows from it at any moment.
#[derive(Debug, Clone)]
pub struct RunFold {
    request: Option<Box<RunPrepared>>,
    term: Option<u64>,
    state: RunState,
    tail: LogTail,
    keeps_tail: bool,
    parts: Parts,
    last_seq: Seq,
    last_position: Position,
    gap: bool,
    started: bool,
    exited: bool,
    ended: bool,
    counts: Counts,
}

/// What a run's log consists of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records of the run.
    pub records: u64,
    /// Bytes of their payloads in the journal.
    pub bytes: u64,
    /// Bytes on stdout and on stderr.
    pub channel_bytes: [u64; 2],
    /// Lines ended on stdout and on stderr.
    pub channel_lines: [u64; 2],
    /// Lifecycle events by level: debug, info, warn, error.
    pub events: [u64; 4],
}

impl Default for RunFold {
    fn default() -> Self {
        Self::new()
    }
}

impl RunFold {
    /// Before the first record.
    pub fn new() -> Self {
        Self {
            request: None,
            term: None,
            state: RunState::default(),
            tail: LogTail::new(LogTail::LINES, LogTail::BYTES),
            keeps_tail: true,
            parts: Parts::default(),
            last_seq: Seq::ZERO,
            last_position: Position::ZERO,
            gap: false,
            started: false,
            exited: false,
            ended: false,
            counts: Counts::default(),
        }
    }

    /// The same for one that keeps so many of the last lines and bytes of the output.
    pub fn with_tail(max_lines: usize, max_bytes: usize) -> Self {
        Self { tail: LogTail::new(max_lines, max_bytes), ..Self::new() }
    }

    /// The same for one that is never asked for the last lines of the output.
    pub fn for_state() -> Self {
        Self { keeps_tail: false, ..Self::new() }
    }

    /// Takes the next record of the run in, and hands what it changes to `changed`.
    pub fn apply(&mut self, record: &Record, changed: &mut dyn FnMut(Change<'_>)) {
        let stamp = Stamp {
            position: record.position,
            seq: record.seq,
            created_at: record.created_at,
            ends: record.ends,
            more: record.more,
            term: record.term,
            len: record.len,
        };
        self.take(stamp, &record.body, changed);
    }

    /// The same for a record in two halves.
    pub(crate) fn take(&mut self, stamp: Stamp, body: &Body, changed: &mut dyn FnMut(Change<'_>)) {
        self.gap |= self.last_seq.next() != Some(stamp.seq);
        (self.last_seq, self.last_position) = (stamp.seq, stamp.position);
        self.counts.records += 1;
        self.counts.bytes += stamp.len;
        match body {
            Body::Run(run) => {
                self.state = RunState::prepared(stamp.created_at);
                changed(Change::Whole("meta.json".to_owned(), meta_json(run, stamp.term, stamp.created_at)));
                self.request = Some(run.clone());
                self.term = stamp.term;
            }
            Body::Lifecycle(event) => {
                let line = worker_line(stamp.created_at, event);
                if self.keeps_tail {
                    self.tail.push(LogFile::Worker, &line);
                }
                self.state.last_event_seq = Some(stamp.seq.0);
                self.started |= event.event == event::WORKER_STARTED;
                self.exited |= event.event == event::WORKER_EXITED;
                self.counts.events[event.level as usize] += 1;
                changed(Change::Append(LogFile::Worker, &line));
            }
            Body::Chunk(channel, bytes) => {
                let (i, log) = match channel {
                    Channel::Stdout => (0, LogFile::Stdout),
                    Channel::Stderr => (1, LogFile::Stderr),
                };
                if self.keeps_tail {
                    self.tail.push(log, bytes);
                }
                self.counts.channel_bytes[i] += bytes.len() as u64;
                self.counts.channel_lines[i] += memchr::memchr_iter(b'\n', bytes).count() as u64;
                changed(Change::Append(log, bytes));
            }
            Body::StatePatch(patch) => self.state.patch(patch),
            Body::Checkpoint(part) => {
                if let Some(whole) = self.parts.add(part, stamp.more) {
                    self.state.last_checkpoint_seq = Some(whole.number);
                    let name = format!("checkpoints/{}", whole.file_name());
                    changed(Change::Whole(name, whole.content));
                }
            }
            Body::Tick(_) | Body::Unknown { .. } => {}
        }
        if !stamp.more {
            let own = match body {
                Body::StatePatch(patch) => patch.updated_at,
                _ => None,
            };
            self.state.updated_at = Some(own.unwrap_or(stamp.created_at));
        }
        self.ended |= stamp.ends;
    }

    /// What was asked for; `None` before the first record.
    pub fn request(&self) -> Option<&RunPrepared> {
        self.request.as_deref()
    }

    /// The conductor's term in the request.
    pub fn term(&self) -> Option<u64> {
        self.term
    }

    /// Where the run stands.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// `state.json` as it is after the last record.
    pub fn state_json(&self) -> Vec<u8> {
        self.state.to_json(self.request())
    }

    /// The last lines of all logs together.
    pub fn tail(&self) -> &LogTail {
        &self.tail
    }

    /// The last sequence taken in.
    pub fn last_seq(&self) -> Seq {
        self.last_seq
    }

    /// The position of the last record taken in.
    pub fn last_position(&self) -> Position {
        self.last_position
    }

    /// Whether records were missing between those taken in.
    pub fn has_gap(&self) -> bool {
        self.gap
    }

    /// Whether a worker was started, and not seen to exit.
    pub fn worker_is_out(&self) -> bool {
        self.started && !self.exited
    }

    /// Whether the terminal event was taken in.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// What the log consists of.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}
