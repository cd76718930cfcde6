//! What is handed in to be written, and how it is encoded: small appends side by side in one batch,
//! long ones and those with a key in a batch of their own.

use super::compression::Compression;
use super::index::Stretch;
use super::{Conditions, hold};
use crate::error::{Error, Result};
use crate::format::{
    BATCH_HEADER_LEN, BatchHeader, Codec, Draft, Durability, MAX_BATCH_RECORDS, MAX_BODY_LEN, MAX_KEY_LEN,
    MAX_NAME_LEN, MAX_PAYLOAD_LEN, Records, Site, Target, name_hash,
};
use crate::position::{Position, Seq, StreamId, Time};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Up to which length an append shares a batch with others, and where what is written gets shorter: then it
/// does all the more with its neighbours.
const MAX_LOOSE_LEN: usize = 16 << 10;
const MAX_LOOSE_PACKED_LEN: usize = 32 << 10;
/// Of how many streams it is remembered which sequence comes next.
const MAX_GUESSED: usize = 4 << 10;
/// How long the body of such a batch gets: one checksum and one digest for all of it, which is what
/// whoever wants one of its records has to read.
const MAX_SHARED_LEN: usize = 64 << 10;
const MAX_SHARED_PACKED_LEN: usize = 128 << 10;

/// Records that become durable together or not at all.
#[derive(Debug)]
pub(crate) struct Append<'p> {
    /// At least one.
    pub(crate) drafts: Vec<Draft<'p>>,
    /// What must hold for it. Its key and term become those of the drafts.
    pub(crate) conditions: Conditions,
    /// Whether the stream of the first record must not have ended.
    pub(crate) open: bool,
    /// The place that it had in a queue before: given back when it is taken up.
    pub(crate) place: Option<Box<dyn Queued>>,
    /// Whether nobody waits for it.
    pub(crate) buffered: bool,
}

/// A place in somebody's queue, given back by dropping it.
pub(crate) trait Queued: Debug + Send {}
impl<T: Debug + Send> Queued for T {}

/// An append that waits for its turn.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) conditions: Conditions,
    /// The stream that must not have ended, and the one that ends in here.
    pub(super) must_be_open: Option<StreamId>,
    pub(super) ends: Option<StreamId>,
    pub(super) content: Content,
    pub(super) durability: Durability,
    _place: Option<Box<dyn Queued>>,
}

/// The records of an append.
#[derive(Debug)]
pub(super) enum Content {
    /// To be encoded behind those of others, with at most so many bytes.
    Loose(Vec<Draft<'static>>, usize),
    /// A batch of its own, encoded before anybody's turn.
    Encoded(Box<Encoded>),
}

/// A batch whose body is there, with the sequences that it is thought to get.
#[derive(Debug)]
pub(super) struct Encoded {
    /// How many records it has.
    count: u32,
    parts: Vec<Part>,
    time: Time,
    durability: Durability,
    frame: Frame,
    sums: Sums,
    compression: Arc<Compression>,
    guesses: Arc<Guesses>,
    /// How often it was wrong before what its first stream's sequence was thought to be.
    wrong: u64,
}

/// Records of one stream that stand side by side.
#[derive(Debug)]
struct Part {
    target: Target,
    /// As the first record of its batch had position 0.
    stretch: Stretch,
}

/// The bytes of a batch.
#[derive(Debug)]
pub(super) struct Frame {
    /// Room for its header, and the body.
    plain: Vec<u8>,
    /// The same with the body compressed, where it is stored so.
    packed: Option<Vec<u8>>,
}

/// Checksum and digest of a body.
#[derive(Debug, Clone, Copy)]
struct Sums {
    crc: u32,
    digest: [u8; 32],
}

/// A batch of small appends that is being put together.
#[derive(Debug)]
pub(super) struct Shared {
    base: Time,
    count: u32,
    /// Whether anybody waits for any of it.
    durability: Durability,
    frame: Frame,
    stretches: Vec<Stretch>,
}

/// Which sequences appends that are encoded ahead of their turn are thought to get.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    last: Mutex<BTreeMap<StreamId, Guess>>,
    /// Whether there is any.
    some: AtomicBool,
}

