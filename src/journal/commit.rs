//! Group commit: whoever waits first leads, and commits for all who have handed in by then. While a
//! group is being made durable the next one gathers.
//!
//! Nothing here knows what is committed: see [`Commit`]. So the order in which threads meet is
//! checked by itself, with all there are.

use super::sync::{
    Arc, AtomicBool, Condvar, LINGER, Mutex, MutexGuard, Once, Ordering, hold, wait, yield_now,
};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};

/// How many groups go by without waiting for those who have just been answered, at most, where that
/// was in vain before.
const MAX_SKIPPED: u32 = 64;
/// From how many bytes on nobody is waited for: a sync is the least part of what such a group costs.
const LONG_GROUP_LEN: usize = 1 << 20;

/// What is done for a group, by one thread at a time.
pub(super) trait Commit {
    /// What was handed in, in order.
    type Collected: Debug + Default;
    /// What becomes of each of it.
    type Answer: Debug;

    /// Commits a group, and leaves nothing in it, however it ends. Gives an answer for each, in order.
    fn commit(&mut self, group: &mut Self::Collected) -> Vec<Self::Answer>;

    /// How many times something was handed in.
    fn count(collected: &Self::Collected) -> usize;

    /// Bytes that it keeps in memory while it waits.
    fn len(collected: &Self::Collected) -> usize;

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
    /// The one who leads is done.
    changed: Condvar,
    /// Somebody has handed in while a thread had nothing to do.
    arrived: Condvar,
}

#[derive(Debug)]
struct Queue<C: Commit> {
    waiting: C::Collected,
    /// What the group before was collected in, to be used again.
    spare: C::Collected,
    /// Where those who wait get their answers.
    group: Arc<Group<C::Answer>>,
    /// Somebody commits the group before.
    leading: bool,
    /// How many groups were committed.
    done: u64,
    /// Nothing more is handed in.
    closed: bool,
    /// How many wait for whoever leads to be done. Nobody is notified where nobody waits: that is a
    /// system call.
    turns_wanted: usize,
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
    /// The answers, by the order in which they were handed in, each taken by whoever it is for.
    given: Once<Vec<Mutex<Option<A>>>>,
    /// Somebody waits for its turn to lead this group.
    has_leader: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl<A> Default for Group<A> {
    fn default() -> Self {
        Self { given: Once::new(), has_leader: AtomicBool::new(false), wakers: Mutex::new(Vec::new()) }
    }
}

impl<A> Group<A> {
    /// Gives everybody the answer.
    fn answer(&self, given: Vec<A>) {
        self.given.set(given.into_iter().map(|answer| Mutex::new(Some(answer))).collect());
        let wakers = std::mem::take(&mut *hold(&self.wakers));
        wakers.into_iter().for_each(Waker::wake);
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
            waiting: C::Collected::default(),
            spare: C::Collected::default(),
            group: Arc::default(),
            leading: false,
            done: 0,
            closed: false,
            turns_wanted: 0,
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

    /// Hands in what `add` puts behind the rest, by itself: never waits for a commit. Answers with the bytes
    /// that wait by then, too; `None` once it was [closed](Self::close).
    pub(super) fn hand_in(&self, add: impl FnOnce(&mut C::Collected)) -> Option<(Place<C>, usize)> {
        let mut queue = hold(&self.queue);
        if queue.closed {
            return None;
        }
        let nth = C::count(&queue.waiting);
        add(&mut queue.waiting);
        let place = Place { group: Arc::clone(&queue.group), nth };
        let (idle, len) = (queue.idle > 0, C::len(&queue.waiting));
        drop(queue);
        if idle {
            self.arrived.notify_all();
        }
        Some((place, len))
    }

    /// Bytes of what waits to be committed.
    pub(super) fn waiting_len(&self) -> usize {
        C::len(&hold(&self.queue).waiting)
    }

    /// Commits everything handed in so far, and waits for nothing that comes later.
    pub(super) fn flush(&self) {
        self.flush_from(hold(&self.queue));
    }

    /// Takes nothing more in, and commits what was: nothing is committed behind that.
    pub(super) fn close(&self) {
        let mut queue = hold(&self.queue);
        queue.closed = true;
        self.flush_from(queue);
    }

    fn flush_from<'q>(&'q self, mut queue: MutexGuard<'q, Queue<C>>) {
        let waiting = C::count(&queue.waiting) > 0;
        let wanted = queue.done + u64::from(queue.leading) + u64::from(waiting);
        while queue.done < wanted {
            queue = if queue.leading { self.wait_for_turn(queue) } else { self.lead(queue) };
        }
    }

