//! Appends under conditions: idempotency keys, terms, expected sequences; by several threads,
//! several handles, and across openings.

#![expect(clippy::disallowed_methods, reason = "plays the user, who reads and damages files")]

use runwal::engine::{Conditions, Engine, Entry, Log, NewRecord, Options};
use runwal::position::{Position, Seq, StreamId, Time};
use runwal::record::{Body, Channel, Id, Lifecycle, Record};
use runwal::run::{
    Answer, AsyncExecutor, AsyncStep, Cancel, Checkpoints, Discard, End, ExecutorError, Outcome,
    ProcessOptions, Recorder, RunRequest, Steps, record_process,
};
use runwal::{Conflict, ErrorKind, JournalOptions, Receipt};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Segments so short that a test sees many of them.
fn short() -> Options {
    let journal = JournalOptions { first_capacity: 8 << 10, max_capacity: 8 << 10, ..Default::default() };
    Options { journal, ..Options::default() }
}

fn open(dir: &Path) -> Engine {
    Engine::open(dir.join("data"), short()).unwrap().0
}

fn id(text: &str) -> Id {
    Id::new(text).unwrap()
}

fn run(engine: &Engine, name: &str) -> StreamId {
    Recorder::prepare(engine, RunRequest::new(id("t"), id(name), id("s"))).unwrap().stream()
}

fn line(text: &str) -> [NewRecord; 1] {
    [Body::Chunk(Channel::Stdout, text.as_bytes().to_vec()).into()]
}

fn records(dir: &Path) -> Vec<Record> {
    let mut log = Log::open(dir.join("data")).unwrap();
    let mut records = log.records(Position(1)).unwrap();
    let mut all = Vec::new();
    while let Some(entry) = records.next().unwrap() {
        match entry {
            Entry::Record(record) => all.push(record),
            Entry::Damage(damage) => panic!("{damage:?}"),
        }
    }
    all
}

fn with_key<'r>(all: &'r [Record], key: &str) -> Vec<&'r Record> {
    all.iter().filter(|record| record.key.as_deref() == Some(key.as_bytes())).collect()
}

#[test]
fn a_key_stands_for_one_append_across_rolls_handles_openings_and_a_lost_cache() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = open(dir.path());
    let stream = run(&engine, "r");
    let mut first: BTreeMap<String, Receipt> = BTreeMap::new();
    for round in 0..4 {
        for n in 0..60 {
            let key = format!("round {round} append {n}");
            let two = [line("one")[0].clone(), line(&"x".repeat(300))[0].clone()];
            let receipt = engine.append(stream, Conditions::none().key(key.as_str()), &two).unwrap();
            assert_eq!(receipt.last.0, receipt.first.0 + 1);
            first.insert(key, receipt);
        }
        if round == 2 {
            // Nobody writes to it any more.
            let last = first.values().max_by_key(|receipt| receipt.last).unwrap();
            engine.wait_published(last).unwrap();
            std::fs::remove_dir_all(dir.path().join("data/cache")).unwrap();
        }
        engine.close().unwrap();
        engine = open(dir.path());
        let other = open(dir.path());
        for (key, receipt) in &first {
            let two = [line("one")[0].clone(), line(&"x".repeat(300))[0].clone()];
            for engine in [&engine, &other] {
                let again = engine.append(stream, Conditions::none().key(key.as_str()), &two).unwrap();
                assert_eq!(again, *receipt, "{key}");
            }
        }
    }
    let all = records(dir.path());
    let segments = std::fs::read_dir(dir.path().join("data/journal"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".seg"));
    let segments = segments.count();
    assert!(segments > 12, "{segments} segments");
    assert!(first.keys().all(|key| with_key(&all, key).len() == 1));
}

