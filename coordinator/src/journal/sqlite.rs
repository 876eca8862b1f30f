//! A journal in one SQLite file: write-ahead log, one writer, every commit synchronised to disk.

use std::path::{Path, PathBuf};

use fleetwright_deploy::fleet::PastDeployment;
use fleetwright_deploy::time::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use super::archive;
use super::store::{EntryHash, Store, StoreError, StoredEntry, StoredSnapshot};

/// What takes a file from each version of the tables to the next one; the first makes them. A step that was
/// released is never changed.
const MIGRATIONS: [&str; 3] = [
    "
    CREATE TABLE events (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, type TEXT NOT NULL, event TEXT NOT NULL,
                         notes TEXT NOT NULL, hash BLOB NOT NULL) STRICT;
    CREATE TABLE torn (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, at INTEGER NOT NULL, type TEXT NOT NULL,
                       event TEXT NOT NULL, notes TEXT NOT NULL, hash BLOB NOT NULL) STRICT;
    CREATE TABLE snapshots (seq INTEGER PRIMARY KEY, version TEXT NOT NULL, state TEXT NOT NULL,
                            hash BLOB NOT NULL) STRICT;",
    archive::TABLES,
    "ALTER TABLE events ADD COLUMN actor TEXT; ALTER TABLE torn ADD COLUMN actor TEXT;",
];
const SNAPSHOTS_KEPT: i64 = 2;
const SALVAGED_AT_ONCE: usize = 1_000;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(error.to_string()),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// A journal's file.
pub struct SqliteStore {
    pub(super) connection: Connection,
}

impl SqliteStore {
    /// Opens the file, makes it when it is not there, and brings its tables to the present version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = Connection::open(path)?;
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;")?;
        migrate(&mut connection)?;
        Ok(Self { connection })
    }

    /// Moves a damaged file aside and makes a new one of its whole entries, up to the first that cannot be read.
    /// Gives where the damaged file is now.
    pub fn salvage(path: &Path) -> Result<(Self, PathBuf), StoreError> {
        let aside = (1..)
            .map(|n| path.with_extension(format!("damaged-{n}")))
            .find(|aside| !aside.exists())
            .unwrap_or_else(|| path.with_extension("damaged"));
        for (suffix, required) in [("", true), ("-wal", false), ("-shm", false)] {
            let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            match std::fs::rename(with(path), with(&aside)) {
                Err(error) if required => return Err(StoreError::Failed(error.to_string())),
                Ok(()) | Err(_) => {}
            }
        }
        let mut store = Self::open(path)?;
        let entries = readable(&aside);
        for (n, chunk) in entries.chunks(SALVAGED_AT_ONCE).enumerate() {
            store.append((n * SALVAGED_AT_ONCE) as u64, chunk)?;
        }
        Ok((store, aside))
    }

    /// Opens the file for reading only, as it is.
    pub fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Ok(Self { connection })
    }

    /// Lets the file have no more than so many pages, so that a test can fill it up.
    pub fn limit_pages(&self, pages: u32) -> Result<(), StoreError> {
        Ok(self.connection.pragma_update(None, "max_page_count", pages)?)
    }
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let present = usize::try_from(version).unwrap_or(usize::MAX);
    if present > MIGRATIONS.len() {
        return Err(StoreError::Newer(version));
    }
    for (n, migration) in MIGRATIONS.iter().enumerate().skip(present) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", i64::try_from(n + 1).unwrap_or(i64::MAX))?;
        transaction.commit()?;
    }
    Ok(())
}

/// The entries of a damaged file, in order, up to the first that cannot be read.
fn readable(path: &Path) -> Vec<StoredEntry> {
    let mut entries = Vec::new();
    let Ok(connection) = Connection::open(path) else { return entries };
    // Without this, SQLite reads nothing at all of a file that is shorter than it says it is.
    if connection.pragma_update(None, "writable_schema", true).is_err() {
        return entries;
    }
    // In a file of before, no entry says who made it happen.
    let actor = if connection.prepare("SELECT actor FROM events").is_ok() { "actor" } else { "NULL" };
    let query = format!("SELECT seq, at, {actor}, type, event, notes, hash FROM events WHERE seq = ?1");
    let mut next = 1;
    while let Ok(entry) = connection.query_row(&query, params![next], entry_of) {
        entries.push(entry);
        next += 1;
    }
    entries
}

