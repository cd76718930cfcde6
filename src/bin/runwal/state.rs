//! `runwal state`

use crate::args::{Global, StateArgs, moment};
use crate::{Done, Failure, show};
use runwal::clock::Clock;
use runwal::error::Error;
use runwal::position::{Seq, Time};
use runwal::projection::RunFold;
use std::io::Write;

/// A moment in a run.
enum At {
    End,
    Seq(Seq),
    Time(Time),
}

pub(crate) fn state(global: &Global, args: &StateArgs) -> Done {
    let at = match args.at.as_deref() {
        None => At::End,
        Some(text) => match text.parse() {
            Ok(seq) => At::Seq(Seq(seq)),
            Err(_) => At::Time(moment(text, runwal::clock::System.now())?),
        },
    };
    let Some(mut log) = global.log()? else {
        return Err(Failure::Engine(Error::not_found("nothing is recorded yet", "Record something first.")));
    };
    let run = log.resolve(&args.run)?;
    let mut fold = RunFold::new();
    let damage = log.stream(run.stream, Seq(1), &mut |record| {
        let within = match at {
            At::End => true,
            At::Seq(seq) => record.seq <= seq,
            At::Time(time) => record.time <= time,
        };
        if within {
            fold.apply(record, &mut |_| {});
        }
        Ok(within)
    })?;
    for found in &damage {
        show::damage(found, global.json());
    }
    if fold.request().is_none() {
        if !damage.is_empty() {
            return Ok(3);
        }
        let error = Error::not_found(
            format!("run {} had not begun at that moment", run.name),
            format!("`runwal log {} -n all` tells when it did.", run.name),
        );
        return Err(Failure::Engine(error));
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&fold.state_json())?;
    out.flush()?;
    Ok(if damage.is_empty() { 0 } else { 3 })
}
