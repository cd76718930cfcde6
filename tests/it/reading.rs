//! Reading batch by batch, and single records by stream and sequence: both give what reading in order gives,
//! of a whole journal and of a damaged one.

use runwal::engine::{BatchEntry, Log};
use runwal::format::{BATCH_HEADER_LEN, BatchHeader, HeaderBlock, SEGMENT_DATA_START};
use runwal::position::{Position, Seq, StreamId};
use runwal::record::Record;
use runwal::testing::stage::{Stage, Writer, read_all};
use runwal::{Damage, ErrorKind};

/// Several segments, several runs side by side, short records and long ones, batches of one and of many.
fn journal() -> (Stage, Writer) {
    let mut stage = Stage::new(16 << 10, 32 << 10);
    let writer = stage.open(1).unwrap();
    let runs: Vec<_> = (0..3).map(|n| stage.begin(&writer, &format!("task-{n}"))).collect();
    for round in 0..6_usize {
        for (nth, run) in runs.iter().enumerate() {
            stage.append(&writer, *run, &[10, 700 * nth, 30, 2_000, 9]);
            stage.append_keyed(&writer, *run, 40 + round);
            stage.append(&writer, *run, &vec![60 * nth; 40]);
        }
        stage.group(&writer, runs[round % 3], &[20, 3_000, 20, 20]);
        stage.tick(&writer);
    }
    stage.finish(&writer, runs[0]);
    (stage, writer)
}

fn is_fine(stage: &Stage) {
    assert!(stage.problems.is_empty(), "{:?}", stage.problems);
}

fn by_batches(log: &mut Log, from: Position) -> (Vec<Record>, Vec<Damage>) {
    let (mut records, mut damage) = (Vec::new(), Vec::new());
    let mut batches = log.batches(from).unwrap();
    while let Some(entry) = batches.next().unwrap() {
        match entry {
            BatchEntry::Batch(batch) => {
                records.extend(batch.into_iter().map(|record| Record::of(&record.unwrap()).unwrap()));
            }
            BatchEntry::Damage(found) => damage.push(found),
        }
    }
    (records, damage)
}

/// An order without an order, the same each time.
fn shuffled(records: &[Record], seed: usize) -> impl Iterator<Item = &Record> {
    let step = [7_919, 104_729, 1_299_709][seed % 3];
    (0..records.len()).map(move |nth| &records[(nth * step + seed) % records.len()])
}

#[test]
fn batches_have_the_records_that_reading_in_order_gives() {
    let (mut stage, writer) = journal();
    let mut log = stage.open_log(1).unwrap();
    let (records, _) = read_all(&mut log).unwrap();
    assert!(log.segments().unwrap().len() > 2 && records.len() > 800);
    for from in (0..records.len()).step_by(17) {
        let (found, damage) = by_batches(&mut log, records[from].position);
        assert_eq!((found, damage), (records[from..].to_vec(), Vec::new()), "from record {from}");
    }
    assert_eq!(by_batches(&mut log, Position::ZERO).0, records);
    assert_eq!(by_batches(&mut log, Position(u64::MAX)).0, Vec::new());
    // It goes on with what comes later.
    let mut batches = log.batches(records.last().unwrap().position.next().unwrap()).unwrap();
    assert!(batches.next().unwrap().is_none());
    let run = stage.begin(&writer, "later").unwrap();
    assert!(batches.wait(std::time::Duration::from_mins(1)).unwrap());
    let Some(BatchEntry::Batch(batch)) = batches.next().unwrap() else { panic!("nothing new") };
    let first = batch.into_iter().next().unwrap().unwrap();
    assert_eq!((first.stream, first.seq), (run, Seq(1)));
    is_fine(&stage);
}

