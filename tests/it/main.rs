//! All integration tests, in one binary.

mod disk;
mod format;
