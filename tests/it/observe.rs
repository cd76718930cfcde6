//! What can be seen of the engine from outside, and what a run's traces become.

#![expect(clippy::float_cmp, reason = "counts, and one time that was set")]

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit,
};
use runwal::clock::{ManualClock, SeededEntropy};
use runwal::disk::sim::{Fate, Fault, SimWorld};
use runwal::disk::{Disk, File, Kind, Open, Session, Stat};
use runwal::engine::{Engine, Log, NewRecord, Options, World};
use runwal::error::{Conflict, Error, Result};
use runwal::position::{Seq, Time};
use runwal::record::{Body, Channel, Id, JsonText, Level, Lifecycle, Tick};
use runwal::run::{
    Answer, Cancel, Checkpoints, End, Executor, ExecutorError, Outcome, Recorder, RunRequest, Step, run_step,
};
use runwal::trace_layer::{RunLayer, Traces, span_of};
use runwal::{ErrorKind, JournalOptions, Spares, Verdict};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Long enough for anything that does not wait for what never comes.
const PATIENCE: Duration = Duration::from_mins(1);

fn request(run: &str) -> RunRequest {
    RunRequest::new(Id::new("t").unwrap(), Id::new(run).unwrap(), Id::new("s").unwrap())
}

fn chunk(len: usize) -> NewRecord {
    Body::Chunk(Channel::Stdout, vec![b'x'; len]).into()
}

/// A simulated process.
fn simulated(world: &SimWorld, seed: u64) -> World {
    World {
        disk: Arc::new(world.process(0)),
        clock: Arc::new(ManualClock::new(Time(1_774_138_420_000_000_000))),
        entropy: Arc::new(SeededEntropy::new(seed)),
    }
}

fn no_files() -> Options {
    let journal = JournalOptions { spares: Spares::Never, ..JournalOptions::default() };
    Options { journal, publish: false, end_orphans: false, ..Options::default() }
}

// Numbers.

/// Every number by its name.
#[derive(Default, Clone)]
struct Numbers(Arc<Mutex<BTreeMap<String, Vec<f64>>>>, Arc<Mutex<Vec<(String, Option<Unit>)>>>);

struct Number(Numbers, String);

impl Numbers {
    fn all(&self, name: &str) -> Vec<f64> {
        self.0.lock().unwrap().get(name).cloned().unwrap_or_default()
    }

    /// Of a counter or gauge.
    fn now(&self, name: &str) -> f64 {
        self.all(name).last().copied().unwrap_or(f64::NAN)
    }

    fn change(&self, name: &str, change: impl FnOnce(f64) -> f64) {
        let mut all = self.0.lock().unwrap();
        let seen = all.entry(name.to_owned()).or_default();
        let last = seen.last().copied().unwrap_or(0.0);
        seen.push(change(last));
    }

    fn describe(&self, name: &KeyName, unit: Option<Unit>) {
        self.1.lock().unwrap().push((name.as_str().to_owned(), unit));
    }
}

impl CounterFn for Number {
    fn increment(&self, value: u64) {
        self.0.change(&self.1, |before| before + f64::from(u32::try_from(value).unwrap()));
    }
    fn absolute(&self, _: u64) {
        unreachable!()
    }
}

impl GaugeFn for Number {
    fn increment(&self, value: f64) {
        self.0.change(&self.1, |before| before + value);
    }
    fn decrement(&self, value: f64) {
        self.0.change(&self.1, |before| before - value);
    }
    fn set(&self, value: f64) {
        self.0.change(&self.1, |_| value);
    }
}

impl HistogramFn for Number {
    fn record(&self, value: f64) {
        self.0.change(&self.1, |_| value);
    }
}

impl metrics::Recorder for Numbers {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&name, unit);
    }
    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&name, unit);
    }
    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&name, unit);
    }
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(Number(self.clone(), key.name().to_owned())))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Number(self.clone(), key.name().to_owned())))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Number(self.clone(), key.name().to_owned())))
    }
}

/// A disk on which a sync takes 3 ms, a write a second, and neither runs nor timed jobs have files.
#[derive(Debug)]
struct Slow<T>(T, Arc<ManualClock>);

/// A simulated process on such a disk.
fn slow(sim: &SimWorld) -> World {
    let world = simulated(sim, 1);
    let clock = Arc::new(ManualClock::new(Time(1_774_138_420_000_000_000)));
    World { disk: Arc::new(Slow(world.disk, Arc::clone(&clock))), clock, ..world }
}

