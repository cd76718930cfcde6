//! Records and errors, as people and programs see them.

use crate::complain;
use base64::Engine as _;
use runwal::Damage;
use runwal::engine::Cursor;
use runwal::error::{Error, ErrorKind, Place};
use runwal::projection::{meta_value, tick_line};
use runwal::record::{Body, JsonText, Level, Record, RunName, escape_line};
use serde::Serialize;
use serde_json::value::RawValue;
use std::fmt::Write as _;
use std::io::Write;

/// What is known of an error.
#[derive(Default)]
struct Told<'a> {
    code: &'a str,
    message: String,
    place: Option<Place>,
    hint: Option<&'a str>,
}

impl Told<'_> {
    /// As one object on stderr.
    fn json(self) {
        #[derive(Serialize)]
        struct Inner<'a> {
            code: &'a str,
            message: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            segment: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            offset: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            position: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            hint: Option<&'a str>,
        }
        #[derive(Serialize)]
        struct Outer<'a> {
            error: Inner<'a>,
        }
        let inner = Inner {
            code: self.code,
            message: self.message,
            segment: self.place.map(|p| p.segment),
            offset: self.place.map(|p| p.offset),
            position: self.place.and_then(|p| p.position).map(|p| p.0),
            hint: self.hint,
        };
        complain(&serde_json::to_string(&Outer { error: inner }).unwrap_or_default());
    }
}

/// An error on stderr, in words or as one object.
pub(crate) fn error(error: &Error, json: bool) {
    tell(error, Some(error.advice().unwrap_or(error.kind().advice())), json);
}

fn tell(error: &Error, hint: Option<&str>, json: bool) {
    if json {
        let (code, message) = (error.kind().code(), error.message());
        return Told { code, message, place: error.place(), hint }.json();
    }
    complain(&format!("runwal: {error}"));
    if let Some(hint) = hint {
        complain(&format!("        {hint}"));
    }
}

/// A call that makes no sense.
pub(crate) fn usage(message: &str, json: bool) {
    const HINT: &str = "See `runwal --help`.";
    if json {
        let code = ErrorKind::Misuse.code();
        return Told { code, message: message.to_owned(), hint: Some(HINT), ..Told::default() }.json();
    }
    complain(&format!("runwal: {message}\n{HINT}"));
}

/// Standard output could not be written.
pub(crate) fn output_failed(error: &std::io::Error, json: bool) {
    let message = format!("writing the output: {error}");
    if json {
        return Told { code: ErrorKind::Io.code(), message, ..Told::default() }.json();
    }
    complain(&format!("runwal: {message}"));
}

/// Damage that was met while reading.
pub(crate) fn damage(damage: &Damage, json: bool) {
    if damage.accepted && !json {
        let (from, to) = (damage.from, damage.to);
        complain(&format!("runwal: records {from} to {to} were given up as damaged earlier"));
    } else {
        // There may be much of it; one advice for each would bury it.
        tell(&damage.to_error(), None, json);
    }
}

/// A record as `log -o json` prints it. Fields that a kind lacks are left out; the order is fixed.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct RecordJson<'a> {
    position: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a str>,
    seq: u64,
    time: String,
    created_at: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<Patch<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tick: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind_number: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u8>,
    cursor: String,
}

/// Only the fields that the patch names; null where it clears one.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::option_option, reason = "absent, null and a value are three things")]
struct Patch<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<Option<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<Option<u32>>,
}

/// A record as one line of JSON.
pub(crate) fn record_json(record: &Record, run: Option<&RunName>, journal: &[u8; 16]) -> String {
    let mut json = RecordJson {
        position: record.position.0,
        task: run.map(|name| name.task.as_str()),
        run: run.map(|name| name.run.as_str()),
        seq: record.seq.0,
        time: record.time.to_nanos_string(),
        created_at: record.created_at.to_nanos_string(),
        kind: record.body.kind_name(),
        more: record.more,
        cursor: Cursor::new(*journal, record.position).to_string(),
        ..RecordJson::default()
    };
    let raw = |text: String| RawValue::from_string(text).ok();
    match &record.body {
        Body::Run(run) => {
            let meta = meta_value(run, record.term, record.created_at);
            json.request = JsonText::of(&meta).ok().map(|text| text.raw());
        }
        Body::Lifecycle(event) => {
            json.r#type = Some(&event.event);
            json.level = Some(event.level.word());
            json.message = Some(&event.message);
            json.data = Some(event.data.raw());
        }
        Body::Chunk(_, bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json.text = Some(text),
            Err(_) => json.base64 = Some(base64::engine::general_purpose::STANDARD.encode(bytes)),
        },
        Body::StatePatch(patch) => {
            let time = |t: runwal::position::Time| t.to_nanos_string();
            json.patch = Some(Patch {
                status: patch.status.map(runwal::record::Status::word),
                started_at: patch.started_at.map(|t| t.map(time)),
                updated_at: patch.updated_at.map(time),
                finished_at: patch.finished_at.map(|t| t.map(time)),
                summary: patch.summary.as_ref().map(|s| s.as_deref()),
                exit_code: patch.exit_code,
                signal: patch.signal.as_ref().map(|s| s.as_deref()),
                pid: patch.pid,
            });
        }
        Body::Checkpoint(checkpoint) => {
            json.number = Some(checkpoint.number);
            json.r#type = Some(&checkpoint.kind);
            json.format = Some(checkpoint.format.word());
            json.replay = Some(checkpoint.replay.word());
            json.summary = Some(&checkpoint.summary);
            json.bytes = Some(checkpoint.total_len);
        }
        Body::Tick(tick) => json.tick = raw(tick_line(tick, record.created_at)),
        Body::Unknown { kind, version } => {
            json.kind_number = Some(*kind);
            json.version = Some(*version);
        }
        _ => {}
    }
    serde_json::to_string(&json).unwrap_or_default()
}

