//! Writing to a run beside its recorder, who is its stream's only writer.
//!
//! Others leave records here and never wait. They are handed to the journal in turns: by the
//! recorder in front of whatever it appends itself, or by a thread that has nothing else to do while
//! the recorder appends nothing. Whose turn it is has the run's fold, and with it the sequence that
//! comes next.

use super::{Conditions, Engine, NewRecord, Ticket, preview};
use crate::error::Result;
use crate::position::{StreamId, Time};
use crate::projection::RunFold;
use crate::record::{Body, Level, Lifecycle, RunName, event};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// The most bytes that wait for one run: less than a batch takes, with what each record counts
/// beside its content.
const MAX_WAITING_LEN: usize = 4 << 20;
/// What a record counts beside its content.
const RECORD_LEN: usize = 128;

/// The runs of one engine that have a recorder.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    runs: RwLock<BTreeMap<String, Weak<Beside>>>,
    lost: AtomicU64,
}

impl Recorded {
    /// The run of this name, `task/run`, if its recorder is there.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Beside>> {
        self.runs.read().unwrap_or_else(PoisonError::into_inner).get(name)?.upgrade()
    }

    /// Records that were left for runs and are in no journal.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn lose(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }
}

/// One run, for those who write to it beside its recorder.
#[derive(Debug)]
pub(crate) struct Beside {
    name: String,
    stream: StreamId,
    /// In whose name the recorder writes.
    conditions: Conditions,
    of: Arc<Recorded>,
    waiting: Mutex<Waiting>,
    /// `None` once the recorder is gone. Held while the journal writes, so never by who must not wait.
    turn: Mutex<Option<Turn>>,
}

/// What was left to be written.
#[derive(Debug, Default)]
struct Waiting {
    records: Vec<NewRecord>,
    len: usize,
    /// How many had no place behind them.
    lost: u64,
    /// A thread knows that there is something.
    called: bool,
    closed: bool,
}

#[derive(Debug)]
struct Turn {
    engine: Engine,
    /// Where the run stands; the recorder has it in its turn.
    fold: Option<Arc<RunFold>>,
}

/// What became of a record that was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// It waits; somebody has been called for what is there.
    Waits,
    /// It waits, and nobody has been called yet.
    Call,
    /// It did not fit, or nothing is written to this run any more; it was counted.
    Lost,
}

/// What was handed to the journal in front of a recorder's own records.
#[derive(Debug)]
pub(crate) struct Ahead {
    ticket: Ticket,
    taken: Taken,
    before: Arc<RunFold>,
}

/// What waited: events, and one more record that says how many were lost, if any were.
#[derive(Debug)]
struct Taken {
    records: Vec<NewRecord>,
    events: u64,
    lost: u64,
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Beside {
    /// For a run whose recorder is about to begin.
    pub(crate) fn new(
        engine: &Engine,
        name: &RunName,
        stream: StreamId,
        conditions: Conditions,
    ) -> Arc<Self> {
        let turn = Mutex::new(Some(Turn { engine: engine.clone(), fold: None }));
        let of = Arc::clone(engine.recorded());
        Arc::new(Self { name: name.to_string(), stream, conditions, of, waiting: Mutex::default(), turn })
    }

    /// From here on others find it.
    pub(crate) fn begin(self: &Arc<Self>, fold: &Arc<RunFold>) {
        if let Some(turn) = &mut *hold(&self.turn) {
            turn.fold = Some(Arc::clone(fold));
        }
        let mut runs = self.of.runs.write().unwrap_or_else(PoisonError::into_inner);
        runs.insert(self.name.clone(), Arc::downgrade(self));
    }

    /// Leaves a record to be written, at most so many at a time. Never waits for a disk.
    pub(crate) fn leave(&self, event: Lifecycle, at: Time, most: usize) -> Left {
        let len = RECORD_LEN + event.message.len() + event.data.as_str().len();
        let record = NewRecord { created_at: Some(at), ..Body::Lifecycle(event).into() };
        let mut waiting = hold(&self.waiting);
        let fits = waiting.records.len() < most && waiting.len + len <= MAX_WAITING_LEN;
        if waiting.closed || !fits {
            waiting.lost += 1;
            self.of.lose(1);
            return Left::Lost;
        }
        waiting.len += len;
        waiting.records.push(record);
        if std::mem::replace(&mut waiting.called, true) { Left::Waits } else { Left::Call }
    }

    /// Writes what waits for these runs, if their recorders have not, with one sync. For whoever was
    /// called.
    pub(crate) fn write_all(runs: &[Arc<Self>]) {
        // Their turns are held until all is durable. That nobody waits for two of them but this
        // thread, and no recorder for one while it has its own, keeps them from waiting in a circle.
        let handed_in: Vec<_> = runs.iter().filter_map(|run| run.hand_in()).collect();
        for handed_in in handed_in {
            handed_in.settle();
        }
    }

    fn hand_in(&self) -> Option<HandedIn<'_>> {
        let held = hold(&self.turn);
        hold(&self.waiting).called = false;
        let Some(Turn { engine, fold: Some(fold) }) = &*held else { return None };
        let taken = self.take(engine)?;
        let Ok(ticket) = engine.submit(self.stream, self.conditions(fold), &taken.records) else {
            self.failed(&taken);
            return None;
        };
        Some(HandedIn { beside: self, held, taken, ticket })
    }

