//! The bytes of one file: what everyone reads, what a power cut would leave, and what lies between.

use super::{Fate, SECTOR, Unit};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

const SECTOR_LEN: usize = 512;

pub(super) struct Sector {
    bytes: [u8; SECTOR_LEN],
    digest: OnceLock<[u64; 2]>,
}

impl Sector {
    pub(super) fn digest(&self) -> [u64; 2] {
        *self.digest.get_or_init(|| hash(&self.bytes))
    }
}

/// 128 bits of BLAKE3.
fn hash(bytes: &[u8]) -> [u64; 2] {
    let hash = blake3::hash(bytes);
    let part = |at: usize| hash.as_bytes()[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    [part(0), part(8)]
}

/// A digest of things in no particular order: two sums, each of another hash of every thing. Enough
/// against accidents, and many times as fast as hashing everything one after the other.
#[derive(Clone, Default)]
pub(super) struct Digest([u64; 2]);

impl Digest {
    pub(super) fn add(&mut self, thing: &[u64]) {
        for (lane, sum) in (1..).zip(&mut self.0) {
            *sum = sum.wrapping_add(thing.iter().fold(lane, |hash, part| mix(hash ^ part.rotate_left(17))));
        }
    }

    /// Adds all things of another one.
    pub(super) fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, other)| *sum = sum.wrapping_add(other));
    }

    pub(super) fn value(&self) -> u128 {
        u128::from(self.0[0]) << 64 | u128::from(self.0[1])
    }
}

/// Shared between all forks; `None` is all zeros.
type Slot = Option<Arc<Sector>>;

fn pack(bytes: &[u8; SECTOR_LEN]) -> Slot {
    (*bytes != [0; SECTOR_LEN]).then(|| Arc::new(Sector { bytes: *bytes, digest: OnceLock::new() }))
}

fn unpack(slot: Option<&Arc<Sector>>) -> [u8; SECTOR_LEN] {
    slot.map_or([0; SECTOR_LEN], |sector| sector.bytes)
}

pub(super) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Spreads a number over 64 bits (the finalizer of splitmix64).
pub(crate) fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn garbage(inode: u64, sector: u64) -> Slot {
    let mut bytes = [0; SECTOR_LEN];
    let seed = mix(mix(inode).wrapping_add(sector));
    for (i, word) in (0..).zip(bytes.chunks_mut(8)) {
        word.copy_from_slice(&mix(seed.wrapping_add(i)).to_le_bytes());
    }
    pack(&bytes)
}

/// The sectors that `len` bytes at `offset` touch: number, first byte within, which of the bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = index(at % SECTOR);
        let range = done..len.min(done + SECTOR_LEN - within);
        done = range.end;
        (!range.is_empty()).then_some((at / SECTOR, within, range))
    })
}

#[derive(Clone, Default)]
pub(super) struct Bytes {
    pub(super) len: u64,
    /// May be shorter than `len`, where only zeros follow.
    pub(super) slots: Arc<Vec<Slot>>,
}

impl Bytes {
    pub(super) fn add_to(&self, file: u64, digest: &mut Digest) {
        digest.add(&[file, u64::MAX, self.len]);
        for (i, sector) in (0_u64..).zip(self.slots.iter()) {
            if let Some(sector) = sector {
                let [low, high] = sector.digest();
                digest.add(&[file, i, low, high]);
            }
        }
    }

    fn slot(&self, sector: u64) -> Option<&Arc<Sector>> {
        self.slots.get(index(sector)).and_then(Option::as_ref)
    }

    fn put(&mut self, sector: u64, slot: Slot) {
        let slots = Arc::make_mut(&mut self.slots);
        if slots.len() <= index(sector) {
            slots.resize(index(sector) + 1, None);
        }
        slots[index(sector)] = slot;
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let n = buf.len().min(index(self.len.saturating_sub(offset)));
        for (sector, within, range) in pieces(offset, n) {
            let from = within..within + range.len();
            match self.slot(sector) {
                Some(sector) => buf[range].copy_from_slice(&sector.bytes[from]),
                None => buf[range].fill(0),
            }
        }
        n
    }

    /// Sets the length; what was beyond it is zeros from now on.
    pub(super) fn cut(&mut self, len: u64) {
        self.len = len;
        let (last, within) = (len / SECTOR, index(len % SECTOR));
        if self.slots.len() > index(len.div_ceil(SECTOR)) {
            Arc::make_mut(&mut self.slots).truncate(index(len.div_ceil(SECTOR)));
        }
        let mut bytes = unpack(self.slot(last));
        if bytes[within..].iter().any(|byte| *byte != 0) {
            bytes[within..].fill(0);
            self.put(last, pack(&bytes));
        }
    }
}

/// The content of a file.
#[derive(Clone, Default)]
pub(super) struct Data {
    pub(super) now: Bytes,
    pub(super) durable: Bytes,
    /// When each dirty sector was last written.
    dirty: BTreeMap<u64, u64>,
    dirty_len: Option<u64>,
    /// Clean sectors that a failed sync has not written.
    lost: BTreeSet<u64>,
    lost_len: bool,
}

