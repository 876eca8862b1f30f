//! Rules of environments: those that come with Fleetwright, and the operators' own.

use super::*;

#[test]
fn rules_of_the_environment_stop_a_plan() {
    let strict = ENVIRONMENT.replace(
        "critical_check: true",
        "critical_check: true, rollback: true, canary: true, max_unavailable_max: 1, package_sources: [npm]",
    );
    let careless = "apiVersion: fleetwright/v1\nname: m\nservers:\n  - { server: a }\nrollout: { max_unavailable: 2 }\nrollback: { enabled: false }\n";
    let server = SERVER.replace("health_checks:\n  - { name: tools, type: mcp }\n", "");
    let configuration = read(careless, &strict, &[("a", &server)]).expect("readable");
    insta::assert_snapshot!(plan(&configuration, &circumstances()).expect_err("broken rules").to_string());
}

/// An environment with these rules besides.
fn environment(rules: &str) -> String {
    ENVIRONMENT.replace("rules: { critical_check: true }\n", &format!("rules:\n{rules}"))
}

/// What becomes of the server above, deployed with these rules, some of which are set aside.
fn judged(rules: &str, aside: &[&str]) -> Result<CheckedPlan, Problems> {
    let configuration = read(&manifest("  - { server: a }\n"), &environment(rules), &[("a", SERVER)])?;
    let overrides = aside.iter().map(|rule| ((*rule).to_owned(), "the fair".to_owned())).collect();
    plan(&configuration, &Circumstances { overrides, ..circumstances() })
}

fn told(rules: &str) -> String {
    judged(rules, &[]).expect_err("a broken rule").to_string()
}

#[test]
fn every_rule_that_comes_with_fleetwright_is_told_with_its_place() {
    let rules =
        "  approval: true\n  locked: true\n  resource_limits: true\n  max_parallel_max: 4\n  no_inline_secrets: true\n";
    let server = SERVER.replace("  port: 8801\n", "  port: 8801\n  environment: { DB_PASSWORD: hunter2 }\n");
    let configuration =
        read(&manifest("  - { server: a }\n"), &environment(rules), &[("a", &server)]).expect("readable");
    let told = plan(&configuration, &circumstances()).expect_err("broken rules").to_string();
    assert!(!told.contains("hunter2"), "{told}");
    insta::assert_snapshot!(told);
}

#[test]
fn whoever_must_approve_is_waited_for_before_the_first_group() {
    let rules = environment("  approval: true\n");
    let with = |pause: &str| {
        let text = format!(
            "{}rollout: {{ pauses: [{pause}] }}\n",
            manifest("  - { server: a }\n  - { server: b, depends_on: [a] }\n")
        );
        let second = SERVER.replace("8801", "8802");
        plan(&read(&text, &rules, &[("a", SERVER), ("b", &second)]).expect("readable"), &circumstances())
    };
    with("{ before: a }").expect("somebody approves first");
    for late in ["{ before: b }", "{ after_canary: a }", "{ before: a, timeout: 1h, on_timeout: approve }"] {
        assert!(with(late).expect_err(late).to_string().contains("nobody approves"), "{late}");
    }
}

