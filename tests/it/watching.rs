//! Who watches a journal sees what was asked for: each record once, none left out.

#![expect(clippy::disallowed_methods, reason = "damages files, and measures how long it takes")]

use crate::cli::{Dice, Place, text, wait_until};
use runwal::async_engine::{AsyncEngine, AsyncLog, AsyncSubscription};
use runwal::engine::{Cursor, Delivery, Engine, Entry, Filter, Log, NewRecord, Options, Start, Subscription};
use runwal::position::{Position, StreamId};
use runwal::record::{Body, Channel, Id, JsonText, Kind, Level, Lifecycle, RunName, Tick};
use runwal::run::{End, Outcome, Recorder, RunRequest};
use runwal::{ErrorKind, JournalOptions};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_millis(5);

/// Small segments, so that there are many rolls.
fn open(dir: &Path) -> Engine {
    let journal = JournalOptions { first_capacity: 8 << 10, max_capacity: 8 << 10, ..Default::default() };
    Engine::open(dir.join("data"), Options { journal, publish: false, ..Options::default() }).unwrap().0
}

fn name(task: u64, run: u64) -> RunName {
    RunName { task: Id::new(format!("t{task}")).unwrap(), run: Id::new(format!("r{run}")).unwrap() }
}

fn begin(engine: &Engine, name: &RunName) -> Recorder {
    let request = RunRequest::new(name.task.clone(), name.run.clone(), Id::new("s").unwrap());
    Recorder::prepare(engine, request).unwrap()
}

fn tick(n: u64) -> Tick {
    Tick {
        batch_id: format!("b{n}"),
        runner: "r".to_owned(),
        stage: "started".to_owned(),
        result: None,
        error: None,
        duration_ms: None,
        details: JsonText::empty(),
    }
}

/// Records of every kind in several runs of two tasks, in an order of its own.
fn write(engine: &Engine, writer: u64, runs: u64, steps: u64) {
    let mut dice = Dice(0x1000 + writer);
    for run in 0..runs {
        let mut recorder = begin(engine, &name(writer % 2, writer * 100 + run));
        for n in 0..steps {
            match dice.roll(6) {
                0 => recorder.event(Lifecycle::new("note", Level::Info, "Noted.")).unwrap(),
                1 => engine.append_tick(tick(n), None).unwrap(),
                2 => recorder.chunk(Channel::Stderr, &vec![b'e'; 1 + dice.pick(900)]).unwrap(),
                _ => recorder.chunk(Channel::Stdout, &vec![b'o'; 1 + dice.pick(300)]).unwrap(),
            };
        }
        recorder.finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
    }
}

/// What is asked for, and the same as a question about a record.
#[derive(Debug, Clone, Default)]
struct Wish {
    filter: Filter,
    runs: Vec<RunName>,
    tasks: Vec<Id>,
    kinds: Vec<Kind>,
}

impl Wish {
    fn any(dice: &mut Dice) -> Self {
        let mut wish = Self::default();
        for _ in 0..dice.roll(3) {
            let writer = dice.roll(4);
            let run = name(writer % 2, writer * 100 + dice.roll(5));
            wish.filter = wish.filter.run(run.clone());
            wish.runs.push(run);
        }
        if dice.roll(4) == 0 {
            let task = name(dice.roll(2), 0).task;
            wish.filter = wish.filter.task(task.clone());
            wish.tasks.push(task);
        }
        for _ in 0..dice.roll(3) {
            let kind = Kind::ALL[dice.pick(7)];
            wish.filter = wish.filter.kind(kind);
            wish.kinds.push(kind);
        }
        wish
    }

    fn wants(&self, run: Option<&RunName>, kind: Kind) -> bool {
        let named = self.runs.is_empty() && self.tasks.is_empty()
            || run.is_some_and(|run| self.runs.contains(run) || self.tasks.contains(&run.task));
        named && (self.kinds.is_empty() || self.kinds.contains(&kind))
    }
}

type Seen = (Position, Option<RunName>, Kind);

