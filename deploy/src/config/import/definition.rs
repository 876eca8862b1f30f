//! Writing the definition of one package.

use std::collections::{BTreeMap, btree_map};
use std::fmt::Write as _;

use super::answers::{Answers, described, plain, remark};
use super::container::{self, Container};
use super::entry::{Entry, EntryPackage, Input};
use super::program::{self, Program};
use super::words::{Part, Words, one_line, parts};
use super::{Found, ImportError, Imported, naming, runtime};
use crate::config::text::quoted;
use crate::ids::ServerName;
use crate::release::endpoint_path_fault;
use crate::stateful::kept_for_its_client;

/// The transports that an entry can have.
const TRANSPORTS: [&str; 3] = ["stdio", "streamable-http", "sse"];
/// The port of an endpoint, unless somebody says another.
const PORT: u16 = 8800;
/// Longest name of an environment variable, in bytes.
const VARIABLE_BYTES_MAX: usize = 256;

/// What is known besides the package itself.
pub(super) struct Given<'a> {
    pub(super) entry: &'a Entry,
    /// Which of its packages.
    pub(super) at: usize,
    pub(super) name: &'a ServerName,
    pub(super) port: Option<u16>,
    pub(super) digest: Option<&'a str>,
    pub(super) found: &'a Found,
}

/// What is written, part by part.
struct Draft {
    package: String,
    requires: Vec<&'static str>,
    command: Vec<Words>,
    /// What is said above the command, since it was guessed.
    check: Option<String>,
    container: Container,
    port: u16,
    path: Option<String>,
    environment: BTreeMap<String, Words>,
    /// What is said beside a variable.
    remarks: BTreeMap<String, String>,
    /// What may be set and is not, as comments.
    open: Vec<String>,
    headers: BTreeMap<String, Words>,
    /// Whether each session has a process of its own.
    own_sessions: bool,
}

