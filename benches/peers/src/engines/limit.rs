//! The least an honest durable log has to do.
//!
//! One file, written with zeros and synced before it is used. A frame is a header of 17 bytes and the
//! event; a group of waiting writers is one write and one fdatasync. There is no index: where the n-th
//! event of a filled journal stands is arithmetic, as all events are of one length.

use super::{Engine, Reader, Setup, Writer};
use crate::Result;
use crate::event::{BURST, Events, Layout, Seen};
use crate::group::Group;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// CRC-32 of all that follows, length of the event, a kind, stream, sequence.
const HEADER_LEN: usize = 17;
const KIND: u8 = 1;
const PAGE_LEN: usize = 4096;
const PAGE: u64 = PAGE_LEN as u64;
const MAX_FRAME_LEN: usize = 64 << 10;
/// How much is written or read at once where nobody waits.
const PIECE_LEN: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Limit {
    file: File,
    len: u64,
    end: AtomicU64,
    group: Group<Vec<u8>>,
}

impl Limit {
    pub(crate) fn open(dir: &Path, setup: &Setup) -> Result<Self> {
        let path = dir.join("log");
        let fresh = !path.exists();
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        if fresh {
            let room = setup.events * (HEADER_LEN + setup.len) as u64;
            let zeros = vec![0; PIECE_LEN];
            for piece in 0..room.div_ceil(PIECE_LEN as u64) {
                file.write_all_at(&zeros, piece * PIECE_LEN as u64)?;
            }
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
        }
        let len = file.metadata()?.len();
        let end = if fresh { 0 } else { find_end(&file, len)? };
        Ok(Self { file, len, end: AtomicU64::new(end), group: Group::new() })
    }

    /// Writes what was collected behind the last frame. Only one thread at a time does.
    fn write(&self, frames: &mut Vec<u8>) -> Result<()> {
        let end = self.end.load(Ordering::Relaxed);
        let after = end + frames.len() as u64;
        if after > self.len {
            return Err("the limit's file is full".into());
        }
        self.file.write_all_at(frames, end)?;
        self.end.store(after, Ordering::Relaxed);
        frames.clear();
        Ok(())
    }
}

impl Engine for Limit {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(Handle(self)))
    }

    fn fill(&self, layout: &Layout, events: &mut Events) -> Result<()> {
        let mut frames = Vec::with_capacity(PIECE_LEN + MAX_FRAME_LEN);
        for (stream, first) in layout.bursts() {
            for seq in first..first + BURST {
                let event = events.make(seq);
                frames.extend_from_slice(&header(stream, seq, event)?);
                frames.extend_from_slice(event);
                if frames.len() >= PIECE_LEN {
                    self.write(&mut frames)?;
                }
            }
        }
        self.write(&mut frames)?;
        Ok(self.file.sync_data()?)
    }

    fn scan(&self) -> Result<Seen> {
        let mut seen = Seen::default();
        let end = self.end.load(Ordering::Relaxed);
        let mut piece = vec![0; PIECE_LEN];
        let mut at = 0;
        while at < end {
            let len = usize::try_from(end - at)?.min(PIECE_LEN);
            self.file.read_exact_at(&mut piece[..len], at)?;
            let mut rest = &piece[..len];
            while let Some((event, behind)) = frame(rest) {
                seen.see(event);
                rest = behind;
            }
            if rest.len() == len {
                return Err(format!("a broken frame at {at}").into());
            }
            at += (len - rest.len()) as u64;
        }
        Ok(seen)
    }

    fn reader(&self, layout: &Layout) -> Result<Option<Box<dyn Reader + '_>>> {
        let frame = vec![0; HEADER_LEN + layout.len];
        Ok(Some(Box::new(At { file: &self.file, layout: *layout, frame })))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct Handle<'l>(&'l Limit);

impl Writer for Handle<'_> {
    fn append(&mut self, stream: u32, seq: u64, event: &[u8]) -> Result<()> {
        let header = header(stream, seq, event)?;
        self.0.group.submit(
            |frames| {
                frames.extend_from_slice(&header);
                frames.extend_from_slice(event);
            },
            |frames| {
                self.0.write(frames)?;
                Ok(self.0.file.sync_data()?)
            },
        )
    }
}

struct At<'l> {
    file: &'l File,
    layout: Layout,
    frame: Vec<u8>,
}

impl Reader for At<'_> {
    fn read(&mut self, stream: u32, seq: u64, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        let at = self.layout.index_of(stream, seq) * self.frame.len() as u64;
        self.file.read_exact_at(&mut self.frame, at)?;
        let (event, _) = frame(&self.frame).ok_or("a broken frame")?;
        visit(event);
        Ok(())
    }
}

fn header(stream: u32, seq: u64, event: &[u8]) -> Result<[u8; HEADER_LEN]> {
    let mut header = [0; HEADER_LEN];
    header[4..8].copy_from_slice(&u32::try_from(event.len())?.to_le_bytes());
    header[8] = KIND;
    header[9..13].copy_from_slice(&stream.to_le_bytes());
    header[13..].copy_from_slice(&u32::try_from(seq)?.to_le_bytes());
    let crc = checksum(&header, event);
    header[..4].copy_from_slice(&crc.to_le_bytes());
    Ok(header)
}

fn checksum(header: &[u8; HEADER_LEN], event: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[4..]);
    crc.update(event);
    crc.finalize()
}

/// The event of the frame that the bytes begin with, and what stands behind it.
fn frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
    let len = u32::from_le_bytes(*header[4..].first_chunk()?) as usize;
    if header[8] != KIND || len > MAX_FRAME_LEN {
        return None;
    }
    let (event, behind) = rest.split_at_checked(len)?;
    let told = u32::from_le_bytes(*header.first_chunk()?);
    (checksum(header, event) == told).then_some((event, behind))
}

/// Where the last whole frame ends: the first page of zeros by bisection, then the frames before it from
/// the first that can be recognised.
fn find_end(file: &File, len: u64) -> Result<u64> {
    let (mut low, mut high) = (0, len / PAGE);
    let mut page = [0; PAGE_LEN];
    while low < high {
        let middle = low.midpoint(high);
        file.read_exact_at(&mut page, middle * PAGE)?;
        if page.iter().all(|byte| *byte == 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let stop = low * PAGE;
    let start = stop.saturating_sub(2 * MAX_FRAME_LEN as u64);
    let mut tail = vec![0; usize::try_from(stop - start)?];
    file.read_exact_at(&mut tail, start)?;
    let Some(first) = (0..tail.len()).find(|at| frame(&tail[*at..]).is_some()) else { return Ok(start) };
    let mut rest = &tail[first..];
    while let Some((_, behind)) = frame(rest) {
        rest = behind;
    }
    Ok(stop - rest.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Content;

    #[test]
    fn opening_again_finds_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(2000, 2, 256);
        let setup = Setup { events: layout.events() + 100, len: 256, durable: true };
        let limit = Limit::open(dir.path(), &setup).unwrap();
        limit.fill(&layout, &mut Events::new(Content::Random, 256, 1)).unwrap();
        limit.writer().unwrap().append(7, 1, b"one more").unwrap();
        let end = limit.end.into_inner();
        assert_eq!(end, layout.events() * 273 + 17 + 8);
        let again = Limit::open(dir.path(), &setup).unwrap();
        assert_eq!(again.end.load(Ordering::Relaxed), end);
        assert_eq!(again.scan().unwrap().events, layout.events() + 1);
    }
}
