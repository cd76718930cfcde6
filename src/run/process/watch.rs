//! Reading the worker's output as it comes.

use super::Output;
use super::ended::Ended;
use super::pipeline::Pipeline;
use super::terminal::Terminal;
use super::worker::{PATIENCE, Worker};
use crate::clock::Clock;
use crate::engine::NewRecord;
use crate::error::{Error, Result};
use crate::record::{Body, Channel};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::time::Duration;

/// How much is read from a pipe at once, and so the longest chunk.
const CHUNK_LEN: usize = 64 << 10;
/// How much a pipe is asked to hold, so that a flood is read in few pieces.
const PIPE_LEN: usize = 1 << 20;

const CHANNELS: [Channel; 2] = [Channel::Stdout, Channel::Stderr];

/// Where what is read goes.
pub(super) struct Sinks<'a> {
    pub(super) clock: &'a dyn Clock,
    pub(super) pipeline: &'a Pipeline,
    pub(super) output: &'a mut dyn Output,
}

/// Reads the worker's output until the worker is gone and all of it was read: what it had written
/// itself, however long that takes, and what others write who have its pipes, until `drain` is over.
pub(super) fn watch(
    child: &mut Child,
    outputs: [Option<OwnedFd>; 2],
    worker: &Worker,
    terminal: &Terminal,
    drain: Duration,
    sinks: &mut Sinks<'_>,
) -> Result<Ended> {
    for output in outputs.iter().flatten() {
        // Refused for terminals, and where the user's pipes hold much already; then it is read in
        // more pieces.
        let _ = rustix::pipe::fcntl_setpipe_size(output.as_fd(), PIPE_LEN);
    }
    let channels = outputs.map(|output| output.map(|fd| Watched { fd, owed: 0, muted: false }));
    let mut watch = Watch { channels, buffer: vec![0; CHUNK_LEN], worker, terminal };
    let mut told_failure = false;
    let mut ended: Option<Ended> = None;
    // Since when everything was read that the worker can have written itself.
    let mut read_since = None;
    loop {
        if let Some(ended) = &mut ended {
            ended.drained = watch.channels.iter().all(Option::is_none);
            let owed = watch.channels.iter().flatten().any(|channel| channel.owed > 0);
            if !owed && read_since.is_none() {
                read_since = Some(sinks.clock.monotonic_ns());
            }
            let waited = read_since.map(|since| sinks.clock.monotonic_ns().saturating_sub(since));
            if ended.drained || waited.is_some_and(|ns| Duration::from_nanos(ns) >= drain) {
                break;
            }
        }
        if watch.wait(ended.is_some(), sinks)? && ended.is_none() {
            ended = Some(worker.wait(child, sinks.clock, terminal)?);
            watch.channels.iter_mut().flatten().for_each(Watched::owe);
            terminal.take_back();
        }
        if !told_failure {
            told_failure = sinks.pipeline.show_failure(|error| sinks.output.engine_failed(error));
        }
    }
    // The loop ends only with the worker.
    ended.ok_or_else(|| Error::misuse("the worker was not waited for"))
}

/// A channel that is read.
struct Watched {
    fd: OwnedFd,
    /// How much of what stood in it when the worker exited was not read yet.
    owed: u64,
    /// It is journaled only.
    muted: bool,
}

impl Watched {
    fn owe(&mut self) {
        self.owed = rustix::io::ioctl_fionread(&self.fd).unwrap_or(0);
    }
}

struct Watch<'w> {
    channels: [Option<Watched>; 2],
    buffer: Vec<u8>,
    worker: &'w Worker,
    terminal: &'w Terminal,
}

impl Watch<'_> {
    /// Waits for something to happen, and reads what there is to read. Answers whether the worker
    /// has exited.
    fn wait(&mut self, exited: bool, sinks: &mut Sinks<'_>) -> Result<bool> {
        let mut fds = Vec::with_capacity(3);
        let mut open = Vec::with_capacity(2);
        for (i, channel) in self.channels.iter().enumerate() {
            if let Some(channel) = channel {
                fds.push(PollFd::new(&channel.fd, PollFlags::IN));
                open.push(i);
            }
        }
        if !exited {
            fds.push(PollFd::new(&self.worker.exit, PollFlags::IN));
        }
        match poll(&mut fds, Some(&PATIENCE)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io("waiting for the worker's output", e.into())),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for (nth, i) in open.iter().enumerate() {
            if ready[nth] {
                if !self.read(*i, sinks) {
                    self.channels[*i] = None;
                }
            } else if let Some(channel) = &mut self.channels[*i] {
                channel.owed = 0;
            }
        }
        Ok(!exited && ready.get(open.len()).copied().unwrap_or(false))
    }

    /// Reads once; `false` where the channel is done with.
    fn read(&mut self, i: usize, sinks: &mut Sinks<'_>) -> bool {
        let Some(watched) = &mut self.channels[i] else { return false };
        let read = match rustix::io::read(&watched.fd, &mut self.buffer) {
            Ok(0) => return false,
            Ok(read) => read,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return true,
            // A pseudo-terminal that nobody has open any more answers with an error.
            Err(_) => return false,
        };
        watched.owed = watched.owed.saturating_sub(read as u64);
        let (channel, bytes) = (CHANNELS[i], &self.buffer[..read]);
        let chunk = Body::Chunk(channel, bytes.to_vec());
        let record = NewRecord { time: Some(sinks.clock.now()), ..chunk.into() };
        sinks.pipeline.push(sinks.clock, vec![record], false);
        let worker = self.worker;
        let pointless = || worker.was_ended();
        if watched.muted || sinks.output.write(channel, bytes, &pointless).is_ok() {
            return true;
        }
        watched.muted = true;
        if self.terminal.is_pseudo() {
            // Its other side cannot be closed for output alone. Who writes to a pipe that nobody
            // reads gets this signal.
            worker.signal(Signal::PIPE);
            return true;
        }
        worker.was_ended()
    }
}