impl Data {
    pub(super) fn durable(bytes: Bytes) -> Self {
        Self { now: bytes.clone(), durable: bytes, ..Self::default() }
    }

    /// What a power cut leaves when these units meet these fates and all others are old.
    pub(super) fn after<'u>(&self, fates: impl Iterator<Item = (&'u Unit, Fate)>) -> Self {
        let mut left = Self { durable: self.durable.clone(), now: self.now.clone(), ..Self::default() };
        fates.for_each(|(unit, fate)| left.persist(unit, fate));
        left.durable.cut(left.durable.len);
        Self::durable(left.durable)
    }

    pub(super) fn is_settled(&self) -> bool {
        let clean = self.dirty.is_empty() && self.dirty_len.is_none() && self.lost.is_empty();
        clean && self.now.len == self.durable.len && Arc::ptr_eq(&self.now.slots, &self.durable.slots)
    }

    fn change_len(&mut self, order: &mut u64) {
        *order += 1;
        self.dirty_len = Some(*order);
        self.lost_len = false;
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64, order: &mut u64) {
        let end = offset + bytes.len() as u64;
        if end > self.now.len {
            self.now.len = end;
            self.change_len(order);
        }
        for (sector, within, range) in pieces(offset, bytes.len()) {
            let mut whole = unpack(self.now.slot(sector));
            whole[within..within + range.len()].copy_from_slice(&bytes[range]);
            self.now.put(sector, pack(&whole));
            *order += 1;
            self.dirty.insert(sector, *order);
            self.lost.remove(&sector);
        }
    }

    pub(super) fn set_len(&mut self, len: u64, order: &mut u64) {
        if len == self.now.len {
            return;
        }
        let from = len.min(self.now.len) / SECTOR;
        let shrinks = len < self.now.len;
        self.now.cut(len);
        self.change_len(order);
        let until = self.durable.slots.len() as u64;
        for sector in (from..until).filter(|_| shrinks) {
            self.lost.remove(&sector);
            if unpack(self.now.slot(sector)) != unpack(self.durable.slot(sector)) {
                self.dirty.insert(sector, *order);
            }
        }
        // What was never durable and is cut off leaves nothing to be written.
        let kept = self.now.len.div_ceil(SECTOR).max(until);
        self.dirty.retain(|sector, _| *sector < kept);
    }

    /// In the order of writing.
    pub(super) fn units(&self, inode: u64) -> Vec<Unit> {
        let fresh_from = self.durable.len.div_ceil(SECTOR);
        let visible = self.dirty.range(..self.now.len.div_ceil(SECTOR));
        let sector = |(&sector, &order)| Unit::Sector { inode, sector, order, fresh: sector >= fresh_from };
        let mut units: Vec<_> = visible.map(sector).collect();
        units.extend(self.dirty_len.map(|order| Unit::Length { inode, order }));
        units.sort_unstable_by_key(Unit::order);
        units
    }

    /// Gives one unit its fate in the durable content.
    pub(super) fn persist(&mut self, unit: &Unit, fate: Fate) {
        match (*unit, fate) {
            (Unit::Sector { sector, .. }, Fate::New) => {
                self.durable.put(sector, self.now.slot(sector).cloned());
            }
            (Unit::Sector { sector, fresh: true, .. }, Fate::Zero) => self.durable.put(sector, None),
            (Unit::Sector { inode, sector, fresh: true, .. }, Fate::Garbage) => {
                self.durable.put(sector, garbage(inode, sector));
            }
            (Unit::Length { .. }, Fate::New) => self.durable.len = self.now.len,
            _ => {}
        }
    }

    /// Cleans every dirty unit; those that `survives` refuses are lost without being dirty any more.
    pub(super) fn sync(&mut self, survives: &mut dyn FnMut() -> bool) {
        for unit in self.units(0) {
            match unit {
                _ if survives() => self.persist(&unit, Fate::New),
                Unit::Sector { sector, .. } => _ = self.lost.insert(sector),
                _ => self.lost_len = true,
            }
        }
        self.dirty.clear();
        self.dirty_len = None;
        if self.lost.is_empty() && !self.lost_len {
            self.durable = self.now.clone();
        }
    }

    /// Evicts every clean sector.
    pub(super) fn evict_all(&mut self) {
        for sector in self.lost.clone() {
            self.evict(sector);
        }
    }

    /// Forgets the cached bytes of a clean sector; tells whether it was clean.
    pub(super) fn evict(&mut self, sector: u64) -> bool {
        if self.dirty.contains_key(&sector) {
            return false;
        }
        if self.lost.remove(&sector) {
            self.now.put(sector, self.durable.slot(sector).cloned());
            self.now.cut(self.now.len);
        }
        true
    }
}
