//! The crash explorer over all workloads, with every operation, image and operation of opening that
//! falls on a step. `RUNWAL_EXPLORE=1` takes every one of them (hours, best built with
//! optimisation), `RUNWAL_WORKLOAD` one workload, `RUNWAL_CASE` one case, as a violation is reported.

use runwal::testing::explorer::{Bounds, Explored, explore, operations};
use runwal::testing::workloads::ALL;

/// In a test run of everything else, about half a minute without optimisation.
const STEP: u64 = 17;

#[test]
fn every_crash_keeps_the_promises() {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let step = set("RUNWAL_EXPLORE").and_then(|step| step.parse().ok()).unwrap_or(STEP);
    let mut bounds = Bounds::every(step);
    if let Some(case) = set("RUNWAL_CASE") {
        bounds = Bounds { only: Some(case), image_stride: 1, open_stride: 1, stride: 1, ..bounds };
    }
    let workload = set("RUNWAL_WORKLOAD");
    let mut total = Explored::default();
    for one in ALL.iter().filter(|w| workload.as_ref().is_none_or(|name| name == w.name)) {
        let found = explore(one, &bounds);
        println!("{:>16}: {found}", one.name);
        let case = bounds.only.as_ref().filter(|case| case.starts_with(&format!("{}/", one.name)));
        for operation in operations(one).iter().filter(|_| case.is_some()) {
            println!("    {operation}");
        }
        for (case, complaint) in &found.violations {
            println!("  {case}: {complaint}");
        }
        total.add(found);
    }
    println!("{total}");
    assert!(total.violations.is_empty(), "{} violations, listed above", total.violations.len());
}
