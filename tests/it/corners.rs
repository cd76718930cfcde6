//! What no crash of the explorer and no damage of the matrix leads to: an unlucky moment between two
//! processes, files that somebody moved about, numbers that run out.

#![expect(clippy::disallowed_methods, reason = "plays the user, who edits files")]

use crate::cli::Place;
use runwal::clock::{Clock, Entropy, ManualClock, SeededEntropy};
use runwal::disk::sim::{Choices, Fate, Fault, SimDisk, SimWorld};
use runwal::disk::{Disk, File, Kind, Open, Stat};
use runwal::engine::{Conditions, Engine, Log, NewRecord, World};
use runwal::error::{ErrorKind, Result};
use runwal::format::{
    BatchHeader, Draft, Durability, Flaw, Footer, HeaderBlock, Mark, SegmentHeader, Target, encode_body,
};
use runwal::position::{Position, Seq, Session, StreamId, Time};
use runwal::record::{Body, Channel};
use runwal::testing::stage::{Stage, Writer, read_all};
use runwal::{Verdict, format};
use std::sync::Arc;
use std::sync::Mutex;
use std::{fmt, fs};

const MARK: &str = "journal/mark";
const LOCK: &str = "journal/lock";

fn line() -> [NewRecord; 1] {
    [Body::Chunk(Channel::Stdout, b"line\n".to_vec()).into()]
}

fn is_fine(stage: &Stage) {
    assert!(stage.problems.is_empty(), "{:?}", stage.problems);
}

fn segment(number: u64) -> String {
    format!("journal/{number:010}.seg")
}

#[test]
fn half_a_mark_still_tells_what_is_gone() {
    let mut stage = Stage::new(64 << 10, 64 << 10);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    let kept = stage.world.read_file(&segment(1)).unwrap();
    stage.append(&writer, run, &[100]).unwrap();
    let before = stage.world.read_file(MARK).unwrap();
    stage.append(&writer, run, &[100]).unwrap();
    let mut mark = stage.world.read_file(MARK).unwrap();
    let slot = |bytes: &[u8], at: u64| bytes[usize::try_from(at).unwrap()..][..Mark::LEN].to_vec();
    let newest = format::MARK_SLOT_OFFSETS.into_iter().find(|at| slot(&mark, *at) != slot(&before, *at));
    mark[usize::try_from(newest.unwrap()).unwrap() + 60] ^= 1;
    stage.world.write_file(MARK, &mark).unwrap();
    // Without a mark this would look as if nothing had been written behind it.
    stage.world.write_file(&segment(1), &kept).unwrap();
    let found = stage.open_log(1).unwrap().verify(&mut |_| {}).unwrap();
    assert_eq!(found.verdict, Verdict::Corrupt, "{found:?}");
}

#[test]
fn a_lock_whose_file_was_replaced_is_nobodys() {
    let mut stage = Stage::new(64 << 10, 64 << 10);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a").unwrap();
    stage.world.remove_file(LOCK).unwrap();
    let (other, _) = stage.process(1);
    let lock = other.open(LOCK, Open::WriteOrCreate).unwrap();
    assert!(lock.try_lock().unwrap());
    let refused = writer.engine().append(run, None, &line()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked, "{refused}");
    lock.unlock().unwrap();
    writer.engine().append(run, None, &line()).unwrap();
}

#[test]
fn files_noted_as_projected_are_on_the_disk() {
    let mut stage = Stage::new(1400, 1400);
    let writer = stage.open(1).unwrap();
    for run in ["a", "b"] {
        let run = stage.begin(&writer, run);
        stage.append(&writer, run, &[700]).unwrap();
        stage.append(&writer, run, &[700]).unwrap();
        stage.finish(&writer, run);
    }
    stage.close(writer);
    stage.check_files(1);
    assert!(stage.world.read_file("cache/projected").is_ok(), "nothing is noted");
    let mut judged = 0;
    for image in Choices::new(&stage.world, 6, 64, 1) {
        let mut later = stage.on(image.world());
        later.check_files(1);
        is_fine(&later);
        judged += 1;
    }
    assert!(judged > 1);
}

