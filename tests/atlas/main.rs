//! The crash atlas: everything that tries to make runwal lose what it acknowledged.
//!
//! ```text
//! cargo test --release --test atlas                      the quick part, some minutes
//! cargo test --release --test atlas -- --minutes 60      the deep part, about as long as asked
//! cargo test --release --test atlas -- kills --count 20000
//! cargo test --release --test atlas -- explore --case NAME
//! cargo test --release --test atlas -- --first             ends with the first finding
//! cargo test --release --test atlas -- explore --count 100000000 --resume DIR
//!                                                        goes on where it was stopped, or killed
//! ```
//!
//! Each layer counts what it did and says what it left out, and why. What is found to be wrong is
//! printed with the arguments that show it again; the exit code is 1 then.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]
#![allow(clippy::disallowed_methods, reason = "it is about this machine: its clock, its files")]

mod calls;
mod chance;
mod disks;
mod explore;
mod journal;
mod kills;
mod ledger;
mod machine;
mod mounts;
mod power;
mod process;
mod worker;

/// Machines are made and thrown away by the thousand a second.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How much of a layer is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    /// The deep part: go on with ever new cases until then. Without it: the quick part.
    until: Option<Instant>,
    /// So many cases (cycles, kills, states), however long it takes.
    count: Option<u64>,
    /// One case, by the name under which it was reported.
    case: Option<String>,
    /// Whether the first finding is enough.
    first: bool,
    /// Where to keep how far it is, and what was seen.
    resume: Option<PathBuf>,
}

impl Asked {
    /// Whether more is asked for than what is done; `quick` is what the quick part has.
    pub(crate) fn goes_on(&self, done: u64, quick: u64) -> bool {
        match (self.count, self.until) {
            (Some(count), _) => done < count,
            (None, Some(until)) => Instant::now() < until,
            (None, None) => done < quick,
        }
    }
}

/// What a layer did and found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What was counted, by its name.
    counts: BTreeMap<String, u64>,
    /// What else is worth a word.
    notes: Vec<String>,
    /// What could not be done here, with the reason.
    skipped: Vec<String>,
    /// What is wrong: the case, and the complaint.
    problems: BTreeMap<String, String>,
}

impl Found {
    pub(crate) fn count(&mut self, what: &str, n: u64) {
        *self.counts.entry(what.to_owned()).or_default() += n;
    }

    /// Notes how fast something went.
    pub(crate) fn rate(&mut self, what: &str, n: u64, since: Instant) {
        let n = f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        self.notes.push(format!("{:.1} {what} a second", n / since.elapsed().as_secs_f64()));
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<_> = self.counts.iter().map(|(what, n)| format!("{n} {what}")).collect();
        writeln!(f, "{}", counts.join(", "))?;
        self.notes.iter().try_for_each(|note| writeln!(f, "    {note}"))?;
        self.skipped.iter().try_for_each(|what| writeln!(f, "    skipped: {what}"))?;
        self.problems.iter().try_for_each(|(case, complaint)| writeln!(f, "    WRONG {case}: {complaint}"))
    }
}

struct Layer {
    name: &'static str,
    about: &'static str,
    /// Its part of the time that the deep part is given.
    share: u32,
    run: fn(&Asked) -> Found,
}

const LAYERS: &[Layer] = &[
    Layer {
        name: "explore",
        about: "the simulated disk, crashed at every operation in every way",
        share: 6,
        run: explore::run,
    },
    Layer {
        name: "kills",
        about: "real processes, killed at random moments and at every system call",
        share: 2,
        run: kills::run,
    },
    Layer {
        name: "calls",
        about: "real processes, each system call of which fails in every way",
        share: 2,
        run: calls::run,
    },
    Layer {
        name: "power",
        about: "the power of real file systems cut while a process writes",
        share: 2,
        run: power::run,
    },
    Layer {
        name: "disks",
        about: "disks that fail syncs, are full or read-only, and limits of a process",
        share: 1,
        run: disks::run,
    },
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if(|arg| arg == "--worker").is_some() {
        return worker::main(args);
    }
    match begin(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(usage) => {
            let layers: Vec<_> = LAYERS.iter().map(|l| format!("  {:<10} {}", l.name, l.about)).collect();
            eprintln!(
                "{usage}\n\natlas [LAYER]... [--minutes N] [--count N] [--case NAME] [--first] [--resume DIR]\n{}",
                layers.join("\n")
            );
            ExitCode::from(2)
        }
    }
}

fn begin(mut args: impl Iterator<Item = String>) -> Result<bool, String> {
    let (mut asked, mut minutes, mut wanted) = (Asked::default(), None, Vec::new());
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is not a number"));
        match &*arg {
            "--minutes" => minutes = Some(number(value()?)?),
            "--count" => asked.count = Some(number(value()?)?),
            "--case" => asked.case = Some(value()?),
            "--first" => asked.first = true,
            "--resume" => asked.resume = Some(value()?.into()),
            name => wanted.push(LAYERS.iter().find(|l| l.name == name).ok_or(format!("no layer {name}"))?),
        }
    }
    if wanted.is_empty() {
        wanted = LAYERS.iter().collect();
    }
    let mut shares: u32 = wanted.iter().map(|layer| layer.share).sum();
    let end = minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let mut well = true;
    for layer in wanted {
        let begun = Instant::now();
        asked.until = end.map(|end| begun + end.saturating_duration_since(begun) * layer.share / shares);
        shares -= layer.share;
        let found = (layer.run)(&asked);
        well &= found.problems.is_empty();
        print!("{:>10}: {:.0} s, {found}", layer.name, begun.elapsed().as_secs_f64());
    }
    Ok(well)
}
