//! The next attempt at a step: what is asked for follows from the run before, which stays as it is.

use super::git::{Restored, restore_git_diff};
use super::recorder::RunRequest;
use super::started::base_of;
use crate::engine::{Damage, Log, RunInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::position::Seq;
use crate::projection::Parts;
use crate::record::{
    Body, Checkpoint, Id, ParentRun, Record, Replay, RunName, RunPrepared, event, malformed,
};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// The next attempt at a step, made of a run that has ended: its request, one attempt further, and
/// the working tree that it left, as far as a checkpoint has it.
///
/// The old run is only read. Nothing is recorded before the request is handed to
/// [`Recorder::prepare`](super::Recorder::prepare), [`record_process`](super::record_process) or
/// [`run_step`](super::run_step).
///
/// ```
/// use runwal::engine::{Engine, Options, RunInfo};
/// use runwal::record::Id;
/// use runwal::run::{NextAttempt, Recorder, RunRequest};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let (data, checkout) = (dir.path().join("data"), dir.path().join("checkout"));
/// # #[allow(clippy::disallowed_methods)]
/// # std::fs::create_dir_all(&checkout).unwrap();
/// # let (engine, _) = Engine::open(&data, Options::default())?;
/// # drop(Recorder::prepare(&engine, RunRequest::new(Id::new("T-016")?, Id::new("r-1")?, Id::new("build")?))?);
/// # engine.close()?;
/// // Opening ends what a dead recorder left, and says so.
/// let (engine, report) = Engine::open(&data, Options::default())?;
/// let lost = &report.interrupted[0];
/// let lost = RunInfo { name: lost.name.clone(), stream: lost.stream };
///
/// let mut next = NextAttempt::of(&mut engine.log()?, &lost, Id::new("r-2")?)?;
/// assert!(next.damage.is_empty());
/// // Like: it was killed, and left no git diff.
/// next.notes.iter().for_each(|note| eprintln!("{note}"));
/// // A fresh clone or `git worktree` of the commit that the old run began with.
/// if let Some(restored) = next.restore_into(&checkout)? {
///     println!("{} files are as r-1 left them", restored.files);
/// }
/// next.request.labels.push(("why".to_owned(), "interrupted".to_owned()));
/// let run = Recorder::prepare(&engine, next.request)?;
/// assert_eq!(run.fold().request().map(|request| request.attempt), Some(2));
/// # Ok::<(), runwal::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct NextAttempt {
    /// What is asked for, to be changed at will: the old request under the new id, one attempt
    /// further. Its parent is the old run with the last git diff of it that is whole, else with its
    /// last checkpoint. Term, controller and time are the new conductor's, and left open. The
    /// environment is what was recorded of the old one; it is set for nobody.
    pub request: RunRequest,
    /// What could not be read of the old run. Checkpoints may be among it that are newer than the one
    /// that was found.
    pub damage: Vec<Damage>,
    /// Why the old run may have left more than its checkpoints tell, a sentence each: one that was
    /// skipped, is incomplete, was cut short, or never taken, as its recorder was killed.
    pub notes: Vec<String>,
    base: Option<String>,
    diff: Option<Checkpoint>,
    left_by: RunName,
}

impl NextAttempt {
    /// Reads a run that has ended. `id` names the next one, within the same task.
    ///
    /// # Errors
    /// [`ErrorKind::Misuse`] where the run has not ended, or attempts cannot be counted any further;
    /// [`ErrorKind::Corrupt`] where it cannot be read what was asked for; [`ErrorKind::NotFound`]
    /// where there is no such run.
    pub fn of(log: &mut Log, run: &RunInfo, id: Id) -> Result<Self> {
        log.refresh()?;
        let old = request_of(log, run)?;
        if !log.has_ended(run.stream)? {
            let message = format!("run {} has not ended; its recorder may be alive", old.name);
            return Err(Error::misuse(message).hint(
                "Wait for its end. If its recorder is dead, opening the journal for writing ends the run: \
                 `runwal recover`.",
            ));
        }
        let Some(attempt) = old.attempt.checked_add(1) else {
            let message =
                format!("run {} is attempt {}, the last that can be counted", old.name, old.attempt);
            return Err(Error::misuse(message).hint("Go on under another step, or set the number yourself."));
        };
        let mut found = Found::default();
        let mut damage = log.stream(run.stream, Seq(1), &mut |record| {
            found.take(record);
            Ok(true)
        })?;
        found.note_what_is_cut_short();
        let checkpoint = found.diff.as_ref().map(|diff| diff.number).or(found.last);
        found.look_further_back(log, &old, &mut damage)?;
        let Found { diff, base, notes, left_by, .. } = found;
        let left_by = left_by.unwrap_or_else(|| old.name.clone());
        let request = RunRequest {
            name: RunName { task: old.name.task.clone(), run: id },
            step: old.step,
            attempt,
            step_kind: old.step_kind,
            worker_kind: old.worker_kind,
            command: old.command,
            working_tree: old.working_tree,
            environment: old.environment,
            timeout_ms: old.timeout_ms,
            grace_ms: old.grace_ms,
            checkpoints: old.checkpoints,
            controller: None,
            term: None,
            labels: old.labels,
            parent: Some(ParentRun { name: old.name, checkpoint }),
            created_at: None,
        };
        Ok(Self { request, damage, notes, base, diff, left_by })
    }

    /// The git diff that is restored: the last of the run that is whole, else that of the run it went on
    /// from, and so on, where it is against the same commit; a note says so. A process's diff is taken when
    /// it has ended, so one whose recorder was killed has none of its own.
    pub fn git_diff(&self) -> Option<&Checkpoint> {
        self.diff.as_ref()
    }

