//! From checked configuration and what runs to an immutable plan.
//!
//! Everything is rendered here, once: the plan holds every file as its host will have it.

mod diff;
mod graph;
mod placement;
mod render;
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Environment, Manifest, Problem, Problems, Server, Source};
use crate::host::HostView;
use crate::ids::{Generation, HostName, InstanceId, ManifestName, PlanId, ReleaseId, ServerName};
use crate::plan::{Group, Plan, PlannedStep, RollbackPolicy, Rollout, StepAction};
use crate::release::{Release, SecretSource};
use crate::time::Timestamp;

pub use diff::{Change, changes};
pub use graph::groups;

/// What runs on an instance when a plan is made.
#[derive(Clone, Debug)]
pub struct Present {
    /// The manifest it belongs to.
    pub manifest: ManifestName,
    /// The group it was deployed in.
    pub group: usize,
    /// What it runs.
    pub release: Release,
    /// The hash of that.
    pub release_id: ReleaseId,
    /// Whether it needs a person, so that even the same release is deployed anew.
    pub in_trouble: bool,
}

/// Everything a plan is made from, besides the configuration.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// The generation of the fleet.
    pub generation: Generation,
    /// The hosts.
    pub hosts: BTreeMap<HostName, HostView>,
    /// Hosts that cannot be reached now: they keep what they have, and get nothing new.
    pub unreachable: BTreeSet<HostName>,
    /// What runs on them.
    pub present: BTreeMap<InstanceId, Present>,
    /// A digest of every secret that has a value, by its source as [`secret_key`] writes it; nothing when
    /// values cannot be had, as without a coordinator.
    pub secret_digests: Option<BTreeMap<String, String>>,
    /// The variables that the template function `env` may read.
    pub variables: BTreeMap<String, String>,
    /// The time.
    pub now: Timestamp,
}

/// A manifest with everything it refers to, and the texts for error messages.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The manifest.
    pub manifest: (Source, Manifest),
    /// The environment.
    pub environment: (Source, Environment),
    /// The definitions of its servers.
    pub servers: BTreeMap<ServerName, (Source, Server)>,
}

/// A plan that satisfies the rules of its environment: the only thing that can be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedPlan {
    plan: Plan,
    id: PlanId,
    warnings: Vec<String>,
}

impl CheckedPlan {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its content hash.
    pub fn id(&self) -> &PlanId {
        &self.id
    }

    /// What is worth a look, but stops nothing.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The plan, for sending.
    pub fn into_plan(self) -> Plan {
        self.plan
    }
}

/// How a secret's source is named among [`Circumstances::secret_digests`].
pub fn secret_key(source: &SecretSource) -> String {
    serde_json::to_string(source).unwrap_or_default()
}

/// The secrets that an environment declares, by name.
pub fn secret_sources(environment: &Environment) -> BTreeMap<String, SecretSource> {
    let named = environment.secrets.iter().map(|(name, written)| {
        let fallback = written.fallback.as_ref().map(|text| text.value.clone());
        (name.clone(), SecretSource::Named { variable: written.env.value.clone(), fallback })
    });
    named.collect()
}

/// Checks a configuration as far as that goes without knowing the hosts: rules, dependencies, cycles.
pub fn check(configuration: &Configuration) -> Result<(), Problems> {
    let (rollout, rollback) = policies(configuration);
    rules::check(configuration, &rollout, &rollback)?;
    graph::order(&configuration.manifest.0, &configuration.manifest.1).map(drop)
}

/// Makes the plan that takes the fleet from what runs to what the configuration says.
pub fn plan(configuration: &Configuration, circumstances: &Circumstances) -> Result<CheckedPlan, Problems> {
    let (source, manifest) = &configuration.manifest;
    let (rollout, rollback) = policies(configuration);
    rules::check(configuration, &rollout, &rollback)?;
    let order = graph::order(source, manifest)?;
    let placed = placement::place(configuration, circumstances)?;
    let mut warnings = placed.warnings;
    let mut groups = Vec::new();
    let mut planned = BTreeSet::new();
    for servers in order {
        let mut group = Group { servers: Vec::new(), steps: Vec::new() };
        for server in servers {
            let Some(hosts) = placed.hosts.get(&server) else { continue };
            for host in hosts {
                let id = InstanceId::new(server.clone(), host.clone());
                let release = render::release(configuration, circumstances, &id, &mut warnings)?;
                group.steps.push(step(id.clone(), release, circumstances.present.get(&id)));
                planned.insert(id);
            }
            group.servers.push(server);
        }
        if !group.steps.is_empty() {
            groups.push(group);
        }
    }
    groups.extend(removals(&manifest.name.value, &planned, circumstances));
    let plan = Plan {
        manifest: manifest.name.value.clone(),
        environment: configuration.environment.1.name.value.clone(),
        parent: circumstances.generation,
        groups,
        skipped: placed.skipped,
        rollout,
        rollback,
    };
    Ok(CheckedPlan { id: plan.id(), plan, warnings })
}

