//! `runwal rebuild`

use crate::args::{Global, RebuildArgs};
use crate::{Done, complain, show};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use runwal::engine::Log;
use runwal::error::{Error, ErrorKind};
use runwal::projection::publish::{Difference, Rebuilt};
use std::io::{IsTerminal, Write};

/// A progress bar where somebody sees it.
pub(crate) fn progress(global: &Global, len: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(len);
    let visible = std::io::stderr().is_terminal() && !global.quiet;
    bar.set_draw_target(if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

/// What comparing or rewriting everything found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) differences: Vec<Difference>,
    pub(crate) rewritten: u64,
    pub(crate) damaged: Vec<String>,
    pub(crate) live: Vec<String>,
}

impl Found {
    fn add(&mut self, name: String, rebuilt: Option<Rebuilt>) {
        match rebuilt {
            None => self.live.push(name),
            Some(rebuilt) => {
                self.differences.extend(rebuilt.differences);
                self.rewritten += rebuilt.rewritten;
                if rebuilt.damaged {
                    self.damaged.push(name);
                }
            }
        }
    }
}

/// Compares, and with `write` rewrites, everything that files are made from.
pub(crate) fn go_through(global: &Global, log: &mut Log, write: bool) -> Result<Found, Error> {
    let bar = progress(global, log.durable().0, if write { "rebuilding" } else { "comparing" });
    let mut found = Found::default();
    let runs = log.runs()?;
    let mut rebuilt = log.rebuild_runs(&runs, write, &mut |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    })?;
    for run in runs {
        if let Some(rebuilt) = rebuilt.remove(&run.stream) {
            found.add(format!("run {}", run.name), rebuilt);
        }
    }
    if let Some(ticks) = log.ticks()? {
        found.add("the timed jobs".to_owned(), log.rebuild(ticks, write)?);
    }
    bar.finish_and_clear();
    Ok(found)
}

pub(crate) fn rebuild(global: &Global, args: &RebuildArgs) -> Done {
    let Some(mut log) = global.log()? else { return Ok(0) };
    let write = !args.check;
    let mut found = match &args.run {
        Some(run) => {
            let run = log.resolve(run)?;
            let mut found = Found::default();
            found.add(format!("run {}", run.name), log.rebuild(run.stream, write)?);
            found
        }
        None => go_through(global, &mut log, write)?,
    };
    if args.run.is_none() {
        let unreadable = log.unreadable_streams()?;
        if unreadable > 0 {
            found.damaged.push(format!("{unreadable} runs whose names are lost"));
        }
        for number in log.unreadable_segments()? {
            found.damaged.push(format!("segment {number}"));
        }
    }
    let mut out = std::io::stdout().lock();
    for difference in &found.differences {
        if global.json() {
            let file = serde_json::to_string(&difference.file).unwrap_or_default();
            writeln!(out, "{{\"file\":{file},\"difference\":\"{}\"}}", difference.what)?;
        } else if args.check || global.verbose {
            writeln!(out, "{} {}", difference.file, difference.what)?;
        }
    }
    if !args.check && !global.json() {
        writeln!(out, "{} files written anew", found.rewritten)?;
    }
    out.flush()?;
    for name in &found.live {
        if !global.quiet {
            complain(&format!("runwal: {name} is being recorded; its files were left to its recorder"));
        }
    }
    for name in &found.damaged {
        let message = format!("records of {name} cannot be read; its files were left alone");
        show::error(&Error::corrupt_data(message, "`runwal verify` tells what is damaged."), global.json());
    }
    if !found.damaged.is_empty() {
        return Ok(crate::exit_code(ErrorKind::Corrupt));
    }
    Ok(u8::from(args.check && !found.differences.is_empty()))
}
