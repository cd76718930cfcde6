//! Every option, once.

use crate::Failure;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use runwal::clock::Clock;
use runwal::engine::{Log, RunInfo, World};
use runwal::error::{Error, ErrorKind};
use runwal::position::{Seq, Time};
use runwal::record::{Kind, Record};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const GLOBAL: &str = "Global options";

const AFTER_HELP: &str = "\
Examples:
  runwal run -- cargo test        record a command
  runwal runs                     list what was recorded
  runwal show @last               the last run as a page
  runwal log @last                its records, one a line
  runwal output @last             what it wrote, byte for byte
  runwal verify                   check every checksum

Exit codes: 0 fine, 1 not there or different, 2 usage, 3 corrupt or tampered, 4 torn tail,
5 lock not had in time, 6 format not supported, 7 I/O error. `run` ends with the worker's code,
128 + signal, 124 timed out, 125 runwal failed, 126 not executable, 127 not found.

`runwal man | man -l -` is the manual. What each error means and what to do next stands in
src/docs/errors.md.";

/// The write-ahead log of worker runs.
#[derive(Debug, Parser)]
#[command(name = "runwal", version, about, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Short,
    /// For programs: one object a line.
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The data directory [default: $RUNWAL_DIR, the nearest .runwal upward, or ./.runwal]
    #[arg(long, global = true, value_name = "DIR", help_heading = GLOBAL)]
    dir: Option<PathBuf>,
    /// How to print
    #[arg(short = 'o', long = "format", global = true, value_name = "FORMAT", default_value = "short", help_heading = GLOBAL)]
    format: Format,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = GLOBAL)]
    color: Color,
    /// Say less on stderr
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub(crate) quiet: bool,
    /// Say more: on stderr which data directory is used, with `run` how it went, with `replay` the
    /// events; and what `show` and `rebuild` leave out
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub(crate) verbose: bool,
}

