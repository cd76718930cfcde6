//! The thread that brings the files of an engine's runs to the disk as their records become
//! durable. It reads what is durable from the journal, so it holds up no append, and what it has
//! not done when the process dies is repaired by the next one.
//!
//! A run that goes on costs memory and one descriptor. One that has ended costs nothing: what is appended to it
//! later is shown by comparing its files with all of its records.

use super::log::decode;
use super::rebuild::{rebuild_unless_live, show_ticks};
use super::{Engine, Log, World};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::Journal;
use crate::observe;
use crate::position::{Position, Seq, StreamId};
use crate::projection::publish::{LiveRun, TICKS_FOLDER};
use crate::record::RunName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often, and how far apart, the lock of a run's folder is tried for.
const FOLDER_TRIES: u32 = 5_000;
/// The same of a run that another engine has begun, and lets go soon after its end.
const OTHERS_TRIES: u32 = 100;
const FOLDER_PAUSE: Duration = Duration::from_millis(2);
/// How long changes are gathered at least before files are touched again. Where bringing them all up to date
/// takes longer, so does the gathering: at most half of a thread goes into it, however many runs there are.
const GATHER: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct State {
    /// Up to where records are durable.
    wanted: Position,
    /// Up to where the files of all runs show them.
    shown: Position,
    /// The runs whose files somebody waits for: these are not gathered.
    hurried: BTreeSet<StreamId>,
    /// Up to where files show more than those of all runs do.
    shown_ahead: BTreeMap<StreamId, Position>,
    stop: bool,
    names: Vec<(StreamId, RunName)>,
    finished: Vec<StreamId>,
    /// What this engine appended to, by those who waited for it.
    touched: BTreeSet<StreamId>,
    /// The same by those who do not wait.
    buffered: BTreeSet<StreamId>,
    /// Records of the timed jobs were appended.
    ticks: bool,
    failed: Option<(ErrorKind, String)>,
    ticks_failed: Option<(ErrorKind, String)>,
}

