mod bridges;
mod dependencies;
mod digests;
mod many;
mod placement;
mod rules;
mod templates;

use proptest::prelude::*;

use super::*;
use crate::config::StandardChecks;
use crate::host::Facts;
use crate::release::masked;

const SERVER: &str = "apiVersion: fleetwright/v1
name: NAME
package: { pypi: mcp-server-time, version: 2026.10.19 }
requires: [python>=3.10]
run:
  command: [serve, --zone, \"{{ env.zone }}\"]
  transport: stdio
  port: 8801
health_checks:
  - { name: tools, type: mcp }
";

const ENVIRONMENT: &str = "apiVersion: fleetwright/v1
name: test
variables: { zone: Etc/UTC }
secrets: { api_key: { env: API_KEY } }
rules: { critical_check: true }
";

fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

/// Reads a manifest, the environment above, and servers by name and text.
fn read(manifest: &str, environment: &str, servers: &[(&str, &str)]) -> Result<Configuration, Problems> {
    let manifest = source("m.yaml", manifest);
    let environment = source("test.yaml", environment);
    let mut definitions = BTreeMap::new();
    for (name, text) in servers {
        let source = source(&format!("{name}.yaml"), &text.replace("NAME", name));
        definitions.insert(name.parse().expect("name"), (source.clone(), Server::parse(&source)?));
    }
    Ok(Configuration {
        manifest: (manifest.clone(), Manifest::parse(&manifest)?),
        environment: (environment.clone(), Environment::parse(&environment)?),
        servers: definitions,
        on_hosts: BTreeMap::new(),
    })
}

fn manifest(servers: &str) -> String {
    format!("apiVersion: fleetwright/v1\nname: m\nenvironment: test\nservers:\n{servers}")
}

fn hosts(count: usize) -> BTreeMap<HostName, HostView> {
    let runtimes = [("python".to_owned(), vec![crate::host::Version::from([3, 11])])];
    let view = |n: usize| HostView {
        address: format!("127.0.0.{n}"),
        state_dir: "/state".to_owned(),
        labels: [("zone".to_owned(), if n == 1 { "a" } else { "b" }.to_owned())].into(),
        facts: Some(Facts { runtimes: runtimes.clone().into(), ..Facts::default() }),
    };
    (1..=count).map(|n| (format!("h{n}").parse().expect("name"), view(n))).collect()
}

fn circumstances() -> Circumstances {
    let source = SecretSource::Named { variable: "API_KEY".to_owned(), fallback: None };
    Circumstances {
        hosts: hosts(3),
        secret_digests: Some([(secret_key(&source), "digest-1".to_owned())].into()),
        now: Timestamp::from_unix_ms(1_000_000),
        ..Circumstances::default()
    }
}

/// What a fleet looks like after a plan was deployed.
fn deployed(plan: &Plan, before: Circumstances) -> Circumstances {
    let mut present = BTreeMap::new();
    for (group, planned) in plan.groups.iter().enumerate() {
        for step in &planned.steps {
            if let (Some(release), Some(release_id)) = (step.release.clone(), step.release_id.clone()) {
                let manifest = plan.manifest.clone();
                present.insert(
                    step.instance.clone(),
                    Present { manifest, group, release: Arc::unwrap_or_clone(release), release_id, in_trouble: false },
                );
            }
        }
    }
    Circumstances { generation: before.generation.next(), present, ..before }
}

fn plan_of(servers: &str, definitions: &[(&str, &str)]) -> Result<CheckedPlan, Problems> {
    plan(&read(&manifest(servers), ENVIRONMENT, definitions)?, &circumstances())
}

/// The problem that a configuration has, as an operator sees it.
fn problem(servers: &str, definitions: &[(&str, &str)]) -> String {
    plan_of(servers, definitions).expect_err("a problem").to_string()
}

fn groups_of(plan: &Plan) -> Vec<Vec<String>> {
    plan.groups.iter().map(|group| group.servers.iter().map(ToString::to_string).collect()).collect()
}

fn shipped(manifest: &str) -> (Configuration, Circumstances) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = |path: String| {
        let text = std::fs::read_to_string(root.join(&path)).expect("a shipped file");
        Source { path, text }
    };
    let manifest_source = file(format!("deployments/{manifest}.yaml"));
    let parsed = Manifest::parse(&manifest_source).expect("a manifest");
    let name = &parsed.environment.as_ref().expect("an environment").value;
    let environment = file(format!("config/environments/{name}.yaml"));
    let standard = StandardChecks::parse(&file("health-checks/standard-checks.yaml".to_owned())).expect("checks");
    let servers = parsed.servers.iter().map(|entry| {
        let source = file(format!("config/servers/{}.yaml", entry.server.value));
        let server = Server::parse_with(&source, Some(&standard)).expect("a server");
        (entry.server.value.clone(), (source, server))
    });
    let hosts = parsed.hosts.iter().map(|host| {
        let view = HostView {
            address: "10.0.0.1".to_owned(),
            state_dir: "/state".to_owned(),
            labels: host.labels.clone(),
            facts: None,
        };
        (host.name.value.clone(), view)
    });
    let circumstances = Circumstances { hosts: hosts.collect(), ..Circumstances::default() };
    let environment = (environment.clone(), Environment::parse(&environment).expect("an environment"));
    let configuration = Configuration {
        servers: servers.collect(),
        on_hosts: BTreeMap::new(),
        environment,
        manifest: (manifest_source, parsed),
    };
    (configuration, circumstances)
}

