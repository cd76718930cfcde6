//! Records within a batch's body.

use super::bytes::{Take, put_varint, put_zigzag};
use super::{BatchHeader, Flaw, MAX_KEY_LEN, MAX_NAME_LEN, MAX_PAYLOAD_LEN};
use crate::position::{Position, Seq, StreamId, Time};
use std::borrow::Cow;

const OPEN: u8 = 1;
const CLOSE: u8 = 1 << 1;
const MORE: u8 = 1 << 2;
const CREATED: u8 = 1 << 3;
const KEY: u8 = 1 << 4;
const TERM: u8 = 1 << 5;
const CRC: u8 = 1 << 6;
const KNOWN: u8 = OPEN | CLOSE | MORE | CREATED | KEY | TERM | CRC;

/// The stream a drafted record belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Opens a stream of this name; its id will be this record's position.
    Open(Vec<u8>),
    /// The stream opened last in the same batch.
    Opened,
    /// A stream opened in an earlier batch.
    Stream(StreamId),
}

/// A record before it has a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft<'p> {
    /// Its stream.
    pub target: Target,
    /// Its sequence there.
    pub seq: Seq,
    /// What it is: the number of its kind, and the version of that kind's schema.
    pub kind: u8,
    /// See `kind`.
    pub version: u8,
    /// Whether it ends its stream.
    pub close: bool,
    /// Whether its content goes on in the stream's next record.
    pub more: bool,
    /// When it was appended.
    pub time: Time,
    /// When it came to be, if that is another time.
    pub created: Option<Time>,
    /// Idempotency key.
    pub key: Option<Vec<u8>>,
    /// The conductor's term.
    pub term: Option<u64>,
    /// Its content.
    pub payload: Cow<'p, [u8]>,
}

/// A record as it stands in a body, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireRecord<'a> {
    /// Its place in the journal.
    pub position: Position,
    /// Its stream.
    pub stream: StreamId,
    /// Its place in the stream.
    pub seq: Seq,
    /// What it is.
    pub kind: u8,
    /// The version of that kind's schema.
    pub version: u8,
    /// The name of the stream, where this record opens it.
    pub opens: Option<&'a [u8]>,
    /// Whether it ends its stream.
    pub closes: bool,
    /// Whether its content goes on in the stream's next record.
    pub more: bool,
    /// When it was appended.
    pub time: Time,
    /// When it came to be.
    pub created: Time,
    /// Idempotency key.
    pub key: Option<&'a [u8]>,
    /// The conductor's term.
    pub term: Option<u64>,
    /// Its content.
    pub payload: &'a [u8],
}

/// Writes a body. The batch's time is that of its first record.
pub fn encode_body(drafts: &[Draft<'_>]) -> Vec<u8> {
    let base = drafts.first().map_or(Time::default(), |d| d.time);
    let mut out = Vec::with_capacity(drafts.iter().map(|d| d.payload.len() + 24).sum());
    for draft in drafts {
        let start = out.len();
        put_varint(&mut out, draft.payload.len() as u64);
        let created = draft.created.filter(|c| *c != draft.time);
        let mut flags = CRC;
        for (set, flag) in [
            (matches!(draft.target, Target::Open(_)), OPEN),
            (draft.close, CLOSE),
            (draft.more, MORE),
            (created.is_some(), CREATED),
            (draft.key.is_some(), KEY),
            (draft.term.is_some(), TERM),
        ] {
            flags |= if set { flag } else { 0 };
        }
        out.extend_from_slice(&[draft.kind, draft.version, flags]);
        let stream = if let Target::Stream(id) = draft.target { id.0 } else { 0 };
        put_varint(&mut out, stream);
        put_varint(&mut out, draft.seq.0);
        put_zigzag(&mut out, draft.time.0.wrapping_sub(base.0));
        if let Some(created) = created {
            put_zigzag(&mut out, created.0.wrapping_sub(draft.time.0));
        }
        let name = if let Target::Open(name) = &draft.target { Some(name) } else { None };
        for text in [name, draft.key.as_ref()].into_iter().flatten() {
            put_varint(&mut out, text.len() as u64);
            out.extend_from_slice(text);
        }
        if let Some(term) = draft.term {
            put_varint(&mut out, term);
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&out[start..]);
        crc.update(&draft.payload);
        out.extend_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(&draft.payload);
    }
    out
}

/// Walks the records of a body whose checksum was found right.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: Take<'a>,
    position: Position,
    left: u32,
    base: Time,
    opened: Option<StreamId>,
    check: bool,
}

