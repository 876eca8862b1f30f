//! What templates give, and what they refuse.

use super::*;
use crate::health::Probe;

/// A server with one file, whose content is this template; gives what it is rendered to.
fn rendered(template: &str) -> Result<String, String> {
    let server =
        format!("{SERVER}files:\n  - {{ path: f, content: {} }}\n", serde_json::to_string(template).expect("JSON"));
    let environment = ENVIRONMENT
        .replace("{ zone: Etc/UTC }", "{ zone: Etc/UTC, db_host: db.internal, db_port: '5432', db_name: app }")
        .replace("{ env: API_KEY } }", "{ env: API_KEY }, db_password: { env: DB_PASSWORD } }");
    let mut circumstances = circumstances();
    let password = SecretSource::Named { variable: "DB_PASSWORD".to_owned(), fallback: None };
    circumstances.secret_digests.get_or_insert_default().insert(secret_key(&password), "d".to_owned());
    circumstances.variables.insert("REGION".to_owned(), "eu".to_owned());
    circumstances.files = Files::new(|path| match path {
        "motd.txt" => Ok("hello".to_owned()),
        _ => Err("there is none".to_owned()),
    });
    let configuration =
        read(&manifest("  - { server: a }\n"), &environment, &[("a", &server)]).map_err(|e| e.to_string())?;
    let checked = plan(&configuration, &circumstances).map_err(|problems| problems.to_string())?;
    let release = checked.plan().groups[0].steps[0].release.clone().expect("a release");
    Ok(release.files[0].content.clone())
}

