//! Records within a batch's body.

use super::bytes::{Take, put_varint, put_zigzag, varint_len};
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
const RESERVED: u8 = 1 << 7;

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

/// The most bytes that a record has beside its payload, its name and its key.
const MAX_HEAD_LEN: usize = 72;

impl Draft<'_> {
    /// The most bytes that it takes in a body.
    pub fn max_len(&self) -> usize {
        let name = if let Target::Open(name) = &self.target { name.len() } else { 0 };
        MAX_HEAD_LEN + name + self.key.as_ref().map_or(0, Vec::len) + self.payload.len()
    }

    /// Writes it behind the others of a body whose batch has this time: that of its first record.
    pub fn encode(&self, base: Time, out: &mut Vec<u8>) {
        let start = out.len();
        put_varint(out, self.payload.len() as u64);
        let created = self.created.filter(|c| *c != self.time);
        let mut flags = CRC;
        for (set, flag) in [
            (matches!(self.target, Target::Open(_)), OPEN),
            (self.close, CLOSE),
            (self.more, MORE),
            (created.is_some(), CREATED),
            (self.key.is_some(), KEY),
            (self.term.is_some(), TERM),
        ] {
            flags |= if set { flag } else { 0 };
        }
        out.extend_from_slice(&[self.kind, self.version, flags]);
        let stream = if let Target::Stream(id) = self.target { id.0 } else { 0 };
        put_varint(out, stream);
        put_varint(out, self.seq.0);
        put_zigzag(out, self.time.0.wrapping_sub(base.0));
        if let Some(created) = created {
            put_zigzag(out, created.0.wrapping_sub(self.time.0));
        }
        let name = if let Target::Open(name) = &self.target { Some(name) } else { None };
        for text in [name, self.key.as_ref()].into_iter().flatten() {
            put_varint(out, text.len() as u64);
            out.extend_from_slice(text);
        }
        if let Some(term) = self.term {
            put_varint(out, term);
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&out[start..]);
        crc.update(&self.payload);
        out.extend_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(&self.payload);
    }
}

