//! The damage matrix. `RUNWAL_DAMAGE` is the step over bits and lengths: 1 takes every one (minutes
//! with optimisation, hours without).

use runwal::disk::sim::{Choices, Fault};
use runwal::engine::Engine;
use runwal::testing::damage::{Specimen, matrix, page, table};
use runwal::testing::stage::{Stage, read_all};
use runwal::{Damage, Verdict};

#[test]
fn no_damage_goes_without_a_word() {
    let Some(step) = std::env::var("RUNWAL_DAMAGE").ok().and_then(|step| step.parse().ok()) else {
        // The same checks stand behind the published page.
        let page = page().expect("no complaint");
        let published = include_str!("../../src/docs/verdicts.md");
        assert!(page == published, "src/docs/verdicts.md is not what `--example verdicts` prints:\n{page}");
        return;
    };
    let (found, complaints) = matrix(&Specimen::new().expect("a specimen"), step);
    println!("{}", table(&found));
    for complaint in complaints.iter().take(200) {
        println!("  {complaint}");
    }
    assert!(complaints.is_empty(), "{} complaints, the first ones listed above", complaints.len());
}

#[test]
fn a_run_whose_name_is_gone_does_not_stop_writing() {
    let mut stage = Stage::new(1400, 1400);
    let writer = stage.open(1).expect("opened");
    let run = stage.begin(&writer, "left");
    for len in [300, 400, 500] {
        stage.append(&writer, run, &[len]).expect("appended");
    }
    writer.disk.kill();
    drop(writer);
    stage.world.remove_file("journal/0000000001.seg").expect("removed");
    let writer = stage.open(1).expect("opened all the same");
    stage.tick(&writer);
    stage.close(writer);
    assert!(stage.problems.is_empty(), "{:?}", stage.problems);
}

#[test]
fn giving_up_survives_a_crash_at_every_operation() {
    let mut stage = Stage::new(64 << 10, 64 << 10);
    let writer = stage.open(1).expect("opened");
    let run = stage.begin(&writer, "a");
    stage.append(&writer, run, &[100]).expect("appended");
    stage.finish(&writer, run);
    stage.close(writer);
    let mut bytes = stage.world.read_file("journal/0000000001.seg").expect("read");
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    stage.world.write_file("journal/0000000001.seg", &bytes).expect("damaged");
    // The mark is never synced; without it nothing tells rot of the last batch from a torn write.
    stage.world.volatile().iter().for_each(|unit| stage.world.write_back(unit));
    let give_up = |stage: &mut Stage| {
        let (_, world) = stage.process(1);
        Engine::accept_damage(world, &stage.options())
    };
    let mut whole = stage.fork();
    let before = whole.world.operations();
    assert!(give_up(&mut whole).expect("given up").is_some());
    let mut judged = 0;
    for n in before + 1..=whole.world.operations() {
        for fault in [Fault::Kill, Fault::PowerCut, Fault::once(5)] {
            let mut cut = stage.fork();
            cut.world.fail_at(n, fault);
            let _ = give_up(&mut cut);
            cut.world.clear_faults();
            let images: Vec<_> = match fault {
                Fault::PowerCut => Choices::new(&cut.world, 4, 4, 1).map(|image| image.world()).collect(),
                _ => vec![cut.world.fork()],
            };
            for image in images {
                let mut after = cut.on(image);
                give_up(&mut after).expect("given up again, or already");
                let writer = after.open(1).expect("opened afterwards");
                after.tick(&writer);
                after.close(writer);
                let mut log = after.open_log(1).expect("read");
                let found = log.verify(&mut |_| {}).expect("verified");
                assert!(found.verdict == Verdict::Clean, "{n} {fault:?}: {found:?}");
                assert!(!found.damage.is_empty() && found.damage.iter().all(|d| d.accepted), "{found:?}");
                assert!(after.problems.is_empty(), "{n} {fault:?}: {:?}", after.problems);
                judged += 1;
            }
        }
    }
    println!("{judged} states judged");
}

/// Files with the highest numbers a name can have: nothing counts beyond them.
#[test]
fn a_file_with_the_last_number_stops_nobody_for_good() {
    for (number, is_segment) in [(u64::MAX, false), (u64::MAX >> 1, true)] {
        let mut stage = Stage::new(1400, 1400);
        let writer = stage.open(1).expect("opened");
        stage.tick(&writer);
        stage.close(writer);
        let name = format!("journal/{number:010}.seg");
        stage.world.write_file(&name, &[7; 2_000]).expect("planted");
        let (_, world) = stage.process(1);
        assert_eq!(Engine::accept_damage(world, &stage.options()).is_err(), is_segment, "{name}");
        stage.look(1);
        stage.world.remove_file(&name).expect("removed");
        let writer = stage.open(1).expect("opened when it is gone");
        stage.tick(&writer);
        stage.close(writer);
        stage.look(1);
        assert!(stage.problems.is_empty(), "{name}: {:?}", stage.problems);
    }
}

/// A block of the disk, or a whole batch, that was written in another's place: nothing of it is read there,
/// and what stood there is told to be lost.
#[test]
fn what_was_written_in_another_place_is_not_read_there() {
    let mut stage = Stage::new(2600, 2600);
    let writer = stage.open(1).expect("opened");
    let run = stage.begin(&writer, "a");
    for _ in 0..12 {
        stage.append(&writer, run, &[300]).expect("appended");
    }
    stage.close(writer);
    stage.world.volatile().iter().for_each(|unit| stage.world.write_back(unit));
    let mut log = stage.open_log(1).expect("read");
    let written = stage.judge(&mut log);
    let segments: Vec<_> = stage.world.names().into_iter().filter(|name| name.contains(".seg")).collect();
    assert!(segments.len() >= 3, "{segments:?}");
    let mut pieces = Vec::new();
    for name in &segments {
        let bytes = stage.world.read_file(name).expect("read");
        let batches = (1024..bytes.len() - 4).filter(|at| bytes[*at..].starts_with(b"RWB1"));
        let starts: Vec<_> = batches.chain([bytes.len()]).collect();
        pieces.extend((0..bytes.len() / 512).map(|n| (name, n * 512, bytes[n * 512..][..512].to_vec())));
        pieces.extend(starts.windows(2).map(|w| (name, w[0], bytes[w[0]..w[1]].to_vec())));
    }
    let (mut judged, mut lost) = (0, 0);
    for (from, at, piece) in &pieces {
        for (to, there, before) in &pieces {
            let mut bytes = stage.world.read_file(to).expect("read");
            if before.len() != piece.len() || before == piece {
                continue;
            }
            bytes[*there..there + piece.len()].copy_from_slice(piece);
            let case = format!("{} bytes from {at} of {from} to {there} of {to}", piece.len());
            let mut after = stage.fork();
            after.world.write_file(to, &bytes).expect("written");
            let mut log = after.open_log(1).expect("read");
            let (records, damage) = read_all(&mut log).expect("read");
            assert!(records.iter().all(|record| written.contains(record)), "{case}: {records:?}");
            let gone = written.iter().filter(|record| !records.contains(record));
            for record in gone {
                let told = |d: &Damage| (d.from..=d.to).contains(&record.position);
                assert!(damage.iter().any(told), "{case}: {} is gone without a word", record.position);
                lost += 1;
            }
            judged += 1;
        }
    }
    assert!(judged > 300 && lost > judged / 2, "{judged} judged, {lost} lost");
}
