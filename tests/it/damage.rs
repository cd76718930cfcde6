//! The damage matrix, with every bit and length that falls on a step: `RUNWAL_DAMAGE=1` takes all.

use runwal::testing::damage::{Specimen, matrix, table};

const STEP: usize = 61;

#[test]
fn no_damage_goes_without_a_word() {
    let step = std::env::var("RUNWAL_DAMAGE").ok().and_then(|step| step.parse().ok()).unwrap_or(STEP);
    let specimen = Specimen::new().expect("a specimen");
    let (found, complaints) = matrix(&specimen, step);
    println!("{}", table(&found));
    for complaint in complaints.iter().take(200) {
        println!("  {complaint}");
    }
    assert!(complaints.is_empty(), "{} complaints, the first ones listed above", complaints.len());
}
