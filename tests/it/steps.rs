//! Steps by executors of the embedder's: what they answer, and what becomes of it.

use runwal::ErrorKind;
use runwal::engine::{Engine, Entry, Log, Options};
use runwal::position::{Position, Seq};
use runwal::record::{Body, Channel, FileFormat, Id, JsonText, Level, Lifecycle, Record, Replay, Status};
use runwal::run::{
    Answer, AsyncExecutor, AsyncStep, Cancel, Checkpoints, Deferred, Discard, Executor, ExecutorError,
    Outcome, Output, ProcessOptions, RunRequest, RunResult, Step, Steps, record_process, run_step,
};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

fn request(run: &str) -> RunRequest {
    RunRequest::new(Id::new("t").unwrap(), Id::new(run).unwrap(), Id::new("s").unwrap())
}

fn open(dir: &Path) -> Engine {
    Engine::open(dir, Options::default()).unwrap().0
}

/// An executor that is a function.
struct By<F>(F);

impl<F> Executor for By<F>
where
    F: Fn(&mut Step<'_>) -> Result<Answer, ExecutorError> + Send + Sync,
{
    fn execute(&self, step: &mut Step<'_>) -> Result<Answer, ExecutorError> {
        (self.0)(step)
    }
}

fn answer(engine: &Engine, run: &str, answer: Answer) -> RunResult {
    run_step(
        engine,
        request(run),
        &By(move |_: &mut Step<'_>| Ok(answer.clone())),
        &Checkpoints::default(),
        &Cancel::new().unwrap(),
    )
    .unwrap()
}

/// A run's records.
fn records(dir: &Path, run: &str) -> Vec<Body> {
    let mut log = Log::open(dir).unwrap();
    let info = log.resolve(&format!("t/{run}")).unwrap();
    let mut found = Vec::new();
    let mut keep = |record: &Record| {
        found.push(record.body.clone());
        Ok(true)
    };
    assert_eq!(log.stream(info.stream, Seq(1), &mut keep).unwrap(), []);
    found
}

fn events(dir: &Path, run: &str) -> Vec<Lifecycle> {
    let event = |body| if let Body::Lifecycle(event) = body { Some(event) } else { None };
    records(dir, run).into_iter().filter_map(event).collect()
}

fn types(dir: &Path, run: &str) -> Vec<String> {
    events(dir, run).into_iter().map(|event| event.event).collect()
}

fn status(dir: &Path, run: &str) -> (Option<Status>, bool) {
    let mut log = Log::open(dir).unwrap();
    let info = log.resolve(&format!("t/{run}")).unwrap();
    let (fold, _) = log.fold(info.stream).unwrap();
    (fold.state().status, fold.state().finished_at.is_some() && fold.ended())
}

#[test]
fn each_outcome_has_its_terminal_event_level_and_status() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let table = [
        (Outcome::Prepared, "step_prepared", Level::Info, Status::Prepared, true),
        (Outcome::Completed, "step_completed", Level::Info, Status::Completed, true),
        (Outcome::Failed, "step_failed", Level::Error, Status::Failed, false),
        (Outcome::Blocked, "step_blocked", Level::Warn, Status::Blocked, false),
        (Outcome::NeedsHuman, "step_needs_human", Level::Warn, Status::NeedsHuman, false),
        (Outcome::Cancelled, "step_cancelled", Level::Warn, Status::Cancelled, false),
    ];
    for (n, (outcome, event, level, wanted, ok)) in table.into_iter().enumerate() {
        let run = format!("r{n}");
        let result = answer(&engine, &run, Answer::new(outcome, "Said so."));
        assert_eq!((result.outcome, result.ok, result.summary.as_str()), (outcome, ok, "Said so."));
        assert_eq!(result.exit_code, Some(i32::from(!ok)), "an absent exit code is 0 if ok, else 1");
        assert_eq!(
            (result.blocked, result.needs_human),
            (outcome == Outcome::Blocked, outcome == Outcome::NeedsHuman)
        );
        let last = events(dir.path(), &run).pop().unwrap();
        assert_eq!((last.event.as_str(), last.level, last.message.as_str()), (event, level, "Said so."));
        assert_eq!(status(dir.path(), &run), (Some(wanted), true), "{outcome:?}");
        // Where outcome and ok disagree, the event is an error.
        let run = format!("odd{n}");
        let odd = answer(&engine, &run, Answer { ok: !ok, ..Answer::new(outcome, "Odd.") });
        assert_eq!((odd.ok, odd.exit_code), (!ok, Some(i32::from(ok))));
        assert_eq!(events(dir.path(), &run).pop().unwrap().level, Level::Error, "{outcome:?}");
    }
    engine.close().unwrap();
}

#[test]
fn what_an_answer_says_wins_over_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let said = Answer {
        exit_code: Some(42),
        blocked: Some(true),
        needs_human: Some(true),
        ..Answer::new(Outcome::Failed, "Both.")
    };
    let result = answer(&engine, "r", said);
    assert_eq!((result.exit_code, result.blocked, result.needs_human), (Some(42), true, true));
    let data = events(dir.path(), "r").pop().unwrap().data;
    assert_eq!(
        data,
        JsonText::parse(r#"{"ok":false,"blocked":true,"needsHuman":true,"exitCode":42,"artifacts":[]}"#)
            .unwrap()
    );
}

#[test]
fn lifecycle_events_come_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    answer(&engine, "r", Answer::new(Outcome::Completed, "Done."));
    let all =
        ["run_prepared", "checkpoint_slot_reserved", "worker_started", "worker_exited", "step_completed"];
    assert_eq!(types(dir.path(), "r"), all);
    run_step(&engine, request("d"), &Deferred, &Checkpoints::default(), &Cancel::new().unwrap()).unwrap();
    let deferred = [
        "run_prepared",
        "checkpoint_slot_reserved",
        "worker_started",
        "worker_execution_deferred",
        "worker_exited",
        "step_prepared",
    ];
    assert_eq!(types(dir.path(), "d"), deferred);
    let off = RunRequest { checkpoints: false, ..request("off") };
    let result = run_step(&engine, off, &Deferred, &Checkpoints::default(), &Cancel::new().unwrap()).unwrap();
    assert!(!types(dir.path(), "off").contains(&"checkpoint_slot_reserved".to_owned()));
    assert!(result.checkpoints.is_empty());
    assert!(!records(dir.path(), "off").iter().any(|body| matches!(body, Body::Checkpoint(_))));
}

