//! A damaged directory on a real disk, read by both decoders: they come to the same verdict, name the same
//! damage at the same places, and show the same records, however much was done to it and whether or not
//! checksums were made for it.
//!
//! Two things are left open. Who finds a damaged mark with a busy word is told by the first to come again,
//! as a writer may be at work; the second reads directories nobody writes to. And of a payload that the
//! first would write otherwise than it stands there, the sum is not compared.

use crate::bodies::{difference, line};
use crate::journals::{Files, MARK, Node, ORIGINALS, damage};
use arbitrary::Unstructured;
use runwal::disk::{Kind, Session};
use runwal::engine::{Entry, Log, World};
use runwal::format::{MARK_SLOT_OFFSETS, Mark};
use runwal::position::Position;
use runwal::record::{Body, Record};
use runwal::testing::bodies::encode;
use runwal::{Error, ErrorKind};
use std::cell::RefCell;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A directory that is made again for each input.
struct Place {
    dir: TempDir,
    /// What stands in it.
    now: Files,
    /// What a mark says that was made here and now.
    session: Session,
}

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(Place::new());
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(copied) = input.arbitrary::<bool>() else { return };
    PLACE.with_borrow_mut(|place| {
        let mut files = ORIGINALS.files.clone();
        // What stands in the cache is for no one but its owner, and who lives neither.
        files.retain(|name, _| name.starts_with("journal/") && !name.starts_with("journal/live/"));
        if !copied {
            place.adopt_mark(&mut files);
        }
        // It is shown where this panics.
        let Ok(_done) = damage(&mut input, &mut files) else { return };
        files.retain(|name, _| name.starts_with("journal/"));
        place.make(&files);
        place.compare();
    });
}

#[expect(clippy::disallowed_methods, reason = "makes the damage behind the library's back")]
impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("journal")).expect("a folder");
        let world = World::existing(dir.path()).expect("a data directory");
        let session = world.disk.session().expect("the session");
        Self { dir, now: Files::new(), session }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the mark one that counts in this directory and this boot.
    fn adopt_mark(&mut self, files: &mut Files) {
        let path = self.path(MARK);
        if !matches!(self.now.get(MARK), Some(Node::File(_))) {
            self.remove(MARK);
            std::fs::write(&path, []).expect("a mark");
            self.now.insert(MARK.to_owned(), Node::File(Vec::new()));
        }
        let inode = std::fs::metadata(&path).expect("the mark").ino();
        let Some(Node::File(bytes)) = files.get_mut(MARK) else { return };
        for at in MARK_SLOT_OFFSETS.map(|at| usize::try_from(at).unwrap_or(usize::MAX)) {
            if let Some(mut mark) = Mark::decode(&bytes[at..]) {
                mark.inode = inode;
                mark.session = self.session;
                let slot = mark.encode();
                bytes[at..at + slot.len()].copy_from_slice(&slot);
            }
        }
    }

    fn remove(&self, name: &str) {
        let path = self.path(name);
        let gone = match self.now.get(name) {
            Some(Node::Other(Kind::Directory)) => std::fs::remove_dir(path),
            Some(_) => std::fs::remove_file(path),
            None => Ok(()),
        };
        gone.expect("what was made can be removed");
    }

    /// Makes these files of those that are there; a file that stays keeps its inode.
    fn make(&mut self, files: &Files) {
        for name in self.now.keys() {
            if !matches!((files.get(name), &self.now[name]), (Some(Node::File(_)), Node::File(_))) {
                self.remove(name);
            }
        }
        for (name, node) in files {
            let path = self.path(name);
            match node {
                Node::File(bytes) if self.now.get(name) != Some(node) => std::fs::write(path, bytes),
                Node::File(_) => Ok(()),
                Node::Other(Kind::Directory) => std::fs::create_dir(path),
                // Of the two the one that needs no more than a name.
                Node::Other(_) => std::os::unix::fs::symlink("nowhere", path),
            }
            .expect("the damage can be done");
        }
        self.now.clone_from(files);
    }

    fn compare(&self) {
        let path = self.dir.path().to_str().expect("a path in text");
        let Some(second) = crate::second::ask(format!("D{path}").as_bytes()) else { return };
        let first = match by_the_first(self.dir.path()) {
            Ok(first) => first,
            Err(error) => match error.kind() {
                ErrorKind::Unsupported => "unsupported\n".to_owned(),
                // Who finds a damaged mark with a busy word may be told to come again.
                ErrorKind::Retry => return,
                // Where nothing is, there is nothing to be judged.
                ErrorKind::NotFound if second.contains("\"segments\":0") => return,
                _ => panic!("the first does not read it: {} {error}\nsecond: {second}", error.kind().code()),
            },
        };
        let second = without_unknown_sums(&first, &normal(&second));
        assert!(first == second, "{}", difference(&first, &second));
    }
}

/// The answer of the second decoder with the report as the first one's: a list of damage in no order.
fn normal(answer: &str) -> String {
    let Some((report, records)) = answer.split_once('\n') else { return answer.to_owned() };
    let report: serde_json::Value = serde_json::from_str(report).expect("a report");
    let mut damage: Vec<String> = Vec::new();
    for one in report["damage"].as_array().into_iter().flatten() {
        let fields = ["segment", "offset", "from", "to", "accepted"].map(|key| one[key].to_string());
        damage.push(fields.join(" "));
    }
    let counts = ["records", "batches", "segments", "bytes", "durable"].map(|key| report[key].to_string());
    summary(report["verdict"].as_str().unwrap_or_default(), &counts, damage) + records
}

/// Takes the sums out of the second answer that the first one does not know.
fn without_unknown_sums(first: &str, second: &str) -> String {
    let mut firsts = first.lines();
    let mut out = String::new();
    for line in second.lines() {
        let unknown = firsts.next().is_some_and(|first| first.starts_with("- "));
        let _ = match line.split_once(' ') {
            Some((_, rest)) if unknown => writeln!(out, "- {rest}"),
            _ => writeln!(out, "{line}"),
        };
    }
    out
}

fn summary(verdict: &str, counts: &[String], mut damage: Vec<String>) -> String {
    damage.sort();
    damage.dedup();
    format!("{verdict} {}\n{}\n--\n", counts.join(" "), damage.join("\n"))
}

fn by_the_first(dir: &Path) -> Result<String, Error> {
    let mut log = Log::open(dir)?;
    let found = log.verify(&mut |_| {})?;
    let damage = found.damage.iter();
    let damage =
        damage.map(|d| format!("{} {} {} {} {}", d.segment, d.offset, d.from, d.to, d.accepted)).collect();
    let counts =
        [found.records, found.batches, found.segments, found.bytes, found.durable.0].map(|n| n.to_string());
    let mut answer = summary(found.verdict.word(), &counts, damage);
    let mut records = log.records(Position(1))?;
    while let Some(entry) = records.next()? {
        if let Entry::Record(record) = entry {
            let _ = write!(answer, "{} {}", payload_sum(&record), line(&record, version(&record)));
        }
    }
    Ok(answer)
}

fn version(record: &Record) -> u8 {
    match record.body {
        Body::Unknown { version, .. } => version,
        _ => 1,
    }
}

/// The CRC of a payload, which a record does not keep: of what would be written of it now, and `-` where
/// that is not what stood there.
fn payload_sum(record: &Record) -> String {
    match encode(&record.body) {
        Ok((payload, _)) if payload.len() as u64 == record.len => crc32fast::hash(&payload).to_string(),
        _ => "-".to_owned(),
    }
}
