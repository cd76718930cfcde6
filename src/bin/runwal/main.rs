//! The command-line tool: the first honest user of the library, by its public interface alone.

mod args;
mod checkpoints;
mod info;
mod log;
mod manual;
mod output;
mod page;
mod rebuild;
mod recover;
mod replay;
mod restore;
mod run;
mod runs;
mod show;
mod sink;
mod state;
mod ticks;
mod verify;

use args::{Cli, Command};
use clap::Parser;
use runwal::error::{Error, ErrorKind};
use signal_hook::consts::SIGXFSZ;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

/// How a command can fail.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine said so.
    Engine(Error),
    /// Standard output could not be written.
    Output(std::io::Error),
    /// The call makes no sense.
    Usage(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

/// What a command ends with.
pub(crate) type Done = Result<u8, Failure>;

/// The exit code of an error.
pub(crate) fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::NotFound => 1,
        ErrorKind::Misuse | ErrorKind::Conflict => 2,
        ErrorKind::Corrupt => 3,
        ErrorKind::Locked => 5,
        ErrorKind::Unsupported => 6,
        _ => 7,
    }
}

fn main() -> ExitCode {
    // With a handler, a write over the file size limit fails instead of ending us. Ignoring the
    // signal would do the same to the worker.
    if !is_ignored(SIGXFSZ) {
        let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors; a closed pipe ends them quietly.
            let printed = error.print().and_then(|()| std::io::stdout().flush());
            if let Err(failed) = printed
                && !error.use_stderr()
            {
                return ExitCode::from(output_failed(&failed, false));
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let json = cli.global.json();
    if !matches!(cli.command, Command::Completions(_) | Command::Man) {
        cli.global.tell_dir();
    }
    let result = match &cli.command {
        Command::Run(args) => run::run(&cli.global, args),
        Command::Runs(args) => runs::runs(&cli.global, args),
        Command::Show(args) => page::show(&cli.global, args),
        Command::State(args) => state::state(&cli.global, args),
        Command::Log(args) => log::log(&cli.global, args),
        Command::Output(args) => output::output(&cli.global, args),
        Command::Checkpoints(args) => checkpoints::checkpoints(&cli.global, args),
        Command::Restore(args) => restore::restore(&cli.global, args),
        Command::Replay(args) => replay::replay(&cli.global, args),
        Command::Rebuild(args) => rebuild::rebuild(&cli.global, args),
        Command::Recover(args) => recover::recover(&cli.global, args),
        Command::Verify(args) => verify::verify(&cli.global, args),
        Command::Info => info::info(&cli.global),
        Command::Ticks(args) => ticks::ticks(&cli.global, args),
        Command::Completions(args) => manual::completions(args),
        Command::Man => manual::man(),
    };
    let code = match result {
        Ok(code) => code,
        Err(Failure::Output(error)) => output_failed(&error, json),
        Err(Failure::Usage(message)) => {
            show::usage(&message, json);
            2
        }
        Err(Failure::Engine(error)) => {
            show::error(&error, json);
            exit_code(error.kind())
        }
    };
    ExitCode::from(code)
}

/// Whether whoever started us had this signal ignored, as `nohup` does: then it is to be for us and
/// for the worker, and a handler would undo that.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// The exit code where standard output cannot be written: whoever closed it wants no more of it.
fn output_failed(error: &std::io::Error, json: bool) -> u8 {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return 0;
    }
    show::output_failed(error, json);
    7
}

/// A line on stderr; a closed one is nobody to complain to.
pub(crate) fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}
