//! What the engine tells about itself, to whoever wants to watch it: events for the `tracing`
//! ecosystem with the feature `tracing`, numbers for the `metrics` ecosystem with the feature
//! `metrics`. Without them nothing of this is compiled in, and no clock is asked.
//!
//! # Events
//!
//! All of them have the target `runwal`.
//!
//! | level | what | fields |
//! |---|---|---|
//! | info | the journal was opened; within the span `runwal::open` | `verdict`, `quarantined_bytes`, `kept_records`, `interrupted`, `position` |
//! | warn | the journal could not be opened; in the same span | `error` |
//! | warn | the end of a segment was recovered | `segment`, `quarantined_bytes`, `kept_records` |
//! | warn | a run was found without an end, and ended | `run`, `attempt`, `ended_processes` |
//! | warn | a file could not be published; the journal has every record | `error` |
//! | error | a write failed, nothing more is written through this handle | `error` |
//! | debug | the next segment was begun | `segment`, `capacity_bytes` |
//! | debug | a group of appends was committed with one sync | `appends`, `records`, `bytes`, `position`, `sync_us` |
//!
//! A commit and what belongs to it is told under the journal's lock: a subscriber that waits makes
//! every writer wait, and one that appends to the same journal waits for itself.
//!
#![cfg_attr(feature = "tracing", doc = "```")]
#![cfg_attr(not(feature = "tracing"), doc = "```ignore")]
//! use runwal::{Engine, Options};
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use tracing::{Event, Metadata, Subscriber, span};
//!
//! /// Counts what the engine tells. A program has a subscriber that shows it.
//! struct Count(&'static AtomicU64);
//!
//! impl Subscriber for Count {
//!     fn enabled(&self, of: &Metadata<'_>) -> bool {
//!         of.target() == "runwal"
//!     }
//!     fn event(&self, _: &Event<'_>) {
//!         self.0.fetch_add(1, Ordering::Relaxed);
//!     }
//!     # fn new_span(&self, _: &span::Attributes<'_>) -> span::Id { span::Id::from_u64(1) }
//!     # fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
//!     # fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
//!     # fn enter(&self, _: &span::Id) {}
//!     # fn exit(&self, _: &span::Id) {}
//! }
//!
//! static TOLD: AtomicU64 = AtomicU64::new(0);
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path().join("data");
//! tracing::subscriber::with_default(Count(&TOLD), || {
//!     let (engine, _) = Engine::open(&dir, Options::default())?;
//!     engine.close()
//! })?;
//! assert!(TOLD.load(Ordering::Relaxed) > 0);
//! # Ok::<(), runwal::Error>(())
//! ```
//!
//! # Numbers
//!
//! Of all engines of this process together.
//!
//! | name | kind | what |
//! |---|---|---|
//! | `runwal_appends_total` | counter | appends that became durable |
//! | `runwal_records_total` | counter | records in them |
//! | `runwal_bytes_total` | counter | bytes written to segments for them |
//! | `runwal_rolls_total` | counter | segments begun because the one before was full |
//! | `runwal_group_appends` | histogram | appends that shared one sync |
//! | `runwal_sync_seconds` | histogram | how long that sync took, in seconds |
//! | `runwal_queue_depth` | gauge | appends accepted and not yet committed or refused |
//! | `runwal_poisoned` | gauge | 1 from the moment a write failed until a journal is opened, else 0 |
//!
//! They are described anew whenever a journal is opened, for the recorder that is installed then.
//! Install it before the first one is.
//!
#![cfg_attr(feature = "metrics", doc = "```")]
#![cfg_attr(not(feature = "metrics"), doc = "```ignore")]
//! use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
//! use runwal::{Engine, Options};
//! use runwal::record::Id;
//! use runwal::run::{Recorder as RunRecorder, RunRequest};
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! /// Knows one counter. A program has an exporter that knows them all.
//! #[derive(Default)]
//! struct Appends(Arc<AtomicU64>);
//!
//! impl Recorder for Appends {
//!     fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
//!         match key.name() {
//!             "runwal_appends_total" => Counter::from_arc(Arc::clone(&self.0)),
//!             _ => Counter::noop(),
//!         }
//!     }
//!     # fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge { Gauge::noop() }
//!     # fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram { Histogram::noop() }
//!     # fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
//!     # fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
//!     # fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
//! }
//!
//! let appends = Appends::default();
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path().join("data");
//! metrics::with_local_recorder(&appends, || {
//!     let (engine, _) = Engine::open(&dir, Options::default())?;
//!     RunRecorder::prepare(&engine, RunRequest::new(Id::new("T-016")?, Id::new("r-1")?, Id::new("build")?))?;
//!     engine.close()
//! })?;
//! assert_eq!(appends.0.load(Ordering::Relaxed), 1);
//! # Ok::<(), runwal::Error>(())
//! ```

#![cfg_attr(
    not(all(feature = "tracing", feature = "metrics")),
    allow(dead_code, unused_variables, reason = "what is told here is read by the features alone")
)]

use crate::clock::Clock;
use crate::position::Position;
use std::fmt::Display;

/// The target of everything the engine tells.
#[cfg(feature = "tracing")]
pub const TARGET: &str = "runwal";

/// A group of appends that became durable with one sync.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Committed {
    pub(crate) appends: usize,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) position: Position,
    /// Where anybody wanted to know.
    pub(crate) sync_ns: Option<u64>,
}

