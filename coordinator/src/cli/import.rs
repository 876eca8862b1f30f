//! `fleetwright import`

use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;

use anyhow::Result;
use fleetwright_deploy::config::{
    ENTRY_BYTES_MAX, Entered, Found, IMPORTED_REGISTRIES, ImportChoice, ImportError, Imported, Server, Source,
    without_secrets,
};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::ServerName;
use fleetwright_deploy::planning::{Files, Needs, check_alone};
use serde_json::json;

use super::{Context, exit};
use crate::registry;

/// Makes a server definition from an entry of the MCP registry: a file (`server.json`), `-` for standard input, or the URL
/// of a registry with the name of a server in it.
///
/// What the entry leaves open becomes a variable or a secret of the environment; what a definition cannot keep and the
/// server needs refuses the import, with its place in the entry. The program that is started is what the package itself
/// names: npm is asked for its `bin`, the index that pip uses for the entry points of its wheel.
#[derive(clap::Args)]
pub(crate) struct ImportArguments {
    /// The entry, or what a registry answers for one; or the URL of a registry.
    #[arg(value_name = "FILE|-|REGISTRY_URL")]
    entry: String,
    /// The server in the registry, such as io.github.example/server; without a version, its latest.
    #[arg(value_name = "NAME[@VERSION]")]
    server: Option<String>,
    /// Which of its packages, where it has several: pypi, npm, oci or mcpb.
    #[arg(long, value_parser = IMPORTED_REGISTRIES)]
    registry: Option<String>,
    /// Which of its packages, by its number in the entry, from 0.
    #[arg(long, value_name = "NUMBER", conflicts_with = "registry")]
    package: Option<usize>,
    /// What the server is called here, if not as in the registry.
    #[arg(long)]
    name: Option<ServerName>,
    /// The port of its endpoint; without it, the one that the entry says, else 8800.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The digest of its image, where the entry names none.
    #[arg(long, value_name = "sha256:DIGITS")]
    digest: Option<String>,
    /// Asks no registry of packages: the program is guessed, and the line marked.
    #[arg(long)]
    offline: bool,
    /// Lets the registry of servers be asked over plain HTTP on another machine.
    #[arg(long)]
    plain_http: bool,
    /// The interpreter whose pip says which index is asked.
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: String,
    /// Where to write the definition, such as config/servers/NAME.yaml; without it, to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) async fn import(arguments: &ImportArguments, context: &Context) -> Result<u8> {
    let (shown, entry) = entry(arguments).await?;
    let choice = ImportChoice {
        registry: arguments.registry.as_deref(),
        package: arguments.package,
        name: arguments.name.as_ref(),
        port: arguments.port,
        digest: arguments.digest.as_deref(),
    };
    let refused = |error: ImportError| {
        let position = error.position.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default();
        refused(format!("{shown}{position}: {error}"), &error.hint)
    };
    let entered = Entered::read(&entry, choice).map_err(refused)?;
    let found = match entered.question() {
        Some(_) if arguments.offline => Found::Unknown("no registry was asked (--offline)".to_owned()),
        Some(question) => registry::ask(&question, &arguments.python).await?,
        None => Found::Unknown("the package was not asked".to_owned()),
    };
    let imported = entered.definition(choice, &found).map_err(refused)?;
    check(&imported, &shown)?;
    write(&imported, arguments, context)?;
    Ok(exit::DONE)
}

/// The entry, and what it is called in messages.
async fn entry(arguments: &ImportArguments) -> Result<(String, String)> {
    let is_url = ["https://", "http://"].iter().any(|scheme| arguments.entry.starts_with(scheme));
    match (&arguments.server, is_url) {
        (Some(server), true) => return Ok(registry::entry(&arguments.entry, server, arguments.plain_http).await?),
        (Some(server), false) => {
            let message = format!(
                "{}: the NAME `{server}` is looked up in a registry, and this is no URL of one",
                arguments.entry
            );
            return Err(refused(
                message,
                "give the registry's URL before it, such as https://registry.modelcontextprotocol.io",
            )
            .into());
        }
        (None, true) => {
            let message = format!("{}: which server of that registry, is not said", without_secrets(&arguments.entry));
            return Err(refused(message, "give its NAME after the URL, such as io.github.example/server").into());
        }
        (None, false) => {}
    }
    let mut entry = String::new();
    // One byte more than is read shows that there is too much.
    let bytes_max = ENTRY_BYTES_MAX as u64 + 1;
    if arguments.entry == "-" {
        let read = std::io::stdin().lock().take(bytes_max).read_to_string(&mut entry);
        read.map_err(|error| unreadable("standard input", &error))?;
        return Ok(("standard input".to_owned(), entry));
    }
    std::fs::File::open(&arguments.entry)
        .and_then(|file| file.take(bytes_max).read_to_string(&mut entry))
        .map_err(|error| unreadable(&arguments.entry, &error))?;
    Ok((arguments.entry.clone(), entry))
}

fn refused(message: String, hint: &str) -> Failure {
    Failure::new(FailureKind::ConfigurationError, "import", message).hint(hint)
}

fn unreadable(shown: &str, error: &std::io::Error) -> Failure {
    let why = match error.kind() {
        ErrorKind::InvalidData => "it is not UTF-8".to_owned(),
        _ => error.to_string(),
    };
    let hint =
        "name the file of an entry (server.json), `-` for standard input, or the URL of a registry and a NAME in it";
    refused(format!("{shown}: it cannot be read: {why}"), hint)
}

/// What is written can be deployed, in an environment that has what it asks for.
fn check(imported: &Imported, shown: &str) -> Result<()> {
    let source = Source { path: format!("{}.yaml", imported.name), text: imported.text.clone() };
    let needs = Needs {
        variables: imported.variables.iter().cloned().collect(),
        secrets: imported.secrets.iter().cloned().collect(),
        ..Needs::default()
    };
    let checked = Server::parse(&source).and_then(|server| check_alone(&source, &server, &needs, &Files::default()));
    checked.map_err(|problems| {
        let message = format!("{shown}: what would come of it cannot be deployed: {problems}");
        let hint = "write the definition by hand, and tell us of this entry";
        Failure::new(FailureKind::ConfigurationError, "import", message).hint(hint).into()
    })
}

fn write(imported: &Imported, arguments: &ImportArguments, context: &Context) -> Result<()> {
    if let Some(file) = &arguments.out {
        let made = std::fs::OpenOptions::new().write(true).create_new(true).open(file);
        let written = made.and_then(|mut made| made.write_all(imported.text.as_bytes()));
        written.map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::AlreadyExists => {
                    "what is there already is left alone: name another file, or remove that one"
                }
                ErrorKind::NotFound => "its folder must be there: make it, or name another",
                _ => "name a file that you may write",
            };
            refused(format!("{}: it cannot be written: {error}", file.display()), hint)
        })?;
        context.ui.say(&format!("wrote {}", file.display()));
    }
    for note in &imported.notes {
        context.ui.warn(note);
    }
    for (kind, names) in [("variable", &imported.variables), ("secret", &imported.secrets)] {
        for name in names {
            context.ui.say(&format!("declare the {kind} `{name}` in the environment"));
        }
    }
    let value = json!({
        "name": imported.name,
        "definition": imported.text,
        "notes": imported.notes,
        "variables": imported.variables,
        "secrets": imported.secrets,
    });
    if arguments.out.is_none() || context.ui.is_json() {
        context.ui.data(&value, || imported.text.trim_end().to_owned());
    }
    Ok(())
}
