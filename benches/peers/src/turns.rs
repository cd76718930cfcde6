//! Engines that are measured in turns of a fraction of a second: the disk is another one in the next second,
//! and what is to be compared has to meet the same.
//!
//! The parent tells a process by lines on its stdin to [`RUN`], to [`COUNT`] (the same, and what is appended
//! counts) or to [`PAUSE`], and ends it by closing stdin. The process answers with [`READY`] when it could
//! begin and with [`PAUSED`] when all its writers stand still. Between its turns it is stopped as a whole, with
//! whatever it does beside its writers.

use crate::Result;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const RUN: &str = "run";
const COUNT: &str = "count";
const PAUSE: &str = "pause";
const READY: &str = "ready";
const PAUSED: &str = "paused";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Paused,
    Running,
    Over,
}

/// When the writers of a process append.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Looked at before each append, without a lock.
    running: AtomicBool,
    counting: AtomicBool,
    state: Mutex<State>,
    /// Somebody came to the gate, or is gone.
    arrived: Condvar,
    /// For threads.
    changed: Condvar,
    /// For tasks.
    mode: watch::Sender<Mode>,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// Writers that are not at their end, and how many of them stand at the gate.
    writers: usize,
    at_gate: usize,
    /// How long there were turns that counted.
    counted: Duration,
    /// When the first writer had nothing more to append.
    ended: Option<Instant>,
}

impl Turns {
    /// Turns of so many writers.
    pub(crate) fn new(writers: usize) -> Self {
        let state = State { mode: Mode::Paused, writers, at_gate: 0, counted: Duration::ZERO, ended: None };
        Self {
            running: AtomicBool::new(false),
            counting: AtomicBool::new(false),
            state: Mutex::new(state),
            arrived: Condvar::new(),
            changed: Condvar::new(),
            mode: watch::Sender::new(Mode::Paused),
        }
    }

    fn hold(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes before each append of a thread: waits for a turn. False when it is over.
    pub(crate) fn pass(&self) -> bool {
        if self.running.load(Ordering::Relaxed) {
            return true;
        }
        let mut state = self.come_to_gate();
        while state.mode == Mode::Paused {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.at_gate -= 1;
        state.mode == Mode::Running
    }

    /// The same of a task.
    pub(crate) async fn pass_as_task(&self) -> bool {
        if self.running.load(Ordering::Relaxed) {
            return true;
        }
        let mut modes = self.mode.subscribe();
        drop(self.come_to_gate());
        let mode = modes.wait_for(|mode| *mode != Mode::Paused).await.map_or(Mode::Over, |mode| *mode);
        self.hold().at_gate -= 1;
        mode == Mode::Running
    }

    fn come_to_gate(&self) -> MutexGuard<'_, State> {
        let mut state = self.hold();
        state.at_gate += 1;
        self.arrived.notify_all();
        state
    }

    /// Whether an append that came to its end now counts.
    pub(crate) fn counts(&self) -> bool {
        self.counting.load(Ordering::Relaxed)
    }

    /// A writer that leaves when it has nothing more to append, or fails.
    pub(crate) fn enter(&self) -> Entered<'_> {
        Entered(self)
    }

    /// A rate with all of them writing is wanted: it is over with the first that is done.
    fn leave(&self) {
        let mut state = self.hold();
        state.writers -= 1;
        state.ended.get_or_insert_with(Instant::now);
        self.arrived.notify_all();
        self.switch(state, Mode::Over);
    }

