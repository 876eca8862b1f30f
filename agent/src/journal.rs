//! The agent's journal: what was decided, which commands were obeyed, and what has yet to be told. One SQLite
//! file, one writer, every commit synchronised to disk.
//!
//! Its files are larger than what is in them: whoever fills the disk cannot take the room within, so the agent can go on
//! deciding for a while.

mod tables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fleetwright_deploy::admission::{Admission, Followed, OBEYED_KEPT, Signed, Stamp};
use fleetwright_deploy::ids::{CommandId, DeploymentId, Generation, ServerName};
use fleetwright_deploy::instance::{Instance, InstanceEvent};
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::report::AgentMessageV1;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, Transaction, params};

/// The version of the tables below.
const SCHEMA_VERSION: i64 = 1;
/// The room that is kept within the journal's files, in bytes.
pub(crate) const ROOM_BYTES: i64 = 1024 * 1024;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("journal: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("journal: no room is left on its disk: {0}")]
    Full(rusqlite::Error),
    #[error("journal: an entry cannot be read: {0}")]
    Entry(#[from] serde_json::Error),
    #[error("journal: {0}")]
    Message(#[from] fleetwright_protocol::FrameError),
    #[error("journal: it was written by a newer agent (version {0}); install that agent again")]
    Newer(i64),
    #[error("journal: entry {0} does not fit those before it: {1}")]
    Inconsistent(i64, String),
}

impl JournalError {
    /// Whether there is no room left on its disk. Nothing was written then.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Full(_) => true,
            Self::Sqlite(rusqlite::Error::SqliteFailure(error, _)) => error.code == ErrorCode::DiskFull,
            _ => false,
        }
    }

    /// Says whether it is for lack of room: by what the operating system has said (`os`, a quota) of what could not be
    /// written, and by the disk itself of what could not be made. A disk that fails is not one that is full.
    fn judged(self, os: i32, path: &Path) -> Self {
        let Self::Sqlite(rusqlite::Error::SqliteFailure(error, message)) = self else { return self };
        let full = match error.extended_code {
            rusqlite::ffi::SQLITE_IOERR_WRITE => [libc::ENOSPC, libc::EDQUOT].contains(&os),
            rusqlite::ffi::SQLITE_CANTOPEN => nothing_can_be_made_beside(path),
            _ => false,
        };
        let error = rusqlite::Error::SqliteFailure(error, message);
        if full { Self::Full(error) } else { Self::Sqlite(error) }
    }
}

/// Whether the file system of a file has no room for another one: SQLite tries to read what it could not make, and that is
/// the error it knows.
fn nothing_can_be_made_beside(path: &Path) -> bool {
    let disk = path.parent().and_then(|folder| rustix::fs::statvfs(folder).ok());
    disk.is_some_and(|disk| disk.f_bavail == 0 || (disk.f_files > 0 && disk.f_favail == 0))
}

/// What one commit makes durable, together or not at all.
#[derive(Default)]
pub(crate) struct Commit {
    /// An event of an instance.
    pub(crate) event: Option<(ServerName, InstanceEvent)>,
    /// A command that is obeyed by it, and the generations it raises.
    pub(crate) command: Option<Stamp>,
    /// An operator's intent that the host has heard of, and whether its deployment has ended.
    pub(crate) heard: Option<(Signed, bool)>,
    /// What the coordinator must be told.
    pub(crate) reports: Vec<Outgoing>,
}

/// A report that waits for its acknowledgement.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    /// Its number; 0 until it is committed.
    pub(crate) number: i64,
    /// What to tell.
    pub(crate) message: AgentMessageV1,
    /// The connection it must not go over: it needs a newer one, as proof that the host can still make one.
    /// Nothing when any connection will do.
    pub(crate) not_over: Option<ConnectionSerial>,
}

/// Counts the connections of one run of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionSerial {
    /// Distinguishes runs of the agent.
    pub(crate) run: i64,
    /// Counts within the run, from 1.
    pub(crate) count: i64,
}

pub(crate) struct Journal {
    connection: Connection,
    path: PathBuf,
    /// Has everything fail as on a full disk.
    #[cfg(test)]
    pub(crate) full: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Journal {
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let connection = Connection::open(path).map_err(|error| JournalError::from(error).judged(0, path))?;
        let mut journal = Self {
            connection,
            path: path.to_owned(),
            #[cfg(test)]
            full: std::sync::Arc::default(),
        };
        match journal.begin() {
            Ok(()) => Ok(journal),
            Err(error) => Err(journal.judge(error)),
        }
    }

