//! `runwal checkpoints`

use crate::args::{CheckpointsArgs, Global};
use crate::{Done, show};
use runwal::position::{Seq, Time};
use runwal::projection::{Change, RunFold};
use runwal::record::{Body, Record, escape_line};
use serde::Serialize;
use std::io::Write;

/// A checkpoint that is there as a whole.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Taken {
    pub(crate) number: u32,
    pub(crate) r#type: String,
    pub(crate) format: &'static str,
    pub(crate) replay: &'static str,
    pub(crate) summary: String,
    pub(crate) bytes: u64,
    /// In the run's folder.
    pub(crate) file: String,
    created_at: String,
    #[serde(skip)]
    pub(crate) time: Time,
}

/// Lets a fold take a record in; answers with the checkpoint that became whole by it.
pub(crate) fn taken(fold: &mut RunFold, record: &Record) -> Option<Taken> {
    let mut taken = None;
    fold.apply(record, &mut |change| {
        if let (Body::Checkpoint(part), Change::Whole(file, content)) = (&record.body, change) {
            taken = Some(Taken {
                number: part.number,
                r#type: part.kind.clone(),
                format: part.format.word(),
                replay: part.replay.word(),
                summary: part.summary.clone(),
                bytes: content.len() as u64,
                file,
                created_at: record.created_at.to_nanos_string(),
                time: record.created_at,
            });
        }
    });
    taken
}

pub(crate) fn checkpoints(global: &Global, args: &CheckpointsArgs) -> Done {
    const HEAD: [&str; 7] = ["NUMBER", "TYPE", "FILE", "BYTES", "REPLAY", "TIME", "SUMMARY"];
    let (mut log, run) = global.find(&args.run)?;
    let mut fold = RunFold::for_state();
    let mut all = Vec::new();
    let damage = log.stream(run.stream, Seq(1), &mut |record| {
        all.extend(taken(&mut fold, record));
        Ok(true)
    })?;
    let mut out = std::io::stdout().lock();
    if global.json() {
        for checkpoint in &all {
            writeln!(out, "{}", serde_json::to_string(checkpoint).unwrap_or_default())?;
        }
    } else {
        let mut rows = vec![HEAD.map(str::to_owned)];
        rows.extend(all.iter().map(|checkpoint| {
            [
                checkpoint.number.to_string(),
                checkpoint.r#type.clone(),
                checkpoint.file.clone(),
                checkpoint.bytes.to_string(),
                checkpoint.replay.to_owned(),
                checkpoint.time.to_millis_string(),
                escape_line(&checkpoint.summary),
            ]
        }));
        show::table(&mut out, &rows)?;
    }
    out.flush()?;
    drop(out);
    for found in &damage {
        show::damage(found, global.json());
    }
    crate::log::finish(&mut log, !damage.is_empty(), global)
}
