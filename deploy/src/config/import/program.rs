//! The package of a registry, and the program of it that is started: what the package itself says, not what its name
//! suggests.

use std::collections::BTreeMap;

use super::answers::Answers;
use super::definition::{Given, exact};
use super::entry::EntryPackage;
use super::runtime::Runtime;
use super::words::{Words, one_line};
use super::{Found, ImportError, bundle, without_secrets};
use crate::config::text::quoted;
use crate::release::{index_name, is_npm_name, is_pypi_name};

/// Longest name of a program, in bytes.
const PROGRAM_BYTES_MAX: usize = 255;
/// Most programs that are named to a person.
const PROGRAMS_SHOWN_MAX: usize = 10;

/// What is installed and started.
pub(super) struct Program {
    /// The package, as a definition says it.
    pub(super) package: String,
    pub(super) requires: Vec<&'static str>,
    pub(super) command: Vec<Words>,
    /// What a person has to check of the command, where it was guessed.
    pub(super) check: Option<String>,
    pub(super) environment: BTreeMap<String, Words>,
}

pub(super) fn of(
    given: &Given<'_>,
    package: &EntryPackage,
    version: &str,
    said: Runtime,
    place: &str,
    answers: &mut Answers,
) -> Result<Program, ImportError> {
    exact(version, place)?;
    let kind = package.registry_type.as_str();
    if kind == "mcpb" {
        return archive(given, package, version, place, answers);
    }
    let name = &package.identifier;
    let fits = if kind == "npm" { is_npm_name(name) } else { is_pypi_name(name) };
    if !fits {
        let message = format!("`{}` is not the name of a package of {kind}", one_line(&without_secrets(name)));
        return Err(
            ImportError::at(&format!("{place}.identifier"), message).hint("it is a name alone, without version or URL")
        );
    }
    let own = own_registry(package);
    let registry = own.as_deref().map(|url| registry(url, kind, place, answers)).transpose()?.unwrap_or_default();
    if package.file_sha256.is_some() {
        answers.notes.push(format!(
            "{place}.fileSha256: `fleetwright lock` fixes the digests of the package and of all that comes with it"
        ));
    }
    let with: Vec<String> = said.with.iter().map(|extra| quoted(extra)).collect();
    let with = if with.is_empty() { String::new() } else { format!(", with: [{}]", with.join(", ")) };
    let (mut command, check) = match (said.module, said.program) {
        (Some(module), _) => (vec![Words::text("python"), Words::text("-m"), Words::text(&module)], None),
        (None, Some(program)) => (vec![Words::text(&program)], None),
        (None, None) => {
            let (program, check) = chosen(given.found, kind, name, place)?;
            answers.notes.extend(check.as_ref().map(|check| format!("check `run.command`: {check}")));
            (vec![Words::text(&program)], check)
        }
    };
    command.extend(said.arguments);
    Ok(Program {
        package: format!("{{ {kind}: {}, version: {}{with}{registry} }}", quoted(name), quoted(version)),
        requires: vec![if kind == "npm" { "node" } else { "python" }],
        command,
        check,
        environment: BTreeMap::new(),
    })
}

/// The registry of a package, where that is not the public one of its kind.
pub(super) fn own_registry(package: &EntryPackage) -> Option<String> {
    let homes: &[&str] = match package.registry_type.as_str() {
        "npm" => &["https://registry.npmjs.org", "https://registry.npmjs.com", "https://www.npmjs.com"],
        _ => &["https://pypi.org", "https://pypi.org/simple", "https://pypi.python.org"],
    };
    let base = package.registry_base_url.as_deref()?.trim_end_matches('/');
    (!homes.contains(&base)).then(|| base.to_owned())
}

/// It is kept: the package must not come from another one.
fn registry(url: &str, kind: &str, place: &str, answers: &mut Answers) -> Result<String, ImportError> {
    let at = format!("{place}.registryBaseUrl");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/@%[]".contains(c);
    let host = url.strip_prefix("https://").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    if host.is_empty() || !url.chars().all(plain) || without_secrets(url) != url {
        let message = format!("`{}` is not the URL of a registry", one_line(&without_secrets(url)));
        return Err(ImportError::at(&at, message).hint(
            "it begins with https:// and holds neither user nor password: those are secrets of the environment, which the \
             `registry` of the definition's package names",
        ));
    }
    let of = if kind == "npm" { "npm's" } else { "PyPI's" };
    answers.notes.push(format!(
        "{at}: the package and all that comes with it are taken from {url} and never from {of} public registry: add \
         `username` and `password`, or a `token`, from secrets where it asks for them, and `public: true` where what it does \
         not have may come from there"
    ));
    Ok(format!(", registry: {{ url: {} }}", quoted(url)))
}

