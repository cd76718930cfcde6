//! Journals to damage, and the damage: shared by the targets that look at whole directories.

use arbitrary::{Arbitrary, Result, Unstructured};
use runwal::disk::Kind;
use runwal::disk::sim::{Fault, SimWorld};
use runwal::format::{BATCH_HEADER_LEN, HEADER_COPY_LEN, HeaderBlock, Mark, SEGMENT_DATA_START, Site};
use runwal::record::Record;
use runwal::testing::stage::{Stage, read_all};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// More is not done to one directory.
const MAX_STROKES: usize = 12;
/// No file becomes longer.
const MAX_LEN: usize = 16 << 10;

/// What stands at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A file with these bytes.
    File(Vec<u8>),
    /// Something else.
    Other(Kind),
}

/// A data directory: what stands at which path.
pub type Files = BTreeMap<String, Node>;

/// The undamaged journals.
#[derive(Debug)]
pub struct Originals {
    /// The machine whose directory is damaged.
    pub stage: Stage,
    /// Its files.
    pub files: Files,
    /// Those of a copy that went its own way from the middle on.
    diverged: Files,
    /// Those of another journal.
    foreign: Files,
    /// Every record of all three.
    known: Vec<Record>,
    /// How many records the first one has.
    pub records: u64,
}

/// Made once.
pub static ORIGINALS: LazyLock<Originals> = LazyLock::new(Originals::make);

/// Some sealed segments, of which one was closed by recovery, and an active one; a run of each kind:
/// ended, ended by recovery, and left by a recorder that was killed.
fn begin(stage: &mut Stage) -> Option<()> {
    let writer = stage.open(1)?;
    let run = stage.begin(&writer, "a");
    for len in [60, 20, 300, 40, 200] {
        stage.append(&writer, run, &[len, 10]);
    }
    stage.world.fail_at(stage.world.operations() + 3, Fault::Kill);
    stage.expect_faults(true);
    stage.append(&writer, run, &[30]);
    stage.expect_faults(false);
    stage.world.clear_faults();
    Some(())
}

fn go_on(stage: &mut Stage, lens: &[usize]) -> Option<()> {
    let writer = stage.open(1)?;
    let run = stage.begin(&writer, "b");
    for len in lens {
        stage.append(&writer, run, &[*len, 8]);
        stage.append_keyed(&writer, run, 12);
    }
    stage.tick(&writer);
    stage.finish(&writer, run);
    let left = stage.begin(&writer, "c");
    stage.append(&writer, left, &[25]);
    writer.disk.kill();
    Some(())
}

fn settled(stage: &mut Stage) {
    stage.world = stage.world.fork();
    // Reading may sync; nothing is left for that to change.
    stage.world.volatile().iter().for_each(|unit| stage.world.write_back(unit));
}

fn files_of(world: &SimWorld) -> Files {
    let names = world.names().into_iter();
    names.filter_map(|name| Some((name.clone(), Node::File(world.read_file(&name).ok()?)))).collect()
}

fn records_of(stage: &mut Stage) -> Vec<Record> {
    let mut log = stage.open_log(1).expect("an original can be opened");
    let (records, damage) = read_all(&mut log).expect("an original can be read");
    assert!(damage.is_empty() && stage.problems.is_empty(), "{damage:?} {:?}", stage.problems);
    records
}

impl Originals {
    fn make() -> Self {
        let mut stage = Stage::new(2600, 2600);
        begin(&mut stage).expect("recorded");
        let mut diverged = stage.fork().seeded(9);
        go_on(&mut stage, &[90, 120, 15]).expect("recorded");
        go_on(&mut diverged, &[70, 130, 15, 40]).expect("recorded");
        let mut foreign = Stage::new(2600, 2600).seeded(7);
        begin(&mut foreign).expect("recorded");
        go_on(&mut foreign, &[5]).expect("recorded");
        let mut known = Vec::new();
        let mut records = 0;
        for one in [&mut stage, &mut diverged, &mut foreign] {
            settled(one);
            known.extend(records_of(one));
            records = if records == 0 { known.len() as u64 } else { records };
        }
        let [files, diverged, foreign] = [&stage, &diverged, &foreign].map(|one| files_of(&one.world));
        Self { stage, files, diverged, foreign, known, records }
    }

    /// Whether somebody wrote this record, at this place.
    pub fn knows(&self, record: &Record) -> bool {
        self.known.contains(record)
    }