impl Disk for Slow<Arc<dyn Disk>> {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn File>> {
        Ok(Arc::new(Slow(self.0.open(name, how)?, Arc::clone(&self.1))))
    }
    fn create_dir(&self, name: &str) -> Result<bool> {
        if name.starts_with("runs") || name.starts_with("timed-jobs") {
            return Err(Error::io(format!("making {name}"), std::io::ErrorKind::QuotaExceeded.into()));
        }
        self.0.create_dir(name)
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> Result<bool> {
        self.0.rename(from, to, replace)
    }
    fn remove(&self, name: &str) -> Result<()> {
        self.0.remove(name)
    }
    fn list(&self, name: &str, visit: &mut dyn FnMut(&str, Kind)) -> Result<()> {
        self.0.list(name, visit)
    }
    fn stat(&self, name: &str) -> Result<Option<Stat>> {
        self.0.stat(name)
    }
    fn sync_dir(&self, name: &str) -> Result<()> {
        self.0.sync_dir(name)
    }
    fn sync_all(&self) -> Result<()> {
        self.0.sync_all()
    }
    fn session(&self) -> Result<Session> {
        self.0.session()
    }
    fn unreliable(&self) -> Result<Option<&'static str>> {
        self.0.unreliable()
    }
}

impl File for Slow<Arc<dyn File>> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.1.advance(Duration::from_secs(1));
        self.0.write_at(bytes, offset)
    }
    fn sync(&self) -> Result<()> {
        self.1.advance(Duration::from_millis(3));
        self.0.sync()
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.0.set_len(len)
    }
    fn stat(&self) -> Result<Stat> {
        self.0.stat()
    }
    fn try_lock(&self) -> Result<bool> {
        self.0.try_lock()
    }
    fn unlock(&self) -> Result<()> {
        self.0.unlock()
    }
    fn drop_cache(&self) -> Result<()> {
        self.0.drop_cache()
    }
}

#[test]
fn numbers_count_what_was_appended() {
    let world = slow(&SimWorld::new());
    let numbers = Numbers::default();
    metrics::with_local_recorder(&numbers, || {
        let (engine, _) = Engine::open_in(world.clone(), no_files()).unwrap();
        assert_eq!(numbers.now("runwal_poisoned"), 0.0);
        let run = Recorder::prepare(&engine, request("r")).unwrap();
        assert_eq!(numbers.all("runwal_group_appends"), [1.0]);
        let tickets: Vec<_> =
            (0..3).map(|n| engine.submit(run.stream(), None, &vec![chunk(10); n + 1]).unwrap()).collect();
        assert_eq!(numbers.now("runwal_queue_depth"), 3.0);
        for ticket in tickets {
            ticket.wait().unwrap();
        }
        assert_eq!(numbers.now("runwal_queue_depth"), 0.0);
        assert_eq!(numbers.all("runwal_group_appends"), [1.0, 3.0], "three appends share a sync");
        let bytes = |len| {
            let before = numbers.now("runwal_bytes_total");
            engine.append(run.stream(), None, &[chunk(len)]).unwrap();
            numbers.now("runwal_bytes_total") - before
        };
        assert_eq!(bytes(1_000) + 3_000.0, bytes(4_000));
        // What is refused is answered, and counts for nothing else.
        let refused = engine.append(run.stream(), Some(Seq(1)), &[chunk(1)]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        assert_eq!(numbers.now("runwal_queue_depth"), 0.0);
        assert_eq!(numbers.all("runwal_sync_seconds"), [0.003; 4], "the sync alone is measured");
        let info = Log::open_in(&world).unwrap().info().unwrap();
        let whole = |count: u64| f64::from(u32::try_from(count).unwrap());
        assert_eq!(numbers.now("runwal_appends_total"), 6.0);
        assert_eq!(info.batches, 4, "three small appends share a batch");
        assert_eq!(numbers.now("runwal_records_total"), whole(info.records));
        assert!(numbers.all("runwal_rolls_total").is_empty());
        while numbers.all("runwal_rolls_total").is_empty() {
            engine.append(run.stream(), None, &[chunk(30_000)]).unwrap();
        }
        assert_eq!(numbers.now("runwal_rolls_total"), 1.0);
        assert_eq!(Log::open_in(&world).unwrap().segments().unwrap().len(), 2);
        drop(run);
        engine.close().unwrap();
    });
    let described = numbers.1.lock().unwrap();
    let mut names: Vec<_> = described.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let seen = numbers.0.lock().unwrap();
    assert_eq!(names, seen.keys().map(String::as_str).collect::<Vec<_>>(), "each is described, once");
    assert!(described.contains(&("runwal_sync_seconds".to_owned(), Some(Unit::Seconds))));
    assert!(described.contains(&("runwal_bytes_total".to_owned(), Some(Unit::Bytes))));
}

#[test]
fn a_failed_sync_shows_until_the_journal_is_opened_anew() {
    let sim = SimWorld::new();
    let (numbers, seen) = (Numbers::default(), Seen::default());
    let _here = tracing::subscriber::set_default(tracing_subscriber::registry().with(seen.clone()));
    metrics::with_local_recorder(&numbers, || {
        let (engine, _) = Engine::open_in(simulated(&sim, 1), no_files()).unwrap();
        let run = Recorder::prepare(&engine, request("r")).unwrap();
        sim.fail_at(sim.operations() + 3, Fault::once(5));
        engine.append(run.stream(), None, &[chunk(1)]).unwrap_err();
        assert!(engine.is_poisoned());
        assert_eq!(numbers.now("runwal_poisoned"), 1.0);
        assert_eq!(numbers.now("runwal_queue_depth"), 0.0, "a refusal is an answer");
        assert_eq!(numbers.now("runwal_appends_total"), 1.0);
        let told = seen.of("a write failed; nothing more is written through this handle");
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].level, tracing::Level::ERROR);
        assert!(told[0].fields["error"].as_str().unwrap().contains("os error 5"), "{told:?}");
        drop((run, engine));
        let (engine, _) = Engine::open_in(simulated(&sim, 2), no_files()).unwrap();
        assert_eq!(numbers.now("runwal_poisoned"), 0.0);
        engine.close().unwrap();
    });
}

