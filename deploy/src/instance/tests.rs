use proptest::prelude::*;
use strum::IntoEnumIterator;

use super::*;

fn now() -> Timestamp {
    Timestamp::from_unix_ms(1_000)
}

fn key() -> StepKey {
    StepKey { deployment: "d1-aaaaaaaa".parse().expect("id"), attempt: 1 }
}

fn old() -> ReleaseId {
    ReleaseId::of(b"old")
}

fn new() -> ReleaseId {
    ReleaseId::of(b"new")
}

fn failure() -> Failure {
    Failure::new(FailureKind::DeploymentError, "test", "it failed")
}

fn spec() -> SwitchSpec {
    SwitchSpec {
        target: Some(new()),
        dead_man: Some(Timestamp::from_unix_ms(9_000)),
        healthy_deadline: Length::from_secs(5),
        min_healthy_time: Length::from_secs(1),
    }
}

/// One event of each kind, all of the same step.
fn event(kind: InstanceEventDiscriminants) -> InstanceEvent {
    use InstanceEventDiscriminants as Kind;
    let key = key();
    match kind {
        Kind::StageRequested => InstanceEvent::StageRequested { key, release: new() },
        Kind::StageSucceeded => InstanceEvent::StageSucceeded { key },
        Kind::StageFailed => InstanceEvent::StageFailed { key, failure: failure() },
        Kind::SwitchRequested => InstanceEvent::SwitchRequested { key, spec: spec() },
        Kind::SnapshotSucceeded => InstanceEvent::SnapshotSucceeded { key },
        Kind::SnapshotFailed => InstanceEvent::SnapshotFailed { key, failure: failure() },
        Kind::SwitchSucceeded => InstanceEvent::SwitchSucceeded { key },
        Kind::SwitchFailed => InstanceEvent::SwitchFailed { key, failure: failure() },
        Kind::BecameHealthy => InstanceEvent::BecameHealthy { key },
        Kind::BecameUnhealthy => InstanceEvent::BecameUnhealthy { key, failure: failure() },
        Kind::ConfirmRequested => InstanceEvent::ConfirmRequested { key },
        Kind::RestoreRequested => InstanceEvent::RestoreRequested { key, drain: true },
        Kind::ResolveRequested => InstanceEvent::ResolveRequested { key },
        Kind::RestoreSucceeded => InstanceEvent::RestoreSucceeded { key },
        Kind::RestoreFailed => InstanceEvent::RestoreFailed { key, failure: failure() },
        Kind::DeadlinePassed => InstanceEvent::DeadlinePassed,
    }
}

/// An instance in each state, reached by legal events from one that runs the old release.
fn in_state(state: InstanceStateDiscriminants) -> Instance {
    use InstanceEventDiscriminants as Kind;
    use InstanceStateDiscriminants as State;
    let path: &[Kind] = match state {
        State::Idle => &[],
        State::Staging => &[Kind::StageRequested],
        State::Staged => &[Kind::StageRequested, Kind::StageSucceeded],
        State::Snapshotting => &[Kind::StageRequested, Kind::StageSucceeded, Kind::SwitchRequested],
        State::Switching => {
            &[Kind::StageRequested, Kind::StageSucceeded, Kind::SwitchRequested, Kind::SnapshotSucceeded]
        }
        State::Verifying => &[
            Kind::StageRequested,
            Kind::StageSucceeded,
            Kind::SwitchRequested,
            Kind::SnapshotSucceeded,
            Kind::SwitchSucceeded,
        ],
        State::Verified | State::Failed => &[
            Kind::StageRequested,
            Kind::StageSucceeded,
            Kind::SwitchRequested,
            Kind::SnapshotSucceeded,
            Kind::SwitchSucceeded,
            Kind::BecameHealthy,
        ],
        State::Restoring | State::Stuck => &[
            Kind::StageRequested,
            Kind::StageSucceeded,
            Kind::SwitchRequested,
            Kind::SnapshotSucceeded,
            Kind::RestoreRequested,
        ],
    };
    let mut instance = Instance { current: Some(old()), ..Instance::new("s".parse().expect("name")) };
    let last = match state {
        State::Failed => Some(Kind::BecameUnhealthy),
        State::Stuck => Some(Kind::RestoreFailed),
        _ => None,
    };
    for kind in path.iter().copied().chain(last) {
        instance.apply(event(kind), now()).expect("a legal path");
    }
    assert_eq!(InstanceStateDiscriminants::from(instance.state()), state);
    instance
}

