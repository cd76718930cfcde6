//! The typed records: what a conductor means by the bytes in the journal.
//!
//! One file per kind. The numbers of kinds and the schemas of their versions are frozen: a change
//! is a new version, and what old versions wrote is turned into the newest form when it is read.
//! Byte layouts stand in [`format`](crate::format).

mod checkpoint;
mod chunk;
mod ids;
mod json;
mod lifecycle;
mod patch;
mod run;
mod tick;
mod wire;

pub use checkpoint::{Checkpoint, FileFormat, Replay, checkpoint_type};
pub use chunk::Channel;
pub use ids::{Id, RunName, TICKS_STREAM};
pub(crate) use json::escape_json;
pub use json::{JsonText, escape_line};
pub use lifecycle::{Level, Lifecycle, event, terminal};
pub use patch::{StatePatch, Status};
pub use run::{Bytes, ParentRun, RunPrepared};
pub use tick::Tick;

use crate::error::{Error, ErrorKind, Place, Result};

/// The longest payload of one record; longer content spans records.
pub const MAX_PAYLOAD_LEN: usize = 1 << 20;

use crate::position::{Position, Seq, StreamId, Time};
use std::borrow::Cow;

/// The frozen numbers of the kinds.
pub mod kind {
    /// A run was prepared.
    pub const RUN: u8 = 1;
    /// A lifecycle event.
    pub const LIFECYCLE: u8 = 2;
    /// Bytes of the worker's stdout.
    pub const STDOUT: u8 = 3;
    /// Bytes of the worker's stderr.
    pub const STDERR: u8 = 4;
    /// A change of a run's state.
    pub const STATE_PATCH: u8 = 5;
    /// A checkpoint of a run, or a part of one.
    pub const CHECKPOINT: u8 = 6;
    /// A record of the timed jobs.
    pub const TICK: u8 = 7;
}

/// The kinds that this version knows, to choose among.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A run was prepared.
    Run,
    /// A lifecycle event.
    Lifecycle,
    /// Bytes of the worker's stdout.
    Stdout,
    /// Bytes of the worker's stderr.
    Stderr,
    /// A change of a run's state.
    StatePatch,
    /// A checkpoint of a run, or a part of one.
    Checkpoint,
    /// A record of the timed jobs.
    Tick,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Run,
        Self::Lifecycle,
        Self::Stdout,
        Self::Stderr,
        Self::StatePatch,
        Self::Checkpoint,
        Self::Tick,
    ];

    /// Its number in the journal.
    pub fn number(self) -> u8 {
        match self {
            Self::Run => kind::RUN,
            Self::Lifecycle => kind::LIFECYCLE,
            Self::Stdout => kind::STDOUT,
            Self::Stderr => kind::STDERR,
            Self::StatePatch => kind::STATE_PATCH,
            Self::Checkpoint => kind::CHECKPOINT,
            Self::Tick => kind::TICK,
        }
    }

    /// Its name, as commands take and show it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Lifecycle => "lifecycle",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::StatePatch => "state_patch",
            Self::Checkpoint => "checkpoint",
            Self::Tick => "tick",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.word() == text);
        found.ok_or_else(|| Error::misuse(format!("\"{}\" is no kind of record", text.escape_debug())))
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Body {
    /// A run was prepared: the first record of its stream.
    Run(Box<RunPrepared>),
    /// Something happened to the run.
    Lifecycle(Lifecycle),
    /// The worker wrote something: the bytes exactly as read.
    Chunk(Channel, Vec<u8>),
    /// The run's state changed.
    StatePatch(StatePatch),
    /// A checkpoint, or a part of one.
    Checkpoint(Checkpoint),
    /// Something happened to the timed jobs.
    Tick(Tick),
    /// A kind or version that this version of the crate does not know. It is skipped, with a word.
    Unknown {
        /// The kind's number.
        kind: u8,
        /// The version of its schema.
        version: u8,
    },
}

