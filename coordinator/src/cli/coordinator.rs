//! `fleetwright coordinator`

use anyhow::Result;
use fleetwright_deploy::ids::FleetName;
use fleetwright_deploy::printable::Printable;

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
}

pub(super) async fn coordinator(arguments: &CoordinatorArguments, context: &Context) -> Result<u8> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FLEETWRIGHT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Printable(std::io::stderr()))
        .with_ansi(false)
        .init();
    let state_dir = match context.state_dir()? {
        Some(found) => found,
        None => StateDir::new(std::path::Path::new(STATE_DIR_NAME))?,
    };
    if !state_dir.exists() {
        state_dir.create(&arguments.fleet, &arguments.listen, &clock::system())?;
    }
    serve(&state_dir).await?;
    Ok(exit::DONE)
}
