//! Placement: which hosts, and that nothing but what is asked for decides.

use super::*;

#[test]
fn placement_keeps_servers_where_they_are() {
    let configuration =
        read(&manifest("  - { server: a, place: { labels: { zone: b } } }\n"), ENVIRONMENT, &[("a", SERVER)])
            .expect("readable");
    let first = plan(&configuration, &circumstances()).expect("a plan");
    assert_eq!(first.plan().steps().next().map(|step| step.instance.to_string()).as_deref(), Some("a@h2"));
    let mut moved = deployed(first.plan(), circumstances());
    let present = moved.present.remove(&"a@h2".parse().expect("instance")).expect("present");
    moved.present.insert("a@h3".parse().expect("instance"), present);
    let second = plan(&configuration, &moved).expect("a plan");
    assert_eq!(second.plan().steps().next().map(|step| step.instance.to_string()).as_deref(), Some("a@h3"));
}

#[test]
fn a_host_that_cannot_be_reached_keeps_its_servers_and_gets_no_new_ones() {
    let one = read(&manifest("  - { server: a, place: { hosts: [h2] } }\n"), ENVIRONMENT, &[("a", SERVER)])
        .expect("readable");
    let first = plan(&one, &circumstances()).expect("a plan");
    let away =
        Circumstances { unreachable: ["h2".parse().expect("name")].into(), ..deployed(first.plan(), circumstances()) };
    assert_eq!(plan(&one, &away).expect("a plan").plan().summary().changes(), 0);
    let new = Circumstances { unreachable: away.unreachable, ..circumstances() };
    let text = plan(&one, &new).expect_err("no host").to_string();
    assert!(text.contains("h2: not connected"), "{text}");
}

#[test]
fn instances_are_spread_over_a_label_and_keep_apart_from_others() {
    let spread = "  - { server: a, place: { count: 2, spread: zone } }\n";
    let hosts_of = |plan: &Plan, server: &str| -> Vec<String> {
        let steps = plan.steps().filter(|step| step.instance.server.as_str() == server);
        steps.map(|step| step.instance.host.to_string()).collect()
    };
    // h1 is in zone a, h2 and h3 are in zone b.
    let checked = plan_of(spread, &[("a", SERVER)]).expect("a plan");
    assert_eq!(hosts_of(checked.plan(), "a"), ["h1", "h2"]);
    let other = SERVER.replace("8801", "8802");
    let apart = "  - { server: a, place: { hosts: [h1] } }\n  - { server: b, place: { apart_from: [a], count: 2 } }\n";
    let checked = plan_of(apart, &[("a", SERVER), ("b", &other)]).expect("a plan");
    assert_eq!(hosts_of(checked.plan(), "b"), ["h2", "h3"]);
    // It holds for both, whichever is placed first.
    let after = "  - { server: b, priority: 1, place: { apart_from: [a], count: 2 } }\n  - { server: a, place: { count: 1 } }\n";
    let checked = plan_of(after, &[("a", SERVER), ("b", &other)]).expect("a plan");
    assert_eq!(
        (hosts_of(checked.plan(), "b"), hosts_of(checked.plan(), "a")),
        (vec!["h1".into(), "h2".into()], vec!["h3".into()])
    );
    let told = problem(
        "  - { server: a }\n  - { server: b, place: { apart_from: [a], count: 3 } }\n",
        &[("a", SERVER), ("b", &other)],
    );
    assert!(told.contains("3 wanted, 2 possible (h1: `a` is there, and they stay apart)"), "{told}");
    let told = problem("  - { server: a, place: { spread: rack } }\n", &[("a", SERVER)]);
    assert!(told.contains("h1: no label rack to spread over"), "{told}");
}