/// What the last record of a stream is thought to be, and how often that was wrong.
#[derive(Debug, Clone, Copy, Default)]
struct Guess {
    last: Seq,
    wrong: u64,
}

impl Waiting {
    /// Takes an append in, whose numbers are within their limits.
    pub(super) fn new(
        mut append: Append<'_>,
        guesses: &Arc<Guesses>,
        compression: &Arc<Compression>,
    ) -> Result<Self> {
        if let Some(first) = append.drafts.first_mut() {
            first.key.clone_from(&append.conditions.key);
        }
        for draft in &mut append.drafts {
            draft.term = append.conditions.term.map(|(term, _)| term);
        }
        check_limits(&append)?;
        let stream = |draft: &Draft<'_>| match draft.target {
            Target::Stream(id) => Some(id),
            Target::Open(_) | Target::Opened => None,
        };
        let must_be_open = append.drafts.first().filter(|_| append.open).and_then(stream);
        let ends = append.drafts.iter().find(|draft| draft.close).and_then(stream);
        let durability = if append.buffered { Durability::Buffered } else { Durability::Durable };
        let len = append.drafts.iter().map(Draft::max_len).sum();
        let max_len = if compression.pays() { MAX_LOOSE_PACKED_LEN } else { MAX_LOOSE_LEN };
        let content = if len <= max_len && append.conditions.key.is_none() {
            guesses.pass(&append.drafts);
            Content::Loose(append.drafts.into_iter().map(Draft::into_owned).collect(), len)
        } else {
            let wrong = guesses.guess(&mut append);
            let encoded = Encoded::new(&append.drafts, durability, compression, (guesses, wrong))?;
            Content::Encoded(Box::new(encoded))
        };
        let conditions = append.conditions;
        Ok(Self { conditions, must_be_open, ends, content, durability, _place: append.place })
    }

    /// The most bytes that it adds to a body, or the body's own.
    pub(super) fn max_len(&self) -> usize {
        match &self.content {
            Content::Loose(_, len) => *len,
            Content::Encoded(encoded) => encoded.frame.body().len(),
        }
    }

    /// How many records it has.
    pub(super) fn count(&self) -> usize {
        match &self.content {
            Content::Loose(drafts, _) => drafts.len(),
            Content::Encoded(encoded) => encoded.count as usize,
        }
    }

    /// The stream of the first record.
    pub(super) fn first_target(&self) -> Option<&Target> {
        match &self.content {
            Content::Loose(drafts, _) => drafts.first().map(|draft| &draft.target),
            Content::Encoded(encoded) => encoded.parts.first().map(|part| &part.target),
        }
    }

    /// The stream of each record.
    pub(super) fn targets(&self) -> Box<dyn Iterator<Item = &Target> + '_> {
        match &self.content {
            Content::Loose(drafts, _) => Box::new(drafts.iter().map(|draft| &draft.target)),
            Content::Encoded(encoded) => Box::new(encoded.targets()),
        }
    }

    /// Gives each record its sequence: `place` answers with that of the first of so many side by side in
    /// one stream. What was encoded with others is encoded anew.
    pub(super) fn place(&mut self, mut place: impl FnMut(&Target, u64) -> Result<Seq>) -> Result<()> {
        match &mut self.content {
            Content::Loose(drafts, _) => {
                for draft in drafts {
                    draft.seq = place(&draft.target, 1)?;
                }
            }
            Content::Encoded(encoded) => {
                let mut changed = false;
                for Part { target, stretch } in &mut encoded.parts {
                    let seq = place(target, stretch.count)?;
                    if stretch.first_seq != seq {
                        if !changed && let Target::Stream(id) = target {
                            encoded.guesses.correct(*id, encoded.wrong, stretch.first_seq, seq);
                        }
                        changed = true;
                        stretch.first_seq = seq;
                    }
                }
                if changed {
                    encoded.encode_anew()?;
                }
            }
        }
        Ok(())
    }
}

