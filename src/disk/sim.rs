//! A simulated disk: a page cache shared by several processes that can be killed, whose writes can
//! fail or tear, and which loses power in every way that the contract of [`Disk`] permits.
//!
//! A [`SimWorld`] is the machine, a [`SimDisk`] what one process sees of it. Everything is
//! deterministic: the same calls in the same order give the same world.
//!
//! # The model
//!
//! * Every file has cached content, which all processes read, and durable content. Both consist of
//!   sectors of [`SECTOR`] bytes; the length is a unit of its own.
//! * A sync makes the dirty sectors and the length of one file durable, nothing else.
//! * A change of a directory (create, rename, remove) is volatile until a directory it touches is
//!   synced. It survives whole or not at all, and only together with earlier changes of the same
//!   names; otherwise in any order.
//! * A failed sync leaves some of the dirty units durable and all of them clean: reads go on showing
//!   the cached bytes until they are evicted, and the next sync succeeds without writing them.
//! * A power cut keeps, of every volatile [`Unit`], the old or the new state. A sector never durable
//!   before may also come back as zeros or as garbage.

mod choices;
mod content;
mod reboot;
mod state;

pub use choices::Choices;
pub use reboot::Image;

use super::{Disk, File, Kind, Open, Session, Stat};
use crate::error::{Error, ErrorKind, Result};
pub(crate) use content::mix;
use content::{Data, index};
use reboot::Reboots;
use rustix::io::Errno;
use state::{Body, DEVICE, Entries, Holder, Inode, LookFault, State, refused};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes in a sector: what survives a power cut whole or not at all.
pub const SECTOR: u64 = 512;

/// What happens to the operation that it is planned for with [`SimWorld::fail_at`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The calling process dies just before the operation.
    Kill,
    /// The calling process dies after this many sectors of its write; before any other operation.
    KillAfterSectors(u64),
    /// The operation panics, as a bug would: in the calling thread, which the process may survive.
    Panic,
    /// The power goes just before the operation: every call of every process fails from then on.
    PowerCut,
    /// The operation fails and does nothing, but for a sync: that one leaves the units durable whose
    /// bit is set in `survivors` (the lowest for the one written first, after 64 from the start
    /// again), and all of them clean.
    Error {
        /// The operating system's error number.
        errno: i32,
        /// Whether every later operation fails in the same way, until [`SimWorld::clear_faults`].
        sticky: bool,
        /// Which units a failed sync has made durable nevertheless.
        survivors: u64,
    },
    /// A write applies its first `bytes` bytes, then fails; any other operation does nothing and fails.
    Short {
        /// How much is written.
        bytes: usize,
        /// The operating system's error number.
        errno: i32,
    },
}

impl Fault {
    /// One operation fails; a failed sync leaves nothing durable.
    pub fn once(errno: i32) -> Self {
        Self::Error { errno, sticky: false, survivors: 0 }
    }

    /// This operation and all later ones fail; failed syncs leave nothing durable.
    pub fn sticky(errno: i32) -> Self {
        Self::Error { errno, sticky: true, survivors: 0 }
    }
}

/// One thing that is not durable yet, and that a power cut keeps or loses independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// The content of a sector.
    Sector {
        /// Of which file.
        inode: u64,
        /// Which one, from 0.
        sector: u64,
        /// When it was last written, in the world's count.
        order: u64,
        /// Whether it was never durable before, so that it may also come back as zeros or garbage.
        fresh: bool,
    },
    /// The length of a file.
    Length {
        /// Of which file.
        inode: u64,
        /// When it last changed, in the world's count.
        order: u64,
    },
    /// A change of a directory: one create, rename or remove.
    Entry {
        /// The directory's inode; of a rename across directories the one that gets the name.
        directory: u64,
        /// When it was made, in the world's count.
        order: u64,
    },
}

impl Unit {
    /// When it was written, in the world's count: units compare by this to the order of writing.
    pub fn order(&self) -> u64 {
        match self {
            Self::Sector { order, .. } | Self::Length { order, .. } | Self::Entry { order, .. } => *order,
        }
    }
}

/// What becomes of a [`Unit`] in a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is as it was last durable; a sector that never was reads as zeros.
    Old,
    /// It has become durable.
    New,
    /// Zeros: of fresh sectors only, otherwise as `Old`.
    Zero,
    /// Bytes that follow from inode and sector number: of fresh sectors only, otherwise as `Old`.
    Garbage,
}

