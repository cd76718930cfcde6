//! What nobody waits for is committed after a while, by a thread of its own.

use super::publisher::Publisher;
use crate::error::{Error, Result};
use crate::journal::{Due, Journal};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The thread.
#[derive(Debug)]
pub(super) struct Flusher {
    due: Arc<Due>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Flusher {
    /// Commits what waits so long after the first of it was handed in.
    pub(super) fn start(
        journal: Journal,
        publisher: Option<Arc<Publisher>>,
        after: Duration,
    ) -> Result<Self> {
        let due = Arc::new(Due::new());
        let for_thread = Arc::clone(&due);
        let thread = std::thread::Builder::new()
            .name("runwal-flush".to_owned())
            .spawn(move || {
                while for_thread.wait(after) {
                    let buffered = publisher.as_ref().map(|publisher| publisher.take_buffered());
                    journal.flush();
                    if let Some(publisher) = &publisher {
                        publisher.poke(buffered.unwrap_or_default(), journal.durable());
                    }
                }
            })
            .map_err(|error| Error::io("starting the thread that commits what is buffered", error))?;
        Ok(Self { due, thread: Mutex::new(Some(thread)) })
    }

    /// Has what was handed in before committed in a while, and at once where it is much.
    pub(super) fn ask(&self, waiting_len: usize) {
        self.due.ask(waiting_len);
    }

    /// Ends the thread; once more does nothing. What was handed in last may not be committed yet.
    pub(super) fn stop(&self) {
        self.due.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A commit that panics is caught where it happens.
            let _ = thread.join();
        }
    }
}

impl Drop for Flusher {
    /// One that was made while the engine was being closed is ended here.
    fn drop(&mut self) {
        self.stop();
    }
}
