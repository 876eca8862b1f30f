mod externals;
mod recorded;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::failure::FailureKind;
use crate::health::HealthStatus;
use crate::ids::{Generation, ReleaseId, ServerName};
use crate::instance::{RestoreCause, StepReport, StepReportDiscriminants};
use crate::plan::{
    Group, OnFailure, OnTimeout, Pace, PauseAt, PausePoint, PlannedStep, RollbackPolicy, RollbackStrategy, Rollout,
};
use crate::release::{Endpoint, Transport};
use crate::time::Length;

fn release(server: &ServerName, version: u32) -> Release {
    let mut release = Release::plain(server.clone(), vec![format!("v{version}")]);
    release.run.transport = Transport::Http;
    release.run.endpoint = Some(Endpoint { address: "127.0.0.1".to_owned(), port: 1, path: "/mcp".to_owned() });
    release.run.stop_timeout = Length::from_secs(1);
    release
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(ms)
}

fn rollback() -> DeploymentEvent {
    DeploymentEvent::RollbackRequested { by: "op".to_owned(), strategy: None, only: BTreeSet::new() }
}

fn failure() -> Failure {
    Failure::new(FailureKind::DeploymentError, "test", "it failed")
}

/// What a test plan looks like: for each group, how many instances each of its servers has.
#[derive(Clone, Debug)]
struct Shape {
    groups: Vec<Vec<usize>>,
    pace: Pace,
    rollout: Rollout,
    strategy: RollbackStrategy,
    rollback: bool,
    update: bool,
}

impl Shape {
    fn of(groups: &[&[usize]]) -> Self {
        Self {
            groups: groups.iter().map(|group| group.to_vec()).collect(),
            pace: Pace { bake: Length::from_secs(10), ..Pace::default() },
            rollout: Rollout { bake: Length::from_secs(10), ..Rollout::default() },
            strategy: RollbackStrategy::Graceful,
            rollback: true,
            update: true,
        }
    }

    fn deployment(&self) -> Deployment {
        let mut hosts = BTreeSet::new();
        let mut groups = Vec::new();
        for (g, servers) in self.groups.iter().enumerate() {
            let mut group = Group { servers: Vec::new(), steps: Vec::new() };
            for (s, count) in servers.iter().enumerate() {
                let server: ServerName = format!("s{g}-{s}").parse().expect("name");
                for n in 0..*count {
                    let host: HostName = format!("h{n}").parse().expect("name");
                    hosts.insert(host.clone());
                    let instance = InstanceId::new(server.clone(), host);
                    let new = release(&server, 2);
                    let previous = self.update.then(|| release(&server, 1));
                    let action = if self.update { StepAction::Update } else { StepAction::Create };
                    group.steps.push(PlannedStep {
                        instance,
                        action,
                        previous: previous.as_ref().map(Release::id),
                        release_id: Some(new.id()),
                        release: Some(new.into()),
                    });
                }
                group.servers.push(server);
            }
            groups.push(group);
        }
        let plan = Plan {
            manifest: "test".parse().expect("name"),
            environment: "test".parse().expect("name"),
            parent: Generation(0),
            paces: groups.iter().flat_map(|group| group.servers.iter().map(|s| (s.clone(), self.pace))).collect(),
            groups,
            skipped: Vec::new(),
            rollout: self.rollout.clone(),
            rollback: RollbackPolicy { strategy: self.strategy, ..RollbackPolicy::default() },
            starts_after: BTreeMap::new(),
            externals: Vec::new(),
            overrides: Vec::new(),
        };
        let options = Options { rollback: self.rollback, started_by: "test".to_owned() };
        Deployment::new(plan.into(), options, &hosts, at(0))
    }
}

/// A deployment with its journal, driven by a test.
struct Driver {
    live: Deployment,
    fresh: Deployment,
    journal: Vec<(Timestamp, String)>,
    settled: BTreeMap<InstanceId, Option<ReleaseId>>,
    now: i64,
}

impl Driver {
    fn start(shape: &Shape) -> Self {
        let live = shape.deployment();
        let mut driver = Self { fresh: live.clone(), live, journal: Vec::new(), settled: BTreeMap::new(), now: 0 };
        driver.apply(DeploymentEvent::Started).expect("start");
        driver
    }

