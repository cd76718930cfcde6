//! Opening by what the cache has of the segment that is written to: it saves a look at the records, and
//! changes nothing else.

use runwal::disk::sim::SimWorld;
use runwal::engine::{Conditions, Engine, Log, Options, Report};
use runwal::format::{self, Flaw, Footer, HeaderBlock};
use runwal::position::{Position, Seq, StreamId};
use runwal::record::{Body, Channel};
use runwal::testing::stage::{Stage, Writer, read_all};
use runwal::{ErrorKind, Verdict};

const SEGMENT: &str = "journal/0000000001.seg";
const INDEX: &str = "cache/index/0000000001.idx";

/// A journal of one segment with runs, ticks and keys; its index is kept.
fn journal() -> (Stage, Writer) {
    let mut stage = Stage::new(64 << 10, 64 << 10).keeping_indexes();
    let writer = stage.open(1).unwrap();
    for n in 0..6_usize {
        let run = stage.begin(&writer, &format!("task-{n}"));
        stage.append(&writer, run, &[300 + 10 * n, 20, 7]);
        stage.append_keyed(&writer, run, 40);
        stage.tick(&writer);
        stage.finish(&writer, run);
    }
    (stage, writer)
}

fn kept(world: &SimWorld) -> Option<Footer> {
    let site = HeaderBlock::decode(&world.read_file(SEGMENT).unwrap()).unwrap().header.site();
    let bytes = world.read_file(INDEX).ok()?;
    let (len, crc) = Footer::decode_header(&bytes, &site, 0).ok()?;
    Footer::decode_body(bytes[format::FOOTER_HEADER_LEN..].get(..len as usize)?, crc).ok()
}

fn flip(world: &SimWorld, at: usize) {
    let mut bytes = world.read_file(SEGMENT).unwrap();
    bytes[at] ^= 1;
    world.write_file(SEGMENT, &bytes).unwrap();
}

fn is_fine(stage: &Stage) {
    assert!(stage.problems.is_empty(), "{:?}", stage.problems);
}

#[test]
fn what_is_kept_of_a_segment_is_what_a_scan_of_it_finds() {
    let (mut stage, writer) = journal();
    stage.close(writer);
    let by_writing = kept(&stage.world).unwrap();
    assert_eq!(by_writing.last_position, stage.open_log(1).unwrap().durable(), "up to the end");
    stage.world.remove_file(INDEX).unwrap();
    let writer = stage.open(1).unwrap();
    stage.close(writer);
    let by_scanning = kept(&stage.world).unwrap();
    assert!(by_writing.names.len() == 7 && by_writing.keys.len() == 6 && by_writing.streams.len() == 7);
    assert_eq!(by_writing, by_scanning);
    // Begun from what is kept, and gone on with.
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "later");
    stage.append(&writer, run, &[2_000]);
    stage.append_keyed(&writer, run, 1_000);
    stage.finish(&writer, run);
    stage.close(writer);
    let on_and_on = kept(&stage.world).unwrap();
    assert!(on_and_on.last_position > by_writing.last_position);
    stage.world.remove_file(INDEX).unwrap();
    let writer = stage.open(1).unwrap();
    stage.close(writer);
    assert_eq!(on_and_on, kept(&stage.world).unwrap());
    stage.retry_keys(1);
    is_fine(&stage);
}

#[test]
fn what_was_kept_is_not_looked_at_again_but_by_who_reads_it() {
    let (mut stage, writer) = journal();
    stage.close(writer);
    flip(&stage.world, 1_024 + format::BATCH_HEADER_LEN + 30);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "goes-on");
    stage.finish(&writer, run);
    is_fine(&stage);
    let mut log = writer.engine().log().unwrap();
    let (_, damage) = read_all(&mut log).unwrap();
    assert_eq!((damage.len(), damage[0].from), (1, Position(1)));
    assert_eq!(log.verify(&mut |_| {}).unwrap().verdict, Verdict::Corrupt);
    stage.close(writer);
    // Without the cache, all is looked at.
    stage.world.remove_file(INDEX).unwrap();
    let (_, world) = stage.process(1);
    let refused = Engine::open_in(world, stage.options()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
}

