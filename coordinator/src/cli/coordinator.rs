//! `fleetwright coordinator`

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use fleetwright_deploy::ids::FleetName;
use fleetwright_deploy::printable::Printable;
use fleetwright_protocol::log_file::LogFile;

use super::{Context, exit};
use crate::clock;
use crate::serve::serve;
use crate::state_dir::{STATE_DIR_NAME, StateDir};

/// Runs the coordinator of a fleet until it is stopped. Makes the fleet if there is none.
#[derive(clap::Args)]
pub(crate) struct CoordinatorArguments {
    /// Where to listen for agents (UDP), when the fleet is made. Port 0 takes a free port, and keeps it.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS:PORT")]
    listen: String,
    /// The name of the fleet, when it is made.
    #[arg(long, default_value = "local")]
    fleet: FleetName,
    /// The public half of the operator's key, when the fleet is made. Without it, a key is made in the state folder.
    #[arg(long, value_name = "FILE")]
    operator_public: Option<PathBuf>,
}

pub(super) async fn coordinator(arguments: &CoordinatorArguments, context: &Context) -> Result<u8> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FLEETWRIGHT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    match LogFile::of_environment() {
        Some(file) => log.with_writer(std::sync::Mutex::new(Printable(file))).init(),
        None => log.with_writer(|| Printable(std::io::stderr())).init(),
    }
    let state_dir = match context.state_dir()? {
        Some(found) => found,
        None => StateDir::new(std::path::Path::new(STATE_DIR_NAME))?,
    };
    let named = match &arguments.operator_public {
        Some(file) => {
            Some((file, std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?))
        }
        None => None,
    };
    if state_dir.exists() {
        if let Some((file, pem)) = named
            && !is_same(&pem, &state_dir.operator_public()?)
        {
            bail!(
                "{} is not the operator's public key of the fleet in {}, which is made already\n  hint: leave --operator-public out, or name another folder with --state-dir to make another fleet",
                file.display(),
                state_dir.path().display()
            );
        }
    } else {
        let operator_public = match named {
            Some((_, pem)) => pem,
            None => make_operator_key(&state_dir).await?,
        };
        state_dir.create(&arguments.fleet, &arguments.listen, &operator_public, &clock::system())?;
    }
    state_dir.tighten()?;
    serve(&state_dir).await?;
    Ok(exit::DONE)
}

/// Whether two PEM texts are the same but for blanks and the ends of lines.
fn is_same(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}

/// Has another process make the operator's key, which this one never holds; gives its public half.
async fn make_operator_key(state_dir: &StateDir) -> Result<String> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(["operator-key", "export", "--create", "--state-dir"]).arg(state_dir.path());
    let ended =
        command.env_remove("FLEETWRIGHT_OPERATOR_KEY").status().await.context("the operator's key cannot be made")?;
    if !ended.success() {
        bail!("the operator's key could not be made: `fleetwright operator-key export` ended with {ended}");
    }
    state_dir.operator_public()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_keys_are_the_same_whatever_ends_their_lines() {
        assert!(is_same("-----BEGIN\nabc\n", "-----BEGIN\r\nabc"));
        assert!(!is_same("-----BEGIN\nabc\n", "-----BEGIN\nabd\n"));
    }
}