    /// The recorder's turn: nobody else writes until it is passed on. Gives the recorder the fold as
    /// others left it.
    pub(crate) fn turn(&self, fold: &mut Arc<RunFold>) -> RecordersTurn<'_> {
        let mut held = hold(&self.turn);
        if let Some(theirs) = held.as_mut().and_then(|turn| turn.fold.take()) {
            *fold = theirs;
        }
        RecordersTurn { beside: self, held }
    }

    /// The recorder is going: writes what waits, and nothing from then on.
    pub(crate) fn end(&self) {
        hold(&self.waiting).closed = true;
        self.of.runs.write().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        if let Some(handed_in) = self.hand_in() {
            handed_in.settle();
        }
        // The engine goes with it, and not under the lock: this may be its last handle.
        let turn = hold(&self.turn).take();
        drop(turn);
    }

    /// The recorder's, which nobody writes past: what is traced of a run whose conductor was taken
    /// over from is lost with it.
    fn conditions(&self, fold: &RunFold) -> Conditions {
        let conditions = self.conditions.clone();
        match fold.last_seq().next() {
            Some(next) => conditions.expecting(next),
            None => conditions,
        }
    }

    /// What waits, and behind it how much had no place.
    fn take(&self, engine: &Engine) -> Option<Taken> {
        let mut waiting = hold(&self.waiting);
        waiting.len = 0;
        let mut records = std::mem::take(&mut waiting.records);
        let lost = std::mem::take(&mut waiting.lost);
        drop(waiting);
        let events = records.len() as u64;
        if lost > 0 {
            records.extend(told(lost, engine.world().clock.now()));
        }
        (!records.is_empty()).then_some(Taken { records, events, lost })
    }

    /// What was handed in is not in the journal. The next that is says so, unless that fails too.
    fn failed(&self, taken: &Taken) {
        self.of.lose(taken.events);
        hold(&self.waiting).lost += taken.events + taken.lost;
    }
}

/// What was handed in while the recorder did nothing, with the turn that it was.
struct HandedIn<'b> {
    beside: &'b Beside,
    held: MutexGuard<'b, Option<Turn>>,
    taken: Taken,
    ticket: Ticket,
}

impl HandedIn<'_> {
    fn settle(mut self) {
        match (self.ticket.wait(), &mut *self.held) {
            (Ok(_), Some(Turn { fold: Some(fold), .. })) => note(fold, &self.taken.records),
            (Ok(_), _) => {}
            (Err(_), _) => self.beside.failed(&self.taken),
        }
    }
}

/// While it is there, nobody writes to the run but its recorder.
#[derive(Debug)]
pub(crate) struct RecordersTurn<'b> {
    beside: &'b Beside,
    held: MutexGuard<'b, Option<Turn>>,
}

impl RecordersTurn<'_> {
    /// Hands in what waits, so that it comes before what the recorder is about to write and shares
    /// its sync.
    pub(crate) fn ahead(&self, fold: &mut Arc<RunFold>) -> Option<Ahead> {
        let Turn { engine, .. } = self.held.as_ref()?;
        let taken = self.beside.take(engine)?;
        let Ok(ticket) = engine.submit(self.beside.stream, self.beside.conditions(fold), &taken.records)
        else {
            self.beside.failed(&taken);
            return None;
        };
        let before = Arc::clone(fold);
        note(fold, &taken.records);
        Some(Ahead { ticket, taken, before })
    }

    /// Waits for what was handed in ahead; where it failed, the fold is what it was before.
    pub(crate) fn settle(&self, ahead: Option<Ahead>, fold: &mut Arc<RunFold>) -> Result<()> {
        let Some(Ahead { ticket, taken, before }) = ahead else { return Ok(()) };
        ticket.wait().map(drop).inspect_err(|_| {
            self.beside.failed(&taken);
            *fold = before;
        })
    }

    /// Ends the turn, with the fold as the recorder leaves it.
    pub(crate) fn pass(mut self, fold: &Arc<RunFold>) {
        if let Some(turn) = &mut *self.held {
            turn.fold = Some(Arc::clone(fold));
        }
    }
}

/// Lets the fold see records that were handed in.
fn note(fold: &mut Arc<RunFold>, records: &[NewRecord]) {
    let fold = Arc::make_mut(fold);
    for record in records {
        preview(fold, record, record.created_at.unwrap_or_default());
    }
}

/// The event that says how many are missing here.
fn told(lost: u64, now: Time) -> Option<NewRecord> {
    #[derive(Serialize)]
    struct Data {
        lost: u64,
    }
    let message = format!("{lost} traces are missing: there was no room for them, or writing them failed.");
    let event = Lifecycle::new(event::TRACE_LOST, Level::Warn, message).with_data(&Data { lost }).ok()?;
    Some(NewRecord { created_at: Some(now), ..Body::Lifecycle(event).into() })
}
