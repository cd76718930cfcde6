//! What is traced within a run, written into that run's stream: a layer for `tracing`'s
//! subscribers.
//!
//! A span with the field `runwal.run = "task/run"` stands for a run; whatever happens in it, in
//! child spans and in whatever thread, belongs to that run as long as its recorder is there.
//! [`span_of`] makes such a span that says nothing else; with fields of your own it is
//! `info_span!("tests", runwal.run = %name)`, and for a future `.instrument(span)`. An executor finds the
//! name in the request of its step.
//!
//! ```
//! use runwal::record::{Body, Id};
//! use runwal::run::{End, Outcome, Recorder, RunRequest};
//! use runwal::trace_layer::{RunLayer, span_of};
//! use runwal::{Engine, Log, Options};
//! use tracing_subscriber::layer::SubscriberExt;
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path().join("data");
//! let (engine, _) = Engine::open(&dir, Options::default())?;
//! let (layer, traces) = RunLayer::new(&engine)?;
//! // In a program: `tracing_subscriber::registry().with(layer).init()`.
//! let _here = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
//!
//! let mut run = Recorder::prepare(&engine, RunRequest::new(Id::new("T-016")?, Id::new("r-1")?, Id::new("build")?))?;
//! span_of(run.name()).in_scope(|| tracing::warn!(crates = 3, "old dependencies"));
//! run.finish(End::new(Outcome::Completed, "Done."))?; // the warning stands before it
//! drop(run);
//! traces.flush(); // what other runs said, too
//! assert_eq!(traces.lost(), 0);
//!
//! let mut log = Log::open(&dir)?;
//! let run = log.resolve("T-016/r-1")?;
//! let mut seen = Vec::new();
//! log.stream(run.stream, runwal::position::Seq(1), &mut |record| {
//!     if let Body::Lifecycle(event) = &record.body {
//!         seen.push((event.event.clone(), event.message.clone()));
//!     }
//!     Ok(true)
//! })?;
//! assert!(seen.contains(&("trace_event".to_owned(), "old dependencies".to_owned())));
//! # engine.close()?;
//! # Ok::<(), runwal::Error>(())
//! ```
//!
//! # What is written
//!
//! | event | level | message | data |
//! |---|---|---|---|
//! | `trace_event` | the event's; `trace` is `debug` | its message, else its name | `target`, `span`: the names of the spans it is in, from the run's inwards, `fields` |
//! | `trace_span`, when a span is closed | the span's | its name and how long it was open | `name`, `target`, `durationMs`, `fields` |
//! | `trace_lost` | `warn` | how many are missing here | `lost` |
//!
//! Fields are JSON by their type; what only has a `Debug` or `Display` form, and a number JSON has
//! none for, is a string. Of one event or span, 64 KiB of text are kept.
//!
//! # What it costs
//!
//! Whoever traces never waits for the disk: what is traced waits for a thread, or for the run's
//! recorder, which writes it in front of its own next records. At most 4,096 events, and 4 MiB,
//! wait for each run; what has no place is counted, and the run says at that place how much is
//! missing. What is traced in the name of a run that this engine has no recorder of, before it was
//! prepared or after its recorder was dropped, has no stream to go to: [`Traces::lost`] counts it
//! too. Dropping a recorder writes what waits.
//!
//! # What it leaves out
//!
//! Whatever the engine tells about itself (see [`observe`](crate::observe)): every event written
//! would bring forth another one. And whatever a filter before it leaves out: [`span_of`] makes a
//! span of target `runwal` and the highest level, which a filter has to let pass.

use crate::clock::Clock;
use crate::engine::{Beside, Engine, Left, Recorded};
use crate::error::{Error, Result};
use crate::observe::TARGET;
use crate::record::{JsonText, Level, Lifecycle, RunName, event};
use serde::{Serialize, Serializer};
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

/// The field that says which run a span stands for.
const RUN_FIELD: &str = "runwal.run";
/// How many events wait for one run.
const MAX_WAITING: usize = 4096;
/// How much text of one event or span is kept.
const MAX_TEXT_LEN: usize = 64 << 10;
/// How long events are gathered to share a sync.
const GATHER: Duration = Duration::from_millis(20);

/// A span that stands for a run, prepared already or not: what happens in it is written into that
/// run's stream.
pub fn span_of(run: &RunName) -> Span {
    // Filters by level shall not take it away: it is no message.
    tracing::error_span!(target: TARGET, "run", runwal.run = %run)
}

