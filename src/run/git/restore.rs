//! Back to where a run left its working tree: a patch on a clean checkout of its base.

use super::command::{Answer, Budget, Git, shown, shown_some};
use super::{Place, is_id};
use crate::clock::System;
use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long git may take for all of it.
const TIME_LIMIT: Duration = Duration::from_mins(10);
const UNCHANGED: &str = "Nothing was changed there.";
/// What is in git's directory while something is half done.
const UNFINISHED: &[(&str, &str)] = &[
    ("MERGE_HEAD", "merge"),
    ("CHERRY_PICK_HEAD", "cherry-pick"),
    ("REVERT_HEAD", "revert"),
    ("rebase-merge", "rebase"),
    ("rebase-apply", "rebase"),
];

/// What restoring did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The top of the working tree that it was done in.
    pub top: PathBuf,
    /// How many files the patch names.
    pub files: usize,
    /// What is left to be done by hand, a sentence each.
    pub notes: Vec<String>,
}

/// Applies the patch of a checkpoint `git_diff` to a clean checkout of the same base. The index is
/// not touched: what was restored shows as changes that are not staged.
///
/// `base` is the commit the patch was taken against, or the id of the empty tree; where it is not
/// known, the patch itself has to tell whether it fits.
///
/// # Errors
/// [`ErrorKind::Misuse`] where `into` is in no git working tree, is not clean, or has something
/// else checked out; [`ErrorKind::Conflict`] where the patch does not fit, or reaches out of the
/// working tree. Nothing was changed then. [`ErrorKind::Io`] where writing failed in the middle.
pub fn restore_git_diff(patch: &[u8], base: Option<&str>, into: &Path) -> Result<Restored> {
    let clock = System;
    let budget = Budget::new(&clock, TIME_LIMIT, &|| false);
    let place = Place::find(into, &budget)?.ok_or_else(|| {
        Error::misuse(format!("{} is not in a git working tree. {UNCHANGED}", into.display()))
            .hint("Make a fresh one with `git clone` or `git worktree add`. It needs git to be installed.")
    })?;
    let git = Git::working(&place.top, Some(&place.git_dir), &budget)?;
    let target = Target { place, git };
    if let Some(base) = base {
        target.has_base(base, &budget)?;
    }
    target.is_clean()?;
    let Target { place, git } = &target;
    let mut restored = Restored { top: place.top.clone(), files: 0, notes: Vec::new() };
    if patch.is_empty() {
        return Ok(restored);
    }
    target.copies_nothing(patch)?;
    let named = git.call(["apply", "--numstat", "-z", "-"]).input(patch).run()?;
    let names = target.fits(named)?;
    let names = numstat(&names);
    target.meets_nothing_ignored(&names)?;
    let apply = ["apply", "--binary", "--whitespace=nowarn", "-p1"];
    target.fits(git.call(apply.iter().chain(&["--check", "-"])).input(patch).run()?)?;
    let applied = git.call(apply.iter().chain(&["-"])).input(patch).run();
    applied.and_then(|answer| answer.fine("applying the git diff")).map_err(|error| {
        let message = format!("{error}. The working tree {} may be changed in part", place.top.display());
        Error::new(ErrorKind::Io, message)
            .hint("`git status` there tells what was changed. The checkpoint itself is safe in the journal.")
    })?;
    restored.files = names.len();
    if memchr::memmem::find(patch, b"Subproject commit ").is_some() {
        restored.notes.push(
            "If the patch moves submodules to another commit: check that out in them by hand, as git apply does \
             not."
                .to_owned(),
        );
    }
    Ok(restored)
}

/// The paths out of `git apply --numstat -z`.
fn numstat(out: &[u8]) -> Vec<Vec<u8>> {
    let records = out.split(|b| *b == 0).filter(|record| !record.is_empty());
    records.filter_map(|record| record.splitn(3, |b| *b == b'\t').nth(2)).map(<[u8]>::to_vec).collect()
}

/// A checkout that is to be restored into.
struct Target<'t> {
    place: Place,
    git: Git<'t>,
}

