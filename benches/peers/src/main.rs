//! The same workloads on runwal, on other storage engines, and on the least a durable log has to do.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- --csv peers.csv --svg peers.svg
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- --workload w1,w8 --engine limit,runwal --rounds 9
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- --workload flat --sizes 10,1000,10000
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- --verify-syncs
//! ```
//!
//! With everything at its default this takes half an hour or more, 10 GB of disk and 4 GB of memory;
//! `--events 200000 --rounds 3` makes it some minutes. The journals are made in `$RUNWAL_BENCH_DIR`, else in
//! the directory for temporary files: see that it is on the disk that is meant, and not in memory.
//!
//! # What is measured
//!
//! Each measurement is a process of its own with a journal of its own, so that nothing is left over from the
//! one before. Single appends are measured in turns: the processes of all engines stand ready, and each runs
//! for a tenth of a second while the others are stopped, so that they meet the same moments of the disk, which
//! is another one in the next second. What takes longer is measured one engine after the other.
//! The table on stdout has the limit as it is, and of the others the median over the rounds of their ratio to
//! the limit *of the same round*, with the least and the most. Times to open and bytes on disk are medians as
//! they are. The CSV has every figure, also percentiles of the latency and the peak of the memory,
//! in which mapped files count.
//!
//! Events have 256 bytes (`w2-4k`: 4 KiB), random ones unless they are JSON, and belong to a stream each.
//!
//! Before what writes is measured, a file of more than that length is written and removed: a virtual machine may have
//! given memory that it does not use back to its host, and a page of that takes ten times as long.
//!
//! * `w1`, `w2-8`, `w2`, `w2-4k`, `w8`: writers in threads, one handle; each event is durable before its writer
//!   goes on. Each writer has streams of its own: one, or with `w8` its share of 10,000.
//! * `w2-async`, `w2-tickets`: 64 tasks of a runtime with two threads; 64 tickets in flight on two threads.
//!   runwal only, beside the limit's 64 threads.
//! * `w3`: one writer fills a journal, bursts of 64 events of one of 64 streams after the other, durable when it
//!   is done. The preparing of room is not counted, nor is the closing.
//! * `w6`, `w6b`: all bytes in its files, without zeros at their ends (room that is prepared is the same for a
//!   small and a large journal), over the events. `allocated` in the CSV is what the disk was asked for.
//! * `w4`, `w5`, `w7`: that journal opened for writing, read from one end to the other, and single events read
//!   at random places, each time with the page cache warm, by a process that knows nothing of it yet.
//! * `w4-kill`: the same opening after a process made 256 appends to a new stream and is killed while it goes
//!   on. That all of them are there is looked at when it was timed. `runwal-reserved` has
//!   room behind its end, which has to be looked through.
//! * `flat`: what opening, one append and 2,000 appends take, and the peak of the memory, by size of the journal.
//!   The journals of one size are there at the same time.
//!
//! # What is not
//!
//! Power cuts (`w4-kill` leaves the page cache whole), several processes, deleting, anything over a network,
//! events of mixed sizes, a disk that is nearly full. All of runwal's journals begin small and grow; a limit
//! whose file is long since written has the advantage of it, most of which `--warm-up 2` takes away. And the
//! machine has to be idle: where other work takes the processors, the many threads of `w2` tell more of the
//! scheduler than of the engines, and `w1` too.
//!
//! # How fair it is
//!
//! `--verify-syncs` counts under strace: in `w1` each engine has to make one sync for each append, be it fsync,
//! fdatasync, msync with `MS_SYNC`, a write with `RWF_DSYNC`, or one to a file opened with `O_DSYNC`.
//!
//! * The limit has no names of streams, no index and no rotation, knows the room it will need, and finds events
//!   by arithmetic. Nobody is expected to reach it with all that in place. Its leader waits up to 100 µs for
//!   the writers that it has just woken.
//! * runwal makes no files (`publish: false`), as the others make none, and keeps its chain hash, its index, its
//!   lock between processes. `runwal-reserved` has had room made for all that is appended, as the limit has.
//! * SQLite, redb and fjall have no group commit across threads. As they are, their writers take turns; with
//!   `-grouped` the limit's own grouping stands before them, the best an application could do. They are ordered
//!   maps that can do much more than append; SQLite and redb check no checksums when they read.
//! * fjall's opening depends on how much of its last memtable was not yet flushed.
//! * raft-engine groups by itself. Its log files are written before they are used where single appends are
//!   measured, but for those of 4 KiB, which were faster without. It compresses batches of more than 8 KiB,
//!   takes a burst as one batch, keeps its index in memory and makes it anew when it opens.
//! * okaywal groups by itself, and its file is written before it is used. It is meant to be emptied into
//!   something else, so that opening reads everything, and single events cannot be found.
//! * redb looks through all of its file when it was killed; `set_quick_repair` would spare it that, for slower
//!   commits.