impl Fate {
    const LETTERS: [(Self, char); 4] =
        [(Self::Old, 'o'), (Self::New, 'n'), (Self::Zero, 'z'), (Self::Garbage, 'g')];

    /// Its letter in the names of cases.
    pub fn letter(self) -> char {
        Self::LETTERS.iter().find(|(fate, _)| *fate == self).map_or('o', |(_, letter)| *letter)
    }

    /// The fate of a letter.
    pub fn of_letter(letter: char) -> Option<Self> {
        Self::LETTERS.iter().find(|(_, known)| *known == letter).map(|(fate, _)| *fate)
    }
}

/// One counted operation, as the trace shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its number in the world, from 1.
    pub number: u64,
    /// The process, numbered from 1 in the order of [`SimWorld::process`].
    pub process: u64,
    /// Which: `create`, `create_dir`, `rename`, `remove`, `write`, `sync`, `set_len`, `sync_dir`
    /// or `sync_all`.
    pub kind: &'static str,
    /// The name it was called with, of a file the one it was opened with.
    pub file: String,
    /// Where a write begins; otherwise 0.
    pub offset: u64,
    /// How many bytes a write has, the length set, or of how many units a sync is; otherwise 0.
    pub len: u64,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, process, kind, file, offset, len } = self;
        write!(f, "#{number} process {process}: {kind} {file}")?;
        match *kind {
            "write" => write!(f, " {len} bytes at {offset}"),
            "set_len" => write!(f, " to {len}"),
            "sync" | "sync_dir" | "sync_all" => write!(f, ", units: {len}"),
            _ => Ok(()),
        }
    }
}

/// A simulated machine with one data directory. Clones are handles on the same machine.
#[derive(Clone)]
pub struct SimWorld(Arc<Mutex<State>>);

impl Default for SimWorld {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("SimWorld")
            .field("boot", &state.boot)
            .field("operations", &state.operations)
            .finish_non_exhaustive()
    }
}

impl SimWorld {
    /// A machine in its first boot, with an empty data directory.
    pub fn new() -> Self {
        Self::of(State::empty())
    }

    fn of(state: State) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process that sees the data directory through this mount.
    pub fn process(&self, mount_id: u64) -> SimDisk {
        let mut state = self.state();
        state.processes += 1;
        let process = state.processes;
        state.alive.insert(process);
        SimDisk { world: self.clone(), process, mount: mount_id }
    }

    /// An independent copy of the machine as it is, with its cache, its counts and its planned
    /// faults, but without the processes and their locks. Bytes are shared until written.
    pub fn fork(&self) -> Self {
        Self::of(self.state().without_processes())
    }

    /// How many operations were counted in this boot: every create, rename, remove, write, change of
    /// length and sync, by any process, whether it succeeded or not.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Plans a fault for the operation with number `n`, the first one of a boot being 1.
    pub fn fail_at(&self, n: u64, fault: Fault) {
        self.state().faults.insert(n, fault);
    }

    /// How often the disk was looked at in this boot: every opening, reading, listing, asking after
    /// a name or a file, and trying for a lock, by any process.
    pub fn looks(&self) -> u64 {
        self.state().looks
    }

    /// Plans that the look with number `n` fails, the first one of a boot being 1; a sticky failure is
    /// that of all later ones, too.
    pub fn fail_look_at(&self, n: u64, errno: i32, sticky: bool) {
        self.state().look_faults.push(LookFault { at: n, errno, sticky });
    }

    /// Forgets the planned faults and ends the sticky ones.
    pub fn clear_faults(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.look_faults.clear();
        state.sticky = None;
    }

    /// Begins to record operations, with an empty trace.
    pub fn record(&self) {
        self.state().trace = Some(Arc::default());
    }

    /// The operations since [`record`](Self::record); also those that failed, but none of the dead.
    pub fn trace(&self) -> Vec<Operation> {
        self.state().trace.as_deref().cloned().unwrap_or_default()
    }

    /// What a power cut now could keep or lose, in the order of writing.
    pub fn volatile(&self) -> Vec<Unit> {
        self.state().units()
    }

