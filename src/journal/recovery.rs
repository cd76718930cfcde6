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
use crate::position::Position;

pub(super) const QUARANTINE: &str = "journal/quarantine";

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
    /// The last position of any batch whose header is valid and whose body is not.
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
    let mut boundaries = vec![from];
    let mut damage = Vec::new();
    let (mut last_readable, mut last_known) = (from, from);
    let mut unchained = false;
    let mut good = from;
    while let Some(step) = scanner.step()? {
        let mut unreadable = None;
        let whole = match step {
            Step::Batch { offset, header, body } => {
                let (first, last) = (header.first_position, header.last_position());
                if let Some(flaw) = Records::new(&header, body).find_map(Result::err) {
                    unreadable = Some(last);
                    damage.push(flaw_in(segment.number(), offset, flaw, (first, last))?);
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
        if damage.last().is_some_and(|d| whole.is_none() && d.to == spot.position) {
            last_known = spot;
        }
        if let Some(spot) = whole {
            last_readable = spot;
            if damage.is_empty() {
                good = spot;
                boundaries.push(spot);
                forget_before(&mut boundaries, evidence);
            }
        }
    }
    let at = boundaries.partition_point(|spot| spot.position <= evidence).max(1) - 1;
    let proven = boundaries.get(at).copied().unwrap_or(good);
    let doubt = boundaries.iter().skip(at).map(|spot| spot.offset).filter(|o| *o < good.offset).collect();
    let footer_len = footer_len_at(&segment, good.offset)?;
    let garbage = nonzero(&segment, good.offset + footer_len, len)?;
    let footer = footer_len > 0;
    Ok(Inspection {
        segment,
        good,
        proven,
        evidence,
        doubt,
        footer,
        garbage,
        damage,
        last_readable,
        last_known,
    })
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

/// The first and one past the last byte between the offsets that is not zero.
fn nonzero(segment: &Segment, from: u64, to: u64) -> Result<Option<(u64, u64)>> {
    let mut piece = vec![0; 1 << 18];
    let (mut at, mut first, mut last) = (from, None, 0);
    while at < to {
        let want = piece.len().min(usize::try_from(to - at).unwrap_or(usize::MAX));
        let read = segment.file.read_at(&mut piece[..want], at)?;
        if read == 0 {
            break;
        }
        // Whole pieces of zeros are the rule here; a sum is compared faster than byte by byte.
        if piece[..read].iter().fold(0, |sum, b| sum | b) != 0 {
            let found = piece[..read].iter().position(|b| *b != 0).unwrap_or(0);
            first = first.or(Some(at + found as u64));
            last = at + piece[..read].iter().rposition(|b| *b != 0).unwrap_or(0) as u64 + 1;
        }
        at += read as u64;
    }
    Ok(first.map(|first| (first, last)))
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

    /// The end of what any evidence calls durable, where that is all there.
    pub(super) fn proven_end(&self) -> Bound {
        if self.evidence > self.good.position {
            return self.shown_end();
        }
        Bound { offset: self.proven.offset, position: Some(self.proven.position) }
    }

    /// The end of all that is whole, or of all that is told where evidence shows damage.
    pub(super) fn shown_end(&self) -> Bound {
        if self.evidence <= self.good.position {
            return Bound { offset: self.good.offset, position: Some(self.good.position) };
        }
        let known = Some(self.last_known).filter(|known| known.position <= self.evidence);
        let end = known.filter(|k| k.offset > self.last_readable.offset).unwrap_or(self.last_readable);
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
        batch.encode(&header.site(), bytes.len() as u64, &mut bytes);
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
    let mut piece = vec![0; 1 << 18];
    let mut at = from;
    while at < to {
        let want = piece.len().min(usize::try_from(to - at).unwrap_or(usize::MAX));
        let read = segment.file.read_at(&mut piece[..want], at)?;
        if read == 0 {
            break;
        }
        file.write_at(&piece[..read], at - from)?;
        at += read as u64;
    }
    file.sync()?;
    disk.rename(&temporary, &name, true)?;
    disk.sync_dir(QUARANTINE)
}

/// A digest for tests and reports: what the chain says at a place, where it is known.
pub(crate) fn chain_at(spot: &Spot) -> Digest {
    spot.chain.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

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
