//! `fleetwright schema`

use anyhow::Result;
use fleetwright_deploy::planning::{self, SchemaKind};

use super::{Context, exit};

/// Prints the JSON Schema of a kind of configuration file.
///
/// Editors complete and check a file whose first line is `# yaml-language-server: $schema=PATH`, where PATH leads from
/// the file to what this has printed. `fleetwright init` writes both.
#[derive(clap::Args)]
pub(crate) struct SchemaArguments {
    /// The kind of file.
    #[arg(value_parser = ["manifest", "server", "environment", "checks"])]
    kind: String,
}

pub(super) fn schema(arguments: &SchemaArguments, context: &Context) -> Result<u8> {
    let schema = planning::schema(arguments.kind.parse::<SchemaKind>()?);
    // It is JSON whatever the output is to be.
    context.ui.data(&schema, || serde_json::to_string_pretty(&schema).unwrap_or_default());
    Ok(exit::DONE)
}
