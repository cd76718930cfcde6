//! `runwal show`: one run as a page.

mod paper;

use crate::args::{Global, ShowArgs};
use crate::checkpoints::{Taken, taken};
use crate::{Done, show};
use paper::{Paint, Paper};
use runwal::clock::Clock;
use runwal::position::{Seq, Time};
use runwal::projection::{LogFile, LogTail, RunFold, meta_value};
use runwal::record::{
    Body, Channel, JsonText, Level, Lifecycle, Record, RunName, RunPrepared, Status, escape_line, event,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// How much of a long list the page shows from its beginning and from its end.
const SHOWN: (usize, usize) = (12, 20);
/// How many last lines of output are shown of a run that did not do what was asked.
const LAST_LINES: usize = 10;
/// How much of a command or of an environment variable is shown.
const MAX_WORDS: usize = 2_000;

/// Beginning and end of a list.
#[derive(Debug)]
struct Ends<T> {
    all: bool,
    first: Vec<T>,
    last: VecDeque<T>,
    left_out: u64,
}

impl<T> Ends<T> {
    fn new(all: bool) -> Self {
        Self { all, first: Vec::new(), last: VecDeque::new(), left_out: 0 }
    }

    fn push(&mut self, item: T) {
        if self.all || self.first.len() < SHOWN.0 {
            return self.first.push(item);
        }
        self.last.push_back(item);
        if self.last.len() > SHOWN.1 {
            self.last.pop_front();
            self.left_out += 1;
        }
    }

    fn len(&self) -> u64 {
        self.first.len() as u64 + self.last.len() as u64 + self.left_out
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.last)
    }
}

#[derive(Debug)]
struct Event {
    seq: Seq,
    time: Time,
    created_at: Time,
    said: Lifecycle,
}

/// A file of the worker's own, as the terminal event lists it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Artifact {
    path: String,
    bytes: Option<u64>,
    digest: Option<String>,
}

/// What the recorder noted when the worker exited.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Exited {
    max_rss_bytes: u64,
    user_ms: u64,
    system_ms: u64,
    left_running: Vec<Left>,
    left_running_count: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Left {
    pid: u32,
    command: String,
}

/// What is known of a run.
struct Page {
    name: RunName,
    fold: RunFold,
    requested_at: Time,
    events: Ends<Event>,
    checkpoints: Ends<Taken>,
    exited: Exited,
    artifacts: Option<Box<RawValue>>,
    tail: LogTail,
    damaged: bool,
    /// It has no end, and nobody is there who could write one.
    abandoned: bool,
}

pub(crate) fn show(global: &Global, args: &ShowArgs) -> Done {
    let (mut log, run) = global.find(&args.run)?;
    let all = global.json() || global.verbose;
    let mut page = Page {
        name: run.name.clone(),
        fold: RunFold::for_state(),
        requested_at: Time::default(),
        events: Ends::new(all),
        checkpoints: Ends::new(all),
        exited: Exited::default(),
        artifacts: None,
        tail: LogTail::new(LAST_LINES, 16 << 10),
        damaged: false,
        abandoned: false,
    };
    let damage = log.stream(run.stream, Seq(1), &mut |record| {
        page.take(record);
        Ok(true)
    })?;
    page.damaged = !damage.is_empty();
    page.abandoned = !page.fold.ended() && log.unfinished()?.contains(&run);
    let dir = std::path::absolute(global.dir()).unwrap_or_else(|_| global.dir());
    let folder = dir.join(run.name.folder());
    let mut out = std::io::stdout().lock();
    if global.json() {
        writeln!(out, "{}", page.json(&folder))?;
    } else {
        out.write_all(page.text(global, &folder).as_bytes())?;
    }
    out.flush()?;
    drop(out);
    for found in &damage {
        show::damage(found, global.json());
    }
    crate::log::finish(&mut log, page.damaged, global)
}

