//! From an entry of the MCP registry (`server.json`, schema of 2025-12-11) to a server definition.
//!
//! What an entry leaves open becomes a variable or a secret of the environment. What a server needs and a definition cannot
//! say refuses the import, with its place in the entry; what it can do without is said in notes. An entry is a text of
//! somebody else's: nothing in it becomes a field or a template of the definition.

mod answers;
mod bundle;
mod container;
mod definition;
mod entry;
mod naming;
mod program;
mod runtime;
#[cfg(test)]
mod tests;
mod words;

use serde_json::Value;

use self::definition::Given;
use self::entry::{Entry, EntryPackage, EntryTransport, Input};
use self::words::one_line;
use crate::ids::ServerName;
use crate::wording;

/// Largest entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// Most arguments, variables and headers of a package.
const INPUTS_MAX: usize = 500;
/// The registries whose packages can be deployed.
pub const IMPORTED_REGISTRIES: [&str; 4] = ["pypi", "npm", "oci", "mcpb"];

/// What the person who imports says.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportChoice<'a> {
    /// The registry whose package is taken, of [`IMPORTED_REGISTRIES`].
    pub registry: Option<&'a str>,
    /// Which package is taken, by its number in the entry.
    pub package: Option<usize>,
    /// What the server is called.
    pub name: Option<&'a ServerName>,
    /// The port of its endpoint.
    pub port: Option<u16>,
    /// The digest of its image, where the entry names none.
    pub digest: Option<&'a str>,
}

/// What the package itself must be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportQuestion {
    /// The programs of a package of npm: the names in its `bin`.
    Npm {
        /// The package.
        name: String,
        /// Its version.
        version: String,
        /// The URL of its registry, where that is not the public one.
        registry: Option<String>,
    },
    /// The programs of a distribution of PyPI: the `console_scripts` of its wheel.
    Pypi {
        /// The distribution.
        name: String,
        /// Its version.
        version: String,
        /// The URL of its index, where that is not the public one.
        registry: Option<String>,
    },
    /// The `manifest.json` of a bundle.
    Bundle {
        /// Where it is.
        url: String,
        /// Its digest.
        sha256: String,
    },
}

/// What it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The names of its programs.
    Programs(Vec<String>),
    /// The `manifest.json` of a bundle.
    Bundle(String),
    /// Nothing, for this reason; what it would have said is guessed, and marked.
    Unknown(String),
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
    /// The variables that its environment must have.
    pub variables: Vec<String>,
    /// The secrets that its environment must have.
    pub secrets: Vec<String>,
}

/// Why an entry makes no definition, with the place in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", .place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default())]
pub struct ImportError {
    /// The place, such as `packages[0].runtimeArguments[2]`.
    pub place: Option<String>,
    /// Line and column, where the text is no JSON.
    pub position: Option<(usize, usize)>,
    /// What is wrong there.
    pub message: String,
    /// What a person can do.
    pub hint: String,
}

impl ImportError {
    fn new(message: String) -> Self {
        let hint = "`server.json` is described at https://github.com/modelcontextprotocol/registry".to_owned();
        Self { place: None, position: None, message, hint }
    }

    fn at(place: &str, message: String) -> Self {
        Self { place: Some(one_line(place)), ..Self::new(message) }
    }

    fn hint(self, hint: &str) -> Self {
        Self { hint: hint.to_owned(), ..self }
    }
}

/// An entry that was read, with the package of it that is taken.
pub struct Entered {
    entry: Entry,
    at: usize,
    name: ServerName,
}

impl Entered {
    /// Reads an entry, or what a registry answers for one.
    pub fn read(text: &str, choice: ImportChoice<'_>) -> Result<Self, ImportError> {
        if text.len() > ENTRY_BYTES_MAX {
            return Err(ImportError::new(format!("it is larger than {} KiB", ENTRY_BYTES_MAX >> 10)));
        }
        if text.trim().is_empty() {
            return Err(ImportError::new("it is empty".to_owned()));
        }
        let tree: Value = serde_json::from_str(text).map_err(|error| {
            let why = format!("it is no JSON: {}", one_line(&wording::of_json(&error.to_string())));
            ImportError { position: Some((error.line(), error.column().max(1))), ..ImportError::new(why) }
        })?;
        // What the registry answers has the entry inside.
        let tree = tree.get("server").filter(|inner| inner.is_object()).cloned().unwrap_or(tree);
        let entry: Entry = serde_path_to_error::deserialize(tree).map_err(|error| {
            let place = error.path().to_string();
            let why = format!(
                "it is no entry of the MCP registry: {}",
                one_line(&wording::of_data(&error.inner().to_string()))
            );
            if place == "." { ImportError::new(why) } else { ImportError::at(&place, why) }
        })?;
        let name = match choice.name {
            Some(name) => name.clone(),
            None => naming::server(&entry.name).parse().map_err(|_| {
                let message = format!("its name `{}` cannot be made the name of a server", one_line(&entry.name));
                ImportError::at("name", message).hint("say with `--name` what it is called here")
            })?,
        };
        let at = chosen(&entry, choice)?;
        let package = &entry.packages[at];
        let inputs = [&package.package_arguments, &package.runtime_arguments, &package.environment_variables];
        let count = inputs
            .iter()
            .map(|inputs| inputs.iter().map(|input| 1 + input.variables.len()).sum::<usize>())
            .sum::<usize>();
        if count + package.transport.headers.len() > INPUTS_MAX {
            let message = format!("it has more than {INPUTS_MAX} arguments and variables");
            return Err(ImportError::at(&format!("packages[{at}]"), message).hint("write the definition by hand"));
        }
        Ok(Self { entry, at, name })
    }

