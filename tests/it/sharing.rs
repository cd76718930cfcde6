//! Who waits for the disk, and how often it is asked: by a disk that tells of each call, and keeps one waiting
//! where the order matters.

use runwal::async_engine::AsyncEngine;
use runwal::clock::{Clock, System};
use runwal::disk::Disk;
use runwal::disk::os::OsDisk;
use runwal::engine::{Conditions, Engine, NewRecord, Options, Receipt, World};
use runwal::position::StreamId;
use runwal::record::{Body, Channel};
use runwal::testing::stage::prepared;
use runwal::testing::watched::{Call, Watched};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

fn is_segment(name: &str) -> bool {
    name.starts_with("journal/0")
}

fn line() -> NewRecord {
    Body::Chunk(Channel::Stdout, b"a line\n".to_vec()).into()
}

fn begin(engine: &Engine, n: usize) -> StreamId {
    let run = prepared(engine, "t", &format!("r-{n}")).unwrap();
    engine.begin_run(&run, None, Conditions::none(), &[]).unwrap().stream
}

fn open(dir: &Path, options: Options, watch: impl Fn(Call, &str) + Send + Sync + 'static) -> Engine {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::create(&dir.join("data")).unwrap());
    let disk = Arc::new(Watched::new(disk, watch));
    let world = World { disk, clock: Arc::new(System), entropy: Arc::new(System) };
    Engine::open_in(world, options).unwrap().0
}

fn quiet() -> Options {
    Options { publish: false, ..Options::default() }
}

/// A call that is kept waiting, once, until it is let go.
struct Gate {
    armed: AtomicU64,
    reached: Mutex<Sender<()>>,
    go: Mutex<Receiver<()>>,
}

impl Gate {
    /// With what tells that it was reached, and what opens it.
    fn new() -> (Arc<Self>, Receiver<()>, Sender<()>) {
        let (reached, told) = channel();
        let (open, go) = channel();
        let gate = Self { armed: AtomicU64::new(0), reached: Mutex::new(reached), go: Mutex::new(go) };
        (Arc::new(gate), told, open)
    }

    fn arm(&self) {
        self.armed.store(1, Ordering::SeqCst);
    }

    fn pass(&self) {
        if self.armed.swap(0, Ordering::SeqCst) > 0 {
            self.reached.lock().unwrap().send(()).unwrap();
            self.go.lock().unwrap().recv().unwrap();
        }
    }
}

/// An engine whose next sync of a segment can be kept waiting, and which counts them.
struct Kept {
    engine: Engine,
    gate: Arc<Gate>,
    reached: Receiver<()>,
    open: Sender<()>,
    syncs: Arc<AtomicUsize>,
}

fn kept(dir: &Path) -> Kept {
    let (gate, reached, go) = Gate::new();
    let syncs = Arc::new(AtomicUsize::new(0));
    let (of_disk, counted) = (Arc::clone(&gate), Arc::clone(&syncs));
    let engine = open(dir, quiet(), move |call, name| {
        if call == Call::Sync && is_segment(name) {
            counted.fetch_add(1, Ordering::SeqCst);
            of_disk.pass();
        }
    });
    Kept { engine, gate, reached, open: go, syncs }
}

#[test]
fn what_threads_hand_in_during_a_sync_shares_the_next_one() {
    const THREADS: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let Kept { engine, gate, reached, open, syncs } = kept(dir.path());
    let stream = begin(&engine, 0);
    let before = syncs.load(Ordering::SeqCst);
    gate.arm();
    let all_in = Barrier::new(THREADS + 1);
    let receipts: Vec<Receipt> = std::thread::scope(|scope| {
        let first = scope.spawn(|| engine.append(stream, None, &[line()]).unwrap());
        reached.recv().unwrap();
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let ticket = engine.submit(stream, None, &[line()]).unwrap();
                    all_in.wait();
                    ticket.wait().unwrap()
                })
            })
            .collect();
        all_in.wait();
        open.send(()).unwrap();
        [first].into_iter().chain(threads).map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(syncs.load(Ordering::SeqCst) - before, 2, "one for the first, one for all who came meanwhile");
    let mut seqs: Vec<_> = receipts.iter().map(|receipt| receipt.last_seq.0).collect();
    seqs.sort_unstable();
    assert!(seqs.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{seqs:?}");
}

#[tokio::test]
async fn what_tasks_hand_in_during_a_sync_shares_the_next_one() {
    const TASKS: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let Kept { engine, gate, reached, open, syncs } = kept(dir.path());
    let stream = begin(&engine, 0);
    let engine = AsyncEngine::new(engine).unwrap();
    let before = syncs.load(Ordering::SeqCst);
    gate.arm();
    let first = engine.submit(stream, None, vec![line()]).await.unwrap();
    reached.recv().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let engine = engine.clone();
        tasks.spawn(async move { engine.append(stream, None, vec![line()]).await.unwrap() });
    }
    // There is one thread for all of them: they are handed in when it comes back here.
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
    open.send(()).unwrap();
    first.await.unwrap();
    assert_eq!(tasks.join_all().await.len(), TASKS);
    assert_eq!(syncs.load(Ordering::SeqCst) - before, 2, "one for the first, one for all who came meanwhile");
    engine.close().await.unwrap();
}

