//! Files made again from the journal: of many runs in one pass, the same as of one run by its index, and the
//! same as a fold that knows nothing of either.

use runwal::JournalOptions;
use runwal::disk::Kind;
use runwal::engine::{Engine, Entry, Log, Options, RunInfo, World};
use runwal::position::{Position, StreamId};
use runwal::projection::publish::Rebuilt;
use runwal::record::{Channel, Id, Record};
use runwal::run::{End, Outcome, Recorder, RunRequest};
use runwal::testing::oracle::expected_files;
use runwal::testing::stage::{Stage, Writer, read_all};
use runwal::testing::watched::{Call, Watched};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// More runs than one pass takes, side by side in batches and segments.
const RUNS: usize = 300;

fn journal() -> (Stage, Writer) {
    let mut stage = Stage::new(32 << 10, 64 << 10);
    let writer = stage.open(1).unwrap();
    let runs: Vec<_> = (0..RUNS).map(|n| stage.begin(&writer, &format!("task-{n}"))).collect();
    for round in 0..3 {
        for (nth, run) in runs.iter().enumerate() {
            match (nth + round) % 7 {
                0 => drop(stage.checkpoint(&writer, *run)),
                1 => stage.group(&writer, *run, &[20, 900, 20]),
                2 => drop(stage.append(&writer, *run, &[300_000])),
                _ => drop(stage.append(&writer, *run, &[10, 70 * round, 40])),
            }
        }
        stage.tick(&writer);
    }
    for run in runs.iter().step_by(2) {
        stage.finish(&writer, *run);
    }
    assert!(stage.problems.is_empty(), "{:?}", stage.problems);
    (stage, writer)
}

fn files_of_runs(records: &[Record]) -> BTreeMap<String, Vec<u8>> {
    expected_files(records).into_iter().filter(|(name, _)| name.starts_with("runs/")).collect()
}

fn rebuild(log: &mut Log, write: bool) -> (Vec<RunInfo>, BTreeMap<StreamId, Rebuilt>) {
    let runs = log.runs().unwrap();
    let mut told = Vec::new();
    let rebuilt = log.rebuild_runs(&runs, write, &mut |done, of| told.push((done, of))).unwrap();
    let (last, of) = *told.last().unwrap();
    assert!(last == of && told.iter().all(|(_, other)| *other == of), "in the end all of it: {told:?}");
    assert!(told.is_sorted() && told.len() > runs.len() / 2, "{told:?}");
    // One that is not of this journal has nothing, and is in nobody's way.
    let other = RunInfo { stream: StreamId(u64::MAX), ..runs[0].clone() };
    let mut told = Vec::new();
    let found = log.rebuild_runs(&[other], false, &mut |done, of| told.push((done, of))).unwrap();
    assert_eq!((found.len(), told.last()), (1, Some(&(0, 0))), "{told:?}");
    (runs, rebuilt.into_iter().map(|(stream, found)| (stream, found.unwrap())).collect())
}

/// The files under `runs/`.
fn all_files(stage: &Stage) -> BTreeMap<String, Vec<u8>> {
    let names = stage.world.names().into_iter().filter(|name| name.starts_with("runs/"));
    names.filter_map(|name| Some((name.clone(), stage.world.read_file(&name).ok()?))).collect()
}

