//! `runwal recover`

use crate::args::{Global, RecoverArgs};
use crate::{Done, complain, show};
use runwal::Verdict;
use runwal::engine::{Engine, MissedTicks, Options};
use runwal::error::ErrorKind;
use serde::Serialize;
use std::io::Write;

pub(crate) fn recover(global: &Global, args: &RecoverArgs) -> Done {
    let world = global.existing()?;
    if args.dry_run {
        return dry_run(global);
    }
    let options = Options::default();
    let mut accepted = None;
    if args.accept_damage {
        accepted = Engine::accept_damage(world.clone(), &options)?;
        match &accepted {
            Some(damage) => complain(&format!("runwal: given up: {}", damage.to_error())),
            None => complain("runwal: nothing at the end of the journal needed to be given up"),
        }
    }
    let (engine, report) = Engine::open_in(world, options)?;
    let position = report.position;
    engine.close()?;
    // Opening looks at the end of the journal alone; who asks for recovery wants to know all.
    let verification = global.log()?.map(|mut log| log.verify(&mut |_| {})).transpose()?;
    let rest = verification.as_ref().map_or(Verdict::Clean, |found| found.verdict);
    let mut verdict = report.verdict.max(rest);
    if accepted.is_some() {
        verdict = verdict.max(Verdict::Corrupt);
    }
    for found in verification.iter().flat_map(|found| &found.damage) {
        show::damage(found, global.json());
    }
    Found {
        verdict: verdict.word(),
        quarantined_bytes: report.quarantined_bytes,
        interrupted_runs: report.interrupted.iter().map(|run| run.name.to_string()).collect(),
        interrupted_ticks: report.interrupted_ticks,
        missed_ticks: missed(&report.missed_ticks),
        projections_rewritten: report.rewritten_files,
        position: position.0,
    }
    .print(global, true)?;
    for problem in &report.problems {
        complain(&format!("runwal: {problem}"));
    }
    for name in &report.damaged_runs {
        complain(&format!("runwal: records of run {name} cannot be read; its files were left alone"));
    }
    Ok(match rest {
        Verdict::Corrupt | Verdict::Tampered => 3,
        _ if !report.problems.is_empty() => 7,
        _ => 0,
    })
}

/// What was found, and done about it.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Found {
    verdict: &'static str,
    quarantined_bytes: u64,
    interrupted_runs: Vec<String>,
    projections_rewritten: u64,
    position: u64,
    interrupted_ticks: Vec<String>,
    missed_ticks: Vec<Missed>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Missed {
    planned: String,
    count: u64,
    interval_ms: u64,
}

fn missed(ticks: &[MissedTicks]) -> Vec<Missed> {
    let one = |missed: &MissedTicks| Missed {
        planned: missed.planned.to_millis_string(),
        count: missed.count,
        interval_ms: u64::try_from(missed.interval.as_millis()).unwrap_or(u64::MAX),
    };
    ticks.iter().map(one).collect()
}

impl Found {
    fn print(&self, global: &Global, done: bool) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if global.json() {
            writeln!(out, "{}", serde_json::to_string(self).unwrap_or_default())?;
            return out.flush();
        }
        writeln!(out, "verdict: {}", self.verdict)?;
        let would = if done { "" } else { "would be " };
        writeln!(out, "bytes {would}set aside: {}", self.quarantined_bytes)?;
        for run in &self.interrupted_runs {
            writeln!(out, "{would}interrupted: {run}")?;
        }
        for tick in &self.interrupted_ticks {
            writeln!(out, "{would}interrupted: tick {tick}")?;
        }
        for missed in &self.missed_ticks {
            let Missed { planned, count, .. } = missed;
            writeln!(out, "ticks missed since {planned}: {count}, recorded when timed jobs start again")?;
        }
        if done {
            writeln!(out, "files written anew: {}", self.projections_rewritten)?;
        }
        writeln!(out, "durable up to position: {}", self.position)?;
        out.flush()
    }
}

/// What would be done, as far as reading alone can tell.
fn dry_run(global: &Global) -> Done {
    let Some(mut log) = global.log()? else {
        Found { verdict: Verdict::Clean.word(), ..Found::default() }.print(global, false)?;
        return Ok(0);
    };
    let verification = log.verify(&mut |_| {})?;
    let unfinished: Vec<String> = log.unfinished()?.iter().map(|run| run.name.to_string()).collect();
    for found in &verification.damage {
        show::damage(found, global.json());
    }
    for note in &verification.notes {
        complain(&format!("runwal: {note}"));
    }
    let (interrupted_ticks, missed_ticks) = log.left_by_timed_jobs()?;
    Found {
        verdict: verification.verdict.word(),
        quarantined_bytes: verification.torn_bytes,
        interrupted_runs: unfinished,
        interrupted_ticks,
        missed_ticks: missed(&missed_ticks),
        projections_rewritten: 0,
        position: verification.durable.0,
    }
    .print(global, false)?;
    Ok(match verification.verdict {
        Verdict::Clean => 0,
        Verdict::Torn => 4,
        Verdict::Corrupt | Verdict::Tampered => crate::exit_code(ErrorKind::Corrupt),
    })
}
