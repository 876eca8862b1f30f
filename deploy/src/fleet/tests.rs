mod hosts;
mod past;

use super::*;
use crate::deployment::Order;
use crate::instance::StepReport;
use crate::plan::{Group, PlannedStep, RollbackPolicy, Rollout, StepAction};
use crate::release::Release;
use crate::time::Length;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(ms)
}

fn host() -> HostName {
    "h1".parse().expect("name")
}

fn instance() -> InstanceId {
    "s@h1".parse().expect("instance")
}

fn release(version: u32) -> Release {
    let mut release = Release::plain("s".parse().expect("name"), vec![format!("v{version}")]);
    release.run.stop_timeout = Length::from_secs(1);
    release
}

/// A plan for one instance, from what the fleet runs to `version`.
fn plan(fleet: &Fleet, version: u32) -> Plan {
    let previous = fleet.instances().get(&instance()).map(|record| record.release_id.clone());
    let new = release(version);
    let step = PlannedStep {
        instance: instance(),
        action: if previous.is_some() { StepAction::Update } else { StepAction::Create },
        previous,
        release_id: Some(new.id()),
        release: Some(new.into()),
    };
    Plan {
        manifest: "m".parse().expect("name"),
        environment: "e".parse().expect("name"),
        parent: fleet.generation(),
        groups: vec![Group { servers: vec!["s".parse().expect("name")], steps: vec![step] }],
        skipped: Vec::new(),
        paces: BTreeMap::new(),
        rollout: Rollout::default(),
        rollback: RollbackPolicy::default(),
        starts_after: BTreeMap::new(),
        externals: Vec::new(),
        overrides: Vec::new(),
    }
}

/// A fleet with the journal that made it.
struct Story {
    fleet: Fleet,
    journal: Vec<(Timestamp, String)>,
    now: i64,
}

impl Story {
    fn begin() -> Self {
        let mut story = Self { fleet: Fleet::new("f".parse().expect("name")), journal: Vec::new(), now: 0 };
        story.tell(FleetEvent::CoordinatorStarted).expect("start");
        story
    }

    fn tell(&mut self, event: FleetEvent) -> Result<Effects, Refused> {
        self.now += 1;
        let before = self.fleet.clone();
        let result = self.fleet.apply(event.clone(), at(self.now));
        assert_eq!(self.fleet.disagreement(), None);
        match &result {
            Ok(_) => self.journal.push((at(self.now), serde_json::to_string(&event).expect("JSON"))),
            Err(_) => assert_eq!(self.fleet, before, "a refused event changed the fleet"),
        }
        result
    }

    fn connect(&mut self) {
        let view = HostView {
            address: "127.0.0.1".to_owned(),
            state_dir: "/state".to_owned(),
            labels: BTreeMap::new(),
            facts: None,
        };
        self.tell(FleetEvent::HostConnected { host: host(), view, claimed: true }).expect("connect");
    }

    fn enrol(&mut self) {
        self.introduce(Introduction::default());
    }

    fn introduce(&mut self, introduction: Introduction) {
        let certificate_sha256 = "aa".to_owned();
        self.tell(FleetEvent::HostEnrolled { host: host(), certificate_sha256, introduction }).expect("enrol");
    }

    fn start(&mut self, version: u32) -> Result<DeploymentId, Refused> {
        let plan = plan(&self.fleet, version);
        let id = DeploymentId::new(plan.parent.next(), &plan.id());
        let options = Options { rollback: true, started_by: "test".to_owned() };
        self.tell(FleetEvent::DeploymentStarted { plan: plan.into(), options, intents: BTreeMap::new() })?;
        Ok(id)
    }