#[test]
fn a_record_is_found_by_its_stream_and_its_sequence() {
    let (mut stage, writer) = journal();
    let mut log = stage.open_log(1).unwrap();
    let (mut records, _) = read_all(&mut log).unwrap();
    for seed in 0..3 {
        for record in shuffled(&records, seed) {
            let found = log.record(record.stream, record.seq).unwrap();
            assert_eq!(found.as_ref(), Some(record), "{seed}");
        }
    }
    let last = records.last().unwrap().clone();
    let behind = last.seq.next().unwrap();
    assert_eq!(log.record(last.stream, behind).unwrap(), None, "nothing yet");
    for nothing in [Seq::ZERO, Seq(u64::MAX)] {
        assert_eq!(log.record(last.stream, nothing).unwrap(), None);
    }
    for nobody in [StreamId(0), StreamId(2), StreamId(u64::MAX)] {
        assert_eq!(log.record(nobody, Seq(1)).unwrap(), None);
    }
    // What comes later in the same segment, and in the next ones.
    let run = stage.begin(&writer, "later");
    for round in 0..30 {
        stage.append(&writer, run, &[round, 1_500, 10]);
        log.refresh().unwrap();
        let new = by_batches(&mut log, records.last().unwrap().position.next().unwrap()).0;
        assert!(!new.is_empty());
        for record in &new {
            assert_eq!(log.record(record.stream, record.seq).unwrap().as_ref(), Some(record));
        }
        records.extend(new);
    }
    for record in shuffled(&records, 1) {
        assert_eq!(log.record(record.stream, record.seq).unwrap().as_ref(), Some(record));
    }
    is_fine(&stage);
}

/// Whatever byte is wrong, nothing wrong is shown: not where it was wrong from the beginning, and not where
/// it goes wrong after its place was learnt.
#[test]
fn a_wrong_byte_is_never_shown() {
    let (mut stage, writer) = journal();
    stage.close(writer);
    let mut whole = stage.open_log(1).unwrap();
    let (records, _) = read_all(&mut whole).unwrap();
    let name = "journal/0000000002.seg";
    let bytes = stage.world.read_file(name).unwrap();
    let mut refused = 0;
    for at in (1_024..bytes.len()).step_by(131) {
        let mut stage = stage.fork();
        let mut learnt = stage.open_log(1).unwrap();
        for record in shuffled(&records, at).step_by(5) {
            learnt.record(record.stream, record.seq).unwrap();
        }
        let mut wrong = bytes.clone();
        wrong[at] ^= 1 << (at % 8);
        stage.world.write_file(name, &wrong).unwrap();
        let mut log = stage.open_log(1).unwrap();
        let (in_order, told) = read_all(&mut log).unwrap();
        assert_eq!(by_batches(&mut log, Position::ZERO), (in_order, told), "byte {at}");
        for record in shuffled(&records, at).step_by(9) {
            for log in [&mut log, &mut learnt] {
                match log.record(record.stream, record.seq) {
                    Ok(found) => assert_eq!(found.as_ref(), Some(record), "byte {at}"),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error}");
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

/// What a newer version wrote is not damaged: by itself it is refused as it is in order.
#[test]
fn what_is_of_a_newer_version_is_no_damage() {
    let (mut stage, writer) = journal();
    stage.close(writer);
    let (records, _) = read_all(&mut stage.open_log(1).unwrap()).unwrap();
    let name = "journal/0000000002.seg";
    let mut bytes = stage.world.read_file(name).unwrap();
    let site = HeaderBlock::decode(&bytes).unwrap().header.site();
    let mut at = usize::try_from(SEGMENT_DATA_START).unwrap();
    let mut batch = BatchHeader::decode(&bytes[at..], &site, at as u64).unwrap();
    for _ in 0..3 {
        at += usize::try_from(batch.frame_len()).unwrap();
        batch = BatchHeader::decode(&bytes[at..], &site, at as u64).unwrap();
    }
    // A codec that there is not yet.
    bytes[at + 4] = 9;
    let (header, sum) = bytes[at..at + BATCH_HEADER_LEN].split_at_mut(BATCH_HEADER_LEN - 4);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&site.journal);
    [site.segment, site.salt, at as u64].iter().for_each(|number| crc.update(&number.to_le_bytes()));
    crc.update(header);
    sum.copy_from_slice(&crc.finalize().to_le_bytes());
    stage.world.write_file(name, &bytes).unwrap();
    let mut log = stage.open_log(1).unwrap();
    assert_eq!(read_all(&mut log).unwrap_err().kind(), ErrorKind::Unsupported);
    let within = |record: &&Record| (batch.first_position..=batch.last_position()).contains(&record.position);
    assert!(records.iter().filter(within).count() > 0);
    for record in records.iter().filter(within) {
        let refused = log.record(record.stream, record.seq).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        assert_eq!(refused.place().map(|place| (place.segment, place.offset)), Some((2, at as u64)));
    }
}
