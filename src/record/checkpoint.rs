//! Kind 6: a checkpoint of a run, whole or in parts.

use super::{ids, wire};
use crate::error::{Error, Result};

pub(super) const VERSION: u8 = 1;

/// The known types of checkpoints. Others may be used.
pub mod checkpoint_type {
    /// The request and the state at that moment.
    pub const SUMMARY: &str = "summary";
    /// The last lines of all logs together.
    pub const LOG_TAIL: &str = "log_tail";
    /// All of the working tree against its base commit.
    pub const GIT_DIFF: &str = "git_diff";
    /// What the tests printed.
    pub const TEST_OUTPUT: &str = "test_output";
}

/// How a checkpoint's content is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// JSON; file extension `json`.
    Json,
    /// Text; `txt`.
    Text,
    /// A patch; `patch`.
    Patch,
}

impl FileFormat {
    const ALL: [Self; 3] = [Self::Json, Self::Text, Self::Patch];

    /// The name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
            Self::Patch => "patch",
        }
    }

    /// The file extension.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "txt",
            Self::Patch => "patch",
        }
    }
}

/// How a checkpoint brings back what it was taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// It does not.
    None,
    /// `git apply --binary` on a clean checkout of the base commit.
    GitApplyBinary,
}

impl Replay {
    const ALL: [Self; 2] = [Self::None, Self::GitApplyBinary];

    /// The name.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::GitApplyBinary => "git_apply_binary",
        }
    }
}

/// A checkpoint, or the part of one that fits into a record. All but the content is the same in
/// every part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number in the run, from 1.
    pub number: u32,
    /// Its type: 1 to 64 of `a-z 0-9 _`.
    pub kind: String,
    /// How the content is to be read.
    pub format: FileFormat,
    /// How it brings back what it was taken of.
    pub replay: Replay,
    /// What it is, in a line.
    pub summary: String,
    /// Bytes of the whole content.
    pub total_len: u64,
    /// The content, or this part of it.
    pub content: Vec<u8>,
}

#[derive(bincode::Encode, bincode::Decode)]
struct V1 {
    number: u32,
    kind: String,
    format: u8,
    replay: u8,
    summary: String,
    total_len: u64,
    content: Vec<u8>,
}

impl Checkpoint {
    /// The file's name under `checkpoints/`.
    pub fn file_name(&self) -> String {
        format!("{:04}-{}.{}", self.number, self.kind.replace('_', "-"), self.format.extension())
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        if !ids::is_word(&self.kind) || self.number == 0 {
            return Err(Error::misuse(format!(
                "\"{}\" is no type of a checkpoint",
                self.kind.escape_debug()
            )));
        }
        wire::encode(&V1 {
            number: self.number,
            kind: self.kind.clone(),
            format: self.format as u8,
            replay: self.replay as u8,
            summary: self.summary.clone(),
            total_len: self.total_len,
            content: self.content.clone(),
        })
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let v1: V1 = wire::decode(bytes)?;
        if !ids::is_word(&v1.kind) || v1.number == 0 {
            return Err("the checkpoint's type is no word, or its number is 0".to_owned());
        }
        Ok(Self {
            number: v1.number,
            kind: v1.kind,
            format: *FileFormat::ALL.get(usize::from(v1.format)).ok_or("the file format is unknown")?,
            replay: *Replay::ALL.get(usize::from(v1.replay)).ok_or("the replay strategy is unknown")?,
            summary: v1.summary,
            total_len: v1.total_len,
            content: v1.content,
        })
    }
}
