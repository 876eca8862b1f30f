//! Health checks as the agent runs them, and what their outcomes mean together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::release::ToolCall;
use crate::time::Length;

/// How much a failing check matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr)]
#[cfg_attr(feature = "planning", derive(schemars::JsonSchema))]
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
    /// How long failures do not count after the server was started, until the check passes for the first time.
    #[serde(default = "start_grace", skip_serializing_if = "is_start_grace")]
    pub start_grace: Length,
    /// How many runs in a row must pass before a failing check counts as passing again.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub success_threshold: u32,
    /// How often a failing run is tried again at once, with a pause that doubles, before it counts as failed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub retries: u32,
    /// The group that the check belongs to, for people and for selecting checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// How long failures do not count after a start, unless a check says otherwise.
pub const START_GRACE: Length = Length::from_secs(60);

fn start_grace() -> Length {
    START_GRACE
}

fn is_start_grace(length: &Length) -> bool {
    *length == START_GRACE
}

fn once() -> u32 {
    1
}

fn is_once(number: &u32) -> bool {
    *number == 1
}

fn is_none(number: &u32) -> bool {
    *number == 0
}

impl HealthCheck {
    /// A check with everything as it is unless said otherwise.
    pub fn new(name: String, severity: Severity, probe: Probe) -> Self {
        Self {
            name,
            severity,
            probe,
            interval: Length::from_secs(10),
            timeout: Length::from_secs(10),
            failure_threshold: 2,
            tags: Vec::new(),
            start_grace: START_GRACE,
            success_threshold: 1,
            retries: 0,
            group: None,
        }
    }

    /// Whether a person who names this tag or group means this check.
    pub fn is_tagged(&self, tag: &str) -> bool {
        self.group.as_deref() == Some(tag) || self.tags.iter().any(|own| own == tag)
    }
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
        /// Headers that are sent, with markers where secrets belong.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
        /// A tool that is called as well.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        call: Option<Box<McpCall>>,
    },
    /// Sends a GET request.
    Http {
        /// What is asked for.
        url: String,
        /// Status codes that pass.
        statuses: Vec<u16>,
        /// A text that the body must contain.
        contains: Option<String>,
        /// More that the answer must be.
        #[serde(default, skip_serializing_if = "is_plain")]
        more: Box<HttpMore>,
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
        /// Whether it must not be there.
        #[serde(default, skip_serializing_if = "is_false")]
        absent: bool,
        /// SHA-256 of its content, hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
        /// Its permission bits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// Looks at the free space of a file system.
    Disk {
        /// A path on it.
        path: String,
        /// The least number of free bytes.
        free_bytes_min: u64,
        /// The least part that is free, in hundredths.
        #[serde(default, skip_serializing_if = "is_none")]
        free_percent_min: u32,
    },
    /// Looks at a unit of the host's systemd.
    Systemd {
        /// The unit, such as `postgresql.service`.
        unit: String,
    },
    /// Runs a program that speaks as Nagios plugins do: 0 passes, 1 warns, 2 and everything else fails; what follows
    /// `|` on its output is performance data.
    Custom {
        /// The program and its arguments; no shell is involved.
        command: Vec<String>,
    },
}

impl Probe {
    /// The headers that it sends.
    pub fn headers(&self) -> impl Iterator<Item = (&String, &String)> {
        let headers = match self {
            Self::Mcp { headers, .. } => Some(headers),
            Self::Http { more, .. } => Some(&more.headers),
            Self::Tcp { .. }
            | Self::Command { .. }
            | Self::File { .. }
            | Self::Disk { .. }
            | Self::Systemd { .. }
            | Self::Custom { .. } => None,
        };
        headers.into_iter().flatten()
    }
}

/// A call that the check of an MCP server makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpCall {
    /// The call, and what it must be answered.
    pub call: ToolCall,
    /// The pause between two calls, as long as they are answered as they should be.
    pub interval: Length,
}

/// What an HTTP check may ask for besides status and text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpMore {
    /// Headers that are sent, with markers where secrets belong.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Headers that the answer must have, with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub expected_headers: BTreeMap<String, String>,
    /// A regular expression that the body must match somewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,
    /// What must be found in a JSON body, by JSONPath (RFC 9535).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub json: BTreeMap<String, serde_json::Value>,
    /// How long the server's TLS certificate must still count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_valid_for: Option<Length>,
}

fn is_plain(more: &HttpMore) -> bool {
    *more == HttpMore::default()
}

fn is_false(value: &bool) -> bool {
    !*value
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
    /// The check neither passes nor fails: somebody should look.
    Warning {
        /// What was seen, in words.
        message: String,
    },
}

