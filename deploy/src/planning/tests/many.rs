//! Plans so large that several threads make them, and that are put together from parts: the outcome is the same as if one
//! had made them whole.

use super::*;

/// A definition without a port, so that any number of it fits on a host.
const SMALL: &str = "apiVersion: fleetwright/v1
name: NAME
run: { command: [serve, \"{{ server.name }}\"] }
health_checks:
  - { name: alive, type: command, config: { command: [\"true\"] } }
";

/// This many servers, each after the one five before it, and each with this definition.
fn configuration(count: usize, definition: &str) -> Configuration {
    let entry = |n: usize| match n.checked_sub(5) {
        Some(before) => format!("  - {{ server: s{n}, depends_on: [s{before}], place: {{ count: {} }} }}\n", 1 + n % 3),
        None => format!("  - {{ server: s{n} }}\n"),
    };
    let names: Vec<String> = (0..count).map(|n| format!("s{n}")).collect();
    let servers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), definition)).collect();
    let entries: Vec<String> = (0..count).map(entry).collect();
    read(&manifest(&entries.concat()), ENVIRONMENT, &servers).expect("readable")
}

#[test]
fn the_id_is_the_hash_of_the_plans_json_however_the_steps_are_put_together() {
    let first = plan(&configuration(700, SMALL), &circumstances()).expect("a plan");
    assert_eq!(first.plan().steps().count(), 1_395);
    assert_eq!(*first.id(), PlanId::of(&serde_json::to_vec(first.plan()).expect("JSON")));
    // Fewer servers, of which some have changed: removals come behind what is made in parts.
    let changed = SMALL.replace("[serve,", "[serve-more,");
    let mut fewer = configuration(650, SMALL);
    let name: ServerName = "s7".parse().expect("name");
    let definition = source("s7.yaml", &changed.replace("NAME", "s7"));
    fewer.servers.insert(name, (definition.clone(), Server::parse(&definition).expect("a definition")));
    let second = plan(&fewer, &deployed(first.plan(), circumstances())).expect("a plan");
    let summary = second.plan().summary();
    assert_eq!((summary.create, summary.update, summary.unchanged, summary.remove), (0, 2, 1_293, 100));
    assert_eq!(*second.id(), PlanId::of(&serde_json::to_vec(second.plan()).expect("JSON")));
}

#[test]
fn of_very_many_problems_the_first_are_told_and_always_the_same_ones() {
    let configuration = configuration(1_200, &SMALL.replace("server.name", "env.missing"));
    let told = || plan(&configuration, &circumstances()).expect_err("problems").0;
    let first = told();
    // One that is found in two parts counts twice, and is told once.
    assert!((90..=100).contains(&first.len()), "{}", first.len());
    for _ in 0..5 {
        assert_eq!(told(), first);
    }
}

#[test]
fn what_is_wrong_on_every_host_hides_nothing_else() {
    let everywhere = "  - { server: a, place: { count: 300 } }\n  - { server: b }\n";
    let (first, second) = (SMALL.replace("server.name", "env.first"), SMALL.replace("server.name", "env.second"));
    let configuration = read(&manifest(everywhere), ENVIRONMENT, &[("a", &first), ("b", &second)]).expect("readable");
    let many = Circumstances { hosts: hosts(300), ..circumstances() };
    let told: Vec<String> = plan(&configuration, &many).expect_err("problems").0.into_iter().map(|p| p.file).collect();
    assert_eq!(told, ["a.yaml", "b.yaml"]);
}

#[test]
fn a_plan_of_nothing_but_removals_has_the_hash_of_its_json() {
    let with = |definition: &str| {
        read(&manifest("  - { server: a, optional: true }\n"), ENVIRONMENT, &[("a", definition)]).expect("readable")
    };
    let first = plan(&with(SMALL), &circumstances()).expect("a plan");
    let needy = format!("{SMALL}requires: [docker]\n");
    let second = plan(&with(&needy), &deployed(first.plan(), circumstances())).expect("a plan");
    assert_eq!((second.plan().summary().remove, second.plan().steps().count(), second.plan().skipped.len()), (1, 1, 1));
    assert_eq!(*second.id(), PlanId::of(&serde_json::to_vec(second.plan()).expect("JSON")));
}
