//! Kind 2: something happened to a run.

use super::json::JsonText;
use super::{ids, wire};
use crate::error::{Error, Result};

pub(super) const VERSION: u8 = 1;

/// The known types of lifecycle events. The set is open.
pub mod event {
    /// The run was prepared.
    pub const RUN_PREPARED: &str = "run_prepared";
    /// A number for checkpoints to come was reserved.
    pub const CHECKPOINT_SLOT_RESERVED: &str = "checkpoint_slot_reserved";
    /// The worker runs.
    pub const WORKER_STARTED: &str = "worker_started";
    /// The executor put its work off.
    pub const WORKER_EXECUTION_DEFERRED: &str = "worker_execution_deferred";
    /// The worker is gone.
    pub const WORKER_EXITED: &str = "worker_exited";
    /// The window of the worker's pseudo-terminal has another size.
    pub const TERMINAL_RESIZED: &str = "terminal_resized";
    /// A checkpoint that was asked for was not taken; the message says why.
    pub const CHECKPOINT_SKIPPED: &str = "checkpoint_skipped";
    /// A checkpoint does not carry all that it stands for; the message says what is missing.
    pub const CHECKPOINT_INCOMPLETE: &str = "checkpoint_incomplete";
    /// A file of the worker is not among its artifacts; the message says which and why.
    pub const ARTIFACT_SKIPPED: &str = "artifact_skipped";
    /// What the worker wrote about its own outcome does not count; the message says why.
    pub const OUTCOME_REFUSED: &str = "outcome_refused";
    /// What was traced within the run: an event.
    pub const TRACE_EVENT: &str = "trace_event";
    /// The same, of a span that was closed.
    pub const TRACE_SPAN: &str = "trace_span";
    /// Some of what was traced is missing; the message says how much.
    pub const TRACE_LOST: &str = "trace_lost";
}

/// The types of the one event that ends a run.
pub mod terminal {
    /// Its execution was put off.
    pub const PREPARED: &str = "step_prepared";
    /// It did what was asked.
    pub const COMPLETED: &str = "step_completed";
    /// It did not.
    pub const FAILED: &str = "step_failed";
    /// It cannot go on by itself.
    pub const BLOCKED: &str = "step_blocked";
    /// A person has to look.
    pub const NEEDS_HUMAN: &str = "step_needs_human";
    /// The conductor called it off.
    pub const CANCELLED: &str = "step_cancelled";
    /// It was found without an end.
    pub const INTERRUPTED: &str = "step_interrupted";
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For those who look for a fault.
    Debug,
    /// In the order of things.
    Info,
    /// Worth a look.
    Warn,
    /// Something failed.
    Error,
}

impl Level {
    /// All of them, by their number on the wire.
    pub const ALL: [Self; 4] = [Self::Debug, Self::Info, Self::Warn, Self::Error];

    /// In lower case, as JSON shows it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// A lifecycle event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifecycle {
    /// Its type: 1 to 64 of `a-z 0-9 _`.
    pub event: String,
    /// How much it matters.
    pub level: Level,
    /// What happened, for people.
    pub message: String,
    /// What happened, for programs: any JSON.
    pub data: JsonText,
}

#[derive(bincode::Encode, bincode::Decode)]
struct V1 {
    event: String,
    level: u8,
    message: String,
    data: String,
}

impl Lifecycle {
    /// An event without data.
    pub fn new(event: &str, level: Level, message: impl Into<String>) -> Self {
        Self { event: event.to_owned(), level, message: message.into(), data: JsonText::empty() }
    }

    /// The same with data; a struct's fields come in their order.
    pub fn with_data(mut self, data: &impl serde::Serialize) -> Result<Self> {
        self.data = JsonText::of(data)?;
        Ok(self)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        if !ids::is_word(&self.event) {
            return Err(Error::misuse(format!("\"{}\" is no type of an event", self.event.escape_debug())));
        }
        wire::encode(&V1 {
            event: self.event.clone(),
            level: self.level as u8,
            message: self.message.clone(),
            data: self.data.as_str().to_owned(),
        })
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let v1: V1 = wire::decode(bytes)?;
        let level = *Level::ALL.get(usize::from(v1.level)).ok_or("the level is unknown")?;
        if !ids::is_word(&v1.event) {
            return Err("the event's type is no word".to_owned());
        }
        let data = JsonText::parse(&v1.data).map_err(|e| e.message())?;
        Ok(Self { event: v1.event, level, message: v1.message, data })
    }
}
