//! What opening for writing does after a crash, beyond the journal itself: ends the runs of dead
//! recorders, and brings files to what the journal says.

use super::ending::{Ending, EndingData, ending_records};
use super::log::decode;
use super::noted::Noted;
use super::rebuild::{REPAIRED_AT_ONCE, rebuild_unless_live, repair_runs, show_ticks};
use super::{Engine, Log, MissedTicks, NewRecord, Options, RunInfo, Ticket, tickers};
use crate::disk::Disk;
use crate::error::{ErrorKind, Result};
use crate::journal::live::Dead;
use crate::journal::{OpenReport, Verdict};
use crate::observe;
use crate::position::{Position, Seq, StreamId};
use crate::processes::{Identity, Snapshot, end_orphans};
use crate::projection::RunFold;
use crate::projection::publish::{Rebuilt, TICKS_FOLDER, looks_right};
use crate::record::{
    Body, JsonText, Level, Lifecycle, Record, RunName, Status, TICKS_STREAM, event, terminal,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const OUTCOMES: &str = "cache/outcome-";
/// Of how many streams the files must have been found right for that to be noted: the next who opens looks at no
/// more than so many again.
const NOTED_FROM: usize = 32;

/// A run that was found without an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterruptedRun {
    /// Its name.
    pub name: RunName,
    /// Its stream.
    pub stream: StreamId,
    /// Which attempt it was.
    pub attempt: u32,
    /// How many of its processes were still running, and were ended.
    pub ended_processes: usize,
}

/// What opening found and did.
#[derive(Debug, Clone)]
pub struct Report {
    /// What the journal was when it was opened.
    pub verdict: Verdict,
    /// Bytes set aside because they were no whole batch.
    pub quarantined_bytes: u64,
    /// Whole records that nobody had been told were durable, and that now are.
    pub kept_records: u64,
    /// Runs that were found without an end, and now have one.
    pub interrupted: Vec<InterruptedRun>,
    /// The batch ids of ticks of the timed jobs that were found without an end, and now have one.
    pub interrupted_ticks: Vec<String>,
    /// What the timed jobs of dead processes have missed since.
    pub missed_ticks: Vec<MissedTicks>,
    /// Files written anew.
    pub rewritten_files: u64,
    /// Runs whose files were left alone because records of theirs are damaged.
    pub damaged_runs: Vec<RunName>,
    /// The last durable position.
    pub position: Position,
    /// What went wrong and stopped nothing.
    pub problems: Vec<String>,
}

/// Everything that opening does, in order.
pub(super) fn after_crash(engine: &Engine, options: &Options, opened: &OpenReport) -> Result<Report> {
    let quarantined_bytes = opened.recovered.iter().map(|r| r.quarantined_bytes).sum();
    let kept = opened.recovered.iter().map(|r| r.kept_records).sum::<u64>() + opened.settled_records;
    let mut report = Report {
        verdict: if quarantined_bytes > 0 || kept > 0 { Verdict::Torn } else { Verdict::Clean },
        quarantined_bytes,
        kept_records: kept,
        interrupted: Vec::new(),
        interrupted_ticks: Vec::new(),
        missed_ticks: Vec::new(),
        rewritten_files: 0,
        damaged_runs: Vec::new(),
        position: engine.journal().durable(),
        problems: Vec::new(),
    };
    let mut log = None;
    if !engine.journal().open_streams()?.is_empty() {
        let log = log.insert(Log::of_writer(engine.world(), engine.journal())?);
        end_dead_runs(engine, options, log, &mut report)?;
        tickers::settle(engine, log, &mut report)?;
    }
    crate::journal::live::sweep(engine.journal())?;
    sweep_outcomes(engine)?;
    if options.publish {
        let mut log = log.map_or_else(|| Log::of_writer(engine.world(), engine.journal()), Ok)?;
        log.refresh()?;
        repair_files(engine, options, &mut log, &mut report)?;
    }
    report.position = engine.journal().durable();
    Ok(report)
}

/// Where the worker of a run tells its outcome.
pub(crate) fn outcome_name(stream: StreamId) -> String {
    format!("{OUTCOMES}{stream}.json")
}

