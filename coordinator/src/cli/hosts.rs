//! `fleetwright hosts`

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Subcommand;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::Introduction;
use fleetwright_deploy::host::{Facts, HostView, UNKNOWN_MARK};
use fleetwright_deploy::ids::HostName;
use fleetwright_deploy::time::Length;
use futures_util::future::join_all;

use super::deploy::who;
use super::output::{describe, table};
use super::{Context, exit, tables};
use crate::api::hosts::{AddressRequest, LabelRequest, TokenView};
use crate::api::views::HostRow;
use crate::client::{Client, failure_in};

/// Shows hosts, says what they are, and lets new ones enrol.
#[derive(Subcommand)]
pub(crate) enum HostsCommand {
    /// Lists all hosts: whether they are connected, what they have, and what they claim.
    List,
    /// Shows one host: what operators say of it, and what it says itself.
    Show {
        /// The name of the host.
        host: HostName,
    },
    /// Makes a token with which one host may enrol once, and prints it with the command for that host.
    ///
    /// Labels and address are a part of the token: a host does not choose its own.
    Token {
        /// The name of the host.
        host: HostName,
        /// How long the token is valid, at most 7d.
        #[arg(long, default_value = "1h")]
        expires_in: Length,
        /// A label that the host has from then on; may be given several times. Without any, one that enrols anew keeps
        /// those it has.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
        labels: Vec<(String, String)>,
        /// The address at which its servers listen. Without it, a new host is believed what it says first, and one that
        /// enrols anew keeps the address it has.
        #[arg(long)]
        address: Option<String>,
    },
    /// Gives a host labels, or takes some away.
    Label {
        /// The name of the host.
        host: HostName,
        /// Labels to give it (`zone=a`), and names of labels to take away, each with a `-` behind it (`zone-`).
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = change)]
        labels: Vec<(String, Option<String>)>,
    },
    /// Has hosts find out anew which programs and engines they have.
    ///
    /// Hosts ask their programs once, and again when a program or the search path has changed. What they cannot see change,
    /// such as the version behind a shim or a package that gives an interpreter `venv`, is asked anew by this.
    Refresh {
        /// The names of the hosts.
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<HostName>,
    },
    /// Says at which address the servers of a host listen.
    ///
    /// Servers that are deployed from then on are told so; what runs already stays as it is.
    Address {
        /// The name of the host.
        host: HostName,
        /// The address: an IP address or a name, without a port.
        address: String,
    },
}

pub(super) async fn hosts(command: HostsCommand, context: &Context) -> Result<u8> {
    let client = context.client()?;
    match command {
        HostsCommand::List => {
            let rows: Vec<HostRow> = client.get("/v1/hosts").await?;
            context.ui.data(&rows, || list(&rows));
        }
        HostsCommand::Show { host } => {
            let rows: Vec<HostRow> = client.get("/v1/hosts").await?;
            let Some(row) = rows.iter().find(|row| row.host == host) else {
                let failure =
                    Failure::new(FailureKind::ConfigurationError, "hosts", format!("there is no host {host}"));
                return Err(failure.hint("`fleetwright hosts list` shows those that there are").into());
            };
            context.ui.data(row, || show(row));
        }
        HostsCommand::Token { host, expires_in, labels, address } => {
            let introduction = Introduction { by: who(), labels: labels.into_iter().collect(), address };
            let path = format!("/v1/hosts/{host}/token?expires_in={expires_in}");
            let token: TokenView = client.post(&path, &introduction).await?;
            context.ui.data(&token, || {
                format!(
                    "on {}, within {}, run:\n  fleetwright-agent enroll --coordinator {} --ca-fingerprint {} --token-file -\nand enter, as it is no argument that everybody on the host would see, this token:\n  {}\nthen run:\n  fleetwright-agent run",
                    token.host, token.expires_in, token.coordinator, token.ca_fingerprint, token.token
                )
            });
        }
        HostsCommand::Label { host, labels } => {
            let request = LabelRequest { by: who(), labels: labels.into_iter().collect() };
            let row: HostRow = client.post(&format!("/v1/hosts/{host}/labels"), &request).await?;
            context.ui.data(&row, || show(&row));
        }
        HostsCommand::Refresh { hosts } => return refresh(&hosts, &client, context).await,
        HostsCommand::Address { host, address } => {
            let request = AddressRequest { by: who(), address };
            let row: HostRow = client.post(&format!("/v1/hosts/{host}/address"), &request).await?;
            context.ui.data(&row, || show(&row));
        }
    }
    Ok(exit::DONE)
}

