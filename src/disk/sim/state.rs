//! The machine: inodes, names, processes, and what becomes durable when.

use super::content::{Bytes, Data, Digest, mix};
use super::{Fault, Operation, SECTOR, Unit};
use crate::disk::{Kind, Open, Stat};
use crate::error::{Error, Result};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) const DEVICE: u64 = 0x51;
/// A file does not get longer than this: a wrong offset should fail, not fill the memory.
const MAX_LEN: u64 = 1 << 32;
const MAX_NAME_LEN: usize = 255;

pub(super) type Entries = BTreeMap<Arc<str>, u64>;

#[derive(Clone)]
pub(super) enum Body {
    File(Data),
    Directory { now: Entries, durable: Entries },
    Other(Kind),
}

impl Body {
    pub(super) fn new(kind: Kind) -> Self {
        match kind {
            Kind::File => Self::File(Data::durable(Bytes::default())),
            Kind::Directory => Self::Directory { now: Entries::new(), durable: Entries::new() },
            other => Self::Other(other),
        }
    }

    /// Adds what is durable of it, but not what stands in a directory.
    pub(super) fn add_durable(&self, number: u64, digest: &mut Digest) {
        match self {
            Self::File(data) if data.is_settled() => data.durable.add_to(number, digest),
            Self::File(data) => data.after(std::iter::empty()).durable.add_to(number, digest),
            Self::Directory { durable, .. } => add_entries(number, durable, digest),
            Self::Other(kind) => digest.add(&[number, u64::MAX - 2, *kind as u64]),
        }
    }
}

#[derive(Clone)]
pub(super) struct Inode {
    pub(super) modified_ns: i64,
    pub(super) body: Body,
}

impl Inode {
    pub(super) fn kind(&self) -> Kind {
        match &self.body {
            Body::File(_) => Kind::File,
            Body::Directory { .. } => Kind::Directory,
            Body::Other(kind) => *kind,
        }
    }
}

/// `name` in `directory` becomes `inode`, or nothing.
#[derive(Clone)]
pub(super) struct Edit {
    pub(super) directory: u64,
    pub(super) name: Arc<str>,
    pub(super) inode: Option<u64>,
}

impl Edit {
    fn apply(&self, entries: &mut Entries) {
        match self.inode {
            Some(inode) => _ = entries.insert(Arc::clone(&self.name), inode),
            None => _ = entries.remove(&self.name),
        }
    }
}

/// One volatile change of directories.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) order: u64,
    pub(super) edits: Vec<Edit>,
}

#[derive(Clone, Copy)]
pub(super) struct Holder {
    pub(super) process: u64,
    pub(super) opening: u64,
}

/// Looks fail with this error from one on, or only that one.
#[derive(Clone, Copy)]
pub(super) struct LookFault {
    pub(super) at: u64,
    pub(super) errno: i32,
    pub(super) sticky: bool,
}

#[derive(Clone)]
pub(super) struct State {
    pub(super) boot: u64,
    pub(super) powered: bool,
    pub(super) root: u64,
    pub(super) inodes: BTreeMap<u64, Arc<Inode>>,
    pub(super) next_inode: u64,
    /// Not durable yet, in the order of being made.
    pub(super) changes: Vec<Change>,
    /// Counts every write, change and opening.
    pub(super) order: u64,
    pub(super) processes: u64,
    pub(super) alive: BTreeSet<u64>,
    pub(super) locks: BTreeMap<u64, Holder>,
    pub(super) operations: u64,
    pub(super) faults: BTreeMap<u64, Fault>,
    pub(super) looks: u64,
    pub(super) look_faults: Vec<LookFault>,
    pub(super) sticky: Option<Fault>,
    pub(super) trace: Option<Arc<Vec<Operation>>>,
}

pub(super) fn refused(doing: &str, name: &str, errno: Errno) -> Error {
    Error::io(format!("{doing} {name}"), errno.into())
}

fn failed(name: &str, errno: i32) -> Error {
    Error::io(format!("simulated failure on {name}"), std::io::Error::from_raw_os_error(errno))
}

fn hash_name(name: &str) -> u64 {
    let part = |bytes: &[u8]| bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    name.as_bytes().chunks(8).fold(0, |hash: u64, bytes| mix(hash.rotate_left(17) ^ part(bytes)))
}

fn add_entries(directory: u64, entries: &Entries, digest: &mut Digest) {
    for (name, inode) in entries {
        digest.add(&[directory, u64::MAX - 1, *inode, hash_name(name)]);
    }
}