fn sql_seq(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

fn seq_of(sql: i64) -> u64 {
    u64::try_from(sql).unwrap_or(0)
}

fn entry_of(row: &Row<'_>) -> rusqlite::Result<StoredEntry> {
    Ok(StoredEntry {
        seq: seq_of(row.get(0)?),
        at: Timestamp::from_unix_ms(row.get(1)?),
        actor: row.get(2)?,
        event_type: row.get(3)?,
        event: row.get(4)?,
        notes: row.get(5)?,
        hash: hash_of(row.get(6)?),
    })
}

/// A hash of the wrong length is no hash of anything.
fn hash_of(bytes: Vec<u8>) -> EntryHash {
    EntryHash(bytes.try_into().unwrap_or_default())
}

impl Store for SqliteStore {
    fn append(&mut self, last: u64, entries: &[StoredEntry]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        let present: Option<i64> =
            transaction.query_row("SELECT max(seq) FROM events", [], |row| row.get(0)).optional()?.flatten();
        let present = seq_of(present.unwrap_or(0));
        if present != last {
            return Err(StoreError::Conflict(present));
        }
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO events (seq, at, actor, type, event, notes, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for entry in entries {
                let at = entry.at.unix_ms();
                insert.execute(params![
                    sql_seq(entry.seq),
                    at,
                    entry.actor,
                    entry.event_type,
                    entry.event,
                    entry.notes,
                    entry.hash.0.as_slice()
                ])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn read(&self, after: u64, limit: usize) -> Result<Vec<StoredEntry>, StoreError> {
        let query = "SELECT seq, at, actor, type, event, notes, hash FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let mut statement = self.connection.prepare_cached(query)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let entries = statement.query_map(params![sql_seq(after), limit], entry_of)?;
        Ok(entries.collect::<rusqlite::Result<_>>()?)
    }

    fn set_aside_after(&mut self, after: u64) -> Result<u64, StoreError> {
        let transaction = self.connection.transaction()?;
        transaction.execute(
            "INSERT INTO torn (seq, at, actor, type, event, notes, hash)
             SELECT seq, at, actor, type, event, notes, hash FROM events WHERE seq > ?1",
            params![sql_seq(after)],
        )?;
        let gone = transaction.execute("DELETE FROM events WHERE seq > ?1", params![sql_seq(after)])?;
        transaction.commit()?;
        Ok(gone as u64)
    }

    fn keep_snapshot(&mut self, snapshot: &StoredSnapshot) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        transaction.execute(
            "INSERT OR REPLACE INTO snapshots (seq, version, state, hash) VALUES (?1, ?2, ?3, ?4)",
            params![sql_seq(snapshot.seq), snapshot.version, snapshot.state, snapshot.hash.0.as_slice()],
        )?;
        transaction.execute(
            "DELETE FROM snapshots WHERE seq NOT IN (SELECT seq FROM snapshots ORDER BY seq DESC LIMIT ?1)",
            params![SNAPSHOTS_KEPT],
        )?;
        Ok(transaction.commit()?)
    }

    fn archive(&mut self, past: &[PastDeployment]) -> Result<(), StoreError> {
        self.keep_past(past)
    }

    fn snapshots(&self) -> Result<Vec<StoredSnapshot>, StoreError> {
        let query = "SELECT seq, version, state, hash FROM snapshots ORDER BY seq DESC";
        let mut statement = self.connection.prepare(query)?;
        let snapshots = statement.query_map([], |row| {
            Ok(StoredSnapshot {
                seq: seq_of(row.get(0)?),
                version: row.get(1)?,
                state: row.get(2)?,
                hash: hash_of(row.get(3)?),
            })
        })?;
        Ok(snapshots.collect::<rusqlite::Result<_>>()?)
    }
}
