//! The tables of the journal, and what becomes of a journal of an agent of before.

use std::collections::{BTreeMap, BTreeSet};

use fleetwright_deploy::ids::{DeploymentId, ServerName};
use fleetwright_deploy::instance::{Instance, InstanceEvent};
use fleetwright_deploy::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::JournalError;

/// The newest of the tables: where it is, all are.
const NEWEST: &str = "intents";

/// Whether all tables are there.
pub(super) fn are_there(connection: &Connection) -> Result<bool, JournalError> {
    is_there(connection, NEWEST)
}

fn is_there(connection: &Connection, table: &str) -> Result<bool, JournalError> {
    let found =
        connection.query_row("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1", [table], |_| Ok(()));
    Ok(found.optional()?.is_some())
}

/// Makes the tables that are missing.
pub(super) fn make(connection: &mut Connection) -> Result<(), JournalError> {
    let transaction = connection.transaction()?;
    let of_before = is_there(&transaction, "events")?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, server TEXT NOT NULL, event TEXT NOT NULL) STRICT;
         CREATE TABLE IF NOT EXISTS seen (command BLOB PRIMARY KEY, at INTEGER NOT NULL) STRICT;
         CREATE TABLE IF NOT EXISTS generations (name TEXT PRIMARY KEY, generation INTEGER NOT NULL) STRICT;
         CREATE TABLE IF NOT EXISTS intents (deployment TEXT PRIMARY KEY, generation INTEGER NOT NULL, ended INTEGER NOT NULL, at INTEGER NOT NULL) STRICT;
         CREATE TABLE IF NOT EXISTS outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, message BLOB NOT NULL, run INTEGER, connection INTEGER) STRICT;
         PRAGMA user_version = 1;",
    )?;
    if of_before {
        take_all_for_ended(&transaction)?;
    }
    Ok(transaction.commit()?)
}

/// An agent of before did not write down which intents it had followed to their end. Those of all deployments that have
/// worked here and do not now are taken for spent: what must still be undone is undone by an intent that is signed anew.
fn take_all_for_ended(transaction: &Transaction<'_>) -> Result<(), JournalError> {
    let instances = instances(transaction)?;
    let under_way: BTreeSet<&DeploymentId> = instances.values().filter_map(Instance::under_way).collect();
    let highest: i64 =
        transaction.query_row("SELECT coalesce(max(generation), 0) FROM generations", [], |row| row.get(0))?;
    let mut statement = transaction.prepare(
        "SELECT event ->> '$.key.deployment' AS deployment, max(at) FROM events WHERE deployment IS NOT NULL GROUP BY deployment",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (text, at): (String, i64) = (row.get(0)?, row.get(1)?);
        let Ok(deployment) = DeploymentId::try_from(text) else { continue };
        let ended = !under_way.contains(&deployment);
        let own = deployment.generation().map_or(0, |own| i64::try_from(own.0).unwrap_or(i64::MAX));
        transaction.execute(
            "INSERT OR IGNORE INTO intents (deployment, generation, ended, at) VALUES (?1, ?2, ?3, ?4)",
            params![deployment.as_str(), if ended { highest.max(own) } else { own }, ended, at],
        )?;
    }
    Ok(())
}

/// Every instance, folded from its events.
pub(super) fn instances(connection: &Connection) -> Result<BTreeMap<ServerName, Instance>, JournalError> {
    let mut instances: BTreeMap<ServerName, Instance> = BTreeMap::new();
    let mut statement = connection.prepare("SELECT seq, at, server, event FROM events ORDER BY seq")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        let server: String = row.get(2)?;
        let inconsistent = |why: String| JournalError::Inconsistent(seq, why);
        let server = ServerName::try_from(server).map_err(|error| inconsistent(error.to_string()))?;
        let event: InstanceEvent = serde_json::from_str(&row.get::<_, String>(3)?)?;
        let instance = instances.entry(server.clone()).or_insert_with(|| Instance::new(server));
        let at = Timestamp::from_unix_ms(row.get(1)?);
        instance.apply(event, at).map_err(|error| inconsistent(error.to_string()))?;
    }
    Ok(instances)
}