/// How a journal was found when it was opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened<'a> {
    pub(crate) verdict: &'a str,
    pub(crate) quarantined_bytes: u64,
    pub(crate) kept_records: u64,
    pub(crate) interrupted: usize,
    pub(crate) position: Position,
}

/// Opens a journal, within a span of its own.
pub(crate) fn opening<T, E: Display>(
    open: impl FnOnce() -> Result<T, E>,
    found: impl FnOnce(&T) -> Opened<'_>,
) -> Result<T, E> {
    #[cfg(feature = "metrics")]
    describe();
    #[cfg(feature = "tracing")]
    let _within = tracing::info_span!(target: TARGET, "runwal::open").entered();
    let result = open();
    match &result {
        Ok(value) => {
            #[cfg(feature = "tracing")]
            {
                let Opened { verdict, quarantined_bytes, kept_records, interrupted, position } = found(value);
                let position = position.0;
                tracing::info!(
                    target: TARGET,
                    verdict,
                    quarantined_bytes,
                    kept_records,
                    interrupted,
                    position,
                    "opened the journal"
                );
            }
            #[cfg(feature = "metrics")]
            metrics::gauge!("runwal_poisoned").set(0.0);
        }
        Err(error) => {
            #[cfg(feature = "tracing")]
            tracing::warn!(target: TARGET, %error, "the journal could not be opened");
        }
    }
    result
}

/// The end of a segment was recovered.
pub(crate) fn recovered(segment: u64, quarantined_bytes: u64, kept_records: u64) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: TARGET,
        segment,
        quarantined_bytes,
        kept_records,
        "recovered the end of a segment"
    );
}

/// A run without an end was given one.
pub(crate) fn interrupted(run: &dyn Display, attempt: u32, ended_processes: usize) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: TARGET, %run, attempt, ended_processes, "ended a run whose recorder is dead");
}

/// A file could not be brought to the disk.
pub(crate) fn unpublished(error: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: TARGET, %error, "a file could not be published; the journal has every record");
}

/// A write failed.
pub(crate) fn poisoned(error: &str) {
    #[cfg(feature = "tracing")]
    tracing::error!(target: TARGET, error, "a write failed; nothing more is written through this handle");
    #[cfg(feature = "metrics")]
    metrics::gauge!("runwal_poisoned").set(1.0);
}

/// The next segment was begun.
pub(crate) fn rolled(segment: u64, capacity_bytes: u64) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: TARGET, segment, capacity_bytes, "began the next segment");
    #[cfg(feature = "metrics")]
    metrics::counter!("runwal_rolls_total").increment(1);
}

/// An append was accepted.
pub(crate) fn accepted() {
    #[cfg(feature = "metrics")]
    metrics::gauge!("runwal_queue_depth").increment(1.0);
}

/// An append was committed or refused.
pub(crate) fn answered() {
    #[cfg(feature = "metrics")]
    metrics::gauge!("runwal_queue_depth").decrement(1.0);
}

/// Does `work`; answers also with how long it took in nanoseconds, where anybody wants to know.
pub(crate) fn timed<T>(clock: &dyn Clock, work: impl FnOnce() -> T) -> (T, Option<u64>) {
    #[cfg(any(feature = "tracing", feature = "metrics"))]
    if wants_times() {
        let start = clock.monotonic_ns();
        let value = work();
        return (value, Some(clock.monotonic_ns().saturating_sub(start)));
    }
    (work(), None)
}

#[cfg(any(feature = "tracing", feature = "metrics"))]
fn wants_times() -> bool {
    #[cfg(feature = "tracing")]
    let told = tracing::enabled!(target: TARGET, tracing::Level::DEBUG);
    #[cfg(not(feature = "tracing"))]
    let told = false;
    told || cfg!(feature = "metrics")
}

/// A group of appends became durable.
pub(crate) fn committed(group: &Committed) {
    let Committed { appends, records, bytes, position, sync_ns } = *group;
    #[cfg(feature = "tracing")]
    {
        let (position, sync_us) = (position.0, sync_ns.map(|ns| ns / 1_000));
        tracing::debug!(target: TARGET, appends, records, bytes, position, sync_us, "committed");
    }
    #[cfg(feature = "metrics")]
    {
        metrics::counter!("runwal_appends_total").increment(appends as u64);
        metrics::counter!("runwal_records_total").increment(records);
        metrics::counter!("runwal_bytes_total").increment(bytes);
        // Fewer than 2^32 of them: nothing is rounded.
        metrics::histogram!("runwal_group_appends").record(u32::try_from(appends).unwrap_or(u32::MAX));
        if let Some(ns) = sync_ns {
            metrics::histogram!("runwal_sync_seconds").record(std::time::Duration::from_nanos(ns));
        }
    }
}

/// Says what the numbers mean.
#[cfg(feature = "metrics")]
fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("runwal_appends_total", Unit::Count, "Appends that became durable.");
    describe_counter!("runwal_records_total", Unit::Count, "Records that became durable.");
    describe_counter!("runwal_bytes_total", Unit::Bytes, "Bytes written to segments for appends.");
    describe_counter!("runwal_rolls_total", Unit::Count, "Segments begun because the one before was full.");
    describe_histogram!("runwal_group_appends", Unit::Count, "Appends that shared one sync.");
    describe_histogram!("runwal_sync_seconds", Unit::Seconds, "How long the sync of a group took.");
    describe_gauge!("runwal_queue_depth", Unit::Count, "Appends accepted and not yet committed or refused.");
    describe_gauge!(
        "runwal_poisoned",
        Unit::Count,
        "1 from a failed write until a journal is opened, else 0."
    );
}
