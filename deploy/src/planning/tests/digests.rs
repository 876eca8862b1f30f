//! Releases that versions before have planned hold digests that no host can check.

use super::*;

fn with_secrets() -> Configuration {
    let server = format!(
        "{SERVER}files:\n  - path: key\n    content: 'key={{{{ secret(name=\"api_key\") }}}} {{{{ random_string(length=32) }}}}'\n"
    );
    read(&manifest("  - { server: a }\n"), ENVIRONMENT, &[("a", &server)]).expect("readable")
}

/// What a newer coordinator says about the same values.
fn newer(mut circumstances: Circumstances, plan: &Plan) -> Circumstances {
    circumstances.older_digests = circumstances.secret_digests.take().expect("digests");
    let sources = secrets_of(plan.steps());
    let digests = sources
        .values()
        .zip("abcdef".chars())
        .map(|(source, digit)| (secret_key(source), digit.to_string().repeat(64)));
    circumstances.secret_digests = Some(digests.collect());
    circumstances
}

#[test]
fn what_runs_is_not_changed_by_another_kind_of_digest_but_what_changes_gets_the_new_kind() {
    let configuration = with_secrets();
    let first = plan(&configuration, &circumstances()).expect("a plan");
    assert_eq!(secrets_of(first.plan().steps()).len(), 2, "one that was declared, one that is generated");
    let runs = newer(deployed(first.plan(), circumstances()), first.plan());
    let same = plan(&configuration, &runs).expect("a plan");
    assert_eq!(same.plan().summary().changes(), 0);

    let mut rotated = runs.clone();
    rotated.older_digests.values_mut().for_each(|digest| "another".clone_into(digest));
    let mut in_trouble = runs;
    in_trouble.present.values_mut().for_each(|present| present.in_trouble = true);
    for circumstances in [rotated, in_trouble] {
        let anew = plan(&configuration, &circumstances).expect("a plan");
        assert_eq!(anew.plan().summary().update, 1);
        let release = anew.plan().steps().next().and_then(|step| step.release.clone()).expect("a release");
        assert!(release.secrets.values().all(crate::release::SecretUse::is_bound), "{:?}", release.secrets);
    }
}

#[test]
fn going_back_to_an_older_release_gives_it_digests_that_its_host_can_check() {
    let configuration = with_secrets();
    let first = plan(&configuration, &circumstances()).expect("a plan");
    let now = newer(circumstances(), first.plan());
    let server = "a".parse().expect("name");
    let bound = |circumstances: &Circumstances| {
        let back = go_back(first.plan(), &server, circumstances);
        let release = back.plan().steps().next().and_then(|step| step.release.clone()).expect("a release");
        release.secrets.values().filter(|secret| secret.is_bound()).count()
    };
    assert_eq!(bound(&now), 2);
    let mut rotated = now;
    rotated.older_digests.values_mut().for_each(|digest| "another".clone_into(digest));
    assert_eq!(bound(&rotated), 1, "a value that has changed since is not the one of then");
}