/// Servers with these limits, each of them once.
fn limited(limits: &[&str], environment: &str) -> Result<CheckedPlan, Problems> {
    let texts = limits.iter().enumerate().map(|(n, limits)| {
        let name = format!("s{n}");
        let text = SERVER.replace("8801", &(8801 + n).to_string()) + &format!("resources: {{ {limits} }}\n");
        (name, text)
    });
    let texts: Vec<(String, String)> = texts.collect();
    let entries: String = texts.iter().map(|(name, _)| format!("  - {{ server: {name} }}\n")).collect();
    let definitions: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let configuration = read(&manifest(&entries), &format!("{ENVIRONMENT}{environment}"), &definitions)?;
    plan(&configuration, &small_hosts(2))
}

/// Hosts of one processor and one gibibyte.
fn small_hosts(count: usize) -> Circumstances {
    let mut circumstances = Circumstances { hosts: hosts(count), ..circumstances() };
    for host in circumstances.hosts.values_mut() {
        let facts = host.facts.as_mut().expect("facts");
        (facts.cpus, facts.memory_bytes) = (1, 1 << 30);
    }
    circumstances
}

#[test]
fn limits_are_counted_against_what_hosts_have() {
    let checked = limited(&["memory: 600MiB", "memory: 600MiB"], "").expect("one on each");
    let hosts: Vec<&str> = checked.plan().steps().map(|step| step.instance.host.as_str()).collect();
    assert_eq!(hosts, ["h1", "h2"]);
    let told = limited(&["memory: 600MiB", "memory: 600MiB", "memory: 600MiB"], "").expect_err("full").to_string();
    assert!(told.contains("h1: 600 MiB of its 1024 MiB of memory are given away, and 600 MiB are wanted"), "{told}");
    limited(&["memory: 600MiB"; 3], "capacity: { memory: 200% }\n").expect("more may be given away than there is");
    let told = limited(&["cpu: 80%"; 3], "").expect_err("full").to_string();
    assert!(told.contains("h2: 80% of its 100% of processor time are given away, and 80% are wanted"), "{told}");
    limited(&["cpu: 80%"; 3], "capacity: { cpu: 200% }\n").expect("more may be given away than there is");
    let wrong = limited(&["cpu: 80%"], "capacity: { cpu: much }\n").expect_err("no part").to_string();
    assert!(wrong.contains("test.yaml:6:18: `much` is not a part"), "{wrong}");
}

#[test]
fn facts_that_an_environment_does_not_trust_decide_nothing() {
    let needy = SERVER.replace("requires: [python>=3.10]", "requires: [python>=4, memory>=1TiB]")
        + "resources: { memory: 2GiB, cpu: 300% }\n";
    let placed = |trusted: &str| {
        let environment = format!("{ENVIRONMENT}{trusted}");
        let configuration = read(&manifest("  - { server: a }\n"), &environment, &[("a", &needy)])?;
        plan(&configuration, &small_hosts(1))
    };
    let told = placed("").expect_err("it has no such python").to_string();
    assert!(told.contains("h1: no python>=4"), "{told}");
    let told = placed("trusted_facts: [memory, cpus]\n").expect_err("it has too little").to_string();
    assert!(told.contains("h1: no memory>=1TiB"), "{told}");
    let told = placed("trusted_facts: [cpus]\n").expect_err("it has too few").to_string();
    assert!(told.contains("300% are wanted"), "{told}");
    let checked = placed("trusted_facts: []\n").expect("the host itself looks at what it has");
    assert_eq!(
        checked.warnings(),
        [
            "what hosts say they have decides nothing here for a (environment test, `sensitive`): each host looks itself at their needs"
        ]
    );
    let wrong = placed("trusted_facts: [zone]\n").expect_err("no fact").to_string();
    assert!(wrong.contains("test.yaml:6:17: "), "{wrong}");
}

