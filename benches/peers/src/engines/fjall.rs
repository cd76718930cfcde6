//! fjall: one keyspace by stream and sequence, made durable with `PersistMode::SyncData`.
//!
//! `fjall-grouped` writes the events of all that wait as one batch, which is synced once.

use super::{Engine, Reader, Waiting, Writer};
use crate::Result;
use crate::event::{BURST, Events, Layout, Seen};
use crate::group::Group;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::path::Path;

pub(crate) struct Fjall {
    database: Database,
    events: Keyspace,
    group: Option<Group<Waiting>>,
}

impl Fjall {
    pub(crate) fn open(dir: &Path, grouped: bool) -> Result<Self> {
        let database = Database::builder(dir.join("fjall")).manual_journal_persist(true).open()?;
        let events =
            database.keyspace("events", || KeyspaceCreateOptions::default().manual_journal_persist(true))?;
        Ok(Self { database, events, group: grouped.then(Group::new) })
    }
}

fn key(stream: u32, seq: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&stream.to_be_bytes());
    key[4..].copy_from_slice(&seq.to_be_bytes());
    key
}

impl Engine for Fjall {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(Handle(self)))
    }

    fn fill(&self, layout: &Layout, events: &mut Events) -> Result<()> {
        for (stream, first) in layout.bursts() {
            for seq in first..first + BURST {
                self.events.insert(key(stream, seq), events.make(seq))?;
            }
        }
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    fn scan(&self) -> Result<Seen> {
        let mut seen = Seen::default();
        for entry in self.events.iter() {
            seen.see(&entry.value()?);
        }
        Ok(seen)
    }

    fn reader(&self, _layout: &Layout) -> Result<Option<Box<dyn Reader + '_>>> {
        Ok(Some(Box::new(Handle(self))))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }
}

struct Handle<'f>(&'f Fjall);

impl Writer for Handle<'_> {
    fn append(&mut self, stream: u32, seq: u64, event: &[u8]) -> Result<()> {
        let Fjall { database, events, group } = self.0;
        let Some(group) = group else {
            events.insert(key(stream, seq), event)?;
            return Ok(database.persist(PersistMode::SyncData)?);
        };
        let event = event.to_vec();
        group.submit(
            |all| all.push((stream, seq, event)),
            |all| {
                let mut batch = database.batch().durability(Some(PersistMode::SyncData));
                for (stream, seq, event) in all.drain(..) {
                    batch.insert(events, key(stream, seq), event);
                }
                Ok(batch.commit()?)
            },
        )
    }
}

impl Reader for Handle<'_> {
    fn read(&mut self, stream: u32, seq: u64, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        visit(&self.0.events.get(key(stream, seq))?.ok_or("no such event")?);
        Ok(())
    }
}