/// Nothing of a run's files is synced: a power cut may leave their lengths and times without their bytes.
#[test]
fn files_that_lost_their_bytes_to_a_power_cut_are_written_anew() {
    let mut stage = Stage::new(64 << 10, 64 << 10);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[700]).unwrap();
    stage.finish(&writer, run);
    stage.close(writer);
    stage.publish(1);
    let world = stage.world.power_cut(&mut |unit| {
        let told = stage.world.describe(unit);
        if told.starts_with("sector") && told.ends_with("stdout.log") { Fate::Zero } else { Fate::New }
    });
    let mut stage = stage.on(world);
    stage.check_files(1);
    is_fine(&stage);
}

/// Somebody brought an older journal back: the files beside it show more than it has.
#[test]
fn files_that_are_ahead_of_the_journal_are_set_back() {
    let mut stage = Stage::new(64 << 10, 64 << 10);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[100]).unwrap();
    let older = stage.fork();
    for _ in 0..4 {
        stage.append(&writer, run, &[100]).unwrap();
    }
    stage.finish(&writer, run);
    stage.close(writer);
    stage.publish(1);
    for name in [segment(1), MARK.to_owned()] {
        stage.world.write_file(&name, &older.world.read_file(&name).unwrap()).unwrap();
    }
    let mut stage = older.on(stage.world.fork());
    stage.check_files(1);
    is_fine(&stage);
}

#[test]
fn an_edit_of_a_projected_file_shows_in_its_length_or_in_its_time() {
    let place = Place::new();
    place.record("a", "echo out");
    let file = place.data().join("runs/t/a/stdout.log");
    let mended = |how: &str| {
        place.ends(0, &["recover"]);
        assert_eq!(fs::read(&file).unwrap(), b"out\n", "{how}");
    };
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    let open = fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.set_len(1).unwrap();
    open.set_modified(time).unwrap();
    mended("cut off, with its time as it was");
    fs::write(&file, "OUT\n").unwrap();
    mended("edited, with its length as it was");
}

#[test]
fn reading_and_verifying_do_nothing_to_the_disk() {
    let mut stage = Stage::new(1400, 1400);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[700]).unwrap();
    writer.disk.kill();
    stage.world.remove_file(LOCK).unwrap();
    let before = stage.world.operations();
    stage.look(1);
    let mut log = stage.open_log(1).unwrap();
    stage.verify(&mut log, Verdict::Clean);
    is_fine(&stage);
    assert_eq!(stage.world.operations(), before);
}

#[test]
fn a_spare_with_something_in_it_becomes_no_segment() {
    let mut stage = Stage::new(1400, 1400).with_spares();
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[700]).unwrap();
    stage.append(&writer, run, &[700]).unwrap();
    let spare = stage.world.names().into_iter().find(|name| name.starts_with("journal/spare-")).unwrap();
    let len = stage.world.read_file(&spare).unwrap().len();
    let mut used = stage.world.read_file(&segment(1)).unwrap();
    used.resize(len, b'x');
    stage.world.write_file(&spare, &used).unwrap();
    // Short, so that what is behind it in the next segment stays.
    stage.append(&writer, run, &[10]).unwrap();
    writer.disk.kill();
    let mut log = stage.open_log(1).unwrap();
    stage.judge(&mut log);
    stage.verify(&mut log, Verdict::Clean);
    is_fine(&stage);
}

/// Dies with a batch written and not synced, so that the next to open closes the segment.
fn die_writing(stage: &mut Stage, task: &str) {
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, task);
    stage.append_keyed(&writer, run, 30).unwrap();
    write_and_die(stage, &writer, run);
}

/// Writes a batch and dies before it is synced.
fn write_and_die(stage: &mut Stage, writer: &Writer, run: Option<StreamId>) {
    // Busy word, frames; then the sync.
    stage.world.fail_at(stage.world.operations() + 3, Fault::Kill);
    stage.expect_faults(true);
    assert!(stage.append(writer, run, &[700]).is_none());
    stage.expect_faults(false);
    stage.world.clear_faults();
}