impl Part {
    /// Whether a record goes on with it.
    fn is_followed_by(&self, draft: &Draft<'_>) -> bool {
        draft.key.is_none()
            && match (&self.target, &draft.target) {
                (Target::Stream(id), Target::Stream(next)) => id == next,
                (Target::Open(_) | Target::Opened, Target::Opened) => true,
                _ => false,
            }
    }
}

impl Encoded {
    fn new(
        drafts: &[Draft<'_>],
        durability: Durability,
        compression: &Arc<Compression>,
        (guesses, wrong): (&Arc<Guesses>, u64),
    ) -> Result<Self> {
        let time = drafts.first().map_or(Time::default(), |draft| draft.time);
        let mut parts: Vec<Part> = Vec::new();
        for (nth, draft) in drafts.iter().enumerate() {
            let stretch = stretch_of(draft, Position(nth as u64), StreamId(0));
            match parts.last_mut().filter(|last| last.is_followed_by(draft)) {
                Some(last) => last.stretch.extend(&stretch),
                None => parts.push(Part { target: draft.target.clone(), stretch }),
            }
        }
        let mut frame = Frame::of(drafts, time);
        let len = frame.body().len();
        if len > MAX_BODY_LEN {
            let message = format!("a batch of {len} bytes is over the limit of {MAX_BODY_LEN}");
            return Err(Error::misuse(message));
        }
        frame.pack(count(drafts.len()), time, compression);
        let sums = frame.sums();
        let (compression, guesses) = (Arc::clone(compression), Arc::clone(guesses));
        let count = count(drafts.len());
        Ok(Self { count, parts, time, durability, frame, sums, compression, guesses, wrong })
    }

    /// The stream of each record.
    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.parts.iter().flat_map(|Part { target, stretch }| {
            let rest = if let Target::Open(_) = target { &Target::Opened } else { target };
            (0..stretch.count).map(move |nth| if nth == 0 { target } else { rest })
        })
    }

    /// The sequence of each record.
    fn seqs(&self) -> impl Iterator<Item = Seq> {
        self.parts
            .iter()
            .flat_map(|part| (0..part.stretch.count).map(|nth| Seq(part.stretch.first_seq.0 + nth)))
    }

    /// The same records with the sequences that now stand in `parts`.
    fn encode_anew(&mut self) -> Result<()> {
        let header = self.header(Position(u64::MAX >> 1), Position::ZERO);
        let mut drafts = Vec::with_capacity(self.count as usize);
        // Where it will stand is not known yet. No record may name a stream above its own position,
        // so it is read as if it stood above all of them.
        let heads = self.targets().zip(self.seqs());
        for (record, (target, seq)) in Records::new(&header, self.frame.body()).zip(heads) {
            let record = record
                .map_err(|flaw| Error::misuse(format!("a batch cannot be read back: {}", flaw.describe())))?;
            drafts.push(Draft {
                target: target.clone(),
                seq,
                kind: record.kind,
                version: record.version,
                close: record.closes,
                more: record.more,
                time: record.time,
                created: Some(record.created),
                key: record.key.map(<[u8]>::to_vec),
                term: record.term,
                payload: record.payload.into(),
            });
        }
        let mut frame = Frame::of(&drafts, self.time);
        frame.pack(count(drafts.len()), self.time, &self.compression);
        (self.sums, self.frame) = (frame.sums(), frame);
        Ok(())
    }

    /// Its header, but for the chain hash.
    pub(super) fn header(&self, first_position: Position, durable_upto: Position) -> BatchHeader {
        let durability = self.durability;
        let header = self.frame.header(self.sums, self.count, self.time, first_position, durable_upto);
        BatchHeader { durability, ..header }
    }

