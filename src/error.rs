//! The one error of the crate: opaque outside, exact inside.
//!
//! An [`Error`] carries an [`ErrorKind`] that says what the caller can do about it, a sentence
//! that says what happened, and where the journal is concerned also a [`Place`]. Its text is for
//! people and is never parsed.

use crate::position::{Position, Seq};
use std::fmt;

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing was written and the same call may succeed later.
    Retry,
    /// The lock could not be had within the named time; nothing was written.
    Locked,
    /// The handle is poisoned: what it was writing may or may not be in the journal. Open anew;
    /// the new handle settles the question.
    Reopen,
    /// Bytes that were durable are damaged or gone. Reading what is left goes on.
    Corrupt,
    /// The journal uses a format version or a feature that this version does not know.
    Unsupported,
    /// The call breaks a rule of the interface: a bad name, a run that ended.
    Misuse,
    /// A named thing, a run or a data directory, does not exist.
    NotFound,
    /// A run of this name exists; or a sequence, a term or an idempotency key stands against an append,
    /// see [`Error::conflict`]. Nothing was written.
    Conflict,
    /// The disk or a quota is full.
    Full,
    /// The operating system refused; see the source.
    Io,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Retry,
        Self::Locked,
        Self::Reopen,
        Self::Corrupt,
        Self::Unsupported,
        Self::Misuse,
        Self::NotFound,
        Self::Conflict,
        Self::Full,
        Self::Io,
    ];

    /// What to do next about an error that says nothing more of it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Retry => "Nothing was written. Try again.",
            Self::Locked => "Nothing was written. See which process holds the lock, then try again.",
            Self::Reopen => "What was acknowledged is safe. Open the journal anew: that settles the rest.",
            Self::Corrupt => "`runwal verify` tells what is damaged, and where; it changes nothing.",
            Self::Unsupported => "Nothing was changed, and nothing is damaged by it.",
            Self::Misuse => "Nothing was done. See `runwal --help`.",
            Self::NotFound => "`runwal runs` lists what there is.",
            Self::Conflict => {
                "Nothing was written. A run's name is its own for good: choose another, also for a retry."
            }
            Self::Full => "No acknowledged record is at stake. Make room, then try again.",
            Self::Io => {
                "No acknowledged record is at stake. Mend what the system complains of, then try again."
            }
        }
    }

    /// A stable word for scripts.
    pub fn code(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Locked => "locked",
            Self::Reopen => "reopen",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Misuse => "misuse",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Full => "full",
            Self::Io => "io",
        }
    }
}

/// What stood against an append, for callers that decide by it. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// A stream of this name exists.
    Exists,
    /// Somebody else has written to the stream.
    Sequence {
        /// The sequence that the first record was to get.
        expected: Seq,
        /// The one it would have got.
        found: Seq,
    },
    /// A later conductor has taken over.
    Term {
        /// The append's term.
        given: u64,
        /// The highest one in the stream, or in the journal.
        seen: u64,
    },
    /// The idempotency key was used for something else.
    Key {
        /// The record that bears it.
        position: Position,
    },
}

/// Where in the journal something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// The segment's number.
    pub segment: u64,
    /// Byte offset in the segment's file.
    pub offset: u64,
    /// The position of the record concerned, where known.
    pub position: Option<Position>,
}

struct Inner {
    kind: ErrorKind,
    message: String,
    place: Option<Place>,
    conflict: Option<Conflict>,
    hint: Option<String>,
    source: Option<std::io::Error>,
}

/// Any failure of the crate. Both of its texts are for people; the one for debugging has the advice too.
pub struct Error(Box<Inner>);

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            place: None,
            conflict: None,
            hint: None,
            source: None,
        }))
    }

    /// The same for somebody else who is to be told: what is behind it only as text.
    pub(crate) fn likeness(&self) -> Self {
        let Inner { kind, place, conflict, hint, .. } = &*self.0;
        let (message, hint) = (self.message(), hint.clone());
        Self(Box::new(Inner { kind: *kind, message, place: *place, conflict: *conflict, hint, source: None }))
    }

    pub(crate) fn misuse(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Misuse, message)
    }

    pub(crate) fn corrupt(message: impl Into<String>, place: Place) -> Self {
        Self::new(ErrorKind::Corrupt, message).at(place)
    }

    pub(crate) fn conflict_of(conflict: Conflict, message: impl Into<String>) -> Self {
        let mut error = Self::new(ErrorKind::Conflict, message);
        error.0.conflict = Some(conflict);
        error
    }

    /// An error of one's own: what was being done when the operating system refused.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::Full,
            _ => ErrorKind::Io,
        };
        let mut error = Self::new(kind, what);
        error.0.source = Some(source);
        error
    }

    pub(crate) fn at(mut self, place: Place) -> Self {
        self.0.place = Some(place);
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same error under another kind: what a layer above knows of the consequences.
    pub(crate) fn into_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// An error of one's own, that a named thing does not exist, with advice.
    pub fn not_found(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message).hint(advice)
    }

    /// An error of one's own, that data is damaged, with advice.
    pub fn corrupt_data(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message).hint(advice)
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Where in the journal, if it concerns a place there.
    pub fn place(&self) -> Option<Place> {
        self.0.place
    }

    /// What stood against an append, if that is why it was refused.
    pub fn conflict(&self) -> Option<Conflict> {
        self.0.conflict
    }

    /// What to do next, in words.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// What happened, without place and advice.
    pub fn message(&self) -> String {
        match &self.0.source {
            Some(source) => format!("{}: {source}", self.0.message),
            None => self.0.message.clone(),
        }
    }

    /// The operating system's error number, if one is behind this.
    pub fn os_error(&self) -> Option<i32> {
        self.0.source.as_ref().and_then(std::io::Error::raw_os_error)
    }

    /// Whether the operating system said that the file is not there.
    pub(crate) fn is_missing(&self) -> bool {
        self.0.source.as_ref().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    }
}

/// What `main` shows of an error that it answers with.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} [{}]", self.kind().code())?;
        self.advice().map_or(Ok(()), |advice| write!(f, "\n{advice}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        if let Some(place) = self.0.place {
            write!(f, " (segment {}, offset {}", place.segment, place.offset)?;
            if let Some(position) = place.position {
                write!(f, ", position {position}")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}
