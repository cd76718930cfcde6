//! Up to where files are known to show what the journal says: what opening need not look at.
//!
//! `cache/projected` is disposable. What it says of the disk was synced before, and holds for ever. What it says of
//! this session holds for what processes see, as long as the machine is not started anew and the file system is not
//! mounted anew; a copy of the file says nothing of the files beside it.

use super::hex;
use crate::disk::{Disk, Open, read_whole};
use crate::error::Result;
use crate::position::{Position, StreamId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const FILE: &str = "cache/projected";
const TEMPORARY: &str = "cache/projected.tmp";
/// How many streams are told apart from those that are done.
const MAX_BUT: usize = 4096;
const MAX_LEN: u64 = 128 << 10;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Noted {
    /// Up to here all files are on the disk.
    pub(super) synced: Position,
    /// Up to here they are as they have to be in this session, but for those of some streams.
    pub(super) published: Position,
    pub(super) but: BTreeSet<StreamId>,
    /// Whether something is noted that does not hold here. It may seem to later, when the journal is longer.
    pub(super) wrong: bool,
}

/// As it stands in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    journal: String,
    position: u64,
    session: String,
    /// That of the file itself.
    inode: u64,
    published: u64,
    but: Vec<u64>,
}

fn this_session(disk: &dyn Disk) -> Result<String> {
    let session = disk.session()?;
    Ok(format!("{}-{}-{}", hex(&session.boot), session.device, session.mount))
}

impl Noted {
    /// What is noted of a journal that goes up to `durable`. Of records that it does not have, files may be ahead
    /// of it.
    pub(super) fn read(disk: &dyn Disk, journal: &[u8; 16], durable: Position) -> Self {
        let kept = || -> Option<Kept> { serde_json::from_slice(&read_whole(disk, FILE, MAX_LEN).ok()?).ok() };
        let Some(kept) = kept() else { return Self::default() };
        if kept.journal != hex(journal) || kept.position > durable.0 {
            return Self { wrong: true, ..Self::default() };
        }
        let synced = Position(kept.position);
        let same_file = disk.stat(FILE).is_ok_and(|stat| stat.is_some_and(|stat| stat.inode == kept.inode));
        let same_session = this_session(disk).is_ok_and(|session| session == kept.session);
        if !same_file || !same_session || !(kept.position..=durable.0).contains(&kept.published) {
            return Self { synced, published: synced, but: BTreeSet::new(), wrong: true };
        }
        let but = kept.but.into_iter().map(StreamId).collect();
        Self { synced, published: Position(kept.published), but, wrong: false }
    }

    /// The position before all records of these streams, and not before `least`.
    pub(super) fn before(but: &BTreeSet<StreamId>, least: Position) -> Option<Position> {
        but.first().map(|first| Position(first.0.saturating_sub(1)).max(least))
    }

    /// Notes it for the next who opens.
    pub(super) fn write(mut self, disk: &dyn Disk, journal: &[u8; 16]) -> Result<()> {
        if self.but.len() > MAX_BUT {
            self.published = Self::before(&self.but, self.synced).unwrap_or(self.synced);
            self.but.clear();
        }
        disk.create_dir("cache")?;
        if disk.stat(TEMPORARY)?.is_some() {
            disk.remove(TEMPORARY)?;
        }
        let file = disk.open(TEMPORARY, Open::CreateNew)?;
        let kept = Kept {
            journal: hex(journal),
            position: self.synced.0,
            session: this_session(disk)?,
            inode: file.stat()?.inode,
            published: self.published.0,
            but: self.but.iter().map(|stream| stream.0).collect(),
        };
        file.write_at(&serde_json::to_vec(&kept).unwrap_or_default(), 0)?;
        disk.rename(TEMPORARY, FILE, true)?;
        Ok(())
    }
}
