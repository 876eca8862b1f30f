//! What every configuration must satisfy, whatever the rules of its environment say.

use std::collections::BTreeSet;

use serde_saphyr::Spanned;

use super::entries::Entries;
use super::placement::percent;
use super::{Configuration, externals, locks, policies};
use crate::config::{Condition, Field, PackageWritten, Problem, RunWritten, SecretWritten, Server, Source};
use crate::plan::Rollout;
use crate::release::{
    ARTIFACT_SCHEME, BRIDGE_TOKEN_CHARACTERS_MIN, BRIDGE_TOKEN_VARIABLE, OWN_SESSIONS_MAX, RestartPolicy,
    RuntimeChoice, Sessions, Transport, endpoint_path_fault, is_artifact, is_npm_name, is_pypi_name, is_secret_name,
};

/// Everything that is wrong and can be said without rendering.
pub(super) fn problems(configuration: &Configuration, entries: &Entries<'_>, rollout: &Rollout) -> Vec<Problem> {
    let (source, manifest) = &configuration.manifest;
    let mut problems = Vec::new();
    secrets(configuration, &mut problems);
    let (own, environment) = &configuration.environment;
    for (name, written) in [("memory", &environment.capacity.memory), ("cpu", &environment.capacity.cpu)] {
        let Some(written) = written else { continue };
        if !percent(&written.value).is_some_and(|part| (1..=10_000).contains(&part)) {
            let own = environment.source_of(own, Field::Capacity, name);
            let problem = Problem::at(own, written, format!("`{}` is not a part of what a host has", written.value));
            problems.push(problem.hint("write for example 90%, or 200% to give away more than there is"));
        }
    }
    let mut paces = manifest.servers.iter().map(|entry| policies::pace(configuration, Some(&entry.rollout), 1));
    if rollout.max_parallel == 0 || paces.any(|pace| pace.max_unavailable == 0) {
        let problem = Problem::in_file(source, "`max_unavailable` and `max_parallel` must be at least 1");
        problems.push(problem.hint("with 0, nothing could ever be deployed"));
    }
    if rollout.retry.attempts == 0 || rollout.retry.kinds.values().any(|attempts| *attempts == 0) {
        let problem = Problem::in_file(source, "`retry.attempts` must be at least 1");
        problems.push(problem.hint("1 means that nothing is tried again"));
    }
    problems.extend(policies::pause_problems(configuration, entries));
    problems.extend(externals::problems(source, manifest, entries));
    let dependencies = entries.iter().flat_map(|entry| &entry.depends_on);
    for dependency in dependencies.filter(|dependency| dependency.value.condition == Condition::Completed) {
        let server = &dependency.value.server;
        let definition = entries.number(server).and_then(|number| entries.defined(number));
        if definition.is_some_and(|(_, definition)| !definition.run.completes) {
            let problem = Problem::at(source, dependency, format!("`{server}` does not end, so it never completes"));
            problems.push(problem.hint(format!("write `run: {{ completes: true }}` in the definition of {server}")));
        }
    }
    for number in 0..entries.len() {
        match entries.definition(number) {
            Ok((source, server)) => self::server(source, server, &mut problems),
            Err(problem) => problems.push(problem),
        }
    }
    for (source, server) in configuration.on_hosts.values() {
        self::server(source, server, &mut problems);
    }
    let is_agent =
        |number: &usize| entries.defined(*number).is_some_and(|(_, server)| server.run.runtime == RuntimeChoice::Agent);
    for another in (0..entries.len()).filter(is_agent).skip(1) {
        problems.push(Problem::at(
            source,
            &entries.entry(another).server,
            "a second server is a version of the agent (`runtime: agent`)",
        ));
    }
    problems
}

/// Artifacts that a plan would need and that nobody has.
pub(super) fn missing_artifacts(configuration: &Configuration, known: &BTreeSet<String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (source, server) in configuration.servers.values() {
        let Some(package) = &server.package else { continue };
        let Some(url) = package.value.archive.as_ref().or(package.value.file.as_ref()) else { continue };
        let sha256 = package.value.sha256.as_ref().map(|hash| hash.value.to_ascii_lowercase()).unwrap_or_default();
        if is_artifact(&url.value) && !known.contains(&sha256) {
            let problem = Problem::at(source, url, "the coordinator has no artifact with this `sha256`");
            problems.push(problem.hint("`fleetwright artifacts push FILE` sends it and prints its digest"));
        }
    }
    problems
}

