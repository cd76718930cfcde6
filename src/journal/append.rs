//! What is handed in to be written, encoded at once with the sequences that its records are thought to get:
//! small appends side by side in one batch, long ones and those with a key in a batch of their own.

use super::compression::Compression;
use super::index::Stretch;
use super::{Conditions, hold};
use crate::error::{Error, Result};
use crate::format::{
    BATCH_HEADER_LEN, BatchHeader, Codec, Draft, Durability, MAX_BATCH_RECORDS, MAX_BODY_LEN, MAX_KEY_LEN,
    MAX_NAME_LEN, MAX_PAYLOAD_LEN, Records, Site, Target, name_hash,
};
use crate::position::{Position, Seq, StreamId, Time};
use std::fmt::Debug;
use std::sync::Mutex;

/// Up to which length an append shares a batch with others, and where what is written gets shorter: then it
/// does all the more with its neighbours.
const MAX_SMALL_LEN: usize = 16 << 10;
const MAX_SMALL_PACKED_LEN: usize = 32 << 10;
/// How long the body of such a batch gets: one checksum and one digest for all of it, which is what
/// whoever wants one of its records has to read.
const MAX_SHARED_LEN: usize = 64 << 10;
const MAX_SHARED_PACKED_LEN: usize = 128 << 10;
/// By how many bytes a record gets longer at most when it gets another sequence.
const MAX_SEQ_GROWTH: usize = 9;
/// Of how many streams it is remembered which sequence comes next.
const MAX_GUESSED: usize = 64 << 10;
/// How many bytes of buffers are kept, as much as a flood has on its way at a time; and how long each is at
/// least.
const MAX_KEPT_LEN: usize = 8 << 20;
const MIN_KEPT_LEN: usize = 4 << 10;

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

/// What was handed in since the last group was taken up, in order.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    batches: Vec<Prepared>,
    /// How many appends there are in them.
    count: usize,
    /// Bytes of memory that they take.
    len: usize,
}

/// What those who hand in have in common, and whoever commits.
#[derive(Debug)]
pub(super) struct Encoder {
    pub(super) guesses: Guesses,
    compression: Compression,
    buffers: Buffers,
}

/// Buffers that are not needed any more: new ones would have to be mapped, page by page.
#[derive(Debug, Default)]
struct Buffers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    /// What they have room for.
    len: usize,
}

/// An append within its limits, about to be handed in.
#[derive(Debug)]
pub(super) enum Ready<'p> {
    /// To be encoded behind those of others, with at most so many bytes.
    Small(Append<'p>, usize),
    /// A batch of its own, encoded already: others may hand in meanwhile.
    Alone(Box<Prepared>),
}

/// A batch whose body is there, with the sequences that its records are thought to get.
#[derive(Debug)]
pub(super) struct Prepared {
    /// That of the first record.
    time: Time,
    /// How many records it has.
    count: u32,
    /// One append behind the other, and the records of each.
    waiting: Vec<Waiting>,
    parts: Vec<Part>,
    frame: Frame,
    /// Known ahead where nothing is put behind it any more.
    sums: Option<Sums>,
}

/// An append in a batch, that waits for its turn.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) conditions: Conditions,
    /// The stream that must not have ended, and the one that ends in here.
    pub(super) must_be_open: Option<StreamId>,
    pub(super) ends: Option<StreamId>,
    durability: Durability,
    /// How many of the batch's parts are its own, and how many bytes of its body.
    parts: usize,
    len: usize,
    _place: Option<Box<dyn Queued>>,
}

/// Records of one stream that stand side by side in an append.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) target: Target,
    /// Without its place.
    stretch: Stretch,
    /// How often it was wrong before what the sequence was thought to be.
    wrong: u64,
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

/// Which sequences appends that are encoded ahead of their turn are thought to get. Asked for each append, by
/// all who hand in, one after the other.
#[derive(Debug, Default)]
pub(super) struct Guesses(Mutex<Guessed>);

#[expect(clippy::disallowed_types, reason = "its order shows nowhere: a guess that is wrong costs time")]
type Guessed = std::collections::HashMap<StreamId, Guess>;

/// What the last record of a stream is thought to be, and how often that was wrong.
#[derive(Debug, Clone, Copy, Default)]
struct Guess {
    last: Seq,
    wrong: u64,
}

