//! All integration tests, in one binary.

#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "a test that cannot go on says so by ending")]

mod cli;
mod crash;
mod damage;
mod decoder;
mod disk;
mod engine;
mod format;
mod tidy;
