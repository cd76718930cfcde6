//! A machine with its ledger, and the processes that act on it: what workloads are written in.

use super::oracle::{self, Ledger};
use crate::clock::{ManualClock, SeededEntropy};
use crate::disk::sim::{SimDisk, SimWorld};
use crate::engine::{Engine, Entry, Log, NewRecord, Options, World};
use crate::error::{Error, ErrorKind};
use crate::format::{Draft, Target};
use crate::journal::{Append, Conditions, Journal, JournalOptions, Receipt, Spares, Verdict};
use crate::position::{Position, Seq, StreamId, Time};
use crate::record::{
    Body, Channel, Checkpoint, FileFormat, Id, JsonText, Level, Lifecycle, Record, Replay, RunName,
    RunPrepared, Tick, kind, terminal,
};
use std::sync::Arc;
use std::time::Duration;

/// See the [module](self).
#[derive(Debug)]
pub struct Stage {
    /// The machine.
    pub world: SimWorld,
    /// What was promised.
    pub ledger: Ledger,
    /// What was wrong on the way.
    pub problems: Vec<String>,
    /// How often reading was put off.
    pub retries: u64,
    /// What was appended under idempotency keys.
    keyed: Vec<Keyed>,
    seeds: u64,
    bodies: u64,
    journal: JournalOptions,
    faulty: bool,
    /// What mount ids are counted from: another number behind every file system that was lost.
    mounts: u64,
}

/// An append under an idempotency key, and its receipt if there was one.
#[derive(Debug, Clone)]
struct Keyed {
    key: String,
    stream: StreamId,
    body: Body,
    receipt: Option<Receipt>,
}

/// A process that has the journal open for writing.
#[derive(Debug)]
pub struct Writer {
    /// What it sees of the machine.
    pub disk: SimDisk,
    world: World,
    engine: Engine,
}

impl Writer {
    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Stage {
    /// An empty machine, on which segments have these capacities.
    pub fn new(first_capacity: u64, max_capacity: u64) -> Self {
        let patience = Duration::from_millis(5);
        Self {
            world: SimWorld::new(),
            ledger: Ledger::default(),
            problems: Vec::new(),
            retries: 0,
            keyed: Vec::new(),
            seeds: 0,
            bodies: 0,
            journal: JournalOptions {
                patience,
                first_capacity,
                max_capacity,
                spares: Spares::Never,
                ..JournalOptions::default()
            },
            faulty: false,
            mounts: 0,
        }
    }

    /// The same where the next segment is filled ahead of time, by whoever rolls.
    #[must_use]
    pub fn with_spares(mut self) -> Self {
        self.journal.spares = Spares::Inline;
        self
    }

    /// The same where the index of the segment that is written to is kept in the cache all the time.
    #[must_use]
    pub fn keeping_indexes(mut self) -> Self {
        self.journal.index_every = 64;
        self
    }

    /// The same where what is not very short is compressed.
    #[must_use]
    pub fn compressing(mut self) -> Self {
        self.journal.compress_from = 200;
        self
    }

    /// The same with other random numbers.
    #[must_use]
    pub fn seeded(self, seed: u64) -> Self {
        Self { seeds: seed << 16, ..self }
    }

    /// The same on another machine.
    #[must_use]
    pub fn on(&self, world: SimWorld) -> Self {
        Self {
            world,
            ledger: self.ledger.clone(),
            problems: self.problems.clone(),
            retries: self.retries,
            keyed: self.keyed.clone(),
            ..*self
        }
    }

    /// The same on a machine that was just booted, as if it had not been: its file system was lost and
    /// mounted anew.
    #[must_use]
    pub fn remounted(self) -> Self {
        Self { world: self.world.remounted(), mounts: self.mounts + 16, ..self }
    }

    /// Whether the file system was lost in this boot.
    pub fn is_remounted(&self) -> bool {
        self.mounts > 0
    }

    /// An independent copy, without the processes.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.on(self.world.fork())
    }

    /// From here on operations may fail, and calls with them.
    pub fn expect_faults(&mut self, faulty: bool) {
        self.faulty = faulty;
    }

    /// Whether operations may fail, see [`expect_faults`](Self::expect_faults).
    pub fn expects_faults(&self) -> bool {
        self.faulty
    }

