//! The library as an embedder uses it.

use runwal::async_engine::AsyncEngine;
use runwal::disk::{Disk, File, Kind, Open, Session, Stat};
use runwal::engine::{Conditions, Engine, Entry, Log, NewRecord, Options, Ticket, World};
use runwal::error::Result;
use runwal::position::{Position, Seq, StreamId, Time};
use runwal::record::{
    Body, Channel, FileFormat, Id, JsonText, Level, Lifecycle, Replay, StatePatch, Status, Tick,
};
use runwal::run::{End, Outcome, Recorder, RunRequest};
use runwal::testing::stage::prepared;
use runwal::{ErrorKind, JournalOptions, Spares, Verdict};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

fn request(run: &str) -> RunRequest {
    RunRequest::new(Id::new("t").unwrap(), Id::new(run).unwrap(), Id::new("s").unwrap())
}

fn open(dir: &Path) -> Engine {
    Engine::open(dir.join("data"), Options::default()).unwrap().0
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    let world = runwal::engine::World::existing(&dir.join("data")).unwrap();
    let file = world.disk.open(name, runwal::disk::Open::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(file.stat().unwrap().len).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_run_exists_once_and_its_state_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut run = Recorder::prepare(&engine, request("r")).unwrap();
    let again = Recorder::prepare(&engine, request("r")).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    run.chunk(Channel::Stdout, b"x").unwrap();
    let result = run.finish(End::new(Outcome::NeedsHuman, "Ask.")).unwrap();
    assert_eq!(result.counts.channel_bytes, [1, 0]);
    let late = run.patch(StatePatch { status: Some(Status::Running), ..StatePatch::default() }).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Misuse);
    // Checkpoints may follow; they move `updatedAt`, not the status.
    let number = run.checkpoint("notes", FileFormat::Text, Replay::None, "Notes.", b"late".to_vec()).unwrap();
    assert_eq!(number, 3);
    engine.wait_published(&run.last_receipt()).unwrap();
    drop(run);
    engine.close().unwrap();
    let state: serde_json::Value = serde_json::from_slice(&read(dir.path(), "runs/t/r/state.json")).unwrap();
    assert_eq!((&state["status"], &state["lastCheckpointSeq"]), (&"needs_human".into(), &3.into()));
    assert_eq!(read(dir.path(), "runs/t/r/checkpoints/0003-notes.txt"), b"late\n");
}

/// Also past its recorder, from another process, and within one group of batches.
#[test]
fn what_comes_behind_the_end_of_a_run_does_not_change_its_state() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, other) = (open(dir.path()), open(dir.path()));
    let mut run = Recorder::prepare(&engine, request("r")).unwrap();
    let patch =
        || Body::StatePatch(StatePatch { status: Some(Status::Running), ..StatePatch::default() }).into();
    let end =
        || NewRecord { ends: true, ..Body::Lifecycle(Lifecycle::new("over", Level::Info, "Over.")).into() };
    engine.append(run.stream(), None, &[patch()]).unwrap();
    let (first, late) = (
        engine.submit(run.stream(), None, &[end(), patch()]).unwrap(),
        engine.submit(run.stream(), None, &[patch()]).unwrap(),
    );
    assert_eq!(late.wait().unwrap_err().kind(), ErrorKind::Misuse);
    first.wait().unwrap();
    for engine in [&engine, &other] {
        for record in [patch(), end()] {
            let refused = engine.append(run.stream(), None, &[record]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Misuse);
            assert!(!engine.is_poisoned());
        }
        let event = Body::Lifecycle(Lifecycle::new("note", Level::Info, "Later."));
        engine.append(run.stream(), None, &[event.into()]).unwrap();
    }
    assert!(run.event(Lifecycle::new("note", Level::Info, "Mine.")).is_err(), "others have written to it");
}

#[test]
fn another_writer_of_a_stream_is_noticed_by_its_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    let mut run = Recorder::prepare(&one, request("r")).unwrap();
    let event = || Body::Lifecycle(Lifecycle::new("note", Level::Info, "from elsewhere")).into();
    two.append(run.stream(), None, &[event()]).unwrap();
    let refused = run.event(Lifecycle::new("note", Level::Info, "mine")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(!one.is_poisoned(), "a refusal leaves the handle as it was");
    Recorder::prepare(&one, request("other")).unwrap();
}

