//! The decoders of headers, batches, footers and marks, on any bytes: nothing panics, and what is
//! decoded is encoded to the same again. Once as the bytes are, and once with their checksums put
//! right, as no guessing gets past those.

use arbitrary::Unstructured;
use runwal::format::{
    BATCH_HEADER_LEN, BatchHeader, Busy, Codec, Draft, Durability, FOOTER_HEADER_LEN, Footer,
    HEADER_COPY_LEN, HeaderBlock, Mark, Records, SEGMENT_DATA_START, SegmentHeader, Site, Target, WireRecord,
    compress, decode_body, encode_body,
};
use runwal::position::{Position, Time};

const SITE: Site = Site { journal: [3; 16], segment: 5, salt: 7 };
/// Where the bytes stand.
const OFFSET: u64 = 4_096;

/// See the [module](self).
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (Ok(what), Ok(right)) = (input.arbitrary::<u8>(), input.arbitrary::<bool>()) else { return };
    let mut bytes = input.take_rest().to_vec();
    match what % 6 {
        0 => segment_header(&mut bytes, right),
        1 => batch_header(&mut bytes, right),
        2 => footer(&mut bytes, right),
        3 => mark(&mut bytes, right),
        4 => busy(&mut bytes, right),
        _ => {
            body(&bytes);
            packed(&bytes);
        }
    }
}

/// Makes `bytes` as long as it takes, and its last four the checksum.
fn seal(bytes: &mut Vec<u8>, len: usize, checksum: impl FnOnce(&[u8]) -> u32) {
    bytes.resize(len, 0);
    let sum = checksum(&bytes[..len - 4]);
    bytes[len - 4..].copy_from_slice(&sum.to_le_bytes());
}

/// As the format has it of headers that know their place.
fn placed(content: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&SITE.journal);
    for number in [SITE.segment, SITE.salt, OFFSET] {
        sum.update(&number.to_le_bytes());
    }
    sum.update(content);
    sum.finalize()
}

fn segment_header(bytes: &mut Vec<u8>, right: bool) {
    if right {
        bytes.splice(0..0, *b"RUNWAL\r\n\x01\0\0\0");
        seal(bytes, HEADER_COPY_LEN, crc32fast::hash);
        bytes.extend_from_within(..);
    }
    let Ok(block) = HeaderBlock::decode(bytes) else { return };
    assert_eq!(block.header.site().segment, block.header.segment);
    let again = block.header.encode();
    assert_eq!(again.len() as u64, SEGMENT_DATA_START);
    let decoded = HeaderBlock::decode(&again).expect("its own encoding");
    assert_eq!((decoded.header, decoded.damaged_copy), (block.header, None));
    // What a newer version may put where this one has zeros is not kept.
    if bytes.get(12..16) == Some(&[0; 4])
        && bytes.get(160..508).is_some_and(|rest| rest.iter().all(|b| *b == 0))
    {
        assert_eq!(again[..HEADER_COPY_LEN], bytes[..HEADER_COPY_LEN]);
    }
    let header: SegmentHeader = block.header;
    assert!(header.segment > 0 && header.first_position > Position::ZERO);
}

fn batch_header(bytes: &mut Vec<u8>, right: bool) {
    if right {
        bytes.splice(0..0, *b"RWB1");
        let behind = bytes.split_off(bytes.len().min(BATCH_HEADER_LEN - 4));
        seal(bytes, BATCH_HEADER_LEN, placed);
        bytes.extend(behind);
    }
    if let Some(at) = BatchHeader::find(bytes, &SITE, OFFSET) {
        assert!(bytes[at..].starts_with(b"RWB1"));
    }
    let Ok(header) = BatchHeader::decode(bytes, &SITE, OFFSET) else { return };
    assert!(header.last_position() >= header.first_position);
    assert_eq!(header.frame_len(), BATCH_HEADER_LEN as u64 + u64::from(header.body_len));
    let again = header.encode(&SITE, OFFSET);
    assert_eq!(BatchHeader::decode(&again, &SITE, OFFSET), Ok(header));
    // Flags that may be ignored are not kept.
    if bytes[6] == 0 {
        assert_eq!(again, bytes[..BATCH_HEADER_LEN]);
    }
    assert!(BatchHeader::decode(&again, &SITE, OFFSET + 1).is_err(), "valid in another place");
    let elsewhere = Site { salt: SITE.salt + 1, ..SITE };
    assert!(BatchHeader::decode(&again, &elsewhere, OFFSET).is_err(), "valid in another segment");
}

