//! Rendering: from a server's definition to its release on one host.

mod bridge;
mod checks;
mod context;
mod package;
mod template;

pub(super) use self::checks::config_schemas;
use self::context::Subject;
use self::package::package;
pub(super) use self::template::Templates;

use std::collections::BTreeMap;

use serde_saphyr::Spanned;

use super::digests::as_it_runs;
use super::steps::Location;
use super::{Circumstances, GENERATED_DIGEST, Planning, Warnings, secret_key};
use crate::config::{
    ContainerWritten, Field, Problem, Problems, ResourcesWritten, Server, Source, WrittenFile, WrittenToolCall,
};
use crate::host::{HostView, bytes};
use crate::ids::InstanceId;
use crate::release::{
    ConfigFile, Container, Database, Endpoint, MARKER_END, Release, Resources, RestartPolicy, Run, SecretSource,
    ToolCall, Transport, Volume, has_marker, masked,
};
use crate::time::{Length, Timestamp};

/// How long a server has to end, unless its definition says otherwise.
const STOP_TIMEOUT: Length = Length::from_secs(10);
/// Where an MCP endpoint is, unless its definition says otherwise.
const MCP_PATH: &str = "/mcp";
/// The permission bits of a file, unless its definition says otherwise: it may hold a secret.
const FILE_MODE: u32 = 0o600;

/// The release of an instance. Where only the time would differ from what runs, it keeps its old time.
pub(super) fn release<'a>(
    planning: Planning<'a>,
    location: Location<'a>,
    id: &InstanceId,
    templates: &mut Templates<'a>,
    warnings: &mut Warnings,
) -> Result<Box<Release>, Problems> {
    let present = planning.circumstances.present.get(id);
    if let Some((present, then)) = present.and_then(|p| Some((p, p.release.rendered_at?))) {
        let same = build(planning, location, id, then, templates, &mut Warnings::default())?;
        let same = as_it_runs(same, Some(present), planning.circumstances);
        if same.id() == present.release_id {
            return Ok(same);
        }
    }
    let made = build(planning, location, id, planning.circumstances.now, templates, warnings)?;
    Ok(as_it_runs(made, present, planning.circumstances))
}

fn build<'a>(
    planning: Planning<'a>,
    location: Location<'a>,
    id: &InstanceId,
    now: Timestamp,
    templates: &mut Templates<'a>,
    warnings: &mut Warnings,
) -> Result<Box<Release>, Problems> {
    let Planning { configuration, circumstances, entries } = planning;
    let Location { entry, host, view, .. } = location;
    let (environment_source, environment) = &configuration.environment;
    let own = configuration.on_hosts.get(id);
    let (source, server) = own.map_or_else(|| entries.definition(entry), Ok)?;
    let manifest = &configuration.manifest.1.name.value;
    templates.begin(environment_source, Subject { manifest, environment, server, host, view }, now)?;
    let mut release = rendered(source, server, view, templates)?;
    release.rendered_at = templates.clock_was_read().then_some(now);
    for (name, mut secret) in templates.take_secrets_used() {
        let declared = secret.declared_name(&name);
        let source = environment.source_of(environment_source, Field::Secret, declared);
        secret.digest = secret_digest(circumstances, source, declared, &secret.source, warnings)?;
        release.secrets.insert(name, secret);
    }
    Ok(release)
}

/// A secret without a value stops a plan that is to be executed; a plan made without values only says so.
fn secret_digest(
    circumstances: &Circumstances,
    source: &Source,
    name: &str,
    secret: &SecretSource,
    warnings: &mut Warnings,
) -> Result<Option<String>, Problems> {
    if matches!(secret, SecretSource::Generated { .. }) {
        let known = circumstances.secret_digests.as_ref().and_then(|digests| digests.get(&secret_key(secret)));
        return Ok(Some(known.cloned().unwrap_or_else(|| GENERATED_DIGEST.to_owned())));
    }
    match &circumstances.secret_digests {
        None => {
            let warning = format!("secret `{name}` was not looked up: this plan is made without a coordinator");
            warnings.add(warning);
            Ok(None)
        }
        Some(digests) => match digests.get(&secret_key(secret)) {
            Some(digest) => Ok(Some(digest.clone())),
            None => {
                let problem = Problem::in_file(source, format!("secret `{name}` has no value"));
                Err(problem.hint(secret.remedy(name)).into())
            }
        },
    }
}