impl CheckOutcome {
    /// What was seen, in words.
    pub fn message(&self) -> &str {
        match self {
            Self::Passing { message }
            | Self::NeedsAuthentication { message }
            | Self::Failing { message }
            | Self::Warning { message } => message,
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

/// One run of one check, for a person who asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRun {
    /// The check's name.
    pub name: String,
    /// How much it matters.
    pub severity: Severity,
    /// What it found.
    pub outcome: CheckOutcome,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What a plugin measured, each as it wrote it.
    pub performance: Vec<String>,
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
    /// What a bridge says of the server behind it.
    #[serde(default)]
    pub bridge: Option<BridgeInfo>,
    /// Tools that it lists and no client can use, each with the reason, at most [`LEFT_OUT_MAX`](crate::limits::LEFT_OUT_MAX).
    #[serde(default)]
    pub left_out: Vec<String>,
    /// How many there are of them.
    #[serde(default)]
    pub left_out_count: u32,
}

impl McpInfo {
    /// The revision of the protocol that the server itself speaks, and whether a bridge translates it.
    pub fn spoken(&self) -> String {
        match &self.bridge {
            Some(bridge) if !bridge.protocol.is_empty() => format!("{} (bridged)", bridge.protocol),
            Some(_) => format!("{} (bridged)", self.protocol),
            None => self.protocol.clone(),
        }
    }

    /// How many tools clients can use, and which not.
    pub fn counted(&self) -> String {
        let (usable, left_out) = (self.tools.len(), usize::try_from(self.left_out_count).unwrap_or(usize::MAX));
        if left_out == 0 {
            return usable.to_string();
        }
        let names = self.left_out.iter().map(|tool| tool.split_once(": ").map_or(tool.as_str(), |(name, _)| name));
        let names: Vec<&str> = names.take(COUNTED_NAMES_MAX).collect();
        let more = if names.len() < left_out { ", …" } else { "" };
        format!("{usable} of {}; {left_out} left out: {}{more}", usable.saturating_add(left_out), names.join(", "))
    }
}

/// Most names of tools in a line that counts them.
const COUNTED_NAMES_MAX: usize = 3;

/// What a bridge says of the server behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeInfo {
    /// The newest revision of the protocol that the server itself speaks.
    pub protocol: String,
    /// The eras in which clients are served.
    pub eras: Vec<String>,
    /// Whether sessions share a process of the server, or each have their own.
    pub sessions: String,
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
            (Some(CheckOutcome::Failing { .. }), Severity::Warning)
            | (Some(CheckOutcome::Warning { .. }), Severity::Critical | Severity::Warning) => {
                status = worse(status, HealthStatus::Degraded);
            }
            (Some(CheckOutcome::NeedsAuthentication { .. }), Severity::Critical | Severity::Warning) => {
                status = worse(status, HealthStatus::NeedsAuthentication);
            }
            (None, Severity::Warning | Severity::Info)
            | (Some(CheckOutcome::Passing { .. }), _)
            | (
                Some(
                    CheckOutcome::Failing { .. }
                    | CheckOutcome::NeedsAuthentication { .. }
                    | CheckOutcome::Warning { .. },
                ),
                Severity::Info,
            ) => {}
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
        HealthCheck::new(name.to_owned(), severity, Probe::Tcp { address: "127.0.0.1:1".to_owned() })
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
    fn a_check_that_warns_degrades_the_instance_whatever_its_severity_but_info() {
        let outcome = || BTreeMap::from([("a".to_owned(), CheckOutcome::Warning { message: "high".to_owned() })]);
        assert_eq!(verdict(&[check("a", Severity::Critical)], &outcome()), HealthStatus::Degraded);
        assert_eq!(verdict(&[check("a", Severity::Info)], &outcome()), HealthStatus::Healthy);
    }

    #[test]
    fn a_check_of_before_reads_and_writes_as_it_did() {
        let old = r#"{"name":"a","severity":"critical","probe":{"type":"http","config":{"url":"http://x","statuses":[200],"contains":null}},"interval":"10s","timeout":"5s","failure_threshold":2,"tags":[]}"#;
        let read: HealthCheck = serde_json::from_str(old).expect("it reads");
        assert_eq!(read.success_threshold, 1);
        assert_eq!(serde_json::to_string(&read).expect("JSON"), old, "the ids of releases must not change");
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

    #[test]
    fn tools_that_are_left_out_are_counted_and_named() {
        let tools = |n: usize| (0..n).map(|n| format!("t{n}")).collect();
        let info = McpInfo { tools: tools(13), protocol: "2026-07-28".to_owned(), ..McpInfo::default() };
        assert_eq!((info.counted().as_str(), info.spoken().as_str()), ("13", "2026-07-28"));
        let left_out = ["a: it has no `inputSchema`", "b: its name is empty", "c: another has its name"];
        let some = McpInfo { left_out: left_out.map(str::to_owned).into(), left_out_count: 3, ..info.clone() };
        assert_eq!(some.counted(), "13 of 16; 3 left out: a, b, c");
        assert_eq!(McpInfo { left_out_count: 40, ..some }.counted(), "13 of 53; 40 left out: a, b, c, …");
        let bridge = BridgeInfo { protocol: "2025-11-25".to_owned(), ..BridgeInfo::default() };
        assert_eq!(McpInfo { bridge: Some(bridge), ..info }.spoken(), "2025-11-25 (bridged)");
    }

    #[test]
    fn what_was_told_of_a_server_before_reads_as_it_did() {
        let old = r#"{"name":"a","version":"1","protocol":"2025-11-25","tools":["x"]}"#;
        let read: McpInfo = serde_json::from_str(old).expect("it reads");
        assert_eq!((read.counted().as_str(), read.spoken().as_str()), ("1", "2025-11-25"));
    }
}