impl State {
    // Names.

    pub(super) fn inode(&self, inode: u64) -> &Inode {
        &self.inodes[&inode]
    }

    fn body_mut(&mut self, inode: u64) -> Option<&mut Body> {
        self.inodes.get_mut(&inode).map(|inode| &mut Arc::make_mut(inode).body)
    }

    pub(super) fn data_mut(&mut self, inode: u64) -> Result<&mut Data, Errno> {
        match self.body_mut(inode) {
            Some(Body::File(data)) => Ok(data),
            _ => Err(Errno::ISDIR),
        }
    }

    pub(super) fn data(&self, inode: u64) -> Result<&Data, Errno> {
        match &self.inode(inode).body {
            Body::File(data) => Ok(data),
            _ => Err(Errno::ISDIR),
        }
    }

    pub(super) fn entries(&self, directory: u64) -> Result<&Entries, Errno> {
        match &self.inode(directory).body {
            Body::Directory { now, .. } => Ok(now),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Visits every directory below the root on the way to the one of this name.
    fn walk(&self, name: &str, visit: &mut dyn FnMut(u64)) -> Result<(), Errno> {
        let mut at = self.root;
        for part in name.split('/') {
            match part {
                "" | ".." => return Err(Errno::INVAL),
                "." => continue,
                _ => {}
            }
            at = *self.entries(at)?.get(part).ok_or(Errno::NOENT)?;
            self.entries(at)?;
            visit(at);
        }
        Ok(())
    }

    /// Every directory from the root to the one of this name.
    fn directories(&self, name: &str) -> Result<Vec<u64>, Errno> {
        let mut way = vec![self.root];
        self.walk(name, &mut |directory| way.push(directory))?;
        Ok(way)
    }

    pub(super) fn directory(&self, name: &str) -> Result<u64, Errno> {
        let mut at = self.root;
        self.walk(name, &mut |directory| at = directory)?;
        Ok(at)
    }

    /// The directory a name stands in, and the last component.
    pub(super) fn parent<'n>(&self, name: &'n str) -> Result<(u64, &'n str), Errno> {
        let (dir, last) = name.rsplit_once('/').unwrap_or((".", name));
        if matches!(last, "" | "." | "..") || name.contains('\0') {
            return Err(Errno::INVAL);
        }
        if last.len() > MAX_NAME_LEN {
            return Err(Errno::NAMETOOLONG);
        }
        Ok((self.directory(dir)?, last))
    }

    pub(super) fn lookup(&self, name: &str) -> Result<u64, Errno> {
        if name == "." {
            return Ok(self.root);
        }
        let (dir, last) = self.parent(name)?;
        self.entries(dir)?.get(last).copied().ok_or(Errno::NOENT)
    }

    pub(super) fn stat(&self, number: u64) -> Stat {
        let inode = self.inode(number);
        let len = if let Body::File(data) = &inode.body { data.now.len } else { 0 };
        let allocated = len.next_multiple_of(SECTOR);
        let (kind, modified_ns) = (inode.kind(), inode.modified_ns);
        Stat { kind, len, allocated, inode: number, device: DEVICE, modified_ns }
    }

    /// Calls `visit` with the path of everything below a directory, as processes see it.
    pub(super) fn visit(&self, directory: u64, prefix: &str, visit: &mut dyn FnMut(String, u64)) {
        for (name, inode) in self.entries(directory).into_iter().flatten() {
            let path = format!("{prefix}{name}");
            self.visit(*inode, &format!("{path}/"), visit);
            visit(path, *inode);
        }
    }

    // Changes.

    fn touch(&mut self, inode: u64) {
        self.order += 1;
        let now = i64::try_from(self.order).unwrap_or(i64::MAX);
        if let Some(inode) = self.inodes.get_mut(&inode) {
            Arc::make_mut(inode).modified_ns = now;
        }
    }

    fn add(&mut self, body: Body) -> u64 {
        let number = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(number, Arc::new(Inode { modified_ns: 0, body }));
        self.touch(number);
        number
    }

    fn change(&mut self, edits: Vec<Edit>) {
        for edit in &edits {
            if let Some(Body::Directory { now, .. }) = self.body_mut(edit.directory) {
                edit.apply(now);
            }
            self.touch(edit.directory);
        }
        self.changes.push(Change { order: self.order, edits });
    }

    pub(super) fn link(&mut self, directory: u64, name: &str, kind: Kind) -> u64 {
        let inode = self.add(Body::new(kind));
        self.change(vec![Edit { directory, name: name.into(), inode: Some(inode) }]);
        inode
    }

    pub(super) fn open(&mut self, name: &str, how: Open) -> Result<u64, Errno> {
        let creates = matches!(how, Open::WriteOrCreate | Open::CreateNew);
        let inode = match self.lookup(name) {
            Err(Errno::NOENT) if creates => {
                let (directory, last) = self.parent(name)?;
                return Ok(self.link(directory, last, Kind::File));
            }
            other => other?,
        };
        match (how, self.inode(inode).kind()) {
            (Open::CreateNew, _) => Err(Errno::EXIST),
            (Open::Directory, Kind::Directory) => Ok(inode),
            (Open::Directory, _) => Err(Errno::NOTDIR),
            (_, Kind::Symlink) => Err(Errno::LOOP),
            (Open::Write | Open::WriteOrCreate, Kind::Directory) => Err(Errno::ISDIR),
            _ => Ok(inode),
        }
    }

    pub(super) fn create_dir(&mut self, name: &str) -> Result<bool, Errno> {
        let (directory, last) = self.parent(name)?;
        let free = !self.entries(directory)?.contains_key(last);
        if free {
            self.link(directory, last, Kind::Directory);
        }
        Ok(free)
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, replace: bool) -> Result<bool, Errno> {
        let (from_dir, from_last) = self.parent(from)?;
        let (to_dir, to_last) = self.parent(to)?;
        let inode = *self.entries(from_dir)?.get(from_last).ok_or(Errno::NOENT)?;
        let target = self.entries(to_dir)?.get(to_last).copied();
        if target.is_some() && !replace {
            return Ok(false);
        }
        let above = |name: &str| self.directories(name.rsplit_once('/').map_or(".", |(dir, _)| dir));
        if above(to)?.contains(&inode) {
            return Err(Errno::INVAL);
        }
        if let Some(target) = target {
            match (self.entries(inode).is_ok(), self.entries(target).map(BTreeMap::is_empty)) {
                _ if target == inode => return Ok(true),
                _ if above(from)?.contains(&target) => return Err(Errno::NOTEMPTY),
                (true, Ok(true)) | (false, Err(_)) => {}
                (true, Ok(false)) => return Err(Errno::NOTEMPTY),
                (true, Err(_)) => return Err(Errno::NOTDIR),
                (false, Ok(_)) => return Err(Errno::ISDIR),
            }
        }
        self.change(vec![
            Edit { directory: from_dir, name: from_last.into(), inode: None },
            Edit { directory: to_dir, name: to_last.into(), inode: Some(inode) },
        ]);
        Ok(true)
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<(), Errno> {
        let (directory, last) = self.parent(name)?;
        let inode = *self.entries(directory)?.get(last).ok_or(Errno::NOENT)?;
        if self.entries(inode).is_ok() {
            return Err(Errno::ISDIR);
        }
        self.change(vec![Edit { directory, name: last.into(), inode: None }]);
        Ok(())
    }

    pub(super) fn write(&mut self, inode: u64, bytes: &[u8], offset: u64) -> Result<(), Errno> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= MAX_LEN);
        end.ok_or(Errno::FBIG)?;
        let mut order = self.order;
        self.data_mut(inode)?.write(bytes, offset, &mut order);
        self.order = order;
        self.touch(inode);
        Ok(())
    }