    /// The machine with these files.
    pub fn machine(&self, files: &Files) -> SimWorld {
        let world = self.stage.world.fork();
        let gone = self.files.iter().filter(|(name, node)| files.get(*name) != Some(*node));
        let done = || {
            for (name, _) in gone.filter(|(name, _)| !matches!(files.get(*name), Some(Node::File(_)))) {
                world.remove_file(name)?;
            }
            for (name, node) in files.iter().filter(|(name, node)| self.files.get(*name) != Some(*node)) {
                match node {
                    Node::File(bytes) => world.write_file(name, bytes)?,
                    Node::Other(kind) => world.plant(name, *kind)?,
                }
            }
            Ok::<_, runwal::Error>(())
        };
        done().expect("the damage can be done");
        world
    }
}

/// The files that are damaged, or appear: an index into a list.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Which(u8);

const NAMES: [&str; 15] = [
    "journal/0000000001.seg",
    "journal/0000000002.seg",
    "journal/0000000003.seg",
    "journal/0000000004.seg",
    "journal/0000000005.seg",
    "journal/0000000006.seg",
    "journal/0000000007.seg",
    "journal/0000000008.seg",
    MARK,
    "journal/0000000012.seg",
    "journal/18446744073709551615.seg",
    LOCK,
    "cache/index/0000000001.idx",
    "cache/index/0000000002.idx",
    "journal/spare-1",
];
const SEGMENTS: u8 = 8;

impl Which {
    fn name(self) -> &'static str {
        NAMES[usize::from(self.0) % NAMES.len()]
    }

    fn segment(self) -> &'static str {
        NAMES[usize::from(self.0 % SEGMENTS)]
    }
}

/// A few bytes.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Few {
    bytes: [u8; 8],
    len: u8,
}

impl Few {
    fn get(&self) -> &[u8] {
        &self.bytes[..=usize::from(self.len % 8)]
    }
}

/// What is put right behind a change of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Arbitrary)]
enum Right {
    Sums,
    Digest,
    Chain,
}

/// What befalls a directory.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Stroke {
    Flip { file: Which, at: u16, mask: u8 },
    Cut { file: Which, len: u16 },
    Zero { file: Which, sector: u8 },
    Write { file: Which, at: u16, what: Few },
    Append { file: Which, what: Few },
    Insert { file: Which, at: u16, what: Few },
    Splice { from: Which, start: u16, len: u16, to: Which, at: u16 },
    Make { file: Which, what: Few, times: u8 },
    Delete { file: Which },
    Swap { one: Which, other: Which },
    Copy { from: Which, to: Which },
    Foreign { file: Which, to: Which },
    Diverged { file: Which, to: Which },
    Plant { file: Which, kind: u8 },
    Header { file: Which, at: u16, what: Few },
    Batch { file: Which, index: u8, at: u8, what: Few, right: Right },
    Body { file: Which, index: u8, at: u16, what: Few, right: Right },
    MarkSlot { slot: bool, at: u8, what: Few },
}

/// What befell a directory.
#[derive(Debug, Default)]
pub struct Damage {
    /// Checksums were made for it, so that anything may be read.
    pub crafted: bool,
    /// The mark was touched.
    pub mark: bool,
    strokes: Vec<Stroke>,
}

/// Whoever replays an input that is answered wrongly wants to know what it does.
impl Drop for Damage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{self:?}");
        }
    }
}

/// Takes strokes from the input until it ends, and does them.
pub fn damage(input: &mut Unstructured<'_>, files: &mut Files) -> Result<Damage> {
    let mut done = Damage::default();
    let before = files.get(MARK).cloned();
    for _ in 0..MAX_STROKES {
        if input.is_empty() {
            break;
        }
        let stroke = Stroke::arbitrary(input)?;
        done.crafted |= stroke.is_crafted();
        stroke.apply(files);
        done.strokes.push(stroke);
    }
    done.mark = files.get(MARK) != before.as_ref();
    Ok(done)
}

/// Where the mark is.
pub const MARK: &str = "journal/mark";
const LOCK: &str = "journal/lock";

fn file<'f>(files: &'f mut Files, name: &str) -> Option<&'f mut Vec<u8>> {
    match files.get_mut(name) {
        Some(Node::File(bytes)) => Some(bytes),
        _ => None,
    }
}

