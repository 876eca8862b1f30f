//! The tables that more than one command shows.

use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::health::{HealthStatus, McpInfo};
use fleetwright_deploy::ids::HostName;
use fleetwright_deploy::journal_budget::OverBudget;
use fleetwright_deploy::printable::continued;

use super::output::{describe, table};
use crate::api::views::{DeploymentView, HostMetrics, InstanceRow};

/// Servers with their health and what their MCP endpoints said.
pub(crate) fn servers(rows: &[InstanceRow]) -> String {
    if rows.is_empty() {
        return "no server is deployed".to_owned();
    }
    let cells: Vec<Vec<String>> = rows.iter().map(server_cells).collect();
    table(&["SERVER", "HOST", "STATE", "HEALTH", "VERSION", "MCP SERVER", "PROTOCOL", "TOOLS", "URL"], &cells)
}

fn server_cells(row: &InstanceRow) -> Vec<String> {
    let mcp = row.report.mcp.as_ref();
    let health: &'static str = row.health.into();
    vec![
        row.server.to_string(),
        row.host.to_string(),
        state(row),
        health.to_owned(),
        row.version.clone().unwrap_or_default(),
        mcp.map_or_else(String::new, |mcp| format!("{} {}", mcp.name, mcp.version).trim().to_owned()),
        mcp.map_or_else(String::new, McpInfo::spoken),
        mcp.map_or_else(String::new, McpInfo::counted),
        row.url.clone().unwrap_or_default(),
    ]
}

/// Everything that is known of one server.
pub(crate) fn server(row: &InstanceRow) -> String {
    let health: &'static str = row.health.into();
    let mut lines = vec![
        format!("{}@{}  {}, {health}", row.server, row.host, state(row)),
        format!("  package   {}", row.package),
        format!("  release   {}", row.release),
    ];
    lines.extend(row.url.as_ref().map(|url| format!("  url       {url}")));
    if let Some(mcp) = &row.report.mcp {
        lines.push(format!("  calls itself {}", format!("{} {}", mcp.name, mcp.version).trim()));
        lines.push(format!("  protocol  {}", mcp.spoken()));
        if let Some(bridge) = &mcp.bridge {
            lines.push(format!(
                "  bridge    serves {} clients, sessions {}",
                bridge.eras.join(" and "),
                bridge.sessions
            ));
        }
        lines.push(format!("  tools     {}", mcp.counted()));
        lines.extend(mcp.left_out.iter().map(|tool| format!("    left out: {tool}")));
    }
    if row.report.restarts > 0 {
        lines.push(format!("  restarts  {}", row.report.restarts));
    }
    let checks = row.report.checks.iter();
    lines.extend(checks.map(|check| format!("  check `{}`: {}", check.name, check.outcome.message())));
    lines.join("\n")
}

/// Whether an instance runs, in one word.
fn state(row: &InstanceRow) -> String {
    let word = match (row.connected, &row.trouble, row.health) {
        (_, Some(_), _) => "stuck",
        (false, None, _) => "unreachable",
        (true, None, HealthStatus::Unhealthy) => "failing",
        (true, None, HealthStatus::Unknown) => "starting",
        (true, None, HealthStatus::Healthy | HealthStatus::Degraded | HealthStatus::NeedsAuthentication) => {
            if row.completes { "completed" } else { "running" }
        }
    };
    word.to_owned()
}

/// What is wrong with instances that need a person.
pub(crate) fn troubles(rows: &[InstanceRow]) -> String {
    let troubles = rows.iter().filter_map(|row| row.trouble.as_ref()).map(describe);
    troubles.collect::<Vec<_>>().join("\n")
}

/// What is to be looked at on hosts, with a hint for each kind once.
pub(crate) fn host_troubles(troubles: &[Failure]) -> String {
    let mut lines = Vec::new();
    for (n, trouble) in troubles.iter().enumerate() {
        lines.push(format!("  {}", continued(&trouble.message)));
        let last = troubles.get(n + 1).is_none_or(|next| next.hint != trouble.hint);
        lines.extend(trouble.hint.iter().filter(|_| last).map(|hint| format!("    hint: {}", continued(hint))));
    }
    lines.join("\n")
}

/// The steps of a deployment.
pub(crate) fn steps(view: &DeploymentView) -> String {
    let rows: Vec<Vec<String>> = view
        .steps
        .iter()
        .map(|step| {
            let action: &'static str = step.action.into();
            let release = step.release.as_ref().map_or_else(String::new, |release| release.short().to_owned());
            vec![
                (step.group + 1).to_string(),
                step.instance.to_string(),
                action.to_owned(),
                step.state.clone(),
                release,
            ]
        })
        .collect();
    table(&["GROUP", "INSTANCE", "ACTION", "STATE", "RELEASE"], &rows)
}

/// Every failure once: the same one is met on several ways.
pub(crate) fn failures(failures: &[Failure]) -> String {
    let mut shown: Vec<String> = Vec::new();
    for text in failures.iter().map(describe) {
        if !shown.contains(&text) {
            shown.push(text);
        }
    }
    shown.join("\n")
}

/// The newest metrics of hosts and their servers.
pub(crate) fn metrics(hosts: &[HostMetrics]) -> String {
    let mut rows = Vec::new();
    for HostMetrics { host, sample } in hosts {
        rows.push(vec![
            host.to_string(),
            String::new(),
            percent(sample.cpu_permille),
            format!("{} / {} MiB", sample.memory_used_bytes >> 20, sample.memory_total_bytes >> 20),
            format!("{} GiB free", sample.disk_free_bytes >> 30),
            format!("{} / {} MiB", sample.network_received_bytes >> 20, sample.network_sent_bytes >> 20),
        ]);
        for server in &sample.servers {
            rows.push(vec![
                host.to_string(),
                server.server.to_string(),
                percent(server.cpu_permille),
                format!("{} MiB", server.memory_bytes >> 20),
                String::new(),
                String::new(),
            ]);
        }
    }
    if rows.is_empty() {
        return "no metrics yet: agents send them every 10 s".to_owned();
    }
    table(&["HOST", "SERVER", "CPU", "MEMORY", "DISK", "NETWORK IN / OUT"], &rows)
}

/// That a host has used up its share of the journal.
pub(crate) fn over_budget(host: &HostName, over: &OverBudget) -> String {
    format!(
        "host {host} has used up its share of the journal since {}: {} reports of health were held back, {} greetings refused; look at its agent and at servers that flap",
        over.since, over.health_held_back, over.greetings_refused
    )
}

fn percent(permille: u32) -> String {
    format!("{}.{} %", permille / 10, permille % 10)
}
