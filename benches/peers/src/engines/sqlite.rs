//! SQLite: one table by stream and sequence, a write-ahead log, every commit synced.
//!
//! Each writer has a connection with prepared statements. Writers queue for their turn before they begin a
//! transaction, as SQLite's own way to wait is to sleep and try again. `sqlite-grouped` has one connection:
//! whoever leads inserts the events of all that wait in one transaction.

use super::{Engine, Reader, Waiting, Writer};
use crate::Result;
use crate::event::{BURST, Events, Layout, Seen};
use crate::group::Group;
use rusqlite::{CachedStatement, Connection, params};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const INSERT: &str = "INSERT INTO events (stream, seq, event) VALUES (?1, ?2, ?3)";
const SELECT: &str = "SELECT event FROM events WHERE stream = ?1 AND seq = ?2";
const SCAN: &str = "SELECT event FROM events ORDER BY stream, seq";

#[derive(Debug)]
pub(crate) struct Sqlite {
    path: PathBuf,
    connection: Mutex<Connection>,
    turn: Mutex<()>,
    group: Option<Group<Waiting>>,
}

impl Sqlite {
    pub(crate) fn open(dir: &Path, grouped: bool) -> Result<Self> {
        let path = dir.join("events.db");
        let connection = connect(&path)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS events (
                stream INTEGER NOT NULL, seq INTEGER NOT NULL, event BLOB NOT NULL, PRIMARY KEY (stream, seq)
            ) WITHOUT ROWID",
        )?;
        let group = grouped.then(Group::new);
        Ok(Self { path, connection: Mutex::new(connection), turn: Mutex::default(), group })
    }

    fn insert_all(&self, events: &mut Waiting) -> Result<()> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(INSERT)?;
            for (stream, seq, event) in events.drain(..) {
                insert.execute(params![stream, seq.cast_signed(), event])?;
            }
        }
        Ok(transaction.commit()?)
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -65_536)?;
    connection.pragma_update(None, "mmap_size", 8_i64 << 30)?;
    Ok(connection)
}

impl Engine for Sqlite {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(match &self.group {
            Some(group) => Box::new(Grouped { sqlite: self, group }),
            None => Box::new(Own { connection: connect(&self.path)?, turn: &self.turn }),
        })
    }

    fn fill(&self, layout: &Layout, events: &mut Events) -> Result<()> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare(INSERT)?;
            for (stream, first) in layout.bursts() {
                for seq in first..first + BURST {
                    insert.execute(params![stream, seq.cast_signed(), events.make(seq)])?;
                }
            }
        }
        Ok(transaction.commit()?)
    }

    fn scan(&self) -> Result<Seen> {
        let mut seen = Seen::default();
        let connection = connect(&self.path)?;
        let mut scan = connection.prepare(SCAN)?;
        let mut rows = scan.query([])?;
        while let Some(row) = rows.next()? {
            seen.see(row.get_ref(0)?.as_blob()?);
        }
        Ok(seen)
    }

    fn reader(&self, _layout: &Layout) -> Result<Option<Box<dyn Reader + '_>>> {
        Ok(Some(Box::new(Own { connection: connect(&self.path)?, turn: &self.turn })))
    }

    fn close(self: Box<Self>) -> Result<()> {
        let connection = self.connection.into_inner().unwrap_or_else(PoisonError::into_inner);
        connection.close().map_err(|(_, error)| error.into())
    }
}

struct Own<'s> {
    connection: Connection,
    turn: &'s Mutex<()>,
}

impl Writer for Own<'_> {
    fn append(&mut self, stream: u32, seq: u64, event: &[u8]) -> Result<()> {
        let mut insert: CachedStatement<'_> = self.connection.prepare_cached(INSERT)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        insert.execute(params![stream, seq.cast_signed(), event])?;
        Ok(())
    }
}

impl Reader for Own<'_> {
    fn read(&mut self, stream: u32, seq: u64, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut select = self.connection.prepare_cached(SELECT)?;
        let mut rows = select.query(params![stream, seq.cast_signed()])?;
        let row = rows.next()?.ok_or("no such event")?;
        visit(row.get_ref(0)?.as_blob()?);
        Ok(())
    }
}

struct Grouped<'s> {
    sqlite: &'s Sqlite,
    group: &'s Group<Waiting>,
}

impl Writer for Grouped<'_> {
    fn append(&mut self, stream: u32, seq: u64, event: &[u8]) -> Result<()> {
        let event = event.to_vec();
        self.group.submit(|all| all.push((stream, seq, event)), |all| self.sqlite.insert_all(all))
    }
}
