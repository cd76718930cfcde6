//! From the thread that reads the worker's output to the journal.
//!
//! What was read and is not durable yet is bounded ([`MAX_UNWRITTEN_LEN`]): a flood makes the reader
//! wait for the journal, and so the worker for its pipe.

use crate::clock::Clock;
use crate::engine::{NewRecord, Ticket};
use crate::error::{Error, Result};
use crate::record::Body;
use crate::run::recorder::Recorder;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How much may have been read and not be durable.
const MAX_UNWRITTEN_LEN: usize = 16 << 20;
/// How much goes into one append, and so into one batch. A sync has several of them: buffers of this length are
/// soon used again, where those of a whole flood would each be memory that the process has taken for good.
const BATCH_LEN: usize = 1 << 20;
/// What a record counts beside its bytes: so much that a batch of this length has no more records
/// than the journal takes in one, which are 65,536, also where it carries the end of the run.
const RECORD_LEN: usize = 128;
/// How far apart the moments are at which what was read is written: the same ones for all runs of a
/// machine, so that many of them share a sync. The first chunk waits this long at most.
const BEAT_NS: u64 = 25_000_000;
/// From how many bytes on it does not wait any longer, and how much is written at once.
const ENOUGH_LEN: usize = 7 << 20;

/// What was read, on its way to the journal.
#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<NewRecord>,
    len: usize,
    first_at_ns: u64,
    urgent: bool,
    closed: bool,
    failed: Option<Error>,
}