impl Body {
    /// Its kind, where this version knows it.
    pub fn known_kind(&self) -> Option<Kind> {
        Some(match self {
            Self::Run(_) => Kind::Run,
            Self::Lifecycle(_) => Kind::Lifecycle,
            Self::Chunk(Channel::Stdout, _) => Kind::Stdout,
            Self::Chunk(Channel::Stderr, _) => Kind::Stderr,
            Self::StatePatch(_) => Kind::StatePatch,
            Self::Checkpoint(_) => Kind::Checkpoint,
            Self::Tick(_) => Kind::Tick,
            Self::Unknown { .. } => return None,
        })
    }

    /// The number of its kind.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Unknown { kind, .. } => *kind,
            known => known.known_kind().map_or(0, Kind::number),
        }
    }

    /// The name of its kind, as commands show it.
    pub fn kind_name(&self) -> &'static str {
        self.known_kind().map_or("unknown", Kind::word)
    }

    /// Its bytes, and the version of the schema they follow.
    pub(crate) fn encode(&self) -> Result<(Cow<'_, [u8]>, u8)> {
        Ok(match self {
            Self::Run(run) => (run.encode()?.into(), run::VERSION),
            Self::Lifecycle(event) => (event.encode()?.into(), lifecycle::VERSION),
            Self::Chunk(_, bytes) => (bytes.into(), chunk::VERSION),
            Self::StatePatch(patch) => (patch.encode()?.into(), patch::VERSION),
            Self::Checkpoint(checkpoint) => (checkpoint.encode()?.into(), checkpoint::VERSION),
            Self::Tick(tick) => (tick.encode()?.into(), tick::VERSION),
            Self::Unknown { .. } => {
                return Err(Error::misuse("a record of an unknown kind cannot be written"));
            }
        })
    }

    /// Reads the bytes of a kind.
    pub(crate) fn decode(kind: u8, version: u8, payload: Vec<u8>) -> Result<Self, String> {
        Ok(match (kind, version) {
            (kind::RUN, run::VERSION) => Self::Run(Box::new(RunPrepared::decode(&payload)?)),
            (kind::LIFECYCLE, lifecycle::VERSION) => Self::Lifecycle(Lifecycle::decode(&payload)?),
            (kind::STDOUT, chunk::VERSION) => Self::Chunk(Channel::Stdout, payload),
            (kind::STDERR, chunk::VERSION) => Self::Chunk(Channel::Stderr, payload),
            (kind::STATE_PATCH, patch::VERSION) => Self::StatePatch(StatePatch::decode(&payload)?),
            (kind::CHECKPOINT, checkpoint::VERSION) => Self::Checkpoint(Checkpoint::decode(&payload)?),
            (kind::TICK, tick::VERSION) => Self::Tick(Tick::decode(&payload)?),
            _ => Self::Unknown { kind, version },
        })
    }
}

/// A record with its place in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the whole journal.
    pub position: Position,
    /// Its stream.
    pub stream: StreamId,
    /// Its place in the stream.
    pub seq: Seq,
    /// When it was appended.
    pub time: Time,
    /// When it came to be: what files show.
    pub created_at: Time,
    /// Whether it ends its stream: the terminal event of a run.
    pub ends: bool,
    /// Whether its content goes on in the stream's next record.
    pub more: bool,
    /// The idempotency key of the append that it is the first record of.
    pub key: Option<Vec<u8>>,
    /// The conductor's term, if it gave one.
    pub term: Option<u64>,
    /// Bytes of its payload in the journal.
    pub len: u64,
    /// What it says.
    pub body: Body,
}

/// The error of a record that cannot be what its kind says it is.
pub(crate) fn malformed(position: Position, kind: u8, why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the record of kind {kind} cannot be understood: {why}"))
        .at(Place { segment: 0, offset: 0, position: Some(position) })
}
