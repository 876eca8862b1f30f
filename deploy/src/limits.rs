//! How much of what servers and programs say is told further: texts and lists have limits, and what is over one is cut
//! and says so. So whatever a server does, what its host tells of it fits a message.

use crate::failure::{Failure, OUTPUT_LINES_MAX, TEXT_BYTES_MAX};
use crate::health::{BridgeInfo, CheckOutcome, CheckReport, CheckRun, HealthReport, McpInfo, Severity};
use crate::host::{Facts, HostView, LABEL_BYTES_MAX, LABELS_MAX};

/// Longest name of anything: of a check, a step, a tool, of a server as it calls itself; in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Most tools that a server may list.
pub const TOOLS_MAX: usize = 1_000;
/// Most tools that are told of though no client can use them, and longest reason of one, in bytes.
pub const LEFT_OUT_MAX: usize = 20;
const LEFT_OUT_BYTES_MAX: usize = 256;
/// Most eras of a bridge.
const ERAS_MAX: usize = 4;
/// Most checks that are told of, and longest message of one, in bytes.
pub const CHECKS_MAX: usize = 200;
const CHECK_BYTES_MAX: usize = 1024;
/// Most measurements of all checks together that are told, and longest one, in bytes.
const MEASUREMENTS_MAX: usize = 256;
const MEASUREMENT_BYTES_MAX: usize = 512;
/// Most programs and engines of a host, and most versions of one; more are left out.
pub const RUNTIMES_MAX: usize = 64;
pub const VERSIONS_MAX: usize = 16;
/// Longest path of a host, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;

const UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A number of bytes, for people.
pub fn size(bytes: usize) -> String {
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} bytes"),
    }
}

/// Two numbers of bytes, for people, in units that tell them apart.
pub fn sizes(one: usize, other: usize) -> (String, String) {
    let (whole, least) = ((size(one), size(other)), one.min(other));
    if whole.0 != whole.1 || one == other {
        return whole;
    }
    let smaller = UNITS.iter().filter(|(_, unit)| least >= *unit && one / unit != other / unit);
    match smaller.max_by_key(|(_, unit)| *unit) {
        Some((name, unit)) => (format!("{} {name}", one / unit), format!("{} {name}", other / unit)),
        None => (format!("{one} bytes"), format!("{other} bytes")),
    }
}

/// A text of at most `limit` bytes. A longer one is cut, and says so.
pub fn cut(mut text: String, limit: usize) -> String {
    let bytes = text.len();
    if bytes <= limit {
        return text;
    }
    let mark = format!("… cut: {}, the limit is {}", size(bytes), size(limit));
    // Where not even the mark fits, the start of the text says more than that of the mark.
    let mark = if mark.len() <= limit / 2 { mark } else { String::new() };
    text.truncate(text.floor_char_boundary(limit - mark.len()));
    text.push_str(&mark);
    text
}

/// Cuts a list that has more than `limit`, and gives the mark that is to be its last entry: so a list that was cut is
/// within the limit itself.
fn cut_list<T>(list: &mut Vec<T>, limit: usize) -> Option<String> {
    let count = list.len();
    let mark = (count > limit).then(|| format!("… cut: {count}, the limit is {limit}"))?;
    list.truncate(limit - 1);
    Some(mark)
}

impl Failure {
    /// The same failure with every text within its limit, however it was made.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.step = cut(self.step, NAME_BYTES_MAX);
        self.message = cut(self.message, TEXT_BYTES_MAX);
        self.hint = self.hint.map(|hint| cut(hint, TEXT_BYTES_MAX));
        self.output = last_lines(self.output, OUTPUT_LINES_MAX);
        self
    }
}

