//! All integration tests, in one binary.

mod cli;
mod crash;
mod damage;
mod decoder;
mod disk;
mod engine;
mod format;
mod tidy;
