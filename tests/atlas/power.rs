//! Power cuts of real file systems: the kernel is told to forget what it has not written, in the
//! middle of a process's appends, and the file system is mounted again.
//!
//! A control tells whether that can lose anything: a worker whose syncs do nothing has to be seen
//! losing what it acknowledged.

use crate::chance::Chance;
use crate::journal::{Journal, keep_copy};
use crate::ledger::{Finding, check_files};
use crate::machine::Pretence;
use crate::mounts::{Disk, Format, Mounted};
use crate::process::{End, LONG, Process, command, tool};
use crate::{Asked, Found};
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// Cuts of the quick part, on each file system, at least: the last journal sees all of its own.
const QUICK: u64 = 10;
/// Cuts of the control.
const CONTROL: u64 = 5;
/// The most cuts that one journal sees.
const LIVES: u64 = 20;

pub(crate) fn run(asked: &Asked) -> Found {
    let found = Mutex::new(Found::default());
    std::thread::scope(|scope| {
        for format in Format::ALL {
            let found = &found;
            scope.spawn(move || {
                let done = tool("xfs_io", &["-V"]).and_then(|_| Disk::new(format));
                let mut all = match done {
                    Ok(disk) => Cuts { disk, format, boot: 0, mounted: None, found, done: 0 },
                    Err(why) => {
                        found.lock().unwrap().skipped.push(format!("power cuts of {}: {why}", format.name()));
                        return;
                    }
                };
                all.run(asked);
            });
        }
    });
    found.into_inner().unwrap()
}

/// A disk whose power is cut again and again.
struct Cuts<'f> {
    mounted: Option<Mounted>,
    disk: Disk,
    format: Format,
    /// Which boot of the machine it is.
    boot: u64,
    found: &'f Mutex<Found>,
    done: u64,
}

impl Cuts<'_> {
    fn run(&mut self, asked: &Asked) {
        if let Some(case) = &asked.case {
            if let Some(seed) = case.strip_prefix(&format!("{}/", self.format.name())) {
                self.one_journal(seed.parse().unwrap(), LIVES);
            }
            return;
        }
        if let Err(complaint) = self.control() {
            self.complain("control", complaint);
        }
        let begun = Instant::now();
        let mut seed = 0;
        while asked.goes_on(self.done, QUICK) {
            let most = asked.count.map_or(LIVES, |count| count - self.done);
            if !self.one_journal(seed, most) {
                break;
            }
            seed += 1;
        }
        self.found.lock().unwrap().rate(&format!("cuts of {}", self.format.name()), self.done, begun);
    }

    fn complain(&self, case: &str, complaint: String) {
        let name = format!("{}/{case}", self.format.name());
        self.found.lock().unwrap().problems.insert(name, complaint);
    }

    /// Answers whether all was well.
    fn one_journal(&mut self, seed: u64, most: u64) -> bool {
        let mut chance = Chance::of(&[seed, 1]);
        let lives = (1 + chance.below(LIVES)).min(most.max(1));
        let mut journal = Journal::new(Path::new(""), seed);
        let mut done = self.begin(&mut journal);
        while done.is_ok() && journal.life < lives {
            done = self.live_and_be_cut(&mut journal, &mut chance);
            self.done += 1;
        }
        let pretence = self.pretence();
        let done = done.and_then(|()| {
            journal.ledger.check_writing(&journal.dir, pretence)?;
            check_files(&journal.dir)
        });
        {
            let mut found = self.found.lock().unwrap();
            found.count(&format!("power cuts of {}", self.format.name()), journal.life);
            found.count("acknowledged batches", journal.ledger.acknowledged);
            found.count("batches handed in", journal.ledger.submissions());
        }
        let Err(complaint) = done else { return true };
        let kept = keep_copy(&journal.dir);
        self.complain(&seed.to_string(), format!("life {}: {complaint} ({kept})", journal.life));
        false
    }

    fn pretence(&self) -> Pretence {
        Pretence { boot: Some(self.boot), lie: false }
    }

    /// A place for a new journal, on the mounted disk.
    fn begin(&mut self, journal: &mut Journal) -> Finding {
        if self.mounted.is_none() {
            self.mounted = Some(self.disk.mount("")?);
        }
        let top = self.mounted.as_ref().unwrap().dir();
        let dir = top.join("data");
        if dir.exists() {
            // A cut does not bring it back.
            let removed =
                std::fs::remove_dir_all(&dir).and_then(|()| Ok(rustix::fs::syncfs(File::open(top)?)?));
            removed.map_err(|error| format!("removing a journal: {error}"))?;
        }
        journal.dir = dir;
        Ok(())
    }

    fn live_and_be_cut(&mut self, journal: &mut Journal, chance: &mut Chance) -> Finding {
        let acks = chance.below(10);
        let flush = chance.one_in(2);
        let kill = chance.one_in(2);
        let mut orders = journal.orders(u64::MAX);
        orders.pretence = self.pretence();
        let mut worker = Process::start(&mut command(&[], &orders))?;
        worker.listen(&mut journal.ledger, acks, LONG)?;
        self.cut(flush)?;
        if kill {
            worker.kill();
        }
        let life = worker.end(&mut journal.ledger)?;
        if !matches!(life.end, End::Killed(9) | End::Failed) {
            return Err(format!("it wrote on behind the cut: {life:?}"));
        }
        self.start_again(chance)?;
        // Or in the same boot, as if the disk alone had been away.
        if !chance.one_in(4) {
            self.boot += 1;
        }
        journal.ledger.check_reading(&journal.dir, self.pretence(), false)?;
        if chance.one_in(2) { journal.ledger.check_writing(&journal.dir, self.pretence()) } else { Ok(()) }
    }

    /// Nothing that is not on the disk gets there any more; with `flush` what the file system has in
    /// its own journal still does.
    fn cut(&self, flush: bool) -> Finding {
        let dir = self.mounted.as_ref().unwrap().dir().to_str().unwrap();
        tool("xfs_io", &["-x", "-c", if flush { "shutdown -f" } else { "shutdown" }, dir]).map(drop)
    }

    fn start_again(&mut self, chance: &mut Chance) -> Finding {
        self.mounted.take().unwrap().end()?;
        let data = match (self.format, chance.one_in(2)) {
            (Format::Ext4, true) => "data=writeback",
            (Format::Ext4, false) => "data=ordered",
            (Format::Xfs, _) => "",
        };
        self.mounted = Some(self.disk.mount(data)?);
        Ok(())
    }

    /// Cuts the power of workers whose syncs do nothing: the ledger has to notice.
    fn control(&mut self) -> Finding {
        let mut lost = 0;
        let mut chance = Chance::of(&[0]);
        for seed in 0..CONTROL {
            let mut journal = Journal::new(Path::new(""), seed);
            self.begin(&mut journal)?;
            let mut orders = journal.orders(u64::MAX);
            orders.pretence.lie = true;
            let mut worker = Process::start(&mut command(&[], &orders))?;
            worker.listen(&mut journal.ledger, 10, LONG)?;
            self.cut(false)?;
            worker.kill();
            worker.end(&mut journal.ledger)?;
            self.start_again(&mut chance)?;
            lost +=
                u64::from(journal.ledger.check_reading(&journal.dir, Pretence::default(), false).is_err());
        }
        let mut found = self.found.lock().unwrap();
        found.count("power cuts of a worker that does not sync", CONTROL);
        found.count("of them seen to lose what was acknowledged", lost);
        if lost == 0 {
            Err("a worker that does not sync loses nothing: the cuts cut nothing".to_owned())
        } else {
            Ok(())
        }
    }
}