#[test]
fn returned_lines_become_a_chunk_each_stdout_first() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let long = vec![b'x'; 3_000_000];
    let said = Answer {
        stdout: vec![b"one".to_vec(), b"two\n".to_vec(), b"".to_vec(), b"\xff".to_vec(), long.clone()],
        stderr: vec![b"err".to_vec()],
        ..Answer::new(Outcome::Completed, "Done.")
    };
    let result = answer(&engine, "r", said);
    assert_eq!(result.counts.channel_lines, [5, 1]);
    let chunks: Vec<(Channel, Vec<u8>)> = records(dir.path(), "r")
        .into_iter()
        .filter_map(|body| if let Body::Chunk(channel, bytes) = body { Some((channel, bytes)) } else { None })
        .collect();
    let out = |text: &[u8]| (Channel::Stdout, text.to_vec());
    assert_eq!(chunks[..4], [out(b"one\n"), out(b"two\n"), out(b"\n"), out(b"\xff\n")]);
    assert_eq!(chunks.last().unwrap(), &(Channel::Stderr, b"err\n".to_vec()));
    let rest: Vec<u8> = chunks[4..chunks.len() - 1].iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!(rest, [&long[..], b"\n"].concat(), "a line above the limit of a record spans several");
}

#[test]
fn an_error_or_a_panic_of_an_executor_is_a_failed_step() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let cancel = Cancel::new().unwrap();
    let failing = By(|_: &mut Step<'_>| Err("no network".into()));
    let result = run_step(&engine, request("error"), &failing, &Checkpoints::default(), &cancel).unwrap();
    assert_eq!(
        (result.outcome, result.summary.as_str(), result.exit_code),
        (Outcome::Failed, "no network", Some(1))
    );
    let panicking = By(|_: &mut Step<'_>| panic!("out of {}", "luck"));
    let result = run_step(&engine, request("panic"), &panicking, &Checkpoints::default(), &cancel).unwrap();
    assert_eq!(
        (result.outcome, result.summary.as_str()),
        (Outcome::Failed, "The executor panicked: out of luck")
    );
    assert_eq!(status(dir.path(), "panic"), (Some(Status::Failed), true));
}

/// An error that quotes a whole log ends the run all the same.
#[test]
fn a_summary_that_is_far_too_long_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let failing = By(|_: &mut Step<'_>| Err("é".repeat(2 << 20).into()));
    let cancel = Cancel::new().unwrap();
    let result = run_step(&engine, request("r"), &failing, &Checkpoints::default(), &cancel).unwrap();
    assert_eq!((result.outcome, result.summary.len()), (Outcome::Failed, 64 << 10));
    assert_eq!(status(dir.path(), "r"), (Some(Status::Failed), true));
}

#[test]
fn an_executor_records_what_it_does_and_leaves_files() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let busy = By(|step: &mut Step<'_>| {
        assert_eq!(step.request().name.run.as_str(), "r");
        step.chunk(Channel::Stdout, b"working\n")?;
        step.event(Lifecycle::new("halfway", Level::Info, "Halfway."))?;
        let number = step.checkpoint("notes", FileFormat::Text, Replay::None, "Notes.", b"n".to_vec())?;
        assert_eq!(number, 2);
        let file = step.artifacts().unwrap().join("report");
        let disk = runwal::disk::os::OsDisk::open(file.parent().unwrap()).unwrap();
        runwal::disk::Disk::open(&disk, "report", runwal::disk::Open::CreateNew)?.write_at(b"abc", 0)?;
        Ok(Answer::new(Outcome::Completed, "Done."))
    });
    let result =
        run_step(&engine, request("r"), &busy, &Checkpoints::default(), &Cancel::new().unwrap()).unwrap();
    let files: Vec<_> = result.artifacts.iter().map(|a| (a.path.as_str(), a.bytes)).collect();
    let own = ["meta.json", "state.json", "worker.log", "stdout.log", "stderr.log"].map(|name| (name, None));
    let taken = ["0001-summary.json", "0002-notes.txt", "0003-log-tail.txt"];
    let taken: Vec<_> = taken.iter().map(|name| format!("checkpoints/{name}")).collect();
    let wanted: Vec<_> = own
        .into_iter()
        .chain(taken.iter().map(|name| (name.as_str(), None)))
        .chain([("artifacts/report", Some(3))])
        .collect();
    assert_eq!(files, wanted, "the run's own files first, then the worker's");
    for (path, _) in files {
        assert!(dir.path().join("runs/t/r").join(path).is_file(), "{path}");
    }
    assert_eq!(result.checkpoints.iter().map(|c| c.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(types(dir.path(), "r").contains(&"halfway".to_owned()));
}

#[test]
fn a_second_preparation_of_a_run_executes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    answer(&engine, "r", Answer::new(Outcome::Completed, "Done."));
    let never = By(|_: &mut Step<'_>| panic!("executed"));
    let refused = run_step(&engine, request("r"), &never, &Checkpoints::default(), &Cancel::new().unwrap())
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
}

/// An asynchronous executor that says when it begins, and waits to be let go.
struct Waits {
    begun: mpsc::UnboundedSender<String>,
    go: tokio::sync::Semaphore,
    now: AtomicUsize,
    most: AtomicUsize,
    dropped: Arc<Mutex<u32>>,
}

struct Counts(Arc<Mutex<u32>>);

impl Drop for Counts {
    fn drop(&mut self) {
        *self.0.lock().unwrap() += 1;
    }
}

impl AsyncExecutor for Waits {
    async fn execute(&self, step: AsyncStep) -> Result<Answer, ExecutorError> {
        let _counts = Counts(Arc::clone(&self.dropped));
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        step.chunk(Channel::Stdout, b"begun\n".to_vec()).await?;
        self.begun.send("begun".to_owned())?;
        self.go.acquire().await?.forget();
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(Answer::new(Outcome::Completed, "Done."))
    }
}

fn waits() -> (Arc<Waits>, mpsc::UnboundedReceiver<String>) {
    let (begun, heard) = mpsc::unbounded_channel();
    let (go, dropped) = (tokio::sync::Semaphore::new(0), Arc::default());
    (Arc::new(Waits { begun, go, now: AtomicUsize::new(0), most: AtomicUsize::new(0), dropped }), heard)
}

/// Waits until a run has ended.
async fn ended(dir: &Path, run: &str) -> Option<Status> {
    let (dir, run) = (dir.to_owned(), run.to_owned());
    tokio::task::spawn_blocking(move || {
        let mut log = Log::open(&dir).unwrap();
        loop {
            let found = log.resolve(&format!("t/{run}")).ok().and_then(|info| log.fold(info.stream).ok());
            if let Some((fold, _)) = found
                && fold.ended()
            {
                return fold.state().status;
            }
            log.wait(std::time::Duration::from_secs(1)).unwrap();
        }
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_steps_at_once_keep_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let steps = Steps::new(&open(dir.path()), 3);
    let (executor, mut begun) = waits();
    let all: Vec<_> = (0..20)
        .map(|n| {
            let (steps, executor) = (steps.clone(), Arc::clone(&executor));
            tokio::spawn(async move {
                let cancel = Cancel::new().unwrap();
                steps
                    .execute(request(&format!("r{n}")), &executor, &Checkpoints::default(), &cancel)
                    .await
                    .unwrap()
            })
        })
        .collect();
    for _ in 0..20 {
        begun.recv().await.unwrap();
        executor.go.add_permits(1);
    }
    for step in all {
        assert_eq!(step.await.unwrap().outcome, Outcome::Completed);
    }
    assert!(executor.most.load(Ordering::SeqCst) <= 3);
    assert!(Log::open(dir.path()).unwrap().runs().unwrap().len() == 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_cancelled_by_its_token_and_by_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let steps = Steps::new(&open(dir.path()), 2);
    let (executor, mut begun) = waits();
    let cancel = Cancel::new().unwrap();
    let stop = cancel.clone();
    let stopper = tokio::spawn(async move {
        begun.recv().await.unwrap();
        stop.cancel(15);
        begun
    });
    let result = steps.execute(request("token"), &executor, &Checkpoints::default(), &cancel).await.unwrap();
    assert_eq!((result.outcome, result.exit_code), (Outcome::Cancelled, Some(1)));
    assert_eq!(status(dir.path(), "token"), (Some(Status::Cancelled), true));
    let _begun = stopper.await.unwrap();
    let late = RunRequest { timeout_ms: Some(1), ..request("late") };
    let result =
        steps.execute(late, &executor, &Checkpoints::default(), &Cancel::new().unwrap()).await.unwrap();
    assert_eq!(result.outcome, Outcome::Failed);
    assert!(result.summary.starts_with("Timed out after"), "{}", result.summary);
    while *executor.dropped.lock().unwrap() < 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_step_is_ended_as_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let steps = Steps::new(&open(dir.path()), 1);
    let (executor, mut begun) = waits();
    let (of_task, by_task) = (steps.clone(), Arc::clone(&executor));
    let task = tokio::spawn(async move {
        let cancel = Cancel::new().unwrap();
        of_task.execute(request("r"), &by_task, &Checkpoints::default(), &cancel).await.unwrap()
    });
    begun.recv().await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(ended(dir.path(), "r").await, Some(Status::Cancelled));
    // Its place under the limit is free again.
    executor.go.add_permits(1);
    let next = steps
        .execute(request("next"), &executor, &Checkpoints::default(), &Cancel::new().unwrap())
        .await
        .unwrap();
    assert_eq!(next.outcome, Outcome::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_process_leaves_no_process_behind() {
    let dir = tempfile::tempdir().unwrap();
    let steps = Steps::new(&open(dir.path()), 4);
    let mut asked = request("r");
    asked.grace_ms = 50;
    // It does not hear the first signal, and has a child.
    asked.command = ["sh", "-c", "trap '' TERM; sleep 1000 & echo $! $$; while :; do wait; done"]
        .map(|word| word.as_bytes().to_vec())
        .to_vec();
    let of_task = steps.clone();
    let task = tokio::spawn(async move {
        let cancel = Cancel::new().unwrap();
        of_task.process(asked, ProcessOptions::default(), Discard, &cancel).await.unwrap();
    });
    let pids = {
        let dir = dir.path().to_owned();
        let read = move || loop {
            let Ok(mut log) = Log::open(&dir) else { continue };
            let Ok(info) = log.resolve("t/r") else { continue };
            let mut reading = log.records(Position(info.stream.0)).unwrap();
            loop {
                match reading.next().unwrap() {
                    Some(Entry::Record(record)) => {
                        if let Body::Chunk(_, bytes) = record.body {
                            return String::from_utf8(bytes).unwrap();
                        }
                    }
                    Some(damage) => panic!("{damage:?}"),
                    None => drop(reading.wait(std::time::Duration::from_secs(1)).unwrap()),
                }
            }
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    };
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(ended(dir.path(), "r").await, Some(Status::Cancelled));
    for pid in pids.split_whitespace() {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{pid} is there: {stat}");
    }
}

fn sleeping(run: &str) -> RunRequest {
    let mut asked = request(run);
    asked.command = ["sh", "-c", "echo on; exec sleep 1000"].map(|word| word.as_bytes().to_vec()).to_vec();
    asked
}

/// Says when a worker has said something.
struct Says(mpsc::UnboundedSender<()>);

impl Output for Says {
    fn write(&mut self, _: Channel, _: &[u8], _: &dyn Fn() -> bool) -> std::io::Result<()> {
        let _ = self.0.send(());
        Ok(())
    }
}

/// One handle may stand for many steps: it stops all of them, with and without a runtime between.
#[tokio::test(flavor = "multi_thread")]
async fn one_token_stops_all_the_steps_that_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let steps = Steps::new(&engine, 4);
    let cancel = Cancel::new().unwrap();
    let (says, mut said) = mpsc::unbounded_channel();
    let through = |run: &'static str| {
        let (steps, cancel, output) = (steps.clone(), cancel.clone(), Says(says.clone()));
        let run =
            async move { steps.process(sleeping(run), ProcessOptions::default(), output, &cancel).await };
        tokio::spawn(run)
    };
    let directly = |run: &'static str| {
        let (engine, cancel, mut output) = (engine.clone(), cancel.clone(), Says(says.clone()));
        tokio::task::spawn_blocking(move || {
            record_process(&engine, sleeping(run), &ProcessOptions::default(), &mut output, &cancel)
        })
    };
    let dropped = through("dropped");
    let others = [through("a"), through("b"), directly("c"), directly("d")];
    for _ in 0..5 {
        said.recv().await.unwrap();
    }
    // Dropping one of them is no word to the others.
    dropped.abort();
    assert_eq!(ended(dir.path(), "dropped").await, Some(Status::Cancelled));
    assert!(!cancel.is_cancelled());
    // What a worker says is passed on before it is recorded that it runs.
    let mut log = Log::open(dir.path()).unwrap();
    for run in ["a", "b", "c", "d"] {
        while status(dir.path(), run) == (Some(Status::Prepared), false) {
            log.wait(std::time::Duration::from_secs(1)).unwrap();
        }
        assert_eq!(status(dir.path(), run), (Some(Status::Running), false), "{run}");
    }
    cancel.cancel(15);
    for other in others {
        assert_eq!(other.await.unwrap().unwrap().run.outcome, Outcome::Cancelled);
    }
}