impl Arrivals {
    /// Puts an append behind the others.
    pub(super) fn add(&mut self, append: Ready<'_>, encoder: &Encoder) {
        self.count += 1;
        match append {
            Ready::Alone(batch) => {
                self.len += batch.memory_len();
                self.batches.push(*batch);
            }
            Ready::Small(append, len) => {
                let fits = |last: &Prepared| last.takes(len, append.drafts.len(), encoder);
                if !self.batches.last().is_some_and(fits) {
                    self.batches.push(Prepared::new(append.time(), encoder.buffers.any()));
                }
                if let Some(batch) = self.batches.last_mut() {
                    let before = batch.memory_len();
                    batch.add(append, &encoder.guesses);
                    self.len += batch.memory_len() - before;
                }
            }
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of memory that all of it takes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes all of it out, whether it is gone through or not.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Prepared> {
        (self.count, self.len) = (0, 0);
        self.batches.drain(..)
    }
}

impl Encoder {
    /// One that compresses batches from this length on.
    pub(super) fn new(compress_from: u64) -> Self {
        let compression = Compression::new(compress_from);
        Self { guesses: Guesses::default(), compression, buffers: Buffers::default() }
    }

    /// Takes the buffer of a batch back.
    pub(super) fn reuse(&self, frame: Frame) {
        self.buffers.put(frame.plain);
        frame.packed.into_iter().for_each(|packed| self.buffers.put(packed));
    }
}

impl Buffers {
    /// An empty one with room for a batch header and so many bytes.
    fn take(&self, len: usize) -> Vec<u8> {
        let len = BATCH_HEADER_LEN + len;
        let mut kept = hold(&self.0);
        let found = kept.buffers.iter().rposition(|buffer| buffer.capacity() >= len);
        found.map_or_else(|| Vec::with_capacity(len), |nth| kept.take(nth))
    }

    /// An empty one, which may have to grow.
    fn any(&self) -> Vec<u8> {
        let mut kept = hold(&self.0);
        let last = kept.buffers.len().checked_sub(1);
        last.map_or_else(Vec::new, |nth| kept.take(nth))
    }

    fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut kept = hold(&self.0);
        if buffer.capacity() >= MIN_KEPT_LEN && kept.len + buffer.capacity() <= MAX_KEPT_LEN {
            kept.len += buffer.capacity();
            kept.buffers.push(buffer);
        }
    }
}

impl Kept {
    fn take(&mut self, nth: usize) -> Vec<u8> {
        let buffer = self.buffers.swap_remove(nth);
        self.len -= buffer.capacity();
        buffer
    }
}

impl Append<'_> {
    /// When its first record was appended.
    fn time(&self) -> Time {
        self.drafts.first().map_or_else(Time::default, |draft| draft.time)
    }

    /// What is to be seen to when its turn comes. Its records are in so many parts, and so many bytes.
    fn into_waiting(self, parts: usize, len: usize) -> Waiting {
        let stream = |draft: &Draft<'_>| match draft.target {
            Target::Stream(id) => Some(id),
            Target::Open(_) | Target::Opened => None,
        };
        Waiting {
            must_be_open: self.drafts.first().filter(|_| self.open).and_then(stream),
            ends: self.drafts.iter().find(|draft| draft.close).and_then(stream),
            durability: if self.buffered { Durability::Buffered } else { Durability::Durable },
            conditions: self.conditions,
            parts,
            len,
            _place: self.place,
        }
    }
}

impl<'p> Ready<'p> {
    /// Takes an append in. What is long is encoded here.
    pub(super) fn new(mut append: Append<'p>, encoder: &Encoder) -> Result<Self> {
        if let Some(first) = append.drafts.first_mut() {
            first.key.clone_from(&append.conditions.key);
        }
        if let Some((term, _)) = append.conditions.term {
            append.drafts.iter_mut().for_each(|draft| draft.term = Some(term));
        }
        let len = check_limits(&append)?;
        let max_len = if encoder.compression.pays() { MAX_SMALL_PACKED_LEN } else { MAX_SMALL_LEN };
        if len <= max_len && append.conditions.key.is_none() {
            return Ok(Self::Small(append, len));
        }
        let mut batch = Prepared::new(append.time(), encoder.buffers.take(len));
        batch.add(append, &encoder.guesses);
        // Its sequences may turn out to be longer.
        let len = batch.body().len() + MAX_SEQ_GROWTH * batch.count as usize;
        if len > MAX_BODY_LEN {
            let message = format!("a batch of up to {len} bytes is over the limit of {MAX_BODY_LEN}");
            return Err(Error::misuse(message));
        }
        batch.finish(encoder);
        Ok(Self::Alone(Box::new(batch)))
    }
}

