//! The mark: how processes tell each other what is durable.

use super::bytes::Take;
use super::{Digest, MAX_SEGMENT_NUMBER};
use crate::position::{Position, Session, Time};

/// Bytes of the mark file.
pub const MARK_LEN: u64 = 4096;
/// Where the two slots stand.
pub const MARK_SLOT_OFFSETS: [u64; 2] = [0, 512];
/// Where the busy word stands.
pub const BUSY_OFFSET: u64 = 1024;

const MAGIC: [u8; 4] = *b"RWM1";
const BUSY_MAGIC: [u8; 4] = *b"RWZ1";

/// One slot of the mark: a lower bound of what is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Grows by one with each publication; the higher valid slot counts.
    pub counter: u64,
    /// The session its writer was in.
    pub session: Session,
    /// The inode of the mark file itself: a copied directory has another.
    pub inode: u64,
    /// The journal.
    pub journal: [u8; 16],
    /// The active segment.
    pub segment: u64,
    /// Where its last durable batch ends.
    pub end: u64,
    /// The last durable position.
    pub position: Position,
    /// The chain hash there.
    pub chain: Digest,
}

impl Mark {
    /// Bytes of a slot.
    pub const LEN: usize = 132;

    /// As it stands in its slot.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&1_u32.to_le_bytes());
        out.extend_from_slice(&self.counter.to_le_bytes());
        out.extend_from_slice(&self.session.boot);
        for number in [self.session.device, self.session.mount, self.inode] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.journal);
        for number in [self.segment, self.end, self.position.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.chain);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(out.len(), Self::LEN);
        out
    }

    /// Reads a slot; `None` where it holds no valid mark of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Self::LEN)?;
        let (content, crc) = bytes.split_at(Self::LEN - 4);
        if crc != crc32fast::hash(content).to_le_bytes() {
            return None;
        }
        let mut take = Take(content);
        if take.array()? != MAGIC || take.u32()? != 1 {
            return None;
        }
        let mark = Self {
            counter: take.u64()?,
            session: Session { boot: take.array()?, device: take.u64()?, mount: take.u64()? },
            inode: take.u64()?,
            journal: take.array()?,
            segment: take.u64()?,
            end: take.u64()?,
            position: Position(take.u64()?),
            chain: take.array()?,
        };
        (mark.segment <= MAX_SEGMENT_NUMBER).then_some(mark)
    }
}

/// What the holder of the lock is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Writing and syncing a group of batches.
    Committing,
    /// Making the next segment.
    Rolling,
    /// Setting aside what a dead writer left.
    Recovering,
}

/// The busy word: set under the lock before the first write, cleared by publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy {
    /// The boot the holder runs in.
    pub boot: [u8; 16],
    /// The holder's process id.
    pub pid: u32,
    /// Since when.
    pub since: Time,
    /// What it is doing.
    pub phase: Phase,
}

impl Busy {
    /// Bytes of the busy word.
    pub const LEN: usize = 40;

