//! Whatever processes do to a journal on the simulated machine, in any order and interrupted anywhere:
//! the ledger of [`runwal::testing`] judges what is read afterwards.

use arbitrary::{Arbitrary, Unstructured};
use runwal::disk::sim::{Fate, Fault};
use runwal::engine::{Conditions, Log};
use runwal::position::{Seq, StreamId};
use runwal::testing::explorer::life_after;
use runwal::testing::stage::{Stage, Writer};

/// More than these are not done to one machine.
const MAX_OPERATIONS: usize = 40;
const WRITERS: usize = 3;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EINTR: i32 = 4;

#[derive(Debug, Arbitrary)]
enum Act {
    Open { writer: u8, mount: u8 },
    Begin { writer: u8 },
    Append { writer: u8, run: u8, lens: [u8; 3], long: u16 },
    Keyed { writer: u8, run: u8, len: u16 },
    InTerm { writer: u8, run: u8, term: u8 },
    Expecting { writer: u8, run: u8, off: u8 },
    Group { writer: u8, run: u8, lens: [u16; 3] },
    Finish { writer: u8, run: u8 },
    Tick { writer: u8 },
    Look { mount: u8 },
    Verify { mount: u8 },
    Follow,
    Close { writer: u8 },
    Kill { writer: u8 },
    Fail { after: u8, how: How },
    PowerCut { fates: u64 },
    Retry { mount: u8 },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum How {
    Kill,
    KillAfterSectors(u8),
    PowerCut { fates: u64 },
    Error { full: bool, sticky: bool, survivors: u64 },
    Short { bytes: u8 },
}

impl How {
    fn fault(self) -> Fault {
        match self {
            Self::Kill => Fault::Kill,
            Self::KillAfterSectors(sectors) => Fault::KillAfterSectors(u64::from(sectors)),
            Self::PowerCut { .. } => Fault::PowerCut,
            Self::Error { full, sticky, survivors } => {
                Fault::Error { errno: if full { ENOSPC } else { EIO }, sticky, survivors }
            }
            Self::Short { bytes } => Fault::Short { bytes: usize::from(bytes), errno: EINTR },
        }
    }
}

/// A run, and the sequence its next record gets, where that is known.
#[derive(Debug)]
struct Run {
    stream: StreamId,
    next: Option<Seq>,
}

/// A process that writes. Only it writes to its runs, and to none that it ended: what others may write
/// behind an end is not for the ledger.
struct Process {
    writer: Writer,
    runs: Vec<Run>,
}

struct Machine {
    stage: Stage,
    writers: [Option<Process>; WRITERS],
    follower: Option<Log>,
    planned: Option<(u64, How)>,
    /// The highest term that has a receipt, and the highest that may have been written.
    term: (u64, u64),
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let stage = match input.arbitrary::<u8>().unwrap_or(0) % 3 {
        0 => Stage::new(64 << 10, 64 << 10),
        1 => Stage::new(1400, 1400),
        _ => Stage::new(1400, 1400).with_spares(),
    };
    stage.world.record();
    let mut machine =
        Machine { stage, writers: [None, None, None], follower: None, planned: None, term: (0, 0) };
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let Ok(act) = Act::arbitrary(&mut input) else { break };
        machine.act(&act);
        if !machine.settle_fault() {
            return;
        }
        machine.assert_right(&act);
    }
    machine.end();
}

fn mount(choice: u8) -> u64 {
    1 + u64::from(choice % 8 == 7)
}

fn fate(fates: u64, order: usize) -> Fate {
    match fates.rotate_right(u32::try_from(order % 32).unwrap_or(0) * 2) & 3 {
        0 => Fate::Old,
        1 => Fate::New,
        2 => Fate::Zero,
        _ => Fate::Garbage,
    }
}

