//! `runwal recover`

use crate::args::{Global, RecoverArgs};
use crate::{Done, complain, show};
use runwal::Verdict;
use runwal::engine::{Engine, Options};
use runwal::error::ErrorKind;
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
    let names: Vec<String> = report.interrupted.iter().map(|run| run.name.to_string()).collect();
    print(global, true, verdict, report.quarantined_bytes, &names, report.rewritten_files, position.0)?;
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

fn print(
    global: &Global,
    done: bool,
    verdict: Verdict,
    quarantined: u64,
    interrupted: &[String],
    rewritten: u64,
    position: u64,
) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if global.json() {
        let runs = serde_json::to_string(interrupted).unwrap_or_default();
        writeln!(
            out,
            "{{\"verdict\":\"{}\",\"quarantinedBytes\":{quarantined},\"interruptedRuns\":{runs},\
             \"projectionsRewritten\":{rewritten},\"position\":{position}}}",
            verdict.word()
        )?;
    } else {
        writeln!(out, "verdict: {}", verdict.word())?;
        let would = if done { "" } else { "would be " };
        writeln!(out, "bytes {would}set aside: {quarantined}")?;
        for run in interrupted {
            writeln!(out, "{would}interrupted: {run}")?;
        }
        if done {
            writeln!(out, "files written anew: {rewritten}")?;
        }
        writeln!(out, "durable up to position: {position}")?;
    }
    out.flush()
}

/// What would be done, as far as reading alone can tell.
fn dry_run(global: &Global) -> Done {
    let Some(mut log) = global.log()? else {
        print(global, false, Verdict::Clean, 0, &[], 0, 0)?;
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
    print(
        global,
        false,
        verification.verdict,
        verification.torn_bytes,
        &unfinished,
        0,
        verification.durable.0,
    )?;
    Ok(match verification.verdict {
        Verdict::Clean => 0,
        Verdict::Torn => 4,
        Verdict::Corrupt | Verdict::Tampered => crate::exit_code(ErrorKind::Corrupt),
    })
}
