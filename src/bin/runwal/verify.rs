//! `runwal verify`

use crate::args::{Global, VerifyArgs};
use crate::rebuild::{go_through, progress};
use crate::{Done, complain};
use runwal::{Verdict, Verification};
use serde::Serialize;
use std::io::Write;

#[derive(Serialize)]
struct DamageJson<'a> {
    segment: u64,
    offset: u64,
    from: u64,
    to: u64,
    reason: &'a str,
    accepted: bool,
}

#[derive(Serialize)]
struct Json<'a> {
    verdict: &'static str,
    records: u64,
    batches: u64,
    segments: u64,
    bytes: u64,
    durable: u64,
    damage: Vec<DamageJson<'a>>,
    notes: &'a [String],
}

pub(crate) fn verify(global: &Global, args: &VerifyArgs) -> Done {
    let Some(mut log) = global.log()? else {
        complain("runwal: nothing is recorded yet");
        return Ok(0);
    };
    let bar = progress(global, log.segments()?.len() as u64, "verifying");
    let found = log.verify(&mut |_| bar.inc(1))?;
    bar.finish_and_clear();
    let mut out = std::io::stdout().lock();
    print(&mut out, &found, global.json())?;
    let mut code = match found.verdict {
        Verdict::Clean => 0,
        Verdict::Torn => 4,
        Verdict::Corrupt | Verdict::Tampered => 3,
    };
    if args.deep {
        let deep = go_through(global, &mut log, false)?;
        for difference in &deep.differences {
            if global.json() {
                complain(&format!("runwal: {} {}", difference.file, difference.what));
            } else {
                writeln!(out, "{} {}", difference.file, difference.what)?;
            }
        }
        if code == 0 && !deep.differences.is_empty() {
            code = 1;
        }
    }
    out.flush()?;
    Ok(code)
}

fn print(out: &mut impl Write, found: &Verification, json: bool) -> std::io::Result<()> {
    if json {
        let damage = found.damage.iter().map(|d| DamageJson {
            segment: d.segment,
            offset: d.offset,
            from: d.from.0,
            to: d.to.0,
            reason: &d.reason,
            accepted: d.accepted,
        });
        let json = Json {
            verdict: found.verdict.word(),
            records: found.records,
            batches: found.batches,
            segments: found.segments,
            bytes: found.bytes,
            durable: found.durable.0,
            damage: damage.collect(),
            notes: &found.notes,
        };
        return writeln!(out, "{}", serde_json::to_string(&json).unwrap_or_default());
    }
    for damage in &found.damage {
        let accepted = if damage.accepted { " (given up before)" } else { "" };
        writeln!(out, "{}{accepted}", damage.to_error())?;
    }
    for note in &found.notes {
        writeln!(out, "{note}")?;
    }
    writeln!(
        out,
        "{}: {} records in {} batches, {} segments, {} bytes; durable up to position {}",
        found.verdict.word(),
        found.records,
        found.batches,
        found.segments,
        found.bytes,
        found.durable
    )
}