/// The queue between the two.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Pipeline {
    fn hold(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands records on; waits while too much is unwritten.
    pub(super) fn push(&self, clock: &dyn Clock, records: Vec<NewRecord>, urgent: bool) {
        let mut queue = self.hold();
        while queue.len > MAX_UNWRITTEN_LEN && queue.failed.is_none() {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.failed.is_some() {
            return;
        }
        let before = queue.len;
        let first = queue.records.is_empty();
        if first {
            queue.first_at_ns = clock.monotonic_ns();
        }
        queue.len += records.iter().map(record_len).sum::<usize>();
        queue.records.extend(records);
        queue.urgent |= urgent;
        // Whoever gathers has to be woken for the first record and for the one that is enough.
        if first || urgent || (before < ENOUGH_LEN && queue.len >= ENOUGH_LEN) {
            self.changed.notify_all();
        }
    }

    pub(super) fn close(&self) {
        self.hold().closed = true;
        self.changed.notify_all();
    }

    /// What is written next, once it is worth a sync, batch by batch; `None` at the end, and once the journal has
    /// failed. What is left at the end, if it is little, stays for the batch that ends the run.
    fn next(&self, clock: &dyn Clock) -> Option<Vec<Vec<NewRecord>>> {
        let mut queue = self.hold();
        loop {
            if queue.failed.is_some() || (queue.closed && queue.len <= BATCH_LEN) {
                return None;
            }
            if queue.records.is_empty() {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let beat = (queue.first_at_ns / BEAT_NS + 1) * BEAT_NS;
            let left = Duration::from_nanos(beat.saturating_sub(clock.monotonic_ns()));
            if queue.urgent || queue.closed || queue.len >= ENOUGH_LEN || left.is_zero() {
                break;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.urgent = false;
        let (mut batches, mut batch, mut len, mut all) = (Vec::new(), Vec::new(), 0, 0);
        while let Some(record) = queue.records.front() {
            let record_len = record_len(record);
            if all + record_len > ENOUGH_LEN && all > 0 {
                break;
            }
            if len + record_len > BATCH_LEN && !batch.is_empty() {
                batches.push(std::mem::take(&mut batch));
                len = 0;
            }
            (len, all) = (len + record_len, all + record_len);
            batch.extend(queue.records.pop_front());
        }
        batches.push(batch);
        queue.first_at_ns = clock.monotonic_ns();
        Some(batches)
    }

    /// What was not journaled when it was closed.
    pub(super) fn take_rest(&self) -> Vec<NewRecord> {
        self.hold().records.drain(..).collect()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.hold().failed.is_some()
    }

    /// Why the journal failed, if it did.
    pub(super) fn take_failure(&self) -> Option<Error> {
        self.hold().failed.take()
    }

    /// Shows why the journal failed, if it did; answers whether it did.
    pub(super) fn show_failure(&self, show: impl FnOnce(&Error)) -> bool {
        self.hold().failed.as_ref().map(show).is_some()
    }

    fn written(&self, len: usize) {
        let mut queue = self.hold();
        queue.len = queue.len.saturating_sub(len);
        self.changed.notify_all();
    }

    pub(super) fn fail(&self, error: Error) {
        let mut queue = self.hold();
        queue.failed = Some(error);
        queue.records.clear();
        self.changed.notify_all();
    }
}

fn record_len(record: &NewRecord) -> usize {
    RECORD_LEN
        + match &record.body {
            Body::Chunk(_, bytes) => bytes.len(),
            Body::Lifecycle(event) => event.message.len() + event.data.as_str().len(),
            _ => 64,
        }
}

/// The journaling thread: batches until the pipeline is closed or the journal fails. The next ones
/// are encoded while those before are being synced, by a second thread.
pub(super) fn journal(pipeline: &Pipeline, clock: &dyn Clock, recorder: &mut Recorder) {
    std::thread::scope(|scope| {
        let (tickets, waiting) = std::sync::mpsc::sync_channel::<(Vec<Ticket>, usize)>(0);
        let committer = std::thread::Builder::new().name("runwal-commit".to_owned());
        let started = committer.spawn_scoped(scope, move || {
            for (tickets, len) in waiting {
                // The first one that is waited for has all of them committed, with one sync.
                match tickets.into_iter().try_for_each(|ticket| ticket.wait().map(drop)) {
                    Ok(()) => pipeline.written(len),
                    Err(error) => return pipeline.fail(error),
                }
            }
        });
        if let Err(error) = started {
            return pipeline.fail(Error::io("starting the committing thread", error));
        }
        while let Some(batches) = pipeline.next(clock) {
            let len = batches.iter().flatten().map(record_len).sum();
            let submitted: Result<Vec<_>> =
                batches.into_iter().map(|batch| recorder.submit(&batch)).collect();
            match submitted {
                Ok(batches) => {
                    // A committer that is gone has said why.
                    if tickets.send((batches, len)).is_err() {
                        return;
                    }
                }
                Err(error) => return pipeline.fail(error),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::System;
    use crate::engine::{Engine, Options};
    use crate::record::{Channel, Id};
    use crate::run::recorder::{End, Outcome, RunRequest};

    /// Also where much was on its way to it, none of which will ever be written.
    #[test]
    fn what_a_failed_journal_has_not_written_is_waited_for_by_nobody() {
        let pipeline = &Pipeline::default();
        let piece = || Body::Chunk(Channel::Stdout, vec![b'x'; 64 << 10]).into();
        pipeline.push(&System, (0..64).map(|_| piece()).collect(), true);
        assert!(pipeline.next(&System).is_some());
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            scope.spawn(move || tell.send(pipeline.next(&System).is_none()).unwrap());
            pipeline.close();
            pipeline.fail(Error::misuse("the disk is gone"));
            let ended = told.recv_timeout(Duration::from_mins(1));
            // Whoever still waits is let go, so that this ends.
            pipeline.written(usize::MAX);
            assert_eq!(ended, Ok(true));
        });
        assert!(pipeline.take_failure().is_some() && pipeline.take_rest().is_empty());
    }

    /// However little each piece has that was read while the journal was busy: what is left over
    /// for the batch that ends the run, and what is not.
    #[test]
    fn many_small_pieces_fit_into_the_batches_they_come_in() {
        let dir = tempfile::tempdir().unwrap();
        let (engine, _) = Engine::open(dir.path().join("data"), Options::default()).unwrap();
        let id = |text: &str| Id::new(text).unwrap();
        for (run, pieces) in [("rest", 50_000), ("most", 66_000), ("more", 110_000)] {
            let request = RunRequest::new(id("t"), id(run), id("s"));
            let mut recorder = Recorder::prepare(&engine, request).unwrap();
            let pipeline = Pipeline::default();
            let piece = || Body::Chunk(Channel::Stdout, b"x".to_vec()).into();
            pipeline.push(&System, (0..pieces).map(|_| piece()).collect(), true);
            pipeline.close();
            journal(&pipeline, &System, &mut recorder);
            assert!(pipeline.take_failure().is_none(), "{run}");
            let end = End::new(Outcome::Completed, "Done.").after(pipeline.take_rest());
            let result = recorder.finish(end).unwrap();
            assert_eq!(result.counts.channel_bytes, [pieces, 0], "{run}");
        }
        engine.close().unwrap();
    }
}
