//! Recording one attempt at one step: a [`Recorder`] for whoever runs the step in a way of their
//! own, and [`record_process`] for a child process. [`restore_git_diff`] brings a working tree back
//! to where a run left it, and a [`NextAttempt`] goes on from there.

mod attempt;
mod cancel;
mod checkpoints;
mod git;
mod process;
mod recorder;
mod started;
mod step;
#[cfg(feature = "tokio")]
mod steps;
mod word;

pub use attempt::NextAttempt;
pub use cancel::Cancel;
pub use checkpoints::Checkpoints;
pub use git::{Restored, restore_git_diff};
pub use process::{Discard, Output, ProcessOptions, ProcessResult, Terminal, record_process};
#[cfg(feature = "terminal")]
pub use process::{Foreground, Pseudo};
pub use recorder::{Artifact, End, Outcome, Recorder, RunRequest, RunResult, Taken};
pub use started::base_commit;
pub use step::{Answer, Deferred, Executor, ExecutorError, Step, run_step};
#[cfg(feature = "tokio")]
pub use steps::{AsyncExecutor, AsyncStep, Steps};
