//! The architecture stays as it is drawn: imports point down, files stay readable.

#![expect(clippy::disallowed_methods, reason = "reads the sources of the crate")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What each room may import of the crate. A room that is missing here is a room nobody has
/// thought about.
const ROOMS: &[(&str, &[&str])] = &[
    ("position", &[]),
    ("error", &["position"]),
    ("clock", &["error", "position"]),
    ("disk", &["error", "position", "clock"]),
    ("observe", &["clock", "position"]),
    ("format", &["position"]),
    ("journal", &["format", "disk", "clock", "observe", "position", "error"]),
    ("reader", &["journal", "disk", "clock", "position", "error"]),
    ("record", &["position", "error"]),
    ("processes", &["disk", "clock", "error"]),
    ("projection", &["record", "disk", "position", "error"]),
    (
        "engine",
        &[
            "record",
            "projection",
            "reader",
            "journal",
            "processes",
            "disk",
            "clock",
            "observe",
            "position",
            "error",
        ],
    ),
    ("run", &["engine", "projection", "record", "processes", "disk", "clock", "position", "error"]),
    ("async_engine", &["engine", "record", "position", "error"]),
    ("timed_jobs", &["engine", "record", "clock", "position", "error"]),
    ("trace_layer", &["engine", "record", "clock", "observe", "error"]),
    ("docs", &[]),
    (
        "testing",
        &[
            "engine",
            "run",
            "reader",
            "journal",
            "record",
            "projection",
            "disk",
            "clock",
            "position",
            "error",
            "format",
        ],
    ),
];

/// Lines of code, without tests and comments, at which a file wants a second look.
const MAX_FILE_LINES: usize = 600;

fn sources() -> Vec<PathBuf> {
    fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.sort();
    found
}

/// The room a file belongs to: the first component under `src`.
fn room(path: &Path) -> String {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The rooms that a file names: everything behind `crate::`.
fn named(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = Vec::new();
    for line in code {
        for part in line.split("crate::").skip(1) {
            let word: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push(word);
        }
    }
    found
}

#[test]
fn imports_point_down() {
    let allowed: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut wrong = Vec::new();
    for path in sources() {
        let room = room(&path);
        if room == "lib" || room == "bin" {
            continue;
        }
        let Some(allowed) = allowed.get(room.as_str()) else {
            wrong.push(format!("{}: the room {room} is not on the list", path.display()));
            continue;
        };
        let text = std::fs::read_to_string(&path).unwrap();
        for name in named(&text) {
            if name != room && !name.is_empty() && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{}: {room} must not import {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_list_of_rooms_has_no_circle() {
    let position = |name: &str| ROOMS.iter().position(|(room, _)| *room == name);
    for (i, (room, imports)) in ROOMS.iter().enumerate() {
        for import in *imports {
            // The manual clock lets the simulated disk stand beside it; nothing of the disk is in it.
            if (*room, *import) == ("disk", "clock") {
                continue;
            }
            assert!(
                position(import).is_some_and(|at| at < i || ROOMS[at].0 != *room),
                "{room} imports {import}"
            );
            let back = ROOMS.iter().find(|(other, _)| other == import).unwrap().1;
            assert!(!back.contains(room), "{room} and {import} import each other");
        }
    }
}

#[test]
fn only_one_file_knows_bincode_and_one_the_file_system() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let inside = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_string_lossy().into_owned();
        let code: String =
            text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        if code.contains("rustix::fs") {
            assert_eq!(inside, "src/disk/os.rs", "{inside} uses rustix::fs");
        }
        if code.contains("bincode::") && !code.contains("bincode::Encode, bincode::Decode") {
            assert_eq!(inside, "src/record/wire.rs", "{inside} uses bincode");
        }
        if code.contains("bincode::") {
            assert!(inside.starts_with("src/record/"), "{inside} uses bincode");
        }
    }
}

#[test]
fn files_can_be_read_in_one_go() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let lines =
            code.lines().filter(|l| !l.trim().is_empty() && !l.trim_start().starts_with("//")).count();
        assert!(lines <= MAX_FILE_LINES, "{} has {lines} lines of code", path.display());
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let marks =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimple", "mented!(")];
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        for mark in marks {
            assert!(!text.contains(mark), "{} contains {mark}", path.display());
        }
    }
}

#[test]
fn every_test_file_is_part_of_this_binary() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let main = std::fs::read_to_string(dir.join("main.rs")).unwrap();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.extension().is_some_and(|e| e == "rs") && stem != "main" {
            assert!(main.contains(&format!("mod {stem};")), "{stem}.rs is not in main.rs");
        }
    }
}

/// The page that says of each fault what shows that it is survived: all faults are there, and what it
/// names there is.
#[test]
fn the_page_of_faults_names_what_there_is() {
    const ROWS: [usize; 7] = [10, 11, 11, 12, 6, 12, 6];
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(top.join(name)).unwrap_or_default();
    let page = include_str!("../../src/docs/faults.md");
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| what happens |");
    let parts = page.split("\n## ").skip(1);
    let rows: Vec<usize> = parts.map(|part| part.lines().filter(is_row).count()).collect();
    assert_eq!(rows, ROWS);
    // A function that a test's attribute stands before, perhaps with another one between.
    let is_test = |text: &str, name: &str| {
        text.find(&format!("fn {name}(")).is_some_and(|at| {
            let before: Vec<&str> = text[..at].lines().rev().take(4).collect();
            before.iter().any(|line| line.contains("#[test]") || line.contains("#[tokio::test"))
        })
    };
    let mut wrong = Vec::new();
    for line in page.lines().filter(is_row) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let [fault, does, shown] = cells[..] else {
            wrong.push(format!("not three cells: {line}"));
            continue;
        };
        let names: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        if names.is_empty() || fault.trim().is_empty() || does.trim().is_empty() {
            wrong.push(format!("nothing is named: {fault}"));
        }
        for name in names {
            let there = match (name.split_once("::"), name.split_once(' ')) {
                (Some((file, name)), _) if file.starts_with("src/testing/") => {
                    read(file).contains(&format!("fn {name}("))
                }
                (Some((file, name)), _) if file.starts_with("src/") => is_test(&read(file), name),
                (Some((module, name)), _) => is_test(&read(&format!("tests/it/{module}.rs")), name),
                (None, Some(("atlas", layer))) => {
                    read("tests/atlas/main.rs").contains(&format!("name: \"{layer}\""))
                }
                (None, Some(("fuzz", target))) => {
                    top.join(format!("fuzz/fuzz_targets/{target}.rs")).is_file()
                }
                _ => false,
            };
            if !there {
                wrong.push(format!("{name} is named and is not there: {fault}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
