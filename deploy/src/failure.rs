//! What can go wrong, in eight kinds, and what a person needs to know about it.

use std::fmt;

use serde::{Deserialize, Serialize};
use strum::{EnumIter, IntoStaticStr};

use crate::ids::{HostName, ServerName};
use crate::limits;
use crate::printable::{continued, printable_line};

/// Most lines of a server's own output that travel with a failure.
pub const OUTPUT_LINES_MAX: usize = 20;
/// Most bytes of any one text in a failure; longer texts are cut when the failure is made.
pub const TEXT_BYTES_MAX: usize = 4 * 1024;

/// The eight kinds of error; the same words in the journal, the API, the command's output and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, EnumIter, IntoStaticStr)]
#[cfg_attr(feature = "planning", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FailureKind {
    /// What an operator wrote is wrong or missing.
    ConfigurationError,
    /// Something the server needs does not exist or does not answer.
    DependencyError,
    /// A server could not be installed, started, stopped or kept running.
    DeploymentError,
    /// A health check did not pass.
    HealthCheckError,
    /// Something did not end in time.
    TimeoutError,
    /// A port, disk space, memory or another resource is not to be had.
    ResourceError,
    /// A host or an endpoint could not be reached.
    NetworkError,
    /// Somebody or something may not do what was asked.
    PermissionError,
}

impl FailureKind {
    /// Whether trying again without a change may help, as a rule.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::NetworkError | Self::TimeoutError)
    }

    /// What it means, with examples.
    pub fn describe(self) -> &'static str {
        match self {
            Self::ConfigurationError => {
                "What an operator wrote is wrong or missing: a manifest, an environment, a plan that is no longer current."
            }
            Self::DependencyError => {
                "Something the server needs does not exist: a package, a runtime, a server that it depends on."
            }
            Self::DeploymentError => {
                "A server could not be installed, started, stopped or kept running; or a deployment does not take what was asked of it."
            }
            Self::HealthCheckError => "A health check or an integration test did not pass.",
            Self::TimeoutError => {
                "Something did not end in time: an installation, a switch, a confirmation, a rollback."
            }
            Self::ResourceError => "A port, disk space, memory or another resource is not to be had.",
            Self::NetworkError => "A host, a registry or an endpoint could not be reached.",
            Self::PermissionError => {
                "Somebody or something may not do what was asked: a command without an intent, an approval that does not count, a halted fleet."
            }
        }
    }

    /// What a person can do about it, as a rule; a failure's own hint says more.
    pub fn advice(self) -> &'static str {
        match self {
            Self::ConfigurationError => "Mend the file and place that it names, then plan again.",
            Self::DependencyError => "Install or name what is missing; `requires` finds it before anything is touched.",
            Self::DeploymentError => {
                "Read the output of the server that comes with it, then `fleetwright explain DEPLOYMENT`."
            }
            Self::HealthCheckError => {
                "Read the output of the server; if it only needs longer, raise `healthy_deadline`."
            }
            Self::TimeoutError => {
                "See with `fleetwright explain DEPLOYMENT` what was waited for, and look at that host's agent."
            }
            Self::ResourceError => "Free it on the host, or place the server elsewhere.",
            Self::NetworkError => "Look at the connection between the two ends that it names.",
            Self::PermissionError => "Ask who may; compare clocks and keys if nobody should have been refused.",
        }
    }
}

/// The table of the kinds, as Markdown: what `docs/errors.md` holds.
pub fn reference() -> String {
    use strum::IntoEnumIterator as _;

    use crate::plan::RetryPolicy;
    let policy = RetryPolicy::default();
    let mut text = String::from(
        "# Errors\n\nGenerated from the code: `cargo run -p fleetwright-tests --bin generate`.\n\n\
         Every failure, in the journal, the interface, the command's output and the metrics, is of one of eight kinds and\n\
         says where it happened (host, server, step), what went wrong, and what a person can do (`hint:`).\n\n\
         | kind | meaning | transient | attempts | what to do |\n|---|---|---|---|---|\n",
    );
    for kind in FailureKind::iter() {
        let failure = Failure::new(kind, "", "");
        let transient = if failure.transient { "yes" } else { "no" };
        let attempts = policy.attempts_for(&failure);
        text.push_str(&format!("| `{kind}` | {} | {transient} | {attempts} | {} |\n", kind.describe(), kind.advice()));
    }
    text.push_str(&format!(
        "\n## What is tried again\n\n\
         A step of a deployment that fails transiently is tried again: the host puts back what it has touched, and after a\n\
         pause a new attempt begins. Pauses back off exponentially with full jitter: the pause after attempt *n* is drawn\n\
         evenly from 0 to {base} × 2^(*n*−1), at most {max}. A step has at most {attempts} attempts, the first included, and\n\
         none begins later than {total} after its first failure. Every attempt is an event (`retry`, `attempt`), and a host\n\
         obeys each order of each attempt at most once.\n\n\
         A manifest or its environment says otherwise in `rollout.retry`: `attempts`, `base`, `max`, `total`, and `kinds` with\n\
         attempts for single kinds, transient or not: `retry: {{ attempts: 5, kinds: {{ health_check_error: 2, timeout_error: 1 }} }}`.\n",
        base = policy.base,
        max = policy.max,
        attempts = policy.attempts,
        total = policy.total,
    ));
    text
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.into())
    }
}