    fn apply(&mut self, event: DeploymentEvent) -> Result<Effects, IllegalEvent> {
        let before = self.live.clone();
        let result = self.live.apply(event.clone(), at(self.now));
        match &result {
            Ok(effects) => {
                self.check_orders(&before, effects);
                self.journal.push((at(self.now), serde_json::to_string(&event).expect("JSON")));
                for action in &effects.actions {
                    if let Action::Settled { instance, release, .. } = action {
                        self.settled.insert(instance.clone(), release.clone());
                    }
                }
            }
            Err(_) => assert_eq!(self.live, before, "a refused event changed the state"),
        }
        self.check_invariants();
        result
    }

    fn report(&mut self, instance: &InstanceId, report: StepReport) -> Result<Effects, IllegalEvent> {
        let attempt = self.live.steps()[instance].attempt;
        self.apply(DeploymentEvent::StepReported { instance: instance.clone(), attempt, report })
    }

    /// What a host tells that has put everything back as it was.
    fn restored(&self, instance: &InstanceId, cause: RestoreCause) -> StepReport {
        StepReport::Restored { cause, running: self.live.steps()[instance].before.clone() }
    }

    /// Answers an outstanding order well.
    fn answer(&mut self, instance: &InstanceId, order: &Order) {
        let reports = match order {
            Order::Stage { .. } => vec![StepReport::Staged],
            Order::Switch { .. } => vec![StepReport::Switched, StepReport::Verified],
            Order::Confirm => vec![StepReport::Confirmed],
            Order::Restore { .. } => vec![self.restored(instance, RestoreCause::Commanded)],
            Order::Resolve => vec![self.restored(instance, RestoreCause::ByHand)],
            Order::Test => vec![StepReport::Tested],
            Order::Clean => vec![StepReport::Cleaned],
        };
        for report in reports {
            self.report(instance, report).expect("a fitting report");
        }
    }

    fn outstanding(&self) -> Vec<(InstanceId, Order)> {
        self.live.outstanding().map(|(id, _, order)| (id.clone(), order)).collect()
    }

    /// Lets time pass until the next deadline.
    fn wait(&mut self) {
        let deadline = self.live.deadline().expect("something is waited for");
        self.now = self.now.max(deadline.unix_ms());
        self.apply(DeploymentEvent::DeadlinePassed).expect("due");
    }

    /// Answers everything well until the end.
    fn finish(&mut self) -> Outcome {
        for _ in 0..10_000 {
            if let Some(outcome) = self.live.outcome() {
                return outcome;
            }
            self.now += 1;
            match self.outstanding().first().cloned() {
                Some((instance, order)) => self.answer(&instance, &order),
                None if self.live.deadline().is_some() => self.wait(),
                None if matches!(self.live.phase(), Phase::AwaitingOperator { .. }) => {
                    self.apply(rollback()).expect("a person decides");
                }
                None => {
                    let by = format!("approver-{}", self.now);
                    self.apply(DeploymentEvent::Approved { by }).expect("a person approves");
                }
            }
        }
        panic!("it does not end: {:?}", self.live.waiting());
    }

    /// What must hold after every event.
    fn check_invariants(&self) {
        assert_eq!(self.live.disagreement(), None);
        let steps = self.live.steps();
        let mut per_server: BTreeMap<&ServerName, usize> = BTreeMap::new();
        for (id, step) in steps.iter() {
            *per_server.entry(&id.server).or_default() += usize::from(step.state.is_switching());
        }
        for (server, in_motion) in per_server {
            let most = self.live.plan().pace(server).max_unavailable as usize;
            assert!(in_motion <= most, "{in_motion} instances of {server} are in motion");
        }
        if let Some(outcome) = self.live.outcome() {
            for (id, step) in steps.iter() {
                let back = matches!(step.state, StepState::Restored | StepState::Untouched | StepState::LeftOut { .. });
                let stuck = matches!(step.state, StepState::Stuck { .. } | StepState::Resolving { .. });
                let fits = match outcome {
                    Outcome::Succeeded => matches!(step.state, StepState::Done),
                    Outcome::PartlySucceeded | Outcome::Cancelled => step.state.is_confirmed() || back,
                    Outcome::RolledBack => back,
                    Outcome::PartlyRolledBack | Outcome::Stuck => {
                        // With rollback off, what has failed stays as it is, to be looked at.
                        step.state.is_confirmed() || back || stuck || !self.live.options().rollback
                    }
                    Outcome::Failed => !step.state.is_in_motion(),
                };
                assert!(fits, "{outcome:?}, but {id} is {}", step.state.name());
            }
        } else {
            let waits_for_people =
                self.live.waiting().iter().any(|w| w.kind == WaitKind::Person || w.kind == WaitKind::Approval);
            assert!(self.live.deadline().is_some() || waits_for_people, "{:?}", self.live);
        }
        assert!(self.live.outcome().is_some() || !self.live.moves().is_empty(), "nobody can do anything");
    }

