//! Every checksum, chain, gap and watermark, without changing anything.

use super::read::{ReadHandle, Walked, Walker, segment_numbers};
use super::segment::{self, Damage, Segment, Unopened};
use super::{index, mark};
use crate::disk::{Kind, Open};
use crate::error::Result;
use crate::format::Flaw;
use crate::position::Position;

/// How many files that only have a segment's name are listed one by one.
const MAX_STRAYS: u64 = 1_000;

/// What a journal is, as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Everything is as it was written.
    Clean,
    /// Bytes stand behind the durable end that nobody was told are durable: opening for writing
    /// sets them aside, or keeps what is whole.
    Torn,
    /// Bytes that were durable are damaged or gone.
    Corrupt,
    /// Checksums are right and the chain of hashes is not: changed on purpose.
    Tampered,
}

impl Verdict {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Torn => "torn",
            Self::Corrupt => "corrupt",
            Self::Tampered => "tampered",
        }
    }
}

/// What a verification found.
#[derive(Debug, Clone)]
pub struct Verification {
    /// The worst of it.
    pub verdict: Verdict,
    /// Records that were read.
    pub records: u64,
    /// Batches that were read.
    pub batches: u64,
    /// Segments with a file.
    pub segments: u64,
    /// Bytes of those files.
    pub bytes: u64,
    /// The last durable position.
    pub durable: Position,
    /// Bytes at the end that are no whole batch.
    pub torn_bytes: u64,
    /// All that is damaged, in order.
    pub damage: Vec<Damage>,
    /// What is worth a word and loses nothing.
    pub notes: Vec<String>,
}

/// Reads everything. `progress` is told the bytes of each segment gone through.
pub(crate) fn verify(handle: &mut ReadHandle, progress: &mut dyn FnMut(u64)) -> Result<Verification> {
    if let Some(view) = handle.view() {
        view.forget_files();
    }
    let before = handle.end_damage.len();
    let tail = handle.judge_tail(true)?;
    // Evidence beyond what stands there: that much was durable once.
    let told = handle.end_damage.iter().skip(before).map(|damage| damage.to).max().unwrap_or_default();
    let disk = std::sync::Arc::clone(handle.disk());
    let mut found = Verification {
        verdict: Verdict::Clean,
        records: 0,
        batches: 0,
        segments: 0,
        bytes: 0,
        durable: handle.durable().max(told),
        torn_bytes: 0,
        damage: Vec::new(),
        notes: Vec::new(),
    };
    let mut strays = 0;
    for number in segment_numbers(&*disk)? {
        found.segments += 1;
        if let Some(stat) = disk.stat(&segment::file_name(number))?.filter(|s| s.kind == Kind::File) {
            found.bytes += stat.len;
        }
        check_segment(handle, number, &mut strays, &mut found)?;
    }
    if strays > MAX_STRAYS {
        found
            .notes
            .push(format!("{} more files have the names of segments and are none", strays - MAX_STRAYS));
    }
    let evidence = handle.evidence()?;
    let mut walker = Walker::from_segment(1).with_digests();
    let mut at = 0;
    while let Some(step) = walker.step(handle)? {
        match step {
            Walked::Batch { place, header, body } => {
                let flaw = crate::format::Records::new(&header, body).checked().find_map(Result::err);
                if let Some(flaw) = flaw {
                    let damage = index::flaw_in(place.segment, place.offset, flaw, &header, body)?;
                    let accepted = handle.accepts(place.segment, &damage)?;
                    found.damage.push(Damage { accepted, ..damage });
                } else {
                    found.batches += 1;
                    found.records += u64::from(header.count);
                }
                let ends = place.offset + header.frame_len();
                let named = evidence.filter(|m| (m.segment, m.end) == (place.segment, ends));
                if named.is_some_and(|m| m.chain != header.chain) {
                    let reason = "the mark knows another chain of hashes up to this place";
                    found.damage.push(Damage { tampered: true, ..Damage::new(place.segment, ends, reason) });
                }
                if place.segment != at {
                    at = place.segment;
                    progress(found.bytes);
                }
            }
            Walked::Damage(damage) => found.damage.push(damage),
        }
    }
    for damage in &handle.end_damage {
        // What stands behind the end was told with its own reason.
        let place = |d: &Damage| (d.segment, d.offset, d.from, d.to);
        if found.damage.iter().all(|told| place(told) != place(damage)) {
            found.damage.push(damage.clone());
        }
    }
    found.damage.sort_by_key(|d| (d.segment, d.offset));
    for (what, name) in [("mark", mark::MARK), ("lock", mark::LOCK)] {
        if let Some(kind) = mark::in_the_place_of(&*disk, name)? {
            let kind = kind.describe();
            let reason = format!("the {what} is {kind}; move it away, and the next writer makes it anew");
            found.damage.push(Damage::new(0, 0, reason));
        }
    }
    for slot in handle.damaged_slots()? {
        found.notes.push(format!("slot {slot} of the mark is damaged; the next writer writes it anew"));
    }
    judge(&mut found, handle, tail);
    Ok(found)
}

