//! The simulated disk, crashed at every operation in every way that its contract permits.

use crate::{Asked, Found};
use runwal::testing::explorer::{Bounds, explore};
use runwal::testing::workloads::ALL;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) fn run(asked: &Asked) -> Found {
    let bounds = match (&asked.case, asked.until) {
        (Some(case), _) => {
            Bounds { only: Some(case.clone()), image_stride: 1, open_stride: 1, stride: 1, ..Bounds::quick() }
        }
        (None, Some(_)) => Bounds::every(1),
        (None, None) => Bounds::quick(),
    };
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Found::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(workload) = ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let explored = explore(workload, &bounds);
                    let mut found = found.lock().unwrap();
                    found.count("operations", explored.operations);
                    found.count("distinct crash states", explored.states);
                    found.problems.extend(explored.violations);
                }
            });
        }
    });
    found.into_inner().unwrap()
}
