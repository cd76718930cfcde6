//! Disks that really fail: without blocks for what was written, full, read-only, and limits of a
//! process that have the same effect.

use crate::calls::no_second_sync;
use crate::chance::Chance;
use crate::journal::{Journal, keep, keep_copy, place};
use crate::ledger::{Finding, check_files, rebuild_files};
use crate::machine::{Pretence, world};
use crate::mounts::{Disk, Format, Mounted};
use crate::process::{End, LONG, Life, Process, can_trace, command, strace, tool};
use crate::worker::{Orders, options};
use crate::{Asked, Found};
use runwal::ErrorKind;
use runwal::engine::Engine;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, statvfs};
use rustix::mount::MountFlags;
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

/// Rounds of the quick part, each of which goes through all ways to fail.
const QUICK: u64 = 3;
/// Whoever owns nothing.
const NOBODY: u32 = 65534;

/// What became of a worker, to be counted.
type Became = Result<String, String>;

/// A way for a disk to fail, which numbers are drawn for.
type Way = fn(&mut Chance) -> Became;

const WAYS: &[(&str, Way)] = &[
    ("thin-ext4", |chance| thin(Format::Ext4, chance)),
    ("thin-xfs", |chance| thin(Format::Xfs, chance)),
    ("full-memory", |chance| full(None, chance)),
    ("full-ext4", |chance| full(Some(Format::Ext4), chance)),
    ("full-xfs", |chance| full(Some(Format::Xfs), chance)),
    ("file-size", |chance| limited("trap '' XFSZ; ulimit -f", 2 + chance.below(200))),
    ("file-size-kills", |chance| limited("ulimit -f", 2 + chance.below(200))),
    ("descriptors", |chance| limited("ulimit -n", 4 + chance.below(30))),
    ("read-only-ext4", |chance| read_only(Format::Ext4, chance)),
    ("read-only-xfs", |chance| read_only(Format::Xfs, chance)),
    ("aborted-ext4", aborted),
    ("no-permission", no_permission),
];

pub(crate) fn run(asked: &Asked) -> Found {
    let mut found = Found::default();
    let can_mount = Disk::new(Format::Ext4).and_then(|_| Disk::new(Format::Xfs)).map(drop);
    if let Err(why) = &can_mount {
        found.skipped.push(format!("thin, full, read-only and aborted disks: {why}"));
    }
    for round in (0..).take_while(|round| asked.goes_on(*round, QUICK)) {
        for (way, fail) in WAYS {
            let name = format!("{way}/{round}");
            let mounts = !["file-size", "file-size-kills", "descriptors", "no-permission"].contains(way);
            if asked.case.as_ref().is_some_and(|case| *case != name) || (mounts && can_mount.is_err()) {
                continue;
            }
            match fail(&mut Chance::of(&[round, 2])) {
                Ok(became) => found.count(&format!("{way}: {became}"), 1),
                Err(complaint) => drop(found.problems.insert(name, complaint)),
            }
        }
    }
    found
}

fn work(orders: &Orders, journal: &mut Journal) -> Finding<Life> {
    Process::start(&mut command(&[], orders))?.end(&mut journal.ledger)
}

/// What a worker says that writes until it cannot: it told so, and nobody had to kill it.
fn fails(life: &Life) -> Finding {
    let told =
        life.complaints.iter().any(|line| ["full", "io", "reopen"].iter().any(|code| line.contains(code)));
    if life.end == End::Failed && told { Ok(()) } else { Err(format!("it should have failed: {life:?}")) }
}

/// Opens for writing where that may fail, for lack of space or as nothing can be written.
fn try_to_open(dir: &Path, pretence: Pretence) -> Finding<bool> {
    let opened = world(dir, pretence, true).and_then(|world| Engine::open_in(world, options()));
    match opened.and_then(|(engine, _)| engine.close()) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::Full | ErrorKind::Io | ErrorKind::Reopen) => {
            Ok(false)
        }
        Err(error) => Err(format!("opening on a disk that fails: {error:?}")),
    }
}

/// Checks the journal once its disk is well again.
fn mended(journal: &mut Journal) -> Finding {
    journal.ledger.check_writing(&journal.dir, Pretence::default())?;
    check_files(&journal.dir)
}