#[test]
fn content_above_the_record_limit_appears_whole() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut run = Recorder::prepare(&engine, request("r")).unwrap();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let number = run.checkpoint("dump", FileFormat::Patch, Replay::None, "All.", content.clone()).unwrap();
    run.finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
    engine.close().unwrap();
    assert_eq!(read(dir.path(), &format!("runs/t/r/checkpoints/{number:04}-dump.patch")), content);
    let mut log = Log::open(dir.path().join("data")).unwrap();
    let info = log.resolve("t/r").unwrap();
    assert!(log.rebuild(info.stream, false).unwrap().unwrap().differences.is_empty());
    let (fold, _) = log.fold(info.stream).unwrap();
    assert_eq!(fold.state().last_checkpoint_seq, Some(3));
}

#[test]
fn a_recorder_dropped_without_an_end_is_ended_by_the_next_engine() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let run = Recorder::prepare(&engine, request("r")).unwrap();
    drop(run);
    let (beside, report) = Engine::open(dir.path().join("data"), Options::default()).unwrap();
    assert!(report.interrupted.is_empty(), "its engine is alive");
    beside.close().unwrap();
    engine.close().unwrap();
    let (engine, report) = Engine::open(dir.path().join("data"), Options::default()).unwrap();
    let names: Vec<String> = report.interrupted.iter().map(|run| run.name.to_string()).collect();
    assert_eq!(names, ["t/r"]);
    engine.close().unwrap();
    let (engine, report) = Engine::open(dir.path().join("data"), Options::default()).unwrap();
    assert!(report.interrupted.is_empty());
    engine.close().unwrap();
    let tail = read(dir.path(), "runs/t/r/checkpoints/0002-log-tail.txt");
    assert!(String::from_utf8(tail).unwrap().contains("step_interrupted"));
}

#[test]
fn a_rebuild_sees_what_was_recorded_since_its_handle_looked() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut run = Recorder::prepare(&engine, request("r")).unwrap();
    run.chunk(Channel::Stdout, b"early\n").unwrap();
    let stream = run.stream();
    let stale = || {
        let mut log = Log::open(dir.path().join("data")).unwrap();
        assert!(log.rebuild(stream, true).unwrap().is_none(), "its recorder is alive");
        log
    };
    let (mut compares, mut writes) = (stale(), stale());
    run.chunk(Channel::Stdout, b"late\n").unwrap();
    run.finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
    drop(run);
    engine.close().unwrap();
    let files = || ["state.json", "stdout.log"].map(|name| read(dir.path(), &format!("runs/t/r/{name}")));
    let before = files();
    assert_eq!(before[1], b"early\nlate\n");
    for (log, write) in [(&mut compares, false), (&mut writes, true)] {
        let rebuilt = log.rebuild(stream, write).unwrap().unwrap();
        assert_eq!((rebuilt.differences, rebuilt.rewritten, rebuilt.damaged), (Vec::new(), 0, false));
    }
    assert!(files() == before, "the files of a run that had gone on were set back");
}

