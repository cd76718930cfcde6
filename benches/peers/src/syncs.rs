//! Whether appends that are called durable were synced: counted under strace.

use crate::cell::Cell;
use crate::engines::Kind;
use crate::rounds::{cell_args, figures, fresh_dir};
use crate::workload::Workload;
use crate::{Args, Result};
use std::path::Path;
use std::process::Command;

/// Two runs of so many appends each: what opening and closing sync cancels out.
const APPENDS: [u64; 2] = [64, 512];

const CALLS: &str =
    "trace=fsync,fdatasync,sync_file_range,pwritev2,msync,open,openat,write,pwrite64,writev,pwritev";

/// Runs the engines of `w1` and `w2` under strace, and prints how many syncs they made. Answers whether
/// every engine made one for each append of `w1`, and some for those of `w2`.
pub(crate) fn verify(args: &Args) -> Result<bool> {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("strace was not found: nothing is verified");
        return Ok(true);
    }
    println!("| | engine | appends | syncs | by O_DSYNC | |\n|---|---|---:|---:|---:|---|");
    let mut honest = true;
    for workload in [Workload::W1, Workload::W2] {
        for kind in args.engines().into_iter().filter(|kind| workload.suits(*kind)) {
            let [few, many] =
                [run(args, workload, kind, APPENDS[0])?, run(args, workload, kind, APPENDS[1])?];
            let appends = many.appends.saturating_sub(few.appends);
            let explicit = many.syncs.saturating_sub(few.syncs);
            let dsync = many.dsync_writes.saturating_sub(few.dsync_writes);
            let enough = match workload {
                Workload::W1 => explicit + dsync >= appends,
                _ => many.syncs + many.dsync_writes > 0,
            };
            honest &= enough;
            let verdict = if enough { "" } else { "**too few**" };
            println!(
                "| {} | {} | {appends} | {explicit} | {dsync} | {verdict} |",
                workload.word(),
                kind.word()
            );
        }
    }
    Ok(honest)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    appends: u64,
    syncs: u64,
    dsync_writes: u64,
}

fn run(args: &Args, workload: Workload, kind: Kind, appends: u64) -> Result<Counts> {
    let dir = fresh_dir()?;
    let (journal, trace) = (dir.path().join("journal"), dir.path().join("trace"));
    std::fs::create_dir(&journal)?;
    let args = Args { appends: Some(appends), ..args.clone() };
    let output = Command::new("strace")
        .args(["-f", "-y", "-qq", "-e", CALLS, "-o"])
        .arg(&trace)
        .arg(std::env::current_exe()?)
        .args(cell_args(&args, Cell::Append, workload, kind, &journal))
        .output()?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{} {} under strace: {told}", workload.word(), kind.word()).into());
    }
    let counts = count(&String::from_utf8_lossy(&std::fs::read(&trace)?), &journal);
    let figures = figures(&String::from_utf8(output.stdout)?)?;
    let made = figures.iter().find(|(name, _)| name == "appends").map_or(0.0, |(_, value)| *value);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    Ok(Counts { appends: made as u64, ..counts })
}

/// Counts what makes bytes durable: fsync, fdatasync, msync with MS_SYNC, pwritev2 with RWF_DSYNC or
/// RWF_SYNC; and writes to files that were opened with O_DSYNC or O_SYNC. sync_file_range is traced to be
/// seen, and never counts: it leaves the disk's cache and the file's length alone.
fn count(trace: &str, journal: &Path) -> Counts {
    let journal = journal.display().to_string();
    let (mut counts, mut dsync) = (Counts::default(), Vec::new());
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let Some((name, rest)) = call.trim_start().split_once('(') else { continue };
        let writes_to_dsync = || dsync.iter().any(|file: &String| rest.contains(&format!("<{file}>")));
        match name {
            "fsync" | "fdatasync" => counts.syncs += 1,
            "msync" if rest.contains("MS_SYNC") => counts.syncs += 1,
            "pwritev2" if rest.contains("RWF_DSYNC") || rest.contains("RWF_SYNC") => counts.syncs += 1,
            "open" | "openat" if rest.contains("O_DSYNC") || rest.contains("O_SYNC") => {
                let file = rest.split('"').nth(1).unwrap_or_default();
                if file.starts_with(&journal) {
                    dsync.push(file.to_owned());
                }
            }
            "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2" if writes_to_dsync() => {
                counts.dsync_writes += 1;
            }
            _ => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_durable_counts() {
        let trace = "\
12 openat(AT_FDCWD</>, \"/j/a\", O_RDWR|O_CREAT, 0666) = 3</j/a>
12 pwrite64(3</j/a>, \"x\"..., 4096, 0) = 4096
12 fdatasync(3</j/a> <unfinished ...>
13 fsync(4</j>) = 0
12 <... fdatasync resumed>) = 0
12 msync(0x7f00, 4096, MS_ASYNC) = 0
12 msync(0x7f00, 4096, MS_SYNC) = 0
12 sync_file_range(3</j/a>, 0, 0, SYNC_FILE_RANGE_WRITE) = 0
12 pwritev2(3</j/a>, [], 1, 0, RWF_DSYNC) = 1
12 openat(AT_FDCWD</>, \"/j/b\", O_WRONLY|O_DSYNC) = 5</j/b>
12 write(5</j/b>, \"y\"..., 1) = 1
12 openat(AT_FDCWD</>, \"/elsewhere\", O_WRONLY|O_DSYNC) = 6</elsewhere>
12 write(6</elsewhere>, \"y\"..., 1) = 1
";
        let counts = count(trace, Path::new("/j"));
        assert_eq!(counts, Counts { appends: 0, syncs: 4, dsync_writes: 1 });
    }
}
