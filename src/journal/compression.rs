//! When bodies are compressed: where they are long enough, and of something that gets shorter.

use crate::format::{BATCH_HEADER_LEN, compress, without_checksums};
use crate::position::Time;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How much of a long body is tried first.
const SAMPLE_LEN: usize = 4 << 10;
/// After how many bodies in a row at most that were not tried, one is.
const MAX_PAUSE: u32 = 63;

/// Whether it pays, as far as was seen: what is written next is mostly like what was written last.
#[derive(Debug)]
pub(super) struct Compression {
    /// From which length on.
    from: u64,
    /// How many bodies are not tried any more, and how many that was at first.
    left: AtomicU32,
    pause: AtomicU32,
    /// Whether the last body that was tried got shorter.
    pays: AtomicBool,
}

impl Compression {
    pub(super) fn new(from: u64) -> Self {
        Self { from, left: AtomicU32::new(0), pause: AtomicU32::new(0), pays: AtomicBool::new(false) }
    }

    /// Whether it pays, as far as was seen.
    pub(super) fn pays(&self) -> bool {
        self.pays.load(Ordering::Relaxed)
    }

    /// Gives a frame as it is to be stored, with room for its header, where that is shorter, and what it
    /// decodes to: the same records without checksums of their own.
    pub(super) fn pack(&self, plain: &[u8], count: u32, time: Time) -> Option<(Vec<u8>, Vec<u8>)> {
        let body = &plain[BATCH_HEADER_LEN..];
        if (body.len() as u64) < self.from || self.pauses() {
            return None;
        }
        let middle = body.len().saturating_sub(SAMPLE_LEN) / 2;
        let sample = &body[middle..body.len().min(middle + SAMPLE_LEN)];
        let stored = compress(sample, 0).and_then(|_| {
            let mut bare = Vec::with_capacity(plain.len());
            bare.resize(BATCH_HEADER_LEN, 0);
            without_checksums(count, time, body, &mut bare)?;
            Some((compress(&bare[BATCH_HEADER_LEN..], BATCH_HEADER_LEN)?, bare))
        });
        let Some((stored, bare)) = stored else {
            let pause = (2 * self.pause.load(Ordering::Relaxed) + 1).min(MAX_PAUSE);
            self.pause.store(pause, Ordering::Relaxed);
            self.left.store(pause, Ordering::Relaxed);
            self.pays.store(false, Ordering::Relaxed);
            return None;
        };
        self.pause.store(0, Ordering::Relaxed);
        self.pays.store(true, Ordering::Relaxed);
        Some((stored, bare))
    }

    /// Whether this one is not tried.
    fn pauses(&self) -> bool {
        let take = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Codec, Draft, Records, Target, decode_body, encode_body};
    use crate::position::{Position, Seq, StreamId};

    fn frame(payloads: &[Vec<u8>]) -> Vec<u8> {
        let drafts: Vec<_> = (1..)
            .zip(payloads)
            .map(|(seq, payload)| Draft {
                target: if seq == 1 { Target::Open(b"name".to_vec()) } else { Target::Opened },
                seq: Seq(seq),
                kind: 3,
                version: 1,
                close: false,
                more: seq % 3 == 0,
                time: Time(1_000 + seq.cast_signed() * 70),
                created: (seq % 2 == 0).then_some(Time(5)),
                key: (seq == 4).then(|| b"key".to_vec()),
                term: Some(seq),
                payload: payload.into(),
            })
            .collect();
        [vec![0; BATCH_HEADER_LEN], encode_body(&drafts)].concat()
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|n| b"line of text\n"[n % 13]).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn what_is_stored_decodes_to_the_same_records() {
        let payloads: Vec<_> = (0..50_usize).map(|n| text(17 * n)).collect();
        let whole = frame(&payloads);
        let time = Time(1_070);
        let (stored, plain) = Compression::new(4_096).pack(&whole, 50, time).unwrap();
        assert!(stored.len() < whole.len() / 5 && plain.len() == whole.len() - 50 * 4);
        let header = crate::format::BatchHeader {
            codec: Codec::Lz4,
            durability: crate::format::Durability::Durable,
            body_len: u32::try_from(stored.len() - BATCH_HEADER_LEN).unwrap(),
            decoded_len: u32::try_from(plain.len() - BATCH_HEADER_LEN).unwrap(),
            count: 50,
            body_crc: 0,
            first_position: Position(9),
            time,
            durable_upto: Position::ZERO,
            body_digest: [0; 32],
            chain: [0; 32],
        };
        let mut buffer = Vec::new();
        let body = decode_body(&header, &stored[BATCH_HEADER_LEN..], &mut buffer);
        assert_eq!(body, &plain[BATCH_HEADER_LEN..]);
        let before: Vec<_> = Records::new(&header, &whole[BATCH_HEADER_LEN..]).checked().collect();
        let after: Vec<_> = Records::new(&header, body).checked().collect();
        assert_eq!(before, after);
        assert!(after.len() == 50 && after.iter().all(|r| r.is_ok_and(|r| r.stream == StreamId(9))));
        // Whatever else is stored there is no body.
        for wrong in [&stored[BATCH_HEADER_LEN..stored.len() - 1], &stored[..], b""] {
            assert_eq!(decode_body(&header, wrong, &mut Vec::new()), b"");
        }
        for decoded_len in [header.decoded_len - 1, header.decoded_len + 1, 8 << 20] {
            let mut buffer = Vec::new();
            let other = crate::format::BatchHeader { decoded_len, ..header };
            assert_eq!(decode_body(&other, &stored[BATCH_HEADER_LEN..], &mut buffer), b"", "{decoded_len}");
        }
    }

    #[test]
    fn nothing_is_allocated_for_what_cannot_be_so_long() {
        let header = crate::format::BatchHeader {
            codec: Codec::Lz4,
            durability: crate::format::Durability::Durable,
            body_len: 100,
            decoded_len: 8 << 20,
            count: 1,
            body_crc: 0,
            first_position: Position(1),
            time: Time(0),
            durable_upto: Position::ZERO,
            body_digest: [0; 32],
            chain: [0; 32],
        };
        let mut buffer = Vec::new();
        assert_eq!(decode_body(&header, &[0; 100], &mut buffer), b"");
        assert_eq!(buffer.capacity(), 0);
    }

    #[test]
    fn what_does_not_get_shorter_is_tried_less_and_less_often() {
        let compression = Compression::new(4_096);
        let pack = |payload: Vec<u8>| compression.pack(&frame(&[payload]), 1, Time(1_070)).is_some();
        assert!(!pack(text(4_000)), "too short");
        assert!(pack(text(5_000)) && pack(text(5_000)));
        let mut tried = 0;
        for _ in 0..1_000 {
            assert!(!pack(noise(5_000)));
            tried += u32::from(
                compression.left.load(Ordering::Relaxed) == compression.pause.load(Ordering::Relaxed),
            );
        }
        assert!((10..25).contains(&tried), "{tried}");
        let untried = (0..100).take_while(|_| !pack(text(5_000))).count();
        assert!(untried <= 63 && pack(text(5_000)), "{untried}");
        // A long body is looked at in the middle; that it ends otherwise is noticed too.
        assert!(!pack([text(3_000), noise(90_000), text(3_000)].concat()));
    }
}
