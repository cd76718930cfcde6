//! Group commit: whoever waits first leads, and commits for all who have handed in by then. While a
//! group is being made durable the next one gathers.
//!
//! Nothing here knows what is committed: see [`Commit`]. So the order in which threads meet is
//! checked by itself, with all there are.

use super::sync::{Arc, Condvar, LINGER, Mutex, MutexGuard, hold, wait, wait_for_a_while};
use std::fmt::Debug;
use std::task::{Context, Poll, Waker};

/// How many groups go by without waiting for those who have just been answered, at most, where that
/// was in vain before.
const MAX_SKIPPED: u32 = 64;

/// What is done for a group, by one thread at a time.
pub(super) trait Commit {
    /// What is handed in.
    type Append: Debug;
    /// What becomes of it.
    type Answer: Debug;

    /// Commits a group; an answer for each, in order.
    fn commit(&mut self, group: Vec<Self::Append>) -> Vec<Self::Answer>;

    /// Bytes that it keeps in memory while it waits.
    fn len(append: &Self::Append) -> usize;

    /// Told outside of any lock, how many were answered.
    fn answered(count: usize);

    /// The answer to whom a commit that panicked has left without one.
    fn lost() -> Self::Answer;
}

/// The queue in front of what commits.
#[derive(Debug)]
pub(super) struct Commits<C: Commit> {
    core: Mutex<C>,
    queue: Mutex<Queue<C>>,
    /// The one who leads is done, or has been asked to hurry.
    changed: Condvar,
    /// Somebody has handed in.
    arrived: Condvar,
}

#[derive(Debug)]
struct Queue<C: Commit> {
    waiting: Vec<C::Append>,
    /// Bytes of what waits.
    len: usize,
    /// Where those who wait get their answers.
    group: Arc<Group<C::Answer>>,
    /// Somebody commits the group before.
    leading: bool,
    /// How many whoever leads waits for before it begins.
    awaited: usize,
    /// How many threads of [`serve`](Commits::serve) have nothing to do.
    idle: usize,
    /// How many there were in the group before.
    before: usize,
    /// How often in a row waiting for as many as in the group before was in vain, and how many groups
    /// are still to go by for that.
    in_vain: u32,
    skip: u32,
}

/// Those who are answered together.
#[derive(Debug)]
struct Group<A> {
    state: Mutex<Answers<A>>,
    answered: Condvar,
}

#[derive(Debug)]
struct Answers<A> {
    /// By the order in which they were handed in, each taken by whoever it is for.
    given: Option<Vec<Option<A>>>,
    /// Somebody waits for its turn to lead this group.
    has_leader: bool,
    wakers: Vec<Waker>,
}

impl<A> Default for Group<A> {
    fn default() -> Self {
        let state = Answers { given: None, has_leader: false, wakers: Vec::new() };
        Self { state: Mutex::new(state), answered: Condvar::new() }
    }
}

/// What was handed in, and is committed whether anybody waits for it or not.
#[derive(Debug)]
pub(super) struct Place<C: Commit> {
    group: Arc<Group<C::Answer>>,
    nth: usize,
}

impl<C: Commit> Commits<C> {
    pub(super) fn new(core: C) -> Self {
        let queue = Queue {
            waiting: Vec::new(),
            len: 0,
            group: Arc::default(),
            leading: false,
            awaited: 0,
            idle: 0,
            before: 0,
            in_vain: 0,
            skip: 0,
        };
        Self {
            core: Mutex::new(core),
            queue: Mutex::new(queue),
            changed: Condvar::new(),
            arrived: Condvar::new(),
        }
    }