    fn begin(&mut self) -> Result<(), JournalError> {
        // One agent at a time has it, so its index need not be shared: in memory it takes no room on the disk.
        self.connection.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;",
        )?;
        let connection = &self.connection;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            return Err(JournalError::Newer(version));
        }
        // The room within the files is kept over a restart, too.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // A journal that is there is opened without writing: its disk may be full.
        if !tables::are_there(connection)? {
            tables::make(&mut self.connection)?;
        }
        match self.keep_room() {
            Err(error) if !error.is_full() => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Says of an error of this connection whether it is for lack of room.
    fn judge(&self, error: JournalError) -> JournalError {
        #[expect(unsafe_code, reason = "the connection is open; there is no other way to the error of the system")]
        let os = unsafe { rusqlite::ffi::sqlite3_system_errno(self.connection.handle()) };
        error.judged(os, &self.path)
    }

    /// Keeps room within the journal's files, unless there is enough in them: pages that are written and free, and a
    /// write-ahead log that begins again where it was written before.
    pub(crate) fn keep_room(&mut self) -> Result<(), JournalError> {
        self.try_to_keep_room().map_err(|error| self.judge(error))
    }

    fn try_to_keep_room(&self) -> Result<(), JournalError> {
        let number = |pragma: &str| self.connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
        let free = number("PRAGMA freelist_count")?.saturating_mul(number("PRAGMA page_size")?);
        let log = std::fs::metadata(self.log()).map_or(0, |metadata| i64::try_from(metadata.len()).unwrap_or(i64::MAX));
        if free >= ROOM_BYTES / 2 && log >= ROOM_BYTES {
            return Ok(());
        }
        // Each step as one transaction: one that fails leaves nothing behind.
        for step in [
            "DROP TABLE IF EXISTS room",
            &format!("CREATE TABLE room AS SELECT zeroblob({ROOM_BYTES}) AS bytes"),
            "DROP TABLE room",
        ] {
            self.connection.execute_batch(step)?;
        }
        self.begin_log_again()
    }

    fn log(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push("-wal");
        path.into()
    }

    /// Has the log begin again at its start, where it needs no new room.
    fn begin_log_again(&self) -> Result<(), JournalError> {
        self.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))?;
        Ok(())
    }

    #[cfg(test)]
    fn fail_when_full(&self) -> Result<(), JournalError> {
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        match self.full.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(rusqlite::Error::SqliteFailure(full, None).into()),
            false => Ok(()),
        }
    }

    /// Whether anything can be made durable.
    pub(crate) fn probe(&self) -> Result<(), JournalError> {
        #[cfg(test)]
        self.fail_when_full()?;
        let probed = self.connection.execute_batch(&format!("PRAGMA user_version = {SCHEMA_VERSION};"));
        probed.map_err(|error| self.judge(error.into()))
    }

    /// The latest time in it.
    pub(crate) fn last_time(&self) -> Result<Timestamp, JournalError> {
        let last: Option<i64> = self.connection.query_row("SELECT max(at) FROM events", [], |row| row.get(0))?;
        Ok(Timestamp::from_unix_ms(last.unwrap_or(0)))
    }

    /// Every instance, folded from its events.
    pub(crate) fn instances(&self) -> Result<BTreeMap<ServerName, Instance>, JournalError> {
        tables::instances(&self.connection)
    }

    /// Makes a commit durable, without new room on the disk where there is none.
    pub(crate) fn commit(&mut self, commit: &Commit, now: Timestamp) -> Result<(), JournalError> {
        #[cfg(test)]
        self.fail_when_full()?;
        match self.try_commit(commit, now).map_err(|error| self.judge(error)) {
            Err(error) if error.is_full() && self.begin_log_again().is_ok() => {
                self.try_commit(commit, now).map_err(|error| self.judge(error))
            }
            other => other,
        }
    }

    fn try_commit(&mut self, commit: &Commit, now: Timestamp) -> Result<(), JournalError> {
        let transaction = self.connection.transaction()?;
        if let Some((server, event)) = &commit.event {
            transaction.execute(
                "INSERT INTO events (at, server, event) VALUES (?1, ?2, ?3)",
                params![now.unix_ms(), server.as_str(), serde_json::to_string(event)?],
            )?;
        }
        if let Some(command) = &commit.command {
            obey(&transaction, command, now)?;
            follow(&transaction, &command.intent, false, now)?;
        }
        if let Some((intent, ended)) = &commit.heard {
            follow(&transaction, intent, *ended, now)?;
        }
        for report in &commit.reports {
            let message = fleetwright_protocol::frame::encode(&report.message, usize::MAX)?;
            transaction.execute(
                "INSERT INTO outbox (message, run, connection) VALUES (?1, ?2, ?3)",
                params![message, report.not_over.map(|serial| serial.run), report.not_over.map(|serial| serial.count)],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// What is remembered of the commands that were obeyed.
    pub(crate) fn admission(&self) -> Result<Admission, JournalError> {
        let mut statement = self.connection.prepare("SELECT command, at FROM seen")?;
        let seen = statement.query_map([], |row| Ok((CommandId(row.get(0)?), Timestamp::from_unix_ms(row.get(1)?))))?;
        let obeyed = seen.collect::<rusqlite::Result<_>>()?;
        let mut statement = self.connection.prepare("SELECT name, generation FROM generations")?;
        let mut rows = statement.query([])?;
        let (mut fleet, mut intents) = (Generation::default(), BTreeMap::new());
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            let generation = Generation(u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0));
            match name.strip_prefix(INTENT_PREFIX).map(str::parse) {
                None => fleet = generation,
                Some(Ok(server)) => drop(intents.insert(server, generation)),
                Some(Err(_)) => {}
            }
        }
        Ok(Admission::new(fleet, intents, obeyed, self.followed()?))
    }

    /// What the host has heard of operators' intents.
    fn followed(&self) -> Result<BTreeMap<DeploymentId, Followed>, JournalError> {
        let mut statement = self.connection.prepare("SELECT deployment, generation, ended, at FROM intents")?;
        let mut rows = statement.query([])?;
        let mut followed = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let Ok(deployment) = DeploymentId::try_from(row.get::<_, String>(0)?) else { continue };
            let generation = Generation(u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0));
            let (ended, at) = (row.get(2)?, Timestamp::from_unix_ms(row.get(3)?));
            followed.insert(deployment, Followed { generation, ended, at });
        }
        Ok(followed)
    }

    /// Everything that has yet to be told, the oldest first. What an older agent kept may be larger than a message.
    pub(crate) fn outbox(&self) -> Result<Vec<Outgoing>, JournalError> {
        let mut statement =
            self.connection.prepare("SELECT number, message, run, connection FROM outbox ORDER BY number")?;
        let mut rows = statement.query([])?;
        let mut reports = Vec::new();
        while let Some(row) = rows.next()? {
            let message: Vec<u8> = row.get(1)?;
            let run: Option<i64> = row.get(2)?;
            let count: Option<i64> = row.get(3)?;
            reports.push(Outgoing {
                number: row.get(0)?,
                message: fleetwright_protocol::frame::decode::<AgentMessageV1>(&message)?.bounded(),
                not_over: run.zip(count).map(|(run, count)| ConnectionSerial { run, count }),
            });
        }
        Ok(reports)
    }

    /// Forgets a report that was acknowledged, and those before it: they are told in order.
    pub(crate) fn told(&mut self, number: i64) -> Result<(), JournalError> {
        let told = self.connection.execute("DELETE FROM outbox WHERE number <= ?1", params![number]);
        told.map(drop).map_err(|error| self.judge(error.into()))
    }
}