    /// Cuts the power now; of what is volatile, nothing is kept, or everything.
    pub fn restart(&mut self, keep: bool) {
        let fate = if keep { crate::disk::sim::Fate::New } else { crate::disk::sim::Fate::Old };
        self.world = self.world.power_cut(&mut |_| fate);
    }

    /// The settings of the journal.
    pub fn options(&self) -> Options {
        Options { journal: self.journal, publish: false, end_orphans: false, ..Options::default() }
    }

    /// A new process, which sees the machine through this mount.
    pub fn process(&mut self, mount: u64) -> (SimDisk, World) {
        self.seeds += 1;
        let disk = self.world.process(self.mounts + mount);
        let world = World {
            disk: Arc::new(disk.clone()),
            clock: Arc::new(ManualClock::new(Time(1_774_138_420_000_000_000))),
            entropy: Arc::new(SeededEntropy::new(self.seeds << 20)),
        };
        (disk, world)
    }

    fn complain(&mut self, doing: &str, error: &Error) {
        if !(self.faulty && matches!(error.kind(), ErrorKind::Io | ErrorKind::Reopen | ErrorKind::Full)) {
            self.problems.push(format!("{doing}: {} {error}", error.kind().code()));
        }
    }

    /// Opens for writing in a new process.
    pub fn open(&mut self, mount: u64) -> Option<Writer> {
        let (disk, world) = self.process(mount);
        match Engine::open_in(world.clone(), self.options()) {
            Ok((engine, _)) => Some(Writer { disk, world, engine }),
            Err(error) => {
                self.complain("opening for writing", &error);
                None
            }
        }
    }

    fn body(&mut self, len: usize) -> Body {
        self.bodies += 1;
        let mut bytes = self.bodies.to_le_bytes().to_vec();
        bytes.resize(len.max(8), b'x');
        Body::Chunk(Channel::Stdout, bytes)
    }

    fn hand_in(
        &mut self,
        writer: &Writer,
        bodies: Vec<Body>,
        call: impl FnOnce(&Engine) -> Result<Receipt, Error>,
    ) -> Option<Receipt> {
        if !writer.disk.is_alive() {
            return None;
        }
        let batch = self.ledger.submit(bodies);
        let poisoned = writer.engine.is_poisoned();
        let answer = call(&writer.engine);
        if writer.disk.is_alive() {
            self.ledger.answered(batch, &answer);
        }
        match answer {
            Ok(_) if poisoned => self.problems.push("a poisoned handle gave a receipt".to_owned()),
            Err(_) if poisoned => self.ledger.refused(batch),
            Err(error) if error.kind() != ErrorKind::Conflict => self.complain("appending", &error),
            Err(_) => {}
            Ok(receipt) => return Some(receipt),
        }
        None
    }

    /// Begins a run whose recorder is this writer.
    pub fn begin(&mut self, writer: &Writer, task: &str) -> Option<StreamId> {
        self.bodies += 1;
        let run = prepared(&writer.engine, task, &format!("r{}", self.bodies)).ok()?;
        let more = self.body(8);
        let bodies = vec![Body::Run(Box::new(run.clone())), more.clone()];
        self.hand_in(writer, bodies, |engine| {
            engine.begin_run(&run, None, Conditions::none(), &[more.into()])
        })
        .map(|receipt| receipt.stream)
    }

    /// Appends one batch of records of these lengths.
    pub fn append(&mut self, writer: &Writer, stream: Option<StreamId>, lens: &[usize]) -> Option<Receipt> {
        self.append_if(writer, stream, Conditions::none(), lens)
    }

    /// The same under conditions; where they do not hold, there is no receipt.
    pub fn append_if(
        &mut self,
        writer: &Writer,
        stream: Option<StreamId>,
        conditions: Conditions,
        lens: &[usize],
    ) -> Option<Receipt> {
        let stream = stream?;
        let bodies: Vec<_> = lens.iter().map(|len| self.body(*len)).collect();
        let records: Vec<NewRecord> = bodies.iter().cloned().map(NewRecord::from).collect();
        self.hand_in(writer, bodies, |engine| engine.append(stream, conditions, &records))
    }