#[test]
fn the_examples_of_the_documentation_render_to_what_it_says() {
    let shown = |template: &str| masked(&rendered(template).expect("it renders"));
    assert_eq!(shown("key={{ secret(name=\"api_key\") }}"), "key=(secret api_key)");
    assert_eq!(
        shown(
            "postgres://app:{{ secret(name=\"db_password\") }}@{{ env.db_host }}:{{ env.db_port }}/{{ env.db_name }}"
        ),
        "postgres://app:(secret db_password)@db.internal:5432/app"
    );
    let random = "{{ random_string(length=32, name=\"session\") }}";
    assert_eq!(rendered(random), rendered(random), "the same from plan to plan");
    assert_eq!(shown(random), "(secret random.session.32)");
    assert_eq!(shown("{{ secret(name=\"db_password\", encode=\"url\") }}"), "(secret db_password.url)");
    assert_eq!(shown("{{ file(path=\"motd.txt\") }}"), "hello");
    assert_eq!(shown("{{ required(value=env.db_name, message=\"name it\") }}"), "app");
    assert_eq!(shown("{{ now() }}"), "1970-01-01T00:16:40.000Z");
    assert_eq!(shown("{{ env(name=\"REGION\") }} {{ env(name=\"NONE\", default=\"here\") }}"), "eu here");
    assert_eq!(shown("{{ \"a b\" | base64_encode }} {{ \"YSBi\" | base64_decode }}"), "YSBi a b");
    assert_eq!(shown("{{ \"abc\" | sha256 }}"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(shown("{{ host.labels | to_json }} {{ host.labels | to_yaml }}"), "{\"zone\":\"a\"} zone: a\n");
}

#[test]
fn what_functions_refuse_is_told_with_its_place() {
    for (template, expected) in [
        ("{{ secret(name=\"api_key\", encode=\"rot13\") }}", "`encode` is one of base64, url, json"),
        ("{{ file(path=\"../x\") }}", "is not the path of a file"),
        ("{{ file(path=\"none\") }}", "the file `none` cannot be read: there is none"),
        ("{{ required(value=\"\", message=\"say which zone\") }}", "say which zone"),
        ("{{ required(value=env.nothing, message=\"say which zone\") }}", "nothing"),
        ("{{ random_string(length=8, name=\"../../etc/x\") }}", "is not the name of a random text"),
    ] {
        let told = rendered(template).expect_err(template);
        assert!(told.contains(expected) && told.starts_with("a.yaml:"), "{template}: {told}");
    }
    let server = format!("{SERVER}files:\n  - {{ path: f, content: \"x\" }}\n");
    let environment = ENVIRONMENT.replace("api_key:", "../../etc/cron.d/x:");
    let configuration = read(&manifest("  - { server: a }\n"), &environment, &[("a", &server)]).expect("readable");
    let told = plan(&configuration, &circumstances()).expect_err("no name").to_string();
    assert!(told.contains("`../../etc/cron.d/x` is not the name of a secret"), "{told}");
}

#[test]
fn no_filter_changes_a_secret_unseen() {
    for filter in
        ["upper", "base64_encode", "sha256", "truncate(length=9)", "reverse", "replace(from=\"api\", to=\"x\")"]
    {
        let told = rendered(&format!("{{{{ secret(name=\"api_key\") | {filter} }}}}")).expect_err(filter);
        assert!(told.contains("secret, whose value is not known here"), "{filter}: {told}");
    }
    assert!(rendered("{{ \"###\" | base64_decode }}").expect_err("refused").contains("is not base64"));
    rendered("{{ secret(name=\"api_key\") | trim }}").expect("it is whole");
}

#[test]
fn what_is_the_same_for_every_release_is_so_and_what_is_a_releases_own_stays_its_own() {
    let definition = "apiVersion: fleetwright/v1
name: NAME
run:
  command: [serve, \"{{ env.zone | upper }}\", \"{{ deployment.manifest }}\"]
  environment:
    SERVER: \"{{ server.name }}\"
    DATA: \"{% set it = server %}{{ it.data_dir }}\"
    HOST: \"{{ host.name }}\"
    KEY: '{{ secret(name=\"api_key\") }}'
    RANDOM: '{{ random_string(length=8) }}'
    TIME: '{{ now() }}'
health_checks:
  - { name: alive, type: command, config: { command: [check, \"{{ host.name }}\"] } }
";
    let servers = "  - { server: a, place: { count: 2 } }\n  - { server: b }\n";
    let checked = plan_of(servers, &[("a", definition), ("b", definition)]).expect("a plan");
    let mut seen = BTreeSet::new();
    for step in checked.plan().steps() {
        let (id, release) = (&step.instance, step.release.as_ref().expect("a release"));
        assert_eq!(release.run.command, ["serve", "ETC/UTC", "m"]);
        let of = |name: &str| release.run.environment[name].as_str();
        assert_eq!((of("SERVER"), of("HOST")), (id.server.as_str(), id.host.as_str()));
        assert_eq!(of("DATA"), format!("/state/servers/{}/data", id.server));
        // What a release uses is noted in it, also where another had the same text before.
        assert_eq!(release.secrets.keys().collect::<Vec<_>>(), ["api_key", "random.default.8"]);
        let SecretSource::Generated { context, .. } = &release.secrets["random.default.8"].source else { panic!() };
        assert_eq!(*context, format!("test/{}/default", id.server));
        assert!(release.rendered_at.is_some());
        let Probe::Command { command } = &release.health_checks[0].probe else { panic!("{release:?}") };
        assert_eq!(command[1], id.host.as_str());
        seen.insert(id.to_string());
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn variables_that_are_templates_are_rendered_for_each_release() {
    let environment = ENVIRONMENT.replace(
        "{ zone: Etc/UTC }",
        "{ zone: Etc/UTC, token: '{{ random_string(length=8) }}', key: '{{ secret(name=\"api_key\") }}' }",
    );
    let definition = "apiVersion: fleetwright/v1
name: NAME
run: { command: [serve, \"{{ env.zone }}\"], environment: { TOKEN: \"{{ env.token }}\" } }
";
    let environment = environment.replace("rules: { critical_check: true }\n", "");
    let servers = [("a", definition), ("b", definition)];
    let configuration =
        read(&manifest("  - { server: a }\n  - { server: b }\n"), &environment, &servers).expect("readable");
    let checked = plan(&configuration, &circumstances()).expect("a plan");
    for step in checked.plan().steps() {
        let release = step.release.as_ref().expect("a release");
        assert_eq!(masked(&release.run.environment["TOKEN"]), "(secret random.default.8)");
        assert_eq!(release.secrets.keys().collect::<Vec<_>>(), ["api_key", "random.default.8"]);
        let SecretSource::Generated { context, .. } = &release.secrets["random.default.8"].source else { panic!() };
        assert_eq!(*context, format!("test/{}/default", step.instance.server));
    }
}