    /// Answers every order well, until the deployment has ended.
    fn finish(&mut self, id: &DeploymentId) {
        while self.fleet.deployment(id).expect("it").outcome().is_none() {
            let order = self.fleet.outstanding(&host()).next().map(|(_, _, _, order)| order);
            let reports = match order {
                Some(Order::Stage { .. }) => vec![StepReport::Staged],
                Some(Order::Switch { .. }) => vec![StepReport::Switched, StepReport::Verified],
                Some(Order::Confirm) => vec![StepReport::Confirmed],
                Some(Order::Restore { .. } | Order::Resolve) => {
                    vec![StepReport::Restored {
                        cause: crate::instance::RestoreCause::Commanded,
                        running: self.fleet.deployment(id).expect("it").steps()[&instance()].before.clone(),
                    }]
                }
                Some(Order::Test) => vec![StepReport::Tested],
                Some(Order::Clean) => vec![StepReport::Cleaned],
                None => {
                    let (deployment, due) = self.fleet.deadline().expect("something is waited for");
                    self.now = due.unix_ms();
                    self.tell(FleetEvent::Deployment { deployment, event: DeploymentEvent::DeadlinePassed })
                        .expect("due");
                    continue;
                }
            };
            for report in reports {
                let event = DeploymentEvent::StepReported { instance: instance(), attempt: 1, report };
                self.tell(FleetEvent::Deployment { deployment: id.clone(), event }).expect("it fits");
            }
        }
    }
}

fn refusal(refused: Result<DeploymentId, Refused>) -> String {
    refused.expect_err("refused").to_string()
}

#[test]
fn a_deployment_starts_only_on_hosts_that_are_enrolled_and_connected() {
    let mut story = Story::begin();
    assert!(refusal(story.start(1)).contains("host h1 is not enrolled"));
    story.enrol();
    assert!(refusal(story.start(1)).contains("host h1 is not connected"));
    story.connect();
    story.start(1).expect("it starts");
}

#[test]
fn an_instance_is_worked_on_by_one_deployment_and_a_plan_counts_only_for_what_it_was_made_for() {
    let mut story = Story::begin();
    story.enrol();
    story.connect();
    let stale = plan(&story.fleet, 9);
    let first = story.start(1).expect("it starts");
    assert!(
        refusal(story.start(2))
            .starts_with(&format!("deployment_error (pre_validation): deployment {first}, started by test at 1970"))
    );
    story.finish(&first);
    assert_eq!(story.fleet.instances()[&instance()].release, release(1).into());
    assert_eq!(story.fleet.generation(), Generation(1));
    let stale = story.fleet.may_start(&stale).expect_err("stale").to_string();
    assert!(stale.contains("s@h1 has changed since the plan was made"), "{stale}");
    let empty = Plan { groups: Vec::new(), ..plan(&story.fleet, 1) };
    assert!(story.fleet.may_start(&empty).expect_err("empty").to_string().contains("changes nothing"));
}

#[test]
fn a_rollback_brings_back_the_release_before_and_raises_the_generation() {
    let mut story = Story::begin();
    story.enrol();
    story.connect();
    let first = story.start(1).expect("it starts");
    story.finish(&first);
    let second = story.start(2).expect("it starts");
    story.finish(&second);
    let of = |deployment: &DeploymentId| FleetEvent::RollbackRequested {
        strategy: None,
        only: BTreeSet::new(),
        deployment: deployment.clone(),
        by: "op".to_owned(),
        intents: BTreeMap::new(),
    };
    let refused = story.tell(of(&first)).expect_err("the second is newer").to_string();
    assert!(refused.contains(&format!("deployment {second} has changed s@h1 since")), "{refused}");
    story.tell(of(&second)).expect("the newest");
    story.finish(&second);
    assert_eq!(story.fleet.instances()[&instance()].release, release(1).into());
    assert_eq!(story.fleet.generation(), Generation(3));
    story.tell(of(&first)).expect("the second is undone");
    story.finish(&first);
    assert_eq!(story.fleet.instances(), &BTreeMap::new());
}