/// A data directory on which something else happens just before a file is first opened.
struct Meanwhile {
    disk: Arc<dyn Disk>,
    name: &'static str,
    happens: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Disk for Meanwhile {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn File>> {
        if name == self.name
            && let Some(happens) = self.happens.lock().unwrap().take()
        {
            happens();
        }
        self.disk.open(name, how)
    }
    fn create_dir(&self, name: &str) -> Result<bool> {
        self.disk.create_dir(name)
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> Result<bool> {
        self.disk.rename(from, to, replace)
    }
    fn remove(&self, name: &str) -> Result<()> {
        self.disk.remove(name)
    }
    fn list(&self, name: &str, visit: &mut dyn FnMut(&str, Kind)) -> Result<()> {
        self.disk.list(name, visit)
    }
    fn stat(&self, name: &str) -> Result<Option<Stat>> {
        self.disk.stat(name)
    }
    fn sync_dir(&self, name: &str) -> Result<()> {
        self.disk.sync_dir(name)
    }
    fn sync_all(&self) -> Result<()> {
        self.disk.sync_all()
    }
    fn session(&self) -> Result<Session> {
        self.disk.session()
    }
    fn unreliable(&self) -> Result<Option<&'static str>> {
        self.disk.unreliable()
    }
}

#[test]
fn opening_sees_what_a_recorder_did_before_it_gave_its_files_up() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut run = Recorder::prepare(&engine, request("r")).unwrap();
    engine.wait_published(&run.last_receipt()).unwrap();
    // The recorder ends after the opening engine has read which runs there are, and before it
    // looks at their files.
    let ended = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&ended);
    let happens = move || {
        run.chunk(Channel::Stdout, b"late\n").unwrap();
        run.finish(End::new(Outcome::Completed, "Done.").exit_code(0)).unwrap();
        drop(run);
        engine.close().unwrap();
        tell.store(true, Ordering::SeqCst);
    };
    let world = World::existing(&dir.path().join("data")).unwrap();
    let disk = Arc::new(Meanwhile {
        disk: Arc::clone(&world.disk),
        name: "cache/files/runs/t/r.json",
        happens: Mutex::new(Some(Box::new(happens))),
    });
    let (beside, report) = Engine::open_in(World { disk, ..world }, Options::default()).unwrap();
    beside.close().unwrap();
    assert!(ended.load(Ordering::SeqCst), "the moment has to have come");
    assert_eq!((report.rewritten_files, report.problems, report.interrupted), (0, Vec::new(), Vec::new()));
    let state: serde_json::Value = serde_json::from_slice(&read(dir.path(), "runs/t/r/state.json")).unwrap();
    assert_eq!(state["status"], "completed");
    assert_eq!(read(dir.path(), "runs/t/r/stdout.log"), b"late\n");
}

/// Nobody waits for ever for a lock that there is no place for any more.
#[test]
fn a_data_directory_that_was_removed_is_an_error_for_whoever_writes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut run = Recorder::prepare(&engine, request("r")).unwrap();
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    assert_eq!(run.chunk(Channel::Stdout, b"x").unwrap_err().kind(), ErrorKind::Io);
    let error = engine.append_tick(tick("tick_started"), None).unwrap_err();
    assert!(error.to_string().contains("journal/lock"), "{error}");
    drop(run);
    engine.close().unwrap_err();
}