    pub(super) fn set_len(&mut self, inode: u64, len: u64) -> Result<(), Errno> {
        if len > MAX_LEN {
            return Err(Errno::FBIG);
        }
        let mut order = self.order;
        self.data_mut(inode)?.set_len(len, &mut order);
        self.order = order;
        self.touch(inode);
        Ok(())
    }

    // Durability.

    /// All units a power cut may keep or lose, in the order of writing.
    pub(super) fn units(&self) -> Vec<Unit> {
        let mut named = BTreeSet::new();
        for inode in self.inodes.values() {
            if let Body::Directory { durable, .. } = &inode.body {
                named.extend(durable.values().copied());
            }
        }
        let mut units = Vec::new();
        for change in &self.changes {
            named.extend(change.edits.iter().filter_map(|edit| edit.inode));
            let directory = change.edits[change.edits.len() - 1].directory;
            units.push(Unit::Entry { directory, order: change.order });
        }
        for (number, inode) in &self.inodes {
            match &inode.body {
                Body::File(data) if !data.is_settled() && named.contains(number) => {
                    units.extend(data.units(*number));
                }
                _ => {}
            }
        }
        units.sort_unstable_by_key(Unit::order);
        units
    }

    /// Makes the chosen changes of directories durable, with the earlier ones of the same names.
    pub(super) fn settle(&mut self, mut chosen: impl FnMut(&Change) -> bool) {
        let mut names = BTreeSet::new();
        let mut durable = Vec::new();
        for change in std::mem::take(&mut self.changes).into_iter().rev() {
            let key = |edit: &Edit| (edit.directory, Arc::clone(&edit.name));
            if chosen(&change) || change.edits.iter().any(|edit| names.contains(&key(edit))) {
                names.extend(change.edits.iter().map(key));
                durable.extend(change.edits.into_iter().rev());
            } else {
                self.changes.push(change);
            }
        }
        self.changes.reverse();
        for edit in durable.into_iter().rev() {
            if let Some(Body::Directory { durable, .. }) = self.body_mut(edit.directory) {
                edit.apply(durable);
            }
        }
    }

