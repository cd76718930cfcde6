//! A working tree against the commit it began with, and the way back.
//!
//! The user's repository is read and never written to: git works on a copy of the index in the data
//! directory, which keeps what is known of unchanged files, so that they are not read again. What
//! git does not know of yet is put into the copy under an id that no object has; `git add -N` would
//! write the empty object into the user's store.

mod command;
mod restore;
mod scratch;
#[cfg(test)]
mod tests;

pub(crate) use command::Budget;
pub use restore::{Restored, restore_git_diff};

use crate::disk::Kind;
use crate::disk::os::OsDisk;
use crate::error::{Error, ErrorKind, Result};
use command::{Git, shown, shown_some};
use scratch::Scratch;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest patch, unless something else is asked for.
pub(crate) const MAX_PATCH_LEN: u64 = 8 << 20;
/// How long taking one may last, unless something else is asked for.
pub(crate) const TIME_LIMIT: Duration = Duration::from_mins(1);
/// The most bytes of changed files, before and after together, that git is let compare.
const MAX_CHANGED_LEN: u64 = 256 << 20;
/// The most bytes of names.
const MAX_NAMES_LEN: u64 = 64 << 20;
/// How many submodules are looked into.
const MAX_SUBMODULES: usize = 64;
/// How often it is tried while files come and go.
const ATTEMPTS: usize = 2;

/// A git working tree, found from a directory in it.
#[derive(Debug, Clone)]
struct Place {
    top: PathBuf,
    git_dir: PathBuf,
}

impl Place {
    /// `None` where there is no working tree, or no git.
    ///
    /// # Errors
    /// Where git refuses to look at it, as when it belongs to somebody else.
    fn find(dir: &Path, budget: &Budget<'_>) -> Result<Option<Self>> {
        if !dir.is_dir() {
            return Ok(None);
        }
        let git = Git::asking(dir, budget);
        // The first line is the answer, and the path after it may contain anything.
        let ask = |what| -> Result<Option<PathBuf>> {
            let answer = match git.call(["rev-parse", "--is-inside-work-tree", what]).run() {
                Err(error) if error.is_missing() => return Ok(None),
                other => other?,
            };
            let none = answer.out.starts_with(b"false\n")
                || memchr::memmem::find(&answer.complaint, b"not a git repository").is_some();
            if none {
                return Ok(None);
            }
            let doing = format!("looking for a git checkout at {}", dir.display());
            let out = answer.fine(&doing).map_err(|error| error.into_kind(ErrorKind::Misuse))?;
            let path = out.strip_prefix(b"true\n").and_then(|path| path.strip_suffix(b"\n"));
            Ok(path.map(|path| PathBuf::from(OsStr::from_bytes(path))))
        };
        let Some(git_dir) = ask("--absolute-git-dir")? else { return Ok(None) };
        Ok(ask("--show-toplevel")?.map(|top| Self { top, git_dir }))
    }

    /// The commit at HEAD, or the id of the empty tree where there is none yet.
    fn head(&self, budget: &Budget<'_>) -> Result<String> {
        let git = Git::asking(&self.top, budget);
        let answer = git.call(["rev-parse", "-q", "--verify", "HEAD"]).run()?;
        let out = if answer.code == Some(1) {
            git.call(["hash-object", "-t", "tree", "/dev/null"]).run()?.fine("naming the empty tree")?
        } else {
            answer.fine("asking git for the commit that is checked out")?
        };
        let id = String::from_utf8_lossy(&out).trim().to_owned();
        if is_id(&id) {
            return Ok(id);
        }
        Err(Error::new(ErrorKind::Io, format!("git names the commit {}", shown(id.as_bytes()))))
    }
}

/// Whether it is the whole id of an object.
fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A git checkout as it was when a run began.
#[derive(Debug, Clone)]
pub(crate) struct Checkout {
    place: Place,
    base: String,
}

/// The difference of a working tree to its base.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Diff {
    /// The difference itself.
    pub(crate) content: Content,
    /// What it cannot carry, a sentence each.
    pub(crate) notes: Vec<String>,
}

