//! The checkpoints that are taken between a worker's end and the run's.

use super::cancel::Cancel;
use super::git::{Budget, Checkout, Content, MAX_PATCH_LEN, TIME_LIMIT};
use super::recorder::{Recorder, RunRequest};
use super::started::warning;
use super::word::Expected;
use crate::engine::{Engine, NewRecord};
use crate::error::Result;
use crate::processes::{RECORDER_VARIABLE, RUN_VARIABLE};
use crate::record::{FileFormat, Replay, checkpoint_type, event};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest file that `test_output` is taken of.
const MAX_TEST_OUTPUT_LEN: u64 = 8 << 20;

/// Which checkpoints are taken at the end of a step, where the request asks for any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoints {
    /// Whether `git_diff` is taken, where the working tree is a git checkout. Default: yes.
    pub git_diff: bool,
    /// The longest diff that is taken, in bytes. Default: 8 MiB.
    pub git_diff_limit: u64,
    /// How long taking it may last. Default: a minute.
    pub git_diff_time: Duration,
    /// A file that the tests write, relative to the working tree: `test_output` is taken of it.
    pub test_output: Option<PathBuf>,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { git_diff: true, git_diff_limit: MAX_PATCH_LEN, git_diff_time: TIME_LIMIT, test_output: None }
    }
}

/// What the checkpoints are taken of, as it was before the worker ran.
#[derive(Debug)]
pub(super) struct AtEnd {
    engine: Engine,
    asked: Checkpoints,
    /// What tells that git's processes are the run's, should their recorder be killed.
    environment: Vec<(&'static str, String)>,
    checkout: Option<std::result::Result<Checkout, String>>,
    test: Option<std::result::Result<Expected, String>>,
}

impl AtEnd {
    /// Looks around before the worker runs.
    pub(super) fn look(engine: &Engine, request: &RunRequest, asked: &Checkpoints, cancel: &Cancel) -> Self {
        let environment = vec![
            (RUN_VARIABLE, request.name.to_string()),
            (RECORDER_VARIABLE, crate::engine::hex(&engine.recorder_id())),
        ];
        let (engine, asked) = (engine.clone(), asked.clone());
        let mut found = Self { engine, asked, environment, checkout: None, test: None };
        if !request.checkpoints {
            return found;
        }
        let tree = request.working_tree.as_deref().map(OsStr::from_bytes).map(Path::new);
        if let Some(tree) = tree.filter(|tree| found.asked.git_diff && may_be_in_a_checkout(tree)) {
            let stop = || cancel.is_cancelled();
            let budget = found.budget(&stop);
            found.checkout = Checkout::find(tree, &budget).map_err(|error| error.to_string()).transpose();
        }
        found.test = found.asked.test_output.as_ref().map(|file| {
            Expected::look(&tree.unwrap_or(Path::new(".")).join(file)).map_err(|error| error.to_string())
        });
        found
    }

    fn budget<'b>(&'b self, stop: &'b dyn Fn() -> bool) -> Budget<'b> {
        let budget = Budget::new(&*self.engine.world().clock, self.asked.git_diff_time, stop);
        budget.with_environment(self.environment.clone())
    }

    /// The commit that the git diff will be against.
    pub(super) fn base_commit(&self) -> Option<String> {
        Some(self.checkout.as_ref()?.as_ref().ok()?.base().to_owned())
    }

    /// Takes them behind the records in `rest`; leaves what is to be told of them in there. Once
    /// `cancel` asks to stop a second time, what is left of them is skipped.
    pub(super) fn take(
        &self,
        recorder: &mut Recorder,
        rest: &mut Vec<NewRecord>,
        cancel: &Cancel,
    ) -> Result<()> {
        if self.checkout.is_none() && self.test.is_none() {
            return Ok(());
        }
        recorder.append(std::mem::take(rest))?;
        self.git_diff(recorder, rest, cancel)?;
        self.test_output(recorder, rest)
    }

    /// Takes the git diff now, whatever is taken at the end. Answers with its number; `None` where there
    /// is no checkout, or where it was skipped, which is recorded with the reason.
    pub(super) fn git_diff_now(&self, recorder: &mut Recorder, cancel: &Cancel) -> Result<Option<u32>> {
        let last = |recorder: &Recorder| recorder.fold().state().last_checkpoint_seq;
        let (before, mut told) = (last(recorder), Vec::new());
        self.git_diff(recorder, &mut told, cancel)?;
        let number = last(recorder).filter(|number| Some(*number) != before);
        recorder.append(told)?;
        Ok(number)
    }

    fn git_diff(&self, recorder: &mut Recorder, rest: &mut Vec<NewRecord>, cancel: &Cancel) -> Result<()> {
        let mut skip = |why: &str| {
            rest.push(warning(event::CHECKPOINT_SKIPPED, format!("No git_diff: {}", why.escape_debug())));
        };
        let checkout = match &self.checkout {
            None => return Ok(()),
            Some(Ok(checkout)) => checkout,
            Some(Err(why)) => {
                skip(why);
                return Ok(());
            }
        };
        let Some(data) = self.engine.world().disk.path() else { return Ok(()) };
        let before = cancel.count();
        let stop = || cancel.count() != before;
        let budget = self.budget(&stop);
        let diff = match checkout.diff(&data, self.asked.git_diff_limit, &budget) {
            Ok(diff) => diff,
            Err(error) => {
                skip(&error.to_string());
                return Ok(());
            }
        };
        match diff.content {
            Content::Patch(patch) => {
                let summary = format!("The working tree against {}.", checkout.base());
                let kind = checkpoint_type::GIT_DIFF;
                recorder.checkpoint(kind, FileFormat::Patch, Replay::GitApplyBinary, &summary, patch)?;
            }
            Content::Skipped(why) => skip(&why),
        }
        for note in diff.notes {
            rest.push(warning(event::CHECKPOINT_INCOMPLETE, format!("git_diff: {}", note.escape_debug())));
        }
        Ok(())
    }

    fn test_output(&self, recorder: &mut Recorder, rest: &mut Vec<NewRecord>) -> Result<()> {
        let read = match &self.test {
            Some(Ok(expected)) => expected.read(MAX_TEST_OUTPUT_LEN),
            Some(Err(why)) => Err(why.clone()),
            None => return Ok(()),
        };
        let file = self.asked.test_output.as_deref().unwrap_or(Path::new("")).display().to_string();
        match read {
            Ok(content) => {
                let summary = format!("What the tests wrote to {}.", file.escape_debug());
                let kind = checkpoint_type::TEST_OUTPUT;
                recorder.checkpoint(kind, FileFormat::Text, Replay::None, &summary, content)?;
            }
            Err(why) => {
                let message = format!("No test_output of {}: {why}.", file.escape_debug());
                rest.push(warning(event::CHECKPOINT_SKIPPED, message));
            }
        }
        Ok(())
    }
}

/// Whether it is worth asking git, which takes as long as a short worker.
fn may_be_in_a_checkout(tree: &Path) -> bool {
    let tree = tree.canonicalize().unwrap_or_else(|_| tree.to_owned());
    tree.ancestors().any(|dir| dir.join(".git").symlink_metadata().is_ok())
}
