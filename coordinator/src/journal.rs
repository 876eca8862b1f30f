//! The coordinator's journal: every event of the fleet, in order, durable before anything is done about it.
//!
//! Entries form a hash chain, so that a changed or missing one is noticed. A snapshot of the fold is kept from
//! time to time, so that starting takes about as long with a million entries as with ten thousand. What stores
//! entries is behind the few methods of [`Store`].

mod archive;
mod sqlite;
mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fleetwright_deploy::actor::Actor;
use fleetwright_deploy::deployment::Note;
use fleetwright_deploy::fleet::{Fleet, FleetEvent, PastDeployment};
use fleetwright_deploy::ids::{DeploymentId, FleetName};
use fleetwright_deploy::mutant::{Mutant, is_active};
use fleetwright_deploy::time::Timestamp;
use serde::{Deserialize, Serialize};

pub use archive::{ARCHIVED_MAX, PastPlan, Placed};
pub use sqlite::SqliteStore;
pub use store::{EntryHash, Store, StoreError, StoredEntry, StoredSnapshot};

/// How many entries are folded between two snapshots.
pub const SNAPSHOT_EVERY: u64 = 10_000;
/// How many entries are read at once.
const PAGE: usize = 1_000;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// What stores the entries does not do so.
    #[error("journal: {0}")]
    Store(#[from] StoreError),
    /// An entry is no JSON.
    #[error("journal: an entry cannot be written: {0}")]
    Entry(#[from] serde_json::Error),
    /// An entry is broken although later ones are whole: this is no torn tail.
    #[error(
        "journal: entry {0} is damaged ({1}), but later ones are whole\n  hint: `fleetwright journal verify` tells more; put the journal back from a backup"
    )]
    Damaged(u64, String),
    /// An entry is whole, but of a kind that this version of the program does not know.
    #[error(
        "journal: entry {0} is whole but not understood ({1})\n  hint: was it written by a newer coordinator? install that one again"
    )]
    NotUnderstood(u64, String),
    /// An entry does not fit the state that those before it led to.
    #[error("journal: entry {0} does not fit those before it: {1}")]
    Inconsistent(u64, String),
}

impl JournalError {
    /// Whether there is just no room left.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Store(StoreError::Full(_)))
    }
}

/// What people are told about one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// The number of the entry, from 1; what comes after it can be asked for by it.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who made it happen; nothing in entries of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// The type of the entry.
    #[serde(rename = "type")]
    pub event_type: String,
    /// What happened.
    pub notes: Vec<Note>,
}

/// An event that was applied and is to be made durable.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// When it was applied.
    pub at: Timestamp,
    /// Who made it happen.
    pub actor: Actor,
    /// The event.
    pub event: FleetEvent,
    /// What people are told about it.
    pub notes: Vec<Note>,
}

/// How a journal was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The entry of the snapshot that was started from; 0 for none.
    pub snapshot: u64,
    /// How many entries were folded on top of it.
    pub folded: u64,
    /// How many entries at the end were torn, and were set aside.
    pub set_aside: u64,
}

/// The journal of a fleet.
pub struct Journal<S> {
    store: S,
    last: u64,
    last_hash: EntryHash,
    snapshot: u64,
    snapshot_every: u64,
}

