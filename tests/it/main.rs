//! All integration tests, in one binary.

mod crash;
mod damage;
mod decoder;
mod disk;
mod cli;
mod format;
mod tidy;
