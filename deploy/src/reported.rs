//! What agents say, before it becomes an event: texts are cut to their limits and marked, and what no honest agent says
//! is refused. What comes out of here is small enough to be kept for ever.

use std::collections::BTreeMap;

use crate::failure::Failure;
use crate::host::{Facts, HostView};
use crate::ids::InstanceId;
use crate::instance::StepReport;
use crate::limits::{NAME_BYTES_MAX, cut};

/// Most labels of a host.
pub const LABELS_MAX: usize = 64;
/// Most programs and engines of a host.
pub const RUNTIMES_MAX: usize = 64;
/// Most versions of one program; more are left out.
pub const VERSIONS_MAX: usize = 16;
/// Longest value of a label, and longest address, in bytes.
pub const VALUE_BYTES_MAX: usize = 256;
/// Longest path, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;

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
    let label = |(key, value)| (cut(key, NAME_BYTES_MAX), cut(value, VALUE_BYTES_MAX));
    Ok(HostView {
        address: cut(address, VALUE_BYTES_MAX),
        state_dir: cut(state_dir, PATH_BYTES_MAX),
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
            (cut(name, NAME_BYTES_MAX), versions)
        })
        .collect();
    let (os, arch) = (cut(os, NAME_BYTES_MAX), cut(arch, NAME_BYTES_MAX));
    Ok(Facts { os, arch, cpus, memory_bytes, disk_bytes, runtimes })
}

/// A failure on a host. It happened there, whatever it says.
pub fn failure(failure: Failure, on: &InstanceId) -> Failure {
    Failure { host: Some(on.host.clone()), server: Some(on.server.clone()), ..failure.bounded() }
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
    use crate::failure::{FailureKind, OUTPUT_LINES_MAX};

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

    #[test]
    fn the_texts_of_a_view_are_cut_and_marked_and_too_many_labels_are_refused() {
        let cut = view(a_view(LABELS_MAX)).expect("it is taken");
        assert!(serde_json::to_string(&cut).expect("JSON").len() < 32 * 1024);
        assert!(cut.labels.iter().all(|(key, value)| key.contains("… cut: ") && value.contains("… cut: ")));
        assert!(view(a_view(LABELS_MAX + 1)).is_err());
        assert_eq!(view(cut.clone()).as_ref(), Ok(&cut), "what was cut stays as it is");
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