    /// Appends one record of this length, which no compression makes shorter.
    pub fn append_noise(&mut self, writer: &Writer, stream: Option<StreamId>, len: usize) -> Option<Receipt> {
        let stream = stream?;
        self.bodies += 1;
        let mut number = self.bodies;
        let mut bytes = self.bodies.to_le_bytes().to_vec();
        while bytes.len() < len {
            number = crate::disk::sim::mix(number);
            bytes.extend(number.to_le_bytes());
        }
        bytes.truncate(len);
        let body = Body::Chunk(Channel::Stdout, bytes);
        self.hand_in(writer, vec![body.clone()], |engine| {
            engine.append(stream, Conditions::none(), &[body.into()])
        })
    }

    /// Appends a checkpoint.
    pub fn checkpoint(&mut self, writer: &Writer, stream: Option<StreamId>) -> Option<Receipt> {
        let stream = stream?;
        self.bodies += 1;
        let content = self.bodies.to_string().into_bytes();
        let body = Body::Checkpoint(Checkpoint {
            number: u32::try_from(self.bodies).unwrap_or(u32::MAX),
            kind: "note".to_owned(),
            format: FileFormat::Text,
            replay: Replay::None,
            summary: String::new(),
            total_len: content.len() as u64,
            content,
        });
        let records = [body.clone().into()];
        self.hand_in(writer, vec![body], |engine| engine.append(stream, None, &records))
    }

    /// Brings the files of all runs and of the timed jobs to the disk.
    pub fn publish(&mut self, mount: u64) {
        let Some(mut log) = self.open_log(mount) else { return };
        self.judge(&mut log);
        let done = log.runs().and_then(|runs| log.rebuild_runs(&runs, true, &mut |_, _| {}));
        let ticks = log.ticks().and_then(|ticks| ticks.map(|ticks| log.rebuild(ticks, true)).transpose());
        for error in [done.err(), ticks.err()].into_iter().flatten() {
            self.complain("publishing", &error);
        }
    }