impl Page {
    fn take(&mut self, record: &Record) {
        if let Some(checkpoint) = taken(&mut self.fold, record) {
            self.checkpoints.push(checkpoint);
        }
        match &record.body {
            Body::Run(_) => self.requested_at = record.created_at,
            Body::Lifecycle(said) => {
                if said.event == event::WORKER_EXITED {
                    self.exited = serde_json::from_str(said.data.as_str()).unwrap_or_default();
                }
                if record.ends {
                    let members = said.data.members().unwrap_or_default();
                    self.artifacts = members.into_iter().find(|(key, _)| key == "artifacts").map(|(_, v)| v);
                }
                self.events.push(Event {
                    seq: record.seq,
                    time: record.time,
                    created_at: record.created_at,
                    said: said.clone(),
                });
            }
            Body::Chunk(Channel::Stdout, bytes) => self.tail.push(LogFile::Stdout, bytes),
            Body::Chunk(Channel::Stderr, bytes) => self.tail.push(LogFile::Stderr, bytes),
            _ => {}
        }
    }

    fn duration_ms(&self) -> Option<u64> {
        let state = self.fold.state();
        Some(state.finished_at?.millis_since(state.started_at?))
    }

    fn json(&self, folder: &Path) -> String {
        let counts = self.fold.counts();
        let channel = |i: usize| Lines { lines: counts.channel_lines[i], bytes: counts.channel_bytes[i] };
        let request = self
            .fold
            .request()
            .and_then(|request| JsonText::of(&meta_value(request, self.fold.term(), self.requested_at)).ok());
        let [debug, info, warn, error] = counts.events;
        let json = PageJson {
            records: counts.records,
            bytes: counts.bytes,
            duration_ms: self.duration_ms(),
            ended: self.fold.ended(),
            abandoned: self.abandoned,
            folder: folder.display().to_string(),
            request: request.map(|text| text.raw()),
            counts: CountsJson {
                records: counts.records,
                bytes: counts.bytes,
                stdout: channel(0),
                stderr: channel(1),
                events: Levels { debug, info, warn, error },
            },
            checkpoints: self.checkpoints.iter().collect(),
            artifacts: self
                .artifacts
                .clone()
                .unwrap_or_else(|| RawValue::from_string("[]".to_owned()).unwrap_or_default()),
            events: self.events.iter().map(Event::json).collect(),
        };
        let state = self.fold.state().to_compact(self.fold.request());
        let rest = serde_json::to_string(&json).unwrap_or_default();
        format!("{},{}", state.strip_suffix('}').unwrap_or(&state), rest.strip_prefix('{').unwrap_or(&rest))
    }

    fn text(&self, global: &Global, folder: &Path) -> String {
        let mut paper = Paper::new(global.colored());
        self.head(&mut paper);
        if let Some(request) = self.fold.request() {
            self.asked(&mut paper, request);
        }
        self.went(&mut paper);
        self.events(&mut paper, global);
        self.left(&mut paper);
        self.last_lines(&mut paper);
        paper.heading("Files");
        paper.plain(&escape_line(&folder.display().to_string()));
        self.next(&mut paper, global);
        paper.finish()
    }

    fn head(&self, paper: &mut Paper) {
        let state = self.fold.state();
        let word = state.status.map_or("of unknown status", Status::word);
        let word = if self.abandoned { format!("{word}, and abandoned") } else { word.to_owned() };
        let paint = match state.status {
            _ if self.abandoned => Paint::Bad,
            Some(Status::Completed) => Paint::Good,
            Some(Status::Failed | Status::Interrupted) | None => Paint::Bad,
            Some(Status::Blocked | Status::NeedsHuman | Status::Cancelled) => Paint::Odd,
            Some(Status::Prepared | Status::Running) => Paint::Strong,
        };
        paper.title(&self.name.to_string(), &word, paint);
        if let Some(summary) = &state.summary {
            paper.paragraph(&escape_line(summary));
        }
        if self.damaged {
            let word = "Records of this run cannot be read: what stands here is not all. `runwal verify` tells what is damaged.";
            paper.painted(word, Paint::Bad);
        }
        if self.abandoned {
            paper.paragraph("Whoever recorded it is gone without ending it. The next command that writes, or `runwal recover`, ends it as interrupted.");
        }
    }

