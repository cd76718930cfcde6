//! What recording costs: a worker that floods, and a worker that does nothing.
//!
//! `cargo bench --bench flood [-- MiB [PAIRS]]` prints the ratios of the README. Each pair runs the
//! recorded worker and its yardstick one after the other, so that both meet the same disk.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "measures, and plays the user"
)]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PIECE: usize = 64 << 10;

fn worker(mib: u64) -> Command {
    let mut command = Command::new("head");
    command.args(["-c", &format!("{}", mib << 20), "/dev/zero"]).stdin(Stdio::null());
    command
}

/// The yardstick: the worker's bytes into two files, one of them synced every 50 ms.
fn two_files(dir: &Path, mib: u64) -> Duration {
    let start = Instant::now();
    let mut child = worker(mib).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let (mut one, mut two) =
        (fs::File::create(dir.join("one")).unwrap(), fs::File::create(dir.join("two")).unwrap());
    let mut null = fs::File::options().write(true).open("/dev/null").unwrap();
    let mut piece = vec![0; PIECE];
    let mut synced = Instant::now();
    loop {
        let read = out.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        null.write_all(&piece[..read]).unwrap();
        one.write_all(&piece[..read]).unwrap();
        two.write_all(&piece[..read]).unwrap();
        if synced.elapsed() >= Duration::from_millis(50) {
            one.sync_data().unwrap();
            synced = Instant::now();
        }
    }
    one.sync_data().unwrap();
    child.wait().unwrap();
    start.elapsed()
}

fn recorded(data: &Path, command: &mut Command) -> Duration {
    let start = Instant::now();
    let mut recorder = Command::new(env!("CARGO_BIN_EXE_runwal"));
    recorder.arg("--dir").arg(data).args(["-q", "run", "--"]);
    recorder.arg(command.get_program()).args(command.get_args());
    // Outside of any git checkout: a diff of that is not what is measured here.
    recorder.current_dir(data.parent().unwrap());
    let status = recorder.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success());
    start.elapsed()
}

/// The peak memory of a recorded worker in KiB, watched from outside.
fn peak_memory(data: &Path, mib: u64) -> u64 {
    let mut recorder = Command::new(env!("CARGO_BIN_EXE_runwal"));
    recorder.arg("--dir").arg(data).args(["-q", "run", "--"]);
    let command = worker(mib);
    recorder.arg(command.get_program()).args(command.get_args());
    recorder.current_dir(data.parent().unwrap());
    let mut child = recorder.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        most = most.max(line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    most
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let (mib, pairs) = (numbers.first().copied().unwrap_or(1024), numbers.get(1).copied().unwrap_or(5));
    let root = std::env::var_os("RUNWAL_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let mut ratios = Vec::new();
    let mut small = Vec::new();
    for _ in 0..pairs {
        let dir = tempfile::tempdir_in(&root).unwrap();
        let yardstick = two_files(dir.path(), mib);
        let data = dir.path().join("data");
        let flood = recorded(&data, &mut worker(mib));
        ratios.push(flood.as_secs_f64() / yardstick.as_secs_f64());
        println!(
            "flood of {mib} MiB: recorded {flood:.2?}, two files {yardstick:.2?}, ratio {:.2}",
            ratios.last().unwrap()
        );
        let data = dir.path().join("small");
        recorded(&data, &mut Command::new("true"));
        let bare = Instant::now();
        assert!(Command::new("true").status().unwrap().success());
        let bare = bare.elapsed();
        small.push((recorded(&data, &mut Command::new("true")).saturating_sub(bare)).as_secs_f64() * 1e3);
    }
    let dir = tempfile::tempdir_in(&root).unwrap();
    let memory = peak_memory(&dir.path().join("data"), mib);
    println!(
        "R2  flood of {mib} MiB over two files, one synced every 50 ms: median ratio {:.2}",
        median(ratios)
    );
    println!("R4  peak memory while recording it: {:.1} MiB", memory as f64 / 1024.0);
    println!("R1  a recorded true over the bare one: median {:.1} ms", median(small));
}
