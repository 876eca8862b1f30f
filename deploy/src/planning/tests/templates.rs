//! What templates give, and what they refuse.

use super::*;

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
