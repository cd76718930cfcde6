//! Where a working tree may be, what may be in it, and what is too much.

use super::*;
use crate::disk::{Disk, Open};

#[test]
fn a_checkout_is_found_from_anywhere_in_it_and_nowhere_else() {
    if no_git() {
        return;
    }
    let find = |dir: &Path| within(|budget| Checkout::find(dir, budget));
    let outside = tempfile::tempdir().unwrap();
    assert!(find(outside.path()).unwrap().is_none());
    assert!(find(&outside.path().join("nowhere")).unwrap().is_none());
    let bare = Repo::bare(&["--bare"]);
    assert!(find(&bare.top).unwrap().is_none());
    let repo = Repo::new();
    assert!(find(&repo.top.join(".git")).unwrap().is_none());
    let checkout = find(&repo.top.join("deep/a")).unwrap().unwrap();
    assert_eq!(checkout.base(), repo.git(&["rev-parse", "HEAD"]));
    repo.write("text.txt", "above\n");
    let patch = patch_of(&repo.there_and_back("from below", &checkout, &[]));
    assert!(patch.contains("above"));
    repo.write(".git/config", "[core\n");
    let refused = find(&repo.top).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Misuse);
    assert!(refused.message().contains("bad config"), "{refused}");
}

#[test]
fn a_repository_without_a_commit_is_compared_with_the_empty_tree() {
    if no_git() {
        return;
    }
    for (format, id) in [("sha1", 40), ("sha256", 64)] {
        let repo = Repo::bare(&[&format!("--object-format={format}")]);
        let checkout = repo.find();
        assert_eq!(checkout.base().len(), id);
        assert_eq!(patch_of(&repo.there_and_back("nothing at all", &checkout, &[])), "");
        repo.write("a", "a\n").write("b.bin", noise(500, 5)).write("empty", "").write("sub/c", "c\n");
        repo.git(&["add", "a"]);
        repo.there_and_back("without a commit", &checkout, &[]);
        repo.git(&["commit", "-qam", "first"]);
        repo.there_and_back("after the first commit", &checkout, &[]);
        let checkout = repo.find();
        repo.write("a", "b\n").remove("sub/c");
        repo.there_and_back("with a commit", &checkout, &[]);
    }
}