    /// How many units a sync is to make durable.
    fn units_of(&self, what: Option<u64>) -> u64 {
        let concerned = |change: &&Change| {
            what.is_none_or(|inode| change.edits.iter().any(|edit| edit.directory == inode))
        };
        let files = self.inodes.iter().filter(|(number, _)| what.is_none_or(|what| what == **number));
        let units = files.map(|(number, inode)| match &inode.body {
            Body::File(data) if !data.is_settled() => data.units(*number).len(),
            _ => 0,
        });
        (self.changes.iter().filter(concerned).count() + units.sum::<usize>()) as u64
    }

    /// Makes durable what `survives` permits of one file or directory, or of everything, and
    /// forgets that the rest is not.
    pub(super) fn sync(&mut self, what: Option<u64>, survives: &mut dyn FnMut() -> bool) {
        let concerned = |change: &Change| {
            what.is_none_or(|inode| change.edits.iter().any(|edit| edit.directory == inode))
        };
        let surviving = |change: &&Change| concerned(change) && survives();
        let orders: Vec<_> = self.changes.iter().filter(surviving).map(|change| change.order).collect();
        self.settle(|change| orders.contains(&change.order));
        self.changes.retain(|change| !concerned(change));
        for (number, inode) in &mut self.inodes {
            let wanted = what.is_none_or(|what| what == *number);
            if matches!(&inode.body, Body::File(data) if wanted && !data.is_settled())
                && let Body::File(data) = &mut Arc::make_mut(inode).body
            {
                data.sync(survives);
            }
        }
    }

    /// The same machine in its next boot, without its files.
    pub(super) fn rebooted(&self) -> Self {
        let trace = self.trace.as_ref().map(|_| Arc::default());
        let (boot, root, next_inode, order) = (self.boot + 1, self.root, self.next_inode, self.order);
        Self { boot, root, inodes: BTreeMap::new(), next_inode, order, trace, ..Self::empty() }
    }

    pub(super) fn empty() -> Self {
        let root = Inode { modified_ns: 0, body: Body::new(Kind::Directory) };
        Self {
            boot: 1,
            powered: true,
            root: 1,
            inodes: BTreeMap::from([(1, Arc::new(root))]),
            next_inode: 2,
            changes: Vec::new(),
            order: 0,
            processes: 0,
            alive: BTreeSet::new(),
            locks: BTreeMap::new(),
            operations: 0,
            faults: BTreeMap::new(),
            looks: 0,
            look_faults: Vec::new(),
            sticky: None,
            trace: None,
        }
    }

    /// Of what is durable.
    pub(super) fn digest(&self) -> u128 {
        let mut digest = Digest::default();
        self.add_durable(self.root, &mut digest);
        digest.value()
    }