#[test]
fn what_was_written_since_is_looked_at() {
    let (mut stage, writer) = journal();
    let run = stage.begin(&writer, "last");
    stage.append(&writer, run, &[50]).unwrap();
    let before = kept(&stage.world).unwrap().last_position;
    assert!(before < writer.engine().log().unwrap().durable());
    writer.disk.kill();
    drop(writer);
    let bytes = stage.world.read_file(SEGMENT).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    flip(&stage.world, last);
    let (_, world) = stage.process(1);
    let refused = Engine::open_in(world, stage.options()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    flip(&stage.world, last);
    let writer = stage.open(1).unwrap();
    stage.look(1);
    stage.close(writer);
    is_fine(&stage);
}

#[test]
fn an_index_that_does_not_fit_is_as_if_there_were_none() {
    let (mut stage, writer) = journal();
    stage.close(writer);
    let site = HeaderBlock::decode(&stage.world.read_file(SEGMENT).unwrap()).unwrap().header.site();
    let whole = kept(&stage.world).unwrap();
    let bytes = whole.encode(&site, 0).unwrap();
    let changed = |change: &dyn Fn(&mut Footer)| {
        let mut other = whole.clone();
        change(&mut other);
        other.encode(&site, 0).unwrap()
    };
    let (other, writer) = journal_of(77);
    drop(writer);
    let cases = [
        ("nothing", Vec::new()),
        ("cut short", bytes[..bytes.len() - 1].to_vec()),
        ("half of it over an earlier one", [&bytes[..bytes.len() / 2], &vec![7; bytes.len()]].concat()),
        ("of another journal", other.world.read_file(INDEX).unwrap()),
        ("of another chain", changed(&|index| index.chain[3] ^= 1)),
        ("up to another position", changed(&|index| index.last_position.0 -= 1)),
        ("from another position on", changed(&|index| index.first_position.0 += 1)),
        ("with no batch", changed(&|index| index.streams.clear())),
        (
            "with a batch where there is none",
            changed(&|index| {
                index.streams.values_mut().for_each(|entry| entry.batches.push((60_000, Seq(99))));
            }),
        ),
        (
            "with a batch behind the file",
            changed(&|index| {
                index.streams.values_mut().for_each(|entry| entry.batches.push((u32::MAX, Seq(99))));
            }),
        ),
    ];
    for (what, bytes) in cases {
        let mut stage = stage.fork();
        stage.world.write_file(INDEX, &bytes).unwrap();
        stage.look(1);
        stage.retry_keys(1);
        let writer = stage.open(1).unwrap();
        let run = stage.begin(&writer, "more");
        stage.append(&writer, run, &[10]).unwrap();
        stage.close(writer);
        stage.look(2);
        assert!(stage.problems.is_empty(), "{what}: {:?}", stage.problems);
    }
    assert_eq!(Footer::decode_header(&[], &site, 0), Err(Flaw::Absent));
}

#[test]
fn an_index_is_kept_over_a_longer_one() {
    let (mut stage, writer) = journal();
    stage.close(writer);
    let whole = kept(&stage.world).unwrap();
    let len = stage.world.read_file(INDEX).unwrap().len();
    stage.world.write_file(INDEX, &vec![7; 3 * len]).unwrap();
    let writer = stage.open(1).unwrap();
    stage.close(writer);
    assert_eq!(stage.world.read_file(INDEX).unwrap().len(), 3 * len);
    assert_eq!(kept(&stage.world).unwrap(), whole);
    // And is believed: what it was made of is not looked at again.
    flip(&stage.world, 1_024 + format::BATCH_HEADER_LEN + 30);
    let writer = stage.open(1).unwrap();
    stage.close(writer);
    is_fine(&stage);
}

/// The batches of a copy can stand in the same places and yet be others.
#[test]
fn an_index_of_a_copy_that_went_another_way_is_as_if_there_were_none() {
    let (mut stage, writer) = journal();
    stage.close(writer);
    let gone_on = |task: &str| {
        let mut stage = stage.fork();
        let writer = stage.open(1).unwrap();
        let run = stage.begin(&writer, task);
        stage.finish(&writer, run);
        stage.close(writer);
        stage
    };
    let (mut one, other) = (gone_on("one"), gone_on("two"));
    let places = |stage: &Stage| {
        let kept = kept(&stage.world).unwrap();
        kept.streams.into_values().flat_map(|entry| entry.batches).collect::<Vec<_>>()
    };
    assert_eq!(places(&one), places(&other));
    one.world.write_file(INDEX, &other.world.read_file(INDEX).unwrap()).unwrap();
    let mut log = one.open_log(1).unwrap();
    for run in log.runs().unwrap() {
        assert_eq!(log.find(&run.name.to_string()).unwrap(), Some(run.stream), "{}", run.name);
    }
    one.look(1);
    is_fine(&one);
}

fn journal_of(seed: u64) -> (Stage, Writer) {
    let mut stage = Stage::new(64 << 10, 64 << 10).keeping_indexes().seeded(seed);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[1_000, 1_000]);
    (stage, writer)
}

