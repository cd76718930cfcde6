//! The lock file and the mark: how processes take turns, and how they tell what is durable.
//!
//! `journal/lock` is only ever locked, `journal/mark` is only ever written in place. They are two
//! files because looking at the times of a file that is written per commit costs a third of the
//! commit rate.

use crate::clock::{Clock, Entropy};
use crate::disk::{Disk, File, Kind, Open, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BUSY_OFFSET, Busy, MARK_LEN, MARK_SLOT_OFFSETS, Mark, Phase};
use crate::position::{Time, to_usize};
use std::sync::Arc;
use std::time::Duration;

/// How often a mark with an invalid slot is read again: a slot may be in the middle of being written.
const TORN_RETRIES: usize = 3;
/// How many bytes of the file are read and written at once: from the first slot to the end of the busy word.
const USED_LEN: usize = BUSY_AT + Busy::LEN;
#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const BUSY_AT: usize = BUSY_OFFSET as usize;
/// The first and the longest pause between two tries for the lock.
const PAUSE: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));

pub(super) const LOCK: &str = "journal/lock";
pub(super) const MARK: &str = "journal/mark";

/// What stands at the name of the lock or the mark where that is no regular file. It is never followed.
pub(super) fn in_the_place_of(disk: &dyn Disk, name: &str) -> Result<Option<Kind>> {
    Ok(disk.stat(name)?.map(|stat| stat.kind).filter(|kind| *kind != Kind::File))
}

/// Opens the lock or the mark, if it is there. For a reader what is no regular file is as if it were
/// missing: it is no evidence of anything, and excludes nobody. A writer needs a file of its own there.
fn find(disk: &dyn Disk, name: &str, how: Open) -> Result<Option<Arc<dyn File>>> {
    match disk.open(name, how) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.is_missing() => Ok(None),
        Err(_) if how == Open::Read && in_the_place_of(disk, name)?.is_some() => Ok(None),
        Err(error) => Err(unusable(disk, name, error)),
    }
}

/// The same for a writer, who makes what is missing.
fn find_or_make(disk: &dyn Disk, name: &str) -> Result<Arc<dyn File>> {
    disk.open(name, Open::WriteOrCreate).map_err(|error| unusable(disk, name, error))
}

/// Why a writer could not open the lock or the mark.
fn unusable(disk: &dyn Disk, name: &str, error: Error) -> Error {
    match in_the_place_of(disk, name) {
        Ok(Some(kind)) => Error::corrupt_data(
            format!("{name} is {}, not a regular file", kind.describe()),
            "No record is at stake, and reading goes on. Move it away, and the next writer makes it anew.",
        ),
        _ => error,
    }
}

/// What the mark says to a process of this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There is none, or no slot of it is valid.
    Absent,
    /// Only one slot is valid; the other may have been the newer one.
    OneSlot,
    /// Written for another inode: the directory was copied. It is no evidence of this copy.
    Copied,
    /// Written in this boot, seen through another mount.
    OtherMount,
    /// Written before the machine was started anew.
    OtherBoot,
    /// Written in this session.
    Current,
}

/// What the busy word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Nobody had begun to write.
    None,
    /// Somebody had, before the machine was started anew.
    OtherBoot,
    /// Somebody is writing, or died while writing; or the word is damaged.
    Now,
}

/// The bytes of the mark that mean something: both slots and the busy word.
type Raw = [u8; 2 * Mark::LEN + Busy::LEN];
/// Where the busy word stands in them.
const RAW_BUSY_AT: usize = 2 * Mark::LEN;

/// The mark as it was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MarkView {
    pub(crate) standing: Standing,
    /// The valid slot with the highest counter.
    pub(crate) best: Option<Mark>,
    pub(crate) activity: Activity,
    /// Which slots are damaged.
    pub(crate) damaged: [bool; 2],
    /// Which slot the next publication overwrites: a damaged one, or the older.
    next_slot: usize,
    raw: Raw,
}

