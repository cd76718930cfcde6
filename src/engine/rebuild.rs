//! Files compared with the journal, and made what it says: those of one stream, read by its index, or those
//! of many, in one pass over the journal.

use super::{Log, RunInfo};
use crate::disk::{Disk, File, Kind};
use crate::error::{ErrorKind, Result};
use crate::position::{Position, Seq, StreamId};
use crate::projection::publish::{Rebuild, Rebuilt, TICKS_FOLDER, lock_folder};
use crate::reader::Lent;
use crate::record::Record;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Of how many runs the files are gone through in one pass: each holds a lock, and with it a descriptor.
const AT_ONCE: usize = 256;

/// How many bytes all of them together keep until they are written.
const MOST_KEPT: usize = 16 << 20;

/// Compares, and with `write` rewrites, the files that one stream feeds. Their lock is held.
pub(super) fn rebuild_stream(log: &mut Log, stream: StreamId, write: bool) -> Result<Rebuilt> {
    let disk = Arc::clone(log.reader.handle.disk());
    let last = log.end_of(stream)?.map_or(Position::ZERO, |(_, position)| position);
    let mut rebuild = match log.run_of(stream)? {
        Some(run) => Rebuild::of_run(disk, &run.name, write),
        None => Rebuild::of_ticks(disk, write),
    };
    let damage = log.stream(stream, Seq(1), &mut |record| rebuild.record(record).map(|()| true))?;
    rebuild.finish(last, damage.is_empty())
}

/// The same for anybody, beside live recorders, whose folders are left to them.
pub(super) fn rebuild_unless_live(log: &mut Log, stream: StreamId, write: bool) -> Result<Option<Rebuilt>> {
    let disk = Arc::clone(log.reader.handle.disk());
    let folder = log.run_of(stream)?.map_or(TICKS_FOLDER.to_owned(), |run| run.name.folder());
    let Turn::Ours(_lock) = take_turn(&*disk, &folder, write)? else { return Ok(None) };
    // What its recorder did before it gave the lock back has to be seen.
    log.refresh()?;
    rebuild_stream(log, stream, write).map(Some)
}

/// Who has a folder's files.
enum Turn {
    /// We do, with the lock of the folder where there is one.
    Ours(Option<Arc<dyn File>>),
    /// Somebody who is at work.
    Others,
}

fn take_turn(disk: &dyn Disk, folder: &str, write: bool) -> Result<Turn> {
    let there = matches!(disk.stat(folder), Ok(Some(stat)) if stat.kind == Kind::Directory);
    if !write && !there {
        return Ok(Turn::Ours(None));
    }
    Ok(lock_folder(disk, folder)?.map_or(Turn::Others, |lock| Turn::Ours(Some(lock))))
}

/// One run in a pass over many.
struct Going {
    rebuild: Rebuild,
    last: Position,
    _lock: Option<Arc<dyn File>>,
}

/// The files of many runs: of those that have ended, each batch of the journal is read once for up to
/// [`AT_ONCE`] of them. `progress` is told up to where.
pub(super) fn rebuild_runs(
    log: &mut Log,
    runs: &[RunInfo],
    write: bool,
    progress: &mut dyn FnMut(Position),
) -> Result<BTreeMap<StreamId, Option<Rebuilt>>> {
    let open: BTreeSet<StreamId> = log.reader.open_streams().into_iter().collect();
    let (open, mut ended): (Vec<&RunInfo>, Vec<_>) = runs.iter().partition(|run| open.contains(&run.stream));
    let mut done = BTreeMap::new();
    // Their recorders may want the lock at any moment: nobody has it for longer than their own files take.
    for run in open {
        done.insert(run.stream, rebuild_unless_live(log, run.stream, write)?);
        progress(log.end_of(run.stream)?.map_or(Position::ZERO, |(_, position)| position));
    }
    ended.sort_by_key(|run| run.stream);
    for some in ended.chunks(AT_ONCE) {
        one_pass(log, some, write, progress, &mut done)?;
    }
    Ok(done)
}

fn one_pass(
    log: &mut Log,
    runs: &[&RunInfo],
    write: bool,
    progress: &mut dyn FnMut(Position),
    done: &mut BTreeMap<StreamId, Option<Rebuilt>>,
) -> Result<()> {
    let disk = Arc::clone(log.reader.handle.disk());
    let mut going = BTreeMap::new();
    for run in runs {
        match take_turn(&*disk, &run.name.folder(), write)? {
            Turn::Ours(lock) => {
                let rebuild = Rebuild::of_run(Arc::clone(&disk), &run.name, write);
                going.insert(run.stream, Going { rebuild, last: Position::ZERO, _lock: lock });
            }
            Turn::Others => drop(done.insert(run.stream, None)),
        }
    }
    // What their recorders did before they gave the locks back has to be seen.
    log.refresh()?;
    for (stream, run) in &mut going {
        run.last = log.end_of(*stream)?.map_or(Position::ZERO, |(_, position)| position);
    }
    let Some(first) = going.keys().next() else { return Ok(()) };
    let mut scan = log.reader.scan(Position(first.0))?;
    let (mut kept, mut ready, mut upto) = (0, Vec::new(), Position::ZERO);
    while !going.is_empty() {
        let batch = match log.reader.next_batch(&mut scan)? {
            Some(Lent::Batch(batch)) => batch,
            // Whose records were there misses them.
            Some(Lent::Damage(_)) => continue,
            None => break,
        };
        for record in batch {
            let record = match record {
                Ok(record) => record,
                Err(error) if error.kind() == ErrorKind::Corrupt => break,
                Err(error) => return Err(error),
            };
            upto = record.position;
            let Some(run) = going.get_mut(&record.stream) else { continue };
            kept -= run.rebuild.kept();
            run.rebuild.record(&Record::of(&record)?)?;
            kept += run.rebuild.kept();
            if record.position >= run.last {
                ready.push(record.stream);
            }
        }
        progress(upto);
        for stream in ready.drain(..) {
            if let Some(run) = going.remove(&stream) {
                kept -= run.rebuild.kept();
                done.insert(stream, Some(finish(log, stream, run)?));
            }
        }
        if kept > MOST_KEPT {
            going.values_mut().try_for_each(|run| run.rebuild.flush())?;
            kept = 0;
        }
    }
    for (stream, run) in going {
        done.insert(stream, Some(finish(log, stream, run)?));
    }
    Ok(())
}

fn finish(log: &mut Log, stream: StreamId, run: Going) -> Result<Rebuilt> {
    let whole = log.reader.lost_behind(stream)?.is_empty();
    run.rebuild.finish(run.last, whole)
}
