//! The command line: one file per command. What a command prints as data goes to standard output; everything
//! else goes to standard error.

mod artifacts;
mod check;
mod config;
mod control;
mod coordinator;
mod deploy;
mod down;
mod explain;
mod follow;
mod graph;
mod halt;
mod hosts;
mod import;
mod init;
mod instances;
mod journal;
mod lock;
mod monitor;
mod operator_key;
mod output;
mod plan;
mod rollback;
mod schema;
mod secrets;
mod servers;
mod snapshots;
mod status;
mod tables;
mod up;
mod validate;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{CommandFactory, Parser, Subcommand};
use fleetwright_deploy::config::Problems;
use fleetwright_deploy::deployment::Outcome;

use self::output::{Format, Ui};
use crate::client::{Client, failure_in};
use crate::operator_key::OperatorKey;
use crate::state_dir::StateDir;

/// What the exit codes of the command mean.
pub(crate) mod exit {
    /// Done.
    pub(crate) const DONE: u8 = 0;
    /// The input is wrong, or the deployment failed.
    pub(crate) const FAILED: u8 = 1;
    /// The plan changes something (`plan --detailed-exitcode`).
    pub(crate) const CHANGES_PENDING: u8 = 3;
    /// The deployment failed and everything was put back.
    pub(crate) const ROLLED_BACK: u8 = 4;
    /// A person is needed.
    pub(crate) const STUCK: u8 = 5;
    /// The deployment failed, and only a part of it was put back.
    pub(crate) const PARTLY_ROLLED_BACK: u8 = 6;
    /// The command itself failed.
    pub(crate) const INTERNAL: u8 = 70;
}

/// What is taken from the permissions of everything that is made: all that others may do.
const UMASK: u32 = 0o077;

/// Deploys MCP servers, and any other daemon, across a fleet of hosts.
///
/// Exit codes: 0 done, 1 the input or the deployment failed, 2 usage, 3 changes pending (plan
/// --detailed-exitcode), 4 rolled back, 5 stuck or waiting: needs a person, 6 partly rolled back, 70 internal.
#[derive(Parser)]
#[command(name = "fleetwright", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// What every command takes.
#[derive(clap::Args)]
struct Global {
    /// The state folder of the fleet; without it, `.fleetwright` in this folder or one above it.
    #[arg(long, global = true, env = "FLEETWRIGHT_STATE_DIR", hide_env_values = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The unix socket of the coordinator, where it is not in the state folder.
    #[arg(long, global = true, env = "FLEETWRIGHT_COORDINATOR", hide_env_values = true, value_name = "SOCKET")]
    coordinator: Option<PathBuf>,
    /// The file with the operator's key, for commands that sign; without it, `operator.key` in the state folder.
    #[arg(long, global = true, env = "FLEETWRIGHT_OPERATOR_KEY", hide_env_values = true, value_name = "FILE")]
    operator_key: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    output: Format,
}

#[derive(Subcommand)]
enum Command {
    Init(init::InitArguments),
    Import(import::ImportArguments),
    Up(up::UpArguments),
    Down(down::DownArguments),
    Plan(plan::PlanArguments),
    Validate(validate::ValidateArguments),
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Schema(schema::SchemaArguments),
    Lock(lock::LockArguments),
    #[command(subcommand)]
    Deploy(deploy::DeployCommand),
    #[command(subcommand)]
    Monitor(monitor::MonitorCommand),
    Status(status::StatusArguments),
    #[command(subcommand)]
    Hosts(hosts::HostsCommand),
    #[command(subcommand)]
    Servers(servers::ServersCommand),
    #[command(subcommand)]
    Check(check::CheckCommand),
    #[command(subcommand)]
    Snapshots(snapshots::SnapshotsCommand),
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    #[command(subcommand)]
    Artifacts(artifacts::ArtifactsCommand),
    Explain(explain::ExplainArguments),
    Rollback(rollback::RollbackArguments),
    Halt(halt::HaltArguments),
    Unhalt(halt::UnhaltArguments),
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    Coordinator(coordinator::CoordinatorArguments),
    #[command(subcommand)]
    OperatorKey(operator_key::OperatorKeyCommand),
}

impl Command {
    /// Whether the files that it makes are a person's own, in a folder of theirs, and no state of a fleet.
    fn writes_for_people(&self) -> bool {
        matches!(self, Self::Init(_) | Self::Import(_) | Self::Lock(_) | Self::Plan(_))
    }
}

/// What commands work with.
pub(crate) struct Context {
    global: Global,
    pub(crate) ui: Ui,
}

impl Context {
    /// The state folder that was named, or the one that is found.
    pub(crate) fn state_dir(&self) -> Result<Option<StateDir>> {
        match &self.global.state_dir {
            Some(folder) => StateDir::new(folder).map(Some),
            None => StateDir::find(),
        }
    }

    /// The operator's key: the one that was named, or that of the state folder.
    pub(crate) fn operator_key(&self) -> Result<OperatorKey> {
        let in_state_dir = || Ok::<_, anyhow::Error>(self.state_dir()?.map(|state_dir| state_dir.operator_key_file()));
        let file = self.global.operator_key.clone().map_or_else(in_state_dir, |named| Ok(Some(named)))?;
        match file.filter(|file| file.exists()) {
            Some(file) => OperatorKey::read(&file),
            None => bail!(
                "the operator's key is not here\n  hint: name its file with --operator-key, or the state folder that holds it with --state-dir"
            ),
        }
    }

