use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use strum::IntoEnumIterator;

use super::*;
use crate::ids::{Generation, ServerName};
use crate::instance::{RestoreCause, StepReportDiscriminants};
use crate::plan::{Group, PlannedStep, RollbackPolicy, RollbackStrategy, Rollout};
use crate::release::{Endpoint, Package, Release, RestartPolicy, Run, Transport};

fn release(server: &ServerName, version: u32) -> Release {
    Release {
        server: server.clone(),
        package: Package::None,
        requires: Vec::new(),
        run: Run {
            command: vec![format!("v{version}")],
            environment: BTreeMap::new(),
            transport: Transport::Http,
            endpoint: Some(Endpoint { address: "127.0.0.1".to_owned(), port: 1, path: "/mcp".to_owned() }),
            restart: RestartPolicy::Always,
            stop_timeout: Length::from_secs(1),
        },
        files: Vec::new(),
        health_checks: Vec::new(),
        tool_calls: Vec::new(),
        snapshot_data: false,
        secrets: BTreeMap::new(),
        rendered_at: None,
    }
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(ms)
}

fn failure() -> Failure {
    Failure::new(FailureKind::DeploymentError, "test", "it failed")
}

/// What a test plan looks like: for each group, how many instances each of its servers has.
#[derive(Clone, Debug)]
struct Shape {
    groups: Vec<Vec<usize>>,
    rollout: Rollout,
    strategy: RollbackStrategy,
    rollback: bool,
    update: bool,
}

impl Shape {
    fn of(groups: &[&[usize]]) -> Self {
        Self {
            groups: groups.iter().map(|group| group.to_vec()).collect(),
            rollout: Rollout { bake: Length::from_secs(10), ..Rollout::default() },
            strategy: RollbackStrategy::Graceful,
            rollback: true,
            update: true,
        }
    }

    fn deployment(&self) -> Deployment {
        let mut before = BTreeMap::new();
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
                        instance: instance.clone(),
                        action,
                        previous: previous.as_ref().map(Release::id),
                        release_id: Some(new.id()),
                        release: Some(new),
                    });
                    before.extend(previous.map(|previous| (instance, previous)));
                }
                group.servers.push(server);
            }
            groups.push(group);
        }
        let plan = Plan {
            manifest: "test".parse().expect("name"),
            environment: "test".parse().expect("name"),
            parent: Generation(0),
            groups,
            skipped: Vec::new(),
            rollout: self.rollout.clone(),
            rollback: RollbackPolicy { strategy: self.strategy, ..RollbackPolicy::default() },
        };
        let options = Options { rollback: self.rollback, started_by: "test".to_owned() };
        Deployment::new(plan, options, &before, &hosts, at(0))
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
                self.journal.push((at(self.now), serde_json::to_string(&event).expect("JSON")));
                for action in &effects.actions {
                    if let Action::Settled { instance, release, .. } = action {
                        self.settled.insert(instance.clone(), release.as_ref().map(|release| release.id()));
                    }
                }
            }
            Err(_) => assert_eq!(self.live, before, "a refused event changed the state"),
        }
        self.check_invariants();
        result
    }

    fn report(&mut self, instance: &InstanceId, report: StepReport) -> Result<Effects, IllegalEvent> {
        self.apply(DeploymentEvent::StepReported { instance: instance.clone(), attempt: 1, report })
    }

    /// Answers an outstanding order well.
    fn answer(&mut self, instance: &InstanceId, order: &Order) {
        let reports = match order {
            Order::Stage { .. } => vec![StepReport::Staged],
            Order::Switch { .. } => vec![StepReport::Switched, StepReport::Verified],
            Order::Confirm => vec![StepReport::Confirmed],
            Order::Restore => vec![StepReport::Restored(RestoreCause::Commanded)],
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
        let deadline = self.live.deadline().and_then(|waiting| waiting.until).expect("something is waited for");
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
                None => self.wait(),
            }
        }
        panic!("it does not end: {:?}", self.live.waiting());
    }

    /// What must hold after every event.
    fn check_invariants(&self) {
        let rollout = &self.live.plan().rollout;
        let steps = self.live.steps();
        let mut per_server: BTreeMap<&ServerName, usize> = BTreeMap::new();
        for (id, step) in steps {
            *per_server.entry(&id.server).or_default() += usize::from(step.state.is_in_motion());
        }
        for (server, in_motion) in per_server {
            assert!(in_motion <= rollout.max_unavailable as usize, "{in_motion} instances of {server} are in motion");
        }
        if let Phase::ServerDeployment { group } = self.live.phase() {
            for (id, step) in steps {
                let earlier_is_done = step.group >= *group || step.state.is_confirmed();
                assert!(earlier_is_done, "{id} of an earlier group is {}", step.state.name());
                let later_waits = step.group <= *group || matches!(step.state, StepState::Staged);
                assert!(later_waits, "{id} of a later group is {}", step.state.name());
            }
        }
        if let Some(outcome) = self.live.outcome() {
            for (id, step) in steps {
                let fits = match outcome {
                    Outcome::Succeeded => matches!(step.state, StepState::Done),
                    Outcome::RolledBack => matches!(step.state, StepState::Restored | StepState::Untouched),
                    Outcome::PartlyRolledBack | Outcome::Stuck => {
                        matches!(step.state, StepState::Restored | StepState::Untouched | StepState::Stuck { .. })
                    }
                    Outcome::Failed => !step.state.is_in_motion(),
                };
                assert!(fits, "{outcome:?}, but {id} is {}", step.state.name());
            }
        } else {
            assert!(self.live.deadline().is_some() || matches!(self.live.phase(), Phase::AwaitingOperator { .. }));
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
    shape.rollout.canary = 1;
    shape.rollout.max_unavailable = 3;
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
    assert_eq!(driver.outstanding(), [(instance("s0-0@h0"), Order::Restore)]);
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
        assert_eq!(driver.outstanding(), [(instance(expected), Order::Restore)]);
        driver.answer(&instance(expected), &Order::Restore);
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
    driver.apply(DeploymentEvent::HostDisconnected { host: "h0".parse().expect("name") }).expect("known host");
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
        driver.report(&id, StepReport::Restored(RestoreCause::NotConfirmed)).expect("late word");
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
    driver.apply(DeploymentEvent::RollbackRequested { by: "op".to_owned() }).expect("asked");
    assert_eq!(driver.finish(), Outcome::RolledBack);
}

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
    driver.apply(DeploymentEvent::RollbackRequested { by: "op".to_owned() }).expect("legal");
    states.push(driver.live.clone());
    driver.report(&id, StepReport::Stuck(failure())).expect("legal");
    states.push(driver.live.clone());
    driver.report(&id, StepReport::Restored(RestoreCause::Commanded)).expect("legal");
    states.push(driver.live.clone());
    (id, states)
}

