//! From checked configuration and what runs to an immutable plan.
//!
//! Everything is rendered here, once: the plan holds every file as its host will have it.

mod alone;
mod diff;
mod digests;
mod entries;
mod explain;
mod externals;
mod graph;
mod locks;
mod placement;
mod policies;
mod render;
mod risk;
mod rules;
mod saved;
mod schema;
mod sharing;
mod steps;
mod validity;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use crate::config::{Environment, Manifest, Problems, SecretWritten, Server, Source};
use crate::host::HostView;
use crate::ids::{Generation, HostName, InstanceId, ManifestName, PlanId, ReleaseId, ServerName};
use crate::plan::{Group, Plan, PlanHash, PlannedStep, RollbackPolicy, Rollout, StepAction, add_step, begin_group};
use crate::release::{Release, SecretSource};
use crate::time::Timestamp;

use self::entries::Entries;
use self::graph::Order;
use self::placement::Placed;
use self::rules::Findings;
use self::steps::Location;

pub use alone::{Needs, check_alone, release_alone};
pub use diff::{Change, changes};
pub use explain::{Explanation, explain};
pub use graph::groups;
pub use locks::LOCK_BYTES_MAX;
pub use placement::unusual_interpreter;
pub use risk::{Risk, RiskLevel, risk};
pub use saved::{SAVED_PLAN_BYTES_MAX, SavedArtifact, SavedPlan, SavedPlanError, moved_on};
pub use schema::{SchemaKind, schema, schema_files};
pub use sharing::sharing_warning;

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
    /// The digests that versions before gave the same values: what runs may hold them, and is not changed by that.
    pub older_digests: BTreeMap<String, String>,
    /// The artifacts that are there, or will be when the plan is executed; nothing when that cannot be known.
    pub artifacts: Option<BTreeSet<String>>,
    /// Rules that are set aside, each with the reason.
    pub overrides: BTreeMap<String, String>,
    /// The variables that the template function `env` may read.
    pub variables: BTreeMap<String, String>,
    /// The files that the template function `file` may read.
    pub files: Files,
    /// The time.
    pub now: Timestamp,
}

/// From a path to the text, or why there is none.
type ReadFile = dyn Fn(&str) -> Result<String, String> + Send + Sync;

/// Files by their paths, as whoever plans finds them.
#[derive(Clone)]
pub struct Files(Arc<ReadFile>);