#[test]
fn every_event_in_every_state_is_either_taken_or_refused_without_a_change() {
    let mut table = String::new();
    for state in InstanceStateDiscriminants::iter() {
        for kind in InstanceEventDiscriminants::iter() {
            let before = in_state(state);
            let mut after = before.clone();
            let late = Timestamp::from_unix_ms(10_000);
            let at = if kind == InstanceEventDiscriminants::DeadlinePassed { late } else { now() };
            match after.apply(event(kind), at) {
                Ok(_) => {
                    let from: &str = state.into();
                    let (by, to): (&str, &str) = (kind.into(), InstanceStateDiscriminants::from(after.state()).into());
                    table.push_str(&format!("{from} + {by} = {to}\n"));
                }
                Err(_) => assert_eq!(after, before, "{state:?} was changed by the refused {kind:?}"),
            }
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn a_switch_needs_the_release_that_was_staged_by_the_same_step() {
    let mut staged = in_state(InstanceStateDiscriminants::Staged);
    let other = InstanceEvent::SwitchRequested { key: key(), spec: SwitchSpec { target: Some(old()), ..spec() } };
    assert!(staged.apply(other, now()).is_err());
    let other_step = StepKey { attempt: 2, ..key() };
    assert!(staged.apply(InstanceEvent::SwitchRequested { key: other_step, spec: spec() }, now()).is_err());
    let late = Timestamp::from_unix_ms(9_000);
    assert!(
        staged.apply(InstanceEvent::SwitchRequested { key: key(), spec: spec() }, late).is_err(),
        "its dead-man deadline has passed"
    );
}

#[test]
fn an_unconfirmed_instance_puts_itself_back_and_a_confirmed_one_never_does() {
    let mut verified = in_state(InstanceStateDiscriminants::Verified);
    let late = Timestamp::from_unix_ms(9_000);
    let mut unconfirmed = verified.clone();
    let actions = unconfirmed.apply(InstanceEvent::DeadlinePassed, late).expect("due");
    assert!(matches!(actions[..], [InstanceAction::Restore { cause: RestoreCause::NotConfirmed, .. }]));
    verified.apply(InstanceEvent::ConfirmRequested { key: key() }, now()).expect("confirm");
    assert_eq!(verified.deadline(), None);
    assert!(verified.apply(InstanceEvent::DeadlinePassed, late).is_err());
    assert_eq!(verified.current(), Some(&new()));
}

#[test]
fn a_confirmed_switch_can_be_undone_until_another_deployment_has_changed_the_instance() {
    let mut instance = in_state(InstanceStateDiscriminants::Verified);
    instance.apply(InstanceEvent::ConfirmRequested { key: key() }, now()).expect("confirm");
    let mut undone = instance.clone();
    undone.apply(InstanceEvent::RestoreRequested { key: key(), drain: true }, now()).expect("restore");
    undone.apply(InstanceEvent::RestoreSucceeded { key: key() }, now()).expect("restored");
    assert_eq!(undone.current(), Some(&old()));

    let second = StepKey { deployment: "d2-bbbbbbbb".parse().expect("id"), attempt: 1 };
    let third = ReleaseId::of(b"third");
    let spec = SwitchSpec { target: Some(third.clone()), ..spec() };
    for event in [
        InstanceEvent::StageRequested { key: second.clone(), release: third },
        InstanceEvent::StageSucceeded { key: second.clone() },
        InstanceEvent::SwitchRequested { key: second.clone(), spec },
        InstanceEvent::SnapshotSucceeded { key: second.clone() },
        InstanceEvent::SwitchSucceeded { key: second.clone() },
        InstanceEvent::BecameHealthy { key: second.clone() },
        InstanceEvent::ConfirmRequested { key: second.clone() },
    ] {
        instance.apply(event, now()).expect("legal");
    }
    let refused =
        instance.apply(InstanceEvent::RestoreRequested { key: key(), drain: true }, now()).expect_err("too late");
    assert!(refused.to_string().contains("d2-bbbbbbbb has changed it since"), "{refused}");
}

#[test]
fn a_failed_deployment_that_was_put_back_keeps_the_one_before_undoable() {
    let mut instance = in_state(InstanceStateDiscriminants::Verified);
    instance.apply(InstanceEvent::ConfirmRequested { key: key() }, now()).expect("confirm");
    let second = StepKey { deployment: "d2-bbbbbbbb".parse().expect("id"), attempt: 1 };
    let events = [
        InstanceEvent::StageRequested { key: second.clone(), release: old() },
        InstanceEvent::StageSucceeded { key: second.clone() },
        InstanceEvent::SwitchRequested { key: second.clone(), spec: SwitchSpec { target: Some(old()), ..spec() } },
        InstanceEvent::SnapshotSucceeded { key: second.clone() },
        InstanceEvent::RestoreRequested { key: second.clone(), drain: true },
        InstanceEvent::RestoreSucceeded { key: second },
    ];
    for event in events {
        instance.apply(event, now()).expect("legal");
    }
    let actions =
        instance.apply(InstanceEvent::RestoreRequested { key: key(), drain: true }, now()).expect("undo the first");
    assert!(matches!(actions[..], [InstanceAction::Restore { .. }]), "{actions:?}");
}

#[test]
fn what_was_staged_and_not_used_is_discarded_but_never_the_release_that_runs() {
    let mut staged = in_state(InstanceStateDiscriminants::Staged);
    let actions = staged.apply(InstanceEvent::RestoreRequested { key: key(), drain: true }, now()).expect("restore");
    assert!(actions.contains(&InstanceAction::Discard { release: new() }));
    let mut again = in_state(InstanceStateDiscriminants::Idle);
    for event in [
        InstanceEvent::StageRequested { key: key(), release: old() },
        InstanceEvent::StageSucceeded { key: key() },
        InstanceEvent::RestoreRequested { key: key(), drain: true },
    ] {
        let actions = again.apply(event, now()).expect("legal");
        assert!(!actions.contains(&InstanceAction::Discard { release: old() }));
    }
}

fn any_event() -> impl Strategy<Value = InstanceEvent> {
    let kinds: Vec<InstanceEventDiscriminants> = InstanceEventDiscriminants::iter().collect();
    let attempts = prop::sample::select(vec![1_u32, 1, 1, 2]);
    (prop::sample::select(kinds), attempts).prop_map(|(kind, attempt)| {
        let mut json = serde_json::to_value(event(kind)).expect("JSON");
        if let Some(key) = json.get_mut("key") {
            key["attempt"] = attempt.into();
        }
        serde_json::from_value(json).expect("an event")
    })
}

proptest! {
    #[test]
    fn the_fold_of_the_journal_is_the_live_state(events in prop::collection::vec(any_event(), 0..60)) {
        let mut live = in_state(InstanceStateDiscriminants::Idle);
        let mut journal = Vec::new();
        for (n, event) in events.into_iter().enumerate() {
            let at = Timestamp::from_unix_ms(1_000 + 200 * n as i64);
            if live.apply(event.clone(), at).is_ok() {
                journal.push((at, serde_json::to_string(&event).expect("JSON")));
            }
        }
        let mut folded = in_state(InstanceStateDiscriminants::Idle);
        for (at, line) in journal {
            let event: InstanceEvent = serde_json::from_str(&line).expect("an event");
            prop_assert!(folded.apply(event, at).is_ok());
        }
        prop_assert_eq!(&folded, &live);
        // Whatever happened, the instance runs the old release or the new one, and nothing else.
        prop_assert!([Some(&old()), Some(&new())].contains(&live.current()));
    }
}
