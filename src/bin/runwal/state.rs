//! `runwal state`

use crate::args::{At, Global, StateArgs, not_begun};
use crate::{Done, show};
use runwal::position::Seq;
use runwal::projection::RunFold;
use std::io::Write;

pub(crate) fn state(global: &Global, args: &StateArgs) -> Done {
    let at = At::parse(args.at.as_deref())?;
    let (mut log, run) = global.find(&args.run)?;
    let mut fold = RunFold::new();
    let damage = log.stream(run.stream, Seq(1), &mut |record| {
        let within = at.includes(record);
        if within {
            fold.apply(record, &mut |_| {});
        }
        Ok(within)
    })?;
    for found in &damage {
        show::damage(found, global.json());
    }
    if fold.request().is_none() {
        return if damage.is_empty() { Err(not_begun(&run)) } else { Ok(3) };
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&fold.state_json())?;
    out.flush()?;
    drop(out);
    crate::log::finish(&mut log, !damage.is_empty(), global)
}
