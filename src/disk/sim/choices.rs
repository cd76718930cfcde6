//! Every way in which the power can go, within a bound.

use super::content::mix;
use super::reboot::{Image, Reboots};
use super::{Fate, SimWorld, Unit};
use std::collections::BTreeSet;
use std::fmt;

/// The machines that a power cut may leave, each distinct one once.
///
/// With few volatile units all subsets of them are tried; with more: all new, all old, each alone
/// old or new, and every prefix in the order of writing. Then each alone as garbage, and samples of
/// all four fates.
pub struct Choices {
    reboots: Reboots,
    exhaustive: bool,
    samples: u64,
    seed: u64,
    next: u64,
    seen: BTreeSet<u128>,
}

impl Choices {
    /// Of a power cut now: all subsets if there are at most `exhaustive_up_to` units (and at most
    /// 62), and `samples` samples that follow from `seed`.
    pub fn new(world: &SimWorld, exhaustive_up_to: usize, samples: u64, seed: u64) -> Self {
        let reboots = Reboots::new(world.state().clone());
        let exhaustive = reboots.units.len() <= exhaustive_up_to.min(62);
        Self { reboots, exhaustive, samples, seed, next: 0, seen: BTreeSet::new() }
    }

    /// The units that are old or new.
    pub fn units(&self) -> &[Unit] {
        &self.reboots.units
    }

    /// The candidate with number `n`. Every stage knows how many it has, the next counts from there.
    fn fates(&self, mut n: u64) -> Option<Vec<Fate>> {
        let count = self.units().len() as u64;
        let all = |fate: &dyn Fn(u64) -> Fate| Some((0..count).map(fate).collect());
        let new_if = |yes: bool| if yes { Fate::New } else { Fate::Old };
        let mut within = |stage: u64| {
            let found = (n < stage).then_some(n);
            n -= stage.min(n);
            found
        };
        if self.exhaustive {
            if let Some(n) = within(1 << count) {
                return all(&|i| new_if(n >> i & 1 == 0));
            }
        } else {
            if let Some(n) = within(2) {
                return all(&|_| new_if(n == 0));
            }
            if let Some(n) = within(count) {
                return all(&|i| new_if(i != n));
            }
            if let Some(n) = within(count) {
                return all(&|i| new_if(i == n));
            }
            if let Some(n) = within(count) {
                return all(&|i| new_if(i <= n));
            }
        }
        if let Some(n) = within(count) {
            return all(&|i| if i == n { Fate::Garbage } else { Fate::New });
        }
        let n = within(self.samples)?;
        all(&|i| match mix(mix(self.seed.wrapping_add(n)).wrapping_add(i)) % 8 {
            0..=2 => Fate::Old,
            3..=5 => Fate::New,
            6 => Fate::Zero,
            _ => Fate::Garbage,
        })
    }
}

impl fmt::Debug for Choices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choices").field("units", &self.units()).finish_non_exhaustive()
    }
}

impl Iterator for Choices {
    type Item = Image;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let fates = self.fates(self.next)?;
            self.next += 1;
            let image = self.reboots.image(fates);
            if self.seen.insert(image.digest) {
                return Some(image);
            }
        }
    }
}