    fn switch(&self, mut state: MutexGuard<'_, State>, mode: Mode) {
        if state.mode != Mode::Over {
            state.mode = mode;
            self.running.store(mode == Mode::Running, Ordering::Relaxed);
            self.mode.send_replace(mode);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Has all writers append without end, and everything count.
    pub(crate) fn run_freely(&self) {
        self.counting.store(true, Ordering::Relaxed);
        self.switch(self.hold(), Mode::Running);
    }

    /// Does what the parent says until it says no more; then it is over.
    pub(crate) fn obey(&self, said: impl BufRead, answer: impl Write) -> Result<()> {
        let result = self.obey_each(said, answer);
        self.switch(self.hold(), Mode::Over);
        result
    }

    fn obey_each(&self, said: impl BufRead, mut answer: impl Write) -> Result<()> {
        self.wait_for_all();
        writeln!(answer, "{READY}")?;
        answer.flush()?;
        let mut begun = None;
        for line in said.lines() {
            match line?.as_str() {
                RUN => self.switch(self.hold(), Mode::Running),
                COUNT => {
                    self.counting.store(true, Ordering::Relaxed);
                    begun = Some(Instant::now());
                    self.switch(self.hold(), Mode::Running);
                }
                PAUSE => {
                    self.switch(self.hold(), Mode::Paused);
                    self.wait_for_all();
                    self.counting.store(false, Ordering::Relaxed);
                    let (mut state, now) = (self.hold(), Instant::now());
                    let until = state.ended.unwrap_or(now);
                    state.counted +=
                        begun.take().map_or(Duration::ZERO, |begun| until.saturating_duration_since(begun));
                    drop(state);
                    writeln!(answer, "{PAUSED}")?;
                    answer.flush()?;
                }
                other => return Err(format!("the parent said {other:?}").into()),
            }
        }
        Ok(())
    }

    fn wait_for_all(&self) {
        let mut state = self.hold();
        while state.at_gate < state.writers {
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How long the turns took that counted.
    pub(crate) fn counted(&self) -> Duration {
        self.hold().counted
    }
}

/// See [`Turns::enter`].
#[derive(Debug)]
pub(crate) struct Entered<'t>(&'t Turns);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A process that is measured in turns, as its parent sees it.
#[derive(Debug)]
pub(crate) struct Turner {
    child: Child,
    /// Dropped to end it.
    says: Option<ChildStdin>,
    told: BufReader<ChildStdout>,
}

impl Turner {
    /// Waits until it could begin.
    pub(crate) fn new(mut child: Child) -> Result<Self> {
        let says = child.stdin.take().ok_or("no stdin")?;
        let told = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut turner = Self { child, says: Some(says), told };
        turner.expect(READY)?;
        turner.signal(Signal::STOP)?;
        Ok(turner)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        let mut line = String::new();
        self.told.read_line(&mut line)?;
        if line.trim_end() != wanted {
            return Err(format!("{wanted:?} was expected of it, and not {line:?}").into());
        }
        Ok(())
    }

    fn say(&mut self, word: &str) -> Result<()> {
        let says = self.says.as_mut().ok_or("it was ended")?;
        Ok(writeln!(says, "{word}")?)
    }

    /// A turn of about this length.
    pub(crate) fn turn(&mut self, len: Duration, counts: bool) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.say(if counts { COUNT } else { RUN })?;
        std::thread::sleep(len);
        self.say(PAUSE)?;
        self.expect(PAUSED)?;
        self.signal(Signal::STOP)
    }

    /// Ends it, and answers with what it printed.
    pub(crate) fn end(mut self) -> Result<String> {
        drop(self.says.take());
        self.signal(Signal::CONT)?;
        let mut printed = String::new();
        self.told.read_to_string(&mut printed)?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("it ended with {status}").into());
        }
        Ok(printed)
    }
}

impl Drop for Turner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn writers_append_in_turns_only_and_what_counts_is_told() {
        let turns = Turns::new(3);
        let (all, counted) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while turns.pass() {
                        all.fetch_add(1, Ordering::Relaxed);
                        counted.fetch_add(u64::from(turns.counts()), Ordering::Relaxed);
                    }
                });
            }
            // Read line by line, each after the one before was done.
            let script = Script { lines: ["run\n", "pause\n", "count\n", "pause\n"].iter(), all: &all };
            turns.obey(BufReader::with_capacity(8, script), &mut seen).unwrap();
        });
        assert_eq!(String::from_utf8(seen).unwrap(), "ready\npaused\npaused\n");
        let (all, counted) = (all.into_inner(), counted.into_inner());
        assert!(counted > 0 && counted < all, "{counted} of {all}");
        assert!(turns.counted() > Duration::ZERO);
    }

    /// Says the next line when something was appended since the one before, and that nothing is while all are
    /// paused.
    struct Script<'s> {
        lines: std::slice::Iter<'s, &'s str>,
        all: &'s AtomicU64,
    }

    impl Read for Script<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let Some(line) = self.lines.next() else { return Ok(0) };
            let before = self.all.load(Ordering::Relaxed);
            if *line == "pause\n" {
                while self.all.load(Ordering::Relaxed) == before {
                    std::thread::yield_now();
                }
            } else {
                std::thread::yield_now();
                assert_eq!(self.all.load(Ordering::Relaxed), before);
            }
            into[..line.len()].copy_from_slice(line.as_bytes());
            Ok(line.len())
        }
    }

    #[test]
    fn whoever_is_at_the_end_ends_it_for_all() {
        let turns = Turns::new(2);
        turns.run_freely();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| while turns.pass() {});
            let writer = turns.enter();
            assert!(turns.pass());
            drop(writer);
            other.join().unwrap();
        });
    }
}
