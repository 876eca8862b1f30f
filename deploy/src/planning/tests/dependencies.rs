//! Conditions on dependencies, and externals.

use super::*;
use crate::plan::ExternalEndpoint;

/// Servers of these entries, each as the one above with a port of its own; those that are named complete.
fn planned(top: &str, entries: &str, completing: &[&str]) -> Result<CheckedPlan, Problems> {
    let names = ["db", "cache", "api", "web"];
    let texts = names.iter().enumerate().map(|(n, name)| {
        let text = SERVER.replace("8801", &(8801 + n).to_string());
        if completing.contains(name) {
            let text = text.replace("  transport: stdio\n", "  completes: true\n");
            return text.replace("{ name: tools, type: mcp }", "{ name: port, type: tcp }");
        }
        text
    });
    let texts: Vec<String> = texts.collect();
    let definitions: Vec<(&str, &str)> = names.iter().copied().zip(texts.iter().map(String::as_str)).collect();
    let text = format!("{}{top}", manifest(entries));
    plan(&read(&text, ENVIRONMENT, &definitions)?, &circumstances())
}

fn refused(top: &str, entries: &str) -> String {
    planned(top, entries, &[]).expect_err("a problem").to_string()
}

#[test]
fn what_only_starts_after_another_shares_its_group_and_waits_in_it() {
    let entries = "  - { server: db }\n  - { server: cache, depends_on: [{ server: db, condition: started }] }\n  \
                   - { server: api, depends_on: [{ server: cache }, { server: db, condition: started }] }\n  \
                   - { server: web, depends_on: [{ server: api, condition: started }] }\n";
    let checked = planned("", entries, &[]).expect("a plan");
    assert_eq!(groups_of(checked.plan()), [vec!["cache", "db"], vec!["api", "web"]]);
    let after: Vec<(String, Vec<String>)> = checked
        .plan()
        .starts_after
        .iter()
        .map(|(server, others)| (server.to_string(), others.iter().map(ToString::to_string).collect()))
        .collect();
    let expected = [("cache", "db"), ("web", "api")].map(|(server, other)| (server.to_owned(), vec![other.to_owned()]));
    assert_eq!(after, expected, "what the group before has, is started anyway");
    let cycle = "  - { server: db, depends_on: [{ server: api, condition: started }] }\n  \
                 - { server: api, depends_on: [{ server: db, condition: started }] }\n";
    assert!(refused("", cycle).contains("dependencies form a cycle: db → api → db"));
}

#[test]
fn only_what_completes_is_waited_for_to_complete() {
    let entries = "  - { server: db }\n  - { server: api, depends_on: [{ server: db, condition: completed }] }\n";
    let text = refused("", entries);
    assert!(text.contains("m.yaml:6:33: `db` does not end, so it never completes"), "{text}");
    let checked = planned("", entries, &["db"]).expect("a plan");
    let run = |n: usize| checked.plan().groups[n].steps[0].release.clone().expect("a release").run.clone();
    assert_eq!((run(0).completes, run(0).restart), (true, crate::release::RestartPolicy::Never));
    assert!(!run(1).completes);
}

#[test]
fn externals_are_asked_where_something_changes_that_needs_them() {
    let top = "externals:\n  - { name: vault, http: 'https://vault.internal/health', status: [200, 429] }\n  \
               - { name: sql, tcp: 'sql.internal:5432', timeout: 2s }\n";
    let entries = "  - { server: db, depends_on: [sql] }\n  - { server: api }\n";
    let configuration = |top: &str| {
        let second = SERVER.replace("8801", "8802");
        let text = format!("{}{top}", manifest(entries));
        read(&text, ENVIRONMENT, &[("db", SERVER), ("api", &second)]).expect("readable")
    };
    let first = plan(&configuration(top), &circumstances()).expect("a plan");
    let names = |checked: &CheckedPlan| -> Vec<String> {
        checked.plan().externals.iter().map(|external| external.name.to_string()).collect()
    };
    assert_eq!(names(&first), ["sql", "vault"]);
    let vault = &first.plan().externals[1].endpoint;
    assert!(matches!(vault, ExternalEndpoint::Http { statuses, .. } if *statuses == [200, 429]));
    // Only the other server changes.
    let mut later = deployed(first.plan(), circumstances());
    later.present.retain(|id, _| id.server.as_str() == "db");
    assert_eq!(names(&plan(&configuration(top), &later).expect("a plan")), ["vault"]);
    let unchanged = plan(&configuration(top), &deployed(first.plan(), circumstances())).expect("a plan");
    assert!(names(&unchanged).is_empty());
}

#[test]
fn an_external_is_told_with_its_place_when_it_is_none() {
    let entries = "  - { server: db, depends_on: [sql] }\n";
    let with = |external: &str| refused(&format!("externals: [{{ name: sql, {external} }}]\n"), entries);
    for (external, expected) in [
        ("tcp: sql.internal", "is not HOST:PORT"),
        ("tcp: 'sql.internal:0'", "is not HOST:PORT"),
        ("tcp: 'a:1', http: 'http://a'", "needs one of `tcp` and `http`"),
        ("http: 'ftp://a'", "is not a URL"),
        ("http: 'http://a', status: [42]", "numbers from 100 to 599"),
        ("tcp: 'a:1', status: [200]", "`status` belongs to `http`"),
        ("tcp: 'a:1', timeout: 2h", "an attempt takes"),
    ] {
        let text = with(external);
        assert!(text.contains(expected) && text.starts_with("m.yaml:6:"), "{external}: {text}");
    }
    let secret = with("http: 'http://admin:hunter2@a/'");
    assert!(secret.contains("would be in plans and journals") && !secret.contains("hunter2"), "{secret}");
    let conditional = "  - { server: db, depends_on: [{ server: sql, condition: started }] }\n";
    assert!(refused("externals: [{ name: sql, tcp: 'a:1' }]\n", conditional).contains("answers, or it does not"));
    let twice = refused("externals: [{ name: db, tcp: 'a:1' }]\n", "  - { server: db }\n");
    assert!(twice.contains("`db` is there already"), "{twice}");
    let near = refused("externals: [{ name: sql, tcp: 'a:1' }]\n", "  - { server: db, depends_on: [sqll] }\n");
    assert!(near.contains("did you mean `sql`?"), "{near}");
}