    /// Commits whatever is handed in until `stop` says so, and then what is left. [`nudge`](Self::nudge)
    /// has it asked.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code, reason = "only tasks are served"))]
    pub(super) fn serve(&self, stop: &dyn Fn() -> bool) {
        let mut queue = hold(&self.queue);
        loop {
            if C::count(&queue.waiting) > 0 {
                queue = if queue.leading { self.wait_for_turn(queue) } else { self.lead(queue) };
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
    #[cfg_attr(not(feature = "tokio"), allow(dead_code, reason = "only tasks are served"))]
    pub(super) fn nudge(&self) {
        // Whoever is about to wait holds the queue.
        drop(hold(&self.queue));
        self.arrived.notify_all();
    }

    /// Waits until it is answered; leads its group, where nobody else is about to.
    pub(super) fn wait(&self, place: Place<C>) -> C::Answer {
        let Place { group, nth } = place;
        if group.given.get().is_none() && !group.has_leader.swap(true, Ordering::SeqCst) {
            let mut queue = hold(&self.queue);
            // Unless it is committed already, or was by somebody who waits for nothing in it.
            while Arc::ptr_eq(&queue.group, &group) {
                queue = if queue.leading { self.wait_for_turn(queue) } else { self.lead(queue) };
            }
        }
        take(group.given.wait(), nth).unwrap_or_else(C::lost)
    }

    /// The same for a task, which does not lead: somebody has to [`serve`](Self::serve).
    #[cfg_attr(not(feature = "tokio"), allow(dead_code, reason = "only tasks are served"))]
    pub(super) fn poll(place: &Place<C>, context: &Context<'_>) -> Poll<C::Answer> {
        // Asked for while the wakers are held, so that whoever answers finds this one among them.
        let mut wakers = hold(&place.group.wakers);
        if let Some(given) = place.group.given.get() {
            return Poll::Ready(take(given, place.nth).unwrap_or_else(C::lost));
        }
        if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            wakers.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Commits what waits, with nobody else leading.
    fn lead<'q>(&'q self, queue: MutexGuard<'q, Queue<C>>) -> MutexGuard<'q, Queue<C>> {
        let mut queue = queue;
        queue.leading = true;
        queue = self.linger(queue);
        let spare = std::mem::take(&mut queue.spare);
        let mut taken = std::mem::replace(&mut queue.waiting, spare);
        let group = std::mem::take(&mut queue.group);
        let count = C::count(&taken);
        queue.before = count;
        drop(queue);
        // A bug must not keep anybody waiting for ever, and what is behind the queue has to tell by itself
        // what is left of it.
        let commit = || hold(&self.core).commit(&mut taken);
        let answers = catch_unwind(AssertUnwindSafe(commit)).unwrap_or_default();
        C::answered(count);
        // Whoever leads next goes on while all those are woken, which takes about as long as a short sync.
        let mut queue = hold(&self.queue);
        queue.leading = false;
        queue.done += 1;
        queue.spare = taken;
        let next = queue.turns_wanted > 0;
        drop(queue);
        if next {
            self.changed.notify_all();
        }
        group.answer(answers);
        hold(&self.queue)
    }

    /// Waits until whoever leads is done.
    fn wait_for_turn<'q>(&'q self, mut queue: MutexGuard<'q, Queue<C>>) -> MutexGuard<'q, Queue<C>> {
        queue.turns_wanted += 1;
        queue = wait(&self.changed, queue);
        queue.turns_wanted -= 1;
        queue
    }

    /// Waits a moment for those who were answered a moment ago and are about to hand in again: a sync
    /// costs more than that.
    fn linger<'q>(&'q self, mut queue: MutexGuard<'q, Queue<C>>) -> MutexGuard<'q, Queue<C>> {
        let wanted = queue.before;
        if wanted < 2 || C::count(&queue.waiting) >= wanted || C::len(&queue.waiting) >= LONG_GROUP_LEN {
            queue.in_vain = 0;
            return queue;
        }
        if queue.skip > 0 {
            queue.skip -= 1;
            return queue;
        }
        for _ in 0..LINGER {
            if C::count(&queue.waiting) >= wanted {
                break;
            }
            drop(queue);
            yield_now();
            queue = hold(&self.queue);
        }
        if C::count(&queue.waiting) >= wanted {
            queue.in_vain = 0;
        } else {
            queue.in_vain = (queue.in_vain + 1).min(MAX_SKIPPED.ilog2());
            queue.skip = (1 << queue.in_vain) - 2;
        }
        queue
    }
}

fn take<A>(given: &[Mutex<Option<A>>], nth: usize) -> Option<A> {
    given.get(nth).and_then(|answer| hold(answer).take())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::due::Due;
    use std::task::Wake;
    use std::time::Duration;

    #[cfg(shuttle)]
    use shuttle::thread;
    #[cfg(not(shuttle))]
    use std::thread;

    /// Runs it in many orders of its threads: where they are the scheduler's, in ones chosen by chance and
    /// in those with few changes between threads.
    fn in_all_orders(test: fn()) {
        #[cfg(shuttle)]
        {
            shuttle::check_random(test, 20_000);
            shuttle::check_pct(test, 20_000, 3);
        }
        #[cfg(not(shuttle))]
        (0..50).for_each(|_| test());
    }

    /// Keeps what was committed, each answered with how many there were before it.
    #[derive(Default)]
    struct Fake {
        committed: Vec<u32>,
        groups: Vec<usize>,
        /// What happens while a group is committed.
        meanwhile: Option<Box<dyn Fn() + Send>>,
        /// Panics when it comes to this one, or fails to write it; nothing is written from then on.
        panics_at: Option<u32>,
        fails_at: Option<u32>,
        poisoned: bool,
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Told {
        At(usize),
        Poisoned,
        Lost,
    }

    impl Commit for Fake {
        type Collected = Vec<u32>;
        type Answer = Told;

        fn commit(&mut self, group: &mut Vec<u32>) -> Vec<Told> {
            assert!(!group.is_empty(), "nobody leads for nothing");
            self.meanwhile.iter().for_each(|meanwhile| meanwhile());
            // Others hand in meanwhile.
            thread::yield_now();
            self.groups.push(group.len());
            let mut answers = Vec::new();
            for append in group.drain(..) {
                if self.panics_at == Some(append) {
                    self.poisoned = true;
                    std::panic::resume_unwind(Box::new("a bug"));
                }
                self.poisoned |= self.fails_at == Some(append);
                answers.push(if self.poisoned { Told::Poisoned } else { Told::At(self.committed.len()) });
                self.committed.extend((!self.poisoned).then_some(append));
            }
            thread::yield_now();
            answers
        }

        fn count(collected: &Vec<u32>) -> usize {
            collected.len()
        }

        fn len(collected: &Vec<u32>) -> usize {
            collected.iter().map(|n| *n as usize).sum()
        }

        fn answered(_: usize) {}

        fn lost() -> Told {
            Told::Lost
        }
    }

    fn commits(fake: Fake) -> Arc<Commits<Fake>> {
        Arc::new(Commits::new(fake))
    }

    fn hand_in(commits: &Commits<Fake>, append: u32) -> Place<Fake> {
        commits.hand_in(|collected| collected.push(append)).expect("it is not closed").0
    }

    #[test]
    fn everybody_gets_the_answer_to_what_was_handed_in() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            let threads: Vec<_> = (0..3_u32)
                .map(|thread| {
                    let commits = Arc::clone(&commits);
                    thread::spawn(move || {
                        (0..3)
                            .map(|n| (10 * thread + n, commits.wait(hand_in(&commits, 10 * thread + n))))
                            .collect()
                    })
                })
                .collect();
            let told: Vec<Vec<_>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            let fake = commits.core();
            assert_eq!(fake.committed.len(), 9);
            for of_one in told {
                assert!(of_one.is_sorted_by_key(|(_, answer)| match answer {
                    Told::At(at) => *at,
                    other => panic!("{other:?}"),
                }));
                for (append, answer) in of_one {
                    assert!(
                        matches!(answer, Told::At(at) if fake.committed[at] == append),
                        "{append} {answer:?}"
                    );
                }
            }
        });
    }

    #[test]
    fn what_is_handed_in_together_is_committed_together() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            let other = {
                let commits = Arc::clone(&commits);
                thread::spawn(move || commits.wait(hand_in(&commits, 9)))
            };
            let places: Vec<_> = (0..4).map(|n| hand_in(&commits, n)).collect();
            let told: Vec<_> = places.into_iter().map(|place| commits.wait(place)).collect();
            other.join().unwrap();
            assert!(told.is_sorted_by_key(|answer| match answer {
                Told::At(at) => *at,
                other => panic!("{other:?}"),
            }));
            let fake = commits.core();
            assert!(
                fake.groups.len() <= 3,
                "once before, once for all of ours, once behind: {:?}",
                fake.groups
            );
        });
    }

