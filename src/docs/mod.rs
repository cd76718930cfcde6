//! Longer documents.

/// How to build a conductor on it, from opening to stopping.
#[doc = include_str!("embedding.md")]
#[doc = include_str!("../../examples/conductor.rs")]
#[doc = "```"]
pub mod embedding {}

/// The map of the code and its invariants.
#[doc = include_str!("architecture.md")]
pub mod architecture {}

/// Every error a person can meet: what it means, whether data is at stake, what to do next.
#[doc = include_str!("errors.md")]
pub mod errors {}

/// What is assumed of the disk, what is promised, what is not, and how it is tested.
#[doc = include_str!("durability.md")]
pub mod durability {
    #[doc = include_str!("verdicts.md")]
    pub mod verdicts {}

    #[doc = include_str!("faults.md")]
    pub mod faults {}
}

/// What it costs, beside other engines and beside the least that a durable log has to do; what bounds it.
#[doc = include_str!("peers.svg")]
///
#[doc = include_str!("speed.md")]
#[doc = include_str!("flat.svg")]
pub mod speed {}

/// What recording a process means: terminals, signals, the end, the worker's own word, the git diff.
#[doc = include_str!("recorder.md")]
pub mod recorder {}
