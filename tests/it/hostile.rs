//! Hostile ids and arguments: refused with a word, before anything is written.

#![expect(clippy::disallowed_methods, reason = "looks at the disk behind the library's back")]

use crate::cli::{Place, text};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is no id.
fn bad_ids() -> Vec<OsString> {
    let mut ids: Vec<Vec<u8>> = [
        "",
        ".",
        "..",
        "...",
        "../etc",
        "../../etc/passwd",
        "/",
        "/etc",
        "//",
        "a/b",
        "a/",
        "/a",
        "a/../b",
        "./a",
        "~",
        "~root",
        ".hidden",
        "-",
        "--",
        "-rf",
        "--help",
        "-x",
        " ",
        " a",
        "a ",
        "a b",
        "\t",
        "\n",
        "a\n",
        "\na",
        "a\r\n",
        "\\",
        "a\\b",
        "C:\\",
        "C:",
        "a:b",
        "\\\\host\\share",
        "*",
        "?",
        "[a]",
        "{a}",
        "$HOME",
        "`id`",
        "$(id)",
        "a;b",
        "a|b",
        "a&b",
        "a>b",
        "a<b",
        "'a'",
        "\"a\"",
        "a,b",
        "a=b",
        "a+b",
        "a@b",
        "@last",
        "#a",
        "%2e%2e",
        "%00",
        "!a",
        "^a",
        "(a)",
        "é",
        "ａ",
        "а",
        "a\u{301}",
        "\u{202e}a",
        "a\u{200b}",
        "\u{feff}a",
        "😀",
        "ſ",
        "\u{1b}[31m",
        "\u{7}",
        "\u{7f}",
        "\u{85}",
        "\u{2028}",
        "a\u{0301}b",
        "℀",
        "∕",
        "․․",
        "a\u{2024}",
        "NUL:",
        "aux:",
        "con ",
        "lpt1:",
    ]
    .into_iter()
    .map(|id| id.as_bytes().to_vec())
    .collect();
    ids.extend([129, 200, 255, 256, 4096].map(|len| vec![b'a'; len]));
    ids.extend([
        b"\xff".to_vec(),
        b"\xfe\xff".to_vec(),
        b"a\xc3".to_vec(),
        b"\xed\xa0\x80".to_vec(),
        b"\xc0\xae\xc0\xae".to_vec(),
    ]);
    ids.into_iter().map(OsString::from_vec).collect()
}