fn seen(delivery: &Delivery) -> Seen {
    let Entry::Record(record) = &delivery.what else { panic!("{delivery:?}") };
    assert_eq!(delivery.cursor.position(), record.position);
    (record.position, delivery.run.clone(), record.body.known_kind().unwrap())
}

/// Everything in the journal, read in another way: names are those of the first records.
fn journal(dir: &Path) -> Vec<Seen> {
    let mut log = Log::open(dir.join("data")).unwrap();
    let (mut names, mut all) = (BTreeMap::<StreamId, RunName>::new(), Vec::new());
    let mut records = log.records(Position(1)).unwrap();
    while let Some(entry) = records.next().unwrap() {
        let Entry::Record(record) = entry else { panic!("{entry:?}") };
        if let Body::Run(run) = &record.body {
            names.insert(record.stream, run.name.clone());
        }
        all.push((record.position, names.get(&record.stream).cloned(), record.body.known_kind().unwrap()));
    }
    all
}

fn assert_exact(dir: &Path, wish: &Wish, after: Position, got: &[Seen]) {
    let mut expected = journal(dir);
    expected.retain(|(at, run, kind)| *at > after && wish.wants(run.as_ref(), *kind));
    let first = expected.iter().zip(got).find(|(a, b)| a != b);
    assert!(expected == got, "{wish:?}: {} of {}, {first:?}", got.len(), expected.len());
}

fn any_start(dir: &Path, dice: &mut Dice) -> Start {
    let log = Log::open(dir.join("data")).unwrap();
    match dice.roll(4) {
        0 => Start::Now,
        1 => Start::After(Cursor::new(log.journal_id(), Position(dice.roll(log.durable().0 + 1)))),
        _ => Start::Beginning,
    }
}

fn subscribe(dir: &Path, engine: &Engine, start: Start, wish: &Wish, dice: &mut Dice) -> Subscription {
    let filter = wish.filter.clone();
    match dice.roll(2) {
        0 => engine.subscribe(start, filter).unwrap(),
        _ => Log::open(dir.join("data")).unwrap().subscribe(start, filter).unwrap(),
    }
}

/// The place before everything that a subscription gives that began there.
fn before(start: Start, cursor: Cursor) -> Position {
    if start == Start::Beginning { Position::ZERO } else { cursor.position() }
}

#[test]
fn each_sees_exactly_what_it_asked_for_through_restarts_and_rolls() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    begin(&one, &name(9, 9)).finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..6 {
            let (dir, one, done) = (dir.path(), &one, &done);
            scope.spawn(move || {
                let mut dice = Dice(0x77 + reader);
                while !done.load(Ordering::Acquire) {
                    let wish = Wish::any(&mut dice);
                    let start = any_start(dir, &mut dice);
                    let mut watched = subscribe(dir, one, start, &wish, &mut dice);
                    let (after, mut got) = (before(start, watched.cursor()), Vec::new());
                    let rounds = 100 + dice.roll(300);
                    for round in 0.. {
                        let over = done.load(Ordering::Acquire);
                        let given = watched.next_within(if over { Duration::ZERO } else { SOON }).unwrap();
                        got.extend(given.as_ref().map(seen));
                        if given.is_none() && (over || round > rounds) {
                            break;
                        }
                        if dice.roll(20) == 0 {
                            let cursor = watched.cursor().to_string().parse().unwrap();
                            watched = subscribe(dir, one, Start::After(cursor), &wish, &mut dice);
                        }
                    }
                    let upto = watched.cursor().position();
                    let mut expected = journal(dir);
                    expected.retain(|(at, run, kind)| {
                        *at > after && *at <= upto && wish.wants(run.as_ref(), *kind)
                    });
                    assert!(expected == got, "{wish:?}, {start:?}: {got:?} instead of {expected:?}");
                }
            });
        }
        let writers = [(0, &one), (1, &two), (2, &one), (3, &two)];
        let writers = writers.map(|(n, engine)| scope.spawn(move || write(engine, n, 5, 40)));
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Release);
    });
    assert!(Log::open(dir.path().join("data")).unwrap().segments().unwrap().len() > 10, "too few rolls");
}