fn tick(stage: &str) -> Tick {
    Tick {
        batch_id: "timed-jobs-1-1".to_owned(),
        runner: "timed-jobs.framework".to_owned(),
        stage: stage.to_owned(),
        result: Some("ok".to_owned()),
        error: None,
        duration_ms: None,
        details: JsonText::parse(r#"{"trigger":"manual"}"#).unwrap(),
    }
}

#[test]
fn ticks_stand_in_the_file_of_their_day_in_the_order_of_the_calls() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let day = |text: &str| Time::parse(text);
    engine.append_tick(tick("started"), day("2026-04-01T23:59:59.999Z")).unwrap();
    engine.append_tick(tick("tick_started"), day("2026-04-02T00:00:00Z")).unwrap();
    engine.append_tick(tick("stopped"), day("2026-04-01T12:00:00Z")).unwrap();
    engine.close().unwrap();
    open(dir.path()).close().unwrap();
    let first = String::from_utf8(read(dir.path(), "timed-jobs/2026-04-01.jsonl")).unwrap();
    let stages: Vec<serde_json::Value> = first.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&stages[0]["stage"], &stages[1]["stage"]), (&"started".into(), &"stopped".into()));
    assert!(
        first.starts_with(r#"{"batch_id":"timed-jobs-1-1","duration_ms":null,"error":null,"result":"ok","#)
    );
    assert!(
        first.lines().next().unwrap().ends_with(r#""ts":"2026-04-01T23:59:59.999Z","trigger":"manual"}"#)
    );
    assert_eq!(read(dir.path(), "timed-jobs/2026-04-02.jsonl").iter().filter(|b| **b == b'\n').count(), 1);
    let world = runwal::engine::World::existing(&dir.path().join("data")).unwrap();
    let mut log = Log::open_in(&world).unwrap();
    let stream = log.ticks().unwrap().unwrap();
    assert!(log.rebuild(stream, false).unwrap().unwrap().differences.is_empty());
}

#[test]
fn limits_are_refused_with_a_word_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut run = Recorder::prepare(&engine, request("r")).unwrap();
    let before = engine.log().unwrap().durable();
    let long = Body::Chunk(Channel::Stdout, vec![0; (1 << 20) + 1]);
    assert_eq!(run.append(vec![long.into()]).unwrap_err().kind(), ErrorKind::Misuse);
    assert_eq!(run.append(Vec::new()).unwrap(), run.last_receipt(), "nothing is nothing");
    let nine: Vec<NewRecord> =
        (0..9).map(|_| Body::Chunk(Channel::Stdout, vec![0; 1 << 20]).into()).collect();
    assert_eq!(run.append(nine).unwrap_err().kind(), ErrorKind::Misuse);
    let no_word = Lifecycle::new("Not A Word", Level::Info, "x");
    assert_eq!(run.event(no_word).unwrap_err().kind(), ErrorKind::Misuse);
    assert!(JsonText::parse("{").is_err());
    assert_eq!(engine.log().unwrap().durable(), before);
    run.chunk(Channel::Stdout, b"goes on").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_syncs_and_a_dropped_future_leaves_no_half_record() {
    const TASKS: u64 = 64;
    const EACH: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let engine = AsyncEngine::new(open(dir.path())).unwrap();
    let mut tasks = Vec::new();
    for n in 0..TASKS {
        let engine = engine.clone();
        tasks.push(tokio::spawn(async move {
            let prepared = prepared(engine.engine(), "t", &format!("r{n}")).unwrap();
            let mut last = engine.begin_run(prepared, None, Conditions::none(), Vec::new()).await.unwrap();
            for i in 0..EACH {
                let record = Body::Chunk(Channel::Stdout, format!("{i}\n").into_bytes()).into();
                let append = engine.append(last.stream, last.last_seq.next(), vec![record]);
                last = append.await.unwrap();
            }
            // Dropped before it is polled: nothing happens. Afterwards the stream goes on.
            drop(engine.append(last.stream, None, vec![Body::Chunk(Channel::Stderr, b"no".to_vec()).into()]));
            last
        }));
    }
    let mut durable = Position::ZERO;
    for task in tasks {
        durable = durable.max(task.await.unwrap().last);
    }
    engine.close().await.unwrap();
    let mut log = Log::open(dir.path().join("data")).unwrap();
    assert_eq!(log.durable(), durable);
    assert_eq!(durable.0, TASKS * (EACH + 1));
    let mut records = log.records(Position(1)).unwrap();
    let mut next = 1;
    while let Some(entry) = records.next().unwrap() {
        let Entry::Record(record) = entry else { panic!("{entry:?}") };
        assert_eq!(record.position.0, next);
        assert!(!matches!(record.body, Body::Chunk(Channel::Stderr, _)));
        next += 1;
    }
}

/// Segments are made of spares on the operating system's disk too, by whichever process rolls; one
/// of a wrong length is not used, and whatever else has such a name stays where it is.
#[test]
fn the_next_segment_is_made_of_the_spare() {
    let dir = tempfile::tempdir().unwrap();
    let capacity = 8 << 10;
    let setting = |spares| {
        let small =
            JournalOptions { first_capacity: capacity, max_capacity: capacity, ..JournalOptions::default() };
        Options { journal: JournalOptions { spares, ..small }, ..Options::default() }
    };
    let fill = |spares, run: &str| {
        let (engine, _) = Engine::open(dir.path().join("data"), setting(spares)).unwrap();
        let mut run = Recorder::prepare(&engine, request(run)).unwrap();
        for _ in 0..12 {
            run.chunk(Channel::Stdout, &[b'x'; 1000]).unwrap();
        }
        run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
        engine.close().unwrap();
    };
    fill(Spares::Never, "a");
    let disk = World::existing(&dir.path().join("data")).unwrap().disk;
    let files = |begins: &str| {
        let mut found = Vec::new();
        disk.list("journal", &mut |name, _| {
            found.extend(name.starts_with(begins).then(|| format!("journal/{name}")));
        })
        .unwrap();
        found
    };
    let stat = |name: &str| disk.stat(name).unwrap().unwrap();
    assert!(files("spare-").is_empty());
    fill(Spares::Inline, "b");
    let spare = stat(&files("spare-").pop().unwrap());
    assert_eq!(spare.len, capacity);
    disk.create_dir("journal/spare-directory").unwrap();
    disk.open("journal/spare-0-short", Open::CreateNew).unwrap().write_at(b"short", 0).unwrap();
    // Another process of its own mind about spares still takes the one that is there.
    fill(Spares::Never, "c");
    assert!(files("0").iter().any(|name| stat(name).inode == spare.inode), "no segment is made of it");
    assert_eq!(files("spare-"), ["journal/spare-directory"]);
    let mut log = Log::open(dir.path().join("data")).unwrap();
    let found = log.verify(&mut |_| {}).unwrap();
    assert_eq!((found.verdict, found.damage.len(), found.notes.len()), (Verdict::Clean, 0, 0), "{found:?}");
    // A thread makes the same, and ends with the engine.
    fill(Spares::Thread, "d");
    assert!(files("tmp-").is_empty());
}

/// Dropped before it was ever polled, an append never happens. Dropped later it goes on by itself: it is
/// there whole, once, and its key finds it.
#[tokio::test]
async fn an_append_whose_future_is_dropped_under_way_is_whole_and_its_key_finds_it() {
    const ROUNDS: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let blocking = open(dir.path());
    let stream = Recorder::prepare(&blocking, request("r")).unwrap().stream();
    let engine = AsyncEngine::new(blocking).unwrap();
    let pair = |n: usize| {
        let half = |word: &str| Body::Chunk(Channel::Stdout, format!("{n} {word}\n").into_bytes()).into();
        vec![half("one"), half("two")]
    };
    let key = |n: usize| Conditions::none().key(n.to_string());
    for n in 0..ROUNDS {
        let mut append = std::pin::pin!(engine.append(stream, key(n), pair(n)));
        for _ in 0..n % 3 {
            std::future::poll_fn(|context| {
                let _ = append.as_mut().poll(context);
                std::task::Poll::Ready(())
            })
            .await;
            tokio::task::yield_now().await;
        }
    }
    engine.close().await.unwrap();
    let engine = open(dir.path());
    let mut log = engine.log().unwrap();
    let mut found = std::collections::BTreeMap::<String, Vec<Position>>::new();
    let damage = log
        .stream(stream, Seq(1), &mut |record| {
            if let Body::Chunk(_, bytes) = &record.body {
                let text = String::from_utf8(bytes.clone()).unwrap();
                found.entry(text.split(' ').next().unwrap().to_owned()).or_default().push(record.position);
            }
            Ok(true)
        })
        .unwrap();
    assert!(damage.is_empty());
    for n in 0..ROUNDS {
        let there = found.get(&n.to_string()).map_or(&[][..], Vec::as_slice);
        if n % 3 == 0 {
            assert!(there.is_empty(), "{n} was never polled");
            continue;
        }
        assert_eq!((there.len(), there[0].next()), (2, Some(there[1])), "{n}");
        assert_eq!(engine.append(stream, key(n), &pair(n)).unwrap().first, there[0], "{n}");
    }
}

/// Asks a future once; whether it has to wait.
async fn waits<F: Future>(future: &mut std::pin::Pin<Box<F>>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

/// While no commit gets anywhere, as much is accepted as is named, and then nothing more, however small:
/// who came first comes first. Nobody blocks the thread that asks.
#[tokio::test]
async fn tasks_wait_for_room_in_the_order_in_which_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let blocking = open(dir.path());
    let stream = Recorder::prepare(&blocking, request("r")).unwrap().stream();
    let engine = AsyncEngine::new(blocking.clone()).unwrap();
    let of = |len: usize| vec![Body::Chunk(Channel::Stdout, vec![b'x'; len]).into()];
    let (held, release) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    let holder = std::thread::spawn(move || {
        blocking.between_commits(|| {
            held.0.send(()).unwrap();
            let _ = release.1.recv();
        });
    });
    held.1.recv().unwrap();
    let mut tickets = Vec::new();
    for _ in 0..8 {
        tickets.push(engine.submit(stream, None, of(1 << 20)).await.unwrap());
    }
    let mut ninth = Box::pin(engine.submit(stream, None, of(500_000)));
    let mut small = Box::pin(engine.submit(stream, None, of(1)));
    assert!(waits(&mut ninth).await && waits(&mut small).await, "8 MiB is what is accepted");
    let closing = {
        let engine = engine.clone();
        drop(release.0);
        async move { engine.close().await }
    };
    tickets.push(ninth.await.unwrap());
    tickets.push(small.await.unwrap());
    // Whatever has its place is committed before the engine is closed.
    closing.await.unwrap();
    let mut positions = Vec::new();
    for ticket in tickets {
        positions.push(ticket.await.unwrap().first);
    }
    assert_eq!(positions.len(), 10);
    assert!(positions.is_sorted(), "{positions:?}");
    let late = engine.append(stream, None, of(1)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Reopen);
    holder.join().unwrap();
}

/// Records are encoded where they are handed in, with the sequences that they are thought to get.
#[test]
fn what_others_write_in_between_moves_what_was_handed_in_before() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, other) = (open(dir.path()), open(dir.path()));
    let runs: Vec<_> =
        ["a", "b"].iter().map(|name| Recorder::prepare(&engine, request(name)).unwrap().stream()).collect();
    let line = |len: usize| -> [NewRecord; 1] { [Body::Chunk(Channel::Stdout, vec![b'x'; len]).into()] };
    let mut expected: Vec<_> =
        runs.iter().map(|run| engine.append(*run, Conditions::none(), &line(1)).unwrap().last_seq).collect();
    for (round, len) in [10, 100_000, 20].into_iter().enumerate() {
        let tickets: Vec<_> = [0, 1, 0]
            .map(|nth| (nth, engine.submit(runs[nth], Conditions::none(), &line(len)).unwrap()))
            .into_iter()
            .collect();
        // Refused in the midst of them: its place goes to who comes behind it.
        let late = engine.submit(runs[1], Conditions::none().expecting(Seq(1)), &line(len)).unwrap();
        let behind = engine.submit(runs[1], Conditions::none(), &line(len)).unwrap();
        for _ in 0..=round {
            let receipt = other.append(runs[0], Conditions::none(), &line(5)).unwrap();
            expected[0] = expected[0].next().unwrap();
            assert_eq!(receipt.last_seq, expected[0]);
        }
        for (nth, ticket) in tickets {
            expected[nth] = expected[nth].next().unwrap();
            assert_eq!(ticket.wait().unwrap().last_seq, expected[nth]);
        }
        assert!(late.wait().unwrap_err().conflict().is_some());
        expected[1] = expected[1].next().unwrap();
        assert_eq!(behind.wait().unwrap().last_seq, expected[1]);
    }
    let mut log = Log::open(dir.path().join("data")).unwrap();
    assert_eq!(log.verify(&mut |_| {}).unwrap().verdict, Verdict::Clean);
    for (run, last) in runs.into_iter().zip(expected) {
        let mut seqs = Vec::new();
        log.stream(run, Seq(1), &mut |record| {
            seqs.push(record.seq.0);
            Ok(true)
        })
        .unwrap();
        assert!(seqs.iter().copied().eq(1..=last.0), "{seqs:?}");
    }
}

