//! A journal's directory, damaged in any way: nothing panics, nothing is shown that nobody wrote, what
//! was there and is not shown is told, and opening for writing goes on or refuses, twice the same.

use crate::journals::{Damage, MARK, ORIGINALS, damage};
use arbitrary::Unstructured;
use runwal::disk::sim::{Fate, SimWorld};
use runwal::engine::{Engine, Log};
use runwal::record::Record;
use runwal::testing::stage::{Stage, Writer, read_all};
use runwal::{Error, ErrorKind, Verdict, Verification};
use std::collections::BTreeMap;

/// Where the damaged directory is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    InPlace,
    Rebooted,
    Copied,
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(choice) = input.arbitrary::<u8>() else { return };
    let setting = [Setting::InPlace, Setting::Rebooted, Setting::Copied][usize::from(choice % 3)];
    let mut files = ORIGINALS.files.clone();
    let Ok(done) = damage(&mut input, &mut files) else { return };
    let world = ORIGINALS.machine(&files);
    let world = match setting {
        Setting::InPlace => world,
        Setting::Rebooted => world.power_cut(&mut |_| Fate::New),
        Setting::Copied => world.copy_to_new_inodes(),
    };
    examine(ORIGINALS.stage.on(world), setting, &done);
}

/// What a reader was shown and told.
#[derive(Debug, PartialEq)]
struct Seen {
    records: Vec<Record>,
    /// First and last position.
    lost: Vec<(u64, u64)>,
    verdict: Option<Verdict>,
    told: Vec<(u64, u64)>,
}

fn places(damage: &[runwal::Damage]) -> Vec<(u64, u64)> {
    damage.iter().map(|one| (one.from.0, one.to.0)).collect()
}

/// Reads and verifies everything; nothing where there is nothing that could be read.
fn look(stage: &mut Stage) -> Option<Seen> {
    let (_, world) = stage.process(1);
    let mut log = excused(Log::open_in(&world), "opening for reading")?;
    let (records, damage) = excused(read_all(&mut log), "reading")?;
    let (again, damage_again) = excused(read_all(&mut log), "reading again")?;
    assert!(
        records == again && places(&damage) == places(&damage_again),
        "reading twice gave another result"
    );
    let verified: Option<Verification> = excused(log.verify(&mut |_| {}), "verifying");
    let told = verified.as_ref().map(|found| places(&found.damage)).unwrap_or_default();
    Some(Seen { records, lost: places(&damage), verdict: verified.map(|found| found.verdict), told })
}

/// What was asked for, or one of the answers that a damaged directory may give.
fn excused<T>(answer: Result<T, Error>, doing: &str) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(error) => {
            let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::NotFound, ErrorKind::Retry];
            assert!(kinds.contains(&error.kind()), "{doing}: {} {error}", error.kind().code());
            None
        }
    }
}

fn contents(world: &SimWorld) -> BTreeMap<String, Vec<u8>> {
    let kept = world.names().into_iter().filter(|name| !name.starts_with("journal/live/"));
    kept.map(|name| (name.clone(), world.read_file(&name).unwrap_or_default())).collect()
}

fn examine(mut stage: Stage, setting: Setting, done: &Damage) {
    let before = (stage.world.digest(), contents(&stage.world));
    let seen = look(&mut stage);
    assert!((stage.world.digest(), contents(&stage.world)) == before, "reading changed something");
    let seen_again = look(&mut stage);
    assert!(seen == seen_again, "another reader was shown something else");
    if let Some(seen) = &seen {
        judge(seen, setting, done);
    }
    if done.crafted && done.mark {
        // A mark that was made up may have the last of all numbers, behind which nothing goes on.
        let _ = open(&mut stage, done).map(|writer| go_on(&mut stage, writer));
    } else {
        write(&mut stage, seen.as_ref(), done);
    }
}