/// In the thread that writes for all, in the middle of a commit: those who wait get an answer, the lock is
/// free, and what was written is settled by opening anew.
#[test]
fn a_subscriber_that_panics_holds_up_nobody_else() {
    struct Panics;
    impl<S: Subscriber> Layer<S> for Panics {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            assert!(event.metadata().target() != "runwal", "a subscriber's own mistake");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = Engine::open(dir.path().join("data"), no_files()).unwrap();
    let stream = Recorder::prepare(&engine, request("r")).unwrap().stream();
    // Where there is one subscriber alone, what threads without one say first is switched off for all.
    let _second = Dispatch::new(tracing_subscriber::registry());
    let told = tracing::subscriber::with_default(tracing_subscriber::registry().with(Panics), || {
        engine.append(stream, None, &[chunk(1)]).unwrap_err()
    });
    assert_eq!(told.kind(), ErrorKind::Reopen, "{told}");
    let (answers, answered) = channel();
    let other = engine.clone();
    std::thread::spawn(move || answers.send(other.append(stream, None, &[chunk(2)]).unwrap_err().kind()));
    assert_eq!(answered.recv_timeout(PATIENCE).expect("it waits for ever"), ErrorKind::Reopen);
    // Beside it, as another process would.
    let (beside, _) = Engine::open(dir.path().join("data"), no_files()).unwrap();
    beside.append(stream, None, &[chunk(3)]).unwrap();
    assert_eq!(beside.log().unwrap().verify(&mut |_| {}).unwrap().verdict, Verdict::Clean);
    beside.close().unwrap();
}

// Events.

/// Every event that the engine tells.
#[derive(Default, Clone)]
struct Seen(Arc<Mutex<Vec<Told>>>);

#[derive(Debug, Clone)]
struct Told {
    level: tracing::Level,
    span: Vec<&'static str>,
    message: String,
    fields: serde_json::Map<String, Value>,
}

impl Seen {
    fn of(&self, message: &str) -> Vec<Told> {
        self.0.lock().unwrap().iter().filter(|told| told.message == message).cloned().collect()
    }
}

#[derive(Default)]
struct Values(serde_json::Map<String, Value>);

impl Visit for Values {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Seen {
    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        if event.metadata().target() != "runwal" {
            return;
        }
        let mut values = Values::default();
        event.record(&mut values);
        let scope = context.event_scope(event);
        let span = scope.map(|scope| scope.from_root().map(|span| span.name()).collect());
        let message = values.0.remove("message").unwrap().as_str().unwrap().to_owned();
        self.0.lock().unwrap().push(Told {
            level: *event.metadata().level(),
            span: span.unwrap_or_default(),
            message,
            fields: values.0,
        });
    }
}

#[test]
fn the_engine_tells_what_it_does() {
    let seen = Seen::default();
    let _here = tracing::subscriber::set_default(tracing_subscriber::registry().with(seen.clone()));
    let sim = SimWorld::new();
    let (engine, _) = Engine::open_in(simulated(&sim, 1), no_files()).unwrap();
    let opened = seen.of("opened the journal").remove(0);
    assert_eq!((opened.level, opened.span.as_slice()), (tracing::Level::INFO, &["runwal::open"][..]));
    assert_eq!(
        Value::Object(opened.fields),
        json!({"verdict": "clean", "quarantined_bytes": 0, "kept_records": 0, "interrupted": 0, "position": 0})
    );
    let run = Recorder::prepare(&engine, request("r")).unwrap();
    let tickets = [1, 2].map(|n| engine.submit(run.stream(), None, &vec![chunk(9); n]).unwrap());
    let last = tickets.map(|ticket| ticket.wait().unwrap())[1].last;
    let committed = seen.of("committed").pop().unwrap();
    assert_eq!((committed.level, committed.span.len()), (tracing::Level::DEBUG, 0));
    let field = |name: &str| committed.fields[name].as_u64().unwrap();
    assert_eq!((field("appends"), field("records"), field("position")), (2, 3, last.0));
    assert!(field("bytes") > 27 && committed.fields.contains_key("sync_us"));
    while seen.of("began the next segment").is_empty() {
        engine.append(run.stream(), None, &[chunk(30_000)]).unwrap();
    }
    let rolled = seen.of("began the next segment").remove(0);
    assert_eq!((rolled.level, &rolled.fields["segment"]), (tracing::Level::DEBUG, &json!(2)));
    // A write that is cut short by a power cut, and a recorder that is gone.
    sim.fail_at(sim.operations() + 2, Fault::KillAfterSectors(1));
    engine.append(run.stream(), None, &[chunk(3_000)]).unwrap_err();
    let after = sim.power_cut(&mut |_| Fate::New);
    let (engine, report) = Engine::open_in(simulated(&after, 2), no_files()).unwrap();
    assert_eq!((report.verdict, report.interrupted.len()), (Verdict::Torn, 1));
    let recovered = seen.of("recovered the end of a segment").remove(0);
    assert_eq!((recovered.level, &recovered.fields["segment"]), (tracing::Level::WARN, &json!(2)));
    assert_eq!(recovered.fields["quarantined_bytes"], report.quarantined_bytes);
    assert_eq!(recovered.span, ["runwal::open"]);
    let ended = seen.of("ended a run whose recorder is dead").remove(0);
    assert_eq!((ended.level, &ended.fields["run"]), (tracing::Level::WARN, &json!("t/r")));
    let opened = seen.of("opened the journal").pop().unwrap();
    assert_eq!((&opened.fields["verdict"], &opened.fields["interrupted"]), (&json!("torn"), &json!(1)));
    assert_eq!(opened.fields["position"], report.position.0);
    engine.close().unwrap();
    let broken = Options { log_tail_bytes: usize::MAX, ..no_files() };
    Engine::open_in(simulated(&after, 3), broken).unwrap_err();
    assert_eq!(seen.of("the journal could not be opened").remove(0).level, tracing::Level::WARN);
}

/// The publishing thread is the engine's own: only a subscriber of the whole program hears it.
#[test]
fn a_file_that_cannot_be_published_is_told() {
    static SEEN: OnceLock<Seen> = OnceLock::new();
    let seen = SEEN.get_or_init(Seen::default).clone();
    let only = tracing_subscriber::filter::LevelFilter::WARN;
    tracing::subscriber::set_global_default(
        tracing_subscriber::registry().with(seen.clone().with_filter(only)),
    )
    .unwrap();
    let (engine, _) =
        Engine::open_in(slow(&SimWorld::new()), Options { publish: true, ..no_files() }).unwrap();
    let mut run = Recorder::prepare(&engine, request("r")).unwrap();
    let result = run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
    let why = result.publish_error.unwrap();
    let told = seen.of("a file could not be published; the journal has every record");
    let same = |told: &&Told| why.to_string().contains(told.fields["error"].as_str().unwrap());
    assert_eq!(told.iter().filter(same).count(), 1, "{why}: {told:?}");
    assert!(told.iter().all(|told| told.level == tracing::Level::WARN));
    // Nor can the daily files of the timed jobs.
    let details = JsonText::empty();
    let (result, error) = (None, None);
    let (batch_id, runner, stage) = ("b".to_owned(), "r".to_owned(), "s".to_owned());
    let tick = Tick { batch_id, runner, stage, result, error, duration_ms: None, details };
    engine.append_tick(tick, None).unwrap();
    engine.close().unwrap_err();
    let told = seen.of("a file could not be published; the journal has every record");
    let of_ticks = |told: &&Told| told.fields["error"].as_str().unwrap().contains("timed-jobs");
    assert_eq!(told.iter().filter(of_ticks).count(), 1, "{told:?}");
}

// Traces.

/// A run's lifecycle events.
fn events(log: &mut Log, run: &str) -> Vec<Lifecycle> {
    let info = log.resolve(&format!("t/{run}")).unwrap();
    let mut found = Vec::new();
    let damage = log
        .stream(info.stream, Seq(1), &mut |record| {
            if let Body::Lifecycle(event) = &record.body {
                found.push(event.clone());
            }
            Ok(true)
        })
        .unwrap();
    assert!(damage.is_empty());
    found
}

fn of_type(events: &[Lifecycle], kind: &str) -> Vec<(Level, String, Value)> {
    let of = events.iter().filter(|event| event.event == kind);
    of.map(|e| (e.level, e.message.clone(), serde_json::from_str(e.data.as_str()).unwrap())).collect()
}

fn layered(engine: &Engine, most: usize) -> (Dispatch, Traces) {
    let (layer, traces) = RunLayer::new(engine).unwrap();
    (Dispatch::new(tracing_subscriber::registry().with(layer.waiting(most))), traces)
}

/// Nothing is damaged, and the files are what the records say.
fn is_whole(dir: &Path, runs: &[&str]) {
    let mut log = Log::open(dir).unwrap();
    let verified = log.verify(&mut |_| {}).unwrap();
    assert_eq!((verified.verdict, verified.damage.len()), (Verdict::Clean, 0));
    for run in runs {
        let info = log.resolve(&format!("t/{run}")).unwrap();
        let rebuilt = log.rebuild(info.stream, false).unwrap().unwrap();
        assert_eq!((rebuilt.differences, rebuilt.damaged), (Vec::new(), false), "{run}");
    }
}

#[test]
fn traces_of_two_runs_land_in_their_streams_in_order() {
    const THREADS: u64 = 4;
    const EVENTS: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (engine, _) = Engine::open(&data, Options::default()).unwrap();
    let (dispatch, traces) = layered(&engine, 4096);
    std::thread::scope(|scope| {
        for run in ["a", "b"] {
            let (engine, dispatch) = (&engine, &dispatch);
            scope.spawn(move || {
                tracing::dispatcher::with_default(dispatch, || {
                    let mut recorder = Recorder::prepare(engine, request(run)).unwrap();
                    let span = span_of(recorder.name());
                    std::thread::scope(|scope| {
                        for thread in 0..THREADS {
                            let span = &span;
                            scope.spawn(move || {
                                tracing::dispatcher::with_default(dispatch, || {
                                    let within = tracing::info_span!(parent: span, "part", run, thread);
                                    let _within = within.enter();
                                    for n in 0..EVENTS {
                                        tracing::debug!(thread, n, "event of {run}");
                                    }
                                });
                            });
                        }
                        // The recorder writes meanwhile, and what the engine tells of that is in
                        // the run's span too.
                        let _within = span.enter();
                        for n in 0..20 {
                            recorder.chunk(Channel::Stdout, format!("line {n}\n").as_bytes()).unwrap();
                            let event = Lifecycle::new("note", Level::Info, n.to_string());
                            recorder.event(event).unwrap();
                        }
                    });
                    recorder.finish(End::new(Outcome::Completed, "Done.")).unwrap();
                });
            });
        }
    });
    assert_eq!(traces.lost(), 0);
    drop(traces);
    engine.close().unwrap();
    is_whole(&data, &["a", "b"]);
    let mut log = Log::open(&data).unwrap();
    for run in ["a", "b"] {
        let events = events(&mut log, run);
        let traced = of_type(&events, "trace_event");
        assert_eq!(traced.len() as u64, THREADS * EVENTS, "nothing else is told in {run}");
        for thread in 0..THREADS {
            let mine = traced.iter().filter(|(.., data)| data["fields"]["thread"] == thread);
            let wanted = |n: u64| json!({"target": "it::observe", "span": ["part"], "fields": {"thread": thread, "n": n}});
            for (n, (level, message, data)) in (0..).zip(mine) {
                assert_eq!((*level, message.as_str()), (Level::Debug, format!("event of {run}").as_str()));
                assert_eq!(*data, wanted(n));
            }
        }
        let mut spans = of_type(&events, "trace_span");
        spans.sort_by_key(|(.., data)| data["fields"]["thread"].as_u64());
        assert_eq!(spans.len() as u64, THREADS);
        for (thread, (level, message, data)) in (0_u64..).zip(spans) {
            assert_eq!((level, message), (Level::Info, format!("part, {} ms", data["durationMs"])));
            assert_eq!((&data["name"], &data["target"]), (&json!("part"), &json!("it::observe")));
            assert_eq!(data["fields"], json!({"run": run, "thread": thread}));
        }
        let notes = of_type(&events, "note").into_iter().map(|(_, message, _)| message);
        assert!(notes.eq((0..20).map(|n| n.to_string())));
        assert!(of_type(&events, "trace_lost").is_empty());
        assert_eq!(events.last().unwrap().event, "step_completed", "all of it was traced before the end");
    }
}

#[test]
fn fields_keep_their_types_and_levels_their_meaning() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (engine, _) = Engine::open(&data, Options::default()).unwrap();
    let (dispatch, traces) = layered(&engine, 4096);
    let clock = engine.world().clock.now();
    tracing::dispatcher::with_default(&dispatch, || {
        let run = Recorder::prepare(&engine, request("r")).unwrap();
        // The embedder's own span stands for the run, and is told; a late field is part of it.
        let outer =
            tracing::info_span!("step", runwal.run = "t/r", attempt = 2, exit = tracing::field::Empty);
        let inner = outer.in_scope(|| tracing::trace_span!("inner"));
        let inner = inner.entered();
        let (huge, error) = ("ü".repeat(50_000), std::io::Error::other("broken"));
        tracing::error!(
            signed = -1_i64,
            unsigned = u64::MAX,
            float = 0.5,
            infinite = f64::INFINITY,
            yes = true,
            text = "a\"b\n",
            debug = ?Some(1),
            shown = %7,
            error = &error as &dyn std::error::Error,
        );
        tracing::warn!(huge, more = "none of this", "long");
        tracing::info!(target: "runwal_but_not", "kept");
        tracing::info!(target: "runwal::engine", "the engine's own");
        tracing::trace!("traced");
        // A run within the run, as when one step does another: what is in it is the inner one's.
        let other = Recorder::prepare(&engine, request("other")).unwrap();
        let nested = tracing::info_span!("nested", runwal.run = %other.name()).entered();
        tracing::info!("of the other");
        drop(nested);
        outer.record("exit", 3);
        drop((inner, outer));
        traces.flush();
        let mut log = Log::open(&data).unwrap();
        let events = events(&mut log, "r");
        let found = of_type(&events, "trace_event");
        let levels: Vec<_> = found.iter().map(|(level, ..)| *level).collect();
        assert_eq!(levels, [Level::Error, Level::Warn, Level::Info, Level::Debug]);
        assert!(found[0].1.starts_with("event "), "without a message, its name: {}", found[0].1);
        let typed = json!({
            "signed": -1, "unsigned": u64::MAX, "float": 0.5, "infinite": "inf", "yes": true,
            "text": "a\"b\n", "debug": "Some(1)", "shown": "7", "error": "broken",
        });
        assert_eq!((&found[0].2["fields"], &found[0].2["span"]), (&typed, &json!(["step", "inner"])));
        let kept = found[1].2["fields"]["huge"].as_str().unwrap();
        assert!(kept.chars().all(|c| c == 'ü') && kept.len() <= 64 << 10 && kept.len() > 60 << 10);
        let spans = of_type(&events, "trace_span");
        let names: Vec<_> = spans.iter().map(|(level, _, data)| (*level, &data["name"])).collect();
        assert_eq!(names, [(Level::Debug, &json!("inner")), (Level::Info, &json!("step"))]);
        assert_eq!(spans[1].2["fields"], json!({"attempt": 2, "exit": 3}));
        let nested = of_type(&self::events(&mut log, "other"), "trace_event");
        assert_eq!((nested.len(), &nested[0].2["span"]), (1, &json!(["nested"])));
        drop(other);
        drop(run);
    });
    assert!(engine.world().clock.now() >= clock);
    drop(traces);
    engine.close().unwrap();
}

