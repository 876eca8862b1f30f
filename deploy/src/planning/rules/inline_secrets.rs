//! Values that look like secrets and are written where everybody who reads the definition sees them.

use std::sync::LazyLock;

use regex::Regex;
use serde_saphyr::Spanned;

use crate::config::{Environment, Field, Problem, Server, Source};

/// Names of what holds a secret, and endings of those that only say where one is.
static NAME: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)passw(or)?d|passphrase|secret|token|api_?key|private_?key|credential").ok());
const ONLY_WHERE: [&str; 6] = ["_file", "_path", "_dir", "_name", "_url", "_id"];

/// What the values of secrets look like, whatever they are called: private keys, and the keys and tokens of services
/// whose beginnings are known; and passwords in URLs.
static VALUE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[oprsu]_[A-Za-z0-9]{36}|\bgithub_pat_[A-Za-z0-9_]{22}|\bglpat-[A-Za-z0-9_-]{20}|\bxox[abeoprs]-[A-Za-z0-9-]{10}|\bsk-[A-Za-z0-9_-]{20}|\bAIza[A-Za-z0-9_-]{35}|\bAGE-SECRET-KEY-1[A-Z0-9]{20}|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.|://[^/\s:@{}]+:[^/\s@{}]+@",
    )
    .ok()
});

const HINT: &str = "declare it under `secrets:` of the environment, and write '{{ secret(name=\"…\") }}'";

/// What a definition says for everybody to read.
pub(super) fn of_server(source: &Source, server: &Server) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, value) in &server.run.environment {
        problems.extend(in_value(source, name, value));
    }
    let texts = server.run.command.iter().chain(server.files.iter().map(|file| &file.content));
    problems.extend(texts.filter_map(|text| in_text(source, text)));
    for check in &server.checks {
        let headers = check.value.config.get("headers").and_then(|headers| headers.as_object());
        for (name, value) in headers.into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            let bears = name.eq_ignore_ascii_case("authorization") || is_secret_name(name);
            if (bears && !value.is_empty() && !value.contains("{{")) || looks_secret(value) {
                problems.push(found(source, check, &format!("the header {name} of check `{}`", check.value.name)));
            }
        }
    }
    problems
}

/// What an environment says for everybody to read.
pub(super) fn of_environment(own: &Source, environment: &Environment) -> Vec<Problem> {
    let found = environment
        .variables
        .iter()
        .filter_map(|(name, value)| in_value(environment.source_of(own, Field::Variable, name), name, value));
    found.collect()
}

fn in_value(source: &Source, name: &str, written: &Spanned<String>) -> Option<Problem> {
    let value = written.value.trim();
    let named = is_secret_name(name) && !value.is_empty() && !value.contains("{{");
    (named || looks_secret(value)).then(|| found(source, written, &format!("`{name}`")))
}

fn in_text(source: &Source, written: &Spanned<String>) -> Option<Problem> {
    looks_secret(&written.value).then(|| found(source, written, "this text"))
}

/// The value itself is in no message.
fn found<T>(source: &Source, written: &Spanned<T>, what: &str) -> Problem {
    let problem = Problem::at(source, written, format!("{what} looks like a secret that is written down here"));
    problem.without_excerpt().hint(HINT)
}

fn is_secret_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !ONLY_WHERE.iter().any(|ending| lower.ends_with(ending)) && NAME.as_ref().is_some_and(|names| names.is_match(name))
}

fn looks_secret(value: &str) -> bool {
    VALUE.as_ref().is_some_and(|values| values.is_match(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_of_secrets_are_told_from_others() {
        for name in ["DB_PASSWORD", "apiKey", "API_KEY", "GITHUB_TOKEN", "client-secret"] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["TOKEN_FILE", "PORT", "SECRET_NAME", "TOKEN_URL", "MONKEY"] {
            assert!(!is_secret_name(name), "{name}");
        }
        let examples = [
            "-----BEGIN EC PRIVATE KEY-----\nMHc",
            "AKIAIOSFODNN7EXAMPLE",
            "postgres://app:hunter2@db/app",
            "see xoxb-1234567890-abc",
        ];
        for value in examples {
            assert!(looks_secret(value), "{value}");
        }
        for value in ["postgres://db/app", "postgres://{{ env.user }}:{{ x }}@db", "https://a/b:c@d", "skip-everything"]
        {
            assert!(!looks_secret(value), "{value}");
        }
    }
}