#[test]
fn the_shipped_manifests_plan_into_their_groups() {
    let seven: Vec<Vec<String>> = [
        &["brave-search", "security-scanner"][..],
        &["docker-mcp", "kubernetes-mcp"],
        &["prometheus-monitoring"],
        &["s3-storage", "slack-notifications"],
    ]
    .iter()
    .map(|group| group.iter().map(ToString::to_string).collect())
    .collect();
    for (name, expected) in [
        ("quickstart", vec![vec!["time".to_owned()], vec!["git".to_owned(), "fetch".to_owned()]]),
        ("mcp-development-deployment", seven.clone()),
        ("mcp-production-deployment", seven),
    ] {
        let (configuration, circumstances) = shipped(name);
        let checked = plan(&configuration, &circumstances).unwrap_or_else(|problems| panic!("{name}: {problems}"));
        assert_eq!(groups_of(checked.plan()), expected, "{name}");
    }
}

#[test]
fn an_optional_server_without_a_host_is_skipped_and_any_other_is_an_error() {
    let needy = SERVER.replace("python>=3.10", "docker");
    let checked = plan_of(
        "  - { server: a, optional: true }\n  - { server: b, depends_on: [a] }\n",
        &[("a", &needy), ("b", SERVER)],
    );
    let checked = checked.expect("a plan");
    assert_eq!(checked.plan().skipped.len(), 1);
    assert!(checked.plan().skipped[0].reason.contains("h1: no docker"), "{:?}", checked.plan().skipped);
    assert_eq!(groups_of(checked.plan()), [["b"]]);
    insta::assert_snapshot!(problem("  - { server: a }\n", &[("a", &needy)]));
}

#[test]
fn a_cycle_is_named_whole_with_its_place() {
    let servers =
        "  - server: a\n    depends_on: [b]\n  - server: b\n    depends_on: [c]\n  - server: c\n    depends_on: [a]\n";
    insta::assert_snapshot!(problem(servers, &[("a", SERVER), ("b", SERVER), ("c", SERVER)]));
    insta::assert_snapshot!(problem("  - { server: a, depends_on: [a] }\n", &[("a", SERVER)]));
}

#[test]
fn mistyped_names_are_told_with_the_name_that_was_probably_meant() {
    insta::assert_snapshot!(problem(
        "  - { server: alpha }\n  - { server: beta, depends_on: [alhpa] }\n",
        &[("alpha", SERVER), ("beta", SERVER)]
    ));
    let secret = format!("{SERVER}files:\n  - path: key\n    content: '{{{{ secret(name=\"api_kee\") }}}}'\n");
    insta::assert_snapshot!(problem("  - { server: a }\n", &[("a", &secret)]));
}

#[test]
fn errors_of_the_yaml_itself_point_at_their_place() {
    insta::assert_snapshot!(problem("  - { servr: a }\n", &[]));
    insta::assert_snapshot!(problem("  - { server: A_b }\n", &[]));
    insta::assert_snapshot!(problem("  - { server: a, priority: high }\n", &[]));
    let server = SERVER.replace("transport: stdio", "transport: carrier-pigeon");
    insta::assert_snapshot!(problem("  - { server: a }\n", &[("a", &server)]));
    let server = SERVER.replace("version: 2026.10.19 }", "version: 2026.10.19, build: maybe }");
    let told = problem("  - { server: a }\n", &[("a", &server)]);
    assert!(told.starts_with("a.yaml:3:63: `true` or `false` is expected"), "{told}");
    let wrong = read("apiVersion: fleetwright/v9\nname: m\nservers: []\n", ENVIRONMENT, &[]).expect_err("a version");
    insta::assert_snapshot!(wrong.to_string());
}

