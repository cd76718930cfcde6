//! The front door: open a data directory, append, read, follow, rebuild.
//!
//! [`Engine`] writes, and brings the files of its own runs to the disk in a thread of its own.
//! [`Log`] reads, from any process, and writes nothing. Both are blocking and need no runtime.

#[cfg(feature = "tracing-layer")]
mod beside;
mod ending;
mod flusher;
mod log;
mod noted;
mod publisher;
mod rebuild;
mod repair;
mod subscription;
pub(crate) mod tickers;

#[cfg(feature = "tracing-layer")]
pub(crate) use beside::{Beside, Left, Recorded};
pub use ending::{Artifact, Ending, ending_records};
pub(crate) use ending::{EndingData, preview};
pub use log::{BatchEntry, Batches, Entry, Info, Log, Records, RunInfo};
pub use repair::{InterruptedRun, Report};
pub(crate) use repair::{hex, outcome_name};
#[cfg(feature = "tokio")]
pub(crate) use subscription::{Course, LOOK, Step};
pub use subscription::{Cursor, Delivery, Filter, Start, Subscription};
pub use tickers::MissedTicks;

use crate::clock::{Clock, Entropy, System};
use crate::disk::Disk;
use crate::disk::os::OsDisk;
use crate::error::{Conflict, Error, ErrorKind, Result};
pub(crate) use crate::journal::bell::Bell;
#[cfg(feature = "tokio")]
pub(crate) use crate::journal::closed;
use crate::journal::live::Alive;
use crate::journal::{Append, Draft, Journal, JournalOptions, Queued, Target};
pub use crate::journal::{Batch, BatchRecords, Conditions, Damage, MAX_WAITING_LEN, Receipt};
use crate::observe;
use crate::position::{Seq, StreamId, Time};
use crate::projection::{LogTail, RunFold};
use crate::record::{Body, RunName, RunPrepared, TICKS_STREAM, Tick};
use flusher::Flusher;
use publisher::Publisher;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
#[cfg(feature = "tokio")]
use std::task::{Context, Poll};
use std::time::Duration;

/// How old the knowledge of the highest term may be.
const TERM_AGE_NS: u64 = 1_000_000_000;

/// The most bytes of a `log_tail` checkpoint.
const MAX_LOG_TAIL_LEN: usize = 512 << 10;

/// Settings of an engine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Settings of the journal.
    pub journal: JournalOptions,
    /// Whether to end the worker processes that a killed recorder left running. Default: yes.
    pub end_orphans: bool,
    /// How long such processes get between being asked to end and being killed. Default: 2 s.
    pub orphan_grace: Duration,
    /// Whether to bring projected files to the disk. Default: yes. The journal has everything
    /// either way.
    pub publish: bool,
    /// Whether the daily files of the timed jobs are among them. Default: yes. Without, `runwal
    /// rebuild`, or the next engine that publishes them, makes them.
    pub publish_ticks: bool,
    /// By when what was [buffered](Engine::buffer) is durable at the latest, but for the time that the
    /// disk takes. Default: 50 ms.
    pub buffer_for: Duration,
    /// How many lines a `log_tail` checkpoint has at most. Default: 200.
    pub log_tail_lines: usize,
    /// How many bytes it has at most. Default: 64 KiB; at most 512 KiB, so that it fits into the
    /// batch that ends a run.
    pub log_tail_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            journal: JournalOptions::default(),
            end_orphans: true,
            orphan_grace: Duration::from_secs(2),
            publish: true,
            publish_ticks: true,
            buffer_for: Duration::from_millis(50),
            log_tail_lines: LogTail::LINES,
            log_tail_bytes: LogTail::BYTES,
        }
    }
}

/// What the engine needs of the world.
#[derive(Debug, Clone)]
pub struct World {
    /// The data directory.
    pub disk: Arc<dyn Disk>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Identifiers and salts.
    pub entropy: Arc<dyn Entropy>,
}

impl World {
    /// The operating system's, with a data directory that exists.
    pub fn existing(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no data directory {}", dir.display()),
            ));
        }
        Ok(Self::system(OsDisk::open(dir)?))
    }

    /// The operating system's, with a data directory that is made if need be.
    pub fn create(dir: &Path) -> Result<Self> {
        Ok(Self::system(OsDisk::create(dir)?))
    }

    fn system(disk: OsDisk) -> Self {
        Self { disk: Arc::new(disk), clock: Arc::new(System), entropy: Arc::new(System) }
    }
}

