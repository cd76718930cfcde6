//! Records that nobody waits for: durable after a while, before that with whatever is made durable, noted
//! in the file, and lost from the end alone.

use runwal::clock::{Clock, System};
use runwal::disk::sim::Fault;
use runwal::engine::{Conditions, Engine, NewRecord, Options, World};
use runwal::format::{BatchHeader, Durability, HeaderBlock, SEGMENT_DATA_START};
use runwal::position::{Seq, StreamId};
use runwal::record::{Body, Channel, Id};
use runwal::run::{Recorder, RunRequest};
use runwal::testing::stage::Stage;
use runwal::{ErrorKind, Log, Verdict};
use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

/// Longer than any test takes.
const FOR_EVER: Duration = Duration::from_hours(1);

/// Whether to go on waiting for what takes some milliseconds: what does not happen is a failure, and no hang.
fn patient(since_ns: u64) -> bool {
    let waited = Duration::from_nanos(System.monotonic_ns() - since_ns);
    assert!(waited < Duration::from_mins(1), "it does not happen");
    true
}

fn chunk(bytes: &[u8]) -> [NewRecord; 1] {
    [Body::Chunk(Channel::Stdout, bytes.to_vec()).into()]
}

/// An engine, with the stream of a run that was begun.
fn begun(dir: &Path, buffer_for: Duration) -> (Engine, StreamId) {
    let options = Options { buffer_for, ..Options::default() };
    let (engine, _) = Engine::open_in(World::create(dir).unwrap(), options).unwrap();
    let id = |text: &str| Id::new(text).unwrap();
    let run = Recorder::prepare(&engine, RunRequest::new(id("t"), id("r"), id("s"))).unwrap();
    let stream = run.stream();
    std::mem::forget(run);
    (engine, stream)
}

/// How the batches of the first segment were asked for.
fn durabilities(dir: &Path) -> Vec<Durability> {
    #[expect(clippy::disallowed_methods, reason = "looks at the journal behind the library's back")]
    let bytes = std::fs::read(dir.join("journal/0000000001.seg")).unwrap();
    let site = HeaderBlock::decode(&bytes).unwrap().header.site();
    let (mut at, mut found) = (SEGMENT_DATA_START, Vec::new());
    while let Some(rest) = bytes.get(usize::try_from(at).unwrap()..)
        && let Ok(batch) = BatchHeader::decode(rest, &site, at)
    {
        found.push(batch.durability);
        at += batch.frame_len();
    }
    found
}

#[test]
fn what_nobody_waits_for_becomes_durable_and_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, stream) = begun(dir.path(), Duration::from_millis(1));
    let mut log = Log::open(dir.path()).unwrap();
    let before = log.durable();
    for round in 0..5_u64 {
        drop(engine.buffer(stream, Conditions::none(), &chunk(b"line\n")).unwrap());
        while log.durable().0 < before.0 + round + 1 {
            assert!(log.wait(Duration::from_mins(1)).unwrap(), "round {round}");
        }
    }
    // The files show it although nobody has asked for that.
    let (of_run, shown) = (dir.path().join("runs/t/r/stdout.log"), b"line\n".repeat(5));
    let since_ns = System.monotonic_ns();
    #[expect(clippy::disallowed_methods, reason = "looks at the file as its reader does")]
    while std::fs::read(&of_run).unwrap_or_default() != shown && patient(since_ns) {
        std::thread::yield_now();
    }
    engine.close().unwrap();
    assert_eq!(durabilities(dir.path()).iter().filter(|d| **d == Durability::Buffered).count(), 5);
}

/// The time that is named is the time it stays in memory, where nothing else takes it along. Only what is too
/// soon or never comes is told apart: a busy machine is late by as much as it likes.
#[test]
fn what_nobody_waits_for_waits_for_as_long_as_was_named() {
    for named in [Duration::from_millis(50), Duration::from_millis(400)] {
        let dir = tempfile::tempdir().unwrap();
        let (engine, stream) = begun(dir.path(), named);
        let mut log = Log::open(dir.path()).unwrap();
        for _ in 0..2 {
            let (before, since_ns) = (log.durable(), System.monotonic_ns());
            drop(engine.buffer(stream, None, &chunk(b"line\n")).unwrap());
            while log.durable() == before && patient(since_ns) {
                log.wait(Duration::from_mins(1)).unwrap();
            }
            let waited = Duration::from_nanos(System.monotonic_ns() - since_ns);
            assert!(waited >= named, "{waited:?} of {named:?}");
        }
        engine.close().unwrap();
    }
}

/// Whoever only buffers, faster than anything is made durable, keeps nothing from being published.
#[test]
fn what_is_buffered_without_a_pause_is_published_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, stream) = begun(dir.path(), Duration::from_millis(1));
    let of_run = dir.path().join("runs/t/r/stdout.log");
    let since_ns = System.monotonic_ns();
    while !std::fs::metadata(&of_run).is_ok_and(|file| file.len() > 0) && patient(since_ns) {
        for _ in 0..100 {
            drop(engine.buffer(stream, None, &chunk(b"on and on\n")).unwrap());
        }
    }
    engine.close().unwrap();
}