impl MarkView {
    pub(crate) const ABSENT: Self = Self {
        standing: Standing::Absent,
        best: None,
        activity: Activity::None,
        damaged: [false; 2],
        next_slot: 0,
        raw: [0; 2 * Mark::LEN + Busy::LEN],
    };

    /// The mark, if it is evidence of what is in this directory.
    pub(crate) fn evidence(&self) -> Option<&Mark> {
        self.best.as_ref().filter(|_| self.standing != Standing::Copied)
    }

    /// Whether nothing but this mark needs to be looked at to know what is durable.
    pub(crate) fn is_current(&self) -> bool {
        self.standing == Standing::Current && self.activity == Activity::None
    }

    /// Whether nothing was written to the mark between both looks.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.standing == other.standing && self.raw == other.raw
    }
}

/// The open mark.
#[derive(Debug)]
pub(crate) struct MarkFile {
    file: Arc<dyn File>,
    session: Session,
    inode: u64,
    /// This process.
    pid: u32,
}

impl MarkFile {
    /// Opens it, if it is there.
    pub(crate) fn open(disk: &dyn Disk, how: Open) -> Result<Option<Self>> {
        let Some(file) = find(disk, MARK, how)? else { return Ok(None) };
        let stat = file.stat()?;
        let session = disk.session()?;
        Ok(Some(Self { file, session, inode: stat.inode, pid: std::process::id() }))
    }

    pub(crate) fn read(&self) -> Result<MarkView> {
        let mut view = self.read_once()?;
        for _ in 0..TORN_RETRIES {
            if view.damaged == [false; 2] {
                break;
            }
            view = self.read_once()?;
        }
        Ok(view)
    }

    /// Whether nothing was written to it since it was seen like this.
    pub(crate) fn is_still(&self, view: &MarkView) -> Result<bool> {
        Ok(self.read_raw()? == view.raw)
    }

    fn read_raw(&self) -> Result<Raw> {
        let mut bytes = [0; USED_LEN];
        self.file.read_at(&mut bytes, 0)?;
        let mut raw: Raw = [0; RAW_BUSY_AT + Busy::LEN];
        for (slot, at) in MARK_SLOT_OFFSETS.map(to_usize).into_iter().enumerate() {
            raw[raw_slot(slot)].copy_from_slice(&bytes[at..at + Mark::LEN]);
        }
        raw[RAW_BUSY_AT..].copy_from_slice(&bytes[BUSY_AT..]);
        Ok(raw)
    }

    fn read_once(&self) -> Result<MarkView> {
        let raw = self.read_raw()?;
        let slots = [0, 1].map(|slot| Mark::decode(&raw[raw_slot(slot)]));
        let activity = match Busy::decode(&raw[RAW_BUSY_AT..]) {
            (false, _) => Activity::None,
            (true, Some(busy)) if busy.boot != self.session.boot => Activity::OtherBoot,
            (true, _) => Activity::Now,
        };
        let damaged = slots.map(|slot| slot.is_none());
        let newer = match slots {
            [Some(first), Some(second)] => usize::from(second.counter > first.counter),
            [None, Some(_)] => 1,
            [_, None] => 0,
        };
        Ok(MarkView {
            standing: self.standing(slots[newer], damaged),
            best: slots[newer],
            activity,
            damaged,
            next_slot: 1 - newer,
            raw,
        })
    }

    /// A single valid slot proves nothing about the session: the other may have been newer.
    fn standing(&self, best: Option<Mark>, damaged: [bool; 2]) -> Standing {
        let Some(mark) = best else { return Standing::Absent };
        let (then, now) = (mark.session, self.session);
        if mark.inode != self.inode || (then.boot == now.boot && then.device != now.device) {
            Standing::Copied
        } else if damaged != [false; 2] {
            Standing::OneSlot
        } else if then.boot != now.boot {
            Standing::OtherBoot
        } else if then.mount != now.mount {
            Standing::OtherMount
        } else {
            Standing::Current
        }
    }

