//! What recording costs: a worker that floods, eight of them at once, and a worker that does nothing; and what
//! it takes to make the files of the flood again.
//!
//! `cargo bench --bench flood [-- MiB [PAIRS]]` prints the ratios of the README. Each pair runs the
//! recorded worker and its yardstick one after the other, so that both meet the same disk. The flood is noise,
//! of which no compression makes less.

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

/// How much noise there is, to be repeated.
const NOISE_MIB: u64 = 16;
/// How many floods there are at once.
const MANY: u64 = 8;

/// Prints the noise until it is so much.
fn worker(noise: &Path, mib: u64) -> Command {
    let mut command = Command::new("sh");
    let times = mib.div_ceil(NOISE_MIB);
    let script = format!("n=0; while [ $n -lt {times} ]; do cat \"$0\"; n=$((n + 1)); done");
    command.args(["-c", &script]).arg(noise).stdin(Stdio::null());
    command
}

fn make_noise(path: &Path) {
    let mut random = fs::File::open("/dev/urandom").unwrap().take(NOISE_MIB << 20);
    std::io::copy(&mut random, &mut fs::File::create(path).unwrap()).unwrap();
}

/// Has the page cache ready for so much. A virtual machine may have given memory that it does not use back to its
/// host, and each page of that takes ten times as long.
fn warm_up_memory(root: &Path, mib: u64) {
    let mut file = tempfile::tempfile_in(root).unwrap();
    let piece = vec![1; 1 << 20];
    (0..mib).for_each(|_| file.write_all(&piece).unwrap());
}

/// The yardstick: the worker's bytes into two files, one of them synced every 50 ms.
fn two_files(dir: &Path, noise: &Path, mib: u64) -> Duration {
    let start = Instant::now();
    let mut child = worker(noise, mib).stdout(Stdio::piped()).spawn().unwrap();
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

fn recorded(data: &Path, command: &Command) -> Duration {
    let start = Instant::now();
    assert!(recorder(data, command).status().unwrap().success());
    start.elapsed()
}

fn recorder(data: &Path, command: &Command) -> Command {
    let mut recorder = Command::new(env!("CARGO_BIN_EXE_runwal"));
    recorder.arg("--dir").arg(data).args(["-q", "run", "--"]);
    recorder.arg(command.get_program()).args(command.get_args());
    // Outside of any git checkout: a diff of that is not what is measured here.
    recorder.current_dir(data.parent().unwrap()).stdin(Stdio::null()).stdout(Stdio::null());
    recorder
}

/// Several recorders at once on one data directory, each with its part of the flood.
fn recorded_together(data: &Path, noise: &Path, mib: u64) -> Duration {
    let start = Instant::now();
    let each = worker(noise, mib / MANY);
    let children: Vec<_> = (0..MANY).map(|_| recorder(data, &each).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    start.elapsed()
}

/// Makes all files again, and answers how many bytes of journal that took a second.
fn rebuilt(data: &Path) -> f64 {
    fs::remove_dir_all(data.join("runs")).unwrap();
    let journal = fs::read_dir(data.join("journal")).unwrap().map(|entry| entry.unwrap());
    let segments = journal.filter(|entry| entry.path().extension().is_some_and(|end| end == "seg"));
    let bytes: u64 = segments.map(|entry| entry.metadata().unwrap().len()).sum();
    let start = Instant::now();
    let mut rebuild = Command::new(env!("CARGO_BIN_EXE_runwal"));
    rebuild.arg("--dir").arg(data).args(["-q", "rebuild"]).stdout(Stdio::null());
    assert!(rebuild.status().unwrap().success());
    bytes as f64 / start.elapsed().as_secs_f64()
}

/// The peak memory of a recorded worker in KiB, watched from outside.
fn peak_memory(data: &Path, noise: &Path, mib: u64) -> u64 {
    let mut child = recorder(data, &worker(noise, mib)).spawn().unwrap();
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
    let noise_dir = tempfile::tempdir_in(&root).unwrap();
    let noise = noise_dir.path().join("noise");
    make_noise(&noise);
    let (mut floods, mut together, mut rebuilds, mut small) = (vec![], vec![], vec![], vec![]);
    // Each has a directory of its own, gone before the next begins: what one has made is not to be written
    // to the disk, or kept in memory, in another's time.
    let fresh_dir = || {
        warm_up_memory(&root, 3 * mib);
        tempfile::tempdir_in(&root).unwrap()
    };
    for _ in 0..pairs {
        let dir = fresh_dir();
        let yardstick = two_files(dir.path(), &noise, mib);
        drop(dir);
        let dir = fresh_dir();
        let data = dir.path().join("data");
        let flood = recorded(&data, &worker(&noise, mib));
        rebuilds.push(rebuilt(&data) / 1e9);
        drop(dir);
        let dir = fresh_dir();
        let eight = recorded_together(&dir.path().join("data"), &noise, mib);
        floods.push(flood.as_secs_f64() / yardstick.as_secs_f64());
        together.push(flood.as_secs_f64() / eight.as_secs_f64());
        println!(
            "flood of {mib} MiB: recorded {flood:.2?}, two files {yardstick:.2?}, {MANY} recorders {eight:.2?}, \
             rebuilt at {:.2} GB/s",
            rebuilds.last().unwrap()
        );
        let data = dir.path().join("small");
        let nothing = Command::new("true");
        recorded(&data, &nothing);
        let bare = Instant::now();
        assert!(Command::new("true").status().unwrap().success());
        let bare = bare.elapsed();
        small.push(recorded(&data, &nothing).saturating_sub(bare).as_secs_f64() * 1e3);
    }
    let dir = tempfile::tempdir_in(&root).unwrap();
    let memory = peak_memory(&dir.path().join("data"), &noise, mib);
    println!("R1  a recorded true over the bare one: median {:.1} ms", median(small));
    println!("R2  flood over two files, one synced every 50 ms: median ratio {:.2}", median(floods));
    println!("R4  peak memory while recording it: {:.1} MiB", memory as f64 / 1024.0);
    println!("R5  its files made again: median {:.2} GB of journal a second", median(rebuilds));
    println!("R10 {MANY} recorders at once, over one: median throughput ratio {:.2}", median(together));
}
