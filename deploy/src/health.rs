//! Health checks as the agent runs them, and what their outcomes mean together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::time::Length;

/// How much a failing check matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Severity {
    /// Shown, and nothing more.
    Info,
    /// The instance is degraded; a rollout goes on.
    Warning,
    /// The instance is unhealthy; a rollout stops.
    #[default]
    Critical,
}

/// One check of one instance, rendered for its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The name, unique within the server.
    pub name: String,
    /// How much it matters.
    pub severity: Severity,
    /// What is looked at.
    pub probe: Probe,
    /// The pause between two runs.
    pub interval: Length,
    /// How long one run may take.
    pub timeout: Length,
    /// How many runs in a row must fail before the check counts as failing.
    pub failure_threshold: u32,
    /// Names by which checks are selected.
    pub tags: Vec<String>,
}

/// What a check looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", content = "config")]
pub enum Probe {
    /// Lists the tools of an MCP server over streamable HTTP.
    Mcp {
        /// The endpoint, such as `http://127.0.0.1:8801/mcp`.
        url: String,
        /// Tools that must be among those listed.
        expected_tools: Vec<String>,
    },
    /// Sends a GET request.
    Http {
        /// What is asked for.
        url: String,
        /// Status codes that pass.
        statuses: Vec<u16>,
        /// A text that the body must contain.
        contains: Option<String>,
    },
    /// Opens a TCP connection.
    Tcp {
        /// `HOST:PORT`.
        address: String,
    },
    /// Runs a program; its exit status 0 passes.
    Command {
        /// The program and its arguments; no shell is involved.
        command: Vec<String>,
    },
    /// Looks for a file.
    File {
        /// Its path on the host.
        path: String,
        /// The longest time since it was last written.
        age_max: Option<Length>,
    },
    /// Looks at the free space of a file system.
    Disk {
        /// A path on it.
        path: String,
        /// The least number of free bytes.
        free_bytes_min: u64,
    },
}

/// How an instance is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum HealthStatus {
    /// Nothing is known yet.
    #[default]
    Unknown,
    /// Every check passes.
    Healthy,
    /// A warning fails; no critical check does.
    Degraded,
    /// It is up, and asks for credentials before it says more.
    NeedsAuthentication,
    /// A critical check fails, or the server is not running.
    Unhealthy,
}

impl HealthStatus {
    /// Whether a rollout may go on with the instance in this state.
    pub fn is_available(self) -> bool {
        match self {
            Self::Healthy | Self::Degraded | Self::NeedsAuthentication => true,
            Self::Unknown | Self::Unhealthy => false,
        }
    }
}

/// What one run of one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// The check passes.
    Passing {
        /// What was seen, in words.
        message: String,
    },
    /// The endpoint is up and asks for credentials.
    NeedsAuthentication {
        /// What was seen, in words.
        message: String,
    },
    /// The check fails.
    Failing {
        /// What was seen, in words.
        message: String,
    },
}

impl CheckOutcome {
    /// What was seen, in words.
    pub fn message(&self) -> &str {
        match self {
            Self::Passing { message } | Self::NeedsAuthentication { message } | Self::Failing { message } => message,
        }
    }
}

/// The newest outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The check's name.
    pub name: String,
    /// How much it matters.
    pub severity: Severity,
    /// What it found.
    pub outcome: CheckOutcome,
}

/// What an MCP server said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpInfo {
    /// `serverInfo.name`.
    pub name: String,
    /// `serverInfo.version`; frameworks often report their own, so this is not the deployed version.
    pub version: String,
    /// The protocol version that was negotiated.
    pub protocol: String,
    /// The names of its tools, in order.
    pub tools: Vec<String>,
}

/// Everything an agent says about the health of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// The verdict over all checks.
    pub status: HealthStatus,
    /// The newest outcome of each check.
    pub checks: Vec<CheckReport>,
    /// What its MCP endpoint said, where it has one.
    pub mcp: Option<McpInfo>,
    /// How often its runtime has started it again since it was deployed.
    pub restarts: u32,
}