#[test]
fn an_index_in_the_cache_counts_only_for_its_own_segment_as_it_ended() {
    let index = |number: u64| format!("cache/index/{number:010}.idx");
    let mut stage = Stage::new(64 << 10, 64 << 10);
    die_writing(&mut stage, "a");
    die_writing(&mut stage, "b");
    let writer = stage.open(1).unwrap();
    stage.close(writer);
    let site = HeaderBlock::decode(&stage.world.read_file(&segment(2)).unwrap()).unwrap().header.site();
    let whole = stage.world.read_file(&index(2)).unwrap();
    let (_, crc) = Footer::decode_header(&whole, &site, 0).unwrap();
    let footer = Footer::decode_body(&whole[format::FOOTER_HEADER_LEN..], crc).unwrap();
    assert!(!footer.keys.is_empty());
    let earlier = Footer { first_position: footer.first_position, chain: footer.chain, ..Footer::default() };
    for other in [stage.world.read_file(&index(1)).unwrap(), earlier.encode(&site, 0).unwrap()] {
        let mut stage = stage.fork();
        stage.world.write_file(&index(2), &other).unwrap();
        // The key of the second segment is looked for in its index.
        stage.retry_keys(1);
        is_fine(&stage);
    }
}

/// Who reads without a mark to go by may see what only the page cache has, of a writer that died.
#[test]
fn what_is_shown_without_a_mark_stays() {
    let mut stage = Stage::new(64 << 10, 64 << 10);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "left");
    write_and_die(&mut stage, &writer, run);
    stage.world.remove_file(MARK).unwrap();
    let shown = stage.open_log(1).map(|mut log| stage.judge(&mut log).len());
    assert_eq!(shown, Some(3));
    stage.restart(false);
    stage.look(1);
    let writer = stage.open(1).unwrap();
    stage.look(1);
    stage.close(writer);
    is_fine(&stage);
}

/// Half a mark may hide that a sync has failed, after which no other sync of that file proves anything:
/// what that writer left is not shown, for as long as nobody has settled it.
#[test]
fn what_a_failed_sync_left_is_not_shown_by_half_a_mark() {
    let mut stage = Stage::new(64 << 10, 64 << 10);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "left");
    stage.world.fail_at(stage.world.operations() + 3, Fault::once(5));
    stage.expect_faults(true);
    assert!(stage.append(&writer, run, &[700]).is_none());
    stage.expect_faults(false);
    writer.disk.kill();
    for slot in [0, 512] {
        let mut stage = stage.fork();
        let mut mark = stage.world.read_file(MARK).unwrap();
        mark[slot + 60] ^= 1;
        stage.world.write_file(MARK, &mark).unwrap();
        stage.look(1);
        stage.restart(false);
        stage.look(1);
        is_fine(&stage);
    }
}

/// What a copy and its original write from then on is not to be mixed up.
#[test]
fn a_copy_goes_on_in_a_segment_of_its_own() {
    let mut stage = Stage::new(64 << 10, 64 << 10);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    stage.finish(&writer, run);
    // Recovered, so that the header of the newest segment vouches for all that is in it.
    stage.world.fail_at(stage.world.operations() + 3, Fault::Kill);
    stage.expect_faults(true);
    stage.tick(&writer);
    stage.expect_faults(false);
    stage.world.clear_faults();
    let writer = stage.open(1).unwrap();
    stage.close(writer);
    let written_to = |world: SimWorld| {
        let mut stage = stage.on(world);
        let writer = stage.open(1).unwrap();
        stage.tick(&writer);
        stage.close(writer);
        let newest = stage.world.names().into_iter().rfind(|name| name.starts_with("journal/0")).unwrap();
        HeaderBlock::decode(&stage.world.read_file(&newest).unwrap()).unwrap().header.salt
    };
    assert_ne!(written_to(stage.world.fork()), written_to(stage.world.copy_to_new_inodes()));
}

/// A process's view of a machine, on which somebody else acts just before its n-th turn.
#[derive(Clone)]
struct Before {
    disk: SimDisk,
    turns: Arc<Mutex<u64>>,
    /// What was opened, each with what was left in `turns`.
    opened: Arc<Mutex<Vec<(u64, String)>>>,
    happens: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Before")
    }
}

