//! `fleetwright servers`

use anyhow::Result;
use clap::Subcommand;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::InstanceId;

use super::{Context, exit, tables};
use crate::api::LogsView;
use crate::api::views::InstanceRow;

/// Shows servers and their output.
#[derive(Subcommand)]
pub(crate) enum ServersCommand {
    /// Lists all servers: where they run, how they are doing, where they are reached.
    List,
    /// Shows one server: its package, what it speaks, its tools, and what each check found.
    Show {
        /// The instance, as SERVER@HOST.
        instance: InstanceId,
    },
    /// Prints the last lines of a server's output.
    Logs {
        /// The instance, as SERVER@HOST.
        instance: InstanceId,
        /// How many lines, at most 1000.
        #[arg(short = 'n', long, default_value_t = 100)]
        lines: u32,
        /// As the server wrote it, also what a terminal obeys: colours, and whatever else the server wants.
        #[arg(long)]
        raw: bool,
    },
}

pub(super) async fn servers(command: ServersCommand, context: &Context) -> Result<u8> {
    let client = context.client()?;
    match command {
        ServersCommand::List => {
            let rows: Vec<InstanceRow> = client.get("/v1/servers").await?;
            context.ui.data(&rows, || tables::servers(&rows));
        }
        ServersCommand::Show { instance } => {
            let rows: Vec<InstanceRow> = client.get("/v1/servers").await?;
            let of_it = |row: &&InstanceRow| row.server == instance.server && row.host == instance.host;
            let Some(row) = rows.iter().find(of_it) else {
                let message = format!("{instance} is not deployed");
                let failure = Failure::new(FailureKind::ConfigurationError, "servers", message);
                return Err(failure.hint("`fleetwright servers list` shows what is").into());
            };
            context.ui.data(row, || tables::server(row));
        }
        ServersCommand::Logs { instance, lines, raw } => {
            let logs: LogsView = client.get(&format!("/v1/servers/{instance}/logs?lines={lines}")).await?;
            if raw && !context.ui.is_json() {
                context.ui.raw(&logs.lines.join("\n"));
            } else {
                context.ui.data(&logs, || logs.lines.join("\n"));
            }
        }
    }
    Ok(exit::DONE)
}