#[test]
fn what_a_host_has_not_answered_yet_is_said_to_be_unknown_and_not_lacking() {
    let why = |change: &dyn Fn(&mut Facts), server: &str| {
        let mut circumstances = small_hosts(1);
        circumstances.hosts.values_mut().filter_map(|host| host.facts.as_mut()).for_each(change);
        let configuration = read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", server)]).expect("readable");
        plan(&configuration, &circumstances).expect_err("cannot be placed").to_string()
    };
    let needs_node = SERVER.replace("requires: [python>=3.10]", "requires: [node>=20]");
    let lacking = why(&|_| {}, &needs_node);
    assert!(lacking.contains("h1: no node>=20") && !lacking.contains("known"), "{lacking}");
    let unknown = why(&|facts| facts.set_unknown("node"), &needs_node);
    assert!(unknown.contains("h1: it is not known whether it has node>=20"), "{unknown}");
    assert!(unknown.contains("`fleetwright hosts refresh h1`") && !unknown.contains("no node"), "{unknown}");
    let new = why(&|facts| facts.set_all_unknown(), &needs_node);
    assert!(new.contains("h1: the facts of h1 are not known yet") && new.contains("plan again"), "{new}");
    // What runs there stays there.
    let configuration = read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", SERVER)]).expect("readable");
    let mut circumstances = deployed(plan(&configuration, &small_hosts(2)).expect("a plan").plan(), small_hosts(2));
    circumstances.hosts.values_mut().filter_map(|host| host.facts.as_mut()).for_each(|facts| facts.runtimes.clear());
    let known = plan(&configuration, &circumstances).expect_err("nobody has it").to_string();
    assert!(known.contains("no python>=3.10"), "{known}");
    circumstances.hosts.values_mut().filter_map(|host| host.facts.as_mut()).for_each(Facts::set_all_unknown);
    let checked = plan(&configuration, &circumstances).expect("it runs there already");
    assert_eq!(checked.plan().summary().changes(), 0);
}