    pub(super) fn body(&self) -> &[u8] {
        self.frame.body()
    }

    /// Its bytes, and what the index wants to know of a batch that begins at this position.
    pub(super) fn into_parts(self, first: Position) -> (Frame, Vec<Stretch>) {
        let mut opened = StreamId(0);
        let place = |Part { target, stretch }| {
            let first_position = Position(first.0 + stretch.first_position.0);
            let stream = resolve(&target, first_position, &mut opened);
            Stretch { stream, first_position, ..stretch }
        };
        (self.frame, self.parts.into_iter().map(place).collect())
    }
}

impl Shared {
    /// A batch whose first record has this time, in a buffer that is not needed any more.
    pub(super) fn new(base: Time, buffer: Vec<u8>) -> Self {
        let (durability, stretches) = (Durability::Buffered, Vec::new());
        Self { base, count: 0, durability, frame: Frame::new(buffer), stretches }
    }

    /// Whether so much more fits.
    pub(super) fn takes(&self, len: usize, count: usize, compression: &Compression) -> bool {
        let max_len = if compression.pays() { MAX_SHARED_PACKED_LEN } else { MAX_SHARED_LEN };
        let (len, count) = (self.frame.body().len() + len, self.count as usize + count);
        len <= max_len && count <= MAX_BATCH_RECORDS as usize
    }

    /// Puts records at the end, the first of which gets this position.
    pub(super) fn add(&mut self, drafts: &[Draft<'_>], first: Position, durability: Durability) {
        if durability == Durability::Durable {
            self.durability = durability;
        }
        let mut opened = StreamId(0);
        for (draft, position) in drafts.iter().zip((first.0..).map(Position)) {
            draft.encode(self.base, &mut self.frame.plain);
            let stream = resolve(&draft.target, position, &mut opened);
            stretch_of(draft, position, stream).put(&mut self.stretches);
        }
        self.count += count(drafts.len());
    }

    /// How many records it has.
    pub(super) fn count(&self) -> u64 {
        u64::from(self.count)
    }

    /// The most bytes of header and body.
    pub(super) fn len(&self) -> u64 {
        self.frame.len()
    }

    /// The batch, whose header lacks the chain hash.
    pub(super) fn close(
        mut self,
        first_position: Position,
        durable_upto: Position,
        compression: &Compression,
    ) -> (BatchHeader, Frame, Vec<Stretch>) {
        self.frame.pack(self.count, self.base, compression);
        let header =
            self.frame.header(self.frame.sums(), self.count, self.base, first_position, durable_upto);
        (BatchHeader { durability: self.durability, ..header }, self.frame, self.stretches)
    }
}

impl Frame {
    fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.resize(BATCH_HEADER_LEN, 0);
        Self { plain: buffer, packed: None }
    }

    fn of(drafts: &[Draft<'_>], base: Time) -> Self {
        let len = drafts.iter().map(Draft::max_len).sum::<usize>();
        let mut frame = Self::new(Vec::with_capacity(BATCH_HEADER_LEN + len));
        drafts.iter().for_each(|draft| draft.encode(base, &mut frame.plain));
        frame
    }

    /// The body, decoded.
    pub(super) fn body(&self) -> &[u8] {
        &self.plain[BATCH_HEADER_LEN..]
    }

    /// Compresses the body where that pays.
    fn pack(&mut self, count: u32, time: Time, compression: &Compression) {
        self.packed = compression.pack(&mut self.plain, count, time);
    }

    /// Header and body as stored.
    fn stored(&self) -> &[u8] {
        self.packed.as_ref().unwrap_or(&self.plain)
    }

    /// Bytes of header and body as stored.
    pub(super) fn len(&self) -> u64 {
        self.stored().len() as u64
    }

    /// All of it as stored, with its header for the place where it will stand.
    pub(super) fn sealed(&mut self, header: &BatchHeader, site: &Site, offset: u64) -> &[u8] {
        let stored = self.packed.as_mut().unwrap_or(&mut self.plain);
        stored[..BATCH_HEADER_LEN].copy_from_slice(&header.encode(site, offset));
        stored
    }

    /// The buffer, to be used again.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.plain
    }