/// What stands behind the end that is told, for one that lost the mark's last pages, is not shown by an
/// index that knows of it.
#[test]
fn an_index_shows_nothing_behind_the_mark() {
    let (mut stage, writer) = journal();
    let mark = stage.world.read_file("journal/mark").unwrap();
    let told = writer.engine().log().unwrap().durable();
    let run = stage.begin(&writer, "behind");
    stage.append(&writer, run, &[3_000]).unwrap();
    assert!(kept(&stage.world).unwrap().last_position > told);
    stage.world.write_file("journal/mark", &mark).unwrap();
    let shown = stage.open_log(1).unwrap().durable();
    assert_eq!(shown, told);
    writer.disk.kill();
    drop(writer);
}

#[test]
fn an_index_goes_when_its_segment_has_a_footer() {
    let mut stage = Stage::new(4 << 10, 4 << 10).keeping_indexes();
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    for _ in 0..40 {
        stage.append(&writer, run, &[300]).unwrap();
    }
    stage.close(writer);
    let names = stage.world.names();
    let kept: Vec<_> = names.iter().filter(|name| name.starts_with("cache/index/")).collect();
    let segments = names.iter().filter(|name| name.starts_with("journal/00")).count();
    assert!(segments > 3 && kept.len() <= 1, "{segments} segments, {kept:?}");
    is_fine(&stage);
}

const NAMES: &str = "cache/names";

/// Adds runs until there are so many segments.
fn grow(stage: &mut Stage, writer: &Writer, segments: u64) {
    while stage.world.read_file(&format!("journal/{segments:010}.seg")).is_err() {
        let run = stage.begin(writer, "task");
        stage.append(writer, run, &[900]);
        stage.finish(writer, run);
    }
}

/// How many looks at the disk it takes to open a journal of so many segments that was closed, to open it for
/// reading alone, and to begin a run in it.
fn looks_of(segments: u64) -> [u64; 3] {
    let mut stage = Stage::new(4 << 10, 4 << 10);
    let writer = stage.open(1).unwrap();
    grow(&mut stage, &writer, segments);
    stage.close(writer);
    // What opening learns of names is kept for the next time.
    let writer = stage.open(1).unwrap();
    stage.begin(&writer, "before").unwrap();
    stage.close(writer);
    let before = stage.world.looks();
    let (_, world) = stage.process(1);
    drop(Log::open_in(&world).unwrap());
    let reading = stage.world.looks();
    let writer = stage.open(1).unwrap();
    let opened = stage.world.looks();
    stage.begin(&writer, "after").unwrap();
    let looks = [reading - before, opened - reading, stage.world.looks() - opened];
    is_fine(&stage);
    looks
}

