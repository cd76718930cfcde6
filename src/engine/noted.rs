//! Up to where files are known to show what the journal says: what opening need not look at.
//!
//! `cache/projected` is disposable. It is believed where it is the file that was written, and no copy of it, and the
//! journal has the chain hash that it had then, which is one over all that stands before. What it says of the disk
//! was synced before, and holds for ever. What it says of this session holds for what processes see, as long as
//! the machine is not started anew and the file system is not mounted anew.

use super::{Log, hex};
use crate::disk::{Disk, Open, read_whole};
use crate::error::Result;
use crate::position::{Position, StreamId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const FOLDER: &str = "cache";
const FILE: &str = "cache/projected";
const TEMPORARY: &str = "cache/projected.tmp";
/// How many streams are told apart from those that are done: more than there are runs at once.
const MAX_BUT: usize = 64 << 10;
const MAX_LEN: u64 = 2 << 20;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Noted {
    /// Up to here all files are on the disk.
    pub(super) synced: Position,
    /// Up to here they are as they have to be in this session, but for those of some streams.
    pub(super) published: Position,
    pub(super) but: BTreeSet<StreamId>,
    /// Whether something is noted that does not hold here, and whether it is of another journal than this one has
    /// become: then what else the cache knows of files is as well.
    pub(super) wrong: bool,
    pub(super) of_another: bool,
}

/// As it stands in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    position: u64,
    published: u64,
    /// That of the journal at `published`.
    chain: String,
    /// That of the file itself.
    inode: u64,
    session: String,
    but: Vec<u64>,
}

fn this_session(disk: &dyn Disk) -> Result<String> {
    let session = disk.session()?;
    Ok(format!("{}-{}-{}", hex(&session.boot), session.device, session.mount))
}

impl Noted {
    /// What is noted of the journal as it is read here.
    pub(super) fn read(disk: &dyn Disk, log: &mut Log) -> Result<Self> {
        let kept = || -> Option<Kept> { serde_json::from_slice(&read_whole(disk, FILE, MAX_LEN).ok()?).ok() };
        let Some(kept) = kept() else { return Ok(Self::default()) };
        let (synced, published) = (Position(kept.position), Position(kept.published));
        let same_file = disk.stat(FILE).is_ok_and(|stat| stat.is_some_and(|stat| stat.inode == kept.inode));
        let chain = log.reader.chain_at(published)?.map(|chain| hex(&chain));
        let of_another = chain != Some(kept.chain);
        if !same_file || of_another || synced > published {
            return Ok(Self { wrong: true, of_another, ..Self::default() });
        }
        if !this_session(disk).is_ok_and(|session| session == kept.session) {
            return Ok(Self { synced, published: synced, wrong: true, ..Self::default() });
        }
        Ok(Self { synced, published, but: kept.but.into_iter().map(StreamId).collect(), ..Self::default() })
    }

    /// The position before all records of these streams, and not before `least`.
    pub(super) fn before(but: &BTreeSet<StreamId>, least: Position) -> Option<Position> {
        but.first().map(|first| Position(first.0.saturating_sub(1)).max(least))
    }

    /// Notes it for the next who opens. Where somebody else is about to, that will do.
    pub(super) fn write(&self, disk: &dyn Disk, log: &mut Log) -> Result<()> {
        let chain = log.reader.chain_at(self.published)?;
        let Some(chain) = chain.filter(|_| self.but.len() <= MAX_BUT) else { return Ok(()) };
        disk.create_dir(FOLDER)?;
        let folder = disk.open(FOLDER, Open::Directory)?;
        if !folder.try_lock()? {
            return Ok(());
        }
        if disk.stat(TEMPORARY)?.is_some() {
            disk.remove(TEMPORARY)?;
        }
        let file = disk.open(TEMPORARY, Open::CreateNew)?;
        let kept = Kept {
            position: self.synced.0,
            published: self.published.0,
            chain: hex(&chain),
            inode: file.stat()?.inode,
            session: this_session(disk)?,
            but: self.but.iter().map(|stream| stream.0).collect(),
        };
        file.write_at(&serde_json::to_vec(&kept).unwrap_or_default(), 0)?;
        disk.rename(TEMPORARY, FILE, true)?;
        Ok(())
    }
}
