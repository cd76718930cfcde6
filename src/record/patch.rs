//! Kind 5: a change of a run's state.

use super::wire;
use crate::error::Result;
use crate::position::Time;

pub(super) const VERSION: u8 = 1;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Everything is ready; or its execution was put off.
    Prepared,
    /// The worker runs.
    Running,
    /// It did what was asked.
    Completed,
    /// It did not.
    Failed,
    /// It cannot go on by itself.
    Blocked,
    /// A person has to look.
    NeedsHuman,
    /// The conductor called it off.
    Cancelled,
    /// It was found without an end.
    Interrupted,
}

impl Status {
    /// All of them, by their number on the wire.
    pub const ALL: [Self; 8] = [
        Self::Prepared,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Blocked,
        Self::NeedsHuman,
        Self::Cancelled,
        Self::Interrupted,
    ];

    /// As files show it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Blocked => "blocked",
            Self::NeedsHuman => "needs_human",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    /// The other way round.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.word() == word)
    }
}

/// A change of a run's state. `None` leaves a field as it is; `Some(None)` clears it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatePatch {
    /// Where it stands.
    pub status: Option<Status>,
    /// When it began.
    pub started_at: Option<Option<Time>>,
    /// When it was last changed; wins over the record's own time.
    pub updated_at: Option<Time>,
    /// When it ended.
    pub finished_at: Option<Option<Time>>,
    /// How it went, in a sentence.
    pub summary: Option<Option<String>>,
    /// The worker's exit code.
    pub exit_code: Option<Option<i32>>,
    /// The signal that ended the worker, as `SIGKILL`.
    pub signal: Option<Option<String>>,
    /// The worker's process id.
    pub pid: Option<Option<u32>>,
}

#[derive(bincode::Encode, bincode::Decode)]
struct V1 {
    status: Option<u8>,
    started_at: Option<Option<i64>>,
    updated_at: Option<i64>,
    finished_at: Option<Option<i64>>,
    summary: Option<Option<String>>,
    exit_code: Option<Option<i32>>,
    signal: Option<Option<String>>,
    pid: Option<Option<u32>>,
}

impl StatePatch {
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        wire::encode(&V1 {
            status: self.status.map(|s| s as u8),
            started_at: self.started_at.map(|t| t.map(|t| t.0)),
            updated_at: self.updated_at.map(|t| t.0),
            finished_at: self.finished_at.map(|t| t.map(|t| t.0)),
            summary: self.summary.clone(),
            exit_code: self.exit_code,
            signal: self.signal.clone(),
            pid: self.pid,
        })
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let v1: V1 = wire::decode(bytes)?;
        let status = match v1.status {
            None => None,
            Some(n) => Some(*Status::ALL.get(usize::from(n)).ok_or("the status is unknown")?),
        };
        Ok(Self {
            status,
            started_at: v1.started_at.map(|t| t.map(Time)),
            updated_at: v1.updated_at.map(Time),
            finished_at: v1.finished_at.map(|t| t.map(Time)),
            summary: v1.summary,
            exit_code: v1.exit_code,
            signal: v1.signal,
            pid: v1.pid,
        })
    }
}