const FLEET_GENERATION: &str = "fleet";
const INTENT_PREFIX: &str = "intent/";

fn obey(transaction: &Transaction<'_>, command: &Stamp, now: Timestamp) -> Result<(), JournalError> {
    transaction.execute("DELETE FROM seen WHERE at < ?1", params![forgotten_before(now)])?;
    transaction.execute("INSERT INTO seen (command, at) VALUES (?1, ?2)", params![command.id.0, now.unix_ms()])?;
    let (server, intent) = (&command.server, command.intent.generation);
    for (name, generation) in
        [(FLEET_GENERATION.to_owned(), command.generation), (format!("{INTENT_PREFIX}{server}"), intent)]
    {
        transaction.execute(
            "INSERT INTO generations (name, generation) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET generation = max(generation, excluded.generation)",
            params![name, i64::try_from(generation.0).unwrap_or(i64::MAX)],
        )?;
    }
    Ok(())
}

/// As [`Admission::follow`] does it in memory.
fn follow(transaction: &Transaction<'_>, intent: &Signed, ended: bool, now: Timestamp) -> Result<(), JournalError> {
    transaction.execute("DELETE FROM intents WHERE at < ?1", params![forgotten_before(now)])?;
    let generation = i64::try_from(intent.generation.0).unwrap_or(i64::MAX);
    transaction.execute(
        "INSERT INTO intents (deployment, generation, ended, at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (deployment) DO UPDATE SET
             ended = CASE WHEN excluded.generation > generation THEN excluded.ended ELSE max(ended, excluded.ended) END,
             generation = excluded.generation, at = excluded.at
         WHERE excluded.generation >= generation",
        params![intent.deployment.as_str(), generation, ended, now.unix_ms()],
    )?;
    Ok(())
}