#[test]
fn many_runs_side_by_side_are_made_again_to_the_byte() {
    let (mut stage, _writer) = journal();
    let mut log = stage.open_log(1).unwrap();
    let (records, _) = read_all(&mut log).unwrap();
    let (runs, rebuilt) = rebuild(&mut log, true);
    assert_eq!((runs.len(), rebuilt.len()), (RUNS, RUNS));
    let wanted = all_files(&stage);
    let rewritten: u64 = rebuilt.values().map(|rebuilt| rebuilt.rewritten).sum();
    assert_eq!(rewritten, wanted.len() as u64);
    for (name, bytes) in files_of_runs(&records) {
        assert!(wanted[&name] == bytes, "{name}");
    }
    let mut by_index = stage.fork();
    let mut log_by_index = by_index.open_log(1).unwrap();
    for run in &runs {
        let found = log_by_index.rebuild(run.stream, true).unwrap().unwrap();
        assert_eq!(found, Rebuilt::default(), "by its index the files of {} are right too", run.name);
    }

    // Each way in which a file can be another one, and no two at once in a run.
    let (mut broken, mut seen) = (BTreeMap::new(), BTreeSet::new());
    for (nth, (name, bytes)) in wanted.iter().enumerate() {
        let folder = name.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
        if !seen.insert(folder.clone()) || seen.len() % 3 == 0 {
            continue;
        }
        let name = if nth % 2 == 0 { format!("{folder}/stdout.log") } else { name.clone() };
        let bytes = wanted.get(&name).unwrap_or(bytes);
        let mut other = bytes.clone();
        let what = match seen.len() % 5 {
            0 => {
                stage.world.remove_file(&name).unwrap();
                "is missing"
            }
            1 => {
                stage.world.remove_file(&name).unwrap();
                stage.world.plant(&name, Kind::Symlink).unwrap();
                "is not a regular file"
            }
            2 if !bytes.is_empty() => {
                other.truncate(bytes.len() * 2 / 3);
                stage.world.write_file(&name, &other).unwrap();
                "is shorter than it should be"
            }
            3 if !bytes.is_empty() => {
                let middle = other.len() / 2;
                other[middle] ^= 1;
                stage.world.write_file(&name, &other).unwrap();
                "has other bytes"
            }
            _ => {
                other.push(b'x');
                stage.world.write_file(&name, &other).unwrap();
                "is longer than it should be"
            }
        };
        broken.insert(name, what);
    }
    assert_eq!(broken.values().collect::<BTreeSet<_>>().len(), 5, "{broken:?}");
    let before = stage.world.digest_of_all();
    let told = |rebuilt: &BTreeMap<StreamId, Rebuilt>| -> BTreeMap<String, &'static str> {
        let all = rebuilt.values().flat_map(|rebuilt| rebuilt.differences.clone());
        all.map(|difference| (difference.file, difference.what)).collect()
    };
    let (_, compared) = rebuild(&mut log, false);
    assert_eq!(told(&compared), broken);
    assert_eq!(stage.world.digest_of_all(), before, "comparing writes nothing");
    let (_, rebuilt) = rebuild(&mut log, true);
    assert_eq!(told(&rebuilt), broken);
    assert_eq!(rebuilt.values().map(|rebuilt| rebuilt.rewritten).sum::<u64>(), broken.len() as u64);
    assert!(all_files(&stage) == wanted, "and nothing else is left behind");
    assert_eq!(told(&rebuild(&mut log, false).1), BTreeMap::new());
}

