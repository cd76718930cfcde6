//! The engine by itself: appends, group commits, scans, opening, rebuilding.
//!
//! `cargo bench --bench engine` compares with the run before; `-- scan` runs what has that in its name,
//! `-- --test` everything once. Syncs go to the disk of the directory in `TMPDIR`: what waits for them says
//! as much of that disk as of the engine. `benches/peers` compares with other engines.

#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "measures, and plays the user")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use runwal::engine::{BatchEntry, Conditions, Entry, Log, NewRecord};
use runwal::position::{Position, Seq, StreamId};
use runwal::record::{Body, Channel, Id};
use runwal::run::{Recorder, RunRequest};
use runwal::{Engine, Options};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

const EVENT: usize = 256;
/// Records and runs of what is read.
const RECORDS: u64 = 200_000;
const RUNS: u64 = 64;

/// Bytes that no compression makes shorter, the same ones each time.
#[derive(Debug)]
struct Noise(u64);

impl Noise {
    fn event(&mut self) -> NewRecord {
        let mut bytes = Vec::with_capacity(EVENT);
        while bytes.len() < EVENT {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend_from_slice(&self.0.to_le_bytes());
        }
        Body::Chunk(Channel::Stdout, bytes).into()
    }
}

fn open(dir: &Path) -> Engine {
    Engine::open(dir, Options { publish: false, ..Options::default() }).unwrap().0
}

fn begin(engine: &Engine, name: &str) -> Recorder {
    let id = |text: &str| Id::new(text).unwrap();
    Recorder::prepare(engine, RunRequest::new(id("bench"), id(name), id("s"))).unwrap()
}

/// A journal of many runs that went on side by side, and their streams.
fn filled(dir: &Path) -> Vec<StreamId> {
    let engine = open(dir);
    let mut noise = Noise(88_172_645_463_325_252);
    let streams: Vec<_> =
        (0..RUNS).map(|n| begin(&engine, &format!("r-{n}")).last_receipt().stream).collect();
    let mut last = None;
    for _ in 0..RECORDS / RUNS / 8 {
        for stream in &streams {
            let records: Vec<_> = (0..8).map(|_| noise.event()).collect();
            last = Some(engine.buffer(*stream, Conditions::none(), &records).unwrap());
        }
    }
    last.unwrap().wait().unwrap();
    for stream in &streams {
        let end = NewRecord { ends: true, ..noise.event() };
        engine.append(*stream, Conditions::none(), &[end]).unwrap();
    }
    engine.close().unwrap();
    streams
}

/// Each append durable before the next: the disk, and what the engine adds to it. And without waiting.
fn append(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("data"));
    let stream = begin(&engine, "r").last_receipt().stream;
    let mut noise = Noise(1);
    let mut group = criterion.benchmark_group("append");
    group.throughput(Throughput::Elements(1));
    group.bench_function("durable", |bencher| {
        bencher.iter_batched(
            || [noise.event()],
            |records| engine.append(stream, Conditions::none(), &records).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("buffered", |bencher| {
        bencher.iter_batched(
            || [noise.event()],
            |records| drop(engine.buffer(stream, Conditions::none(), &records).unwrap()),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Threads that append to one engine, each waiting for its own.
fn group_commit(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("data"));
    let mut group = criterion.benchmark_group("group-commit");
    group.throughput(Throughput::Elements(1));
    for threads in [2_u64, 8, 64] {
        let runs: Vec<_> = (0..threads).map(|n| begin(&engine, &format!("of-{threads}-{n}"))).collect();
        let streams: Vec<_> = runs.iter().map(|run| run.last_receipt().stream).collect();
        group.bench_function(format!("{threads} threads"), |bencher| {
            bencher.iter_custom(|appends| {
                let start = Instant::now();
                std::thread::scope(|scope| {
                    for (n, stream) in (0..threads).zip(&streams) {
                        let engine = &engine;
                        scope.spawn(move || {
                            let mut noise = Noise(n + 1);
                            for _ in 0..appends / threads + u64::from(n < appends % threads) {
                                engine.append(*stream, Conditions::none(), &[noise.event()]).unwrap();
                            }
                        });
                    }
                });
                start.elapsed()
            });
        });
    }
    group.finish();
}

/// What is read of a journal that was closed, in files that are in memory.
fn read(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let streams = filled(&data);
    let mut log = Log::open(&data).unwrap();
    let info = log.info().unwrap();

    let mut group = criterion.benchmark_group("scan");
    group.throughput(Throughput::Elements(info.records));
    group.bench_function("batches", |bencher| {
        bencher.iter(|| {
            let mut batches = log.batches(Position::ZERO).unwrap();
            let mut bytes = 0;
            while let Some(entry) = batches.next().unwrap() {
                if let BatchEntry::Batch(batch) = entry {
                    bytes += batch.into_iter().map(|record| record.unwrap().payload.len()).sum::<usize>();
                }
            }
            bytes
        });
    });
    group.bench_function("records", |bencher| {
        bencher.iter(|| {
            let mut records = log.records(Position::ZERO).unwrap();
            let mut count = 0_u64;
            while let Some(Entry::Record(record)) = records.next().unwrap() {
                count += u64::from(black_box(record).seq == Seq(1));
            }
            assert_eq!(count, RUNS);
        });
    });
    group.throughput(Throughput::Elements(info.records / RUNS));
    group.bench_function("one run of 64", |bencher| {
        bencher.iter(|| log.fold(streams[7]).unwrap());
    });
    group.throughput(Throughput::Elements(1));
    let mut noise = Noise(7);
    group.bench_function("one record", |bencher| {
        bencher.iter_batched(
            || {
                noise.event();
                (streams[(noise.0 % RUNS) as usize], Seq(1 + (noise.0 >> 20) % (RECORDS / RUNS)))
            },
            |(stream, seq)| log.record(stream, seq).unwrap().unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.finish();

    let mut group = criterion.benchmark_group("open");
    group.bench_function("for reading", |bencher| bencher.iter(|| Log::open(&data).unwrap()));
    group.bench_function("for writing", |bencher| bencher.iter(|| open(&data)));
    group.finish();

    let runs = log.runs().unwrap();
    let mut group = criterion.benchmark_group("rebuild");
    group.throughput(Throughput::Bytes(info.bytes)).sample_size(10);
    group.bench_function("nothing is there", |bencher| {
        bencher.iter_batched(
            || std::fs::remove_dir_all(data.join("runs")).unwrap_or_default(),
            |()| log.rebuild_runs(&runs, true, &mut |_, _| {}).unwrap(),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("everything is right", |bencher| {
        bencher.iter(|| log.rebuild_runs(&runs, false, &mut |_, _| {}).unwrap());
    });
    group.finish();
}

criterion_group!(benches, append, group_commit, read);
criterion_main!(benches);