    /// What must hold about the orders that an event led to.
    fn check_orders(&self, before: &Deployment, effects: &Effects) {
        for action in &effects.actions {
            let Action::Send { instance, order, .. } = action else { continue };
            assert!(
                before.holds_by_people().is_empty()
                    || self.live.holds_by_people().is_empty()
                    || matches!(order, Order::Confirm | Order::Restore { .. } | Order::Resolve),
                "{order:?} although held"
            );
            if matches!(order, Order::Switch { .. }) {
                let group = self.live.steps()[instance].group;
                for (id, step) in self.live.steps().iter().filter(|(_, step)| step.group < group) {
                    let passed = step.state.is_confirmed() || matches!(step.state, StepState::LeftOut { .. });
                    assert!(passed, "{instance} is switched, but {id} before it is {}", step.state.name());
                }
                assert!(!self.live.unreachable().contains(&instance.host), "{instance} cannot be reached");
                let unavailable = self.live.unavailable(&instance.server);
                let most = self.live.plan().pace(&instance.server).max_unavailable as usize;
                assert!(unavailable <= most, "{unavailable} instances of {} are out of service", instance.server);
            }
        }
    }

    /// The journal read back gives the state that lives, and a crash loses no order.
    fn check_fold(&self) {
        let mut folded = self.fresh.clone();
        for (at, line) in &self.journal {
            let event: DeploymentEvent = serde_json::from_str(line).expect("an event");
            folded.apply(event, *at).expect("it was legal before");
        }
        assert_eq!(folded, self.live);
        let stored: Deployment =
            serde_json::from_str(&serde_json::to_string(&self.live).expect("JSON")).expect("a deployment");
        assert_eq!(stored, self.live);
    }
}

fn instance(text: &str) -> InstanceId {
    text.parse().expect("instance")
}

#[test]
fn a_deployment_that_meets_no_failure_succeeds_group_by_group() {
    let mut driver = Driver::start(&Shape::of(&[&[1, 2], &[1]]));
    assert_eq!(driver.finish(), Outcome::Succeeded);
    driver.check_fold();
    let new = |id: &InstanceId| Some(release(&id.server, 2).id());
    assert!(driver.settled.iter().all(|(id, release)| *release == new(id)));
}

#[test]
fn nothing_is_switched_before_every_host_is_ready() {
    let mut driver = Driver::start(&Shape::of(&[&[2], &[1]]));
    for id in ["s0-0@h0", "s0-0@h1"] {
        let effects = driver.report(&instance(id), StepReport::Staged).expect("staged");
        assert_eq!(effects.actions, [], "something was sent although s1-0@h0 is not ready");
    }
    let effects = driver.report(&instance("s1-0@h0"), StepReport::Staged).expect("staged");
    assert!(matches!(&effects.actions[..], [Action::Send { order: Order::Switch { .. }, .. }]), "{effects:?}");
}

#[test]
fn a_canary_must_stay_healthy_for_the_bake_before_the_others_follow() {
    let mut shape = Shape::of(&[&[3]]);
    shape.pace.canary = 1;
    shape.pace.max_unavailable = 3;
    let mut driver = Driver::start(&shape);
    for (id, order) in driver.outstanding() {
        driver.answer(&id, &order);
    }
    for _ in 0..2 {
        let (id, order) = driver.outstanding()[0].clone();
        assert_eq!(id, instance("s0-0@h0"));
        driver.answer(&id, &order);
    }
    assert_eq!(driver.outstanding(), [], "the canary bakes");
    driver.wait();
    assert_eq!(driver.now, 10_000);
    assert_eq!(driver.outstanding().len(), 2);
    assert_eq!(driver.finish(), Outcome::Succeeded);
}

#[test]
fn a_failure_while_hosts_get_ready_touches_nothing() {
    let mut driver = Driver::start(&Shape::of(&[&[1], &[1]]));
    driver.report(&instance("s0-0@h0"), StepReport::Staged).expect("staged");
    driver.report(&instance("s1-0@h0"), StepReport::Failed(failure())).expect("failed");
    assert_eq!(driver.outstanding(), [(instance("s0-0@h0"), Order::Restore { drain: true })]);
    assert_eq!(driver.finish(), Outcome::RolledBack);
    assert_eq!(driver.settled, BTreeMap::new(), "something that runs was touched");
}