/// What becomes of an instance that runs `present` and is to run `release`.
fn step(instance: InstanceId, release: Release, present: Option<&Present>) -> PlannedStep {
    let release_id = release.id();
    let action = match present {
        None => StepAction::Create,
        Some(present) if present.release_id == release_id && !present.in_trouble => StepAction::Unchanged,
        Some(_) => StepAction::Update,
    };
    let previous = present.map(|present| present.release_id.clone());
    PlannedStep { instance, action, previous, release: Some(release), release_id: Some(release_id) }
}

/// Instances of this manifest that it no longer has, in the reverse order of their deployment.
fn removals(manifest: &ManifestName, planned: &BTreeSet<InstanceId>, circumstances: &Circumstances) -> Vec<Group> {
    let gone =
        circumstances.present.iter().filter(|(id, present)| present.manifest == *manifest && !planned.contains(id));
    let mut by_group: BTreeMap<usize, Group> = BTreeMap::new();
    for (id, present) in gone {
        let group = by_group.entry(present.group).or_insert_with(|| Group { servers: Vec::new(), steps: Vec::new() });
        if !group.servers.contains(&id.server) {
            group.servers.push(id.server.clone());
        }
        group.steps.push(PlannedStep {
            instance: id.clone(),
            action: StepAction::Remove,
            previous: Some(present.release_id.clone()),
            release: None,
            release_id: None,
        });
    }
    by_group.into_values().rev().collect()
}

/// What the manifest says, else what its environment says, else the defaults.
fn policies(configuration: &Configuration) -> (Rollout, RollbackPolicy) {
    let (manifest, environment) = (&configuration.manifest.1, &configuration.environment.1);
    let (m, e, d) = (manifest.rollout, environment.rollout, Rollout::default());
    let rollout = Rollout {
        canary: m.canary.or(e.canary).unwrap_or(d.canary),
        bake: m.bake.or(e.bake).unwrap_or(d.bake),
        max_unavailable: m.max_unavailable.or(e.max_unavailable).unwrap_or(d.max_unavailable),
        max_parallel: m.max_parallel.or(e.max_parallel).unwrap_or(d.max_parallel),
        min_healthy_time: m.min_healthy_time.or(e.min_healthy_time).unwrap_or(d.min_healthy_time),
        healthy_deadline: m.healthy_deadline.or(e.healthy_deadline).unwrap_or(d.healthy_deadline),
        progress_deadline: m.progress_deadline.or(e.progress_deadline).unwrap_or(d.progress_deadline),
        confirm_timeout: m.confirm_timeout.or(e.confirm_timeout).unwrap_or(d.confirm_timeout),
    };
    let (m, e, d) = (manifest.rollback, environment.rollback, RollbackPolicy::default());
    let rollback = RollbackPolicy {
        enabled: m.enabled.or(e.enabled).unwrap_or(d.enabled),
        strategy: m.strategy.or(e.strategy).unwrap_or(d.strategy),
        batch_size: m.batch_size.or(e.batch_size).unwrap_or(d.batch_size),
        deadline: m.deadline.or(e.deadline).unwrap_or(d.deadline),
    };
    (rollout, rollback)
}

/// The definition of a server, or the problem that there is none.
fn definition<'a>(
    configuration: &'a Configuration,
    server: &serde_saphyr::Spanned<ServerName>,
) -> Result<&'a (Source, Server), Problem> {
    configuration.servers.get(&server.value).ok_or_else(|| {
        let problem =
            Problem::at(&configuration.manifest.0, server, format!("server `{}` is not defined", server.value));
        problem.hint(format!("define it in config/servers/{}.yaml", server.value))
    })
}

#[cfg(test)]
mod tests;