/// While no commit can go on, as on a disk that hangs: tracing goes on, and what has no place is
/// counted where it is missing.
#[test]
fn who_traces_never_waits_and_what_is_lost_is_counted() {
    const EVENTS: u64 = 200;
    const MOST: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (engine, _) = Engine::open(&data, Options::default()).unwrap();
    let (dispatch, traces) = layered(&engine, MOST);
    let mut run = Recorder::prepare(&engine, request("r")).unwrap();
    let other = Recorder::prepare(&engine, request("other")).unwrap();
    let name = run.name().clone();
    let (done, all) = channel();
    let for_thread = dispatch.clone();
    engine.between_commits(|| {
        let thread = std::thread::spawn(move || {
            tracing::dispatcher::with_default(&for_thread, || {
                let span = span_of(&name);
                span.in_scope(|| (0..EVENTS).for_each(|n| tracing::info!(n)));
            });
            done.send(()).unwrap();
        });
        all.recv_timeout(PATIENCE).expect("tracing waits for the journal");
        thread.join().unwrap();
    });
    tracing::dispatcher::with_default(&dispatch, || {
        // A run has its own place.
        span_of(other.name()).in_scope(|| tracing::info!("heard"));
        traces.flush();
        span_of(run.name()).in_scope(|| tracing::info!("behind it"));
    });
    run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
    let (lost, most) = (traces.lost(), MOST as u64);
    // The thread that writes has taken what was there at most once before it had to wait.
    assert!((EVENTS - 2 * most..=EVENTS - most).contains(&lost), "{lost}");
    drop((run, other));
    drop(traces);
    engine.close().unwrap();
    is_whole(&data, &["r", "other"]);
    let mut log = Log::open(&data).unwrap();
    let events = events(&mut log, "r");
    // What is missing is told exactly where it is.
    let mut next = 0;
    for event in events.iter().filter(|event| event.event.starts_with("trace_")) {
        let data: Value = serde_json::from_str(event.data.as_str()).unwrap();
        match event.event.as_str() {
            "trace_lost" => {
                assert_eq!(event.level, Level::Warn);
                next += data["lost"].as_u64().unwrap();
            }
            "trace_event" if next < EVENTS => {
                assert_eq!(data["fields"]["n"], next);
                next += 1;
            }
            _ => assert_eq!((next, event.message.as_str()), (EVENTS, "behind it")),
        }
    }
    assert_eq!(of_type(&events, "trace_event").len() as u64, EVENTS - lost + 1);
    assert_eq!(of_type(&self::events(&mut log, "other"), "trace_event").len(), 1);
}

