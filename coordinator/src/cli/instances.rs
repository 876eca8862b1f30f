//! What people mean by `SERVER[@HOST]`.

use anyhow::{Result, bail};
use fleetwright_deploy::ids::{InstanceId, ServerName};

use crate::api::views::InstanceRow;
use crate::client::Client;

/// The instance of this name, or all instances of the server.
pub(super) async fn named(what: &str, client: &Client) -> Result<Vec<InstanceId>> {
    let rows: Vec<InstanceRow> = client.get("/v1/servers").await?;
    let all: Vec<InstanceId> = rows.into_iter().map(|row| InstanceId::new(row.server, row.host)).collect();
    let meant: Vec<InstanceId> = match (what.parse::<InstanceId>(), what.parse::<ServerName>()) {
        (Ok(instance), _) => all.iter().filter(|id| **id == instance).cloned().collect(),
        (Err(_), Ok(server)) => all.iter().filter(|id| id.server == server).cloned().collect(),
        (Err(error), Err(_)) => bail!("{error}\n  hint: write SERVER or SERVER@HOST"),
    };
    if meant.is_empty() {
        let known: Vec<String> = all.iter().map(ToString::to_string).collect();
        let known = if known.is_empty() { "nothing is deployed".to_owned() } else { known.join(", ") };
        bail!("nothing called {what} is deployed\n  hint: there is {known}");
    }
    Ok(meant)
}
