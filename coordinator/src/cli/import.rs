//! `fleetwright import`

use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use fleetwright_deploy::config;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::ServerName;
use serde_json::json;

use super::{Context, exit};

/// Makes a server definition from an entry of the MCP registry (`server.json`).
///
/// What the entry leaves open becomes a variable or a secret; what is to be looked at is said.
#[derive(clap::Args)]
pub(crate) struct ImportArguments {
    /// The entry, or what a registry answers for one.
    #[arg(value_name = "SERVER.JSON")]
    entry: PathBuf,
    /// Which of its packages, where it has several: pypi, npm or oci.
    #[arg(long, value_parser = ["pypi", "npm", "oci"])]
    registry: Option<String>,
    /// What the server is called here, if not as in the registry.
    #[arg(long)]
    name: Option<ServerName>,
    /// The port of its endpoint.
    #[arg(long, default_value_t = 8800)]
    port: u16,
    /// Where to write the definition, such as config/servers/NAME.yaml; without it, to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn import(arguments: &ImportArguments, context: &Context) -> Result<u8> {
    let shown = arguments.entry.display();
    let mut entry = String::new();
    // One byte more than is read shows that there is too much.
    std::fs::File::open(&arguments.entry)
        .and_then(|file| file.take(config::ENTRY_BYTES_MAX as u64 + 1).read_to_string(&mut entry))
        .with_context(|| format!("{shown} cannot be read"))?;
    let imported = config::import(&entry, arguments.registry.as_deref(), arguments.name.as_ref(), arguments.port);
    let imported = imported.map_err(|error| {
        Failure::new(FailureKind::ConfigurationError, "import", format!("{shown}: {error}"))
            .hint("`server.json` is described at https://github.com/modelcontextprotocol/registry")
    })?;
    if let Some(file) = &arguments.out {
        let mut written = std::fs::OpenOptions::new().write(true).create_new(true).open(file).with_context(|| {
            let hint = "what is there already is left alone: name another file, or remove that one";
            format!("{} cannot be made\n  hint: {hint}", file.display())
        })?;
        written.write_all(imported.text.as_bytes()).with_context(|| format!("{} cannot be written", file.display()))?;
        context.ui.say(&format!("wrote {}", file.display()));
    }
    for note in &imported.notes {
        context.ui.warn(note);
    }
    let value = json!({ "name": imported.name, "definition": imported.text, "notes": imported.notes });
    if arguments.out.is_none() || context.ui.is_json() {
        context.ui.data(&value, || imported.text.trim_end().to_owned());
    }
    Ok(exit::DONE)
}