/// Whose records are damaged keeps the files as they were; the others get theirs.
#[test]
fn runs_with_damaged_records_are_left_alone_and_the_others_are_made_again() {
    let (mut stage, writer) = journal();
    stage.close(writer);
    let mut log = stage.open_log(1).unwrap();
    let (records, _) = read_all(&mut log).unwrap();
    let wanted = files_of_runs(&records);
    let name = "journal/0000000003.seg";
    let bytes = stage.world.read_file(name).unwrap();
    for at in (200..bytes.len()).step_by(bytes.len() / 12) {
        let mut stage = stage.fork();
        let mut wrong = bytes.clone();
        wrong[at] ^= 8;
        stage.world.write_file(name, &wrong).unwrap();
        let mut log = stage.open_log(1).unwrap();
        let (left, _) = read_all(&mut log).unwrap();
        let left: BTreeSet<Position> = left.iter().map(|record| record.position).collect();
        let lost = records.iter().filter(|record| !left.contains(&record.position));
        let mut hurt: BTreeSet<StreamId> = lost.map(|record| record.stream).collect();
        let (runs, rebuilt) = rebuild(&mut log, true);
        // Those whose first record is lost have no name, and so no files.
        hurt.retain(|stream| runs.iter().any(|run| run.stream == *stream));
        let damaged: BTreeSet<StreamId> =
            rebuilt.iter().filter(|(_, found)| found.damaged).map(|(stream, _)| *stream).collect();
        assert_eq!(damaged, hurt, "byte {at}");
        for run in runs {
            let folder = run.name.folder();
            let its = wanted.range(folder.clone()..).take_while(|(name, _)| name.starts_with(&folder));
            for (name, bytes) in its {
                match stage.world.read_file(name) {
                    Ok(found) => {
                        assert!(!damaged.contains(&run.stream) && found == *bytes, "byte {at}: {name}")
                    }
                    Err(_) => assert!(damaged.contains(&run.stream), "byte {at}: {name}"),
                }
            }
        }
        assert!(all_files(&stage).keys().all(|name| !name.contains(".tmp-")), "byte {at}");
    }
}

/// Where that is much, whoever asks leaves it to threads, which have it done to the byte as well.
#[test]
fn threads_share_the_runs_where_they_are_long() {
    let dir = tempfile::tempdir().unwrap();
    let journal = JournalOptions { compress_from: u64::MAX, ..JournalOptions::default() };
    let options = Options { journal, publish: false, ..Options::default() };
    let (engine, _) = Engine::open_in(World::create(dir.path()).unwrap(), options).unwrap();
    let id = |text: &str| Id::new(text).unwrap();
    for n in 0..6_u8 {
        let request = RunRequest::new(id("t"), id(&format!("r{n}")), id("s"));
        let mut run = Recorder::prepare(&engine, request).unwrap();
        for round in 0..4 {
            run.chunk(Channel::Stdout, &vec![n * 10 + round; 1 << 20]).unwrap();
        }
        run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
    }
    engine.close().unwrap();
    let world = World::existing(dir.path()).unwrap();
    let me = || std::thread::current().id();
    let (asks, writers) = (me(), Arc::new(Mutex::new(Vec::new())));
    let tell = Arc::clone(&writers);
    let disk = Watched::new(Arc::clone(&world.disk), move |call, name| {
        if call == Call::Write && name.starts_with("runs/") {
            tell.lock().unwrap().push(me());
        }
    });
    let mut log = Log::open_in(&World { disk: Arc::new(disk), ..world }).unwrap();
    let (runs, rebuilt) = rebuild(&mut log, true);
    assert_eq!((runs.len(), rebuilt.len()), (6, 6));
    assert!(rebuilt.values().all(|run| !run.damaged && run.rewritten == 7), "{rebuilt:?}");
    let writers = std::mem::take(&mut *writers.lock().unwrap());
    let alone = std::thread::available_parallelism().map_or(1, usize::from) == 1;
    assert!(!writers.is_empty() && writers.iter().all(|writer| (*writer == asks) == alone));
    let (_, again) = rebuild(&mut log, false);
    assert!(again.values().all(|run| !run.damaged && run.differences.is_empty()), "{again:?}");
    let records = expected_files(&all_records(&mut log));
    for (name, bytes) in records.iter().filter(|(name, _)| name.starts_with("runs/")) {
        #[expect(clippy::disallowed_methods, reason = "looks at the file as its reader does")]
        let found = std::fs::read(dir.path().join(name)).unwrap();
        assert!(found == *bytes, "{name}");
    }
}

fn all_records(log: &mut Log) -> Vec<Record> {
    let (mut all, mut records) = (Vec::new(), log.records(Position(1)).unwrap());
    while let Some(entry) = records.next().unwrap() {
        let Entry::Record(record) = entry else { panic!("{entry:?}") };
        all.push(record);
    }
    all
}
