//! `fleetwright init`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use fleetwright_deploy::config::SHIPPED_STANDARD_CHECKS;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::planning;

use super::{Context, exit};

/// Writes a commented configuration to start from: one server, one environment, one manifest, checks that servers use by
/// name, and schemas with which editors complete and check all of them.
///
/// Files that are there already are left alone: then nothing is written.
#[derive(clap::Args)]
pub(crate) struct InitArguments {
    /// The folder; made if it is not there.
    #[arg(default_value = ".")]
    folder: PathBuf,
}

const FILES: [(&str, &str); 4] = [
    ("config/servers/time.yaml", SERVER),
    ("config/environments/development.yaml", ENVIRONMENT),
    ("deployments/first.yaml", MANIFEST),
    ("health-checks/standard-checks.yaml", SHIPPED_STANDARD_CHECKS),
];

const SERVER: &str = r#"# yaml-language-server: $schema=../../schemas/server.schema.json
# What a server is: what is installed, what is started, what is checked.
apiVersion: fleetwright/v1
name: time
description: Tells the time, and converts it between zones.

# From PyPI, npm, a container registry, or a file of yours: `package: { archive: dist/server.tar.gz, version: 1.2.0 }`.
package: { pypi: mcp-server-time, version: 2026.10.19 }
requires: [python>=3.10]

run:
  # Templates see the environment's variables, the host, and the server itself.
  command: [mcp-server-time, --local-timezone, "{{ env.timezone }}"]
  transport: stdio            # bridged to streamable HTTP on `port`; `http` and `none` are the others
  port: 8801

health_checks:
  # Healthy means: the protocol's handshake works, and these tools are listed. What fails here undoes the deployment.
  - { use: mcp-tools, with: { tools: [get_current_time, convert_time] } }   # from health-checks/standard-checks.yaml
  - name: disk                # or written out
    type: disk
    severity: warning
    config: { path: "{{ server.data_dir }}", free_min: 100MiB }

# What is no MCP server has `transport: none` and other checks: a web server `http`, a worker `file` (what it writes), a database
# `tcp` or `command`; an MCP server that listens itself has `transport: http`, and `path` where that is not /mcp.
#   run: { command: [nginx, -g, "daemon off;"], transport: none, port: 8080 }
#   health_checks: [{ name: page, type: http, config: { path: / } }]

# resources: { memory: 256MiB, cpu: 50% }
# snapshot: { data: true }    # keep the server's data before each deployment, and put it back with it
"#;

const ENVIRONMENT: &str = r#"# yaml-language-server: $schema=../../schemas/environment.schema.json
# Settings, secrets and rules that hold for everything that is deployed to this environment.
apiVersion: fleetwright/v1
name: development
variables:
  timezone: Etc/UTC

# secrets:
#   api_key: { env: API_KEY }            # or file, age, command; templates say {{ secret(name="api_key") }}

rules:
  critical_check: true                   # every server has a check whose failure undoes a deployment
"#;

const MANIFEST: &str = r#"# yaml-language-server: $schema=../schemas/manifest.schema.json
# Which servers run where, in which order, how carefully. Try it on this machine: `fleetwright up deployments/first.yaml`.
apiVersion: fleetwright/v1
name: first
environment: development
servers:
  - server: time
    place: { count: 1 }
    # depends_on: [other]                # deployed once those are healthy
rollout: { canary: 1, bake: 5s, max_unavailable: 1 }
rollback: { strategy: graceful }
"#;

pub(super) fn init(arguments: &InitArguments, context: &Context) -> Result<u8> {
    let schemas = planning::schema_files().into_iter();
    let schemas = schemas.map(|(name, text)| (arguments.folder.join("schemas").join(name), text));
    let files = FILES.iter().map(|(path, content)| (arguments.folder.join(path), (*content).to_owned()));
    let paths: Vec<(PathBuf, String)> = files.chain(schemas).collect();
    if let Some((there, _)) = paths.iter().find(|(path, _)| path.exists()) {
        let message = format!("{} is there already: nothing was written", there.display());
        let failure = Failure::new(FailureKind::ConfigurationError, "init", message);
        return Err(failure.hint("name another folder: `fleetwright init FOLDER`").into());
    }
    for (path, content) in &paths {
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(path, content))
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let shown = |path: &Path| path.strip_prefix(".").unwrap_or(path).display().to_string();
    let written: Vec<String> = paths.iter().map(|(path, _)| shown(path)).collect();
    context.ui.data(&written, || {
        let manifest = shown(&arguments.folder.join("deployments/first.yaml"));
        format!("wrote {}\n  `fleetwright up {manifest}` deploys it to agents on this machine", written.join(", "))
    });
    Ok(exit::DONE)
}
