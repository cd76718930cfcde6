//! Files compared with the journal, and made what it says: those of one stream, read by its index, or those
//! of many, in one pass over the journal.

use super::log::decode;
use super::{Log, RunInfo};
use crate::disk::{Disk, File, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Position, Seq, StreamId};
use crate::projection::publish::{
    LiveTicks, Rebuild, Rebuilt, TICKS_FOLDER, lock_folder, make_shared_folders,
};
use crate::reader::{Lent, Reader};
use crate::record::Record;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Of how many runs the files are gone through in one pass: each holds a lock, and with it a descriptor.
const AT_ONCE: usize = 256;
/// The same while a journal is opened, maybe by who has few descriptors left; also of how many it is found out
/// how they ended, each with what it has gathered of a checkpoint.
pub(super) const REPAIRED_AT_ONCE: usize = 64;

/// From how much of the journal on threads share the work, and how many: more than a few wait for the disk.
const WORTH_THREADS: u64 = 16 << 20;
const MOST_THREADS: usize = 4;
/// How many news wait to be taken in.
const MOST_NEWS: usize = 1_024;

/// How many bytes all of them together keep until they are written.
const MOST_KEPT: usize = 16 << 20;

/// Compares, and with `write` rewrites, the files that one stream feeds. Their lock is held.
fn rebuild_stream(log: &mut Log, stream: StreamId, write: bool) -> Result<Rebuilt> {
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

/// Brings the files of the timed jobs to what the journal says, with everybody's records: those that are new are
/// written behind what is there, where that is as whoever published last has left it. `None` where somebody else
/// is at it.
pub(super) fn show_ticks(log: &mut Log, stream: StreamId) -> Result<Option<Rebuilt>> {
    let disk = Arc::clone(log.reader.handle.disk());
    let Some(_lock) = lock_folder(&*disk, TICKS_FOLDER)? else { return Ok(None) };
    // Whoever published before may have seen more than is known here.
    log.refresh()?;
    let live = LiveTicks::new(disk);
    if let Some((seq, position)) = live.shown()
        && has_record(log, stream, seq, position)?
    {
        let published = live.publish(&mut |visit| {
            let damage = log.stream(stream, Seq(seq.0 + 1), &mut |record| {
                visit(record);
                Ok(true)
            })?;
            Ok(damage.is_empty())
        })?;
        if published {
            return Ok(Some(Rebuilt::default()));
        }
    }
    rebuild_stream(log, stream, true).map(Some)
}

/// Whether a record of a stream stands where it was said to: what was noted of a longer copy of the journal, which
/// was put back since, holds for nobody.
fn has_record(log: &mut Log, stream: StreamId, seq: Seq, position: Position) -> Result<bool> {
    match log.record(stream, seq) {
        Ok(record) => Ok(record.is_some_and(|record| record.position == position)),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(false),
        Err(error) => Err(error),
    }
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
    /// Whether nothing of it is known to be lost.
    whole: bool,
    _lock: Option<Arc<dyn File>>,
}

/// The files of several runs, gone through together.
struct Pass {
    going: BTreeMap<StreamId, Going>,
    /// How many bytes all of them keep, and may keep.
    kept: usize,
    most_kept: usize,
    /// What became of the others: `None` where somebody is at work on their files.
    done: BTreeMap<StreamId, Result<Option<Rebuilt>>>,
}

impl Pass {
    fn begin(log: &mut Log, runs: &[&RunInfo], write: bool, most_kept: usize) -> Result<Self> {
        let disk = Arc::clone(log.reader.handle.disk());
        let (mut going, mut done) = (BTreeMap::new(), BTreeMap::new());
        for run in runs {
            match take_turn(&*disk, &run.name.folder(), write) {
                Ok(Turn::Ours(lock)) => {
                    let rebuild = Rebuild::of_run(Arc::clone(&disk), &run.name, write);
                    let run_of = Going { rebuild, last: Position::ZERO, whole: false, _lock: lock };
                    going.insert(run.stream, run_of);
                }
                Ok(Turn::Others) => drop(done.insert(run.stream, Ok(None))),
                Err(error) => drop(done.insert(run.stream, Err(error))),
            }
        }
        // What their recorders did before they gave the locks back has to be seen.
        log.refresh()?;
        for (stream, run) in &mut going {
            run.last = log.end_of(*stream)?.map_or(Position::ZERO, |(_, position)| position);
            run.whole = log.reader.lost_behind(*stream)?.is_empty();
        }
        Ok(Self { going, kept: 0, most_kept, done })
    }

    fn has(&self, stream: StreamId) -> bool {
        self.going.contains_key(&stream)
    }

    /// Takes a record in. With its last one a run is done, and its lock given back.
    fn record(&mut self, stream: StreamId, record: &Record) {
        let Some(run) = self.going.get_mut(&stream) else { return };
        let before = run.rebuild.kept();
        let taken = run.rebuild.record(record);
        self.kept = self.kept - before + run.rebuild.kept();
        let is_last = record.position >= run.last;
        self.unless_failed(stream, taken);
        if is_last {
            self.finish(stream);
        }
    }

    /// Whose files cannot be written is done with; the others go on.
    fn unless_failed(&mut self, stream: StreamId, result: Result<()>) {
        let Err(error) = result else { return };
        if let Some(run) = self.going.remove(&stream) {
            self.kept -= run.rebuild.kept();
        }
        self.done.insert(stream, Err(error));
    }

    /// Writes what is kept, where that is much.
    fn flush(&mut self) {
        if self.kept <= self.most_kept {
            return;
        }
        let streams: Vec<_> = self.going.keys().copied().collect();
        for stream in streams {
            let flushed = self.going.get_mut(&stream).map_or(Ok(()), |run| run.rebuild.flush());
            self.unless_failed(stream, flushed);
        }
        self.kept = self.going.values().map(|run| run.rebuild.kept()).sum();
    }

    fn finish(&mut self, stream: StreamId) {
        let Some(run) = self.going.remove(&stream) else { return };
        self.kept -= run.rebuild.kept();
        self.done.insert(stream, run.rebuild.finish(run.last, run.whole).map(Some));
    }

    /// What became of each of them; those that have not met their last record miss it.
    fn finish_all(mut self) -> BTreeMap<StreamId, Result<Option<Rebuilt>>> {
        while let Some(stream) = self.going.keys().next().copied() {
            self.finish(stream);
        }
        self.done
    }
}

/// The files of the runs that are named, each batch with records of several of them being read once for up to
/// [`REPAIRED_AT_ONCE`]. What could not be done for one of them stops none of the others.
pub(super) fn repair_runs(
    log: &mut Log,
    runs: &[RunInfo],
    done: &mut dyn FnMut(&RunInfo, Result<Option<Rebuilt>>),
) {
    for some in runs.chunks(REPAIRED_AT_ONCE) {
        // Where something cannot be read, each has to find out for itself whether that is its own.
        let mut became = read_together(log, some).unwrap_or_default();
        for run in some {
            let repaired = became.remove(&run.stream);
            done(run, repaired.unwrap_or_else(|| rebuild_unless_live(log, run.stream, true)));
        }
    }
}

fn read_together(log: &mut Log, runs: &[RunInfo]) -> Result<BTreeMap<StreamId, Result<Option<Rebuilt>>>> {
    let mut pass = Pass::begin(log, &runs.iter().collect::<Vec<_>>(), true, MOST_KEPT)?;
    let from = pass.going.keys().map(|stream| (*stream, Seq(1))).collect();
    log.reader.several(&from, &mut |raw| {
        let stream = raw.stream;
        if pass.has(stream) {
            pass.record(stream, &decode(raw)?);
            pass.flush();
        }
        Ok(())
    })?;
    Ok(pass.finish_all())
}

/// The files of many runs: of those that have ended, each batch of the journal is read once for up to
/// [`AT_ONCE`] of them. `progress` is told how much of how much is done, by the positions to be gone through.
pub(super) fn rebuild_runs(
    log: &mut Log,
    runs: &[RunInfo],
    write: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<BTreeMap<StreamId, Option<Rebuilt>>> {
    let open: BTreeSet<StreamId> = log.reader.open_streams().into_iter().collect();
    let (open, mut ended): (Vec<&RunInfo>, Vec<_>) = runs.iter().partition(|run| open.contains(&run.stream));
    ended.sort_by_key(|run| run.stream);
    let threads = match ended.first() {
        Some(first) if log.reader.len_from(Position(first.stream.0))? >= WORTH_THREADS => threads(),
        _ => 1,
    };
    if threads > 1 && write {
        let disk = Arc::clone(log.reader.handle.disk());
        let by_task: BTreeMap<_, _> = ended.iter().map(|run| (&run.name.task, &run.name)).collect();
        by_task.values().try_for_each(|run| make_shared_folders(&*disk, run))?;
    }
    let at_once = (AT_ONCE / threads).min(ended.len().div_ceil(threads)).max(1);
    let end = log.durable();
    let len_of = |some: &[&RunInfo]| {
        some.first().map_or(0, |run| end.0.saturating_add(1).saturating_sub(run.stream.0))
    };
    let mut passes = Passes { end, write, most_kept: MOST_KEPT / threads, ..Passes::default() };
    passes.left = Mutex::new(ended.chunks(at_once).map(|runs| (len_of(runs), runs)).collect());
    // One run is little beside a pass over the rest of the journal.
    let all = open.len() as u64 + ended.chunks(at_once).map(len_of).sum::<u64>();
    let (mut done, mut gone) = (BTreeMap::new(), 0);
    // Their recorders may want the lock at any moment: nobody has it for longer than their own files take.
    for run in open {
        done.insert(run.stream, rebuild_unless_live(log, run.stream, write)?);
        gone += 1;
        progress(gone, all);
    }
    let mut failed = None;
    let mut take_in = |news: News| match news {
        News::Gone(further) => {
            gone += further;
            progress(gone, all);
        }
        News::Done(stream, Ok(rebuilt)) => drop(done.insert(stream, rebuilt)),
        News::Done(_, Err(error)) => drop(failed.get_or_insert(error)),
    };
    if threads == 1 || !in_threads(log, &passes, threads, &mut take_in) {
        passes.work(log, &mut take_in);
    }
    failed.map_or(Ok(done), Err)
}

/// How many threads make files: that many processors write as many at a time.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS)
}

/// Does it in threads, each with a reader of its own; `false` where there is none for want of threads.
fn in_threads(log: &Log, passes: &Passes<'_>, threads: usize, take_in: &mut dyn FnMut(News)) -> bool {
    let (tell, told) = mpsc::sync_channel(MOST_NEWS);
    std::thread::scope(|scope| {
        let mut began = false;
        for _ in 0..threads {
            let (disk, clock) = (Arc::clone(log.reader.handle.disk()), Arc::clone(&log.reader.clock));
            let tell = tell.clone();
            let work = move || {
                let news = &mut |news| drop(tell.send(news));
                match Reader::open(disk, clock) {
                    Ok(reader) => passes.work(&mut Log { reader }, news),
                    Err(error) => passes.fail(error, news),
                }
            };
            let thread = std::thread::Builder::new().name("runwal-rebuild".to_owned());
            began |= thread.spawn_scoped(scope, work).is_ok();
        }
        drop(tell);
        told.into_iter().for_each(take_in);
        began
    })
}

/// What is told of the passes.
enum News {
    /// So many positions more were gone through.
    Gone(u64),
    /// What became of a run.
    Done(StreamId, Result<Option<Rebuilt>>),
}

/// Runs that are gone through together, and how far the journal is to be gone through for them.
type Together<'r> = (u64, &'r [&'r RunInfo]);

/// The passes over the journal that are left to be made, by whoever has time.
#[derive(Default)]
struct Passes<'r> {
    left: Mutex<VecDeque<Together<'r>>>,
    end: Position,
    write: bool,
    most_kept: usize,
}

impl Passes<'_> {
    /// Makes them until none is left, or one fails.
    fn work(&self, log: &mut Log, tell: &mut dyn FnMut(News)) {
        let next = || self.left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        while let Some((len, runs)) = next() {
            if let Err(error) = self.make(log, len, runs, tell) {
                self.fail(error, tell);
            }
        }
    }

    /// Makes no more of them.
    fn fail(&self, error: Error, tell: &mut dyn FnMut(News)) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).clear();
        tell(News::Done(StreamId(0), Err(error)));
    }

    fn make(&self, log: &mut Log, len: u64, runs: &[&RunInfo], tell: &mut dyn FnMut(News)) -> Result<()> {
        let mut gone = 0;
        let mut upto = |at: Position| {
            // There may be more by now.
            let now = len.saturating_sub(self.end.0.saturating_sub(at.0).saturating_add(1)).max(gone);
            tell(News::Gone(now - gone));
            gone = now;
        };
        let done = one_pass(log, runs, self, &mut upto)?;
        tell(News::Gone(len - gone));
        done.into_iter().for_each(|(stream, rebuilt)| tell(News::Done(stream, rebuilt)));
        Ok(())
    }
}

fn one_pass(
    log: &mut Log,
    runs: &[&RunInfo],
    passes: &Passes<'_>,
    progress: &mut dyn FnMut(Position),
) -> Result<BTreeMap<StreamId, Result<Option<Rebuilt>>>> {
    let mut pass = Pass::begin(log, runs, passes.write, passes.most_kept)?;
    let first = pass.going.keys().next().map_or(Position::ZERO, |stream| Position(stream.0));
    let mut scan = log.reader.scan(first)?;
    let mut upto = Position::ZERO;
    while !pass.going.is_empty() {
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
            if pass.has(record.stream) {
                pass.record(record.stream, &Record::of(&record)?);
            }
        }
        progress(upto);
        pass.flush();
    }
    Ok(pass.finish_all())
}
