//! Plans in files: made now, executed later, and only if nothing has moved on.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{CheckedPlan, Circumstances};
use crate::ids::{InstanceId, PlanId};
use crate::plan::Plan;
use crate::time::Timestamp;

/// The format of a saved plan.
const SAVED_PLAN_FORMAT: &str = "fleetwright-plan/v1";
/// Largest saved plan, in bytes.
pub const SAVED_PLAN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A plan with what its execution needs besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPlan {
    format: String,
    /// The hash of the plan.
    pub id: PlanId,
    /// When it was made.
    pub made_at: Timestamp,
    /// What was worth a look then.
    pub warnings: Vec<String>,
    /// Files of the operator's that its releases are made of.
    pub artifacts: Vec<SavedArtifact>,
    /// The plan.
    pub plan: Plan,
}

/// A file of the operator's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedArtifact {
    /// Where it was.
    pub path: String,
    /// SHA-256 of its content as it is sent, hexadecimal.
    pub sha256: String,
}

/// Why a file is no plan.
#[derive(Debug, thiserror::Error)]
pub enum SavedPlanError {
    /// It is larger than a plan may be.
    #[error("it is larger than {} MiB", SAVED_PLAN_BYTES_MAX >> 20)]
    TooLarge,
    /// It is something else.
    #[error("it is no saved plan: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It is of another version.
    #[error("its format is `{0}`, and this version reads `{SAVED_PLAN_FORMAT}`")]
    Format(String),
    /// It was changed after it was made.
    #[error("its content does not have the hash that it names: it was changed after it was made")]
    Changed,
}

impl SavedPlan {
    /// A plan as it is written.
    pub fn new(checked: &CheckedPlan, made_at: Timestamp, artifacts: Vec<SavedArtifact>) -> Self {
        Self {
            format: SAVED_PLAN_FORMAT.to_owned(),
            id: checked.id.clone(),
            made_at,
            warnings: checked.warnings.clone(),
            artifacts,
            plan: checked.plan.clone(),
        }
    }

    /// Its bytes: JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what was written.
    pub fn parse(bytes: &[u8]) -> Result<Self, SavedPlanError> {
        if bytes.len() > SAVED_PLAN_BYTES_MAX {
            return Err(SavedPlanError::TooLarge);
        }
        let saved: Self = serde_json::from_slice(bytes)?;
        if saved.format != SAVED_PLAN_FORMAT {
            return Err(SavedPlanError::Format(saved.format));
        }
        if saved.plan.id() == saved.id { Ok(saved) } else { Err(SavedPlanError::Changed) }
    }

    /// The plan, which satisfied the rules of its environment when it was made.
    pub fn into_checked(self) -> CheckedPlan {
        CheckedPlan { id: self.id, plan: self.plan, warnings: self.warnings }
    }
}

/// What has changed in the fleet since a plan was made; nothing when it still is what it was made for.
pub fn moved_on(plan: &Plan, circumstances: &Circumstances) -> Vec<String> {
    if plan.parent == circumstances.generation {
        return Vec::new();
    }
    let mut changes = Vec::new();
    for step in plan.steps() {
        let present = circumstances.present.get(&step.instance);
        if present.map(|present| &present.release_id) == step.previous.as_ref() {
            continue;
        }
        let then = step.previous.as_ref().map_or("nothing", |release| release.short());
        let now = present.map_or_else(
            || "nothing".to_owned(),
            |present| format!("{} ({})", present.release_id.short(), present.release.package),
        );
        changes.push(format!("{} ran {then} when the plan was made, and runs {now} now", step.instance));
    }
    let known: BTreeSet<&InstanceId> = plan.steps().map(|step| &step.instance).collect();
    let of_manifest = circumstances.present.iter().filter(|(_, present)| present.manifest == plan.manifest);
    for (id, _) in of_manifest.filter(|(id, _)| !known.contains(id)) {
        changes.push(format!("{id} runs now, and the plan does not know it"));
    }
    if changes.is_empty() {
        let (then, now) = (plan.parent, circumstances.generation);
        changes.push(format!("the fleet was at generation {then}, and is at {now}: other deployments came between"));
    }
    changes
}