#[test]
fn what_comes_when_nobody_records_the_run_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (engine, _) = Engine::open(&data, Options::default()).unwrap();
    let (dispatch, traces) = layered(&engine, 4096);
    tracing::dispatcher::with_default(&dispatch, || {
        tracing::info!("in no run");
        let span = tracing::info_span!("step", runwal.run = "t/r");
        span.in_scope(|| tracing::info!("early"));
        assert_eq!(traces.lost(), 1);
        let mut run = Recorder::prepare(&engine, request("r")).unwrap();
        span.in_scope(|| tracing::info!("in time"));
        run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
        span.in_scope(|| tracing::info!("behind the end"));
        drop(run);
        assert_eq!(traces.lost(), 1, "dropping the recorder writes what waits");
        span.in_scope(|| tracing::info!("late"));
        drop(span);
        assert_eq!(traces.lost(), 3);
        // The recorder drops what it cannot write any more, and says so to nobody but the count.
        let last = Recorder::prepare(&engine, request("last")).unwrap();
        engine.close().unwrap();
        span_of(last.name()).in_scope(|| tracing::info!("closed"));
        drop(last);
        assert_eq!(traces.lost(), 4);
    });
    drop(traces);
    let mut log = Log::open(&data).unwrap();
    let events = events(&mut log, "r");
    let messages: Vec<_> =
        of_type(&events, "trace_event").into_iter().map(|(_, message, _)| message).collect();
    assert_eq!(messages, ["in time", "behind the end"]);
    is_whole(&data, &["r"]);
}

