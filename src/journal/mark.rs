//! The lock file and the mark: how processes take turns, and how they tell what is durable.
//!
//! `journal/lock` is only ever locked, `journal/mark` is only ever written in place. They are two
//! files because looking at the times of a file that is written per commit costs a third of the
//! commit rate.

use super::segment::FOLDER;
use crate::clock::Clock;
use crate::disk::{Disk, File, Open, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BUSY_OFFSET, Busy, MARK_LEN, MARK_SLOT_OFFSETS, Mark, Phase};
use crate::position::Time;
use std::sync::Arc;
use std::time::Duration;

/// How often a mark with an invalid slot is read again: a slot may be in the middle of being written.
const TORN_RETRIES: usize = 3;
/// The first and the longest pause between two tries for the lock.
const PAUSE: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));

fn lock_name() -> String {
    format!("{FOLDER}/lock")
}

fn mark_name() -> String {
    format!("{FOLDER}/mark")
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

/// The mark as it was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MarkView {
    pub(crate) standing: Standing,
    /// The valid slot with the highest counter.
    pub(crate) best: Option<Mark>,
    /// Whether the busy word is set.
    pub(crate) busy: bool,
    /// Which slot the next publication overwrites.
    next_slot: usize,
    /// Which slots are damaged.
    pub(crate) damaged: [bool; 2],
}

impl MarkView {
    pub(crate) const ABSENT: Self =
        Self { standing: Standing::Absent, best: None, busy: false, next_slot: 0, damaged: [false; 2] };

    /// The mark, if it is evidence of what is in this directory.
    pub(crate) fn evidence(&self) -> Option<&Mark> {
        self.best.as_ref().filter(|_| self.standing != Standing::Copied)
    }

    /// Whether nothing but this mark needs to be looked at to know what is durable.
    pub(crate) fn is_current(&self) -> bool {
        self.standing == Standing::Current
    }

    /// Whether both views are of the same publication.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.best == other.best && self.busy == other.busy && self.damaged == other.damaged
    }
}

/// The open mark.
#[derive(Debug)]
pub(crate) struct MarkFile {
    file: Arc<dyn File>,
    session: Session,
    inode: u64,
    device: u64,
}