impl State {
    fn shows(&self, stream: StreamId, position: Position) -> bool {
        self.shown.max(self.shown_ahead.get(&stream).copied().unwrap_or_default()) >= position
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// For the thread: there is something to do.
    work: Condvar,
    /// For those who wait for it.
    done: Condvar,
}

impl Shared {
    fn hold(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Publisher {
    shared: Arc<Shared>,
    has_ticks: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Publisher {
    /// Begins to publish; the files of the timed jobs only `with_ticks`.
    pub(super) fn start(engine: &Engine, with_ticks: bool) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        // The engine itself ends with its last user, and ends the thread.
        let (world, journal) = (engine.world().clone(), engine.journal().clone());
        let of = Of { world, journal, recorder: engine.recorder_id() };
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("runwal-publish".to_owned())
            .spawn(move || work(&of, &for_thread))
            .map_err(|e| Error::io("starting the publishing thread", e))?;
        Ok(Self { shared, has_ticks: with_ticks, thread: Mutex::new(Some(thread)) })
    }

    /// Whether the files of the timed jobs are published.
    pub(super) fn has_ticks(&self) -> bool {
        self.has_ticks
    }

    /// Records of the timed jobs were appended.
    pub(super) fn add_ticks(&self) {
        self.shared.hold().ticks = self.has_ticks;
    }

    /// A run of this engine began.
    pub(super) fn add(&self, stream: StreamId, name: RunName) {
        self.shared.hold().names.push((stream, name));
    }

    /// Records of these streams, up to `position`, are durable.
    pub(super) fn poke(&self, streams: impl IntoIterator<Item = StreamId>, position: Position) {
        let mut state = self.shared.hold();
        state.touched.extend(streams);
        state.wanted = state.wanted.max(position);
        self.shared.work.notify_one();
    }

    /// Something was handed in that nobody may wait for.
    pub(super) fn add_buffered(&self, stream: StreamId) {
        self.shared.hold().buffered.insert(stream);
    }

    /// What was handed in so since the last time; it is poked for when it is durable.
    pub(super) fn take_buffered(&self) -> BTreeSet<StreamId> {
        std::mem::take(&mut self.shared.hold().buffered)
    }

    /// Nothing more will come of a run.
    pub(super) fn forget(&self, stream: StreamId) {
        self.shared.hold().finished.push(stream);
    }

    /// Waits until everything up to `position` is in the files of a run.
    pub(super) fn wait(&self, stream: StreamId, position: Position) -> Result<()> {
        let mut state = self.shared.hold();
        state.wanted = state.wanted.max(position);
        while !state.shows(stream, position) && state.failed.is_none() && !state.stop {
            if state.hurried.insert(stream) {
                self.shared.work.notify_one();
            }
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match &state.failed {
            Some((kind, message)) => Err(Error::new(*kind, message.clone())
                .hint("The journal has every record; `runwal rebuild` brings the files to what it says.")),
            None => Ok(()),
        }
    }

    /// Publishes what is left and ends the thread; a second time does nothing.
    pub(super) fn stop(&self) -> Result<()> {
        {
            let mut state = self.shared.hold();
            state.stop = true;
            self.shared.work.notify_one();
            self.shared.done.notify_all();
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // What it did not come to is in the state.
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        let state = self.shared.hold();
        match state.failed.as_ref().or(state.ticks_failed.as_ref()) {
            Some((kind, message)) => Err(Error::new(*kind, message.clone())),
            None => Ok(()),
        }
    }
}

/// Whose runs they are.
struct Of {
    world: World,
    journal: Journal,
    recorder: [u8; 16],
}

/// The runs that go on.
type Runs = BTreeMap<StreamId, LiveRun>;

/// Whoever waits for a thread that a bug has ended is told.
struct TellsPanic<'s>(&'s Shared);

impl Drop for TellsPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let message = "the publishing thread panicked; this is a bug".to_owned();
            self.0.hold().failed.get_or_insert((ErrorKind::Io, message));
            self.0.done.notify_all();
        }
    }
}

fn work(of: &Of, shared: &Shared) {
    let world = &of.world;
    let _tells = TellsPanic(shared);
    let mut runs = Runs::new();
    let mut log = None;
    let now = || Duration::from_nanos(world.clock.monotonic_ns());
    let (mut shown_at, mut took) = (now(), Duration::ZERO);
    loop {
        let mut state = shared.hold();
        while state.wanted <= state.shown && state.hurried.is_empty() && !state.stop {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let gather = GATHER.max(took);
        if state.hurried.is_empty() && !state.stop {
            let quiet = |state: &mut State| state.hurried.is_empty() && !state.stop;
            let gathered = shared.work.wait_timeout_while(state, gather, quiet);
            state = gathered.unwrap_or_else(PoisonError::into_inner).0;
        }
        let (stop, wanted) = (state.stop, state.wanted);
        let hurried = std::mem::take(&mut state.hurried);
        let (names, finished) = (std::mem::take(&mut state.names), std::mem::take(&mut state.finished));
        let (touched, ticks) = (std::mem::take(&mut state.touched), std::mem::take(&mut state.ticks));
        drop(state);
        let begun = now();
        // Some are always waited for where many begin and end: the others have their turn all the same.
        let all = hurried.is_empty() || stop || begun.saturating_sub(shown_at) >= gather;
        let due = |stream: &StreamId| all || hurried.contains(stream);
        let result = publish(of, &mut log, &mut runs, (names, touched), &due);
        let with_ticks = match log.as_mut().filter(|_| ticks) {
            Some(log) => publish_ticks(world, log),
            None => Ok(()),
        };
        // What is made durable while the engine is closed is for the next repair.
        let last = stop && shared.hold().wanted <= wanted;
        let gone = |stream: &StreamId, run: &LiveRun| {
            last || (all && run.fold().ended()) || finished.contains(stream)
        };
        let ended = runs.extract_if(.., |stream, run| gone(stream, run)).map(|(_, run)| run.finish());
        let result = ended.fold(result, Result::and);
        if all {
            (shown_at, took) = (now(), now().saturating_sub(begun));
        }
        for error in [&result, &with_ticks].into_iter().filter_map(|done| done.as_ref().err()) {
            observe::unpublished(error);
        }
        let mut state = shared.hold();
        if all {
            state.shown = state.shown.max(wanted);
            let shown = state.shown;
            state.shown_ahead.retain(|_, position| *position > shown);
        } else {
            state.shown_ahead.extend(hurried.into_iter().map(|stream| (stream, wanted)));
        }
        if let Err(error) = result {
            state.failed.get_or_insert((error.kind(), format!("publishing files: {error}")));
        }
        if let Err(error) = with_ticks {
            let message = format!("publishing the files of the timed jobs: {error}");
            state.ticks_failed.get_or_insert((error.kind(), message));
        }
        shared.done.notify_all();
        if last {
            return;
        }
    }
}

/// Brings the files of the timed jobs to what the journal says.
fn publish_ticks(world: &World, log: &mut Log) -> Result<()> {
    let Some(stream) = log.ticks()? else { return Ok(()) };
    if patiently(world, FOLDER_TRIES, TICKS_FOLDER, &mut || show_ticks(log, stream))?.damaged {
        let message = "records of the timed jobs are damaged; their files were left alone";
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(())
}

/// What somebody else may have for a moment: who compares or rebuilds files has to end first.
fn patiently<T>(
    world: &World,
    tries: u32,
    what: &str,
    attempt: &mut dyn FnMut() -> Result<Option<T>>,
) -> Result<T> {
    for _ in 0..tries {
        if let Some(got) = attempt()? {
            return Ok(got);
        }
        world.clock.pause(FOLDER_PAUSE);
    }
    Err(Error::new(ErrorKind::Locked, format!("the folder {what} is locked by somebody else")))
}

/// Takes in what is durable of all runs, and brings the files of those that are due to what that says; also those
/// of runs behind whose end something was `touched`.
fn publish(
    of: &Of,
    log: &mut Option<Log>,
    runs: &mut Runs,
    (names, touched): (Vec<(StreamId, RunName)>, BTreeSet<StreamId>),
    due: &dyn Fn(&StreamId) -> bool,
) -> Result<()> {
    let world = &of.world;
    let log = match log {
        Some(log) => log,
        None => log.insert(Log::of_writer(world, &of.journal)?),
    };
    log.refresh_with(&of.journal)?;
    let mut failed = Vec::new();
    for (stream, name) in names {
        let begun = begin(world, &name).map(|run| runs.insert(stream, run));
        failed.extend(begun.err());
    }
    for stream in touched.into_iter().filter(|stream| !runs.contains_key(stream)) {
        failed.extend(show_behind_end(of, log, stream).err());
    }
    // Half-written files of a run that fails are for the next repair; others go on.
    let mut broken = take_in(log, runs)?;
    runs.retain(|stream, run| {
        let flushed = if due(stream) { run.flush() } else { Ok(()) };
        let fine = flushed.is_ok();
        broken.extend(flushed.err().map(|error| (*stream, error)));
        fine
    });
    for (stream, error) in broken {
        // Of a file that somebody has removed, nothing is left to write on.
        let anew = if error.is_missing() { begin_anew(world, log, runs, stream) } else { Err(error) };
        failed.extend(anew.err());
    }
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// Has the runs take in what is new of them. Those that cannot are let go, each with why.
fn take_in(log: &mut Log, runs: &mut Runs) -> Result<Vec<(StreamId, Error)>> {
    let mut news = BTreeMap::new();
    for (stream, run) in &*runs {
        let known = run.fold().last_seq();
        if log.end_of(*stream)?.is_some_and(|(last, _)| last > known) {
            news.insert(*stream, Seq(known.0 + 1));
        }
    }
    let mut broken = Vec::new();
    log.reader.several(&news, &mut |raw| {
        let record = decode(raw)?;
        if let Some(Err(error)) = runs.get_mut(&record.stream).map(|run| run.apply(&record)) {
            runs.remove(&record.stream);
            broken.push((record.stream, error));
        }
        Ok(())
    })?;
    Ok(broken)
}

fn begin(world: &World, name: &RunName) -> Result<LiveRun> {
    let create = &mut || LiveRun::create(Arc::clone(&world.disk), name);
    patiently(world, FOLDER_TRIES, &name.folder(), create)
}

/// Writes the files of a run with all of its records.
fn begin_anew(world: &World, log: &mut Log, runs: &mut Runs, stream: StreamId) -> Result<()> {
    let Some(run) = log.run_of(stream)? else { return Ok(()) };
    let mut alone = Runs::from([(stream, begin(world, &run.name)?)]);
    let broken = take_in(log, &mut alone)?;
    broken.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))?;
    for (stream, mut run) in alone {
        run.flush()?;
        runs.insert(stream, run);
    }
    Ok(())
}

/// Shows what was appended to a run that had ended, and whose files nobody keeps up to date any more.
fn show_behind_end(of: &Of, log: &mut Log, stream: StreamId) -> Result<()> {
    if !log.has_ended(stream)? {
        return Ok(());
    }
    let Some(run) = log.run_of(stream)? else { return Ok(()) };
    let ours = log.recorder_of(stream)? == Some(of.recorder);
    let tries = if ours { FOLDER_TRIES } else { OTHERS_TRIES };
    let shown = &mut || rebuild_unless_live(log, stream, true);
    match patiently(&of.world, tries, &run.name.folder(), shown) {
        Ok(rebuilt) if rebuilt.damaged => {
            let message = format!("records of {} are damaged; its files were left alone", run.name);
            Err(Error::new(ErrorKind::Corrupt, message))
        }
        Err(error) if error.kind() == ErrorKind::Locked && !ours => Ok(()),
        shown => shown.map(drop),
    }
}
