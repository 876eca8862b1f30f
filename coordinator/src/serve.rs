//! Running a coordinator over its state folder, as `fleetwright coordinator` does.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::{Context, Result};
use fleetwright_deploy::ids::FleetName;
use quinn::{Endpoint, TokioRuntime};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, Api, Peer};
use crate::clock;
use crate::embedded::Coordinator;
use crate::state_dir::{FleetFile, StateDir};

/// Serves agents and the local interface until SIGTERM or SIGINT.
pub(crate) async fn serve(state_dir: &StateDir) -> Result<()> {
    let FleetFile { name, listen } = state_dir.fleet()?;
    let coordinator = Coordinator::open(state_dir.path(), clock::system())?;
    let (endpoint, listen) = bind(state_dir, &coordinator, name.clone(), &listen)?;
    let api = Api {
        engine: coordinator.handle(),
        artifacts: coordinator.artifacts(),
        secrets: coordinator.secrets(),
        listen: listen.clone(),
        authority_fingerprint: state_dir.authority_fingerprint()?,
    };
    let socket = api::listen(&state_dir.socket())?;
    tracing::info!(fleet = %name, %listen, "the coordinator listens for agents");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // Under systemd somebody waits for this.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let until = async {
        tokio::select! {
            served = axum::serve(socket, api::router(api).into_make_service_with_connect_info::<Peer>()) => served?,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = std::fs::remove_file(state_dir.socket());
        Ok(())
    };
    coordinator.run(endpoint, until).await
}

/// Binds the port of this fleet. A fleet without one gets a free one, and keeps it: its agents know it.
fn bind(state_dir: &StateDir, coordinator: &Coordinator, name: FleetName, listen: &str) -> Result<(Endpoint, String)> {
    let address: SocketAddr = listen.parse().with_context(|| format!("`{listen}` is no address to listen on"))?;
    let (socket_config, server_config) = coordinator.endpoint_config()?;
    let endpoint = UdpSocket::bind(address)
        .and_then(|socket| Endpoint::new(socket_config, Some(server_config), socket, Arc::new(TokioRuntime)))
        .with_context(|| format!("nothing can listen on {address} (UDP)\n  hint: see who does with `ss -lunp`, or change `listen` in fleet.json"))?;
    let bound = endpoint.local_addr()?.to_string();
    if bound != listen {
        state_dir.save_fleet(&FleetFile { name, listen: bound.clone() })?;
    }
    Ok((endpoint, bound))
}