#[test]
fn a_run_is_watched_from_its_beginning_also_before_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    write(&engine, 0, 2, 30);
    let filter = || Filter::default().run(name(1, 100));
    let mut early = engine.subscribe(Start::Beginning, filter()).unwrap();
    assert_eq!(early.cursor().position(), engine.log().unwrap().durable(), "nothing of it stands before");
    assert!(early.next().unwrap().is_none());
    write(&engine, 1, 1, 30);
    write(&engine, 2, 1, 30);
    let mut late = engine.subscribe(Start::Beginning, filter()).unwrap();
    let first = engine.log().unwrap().find("t1/r100").unwrap().unwrap();
    assert_eq!(late.cursor().position().0, first.0 - 1);
    let wish = Wish { runs: vec![name(1, 100)], ..Wish::default() };
    for watched in [&mut early, &mut late] {
        let mut got = Vec::new();
        while let Some(delivery) = watched.next().unwrap() {
            got.push(seen(&delivery));
        }
        assert_exact(dir.path(), &wish, Position::ZERO, &got);
        assert_eq!(watched.cursor().position(), engine.log().unwrap().durable(), "all of it was looked at");
    }
}

#[test]
fn damage_is_told_once_whatever_is_asked_for() {
    let place = Place::new();
    let engine = open(place.0.path());
    write(&engine, 1, 1, 200);
    write(&engine, 2, 2, 100);
    engine.close().unwrap();
    for (number, at) in [(3, 3_000), (5, 1_500)] {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(place.segment(number)).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }
    std::fs::remove_file(place.segment(7)).unwrap();
    let all = |start: Start, filter: &Filter| {
        let log = Log::open(place.data()).unwrap();
        let mut watched = log.subscribe(start, filter.clone()).unwrap();
        let mut given = Vec::new();
        while let Some(delivery) = watched.next().unwrap() {
            given.push(delivery);
        }
        given
    };
    let shown = |given: &[Delivery]| -> Vec<String> {
        let what = |delivery: &Delivery| match &delivery.what {
            Entry::Record(record) => format!("{} {:?}", record.position, delivery.run),
            Entry::Damage(damage) => format!("{} to {}: {}", damage.from, damage.to, damage.reason),
        };
        given.iter().map(what).collect()
    };
    let everything = all(Start::Beginning, &Filter::default());
    let mut next = 1;
    for delivery in &everything {
        match &delivery.what {
            Entry::Record(record) => assert_eq!(record.position.0, next),
            Entry::Damage(damage) => assert_eq!(damage.from.0, next),
        }
        next = delivery.cursor.position().0 + 1;
    }
    let is_damage = |delivery: &&Delivery| matches!(delivery.what, Entry::Damage(_));
    assert_eq!(everything.iter().filter(is_damage).count(), 3);
    let nobody = Filter::default().task(Id::new("nobody").unwrap());
    for filter in [Filter::default(), Filter::default().kind(Kind::Stderr), nobody] {
        let given = all(Start::Beginning, &filter);
        assert_eq!(given.iter().filter(is_damage).count(), 3, "{filter:?}");
        for n in 0..given.len() {
            let rest = all(Start::After(given[n].cursor), &filter);
            assert_eq!(shown(&rest), shown(&given[n + 1..]), "behind {:?}", given[n]);
        }
    }
}