/// A secret has one source, and nobody has to guess which.
fn secrets(configuration: &Configuration, problems: &mut Vec<Problem>) {
    let (own, environment) = &configuration.environment;
    for (name, written) in &environment.secrets {
        let source = environment.source_of(own, Field::Secret, name);
        let SecretWritten { env, file, age, command, fallback } = &written.value;
        if !is_secret_name(name) {
            let problem = Problem::at(source, written, format!("`{name}` is not the name of a secret"));
            problems.push(problem.hint("letters, digits, `-` and `_`, at most 64: it is also the name of a file"));
        }
        let said =
            [env.is_some(), file.is_some(), age.is_some(), command.is_some()].iter().filter(|said| **said).count();
        if said != 1 {
            let message =
                format!("secret `{name}` has {said} sources, and needs one of `env`, `file`, `age` and `command`");
            let problem = Problem::at(source, written, message);
            problems.push(
                problem.hint("for example `{ env: API_KEY }` or `{ command: [vault, kv, get, -field=key, app] }`"),
            );
        }
        if let Some(fallback) = fallback.as_ref().filter(|_| env.is_none()) {
            problems.push(Problem::at(source, fallback, "a `fallback` belongs to `env`").hint("remove it"));
        }
        if let Some(command) = command.as_ref().filter(|command| command.value.is_empty()) {
            problems.push(Problem::at(source, command, "the command is empty"));
        }
    }
}

fn server(source: &Source, server: &Server, problems: &mut Vec<Problem>) {
    let image = server.package.as_ref().is_some_and(|package| package.value.oci.is_some());
    // Of these, the agent finds out which programs they have.
    let has_programs = server.package.as_ref().is_some_and(|package| {
        let package = &package.value;
        package.pypi.is_some() || package.npm.is_some() || package.file.is_some()
    });
    if server.run.command.is_empty() && !image && !has_programs && server.run.runtime != RuntimeChoice::Agent {
        let problem = Problem::at(source, &server.name, "there is no `run.command`");
        problems.push(problem.hint("only packages of `pypi`, `npm`, `file` and `oci` say themselves what is started"));
    }
    if let Some(container) = server.container.as_ref().filter(|_| !image) {
        let problem = Problem::at(source, container, "`container` is for packages that are images");
        problems.push(problem.hint("write `package: { oci: IMAGE, digest: 'sha256:…', version: … }`"));
    }
    if server.run.completes && (server.run.transport != Transport::None || server.run.restart != RestartPolicy::Always)
    {
        let problem = Problem::at(source, &server.name, "what completes has no `transport` and no `restart`");
        problems.push(problem.hint("it is started once, and must end with exit status 0"));
    }
    if server.run.transport != Transport::None && server.run.port.is_none() {
        let problem = Problem::at(source, &server.name, "an MCP server needs a `port`");
        problems.push(problem.hint("give `run.port`: the TCP port of its streamable HTTP endpoint"));
    }
    bridge(source, server, problems);
    if let Some(tasks) = server.resources.tasks.as_ref().filter(|tasks| tasks.value == 0) {
        problems.push(Problem::at(source, tasks, "`tasks` is 0: nothing could run"));
    }
    let mut names = BTreeSet::new();
    for check in &server.checks {
        if !names.insert(check.value.name.as_str()) {
            problems.push(Problem::at(source, check, format!("two checks are called `{}`", check.value.name)));
        }
    }
    endpoint(source, server, problems);
    agent(source, server, problems);
    package(source, server, problems);
}

/// Where clients find a server is something that they can ask for.
fn endpoint(source: &Source, server: &Server, problems: &mut Vec<Problem>) {
    if let Some(port) = server.run.port.as_ref().filter(|port| port.value == 0) {
        let problem = Problem::at(source, port, "`run.port` is 0, and is from 1 to 65535");
        problems.push(problem.hint("clients need one port that stays the same: choose one that is free on its hosts"));
    }
    let Some(path) = &server.run.path else { return };
    // A server that speaks HTTP itself may want to be asked with a query.
    let fault = match path.value.split_once('?') {
        Some((before, query)) if server.run.transport == Transport::Http => {
            endpoint_path_fault(before).or_else(|| endpoint_path_fault(&format!("/{}", query.replace('?', ""))))
        }
        Some(_) | None => endpoint_path_fault(&path.value),
    };
    if let Some(why) = fault {
        let problem = Problem::at(source, path, format!("`run.path`: `{}` {why}", path.value));
        problems.push(problem.hint("write the path of its MCP endpoint, such as /mcp"));
    }
}