impl<'a> Records<'a> {
    /// The records of `body`, which stands behind `header`.
    pub fn new(header: &BatchHeader, body: &'a [u8]) -> Self {
        Self {
            rest: Take(body),
            position: header.first_position,
            left: header.count,
            base: header.time,
            opened: None,
            check: false,
        }
    }

    /// Also compares each record's own checksum: for bodies that are not checked as a whole.
    #[must_use]
    pub fn checked(mut self) -> Self {
        self.check = true;
        self
    }

    fn record(&mut self) -> Option<Result<WireRecord<'a>, Flaw>> {
        let start = self.rest.0;
        let len = usize::try_from(self.rest.varint()?).ok()?;
        let (kind, version, flags) = (self.rest.u8()?, self.rest.u8()?, self.rest.u8()?);
        if flags & !KNOWN != 0 {
            return Some(Err(Flaw::Unsupported("a record uses a feature this version does not know")));
        }
        let stream = self.rest.varint()?;
        let seq = Seq(self.rest.varint()?);
        let time = Time(self.base.0.wrapping_add(self.rest.zigzag()?));
        let created = match flags & CREATED {
            0 => time,
            _ => Time(time.0.wrapping_add(self.rest.zigzag()?)),
        };
        let mut text = |flag: u8, limit: usize| -> Option<Option<&'a [u8]>> {
            if flags & flag == 0 {
                return Some(None);
            }
            let len = usize::try_from(self.rest.varint()?).ok()?;
            if len > limit { None } else { self.rest.bytes(len).map(Some) }
        };
        let opens = text(OPEN, MAX_NAME_LEN)?;
        let key = text(KEY, MAX_KEY_LEN)?;
        let term = if flags & TERM == 0 { None } else { Some(self.rest.varint()?) };
        let head_len = start.len() - self.rest.0.len();
        let crc = if flags & CRC == 0 { None } else { Some(self.rest.u32()?) };
        if len > MAX_PAYLOAD_LEN || seq.0 == 0 {
            return None;
        }
        let payload = self.rest.bytes(len)?;
        if let Some(crc) = crc.filter(|_| self.check) {
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&start[..head_len]);
            hasher.update(payload);
            if hasher.finalize() != crc {
                return Some(Err(Flaw::Garbage("a record's checksum does not match")));
            }
        }
        if opens.is_some() {
            if stream != 0 || seq.0 != 1 {
                return None;
            }
            self.opened = Some(StreamId(self.position.0));
        }
        let stream = if stream == 0 { self.opened? } else { StreamId(stream) };
        if stream.0 > self.position.0 {
            return None;
        }
        Some(Ok(WireRecord {
            position: self.position,
            stream,
            seq,
            kind,
            version,
            opens,
            closes: flags & CLOSE != 0,
            more: flags & MORE != 0,
            time,
            created,
            key,
            term,
            payload,
        }))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<WireRecord<'a>, Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        const MALFORMED: Flaw = Flaw::Garbage("the records do not fill the batch as its header says");
        if self.left == 0 {
            // Bytes behind the last record are as wrong as missing ones.
            return (!std::mem::take(&mut self.rest.0).is_empty()).then_some(Err(MALFORMED));
        }
        let record = self.record().unwrap_or(Err(MALFORMED));
        if record.is_ok() {
            self.left -= 1;
            self.position = Position(self.position.0 + 1);
        } else {
            self.left = 0;
            self.rest = Take(&[]);
        }
        Some(record)
    }
}
