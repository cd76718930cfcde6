//! The way of tick records to the journal: in the order of the calls, by a thread of their own.

use super::config::Settings;
use super::hold;
use super::tick::Batch;
use crate::clock::Clock;
use crate::engine::tickers::{FRAMEWORK, Ticker};
use crate::engine::{Conditions, Engine, NewRecord, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::position::Time;
use crate::record::{Body, JsonText, Tick};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError::{Closed, Full};
use tokio::sync::{mpsc, oneshot};

/// How many records may wait to be written.
pub const QUEUE_LEN: usize = 8192;

/// How many bytes those may have together.
pub const QUEUE_BYTES: usize = 16 << 20;

/// How many are written with one sync.
const GROUP_LEN: usize = 512;

/// What a record does beside being one.
#[derive(Debug, Clone, Default)]
pub(super) enum Role {
    /// Nothing.
    #[default]
    Plain,
    /// It accounts for an interval.
    Interval(u64),
    /// It begins a tick by hand.
    Tick(u64),
    /// It ends a tick.
    End(u64),
    /// The timer, if there is one, begins with it.
    Started(Option<Duration>),
}

/// A record on its way.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tick: Tick,
    pub(super) role: Role,
    pub(super) term: Option<u64>,
}

impl Entry {
    pub(super) fn plain(tick: Tick) -> Self {
        Self { tick, role: Role::Plain, term: None }
    }

    pub(super) fn started(tick: Tick, interval: Option<Duration>) -> Self {
        Self { role: Role::Started(interval), ..Self::plain(tick) }
    }
}

/// A record of the framework's own, without details.
pub(super) fn framework(batch: &Batch, stage: &str, result: Option<&str>) -> Tick {
    Tick {
        batch_id: batch.id.clone(),
        runner: FRAMEWORK.to_owned(),
        stage: stage.to_owned(),
        result: result.map(str::to_owned),
        error: None,
        duration_ms: None,
        details: JsonText::empty(),
    }
}

#[derive(Debug)]
enum Message {
    Record { entry: Entry, at: Time, lost: u64, _weight: Weight },
    Flush(oneshot::Sender<()>),
    Stopped { tick: Tick, at: Time, lost: u64, answer: oneshot::Sender<Result<()>> },
}

/// Room for the last record.
pub(super) struct Room<'q> {
    queue: &'q Queue,
    permit: mpsc::Permit<'q, Message>,
}

impl Room<'_> {
    /// Hands it in, without waiting.
    pub(super) fn stop(self, tick: Tick) -> Stopping {
        let (answer, answered) = oneshot::channel();
        let mut lost = hold(&self.queue.lost);
        let at = self.queue.clock.now();
        self.permit.send(Message::Stopped { tick, at, lost: std::mem::take(&mut *lost), answer });
        Stopping(answered)
    }
}

/// The last record on its way.
pub(super) struct Stopping(oneshot::Receiver<Result<()>>);

impl Stopping {
    /// Waits until it and all before are durable.
    pub(super) async fn wait(self) -> Result<()> {
        waited(self.0).await.ok_or_else(gone)?
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Io, "the thread that records ticks has ended")
}

#[derive(Debug)]
pub(super) struct Queue {
    messages: mpsc::Sender<Message>,
    clock: Arc<dyn Clock>,
    settings: Arc<Settings>,
    /// How many records did not fit since one last did. Held while one is stamped and handed in, so
    /// that times and records have one order.
    lost: Mutex<u64>,
    /// The bytes of those that wait.
    bytes: Arc<AtomicUsize>,
}

/// A record's share of the queue, which it gives back when it is written.
#[derive(Debug)]
struct Weight(Arc<AtomicUsize>, usize);

impl Weight {
    /// `None` where the queue is full.
    fn take(bytes: &Arc<AtomicUsize>, tick: &Tick) -> Option<Self> {
        let texts = [
            Some(&tick.batch_id),
            Some(&tick.runner),
            Some(&tick.stage),
            tick.result.as_ref(),
            tick.error.as_ref(),
        ];
        let len = texts.into_iter().flatten().map(String::len).sum::<usize>() + tick.details.as_str().len();
        let fits = |before: usize| before.checked_add(len).filter(|after| *after <= QUEUE_BYTES);
        bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).ok()?;
        Some(Self(Arc::clone(bytes), len))
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::SeqCst);
    }
}

impl Queue {
    pub(super) fn start(engine: &Engine, settings: &Arc<Settings>) -> Result<Self> {
        let (messages, waiting) = mpsc::channel(QUEUE_LEN);
        let writer = Writer { engine: engine.clone(), settings: Arc::clone(settings), ticker: None };
        std::thread::Builder::new()
            .name("runwal-ticks".to_owned())
            .spawn(move || writer.work(waiting))
            .map_err(|e| Error::io("starting the thread that records ticks", e))?;
        let clock = Arc::clone(&engine.world().clock);
        Ok(Self {
            messages,
            clock,
            settings: Arc::clone(settings),
            lost: Mutex::new(0),
            bytes: Arc::default(),
        })
    }

    /// Hands a record in, without waiting.
    pub(super) fn push(&self, entry: Entry) {
        if let Err(refused) = self.try_push(entry) {
            self.settings.not_written(&refused.tick, None);
        }
    }

    fn try_push(&self, entry: Entry) -> std::result::Result<(), Box<Entry>> {
        let mut lost = hold(&self.lost);
        let refused = match Weight::take(&self.bytes, &entry.tick) {
            None => entry,
            Some(weight) => {
                let message = Message::Record { entry, at: self.clock.now(), lost: *lost, _weight: weight };
                let Err(Full(Message::Record { entry, .. }) | Closed(Message::Record { entry, .. })) =
                    self.messages.try_send(message)
                else {
                    *lost = 0;
                    return Ok(());
                };
                entry
            }
        };
        *lost += 1;
        Err(Box::new(refused))
    }