/// The active segment of a writer that died is ended by recovery, and has its index in the cache
/// alone.
#[test]
fn a_key_outlives_a_torn_tail_and_the_index_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let stream = run(&engine, "r");
    let receipt = engine.append(stream, Conditions::none().key("k"), &line("a")).unwrap();
    drop(engine);
    let journal = dir.path().join("data/journal");
    let newest = std::fs::read_dir(&journal).unwrap().map(|e| e.unwrap().path());
    let newest = newest.filter(|p| p.is_file() && p.extension().is_some_and(|e| e == "seg")).max().unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
    let torn = [&bytes[..end], &[0; 40][..], &[7; 20][..]].concat();
    std::fs::write(&newest, torn).unwrap();
    for round in 0..2 {
        let (engine, report) = Engine::open(dir.path().join("data"), short()).unwrap();
        assert_eq!(report.quarantined_bytes > 0, round == 0);
        assert_eq!(engine.append(stream, Conditions::none().key("k"), &line("a")).unwrap(), receipt);
        engine.close().unwrap();
        std::fs::remove_dir_all(dir.path().join("data/cache")).unwrap();
    }
}

#[test]
fn a_key_with_other_content_is_refused_and_says_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (stream, other) = (run(&engine, "r"), run(&engine, "other"));
    let dated = |at: i64| [NewRecord { created_at: Some(Time(at)), ..line("a")[0].clone() }];
    let receipt = engine.append(stream, Conditions::none().key("k"), &line("a")).unwrap();
    let given = engine.append(stream, Conditions::none().key("dated"), &dated(5)).unwrap();
    assert_eq!(engine.append(stream, Conditions::none().key("dated"), &dated(5)).unwrap(), given);
    let before = records(dir.path()).len();
    let long = [line("a")[0].clone(), line("b")[0].clone()];
    let attempts: [(&str, StreamId, &[NewRecord]); 6] = [
        ("k", stream, &line("b")),
        ("k", other, &line("a")),
        ("k", stream, &long),
        ("k", stream, &[Body::Chunk(Channel::Stderr, b"a".to_vec()).into()]),
        ("dated", stream, &dated(6)),
        ("dated", stream, &line("a")),
    ];
    for (key, stream, what) in attempts {
        let refused = engine.append(stream, Conditions::none().key(key), what).unwrap_err();
        let position = if key == "k" { receipt.first } else { given.first };
        assert_eq!(refused.conflict(), Some(Conflict::Key { position }), "{refused}");
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        assert!(refused.advice().is_some_and(|a| a.contains("Nothing was written")));
    }
    for key in [Vec::new(), vec![b'k'; 257]] {
        let refused = engine.append(stream, Conditions::none().key(key), &line("a")).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Misuse);
    }
    assert_eq!(records(dir.path()).len(), before);
}

/// What was written is told before what would stand against writing it now.
#[test]
fn a_retry_is_answered_though_its_sequence_and_term_have_passed() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let stream = run(&engine, "r");
    let next = Log::open(dir.path().join("data")).unwrap().end_of(stream).unwrap().unwrap().0.next().unwrap();
    let conditions = || Conditions::none().expecting(next).term(4).key("k");
    let receipt = engine.append(stream, conditions(), &line("a")).unwrap();
    engine.append(stream, Conditions::none().term(9), &line("b")).unwrap();
    assert_eq!(engine.append(stream, conditions(), &line("a")).unwrap(), receipt);
    let refused = engine.append(stream, conditions().key("other"), &line("a")).unwrap_err();
    let found = Seq(next.0 + 2);
    assert_eq!(refused.conflict(), Some(Conflict::Sequence { expected: next, found }));
}

