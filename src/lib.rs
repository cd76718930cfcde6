//! The write-ahead log of worker runs.
//!
//! Everything that happens to a run is appended to one checksummed journal; every file a conductor
//! keeps, `state.json`, logs, checkpoints, daily tick files, is a projection of it that can be
//! deleted and made again, byte for byte.
//!
//! ```text
//!  caller ─▶ record ─▶ batch ─▶ active segment ═ fdatasync ═▶ durable ─▶ reader ─▶ record ─▶ projection ─▶ files
//!             typed     bytes     under the lock                ▲          ▲ follow, replay,    pure fold,
//!                                                        receipts wait     │ verify             atomic publish
//!  on open:  disk ─▶ inspect (pure) ─▶ plan ─▶ apply ─▶ ready      one scanner serves them all
//! ```
//!
//! # Where to begin
//!
//! * [`docs::embedding`] leads through what a conductor needs, from opening to stopping.
//! * [`engine::Engine`] opens a data directory for writing, [`engine::Log`] for reading.
//! * [`run::record_process`] records a child process, [`run::run_step`] a step by an
//!   [`run::Executor`], [`run::Recorder`] a run of your own making; `run::Steps` many of them at once.
//! * [`Engine::subscribe`] hands out what is recorded, by run and kind, and goes on after a restart.
//! * [`run::NextAttempt`] goes on from a run that ended, also one that a crash ended.
//! * [`format`](mod@format) is the on-disk contract, [`docs::durability`] what is assumed and
//!   promised, [`docs::recorder`] what recording a process means, [`docs::architecture`] the map of
//!   the code.
//!
//! ```
//! use runwal::engine::{Engine, Log, Options};
//! use runwal::record::{Channel, Id};
//! use runwal::run::{End, Outcome, Recorder, RunRequest};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path().join("data");
//! let (engine, _report) = Engine::open(&dir, Options::default())?;
//! let mut run = Recorder::prepare(&engine, RunRequest::new(Id::new("T-016")?, Id::new("r-1")?, Id::new("build")?))?;
//! run.chunk(Channel::Stdout, b"hello\n")?; // durable when this returns
//! run.finish(End::new(Outcome::Completed, "Done.").exit_code(0))?;
//! engine.close()?;
//!
//! let mut log = Log::open(&dir)?;
//! let run = log.resolve("@last")?;
//! let (fold, damage) = log.fold(run.stream)?;
//! assert_eq!(fold.state().exit_code, Some(0));
//! assert!(damage.is_empty());
//! # Ok::<(), runwal::Error>(())
//! ```
//!
//! # Three words
//!
//! *Accepted*: handed in, a [`engine::Ticket`] is held. *Durable*: synced; position, sequence and
//! chain hash exist from here on, a [`Receipt`] says so. *Applied*: in the files. Readers and files
//! never pass *durable*.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `cli` (default) | the command-line tool |
//! | `terminal` (with `cli`) | workers in the foreground of a terminal, and on pseudo-terminals |
//! | `tokio` | `async_engine::AsyncEngine`, subscriptions for a runtime, `run::Steps`, `timed_jobs` |
//! | `tracing` | what the engine does, as events for `tracing`; see [`observe`] |
//! | `metrics` | the same as numbers for `metrics`; see [`observe`] |
//! | `tracing-layer` | what is traced within a run, written into its stream; see `trace_layer` |
//! | `testing` | a simulated disk, a crash explorer and the conformance suite for disks |

#[cfg(not(target_pointer_width = "64"))]
compile_error!("runwal needs a 64-bit target");
#[cfg(not(target_os = "linux"))]
compile_error!("runwal runs on Linux only");

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

#[cfg(feature = "tokio")]
pub mod async_engine;
pub mod clock;
pub mod disk;
pub mod docs;
pub mod engine;
pub mod error;
pub mod format;
mod journal;
pub mod observe;
pub mod position;
mod processes;
pub mod projection;
mod reader;
pub mod record;
pub mod run;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "tokio")]
pub mod timed_jobs;
#[cfg(feature = "tracing-layer")]
pub mod trace_layer;

pub use engine::{Engine, Log, Options};
pub use error::{Conflict, Error, ErrorKind};
pub use journal::{Damage, JournalOptions, Receipt, Spares, Verdict, Verification};