pub(super) fn write(given: &Given<'_>) -> Result<Imported, ImportError> {
    let package = &given.entry.packages[given.at];
    let place = format!("packages[{}]", given.at);
    let listens = package.transport.r#type != "stdio";
    let mut answers = Answers::new(given.name.as_str(), listens);
    let version = package.version.clone().unwrap_or_else(|| given.entry.version.clone());
    if !TRANSPORTS.contains(&package.transport.r#type.as_str()) {
        let message = format!("`{}` is no transport of MCP", one_line(&package.transport.r#type));
        let hint = "it is stdio or streamable-http; what its server speaks, its documentation says";
        return Err(ImportError::at(&format!("{place}.transport.type"), message).hint(hint));
    }
    if package.transport.r#type == "sse" {
        let message = "it speaks HTTP with SSE, the transport of 2024-11-05, which clients of today do not speak";
        return Err(ImportError::at(&format!("{place}.transport"), message.to_owned()).hint(
            "see whether the server also speaks stdio or streamable HTTP: most do with another argument, and then the entry's \
             `transport` says so",
        ));
    }
    let (url_port, path) = listening(package, &place, &mut answers);
    let mut draft = Draft {
        package: String::new(),
        requires: Vec::new(),
        command: Vec::new(),
        check: None,
        container: Container::default(),
        port: PORT,
        path,
        environment: BTreeMap::new(),
        remarks: BTreeMap::new(),
        open: Vec::new(),
        headers: BTreeMap::new(),
        own_sessions: false,
    };
    let is_image = package.registry_type == "oci";
    if is_image && listens {
        inside(package, url_port, &mut answers);
    }
    let tokens = answers.arguments(&package.runtime_arguments, &format!("{place}.runtimeArguments"), is_image)?;
    if is_image {
        draft.package = image(given, package, &version, &place)?;
        draft.container = container::read(tokens, &package.identifier, &mut answers)?;
        draft.command.append(&mut draft.container.arguments);
    } else {
        let hint = package.runtime_hint.as_deref().unwrap_or(match package.registry_type.as_str() {
            "npm" => "npx",
            "pypi" => "uvx",
            _ => "",
        });
        let said = runtime::read(tokens, hint, (&package.identifier, &version), &mut answers)?;
        let Program { package, requires, command, check, environment } =
            program::of(given, package, &version, said, &place, &mut answers)?;
        (draft.package, draft.requires, draft.command, draft.check) = (package, requires, command, check);
        draft.environment = environment;
    }
    let arguments = answers.arguments(&package.package_arguments, &format!("{place}.packageArguments"), false)?;
    draft.command.extend(arguments.into_iter().map(|token| token.words));
    environment(package, &place, &mut draft, &mut answers)?;
    headers(&package.transport.headers, &format!("{place}.transport.headers"), &mut draft, &mut answers)?;
    endpoint(given, url_port, is_image, &mut draft, &mut answers);
    if !answers.listens
        && let Some(keeps) = kept_for_its_client(&package.identifier)
    {
        draft.own_sessions = true;
        answers.notes.push(format!(
            "it keeps {keeps} for its client, so each session has a process of its own (`run.sessions: own`): see that \
             `resources.memory` is enough for `run.sessions_max` of them, or write `shared`"
        ));
    }
    others(given, &mut answers);
    let text = text(given, &draft, &answers);
    let asked = |secret: bool| {
        let of_kind = answers.asked.iter().filter(|(_, asked)| asked.secret == secret);
        of_kind.map(|(name, _)| name.clone()).collect()
    };
    let (variables, secrets) = (asked(false), asked(true));
    Ok(Imported { name: given.name.clone(), text, notes: answers.notes, variables, secrets })
}

/// What the URL of the transport says of where the server listens: its port, and the path of its endpoint.
fn listening(package: &EntryPackage, place: &str, answers: &mut Answers) -> (Option<u16>, Option<String>) {
    let url = package.transport.url.as_deref().filter(|_| answers.listens);
    let Some((_, rest)) = url.and_then(|url| url.split_once("://")) else { return (None, None) };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let named = |text: &str| match parts(text).as_slice() {
        [Part::Text(""), Part::Name(name), Part::Text("")] => Some(naming::upper(name)),
        _ => None,
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    answers.host_named = named(host);
    answers.port_named = port.and_then(named);
    let path = path.split('#').next().unwrap_or_default();
    let mut whole = String::new();
    for part in parts(path) {
        match part {
            Part::Text(text) => whole.push_str(text),
            Part::Name(name) => {
                let said = package
                    .transport
                    .variables
                    .get(name)
                    .and_then(|variable| variable.value.as_ref().or(variable.default.as_ref()));
                match said {
                    Some(said) => whole.push_str(&said.0),
                    None => {
                        answers.notes.push(format!(
                            "{place}.transport.url: the entry says nothing of `{{{name}}}`: write `run.path` by hand"
                        ));
                        return (port.and_then(|port| port.parse().ok()), None);
                    }
                }
            }
        }
    }
    let number = port.and_then(|port| port.parse().ok()).filter(|port| *port > 0);
    if let Some(port) = port.filter(|_| number.is_none() && answers.port_named.is_none()) {
        answers
            .notes
            .push(format!("{place}.transport.url: `{}` is no port: see at which one it listens", one_line(port)));
    }
    let fault = if whole.is_empty() { None } else { endpoint_path_fault(whole.split('?').next().unwrap_or_default()) };
    if let Some(why) = fault {
        answers.notes.push(format!("{place}.transport.url: `{}` {why}: write `run.path` by hand", one_line(&whole)));
    }
    (number, (fault.is_none() && !whole.is_empty()).then_some(whole))
}

/// Within a container of its own network, the server's port and address are others than the host's.
fn inside(package: &EntryPackage, url_port: Option<u16>, answers: &mut Answers) {
    if container::shares_network(package) {
        return;
    }
    answers.host = Words::text("0.0.0.0");
    if let Some(port) = container::port_of(package).or(url_port) {
        answers.port = Words::text(&port.to_string());
    }
}

/// An image, by its digest. A registry of its own is a part of its name.
fn image(given: &Given<'_>, package: &EntryPackage, version: &str, place: &str) -> Result<String, ImportError> {
    let name_place = format!("{place}.identifier");
    let (image, tag, digest) = image_parts(&package.identifier, version);
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/:".contains(&b);
    let last = image.rsplit('/').next().unwrap_or_default();
    let fits =
        !last.is_empty() && !last.contains(':') && !image.starts_with(['/', '-', '.']) && image.bytes().all(plain);
    if !fits || tag.starts_with('-') {
        let message = format!("`{}` is not the name of an image", one_line(&package.identifier));
        return Err(ImportError::at(&name_place, message).hint("it is such as ghcr.io/example/server:1.4.2"));
    }
    let image = with_registry(&image, package.registry_base_url.as_deref(), place)?;
    exact(&tag, place)?;
    let Some(digest) = digest.as_deref().or(given.digest) else {
        let message =
            format!("the entry names no digest of {image}, and the tag {tag} may mean another image tomorrow");
        return Err(ImportError::at(&name_place, message).hint(&format!(
            "give it with `--digest`: `docker buildx imagetools inspect {image}:{tag}` prints it, and so does `docker pull`"
        )));
    };
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        let message = format!("`{}` is not the digest of an image", one_line(digest));
        return Err(ImportError::at(&name_place, message).hint("it is sha256: and 64 hexadecimal digits in lower case"));
    }
    Ok(format!("{{ oci: {}, digest: {}, version: {} }}", quoted(&image), quoted(digest), quoted(&tag)))
}

/// An image of the registry that the entry names.
fn with_registry(image: &str, base: Option<&str>, place: &str) -> Result<String, ImportError> {
    let first = image.split('/').next().unwrap_or_default();
    let own = Some(first).filter(|first| image.contains('/') && (first.contains(['.', ':']) || *first == "localhost"));
    let Some(base) = base else { return Ok(image.to_owned()) };
    let host = base.strip_prefix("https://").unwrap_or("").trim_end_matches('/');
    let hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io" | "hub.docker.com");
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-:".contains(&b);
    match own {
        Some(own) if own == host || (hub(own) && hub(host)) => Ok(image.to_owned()),
        None if hub(host) => Ok(image.to_owned()),
        None if !host.is_empty() && host.bytes().all(plain) => Ok(format!("{host}/{image}")),
        Some(_) | None => Err(program::other_registry(base, place)),
    }
}

pub(super) fn exact(version: &str, place: &str) -> Result<(), ImportError> {
    if is_exact(version) {
        return Ok(());
    }
    let message = format!("`{}` is not an exact version", one_line(version));
    Err(ImportError::at(&format!("{place}.version"), message)
        .hint("an entry pins one version, without ranges or wildcards"))
}

pub(super) fn is_exact(version: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-+!_".contains(&b);
    !version.is_empty() && version.bytes().all(plain) && version != "latest" && !version.starts_with('-')
}

/// An image's name, tag and digest.
fn image_parts(identifier: &str, version: &str) -> (String, String, Option<String>) {
    let (rest, digest) = match identifier.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.to_owned())),
        None => (identifier, None),
    };
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    match rest[slash..].split_once(':') {
        Some((name, tag)) => (format!("{}{name}", &rest[..slash]), tag.to_owned(), digest),
        None => (rest.to_owned(), version.to_owned(), digest),
    }
}