impl Prepared {
    /// An empty one, whose first record has this time.
    fn new(time: Time, buffer: Vec<u8>) -> Self {
        let frame = Frame::new(buffer);
        Self { time, count: 0, waiting: Vec::new(), parts: Vec::new(), frame, sums: None }
    }

    /// Whether so much more fits.
    fn takes(&self, len: usize, count: usize, encoder: &Encoder) -> bool {
        let max_len = if encoder.compression.pays() { MAX_SHARED_PACKED_LEN } else { MAX_SHARED_LEN };
        let (len, count) = (self.frame.body().len() + len, self.count as usize + count);
        self.sums.is_none() && len <= max_len && count <= MAX_BATCH_RECORDS as usize
    }

    /// Puts an append at the end.
    fn add(&mut self, mut append: Append<'_>, guesses: &Guesses) {
        let (parts, len) = (self.parts.len(), self.frame.plain.len());
        guesses.guess(&mut append, &mut self.parts);
        append.drafts.iter().for_each(|draft| draft.encode(self.time, &mut self.frame.plain));
        self.count += count(append.drafts.len());
        let (parts, len) = (self.parts.len() - parts, self.frame.plain.len() - len);
        self.waiting.push(append.into_waiting(parts, len));
    }

    /// Bytes of memory that it takes.
    fn memory_len(&self) -> usize {
        let (waiting, parts) = (size_of_val(&*self.waiting), size_of_val(&*self.parts));
        size_of::<Self>()
            + waiting
            + parts
            + self.frame.plain.len()
            + self.frame.packed.as_ref().map_or(0, Vec::len)
    }

    /// Nothing more is put at the end. As [long](Self::len) as it is now it stays.
    pub(super) fn finish(&mut self, encoder: &Encoder) {
        if self.sums.is_none() {
            self.frame.pack(self.count, self.time, encoder);
            self.sums = Some(self.frame.sums());
        }
    }

    /// How many records it has.
    pub(super) fn count(&self) -> u64 {
        u64::from(self.count)
    }

    /// Bytes of header and body as stored.
    pub(super) fn len(&self) -> u64 {
        self.frame.stored().len() as u64
    }

    /// The body, decoded.
    pub(super) fn body(&self) -> &[u8] {
        self.frame.body()
    }

    /// The appends in it.
    pub(super) fn waiting(&self) -> &[Waiting] {
        &self.waiting
    }

    /// The key of the append that has this batch for itself.
    pub(super) fn key(&self) -> Option<&Vec<u8>> {
        self.waiting.first().and_then(|first| first.conditions.key.as_ref())
    }

    /// Each append with its records.
    pub(super) fn appends(&mut self) -> impl Iterator<Item = (&Waiting, &mut [Part])> {
        let mut rest = &mut *self.parts;
        self.waiting.iter().map(move |waiting| {
            let own;
            (own, rest) = std::mem::take(&mut rest).split_at_mut(waiting.parts);
            (waiting, own)
        })
    }

    /// How many records each append has, and the stream of its first.
    pub(super) fn extents(&self) -> impl Iterator<Item = (u64, Option<&Target>)> {
        let mut rest = &*self.parts;
        self.waiting.iter().map(move |waiting| {
            let own;
            (own, rest) = rest.split_at(waiting.parts);
            (own.iter().map(Part::count).sum(), own.first().map(|part| &part.target))
        })
    }

    /// The stream of each record.
    pub(super) fn targets(&self) -> impl Iterator<Item = &Target> {
        self.parts.iter().flat_map(Part::targets)
    }