#[test]
fn versions_must_be_exact() {
    for version in ["\"*\"", "latest", "\">=1\"", "\"1.0 \"", "\"\""] {
        let server = SERVER.replace("2026.10.19", version);
        assert!(problem("  - { server: a }\n", &[("a", &server)]).contains("not an exact version"), "{version}");
    }
}

#[test]
fn names_of_packages_are_such_as_their_registry_can_have() {
    let with = |package: &str| SERVER.replace("pypi: mcp-server-time", package);
    for wrong in [
        "pypi: 'a b'",
        "pypi: ''",
        "pypi: '-r x'",
        "pypi: 'a[b'",
        "pypi: 'a[]'",
        "npm: '@'",
        "npm: '@a'",
        "npm: 'a/b'",
        "npm: -g",
    ] {
        let told = problem("  - { server: a }\n", &[("a", &with(wrong))]);
        assert!(
            told.contains("is not the name of a package") && told.contains("hint: write its name as"),
            "{wrong}: {told}"
        );
    }
    for right in ["pypi: a", "pypi: 'mcp[cli, ws]'", "pypi: A.b_c-1", "npm: '@scope/a.b'", "npm: a_b~c"] {
        assert!(plan_of("  - { server: a }\n", &[("a", &with(right))]).is_ok(), "{right}");
    }
}

#[test]
fn a_port_is_one_that_clients_can_come_by() {
    let server = SERVER.replace("port: 8801", "port: 0");
    let told = problem("  - { server: a }\n", &[("a", &server)]);
    assert!(told.contains("`run.port` is 0") && told.contains("hint: "), "{told}");
    let http = SERVER.replace("transport: stdio", "transport: http");
    let path = |path: &str| {
        plan_of(
            "  - { server: a }\n",
            &[("a", &http.replace("port: 8801", &format!("port: 8801\n  path: \"{path}\"")))],
        )
    };
    assert!(path("/mcp?key=a&b=c/d?").is_ok());
    let told = path("/mcp?a b").expect_err("a problem").to_string();
    assert!(told.contains("`/mcp?a b` has a character that no path has"), "{told}");
}

#[test]
fn what_a_check_is_told_is_refused_in_words_with_its_place_in_it() {
    for (config, why, hint) in [
        ("{ call: x }", "`call`: fields are expected, such as `name: value`, not \"x\"", None),
        ("{ call: [] }", "`call`: fields are expected", None),
        ("{ call: {} }", "`call`: missing field `tool`", None),
        ("{ call: { tool: 5 } }", "`call.tool`: a text is expected, not `5`", None),
        ("{ call: { tool: x, arguments: [a] } }", "`call.arguments`: fields are expected", None),
        ("{ call: { tool: x, json: 5 } }", "`call.json`: fields are expected", None),
        ("{ call: { tool: x, json: { nonsense: 1 } } }", "`nonsense` is no JSONPath from character 1 on: write", None),
        ("{ call: { tool: x, json: { '$.a[': 1 } } }", "`$.a[` is no JSONPath from character 4 on: write", None),
        ("{ call: { tool: x, interval: 5 } }", "`call.interval`: a text is expected, not `5`", None),
        ("{ call: { tool: x, interval: soon } }", "`call.interval`: `soon` is not a length of time", None),
        ("{ call: { tool: x, tol: y } }", "`call.tol`: unknown field `tol`, expected one of tool, ", Some("`tool`?")),
        ("{ calls: { tool: x } }", "unknown field `calls`, expected one of url, ", Some("`call`?")),
        ("{ expected_tools: x }", "`expected_tools`: a list is expected, such as [a, b], not \"x\"", None),
        ("{ expected_tools: [a, 5] }", "`expected_tools[1]`: a text is expected, not `5`", None),
    ] {
        let check = format!("\n  - {{ name: called, type: mcp, config: {config} }}\n");
        let server = SERVER.replace("\nhealth_checks:\n", &format!("\nhealth_checks:{check}"));
        assert_ne!(server, SERVER);
        let told = problem("  - { server: a }\n", &[("a", &server)]);
        assert!(told.contains("check `called` of type mcp: ") && told.contains(why), "{config}: {told}");
        assert!(hint.is_none_or(|hint| told.contains(&format!("hint: did you mean {hint}"))), "{config}: {told}");
        assert!(!told.contains("struct") && !told.contains("sequence"), "{config}: {told}");
    }
}

