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

/// Reads the worker's output until the worker is gone and all of it was read, or `drain` is over.
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
    let mut watch = Watch { outputs, buffer: vec![0; CHUNK_LEN] };
    let mut told_failure = false;
    let mut ended: Option<(Ended, u64)> = None;
    loop {
        if let Some((ended, at)) = &mut ended {
            ended.drained = watch.outputs.iter().all(Option::is_none);
            let waited = Duration::from_nanos(sinks.clock.monotonic_ns().saturating_sub(*at));
            if ended.drained || waited >= drain {
                break;
            }
        }
        if watch.wait(&worker.exit, ended.is_some(), sinks)? && ended.is_none() {
            ended = Some((worker.wait(child, sinks.clock, terminal)?, sinks.clock.monotonic_ns()));
            terminal.take_back();
        }
        if !told_failure {
            told_failure = sinks.pipeline.show_failure(|error| sinks.output.engine_failed(error));
        }
    }
    // The loop ends only with the worker.
    ended.map(|(ended, _)| ended).ok_or_else(|| Error::misuse("the worker was not waited for"))
}

struct Watch {
    outputs: [Option<OwnedFd>; 2],
    buffer: Vec<u8>,
}

impl Watch {
    /// Waits for something to happen, and reads what there is to read. Answers whether the worker
    /// has exited.
    fn wait(&mut self, exit: &OwnedFd, exited: bool, sinks: &mut Sinks<'_>) -> Result<bool> {
        let mut fds = Vec::with_capacity(3);
        let mut open = Vec::with_capacity(2);
        for (i, output) in self.outputs.iter().enumerate() {
            if let Some(output) = output {
                fds.push(PollFd::new(output, PollFlags::IN));
                open.push(i);
            }
        }
        if !exited {
            fds.push(PollFd::new(exit, PollFlags::IN));
        }
        match poll(&mut fds, Some(&PATIENCE)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io("waiting for the worker's output", e.into())),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for (nth, i) in open.iter().enumerate() {
            if ready[nth] && !self.read(*i, sinks) {
                self.outputs[*i] = None;
            }
        }
        Ok(!exited && ready.get(open.len()).copied().unwrap_or(false))
    }

    /// Reads once; `false` where the channel is done with.
    fn read(&mut self, i: usize, sinks: &mut Sinks<'_>) -> bool {
        let Some(output) = &self.outputs[i] else { return false };
        let read = match rustix::io::read(output, &mut self.buffer) {
            Ok(0) => return false,
            Ok(read) => read,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return true,
            // A pseudo-terminal that nobody has open any more answers with an error.
            Err(_) => return false,
        };
        let (channel, bytes) = (CHANNELS[i], &self.buffer[..read]);
        let chunk = Body::Chunk(channel, bytes.to_vec());
        let record = NewRecord { time: Some(sinks.clock.now()), ..chunk.into() };
        sinks.pipeline.push(sinks.clock, vec![record], false);
        sinks.output.write(channel, bytes).is_ok()
    }
}
