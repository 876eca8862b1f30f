//! A deployment in one line.

use serde::{Deserialize, Serialize};

use super::{Deployment, Outcome, Phase, PhaseName};
use crate::ids::{DeploymentId, EnvironmentName, ManifestName};
use crate::plan::PlanSummary;
use crate::time::Timestamp;

/// A deployment in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentSummary {
    /// Its name.
    pub id: DeploymentId,
    /// The manifest.
    pub manifest: ManifestName,
    /// The environment.
    pub environment: EnvironmentName,
    /// The name of its phase.
    pub phase: String,
    /// How it has ended, if it has.
    pub outcome: Option<Outcome>,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it ended, if it has.
    pub finished_at: Option<Timestamp>,
    /// Who started it.
    pub started_by: String,
    /// How many instances its plan changes.
    pub changes: PlanSummary,
}

impl DeploymentSummary {
    /// What a deployment comes to.
    pub fn new(deployment: &Deployment) -> Self {
        let name: &'static str = PhaseName::from(deployment.phase()).into();
        Self {
            id: deployment.id().clone(),
            manifest: deployment.plan().manifest.clone(),
            environment: deployment.plan().environment.clone(),
            phase: name.to_owned(),
            outcome: deployment.outcome(),
            started_at: deployment.started_at(),
            finished_at: match deployment.phase() {
                Phase::Finished { at, .. } => Some(*at),
                _ => None,
            },
            started_by: deployment.options().started_by.clone(),
            changes: deployment.plan().summary(),
        }
    }
}