#[test]
fn a_cursor_of_another_journal_or_of_a_later_one_is_refused() {
    let place = Place::new();
    let engine = open(place.0.path());
    write(&engine, 0, 1, 3);
    let cursor = engine.subscribe(Start::Now, Filter::default()).unwrap().cursor();
    let shown = place.json(0, &["-o", "json", "log"]);
    assert_eq!(shown.last().unwrap()["cursor"], cursor.to_string());
    assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
    let id = &cursor.to_string()[..32];
    for bad in ["", ":", "x:1", &format!("{id}:+1"), &format!("{id}:01"), &format!("{}:1", id.to_uppercase())]
    {
        if *bad != cursor.to_string() {
            assert_eq!(bad.parse::<Cursor>().unwrap_err().kind(), ErrorKind::Misuse, "{bad:?}");
        }
    }
    let ahead = Cursor::new(cursor.journal(), Position(cursor.position().0 + 1));
    let foreign = Cursor::new([7; 16], Position(1));
    for (wrong, word) in [(ahead, "the journal ends with record"), (foreign, "another journal")] {
        let refused = engine.subscribe(Start::After(wrong), Filter::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Misuse);
        assert!(refused.message().contains(word), "{refused}");
        let output = place.ends(2, &["log", "--after-cursor", &wrong.to_string()]);
        assert!(text(&output.stderr).contains(word), "{output:?}");
    }
    let mut from_start = engine.subscribe(Start::After(Cursor::default()), Filter::default()).unwrap();
    assert_eq!(from_start.next().unwrap().unwrap().cursor.position(), Position(1));
}

// --- Asynchronous ---

/// Polls a future once and drops it.
async fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn subscribe_async(
    dir: &Path,
    engine: &AsyncEngine,
    start: Start,
    wish: &Wish,
    dice: &mut Dice,
) -> AsyncSubscription {
    if dice.roll(3) == 0 {
        drop(poll_once(engine.subscribe(start, wish.filter.clone())).await);
    }
    if dice.roll(2) == 0 {
        return engine.subscribe(start, wish.filter.clone()).await.unwrap();
    }
    let log = AsyncLog::open(dir.join("data")).unwrap();
    log.subscribe(start, wish.filter.clone()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_dropped_at_any_moment_lose_and_repeat_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    begin(&one, &name(9, 9)).finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
    let watching = AsyncEngine::new(one.clone()).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for reader in 0..8 {
        let (dir, watching, done) = (dir.path().to_owned(), watching.clone(), Arc::clone(&done));
        readers.push(tokio::spawn(async move {
            let mut dice = Dice(0x99 + reader);
            let wish = if reader == 0 { Wish::default() } else { Wish::any(&mut dice) };
            let start = any_start(&dir, &mut dice);
            let mut watched = subscribe_async(&dir, &watching, start, &wish, &mut dice).await;
            let (after, mut got) = (before(start, watched.cursor()), Vec::new());
            loop {
                // Read before the look: nothing is written once it says so.
                let end =
                    done.load(Ordering::Acquire).then(|| Log::open(dir.join("data")).unwrap().durable());
                let given = match dice.roll(3) {
                    0 => tokio::time::timeout(SOON, watched.next()).await.ok(),
                    _ => poll_once(watched.next()).await,
                };
                got.extend(given.map(|delivery| seen(&delivery.unwrap())));
                if end.is_some_and(|end| watched.cursor().position() >= end) {
                    break;
                }
                if dice.roll(50) == 0 {
                    let cursor = watched.cursor();
                    watched = subscribe_async(&dir, &watching, Start::After(cursor), &wish, &mut dice).await;
                }
                tokio::task::yield_now().await;
            }
            assert_exact(&dir, &wish, after, &got);
        }));
    }
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let engine = if n % 2 == 0 { one.clone() } else { two.clone() };
            tokio::task::spawn_blocking(move || write(&engine, n, 5, 30))
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    done.store(true, Ordering::Release);
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test]
async fn who_never_asks_holds_nobody_up_and_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let watching = AsyncEngine::new(engine.clone()).unwrap();
    write(&engine, 0, 1, 1);
    let mut idle = watching.subscribe(Start::Beginning, Filter::default()).await.unwrap();
    let mut asked_once = watching.subscribe(Start::Now, Filter::default()).await.unwrap();
    let now = asked_once.cursor().position();
    assert!(poll_once(asked_once.next()).await.is_none());
    // The runtime has no other thread: nobody is polled until this returns.
    write(&engine, 1, 2, 400);
    for (watched, after) in [(&mut idle, Position::ZERO), (&mut asked_once, now)] {
        let mut got = Vec::new();
        while watched.cursor().position() < engine.log().unwrap().durable() {
            got.push(seen(&watched.next().await.unwrap()));
        }
        assert_exact(dir.path(), &Wish::default(), after, &got);
    }
}

