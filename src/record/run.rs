//! Kind 1: a run was prepared. The first record of a run's stream.

use super::ids::{Id, RunName};
use super::wire;
use crate::error::Result;

pub(super) const VERSION: u8 = 1;

/// Bytes that are usually text: an argument, a path. Shown as text where they are UTF-8.
pub type Bytes = Vec<u8>;

/// The run, and perhaps the checkpoint, that another goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentRun {
    /// Its name.
    pub name: RunName,
    /// The number of the checkpoint.
    pub checkpoint: Option<u32>,
}

/// What was asked for, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPrepared {
    /// Task and run.
    pub name: RunName,
    /// The step of the task.
    pub step: Id,
    /// Which attempt at the step it is, from 1.
    pub attempt: u32,
    /// What kind of step, in the conductor's words.
    pub step_kind: Option<String>,
    /// What kind of worker, in the conductor's words.
    pub worker_kind: Option<String>,
    /// The command with its arguments.
    pub command: Vec<Bytes>,
    /// The directory it works in.
    pub working_tree: Option<Bytes>,
    /// The variables of its environment that were allowed to be recorded.
    pub environment: Vec<(Bytes, Bytes)>,
    /// How long it may take.
    pub timeout_ms: Option<u64>,
    /// How long between asking it to end and ending it.
    pub grace_ms: u64,
    /// Whether checkpoints are taken.
    pub checkpoints: bool,
    /// The engine that records it.
    pub recorder: [u8; 16],
    /// The boot of the machine it was recorded in.
    pub boot: [u8; 16],
    /// The conductor.
    pub controller: Option<String>,
    /// The machine.
    pub host: String,
    /// What the caller wants to find it by.
    pub labels: Vec<(String, String)>,
    /// What it goes on from.
    pub parent: Option<ParentRun>,
    /// The version of the rules by which its files are rendered.
    pub renderer: u16,
}

#[derive(bincode::Encode, bincode::Decode)]
struct V1 {
    task: String,
    run: String,
    step: String,
    attempt: u32,
    step_kind: Option<String>,
    worker_kind: Option<String>,
    command: Vec<Vec<u8>>,
    working_tree: Option<Vec<u8>>,
    environment: Vec<(Vec<u8>, Vec<u8>)>,
    timeout_ms: Option<u64>,
    grace_ms: u64,
    checkpoints: bool,
    recorder: [u8; 16],
    boot: [u8; 16],
    controller: Option<String>,
    host: String,
    labels: Vec<(String, String)>,
    parent: Option<(String, String, Option<u32>)>,
    renderer: u16,
}

impl RunPrepared {
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let parent = self.parent.as_ref();
        wire::encode(&V1 {
            task: self.name.task.to_string(),
            run: self.name.run.to_string(),
            step: self.step.to_string(),
            attempt: self.attempt,
            step_kind: self.step_kind.clone(),
            worker_kind: self.worker_kind.clone(),
            command: self.command.clone(),
            working_tree: self.working_tree.clone(),
            environment: self.environment.clone(),
            timeout_ms: self.timeout_ms,
            grace_ms: self.grace_ms,
            checkpoints: self.checkpoints,
            recorder: self.recorder,
            boot: self.boot,
            controller: self.controller.clone(),
            host: self.host.clone(),
            labels: self.labels.clone(),
            parent: parent.map(|p| (p.name.task.to_string(), p.name.run.to_string(), p.checkpoint)),
            renderer: self.renderer,
        })
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let v1: V1 = wire::decode(bytes)?;
        let id = |text: String| Id::new(text).map_err(|e| e.message());
        let parent = match v1.parent {
            None => None,
            Some((task, run, checkpoint)) => {
                Some(ParentRun { name: RunName { task: id(task)?, run: id(run)? }, checkpoint })
            }
        };
        Ok(Self {
            name: RunName { task: id(v1.task)?, run: id(v1.run)? },
            step: id(v1.step)?,
            attempt: v1.attempt,
            step_kind: v1.step_kind,
            worker_kind: v1.worker_kind,
            command: v1.command,
            working_tree: v1.working_tree,
            environment: v1.environment,
            timeout_ms: v1.timeout_ms,
            grace_ms: v1.grace_ms,
            checkpoints: v1.checkpoints,
            recorder: v1.recorder,
            boot: v1.boot,
            controller: v1.controller,
            host: v1.host,
            labels: v1.labels,
            parent,
            renderer: v1.renderer,
        })
    }
}
