//! The process that is killed: it appends to a journal and tells, on a pipe, what it is about to
//! hand in and what it was answered. Each line is one write, so whoever reads the pipe knows exactly
//! what had been said when it died.
//!
//! ```text
//! pid <id>                                           it runs
//! begun                                              the journal is open for writing
//! submit <batch> <stream> keyed|plain <print>...     about to be handed in
//! ack <batch> <stream> <first> <last> <last seq>     a receipt
//! refused|unknown <batch> <code> <message>           no receipt: not written; perhaps written
//! failed <code> <message>                            it could not be opened, or closed
//! broken <message>                                   a promise was not kept before its eyes
//! ```

use crate::chance::Chance;
use crate::machine::{Pretence, world};
use runwal::engine::{Conditions, Engine, Log, NewRecord, Options, Ticket};
use runwal::position::StreamId;
use runwal::record::{
    Body, Channel, Id, JsonText, Level, Lifecycle, RunName, RunPrepared, StatePatch, Status, Tick, terminal,
};
use runwal::{Error, ErrorKind, JournalOptions, Receipt};
use std::fmt::Write as _;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the exit code says where not everything went well.
pub(crate) const FAILED: u8 = 3;
/// The same where it panicked.
const PANICKED: u8 = 101;

/// After how many failures it gives up.
const MANY: u32 = 10;

/// What a worker is to do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Orders {
    pub(crate) dir: PathBuf,
    /// What it appends follows from this and `life`.
    pub(crate) seed: u64,
    /// Which process it is on this journal: what two of them append differs.
    pub(crate) life: u64,
    /// How many steps it takes.
    pub(crate) steps: u64,
    /// An append under a key that an earlier life had no answer to: its batch and stream.
    pub(crate) retry: Option<(String, u64)>,
    pub(crate) pretence: Pretence,
    /// It only reads.
    pub(crate) read: bool,
}

impl Orders {
    pub(crate) fn to_args(&self) -> Vec<String> {
        let mut args = vec!["--worker".to_owned(), format!("dir={}", self.dir.display())];
        args.extend(
            [("seed", self.seed), ("life", self.life), ("steps", self.steps)]
                .map(|(k, v)| format!("{k}={v}")),
        );
        args.extend(self.retry.iter().map(|(batch, stream)| format!("retry={batch}@{stream}")));
        args.extend(self.pretence.boot.map(|boot| format!("boot={boot}")));
        args.extend(self.pretence.lie.then(|| "lie=1".to_owned()));
        args.extend(self.read.then(|| "read=1".to_owned()));
        args
    }

    fn parse(args: impl Iterator<Item = String>) -> Self {
        let mut orders = Self::default();
        for arg in args {
            let (key, value) = arg.split_once('=').unwrap();
            let number = || value.parse::<u64>().unwrap();
            match key {
                "dir" => orders.dir = value.into(),
                "seed" => orders.seed = number(),
                "life" => orders.life = number(),
                "steps" => orders.steps = number(),
                "retry" => {
                    let (batch, stream) = value.split_once('@').unwrap();
                    orders.retry = Some((batch.to_owned(), stream.parse().unwrap()));
                }
                "boot" => orders.pretence.boot = Some(number()),
                "lie" => orders.pretence.lie = true,
                "read" => orders.read = true,
                other => panic!("no order {other}"),
            }
        }
        orders
    }
}

/// Default options, but for segments so small that they roll often; and nobody looks through all
/// processes of the machine for what the runs left, as they have started none.
pub(crate) fn options() -> Options {
    let journal =
        JournalOptions { first_capacity: 8 << 10, max_capacity: 128 << 10, ..JournalOptions::default() };
    Options { journal, end_orphans: false, ..Options::default() }
}

/// What is told of a body, to know it again.
pub(crate) fn print(body: &Body) -> u64 {
    let mut hasher = DefaultHasher::new();
    match body {
        Body::Chunk(channel, bytes) => (channel.word(), bytes).hash(&mut hasher),
        other => format!("{other:?}").hash(&mut hasher),
    }
    hasher.finish()
}