impl<S: Store> Journal<S> {
    /// Opens a journal and folds it. A torn tail is set aside: what was not wholly written was not acted upon.
    pub fn open(mut store: S, fleet: FleetName) -> Result<(Self, Fleet, Opened), JournalError> {
        let (mut folded, snapshot, mut last_hash) = newest_snapshot(&store, &fleet)?;
        let mut opened = Opened { snapshot, ..Opened::default() };
        let mut gone: Vec<PastDeployment> = Vec::new();
        let mut last = snapshot;
        'pages: loop {
            let page = store.read(last, PAGE)?;
            let full = page.len() == PAGE;
            for entry in page {
                if let Err(why) = check(&entry, last, &last_hash) {
                    if let Some(whole) = first_whole_after(&store, entry.seq)? {
                        return Err(JournalError::Damaged(last + 1, format!("{why}; entry {whole} is whole")));
                    }
                    opened.set_aside = store.set_aside_after(last)?;
                    break 'pages;
                }
                let event = event_of(&entry)?;
                if let FleetEvent::DeploymentsArchived { deployments } = &event {
                    gone.extend(past(&folded, deployments));
                    gone.drain(..gone.len().saturating_sub(ARCHIVED_MAX as usize));
                }
                (last, last_hash) = (entry.seq, entry.hash);
                let applied = folded.apply(event, entry.at);
                applied.map_err(|refused| JournalError::Inconsistent(last, refused.to_string()))?;
                opened.folded += 1;
            }
            if !full {
                break;
            }
        }
        // What has left the fleet may not be in the archive yet, or in the form of another version.
        match store.archive(&gone) {
            Err(StoreError::Full(_)) => {}
            kept => kept?,
        }
        let journal = Self { store, last, last_hash, snapshot, snapshot_every: SNAPSHOT_EVERY };
        Ok((journal, folded, opened))
    }

    /// The same journal with another number of entries between two snapshots than [`SNAPSHOT_EVERY`].
    #[must_use]
    pub fn with_snapshots_every(self, entries: u64) -> Self {
        Self { snapshot_every: entries, ..self }
    }

    /// The number of the last entry; 0 when there is none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// What stores the entries.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Makes entries durable, all of them or none, in one commit.
    pub fn append(&mut self, entries: &[NewEntry]) -> Result<(), JournalError> {
        let mut stored = Vec::with_capacity(entries.len());
        let (mut last, mut hash) = (self.last, self.last_hash);
        for entry in entries {
            let event_type: &'static str = (&entry.event).into();
            let mut next = StoredEntry {
                seq: last + 1,
                at: entry.at,
                actor: Some(entry.actor.to_string()),
                event_type: event_type.to_owned(),
                event: serde_json::to_string(&entry.event)?,
                notes: serde_json::to_string(&entry.notes)?,
                hash,
            };
            next.hash = next.chained_to(&hash);
            (last, hash) = (next.seq, next.hash);
            stored.push(next);
        }
        // The mutant loses what is written while its number ends in 7.
        if !(is_active(Mutant::SkipDurableWrite) && last % 10 == 7) {
            self.store.append(self.last, &stored)?;
        }
        (self.last, self.last_hash) = (last, hash);
        Ok(())
    }

    /// Keeps deployments in the archive, before they leave the fleet.
    pub fn archive(&mut self, fleet: &Fleet, deployments: &BTreeSet<DeploymentId>) -> Result<(), JournalError> {
        Ok(self.store.archive(&past(fleet, deployments))?)
    }

    /// Keeps a snapshot of the fold when enough entries have come since the last one.
    pub fn snapshot_if_due(&mut self, fleet: &Fleet) -> Result<(), JournalError> {
        if self.last < self.snapshot + self.snapshot_every {
            return Ok(());
        }
        let state = serde_json::to_string(fleet)?;
        self.store.keep_snapshot(&StoredSnapshot::new(self.last, self.last_hash, state))?;
        self.snapshot = self.last;
        Ok(())
    }
}

fn past(fleet: &Fleet, deployments: &BTreeSet<DeploymentId>) -> Vec<PastDeployment> {
    deployments.iter().filter_map(|id| fleet.deployment(id)).map(PastDeployment::new).collect()
}

/// What people are told about the entries after `after`, at most `limit` of them.
pub fn records(store: &impl Store, after: u64, limit: usize) -> Result<Vec<EventRecord>, JournalError> {
    let entries = store.read(after, limit)?.into_iter().map(|entry| {
        let notes = serde_json::from_str(&entry.notes)?;
        let actor = entry.actor.and_then(|actor| actor.parse().ok());
        Ok(EventRecord { seq: entry.seq, at: entry.at, actor, event_type: entry.event_type, notes })
    });
    entries.collect()
}

/// Opens the journal in a file. One that was cut off or overwritten is put aside first, and begins anew with the
/// entries before the damage; where it was put is given too.
pub fn open_file(
    path: &Path,
    fleet: &FleetName,
) -> Result<(Journal<SqliteStore>, Fleet, Opened, Option<PathBuf>), JournalError> {
    let opened = SqliteStore::open(path).map_err(Into::into).and_then(|store| Journal::open(store, fleet.clone()));
    match opened {
        Err(JournalError::Store(StoreError::Damaged(_))) => {
            let (store, aside) = SqliteStore::salvage(path)?;
            let (journal, fleet, opened) = Journal::open(store, fleet.clone())?;
            Ok((journal, fleet, opened, Some(aside)))
        }
        Ok((journal, fleet, opened)) => Ok((journal, fleet, opened, None)),
        Err(error) => Err(error),
    }
}