/// Whether this can be the name of an environment variable.
pub(super) fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.len() <= VARIABLE_BYTES_MAX && !name.contains(|c: char| c == '=' || c.is_control())
}

fn environment(
    package: &EntryPackage,
    place: &str,
    draft: &mut Draft,
    answers: &mut Answers,
) -> Result<(), ImportError> {
    for (number, input) in package.environment_variables.iter().enumerate() {
        let place = format!("{place}.environmentVariables[{number}]");
        let name = input.name.as_deref().unwrap_or_default();
        if !is_variable(name) {
            answers.left_out(input, &place, "this is no name of a variable");
            continue;
        }
        plain(name, &place)?;
        match answers.answer(input, &place)? {
            Some(words) => {
                draft.environment.insert(name.to_owned(), words);
                if let Some(said) = remark(input).filter(|_| !input.choices.is_empty()) {
                    draft.remarks.insert(name.to_owned(), said);
                }
            }
            None => draft.open.push(described(input)),
        }
    }
    for (name, words) in std::mem::take(&mut draft.container.environment) {
        draft.environment.entry(name).or_insert(words);
    }
    for (name, place) in std::mem::take(&mut draft.container.passed_on) {
        if let btree_map::Entry::Vacant(free) = draft.environment.entry(name) {
            let input = Input { name: Some(free.key().clone()), is_required: true, ..Input::default() };
            free.insert(answers.answer(&input, &place)?.unwrap_or_default());
        }
    }
    Ok(())
}

