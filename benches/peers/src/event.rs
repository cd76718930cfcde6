//! What is appended: events that nobody can compress, or lines of JSON, the same ones every time.

use std::sync::LazyLock;

/// How many events of a stream follow each other when a journal is filled.
pub(crate) const BURST: u64 = 64;

/// How much random content there is. More than any block that an engine compresses at once.
const POOL_LEN: usize = 4 << 20;

/// The random content, one for all threads.
static POOL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(1);
    (0..POOL_LEN / 8).flat_map(|_| random.next().to_le_bytes()).collect()
});

/// What the events look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Content {
    /// Random bytes.
    Random,
    /// A log line as a JSON object.
    Json,
}

/// Makes events. Each begins with its sequence in its stream, so that it can be recognised.
#[derive(Debug)]
pub(crate) struct Events {
    content: Content,
    /// Where in the pool the next one begins.
    next: usize,
    random: Random,
    event: Vec<u8>,
}

impl Events {
    /// Events of `len` bytes; another seed gives others.
    pub(crate) fn new(content: Content, len: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let next = random.below(POOL.len() - len);
        Self { content, next, random, event: vec![0; len] }
    }

    /// The event with this sequence.
    pub(crate) fn make(&mut self, seq: u64) -> &[u8] {
        match self.content {
            Content::Random => {
                let len = self.event.len();
                self.event[..8].copy_from_slice(&seq.to_be_bytes());
                if self.next + len > POOL.len() {
                    // Not a multiple of anything, so that the second time through gives other events.
                    self.next %= 251;
                }
                self.event[8..].copy_from_slice(&POOL[self.next..self.next + len - 8]);
                self.next += len - 8;
            }
            Content::Json => self.make_json(seq),
        }
        &self.event
    }

    fn make_json(&mut self, seq: u64) {
        const WORDS: [&str; 16] = [
            "parser", "reader", "writer", "cache", "index", "segment", "schema", "router", "lexer", "codec",
            "config", "logger", "worker", "session", "client", "server",
        ];
        let random = &mut self.random;
        let level = ["info", "info", "info", "info", "info", "debug", "debug", "warn"][random.below(8)];
        let mut text = format!(
            "{{\"seq\":{seq:012},\"time\":\"2026-04-01T12:{:02}:{:02}.{:03}Z\",\"kind\":\"log\",\
             \"level\":\"{level}\",\"task\":\"T-016\",\"run\":\"r-0042\",\"step\":\"build\",\"attempt\":1,\
             \"worker\":\"coder\",\"message\":\"",
            seq / 60_000 % 60,
            seq / 1000 % 60,
            seq % 1000,
        );
        while text.len() < self.event.len() - 2 {
            let (word, other) = (WORDS[random.below(WORDS.len())], WORDS[random.below(WORDS.len())]);
            let sentence = match random.below(4) {
                0 => format!("Compiling {word}-{other} v0.{}.{}. ", random.below(20), random.below(10)),
                1 => format!("test {word}::tests::{other}_works ... ok. "),
                2 => format!("Finished {word} in {}.{:02} s. ", random.below(60), random.below(100)),
                _ => format!("Checked {} files of {word}. ", random.below(500)),
            };
            text.push_str(&sentence);
        }
        text.truncate(self.event.len() - 2);
        text.push_str("\"}");
        self.event.copy_from_slice(text.as_bytes());
    }
}

/// The sequence that an event begins with.
pub(crate) fn sequence_of(event: &[u8]) -> Option<u64> {
    let begin: [u8; 8] = event.get(..8)?.try_into().ok()?;
    match event.strip_prefix(b"{\"seq\":") {
        Some(rest) => std::str::from_utf8(rest.get(..12)?).ok()?.parse().ok(),
        None => Some(u64::from_be_bytes(begin)),
    }
}

/// What a scan came across.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) events: u64,
    sequences: u64,
}

impl Seen {
    pub(crate) fn see(&mut self, event: &[u8]) {
        self.events += 1;
        self.sequences = self.sequences.wrapping_add(sequence_of(event).unwrap_or_default());
    }
}

/// Numbers that look random (xorshift64*).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or_default()
    }
}

/// How the events of a filled journal lie: bursts of one stream after the other, round and round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// How many streams.
    pub(crate) streams: u32,
    /// How many events in each, a multiple of [`BURST`].
    pub(crate) per_stream: u64,
    /// Bytes of an event.
    pub(crate) len: usize,
}

impl Layout {
    /// At least `events`, so that all streams have as many.
    pub(crate) fn new(events: u64, streams: u32, len: usize) -> Self {
        let per_stream = events.div_ceil(u64::from(streams) * BURST).max(1) * BURST;
        Self { streams, per_stream, len }
    }

    pub(crate) fn events(&self) -> u64 {
        u64::from(self.streams) * self.per_stream
    }

    /// What a scan of all of it has to see.
    pub(crate) fn seen(&self) -> Seen {
        let sequences = (self.per_stream * (self.per_stream + 1) / 2).wrapping_mul(u64::from(self.streams));
        Seen { events: self.events(), sequences }
    }

    /// Which one it is in the order of appending, from 0.
    pub(crate) fn index_of(&self, stream: u32, seq: u64) -> u64 {
        let (burst, nth) = ((seq - 1) / BURST, (seq - 1) % BURST);
        (burst * u64::from(self.streams) + u64::from(stream)) * BURST + nth
    }

    /// The bursts in order: a stream, and the sequence of the first of its [`BURST`] events.
    pub(crate) fn bursts(&self) -> impl Iterator<Item = (u32, u64)> + use<> {
        let streams = self.streams;
        (0..self.per_stream / BURST)
            .flat_map(move |round| (0..streams).map(move |stream| (stream, round * BURST + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_carry_their_sequence_and_differ() {
        for content in [Content::Random, Content::Json] {
            let mut events = Events::new(content, 256, 7);
            let first = events.make(1).to_vec();
            let second = events.make(123_456).to_vec();
            assert_eq!((first.len(), second.len()), (256, 256));
            assert_eq!((sequence_of(&first), sequence_of(&second)), (Some(1), Some(123_456)));
            assert_ne!(first[40..], second[40..]);
            assert_eq!(Events::new(content, 256, 7).make(1), first);
        }
    }

    #[test]
    fn the_index_counts_the_bursts_through() {
        let layout = Layout::new(1000, 3, 256);
        assert_eq!(layout.events() % (3 * BURST), 0);
        let all: Vec<u64> = layout
            .bursts()
            .flat_map(|(stream, first)| (first..first + BURST).map(move |seq| layout.index_of(stream, seq)))
            .collect();
        assert_eq!(all, (0..layout.events()).collect::<Vec<_>>());
    }
}