impl Global {
    pub(crate) fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether to colour what goes to stdout.
    pub(crate) fn colored(&self) -> bool {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty() && v != "0");
        match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto if set("CLICOLOR_FORCE") => true,
            Color::Auto => {
                use std::io::IsTerminal;
                let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
                let asked_not_to = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
                !asked_not_to && !dumb && std::io::stdout().is_terminal()
            }
        }
    }

    /// The data directory, whether it exists or not.
    pub(crate) fn dir(&self) -> PathBuf {
        self.found_dir().0
    }

    /// The data directory, and why this one.
    fn found_dir(&self) -> (PathBuf, &'static str) {
        if let Some(dir) = &self.dir {
            return (dir.clone(), "named by --dir");
        }
        if let Some(dir) = std::env::var_os("RUNWAL_DIR").filter(|dir| !dir.is_empty()) {
            return (dir.into(), "named by $RUNWAL_DIR");
        }
        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        match here.ancestors().map(|dir| dir.join(".runwal")).find(|dir| dir.is_dir()) {
            Some(dir) => (dir, "the nearest upward"),
            None => (PathBuf::from(".runwal"), "as there is none upward"),
        }
    }

    /// With `-v`, which data directory it is about.
    pub(crate) fn tell_dir(&self) {
        if self.verbose {
            let (dir, why) = self.found_dir();
            crate::complain(&format!("runwal: data directory {} ({why})", dir.display()));
        }
    }

    /// How a person calls this tool for the same data directory again.
    pub(crate) fn invocation(&self) -> String {
        match &self.dir {
            Some(dir) => format!("runwal --dir {}", crate::show::shell_word(dir.as_os_str().as_bytes())),
            None => "runwal".to_owned(),
        }
    }

    /// The run that a person means, and the journal it is in.
    pub(crate) fn find(&self, run: &str) -> Result<(Log, RunInfo), Failure> {
        let Some(mut log) = self.log()? else {
            return Err(Failure::Engine(Error::not_found(
                "nothing is recorded yet",
                "Record something first: `runwal run -- COMMAND`.",
            )));
        };
        let run = log.resolve(run)?;
        Ok((log, run))
    }

    /// The world for a command that only reads.
    pub(crate) fn existing(&self) -> Result<World, Failure> {
        let dir = self.dir();
        if !dir.is_dir() {
            return Err(Failure::Engine(nothing_there(&dir)));
        }
        Ok(World::existing(&dir)?)
    }

    /// The journal for a command that only reads; `None` where nothing was ever written.
    pub(crate) fn log(&self) -> Result<Option<Log>, Failure> {
        let world = self.existing()?;
        match Log::open_in(&world) {
            Ok(log) => Ok(Some(log)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The world for a command that writes: the directory is made, with a `.gitignore` of its own.
    pub(crate) fn created(&self) -> Result<World, Failure> {
        const IGNORE: &str = ".gitignore";
        let world = World::create(&self.dir())?;
        match world.disk.stat(IGNORE)? {
            Some(stat) if stat.len > 0 => return Ok(world),
            // Left empty by a write that failed.
            Some(_) => {
                world.disk.open(IGNORE, runwal::disk::Open::Write)?.write_at(b"*\n", 0)?;
                return Ok(world);
            }
            None => match world.disk.open(IGNORE, runwal::disk::Open::CreateNew) {
                Ok(file) => file.write_at(b"*\n", 0)?,
                // Another process makes the same directory at the same moment.
                Err(_) if world.disk.stat(IGNORE)?.is_some() => {}
                Err(error) => return Err(error.into()),
            },
        }
        Ok(world)
    }
}

fn nothing_there(dir: &Path) -> Error {
    Error::not_found(
        format!("there is no data directory {}", dir.display()),
        "Name one with --dir, or record something first: `runwal run -- COMMAND`.",
    )
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Record a command as a run, passing its output through
    Run(RunArgs),
    /// List the runs, newest last
    Runs(RunsArgs),
    /// Show one run as a page: what was asked, how it went, what it left, what to do next
    Show(ShowArgs),
    /// Print a run's state.json, as it is or as it was
    State(StateArgs),
    /// Print the records, one a line
    Log(LogArgs),
    /// Print what a run's worker wrote, byte for byte
    Output(OutputArgs),
    /// List a run's checkpoints
    Checkpoints(CheckpointsArgs),
    /// Bring a checkpoint back: a git diff into a clean checkout, any other as a file
    Restore(RestoreArgs),
    /// Print a run's output again in its own time; nothing is executed
    Replay(ReplayArgs),
    /// Make the projected files from the journal
    Rebuild(RebuildArgs),
    /// Do what opening for writing does, and report it
    Recover(RecoverArgs),
    /// Check every checksum, chain, gap and watermark; change nothing
    Verify(VerifyArgs),
    /// Sizes and counts
    Info,
    /// Print the records of the timed jobs, one a line
    Ticks(TicksArgs),
    /// Print a script that completes commands and options in a shell
    Completions(CompletionsArgs),
    /// Print the manual, to be read with `runwal man | man -l -`
    Man,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The task's id [default: generated]
    #[arg(long)]
    pub(crate) task: Option<String>,
    /// The step's id
    #[arg(long, default_value = "run")]
    pub(crate) step: String,
    /// The run's id [default: generated, sortable by time]
    #[arg(long)]
    pub(crate) run: Option<String>,
    /// Which attempt at the step it is. From 2 on, it goes on from the newest run of the same task and
    /// step that was one attempt before, which has to have ended
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) attempt: u32,
    /// What kind of worker it is
    #[arg(long, value_name = "KIND")]
    pub(crate) worker: Option<String>,
    /// End it after this time, as 10m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// The time between SIGTERM and SIGKILL
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,
    /// Its working directory
    #[arg(short = 'C', value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Something to find the run by; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Record this variable of the environment; may be repeated
    #[arg(long = "record-env", value_name = "NAME")]
    pub(crate) record_env: Vec<OsString>,
    /// Take a checkpoint of this file, which the tests write
    #[arg(long, value_name = "FILE")]
    pub(crate) test_output: Option<PathBuf>,
    /// Give it a pseudo-terminal, recorded as one channel
    #[arg(long)]
    pub(crate) pty: bool,
    /// Take no git diff
    #[arg(long)]
    pub(crate) no_diff: bool,
    /// Take no checkpoints
    #[arg(long)]
    pub(crate) no_checkpoints: bool,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    /// Only of this status
    #[arg(long)]
    pub(crate) status: Option<String>,
    /// Only of this task
    #[arg(long)]
    pub(crate) task: Option<String>,
    /// Only with this label
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Only those begun since: RFC 3339, or -10m
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) since: Option<String>,
    /// Only the last N
    #[arg(short = 'n', value_name = "N")]
    pub(crate) last: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// @last, a run id or the beginning of one, or task/run
    pub(crate) run: String,
}

