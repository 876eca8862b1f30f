//! `fleetwright config`

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Subcommand;
use fleetwright_deploy::ids::{EnvironmentName, HostName, ServerName};
use serde::Serialize;
use serde_json::Value;

use super::output::table;
use super::{Context, exit};
use crate::project;

/// Shows configuration as it counts.
#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Shows the definition of a server with everything that environments put over it, before templates are rendered.
    Show {
        /// The server.
        server: ServerName,
        /// The environment; without it, what the definition itself says.
        #[arg(short, long)]
        environment: Option<EnvironmentName>,
        /// The host, for what counts on it alone.
        #[arg(long, requires = "environment")]
        host: Option<HostName>,
        /// Say of each value which file it comes from, instead.
        #[arg(long)]
        explain: bool,
        /// The folder with `servers` and `environments`; without it, `config` or `deploy/config` of this folder.
        #[arg(long, value_name = "DIR")]
        config: Option<PathBuf>,
    },
}

#[derive(Serialize)]
struct Shown {
    definition: Value,
    origins: BTreeMap<String, String>,
}

pub(super) fn config(command: ConfigCommand, context: &Context) -> Result<u8> {
    let ConfigCommand::Show { server, environment, host, explain, config } = command;
    let usual = || ["config", "deploy/config"].iter().map(PathBuf::from).find(|folder| folder.join("servers").is_dir());
    let Some(folder) = config.or_else(usual) else {
        bail!(
            "there is no configuration here\n  hint: name its folder with --config, or change to the folder that holds `config`"
        );
    };
    let resolved = project::resolve(&folder, &server, environment.as_ref(), host.as_ref())?;
    let text = resolved.source.text;
    let shown = Shown { definition: serde_saphyr::from_str(&text)?, origins: resolved.origins };
    context.ui.data(&shown, || {
        if !explain {
            return text.trim_end().to_owned();
        }
        let value = |path: &str| {
            let value = value_at(&shown.definition, path);
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.lines().next().unwrap_or_default().chars().take(60).collect::<String>()
        };
        let rows = shown.origins.iter().map(|(path, origin)| vec![path.clone(), value(path), origin.clone()]);
        table(&["VALUE", "IS", "FROM"], &rows.collect::<Vec<_>>())
    });
    Ok(exit::DONE)
}

/// The value at a path. Names of items may hold dots themselves.
fn value_at<'a>(value: &'a Value, path: &str) -> &'a Value {
    if path.is_empty() {
        return value;
    }
    let below = |name: &str| {
        path.strip_prefix(name).and_then(|rest| rest.strip_prefix('.').or_else(|| rest.is_empty().then_some(rest)))
    };
    match value {
        Value::Object(fields) => {
            let found = fields.iter().find_map(|(name, value)| Some(value_at(value, below(name)?)));
            found.unwrap_or(&Value::Null)
        }
        Value::Array(items) => {
            let name = |item: &'a Value| ["name", "use", "path", "tool"].iter().find_map(|key| item[key].as_str());
            let found = items.iter().find_map(|item| Some(value_at(item, below(name(item)?)?)));
            found.unwrap_or(&Value::Null)
        }
        _ => &Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_found_by_its_path_also_in_a_check_that_has_no_name_of_its_own() {
        let definition = json!({
            "run": { "environment": { "a.b": "dotted" } },
            "health_checks": [{ "use": "mcp-tools", "interval": "1s" }, { "use": "page", "name": "front", "timeout": "2s" }],
        });
        for (path, expected) in [
            ("run.environment.a.b", "dotted"),
            ("health_checks.mcp-tools.interval", "1s"),
            ("health_checks.front.timeout", "2s"),
        ] {
            assert_eq!(value_at(&definition, path), expected, "{path}");
        }
        assert_eq!(value_at(&definition, "health_checks.page.timeout"), &Value::Null);
    }
}