fn judge(seen: &Seen, setting: Setting, done: &Damage) {
    let mut last = 0;
    for record in &seen.records {
        let behind = record.position.0 > last;
        assert!(done.crafted || behind, "position {} is shown behind {last}", record.position);
        last = record.position.0;
        assert!(done.crafted || ORIGINALS.knows(record), "nobody wrote {record:?}");
    }
    if done.crafted || done.mark || setting == Setting::Copied {
        return;
    }
    // The mark tells what was durable: what is not shown is told.
    for position in 1..=ORIGINALS.records {
        let within = |list: &[(u64, u64)]| list.iter().any(|(from, to)| (*from..=*to).contains(&position));
        let shown = seen.records.iter().any(|record| record.position.0 == position);
        assert!(shown || within(&seen.lost), "reading leaves {position} out without a word: {seen:?}");
        assert!(
            seen.verdict.is_none() || shown || within(&seen.told),
            "verifying leaves {position} out without a word: {seen:?}"
        );
    }
}

/// Opens for writing, or gives up what is damaged and then opens; appends; opens again.
fn write(stage: &mut Stage, seen: Option<&Seen>, done: &Damage) {
    let Some(writer) = open(stage, done) else { return };
    // The same holds of a position.
    if writer.engine().log().is_ok_and(|log| log.durable().0 > u64::MAX / 2) {
        return;
    }
    go_on(stage, writer);
    if done.crafted && !stage.problems.is_empty() {
        return;
    }
    fail(stage, "writing");
    let Some(after) = look(stage) else {
        assert!(seen.is_none(), "what was written to cannot be read any more");
        return;
    };
    for record in seen.map(|seen| seen.records.as_slice()).unwrap_or_default() {
        assert!(after.records.contains(record), "{record:?} was shown before, now not");
    }
    let new = after.records.len() - seen.map_or(0, |seen| seen.records.len());
    assert!(new >= 7, "what was appended is not shown");
    let Some(writer) = open(stage, done) else {
        assert!(done.crafted, "what was written to cannot be opened any more");
        return;
    };
    stage.close(writer);
    let files = journal_files(&stage.world);
    if let Some(writer) = stage.open(1) {
        stage.close(writer);
    }
    fail(stage, "opening again");
    let again = look(stage).expect("what was opened can be read");
    assert_eq!(after.records, again.records, "opening twice gave other records");
    assert!(files == journal_files(&stage.world), "opening twice changed the journal");
}

fn go_on(stage: &mut Stage, writer: Writer) {
    stage.tick(&writer);
    let run = stage.begin(&writer, "after");
    stage.append(&writer, run, &[40, 300]);
    stage.finish(&writer, run);
    stage.close(writer);
}

/// Opens for writing, if need be after what is damaged was given up; or it is refused for good.
fn open(stage: &mut Stage, done: &Damage) -> Option<Writer> {
    if !make_writable(stage, done) {
        return None;
    }
    let writer = stage.open(1);
    assert!(writer.is_some() || done.crafted, "opening what was writable: {:?}", stage.problems);
    stage.problems.retain(|_| writer.is_some());
    writer
}

fn make_writable(stage: &mut Stage, done: &Damage) -> bool {
    let (_, world) = stage.process(1);
    let opened = Engine::open_in(world, stage.options()).map(drop);
    match opened {
        Ok(()) => true,
        Err(error) => excuse_writing(&error, done) && give_up(stage, done),
    }
}

fn journal_files(world: &SimWorld) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(world);
    files.retain(|name, _| name.starts_with("journal/") && name != MARK);
    files
}

#[track_caller]
fn fail(stage: &Stage, doing: &str) {
    assert!(stage.problems.is_empty(), "{doing}: {:?}", stage.problems);
}

/// Whether there may be a way on from this refusal.
fn excuse_writing(error: &Error, done: &Damage) -> bool {
    let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported];
    // Of a body whose sums are right and whose records are not, opening says that it changes all the time.
    let unread = done.crafted && error.kind() == ErrorKind::Retry;
    let forged = done.crafted && done.mark;
    let excused = forged || unread || kinds.contains(&error.kind());
    assert!(excused, "opening for writing: {} {error}", error.kind().code());
    error.kind() == ErrorKind::Corrupt
}

fn give_up(stage: &mut Stage, done: &Damage) -> bool {
    let (_, world) = stage.process(1);
    match Engine::accept_damage(world, &stage.options()) {
        Ok(_) => true,
        Err(error) => {
            excuse_writing(&error, done);
            false
        }
    }
}
