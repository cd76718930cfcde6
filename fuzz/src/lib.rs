//! Fuzzes runwal. Each target takes bytes, makes of them what it is about, and panics if runwal does
//! not keep what it promises; a few lines in `fuzz_targets/` hand it to libFuzzer.
//!
//! ```text
//! cargo +nightly fuzz run --sanitizer none directory corpus/directory seeds/directory
//! cargo run --bin directory -- FILE…            an input again, with any compiler
//! cargo test                                    all seeds and regressions
//! ```
//!
//! There is no unsafe code here to be watched by a sanitizer; overflows and debug assertions are on.
//!
//! What fits where:
//!
//! * `seeds/<target>/` are inputs to begin with, few and small; `regressions/<target>/` those that
//!   once were answered wrongly.
//! * What the command line parses by itself (durations, `-10m`, `KEY=VALUE`) lies in the tool, out of
//!   reach of a library; `tests/it/hostile.rs` calls the tool with such arguments.

pub mod arguments;
pub mod bodies;
pub mod decoders;
pub mod directory;
pub mod escaping;
pub mod frames;
pub mod journals;
pub mod operations;
pub mod second;

/// A target: panics with what is wrong.
pub type Target = fn(&[u8]);

/// All of them, with their names.
pub const TARGETS: &[(&str, Target)] = &[
    ("arguments", arguments::run),
    ("bodies", bodies::run),
    ("decoders", decoders::run),
    ("directory", directory::run),
    ("escaping", escaping::run),
    ("frames", frames::run),
    ("operations", operations::run),
];

/// The program of a target: under cargo-fuzz what libFuzzer calls, otherwise one that takes files.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| runwal_fuzz::$name::run(data));

        #[cfg(not(fuzzing))]
        fn main() {
            $crate::replay(stringify!($name), $crate::$name::run);
        }
    };
}

/// Hands each file that the command line names to a target.
pub fn replay(name: &str, target: Target) {
    for path in std::env::args_os().skip(1).map(std::path::PathBuf::from) {
        println!("{name}: {}", path.display());
        target(&read(&path));
    }
}

#[expect(clippy::disallowed_methods, reason = "an input, not a file of a journal")]
fn read(path: &std::path::Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The files of a folder, in order; none where it is not there.
    #[expect(clippy::disallowed_methods, reason = "inputs, not files of a journal")]
    fn inputs(folder: &Path) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
        paths.sort();
        paths
    }

    #[test]
    fn what_was_kept_is_answered_rightly() {
        for (name, target) in TARGETS {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let [seeds, regressions] =
                ["seeds", "regressions"].map(|kind| inputs(&root.join(kind).join(name)));
            assert!(!seeds.is_empty(), "{name} has no seeds");
            println!("{name}: {} seeds, {} regressions", seeds.len(), regressions.len());
            for path in seeds.iter().chain(&regressions) {
                println!("    {}", path.display());
                target(&read(path));
            }
        }
    }

    #[test]
    fn nothing_at_all_is_an_input_too() {
        for (_, target) in TARGETS {
            target(&[]);
        }
    }
}
