//! What `log` and `runs` show of all that is there, and that they read no more for it than it takes.

#![expect(clippy::disallowed_methods, reason = "plays the user, who damages files")]

use crate::cli::{Place, text};
use runwal::JournalOptions;
use runwal::clock::{ManualClock, SeededEntropy};
use runwal::engine::{Engine, Options, World};
use runwal::position::Time;
use runwal::record::{Channel, Id};
use runwal::run::{End, Outcome, Recorder, RunRequest};
use std::sync::Arc;
use std::time::Duration;

/// 2026-03-22T00:13:40Z.
const START: i64 = 1_774_138_420_000_000_000;
const RUNS: usize = 5;

/// Runs that begin one after the other, each while the one before goes on, in small segments, a second from
/// record to record.
fn overlapping_runs(place: &Place) {
    let clock = Arc::new(ManualClock::new(Time(START)));
    let entropy = Arc::new(SeededEntropy::new(1));
    let world = World { clock: clock.clone(), entropy, ..World::create(&place.data()).unwrap() };
    let journal = JournalOptions { first_capacity: 8 << 10, max_capacity: 8 << 10, ..Default::default() };
    let (engine, _) = Engine::open_in(world, Options { journal, ..Options::default() }).unwrap();
    let id = |text: &str| Id::new(text).unwrap();
    let mut going: Vec<Recorder> = Vec::new();
    for round in 0..=RUNS {
        if round < RUNS {
            let request = RunRequest::new(id("t"), id(&format!("r{round}")), id("s"));
            going.push(Recorder::prepare(&engine, request).unwrap());
        }
        for n in 0..20_u8 {
            clock.advance(Duration::from_secs(1));
            for run in &mut going {
                let channel = if n % 3 == 0 { Channel::Stderr } else { Channel::Stdout };
                run.chunk(channel, &[b'a' + n; 300]).unwrap();
            }
        }
        if going.len() > 1 || round == RUNS {
            going.remove(0).finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
        }
    }
    engine.close().unwrap();
}

fn lines(place: &Place, args: &[&str]) -> Vec<String> {
    text(&place.ends(0, args).stdout).lines().map(str::to_owned).collect()
}

fn at(seconds: i64) -> String {
    Time(START + seconds * 1_000_000_000).to_nanos_string()
}

#[test]
fn the_last_records_are_the_end_of_all_of_them_whatever_is_asked_for() {
    let place = Place::new();
    overlapping_runs(&place);
    let every = place.json(0, &["-o", "json", "log"]);
    let all = lines(&place, &["log"]);
    assert!(all.len() == every.len() && all.len() > 220 && place.segment(4).exists());
    let cursor = every[200]["cursor"].as_str().unwrap();
    let (early, late) = (at(30), at(80));
    for args in [
        &[][..],
        &["t/r1"],
        &["t/r4"],
        &["--kind", "stderr"],
        &["--kind", "run"],
        &["t/r2", "--kind", "stdout", "--kind", "lifecycle"],
        &["--level", "warn"],
        &["--since", &late],
        &["--until", &early],
        &["t/r1", "--since", &early, "--until", &late],
        &["--after-cursor", cursor],
        &["t/r3", "--after-cursor", cursor, "--kind", "stdout"],
        &["--after-cursor", cursor, "--since", &late],
    ] {
        // What is read in one go, by what each record says of itself.
        let fits = |record: &serde_json::Value| {
            let says =
                |name: &str| args.windows(2).filter(|a| a[0] == name).map(|a| a[1]).collect::<Vec<_>>();
            let (time, kind) = (record["time"].as_str().unwrap(), record["kind"].as_str().unwrap());
            args.first().is_none_or(|a| a.strip_prefix("t/").is_none_or(|run| record["run"] == run))
                && (says("--kind").is_empty() || says("--kind").contains(&kind))
                && says("--level").iter().all(|_| record["level"] == "warn" || record["level"] == "error")
                && says("--since").iter().all(|since| time >= *since)
                && says("--until").iter().all(|until| time <= *until)
                && (says("--after-cursor").is_empty()
                    || record["position"].as_u64() > every[200]["position"].as_u64())
        };
        let fitting = every.iter().zip(&all).filter(|(record, _)| fits(record));
        let whole: Vec<_> = fitting.map(|(_, line)| line.clone()).collect();
        let ask = |more: &[&str]| lines(&place, &[&["log"], args, more].concat());
        assert_eq!(ask(&[]), whole, "{args:?}");
        let mut backwards = whole.clone();
        backwards.reverse();
        assert_eq!(ask(&["-r"]), backwards, "{args:?}");
        for n in [0, 1, 2, 7, 40, 100_000] {
            let (count, last) = (n.to_string(), &whole[whole.len().saturating_sub(n)..]);
            assert_eq!(ask(&["-n", &count]), last, "{args:?} {n}");
            assert_eq!(ask(&["-r", "-n", &count]), backwards[..n.min(whole.len())], "{args:?} {n}");
        }
    }
}

