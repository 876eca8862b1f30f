//! What agents say of servers, before it becomes an event: texts are cut to their limits and marked. What comes out of here
//! is small enough to be kept for ever.

use crate::failure::Failure;
use crate::ids::InstanceId;
use crate::instance::StepReport;

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
