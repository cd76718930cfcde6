//! Damages a small journal in every kind of way and prints `src/docs/verdicts.md`:
//! `cargo run --example verdicts --features testing > src/docs/verdicts.md`

use std::process::ExitCode;

fn main() -> ExitCode {
    match runwal::testing::damage::page() {
        Ok(page) => {
            print!("{page}");
            ExitCode::SUCCESS
        }
        Err(complaint) => {
            eprintln!("{complaint}");
            ExitCode::FAILURE
        }
    }
}
