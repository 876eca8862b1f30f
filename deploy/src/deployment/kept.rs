//! A deployment as a snapshot holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use super::{Checkpoint, Deployment, Hold, Inquiry, Options, Phase, Step, Steps};
use crate::failure::Failure;
use crate::ids::{DeploymentId, HostName, InstanceId, PlanId, ServerName};
use crate::plan::Plan;
use crate::time::Timestamp;

/// What a deployment is made of, without what follows from that: its steps are counted once all of it is there.
#[derive(Deserialize)]
pub(super) struct KeptDeployment {
    id: DeploymentId,
    plan_id: PlanId,
    plan: Arc<Plan>,
    options: Options,
    started_at: Timestamp,
    progress_at: Timestamp,
    phase: Phase,
    steps: BTreeMap<InstanceId, Step>,
    #[serde(default)]
    externals: BTreeMap<ServerName, Inquiry>,
    unreachable: BTreeSet<HostName>,
    failures: Vec<Failure>,
    checkpoints: Vec<Checkpoint>,
    held: Vec<Hold>,
    held_since: Option<Timestamp>,
}

impl From<KeptDeployment> for Deployment {
    fn from(kept: KeptDeployment) -> Self {
        Self {
            steps: Steps::kept(&kept.plan, kept.steps, &kept.unreachable),
            id: kept.id,
            plan_id: kept.plan_id,
            plan: kept.plan,
            options: kept.options,
            started_at: kept.started_at,
            progress_at: kept.progress_at,
            phase: kept.phase,
            externals: kept.externals,
            unreachable: kept.unreachable,
            failures: kept.failures,
            checkpoints: kept.checkpoints,
            held: kept.held,
            held_since: kept.held_since,
        }
    }
}
