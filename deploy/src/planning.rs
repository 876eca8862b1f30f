//! From checked configuration and what runs to an immutable plan.
//!
//! Everything is rendered here, once: the plan holds every file as its host will have it.

mod diff;
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
mod validity;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::config::{Environment, Manifest, Problem, Problems, SecretWritten, Server, Source};
use crate::host::HostView;
use crate::ids::{Generation, HostName, InstanceId, ManifestName, PlanId, ReleaseId, ServerName};
use crate::plan::{Group, Plan, PlannedStep, RollbackPolicy, Rollout, StepAction};
use crate::release::{Release, SecretSource};
use crate::time::Timestamp;

use self::rules::Findings;

pub use diff::{Change, changes};
pub use explain::{Explanation, explain};
pub use graph::groups;
pub use locks::LOCK_BYTES_MAX;
pub use risk::{Risk, RiskLevel, risk};
pub use saved::{SAVED_PLAN_BYTES_MAX, SavedArtifact, SavedPlan, SavedPlanError, moved_on};
pub use schema::{SchemaKind, schema, schema_files};

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
    let (rollout, rollback) = (policies::rollout(configuration), policies::rollback(configuration));
    let mut problems = validity::problems(configuration, &rollout);
    let findings = Findings::of(configuration, &rollout, &rollback, &mut problems);
    let ordered = graph::order(&configuration.manifest.0, &configuration.manifest.1);
    let judged = findings.judge(overrides);
    problems.extend(ordered.err().into_iter().chain(judged.as_ref().err().cloned()).flat_map(|error| error.0));
    Problems::none_or(problems)?;
    judged.map(|verdict| verdict.warnings)
}

/// Makes the plan that takes the fleet from what runs to what the configuration says.
pub fn plan(configuration: &Configuration, circumstances: &Circumstances) -> Result<CheckedPlan, Problems> {
    let (rollout, rollback) = (policies::rollout(configuration), policies::rollback(configuration));
    let mut problems = validity::problems(configuration, &rollout);
    let mut findings = Findings::of(configuration, &rollout, &rollback, &mut problems);
    if let Some(known) = &circumstances.artifacts {
        problems.extend(validity::missing_artifacts(configuration, known));
    }
    let mut warnings = Warnings::default();
    let planned = Problems::none_or(problems)
        .and_then(|()| unchecked(configuration, circumstances, rollout, rollback, &mut warnings))
        .and_then(|plan| findings.of_instances(&plan, circumstances).map(|()| plan));
    // All that is wrong is told at once.
    match (planned, findings.judge(&circumstances.overrides)) {
        (Ok(mut plan), Ok(verdict)) => {
            verdict.warnings.into_iter().for_each(|warning| warnings.add(warning));
            plan.overrides = verdict.overrides;
            Ok(CheckedPlan { id: plan.id(), plan, warnings: warnings.told })
        }
        (Ok(_), Err(problems)) | (Err(problems), Ok(_)) => Err(problems),
        (Err(problems), Err(broken)) => Err(Problems(problems.0.into_iter().chain(broken.0).collect())),
    }
}

/// A plan whose rules have not been looked at.
fn unchecked(
    configuration: &Configuration,
    circumstances: &Circumstances,
    rollout: Rollout,
    rollback: RollbackPolicy,
    warnings: &mut Warnings,
) -> Result<Plan, Problems> {
    let (source, manifest) = &configuration.manifest;
    let order = graph::order(source, manifest)?;
    let placed = placement::place(configuration, circumstances, &order.groups)?;
    placed.warnings.into_iter().for_each(|warning| warnings.add(warning));
    let ids = order.groups.iter().flatten().filter_map(|server| Some((server, placed.hosts.get(server)?)));
    let ids = ids.flat_map(|(server, hosts)| hosts.iter().map(|host| InstanceId::new(server.clone(), host.clone())));
    let ids: Vec<InstanceId> = ids.collect();
    let mut steps = all_steps(configuration, circumstances, &ids, warnings)?.into_iter();
    let mut groups = Vec::new();
    for servers in order.groups {
        let mut group = Group { servers: Vec::new(), steps: Vec::new() };
        for server in servers {
            let Some(hosts) = placed.hosts.get(&server) else { continue };
            group.steps.extend(steps.by_ref().take(hosts.len()));
            group.servers.push(server);
        }
        if !group.steps.is_empty() {
            groups.push(group);
        }
    }
    let planned: BTreeSet<InstanceId> = ids.into_iter().collect();
    let steps = groups.iter().flat_map(|group| &group.steps);
    let changing = steps.filter(|step| step.action != StepAction::Unchanged).map(|step| &step.instance.server);
    let changing = changing.collect();
    let externals = externals::needed(source, manifest, &changing);
    groups.extend(removals(&manifest.name.value, &planned, circumstances));
    let paces = policies::paces(configuration, &groups);
    let rollout = Rollout { pauses: policies::pauses(configuration, &groups, &paces), ..rollout };
    Ok(Plan {
        manifest: manifest.name.value.clone(),
        environment: configuration.environment.1.name.value.clone(),
        parent: circumstances.generation,
        groups,
        skipped: placed.skipped,
        paces,
        rollout,
        rollback,
        starts_after: order.starts_after,
        externals,
        overrides: Vec::new(),
    })
}

