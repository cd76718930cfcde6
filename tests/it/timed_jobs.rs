//! Timed jobs, sentence by sentence: what each call does, and every record of it to the byte. Long
//! times and deaths are in `ticker.rs`.
//!
//! [`INDEX`] names every sentence and the tests that hold it; a test holds the index. Time is the
//! test's own: tokio's stands still, and the clock moves only when told to.

#![expect(clippy::disallowed_methods, reason = "looks at the disk behind the library's back")]

use crate::domain::{Rules, check_index};
use crate::ticker::Hand;
use runwal::clock::{Clock, ManualClock, SeededEntropy};
use runwal::disk::sim::{Fate, Fault, SimDisk, SimWorld};
use runwal::engine::{Engine, Log, Options, World};
use runwal::error::{Conflict, ErrorKind};
use runwal::position::{Seq, Time};
use runwal::projection::tick_line;
use runwal::record::{Body, JsonText, Record, Tick as TickRecord};
use runwal::timed_jobs::{
    Answer, BoxFuture, Config, Context, Decision, Identity, QUEUE_BYTES, QUEUE_LEN, Report, RunnerError,
    Schedule, TimedJobs, TimedJobsOptions, Trigger, Work,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::yield_now;

const INDEX: &[(&str, Rules)] = &[
    (
        "config and runners",
        &[
            (
                "an interval of 0 is a typed error; auto_start is on by default",
                &["timed_jobs::an_interval_of_zero_is_refused_and_the_rest_is_handed_on"],
            ),
            (
                "max messages, max tasks and settle delay are handed on, not enforced",
                &["timed_jobs::an_interval_of_zero_is_refused_and_the_rest_is_handed_on"],
            ),
            (
                "names are trimmed; empty, taken or the framework's: a typed error; the description is optional",
                &["timed_jobs::names_are_trimmed_and_must_be_free"],
            ),
            (
                "the context: controller id, host, term, batch id, trigger, config copy, log directory or none, store, engine",
                &[
                    "timed_jobs::a_runner_finds_everything_in_its_context",
                    "timed_jobs::without_files_there_is_no_log_directory_and_ticks_are_journaled_as_ever",
                    "timed_jobs::the_identity_is_that_of_the_moment",
                ],
            ),
            (
                "the log function: any stage, optional fields; runner name and batch id are the framework's",
                &["timed_jobs::what_a_runner_logs_bears_its_own_name_and_batch"],
            ),
            (
                "accessors: config copy, runner names in order, started or not",
                &[
                    "timed_jobs::an_interval_of_zero_is_refused_and_the_rest_is_handed_on",
                    "timed_jobs::names_are_trimmed_and_must_be_free",
                    "timed_jobs::a_start_is_recorded_once_and_the_first_tick_comes_an_interval_later",
                ],
            ),
        ],
    ),
    (
        "start and stop",
        &[
            (
                "start writes started, loop_enabled or loop_disabled; a second start does nothing",
                &[
                    "timed_jobs::a_start_is_recorded_once_and_the_first_tick_comes_an_interval_later",
                    "timed_jobs::without_a_timer_only_ticks_by_hand_are_made",
                ],
            ),
            (
                "the first tick comes one interval after",
                &[
                    "timed_jobs::a_start_is_recorded_once_and_the_first_tick_comes_an_interval_later",
                    "timed_jobs::the_longest_interval_is_one",
                ],
            ),
            (
                "ticks by hand work before start, without a timer and after stop; manual is the default",
                &[
                    "timed_jobs::ticks_by_hand_work_before_the_start_and_after_the_stop",
                    "timed_jobs::without_a_timer_only_ticks_by_hand_are_made",
                ],
            ),
            (
                "stop ends the timer, lets the tick in flight finish, writes stopped; all is durable on return",
                &[
                    "timed_jobs::a_stop_ends_the_timer_and_lets_the_tick_end_and_all_is_durable",
                    "timed_jobs::a_tick_that_the_timer_has_begun_ends_before_the_stop",
                    "timed_jobs::no_tick_begins_while_a_stop_is_recorded",
                ],
            ),
            (
                "started-or-not turns false at once",
                &["timed_jobs::a_stop_ends_the_timer_and_lets_the_tick_end_and_all_is_durable"],
            ),
            (
                "idle and never started: nothing is written",
                &[
                    "timed_jobs::where_nothing_was_started_a_stop_writes_nothing",
                    "timed_jobs::a_stop_waits_for_a_tick_by_hand_also_without_a_start",
                ],
            ),
            (
                "concurrent stops share one; a start while draining waits",
                &[
                    "timed_jobs::stops_at_once_share_one_and_a_start_waits_for_it",
                    "timed_jobs::a_stop_behind_a_start_under_way_stops_it",
                    "timed_jobs::starts_at_once_are_one",
                ],
            ),
            (
                "a dropped future leaves nothing half done; the last handle can go; runtimes can end",
                &[
                    "timed_jobs::dropped_futures_leave_nothing_half_done",
                    "timed_jobs::when_the_last_handle_goes_the_tick_ends_and_what_was_recorded_is_written",
                    "timed_jobs::a_runtime_that_ends_leaves_no_start_or_stop_under_way",
                    "timed_jobs::on_several_threads_all_of_it_holds_too",
                ],
            ),
        ],
    ),
    (
        "ticks",
        &[
            (
                "one tick at a time, over the runners registered when it began",
                &[
                    "timed_jobs::a_tick_is_over_the_runners_of_its_beginning",
                    "timed_jobs::on_several_threads_all_of_it_holds_too",
                    "timed_jobs::work_that_was_moved_elsewhere_is_waited_for",
                    "timed_jobs::a_runner_that_was_given_up_is_gone_before_the_tick_is_over",
                ],
            ),
            (
                "asked while one is in flight: skipped_busy at once",
                &[
                    "timed_jobs::asked_while_one_is_in_flight_it_says_so_at_once",
                    "timed_jobs::on_several_threads_all_of_it_holds_too",
                ],
            ),
            (
                "no runners: skipped_no_runners, without asking the hook",
                &["timed_jobs::without_runners_the_hook_is_not_asked"],
            ),
            (
                "the hook is handed the work, with the identity of that moment, and answers",
                &["timed_jobs::the_identity_is_that_of_the_moment", "timed_jobs::each_hook_has_its_decision"],
            ),
            (
                "an error from the hook is failed",
                &["timed_jobs::each_hook_has_its_decision", "timed_jobs::texts_of_errors_are_their_own"],
            ),
            (
                "the work runs at most once; what ran is never also skipped, what did not is never counted",
                &[
                    "timed_jobs::each_hook_has_its_decision",
                    "timed_jobs::work_that_is_given_up_half_way_is_neither_skipped_nor_counted_twice",
                    "timed_jobs::work_that_was_moved_elsewhere_is_waited_for",
                ],
            ),
            (
                "runners run in order; one that fails or panics stops nobody and leaves the decision scheduled",
                &[
                    "timed_jobs::runners_run_in_order_and_whoever_fails_stops_nobody",
                    "timed_jobs::texts_of_errors_are_their_own",
                ],
            ),
            (
                "the decision, with batch id and number of runners",
                &[
                    "timed_jobs::each_hook_has_its_decision",
                    "timed_jobs::asked_while_one_is_in_flight_it_says_so_at_once",
                    "timed_jobs::without_runners_the_hook_is_not_asked",
                ],
            ),
            (
                "batch ids: unix ms and a counter from 1 per instance; started, stopped and skipped ticks have their own",
                &["timed_jobs::batches_are_counted_from_one_by_each_instance"],
            ),
        ],
    ),
    (
        "the table",
        &[
            ("started stopped", &["timed_jobs::every_stage_has_its_line"]),
            ("tick_skipped_busy tick_skipped_no_runners", &["timed_jobs::every_stage_has_its_line"]),
            (
                "tick_started, before the hook",
                &[
                    "timed_jobs::every_stage_has_its_line",
                    "timed_jobs::a_tick_has_started_before_the_hook_is_asked",
                ],
            ),
            ("runner_started", &["timed_jobs::every_stage_has_its_line"]),
            ("runner_completed", &["timed_jobs::every_stage_has_its_line"]),
            ("runner_failed", &["timed_jobs::every_stage_has_its_line"]),
            ("runner_skipped, one per runner", &["timed_jobs::every_stage_has_its_line"]),
            ("tick_completed after a skip", &["timed_jobs::every_stage_has_its_line"]),
            ("tick_completed", &["timed_jobs::every_stage_has_its_line"]),
            (
                "tick_failed: failed or interrupted",
                &[
                    "timed_jobs::every_stage_has_its_line",
                    "timed_jobs::what_a_dead_process_leaves_has_its_lines",
                    "ticker::a_tick_found_without_an_end_is_interrupted_once_and_what_was_missed_is_recorded_once",
                ],
            ),
            (
                "tick_missed",
                &[
                    "timed_jobs::what_a_dead_process_leaves_has_its_lines",
                    "ticker::intervals_that_are_due_at_once_make_one_tick_and_are_all_accounted_for",
                    "ticker::in_a_year_of_faults_what_was_planned_is_accounted_for",
                ],
            ),
        ],
    ),
    (
        "lines and writing",
        &[
            (
                "seven keys in order, then the details",
                &[
                    "timed_jobs::every_stage_has_its_line",
                    "timed_jobs::what_a_runner_logs_bears_its_own_name_and_batch",
                ],
            ),
            (
                "error: its own message, else its text, a panic's payload, null if empty; no backtrace",
                &[
                    "timed_jobs::texts_of_errors_are_their_own",
                    "timed_jobs::runners_run_in_order_and_whoever_fails_stops_nobody",
                ],
            ),
            (
                "a detail can never replace one of the seven, and is never lost",
                &[
                    "timed_jobs::a_detail_replaces_none_of_the_seven_and_is_not_lost",
                    "src/projection/ticks::a_detail_replaces_nothing_and_is_not_lost",
                ],
            ),
            (
                "lines stand in the order of the calls",
                &["timed_jobs::lines_stand_in_the_order_of_the_calls_also_of_many_tasks"],
            ),
            (
                "a file per UTC day, with all the journal says while it is recorded",
                &[
                    "timed_jobs::midnight_within_a_tick_begins_another_file",
                    "timed_jobs::lines_are_there_while_it_is_recorded",
                    "timed_jobs::two_engines_take_turns_with_the_same_files",
                    "timed_jobs::files_that_are_damaged_or_gone_are_made_anew_while_it_is_recorded",
                ],
            ),
            (
                "writing never holds a tick up; at its bound the queue says what is lost, where, and to whom",
                &[
                    "timed_jobs::at_its_bound_the_queue_holds_nobody_up_and_says_what_is_lost",
                    "timed_jobs::the_bytes_that_wait_are_bounded_too",
                    "timed_jobs::what_was_lost_before_a_stop_is_recorded_with_it",
                    "timed_jobs::what_nobody_was_told_of_the_stop_tells",
                ],
            ),
            (
                "a failed write stops neither ticks nor later records, and is reported",
                &[
                    "timed_jobs::a_disk_that_fails_stops_no_tick_and_each_record_is_told",
                    "timed_jobs::a_record_that_is_refused_stops_no_later_one",
                    "timed_jobs::whoever_is_told_may_panic",
                    "ticker::work_in_a_term_that_is_over_leaves_no_record",
                ],
            ),
            (
                "with the files switched off, ticks are journaled as ever",
                &["timed_jobs::without_files_there_is_no_log_directory_and_ticks_are_journaled_as_ever"],
            ),
        ],
    ),
];

#[test]
fn the_index_of_timed_jobs_names_tests_that_there_are() {
    check_index(INDEX, "timed_jobs", "the_index_of_timed_jobs_names_tests_that_there_are");
}

const HOUR: Duration = Duration::from_hours(1);
/// 2026-04-01T00:00:00.123456789Z.
const START: i64 = 1_775_001_600_123_456_789;
/// How batch ids begin then.
const BATCH: &str = "timed-jobs-1775001600123";

/// A data directory whose time is the test's, and what was told about records that are not in it.
struct Bench {
    dir: tempfile::TempDir,
    clock: Arc<Hand>,
    told: Arc<Mutex<Vec<(String, bool)>>>,
    opened: AtomicU64,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            clock: Arc::new(Hand(ManualClock::new(Time(START)))),
            told: Arc::default(),
            opened: AtomicU64::new(1),
        }
    }

    fn world(&self) -> World {
        let entropy = Arc::new(SeededEntropy::new(self.opened.fetch_add(1, Ordering::SeqCst)));
        World { clock: self.clock.clone(), entropy, ..World::create(&self.dir.path().join("data")).unwrap() }
    }

    fn engine(&self) -> Engine {
        Engine::open_in(self.world(), Options::default()).unwrap().0
    }

    /// Options under which everything that is not written is told.
    fn options(&self) -> TimedJobsOptions {
        let mut options = TimedJobsOptions::new(Config::every(HOUR), "c-1");
        options.identity = Identity { host: "h-1".to_owned(), ..options.identity };
        let told = Arc::clone(&self.told);
        options.on_write_error = Some(Arc::new(move |lost| {
            let stage = lost.tick.stage.clone();
            told.lock().unwrap().push((stage, lost.error.is_some()));
        }));
        options
    }

    fn jobs(&self, engine: &Engine) -> TimedJobs {
        TimedJobs::new(engine, self.options()).unwrap()
    }

    fn hooked<F>(&self, engine: &Engine, hook: F) -> TimedJobs
    where
        F: Fn(Work) -> BoxFuture<'static, Result<Answer, RunnerError>> + Send + Sync + 'static,
    {
        let options = TimedJobsOptions { schedule: Some(Arc::new(Hook(hook))), ..self.options() };
        TimedJobs::new(engine, options).unwrap()
    }

    async fn pass(&self, time: Duration) {
        self.clock.0.advance(time);
        tokio::time::advance(time).await;
        settle().await;
    }

    fn records(&self) -> Vec<Record> {
        records(&self.world())
    }

    /// All daily files, one behind the other.
    fn files(&self) -> String {
        let folder = self.dir.path().join("data/timed-jobs");
        let Ok(entries) = fs::read_dir(folder) else { return String::new() };
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    fn file(&self, day: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("data/timed-jobs/{day}.jsonl"))
    }

    /// Nothing of the files differs from what the journal says.
    fn compare(&self) {
        let mut log = Log::open_in(&self.world()).unwrap();
        let Some(stream) = log.ticks().unwrap() else { return assert_eq!(self.files(), "") };
        let rebuilt = log.rebuild(stream, false).unwrap().unwrap();
        assert_eq!((rebuilt.differences, rebuilt.damaged), (Vec::new(), false));
    }

    /// What is noted of the files is what they are.
    fn noted(&self) {
        let noted = fs::read(self.dir.path().join("data/cache/files/timed-jobs.json")).unwrap();
        let noted: Value = serde_json::from_slice(&noted).unwrap();
        for (name, file) in noted["files"].as_object().unwrap() {
            let bytes = fs::read(self.dir.path().join("data/timed-jobs").join(name)).unwrap();
            assert_eq!(file["length"].as_u64().unwrap(), bytes.len() as u64);
        }
    }

    /// Waits until all that is recorded so far is in the files.
    async fn published(&self, engine: &Engine, jobs: &TimedJobs) {
        jobs.flush().await;
        let tick = TickRecord {
            batch_id: "b".to_owned(),
            runner: "test".to_owned(),
            stage: "looked_at".to_owned(),
            result: None,
            error: None,
            duration_ms: None,
            details: JsonText::empty(),
        };
        engine.wait_published(&engine.append_tick(tick, None).unwrap()).unwrap();
    }

    /// Closes the engine; answers with what is in the files, which is what is in the journal.
    fn lines(&self, engine: &Engine) -> Vec<String> {
        engine.close().unwrap();
        self.compare();
        let files: Vec<String> = self.files().lines().map(str::to_owned).collect();
        let of_record = |record: &Record| match &record.body {
            Body::Tick(tick) => tick_line(tick, record.created_at),
            other => panic!("{other:?}"),
        };
        let mut journal: Vec<(String, String)> =
            self.records().iter().map(|record| (record.created_at.day(), of_record(record))).collect();
        journal.sort_by(|a, b| a.0.cmp(&b.0)); // Stable: by day only.
        assert_eq!(files, journal.into_iter().map(|(_, line)| line).collect::<Vec<_>>());
        assert_eq!(*self.told.lock().unwrap(), Vec::new(), "all was written");
        files
    }

    /// The same, shortened.
    fn brief(&self, engine: &Engine) -> Vec<String> {
        self.lines(engine);
        brief(&self.records())
    }
}