    #[test]
    fn what_nobody_waits_for_is_committed_by_who_comes_next() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            drop(hand_in(&commits, 1));
            let other = {
                let commits = Arc::clone(&commits);
                thread::spawn(move || drop(hand_in(&commits, 2)))
            };
            assert_eq!(
                commits.wait(hand_in(&commits, 3)),
                commits.core().committed.iter().position(|n| *n == 3).map(Told::At).unwrap()
            );
            other.join().unwrap();
            assert!(commits.core().committed.contains(&1));
            commits.flush();
            assert_eq!((commits.core().committed.len(), commits.waiting_len()), (3, 0));
            commits.flush();
        });
    }

    #[test]
    fn what_was_handed_in_first_is_committed_first() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            drop(hand_in(&commits, 1));
            let other = {
                let commits = Arc::clone(&commits);
                thread::spawn(move || commits.flush())
            };
            thread::yield_now();
            let _ = commits.wait(hand_in(&commits, 2));
            other.join().unwrap();
            assert_eq!(commits.core().committed, [1, 2]);
        });
    }

    #[test]
    fn whoever_flushes_does_not_commit_for_those_who_come_later() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            // Whatever is committed, there is more behind it.
            let later = Arc::downgrade(&commits);
            let hand_in_more = move || drop(later.upgrade().map(|commits| hand_in(&commits, 7)));
            commits.core().meanwhile = Some(Box::new(hand_in_more));
            drop(hand_in(&commits, 1));
            let other = {
                let commits = Arc::clone(&commits);
                thread::spawn(move || {
                    commits.wait(hand_in(&commits, 2));
                })
            };
            commits.flush();
            assert!(commits.core().committed.contains(&1));
            other.join().unwrap();
            let groups = commits.core().groups.len();
            assert!(groups <= 3, "{groups} groups for what waited and what was under way");
            commits.core().meanwhile = None;
        });
    }

    #[test]
    fn what_comes_while_it_is_closed_is_committed_or_refused() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            let threads: Vec<_> = [1, 2]
                .map(|n| {
                    let commits = Arc::clone(&commits);
                    thread::spawn(move || {
                        let place = commits.hand_in(|collected| collected.push(n));
                        // One waits, the other does not care.
                        place.map(|(place, _)| (n == 1).then(|| commits.wait(place)))
                    })
                })
                .into_iter()
                .collect();
            commits.close();
            let committed = commits.core().committed.clone();
            for (n, thread) in (1..).zip(threads) {
                let told = thread.join().unwrap();
                assert_eq!(told.is_some(), committed.contains(&n), "{n}: {told:?}, {committed:?}");
            }
            assert_eq!(commits.core().committed, committed, "nothing is written once it is closed");
            assert!(commits.hand_in(|collected| collected.push(3)).is_none());
            commits.close();
        });
    }

    /// A task, as far as waking it goes.
    struct Task(Mutex<bool>, Condvar);

    impl Wake for Task {
        fn wake(self: std::sync::Arc<Self>) {
            *hold(&self.0) = true;
            self.1.notify_all();
        }
    }

    fn task() -> (std::sync::Arc<Task>, Waker) {
        let task = std::sync::Arc::new(Task(Mutex::new(false), Condvar::new()));
        (std::sync::Arc::clone(&task), Waker::from(task))
    }

    fn block_on(place: &Place<Fake>) -> Told {
        let (task, waker) = task();
        loop {
            if let Poll::Ready(answer) = Commits::poll(place, &Context::from_waker(&waker)) {
                return answer;
            }
            let mut woken = hold(&task.0);
            while !*woken {
                woken = wait(&task.1, woken);
            }
            *woken = false;
        }
    }

    /// Has a thread serve tasks while `work` is done.
    fn served(commits: &Arc<Commits<Fake>>, work: impl FnOnce()) {
        let stop = Arc::new(AtomicBool::new(false));
        let server = {
            let (commits, stop) = (Arc::clone(commits), Arc::clone(&stop));
            thread::spawn(move || commits.serve(&|| stop.load(Ordering::SeqCst)))
        };
        work();
        stop.store(true, Ordering::SeqCst);
        commits.nudge();
        server.join().unwrap();
    }

    #[test]
    fn tasks_are_served_until_nothing_is_left() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            served(&commits, || {
                let task = {
                    let commits = Arc::clone(&commits);
                    thread::spawn(move || block_on(&hand_in(&commits, 1)))
                };
                // One that waits as a thread does, beside them.
                let told = commits.wait(hand_in(&commits, 2));
                assert!(matches!(told, Told::At(_)));
                assert!(matches!(task.join().unwrap(), Told::At(_)));
                drop(hand_in(&commits, 3));
            });
            assert_eq!(commits.core().committed.last(), Some(&3));
        });
    }

    #[test]
    fn a_task_that_gives_up_or_goes_on_elsewhere_is_in_nobodys_way() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            served(&commits, || {
                let (_, of_who_gives_up) = task();
                let (_, of_before) = task();
                let given_up = hand_in(&commits, 1);
                let _ = Commits::poll(&given_up, &Context::from_waker(&of_who_gives_up));
                drop(given_up);
                let moves = hand_in(&commits, 2);
                let told = match Commits::poll(&moves, &Context::from_waker(&of_before)) {
                    Poll::Ready(told) => told,
                    // Woken where it is now.
                    Poll::Pending => thread::spawn(move || block_on(&moves)).join().unwrap(),
                };
                assert!(matches!(told, Told::At(_)));
            });
            assert_eq!(commits.core().committed, [1, 2]);
        });
    }

    #[test]
    fn tasks_are_answered_while_it_is_closed() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            served(&commits, || {
                let task = {
                    let commits = Arc::clone(&commits);
                    thread::spawn(move || {
                        let place = commits.hand_in(|collected| collected.push(1));
                        place.map(|(place, _)| block_on(&place))
                    })
                };
                commits.close();
                let committed = commits.core().committed.clone();
                let told = task.join().unwrap();
                assert_eq!(told, committed.contains(&1).then_some(Told::At(0)));
            });
        });
    }

    #[test]
    fn what_nobody_waits_for_is_committed_all_the_same() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            let due = Arc::new(Due::new());
            let flusher = {
                let (commits, due) = (Arc::clone(&commits), Arc::clone(&due));
                thread::spawn(move || {
                    while due.wait(Duration::from_millis(1)) {
                        commits.flush();
                    }
                })
            };
            let threads: Vec<_> = [1, 2]
                .map(|n| {
                    let (commits, due) = (Arc::clone(&commits), Arc::clone(&due));
                    thread::spawn(move || {
                        for m in [n, n + 10] {
                            drop(hand_in(&commits, m));
                            due.ask(usize::try_from(m).unwrap() << 20);
                        }
                    })
                })
                .into_iter()
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            while commits.core().committed.len() < 4 {
                thread::yield_now();
            }
            due.stop();
            flusher.join().unwrap();
        });
    }

    #[test]
    fn what_is_left_when_the_flusher_ends_is_committed_by_who_closes() {
        in_all_orders(|| {
            let commits = commits(Fake::default());
            let due = Arc::new(Due::new());
            let flusher = {
                let (commits, due) = (Arc::clone(&commits), Arc::clone(&due));
                thread::spawn(move || {
                    while due.wait(Duration::from_millis(1)) {
                        commits.flush();
                    }
                })
            };
            let other = {
                let (commits, due) = (Arc::clone(&commits), Arc::clone(&due));
                thread::spawn(move || {
                    let taken = commits.hand_in(|collected| collected.push(1)).is_some();
                    due.ask(1);
                    taken
                })
            };
            due.stop();
            flusher.join().unwrap();
            commits.close();
            let committed = commits.core().committed.len();
            assert_eq!(committed, usize::from(other.join().unwrap()));
        });
    }

    #[test]
    fn a_commit_that_panics_leaves_nobody_waiting() {
        in_all_orders(|| {
            let commits = commits(Fake { panics_at: Some(5), ..Fake::default() });
            let threads: Vec<_> = [4, 5, 6]
                .map(|n| {
                    let commits = Arc::clone(&commits);
                    thread::spawn(move || commits.wait(hand_in(&commits, n)))
                })
                .into_iter()
                .collect();
            let told: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert_eq!(told[1], Told::Lost);
            assert_eq!(commits.wait(hand_in(&commits, 7)), Told::Poisoned);
        });
    }

    #[test]
    fn whoever_comes_behind_a_write_that_failed_is_told() {
        in_all_orders(|| {
            let commits = commits(Fake { fails_at: Some(5), ..Fake::default() });
            let threads: Vec<_> = [4, 5, 6]
                .map(|n| {
                    let commits = Arc::clone(&commits);
                    thread::spawn(move || (n, commits.wait(hand_in(&commits, n))))
                })
                .into_iter()
                .collect();
            let told: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            let committed = commits.core().committed.clone();
            for (n, told) in told {
                let nth = committed.iter().position(|other| *other == n);
                assert_eq!(told, nth.map_or(Told::Poisoned, Told::At), "{n}, {committed:?}");
            }
            assert!(!committed.contains(&5));
            assert_eq!(commits.wait(hand_in(&commits, 7)), Told::Poisoned);
        });
    }

    /// Those who come again at once are waited for, and nobody who does not come. How often is counted, in
    /// whatever order they come.
    #[cfg(not(shuttle))]
    #[test]
    fn a_group_that_was_answered_is_not_waited_for_in_vain_for_ever() {
        let commits = commits(Fake::default());
        let together = |count: u32| {
            let places: Vec<_> = (0..count).map(|n| hand_in(&commits, n)).collect();
            places.into_iter().for_each(|place| {
                commits.wait(place);
            });
        };
        for _ in 0..2_000 {
            together(2);
            together(1);
        }
        assert!(hold(&commits.queue).in_vain <= MAX_SKIPPED.ilog2());
    }
}
