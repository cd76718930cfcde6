//! Recording one attempt at one step: a [`Recorder`] for whoever runs the step in a way of their
//! own, and [`record_process`] for a child process.

mod process;
mod recorder;

pub use process::{Cancel, Discard, Output, ProcessOptions, ProcessResult, record_process};
pub use recorder::{End, Outcome, Recorder, RunRequest, RunResult};
