//! `runwal info`

use crate::args::Global;
use crate::{Done, complain};
use std::io::Write;

pub(crate) fn info(global: &Global) -> Done {
    let dir = global.dir();
    let Some(mut log) = global.log()? else {
        writeln!(std::io::stdout(), "{}: nothing is recorded yet", dir.display())?;
        return Ok(0);
    };
    let found = log.info()?;
    let mut out = std::io::stdout().lock();
    let per_record = found.bytes.checked_div(found.records).unwrap_or(0);
    if global.json() {
        let shown = serde_json::to_string(&dir.display().to_string()).unwrap_or_default();
        writeln!(
            out,
            "{{\"dir\":{shown},\"journal\":\"{}\",\"durable\":{},\"records\":{},\"batches\":{},\"runs\":{},\
             \"openRuns\":{},\"segments\":{},\"bytes\":{},\"allocatedBytes\":{},\"bytesPerRecord\":{per_record}}}",
            found.journal,
            found.durable.0,
            found.records,
            found.batches,
            found.runs,
            found.open_runs,
            found.segments,
            found.bytes,
            found.allocated_bytes
        )?;
    } else {
        writeln!(out, "data directory    {}", dir.display())?;
        writeln!(out, "journal           {}", found.journal)?;
        writeln!(out, "durable position  {}", found.durable)?;
        writeln!(out, "records           {} in {} batches", found.records, found.batches)?;
        writeln!(out, "runs              {}, {} of them open", found.runs, found.open_runs)?;
        writeln!(out, "segments          {}", found.segments)?;
        writeln!(out, "bytes             {} ({} allocated)", found.bytes, found.allocated_bytes)?;
        writeln!(out, "bytes per record  {per_record}")?;
    }
    out.flush()?;
    let unreadable = log.unreadable_streams()?;
    let segments = log.unreadable_segments()?.len();
    if unreadable > 0 || segments > 0 {
        complain(&format!(
            "runwal: {segments} segments and the first records of {unreadable} runs cannot be read; \
             see `runwal verify`"
        ));
        return Ok(3);
    }
    Ok(0)
}