    /// A unit in words, with the name its file or directory has now.
    pub fn describe(&self, unit: &Unit) -> String {
        let state = self.state();
        let name = |wanted: u64| {
            let mut found = if wanted == state.root { ".".to_owned() } else { format!("inode {wanted}") };
            state.visit(state.root, "", &mut |path, inode| {
                if inode == wanted {
                    found = path;
                }
            });
            found
        };
        match unit {
            Unit::Sector { inode, sector, .. } => format!("sector {sector} of {}", name(*inode)),
            Unit::Length { inode, .. } => format!("length of {}", name(*inode)),
            Unit::Entry { directory, order } => {
                let change = state.changes.iter().find(|change| change.order == *order);
                let edits = change.map_or(&[][..], |change| &change.edits);
                let words = edits.iter().map(|edit| match edit.inode {
                    Some(inode) => format!(" +{} (inode {inode})", edit.name),
                    None => format!(" -{}", edit.name),
                });
                format!("entries of {}:{}", name(*directory), words.collect::<String>())
            }
        }
    }

    /// Makes one unit durable, as the kernel may at any moment without being asked. What has been
    /// written since the unit was enumerated becomes durable with it.
    pub fn write_back(&self, unit: &Unit) {
        let mut state = self.state();
        match unit {
            Unit::Entry { order, .. } => state.settle(|change| change.order == *order),
            Unit::Sector { inode, .. } | Unit::Length { inode, .. } => {
                if let Ok(data) = state.data_mut(*inode) {
                    data.persist(unit, Fate::New);
                }
            }
        }
    }

    /// The machine after a power cut now, in which every volatile unit meets the fate that `fate`
    /// gives it: next boot, no process, no lock, nothing counted, no fault planned. This one stays.
    pub fn power_cut(&self, fate: &mut dyn FnMut(&Unit) -> Fate) -> Self {
        // Not under the lock: what decides on the fates may ask this world.
        let mut reboots = Reboots::new(self.state().clone());
        let fates = reboots.units.iter().map(fate).collect();
        reboots.image(fates).world()
    }

    /// The same machine as if it had not been started anew: only the file system was lost and mounted
    /// again, which processes see as another mount.
    #[must_use]
    pub fn remounted(self) -> Self {
        self.state().boot -= 1;
        self
    }

    /// A digest of everything durable that can be reached: names, inode numbers, lengths and bytes.
    pub fn digest(&self) -> u128 {
        self.state().digest()
    }

    /// A digest of everything that is read, that is durable, and that could become so.
    pub fn digest_of_all(&self) -> u128 {
        self.state().digest_of_all()
    }

    /// Forgets the cached bytes of a clean sector, so that the next read shows the durable ones;
    /// tells whether it was clean.
    pub fn evict(&self, name: &str, sector: u64) -> Result<bool> {
        self.surgery("evicting from", name, |state| {
            let inode = state.lookup(name)?;
            Ok(state.data_mut(inode)?.evict(sector))
        })
    }

    fn surgery<T>(
        &self,
        doing: &str,
        name: &str,
        f: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> Result<T> {
        let mut state = self.state();
        let order = state.order;
        let done = f(&mut state);
        state.settle(|change| change.order > order);
        done.map_err(|e| refused(doing, name, e))
    }

    /// Puts something of this kind at a name that is free, durable at once; missing directories on
    /// the way are made.
    pub fn plant(&self, name: &str, kind: Kind) -> Result<()> {
        self.surgery("planting", name, |state| {
            for (i, _) in name.match_indices('/') {
                state.create_dir(&name[..i])?;
            }
            let (directory, last) = state.parent(name)?;
            if state.entries(directory)?.contains_key(last) {
                return Err(Errno::EXIST);
            }
            state.link(directory, last, kind);
            Ok(())
        })
    }

    /// The bytes of a file as processes see them.
    pub fn read_file(&self, name: &str) -> Result<Vec<u8>> {
        self.surgery("reading", name, |state| {
            let bytes = &state.data(state.lookup(name)?)?.now;
            let mut buf = vec![0; index(bytes.len)];
            bytes.read(&mut buf, 0);
            Ok(buf)
        })
    }

    /// Replaces the bytes of a file, in the cache and durably; makes the file where it is missing.
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if matches!(self.state().lookup(name), Err(Errno::NOENT)) {
            self.plant(name, Kind::File)?;
        }
        self.surgery("writing", name, |state| {
            let inode = state.lookup(name)?;
            *state.data_mut(inode)? = Data::default();
            state.write(inode, bytes, 0)?;
            state.sync(Some(inode), &mut || true);
            Ok(())
        })
    }