/// A record to be appended.
#[derive(Debug, Clone)]
pub struct NewRecord {
    /// What it says.
    pub body: Body,
    /// When it was handed in, if that is not now.
    pub time: Option<Time>,
    /// When it came to be, if that is another time.
    pub created_at: Option<Time>,
    /// Whether it ends the run.
    pub ends: bool,
    /// Whether its content goes on in the next one.
    pub more: bool,
}

impl From<Body> for NewRecord {
    fn from(body: Body) -> Self {
        Self { body, time: None, created_at: None, ends: false, more: false }
    }
}

/// A journal opened for writing.
///
/// # After a crash
/// Everything a [`Receipt`] was given for is there. Opening again sets the torn tail aside, ends
/// the runs whose recorder is dead, repairs their files, and tells all of it in a [`Report`].
///
/// A handle is cheap to clone; all clones are one engine, which ends with the first
/// [`close`](Self::close) or the last drop.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    journal: Journal,
    world: World,
    recorder: [u8; 16],
    boot: [u8; 16],
    log_tail: (usize, usize),
    publisher: OnceLock<Arc<Publisher>>,
    buffer_for: Duration,
    /// Made when something is buffered first.
    flusher: OnceLock<Flusher>,
    alive: Mutex<Option<Alive>>,
    closed: AtomicBool,
    ticks: OnceLock<StreamId>,
    /// Made when it is first asked whether a term is over.
    term_watch: Mutex<Option<TermWatch>>,
    /// How many tickers of the timed jobs there were.
    #[cfg(feature = "tokio")]
    tickers: std::sync::atomic::AtomicU64,
    #[cfg(feature = "tracing-layer")]
    recorded: Arc<Recorded>,
}

/// A reader that looks for later terms.
#[derive(Debug)]
struct TermWatch {
    log: Log,
    looked_ns: u64,
}