#[test]
fn graceful_rollback_goes_back_in_reverse_order_one_group_after_the_other() {
    let mut driver = Driver::start(&Shape::of(&[&[1], &[1], &[1]]));
    while !matches!(driver.live.steps()[&instance("s2-0@h0")].state, StepState::Switching { .. }) {
        let (id, order) = driver.outstanding()[0].clone();
        driver.answer(&id, &order);
    }
    driver.report(&instance("s2-0@h0"), StepReport::Failed(failure())).expect("failed");
    for expected in ["s2-0@h0", "s1-0@h0", "s0-0@h0"] {
        assert_eq!(driver.outstanding(), [(instance(expected), Order::Restore { drain: true })]);
        driver.answer(&instance(expected), &Order::Restore { drain: true });
    }
    assert_eq!(driver.live.outcome(), Some(Outcome::RolledBack));
    assert!(driver.settled.iter().all(|(id, settled)| *settled == Some(release(&id.server, 1).id())));
}

#[test]
fn a_server_that_becomes_unhealthy_during_the_bake_undoes_everything() {
    let mut driver = Driver::start(&Shape::of(&[&[1], &[1]]));
    while !matches!(driver.live.phase(), Phase::HealthValidation { .. }) {
        let (id, order) = driver.outstanding()[0].clone();
        driver.answer(&id, &order);
    }
    let unhealthy = DeploymentEvent::HealthChanged {
        instance: instance("s0-0@h0"),
        was: HealthStatus::Healthy,
        status: HealthStatus::Unhealthy,
        reason: "check `tools`: no answer".to_owned(),
        output: vec!["about to crash".to_owned()],
    };
    driver.apply(unhealthy).expect("it counts");
    assert_eq!(driver.finish(), Outcome::RolledBack);
    assert_eq!(driver.live.failures()[0].output, ["about to crash"]);
}

#[test]
fn a_host_that_never_comes_back_ends_stuck_and_a_late_word_from_it_mends_the_outcome() {
    let mut driver = Driver::start(&Shape::of(&[&[1], &[1]]));
    while driver.live.outstanding().all(|(_, _, order)| !matches!(order, Order::Switch { .. })) {
        let (id, order) = driver.outstanding()[0].clone();
        driver.answer(&id, &order);
    }
    driver
        .apply(DeploymentEvent::HostsDisconnected { hosts: ["h0".parse().expect("name")].into() })
        .expect("known host");
    while driver.live.outcome().is_none() {
        driver.wait();
    }
    assert_eq!(driver.live.outcome(), Some(Outcome::Stuck));
    let stuck: Vec<InstanceId> = driver
        .live
        .steps()
        .iter()
        .filter(|(_, step)| matches!(step.state, StepState::Stuck { .. }))
        .map(|(id, _)| id.clone())
        .collect();
    for id in stuck {
        let report = driver.restored(&id, RestoreCause::NotConfirmed);
        driver.report(&id, report).expect("late word");
    }
    assert_eq!(driver.live.outcome(), Some(Outcome::RolledBack));
    driver.check_fold();
}

#[test]
fn without_rollback_what_is_in_motion_settles_and_the_failed_one_stays_to_look_at() {
    let mut shape = Shape::of(&[&[1, 1]]);
    shape.rollback = false;
    let mut driver = Driver::start(&shape);
    for (id, order) in driver.outstanding() {
        driver.answer(&id, &order);
    }
    driver.report(&instance("s0-0@h0"), StepReport::Failed(failure())).expect("failed");
    assert!(matches!(driver.live.phase(), Phase::Stopping { .. }));
    assert_eq!(driver.finish(), Outcome::Failed);
    let state = |id: &str| driver.live.steps()[&instance(id)].state.name();
    assert_eq!((state("s0-0@h0"), state("s0-1@h0")), ("failed", "confirmed"));
}

#[test]
fn the_manual_strategy_moves_nothing_until_a_person_says_so() {
    let mut shape = Shape::of(&[&[1]]);
    shape.strategy = RollbackStrategy::Manual;
    let mut driver = Driver::start(&shape);
    for _ in 0..2 {
        let (id, order) = driver.outstanding()[0].clone();
        driver.answer(&id, &order);
    }
    driver.report(&instance("s0-0@h0"), StepReport::Failed(failure())).expect("failed");
    assert_eq!(driver.outstanding(), []);
    assert!(driver.live.deadline().is_none(), "waiting for a person has no end");
    driver.apply(rollback()).expect("asked");
    assert_eq!(driver.finish(), Outcome::RolledBack);
}

