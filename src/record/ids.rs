//! Names of tasks, steps and runs: safe as one component of a path on every file system.

use crate::error::{Error, Result};
use std::fmt;

/// The name of the stream that holds the records of the timed jobs.
pub const TICKS_STREAM: &str = "timed-jobs";

/// The longest id in bytes.
const MAX_LEN: usize = 128;

/// The id of a task, step or run: 1 to 128 bytes of `A-Z a-z 0-9 . _ -`, not starting with a dot
/// or a dash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(String);

impl Id {
    /// Checks an id. The error says what is wrong with it.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
        let refuse = |why: &str| Err(Error::misuse(format!("the id \"{shown}\" {why}")));
        if text.is_empty() || text.len() > MAX_LEN {
            return refuse("must have 1 to 128 bytes");
        }
        if text.starts_with(['.', '-']) {
            return refuse("must not start with a dot or a dash");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return refuse("may only have letters, digits, dots, underscores and dashes");
        }
        Ok(Self(text))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The full name of a run, `task/run`: also the name of its stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunName {
    /// The task.
    pub task: Id,
    /// The run, unique within its task.
    pub run: Id,
}

impl RunName {
    /// Reads a stream's name; `None` where it is not a run's.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let (task, run) = std::str::from_utf8(name).ok()?.split_once('/')?;
        Some(Self { task: Id::new(task).ok()?, run: Id::new(run).ok()? })
    }

    /// Where its files are, relative to the data directory.
    pub fn folder(&self) -> String {
        format!("runs/{}/{}", self.task, self.run)
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.task, self.run)
    }
}

/// Whether a word can name an event or a checkpoint type: 1 to 64 of `a-z 0-9 _`.
pub(super) fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_their_folder_are_refused() {
        for bad in ["", ".", "..", "-rf", ".git", "a/b", "a\\b", "a b", "a\0", "ä", "a\n", &"x".repeat(129)]
        {
            assert!(Id::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "T-016", "r-01J.x_y", "con", &"x".repeat(128)] {
            assert!(Id::new(good).is_ok(), "{good:?}");
        }
        assert!(RunName::parse(b"a/b/c").is_none());
        assert!(RunName::parse(TICKS_STREAM.as_bytes()).is_none());
    }
}
