//! The daily files of the timed jobs.

use crate::position::{Position, Seq, Time};
use crate::record::{Body, Record, Tick};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};

/// The keys that every line has, in their order.
const KEYS: [&str; 7] = ["batch_id", "duration_ms", "error", "result", "runner", "stage", "ts"];

/// The keys of one line.
struct Names {
    taken: BTreeSet<String>,
    /// Which number was tried last for a key.
    tried: BTreeMap<String, u64>,
}

impl Names {
    /// The name under which a detail of this key stands: the key itself, or the first of
    /// `detail_key`, `detail_2_key`, `detail_3_key` … that hides nothing.
    fn free(&mut self, key: String) -> String {
        if self.taken.insert(key.clone()) {
            return key;
        }
        let tried = self.tried.entry(key.clone()).or_default();
        loop {
            *tried += 1;
            let name = match *tried {
                1 => format!("detail_{key}"),
                nth => format!("detail_{nth}_{key}"),
            };
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

struct Line<'a>(&'a Tick, Time);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(tick, time) = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("batch_id", &tick.batch_id)?;
        map.serialize_entry("duration_ms", &tick.duration_ms)?;
        map.serialize_entry("error", &tick.error)?;
        map.serialize_entry("result", &tick.result)?;
        map.serialize_entry("runner", &tick.runner)?;
        map.serialize_entry("stage", &tick.stage)?;
        map.serialize_entry("ts", &time.to_millis_string())?;
        let mut names =
            Names { taken: KEYS.iter().map(|k| (*k).to_owned()).collect(), tried: BTreeMap::new() };
        for (key, value) in tick.details.members().unwrap_or_default() {
            map.serialize_entry(&names.free(key), &value)?;
        }
        map.end()
    }
}

/// A tick record as a JSON object on one line, without its newline. A detail whose key is taken
/// gets `detail_` in front of it, with a number if need be: nothing is replaced, nothing is lost.
pub fn tick_line(tick: &Tick, time: Time) -> String {
    crate::record::escape_json(&serde_json::to_string(&Line(tick, time)).unwrap_or_default())
}

/// The fold over the records of the timed jobs.
#[derive(Debug, Clone, Default)]
pub struct TickFold {
    last_seq: Seq,
    last_position: Position,
}

impl TickFold {
    /// Takes the next record in; answers with the day's file name and the line, newline included.
    pub fn apply(&mut self, record: &Record) -> Option<(String, Vec<u8>)> {
        (self.last_seq, self.last_position) = (record.seq, record.position);
        let Body::Tick(tick) = &record.body else { return None };
        let mut line = tick_line(tick, record.created_at).into_bytes();
        line.push(b'\n');
        Some((format!("{}.jsonl", record.created_at.day()), line))
    }

    /// The sequence of the last record taken in.
    pub fn last_seq(&self) -> Seq {
        self.last_seq
    }

    /// The position of the last record taken in.
    pub fn last_position(&self) -> Position {
        self.last_position
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::JsonText;

    #[test]
    fn a_detail_replaces_nothing_and_is_not_lost() {
        let tick = Tick {
            batch_id: "b".to_owned(),
            runner: "r".to_owned(),
            stage: "s".to_owned(),
            result: None,
            error: None,
            duration_ms: Some(3),
            details: JsonText::parse(
                r#"{"z":1,"ts":"x","detail_ts":"y","a":2,"a":3,"a":4,"detail_2_a":5,"detail_3_a":6,"a":7}"#,
            )
            .unwrap(),
        };
        let line = tick_line(&tick, Time(0));
        assert_eq!(
            line,
            r#"{"batch_id":"b","duration_ms":3,"error":null,"result":null,"runner":"r","stage":"s","ts":"1970-01-01T00:00:00.000Z","z":1,"detail_ts":"x","detail_detail_ts":"y","a":2,"detail_a":3,"detail_2_a":4,"detail_detail_2_a":5,"detail_3_a":6,"detail_4_a":7}"#
        );
    }

    #[test]
    fn a_key_that_comes_very_often_costs_no_more_than_its_share() {
        let details = format!("{{{}}}", vec![r#""a":0"#; 20_000].join(","));
        let tick = Tick {
            batch_id: String::new(),
            runner: String::new(),
            stage: String::new(),
            result: None,
            error: None,
            duration_ms: None,
            details: JsonText::parse(&details).unwrap(),
        };
        let line = tick_line(&tick, Time(0));
        assert!(line.ends_with(r#","detail_19999_a":0}"#));
        assert!(line.len() < 5 * details.len());
    }
}