impl Engine {
    /// Opens a data directory, making it if need be (its parent must exist).
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where records that were durable are gone from the end of the journal
    /// (see [`Engine::accept_damage`]); [`ErrorKind::Unsupported`] for a newer format or a network
    /// file system; [`ErrorKind::Locked`] where the lock was not free in time.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<(Self, Report)> {
        Self::open_in(World::create(dir.as_ref())?, options)
    }

    /// The same in a world of the caller's.
    pub fn open_in(world: World, options: Options) -> Result<(Self, Report)> {
        observe::opening(
            || Self::open_unobserved(world, options),
            |(_, report)| observe::Opened {
                verdict: report.verdict.word(),
                quarantined_bytes: report.quarantined_bytes,
                kept_records: report.kept_records,
                interrupted: report.interrupted.len(),
                position: report.position,
            },
        )
    }

    fn open_unobserved(world: World, options: Options) -> Result<(Self, Report)> {
        let log_tail = (options.log_tail_lines, options.log_tail_bytes);
        if log_tail.1 > MAX_LOG_TAIL_LEN {
            let message =
                format!("a log tail of {} bytes is over the limit of {MAX_LOG_TAIL_LEN}", log_tail.1);
            return Err(Error::misuse(message));
        }
        let World { disk, clock, entropy } = world.clone();
        let (journal, opened) = Journal::open(Arc::clone(&disk), clock, entropy, options.journal)?;
        let recorder = world.entropy.id()?;
        let boot = disk.session()?.boot;
        let alive = Alive::begin(&journal, &recorder)?;
        let engine = Self(Arc::new(Inner {
            journal,
            world,
            recorder,
            boot,
            log_tail,
            publisher: OnceLock::new(),
            buffer_for: options.buffer_for,
            flusher: OnceLock::new(),
            alive: Mutex::new(Some(alive)),
            closed: AtomicBool::new(false),
            ticks: OnceLock::new(),
            term_watch: Mutex::default(),
            #[cfg(feature = "tokio")]
            tickers: std::sync::atomic::AtomicU64::new(0),
            #[cfg(feature = "tracing-layer")]
            recorded: Arc::default(),
        }));
        let report = repair::after_crash(&engine, &options, &opened)?;
        if options.publish {
            let publisher = Publisher::start(&engine, options.publish_ticks)?;
            engine.0.publisher.get_or_init(|| Arc::new(publisher));
        }
        Ok((engine, report))
    }

    /// The way on after corruption at the end of the journal: ends the damaged segment where it
    /// is, deletes nothing, notes the lost positions, goes on in a new one. Answers with what was
    /// given up; `None` where nothing needed to be.
    pub fn accept_damage(world: World, options: &Options) -> Result<Option<Damage>> {
        Journal::accept_damage(world.disk, world.clock, world.entropy, options.journal)
    }

    /// What this engine is known by in the records of its runs.
    pub fn recorder_id(&self) -> [u8; 16] {
        self.0.recorder
    }

    /// The id of this boot of the machine.
    pub fn boot_id(&self) -> [u8; 16] {
        self.0.boot
    }

    /// The world it works in.
    pub fn world(&self) -> &World {
        &self.0.world
    }

    /// A handle for reading the same journal.
    pub fn log(&self) -> Result<Log> {
        Log::open_in(&self.0.world)
    }

    /// Reads on from some place, also what is still to come, and wakes at once for what this engine
    /// writes: see [`Subscription`]. It reads for itself: nobody who appends waits for it, and it goes
    /// on when the engine is closed.
    ///
    /// # Errors
    /// As [`Log::position_of`].
    pub fn subscribe(&self, start: Start, filter: Filter) -> Result<Subscription> {
        Subscription::begin(self.log()?, start, filter, Some(Arc::clone(self.bell())))
    }

    /// What rings when this engine has made something durable.
    pub(crate) fn bell(&self) -> &Arc<Bell> {
        self.0.journal.bell()
    }

    /// Whether a write failed: nothing more is written through this engine; open anew.
    pub fn is_poisoned(&self) -> bool {
        self.0.journal.is_poisoned()
    }

    /// Opens the stream of a run with its first records, all or nothing. Durable on return. An
    /// expected sequence makes no sense here, as the stream begins; a term and a key do.
    ///
    /// Its files are published for as long as the engine is open, also behind its end. A run that goes on holds one
    /// descriptor, as its [`Recorder`](crate::run::Recorder) does; one that has ended holds none.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] where a run of this name exists, or a higher term was seen.
    pub fn begin_run(
        &self,
        request: &RunPrepared,
        created_at: Option<Time>,
        conditions: Conditions,
        then: &[NewRecord],
    ) -> Result<Receipt> {
        self.submit_run(request, created_at, conditions, then)?.wait()
    }

    /// The same without waiting: the ticket gives the receipt. As [`submit`](Self::submit), it waits where too much
    /// is waiting already.
    pub fn submit_run(
        &self,
        request: &RunPrepared,
        created_at: Option<Time>,
        conditions: Conditions,
        then: &[NewRecord],
    ) -> Result<Ticket> {
        self.submit_run_queued(request, created_at, conditions, then, None)
    }

    /// The same with the place that it had in a queue.
    pub(crate) fn submit_run_queued(
        &self,
        request: &RunPrepared,
        created_at: Option<Time>,
        conditions: Conditions,
        then: &[NewRecord],
        place: Option<Box<dyn Queued>>,
    ) -> Result<Ticket> {
        let first = NewRecord { created_at, ..Body::Run(Box::new(request.clone())).into() };
        let now = self.now();
        let mut drafts = vec![draft(Target::Open(request.name.to_string().into_bytes()), &first, now)?];
        for record in then {
            drafts.push(draft(Target::Opened, record, now)?);
        }
        let ticket = self.hand_in(Append { drafts, conditions, open: false, place, buffered: false })?;
        Ok(Ticket {
            inner: Handed::In(ticket),
            stream: None,
            publisher: self.0.publisher.get().cloned(),
            begins: Some(request.name.clone()),
            ticks: false,
        })
    }

    /// Appends records to a stream, all or nothing. Durable on return. An expected sequence is a
    /// condition by itself; a conductor's term and an idempotency key are others.
    ///
    /// A run belongs to whoever records it: a [`Recorder`](crate::run::Recorder), and so `record_process` and
    /// `Steps`, expects the sequence of each of its records, and takes any that it has not written for a sign that
    /// it was given up. It is refused from then on, and its worker is ended. Append to runs that have ended, or to
    /// those that you have begun by [`begin_run`](Self::begin_run) and write by yourself.
    ///
    /// ```
    /// use runwal::engine::{Conditions, Engine, Options};
    /// use runwal::error::Conflict;
    /// use runwal::record::{Body, Channel, Id};
    /// use runwal::run::{End, Outcome, Recorder, RunRequest};
    ///
    /// # let dir = tempfile::tempdir().unwrap();
    /// let (engine, _) = Engine::open(dir.path().join("data"), Options::default())?;
    /// let mut run = Recorder::prepare(&engine, RunRequest::new(Id::new("t")?, Id::new("r")?, Id::new("s")?))?;
    /// run.finish(End::new(Outcome::Completed, "Done."))?;
    /// let line = [Body::Chunk(Channel::Stdout, b"looked at by a person\n".to_vec()).into()];
    ///
    /// // Sure that it was written, or not? Say it again under the same key.
    /// let once = || Conditions::none().term(7).key("t/r looked at");
    /// let receipt = engine.append(run.stream(), once(), &line)?;
    /// assert_eq!(engine.append(run.stream(), once(), &line)?, receipt);
    ///
    /// // A conductor that was taken over from is told so.
    /// let late = engine.append(run.stream(), Conditions::none().term(6), &line).unwrap_err();
    /// assert_eq!(late.conflict(), Some(Conflict::Term { given: 6, seen: 7 }));
    /// # Ok::<(), runwal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] where a condition does not hold; [`Error::conflict`] tells which.
    /// [`ErrorKind::Misuse`] where the run has ended, and a record changes its state or ends it.
    pub fn append(
        &self,
        stream: StreamId,
        conditions: impl Into<Conditions>,
        records: &[NewRecord],
    ) -> Result<Receipt> {
        self.submit(stream, conditions, records)?.wait()
    }

    /// The same without waiting: the ticket gives the receipt. Tickets are made durable by whoever
    /// waits for one next, several with one sync; dropping one does not take its records back (behind the end of a
    /// run they may show in its files only once the engine is closed). Where more than
    /// [`MAX_WAITING_LEN`] waits by then, the caller makes that durable first, which is a sync, or two where one
    /// is under way: nobody hands in faster than the disk takes it for long.
    pub fn submit(
        &self,
        stream: StreamId,
        conditions: impl Into<Conditions>,
        records: &[NewRecord],
    ) -> Result<Ticket> {
        self.submit_queued(stream, conditions.into(), records, None)
    }

    /// The same for records that nobody waits for: they are durable within [`Options::buffer_for`], or with
    /// whatever is made durable before. The journal notes that they were not waited for. The ticket may be
    /// dropped; whoever waits for it has them made durable at once.
    ///
    /// # After a crash
    /// What was buffered in the last moments may be missing: of all that was handed in to this engine, the
    /// end. What is durable is so in the order in which it was handed in, up to some point.
    ///
    /// # Errors
    /// What can be told of the records without a look at the journal; and [`ErrorKind::Reopen`] where an
    /// earlier write failed, so that who never waits is told too. That a condition did not hold is known
    /// by the ticket alone.
    pub fn buffer(
        &self,
        stream: StreamId,
        conditions: impl Into<Conditions>,
        records: &[NewRecord],
    ) -> Result<Ticket> {
        let flusher = match self.0.flusher.get() {
            Some(flusher) => flusher,
            None => self.start_flusher()?,
        };
        let ticket = self.buffer_queued(stream, conditions.into(), records, None)?;
        if let Some(publisher) = self.0.publisher.get() {
            publisher.add_buffered(stream);
        }
        flusher.ask(self.0.journal.waiting_len());
        Ok(ticket)
    }

    /// The same with the place that it had in a queue, where somebody [serves](Self::serve).
    pub(crate) fn buffer_queued(
        &self,
        stream: StreamId,
        conditions: Conditions,
        records: &[NewRecord],
        place: Option<Box<dyn Queued>>,
    ) -> Result<Ticket> {
        self.0.journal.check_writable()?;
        self.submit_with(stream, conditions, records, place, true)
    }

    fn start_flusher(&self) -> Result<&Flusher> {
        let publisher = self.0.publisher.get().cloned();
        let flusher = Flusher::start(self.0.journal.clone(), publisher, self.0.buffer_for)?;
        // Somebody else may have been faster; then this one ends here.
        let _ = self.0.flusher.set(flusher);
        self.0.flusher.get().ok_or_else(|| Error::misuse("there is no thread that commits what is buffered"))
    }

    /// The same with the place that it had in a queue.
    pub(crate) fn submit_queued(
        &self,
        stream: StreamId,
        conditions: Conditions,
        records: &[NewRecord],
        place: Option<Box<dyn Queued>>,
    ) -> Result<Ticket> {
        self.submit_with(stream, conditions, records, place, false)
    }

    fn submit_with(
        &self,
        stream: StreamId,
        conditions: Conditions,
        records: &[NewRecord],
        place: Option<Box<dyn Queued>>,
        buffered: bool,
    ) -> Result<Ticket> {
        let now = self.now();
        let drafts = records
            .iter()
            .map(|record| draft(Target::Stream(stream), record, now))
            .collect::<Result<Vec<_>>>()?;
        // What changes the state of a run, or ends it, comes too late behind its end.
        let open = records.iter().any(|record| record.ends || matches!(record.body, Body::StatePatch(_)));
        let ticket = self.hand_in(Append { drafts, conditions, open, place, buffered })?;
        let publisher = self.0.publisher.get().cloned();
        Ok(Ticket { inner: Handed::In(ticket), stream: Some(stream), publisher, begins: None, ticks: false })
    }

    /// Appends a record of the timed jobs. Durable on return.
    pub fn append_tick(&self, tick: Tick, created_at: Option<Time>) -> Result<Receipt> {
        let record = NewRecord { created_at, ..Body::Tick(tick).into() };
        self.submit_ticks(&[(None, record)], Conditions::none())?.wait()
    }

    /// Hands records in that belong together, each of a stream or, without one, of the timed jobs.
    pub(crate) fn submit_ticks(
        &self,
        records: &[(Option<StreamId>, NewRecord)],
        conditions: Conditions,
    ) -> Result<Ticket> {
        loop {
            let ticks = self.ticks_stream()?;
            let mut opened = false;
            let now = self.now();
            let mut drafts = Vec::with_capacity(records.len());
            for (stream, record) in records {
                let target = match stream.or(ticks) {
                    Some(stream) => Target::Stream(stream),
                    None if opened => Target::Opened,
                    None => {
                        opened = true;
                        Target::Open(TICKS_STREAM.as_bytes().to_vec())
                    }
                };
                drafts.push(draft(target, record, now)?);
            }
            let open = records.iter().any(|(_, record)| record.ends);
            let conditions = conditions.clone();
            let handed_in =
                self.hand_in(Append { drafts, conditions, open, place: None, buffered: false })?;
            let inner = if opened {
                match handed_in.wait() {
                    // Another process was faster in opening the stream.
                    Err(error) if error.conflict() == Some(Conflict::Exists) => continue,
                    other => Handed::Durable(other?),
                }
            } else {
                Handed::In(handed_in)
            };
            let publisher = self.0.publisher.get().cloned();
            return Ok(Ticket { inner, stream: None, publisher, begins: None, ticks: true });
        }
    }

    fn ticks_stream(&self) -> Result<Option<StreamId>> {
        if let Some(known) = self.0.ticks.get() {
            return Ok(Some(*known));
        }
        let found = self.0.journal.find_name(TICKS_STREAM.as_bytes())?;
        Ok(found.map(|found| *self.0.ticks.get_or_init(|| found)))
    }

    /// Opens a stream that is no run's with its first record. Durable on return.
    #[cfg(feature = "tokio")]
    pub(crate) fn open_stream(&self, name: &str, first: &NewRecord) -> Result<Receipt> {
        let drafts = vec![draft(Target::Open(name.as_bytes().to_vec()), first, self.now())?];
        let conditions = Conditions::none();
        self.hand_in(Append { drafts, conditions, open: false, place: None, buffered: false })?.wait()
    }

    /// The directory of the daily files of the timed jobs; `None` where this engine does not write
    /// them.
    pub fn ticks_dir(&self) -> Option<std::path::PathBuf> {
        self.0.publisher.get().filter(|publisher| publisher.has_ticks())?;
        self.0.world.disk.path().map(|dir| dir.join(crate::projection::publish::TICKS_FOLDER))
    }

    /// Writes zeros where the next `len` bytes of the journal will stand, and returns when that is synced: an
    /// append into blocks that were written before has nothing to wait for but its own bytes. Others append
    /// meanwhile. As much of it as is there already, whoever reserved it, is not made again; it is for
    /// whatever process comes first. Without this the next segment is made ready in the background, which
    /// is as good for whoever does not fill the current one faster than that.
    ///
    /// # After a crash
    /// What was reserved stays so. Half of a file is removed by whoever begins the next segment.
    ///
    /// # Errors
    /// [`ErrorKind::Full`] where the disk is too full for it; what could be reserved is, and nothing is lost.
    pub fn reserve(&self, len: u64) -> Result<()> {
        self.0.journal.reserve(len)
    }

    /// Waits until the files of a run show everything up to `receipt`, where this engine publishes them: those of runs
    /// that it has begun, and of runs that have ended. Behind the end of a run each wait is as long as it takes to
    /// read the run.
    ///
    /// # Errors
    /// Those of writing the files, and [`ErrorKind::Locked`] where somebody has had the folder of a run that ended
    /// for ten seconds. The journal has every record all the same.
    pub fn wait_published(&self, receipt: &Receipt) -> Result<()> {
        self.0.publisher.get().map_or(Ok(()), |publisher| publisher.wait(receipt.stream, receipt.last))
    }

    /// A fold that keeps as much of the last output as this engine's log tails have.
    pub(crate) fn new_fold(&self) -> RunFold {
        RunFold::with_tail(self.0.log_tail.0, self.0.log_tail.1)
    }

    /// Publishes a run no longer than what is durable now.
    pub(crate) fn forget_run(&self, stream: StreamId) {
        if let Some(publisher) = self.0.publisher.get() {
            publisher.forget(stream);
        }
    }

    /// Whether an append in this term would be refused, as another conductor has taken over: by what
    /// any process had written a second ago at the latest. So it may be asked often, and it waits for
    /// nobody's turn at the journal.
    ///
    /// # Errors
    /// Those of reading the journal.
    pub fn is_over(&self, term: u64) -> Result<bool> {
        if self.seems_over(term) {
            return Ok(true);
        }
        // Whoever is looking already looks for all.
        let Ok(mut watch) = self.0.term_watch.try_lock() else { return Ok(false) };
        let now = self.0.world.clock.monotonic_ns();
        let watch = match &mut *watch {
            Some(watch) => {
                if now.saturating_sub(watch.looked_ns) >= TERM_AGE_NS {
                    watch.log.refresh()?;
                    watch.looked_ns = now;
                }
                watch
            }
            none => none.insert(TermWatch { log: self.log()?, looked_ns: now }),
        };
        Ok(watch.log.term() > term)
    }

    /// The same by what this process saw when it had its last turn.
    pub(crate) fn seems_over(&self, term: u64) -> bool {
        self.0.journal.seen_term() > term
    }

    /// Runs `work` while no commit of this process is under way: the moment to stop the process
    /// (Ctrl-Z) without leaving others to wait for the journal's lock.
    pub fn between_commits<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.journal.between_commits(work)
    }

    /// Ends in order, for all clones: what was handed in is committed, files are published, the
    /// recorder's lock is given up. Appending afterwards is an error; a second close does nothing.
    pub fn close(&self) -> Result<()> {
        self.0.close()
    }

    fn hand_in(&self, append: Append<'_>) -> Result<crate::journal::Ticket> {
        self.0.journal.submit(append)
    }

    /// When records that are handed in at this moment are appended, unless they say so themselves.
    fn now(&self) -> Time {
        self.0.world.clock.now()
    }

    /// Commits what is submitted until `stop` says so, and then what is left: for tasks, which do not
    /// wait as threads do.
    #[cfg(feature = "tokio")]
    pub(crate) fn serve(&self, stop: &dyn Fn() -> bool) {
        self.0.journal.serve(stop);
    }

    /// What tells whoever [serves](Self::serve) to ask whether to stop.
    #[cfg(feature = "tokio")]
    pub(crate) fn nudge(&self) -> Nudge {
        Nudge(self.0.journal.clone())
    }

    /// The runs that it has recorders of.
    #[cfg(feature = "tracing-layer")]
    pub(crate) fn recorded(&self) -> &Arc<Recorded> {
        &self.0.recorded
    }

    fn journal(&self) -> &Journal {
        &self.0.journal
    }
}

