//! What reading takes of memory, counted by the allocator: nothing for a record, and no more for a long journal
//! than for a short one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use allocation_counter::{AllocationInfo, measure};
use runwal::Verdict;
use runwal::engine::{BatchEntry, Conditions, Engine, Log, NewRecord, Options};
use runwal::position::{Position, Seq, StreamId};
use runwal::record::{Body, Channel, Id};
use runwal::run::{End, Outcome, Recorder, RunRequest};
use std::path::Path;

const RUNS: usize = 4;
const LINE_LEN: usize = 400;

fn line(n: usize) -> NewRecord {
    // Of a kind that no compression makes shorter.
    let mut seed = n as u64 + 1;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    };
    Body::Chunk(Channel::Stdout, (0..LINE_LEN / 8).flat_map(|_| random()).collect()).into()
}

/// A journal with so many records in runs that took turns, and its runs.
fn journal(dir: &Path, records: usize) -> Vec<StreamId> {
    let options = Options { publish: false, ..Options::default() };
    let (engine, _) = Engine::open(dir.join("data"), options).unwrap();
    let id = |text: String| Id::new(text).unwrap();
    let request = |n: usize| RunRequest::new(id("t".to_owned()), id(format!("r-{n}")), id("s".to_owned()));
    let mut runs: Vec<_> = (0..RUNS).map(|n| Recorder::prepare(&engine, request(n)).unwrap()).collect();
    for n in 0..records / 32 {
        let lines: Vec<_> = (0..32).map(|m| line(32 * n + m)).collect();
        runs[n % RUNS].append(lines).unwrap();
    }
    for run in &mut runs {
        run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
    }
    let streams = runs.iter().map(Recorder::stream).collect();
    engine.close().unwrap();
    streams
}

fn log(dir: &Path) -> Log {
    Log::open(dir.join("data")).unwrap()
}

/// What is done to a journal of so many records.
fn both(records: [usize; 2], what: impl Fn(&mut Log, &[StreamId])) -> [AllocationInfo; 2] {
    records.map(|records| {
        let dir = tempfile::tempdir().unwrap();
        let runs = journal(dir.path(), records);
        let mut log = log(dir.path());
        measure(|| what(&mut log, &runs))
    })
}

#[test]
fn a_scan_allocates_nothing_for_a_record() {
    let [short, long] = both([1_000, 40_000], |log, _| {
        let (mut len, mut batches) = (0, log.batches(Position::ZERO).unwrap());
        while let Some(entry) = batches.next().unwrap() {
            let BatchEntry::Batch(batch) = entry else { panic!("damage") };
            for record in batch {
                len += record.unwrap().payload.len();
            }
        }
        assert!(len >= LINE_LEN * 900);
    });
    // Some for each segment.
    assert!(long.count_total < short.count_total + 200, "{short:?} for 1,000 records, {long:?} for 40,000");
}

#[test]
fn a_long_journal_takes_no_more_memory_than_a_short_one() {
    const SHORT: usize = 10_000;
    const MOST: u64 = 32 << 20;
    type Work = fn(&mut Log, &[StreamId]);
    let works: [(&str, Work); 4] = [
        ("a scan", |log, _| {
            let mut batches = log.batches(Position::ZERO).unwrap();
            while batches.next().unwrap().is_some() {}
        }),
        ("one stream", |log, runs| {
            assert!(log.stream(runs[1], Seq(1), &mut |_| Ok(true)).unwrap().is_empty());
        }),
        ("verifying", |log, _| assert_eq!(log.verify(&mut |_| {}).unwrap().verdict, Verdict::Clean)),
        ("rebuilding", |log, _| {
            let runs = log.runs().unwrap();
            assert_eq!(log.rebuild_runs(&runs, true, &mut |_, _| {}).unwrap().len(), RUNS);
        }),
    ];
    for (what, work) in works {
        let [short, long] = both([SHORT, 16 * SHORT], work);
        let most = (2 * short.bytes_max).clamp(8 << 20, MOST);
        assert!(
            long.bytes_max <= most,
            "{what}: {} of a short one, {} of a long one",
            short.bytes_max,
            long.bytes_max
        );
    }
}

#[test]
fn many_small_appends_are_taken_up_without_a_pile_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { publish: false, ..Options::default() };
    let (engine, _) = Engine::open(dir.path().join("data"), options).unwrap();
    let id = |text: &str| Id::new(text).unwrap();
    let run = Recorder::prepare(&engine, RunRequest::new(id("t"), id("r"), id("s"))).unwrap();
    let record = [line(1)];
    let taken = measure(|| {
        for _ in 0..100_000 {
            drop(engine.submit(run.stream(), Conditions::none(), &record).unwrap());
        }
    });
    // Nobody waits: what is too much is committed by whoever hands it in.
    assert!(taken.bytes_max < 64 << 20, "{taken:?}");
}