    /// The same with the sequences that its parts have now, and without those appends that are not kept. What
    /// those hold is not looked at: it may name streams that cannot be.
    pub(super) fn encode_anew(&mut self, kept: &[bool], encoder: &Encoder) -> Result<()> {
        let alone = self.waiting.len() == 1;
        let frame = Frame::new(encoder.buffers.take(self.body().len()));
        let old = std::mem::replace(&mut self.frame, frame);
        let (mut rest, mut drafts) = (old.body(), Vec::new());
        let (mut waiting, mut parts) = (Vec::new(), Vec::new());
        let mut old_parts = std::mem::take(&mut self.parts).into_iter();
        for (append, kept) in std::mem::take(&mut self.waiting).into_iter().zip(kept) {
            // One that has the body for itself may have been compressed, and is as long as that is.
            let len = if alone { rest.len() } else { append.len };
            let own;
            (own, rest) = rest.split_at_checked(len).unwrap_or((rest, &[]));
            let own_parts: Vec<_> = old_parts.by_ref().take(append.parts).collect();
            if !kept {
                continue;
            }
            // Where it will stand is not known yet. No record may name a stream above its own position,
            // so it is read as if it stood above all of them.
            let records = Records::part(self.time, Position(u64::MAX >> 1), None, own);
            let heads = own_parts.iter().flat_map(|part| part.targets().zip(part.seqs()));
            for (record, (target, seq)) in records.zip(heads) {
                let record = record.map_err(|flaw| {
                    Error::misuse(format!("a batch cannot be read back: {}", flaw.describe()))
                })?;
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
            parts.extend(own_parts);
            waiting.push(append);
        }
        self.time = drafts.first().map_or(self.time, |draft| draft.time);
        self.count = count(drafts.len());
        drafts.iter().for_each(|draft| draft.encode(self.time, &mut self.frame.plain));
        (self.waiting, self.parts, self.sums) = (waiting, parts, None);
        drop(drafts);
        encoder.reuse(old);
        Ok(())
    }

    /// Its header, but for the chain hash.
    pub(super) fn header(&self, first_position: Position, durable_upto: Position) -> BatchHeader {
        let sums = self.sums.unwrap_or(Sums { crc: 0, digest: [0; 32] });
        let waited_for = self.waiting.iter().any(|append| append.durability == Durability::Durable);
        BatchHeader {
            codec: if self.frame.packed.is_some() { Codec::Lz4 } else { Codec::None },
            durability: if waited_for { Durability::Durable } else { Durability::Buffered },
            // Within their limit, as they were when it was handed in.
            body_len: u32::try_from(self.frame.stored().len() - BATCH_HEADER_LEN).unwrap_or(u32::MAX),
            decoded_len: u32::try_from(self.frame.body().len()).unwrap_or(u32::MAX),
            count: self.count,
            body_crc: sums.crc,
            first_position,
            time: self.time,
            durable_upto,
            body_digest: sums.digest,
            chain: [0; 32],
        }
    }

    /// The batch for this place: its header, which lacks the chain hash, its bytes, and what the index wants
    /// to know of it.
    pub(super) fn close(
        mut self,
        first_position: Position,
        durable_upto: Position,
        encoder: &Encoder,
    ) -> (BatchHeader, Frame, Vec<Stretch>) {
        self.finish(encoder);
        let header = self.header(first_position, durable_upto);
        let (mut position, mut opened) = (first_position, StreamId(0));
        let mut stretches = Vec::with_capacity(self.parts.len());
        for Part { target, stretch, .. } in self.parts {
            let stream = resolve(&target, position, &mut opened);
            Stretch { stream, first_position: position, ..stretch }.put(&mut stretches);
            position = Position(position.0 + stretch.count);
        }
        (header, self.frame, stretches)
    }
}

impl Part {
    /// The record, which is the first of its part.
    fn of(draft: &Draft<'_>, wrong: u64) -> Self {
        let stretch = stretch_of(draft, Position::ZERO, StreamId(0));
        Self { target: draft.target.clone(), stretch, wrong }
    }

    /// Whether a record goes on with it.
    fn is_followed_by(&self, draft: &Draft<'_>) -> bool {
        draft.key.is_none()
            && match (&self.target, &draft.target) {
                (Target::Stream(id), Target::Stream(next)) => id == next,
                (Target::Open(_) | Target::Opened, Target::Opened) => true,
                _ => false,
            }
    }

    /// How many records it has.
    pub(super) fn count(&self) -> u64 {
        self.stretch.count
    }

    /// Its stream, where that was opened before.
    pub(super) fn stream(&self) -> Option<StreamId> {
        if let Target::Stream(id) = self.target { Some(id) } else { None }
    }

    /// The stream of each record.
    fn targets(&self) -> impl Iterator<Item = &Target> {
        let rest = if let Target::Open(_) = self.target { &Target::Opened } else { &self.target };
        (0..self.stretch.count).map(move |nth| if nth == 0 { &self.target } else { rest })
    }