/// What is damaged elsewhere is not read, and so is nothing to be told.
#[test]
fn what_is_not_asked_for_is_not_read() {
    let place = Place::new();
    overlapping_runs(&place);
    let shown = |args: &[&str]| text(&place.ends(0, args).stdout);
    let asked: [&[&str]; 5] = [
        &["log", "-n", "5"],
        &["log", "t/r4"],
        &["runs", "-n", "1"],
        &["log", "-f", "t/r4"],
        &["log", "@last"],
    ];
    let before: Vec<_> = asked.iter().map(|args| shown(args)).collect();
    let damaged = place.segment(2);
    let mut bytes = std::fs::read(&damaged).unwrap();
    let body =
        bytes.windows(64).rposition(|part| part.iter().all(|b| *b == part[0] && b.is_ascii_lowercase()));
    bytes[body.unwrap()] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    place.ends(3, &["log"]);
    place.ends(3, &["runs"]);
    for (args, before) in asked.iter().zip(before) {
        assert_eq!(shown(args), before, "{args:?}");
    }
    // What is asked for is told.
    for args in [&["log", "t/r1"][..], &["log", "-n", "1000", "t/r1"], &["log", "-n", "1000"]] {
        let output = place.ends(3, args);
        assert!(text(&output.stderr).contains("checksum"), "{output:?}");
    }
    // A segment that is gone may have had any run in it, and the end of any.
    std::fs::remove_file(&damaged).unwrap();
    place.ends(3, &["runs", "-n", "1"]);
    place.ends(3, &["runs", "--task", "t"]);
    for run in ["t/r0", "t/r1"] {
        for args in [&["log", run][..], &["log", "-n", "1000", run], &["output", run]] {
            place.ends(3, args);
        }
    }
}

/// What was given up is told, and fails nothing any more.
#[test]
fn what_was_given_up_is_told_of_one_run_as_of_all() {
    let place = Place::new();
    let (engine, _) = Engine::open_in(World::create(&place.data()).unwrap(), Options::default()).unwrap();
    let id = |text: &str| Id::new(text).unwrap();
    let mut run = Recorder::prepare(&engine, RunRequest::new(id("t"), id("r"), id("s"))).unwrap();
    for line in ["one\n", "two two two\n", "three\n"] {
        run.chunk(Channel::Stdout, line.as_bytes()).unwrap();
    }
    run.finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
    engine.close().unwrap();
    let mut bytes = std::fs::read(place.segment(1)).unwrap();
    let at = bytes.windows(11).position(|part| part == b"two two two").unwrap();
    bytes[at] ^= 1;
    std::fs::write(place.segment(1), bytes).unwrap();
    std::fs::remove_dir_all(place.data().join("cache")).unwrap();
    let asked: [&[&str]; 5] =
        [&["log"], &["log", "t/r"], &["log", "-n", "100", "t/r"], &["runs"], &["runs", "-n", "1"]];
    for args in asked {
        place.ends(3, args);
    }
    place.ends(0, &["recover", "--accept-damage"]);
    for args in asked {
        let told = text(&place.ends(0, args).stderr);
        assert!(told.contains("given up"), "{args:?}: {told}");
    }
}

/// The segment that is gone had nothing of the run but its end, and the next one says that it has ended.
#[test]
fn an_end_in_a_segment_that_is_gone_is_missed() {
    let place = Place::new();
    let journal = JournalOptions { first_capacity: 8 << 10, max_capacity: 8 << 10, ..Default::default() };
    let options = Options { journal, ..Options::default() };
    let (engine, _) = Engine::open_in(World::create(&place.data()).unwrap(), options).unwrap();
    let id = |text: &str| Id::new(text).unwrap();
    let prepare = |run: &str| Recorder::prepare(&engine, RunRequest::new(id("t"), id(run), id("s"))).unwrap();
    let (mut run, mut other) = (prepare("r"), prepare("other"));
    run.chunk(Channel::Stdout, b"on\n").unwrap();
    for (segment, ends) in [(2, true), (4, false)] {
        while !place.segment(segment).exists() {
            other.chunk(Channel::Stdout, &[b'x'; 500]).unwrap();
        }
        if ends {
            run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
        }
    }
    other.finish(End::new(Outcome::Completed, "Done.")).unwrap();
    engine.close().unwrap();
    place.ends(0, &["output", "t/r"]);
    std::fs::remove_file(place.segment(2)).unwrap();
    for args in [&["output", "t/r"], &["log", "t/r"], &["show", "t/r"]] {
        let told = text(&place.ends(3, args).stderr);
        assert!(told.contains("segment 2"), "{args:?}: {told}");
    }
}
