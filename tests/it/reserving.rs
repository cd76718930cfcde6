//! Room that is made before it is needed.

use runwal::disk::sim::{Choices, Fault, SimWorld};
use runwal::testing::stage::{Stage, Writer};
use runwal::{ErrorKind, Log, Verdict};
use std::collections::BTreeMap;

const SEGMENT: u64 = 8 << 10;

fn journal() -> (Stage, Writer) {
    let mut stage = Stage::new(2 << 10, SEGMENT);
    let writer = stage.open(1).unwrap();
    (stage, writer)
}

fn is_fine(stage: &Stage) {
    assert!(stage.problems.is_empty(), "{:?}", stage.problems);
}

/// The files of the journal that are segments, or are to be, by length.
fn lengths(world: &SimWorld) -> BTreeMap<String, u64> {
    let mut lengths = BTreeMap::new();
    world.lengths(&mut |name, len| {
        let is_room = name.contains(".seg") || name.contains("/spare-");
        if is_room {
            lengths.insert(name.to_owned(), len);
        }
    });
    lengths
}

fn spares(world: &SimWorld) -> usize {
    lengths(world).keys().filter(|name| name.contains("/spare-")).count()
}

/// How many segments are ready or begun with.
fn ready(world: &SimWorld) -> usize {
    lengths(world).values().filter(|len| **len == SEGMENT).count()
}

/// A journal in whose newest segment so much room is ready, written and synced, and a reader of it.
fn with_room(room: u64) -> (Stage, Writer, Log) {
    let mut stage = Stage::new(2 << 10, room);
    let writer = stage.open(1).unwrap();
    let run = stage.begin(&writer, "a");
    writer.engine().reserve(room).unwrap();
    for _ in 0..8 {
        stage.append(&writer, run, &[700]);
    }
    assert_eq!(lengths(&stage.world).values().last(), Some(&room));
    let log = stage.open_log(1).unwrap();
    (stage, writer, log)
}

/// Whoever has read to the end asks whether anything stands behind it. A mark that counts says so for all of the
/// room that is ready; what somebody put there who is no writer is for those to find who verify.
#[test]
fn room_that_is_ready_is_not_looked_through_by_whoever_reads() {
    let looks = |room: u64| {
        let (stage, _writer, mut log) = with_room(room);
        let before = stage.world.looks();
        assert_eq!(log.is_torn().unwrap(), Some(false));
        stage.world.looks() - before
    };
    assert_eq!(looks(64 << 10), looks(8 << 20));
    let (mut stage, writer, mut log) = with_room(1 << 20);
    stage.close(writer);
    let last = lengths(&stage.world).into_keys().rfind(|name| name.trim_end_matches(".seg") != name).unwrap();
    let mut bytes = stage.world.read_file(&last).unwrap();
    let (used, far) = (bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1, bytes.len() - 9);
    bytes[far] = b'x';
    stage.world.write_file(&last, &bytes).unwrap();
    assert_eq!(log.is_torn().unwrap(), Some(false));
    assert_eq!(log.verify(&mut |_| {}).unwrap().verdict, Verdict::Torn);
    // A mark that does not count says nothing: of a machine that was started anew, of a copy, and where somebody
    // died who had begun to write.
    let torn = |mut stage: Stage| stage.open_log(1).unwrap().is_torn().unwrap();
    let mut started = stage.fork();
    started.restart(true);
    assert_eq!(torn(started), Some(true));
    assert_eq!(torn(stage.on(stage.world.copy_to_new_inodes())), Some(true));
    let mut killed = stage.fork();
    let writer = killed.open(1).unwrap();
    // The one write before that of the batch is that of the busy word.
    killed.world.fail_at(killed.world.operations() + 2, Fault::Kill);
    killed.begin(&writer, "b");
    assert!(!writer.disk.is_alive());
    assert_eq!(torn(killed), Some(true));
    // One that stands where the next batch would is in the way of whoever goes on.
    bytes[used + 8] = b'x';
    stage.world.write_file(&last, &bytes).unwrap();
    assert_eq!(log.is_torn().unwrap(), Some(true));
}

