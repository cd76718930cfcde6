//! The write-ahead log of worker runs.

pub mod clock;
pub mod disk;
pub mod engine;
pub mod error;
pub mod format;
mod journal;
pub mod position;
mod processes;
pub mod projection;
mod reader;
pub mod record;
pub mod run;
#[cfg(feature = "testing")]
pub mod testing;

pub use journal::{Damage, JournalOptions, Receipt, Verdict, Verification};