/// The program.
pub(crate) fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let orders = Orders::parse(args);
    let out = File::from(std::io::stdout().as_fd().try_clone_to_owned().unwrap());
    let for_panics = out.try_clone().unwrap();
    std::panic::set_hook(Box::new(move |panic| {
        let line = format!("broken panicked: {}\n", panic.to_string().escape_debug());
        let _ = (&for_panics).write_all(line.as_bytes());
        std::process::exit(PANICKED.into());
    }));
    let mut teller = Teller { out, failures: 0 };
    teller.say(&format!("pid {}", std::process::id()));
    if orders.read {
        teller.read(&orders);
    } else {
        teller.write(&orders);
    }
    if teller.failures > 0 { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

struct Teller {
    out: File,
    /// How many failures it told.
    failures: u32,
}

impl Teller {
    fn say(&mut self, line: &str) {
        // Whoever listened is gone: so is the use of going on.
        if self.out.write_all(format!("{line}\n").as_bytes()).is_err() {
            std::process::exit(FAILED.into());
        }
    }

    fn complain(&mut self, what: &str, error: &Error) {
        self.failures += 1;
        self.say(&format!("{what} {} {}", error.kind().code(), error.to_string().escape_debug()));
    }

    fn read(&mut self, orders: &Orders) {
        let read = || {
            let mut log = Log::open_in(&world(&orders.dir, orders.pretence, false)?)?;
            let mut records = log.records(runwal::position::Position(1))?;
            let mut count = 0;
            while records.next()?.is_some() {
                count += 1;
            }
            Ok(count)
        };
        match read() {
            Ok(count) => self.say(&format!("read {count}")),
            Err(error) => self.complain("failed", &error),
        }
    }

    fn write(&mut self, orders: &Orders) {
        let opened =
            world(&orders.dir, orders.pretence, true).and_then(|world| Engine::open_in(world, options()));
        let engine = match opened {
            Ok((engine, _)) => engine,
            Err(error) => return self.complain("failed", &error),
        };
        self.say("begun");
        let mut hand =
            Hand { engine: &engine, teller: self, seed: orders.seed, runs: Vec::new(), buffered: Vec::new() };
        hand.work(orders);
        hand.ask_after();
        if let Err(error) = engine.close() {
            self.complain("failed", &error);
        }
    }
}

/// What a worker does with its engine.
struct Hand<'e> {
    engine: &'e Engine,
    teller: &'e mut Teller,
    seed: u64,
    runs: Vec<StreamId>,
    /// What was buffered and is not asked after yet.
    buffered: Vec<Pending>,
}

/// What was handed in and has no answer yet.
struct Pending {
    batch: String,
    was_poisoned: bool,
    ticket: Result<Ticket, Error>,
}

