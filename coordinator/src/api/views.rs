//! What the interface shows. Field names are stable: they are only ever added to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fleetwright_deploy::deployment::{Deployment, DeploymentSummary, Hold, Outcome, Phase, StepState, Waiting};
use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::fleet::{Fleet, Halt, Host, SeenTwice};
use fleetwright_deploy::health::{HealthReport, HealthStatus};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{
    DeploymentId, FleetName, Generation, HostName, InstanceId, ManifestName, PlanId, ReleaseId, ServerName,
};
use fleetwright_deploy::journal_budget::OverBudget;
use fleetwright_deploy::plan::{Plan, RuleOverride, StepAction};
use fleetwright_deploy::planning::{Circumstances, Files, Present};
use fleetwright_deploy::release::Release;
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::report::MetricsSample;
use serde::{Deserialize, Serialize};

use crate::journal::PastPlan;
use crate::view::View;

/// The fleet at a glance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StatusView {
    pub(crate) fleet: FleetName,
    pub(crate) generation: Generation,
    pub(crate) listen: String,
    pub(crate) last_event: u64,
    pub(crate) hosts: usize,
    pub(crate) hosts_connected: usize,
    pub(crate) instances: usize,
    pub(crate) instances_available: usize,
    pub(crate) running_deployments: Vec<DeploymentSummary>,
    /// Why nothing new starts in the whole fleet, if it does not.
    pub(crate) halted: Option<Halt>,
    /// What a person should look at: what hosts claim, and keys that two agents have.
    #[serde(default)]
    pub(crate) host_troubles: Vec<Failure>,
    /// Hosts that have used up their share of the journal of late.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) over_budget: BTreeMap<HostName, OverBudget>,
}

impl StatusView {
    pub(crate) fn new(View { seq, fleet }: &View, listen: String, over_budget: BTreeMap<HostName, OverBudget>) -> Self {
        let connected = fleet.hosts().values().filter(|host| host.connected).count();
        let available = |row: &&InstanceRow| row.health.is_available() && row.trouble.is_none();
        Self {
            fleet: fleet.name().clone(),
            generation: fleet.generation(),
            listen,
            last_event: *seq,
            hosts: fleet.hosts().len(),
            hosts_connected: connected,
            instances: fleet.instances().len(),
            instances_available: InstanceRow::all(fleet).iter().filter(available).count(),
            running_deployments: fleet
                .deployments()
                .filter(|d| d.outcome().is_none())
                .map(DeploymentSummary::new)
                .collect(),
            halted: fleet.halted().cloned(),
            host_troubles: fleet.hosts().iter().flat_map(|(name, host)| host.troubles(name)).collect(),
            over_budget,
        }
    }
}

/// A host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostRow {
    pub(crate) host: HostName,
    pub(crate) connected: bool,
    pub(crate) since: Timestamp,
    /// Its labels, as operators have said.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// Where its servers listen, as far as that is believed.
    #[serde(default)]
    pub(crate) address: Option<String>,
    /// What it says of itself. Its labels and its address there are claims.
    pub(crate) view: Option<HostView>,
    pub(crate) instances: usize,
    /// That two agents had its certificate at once.
    #[serde(default)]
    pub(crate) seen_twice: Option<SeenTwice>,
    /// What a person should look at.
    #[serde(default)]
    pub(crate) troubles: Vec<Failure>,
    /// That it has used up its share of the journal of late, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) over_budget: Option<OverBudget>,
}

impl HostRow {
    pub(crate) fn all(fleet: &Fleet, over: &BTreeMap<HostName, OverBudget>) -> Vec<Self> {
        fleet.hosts().iter().map(|(name, host)| Self::new(fleet, name, host, over)).collect()
    }

    pub(crate) fn one(fleet: &Fleet, name: &HostName, over: &BTreeMap<HostName, OverBudget>) -> Option<Self> {
        fleet.hosts().get(name).map(|host| Self::new(fleet, name, host, over))
    }

    fn new(fleet: &Fleet, name: &HostName, host: &Host, over: &BTreeMap<HostName, OverBudget>) -> Self {
        Self {
            host: name.clone(),
            connected: host.connected,
            since: host.since,
            labels: host.labels.clone(),
            address: host.address.clone(),
            view: host.view.clone(),
            instances: fleet.running_on(name).len(),
            seen_twice: host.seen_twice.clone(),
            troubles: host.troubles(name),
            over_budget: over.get(name).cloned(),
        }
    }
}