    fn asked(&self, paper: &mut Paper, request: &RunPrepared) {
        paper.heading("Asked for");
        let words: Vec<String> = request.command.iter().map(|word| show::shell_word(word)).collect();
        let len: usize = words.iter().map(String::len).sum();
        if len > MAX_WORDS {
            paper.field("command", &show::shortened(&words.join(" "), MAX_WORDS));
        } else {
            paper.command("command", &words);
        }
        if let Some(tree) = &request.working_tree {
            paper.field("directory", &show::shell_word(tree));
        }
        let kind =
            request.step_kind.as_ref().map_or(String::new(), |kind| format!(" ({})", escape_line(kind)));
        paper.field("step", &format!("{}{kind}, attempt {}", request.step, request.attempt));
        paper.field_if("worker", request.worker_kind.as_deref().map(escape_line));
        for (key, value) in &request.labels {
            paper.field("label", &escape_line(&format!("{key}={value}")));
        }
        for (name, value) in &request.environment {
            let name = escape_line(&String::from_utf8_lossy(name));
            let value = show::shell_word(value);
            paper.field("environment", &show::shortened(&format!("{name}={value}"), MAX_WORDS));
        }
        paper.field_if(
            "timeout",
            request.timeout_ms.map(|ms| {
                format!("{}, then SIGTERM, and SIGKILL {} later", span(ms), span(request.grace_ms))
            }),
        );
        paper.field_if(
            "parent",
            request.parent.as_ref().map(|parent| {
                let at = parent.checkpoint.map_or(String::new(), |number| format!(", checkpoint {number}"));
                format!("{}{at}", parent.name)
            }),
        );
        let by = request.controller.as_ref().map_or(String::new(), |by| format!(", by {}", escape_line(by)));
        let term = self.fold.term().map_or(String::new(), |term| format!(" in term {term}"));
        paper.field("host", &format!("{}{by}{term}", escape_line(&request.host)));
        if !request.checkpoints {
            paper.field("checkpoints", "were not asked for");
        }
    }

    fn went(&self, paper: &mut Paper) {
        let (state, counts) = (self.fold.state(), self.fold.counts());
        paper.heading("How it went");
        paper.field_if("started", state.started_at.map(Time::to_millis_string));
        paper.field_if("finished", state.finished_at.map(Time::to_millis_string));
        let running = state.started_at.filter(|_| !self.fold.ended());
        match (self.duration_ms(), running) {
            (Some(ms), _) => paper.field("duration", &show::duration(ms)),
            (None, Some(from)) if !self.abandoned => {
                let ms = runwal::clock::System.now().millis_since(from);
                paper.field("duration", &format!("{} so far", show::duration(ms)));
            }
            _ => paper.field_if("last record", state.updated_at.map(Time::to_millis_string)),
        }
        paper.field_if("exit code", state.exit_code.map(|code| code.to_string()));
        paper.field_if("signal", state.signal.as_deref().map(escape_line));
        if !self.fold.ended() {
            paper.field_if("process", state.pid.map(|pid| pid.to_string()));
        }
        self.used(paper);
        for (i, name) in ["stdout", "stderr"].into_iter().enumerate() {
            let (lines, bytes) = (counts.channel_lines[i], counts.channel_bytes[i]);
            let word = format!("{}, {}", show::count(lines, "line"), show::count(bytes, "byte"));
            paper.field(name, if bytes == 0 { "nothing" } else { &word });
        }
        let levels = Level::ALL.iter().zip(counts.events).rev().filter(|(_, number)| *number > 0);
        let levels: Vec<String> =
            levels.map(|(level, number)| format!("{number} {}", level.word())).collect();
        if !levels.is_empty() {
            paper.field("events", &levels.join(", "));
        }
        let (records, bytes) = (show::count(counts.records, "record"), show::count(counts.bytes, "byte"));
        paper.field("journal", &format!("{records}, {bytes}"));
    }

    /// What the worker took, and what it left running.
    fn used(&self, paper: &mut Paper) {
        let Exited { max_rss_bytes, user_ms, system_ms, left_running, left_running_count } = &self.exited;
        if *max_rss_bytes > 0 {
            let processor = show::duration(user_ms.saturating_add(*system_ms));
            let memory = show::count(max_rss_bytes.div_ceil(1 << 10), "KiB");
            let memory = memory.trim_end_matches('s');
            paper.field("used", &format!("{processor} of processor time, at most {memory} of memory"));
        }
        for left in left_running {
            paper.field("left running", &format!("{}: {}", left.pid, escape_line(&left.command)));
        }
        let more = left_running_count.saturating_sub(left_running.len() as u64);
        if more > 0 {
            paper.field("left running", &format!("{more} more"));
        }
    }