/// Headers that the server wants from its clients are sent by the check as well.
fn headers(inputs: &[Input], place: &str, draft: &mut Draft, answers: &mut Answers) -> Result<(), ImportError> {
    for (number, input) in inputs.iter().enumerate() {
        let place = format!("{place}[{number}]");
        let name = input.name.as_deref().unwrap_or_default();
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            let message = format!("`{}` is not the name of a header", one_line(name));
            return Err(ImportError::at(&format!("{place}.name"), message).hint("it is such as Authorization"));
        }
        let Some(words) = answers.answer(input, &place)? else {
            answers.left_out(input, &place, "it has no value");
            continue;
        };
        if words.contains("\n") || words.contains("\r") {
            return Err(
                ImportError::at(&place, "the value of a header is one line".to_owned()).hint("correct the entry")
            );
        }
        answers.notes.push(format!("clients must send the header {name}; the health check does"));
        draft.headers.insert(name.to_owned(), words);
    }
    Ok(())
}

/// The port, where the server listens on one that nothing tells it.
fn endpoint(given: &Given<'_>, url_port: Option<u16>, is_image: bool, draft: &mut Draft, answers: &mut Answers) {
    let inner = draft.container.port.or_else(|| url_port.filter(|_| is_image && answers.port.as_text().is_some()));
    let shared = draft.container.network.as_deref() == Some("host");
    draft.container.port = inner.filter(|_| !shared && answers.listens);
    let fixed = url_port.filter(|_| answers.listens && !answers.port_told && (!is_image || shared));
    let own = fixed.or(draft.container.published);
    draft.port = given.port.or(own).filter(|port| *port > 0).unwrap_or(PORT);
    if let (Some(fixed), Some(wanted)) = (fixed, given.port.filter(|port| Some(*port) != fixed)) {
        answers.notes.push(format!(
            "as far as the entry says, the server listens on port {fixed}, and nothing tells it {wanted}: see how it is told"
        ));
    }
    if answers.listens && fixed.is_none() && !answers.port_told && draft.container.port.is_none() {
        answers.notes.push(format!(
            "the entry does not say how the server is told its port: see that it listens on {}",
            draft.port
        ));
    }
}

/// What else the entry has.
fn others(given: &Given<'_>, answers: &mut Answers) {
    for (number, other) in given.entry.packages.iter().enumerate().filter(|(number, _)| *number != given.at) {
        let version = other.version.as_deref().unwrap_or(&given.entry.version);
        let known = super::IMPORTED_REGISTRIES.contains(&other.registry_type.as_str());
        let how = if known { format!("`--package {number}` takes it") } else { "it cannot be deployed".to_owned() };
        answers.notes.push(format!(
            "the entry also has packages[{number}]: {} {} {} ({}); {how}",
            one_line(&other.registry_type),
            one_line(&super::without_secrets(&other.identifier)),
            one_line(version),
            one_line(&other.transport.r#type)
        ));
    }
    answers.notes.extend(given.entry.remotes.iter().enumerate().map(|(number, remote)| {
        format!("the entry also has remotes[{number}], which somebody else runs: {}", super::remote(remote))
    }));
}

fn text(given: &Given<'_>, draft: &Draft, answers: &Answers) -> String {
    let Given { entry, at, name, .. } = given;
    let mut text = format!(
        "# From {} {} of the MCP registry (packages[{at}]).\n",
        one_line(&entry.name),
        one_line(&entry.version)
    );
    text.push_str(&asked(answers));
    let _ = writeln!(
        text,
        "apiVersion: fleetwright/v1\nname: {}\ndescription: {}\npackage: {}",
        plain_name(name.as_str()),
        quoted(entry.description.trim()),
        draft.package
    );
    if !draft.requires.is_empty() {
        let _ = writeln!(text, "requires: [{}]", draft.requires.join(", "));
    }
    text.push_str("run:\n");
    for remark in &answers.remarks {
        let _ = writeln!(text, "  # {remark}");
    }
    if let Some(check) = &draft.check {
        let _ = writeln!(text, "  # check: {}", one_line(check));
    }
    if !draft.command.is_empty() {
        let words: Vec<String> = draft.command.iter().map(|word| quoted(&word.template())).collect();
        let _ = writeln!(text, "  command: [{}]", words.join(", "));
    }
    let transport = if answers.listens { "http" } else { "stdio" };
    let _ = writeln!(text, "  transport: {transport}\n  port: {}", draft.port);
    if draft.own_sessions {
        text.push_str("  sessions: own\n");
    }
    if let Some(path) = &draft.path {
        let _ = writeln!(text, "  path: {}", quoted(path));
    }
    if let Some(user) = &draft.container.user {
        let _ = writeln!(text, "  user: {}", quoted(user));
    }
    variables(draft, &mut text);
    contained(draft, &mut text);
    checks(draft, &mut text);
    text
}

/// A name, in quotes where YAML would take it for a number.
fn plain_name(name: &str) -> String {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic());
    if begins && !is_other_to_yaml(name) { name.to_owned() } else { quoted(name) }
}