/// Writes what is traced within the runs of one engine into their streams.
#[derive(Debug)]
pub struct RunLayer {
    recorded: Arc<Recorded>,
    clock: Arc<dyn Clock>,
    writer: Arc<Writer>,
    most: usize,
}

/// Has what is traced written. Dropped, everything that waits is written out first, and nothing
/// from then on: keep it until the runs have ended, and not longer than the engine is open.
#[derive(Debug)]
pub struct Traces {
    recorded: Arc<Recorded>,
    writer: Arc<Writer>,
    thread: Option<JoinHandle<()>>,
}

impl RunLayer {
    /// The layer, and what has it written.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) where no thread can be started.
    pub fn new(engine: &Engine) -> Result<(Self, Traces)> {
        let writer = Arc::new(Writer::default());
        let for_thread = Arc::clone(&writer);
        let thread = std::thread::Builder::new()
            .name("runwal-trace".to_owned())
            .spawn(move || for_thread.work())
            .map_err(|e| Error::io("starting the thread that writes traces", e))?;
        let recorded = Arc::clone(engine.recorded());
        let traces =
            Traces { recorded: Arc::clone(&recorded), writer: Arc::clone(&writer), thread: Some(thread) };
        Ok((Self { recorded, clock: Arc::clone(&engine.world().clock), writer, most: MAX_WAITING }, traces))
    }

    /// The same where at most so many events wait for each run.
    pub fn waiting(self, most: usize) -> Self {
        Self { most, ..self }
    }

    fn leave(&self, run: &str, event: Lifecycle) {
        let Some(run) = self.recorded.find(run).filter(|_| !self.writer.stopped.load(Ordering::Acquire))
        else {
            return self.recorded.lose(1);
        };
        if run.leave(event, self.clock.now(), self.most) == Left::Call {
            self.writer.call(run);
        }
    }
}

impl Traces {
    /// Waits until everything that was traced is durable, or lost.
    pub fn flush(&self) {
        let mut calls = self.writer.hold();
        calls.asked += 1;
        let mine = calls.asked;
        self.writer.changed.notify_all();
        while calls.done < mine {
            calls = self.writer.wait(calls);
        }
    }

    /// How many events and spans are in no journal: those that a `trace_lost` counts, and those
    /// that came when their run had no recorder.
    pub fn lost(&self) -> u64 {
        self.recorded.lost()
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        self.writer.stopped.store(true, Ordering::Release);
        self.writer.hold().stop = true;
        self.writer.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // If it panicked, nobody is left to hear of it.
            let _ = thread.join();
        }
    }
}

/// The thread's side, and who calls it.
#[derive(Debug, Default)]
struct Writer {
    calls: Mutex<Calls>,
    changed: Condvar,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Calls {
    /// Runs for which something waits.
    runs: Vec<Arc<Beside>>,
    /// How often it was asked to write everything, and which of these it has done.
    asked: u64,
    done: u64,
    stop: bool,
}

impl Writer {
    fn hold(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'c>(&self, calls: MutexGuard<'c, Calls>) -> MutexGuard<'c, Calls> {
        self.changed.wait(calls).unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, run: Arc<Beside>) {
        self.hold().runs.push(run);
        self.changed.notify_all();
    }

    fn work(&self) {
        loop {
            let mut calls = self.hold();
            while calls.runs.is_empty() && calls.asked == calls.done && !calls.stop {
                calls = self.wait(calls);
            }
            let gathers = |calls: &mut Calls| calls.asked == calls.done && !calls.stop;
            let gathered = self.changed.wait_timeout_while(calls, GATHER, gathers);
            let mut calls = gathered.unwrap_or_else(PoisonError::into_inner).0;
            let (runs, asked, stop) = (std::mem::take(&mut calls.runs), calls.asked, calls.stop);
            drop(calls);
            Beside::write_all(&runs);
            let mut calls = self.hold();
            calls.done = asked;
            self.changed.notify_all();
            if stop && calls.runs.is_empty() {
                calls.done = u64::MAX;
                return;
            }
        }
    }
}

/// What is known of a span within a run, or of one that may be told later which run it stands for.
struct Traced {
    run: Option<Arc<str>>,
    fields: Fields,
    since_ns: u64,
}

