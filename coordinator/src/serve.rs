//! Running a coordinator over its state folder, as `fleetwright coordinator` does.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use fleetwright_deploy::ids::FleetName;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, Api};
use crate::clock;
use crate::embedded::Coordinator;
use crate::state_dir::{FleetFile, StateDir};

/// How long the last words to agents may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves agents and the local interface until SIGTERM or SIGINT.
pub(crate) async fn serve(state_dir: &StateDir) -> Result<()> {
    let FleetFile { name, listen } = state_dir.fleet()?;
    let coordinator = Coordinator::open(state_dir.path(), clock::system())?;
    let (endpoint, listen) = bind(state_dir, &coordinator, name.clone(), &listen)?;
    let api = Api {
        engine: coordinator.handle(),
        listen: listen.clone(),
        authority_fingerprint: state_dir.authority_fingerprint()?,
    };
    let socket = api::listen(&state_dir.socket())?;
    tracing::info!(fleet = %name, %listen, "the coordinator listens for agents");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let ended = tokio::select! {
        ended = coordinator.run(endpoint.clone()) => ended,
        served = axum::serve(socket, api::router(api)) => served.map_err(Into::into),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, endpoint.wait_idle()).await;
    let _ = std::fs::remove_file(state_dir.socket());
    ended
}

/// Binds the port of this fleet. A fleet without one gets a free one, and keeps it: its agents know it.
fn bind(
    state_dir: &StateDir,
    coordinator: &Coordinator,
    name: FleetName,
    listen: &str,
) -> Result<(quinn::Endpoint, String)> {
    let address: SocketAddr = listen.parse().with_context(|| format!("`{listen}` is no address to listen on"))?;
    let endpoint = quinn::Endpoint::server(coordinator.endpoint_config()?, address)
        .with_context(|| format!("nothing can listen on {address} (UDP)\n  hint: see who does with `ss -lunp`, or change `listen` in fleet.json"))?;
    let bound = endpoint.local_addr()?.to_string();
    if bound != listen {
        state_dir.save_fleet(&FleetFile { name, listen: bound.clone() })?;
    }
    Ok((endpoint, bound))
}
