//! From an entry of the MCP registry (`server.json`, schema of 2025-12-11) to a server definition.
//!
//! What an entry leaves open becomes a variable or a secret of the environment; what it cannot say, and what a definition
//! cannot take over, is said in notes.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;

use super::text::quoted;
use crate::ids::ServerName;

/// Largest entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// Longest name of an environment variable, in bytes.
const VARIABLE_BYTES_MAX: usize = 256;
/// What a digest that an entry does not give is written as: no digest, so that nothing is deployed before it is filled in.
const DIGEST_WANTED: &str = "sha256:FILL-IN";

#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(default)]
    description: String,
    version: String,
    #[serde(default)]
    packages: Vec<EntryPackage>,
    #[serde(default)]
    remotes: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryPackage {
    registry_type: String,
    identifier: String,
    version: Option<String>,
    transport: EntryTransport,
    #[serde(default)]
    package_arguments: Vec<Argument>,
    #[serde(default)]
    runtime_arguments: Vec<Argument>,
    #[serde(default)]
    environment_variables: Vec<Argument>,
}

#[derive(Deserialize)]
struct EntryTransport {
    r#type: String,
    url: Option<String>,
}

/// An argument or an environment variable: a name, a value, or what a person is to say.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    #[serde(default)]
    r#type: String,
    name: Option<String>,
    value: Option<String>,
    default: Option<String>,
    value_hint: Option<String>,
    description: Option<String>,
    #[serde(default)]
    is_required: bool,
    #[serde(default)]
    is_secret: bool,
}

/// A definition made from an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// What the server is called.
    pub name: ServerName,
    /// The text of its definition.
    pub text: String,
    /// What a person has to look at.
    pub notes: Vec<String>,
}

/// Why an entry makes no definition.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is larger than an entry may be.
    #[error("it is larger than {} KiB", ENTRY_BYTES_MAX >> 10)]
    TooLarge,
    /// It is something else.
    #[error("it is no entry of the MCP registry: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Its name cannot be made a server's.
    #[error("its name `{0}` cannot be made the name of a server")]
    Name(String),
    /// It only says where somebody else runs it.
    #[error("it has only remotes: somebody else runs it, and there is nothing to deploy")]
    OnlyRemotes,
    /// It has no package that can be installed.
    #[error("it has no package that can be installed; it has {0}")]
    NoPackage(String),
}

/// Makes a definition. `registry` chooses among the packages of an entry: `pypi`, `npm` or `oci`.
pub fn import(
    entry: &str,
    registry: Option<&str>,
    name: Option<&ServerName>,
    port: u16,
) -> Result<Imported, ImportError> {
    if entry.len() > ENTRY_BYTES_MAX {
        return Err(ImportError::TooLarge);
    }
    let tree: Value = serde_json::from_str(entry)?;
    // What the registry answers has the entry inside.
    let tree = tree.get("server").filter(|inner| inner.is_object()).cloned().unwrap_or(tree);
    let entry: Entry = serde_json::from_value(tree)?;
    let name = match name {
        Some(name) => name.clone(),
        None => plain_name(&entry.name).parse().map_err(|_| ImportError::Name(entry.name.clone()))?,
    };
    let known = ["pypi", "npm", "oci"];
    let wanted = |package: &&EntryPackage| match registry {
        Some(registry) => package.registry_type == registry,
        None => known.contains(&package.registry_type.as_str()),
    };
    let Some(package) = entry.packages.iter().find(wanted) else {
        if entry.packages.is_empty() && !entry.remotes.is_empty() {
            return Err(ImportError::OnlyRemotes);
        }
        let kinds: Vec<&str> = entry.packages.iter().map(|package| package.registry_type.as_str()).collect();
        let kinds = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
        return Err(ImportError::NoPackage(kinds));
    };
    Ok(definition(&entry, package, name, port))
}

/// The last part of a name in reverse DNS, as a server may be called.
fn plain_name(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let plain: String = last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    plain.trim_matches('-').to_owned()
}