fn judge(found: &mut Verification, handle: &ReadHandle, tail: Option<super::read::Tail>) {
    let mut verdict = Verdict::Clean;
    match tail {
        None => found.notes.push("a writer is at work; what it has not published was not judged".to_owned()),
        Some(tail) => {
            if let Some((segment, offset, len)) = tail.torn {
                verdict = Verdict::Torn;
                found.torn_bytes = len;
                found.notes.push(format!(
                    "segment {segment}, offset {offset}: {len} bytes of a write that was cut short; nobody was \
                     told they were durable"
                ));
            }
            if tail.in_doubt > 0 {
                verdict = Verdict::Torn;
                found.notes.push(format!(
                    "{} whole records nobody was told are durable; opening for writing keeps them",
                    tail.in_doubt
                ));
            }
        }
    }
    if let Some(original) = handle.incomplete {
        verdict = Verdict::Torn;
        found.notes.push(format!(
            "this is a copy of a data directory, and incomplete: the original had records up to position \
             {original}, this one ends at {}",
            found.durable
        ));
    }
    for damage in found.damage.iter().filter(|d| !d.accepted) {
        verdict = verdict.max(if damage.tampered { Verdict::Tampered } else { Verdict::Corrupt });
    }
    found.verdict = verdict;
}

/// What a scan of batches does not look at: the second copy of the header, the links between
/// segments, the footer.
fn check_segment(
    handle: &mut ReadHandle,
    number: u64,
    strays: &mut u64,
    found: &mut Verification,
) -> Result<()> {
    let disk = std::sync::Arc::clone(handle.disk());
    let segment = match Segment::open(&*disk, number, Open::Read) {
        Ok(segment) => segment,
        Err(Unopened::Failed(error)) => return Err(error),
        // Behind the active segment no walk comes by; before it the walk knows what is lost.
        Err(unopened) => {
            if number > handle.active() {
                *strays += 1;
                if *strays <= MAX_STRAYS {
                    found.damage.push(unopened.into_damage(number)?);
                }
            }
            return Ok(());
        }
    };
    let mut damaged = |offset: u64, reason: &str| found.damage.push(Damage::new(number, offset, reason));
    if segment.header.journal != handle.journal() {
        // Of one that reading goes through, the walk says so.
        if number > handle.active() {
            damaged(0, "the segment belongs to another journal");
        }
        return Ok(());
    }
    if let Some(offset) = segment.damaged_copy {
        damaged(offset, "one of the two copies of the segment header is damaged; the other serves");
    }
    let successor = Segment::open_of(&*disk, &segment.header.journal, number + 1, Open::Read);
    let Ok(successor) = successor else { return Ok(()) };
    if successor.header.prev_salt != segment.header.salt && successor.header.lost.0 == Position::ZERO {
        damaged(0, "the next segment does not follow this one");
    }
    match index::read_footer(&segment, &successor.header)? {
        None | Some(Ok(_)) => {}
        Some(Err(Flaw::Unsupported(what))) => {
            return Err(crate::error::Error::new(crate::error::ErrorKind::Unsupported, what));
        }
        Some(Err(flaw)) => {
            let reason = format!("the footer is damaged ({}); the records are not", flaw.describe());
            damaged(successor.header.prev_end, &reason);
        }
    }
    Ok(())
}