/// A turn of the journal's that failed takes the traces with it; the recorder's own record can be
/// tried again, and the run goes on with both.
#[test]
fn a_turn_that_failed_leaves_the_recorder_as_it_was() {
    let sim = SimWorld::new();
    let world = simulated(&sim, 1);
    let options = Options {
        journal: JournalOptions { patience: Duration::from_millis(5), ..no_files().journal },
        ..no_files()
    };
    let (engine, _) = Engine::open_in(world, options).unwrap();
    let (dispatch, traces) = layered(&engine, 4096);
    let mut run = Recorder::prepare(&engine, request("r")).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        let lock = sim.process(0).open("journal/lock", Open::Write).unwrap();
        assert!(lock.try_lock().unwrap());
        span_of(run.name()).in_scope(|| tracing::info!("taken along"));
        let refused = run.chunk(Channel::Stdout, b"x").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked, "{refused}");
        traces.flush();
        lock.unlock().unwrap();
        assert_eq!(traces.lost(), 1);
        run.chunk(Channel::Stdout, b"x").unwrap();
        span_of(run.name()).in_scope(|| tracing::info!("later"));
        run.finish(End::new(Outcome::Completed, "Done.")).unwrap();
    });
    let mut log = engine.log().unwrap();
    let events = events(&mut log, "r");
    assert_eq!(of_type(&events, "trace_event").len(), 1);
    assert_eq!(of_type(&events, "trace_lost")[0].2, json!({"lost": 1}));
    drop((run, traces));
    engine.close().unwrap();
}