    /// The run that left that diff: the old one, or one that it went on from.
    pub fn git_diff_left_by(&self) -> &RunName {
        &self.left_by
    }

    /// The commit that the git diff is against; `None` where it is not known.
    pub fn base_commit(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// Makes `dir` the working tree of the request. Where there is a git diff, `dir` is to be in a clean
    /// checkout of its base, and gets the diff applied first; it may be below the top of the checkout,
    /// as the old working tree may have been. Without one, `dir` is taken as it is, and the answer is
    /// `None`.
    ///
    /// # Errors
    /// Those of [`restore_git_diff`]; [`ErrorKind::Misuse`] where `dir` is no directory. The request
    /// is as it was then.
    pub fn restore_into(&mut self, dir: impl AsRef<Path>) -> Result<Option<Restored>> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            return Err(Error::misuse(format!("{} is no directory to work in", dir.display())));
        }
        let tree = std::path::absolute(dir)
            .map_err(|error| Error::io(format!("asking where {} is", dir.display()), error))?;
        let restore = |diff: &Checkpoint| restore_git_diff(&diff.content, self.base.as_deref(), dir);
        let restored = self.diff.as_ref().map(restore).transpose()?;
        self.request.working_tree = Some(tree.into_os_string().into_vec());
        Ok(restored)
    }
}

/// What was asked for.
fn request_of(log: &mut Log, run: &RunInfo) -> Result<RunPrepared> {
    let (request, damage) = log.request_of(run.stream)?;
    if let Some(request) = request {
        return Ok(request);
    }
    if let Some(met) = damage.first() {
        let error = met.to_error();
        let message = format!("the first record of run {} cannot be read: {}", run.name, error.message());
        return Err(Error::corrupt(message, error.place().unwrap_or_default())
            .hint("Its request is lost with it. `runwal verify` tells what is damaged."));
    }
    let mut first = None;
    log.stream(run.stream, Seq(1), &mut |record| {
        first = Some((record.position, record.body.kind()));
        Ok(false)
    })?;
    Err(first.map_or_else(
        || Error::not_found(format!("there is no run {}", run.name), ErrorKind::NotFound.advice()),
        |(position, kind)| malformed(position, kind, "it does not tell what was asked for"),
    ))
}

/// How many runs back a git diff is looked for.
const MAX_PARENTS: usize = 64;

/// What a run left for the next one, as far as it was read.
#[derive(Default)]
struct Found {
    parts: Parts,
    diff_parts: Parts,
    /// The last git diff that is whole.
    diff: Option<Checkpoint>,
    /// The number of the last git diff of which there is anything.
    begun: Option<u32>,
    /// The number of the last checkpoint that is whole.
    last: Option<u32>,
    base: Option<String>,
    notes: Vec<String>,
    /// Whose diff it is, if not the run's own.
    left_by: Option<RunName>,
}

impl Found {
    fn take(&mut self, record: &Record) {
        match &record.body {
            Body::Lifecycle(happened) => {
                self.base = self.base.take().or_else(|| base_of(happened));
                if [event::CHECKPOINT_SKIPPED, event::CHECKPOINT_INCOMPLETE].contains(&&*happened.event) {
                    self.notes.push(happened.message.clone());
                }
            }
            Body::Checkpoint(part) if part.replay == Replay::GitApplyBinary => {
                self.begun = Some(part.number);
                if let Some(whole) = self.diff_parts.add(part, record.more) {
                    self.last = Some(whole.number);
                    self.diff = Some(whole);
                }
            }
            Body::Checkpoint(part) => {
                if let Some(whole) = self.parts.add(part, record.more) {
                    self.last = Some(whole.number);
                }
            }
            _ => {}
        }
    }

    /// A run that died before it left a git diff went on from one that may have left one: the last that
    /// is known of the work is there.
    fn look_further_back(
        &mut self,
        log: &mut Log,
        old: &RunPrepared,
        damage: &mut Vec<Damage>,
    ) -> Result<()> {
        let mut parent = old.parent.clone();
        for _ in 0..MAX_PARENTS {
            let Some(ParentRun { name, .. }) = parent.filter(|_| self.diff.is_none()) else { break };
            let Some(stream) = log.find(&name.to_string())? else { break };
            let mut found = Self::default();
            let mut request = None;
            damage.extend(log.stream(stream, Seq(1), &mut |record| {
                if let Body::Run(run) = &record.body {
                    request = Some(run.clone());
                }
                found.take(record);
                Ok(true)
            })?);
            let fits = self.base.is_none() || self.base == found.base;
            if let Some(diff) = found.diff.filter(|_| fits) {
                self.notes.push(format!(
                    "Run {} left no git diff. That of checkpoint {} of {name} is taken, which it went on from.",
                    old.name, diff.number
                ));
                (self.diff, self.base, self.left_by) = (Some(diff), found.base, Some(name));
            }
            parent = request.and_then(|request| request.parent);
        }
        if let (None, Some(tree), true) = (&self.diff, &old.working_tree, self.notes.is_empty()) {
            let tree = String::from_utf8_lossy(tree);
            self.notes.push(format!(
                "Run {} left no git diff: what it changed is in {tree}, if anywhere.",
                old.name
            ));
        }
        Ok(())
    }

    fn note_what_is_cut_short(&mut self) {
        let whole = self.diff.as_ref().map(|diff| diff.number);
        if let Some(number) = self.begun.filter(|begun| Some(*begun) != whole) {
            self.notes.push(format!("The git diff of checkpoint {number} is not whole, and not used."));
        }
    }
}