/// A patch, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// For `git apply --binary`; empty where nothing differs.
    Patch(Vec<u8>),
    /// Why, in words.
    Skipped(String),
}

/// Why there is no patch.
enum Halt {
    /// It is the tree's own doing.
    Skip(String),
    /// Something did not work, and may work when tried again.
    Fail(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Fail(error)
    }
}

impl Checkout {
    /// The checkout that `tree` is part of. `None` where it is part of none, or there is no git.
    ///
    /// # Errors
    /// Where git refuses to look at it, as when it belongs to somebody else, or time is up.
    pub(crate) fn find(tree: &Path, budget: &Budget<'_>) -> Result<Option<Self>> {
        let Some(place) = Place::find(tree, budget)? else { return Ok(None) };
        let base = place.head(budget)?;
        Ok(Some(Self { place, base }))
    }

    /// The id of the commit that was checked out, or of the empty tree where there was none yet.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// The difference of the whole working tree to the base, binary and untracked files too;
    /// without ignored files, and without the data directory wherever it is.
    ///
    /// # Errors
    /// Where the data directory cannot be used. What git or the tree are to blame for is a patch
    /// that was skipped.
    pub(crate) fn diff(&self, data_dir: &Path, limit: u64, budget: &Budget<'_>) -> Result<Diff> {
        let real = |path: &Path| {
            path.canonicalize().map_err(|e| Error::io(format!("looking for {}", path.display()), e))
        };
        let data_dir = real(data_dir)?;
        let top = match real(&self.place.top) {
            Ok(top) => top,
            Err(error) => return Ok(Diff::skipped(format!("The working tree is gone: {error}."))),
        };
        if top.starts_with(&data_dir) {
            return Ok(Diff::skipped("The working tree lies in the data directory.".to_owned()));
        }
        let scratch = Scratch::new(&data_dir)?;
        let within = data_dir.strip_prefix(&top).ok().map(|within| within.as_os_str().to_owned());
        let mut attempt = 1;
        loop {
            let mut notes = Vec::new();
            let content = match self.attempt(&scratch, within.as_deref(), limit, budget, &mut notes) {
                Ok(patch) => Content::Patch(patch),
                Err(Halt::Skip(why)) => Content::Skipped(why),
                Err(Halt::Fail(error)) if attempt == ATTEMPTS || error.kind() == ErrorKind::Retry => {
                    Content::Skipped(format!("{error}."))
                }
                Err(Halt::Fail(_)) => {
                    attempt += 1;
                    continue;
                }
            };
            return Ok(Diff { content, notes });
        }
    }

    fn attempt(
        &self,
        scratch: &Scratch,
        within: Option<&OsStr>,
        limit: u64,
        budget: &Budget<'_>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<u8>, Halt> {
        let Place { top, git_dir } = &self.place;
        let index = scratch.take(&git_dir.join("index"))?;
        let mut work = Work {
            git: Git::working(top, Some(git_dir), budget)?.with_index(index),
            tree: OsDisk::open(top)?,
            base: &self.base,
            paths: vec![".".into()],
            notes,
        };
        if let Some(within) = within {
            let mut pathspec = OsString::from(":(top,exclude,literal)");
            pathspec.push(within);
            work.paths.push(pathspec);
        }
        work.all_in_the_index(budget)?;
        let changed = work.changed()?;
        work.only_what_can_be_read(&changed)?;
        work.note_filters(&changed)?;
        work.patch(limit)
    }
}

impl Diff {
    fn skipped(why: String) -> Self {
        Self { content: Content::Skipped(why), notes: Vec::new() }
    }
}

/// A file that differs from the base, as far as is known without reading it.
struct Changed {
    path: Vec<u8>,
    base_mode: Vec<u8>,
    base_id: Vec<u8>,
    gone: bool,
}

impl Changed {
    fn is_new(&self) -> bool {
        self.base_mode == b"000000"
    }
}

/// Changes of the index, as `git update-index --index-info` reads them.
#[derive(Default)]
struct Entries(Vec<u8>);