/// The steps of instances, in their order. Many are made by all processors together, which changes nothing of what they
/// are.
fn all_steps(
    configuration: &Configuration,
    circumstances: &Circumstances,
    ids: &[InstanceId],
    warnings: &mut Warnings,
) -> Result<Vec<PlannedStep>, Problems> {
    let declared = secret_sources(&configuration.environment.1);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let part = ids.len().div_ceil(processors).max(ALONE_MAX);
    let made: Vec<Made> = std::thread::scope(|scope| {
        let mut parts = ids.chunks(part);
        let own = parts.next().unwrap_or_default();
        let others: Vec<_> =
            parts.map(|ids| scope.spawn(|| some_steps(configuration, circumstances, ids, &declared))).collect();
        let own = some_steps(configuration, circumstances, own, &declared);
        let joined =
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        std::iter::once(own).chain(joined).collect()
    });
    let (mut steps, mut problems) = (Vec::with_capacity(ids.len()), Vec::new());
    for part in made {
        steps.extend(part.steps);
        problems.extend(part.problems);
        part.warnings.told.into_iter().for_each(|warning| warnings.add(warning));
    }
    // What is wrong on every host is told once.
    let mut told = Vec::new();
    for problem in problems {
        if !told.contains(&problem) {
            told.push(problem);
        }
    }
    Problems::none_or(told)?;
    Ok(steps)
}

/// Steps that were made, or what is wrong with them.
#[derive(Default)]
struct Made {
    steps: Vec<PlannedStep>,
    problems: Vec<Problem>,
    warnings: Warnings,
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

/// How many steps one processor makes alone.
const ALONE_MAX: usize = 1_000;
/// After so many problems nothing more is looked at.
const PROBLEMS_MAX: usize = 100;

fn some_steps(
    configuration: &Configuration,
    circumstances: &Circumstances,
    ids: &[InstanceId],
    declared: &BTreeMap<String, SecretSource>,
) -> Made {
    let mut templates = render::Templates::new(&circumstances.variables, declared, &circumstances.files);
    let mut made = Made { steps: Vec::with_capacity(ids.len()), ..Made::default() };
    for id in ids {
        match render::release(configuration, circumstances, id, &mut templates, &mut made.warnings) {
            Ok(release) => {
                let irreversible = release.irreversible.clone();
                let step = step(id.clone(), release, circumstances.present.get(id));
                if let Some(why) = irreversible.filter(|_| step.action != StepAction::Unchanged) {
                    made.warnings.add(format!("{} cannot be undone once it has run: {why}", id.server));
                }
                made.steps.push(step);
            }
            Err(problems) => made.problems.extend(problems.0),
        }
        if made.problems.len() >= PROBLEMS_MAX {
            break;
        }
    }
    made
}

/// Makes the plan that takes the instances of a server to what an older plan had for them. Its rules were checked
/// when the older plan was made.
pub fn go_back(older: &Plan, server: &ServerName, circumstances: &Circumstances) -> CheckedPlan {
    let steps = older.steps().filter(|step| step.instance.server == *server);
    let steps = steps.filter_map(|planned| {
        let release = planned.release.clone()?;
        Some(step(planned.instance.clone(), release, circumstances.present.get(&planned.instance)))
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
