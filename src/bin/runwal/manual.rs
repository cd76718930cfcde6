//! `runwal completions` and `runwal man`

use crate::Done;
use crate::args::{Cli, CompletionsArgs};
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::io::Write;

pub(crate) fn completions(args: &CompletionsArgs) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "runwal", &mut script);
    print(&script)
}

/// One page for the whole tool: who looks something up at night does not want to know first which
/// of many pages it stands on.
pub(crate) fn man() -> Done {
    let tool = Cli::command().mut_args(with_values);
    let mut page = Vec::new();
    let top = Man::new(tool.clone()).manual("Commands of runwal");
    top.render_title(&mut page)?;
    writeln!(page, ".ad l\n.nh")?;
    top.render_name_section(&mut page)?;
    // The options are the same for every command: its own usage, below, does not repeat them.
    let mut usage = Roff::new();
    usage.control("SH", ["SYNOPSIS"]);
    usage.text([bold("runwal"), roman(" [global options] <command> [options]")]);
    usage.to_writer(&mut page)?;
    section(&mut page, "DESCRIPTION", DESCRIPTION)?;
    let mut heading = Roff::new();
    heading.control("SH", ["COMMANDS"]);
    heading.to_writer(&mut page)?;
    for command in tool.get_subcommands() {
        subcommand(&mut page, command)?;
    }
    top.render_options_section(&mut page)?;
    for (name, paragraphs) in SECTIONS {
        section(&mut page, name, paragraphs)?;
    }
    print(&page)
}

/// A command of its own, without the options that all have.
fn subcommand(page: &mut Vec<u8>, command: &clap::Command) -> std::io::Result<()> {
    let name = format!("runwal {}", command.get_name());
    let mut heading = Roff::new();
    heading.control("SS", [name.as_str()]);
    heading.to_writer(page)?;
    let mut command = command.clone().bin_name(&name).disable_help_flag(true).mut_args(with_values);
    command.build();
    let usage = command.render_usage().to_string();
    let mut synopsis = Roff::new();
    synopsis.text([bold(usage.trim_start_matches("Usage: "))]);
    synopsis.control("PP", []);
    synopsis.to_writer(page)?;
    let mut man = Vec::new();
    let rendered = Man::new(command);
    rendered.render_description_section(&mut man)?;
    rendered.render_options_section(&mut man)?;
    // Its sections become paragraphs of ours.
    for line in String::from_utf8_lossy(&man).lines() {
        let line = if line.starts_with(".SH ") { ".PP" } else { line };
        writeln!(page, "{line}")?;
    }
    Ok(())
}

/// An option that takes one of a few words, with the words in its sentence instead of a list.
fn with_values(arg: clap::Arg) -> clap::Arg {
    let words: Vec<String> =
        arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if words.is_empty() || !arg.get_action().takes_values() {
        return arg;
    }
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    arg.help(format!("{help}: {}", words.join(", "))).hide_possible_values(true)
}

/// Paragraphs under a heading; one that begins with blanks is an example, and stays as it is.
fn section(page: &mut Vec<u8>, name: &str, paragraphs: &[&str]) -> std::io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [name]);
    for paragraph in paragraphs {
        roff.control("PP", []);
        if let Some((term, text)) = paragraph.split_once('\t') {
            roff.control("TP", ["10"]);
            roff.text([bold(term)]);
            roff.text([roman(text)]);
        } else if paragraph.starts_with(' ') {
            roff.control("nf", []);
            paragraph.lines().for_each(|line| {
                roff.text([roman(line)]);
            });
            roff.control("fi", []);
        } else {
            roff.text([roman(*paragraph)]);
        }
    }
    roff.to_writer(page)
}

fn print(bytes: &[u8]) -> Done {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(0)
}

const DESCRIPTION: &[&str] = &[
    "runwal records what workers do, coding agents, builds, test runs, in one checksummed journal, and \
     makes every file about a run from it, byte for byte. There is nothing to set up: any number of \
     processes write to and read from one data directory at any time.",
    "Data goes to standard output, everything else to standard error. What comes from a worker is shown \
     escaped; output and replay give its raw bytes to a pipe, and to a terminal only what cannot change its \
     title, clipboard or modes, unless --raw is given.",
    "RUN is @last, a run id, the beginning of one, or task/run. AT is a sequence of the run, an RFC 3339 \
     time, or so long ago as -10m.",
];

const SECTIONS: &[(&str, &[&str])] = &[
    (
        "EXIT STATUS",
        &[
            "0\tFine, also for an empty list and a recover that succeeded. A closed pipe ends quietly with 0.",
            "1\tA named thing, a run or the data directory, does not exist, or a comparison differs.",
            "2\tUsage: the call makes no sense, a run of this name exists already, or the attempt before has not \
             ended. Nothing was done.",
            "3\tRecords that were durable are damaged, gone or tampered with. All that is readable was printed.",
            "4\tA write that was cut short stands at the end. Nobody was told that it is durable.",
            "5\tThe journal's lock could not be had in time. Nothing was written.",
            "6\tThe format, or the file system, is not supported. Nothing was written.",
            "7\tAn I/O error.",
            "124\tof run: it timed out.",
            "125\tof run: runwal itself failed.",
            "126\tof run: the command is not executable.",
            "127\tof run: the command was not found.",
            "128 + N\tof run: signal N ended the command. Otherwise run ends with the command's own code.",
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            "RUNWAL_DIR\tThe data directory, where --dir does not name one.",
            "NO_COLOR\tNo colour, unless --color says otherwise.",
            "CLICOLOR_FORCE\tColour also where the output is no terminal.",
            "RUNWAL_RUN\tSet for a worker: its run, as task/run.",
            "RUNWAL_ARTIFACTS\tSet for a worker: the directory for files of its own.",
            "RUNWAL_OUTCOME\tSet for a worker: where it may leave its own word on how it went.",
        ],
    ),
    (
        "FILES",
        &[
            ".runwal/journal/\tThe truth: segments, lock, mark, and what recovery set aside.",
            ".runwal/runs/TASK/RUN/\tThe files of a run, made from the journal: meta.json, state.json, \
             worker.log, stdout.log, stderr.log, checkpoints/, and the worker's own artifacts/.",
            ".runwal/cache/\tDisposable.",
        ],
    ),
    (
        "EXAMPLES",
        &[
            "  runwal run -- cargo test            record a command\n  \
               runwal show @last                   how it went, and what to do next\n  \
               runwal replay @last --max-gap 2s    see it again, without the long silences\n  \
               runwal runs --status failed -n 5    the last five that failed\n  \
               runwal ticks --day 2026-04-01       what the timed jobs did that day\n  \
               runwal verify                       what is wrong, and where",
            "The next attempt at a step, from what the last one left in a git checkout:",
            "  git worktree add DIR COMMIT\n  \
               runwal restore RUN --into DIR\n  \
               runwal run --task T --step S --attempt 2 -C DIR -- CMD",
        ],
    ),
    (
        "ERRORS",
        &[
            "Every error says what happened, where, whether data is at stake, and what to do next; with -o json \
             it is one object on standard error, whose code is one of retry, locked, reopen, corrupt, \
             unsupported, misuse, not_found, conflict, full, io. The page src/docs/errors.md of the source, \
             runwal::docs::errors of the library's documentation, has a section for each of them.",
        ],
    ),
];