impl HostView {
    /// The same host within its limits. Both ends use this, so that what an agent tells is what its coordinator keeps.
    #[must_use]
    pub fn bounded(self) -> Self {
        let Self { address, state_dir, labels, facts } = self;
        let label = |(key, value)| (cut(key, NAME_BYTES_MAX), cut(value, LABEL_BYTES_MAX));
        Self {
            address: cut(address, LABEL_BYTES_MAX),
            state_dir: cut(state_dir, PATH_BYTES_MAX),
            labels: labels.into_iter().take(LABELS_MAX).map(label).collect(),
            facts: facts.map(Facts::bounded),
        }
    }
}

impl Facts {
    /// The same facts within their limits.
    #[must_use]
    pub fn bounded(self) -> Self {
        let Self { os, arch, cpus, memory_bytes, disk_bytes, runtimes } = self;
        let (os, arch) = (cut(os, NAME_BYTES_MAX), cut(arch, NAME_BYTES_MAX));
        let runtimes = runtimes.into_iter().take(RUNTIMES_MAX).map(|(name, mut versions)| {
            versions.truncate(VERSIONS_MAX);
            (cut(name, NAME_BYTES_MAX), versions)
        });
        Self { os, arch, cpus, memory_bytes, disk_bytes, runtimes: runtimes.collect() }
    }
}

/// The last lines of an output, each within the limit of a text.
pub fn last_lines(mut lines: Vec<String>, limit: usize) -> Vec<String> {
    lines.drain(..lines.len().saturating_sub(limit));
    lines.into_iter().map(|line| cut(line, TEXT_BYTES_MAX)).collect()
}

impl CheckOutcome {
    /// The same outcome with a message within its limit.
    #[must_use]
    pub fn bounded(self) -> Self {
        let shorter = |message| cut(message, CHECK_BYTES_MAX);
        match self {
            Self::Passing { message } => Self::Passing { message: shorter(message) },
            Self::NeedsAuthentication { message } => Self::NeedsAuthentication { message: shorter(message) },
            Self::Failing { message } => Self::Failing { message: shorter(message) },
            Self::Warning { message } => Self::Warning { message: shorter(message) },
        }
    }

    fn passes(&self) -> bool {
        matches!(self, Self::Passing { .. })
    }
}

impl HealthReport {
    /// The same report within its limits. Of too many checks, those that do not pass are kept.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if self.checks.len() > CHECKS_MAX {
            self.checks.sort_by_key(|check| check.outcome.passes());
        }
        let mark = cut_list(&mut self.checks, CHECKS_MAX);
        self.checks.extend(mark.map(|message| CheckReport {
            name: "…".to_owned(),
            severity: Severity::Info,
            outcome: CheckOutcome::Warning { message },
        }));
        for check in &mut self.checks {
            check.name = cut(std::mem::take(&mut check.name), NAME_BYTES_MAX);
            check.outcome = check.outcome.clone().bounded();
        }
        self.mcp = self.mcp.map(McpInfo::bounded);
        self
    }
}

impl McpInfo {
    /// The same within its limits.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for text in [&mut self.name, &mut self.version, &mut self.protocol] {
            *text = cut(std::mem::take(text), NAME_BYTES_MAX);
        }
        let mark = cut_list(&mut self.tools, TOOLS_MAX);
        self.tools.extend(mark);
        self.tools = self.tools.into_iter().map(|tool| cut(tool, NAME_BYTES_MAX)).collect();
        self.left_out.truncate(LEFT_OUT_MAX);
        self.left_out = self.left_out.into_iter().map(|tool| cut(tool, LEFT_OUT_BYTES_MAX)).collect();
        self.bridge = self.bridge.map(|BridgeInfo { protocol, eras, sessions }| BridgeInfo {
            protocol: cut(protocol, NAME_BYTES_MAX),
            eras: eras.into_iter().take(ERAS_MAX).map(|era| cut(era, NAME_BYTES_MAX)).collect(),
            sessions: cut(sessions, NAME_BYTES_MAX),
        });
        self
    }
}