    /// Opens as a conductor does, with files brought to the disk, and compares them with what they
    /// have to contain.
    pub fn check_files(&mut self, mount: u64) {
        let (_, world) = self.process(mount);
        let opened = Engine::open_in(world, Options { publish: true, ..self.options() });
        let (engine, report) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.complain("opening with files", &error),
        };
        self.problems.extend(report.problems);
        let Some(mut log) = self.open_log(mount) else { return };
        let records = self.judge(&mut log);
        for (name, wanted) in oracle::expected_files(&records) {
            match self.world.read_file(&name) {
                Ok(found) if found == wanted => {}
                Ok(found) => {
                    let at = found.iter().zip(&wanted).take_while(|(one, other)| one == other).count();
                    let (found, wanted) = (found.len(), wanted.len());
                    let what = format!("{name} is wrong from byte {at} on, {found} bytes for {wanted}");
                    self.problems.push(what);
                }
                Err(error) => self.problems.push(format!("{name} is not there: {error}")),
            }
        }
        if let Err(error) = engine.close() {
            self.complain("closing", &error);
        }
    }

    /// Appends a record under an idempotency key of its own.
    pub fn append_keyed(&mut self, writer: &Writer, stream: Option<StreamId>, len: usize) -> Option<Receipt> {
        let stream = stream?;
        let body = self.body(len);
        let key = format!("key {}", self.bodies);
        let record = [body.clone().into()];
        let receipt = self.hand_in(writer, vec![body.clone()], |engine| {
            engine.append(stream, Conditions::none().key(key.as_str()), &record)
        });
        self.keyed.push(Keyed { key, stream, body, receipt });
        receipt
    }

    /// Says all that was appended under keys again, twice: what is in the journal gets the receipt it
    /// had, and what is not is written, once.
    pub fn retry_keys(&mut self, mount: u64) {
        if self.keyed.is_empty() {
            return;
        }
        let Some(writer) = self.open(mount) else { return };
        for _ in 0..2 {
            for keyed in self.keyed.clone() {
                let Some(mut log) = self.open_log(mount) else { return };
                let records = self.judge(&mut log);
                if !records.iter().any(|record| record.stream == keyed.stream) {
                    continue;
                }
                let bears = |record: &&Record| record.key.as_deref() == Some(keyed.key.as_bytes());
                let there: Vec<_> = records.iter().filter(bears).collect();
                let again = |engine: &Engine| {
                    let conditions = Conditions::none().key(keyed.key.as_str());
                    engine.append(keyed.stream, conditions, &[keyed.body.clone().into()])
                };
                // Recovery has ended the runs of the dead: nothing new is to stand behind that.
                let ended = records.iter().any(|record| record.stream == keyed.stream && record.ends);
                let (receipt, position) = match there.as_slice() {
                    [] if ended && keyed.receipt.is_none() => continue,
                    [] => (self.hand_in(&writer, vec![keyed.body.clone()], again), None),
                    [one] => (again(writer.engine()).ok(), Some(one.position)),
                    _ => return self.problems.push(format!("{} is in the journal twice", keyed.key)),
                };
                let same = receipt.is_some_and(|now| {
                    keyed.receipt.is_none_or(|then| then == now) && position.is_none_or(|at| at == now.last)
                });
                if !same {
                    self.problems.push(format!("{} was answered with {receipt:?}", keyed.key));
                }
            }
        }
        self.close(writer);
    }

    /// Ends a run.
    pub fn finish(&mut self, writer: &Writer, stream: Option<StreamId>) {
        let Some(stream) = stream else { return };
        let last = self.body(30);
        let event = Body::Lifecycle(Lifecycle::new(terminal::COMPLETED, Level::Info, format!("{last:?}")));
        let records = vec![last.clone().into(), NewRecord { ends: true, ..event.clone().into() }];
        self.hand_in(writer, vec![last, event], |engine| engine.append(stream, None, &records));
    }

    /// Appends a record of the timed jobs.
    pub fn tick(&mut self, writer: &Writer) {
        self.bodies += 1;
        let tick = Tick {
            batch_id: self.bodies.to_string(),
            runner: "r".to_owned(),
            stage: "s".to_owned(),
            result: None,
            error: None,
            duration_ms: None,
            details: JsonText::empty(),
        };
        self.hand_in(writer, vec![Body::Tick(tick.clone())], |engine| engine.append_tick(tick, None));
    }

    /// Commits several appends, of one record each, with one write and one sync. Every other one has a
    /// key, and so a batch of its own.
    pub fn group(&mut self, writer: &Writer, stream: Option<StreamId>, lens: &[usize]) {
        let Some(stream) = stream.filter(|_| writer.disk.is_alive()) else { return };
        let World { disk, clock, entropy } = writer.world.clone();
        let journal = match Journal::open(disk, clock, entropy, self.journal) {
            Ok((journal, _)) => journal,
            Err(error) => return self.complain("opening for a group", &error),
        };
        let mut tickets = Vec::new();
        for (nth, len) in lens.iter().enumerate() {
            let body = self.body(*len);
            let Body::Chunk(_, payload) = body.clone() else { continue };
            let batch = self.ledger.submit(vec![body]);
            let key = format!("group-{batch}");
            let conditions = Conditions::none();
            let conditions = if nth % 2 == 0 { conditions.key(key) } else { conditions };
            let draft = Draft {
                target: Target::Stream(stream),
                seq: Seq::ZERO,
                kind: kind::STDOUT,
                version: 1,
                close: false,
                more: false,
                time: Time(1_774_138_420_000_000_000),
                created: None,
                key: None,
                term: None,
                payload: payload.into(),
            };
            match journal.submit(Append {
                drafts: vec![draft],
                conditions,
                open: false,
                place: None,
                buffered: nth % 3 == 2,
            }) {
                Ok(ticket) => tickets.push((batch, ticket)),
                Err(error) => self.complain("handing in", &error),
            }
        }
        journal.flush();
        self.ledger.together(&tickets.iter().map(|(batch, _)| *batch).collect::<Vec<_>>());
        for (batch, ticket) in tickets {
            let answer = ticket.wait();
            if writer.disk.is_alive() {
                self.ledger.answered(batch, &answer);
            }
            if let Err(error) = answer {
                self.complain("committing a group", &error);
            }
        }
    }

    /// Ends a writer in order.
    pub fn close(&mut self, writer: Writer) {
        if let Err(error) = writer.engine.close()
            && writer.disk.is_alive()
        {
            self.complain("closing", &error);
        }
    }

    /// Opens for reading in a new process, reads everything, and lets the ledger judge it.
    pub fn look(&mut self, mount: u64) {
        if let Some(mut log) = self.open_log(mount) {
            self.judge(&mut log);
        }
    }

    /// Opens for reading in a new process.
    pub fn open_log(&mut self, mount: u64) -> Option<Log> {
        let (_, world) = self.process(mount);
        match Log::open_in(&world) {
            Ok(log) => return Some(log),
            Err(error) if error.kind() == ErrorKind::Retry => self.retries += 1,
            Err(error) if error.kind() == ErrorKind::NotFound && !self.ledger.promised() => {}
            Err(error) => self.complain("opening for reading", &error),
        }
        None
    }

    /// Reads everything through a log, and lets the ledger judge it.
    pub fn judge(&mut self, log: &mut Log) -> Vec<Record> {
        match read_all(log) {
            Ok((records, damage)) if damage.is_empty() => {
                if let Err(complaint) = self.ledger.check(&records) {
                    self.problems.push(complaint);
                }
                return records;
            }
            Ok((_, damage)) => self.problems.push(format!("damage in an undamaged journal: {damage:?}")),
            Err(error) => self.complain("reading", &error),
        }
        Vec::new()
    }

    /// Moves a reader on that is open for long, and lets the ledger judge what it shows.
    pub fn follow(&mut self, log: &mut Log) {
        if let Err(error) = log.refresh() {
            return self.complain("refreshing", &error);
        }
        match read_all(log) {
            Ok((records, damage)) if damage.is_empty() => {
                self.problems.extend(self.ledger.check_follower(&records).err());
            }
            Ok((_, damage)) => self.problems.push(format!("a follower meets damage: {damage:?}")),
            Err(error) => self.complain("following", &error),
        }
    }

    /// The same for a file system that may have been lost with a commit under way.
    pub fn judge_remounted(&mut self, log: &mut Log) {
        let lags = match read_all(log) {
            Ok((records, damage)) if damage.is_empty() => {
                self.ledger.clone().check(&records).is_err() && self.ledger.check_lagging(&records).is_ok()
            }
            _ => false,
        };
        if !lags {
            self.judge(log);
        }
    }

    /// Verifies; the verdict must not be worse than this.
    pub fn verify(&mut self, log: &mut Log, worst: Verdict) {
        match log.verify(&mut |_| {}) {
            Ok(found) if found.verdict <= worst && found.damage.is_empty() => {}
            Ok(found) => self.problems.push(format!("an undamaged journal is judged {found:?}")),
            Err(error) if error.kind() == ErrorKind::Retry => self.retries += 1,
            Err(error) => self.complain("verifying", &error),
        }
    }
}

/// What a run begins with whose recorder is this engine, with as little in it as there can be.
pub fn prepared(engine: &Engine, task: &str, run: &str) -> Result<RunPrepared, Error> {
    let name = RunName { task: Id::new(task)?, run: Id::new(run)? };
    Ok(RunPrepared {
        step: name.run.clone(),
        name,
        attempt: 1,
        step_kind: None,
        worker_kind: None,
        command: Vec::new(),
        working_tree: None,
        environment: Vec::new(),
        timeout_ms: None,
        grace_ms: 0,
        checkpoints: false,
        recorder: engine.recorder_id(),
        boot: engine.boot_id(),
        controller: None,
        host: String::new(),
        labels: Vec::new(),
        parent: None,
        renderer: 1,
    })
}

/// Every record from the first one on, and the damage between them.
pub fn read_all(log: &mut Log) -> Result<(Vec<Record>, Vec<crate::journal::Damage>), Error> {
    let (mut records, mut damage) = (Vec::new(), Vec::new());
    let mut reading = log.records(Position(1))?;
    while let Some(entry) = reading.next()? {
        match entry {
            Entry::Record(record) => records.push(record),
            Entry::Damage(found) => damage.push(found),
        }
    }
    Ok((records, damage))
}