    /// The sequence of each record.
    fn seqs(&self) -> impl Iterator<Item = Seq> {
        (0..self.stretch.count).map(|nth| Seq(self.stretch.first_seq.0 + nth))
    }

    /// It is not written: whoever comes behind it in its stream gets this sequence.
    pub(super) fn give_back(&self, next: Seq, guesses: &Guesses) {
        if let Target::Stream(id) = self.target {
            let behind = Seq(self.stretch.first_seq.0.wrapping_add(self.stretch.count));
            guesses.correct(id, self.wrong, behind, next);
        }
    }

    /// Gives its first record this sequence. Answers whether it was thought to get another one: then the
    /// batch has to be encoded anew.
    pub(super) fn place(&mut self, seq: Seq, guesses: &Guesses) -> bool {
        let thought = std::mem::replace(&mut self.stretch.first_seq, seq);
        if let Target::Stream(id) = self.target
            && thought != seq
        {
            guesses.correct(id, self.wrong, thought, seq);
        }
        thought != seq
    }
}

impl Frame {
    fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.resize(BATCH_HEADER_LEN, 0);
        Self { plain: buffer, packed: None }
    }

    /// The body, decoded.
    pub(super) fn body(&self) -> &[u8] {
        &self.plain[BATCH_HEADER_LEN..]
    }

    /// Compresses the body where that pays.
    fn pack(&mut self, count: u32, time: Time, encoder: &Encoder) {
        if let Some((packed, plain)) = encoder.compression.pack(&self.plain, count, time) {
            self.packed = Some(packed);
            encoder.buffers.put(std::mem::replace(&mut self.plain, plain));
        }
    }

    /// Header and body as stored.
    fn stored(&self) -> &[u8] {
        self.packed.as_ref().unwrap_or(&self.plain)
    }

    /// All of it as stored, with its header for the place where it will stand.
    pub(super) fn sealed(&mut self, header: &BatchHeader, site: &Site, offset: u64) -> &[u8] {
        let stored = self.packed.as_mut().unwrap_or(&mut self.plain);
        stored[..BATCH_HEADER_LEN].copy_from_slice(&header.encode(site, offset));
        stored
    }

    fn sums(&self) -> Sums {
        let crc = crc32fast::hash(&self.stored()[BATCH_HEADER_LEN..]);
        Sums { crc, digest: *blake3::hash(self.body()).as_bytes() }
    }
}

impl Guesses {
    /// Gives records the sequences they will have if nobody else writes to their streams, and puts them behind
    /// `parts`.
    fn guess(&self, append: &mut Append<'_>, parts: &mut Vec<Part>) {
        let mut guesses = hold(&self.0);
        if guesses.len() > MAX_GUESSED {
            // Any half of them: they are learnt anew, each with one batch that is encoded twice.
            let mut stays = false;
            guesses.retain(|_, _| {
                stays = !stays;
                stays
            });
        }
        let before = parts.len();
        let mut opened = Guess::default();
        for (nth, draft) in append.drafts.iter_mut().enumerate() {
            let guess = match &draft.target {
                Target::Open(_) => {
                    opened = Guess::default();
                    &mut opened
                }
                Target::Opened => &mut opened,
                Target::Stream(id) => guesses.entry(*id).or_default(),
            };
            let goes_on = matches!(draft.target, Target::Stream(_));
            if let Some(expected) = append.conditions.expected.filter(|_| nth == 0 && goes_on) {
                guess.last = Seq(expected.0.saturating_sub(1));
            }
            guess.last = Seq(guess.last.0.saturating_add(1));
            draft.seq = guess.last;
            let wrong = guess.wrong;
            match parts
                .get_mut(before..)
                .and_then(<[Part]>::last_mut)
                .filter(|part| part.is_followed_by(draft))
            {
                Some(part) => part.stretch.extend(&stretch_of(draft, Position::ZERO, StreamId(0))),
                None => parts.push(Part::of(draft, wrong)),
            }
        }
    }

    /// It was thought to be one sequence, and is another: so are those that are thought of from here on. Only
    /// once for all that were thought of before.
    fn correct(&self, id: StreamId, wrong: u64, thought: Seq, seq: Seq) {
        if let Some(guess) = hold(&self.0).get_mut(&id).filter(|guess| guess.wrong == wrong) {
            guess.last = Seq(guess.last.0.wrapping_sub(thought.0).wrapping_add(seq.0));
            guess.wrong += 1;
        }
    }