/// What is told to a bridge needs one, and only sessions of their own are counted.
fn bridge(source: &Source, server: &Server, problems: &mut Vec<Problem>) {
    let RunWritten { transport, sessions, sessions_max, hosts, origins, .. } = &server.run;
    if *transport != Transport::Stdio {
        let at =
            |field: &str, place: Problem| Problem { message: format!("`run.{field}` is told to a bridge"), ..place };
        let said = [
            sessions.as_ref().map(|place| at("sessions", Problem::at(source, place, ""))),
            sessions_max.as_ref().map(|place| at("sessions_max", Problem::at(source, place, ""))),
            hosts.first().map(|place| at("hosts", Problem::at(source, place, ""))),
            origins.first().map(|place| at("origins", Problem::at(source, place, ""))),
        ];
        let hint = match transport {
            Transport::Http => "this server speaks HTTP itself (`transport: http`): give it its own settings for that",
            Transport::Stdio | Transport::None => "only servers of `transport: stdio` have one: leave it out",
        };
        problems.extend(said.into_iter().flatten().map(|problem| problem.hint(hint)));
        return;
    }
    // What a template becomes is known later.
    let token = server.run.environment.get(BRIDGE_TOKEN_VARIABLE).filter(|token| !token.value.contains("{{"));
    if let Some(token) = token.filter(|token| token.value.chars().count() < BRIDGE_TOKEN_CHARACTERS_MIN) {
        let message = format!(
            "`{BRIDGE_TOKEN_VARIABLE}` has fewer than {BRIDGE_TOKEN_CHARACTERS_MIN} characters: it could be guessed"
        );
        problems.push(
            Problem::at(source, token, message).hint("let it be a secret: '{{ secret(name=\"bridge_token\") }}'"),
        );
    }
    let Some(most) = sessions_max else { return };
    if sessions.as_ref().is_none_or(|sessions| sessions.value != Sessions::Own) {
        let problem = Problem::at(source, most, "`run.sessions_max` counts sessions that have a process of their own");
        problems.push(problem.hint("write `sessions: own`, or leave it out: shared sessions have one process"));
    } else if !(1..=OWN_SESSIONS_MAX).contains(&most.value) {
        let message = format!("`run.sessions_max` is {}, and is from 1 to {OWN_SESSIONS_MAX}", most.value);
        let problem = Problem::at(source, most, message);
        problems.push(problem.hint("each session has a process of its own, within the memory of `resources.memory`"));
    }
}

/// A new version of the agent is one program, and has nothing that other servers have.
fn agent(source: &Source, server: &Server, problems: &mut Vec<Problem>) {
    if server.run.runtime != RuntimeChoice::Agent {
        return;
    }
    let package = server.package.as_ref().map(|package| &package.value);
    if !package.is_some_and(|package| package.archive.is_some() || package.file.is_some()) {
        let problem = Problem::at(source, &server.name, "a new version of the agent is an `archive` or a `file`");
        problems.push(problem.hint("write for example `package: { file: dist/fleetwright-agent, version: 0.2.0 }`"));
    }
    let run = &server.run;
    if !run.command.is_empty() || run.port.is_some() || run.transport != Transport::None || !run.environment.is_empty()
    {
        let problem = Problem::at(source, &server.name, "a new version of the agent runs as the one before it did");
        problems.push(problem.hint("leave everything but `runtime: agent` out of `run`"));
    }
}

/// What is fetched by its URL must have a digest: a URL alone says nothing about what comes.
fn fetched(source: &Source, package: &Spanned<PackageWritten>, problems: &mut Vec<Problem>) {
    let written = &package.value;
    let Some(url) = written.archive.as_ref().or(written.file.as_ref()) else {
        if let Some(hash) = &written.sha256 {
            problems.push(Problem::at(source, hash, "`sha256` belongs to `archive` and `file`"));
        }
        return;
    };
    let schemes = ["https://", "http://", "file:///", ARTIFACT_SCHEME];
    let authority =
        url.value.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or(rest));
    if authority.contains('@') {
        let problem =
            Problem::at(source, url, "a URL with a user or a password is shown to many: in plans, journals and logs");
        problems.push(
            problem.hint(
                "push the file to the coordinator, `fleetwright artifacts push`, or have it beside the definition",
            ),
        );
        return;
    }
    let fits = schemes.iter().any(|scheme| url.value.starts_with(scheme));
    let name = url.value.rsplit(['/', ':']).next().unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-+_".contains(&b);
    if !fits || name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        let problem = Problem::at(source, url, format!("`{}` is not the URL of a file", url.value));
        problems.push(problem.hint(
            "write https://, http://, file:/// or artifact:, and end it with the file's name; or the path of a file beside the definition",
        ));
    }
    match &written.sha256 {
        None => {
            let problem = Problem::at(source, url, "what is fetched by its URL needs a `sha256`");
            problems.push(problem.hint("`sha256sum FILE` prints it"));
        }
        Some(hash) if hash.value.len() != 64 || !hash.value.bytes().all(|b| b.is_ascii_hexdigit()) => {
            problems.push(Problem::at(source, hash, "`sha256` is 64 hexadecimal digits"));
        }
        Some(_) => {}
    }
}