/// What is traced is the run's: whoever took over from its conductor ends it with the rest.
#[test]
fn a_conductor_that_was_taken_over_from_traces_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = Engine::open(dir.path().join("data"), Options::default()).unwrap();
    let (dispatch, traces) = layered(&engine, 4096);
    let of = |run, term| RunRequest { term: Some(term), ..request(run) };
    let mut old = Recorder::prepare(&engine, of("old", 1)).unwrap();
    let new = Recorder::prepare(&engine, of("new", 2)).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        let span = span_of(old.name());
        span.in_scope(|| tracing::info!("by itself"));
        traces.flush();
        assert_eq!(traces.lost(), 1);
        span.in_scope(|| tracing::info!("ahead of another"));
        let refused = old.chunk(Channel::Stdout, b"x").unwrap_err();
        assert_eq!(refused.conflict(), Some(Conflict::Term { given: 1, seen: 2 }));
        span_of(new.name()).in_scope(|| tracing::info!("heard"));
    });
    drop((old, new));
    assert_eq!(traces.lost(), 2);
    drop(traces);
    let mut log = engine.log().unwrap();
    let mut traced = |run| of_type(&events(&mut log, run), "trace_event").len();
    assert_eq!((traced("old"), traced("new")), (0, 1));
    engine.close().unwrap();
}

