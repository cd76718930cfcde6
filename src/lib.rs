//! runwal
pub mod clock;
pub mod disk;
pub mod error;
pub mod format;
pub mod journal;
pub mod position;
pub mod record;