/// What [`verify`] has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// How many entries there are.
    pub entries: u64,
    /// How many snapshots there are.
    pub snapshots: usize,
    /// The hash of the last entry, which stands for all before it too; hexadecimal.
    pub head: String,
}

/// Checks every entry and every snapshot from the first one on, and changes nothing.
pub fn verify(store: &impl Store, name: &FleetName) -> Result<Verified, JournalError> {
    let mut fleet = Fleet::new(name.clone());
    let (mut last, mut hash) = (0, EntryHash::default());
    let snapshots = store.snapshots()?;
    loop {
        let page = store.read(last, PAGE)?;
        let full = page.len() == PAGE;
        for entry in page {
            check(&entry, last, &hash).map_err(|why| match first_whole_after(store, entry.seq) {
                Ok(Some(_)) => JournalError::Damaged(last + 1, why),
                Ok(None) => JournalError::Inconsistent(last + 1, format!("{why}; it is the end of the journal")),
                Err(error) => error,
            })?;
            let event = event_of(&entry)?;
            (last, hash) = (entry.seq, entry.hash);
            let applied = fleet.apply(event, entry.at);
            applied.map_err(|refused| JournalError::Inconsistent(last, refused.to_string()))?;
            for snapshot in snapshots.iter().filter(|snapshot| snapshot.seq == last && snapshot.is_ours()) {
                if snapshot.restore(&hash).as_ref() != Some(&fleet) {
                    let why = "the snapshot taken after it is not what the entries lead to";
                    return Err(JournalError::Damaged(last, why.to_owned()));
                }
            }
        }
        if !full {
            return Ok(Verified { entries: last, snapshots: snapshots.len(), head: hash.to_string() });
        }
    }
}

/// The newest snapshot that is whole, of this version, and about entries that are there.
fn newest_snapshot(store: &impl Store, name: &FleetName) -> Result<(Fleet, u64, EntryHash), JournalError> {
    for snapshot in store.snapshots()? {
        let Some(entry) = store.read(snapshot.seq.saturating_sub(1), 1)?.into_iter().next() else { continue };
        if entry.seq == snapshot.seq
            && let Some(fleet) = snapshot.restore(&entry.hash)
            && fleet.name() == name
        {
            return Ok((fleet, snapshot.seq, entry.hash));
        }
    }
    Ok((Fleet::new(name.clone()), 0, EntryHash::default()))
}

/// Whether an entry is whole and the one after `last`.
fn check(entry: &StoredEntry, last: u64, last_hash: &EntryHash) -> Result<(), String> {
    if entry.seq != last + 1 {
        return Err(format!("it is missing; the next one is {}", entry.seq));
    }
    if entry.chained_to(last_hash) != entry.hash && !is_active(Mutant::TakeTornEntry) {
        return Err("its hash is wrong".to_owned());
    }
    Ok(())
}

/// The event of a whole entry. One that is not understood was durable and acted upon all the same, so it is never
/// taken for torn.
fn event_of(entry: &StoredEntry) -> Result<FleetEvent, JournalError> {
    serde_json::from_str(&entry.event).map_err(|error| JournalError::NotUnderstood(entry.seq, error.to_string()))
}

/// The first entry after a broken one that is chained to the one before it: proof that the broken one is not
/// the torn end of the last commit.
fn first_whole_after(store: &impl Store, broken: u64) -> Result<Option<u64>, JournalError> {
    let mut before: Option<StoredEntry> = None;
    let mut last = broken.saturating_sub(1);
    loop {
        let page = store.read(last, PAGE)?;
        let full = page.len() == PAGE;
        for entry in page {
            last = entry.seq;
            let follows = before.as_ref().is_some_and(|before| before.seq + 1 == entry.seq);
            if follows && before.as_ref().is_some_and(|before| entry.chained_to(&before.hash) == entry.hash) {
                return Ok(Some(entry.seq));
            }
            before = Some(entry);
        }
        if !full {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests;
