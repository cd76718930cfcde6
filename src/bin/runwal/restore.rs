//! `runwal restore`

use crate::args::{Global, RestoreArgs};
use crate::{Done, Failure, complain, show};
use runwal::disk::os::OsDisk;
use runwal::disk::{Disk, Open};
use runwal::engine::{Log, RunInfo};
use runwal::error::{Error, ErrorKind};
use runwal::record::{Checkpoint, ParentRun, Replay};
use runwal::run::{base_commit, restore_git_diff};
use std::io::Write;

pub(crate) fn restore(global: &Global, args: &RestoreArgs) -> Done {
    if !args.into.is_dir() {
        return Err(Failure::Usage(format!("--into {} is not a directory", args.into.display())));
    }
    let Some(mut log) = global.log()? else {
        return Err(Failure::Engine(Error::not_found("nothing is recorded yet", "Record something first.")));
    };
    let run = log.resolve(&args.run)?;
    let wanted = |checkpoint: &Checkpoint| match args.checkpoint {
        Some(number) => checkpoint.number == number,
        None => checkpoint.replay == Replay::GitApplyBinary,
    };
    let (found, damage) = log.checkpoint(run.stream, &wanted)?;
    for met in &damage {
        show::damage(met, global.json());
    }
    let Some(checkpoint) = found else {
        let parent = log.request_of(run.stream)?.0.and_then(|request| request.parent);
        return Err(Failure::Engine(missing(args, &run, parent.as_ref(), damage.is_empty())));
    };
    match checkpoint.replay {
        Replay::GitApplyBinary => apply(global, args, &mut log, &run, &checkpoint)?,
        Replay::None => write_out(global, args, &run, &checkpoint)?,
    }
    Ok(if damage.is_empty() { 0 } else { crate::exit_code(ErrorKind::Corrupt) })
}

fn missing(args: &RestoreArgs, run: &RunInfo, parent: Option<&ParentRun>, undamaged: bool) -> Error {
    let what = match args.checkpoint {
        Some(number) => format!("checkpoint {number}"),
        None => "git diff".to_owned(),
    };
    if !undamaged {
        let message = format!("there is no {what} among the records of run {} that can be read", run.name);
        return Error::corrupt_data(message, "`runwal verify` tells what is damaged.");
    }
    let mut advice = format!("`runwal checkpoints {}` lists what there is.", run.name);
    if let (None, Some(ParentRun { name, .. })) = (args.checkpoint, parent) {
        let further =
            format!(" It went on from {name}: `runwal restore {name} --into DIR` has what that left.");
        advice.push_str(&further);
    }
    Error::not_found(format!("run {} has no {what}", run.name), advice)
}

fn apply(
    global: &Global,
    args: &RestoreArgs,
    log: &mut Log,
    run: &RunInfo,
    checkpoint: &Checkpoint,
) -> Result<(), Failure> {
    let base = base_commit(log, run)?;
    let restored = restore_git_diff(&checkpoint.content, base.as_deref(), &args.into)?;
    let top = restored.top.display().to_string();
    let mut out = std::io::stdout().lock();
    if global.json() {
        let line = serde_json::json!({
            "checkpoint": checkpoint.number, "into": top, "files": restored.files, "notes": restored.notes,
        });
        writeln!(out, "{line}")?;
    } else {
        let (number, files) = (checkpoint.number, restored.files);
        writeln!(out, "checkpoint {number} of run {} restored into {top}: {files} files", run.name)?;
        restored.notes.iter().for_each(|note| complain(&format!("runwal: {note}")));
    }
    Ok(out.flush()?)
}

/// Writes a checkpoint as the file that it is in the run's folder.
fn write_out(
    global: &Global,
    args: &RestoreArgs,
    run: &RunInfo,
    checkpoint: &Checkpoint,
) -> Result<(), Failure> {
    let disk = OsDisk::open(&args.into)?;
    let name = checkpoint.file_name();
    let path = args.into.join(&name);
    if disk.stat(&name)?.is_some() {
        return Err(Failure::Usage(format!("{} exists, and is left as it is", path.display())));
    }
    let file = disk.open(&name, Open::CreateNew)?;
    if let Err(error) = file.write_at(&checkpoint.content, 0).and_then(|()| file.sync()) {
        // Half a checkpoint is none.
        let _ = disk.remove(&name);
        return Err(error.into());
    }
    let mut out = std::io::stdout().lock();
    if global.json() {
        let line = serde_json::json!({ "checkpoint": checkpoint.number, "into": path.display().to_string() });
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "checkpoint {} of run {} written to {}", checkpoint.number, run.name, path.display())?;
    }
    Ok(out.flush()?)
}