/// Writes a body. The batch's time is that of its first record.
pub fn encode_body(drafts: &[Draft<'_>]) -> Vec<u8> {
    let base = drafts.first().map_or(Time::default(), |draft| draft.time);
    let mut out = Vec::with_capacity(drafts.iter().map(Draft::max_len).sum());
    drafts.iter().for_each(|draft| draft.encode(base, &mut out));
    out
}

/// A body of records, without the checksums of their own that they have: for one that is compressed, where
/// they would make a tenth of it, and help nobody.
///
/// `count` and `time` are the batch's. Gives `None` where it is not made of records.
pub(crate) fn without_checksums(count: u32, time: Time, body: &[u8], out: &mut Vec<u8>) -> Option<()> {
    // Where it will stand is not known yet. No record may name a stream above its own position, so it is
    // read as if it stood above all of them.
    let mut records = Records { left: count, ..Records::part(time, Position(u64::MAX >> 1), None, body) };
    let mut at = 0;
    while let Some(record) = records.next() {
        let record = record.ok()?;
        let end = body.len() - records.rest_len();
        let head = end - record.payload.len();
        let flags_at = at + varint_len(record.payload.len() as u64) + 2;
        if records.checksum {
            out.extend_from_slice(&body[at..flags_at]);
            out.push(body[flags_at] & !CRC);
            out.extend_from_slice(&body[flags_at + 1..head - 4]);
            out.extend_from_slice(record.payload);
        } else {
            out.extend_from_slice(&body[at..end]);
        }
        at = end;
    }
    Some(())
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
    /// Whether the last one had a checksum of its own.
    checksum: bool,
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
            checksum: false,
        }
    }

    /// The records in a part of a body, of a batch with this time: the first has this position, and
    /// `opened` is the stream that the batch opened before.
    pub(crate) fn part(time: Time, first: Position, opened: Option<StreamId>, part: &'a [u8]) -> Self {
        Self {
            rest: Take(part),
            position: first,
            left: u32::MAX,
            base: time,
            opened,
            check: false,
            checksum: false,
        }
    }

    /// Bytes behind the last record that was walked over.
    pub(crate) fn rest_len(&self) -> usize {
        self.rest.0.len()
    }

    /// Whether the record that was walked over last has a checksum of its own.
    pub(crate) fn last_has_checksum(&self) -> bool {
        self.checksum
    }

    /// Also compares each record's own checksum: for bodies that are not checked as a whole.
    #[must_use]
    pub fn checked(mut self) -> Self {
        self.check = true;
        self
    }

    #[inline]
    fn record(&mut self) -> Option<Result<WireRecord<'a>, Flaw>> {
        let start = self.rest.0;
        let len = usize::try_from(self.rest.varint()?).ok()?;
        let [kind, version, flags] = self.rest.array()?;
        if flags & RESERVED != 0 {
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
        self.checksum = flags & CRC != 0;
        let crc = if self.checksum { Some(self.rest.u32()?) } else { None };
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

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        const MALFORMED: Flaw = Flaw::Garbage("the records do not fill the batch as its header says");
        if self.left == 0 {
            // Bytes behind the last record are as wrong as missing ones.
            return std::mem::take(&mut self.rest.0).first().map(|_| Err(MALFORMED));
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

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: i64 = 1_000;
    const FIRST: u64 = 300;

    /// A header for so many records.
    fn header(count: u32) -> BatchHeader {
        BatchHeader {
            codec: super::super::Codec::None,
            durability: super::super::Durability::Durable,
            body_len: 0,
            decoded_len: 0,
            count,
            body_crc: 0,
            first_position: Position(FIRST),
            time: Time(BASE),
            durable_upto: Position::ZERO,
            body_digest: [0; 32],
            chain: [0; 32],
        }
    }

    fn walk(count: u32, body: &[u8]) -> Vec<Result<WireRecord<'_>, Flaw>> {
        Records::new(&header(count), body).collect()
    }

    /// The one record of a body, with its checksum compared and without.
    fn one(body: &[u8]) -> Result<WireRecord<'_>, Flaw> {
        let found = walk(1, body);
        assert_eq!(found.len(), 1, "{found:?}");
        let checked: Vec<_> = Records::new(&header(1), body).checked().collect();
        assert_eq!(checked, found, "the checksum is right, or there is none");
        found[0]
    }

    /// A record of stream 7 with sequence 5, ten behind the batch's time, with a payload of two bytes: its
    /// flags, and the bytes of the fields that they announce.
    fn plain(flags: u8, fields: &[u8]) -> Vec<u8> {
        [&[2, 11, 12, flags, 7, 5, 20], fields, b"pp"].concat()
    }

    fn expected() -> WireRecord<'static> {
        WireRecord {
            position: Position(FIRST),
            stream: StreamId(7),
            seq: Seq(5),
            kind: 11,
            version: 12,
            opens: None,
            closes: false,
            more: false,
            time: Time(BASE + 10),
            created: Time(BASE + 10),
            key: None,
            term: None,
            payload: b"pp",
        }
    }

    /// A record that opens a stream.
    fn opening(name: &[u8]) -> Vec<u8> {
        let mut body = vec![2, 11, 12, 1, 0, 1, 20];
        put_varint(&mut body, name.len() as u64);
        [&body, name, b"pp"].concat()
    }

    fn is_malformed(found: Result<WireRecord<'_>, Flaw>) -> bool {
        matches!(found, Err(Flaw::Garbage(_)))
    }

    #[test]
    fn each_flag_means_what_the_format_says() {
        assert_eq!(one(&plain(0, &[])), Ok(expected()));
        assert_eq!(one(&plain(2, &[])), Ok(WireRecord { closes: true, ..expected() }));
        assert_eq!(one(&plain(4, &[])), Ok(WireRecord { more: true, ..expected() }));
        let created = WireRecord { created: Time(BASE + 10 - 3), ..expected() };
        assert_eq!(one(&plain(8, &[5])), Ok(created));
        assert_eq!(one(&plain(16, b"\x03key")), Ok(WireRecord { key: Some(b"key"), ..expected() }));
        assert_eq!(one(&plain(32, &[0xac, 2])), Ok(WireRecord { term: Some(300), ..expected() }));
        let every = WireRecord { closes: true, more: true, key: Some(b"key"), term: Some(300), ..created };
        assert_eq!(one(&plain(2 | 4 | 8 | 16 | 32, b"\x05\x03key\xac\x02")), Ok(every));
        let opened = WireRecord { stream: StreamId(FIRST), seq: Seq(1), opens: Some(b"name"), ..expected() };
        assert_eq!(one(&opening(b"name")), Ok(opened));
        for flags in [128, 255] {
            assert!(matches!(one(&plain(flags, &[])), Err(Flaw::Unsupported(_))), "{flags}");
        }
    }

    #[test]
    fn a_records_checksum_is_over_all_but_itself() {
        let crc = crc32fast::hash(&plain(64 | 32, &[9])).to_le_bytes();
        let body = plain(64 | 32, &[&[9][..], &crc].concat());
        assert_eq!(one(&body), Ok(WireRecord { term: Some(9), ..expected() }));
        // Where neither length nor flags change, nothing but the checksum tells.
        for at in [1, 2, 4, 5, 6, 7, 8, 11, 12, 13] {
            let mut wrong = body.clone();
            wrong[at] ^= 1;
            let checked: Vec<_> = Records::new(&header(1), &wrong).checked().collect();
            assert!(matches!(checked[..], [Err(Flaw::Garbage(_))]), "{at}: {checked:?}");
            assert!(matches!(walk(1, &wrong)[..], [Ok(_)]), "{at}: the body's checksum stands for it");
        }
    }

    #[test]
    fn each_length_is_held_to_its_limit() {
        assert_eq!(one(&opening(&[b'n'; 512])).unwrap().opens, Some([b'n'; 512].as_slice()));
        assert!(is_malformed(one(&opening(&[b'n'; 513]))));
        let keyed = |len: usize| {
            let mut field = Vec::new();
            put_varint(&mut field, len as u64);
            field.resize(field.len() + len, b'k');
            plain(16, &field)
        };
        assert_eq!(one(&keyed(256)).unwrap().key, Some([b'k'; 256].as_slice()));
        assert!(is_malformed(one(&keyed(257))));
        let filled = |len: usize| {
            let mut body = Vec::new();
            put_varint(&mut body, len as u64);
            body.extend([11, 12, 0, 7, 5, 20]);
            body.resize(body.len() + len, b'p');
            body
        };
        assert_eq!(one(&filled(1 << 20)).unwrap().payload.len(), 1 << 20);
        assert!(is_malformed(one(&filled((1 << 20) + 1))));
        assert_eq!(one(&filled(0)), Ok(WireRecord { payload: b"", ..expected() }));
    }

    #[test]
    fn a_stream_is_opened_before_it_is_used() {
        let at = |place: usize, value: u8, mut body: Vec<u8>| {
            body[place] = value;
            is_malformed(one(&body))
        };
        assert!(at(5, 0, plain(0, &[])), "sequence 0");
        assert!(at(4, 0, plain(0, &[])), "the stream opened last, of none");
        assert!(at(4, 7, opening(b"name")), "opens a stream that is there");
        assert!(at(5, 2, opening(b"name")), "opens a stream in its midst");
        let of = |stream: u64| {
            let mut body = vec![2, 11, 12, 0];
            put_varint(&mut body, stream);
            [&body, [5, 20].as_slice(), b"pp"].concat()
        };
        assert_eq!(one(&of(FIRST)).unwrap().stream, StreamId(FIRST));
        assert!(is_malformed(one(&of(FIRST + 1))), "a stream above its own position");
        let mut last = plain(0, &[]);
        last[4] = 0;
        let body =
            [plain(0, &[]), opening(b"a"), last.clone(), opening(b"b"), last.clone(), plain(0, &[])].concat();
        let streams: Vec<_> = walk(6, &body).into_iter().map(|record| record.unwrap().stream.0).collect();
        assert_eq!(streams, [7, FIRST + 1, FIRST + 1, FIRST + 3, FIRST + 3, 7]);
    }

    #[test]
    fn records_fill_the_body_as_the_header_counts_them() {
        let body = plain(0, &[]).repeat(3);
        let positions: Vec<_> = walk(3, &body).into_iter().map(|record| record.unwrap().position.0).collect();
        assert_eq!(positions, [FIRST, FIRST + 1, FIRST + 2]);
        // Ends with one flaw, whatever stands behind it.
        for (count, body, whole) in [
            (4, &body[..], 3),
            (2, &body[..], 2),
            (3, &body[..body.len() - 1], 2),
            (3, &[&body[..], &[0]].concat()[..], 3),
            (1, &[], 0),
        ] {
            let found = walk(count, body);
            assert_eq!(found.len(), whole + 1, "{count}: {found:?}");
            assert!(found[..whole].iter().all(Result::is_ok) && is_malformed(found[whole]), "{found:?}");
        }
        for len in 0..plain(0, &[]).len() {
            assert!(is_malformed(one(&plain(0, &[])[..len])), "cut to {len}");
        }
    }

    #[test]
    fn records_without_their_checksums_are_the_same_but_for_four_bytes_each() {
        let bare = [
            plain(0, &[]),
            plain(2 | 4, &[]),
            plain(8 | 16 | 32, b"\x05\x03key\xac\x02"),
            opening(b"a name"),
            [&[0xac, 2, 11, 12, 0, 7, 6, 20][..], &[b'p'; 300]].concat(),
            plain(0, &[]),
        ];
        // The last has none before either.
        let full = |nth: usize| {
            let (head, payload) = bare[nth].split_at(bare[nth].len() - if nth == 4 { 300 } else { 2 });
            let mut head = head.to_vec();
            head[if nth == 4 { 4 } else { 3 }] |= 64;
            let crc = crc32fast::hash(&[&head, payload].concat()).to_le_bytes();
            [&head, &crc[..], payload].concat()
        };
        let body: Vec<u8> = [(0..5).flat_map(full).collect(), bare[5].clone()].concat();
        let count = u32::try_from(bare.len()).unwrap();
        let mut out = b"before".to_vec();
        assert_eq!(without_checksums(count, Time(BASE), &body, &mut out), Some(()));
        assert_eq!(out, [b"before", &bare.concat()[..]].concat());
        // What each record says is the same.
        assert_eq!(walk(count, &bare.concat()), walk(count, &body));
        let header = header(count);
        let (mut with, mut without) = (Records::new(&header, &body), Records::new(&header, &out[6..]));
        for nth in 0..bare.len() {
            assert!(with.next().is_some() && without.next().is_some());
            assert_eq!((with.last_has_checksum(), without.last_has_checksum()), (nth < 5, false), "{nth}");
        }
        // Another count, or half a record, is no body.
        for (count, len) in [(count - 1, body.len()), (count + 1, body.len()), (count, body.len() - 1)] {
            assert_eq!(without_checksums(count, Time(BASE), &body[..len], &mut Vec::new()), None);
        }
        assert_eq!(without_checksums(0, Time(BASE), &[], &mut Vec::new()), Some(()));
    }

    #[test]
    fn drafts_are_written_as_the_format_says() {
        let draft = |target, seq, time| Draft {
            target,
            seq: Seq(seq),
            kind: 11,
            version: 12,
            close: false,
            more: false,
            time: Time(time),
            created: None,
            key: None,
            term: None,
            payload: b"pp".into(),
        };
        let drafts = [
            draft(Target::Open(b"name".to_vec()), 1, BASE),
            Draft { close: true, created: Some(Time(BASE + 10)), ..draft(Target::Opened, 2, BASE + 10) },
            Draft {
                more: true,
                created: Some(Time(i64::MAX)),
                key: Some(b"key".to_vec()),
                term: Some(300),
                ..draft(Target::Stream(StreamId(7)), 5, i64::MIN)
            },
        ];
        let heads: [&[u8]; 3] = [b"\x02\x0b\x0c\x41\0\x01\0\x04name", b"\x02\x0b\x0c\x42\0\x02\x14", &{
            let mut head = vec![2, 11, 12, 4 | 8 | 16 | 32 | 64, 7, 5];
            put_zigzag(&mut head, i64::MIN.wrapping_sub(BASE));
            put_zigzag(&mut head, i64::MAX.wrapping_sub(i64::MIN));
            [&head, b"\x03key\xac\x02".as_slice()].concat()
        }];
        let mut expected = Vec::new();
        for head in heads {
            let crc = crc32fast::hash(&[head, b"pp"].concat()).to_le_bytes();
            expected.extend([head, &crc, b"pp"].concat());
        }
        let body = encode_body(&drafts);
        assert_eq!(body, expected);
        assert!(encode_body(&[]).is_empty());
        let back: Vec<_> = Records::new(&header(3), &body).checked().map(Result::unwrap).collect();
        for (n, (wire, draft)) in back.iter().zip(&drafts).enumerate() {
            assert_eq!((wire.position.0, wire.seq), (FIRST + n as u64, draft.seq));
            assert_eq!((wire.time, wire.created), (draft.time, draft.created.unwrap_or(draft.time)));
            assert_eq!((wire.closes, wire.more), (draft.close, draft.more));
            assert_eq!((wire.key, wire.term), (draft.key.as_deref(), draft.term));
        }
        assert_eq!(back.len(), 3);
    }
}
