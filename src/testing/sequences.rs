//! Every short sequence of calls, and long ones by chance: what processes do to a journal, one call
//! after the other, of which the last one is to be interrupted everywhere.
//!
//! A sequence is written `used:1.append,2.roll,look`: the journal it begins with, then the calls, each
//! with the process that makes it. It is read back from there, so a finding is told in one line.

use super::stage::{Stage, Writer};
use crate::journal::{Conditions, Receipt};
use crate::position::{Seq, StreamId};
use std::fmt;

/// What a process does. All but `Close` and `Kill` open the journal first where it is not open, and
/// those that append begin a run first where the process has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Opens for writing.
    Open,
    /// Appends a small record.
    Append,
    /// Appends a batch of three.
    Many,
    /// Appends under an idempotency key.
    Keyed,
    /// Appends in the process's own term: the second one has taken over from the first.
    Term,
    /// Appends with the sequence that comes next.
    Expected,
    /// Appends with a sequence that is taken.
    Stale,
    /// Appends a record so large that it mostly takes a new segment.
    Roll,
    /// Appends a checkpoint.
    Checkpoint,
    /// Appends a record of the timed jobs.
    Tick,
    /// Ends the run.
    Finish,
    /// Brings all files to the disk.
    Publish,
    /// Closes in order.
    Close,
    /// Dies.
    Kill,
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A process does something.
    Of(usize, What),
    /// Somebody reads everything.
    Look,
    /// The power goes; nothing is kept that was not synced.
    Cut,
    /// The power goes; everything had come to the disk by chance.
    Boot,
}

const WHATS: [(What, &str); 14] = [
    (What::Open, "open"),
    (What::Append, "append"),
    (What::Many, "many"),
    (What::Keyed, "keyed"),
    (What::Term, "term"),
    (What::Expected, "expected"),
    (What::Stale, "stale"),
    (What::Roll, "roll"),
    (What::Checkpoint, "checkpoint"),
    (What::Tick, "tick"),
    (What::Finish, "finish"),
    (What::Publish, "publish"),
    (What::Close, "close"),
    (What::Kill, "kill"),
];

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(process, what) => {
                let word = WHATS.iter().find(|(known, _)| known == what).map_or("", |(_, word)| word);
                write!(f, "{}.{word}", process + 1)
            }
            Self::Look => f.write_str("look"),
            Self::Cut => f.write_str("cut"),
            Self::Boot => f.write_str("boot"),
        }
    }
}

impl Call {
    fn parse(text: &str) -> Option<Self> {
        all_calls().into_iter().find(|call| call.to_string() == text)
    }
}

fn all_calls() -> Vec<Call> {
    let of = |process: usize| WHATS.iter().map(move |(what, _)| Call::Of(process, *what));
    of(0).chain(of(1)).chain([Call::Look, Call::Cut, Call::Boot]).collect()
}

/// The journal a sequence begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// There is none.
    Fresh,
    /// One with a sealed segment, a run that ended and one that was left.
    Used,
    /// The same, where the next segment is made ahead of time, and indexes are kept in the cache.
    Spares,
    /// The same as `Used`, where what gets shorter by that is compressed.
    Packed,
}

/// About as long as what fits into a segment.
const LONG_LEN: usize = 1800;

impl Setting {
    /// All of them.
    pub const ALL: [(Self, &str); 4] =
        [(Self::Fresh, "fresh"), (Self::Used, "used"), (Self::Spares, "spares"), (Self::Packed, "packed")];

    /// A machine on which nothing was done.
    pub fn stage(self) -> Stage {
        let stage = Stage::new(2600, 2600);
        match self {
            Self::Fresh | Self::Used => stage,
            Self::Spares => stage.with_spares().keeping_indexes(),
            Self::Packed => stage.compressing(),
        }
    }

    /// Makes the journal it begins with.
    pub fn before(self, stage: &mut Stage) {
        if self == Self::Fresh {
            return;
        }
        let Some(writer) = stage.open(1) else { return };
        let run = stage.begin(&writer, "before");
        stage.append_noise(&writer, run, LONG_LEN);
        stage.append_keyed(&writer, run, 900);
        stage.finish(&writer, run);
        stage.begin(&writer, "left");
        writer.disk.kill();
    }
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// What it begins with.
    pub setting: Setting,
    /// One after the other.
    pub calls: Vec<Call>,
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting =
            Setting::ALL.iter().find(|(known, _)| *known == self.setting).map_or("", |(_, word)| word);
        let calls: Vec<_> = self.calls.iter().map(Call::to_string).collect();
        write!(f, "{setting}:{}", calls.join(","))
    }
}