impl Hand<'_> {
    fn work(&mut self, orders: &Orders) {
        if let Some((batch, stream)) = &orders.retry {
            let (life, n) = batch.split_once('.').unwrap();
            let (life, n) = (life.parse().unwrap(), n.parse().unwrap());
            self.keyed(StreamId(*stream), life, n);
        }
        if Chance::of(&[self.seed, orders.life]).one_in(4)
            && let Err(error) = self.engine.reserve(200_000)
        {
            self.teller.complain("failed", &error);
        }
        for n in 0..orders.steps {
            self.step(orders.life, n);
            if self.engine.is_poisoned() || self.teller.failures >= MANY {
                // Poisoned, it keeps to that: nothing more is written.
                self.step(orders.life, orders.steps);
                return;
            }
        }
    }

    fn step(&mut self, life: u64, n: u64) {
        let mut chance = Chance::of(&[self.seed, life, n]);
        let what = chance.below(100);
        if self.runs.is_empty() || (what < 10 && self.runs.len() < 3) {
            return self.begin(life, n, &mut chance);
        }
        let nth = chance.below(self.runs.len() as u64);
        let run = self.runs[usize::try_from(nth).unwrap()];
        let batch = format!("{life}.{n}");
        match what {
            0..20 => {
                let ending = ending(&batch);
                self.runs.retain(|other| *other != run);
                self.append(&batch, run, Conditions::none(), &ending);
            }
            20..30 => self.tick(&batch),
            30..45 => self.keyed(run, life, n),
            45..52 => {
                let records = chunks(&batch, &mut chance);
                self.buffer(&batch, run, &records);
                if self.buffered.len() > 3 {
                    self.ask_after();
                }
            }
            52..62 => {
                let pending: Vec<_> = (0..2 + chance.below(3))
                    .map(|k| {
                        let batch = format!("{batch}+{k}");
                        let records = chunks(&batch, &mut chance);
                        self.submit(&batch, run, Conditions::none(), &records)
                    })
                    .collect();
                pending.into_iter().for_each(|pending| {
                    self.answer(pending);
                });
            }
            _ => {
                let records = chunks(&batch, &mut chance);
                self.append(&batch, run, Conditions::none(), &records);
            }
        }
    }

    fn begin(&mut self, life: u64, n: u64, chance: &mut Chance) {
        let batch = format!("{life}.{n}");
        let id = |text: &str| Id::new(text).unwrap();
        let run = RunPrepared {
            name: RunName { task: id("atlas"), run: id(&format!("r-{life}-{n}")) },
            step: id("step"),
            attempt: 1,
            step_kind: None,
            worker_kind: None,
            command: vec![b"true".to_vec()],
            working_tree: None,
            environment: Vec::new(),
            timeout_ms: None,
            grace_ms: 0,
            checkpoints: chance.one_in(2),
            recorder: self.engine.recorder_id(),
            boot: self.engine.boot_id(),
            controller: None,
            host: "atlas".to_owned(),
            labels: Vec::new(),
            parent: None,
            renderer: 1,
        };
        let then = chunks(&batch, chance);
        let first = Body::Run(Box::new(run.clone()));
        self.tell(&batch, 0, false, [&first].into_iter().chain(then.iter().map(|record| &record.body)));
        let was_poisoned = self.engine.is_poisoned();
        let ticket = self.engine.submit_run(&run, None, Conditions::none(), &then);
        let receipt = self.answer(Pending { batch, was_poisoned, ticket });
        self.runs.extend(receipt.map(|receipt| receipt.stream));
    }

    fn tick(&mut self, batch: &str) {
        let tick = Tick {
            batch_id: batch.to_owned(),
            runner: "atlas".to_owned(),
            stage: "runner_completed".to_owned(),
            result: Some("ok".to_owned()),
            error: None,
            duration_ms: Some(1),
            details: JsonText::empty(),
        };
        self.tell(batch, 0, false, [&Body::Tick(tick.clone())].into_iter());
        let was_poisoned = self.engine.is_poisoned();
        let answer = self.engine.append_tick(tick, None);
        self.told(batch, was_poisoned, answer);
    }

    /// Appends under a key, and says it again.
    fn keyed(&mut self, run: StreamId, life: u64, n: u64) {
        let batch = format!("{life}.{n}");
        let records = chunks(&batch, &mut Chance::of(&[self.seed, life, n, 1]));
        let conditions = || Conditions::none().key(batch.as_bytes());
        let Some(receipt) = self.append(&batch, run, conditions(), &records) else { return };
        match self.engine.append(run, conditions(), &records) {
            Ok(again) if again == receipt => {}
            Ok(again) => self.teller.say(&format!("broken {batch} has {receipt:?}, said again {again:?}")),
            Err(error) => self.teller.complain("failed", &error),
        }
    }

    fn append(
        &mut self,
        batch: &str,
        run: StreamId,
        on: Conditions,
        records: &[NewRecord],
    ) -> Option<Receipt> {
        let pending = self.submit(batch, run, on, records);
        self.answer(pending)
    }

    fn submit(&mut self, batch: &str, run: StreamId, on: Conditions, records: &[NewRecord]) -> Pending {
        let keyed = on != Conditions::none();
        self.tell(batch, run.0, keyed, records.iter().map(|record| &record.body));
        let was_poisoned = self.engine.is_poisoned();
        Pending { batch: batch.to_owned(), was_poisoned, ticket: self.engine.submit(run, on, records) }
    }

    /// Appends what nobody waits for; what became of it is asked later.
    fn buffer(&mut self, batch: &str, run: StreamId, records: &[NewRecord]) {
        self.tell(batch, run.0, false, records.iter().map(|record| &record.body));
        let was_poisoned = self.engine.is_poisoned();
        let ticket = self.engine.buffer(run, Conditions::none(), records);
        self.buffered.push(Pending { batch: batch.to_owned(), was_poisoned, ticket });
    }

    fn ask_after(&mut self) {
        for pending in std::mem::take(&mut self.buffered) {
            self.answer(pending);
        }
    }

    fn tell<'b>(&mut self, batch: &str, stream: u64, keyed: bool, bodies: impl Iterator<Item = &'b Body>) {
        let mut line = format!("submit {batch} {stream} {}", if keyed { "keyed" } else { "plain" });
        for body in bodies {
            write!(line, " {:x}", print(body)).unwrap();
        }
        self.teller.say(&line);
    }

    fn answer(&mut self, pending: Pending) -> Option<Receipt> {
        let answer = pending.ticket.and_then(Ticket::wait);
        self.told(&pending.batch, pending.was_poisoned, answer)
    }

    fn told(&mut self, batch: &str, was_poisoned: bool, answer: Result<Receipt, Error>) -> Option<Receipt> {
        let poisoned = self.engine.is_poisoned();
        match answer {
            Ok(receipt) => {
                if was_poisoned {
                    self.teller.say(&format!("broken a poisoned handle gave a receipt for {batch}"));
                }
                let Receipt { stream, first, last, last_seq, .. } = receipt;
                self.teller.say(&format!("ack {batch} {stream} {first} {last} {last_seq}"));
                return Some(receipt);
            }
            Err(error) if was_poisoned || !poisoned => {
                if was_poisoned && error.kind() != ErrorKind::Reopen {
                    self.teller.say(&format!("broken a poisoned handle says: {error:?}"));
                }
                self.teller.complain(&format!("refused {batch}"), &error);
            }
            Err(error) => self.teller.complain(&format!("unknown {batch}"), &error),
        }
        None
    }
}