/// See [`Engine::nudge`]. It keeps no engine from ending.
#[cfg(feature = "tokio")]
#[derive(Debug)]
pub(crate) struct Nudge(Journal);

#[cfg(feature = "tokio")]
impl Nudge {
    pub(crate) fn nudge(&self) {
        self.0.nudge();
    }
}

/// Records that were accepted and are not known to be durable yet.
#[derive(Debug)]
pub struct Ticket {
    inner: Handed,
    /// What they are appended to.
    stream: Option<StreamId>,
    publisher: Option<Arc<Publisher>>,
    begins: Option<RunName>,
    ticks: bool,
}

#[derive(Debug)]
enum Handed {
    In(crate::journal::Ticket),
    Durable(Receipt),
    Answered,
}

impl Ticket {
    /// Waits until the records are durable or refused.
    ///
    /// # Errors
    /// As [`Engine::append`] and [`Engine::begin_run`].
    pub fn wait(mut self) -> Result<Receipt> {
        let inner = std::mem::replace(&mut self.inner, Handed::Answered);
        match inner {
            Handed::In(ticket) => ticket.wait().map(|receipt| self.published(receipt)),
            Handed::Durable(receipt) => Ok(self.published(receipt)),
            Handed::Answered => Err(Error::misuse("the receipt was given already")),
        }
    }