fn records(world: &World) -> Vec<Record> {
    let mut log = Log::open_in(world).unwrap();
    let mut all = Vec::new();
    if let Some(stream) = log.ticks().unwrap() {
        let damage = log.stream(stream, Seq(1), &mut |record| {
            all.push(record.clone());
            Ok(true)
        });
        assert!(damage.unwrap().is_empty());
    }
    all
}

fn tick_of(record: &Record) -> &TickRecord {
    match &record.body {
        Body::Tick(tick) => tick,
        other => panic!("{other:?}"),
    }
}

/// Runner (`*` for the framework), stage, result, error, duration and details; what is null is left out.
fn brief(records: &[Record]) -> Vec<String> {
    let shorten = |record: &Record| {
        let tick = tick_of(record);
        let runner = tick.runner.replace("timed-jobs.framework", "*");
        let details = Some(tick.details.as_str()).filter(|details| *details != "{}");
        let parts = [
            Some(tick.stage.clone()),
            tick.result.clone(),
            tick.error.as_ref().map(|error| format!("!{error}")),
            tick.duration_ms.map(|ms| format!("{ms}ms")),
            details.map(str::to_owned),
        ];
        format!("{runner}: {}", parts.into_iter().flatten().collect::<Vec<_>>().join(" "))
    };
    records.iter().map(shorten).collect()
}

fn stages(records: &[Record]) -> Vec<String> {
    let stage = |record: &Record| {
        let tick = tick_of(record);
        format!("{} {}", tick.stage, tick.result.as_deref().unwrap_or("-"))
    };
    records.iter().map(stage).collect()
}

struct Hook<F>(F);

impl<F> Schedule for Hook<F>
where
    F: Fn(Work) -> BoxFuture<'static, Result<Answer, RunnerError>> + Send + Sync + 'static,
{
    fn schedule(&self, work: Work) -> BoxFuture<'_, Result<Answer, RunnerError>> {
        (self.0)(work)
    }
}

/// Lets everything that is ready run.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

/// Polls a future so often, then drops it.
async fn polled<T>(future: impl Future<Output = T>, times: usize) -> Option<T> {
    let mut future = Box::pin(future);
    for _ in 0..times {
        if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            return Some(done);
        }
        yield_now().await;
    }
    None
}

fn add(jobs: &TimedJobs, name: &str) {
    jobs.register(name, "", |_: Context| async { Ok::<_, RunnerError>(Report::ok()) }).unwrap();
}

/// Where runners wait until they may go on.
#[derive(Clone)]
struct Gate(Arc<(Semaphore, Semaphore)>);

impl Gate {
    fn new() -> Self {
        Self(Arc::new((Semaphore::new(0), Semaphore::new(0))))
    }

    /// Registers a runner that waits here.
    fn guard(&self, jobs: &TimedJobs, name: &str) {
        let gate = self.clone();
        jobs.register(name, "", move |_: Context| {
            let gate = gate.clone();
            async move {
                gate.0.0.add_permits(1);
                gate.0.1.acquire().await?.forget();
                Ok::<_, RunnerError>(Report::ok())
            }
        })
        .unwrap();
    }

    /// Waits until one waits here.
    async fn reached(&self) {
        self.0.0.acquire().await.unwrap().forget();
    }

    fn open(&self) {
        self.0.1.add_permits(1);
    }
}

fn identity(n: u64) -> Identity {
    Identity { controller_id: format!("c-{n}"), host: format!("h-{n}"), term: Some(n) }
}

#[tokio::test(start_paused = true)]
async fn an_interval_of_zero_is_refused_and_the_rest_is_handed_on() {
    let bench = Bench::new();
    let engine = bench.engine();
    let mut options = bench.options();
    options.config.interval = Duration::ZERO;
    let refused = TimedJobs::new(&engine, options).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Misuse);
    assert!(Config::every(HOUR).auto_start);
    let config = Config {
        interval: Duration::from_nanos(1),
        max_messages_per_tick: 0,
        max_tasks_per_tick: u64::MAX,
        settle_delay: Duration::from_micros(2999),
        auto_start: false,
    };
    let jobs = TimedJobs::new(&engine, TimedJobsOptions { config: config.clone(), ..bench.options() });
    let jobs = jobs.unwrap();
    let found = Arc::new(Mutex::new(None));
    let sees = Arc::clone(&found);
    jobs.register("sees", "", move |context: Context| {
        *sees.lock().unwrap() = Some(context.config());
        async { Ok::<_, RunnerError>(Report::ok()) }
    })
    .unwrap();
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
    assert_eq!((jobs.config(), found.lock().unwrap().clone().unwrap()), (config.clone(), config));
    jobs.flush().await;
    let lines = bench.brief(&engine);
    assert_eq!(
        lines[1],
        r#"sees: runner_started running {"controller_id":"c-1","host":"h-1","max_messages_per_tick":0,"max_tasks_per_tick":18446744073709551615,"settle_delay_ms":2,"term":null,"trigger":"manual"}"#
    );
}

#[tokio::test(start_paused = true)]
async fn names_are_trimmed_and_must_be_free() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let register = |name: &str, description: &str| {
        jobs.register(name, description, |_: Context| async { Ok::<_, RunnerError>(Report::ok()) })
    };
    register(" zebra\t", " Looks. ").unwrap();
    register("\u{2003}ant of two\n", "").unwrap();
    for nameless in ["", " ", "\t\r\n\u{2003}", "timed-jobs.framework", "\ttimed-jobs.framework "] {
        assert_eq!(register(nameless, "").unwrap_err().kind(), ErrorKind::Misuse, "{nameless:?}");
    }
    for taken in ["zebra", "  zebra", "ant of two"] {
        let error = register(taken, "").unwrap_err();
        assert_eq!((error.kind(), error.conflict()), (ErrorKind::Conflict, Some(Conflict::Exists)));
    }
    for free in ["Zebra", "timed-jobs", "timed-jobs.framework2"] {
        register(free, "").unwrap();
    }
    let names = ["zebra", "ant of two", "Zebra", "timed-jobs", "timed-jobs.framework2"];
    assert_eq!(jobs.runner_names(), names);
    assert_eq!(jobs.clone().runner_names(), names, "clones are one");
    assert_eq!(jobs.description("zebra").as_deref(), Some("Looks."));
    assert_eq!((jobs.description("ant of two"), jobs.description("nobody")), (None, None));
    assert_eq!(jobs.tick(Trigger::Manual).await.runner_count, 5);
}