/// An executor knows its run from the request; the thread that writes needs no other's records.
#[test]
fn an_executor_traces_into_its_own_run() {
    struct Traced(Traces, std::path::PathBuf);
    impl Executor for Traced {
        fn execute(&self, step: &mut Step<'_>) -> std::result::Result<Answer, ExecutorError> {
            let span = tracing::info_span!("tests", runwal.run = %step.request().name);
            span.in_scope(|| tracing::info!(passed = 12, "ran"));
            self.0.flush();
            let mut log = Log::open(&self.1)?;
            assert_eq!(of_type(&events(&mut log, "r"), "trace_event").len(), 1, "durable while it runs");
            step.event(Lifecycle::new("note", Level::Info, "Mine."))?;
            Ok(Answer::new(Outcome::Completed, "Done."))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (engine, _) = Engine::open(&data, Options::default()).unwrap();
    let (dispatch, traces) = layered(&engine, 4096);
    let executor = Traced(traces, data.clone());
    let result = tracing::dispatcher::with_default(&dispatch, || {
        run_step(&engine, request("r"), &executor, &Checkpoints::default(), &Cancel::new().unwrap()).unwrap()
    });
    assert_eq!(result.outcome, Outcome::Completed, "{}", result.summary);
    assert_eq!(executor.0.lost(), 0);
    engine.close().unwrap();
    is_whole(&data, &["r"]);
    let mut log = Log::open(&data).unwrap();
    let types: Vec<_> = events(&mut log, "r").into_iter().map(|event| event.event).collect();
    assert_eq!(
        types[2..],
        ["worker_started", "trace_event", "note", "trace_span", "worker_exited", "step_completed"]
    );
}
