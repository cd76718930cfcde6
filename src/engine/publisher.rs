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

/// How often, and how far apart, the lock of a folder is tried for.
const FOLDER_TRIES: u32 = 5_000;
const FOLDER_PAUSE: Duration = Duration::from_millis(2);
/// For how long a run that has ended is tried again whose folder somebody else has locked, and how often while
/// the engine is closed.
const ENDED_PATIENCE: Duration = Duration::from_secs(10);
const CLOSING_TRIES: u32 = 100;
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
    /// What this engine appended to, with the first position that may not be shown; and the same of what the
    /// thread is about to show.
    touched: BTreeMap<StreamId, Position>,
    under_way: BTreeMap<StreamId, Position>,
    /// What was handed in that nobody waits for.
    buffered: BTreeSet<StreamId>,
    /// Runs that had ended and cannot be shown.
    refused: BTreeMap<StreamId, (ErrorKind, String)>,
    /// Records of the timed jobs were appended.
    ticks: bool,
    failed: Option<(ErrorKind, String)>,
    ticks_failed: Option<(ErrorKind, String)>,
}

impl State {
    fn shows(&self, stream: StreamId, position: Position) -> bool {
        let waits = |of: &BTreeMap<_, _>| of.get(&stream).is_some_and(|first| *first <= position);
        !waits(&self.touched)
            && !waits(&self.under_way)
            && self.shown.max(self.shown_ahead.get(&stream).copied().unwrap_or_default()) >= position
    }

    fn touch(&mut self, streams: impl IntoIterator<Item = StreamId>, position: Position) {
        for stream in streams {
            let refused = self.refused.remove(&stream).is_some();
            let position = if refused { Position::ZERO } else { position };
            let first = self.touched.entry(stream).or_insert(position);
            *first = position.min(*first);
        }
    }

    /// Files show what is up to a position: those of these runs, or of all.
    fn note_shown(&mut self, upto: Position, of: Option<BTreeSet<StreamId>>) {
        if let Some(these) = of {
            self.shown_ahead.extend(these.into_iter().map(|stream| (stream, upto)));
        } else {
            self.shown = self.shown.max(upto);
            let shown = self.shown;
            self.shown_ahead.retain(|_, position| *position > shown);
        }
    }