#[test]
fn a_missing_variable_is_an_error_with_its_place_in_the_template() {
    let server = SERVER.replace("env.zone", "env.zoen");
    insta::assert_snapshot!(problem("  - { server: a }\n", &[("a", &server)]));
    let server = format!(
        "{SERVER}files:\n  - path: deep/config.toml\n    content: |\n      first = 1\n      second = \"{{{{ missing }}}}\"\n"
    );
    insta::assert_snapshot!(problem("  - { server: a }\n", &[("a", &server)]));
}

#[test]
fn files_cannot_leave_the_config_folder() {
    for path in ["../x", "/etc/passwd", "a/../../x", "", "./x", "a//b"] {
        let server = format!("{SERVER}files:\n  - {{ path: \"{path}\", content: x }}\n");
        assert!(problem("  - { server: a }\n", &[("a", &server)]).contains("is not a path below"), "{path:?}");
    }
}

#[test]
fn a_secret_is_a_marker_in_the_plan_and_never_an_argument() {
    let server = format!("{SERVER}files:\n  - path: key\n    content: 'key={{{{ secret(name=\"api_key\") }}}}'\n");
    let checked = plan_of("  - { server: a }\n", &[("a", &server)]).expect("a plan");
    let release = checked.plan().steps().next().and_then(|step| step.release.clone()).expect("a release");
    assert_eq!(masked(&release.files[0].content), "key=(secret api_key)");
    assert_eq!(release.secrets["api_key"].digest.as_deref(), Some("digest-1"));
    let argument = SERVER.replace("{{ env.zone }}", "{{ secret(name='api_key') }}");
    assert!(problem("  - { server: a }\n", &[("a", &argument)]).contains("list of processes"));
}

#[test]
fn a_rotated_secret_is_an_update_and_its_value_is_not_shown() {
    let server = format!("{SERVER}files:\n  - path: key\n    content: 'key={{{{ secret(name=\"api_key\") }}}}'\n");
    let configuration = read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", &server)]).expect("readable");
    let first = plan(&configuration, &circumstances()).expect("a plan");
    let mut later = deployed(first.plan(), circumstances());
    for digest in later.secret_digests.iter_mut().flat_map(BTreeMap::values_mut) {
        "digest-2".clone_into(digest);
    }
    let second = plan(&configuration, &later).expect("a plan");
    assert_eq!(second.plan().summary().update, 1);
    let (instance, present) = later.present.iter().next().expect("an instance");
    let planned = second.plan().steps().find(|step| step.instance == *instance).and_then(|step| step.release.clone());
    let changes = changes(&present.release, &planned.expect("a release"));
    let expected = Change {
        field: "secrets.api_key".to_owned(),
        before: Some("(secret)".to_owned()),
        after: Some("(secret)".to_owned()),
    };
    assert_eq!(changes, [expected]);
    later.secret_digests = Some(BTreeMap::new());
    let missing = plan(&configuration, &later).expect_err("no value");
    assert!(missing.to_string().contains("environment variable API_KEY"), "{missing}");
}

#[test]
fn planning_again_changes_nothing_even_where_the_time_was_asked_for() {
    let server = format!(
        "{SERVER}files:\n  - path: stamp\n    content: 'made {{{{ now() }}}} key {{{{ random_string(length=32) }}}}'\n"
    );
    let configuration =
        read(&manifest("  - { server: a, place: { count: 2 } }\n"), ENVIRONMENT, &[("a", &server)]).expect("readable");
    let first = plan(&configuration, &circumstances()).expect("a plan");
    assert_eq!(first.plan().summary().create, 2);
    let later = Circumstances { now: Timestamp::from_unix_ms(9_000_000), ..deployed(first.plan(), circumstances()) };
    let second = plan(&configuration, &later).expect("a plan");
    assert_eq!(second.plan().summary().changes(), 0, "{:#?}", second.plan());
    assert_eq!(second.plan().summary().unchanged, 2);
}