/// Runs of checks within their limits, all together.
pub fn bounded_runs(mut runs: Vec<CheckRun>) -> Vec<CheckRun> {
    if runs.len() > CHECKS_MAX {
        runs.sort_by_key(|run| run.outcome.passes());
    }
    let mark = cut_list(&mut runs, CHECKS_MAX);
    runs.extend(mark.map(|message| CheckRun {
        name: "…".to_owned(),
        severity: Severity::Info,
        outcome: CheckOutcome::Warning { message },
        took_ms: 0,
        performance: Vec::new(),
    }));
    let mut left = MEASUREMENTS_MAX;
    for run in &mut runs {
        run.name = cut(std::mem::take(&mut run.name), NAME_BYTES_MAX);
        run.outcome = run.outcome.clone().bounded();
        run.performance.truncate(left);
        left -= run.performance.len();
        for measurement in &mut run.performance {
            *measurement = cut(std::mem::take(measurement), MEASUREMENT_BYTES_MAX);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sizes_that_differ_are_told_apart() {
        let told = |one, other| {
            let (one, other) = sizes(one, other);
            format!("{one}, {other}")
        };
        assert_eq!(told(3 << 30, 1 << 30), "3 GiB, 1 GiB");
        assert_eq!(told((1 << 30) + (400 << 20), (1 << 30) + (200 << 20)), "1424 MiB, 1224 MiB");
        assert_eq!(told((1 << 30) + 1, 1 << 30), "1073741825 bytes, 1073741824 bytes");
        assert_eq!(told(1 << 30, 1 << 30), "1 GiB, 1 GiB");
    }

    #[test]
    fn a_text_that_is_cut_says_how_long_it_was_and_what_the_limit_is() {
        assert_eq!(cut("short".to_owned(), 128), "short");
        let long = cut("ü".repeat(501 << 19), 1024);
        assert!(long.len() <= 1024 && long.ends_with("… cut: 501 MiB, the limit is 1 KiB"), "{long}");
        assert_eq!(cut("x".repeat(100), 8), "xxxxxxxx");
    }

    #[test]
    fn the_texts_of_a_host_are_cut_and_marked_and_what_is_too_many_is_left_out() {
        let large = || "ü".repeat(100_000);
        let runtimes = (0..300_u32).map(|n| (format!("{n}{}", large()), vec![[n, n].into(); 100]));
        let view = HostView {
            address: large(),
            state_dir: large(),
            labels: (0..300).map(|n| (format!("{n:03}{}", large()), large())).collect(),
            facts: Some(Facts { os: large(), runtimes: runtimes.collect(), ..Facts::default() }),
        };
        let cut = view.bounded();
        assert!(serde_json::to_string(&cut).expect("JSON").len() < 64 * 1024);
        assert_eq!(cut.labels.len(), LABELS_MAX);
        assert!(cut.labels.iter().all(|(key, value)| key.contains("… cut: ") && value.contains("… cut: ")));
        let facts = cut.facts.as_ref().expect("facts");
        assert_eq!(facts.runtimes.len(), RUNTIMES_MAX);
        assert!(facts.runtimes.values().all(|versions| versions.len() == VERSIONS_MAX));
        assert_eq!(cut.clone().bounded(), cut, "what was cut stays as it is");
    }

    #[test]
    fn of_too_many_checks_those_that_fail_are_told() {
        let check = |n: usize| CheckReport {
            name: format!("c{n}"),
            severity: Severity::Critical,
            outcome: match n {
                9_999 => CheckOutcome::Failing { message: "no".to_owned() },
                _ => CheckOutcome::Passing { message: "yes".to_owned() },
            },
        };
        let report = HealthReport { checks: (0..10_000).map(check).collect(), ..HealthReport::default() }.bounded();
        assert_eq!(report.checks.len(), CHECKS_MAX);
        assert_eq!(report.checks[0].name, "c9999");
        assert_eq!(report.checks[CHECKS_MAX - 1].outcome.message(), "… cut: 10000, the limit is 200");
        assert_eq!(report.clone().bounded(), report, "what was cut stays as it is");
    }
}