    fn events(&self, paper: &mut Paper, global: &Global) {
        let mut day = String::new();
        for (i, found) in self.events.iter().enumerate() {
            let today = found.created_at.day();
            if today != day {
                paper.heading(&format!("Events of {today}, UTC"));
                day = today;
            }
            if i == self.events.first.len() && self.events.left_out > 0 {
                let all = format!("`{} log {} --kind lifecycle`", global.invocation(), self.name);
                paper.note(&format!("… {} more: {all}", self.events.left_out));
            }
            let (level, event) = (found.said.level, &found.said);
            let paint = match level {
                Level::Error => Paint::Bad,
                Level::Warn => Paint::Odd,
                Level::Info => Paint::Plain,
                Level::Debug => Paint::Faint,
            };
            let time = &found.created_at.to_millis_string()[11..23];
            let head = format!("{time} {:<5} {} ", level.word(), event.event);
            paper.item(&head, &escape_line(&event.message), paint);
            if global.verbose {
                paper.note(&escape_line(event.data.as_str()));
            }
        }
    }

    /// What it left behind: checkpoints and artifacts.
    fn left(&self, paper: &mut Paper) {
        if self.checkpoints.len() > 0 {
            paper.heading("Checkpoints");
        }
        for (i, found) in self.checkpoints.iter().enumerate() {
            if i == self.checkpoints.first.len() && self.checkpoints.left_out > 0 {
                let more = self.checkpoints.left_out;
                paper.note(&format!("… {more} more: `runwal checkpoints {}`", self.name));
            }
            let (kind, bytes) = (&found.r#type, show::count(found.bytes, "byte"));
            let head = format!("{:>2} {kind}, {bytes}: ", found.number);
            paper.item(&head, &escape_line(&found.summary), Paint::Plain);
            paper.note(&found.file);
        }
        let Some(raw) = &self.artifacts else { return };
        let Ok(all) = serde_json::from_str::<Vec<Artifact>>(raw.get()) else {
            paper.heading("Artifacts, in a form that is not known");
            return paper.note(&show::shortened(&escape_line(raw.get()), MAX_WORDS));
        };
        if all.is_empty() {
            return;
        }
        let mut some = Ends::new(self.events.all);
        all.into_iter().for_each(|artifact| some.push(artifact));
        paper.heading("Artifacts");
        for (i, found) in some.iter().enumerate() {
            if i == some.first.len() && some.left_out > 0 {
                paper.note(&format!("… {} more: with -v", some.left_out));
            }
            paper.plain(&escape_line(&found.path));
            let bytes = found.bytes.map(|bytes| show::count(bytes, "byte"));
            let digest = found.digest.as_deref().map(escape_line);
            paper.note(&bytes.into_iter().chain(digest).collect::<Vec<_>>().join(", "));
        }
    }

    fn last_lines(&self, paper: &mut Paper) {
        let lines = self.tail.render();
        if self.fold.state().status == Some(Status::Completed) || lines.is_empty() {
            return;
        }
        paper.heading("Last lines of its output");
        for line in lines.strip_suffix(b"\n").unwrap_or(&lines).split(|b| *b == b'\n') {
            paper.quote(&escape_line(&without_colour(&String::from_utf8_lossy(line))));
        }
    }

    fn next(&self, paper: &mut Paper, global: &Global) {
        let (tool, name, state) = (global.invocation(), &self.name, self.fold.state());
        let mut hints = Vec::new();
        let printed = self.fold.counts().channel_bytes != [0, 0];
        if !self.fold.ended() && !self.abandoned {
            hints.push((format!("{tool} output -f {name}"), "watch it"));
        } else if printed {
            hints.push((format!("{tool} output {name}"), "all it wrote, byte for byte"));
            hints.push((format!("{tool} replay {name}"), "the same in its own time"));
        }
        if self.damaged {
            hints.push((format!("{tool} verify"), "what is damaged, and where"));
        }
        if self.abandoned {
            hints.push((format!("{tool} recover"), "end it as interrupted"));
        }
        let diff = self.checkpoints.iter().filter(|found| found.replay != "none").last();
        if let Some(diff) = diff {
            let number = diff.number;
            hints.push((
                format!("{tool} restore {name} --checkpoint {number} --into DIR"),
                "its working tree",
            ));
        }
        let again =
            !matches!(state.status, None | Some(Status::Completed | Status::Prepared | Status::Running));
        let request = self.fold.request().filter(|request| again && !request.command.is_empty());
        if !hints.is_empty() || request.is_some() {
            paper.heading("Next");
            paper.hints(&hints);
        }
        if let Some(request) = request {
            let from = if diff.is_some() { " from what was restored" } else { "" };
            paper.lead(&format!("The next attempt{from}:"));
            paper.plain(&show::shortened(&next_attempt(&tool, request, diff.is_some()), MAX_WORDS));
        }
    }
}

/// A time as an option takes it.
fn span(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

/// What is left of a line on a terminal after it was written over, without its colours.
fn without_colour(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    let line = line.rsplit('\r').next().unwrap_or(line);
    let mut parts = line.split("\x1b[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part
            .trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, ';' | ':'))
            .strip_prefix('m')
        {
            Some(rest) => out.push_str(rest),
            None => out.extend(["\x1b[", part]),
        }
    }
    out
}