#[test]
fn opening_and_beginning_a_run_cost_the_same_however_long_the_journal_is() {
    let (short, long) = (looks_of(6), looks_of(60));
    for (what, short, long) in [("to read", 0), ("to write", 1), ("to begin a run", 2)]
        .map(|(what, nth)| (what, short[nth], long[nth]))
    {
        assert!(long <= short + 4, "{what}: {short} looks with 6 segments, {long} with 60");
    }
}

/// A journal of many short segments, whose names the cache has up to somewhere.
fn long_journal() -> Stage {
    let mut stage = Stage::new(2 << 10, 8 << 10);
    let writer = stage.open(1).unwrap();
    grow(&mut stage, &writer, 24);
    stage.close(writer);
    let writer = stage.open(1).unwrap();
    grow(&mut stage, &writer, 30);
    stage.close(writer);
    stage
}

#[test]
fn the_names_that_are_kept_are_those_of_the_journal_or_are_not_believed() {
    let mut stage = long_journal();
    let kept = stage.world.read_file(NAMES).unwrap();
    let runs = stage.open_log(1).unwrap().runs().unwrap();
    assert!(runs.len() > 100 && kept.len() > 16 * 80, "{} {}", runs.len(), kept.len());
    // Right in itself, without some of the names, and of something else.
    let other = |at: usize| {
        let mut bytes = kept[..kept.len() - 16 * 50].to_vec();
        bytes[at] ^= 1;
        let crc = crc32fast::hash(&bytes[12..]).to_le_bytes();
        bytes[8..12].copy_from_slice(&crc);
        bytes
    };
    let mut flipped = kept.clone();
    flipped[100] ^= 1;
    for (what, bytes) in [
        ("as it is", kept.clone()),
        ("flipped", flipped),
        ("cut", kept[..kept.len() - 16].to_vec()),
        ("of another journal", other(12)),
        ("of a copy that went another way", other(40)),
        ("nothing", Vec::new()),
    ] {
        stage.world.write_file(NAMES, &bytes).unwrap();
        let mut log = stage.open_log(1).unwrap();
        for run in &runs {
            assert_eq!(log.find(&run.name.to_string()).unwrap(), Some(run.stream), "{what}: {}", run.name);
        }
        assert_eq!(log.find("task/none").unwrap(), None, "{what}");
        assert!(stage.world.read_file(NAMES).unwrap() == bytes, "{what}: a reader writes nothing");
        // A writer, whose first run looks for its name, keeps what it found where that was much.
        let mut fork = stage.fork();
        let writer = fork.open(1).unwrap();
        fork.begin(&writer, "another").unwrap();
        fork.close(writer);
        let after = fork.world.read_file(NAMES).unwrap();
        assert_eq!(after == bytes, what == "as it is", "{what}");
        is_fine(&fork);
    }
    is_fine(&stage);
}

#[test]
fn names_of_a_segment_that_is_missing_are_not_thought_to_be_all() {
    let mut stage = long_journal();
    stage.world.remove_file(NAMES).unwrap();
    let missing = "journal/0000000007.seg";
    let bytes = stage.world.read_file(missing).unwrap();
    let runs = stage.open_log(1).unwrap().runs().unwrap();
    stage.world.remove_file(missing).unwrap();
    let mut fork = stage.fork();
    let writer = fork.open(1).unwrap();
    fork.begin(&writer, "another").unwrap();
    fork.close(writer);
    assert!(fork.world.read_file(NAMES).is_err(), "nothing was kept");
    // It is back.
    fork.world.write_file(missing, &bytes).unwrap();
    let mut log = fork.open_log(1).unwrap();
    for run in &runs {
        assert_eq!(log.find(&run.name.to_string()).unwrap(), Some(run.stream));
    }
}