/// An image of a registry that its name does not say must not come from another one.
pub(super) fn other_registry(base: &str, place: &str) -> ImportError {
    let message = format!("the image is of another registry, {}, than its name says", one_line(&without_secrets(base)));
    ImportError::at(&format!("{place}.registryBaseUrl"), message).hint(
        "name the image with the host of its registry, such as ghcr.io/example/server, as the entry's `identifier`",
    )
}

/// The program, and what is to be checked where it is a guess.
fn chosen(found: &Found, kind: &str, package: &str, place: &str) -> Result<(String, Option<String>), ImportError> {
    let own = package.rsplit('/').next().unwrap_or(package);
    let names = match found {
        Found::Programs(names) => names,
        Found::Unknown(why) => {
            let check = format!("{why}, so the program is taken to be called `{own}`, as its package is");
            return Ok((own.to_owned(), Some(check)));
        }
        Found::Bundle(_) => return Ok((own.to_owned(), None)),
    };
    let is_file = |name: &&String| {
        let odd = |c: char| c == '/' || c == '\\' || c.is_control();
        !name.is_empty() && name.len() <= PROGRAM_BYTES_MAX && !name.starts_with(['-', '.']) && !name.contains(odd)
    };
    let mut names: Vec<&String> = names.iter().filter(is_file).collect();
    names.sort();
    names.dedup();
    let same = |name: &str| {
        if kind == "npm" { name == own } else { index_name(name) == index_name(own) }
    };
    match names.as_slice() {
        [] => {
            let message = format!("`{}` has no program that could be started: it is a library", one_line(package));
            Err(ImportError::at(&format!("{place}.identifier"), message)
                .hint("see whether the server is started otherwise, such as `python -m MODULE`, and write the definition by hand"))
        }
        [one] => Ok(((*one).clone(), None)),
        several => match several.iter().find(|name| same(name)) {
            Some(same) => Ok(((*same).clone(), None)),
            None => {
                let shown: Vec<String> = several.iter().take(PROGRAMS_SHOWN_MAX).map(|name| one_line(name)).collect();
                let check = format!("the package has several programs, and none of its own name: {}", shown.join(", "));
                Ok((several[0].clone(), Some(check)))
            }
        },
    }
}

/// A bundle is an archive, with its digest.
fn archive(
    given: &Given<'_>,
    package: &EntryPackage,
    version: &str,
    place: &str,
    answers: &mut Answers,
) -> Result<Program, ImportError> {
    let url = &package.identifier;
    let at = format!("{place}.identifier");
    let file = url.rsplit('/').next().unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-+_".contains(&b);
    let authority =
        url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default()).unwrap_or_default();
    if authority.contains('@') {
        let message = "its URL holds a user's name or a password".to_owned();
        return Err(ImportError::at(&at, message).hint("a definition is read by many: give it a URL without"));
    }
    let fits =
        url.starts_with("https://") && !authority.is_empty() && !url.contains(|c: char| c.is_control() || c == ' ');
    if !fits || file.is_empty() || file.starts_with('.') || !file.bytes().all(plain) {
        let message = format!("`{}` is not the URL of a bundle", one_line(url));
        return Err(ImportError::at(&at, message).hint("it begins with https:// and ends with the file's name"));
    }
    let Some(sha256) = &package.file_sha256 else {
        let message = "the entry gives no digest of the bundle, and a URL alone says nothing of what comes".to_owned();
        return Err(ImportError::at(&format!("{place}.fileSha256"), message).hint("`sha256sum FILE` prints it"));
    };
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        let message = format!("`{}` is not 64 hexadecimal digits", one_line(sha256));
        return Err(ImportError::at(&format!("{place}.fileSha256"), message).hint("`sha256sum FILE` prints it"));
    }
    let written = format!(
        "{{ archive: {}, sha256: {}, version: {} }}",
        quoted(url),
        quoted(&sha256.to_ascii_lowercase()),
        quoted(version)
    );
    let started = match given.found {
        Found::Bundle(manifest) => bundle::read(manifest, &at, answers)?,
        Found::Programs(_) | Found::Unknown(_) => {
            let why = match given.found {
                Found::Unknown(why) => why.as_str(),
                Found::Programs(_) | Found::Bundle(_) => "the bundle was not read",
            };
            let check =
                format!("{why}, so what it starts is a guess: its manifest.json says it, under server.mcp_config");
            answers.notes.push(format!("check `run.command`: {check}"));
            bundle::Started::guess(check)
        }
    };
    let bundle::Started { command, requires, check, environment } = started;
    Ok(Program { package: written, requires, command, check, environment })
}