impl MarkFile {
    /// Opens it, if it is there.
    pub(crate) fn open(disk: &dyn Disk, how: Open) -> Result<Option<Self>> {
        match disk.open(&mark_name(), how) {
            Ok(file) => {
                let stat = file.stat()?;
                let session = disk.session()?;
                Ok(Some(Self { file, session, inode: stat.inode, device: stat.device }))
            }
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
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

    fn read_once(&self) -> Result<MarkView> {
        let mut bytes = [0_u8; BUSY_OFFSET as usize + Busy::LEN];
        let read = self.file.read_at(&mut bytes, 0)?;
        let bytes = &bytes[..read];
        let slots = MARK_SLOT_OFFSETS.map(|at| bytes.get(at as usize..).and_then(Mark::decode));
        let counter = |slot: &Option<Mark>| slot.map_or(0, |mark| mark.counter + 1);
        let newer = usize::from(counter(&slots[1]) > counter(&slots[0]));
        let best = slots[newer];
        let standing = match best {
            None => Standing::Absent,
            Some(mark) if mark.inode != self.inode => Standing::Copied,
            Some(mark) if mark.session.boot == self.session.boot && mark.session.device != self.session.device => {
                Standing::Copied
            }
            Some(_) if slots.iter().any(Option::is_none) => Standing::OneSlot,
            Some(mark) if mark.session.boot != self.session.boot => Standing::OtherBoot,
            Some(mark) if mark.session.mount != self.session.mount => Standing::OtherMount,
            Some(_) => Standing::Current,
        };
        let (busy, _) = Busy::decode(bytes.get(BUSY_OFFSET as usize..).unwrap_or_default());
        let damaged = [slots[0].is_none(), slots[1].is_none()];
        Ok(MarkView { standing, best, busy, next_slot: 1 - newer, damaged })
    }

    /// Who holds the lock and what for, as far as the busy word tells.
    fn holder(&self) -> Option<Busy> {
        let mut bytes = [0_u8; Busy::LEN];
        let read = self.file.read_at(&mut bytes, BUSY_OFFSET).ok()?;
        Busy::decode(&bytes[..read]).1
    }

    /// Says that the holder of the lock is about to write.
    pub(crate) fn set_busy(&self, phase: Phase, since: Time) -> Result<()> {
        self.file.write_at(&Busy { pid: own_pid(), since, phase }.encode(), BUSY_OFFSET)
    }

    /// Publishes what is durable now and clears the busy word. Both slots are written where one is
    /// damaged, so that the mark is whole again.
    pub(crate) fn publish(&self, view: &MarkView, mark: Mark) -> Result<MarkView> {
        let counter = view.best.map_or(1, |best| best.counter + 1);
        let mark = Mark { counter, session: self.session, inode: self.inode, ..mark };
        self.file.write_at(&mark.encode(), MARK_SLOT_OFFSETS[view.next_slot])?;
        let mut next_slot = 1 - view.next_slot;
        let mut best = mark;
        if view.best.is_none() || view.standing != Standing::Current {
            best = Mark { counter: counter + 1, ..mark };
            self.file.write_at(&best.encode(), MARK_SLOT_OFFSETS[next_slot])?;
            next_slot = 1 - next_slot;
        }
        self.file.write_at(&[0; Busy::LEN], BUSY_OFFSET)?;
        Ok(MarkView {
            standing: Standing::Current,
            best: Some(best),
            busy: false,
            next_slot,
            damaged: [false; 2],
        })
    }
}

/// The lock file, opened.
#[derive(Debug)]
pub(crate) struct Lock {
    file: Arc<dyn File>,
}

impl Lock {
    /// Opens it; without `create` a missing one is `None`.
    pub(crate) fn open(disk: &dyn Disk, create: bool) -> Result<Option<Self>> {
        let how = if create { Open::WriteOrCreate } else { Open::Read };
        match disk.open(&lock_name(), how) {
            Ok(file) => Ok(Some(Self { file })),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
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
        mark: Option<&MarkFile>,
    ) -> Result<()> {
        let start = clock.monotonic_ns();
        let mut pause = PAUSE.0;
        loop {
            if self.file.try_lock()? {
                if self.is_current(disk)? {
                    return Ok(());
                }
                // The name stands for another file by now: the lock of this one excludes nobody.
                self.file = disk.open(&lock_name(), Open::WriteOrCreate)?;
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
        let held = self.file.stat()?;
        Ok(disk
            .stat(&lock_name())?
            .is_some_and(|named| (named.device, named.inode) == (held.device, held.inode)))
    }
}

fn timeout(clock: &dyn Clock, patience: Duration, mark: Option<&MarkFile>) -> Error {
    let who = match mark.and_then(MarkFile::holder) {
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
    Error::new(ErrorKind::Locked, format!("the journal's lock was not free within {patience:?}: {who}"))
        .hint("Nothing was written and no data is at stake. See whether that process is stopped; then try again.")
}

/// The id of this process.
pub(crate) fn own_pid() -> u32 {
    std::process::id()
}

/// Makes the mark file with its full length, so that its blocks are never allocated under load.
pub(crate) fn create_mark(disk: &dyn Disk) -> Result<MarkFile> {
    let file = disk.open(&mark_name(), Open::WriteOrCreate)?;
    if file.stat()?.len < MARK_LEN {
        file.set_len(MARK_LEN)?;
    }
    drop(file);
    MarkFile::open(disk, Open::Write)?
        .ok_or_else(|| Error::new(ErrorKind::Io, format!("{} went away while it was made", mark_name())))
}