    fn sums(&self) -> Sums {
        let crc = crc32fast::hash(&self.stored()[BATCH_HEADER_LEN..]);
        Sums { crc, digest: *blake3::hash(self.body()).as_bytes() }
    }

    fn header(
        &self,
        sums: Sums,
        count: u32,
        time: Time,
        first_position: Position,
        durable_upto: Position,
    ) -> BatchHeader {
        BatchHeader {
            codec: if self.packed.is_some() { Codec::Lz4 } else { Codec::None },
            durability: Durability::Durable,
            // Within their limit, as they were when it was handed in.
            body_len: u32::try_from(self.stored().len() - BATCH_HEADER_LEN).unwrap_or(u32::MAX),
            decoded_len: u32::try_from(self.body().len()).unwrap_or(u32::MAX),
            count,
            body_crc: sums.crc,
            first_position,
            time,
            durable_upto,
            body_digest: sums.digest,
            chain: [0; 32],
        }
    }
}

impl Guesses {
    /// Gives records the sequences they will have if nobody else writes to their streams. Answers how often
    /// it was wrong before for the first of them.
    fn guess(&self, append: &mut Append<'_>) -> u64 {
        let mut guesses = hold(&self.last);
        if guesses.len() > MAX_GUESSED {
            guesses.clear();
        }
        let mut wrong = None;
        self.some.store(true, Ordering::Relaxed);
        let mut opened = Seq::ZERO;
        for (nth, draft) in append.drafts.iter_mut().enumerate() {
            let last = match &draft.target {
                Target::Open(_) => {
                    opened = Seq::ZERO;
                    &mut opened
                }
                Target::Opened => &mut opened,
                Target::Stream(id) => {
                    let guess = guesses.entry(*id).or_default();
                    wrong.get_or_insert(guess.wrong);
                    &mut guess.last
                }
            };
            if let Some(expected) = append.conditions.expected.filter(|_| nth == 0) {
                *last = Seq(expected.0.saturating_sub(1));
            }
            *last = Seq(last.0.saturating_add(1));
            draft.seq = *last;
        }
        wrong.unwrap_or_default()
    }

    /// It was thought to be one sequence, and is another: so are those that are thought of from here on. Only
    /// once for all that were thought of before.
    fn correct(&self, id: StreamId, wrong: u64, thought: Seq, seq: Seq) {
        if let Some(guess) = hold(&self.last).get_mut(&id).filter(|guess| guess.wrong == wrong) {
            guess.last = Seq(guess.last.0.wrapping_sub(thought.0).wrapping_add(seq.0));
            guess.wrong += 1;
        }
    }

