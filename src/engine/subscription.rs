//! Watching a journal: from a place in it to its end and on, each record once, and after a restart
//! from where one was.

use super::log::{Entry, decode};
use super::{Bell, Log, hex};
use crate::error::{Error, Result};
use crate::position::{Position, StreamId};
use crate::reader::{Item, RawRecord, Sequence};
use crate::record::{Id, Kind, RunName};
use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// How many names of runs are remembered.
const MAX_NAMES: usize = 1_000;

/// How often it is looked for what other processes have written.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// A place in a journal that survives restarts, rolls and copies: behind some record of it.
///
/// Its text, the journal's id in hex, a colon and the position, is what `runwal log` shows and takes.
/// The default one stands before the first record of any journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Cursor {
    journal: [u8; 16],
    position: Position,
}

impl Cursor {
    /// Behind the record at `position` of the journal with this id.
    pub fn new(journal: [u8; 16], position: Position) -> Self {
        Self { journal, position }
    }

    /// The journal's id.
    pub fn journal(&self) -> [u8; 16] {
        self.journal
    }

    /// The position of the last record before it.
    pub fn position(&self) -> Position {
        self.position
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", hex(&self.journal), self.position)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (id, position) = text.split_once(':')?;
            let journal = u128::from_str_radix(id, 16).ok()?.to_be_bytes();
            let cursor = Self { journal, position: Position(position.parse().ok()?) };
            // One place has one text.
            (cursor.to_string() == text).then_some(cursor)
        };
        parse().ok_or_else(|| Error::misuse(format!("\"{}\" is no cursor", text.escape_debug())))
    }
}

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// With the first record there is.
    #[default]
    Beginning,
    /// With the first that is not durable yet.
    Now,
    /// With the first behind a cursor.
    After(Cursor),
}

/// Which records are wanted: by default all. Damage is told whatever is wanted, as nobody knows what
/// it took away.
///
/// ```
/// use runwal::engine::Filter;
/// use runwal::record::{Id, Kind};
///
/// let ends_of_one_task = Filter::default().task(Id::new("T-016")?).kind(Kind::Lifecycle);
/// # Ok::<(), runwal::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    runs: BTreeSet<RunName>,
    tasks: BTreeSet<Id>,
    kinds: BTreeSet<Kind>,
}

impl Filter {
    /// Also this run; without any run or task, all of them and the timed jobs.
    pub fn run(mut self, name: RunName) -> Self {
        self.runs.insert(name);
        self
    }

    /// Also all runs of this task.
    pub fn task(mut self, task: Id) -> Self {
        self.tasks.insert(task);
        self
    }

    /// Also this kind; without any, all of them and those that this version does not know.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kinds.insert(kind);
        self
    }

    fn wants_kind(&self, number: u8) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|kind| kind.number() == number)
    }

    fn wants_run(&self, name: Option<&RunName>) -> bool {
        (self.runs.is_empty() && self.tasks.is_empty())
            || name.is_some_and(|name| self.runs.contains(name) || self.tasks.contains(&name.task))
    }
}

/// What a subscription gives.
#[derive(Debug)]
pub struct Delivery {
    /// Where to go on after a restart: behind this.
    pub cursor: Cursor,
    /// The run it belongs to. None for the timed jobs, for damage, and where the name cannot be read
    /// any more.
    pub run: Option<RunName>,
    /// The record, or what cannot be read.
    pub what: Entry,
}

/// The names of the streams met, each looked up once.
#[derive(Debug)]
struct Names {
    known: BTreeMap<StreamId, (Option<RunName>, bool)>,
    /// The streams of the runs that are asked for: found by their names, which may be damaged.
    asked: BTreeMap<StreamId, RunName>,
}

impl Names {
    /// The run of a record, and whether it is wanted.
    fn of(&mut self, log: &mut Log, raw: &RawRecord, filter: &Filter) -> Result<&(Option<RunName>, bool)> {
        if self.known.len() >= MAX_NAMES && !self.known.contains_key(&raw.stream) {
            // The one that began first is the likeliest to be over.
            self.known.pop_first();
        }
        match self.known.entry(raw.stream) {
            Place::Occupied(known) => Ok(known.into_mut()),
            Place::Vacant(place) => {
                let name = match (&raw.opens, self.asked.get(&raw.stream)) {
                    (Some(name), _) => RunName::parse(name),
                    (None, Some(name)) => Some(name.clone()),
                    (None, None) => log.run_of(raw.stream)?.map(|run| run.name),
                };
                let wanted = filter.wants_run(name.as_ref());
                Ok(place.insert((name, wanted)))
            }
        }
    }
}

