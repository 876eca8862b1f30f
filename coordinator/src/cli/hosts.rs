//! `fleetwright hosts`

use anyhow::Result;
use clap::Subcommand;
use fleetwright_deploy::ids::HostName;
use fleetwright_deploy::time::Length;

use super::output::table;
use super::{Context, exit, tables};
use crate::api::TokenView;
use crate::api::views::HostRow;

/// Shows hosts, and lets new ones enrol.
#[derive(Subcommand)]
pub(crate) enum HostsCommand {
    /// Lists all hosts: whether they are connected, what they have.
    List,
    /// Makes a token with which one host may enrol once, and prints the command for that host.
    Token {
        /// The name of the host.
        host: HostName,
        /// How long the token is valid, at most 7d.
        #[arg(long, default_value = "1h")]
        expires_in: Length,
    },
}

pub(super) async fn hosts(command: HostsCommand, context: &Context) -> Result<u8> {
    let client = context.client()?;
    match command {
        HostsCommand::List => {
            let rows: Vec<HostRow> = client.get("/v1/hosts").await?;
            context.ui.data(&rows, || list(&rows));
        }
        HostsCommand::Token { host, expires_in } => {
            let token: TokenView = client.post(&format!("/v1/hosts/{host}/token?expires_in={expires_in}"), &()).await?;
            context.ui.data(&token, || {
                format!(
                    "on {}, within {}, run:\n  fleetwright-agent enroll --coordinator {} --token {} --ca-fingerprint {}\n  fleetwright-agent run",
                    token.host, token.expires_in, token.coordinator, token.token, token.ca_fingerprint
                )
            });
        }
    }
    Ok(exit::DONE)
}

fn list(rows: &[HostRow]) -> String {
    if rows.is_empty() {
        return "no host is enrolled; `fleetwright hosts token HOST` lets one enrol".to_owned();
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let labels = row.view.iter().flat_map(|view| &view.labels).map(|(key, value)| format!("{key}={value}"));
            let facts = row.view.as_ref().and_then(|view| view.facts.as_ref());
            let runtimes = facts.iter().flat_map(|facts| &facts.runtimes).map(|(name, versions)| {
                let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
                format!("{name} {}", versions.join("/"))
            });
            vec![
                row.host.to_string(),
                if row.connected { "connected".to_owned() } else { "not connected".to_owned() },
                row.since.to_string(),
                row.view.as_ref().map_or_else(String::new, |view| view.address.clone()),
                row.instances.to_string(),
                labels.collect::<Vec<_>>().join(","),
                runtimes.collect::<Vec<_>>().join(", "),
            ]
        })
        .collect();
    let over =
        rows.iter().filter_map(|row| Some(format!("\n{}", tables::over_budget(&row.host, row.over_budget.as_ref()?))));
    let table = table(&["HOST", "STATE", "SINCE", "ADDRESS", "SERVERS", "LABELS", "HAS"], &cells);
    table + &over.collect::<String>()
}