/// A journal with so many runs whose recorder died. The records of all of them stand in the same batches.
fn died_together(runs: u64, batches: u64) -> Stage {
    let mut stage = Stage::new(4 << 20, 4 << 20);
    let writer = stage.open(1).unwrap();
    let streams: Vec<_> = (0..runs).map(|n| stage.begin(&writer, &format!("task-{n}")).unwrap()).collect();
    for _ in 0..batches {
        let line = || Body::Chunk(Channel::Stdout, b"went on\n".to_vec()).into();
        let hand_in =
            |stream: &StreamId| writer.engine().submit(*stream, Conditions::none(), &[line()]).unwrap();
        let tickets: Vec<_> = streams.iter().map(hand_in).collect();
        tickets.into_iter().for_each(|ticket| drop(ticket.wait().unwrap()));
    }
    let found = stage.open_log(1).unwrap().info().unwrap();
    assert!(found.batches < batches + 2 * runs + 8, "all of a round in one: {found:?}");
    writer.disk.kill();
    stage
}

/// Opens it, with files where that is said; what that gives, and how often the disk was looked at.
fn open_counted(stage: &mut Stage, publish: bool) -> (Result<Report, runwal::Error>, u64) {
    let before = stage.world.looks();
    let (_, world) = stage.process(1);
    let opened = Engine::open_in(world, Options { publish, ..stage.options() });
    let looks = stage.world.looks() - before;
    let report = opened.map(|(engine, report)| {
        engine.close().unwrap();
        report
    });
    (report, looks)
}

/// The files of all runs have all that was printed.
fn have_printed(stage: &Stage, runs: u64, batches: u64) -> bool {
    let printed = b"went on\n".repeat(usize::try_from(batches).unwrap());
    let logs: Vec<_> = stage.world.names().into_iter().filter(|name| name.ends_with("/stdout.log")).collect();
    logs.len() as u64 == runs
        && logs.iter().all(|log| stage.world.read_file(log).unwrap().ends_with(&printed))
}

#[test]
fn a_run_more_that_died_costs_less_than_a_look_at_each_batch() {
    const BATCHES: u64 = 300;
    let [few, many] = [4, 28].map(|runs| {
        let mut stage = died_together(runs, BATCHES);
        let (report, looks) = open_counted(&mut stage, true);
        let report = report.unwrap();
        assert_eq!((report.interrupted.len() as u64, report.problems), (runs, Vec::new()));
        assert!(report.rewritten_files >= 2 * runs && have_printed(&stage, runs, BATCHES));
        looks
    });
    assert!(few > 2 * BATCHES, "{few}");
    assert!(many - few < 24 * BATCHES, "{few} looks for 4 runs, {many} for 28");
}

#[test]
fn more_runs_than_are_gone_through_at_once_are_all_ended() {
    let mut stage = died_together(70, 3);
    let report = open_counted(&mut stage, true).0.unwrap();
    assert_eq!((report.interrupted.len(), report.problems), (70, Vec::new()));
    assert!(have_printed(&stage, 70, 3));
    assert_eq!(open_counted(&mut stage, true).0.unwrap().interrupted.len(), 0);
}

#[test]
fn a_batch_that_cannot_be_read_while_files_are_repaired_stops_no_opening() {
    const EIO: i32 = 5;
    let (runs, batches) = (5, 12);
    let mut stage = died_together(runs, batches);
    assert_eq!(open_counted(&mut stage, false).0.unwrap().interrupted.len() as u64, runs);
    // What is left to be done is the files, after a few looks more at how far the journal goes.
    let before = open_counted(&mut stage.fork(), false).1;
    let all = open_counted(&mut stage.fork(), true).1;
    for look in before + 8..all {
        let mut stage = stage.fork();
        stage.world.fail_look_at(stage.world.looks() + look, EIO, false);
        let (report, _) = open_counted(&mut stage, true);
        let report = report.unwrap_or_else(|error| panic!("look {look} of {all}: {error}"));
        assert!(!report.problems.is_empty() || have_printed(&stage, runs, batches), "look {look}");
        stage.world.clear_faults();
        let report = open_counted(&mut stage, true).0.unwrap();
        assert_eq!(report.problems, Vec::<String>::new(), "look {look}");
        assert!(have_printed(&stage, runs, batches), "look {look}");
    }
}