impl HealthReport {
    /// Why the instance is not healthy: the failing checks, the most severe first.
    pub fn reason(&self) -> String {
        let mut failing: Vec<&CheckReport> =
            self.checks.iter().filter(|check| !matches!(check.outcome, CheckOutcome::Passing { .. })).collect();
        failing.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.name.cmp(&b.name)));
        let words: Vec<String> =
            failing.iter().map(|check| format!("check `{}`: {}", check.name, check.outcome.message())).collect();
        words.join("; ")
    }
}

/// The verdict over the newest outcomes of all checks: the worst one counts. A check that has not run yet is
/// missing from `outcomes`; as long as a critical one is missing, nothing is known.
pub fn verdict(checks: &[HealthCheck], outcomes: &BTreeMap<String, CheckOutcome>) -> HealthStatus {
    let mut status = HealthStatus::Healthy;
    for check in checks {
        match (outcomes.get(&check.name), check.severity) {
            (None, Severity::Critical) => status = worse(status, HealthStatus::Unknown),
            (Some(CheckOutcome::Failing { .. }), Severity::Critical) => return HealthStatus::Unhealthy,
            (Some(CheckOutcome::Failing { .. }), Severity::Warning) => status = worse(status, HealthStatus::Degraded),
            (Some(CheckOutcome::NeedsAuthentication { .. }), Severity::Critical | Severity::Warning) => {
                status = worse(status, HealthStatus::NeedsAuthentication);
            }
            (None, Severity::Warning | Severity::Info)
            | (Some(CheckOutcome::Passing { .. }), _)
            | (Some(CheckOutcome::Failing { .. } | CheckOutcome::NeedsAuthentication { .. }), Severity::Info) => {}
        }
    }
    status
}

fn worse(a: HealthStatus, b: HealthStatus) -> HealthStatus {
    let rank = |status| match status {
        HealthStatus::Healthy => 0,
        HealthStatus::Degraded => 1,
        HealthStatus::NeedsAuthentication => 2,
        HealthStatus::Unknown => 3,
        HealthStatus::Unhealthy => 4,
    };
    if rank(a) >= rank(b) { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, severity: Severity) -> HealthCheck {
        HealthCheck {
            name: name.to_owned(),
            severity,
            probe: Probe::Tcp { address: "127.0.0.1:1".to_owned() },
            interval: Length::from_secs(10),
            timeout: Length::from_secs(5),
            failure_threshold: 1,
            tags: Vec::new(),
        }
    }

    fn failing() -> CheckOutcome {
        CheckOutcome::Failing { message: "no".to_owned() }
    }

    fn passing() -> CheckOutcome {
        CheckOutcome::Passing { message: "yes".to_owned() }
    }

    #[test]
    fn a_failing_critical_check_makes_the_instance_unhealthy_and_a_warning_only_degrades_it() {
        let checks = [check("a", Severity::Critical), check("b", Severity::Warning), check("c", Severity::Info)];
        let all = |a, b, c| BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b), ("c".to_owned(), c)]);
        assert_eq!(verdict(&checks, &all(passing(), passing(), failing())), HealthStatus::Healthy);
        assert_eq!(verdict(&checks, &all(passing(), failing(), passing())), HealthStatus::Degraded);
        assert_eq!(verdict(&checks, &all(failing(), passing(), passing())), HealthStatus::Unhealthy);
    }

    #[test]
    fn nothing_is_known_until_every_critical_check_has_run() {
        let checks = [check("a", Severity::Critical), check("b", Severity::Critical)];
        let some = BTreeMap::from([("a".to_owned(), passing())]);
        assert_eq!(verdict(&checks, &some), HealthStatus::Unknown);
    }

    #[test]
    fn asking_for_credentials_is_a_state_of_its_own() {
        let checks = [check("a", Severity::Critical)];
        let outcome = CheckOutcome::NeedsAuthentication { message: "401".to_owned() };
        let status = verdict(&checks, &BTreeMap::from([("a".to_owned(), outcome)]));
        assert_eq!(status, HealthStatus::NeedsAuthentication);
        assert!(status.is_available());
    }
}
