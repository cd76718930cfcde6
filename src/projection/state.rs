//! `state.json`, `meta.json`, and the `summary` checkpoint that holds both.

use crate::position::Time;
use crate::record::{RunPrepared, StatePatch, Status};
use base64::Engine as _;
use serde::Serialize;
use serde::ser::SerializeMap;

/// Where a run stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunState {
    /// `None` before the first record.
    pub status: Option<Status>,
    /// When it began: what the request said.
    pub started_at: Option<Time>,
    /// When its last record came to be.
    pub updated_at: Option<Time>,
    /// When it ended.
    pub finished_at: Option<Time>,
    /// How it went.
    pub summary: Option<String>,
    /// The worker's exit code.
    pub exit_code: Option<i32>,
    /// The signal that ended the worker.
    pub signal: Option<String>,
    /// The worker's process id.
    pub pid: Option<u32>,
    /// The sequence of the last lifecycle event.
    pub last_event_seq: Option<u64>,
    /// The number of the last checkpoint.
    pub last_checkpoint_seq: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StateJson<'a> {
    task_id: Option<&'a str>,
    step_id: Option<&'a str>,
    run_id: Option<&'a str>,
    attempt: Option<u32>,
    status: Option<&'static str>,
    started_at: Option<String>,
    updated_at: Option<String>,
    finished_at: Option<String>,
    summary: Option<&'a str>,
    exit_code: Option<i32>,
    signal: Option<&'a str>,
    pid: Option<u32>,
    last_event_seq: Option<u64>,
    last_checkpoint_seq: Option<u32>,
}

impl RunState {
    pub(super) fn prepared(created: Time) -> Self {
        Self { status: Some(Status::Prepared), started_at: Some(created), ..Self::default() }
    }

    pub(super) fn patch(&mut self, patch: &StatePatch) {
        fn set<T: Clone>(field: &mut T, change: Option<&T>) {
            if let Some(value) = change {
                *field = value.clone();
            }
        }
        self.status = patch.status.or(self.status);
        set(&mut self.started_at, patch.started_at.as_ref());
        set(&mut self.finished_at, patch.finished_at.as_ref());
        set(&mut self.summary, patch.summary.as_ref());
        set(&mut self.exit_code, patch.exit_code.as_ref());
        set(&mut self.signal, patch.signal.as_ref());
        set(&mut self.pid, patch.pid.as_ref());
    }

    fn json<'a>(&'a self, request: Option<&'a RunPrepared>) -> StateJson<'a> {
        let shown = |time: Option<Time>| time.map(Time::to_millis_string);
        StateJson {
            task_id: request.map(|r| r.name.task.as_str()),
            step_id: request.map(|r| r.step.as_str()),
            run_id: request.map(|r| r.name.run.as_str()),
            attempt: request.map(|r| r.attempt),
            status: self.status.map(Status::word),
            started_at: shown(self.started_at),
            updated_at: shown(self.updated_at),
            finished_at: shown(self.finished_at),
            summary: self.summary.as_deref(),
            exit_code: self.exit_code,
            signal: self.signal.as_deref(),
            pid: self.pid,
            last_event_seq: self.last_event_seq,
            last_checkpoint_seq: self.last_checkpoint_seq,
        }
    }

    pub(super) fn to_json(&self, request: Option<&RunPrepared>) -> Vec<u8> {
        pretty(&self.json(request))
    }

    /// The compact text of `state.json`.
    pub fn to_compact(&self, request: Option<&RunPrepared>) -> String {
        serde_json::to_string(&self.json(request)).unwrap_or_default()
    }
}

/// Two-space indented, with a newline at the end. These structs have text for keys and no floats,
/// so rendering them cannot fail.
fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Bytes as text where they are UTF-8, else as an object with their base64.
struct Text<'a>(&'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(text) = std::str::from_utf8(self.0) {
            return serializer.serialize_str(text);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("base64", &base64::engine::general_purpose::STANDARD.encode(self.0))?;
        map.end()
    }
}

/// Pairs as an object, in their order.
struct Pairs<'a, K, V>(Vec<(K, V)>, std::marker::PhantomData<&'a ()>);

impl<K: Serialize, V: Serialize> Serialize for Pairs<'_, K, V> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ParentJson<'a> {
    task_id: &'a str,
    run_id: &'a str,
    checkpoint: Option<u32>,
}

/// The content of `meta.json`, in the order of its keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MetaJson<'a> {
    task_id: &'a str,
    step_id: &'a str,
    run_id: &'a str,
    attempt: u32,
    step_kind: Option<&'a str>,
    worker_kind: Option<&'a str>,
    command: Vec<Text<'a>>,
    working_tree: Option<Text<'a>>,
    environment: Pairs<'a, String, Text<'a>>,
    timeout_ms: Option<u64>,
    grace_ms: u64,
    checkpoints: bool,
    recorder_id: String,
    boot_id: String,
    controller: Option<&'a str>,
    host: &'a str,
    term: Option<u64>,
    labels: Pairs<'a, &'a str, &'a str>,
    parent: Option<ParentJson<'a>>,
    renderer: u16,
    created_at: String,
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What was asked for, as an ordered JSON object.
pub fn meta_value(run: &RunPrepared, term: Option<u64>, created: Time) -> impl Serialize + '_ {
    let pairs = std::marker::PhantomData;
    MetaJson {
        task_id: run.name.task.as_str(),
        step_id: run.step.as_str(),
        run_id: run.name.run.as_str(),
        attempt: run.attempt,
        step_kind: run.step_kind.as_deref(),
        worker_kind: run.worker_kind.as_deref(),
        command: run.command.iter().map(|arg| Text(arg)).collect(),
        working_tree: run.working_tree.as_deref().map(Text),
        environment: Pairs(
            run.environment
                .iter()
                .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), Text(value)))
                .collect(),
            pairs,
        ),
        timeout_ms: run.timeout_ms,
        grace_ms: run.grace_ms,
        checkpoints: run.checkpoints,
        recorder_id: hex(&run.recorder),
        boot_id: hex(&run.boot),
        controller: run.controller.as_deref(),
        host: &run.host,
        term,
        labels: Pairs(run.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(), pairs),
        parent: run.parent.as_ref().map(|p| ParentJson {
            task_id: p.name.task.as_str(),
            run_id: p.name.run.as_str(),
            checkpoint: p.checkpoint,
        }),
        renderer: run.renderer,
        created_at: created.to_millis_string(),
    }
}

/// `meta.json`.
pub fn meta_json(run: &RunPrepared, term: Option<u64>, created: Time) -> Vec<u8> {
    pretty(&meta_value(run, term, created))
}

/// The content of a `summary` checkpoint: the request, and the state before the checkpoint itself.
pub fn summary_json(run: &RunPrepared, term: Option<u64>, created: Time, state: &RunState) -> Vec<u8> {
    #[derive(Serialize)]
    struct Summary<R, S> {
        request: R,
        state: S,
    }
    pretty(&Summary { request: meta_value(run, term, created), state: state.json(Some(run)) })
}