/// What ends a run.
fn ending(batch: &str) -> Vec<NewRecord> {
    let event = Lifecycle::new(terminal::COMPLETED, Level::Info, format!("ended in {batch}"));
    let patch = StatePatch {
        status: Some(Status::Completed),
        summary: Some(Some(format!("ended in {batch}"))),
        ..StatePatch::default()
    };
    vec![NewRecord { ends: true, ..Body::Lifecycle(event).into() }, Body::StatePatch(patch).into()]
}

/// Output of a worker, in one record or many, short or long; no two batches have the same.
fn chunks(batch: &str, chance: &mut Chance) -> Vec<NewRecord> {
    let (count, longest) = match chance.below(20) {
        0 => (1, 70_000),
        1..4 => (2 + chance.below(40), 300),
        4..6 => (2 + chance.below(4), 5_000),
        _ => (1, 1_500),
    };
    let chunk = |k| {
        let mut bytes = format!("{batch}/{k} ").into_bytes();
        let filler = b'a' + u8::try_from(chance.below(26)).unwrap();
        bytes.resize(bytes.len() + usize::try_from(chance.below(longest)).unwrap(), filler);
        bytes.push(b'\n');
        let channel = if chance.one_in(2) { Channel::Stdout } else { Channel::Stderr };
        Body::Chunk(channel, bytes).into()
    };
    (0..count).map(chunk).collect()
}