/// Answers everything well until this step is asked to switch.
fn until_switching(driver: &mut Driver, id: &InstanceId) {
    while !matches!(driver.live.steps()[id].state, StepState::Switching { .. }) {
        match driver.outstanding().first().cloned() {
            Some((instance, order)) => driver.answer(&instance, &order),
            None => driver.wait(),
        }
    }
}

fn transient() -> Failure {
    Failure::new(FailureKind::NetworkError, "test", "no route")
}

#[test]
fn after_the_canary_batches_follow_one_another_when_all_of_one_are_confirmed() {
    let mut shape = Shape::of(&[&[5]]);
    shape.pace = Pace { canary: 1, batch: 2, max_unavailable: 5, ..shape.pace };
    let mut driver = Driver::start(&shape);
    for (id, order) in driver.outstanding() {
        driver.answer(&id, &order);
    }
    let mut waves = Vec::new();
    while matches!(driver.live.phase(), Phase::ServerDeployment { .. }) {
        let wave = driver.outstanding();
        if wave.is_empty() {
            driver.wait();
            continue;
        }
        waves.push(wave.len());
        for (id, order) in wave {
            driver.answer(&id, &order);
            driver.answer(&id, &Order::Confirm);
        }
    }
    assert_eq!(waves, [1, 2, 2]);
}

#[test]
fn a_transient_failure_is_tried_again_after_a_pause_with_a_number_of_its_own_and_not_for_ever() {
    let mut driver = Driver::start(&Shape::of(&[&[1]]));
    let id = instance("s0-0@h0");
    for attempt in 1..=2 {
        assert_eq!(driver.live.steps()[&id].attempt, attempt);
        let effects = driver.report(&id, StepReport::Failed(transient())).expect("failed");
        assert!(effects.notes.iter().any(|note| note.what == "retry"));
        assert!(matches!(driver.live.steps()[&id].state, StepState::BackingOff { .. }));
        driver.wait();
    }
    driver.report(&id, StepReport::Failed(transient())).expect("failed");
    assert_eq!(driver.finish(), Outcome::RolledBack);
    assert_eq!(driver.live.failures().len(), 3);
}

#[test]
fn a_touched_instance_is_put_back_before_it_is_tried_again_and_late_reports_count_for_nothing() {
    let mut driver = Driver::start(&Shape::of(&[&[1]]));
    let id = instance("s0-0@h0");
    until_switching(&mut driver, &id);
    driver.report(&id, StepReport::Failed(transient())).expect("failed");
    assert_eq!(driver.outstanding(), [(id.clone(), Order::Restore { drain: true })]);
    driver.answer(&id, &Order::Restore { drain: true });
    assert_eq!(driver.settled[&id], Some(release(&id.server, 1).id()));
    driver.wait();
    let late = DeploymentEvent::StepReported { instance: id.clone(), attempt: 1, report: StepReport::Staged };
    assert!(driver.apply(late).is_err());
    assert_eq!(driver.finish(), Outcome::Succeeded);
}

#[test]
fn tolerated_failures_are_left_out_and_one_more_undoes_everything() {
    let mut shape = Shape::of(&[&[3]]);
    shape.rollout.failure_threshold = 1;
    let (first, second) = (instance("s0-0@h0"), instance("s0-0@h1"));
    let mut driver = Driver::start(&shape);
    until_switching(&mut driver, &first);
    driver.report(&first, StepReport::Failed(failure())).expect("failed");
    let mut more = Driver {
        live: driver.live.clone(),
        fresh: driver.fresh.clone(),
        journal: driver.journal.clone(),
        settled: driver.settled.clone(),
        now: driver.now,
    };
    assert_eq!(driver.finish(), Outcome::PartlySucceeded);
    assert_eq!(driver.live.steps()[&first].state.name(), "left_out");
    until_switching(&mut more, &second);
    more.report(&second, StepReport::Failed(failure())).expect("failed");
    assert_eq!(more.finish(), Outcome::RolledBack);
}

