//! How a run ends: terminal event, its patch and the `log_tail` checkpoint in one batch, so that
//! no crash can separate them. The same for a run that ends by itself and one that is found
//! without an end.

use super::NewRecord;
use crate::position::{Position, Seq, Time};
use crate::projection::{RunFold, Stamp};
use crate::record::{
    Body, Checkpoint, FileFormat, JsonText, Level, Lifecycle, Replay, StatePatch, Status, checkpoint_type,
};
use serde::Serialize;

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// The type of the terminal event.
    pub event: &'static str,
    /// How much it matters.
    pub level: Level,
    /// Where the run stands from then on.
    pub status: Status,
    /// How it went, in a sentence.
    pub summary: String,
    /// The worker's exit code, if it had one.
    pub exit_code: Option<i32>,
    /// The event's data: a JSON object.
    pub data: JsonText,
}

/// The records that end a run whose records so far are in `fold`, with `before` in front of the
/// terminal event in the same batch.
pub fn ending_records(fold: &RunFold, now: Time, before: Vec<NewRecord>, ending: Ending) -> Vec<NewRecord> {
    let mut records = before;
    let event = Lifecycle {
        event: ending.event.to_owned(),
        level: ending.level,
        message: ending.summary.clone(),
        data: ending.data,
    };
    let stamped = |body: Body, ends: bool| NewRecord { ends, created_at: Some(now), ..body.into() };
    records.push(stamped(Body::Lifecycle(event), true));
    records.push(stamped(
        Body::StatePatch(StatePatch {
            status: Some(ending.status),
            finished_at: Some(Some(now)),
            summary: Some(Some(ending.summary)),
            exit_code: Some(ending.exit_code),
            ..StatePatch::default()
        }),
        false,
    ));
    if fold.request().is_some_and(|request| request.checkpoints) {
        let mut ahead = fold.clone();
        for record in &records {
            preview(&mut ahead, record, now);
        }
        let content = ahead.tail().render();
        let number = fold.state().last_checkpoint_seq.unwrap_or(0) + 1;
        let lines = content.iter().filter(|b| **b == b'\n').count();
        records.push(stamped(
            Body::Checkpoint(Checkpoint {
                number,
                kind: checkpoint_type::LOG_TAIL.to_owned(),
                format: FileFormat::Text,
                replay: Replay::None,
                summary: format!("The last {lines} lines of all logs."),
                total_len: content.len() as u64,
                content,
            }),
            false,
        ));
    }
    records
}

/// Lets a fold see a record before it has a place.
pub(crate) fn preview(fold: &mut RunFold, record: &NewRecord, now: Time) {
    let stamp = Stamp {
        position: Position(fold.last_position().0 + 1),
        seq: Seq(fold.last_seq().0 + 1),
        created_at: record.created_at.or(record.time).unwrap_or(now),
        ends: record.ends,
        more: record.more,
        term: None,
        len: record.body.encode().map_or(0, |(bytes, _)| bytes.len() as u64),
    };
    fold.take(stamp, &record.body, &mut |_| {});
}

/// The data of a terminal event.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndingData<'a> {
    pub(crate) ok: bool,
    pub(crate) blocked: bool,
    pub(crate) needs_human: bool,
    pub(crate) exit_code: Option<i32>,
    pub(crate) artifacts: &'a [Artifact],
}

impl Artifact {
    /// A file that is made from the run's records, and so goes on changing with them.
    pub(crate) fn of_run(path: String) -> Self {
        Self { path, bytes: None, digest: None }
    }
}

/// A file of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// Its name within the run's directory.
    pub path: String,
    /// Its length, where it does not change any more.
    pub bytes: Option<u64>,
    /// The BLAKE3 of its content in hex, where that does not change any more.
    pub digest: Option<String>,
}
