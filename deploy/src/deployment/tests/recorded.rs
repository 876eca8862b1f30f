//! What journals that were recorded count on: an event that was taken in is taken in by every later version.

use super::*;

#[test]
fn what_is_decided_about_several_at_once_is_decided_in_the_order_of_their_names_as_recorded_journals_have_it() {
    let plan = {
        let mut plan = Shape::of(&[&[1], &[1]]).deployment().plan().as_ref().clone();
        plan.groups.reverse();
        plan
    };
    let options = Options { rollback: true, started_by: "test".to_owned() };
    let live = Deployment::new(plan.into(), options, &BTreeSet::from(["h0".parse().expect("name")]), at(0));
    let mut driver = Driver { fresh: live.clone(), live, journal: Vec::new(), settled: BTreeMap::new(), now: 0 };
    driver.apply(DeploymentEvent::Started).expect("start");
    driver.wait();
    let state = |id: &str| driver.live.steps()[&instance(id)].state.name();
    assert_eq!((state("s0-0@h0"), state("s1-0@h0")), ("untouched", "restoring"), "the first by name has failed");
    let names: Vec<String> = driver.live.steps().iter().map(|(id, _)| id.to_string()).collect();
    assert_eq!(names, ["s0-0@h0", "s1-0@h0"]);
}

#[test]
fn whatever_is_confirmed_after_a_canary_bakes_while_others_follow() {
    let mut shape = Shape::of(&[&[4]]);
    shape.pace.canary = 1;
    let mut driver = Driver::start(&shape);
    for (id, order) in driver.outstanding() {
        driver.answer(&id, &order);
    }
    let second = instance("s0-0@h1");
    while !matches!(driver.live.steps()[&second].state, StepState::Confirmed { .. }) {
        match driver.outstanding().first().cloned() {
            Some((id, order)) => driver.answer(&id, &order),
            None => driver.wait(),
        }
    }
    // The third is under way and silent, the fourth has to wait.
    let due = driver.live.deadline();
    assert_eq!(due, Some(at(driver.now + 10_000)));
    let waits = driver.live.waiting();
    let baking = waits.iter().find(|waiting| waiting.kind == WaitKind::Bake).expect("it bakes");
    assert_eq!((baking.instance.as_ref(), baking.until), (Some(&second), due));
    driver.wait();
    driver.check_fold();
    assert_eq!(driver.finish(), Outcome::Succeeded);
}