    /// The same for a task, to be asked until the answer is there. Somebody has to
    /// [`serve`](Engine::serve).
    #[cfg(feature = "tokio")]
    pub(crate) fn poll(&mut self, context: &Context<'_>) -> Poll<Result<Receipt>> {
        let answer = match &self.inner {
            Handed::In(ticket) => std::task::ready!(ticket.poll(context)),
            Handed::Durable(receipt) => Ok(*receipt),
            Handed::Answered => Err(Error::misuse("the receipt was given already")),
        };
        self.inner = Handed::Answered;
        Poll::Ready(answer.map(|receipt| self.published(receipt)))
    }

    /// Has the files brought to the disk that show it.
    fn published(&mut self, receipt: Receipt) -> Receipt {
        if let Some(publisher) = &self.publisher {
            if self.ticks {
                publisher.add_ticks();
            }
            if let Some(name) = self.begins.take() {
                publisher.add(receipt.stream, name);
            }
            publisher.poke((!self.ticks).then_some(receipt.stream), receipt.last);
        }
        receipt
    }
}

impl Drop for Ticket {
    /// Nobody will say when it is durable.
    fn drop(&mut self) {
        if let (Handed::In(_), Some(stream), Some(publisher)) = (&self.inner, self.stream, &self.publisher) {
            publisher.add_buffered(stream);
        }
    }
}

impl Inner {
    fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        if let Some(flusher) = self.flusher.get() {
            flusher.stop();
        }
        self.journal.close();
        let published = self.publisher.get().map_or(Ok(()), |publisher| publisher.stop());
        let ended = match self.alive.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A poisoned handle writes nothing; its lock goes with it, and the next one recovers.
            Some(_) if self.journal.is_poisoned() => Ok(()),
            Some(alive) => alive.end(),
            None => Ok(()),
        };
        published.and(ended)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Whoever wants to know how it ended calls `close`.
        let _ = self.close();
    }
}

fn draft(target: Target, record: &NewRecord, now: Time) -> Result<Draft<'_>> {
    let kind = record.body.kind();
    let (payload, version) = record.body.encode()?;
    Ok(Draft {
        target,
        seq: Seq::ZERO,
        kind,
        version,
        close: record.ends,
        more: record.more,
        time: record.time.unwrap_or(now),
        created: record.created_at,
        key: None,
        term: None,
        payload,
    })
}
