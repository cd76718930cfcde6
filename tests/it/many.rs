//! A thousand runs at once in one process. What that costs, `benches/runs.rs` measures.

use runwal::engine::{Engine, Filter, Log, Options, Start};
use runwal::record::{Channel, Id, Kind, Status};
use runwal::run::{
    Answer, AsyncExecutor, AsyncStep, Cancel, Checkpoints, ExecutorError, Outcome, RunRequest, Steps,
};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const RUNS: usize = 1_000;

fn request(run: usize) -> RunRequest {
    let id = |text: String| Id::new(text).unwrap();
    RunRequest::new(id("t".to_owned()), id(format!("r-{run}")), id("s".to_owned()))
}

fn open(dir: &Path) -> Engine {
    Engine::open(dir.join("data"), Options::default()).unwrap().0
}

fn without_diff() -> Checkpoints {
    Checkpoints { git_diff: false, ..Checkpoints::default() }
}

/// Writes some lines; each has to be durable before the next.
struct Writer {
    at_work: AtomicUsize,
    all: tokio::sync::Barrier,
}

impl AsyncExecutor for Writer {
    async fn execute(&self, step: AsyncStep) -> Result<Answer, ExecutorError> {
        self.at_work.fetch_add(1, Ordering::SeqCst);
        self.all.wait().await; // all of them are under way at once
        for n in 0..3 {
            step.chunk(Channel::Stdout, format!("line {n}\n").into_bytes()).await?;
        }
        Ok(Answer::new(Outcome::Completed, "Done."))
    }
}

/// A wake-up that is lost hangs this test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_runs_at_once_are_each_recorded_whole_and_watched() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (steps, cancel) = (Steps::new(&engine, RUNS), Cancel::new().unwrap());
    let writer = Arc::new(Writer { at_work: AtomicUsize::new(0), all: tokio::sync::Barrier::new(RUNS) });
    let mut tasks = tokio::task::JoinSet::new();
    for run in 0..RUNS {
        let (steps, cancel, writer) = (steps.clone(), cancel.clone(), Arc::clone(&writer));
        tasks.spawn(
            async move { steps.execute(request(run), &writer, &without_diff(), &cancel).await.unwrap() },
        );
    }
    // Somebody watches meanwhile.
    let mut watched = engine.subscribe(Start::Beginning, Filter::default().kind(Kind::Stdout)).unwrap();
    let watcher = tokio::task::spawn_blocking(move || {
        let mut seen = BTreeSet::new();
        while seen.len() < 3 * RUNS {
            if let Some(delivery) = watched.next_within(std::time::Duration::from_mins(2)).unwrap() {
                assert!(seen.insert(delivery.cursor.position()), "given twice");
            }
        }
    });
    let results = tasks.join_all().await;
    watcher.await.unwrap();
    assert_eq!(writer.at_work.load(Ordering::SeqCst), RUNS);
    assert!(
        results.iter().all(|result| result.outcome == Outcome::Completed && result.publish_error.is_none())
    );
    engine.close().unwrap();
    let mut log = Log::open(dir.path().join("data")).unwrap();
    assert_eq!(log.verify(&mut |_| {}).unwrap().verdict, runwal::Verdict::Clean);
    let runs = log.runs().unwrap();
    assert_eq!(runs.len(), RUNS);
    for run in runs {
        let (fold, damage) = log.fold(run.stream).unwrap();
        assert!(damage.is_empty() && fold.ended());
        assert_eq!(fold.counts().channel_lines, [3, 0]);
        let compared = log.rebuild(run.stream, false).unwrap().unwrap();
        assert!(compared.differences.is_empty(), "{:?}", compared.differences);
    }
}

/// Never answers.
struct Hanging(tokio::sync::Barrier);

impl AsyncExecutor for Hanging {
    async fn execute(&self, step: AsyncStep) -> Result<Answer, ExecutorError> {
        step.chunk(Channel::Stdout, b"at work\n".to_vec()).await?;
        self.0.wait().await;
        std::future::pending().await
    }
}

/// Asked to stop, by their token or by nobody waiting for them any more, all have an end, and the
/// engine closes in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_runs_that_would_never_end_are_stopped_and_recorded_as_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (steps, cancel) = (Steps::new(&engine, RUNS), Cancel::new().unwrap());
    let hanging = Arc::new(Hanging(tokio::sync::Barrier::new(RUNS + 1)));
    let mut tasks = tokio::task::JoinSet::new();
    for run in 0..RUNS {
        let (steps, cancel, hanging) = (steps.clone(), cancel.clone(), Arc::clone(&hanging));
        tasks.spawn(async move { steps.execute(request(run), &hanging, &without_diff(), &cancel).await });
    }
    hanging.0.wait().await;
    cancel.cancel(15);
    let results = tasks.join_all().await;
    assert!(results.iter().all(|result| result.as_ref().unwrap().outcome == Outcome::Cancelled));
    engine.close().unwrap();
    let (engine, report) = Engine::open(dir.path().join("data"), Options::default()).unwrap();
    assert!(report.interrupted.is_empty() && report.rewritten_files == 0, "{report:?}");
    let mut log = engine.log().unwrap();
    for run in log.runs().unwrap() {
        let (fold, _) = log.fold(run.stream).unwrap();
        assert_eq!(fold.state().status, Some(Status::Cancelled));
        assert!(fold.ended());
    }
}
