//! runwal
pub mod clock;
pub mod disk;
pub mod error;
pub mod position;