fn is_engines(target: &str) -> bool {
    target.strip_prefix(TARGET).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The run that a span stands for, or stands within.
fn run_of<'a, S: LookupSpan<'a>>(span: &SpanRef<'a, S>) -> Option<Arc<str>> {
    let of = |span: SpanRef<'a, S>| span.extensions().get::<Traced>().and_then(|traced| traced.run.clone());
    span.scope().find_map(of)
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for RunLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let stands_for_one = attributes.metadata().fields().field(RUN_FIELD).is_some();
        let outer = span.parent().and_then(|parent| run_of(&parent));
        if outer.is_none() && !stands_for_one {
            return;
        }
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let run = fields.run.take().or(outer);
        let since_ns = self.clock.monotonic_ns();
        span.extensions_mut().replace(Traced { run, fields, since_ns });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        // Showing a value may trace something itself: no lock is held meanwhile.
        let kept = span.extensions().get::<Traced>().map(|traced| traced.fields.kept);
        let Some(kept) = kept else { return };
        let mut fields = Fields { kept, ..Fields::default() };
        values.record(&mut fields);
        if let Some(traced) = span.extensions_mut().get_mut::<Traced>() {
            traced.run = fields.run.take().or(traced.run.take());
            traced.fields.extend(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let (of, Some(span)) = (event.metadata(), context.event_span(event)) else { return };
        let Some(run) = run_of(&span).filter(|_| !is_engines(of.target())) else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let inside = |span: &SpanRef<'_, S>| {
            let of = |traced: &Traced| traced.run.as_ref() == Some(&run);
            let is_in = span.extensions().get::<Traced>().is_some_and(of);
            is_in && !is_engines(span.metadata().target())
        };
        let names = span.scope().from_root().filter(inside).map(|span| span.name()).collect();
        let message = fields.message.take().unwrap_or_else(|| of.name().to_owned());
        let data = EventData { target: of.target(), span: names, fields: &fields };
        self.leave(&run, lifecycle(event::TRACE_EVENT, *of.level(), message, &data));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let of = span.metadata();
        // Another engine's layer may want to see it too, so it stays where it is.
        let extensions = span.extensions();
        let Some(Traced { run: Some(run), fields, since_ns }) = extensions.get() else { return };
        if is_engines(of.target()) {
            return;
        }
        let duration_ms = self.clock.monotonic_ns().saturating_sub(*since_ns) / 1_000_000;
        let message = format!("{}, {duration_ms} ms", of.name());
        let data = SpanData { name: of.name(), target: of.target(), duration_ms, fields };
        self.leave(run, lifecycle(event::TRACE_SPAN, *of.level(), message, &data));
    }
}

#[derive(Serialize)]
struct EventData<'a> {
    target: &'a str,
    span: Vec<&'a str>,
    fields: &'a Fields,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpanData<'a> {
    name: &'a str,
    target: &'a str,
    duration_ms: u64,
    fields: &'a Fields,
}

fn lifecycle(kind: &str, level: tracing::Level, message: String, data: &impl Serialize) -> Lifecycle {
    let level = match level {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warn,
        tracing::Level::INFO => Level::Info,
        _ => Level::Debug,
    };
    // Everything in it has a form in JSON, so the other arm is never taken.
    let data = JsonText::of(data).unwrap_or_else(|_| JsonText::empty());
    Lifecycle { data, ..Lifecycle::new(kind, level, message) }
}

/// The fields of an event or a span, as much as is kept of them.
#[derive(Default)]
struct Fields {
    run: Option<Arc<str>>,
    message: Option<String>,
    values: Vec<(&'static str, Value)>,
    kept: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Value {
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
}

impl Fields {
    fn set(&mut self, name: &'static str, value: Value) {
        match self.values.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.values.push((name, value)),
        }
    }

    fn text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let mut cut = Cut { text: String::new(), left: MAX_TEXT_LEN.saturating_sub(self.kept) };
        // It fails where the text is cut, so that nobody goes on forming what is not kept.
        let _ = cut.write_fmt(value);
        self.kept += cut.text.len();
        match field.name() {
            RUN_FIELD => self.run = Some(cut.text.into()),
            "message" => self.message = Some(cut.text),
            _ => self.set(field.name(), Value::Text(cut.text)),
        }
    }

    fn extend(&mut self, newer: Self) {
        self.kept = newer.kept;
        self.message = newer.message.or(self.message.take());
        for (name, value) in newer.values {
            self.set(name, value);
        }
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.values.iter().map(|(name, value)| (name, value)))
    }
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), Value::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), Value::Unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.set(field.name(), Value::Float(value));
        } else {
            self.text(field, format_args!("{value}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format_args!("{value:?}"));
    }
}

/// Text that has an end.
struct Cut {
    text: String,
    left: usize,
}

impl fmt::Write for Cut {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let end = part.floor_char_boundary(self.left);
        self.text.push_str(&part[..end]);
        self.left -= end;
        if end == part.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