impl Files {
    /// Files that are read like this: from a path to the text, or why there is none.
    pub fn new(read: impl Fn(&str) -> Result<String, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    fn read(&self, path: &str) -> Result<String, String> {
        (self.0)(path)
    }
}

impl Default for Files {
    /// None at all.
    fn default() -> Self {
        Self::new(|_| Err("there are no files here".to_owned()))
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
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
    /// Their definitions on single hosts, where those are others.
    pub on_hosts: BTreeMap<InstanceId, (Source, Server)>,
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

/// What stood for the digest of a generated value in versions before, and does in a plan without a coordinator.
pub const GENERATED_DIGEST: &str = "generated";

/// The sources of the secrets that steps need, each by the name that its environment gives it, or another that no two
/// share.
pub fn secrets_of<'a>(steps: impl Iterator<Item = &'a PlannedStep>) -> BTreeMap<String, SecretSource> {
    let secrets = steps.filter_map(|step| step.release.as_deref()).flat_map(|release| &release.secrets);
    let named = secrets.map(|(name, secret)| match &secret.source {
        SecretSource::Generated { context, .. } => (context.clone(), secret.source.clone()),
        source => (secret.declared_name(name).to_owned(), source.clone()),
    });
    named.collect()
}

/// How a secret's source is named among [`Circumstances::secret_digests`].
pub fn secret_key(source: &SecretSource) -> String {
    serde_json::to_string(source).unwrap_or_default()
}

/// The secrets that an environment declares, by name.
pub fn secret_sources(environment: &Environment) -> BTreeMap<String, SecretSource> {
    let named = environment.secrets.iter().map(|(name, written)| {
        let SecretWritten { env, file, age, command, fallback } = &written.value;
        let source = if let Some(path) = file {
            SecretSource::File { path: path.value.clone() }
        } else if let Some(path) = age {
            SecretSource::Age { path: path.value.clone() }
        } else if let Some(command) = command {
            SecretSource::Command { command: command.value.clone() }
        } else {
            let variable = env.as_ref().map(|variable| variable.value.clone()).unwrap_or_default();
            SecretSource::Named { variable, fallback: fallback.as_ref().map(|text| text.value.clone()) }
        };
        (name.clone(), source)
    });
    named.collect()
}

/// Checks a configuration as far as that goes without knowing the hosts: rules, dependencies, cycles. Gives what is
/// worth a look.
pub fn check(configuration: &Configuration, overrides: &BTreeMap<String, String>) -> Result<Vec<String>, Problems> {
    let entries = Entries::of(configuration);
    let (rollout, rollback) = (policies::rollout(configuration), policies::rollback(configuration));
    let mut problems = validity::problems(configuration, &entries, &rollout);
    let findings = Findings::of(configuration, &entries, &rollout, &rollback, &mut problems);
    let ordered = graph::order(&configuration.manifest.0, &configuration.manifest.1, &entries);
    let judged = findings.judge(overrides);
    problems.extend(ordered.err().into_iter().chain(judged.as_ref().err().cloned()).flat_map(|error| error.0));
    Problems::none_or(problems)?;
    judged.map(|verdict| verdict.warnings.into_iter().chain(sharing::warnings(&entries)).collect())
}

/// Makes the plan that takes the fleet from what runs to what the configuration says.
pub fn plan(configuration: &Configuration, circumstances: &Circumstances) -> Result<CheckedPlan, Problems> {
    let entries = Entries::of(configuration);
    let (rollout, rollback) = (policies::rollout(configuration), policies::rollback(configuration));
    let planning = Planning { configuration, circumstances, entries: &entries };
    let mut warnings = Warnings::default();
    let (mut problems, mut findings, arranged) = thread::scope(|scope| {
        // Of many servers the checks and the arrangement are made side by side: neither needs the other.
        let aside = (entries.len() >= ALONE_MAX).then(|| scope.spawn(|| arrange(planning)));
        let mut problems = validity::problems(configuration, &entries, &rollout);
        let findings = Findings::of(configuration, &entries, &rollout, &rollback, &mut problems);
        let arranged = aside.map(|aside| aside.join().unwrap_or_else(|panic| resume_unwind(panic)));
        (problems, findings, arranged)
    });
    if let Some(known) = &circumstances.artifacts {
        problems.extend(validity::missing_artifacts(configuration, known));
    }
    let planned = Problems::none_or(problems)
        .and_then(|()| arranged.unwrap_or_else(|| arrange(planning)))
        .and_then(|arrangement| unchecked(planning, arrangement, rollout, rollback, &mut warnings))
        .and_then(|made| findings.of_instances(&made.0, circumstances).map(|()| made));
    // All that is wrong is told at once.
    match (planned, findings.judge(&circumstances.overrides)) {
        (Ok((mut plan, hash)), Ok(verdict)) => {
            verdict.warnings.into_iter().for_each(|warning| warnings.add(warning));
            sharing::warnings(&entries).for_each(|warning| warnings.add(warning));
            plan.overrides = verdict.overrides;
            let id = hash.finish(&plan);
            debug_assert_eq!(id, plan.id());
            Ok(CheckedPlan { id, plan, warnings: warnings.told })
        }
        (Ok(_), Err(problems)) | (Err(problems), Ok(_)) => Err(problems),
        (Err(problems), Err(broken)) => Err(Problems(problems.0.into_iter().chain(broken.0).collect())),
    }
}

/// With fewer servers than this one thread is as quick as several.
const ALONE_MAX: usize = 500;

/// What a plan is being made from.
#[derive(Clone, Copy)]
struct Planning<'a> {
    configuration: &'a Configuration,
    circumstances: &'a Circumstances,
    entries: &'a Entries<'a>,
}

/// Which servers come when, and where they go.
struct Arrangement<'a> {
    order: Order,
    placed: Placed<'a>,
}

