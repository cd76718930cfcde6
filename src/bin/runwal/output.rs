//! `runwal output`

use crate::args::{Global, OutputArgs};
use crate::sink::{Sinks, Wanted};
use crate::{Done, Failure, show, sink};
use runwal::engine::Log;
use runwal::position::Seq;
use runwal::record::Body;
use std::time::Duration;

pub(crate) fn output(global: &Global, args: &OutputArgs) -> Done {
    let (mut log, run) = global.find(&args.run)?;
    let mut sinks = Sinks::new(Wanted { channel: args.channel, times: args.times, raw: args.raw });
    let mut next = Seq(1);
    let mut damaged = false;
    loop {
        let (ended, damage) = pass_on(&mut log, run.stream, &mut next, &mut sinks)?;
        for found in &damage {
            show::damage(found, global.json());
            damaged = true;
        }
        sink::flush()?;
        if !args.follow || ended || damaged {
            sinks.finish()?;
            return crate::log::finish(&mut log, damaged, global);
        }
        while !log.wait(Duration::from_secs(1))? {}
    }
}

/// Passes on everything from a sequence on; answers whether the run has ended.
fn pass_on(
    log: &mut Log,
    stream: runwal::position::StreamId,
    next: &mut Seq,
    sinks: &mut Sinks,
) -> Result<(bool, Vec<runwal::Damage>), Failure> {
    let mut failed = None;
    let mut ended = false;
    let damage = log.stream(stream, *next, &mut |record| {
        *next = Seq(record.seq.0 + 1);
        ended |= record.ends;
        if let Body::Chunk(channel, bytes) = &record.body
            && let Err(error) = sinks.write(*channel, bytes, record.created_at)
        {
            failed = Some(error);
            return Ok(false);
        }
        Ok(true)
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok((ended, damage)),
    }
}