/// Where a subscription is, apart from the handle it reads through.
#[derive(Debug)]
pub(crate) struct Course {
    sequence: Sequence,
    filter: Filter,
    names: Names,
    /// Everything up to here was looked at.
    looked: Position,
    /// Taken from the sequence, and not looked at because something failed.
    held: Option<RawRecord>,
}

/// One step of it.
#[derive(Debug)]
pub(crate) enum Step {
    /// Something that is wanted.
    Given(Box<Delivery>),
    /// Something that is not, with so many bytes.
    Passed(
        #[cfg_attr(not(feature = "tokio"), expect(dead_code, reason = "a thread of its own passes all"))] u64,
    ),
    /// The durable end.
    End,
}

impl Course {
    pub(crate) fn begin(log: &mut Log, start: Start, filter: Filter) -> Result<Self> {
        log.refresh()?;
        let mut names = Names { known: BTreeMap::new(), asked: BTreeMap::new() };
        for name in &filter.runs {
            if let Some(stream) = log.find(&name.to_string())? {
                names.asked.insert(stream, name.clone());
            }
        }
        let looked = match start {
            Start::Now => log.durable(),
            Start::After(cursor) => log.position_of(&cursor)?,
            Start::Beginning if filter.runs.is_empty() || !filter.tasks.is_empty() => Position::ZERO,
            // Nothing of these runs stands before their first records, or before what is durable now.
            Start::Beginning => match names.asked.first_key_value() {
                Some((first, _)) => Position(first.0.saturating_sub(1)),
                None => log.durable(),
            },
        };
        let sequence = log.reader.sequence(Position(looked.0.saturating_add(1)))?;
        Ok(Self { sequence, filter, names, looked, held: None })
    }

    /// Everything up to here was looked at, and is behind it.
    pub(crate) fn looked(&self) -> Position {
        self.looked
    }

    /// Takes one step. After an error the same step can be taken again.
    pub(crate) fn step(&mut self, log: &mut Log) -> Result<Step> {
        let item = match self.held.take() {
            Some(raw) => Some(Item::Record(raw)),
            None => log.reader.next(&mut self.sequence)?,
        };
        let raw = match item {
            Some(Item::Record(raw)) => raw,
            Some(Item::Damage(damage)) => {
                let last = damage.unchained.map_or(damage.to, |at| at);
                if last != Position::ZERO && last <= self.looked {
                    // Told before the restart: reading begins somewhat before the cursor.
                    return Ok(Step::Passed(0));
                }
                self.looked = self.looked.max(damage.to);
                return Ok(self.given(log, None, Entry::Damage(damage)));
            }
            None => {
                self.looked = self.looked.max(log.durable());
                return Ok(Step::End);
            }
        };
        let len = raw.payload.len() as u64;
        let mut run = None;
        let mut wanted = self.filter.wants_kind(raw.kind);
        if wanted {
            match self.names.of(log, &raw, &self.filter) {
                Ok((name, true)) => run.clone_from(name),
                Ok((_, false)) => wanted = false,
                Err(error) => {
                    self.held = Some(raw);
                    return Err(error);
                }
            }
        }
        self.looked = self.looked.max(raw.position);
        if !wanted {
            return Ok(Step::Passed(len));
        }
        let record = decode(raw)?;
        Ok(self.given(log, run, Entry::Record(record)))
    }

    fn given(&self, log: &Log, run: Option<RunName>, what: Entry) -> Step {
        let cursor = Cursor::new(log.journal_id(), self.looked);
        Step::Given(Box::new(Delivery { cursor, run, what }))
    }
}