    fn package(&self) -> &EntryPackage {
        &self.entry.packages[self.at]
    }

    /// What the package itself must be asked before the definition can be written.
    pub fn question(&self) -> Option<ImportQuestion> {
        let package = self.package();
        let (name, version) =
            (package.identifier.clone(), package.version.clone().unwrap_or_else(|| self.entry.version.clone()));
        // What cannot be imported is not asked about.
        self.definition(ImportChoice::default(), &Found::Unknown(String::new())).ok()?;
        match package.registry_type.as_str() {
            "npm" => Some(ImportQuestion::Npm { name, version, registry: program::own_registry(package) }),
            "pypi" => Some(ImportQuestion::Pypi { name, version, registry: program::own_registry(package) }),
            "mcpb" => Some(ImportQuestion::Bundle { url: name, sha256: package.file_sha256.clone()? }),
            _ => None,
        }
    }

    /// Writes the definition, with what the package has answered.
    pub fn definition(&self, choice: ImportChoice<'_>, found: &Found) -> Result<Imported, ImportError> {
        definition::write(&Given {
            entry: &self.entry,
            at: self.at,
            name: &self.name,
            port: choice.port,
            digest: choice.digest,
            found,
        })
    }
}

/// The package that is taken: the one that was named, else the first that can be deployed.
fn chosen(entry: &Entry, choice: ImportChoice<'_>) -> Result<usize, ImportError> {
    let known = |package: &EntryPackage| IMPORTED_REGISTRIES.contains(&package.registry_type.as_str());
    let all = || {
        let listed: Vec<String> = entry
            .packages
            .iter()
            .enumerate()
            .map(|(number, package)| format!("packages[{number}] of {}", one_line(&package.registry_type)))
            .collect();
        if listed.is_empty() { "none".to_owned() } else { listed.join(", ") }
    };
    if let Some(at) = choice.package {
        return match entry.packages.get(at) {
            Some(package) if known(package) => Ok(at),
            Some(_) | None => {
                let message = format!("it has no package {at} that can be installed; it has {}", all());
                Err(ImportError::at("packages", message).hint("they are counted from 0"))
            }
        };
    }
    let wanted = |package: &EntryPackage| match choice.registry {
        Some(registry) => package.registry_type == registry,
        None => known(package),
    };
    if let Some(at) = entry.packages.iter().position(wanted) {
        return Ok(at);
    }
    if entry.packages.is_empty() && !entry.remotes.is_empty() {
        let remotes: Vec<String> = entry.remotes.iter().map(remote).collect();
        let message = format!(
            "it has only remotes: somebody else runs it, and there is nothing to deploy: {}",
            remotes.join("; ")
        );
        return Err(ImportError::at("remotes", message)
            .hint("clients go there themselves; a manifest that needs it names it under `externals`"));
    }
    let message = format!("it has no package that can be installed; it has {}", all());
    Err(ImportError::at("packages", message)
        .hint(&format!("packages of {} can be deployed", IMPORTED_REGISTRIES.join(", "))))
}

/// A remote, with the headers that it wants; values of secrets are not shown.
fn remote(remote: &EntryTransport) -> String {
    let url = one_line(&without_secrets(remote.url.as_deref().unwrap_or("without a URL")));
    let header = |input: &Input| {
        let mut words = vec![one_line(input.label())];
        words.extend(input.is_required.then(|| "required".to_owned()));
        words.extend(answers::holds_secret(input).then(|| "secret".to_owned()));
        words.join(" ")
    };
    let headers: Vec<String> = remote.headers.iter().map(header).collect();
    let headers = if headers.is_empty() { String::new() } else { format!(", with the headers {}", headers.join(", ")) };
    format!("{url} ({}){headers}", one_line(&remote.r#type))
}

/// A URL without what may be a secret of it: the user, the password and the query.
pub fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}
