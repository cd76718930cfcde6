//! All integration tests, in one binary.

#![allow(
    dropping_copy_types,
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::zombie_processes,
    clippy::semicolon_if_nothing_returned,
    reason = "a test that cannot go on says so by ending"
)]

mod attempt;
mod buffering;
mod cli;
mod commands;
mod conductor;
mod corners;
mod crash;
mod damage;
mod decoder;
mod disk;
mod domain;
mod engine;
mod fencing;
mod format;
mod git;
mod hostile;
#[cfg(all(feature = "metrics", feature = "tracing-layer"))]
mod many;
mod noted;
mod observe;
mod opening;
mod publishing;
mod reading;
mod rebuilding;
mod reserving;
mod selecting;
mod sharing;
mod steps;
mod surroundings;
mod terminal;
mod ticker;
mod ticks;
mod tidy;
mod timed_jobs;
mod watching;
mod word;
mod workers;
