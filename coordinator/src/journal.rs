//! The coordinator's journal: every event of the fleet, in order, durable before anything is done about it.

use std::path::Path;

use fleetwright_deploy::deployment::Note;
use fleetwright_deploy::fleet::{Fleet, FleetEvent};
use fleetwright_deploy::ids::FleetName;
use fleetwright_deploy::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// The version of the tables below.
const SCHEMA_VERSION: i64 = 1;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("journal: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("journal: an entry cannot be written or read: {0}")]
    Entry(#[from] serde_json::Error),
    #[error("journal: it was written by a newer coordinator (version {0}); install that one again")]
    Newer(i64),
    #[error("journal: another process wrote entry {0}")]
    Conflict(u64),
    #[error("journal: entry {0} does not fit those before it: {1}")]
    Inconsistent(u64, String),
}

/// What people are told about one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventRecord {
    /// The number of the entry, from 1; what comes after it can be asked for by it.
    pub(crate) seq: u64,
    /// When.
    pub(crate) at: Timestamp,
    /// The type of the entry.
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    /// What happened.
    pub(crate) notes: Vec<Note>,
}

/// The whole interface that the engine needs of a store of events.
pub(crate) trait Journal: Send {
    /// Makes an entry durable as number `seq`, which must be the next one.
    fn append(&mut self, seq: u64, at: Timestamp, event: &FleetEvent, notes: &[Note]) -> Result<(), JournalError>;
    /// What people are told about entries after `after`, at most `limit` of them.
    fn records(&self, after: u64, limit: usize) -> Result<Vec<EventRecord>, JournalError>;
    /// Folds every entry into a fleet; gives it with the number of the last one.
    fn fold(&self, name: FleetName) -> Result<(Fleet, u64), JournalError>;
}

/// A journal in one SQLite file: write-ahead log, one writer, every commit synchronised to disk.
pub(crate) struct SqliteJournal {
    connection: Connection,
}

impl SqliteJournal {
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let connection = Connection::open(path)?;
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;")?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            return Err(JournalError::Newer(version));
        }
        connection.execute_batch(
            "BEGIN;
             CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, type TEXT NOT NULL, event TEXT NOT NULL, notes TEXT NOT NULL) STRICT;
             PRAGMA user_version = 1;
             COMMIT;",
        )?;
        Ok(Self { connection })
    }
}

fn sql_seq(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

fn seq_of(sql: i64) -> u64 {
    u64::try_from(sql).unwrap_or(0)
}

impl Journal for SqliteJournal {
    fn append(&mut self, seq: u64, at: Timestamp, event: &FleetEvent, notes: &[Note]) -> Result<(), JournalError> {
        let name: &'static str = event.into();
        let transaction = self.connection.transaction()?;
        let last: Option<i64> =
            transaction.query_row("SELECT max(seq) FROM events", [], |row| row.get(0)).optional()?.flatten();
        if seq_of(last.unwrap_or(0)) + 1 != seq {
            return Err(JournalError::Conflict(seq_of(last.unwrap_or(0))));
        }
        transaction.execute(
            "INSERT INTO events (seq, at, type, event, notes) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![sql_seq(seq), at.unix_ms(), name, serde_json::to_string(event)?, serde_json::to_string(notes)?],
        )?;
        transaction.commit()?;
        Ok(())
    }

    fn records(&self, after: u64, limit: usize) -> Result<Vec<EventRecord>, JournalError> {
        let query = "SELECT seq, at, type, notes FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let mut statement = self.connection.prepare(query)?;
        let mut rows = statement.query(params![sql_seq(after), i64::try_from(limit).unwrap_or(i64::MAX)])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            records.push(EventRecord {
                seq: seq_of(row.get(0)?),
                at: Timestamp::from_unix_ms(row.get(1)?),
                event_type: row.get(2)?,
                notes: serde_json::from_str(&row.get::<_, String>(3)?)?,
            });
        }
        Ok(records)
    }

    fn fold(&self, name: FleetName) -> Result<(Fleet, u64), JournalError> {
        let mut fleet = Fleet::new(name);
        let mut last = 0;
        let mut statement = self.connection.prepare("SELECT seq, at, event FROM events ORDER BY seq")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            last = seq_of(row.get(0)?);
            let event: FleetEvent = serde_json::from_str(&row.get::<_, String>(2)?)?;
            let applied = fleet.apply(event, Timestamp::from_unix_ms(row.get(1)?));
            applied.map_err(|refused| JournalError::Inconsistent(last, refused.to_string()))?;
        }
        Ok((fleet, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_there_after_opening_again_and_a_second_writer_is_noticed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("journal.db");
        let at = Timestamp::from_unix_ms(5);
        let token = FleetEvent::TokenIssued {
            host: "h1".parse().expect("name"),
            token_sha256: "aa".to_owned(),
            not_after: Timestamp::from_unix_ms(10),
        };
        let mut live = Fleet::new("demo".parse().expect("name"));
        {
            let mut journal = SqliteJournal::open(&path).expect("open");
            for (seq, event) in [(1, FleetEvent::CoordinatorStarted), (2, token)] {
                let effects = live.apply(event.clone(), at).expect("apply");
                journal.append(seq, at, &event, &effects.notes).expect("append");
            }
            assert!(matches!(
                journal.append(2, at, &FleetEvent::CoordinatorStarted, &[]),
                Err(JournalError::Conflict(2))
            ));
        }
        let journal = SqliteJournal::open(&path).expect("open");
        assert_eq!(journal.fold("demo".parse().expect("name")).expect("fold"), (live, 2));
        let records = journal.records(1, 10).expect("records");
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].event_type, "token_issued");
    }
}