#[test]
fn what_has_ended_hears_nothing_of_hosts_and_a_rollback_still_knows_who_is_away() {
    let mut story = Story::begin();
    story.enrol();
    story.connect();
    let first = story.start(1).expect("it starts");
    story.finish(&first);
    let before = story.fleet.deployment(&first).cloned();
    story.tell(FleetEvent::HostDisconnected { host: host() }).expect("it goes");
    assert_eq!(story.fleet.deployment(&first).cloned(), before);
    let undo = |only| FleetEvent::RollbackRequested {
        strategy: None,
        only,
        deployment: first.clone(),
        by: "op".to_owned(),
        intents: BTreeMap::new(),
    };
    let elsewhere = BTreeSet::from(["s@h2".parse().expect("instance")]);
    story.tell(undo(elsewhere)).expect_err("it has nothing on that host");
    assert_eq!(story.fleet.deployment(&first).cloned(), before, "a refused rollback leaves no trace");
    story.tell(undo(BTreeSet::new())).expect("it is undone");
    let undone = story.fleet.deployment(&first).expect("it");
    assert_eq!(undone.unreachable(), &BTreeSet::from([host()]));
    let waits: Vec<String> = undone.waiting().iter().map(ToString::to_string).collect();
    assert_eq!(waits[0], "s@h1 to be put back (its host is not connected)");
    let kept = serde_json::to_string(&story.fleet).expect("JSON");
    assert_eq!(serde_json::from_str::<Fleet>(&kept).expect("a fleet"), story.fleet);
    story.connect();
    story.finish(&first);
    assert_eq!(story.fleet.instances(), &BTreeMap::new());
}

#[test]
fn a_token_counts_until_it_expires_or_its_host_has_enrolled() {
    let mut story = Story::begin();
    let introduction = Introduction::default();
    let issue = |hash: &str| FleetEvent::TokenIssued {
        host: host(),
        token_sha256: hash.to_owned(),
        not_after: at(100),
        introduction: introduction.clone(),
    };
    story.tell(issue("one")).expect("issue");
    story.tell(issue("two")).expect("issue");
    assert_eq!(story.fleet.token("one", at(99)).map(|token| &token.host), Some(&host()));
    assert_eq!(story.fleet.token("one", at(100)), None);
    assert_eq!(story.fleet.token("three", at(50)), None);
    story.enrol();
    assert_eq!((story.fleet.token("one", at(50)), story.fleet.token("two", at(50))), (None, None));
}

#[test]
fn health_counts_for_the_release_that_it_is_about() {
    let mut story = Story::begin();
    story.enrol();
    story.connect();
    let first = story.start(1).expect("it starts");
    story.finish(&first);
    let about = |version| FleetEvent::HealthReported {
        instance: instance(),
        release: release(version).id(),
        report: HealthReport { status: HealthStatus::Healthy, ..HealthReport::default() },
        output: Vec::new(),
    };
    assert_eq!(story.tell(about(2)), Err(Refused::NoChange));
    story.tell(about(1)).expect("it counts");
    assert_eq!(story.tell(about(1)), Err(Refused::NoChange), "the same again is no news");
    assert_eq!(story.fleet.instances()[&instance()].health.status, HealthStatus::Healthy);
}

#[test]
fn the_fold_of_the_journal_is_the_live_fleet_and_a_restart_loses_no_order() {
    let mut story = Story::begin();
    story.enrol();
    story.connect();
    let first = story.start(1).expect("it starts");
    story.finish(&first);
    story.start(2).expect("it starts");
    let mut folded = Fleet::new("f".parse().expect("name"));
    for (at, line) in &story.journal {
        let event: FleetEvent = serde_json::from_str(line).expect("an event");
        folded.apply(event, *at).expect("it was taken before");
    }
    assert_eq!(folded, story.fleet);
    story.tell(FleetEvent::CoordinatorStarted).expect("restart");
    assert!(!story.fleet.hosts()[&host()].connected, "after a restart nobody is connected");
    story.connect();
    assert_eq!(story.fleet.outstanding(&host()).count(), 1, "the order that was under way is sent again");
}