/// A record on one line for people, with nothing in it that could move the cursor.
pub(crate) fn record_text(record: &Record, run: Option<&RunName>, colored: bool) -> String {
    let name = run.map_or_else(|| "-".to_owned(), ToString::to_string);
    let what = match &record.body {
        Body::Run(run) => {
            let words: Vec<_> = run.command.iter().map(|arg| String::from_utf8_lossy(arg)).collect();
            format!("step {} attempt {}: {}", run.step, run.attempt, words.join(" "))
        }
        Body::Lifecycle(event) => {
            format!("{} {} {}", event.level.word(), event.event, event.message)
        }
        Body::Chunk(_, bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Body::StatePatch(patch) => {
            let mut parts = Vec::new();
            parts.extend(patch.status.map(|s| format!("status {}", s.word())));
            parts.extend(patch.pid.flatten().map(|pid| format!("pid {pid}")));
            parts.extend(patch.exit_code.flatten().map(|code| format!("exit code {code}")));
            parts.extend(patch.signal.clone().flatten());
            parts.extend(patch.summary.clone().flatten());
            parts.join(", ")
        }
        Body::Checkpoint(c) => {
            format!("{:04} {} ({} bytes) {}", c.number, c.kind, c.total_len, c.summary)
        }
        Body::Tick(tick) => {
            format!(
                "{} {} {} {}",
                tick.batch_id,
                tick.runner,
                tick.stage,
                tick.result.as_deref().unwrap_or("-")
            )
        }
        Body::Unknown { kind, version } => format!("a record of kind {kind}, version {version}: skipped"),
        _ => String::new(),
    };
    let kind = record.body.kind_name();
    let what = escape_line(&what);
    let what = match &record.body {
        Body::Lifecycle(event) if colored && event.level == Level::Error => format!("\x1b[31m{what}\x1b[0m"),
        Body::Lifecycle(event) if colored && event.level == Level::Warn => format!("\x1b[33m{what}\x1b[0m"),
        _ => what,
    };
    format!("{} {name} {} {kind} {what}", record.created_at.to_millis_string(), record.seq)
}

/// Rows under their heads, each column as wide as it needs to be.
pub(crate) fn table<const N: usize>(out: &mut impl Write, rows: &[[String; N]]) -> std::io::Result<()> {
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// The beginning of a text, with a sign where it goes on.
pub(crate) fn shortened(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars.saturating_sub(1)).chain(['…']).collect()
}

/// `1,234,567 bytes`, `1 line`.
pub(crate) fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `0.012 s`, `3 min 07 s`, `2 d 03 h`.
pub(crate) fn duration(ms: u64) -> String {
    let (s, min, h) = (ms / 1000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..60_000 => format!("{s}.{:03} s", ms % 1000),
        60_000..3_600_000 => format!("{min} min {:02} s", s % 60),
        3_600_000..86_400_000 => format!("{h} h {:02} min", min % 60),
        _ => format!("{} d {:02} h", h / 24, h % 24),
    }
}

/// Bytes as a word that a shell reads back as the same bytes, with nothing in it that could move the
/// cursor or reorder what is shown.
pub(crate) fn shell_word(bytes: &[u8]) -> String {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"_-./=:,@%+".contains(b);
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    if !bytes.is_empty() && bytes.iter().all(is_plain) {
        return text.to_owned();
    }
    if text.len() == bytes.len() && text.chars().all(is_harmless) {
        return format!("'{}'", text.replace('\'', "'\\''"));
    }
    let mut word = "$'".to_owned();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => word.push_str("\\n"),
                '\t' => word.push_str("\\t"),
                '\r' => word.push_str("\\r"),
                '\'' | '\\' => word.extend(['\\', c]),
                c if is_harmless(c) => word.push(c),
                c => c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| octal(&mut word, b)),
            }
        }
        chunk.invalid().iter().for_each(|b| octal(&mut word, *b));
    }
    word.push('\'');
    word
}

/// Three digits are the most there can be, so that a digit behind them is no part of it.
fn octal(word: &mut String, byte: u8) {
    let _ = write!(word, "\\{byte:03o}");
}

/// Whether a character is shown as itself on a line.
fn is_harmless(c: char) -> bool {
    c == '\\' || escape_line(c.encode_utf8(&mut [0; 4])).chars().eq([c])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_shell_reads_words_back_as_they_were() {
        let all: Vec<u8> = (1..=255).collect();
        let odd = "it's \\ \u{1b}[31m\u{202e}7 é".as_bytes();
        for bytes in [b"plain".as_slice(), b"", b"a b", b"it's", b"$HOME `x` \\n", b"\xff7\n'", odd, &all] {
            let word = shell_word(bytes);
            assert!(word.chars().all(is_harmless), "{word:?}");
            let script = format!("printf %s {word}");
            let shell = std::process::Command::new("bash").args(["-c", &script]).output();
            let Ok(output) = shell else { return println!("skipped: there is no bash") };
            assert_eq!(output.stdout, bytes, "{}", std::ffi::OsStr::from_bytes(bytes).display());
        }
    }

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!(
            [count(0, "byte"), count(1, "line"), count(1_234_567, "byte")],
            ["0 bytes", "1 line", "1,234,567 bytes"]
        );
        let times = [12, 59_999, 60_000, 3_725_000, 90_000_000].map(duration);
        assert_eq!(times, ["0.012 s", "59.999 s", "1 min 00 s", "1 h 02 min", "1 d 01 h"]);
        assert_eq!([shortened("abc", 3), shortened("abcd", 3)], ["abc", "ab…"]);
    }
}
