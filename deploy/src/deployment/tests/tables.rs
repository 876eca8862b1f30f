//! Every event and every report in every state: taken, or refused without a change.

use strum::IntoEnumIterator;

use super::*;

/// One instance on its way through a whole deployment and then through a rollback: every state on the way.
fn whole_life() -> (InstanceId, Vec<Deployment>) {
    let mut states: Vec<Deployment> = Vec::new();
    let mut driver = Driver::start(&Shape::of(&[&[1]]));
    let id = instance("s0-0@h0");
    for report in [StepReport::Staged, StepReport::Switched, StepReport::Verified, StepReport::Confirmed] {
        states.push(driver.live.clone());
        driver.report(&id, report).expect("legal");
    }
    states.push(driver.live.clone());
    driver.wait();
    for report in [StepReport::Tested, StepReport::Cleaned] {
        states.push(driver.live.clone());
        driver.report(&id, report).expect("legal");
    }
    states.push(driver.live.clone());
    driver.apply(rollback()).expect("legal");
    states.push(driver.live.clone());
    driver.report(&id, StepReport::Stuck(failure())).expect("legal");
    states.push(driver.live.clone());
    let report = driver.restored(&id, RestoreCause::Commanded);
    driver.report(&id, report).expect("legal");
    states.push(driver.live.clone());
    states.extend(other_lives(&id));
    (id, states)
}

/// States that only some deployments come to: tried again, held, waiting for approval or for a decision, stopping.
fn other_lives(id: &InstanceId) -> Vec<Deployment> {
    let mut states = Vec::new();
    let mut shape = Shape::of(&[&[1]]);
    shape.rollout.on_failure = OnFailure::Pause;
    let point = PausePoint { at: PauseAt::BeforeGroup(0), approvals: 1, timeout: None, on_timeout: OnTimeout::Reject };
    shape.rollout.pauses = vec![point];
    let mut driver = Driver::start(&shape);
    let transient = || Failure::new(FailureKind::NetworkError, "test", "no route");
    driver.report(id, StepReport::Failed(transient())).expect("legal");
    states.push(driver.live.clone());
    driver.wait();
    driver.report(id, StepReport::Staged).expect("legal");
    states.push(driver.live.clone());
    driver.apply(sample(DeploymentEventDiscriminants::Held, id).expect("an event")).expect("legal");
    states.push(driver.live.clone());
    driver.apply(DeploymentEvent::Released { kind: HoldKind::Pause, by: "op".to_owned() }).expect("legal");
    driver.apply(DeploymentEvent::Approved { by: "op".to_owned() }).expect("legal");
    driver.report(id, StepReport::Failed(transient())).expect("legal");
    states.push(driver.live.clone());
    let report = driver.restored(id, RestoreCause::Commanded);
    driver.report(id, report).expect("legal");
    driver.wait();
    driver.report(id, StepReport::Staged).expect("legal");
    driver.report(id, StepReport::Failed(failure())).expect("legal");
    states.push(driver.live.clone());
    let mut cancelled = driver.live.clone();
    cancelled.apply(DeploymentEvent::Cancelled { by: "op".to_owned() }, at(driver.now)).expect("legal");
    states.push(cancelled);
    states
}

