//! `runwal ticks`.

#![expect(clippy::disallowed_methods, reason = "plays the user, who reads and damages files")]

use crate::cli::{Place, text};
use runwal::JournalOptions;
use runwal::engine::{Engine, Options};
use runwal::position::Time;
use runwal::record::{Channel, Id, JsonText, Tick};
use runwal::run::{Recorder, RunRequest};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdout, Stdio};

fn open(place: &Place) -> Engine {
    let journal = JournalOptions { first_capacity: 8 << 10, max_capacity: 8 << 10, ..Default::default() };
    Engine::open(place.data(), Options { journal, ..Options::default() }).unwrap().0
}

fn tick(stage: &str, details: &str) -> Tick {
    Tick {
        batch_id: "timed-jobs-1-1".to_owned(),
        runner: "mail".to_owned(),
        stage: stage.to_owned(),
        result: Some("ok".to_owned()),
        error: None,
        duration_ms: Some(12),
        details: JsonText::parse(details).unwrap(),
    }
}

fn append(engine: &Engine, tick: Tick, at: &str) {
    engine.append_tick(tick, Some(Time::parse(at).unwrap())).unwrap();
}

/// Ticks of several days, the last ones recorded late, with output of a run between them.
fn several(engine: &Engine) {
    let request = RunRequest::new(Id::new("t").unwrap(), Id::new("r").unwrap(), Id::new("s").unwrap());
    let mut run = Recorder::prepare(engine, request).unwrap();
    for n in 0..30 {
        let day = 1 + n / 10;
        append(engine, tick(&format!("stage_{n}"), "{}"), &format!("2026-04-{day:02}T23:59:{n:02}.999Z"));
        run.chunk(Channel::Stdout, &[b'x'; 700]).unwrap();
    }
    append(engine, tick("late", r#"{"ts":1}"#), "2026-04-01T00:00:00Z");
}

fn file(place: &Place, day: &str) -> String {
    fs::read_to_string(place.data().join(format!("timed-jobs/{day}.jsonl"))).unwrap()
}

fn prints(place: &Place, args: &[&str]) -> String {
    text(&place.ends(0, args).stdout)
}

#[test]
fn the_ticks_of_a_day_are_the_lines_of_its_file() {
    let place = Place::new();
    place.ends(1, &["ticks"]);
    place.record("before", "true");
    assert_eq!(prints(&place, &["ticks"]), "", "an empty list is fine");
    let engine = open(&place);
    several(&engine);
    engine.close().unwrap();
    // Files of ticks are brought up to date by opening.
    open(&place).close().unwrap();
    place.ends(0, &["rebuild", "--check"]);
    for day in ["2026-04-01", "2026-04-02", "2026-04-03"] {
        assert_eq!(prints(&place, &["-o", "json", "ticks", "--day", day]), file(&place, day));
    }
    assert_eq!(prints(&place, &["ticks", "--day", "2026-04-04"]), "");
    assert_eq!(prints(&place, &["-o", "json", "ticks"]).lines().count(), 31);
    for wrong in ["today", "2026-4-1", "2026-02-30", "2026-04-01T00:00:00Z", "", "9999-01-01"] {
        let output = place.ends(2, &["ticks", "--day", wrong]);
        assert!(text(&output.stderr).contains("is no day"), "{output:?}");
    }
}

#[test]
fn a_tick_is_one_line_for_people_that_cannot_forge_another() {
    let place = Place::new();
    let engine = open(&place);
    let at = "2026-04-01T00:00:00.123456Z";
    append(&engine, tick("runner_completed", r#"{"sent":3}"#), at);
    let odd = Tick {
        result: Some("failed".to_owned()),
        error: Some("no\nroute \u{1b}[2J".to_owned()),
        runner: "a\u{202e}b".to_owned(),
        duration_ms: None,
        ..tick("runner_failed", "{}")
    };
    append(&engine, odd, at);
    append(&engine, Tick { result: None, ..tick("tick_skipped_busy", "{}") }, at);
    engine.close().unwrap();
    let time = "2026-04-01T00:00:00.123Z";
    let (done, skipped) =
        ("runner_completed mail ok 0.012 s {\"sent\":3}", "tick_skipped_busy mail - 0.012 s");
    let failed = "runner_failed a\\u{202e}b failed - error: no\\nroute \\u{1b}[2J";
    assert_eq!(prints(&place, &["ticks"]), format!("{time} {done}\n{time} {failed}\n{time} {skipped}\n"));
    assert_eq!(
        prints(&place, &["--color", "always", "ticks"]),
        format!("{time} {done}\n{time} \x1b[31m{failed}\x1b[0m\n{time} \x1b[33m{skipped}\x1b[0m\n")
    );
}

fn follow(place: &Place, args: &[&str]) -> (Child, std::io::Lines<BufReader<ChildStdout>>) {
    let args = [&["-o", "json", "ticks", "-f"], args].concat();
    let mut child = place.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

fn stage(line: Option<std::io::Result<String>>) -> String {
    let line: serde_json::Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
    line["stage"].as_str().unwrap().to_owned()
}

#[test]
fn a_follower_begins_with_the_last_ten_and_goes_on() {
    let place = Place::new();
    let engine = open(&place);
    several(&engine);
    let (mut all, mut lines) = follow(&place, &[]);
    let (mut daily, mut of_day) = follow(&place, &["--day", "2026-04-01"]);
    for n in 21..30 {
        assert_eq!(stage(lines.next()), format!("stage_{n}"));
    }
    assert_eq!(stage(lines.next()), "late");
    for n in 1..10 {
        assert_eq!(stage(of_day.next()), format!("stage_{n}"));
    }
    assert_eq!(stage(of_day.next()), "late");
    // Both wait now, or soon; whatever comes in between is shown once.
    for n in 0..20 {
        append(&engine, tick(&format!("new_{n}"), "{}"), "2026-04-02T00:00:00Z");
        append(&engine, tick(&format!("old_{n}"), "{}"), "2026-04-01T00:00:00Z");
    }
    for n in 0..20 {
        assert_eq!([stage(lines.next()), stage(lines.next())], [format!("new_{n}"), format!("old_{n}")]);
        assert_eq!(stage(of_day.next()), format!("old_{n}"));
    }
    daily.kill().unwrap();
    daily.wait().unwrap();
    // Nobody reads on: the next tick ends it, quietly.
    drop(lines);
    append(&engine, tick("unheard", "{}"), "2026-04-02T00:00:00Z");
    let output = all.wait().unwrap();
    assert_eq!(output.code(), Some(0));
}

#[test]
fn the_first_tick_of_all_is_followed_too() {
    let place = Place::new();
    place.record("r", "true");
    let (mut child, mut lines) = follow(&place, &[]);
    let engine = open(&place);
    append(&engine, tick("first", "{}"), "2026-04-02T00:00:00Z");
    assert_eq!(stage(lines.next()), "first");
    child.kill().unwrap();
    child.wait().unwrap();
}

fn damage(place: &Place, segment: u32, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(place.segment(segment)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[test]
fn what_can_be_read_of_damaged_ticks_is_printed() {
    let place = Place::new();
    let engine = open(&place);
    several(&engine);
    engine.close().unwrap();
    fs::remove_file(place.segment(2)).unwrap();
    let output = place.ends(3, &["-o", "json", "ticks"]);
    let left = text(&output.stdout).lines().count();
    assert!((15..31).contains(&left), "{left}");
    assert!(text(&output.stderr).contains("missing"), "{output:?}");
    // The last ten are read by the index, wherever the first ones are.
    let (mut child, mut lines) = follow(&place, &[]);
    assert_eq!(stage(lines.next()), "stage_21");
    child.kill().unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stderr), "");
    // Without the segment that has their name nobody can tell that there are none.
    fs::remove_file(place.segment(1)).unwrap();
    place.ends(3, &["ticks"]);
}

#[test]
fn a_tick_that_is_damaged_among_others_is_told() {
    let place = Place::new();
    let engine = open(&place);
    for n in 0..5 {
        append(&engine, tick(&format!("stage_{n}"), "{}"), "2026-04-01T00:00:00Z");
    }
    engine.close().unwrap();
    let bytes = fs::read(place.segment(1)).unwrap();
    let at = bytes.windows(7).position(|window| window == b"stage_2").unwrap();
    damage(&place, 1, at as u64);
    let output = place.ends(3, &["ticks"]);
    let shown = text(&output.stdout);
    assert!(shown.lines().count() == 4 && !shown.contains("stage_2"), "{shown}");
    assert!(text(&output.stderr).contains("cannot be read"), "{output:?}");
}

/// Those that another process has not shown are written behind what is there: what stands before is not read.
#[test]
fn files_go_on_where_they_were_left() {
    let place = Place::new();
    let engine = open(&place);
    several(&engine);
    engine.close().unwrap();
    let before = file(&place, "2026-04-03");
    let silent = Options { publish_ticks: false, ..Options::default() };
    let (engine, _) = Engine::open(place.data(), silent).unwrap();
    append(&engine, tick("unshown", "{}"), "2026-04-03T23:59:59.999Z");
    engine.close().unwrap();
    assert_eq!(file(&place, "2026-04-03"), before);
    let segment = fs::read(place.segment(1)).unwrap();
    let first = segment.windows(7).position(|part| part == b"stage_0").unwrap();
    damage(&place, 1, first as u64);
    open(&place).close().unwrap();
    let after = file(&place, "2026-04-03");
    assert!(after.starts_with(&before) && after.contains("unshown"), "{after}");
}

/// Somebody brought an older journal back, and all that was noted of files but the files is gone.
#[test]
fn files_of_ticks_that_are_gone_are_made_anew() {
    let place = Place::new();
    let engine = open(&place);
    append(&engine, tick("kept", "{}"), "2026-04-01T00:00:00Z");
    engine.close().unwrap();
    let segment = fs::read(place.segment(1)).unwrap();
    let mark = fs::read(place.data().join("journal/mark")).unwrap();
    let engine = open(&place);
    append(&engine, tick("gone", "{}"), "2026-04-01T00:00:01Z");
    engine.close().unwrap();
    assert!(file(&place, "2026-04-01").contains("gone"));
    fs::write(place.segment(1), segment).unwrap();
    fs::write(place.data().join("journal/mark"), mark).unwrap();
    let _ = fs::remove_file(place.data().join("cache/projected"));
    open(&place).close().unwrap();
    let shown = file(&place, "2026-04-01");
    assert!(shown.contains("kept") && !shown.contains("gone"), "{shown}");
    place.ends(0, &["rebuild", "--check"]);
}
