//! The way back: a git diff on a clean checkout, and nothing on anything else.

#![expect(clippy::disallowed_methods, reason = "plays the user, whose checkouts these are")]

use runwal::engine::{Engine, Options};
use runwal::record::{FileFormat, Id, Level, Lifecycle, Replay, event};
use runwal::run::{End, Outcome, Recorder, RunRequest, restore_git_diff};
use runwal::{Error, ErrorKind};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A checkout with a commit, and room around it.
struct Place {
    dir: tempfile::TempDir,
    top: PathBuf,
    base: String,
}

pub(crate) fn git(dir: &Path, args: &[&str]) -> Vec<u8> {
    let mut git = Command::new("git");
    git.current_dir(dir).args([
        "-c",
        "init.defaultBranch=main",
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
    ]);
    for name in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"] {
        git.env_remove(name);
    }
    let output = git.args(args).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {output:?}");
    output.stdout
}

pub(crate) fn no_git() -> bool {
    let missing = Command::new("git").arg("--version").output().is_err();
    if missing {
        println!("skipped: there is no git");
    }
    missing
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("tree");
        fs::create_dir(&top).unwrap();
        let mut place = Self { dir, top, base: String::new() };
        git(&place.top, &["init", "-q"]);
        place.write("a.txt", "1\n2\n3\n").write("dir/b.txt", "b\n").write(".gitignore", "*.tmp\n/out\n");
        git(&place.top, &["add", "."]);
        git(&place.top, &["commit", "-qm", "first"]);
        String::from_utf8_lossy(&git(&place.top, &["rev-parse", "HEAD"])).trim().clone_into(&mut place.base);
        place
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.top.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// The patch to what `change` makes of a checkout like this one.
    fn patch(change: impl Fn(&Self)) -> Vec<u8> {
        let other = Self::new();
        change(&other);
        git(&other.top, &["add", "-A"]);
        git(&other.top, &["diff", "--cached", "--binary", "--full-index", "-M"])
    }

    /// Everything there is, in the checkout and around it.
    fn all(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        collect(self.dir.path(), &mut found);
        found
    }

    fn refuses(&self, patch: &[u8], base: Option<&str>, into: &Path) -> Error {
        let before = self.all();
        let Err(error) = restore_git_diff(patch, base, into) else {
            panic!("not refused: {}", String::from_utf8_lossy(patch));
        };
        assert_eq!(self.all(), before, "{error}");
        assert!(matches!(error.kind(), ErrorKind::Misuse | ErrorKind::Conflict), "{error:?}");
        assert!(error.message().contains("Nothing was changed"), "{error}");
        assert!(error.advice().is_some() || error.message().contains("is not the id"), "{error}");
        error
    }
}

fn collect(dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        let mode = meta.permissions().mode();
        let what = if meta.is_dir() {
            collect(&path, found);
            format!("{mode:o}")
        } else if meta.is_symlink() {
            format!("to {}", fs::read_link(&path).unwrap().display())
        } else {
            format!("{mode:o} {:?} {:?}", meta.modified().unwrap(), fs::read(&path).unwrap())
        };
        found.insert(path, what);
    }
}

fn new_file(name: &str, mode: &str, content: &str) -> String {
    format!(
        "diff --git a/{name} b/{name}\nnew file mode {mode}\nindex 0000000..1111111\n--- /dev/null\n+++ b/{name}\n\
         @@ -0,0 +1 @@\n+{content}\n\\ No newline at end of file\n"
    )
}

