//! How a worker ended, in words and as records.

use crate::engine::NewRecord;
use crate::error::Result;
use crate::processes::Left;
use crate::record::{Body, Level, Lifecycle, StatePatch, event};
use crate::run::recorder::Outcome;
use crate::run::word::Word;
use rustix::process::Signal;
use serde::Serialize;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

/// How many processes are named that a worker left running.
const MAX_NAMED: usize = 20;

/// How the child ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// Its time was up.
    pub(super) timed_out: bool,
    /// It was asked to stop.
    pub(super) cancelled: bool,
    /// Its pipes were closed by everybody who held them.
    pub(super) drained: bool,
    /// From its start to its exit.
    pub(super) duration: Duration,
    pub(super) max_rss_bytes: u64,
    pub(super) user: Duration,
    pub(super) system: Duration,
    /// What it left running.
    pub(super) left: Vec<Left>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Exited<'a> {
    outcome: &'static str,
    exit_code: Option<i32>,
    signal: Option<&'a str>,
    duration_ms: u64,
    max_rss_bytes: u64,
    user_ms: u64,
    system_ms: u64,
    drained: bool,
    left_running: &'a [Left],
    left_running_count: usize,
}

impl Ended {
    /// What its end says, and the worker's own word where that counts; and whether it is ok.
    pub(super) fn outcome(&self, word: Option<&Word>) -> (Outcome, bool) {
        let outcome = match (self, word) {
            (Self { cancelled: true, .. }, _) => Outcome::Cancelled,
            (Self { timed_out: true, .. }, _) => Outcome::Failed,
            (_, Some(word)) => word.outcome,
            (Self { status, .. }, None) if status.success() => Outcome::Completed,
            _ => Outcome::Failed,
        };
        (outcome, outcome.is_ok())
    }

    /// In a sentence.
    pub(super) fn summary(&self) -> String {
        let millis = self.duration.as_millis();
        let after = format!("after {}.{} s", millis / 1000, millis % 1000 / 100);
        match (self.status.code(), self.status.signal()) {
            _ if self.timed_out => format!("Timed out {after}."),
            (_, _) if self.cancelled => format!("Cancelled {after}."),
            (Some(code), _) => format!("Exited with code {code} {after}."),
            (None, signal) => format!("Ended by {} {after}.", signal_name(signal.unwrap_or(0))),
        }
    }

    /// The event that tells all of it, and the signal as a part of the state.
    pub(super) fn records(&self) -> Result<Vec<NewRecord>> {
        let signal = self.status.signal().map(signal_name);
        let outcome = match self {
            Self { timed_out: true, .. } => "timed_out",
            Self { cancelled: true, .. } => "cancelled",
            Self { status, .. } if status.success() => "completed",
            Self { .. } => "failed",
        };
        let level = if self.status.success() { Level::Info } else { Level::Error };
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let data = Exited {
            outcome,
            exit_code: self.status.code(),
            signal: signal.as_deref(),
            duration_ms: millis(self.duration),
            max_rss_bytes: self.max_rss_bytes,
            user_ms: millis(self.user),
            system_ms: millis(self.system),
            drained: self.drained,
            left_running: &self.left[..self.left.len().min(MAX_NAMED)],
            left_running_count: self.left.len(),
        };
        let exited = Lifecycle::new(event::WORKER_EXITED, level, self.summary()).with_data(&data)?;
        let mut records = vec![Body::Lifecycle(exited).into()];
        if signal.is_some() {
            let patch = StatePatch { signal: Some(signal), ..StatePatch::default() };
            records.push(Body::StatePatch(patch).into());
        }
        Ok(records)
    }
}

/// `SIGKILL` for 9.
fn signal_name(number: i32) -> String {
    match Signal::from_named_raw(number) {
        Some(signal) => {
            let shown = format!("{signal:?}");
            let name: String = shown.chars().filter(char::is_ascii_alphanumeric).collect();
            let name = name.strip_prefix("Signal").unwrap_or(&name).to_uppercase();
            if name.starts_with("SIG") { name } else { format!("SIG{name}") }
        }
        None => format!("signal {number}"),
    }
}
