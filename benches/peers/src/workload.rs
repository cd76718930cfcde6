//! The workloads by name.

use crate::engines::Kind;

/// Bytes of an event, but for `w2-4k`.
pub(crate) const EVENT_LEN: usize = 256;

/// What is measured, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Workload {
    /// One writer, each append durable.
    W1,
    /// 64 writers.
    W2,
    /// 8 writers.
    #[value(name = "w2-8")]
    W2Eight,
    /// 64 writers, events of 4 KiB.
    #[value(name = "w2-4k")]
    W2Large,
    /// 64 tasks of a runtime.
    W2Async,
    /// 64 tickets in flight on two threads.
    W2Tickets,
    /// 10,000 streams, 64 writers.
    W8,
    /// One writer, buffered, one sync at the end.
    W3,
    /// Opening after a clean end.
    W4,
    /// Opening after a kill.
    W4Kill,
    /// A scan of everything.
    W5,
    /// Bytes on disk per event.
    W6,
    /// The same for lines of JSON.
    W6b,
    /// One event by stream and sequence.
    W7,
    /// Opening and appending in journals of several sizes.
    Flat,
}

/// How a figure is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// The more the better.
    PerSecond,
    /// The less the better.
    Milliseconds,
    /// The less the better.
    Bytes,
}

/// Writers that append one by one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) writers: u32,
    pub(crate) streams: u32,
    pub(crate) len: usize,
    /// More than any engine reaches on the disks of today; whoever prepares room prepares so much.
    pub(crate) rate_limit: u64,
}

impl Workload {
    /// The name.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::W2Eight => "w2-8",
            Self::W2Large => "w2-4k",
            Self::W2Async => "w2-async",
            Self::W2Tickets => "w2-tickets",
            Self::W3 => "w3",
            Self::W4 => "w4",
            Self::W4Kill => "w4-kill",
            Self::W5 => "w5",
            Self::W6 => "w6",
            Self::W6b => "w6b",
            Self::W7 => "w7",
            Self::W8 => "w8",
            Self::Flat => "flat",
        }
    }

    /// A few words for the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::W1 => "one writer, each append durable",
            Self::W2 => "64 writers",
            Self::W2Eight => "8 writers",
            Self::W2Large => "64 writers, 4 KiB each",
            Self::W2Async => "64 asynchronous tasks",
            Self::W2Tickets => "64 tickets, two threads",
            Self::W3 => "buffered, one sync at the end",
            Self::W4 => "open after a clean end",
            Self::W4Kill => "open after SIGKILL",
            Self::W5 => "scan of everything",
            Self::W6 => "bytes on disk per event",
            Self::W6b => "the same, JSON",
            Self::W7 => "one event by stream and sequence",
            Self::W8 => "10,000 streams, 64 writers",
            Self::Flat => "open and append, by size",
        }
    }

    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::W4 | Self::W4Kill | Self::Flat => Unit::Milliseconds,
            Self::W6 | Self::W6b => Unit::Bytes,
            _ => Unit::PerSecond,
        }
    }

    /// The writers, where single appends are what is measured.
    pub(crate) fn load(self) -> Option<Load> {
        let load = |writers, streams, len, rate_limit| Some(Load { writers, streams, len, rate_limit });
        match self {
            Self::W1 => load(1, 1, EVENT_LEN, 60_000),
            Self::W2 => load(64, 64, EVENT_LEN, 600_000),
            Self::W2Async | Self::W2Tickets => load(64, 64, EVENT_LEN, 1_200_000),
            Self::W2Eight => load(8, 8, EVENT_LEN, 250_000),
            Self::W2Large => load(64, 64, 4096, 250_000),
            Self::W8 => load(64, 10_000, EVENT_LEN, 600_000),
            _ => None,
        }
    }

    /// Whether an engine has a part in it.
    pub(crate) fn suits(self, kind: Kind) -> bool {
        if kind == Kind::RunwalReserved {
            return self.load().is_some() || matches!(self, Self::W3 | Self::W4Kill);
        }
        match self {
            Self::W2 | Self::W2Eight | Self::W2Large | Self::W8 => true,
            // The limit's figure is that of 64 threads.
            Self::W2Async | Self::W2Tickets => kind == Kind::Limit || kind.is_runwal(),
            Self::W7 => kind != Kind::Okaywal && !kind.is_grouped(),
            _ => !kind.is_grouped(),
        }
    }
}