/// Which threads asked the disk for something.
fn callers() -> (Arc<Mutex<BTreeMap<String, Vec<ThreadId>>>>, impl Fn(Call, &str) + Send + Sync + 'static) {
    let callers = Arc::new(Mutex::new(BTreeMap::<String, Vec<ThreadId>>::new()));
    let noted = Arc::clone(&callers);
    let note = move |call: Call, name: &str| {
        let who = std::thread::current().id();
        noted.lock().unwrap().entry(format!("{call:?} {name}")).or_default().push(who);
    };
    (callers, note)
}

#[test]
fn who_appends_alone_commits_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (callers, note) = callers();
    let engine = open(dir.path(), quiet(), note);
    let stream = begin(&engine, 0);
    callers.lock().unwrap().clear();
    for _ in 0..3 {
        engine.append(stream, None, &[line()]).unwrap();
    }
    let callers = callers.lock().unwrap();
    let syncs = callers.iter().find(|(what, _)| what.starts_with("Sync journal/0")).unwrap().1;
    assert_eq!(syncs.len(), 3);
    let me = std::thread::current().id();
    assert!(callers.values().flatten().all(|who| *who == me), "nobody else is asked: {callers:?}");
}

#[tokio::test]
async fn no_task_asks_the_disk_for_anything() {
    let dir = tempfile::tempdir().unwrap();
    let me = std::thread::current().id();
    let (callers, note) = callers();
    let by_me = || {
        let callers = callers.lock().unwrap();
        let mine = callers.iter().filter(|(_, who)| who.contains(&me));
        (mine.map(|(what, _)| what.clone()).collect::<Vec<_>>(), callers.len())
    };
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    let watch = move |call: Call, name: &str| {
        let _ = &held;
        note(call, name);
    };
    let blocking = open(dir.path(), Options::default(), watch);
    let request = prepared(&blocking, "t", "r").unwrap();
    let engine = AsyncEngine::new(blocking).unwrap();
    callers.lock().unwrap().clear();
    let receipt = engine.begin_run(request, None, Conditions::none(), vec![line()]).await.unwrap();
    for _ in 0..3 {
        engine.append(receipt.stream, None, vec![line()]).await.unwrap();
        engine.submit(receipt.stream, None, vec![line()]).await.unwrap().await.unwrap();
        drop(engine.buffer(receipt.stream, None, vec![line()]).await.unwrap());
    }
    let buffered = engine.buffer(receipt.stream, None, vec![line()]).await.unwrap().await.unwrap();
    assert_eq!(buffered.last_seq.0, receipt.last_seq.0 + 10);
    let (mine, all) = by_me();
    assert!(mine.is_empty() && all > 5, "{mine:?}");
    // Without a word of goodbye: what is left to be done is not done here.
    drop(engine);
    let since_ns = System.monotonic_ns();
    while Arc::strong_count(&alive) > 1 {
        let waited = Duration::from_nanos(System.monotonic_ns() - since_ns);
        assert!(waited < Duration::from_mins(1), "the commit thread does not end");
        tokio::task::yield_now().await;
    }
    let (mine, _) = by_me();
    assert!(mine.is_empty(), "{mine:?}");
}

#[test]
fn many_records_of_many_runs_make_few_new_files() {
    const RUNS: usize = 200;
    const EACH: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let (gate, reached, go) = Gate::new();
    let replaced = Arc::new(AtomicUsize::new(0));
    let (of_disk, counted) = (Arc::clone(&gate), Arc::clone(&replaced));
    let engine = open(dir.path(), Options::default(), move |call, name| {
        if call == Call::Replace && name.starts_with("runs/") && name.ends_with("/state.json") {
            counted.fetch_add(1, Ordering::SeqCst);
            of_disk.pass();
        }
    });
    gate.arm();
    let streams: Vec<_> = (0..RUNS).map(|n| begin(&engine, n)).collect();
    // While one file is being written, all the rest happens.
    reached.recv().unwrap();
    let mut last = Vec::new();
    for _ in 0..EACH {
        last = streams.iter().map(|stream| engine.submit(*stream, None, &[line()]).unwrap()).collect();
    }
    let last: Vec<_> = last.into_iter().map(|ticket| ticket.wait().unwrap()).collect();
    go.send(()).unwrap();
    for receipt in &last {
        engine.wait_published(receipt).unwrap();
    }
    let replaced = replaced.load(Ordering::SeqCst);
    assert!((RUNS..=3 * RUNS).contains(&replaced), "{replaced} files for {RUNS} runs of {EACH} records");
    engine.close().unwrap();
}
