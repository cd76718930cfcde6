//! The crash explorer over all workloads: a sample of it, or with `RUNWAL_EXPLORE=all` everything.
//! `RUNWAL_CASE` names one case (as a violation is reported) to be judged alone, `RUNWAL_WORKLOAD`
//! one workload.

use runwal::testing::explorer::{Bounds, Explored, explore, operations};
use runwal::testing::workloads::ALL;

#[test]
fn every_crash_keeps_the_promises() {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut bounds = if set("RUNWAL_EXPLORE").is_some() { Bounds::full() } else { Bounds::sampled() };
    bounds.only = set("RUNWAL_CASE");
    if bounds.only.is_some() {
        bounds = Bounds { only: bounds.only, ..Bounds::full() };
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
