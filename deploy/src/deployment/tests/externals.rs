//! Externals, and servers that start after others.

use super::*;
use crate::plan::{External, ExternalEndpoint};

/// A deployment that needs an external besides.
fn with_external(on_failure: OnFailure) -> Driver {
    let mut shape = Shape::of(&[&[1]]);
    shape.rollout.on_failure = on_failure;
    let mut live = shape.deployment();
    let endpoint = ExternalEndpoint::Tcp { address: "sql.internal:5432".to_owned() };
    Arc::make_mut(&mut live.plan).externals =
        vec![External { name: "sql".parse().expect("name"), endpoint, timeout: Length::from_secs(5) }];
    let mut driver = Driver { fresh: live.clone(), live, journal: Vec::new(), settled: BTreeMap::new(), now: 0 };
    driver.apply(DeploymentEvent::Started).expect("start");
    driver
}

fn about_external(driver: &mut Driver, answers: bool) -> Result<Effects, IllegalEvent> {
    let asked: Vec<(External, u32)> = driver.live.questions().map(|(of, attempt)| (of.clone(), attempt)).collect();
    let (external, attempt) = asked.first().cloned().expect("a question");
    let failure = (!answers).then(|| no_answer(&external, "connection refused"));
    driver.apply(DeploymentEvent::ExternalReported { name: external.name, attempt, failure })
}

#[test]
fn nothing_is_got_ready_before_every_external_answers() {
    let mut driver = with_external(OnFailure::Rollback);
    assert_eq!(driver.outstanding(), []);
    assert_eq!(*driver.live.phase(), Phase::DependencyResolution);
    about_external(&mut driver, false).expect("it is asked again");
    assert_eq!(driver.live.questions().count(), 0, "after a pause");
    driver.wait();
    let asked = driver.live.questions().next().map(|(_, attempt)| attempt);
    assert_eq!(asked, Some(2));
    let name = "sql".parse().expect("name");
    let late = DeploymentEvent::ExternalReported { name, attempt: 1, failure: None };
    assert!(driver.apply(late).is_err(), "an answer of an earlier attempt");
    about_external(&mut driver, true).expect("it answers");
    assert_eq!(driver.outstanding().len(), 1, "now the release is staged");
    assert_eq!(driver.finish(), Outcome::Succeeded);
}

#[test]
fn an_external_that_never_answers_ends_the_deployment_before_anything_was_touched() {
    let mut driver = with_external(OnFailure::Rollback);
    for _ in 0..2 {
        about_external(&mut driver, false).expect("it is asked again");
        driver.wait();
    }
    about_external(&mut driver, false).expect("the last attempt");
    assert_eq!(driver.live.outcome(), Some(Outcome::RolledBack));
    assert!(driver.live.steps().values().all(|step| step.state == StepState::Untouched));
    assert_eq!(driver.live.failures().len(), 3);
    assert_eq!(driver.live.questions().count(), 0);
}

#[test]
fn people_have_an_external_asked_again_or_go_on_without_it() {
    let decide = |retry: bool| {
        let (instances, by) = (BTreeSet::new(), "op".to_owned());
        if retry {
            DeploymentEvent::RetryRequested { instances, by }
        } else {
            DeploymentEvent::SkipRequested { instances, by }
        }
    };
    for retry in [true, false] {
        let mut driver = with_external(OnFailure::Pause);
        for _ in 0..3 {
            about_external(&mut driver, false).expect("no answer");
            if !matches!(driver.live.phase(), Phase::AwaitingOperator { .. }) {
                driver.wait();
            }
        }
        assert!(matches!(driver.live.phase(), Phase::AwaitingOperator { .. }));
        assert!(driver.live.moves().iter().any(|what| what.contains("deploy retry")));
        driver.apply(decide(retry)).expect("a decision");
        if retry {
            assert_eq!(driver.live.questions().next().map(|(_, attempt)| attempt), Some(4));
            about_external(&mut driver, true).expect("it answers");
        }
        assert_eq!(driver.finish(), Outcome::Succeeded, "retry {retry}");
    }
}

#[test]
fn a_server_waits_in_its_group_for_those_that_it_starts_after() {
    let mut live = Shape::of(&[&[1, 2]]).deployment();
    Arc::make_mut(&mut live.plan).starts_after =
        [("s0-0".parse().expect("name"), ["s0-1".parse().expect("name")].into())].into();
    let mut driver = Driver { fresh: live.clone(), live, journal: Vec::new(), settled: BTreeMap::new(), now: 0 };
    driver.apply(DeploymentEvent::Started).expect("start");
    for (id, _) in driver.outstanding() {
        driver.report(&id, StepReport::Staged).expect("staged");
    }
    let switching = |driver: &Driver| -> Vec<String> {
        let switches = driver.outstanding().into_iter().filter(|(_, order)| matches!(order, Order::Switch { .. }));
        switches.map(|(id, _)| id.to_string()).collect()
    };
    // One at a time is out of service.
    assert_eq!(switching(&driver), ["s0-1@h0"]);
    driver.report(&instance("s0-1@h0"), StepReport::Switched).expect("started");
    assert_eq!(switching(&driver), Vec::<String>::new(), "the other instance is not started yet");
    for report in [StepReport::Verified, StepReport::Confirmed] {
        driver.report(&instance("s0-1@h0"), report).expect("legal");
    }
    assert_eq!(switching(&driver), ["s0-1@h1"]);
    driver.report(&instance("s0-1@h1"), StepReport::Switched).expect("started");
    assert_eq!(switching(&driver), ["s0-0@h0"], "it need not be healthy");
    assert_eq!(driver.finish(), Outcome::Succeeded);
}
