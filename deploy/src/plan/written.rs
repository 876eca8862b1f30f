//! The hash of a plan while the plan is being made.
//!
//! The id of a plan is the hash of its JSON, most of which are its releases, and each of them is written for a hash of its
//! own already. So the JSON is put together from parts as they are made, and hashed as they come, rather than written anew
//! when all is there.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{External, Pace, Plan, PlannedStep, RollbackPolicy, Rollout, RuleOverride};
use crate::ids::{EnvironmentName, Generation, ManifestName, PlanId, ServerName};

/// After so many bytes what was written is hashed, and its memory used again: fresh memory is dear.
const HASHED_BYTES: usize = 64 * 1024;

fn write(json: &mut Vec<u8>, value: &impl Serialize) {
    // Writing to memory what has no map with odd keys cannot fail.
    let _ = serde_json::to_writer(json, value);
}

/// Appends what comes before the steps of a group, which is the first group or comes after another.
pub(crate) fn begin_group<'a>(json: &mut Vec<u8>, is_first: bool, servers: impl Iterator<Item = &'a ServerName>) {
    json.extend_from_slice(if is_first { b"{\"servers\":[" } else { b"]},{\"servers\":[" });
    for (number, server) in servers.enumerate() {
        if number > 0 {
            json.push(b',');
        }
        write(json, server);
    }
    json.extend_from_slice(b"],\"steps\":[");
}

/// Appends a step, of whose release this is the JSON.
pub(crate) fn add_step(json: &mut Vec<u8>, is_first: bool, step: &PlannedStep, release: Option<&[u8]>) {
    let PlannedStep { instance, action, previous, release: _, release_id } = step;
    json.extend_from_slice(if is_first { b"{\"instance\":" } else { b",{\"instance\":" });
    write(json, instance);
    json.extend_from_slice(b",\"action\":");
    write(json, action);
    json.extend_from_slice(b",\"previous\":");
    write(json, previous);
    json.extend_from_slice(b",\"release\":");
    json.extend_from_slice(release.unwrap_or(b"null"));
    json.extend_from_slice(b",\"release_id\":");
    write(json, release_id);
    json.push(b'}');
}

/// The fields of [`Plan`] before its groups.
#[derive(Serialize)]
struct Before<'a> {
    manifest: &'a ManifestName,
    environment: &'a EnvironmentName,
    parent: Generation,
}

/// The fields of [`Plan`] after its paces.
#[derive(Serialize)]
struct After<'a> {
    rollout: &'a Rollout,
    rollback: &'a RollbackPolicy,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    starts_after: &'a BTreeMap<ServerName, BTreeSet<ServerName>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    externals: &'a [External],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    overrides: &'a [RuleOverride],
}

/// The hash of a plan of which parts are still missing.
pub(crate) struct PlanHash(blake3::Hasher);

impl PlanHash {
    /// The hash of a plan without groups.
    pub(crate) fn new(manifest: &ManifestName, environment: &EnvironmentName, parent: Generation) -> Self {
        let mut json = Vec::new();
        write(&mut json, &Before { manifest, environment, parent });
        json.pop();
        json.extend_from_slice(b",\"groups\":[");
        let mut hash = blake3::Hasher::new();
        hash.update(&json);
        Self(hash)
    }

    /// Adds what [`begin_group`] and [`add_step`] have written.
    pub(crate) fn add(&mut self, json: &[u8]) {
        self.0.update(json);
    }

    /// The id of the plan, all of whose groups were added.
    pub(crate) fn finish(mut self, plan: &Plan) -> PlanId {
        let Plan {
            manifest: _,
            environment: _,
            parent: _,
            groups,
            skipped,
            paces,
            rollout,
            rollback,
            starts_after,
            externals,
            overrides,
        } = plan;
        let mut json = Vec::new();
        json.extend_from_slice(if groups.is_empty() { b"],\"skipped\":" } else { b"]}],\"skipped\":" });
        write(&mut json, skipped);
        json.extend_from_slice(b",\"paces\":");
        self.add_paces(&mut json, paces);
        let after = json.len();
        write(&mut json, &After { rollout, rollback, starts_after, externals, overrides });
        json[after] = b',';
        self.0.update(&json);
        PlanId::from_hash(self.0.finalize())
    }

    /// Most servers have the pace that the one before them has: it is written once.
    fn add_paces(&mut self, json: &mut Vec<u8>, paces: &BTreeMap<ServerName, Pace>) {
        let (mut last, mut last_json): (Option<&Pace>, Vec<u8>) = (None, Vec::new());
        json.push(b'{');
        for (number, (server, pace)) in paces.iter().enumerate() {
            if last != Some(pace) {
                last_json.clear();
                write(&mut last_json, pace);
                last = Some(pace);
            }
            if number > 0 {
                json.push(b',');
            }
            write(json, server);
            json.push(b':');
            json.extend_from_slice(&last_json);
            if json.len() > HASHED_BYTES {
                self.0.update(json);
                json.clear();
            }
        }
        json.push(b'}');
    }
}
