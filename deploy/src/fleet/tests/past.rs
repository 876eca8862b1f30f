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
        // Of one instance: those that may be undone, what runs and what they would go back to.
        story.now += 2 * DAY;
        brief.follow(&story, retention);
        let stay = brief.fleet.deployments().count();
        prop_assert!(stay <= 6, "{stay} deployments stay");
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
    assert_eq!(history(&story), ids[..12], "two may be undone, and what the second went back to is known");
    let archive = |ids: &[DeploymentId]| FleetEvent::DeploymentsArchived { deployments: ids.iter().cloned().collect() };
    let refused = story.tell(archive(&ids)).expect_err("one of them runs").to_string();
    assert!(refused.contains(&format!("deployment {} is not over", ids[14])), "{refused}");
    story.tell(archive(&ids[..12])).expect("history");
    assert_eq!(story.fleet.deployments().map(Deployment::id).collect::<Vec<_>>(), [&ids[12], &ids[13], &ids[14]]);
    let gone = story.tell(undo(&ids[3])).expect_err("it is gone").to_string();
    assert!(gone.contains(&format!("there is no deployment {}", ids[3])), "{gone}");
    for version in [14, 13] {
        story.tell(undo(&ids[version as usize])).expect("hosts can undo two");
        story.finish(&ids[version as usize]);
        assert_eq!(story.fleet.instances()[&instance()].release, release(version - 1).into());
        assert_eq!(story.fleet.instances()[&instance()].trouble, None);
    }
    let refused = story.tell(undo(&ids[12])).expect_err("what was before is history").to_string();
    assert!(refused.contains("no longer known what s@h1 ran before"), "{refused}");
}

#[test]
fn what_goes_to_and_fro_between_two_releases_keeps_no_more_than_others() {
    let mut story = begin();
    for n in 0..60 {
        let id = story.start(n % 2).expect("it starts");
        story.finish(&id);
        story.now += 2 * DAY;
        let history = story.fleet.history(Retention::default(), at(story.now));
        if !history.is_empty() {
            story
                .tell(FleetEvent::DeploymentsArchived { deployments: history.into_iter().collect() })
                .expect("history");
        }
    }
    let stay = story.fleet.deployments().count();
    assert!(stay <= 12, "{stay} deployments stay");
}

#[test]
fn what_runs_by_the_word_of_its_host_stays_known() {
    let mut story = begin();
    for version in 0..4 {
        let id = story.start(version).expect("it starts");
        story.finish(&id);
    }
    // The host puts back what it had, which is not what the plan says.
    let id = story.start(4).expect("it starts");
    let failed = StepReport::Failed(Failure::new(FailureKind::DeploymentError, "switch", "it ends"));
    let cause = crate::instance::RestoreCause::Commanded;
    let restored = StepReport::Restored { cause, running: Some(release(0).id()) };
    for report in [StepReport::Staged, StepReport::Switched, failed, restored] {
        let event = DeploymentEvent::StepReported { instance: instance(), attempt: 1, report };
        story.tell(FleetEvent::Deployment { deployment: id.clone(), event }).expect("it fits");
    }
    assert_eq!(story.fleet.instances()[&instance()].release_id, release(0).id());
    story.now += 200 * DAY;
    let history = story.fleet.history(Retention::default(), at(story.now));
    story.tell(FleetEvent::DeploymentsArchived { deployments: history.into_iter().collect() }).expect("history");
    let id = story.start(5).expect("it starts");
    story.finish(&id);
    story.tell(undo(&id)).expect("it is known what ran before");
    story.finish(&id);
    assert_eq!(story.fleet.instances()[&instance()].trouble, None);
    assert_eq!(story.fleet.instances()[&instance()].release, release(0).into());
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