    /// Takes a file away, durably.
    pub fn remove_file(&self, name: &str) -> Result<()> {
        self.surgery("removing", name, |state| state.remove(name))
    }

    /// Gives a file or directory another name, durably; what had that name is gone.
    pub fn rename_file(&self, from: &str, to: &str) -> Result<()> {
        self.surgery("renaming", from, |state| state.rename(from, to, true).map(|_| ()))
    }

    /// Visits every file with its length, as processes see them, in some order.
    pub fn lengths(&self, visit: &mut dyn FnMut(&str, u64)) {
        let state = self.state();
        state.visit(state.root, "", &mut |path, inode| {
            let stat = state.stat(inode);
            if stat.kind == Kind::File {
                visit(&path, stat.len);
            }
        });
    }

    /// The paths of everything but directories, as processes see them, in order.
    pub fn names(&self) -> Vec<String> {
        let state = self.state();
        let mut names = Vec::new();
        state.visit(state.root, "", &mut |path, inode| {
            if state.inode(inode).kind() != Kind::Directory {
                names.push(path);
            }
        });
        names.sort_unstable();
        names
    }

    /// The machine with the data directory replaced by a copy of it: the same names and bytes, all
    /// durable, in the same boot, but every inode number another. It has no processes.
    pub fn copy_to_new_inodes(&self) -> Self {
        let mut state = self.state().without_processes();
        let mut old = vec![state.root];
        state.visit(state.root, "", &mut |_, inode| old.push(inode));
        let new: BTreeMap<_, _> = old.iter().copied().zip(state.next_inode..).collect();
        let from = std::mem::take(&mut state.inodes);
        for (number, to) in &new {
            let body = match &from[number].body {
                Body::File(data) => Body::File(Data::durable(data.now.clone())),
                Body::Directory { now, .. } => {
                    let entries: Entries = now.iter().map(|(k, v)| (Arc::clone(k), new[v])).collect();
                    Body::Directory { now: entries.clone(), durable: entries }
                }
                Body::Other(kind) => Body::Other(*kind),
            };
            state.inodes.insert(*to, Arc::new(Inode { body, ..*from[number] }));
        }
        state.next_inode += new.len() as u64;
        state.root = new[&state.root];
        state.changes.clear();
        Self::of(state)
    }
}

/// What one process sees of a [`SimWorld`]. Clones are the same process.
#[derive(Debug, Clone)]
pub struct SimDisk {
    world: SimWorld,
    process: u64,
    mount: u64,
}

impl SimDisk {
    /// The process dies: its locks are free, and every later call of it fails, also on open files.
    pub fn kill(&self) {
        self.world.state().kill(self.process);
    }

    /// Whether neither [`kill`](Self::kill) nor a fault has ended it.
    pub fn is_alive(&self) -> bool {
        self.world.state().alive.contains(&self.process)
    }

    /// The world it runs in.
    pub fn world(&self) -> &SimWorld {
        &self.world
    }

    fn checked(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.world.state();
        state.check(self.process)?;
        Ok(state)
    }