/// An event of each kind about an instance.
fn sample(kind: DeploymentEventDiscriminants, id: &InstanceId) -> Option<DeploymentEvent> {
    use DeploymentEventDiscriminants as Kind;
    let (by, host, instances) = ("op".to_owned(), id.host.clone(), BTreeSet::new());
    Some(match kind {
        Kind::Started => DeploymentEvent::Started,
        Kind::StepReported => return None,
        Kind::ExternalReported => {
            DeploymentEvent::ExternalReported { name: id.server.clone(), attempt: 1, failure: Some(failure()) }
        }
        Kind::OrderRefused => DeploymentEvent::OrderRefused {
            instance: id.clone(),
            attempt: 1,
            order: OrderName::Restore,
            failure: failure(),
        },
        Kind::HealthChanged => DeploymentEvent::HealthChanged {
            instance: id.clone(),
            was: HealthStatus::Healthy,
            status: HealthStatus::Unhealthy,
            reason: "it failed".to_owned(),
            output: Vec::new(),
        },
        Kind::HostConnected => DeploymentEvent::HostConnected { host },
        Kind::HostsDisconnected => DeploymentEvent::HostsDisconnected { hosts: [host].into() },
        Kind::Held => {
            DeploymentEvent::Held(Hold { kind: HoldKind::Pause, by, reason: String::new(), since: at(20_000) })
        }
        Kind::Released => DeploymentEvent::Released { kind: HoldKind::Pause, by },
        Kind::Approved => DeploymentEvent::Approved { by },
        Kind::Rejected => DeploymentEvent::Rejected { by, reason: "no".to_owned() },
        Kind::Cancelled => DeploymentEvent::Cancelled { by },
        Kind::RetryRequested => DeploymentEvent::RetryRequested { instances, by },
        Kind::SkipRequested => DeploymentEvent::SkipRequested { instances, by },
        Kind::ResolveRequested => DeploymentEvent::ResolveRequested { instances, by },
        Kind::RollbackRequested => rollback(),
        Kind::DeadlinePassed => DeploymentEvent::DeadlinePassed,
    })
}

#[test]
fn every_event_in_every_phase_is_either_taken_or_refused_without_a_change() {
    let (id, states) = whole_life();
    let fresh = Shape::of(&[&[1]]).deployment();
    let mut table = String::new();
    for before in std::iter::once(&fresh).chain(&states) {
        for kind in DeploymentEventDiscriminants::iter() {
            // Reports have a table of their own.
            let Some(event) = sample(kind, &id) else { continue };
            let mut after = before.clone();
            let (phase, step): (&str, &str) =
                (PhaseName::from(before.phase()).into(), before.steps()[&id].state.name());
            match after.apply(event, at(20_000)) {
                Ok(_) => {
                    let (by, to): (&str, &str) = (kind.into(), PhaseName::from(after.phase()).into());
                    table.push_str(&format!("{phase} ({step}) + {by} = {to} ({})\n", after.steps()[&id].state.name()));
                }
                Err(_) => assert_eq!(&after, before, "{phase} was changed by the refused {kind:?}"),
            }
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_report_in_every_state_is_either_taken_or_refused_without_a_change() {
    let reports = |kind: StepReportDiscriminants| match kind {
        StepReportDiscriminants::Staged => StepReport::Staged,
        StepReportDiscriminants::Switched => StepReport::Switched,
        StepReportDiscriminants::Verified => StepReport::Verified,
        StepReportDiscriminants::Confirmed => StepReport::Confirmed,
        StepReportDiscriminants::Failed => StepReport::Failed(failure()),
        StepReportDiscriminants::Restored => StepReport::Restored { cause: RestoreCause::Commanded, running: None },
        StepReportDiscriminants::Stuck => StepReport::Stuck(failure()),
        StepReportDiscriminants::Tested => StepReport::Tested,
        StepReportDiscriminants::TestFailed => StepReport::TestFailed(failure()),
        StepReportDiscriminants::Cleaned => StepReport::Cleaned,
    };
    let (id, states) = whole_life();
    let mut table = String::new();
    for before in states {
        for kind in StepReportDiscriminants::iter() {
            let mut after = before.clone();
            let attempt = before.steps()[&id].attempt;
            let event = DeploymentEvent::StepReported { instance: id.clone(), attempt, report: reports(kind) };
            let (from, by): (&str, &str) = (before.steps()[&id].state.name(), kind.into());
            match after.apply(event, at(20_000)) {
                Ok(_) => {
                    let phase: &str = PhaseName::from(after.phase()).into();
                    table.push_str(&format!("{from} + {by} = {} in {phase}\n", after.steps()[&id].state.name()));
                }
                Err(_) => assert_eq!(after, before, "{from} was changed by the refused {by}"),
            }
        }
    }
    insta::assert_snapshot!(table);
}