/// The command line of the next attempt at the same step.
fn next_attempt(tool: &str, request: &RunPrepared, restored: bool) -> String {
    let mut line = format!(
        "{tool} run --task {} --step {} --attempt {}",
        request.name.task,
        request.step,
        request.attempt.saturating_add(1)
    );
    let mut option = |name: &str, value: &[u8]| {
        let _ = write!(line, " {name} {}", show::shell_word(value));
    };
    match &request.working_tree {
        _ if restored => option("-C", b"DIR"),
        Some(tree) => option("-C", tree),
        None => {}
    }
    if let Some(worker) = &request.worker_kind {
        option("--worker", worker.as_bytes());
    }
    if let Some(ms) = request.timeout_ms {
        option("--timeout", span(ms).replace(' ', "").as_bytes());
        option("--grace", span(request.grace_ms).replace(' ', "").as_bytes());
    }
    for (name, _) in &request.environment {
        option("--record-env", name);
    }
    for (key, value) in &request.labels {
        option("--label", format!("{key}={value}").as_bytes());
    }
    if !request.checkpoints {
        line.push_str(" --no-checkpoints");
    }
    line.push_str(" --");
    for word in &request.command {
        line.push(' ');
        line.push_str(&show::shell_word(word));
    }
    line
}

#[derive(Serialize)]
struct Lines {
    lines: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Levels {
    debug: u64,
    info: u64,
    warn: u64,
    error: u64,
}

#[derive(Serialize)]
struct CountsJson {
    records: u64,
    bytes: u64,
    stdout: Lines,
    stderr: Lines,
    events: Levels,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventJson<'a> {
    seq: u64,
    time: String,
    created_at: String,
    r#type: &'a str,
    level: &'static str,
    message: &'a str,
    data: Box<RawValue>,
}

impl Event {
    fn json(&self) -> EventJson<'_> {
        EventJson {
            seq: self.seq.0,
            time: self.time.to_nanos_string(),
            created_at: self.created_at.to_nanos_string(),
            r#type: &self.said.event,
            level: self.said.level.word(),
            message: &self.said.message,
            data: self.said.data.raw(),
        }
    }
}

/// What follows the keys of `state.json`, in the order of the keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PageJson<'a> {
    records: u64,
    bytes: u64,
    duration_ms: Option<u64>,
    ended: bool,
    abandoned: bool,
    folder: String,
    request: Option<Box<RawValue>>,
    counts: CountsJson,
    checkpoints: Vec<&'a Taken>,
    artifacts: Box<RawValue>,
    events: Vec<EventJson<'a>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_what_a_terminal_would_have_shown_last() {
        assert_eq!(without_colour("\x1b[1;31merror\x1b[0m: no \x1b[2J"), "error: no \x1b[2J");
        assert_eq!(without_colour("10%\r55%\r100%\r"), "100%");
        assert_eq!(without_colour("\x1b[\x1b[38:5:1mx\x1b["), "\x1b[x\x1b[");
    }

    #[test]
    fn long_lists_keep_beginning_and_end() {
        let mut some = Ends::new(false);
        (0..100).for_each(|n| some.push(n));
        assert_eq!((some.first.len(), some.last.len(), some.left_out, some.len()), (12, 20, 68, 100));
        assert_eq!((some.first[11], some.last[0], some.last[19]), (11, 80, 99));
    }
}
