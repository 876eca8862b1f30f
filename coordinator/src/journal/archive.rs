//! Deployments that have left the fleet, beside its journal: read by page, the newest thousand of them.

use std::collections::BTreeSet;
use std::io;

use fleetwright_deploy::deployment::{Deployment, DeploymentSummary};
use fleetwright_deploy::fleet::PastDeployment;
use fleetwright_deploy::ids::{DeploymentId, Generation, ReleaseId, ServerName};
use rusqlite::{OptionalExtension, params};

use super::sqlite::SqliteStore;
use super::store::StoreError;

/// How many deployments the archive holds; the oldest go for new ones. The entries of the journal stay.
pub const ARCHIVED_MAX: u32 = 1_000;

/// The level of compression: plans of many hosts repeat themselves, and any level finds that.
const COMPRESSION: i32 = 3;

/// Its tables.
pub(super) const TABLES: &str = "
    CREATE TABLE deployments (id TEXT PRIMARY KEY, generation INTEGER NOT NULL, summary TEXT NOT NULL,
                              deployment BLOB NOT NULL) STRICT;
    CREATE UNIQUE INDEX deployments_by_generation ON deployments (generation);
    CREATE TABLE planned (server TEXT NOT NULL, id TEXT NOT NULL, releases TEXT NOT NULL,
                          PRIMARY KEY (server, id)) STRICT, WITHOUT ROWID;
    CREATE INDEX planned_by_deployment ON planned (id);";

/// A deployment of the archive, with its place in their order.
pub type Placed<T> = (Generation, T);

/// What an archived deployment had planned for a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastPlan {
    /// The deployment.
    pub summary: DeploymentSummary,
    /// The releases that it had planned for the server.
    pub releases: BTreeSet<ReleaseId>,
}

impl SqliteStore {
    /// Keeps deployments. What is kept already is written anew: a newer version of this program may write it in another form.
    pub(super) fn keep_past(&mut self, past: &[PastDeployment]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        for PastDeployment { summary, planned, deployment } in past {
            let packed = zstd::encode_all(json(deployment)?.as_bytes(), COMPRESSION).map_err(failed)?;
            let (id, generation) = (summary.id.as_str(), sql_generation(deployment.generation()));
            transaction.execute(
                "INSERT OR REPLACE INTO deployments (id, generation, summary, deployment) VALUES (?1, ?2, ?3, ?4)",
                params![id, generation, json(summary)?, packed],
            )?;
            for (server, releases) in planned {
                transaction.execute(
                    "INSERT OR REPLACE INTO planned (server, id, releases) VALUES (?1, ?2, ?3)",
                    params![server.as_str(), id, json(releases)?],
                )?;
            }
        }
        let old = "SELECT id FROM deployments ORDER BY generation DESC LIMIT -1 OFFSET ?1";
        transaction.execute(&format!("DELETE FROM planned WHERE id IN ({old})"), params![ARCHIVED_MAX])?;
        transaction.execute(&format!("DELETE FROM deployments WHERE id IN ({old})"), params![ARCHIVED_MAX])?;
        Ok(transaction.commit()?)
    }

    /// The lines of archived deployments before a generation, the newest first, at most so many.
    pub fn past(&self, before: Generation, limit: usize) -> Result<Vec<Placed<DeploymentSummary>>, StoreError> {
        let query =
            "SELECT generation, summary FROM deployments WHERE generation < ?1 ORDER BY generation DESC LIMIT ?2";
        let mut statement = self.connection.prepare_cached(query)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![sql_generation(before), limit], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        rows.map(|row| row.map_err(StoreError::from).and_then(|(at, text)| Ok((generation_of(at), parsed(&text)?))))
            .collect()
    }

    /// An archived deployment.
    pub fn past_deployment(&self, id: &DeploymentId) -> Result<Option<Deployment>, StoreError> {
        let query = "SELECT deployment FROM deployments WHERE id = ?1";
        let packed: Option<Vec<u8>> =
            self.connection.query_row(query, params![id.as_str()], |row| row.get(0)).optional()?;
        let Some(packed) = packed else { return Ok(None) };
        let text = zstd::decode_all(packed.as_slice()).map_err(failed)?;
        serde_json::from_slice(&text).map(Some).map_err(|error| StoreError::Damaged(error.to_string()))
    }

    /// The archived deployments that had planned releases for a server, the newest first.
    pub fn past_of(&self, server: &ServerName) -> Result<Vec<Placed<PastPlan>>, StoreError> {
        let query = "SELECT generation, summary, releases FROM planned JOIN deployments USING (id)
                     WHERE server = ?1 ORDER BY generation DESC";
        let mut statement = self.connection.prepare_cached(query)?;
        let rows = statement.query_map(params![server.as_str()], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
        })?;
        rows.map(|row| {
            let (at, summary, releases) = row?;
            Ok((generation_of(at), PastPlan { summary: parsed(&summary)?, releases: parsed(&releases)? }))
        })
        .collect()
    }
}

fn sql_generation(generation: Generation) -> i64 {
    i64::try_from(generation.0).unwrap_or(i64::MAX)
}

fn generation_of(sql: i64) -> Generation {
    Generation(u64::try_from(sql).unwrap_or(0))
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Failed(error.to_string()))
}

fn parsed<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged(error.to_string()))
}

fn failed(error: io::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}
