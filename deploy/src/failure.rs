//! What can go wrong, in eight kinds, and what a person needs to know about it.

use std::fmt;

use serde::{Deserialize, Serialize};
use strum::{EnumIter, IntoStaticStr};

use crate::ids::{HostName, ServerName};

/// Most lines of a server's own output that travel with a failure.
pub const OUTPUT_LINES_MAX: usize = 20;
/// Most bytes of any one text in a failure; longer texts are cut when the failure is made.
pub const TEXT_BYTES_MAX: usize = 4 * 1024;

/// The eight kinds of error; the same words in the journal, the API, the command's output and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, EnumIter, IntoStaticStr)]
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
            transient: matches!(kind, FailureKind::NetworkError | FailureKind::TimeoutError),
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
        write!(f, "{} ({}): {}", self.kind, self.place(), self.message)
    }
}

impl std::error::Error for Failure {}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
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
        assert!(failure.message.len() <= TEXT_BYTES_MAX + '…'.len_utf8());
        assert_eq!(failure.output.len(), OUTPUT_LINES_MAX);
        assert_eq!(failure.output.last().map(String::as_str), Some("line 99"));
    }
}