fn footer(bytes: &mut Vec<u8>, right: bool) {
    if right {
        let body = std::mem::take(bytes);
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        for part in [*b"RWF1", [0; 4], len.to_le_bytes(), crc32fast::hash(&body).to_le_bytes(), [0; 4]] {
            bytes.extend_from_slice(&part);
        }
        seal(bytes, FOOTER_HEADER_LEN, placed);
        bytes.extend(body);
    }
    let Ok((len, crc)) = Footer::decode_header(bytes, &SITE, OFFSET) else { return };
    let Some(body) = bytes[FOOTER_HEADER_LEN..].get(..usize::try_from(len).unwrap_or(usize::MAX)) else {
        return;
    };
    let Ok(footer) = Footer::decode_body(body, crc) else { return };
    // Entries that come twice, or in another order, are not kept so.
    let again = footer.encode_body();
    assert!(again.len() <= body.len(), "a footer grew from {} to {} bytes", body.len(), again.len());
    let decoded = Footer::decode_body(&again, crc32fast::hash(&again)).expect("its own encoding");
    assert_eq!(decoded, footer);
    let whole = footer.encode(&SITE, OFFSET).expect("not longer than what was decoded");
    assert_eq!(whole[FOOTER_HEADER_LEN..], again);
    assert!(Footer::decode_header(&whole, &SITE, OFFSET).is_ok());
}

fn mark(bytes: &mut Vec<u8>, right: bool) {
    if right {
        bytes.splice(0..0, *b"RWM1\x01\0\0\0");
        seal(bytes, Mark::LEN, crc32fast::hash);
    }
    if let Some(mark) = Mark::decode(bytes) {
        assert_eq!(mark.encode(), bytes[..Mark::LEN]);
    }
}

fn busy(bytes: &mut Vec<u8>, right: bool) {
    if right {
        bytes.splice(0..0, *b"RWZ1");
        seal(bytes, Busy::LEN, crc32fast::hash);
    }
    let (set, word) = Busy::decode(bytes);
    assert_eq!(set, bytes.iter().take(Busy::LEN).any(|byte| *byte != 0));
    if let Some(word) = word {
        assert_eq!(word.encode(), bytes[..Busy::LEN]);
    }
}

/// A header in front of a body, of so many records.
fn header_of(body: &[u8], count: u32, time: Time) -> BatchHeader {
    BatchHeader {
        codec: Codec::None,
        durability: Durability::Durable,
        body_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
        decoded_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
        count,
        body_crc: 0,
        first_position: Position(1_000),
        time,
        durable_upto: Position::ZERO,
        body_digest: [0; 32],
        chain: [0; 32],
    }
}

/// The draft that a record would be written from.
pub(crate) fn draft<'a>(record: &WireRecord<'a>) -> Draft<'a> {
    Draft {
        target: record.opens.map_or(Target::Stream(record.stream), |name| Target::Open(name.to_vec())),
        seq: record.seq,
        kind: record.kind,
        version: record.version,
        close: record.closes,
        more: record.more,
        time: record.time,
        created: Some(record.created),
        key: record.key.map(<[u8]>::to_vec),
        term: record.term,
        payload: record.payload.into(),
    }
}

fn body(bytes: &[u8]) {
    let [count, time, bytes @ ..] = bytes else { return };
    let count = u32::from(*count % 8) + 1;
    let time = Time(i64::from(time.cast_signed()) << 56);
    for checked in [false, true] {
        let header = header_of(bytes, count, time);
        let walk = Records::new(&header, bytes);
        let walk = if checked { walk.checked() } else { walk };
        let records: Vec<_> = walk.collect();
        assert!(records.len() <= usize::try_from(count).unwrap_or(usize::MAX) + 1);
        let Ok(records) = records.into_iter().collect::<Result<Vec<_>, _>>() else { continue };
        assert_eq!(records.len(), usize::try_from(count).unwrap_or(usize::MAX));
        let drafts: Vec<_> = records.iter().map(draft).collect();
        let again = encode_body(&drafts);
        let header = header_of(&again, count, records[0].time);
        let decoded: Result<Vec<_>, _> = Records::new(&header, &again).checked().collect();
        assert_eq!(decoded.expect("its own encoding"), records);
    }
}

/// Bytes as a compressed body of some length, and what is compressed of them, whole and with one byte that is
/// another. Nothing longer is made of them than can be, and what has another length than it should is no body.
fn packed(bytes: &[u8]) {
    let [count, high, low, behind @ ..] = bytes else { return };
    let unpack = |stored: &[u8], len: usize| {
        let decoded_len = u32::try_from(len).unwrap_or(u32::MAX);
        let header = header_of(stored, u32::from(*count % 8) + 1, Time(0));
        let header = BatchHeader { codec: Codec::Lz4, decoded_len, ..header };
        let mut buffer = Vec::new();
        let body = decode_body(&header, stored, &mut buffer).to_vec();
        assert!(body.is_empty() || body.len() == len);
        assert!(buffer.capacity() <= (stored.len() + 1) * 255, "{} of {}", buffer.capacity(), stored.len());
        assert!(Records::new(&header, &body).checked().count() <= usize::from(*count % 8) + 2);
        body
    };
    let number = usize::from(u16::from_be_bytes([*high, *low]));
    unpack(behind, number);
    let Some(mut stored) = compress(behind, 0) else { return };
    assert_eq!(unpack(&stored, behind.len()), behind);
    let at = number % stored.len();
    stored[at] ^= high | 1;
    unpack(&stored, behind.len());
}
