//! What agents say, before it becomes an event: texts are cut to their limits and marked, and what no honest agent says
//! is refused. What comes out of here is small enough to be kept for ever.

use std::collections::BTreeMap;

use crate::failure::{Failure, OUTPUT_LINES_MAX, TEXT_BYTES_MAX, cut_to};
use crate::health::{CheckOutcome, CheckReport, HealthReport, McpInfo};
use crate::host::{Facts, HostView};
use crate::ids::InstanceId;
use crate::instance::StepReport;

/// Most labels of a host.
pub const LABELS_MAX: usize = 64;
/// Most programs and engines of a host.
pub const RUNTIMES_MAX: usize = 64;
/// Most versions of one program; more are left out.
pub const VERSIONS_MAX: usize = 16;
/// Longest name of anything: a label, a program, an operating system, a check, a tool. In bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest value of a label, and longest address, in bytes.
pub const VALUE_BYTES_MAX: usize = 256;
/// Longest path, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Most checks in a report of health.
pub const CHECKS_MAX: usize = 128;
/// Longest message of a check, in bytes.
pub const CHECK_BYTES_MAX: usize = 1024;
/// Most tools that are kept of what an MCP server lists; the others are left out, and it is said so.
pub const TOOLS_MAX: usize = 256;

/// An agent said more of something than there can be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} {what} are too many: at most {max} are taken")]
pub struct TooMany {
    what: &'static str,
    count: usize,
    max: usize,
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), TooMany> {
    if count > max { Err(TooMany { what, count, max }) } else { Ok(()) }
}

/// A host as its agent tells of it.
pub fn view(view: HostView) -> Result<HostView, TooMany> {
    let HostView { address, state_dir, labels, facts } = view;
    at_most("labels", labels.len(), LABELS_MAX)?;
    let label = |(key, value)| (cut_to(key, NAME_BYTES_MAX), cut_to(value, VALUE_BYTES_MAX));
    Ok(HostView {
        address: cut_to(address, VALUE_BYTES_MAX),
        state_dir: cut_to(state_dir, PATH_BYTES_MAX),
        labels: labels.into_iter().map(label).collect(),
        facts: facts.map(host_facts).transpose()?,
    })
}

fn host_facts(facts: Facts) -> Result<Facts, TooMany> {
    let Facts { os, arch, cpus, memory_bytes, disk_bytes, runtimes } = facts;
    at_most("runtimes", runtimes.len(), RUNTIMES_MAX)?;
    let runtimes: BTreeMap<_, _> = runtimes
        .into_iter()
        .map(|(name, mut versions)| {
            versions.truncate(VERSIONS_MAX);
            (cut_to(name, NAME_BYTES_MAX), versions)
        })
        .collect();
    let (os, arch) = (cut_to(os, NAME_BYTES_MAX), cut_to(arch, NAME_BYTES_MAX));
    Ok(Facts { os, arch, cpus, memory_bytes, disk_bytes, runtimes })
}

/// The health of an instance.
pub fn health(report: HealthReport) -> Result<HealthReport, TooMany> {
    let HealthReport { status, checks, mcp, restarts } = report;
    at_most("checks", checks.len(), CHECKS_MAX)?;
    let checks = checks.into_iter().map(|CheckReport { name, severity, outcome }| CheckReport {
        name: cut_to(name, NAME_BYTES_MAX),
        severity,
        outcome: check_outcome(outcome),
    });
    Ok(HealthReport { status, checks: checks.collect(), mcp: mcp.map(mcp_info), restarts })
}

fn check_outcome(outcome: CheckOutcome) -> CheckOutcome {
    let cut = |message| cut_to(message, CHECK_BYTES_MAX);
    match outcome {
        CheckOutcome::Passing { message } => CheckOutcome::Passing { message: cut(message) },
        CheckOutcome::NeedsAuthentication { message } => CheckOutcome::NeedsAuthentication { message: cut(message) },
        CheckOutcome::Failing { message } => CheckOutcome::Failing { message: cut(message) },
        CheckOutcome::Warning { message } => CheckOutcome::Warning { message: cut(message) },
    }
}

fn mcp_info(info: McpInfo) -> McpInfo {
    let McpInfo { name, version, protocol, mut tools } = info;
    let left_out = tools.len().saturating_sub(TOOLS_MAX);
    tools.truncate(TOOLS_MAX);
    let mut tools: Vec<String> = tools.into_iter().map(|tool| cut_to(tool, NAME_BYTES_MAX)).collect();
    if left_out > 0 {
        tools.push(format!("… and {left_out} more"));
    }
    let cut = |text| cut_to(text, NAME_BYTES_MAX);
    McpInfo { name: cut(name), version: cut(version), protocol: cut(protocol), tools }
}