/// Whatever is wrong with an append, those that share its batch and its group are as if it had not been.
#[test]
fn who_is_refused_harms_nobody_in_the_same_group() {
    let line = |len: usize| -> NewRecord { Body::Chunk(Channel::Stdout, vec![b'x'; len]).into() };
    let expecting = |seq: u64| Conditions::none().expecting(Seq(seq));
    let bad: [&dyn Fn(&Engine, StreamId) -> Ticket; 6] = [
        &|engine, _| engine.submit(StreamId(0), None, &[line(1)]).unwrap(),
        &|engine, _| engine.submit(StreamId(u64::MAX), None, &[line(1)]).unwrap(),
        &|engine, _| engine.submit(StreamId(1 << 40), None, &[line(1), line(2)]).unwrap(),
        &|engine, run| engine.submit(run, expecting(u64::MAX), &[line(1), line(2)]).unwrap(),
        &|engine, run| engine.submit(run, expecting(u64::MAX), &[line(40_000), line(40_000)]).unwrap(),
        &|engine, _| engine.submit_run(&crate::format::request(), None, expecting(5), &[]).unwrap(),
    ];
    for bad in bad {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let run = Recorder::prepare(&engine, request("a")).unwrap().stream();
        let before = engine.append(run, None, &[line(1)]).unwrap().last_seq;
        let tickets = [
            engine.submit(run, None, &[line(10)]).unwrap(),
            bad(&engine, run),
            engine.submit(run, None, &[line(20)]).unwrap(),
            engine.submit(run, Conditions::none().key("k"), &[line(30)]).unwrap(),
        ];
        let [one, refused, two, three] = tickets.map(Ticket::wait);
        let refused = refused.unwrap_err();
        assert!(refused.conflict().is_some() || refused.message().contains("no stream"), "{refused}");
        let seqs = [one, two, three].map(|answer| answer.unwrap().last_seq.0 - before.0);
        assert_eq!(seqs, [1, 2, 3]);
        engine.append(run, expecting(before.0 + 4), &[line(1)]).unwrap();
        let mut log = Log::open(dir.path().join("data")).unwrap();
        assert_eq!(log.verify(&mut |_| {}).unwrap().verdict, Verdict::Clean);
        let damage = log.stream(run, Seq(1), &mut |_| Ok(true)).unwrap();
        assert!(damage.is_empty(), "{damage:?}");
    }
}

