//! Many steps at once under a limit: processes, and an executor of one's own.
//!
//! ```sh
//! cargo run --example steps --features tokio -- DIR
//! ```

use runwal::record::{Channel, Id};
use runwal::run::{
    Answer, AsyncExecutor, AsyncStep, Cancel, Checkpoints, Discard, ExecutorError, Outcome, ProcessOptions,
    RunRequest, Steps,
};
use runwal::{Engine, Error, Options};
use std::sync::Arc;

/// Counts, and asks a person where it cannot go on.
struct Counter;

impl AsyncExecutor for Counter {
    async fn execute(&self, step: AsyncStep) -> Result<Answer, ExecutorError> {
        for n in 1..=3 {
            step.chunk(Channel::Stdout, format!("{n}\n").into_bytes()).await?; // durable from here on
        }
        Ok(Answer::new(Outcome::NeedsHuman, "Counted to three. What comes next?"))
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| ".runwal".into());
    let (engine, report) = Engine::open(&dir, Options::default())?;
    for run in &report.interrupted {
        println!("{} was found without an end; this is its next attempt", run.name);
    }
    let attempt = u32::try_from(engine.log()?.runs()?.len()).unwrap_or(0) + 1;
    let request = |step: &str| -> Result<RunRequest, Error> {
        let run = Id::new(format!("{step}-{attempt}"))?;
        Ok(RunRequest { attempt, ..RunRequest::new(Id::new("example")?, run, Id::new(step)?) })
    };

    let steps = Steps::new(&engine, 2);
    let cancel = Cancel::new()?;
    let mut list = request("list")?;
    list.command = vec![b"ls".to_vec(), b"-l".to_vec()];
    let (counter, checkpoints) = (Arc::new(Counter), Checkpoints::default());
    let (listed, counted) = tokio::join!(
        steps.process(list, ProcessOptions::default(), Discard, &cancel),
        steps.execute(request("count")?, &counter, &checkpoints, &cancel),
    );
    for result in [listed?.run, counted?] {
        println!("{:?}: {} ({} lines)", result.outcome, result.summary, result.counts.channel_lines[0]);
    }
    engine.close()
}