/// One failure: what went wrong, where, and what a person can do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which of the eight kinds.
    pub kind: FailureKind,
    /// Whether trying again without a change may help.
    pub transient: bool,
    /// The host it happened on, when it happened on one.
    pub host: Option<HostName>,
    /// The server it concerns, when it concerns one.
    pub server: Option<ServerName>,
    /// What was being done, in words: `preflight`, `install`, `health gate` …
    pub step: String,
    /// What went wrong; lower case, no full stop.
    pub message: String,
    /// What a person can do next.
    pub hint: Option<String>,
    /// The last lines of the output of the server or of the program that failed.
    pub output: Vec<String>,
}

impl Failure {
    /// A failure of `kind` while doing `step`. Texts longer than [`TEXT_BYTES_MAX`] are cut.
    pub fn new(kind: FailureKind, step: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind,
            transient: kind.is_transient(),
            host: None,
            server: None,
            step: step.into(),
            message: cut(message.into()),
            hint: None,
            output: Vec::new(),
        }
    }

    /// The same failure with what a person can do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(cut(hint.into()));
        self
    }

    /// The same failure with the last [`OUTPUT_LINES_MAX`] of these lines.
    #[must_use]
    pub fn output<'a>(mut self, lines: impl DoubleEndedIterator<Item = &'a str>) -> Self {
        self.output = lines.rev().take(OUTPUT_LINES_MAX).map(|line| cut(line.to_owned())).collect();
        self.output.reverse();
        self
    }

    /// The same failure, placed on a host and server unless it already names them.
    #[must_use]
    pub fn at(mut self, host: &HostName, server: &ServerName) -> Self {
        self.host.get_or_insert_with(|| host.clone());
        self.server.get_or_insert_with(|| server.clone());
        self
    }

    /// Where it happened: `SERVER@HOST, STEP`, as much of that as is known.
    pub fn place(&self) -> String {
        let instance = match (&self.server, &self.host) {
            (Some(server), Some(host)) => format!("{server}@{host}"),
            (Some(server), None) => server.to_string(),
            (None, Some(host)) => host.to_string(),
            (None, None) => return self.step.clone(),
        };
        format!("{instance}, {}", self.step)
    }
}

/// Kind, place and message on one line; hint and output are shown apart.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.kind, printable_line(&self.place()), continued(&self.message))
    }
}

impl std::error::Error for Failure {}

/// A text of at most [`TEXT_BYTES_MAX`]; a longer one is cut and says so.
pub(crate) fn cut(text: String) -> String {
    limits::cut(text, TEXT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_kind_place_and_cause_on_one_line() {
        let failure = Failure::new(FailureKind::ResourceError, "preflight", "port 8801 is taken")
            .at(&"h1".parse().expect("host"), &"time".parse().expect("server"));
        assert_eq!(failure.to_string(), "resource_error (time@h1, preflight): port 8801 is taken");
    }

    #[test]
    fn long_texts_and_long_output_are_cut_to_their_limits() {
        let lines: Vec<String> = (0..100).map(|n| format!("line {n}")).collect();
        let failure = Failure::new(FailureKind::DeploymentError, "start", "ü".repeat(TEXT_BYTES_MAX))
            .output(lines.iter().map(String::as_str));
        assert!(failure.message.len() <= TEXT_BYTES_MAX && failure.message.contains("… cut: 8 KiB"));
        assert_eq!(failure.output.len(), OUTPUT_LINES_MAX);
        assert_eq!(failure.output.last().map(String::as_str), Some("line 99"));
    }
}