impl Machine {
    fn act(&mut self, act: &Act) {
        match *act {
            Act::Open { writer, mount: through } => {
                let slot = usize::from(writer) % WRITERS;
                self.writers[slot] = None;
                let opened = self.stage.open(mount(through));
                self.writers[slot] = opened.map(|writer| Process { writer, runs: Vec::new() });
            }
            Act::Look { mount: through } => self.stage.look(mount(through)),
            Act::Verify { mount: through } => {
                if let Some(mut log) = self.stage.open_log(mount(through)) {
                    self.stage.verify(&mut log, runwal::Verdict::Torn);
                }
            }
            Act::Follow => match self.follower.as_mut() {
                Some(log) => self.stage.follow(log),
                None => self.follower = self.stage.open_log(1),
            },
            Act::Fail { after, how } => {
                if self.planned.is_none() {
                    let at = self.stage.world.operations() + 1 + u64::from(after);
                    self.stage.world.fail_at(at, how.fault());
                    self.stage.expect_faults(true);
                    self.planned = Some((at, how));
                }
            }
            Act::PowerCut { fates } => self.power_cut(fates),
            Act::Retry { mount: through } => {
                self.everybody_goes();
                self.stage.retry_keys(mount(through));
            }
            Act::Begin { writer }
            | Act::Append { writer, .. }
            | Act::Keyed { writer, .. }
            | Act::InTerm { writer, .. }
            | Act::Expecting { writer, .. }
            | Act::Group { writer, .. }
            | Act::Finish { writer, .. }
            | Act::Tick { writer }
            | Act::Close { writer }
            | Act::Kill { writer } => self.by_writer(usize::from(writer) % WRITERS, act),
        }
    }

    fn by_writer(&mut self, slot: usize, act: &Act) {
        let Some(mut process) = self.writers[slot].take() else { return };
        let Process { writer, runs } = &mut process;
        let count = runs.len().max(1);
        let one = |run: u8| usize::from(run) % count;
        match *act {
            Act::Close { .. } => return self.stage.close(process.writer),
            Act::Kill { .. } => {
                writer.disk.kill();
                return;
            }
            Act::Begin { .. } => {
                if let Some(stream) = self.stage.begin(writer, "t") {
                    runs.push(Run { stream, next: Some(Seq(3)) });
                }
            }
            Act::Tick { .. } => self.stage.tick(writer),
            Act::Finish { run, .. } if !runs.is_empty() => {
                let run = runs.swap_remove(one(run));
                self.stage.finish(writer, Some(run.stream));
            }
            Act::Keyed { run, len, .. } => {
                if let Some(run) = runs.get_mut(one(run)) {
                    self.stage.append_keyed(writer, Some(run.stream), usize::from(len % 2_000));
                    run.next = None;
                }
            }
            Act::Group { run, lens, .. } => {
                if let Some(run) = runs.get_mut(one(run)) {
                    let lens = lens.map(|len| usize::from(len % 1_000));
                    self.stage.group(writer, Some(run.stream), &lens);
                    run.next = None;
                }
            }
            Act::Append { run, lens, long, .. } => {
                let lens = [usize::from(lens[0]), usize::from(lens[1]), usize::from(long % 4_000)];
                let lens = &lens[..=usize::from(long % 3)];
                if let Some(run) = runs.get_mut(one(run)) {
                    let receipt = self.stage.append(writer, Some(run.stream), lens);
                    run.next = receipt.and_then(|receipt| receipt.last_seq.next());
                }
            }
            Act::InTerm { run, term, .. } => {
                if let Some(run) = runs.get_mut(one(run)) {
                    Self::append_in_term(&mut self.stage, &mut self.term, writer, run, u64::from(term % 8));
                }
            }
            Act::Expecting { run, off, .. } => {
                if let Some(run) = runs.get_mut(one(run)) {
                    Self::append_expecting(&mut self.stage, writer, run, u64::from(off % 3));
                }
            }
            _ => {}
        }
        self.writers[slot] = Some(process);
    }