/// What is of before this is forgotten.
fn forgotten_before(now: Timestamp) -> i64 {
    now.unix_ms().saturating_sub(i64::try_from(OBEYED_KEPT.ms()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use fleetwright_deploy::admission::{Asks, NotAdmitted, Purpose};
    use fleetwright_deploy::failure::{Failure, FailureKind};
    use fleetwright_deploy::ids::ReleaseId;
    use fleetwright_deploy::instance::{StepKey, StepReport};
    use fleetwright_protocol::frame::{MESSAGE_BYTES_MAX, encode};

    use super::*;

    fn server() -> ServerName {
        "time".parse().expect("name")
    }

    fn signed(deployment: &str, generation: u64) -> Signed {
        let (deployment, begin_by) = (deployment.parse().expect("id"), Timestamp::from_unix_ms(9_000));
        Signed { deployment, generation: Generation(generation), purpose: Purpose::Deploy, begin_by }
    }

    fn stamp(generation: u64, intent: u64) -> Stamp {
        Stamp {
            id: CommandId([7; 16]),
            generation: Generation(generation),
            server: server(),
            asks: Asks::Forward,
            intent: signed("d1-aa", intent),
        }
    }

    fn key() -> StepKey {
        StepKey { deployment: "d1-aa".parse().expect("id"), attempt: 1 }
    }

    #[test]
    fn what_was_committed_is_there_after_opening_again_and_folds_to_the_same_state() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("journal.db");
        let now = Timestamp::from_unix_ms(1_000);
        let mut live = Instance::new(server());
        let heard =
            [("d1-aa", 3, true), ("d1-aa", 2, false), ("d2-bb", 5, false), ("d2-bb", 6, false), ("d2-bb", 6, true)];
        {
            let mut journal = Journal::open(&path).expect("open");
            let events = [
                InstanceEvent::StageRequested { key: key(), release: ReleaseId::of(b"r") },
                InstanceEvent::StageFailed {
                    key: key(),
                    failure: Failure::new(FailureKind::DependencyError, "install", "no"),
                },
            ];
            for event in events {
                live.apply(event.clone(), now).expect("legal");
                let commit = Commit { event: Some((server(), event)), ..Commit::default() };
                journal.commit(&commit, now).expect("commit");
            }
            journal.commit(&Commit { command: Some(stamp(4, 3)), ..Commit::default() }, now).expect("commit");
            for (deployment, generation, ended) in heard {
                let heard = Some((signed(deployment, generation), ended));
                journal.commit(&Commit { heard, ..Commit::default() }, now).expect("commit");
            }
        }
        let journal = Journal::open(&path).expect("open");
        assert_eq!(journal.instances().expect("fold").get(&server()), Some(&live));
        let mut admission = Admission::default();
        admission.obey(stamp(4, 3), now);
        heard.iter().for_each(|(of, generation, ended)| admission.follow(&signed(of, *generation), *ended, now));
        assert_eq!(journal.admission().expect("admission"), admission);
    }

    #[test]
    fn a_command_is_obeyed_once_or_the_whole_commit_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let mut journal = Journal::open(&folder.path().join("journal.db")).expect("open");
        let event = InstanceEvent::StageRequested { key: key(), release: ReleaseId::of(b"r") };
        let commit =
            || Commit { event: Some((server(), event.clone())), command: Some(stamp(1, 1)), ..Commit::default() };
        let now = Timestamp::from_unix_ms(1_000);
        journal.commit(&commit(), now).expect("first");
        assert!(journal.commit(&commit(), now).is_err());
        assert_eq!(journal.instances().expect("fold").len(), 1);
    }

    #[test]
    fn the_journal_goes_on_within_its_own_files_and_keeps_them_over_a_restart() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("journal.db");
        let sizes = || {
            let size = |path: PathBuf| std::fs::metadata(path).expect("a file").len();
            (size(path.clone()), size(folder.path().join("journal.db-wal")))
        };
        let now = Timestamp::from_unix_ms(1_000);
        let event = || InstanceEvent::StageFailed {
            key: key(),
            failure: Failure::new(FailureKind::DependencyError, "install", "x".repeat(1_000)),
        };
        let kept = {
            let mut journal = Journal::open(&path).expect("open");
            let kept = sizes();
            assert!(kept.0 >= 1 << 20 && kept.1 >= 1 << 20, "{kept:?}");
            for _ in 0..4 {
                for _ in 0..25 {
                    let commit = Commit { event: Some((server(), event())), ..Commit::default() };
                    journal.try_commit(&commit, now).expect("commit");
                }
                // As a commit does that finds no room.
                journal.begin_log_again().expect("a checkpoint");
            }
            assert_eq!(sizes(), kept, "a hundred decisions took no room on the disk");
            kept
        };
        assert_eq!(sizes(), kept, "nor is it given back when the journal is closed");
        drop(Journal::open(&path).expect("open"));
        assert_eq!(sizes(), kept);
    }

    #[test]
    fn a_report_of_an_older_agent_that_is_too_large_is_mended() {
        let folder = tempfile::tempdir().expect("folder");
        let mut journal = Journal::open(&folder.path().join("journal.db")).expect("open");
        let mut failure = Failure::new(FailureKind::DeploymentError, "start", "no");
        failure.output = vec!["x".repeat(1 << 20); 50];
        let (deployment, report) = ("d1-aa".parse().expect("id"), StepReport::Failed(failure));
        let message = AgentMessageV1::Step { deployment, server: server(), attempt: 1, report };
        let reports = vec![Outgoing { number: 0, message, not_over: None }];
        journal.commit(&Commit { reports, ..Commit::default() }, Timestamp::from_unix_ms(1)).expect("commit");
        let outbox = journal.outbox().expect("outbox");
        assert!(encode(&outbox[0].message, MESSAGE_BYTES_MAX - 1).is_ok());
        let AgentMessageV1::Step { report: StepReport::Failed(told), .. } = &outbox[0].message else { panic!() };
        assert!(told.output[0].ends_with("… cut: 1 MiB, the limit is 4 KiB"), "{}", told.output[0]);
    }

    #[test]
    fn after_an_upgrade_the_intents_of_all_that_has_ended_are_taken_for_spent() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("journal.db");
        let now = Timestamp::from_unix_ms(1_000);
        let ended = StepKey { deployment: "d3-aa".parse().expect("id"), attempt: 1 };
        let under_way = StepKey { deployment: "d4-bb".parse().expect("id"), attempt: 1 };
        let failure = Failure::new(FailureKind::DependencyError, "install", "no");
        {
            let mut journal = Journal::open(&path).expect("open");
            for event in [
                InstanceEvent::StageRequested { key: ended.clone(), release: ReleaseId::of(b"r") },
                InstanceEvent::StageFailed { key: ended, failure },
                InstanceEvent::StageRequested { key: under_way, release: ReleaseId::of(b"s") },
            ] {
                let commit = Commit { event: Some((server(), event)), ..Commit::default() };
                journal.commit(&commit, now).expect("commit");
            }
            journal.commit(&Commit { command: Some(stamp(6, 5)), ..Commit::default() }, now).expect("commit");
            // So an agent of before has left it.
            journal.connection.execute_batch("DROP TABLE intents").expect("dropped");
        }
        let admission = Journal::open(&path).expect("open").admission().expect("admission");
        let intent = |deployment, generation, purpose| Signed { purpose, ..signed(deployment, generation) };
        let asks = |intent, asks| {
            let stamp = Stamp {
                id: CommandId([9; 16]),
                generation: Generation(9),
                server: "other".parse().expect("name"),
                asks,
                intent,
            };
            admission.admit(&stamp, now)
        };
        for old in [intent("d3-aa", 3, Purpose::Deploy), intent("d3-aa", 5, Purpose::RollBack)] {
            assert!(matches!(asks(old, Asks::Undo), Err(NotAdmitted::Spent { .. })));
        }
        assert!(asks(intent("d3-aa", 7, Purpose::RollBack), Asks::Undo).is_ok(), "one that is signed anew counts");
        assert!(asks(intent("d4-bb", 4, Purpose::Deploy), Asks::Forward).is_ok(), "what is under way goes on");
    }
}
