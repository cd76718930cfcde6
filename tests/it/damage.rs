//! The damage matrix. `RUNWAL_DAMAGE` is the step over bits and lengths: 1 takes every one (minutes
//! with optimisation, hours without).

use runwal::testing::damage::{Specimen, matrix, page, table};

#[test]
fn no_damage_goes_without_a_word() {
    let Some(step) = std::env::var("RUNWAL_DAMAGE").ok().and_then(|step| step.parse().ok()) else {
        // The same checks stand behind the published page.
        let page = page().expect("no complaint");
        let published = include_str!("../../src/docs/verdicts.md");
        assert!(page == published, "src/docs/verdicts.md is not what `--example verdicts` prints:\n{page}");
        return;
    };
    let (found, complaints) = matrix(&Specimen::new().expect("a specimen"), step);
    println!("{}", table(&found));
    for complaint in complaints.iter().take(200) {
        println!("  {complaint}");
    }
    assert!(complaints.is_empty(), "{} complaints, the first ones listed above", complaints.len());
}