/// A place within bytes; 0 where there are none.
fn within(at: u16, len: usize) -> usize {
    usize::from(at) % len.max(1)
}

impl Stroke {
    fn is_crafted(self) -> bool {
        matches!(self, Self::Header { .. } | Self::Batch { .. } | Self::Body { .. } | Self::MarkSlot { .. })
    }

    fn apply(self, files: &mut Files) {
        match self {
            Self::Delete { file } => drop(files.remove(file.name())),
            Self::Swap { one, other } => {
                let (a, b) = (files.remove(one.name()), files.remove(other.name()));
                files.extend(a.map(|node| (other.name().to_owned(), node)));
                files.extend(b.map(|node| (one.name().to_owned(), node)));
            }
            Self::Copy { from, to } => {
                let node = files.get(from.name()).cloned();
                files.extend(node.map(|node| (to.name().to_owned(), node)));
            }
            Self::Foreign { file, to } => Self::bring(&ORIGINALS.foreign, file, to, files),
            Self::Diverged { file, to } => Self::bring(&ORIGINALS.diverged, file, to, files),
            Self::Plant { file, kind } => {
                let kind = [Kind::Directory, Kind::Symlink, Kind::Special][usize::from(kind % 3)];
                files.insert(file.name().to_owned(), Node::Other(kind));
            }
            Self::Make { file, what, times } => {
                let bytes = what.get().repeat(usize::from(times) * 4);
                files.insert(file.name().to_owned(), Node::File(bytes));
            }
            Self::Splice { from, start, len, to, at } => {
                let Some(Node::File(source)) = files.get(from.name()) else { return };
                let start = within(start, source.len());
                let end = source.len().min(start + usize::from(len));
                let piece = source[start..end].to_vec();
                if let Some(bytes) = file(files, to.name()) {
                    let at = within(at, bytes.len() + 1);
                    overwrite(bytes, at, &piece);
                }
            }
            Self::Header { file: which, at, what } => {
                if let Some(bytes) = file(files, which.segment()) {
                    rewrite_header(bytes, usize::from(at), what.get());
                }
            }
            Self::Batch { file: which, index, at, what, right } => {
                if let Some(bytes) = file(files, which.segment()) {
                    rewrite_batch(
                        bytes,
                        index,
                        |batch| overwrite_in(batch, usize::from(at), what.get()),
                        right,
                    );
                }
            }
            Self::Body { file: which, index, at, what, right } => {
                let change = |batch: &mut [u8]| {
                    let body = &mut batch[BATCH_HEADER_LEN..];
                    overwrite_in(body, within(at, body.len()), what.get());
                };
                if let Some(bytes) = file(files, which.segment()) {
                    rewrite_batch(bytes, index, change, right);
                }
            }
            Self::MarkSlot { slot, at, what } => {
                if let Some(bytes) = file(files, MARK) {
                    rewrite_mark(bytes, slot, usize::from(at), what.get());
                }
            }
            Self::Flip { .. }
            | Self::Cut { .. }
            | Self::Zero { .. }
            | Self::Write { .. }
            | Self::Append { .. }
            | Self::Insert { .. } => self.scratch(files),
        }
    }

    /// Damage to the bytes of one file.
    fn scratch(self, files: &mut Files) {
        let (Self::Flip { file: which, .. }
        | Self::Cut { file: which, .. }
        | Self::Zero { file: which, .. }
        | Self::Write { file: which, .. }
        | Self::Append { file: which, .. }
        | Self::Insert { file: which, .. }) = self
        else {
            return;
        };
        let Some(bytes) = file(files, which.name()) else { return };
        match self {
            Self::Flip { at, mask, .. } => {
                let at = within(at, bytes.len());
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask.max(1));
            }
            Self::Cut { len, .. } => bytes.truncate(usize::from(len)),
            Self::Zero { sector, .. } => {
                bytes.iter_mut().skip(usize::from(sector) * 512).take(512).for_each(|byte| *byte = 0);
            }
            Self::Write { at, what, .. } => {
                let at = within(at, bytes.len());
                overwrite(bytes, at, what.get());
            }
            Self::Append { what, .. } => overwrite(bytes, bytes.len(), what.get()),
            Self::Insert { at, what, .. } => {
                let at = within(at, bytes.len() + 1);
                bytes.splice(at..at, what.get().iter().copied());
                bytes.truncate(MAX_LEN);
            }
            _ => {}
        }
    }

    fn bring(from: &Files, which: Which, to: Which, files: &mut Files) {
        let node = from.get(which.name()).cloned();
        files.extend(node.map(|node| (to.name().to_owned(), node)));
    }
}