/// Lets the next read of the journal ask the disk.
fn forget_pages(dir: &Path) {
    for entry in std::fs::read_dir(dir.join("journal")).into_iter().flatten().flatten() {
        if let Ok(file) = File::open(entry.path()) {
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
}

/// Whether a file system can still be read, and written.
fn is_alive(dir: &Path) -> (bool, bool) {
    let probe = dir.with_file_name("probe");
    let write = || std::fs::write(&probe, "x").and_then(|()| File::open(&probe)?.sync_all());
    (std::fs::read(dir.join("journal/mark")).is_ok(), write().is_ok())
}

/// Keeps what a complaint about a mounted journal is about.
fn told(journal: &Journal, done: Finding<String>) -> Became {
    done.map_err(|complaint| format!("{complaint} ({})", keep_copy(&journal.dir)))
}

/// The memory that the blocks of a disk are in ends: a write succeeds, and its sync fails.
fn thin(format: Format, chance: &mut Chance) -> Became {
    let disk = Disk::new(format)?;
    let mounted = disk.mount("")?;
    let mut journal = Journal::new(mounted.dir(), chance.next());
    journal.ledger.drops_pages = true;
    disk.thin_out(100 + chance.below(1_500))?;
    let place = place();
    let trace = place.path().join("trace");
    let options = ["-y", "-e", "trace=fdatasync,fsync"].map(str::to_owned);
    let wrapper = can_trace().map(|()| strace(&options, Some(&trace))).unwrap_or_default();
    let orders = journal.orders(u64::MAX);
    let life = Process::start(&mut command(&wrapper, &orders))?.end(&mut journal.ledger)?;
    let trace = Some(&*trace).filter(|_| !wrapper.is_empty());
    let done = same_boot(&disk, &mut journal, &life, trace);
    let became = told(&journal, done)?;
    mounted.end()?;
    let _mounted = disk.mount("")?;
    let done = journal.ledger.check_writing(&journal.dir, Pretence::default()).and_then(|()| {
        // What was in no cache but that of the files was lost without a trace in their lengths.
        let runs = rebuild_files(&journal.dir)?;
        Ok(if runs > 0 { format!("{became}, files to be rebuilt") } else { became })
    });
    told(&journal, done)
}

/// Judges the journal without the disk being mounted anew: from what it really holds, while it is
/// still without memory, and with memory again.
fn same_boot(disk: &Disk, journal: &mut Journal, life: &Life, trace: Option<&Path>) -> Became {
    fails(life)?;
    let mut said = Vec::new();
    if let Some(trace) = trace {
        no_second_sync(trace)?;
        let failed = std::fs::read_to_string(trace).unwrap().contains("= -1");
        said.push(if failed { "a sync failed" } else { "no sync failed" });
    }
    forget_pages(&journal.dir);
    if is_alive(&journal.dir).0 {
        journal.ledger.check_reading(&journal.dir, Pretence::default(), true)?;
    }
    let opened = try_to_open(&journal.dir, Pretence::default())?;
    said.push(if opened { "opened at once" } else { "not opened at once" });
    disk.fill_up()?;
    let well = is_alive(&journal.dir).1;
    said.push(if well { "went on with space" } else { "had to be mounted anew" });
    if well {
        // Whoever is first may be told what failed before.
        try_to_open(&journal.dir, Pretence::default())?;
        journal.ledger.check_writing(&journal.dir, Pretence::default())?;
    }
    Ok(said.join(", "))
}

/// A disk without room, in the middle of what is written.
fn full(format: Option<Format>, chance: &mut Chance) -> Became {
    let place = place();
    let (disk, mounted) = match format {
        Some(format) => {
            let disk = Disk::new(format)?;
            let mounted = disk.mount("")?;
            (Some(disk), mounted)
        }
        // Room for the files of each run that the journal still has a place for when the disk is full:
        // every one of them is a page at least.
        None => (None, Mounted::in_memory(place.path(), 64_000)?),
    };
    let mut journal = Journal::new(mounted.dir(), chance.next());
    let ballast = mounted.dir().join("ballast");
    let file = File::create(&ballast).map_err(|error| error.to_string())?;
    let stat = statvfs(mounted.dir()).unwrap();
    let free = stat.f_bfree * stat.f_frsize;
    let room = (50 + chance.below(700)) << 10;
    // What the file system needs for itself is not to be had.
    let mut len = free.saturating_sub(room);
    while fallocate(&file, FallocateFlags::empty(), 0, len).is_err() {
        len -= 64 << 10;
    }
    drop(file);
    let orders = journal.orders(u64::MAX);
    let life = work(&orders, &mut journal)?;
    let mut check = || {
        fails(&life)?;
        if !life.complaints.iter().any(|line| line.contains(" full ")) {
            return Err(format!("nobody said that the disk is full: {life:?}"));
        }
        if life.begun {
            journal.ledger.check_reading(&journal.dir, Pretence::default(), true)?;
        }
        let opened = try_to_open(&journal.dir, Pretence::default())?;
        std::fs::remove_file(&ballast).map_err(|error| error.to_string())?;
        mended(&mut journal)?;
        Ok(if opened { "opened while full" } else { "not opened while full" }.to_owned())
    };
    let done = check();
    let done = told(&journal, done);
    drop((mounted, disk));
    done
}

/// A process that the shell limits.
fn limited(limit: &str, to: u64) -> Became {
    let place = place();
    let mut journal = Journal::new(place.path(), to);
    let wrapper = ["sh", "-c", &format!("{limit} {to}; exec \"$@\""), "sh"].map(OsString::from);
    let orders = journal.orders(150);
    let life = Process::start(&mut command(&wrapper, &orders))?.end(&mut journal.ledger)?;
    let done = match life.end {
        // The signal of the limit on files.
        End::Killed(25) if !limit.contains("trap") && life.complaints.is_empty() => Ok("killed"),
        End::Well if life.complaints.is_empty() => Ok("not noticed"),
        _ if !life.started => Ok("not started"),
        _ => fails(&life).map(|()| if life.begun { "told" } else { "not opened" }),
    };
    let done = done.and_then(|became| journal.look(true).map(|()| became.to_owned()));
    done.map_err(|complaint| keep(place, &complaint))
}

/// A worker that only reads shows everything, and one that writes is told clearly why not.
fn reads_and_does_not_write(journal: &mut Journal, why: &str, uid: Option<u32>) -> Finding {
    let start = |orders: &Orders, journal: &mut Journal| {
        let mut command = command(&[], orders);
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        Process::start(&mut command)?.end(&mut journal.ledger)
    };
    journal.ledger.check_reading(&journal.dir, Pretence::default(), true)?;
    let reader = Orders { read: true, ..journal.orders(0) };
    let life = start(&reader, journal)?;
    if life.end != End::Well || life.read != Some(journal.ledger.records()) {
        return Err(format!("reading what cannot be written: {life:?}"));
    }
    let writer = journal.orders(20);
    let life = start(&writer, journal)?;
    let right = |line: &String| line.starts_with("failed io ") && line.contains(why);
    if life.end != End::Failed || life.begun || !life.complaints.iter().all(right) {
        return Err(format!("writing what cannot be written: {life:?}"));
    }
    Ok(())
}

/// A file system that is mounted for reading only, and for writing again.
fn read_only(format: Format, chance: &mut Chance) -> Became {
    let disk = Disk::new(format)?;
    let mounted = disk.mount("")?;
    let mut journal = Journal::new(mounted.dir(), chance.next());
    let orders = journal.orders(20);
    let life = work(&orders, &mut journal)?;
    let mut check = || {
        if life.end != End::Well {
            return Err(format!("it should have worked: {life:?}"));
        }
        mounted.change(MountFlags::RDONLY, "")?;
        reads_and_does_not_write(&mut journal, "Read-only", None)?;
        mounted.change(MountFlags::empty(), "")?;
        mended(&mut journal)?;
        Ok("read, not written, and written again".to_owned())
    };
    let done = check();
    let done = told(&journal, done);
    drop((mounted, disk));
    done
}

/// A file system that gives up on its disk, and goes read-only while a process writes.
fn aborted(chance: &mut Chance) -> Became {
    let disk = Disk::new(Format::Ext4)?;
    let mounted = disk.mount("")?;
    let mut journal = Journal::new(mounted.dir(), chance.next());
    let orders = journal.orders(u64::MAX);
    let mut worker = Process::start(&mut command(&[], &orders))?;
    worker.listen(&mut journal.ledger, chance.below(30), LONG)?;
    mounted.change(MountFlags::empty(), "abort")?;
    let life = worker.end(&mut journal.ledger)?;
    let mut check = || {
        fails(&life)?;
        journal.ledger.check_reading(&journal.dir, Pretence::default(), true)?;
        try_to_open(&journal.dir, Pretence::default())
    };
    if let Err(complaint) = check() {
        return told(&journal, Err(complaint));
    }
    mounted.end()?;
    let mounted = disk.mount("")?;
    let done = mended(&mut journal).map(|()| "told, and mended by mounting anew".to_owned());
    let done = told(&journal, done);
    drop((mounted, disk));
    done
}

/// A directory that its owner may not write to.
fn no_permission(chance: &mut Chance) -> Became {
    let place = place();
    let root = rustix::process::geteuid().is_root();
    let uid = root.then_some(NOBODY);
    std::fs::set_permissions(place.path(), Permissions::from_mode(0o777)).unwrap();
    let mut journal = Journal::new(place.path(), chance.next());
    let orders = journal.orders(20);
    let mut first = command(&[], &orders);
    if let Some(uid) = uid {
        first.uid(uid).gid(uid);
    }
    let life = match Process::start(&mut first) {
        // Not everybody may run what root has built.
        Err(why) if why.contains("Permission denied") => return Ok(format!("not tried: {why}")),
        started => started?.end(&mut journal.ledger)?,
    };
    let dir = journal.dir.to_str().unwrap().to_owned();
    let mut check = || {
        if life.end != End::Well {
            return Err(format!("it should have worked: {life:?}"));
        }
        tool("chmod", &["-R", "a-w", &dir])?;
        reads_and_does_not_write(&mut journal, "Permission denied", uid)?;
        tool("chmod", &["-R", "u+w", &dir])?;
        mended(&mut journal)?;
        Ok("read, not written, and written again".to_owned())
    };
    check().map_err(|complaint| keep(place, &complaint))
}