#[test]
fn servers_that_the_manifest_no_longer_has_are_removed_last_and_those_of_others_stay() {
    let both = read(
        &manifest("  - { server: a }\n  - { server: b, depends_on: [a] }\n"),
        ENVIRONMENT,
        &[("a", SERVER), ("b", &SERVER.replace("8801", "8802"))],
    );
    let first = plan(&both.expect("readable"), &circumstances()).expect("a plan");
    let mut later = deployed(first.plan(), circumstances());
    let mut foreign = later.present.values().next().expect("one").clone();
    foreign.manifest = "other".parse().expect("name");
    later.present.insert("c@h3".parse().expect("instance"), foreign);
    let one = read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", SERVER)]).expect("readable");
    let second = plan(&one, &later).expect("a plan");
    let removed: Vec<String> = second
        .plan()
        .steps()
        .filter(|step| step.action == StepAction::Remove)
        .map(|step| step.instance.to_string())
        .collect();
    assert_eq!(removed, ["b@h2"]);
    assert_eq!(groups_of(second.plan()).last().map(Vec::as_slice), Some(&["b".to_owned()][..]));
}

#[test]
fn the_pace_of_a_server_that_loses_an_instance_is_of_those_that_it_keeps() {
    let with = |count: usize| {
        let servers =
            format!("  - {{ server: a, place: {{ count: {count} }}, rollout: {{ max_unavailable: 50% }} }}\n");
        read(&manifest(&servers), ENVIRONMENT, &[("a", SERVER)]).expect("readable")
    };
    let six = Circumstances { hosts: hosts(6), ..circumstances() };
    let first = plan(&with(5), &six).expect("a plan");
    let second = plan(&with(4), &deployed(first.plan(), six)).expect("a plan");
    assert_eq!(second.plan().summary().remove, 1);
    assert_eq!(second.plan().pace(&"a".parse().expect("name")).max_unavailable, 2);
}

#[test]
fn a_port_is_given_once_per_host() {
    let servers = "  - { server: a, place: { count: 3 } }\n  - { server: b }\n";
    let text = problem(servers, &[("a", SERVER), ("b", SERVER)]);
    assert!(text.contains("h1: its port 8801 is for `a`"), "{text}");
}

#[test]
fn a_chain_of_a_hundred_thousand_is_no_trouble() {
    let edges: Vec<(usize, usize, usize)> = (1..100_000).map(|n| (n, n - 1, 1)).collect();
    let levels = groups(100_000, &edges).expect("no cycle");
    assert_eq!(levels.len(), 100_000);
}

proptest! {
    #[test]
    fn every_server_comes_after_all_that_it_depends_on(count in 1_usize..60, pairs in prop::collection::vec(any::<(usize, usize, bool)>(), 0..200)) {
        let edges: Vec<(usize, usize, usize)> = pairs
            .iter()
            .map(|(a, b, together)| (a % count, b % count, usize::from(!together)))
            .filter(|(a, b, _)| a > b)
            .collect();
        let levels = groups(count, &edges).expect("edges lead from later to earlier, so there is no cycle");
        let mut level_of = vec![usize::MAX; count];
        for (level, nodes) in levels.iter().enumerate() {
            for node in nodes {
                prop_assert_eq!(level_of[*node], usize::MAX, "{} is in two groups", node);
                level_of[*node] = level;
            }
        }
        for node in 0..count {
            let needed = edges.iter().filter(|(from, ..)| *from == node).map(|(_, to, apart)| level_of[*to] + apart).max();
            prop_assert_eq!(level_of[node], needed.unwrap_or(0), "{} comes too early or too late", node);
        }
        let mut shuffled = edges.clone();
        shuffled.reverse();
        prop_assert_eq!(groups(count, &shuffled).expect("the same"), levels);
    }

    #[test]
    fn what_is_called_a_cycle_is_one(count in 1_usize..40, pairs in prop::collection::vec(any::<(usize, usize, bool)>(), 1..120)) {
        let edges: Vec<(usize, usize, usize)> =
            pairs.iter().map(|(a, b, together)| (a % count, b % count, usize::from(!together))).collect();
        if let Err(cycle) = groups(count, &edges) {
            prop_assert!(!cycle.is_empty());
            for (n, node) in cycle.iter().enumerate() {
                let next = cycle[(n + 1) % cycle.len()];
                prop_assert!(edges.iter().any(|(from, to, _)| (*from, *to) == (*node, next)), "{} does not depend on {}", node, next);
            }
        }
    }
}