    /// Of what is read, what is durable, and what lies between.
    pub(super) fn digest_of_all(&self) -> u128 {
        let mut digest = Digest::default();
        let mut found = vec![self.root];
        while let Some(number) = found.pop() {
            match &self.inode(number).body {
                Body::File(data) => data.now.add_to(number, &mut digest),
                Body::Directory { now, .. } => {
                    found.extend(now.values());
                    add_entries(number, now, &mut digest);
                }
                Body::Other(_) => {}
            }
        }
        for (nth, unit) in (0..).zip(self.units()) {
            let (what, which) = match unit {
                Unit::Sector { inode, sector, fresh, .. } => (inode, 4 * sector + u64::from(fresh)),
                Unit::Length { inode, .. } => (inode, 2),
                Unit::Entry { directory, .. } => (directory, 3),
            };
            digest.add(&[u64::MAX - 3, nth, what, which]);
        }
        for (nth, change) in (0..).zip(&self.changes) {
            for edit in &change.edits {
                let inode = edit.inode.unwrap_or(0);
                digest.add(&[u64::MAX - 4, nth, edit.directory, inode, hash_name(&edit.name)]);
            }
        }
        digest.add(&[u64::MAX - 5]);
        self.add_durable(self.root, &mut digest);
        digest.value()
    }

    /// Adds what is durable of a file or directory, and of everything below it.
    fn add_durable(&self, number: u64, digest: &mut Digest) {
        let body = &self.inode(number).body;
        body.add_durable(number, digest);
        if let Body::Directory { durable, .. } = body {
            durable.values().for_each(|inode| self.add_durable(*inode, digest));
        }
    }

    // Processes and faults.

    pub(super) fn check(&self, process: u64) -> Result<()> {
        let why = match (self.powered, self.alive.contains(&process)) {
            (true, true) => return Ok(()),
            (false, _) => "the power is cut",
            (true, false) => "process is dead",
        };
        Err(Error::io("simulated disk", std::io::Error::other(why)))
    }

    /// Counts one look at the disk.
    pub(super) fn look(&mut self, process: u64, name: &str) -> Result<()> {
        self.check(process)?;
        self.looks += 1;
        let now = self.looks;
        let hit = |fault: &&LookFault| fault.at == now || (fault.sticky && fault.at < now);
        match self.look_faults.iter().find(hit) {
            Some(fault) => Err(failed(name, fault.errno)),
            None => Ok(()),
        }
    }

    /// The same machine with every process gone.
    pub(super) fn without_processes(&self) -> Self {
        Self { alive: BTreeSet::new(), locks: BTreeMap::new(), ..self.clone() }
    }

    pub(super) fn kill(&mut self, process: u64) {
        self.alive.remove(&process);
        self.locks.retain(|_, holder| holder.process != process);
    }

    /// Counts one operation, and answers with the fault of it that is left to be done.
    pub(super) fn begin(
        &mut self,
        process: u64,
        kind: &'static str,
        file: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Fault>> {
        self.check(process)?;
        self.operations += 1;
        let number = self.operations;
        if let Some(trace) = &mut self.trace {
            Arc::make_mut(trace).push(Operation {
                number,
                process,
                kind,
                file: file.to_owned(),
                offset,
                len,
            });
        }
        let fault = self.faults.remove(&number).or(self.sticky);
        match fault {
            Some(Fault::Kill) => self.kill(process),
            Some(Fault::Panic) => panic!("a planned panic in {kind} {file}"),
            Some(Fault::PowerCut) => self.powered = false,
            Some(Fault::Error { sticky: true, .. }) => self.sticky = fault,
            _ => {}
        }
        self.check(process).map(|()| fault)
    }

    /// Does what is left of a fault, after the part of the operation that it permits.
    pub(super) fn finish(&mut self, process: u64, name: &str, fault: Option<Fault>) -> Result<()> {
        match fault {
            Some(Fault::Error { errno, .. } | Fault::Short { errno, .. }) => {
                return Err(failed(name, errno));
            }
            Some(Fault::KillAfterSectors(_)) => self.kill(process),
            _ => {}
        }
        self.check(process)
    }

    /// An operation that is either done or not.
    pub(super) fn whole(&mut self, process: u64, kind: &'static str, name: &str, len: u64) -> Result<()> {
        let fault = self.begin(process, kind, name, 0, len)?;
        self.finish(process, name, fault)
    }

    pub(super) fn whole_sync(
        &mut self,
        process: u64,
        kind: &'static str,
        name: &str,
        what: Option<u64>,
    ) -> Result<()> {
        let units = if self.trace.is_some() { self.units_of(what) } else { 0 };
        let fault = self.begin(process, kind, name, 0, units)?;
        match fault {
            None => self.sync(what, &mut || true),
            Some(Fault::Error { mut survivors, .. }) => self.sync(what, &mut || {
                survivors = survivors.rotate_right(1);
                survivors >> 63 == 1
            }),
            Some(_) => {}
        }
        self.finish(process, name, fault)
    }
}
