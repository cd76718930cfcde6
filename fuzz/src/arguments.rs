//! Ids, names, cursors, times and words, as the command line hands them on: nothing panics, nothing that
//! was accepted leads out of its folder, and what is shown of it is read as the same again.

use crate::journals::ORIGINALS;
use runwal::engine::{Cursor, Log};
use runwal::position::Time;
use runwal::record::{Id, Kind, RunName, Status};
use runwal::{Error, ErrorKind};
use std::cell::RefCell;
use std::path::{Component, Path};

thread_local! {
    /// One that finds runs.
    static LOG: RefCell<Log> = RefCell::new({
        let mut stage = ORIGINALS.stage.fork();
        stage.open_log(1).expect("the original can be opened")
    });
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    name(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    id(text);
    time(text);
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string(), text, "one place has one text");
    }
    if let Ok(kind) = text.parse::<Kind>() {
        assert_eq!(kind.word(), text);
    }
    if let Some(status) = Status::parse(text) {
        assert_eq!(status.word(), text);
    }
    selector(text);
}

fn id(text: &str) {
    match Id::new(text) {
        Ok(id) => {
            assert_eq!(id.as_str(), text);
            let parts: Vec<_> = Path::new(text).components().collect();
            assert!(
                matches!(parts.as_slice(), [Component::Normal(part)] if part.to_str() == Some(text)),
                "{text:?}"
            );
        }
        Err(error) => refused(&error),
    }
}

/// Is a refusal a matter of the caller, and harmless on a terminal?
fn refused(error: &Error) {
    assert!(matches!(error.kind(), ErrorKind::Misuse | ErrorKind::NotFound), "{error}");
    assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
}

fn name(bytes: &[u8]) {
    let Some(name) = RunName::parse(bytes) else { return };
    assert_eq!(name.to_string().as_bytes(), bytes);
    let folder = name.folder();
    let parts = Path::new(&folder).components();
    assert!(parts.clone().all(|part| matches!(part, Component::Normal(_))), "{folder:?}");
    assert_eq!(parts.count(), 3, "{folder:?}");
}

fn time(text: &str) {
    let Some(time) = Time::parse(text) else { return };
    assert_eq!(Time::parse(&time.to_nanos_string()), Some(time), "{text}");
    let millis = time.to_millis_string();
    assert!(time.to_nanos_string().starts_with(millis.trim_end_matches('Z')));
    assert!(millis.starts_with(&time.day()));
}

fn selector(text: &str) {
    LOG.with_borrow_mut(|log| match log.resolve(text) {
        Ok(run) => {
            let found = log.resolve(&run.name.to_string()).expect("found under its full name");
            assert_eq!(found, run);
            let meant =
                text == "@last" || text == run.name.to_string() || run.name.run.as_str().starts_with(text);
            assert!(meant, "{text:?} is {}", run.name);
        }
        Err(error) => refused(&error),
    });
}