#[tokio::test]
async fn who_begins_takes_the_news_from_nobody_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    // The other one's commits ring no bell here: whoever looks first sees them.
    let (engine, other) = (open(dir.path()), open(dir.path()));
    let mut recorder = begin(&other, &name(0, 0));
    let watching = AsyncEngine::new(engine).unwrap();
    let mut waits = watching.subscribe(Start::Now, Filter::default()).await.unwrap();
    for _ in 0..20 {
        tokio::time::timeout(Duration::from_millis(1), waits.next()).await.unwrap_err();
        recorder.event(Lifecycle::new("note", Level::Info, "Noted.")).unwrap();
        let begins = watching.subscribe(Start::Now, Filter::default()).await.unwrap();
        let given = tokio::time::timeout(Duration::from_mins(1), waits.next()).await.unwrap().unwrap();
        assert_eq!(given.cursor, begins.cursor());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_are_woken_and_none_is_forgotten() {
    const ROUNDS: usize = 30;
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let watching = AsyncEngine::new(engine.clone()).unwrap();
    let (heard, mut hears) = tokio::sync::mpsc::channel(1000);
    let recorder = begin(&engine, &name(0, 0));
    let stream = recorder.stream();
    for n in 0..200 {
        let filter = if n % 2 == 0 { Filter::default() } else { Filter::default().run(name(0, 0)) };
        let mut watched = watching.subscribe(Start::Now, filter).await.unwrap();
        let heard = heard.clone();
        tokio::spawn(async move {
            loop {
                let (position, ..) = seen(&watched.next().await.unwrap());
                if heard.send((n, position)).await.is_err() {
                    return;
                }
            }
        });
    }
    let mut last = Vec::new();
    for _ in 0..ROUNDS {
        let note = NewRecord::from(Body::Lifecycle(Lifecycle::new("note", Level::Info, "Noted.")));
        let receipt = watching.append(stream, None, vec![note]).await.unwrap();
        let begun = Instant::now();
        let mut woken = [false; 200];
        for _ in 0..200 {
            let (n, position) =
                tokio::time::timeout(Duration::from_mins(1), hears.recv()).await.unwrap().unwrap();
            assert_eq!(position, receipt.last);
            assert!(!std::mem::replace(&mut woken[n], true), "{n} was given it twice");
        }
        last.push(begun.elapsed());
    }
    last.sort();
    println!("200 were woken within {:?} in the median, {:?} at most", last[ROUNDS / 2], last[ROUNDS - 1]);
}

/// Other processes are seen by looking at the mark.
#[tokio::test]
async fn what_another_process_writes_is_told_soon() {
    let place = Place::new();
    place.record("first", "true");
    let log = AsyncLog::open(place.data()).unwrap();
    let only = Filter::default().run(RunName { task: Id::new("t").unwrap(), run: Id::new("r").unwrap() });
    let mut watched = log.subscribe(Start::Beginning, only.kind(Kind::Stdout)).await.unwrap();
    let mut child =
        place.command(&["-q", "run", "--task", "t", "--run", "r", "--", "echo", "hello"]).spawn().unwrap();
    let delivery = tokio::time::timeout(Duration::from_mins(1), watched.next()).await.unwrap().unwrap();
    let Entry::Record(record) = delivery.what else { panic!() };
    assert_eq!(record.body, Body::Chunk(Channel::Stdout, b"hello\n".to_vec()));
    wait_until("the end of the run", || child.try_wait().unwrap().is_some());
    let missing = AsyncLog::open(place.0.path().join("nowhere")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}
