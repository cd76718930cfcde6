//! What records say: decoded, encoded and decoded again it is the same, and two others who know the
//! layout read the same of the same bytes. The second decoder of journals makes the same files of it; and
//! wincode reads and writes the bytes that bincode 2 does with fixed-width little-endian numbers and
//! lengths of 64 bits, which is how the project has configured it.

use arbitrary::{Arbitrary, Result, Unstructured};
use runwal::format::{BatchHeader, Codec, Draft, Durability, Records, Target, WireRecord, encode_body};
use runwal::position::{Position, Seq, StreamId, Time};
use runwal::projection::{Change, RunFold, TickFold};
use runwal::record::{Body, Record, RunName, TICKS_STREAM, kind};
use runwal::testing::bodies::{decode, encode};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// No body has more records.
const MAX_RECORDS: usize = 6;
const FIRST: Position = Position(1);

/// What a payload is put together from: lengths are right by themselves, as no guessing gets past those.
#[derive(Debug, Arbitrary)]
enum Token {
    Byte(u8),
    Number(u32),
    Long(u64),
    Text { len: u8 },
    Word(u8),
    Json(u8),
    Count(u8),
    Raw { len: u8 },
}

const WORDS: [&str; 8] =
    ["t", "run_prepared", "step_completed", "log_tail", "Ä\u{202e}\u{7f}\n", "", "r-1", "../x"];
const JSON: [&str; 6] = [
    "{}",
    r#"{"a":1.50,"ts":[],"a":-0}"#,
    r#"["\ud800\/é",1e400,null]"#,
    "\"\u{2028}\"",
    "{ \"x\" : 1 }",
    "[1",
];

