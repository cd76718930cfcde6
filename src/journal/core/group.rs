//! A group: appends that are written with one write and made durable with one sync.

use super::{Answer, Core, mark_at, next};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BatchHeader, Digest, Phase, SEGMENT_DATA_START, Target};
use crate::journal::Receipt;
use crate::journal::append::{Arrivals, Frame, Prepared};
use crate::journal::index::{Stretch, stretches};
use crate::journal::recovery::chain_at;
use crate::journal::segment::{Segment, Spot};
use crate::observe;
use crate::position::{Position, Seq, StreamId, to_usize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The most bytes written before a sync.
const MAX_GROUP_LEN: u64 = 16 << 20;
/// How much is written by one call; half as much again where the first one begins in the midst of it.
const MAX_WRITE_LEN: u64 = 512 << 10;

/// What was accepted so far.
#[derive(Default)]
pub(super) struct Group {
    /// Bytes that are to be written.
    len: u64,
    batches: Vec<Batch>,
    pub(super) streams: BTreeMap<StreamId, Seq>,
    pub(super) ended: BTreeSet<StreamId>,
    pub(super) names: Vec<Vec<u8>>,
    pub(super) keys: BTreeSet<Vec<u8>>,
    /// The highest term in it, and that of each stream.
    pub(super) term: u64,
    pub(super) terms: BTreeMap<StreamId, u64>,
}

/// A batch with its place.
struct Batch {
    offset: u64,
    header: BatchHeader,
    frame: Frame,
    stretches: Vec<Stretch>,
    members: Vec<Member>,
}

/// An append in a batch: its number in its group, and what it is told.
#[derive(Clone, Copy)]
struct Member {
    nth: usize,
    stream: StreamId,
    first: Position,
    last: Position,
    last_seq: Seq,
}

impl Member {
    fn receipt(self, chain: Digest) -> Receipt {
        let Self { stream, first, last, last_seq, .. } = self;
        Receipt { stream, first, last, last_seq, chain }
    }
}

impl Group {
    /// Where it ends: position and chain hash of the last batch.
    fn end(&self, spot: &Spot) -> (Position, Digest) {
        self.batches
            .last()
            .map_or((spot.position, chain_at(spot)), |last| (last.header.last_position(), last.header.chain))
    }

    /// Puts a batch at the end.
    fn push(
        &mut self,
        spot: &Spot,
        mut header: BatchHeader,
        (frame, stretches): (Frame, Vec<Stretch>),
        members: Vec<Member>,
    ) {
        header.chain = header.expected_chain(&self.end(spot).1);
        let offset = spot.offset + self.len;
        self.len += header.frame_len();
        self.batches.push(Batch { offset, header, frame, stretches, members });
    }
}

impl Core {
    /// Commits as many groups as it takes, and answers each append.
    pub(in crate::journal) fn commit(&mut self, arrivals: &mut Arrivals) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = Vec::new();
        answers.resize_with(arrivals.count(), || None);
        // Taken up, and its places given back, also where the lock is not to be had.
        let batches = arrivals.take();
        let result = self.locked(|core, _| {
            let mut tell = |i: usize, answer: Answer| answers[i] = Some(answer);
            let mut group = Group::default();
            let mut first = 0;
            for batch in batches {
                let behind = first + batch.waiting().len();
                if let Err(error) = core.gather(&mut group, first, batch, &mut tell) {
                    // What was gathered before it is as good as ever. Nothing behind it is: it would go on
                    // from what was admitted and is not written.
                    if !core.is_poisoned() {
                        core.flush(&mut group, &mut tell)?;
                    }
                    return Err(error);
                }
                first = behind;
            }
            core.flush(&mut group, &mut tell)
        });
        self.told.bell.ring();
        // Whoever has no answer by now shares the fate of the turn as a whole.
        let mut shared = result.err();
        answers.into_iter().map(|given| given.unwrap_or_else(|| Err(take_or_copy(&mut shared)))).collect()
    }

    /// Checks the appends of a batch, of which the first has this number, and adds it to the group, rolling
    /// first where it does not fit. An error ends the turn.
    fn gather(
        &mut self,
        group: &mut Group,
        first_nth: usize,
        mut batch: Prepared,
        tell: &mut dyn FnMut(usize, Answer),
    ) -> Result<()> {
        if batch.key().is_some_and(|key| group.keys.contains(key)) {
            self.flush(group, tell)?;
        }
        if let Some(answer) = self.repeated(&batch).transpose() {
            batch.appends().for_each(|(_, parts)| self.give_back(group, parts));
            tell(first_nth, answer);
            return Ok(());
        }
        let spot = self.view()?.spot;
        let first = next(group.end(&spot).0)?;
        // There is always one behind the last.
        next(Position(first.0.saturating_add(batch.count() - 1)))?;
        let (answers, changed) = self.admit(group, &mut batch);
        let kept: Vec<_> = answers.iter().map(Result::is_ok).collect();
        if changed || kept.contains(&false) {
            batch.encode_anew(&kept, &self.encoder)?;
        }
        let mut admitted = Vec::with_capacity(kept.len());
        for (nth, answer) in (first_nth..).zip(answers) {
            match answer {
                Ok(last_seq) => admitted.push((nth, last_seq)),
                Err(error) => tell(nth, Err(error)),
            }
        }
        if admitted.is_empty() {
            return Ok(());
        }
        batch.finish(&self.encoder);
        let view = self.view()?;
        let at = view.spot.offset + group.len;
        if at > SEGMENT_DATA_START && at + batch.len() > view.segment.header.capacity {
            self.flush(group, tell)?;
            self.roll()?;
        } else if group.len + batch.len() > MAX_GROUP_LEN {
            self.flush(group, tell)?;
        }
        let spot = self.view()?.spot;
        let mut position = first;
        let member = |((nth, last_seq), (count, target)): (_, (u64, Option<&Target>))| {
            let first = position;
            position = Position(first.0 + count);
            let stream = if let Some(Target::Stream(id)) = target { *id } else { StreamId(first.0) };
            Member { nth, stream, first, last: Position(position.0 - 1), last_seq }
        };
        let members = admitted.into_iter().zip(batch.extents()).map(member).collect();
        let (header, frame, stretches) = batch.close(first, spot.position, &self.encoder);
        for opened in stretches.iter().filter(|stretch| stretch.opens.is_some()) {
            self.encoder.guesses.learn(opened.stream, opened.last_seq());
        }
        group.push(&spot, header, (frame, stretches), members);
        Ok(())
    }

    /// Makes all that was gathered durable, and goes on.
    fn flush(&mut self, group: &mut Group, tell: &mut dyn FnMut(usize, Answer)) -> Result<()> {
        let batches = self.make_durable(group, tell)?;
        self.note(batches)
    }

    /// One write, one sync, for all that was gathered. What it gives is still to be [noted](Self::note).
    fn make_durable(&mut self, group: &mut Group, tell: &mut dyn FnMut(usize, Answer)) -> Result<Vec<Batch>> {
        // What was admitted stays so.
        let (mut batches, len) = (std::mem::take(&mut group.batches), std::mem::take(&mut group.len));
        let Some(last) = batches.last() else { return Ok(batches) };
        let (position, chain) = (last.header.last_position(), last.header.chain);
        let sync_ns = self.guard(|core| {
            let clock = Arc::clone(&core.clock);
            core.mark.set_busy(Phase::Committing, clock.now())?;
            let mark_view = core.mark_view;
            let view = core.view()?;
            let start = view.spot.offset;
            write(&view.segment, start, &mut batches)?;
            let (synced, sync_ns) = observe::timed(&*clock, || view.segment.file.sync());
            synced?;
            let end = Spot { offset: start + len, position, chain: Some(chain) };
            let mark = mark_at(&view.segment.header, &end);
            core.mark_view = core.mark.publish(&mark_view, mark, &*core.entropy)?;
            Ok(sync_ns)
        })?;
        let records = batches.iter().map(|batch| u64::from(batch.header.count)).sum();
        let appends = batches.iter().map(|batch| batch.members.len()).sum();
        observe::committed(&observe::Committed { appends, records, bytes: len, position, sync_ns });
        self.written.groups += 1;
        self.written.len += len;
        for batch in &batches {
            batch.members.iter().for_each(|member| tell(member.nth, Ok(member.receipt(batch.header.chain))));
        }
        Ok(batches)
    }

    /// Adds to the index what was made durable. Without that nothing more may be written: it would stand
    /// in the same place.
    fn note(&mut self, batches: Vec<Batch>) -> Result<()> {
        self.guard(|core| {
            for batch in batches {
                debug_assert_eq!(stretches(&batch.header, batch.frame.body()).as_ref(), Ok(&batch.stretches));
                core.view()?.added(batch.offset, &batch.header, &batch.stretches)?;
                core.encoder.reuse(batch.frame);
            }
            core.keep_index(false);
            Ok(())
        })
    }
}