    fn append_in_term(stage: &mut Stage, terms: &mut (u64, u64), writer: &Writer, run: &mut Run, term: u64) {
        let conditions = Conditions::none().term(term);
        let receipt = stage.append_if(writer, Some(run.stream), conditions, &[20]);
        run.next = receipt.and_then(|receipt| receipt.last_seq.next());
        if receipt.is_some() && term < terms.0 {
            stage.problems.push(format!("term {term} has a receipt, and {} had one before", terms.0));
        }
        if receipt.is_some() {
            terms.0 = terms.0.max(term);
        }
        terms.1 = terms.1.max(term);
        let sound = writer.disk.is_alive() && !writer.engine().is_poisoned();
        if receipt.is_none() && sound && term >= terms.1 && !stage.expects_faults() {
            stage.problems.push(format!("term {term} was refused, the highest is {terms:?}"));
        }
    }

    fn append_expecting(stage: &mut Stage, writer: &Writer, run: &mut Run, off: u64) {
        let Some(next) = run.next else { return };
        let conditions = Conditions::none().expecting(Seq(next.0 + off));
        let receipt = stage.append_if(writer, Some(run.stream), conditions, &[20]);
        let sound = writer.disk.is_alive() && !writer.engine().is_poisoned() && !stage.expects_faults();
        match receipt {
            Some(_) if off > 0 => stage.problems.push(format!("{next} + {off} was expected, and written")),
            None if off == 0 && sound => stage.problems.push(format!("{next} was expected, and refused")),
            Some(receipt) => run.next = receipt.last_seq.next(),
            None if off == 0 => run.next = None,
            None => {}
        }
    }

    fn everybody_goes(&mut self) {
        self.writers = [None, None, None];
        self.follower = None;
    }

    fn power_cut(&mut self, fates: u64) {
        self.everybody_goes();
        let mut order = 0;
        let world = self.stage.world.power_cut(&mut |_| {
            order += 1;
            fate(fates, order)
        });
        self.stage = self.stage.on(world);
        self.stage.world.record();
        self.stage.expect_faults(false);
        self.planned = None;
    }

    /// What follows from the planned fault, once it has come; `false` where nobody can judge the rest.
    fn settle_fault(&mut self) -> bool {
        let Some((at, how)) = self.planned.filter(|(at, _)| self.stage.world.operations() >= *at) else {
            return true;
        };
        self.planned = None;
        self.follower = None;
        self.stage.world.clear_faults();
        self.stage.expect_faults(false);
        if let How::PowerCut { fates } = how {
            self.power_cut(fates);
            return true;
        }
        // Whether a directory that cannot be synced has its names, no later sync of its parent tells.
        let trace = self.stage.world.trace();
        let failed = trace.iter().find(|operation| operation.number == at);
        let unknowable = failed.is_some_and(|operation| {
            operation.kind == "sync_dir"
                && (operation.file == "." || matches!(how, How::Error { sticky: true, .. }))
        });
        for slot in &mut self.writers {
            if slot.as_ref().is_some_and(|process| !process.writer.disk.is_alive()) {
                *slot = None;
            }
        }
        !unknowable || matches!(how, How::Kill | How::KillAfterSectors(_))
    }

    fn assert_right(&self, doing: &dyn std::fmt::Debug) {
        let problems = &self.stage.problems;
        assert!(problems.is_empty(), "{doing:?}: {problems:#?}");
    }

    fn end(mut self) {
        self.stage.world.clear_faults();
        self.stage.expect_faults(false);
        self.everybody_goes();
        if let Some(mut log) = self.stage.open_log(1) {
            self.stage.judge(&mut log);
            self.stage.verify(&mut log, runwal::Verdict::Torn);
        }
        self.assert_right(&"at the end");
        self.stage.retry_keys(1);
        self.assert_right(&"saying it again");
        life_after(&mut self.stage, 1);
        self.assert_right(&"going on");
    }
}