#[tokio::test(start_paused = true)]
async fn a_runner_finds_everything_in_its_context() {
    let bench = Bench::new();
    let engine = bench.engine();
    let mut options = bench.options();
    options.store = Some(Arc::new(41_u32));
    options.identity.term = Some(9);
    let jobs = TimedJobs::new(&engine, options).unwrap();
    let found = Arc::new(Mutex::new(Vec::new()));
    let sees = Arc::clone(&found);
    jobs.register(" looker ", "", move |context: Context| {
        sees.lock().unwrap().push(context.clone());
        async { Ok::<_, RunnerError>(Report::ok()) }
    })
    .unwrap();
    let manual = jobs.tick(Trigger::default()).await;
    let interval = jobs.tick(Trigger::Interval).await;
    let found = std::mem::take(&mut *found.lock().unwrap());
    assert_eq!((found[0].trigger(), found[1].trigger()), (Trigger::Manual, Trigger::Interval));
    assert_eq!((found[0].batch_id(), found[1].batch_id()), (&*manual.batch_id, &*interval.batch_id));
    let context = &found[0];
    assert_eq!((context.runner(), context.controller_id(), context.host()), ("looker", "c-1", "h-1"));
    assert_eq!((context.term(), context.config()), (Some(9), jobs.config()));
    assert_eq!(context.log_dir(), Some(fs::canonicalize(bench.dir.path()).unwrap().join("data/timed-jobs")));
    assert_eq!(context.store::<u32>().as_deref(), Some(&41));
    assert!(context.store::<u64>().is_none(), "there is one of another type");
    assert_eq!(context.engine().recorder_id(), engine.recorder_id());
    // Without a word of the embedder's it is this machine, no term and no store.
    let plain = TimedJobs::new(&engine, TimedJobsOptions::new(Config::every(HOUR), "c-2")).unwrap();
    let context = Arc::new(Mutex::new(None));
    let sees = Arc::clone(&context);
    plain
        .register("looker", "", move |context: Context| {
            *sees.lock().unwrap() = Some(context);
            async { Ok::<_, RunnerError>(Report::ok()) }
        })
        .unwrap();
    plain.tick(Trigger::Manual).await;
    let context = context.lock().unwrap().take().unwrap();
    assert_eq!((context.controller_id(), context.term()), ("c-2", None));
    assert!(!context.host().is_empty() && context.store::<u32>().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_a_runner_logs_bears_its_own_name_and_batch() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    jobs.register("talks", "", |context: Context| async move {
        context.log("Any Stage\n\u{1}", |entry| entry);
        context.log("full", |entry| {
            entry
                .result("so so")
                .error("half\nof it")
                .duration(Duration::from_micros(1999))
                .details(&json!({ "b": 1.50, "a": [null] }))
        });
        context.log("", |entry| entry.result("").error("").duration(Duration::MAX));
        context.log("listed", |entry| entry.details(&[1, 2]));
        let unkeyed: BTreeMap<(u8, u8), u8> = [((1, 2), 3)].into();
        context.log("unkeyed", |entry| entry.details(&unkeyed));
        // Also behind its end, wherever it was taken.
        tokio::spawn(async move { context.log("later", |entry| entry) });
        Ok::<_, RunnerError>(Report::ok())
    })
    .unwrap();
    jobs.tick(Trigger::Manual).await;
    settle().await;
    jobs.flush().await;
    let lines = bench.lines(&engine);
    let expected = [
        r#""duration_ms":null,"error":null,"result":null,"runner":"talks","stage":"Any Stage\n\u0001","ts":"#,
        r#""duration_ms":1,"error":"half\nof it","result":"so so","runner":"talks","stage":"full","ts":"#,
        r#""duration_ms":18446744073709551615,"error":null,"result":"","runner":"talks","stage":"","ts":"#,
        r#""duration_ms":null,"error":null,"result":null,"runner":"talks","stage":"listed","ts":"#,
        r#""duration_ms":null,"error":null,"result":null,"runner":"talks","stage":"unkeyed","ts":"#,
    ];
    let details = [
        "}",
        r#","a":[null],"b":1.5}"#,
        "}",
        r#","unserializable":"the details of a tick must be a JSON object"}"#,
        r#","unserializable":"no JSON: key must be a string"}"#,
    ];
    for (n, (line, details)) in expected.iter().zip(details).enumerate() {
        let expected = format!(r#"{{"batch_id":"{BATCH}-1",{line}"2026-04-01T00:00:00.123Z"{details}"#);
        assert_eq!(lines[n + 2], expected);
    }
    let later = format!(
        r#"{{"batch_id":"{BATCH}-1","duration_ms":null,"error":null,"result":null,"runner":"talks","stage":"later","#
    );
    assert_eq!(lines.iter().filter(|line| line.starts_with(&later)).count(), 1);
    assert_eq!(lines.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_detail_replaces_none_of_the_seven_and_is_not_lost() {
    #[derive(serde::Serialize)]
    struct Forged {
        ts: u8,
        stage: &'static str,
        own: bool,
        runner: &'static str,
        result: Option<u8>,
        error: [u8; 1],
        duration_ms: f64,
        detail_ts: u8,
        batch_id: &'static str,
    }
    const FORGED: Forged = Forged {
        ts: 1,
        stage: "started",
        own: true,
        runner: "timed-jobs.framework",
        result: None,
        error: [5],
        duration_ms: 0.5,
        detail_ts: 2,
        batch_id: "b",
    };
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    jobs.register("forges", "", |context: Context| async move {
        context.log("said", |entry| entry.details(&FORGED));
        Ok::<_, RunnerError>(Report::of("done").details(&FORGED)?)
    })
    .unwrap();
    assert_eq!(Report::ok().details(&7).unwrap_err().kind(), ErrorKind::Misuse);
    jobs.tick(Trigger::Manual).await;
    jobs.flush().await;
    let lines = bench.lines(&engine);
    let forged = r#","detail_ts":1,"detail_stage":"started","own":true,"detail_runner":"timed-jobs.framework","detail_result":null,"detail_error":[5],"detail_duration_ms":0.5,"detail_detail_ts":2,"detail_batch_id":"b"}"#;
    let begin = format!(r#"{{"batch_id":"{BATCH}-1","duration_ms":"#);
    let said =
        r#"null,"error":null,"result":null,"runner":"forges","stage":"said","ts":"2026-04-01T00:00:00.123Z""#;
    let done = r#"0,"error":null,"result":"done","runner":"forges","stage":"runner_completed","ts":"2026-04-01T00:00:00.123Z""#;
    assert_eq!(lines[2], format!("{begin}{said}{forged}"));
    assert_eq!(lines[3], format!("{begin}{done}{forged}"));
    let value: Value = serde_json::from_str(&lines[2]).unwrap();
    assert_eq!(value.as_object().unwrap().len(), 7 + 9);
}

#[tokio::test(start_paused = true)]
async fn a_start_is_recorded_once_and_the_first_tick_comes_an_interval_later() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    add(&jobs, "a");
    assert!(!jobs.is_started());
    bench.pass(HOUR * 3).await;
    assert!(!jobs.start().await.unwrap().already);
    assert!(jobs.is_started() && jobs.clone().is_started());
    bench.pass(HOUR / 2).await;
    assert!(jobs.clone().start().await.unwrap().already, "a second one does nothing, nor to the timer");
    bench.pass(Duration::from_millis(1_799_999)).await;
    jobs.flush().await;
    assert_eq!(stages(&bench.records()), ["started loop_enabled"]);
    bench.pass(Duration::from_millis(1)).await;
    jobs.flush().await;
    let first = &bench.records()[1];
    assert_eq!(first.created_at, Time(START + 4 * 3_600_000_000_000));
    bench.pass(HOUR).await;
    jobs.stop().await.unwrap();
    assert!(!jobs.is_started());
    bench.pass(HOUR * 3).await;
    let (asked, done) = (
        r#"* tick_started running {"runner_count":1,"trigger":"interval"}"#,
        r#"* tick_completed scheduled 0ms {"failed_runner_count":0,"runner_count":1,"successful_runner_count":1,"trigger":"interval"}"#,
    );
    let lines = bench.brief(&engine);
    let lines: Vec<String> = lines
        .into_iter()
        .filter(|line| line.starts_with('*'))
        .map(|line| line.replacen("*: ", "* ", 1))
        .collect();
    assert_eq!(lines, ["* started loop_enabled", asked, done, asked, done, "* stopped stopped"]);
}

#[tokio::test(start_paused = true)]
async fn the_longest_interval_is_one() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs =
        TimedJobs::new(&engine, TimedJobsOptions { config: Config::every(Duration::MAX), ..bench.options() })
            .unwrap();
    add(&jobs, "a");
    jobs.start().await.unwrap();
    bench.pass(HOUR * 24 * 365 * 100).await;
    jobs.stop().await.unwrap();
    assert_eq!(bench.brief(&engine), ["*: started loop_enabled", "*: stopped stopped"]);
}

#[tokio::test(start_paused = true)]
async fn without_a_timer_only_ticks_by_hand_are_made() {
    let bench = Bench::new();
    let engine = bench.engine();
    let mut options = bench.options();
    options.config.auto_start = false;
    let jobs = TimedJobs::new(&engine, options).unwrap();
    add(&jobs, "a");
    jobs.start().await.unwrap();
    assert!(jobs.is_started() && jobs.start().await.unwrap().already);
    bench.pass(HOUR * 10).await;
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
    jobs.stop().await.unwrap();
    let lines = bench.brief(&engine);
    let framework: Vec<_> = lines.iter().map(|line| line.split(" {").next().unwrap()).collect();
    assert_eq!(
        framework,
        [
            "*: started loop_disabled",
            "*: tick_started running",
            "a: runner_started running",
            "a: runner_completed ok 0ms",
            "*: tick_completed scheduled 0ms",
            "*: stopped stopped",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn ticks_by_hand_work_before_the_start_and_after_the_stop() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    add(&jobs, "a");
    for trigger in [Trigger::default(), Trigger::Interval] {
        assert_eq!(jobs.tick(trigger).await.decision, Decision::Scheduled);
    }
    jobs.start().await.unwrap();
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
    jobs.stop().await.unwrap();
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
    assert!(!jobs.is_started(), "a tick starts nothing");
    bench.pass(HOUR * 3).await;
    // And it can be started and stopped again.
    jobs.start().await.unwrap();
    bench.pass(HOUR).await;
    jobs.stop().await.unwrap();
    let lines = bench.brief(&engine);
    let framework: Vec<String> = lines
        .iter()
        .filter(|line| line.starts_with('*') && !line.contains("tick_completed"))
        .map(|line| line.replace(r#" {"runner_count":1,"trigger":"#, " "))
        .collect();
    assert_eq!(
        framework,
        [
            r#"*: tick_started running "manual"}"#,
            r#"*: tick_started running "interval"}"#,
            "*: started loop_enabled",
            r#"*: tick_started running "manual"}"#,
            "*: stopped stopped",
            r#"*: tick_started running "manual"}"#,
            "*: started loop_enabled",
            r#"*: tick_started running "interval"}"#,
            "*: stopped stopped",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_timer_and_lets_the_tick_end_and_all_is_durable() {
    let sim = Sim::new();
    let (_, engine) = sim.engine(1);
    let jobs = TimedJobs::new(&engine, sim.bench.options()).unwrap();
    let gate = Gate::new();
    gate.guard(&jobs, "waits");
    add(&jobs, "next");
    jobs.start().await.unwrap();
    sim.bench.pass(HOUR).await;
    gate.reached().await;
    let mut stop = Box::pin(jobs.stop());
    assert!(polled(&mut stop, 1).await.is_none());
    assert!(!jobs.is_started(), "at once, while the tick goes on");
    sim.bench.pass(HOUR * 5).await; // The timer has ended: nobody finds it busy.
    assert!(polled(&mut stop, 20).await.is_none(), "the tick has not ended");
    gate.open();
    stop.await.unwrap();
    // The power goes on return, and takes all that is not durable.
    let after = sim.world.power_cut(&mut |_| Fate::Old);
    let records = records(&sim.seen(&after));
    assert_eq!(
        stages(&records),
        [
            "started loop_enabled",
            "tick_started running",
            "runner_started running",
            "runner_completed ok",
            "runner_started running",
            "runner_completed ok",
            "tick_completed scheduled",
            "stopped stopped",
        ]
    );
    assert_eq!(*sim.bench.told.lock().unwrap(), []);
}

/// A clock that holds the first caller up, once it is told to.
#[derive(Debug)]
struct Trap {
    clock: ManualClock,
    armed: AtomicBool,
    caught: Mutex<mpsc::Sender<()>>,
    free: Mutex<mpsc::Receiver<()>>,
}

impl Trap {
    /// With what tells that somebody is held up, and what lets go.
    fn new() -> (Arc<Self>, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let ((caught, is_caught), (free, is_free)) = (mpsc::channel(), mpsc::channel());
        let clock = ManualClock::new(Time(START));
        let (caught, is_free) = (Mutex::new(caught), Mutex::new(is_free));
        (Arc::new(Self { clock, armed: AtomicBool::new(false), caught, free: is_free }), is_caught, free)
    }
}

impl Clock for Trap {
    fn now(&self) -> Time {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.caught.lock().unwrap().send(()).unwrap();
            self.free.lock().unwrap().recv().unwrap();
        }
        self.clock.now()
    }

    fn monotonic_ns(&self) -> u64 {
        self.clock.monotonic_ns()
    }

    fn pause(&self, _: Duration) {
        std::thread::yield_now();
    }
}

/// The timer can be in the middle of beginning a tick when it is ended, on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_tick_that_the_timer_has_begun_ends_before_the_stop() {
    let bench = Bench::new();
    let (clock, is_caught, free) = Trap::new();
    let world = World { clock: clock.clone(), ..bench.world() };
    let (engine, _) = Engine::open_in(world, Options::default()).unwrap();
    let config = Config::every(Duration::from_millis(50));
    let jobs = TimedJobs::new(&engine, TimedJobsOptions { config, ..bench.options() }).unwrap();
    add(&jobs, "a");
    jobs.start().await.unwrap();
    jobs.flush().await;
    clock.armed.store(true, Ordering::SeqCst);
    tokio::task::spawn_blocking(move || is_caught.recv().unwrap()).await.unwrap();
    let (stopping, told) = (jobs.clone(), jobs.clone());
    let mut stop = tokio::spawn(async move { stopping.stop().await });
    while told.is_started() {
        yield_now().await;
    }
    // It cannot be over before the tick is; a stop that does not wait for it gets its time to show.
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut stop).await.is_err());
    free.send(()).unwrap();
    stop.await.unwrap().unwrap();
    assert_eq!(stages(&bench.records()).last().unwrap(), "stopped stopped");
}

/// Its record stands between two ticks: one that begins in just that moment would lose its ticker.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_tick_begins_while_a_stop_is_recorded() {
    let bench = Bench::new();
    let (clock, is_caught, free) = Trap::new();
    let world = World { clock: clock.clone(), ..bench.world() };
    let (engine, _) = Engine::open_in(world, Options::default()).unwrap();
    let jobs = bench.jobs(&engine);
    add(&jobs, "a");
    jobs.start().await.unwrap();
    jobs.flush().await;
    // The next one to ask the time is the stop, for its batch id.
    clock.armed.store(true, Ordering::SeqCst);
    let stopping = jobs.clone();
    let stop = tokio::spawn(async move { stopping.stop().await });
    tokio::task::spawn_blocking(move || is_caught.recv().unwrap()).await.unwrap();
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::SkippedBusy);
    free.send(()).unwrap();
    stop.await.unwrap().unwrap();
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
    jobs.flush().await;
    let stages = stages(&bench.records());
    let busy = "tick_skipped_busy skipped_busy";
    assert_eq!(stages[..4], ["started loop_enabled", busy, "stopped stopped", "tick_started running"]);
    bench.lines(&engine);
}

#[tokio::test(start_paused = true)]
async fn where_nothing_was_started_a_stop_writes_nothing() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    add(&jobs, "a");
    jobs.stop().await.unwrap();
    jobs.stop().await.unwrap();
    assert_eq!(bench.records().len(), 0);
    // A tick by hand that is over is nothing to stop, but is durable behind it.
    jobs.tick(Trigger::Manual).await;
    jobs.stop().await.unwrap();
    assert_eq!(stages(&bench.records()).last().unwrap(), "tick_completed scheduled");
    jobs.start().await.unwrap();
    jobs.stop().await.unwrap();
    let count = bench.records().len();
    jobs.stop().await.unwrap();
    assert_eq!(bench.records().len(), count, "it is stopped already");
    let lines = bench.brief(&engine);
    assert_eq!(lines.iter().filter(|line| line.contains("stopped")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_a_tick_by_hand_also_without_a_start() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let gate = Gate::new();
    gate.guard(&jobs, "waits");
    let ticking = tokio::spawn({
        let jobs = jobs.clone();
        async move { jobs.tick(Trigger::Manual).await }
    });
    gate.reached().await;
    let mut stop = Box::pin(jobs.stop());
    assert!(polled(&mut stop, 20).await.is_none());
    gate.open();
    stop.await.unwrap();
    assert_eq!(ticking.await.unwrap().decision, Decision::Scheduled);
    assert_eq!(
        stages(&bench.records()),
        [
            "tick_started running",
            "runner_started running",
            "runner_completed ok",
            "tick_completed scheduled",
            "stopped stopped"
        ]
    );
    bench.lines(&engine);
}

#[tokio::test(start_paused = true)]
async fn stops_at_once_share_one_and_a_start_waits_for_it() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let gate = Gate::new();
    gate.guard(&jobs, "waits");
    jobs.start().await.unwrap();
    drop(polled(jobs.tick(Trigger::Manual), 1).await);
    gate.reached().await;
    let mut stops: Vec<_> = (0..5)
        .map(|_| {
            let jobs = jobs.clone();
            Box::pin(async move { jobs.stop().await })
        })
        .collect();
    for stop in &mut stops {
        assert!(polled(stop, 1).await.is_none());
    }
    let mut start = Box::pin(jobs.start());
    assert!(polled(&mut start, 30).await.is_none() && !jobs.is_started());
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::SkippedBusy);
    gate.open();
    for stop in stops {
        stop.await.unwrap();
    }
    assert!(!start.await.unwrap().already && jobs.is_started());
    jobs.stop().await.unwrap();
    let records = stages(&bench.records());
    let of_it: Vec<_> =
        records.iter().filter(|stage| stage.starts_with("st") || stage.contains("tick_c")).collect();
    assert_eq!(
        of_it,
        [
            "started loop_enabled",
            "tick_completed scheduled",
            "stopped stopped",
            "started loop_enabled",
            "stopped stopped"
        ]
    );
    bench.lines(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_stop_behind_a_start_under_way_stops_it() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    add(&jobs, "a");
    let (started, stopped) = tokio::join!(jobs.start(), jobs.stop());
    assert!(!started.unwrap().already && stopped.is_ok() && !jobs.is_started());
    bench.pass(HOUR * 2).await;
    assert_eq!(bench.brief(&engine), ["*: started loop_enabled", "*: stopped stopped"]);
}

#[tokio::test(start_paused = true)]
async fn starts_at_once_are_one() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    add(&jobs, "a");
    let (one, two, three) = tokio::join!(jobs.start(), jobs.start(), jobs.start());
    let already = [one, two, three].map(|started| started.unwrap().already);
    assert_eq!(already, [false, true, true]);
    bench.pass(HOUR).await;
    jobs.stop().await.unwrap();
    let lines = bench.brief(&engine);
    assert_eq!(lines.iter().filter(|line| line.contains(": started")).count(), 1);
    assert_eq!(lines.iter().filter(|line| line.contains(": tick_started")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropped_futures_leave_nothing_half_done() {
    for times in 0..12 {
        let bench = Bench::new();
        let engine = bench.engine();
        let jobs = bench.jobs(&engine);
        jobs.register("naps", "", |_: Context| async {
            for _ in 0..3 {
                yield_now().await;
            }
            Ok::<_, RunnerError>(Report::ok())
        })
        .unwrap();
        let ticked = polled(jobs.tick(Trigger::Manual), times).await;
        drop(polled(jobs.start(), times).await);
        drop(polled(jobs.tick(Trigger::Manual), times).await);
        drop(polled(jobs.stop(), times).await);
        drop(polled(jobs.start(), times).await);
        drop(polled(jobs.stop(), times).await);
        drop(polled(jobs.flush(), times).await);
        // Whatever is under way still is, comes to its end, and everything works as ever.
        jobs.start().await.unwrap();
        assert!(jobs.is_started());
        let mut decision = Decision::SkippedBusy;
        while decision == Decision::SkippedBusy {
            decision = jobs.tick(Trigger::Manual).await.decision;
            yield_now().await;
        }
        assert_eq!(decision, Decision::Scheduled);
        jobs.stop().await.unwrap();
        assert!(!jobs.is_started());
        if times == 0 {
            assert!(ticked.is_none());
            assert_eq!(bench.records().len(), 6, "what was never polled never was");
        }
        well_formed(&bench.records());
        bench.lines(&engine);
    }
}

/// Starts and stops take turns, and ticks follow each other whole; other tickers' are among them.
fn well_formed(records: &[Record]) {
    let (mut started, mut in_flight, mut began) = (false, None, Vec::new());
    for record in records {
        let tick = tick_of(record);
        match tick.stage.as_str() {
            "started" => assert!(!std::mem::replace(&mut started, true), "started twice"),
            // A stop without a start is that of a tick by hand.
            "stopped" => started = false,
            "tick_started" => {
                assert_eq!(in_flight, None, "one tick at a time");
                in_flight = Some(tick.batch_id.clone());
                began.push(tick.batch_id.clone());
            }
            "tick_completed" | "tick_failed" => {
                assert_eq!(in_flight.take().as_ref(), Some(&tick.batch_id));
            }
            "tick_skipped_busy" | "tick_skipped_no_runners" => assert!(!began.contains(&tick.batch_id)),
            _ => assert_eq!(in_flight.as_ref(), Some(&tick.batch_id)),
        }
    }
    assert!(!started && in_flight.is_none());
}

/// Waits for records that a thread which nobody waits for writes.
async fn until(bench: &Bench, last: &str) -> Vec<Record> {
    for _ in 0..30_000 {
        let records = bench.records();
        if stages(&records).last().is_some_and(|stage| stage == last) {
            return records;
        }
        let pause = || Clock::pause(&runwal::clock::System, Duration::from_millis(1));
        tokio::task::spawn_blocking(pause).await.unwrap();
    }
    panic!("{last} was never recorded");
}

#[tokio::test(start_paused = true)]
async fn when_the_last_handle_goes_the_tick_ends_and_what_was_recorded_is_written() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let gate = Gate::new();
    gate.guard(&jobs, "waits");
    jobs.start().await.unwrap();
    drop(polled(jobs.tick(Trigger::Manual), 1).await);
    gate.reached().await;
    drop(jobs.clone());
    drop(jobs);
    gate.open();
    let records = until(&bench, "tick_completed scheduled").await;
    assert_eq!(records.len(), 5);
    // Its timer went with it.
    settle().await;
    bench.pass(HOUR * 3).await;
    assert_eq!(bench.records().len(), 5);
    // Without a tick in flight too.
    let jobs = bench.jobs(&engine);
    jobs.start().await.unwrap();
    jobs.tick(Trigger::Manual).await;
    drop(jobs);
    until(&bench, "tick_skipped_no_runners skipped_no_runners").await;
    settle().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0, "nor a task that waits");
    bench.pass(HOUR * 3).await;
    assert_eq!(bench.records().len(), 7);
    bench.lines(&engine);
}

#[test]
fn a_runtime_that_ends_leaves_no_start_or_stop_under_way() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let gate = Gate::new();
    gate.guard(&jobs, "waits");
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    // In the middle of a stop, with a tick in flight.
    let first = runtime();
    first.block_on(async {
        jobs.start().await.unwrap();
        bench.pass(HOUR).await;
        gate.reached().await;
        gate.open();
        settle().await;
        drop(polled(jobs.tick(Trigger::Manual), 1).await);
        gate.reached().await;
        drop(polled(jobs.stop(), 3).await);
    });
    drop(first);
    assert!(!jobs.is_started());
    // In the middle of a start.
    let second = runtime();
    second.block_on(async { drop(polled(jobs.start(), 1).await) });
    drop(second);
    assert!(!jobs.is_started());
    let third = runtime();
    third.block_on(async {
        assert!(!jobs.start().await.unwrap().already);
        bench.pass(HOUR).await;
        gate.reached().await;
        gate.open();
        jobs.stop().await.unwrap();
    });
    // The intervals of the second start are others than those of the first.
    let lines = brief(&bench.records());
    let by_interval = r#"*: tick_started running {"runner_count":1,"trigger":"interval"}"#;
    assert_eq!(lines.iter().filter(|line| *line == by_interval).count(), 2);
    assert_eq!(stages(&bench.records()).last().unwrap(), "stopped stopped");
    bench.lines(&engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_several_threads_all_of_it_holds_too() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let inside = Arc::new(AtomicUsize::new(0));
    for name in ["a", "b"] {
        let inside = Arc::clone(&inside);
        jobs.register(name, "", move |context: Context| {
            let inside = Arc::clone(&inside);
            async move {
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                yield_now().await;
                context.log("inside", |entry| entry);
                inside.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, RunnerError>(Report::ok())
            }
        })
        .unwrap();
    }
    let decided: Arc<Mutex<BTreeMap<&str, usize>>> = Arc::default();
    let mut tasks = Vec::new();
    for task in 0..8 {
        let (jobs, decided) = (jobs.clone(), Arc::clone(&decided));
        tasks.push(tokio::spawn(async move {
            for round in 0..20 {
                match (task, round % 5) {
                    (0, 0) => drop(jobs.start().await.unwrap()),
                    (1, 3) => jobs.stop().await.unwrap(),
                    _ => {
                        let tick = jobs.tick(Trigger::Manual).await;
                        assert_eq!(tick.runner_count, 2);
                        *decided.lock().unwrap().entry(tick.decision.word()).or_default() += 1;
                    }
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    jobs.start().await.unwrap();
    jobs.stop().await.unwrap();
    let records = bench.records();
    let (mut flights, mut tally) = (0_i64, BTreeMap::<String, usize>::new());
    for record in &records {
        let tick = tick_of(record);
        flights += match tick.stage.as_str() {
            "tick_started" => 1,
            "tick_completed" => -1,
            _ => 0,
        };
        assert!((0..=1).contains(&flights), "one at a time");
        assert!(tick.stage != "stopped" || flights == 0, "a stop stands behind the tick's end");
        *tally.entry(format!("{} {}", tick.stage, tick.result.as_deref().unwrap_or("-"))).or_default() += 1;
    }
    let decided = decided.lock().unwrap().clone();
    let of = |stage: &str| tally.get(stage).copied().unwrap_or(0);
    assert_eq!(of("tick_completed scheduled"), decided["scheduled"]);
    assert_eq!(of("tick_skipped_busy skipped_busy"), decided.get("skipped_busy").copied().unwrap_or(0));
    assert_eq!(of("inside -"), 2 * decided["scheduled"]);
    assert_eq!(decided.values().sum::<usize>(), 8 * 20 - 8);
    bench.lines(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_tick_is_over_the_runners_of_its_beginning() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let gate = Gate::new();
    gate.guard(&jobs, "waits");
    let ticking = tokio::spawn({
        let jobs = jobs.clone();
        async move { jobs.tick(Trigger::Manual).await }
    });
    gate.reached().await;
    add(&jobs, "late");
    assert_eq!(jobs.runner_names(), ["waits", "late"]);
    gate.open();
    assert_eq!(ticking.await.unwrap().runner_count, 1);
    gate.open();
    assert_eq!(jobs.tick(Trigger::Manual).await.runner_count, 2);
    jobs.flush().await;
    let lines = bench.brief(&engine);
    let runners: Vec<_> = lines.iter().filter(|line| line.contains("runner_completed")).collect();
    assert_eq!(
        runners,
        ["waits: runner_completed ok 0ms", "waits: runner_completed ok 0ms", "late: runner_completed ok 0ms"]
    );
}

#[tokio::test(start_paused = true)]
async fn asked_while_one_is_in_flight_it_says_so_at_once() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let own: Arc<Mutex<Option<TimedJobs>>> = Arc::default();
    let asks = Arc::clone(&own);
    jobs.register("asks", "", move |_: Context| {
        let jobs = asks.lock().unwrap().take().unwrap();
        async move {
            let tick = jobs.tick(Trigger::Manual).await;
            Ok::<_, RunnerError>(Report::of(tick.decision.word()))
        }
    })
    .unwrap();
    let gate = Gate::new();
    gate.guard(&jobs, "waits");
    *own.lock().unwrap() = Some(jobs.clone());
    let mut ticking = Box::pin(jobs.tick(Trigger::Manual));
    assert!(polled(&mut ticking, 1).await.is_none());
    gate.reached().await;
    let busy = polled(jobs.tick(Trigger::Interval), 1).await.expect("at once, without a wait");
    assert_eq!((busy.decision, busy.runner_count), (Decision::SkippedBusy, 2));
    assert_eq!(busy.batch_id, format!("{BATCH}-3"));
    gate.open();
    assert_eq!(ticking.await.decision, Decision::Scheduled);
    jobs.flush().await;
    let lines = bench.brief(&engine);
    assert_eq!(lines[2], r#"*: tick_skipped_busy skipped_busy {"trigger":"manual"}"#);
    assert_eq!(lines[3], "asks: runner_completed skipped_busy 0ms");
    assert_eq!(lines[5], r#"*: tick_skipped_busy skipped_busy {"trigger":"interval"}"#);
}

#[tokio::test(start_paused = true)]
async fn without_runners_the_hook_is_not_asked() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.hooked(&engine, |_| panic!("asked"));
    let tick = polled(jobs.tick(Trigger::Manual), 1).await.unwrap();
    assert_eq!((tick.decision, tick.runner_count), (Decision::SkippedNoRunners, 0));
    assert_eq!(tick.batch_id, format!("{BATCH}-1"));
    // It is not in flight any more.
    assert_eq!(jobs.tick(Trigger::Interval).await.decision, Decision::SkippedNoRunners);
    jobs.start().await.unwrap();
    bench.pass(HOUR).await;
    jobs.stop().await.unwrap();
    assert_eq!(
        bench.brief(&engine),
        [
            r#"*: tick_skipped_no_runners skipped_no_runners {"trigger":"manual"}"#,
            r#"*: tick_skipped_no_runners skipped_no_runners {"trigger":"interval"}"#,
            "*: started loop_enabled",
            r#"*: tick_skipped_no_runners skipped_no_runners {"trigger":"interval"}"#,
            "*: stopped stopped",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_tick_has_started_before_the_hook_is_asked() {
    let bench = Bench::new();
    let engine = bench.engine();
    let own: Arc<Mutex<Option<TimedJobs>>> = Arc::default();
    let (asks, world) = (Arc::clone(&own), bench.world());
    let jobs = bench.hooked(&engine, move |work| {
        let jobs = asks.lock().unwrap().take().unwrap();
        let world = world.clone();
        Box::pin(async move {
            jobs.flush().await;
            assert_eq!(stages(&records(&world)), ["tick_started running"]);
            work.run(identity(2)).await;
            Ok(Answer::Scheduled)
        })
    });
    add(&jobs, "a");
    *own.lock().unwrap() = Some(jobs.clone());
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
    jobs.flush().await;
    bench.lines(&engine);
}

#[tokio::test(start_paused = true)]
async fn the_identity_is_that_of_the_moment() {
    let bench = Bench::new();
    let engine = bench.engine();
    let moment = Arc::new(AtomicU64::new(4));
    let leads = Arc::clone(&moment);
    let jobs = bench.hooked(&engine, move |work| {
        let now = identity(leads.load(Ordering::SeqCst));
        Box::pin(async move {
            work.run(now).await;
            Ok(Answer::Scheduled)
        })
    });
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = Arc::clone(&seen);
    jobs.register("sees", "", move |context: Context| {
        let who = (context.controller_id().to_owned(), context.host().to_owned(), context.term());
        sees.lock().unwrap().push(who);
        async { Ok::<_, RunnerError>(Report::ok()) }
    })
    .unwrap();
    jobs.tick(Trigger::Manual).await;
    moment.store(7, Ordering::SeqCst);
    jobs.tick(Trigger::Manual).await;
    let who = |n: u64| (format!("c-{n}"), format!("h-{n}"), Some(n));
    assert_eq!(*seen.lock().unwrap(), [who(4), who(7)]);
    jobs.flush().await;
    let lines = bench.brief(&engine);
    for (line, n) in [(&lines[1], 4), (&lines[5], 7)] {
        assert_eq!(
            *line,
            format!(
                r#"sees: runner_started running {{"controller_id":"c-{n}","host":"h-{n}","max_messages_per_tick":100,"max_tasks_per_tick":10,"settle_delay_ms":0,"term":{n},"trigger":"manual"}}"#
            )
        );
    }
    // What runners did bears their term; the framework's own records bear none.
    let terms: Vec<_> = bench.records().iter().map(|record| record.term).collect();
    assert_eq!(terms, [None, Some(4), Some(4), None, None, Some(7), Some(7), None]);
}

type Answered = Result<Answer, RunnerError>;

#[tokio::test(start_paused = true)]
async fn each_hook_has_its_decision() {
    /// Runs the work first, or does not; then says how it goes on.
    struct Form {
        name: &'static str,
        runs: bool,
        then: fn() -> Answered,
        decision: Decision,
        /// What stands behind `tick_started` and what the runners that ran recorded.
        end: &'static [&'static str],
    }
    const DONE: &[&str] = &[
        r#"*: tick_completed scheduled 0ms {"failed_runner_count":0,"runner_count":2,"successful_runner_count":2,"trigger":"manual"}"#,
    ];
    const NOT_COUNTED: &[&str] = &[
        r#"*: tick_completed scheduled 0ms {"failed_runner_count":0,"runner_count":2,"successful_runner_count":0,"trigger":"manual"}"#,
    ];
    let form = |name, runs, then, decision, end| Form { name, runs, then, decision, end };
    let forms = [
        form("runs it", true, || Ok(Answer::Scheduled), Decision::Scheduled, DONE),
        form("runs it, says skipped", true, || Ok(Answer::SkippedNotLeader), Decision::Scheduled, DONE),
        form("runs it, says paused", true, || Ok(Answer::SkippedSystemPaused), Decision::Scheduled, DONE),
        form("says scheduled", false, || Ok(Answer::Scheduled), Decision::Scheduled, NOT_COUNTED),
        form(
            "not leader",
            false,
            || Ok(Answer::SkippedNotLeader),
            Decision::SkippedNotLeader,
            &[
                r#"a: runner_skipped skipped_not_leader 0ms {"trigger":"manual"}"#,
                r#"b: runner_skipped skipped_not_leader 0ms {"trigger":"manual"}"#,
                r#"*: tick_completed skipped_not_leader 0ms {"runner_count":2,"trigger":"manual"}"#,
            ],
        ),
        form(
            "paused",
            false,
            || Ok(Answer::SkippedSystemPaused),
            Decision::SkippedSystemPaused,
            &[
                r#"a: runner_skipped skipped_system_paused 0ms {"trigger":"manual"}"#,
                r#"b: runner_skipped skipped_system_paused 0ms {"trigger":"manual"}"#,
                r#"*: tick_completed skipped_system_paused 0ms {"runner_count":2,"trigger":"manual"}"#,
            ],
        ),
        form(
            "error",
            false,
            || Err("no lease".into()),
            Decision::Failed,
            &[r#"*: tick_failed failed !no lease 0ms {"runner_count":2,"trigger":"manual"}"#],
        ),
        form(
            "error behind the work",
            true,
            || Err("lost it".into()),
            Decision::Failed,
            &[r#"*: tick_failed failed !lost it 0ms {"runner_count":2,"trigger":"manual"}"#],
        ),
        form(
            "empty error",
            false,
            || Err("".into()),
            Decision::Failed,
            &[r#"*: tick_failed failed 0ms {"runner_count":2,"trigger":"manual"}"#],
        ),
        form(
            "panic",
            false,
            || panic!("out of {}", black_box("leases")),
            Decision::Failed,
            &[r#"*: tick_failed failed !out of leases 0ms {"runner_count":2,"trigger":"manual"}"#],
        ),
        form(
            "panic behind the work",
            true,
            || panic!("lost"),
            Decision::Failed,
            &[r#"*: tick_failed failed !lost 0ms {"runner_count":2,"trigger":"manual"}"#],
        ),
        form(
            "panic with a number",
            false,
            || std::panic::panic_any(7),
            Decision::Failed,
            &[r#"*: tick_failed failed 0ms {"runner_count":2,"trigger":"manual"}"#],
        ),
    ];
    for form in forms {
        let bench = Bench::new();
        let engine = bench.engine();
        let (runs, then) = (form.runs, form.then);
        let jobs = bench.hooked(&engine, move |work| {
            Box::pin(async move {
                if runs {
                    work.run(identity(2)).await;
                }
                then()
            })
        });
        add(&jobs, "a");
        add(&jobs, "b");
        let tick = jobs.tick(Trigger::Manual).await;
        let expected = (form.decision, format!("{BATCH}-1"), 2);
        assert_eq!((tick.decision, tick.batch_id, tick.runner_count), expected, "{}", form.name);
        assert_eq!(jobs.tick(Trigger::Manual).await.decision, form.decision, "{}: and the next", form.name);
        jobs.flush().await;
        let mut lines = bench.brief(&engine);
        lines.truncate(lines.len() / 2);
        assert_eq!(lines.remove(0), r#"*: tick_started running {"runner_count":2,"trigger":"manual"}"#);
        if form.runs {
            let ran: Vec<String> =
                lines.drain(..4).map(|line| line.split(" {").next().unwrap().to_owned()).collect();
            assert_eq!(
                ran,
                [
                    "a: runner_started running",
                    "a: runner_completed ok 0ms",
                    "b: runner_started running",
                    "b: runner_completed ok 0ms"
                ],
                "{}",
                form.name
            );
        }
        assert_eq!(lines, form.end, "{}", form.name);
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_is_given_up_half_way_is_neither_skipped_nor_counted_twice() {
    for answer in [Answer::Scheduled, Answer::SkippedNotLeader, Answer::SkippedSystemPaused] {
        let bench = Bench::new();
        let engine = bench.engine();
        let gate = Gate::new();
        let waits = gate.clone();
        let jobs = bench.hooked(&engine, move |work| {
            let gate = waits.clone();
            Box::pin(async move {
                tokio::select! {
                    biased;
                    () = gate.reached() => {}
                    () = work.run(identity(2)) => panic!("came to an end"),
                }
                Ok(answer)
            })
        });
        add(&jobs, "a");
        gate.guard(&jobs, "waits");
        add(&jobs, "never");
        assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
        jobs.flush().await;
        let lines: Vec<String> = bench
            .brief(&engine)
            .iter()
            .map(|line| line.split(r#" {"c"#).next().unwrap().to_owned())
            .collect();
        assert_eq!(
            lines,
            [
                r#"*: tick_started running {"runner_count":3,"trigger":"manual"}"#,
                "a: runner_started running",
                "a: runner_completed ok 0ms",
                "waits: runner_started running",
                "waits: runner_failed failed !The work was given up before the runner ended. 0ms",
                r#"*: tick_completed completed_with_failures 0ms {"failed_runner_count":1,"runner_count":3,"successful_runner_count":1,"trigger":"manual"}"#,
            ]
        );
    }
    // Asked for and never begun: nobody ran.
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.hooked(&engine, |work| {
        Box::pin(async move {
            drop(work.run(identity(2)));
            Ok(Answer::SkippedNotLeader)
        })
    });
    add(&jobs, "a");
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::SkippedNotLeader);
    jobs.flush().await;
    assert!(bench.brief(&engine)[1].starts_with("a: runner_skipped"));
}

/// A runner that is in the middle of something, on another thread, cannot be stopped there.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_runner_that_was_given_up_is_gone_before_the_tick_is_over() {
    let bench = Bench::new();
    let engine = bench.engine();
    let gate = Gate::new();
    let waits = gate.clone();
    let jobs = bench.hooked(&engine, move |work| {
        let gate = waits.clone();
        Box::pin(async move {
            tokio::select! {
                () = gate.reached() => {}
                () = work.run(identity(2)) => panic!("came to an end"),
            }
            Ok(Answer::Scheduled)
        })
    });
    let (free, is_free) = mpsc::channel::<()>();
    let is_free = Arc::new(Mutex::new(is_free));
    let inside = gate.clone();
    jobs.register("busy", "", move |context: Context| {
        let (gate, is_free) = (inside.clone(), Arc::clone(&is_free));
        async move {
            gate.0.0.add_permits(1);
            is_free.lock().unwrap().recv()?;
            context.log("still_here", |entry| entry);
            Ok::<_, RunnerError>(Report::ok())
        }
    })
    .unwrap();
    let ticking = jobs.clone();
    let mut tick = tokio::spawn(async move { ticking.tick(Trigger::Manual).await });
    // It cannot be over before the runner is; one that does not wait for it gets its time to show.
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut tick).await.is_err());
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::SkippedBusy);
    free.send(()).unwrap();
    assert_eq!(tick.await.unwrap().decision, Decision::Scheduled);
    jobs.flush().await;
    let stages = stages(&bench.records());
    assert_eq!(stages[stages.len() - 2..], ["still_here -", "tick_completed completed_with_failures"]);
    bench.lines(&engine);
}

#[tokio::test(start_paused = true)]
async fn work_that_was_moved_elsewhere_is_waited_for() {
    let answers: [(fn() -> Answered, Decision); 4] = [
        (|| Ok(Answer::Scheduled), Decision::Scheduled),
        (|| Ok(Answer::SkippedNotLeader), Decision::Scheduled),
        (|| Err("moved it and failed".into()), Decision::Failed),
        (|| panic!("moved it and panicked"), Decision::Failed),
    ];
    for (answer, decision) in answers {
        let bench = Bench::new();
        let engine = bench.engine();
        let jobs = bench.hooked(&engine, move |work| {
            Box::pin(async move {
                tokio::spawn(work.run(identity(2)));
                answer()
            })
        });
        let gate = Gate::new();
        gate.guard(&jobs, "waits");
        jobs.start().await.unwrap();
        let mut ticking = Box::pin(jobs.tick(Trigger::Manual));
        assert!(polled(&mut ticking, 30).await.is_none(), "the hook has answered, the work goes on");
        gate.reached().await;
        assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::SkippedBusy);
        let mut stop = Box::pin(jobs.stop());
        assert!(polled(&mut stop, 30).await.is_none(), "so a stop waits for it");
        gate.open();
        assert_eq!(ticking.await.decision, decision);
        stop.await.unwrap();
        let stages = stages(&bench.records());
        assert_eq!(
            stages[2..5],
            ["runner_started running", "tick_skipped_busy skipped_busy", "runner_completed ok"]
        );
        assert_eq!(stages[6..], ["stopped stopped"]);
        well_formed_ends(&stages[5], decision);
        bench.lines(&engine);
    }
}

fn well_formed_ends(stage: &str, decision: Decision) {
    let expected =
        if decision == Decision::Failed { "tick_failed failed" } else { "tick_completed scheduled" };
    assert_eq!(stage, expected);
}

/// An error that cannot say what it is.
#[derive(Debug)]
struct Speechless;

impl std::fmt::Display for Speechless {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("no words");
    }
}

impl std::error::Error for Speechless {}

#[tokio::test(start_paused = true)]
async fn runners_run_in_order_and_whoever_fails_stops_nobody() {
    fn called(jobs: &TimedJobs, name: &str, answer: fn() -> Result<Report, RunnerError>) {
        jobs.register(name, "", move |_: Context| async move { answer() }).unwrap();
    }
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    called(&jobs, "z", || Ok(Report::of("healthy")));
    called(&jobs, "fails", || Err("broken\nin two".into()));
    called(&jobs, "says nothing", || Err("".into()));
    called(&jobs, "panics", || panic!("at once"));
    called(&jobs, "panics in words", || panic!("with {}", black_box(7)));
    called(&jobs, "panics empty", || panic!(""));
    called(&jobs, "panics in numbers", || std::panic::panic_any(7));
    called(&jobs, "speechless", || Err(Speechless.into()));
    // Not in the future, but in what makes it.
    jobs.register("panics early", "", |_: Context| -> std::future::Ready<Result<Report, RunnerError>> {
        panic!("early")
    })
    .unwrap();
    called(&jobs, "a", || Ok(Report::ok()));
    let tick = jobs.tick(Trigger::Manual).await;
    assert_eq!((tick.decision, tick.runner_count), (Decision::Scheduled, 10));
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
    jobs.flush().await;
    let lines = bench.brief(&engine);
    assert_eq!(lines.len(), 44);
    let ends: Vec<_> = lines[..22].iter().filter(|line| !line.contains("started")).collect();
    assert_eq!(
        ends,
        [
            "z: runner_completed healthy 0ms",
            "fails: runner_failed failed !broken\nin two 0ms",
            "says nothing: runner_failed failed 0ms",
            "panics: runner_failed failed !at once 0ms",
            "panics in words: runner_failed failed !with 7 0ms",
            "panics empty: runner_failed failed 0ms",
            "panics in numbers: runner_failed failed 0ms",
            "speechless: runner_failed failed !no words 0ms",
            "panics early: runner_failed failed !early 0ms",
            "a: runner_completed ok 0ms",
            r#"*: tick_completed completed_with_failures 0ms {"failed_runner_count":8,"runner_count":10,"successful_runner_count":2,"trigger":"manual"}"#,
        ]
    );
    let began: Vec<_> = lines[..22].iter().filter(|line| line.contains("runner_started")).collect();
    let order: Vec<_> = began.iter().map(|line| line.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(order, jobs.runner_names());
}

#[tokio::test(start_paused = true)]
async fn texts_of_errors_are_their_own() {
    let bench = Bench::new();
    let engine = bench.engine();
    let failing: Arc<Mutex<Option<RunnerError>>> = Arc::default();
    let hook = Arc::clone(&failing);
    let jobs = bench.hooked(&engine, move |work| {
        let error = hook.lock().unwrap().take();
        Box::pin(async move {
            work.run(identity(2)).await;
            error.map_or(Ok(Answer::Scheduled), Err)
        })
    });
    let own: Arc<Mutex<Option<RunnerError>>> = Arc::default();
    let takes = Arc::clone(&own);
    jobs.register("fails", "", move |_: Context| {
        let error = takes.lock().unwrap().take();
        async move { error.map_or(Ok(Report::ok()), Err) }
    })
    .unwrap();
    // One of the crate's own, with an advice that is not part of what happened.
    let taken = jobs.register("fails", "", |_: Context| async { Ok(Report::ok()) }).unwrap_err();
    assert!(taken.advice().is_some());
    *own.lock().unwrap() = Some(taken.into());
    *failing.lock().unwrap() = Some(std::io::Error::other("the disk\u{7f}").into());
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Failed);
    *failing.lock().unwrap() = Some(Speechless.into());
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Failed);
    jobs.flush().await;
    let lines = bench.lines(&engine);
    assert!(
        lines[2].contains(r#","error":"a runner named \"fails\" is registered already","result":"failed","#),
        "{}",
        lines[2]
    );
    assert!(lines[3].contains(r#","error":"the disk\u007f","result":"failed","#), "{}", lines[3]);
    assert!(lines[7].contains(r#","error":"no words","result":"failed","#), "{}", lines[7]);
}

#[tokio::test(start_paused = true)]
async fn batches_are_counted_from_one_by_each_instance() {
    let bench = Bench::new();
    let engine = bench.engine();
    let (one, two) = (bench.jobs(&engine), bench.jobs(&engine));
    one.start().await.unwrap();
    let ms = Duration::from_micros(1_600);
    bench.pass(ms).await; // Cut, not rounded: .125056789.
    assert_eq!(one.clone().tick(Trigger::Manual).await.batch_id, "timed-jobs-1775001600125-2");
    add(&one, "a");
    assert_eq!(one.tick(Trigger::Manual).await.batch_id, "timed-jobs-1775001600125-3");
    one.stop().await.unwrap();
    assert_eq!(two.tick(Trigger::Manual).await.batch_id, "timed-jobs-1775001600125-1");
    one.start().await.unwrap();
    one.stop().await.unwrap();
    two.flush().await;
    let ids: Vec<(String, String)> = bench
        .records()
        .iter()
        .map(|record| (tick_of(record).stage.clone(), tick_of(record).batch_id.clone()))
        .collect();
    let expected = [
        ("started", "timed-jobs-1775001600123-1"),
        ("tick_skipped_no_runners", "timed-jobs-1775001600125-2"),
        ("tick_started", "timed-jobs-1775001600125-3"),
        ("runner_started", "timed-jobs-1775001600125-3"),
        ("runner_completed", "timed-jobs-1775001600125-3"),
        ("tick_completed", "timed-jobs-1775001600125-3"),
        ("stopped", "timed-jobs-1775001600125-4"),
        ("started", "timed-jobs-1775001600125-5"),
        ("stopped", "timed-jobs-1775001600125-6"),
    ];
    let (of_two, of_one): (Vec<_>, Vec<_>) = ids.into_iter().partition(|(_, id)| id.ends_with("125-1"));
    assert_eq!(of_one, expected.map(|(stage, id)| (stage.to_owned(), id.to_owned())));
    assert_eq!(of_two.len(), 1);
    // Before 1970 too.
    bench.clock.0.set_wall(Time(-1));
    assert_eq!(two.tick(Trigger::Manual).await.batch_id, "timed-jobs--1-2");
    two.flush().await;
    bench.lines(&engine);
}

#[tokio::test(start_paused = true)]
async fn every_stage_has_its_line() {
    let bench = Bench::new();
    let engine = bench.engine();
    let clock = Arc::clone(&bench.clock);
    let answers: Arc<Mutex<Vec<Result<(), Answered>>>> = Arc::default();
    let says = Arc::clone(&answers);
    let ms = |n: u64| Duration::from_micros(n * 1000 + 900); // Durations are cut.
    let mut options = bench.options();
    options.config.max_messages_per_tick = 20;
    options.config.max_tasks_per_tick = 3;
    options.config.settle_delay = Duration::from_millis(250);
    let hook_clock = Arc::clone(&clock);
    options.schedule = Some(Arc::new(Hook(move |work: Work| {
        let answer = says.lock().unwrap().remove(0);
        let clock = Arc::clone(&hook_clock);
        Box::pin(async move {
            clock.0.advance(ms(5));
            match answer {
                Ok(()) => {
                    work.run(identity(7)).await;
                    Ok(Answer::Scheduled)
                }
                Err(answer) => answer,
            }
        }) as BoxFuture<'static, Answered>
    })));
    let jobs = TimedJobs::new(&engine, options).unwrap();
    let own: Arc<Mutex<Option<TimedJobs>>> = Arc::new(Mutex::new(Some(jobs.clone())));
    jobs.start().await.unwrap();
    jobs.tick(Trigger::Manual).await;
    let asks = Arc::clone(&own);
    jobs.register("mail", "", move |_: Context| {
        let (clock, jobs) = (Arc::clone(&clock), asks.lock().unwrap().take());
        async move {
            clock.0.advance(ms(30));
            if let Some(jobs) = jobs {
                jobs.tick(Trigger::Manual).await;
                return Ok(Report::of("sent").details(&json!({ "sent": 2 }))?);
            }
            Err::<_, RunnerError>("no \"way\"".into())
        }
    })
    .unwrap();
    let says = |answer: Result<(), Answered>| answers.lock().unwrap().push(answer);
    says(Ok(()));
    bench.pass(HOUR).await;
    says(Ok(()));
    jobs.tick(Trigger::Manual).await;
    add(&jobs, "b");
    says(Err(Ok(Answer::SkippedNotLeader)));
    jobs.tick(Trigger::Manual).await;
    says(Err(Ok(Answer::SkippedSystemPaused)));
    jobs.tick(Trigger::Interval).await;
    says(Err(Err("no lease".into())));
    jobs.tick(Trigger::Manual).await;
    jobs.stop().await.unwrap();
    let fw = "timed-jobs.framework";
    let started = |trigger: &str| {
        format!(
            r#","controller_id":"c-7","host":"h-7","max_messages_per_tick":20,"max_tasks_per_tick":3,"settle_delay_ms":250,"term":7,"trigger":"{trigger}""#
        )
    };
    let asked = |count: u64, trigger: &str| format!(r#","runner_count":{count},"trigger":"{trigger}""#);
    let done = |failed: u64, ok: u64, trigger: &str| {
        format!(
            r#","failed_runner_count":{failed},"runner_count":1,"successful_runner_count":{ok},"trigger":"{trigger}""#
        )
    };
    let by = |trigger: &str| format!(r#","trigger":"{trigger}""#);
    let (manual, interval) = ("manual", "interval");
    #[rustfmt::skip]
    let expected: Vec<(&str, &str, &str, &str, &str, &str, &str, String)> = vec![
        // minute and second, hour and counter, duration, error, result, runner, stage, details
        ("00:00.123Z", "0-1", "null", "null", "loop_enabled", fw, "started", String::new()),
        ("00:00.123Z", "0-2", "null", "null", "skipped_no_runners", fw, "tick_skipped_no_runners", by(manual)),
        ("00:00.123Z", "1-3", "null", "null", "running", fw, "tick_started", asked(1, interval)),
        ("00:00.129Z", "1-3", "null", "null", "running", "mail", "runner_started", started(interval)),
        ("00:00.160Z", "1-4", "null", "null", "skipped_busy", fw, "tick_skipped_busy", by(manual)),
        ("00:00.160Z", "1-3", "30", "null", "sent", "mail", "runner_completed", r#","sent":2"#.to_owned()),
        ("00:00.160Z", "1-3", "36", "null", "scheduled", fw, "tick_completed", done(0, 1, interval)),
        ("00:00.160Z", "1-5", "null", "null", "running", fw, "tick_started", asked(1, manual)),
        ("00:00.166Z", "1-5", "null", "null", "running", "mail", "runner_started", started(manual)),
        ("00:00.197Z", "1-5", "30", r#""no \"way\"""#, "failed", "mail", "runner_failed", String::new()),
        ("00:00.197Z", "1-5", "36", "null", "completed_with_failures", fw, "tick_completed", done(1, 0, manual)),
        ("00:00.197Z", "1-6", "null", "null", "running", fw, "tick_started", asked(2, manual)),
        ("00:00.202Z", "1-6", "0", "null", "skipped_not_leader", "mail", "runner_skipped", by(manual)),
        ("00:00.202Z", "1-6", "0", "null", "skipped_not_leader", "b", "runner_skipped", by(manual)),
        ("00:00.202Z", "1-6", "5", "null", "skipped_not_leader", fw, "tick_completed", asked(2, manual)),
        ("00:00.202Z", "1-7", "null", "null", "running", fw, "tick_started", asked(2, interval)),
        ("00:00.208Z", "1-7", "0", "null", "skipped_system_paused", "mail", "runner_skipped", by(interval)),
        ("00:00.208Z", "1-7", "0", "null", "skipped_system_paused", "b", "runner_skipped", by(interval)),
        ("00:00.208Z", "1-7", "5", "null", "skipped_system_paused", fw, "tick_completed", asked(2, interval)),
        ("00:00.208Z", "1-8", "null", "null", "running", fw, "tick_started", asked(2, manual)),
        ("00:00.214Z", "1-8", "5", r#""no lease""#, "failed", fw, "tick_failed", asked(2, manual)),
        ("00:00.214Z", "1-9", "null", "null", "stopped", fw, "stopped", String::new()),
    ];
    let lines = bench.lines(&engine);
    let mut begun_ms = 123;
    for (line, (at, batch, duration, error, result, runner, stage, details)) in lines.iter().zip(&expected) {
        let (hour, counter) = batch.split_once('-').unwrap();
        // A batch id bears the moment at which its first record was made.
        if matches!(*stage, "started" | "stopped" | "tick_started") || stage.starts_with("tick_skipped") {
            begun_ms = at[6..9].parse::<u64>().unwrap();
        } else if *counter == *"3" {
            begun_ms = 123;
        }
        let unix_ms = 1_775_001_600_000 + hour.parse::<u64>().unwrap() * 3_600_000 + begun_ms;
        let text = format!(
            r#"{{"batch_id":"timed-jobs-{unix_ms}-{counter}","duration_ms":{duration},"error":{error},"result":"{result}","runner":"{runner}","stage":"{stage}","ts":"2026-04-01T0{hour}:{at}"{details}}}"#
        );
        assert_eq!(*line, text);
    }
    assert_eq!(lines.len(), expected.len());
}

/// A machine with a simulated disk.
struct Sim {
    world: SimWorld,
    bench: Bench,
}

impl Sim {
    fn new() -> Self {
        Self { world: SimWorld::new(), bench: Bench::new() }
    }

    fn seen(&self, machine: &SimWorld) -> World {
        World { disk: Arc::new(machine.process(9)), ..self.bench.world() }
    }

    fn engine(&self, seed: u64) -> (SimDisk, Engine) {
        let disk = self.world.process(1);
        let entropy = Arc::new(SeededEntropy::new(seed));
        let world = World { disk: Arc::new(disk.clone()), entropy, ..self.bench.world() };
        let options = Options { publish: false, ..Options::default() };
        let (engine, _) = Engine::open_in(world, options).unwrap();
        (disk, engine)
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_process_leaves_has_its_lines() {
    let sim = Sim::new();
    let (disk, engine) = sim.engine(1);
    let jobs = TimedJobs::new(&engine, sim.bench.options()).unwrap();
    add(&jobs, "a");
    Gate::new().guard(&jobs, "waits");
    jobs.start().await.unwrap();
    sim.bench.pass(HOUR * 5 / 2).await; // Two at once, half an hour late.
    jobs.flush().await;
    disk.kill();
    drop((jobs, engine));
    sim.bench.pass(HOUR * 2).await;
    let (_, engine) = sim.engine(2);
    let jobs = TimedJobs::new(&engine, sim.bench.options()).unwrap();
    assert_eq!(jobs.start().await.unwrap().missed[0].count, 2);
    jobs.stop().await.unwrap();
    let records = records(&sim.seen(&sim.world));
    let line = |record: &Record| tick_line(tick_of(record), record.created_at);
    let late = 1_775_001_600_123_i64 + 9_000_000;
    let after = late + 7_200_000;
    let lines: Vec<String> = records.iter().map(line).collect();
    assert_eq!(
        lines[1],
        format!(
            r#"{{"batch_id":"timed-jobs-{late}-2","duration_ms":null,"error":null,"result":"coalesced","runner":"timed-jobs.framework","stage":"tick_missed","ts":"2026-04-01T02:30:00.123Z","planned_time":"2026-04-01T01:00:00.123Z","count":1}}"#
        )
    );
    let interrupted = lines.iter().find(|line| line.contains("interrupted")).unwrap();
    assert_eq!(
        *interrupted,
        format!(
            r#"{{"batch_id":"timed-jobs-{late}-3","duration_ms":null,"error":"The process died before the tick ended.","result":"interrupted","runner":"timed-jobs.framework","stage":"tick_failed","ts":"2026-04-01T04:30:00.123Z","runner_count":2,"trigger":"interval"}}"#
        )
    );
    let missed = lines.iter().find(|line| line.contains("run_once")).unwrap();
    assert_eq!(
        *missed,
        format!(
            r#"{{"batch_id":"timed-jobs-{after}-1","duration_ms":null,"error":null,"result":"run_once","runner":"timed-jobs.framework","stage":"tick_missed","ts":"2026-04-01T04:30:00.123Z","planned_time":"2026-04-01T03:00:00.123Z","count":2}}"#
        )
    );
}

#[tokio::test(start_paused = true)]
async fn midnight_within_a_tick_begins_another_file() {
    let bench = Bench::new();
    bench.clock.0.advance(Duration::from_millis(86_400_000 - 124));
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let clock = Arc::clone(&bench.clock);
    jobs.register("up late", "", move |context: Context| {
        let clock = Arc::clone(&clock);
        async move {
            context.log("before", |entry| entry);
            clock.0.advance(Duration::from_millis(1));
            context.log("after", |entry| entry);
            Ok::<_, RunnerError>(Report::ok())
        }
    })
    .unwrap();
    jobs.tick(Trigger::Manual).await;
    bench.published(&engine, &jobs).await;
    let count = |day: &str| fs::read_to_string(bench.file(day)).unwrap().lines().count();
    assert_eq!((count("2026-04-01"), count("2026-04-02")), (3, 4));
    // Back to yesterday, whose file goes on.
    bench.clock.0.set_wall(Time(START));
    jobs.tick(Trigger::Manual).await;
    bench.published(&engine, &jobs).await;
    assert_eq!((count("2026-04-01"), count("2026-04-02")), (10, 4));
    let lines = bench.lines(&engine);
    assert!(lines[2].contains(r#""stage":"before","ts":"2026-04-01T23:59:59.999Z""#));
    assert!(lines[10].contains(r#""stage":"after","ts":"2026-04-02T00:00:00.000Z""#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lines_stand_in_the_order_of_the_calls_also_of_many_tasks() {
    const TASKS: u64 = 16;
    const EACH: u64 = 100;
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    jobs.register("many", "", |context: Context| async move {
        let calls = Arc::new(Mutex::new(0_u64));
        let mut tasks = Vec::new();
        for _ in 0..TASKS {
            let (context, calls) = (context.clone(), Arc::clone(&calls));
            tasks.push(tokio::spawn(async move {
                for n in 0..EACH {
                    {
                        let mut calls = calls.lock().unwrap();
                        context.log("call", |entry| entry.details(&json!({ "call": *calls })));
                        *calls += 1;
                    }
                    if n % 7 == 0 {
                        yield_now().await;
                    }
                }
            }));
        }
        for task in tasks {
            task.await?;
        }
        Ok::<_, RunnerError>(Report::ok())
    })
    .unwrap();
    jobs.tick(Trigger::Manual).await;
    jobs.stop().await.unwrap();
    let lines = bench.lines(&engine);
    let calls: Vec<u64> = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["call"].as_u64())
        .collect();
    assert_eq!(calls, (0..TASKS * EACH).collect::<Vec<_>>());
    let ends: Vec<_> = [0, 1, lines.len() - 2, lines.len() - 1]
        .map(|n| serde_json::from_str::<Value>(&lines[n]).unwrap()["stage"].as_str().unwrap().to_owned())
        .into();
    assert_eq!(ends, ["tick_started", "runner_started", "runner_completed", "tick_completed"]);
}

#[tokio::test(start_paused = true)]
async fn lines_are_there_while_it_is_recorded() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    add(&jobs, "a");
    for round in 1..6 {
        jobs.tick(Trigger::Manual).await;
        bench.published(&engine, &jobs).await;
        let text = fs::read_to_string(bench.file("2026-04-01")).unwrap();
        assert_eq!(text.lines().count(), 5 * round);
        assert!(text.ends_with('\n'));
        bench.compare();
        bench.pass(HOUR).await;
    }
    bench.lines(&engine);
}

#[tokio::test(start_paused = true)]
async fn two_engines_take_turns_with_the_same_files() {
    let bench = Bench::new();
    let (one, two) = (bench.engine(), bench.engine());
    let (first, second) = (bench.jobs(&one), bench.jobs(&two));
    add(&first, "of one");
    add(&second, "of two");
    for round in 1..5 {
        for (engine, jobs, done) in [(&one, &first, 2 * round - 1), (&two, &second, 2 * round)] {
            jobs.tick(Trigger::Manual).await;
            bench.published(engine, jobs).await;
            bench.compare();
            bench.noted();
            assert_eq!(bench.files().lines().count(), 5 * done);
        }
        bench.pass(HOUR * 10).await;
    }
    // And both at once.
    let (a, b) = tokio::join!(first.tick(Trigger::Manual), second.tick(Trigger::Manual));
    assert_eq!((a.decision, b.decision), (Decision::Scheduled, Decision::Scheduled));
    first.flush().await;
    second.flush().await;
    one.close().unwrap();
    assert_eq!(bench.lines(&two).len(), 48);
    let days: Vec<_> = fs::read_dir(bench.dir.path().join("data/timed-jobs")).unwrap().collect();
    assert_eq!(days.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn files_that_are_damaged_or_gone_are_made_anew_while_it_is_recorded() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    add(&jobs, "a");
    jobs.tick(Trigger::Manual).await;
    bench.pass(HOUR * 24).await;
    jobs.tick(Trigger::Manual).await;
    bench.published(&engine, &jobs).await;
    let (past, today) = (bench.file("2026-04-01"), bench.file("2026-04-02"));
    let cache = bench.dir.path().join("data/cache");
    let harms: [(&str, &dyn Fn()); 9] = [
        ("today is gone", &|| fs::remove_file(&today).unwrap()),
        ("the past is gone", &|| fs::remove_file(&past).unwrap()),
        ("cut", &|| fs::write(&today, &fs::read(&today).unwrap()[..9]).unwrap()),
        ("grown", &|| fs::write(&past, [fs::read(&past).unwrap(), b"more\n".to_vec()].concat()).unwrap()),
        ("empty", &|| fs::write(&today, "").unwrap()),
        ("a folder in its place", &|| {
            fs::remove_file(&past).unwrap();
            fs::create_dir(&past).unwrap();
        }),
        ("the folder is gone", &|| fs::remove_dir_all(today.parent().unwrap()).unwrap()),
        ("the cache is gone", &|| fs::remove_dir_all(&cache).unwrap()),
        ("all of it is gone", &|| {
            fs::remove_dir_all(today.parent().unwrap()).unwrap();
            fs::remove_dir_all(&cache).unwrap();
        }),
    ];
    for (what, harm) in harms {
        harm();
        jobs.tick(Trigger::Manual).await;
        bench.published(&engine, &jobs).await;
        let mut log = Log::open_in(&bench.world()).unwrap();
        let stream = log.ticks().unwrap().unwrap();
        assert_eq!(log.rebuild(stream, false).unwrap().unwrap().differences, [], "{what}");
    }
    bench.lines(&engine);
}

#[tokio::test(start_paused = true)]
async fn without_files_there_is_no_log_directory_and_ticks_are_journaled_as_ever() {
    let bench = Bench::new();
    let off = [
        Options { publish_ticks: false, ..Options::default() },
        Options { publish: false, ..Options::default() },
    ];
    for options in off {
        let (engine, _) = Engine::open_in(bench.world(), options).unwrap();
        let jobs = bench.jobs(&engine);
        jobs.register("looks", "", |context: Context| async move {
            assert_eq!(context.log_dir(), None);
            Ok::<_, RunnerError>(Report::ok())
        })
        .unwrap();
        jobs.start().await.unwrap();
        jobs.tick(Trigger::Manual).await;
        jobs.stop().await.unwrap();
        engine.close().unwrap();
        assert!(!bench.dir.path().join("data/timed-jobs").exists());
    }
    let each = [
        "started loop_enabled",
        "tick_started running",
        "runner_started running",
        "runner_completed ok",
        "tick_completed scheduled",
        "stopped stopped",
    ];
    assert_eq!(stages(&bench.records()), [each, each].concat());
    // Who publishes them, publishes all.
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    jobs.tick(Trigger::Manual).await;
    jobs.flush().await;
    assert_eq!(bench.lines(&engine).len(), 13);
}

/// Holds up every commit of an engine, until it is dropped.
struct Blocked(Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>);

impl Blocked {
    fn new(engine: &Engine) -> Self {
        let ((blocked, is_blocked), (free, is_free)) = (mpsc::channel(), mpsc::channel());
        let engine = engine.clone();
        let thread = std::thread::spawn(move || {
            engine.between_commits(|| {
                blocked.send(()).unwrap();
                is_free.recv().unwrap();
            });
        });
        is_blocked.recv().unwrap();
        Self(Some((free, thread)))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Some((free, thread)) = self.0.take() {
            free.send(()).unwrap();
            thread.join().unwrap();
        }
    }
}

/// A context, from a tick that is over.
async fn context_of(jobs: &TimedJobs) -> Context {
    let found: Arc<Mutex<Option<Context>>> = Arc::default();
    let gives = Arc::clone(&found);
    jobs.register("gives", "", move |context: Context| {
        *gives.lock().unwrap() = Some(context);
        async { Ok::<_, RunnerError>(Report::ok()) }
    })
    .unwrap();
    jobs.tick(Trigger::Manual).await;
    jobs.flush().await;
    let context = found.lock().unwrap().take();
    context.unwrap()
}

/// Every number is recorded, or counted as lost where it would stand; answers with how many are lost.
fn gaps(records: &[Record]) -> u64 {
    let (mut next, mut lost) = (0, 0);
    for record in records {
        let tick = tick_of(record);
        let details: Value = serde_json::from_str(tick.details.as_str()).unwrap();
        if tick.stage == "records_lost" {
            assert_eq!((tick.runner.as_str(), tick.duration_ms), ("timed-jobs.framework", None));
            let count = details["count"].as_u64().unwrap();
            assert!(count > 0);
            next += count;
            lost += count;
        } else if let Some(n) = details["n"].as_u64() {
            assert_eq!(n, next);
            next += 1;
        }
    }
    lost
}

#[tokio::test(start_paused = true)]
async fn at_its_bound_the_queue_holds_nobody_up_and_says_what_is_lost() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let context = context_of(&jobs).await;
    let lost = || bench.told.lock().unwrap().len();
    // Each has the number that a reader expects: what is lost is counted with what is there.
    let mut kept = 0;
    let mut log = || {
        let before = lost();
        context.log("numbered", |entry| entry.details(&json!({ "n": kept + before })));
        kept += usize::from(lost() == before);
        (lost() > before, kept)
    };
    let blocked = Blocked::new(&engine);
    // Nor does a tick wait for the disk; its records are lost as well. They have room where the writer
    // has just taken what it takes at once, which it does only once.
    let tick = ["numbered", "tick_started", "runner_started", "runner_completed", "tick_completed"];
    let mut rounds = 0;
    loop {
        let (_, kept) = std::iter::repeat_with(&mut log).find(|(lost, _)| *lost).unwrap();
        assert!((QUEUE_LEN - 4..=QUEUE_LEN + 512).contains(&kept), "{kept}");
        assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
        let told = bench.told.lock().unwrap();
        assert!(told.iter().all(|(_, has_error)| !has_error), "there was no error, there was no room");
        if told[told.len().saturating_sub(5)..].iter().map(|(stage, _)| stage.as_str()).eq(tick) {
            break;
        }
        rounds += 1;
        assert!(rounds < 2, "{:?}", &told[told.len() - 5..]);
    }
    drop(blocked);
    jobs.flush().await;
    // The tick's records are a part of the gap.
    assert!(!(0..10).any(|_| log().0));
    jobs.flush().await;
    let told = std::mem::take(&mut *bench.told.lock().unwrap());
    assert_eq!(gaps(&bench.records()), u64::try_from(told.len()).unwrap());
    let records = bench.records();
    let last = tick_of(&records[records.len() - 11]);
    assert_eq!((last.stage.as_str(), last.batch_id.as_str()), ("records_lost", context.batch_id()));
    bench.lines(&engine);
}

/// Few records, of much content each.
#[tokio::test(start_paused = true)]
async fn the_bytes_that_wait_are_bounded_too() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let context = context_of(&jobs).await;
    let blocked = Blocked::new(&engine);
    let long = "x".repeat(QUEUE_BYTES / 20);
    for n in 0..100 {
        context.log("numbered", |entry| entry.details(&json!({ "n": n, "long": long })));
    }
    // As much as fits, and once more as the writer may have in its hands.
    let told = bench.told.lock().unwrap().len();
    assert!((60..=81).contains(&told), "{told}");
    drop(blocked);
    jobs.flush().await;
    (100..110).for_each(|n| context.log("numbered", |entry| entry.details(&json!({ "n": n }))));
    jobs.stop().await.unwrap();
    assert_eq!(gaps(&bench.records()), u64::try_from(told).unwrap());
}

/// Where the embedder does not want to be told of each, the stop says so.
#[tokio::test(start_paused = true)]
async fn what_nobody_was_told_of_the_stop_tells() {
    let bench = Bench::new();
    let engine = bench.engine();
    let options = TimedJobsOptions { on_write_error: None, ..bench.options() };
    let jobs = TimedJobs::new(&engine, options).unwrap();
    add(&jobs, "a");
    let context = context_of(&jobs).await;
    jobs.start().await.unwrap();
    jobs.flush().await;
    let blocked = Blocked::new(&engine);
    for _ in 0..QUEUE_LEN + 512 + 10 {
        context.log("numbered", |entry| entry);
    }
    drop(blocked);
    let error = jobs.stop().await.unwrap_err();
    assert!(error.message().contains("are not in the journal; the first: the queue was full"), "{error}");
    assert!(!jobs.is_started());
    jobs.stop().await.unwrap();
    assert!(stages(&bench.records()).ends_with(&["stopped stopped".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_before_a_stop_is_recorded_with_it() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    let context = context_of(&jobs).await;
    jobs.start().await.unwrap();
    jobs.flush().await;
    let blocked = Blocked::new(&engine);
    // Until one is lost: when the writer takes what it takes at once is its own affair.
    let told = || bench.told.lock().unwrap().len();
    for n in 0.. {
        context.log("numbered", |entry| entry.details(&json!({ "n": n })));
        if told() > 0 {
            break;
        }
    }
    let mut stop = Box::pin(jobs.stop());
    assert!(polled(&mut stop, 30).await.is_none(), "a stop does wait");
    drop(blocked);
    stop.await.unwrap();
    let told = std::mem::take(&mut *bench.told.lock().unwrap()).len();
    let records = bench.records();
    assert_eq!(gaps(&records), u64::try_from(told).unwrap());
    assert_eq!(stages(&records)[records.len() - 2..], ["records_lost -", "stopped stopped"]);
    bench.lines(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_stops_no_tick_and_each_record_is_told() {
    const EIO: i32 = 5;
    for (sticky, at) in (0..24).flat_map(|at| [(false, at), (true, at)]) {
        let sim = Sim::new();
        let (_, engine) = sim.engine(1);
        let jobs = TimedJobs::new(&engine, sim.bench.options()).unwrap();
        add(&jobs, "a");
        let fault = if sticky { Fault::sticky(EIO) } else { Fault::once(EIO) };
        sim.world.fail_at(sim.world.operations() + 1 + at, fault);
        jobs.start().await.unwrap();
        for _ in 0..4 {
            assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
            sim.bench.pass(HOUR).await;
            jobs.flush().await;
        }
        let stopped = jobs.stop().await;
        // What was promised is there, and of all else the embedder knows.
        sim.world.clear_faults();
        let mut all: BTreeMap<String, i64> = BTreeMap::new();
        for (stage, times) in [
            ("started", 1),
            ("tick_started", 8),
            ("runner_started", 8),
            ("runner_completed", 8),
            ("tick_completed", 8),
            ("stopped", 1),
        ] {
            all.insert(stage.to_owned(), times);
        }
        let told = std::mem::take(&mut *sim.bench.told.lock().unwrap());
        assert!(told.iter().all(|(_, has_error)| *has_error));
        assert_eq!(stopped.is_err(), told.iter().any(|(stage, _)| stage == "stopped"));
        for (stage, _) in &told {
            *all.get_mut(stage).unwrap() -= 1;
        }
        // A failed write may be there nevertheless, but not more than once.
        let records = records(&sim.seen(&sim.world));
        for record in &records {
            *all.get_mut(&tick_of(record).stage).unwrap() -= 1;
        }
        assert!(all.values().all(|left| *left <= 0), "{sticky} {at}: neither there nor told: {all:?}");
        assert!(records.len() + told.len() < 34 + 20);
        if engine.is_poisoned() {
            assert!(stopped.is_err() && !told.is_empty(), "{sticky} {at}");
            assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
            jobs.flush().await;
            assert_eq!(sim.bench.told.lock().unwrap().len(), 4);
        } else {
            jobs.tick(Trigger::Manual).await;
            jobs.flush().await;
            assert_eq!(sim.bench.told.lock().unwrap().len(), 0, "later records are tried anew");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_refused_stops_no_later_one() {
    let bench = Bench::new();
    let engine = bench.engine();
    let jobs = bench.jobs(&engine);
    jobs.register("long", "", |context: Context| async move {
        context.log("too_long", |entry| entry.error("x".repeat(4 << 20)));
        context.log("short", |entry| entry);
        Ok::<_, RunnerError>(Report::ok())
    })
    .unwrap();
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
    jobs.flush().await;
    assert_eq!(std::mem::take(&mut *bench.told.lock().unwrap()), [("too_long".to_owned(), true)]);
    let lines = bench.brief(&engine);
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[2], "long: short");
    // Behind the close of the engine every record is told.
    assert_eq!(jobs.tick(Trigger::Manual).await.decision, Decision::Scheduled);
    jobs.flush().await;
    assert_eq!(bench.told.lock().unwrap().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_told_may_panic() {
    let bench = Bench::new();
    let engine = bench.engine();
    let mut options = bench.options();
    let told = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&told);
    options.on_write_error = Some(Arc::new(move |_| {
        counts.fetch_add(1, Ordering::SeqCst);
        panic!("told");
    }));
    let jobs = TimedJobs::new(&engine, options).unwrap();
    let context = context_of(&jobs).await;
    context.log("too_long", |entry| entry.error("x".repeat(4 << 20)));
    context.log("short", |entry| entry);
    jobs.flush().await;
    assert_eq!((told.load(Ordering::SeqCst), bench.brief(&engine).len()), (1, 5));
}