#[test]
fn whatever_is_not_a_clean_checkout_of_the_base_is_refused_untouched() {
    if no_git() {
        return;
    }
    let cases: &[(&str, fn(&Place), &str)] = &[
        (
            "modified",
            |p| {
                p.write("a.txt", "x");
            },
            "is not clean: \"a.txt\"",
        ),
        (
            "staged",
            |p| {
                p.write("n", "");
                git(&p.top, &["add", "n"]);
            },
            "is not clean: \"n\"",
        ),
        (
            "untracked",
            |p| {
                p.write("dir/new/n", "");
            },
            "is not clean: \"dir/new/n\"",
        ),
        (
            "untracked, and hidden",
            |p| {
                p.write("n", "");
                git(&p.top, &["config", "status.showUntrackedFiles", "no"]);
            },
            "is not clean",
        ),
        (
            "assumed unchanged",
            |p| {
                git(&p.top, &["update-index", "--assume-unchanged", "a.txt"]);
                p.write("a.txt", "x");
            },
            "may not be clean",
        ),
        (
            "another commit",
            |p| {
                p.write("a.txt", "x");
                git(&p.top, &["commit", "-qam", "second"]);
            },
            "the run began with",
        ),
        (
            "a merge",
            |p| {
                p.write(".git/MERGE_HEAD", &p.base);
            },
            "in the middle of a merge",
        ),
        (
            "a rebase",
            |p| {
                p.write(".git/rebase-merge/onto", &p.base);
            },
            "in the middle of a rebase",
        ),
        (
            "an ignored file of the same name",
            |p| {
                p.write("new.tmp", "mine");
            },
            "in the way",
        ),
        (
            "an ignored file above",
            |p| {
                p.write("out", "mine");
            },
            "in the way",
        ),
        (
            "an ignored file below",
            |p| {
                p.write("gets/deep/x.tmp", "mine");
            },
            "in the way",
        ),
        (
            "an ignored link",
            |p| {
                symlink("..", p.top.join("out")).unwrap();
            },
            "in the way",
        ),
    ];
    for (what, change, word) in cases {
        let place = Place::new();
        let patch = Place::patch(|p| {
            p.write("a.txt", "1\n2\n4\n")
                .write("new.tmp", "theirs")
                .write("out/x", "theirs")
                .write("gets", "a file");
            git(&p.top, &["add", "-f", "out/x", "new.tmp"]);
        });
        change(&place);
        let error = place.refuses(&patch, Some(&place.base), &place.top);
        assert!(error.message().contains(word), "{what}: {error}");
    }
    let place = Place::new();
    let patch = Place::patch(|p| {
        p.write("a.txt", "1\n2\n4\n");
    });
    fs::create_dir(place.dir.path().join("empty")).unwrap();
    let outside = place.refuses(&patch, None, &place.dir.path().join("empty"));
    assert!(outside.message().contains("not in a git working tree"), "{outside}");
    place.refuses(&patch, None, &place.dir.path().join("nowhere"));
    place.refuses(&patch, Some("--output=x"), &place.top);
    place.refuses(&patch, Some("HEAD"), &place.top);
    let unknown = place.refuses(&patch, Some(&"1".repeat(40)), &place.top);
    assert!(unknown.message().contains("does not have the commit"), "{unknown}");
    place.refuses(b"", Some(&"1".repeat(40)), &place.top);
    place.refuses(b"no patch at all", None, &place.top);
    place.refuses(&patch[..patch.len() - 4], None, &place.top);
    // From below the top, all of the tree counts; an empty patch is done at once.
    assert_eq!(restore_git_diff(b"", Some(&place.base), &place.top.join("dir")).unwrap().files, 0);
    assert_eq!(restore_git_diff(&patch, Some(&place.base), &place.top.join("dir")).unwrap().files, 1);
    assert_eq!(fs::read(place.top.join("a.txt")).unwrap(), b"1\n2\n4\n");
    let again = place.refuses(&patch, Some(&place.base), &place.top);
    assert!(again.message().contains("is not clean"), "{again}");
}

#[test]
fn a_patch_that_reaches_out_of_the_working_tree_is_refused_untouched() {
    if no_git() {
        return;
    }
    let link = |target: &str| new_file("l", "120000", target);
    let hostile = [
        new_file("../escaped", "100644", "x"),
        new_file("dir/../../escaped", "100644", "x"),
        new_file("/tmp/runwal-escaped", "100644", "x"),
        new_file(".git/hooks/pre-commit", "100755", "x"),
        new_file("dir/.git/config", "100644", "x"),
        new_file(".GIT/hooks/pre-commit", "100755", "x"),
        new_file(".git", "100644", "gitdir: /elsewhere"),
        new_file("./x", "100644", "x"),
        new_file("", "100644", "x"),
        link("..") + &new_file("l/escaped", "100644", "x"),
        link("/tmp") + &new_file("l/runwal-escaped", "100644", "x"),
        link(".git") + &new_file("l/hooks/pre-commit", "100755", "x"),
        new_file("fine", "100644", "x") + &new_file("../escaped", "100644", "x"),
        new_file("a.txt", "100644", "x"),
        "diff --git a/a.txt b/../escaped\nsimilarity index 100%\nrename from a.txt\nrename to ../escaped\n".to_owned(),
        "diff --git a/../tree/a.txt b/x\nsimilarity index 100%\ncopy from ../tree/a.txt\ncopy to x\n".to_owned(),
        "diff --git a/.git/config b/x\nsimilarity index 100%\ncopy from .git/config\ncopy to x\n".to_owned(),
        "diff --git a/.git/config b/x\nsimilarity index 100%\nrename from .git/config\nrename to x\n".to_owned(),
        "diff --git a/.git/HEAD b/.git/HEAD\ndeleted file mode 100644\nindex 1111111..0000000\n".to_owned(),
        "--- a/../escaped\n+++ b/../escaped\n@@ -0,0 +1 @@\n+x\n".to_owned(),
        "diff --git \"a/\\056\\056/e\" \"b/\\056\\056/e\"\nnew file mode 100644\n--- /dev/null\n+++ \"b/\\056\\056/e\"\n\
         @@ -0,0 +1 @@\n+x\n"
            .to_owned(),
    ];
    let place = Place::new();
    symlink("..", place.top.join("through.tmp")).unwrap();
    for patch in &hostile {
        for base in [None, Some(place.base.as_str())] {
            place.refuses(patch.as_bytes(), base, &place.top);
        }
    }
    let through = new_file("through.tmp/escaped", "100644", "x");
    place.refuses(through.as_bytes(), None, &place.top);
    assert!(!Path::new("/tmp/runwal-escaped").exists());
    // A link alone is content like any other.
    assert_eq!(restore_git_diff(link("/nowhere").as_bytes(), None, &place.top).unwrap().files, 1);
}

