//! What is shown of text that came from outside: one event is one line, nothing in it moves a cursor or
//! turns around what is shown, and the text can be had back.

use arbitrary::{Arbitrary, Unstructured};
use runwal::position::Time;
use runwal::projection::{tick_line, worker_line};
use runwal::record::{JsonText, Level, Lifecycle, Tick, escape_line};

/// See the [module](self).
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok((time, level)) = <(i64, u8)>::arbitrary(&mut input) else { return };
    let Ok([one, other, third]) = <[&str; 3]>::arbitrary(&mut input) else { return };
    for text in [one, other, third] {
        let shown = escape_line(text);
        assert_harmless(&shown);
        assert_eq!(unescape(&shown).as_deref(), Some(text), "{shown}");
    }
    let time = Time(time);
    worker(time, level, one, other);
    tick(time, one, other, third);
}

/// Nothing that ends a line, moves a cursor, or reorders what is shown around it.
fn assert_harmless(line: &str) {
    let invisible = |c: char| matches!(u32::from(c), 0..=0x1f | 0x7f..=0x9f | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff);
    assert!(!line.chars().any(invisible), "{line:?}");
}

/// The other way round; `None` where it was not escaped so.
fn unescape(line: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match rest.next()? {
            '\\' => '\\',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let (number, behind) = rest.as_str().strip_prefix('{')?.split_once('}')?;
                rest = behind.chars();
                char::from_u32(u32::from_str_radix(number, 16).ok()?)?
            }
            _ => return None,
        });
    }
    Some(out)
}

/// JSON of text from outside: an object where it is none itself.
fn json(text: &str) -> JsonText {
    JsonText::parse(text).ok().filter(|json| json.members().is_some()).unwrap_or_else(|| {
        JsonText::of(&std::collections::BTreeMap::from([(text, text)])).expect("a map of text is JSON")
    })
}

fn worker(time: Time, level: u8, message: &str, data: &str) {
    let data = JsonText::parse(data).unwrap_or_else(|_| json(data));
    let level = Level::ALL[usize::from(level) % Level::ALL.len()];
    let event = Lifecycle { data, ..Lifecycle::new("an_event", level, message) };
    let line = String::from_utf8(worker_line(time, &event)).expect("a line is text");
    let line = line.strip_suffix('\n').expect("a line has an end");
    assert_harmless(line);
    // The message may have spaces of its own, and the data none between its tokens.
    let rest = line
        .strip_prefix(&format!("{} {} an_event ", time.to_millis_string(), level.word().to_uppercase()))
        .expect("time, level and type come first");
    let shown = escape_line(message);
    let data = rest.strip_prefix(&shown).and_then(|rest| rest.strip_prefix(' ')).expect("then the message");
    assert_same_json(data, event.data.as_str());
}

/// The same JSON, however it is escaped.
fn assert_same_json(one: &str, other: &str) {
    JsonText::parse(one).unwrap_or_else(|error| panic!("{one}: {error}"));
    // A number beyond all floats, or half of a pair of surrogates, is JSON and has no value.
    let parsed = |text| serde_json::from_str::<serde_json::Value>(text).ok();
    assert_eq!(parsed(one), parsed(other));
}

fn tick(time: Time, one: &str, other: &str, details: &str) {
    let tick = Tick {
        batch_id: one.to_owned(),
        runner: other.to_owned(),
        stage: "stage".to_owned(),
        result: Some(other.to_owned()),
        error: None,
        duration_ms: None,
        details: json(details),
    };
    let line = tick_line(&tick, time);
    assert_harmless(&line);
    let members = JsonText::parse(&line).ok().and_then(|json| json.members());
    let members = members.expect("a line is an object");
    let asked = tick.details.members().map_or(0, |members| members.len());
    assert_eq!(members.len(), 7 + asked, "{line}");
    let mut keys: Vec<_> = members.iter().map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), members.len(), "a key stands twice: {line}");
    let text = |at: usize| serde_json::from_str::<String>(members[at].1.get()).ok();
    assert_eq!((text(0).as_deref(), text(4).as_deref()), (Some(one), Some(other)));
}