/// What an instance runs, and how it is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InstanceRow {
    pub(crate) server: ServerName,
    pub(crate) host: HostName,
    pub(crate) manifest: ManifestName,
    pub(crate) group: usize,
    /// `unknown` while the host is not connected.
    pub(crate) health: HealthStatus,
    pub(crate) report: HealthReport,
    pub(crate) connected: bool,
    pub(crate) release: ReleaseId,
    pub(crate) package: String,
    /// The version of its package, which is what was deployed, whatever the server says of itself.
    #[serde(default)]
    pub(crate) version: Option<String>,
    /// Whether it does its work and ends.
    #[serde(default)]
    pub(crate) completes: bool,
    pub(crate) url: Option<String>,
    pub(crate) deployment: DeploymentId,
    pub(crate) since: Timestamp,
    pub(crate) trouble: Option<Failure>,
}

impl InstanceRow {
    pub(crate) fn all(fleet: &Fleet) -> Vec<Self> {
        let rows = fleet.instances().iter().map(|(id, record)| {
            let connected = fleet.hosts().get(&id.host).is_some_and(|host| host.connected);
            let endpoint = record.release.run.endpoint.as_ref();
            Self {
                server: id.server.clone(),
                host: id.host.clone(),
                manifest: record.manifest.clone(),
                group: record.group,
                health: if connected { record.health.status } else { HealthStatus::Unknown },
                report: record.health.clone(),
                connected,
                release: record.release_id.clone(),
                package: record.release.package.to_string(),
                version: record.release.package.version().map(str::to_owned),
                completes: record.release.run.completes,
                url: record.release.mcp_url().or_else(|| endpoint.map(|at| format!("http://{}", at.authority()))),
                deployment: record.deployment.clone(),
                since: record.since,
                trouble: record.trouble.clone(),
            }
        });
        let mut rows: Vec<Self> = rows.collect();
        rows.sort_by(|a, b| (a.group, &a.server, &a.host).cmp(&(b.group, &b.server, &b.host)));
        rows
    }
}

/// A step of a deployment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StepRow {
    pub(crate) instance: InstanceId,
    pub(crate) group: usize,
    pub(crate) action: StepAction,
    pub(crate) attempt: u32,
    pub(crate) state: String,
    pub(crate) release: Option<ReleaseId>,
    /// What ran before.
    pub(crate) before: Option<ReleaseId>,
    /// Why it failed, is stuck or was left out.
    pub(crate) failure: Option<Failure>,
}

/// Everything about a deployment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DeploymentView {
    pub(crate) summary: DeploymentSummary,
    pub(crate) plan: PlanId,
    pub(crate) cause: Option<Failure>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) waiting: Vec<Waiting>,
    /// Why it starts nothing new, if it does not.
    pub(crate) held: Vec<Hold>,
    /// What a person may do now, as commands.
    pub(crate) moves: Vec<String>,
    pub(crate) steps: Vec<StepRow>,
    /// The rules that its operator has set aside.
    #[serde(default)]
    pub(crate) overrides: Vec<RuleOverride>,
    /// The plan itself, if it was asked for: a rollback is signed for exactly what it covered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<Arc<Plan>>,
}

impl DeploymentView {
    pub(crate) fn new(deployment: &Deployment) -> Self {
        let planned = deployment.plan().steps();
        let steps = planned.filter_map(|planned| {
            let step = deployment.steps().get(&planned.instance)?;
            Some(StepRow {
                instance: planned.instance.clone(),
                group: step.group,
                action: step.action,
                attempt: step.attempt,
                state: step.state.name().to_owned(),
                release: step.release_id.clone(),
                before: planned.previous.clone(),
                failure: match &step.state {
                    StepState::Failed { failure }
                    | StepState::Stuck { failure }
                    | StepState::LeftOut { failure }
                    | StepState::SettingAside { failure, .. } => Some(failure.clone()),
                    _ => None,
                },
            })
        });
        Self {
            summary: DeploymentSummary::new(deployment),
            plan: deployment.plan_id().clone(),
            cause: match deployment.phase() {
                Phase::Finished { cause, .. } => cause.clone(),
                Phase::RollingBack { cause, .. }
                | Phase::Stopping { cause, .. }
                | Phase::AwaitingOperator { cause, .. } => Some(cause.clone()),
                _ => None,
            },
            failures: deployment.failures().to_vec(),
            waiting: deployment.waiting(),
            held: deployment.holds_by_people().to_vec(),
            moves: deployment.moves(),
            steps: steps.collect(),
            overrides: deployment.plan().overrides.clone(),
            content: None,
        }
    }