impl Token {
    fn put(&self, input: &mut Unstructured<'_>, out: &mut Vec<u8>) -> Result<()> {
        fn text(out: &mut Vec<u8>, bytes: &[u8]) {
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        match *self {
            Self::Byte(byte) => out.push(byte),
            Self::Number(number) => out.extend_from_slice(&number.to_le_bytes()),
            Self::Long(number) => out.extend_from_slice(&number.to_le_bytes()),
            Self::Text { len } => text(out, input.bytes(usize::from(len).min(input.len()))?),
            Self::Word(which) => text(out, WORDS[usize::from(which) % WORDS.len()].as_bytes()),
            Self::Json(which) => text(out, JSON[usize::from(which) % JSON.len()].as_bytes()),
            Self::Count(count) => out.extend_from_slice(&u64::from(count % 4).to_le_bytes()),
            Self::Raw { len } => out.extend_from_slice(input.bytes(usize::from(len).min(input.len()))?),
        }
        Ok(())
    }
}

#[derive(Debug, Arbitrary)]
struct Head {
    kind: u8,
    version: u8,
    ticks: bool,
    ends: bool,
    time: i64,
    created: Option<i64>,
    key: Option<[u8; 3]>,
    term: Option<u64>,
    tokens: u8,
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut records = Vec::new();
    while records.len() < MAX_RECORDS && !input.is_empty() {
        let Ok(record) = record(&mut input) else { break };
        records.push(record);
    }
    for (head, payload) in &records {
        round_trip(kind_of(head), payload);
        by_wincode(kind_of(head), payload);
    }
    if !records.is_empty() {
        by_the_second(&records);
    }
}

fn kind_of(head: &Head) -> u8 {
    if head.kind < 240 { 1 + head.kind % 7 } else { head.kind }
}

fn record(input: &mut Unstructured<'_>) -> Result<(Head, Vec<u8>)> {
    let head = Head::arbitrary(input)?;
    let mut payload = Vec::new();
    for _ in 0..head.tokens % 32 {
        if input.is_empty() {
            break;
        }
        Token::arbitrary(input)?.put(input, &mut payload)?;
    }
    Ok((head, payload))
}

fn round_trip(kind: u8, payload: &[u8]) {
    let Ok(body) = decode(kind, 1, payload.to_vec()) else { return };
    assert!(body.kind() == kind, "kind {kind} became {}", body.kind());
    let Ok((again, version)) = encode(&body) else {
        return assert!(matches!(body, Body::Unknown { .. }), "cannot be written: {body:?}");
    };
    assert_eq!(decode(kind, version, again.clone()).as_ref(), Ok(&body));
    // White space in JSON is taken out.
    assert!(again.len() <= payload.len());
    if again.len() == payload.len() {
        assert_eq!(again, payload);
    }
}

type Run = (
    (String, String, String, u32, Option<String>, Option<String>, Vec<Vec<u8>>, Option<Vec<u8>>),
    (Vec<(Vec<u8>, Vec<u8>)>, Option<u64>, u64, bool, [u8; 16], [u8; 16], Option<String>, String),
    (Vec<(String, String)>, Option<(String, String, Option<u32>)>, u16),
);
type Lifecycle = (String, u8, String, String);
type Patch = (
    (Option<u8>, Option<Option<i64>>, Option<i64>, Option<Option<i64>>, Option<Option<String>>),
    (Option<Option<i32>>, Option<Option<String>>, Option<Option<u32>>),
);
type Checkpoint = (u32, String, u8, u8, String, u64, Vec<u8>);
type Tick = (String, String, String, Option<String>, Option<String>, Option<u64>, String);

/// The bytes again, as wincode understands and writes them; `None` where it does not understand them. A
/// derive of its own would make unsafe code here; tuples within tuples have the same layout.
fn through<T>(payload: &[u8]) -> Option<Vec<u8>>
where
    T: wincode::SchemaWrite<wincode::config::DefaultConfig, Src = T>,
    T: for<'a> wincode::SchemaRead<'a, wincode::config::DefaultConfig, Dst = T>,
{
    let value: T = wincode::deserialize_exact(payload).ok()?;
    wincode::serialize(&value).ok()
}

fn by_wincode(kind: u8, payload: &[u8]) {
    let again = match kind {
        kind::RUN => through::<Run>(payload),
        kind::LIFECYCLE => through::<Lifecycle>(payload),
        kind::STATE_PATCH => through::<Patch>(payload),
        kind::CHECKPOINT => through::<Checkpoint>(payload),
        kind::TICK => through::<Tick>(payload),
        _ => return,
    };
    assert!(
        again.as_deref().is_none_or(|again| again == payload),
        "wincode reads other bytes than it writes"
    );
    // What bincode reads beyond the layout is refused for other reasons too: words, numbers, JSON.
    match (decode(kind, 1, payload.to_vec()), again) {
        (Ok(body), None) => panic!("wincode does not read {body:?}"),
        (Err(why), Some(_)) => assert!(is_of_meaning(&why), "wincode reads what we do not: {why}"),
        _ => {}
    }
}

/// Whether something was refused for what it says, and not for its layout.
fn is_of_meaning(why: &str) -> bool {
    ["the id ", "the status", "the level", "the event's", "the checkpoint's", "the file format", "the replay"]
        .iter()
        .chain(&["not valid JSON", "the details"])
        .any(|beginning| why.starts_with(beginning))
}

/// All records in one body: those of a run, which the first one opens, and those of the timed jobs.
fn by_the_second(records: &[(Head, Vec<u8>)]) {
    let mut drafts = Vec::new();
    let mut ends: BTreeMap<bool, (Position, Seq)> = BTreeMap::new();
    for (at, (head, payload)) in (FIRST.0..).zip(records) {
        let name = if head.ticks { TICKS_STREAM } else { "t/r" };
        let (target, seq) = match ends.get(&head.ticks) {
            None => (Target::Open(name.as_bytes().to_vec()), Seq(1)),
            Some((opened, last)) => (Target::Stream(StreamId(opened.0)), Seq(last.0 + 1)),
        };
        ends.entry(head.ticks).or_insert((Position(at), seq)).1 = seq;
        drafts.push(Draft {
            target,
            seq,
            kind: kind_of(head),
            version: if head.version < 240 { 1 } else { head.version },
            close: head.ends,
            more: false,
            time: Time(head.time),
            created: head.created.map(Time),
            key: head.key.map(|key| key.to_vec()),
            term: head.term,
            payload: payload.into(),
        });
    }
    let body = encode_body(&drafts);
    let count = u32::try_from(drafts.len()).unwrap_or(u32::MAX);
    let time = drafts[0].time;
    let mut request = vec![b'B'];
    request.extend_from_slice(&FIRST.0.to_le_bytes());
    request.extend_from_slice(&time.0.to_le_bytes());
    request.extend_from_slice(&count.to_le_bytes());
    request.extend_from_slice(&body);
    let Some(second) = crate::second::ask(&request) else { return };
    let first = by_the_first(&body, count, time);
    assert!(first == second, "{}", difference(&first, &second));
}

/// The first line that differs, with the ones around it.
pub(crate) fn difference(first: &str, second: &str) -> String {
    let (mut one, mut two) = (first.lines(), second.lines());
    loop {
        match (one.next(), two.next()) {
            (a, b) if a == b && a.is_some() => {}
            (a, b) => {
                return format!(
                    "first: {a:?}\nsecond: {b:?}\nall of the first:\n{first}\nof the second:\n{second}"
                );
            }
        }
    }
}

/// A record as the second decoder's driver writes it.
pub(crate) fn line(record: &Record, version: u8) -> String {
    let known = !matches!(record.body, Body::Unknown { .. });
    let flags = u8::from(record.ends) << 1 | u8::from(record.more) << 2;
    let term = record.term.map_or("-".to_owned(), |term| term.to_string());
    let key = record.key.as_ref().map_or("-".to_owned(), |key| {
        key.iter().fold(String::new(), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
    });
    format!(
        "{} {} {} {} {} {} {version} {flags} {term} {key} {} {}\n",
        record.position,
        record.stream,
        record.seq,
        record.time.0,
        record.created_at.0,
        record.body.kind(),
        record.len,
        u8::from(known)
    )
}

fn record_of(wire: &WireRecord<'_>) -> Record {
    let body = decode(wire.kind, wire.version, wire.payload.to_vec())
        .unwrap_or(Body::Unknown { kind: wire.kind, version: wire.version });
    Record {
        position: wire.position,
        stream: wire.stream,
        seq: wire.seq,
        time: wire.time,
        created_at: wire.created,
        ends: wire.closes,
        more: wire.more,
        key: wire.key.map(<[u8]>::to_vec),
        term: wire.term,
        len: wire.payload.len() as u64,
        body,
    }
}

fn by_the_first(body: &[u8], count: u32, time: Time) -> String {
    let header = BatchHeader {
        codec: Codec::None,
        durability: Durability::Durable,
        body_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
        decoded_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
        count,
        body_crc: crc32fast::hash(body),
        first_position: FIRST,
        time,
        durable_upto: Position::ZERO,
        body_digest: [0; 32],
        chain: [0; 32],
    };
    let mut answer = String::new();
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut folds: BTreeMap<StreamId, (RunName, RunFold)> = BTreeMap::new();
    let (mut ticks, mut fold) = (None, TickFold::default());
    for wire in Records::new(&header, body).checked() {
        let wire = wire.expect("a body of one's own");
        let record = record_of(&wire);
        answer += &line(&record, wire.version);
        if wire.opens == Some(TICKS_STREAM.as_bytes()) {
            ticks = Some(record.stream);
        }
        if let (Some(name), Body::Run(_)) = (wire.opens.and_then(RunName::parse), &record.body) {
            folds.insert(record.stream, (name, RunFold::new()));
        }
        if let Some((name, fold)) = folds.get_mut(&record.stream) {
            let folder = name.folder();
            fold.apply(&record, &mut |change| match change {
                Change::Append(log, bytes) => {
                    files
                        .entry(format!("{folder}/{}", log.file_name()))
                        .or_default()
                        .extend_from_slice(bytes);
                }
                Change::Whole(file, bytes) => drop(files.insert(format!("{folder}/{file}"), bytes)),
            });
        }
        if ticks == Some(record.stream)
            && let Some((day, line)) = fold.apply(&record)
        {
            files.entry(format!("timed-jobs/{day}")).or_default().extend(line);
        }
    }
    for (name, fold) in folds.values() {
        let folder = name.folder();
        files.insert(format!("{folder}/state.json"), fold.state_json());
        for log in runwal::projection::LogFile::ALL {
            files.entry(format!("{folder}/{}", log.file_name())).or_default();
        }
    }
    for (path, content) in files {
        let _ = writeln!(answer, "{path} {}\n{}", content.len(), String::from_utf8_lossy(&content));
    }
    answer
}