/// A task whose waker hands in by itself.
struct HandsIn(Engine, StreamId, std::sync::mpsc::Sender<()>);

impl std::task::Wake for HandsIn {
    fn wake(self: Arc<Self>) {
        let line = [Body::Chunk(Channel::Stdout, b"x".to_vec()).into()];
        let _ = self.0.submit(self.1, None, &line).map(drop);
        let _ = self.2.send(());
    }
}

/// Also where the journal's lock was not to be had.
#[test]
fn whoever_gets_a_place_in_the_queue_may_hand_in_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let journal = JournalOptions { patience: Duration::from_millis(100), ..JournalOptions::default() };
    let options = Options { publish: false, journal, ..Options::default() };
    let (engine, _) = Engine::open(dir.path().join("data"), options).unwrap();
    let run = Recorder::prepare(&engine, request("a")).unwrap().stream();
    let tasks = AsyncEngine::new(engine.clone()).unwrap();
    let chunk = || vec![Body::Chunk(Channel::Stdout, vec![b'x'; 1 << 20]).into()];
    let (came, comes) = std::sync::mpsc::channel();
    let waker = Waker::from(Arc::new(HandsIn(engine.clone(), run, came)));
    #[expect(clippy::disallowed_methods, reason = "plays another process")]
    let lock = std::fs::File::open(dir.path().join("data/journal/lock")).unwrap();
    lock.lock().unwrap();
    let (mut tickets, mut waiting) = (Vec::new(), None);
    engine.between_commits(|| {
        for _ in 0..8 {
            let mut submit = Box::pin(tasks.submit(run, None, chunk()));
            match submit.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(ticket) => tickets.push(ticket.unwrap()),
                Poll::Pending => panic!("there is room for eight"),
            }
        }
        let mut submit = Box::pin(tasks.submit(run, None, chunk()));
        assert!(submit.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        waiting = Some(submit);
    });
    comes.recv_timeout(Duration::from_mins(1)).unwrap();
    drop((lock, waiting));
}