/// Records a run with the checkpoints that a recorder would take.
fn record(place: &Place, run: &str, base: Option<&str>, patches: &[&[u8]]) {
    let (engine, _) = Engine::open(place.dir.path().join("data"), Options::default()).unwrap();
    let id = |text: &str| Id::new(text).unwrap();
    let mut recorder = Recorder::prepare(&engine, RunRequest::new(id("t"), id(run), id("s"))).unwrap();
    let started = Lifecycle::new(event::WORKER_STARTED, Level::Info, "a worker");
    let data = serde_json::json!({ "worktree": "w", "baseCommit": base });
    recorder.event(started.with_data(&data).unwrap()).unwrap();
    for patch in patches {
        let replay = Replay::GitApplyBinary;
        recorder.checkpoint("git_diff", FileFormat::Patch, replay, "The diff.", patch.to_vec()).unwrap();
    }
    recorder.checkpoint("test_output", FileFormat::Text, Replay::None, "Tests.", b"ok\n".to_vec()).unwrap();
    recorder.finish(End::new(Outcome::Completed, "Done.")).unwrap();
    drop(recorder);
    engine.close().unwrap();
}

fn restore(place: &Place, args: &[&str], into: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runwal"));
    command.arg("--dir").arg(place.dir.path().join("data")).arg("restore").args(args).arg("--into").arg(into);
    // As a hook finds its environment.
    for name in
        ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX", "GIT_CONFIG"]
    {
        command.env(name, place.dir.path().join("elsewhere"));
    }
    command.env("GIT_DIFF_OPTS", "-u0").env("GIT_EXTERNAL_DIFF", "false").env("GIT_TRACE", "1");
    command.output().unwrap()
}

#[test]
fn the_command_restores_the_last_diff_and_any_checkpoint() {
    if no_git() {
        return;
    }
    let place = Place::new();
    let first = Place::patch(|p| {
        p.write("a.txt", "first\n");
    });
    // More than one record takes.
    let mut noise = vec![0; 20 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let last = Place::patch(|p| {
        p.write("a.txt", "last\n").write("big", &noise);
    });
    record(&place, "r", Some(&place.base), &[&first, &last]);
    record(&place, "none", Some(&place.base), &[]);
    record(&place, "without-base", None, &[&first]);
    record(&place, "elsewhere", Some(&"1".repeat(40)), &[&first]);
    let ends = |code: i32, args: &[&str], into: &Path| {
        let output = restore(&place, args, into);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let out = place.dir.path().join("out");
    fs::create_dir(&out).unwrap();
    assert!(ends(1, &["none"], &place.top).contains("has no git diff"));
    ends(1, &["r", "--checkpoint", "99"], &place.top);
    ends(1, &["nobody"], &place.top);
    ends(2, &["r", "--checkpoint", "0"], &place.top);
    ends(2, &["r"], &place.dir.path().join("nowhere"));
    assert!(ends(2, &["r"], &out).contains("not in a git working tree"));
    assert!(ends(2, &["elsewhere"], &place.top).contains("does not have the commit"));
    assert_eq!(git(&place.top, &["status", "--porcelain"]), b"");

    let said = ends(0, &["t/r"], &place.top);
    assert!(said.contains("checkpoint 3 of run t/r restored into") && said.contains("2 files"), "{said}");
    assert_eq!(fs::read(place.top.join("a.txt")).unwrap(), b"last\n");
    assert!(fs::read(place.top.join("big")).unwrap() == noise);
    assert_eq!(git(&place.top, &["diff", "--cached", "--name-only"]), b"");
    assert!(ends(2, &["r"], &place.top).contains("is not clean"));
    git(&place.top, &["stash", "-qu"]);
    let said = ends(0, &["r", "--checkpoint", "2", "-o", "json"], &place.top.join("dir"));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["checkpoint"], &said["files"]), (&2.into(), &1.into()));
    assert_eq!(fs::read(place.top.join("a.txt")).unwrap(), b"first\n");
    git(&place.top, &["stash", "-qu"]);
    ends(0, &["without-base"], &place.top);

    assert!(ends(0, &["r", "--checkpoint", "4"], &out).contains("0004-test-output.txt"));
    assert_eq!(fs::read(out.join("0004-test-output.txt")).unwrap(), b"ok\n");
    fs::write(out.join("0001-summary.json"), "mine").unwrap();
    assert!(ends(2, &["r", "--checkpoint", "1"], &out).contains("left as it is"));
    assert_eq!(fs::read(out.join("0001-summary.json")).unwrap(), b"mine");
    symlink("/nowhere", out.join("0005-log-tail.txt")).unwrap();
    ends(2, &["r", "--checkpoint", "5"], &out);
}