/// Whatever operation the process dies at: what is left is what was handed in first.
#[test]
fn what_is_lost_with_the_process_is_the_end() {
    const BUFFERED: u64 = 12;
    let mut lost = 0;
    for after in 1.. {
        let mut stage = Stage::new(64 << 10, 64 << 10);
        let writer = stage.open(1).unwrap();
        let stream = stage.begin(&writer, "a").unwrap();
        let begun = stage.open_log(1).unwrap().end_of(stream).unwrap().unwrap().0;
        // Every third one is waited for, and takes those before it along.
        stage.world.fail_at(stage.world.operations() + after, Fault::Kill);
        let engine = writer.engine();
        let mut acknowledged = 0;
        for n in 1..=BUFFERED {
            let Ok(ticket) = engine.buffer(stream, None, &chunk(&n.to_le_bytes())) else { break };
            if n % 3 == 0 {
                match ticket.wait() {
                    Ok(_) => acknowledged = n,
                    Err(_) => break,
                }
            }
        }
        let died = !writer.disk.is_alive();
        writer.disk.kill();
        drop(writer);
        stage.world.clear_faults();
        let (_, world) = stage.process(1);
        drop(Engine::open_in(world.clone(), stage.options()).unwrap());
        let mut kept = Vec::new();
        let mut log = Log::open_in(&world).unwrap();
        log.stream(stream, begun.next().unwrap(), &mut |record| {
            if let Body::Chunk(_, bytes) = &record.body {
                kept.push(u64::from_le_bytes(*bytes.first_chunk().unwrap()));
            }
            Ok(true)
        })
        .unwrap();
        assert!(kept.iter().copied().eq(1..=kept.len() as u64), "died {after} operations on: {kept:?}");
        assert!(kept.len() as u64 >= acknowledged, "died {after} operations on: {kept:?}, {acknowledged}");
        lost += u64::from((kept.len() as u64) < BUFFERED);
        if !died {
            break;
        }
    }
    assert!(lost > 10, "nothing was ever lost");
}

#[test]
fn whoever_waits_takes_along_what_was_buffered_before() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, stream) = begun(dir.path(), FOR_EVER);
    let known = durabilities(dir.path()).len();
    let last = || Log::open(dir.path()).unwrap().end_of(stream).unwrap().unwrap().0.0;
    let before = last();
    drop(engine.buffer(stream, None, &chunk(b"first")).unwrap());
    let ticket = engine.buffer(stream, None, &chunk(b"second")).unwrap();
    assert_eq!(durabilities(dir.path()).len(), known, "nothing is written yet");
    assert_eq!(ticket.wait().unwrap().last_seq, Seq(before + 2));
    drop(engine.buffer(stream, None, &chunk(b"third")).unwrap());
    engine.append(stream, None, &chunk(b"fourth")).unwrap();
    drop(engine.buffer(stream, None, &chunk(b"fifth")).unwrap());
    engine.close().unwrap();
    let found = durabilities(dir.path());
    let expected = [Durability::Buffered, Durability::Durable, Durability::Buffered];
    assert_eq!(found[known..known + 3], expected, "one for those that were made durable together");
    assert_eq!(last(), before + 5, "closing commits the fifth");
}

#[test]
fn much_is_committed_at_once_and_all_of_it_is_there_in_order() {
    const THREADS: u32 = 3;
    const EACH: u32 = 3_000;
    let dir = tempfile::tempdir().unwrap();
    let (engine, stream) = begun(dir.path(), FOR_EVER);
    let begin = Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (engine, begin) = (&engine, &begin);
            scope.spawn(move || {
                begin.wait();
                for n in 0..EACH {
                    let mut bytes = [thread.to_le_bytes(), n.to_le_bytes()].concat();
                    bytes.resize(4_000, 7);
                    drop(engine.buffer(stream, None, &chunk(&bytes)).unwrap());
                }
            });
        }
    });
    // More than may wait was handed in, and nobody has waited.
    assert!(engine.log().unwrap().durable().0 > 1_000);
    engine.close().unwrap();
    let mut log = Log::open(dir.path()).unwrap();
    let mut next = [0; THREADS as usize];
    log.stream(stream, Seq(1), &mut |record| {
        if let Body::Chunk(_, bytes) = &record.body
            && let (Some(thread), Some(n)) = (bytes.first_chunk(), bytes[4..].first_chunk())
        {
            let thread = u32::from_le_bytes(*thread) as usize;
            assert_eq!(u32::from_le_bytes(*n), next[thread]);
            next[thread] += 1;
        }
        Ok(true)
    })
    .unwrap();
    assert_eq!(next, [EACH; THREADS as usize]);
    assert_eq!(log.verify(&mut |_| {}).unwrap().verdict, Verdict::Clean);
}

/// An engine that is closed takes nothing more, and leaves no thread behind, also where it never had one.
#[test]
fn a_closed_engine_buffers_nothing_and_ends_its_thread() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { buffer_for: FOR_EVER, ..Options::default() };
    let (engine, _) = Engine::open_in(World::create(dir.path()).unwrap(), options).unwrap();
    engine.close().unwrap();
    let told = engine.buffer(StreamId(1), None, &chunk(b"too late")).unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Reopen, "{told}");
    drop(engine);
    // The thread would hold the journal's files open for ever.
    let lock = dir.path().join("journal/lock");
    #[expect(clippy::disallowed_methods, reason = "looks at what this process has open")]
    let held = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|open| open == lock))
        .count();
    assert_eq!(held, 0);
}

/// Who never waits is told as well that nothing is written any more.
#[test]
fn a_failed_write_is_told_to_the_next_who_buffers() {
    let mut stage = Stage::new(64 << 10, 64 << 10);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a").unwrap();
    let engine = writer.engine();
    drop(engine.buffer(run, None, &chunk(b"kept in memory")).unwrap());
    stage.world.fail_at(stage.world.operations() + 3, Fault::once(5));
    engine.append(run, None, &chunk(b"taken along")).unwrap_err();
    let told = engine.buffer(run, None, &chunk(b"too late")).unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Reopen, "{told}");
    engine.close().unwrap();
    let closed = engine.buffer(run, None, &chunk(b"later still")).unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Reopen, "{closed}");
}