/// The last lines of a server's output.
pub fn output(lines: Vec<String>) -> Vec<String> {
    let surplus = lines.len().saturating_sub(OUTPUT_LINES_MAX);
    lines.into_iter().skip(surplus).map(|line| cut_to(line, TEXT_BYTES_MAX)).collect()
}

/// A failure on a host. It happened there, whatever it says.
pub fn failure(failure: Failure, on: &InstanceId) -> Failure {
    Failure {
        kind: failure.kind,
        transient: failure.transient,
        host: Some(on.host.clone()),
        server: Some(on.server.clone()),
        step: cut_to(failure.step, NAME_BYTES_MAX),
        message: cut_to(failure.message, TEXT_BYTES_MAX),
        hint: failure.hint.map(|hint| cut_to(hint, TEXT_BYTES_MAX)),
        output: output(failure.output),
    }
}

/// What became of a step.
pub fn step(report: StepReport, on: &InstanceId) -> StepReport {
    match report {
        StepReport::Failed(why) => StepReport::Failed(failure(why, on)),
        StepReport::Stuck(why) => StepReport::Stuck(failure(why, on)),
        StepReport::TestFailed(why) => StepReport::TestFailed(failure(why, on)),
        StepReport::Staged
        | StepReport::Switched
        | StepReport::Verified
        | StepReport::Confirmed
        | StepReport::Restored { .. }
        | StepReport::Tested
        | StepReport::Cleaned => report,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureKind;
    use crate::health::Severity;

    fn instance() -> InstanceId {
        InstanceId::new("web".parse().expect("name"), "h1".parse().expect("name"))
    }

    fn large() -> String {
        "ü".repeat(100_000)
    }

    fn a_view(labels: usize) -> HostView {
        HostView {
            address: large(),
            state_dir: large(),
            labels: (0..labels).map(|n| (format!("{n}{}", large()), large())).collect(),
            facts: Some(Facts { os: large(), runtimes: [(large(), Vec::new())].into(), ..Facts::default() }),
        }
    }

    fn a_report(checks: usize) -> HealthReport {
        let check = CheckReport {
            name: large(),
            severity: Severity::Critical,
            outcome: CheckOutcome::Failing { message: large() },
        };
        let tools = vec![large(); 10_000];
        let mcp = Some(McpInfo { name: large(), version: large(), protocol: large(), tools });
        HealthReport { checks: vec![check; checks], mcp, ..HealthReport::default() }
    }

    #[test]
    fn the_texts_of_a_view_are_cut_and_marked_and_too_many_labels_are_refused() {
        let cut = view(a_view(LABELS_MAX)).expect("it is taken");
        assert!(serde_json::to_string(&cut).expect("JSON").len() < 32 * 1024);
        assert!(cut.labels.iter().all(|(key, value)| key.ends_with('…') && value.ends_with('…')));
        assert!(view(a_view(LABELS_MAX + 1)).is_err());
        assert_eq!(view(cut.clone()).as_ref(), Ok(&cut), "what was cut stays as it is");
    }

    #[test]
    fn a_report_of_health_is_cut_and_says_what_was_left_out() {
        let cut = health(a_report(CHECKS_MAX)).expect("it is taken");
        assert!(serde_json::to_string(&cut).expect("JSON").len() < 256 * 1024);
        assert_eq!(cut.mcp.expect("there").tools.last().map(String::as_str), Some("… and 9744 more"));
        assert!(health(a_report(CHECKS_MAX + 1)).is_err());
    }

    #[test]
    fn a_failure_is_of_the_host_that_tells_it_and_is_cut() {
        let elsewhere = Failure {
            host: Some("h2".parse().expect("name")),
            output: vec![large(); 1_000],
            message: large(),
            step: large(),
            ..Failure::new(FailureKind::DeploymentError, "", "")
        };
        for report in [StepReport::Failed(elsewhere.clone()), StepReport::Stuck(elsewhere)] {
            let (StepReport::Failed(cut) | StepReport::Stuck(cut)) = step(report, &instance()) else { panic!() };
            assert_eq!(cut.host, Some(instance().host));
            assert!(serde_json::to_string(&cut).expect("JSON").len() < 128 * 1024);
            assert_eq!(cut.output.len(), OUTPUT_LINES_MAX);
        }
    }
}