impl Entries {
    fn add(&mut self, mode: &[u8], id: &[u8], path: &[u8]) {
        for part in [mode, b" ", id, b" 0\t", path, b"\0"] {
            self.0.extend_from_slice(part);
        }
    }
}

/// A diff that is being taken.
struct Work<'w> {
    git: Git<'w>,
    tree: OsDisk,
    base: &'w str,
    /// What of the working tree counts.
    paths: Vec<OsString>,
    notes: &'w mut Vec<String>,
}

impl Work<'_> {
    /// An id that no object has: what has it in the index is read from the working tree.
    fn unknown(&self) -> Vec<u8> {
        vec![b'1'; self.base.len()]
    }

    /// No id: what has it is taken out of the index.
    fn nothing(&self) -> Vec<u8> {
        vec![b'0'; self.base.len()]
    }

    fn change(&self, entries: &Entries) -> Result<()> {
        if !entries.0.is_empty() {
            let call = self.git.call(["update-index", "-z", "--index-info"]);
            call.input(&entries.0).run()?.fine("changing the copy of git's index")?;
        }
        Ok(())
    }

    fn mark(&self, flag: &str, paths: &[Vec<u8>]) -> Result<()> {
        if !paths.is_empty() {
            let mut names = paths.join(&0);
            names.push(0);
            let call = self.git.call(["update-index", flag, "-z", "--stdin"]);
            call.input(&names).run()?.fine("changing the copy of git's index")?;
        }
        Ok(())
    }

    /// Brings the copy of the index to where every file of the working tree that counts is in it,
    /// and none is passed over.
    fn all_in_the_index(&mut self, budget: &Budget<'_>) -> Result<(), Halt> {
        // Files that were only touched are settled here. 1 says that some were changed.
        let refreshed = self.git.call(["update-index", "-q", "--unmerged", "--refresh"]).run()?;
        if refreshed.code != Some(1) {
            refreshed.fine("comparing the working tree with the copy of git's index")?;
        }
        let (mut unmerged, mut assumed, mut skipped, mut links) =
            (BTreeSet::new(), Vec::new(), Vec::new(), Vec::new());
        // A letter, mode, id and stage, then a tab and the path.
        let mut see = |record: &[u8]| {
            let Some(tab) = memchr::memchr(b'\t', record) else { return };
            let (head, path) = (&record[..tab], &record[tab + 1..]);
            if !head.ends_with(b" 0") {
                unmerged.insert(path.to_vec());
            } else if head[0] == b'S' || head[0] == b's' {
                skipped.push(path.to_vec());
            } else if head[0].is_ascii_lowercase() {
                assumed.push(path.to_vec());
            }
            if head.get(2..8) == Some(b"160000") {
                links.push(path.to_vec());
            }
        };
        self.git.call(["ls-files", "-z", "-s", "-v"]).each(&mut see).run()?.fine("listing git's index")?;
        let mut entries = Entries::default();
        for path in &unmerged {
            entries.add(b"0", &self.nothing(), path);
            if self.tree.look(path).is_some_and(|look| look.kind != Kind::Directory) {
                entries.add(b"100644", &self.unknown(), path);
            }
        }
        self.change(&entries)?;
        // What a sparse checkout left out is not there, and as in the index; what is there counts.
        skipped.retain(|path| self.tree.look(path).is_some());
        assumed.extend(skipped.iter().cloned());
        self.mark("--no-skip-worktree", &skipped)?;
        self.mark("--no-assume-unchanged", &assumed)?;
        self.add_untracked()?;
        self.note_submodules(&links, budget);
        Ok(())
    }

    fn add_untracked(&mut self) -> Result<(), Halt> {
        let call = self.git.call(
            ["ls-files", "-z", "-o", "--exclude-standard", "--"]
                .map(OsStr::new)
                .into_iter()
                .chain(self.paths.iter().map(OsString::as_os_str)),
        );
        let answer = call.limit(MAX_NAMES_LEN).run()?;
        if answer.cut {
            return Err(Halt::Skip("There are too many untracked files.".to_owned()));
        }
        if !answer.complaint.is_empty() && answer.code == Some(0) {
            self.notes.push(format!("Not everything could be looked at: git said {}.", answer.words()));
        }
        let names = answer.fine("listing untracked files")?;
        let (mut entries, mut nested) = (Entries::default(), Vec::new());
        for path in names.split(|b| *b == 0).filter(|path| !path.is_empty()) {
            if path.ends_with(b"/") {
                nested.push(path.to_vec());
            } else {
                entries.add(b"100644", &self.unknown(), path);
            }
        }
        if !nested.is_empty() {
            self.notes.push(format!("Left out, as repositories of their own: {}.", shown_some(&nested)));
        }
        Ok(self.change(&entries)?)
    }

    /// A patch knows the commit of a submodule and nothing of what is in it.
    fn note_submodules(&mut self, links: &[Vec<u8>], budget: &Budget<'_>) {
        let mut changed = Vec::new();
        let mut unknown = Vec::new();
        let populated = |path: &&Vec<u8>| self.tree.look(&[path.as_slice(), b"/.git"].concat()).is_some();
        for (i, path) in links.iter().filter(populated).enumerate() {
            if i >= MAX_SUBMODULES {
                unknown.push(path.clone());
                continue;
            }
            let dir = self.tree.path().join(OsStr::from_bytes(path));
            let args =
                ["status", "--porcelain", "-z", "--untracked-files=normal", "--ignore-submodules=dirty"];
            let looked = Git::working(&dir, None, budget)
                .and_then(|git| git.call(args).run()?.fine("looking into a submodule"));
            match looked {
                Ok(out) if out.is_empty() => {}
                Ok(_) => changed.push(path.clone()),
                Err(_) => unknown.push(path.clone()),
            }
        }
        if !changed.is_empty() {
            let names = shown_some(&changed);
            self.notes.push(format!("Left out, as changed within submodules: what is in {names}."));
        }
        if !unknown.is_empty() {
            self.notes.push(format!("Submodules that were not looked into: {}.", shown_some(&unknown)));
        }
    }

    fn compare<'a>(&'a self, command: &'a [&'a str]) -> impl Iterator<Item = &'a OsStr> {
        let base = ["--ignore-submodules=dirty", self.base, "--"];
        command.iter().copied().chain(base).map(OsStr::new).chain(self.paths.iter().map(OsString::as_os_str))
    }

    /// What differs, without reading a file.
    fn changed(&self) -> Result<Vec<Changed>, Halt> {
        let list = ["diff-index", "--raw", "-z", "--no-abbrev", "--no-renames", "--no-relative"];
        let answer = self.git.call(self.compare(&list)).limit(MAX_NAMES_LEN).run()?;
        if answer.cut {
            return Err(Halt::Skip("Too many files differ from the base.".to_owned()));
        }
        let out = answer.fine("comparing the working tree with the base")?;
        let mut changed = Vec::new();
        let mut parts = out.split(|b| *b == 0);
        // `:100644 100644 <id> <id> M`, then the path.
        while let (Some(head), Some(path)) = (parts.next(), parts.next()) {
            let fields: Vec<&[u8]> = head.strip_prefix(b":").unwrap_or(head).split(|b| *b == b' ').collect();
            let [base_mode, _, base_id, _, status] = fields[..] else { continue };
            changed.push(Changed {
                path: path.to_vec(),
                base_mode: base_mode.to_vec(),
                base_id: base_id.to_vec(),
                gone: status == b"D",
            });
        }
        Ok(changed)
    }

    /// Takes out what git could not read, so that it does not keep the rest from being compared,
    /// and refuses what would be too much to read.
    fn only_what_can_be_read(&mut self, changed: &[Changed]) -> Result<(), Halt> {
        let (mut special, mut closed) = (Vec::new(), Vec::new());
        let (mut entries, mut as_in_base) = (Entries::default(), Vec::new());
        let mut len = self.base_len(changed)?;
        for file in changed.iter().filter(|file| !file.gone) {
            match self.tree.look(&file.path) {
                Some(look) if look.kind == Kind::Special => {
                    entries.add(b"0", &self.nothing(), &file.path);
                    special.push(file.path.clone());
                }
                Some(look) if !look.readable => {
                    closed.push(file.path.clone());
                    if file.is_new() {
                        entries.add(b"0", &self.nothing(), &file.path);
                    } else {
                        entries.add(&file.base_mode, &file.base_id, &file.path);
                        as_in_base.push(file.path.clone());
                    }
                }
                Some(look) if look.kind == Kind::File => len = len.saturating_add(look.len),
                _ => {}
            }
        }
        if len > MAX_CHANGED_LEN {
            let mib = |len: u64| len.div_ceil(1 << 20);
            return Err(Halt::Skip(format!(
                "The files that differ have {} MiB before and after together, which is over the limit of {} MiB.",
                mib(len),
                mib(MAX_CHANGED_LEN)
            )));
        }
        if !special.is_empty() {
            let names = shown_some(&special);
            self.notes.push(format!("Left out, as neither files nor symbolic links: {names}."));
        }
        if !closed.is_empty() {
            self.notes
                .push(format!("Left as in the base, as they may not be read: {}.", shown_some(&closed)));
        }
        self.change(&entries)?;
        Ok(self.mark("--skip-worktree", &as_in_base)?)
    }

    /// How long the files that differ are in the base.
    fn base_len(&self, changed: &[Changed]) -> Result<u64, Halt> {
        let ids: BTreeSet<&[u8]> = changed
            .iter()
            .filter(|file| !file.is_new() && file.base_mode != b"160000")
            .map(|file| file.base_id.as_slice())
            .collect();
        if ids.is_empty() {
            return Ok(0);
        }
        let mut input = ids.into_iter().collect::<Vec<_>>().join(&b'\n');
        input.push(b'\n');
        let call = self.git.call(["cat-file", "--batch-check=%(objectsize)"]).input(&input);
        let out = call.run()?.fine("asking git for the sizes of the base's files")?;
        let mut len = 0_u64;
        for line in String::from_utf8_lossy(&out).lines() {
            let Ok(size) = line.trim().parse::<u64>() else {
                let why = format!("The base is not all in the repository (\"{}\").", line.escape_debug());
                return Err(Halt::Skip(why));
            };
            len = len.saturating_add(size);
        }
        Ok(len)
    }

    /// A filter's files stand in the patch as they are in the working tree.
    fn note_filters(&mut self, changed: &[Changed]) -> Result<()> {
        let mut names: Vec<u8> = Vec::new();
        for file in changed.iter().filter(|file| !file.gone) {
            names.extend_from_slice(&file.path);
            names.push(0);
        }
        if self.git.filters.is_empty() || names.is_empty() {
            return Ok(());
        }
        let mut filtered = Vec::new();
        let call = self.git.call(["check-attr", "-z", "--stdin", "filter"]).input(&names);
        let out = call.run()?.fine("asking git for attributes")?;
        let mut parts = out.split(|b| *b == 0);
        while let (Some(path), Some(_), Some(value)) = (parts.next(), parts.next(), parts.next()) {
            if self.git.filters.contains(value) {
                filtered.push(path.to_vec());
            }
        }
        if !filtered.is_empty() {
            let names = shown_some(&filtered);
            self.notes.push(format!("Taken as they are, without the filter that git would run: {names}."));
        }
        Ok(())
    }

    /// The patch, whatever the user's settings make of `git diff`.
    fn patch(&self, limit: u64) -> Result<Vec<u8>, Halt> {
        let command = [
            "diff",
            "--patch",
            "--binary",
            "--full-index",
            "-M",
            "-l1000",
            "-O/dev/null",
            "-U3",
            "--inter-hunk-context=0",
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
            "--no-relative",
            "--no-function-context",
            "--src-prefix=a/",
            "--dst-prefix=b/",
            "--submodule=short",
        ];
        let answer = self.git.call(self.compare(&command)).limit(limit).run()?;
        if answer.cut {
            let limit = if limit.is_multiple_of(1 << 20) {
                format!("{} MiB", limit >> 20)
            } else {
                format!("{limit} bytes")
            };
            return Err(Halt::Skip(format!("The git diff is over the limit of {limit}.")));
        }
        Ok(answer.fine("taking the git diff")?)
    }
}
