//! Secrets: digests for planning, and what is known of them besides their values.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::{ConnectInfo, State};
use fleetwright_deploy::fleet::{Fleet, FleetEvent};
use fleetwright_deploy::ids::InstanceId;
use fleetwright_deploy::planning::secret_key;
use fleetwright_deploy::release::SecretSource;
use fleetwright_deploy::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Answer, Api, Peer, decide, ending};
use crate::secrets::Secrets;

/// A secret, without its value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SecretRow {
    /// Its name in its environment.
    pub(crate) name: String,
    /// Where its value is found.
    pub(crate) source: SecretSource,
    /// The instances that use it.
    pub(crate) used_by: BTreeSet<InstanceId>,
    /// When the first of them got the value that it has.
    pub(crate) deployed_at: Option<Timestamp>,
    /// When its value was written last, where it is in a file.
    pub(crate) written_at: Option<Timestamp>,
    pub(crate) state: SecretState,
    /// Whether its value is only the stand-in of its environment.
    #[serde(default)]
    pub(crate) stand_in: bool,
}

/// How a secret stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SecretState {
    /// Everything that uses it has its value.
    Current,
    /// It has another value than something that uses it.
    Changed,
    /// It has no value.
    Missing,
    /// Nothing uses it.
    Unused,
}

/// What instances use, before anything is looked up.
struct Use {
    row: SecretRow,
    digests: BTreeSet<String>,
}

/// Digests of secrets that have a value, each by its source as [`secret_key`] writes it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DigestsView {
    /// Those that hosts can check.
    pub(crate) digests: BTreeMap<String, String>,
    /// Those of versions before, which releases that run may hold.
    pub(crate) older: BTreeMap<String, String>,
}

pub(super) async fn digests(
    State(api): State<Api>,
    Json(sources): Json<BTreeMap<String, SecretSource>>,
) -> Answer<DigestsView> {
    // Programs may have to be run for them: the engine does not wait for that.
    let digests = tokio::task::spawn_blocking(move || {
        let mut view = DigestsView::default();
        for (name, source) in &sources {
            let Some(digest) = api.secrets.digest(name, source) else { continue };
            view.digests.insert(secret_key(source), digest);
            view.older.extend(api.secrets.older_digest(name, source).map(|older| (secret_key(source), older)));
        }
        view
    });
    digests.await.map(Json).map_err(|_| ending())
}

/// The secrets that something uses, and those of these that nothing does.
pub(super) async fn list(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(declared): Json<BTreeMap<String, SecretSource>>,
) -> Answer<Vec<SecretRow>> {
    decide(&api, peer, FleetEvent::SecretsListed).await?;
    let mut uses = api.engine.read(|view| used(&view.fleet));
    for (name, source) in declared {
        uses.entry((name.clone(), secret_key(&source))).or_insert_with(|| Use::new(name, source));
    }
    let rows = tokio::task::spawn_blocking(move || {
        let rows = uses.into_values().map(|Use { mut row, digests }| {
            row.stand_in = api.secrets.is_stand_in(&row.name, &row.source);
            row.written_at = api.secrets.written_at(&row.name, &row.source);
            row.state = match api.secrets.digest(&row.name, &row.source) {
                None => SecretState::Missing,
                Some(_) if row.used_by.is_empty() => SecretState::Unused,
                Some(digest) if digests.iter().all(|known| is_of(known, &digest, &api.secrets, &row)) => {
                    SecretState::Current
                }
                Some(_) => SecretState::Changed,
            };
            row
        });
        rows.collect()
    });
    rows.await.map(Json).map_err(|_| ending())
}

/// Whether a digest that something was deployed with is that of the present value.
fn is_of(known: &str, digest: &str, secrets: &Secrets, row: &SecretRow) -> bool {
    known == digest || secrets.older_digest(&row.name, &row.source).as_deref() == Some(known)
}

impl Use {
    fn new(name: String, source: SecretSource) -> Self {
        let (used_by, state) = (BTreeSet::new(), SecretState::Unused);
        let (deployed_at, written_at, stand_in) = (None, None, false);
        let row = SecretRow { name, source, used_by, deployed_at, written_at, state, stand_in };
        Self { row, digests: BTreeSet::new() }
    }
}

fn used(fleet: &Fleet) -> BTreeMap<(String, String), Use> {
    let mut uses: BTreeMap<(String, String), Use> = BTreeMap::new();
    for (id, record) in fleet.instances() {
        for (name, secret) in &record.release.secrets {
            // What is drawn for a server is nobody's to look after.
            if matches!(secret.source, SecretSource::Generated { .. }) {
                continue;
            }
            let name = secret.declared_name(name);
            let of = uses.entry((name.to_owned(), secret_key(&secret.source)));
            let of = of.or_insert_with(|| Use::new(name.to_owned(), secret.source.clone()));
            of.row.used_by.insert(id.clone());
            of.row.deployed_at = Some(of.row.deployed_at.map_or(record.since, |first| first.min(record.since)));
            of.digests.extend(secret.digest.clone());
        }
    }
    uses
}