/// A read that goes on: what stands in the journal, then what is appended to it by any process, in
/// order, nothing twice and nothing left out.
///
/// A filter leaves out what is not wanted, and never damage. [`cursor`](Self::cursor) is behind
/// everything that was looked at, also what was left out. Whoever keeps the cursor together with
/// what was made of a delivery sees each record exactly once; only damage that costs no record may
/// be told again.
///
/// ```
/// use runwal::engine::{Entry, Filter, Start};
/// use runwal::record::{Id, Kind};
/// use runwal::run::{End, Outcome, Recorder, RunRequest};
/// use runwal::{Engine, Options};
/// use std::time::Duration;
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let dir = dir.path().join("data");
/// let (engine, _report) = Engine::open(&dir, Options::default())?;
/// let mut watched = engine.subscribe(Start::Now, Filter::default().kind(Kind::Lifecycle))?;
///
/// let request = RunRequest::new(Id::new("T-016")?, Id::new("r-1")?, Id::new("build")?);
/// Recorder::prepare(&engine, request)?.finish(End::new(Outcome::Completed, "Done.").exit_code(0))?;
///
/// let mut kept = watched.cursor();
/// while let Some(delivery) = watched.next_within(Duration::from_secs(1))? {
///     kept = delivery.cursor; // goes to where it survives a restart
///     let Entry::Record(record) = delivery.what else { continue };
///     if record.ends {
///         break;
///     }
/// }
/// let mut again = engine.subscribe(Start::After(kept.to_string().parse()?), Filter::default())?;
/// // The end's patch and log tail.
/// assert_eq!([again.next()?.is_some(), again.next()?.is_some(), again.next()?.is_some()], [true, true, false]);
/// # Ok::<(), runwal::Error>(())
/// ```
#[derive(Debug)]
pub struct Subscription {
    log: Log,
    course: Course,
    /// What was durable when its end was last reached.
    reached: Position,
    bell: Option<Arc<Bell>>,
}

/// How long is to be waited in all.
struct Patience {
    start: u64,
    total: Duration,
    /// What was waited without asking the clock, which a test may have stopped.
    counted: Duration,
}

impl Subscription {
    pub(super) fn begin(mut log: Log, start: Start, filter: Filter, bell: Option<Arc<Bell>>) -> Result<Self> {
        let course = Course::begin(&mut log, start, filter)?;
        Ok(Self { log, course, reached: Position::ZERO, bell })
    }

    /// The next delivery; `None` where nothing more is durable now.
    #[expect(clippy::should_implement_trait, reason = "it fails, and goes on after None")]
    pub fn next(&mut self) -> Result<Option<Delivery>> {
        loop {
            match self.course.step(&mut self.log)? {
                Step::Given(delivery) => return Ok(Some(*delivery)),
                Step::Passed(_) => {}
                Step::End if self.log.refresh()? => {}
                Step::End => {
                    self.reached = self.log.durable();
                    return Ok(None);
                }
            }
        }
    }

    /// Waits until more is durable than [`next`](Self::next) has seen, wanted or not; answers whether
    /// there is. Gives up after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<bool> {
        let mut patience = self.patience(patience);
        self.wait_for(&mut patience)
    }

    /// The next delivery, waited for; `None` after `patience`.
    pub fn next_within(&mut self, patience: Duration) -> Result<Option<Delivery>> {
        let mut patience = self.patience(patience);
        loop {
            if let Some(delivery) = self.next()? {
                return Ok(Some(delivery));
            }
            if !self.wait_for(&mut patience)? {
                return Ok(None);
            }
        }
    }

    /// Behind everything that was given out or left out: where to go on after a restart.
    pub fn cursor(&self) -> Cursor {
        Cursor::new(self.log.journal_id(), self.course.looked())
    }

    fn patience(&self, total: Duration) -> Patience {
        Patience { start: self.log.reader.now_ns(), total, counted: Duration::ZERO }
    }

    fn wait_for(&mut self, patience: &mut Patience) -> Result<bool> {
        loop {
            // Listening begins before the look: what comes between them rings.
            let listener = self.bell.as_deref().map(Bell::listen);
            if self.log.refresh()? || self.log.durable() > self.reached {
                return Ok(true);
            }
            let passed = Duration::from_nanos(self.log.reader.now_ns().saturating_sub(patience.start));
            let left = patience.total.saturating_sub(passed.max(patience.counted));
            if left.is_zero() {
                return Ok(false);
            }
            match listener {
                Some(listener) if listener.wait(LOOK.min(left)) => {}
                Some(_) => patience.counted += LOOK.min(left),
                None => return self.log.wait(left),
            }
        }
    }
}
