//! The crash explorer over all workloads: every operation of each, and as much of what a crash there
//! can leave as fits into some minutes. `RUNWAL_EXPLORE=1` takes all of it (hours), a larger number
//! every so many operations, images and operations of opening; `RUNWAL_WORKLOAD` one workload,
//! `RUNWAL_CASE` one case, as a violation is reported.

use runwal::disk::sim::Fault;
use runwal::testing::explorer::{Bounds, Explored, explore, operations};
use runwal::testing::stage::Stage;
use runwal::testing::workloads::{ALL, Workload};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn every_crash_keeps_the_promises() {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let step = set("RUNWAL_EXPLORE").and_then(|step| step.parse().ok());
    let mut bounds = step.map_or_else(Bounds::quick, Bounds::every);
    if let Some(case) = set("RUNWAL_CASE") {
        bounds = Bounds { only: Some(case), image_stride: 1, open_stride: 1, stride: 1, ..bounds };
    }
    let workload = set("RUNWAL_WORKLOAD");
    let wanted: Vec<_> = ALL.iter().filter(|w| workload.as_ref().is_none_or(|name| name == w.name)).collect();
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Explored::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(one) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = explore(one, &bounds);
                    report(one, &bounds, &found);
                    total.lock().unwrap().add(found);
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    println!("{total}");
    assert!(total.violations.is_empty(), "{} violations, listed above", total.violations.len());
}

fn report(workload: &Workload, bounds: &Bounds, found: &Explored) {
    println!("{:>16}: {found}", workload.name);
    let case = bounds.only.as_ref().filter(|case| case.starts_with(&format!("{}/", workload.name)));
    for operation in operations(workload).iter().filter(|_| case.is_some()) {
        println!("    {operation}");
    }
    for (case, complaint) in &found.violations {
        println!("  {case}: {complaint}");
    }
}

/// One process's sync fails, another one goes on; the first one's handle writes no more, and what
/// it had written is kept or lost as a whole.
#[test]
fn a_handle_whose_sync_failed_writes_no_more() {
    for survivors in [0, 1, 2, u64::MAX] {
        let mut stage = Stage::new(64 << 10, 64 << 10);
        let one = stage.open(1).expect("opened");
        let run = stage.begin(&one, "one");
        stage.look(1);
        stage.expect_faults(true);
        // Busy word, frames, then the sync.
        let fault = Fault::Error { errno: 5, sticky: false, survivors };
        stage.world.fail_at(stage.world.operations() + 3, fault);
        assert_eq!(stage.append(&one, run, &[700]), None);
        assert!(one.engine().is_poisoned());
        stage.look(1);
        let two = stage.open(1).expect("opened beside it");
        stage.tick(&two);
        stage.look(2);
        assert_eq!(stage.append(&one, run, &[10]), None, "a poisoned handle wrote");
        stage.tick(&two);
        stage.expect_faults(false);
        drop(one);
        stage.close(two);
        for keep in [false, true] {
            let mut later = stage.fork();
            later.restart(keep);
            later.look(1);
            let writer = later.open(1).expect("opened after the power cut");
            later.look(1);
            later.close(writer);
            assert!(later.problems.is_empty(), "{:?}", later.problems);
        }
    }
}
