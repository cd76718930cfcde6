//! What opening for writing does about what it finds: inspect, plan, apply.
//!
//! [`inspect`] reads and decides nothing. [`plan`] decides and touches nothing: a table over what
//! the mark is to this process and what the inspection found. What is applied never truncates and
//! never overwrites: the end of a damaged segment is fixed by the header of the next one.
//!
//! The worlds a crash can leave behind the highest position that any surviving evidence calls
//! durable (`W`: mark, segment header, `durable_upto` of any batch):
//!
//! 1. nothing, and nobody died while writing: publish, go on in the same segment. With the busy word
//!    set in this boot its writer may have seen a sync fail, after which no sync of that file proves
//!    anything (its length, for one, can be lost for good): go on in a new segment;
//! 2. whole batches, the machine was started anew: they are what the disk holds; sync, publish;
//! 3. whole batches, same boot: they may be in the page cache only, after a sync that failed and
//!    told somebody else. A sync now would prove nothing: copy them into a new segment;
//! 4. anything else that is not zero: a torn tail. Set aside, copy what is whole, new segment;
//! 5. less than `W`: records that were durable are gone. Corruption; refused.

use super::index::flaw_in;
use super::mark::{Activity, MarkView, Standing};
use super::segment::{Bound, Damage, FOLDER, Scanner, Segment, Spot, Step, file_name};
use super::spare::Blank;
use crate::clock::{Clock, Entropy};
use crate::disk::{Disk, Open};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    BATCH_HEADER_LEN, BatchHeader, Digest, FIRST_CAPACITY, FOOTER_HEADER_LEN, Footer, Records,
    SEGMENT_DATA_START, SegmentHeader,
};
use crate::position::{Position, to_usize};

pub(super) const QUARANTINE: &str = "journal/quarantine";

/// How much is read at once of what is no batch.
const PIECE_LEN: usize = 1 << 18;

/// What the newest segment holds.
#[derive(Debug)]
pub(crate) struct Inspection {
    pub(crate) segment: Segment,
    /// The end of the batches that are whole, from the start on.
    pub(crate) good: Spot,
    /// The end of what is proven durable: the last batch boundary at or below `evidence`.
    pub(crate) proven: Spot,
    /// The highest position that any surviving evidence calls durable.
    pub(crate) evidence: Position,
    /// Whether somebody was told what the recovery kept that made this segment: the mark or a later batch
    /// says so.
    told_kept: bool,
    /// Offsets of the whole batches behind `proven`.
    pub(crate) doubt: Vec<u64>,
    /// Whether a valid footer stands at `good`: a roll that was cut short.
    pub(crate) footer: bool,
    /// Bytes behind `good` (and the footer) that are not zero: first and one past the last.
    pub(crate) garbage: Option<(u64, u64)>,
    /// Everything met behind the first flaw, for the report.
    pub(crate) damage: Vec<Damage>,
    /// The last position of any whole batch, also behind damage.
    pub(crate) last_readable: Spot,
    /// Where it is all told, behind damage: the end of the last batch up to `evidence` whose header is
    /// valid and whose body is not.
    last_known: Spot,
}

/// Looks at the newest segment from `known`, a place in it that is proven, or from its start.
pub(crate) fn inspect(segment: Segment, known: Option<Spot>, mark: Option<Position>) -> Result<Inspection> {
    let header = segment.header;
    let from = known.unwrap_or_else(|| Spot::start(&header));
    let len = segment.len()?;
    let mut scanner = Scanner::new(segment.clone(), from, Bound { offset: len, position: None });
    let told =
        [Some(Position(header.first_position.0 - 1)), Some(header.born_upto), mark, Some(from.position)];
    let mut evidence = told.into_iter().flatten().max().unwrap_or_default();
    let known_before = mark.unwrap_or_default().max(from.position);
    let mut boundaries = vec![from];
    let mut damage = Vec::new();
    let mut last_readable = from;
    let mut unchained = false;
    let mut good = from;
    let only_zeros = loop {
        // Behind what is whole there may be 64 MiB of room, which is not to be gone through for a batch and
        // once more for what is none.
        if damage.is_empty() && scanner.only_zeros()? {
            break true;
        }
        let Some(step) = scanner.step()? else { break false };
        let mut unreadable = None;
        let whole = match step {
            Step::Batch { offset, header, body } => {
                let last = header.last_position();
                if let Some(flaw) = Records::new(&header, body).checked().find_map(Result::err) {
                    unreadable = Some(last);
                    damage.push(flaw_in(segment.number(), offset, flaw, &header, body)?);
                    None
                } else {
                    let end = offset + header.frame_len();
                    Some(Spot { offset: end, position: last, chain: Some(header.chain) })
                }
            }
            Step::Damage(found) => {
                unchained |= damage.is_empty() && found.unchained.is_some();
                damage.push(found);
                None
            }
        };
        // No crash leaves right checksums around what are no records: it was written so, and its writer
        // may have been told that it is durable.
        evidence = evidence.max(scanner.proven()).max(unreadable.unwrap_or_default());
        let spot = scanner.spot();
        if unchained {
            // No crash leaves a right checksum with a wrong chain: this batch was whole once. The
            // scanner stands before it now, and behind it with the next step.
            evidence = evidence.max(spot.position);
            unchained = spot.position == good.position;
        }
        if let Some(spot) = whole {
            last_readable = spot;
            if damage.is_empty() {
                good = spot;
                boundaries.push(spot);
                forget_before(&mut boundaries, evidence);
            }
        }
    };
    let at = boundaries.partition_point(|spot| spot.position <= evidence).max(1) - 1;
    let proven = boundaries.get(at).copied().unwrap_or(good);
    let doubt = boundaries.iter().skip(at).map(|spot| spot.offset).filter(|o| *o < good.offset).collect();
    let last_known =
        if evidence > good.position { last_damaged(&segment, last_readable, evidence)? } else { good };
    let footer_len = if only_zeros { 0 } else { footer_len_at(&segment, good.offset)? };
    let garbage = if only_zeros { None } else { nonzero(&segment, good.offset + footer_len, len)? };
    let footer = footer_len != 0;
    Ok(Inspection {
        segment,
        good,
        proven,
        evidence,
        told_kept: known_before.max(scanner.proven()) >= header.born_upto,
        doubt,
        footer,
        garbage,
        damage,
        last_readable,
        last_known,
    })
}

