//! Entries of all shapes: what is written for each, or why it is refused; and that what is written can be deployed.

use std::fmt::Write as _;

use super::*;
use crate::config::{Server, Source};
use crate::planning::{Files, Needs, check_alone};

/// An entry by its file, and what its package answers.
type Case = (&'static str, &'static str, fn() -> Found);

macro_rules! entry {
    ($name:literal, $found:expr) => {
        ($name, include_str!(concat!("entries/", $name, ".json")), || $found)
    };
    ($name:literal) => {
        entry!($name, Found::Unknown("the registry was not asked".to_owned()))
    };
}

fn programs(names: &[&str]) -> Found {
    Found::Programs(names.iter().map(|name| (*name).to_owned()).collect())
}

const MANIFEST: &str = r#"{ "manifest_version": "0.3", "name": "desk", "server": { "type": "node", "entry_point": "server/main.js",
    "mcp_config": { "command": "node", "args": ["${__dirname}/server/main.js", "--dir=${user_config.folder}", "${user_config.more}", "{{ x }}"],
      "env": { "KEY": "${user_config.key}", "HOME_DIR": "${HOME}${/}d", "ODD": "${user_config.nobody}" } } },
  "user_config": { "folder": { "type": "directory", "required": true, "description": "Where it looks" },
    "more": { "type": "string" }, "key": { "type": "string", "sensitive": true, "required": true } } }"#;

const CASES: [Case; 32] = [
    entry!("positional-paths", programs(&["mcp-server-filesystem"])),
    entry!("flags", programs(&["mcp-server-browser", "browser-mcp"])),
    entry!("remote-headers"),
    entry!("http-headers", programs(&["other", "search-mcp", "-x", "../y"])),
    entry!("secret-argument"),
    entry!("secret-url"),
    entry!("image"),
    entry!("image-gpus"),
    entry!("image-privileged"),
    entry!("image-of-my-folder"),
    entry!("image-without-digest"),
    entry!("image-on-the-hosts-network"),
    entry!("bundle", Found::Bundle(MANIFEST.to_owned())),
    entry!("bundle-without-digest"),
    entry!("several-packages", programs(&["zweather", "aweather"])),
    entry!("private-registry"),
    entry!("own-registry", programs(&["internal-mcp"])),
    entry!("private-index"),
    entry!("runtime-program"),
    entry!("module"),
    entry!("other-package"),
    entry!("fixed-port", programs(&[])),
    entry!("sse"),
    entry!("hostile", programs(&["{{ x }}"])),
    entry!("nul"),
    entry!("marker"),
    entry!("range"),
    entry!("url-for-a-name"),
    entry!("malformed"),
    entry!("same-names"),
    entry!("bundle"),
    entry!("fixed-port"),
];

fn made(text: &str, choice: ImportChoice<'_>, found: &Found) -> Result<Imported, ImportError> {
    Entered::read(text, choice)?.definition(choice, found)
}

#[track_caller]
fn parsed(imported: &Imported) -> (Source, Server) {
    let source = Source { path: format!("{}.yaml", imported.name), text: imported.text.clone() };
    let server = Server::parse(&source).unwrap_or_else(|problems| panic!("{problems}\n{}", imported.text));
    (source, server)
}

/// Plans it with what it says that it needs, and with nothing else.
#[track_caller]
fn planned(imported: &Imported) {
    let (source, server) = parsed(imported);
    let needs = Needs {
        variables: imported.variables.iter().cloned().collect(),
        secrets: imported.secrets.iter().cloned().collect(),
        ..Needs::default()
    };
    let checked = check_alone(&source, &server, &needs, &Files::default());
    checked.unwrap_or_else(|problems| panic!("{problems}\n{}", imported.text));
}

#[test]
fn entries_of_all_shapes_become_definitions_that_can_be_planned_or_are_refused_by_name() {
    let mut shown = String::new();
    for (name, text, found) in CASES {
        let _ = writeln!(shown, "=== {name}");
        match made(text, ImportChoice::default(), &found()) {
            Ok(imported) => {
                planned(&imported);
                shown.push_str(&imported.text);
                for note in &imported.notes {
                    let _ = writeln!(shown, "note: {note}");
                }
            }
            Err(error) => {
                let _ = writeln!(shown, "refused: {error}\n  hint: {}", error.hint);
            }
        }
        shown.push('\n');
    }
    assert!(!shown.contains("hunter"), "a secret of an entry is shown: {shown}");
    insta::assert_snapshot!(shown);
}

#[test]
fn the_person_chooses_the_package_the_name_the_port_and_the_digest() {
    let weather = include_str!("entries/several-packages.json");
    let npm = made(weather, ImportChoice { registry: Some("npm"), ..ImportChoice::default() }, &programs(&["w"]));
    let npm = npm.expect("a definition");
    planned(&npm);
    assert!(npm.text.contains("package: { npm: \"weather-mcp\", version: \"0.5.1\" }"), "{}", npm.text);
    assert!(npm.text.contains("PORT: \"{{ server.port }}\""), "{}", npm.text);
    let by_number = made(weather, ImportChoice { package: Some(2), ..ImportChoice::default() }, &programs(&["w"]));
    assert_eq!(by_number.as_ref(), Ok(&npm));
    for package in [0, 4] {
        let refused = made(weather, ImportChoice { package: Some(package), ..ImportChoice::default() }, &programs(&[]));
        assert!(refused.expect_err("refused").to_string().contains("packages[0] of nuget, packages[1] of pypi"));
    }
    let digest = format!("sha256:{}", "cd".repeat(32));
    let (mine, image) = ("mine".parse().expect("a name"), include_str!("entries/image-without-digest.json"));
    let choice = ImportChoice { name: Some(&mine), port: Some(9001), digest: Some(&digest), ..ImportChoice::default() };
    let imported = made(image, choice, &programs(&[])).expect("a definition");
    planned(&imported);
    let (_, server) = parsed(&imported);
    assert_eq!(server.run.port.as_ref().map(|port| port.value), Some(9001));
    assert_eq!(server.run.path.as_ref().map(|path| path.value.as_str()), Some("/api/mcp"));
    assert_eq!(imported.name, mine);
    for digest in ["sha256:12", "latest", "sha256:\n"] {
        let choice = ImportChoice { digest: Some(digest), ..choice };
        assert!(made(image, choice, &programs(&[])).expect_err("refused").to_string().contains("not the digest"));
    }
}