    /// What commits, while no commit is under way.
    pub(super) fn core(&self) -> MutexGuard<'_, C> {
        hold(&self.core)
    }

    /// Hands in. Never waits for a commit.
    pub(super) fn hand_in(&self, append: C::Append) -> Place<C> {
        let mut queue = hold(&self.queue);
        queue.len += C::len(&append);
        queue.waiting.push(append);
        let place = Place { group: Arc::clone(&queue.group), nth: queue.waiting.len() - 1 };
        let wanted = queue.idle > 0 || (queue.awaited > 0 && queue.waiting.len() >= queue.awaited);
        drop(queue);
        if wanted {
            self.arrived.notify_all();
        }
        place
    }

    /// Bytes of what waits to be committed.
    pub(super) fn waiting_len(&self) -> usize {
        hold(&self.queue).len
    }

    /// Commits everything handed in so far.
    pub(super) fn flush(&self) {
        let mut queue = hold(&self.queue);
        while queue.leading || !queue.waiting.is_empty() {
            queue = if queue.leading { wait(&self.changed, queue) } else { self.lead(queue) };
        }
    }

    /// Commits whatever is handed in until `stop` says so, and then what is left. [`nudge`](Self::nudge)
    /// has it asked.
    pub(super) fn serve(&self, stop: &dyn Fn() -> bool) {
        let mut queue = hold(&self.queue);
        loop {
            if !queue.waiting.is_empty() {
                queue = if queue.leading { wait(&self.changed, queue) } else { self.lead(queue) };
            } else if stop() {
                return;
            } else {
                queue.idle += 1;
                queue = wait(&self.arrived, queue);
                queue.idle -= 1;
            }
        }
    }

    /// Has every thread in [`serve`](Self::serve) ask whether to stop.
    pub(super) fn nudge(&self) {
        // Whoever is about to wait holds the queue.
        drop(hold(&self.queue));
        self.arrived.notify_all();
    }

    /// Waits until it is answered; leads its group, where nobody else is about to.
    pub(super) fn wait(&self, place: Place<C>) -> C::Answer {
        let Place { group, nth } = place;
        let mut answers = hold(&group.state);
        if answers.given.is_none() && !answers.has_leader {
            answers.has_leader = true;
            drop(answers);
            let mut queue = hold(&self.queue);
            // Unless it is committed already, or was by somebody who waits for nothing in it.
            while Arc::ptr_eq(&queue.group, &group) {
                queue = if queue.leading { wait(&self.changed, queue) } else { self.lead(queue) };
            }
            drop(queue);
            answers = hold(&group.state);
        }
        loop {
            match answers.given.as_mut() {
                Some(given) => return take(given, nth).unwrap_or_else(C::lost),
                None => answers = wait(&group.answered, answers),
            }
        }
    }

    /// The same for a task, which does not lead: somebody has to [`serve`](Self::serve).
    pub(super) fn poll(place: &Place<C>, context: &Context<'_>) -> Poll<C::Answer> {
        let mut answers = hold(&place.group.state);
        if let Some(given) = answers.given.as_mut() {
            return Poll::Ready(take(given, place.nth).unwrap_or_else(C::lost));
        }
        if !answers.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            answers.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Commits what waits, with nobody else leading.
    fn lead<'q>(&'q self, queue: MutexGuard<'q, Queue<C>>) -> MutexGuard<'q, Queue<C>> {
        let mut queue = queue;
        queue.leading = true;
        queue = self.linger(queue);
        let appends = std::mem::take(&mut queue.waiting);
        let group = std::mem::take(&mut queue.group);
        (queue.len, queue.before) = (0, appends.len());
        drop(queue);
        let mut turn = Turn { commits: self, group: &group, count: appends.len(), given: None };
        turn.given = Some(hold(&self.core).commit(appends));
        drop(turn);
        hold(&self.queue)
    }

    /// Waits a moment for those who were answered a moment ago and are about to hand in again: a sync
    /// costs more than that.
    fn linger<'q>(&'q self, mut queue: MutexGuard<'q, Queue<C>>) -> MutexGuard<'q, Queue<C>> {
        let wanted = queue.before;
        if wanted < 2 || queue.waiting.len() >= wanted {
            queue.in_vain = 0;
            return queue;
        }
        if queue.skip > 0 {
            queue.skip -= 1;
            return queue;
        }
        queue.awaited = wanted;
        queue = wait_for_a_while(&self.queue, &self.arrived, queue, LINGER, |queue| queue.waiting.len() < wanted);
        queue.awaited = 0;
        if queue.waiting.len() >= wanted {
            queue.in_vain = 0;
        } else {
            queue.in_vain = (queue.in_vain + 1).min(MAX_SKIPPED.ilog2());
            queue.skip = (1 << queue.in_vain) - 2;
        }
        queue
    }
}

fn take<A>(given: &mut [Option<A>], nth: usize) -> Option<A> {
    given.get_mut(nth).and_then(Option::take)
}

/// Somebody's turn to lead. Passed on, and those who wait answered, also where it panics.
struct Turn<'c, C: Commit> {
    commits: &'c Commits<C>,
    group: &'c Group<C::Answer>,
    count: usize,
    given: Option<Vec<C::Answer>>,
}

impl<C: Commit> Drop for Turn<'_, C> {
    fn drop(&mut self) {
        // Whoever leads next begins while the others are still being woken.
        hold(&self.commits.queue).leading = false;
        self.commits.changed.notify_all();
        C::answered(self.count);
        let given = self.given.take().unwrap_or_default().into_iter().map(Some).collect();
        let mut answers = hold(&self.group.state);
        answers.given = Some(given);
        let wakers = std::mem::take(&mut answers.wakers);
        drop(answers);
        self.group.answered.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }
}