    /// Records that get theirs later go by.
    fn pass(&self, drafts: &[Draft<'_>]) {
        if !self.some.load(Ordering::Relaxed) {
            return;
        }
        let mut guesses = hold(&self.last);
        for draft in drafts {
            if let Target::Stream(id) = draft.target
                && let Some(guess) = guesses.get_mut(&id)
            {
                guess.last = Seq(guess.last.0.saturating_add(1));
            }
        }
    }

    /// What was refused gets none.
    pub(super) fn forget(&self) {
        hold(&self.last).clear();
    }
}

/// What the index wants to know of a record.
fn stretch_of(draft: &Draft<'_>, first_position: Position, stream: StreamId) -> Stretch {
    Stretch {
        stream,
        opens: if let Target::Open(name) = &draft.target { Some(name_hash(name)) } else { None },
        key: draft.key.as_deref().map(name_hash),
        first_position,
        first_seq: draft.seq,
        count: 1,
        times: (draft.time, draft.time),
        term: draft.term.unwrap_or(0),
        closes: draft.close,
    }
}

/// The stream of a record at this position, in an append that has opened that one before.
fn resolve(target: &Target, position: Position, opened: &mut StreamId) -> StreamId {
    match target {
        Target::Open(_) => {
            *opened = StreamId(position.0);
            *opened
        }
        Target::Opened => *opened,
        Target::Stream(id) => *id,
    }
}

/// How many records there are, within their limit.
fn count(records: usize) -> u32 {
    u32::try_from(records).unwrap_or(u32::MAX)
}

fn check_limits(append: &Append<'_>) -> Result<()> {
    let refuse = |message: String| Err(Error::misuse(message));
    if append.drafts.is_empty() {
        return refuse("an append needs at least one record".to_owned());
    }
    if append.drafts.len() > MAX_BATCH_RECORDS as usize {
        return refuse(format!("{} records are over the limit of {MAX_BATCH_RECORDS}", append.drafts.len()));
    }
    for draft in &append.drafts {
        let len = draft.payload.len();
        if len > MAX_PAYLOAD_LEN {
            return refuse(format!("a record of {len} bytes is over the limit of {MAX_PAYLOAD_LEN}"));
        }
        if let Target::Open(name) = &draft.target
            && name.len() > MAX_NAME_LEN
        {
            return refuse(format!(
                "a stream's name of {} bytes is over the limit of {MAX_NAME_LEN}",
                name.len()
            ));
        }
        if draft.key.as_ref().is_some_and(|key| key.is_empty() || key.len() > MAX_KEY_LEN) {
            return refuse(format!("an idempotency key has 1 to {MAX_KEY_LEN} bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(lens: &[usize]) -> Append<'static> {
        let draft = |len: &usize| Draft {
            target: Target::Stream(StreamId(7)),
            seq: Seq::ZERO,
            kind: 3,
            version: 1,
            close: false,
            more: false,
            time: Time(5),
            created: None,
            key: None,
            term: None,
            payload: vec![1; *len].into(),
        };
        let drafts = lens.iter().map(draft).collect();
        Append { drafts, conditions: Conditions::none(), open: false, place: None, buffered: false }
    }

    /// A stream whose sequences were not known is encoded a second time once, however many appends were
    /// handed in before that showed.
    #[test]
    fn a_wrong_guess_is_made_once() {
        let (guesses, compression) = (Arc::default(), Arc::new(Compression::new(u64::MAX)));
        let hand_in = |lens: &[usize]| Waiting::new(append(lens), &guesses, &compression).unwrap();
        let mut last = 40;
        let mut take_up = |waiting: &mut Waiting| {
            let mut wrong = 0;
            let Content::Encoded(encoded) = &waiting.content else { panic!("not encoded ahead") };
            let thought: Vec<_> = encoded.seqs().collect();
            waiting
                .place(|_, count| {
                    let first = last + 1;
                    last += count;
                    wrong += thought.iter().zip(first..).filter(|(thought, seq)| thought.0 != *seq).count();
                    Ok(Seq(first))
                })
                .unwrap();
            wrong
        };
        let mut queue: Vec<_> = (0..5).map(|_| hand_in(&[20_000, 20_000])).collect();
        assert!(queue.iter_mut().all(|waiting| take_up(waiting) == 2), "handed in before it was known");
        for _ in 0..5 {
            assert_eq!(take_up(&mut hand_in(&[20_000, 20_000])), 0);
        }
        // Somebody else writes to it in between.
        drop(hand_in(&[30_000]));
        let mut queue: Vec<_> = (0..5).map(|_| hand_in(&[20_000])).collect();
        assert!(queue.iter_mut().all(|waiting| take_up(waiting) == 1));
        assert_eq!(take_up(&mut hand_in(&[20_000])), 0);
    }
}