#[test]
fn one_key_handed_in_many_times_at_once_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let engines = [open(dir.path()), open(dir.path())];
    let stream = run(&engines[0], "r");
    for round in 0..50 {
        let key = format!("round {round}");
        let receipts: Vec<Receipt> = std::thread::scope(|scope| {
            let append =
                |n: usize| engines[n % 2].append(stream, Conditions::none().key(key.as_str()), &line(&key));
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || append(n))).collect();
            threads.into_iter().map(|t| t.join().unwrap().unwrap()).collect()
        });
        assert!(receipts.iter().all(|receipt| *receipt == receipts[0]));
    }
    // Within one group, too: handed in before anybody waits.
    let again = Conditions::none().key("group");
    let tickets: Vec<_> =
        (0..3).map(|_| engines[0].submit(stream, again.clone(), &line("g")).unwrap()).collect();
    let other = engines[0].submit(stream, again, &line("h")).unwrap();
    let receipts: Vec<_> = tickets.into_iter().map(|t| t.wait().unwrap()).collect();
    assert!(receipts.iter().all(|receipt| *receipt == receipts[0]));
    assert!(matches!(other.wait().unwrap_err().conflict(), Some(Conflict::Key { .. })));
    let all = records(dir.path());
    assert_eq!(all.iter().filter(|record| record.key.is_some()).count(), 51);
}

#[test]
fn a_lower_term_is_refused_in_the_journal_and_in_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = open(dir.path());
    let (a, b, ended) = (run(&engine, "a"), run(&engine, "b"), run(&engine, "ended"));
    engine.append(a, Conditions::none().stream_term(5), &line("a5")).unwrap();
    engine.append(b, Conditions::none().stream_term(3), &line("b3")).unwrap();
    let end = NewRecord {
        ends: true,
        ..Body::Lifecycle(Lifecycle::new("over", runwal::record::Level::Info, "")).into()
    };
    engine.append(ended, Conditions::none().stream_term(4), &[end]).unwrap();
    engine.append(ended, Conditions::none(), &line("behind the end")).unwrap();
    for round in 0..3 {
        let term = |given: u64, seen: u64| Some(Conflict::Term { given, seen });
        let refused =
            |stream, conditions: Conditions| engine.append(stream, conditions, &line("x")).unwrap_err();
        let error = refused(a, Conditions::none().stream_term(4));
        assert_eq!(error.conflict(), term(4, 5));
        assert!(error.message().contains('4') && error.message().contains('5'), "{error}");
        assert_eq!(refused(b, Conditions::none().stream_term(2)).conflict(), term(2, 3));
        assert_eq!(refused(ended, Conditions::none().stream_term(3)).conflict(), term(3, 4));
        // The whole journal has seen 5; who compares with it is refused in any stream.
        assert_eq!(refused(b, Conditions::none().term(4)).conflict(), term(4, 5));
        let run = RunRequest { term: Some(4), ..RunRequest::new(id("t"), id("late"), id("s")) };
        assert_eq!(Recorder::prepare(&engine, run).unwrap_err().conflict(), term(4, 5));
        engine.append(b, Conditions::none().stream_term(3), &line("b3")).unwrap();
        engine.append(b, Conditions::none(), &line("whoever has no term is not compared")).unwrap();
        // Into other segments, and into another opening.
        for _ in 0..40 {
            engine.append(b, None, &line(&"x".repeat(400))).unwrap();
        }
        if round == 1 {
            // Nobody writes to it any more.
            let last = engine.append(b, None, &line("last")).unwrap();
            engine.wait_published(&last).unwrap();
            std::fs::remove_dir_all(dir.path().join("data/cache")).unwrap();
        }
        engine.close().unwrap();
        engine = open(dir.path());
    }
    engine.append(a, Conditions::none().term(6), &line("a6")).unwrap();
    assert!(records(dir.path()).iter().all(|record| record.body != line("x")[0].body));
}