#[test]
fn where_it_goes_on_after_failures_what_depends_on_a_lost_server_is_not_deployed() {
    let mut shape = Shape::of(&[&[1, 1], &[1]]);
    shape.rollout.on_failure = OnFailure::Continue;
    let mut driver = Driver::start(&shape);
    let lost = instance("s0-0@h0");
    until_switching(&mut driver, &lost);
    driver.report(&lost, StepReport::Failed(failure())).expect("failed");
    assert_eq!(driver.finish(), Outcome::PartlySucceeded);
    let state = |id: &str| driver.live.steps()[&instance(id)].state.name();
    assert_eq!((state("s0-0@h0"), state("s0-1@h0"), state("s1-0@h0")), ("left_out", "confirmed", "untouched"));
}

#[test]
fn a_person_decides_what_becomes_of_what_has_failed() {
    let mut shape = Shape::of(&[&[2]]);
    shape.rollout.on_failure = OnFailure::Pause;
    let id = instance("s0-0@h0");
    let by = || "op".to_owned();
    let all = BTreeSet::new;
    let mut driver = Driver::start(&shape);
    until_switching(&mut driver, &id);
    driver.report(&id, StepReport::Failed(failure())).expect("failed");
    assert!(matches!(driver.live.phase(), Phase::AwaitingOperator { .. }));
    assert!(driver.live.moves().contains(&format!("fleetwright deploy retry {}", driver.live.id())));
    let other = [instance("s0-0@h1")].into();
    assert!(driver.apply(DeploymentEvent::RetryRequested { instances: other, by: by() }).is_err());
    let mut skipping = driver.live.clone();
    driver.apply(DeploymentEvent::RetryRequested { instances: all(), by: by() }).expect("legal");
    assert_eq!(driver.finish(), Outcome::Succeeded);
    skipping.apply(DeploymentEvent::SkipRequested { instances: all(), by: by() }, at(driver.now)).expect("legal");
    assert!(matches!(skipping.phase(), Phase::ServerDeployment { .. }));
}

#[test]
fn time_on_hold_counts_against_no_deadline() {
    let mut driver = Driver::start(&Shape::of(&[&[1]]));
    let due = |driver: &Driver| driver.live.deadline().map(Timestamp::unix_ms);
    let before = due(&driver).expect("a deadline");
    driver.now = 1_000;
    let hold = Hold { kind: HoldKind::Pause, by: "op".to_owned(), reason: String::new(), since: at(1_000) };
    driver.apply(DeploymentEvent::Held(hold)).expect("legal");
    assert_eq!(due(&driver), None);
    driver.now = 501_000;
    driver.apply(DeploymentEvent::Released { kind: HoldKind::Pause, by: "op".to_owned() }).expect("legal");
    assert_eq!(due(&driver), Some(before + 500_000));
}

#[test]
fn two_people_approve_where_two_are_needed_and_who_started_it_is_none_of_them() {
    let mut shape = Shape::of(&[&[1]]);
    let at_group = PauseAt::BeforeGroup(0);
    shape.rollout.pauses =
        vec![PausePoint { at: at_group, approvals: 2, timeout: None, on_timeout: OnTimeout::Reject }];
    let mut driver = Driver::start(&shape);
    driver.report(&instance("s0-0@h0"), StepReport::Staged).expect("staged");
    assert!(driver.live.deadline().is_none(), "people take the time that they take");
    let approve = |by: &str| DeploymentEvent::Approved { by: by.to_owned() };
    assert!(driver.apply(approve("test")).is_err(), "it was started by test");
    driver.apply(approve("ada")).expect("counts");
    assert!(driver.apply(approve("ada")).is_err());
    assert_eq!(driver.outstanding(), []);
    driver.apply(approve("grace")).expect("counts");
    assert_eq!(driver.finish(), Outcome::Succeeded);
}

#[test]
fn what_nobody_approves_in_time_goes_on_or_is_undone_as_the_plan_says() {
    for (on_timeout, outcome) in [(OnTimeout::Approve, Outcome::Succeeded), (OnTimeout::Reject, Outcome::RolledBack)] {
        let mut shape = Shape::of(&[&[2]]);
        shape.pace.canary = 1;
        let at_canary = PauseAt::AfterCanary("s0-0".parse().expect("name"));
        let timeout = Some(Length::from_secs(60));
        shape.rollout.pauses = vec![PausePoint { at: at_canary, approvals: 1, timeout, on_timeout }];
        let mut driver = Driver::start(&shape);
        assert_eq!(driver.finish(), outcome);
        assert!(driver.now >= 70_000, "the canary bakes for 10 s, and people have 60 s");
    }
}