    /// With the plan besides.
    pub(crate) fn with_plan(self, deployment: &Deployment) -> Self {
        Self { content: Some(deployment.plan().clone()), ..self }
    }
}

/// What a deployment planned for one server: what can be gone back to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PastRow {
    pub(crate) deployment: DeploymentId,
    pub(crate) started_at: Timestamp,
    pub(crate) outcome: Option<Outcome>,
    /// The releases that the plan had for the server.
    pub(crate) releases: Vec<ReleaseId>,
    /// The instances of the server that the deployment has changed and not put back.
    pub(crate) changed: Vec<InstanceId>,
}

impl PastRow {
    /// The deployments of a fleet that had a server in their plan, each with its generation.
    pub(crate) fn all(fleet: &Fleet, server: &ServerName) -> Vec<(Generation, Self)> {
        let rows = fleet.deployments().map(|deployment| {
            let of_server = deployment.steps().iter().filter(|(id, _)| id.server == *server);
            let changed = of_server.filter(|(_, step)| step.state.is_touched()).map(|(id, _)| id.clone());
            let planned = deployment.plan().steps().filter(|step| step.instance.server == *server);
            let row = Self {
                deployment: deployment.id().clone(),
                started_at: deployment.started_at(),
                outcome: deployment.outcome(),
                releases: planned.filter_map(|step| step.release_id.clone()).collect(),
                changed: changed.collect(),
            };
            (deployment.generation(), row)
        });
        rows.filter(|(_, row)| !row.releases.is_empty() || !row.changed.is_empty()).collect()
    }
}

impl From<PastPlan> for PastRow {
    /// Nothing of what is in the archive can be put back any more.
    fn from(PastPlan { summary, releases }: PastPlan) -> Self {
        let DeploymentSummary { id, started_at, outcome, .. } = summary;
        Self { deployment: id, started_at, outcome, releases: releases.into_iter().collect(), changed: Vec::new() }
    }
}

/// The newest metrics of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostMetrics {
    pub(crate) host: HostName,
    pub(crate) sample: MetricsSample,
}

/// What a plan is made from, as far as the coordinator knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PlanningView {
    pub(crate) fleet: FleetName,
    pub(crate) generation: Generation,
    pub(crate) hosts: BTreeMap<HostName, HostView>,
    pub(crate) unreachable: BTreeSet<HostName>,
    pub(crate) present: Vec<PresentRow>,
    /// The artifacts that the coordinator keeps, by their SHA-256.
    #[serde(default)]
    pub(crate) artifacts: BTreeSet<String>,
}

/// What runs on an instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PresentRow {
    pub(crate) instance: InstanceId,
    pub(crate) manifest: ManifestName,
    pub(crate) group: usize,
    pub(crate) release: Arc<Release>,
    pub(crate) release_id: ReleaseId,
    pub(crate) in_trouble: bool,
}

impl PlanningView {
    pub(crate) fn new(fleet: &Fleet) -> Self {
        let away = fleet.hosts().iter().filter(|(_, host)| !host.connected);
        let present = fleet.instances().iter().map(|(id, record)| PresentRow {
            instance: id.clone(),
            manifest: record.manifest.clone(),
            group: record.group,
            release: record.release.clone(),
            release_id: record.release_id.clone(),
            in_trouble: record.trouble.is_some(),
        });
        Self {
            fleet: fleet.name().clone(),
            generation: fleet.generation(),
            hosts: fleet.hosts().iter().filter_map(|(name, host)| Some((name.clone(), host.believed()?))).collect(),
            unreachable: away.map(|(name, _)| name.clone()).collect(),
            present: present.collect(),
            artifacts: BTreeSet::new(),
        }
    }

    /// What planning takes, with what only the command itself knows left out.
    pub(crate) fn circumstances(self, now: Timestamp) -> Circumstances {
        let present = self.present.into_iter().map(|row| {
            let PresentRow { instance, manifest, group, release, release_id, in_trouble } = row;
            let release = Arc::unwrap_or_clone(release);
            (instance, Present { manifest, group, release, release_id, in_trouble })
        });
        Circumstances {
            overrides: BTreeMap::new(),
            generation: self.generation,
            hosts: self.hosts,
            unreachable: self.unreachable,
            present: present.collect(),
            secret_digests: None,
            older_digests: BTreeMap::new(),
            artifacts: Some(self.artifacts),
            variables: std::env::vars().collect(),
            files: Files::default(),
            now,
        }
    }
}