/// The old conductor's run cannot go on once the new one has written, and the new one ends it when
/// the old one is gone.
#[test]
fn a_run_of_a_conductor_that_was_taken_over_from_writes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let old = open(dir.path());
    let request =
        |name: &str, term| RunRequest { term: Some(term), ..RunRequest::new(id("t"), id(name), id("s")) };
    let mut stale = Recorder::prepare(&old, request("stale", 1)).unwrap();
    stale.chunk(Channel::Stdout, b"mine\n").unwrap();
    let new = open(dir.path());
    let mut run = Recorder::prepare(&new, request("new", 2)).unwrap();
    let late = stale.chunk(Channel::Stdout, b"late\n").unwrap_err();
    assert_eq!(late.conflict(), Some(Conflict::Term { given: 1, seen: 2 }));
    assert!(stale.finish(End::new(Outcome::Completed, "Done.")).is_err());
    run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
    drop((stale, run));
    old.close().unwrap();
    new.close().unwrap();
    let (_, report) = Engine::open(dir.path().join("data"), short()).unwrap();
    let interrupted: Vec<_> = report.interrupted.iter().map(|run| run.name.to_string()).collect();
    assert_eq!(interrupted, ["t/stale"]);
    let all = records(dir.path());
    assert!(!all.iter().any(|r| matches!(&r.body, Body::Chunk(_, bytes) if bytes == b"late\n")));
}

/// Also one that has nothing to say, and so would never find out by being refused.
#[test]
fn a_silent_worker_of_a_conductor_that_was_taken_over_from_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (open(dir.path()), open(dir.path()));
    let mut asked = RunRequest { term: Some(1), ..RunRequest::new(id("t"), id("silent"), id("s")) };
    asked.command = ["sh", "-c", "exec sleep 100000"].map(|word| word.as_bytes().to_vec()).to_vec();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let cancel = Cancel::new().unwrap();
            record_process(&old, asked, &ProcessOptions::default(), &mut Discard, &cancel)
        });
        let mut log = Log::open(dir.path().join("data")).unwrap();
        crate::cli::wait_until("the worker's start", || {
            log.refresh().unwrap();
            let run = log.resolve("t/silent").ok();
            run.is_some_and(|run| log.fold(run.stream).unwrap().0.worker_is_out())
        });
        let stream = run(&new, "new");
        new.append(stream, Conditions::none().term(2), &line("mine")).unwrap();
        let error = worker.join().unwrap().unwrap_err();
        assert_eq!(error.conflict(), Some(Conflict::Term { given: 1, seen: 2 }), "{error}");
        assert!(error.message().contains("the worker ended with"), "{error}");
    });
}

/// Looking for a later term must not wait for anybody's turn at the journal: a worker's time is up also
/// while the lock is held by a process that is stopped.
#[test]
fn a_worker_in_a_term_is_ended_in_time_while_the_lock_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let journal = JournalOptions { patience: std::time::Duration::from_hours(1), ..Default::default() };
    let options = Options { journal, ..Options::default() };
    let (engine, _) = Engine::open(dir.path().join("data"), options).unwrap();
    let mut asked = RunRequest { term: Some(1), ..RunRequest::new(id("t"), id("late"), id("s")) };
    asked.command = ["sh", "-c", "echo $$ > pid; mv pid started; exec sleep 100000"]
        .map(|word| word.as_bytes().to_vec())
        .to_vec();
    asked.working_tree = Some(dir.path().as_os_str().as_encoded_bytes().to_vec());
    (asked.timeout_ms, asked.grace_ms) = (Some(3_000), 100);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let cancel = Cancel::new().unwrap();
            record_process(&engine, asked, &ProcessOptions::default(), &mut Discard, &cancel)
        });
        let started = dir.path().join("started");
        crate::cli::wait_until("the worker's start", || started.exists());
        let pid = std::fs::read_to_string(started).unwrap();
        let lock = std::fs::File::open(dir.path().join("data/journal/lock")).unwrap();
        lock.lock().unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        crate::cli::wait_until("the worker's end", || {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with('Z'))
        });
        lock.unlock().unwrap();
        assert!(worker.join().unwrap().unwrap().timed_out);
    });
}