#[test]
fn worktrees_shallow_partial_and_sparse_checkouts() {
    if no_git() {
        return;
    }
    let repo = Repo::new();
    repo.git(&["config", "uploadpack.allowFilter", "true"]);
    repo.git(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
    repo.write("second", "2\n");
    repo.git(&["add", "."]);
    repo.git(&["commit", "-qm", "second"]);
    let at = |name: &str| Repo {
        dir: tempfile::tempdir().unwrap(),
        top: repo.dir.path().join(name),
        data: repo.data.clone(),
    };
    let url = format!("file://{}", repo.top.display());
    repo.git(&["worktree", "add", "-q", "--detach", "../worktree"]);
    git(repo.dir.path(), &["clone", "-q", "--depth=1", &url, "shallow"]);
    git(repo.dir.path(), &["clone", "-q", "--filter=blob:none", &url, "partial"]);
    for name in ["worktree", "shallow", "partial"] {
        let place = at(name);
        let checkout = place.find();
        all_sorts(&place);
        let Content::Patch(patch) = &place.diff(&checkout).content else { panic!("{name}") };
        let fresh = repo.fresh(checkout.base());
        restore_git_diff(patch, Some(checkout.base()), &fresh).unwrap();
        let but = ["x.log", "out", ".git"];
        assert_eq!(files(&place.top, &but, false), files(&fresh, &but, false), "{name}");
    }
    // What was never fetched is not fetched for this either.
    git(repo.dir.path(), &["clone", "-q", "--no-checkout", "--filter=blob:none", &url, "hollow"]);
    let hollow = at("hollow");
    let checkout = hollow.find();
    let diff = hollow.diff(&checkout);
    assert!(why_of(&diff).contains("not all in the repository"), "{diff:?}");

    repo.git(&["sparse-checkout", "set", "dir"]);
    assert!(!repo.top.join("deep").exists());
    let checkout = repo.find();
    repo.write("dir/two", "sparse\n").write("deep/a/b/c.txt", "there all the same\n");
    let patch = patch_of(&repo.diff(&checkout));
    assert_eq!(patch.matches("diff --git").count(), 2, "{patch}");
}

#[test]
fn submodules_and_repositories_within_are_told() {
    if no_git() {
        return;
    }
    let (sub, repo) = (Repo::new(), Repo::new());
    repo.git(&["submodule", "--quiet", "add", sub.top.to_str().unwrap(), "sub"]);
    repo.git(&["commit", "-qm", "with a submodule"]);
    let checkout = repo.find();
    assert_eq!(patch_of(&repo.diff(&checkout)), "");
    repo.write("sub/new", "new\n").write("text.txt", "changed\n");
    let diff = repo.diff(&checkout);
    assert!(diff.notes.len() == 1 && diff.notes[0].contains("\"sub\""), "{diff:?}");
    let inner = repo.top.join("sub");
    git(&inner, &["add", "new"]);
    git(&inner, &["commit", "-qm", "inner"]);
    let diff = repo.diff(&checkout);
    assert!(diff.notes.is_empty() && patch_of(&diff).contains("Subproject commit"), "{diff:?}");
    let fresh = repo.fresh(checkout.base());
    let restored = restore_git_diff(&raw(&diff), Some(checkout.base()), &fresh).unwrap();
    assert_eq!((restored.files, restored.notes.len()), (2, 1), "{restored:?}");
    assert_eq!(fs::read(fresh.join("text.txt")).unwrap(), b"changed\n");
    // The submodule as a working tree of its own.
    let as_tree = Repo { dir: tempfile::tempdir().unwrap(), top: inner, data: repo.data.clone() };
    let checkout = as_tree.find();
    as_tree.write("text.txt", "in the submodule\n");
    as_tree.there_and_back("a submodule", &checkout, &[]);
    // Repositories that nobody said are submodules, with and without a commit.
    let repo = Repo::new();
    let checkout = repo.find();
    for name in ["within", "with-commit"] {
        repo.write(&format!("{name}/file"), "not mine\n");
        git(&repo.top.join(name), &["init", "-q"]);
    }
    git(&repo.top.join("with-commit"), &["add", "."]);
    git(&repo.top.join("with-commit"), &["commit", "-qm", "x"]);
    let diff = repo.there_and_back("nested", &checkout, &["within", "with-commit"]);
    assert!(diff.notes.len() == 1 && diff.notes[0].contains("\"within/\""), "{diff:?}");
}

#[test]
fn the_data_directory_never_appears() {
    if no_git() {
        return;
    }
    for tracked in [false, true] {
        let mut repo = Repo::new();
        // With a name that would be a pattern.
        repo.data = repo.top.join("deep/d*[a]ta");
        repo.write("deep/d*[a]ta/secret", "secret\n")
            .write("deep/data", "not it\n")
            .write("deep/dXa", "nor this\n");
        if tracked {
            repo.git(&["add", "-f", "."]);
            repo.git(&["commit", "-qm", "with data"]);
        }
        let checkout = repo.find();
        repo.write("deep/d*[a]ta/secret", "more secret\n").write("deep/d*[a]ta/new", "secret\n");
        repo.write("deep/data", "changed\n");
        symlink(&repo.data, repo.dir.path().join("by-link")).unwrap();
        repo.data = repo.dir.path().join("by-link");
        let diff = within(|budget| checkout.diff(&repo.data, MAX_PATCH_LEN, budget)).unwrap();
        let patch = patch_of(&diff);
        assert!(!patch.contains("secret") && patch.contains("+changed"), "{patch}");
        assert!(diff.notes.is_empty(), "{diff:?}");
        // The tree under another name is the same tree.
        symlink(&repo.top, repo.dir.path().join("tree-link")).unwrap();
        let linked = within(|budget| Checkout::find(&repo.dir.path().join("tree-link"), budget));
        let linked = linked.unwrap().unwrap();
        assert_eq!(within(|budget| linked.diff(&repo.data, MAX_PATCH_LEN, budget)).unwrap(), diff);
    }
    let repo = Repo::new();
    let checkout = repo.find();
    for data in [&repo.top, repo.dir.path()] {
        let diff = within(|budget| checkout.diff(data, MAX_PATCH_LEN, budget)).unwrap();
        assert!(why_of(&diff).contains("lies in the data directory"), "{diff:?}");
    }
}

#[test]
fn what_is_too_much_or_takes_too_long_is_skipped_with_a_word() {
    if no_git() {
        return;
    }
    let repo = Repo::new();
    let checkout = repo.find();
    repo.write("noise", noise(1 << 20, 6));
    let with_limit = |limit| within(|budget| checkout.diff(&repo.data, limit, budget)).unwrap();
    assert_eq!(why_of(&with_limit(1 << 20)), "The git diff is over the limit of 1 MiB.");
    assert_eq!(why_of(&with_limit(1000)), "The git diff is over the limit of 1000 bytes.");
    let exact = patch_of(&with_limit(2 << 20)).len() as u64;
    assert!(matches!(with_limit(exact).content, Content::Patch(_)));
    assert!(matches!(with_limit(exact - 1).content, Content::Skipped(_)));
    fs::File::create(repo.top.join("huge")).unwrap().set_len(10 << 30).unwrap();
    assert!(why_of(&with_limit(MAX_PATCH_LEN)).contains("10241 MiB"), "{:?}", with_limit(MAX_PATCH_LEN));
    repo.remove("huge");
    let none = |limit: Duration, stop: &dyn Fn() -> bool| {
        let diff = checkout.diff(&repo.data, MAX_PATCH_LEN, &Budget::new(&System, limit, stop)).unwrap();
        why_of(&diff).to_owned()
    };
    assert!(none(Duration::ZERO, &|| false).contains("not done within 0 s"));
    assert!(none(Duration::from_mins(1), &|| true).contains("stopped"));
    assert_eq!(files(&repo.data, &[], false).len(), 0);
    // A git that does not end is ended: here one whose excludes are a FIFO that nobody writes to.
    let fifo = repo.dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    repo.git(&["config", "core.excludesFile", fifo.to_str().unwrap()]);
    let asked = std::cell::Cell::new(0);
    let after_a_while = || {
        asked.set(asked.get() + 1);
        asked.get() > 40
    };
    assert!(none(Duration::from_mins(1), &after_a_while).contains("stopped"));
    assert_eq!(files(&repo.data, &[], false).len(), 0);
}

#[test]
fn what_git_cannot_read_is_left_out_with_a_word() {
    if no_git() {
        return;
    }
    let repo = Repo::new();
    let checkout = repo.find();
    repo.remove("gone.txt").write("text.txt", "changed\n");
    for name in ["gone.txt", "untracked-fifo"] {
        assert!(Command::new("mkfifo").arg(repo.top.join(name)).status().unwrap().success());
    }
    let diff = repo.there_and_back("a FIFO", &checkout, &["gone.txt", "untracked-fifo"]);
    assert!(diff.notes.len() == 1 && diff.notes[0].contains("\"gone.txt\""), "{diff:?}");
    repo.remove("gone.txt").write("binary.bin", "closed").write("closed", "closed").write("closed-dir/x", "");
    for name in ["binary.bin", "closed", "closed-dir"] {
        fs::set_permissions(repo.top.join(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    if fs::read(repo.top.join("closed")).is_ok() {
        println!("skipped: this user may read everything");
        return;
    }
    let diff = within(|budget| checkout.diff(&repo.data, MAX_PATCH_LEN, budget)).unwrap();
    fs::set_permissions(repo.top.join("closed-dir"), fs::Permissions::from_mode(0o700)).unwrap();
    let patch = patch_of(&diff);
    assert!(
        patch.contains("+changed") && !patch.contains("closed") && !patch.contains("binary.bin"),
        "{patch}"
    );
    assert_eq!(diff.notes.len(), 2, "{diff:?}");
    assert!(diff.notes.iter().any(|n| n.contains("\"binary.bin\", \"closed\"")), "{diff:?}");
}

#[test]
fn line_ends_of_the_checkout_come_back() {
    if no_git() {
        return;
    }
    let repo = Repo::new();
    repo.write(".gitattributes", "*.txt text eol=crlf\nu16 text working-tree-encoding=UTF-16LE\n");
    repo.write("w.txt", "a\r\nb\r\n").write("u16", b"a\0\n\0");
    repo.git(&["add", "--renormalize", "."]);
    repo.git(&["add", "."]);
    repo.git(&["commit", "-qm", "attributes"]);
    repo.git(&["rm", "-q", "-r", "--cached", "."]);
    repo.git(&["reset", "-q", "--hard"]);
    let checkout = repo.find();
    repo.write("w.txt", "a\r\nb\r\nc\r\n").write("new.txt", "n\r\n").write("u16", b"a\0\n\0b\0\n\0");
    let patch = patch_of(&repo.there_and_back("line ends", &checkout, &[]));
    assert!(!patch.contains('\r'), "{patch}");
}

#[test]
fn leftovers_of_the_dead_are_removed_and_the_living_are_let_be() {
    let dir = tempfile::tempdir().unwrap();
    let disk = OsDisk::open(dir.path()).unwrap();
    let living = Scratch::new(dir.path()).unwrap();
    fs::write(dir.path().join("index"), "an index").unwrap();
    let index = living.take(&dir.path().join("index")).unwrap();
    for name in ["scratch-dead", "scratch-dead.index", "scratch-dead.index.lock", "scratch-gone.index"] {
        disk.open(&format!("cache/{name}"), Open::CreateNew).unwrap();
    }
    fs::write(dir.path().join("cache/other"), "").unwrap();
    let second = Scratch::new(dir.path()).unwrap();
    assert_eq!(files(&dir.path().join("cache"), &[], false).len(), 4);
    assert_eq!(fs::read(&index).unwrap(), b"an index");
    let time = |path: &Path| path.symlink_metadata().unwrap().modified().unwrap();
    assert_eq!(time(&index), time(&dir.path().join("index")));
    drop((living, second));
    assert_eq!(files(&dir.path().join("cache"), &[], false).len(), 1);
}

#[test]
fn fifty_thousand_files() {
    const FILES: usize = 50_000;
    if no_git() {
        return;
    }
    let repo = Repo::new();
    // In one pack: as many loose objects would take longer than all the rest.
    let mut stream = "commit refs/heads/main\ncommitter c <a@example.org> 0 +0000\ndata 0\n\
                      from refs/heads/main^0\n"
        .to_owned();
    for (dir, file) in (0..FILES / 500).flat_map(|dir| (0..500).map(move |file| (dir, file))) {
        let content = format!("{dir} {file}\n");
        stream.push_str(&format!("M 100644 inline d{dir}/f{file}\ndata {}\n{content}\n", content.len()));
    }
    fs::write(repo.dir.path().join("stream"), stream).unwrap();
    let stream = fs::File::open(repo.dir.path().join("stream")).unwrap();
    let imported = git_in(&repo.top).args(["fast-import", "--quiet"]).stdin(stream).status().unwrap();
    assert!(imported.success());
    repo.git(&["reset", "-q", "--hard"]);
    let checkout = repo.find();
    all_sorts(&repo);
    for file in 0..300 {
        repo.remove(&format!("d1/f{file}")).write(&format!("d2/f{file}"), noise(300, file));
        let name = |dir: &str| repo.top.join(format!("{dir}/f{file}"));
        fs::rename(name("d3"), repo.top.join(format!("d4/moved{file}"))).unwrap();
        repo.write(&format!("untracked/f{file}"), noise(200, file)).write(&format!("out/f{file}"), "ignored");
    }
    let clock = System;
    let start = crate::clock::Clock::monotonic_ns(&clock);
    let found = repo.find();
    let between = crate::clock::Clock::monotonic_ns(&clock);
    let diff = within(|budget| checkout.diff(&repo.data, MAX_PATCH_LEN, budget)).unwrap();
    let end = crate::clock::Clock::monotonic_ns(&clock);
    assert_eq!(found.base(), checkout.base());
    println!(
        "{FILES} files: found in {} ms, the diff of {} bytes in {} ms",
        (between - start) / 1_000_000,
        patch_of(&diff).len(),
        (end - between) / 1_000_000
    );
    repo.there_and_back("many files", &checkout, &["x.log", "out"]);
}