impl Disk for Before {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn File>> {
        let file = self.disk.open(name, how)?;
        self.opened.lock().unwrap().push((*self.turns.lock().unwrap(), name.to_owned()));
        Ok(if name == LOCK { Arc::new(LockBefore { file, before: self.clone() }) } else { file })
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

#[derive(Debug)]
struct LockBefore {
    file: Arc<dyn File>,
    before: Before,
}

impl File for LockBefore {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(bytes, offset)
    }
    fn sync(&self) -> Result<()> {
        self.file.sync()
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len)
    }
    fn stat(&self) -> Result<Stat> {
        self.file.stat()
    }
    fn try_lock(&self) -> Result<bool> {
        let now = {
            let mut turns = self.before.turns.lock().unwrap();
            *turns = turns.saturating_sub(1);
            *turns == 1
        };
        if now {
            (self.before.happens)();
        }
        self.file.try_lock()
    }
    fn unlock(&self) -> Result<()> {
        self.file.unlock()
    }
    fn drop_cache(&self) -> Result<()> {
        self.file.drop_cache()
    }
}

/// Of two who open after a recorder has died, the second one comes as a whole before each turn of the
/// first.
#[test]
fn a_run_ends_once_however_two_openings_fall() {
    let mut left = Stage::new(64 << 10, 64 << 10);
    let writer = left.open(1).unwrap();
    let run = left.begin(&writer, "left");
    left.append(&writer, run, &[100]).unwrap();
    writer.disk.kill();
    let mut came = 0;
    for turn in 1..20 {
        let mut stage = left.fork();
        let (disk, world) = stage.process(1);
        let (_, others) = stage.process(1);
        let options = stage.options();
        let acted = Arc::new(Mutex::new(0));
        let act = {
            let (acted, options) = (Arc::clone(&acted), options.clone());
            move || {
                let (engine, _) = Engine::open_in(others.clone(), options.clone()).unwrap();
                engine.close().unwrap();
                *acted.lock().unwrap() += 1;
            }
        };
        let before = Before {
            disk,
            turns: Arc::new(Mutex::new(turn + 1)),
            opened: Arc::default(),
            happens: Arc::new(act),
        };
        let world = World { disk: Arc::new(before), ..world };
        let (engine, _) = Engine::open_in(world, options).unwrap();
        engine.close().unwrap();
        came += *acted.lock().unwrap();
        let mut log = stage.open_log(1).unwrap();
        let records = stage.judge(&mut log);
        stage.ledger.check_ends(&records).unwrap();
        is_fine(&stage);
    }
    assert!(came > 3, "{came} turns");
}

/// A recorder writes its last record and dies before a turn of who opens: whoever finds it dead then ends its
/// run, and does not take what it had not read for the work of somebody else.
#[test]
fn a_run_whose_recorder_dies_while_somebody_opens_is_ended() {
    /// More than there are.
    const TURNS: u64 = 1_000;
    // How many runs were ended, and in which turn it was looked whether their recorder is alive.
    let dies_before = |turn: u64| {
        let mut stage = Stage::new(64 << 10, 64 << 10);
        let writer = stage.open(1).unwrap();
        let run = stage.begin(&writer, "left").unwrap();
        let alive = stage.world.names().into_iter().find(|name| name.starts_with("journal/live/")).unwrap();
        let (engine, recorder) = (writer.engine().clone(), writer.disk.clone());
        let last = move || {
            let chunk = Body::Chunk(Channel::Stdout, b"last".to_vec());
            engine.append(run, None, &[chunk.into()]).unwrap();
            recorder.kill();
        };
        let (disk, world) = stage.process(1);
        let opened: Arc<Mutex<Vec<(u64, String)>>> = Arc::default();
        let before = Before {
            disk,
            turns: Arc::new(Mutex::new(turn + 1)),
            opened: Arc::clone(&opened),
            happens: Arc::new(last),
        };
        let world = World { disk: Arc::new(before), ..world };
        let (engine, report) = Engine::open_in(world, stage.options()).unwrap();
        engine.close().unwrap();
        let opened = opened.lock().unwrap();
        let looked = opened.iter().find(|(_, name)| *name == alive).unwrap();
        (report.interrupted.len(), turn + 1 - looked.0)
    };
    let (ended, looked) = dies_before(TURNS);
    assert!(ended == 0 && looked > 2, "alive, and looked at in turn {looked}");
    for turn in 1..=looked {
        assert_eq!(dies_before(turn).0, 1, "before turn {turn} of {looked}");
    }
}

