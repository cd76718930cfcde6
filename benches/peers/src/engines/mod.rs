//! What a workload asks of an engine, and the engines.

mod fjall;
mod limit;
mod okaywal;
mod raft_engine;
mod redb;
pub(crate) mod runwal;
mod sqlite;

use crate::Result;
use crate::event::{Events, Layout, Seen};
use std::ops::Range;
use std::path::Path;

/// An opened journal.
pub(crate) trait Engine: Sync {
    /// Makes the streams that writers will write to; for engines that have to know them.
    fn begin(&mut self, _streams: Range<u32>) -> Result<()> {
        Ok(())
    }

    /// A handle for one thread.
    fn writer(&self) -> Result<Box<dyn Writer + '_>>;

    /// Appends all events of a layout, durable as a whole when it returns.
    fn fill(&self, layout: &Layout, events: &mut Events) -> Result<()>;

    /// Reads every event once, with every check the engine has.
    fn scan(&self) -> Result<Seen>;

    /// A handle for reading single events; `None` where the engine has no such thing.
    fn reader(&self, layout: &Layout) -> Result<Option<Box<dyn Reader + '_>>>;

    /// Ends in order.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Appends single events.
pub(crate) trait Writer {
    /// Durable when it returns. The sequences of a stream are 1, 2, 3 and so on.
    fn append(&mut self, stream: u32, seq: u64, event: &[u8]) -> Result<()>;
}

/// Reads single events.
pub(crate) trait Reader {
    /// Hands the event to `visit`, which is called once.
    fn read(&mut self, stream: u32, seq: u64, visit: &mut dyn FnMut(&[u8])) -> Result<()>;
}

/// What an engine is told when it opens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    /// How many events there will be at most. Who can prepare room for them does.
    pub(crate) events: u64,
    /// Bytes of an event.
    pub(crate) len: usize,
    /// Whether appends that are durable one by one are measured, rather than filling.
    pub(crate) durable: bool,
}

/// The engines by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// The least an honest durable log has to do.
    Limit,
    /// This crate.
    Runwal,
    /// The same with room for all events reserved, as the limit has it.
    RunwalReserved,
    /// SQLite, a transaction for each append.
    Sqlite,
    /// SQLite, a transaction for all appends that wait.
    SqliteGrouped,
    /// redb, a transaction for each append.
    Redb,
    /// redb, a transaction for all appends that wait.
    RedbGrouped,
    /// fjall, a sync for each append.
    Fjall,
    /// fjall, a batch for all appends that wait.
    FjallGrouped,
    /// raft-engine, which groups by itself.
    RaftEngine,
    /// okaywal, which groups by itself.
    Okaywal,
    /// This crate as another build of this program has it.
    RunwalOther,
}

impl Kind {
    /// The name.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Runwal => "runwal",
            Self::RunwalReserved => "runwal-reserved",
            Self::Sqlite => "sqlite",
            Self::SqliteGrouped => "sqlite-grouped",
            Self::Redb => "redb",
            Self::RedbGrouped => "redb-grouped",
            Self::Fjall => "fjall",
            Self::FjallGrouped => "fjall-grouped",
            Self::RaftEngine => "raft-engine",
            Self::Okaywal => "okaywal",
            Self::RunwalOther => "runwal-other",
        }
    }

    /// Whether it differs from another only in how waiting writers share a commit.
    pub(crate) fn is_grouped(self) -> bool {
        matches!(self, Self::SqliteGrouped | Self::RedbGrouped | Self::FjallGrouped)
    }

    /// Whether this is the crate that the others are compared with.
    pub(crate) fn is_runwal(self) -> bool {
        matches!(self, Self::Runwal | Self::RunwalReserved | Self::RunwalOther)
    }

    /// Opens the journal in a directory that exists, making it if need be.
    pub(crate) fn open(self, dir: &Path, setup: &Setup) -> Result<Box<dyn Engine>> {
        Ok(match self {
            Self::Limit => Box::new(limit::Limit::open(dir, setup)?),
            Self::Runwal | Self::RunwalOther => Box::new(runwal::Runwal::open(dir)?),
            Self::RunwalReserved => Box::new(runwal::Runwal::open_reserved(dir, setup)?),
            Self::Sqlite | Self::SqliteGrouped => Box::new(sqlite::Sqlite::open(dir, self.is_grouped())?),
            Self::Redb | Self::RedbGrouped => Box::new(redb::Redb::open(dir, self.is_grouped())?),
            Self::Fjall | Self::FjallGrouped => Box::new(fjall::Fjall::open(dir, self.is_grouped())?),
            Self::RaftEngine => Box::new(raft_engine::RaftEngine::open(dir, setup)?),
            Self::Okaywal => Box::new(okaywal::Okaywal::open(dir, setup)?),
        })
    }
}

/// Events that wait for the one who commits for all of them.
type Waiting = Vec<(u32, u64, Vec<u8>)>;