/// A segment is no longer than it is meant to be, unless a single batch is, however often what was handed in
/// has to be encoded anew.
#[test]
fn what_is_encoded_anew_stays_within_its_segment() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { publish: false, ..Options::default() };
    let (engine, _) = Engine::open(dir.path().join("data"), options()).unwrap();
    let (other, _) = Engine::open(dir.path().join("data"), options()).unwrap();
    let run = Recorder::prepare(&engine, request("a")).unwrap().stream();
    let of = |bytes: Vec<u8>| [Body::Chunk(Channel::Stdout, bytes).into()];
    engine.append(run, None, &of(b"x".to_vec())).unwrap();
    let mut state = 7_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    let long = engine.submit(run, None, &of(vec![b'x'; 1_000_000])).unwrap();
    // What packs is not tried to be packed behind what does not.
    let noise = engine.submit(run, Conditions::none().key("n"), &of(noise.take(6_000).collect())).unwrap();
    other.append(run, None, &of(b"y".to_vec())).unwrap();
    for ticket in [long, noise] {
        ticket.wait().unwrap();
    }
    let first = std::fs::metadata(dir.path().join("data/journal/0000000001.seg")).unwrap().len();
    assert!(first <= 256 << 10, "{first}");
}

/// Small appends that are committed together share a batch, whosever they are; each has a receipt of its
/// own. One with a key, and a long one, have a batch to themselves.
#[test]
fn small_appends_share_a_batch_and_each_has_its_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let runs: Vec<_> =
        ["a", "b"].iter().map(|name| Recorder::prepare(&engine, request(name)).unwrap().stream()).collect();
    let before = engine.log().unwrap().info().unwrap();
    let of = |len: usize| -> NewRecord { Body::Chunk(Channel::Stdout, vec![b'x'; len]).into() };
    let submit = |run: usize, conditions: Conditions, lens: &[usize]| {
        let records: Vec<_> = lens.iter().map(|len| of(*len)).collect();
        engine.submit(runs[run], conditions, &records).unwrap()
    };
    let plain = Conditions::none;
    let tickets = vec![
        submit(0, plain(), &[10, 20]),
        submit(1, plain().term(7), &[30]),
        submit(0, plain().term(6), &[40]),
        submit(1, plain(), &[50, 60, 70]),
        submit(0, plain().key("k"), &[80]),
        submit(1, plain(), &[90]),
        submit(0, plain(), &[100_000]),
        submit(1, plain(), &[110]),
    ];
    let answers: Vec<_> = tickets.into_iter().map(runwal::engine::Ticket::wait).collect();
    assert!(answers[2].as_ref().is_err_and(|refused| refused.conflict().is_some()), "its term is over");
    let receipts: Vec<_> = answers.into_iter().flatten().collect();
    let mut next = before.durable.next().unwrap();
    for (receipt, (run, count)) in
        receipts.iter().zip([(0, 2), (1, 1), (1, 3), (0, 1), (1, 1), (0, 1), (1, 1)])
    {
        assert_eq!((receipt.stream, receipt.first), (runs[run], next), "{receipt:?}");
        assert_eq!(receipt.last.0, next.0 + count - 1);
        next = receipt.last.next().unwrap();
    }
    let chains: Vec<_> = receipts.iter().map(|receipt| receipt.chain).collect();
    assert!(chains[0] == chains[1] && chains[1] == chains[2], "one batch, and one chain hash");
    assert!(chains[2..].windows(2).all(|pair| pair[0] != pair[1]), "the others stand alone");
    let info = engine.log().unwrap().info().unwrap();
    assert_eq!((info.batches - before.batches, info.records - before.records), (5, 10));
    // Once more with its key: the receipt it had, though others have been written since.
    assert_eq!(submit(0, plain().key("k"), &[80]).wait().unwrap(), receipts[3]);
    let mut log = engine.log().unwrap();
    for run in runs {
        let mut lens = Vec::new();
        log.stream(run, Seq(1), &mut |record| {
            lens.extend(if let Body::Chunk(_, bytes) = &record.body { Some(bytes.len()) } else { None });
            Ok(true)
        })
        .unwrap();
        assert_eq!(
            lens,
            if run == receipts[0].stream { vec![10, 20, 80, 100_000] } else { vec![30, 50, 60, 70, 90, 110] }
        );
    }
}