#[test]
fn a_check_presents_secrets_in_headers_and_nowhere_else() {
    let with = |config: &str| {
        let server =
            SERVER.replace("{ name: tools, type: mcp }", &format!("{{ name: tools, type: mcp, config: {config} }}"));
        plan_of("  - { server: a }\n", &[("a", &server)])
    };
    let planned = with("{ headers: { Authorization: 'Bearer {{ secret(name=\"api_key\") }}' } }").expect("a plan");
    let release = planned.plan.groups[0].steps[0].release.as_ref().expect("a release");
    assert_eq!(release.checked_secrets(), ["api_key".to_owned()].into());
    assert_eq!(masked(&release.mcp_headers()["Authorization"]), "Bearer (secret api_key)");
    for (config, told) in [
        ("{ url: 'http://h/{{ secret(name=\"api_key\") }}' }", "a secret in `url` would be seen"),
        ("{ headers: { 'no name': x } }", "is not the name of a header"),
        ("{ headers: { X-A: \"a\\nb\" } }", "line break"),
    ] {
        let problems = match with(config) {
            Err(problems) => problems.to_string(),
            Ok(_) => panic!("{config} was accepted"),
        };
        assert!(problems.contains(told), "{problems}");
    }
}

#[test]
fn a_saved_plan_reads_back_and_a_changed_one_is_refused() {
    let checked = plan_of("  - { server: a }\n", &[("a", SERVER)]).expect("a plan");
    let bytes = SavedPlan::new(&checked, Timestamp::from_unix_ms(5), Vec::new()).to_bytes();
    assert_eq!(SavedPlan::parse(&bytes).expect("it reads back").into_checked(), checked);
    let text = String::from_utf8(bytes).expect("text");
    let tampered = text.replacen("mcp-server-time", "mcp-server-tine", 1);
    assert!(matches!(SavedPlan::parse(tampered.as_bytes()), Err(SavedPlanError::Changed)));
    let newer = text.replacen("fleetwright-plan/v1", "fleetwright-plan/v9", 1);
    assert!(matches!(SavedPlan::parse(newer.as_bytes()), Err(SavedPlanError::Format(_))));
    for rubbish in ["", "{}", "{\"format\":1}", &text[..text.len() / 2], &text.replacen("\"id\"", "\"di\"", 1)] {
        assert!(matches!(SavedPlan::parse(rubbish.as_bytes()), Err(SavedPlanError::Malformed(_))), "{rubbish}");
    }
}

#[test]
fn what_has_changed_since_a_plan_was_made_is_named() {
    let checked = plan_of("  - { server: a }\n", &[("a", SERVER)]).expect("a plan");
    assert!(moved_on(checked.plan(), &circumstances()).is_empty());
    let mut now = deployed(checked.plan(), circumstances());
    now.generation = Generation(9);
    let changes = moved_on(checked.plan(), &now);
    assert!(
        changes.len() == 1 && changes[0].starts_with("a@h1 ran nothing when the plan was made, and runs "),
        "{changes:?}"
    );
    let elsewhere = Circumstances { generation: Generation(9), ..circumstances() };
    assert!(moved_on(checked.plan(), &elsewhere)[0].contains("is at 9: other deployments came between"));
}

