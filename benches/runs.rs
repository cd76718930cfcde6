//! What many runs at once cost: syncs per record, and memory.
//!
//! `cargo bench --features tokio,testing --bench runs [-- PROCESSES STEPS]` prints the figures of the README: so many worker
//! processes that write a line every 10 ms, each line of which is durable within 50 ms, and so many
//! steps by an executor in this process, whose every append is durable before it goes on. Then how long it takes
//! until whoever follows, as from another process, sees what has just become durable; and how much of a journal of
//! 1 GiB is read for the output of one of its 1,000 runs.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "measures, and plays the user"
)]

use runwal::clock::System;
use runwal::disk::os::OsDisk;
use runwal::engine::{Entry, Log, World};
use runwal::record::{Body, Channel, Id};
use runwal::run::{
    Answer, AsyncExecutor, AsyncStep, Cancel, Checkpoints, Discard, End, ExecutorError, Outcome,
    ProcessOptions, Recorder, RunRequest, Steps,
};
use runwal::testing::watched::{Call, Watched};
use runwal::{Engine, Options};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LINES: u32 = 300;
const PAUSE: Duration = Duration::from_millis(10);

/// Writes a line, and waits a little, and again.
fn worker() {
    let mut out = std::io::stdout();
    for n in 0..LINES {
        writeln!(out, "line {n}").unwrap();
        std::thread::sleep(PAUSE);
    }
}

struct Writer;