/// Removes what was told of runs that have ended: nobody reads it any more.
fn sweep_outcomes(engine: &Engine) -> Result<()> {
    let disk = &engine.world().disk;
    let mut told = Vec::new();
    let listed = disk.list("cache", &mut |name, _| {
        let name = format!("cache/{name}");
        told.extend(name.starts_with(OUTCOMES).then_some(name));
    });
    // There may be no such directory, or something else in its place: it is disposable.
    if listed.is_err() || told.is_empty() {
        return Ok(());
    }
    let open: BTreeSet<_> = engine.journal().open_streams()?.into_iter().map(outcome_name).collect();
    for name in told.iter().filter(|name| !open.contains(*name)) {
        // Whatever cannot be removed, a directory for one, is in nobody's way.
        let _ = disk.remove(name);
    }
    Ok(())
}

/// What the recorder noted about its worker when it started it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StartedData {
    pid: Option<u32>,
    start_ticks: Option<u64>,
}

fn end_dead_runs(engine: &Engine, options: &Options, log: &mut Log, report: &mut Report) -> Result<()> {
    let open = log.reader.open_streams();
    let mut dead: BTreeMap<[u8; 16], Option<Dead>> = BTreeMap::new();
    let mut ours = Vec::new();
    for stream in open {
        let Some(info) = log.run_of(stream)? else { continue };
        let recorder = log.recorder_of(stream)?;
        // Without its first record nothing is known of its recorder; it is left as it is.
        let Some(recorder) = recorder else {
            report.problems.push(format!("run {}: its first record cannot be read", info.name));
            continue;
        };
        if recorder == engine.recorder_id() {
            continue;
        }
        if let std::collections::btree_map::Entry::Vacant(entry) = dead.entry(recorder) {
            entry.insert(Dead::certify(engine.journal(), &recorder)?);
            // What it wrote last is there by now, and nothing more will come.
            log.refresh()?;
        }
        if !matches!(dead.get(&recorder), Some(Some(_))) {
            continue;
        }
        ours.push((recorder, info));
    }
    let left = Left::of(engine, options, &ours)?;
    for some in ours.chunks(REPAIRED_AT_ONCE) {
        let mut runs: BTreeMap<_, _> = some
            .iter()
            .map(|(_, run)| (run.stream, Found { worker: None, fold: engine.new_fold() }))
            .collect();
        let from = runs.keys().map(|stream| (*stream, Seq(1))).collect();
        // They stand side by side where they went on at the same time.
        let read = log.reader.several(&from, &mut |raw| {
            let Some(run) = runs.get_mut(&raw.stream) else { return Ok(()) };
            run.take_in(&decode(raw)?);
            Ok(())
        });
        match read {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Retry => {
                report.problems.push(error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        }
        // Their ends are made durable together.
        let mut handed_in = Vec::new();
        for (recorder, run) in some {
            // Somebody else may be ending them.
            let still_dead = matches!(dead.get(recorder), Some(Some(_)));
            let Some(found) = runs.remove(&run.stream).filter(|_| still_dead) else { continue };
            match end_run(engine, &left, &found, run) {
                Ok(ended) => handed_in.extend(ended),
                Err(error) if error.kind() == ErrorKind::Retry => {
                    report.problems.push(error.to_string());
                    dead.insert(*recorder, None);
                }
                Err(error) => return Err(error),
            }
        }
        for (ticket, run) in handed_in {
            match ticket.wait() {
                Ok(_) => {
                    observe::interrupted(&run.name, run.attempt, run.ended_processes);
                    report.interrupted.push(run);
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) if error.kind() == ErrorKind::Retry => report.problems.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
    }
    drop(dead);
    Ok(())
}

/// What was left running by workers of runs that were found without an end.
struct Left {
    /// `None` where it is nobody's business.
    seen: Option<Snapshot>,
    asked: Duration,
    grace: Duration,
}

impl Left {
    /// Finds it, and asks all of it to end before anybody waits for some of it.
    fn of(engine: &Engine, options: &Options, runs: &[([u8; 16], RunInfo)]) -> Result<Self> {
        let look = options.end_orphans && !runs.is_empty();
        let seen = if look { Some(Snapshot::take(None)?) } else { None };
        for (recorder, run) in runs {
            seen.iter().for_each(|seen| seen.ask_to_end(&run.name.to_string(), &hex(recorder)));
        }
        let asked = Duration::from_nanos(engine.world().clock.monotonic_ns());
        Ok(Self { seen, asked, grace: options.orphan_grace })
    }
}

/// What the records of a run say that was found without an end.
struct Found {
    worker: Option<Identity>,
    fold: RunFold,
}

impl Found {
    fn take_in(&mut self, record: &Record) {
        if let Body::Lifecycle(happened) = &record.body
            && happened.event == event::WORKER_STARTED
            && let Ok(data) = serde_json::from_str::<StartedData>(happened.data.as_str())
            && let (Some(pid), Some(start_ticks)) = (data.pid, data.start_ticks)
        {
            self.worker = Some(Identity { pid, start_ticks });
        }
        self.fold.apply(record, &mut |_| {});
    }
}

fn end_run(
    engine: &Engine,
    left: &Left,
    found: &Found,
    run: &RunInfo,
) -> Result<Option<(Ticket, InterruptedRun)>> {
    let (Found { worker, fold }, RunInfo { name, stream }) = (found, run);
    let Some(request) = fold.request().filter(|_| !fold.ended()) else { return Ok(None) };
    let (attempt, same_boot) = (request.attempt, request.boot == engine.boot_id());
    let recorder = hex(&request.recorder);
    let mut ended_processes = 0;
    if let Some(seen) = left.seen.as_ref().filter(|_| same_boot) {
        let (clock, of) = (&*engine.world().clock, (&*name.to_string(), &*recorder));
        ended_processes = end_orphans(clock, seen, of, *worker, (left.asked, left.grace))?;
    }
    let now = engine.world().clock.now();
    let mut before = Vec::new();
    if fold.worker_is_out() {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Data {
            outcome: &'static str,
            ended_processes: usize,
        }
        let message = "The recorder died before it saw the worker exit.";
        let data = Data { outcome: "interrupted", ended_processes };
        let exited = Lifecycle::new(event::WORKER_EXITED, Level::Error, message).with_data(&data)?;
        before.push(NewRecord { created_at: Some(now), ..Body::Lifecycle(exited).into() });
    }
    let ending = Ending {
        event: terminal::INTERRUPTED,
        level: Level::Error,
        status: Status::Interrupted,
        summary: "The recorder died before the run ended.".to_owned(),
        exit_code: None,
        data: JsonText::of(&EndingData::default())?,
    };
    let records = ending_records(fold, now, before, ending);
    let ticket = engine.submit(*stream, fold.last_seq().next(), &records)?;
    let ended = InterruptedRun { name: name.clone(), stream: *stream, attempt, ended_processes };
    Ok(Some((ticket, ended)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Checks the files of every run with records behind what is [noted](Noted), and repairs them. What
/// cannot be repaired is reported and stops nothing: the journal has every record.
fn repair_files(engine: &Engine, options: &Options, log: &mut Log, report: &mut Report) -> Result<()> {
    let disk = std::sync::Arc::clone(&engine.world().disk);
    // What others write and seal while this goes on is for those who open next.
    let (durable, sealed) = (log.durable(), log.reader.sealed_upto());
    let noted = Noted::read(&*disk, log)?;
    let mut streams: BTreeMap<_, _> = log.reader.streams_after(noted.published)?.into_iter().collect();
    for stream in &noted.but {
        streams.extend(log.reader.stream_end(*stream)?.map(|(_, last)| (*stream, last)));
    }
    // What is not published is not projected; what is damaged is told by each opening until it is sealed.
    let (mut broken, mut unpublished, mut damaged) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut tell = |stream: StreamId, repaired: Result<Repaired>| match repaired {
        Ok(Repaired::Rewritten(files)) => report.rewritten_files += files,
        Ok(Repaired::Damaged(name)) => {
            report.damaged_runs.extend(name);
            damaged.insert(stream);
        }
        Ok(Repaired::Live) => drop(unpublished.insert(stream)),
        Err(error) => {
            report.problems.push(format!("repairing files: {error}"));
            unpublished.insert(stream);
        }
    };
    let unpublished_ticks = if options.publish_ticks { None } else { log.ticks()? };
    for (stream, last) in &streams {
        let (stream, last) = (*stream, *last);
        if unpublished_ticks == Some(stream) {
            tell(stream, Ok(Repaired::Live));
            continue;
        }
        match look_at(log, &*disk, stream, last, !noted.of_another) {
            Ok(Looked::Fine) => {}
            Ok(Looked::Live) => tell(stream, Ok(Repaired::Live)),
            Ok(Looked::Broken(Some(run))) => broken.push(run),
            Ok(Looked::Broken(None)) => tell(stream, repair_ticks(log, stream, !noted.of_another)),
            Err(error) => tell(stream, Err(error)),
        }
    }
    repair_runs(log, &broken, &mut |run, rebuilt| {
        let repaired =
            rebuilt.map(|rebuilt| rebuilt.map_or(Repaired::Live, |it| Repaired::of(&it, Some(&run.name))));
        tell(run.stream, repaired);
    });
    let synced = Noted::before(&unpublished, noted.synced).map_or(sealed, |before| before.min(sealed));
    let synced = synced.max(noted.synced);
    // Up to where it is sealed, once is enough: whoever finds out reads all of the run.
    damaged.retain(|stream| streams.get(stream).is_some_and(|last| *last > sealed));
    let but: BTreeSet<_> = unpublished.union(&damaged).copied().collect();
    if synced > noted.synced || streams.len() - but.len() >= NOTED_FROM || noted.wrong {
        let bring = || if synced > noted.synced { disk.sync_all() } else { Ok(()) };
        let now = Noted { synced, published: durable, but, ..Noted::default() };
        if let Err(error) = bring().and_then(|()| now.write(&*disk, log)) {
            report.problems.push(format!("noting what is projected: {error}"));
        }
    }
    Ok(())
}

/// What became of the files of one stream.
enum Repaired {
    Rewritten(u64),
    Damaged(Option<RunName>),
    /// They are being published by the run's recorder.
    Live,
}

impl Repaired {
    fn of(rebuilt: &Rebuilt, run: Option<&RunName>) -> Self {
        if rebuilt.damaged { Self::Damaged(run.cloned()) } else { Self::Rewritten(rebuilt.rewritten) }
    }
}

/// What is to be done about the files of one stream.
enum Looked {
    Fine,
    Live,
    /// They have to be compared; a run's, or those of the timed jobs.
    Broken(Option<RunInfo>),
}

/// `cached` says whether what the cache knows of files is believed.
fn look_at(log: &mut Log, disk: &dyn Disk, stream: StreamId, last: Position, cached: bool) -> Result<Looked> {
    let run = log.run_of(stream)?;
    let folder = run.as_ref().map_or(TICKS_FOLDER.to_owned(), |run| run.name.folder());
    let nobodys = run.is_none() && log.find(TICKS_STREAM)? != Some(stream);
    if nobodys || (cached && looks_right(disk, &folder, last)) {
        return Ok(Looked::Fine);
    }
    Ok(if is_recorded(log, stream)? { Looked::Live } else { Looked::Broken(run) })
}

fn repair_ticks(log: &mut Log, stream: StreamId, cached: bool) -> Result<Repaired> {
    let shown = if cached { show_ticks(log, stream)? } else { rebuild_unless_live(log, stream, true)? };
    Ok(shown.map_or(Repaired::Live, |it| Repaired::of(&it, None)))
}

/// Whether the recorder of a run is alive, so that its files are its own to publish: also in the
/// moment before it has locked their folder.
fn is_recorded(log: &mut Log, stream: StreamId) -> Result<bool> {
    let recorder = log.recorder_of(stream)?;
    let disk = &**log.reader.handle.disk();
    Ok(recorder.is_some_and(|id| crate::journal::live::seems_alive(disk, &id)))
}
