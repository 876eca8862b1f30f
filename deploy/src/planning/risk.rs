//! What could go wrong with a plan, as far as the plan itself shows.

use std::collections::BTreeMap;

use serde::Serialize;
use strum::IntoStaticStr;

use crate::health::Severity;
use crate::ids::ServerName;
use crate::plan::{OnFailure, Plan, PlannedStep, RollbackStrategy, StepAction};

/// How much could go wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RiskLevel {
    /// Nothing that is in service is put at risk beyond its own switch.
    #[default]
    Low,
    /// Something goes out of service, or fails unseen.
    Medium,
    /// Something cannot be undone by itself.
    High,
}

/// How much could go wrong, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Risk {
    /// The highest of all reasons.
    pub level: RiskLevel,
    /// The reasons, the worst first.
    pub reasons: Vec<(RiskLevel, String)>,
}

/// What could go wrong with a plan.
pub fn risk(plan: &Plan) -> Risk {
    let mut reasons: Vec<(RiskLevel, String)> = Vec::new();
    let mut servers: BTreeMap<&ServerName, Vec<&PlannedStep>> = BTreeMap::new();
    for step in plan.steps() {
        servers.entry(&step.instance.server).or_default().push(step);
    }
    let changes = plan.summary().changes();
    if changes > 0 && !plan.rollback.enabled {
        reasons.push((RiskLevel::High, "a failure puts nothing back: rollback is off".to_owned()));
    } else if changes > 0 && plan.rollback.strategy == RollbackStrategy::Manual {
        reasons.push((RiskLevel::Medium, "a failure waits for a person to put things back".to_owned()));
    }
    if changes > 0 && plan.rollout.on_failure == OnFailure::Continue {
        reasons.push((RiskLevel::Medium, "it goes on however many instances fail".to_owned()));
    }
    for aside in &plan.overrides {
        reasons.push((RiskLevel::Medium, format!("rule `{}` is set aside", aside.rule)));
    }
    for (server, steps) in servers {
        of_server(plan, server, &steps, &mut reasons);
    }
    reasons.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
    Risk { level: reasons.first().map(|(level, _)| *level).unwrap_or_default(), reasons }
}

fn of_server(plan: &Plan, server: &ServerName, steps: &[&PlannedStep], reasons: &mut Vec<(RiskLevel, String)>) {
    let count = |action: StepAction| steps.iter().filter(|step| step.action == action).count();
    let (updates, removals, unchanged) =
        (count(StepAction::Update), count(StepAction::Remove), count(StepAction::Unchanged));
    let mut add = |level, what: String| reasons.push((level, what));
    let releases =
        || steps.iter().filter(|step| step.action != StepAction::Unchanged).filter_map(|s| s.release.as_ref());
    if let Some(why) = releases().find_map(|release| release.irreversible.as_ref()) {
        add(RiskLevel::High, format!("{server} cannot be undone once it has run: {why}"));
    }
    match (removals, steps.len()) {
        (0, _) => {}
        (removed, all) if removed == all => add(RiskLevel::Medium, format!("{server} is removed from every host")),
        (removed, all) => add(RiskLevel::Low, format!("{removed} of {all} instances of {server} are removed")),
    }
    let watched = releases().all(|release| {
        release.run.completes || release.health_checks.iter().any(|check| check.severity == Severity::Critical)
    });
    if releases().next().is_some() && !watched {
        add(RiskLevel::Medium, format!("no check of {server} is critical: it counts as healthy when it only runs"));
    }
    let pace = plan.pace(server);
    match updates {
        0 => {}
        1 if unchanged == 0 => {
            add(RiskLevel::Low, format!("the only instance of {server} is out of service while it is switched"));
        }
        n if unchanged == 0 && pace.max_unavailable as usize >= n => {
            add(RiskLevel::Medium, format!("all {n} instances of {server} may be out of service at once"));
        }
        n if n > 1 && pace.canary == 0 => {
            add(RiskLevel::Medium, format!("no canary of {server} goes before its other instances"));
        }
        _ => {}
    }
}