/// What the environment must have, as a comment in the form in which environments say it.
fn asked(answers: &Answers) -> String {
    let mut text = String::new();
    for (heading, secret) in [("variables", false), ("secrets", true)] {
        let of_kind = answers.asked.iter().filter(|(_, asked)| asked.secret == secret);
        for (number, (name, asked)) in of_kind.enumerate() {
            if text.is_empty() {
                text.push_str("# The environment must have:\n");
            }
            if number == 0 {
                let _ = writeln!(text, "#   {heading}:");
            }
            let value = if secret { format!("{{ env: {} }}", name.to_ascii_uppercase()) } else { "...".to_owned() };
            let remark = if asked.remark.is_empty() { String::new() } else { format!("   # {}", asked.remark) };
            let _ = writeln!(text, "#     {name}: {value}{remark}");
        }
    }
    text
}

fn variables(draft: &Draft, text: &mut String) {
    if !draft.environment.is_empty() {
        text.push_str("  environment:\n");
        for (name, words) in &draft.environment {
            let remark = draft.remarks.get(name).map(|remark| format!("   # {remark}")).unwrap_or_default();
            let _ = writeln!(text, "    {}: {}{remark}", key(name), quoted(&words.template()));
        }
    } else if !draft.open.is_empty() {
        text.push_str("  # environment:\n");
    }
    for open in &draft.open {
        let _ = writeln!(text, "    # {open}");
    }
}

fn contained(draft: &Draft, text: &mut String) {
    let Container { port, network, volumes, capabilities, read_only, .. } = &draft.container;
    let mut fields = Vec::new();
    fields.extend(port.filter(|port| *port != draft.port).map(|port| format!("port: {port}")));
    fields.extend(network.as_ref().map(|network| format!("network: {}", quoted(network))));
    let list = |words: Vec<String>| words.join(", ");
    if !volumes.is_empty() {
        fields.push(format!("volumes: [{}]", list(volumes.iter().map(|volume| quoted(&volume.template())).collect())));
    }
    if !capabilities.is_empty() {
        fields.push(format!("capabilities: [{}]", list(capabilities.iter().map(|name| quoted(name)).collect())));
    }
    fields.extend(read_only.then(|| "read_only: true".to_owned()));
    if !fields.is_empty() {
        let _ = writeln!(text, "container:\n  {}", fields.join("\n  "));
    }
    let Container { memory, cpu, tasks, .. } = &draft.container;
    let mut limits = Vec::new();
    limits.extend(memory.as_ref().map(|memory| format!("memory: {memory}")));
    limits.extend(cpu.as_ref().map(|cpu| format!("cpu: {cpu}")));
    limits.extend(tasks.map(|tasks| format!("tasks: {tasks}")));
    if !limits.is_empty() {
        let _ = writeln!(text, "resources: {{ {} }}", limits.join(", "));
    }
}

fn checks(draft: &Draft, text: &mut String) {
    if draft.headers.is_empty() {
        text.push_str("health_checks:\n  - { name: tools, type: mcp, severity: critical }\n");
        return;
    }
    text.push_str(
        "health_checks:\n  - name: tools\n    type: mcp\n    severity: critical\n    config:\n      headers:\n",
    );
    for (name, words) in &draft.headers {
        let _ = writeln!(text, "        {}: {}", quoted(name), quoted(&words.template()));
    }
}

/// The name of a variable, as a field.
fn key(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic());
    if begins && name.chars().all(plain) && !is_other_to_yaml(name) { name.to_owned() } else { quoted(name) }
}

/// A word that YAML takes for a truth value or for nothing.
fn is_other_to_yaml(word: &str) -> bool {
    matches!(word.to_ascii_lowercase().as_str(), "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n")
}