mod append;
mod cell;
mod engines;
mod event;
mod group;
mod plot;
mod rounds;
mod syncs;
mod table;
mod turns;
mod workload;

use cell::Cell;
use clap::{Parser, ValueEnum};
use engines::Kind;
use std::path::PathBuf;
use std::process::ExitCode;
use workload::Workload;

/// Whatever goes wrong ends the measurement, and is told.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The same workloads on runwal, on its peers, and on the least a durable log has to do.
#[derive(Debug, Clone, Parser)]
struct Args {
    /// Only these workloads; by default all but `flat`.
    #[arg(long, value_delimiter = ',')]
    workload: Vec<Workload>,
    /// Only these engines; by default all, with `flat` the limit and runwal. Ratios need the limit.
    #[arg(long, value_delimiter = ',')]
    engine: Vec<Kind>,
    /// How often everything is measured, the engines in turn.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// How long single appends, and single reads, are measured.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How long appends go on before they count.
    #[arg(long, default_value_t = 0.0)]
    warm_up: f64,
    /// Events of a filled journal, in w3 to w7.
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Streams of a filled journal.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    streams: u32,
    /// Sizes of the journals of `flat`, in MB.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000, 10_000])]
    sizes: Vec<u64>,
    /// Another build of this program: its runwal is measured in the same turns, as `runwal-other`.
    #[arg(long, value_name = "PROGRAM")]
    other: Option<PathBuf>,
    /// Where all figures are written.
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Where a plot is written.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Count the syncs of w1 and w2 instead, with strace.
    #[arg(long)]
    verify_syncs: bool,
    /// One measurement, in this process.
    #[arg(long, hide = true)]
    cell: Option<Cell>,
    #[arg(long, hide = true)]
    dir: Option<PathBuf>,
    #[arg(long, hide = true, default_value_t = 0)]
    round: u32,
    /// So many appends, instead of for some time.
    #[arg(long, hide = true)]
    appends: Option<u64>,
}

impl Args {
    fn engines(&self) -> Vec<Kind> {
        let mut kinds =
            if self.engine.is_empty() { Kind::value_variants().to_vec() } else { self.engine.clone() };
        kinds.retain(|kind| *kind != Kind::RunwalOther);
        kinds.extend(self.other.as_ref().map(|_| Kind::RunwalOther));
        kinds
    }

    fn workloads(&self) -> Vec<Workload> {
        let all = Workload::value_variants().iter().copied().filter(|workload| *workload != Workload::Flat);
        if self.workload.is_empty() { all.collect() } else { self.workload.clone() }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    if let Some(cell) = args.cell {
        cell::run(cell, args)?;
        return Ok(true);
    }
    if args.verify_syncs {
        return syncs::verify(args);
    }
    let results = rounds::measure(args)?;
    print!("{}", table::markdown(&results.samples));
    print!("{}", table::other_markdown(&results.samples));
    print!("{}", table::flat_markdown(&results.samples));
    if let Some(file) = &args.csv {
        table::write_csv(&results.samples, file)?;
    }
    if let Some(file) = &args.svg {
        std::fs::write(file, plot::svg(&results.samples))?;
    }
    for failure in &results.failures {
        eprintln!("failed: {failure}");
    }
    Ok(results.failures.is_empty())
}