/// A tag may mean another image tomorrow: a digest may not.
fn image(source: &Source, package: &Spanned<PackageWritten>, problems: &mut Vec<Problem>) {
    let written = &package.value;
    let Some(image) = &written.oci else {
        if let Some(digest) = &written.digest {
            problems.push(Problem::at(source, digest, "`digest` belongs to `oci`"));
        }
        return;
    };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/:".contains(&b);
    let name = image.value.rsplit('/').next().unwrap_or_default();
    if name.is_empty()
        || name.contains(':')
        || image.value.starts_with(['/', '-', '.'])
        || !image.value.bytes().all(plain)
    {
        let problem = Problem::at(source, image, format!("`{}` is not the name of an image", image.value));
        problems.push(problem.hint("write it in lower case without tag and digest, such as ghcr.io/example/server"));
    }
    let is_digest = |digest: &str| {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    match &written.digest {
        None => {
            let problem = Problem::at(source, image, "an image needs a `digest`: a tag may mean another one tomorrow");
            problems.push(
                problem.hint("`docker buildx imagetools inspect IMAGE:TAG` prints it, and so does `docker pull`"),
            );
        }
        Some(digest) if !is_digest(&digest.value) => {
            let problem = Problem::at(source, digest, format!("`{}` is not a digest", digest.value));
            problems.push(problem.hint("write sha256: and 64 hexadecimal digits in lower case"));
        }
        Some(_) => {}
    }
}

fn package(source: &Source, server: &Server, problems: &mut Vec<Problem>) {
    let Some(package) = &server.package else { return };
    let written = &package.value;
    if written.kind().is_none() {
        let problem = Problem::at(source, package, "a package is one of `pypi`, `npm`, `archive`, `file` and `oci`");
        problems.push(problem.hint("for example `package: { pypi: mcp-server-time, version: 2026.10.19 }`"));
        return;
    }
    fetched(source, package, problems);
    image(source, package, problems);
    problems.extend(locks::check(source, server));
    named(source, package, problems);
    let version = &package.value.version;
    let exact = |b: u8| b.is_ascii_alphanumeric() || b".-+!_".contains(&b);
    if version.value.is_empty() || !version.value.bytes().all(exact) || version.value == "latest" {
        let problem = Problem::at(source, version, format!("`{}` is not an exact version", version.value));
        problems.push(problem.hint("pin one version, without ranges or wildcards"));
    }
    if package.value.build && package.value.pypi.is_none() {
        let problem = Problem::at(source, package, "`build` is for packages from PyPI, which may come as source only");
        problems.push(problem.hint("leave it out: scripts of npm packages never run, and nothing else is built"));
    }
    for extra in &package.value.with {
        let pinned =
            extra.value.split_once("==").is_some_and(|(name, version)| !name.is_empty() && version.bytes().all(exact));
        if !pinned || extra.value.starts_with('-') {
            problems.push(
                Problem::at(source, extra, format!("`{}` is not pinned", extra.value)).hint("write NAME==VERSION"),
            );
        }
    }
}

/// A name is one that its registry can have; anything else would be told as what it has not.
fn named(source: &Source, package: &Spanned<PackageWritten>, problems: &mut Vec<Problem>) {
    let written = &package.value;
    let (name, fits, hint) = match (&written.pypi, &written.npm) {
        (Some(name), _) => {
            (name, is_pypi_with_extras(name), "write its name as PyPI has it: mcp-server-time, or mcp[cli]")
        }
        (None, Some(name)) => (name, is_npm_name(name), "write its name as npm has it: time-mcp, or @scope/time-mcp"),
        (None, None) => return,
    };
    if !fits {
        problems.push(Problem::at(source, package, format!("`{name}` is not the name of a package")).hint(hint));
    }
}

/// The name of a distribution, with extras or without.
fn is_pypi_with_extras(text: &str) -> bool {
    match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
        Some((name, extras)) => is_pypi_name(name) && extras.split(',').all(|extra| is_pypi_name(extra.trim())),
        None => is_pypi_name(text),
    }
}