    fn is_idle(&self) -> bool {
        self.wanted <= self.shown && self.touched.is_empty() && self.names.is_empty() && !self.ticks
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
        let of = Of { world, journal };
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
        state.touch(streams, position);
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
        while !state.shows(stream, position)
            && state.failed.is_none()
            && !state.refused.contains_key(&stream)
            && !state.stop
        {
            if state.hurried.insert(stream) {
                self.shared.work.notify_one();
            }
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.failed.as_ref().or_else(|| state.refused.get(&stream)) {
            Some(_) if state.shows(stream, position) => Ok(()),
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
            // The journal is closed: it has been made durable.
            let (buffered, wanted) = (std::mem::take(&mut state.buffered), state.wanted);
            state.touch(buffered, wanted);
            self.shared.work.notify_one();
            self.shared.done.notify_all();
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // What it did not come to is in the state.
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        let state = self.shared.hold();
        let refused = state.refused.values().next();
        match state.failed.as_ref().or(state.ticks_failed.as_ref()).or(refused) {
            Some((kind, message)) => Err(Error::new(*kind, message.clone())),
            None => Ok(()),
        }
    }
}

/// Whose runs they are.
struct Of {
    world: World,
    journal: Journal,
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
    let (mut runs, mut ended) = (Runs::new(), Ended::default());
    let mut log = None;
    let now = || Duration::from_nanos(world.clock.monotonic_ns());
    let (mut shown_at, mut took) = (now(), Duration::ZERO);
    loop {
        let mut state = shared.hold();
        while state.is_idle() && state.hurried.is_empty() && !state.stop {
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
        state.under_way = std::mem::take(&mut state.touched);
        let touched: Vec<_> = state.under_way.keys().copied().collect();
        let ticks = std::mem::take(&mut state.ticks);
        drop(state);
        let begun = now();
        // Some are always waited for where many begin and end: the others have their turn all the same.
        let all = hurried.is_empty() || stop || begun.saturating_sub(shown_at) >= gather;
        let due = |stream: &StreamId| all || hurried.contains(stream);
        let result = publish(of, &mut log, &mut runs, names, &due);
        let behind_end = touched.into_iter().filter(|stream| !runs.contains_key(stream));
        let behind_end = match &mut log {
            Some(log) => ended.show(of, log, behind_end, stop),
            None => Refused::default(),
        };
        let with_ticks = match log.as_mut().filter(|_| ticks) {
            Some(log) => publish_ticks(world, log),
            None => Ok(()),
        };
        // What is made durable while the engine is closed is for the next repair.
        let last = stop && {
            let state = shared.hold();
            state.wanted <= wanted && state.touched.is_empty() && state.names.is_empty() && !state.ticks
        };
        let gone = |stream: &StreamId, run: &LiveRun| {
            last || (all && run.fold().ended()) || finished.contains(stream)
        };
        let let_go = runs.extract_if(.., |stream, run| gone(stream, run)).map(|(_, run)| run.finish());
        let result = let_go.fold(result, Result::and);
        if all {
            (shown_at, took) = (now(), now().saturating_sub(begun));
        }
        let failed = [&result, &with_ticks].into_iter().filter_map(|done| done.as_ref().err());
        failed.chain(behind_end.values()).for_each(|error| observe::unpublished(error));
        let mut state = shared.hold();
        // What was not their turn, or not to be had, is still to be shown.
        let mut left = std::mem::take(&mut state.under_way);
        left.retain(|stream, _| {
            ended.locked.contains_key(stream)
                || (!all && runs.contains_key(stream) && !hurried.contains(stream))
        });
        for (stream, first) in left {
            state.touch([stream], first);
        }
        let told = |error: Error| (error.kind(), format!("publishing files: {error}"));
        state.refused.extend(behind_end.into_iter().map(|(stream, error)| (stream, told(error))));
        state.note_shown(wanted, if all { None } else { Some(hurried) });
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
    for nth in 1..=tries {
        if let Some(got) = attempt()? {
            return Ok(got);
        }
        if nth < tries {
            world.clock.pause(FOLDER_PAUSE);
        }
    }
    Err(Error::new(ErrorKind::Locked, format!("the folder {what} is locked by somebody else")))
}

/// Takes in what is durable of all runs, and brings the files of those that are due to what that says.
fn publish(
    of: &Of,
    log: &mut Option<Log>,
    runs: &mut Runs,
    names: Vec<(StreamId, RunName)>,
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
        // Begun once more under its key; or it has ended meanwhile, and is shown as a whole.
        if runs.contains_key(&stream) || log.has_ended(stream)? {
            continue;
        }
        let begun = begin(world, &name).map(|run| runs.insert(stream, run));
        failed.extend(begun.err());
    }
    // Half-written files of a run that fails are for the next repair; others go on.
    let mut broken = take_in(log, runs)?;
    runs.retain(|stream, run| {
        let flushed = if due(stream) { run.flush() } else { Ok(()) };
        let fine = flushed.is_ok();
        broken.extend(flushed.err().map(|error| Broken::of(*stream, run, error)));
        fine
    });
    for Broken { stream, error, is_displaced } in broken {
        // Of a log that somebody has removed, nothing is left to write on.
        let anew = if is_displaced { begin_anew(world, log, runs, stream) } else { Err(error) };
        failed.extend(anew.err());
    }
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// A run that was let go as it cannot be gone on with.
struct Broken {
    stream: StreamId,
    error: Error,
    is_displaced: bool,
}

impl Broken {
    fn of(stream: StreamId, run: &LiveRun, error: Error) -> Self {
        Self { stream, error, is_displaced: run.is_displaced() }
    }
}

/// Has the runs take in what is new of them. Those that cannot are let go, each with why.
fn take_in(log: &mut Log, runs: &mut Runs) -> Result<Vec<Broken>> {
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
        let Some(run) = runs.get_mut(&record.stream) else { return Ok(()) };
        if let Err(error) = run.apply(&record) {
            broken.push(Broken::of(record.stream, run, error));
            runs.remove(&record.stream);
        }
        Ok(())
    })?;
    Ok(broken)
}

fn begin(world: &World, name: &RunName) -> Result<LiveRun> {
    let create = &mut || LiveRun::create(Arc::clone(&world.disk), name);
    patiently(world, FOLDER_TRIES, &name.folder(), create)
}

/// Writes the files of a run with all of its records, if all can be read.
fn begin_anew(world: &World, log: &mut Log, runs: &mut Runs, stream: StreamId) -> Result<()> {
    let Some(run) = log.run_of(stream)? else { return Ok(()) };
    if let Some(damage) = log.stream(stream, Seq(1), &mut |_| Ok(true))?.first() {
        return Err(damage.to_error());
    }
    let mut alone = Runs::from([(stream, begin(world, &run.name)?)]);
    let broken = take_in(log, &mut alone)?;
    broken.into_iter().next().map_or(Ok(()), |broken| Err(broken.error))?;
    for (stream, mut run) in alone {
        run.flush()?;
        runs.insert(stream, run);
    }
    Ok(())
}

/// Runs that had ended, with why they cannot be shown.
type Refused = BTreeMap<StreamId, Error>;

/// What was appended to runs that had ended, and whose files nobody keeps up to date any more.
#[derive(Default)]
struct Ended {
    /// Those whose folders somebody else has locked, and since when.
    locked: BTreeMap<StreamId, Duration>,
}

impl Ended {
    /// Shows it. Whoever compares or rebuilds files has their folders for as long as that takes; nobody else waits
    /// for that.
    fn show(
        &mut self,
        of: &Of,
        log: &mut Log,
        streams: impl Iterator<Item = StreamId>,
        closing: bool,
    ) -> Refused {
        let mut refused = Refused::new();
        let before = std::mem::take(&mut self.locked);
        let mut tries = if closing { CLOSING_TRIES } else { 1 };
        for stream in streams {
            match show_behind_end(of, log, stream, tries) {
                Err(error) if error.kind() == ErrorKind::Locked && !closing => {
                    let now = Duration::from_nanos(of.world.clock.monotonic_ns());
                    let since = before.get(&stream).copied().unwrap_or(now);
                    if now.saturating_sub(since) < ENDED_PATIENCE {
                        self.locked.insert(stream, since);
                    } else {
                        refused.insert(stream, error);
                    }
                }
                Err(error) => {
                    // Whoever closes waits once for all of them.
                    tries = 1;
                    refused.insert(stream, error);
                }
                Ok(()) => {}
            }
        }
        if !self.locked.is_empty() {
            of.world.clock.pause(FOLDER_PAUSE);
        }
        refused
    }
}

fn show_behind_end(of: &Of, log: &mut Log, stream: StreamId, tries: u32) -> Result<()> {
    if !log.has_ended(stream)? {
        return Ok(());
    }
    let Some(run) = log.run_of(stream)? else { return Ok(()) };
    let shown = &mut || rebuild_unless_live(log, stream, true);
    if patiently(&of.world, tries, &run.name.folder(), shown)?.damaged {
        let message = format!("records of {} are damaged; its files were left alone", run.name);
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(())
}
