#![expect(clippy::disallowed_methods, reason = "plays the user, whose files these are")]
#![expect(clippy::format_push_string, reason = "a test reads better so")]

mod places;

use super::*;
use crate::clock::System;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

/// A repository in a directory of its own, and a data directory beside it.
struct Repo {
    dir: tempfile::TempDir,
    top: PathBuf,
    data: PathBuf,
}

fn git_in(dir: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for (name, value) in [("AUTHOR", "a"), ("COMMITTER", "c")] {
        git.env(format!("GIT_{name}_NAME"), value).env(format!("GIT_{name}_EMAIL"), "a@example.org");
    }
    for name in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"] {
        git.env_remove(name);
    }
    git.args([
        "-c",
        "protocol.file.allow=always",
        "-c",
        "init.defaultBranch=main",
        "-c",
        "maintenance.auto=false",
    ]);
    git.args(["-c", "gc.auto=0"]);
    git
}

fn git(dir: &Path, args: &[&str]) -> String {
    let output = git_in(dir).args(args).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut out = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; len];
    out.fill(&mut bytes);
    bytes
}

impl Repo {
    fn bare(init: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (top, data) = (dir.path().join("work"), dir.path().join("data"));
        fs::create_dir(&top).unwrap();
        fs::create_dir(&data).unwrap();
        git(&top, &[&["init", "-q"], init].concat());
        Self { dir, top, data }
    }