    /// The coordinator that was named, or that of the state folder.
    pub(crate) fn client(&self) -> Result<Client> {
        if let Some(socket) = &self.global.coordinator {
            let text = socket.to_string_lossy();
            return Client::new(text.strip_prefix("unix:").map_or(socket.as_path(), std::path::Path::new));
        }
        match self.state_dir()? {
            Some(state_dir) if state_dir.exists() => Client::new(&state_dir.socket()),
            Some(_) | None => bail!(
                "there is no fleet here\n  hint: `fleetwright up MANIFEST` makes one in this folder; or name one with --state-dir or --coordinator"
            ),
        }
    }
}

/// The help of every command, as Markdown: what `docs/cli.md` holds.
pub fn reference() -> String {
    let mut text = String::from(
        "# The `fleetwright` command\n\nGenerated from the command itself: `cargo run -p fleetwright-tests --bin generate`.\n",
    );
    let mut command = Arguments::command().term_width(100);
    command.build();
    describe_command(&mut command, &mut text);
    text
}

fn describe_command(command: &mut clap::Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or("fleetwright").to_owned();
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    text.push_str(&format!("\n## {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end()));
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
        describe_command(sub, text);
    }
}

/// What is wrong with a value, in words for people.
fn refused(error: clap::Error) -> clap::Error {
    if error.kind() != clap::error::ErrorKind::ValueValidation {
        return error;
    }
    clap::Error::raw(error.kind(), fleetwright_deploy::wording::of_argument(&error.to_string()))
}

/// Runs the command line and gives the exit code.
pub fn main() -> ExitCode {
    let Arguments { command, global } = Arguments::try_parse().unwrap_or_else(|error| refused(error).exit());
    if !command.writes_for_people() {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
    }
    let ui = Ui::new(global.output);
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let context = Context { ui, global };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            context.ui.error(&error.into());
            return ExitCode::from(exit::INTERNAL);
        }
    };
    match runtime.block_on(perform(command, &context)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            context.ui.error(&error);
            let known = error.downcast_ref::<Problems>().is_some() || failure_in(&error).is_some();
            let broken = error.chain().any(|cause| cause.is::<serde_json::Error>() || cause.is::<rusqlite::Error>());
            ExitCode::from(if !known && broken { exit::INTERNAL } else { exit::FAILED })
        }
    }
}

async fn perform(command: Command, context: &Context) -> Result<u8> {
    match command {
        Command::Import(arguments) => import::import(&arguments, context).await,
        Command::Init(arguments) => init::init(&arguments, context),
        Command::Up(arguments) => up::up(arguments, context).await,
        Command::Down(arguments) => down::down(&arguments, context).await,
        Command::Plan(arguments) => plan::plan(&arguments, context).await,
        Command::Validate(arguments) => validate::validate(&arguments, context),
        Command::Config(command) => config::config(command, context),
        Command::Schema(arguments) => schema::schema(&arguments, context),
        Command::Lock(arguments) => lock::lock(&arguments, context).await,
        Command::Deploy(command) => deploy::deploy(command, context).await,
        Command::Monitor(command) => monitor::monitor(command, context).await,
        Command::Status(arguments) => status::status(&arguments, context).await,
        Command::Hosts(command) => hosts::hosts(command, context).await,
        Command::Servers(command) => servers::servers(command, context).await,
        Command::Check(command) => check::check(command, context).await,
        Command::Snapshots(command) => snapshots::snapshots(command, context).await,
        Command::Secrets(command) => secrets::secrets(command, context).await,
        Command::Artifacts(command) => artifacts::artifacts(command, context).await,
        Command::Explain(arguments) => explain::explain(&arguments, context).await,
        Command::Rollback(arguments) => rollback::rollback(&arguments, context).await,
        Command::Halt(arguments) => halt::halt(arguments, context).await,
        Command::Unhalt(arguments) => halt::unhalt(&arguments, context).await,
        Command::Journal(command) => journal::journal(&command, context),
        Command::Coordinator(arguments) => coordinator::coordinator(&arguments, context).await,
        Command::OperatorKey(command) => operator_key::operator_key(command, context),
    }
}

/// The exit code that tells how a deployment ended.
pub(crate) fn exit_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Succeeded => exit::DONE,
        Outcome::Failed | Outcome::PartlySucceeded | Outcome::Cancelled => exit::FAILED,
        Outcome::RolledBack => exit::ROLLED_BACK,
        Outcome::PartlyRolledBack => exit::PARTLY_ROLLED_BACK,
        Outcome::Stuck => exit::STUCK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_not_right_is_told_in_words() {
        for (arguments, why) in [
            (["--port", "0"], "invalid value '0' for '--port <PORT>': 0 is not from 1 to 65535"),
            (["--port", "x"], "invalid value 'x' for '--port <PORT>': it is not a whole number"),
            (["--package", "99999999999999999999999"], "for '--package <NUMBER>': it is too large"),
        ] {
            let parsed = Arguments::try_parse_from([&["fleetwright", "import", "x"][..], &arguments].concat());
            let told = refused(parsed.err().expect("refused")).to_string();
            assert!(told.starts_with("error: ") && told.contains(why) && told.contains("--help"), "{told}");
        }
    }
}