fn world_of(sim: &SimWorld) -> World {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Time(1_774_138_420_000_000_000)));
    let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(1));
    World { disk: Arc::new(sim.process(1)), clock, entropy }
}

/// A journal whose only batch has these records.
fn journal_with(first: Position, drafts: &[Draft<'_>]) -> SimWorld {
    journal_counting(first, drafts, u32::try_from(drafts.len()).unwrap())
}

/// The same with a header that says there are so many.
fn journal_counting(first: Position, drafts: &[Draft<'_>], count: u32) -> SimWorld {
    let header = SegmentHeader {
        journal: [b'J'; 16],
        segment: 1,
        epoch: 0,
        salt: 77,
        prev_salt: 0,
        first_position: first,
        prev_end: 0,
        prev_footer_len: 0,
        chain: [0; 32],
        born_upto: Position(first.0 - 1),
        capacity: 64 << 10,
        created: Time(0),
        // What a first segment does not begin with was given up.
        lost: if first.0 > 1 { (Position(1), Position(first.0 - 1)) } else { Default::default() },
    };
    let mut bytes = header.encode();
    let body = encode_body(drafts);
    if !drafts.is_empty() {
        let mut batch = BatchHeader {
            codec: format::Codec::None,
            durability: Durability::Durable,
            body_len: u32::try_from(body.len()).unwrap(),
            decoded_len: u32::try_from(body.len()).unwrap(),
            count,
            body_crc: crc32fast::hash(&body),
            first_position: first,
            time: Time(0),
            durable_upto: Position(first.0 - 1),
            body_digest: *blake3::hash(&body).as_bytes(),
            chain: [0; 32],
        };
        batch.chain = batch.expected_chain(&header.chain);
        let at = bytes.len() as u64;
        bytes.extend_from_slice(&batch.encode(&header.site(), at));
        bytes.extend_from_slice(&body);
    }
    let sim = SimWorld::new();
    sim.process(1).create_dir("journal").unwrap();
    sim.write_file(&segment(1), &bytes).unwrap();
    sim
}

fn draft(target: Target, seq: Seq) -> Draft<'static> {
    Draft {
        target,
        seq,
        kind: 99,
        version: 1,
        close: false,
        more: false,
        time: Time(0),
        created: None,
        key: None,
        term: None,
        payload: b"of a later version".into(),
    }
}

#[test]
fn behind_the_last_position_nothing_is_written() {
    let sim = journal_with(Position(u64::MAX - 5), &[]);
    let options = Stage::new(64 << 10, 64 << 10).options();
    let (engine, _) = Engine::open_in(world_of(&sim), options).unwrap();
    let mut positions = Vec::new();
    let refused = loop {
        let name = format!("s{}", positions.len());
        match begin(&engine, &name) {
            Ok(position) => positions.push(position),
            Err(error) => break error,
        }
        assert!(positions.len() < 9, "{positions:?}");
    };
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    assert!(positions.len() > 1 && positions.is_sorted(), "{positions:?}");
    drop(engine);
    let mut log = Log::open_in(&world_of(&sim)).unwrap();
    let (records, damage) = read_all(&mut log).unwrap();
    assert!(damage.iter().all(|d| d.accepted) && records.len() >= positions.len(), "{damage:?}");
    assert_eq!(log.verify(&mut |_| {}).unwrap().verdict, Verdict::Clean);
}

#[test]
fn behind_the_last_sequence_of_a_stream_nothing_is_written() {
    let opens = draft(Target::Open(b"other".to_vec()), Seq(1));
    let sim = journal_with(Position(1), &[opens, draft(Target::Opened, Seq(u64::MAX - 1))]);
    let options = Stage::new(64 << 10, 64 << 10).options();
    let (engine, _) = Engine::open_in(world_of(&sim), options).unwrap();
    let last = engine.append(StreamId(1), None, &line()).unwrap();
    assert_eq!(last.last_seq, Seq(u64::MAX));
    let refused = engine.append(StreamId(1), None, &line()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    assert!(!engine.is_poisoned());
    let mut log = Log::open_in(&world_of(&sim)).unwrap();
    assert_eq!(log.verify(&mut |_| {}).unwrap().verdict, Verdict::Clean);
    assert_eq!(log.durable(), last.last);
}

/// A first segment that begins in the middle: what stood before it is told, unless it was given up.
#[test]
fn what_stood_before_the_first_segment_is_told() {
    let mut stage = Stage::new(64 << 10, 64 << 10);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[20, 30]);
    stage.close(writer);
    stage.world.remove_file(&segment(1)).unwrap();
    let (_, world) = stage.process(1);
    let given_up = Engine::accept_damage(world, &stage.options()).unwrap().unwrap();
    assert_eq!(given_up.from, Position(1));
    let mut log = stage.open_log(1).unwrap();
    let found = log.verify(&mut |_| {}).unwrap();
    let [damage] = found.damage.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (damage.segment, damage.from, damage.to, damage.accepted),
        (1, Position(1), given_up.to, true)
    );
    assert_eq!(found.verdict, Verdict::Clean);
    // The same without a word about it.
    let mut bytes = stage.world.read_file(&segment(1)).unwrap();
    for copy in bytes[..1024].chunks_exact_mut(512) {
        copy[144..160].fill(0);
        let sum = crc32fast::hash(&copy[..508]);
        copy[508..].copy_from_slice(&sum.to_le_bytes());
    }
    stage.world.write_file(&segment(1), &bytes).unwrap();
    let mut log = stage.open_log(1).unwrap();
    let found = log.verify(&mut |_| {}).unwrap();
    assert!(found.verdict == Verdict::Corrupt && found.damage[0].to == given_up.to, "{found:?}");
}