#[derive(Debug, Args)]
pub(crate) struct CheckpointsArgs {
    /// @last, a run id or the beginning of one, or task/run
    pub(crate) run: String,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// @last, a run id or the beginning of one, or task/run
    pub(crate) run: String,
    /// So many times as fast: 2 takes half the time, 0.5 twice the time
    #[arg(long, value_name = "X", default_value = "1", value_parser = speed)]
    pub(crate) speed: f64,
    /// Never wait longer than this at once, as 2s [default: as long as the run was silent]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) max_gap: Option<Duration>,
    /// All at once, without waiting
    #[arg(long, conflicts_with_all = ["speed", "max_gap"])]
    pub(crate) instant: bool,
    /// Up to a sequence of the run, an RFC 3339 time, or -10m
    #[arg(long, value_name = "AT", allow_hyphen_values = true)]
    pub(crate) until: Option<String>,
    /// Everything also to a terminal, whatever it may do to it
    #[arg(long)]
    pub(crate) raw: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if (0.001..=1e9).contains(&speed) => Ok(speed),
        _ => Err("a speed is a number from 0.001 to 1000000000".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    /// @last, a run id or the beginning of one, or task/run
    pub(crate) run: String,
    /// As it was at a sequence of the run, an RFC 3339 time, or -10m
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) at: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Only this run: @last, a run id or the beginning of one, or task/run
    pub(crate) run: Option<String>,
    /// Go on with what is recorded from now on; with RUN, until it ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last N, or all [default: all, with -f 10]
    #[arg(short = 'n', value_name = "N")]
    pub(crate) last: Option<String>,
    /// Newest first
    #[arg(short, long, conflicts_with = "follow")]
    pub(crate) reverse: bool,
    /// From this time on: RFC 3339, or -10m
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) until: Option<String>,
    /// Only of this kind; may be repeated
    #[arg(long = "kind", value_name = "KIND", value_parser = kinds())]
    pub(crate) kinds: Vec<Kind>,
    /// Only lifecycle events of this level or above
    #[arg(long)]
    pub(crate) level: Option<LevelName>,
    /// From behind the record with this cursor
    #[arg(long, value_name = "CURSOR")]
    pub(crate) after_cursor: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum LevelName {
    Debug,
    Info,
    Warn,
    Error,
}

fn kinds() -> impl TypedValueParser<Value = Kind> {
    PossibleValuesParser::new(Kind::ALL.map(Kind::word)).try_map(|word| word.parse())
}

#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// @last, a run id or the beginning of one, or task/run
    pub(crate) run: String,
    /// Go on until the run ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only this channel
    #[arg(long)]
    pub(crate) channel: Option<ChannelName>,
    /// The time of each line before it
    #[arg(short = 't', long)]
    pub(crate) times: bool,
    /// Everything also to a terminal, whatever it may do to it
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ChannelName {
    Stdout,
    Stderr,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// @last, a run id or the beginning of one, or task/run
    pub(crate) run: String,
    /// The checkpoint's number [default: that of the last git diff]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) checkpoint: Option<u32>,
    /// A clean git checkout of the commit the run began with; for a checkpoint that is not a git
    /// diff, any directory
    #[arg(long, value_name = "DIR")]
    pub(crate) into: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    /// Only this run
    pub(crate) run: Option<String>,
    /// Write nothing; compare, and end with 1 if anything differs
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Write nothing; say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Give up what is damaged at the end of the journal; deletes nothing
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) accept_damage: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Also compare the projected files with the journal
    #[arg(long)]
    pub(crate) deep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TicksArgs {
    /// Only of this day in UTC, as 2026-04-01
    #[arg(long)]
    pub(crate) day: Option<String>,
    /// Begin with the last 10 and go on with what is recorded from now on
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// A moment as a person writes it: RFC 3339, or so long ago as `-10m`.
pub(crate) fn moment(text: &str, now: Time) -> Result<Time, Failure> {
    let ago = text.strip_prefix('-').and_then(|ago| humantime::parse_duration(ago).ok());
    if let Some(ago) = ago {
        return Ok(Time(now.0.saturating_sub(i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX))));
    }
    Time::parse(text).ok_or_else(|| {
        Failure::Usage(format!(
            "\"{}\" is no time: RFC 3339, or -10m for ten minutes ago",
            text.escape_debug()
        ))
    })
}

/// A moment in a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At {
    /// After its last record.
    End,
    /// After the record with this sequence.
    Seq(Seq),
    /// After what was appended until then.
    Time(Time),
}

impl At {
    /// Reads a sequence, or a time as [`moment`] does.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, Failure> {
        Ok(match text.map(|text| (text, text.parse())) {
            None => Self::End,
            Some((_, Ok(seq))) => Self::Seq(Seq(seq)),
            Some((text, Err(_))) => Self::Time(moment(text, runwal::clock::System.now())?),
        })
    }

    /// Whether a record was there at that moment.
    pub(crate) fn includes(self, record: &Record) -> bool {
        match self {
            Self::End => true,
            Self::Seq(seq) => record.seq <= seq,
            Self::Time(time) => record.time <= time,
        }
    }
}

/// The error of a run that was not there yet.
pub(crate) fn not_begun(run: &RunInfo) -> Failure {
    Failure::Engine(Error::not_found(
        format!("run {} had not begun at that moment", run.name),
        format!("`runwal log {} -n all` tells when it did.", run.name),
    ))
}