fn definition(entry: &Entry, package: &EntryPackage, name: ServerName, port: u16) -> Imported {
    let mut notes = Vec::new();
    let version = package.version.clone().unwrap_or_else(|| entry.version.clone());
    let mut text = format!(
        "# From {} {} of the MCP registry.\napiVersion: fleetwright/v1\nname: {name}\ndescription: {}\n",
        one_line(&entry.name),
        one_line(&entry.version),
        quoted(entry.description.trim())
    );
    let mut command = Vec::new();
    match package.registry_type.as_str() {
        "oci" => {
            let (image, tag, digest) = image(&package.identifier, &version);
            let digest = digest.unwrap_or_else(|| {
                notes.push(format!("`package.digest`: the entry names none; `docker pull {image}:{tag}` prints it"));
                DIGEST_WANTED.to_owned()
            });
            let _ = writeln!(
                text,
                "package: {{ oci: {}, digest: {}, version: {} }}",
                quoted(&image),
                quoted(&digest),
                quoted(&tag)
            );
        }
        kind => {
            let _ =
                writeln!(text, "package: {{ {kind}: {}, version: {} }}", quoted(&package.identifier), quoted(&version));
            let program = package.identifier.rsplit('/').next().unwrap_or_default().to_owned();
            notes.push(format!("`run.command`: the program is taken to be called `{program}`, as its package is"));
            text.push_str(if kind == "npm" { "requires: [node]\n" } else { "requires: [python]\n" });
            command.push(program);
        }
    }
    if !package.runtime_arguments.is_empty() {
        notes.push("the entry's `runtimeArguments` are for a client that starts it, and were left out".to_owned());
    }
    for argument in &package.package_arguments {
        let flag = argument.name.clone().filter(|_| argument.r#type == "named");
        match value(argument, flag.as_deref().or(argument.value_hint.as_deref()).unwrap_or("argument"), &mut notes) {
            Some(value) => command.extend(flag.into_iter().chain([value])),
            None if argument.is_required
                || (argument.value.is_none() && argument.r#type == "named" && argument.value_hint.is_none()) =>
            {
                command.extend(flag);
            }
            None => notes.push(format!("left out, since it has no value: {}", described(argument))),
        }
    }
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    text.push_str("run:\n");
    if !words.is_empty() {
        let _ = writeln!(text, "  command: [{}]", words.join(", "));
    }
    let (transport, path) = match package.transport.r#type.as_str() {
        "stdio" => ("stdio", None),
        other => {
            if other == "sse" {
                notes.push(
                    "it speaks SSE, which the protocol has given up: see whether it also speaks streamable HTTP"
                        .to_owned(),
                );
            }
            ("http", package.transport.url.as_deref().and_then(path_of))
        }
    };
    let _ = writeln!(text, "  transport: {transport}\n  port: {port}");
    if let Some(path) = path {
        let _ = writeln!(text, "  path: {}", quoted(&path));
    }
    let mut environment = String::new();
    for variable in &package.environment_variables {
        let Some(name) = &variable.name else { continue };
        if name.is_empty() || name.len() > VARIABLE_BYTES_MAX || name.contains(|c: char| c == '=' || c.is_control()) {
            notes.push(format!("left out, since this is no name of a variable: {}", described(variable)));
            continue;
        }
        match value(variable, name, &mut notes) {
            Some(value) => drop(writeln!(environment, "    {}: {}", key(name), quoted(&value))),
            None => drop(writeln!(environment, "    # {}", described(variable))),
        }
    }
    if environment.lines().any(|line| !line.trim_start().starts_with('#')) {
        text.push_str("  environment:\n");
        text.push_str(&environment);
    } else if !environment.is_empty() {
        text.push_str("  # environment:\n");
        text.push_str(&environment);
    }
    text.push_str("health_checks:\n  - { name: tools, type: mcp, severity: critical }\n");
    Imported { name, text, notes }
}

/// The value of an argument: its own, or what the environment is to say.
fn value(argument: &Argument, name: &str, notes: &mut Vec<String>) -> Option<String> {
    let variable: String = name
        .trim_start_matches('-')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect();
    if argument.is_secret && argument.is_required {
        notes.push(format!("declare the secret `{variable}` in the environment: {}", described(argument)));
        return Some(format!("{{{{ secret(name=\"{variable}\") }}}}"));
    }
    if argument.is_secret {
        return None;
    }
    // `{name}` in a value is a question to the person who installs it.
    if let Some(value) = argument.value.as_ref().or(argument.default.as_ref()) {
        let open = value.contains('{') && value.contains('}');
        if open {
            notes.push(format!("`{value}` asks for something: put it in by hand, or as a variable of the environment"));
        }
        return Some(if open { value.replace('{', "{{ env.").replace('}', " }}") } else { value.clone() });
    }
    if argument.is_required {
        notes.push(format!("declare the variable `{variable}` in the environment: {}", described(argument)));
        return Some(format!("{{{{ env.{variable} }}}}"));
    }
    None
}

fn described(argument: &Argument) -> String {
    let name = argument.name.as_deref().or(argument.value_hint.as_deref()).unwrap_or("an argument");
    let what = argument.description.as_deref().unwrap_or_default();
    let line: String = one_line(what.trim().lines().next().unwrap_or_default()).chars().take(120).collect();
    let name = one_line(name);
    if line.is_empty() { name } else { format!("{name}: {line}") }
}

/// A text for a comment, which it must not leave.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c }).collect()
}

