//! The footer: the index of a sealed segment. The same bytes without its header are the
//! disposable index file of a segment that was closed by recovery.

use super::bytes::Take;
use super::{Digest, Flaw, MAX_FOOTER_LEN, Site};
use crate::position::{Position, Seq, StreamId, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a footer's header.
pub const FOOTER_HEADER_LEN: usize = 24;

/// Bytes of a name or a key: two numbers.
pub(crate) const PAIR_LEN: usize = 16;

/// Bytes of a body in front of its lists, and of the entries of the first two.
const FIXED_LEN: usize = 7 * 8 + 32 + 6 * 4;
const OPEN_STREAM_LEN: usize = 4 * 8;
const STREAM_LEN: usize = 5 * 8 + 4 * 4;

const MAGIC: [u8; 4] = *b"RWF1";
const CLOSED: u32 = 1;

/// A stream that is open at the end of a segment, wherever its records stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenStream {
    /// Its last sequence.
    pub last_seq: Seq,
    /// The position of that record.
    pub last_position: Position,
    /// The highest term seen in it.
    pub term: u64,
}

/// A stream with records in the segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEntry {
    /// Its first sequence here.
    pub first_seq: Seq,
    /// Its last sequence here.
    pub last_seq: Seq,
    /// The position of that record.
    pub last_position: Position,
    /// The highest term seen in it here.
    pub term: u64,
    /// Whether a record here ends it.
    pub closed: bool,
    /// The batches with its records: the batch's offset, and the stream's first sequence in it.
    pub batches: Vec<(u32, Seq)>,
}

/// What a segment contains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Footer {
    /// The first position.
    pub first_position: Position,
    /// The last position; one before the first where there is none.
    pub last_position: Position,
    /// How many records.
    pub records: u64,
    /// How many batches.
    pub batches: u64,
    /// The earliest time of a record; zero where there is none.
    pub min_time: Time,
    /// The latest time of a record; zero where there is none.
    pub max_time: Time,
    /// The highest term seen in the journal up to here.
    pub term: u64,
    /// The chain hash after the last batch.
    pub chain: Digest,
    /// Every stream of the journal that is open at the end.
    pub open: BTreeMap<StreamId, OpenStream>,
    /// Every stream with records here.
    pub streams: BTreeMap<StreamId, StreamEntry>,
    /// The streams opened here, by [`name_hash`], sorted.
    pub names: Vec<(u64, StreamId)>,
    /// The records with an idempotency key here, by [`name_hash`] of the key.
    pub keys: BTreeSet<(u64, Position)>,
    /// Batches about every 64 KiB: first position and offset, ascending.
    pub positions: Vec<(Position, u64)>,
}