/// Asks hosts side by side; those that answer are told of also where others do not.
async fn refresh(hosts: &[HostName], client: &Client, context: &Context) -> Result<u8> {
    let asked = hosts.iter().map(|host| async move {
        let found: Result<HostView> = client.post(&format!("/v1/hosts/{host}/refresh"), &()).await;
        (host, found)
    });
    let answers = join_all(asked).await;
    let found: BTreeMap<&HostName, &HostView> =
        answers.iter().filter_map(|(host, found)| Some((*host, found.as_ref().ok()?))).collect();
    if !found.is_empty() {
        context.ui.data(&found, || {
            let lines = found.iter().map(|(host, view)| format!("{host} has {}", runtimes(view.facts.as_ref())));
            lines.collect::<Vec<_>>().join("\n")
        });
    }
    let all = answers.len();
    let mut failed: Vec<anyhow::Error> = answers.into_iter().filter_map(|(_, found)| found.err()).collect();
    match failed.pop() {
        None => Ok(exit::DONE),
        Some(error) if all == 1 => Err(error),
        Some(error) => {
            failed.push(error);
            for error in &failed {
                let told = failure_in(error).map_or_else(|| format!("{error:#}"), describe);
                context.ui.warn(&told);
            }
            Ok(exit::FAILED)
        }
    }
}

/// Reads a label.
fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads a change of a label.
fn change(text: &str) -> Result<(String, Option<String>), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), Some(value.to_owned()))),
        None => match text.strip_suffix('-') {
            Some(key) if !key.is_empty() => Ok((key.to_owned(), None)),
            Some(_) | None => Err("write KEY=VALUE, or KEY- to take a label away".to_owned()),
        },
    }
}

fn joined(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn facts(row: &HostRow) -> Option<&Facts> {
    row.view.as_ref().and_then(|view| view.facts.as_ref())
}

/// The programs and engines that a host says it has, and which have not answered it.
fn runtimes(facts: Option<&Facts>) -> String {
    let Some(facts) = facts else { return String::new() };
    if facts.are_unknown() {
        return "what it has is not known yet".to_owned();
    }
    let runtimes = facts.runtimes.iter().map(|(name, versions)| {
        let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
        match name.strip_prefix(UNKNOWN_MARK) {
            Some(name) => format!("{name} unknown"),
            None => format!("{name} {}", versions.join("/")),
        }
    });
    runtimes.collect::<Vec<_>>().join(", ")
}

fn state(row: &HostRow) -> &'static str {
    if row.connected { "connected" } else { "not connected" }
}

fn list(rows: &[HostRow]) -> String {
    if rows.is_empty() {
        return "no host is enrolled; `fleetwright hosts token HOST` lets one enrol".to_owned();
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.host.to_string(),
                state(row).to_owned(),
                row.since.to_string(),
                row.address.clone().unwrap_or_default(),
                row.instances.to_string(),
                joined(&row.labels),
                runtimes(facts(row)),
            ]
        })
        .collect();
    let mut text = table(&["HOST", "STATE", "SINCE", "ADDRESS", "SERVERS", "LABELS", "HAS"], &cells);
    for row in rows {
        text.extend(row.over_budget.as_ref().map(|over| format!("\n{}", tables::over_budget(&row.host, over))));
    }
    let troubles: Vec<Failure> = rows.iter().flat_map(|row| row.troubles.clone()).collect();
    if !troubles.is_empty() {
        text.push_str(&format!("\n\nto look at:\n{}", tables::host_troubles(&troubles)));
    }
    text
}

fn show(row: &HostRow) -> String {
    let mut lines = vec![
        format!("host {}: {} since {}, {} servers", row.host, state(row), row.since, row.instances),
        format!("  address  {}", row.address.as_deref().unwrap_or("none is believed yet")),
        format!("  labels   {}", joined(&row.labels)),
    ];
    if let Some(facts) = facts(row) {
        let [memory, disk] = [facts.memory_bytes, facts.disk_bytes].map(|bytes| bytes >> 20);
        lines.push(format!(
            "  says it has  {} {}, {} processors, {memory} MiB of memory, {disk} MiB of disk; {}",
            facts.os,
            facts.arch,
            facts.cpus,
            runtimes(Some(facts))
        ));
    }
    lines.extend(row.over_budget.as_ref().map(|over| tables::over_budget(&row.host, over)));
    if !row.troubles.is_empty() {
        lines.push(format!("to look at:\n{}", tables::host_troubles(&row.troubles)));
    }
    lines.join("\n")
}