/// The error itself the first time, its likeness afterwards.
fn take_or_copy(error: &mut Option<Error>) -> Error {
    let copy = error.as_ref().map(Error::likeness);
    let copy = copy.unwrap_or_else(|| Error::new(ErrorKind::Reopen, "the append was not answered"));
    error.replace(copy).unwrap_or_else(|| Error::new(ErrorKind::Reopen, "the append was not answered"))
}

/// Writes a group with few calls, each with not much more than stays near the processor, and up to where whole
/// pages end: those of the page cache are the larger, and none is written back half full.
fn write(segment: &Segment, start: u64, batches: &mut [Batch]) -> Result<()> {
    let site = segment.header.site();
    let (mut at, mut len, mut parts) = (start, 0, Vec::new());
    for batch in batches {
        let mut bytes = batch.frame.sealed(&batch.header, &site, batch.offset);
        while !bytes.is_empty() {
            // Up to the next boundary.
            let room = to_usize(MAX_WRITE_LEN - (at + len) % MAX_WRITE_LEN);
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            parts.push(part);
            (len, bytes) = (len + part.len() as u64, rest);
            if part.len() == room && len >= MAX_WRITE_LEN / 2 {
                write_parts(segment, at, &parts)?;
                // What is still to come takes a while.
                segment.file.begin_writing_back(at, len);
                at += len;
                (len, parts) = (0, Vec::new());
            }
        }
    }
    write_parts(segment, at, &parts)
}

fn write_parts(segment: &Segment, at: u64, parts: &[&[u8]]) -> Result<()> {
    match parts {
        [] => Ok(()),
        [one] => segment.file.write_at(one, at),
        several => segment.file.write_parts_at(several, at),
    }
}