/// The name of a variable, as a field.
fn key(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(plain) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// An image's name, tag and digest.
fn image(identifier: &str, version: &str) -> (String, String, Option<String>) {
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

/// The path of a URL that may hold variables.
fn path_of(url: &str) -> Option<String> {
    let after = url.split_once("://")?.1;
    let path = &after[after.find('/')?..];
    (path.len() > 1 && !path.contains('{')).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Server, Source};

    const PYPI: &str = r#"{
      "$schema": "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json",
      "name": "io.github.example/Weather_Server", "description": "Says: \"rain\"", "version": "1.0.2",
      "packages": [
        { "registryType": "mcpb", "identifier": "https://h/x.mcpb", "fileSha256": "00", "transport": { "type": "stdio" } },
        { "registryType": "pypi", "identifier": "weather-mcp", "version": "0.5.0", "runtimeHint": "uvx",
          "transport": { "type": "stdio" },
          "packageArguments": [
            { "type": "positional", "value": "serve" },
            { "type": "named", "name": "--units", "default": "metric" },
            { "type": "named", "name": "--place", "isRequired": true, "description": "Where" },
            { "type": "named", "name": "--proxy", "valueHint": "url", "description": "A proxy" }
          ],
          "environmentVariables": [
            { "name": "API_KEY", "isSecret": true, "isRequired": true, "description": "The key" },
            { "name": "LOG", "value": "info" },
            { "name": "TOKEN", "isSecret": true, "description": "Only for more" },
            { "name": "CACHE", "description": "A folder" }
          ] } ] }"#;

    fn parsed(imported: &Imported) -> Server {
        let source = Source { path: format!("{}.yaml", imported.name), text: imported.text.clone() };
        Server::parse(&source).unwrap_or_else(|problems| panic!("{problems}\n{}", imported.text))
    }

    #[test]
    fn an_entry_of_pypi_becomes_a_definition_with_what_is_open_named() {
        let imported = import(PYPI, None, None, 8801).expect("a definition");
        assert_eq!(imported.name.as_str(), "weather-server");
        let server = parsed(&imported);
        let command: Vec<&str> = server.run.command.iter().map(|word| word.value.as_str()).collect();
        assert_eq!(command, ["weather-mcp", "serve", "--units", "metric", "--place", "{{ env.place }}"]);
        assert_eq!(server.run.environment["API_KEY"].value, "{{ secret(name=\"api_key\") }}");
        assert_eq!(server.run.environment["LOG"].value, "info");
        for open in ["# CACHE: A folder", "# TOKEN: Only for more"] {
            assert!(imported.text.contains(open), "{}", imported.text);
        }
        let notes = imported.notes.join("\n");
        for named in ["secret `api_key`", "variable `place`", "--proxy", "`weather-mcp`"] {
            assert!(notes.contains(named), "{named}: {notes}");
        }
    }

    #[test]
    fn an_image_and_an_answer_of_the_registry_are_taken_too() {
        let entry = r#"{ "server": { "name": "com.example/files", "description": "d", "version": "2.0.0", "packages": [
            { "registryType": "oci", "identifier": "ghcr.io/example/files:2.1.0",
              "transport": { "type": "streamable-http", "url": "http://localhost:{port}/api/mcp" } } ] }, "_meta": {} }"#;
        let imported = import(entry, Some("oci"), Some(&"mine".parse().expect("name")), 8802).expect("a definition");
        let server = parsed(&imported);
        let package = &server.package.as_ref().expect("a package").value;
        assert_eq!(package.oci.as_ref().map(|image| image.value.as_str()), Some("ghcr.io/example/files"));
        assert_eq!(package.version.value, "2.1.0");
        assert_eq!(server.run.path.as_deref(), Some("/api/mcp"));
        assert!(imported.notes[0].contains("docker pull ghcr.io/example/files:2.1.0"));
        let with_digest = entry.replace(":2.1.0\"", &format!("@sha256:{}\"", "a".repeat(64)));
        assert!(import(&with_digest, None, None, 1).expect("a definition").notes.is_empty());
    }

    #[test]
    fn what_cannot_be_deployed_is_told() {
        let told =
            |entry: &str, registry: Option<&str>| import(entry, registry, None, 1).expect_err("refused").to_string();
        let head = r#""name": "a/b", "description": "", "version": "1""#;
        let remote = format!(r#"{{ {head}, "remotes": [{{ "type": "sse", "url": "https://h" }}] }}"#);
        assert!(told(&remote, None).contains("only remotes"));
        assert!(told(&format!("{{ {head} }}"), None).contains("it has none"));
        assert!(told(PYPI, Some("npm")).contains("it has mcpb, pypi"));
        assert!(told("[]", None).contains("no entry") && told("{", None).contains("no entry"));
        assert!(told(&PYPI.replace("Weather_Server", "---"), None).contains("cannot be made the name"));
        assert!(told(&" ".repeat(2 << 20), None).contains("larger"));
    }

    #[test]
    fn what_an_entry_says_stays_a_text() {
        let entry = r#"{"name":"io.github.a/b","version":"1.0\nrun: { command: [evil] }","packages":[{"registryType":"npm",
            "identifier":"a\u007fb\u2028","version":"1","transport":{"type":"stdio"},
            "environmentVariables":[{"name":"A: x","value":"c","description":"d\ne"},{"name":"C\nD","isSecret":true}]}]}"#;
        let imported = import(entry, None, None, 8800).expect("an entry");
        let server = parsed(&imported);
        assert_eq!(server.run.command[0].value, "a\u{7f}b\u{2028}");
        assert_eq!(server.run.environment.keys().collect::<Vec<_>>(), ["A: x"]);
    }
}