    /// A stream is known from its beginning.
    pub(super) fn learn(&self, id: StreamId, last: Seq) {
        hold(&self.0).insert(id, Guess { last, wrong: 0 });
    }

    /// Nothing more is expected of a stream.
    pub(super) fn forget(&self, id: StreamId) {
        hold(&self.0).remove(&id);
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

/// Refuses what could not be read again. Answers with the most bytes that its records take in a body.
fn check_limits(append: &Append<'_>) -> Result<usize> {
    let refuse = |message: String| Err(Error::misuse(message));
    if append.drafts.is_empty() {
        return refuse("an append needs at least one record".to_owned());
    }
    if append.drafts.len() > MAX_BATCH_RECORDS as usize {
        return refuse(format!("{} records are over the limit of {MAX_BATCH_RECORDS}", append.drafts.len()));
    }
    let mut all = 0;
    for draft in &append.drafts {
        all += draft.max_len();
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
    Ok(all)
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
        let encoder = Encoder::new(u64::MAX);
        let hand_in = |lens: &[usize]| {
            let mut arrivals = Arrivals::default();
            arrivals.add(Ready::new(append(lens), &encoder).unwrap(), &encoder);
            arrivals.take().next().unwrap()
        };
        let mut last = 40;
        let mut take_up = |mut batch: Prepared| {
            let mut wrong = false;
            for (_, parts) in batch.appends() {
                for part in parts {
                    wrong |= part.place(Seq(last + 1), &encoder.guesses);
                    last += part.count();
                }
            }
            wrong
        };
        for len in [20_000, 20] {
            let queue: Vec<_> = (0..5).map(|_| hand_in(&[len, len])).collect();
            assert!(queue.into_iter().all(&mut take_up), "handed in before it was known");
            for _ in 0..5 {
                assert!(!take_up(hand_in(&[len, len])));
            }
            // Somebody else writes to it in between.
            drop(hand_in(&[30]));
            let queue: Vec<_> = (0..5).map(|_| hand_in(&[len])).collect();
            assert!(queue.into_iter().all(&mut take_up));
            assert!(!take_up(hand_in(&[len])));
            encoder.guesses.forget(StreamId(7));
        }
    }

    /// What an append that is not written was thought to take is for those who come behind it.
    #[test]
    fn what_is_given_back_is_thought_of_for_the_next() {
        let encoder = Encoder::new(u64::MAX);
        let hand_in = || {
            let mut arrivals = Arrivals::default();
            arrivals.add(Ready::new(append(&[9, 9]), &encoder).unwrap(), &encoder);
            arrivals.take().next().unwrap()
        };
        let place = |mut batch: Prepared, seq| {
            batch.appends().any(|(_, parts)| parts.iter_mut().any(|part| part.place(seq, &encoder.guesses)))
        };
        encoder.guesses.learn(StreamId(7), Seq(40));
        assert!(!place(hand_in(), Seq(41)));
        let mut refused = hand_in();
        refused.appends().for_each(|(_, parts)| parts[0].give_back(Seq(43), &encoder.guesses));
        assert!(!place(hand_in(), Seq(43)));
    }

    #[test]
    fn buffers_are_used_again_and_kept_within_their_limit() {
        let buffers = Buffers::default();
        let long = buffers.take(1 << 20);
        let room = long.capacity();
        buffers.put(long);
        buffers.put(Vec::with_capacity(MIN_KEPT_LEN));
        buffers.put(Vec::with_capacity(MIN_KEPT_LEN - 1));
        assert_eq!(hold(&buffers.0).buffers.len(), 2, "the short one is not worth it");
        assert_eq!(buffers.take(1 << 19).capacity(), room, "though a shorter one lies in front of it");
        assert_eq!((buffers.any().capacity(), buffers.any().capacity()), (MIN_KEPT_LEN, 0));
        assert_eq!(hold(&buffers.0).len, 0);
        (0..20).for_each(|_| buffers.put(Vec::with_capacity(1 << 20)));
        let kept = hold(&buffers.0);
        assert_eq!((kept.buffers.len(), kept.len), (8, MAX_KEPT_LEN));
    }
}