#[test]
fn a_package_is_asked_only_where_it_can_be_imported() {
    let question =
        |text: &str| Entered::read(text, ImportChoice::default()).ok().and_then(|entered| entered.question());
    let npm = ImportQuestion::Npm {
        name: "@example/server-filesystem".to_owned(),
        version: "1.2.0".to_owned(),
        registry: None,
    };
    assert_eq!(question(include_str!("entries/positional-paths.json")), Some(npm));
    for refused in [
        include_str!("entries/url-for-a-name.json"),
        include_str!("entries/private-registry.json"),
        include_str!("entries/range.json"),
        include_str!("entries/image.json"),
    ] {
        assert_eq!(question(refused), None);
    }
}

#[test]
fn what_an_entry_says_is_a_text_wherever_it_comes_to_stand() {
    let text = include_str!("entries/hostile.json");
    let imported = made(text, ImportChoice::default(), &programs(&["x"])).expect("a definition");
    let (_, server) = parsed(&imported);
    assert_eq!(server.run.environment.keys().collect::<Vec<_>>(), ["A: x", "B", "JSON", "TOKEN", "yes"]);
    assert_eq!(server.run.environment["JSON"].value, r#"{"a": 1, "b": "{b}"}"#);
    assert_eq!(server.run.environment["B"].value, "<{unknown}>");
    assert!(server.run.environment["TOKEN"].value.starts_with("Bearer {{ secret(name=\""));
    let entry: Value = serde_json::from_str(text).expect("JSON");
    let said = entry["packages"][0]["packageArguments"][0]["value"].as_str().expect("a text");
    // What is no brace is there as it was, and no brace is an opening of a template.
    let written = &server.run.command[1].value;
    assert_eq!(written.replace("{{ \"{\" }}", "{"), said);
    assert_eq!(imported.secrets.len(), 1);
    assert_eq!(imported.variables.len(), 1);
}

#[test]
fn what_cannot_be_deployed_is_told() {
    let told = |entry: &str, registry: Option<&str>| {
        let choice = ImportChoice { registry, ..ImportChoice::default() };
        made(entry, choice, &programs(&[])).expect_err("refused").to_string()
    };
    let head = r#""name": "a/b", "description": "", "version": "1""#;
    assert!(told(&format!("{{ {head} }}"), None).contains("it has none"));
    let of = |transport: &str| {
        format!(
            r#"{{ {head}, "packages": [{{ "registryType": "npm", "identifier": "a", "version": "1", "transport": {transport} }}] }}"#
        )
    };
    assert!(told(&of(r#"{"type": "pigeon"}"#), None).contains("packages[0].transport.type: `pigeon` is no transport"));
    for (url, note, path) in [
        ("http://localhost:99999/mcp", Some("`99999` is no port"), Some("/mcp")),
        ("http://localhost:9999/a b", Some("`/a b` has a character that no path has"), None),
        ("http://localhost:9999/mcp?key=a", None, Some("/mcp?key=a")),
        ("http://localhost:9999", None, None),
    ] {
        let entry = of(&format!(r#"{{"type": "streamable-http", "url": "{url}"}}"#));
        let made = made(&entry, ImportChoice::default(), &programs(&["a"])).expect("a definition");
        let said = made.notes.iter().any(|told| note.is_some_and(|note| told.contains(note)));
        assert_eq!(said, note.is_some(), "{url}: {:?}", made.notes);
        let written = made.text.lines().find_map(|line| line.strip_prefix("  path: "));
        assert_eq!(written, path.map(|path| format!("{path:?}")).as_deref(), "{url}: {}", made.text);
    }
    assert!(told("[]", None).contains("no entry") && told("{", None).contains("no JSON: it ends too early"));
    assert!(
        told(&include_str!("entries/flags.json").replace("com.example/browser", "---"), None)
            .contains("cannot be made")
    );
    assert!(told(&" ".repeat(2 << 20), None).contains("larger"));
    let many = r#"{ "name": "A" },"#.repeat(600) + r#"{ "name": "A" }"#;
    let package = r#""registryType": "npm", "identifier": "a", "version": "1", "transport": { "type": "stdio" }"#;
    let many = format!("{{ {head}, \"packages\": [ {{ {package}, \"environmentVariables\": [{many}] }} ] }}");
    assert!(told(&many, None).contains("more than 500"));
}

#[test]
fn of_a_url_only_what_is_no_secret_is_shown() {
    assert_eq!(without_secrets("https://u:p@h:1/a?b=c#d"), "https://h:1/a");
    assert_eq!(without_secrets("https://u:p@x@h?b"), "https://h");
    assert_eq!(without_secrets("a/b"), "a/b");
}