#[test]
fn a_cancelled_deployment_keeps_what_is_confirmed_and_discards_the_rest() {
    let mut driver = Driver::start(&Shape::of(&[&[1], &[1]]));
    until_switching(&mut driver, &instance("s1-0@h0"));
    driver.apply(DeploymentEvent::Cancelled { by: "op".to_owned() }).expect("legal");
    // What is in motion may still fail: then it alone is put back.
    driver.report(&instance("s1-0@h0"), StepReport::Failed(transient())).expect("failed");
    assert_eq!(driver.finish(), Outcome::Cancelled);
    let state = |id: &str| driver.live.steps()[&instance(id)].state.name();
    assert_eq!((state("s0-0@h0"), state("s1-0@h0")), ("confirmed", "restored"));
}

#[test]
fn a_neighbour_that_gets_worse_while_everything_bakes_counts() {
    let mut driver = Driver::start(&Shape::of(&[&[1]]));
    while !matches!(driver.live.phase(), Phase::HealthValidation { .. }) {
        let (id, order) = driver.outstanding()[0].clone();
        driver.answer(&id, &order);
    }
    let worse = |instance: &str, was| DeploymentEvent::HealthChanged {
        instance: instance.parse().expect("instance"),
        was,
        status: HealthStatus::Unhealthy,
        reason: "no answer".to_owned(),
        output: Vec::new(),
    };
    assert!(driver.apply(worse("other@h9", HealthStatus::Healthy)).is_err(), "not a host of this deployment");
    assert!(driver.apply(worse("other@h0", HealthStatus::Unknown)).is_err(), "it was not well before");
    driver.apply(worse("other@h0", HealthStatus::Healthy)).expect("it counts");
    assert_eq!(driver.finish(), Outcome::RolledBack);
    assert!(driver.live.failures()[0].message.contains("other@h0 was healthy before"));
}