fn everything(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_no_id_is_refused_before_anything_is_written() {
    let place = Place::new();
    let mut cases = 0;
    for id in bad_ids() {
        for option in ["--task", "--run", "--step"] {
            let mut command = place.command(&["run"]);
            let mut given = OsString::from(option);
            given.push("=");
            given.push(&id);
            command.arg(given).args(["--", "touch", "started"]);
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{option} {id:?}: {output:?}");
            assert!(!output.stderr.is_empty(), "{option} {id:?}");
            assert!(!output.stderr.contains(&0x1b), "{option} {id:?}: escapes are shown as such");
            cases += 1;
        }
    }
    assert!(everything(place.0.path()).is_empty(), "{:?}", everything(place.0.path()));
    assert!(cases >= 250, "{cases}");
}

#[test]
fn what_names_no_run_is_told_by_every_command() {
    let place = Place::new();
    place.ends(0, &["-q", "run", "--task", "t", "--run", "r", "--", "echo", "x"]);
    let before = everything(place.0.path());
    let mut cases = 0;
    for id in bad_ids() {
        // The beginning of every id, and the last one, are meant as such.
        if id.is_empty() || id == "@last" {
            continue;
        }
        for command in ["state", "output", "log", "rebuild"] {
            let output = place.command(&[command, "--"]).arg(&id).output().unwrap();
            assert!(matches!(output.status.code(), Some(1 | 2)), "{command} {id:?}: {output:?}");
            assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{command} {id:?}: {output:?}");
            assert!(!output.stderr.contains(&0x1b), "{command} {id:?}");
            cases += 1;
        }
    }
    assert_eq!(everything(place.0.path()), before);
    assert!(cases >= 300, "{cases}");
}

#[test]
fn other_arguments_that_make_no_sense_start_nothing() {
    let place = Place::new();
    let bad: &[&[&str]] = &[
        &["--attempt", "0"],
        &["--attempt", "-1"],
        &["--attempt", "4294967296"],
        &["--attempt", "x"],
        &["--timeout", "-1s"],
        &["--timeout", "x"],
        &["--timeout", ""],
        &["--timeout", "99999999999999999999y"],
        &["--grace", "soon"],
        &["-C", "/nonexistent/directory"],
        &["-C", "/etc/passwd"],
        &["-C", ""],
        &["--label", "novalue"],
        &["--label", "=value"],
        &["--label", ""],
        &["--label", "a=1", "--label", "a=2"],
        &["--record-env", "HOME", "--record-env", "HOME"],
        &["--dir", ""],
        &["--color", "maybe"],
        &["-o", "xml"],
        &["--unknown"],
    ];
    for arguments in bad {
        let output =
            place.command(&["run"]).args(*arguments).args(["--", "touch", "started"]).output().unwrap();
        assert!(matches!(output.status.code(), Some(2 | 125)), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
        assert!(!place.0.path().join("started").exists(), "{arguments:?}");
    }
    for arguments in [&["run"][..], &["run", "--"], &["run", "true"], &[], &["nonsense"]] {
        assert_eq!(place.command(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
}

/// Only what is named is recorded of the environment, and only in the run's request.
#[test]
fn the_environment_is_recorded_by_name_only() {
    let place = Place::new();
    let mut command =
        place.command(&["-q", "run", "--task", "t", "--run", "r", "--record-env", "NAMED", "--", "true"]);
    command.env("NAMED", "value-that-was-named").env("SECRET", "value-that-was-not");
    assert!(command.status().unwrap().success());
    let contains = |file: &Path, text: &str| {
        let bytes = std::fs::read(file).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    let files = everything(&place.data());
    assert!(files.iter().any(|file| contains(file, "value-that-was-named")));
    let leaked: Vec<_> = files.iter().filter(|file| contains(file, "value-that-was-not")).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
    let meta = text(&std::fs::read(place.data().join("runs/t/r/meta.json")).unwrap());
    assert!(meta.contains("\"NAMED\": \"value-that-was-named\""), "{meta}");
}

/// Links planted where runs are to be made lead nowhere.
#[test]
fn planted_links_are_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    for planted in
        ["runs", "runs/t", "runs/t/r", "runs/t/r/artifacts", "cache", "cache/files", "journal/live"]
    {
        let place = Place::new();
        place.ends(0, &["-q", "run", "--task", "t", "--run", "first", "--", "true"]);
        let path = place.data().join(planted);
        if path.exists() {
            std::fs::rename(&path, place.0.path().join("moved")).unwrap();
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(outside.path(), &path).unwrap();
        let script = "echo word; : > \"$RUNWAL_ARTIFACTS/mine\"; exit 0";
        let output = place.run(&["-q", "run", "--task", "t", "--run", "r", "--", "sh", "-c", script]);
        assert!(matches!(output.status.code(), Some(0 | 125)), "{planted}: {output:?}");
        let here: Vec<_> = everything(outside.path());
        // The worker itself is free to follow a link; we are not.
        let ours: Vec<_> = here.iter().filter(|path| !path.ends_with("mine")).collect();
        assert!(ours.is_empty(), "{planted}: {ours:?}");
        here.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}

/// What may stand where a file should, each made at a path; the link leads to a whole one.
fn no_files(whole: &Path) -> [(&'static str, Box<dyn Fn(&Path) + '_>); 4] {
    [
        ("a symbolic link", Box::new(move |path| std::os::unix::fs::symlink(whole, path).unwrap())),
        ("a symbolic link", Box::new(|path| std::os::unix::fs::symlink("nowhere", path).unwrap())),
        ("a directory", Box::new(|path| std::fs::create_dir(path).unwrap())),
        (
            "a FIFO, socket or device",
            Box::new(|path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success())),
        ),
    ]
}

/// Readers do without the mark and the lock, as where they are missing; writers say what to do.
#[test]
fn a_mark_or_lock_that_is_no_file_stops_no_reader_and_is_told() {
    for name in ["mark", "lock"] {
        let outside = tempfile::tempdir().unwrap();
        let kept = outside.path().join(name);
        for (kind, plant) in no_files(&kept) {
            let place = Place::new();
            place.record("first", "echo word");
            let path = place.data().join("journal").join(name);
            std::fs::rename(&path, &kept).unwrap();
            let before = std::fs::read(&kept).unwrap();
            plant(&path);
            for args in [&["log"][..], &["runs"], &["info"], &["show", "t/first"], &["ticks"]] {
                place.ends(0, args);
            }
            assert_eq!(place.ends(0, &["output", "t/first"]).stdout, b"word\n", "{name}: {kind}");
            let told = text(&place.ends(3, &["verify"]).stdout) + &text(&place.ends(3, &["verify"]).stderr);
            assert!(told.contains(&format!("the {name} is {kind}")), "{told}");
            for args in [&["run", "--", "true"][..], &["recover"], &["recover", "--accept-damage"]] {
                let output = place.ends(if args[0] == "run" { 125 } else { 3 }, args);
                let told = text(&output.stderr);
                let what = format!("journal/{name} is {kind}, not a regular file");
                assert!(told.contains(&what) && told.contains("Move it away"), "{told}");
            }
            assert_eq!(std::fs::read(&kept).unwrap(), before, "a link was followed");
            std::fs::rename(&path, outside.path().join("odd")).unwrap();
            place.ends(0, &["-q", "run", "--task", "t", "--run", "second", "--", "true"]);
            place.ends(0, &["verify", "--deep"]);
            let odd = outside.path().join("odd");
            let removed = std::fs::remove_file(&odd).or_else(|_| std::fs::remove_dir(&odd));
            removed.unwrap();
        }
    }
}

#[test]
fn arguments_that_are_no_text_are_recorded_as_they_are() {
    let place = Place::new();
    let odd = OsStr::from_bytes(b"\xff\x1b[31m\n");
    let mut command = place.command(&["-q", "run", "--task", "t", "--run", "r", "--", "printf", "%s"]);
    let output = command.arg(odd).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), odd.as_bytes()));
    assert_eq!(place.ends(0, &["output", "t/r"]).stdout, odd.as_bytes());
    let shown = place.ends(0, &["log", "t/r"]).stdout;
    assert!(!shown.contains(&0x1b), "{}", text(&shown));
    place.ends(0, &["verify", "--deep"]);
}