impl AsyncExecutor for Writer {
    async fn execute(&self, step: AsyncStep) -> std::result::Result<Answer, ExecutorError> {
        for n in 0..20 {
            step.chunk(Channel::Stdout, format!("line {n}\n").into_bytes()).await?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(Answer::new(Outcome::Completed, "Done."))
    }
}

fn request(run: usize) -> RunRequest {
    let id = |text: String| Id::new(text).unwrap();
    RunRequest::new(id("bench".to_owned()), id(format!("r-{run}")), id("write".to_owned()))
}

/// The most memory this process has had, in MiB.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

async fn measure(what: &str, count: usize, processes: bool) {
    let base = std::env::var_os("RUNWAL_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(base).unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&syncs);
    let disk = Watched::new(Arc::new(OsDisk::create(&dir.path().join("data")).unwrap()), move |call, _| {
        if call == Call::Sync {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let world = World { disk: Arc::new(disk), clock: Arc::new(System), entropy: Arc::new(System) };
    let (engine, _) = Engine::open_in(world, Options::default()).unwrap();
    let (steps, cancel) = (Steps::new(&engine, count), Cancel::new().unwrap());
    let before = syncs.load(Ordering::Relaxed);
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for run in 0..count {
        let (steps, cancel) = (steps.clone(), cancel.clone());
        tasks.spawn(async move {
            let checkpoints = Checkpoints { git_diff: false, ..Checkpoints::default() };
            if processes {
                let mut request = request(run);
                let own = std::env::current_exe().unwrap().into_os_string().into_encoded_bytes();
                request.command = vec![own, b"--worker".to_vec()];
                let options = ProcessOptions { checkpoints, ..ProcessOptions::default() };
                steps.process(request, options, Discard, &cancel).await.unwrap().run
            } else {
                steps.execute(request(run), &Arc::new(Writer), &checkpoints, &cancel).await.unwrap()
            }
        });
    }
    let results = tasks.join_all().await;
    let took = start.elapsed();
    assert!(results.iter().all(|result| result.outcome == Outcome::Completed));
    let records: u64 = results.iter().map(|result| result.counts.records).sum();
    let syncs = syncs.load(Ordering::Relaxed) - before;
    let closing = Instant::now();
    engine.close().unwrap();
    println!(
        "{count} {what}: {records} records, {syncs} syncs, {:.4} syncs per record; {:.1} s, closed in {:.0} ms; \
         at most {:.0} MiB",
        syncs as f64 / records as f64,
        took.as_secs_f64(),
        closing.elapsed().as_secs_f64() * 1e3,
        peak_mib(),
    );
}

/// How long after an append is durable a follower has it who shares nothing but the files; at irregular moments,
/// some milliseconds apart.
fn follower_delay() {
    const APPENDS: u64 = 400;
    let base = std::env::var_os("RUNWAL_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(base).unwrap();
    let data = dir.path().join("data");
    let (engine, _) = Engine::open(&data, Options::default()).unwrap();
    let mut run = Recorder::prepare(&engine, request(0)).unwrap();
    let (told, heard) = std::sync::mpsc::channel();
    let (from, last) = (run.last_receipt().last, run.last_receipt().last.0 + APPENDS);
    let follower = std::thread::spawn(move || {
        let mut log = Log::open(&data).unwrap();
        let mut records = log.records(from.next().unwrap()).unwrap();
        loop {
            match records.next().unwrap() {
                Some(Entry::Record(record)) => {
                    told.send((record.position, Instant::now())).unwrap();
                    if record.position.0 == last {
                        return;
                    }
                }
                Some(Entry::Damage(damage)) => panic!("{damage:?}"),
                None => drop(records.wait(Duration::from_secs(1)).unwrap()),
            }
        }
    });
    let mut random = 88_172_645_463_325_252_u64;
    let mut durable = Vec::new();
    for _ in 0..APPENDS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(500 + random % 40_000));
        let receipt = run.chunk(Channel::Stdout, b"line\n").unwrap();
        durable.push((receipt.last, Instant::now()));
    }
    follower.join().unwrap();
    let mut delays: Vec<Duration> = heard
        .iter()
        .zip(&durable)
        .map(|((seen, at), (position, durable))| {
            assert_eq!(seen, *position);
            at.saturating_duration_since(*durable)
        })
        .collect();
    delays.sort_unstable();
    let at = |share: usize| delays[(delays.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!(
        "R8  a follower's delay: median {:.1} ms, 99 % {:.1} ms, at most {:.1} ms",
        at(50),
        at(99),
        at(100)
    );
}

/// Bytes that this process and those that it waited for were given by `read` and its kin.
fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// What the tool reads for the output of one run, where so many at once wrote their 1 MiB in turns.
fn one_out_of_many(at_once: usize) {
    const RUNS: usize = 1000;
    const TURNS: usize = 8;
    let base = std::env::var_os("RUNWAL_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(base).unwrap();
    let data = dir.path().join("data");
    let (engine, _) = Engine::open(&data, Options { publish: false, ..Options::default() }).unwrap();
    let mut piece = vec![0; 64 << 10];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut piece).unwrap();
    for first in (0..RUNS).step_by(at_once) {
        let some =
            (first..RUNS.min(first + at_once)).map(|run| Recorder::prepare(&engine, request(run)).unwrap());
        let mut some: Vec<_> = some.collect();
        for _ in 0..TURNS {
            for run in &mut some {
                let chunk = || Body::Chunk(Channel::Stdout, piece.clone()).into();
                run.append(vec![chunk(), chunk()]).unwrap();
            }
        }
        for mut run in some {
            run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
        }
    }
    engine.close().unwrap();
    let len = (TURNS * 2 * piece.len()) as f64;
    let read = |run: &str| {
        let before = bytes_read();
        let mut tool = Command::new(env!("CARGO_BIN_EXE_runwal"));
        let status =
            tool.arg("--dir").arg(&data).args(["output", run]).stdout(Stdio::null()).status().unwrap();
        assert!(status.success());
        (bytes_read() - before) as f64 / len
    };
    println!(
        "R7  one run of {:.0} MiB out of {RUNS}, {at_once} at once: {:.2} times its bytes are read by its task and \
         id, {:.2} by its id",
        len / f64::from(1 << 20),
        read(&format!("bench/r-{}", RUNS / 2)),
        read(&format!("r-{}", RUNS / 2)),
    );
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == "--worker") {
        return worker();
    }
    let mut numbers = args.iter().filter_map(|arg| arg.parse::<usize>().ok());
    let (processes, steps) = (numbers.next().unwrap_or(64), numbers.next().unwrap_or(1000));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        measure("worker processes", processes, true).await;
        measure("steps", steps, false).await;
    });
    follower_delay();
    for at_once in [1, 64, 1000] {
        one_out_of_many(at_once);
    }
}