#[test]
fn a_part_of_an_ended_deployment_is_put_back_and_a_stuck_instance_is_resolved_by_hand() {
    let mut driver = Driver::start(&Shape::of(&[&[2]]));
    assert_eq!(driver.finish(), Outcome::Succeeded);
    let part = |only: &[&str]| DeploymentEvent::RollbackRequested {
        by: "op".to_owned(),
        strategy: Some(RollbackStrategy::Aggressive),
        only: only.iter().map(|id| instance(id)).collect(),
    };
    driver.apply(part(&["s0-0@h1"])).expect("legal");
    assert_eq!(driver.outstanding(), [(instance("s0-0@h1"), Order::Restore { drain: false })]);
    assert_eq!(driver.finish(), Outcome::PartlyRolledBack);
    assert!(driver.apply(part(&["s0-0@h1"])).is_err(), "it is back already");
    driver.apply(rollback()).expect("the rest");
    driver.report(&instance("s0-0@h0"), StepReport::Stuck(failure())).expect("stuck");
    assert_eq!(driver.live.outcome(), Some(Outcome::PartlyRolledBack));
    driver.apply(DeploymentEvent::ResolveRequested { instances: BTreeSet::new(), by: "op".to_owned() }).expect("legal");
    driver.answer(&instance("s0-0@h0"), &Order::Resolve);
    assert_eq!(driver.live.outcome(), Some(Outcome::RolledBack));
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let strategies = vec![
        RollbackStrategy::Immediate,
        RollbackStrategy::Batch,
        RollbackStrategy::Graceful,
        RollbackStrategy::Aggressive,
        RollbackStrategy::Manual,
    ];
    let groups = prop::collection::vec(prop::collection::vec(1_usize..5, 1..4), 1..4);
    let pace = (0_u32..3, 0_u32..3, 1_u32..3);
    let on_failure = prop::sample::select(vec![OnFailure::Rollback, OnFailure::Pause, OnFailure::Continue]);
    let point = (0_usize..6, 0_u32..3, any::<bool>(), any::<bool>());
    let pauses = prop::collection::vec(point, 0..2);
    let rollout = (1_u32..5, 0_u32..3, on_failure, pauses);
    let strategy = prop::sample::select(strategies);
    (groups, pace, rollout, strategy, prop::bool::weighted(0.8), any::<bool>()).prop_map(
        |(groups, (canary, batch, max_unavailable), rollout, strategy, rollback, update)| {
            let (max_parallel, failure_threshold, on_failure, pauses) = rollout;
            let bake = Length::from_secs(10);
            let pauses = pauses.into_iter().map(|(where_, approvals, timed, approve)| PausePoint {
                at: match where_ % 2 {
                    0 => PauseAt::BeforeGroup((where_ / 2).min(groups.len() - 1)),
                    _ => PauseAt::AfterCanary("s0-0".parse().expect("name")),
                },
                approvals,
                timeout: (timed || approvals == 0).then(|| Length::from_secs(60)),
                on_timeout: if approve { OnTimeout::Approve } else { OnTimeout::Reject },
            });
            let pauses = pauses.collect();
            Shape {
                pace: Pace { canary, batch, max_unavailable, bake, ..Pace::default() },
                rollout: Rollout { max_parallel, bake, failure_threshold, on_failure, pauses, ..Rollout::default() },
                groups,
                strategy,
                rollback,
                update,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever agents, networks, operators and clocks do: the bounds hold after every event, the journal read
    /// back is the state that lives, and the deployment ends.
    #[test]
    fn bounds_hold_and_every_deployment_ends(shape in any_shape(), choices in prop::collection::vec(any::<(u8, u8)>(), 0..120)) {
        let mut driver = Driver::start(&shape);
        for (what, which) in choices {
            driver.now += i64::from(which) * 50;
            let outstanding = driver.outstanding();
            let chosen = (!outstanding.is_empty()).then(|| outstanding[usize::from(which) % outstanding.len()].clone());
            let host: HostName = format!("h{}", which % 4).parse().expect("name");
            let by = format!("op{}", which % 3);
            let hold = |kind| Hold { kind, by: "op".to_owned(), reason: String::new(), since: at(driver.now) };
            let transient = || Failure::new(FailureKind::NetworkError, "test", "no route");
            match (what % 28, chosen) {
                (0..=13, Some((id, order))) => driver.answer(&id, &order),
                (14, Some((id, Order::Test))) => drop(driver.report(&id, StepReport::TestFailed(failure()))),
                (14, Some((id, Order::Restore { .. }))) => drop(driver.report(&id, StepReport::Stuck(failure()))),
                (14, Some((id, _))) => drop(driver.report(&id, StepReport::Failed(failure()))),
                (15, _) => drop(driver.apply(DeploymentEvent::HostsDisconnected { hosts: [host].into() })),
                (16, _) => drop(driver.apply(DeploymentEvent::HostConnected { host })),
                (17, Some((id, _))) => {
                    let report = driver.restored(&id, RestoreCause::NotConfirmed);
                    drop(driver.report(&id, report));
                }
                (18, _) if which < 20 => drop(driver.apply(rollback())),
                (19, _) if driver.live.deadline().is_some() => driver.wait(),
                (20, Some((id, _))) => drop(driver.report(&id, StepReport::Failed(transient()))),
                (21, _) if which < 60 => drop(driver.apply(DeploymentEvent::Held(hold(HoldKind::Pause)))),
                (21, _) if which < 90 => drop(driver.apply(DeploymentEvent::Held(hold(HoldKind::Halt)))),
                (21, _) => drop(driver.apply(DeploymentEvent::Released { kind: HoldKind::Pause, by })),
                (22, _) => drop(driver.apply(DeploymentEvent::Released { kind: HoldKind::Halt, by })),
                (23, _) => drop(driver.apply(DeploymentEvent::Approved { by })),
                (24, _) if which < 20 => drop(driver.apply(DeploymentEvent::Cancelled { by })),
                (24, _) if which < 40 => {
                    drop(driver.apply(DeploymentEvent::Rejected { by, reason: "no".to_owned() }));
                }
                (25, _) => drop(driver.apply(DeploymentEvent::RetryRequested { instances: BTreeSet::new(), by })),
                (26, _) => drop(driver.apply(DeploymentEvent::SkipRequested { instances: BTreeSet::new(), by })),
                (27, _) => drop(driver.apply(DeploymentEvent::ResolveRequested { instances: BTreeSet::new(), by })),
                _ => {}
            }
        }
        driver.check_fold();
        // Faults end: hosts come back, holds end, a person decides, everything answers.
        for n in 0..4 {
            drop(driver.apply(DeploymentEvent::HostConnected { host: format!("h{n}").parse().expect("name") }));
        }
        for kind in [HoldKind::Pause, HoldKind::Halt] {
            drop(driver.apply(DeploymentEvent::Released { kind, by: "op".to_owned() }));
        }
        driver.finish();
        driver.check_fold();
    }
}