    fn looking(&self, name: &str) -> Result<MutexGuard<'_, State>> {
        let mut state = self.world.state();
        state.look(self.process, name)?;
        Ok(state)
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn File>> {
        let mut state = self.looking(name)?;
        if matches!(how, Open::WriteOrCreate | Open::CreateNew) {
            state.whole(self.process, "create", name, 0)?;
        }
        let inode = state.open(name, how).map_err(|e| refused("opening", name, e))?;
        let kind = state.inode(inode).kind();
        if how != Open::Directory && kind != Kind::File {
            let what = format!("{name} is {}, not a regular file", kind.describe());
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        state.order += 1;
        let opening = state.order;
        let writable = !matches!(how, Open::Read | Open::Directory);
        Ok(Arc::new(SimFile { disk: self.clone(), opening, inode, writable, name: name.to_owned() }))
    }

    fn create_dir(&self, name: &str) -> Result<bool> {
        let mut state = self.checked()?;
        state.whole(self.process, "create_dir", name, 0)?;
        state.create_dir(name).map_err(|e| refused("making the directory", name, e))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> Result<bool> {
        let mut state = self.checked()?;
        state.whole(self.process, "rename", &format!("{from} to {to}"), 0)?;
        state.rename(from, to, replace).map_err(|e| refused(&format!("renaming {from} to"), to, e))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let mut state = self.checked()?;
        state.whole(self.process, "remove", name, 0)?;
        state.remove(name).map_err(|e| refused("removing", name, e))
    }

    fn list(&self, name: &str, visit: &mut dyn FnMut(&str, Kind)) -> Result<()> {
        let found: Vec<_> = {
            let state = self.looking(name)?;
            let list = || state.entries(state.directory(name)?);
            let entries = list().map_err(|e| refused("listing", name, e))?;
            entries.iter().map(|(name, inode)| (Arc::clone(name), state.inode(*inode).kind())).collect()
        };
        for (name, kind) in found {
            visit(&name, kind);
        }
        Ok(())
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>> {
        let state = self.looking(name)?;
        match state.lookup(name) {
            Ok(inode) => Ok(Some(state.stat(inode))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(refused("looking at", name, e)),
        }
    }

    fn sync_dir(&self, name: &str) -> Result<()> {
        let mut state = self.checked()?;
        let inode = state.directory(name).map_err(|e| refused("syncing the directory", name, e))?;
        state.whole_sync(self.process, "sync_dir", name, Some(inode))
    }

    fn sync_all(&self) -> Result<()> {
        self.checked()?.whole_sync(self.process, "sync_all", ".", None)
    }

    fn session(&self) -> Result<Session> {
        let boot = u128::from(self.checked()?.boot).to_be_bytes();
        Ok(Session { boot, device: DEVICE, mount: self.mount })
    }

    fn unreliable(&self) -> Result<Option<&'static str>> {
        self.checked().map(|_| None)
    }
}

/// An open file of a [`SimDisk`].
#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    opening: u64,
    inode: u64,
    writable: bool,
    name: String,
}

impl SimFile {
    fn error(&self, doing: &str, errno: Errno) -> Error {
        refused(doing, &self.name, errno)
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let state = self.disk.looking(&self.name)?;
        Ok(state.data(self.inode).map_err(|e| self.error("reading", e))?.now.read(buf, offset))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut state = self.disk.checked()?;
        if bytes.is_empty() {
            return Ok(());
        }
        let len = bytes.len() as u64;
        let fault = state.begin(self.disk.process, "write", &self.name, offset, len)?;
        let permitted = match fault {
            None => bytes.len(),
            Some(Fault::KillAfterSectors(sectors)) => {
                index((offset / SECTOR).saturating_add(sectors).saturating_mul(SECTOR).saturating_sub(offset))
            }
            Some(Fault::Short { bytes, .. }) => bytes,
            Some(_) => 0,
        };
        let first = &bytes[..permitted.min(bytes.len())];
        if !self.writable {
            return Err(self.error("writing", Errno::BADF));
        }
        if !first.is_empty() {
            state.write(self.inode, first, offset).map_err(|e| self.error("writing", e))?;
        }
        state.finish(self.disk.process, &self.name, fault)
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> Result<()> {
        self.write_at(&parts.concat(), offset)
    }

    fn sync(&self) -> Result<()> {
        self.disk.checked()?.whole_sync(self.disk.process, "sync", &self.name, Some(self.inode))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut state = self.disk.checked()?;
        state.whole(self.disk.process, "set_len", &self.name, len)?;
        let done = if self.writable { state.set_len(self.inode, len) } else { Err(Errno::INVAL) };
        done.map_err(|e| self.error("setting the length of", e))
    }

    fn stat(&self) -> Result<Stat> {
        Ok(self.disk.looking(&self.name)?.stat(self.inode))
    }

    fn try_lock(&self) -> Result<bool> {
        let mut state = self.disk.looking(&self.name)?;
        let mine = Holder { process: self.disk.process, opening: self.opening };
        Ok(state.locks.entry(self.inode).or_insert(mine).opening == self.opening)
    }

    fn unlock(&self) -> Result<()> {
        let mut state = self.disk.checked()?;
        state.locks.retain(|_, holder| holder.opening != self.opening);
        Ok(())
    }

    fn drop_cache(&self) -> Result<()> {
        let mut state = self.disk.checked()?;
        if let Ok(data) = state.data_mut(self.inode) {
            data.evict_all();
        }
        Ok(())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.world.state().locks.retain(|_, holder| holder.opening != self.opening);
    }
}