impl Sequence {
    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (setting, calls) = text.split_once(':')?;
        let setting = Setting::ALL.iter().find(|(_, word)| *word == setting)?.0;
        let calls = calls.split(',').map(Call::parse).collect::<Option<Vec<_>>>()?;
        Some(Self { setting, calls })
    }

    /// All sequences of so many calls that are different: the first process acts first, nobody closes
    /// or dies twice or opens what is open.
    pub fn all(len: usize) -> Vec<Self> {
        let mut found = vec![Vec::new()];
        for _ in 0..len {
            found = found
                .iter()
                .flat_map(|calls| followers(calls).map(|call| [calls, &[call][..]].concat()))
                .collect();
        }
        let with = |(setting, _): &(Setting, &str)| {
            let setting = *setting;
            found.iter().map(move |calls| Self { setting, calls: calls.clone() })
        };
        Setting::ALL.iter().flat_map(with).collect()
    }

    /// One of so many calls, as the number says.
    pub fn random(seed: u64, len: usize) -> Self {
        let mut number = seed;
        let mut draw = |n: usize| {
            number = crate::disk::sim::mix(number);
            usize::try_from(number % n as u64).unwrap_or(0)
        };
        let setting = Setting::ALL[draw(Setting::ALL.len())].0;
        let mut calls = Vec::new();
        while calls.len() < len {
            let all: Vec<_> = followers(&calls).collect();
            let call = all[draw(all.len())];
            // Deaths and power cuts seldom, or nothing else would ever happen.
            let ends =
                matches!(call, Call::Cut | Call::Boot | Call::Of(_, What::Kill | What::Close | What::Finish));
            if !ends || draw(4) == 0 {
                calls.push(call);
            }
        }
        Self { setting, calls }
    }

    /// The sequences with one call less.
    pub fn shorter(&self) -> impl Iterator<Item = Self> + '_ {
        (0..self.calls.len()).map(|without| {
            let mut calls = self.calls.clone();
            calls.remove(without);
            Self { setting: self.setting, calls }
        })
    }
}

fn followers(calls: &[Call]) -> impl Iterator<Item = Call> + use<> {
    let (mut open, mut acted) = ([false; 2], false);
    for call in calls {
        match call {
            Call::Of(process, what) => {
                open[*process] = !matches!(what, What::Close | What::Kill);
                acted = true;
            }
            Call::Cut | Call::Boot => open = [false; 2],
            Call::Look => {}
        }
    }
    let last = calls.last().copied();
    all_calls().into_iter().filter(move |call| match call {
        Call::Of(1, _) if !acted => false,
        Call::Of(process, What::Open) => !open[*process],
        Call::Of(process, What::Close | What::Kill) => open[*process],
        Call::Of(..) => true,
        other => last != Some(*other),
    })
}

/// The processes of a sequence, as far as it has come.
#[derive(Debug, Default)]
pub struct Players {
    players: [Player; 2],
    highest_term: u64,
}

#[derive(Debug, Default)]
struct Player {
    writer: Option<Writer>,
    run: Option<StreamId>,
    next: Option<Seq>,
}

impl Players {
    /// Does one call.
    pub fn play(&mut self, stage: &mut Stage, call: Call) {
        match call {
            Call::Of(process, what) => self.act(stage, process, what),
            Call::Look => stage.look(1),
            Call::Cut | Call::Boot => {
                stage.restart(call == Call::Boot);
                self.players = Default::default();
            }
        }
    }

    fn act(&mut self, stage: &mut Stage, process: usize, what: What) {
        let term = process as u64 + 1;
        let player = &mut self.players[process];
        match what {
            What::Close => {
                let Player { writer, .. } = std::mem::take(player);
                return writer.into_iter().for_each(|writer| stage.close(writer));
            }
            What::Kill => {
                let Player { writer, .. } = std::mem::take(player);
                return writer.into_iter().for_each(|writer| writer.disk.kill());
            }
            _ => {}
        }
        if player.writer.is_none() {
            player.writer = stage.open(1);
        }
        let Some(writer) = &player.writer else { return };
        let appends = !matches!(what, What::Open | What::Publish | What::Tick);
        if appends && player.run.is_none() {
            player.run = stage.begin(writer, "run");
            player.next = player.run.map(|_| Seq(3));
        }
        let run = player.run;
        let mut receipt: Option<Receipt> = None;
        match what {
            What::Open | What::Close | What::Kill => {}
            What::Append => receipt = stage.append(writer, run, &[40]),
            What::Many => receipt = stage.append(writer, run, &[300, 10, 500]),
            What::Roll => receipt = stage.append_noise(writer, run, LONG_LEN),
            What::Checkpoint => receipt = stage.checkpoint(writer, run),
            What::Keyed => receipt = stage.append_keyed(writer, run, 30),
            What::Term => {
                receipt = stage.append_if(writer, run, Conditions::none().term(term), &[30]);
                if receipt.is_some() && term < self.highest_term {
                    stage.problems.push(format!("term {term} was taken after term {}", self.highest_term));
                }
                if receipt.is_some() {
                    self.highest_term = term;
                }
            }
            What::Expected => {
                let expected = player.next.unwrap_or(Seq(1));
                receipt = stage.append_if(writer, run, Conditions::none().expecting(expected), &[30]);
            }
            What::Stale => {
                if stage.append_if(writer, run, Conditions::none().expecting(Seq(1)), &[30]).is_some() {
                    stage.problems.push("a sequence that is taken was expected, and given".to_owned());
                }
            }
            What::Tick => stage.tick(writer),
            What::Finish => {
                stage.finish(writer, run);
                player.run = None;
            }
            What::Publish => stage.publish(1),
        }
        if let Some(receipt) = receipt {
            player.next = receipt.last_seq.next();
        }
    }
}