/// What a reader makes of a journal by hand: how many records, and whether it tells of damage.
fn read(sim: &SimWorld) -> (usize, bool) {
    let (records, damage) = read_all(&mut Log::open_in(&world_of(sim)).unwrap()).unwrap();
    (records.len(), !damage.is_empty())
}

#[test]
fn limits_hold_although_checksums_are_right() {
    let opens = || draft(Target::Open(b"other".to_vec()), Seq(1));
    let of_a_mebibyte = |seq| Draft {
        payload: vec![b'x'; format::MAX_PAYLOAD_LEN].into(),
        ..draft(Target::Opened, Seq(seq))
    };
    let with =
        |more: u64| -> Vec<_> { [opens()].into_iter().chain((2..2 + more).map(of_a_mebibyte)).collect() };
    // One record for each, be its kind known or not; and nothing at all of a batch beyond its limit.
    assert_eq!(read(&journal_with(Position(1), &with(7))), (8, false));
    assert_eq!(read(&journal_with(Position(1), &with(8))), (0, false), "as if it had been cut short");
    assert_eq!(read(&journal_counting(Position(1), &with(2), 2)), (0, true), "bytes behind the records");
    assert_eq!(read(&journal_counting(Position(1), &with(2), 4)), (0, true), "a record is missing");
}

#[test]
fn a_footer_beyond_its_limit_is_none_although_its_checksum_is_right() {
    let site = format::Site { journal: [b'J'; 16], segment: 1, salt: 77 };
    let head = |len: usize| {
        let mut bytes =
            [b"RWF1".as_slice(), &[0; 4], &u32::try_from(len).unwrap().to_le_bytes(), &[0; 8]].concat();
        let salts = [1_u64, 77, 4096].map(u64::to_le_bytes).concat();
        let crc = crc32fast::hash(&[site.journal.as_slice(), &salts, &bytes].concat());
        bytes.extend(crc.to_le_bytes());
        bytes
    };
    let decode = |len| Footer::decode_header(&head(len), &site, 4096);
    assert_eq!(decode(format::MAX_FOOTER_LEN).map(|(len, _)| len as usize), Ok(format::MAX_FOOTER_LEN));
    for len in [format::MAX_FOOTER_LEN + 1, u32::MAX as usize] {
        assert!(matches!(decode(len), Err(Flaw::Limit(_))), "{len}");
    }
}

fn begin(engine: &Engine, task: &str) -> Result<Position> {
    let request = crate::format::request();
    let name =
        runwal::record::RunName { task: runwal::record::Id::new(task).unwrap(), ..request.name.clone() };
    let request = runwal::record::RunPrepared { name, ..request };
    engine.begin_run(&request, None, Conditions::none(), &[]).map(|receipt| receipt.last)
}