#[test]
fn every_event_in_every_phase_is_either_taken_or_refused_without_a_change() {
    let (id, states) = whole_life();
    let fresh = Shape::of(&[&[1]]).deployment();
    let mut table = String::new();
    for before in std::iter::once(&fresh).chain(&states) {
        for kind in DeploymentEventDiscriminants::iter() {
            let host = id.host.clone();
            let event = match kind {
                DeploymentEventDiscriminants::Started => DeploymentEvent::Started,
                // Reports have a table of their own.
                DeploymentEventDiscriminants::StepReported => continue,
                DeploymentEventDiscriminants::HealthChanged => DeploymentEvent::HealthChanged {
                    instance: id.clone(),
                    status: HealthStatus::Unhealthy,
                    reason: "it failed".to_owned(),
                    output: Vec::new(),
                },
                DeploymentEventDiscriminants::HostConnected => DeploymentEvent::HostConnected { host },
                DeploymentEventDiscriminants::HostDisconnected => DeploymentEvent::HostDisconnected { host },
                DeploymentEventDiscriminants::RollbackRequested => {
                    DeploymentEvent::RollbackRequested { by: "op".to_owned() }
                }
                DeploymentEventDiscriminants::DeadlinePassed => DeploymentEvent::DeadlinePassed,
            };
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
        StepReportDiscriminants::Restored => StepReport::Restored(RestoreCause::Commanded),
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
            let event = DeploymentEvent::StepReported { instance: id.clone(), attempt: 1, report: reports(kind) };
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

fn any_shape() -> impl Strategy<Value = Shape> {
    let strategies = vec![
        RollbackStrategy::Immediate,
        RollbackStrategy::Batch,
        RollbackStrategy::Graceful,
        RollbackStrategy::Aggressive,
        RollbackStrategy::Manual,
    ];
    let groups = prop::collection::vec(prop::collection::vec(1_usize..5, 1..4), 1..4);
    (groups, 0_u32..3, 1_u32..3, 1_u32..5, prop::sample::select(strategies), prop::bool::weighted(0.8), any::<bool>())
        .prop_map(|(groups, canary, max_unavailable, max_parallel, strategy, rollback, update)| Shape {
            groups,
            rollout: Rollout {
                canary,
                max_unavailable,
                max_parallel,
                bake: Length::from_secs(10),
                ..Rollout::default()
            },
            strategy,
            rollback,
            update,
        })
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
            match (what % 16, chosen) {
                (0..=8, Some((id, order))) => driver.answer(&id, &order),
                (9, Some((id, Order::Test))) => drop(driver.report(&id, StepReport::TestFailed(failure()))),
                (9, Some((id, Order::Restore))) => drop(driver.report(&id, StepReport::Stuck(failure()))),
                (9, Some((id, _))) => drop(driver.report(&id, StepReport::Failed(failure()))),
                (10, _) => drop(driver.apply(DeploymentEvent::HostDisconnected { host })),
                (11, _) => drop(driver.apply(DeploymentEvent::HostConnected { host })),
                (12, Some((id, _))) => drop(driver.report(&id, StepReport::Restored(RestoreCause::NotConfirmed))),
                (13, _) if which < 20 => drop(driver.apply(DeploymentEvent::RollbackRequested { by: "op".to_owned() })),
                (14, _) if driver.live.deadline().is_some() => driver.wait(),
                _ => {}
            }
        }
        driver.check_fold();
        // Faults end: hosts come back, a person decides, everything answers.
        for n in 0..4 {
            drop(driver.apply(DeploymentEvent::HostConnected { host: format!("h{n}").parse().expect("name") }));
        }
        if matches!(driver.live.phase(), Phase::AwaitingOperator { .. }) {
            driver.apply(DeploymentEvent::RollbackRequested { by: "op".to_owned() }).expect("a person decides");
        }
        driver.finish();
        driver.check_fold();
    }
}
