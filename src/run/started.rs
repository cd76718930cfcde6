//! The event that a worker, of whatever kind, began.

use super::recorder::{RunRequest, host_name};
use crate::engine::{Log, NewRecord, RunInfo};
use crate::error::Result;
use crate::position::Seq;
use crate::record::{Body, Level, Lifecycle, StatePatch, Status, event};
use serde::{Deserialize, Serialize};

/// The size of a terminal's window, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct WindowSize {
    pub(super) rows: u16,
    pub(super) columns: u16,
}

/// What `worker_started` tells.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StartedData<'a> {
    step_kind: Option<&'a str>,
    worker_kind: Option<&'a str>,
    timeout_sec: Option<u64>,
    worktree: Option<String>,
    pub(super) pid: Option<u32>,
    pub(super) start_ticks: Option<u64>,
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) terminal: Option<WindowSize>,
    /// The commit that the git diff is against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) base_commit: Option<String>,
}

impl<'a> StartedData<'a> {
    pub(super) fn of(request: &'a RunRequest) -> Self {
        Self {
            step_kind: request.step_kind.as_deref(),
            worker_kind: request.worker_kind.as_deref(),
            timeout_sec: request.timeout_ms.map(|ms| ms.div_ceil(1000)),
            worktree: request.working_tree.as_deref().map(|t| String::from_utf8_lossy(t).into_owned()),
            pid: None,
            start_ticks: None,
            host: host_name(),
            terminal: None,
            base_commit: None,
        }
    }

    /// The event and the change of state.
    pub(super) fn records(&self, message: String) -> Result<Vec<NewRecord>> {
        let started = Lifecycle::new(event::WORKER_STARTED, Level::Info, message).with_data(self)?;
        let patch =
            StatePatch { status: Some(Status::Running), pid: self.pid.map(Some), ..StatePatch::default() };
        Ok(vec![Body::Lifecycle(started).into(), Body::StatePatch(patch).into()])
    }
}

/// The commit that a run began with, which its git diffs are against; `None` where it was not
/// recorded, or cannot be read.
pub fn base_commit(log: &mut Log, run: &RunInfo) -> Result<Option<String>> {
    let mut base = None;
    log.stream(run.stream, Seq(1), &mut |record| {
        if let Body::Lifecycle(happened) = &record.body {
            base = base_of(happened);
        }
        Ok(base.is_none())
    })?;
    Ok(base)
}

/// The same of one event.
pub(super) fn base_of(happened: &Lifecycle) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Base {
        base_commit: Option<String>,
    }
    if happened.event != event::WORKER_STARTED {
        return None;
    }
    serde_json::from_str::<Base>(happened.data.as_str()).ok()?.base_commit
}

/// An event that is worth a look and stops nothing.
pub(super) fn warning(event: &str, message: String) -> NewRecord {
    Body::Lifecycle(Lifecycle::new(event, Level::Warn, message)).into()
}