#[test]
fn what_is_sensitive_goes_to_no_host_for_what_that_says_of_itself() {
    let needy = |sensitive: &str| {
        SERVER.replace("requires: [python>=3.10]", "requires: [python>=4, memory>=1TiB]")
            + "resources: { memory: 2GiB }\n"
            + sensitive
    };
    let placed = |own: &str| {
        let mut circumstances = small_hosts(2);
        // The second one lies: it has whatever is wanted.
        let facts = circumstances.hosts.values_mut().nth(1).and_then(|host| host.facts.as_mut()).expect("facts");
        (facts.cpus, facts.memory_bytes) = (1_000, 1 << 50);
        facts.runtimes.insert("python".to_owned(), vec!["4.0.0".to_owned().try_into().expect("a version")]);
        let configuration =
            read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", &needy(own))]).expect("readable");
        let checked = plan(&configuration, &circumstances).expect("a plan");
        checked.plan().steps().map(|step| step.instance.host.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(placed(""), ["h2"], "it lies, and gets it");
    assert_eq!(placed("sensitive: true\n"), ["h1"], "the first by name, as if nobody had said anything");
}

#[test]
fn what_other_manifests_have_on_a_host_counts_and_what_runs_keeps_its_place() {
    let with_limits = SERVER.to_owned() + "resources: { memory: 600MiB }\n";
    let second = with_limits.replace("8801", "8802");
    let one = read(&manifest("  - { server: b }\n"), ENVIRONMENT, &[("b", &with_limits)]).expect("readable");
    let first = plan(&one, &small_hosts(1)).expect("a plan");
    let mut later = deployed(first.plan(), small_hosts(1));
    // A server that is placed before it by its name does not take its place.
    let both = read(
        &manifest("  - { server: a, optional: true }\n  - { server: b }\n"),
        ENVIRONMENT,
        &[("a", &second), ("b", &with_limits)],
    )
    .expect("readable");
    let checked = plan(&both, &later).expect("a plan");
    assert_eq!(checked.plan().skipped.len(), 1);
    assert_eq!(checked.plan().skipped[0].server.as_str(), "a");
    for present in later.present.values_mut() {
        present.manifest = "other".parse().expect("name");
    }
    let other = read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", &second)]).expect("readable");
    let told = plan(&other, &later).expect_err("full").to_string();
    assert!(told.contains("600 MiB of its 1024 MiB of memory are given away"), "{told}");
}

/// What a server of a drawn manifest wants: how many, of a zone or of any, before which others, and with which priority.
type Wish = (u8, u8, Vec<usize>, i8);

fn drawn(wishes: &[Wish], order: &[usize]) -> Result<CheckedPlan, Problems> {
    let zone = |zone: u8| match zone % 3 {
        0 => ", labels: { zone: a }",
        1 => ", labels: { zone: b }",
        _ => "",
    };
    let entry = |n: &usize| {
        let (count, place, on, priority) = &wishes[*n];
        let on: Vec<String> =
            on.iter().map(|on| on % wishes.len()).filter(|on| on < n).map(|on| format!("s{on}")).collect();
        format!(
            "  - {{ server: s{n}, optional: true, priority: {priority}, depends_on: [{}], place: {{ count: {}{} }} }}\n",
            on.join(", "),
            1 + count % 3,
            zone(*place)
        )
    };
    let entries: String = order.iter().map(entry).collect();
    // Every third one wants the same port, so that they are in each other's way.
    let texts: Vec<(String, String)> =
        (0..wishes.len()).map(|n| (format!("s{n}"), SERVER.replace("8801", &(8801 + n % 3).to_string()))).collect();
    let definitions: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut text = manifest(&entries);
    text.push_str("rollout: { canary: 50% }\n");
    plan(&read(&text, ENVIRONMENT, &definitions)?, &circumstances())
}

proptest! {
    #[test]
    fn the_order_in_which_a_manifest_lists_its_servers_changes_no_byte_of_the_plan(
        wishes in prop::collection::vec((any::<u8>(), any::<u8>(), prop::collection::vec(any::<usize>(), 0..3), any::<i8>()), 1..12),
        seed in any::<u64>(),
    ) {
        let order: Vec<usize> = (0..wishes.len()).collect();
        let mut other = order.clone();
        other.sort_by_key(|n| blake3::hash(format!("{seed}/{n}").as_bytes()).to_hex());
        let (one, two) = (drawn(&wishes, &order).expect("a plan"), drawn(&wishes, &other).expect("a plan"));
        prop_assert_eq!(serde_json::to_string(one.plan()).expect("JSON"), serde_json::to_string(two.plan()).expect("JSON"));
        prop_assert_eq!(one.id(), two.id());
    }
}

#[test]
fn what_could_go_wrong_is_told_the_worst_first() {
    let two = "  - { server: a, place: { count: 2 }, rollout: { max_unavailable: 2 } }\n  - { server: b }\n";
    let other = SERVER.replace("8801", "8802");
    let first = plan_of(two, &[("a", SERVER), ("b", &other)]).expect("a plan");
    let told = |plan: &Plan| -> Vec<(RiskLevel, String)> { risk(plan).reasons };
    // The checks of both are critical unless it is said otherwise, and nothing of them runs yet.
    assert_eq!((risk(first.plan()).level, told(first.plan())), (RiskLevel::Low, Vec::new()));
    let changed = SERVER.replace("2026.10.19", "2026.10.20") + "irreversible: it migrates\n";
    let configuration = read(&manifest(two), ENVIRONMENT, &[("a", &changed), ("b", &other)]).expect("readable");
    let second = plan(&configuration, &deployed(first.plan(), circumstances())).expect("a plan");
    assert_eq!(
        told(second.plan()),
        [
            (RiskLevel::High, "a cannot be undone once it has run: it migrates".to_owned()),
            (RiskLevel::Medium, "all 2 instances of a may be out of service at once".to_owned()),
        ]
    );
    let one = read(&manifest("  - { server: b }\n"), ENVIRONMENT, &[("b", &other)]).expect("readable");
    let third = plan(&one, &deployed(first.plan(), circumstances())).expect("a plan");
    assert_eq!(told(third.plan()), [(RiskLevel::Medium, "a is removed from every host".to_owned())]);
}
