//! How a step is asked to stop.

use crate::error::{Error, Result};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// Asks a step to stop, from any thread or signal handler's thread.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<CancelInner>);

#[derive(Debug)]
struct CancelInner {
    last: AtomicI32,
    count: AtomicU32,
    handed_on: AtomicU32,
    #[cfg(feature = "tokio")]
    told: tokio::sync::Notify,
    /// Readable from the first time on that a signal is to be handed on.
    wake: OwnedFd,
}

impl Cancel {
    /// A handle that has asked for nothing yet.
    pub fn new() -> Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::io("making an event descriptor", e.into()))?;
        Ok(Self(Arc::new(CancelInner {
            last: AtomicI32::new(0),
            count: AtomicU32::new(0),
            handed_on: AtomicU32::new(0),
            #[cfg(feature = "tokio")]
            told: tokio::sync::Notify::new(),
            wake,
        })))
    }

    /// Hands a signal on to the workers of all steps that have this handle, by its number (15 is
    /// SIGTERM); their runs will end as cancelled, by force once the grace is over.
    pub fn cancel(&self, signal: i32) {
        self.interrupted(signal);
        self.0.handed_on.fetch_add(1, Ordering::SeqCst);
        let _ = rustix::io::write(&self.0.wake, &1_u64.to_ne_bytes());
    }

    /// Notes that a signal reached the worker by itself, as Ctrl-C does where both share a process
    /// group: what of the step is not its worker's doing is stopped.
    pub fn interrupted(&self, signal: i32) {
        self.0.last.store(signal, Ordering::SeqCst);
        self.0.count.fetch_add(1, Ordering::SeqCst);
        #[cfg(feature = "tokio")]
        self.0.told.notify_waiters();
    }

    /// The signal that was asked for last, by its number; 0 for none.
    pub fn signal(&self) -> i32 {
        self.0.last.load(Ordering::SeqCst)
    }

    /// Whether a stop was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.count() > 0
    }

    /// How often a stop was asked for.
    pub(super) fn count(&self) -> u32 {
        self.0.count.load(Ordering::SeqCst)
    }

    /// Waits until a stop is asked for.
    #[cfg(feature = "tokio")]
    pub async fn cancelled(&self) {
        let mut told = std::pin::pin!(self.0.told.notified());
        told.as_mut().enable();
        if !self.is_cancelled() {
            told.await;
        }
    }

    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }

    /// How often a signal was to be handed on.
    pub(super) fn handed_on(&self) -> u32 {
        self.0.handed_on.load(Ordering::SeqCst)
    }
}
