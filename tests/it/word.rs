//! The worker's own word: outcome, artifacts, test output; and what hostile ones come to.

#![expect(clippy::disallowed_methods, reason = "looks at the disk behind the library's back")]

use crate::cli::{Place, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Records a shell script; answers with its exit code, `state.json`, and its events.
fn record(place: &Place, run: &str, script: &str) -> (Option<i32>, Value, Vec<Value>) {
    let output = place
        .command(&["-q", "run", "--task", "t", "--run", run, "--", "sh", "-c", script])
        .output()
        .unwrap();
    let state = place.ends(0, &["state", &format!("t/{run}")]).stdout;
    let log = place.ends(0, &["log", &format!("t/{run}"), "-o", "json", "--kind", "lifecycle"]).stdout;
    let events = text(&log).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code(), serde_json::from_slice(&state).unwrap(), events)
}

fn find<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["type"] == kind).collect()
}

/// Everything below a directory but the data directory: names, kinds, lengths, change times.
fn outside(dir: &Path) -> BTreeMap<String, (u64, i64)> {
    fn walk(dir: &Path, found: &mut BTreeMap<String, (u64, i64)>) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let meta = entry.path().symlink_metadata().unwrap();
            if entry.file_name() != "data" && entry.file_name() != ".runwal" {
                found.insert(entry.path().display().to_string(), (meta.len(), meta.mtime_nsec()));
                if meta.is_dir() {
                    walk(&entry.path(), found);
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(dir, &mut found);
    found
}

#[test]
fn a_worker_finds_its_run_its_artifacts_and_where_to_tell_its_outcome() {
    let place = Place::new();
    let script =
        r#"echo "$RUNWAL_RUN"; test -d "$RUNWAL_ARTIFACTS" && test ! -e "$RUNWAL_OUTCOME" && echo there"#;
    let (code, state, _) = record(&place, "r", script);
    assert_eq!((code, &state["status"]), (Some(0), &"completed".into()));
    assert_eq!(text(&place.ends(0, &["output", "t/r"]).stdout), "t/r\nthere\n");
}

#[test]
fn the_file_decides_and_without_it_the_exit_code_does() {
    let place = Place::new();
    // What is told, the exit code, the status that comes of it, the level of the terminal event.
    let told = [
        ("", 0, "completed", "info"),
        ("", 3, "failed", "error"),
        (r#"{"outcome":"completed"}"#, 3, "completed", "info"),
        (r#"{"outcome":"failed","summary":"No."}"#, 0, "failed", "error"),
        (r#"{"outcome":"blocked"}"#, 0, "blocked", "warn"),
        (r#"{"outcome":"needs_human"}"#, 1, "needs_human", "warn"),
        (r#"{"outcome":"cancelled"}"#, 0, "cancelled", "warn"),
        (r#"{"blocked":true}"#, 0, "blocked", "warn"),
        (r#"{"needsHuman":true,"summary":"Ask.","more":[1]}"#, 0, "needs_human", "warn"),
        (r#"{"outcome":"failed","blocked":true}"#, 1, "blocked", "warn"),
    ];
    for (n, (json, exit, status, level)) in told.into_iter().enumerate() {
        let write =
            if json.is_empty() { String::new() } else { format!("echo '{json}' > \"$RUNWAL_OUTCOME\";") };
        let (code, state, events) = record(&place, &format!("r{n}"), &format!("{write} exit {exit}"));
        assert_eq!(
            (code, &state["status"], &state["exitCode"]),
            (Some(exit), &status.into(), &exit.into()),
            "{json}"
        );
        let last = events.last().unwrap();
        assert_eq!((&last["level"], &last["data"]["exitCode"]), (&level.into(), &exit.into()), "{json}");
        assert_eq!(last["data"]["blocked"], status == "blocked", "{json}");
        assert_eq!(last["data"]["needsHuman"], status == "needs_human", "{json}");
        assert!(find(&events, "outcome_refused").is_empty(), "{json}");
        for said in ["No.", "Ask."].into_iter().filter(|said| json.contains(said)) {
            assert_eq!((&state["summary"], &last["message"]), (&said.into(), &said.into()), "{json}");
        }
    }
    assert!(
        std::fs::read_dir(place.data().join("cache"))
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().starts_with("outcome-") })
    );
    place.ends(0, &["verify", "--deep"]);
}

/// A worker whose time was up has nothing to say in it.
#[test]
fn a_worker_that_was_ended_does_not_decide() {
    let place = Place::new();
    let script = r#"trap 'echo "{\"outcome\":\"completed\"}" > $RUNWAL_OUTCOME; exit 0' TERM; echo on; while :; do read x; done"#;
    let mut command = place.command(&["-q", "run", "--task", "t", "--run", "r", "--timeout", "100ms", "--"]);
    let output = command.args(["bash", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(124));
    let state: Value = serde_json::from_slice(&place.ends(0, &["state", "t/r"]).stdout).unwrap();
    assert_eq!(state["status"], "failed");
}

#[test]
fn hostile_outcome_files_are_refused_with_a_word() {
    let place = Place::new();
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let written: Vec<String> = [
        "", " ", "null", "true", "1", "\"completed\"", "[]", "{}", "{", "}", "{\"outcome\"}", "not json",
        r#"{"outcome":null}"#, r#"{"outcome":"Completed"}"#, r#"{"outcome":"prepared"}"#, r#"{"outcome":"interrupted"}"#,
        r#"{"outcome":"running"}"#, r#"{"outcome":1}"#, r#"{"outcome":["completed"]}"#, r#"{"outcome":{"completed":1}}"#,
        r#"{"outcome":"completed","blocked":true}"#, r#"{"outcome":"completed","needsHuman":true}"#,
        r#"{"blocked":true,"needsHuman":true}"#, r#"{"outcome":"blocked","needsHuman":true}"#,
        r#"{"outcome":"completed","blocked":"yes"}"#, r#"{"outcome":"completed","summary":1}"#,
        r#"{"outcome":"completed","summary":["a"]}"#, r#"{"outcome":"completed"} {"outcome":"failed"}"#,
        r#"{"outcome":"completed","outcome":"failed"}"#, r#"{"outcome":"completed",}"#, r"{'outcome':'completed'}",
        r#"{"outcome":"completed\u0000"}"#, r#"{"outcome":"completed","blocked":null}"#, r#"{"summary":"only"}"#,
        r#"{"outcome":"completed","needsHuman":0}"#, r#"{"outcome":"x","x":1e999}"#, r#"{"outcome":"\ud800"}"#,
    ]
    .into_iter()
    .map(|json| format!("cat > \"$RUNWAL_OUTCOME\" <<'END'\n{json}\nEND\n"))
    .chain([
        format!("printf '%s' '{{\"outcome\":{deep}}}' > \"$RUNWAL_OUTCOME\"\n"),
        "head -c 100000 /dev/zero > \"$RUNWAL_OUTCOME\"\n".to_owned(),
        "truncate -s 1T \"$RUNWAL_OUTCOME\"\n".to_owned(),
        "printf '{\"outcome\":\"completed\",\"summary\":\"' > \"$RUNWAL_OUTCOME\"; head -c 5000 /dev/zero | tr '\\0' x >> \"$RUNWAL_OUTCOME\"; printf '\"}' >> \"$RUNWAL_OUTCOME\"\n".to_owned(),
        "printf '\\377\\376' > \"$RUNWAL_OUTCOME\"\n".to_owned(),
        "mkdir \"$RUNWAL_OUTCOME\"\n".to_owned(),
        "mkdir \"$RUNWAL_OUTCOME\"; touch \"$RUNWAL_OUTCOME/x\"\n".to_owned(),
        "mkfifo \"$RUNWAL_OUTCOME\"\n".to_owned(),
        "ln -s /etc/hostname \"$RUNWAL_OUTCOME\"\n".to_owned(),
        "echo '{\"outcome\":\"completed\"}' > real; ln -s \"$PWD/real\" \"$RUNWAL_OUTCOME\"\n".to_owned(),
        "ln -s /dev/zero \"$RUNWAL_OUTCOME\"\n".to_owned(),
        "ln -s nothing \"$RUNWAL_OUTCOME\"\n".to_owned(),
        "python3 -c 'import socket,os; s=socket.socket(socket.AF_UNIX); os.chdir(os.path.dirname(os.environ[\"RUNWAL_OUTCOME\"])); s.bind(os.path.basename(os.environ[\"RUNWAL_OUTCOME\"]))' || mkfifo \"$RUNWAL_OUTCOME\"\n".to_owned(),
    ])
    .collect();
    assert!(written.len() >= 50, "{}", written.len());
    for (n, script) in written.iter().enumerate() {
        let run = format!("r{n}");
        let (code, state, events) = record(&place, &run, &format!("{script}exit 5"));
        assert_eq!((code, &state["status"]), (Some(5), &"failed".into()), "{script}");
        let refused = find(&events, "outcome_refused");
        assert_eq!(refused.len(), 1, "{script}: {events:?}");
        assert_eq!(refused[0]["level"], "warn");
        assert!(refused[0]["message"].as_str().unwrap().len() > 40, "{refused:?}");
    }
    place.ends(0, &["verify", "--deep"]);
}

#[test]
fn artifacts_are_listed_with_size_and_digest_and_hostile_ones_are_not() {
    let place = Place::new();
    let before = outside(place.0.path());
    let script = r#"cd "$RUNWAL_ARTIFACTS" && mkdir -p a/b && printf abc > a/b/c && : > empty && printf x > 'odd name'
        ln -s /etc/passwd link; ln -s / root; ln -s ../../../.. up; mkfifo pipe; mkdir -p "$(printf 'd/%.0s' $(seq 40))"
        touch "$(printf 'line\nbreak')" "$(printf '\377')""#;
    let (code, _, events) = record(&place, "r", script);
    assert_eq!(code, Some(0));
    let last = events.last().unwrap();
    let listed: Vec<(&str, u64)> = last["data"]["artifacts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (a["path"].as_str().unwrap(), a["bytes"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        listed,
        [
            ("artifacts/a/b/c", 3),
            ("artifacts/empty", 0),
            ("artifacts/line\nbreak", 0),
            ("artifacts/odd name", 1)
        ]
    );
    assert_eq!(last["data"]["artifacts"][0]["digest"], blake3::hash(b"abc").to_hex().to_string(),);
    let words: Vec<&str> =
        find(&events, "artifact_skipped").iter().map(|e| e["message"].as_str().unwrap()).collect();
    for name in ["link", "root", "up", "pipe"] {
        assert!(words.iter().any(|word| word.contains(&format!("artifacts/{name}:"))), "{name}: {words:?}");
    }
    assert!(words.iter().any(|word| word.contains("deeper")), "{words:?}");
    assert_eq!(outside(place.0.path()), before, "nothing outside was touched");
}

#[test]
fn too_many_artifacts_are_counted_and_the_run_ends_all_the_same() {
    let place = Place::new();
    let script = r#"cd "$RUNWAL_ARTIFACTS" && seq 3000 | xargs touch && mkdir more && cd more && seq 500 | xargs touch"#;
    let (_, state, events) = record(&place, "r", script);
    assert_eq!(state["status"], "completed");
    assert_eq!(events.last().unwrap()["data"]["artifacts"].as_array().unwrap().len(), 1000);
    let word = find(&events, "artifact_skipped");
    assert!(word[0]["message"].as_str().unwrap().contains("more files"), "{word:?}");
    place.ends(0, &["verify", "--deep"]);
}

#[test]
fn the_tests_own_output_becomes_a_checkpoint() {
    let place = Place::new();
    let record = |run: &str, script: &str| {
        let mut command =
            place.command(&["-q", "run", "--task", "t", "--run", run, "--test-output", "out.txt"]);
        let status = command.args(["--", "sh", "-c", script]).status().unwrap();
        assert_eq!(status.code(), Some(0), "{script}");
        let file = place.data().join(format!("runs/t/{run}/checkpoints/0002-test-output.txt"));
        let log = place.ends(0, &["log", &format!("t/{run}")]).stdout;
        (std::fs::read(file).ok(), text(&log))
    };
    assert_eq!(record("a", "echo one failed > out.txt").0.as_deref(), Some(&b"one failed\n"[..]));
    // What was there before says nothing of this run.
    let (content, log) = record("b", "true");
    assert!(content.is_none() && log.contains("left it as it was before"), "{log}");
    assert_eq!(record("c", "printf 'no newline' > out.txt").0.as_deref(), Some(&b"no newline\n"[..]));
    for (n, hostile) in [
        "rm -f out.txt",
        "rm -f out.txt; mkdir out.txt",
        "rm -rf out.txt; mkfifo out.txt",
        "rm -f out.txt; ln -s /etc/passwd out.txt",
        "rm -f out.txt; truncate -s 9M out.txt",
    ]
    .into_iter()
    .enumerate()
    {
        let (content, log) = record(&format!("h{n}"), hostile);
        assert!(content.is_none() && log.contains("checkpoint_skipped"), "{hostile}: {log}");
    }
    place.ends(0, &["verify", "--deep"]);
}

/// What a worker told too late, or to a recorder that was killed, is in nobody's way for long.
#[test]
fn what_nobody_reads_any_more_is_removed() {
    let place = Place::new();
    record(&place, "r", "true");
    let late = place.data().join("cache/outcome-1.json");
    std::fs::write(&late, "{}").unwrap();
    let open = place.data().join("cache/outcome-directory");
    std::fs::create_dir(&open).unwrap();
    record(&place, "next", "true");
    assert!(!late.exists() && open.exists());
}

/// Names that grow sixfold as JSON do not make the run's last record too long.
#[test]
fn artifacts_with_long_odd_names_leave_room_for_the_end() {
    let place = Place::new();
    let script = r#"cd "$RUNWAL_ARTIFACTS" && n=$(printf '\001%.0s' $(seq 230)) && for i in $(seq 1000); do : > "$n$i"; done"#;
    let (code, state, events) = record(&place, "r", script);
    assert_eq!((code, &state["status"]), (Some(0), &"completed".into()));
    assert!(events.last().unwrap()["data"]["artifacts"].as_array().unwrap().len() > 100);
    assert_eq!(find(&events, "artifact_skipped").len(), 1);
}
