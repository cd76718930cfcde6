//! redb: one table by stream and sequence, every transaction with `Durability::Immediate`.
//!
//! Its transactions wait for each other. `redb-grouped` commits the events of all that wait in one.

use super::{Engine, Reader, Waiting, Writer};
use crate::Result;
use crate::event::{BURST, Events, Layout, Seen};
use crate::group::Group;
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::Path;

const EVENTS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("events");

pub(crate) struct Redb {
    database: Database,
    group: Option<Group<Waiting>>,
}

impl Redb {
    pub(crate) fn open(dir: &Path, grouped: bool) -> Result<Self> {
        let database = Database::create(dir.join("events.redb"))?;
        Ok(Self { database, group: grouped.then(Group::new) })
    }

    fn table(&self) -> Result<ReadOnlyTable<(u32, u64), &'static [u8]>> {
        Ok(self.database.begin_read()?.open_table(EVENTS)?)
    }

    fn insert<E: AsRef<[u8]>>(&self, events: impl Iterator<Item = (u32, u64, E)>) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(EVENTS)?;
            for (stream, seq, event) in events {
                table.insert((stream, seq), event.as_ref())?;
            }
        }
        Ok(transaction.commit()?)
    }
}

impl Engine for Redb {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(Handle(self)))
    }

    fn fill(&self, layout: &Layout, events: &mut Events) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(EVENTS)?;
            for (stream, first) in layout.bursts() {
                for seq in first..first + BURST {
                    table.insert((stream, seq), events.make(seq))?;
                }
            }
        }
        Ok(transaction.commit()?)
    }

    fn scan(&self) -> Result<Seen> {
        let mut seen = Seen::default();
        for entry in self.table()?.iter()? {
            seen.see(entry?.1.value());
        }
        Ok(seen)
    }

    fn reader(&self, _layout: &Layout) -> Result<Option<Box<dyn Reader + '_>>> {
        Ok(Some(Box::new(Table(self.table()?))))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct Handle<'r>(&'r Redb);

impl Writer for Handle<'_> {
    fn append(&mut self, stream: u32, seq: u64, event: &[u8]) -> Result<()> {
        match &self.0.group {
            Some(group) => {
                let event = event.to_vec();
                group.submit(|all| all.push((stream, seq, event)), |all| self.0.insert(all.drain(..)))
            }
            None => self.0.insert(std::iter::once((stream, seq, event))),
        }
    }
}

struct Table(ReadOnlyTable<(u32, u64), &'static [u8]>);

impl Reader for Table {
    fn read(&mut self, stream: u32, seq: u64, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        visit(self.0.get((stream, seq))?.ok_or("no such event")?.value());
        Ok(())
    }
}
