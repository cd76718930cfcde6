//! Kind 7: something happened to the timed jobs.

use super::json::JsonText;
use super::wire;
use crate::error::{Error, Result};

pub(super) const VERSION: u8 = 1;

/// A record of the timed jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    /// Which tick it belongs to.
    pub batch_id: String,
    /// Which runner it is about.
    pub runner: String,
    /// What happened.
    pub stage: String,
    /// How it went.
    pub result: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
    /// How long it took.
    pub duration_ms: Option<u64>,
    /// Whatever else there is to say: a JSON object.
    pub details: JsonText,
}

#[derive(bincode::Encode, bincode::Decode)]
struct V1 {
    batch_id: String,
    runner: String,
    stage: String,
    result: Option<String>,
    error: Option<String>,
    duration_ms: Option<u64>,
    details: String,
}

impl Tick {
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        if self.details.members().is_none() {
            return Err(Error::misuse("the details of a tick must be a JSON object"));
        }
        wire::encode(&V1 {
            batch_id: self.batch_id.clone(),
            runner: self.runner.clone(),
            stage: self.stage.clone(),
            result: self.result.clone(),
            error: self.error.clone(),
            duration_ms: self.duration_ms,
            details: self.details.as_str().to_owned(),
        })
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let v1: V1 = wire::decode(bytes)?;
        let details = JsonText::parse(&v1.details).map_err(|e| e.message())?;
        if details.members().is_none() {
            return Err("the details of a tick are no JSON object".to_owned());
        }
        Ok(Self {
            batch_id: v1.batch_id,
            runner: v1.runner,
            stage: v1.stage,
            result: v1.result,
            error: v1.error,
            duration_ms: v1.duration_ms,
            details,
        })
    }
}