    /// Waits until everything handed in is durable, or told to be not written.
    pub(super) async fn flush(&self) {
        let (answer, answered) = oneshot::channel();
        if self.messages.send(Message::Flush(answer)).await.is_ok() {
            let _ = waited(answered).await;
        }
    }

    /// Waits until there is room for the last record.
    pub(super) async fn room(&self) -> Result<Room<'_>> {
        let permit = self.messages.reserve().await.map_err(|_| gone())?;
        Ok(Room { queue: self, permit })
    }
}

/// Waits in a thread that may block: so a runtime whose time is paused knows that it is not idle.
async fn waited<T: Send + 'static>(answered: oneshot::Receiver<T>) -> Option<T> {
    tokio::task::spawn_blocking(move || answered.blocking_recv().ok()).await.ok().flatten()
}

struct Writer {
    engine: Engine,
    settings: Arc<Settings>,
    ticker: Option<Ticker>,
}

impl Writer {
    fn work(mut self, mut waiting: mpsc::Receiver<Message>) {
        let mut messages = Vec::new();
        while waiting.blocking_recv_many(&mut messages, GROUP_LEN) > 0 {
            let mut tickets = Vec::new();
            for message in messages.drain(..) {
                match message {
                    Message::Record { entry, at, lost, .. } => self.record(entry, at, lost, &mut tickets),
                    Message::Flush(answer) => {
                        self.wait(&mut tickets);
                        let _ = answer.send(());
                    }
                    Message::Stopped { tick, at, lost, answer } => {
                        self.gap(&tick, at, lost, &mut tickets);
                        self.wait(&mut tickets);
                        let stopped = self.stopped(&tick, at);
                        if let Err(error) = &stopped {
                            self.settings.not_written(&tick, Some(error));
                        }
                        let _ = answer.send(stopped);
                    }
                }
            }
            self.wait(&mut tickets);
        }
    }

    fn wait(&self, tickets: &mut Vec<(Tick, Ticket)>) {
        for (tick, ticket) in tickets.drain(..) {
            if let Err(error) = ticket.wait() {
                self.settings.not_written(&tick, Some(&error));
            }
        }
    }

    fn record(&mut self, entry: Entry, at: Time, lost: u64, tickets: &mut Vec<(Tick, Ticket)>) {
        self.gap(&entry.tick, at, lost, tickets);
        self.hand_in(entry, at, tickets);
    }

    /// Records how many records are lost in front of one.
    fn gap(&mut self, next: &Tick, at: Time, lost: u64, tickets: &mut Vec<(Tick, Ticket)>) {
        if lost == 0 {
            return;
        }
        let details = JsonText::parse(&format!("{{\"count\":{lost}}}")).unwrap_or(JsonText::empty());
        let tick = Tick {
            batch_id: next.batch_id.clone(),
            runner: FRAMEWORK.to_owned(),
            stage: "records_lost".to_owned(),
            result: None,
            error: None,
            duration_ms: None,
            details,
        };
        self.hand_in(Entry::plain(tick), at, tickets);
    }

    fn hand_in(&mut self, entry: Entry, at: Time, tickets: &mut Vec<(Tick, Ticket)>) {
        match self.submit(&entry, at) {
            Ok(ticket) => tickets.extend(ticket.map(|ticket| (entry.tick, ticket))),
            Err(error) => self.settings.not_written(&entry.tick, Some(&error)),
        }
    }

    /// `None` where it is durable already.
    fn submit(&mut self, entry: &Entry, at: Time) -> Result<Option<Ticket>> {
        let engine = self.engine.clone();
        if matches!(entry.role, Role::Started(_))
            && let Some(before) = self.ticker.take_if(|ticker| ticker.has_timer())
        {
            // Its runtime ended in the middle of a stop.
            before.stopped(&engine, None)?;
        }
        let ticker = self.ticker()?;
        let key = match entry.role {
            Role::Started(Some(interval)) => {
                ticker.started(&engine, interval, at, stamped(entry.tick.clone(), at))?;
                return Ok(None);
            }
            Role::Plain | Role::Started(None) => None,
            Role::Interval(nth) => Some(ticker.key_of_interval(nth)),
            Role::Tick(counter) => Some(ticker.key_of_tick(counter)),
            Role::End(counter) => Some(ticker.key_of_end(counter)),
        };
        let mut conditions = Conditions::none();
        if let Some(term) = entry.term {
            conditions = conditions.term(term);
        }
        if let Some(key) = key {
            conditions = conditions.key(key);
        }
        let record = stamped(entry.tick.clone(), at);
        engine.submit_ticks(&[(None, record)], conditions).map(Some)
    }

    /// The life under which records stand; a new one behind each stop.
    fn ticker(&mut self) -> Result<&mut Ticker> {
        if self.ticker.is_none() {
            self.ticker = Some(Ticker::open(&self.engine)?);
        }
        self.ticker.as_mut().ok_or_else(|| Error::misuse("there is no ticker"))
    }

    fn stopped(&mut self, tick: &Tick, at: Time) -> Result<()> {
        self.ticker()?;
        match self.ticker.take() {
            Some(ticker) => ticker.stopped(&self.engine, Some(stamped(tick.clone(), at))),
            None => Ok(()),
        }
    }
}

fn stamped(tick: Tick, at: Time) -> NewRecord {
    NewRecord { time: Some(at), created_at: Some(at), ..Body::Tick(tick).into() }
}