/// The end of the last batch up to a position, behind all that are whole, whose header is valid and
/// whose body is not; `from` where there is none.
fn last_damaged(segment: &Segment, from: Spot, upto: Position) -> Result<Spot> {
    let mut scanner = Scanner::new(segment.clone(), from, Bound { offset: segment.len()?, position: None });
    let mut last = from;
    while scanner.step()?.is_some() {
        let spot = scanner.spot();
        if spot.position <= upto && spot.position > last.position {
            last = spot;
        }
    }
    Ok(last)
}

/// Boundaries below the evidence are of no further use: keeps the list short on long segments.
fn forget_before(boundaries: &mut Vec<Spot>, evidence: Position) {
    if boundaries.len() >= 4096 {
        let keep = boundaries.partition_point(|spot| spot.position <= evidence).max(1) - 1;
        boundaries.drain(..keep);
    }
}

fn footer_len_at(segment: &Segment, offset: u64) -> Result<u64> {
    let mut head = [0; FOOTER_HEADER_LEN];
    let read = segment.file.read_at(&mut head, offset)?;
    let Ok((len, crc)) = Footer::decode_header(&head[..read], &segment.header.site(), offset) else {
        return Ok(0);
    };
    let mut body = vec![0; len as usize];
    let read = segment.file.read_at(&mut body, offset + FOOTER_HEADER_LEN as u64)?;
    Ok(match Footer::decode_body(&body[..read], crc) {
        Ok(_) => FOOTER_HEADER_LEN as u64 + u64::from(len),
        Err(_) => 0,
    })
}

/// Hands on what stands between the offsets, piece by piece, as far as the file goes.
fn pieces(
    segment: &Segment,
    from: u64,
    to: u64,
    mut visit: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut piece = vec![0; PIECE_LEN.min(to_usize(to.saturating_sub(from)))];
    for at in (from..to).step_by(PIECE_LEN) {
        let want = PIECE_LEN.min(to_usize(to - at));
        let read = segment.file.read_at(&mut piece[..want], at)?;
        visit(at, &piece[..read])?;
    }
    Ok(())
}