impl Target<'_> {
    fn refuse(&self, why: &str) -> Error {
        Error::misuse(format!("the checkout {} {why}. {UNCHANGED}", self.place.top.display()))
    }

    /// The tree of the base has to be the one that is checked out.
    fn has_base(&self, base: &str, budget: &Budget<'_>) -> Result<()> {
        if !is_id(base) {
            let message = format!("{} is not the id of a commit. {UNCHANGED}", shown(base.as_bytes()));
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        let tree = |of: &str| -> Result<Option<Vec<u8>>> {
            let answer = self.git.call(["rev-parse", "-q", "--verify", &format!("{of}^{{tree}}")]).run()?;
            Ok((answer.code == Some(0)).then_some(answer.out))
        };
        let Some(wanted) = tree(base)? else {
            return Err(self
                .refuse(&format!("does not have the commit {base}, which the run began with"))
                .hint("Fetch it, or name a clone of the repository that the run worked in."));
        };
        let head = self.place.head(budget)?;
        if tree(&head)?.as_ref() == Some(&wanted) {
            return Ok(());
        }
        Err(self
            .refuse(&format!("is at {head}, and the run began with {base}"))
            .hint(format!("Check it out first: git checkout --detach {base}")))
    }

    fn is_clean(&self) -> Result<()> {
        let unfinished = UNFINISHED.iter().find(|(name, _)| self.place.git_dir.join(name).exists());
        if let Some((_, what)) = unfinished {
            return Err(self
                .refuse(&format!("is in the middle of a {what}"))
                .hint("Finish or abort it, or name another checkout."));
        }
        let mut hidden = Vec::new();
        let mut see = |record: &[u8]| {
            if record.first().is_some_and(u8::is_ascii_lowercase) {
                hidden.push(record.get(2..).unwrap_or_default().to_vec());
            }
        };
        let listed = self.git.call(["ls-files", "-z", "-v"]).each(&mut see).run()?;
        listed.fine("listing git's index")?;
        if !hidden.is_empty() {
            return Err(self
                .refuse(&format!("may not be clean: git assumes {} to be unchanged", shown_some(&hidden)))
                .hint("`git update-index --really-refresh` there, or name a fresh checkout."));
        }
        let args = [
            "status",
            "--porcelain",
            "-z",
            "--untracked-files=all",
            "--ignore-submodules=dirty",
            "--no-renames",
        ];
        let out = self.git.call(args).run()?.fine("asking git whether the checkout is clean")?;
        // Two letters, a space, and the path.
        let differs: Vec<Vec<u8>> =
            out.split(|b| *b == 0).filter_map(|record| record.get(3..)).map(<[u8]>::to_vec).collect();
        if differs.is_empty() {
            return Ok(());
        }
        let filters = if self.git.filters.is_empty() {
            ""
        } else {
            " Filters are not run: if they are the reason, check out without them."
        };
        Err(self
            .refuse(&format!("is not clean: {}", shown_some(&differs)))
            .hint(format!("Commit or stash what is there, or name a fresh checkout.{filters}")))
    }

    /// Whether git takes the patch.
    fn fits(&self, answer: Answer) -> Result<Vec<u8>> {
        if answer.code == Some(0) {
            return Ok(answer.out);
        }
        let top = self.place.top.display();
        let message = format!("the git diff does not fit to {top}: git said {}. {UNCHANGED}", answer.words());
        Err(Error::new(ErrorKind::Conflict, message)
            .hint("Name a clean checkout of the commit that the run began with, with nothing ignored in it."))
    }

    /// git does not ask where a copy comes from, which may be anywhere outside. A diff of ours has
    /// none, and no line of content begins with these words.
    fn copies_nothing(&self, patch: &[u8]) -> Result<()> {
        let copies = |line: &[u8]| line.starts_with(b"copy from ") || line.starts_with(b"copy to ");
        if !patch.split(|b| *b == b'\n').any(copies) {
            return Ok(());
        }
        let top = self.place.top.display();
        let message = format!("the git diff for {top} copies files, which may lie elsewhere. {UNCHANGED}");
        Err(Error::new(ErrorKind::Conflict, message)
            .hint("runwal takes no such diff; look at it before using it."))
    }

    /// git finds an ignored file in its way only where it has the very same name; one above or
    /// below would stop it in the middle.
    fn meets_nothing_ignored(&self, names: &[Vec<u8>]) -> Result<()> {
        let args = ["ls-files", "-z", "-o", "-i", "--exclude-standard"];
        let wanted: BTreeSet<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let mut in_the_way = Vec::new();
        let mut see = |ignored: &[u8]| {
            // With a slash at its end it is a repository of its own.
            let ignored = ignored.strip_suffix(b"/").unwrap_or(ignored);
            let above =
                (0..ignored.len()).filter(|i| ignored[*i] == b'/').any(|i| wanted.contains(&ignored[..i]));
            let below = [ignored, b"/"].concat();
            let next = wanted.range(below.as_slice()..).next();
            let holds = next.is_some_and(|name| name.starts_with(&below));
            if above || holds || wanted.contains(ignored) {
                in_the_way.push(ignored.to_vec());
            }
        };
        self.git.call(args).each(&mut see).run()?.fine("listing ignored files")?;
        if in_the_way.is_empty() {
            return Ok(());
        }
        let message = format!(
            "ignored files are in the way of the git diff at {}: {}. {UNCHANGED}",
            self.place.top.display(),
            shown_some(&in_the_way)
        );
        Err(Error::new(ErrorKind::Conflict, message).hint("Move them away, or name a fresh checkout."))
    }
}