#[test]
fn what_is_reserved_is_used_before_any_file_grows() {
    let (mut stage, writer) = journal();
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[100]);
    let room = 4 * SEGMENT;
    writer.engine().reserve(room).unwrap();
    let reserved = lengths(&stage.world);
    let (count, total) = (spares(&stage.world), reserved.values().sum::<u64>());
    assert!(total >= room, "{reserved:?}");
    // An index stands behind what a segment was meant to have.
    let index = 200 * reserved.len() as u64;
    assert!(reserved.values().filter(|len| **len == SEGMENT).count() == count + 1, "one is begun with");
    // Twice the same makes nothing, a little more makes one.
    writer.engine().reserve(room - SEGMENT / 2).unwrap();
    assert_eq!(lengths(&stage.world), reserved);
    let mut appended = 0;
    while appended + 2_000 < room - SEGMENT / 2 {
        stage.append(&writer, run, &[400]);
        appended += 400 + 120;
        let now = lengths(&stage.world);
        let grown = now.values().sum::<u64>() - total;
        assert!(now.len() == reserved.len() && grown <= index, "after {appended}: {now:?}");
    }
    assert!(spares(&stage.world) < count);
    writer.engine().reserve(room).unwrap();
    assert!(lengths(&stage.world).len() > reserved.len());
    // Another process goes on in what was reserved.
    stage.close(writer);
    let before = spares(&stage.world);
    let other = stage.open(1).unwrap();
    let run = stage.begin(&other, "b");
    for _ in 0..30 {
        stage.append(&other, run, &[1_000]);
    }
    assert!(spares(&stage.world) < before);
    is_fine(&stage);
}

#[test]
fn a_reservation_that_fails_or_is_cut_off_costs_nothing() {
    let (mut stage, writer) = journal();
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[300]);
    stage.close(writer);
    let reserve = |stage: &mut Stage| {
        let writer = stage.open(1)?;
        Some((writer.engine().reserve(3 * SEGMENT).map_err(|error| error.kind()), writer))
    };
    let mut whole = stage.fork();
    let before = whole.world.operations();
    assert!(matches!(reserve(&mut whole), Some((Ok(()), _))));
    let wanted = ready(&whole.world);
    let (mut judged, mut full) = (0, 0);
    for n in before + 1..=whole.world.operations() {
        for fault in [Fault::Kill, Fault::PowerCut, Fault::once(28), Fault::sticky(28), Fault::once(5)] {
            let mut cut = stage.fork();
            cut.expect_faults(true);
            cut.world.fail_at(n, fault);
            let reserved = reserve(&mut cut);
            cut.world.clear_faults();
            if let Some((Ok(()), _)) = &reserved {
                assert_eq!(ready(&cut.world), wanted, "{fault:?} at {n}: {:?}", lengths(&cut.world));
            }
            if let Some((Err(kind), writer)) = &reserved {
                full += u32::from(*kind == ErrorKind::Full);
                // What was appended before is not concerned, and unless the roll failed one goes on.
                if !writer.engine().is_poisoned() {
                    stage_appends(&mut cut, writer);
                }
            }
            drop(reserved);
            cut.expect_faults(false);
            let images: Vec<_> = match fault {
                Fault::PowerCut => Choices::new(&cut.world, 4, 4, 1).map(|image| image.world()).collect(),
                _ => vec![cut.world.fork()],
            };
            for image in images {
                let mut after = cut.on(image);
                let writer = after.open(1).unwrap();
                after.tick(&writer);
                // Nothing asked for begins nothing, though there may be spares and a small segment.
                let before = lengths(&after.world);
                writer.engine().reserve(0).unwrap();
                assert_eq!(lengths(&after.world), before, "{fault:?} at {n}");
                writer.engine().reserve(3 * SEGMENT).unwrap();
                stage_appends(&mut after, &writer);
                after.close(writer);
                after.look(1);
                let left = after.world.names().into_iter().filter(|name| name.contains("/tmp-")).count();
                assert!(left == 0, "{fault:?} at {n}: {:?}", after.world.names());
                assert!(after.problems.is_empty(), "{fault:?} at {n}: {:?}", after.problems);
                judged += 1;
            }
        }
    }
    assert!(judged > 200 && full > 10, "{judged} {full}");
}

fn stage_appends(stage: &mut Stage, writer: &Writer) {
    let run = stage.begin(writer, "later");
    for _ in 0..12 {
        stage.append(writer, run, &[900]);
    }
}
