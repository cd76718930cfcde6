//! Records a command as a run, and shows what the journal knows of it afterwards.
//!
//! ```text
//! cargo run --example record -- /tmp/data sh -c 'echo hello; exit 3'
//! ```

use runwal::engine::{Engine, Log, Options};
use runwal::error::Error;
use runwal::position::Seq;
use runwal::record::{Body, Channel, Id};
use runwal::run::{Cancel, Output, ProcessOptions, RunRequest, record_process};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;

/// Passes the worker's output on, as a terminal would show it.
struct Show;

impl Output for Show {
    fn write(&mut self, channel: Channel, bytes: &[u8], _: &dyn Fn() -> bool) -> std::io::Result<()> {
        match channel {
            Channel::Stdout => std::io::stdout().write_all(bytes),
            Channel::Stderr => std::io::stderr().write_all(bytes),
        }
    }
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args_os().skip(1);
    let dir = arguments.next().unwrap_or_else(|| ".runwal".into());
    let mut command: Vec<Vec<u8>> = arguments.map(OsStringExt::into_vec).collect();
    if command.is_empty() {
        command.push(b"true".to_vec());
    }

    // Opening recovers what a crash left, and says so.
    let (engine, report) = Engine::open(&dir, Options::default())?;
    for run in &report.interrupted {
        println!("run {} was found without an end", run.name);
    }

    // A name of one's own choosing: task and run; here the run counts what is there.
    let count = engine.log()?.runs()?.len() + 1;
    let mut request = RunRequest::new(Id::new("example")?, Id::new(format!("r{count}"))?, Id::new("demo")?);
    request.command = command;
    let name = request.name.clone();
    let result = record_process(&engine, request, &ProcessOptions::default(), &mut Show, &Cancel::new()?)?;
    println!("{name}: {}", result.run.summary);
    engine.close()?;

    // Any process may read, at any time, also while others write.
    let mut log = Log::open(&dir)?;
    let run = log.resolve(&name.to_string())?;
    let damage = log.stream(run.stream, Seq(1), &mut |record| {
        let what = match &record.body {
            Body::Lifecycle(event) => event.message.clone(),
            Body::Chunk(_, bytes) => format!("{} bytes", bytes.len()),
            other => other.kind_name().to_owned(),
        };
        println!("{:>4} {} {what}", record.position, record.created_at.to_millis_string());
        Ok(true)
    })?;
    for found in damage {
        println!("damaged: {}", found.to_error());
    }
    Ok(())
}