    /// With a commit of files of all sorts.
    fn new() -> Self {
        let repo = Self::bare(&[]);
        let lines = |n: usize| (0..n).map(|i| format!("line {i}\n")).collect::<Vec<_>>().concat();
        repo.write("text.txt", lines(40)).write("binary.bin", noise(5000, 1)).write("gone.txt", "gone\n");
        repo.write("gone.bin", noise(3000, 2)).write("moved.txt", lines(50)).write("run.sh", "#!/bin/sh\n");
        repo.write("dir/one", "1\n").write("dir/two", "2\n").write("deep/a/b/c.txt", "c\n");
        repo.write("crlf.txt", "a\r\nb\r\n").write("no-newline", "end").write("empty", "");
        repo.write(".gitignore", "*.log\n/out/\n").write("same", "a\n");
        fs::set_permissions(repo.top.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("text.txt", repo.top.join("link")).unwrap();
        repo.git(&["add", "."]);
        repo.git(&["commit", "-qm", "first"]);
        repo
    }

    fn git(&self, args: &[&str]) -> String {
        git(&self.top, args)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.top.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn remove(&self, name: &str) -> &Self {
        let path = self.top.join(name);
        if path.symlink_metadata().unwrap().is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
        self
    }

    fn find(&self) -> Checkout {
        within(|budget| Checkout::find(&self.top, budget)).unwrap().unwrap()
    }

    /// Takes the diff, and holds that neither repository nor working tree changed by it.
    fn diff(&self, checkout: &Checkout) -> Diff {
        let seen = || (files(&self.top, &["data"], true), files(&self.data, &[], false));
        let before = seen();
        let diff = within(|budget| checkout.diff(&self.data, MAX_PATCH_LEN, budget)).unwrap();
        let after = seen();
        for (before, after) in [(&before.0, &after.0), (&before.1, &after.1)] {
            for (name, what) in before.iter().chain(after) {
                let now = after.get(name).filter(|now| *now == what);
                assert!(now.is_some() || name.starts_with(b"cache"), "{} changed: {what}", shown(name));
            }
        }
        let left: Vec<_> = fs::read_dir(self.data.join("cache")).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        diff
    }

    /// A checkout of the base, fresh.
    fn fresh(&self, base: &str) -> PathBuf {
        let place = self.dir.path().join(format!("fresh-{}", crate::engine::hex(&noise(4, rand()))));
        if self.git(&["cat-file", "-t", base]) == "tree" {
            fs::create_dir(&place).unwrap();
            let format = if base.len() == 64 { "sha256" } else { "sha1" };
            git(&place, &["init", "-q", &format!("--object-format={format}")]);
        } else {
            let (from, to) = (self.top.to_str().unwrap(), place.to_str().unwrap());
            git(self.dir.path(), &["clone", "-q", "--no-checkout", from, to]);
            git(&place, &["fetch", "-q", "origin", base]);
            git(&place, &["checkout", "-q", "--detach", base]);
        }
        place
    }

    /// The whole way: the restored tree is the original one, but for what is named.
    fn there_and_back(&self, what: &str, checkout: &Checkout, but: &[&str]) -> Diff {
        let diff = self.diff(checkout);
        let Content::Patch(patch) = &diff.content else { panic!("{what}: {diff:?}") };
        let fresh = self.fresh(checkout.base());
        let restored = restore_git_diff(patch, Some(checkout.base()), &fresh).unwrap();
        assert_eq!(restored.top.canonicalize().unwrap(), fresh.canonicalize().unwrap());
        let but = [but, &[".git"]].concat();
        let (wanted, got) = (files(&self.top, &but, false), files(&fresh, &but, false));
        for name in wanted.keys().chain(got.keys()) {
            assert_eq!(wanted.get(name), got.get(name), "{what}: {}", shown(name));
        }
        diff
    }
}

fn rand() -> u64 {
    crate::clock::Entropy::number(&System).unwrap()
}

fn within<T>(act: impl FnOnce(&Budget<'_>) -> T) -> T {
    act(&Budget::new(&System, TIME_LIMIT * 10, &|| false))
}

/// Every file below, with all that is to be the same; directories only where they hold something.
fn files(top: &Path, but: &[&str], times: bool) -> BTreeMap<Vec<u8>, String> {
    fn walk(dir: &Path, top: &Path, but: &[&str], times: bool, found: &mut BTreeMap<Vec<u8>, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap();
            if but.iter().any(|but| name.starts_with(but)) {
                continue;
            }
            let meta = path.symlink_metadata().unwrap();
            let kind = meta.file_type();
            let mut what = if kind.is_dir() {
                walk(&path, top, but, times, found);
                continue;
            } else if kind.is_symlink() {
                format!("a link to {:?}", fs::read_link(&path).unwrap())
            } else if kind.is_file() {
                let executable = meta.permissions().mode() & 0o100 != 0;
                format!("{executable} {}", blake3::hash(&fs::read(&path).unwrap()))
            } else {
                "special".to_owned()
            };
            if times {
                what.push_str(&format!(" {:?}", meta.modified().unwrap()));
            }
            found.insert(name.as_os_str().as_bytes().to_vec(), what);
        }
    }
    let mut found = BTreeMap::new();
    walk(top, top, but, times, &mut found);
    found
}

fn no_git() -> bool {
    let missing = Command::new("git").arg("--version").output().is_err();
    if missing {
        println!("skipped: there is no git");
    }
    missing
}

fn patch_of(diff: &Diff) -> String {
    match &diff.content {
        Content::Patch(patch) => String::from_utf8_lossy(patch).into_owned(),
        Content::Skipped(why) => panic!("skipped: {why}"),
    }
}

fn why_of(diff: &Diff) -> &str {
    match &diff.content {
        Content::Skipped(why) => why,
        Content::Patch(_) => panic!("not skipped"),
    }
}

type Change = fn(&Repo);

/// What may have happened to a working tree, and what of it the patch leaves out.
const SITUATIONS: &[(&str, Change, &[&str])] = &[
    ("nothing", |_| {}, &[]),
    ("all sorts of changes", all_sorts, &["x.log", "out"]),
    (
        "all sorts of changes, staged",
        |r| {
            all_sorts(r);
            r.git(&["add", "-A"]);
        },
        &["x.log", "out"],
    ),
    (
        "staged, and changed again",
        |r| {
            r.write("text.txt", "staged\n").write("new", "staged\n").write("came", "and went\n");
            r.git(&["add", "."]);
            r.write("text.txt", "changed\n").write("new", "changed\n").remove("came");
        },
        &[],
    ),
    (
        "changed in the moment it was committed",
        |r| {
            r.write("same", "b\n");
            r.git(&["commit", "-qam", "b"]);
            r.write("same", "c\n");
        },
        &[],
    ),
    (
        "touched only",
        |r| {
            let file = fs::File::options().write(true).open(r.top.join("text.txt")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        },
        &[],
    ),
    (
        "taken out of the index, and there",
        |r| {
            r.git(&["rm", "-q", "--cached", "text.txt", "dir/one"]);
        },
        &[],
    ),
    (
        "intended to be added",
        |r| {
            r.write("new", "new\n").write("nothing", "");
            r.git(&["add", "-N", "new", "nothing"]);
        },
        &[],
    ),
    (
        "modes",
        |r| {
            for (name, mode) in [("text.txt", 0o755), ("run.sh", 0o644), ("binary.bin", 0o700)] {
                fs::set_permissions(r.top.join(name), fs::Permissions::from_mode(mode)).unwrap();
            }
            r.write("new.sh", "");
            fs::set_permissions(r.top.join("new.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        },
        &[],
    ),
    (
        "a file becomes a link",
        |r| {
            r.remove("text.txt");
            symlink("/nowhere/\n at all", r.top.join("text.txt")).unwrap();
        },
        &[],
    ),
    (
        "a link becomes a file",
        |r| {
            r.remove("link").write("link", "no link\n");
        },
        &[],
    ),
    (
        "a file becomes a directory",
        |r| {
            r.remove("text.txt").write("text.txt/in/it", "x\n");
        },
        &[],
    ),
    (
        "a file moves into a directory of its name",
        |r| {
            let content = fs::read(r.top.join("moved.txt")).unwrap();
            r.remove("moved.txt").write("moved.txt/moved.txt", content);
        },
        &[],
    ),
    (
        "a directory becomes a file",
        |r| {
            r.remove("dir").write("dir", "a file\n");
        },
        &[],
    ),
    (
        "a directory becomes a link",
        |r| {
            r.remove("dir");
            symlink("deep", r.top.join("dir")).unwrap();
        },
        &[],
    ),
    (
        "a link becomes a directory",
        |r| {
            r.remove("link").write("link/a", "a\n").write("link/b/c", "c\n");
        },
        &[],
    ),
    ("odd names", odd_names, &[]),
    ("a merge with conflicts", conflicts, &[]),
    (
        "hidden from git",
        |r| {
            r.git(&["update-index", "--assume-unchanged", "text.txt"]);
            r.git(&["update-index", "--skip-worktree", "gone.txt", "binary.bin"]);
            r.write("text.txt", "hidden\n").write("gone.txt", "hidden too\n");
        },
        &[],
    ),
    (
        "commits, and another branch",
        |r| {
            r.write("text.txt", "committed\n").write("more", "more\n");
            r.git(&["add", "."]);
            r.git(&["commit", "-qm", "second"]);
            r.git(&["checkout", "-q", "--orphan", "other"]);
            r.git(&["commit", "-qm", "an orphan"]);
            r.write("more", "yet more\n");
        },
        &[],
    ),
    (
        "a branch that was reset, and a stash",
        |r| {
            r.write("text.txt", "stashed\n");
            r.git(&["stash", "-q"]);
            r.write("text.txt", "not stashed\n");
        },
        &[],
    ),
    (
        "index version 4",
        |r| {
            r.git(&["update-index", "--index-version", "4"]);
            all_sorts(r);
        },
        &["x.log", "out"],
    ),
    (
        "no index",
        |r| {
            r.remove(".git/index").write("text.txt", "x\n");
        },
        &[],
    ),
    (
        "an untracked cache",
        |r| {
            r.git(&["update-index", "--force-untracked-cache"]);
            r.git(&["status"]);
            r.write("u/n", "");
        },
        &[],
    ),
    (
        "line ends",
        |r| {
            r.write("crlf.txt", "a\r\nb\r\nc\r\n").write("mixed", "a\r\nb\n").write("no-newline", "End");
        },
        &[],
    ),
];

fn all_sorts(r: &Repo) {
    let lines: String =
        (0..40).map(|i| if i == 20 { "changed\n".into() } else { format!("line {i}\n") }).collect();
    r.write("text.txt", lines).write("binary.bin", noise(6000, 3)).remove("gone.txt").remove("gone.bin");
    fs::rename(r.top.join("moved.txt"), r.top.join("elsewhere.txt")).unwrap();
    r.write("new.txt", "new\n").write("new.bin", noise(10_000, 4)).write("nothing", "").write("n/e/w", "new");
    r.write("x.log", "ignored\n")
        .write("out/ignored", "ignored\n")
        .write("empty", "no longer")
        .write("dir/two", "");
}

fn odd_names(r: &Repo) {
    let names: &[&[u8]] = &[
        b"new\nline",
        b"quo\"te",
        b"back\\slash",
        b"tab\t",
        b"-dash",
        b"--",
        b"-",
        b":colon",
        b":(top)x",
        b":!x",
        b"*",
        b"?",
        b"[a]",
        b" space",
        b"a b ",
        b"\xff\xfe",
        "\u{fc}\u{202e}".as_bytes(),
        b"a/-x",
        b"\x01\x7f",
        b"...",
        b"~",
        b"a/\n/b",
        b"'",
        b"$(x)",
        b"#",
        b"!x",
        &[b'n'; 200],
    ];
    for name in names {
        let path = r.top.join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    r.git(&["add", "--", "./-dash", ":(literal)*"]);
}

fn conflicts(r: &Repo) {
    r.git(&["checkout", "-qb", "side"]);
    r.write("text.txt", "side\n").write("dir/one", "side\n").write("both", "side\n").remove("dir/two");
    r.git(&["add", "-A"]);
    r.git(&["commit", "-qm", "side"]);
    r.git(&["checkout", "-q", "main"]);
    r.write("text.txt", "main\n").remove("dir/one").write("both", "main\n").write("dir/two", "main\n");
    r.git(&["add", "-A"]);
    r.git(&["commit", "-qm", "main"]);
    assert!(!git_in(&r.top).args(["merge", "-q", "side"]).output().unwrap().status.success());
    assert!(!r.git(&["ls-files", "-u"]).is_empty());
}

#[test]
fn whatever_happened_comes_back_and_the_repository_stays_as_it_is() {
    if no_git() {
        return;
    }
    for (what, change, but) in SITUATIONS {
        let repo = Repo::new();
        let checkout = repo.find();
        change(&repo);
        let diff = repo.there_and_back(what, &checkout, but);
        assert_eq!(diff.notes, Vec::<String>::new(), "{what}");
        assert!(!patch_of(&diff).contains("ignored"), "{what}");
        let same = ["nothing", "touched only", "taken out of the index, and there"].contains(what);
        assert_eq!(patch_of(&diff).is_empty(), same, "{what}");
    }
}

#[test]
fn settings_change_no_patch_and_run_nothing() {
    if no_git() {
        return;
    }
    let repo = Repo::new();
    let checkout = repo.find();
    repo.write(".gitattributes", "*.txt diff=evil filter=evil\n*.bin filter=e.v.il diff=other\n");
    all_sorts(&repo);
    let plain = patch_of(&repo.there_and_back("plain", &checkout, &["x.log", "out"]));
    let witness = repo.dir.path().join("witness");
    let evil = format!("touch {}; cat", witness.display());
    let hooks = repo.dir.path().join("hooks");
    fs::create_dir(&hooks).unwrap();
    for hook in ["post-index-change", "fsmonitor-watchman", "post-checkout", "pre-auto-gc"] {
        fs::write(hooks.join(hook), format!("#!/bin/sh\n{evil}\n")).unwrap();
        fs::set_permissions(hooks.join(hook), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let order = repo.dir.path().join("order");
    let settings = format!(
        "[diff]\nnoprefix\nmnemonicPrefix\nsrcPrefix = x/\nrenames = copies\nalgorithm = patience\ncontext = 0\n\
         interHunkContext = 9\nsuppressBlankEmpty\nrelative\nsubmodule = log\nexternal = \"{evil}\"\n\
         wsErrorHighlight = all\nrenameLimit = 1\nignoreSubmodules = all\norderFile = {order}\n\
         [diff \"evil\"]\ncommand = \"{evil}\"\ntextconv = \"{evil}\"\n\
         [diff \"other\"]\nbinary\ntextconv = \"{evil}\"\n\
         [core]\nquotePath = false\npager = \"{evil}\"\nfsmonitor = {hooks}/fsmonitor-watchman\n\
         hooksPath = {hooks}\nsplitIndex\nuntrackedCache\nsafecrlf\nignoreStat\nworktree = /usr\nbare\n\
         [color]\nui = always\ndiff = always\n[pager]\ndiff\n\
         [filter \"evil\"]\nclean = \"{evil}\"\nsmudge = \"{evil}\"\nrequired\n\
         [filter \"e.v.il\"]\nprocess = \"{evil}\"\nrequired\n\
         [status]\nshowUntrackedFiles = no\nsubmoduleSummary\n\
         [apply]\nwhitespace = error-all\nignoreWhitespace = change\n",
        order = order.display(),
        hooks = hooks.display(),
    );
    let config = |dir: &Path, more: &str| {
        let path = dir.join(".git/config");
        let before = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("{before}\n{settings}{more}")).unwrap();
    };
    fs::write(&order, "new.txt\n").unwrap();
    let place = repo.fresh(checkout.base());
    config(&place, "[core]\nworktree = ..\nbare = false\n");
    config(&repo.top, "");
    let diff = repo.diff(&checkout);
    let patch = patch_of(&diff);
    // An algorithm of one's own may choose other lines; what the patch makes is the same.
    assert_eq!(patch.matches("\ndiff --git a/").count(), plain.matches("\ndiff --git a/").count());
    assert_eq!(diff.notes.len(), 1, "{diff:?}");
    assert!(diff.notes[0].contains("filter") && diff.notes[0].contains("text.txt"), "{diff:?}");
    restore_git_diff(&raw(&diff), Some(checkout.base()), &place).unwrap();
    let but = ["x.log", "out", ".git"];
    assert_eq!(files(&place, &but, false), files(&repo.top, &but, false));
    assert!(!witness.exists(), "something that was configured was run");
    config(&repo.top, &format!("[filter \"a=b\"]\nclean = \"{evil}\"\n"));
    let diff = repo.diff(&checkout);
    assert!(why_of(&diff).contains("\"a=b\""), "{diff:?}");
}

fn raw(diff: &Diff) -> Vec<u8> {
    match &diff.content {
        Content::Patch(patch) => patch.clone(),
        Content::Skipped(why) => panic!("skipped: {why}"),
    }
}