/// Writes over what stands there; the file may grow.
fn overwrite(bytes: &mut Vec<u8>, at: usize, what: &[u8]) {
    let end = (at + what.len()).min(MAX_LEN);
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    overwrite_in(bytes, at, what);
}

fn overwrite_in(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes.iter_mut().skip(at).zip(what).for_each(|(byte, new)| *byte = *new);
}

/// Puts the checksum behind some bytes right.
fn seal(bytes: &mut [u8], sum: u32) {
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&sum.to_le_bytes());
}

fn rewrite_header(bytes: &mut [u8], at: usize, what: &[u8]) {
    let data_start = usize::try_from(SEGMENT_DATA_START).unwrap_or(usize::MAX);
    let Some(block) = bytes.get_mut(..data_start) else { return };
    // Mostly the fields, which end with the positions given up.
    let at = at % if at > 0xf000 { HEADER_COPY_LEN } else { 160 };
    for copy in block.chunks_exact_mut(HEADER_COPY_LEN) {
        overwrite_in(copy, at, what);
        let sum = crc32fast::hash(&copy[..HEADER_COPY_LEN - 4]);
        seal(copy, sum);
    }
}

fn rewrite_mark(bytes: &mut [u8], slot: bool, at: usize, what: &[u8]) {
    let start = if slot { 512 } else { 0 };
    let Some(slot) = bytes.get_mut(start..start + Mark::LEN) else { return };
    overwrite_in(slot, at % (Mark::LEN - 4), what);
    let sum = crc32fast::hash(&slot[..Mark::LEN - 4]);
    seal(slot, sum);
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Where the batches of a segment stand; the end of the last one as the last.
fn batches(bytes: &[u8]) -> Vec<usize> {
    let mut found = vec![usize::try_from(SEGMENT_DATA_START).unwrap_or(usize::MAX)];
    while let Some(&at) = found.last()
        && number(bytes, at) == Some(*b"RWB1")
        && let Some(len) = number(bytes, at + 8).map(u32::from_le_bytes)
    {
        let end = at + BATCH_HEADER_LEN + usize::try_from(len).unwrap_or(usize::MAX);
        if end > bytes.len() {
            break;
        }
        found.push(end);
    }
    found
}

/// Changes a batch and puts its sums right, and with [`Right::Chain`] those of all behind it.
fn rewrite_batch(bytes: &mut [u8], index: u8, change: impl Fn(&mut [u8]), right: Right) {
    let Ok(block) = HeaderBlock::decode(bytes) else { return };
    let (site, mut chain) = (block.header.site(), block.header.chain);
    let all = batches(bytes);
    let Some(count) = all.len().checked_sub(1).filter(|count| *count > 0) else { return };
    let index = usize::from(index) % count;
    if index > 0
        && let Some(before) = number(bytes, all[index - 1] + 80)
    {
        chain = before;
    }
    change(&mut bytes[all[index]..all[index + 1]]);
    let end = if right == Right::Chain { count } else { index + 1 };
    for pair in all[index..=end].windows(2) {
        chain = seal_batch(&mut bytes[pair[0]..pair[1]], pair[0], right, chain, &site);
    }
}

fn seal_batch(batch: &mut [u8], at: usize, right: Right, chain: [u8; 32], site: &Site) -> [u8; 32] {
    let (header, body) = batch.split_at_mut(BATCH_HEADER_LEN);
    header[20..24].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    if right >= Right::Digest {
        header[48..80].copy_from_slice(blake3::hash(body).as_bytes());
    }
    if right == Right::Chain {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&chain).update(&header[24..32]).update(&header[16..20]);
        hasher.update(&header[32..40]).update(&header[48..80]);
        header[80..112].copy_from_slice(hasher.finalize().as_bytes());
    }
    let mut sum = crc32fast::Hasher::new();
    sum.update(&site.journal);
    for part in [site.segment, site.salt, at as u64] {
        sum.update(&part.to_le_bytes());
    }
    sum.update(&header[..BATCH_HEADER_LEN - 4]);
    seal(header, sum.finalize());
    number(header, 80).unwrap_or_default()
}