/// An executor that never answers is dropped.
#[tokio::test]
async fn a_silent_step_of_a_conductor_that_was_taken_over_from_is_stopped() {
    struct Silent(tokio::sync::Notify);
    impl AsyncExecutor for Silent {
        async fn execute(&self, _: AsyncStep) -> Result<Answer, ExecutorError> {
            self.0.notify_one();
            std::future::pending().await
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (open(dir.path()), open(dir.path()));
    let silent = std::sync::Arc::new(Silent(tokio::sync::Notify::new()));
    let (steps, cancel) = (Steps::new(&old, 1), Cancel::new().unwrap());
    let asked = RunRequest { term: Some(1), ..RunRequest::new(id("t"), id("silent"), id("s")) };
    let checkpoints = Checkpoints { git_diff: false, ..Checkpoints::default() };
    let step = steps.execute(asked, &silent, &checkpoints, &cancel);
    let takes_over = async {
        silent.0.notified().await;
        let stream = run(&new, "new");
        new.append(stream, Conditions::none().term(2), &line("mine")).unwrap();
    };
    let (result, ()) = tokio::join!(step, takes_over);
    assert_eq!(result.unwrap_err().conflict(), Some(Conflict::Term { given: 1, seen: 2 }));
}

/// One append as a conductor saw it: when it asked, when it was answered, by a common count.
struct Asked {
    term: u64,
    from: u64,
    to: u64,
    text: String,
    answer: Result<Receipt, Option<Conflict>>,
}

/// The history of two conductors that race for one data directory has an order that explains what
/// each of them was told: the journal's.
#[test]
fn two_conductors_race_a_thousand_times_and_no_stale_write_comes_after_the_take_over() {
    const ROUNDS: u64 = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let engines = [open(dir.path()), open(dir.path())];
    let stream = run(&engines[0], "r");
    let (clock, history) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for (who, engine) in engines.iter().enumerate() {
            let (clock, history) = (&clock, &history);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    // Both claim the next term: the one who comes first is deposed by the other.
                    let term = 2 * round + who as u64 + 1;
                    for n in 0..2 {
                        let text = format!("{term}.{n}");
                        let from = clock.fetch_add(1, Ordering::SeqCst);
                        let conditions = Conditions::none().term(term).key(text.as_str());
                        let answer = engine.append(stream, conditions, &line(&text));
                        let to = clock.fetch_add(1, Ordering::SeqCst);
                        let answer = answer.map_err(|error| error.conflict());
                        history.lock().unwrap().push(Asked { term, from, to, text, answer });
                    }
                }
            });
        }
    });
    for engine in engines {
        engine.close().unwrap();
    }
    let history = history.into_inner().unwrap();
    let all: Vec<_> = records(dir.path()).into_iter().filter(|record| record.term.is_some()).collect();
    assert!(all.is_sorted_by_key(|record| record.term), "a stale write came after the take-over");
    let text = |record: &Record| match &record.body {
        Body::Chunk(_, bytes) => String::from_utf8(bytes.clone()).unwrap(),
        other => panic!("{other:?}"),
    };
    let written: BTreeMap<String, &Record> = all.iter().map(|record| (text(record), record)).collect();
    assert_eq!(written.len(), all.len(), "nothing was written twice");
    let mut refusals = 0;
    for asked in &history {
        match &asked.answer {
            Ok(receipt) => assert_eq!(written[&asked.text].position, receipt.last),
            Err(Some(Conflict::Term { given, seen })) => {
                refusals += 1;
                assert!(*given == asked.term && seen > given);
                assert!(!written.contains_key(&asked.text), "refused means not written");
                // The take-over was asked for before the refusal was answered.
                assert!(history.iter().any(|other| other.term == *seen && other.from < asked.to));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(history.len() as u64, 4 * ROUNDS);
    assert!(refusals > 0, "the race was none");
    // What was answered before something else was asked stands before it, and what was answered
    // before a refused one was asked may not be above it: order in time is order in the journal.
    let mut done: Vec<_> =
        history.iter().filter_map(|a| Some((a.to, a.answer.as_ref().ok()?.last))).collect();
    done.sort_unstable();
    for asked in &history {
        if let Ok(receipt) = &asked.answer {
            let before = done.iter().take_while(|(to, _)| *to < asked.from).map(|(_, p)| *p).max();
            assert!(before.is_none_or(|before| before < receipt.last));
        }
    }
}