/// The first eight bytes of BLAKE3, as a number.
pub fn name_hash(name: &[u8]) -> u64 {
    let digest = blake3::hash(name);
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl Footer {
    /// About how much memory it takes.
    pub(crate) fn memory_len(&self) -> usize {
        let batches: usize = self.streams.values().map(|entry| entry.batches.capacity()).sum();
        256 + 64 * self.open.len()
            + 96 * self.streams.len()
            + 16 * (batches + self.names.capacity() + self.positions.capacity())
            + 24 * self.keys.len()
    }

    /// Where the keys begin, in header and body as encoded.
    pub(crate) fn keys_offset(&self) -> u64 {
        let before = FIXED_LEN
            + OPEN_STREAM_LEN * self.open.len()
            + STREAM_LEN * self.streams.len()
            + PAIR_LEN * self.names.len();
        (FOOTER_HEADER_LEN + before) as u64
    }

    /// Header and body for the place where they will stand; `None` where the body would break its limit.
    pub fn encode(&self, site: &Site, offset: u64) -> Option<Vec<u8>> {
        let body = self.encode_body();
        if body.len() > MAX_FOOTER_LEN {
            return None;
        }
        let mut out = Vec::with_capacity(FOOTER_HEADER_LEN + body.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]); // flags
        out.extend_from_slice(&u32::try_from(body.len()).ok()?.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        let crc = site.checksum(offset, &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&body);
        Some(out)
    }

    /// The body alone.
    pub fn encode_body(&self) -> Vec<u8> {
        fn put(out: &mut Vec<u8>, numbers: &[u64]) {
            for number in numbers {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        fn len(n: usize) -> u32 {
            u32::try_from(n).unwrap_or(u32::MAX)
        }
        let mut out = Vec::new();
        put(&mut out, &[self.first_position.0, self.last_position.0, self.records, self.batches]);
        put(&mut out, &[self.min_time.0.cast_unsigned(), self.max_time.0.cast_unsigned(), self.term]);
        out.extend_from_slice(&self.chain);
        let entries: usize = self.streams.values().map(|s| s.batches.len()).sum();
        for n in [
            self.open.len(),
            self.streams.len(),
            self.names.len(),
            self.keys.len(),
            self.positions.len(),
            entries,
        ] {
            out.extend_from_slice(&len(n).to_le_bytes());
        }
        for (id, open) in &self.open {
            put(&mut out, &[id.0, open.last_seq.0, open.last_position.0, open.term]);
        }
        let mut start = 0;
        for (id, s) in &self.streams {
            put(&mut out, &[id.0, s.first_seq.0, s.last_seq.0, s.last_position.0, s.term]);
            for number in [u32::from(s.closed), start, len(s.batches.len()), 0] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            start += len(s.batches.len());
        }
        for (hash, id) in &self.names {
            put(&mut out, &[*hash, id.0]);
        }
        for (hash, position) in &self.keys {
            put(&mut out, &[*hash, position.0]);
        }
        for (position, offset) in &self.positions {
            put(&mut out, &[position.0, *offset]);
        }
        for s in self.streams.values() {
            for (offset, seq) in &s.batches {
                out.extend_from_slice(&offset.to_le_bytes());
                let delta = u32::try_from(seq.0.saturating_sub(s.first_seq.0)).unwrap_or(u32::MAX);
                out.extend_from_slice(&delta.to_le_bytes());
            }
        }
        out
    }

    /// Reads a footer's header: the length of the body and its checksum.
    pub fn decode_header(bytes: &[u8], site: &Site, offset: u64) -> Result<(u32, u32), Flaw> {
        let bytes = bytes.get(..FOOTER_HEADER_LEN).unwrap_or(bytes);
        if bytes.iter().all(|b| *b == 0) {
            return Err(Flaw::Absent);
        }
        let flaw = Flaw::Garbage("no footer stands here");
        if bytes.len() < FOOTER_HEADER_LEN || bytes[..4] != MAGIC {
            return Err(flaw);
        }
        let (content, crc) = bytes.split_at(FOOTER_HEADER_LEN - 4);
        if crc != site.checksum(offset, content).to_le_bytes() {
            return Err(Flaw::Garbage("the footer's checksum does not match"));
        }
        let mut take = Take(&content[4..]);
        let fields = (take.u32(), take.u32(), take.u32());
        let (Some(flags), Some(len), Some(crc)) = fields else { return Err(flaw) };
        if flags >> 16 != 0 {
            return Err(Flaw::Unsupported("the footer uses a feature this version does not know"));
        }
        if len as usize > MAX_FOOTER_LEN {
            return Err(Flaw::Limit("the footer is longer than its limit"));
        }
        Ok((len, crc))
    }

    /// Reads a body whose checksum is `crc`.
    pub fn decode_body(body: &[u8], crc: u32) -> Result<Self, Flaw> {
        if crc32fast::hash(body) != crc {
            return Err(Flaw::Garbage("the footer's body does not match its checksum"));
        }
        let mut take = Take(body);
        match Self::fields(&mut take) {
            Some(footer) if take.0.is_empty() => Ok(footer),
            _ => Err(Flaw::Garbage("the footer's parts do not fill it")),
        }
    }

    fn fields(take: &mut Take<'_>) -> Option<Self> {
        let mut footer = Self {
            first_position: Position(take.u64()?),
            last_position: Position(take.u64()?),
            records: take.u64()?,
            batches: take.u64()?,
            min_time: Time(take.i64()?),
            max_time: Time(take.i64()?),
            term: take.u64()?,
            chain: take.array()?,
            ..Self::default()
        };
        let [open, streams, names, keys, positions, entries] =
            [take.u32()?, take.u32()?, take.u32()?, take.u32()?, take.u32()?, take.u32()?];
        for _ in 0..open {
            let id = StreamId(take.u64()?);
            let last_seq = Seq(take.u64()?);
            let open = OpenStream { last_seq, last_position: Position(take.u64()?), term: take.u64()? };
            footer.open.insert(id, open);
        }
        let mut spans = Vec::new();
        for _ in 0..streams {
            let id = StreamId(take.u64()?);
            let entry = StreamEntry {
                first_seq: Seq(take.u64()?),
                last_seq: Seq(take.u64()?),
                last_position: Position(take.u64()?),
                term: take.u64()?,
                closed: take.u32()? & CLOSED != 0,
                batches: Vec::new(),
            };
            let (_start, count, _reserved) = (take.u32()?, take.u32()?, take.u32()?);
            footer.streams.insert(id, entry);
            spans.push((id, count));
        }
        for _ in 0..names {
            footer.names.push((take.u64()?, StreamId(take.u64()?)));
        }
        for _ in 0..keys {
            footer.keys.insert((take.u64()?, Position(take.u64()?)));
        }
        for _ in 0..positions {
            footer.positions.push((Position(take.u64()?), take.u64()?));
        }
        let mut total = 0_u64;
        for (id, count) in spans {
            let entry = footer.streams.get_mut(&id)?;
            total += u64::from(count);
            for _ in 0..count {
                let offset = take.u32()?;
                let seq = entry.first_seq.checked_add(u64::from(take.u32()?))?;
                entry.batches.push((offset, seq));
            }
        }
        (total == u64::from(entries)).then_some(footer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn footers()(
            open in prop::collection::btree_map(1..99_u64, (1..9_u64, 1..99_u64, 0..9_u64), 0..4),
            streams in prop::collection::btree_map(1..99_u64, prop::collection::vec((1024..9_999_u32, 0..9_u64), 1..4), 0..4),
            pairs in prop::collection::vec((any::<u64>(), any::<u64>()), 0..4),
        ) -> Footer {
            Footer {
                first_position: Position(7),
                min_time: Time(-5),
                chain: [3; 32],
                open: open.into_iter().map(|(id, (s, p, term))| {
                    (StreamId(id), OpenStream { last_seq: Seq(s), last_position: Position(p), term })
                }).collect(),
                streams: streams.into_iter().map(|(id, list)| (StreamId(id), StreamEntry {
                    first_seq: Seq(2), last_seq: Seq(20), last_position: Position(9), term: 0, closed: id % 2 == 0,
                    batches: list.into_iter().map(|(o, d)| (o, Seq(2 + d))).collect(),
                })).collect(),
                names: pairs.iter().map(|(a, b)| (*a, StreamId(*b))).collect(),
                keys: pairs.iter().map(|(a, b)| (*a, Position(*b))).collect(),
                positions: pairs.iter().map(|(a, b)| (Position(*a), *b)).collect(),
                ..Footer::default()
            }
        }
    }

    const SITE: Site = Site { journal: *b"0123456789abcdef", segment: 2, salt: 3 };
    const OFFSET: u64 = 5_000;

    fn numbers(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// A footer with two of everything, and its body as the format has it.
    fn footer() -> (Footer, Vec<u8>) {
        let open = |n: u64| OpenStream { last_seq: Seq(n), last_position: Position(n + 1), term: n + 2 };
        let stream = |n: u64, closed, batches: &[(u32, u64)]| StreamEntry {
            first_seq: Seq(n),
            last_seq: Seq(n + 9),
            last_position: Position(n + 1),
            term: n + 2,
            closed,
            batches: batches.iter().map(|(offset, more)| (*offset, Seq(n + more))).collect(),
        };
        let footer = Footer {
            first_position: Position(11),
            last_position: Position(12),
            records: 13,
            batches: 14,
            min_time: Time(-15),
            max_time: Time(16),
            term: 17,
            chain: [18; 32],
            open: [(StreamId(21), open(30)), (StreamId(22), open(40))].into(),
            streams: [
                (StreamId(23), stream(50, true, &[(2_000, 0), (3_000, 4), (4_000, 9)])),
                (StreamId(24), stream(70, false, &[(2_500, 1)])),
            ]
            .into(),
            names: vec![(81, StreamId(82)), (83, StreamId(84))],
            keys: [(85, Position(86)), (87, Position(88))].into(),
            positions: vec![(Position(91), 92), (Position(93), 94)],
        };
        let mut body = numbers(&[11, 12, 13, 14, (-15_i64).cast_unsigned(), 16, 17]);
        body.extend([18; 32]);
        body.extend([2_u32, 2, 2, 2, 2, 4].map(u32::to_le_bytes).concat());
        body.extend(numbers(&[21, 30, 31, 32, 22, 40, 41, 42]));
        body.extend(numbers(&[23, 50, 59, 51, 52]));
        body.extend([1_u32, 0, 3, 0].map(u32::to_le_bytes).concat());
        body.extend(numbers(&[24, 70, 79, 71, 72]));
        body.extend([0_u32, 3, 1, 0].map(u32::to_le_bytes).concat());
        body.extend(numbers(&[81, 82, 83, 84, 85, 86, 87, 88, 91, 92, 93, 94]));
        body.extend([2_000_u32, 0, 3_000, 4, 4_000, 9, 2_500, 1].map(u32::to_le_bytes).concat());
        (footer, body)
    }

    /// A footer's header at its place, of a body with this length and checksum.
    fn head(magic: &[u8], flags: u32, len: usize, crc: u32) -> Vec<u8> {
        let len = u32::try_from(len).unwrap();
        let bytes = [magic, &[flags, len, crc, 0].map(u32::to_le_bytes).concat()].concat();
        let place = numbers(&[2, 3, OFFSET]);
        let crc = crc32fast::hash(&[b"0123456789abcdef".as_slice(), &place, &bytes].concat());
        [bytes, crc.to_le_bytes().to_vec()].concat()
    }

    #[test]
    fn each_field_stands_where_the_format_has_it() {
        let (footer, body) = footer();
        let crc = crc32fast::hash(&body);
        let head = head(b"RWF1", 0, body.len(), crc);
        assert_eq!(head.len(), 24);
        assert_eq!(footer.encode_body(), body);
        assert_eq!(footer.encode(&SITE, OFFSET), Some([head.clone(), body.clone()].concat()));
        assert_eq!(
            Footer::decode_header(&head, &SITE, OFFSET),
            Ok((u32::try_from(body.len()).unwrap(), crc))
        );
        assert_eq!(Footer::decode_body(&body, crc), Ok(footer));
    }

    #[test]
    fn sequences_that_go_back_or_far_on_are_written_as_the_nearest_there_is_room_for() {
        // No journal that was written by this has them; one with right checksums may have been made by hand.
        let entry = StreamEntry {
            first_seq: Seq(50),
            last_seq: Seq(60),
            last_position: Position(9),
            term: 0,
            closed: false,
            batches: vec![(1_024, Seq(50)), (2_048, Seq(3)), (3_072, Seq(50 + (1 << 40)))],
        };
        let footer = Footer { streams: [(StreamId(1), entry)].into(), ..Footer::default() };
        let body = footer.encode_body();
        let noted = [1_024_u32, 0, 2_048, 0, 3_072, u32::MAX].map(u32::to_le_bytes).concat();
        assert!(body.ends_with(&noted), "{:?}", &body[body.len() - noted.len()..]);
    }

    #[test]
    fn names_are_known_by_the_start_of_their_digest() {
        // The digest of nothing begins with these bytes.
        assert_eq!(name_hash(b"").to_le_bytes(), [0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6]);
    }

    #[test]
    fn a_header_is_valid_at_its_own_place_only() {
        let good = head(b"RWF1", 0, 9, 8);
        assert_eq!(Footer::decode_header(&[&good[..], &[7; 9]].concat(), &SITE, OFFSET), Ok((9, 8)));
        let elsewhere = Site { salt: 4, ..SITE };
        assert!(matches!(Footer::decode_header(&good, &elsewhere, OFFSET), Err(Flaw::Garbage(_))));
        assert!(matches!(Footer::decode_header(&good, &SITE, OFFSET + 1), Err(Flaw::Garbage(_))));
        let other = head(b"RWB1", 0, 9, 8);
        assert!(
            matches!(Footer::decode_header(&other, &SITE, OFFSET), Err(Flaw::Garbage(_))),
            "another magic"
        );
        for at in 0..24 {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            assert!(matches!(Footer::decode_header(&bytes, &SITE, OFFSET), Err(Flaw::Garbage(_))), "{at}");
        }
        for len in 1..24 {
            assert!(
                matches!(Footer::decode_header(&good[..len], &SITE, OFFSET), Err(Flaw::Garbage(_))),
                "{len}"
            );
            assert!(
                matches!(Footer::decode_header(&vec![7; len], &SITE, OFFSET), Err(Flaw::Garbage(_))),
                "{len}"
            );
        }
        for len in [0, 1, 23, 24, 99] {
            assert_eq!(Footer::decode_header(&vec![0; len], &SITE, OFFSET), Err(Flaw::Absent), "{len}");
        }
    }

    #[test]
    fn the_high_half_of_the_flags_is_unsupported() {
        let decode = |flags, len| Footer::decode_header(&head(b"RWF1", flags, len, 8), &SITE, OFFSET);
        assert_eq!(decode(0xffff, 9), Ok((9, 8)));
        for bit in 16..32 {
            assert!(matches!(decode(1 << bit, 9), Err(Flaw::Unsupported(_))), "{bit}");
        }
        assert_eq!(decode(0, 16 << 20), Ok((16 << 20, 8)));
        assert!(matches!(decode(0, (16 << 20) + 1), Err(Flaw::Limit(_))));
    }

    #[test]
    fn a_body_over_its_limit_is_not_written() {
        let positions = |n: usize| Footer { positions: vec![(Position(1), 2); n], ..Footer::default() };
        let most = ((16 << 20) - positions(0).encode_body().len()) / 16;
        let longest = positions(most).encode(&SITE, OFFSET).unwrap();
        assert_eq!(longest.len(), 24 + (16 << 20));
        assert_eq!(positions(most + 1).encode(&SITE, OFFSET), None);
    }

    #[test]
    fn a_body_is_filled_by_its_lists() {
        let (_, body) = footer();
        let decode = |body: &[u8]| Footer::decode_body(body, crc32fast::hash(body));
        assert!(decode(&body).is_ok());
        assert!(matches!(Footer::decode_body(&body, 8), Err(Flaw::Garbage(_))), "another checksum");
        for len in 0..body.len() {
            assert!(matches!(decode(&body[..len]), Err(Flaw::Garbage(_))), "cut to {len}");
        }
        assert!(
            matches!(decode(&[&body[..], &[0]].concat()), Err(Flaw::Garbage(_))),
            "bytes behind the lists"
        );
        // One more, and one less, in each of the counts; the last is that of all batch entries.
        for list in 0..6 {
            for count in [-1_i8, 1] {
                let mut wrong = body.clone();
                let at = 7 * 8 + 32 + 4 * list;
                wrong[at] = wrong[at].wrapping_add_signed(count);
                assert!(matches!(decode(&wrong), Err(Flaw::Garbage(_))), "list {list}, {count}");
            }
        }
    }

    #[test]
    fn memory_is_counted_for_every_list() {
        const N: u64 = 1_000;
        let ids = || (1..=N).map(StreamId);
        let open = OpenStream { last_seq: Seq(1), last_position: Position(1), term: 0 };
        let stream = StreamEntry {
            first_seq: Seq(1),
            last_seq: Seq(1),
            last_position: Position(1),
            term: 0,
            closed: false,
            batches: Vec::new(),
        };
        let many = StreamEntry { batches: ids().map(|id| (0, Seq(id.0))).collect(), ..stream.clone() };
        let of = |len: usize| len..3 * len + 1_024;
        let n = usize::try_from(N).unwrap();
        let cases = [
            (Footer::default(), of(size_of::<Footer>())),
            (
                Footer { open: ids().map(|id| (id, open)).collect(), ..Footer::default() },
                of(n * size_of::<(StreamId, OpenStream)>()),
            ),
            (
                Footer { streams: ids().map(|id| (id, stream.clone())).collect(), ..Footer::default() },
                of(n * size_of::<(StreamId, StreamEntry)>()),
            ),
            (
                Footer {
                    streams: [(StreamId(1), many.clone()), (StreamId(2), many)].into(),
                    ..Footer::default()
                },
                of(2 * n * size_of::<(u32, Seq)>()),
            ),
            (
                Footer { names: ids().map(|id| (id.0, id)).collect(), ..Footer::default() },
                of(n * size_of::<(u64, StreamId)>()),
            ),
            (
                Footer { keys: ids().map(|id| (id.0, Position(id.0))).collect(), ..Footer::default() },
                of(n * size_of::<(u64, Position)>()),
            ),
            (
                Footer { positions: ids().map(|id| (Position(id.0), id.0)).collect(), ..Footer::default() },
                of(n * size_of::<(Position, u64)>()),
            ),
        ];
        for (n, (footer, about)) in cases.iter().enumerate() {
            assert!(about.contains(&footer.memory_len()), "case {n}: {} of {about:?}", footer.memory_len());
        }
    }

    proptest! {
        #[test]
        fn footers_come_back(footer in footers()) {
            let site = Site { journal: [1; 16], segment: 2, salt: 3 };
            let bytes = footer.encode(&site, 4_096).unwrap();
            let (len, crc) = Footer::decode_header(&bytes, &site, 4_096).unwrap();
            prop_assert_eq!(len as usize, bytes.len() - FOOTER_HEADER_LEN);
            prop_assert_eq!(&Footer::decode_body(&bytes[FOOTER_HEADER_LEN..], crc).unwrap(), &footer);
            prop_assert!(Footer::decode_header(&bytes, &site, 4_097).is_err());
            let mut at = usize::try_from(footer.keys_offset()).unwrap();
            for (hash, position) in &footer.keys {
                let mut take = Take(&bytes[at..]);
                prop_assert_eq!((take.u64(), take.u64()), (Some(*hash), Some(position.0)));
                at += PAIR_LEN;
            }
        }

        #[test]
        fn no_bytes_make_a_body_allocate_beyond_them(body in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Footer::decode_body(&body, crc32fast::hash(&body));
        }
    }
}
