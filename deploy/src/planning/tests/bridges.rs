//! What definitions say of the bridge of a server.

use super::*;
use crate::release::{Bridge, Sessions};

/// A server with these further lines in `run`.
fn with(run: &str) -> String {
    SERVER.replace("  port: 8801\n", &format!("  port: 8801\n{run}"))
}

fn planned(server: &str) -> Result<CheckedPlan, Problems> {
    plan(&read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", server)])?, &circumstances())
}

fn told(server: &str) -> String {
    planned(server).expect_err("refused").to_string()
}

fn bridge(server: &str) -> Bridge {
    let planned = planned(server).expect("a plan");
    planned.plan().steps().next().and_then(|step| step.release.clone()).expect("a release").run.bridge.clone()
}

#[test]
fn a_server_says_which_names_reach_it_and_whose_process_a_session_has() {
    assert_eq!(bridge(&with("")), Bridge::default());
    let said = "  sessions: own\n  sessions_max: 8\n  hosts: [\"{{ server.name }}.example\", tools.example:8443, a.example]\n  \
                origins: [\"https://{{ host.name }}.example\"]\n";
    assert_eq!(
        bridge(&with(said)),
        Bridge {
            sessions: Sessions::Own,
            sessions_max: Some(8),
            hosts: vec!["a.example".to_owned(), "tools.example:8443".to_owned()],
            origins: vec!["https://h1.example".to_owned()],
        }
    );
    assert_eq!(bridge(&with("  sessions: shared\n")), Bridge::default(), "what is usual keeps the ids of releases");
}

#[test]
fn what_is_told_to_a_bridge_is_refused_where_it_is_wrong_with_its_place() {
    let many: Vec<String> = (0..33).map(|n| format!("h{n}.example")).collect();
    for (run, place, why) in [
        ("  sessions: mine\n", "9:13", "expected one of"),
        ("  sessions_max: 8\n", "9:17", "write `sessions: own`"),
        ("  sessions: shared\n  sessions_max: 8\n", "10:17", "write `sessions: own`"),
        ("  sessions: own\n  sessions_max: 0\n", "10:17", "from 1 to 256"),
        ("  sessions: own\n  sessions_max: 257\n", "10:17", "from 1 to 256"),
        ("  hosts: [a.example, \"*.example\"]\n", "9:22", "wildcard"),
        ("  hosts: [Tools.example]\n", "9:11", "lower case"),
        ("  hosts: [\"{{ env.zone }}\"]\n", "9:11", "`Etc/UTC`"),
        ("  hosts: ['{{ secret(name=\"api_key\") }}']\n", "9:11", "list of processes"),
        ("  path: mcp\n", "9:9", "does not begin with `/`"),
        ("  path: \"\"\n", "9:9", "does not begin with `/`"),
        ("  path: /{x\n", "9:9", "a character that no path has"),
        ("  path: /mcp?x=1\n", "9:9", "more than a path"),
        (
            "  environment: { FLEETWRIGHT_BRIDGE_TOKEN: short }\n",
            "9:44",
            "fewer than 16 characters: it could be guessed",
        ),
        ("  origins: [tools.example]\n", "9:13", "http:// or https://"),
        ("  origins: [\"https://tools.example/\"]\n", "9:13", "without a path"),
        ("  origins: [\"*\"]\n", "9:13", "http:// or https://"),
        ("  origins: [\"null\"]\n", "9:13", "http:// or https://"),
        (&format!("  hosts: [{}]\n", many.join(", ")), "9:", "more than 32"),
        (&format!("  origins: [{}]\n", many.join(", ")), "9:", "more than 32"),
    ] {
        let told = told(&with(run));
        assert!(told.starts_with(&format!("a.yaml:{place}")) && told.contains(why), "{run}: {told}");
        assert!(run.contains("mine") || told.contains("hint: "), "{run}: {told}");
    }
}

#[test]
fn what_is_told_to_a_bridge_is_refused_where_there_is_none() {
    for run in
        ["  sessions: own\n", "  sessions_max: 8\n", "  hosts: [a.example]\n", "  origins: [\"https://a.example\"]\n"]
    {
        for transport in ["http", "none"] {
            let server = with(run).replace("transport: stdio", &format!("transport: {transport}"));
            let server = if transport == "none" { server.replace("type: mcp", "type: tcp") } else { server };
            let (told, field) = (told(&server), run.trim().split(':').next().unwrap_or_default());
            assert!(told.contains(&format!("`run.{field}` is told to a bridge")), "{transport} {run}: {told}");
            assert!(told.starts_with("a.yaml:9:") && told.contains("hint: "), "{transport} {run}: {told}");
        }
    }
}

#[test]
fn a_plan_warns_of_a_server_whose_clients_would_share_what_each_should_have_alone() {
    let browser = with("").replace("pypi: mcp-server-time", "npm: \"@playwright/mcp\"");
    let warned = |server: &str| {
        let configuration = read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", server)]).expect("read");
        let checked = check(&configuration, &BTreeMap::new()).expect("right");
        let planned = planned(server).expect("a plan").warnings().to_vec();
        assert_eq!(checked, planned, "validation and planning tell the same");
        planned
    };
    assert!(warned(&with("")).is_empty());
    let told = warned(&browser);
    assert!(told.len() == 1 && told[0].starts_with("a.yaml:3:10: `@playwright/mcp` keeps an open browser"), "{told:?}");
    for decided in ["own", "shared"] {
        let said = browser.replace("  port: 8801\n", &format!("  port: 8801\n  sessions: {decided}\n"));
        assert!(warned(&said).is_empty(), "{decided}");
    }
}

#[test]
fn a_release_of_before_reads_and_writes_as_it_did() {
    let plain = Release::plain("a".parse().expect("name"), vec!["serve".to_owned()]);
    let written = serde_json::to_string(&plain).expect("JSON");
    assert!(!written.contains("bridge"), "{written}");
    assert_eq!(serde_json::from_str::<Release>(&written).expect("it reads"), plain);
}