/// A command with its arguments rendered. Everybody on the host can see the list of processes.
fn command(source: &Source, written: &[Spanned<String>], templates: &Templates<'_>) -> Result<Vec<String>, Problems> {
    let mut command = Vec::with_capacity(written.len());
    for argument in written {
        let text = templates.render(source, argument)?;
        if has_marker(&text) {
            let problem =
                Problem::at(source, argument, "a secret in the command would be seen in the list of processes");
            return Err(problem.hint("hand it over in `run.environment` or in a file").into());
        }
        command.push(text);
    }
    Ok(command)
}

/// Absolute paths of a host, rendered.
fn paths(source: &Source, written: &[Spanned<String>], templates: &Templates<'_>) -> Result<Vec<String>, Problems> {
    let mut paths = Vec::with_capacity(written.len());
    for path in written {
        let text = templates.render(source, path)?;
        let plain = |part: &str| part != ".." && part != "." && !part.contains(['\0', '\n', MARKER_END]);
        if !text.starts_with('/') || text.len() < 2 || !text.split('/').all(plain) {
            let problem = Problem::at(source, path, format!("`{text}` is not an absolute path of a file or folder"));
            return Err(problem.hint("write it from the root, without `..`").into());
        }
        paths.push(text.trim_end_matches('/').to_owned());
    }
    Ok(paths)
}

fn resources(source: &Source, written: &ResourcesWritten) -> Result<Resources, Problems> {
    let amount = |written: &Option<Spanned<String>>| {
        let read =
            |amount: &Spanned<String>| bytes(&amount.value).map_err(|message| Problem::at(source, amount, message));
        written.as_ref().map(read).transpose()
    };
    let (memory_bytes, disk_bytes) = (amount(&written.memory)?, amount(&written.disk)?);
    let cpu_percent = match &written.cpu {
        None => None,
        Some(cpu) => match cpu.value.strip_suffix('%').and_then(|number| number.trim().parse::<u32>().ok()) {
            Some(percent) if (1..=100_000).contains(&percent) => Some(percent),
            Some(_) | None => {
                let problem = Problem::at(source, cpu, format!("`{}` is not a part of a processor", cpu.value));
                return Err(problem.hint("write for example 50% or 200%; 100% is one processor").into());
            }
        },
    };
    Ok(Resources { memory_bytes, cpu_percent, tasks: written.tasks.as_ref().map(|tasks| tasks.value), disk_bytes })
}

fn is_image(server: &Server) -> bool {
    server.package.as_ref().is_some_and(|package| package.value.oci.is_some())
}

fn user(source: &Source, written: &Spanned<String>, of_image: bool) -> Result<String, Problems> {
    let user = &written.value;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if of_image {
        let mut parts = user.splitn(2, ':');
        if parts.all(|part| !part.is_empty() && part.bytes().all(plain)) {
            return Ok(user.clone());
        }
        let problem = Problem::at(source, written, format!("`{user}` is not a user of an image"));
        return Err(problem.hint("write a user or USER:GROUP, as names or numbers, such as \"1000:1000\"").into());
    }
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if user.is_empty() || user.len() > 31 || !user.bytes().all(fits) || user.starts_with(|c: char| c.is_ascii_digit()) {
        let problem = Problem::at(source, written, format!("`{user}` is not the name of a user"));
        return Err(problem
            .hint("lower-case letters, digits, `-` and `_`, at most 31, not beginning with a digit")
            .into());
    }
    Ok(user.clone())
}

