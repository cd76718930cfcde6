//! What a power cut leaves of a machine, put together of parts: the tree of names, and each file by
//! itself. Few machines have parts of their own, so that most cost no more than a look at those made
//! before.

use super::content::Digest;
use super::state::{Body, Inode, State};
use super::{Fate, SimWorld, Unit};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Names that became durable.
struct Tree {
    /// Everything that can be reached; the volatile files are as they were last durable.
    inodes: BTreeMap<u64, Arc<Inode>>,
    /// The [`files`](Reboots::files) that can be.
    files: Vec<usize>,
    /// Of all but them.
    digest: Digest,
}

/// A file with volatile units.
struct Volatile {
    inode: u64,
    /// Its units, as they are counted in the machine.
    units: Vec<usize>,
    /// What it became, by the fates of its units.
    parts: BTreeMap<Vec<Fate>, Part>,
}

type Part = (Arc<Inode>, Digest);

/// Every machine that a power cut now may leave, see the [module](self).
pub(super) struct Reboots {
    state: State,
    /// Any of the machines, without its files.
    base: Arc<State>,
    pub(super) units: Vec<Unit>,
    /// The units that are changes of directories.
    changes: Vec<usize>,
    files: Vec<Volatile>,
    /// By what became of the [`changes`](Self::changes).
    trees: BTreeMap<Vec<bool>, Arc<Tree>>,
}

impl Reboots {
    pub(super) fn new(state: State) -> Self {
        let units = state.units();
        let mut changes = Vec::new();
        let mut files: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (nth, unit) in units.iter().enumerate() {
            match unit {
                Unit::Entry { .. } => changes.push(nth),
                Unit::Sector { inode, .. } | Unit::Length { inode, .. } => {
                    files.entry(*inode).or_default().push(nth);
                }
            }
        }
        let volatile = |(inode, units)| Volatile { inode, units, parts: BTreeMap::new() };
        let files = files.into_iter().map(volatile).collect();
        let base = Arc::new(state.rebooted());
        Self { state, base, units, changes, files, trees: BTreeMap::new() }
    }

    /// The machine in which the units meet these fates.
    pub(super) fn image(&mut self, fates: Vec<Fate>) -> Image {
        let survives: Vec<bool> = self.changes.iter().map(|nth| fates[*nth] == Fate::New).collect();
        let tree = if let Some(tree) = self.trees.get(&survives) {
            Arc::clone(tree)
        } else {
            let tree = Arc::new(self.grow(&survives));
            self.trees.insert(survives, Arc::clone(&tree));
            tree
        };
        let mut digest = tree.digest.clone();
        let mut files = Vec::with_capacity(tree.files.len());
        let mut own = Vec::new();
        for nth in &tree.files {
            let file = &mut self.files[*nth];
            own.clear();
            own.extend(file.units.iter().map(|nth| fates[*nth]));
            if !file.parts.contains_key(&own) {
                let units = file.units.iter().map(|nth| &self.units[*nth]);
                let part = part(&self.state, file.inode, units.zip(own.iter().copied()));
                file.parts.insert(own.clone(), part);
            }
            let (inode, part) = &file.parts[&own];
            digest.merge(part);
            files.push((file.inode, Arc::clone(inode)));
        }
        Image { fates, digest: digest.value(), base: Arc::clone(&self.base), tree, files }
    }

    /// The names that are there when these changes survive.
    fn grow(&self, survives: &[bool]) -> Tree {
        let surviving = self.changes.iter().zip(survives).filter(|(_, survives)| **survives);
        let orders: BTreeSet<u64> = surviving.map(|(nth, _)| self.units[*nth].order()).collect();
        let mut before = self.state.clone();
        before.settle(|change| orders.contains(&change.order));
        let mut tree = Tree { inodes: BTreeMap::new(), files: Vec::new(), digest: Digest::default() };
        let mut found = vec![before.root];
        while let Some(number) = found.pop() {
            let Some(inode) = before.inodes.remove(&number) else { continue };
            if let Body::Directory { durable, .. } = &inode.body {
                found.extend(durable.values());
            }
            let inode = after(inode, std::iter::empty());
            match self.files.iter().position(|file| file.inode == number) {
                Some(volatile) => tree.files.push(volatile),
                None => inode.body.add_durable(number, &mut tree.digest),
            }
            tree.inodes.insert(number, inode);
        }
        tree
    }
}

fn part<'u>(state: &State, number: u64, fates: impl Iterator<Item = (&'u Unit, Fate)>) -> Part {
    let inode = after(Arc::clone(&state.inodes[&number]), fates);
    let mut digest = Digest::default();
    inode.body.add_durable(number, &mut digest);
    (inode, digest)
}

/// What becomes of a file or directory when its units meet these fates and all others are old.
fn after<'u>(inode: Arc<Inode>, fates: impl Iterator<Item = (&'u Unit, Fate)>) -> Arc<Inode> {
    let body = match &inode.body {
        Body::Directory { now, durable } if now != durable => {
            Body::Directory { now: durable.clone(), durable: durable.clone() }
        }
        Body::File(data) if !data.is_settled() => Body::File(data.after(fates)),
        _ => return inode,
    };
    Arc::new(Inode { body, ..*inode })
}

/// One machine that a power cut may leave.
pub struct Image {
    /// What became of the volatile units, in their order.
    pub fates: Vec<Fate>,
    /// Its [`SimWorld::digest`].
    pub digest: u128,
    /// The machine without its files.
    base: Arc<State>,
    tree: Arc<Tree>,
    files: Vec<(u64, Arc<Inode>)>,
}

impl Image {
    /// The machine, just booted.
    pub fn world(&self) -> SimWorld {
        let mut inodes = self.tree.inodes.clone();
        inodes.extend(self.files.iter().cloned());
        SimWorld::of(State { inodes, ..State::clone(&self.base) })
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fates, digest, .. } = self;
        f.debug_struct("Image").field("fates", fates).field("digest", digest).finish_non_exhaustive()
    }
}