    /// Who holds the lock and what for, as far as the busy word tells.
    fn holder(&self) -> Option<Busy> {
        let mut bytes = [0_u8; Busy::LEN];
        let read = self.file.read_at(&mut bytes, BUSY_OFFSET).ok()?;
        Busy::decode(&bytes[..read]).1
    }

    /// Says that the holder of the lock is about to write.
    pub(crate) fn set_busy(&self, phase: Phase, since: Time) -> Result<()> {
        let busy = Busy { boot: self.session.boot, pid: self.pid, since, phase };
        self.file.write_at(&busy.encode(), BUSY_OFFSET)
    }

    /// Publishes what is durable now, and clears the busy word: in the older slot or the damaged one; where neither
    /// is valid in both, one after the other. The counter never begins anew, so that a reader that looked before
    /// sees a change.
    pub(crate) fn publish(&self, view: &MarkView, mark: Mark, entropy: &dyn Entropy) -> Result<MarkView> {
        let counter = match view.best {
            Some(best) => best.counter.wrapping_add(1),
            None => entropy.number()? >> 1,
        };
        let mut mark = Mark { counter, session: self.session, inode: self.inode, ..mark };
        let mut raw = view.raw;
        let mut last = if view.best.is_none() { 0 } else { view.next_slot };
        raw[raw_slot(last)].copy_from_slice(&mark.encode());
        if view.best.is_none() {
            self.file.write_at(&raw[raw_slot(last)], MARK_SLOT_OFFSETS[last])?;
            mark.counter = mark.counter.wrapping_add(1);
            last = 1 - last;
            raw[raw_slot(last)].copy_from_slice(&mark.encode());
        }
        raw[RAW_BUSY_AT..].fill(0);
        self.write_from(last, &raw)?;
        // What is there now: nobody else writes to it under the lock.
        Ok(MarkView {
            standing: Standing::Current,
            best: Some(mark),
            activity: Activity::None,
            damaged: [false; 2],
            next_slot: 1 - last,
            raw,
        })
    }

    /// Writes a slot and whatever stands behind it, with one call. The other slot, where it is among that,
    /// is written as it stands there: that damages it as little as looking at it, and each is in a sector of its
    /// own.
    fn write_from(&self, slot: usize, raw: &Raw) -> Result<()> {
        let mut bytes = [0; USED_LEN];
        for (slot, at) in MARK_SLOT_OFFSETS.map(to_usize).into_iter().enumerate() {
            bytes[at..at + Mark::LEN].copy_from_slice(&raw[raw_slot(slot)]);
        }
        bytes[BUSY_AT..].copy_from_slice(&raw[RAW_BUSY_AT..]);
        let from = MARK_SLOT_OFFSETS[slot];
        self.file.write_at(&bytes[to_usize(from)..], from)
    }
}

/// Where a slot stands in the bytes that mean something.
fn raw_slot(slot: usize) -> std::ops::Range<usize> {
    slot * Mark::LEN..(slot + 1) * Mark::LEN
}

/// The lock file, opened.
#[derive(Debug)]
pub(crate) struct Lock {
    file: Arc<dyn File>,
    /// Its device and inode, which are nobody else's while it is open.
    place: (u64, u64),
}

impl Lock {
    /// Opens it for a reader, if it is there.
    pub(crate) fn find(disk: &dyn Disk) -> Result<Option<Self>> {
        find(disk, LOCK, Open::Read)?.map(Self::of).transpose()
    }

    /// Opens it for a writer.
    pub(crate) fn find_or_make(disk: &dyn Disk) -> Result<Self> {
        Self::of(find_or_make(disk, LOCK)?)
    }

    fn of(file: Arc<dyn File>) -> Result<Self> {
        let stat = file.stat()?;
        Ok(Self { file, place: (stat.device, stat.inode) })
    }

    /// Takes the lock if it is free.
    pub(crate) fn try_take(&self) -> Result<bool> {
        self.file.try_lock()
    }

    pub(crate) fn give_back(&self) -> Result<()> {
        self.file.unlock()
    }