fn rendered(
    source: &Source,
    server: &Server,
    host: &HostView,
    templates: &Templates<'_>,
) -> Result<Box<Release>, Problems> {
    let written = &server.run;
    let mut environment = BTreeMap::new();
    for (name, value) in &written.environment {
        environment.insert(name.clone(), templates.render(source, value)?);
    }
    let endpoint = written.port.as_ref().map(|port| Endpoint {
        address: host.address.clone(),
        port: port.value,
        path: written.path.as_ref().map_or_else(|| MCP_PATH.to_owned(), |path| path.value.clone()),
    });
    let mut release = Box::new(Release {
        server: server.name.value.clone(),
        package: package(source, server, templates)?,
        requires: server.requires.clone(),
        run: Run {
            command: command(source, &written.command, templates)?,
            environment,
            transport: written.transport,
            endpoint,
            restart: if written.completes { RestartPolicy::Never } else { written.restart },
            completes: written.completes,
            stop_timeout: written.stop_timeout.unwrap_or(STOP_TIMEOUT),
            runtime: written.runtime,
            user: match &written.user {
                None => None,
                Some(written) => Some(user(source, written, is_image(server))?),
            },
            writable: paths(source, &written.writable, templates)?,
            resources: resources(source, &server.resources)?,
            bridge: bridge::rendered(source, written, templates)?,
        },
        container: match &server.container {
            None => Container::default(),
            Some(written) => container(source, &written.value, templates)?,
        },
        files: Vec::with_capacity(server.files.len()),
        health_checks: Vec::with_capacity(server.checks.len()),
        tool_calls: Vec::with_capacity(server.integration_tests.len()),
        snapshot_data: server.snapshot.data,
        snapshot_paths: paths(source, &server.snapshot.paths, templates)?,
        database: match &server.snapshot.database {
            None => None,
            Some(database) => Some(Database {
                dump: command(source, &database.dump.value, templates)?,
                restore: command(source, &database.restore.value, templates)?,
            }),
        },
        irreversible: server.irreversible.as_ref().map(|why| why.value.clone()),
        secrets: BTreeMap::new(),
        rendered_at: None,
    });
    for file in &server.files {
        release.files.push(config_file(source, file, templates)?);
    }
    for check in &server.checks {
        release.health_checks.push(checks::rendered(source, check, &release.run, templates)?);
    }
    for WrittenToolCall { tool, arguments, contains, json } in &server.integration_tests {
        checks::check_paths(json)
            .map_err(|why| Problem::at(source, &server.name, format!("`integration_tests`: {why}")))?;
        release.tool_calls.push(ToolCall {
            tool: tool.clone(),
            arguments: arguments.clone(),
            contains: contains.clone(),
            json: json.clone(),
        });
    }
    if release.run.transport == Transport::None && !release.tool_calls.is_empty() {
        return Err(Problem::at(
            source,
            &server.name,
            "`integration_tests` call MCP tools, but the transport is `none`",
        )
        .into());
    }
    Ok(release)
}

fn container(source: &Source, written: &ContainerWritten, templates: &Templates<'_>) -> Result<Container, Problems> {
    let mut volumes = Vec::with_capacity(written.volumes.len());
    for volume in &written.volumes {
        volumes.push(self::volume(source, volume, templates)?);
    }
    let plain = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    if let Some(network) = written.network.as_ref().filter(|network| !plain(&network.value)) {
        let problem = Problem::at(source, network, format!("`{}` is not the name of a network", network.value));
        return Err(problem.hint("letters, digits, `.`, `_` and `-`; or one of bridge, host, none").into());
    }
    let capability = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    if let Some(wrong) = written.capabilities.iter().find(|written| !capability(&written.value)) {
        let problem = Problem::at(source, wrong, format!("`{}` is not a capability", wrong.value));
        return Err(problem.hint("write it as in capabilities(7) without CAP_, such as NET_BIND_SERVICE").into());
    }
    Ok(Container {
        port: written.port,
        network: written.network.as_ref().map(|network| network.value.clone()),
        volumes,
        capabilities: written.capabilities.iter().map(|written| written.value.clone()).collect(),
        read_only: written.read_only,
    })
}

fn volume(source: &Source, written: &Spanned<String>, templates: &Templates<'_>) -> Result<Volume, Problems> {
    let text = templates.render(source, written)?;
    let (rest, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text.as_str(), false),
    };
    let is_path = |path: &str| path.starts_with('/') && path.split('/').all(|part| part != "..");
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    match rest.split_once(':') {
        Some((from, to))
            if (is_path(from) || is_name(from)) && is_path(to) && !to.contains(':') && !has_marker(rest) =>
        {
            Ok(Volume { source: from.to_owned(), target: to.to_owned(), read_only })
        }
        Some(_) | None => {
            let problem = Problem::at(source, written, format!("`{}` is not a volume", masked(&text)));
            Err(problem
                .hint("write SOURCE:TARGET or SOURCE:TARGET:ro, both absolute paths; SOURCE may be a name")
                .into())
        }
    }
}

fn config_file(source: &Source, file: &WrittenFile, templates: &Templates<'_>) -> Result<ConfigFile, Problems> {
    let path = &file.path.value;
    let component = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\0', '\n']);
    if !path.split('/').all(component) {
        let problem =
            Problem::at(source, &file.path, format!("`{path}` is not a path below the release's config folder"));
        return Err(problem.hint("write a relative path without `..`").into());
    }
    let mode = match &file.mode {
        None => FILE_MODE,
        Some(written) => match u32::from_str_radix(written.value.trim_start_matches("0o"), 8) {
            Ok(mode) if mode <= 0o777 => mode,
            Ok(_) | Err(_) => {
                let problem = Problem::at(source, written, format!("`{}` is not a file mode", written.value));
                return Err(problem.hint("write permission bits in octal, such as \"0640\"").into());
            }
        },
    };
    Ok(ConfigFile { path: path.clone(), content: templates.render(source, &file.content)?, mode })
}