    /// As it stands in the file.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..4].copy_from_slice(&BUSY_MAGIC);
        out[4..8].copy_from_slice(&self.pid.to_le_bytes());
        out[8..16].copy_from_slice(&self.since.0.to_le_bytes());
        let phase: u32 = match self.phase {
            Phase::Committing => 1,
            Phase::Rolling => 2,
            Phase::Recovering => 3,
        };
        out[16..20].copy_from_slice(&phase.to_le_bytes());
        out[20..36].copy_from_slice(&self.boot);
        let crc = crc32fast::hash(&out[..36]);
        out[36..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the word: whether it is set at all (anything but zeros is), and if whole, by whom.
    pub fn decode(bytes: &[u8]) -> (bool, Option<Self>) {
        let bytes = bytes.get(..Self::LEN).unwrap_or(bytes);
        let set = bytes.iter().any(|b| *b != 0);
        let whole = || {
            let (content, crc) = bytes.split_at_checked(Self::LEN - 4)?;
            let mut take = Take(content);
            if crc != crc32fast::hash(content).to_le_bytes() || take.array()? != BUSY_MAGIC {
                return None;
            }
            let (pid, since) = (take.u32()?, Time(take.i64()?));
            let phase = match take.u32()? {
                1 => Phase::Committing,
                2 => Phase::Rolling,
                3 => Phase::Recovering,
                _ => return None,
            };
            Some(Self { boot: take.array()?, pid, since, phase })
        };
        (set, whole())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark {
            counter: 0x08,
            session: Session { boot: [0x10; 16], device: 0x20, mount: 0x28 },
            inode: 0x30,
            journal: [0x38; 16],
            segment: 0x48,
            end: 0x50,
            position: Position(0x58),
            chain: [0x60; 32],
        }
    }

    /// The mark above, as the table of the format has it, with other bytes at a place.
    fn slot(at: usize, new: &[u8]) -> Vec<u8> {
        let mut bytes = b"RWM1\x01\0\0\0\x08\0\0\0\0\0\0\0".to_vec();
        bytes.extend([0x10; 16]);
        bytes.extend([0x20_u64, 0x28, 0x30].map(u64::to_le_bytes).concat());
        bytes.extend([0x38; 16]);
        bytes.extend([0x48_u64, 0x50, 0x58].map(u64::to_le_bytes).concat());
        bytes.extend([0x60; 32]);
        sealed(bytes, at, new)
    }

    fn sealed(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
        bytes[at..at + new.len()].copy_from_slice(new);
        let crc = crc32fast::hash(&bytes);
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    #[test]
    fn each_field_of_a_slot_stands_where_the_format_has_it() {
        assert_eq!(mark().encode(), slot(0, &[]));
        assert_eq!(Mark::decode(&slot(0, &[])), Some(mark()));
        assert_eq!(Mark::decode(&[slot(0, &[]), vec![7; 380]].concat()), Some(mark()));
    }

    #[test]
    fn a_slot_is_valid_if_magic_number_checksum_and_segment_are() {
        for at in 0..132 {
            let mut bytes = slot(0, &[]);
            bytes[at] ^= 1;
            assert_eq!(Mark::decode(&bytes), None, "{at}");
            assert_eq!(Mark::decode(&slot(0, &[])[..at]), None, "cut to {at}");
        }
        assert_eq!(Mark::decode(&slot(0, b"RWM2")), None);
        assert_eq!(Mark::decode(&slot(4, &[2])), None);
        assert_eq!(Mark::decode(&[0; 132]), None);
        let last = (1_u64 << 63) - 1;
        assert_eq!(Mark::decode(&slot(72, &last.to_le_bytes())), Some(Mark { segment: last, ..mark() }));
        assert_eq!(Mark::decode(&slot(72, &(last + 1).to_le_bytes())), None);
    }

    fn busy() -> Busy {
        Busy { boot: [0x14; 16], pid: 0x04, since: Time(-0x08), phase: Phase::Rolling }
    }

    fn word(at: usize, new: &[u8]) -> Vec<u8> {
        let mut bytes = b"RWZ1\x04\0\0\0".to_vec();
        bytes.extend((-0x08_i64).to_le_bytes());
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend([0x14; 16]);
        sealed(bytes, at, new)
    }

    #[test]
    fn each_field_of_the_busy_word_stands_where_the_format_has_it() {
        for (number, phase) in [(1, Phase::Committing), (2, Phase::Rolling), (3, Phase::Recovering)] {
            let busy = Busy { phase, ..busy() };
            assert_eq!(busy.encode()[..], word(16, &[number]));
            assert_eq!(Busy::decode(&word(16, &[number])), (true, Some(busy)));
        }
        assert_eq!(Busy::decode(&[word(0, &[]), vec![0; 99]].concat()), (true, Some(busy())));
    }

    #[test]
    fn whatever_is_not_zero_is_somebody_writing() {
        for len in [0, 1, 39, 40, 99] {
            assert_eq!(Busy::decode(&vec![0; len]), (false, None), "{len}");
        }
        assert_eq!(Busy::decode(&[vec![0; 40], vec![1; 9]].concat()), (false, None), "behind the word");
        for at in 0..40 {
            let mut bytes = word(0, &[]);
            bytes[at] ^= 1;
            assert_eq!(Busy::decode(&bytes), (true, None), "{at}");
            assert_eq!(Busy::decode(&word(0, &[])[..at]), (at > 0, None), "cut to {at}");
        }
        assert_eq!(Busy::decode(&word(0, b"RWZ2")), (true, None));
        for phase in [0, 4] {
            assert_eq!(Busy::decode(&word(16, &[phase])), (true, None), "for what is unknown");
        }
    }
}