    /// Takes the lock, waiting for at most `patience`. It is never stolen: after that time the
    /// error names who holds it.
    pub(crate) fn take(
        &mut self,
        disk: &dyn Disk,
        clock: &dyn Clock,
        patience: Duration,
        mark: &MarkFile,
    ) -> Result<()> {
        let start = clock.monotonic_ns();
        let mut pause = PAUSE.0;
        loop {
            if self.file.try_lock()? {
                let current = self.is_current(disk);
                if let Ok(true) = current {
                    return Ok(());
                }
                // The name stands for another file by now: the lock of this one excludes nobody.
                match current.and_then(|_| Self::find_or_make(disk)) {
                    Ok(moved) => *self = moved,
                    Err(error) => {
                        // Whoever cannot say that the lock is right does not keep it from the others.
                        let _ = self.give_back();
                        return Err(error);
                    }
                }
                continue;
            }
            if u128::from(clock.monotonic_ns().saturating_sub(start)) > patience.as_nanos() {
                return Err(timeout(clock, patience, mark));
            }
            clock.pause(pause);
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn is_current(&self, disk: &dyn Disk) -> Result<bool> {
        disk.is_named(LOCK, self.place.0, self.place.1)
    }
}

fn timeout(clock: &dyn Clock, patience: Duration, mark: &MarkFile) -> Error {
    let who = match mark.holder() {
        Some(busy) => {
            let doing = match busy.phase {
                Phase::Committing => "committing",
                Phase::Rolling => "making the next segment",
                Phase::Recovering => "recovering",
            };
            let seconds = clock.now().millis_since(busy.since) / 1000;
            format!("process {} has been {doing} for {seconds} s", busy.pid)
        }
        None => "the process that holds it has not said what it does".to_owned(),
    };
    Error::new(ErrorKind::Locked, format!("the journal's lock was not free within {patience:?}: {who}")).hint(
        "Nothing was written and no data is at stake. See whether that process is stopped; then try again.",
    )
}

/// Makes the mark file with its full length, so that its blocks are never allocated under load.
pub(crate) fn create_mark(disk: &dyn Disk) -> Result<MarkFile> {
    let file = find_or_make(disk, MARK)?;
    if file.stat()?.len < MARK_LEN {
        file.set_len(MARK_LEN)?;
    }
    drop(file);
    MarkFile::open(disk, Open::Write)?
        .ok_or_else(|| Error::new(ErrorKind::Io, format!("{MARK} went away while it was made")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededEntropy;
    use crate::disk::sim::SimWorld;
    use crate::journal::segment::FOLDER;
    use crate::position::Position;

    /// What a publication is thought to have left is not read back.
    #[test]
    fn what_was_published_is_what_a_look_finds() {
        let disk = SimWorld::new().process(1);
        disk.create_dir(FOLDER).unwrap();
        let file = create_mark(&disk).unwrap();
        let entropy = SeededEntropy::new(1);
        let mut view = file.read().unwrap();
        for n in 1..9_u64 {
            if n % 4 == 0 {
                // A slot is damaged, the older one and then the newer.
                let slot = if n == 4 { view.next_slot } else { 1 - view.next_slot };
                file.file.write_at(b"x", MARK_SLOT_OFFSETS[slot] + 20).unwrap();
                view = file.read().unwrap();
                assert!(view.damaged[slot], "{n}");
            }
            file.set_busy(Phase::Committing, Time(5)).unwrap();
            let mark = Mark {
                counter: 0,
                session: Session::default(),
                inode: 0,
                journal: [7; 16],
                segment: 3,
                end: 2_000 + n,
                position: Position(n),
                chain: [9; 32],
            };
            let before = view.best;
            view = file.publish(&view, mark, &entropy).unwrap();
            let found = file.read().unwrap();
            assert!(view.same(&found) && view.is_current(), "{n}: {view:?} {found:?}");
            assert_eq!((view.best, view.damaged, view.next_slot), (found.best, [false; 2], found.next_slot));
            assert_eq!(view.best.map(|best| best.position), Some(Position(n)));
            assert!(before.is_none_or(|before| view.best.is_some_and(|best| best.counter > before.counter)));
        }
    }
}