fn arrange(planning: Planning<'_>) -> Result<Arrangement<'_>, Problems> {
    let Planning { configuration, circumstances, entries } = planning;
    let (source, manifest) = &configuration.manifest;
    let order = graph::order(source, manifest, entries)?;
    let placed = placement::place(configuration, circumstances, entries, &order.groups)?;
    Ok(Arrangement { order, placed })
}

/// A plan whose rules have not been looked at, and its hash so far.
fn unchecked(
    planning: Planning<'_>,
    arrangement: Arrangement<'_>,
    rollout: Rollout,
    rollback: RollbackPolicy,
    warnings: &mut Warnings,
) -> Result<(Plan, PlanHash), Problems> {
    let Planning { configuration, circumstances, entries } = planning;
    let Arrangement { order, placed } = arrangement;
    let (source, manifest) = &configuration.manifest;
    placed.warnings.iter().cloned().for_each(|warning| warnings.add(warning));
    let mut locations = Vec::with_capacity(entries.len());
    let mut servers: Vec<Vec<ServerName>> = Vec::with_capacity(order.groups.len());
    for numbers in &order.groups {
        let mut begins = Some(servers.len());
        let numbers = numbers.iter().copied().filter(|entry| placed.count(*entry) > 0);
        let group = numbers.map(|entry| {
            let on = placed.of(entry).map(|(host, view)| Location { begins: begins.take(), entry, host, view });
            locations.extend(on);
            entries.name(entry).clone()
        });
        let group: Vec<ServerName> = group.collect();
        if !group.is_empty() {
            servers.push(group);
        }
    }
    let (manifest_name, environment_name) = (&manifest.name.value, &configuration.environment.1.name.value);
    let hash = PlanHash::new(manifest_name, environment_name, circumstances.generation);
    let (steps, mut hash) = steps::of_all(planning, &locations, &servers, hash, warnings)?;
    let mut steps = steps.into_iter().flatten().zip(&locations).peekable();
    let mut changes = vec![false; entries.len()];
    let mut groups = Vec::with_capacity(servers.len());
    for servers in servers {
        let mut group = Group { steps: Vec::with_capacity(servers.len()), servers };
        while let Some((step, location)) =
            steps.next_if(|(_, location)| group.steps.is_empty() || location.begins.is_none())
        {
            changes[location.entry] |= step.action != StepAction::Unchanged;
            group.steps.push(step);
        }
        groups.push(group);
    }
    let removals = removals(planning, &groups);
    let mut json = Vec::new();
    for (number, group) in removals.iter().enumerate() {
        begin_group(&mut json, groups.is_empty() && number == 0, group.servers.iter());
        group.steps.iter().enumerate().for_each(|(number, step)| add_step(&mut json, number == 0, step, None));
    }
    hash.add(&json);
    let instances = entries.by_name().map(|entry| (entry, placed.count(entry))).filter(|(_, count)| *count > 0);
    let paces = policies::paces(configuration, entries, instances, &removals);
    groups.extend(removals);
    let rollout = Rollout { pauses: policies::pauses(configuration, entries, &groups, &paces), ..rollout };
    let plan = Plan {
        manifest: manifest_name.clone(),
        environment: environment_name.clone(),
        parent: circumstances.generation,
        groups,
        skipped: placed.skipped,
        paces,
        rollout,
        rollback,
        starts_after: order.starts_after,
        externals: externals::needed(source, manifest, entries, |number| changes[number]),
        overrides: Vec::new(),
    };
    Ok((plan, hash))
}

/// What is worth a look, each told once, in the order in which it was found.
#[derive(Default)]
struct Warnings {
    told: Vec<String>,
    known: BTreeSet<String>,
}

impl Warnings {
    fn add(&mut self, warning: String) {
        if self.known.insert(warning.clone()) {
            self.told.push(warning);
        }
    }
}

/// Makes the plan that takes the instances of a server to what an older plan had for them. Its rules were checked
/// when the older plan was made.
pub fn go_back(older: &Plan, server: &ServerName, circumstances: &Circumstances) -> CheckedPlan {
    let steps = older.steps().filter(|step| step.instance.server == *server);
    let steps = steps.filter_map(|planned| {
        let release = Box::new(digests::anew(Release::clone(planned.release.as_ref()?), circumstances));
        let present = circumstances.present.get(&planned.instance);
        let id = release.id();
        Some(steps::step(planned.instance.clone(), release, id, present))
    });
    let group = Group { servers: vec![server.clone()], steps: steps.collect() };
    let plan = Plan {
        manifest: older.manifest.clone(),
        environment: older.environment.clone(),
        parent: circumstances.generation,
        groups: vec![group],
        skipped: Vec::new(),
        paces: [(server.clone(), older.pace(server))].into(),
        rollout: Rollout { pauses: Vec::new(), ..older.rollout.clone() },
        rollback: older.rollback.clone(),
        starts_after: BTreeMap::new(),
        externals: Vec::new(),
        overrides: Vec::new(),
    };
    CheckedPlan { id: plan.id(), plan, warnings: Vec::new() }
}

/// Instances of this manifest that it no longer has, in the reverse order of their deployment.
fn removals(planning: Planning<'_>, planned: &[Group]) -> Vec<Group> {
    let (manifest, present) = (&planning.configuration.manifest.1.name.value, &planning.circumstances.present);
    let of_manifest = present.iter().filter(|(_, present)| present.manifest == *manifest);
    let mut gone: BTreeMap<&InstanceId, &Present> = of_manifest.collect();
    for step in planned.iter().flat_map(|group| &group.steps) {
        gone.remove(&step.instance);
    }
    let mut by_group: BTreeMap<usize, Group> = BTreeMap::new();
    for (id, present) in gone {
        let group = by_group.entry(present.group).or_insert_with(|| Group { servers: Vec::new(), steps: Vec::new() });
        // Instances come server by server.
        if group.servers.last() != Some(&id.server) {
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

#[cfg(test)]
mod tests;