#[test]
fn a_server_is_explained_with_its_chain_its_neighbours_and_every_host() {
    let servers = "  - { server: db, place: { labels: { zone: a } } }\n  - { server: cache }\n  \
                   - { server: api, depends_on: [cache, db], priority: 5 }\n  - { server: web, depends_on: [api] }\n";
    let definitions: Vec<(String, String)> = ["db", "cache", "api", "web"]
        .iter()
        .enumerate()
        .map(|(n, name)| ((*name).to_owned(), SERVER.replace("8801", &(8801 + n).to_string())))
        .collect();
    let definitions: Vec<(&str, &str)> =
        definitions.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let configuration = read(&manifest(servers), ENVIRONMENT, &definitions).expect("a configuration");
    let of = |name: &str| explain(&configuration, &circumstances(), &name.parse().expect("name"));
    let web = of("web").expect("an explanation");
    assert_eq!(web.group, (3, 3));
    let chain: Vec<(&str, usize)> = web.chain.iter().map(|(name, group)| (name.as_str(), *group)).collect();
    assert_eq!(chain, [("web", 3), ("api", 2), ("cache", 1)]);
    let db = of("db").expect("an explanation");
    assert_eq!(db.needed_by.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["api"]);
    let said: Vec<(&str, &str)> = db.hosts.iter().map(|(host, said)| (host.as_str(), said.as_str())).collect();
    assert_eq!(
        said,
        [
            ("h1", "chosen: it has 1 servers of this manifest"),
            ("h2", "refused: no label zone=a"),
            ("h3", "refused: no label zone=a"),
        ]
    );
    // What its host says of its interpreters tells which one a package is for.
    let mut circumstances = circumstances();
    let runtimes = |usual: [u32; 2]| {
        let python = vec![crate::host::Version::from([3, 11]), crate::host::Version::from([3, 13])];
        [("python".to_owned(), python), ("python3".to_owned(), vec![crate::host::Version::from(usual)])].into()
    };
    for (usual, told) in [
        ([3, 11], "installed for Python 3.11, the host's python3, unless"),
        ([3, 8], "installed for Python 3.13, the newest that fits, since"),
    ] {
        let facts = circumstances.hosts.values_mut().filter_map(|host| host.facts.as_mut());
        facts.for_each(|facts| facts.runtimes = runtimes(usual));
        let db = explain(&configuration, &circumstances, &"db".parse().expect("name")).expect("an explanation");
        assert!(db.hosts.values().any(|said| said.contains(told)), "{:?}", db.hosts);
        // The plan itself tells only what is not as everybody expects.
        let checked = plan(&configuration, &circumstances).expect("a plan");
        for step in checked.plan().steps() {
            let (release, host) =
                (step.release.as_ref().expect("a release"), &circumstances.hosts[&step.instance.host]);
            let unusual = unusual_interpreter(release, host);
            assert_eq!(unusual.as_deref().map(|said| said.starts_with(told)), (usual == [3, 8]).then_some(true));
        }
    }
    assert!(of("wbe").expect_err("a problem").to_string().contains("did you mean `web`"));
}

#[test]
fn a_lock_that_comes_whole_is_counted_and_one_that_changes_is_told_by_package() {
    let with = |lock: Option<&str>| {
        let source = source("a.yaml", &SERVER.replace("NAME", "a"));
        let mut server = Server::parse(&source).expect("a server");
        server.lock = lock.map(str::to_owned);
        let mut configuration = read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", SERVER)]).expect("read");
        configuration.servers.insert("a".parse().expect("name"), (source, server));
        let checked = plan(&configuration, &circumstances()).expect("a plan");
        checked.plan().groups[0].steps[0].release.clone().expect("a release")
    };
    let lock = "mcp-server-time==2026.10.19 --hash=sha256:aa\nb==1 --hash=sha256:bb\n";
    let (none, one, two) = (with(None), with(Some(lock)), with(Some(&lock.replace("b==1", "b==2"))));
    let told = |before: &Release, after: &Release| -> Vec<(String, Option<String>)> {
        changes(before, after).into_iter().map(|change| (change.field, change.after)).collect()
    };
    assert_eq!(told(&none, &one), [("package.pypi.lock".to_owned(), Some("2 packages".to_owned()))]);
    let changed = told(&one, &two);
    assert!(changed.len() == 1 && changed[0].0 == "package.pypi.lock.b", "{changed:?}");
}

#[test]
fn a_url_with_a_password_and_a_lock_that_leads_elsewhere_are_refused_with_their_place() {
    let fetched = "apiVersion: fleetwright/v1\nname: NAME\npackage: { archive: \"https://u:hunter2@h/a.tar.gz\", version: \"1\", sha256: SHA }\nrun: { command: [a] }\n";
    let fetched = fetched.replace("SHA", &"ab".repeat(32));
    let configuration = read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", &fetched)]).expect("read");
    let problems = plan(&configuration, &circumstances()).expect_err("refused").to_string();
    assert!(problems.contains("a.yaml:3:") && problems.contains("a user or a password is shown to many"), "{problems}");
    let source = source("a.yaml", &SERVER.replace("NAME", "a"));
    let mut server = Server::parse(&source).expect("a server");
    server.lock = Some("--index-url https://other/simple\nmcp-server-time==2026.10.19 --hash=sha256:aa\n".to_owned());
    let mut configuration = read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", SERVER)]).expect("read");
    configuration.servers.insert("a".parse().expect("name"), (source, server));
    let problems = plan(&configuration, &circumstances()).expect_err("refused").to_string();
    assert!(problems.contains("line 1 of its lock names no version and no digest"), "{problems}");
}
