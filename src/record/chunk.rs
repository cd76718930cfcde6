//! Kinds 3 and 4: bytes that the worker wrote. The payload is the bytes.

pub(super) const VERSION: u8 = 1;

/// Which of its two outputs the worker wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Channel {
    /// The name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}