#[test]
fn own_rules_see_manifest_server_and_instance() {
    let ports =
        "  custom:\n    ports: { check: 'server.run.port > 8999', message: ports begin at 9000, hint: take another }\n";
    insta::assert_snapshot!(told(ports), @r"
    a.yaml:2:7: a: ports begin at 9000 (rule `ports` of environment test)
       |
     2 | name: a
       |       ^
      hint: take another
    ");
    for broken in [
        "{ for: manifest, check: 'size(manifest.servers) > 1', message: wrong }",
        "{ for: manifest, check: 'rollout.max_parallel < 2', message: wrong }",
        "{ check: 'entry.server != server.name', message: wrong }",
        "{ check: 'environment.name == \"production\" && \"api_key\" in environment.secrets', message: wrong }",
        "{ for: instance, check: 'host.labels.zone == \"b\"', message: wrong }",
        "{ for: instance, check: '\"Etc/UTC\" in release.run.command && instance.host != host.name', message: wrong }",
    ] {
        let told = told(&format!("  custom:\n    mine: {broken}\n"));
        assert!(told.contains(": wrong (rule `mine` of environment test)"), "{broken}: {told}");
    }
    for holding in [
        "manifest.servers.all(s, s.server.startsWith(\\\"a\\\"))",
        "server.health_checks.exists(c, has(c.type) && c.type == \\\"mcp\\\")",
        "size(server.health_checks.filter(c, c.name == \\\"tools\\\").map(c, c.type)) == 1",
        "type(server.run.port) == int && server.run.port + 1 == 8802",
        "\\\"a\\\" in manifest.servers.map(s, s.server)",
    ] {
        judged(&format!("  custom:\n    mine: {{ check: \"{holding}\", message: wrong }}\n"), &[]).expect(holding);
    }
    let holding =
        "  custom:\n    mine: { for: instance, check: 'release.run.command[0] == \"serve\"', message: wrong }\n";
    judged(holding, &[]).expect("it holds");
}

#[test]
fn a_rule_that_cannot_be_looked_at_is_told_with_its_place() {
    for (check, expected) in [
        ("server.run.prot > 1", "says nothing of a: No such key: prot"),
        ("servr.run.port > 1", "there is no `servr`"),
        ("release.id == \"\"", "there is no `release`"),
        ("size(server.name)", "it gives"),
        ("server.run.port >", "is no CEL expression"),
    ] {
        let told = told(&format!("  custom:\n    mine: {{ check: '{check}', message: wrong }}\n"));
        assert!(told.contains(expected) && told.contains("test.yaml:7:"), "{check}: {told}");
    }
    let taken = told("  custom:\n    canary: { check: 'true', message: wrong }\n");
    assert!(taken.contains("is a rule that comes with Fleetwright"), "{taken}");
    let unknown = told("  warn: [lokced]\n  overridable: [mien]\n  custom: { mine: { check: 'true', message: x } }\n");
    assert!(unknown.contains("did you mean `locked`?") && unknown.contains("did you mean `mine`?"), "{unknown}");
}

#[test]
fn warnings_stop_nothing_and_overrides_are_recorded_where_they_are_allowed() {
    let warned = judged("  locked: true\n  warn: [locked]\n", &[]).expect("a plan");
    assert!(warned.warnings().iter().any(|warning| warning.contains("a.yaml:3:10: it has no lock (rule `locked`")));
    assert!(warned.plan().overrides.is_empty());

    let refused = judged("  locked: true\n", &["locked"]).expect_err("it is not allowed").to_string();
    assert!(refused.contains("may not be set aside in environment test"), "{refused}");
    let unknown = judged("  locked: true\n", &["lockde"]).expect_err("unknown").to_string();
    assert!(unknown.contains("did you mean `locked`?"), "{unknown}");
    let far = judged("  locked: true\n", &["nonsense"]).expect_err("unknown").to_string();
    assert!(far.contains("`rules.overridable` of "), "{far}");

    let rules = "  locked: true\n  overridable: [locked, canary]\n";
    let aside = judged(rules, &["locked"]).expect("a plan");
    let [recorded] = aside.plan().overrides.as_slice() else { panic!("one rule is set aside") };
    assert_eq!((recorded.rule.as_str(), recorded.reason.as_str()), ("locked", "the fair"));
    assert!(recorded.broken[0].contains("it has no lock"));
    assert_ne!(aside.id(), judged("  {}\n", &[]).expect("a plan").id(), "what is set aside is part of the plan");
    let needless = judged(rules, &["locked", "canary"]).expect("a plan");
    assert!(needless.warnings().contains(&"rule `canary` is set aside, and is not broken".to_owned()));
}