/// The first and one past the last byte between the offsets that is not zero.
fn nonzero(segment: &Segment, from: u64, to: u64) -> Result<Option<(u64, u64)>> {
    let mut found = None;
    pieces(segment, from, to, |at, piece| {
        // Whole pieces of zeros are the rule here; a sum is compared faster than byte by byte.
        if piece.iter().fold(0, |sum, b| sum | b) != 0 {
            for (offset, _) in (at..).zip(piece).filter(|(_, b)| **b != 0) {
                found = Some((found.map_or(offset, |(first, _)| first), offset + 1));
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// What to do about the newest segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Go on in it; publish.
    Publish,
    /// Sync it, then publish.
    SyncThenPublish,
    /// Go on in the next one, with copies of the batches in doubt.
    Recover,
    /// Nothing: durable records are gone.
    Refuse,
}

/// The facts that the plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) standing: Standing,
    /// Evidence reaches beyond what is whole.
    pub(crate) lost: bool,
    /// Whole batches stand behind the evidence.
    pub(crate) doubt: bool,
    /// Something else that is not zero does, or an unfinished roll.
    pub(crate) garbage: bool,
    /// Somebody of this boot died while writing, perhaps after a sync that failed.
    pub(crate) interrupted: bool,
}

/// The decision, over all there is to know. First match wins.
pub(crate) fn plan(facts: Facts) -> Plan {
    match facts {
        Facts { lost: true, .. } => Plan::Refuse,
        // A copy must not go on with the salts of its original.
        Facts { standing: Standing::Copied, .. } => Plan::Recover,
        Facts { garbage: true, .. } | Facts { interrupted: true, .. } => Plan::Recover,
        Facts { doubt: true, standing: Standing::OtherBoot, .. } => Plan::SyncThenPublish,
        Facts { doubt: true, .. } => Plan::Recover,
        Facts { .. } => Plan::Publish,
    }
}

impl Inspection {
    pub(crate) fn facts(&self, mark: &MarkView) -> Facts {
        Facts {
            standing: mark.standing,
            lost: self.evidence > self.good.position,
            doubt: !self.doubt.is_empty(),
            garbage: self.garbage.is_some() || self.footer,
            interrupted: mark.activity == Activity::Now,
        }
    }

    /// Whether the mark does not name this segment, so that its maker may have died before its name
    /// was durable.
    pub(crate) fn is_unnamed(&self, mark: &MarkView) -> bool {
        mark.best.is_none_or(|best| best.segment != self.segment.number())
    }

    /// Whether its maker died at it, in this boot, and all it has is what the segment before has too.
    pub(crate) fn has_nothing_of_its_own(&self, disk: &dyn Disk, mark: &MarkView) -> Result<bool> {
        let header = &self.segment.header;
        let before = header.segment.checked_sub(1).filter(|number| *number > 0);
        let Some(before) = before.filter(|_| mark.activity == Activity::Now) else { return Ok(false) };
        let before = match Segment::open_of(disk, &header.journal, before, Open::Read) {
            Ok(before) if before.header.salt == header.prev_salt => before,
            Ok(_) => return Ok(false),
            Err(unopened) => return unopened.into_damage(header.segment).map(|_| false),
        };
        let start = Spot::start(header);
        let from = Spot { offset: header.prev_end, ..start };
        let bound = Bound { offset: before.len()?, position: None };
        let mut scanner = Scanner::new(before, from, bound);
        let mut held = from.position;
        while let Some(Step::Batch { header, .. }) = scanner.step()? {
            held = header.last_position();
        }
        Ok(self.last_readable.position <= held.min(header.born_upto))
    }

    /// The report of what is lost, where the plan is to refuse.
    pub(crate) fn loss(&self) -> Damage {
        let reason = self.damage.first().map_or_else(
            || "batches that were written before this place are missing".to_owned(),
            |damage| damage.reason.clone(),
        );
        let mut damage = Damage::new(self.segment.number(), self.good.offset, reason);
        damage.tampered = self.damage.first().is_some_and(|d| d.tampered);
        damage.losing(Position(self.good.position.0 + 1), self.evidence)
    }

    /// The end of what any evidence calls durable, where that is all there; without what the recovery kept
    /// that made this segment, as long as nobody was told of it.
    pub(super) fn proven_end(&self) -> Bound {
        if self.evidence > self.good.position {
            return self.shown_end();
        }
        let end = if self.told_kept { self.proven } else { Spot::start(&self.segment.header) };
        Bound { offset: end.offset, position: Some(end.position) }
    }

    /// The end of all that is whole, or of all that is told where evidence shows damage.
    pub(super) fn shown_end(&self) -> Bound {
        if self.evidence <= self.good.position {
            return Bound { offset: self.good.offset, position: Some(self.good.position) };
        }
        let end = if self.last_known.offset > self.last_readable.offset {
            self.last_known
        } else {
            self.last_readable
        };
        Bound { offset: end.offset, position: Some(self.evidence.max(end.position)) }
    }

    /// Bytes that are no part of any whole batch.
    pub(crate) fn garbage_len(&self) -> u64 {
        self.garbage.map_or(0, |(from, to)| to - from)
    }
}

/// The header of the segment after `old`, which ends at `end` with nothing lost.
pub(crate) fn successor(
    old: &SegmentHeader,
    end: &Spot,
    salt: u64,
    clock: &dyn Clock,
) -> Result<SegmentHeader> {
    let overflow = || Error::new(ErrorKind::Full, "the numbers of this journal are used up");
    Ok(SegmentHeader {
        segment: old.segment.checked_add(1).ok_or_else(overflow)?,
        salt,
        prev_salt: old.salt,
        first_position: end.position.next().ok_or_else(overflow)?,
        prev_end: end.offset,
        prev_footer_len: 0,
        chain: end.chain.unwrap_or(old.chain),
        born_upto: end.position,
        created: clock.now(),
        lost: (Position::ZERO, Position::ZERO),
        ..*old
    })
}

/// The header of a journal's first segment.
pub(crate) fn first_header(entropy: &dyn Entropy, clock: &dyn Clock) -> Result<SegmentHeader> {
    Ok(SegmentHeader {
        journal: entropy.id()?,
        segment: 1,
        epoch: 0,
        salt: entropy.number()?,
        prev_salt: 0,
        first_position: Position(1),
        prev_end: 0,
        prev_footer_len: 0,
        chain: [0; 32],
        born_upto: Position::ZERO,
        capacity: FIRST_CAPACITY,
        created: clock.now(),
        lost: (Position::ZERO, Position::ZERO),
    })
}

/// Makes a segment durable under its name: written whole under a temporary one, synced, renamed,
/// directory synced. Answers with the segment and the place behind the copies.
pub(super) fn create_segment(
    disk: &dyn Disk,
    blank: Blank,
    header: SegmentHeader,
    copies: &[(BatchHeader, Vec<u8>)],
) -> Result<(Segment, Spot)> {
    let Blank { name: temporary, file } = blank;
    let mut bytes = header.encode();
    let mut spot = Spot::start(&header);
    for (batch, body) in copies {
        let batch = BatchHeader { durable_upto: Position(header.first_position.0 - 1), ..*batch };
        bytes.extend(batch.encode(&header.site(), bytes.len() as u64));
        bytes.extend_from_slice(body);
        spot = Spot { offset: bytes.len() as u64, position: batch.last_position(), chain: Some(batch.chain) };
    }
    debug_assert!(bytes.len() as u64 >= SEGMENT_DATA_START);
    file.write_at(&bytes, 0)?;
    file.sync()?;
    let name = file_name(header.segment);
    if !disk.rename(&temporary, &name, false)? {
        let _ = disk.remove(&temporary);
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("{name} exists and is not a segment of this journal"),
        ));
    }
    sync_name(disk, &name, &temporary)?;
    // By the name that errors tell from now on; its bytes are durable, no sync of theirs is to come.
    let file = disk.open(&name, Open::Write)?;
    Ok((Segment { file, header, damaged_copy: None }, spot))
}

/// Makes the name of a segment durable that holds nothing of its own yet.
///
/// After a failure the next sync of the directory would prove nothing about this name. Without it,
/// whoever comes next begins from the segment before and makes the name anew.
pub(super) fn sync_name(disk: &dyn Disk, name: &str, temporary: &str) -> Result<()> {
    disk.sync_dir(FOLDER).inspect_err(|_| {
        let _ = disk.rename(name, temporary, false);
    })
}

/// Copies the batches at these offsets out of a segment, whose scan just found them whole.
pub(crate) fn read_batches(segment: &Segment, offsets: &[u64]) -> Result<Vec<(BatchHeader, Vec<u8>)>> {
    let mut batches = Vec::new();
    for offset in offsets {
        let mut head = [0; BATCH_HEADER_LEN];
        let read = segment.file.read_at(&mut head, *offset)?;
        let changed =
            || Damage::new(segment.number(), *offset, "a batch changed while it was copied").to_error();
        let header =
            BatchHeader::decode(&head[..read], &segment.header.site(), *offset).map_err(|_| changed())?;
        let mut body = vec![0; header.body_len as usize];
        let read = segment.file.read_at(&mut body, offset + BATCH_HEADER_LEN as u64)?;
        if crc32fast::hash(&body[..read]) != header.body_crc {
            return Err(changed());
        }
        batches.push((header, body));
    }
    Ok(batches)
}

/// Saves bytes that no reader will see again, under a name that tells where they stood. Doing it
/// twice leaves one file.
pub(crate) fn quarantine(disk: &dyn Disk, segment: &Segment, from: u64, to: u64) -> Result<()> {
    disk.create_dir(QUARANTINE)?;
    let name = format!("{QUARANTINE}/{:010}-{from}.torn", segment.number());
    let temporary = format!("{name}.tmp");
    if disk.stat(&temporary)?.is_some() {
        disk.remove(&temporary)?;
    }
    let file = disk.open(&temporary, Open::CreateNew)?;
    pieces(segment, from, to, |at, piece| file.write_at(piece, at - from))?;
    file.sync()?;
    disk.rename(&temporary, &name, true)?;
    disk.sync_dir(QUARANTINE)
}

/// The chain hash at a place. Known wherever anything is written, as that is behind what is whole; zeros
/// where it is not.
pub(crate) fn chain_at(spot: &Spot) -> Digest {
    spot.chain.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::disk::sim::{Fault, SimDisk, SimWorld};
    use crate::format::{Codec, Draft, Durability, HeaderBlock, Mark, Target, encode_body};
    use crate::position::{Seq, Session, StreamId, Time};

    fn header(segment: u64, first: u64) -> SegmentHeader {
        SegmentHeader {
            journal: [1; 16],
            segment,
            epoch: 2,
            salt: 10 + segment,
            prev_salt: 10 + segment - 1,
            first_position: Position(first),
            prev_end: SEGMENT_DATA_START,
            prev_footer_len: 0,
            chain: [4; 32],
            born_upto: Position(first - 1),
            capacity: FIRST_CAPACITY,
            created: Time(5),
            lost: (Position::ZERO, Position::ZERO),
        }
    }

    /// A segment made by hand, and the place behind each of its batches; the first is before them.
    #[derive(Debug, Clone)]
    struct Made {
        header: SegmentHeader,
        bytes: Vec<u8>,
        ends: Vec<Spot>,
    }

    impl Made {
        fn new(header: SegmentHeader) -> Self {
            Self { header, bytes: header.encode(), ends: vec![Spot::start(&header)] }
        }

        /// The segment with the first position 101.
        fn plain() -> Self {
            Self::new(header(3, 101))
        }

        fn last(&self) -> Spot {
            self.ends[self.ends.len() - 1]
        }

        /// Adds a batch of two records whose header tells that `upto` is durable.
        fn batch(self, upto: u64) -> Self {
            let chain = self.last().chain.unwrap();
            self.chained(upto, &chain)
        }

        /// The same behind a batch with this chain hash.
        fn chained(mut self, upto: u64, prev: &Digest) -> Self {
            let last = self.last();
            let draft = |seq| Draft {
                target: Target::Stream(StreamId(1)),
                seq: Seq(seq),
                kind: 3,
                version: 1,
                close: false,
                more: false,
                time: Time(7),
                created: None,
                key: None,
                term: None,
                payload: vec![b'p'; 50].into(),
            };
            let body = encode_body(&[draft(last.position.0), draft(last.position.0 + 1)]);
            let mut batch = BatchHeader {
                codec: Codec::None,
                durability: Durability::Durable,
                body_len: u32::try_from(body.len()).unwrap(),
                decoded_len: u32::try_from(body.len()).unwrap(),
                count: 2,
                body_crc: crc32fast::hash(&body),
                first_position: Position(last.position.0 + 1),
                time: Time(7),
                durable_upto: Position(upto),
                body_digest: *blake3::hash(&body).as_bytes(),
                chain: [0; 32],
            };
            batch.chain = batch.expected_chain(prev);
            self.bytes.extend(batch.encode(&self.header.site(), self.bytes.len() as u64));
            self.bytes.extend(body);
            let (offset, chain) = (self.bytes.len() as u64, Some(batch.chain));
            self.ends.push(Spot { offset, position: batch.last_position(), chain });
            self
        }

        /// Changes a byte; counted from the end where it is negative.
        fn flip(mut self, at: i64) -> Self {
            let len = i64::try_from(self.bytes.len()).unwrap();
            self.bytes[usize::try_from(if at < 0 { len + at } else { at }).unwrap()] ^= 1;
            self
        }

        fn then(mut self, bytes: &[u8]) -> Self {
            self.bytes.extend(bytes);
            self
        }

        fn put(&self, world: &SimWorld) {
            if world.names().is_empty() {
                let disk = world.process(1);
                disk.create_dir(FOLDER).and_then(|_| disk.sync_dir(".")).unwrap();
            }
            world.write_file(&file_name(self.header.segment), &self.bytes).unwrap();
        }

        fn on_disk(&self) -> (SimWorld, SimDisk, Segment) {
            let world = SimWorld::new();
            self.put(&world);
            let disk = world.process(1);
            let segment = Segment::open(&disk, self.header.segment, Open::Write).unwrap();
            (world, disk, segment)
        }

        fn inspected(&self, mark: Option<u64>) -> Inspection {
            inspect(self.on_disk().2, None, mark.map(Position)).unwrap()
        }
    }

    fn bound(spot: Spot, position: u64) -> Bound {
        Bound { offset: spot.offset, position: Some(Position(position)) }
    }

    #[test]
    fn what_is_whole_is_proven_up_to_the_highest_evidence() {
        let made = Made::plain().batch(100).batch(100).batch(102).batch(104);
        for (mark, proven) in [(None, 2), (Some(99), 2), (Some(104), 2), (Some(106), 3), (Some(108), 4)] {
            let found = made.inspected(mark);
            assert_eq!((found.good, found.last_readable), (made.ends[4], made.ends[4]), "{mark:?}");
            assert_eq!(found.evidence, made.ends[proven].position, "{mark:?}");
            assert_eq!(found.proven, made.ends[proven], "{mark:?}");
            let doubt: Vec<_> = made.ends[proven..4].iter().map(|spot| spot.offset).collect();
            assert_eq!(found.doubt, doubt, "{mark:?}");
            assert_eq!((found.footer, found.garbage, found.damage.len()), (false, None, 0));
            assert_eq!(found.proven_end(), bound(made.ends[proven], made.ends[proven].position.0));
            assert_eq!(found.shown_end(), bound(made.ends[4], 108));
        }
        let born = Made::new(SegmentHeader { born_upto: Position(104), ..header(3, 101) });
        let found = born.batch(100).batch(100).batch(100).inspected(None);
        assert_eq!((found.evidence, found.proven.position), (Position(104), Position(104)), "copies");
        // Known from before: nothing in front of it is looked at again.
        let rotten = Made { bytes: made.clone().flip(1_100).bytes, ..made.clone() };
        let found = inspect(rotten.on_disk().2, Some(made.ends[1]), None).unwrap();
        assert_eq!((found.good, found.proven, found.damage), (made.ends[4], made.ends[2], Vec::new()));
    }

    #[test]
    fn what_a_recovery_kept_is_proven_once_somebody_was_told_of_it() {
        let born = Made::new(SegmentHeader { born_upto: Position(104), ..header(3, 101) });
        let copies = born.batch(100).batch(100);
        let end = |made: &Made, mark: Option<u64>| made.inspected(mark).proven_end();
        for mark in [None, Some(100), Some(103)] {
            assert_eq!(end(&copies, mark), bound(copies.ends[0], 100), "{mark:?}");
        }
        assert_eq!(end(&copies, Some(104)), bound(copies.ends[2], 104), "the mark tells of it");
        let later = copies.clone().batch(104);
        assert_eq!(end(&later, None), bound(later.ends[2], 104), "a batch behind the copies does");
        assert_eq!(copies.inspected(None).shown_end(), bound(copies.ends[2], 104), "nobody is at work");
    }

    #[test]
    fn boundaries_that_the_evidence_has_passed_are_forgotten() {
        let spot = |position| Spot { offset: 10 * position, position: Position(position), chain: None };
        let all: Vec<Spot> = (0..5_000).map(spot).collect();
        for evidence in [0, 1, 3_000, 4_998, 4_999, 9_999] {
            let mut kept = all.clone();
            forget_before(&mut kept, Position(evidence));
            let first = evidence.min(4_999);
            assert_eq!(
                (kept[0], kept.len() as u64),
                (spot(first), 5_000 - first),
                "the last one at or below"
            );
        }
        // Between two boundaries the one before counts.
        let mut kept: Vec<Spot> =
            all.iter().map(|spot| Spot { position: Position(2 * spot.position.0), ..*spot }).collect();
        forget_before(&mut kept, Position(2_001));
        assert_eq!((kept[0].position, kept.len()), (Position(2_000), 4_000));
    }

    #[test]
    fn an_unfinished_roll_is_a_footer_and_no_garbage() {
        let made = Made::plain().batch(100).batch(102);
        let end = made.last().offset;
        let index = Footer {
            first_position: Position(101),
            names: vec![(7, StreamId(u64::MAX)); 40],
            ..Footer::default()
        };
        let footer = index.encode(&made.header.site(), end).unwrap();
        let behind = end + footer.len() as u64;
        let sealed = made.clone().then(&footer);
        for (made, footer, garbage) in [
            (sealed.clone(), true, None),
            (sealed.clone().then(&[0; 5_000]), true, None),
            (sealed.clone().then(&[0, 0, 7, 0, 9, 0]), true, Some((behind + 2, behind + 5))),
            // One that is damaged is as good as none.
            (sealed.clone().flip(-1), false, Some((end, behind))),
            (sealed.flip(i64::try_from(end + 20).unwrap()), false, Some((end, behind))),
            (made.clone().then(&footer[..footer.len() - 1]), false, Some((end, behind - 1))),
            (made.clone().then(&[0; 5_000]), false, None),
            (made, false, None),
        ] {
            let found = made.inspected(None);
            assert_eq!(found.good.offset, end);
            assert_eq!((found.footer, found.garbage), (footer, garbage));
            let facts = found.facts(&MarkView::ABSENT);
            assert_eq!(facts.garbage, footer || garbage.is_some());
            assert_eq!(found.garbage_len(), garbage.map_or(0, |(from, to)| to - from));
        }
    }

    /// Longer than what is read at once.
    #[test]
    fn what_is_no_batch_is_looked_at_from_its_first_byte_to_its_last() {
        let made = Made::plain().batch(100);
        let end = made.last().offset;
        let piece = 1 << 18;
        for marks in [
            vec![],
            vec![(0, 1)],
            vec![(0, 7), (1, 7)],
            vec![(5, 2)],
            vec![(piece - 1, 1), (piece, 1)],
            vec![(piece, 3)],
            vec![(3, 1), (2 * piece + 4, 255)],
            vec![(10, 1), (30, 1), (piece + 7, 2), (3 * piece - 1, 1)],
        ] {
            let mut tail = vec![0; 3 * piece];
            marks.iter().for_each(|(at, byte)| tail[*at] = *byte);
            let found = made.clone().then(&tail).inspected(None);
            let garbage = marks.first().zip(marks.last());
            let garbage = garbage.map(|(first, last)| (end + first.0 as u64, end + last.0 as u64 + 1));
            assert_eq!(found.garbage, garbage, "{marks:?}");
        }
    }

    /// There may be 64 MiB of them, and whoever opens after a kill waits for it.
    #[test]
    fn zeros_behind_the_end_are_read_once() {
        let made = Made::plain().batch(100);
        let looks = |pieces: usize| {
            let (world, _, segment) = made.clone().then(&vec![0; pieces * PIECE_LEN]).on_disk();
            let before = world.looks();
            inspect(segment, None, None).unwrap();
            world.looks() - before
        };
        assert_eq!(looks(40) - looks(20), 20);
    }

    #[test]
    fn what_is_set_aside_is_kept_byte_for_byte() {
        let tail: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[0] | 1).collect();
        let made = Made::plain().batch(100).then(&[0; 9]).then(&tail).then(&[0; 7_000]);
        let (world, disk, segment) = made.on_disk();
        let (from, to) = made.inspected(None).garbage.unwrap();
        assert_eq!((from, to - from), (made.last().offset + 9, tail.len() as u64));
        let name = format!("{QUARANTINE}/0000000003-{from}.torn");
        for _ in 0..2 {
            quarantine(&disk, &segment, from, to).unwrap();
            assert!(world.read_file(&name).unwrap() == tail, "the bytes of the file");
            assert_eq!(world.names().len(), 2, "{:?}", world.names());
        }
        // The name of the folder becomes durable with that of the segment that is made next.
        disk.sync_dir(FOLDER).unwrap();
        let after = world.power_cut(&mut |_| crate::disk::sim::Fate::Old);
        assert!(after.read_file(&name).unwrap() == tail, "on the disk");
    }

    #[test]
    fn a_damaged_end_is_lost_where_evidence_reaches_behind_it() {
        let made = Made::plain().batch(100).batch(102);
        let (body, head) =
            (made.clone().flip(-1), made.clone().flip(i64::try_from(made.ends[1].offset + 9).unwrap()));
        // Without evidence it is a write that was cut short.
        for (torn, evidence) in [(&body, 102), (&head, 100)] {
            let found = torn.inspected(None);
            assert_eq!((found.good, found.evidence), (made.ends[1], Position(evidence)));
            assert!(!found.facts(&MarkView::ABSENT).lost);
            assert_eq!(found.garbage, Some((made.ends[1].offset, made.ends[2].offset)));
            assert_eq!(found.shown_end(), bound(made.ends[1], 102));
        }
        // A batch that is known by its header is told where it stands, all else where what is whole ends.
        for (lost, end) in [(&body, made.ends[2]), (&head, made.ends[1])] {
            let found = lost.inspected(Some(104));
            assert_eq!((found.good, found.evidence), (made.ends[1], Position(104)));
            assert!(found.facts(&MarkView::ABSENT).lost);
            assert_eq!((found.shown_end(), found.proven_end()), (bound(end, 104), bound(end, 104)));
            let loss = found.loss();
            assert_eq!(
                (loss.from, loss.to, loss.offset),
                (Position(103), Position(104), made.ends[1].offset)
            );
            assert!(!loss.tampered);
        }
        let missing = made.inspected(Some(106));
        assert_eq!(missing.shown_end(), bound(made.ends[2], 106));
        assert_eq!((missing.loss().from, missing.loss().to), (Position(105), Position(106)));
    }

    #[test]
    fn a_batch_that_nobody_was_told_of_is_not_shown_behind_damage() {
        // The last one's header tells that the one before was durable; its own body is damaged too.
        let made = Made::plain().batch(100).batch(102).flip(-1).batch(104).flip(-1);
        let found = made.inspected(None);
        assert_eq!((found.evidence, found.good), (Position(104), made.ends[1]));
        assert_eq!(found.shown_end(), bound(made.ends[2], 104), "told up to what is known by its header");
        // Whole, it is read behind the damage.
        let made = Made::plain().batch(100).batch(102).flip(-1).batch(104);
        let found = made.inspected(None);
        assert_eq!((found.good, found.last_readable), (made.ends[1], made.ends[3]));
        assert_eq!(found.shown_end(), bound(made.ends[3], 106));
    }

    #[test]
    fn a_batch_with_a_wrong_chain_was_whole_once() {
        let good = Made::plain().batch(100);
        let last = good.clone().chained(100, &[9; 32]);
        let found = last.inspected(None);
        assert_eq!((found.good, found.evidence), (last.ends[1], Position(104)));
        let loss = found.loss();
        assert_eq!((loss.from, loss.to, loss.tampered), (Position(103), Position(104), true));
        // It alone: what stands behind it may be of a write that was cut short.
        let found = last.batch(100).inspected(None);
        assert_eq!((found.evidence, found.last_readable.position), (Position(104), Position(106)));
        // Behind other damage nothing is known of the chain before.
        let torn = good.batch(100).flip(-1).chained(100, &[9; 32]);
        let found = torn.inspected(None);
        assert_eq!((found.good, found.evidence), (torn.ends[1], Position(100)));
    }

    #[test]
    fn facts_are_what_was_found() {
        let made = Made::plain().batch(100).batch(100);
        let mut mark = MarkView::ABSENT;
        for (activity, interrupted) in
            [(Activity::None, false), (Activity::OtherBoot, false), (Activity::Now, true)]
        {
            (mark.standing, mark.activity) = (Standing::OtherMount, activity);
            let facts = Facts {
                standing: Standing::OtherMount,
                lost: false,
                doubt: true,
                garbage: false,
                interrupted,
            };
            assert_eq!(made.inspected(None).facts(&mark), facts);
            assert_eq!(made.inspected(Some(104)).facts(&mark), Facts { doubt: false, ..facts });
            assert_eq!(made.inspected(Some(105)).facts(&mark), Facts { lost: true, doubt: false, ..facts });
            assert_eq!(
                made.clone().then(&[1]).inspected(None).facts(&mark),
                Facts { garbage: true, ..facts }
            );
        }
    }

    #[test]
    fn a_segment_is_named_by_the_mark_or_not() {
        let found = Made::plain().inspected(None);
        let mut mark = MarkView::ABSENT;
        assert!(found.is_unnamed(&mark));
        for segment in [2, 3, 4] {
            mark.best = Some(Mark {
                counter: 1,
                session: Session::default(),
                inode: 1,
                journal: [1; 16],
                segment,
                end: SEGMENT_DATA_START,
                position: Position(100),
                chain: [0; 32],
            });
            assert_eq!(found.is_unnamed(&mark), segment != 3);
        }
    }

    /// The segment before holds the positions to 104, the last batch behind where the next one says that
    /// it ends: it was copied.
    #[test]
    fn a_segment_has_something_of_its_own_unless_the_one_before_has_it_too() {
        let before = Made::new(header(2, 101)).batch(100).batch(100);
        let chain = before.ends[1].chain.unwrap();
        let next = SegmentHeader {
            prev_end: before.ends[1].offset,
            chain,
            born_upto: Position(104),
            ..header(3, 103)
        };
        let answer = |before: Option<&Made>, made: &Made, activity| {
            let (world, disk, segment) = made.on_disk();
            before.iter().for_each(|before| before.put(&world));
            let mut mark = MarkView::ABSENT;
            mark.activity = activity;
            inspect(segment, None, None).unwrap().has_nothing_of_its_own(&disk, &mark).unwrap()
        };
        let died = Activity::Now;
        let (empty, copied) = (Made::new(next), Made::new(next).batch(102));
        assert!(answer(Some(&before), &empty, died) && answer(Some(&before), &copied, died));
        assert!(!answer(Some(&before), &copied.clone().batch(102), died), "a batch behind the copy");
        assert!(!answer(Some(&before), &copied, Activity::None), "nobody died at it");
        assert!(!answer(Some(&before), &copied, Activity::OtherBoot), "the name is as durable as it will be");
        assert!(!answer(None, &copied, died), "there is nothing before it");
        let first = Made::new(header(1, 103)).batch(102);
        assert!(!answer(None, &first, died), "there was never anything before it");
        let other = Made::new(SegmentHeader { prev_salt: 99, ..next }).batch(102);
        assert!(!answer(Some(&before), &other, died), "another lineage");
        // What stands in the segment before was not copied: nobody knew of it.
        let born = SegmentHeader { born_upto: Position(102), ..next };
        assert!(!answer(Some(&before), &Made::new(born).batch(102), died));
        let cut = Made { bytes: before.bytes[..before.bytes.len() - 1].to_vec(), ..before.clone() };
        assert!(!answer(Some(&cut), &copied, died), "the copied batch is not whole any more");
    }

    #[test]
    fn a_successor_follows_in_everything() {
        let old = SegmentHeader {
            prev_footer_len: 77,
            born_upto: Position(110),
            lost: (Position(3), Position(4)),
            ..header(3, 101)
        };
        let end = Spot { offset: 5_000, position: Position(120), chain: Some([8; 32]) };
        let clock = ManualClock::new(Time(66));
        let next = successor(&old, &end, 99, &clock).unwrap();
        let expected = SegmentHeader {
            journal: [1; 16],
            segment: 4,
            epoch: 2,
            salt: 99,
            prev_salt: 13,
            first_position: Position(121),
            prev_end: 5_000,
            prev_footer_len: 0,
            chain: [8; 32],
            born_upto: Position(120),
            capacity: FIRST_CAPACITY,
            created: Time(66),
            lost: (Position::ZERO, Position::ZERO),
        };
        assert_eq!(next, expected);
        let unknown = successor(&old, &Spot { chain: None, ..end }, 99, &clock).unwrap();
        assert_eq!(
            unknown,
            SegmentHeader { chain: [4; 32], ..expected },
            "the chain that the segment began with"
        );
        for used_up in [
            successor(&SegmentHeader { segment: u64::MAX, ..old }, &end, 99, &clock),
            successor(&old, &Spot { position: Position(u64::MAX), ..end }, 99, &clock),
        ] {
            assert_eq!(used_up.unwrap_err().kind(), ErrorKind::Full);
        }
    }

    #[test]
    fn copies_are_whole_batches_of_the_new_segment() {
        let old = Made::plain().batch(100).batch(100).batch(100);
        let (_, disk, segment) = old.on_disk();
        let offsets: Vec<_> = old.ends[1..3].iter().map(|spot| spot.offset).collect();
        let copies = read_batches(&segment, &offsets).unwrap();
        let next = successor(&old.header, &old.ends[1], 99, &ManualClock::new(Time(6))).unwrap();
        let blank = || {
            let name = format!("{FOLDER}/tmp-1");
            let file = disk.open(&name, Open::CreateNew).unwrap();
            Blank { name, file }
        };
        let (made, spot) = create_segment(&disk, blank(), next, &copies).unwrap();
        assert_eq!((made.header, spot.position, spot.chain), (next, Position(106), old.ends[3].chain));
        assert_eq!(spot.offset, made.len().unwrap());
        let found = inspect(Segment::open(&disk, 4, Open::Read).unwrap(), None, None).unwrap();
        assert_eq!((found.good, found.damage.len()), (spot, 0));
        assert_eq!(
            found.evidence,
            Position(102),
            "a copy says that what stands before the copies is durable"
        );
        let told = read_batches(&made, &found.doubt).unwrap();
        let told: Vec<_> = told.iter().map(|(batch, _)| batch.durable_upto).collect();
        assert_eq!(told, [Position(102), Position(102)]);
        // What is there already stays, and nothing is left beside it.
        let refused = create_segment(&disk, blank(), next, &[]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        assert_eq!(disk.world().names(), [file_name(3), file_name(4)]);
        assert_eq!(made.len().unwrap(), spot.offset);
    }

    #[test]
    fn a_batch_that_changes_while_it_is_copied_is_told() {
        let made = Made::plain().batch(100).batch(100);
        let offset = made.ends[1].offset;
        for at in [offset, offset + 20, made.last().offset - 1] {
            let (_, _, segment) = made.clone().flip(i64::try_from(at).unwrap()).on_disk();
            assert_eq!(read_batches(&segment, &[offset]).unwrap_err().kind(), ErrorKind::Corrupt, "{at}");
        }
        let (_, _, segment) = made.on_disk();
        let copied = read_batches(&segment, &[offset]).unwrap();
        let from = usize::try_from(offset).unwrap() + BATCH_HEADER_LEN;
        assert_eq!((copied.len(), &copied[0].1[..]), (1, &made.bytes[from..]));
    }

    #[test]
    fn a_name_is_taken_back_where_it_cannot_be_made_durable() {
        let (world, disk, _) = Made::plain().on_disk();
        let (name, temporary) = (file_name(3), format!("{FOLDER}/tmp-1"));
        sync_name(&disk, &name, &temporary).unwrap();
        assert_eq!(world.names(), std::slice::from_ref(&name));
        world.fail_at(world.operations() + 1, Fault::once(5));
        sync_name(&disk, &name, &temporary).unwrap_err();
        assert_eq!(world.names(), [temporary]);
    }

    #[test]
    fn the_chain_hash_at_a_place_is_that_of_the_batch_before_it() {
        let made = Made::plain().batch(100);
        assert_eq!(chain_at(&made.ends[0]), made.header.chain);
        assert_eq!(Some(chain_at(&made.inspected(None).good)), made.last().chain);
        assert_eq!(chain_at(&Spot { chain: None, ..made.last() }), [0; 32]);
    }

    #[test]
    fn a_journal_begins_with_nothing_before_it() {
        let (entropy, clock) = (crate::clock::SeededEntropy::new(1), ManualClock::new(Time(66)));
        let first = first_header(&entropy, &clock).unwrap();
        assert_eq!((first.segment, first.first_position, first.created), (1, Position(1), Time(66)));
        assert_eq!((first.prev_salt, first.prev_end, first.prev_footer_len, first.chain), (0, 0, 0, [0; 32]));
        assert_eq!(HeaderBlock::decode(&first.encode()).unwrap().header, first);
        assert_ne!(first_header(&entropy, &clock).unwrap().journal, first.journal);
    }

    /// The whole input space, against the worlds in the module's description.
    #[test]
    fn the_plan_covers_every_world() {
        let standings = [
            Standing::Absent,
            Standing::OneSlot,
            Standing::Copied,
            Standing::OtherMount,
            Standing::OtherBoot,
            Standing::Current,
        ];
        let mut rows = 0;
        for standing in standings {
            for bits in 0..16_u8 {
                let [lost, doubt, garbage, interrupted] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
                let facts = Facts { standing, lost, doubt, garbage, interrupted };
                let chosen = plan(facts);
                rows += 1;
                if lost {
                    assert_eq!(chosen, Plan::Refuse, "{facts:?}: durable records are gone");
                    continue;
                }
                if standing == Standing::Copied || garbage || interrupted {
                    assert_eq!(
                        chosen,
                        Plan::Recover,
                        "{facts:?}: not behind garbage, not where a sync may have failed"
                    );
                    continue;
                }
                match chosen {
                    Plan::SyncThenPublish => {
                        assert!(
                            doubt && standing == Standing::OtherBoot,
                            "{facts:?}: only a cut settles doubt"
                        );
                    }
                    Plan::Publish => {
                        assert!(!doubt, "{facts:?}: publishing what nobody was told is durable");
                    }
                    Plan::Recover => assert!(doubt, "{facts:?}: a new segment for nothing"),
                    Plan::Refuse => panic!("{facts:?}: refused for nothing"),
                }
            }
        }
        assert_eq!(rows, 96);
    }
}
