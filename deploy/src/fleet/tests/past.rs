//! Deployments that go to the archive.

use proptest::prelude::*;

use super::*;

const DAY: i64 = 24 * 3_600 * 1_000;

/// What can happen next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// A release is deployed.
    Deploy(u32),
    /// A release is deployed, and fails once it is switched to.
    DeployBroken(u32),
    /// One of the deployments that are still known is undone, counted from the newest.
    Undo(usize),
    /// Nothing happens for so many days.
    Wait(i64),
}

fn any_next() -> impl Strategy<Value = Next> {
    prop_oneof![
        4 => (0..4_u32).prop_map(Next::Deploy),
        2 => (0..4_u32).prop_map(Next::DeployBroken),
        4 => (0..4_usize).prop_map(Next::Undo),
        3 => (1..40_i64).prop_map(Next::Wait),
    ]
}

fn begin() -> Story {
    let mut story = Story::begin();
    story.enrol();
    story.connect();
    story
}

fn undo(deployment: &DeploymentId) -> FleetEvent {
    FleetEvent::RollbackRequested {
        strategy: None,
        only: BTreeSet::new(),
        deployment: deployment.clone(),
        by: "op".to_owned(),
        intents: BTreeMap::new(),
    }
}

/// A fleet that lives through what another one does, and lets its history go as soon as it may.
struct Brief {
    fleet: Fleet,
    told: usize,
}

impl Brief {
    fn follow(&mut self, story: &Story, retention: Retention) {
        for (at, line) in &story.journal[self.told..] {
            let event = serde_json::from_str(line).expect("an event");
            self.fleet.apply(event, *at).expect("what the other fleet takes");
        }
        self.told = story.journal.len();
        let (now, history) = (at(story.now), self.fleet.history(retention, at(story.now)));
        self.fleet
            .apply(FleetEvent::DeploymentsArchived { deployments: history.into_iter().collect() }, now)
            .expect("history");
        assert_eq!(self.fleet.history(retention, now), []);
        assert_eq!(self.fleet.disagreement(), None);
        assert_eq!(self.fleet.instances(), story.fleet.instances(), "no more and no less is known of what runs");
        let kept = serde_json::to_string(&self.fleet).expect("JSON");
        assert_eq!(serde_json::from_str::<Fleet>(&kept).expect("a fleet"), self.fleet);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is deployed and undone: what is not in the archive goes on as if there were none.
    #[test]
    fn a_fleet_without_its_history_is_the_same_fleet(nexts in prop::collection::vec(any_next(), 1..30)) {
        let retention = Retention { newer: 2, lifetime: Length::from_secs(30 * 24 * 3_600) };
        let mut story = begin();
        let mut brief = Brief { fleet: Fleet::new("f".parse().expect("name")), told: 0 };
        for next in nexts {
            match next {
                Next::Wait(days) => story.now += days * DAY,
                Next::Deploy(version) => {
                    if let Ok(id) = story.start(version) {
                        story.finish(&id);
                    }
                }
                Next::DeployBroken(version) => {
                    if let Ok(id) = story.start(version) {
                        let report = StepReport::Failed(Failure::new(FailureKind::DeploymentError, "switch", "it ends"));
                        for report in [StepReport::Staged, StepReport::Switched, report] {
                            let event = DeploymentEvent::StepReported { instance: instance(), attempt: 1, report };
                            story.tell(FleetEvent::Deployment { deployment: id.clone(), event }).expect("it fits");
                        }
                        story.finish(&id);
                    }
                }
                Next::Undo(back) => {
                    let known = brief.fleet.deployments().rev().nth(back).map(|of| of.id().clone());
                    let takes = |id: &DeploymentId| brief.fleet.clone().apply(undo(id), at(story.now + 1)).is_ok();
                    if let Some(id) = known.filter(takes) {
                        story.tell(undo(&id)).expect("what a fleet without its history takes, one with all of it takes");
                        story.finish(&id);
                    }
                }
            }
            brief.follow(&story, retention);
        }
        // Of one instance: the one that runs, those that may be undone before it, and what they went back to.
        story.now += 2 * DAY;
        brief.follow(&story, retention);
        prop_assert!(brief.fleet.deployments().count() <= 12, "{}", brief.fleet.deployments().count());
    }
}

#[test]
fn what_runs_what_is_recent_and_what_may_be_undone_stays() {
    let mut story = begin();
    let ids: Vec<DeploymentId> = (0..15)
        .map(|version| {
            let id = story.start(version).expect("it starts");
            story.finish(&id);
            id
        })
        .collect();
    let history = |story: &Story| story.fleet.history(Retention::default(), at(story.now));
    assert_eq!(history(&story), [], "hosts may still have to hear that they have ended");
    story.now += 2 * DAY;
    assert_eq!(history(&story), ids[..4], "ten may be undone, and what the tenth went back to is known");
    story.now += 100 * DAY;
    assert_eq!(history(&story), ids[..13], "what runs, and what was before it");
    let archive = |ids: &[DeploymentId]| FleetEvent::DeploymentsArchived { deployments: ids.iter().cloned().collect() };
    let refused = story.tell(archive(&ids)).expect_err("one of them runs").to_string();
    assert!(refused.contains(&format!("deployment {} is not over", ids[14])), "{refused}");
    story.tell(archive(&ids[..13])).expect("history");
    assert_eq!(story.fleet.deployments().map(Deployment::id).collect::<Vec<_>>(), [&ids[13], &ids[14]]);
    let gone = story.tell(undo(&ids[3])).expect_err("it is gone").to_string();
    assert!(gone.contains(&format!("there is no deployment {}", ids[3])), "{gone}");
    story.tell(undo(&ids[14])).expect("the newest");
    story.finish(&ids[14]);
    assert_eq!(story.fleet.instances()[&instance()].release, release(13).into());
    assert_eq!(story.fleet.instances()[&instance()].trouble, None);
}

#[test]
fn what_is_under_way_or_stuck_is_no_history() {
    let mut story = begin();
    let first = story.start(1).expect("it starts");
    story.now += 200 * DAY;
    assert_eq!(story.fleet.history(Retention::default(), at(story.now)), []);
    let archive = FleetEvent::DeploymentsArchived { deployments: [first.clone()].into() };
    story.tell(archive).expect_err("it is under way");
    story.finish(&first);
    let second = story.start(2).expect("it starts");
    let failed = || Failure::new(FailureKind::DeploymentError, "switch", "it ends");
    for report in [StepReport::Staged, StepReport::Switched, StepReport::Failed(failed()), StepReport::Stuck(failed())]
    {
        let event = DeploymentEvent::StepReported { instance: instance(), attempt: 1, report };
        story.tell(FleetEvent::Deployment { deployment: second.clone(), event }).expect("it fits");
    }
    assert!(story.fleet.deployment(&second).expect("it").outcome().is_some());
    story.now += 200 * DAY;
    assert_eq!(story.fleet.history(Retention::default(), at(story.now)), []);
}
