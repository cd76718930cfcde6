//! Timed jobs over long times and across deaths: every interval that was planned is accounted for,
//! once. What single ticks record is in `timed_jobs.rs`.

use runwal::JournalOptions;
use runwal::clock::{Clock, ManualClock, SeededEntropy};
use runwal::disk::sim::{SimDisk, SimWorld};
use runwal::engine::{Conditions, Engine, Log, NewRecord, Options, Report, World};
use runwal::position::{Seq, Time};
use runwal::record::{Body, JsonText, Record, Tick};
use runwal::timed_jobs::{
    self, Answer, BoxFuture, Config, Context, Identity, Missed, RunnerError, Schedule, TimedJobs,
    TimedJobsOptions, Trigger, Work,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const HOUR: Duration = Duration::from_hours(1);

/// Moves only when told to, also while somebody waits for another's turn at the journal.
#[derive(Debug)]
pub(crate) struct Hand(pub(crate) ManualClock);

impl Clock for Hand {
    fn now(&self) -> Time {
        self.0.now()
    }

    fn monotonic_ns(&self) -> u64 {
        self.0.monotonic_ns()
    }

    fn pause(&self, duration: Duration) {
        runwal::clock::System.pause(duration.min(Duration::from_millis(1)));
    }
}

/// A machine whose time moves only when told to.
struct Machine {
    sim: SimWorld,
    clock: Arc<Hand>,
    boots: AtomicU64,
}

/// A process on it.
struct Process {
    disk: SimDisk,
    engine: Engine,
    report: Report,
}

impl Machine {
    fn new() -> Self {
        // 2026-04-01T00:00:00Z.
        let clock = Arc::new(Hand(ManualClock::new(Time(1_775_001_600 * 1_000_000_000))));
        Self { sim: SimWorld::new(), clock, boots: AtomicU64::new(1) }
    }

    fn process(&self) -> Process {
        let disk = self.sim.process(1);
        let world = World {
            disk: Arc::new(disk.clone()),
            clock: self.clock.clone(),
            entropy: Arc::new(SeededEntropy::new(self.boots.fetch_add(1, Ordering::SeqCst))),
        };
        // An hour passes while somebody waits for the other's turn.
        let journal = JournalOptions { patience: HOUR * 24 * 365 * 10, ..JournalOptions::default() };
        let options = Options { journal, publish: false, ..Options::default() };
        let (engine, report) = Engine::open_in(world, options).unwrap();
        Process { disk, engine, report }
    }

    async fn pass(&self, time: Duration) {
        self.clock.0.advance(time);
        tokio::time::advance(time).await;
        settle().await;
    }

    fn records(&self) -> Vec<Record> {
        let world = World {
            disk: Arc::new(self.sim.process(1)),
            clock: self.clock.clone(),
            entropy: Arc::new(SeededEntropy::new(0)),
        };
        let mut log = Log::open_in(&world).unwrap();
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
}

impl Process {
    /// Dies without a word: nothing of it reaches the disk any more, its locks are free.
    fn die(self, jobs: TimedJobs) {
        self.disk.kill();
        drop(jobs);
    }
}

/// Lets everything that is ready run.
async fn settle() {
    for _ in 0..30 {
        tokio::task::yield_now().await;
    }
}

fn options(interval: Duration) -> TimedJobsOptions {
    TimedJobsOptions::new(Config::every(interval), "conductor")
}

fn jobs(process: &Process, interval: Duration) -> TimedJobs {
    let jobs = TimedJobs::new(&process.engine, options(interval)).unwrap();
    jobs.register("quick", "", |_: Context| async { Ok::<_, RunnerError>(timed_jobs::Report::ok()) })
        .unwrap();
    jobs
}

fn stages(records: &[Record]) -> Vec<String> {
    let stage = |record: &Record| match &record.body {
        Body::Tick(tick) => format!("{} {}", tick.stage, tick.result.as_deref().unwrap_or("-")),
        other => panic!("{other:?}"),
    };
    records.iter().map(stage).collect()
}

fn count(record: &Record) -> u64 {
    let Body::Tick(tick) = &record.body else { panic!("{record:?}") };
    let details: serde_json::Value = serde_json::from_str(tick.details.as_str()).unwrap();
    details["count"].as_u64().unwrap()
}

fn is_missed(record: &Record) -> bool {
    matches!(&record.body, Body::Tick(tick) if tick.stage == "tick_missed")
}

/// How many intervals the records account for; each ticker's own must be all from 1 on, once.
fn accounted(records: &[Record]) -> u64 {
    let mut tickers: BTreeMap<String, u64> = BTreeMap::new();
    let mut after_death = 0;
    for record in records {
        let key = record.key.as_deref().map(|key| std::str::from_utf8(key).unwrap().to_owned());
        let nth = key
            .as_deref()
            .and_then(|key| key.rsplit_once('/'))
            .and_then(|(name, nth)| Some((name.to_owned(), nth.parse::<u64>().ok()?)));
        match nth {
            Some((name, nth)) => {
                let last = tickers.entry(name).or_default();
                assert_eq!(nth, *last + 1, "{key:?} comes behind {last}");
                *last += if is_missed(record) { count(record) } else { 1 };
            }
            None if is_missed(record) => after_death += count(record),
            None => {}
        }
    }
    tickers.values().sum::<u64>() + after_death
}

#[tokio::test(start_paused = true)]
async fn a_tick_found_without_an_end_is_interrupted_once_and_what_was_missed_is_recorded_once() {
    let machine = Machine::new();
    let process = machine.process();
    let jobs = TimedJobs::new(&process.engine, options(HOUR)).unwrap();
    let hangs =
        |_: Context| async { std::future::pending::<Result<timed_jobs::Report, RunnerError>>().await };
    jobs.register("hangs", "", hangs).unwrap();
    jobs.start().await.unwrap();
    machine.pass(HOUR).await;
    machine.pass(HOUR).await;
    jobs.flush().await;
    assert_eq!(
        stages(&machine.records()),
        [
            "started loop_enabled",
            "tick_started running",
            "runner_started running",
            "tick_skipped_busy skipped_busy"
        ]
    );
    process.die(jobs);
    machine.pass(HOUR * 5 / 2).await;
    // Whoever opens ends the tick; twice changes nothing more; what was missed is told, not recorded.
    for round in 0..2 {
        let process = machine.process();
        assert_eq!(process.report.interrupted_ticks.len(), usize::from(round == 0));
        let missed = &process.report.missed_ticks;
        assert_eq!((missed.len(), missed[0].count, missed[0].interval), (1, 2, HOUR));
        let interrupted = stages(&machine.records());
        assert_eq!(interrupted.len(), 5);
        assert_eq!(interrupted[4], "tick_failed interrupted");
        process.engine.close().unwrap();
    }
    let process = machine.process();
    let jobs = self::jobs(&process, HOUR);
    let started = jobs.start().await.unwrap();
    assert_eq!(started.missed.iter().map(|missed| missed.count).sum::<u64>(), 2);
    settle().await;
    jobs.stop().await.unwrap();
    let records = machine.records();
    let Body::Tick(missed) = &records[5].body else { panic!() };
    assert_eq!(missed.details.as_str(), r#"{"planned_time":"2026-04-01T03:00:00.000Z","count":2}"#);
    assert_eq!(
        stages(&records)[5..],
        [
            "tick_missed run_once",
            "started loop_enabled",
            "tick_started running",
            "runner_started running",
            "runner_completed ok",
            "tick_completed scheduled",
            "stopped stopped",
        ]
    );
    assert_eq!(accounted(&records), 4);
    // Stopped is not dead: what passes now was not planned.
    machine.pass(HOUR * 10).await;
    let jobs = self::jobs(&process, HOUR);
    assert!(jobs.start().await.unwrap().missed.is_empty());
    jobs.stop().await.unwrap();
}

/// However many were skipped as it was in flight.
#[tokio::test(start_paused = true)]
async fn a_tick_that_hung_for_long_is_interrupted_too() {
    let machine = Machine::new();
    let process = machine.process();
    let jobs = TimedJobs::new(&process.engine, options(HOUR)).unwrap();
    let hangs =
        |_: Context| async { std::future::pending::<Result<timed_jobs::Report, RunnerError>>().await };
    jobs.register("hangs", "", hangs).unwrap();
    jobs.start().await.unwrap();
    for _ in 0..600 {
        machine.pass(HOUR).await;
    }
    jobs.flush().await;
    let recorded = stages(&machine.records());
    assert_eq!((recorded.len(), &*recorded[1]), (602, "tick_started running"));
    process.die(jobs);
    let process = machine.process();
    assert_eq!(process.report.interrupted_ticks.len(), 1);
    assert_eq!(stages(&machine.records())[602..], ["tick_failed interrupted"]);
}

#[tokio::test(start_paused = true)]
async fn intervals_that_are_due_at_once_make_one_tick_and_are_all_accounted_for() {
    let machine = Machine::new();
    let process = machine.process();
    let jobs = jobs(&process, HOUR);
    jobs.start().await.unwrap();
    machine.pass(HOUR / 2).await;
    machine.pass(HOUR * 4).await; // held up: 1 to 4 are due, half an hour late
    machine.pass(HOUR / 2).await; // 5, in time
    jobs.stop().await.unwrap();
    let records = machine.records();
    let missed: Vec<_> = records.iter().filter(|record| is_missed(record)).collect();
    let Body::Tick(tick) = &missed[0].body else { panic!() };
    assert_eq!((missed.len(), tick.result.as_deref()), (1, Some("coalesced")));
    assert_eq!(tick.details.as_str(), r#"{"planned_time":"2026-04-01T01:00:00.000Z","count":3}"#);
    assert_eq!(accounted(&records), 5);
    let started = stages(&records).iter().filter(|stage| *stage == "tick_started running").count();
    assert_eq!(started, 2);
}

/// Several were due at once, and the process died between the word of those before the last and the
/// last one's tick.
#[tokio::test(start_paused = true)]
async fn the_last_of_several_that_were_due_at_once_is_missed_where_its_tick_is_not_recorded() {
    let machine = Machine::new();
    let process = machine.process();
    let jobs = jobs(&process, HOUR);
    jobs.start().await.unwrap();
    machine.pass(HOUR).await;
    jobs.flush().await;
    let records = machine.records();
    let key = records.iter().find_map(|record| record.key.clone()).unwrap();
    let key = String::from_utf8(key).unwrap().replace("/1", "/2");
    machine.clock.0.advance(HOUR * 9 / 2); // 2 to 5 are due
    let coalesced =
        timed_jobs_record("tick_missed", r#"{"planned_time":"2026-04-01T02:00:00.000Z","count":3}"#);
    let coalesced = NewRecord { created_at: Some(machine.clock.now()), ..coalesced.into() };
    process.engine.append(records[0].stream, Conditions::none().key(key), &[coalesced]).unwrap();
    process.die(jobs);
    machine.pass(HOUR).await;
    let process = machine.process();
    let missed = &process.report.missed_ticks[0];
    assert_eq!((missed.planned.to_millis_string().as_str(), missed.count), ("2026-04-01T05:00:00.000Z", 2));
    let jobs = self::jobs(&process, HOUR);
    jobs.start().await.unwrap();
    jobs.stop().await.unwrap();
    assert_eq!(accounted(&machine.records()), 6);
}

fn timed_jobs_record(stage: &str, details: &str) -> Body {
    Body::Tick(Tick {
        batch_id: "timed-jobs-0-0".to_owned(),
        runner: "timed-jobs.framework".to_owned(),
        stage: stage.to_owned(),
        result: Some("coalesced".to_owned()),
        error: None,
        duration_ms: None,
        details: JsonText::parse(details).unwrap(),
    })
}

/// The wall clock plans nothing while a process lives; only across its death there is no other.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_or_jumps_makes_no_tick_and_takes_none() {
    let machine = Machine::new();
    let process = machine.process();
    let jobs = jobs(&process, HOUR);
    jobs.start().await.unwrap();
    let mut planned = 0;
    for jump_hours in [-5_i64, 100, -1000, 24 * 365, 0] {
        let wall = machine.clock.now();
        machine.clock.0.set_wall(Time(wall.0 + jump_hours * 3_600_000_000_000));
        machine.pass(HOUR).await;
        planned += 1;
        jobs.flush().await;
        assert_eq!(accounted(&machine.records()), planned);
    }
    process.die(jobs);
    // Set while nobody lived: back, it hides what passed; never a negative count.
    let wall = machine.clock.now();
    machine.clock.0.set_wall(Time(wall.0 - 7 * 3_600_000_000_000));
    let process = machine.process();
    let jobs = self::jobs(&process, HOUR);
    assert!(process.report.missed_ticks.is_empty() && jobs.start().await.unwrap().missed.is_empty());
    machine.pass(HOUR * 3).await;
    jobs.flush().await;
    process.die(jobs);
    machine.pass(HOUR * 2).await;
    let process = machine.process();
    assert_eq!(process.report.missed_ticks[0].count, 2);
}

#[tokio::test(start_paused = true)]
async fn two_conductors_that_start_at_once_account_for_a_dead_one_once() {
    for round in 0..20 {
        let machine = Machine::new();
        let dead = machine.process();
        let dead_jobs = jobs(&dead, HOUR);
        dead_jobs.start().await.unwrap();
        machine.pass(HOUR).await;
        dead_jobs.flush().await;
        dead.die(dead_jobs);
        machine.pass(HOUR * 3).await;
        let (one, two) = (machine.process(), machine.process());
        let (first, second) = (jobs(&one, HOUR), jobs(&two, HOUR));
        let (a, b) = tokio::join!(first.start(), second.start());
        let recorded = a.unwrap().missed.len() + b.unwrap().missed.len();
        assert_eq!(recorded, 1, "round {round}");
        first.stop().await.unwrap();
        second.stop().await.unwrap();
        assert_eq!(accounted(&machine.records()), 4);
    }
}

/// Who leads changes with time.
struct Leader(Arc<Hand>);

impl Schedule for Leader {
    fn schedule(&self, work: Work) -> BoxFuture<'_, Result<Answer, RunnerError>> {
        Box::pin(async move {
            match self.0.now().0 / 3_600_000_000_000 % 7 {
                3 => Ok(Answer::SkippedNotLeader),
                4 => Ok(Answer::SkippedSystemPaused),
                5 => Err("the lease cannot be read".into()),
                _ => {
                    work.run(Identity::new("leader")).await;
                    Ok(Answer::Scheduled)
                }
            }
        })
    }
}

/// A year of hours with deaths, held-up timers, slow and failing runners, changing leaders, a
/// second conductor that comes and goes, and clocks that are set.
#[tokio::test(start_paused = true)]
async fn in_a_year_of_faults_what_was_planned_is_accounted_for() {
    let machine = Machine::new();
    let mut seed = 0x5eed_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let slow: Arc<Mutex<u64>> = Arc::default();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let make = |process: &Process| {
        let mut options = options(HOUR);
        options.schedule = Some(Arc::new(Leader(machine.clock.clone())));
        let heard = Arc::clone(&told);
        options.on_write_error = Some(Arc::new(move |lost| heard.lock().unwrap().push(format!("{lost:?}"))));
        let jobs = TimedJobs::new(&process.engine, options).unwrap();
        let slow = Arc::clone(&slow);
        jobs.register("varies", "", move |context: Context| {
            let hours = std::mem::take(&mut *slow.lock().unwrap());
            async move {
                context.log("at_work", |entry| entry.result("yes"));
                if hours > 0 {
                    tokio::time::sleep(HOUR * u32::try_from(hours).unwrap() + HOUR / 3).await;
                    return Err("too slow".into());
                }
                Ok::<_, RunnerError>(timed_jobs::Report::ok())
            }
        })
        .unwrap();
        jobs
    };
    let (mut planned, mut deaths, mut stops) = (0_u64, 0, 0);
    let mut alive: Vec<(Process, TimedJobs)> = Vec::new();
    let mut hours = 0;
    while hours < 24 * 365 {
        if alive.is_empty() || (alive.len() == 1 && random(200) == 0) {
            let process = machine.process();
            let jobs = make(&process);
            let started = jobs.start().await.unwrap();
            assert!(started.problems.is_empty());
            alive.push((process, jobs));
            settle().await;
        }
        match random(40) {
            // A death, or an orderly end; and some time until anybody notices.
            0 => {
                let (process, jobs) = alive.swap_remove(usize::try_from(random(alive.len() as u64)).unwrap());
                jobs.flush().await;
                process.die(jobs);
                deaths += 1;
                // Accounted for when the next one starts; the hours until then are planned as well.
                let others = alive.len() as u64;
                let down = random(30);
                machine.pass(HOUR * u32::try_from(down).unwrap()).await;
                planned += down * (others + 1);
                hours += down;
                let process = machine.process();
                let jobs = make(&process);
                jobs.start().await.unwrap();
                alive.push((process, jobs));
                settle().await;
            }
            1 => {
                // The tick in flight ends first, so let it have the hours that it needs: nobody tells
                // this clock to go on while a stop is waited for.
                *slow.lock().unwrap() = 0;
                for _ in 0..4 {
                    machine.pass(HOUR).await;
                    planned += alive.len() as u64;
                    hours += 1;
                }
                let (process, jobs) = alive.swap_remove(0);
                jobs.stop().await.unwrap();
                process.engine.close().unwrap();
                stops += 1;
            }
            2 => *slow.lock().unwrap() = 1 + random(3),
            // Held up for some hours.
            3 => {
                let held = 1 + random(6);
                machine.pass(HOUR * u32::try_from(held).unwrap()).await;
                planned += held * alive.len() as u64;
                hours += held;
            }
            // Set by less than an hour either way, right behind an interval that was accounted for.
            4 => {
                let by = i64::try_from(random(40)).unwrap() - 20;
                machine.clock.0.set_wall(Time(machine.clock.now().0 + by * 60_000_000_000));
                machine.pass(HOUR).await;
                planned += alive.len() as u64;
                hours += 1;
            }
            _ => {
                machine.pass(HOUR).await;
                planned += alive.len() as u64;
                hours += 1;
            }
        }
        for (_, jobs) in &alive {
            jobs.flush().await;
        }
        // Of the dead nobody expects anything.
        let told: Vec<_> = std::mem::take(&mut *told.lock().unwrap());
        assert!(told.iter().all(|lost| lost.contains("process is dead")), "{told:#?}");
    }
    for (_, jobs) in alive.drain(..) {
        jobs.stop().await.unwrap();
    }
    let records = machine.records();
    assert!(deaths > 100 && stops > 100, "{deaths} deaths, {stops} stops");
    assert_eq!(accounted(&records), planned, "{deaths} deaths, {stops} stops, {hours} hours");
    for stage in [
        "tick_skipped_busy",
        "tick_missed coalesced",
        "tick_missed run_once",
        "tick_failed interrupted",
        "tick_completed skipped_not_leader",
    ] {
        assert!(stages(&records).iter().any(|found| found.starts_with(stage)), "{stage} never happened");
    }
}

/// What the work of a conductor that was taken over from records is refused, and the embedder told.
#[tokio::test(start_paused = true)]
async fn work_in_a_term_that_is_over_leaves_no_record() {
    let machine = Machine::new();
    let process = machine.process();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let mut options = options(HOUR);
    options.identity.term = Some(4);
    options.missed = Missed::RecordOnly;
    let heard = Arc::clone(&told);
    options.on_write_error = Some(Arc::new(move |lost| {
        let error = lost.error.map(|error| format!("{:?}", error.conflict()));
        heard.lock().unwrap().push(format!("{} {}", lost.tick.stage, error.unwrap_or_default()));
    }));
    let jobs = TimedJobs::new(&process.engine, options).unwrap();
    jobs.register("quick", "", |_: Context| async { Ok::<_, RunnerError>(timed_jobs::Report::ok()) })
        .unwrap();
    jobs.tick(Trigger::Manual).await;
    jobs.flush().await;
    let stream = machine.records()[0].stream;
    let other = machine.process();
    let note = Body::Tick(runwal::record::Tick {
        batch_id: "b".to_owned(),
        runner: "other".to_owned(),
        stage: "took_over".to_owned(),
        result: None,
        error: None,
        duration_ms: None,
        details: runwal::record::JsonText::empty(),
    });
    other.engine.append(stream, Conditions::none().term(5), &[note.into()]).unwrap();
    // This process has no turn at the journal until the tick is over, so it can't know.
    let (release, released) = mpsc::channel::<()>();
    let (hold, held) = mpsc::channel();
    let engine = process.engine.clone();
    let holder = std::thread::spawn(move || {
        engine.between_commits(|| {
            hold.send(()).unwrap();
            let _ = released.recv();
        });
    });
    held.recv().unwrap();
    jobs.tick(Trigger::Manual).await;
    drop(release);
    holder.join().unwrap();
    jobs.stop().await.unwrap();
    let refused = "Some(Term { given: 4, seen: 5 })";
    assert_eq!(
        *told.lock().unwrap(),
        [format!("runner_started {refused}"), format!("runner_completed {refused}")]
    );
    let records = machine.records();
    assert_eq!(stages(&records)[4..], ["took_over -", "tick_started running", "tick_completed scheduled"]);
    // Once it has been seen that the term is over, the work is not done at all.
    machine.pass(Duration::from_secs(2)).await;
    let tick = jobs.tick(Trigger::Manual).await;
    assert_eq!(tick.decision, timed_jobs::Decision::SkippedNotLeader);
    jobs.flush().await;
    let records = machine.records();
    assert_eq!(
        stages(&records)[7..],
        ["tick_started running", "runner_skipped skipped_not_leader", "tick_completed skipped_not_leader"]
    );
}
