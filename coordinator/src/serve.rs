//! Running a coordinator over its state folder.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use fleetwright_deploy::fleet::Fleet;
use fleetwright_deploy::ids::FleetName;
use fleetwright_protocol::endpoint;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, Api};
use crate::commands::CommandMaker;
use crate::engine::{Authorities, Engine};
use crate::journal::{self, Journal, SqliteStore};
use crate::secrets::Secrets;
use crate::sessions;
use crate::state_dir::{FleetFile, StateDir};

/// Serves agents and the local interface until SIGTERM or SIGINT.
pub(crate) async fn serve(state_dir: &StateDir) -> Result<()> {
    let FleetFile { name, listen } = state_dir.fleet()?;
    let _lock = state_dir.lock()?;
    let (journal, fleet) = open_journal(state_dir, &name)?;
    let authorities = Authorities {
        authority: state_dir.authority(&name)?,
        commands: CommandMaker {
            signer: state_dir.command_signer()?,
            secrets: Secrets::new(state_dir.secrets(), state_dir.values_key()?),
        },
        operator_keys: state_dir.operator_keys()?,
        operator: state_dir.operator_signer()?,
    };
    let (endpoint, listen) = bind(state_dir, name.clone(), &listen)?;
    let (engine, handle) = Engine::open(fleet, journal, authorities);
    let api = Api {
        engine: handle.clone(),
        listen: listen.clone(),
        authority_fingerprint: state_dir.authority_fingerprint()?,
    };
    let socket = api::listen(&state_dir.socket())?;
    tracing::info!(fleet = %name, %listen, "the coordinator listens for agents");
    let agents = tokio::spawn(sessions::accept(endpoint.clone(), name, handle));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let ended = tokio::select! {
        ended = engine.run() => ended,
        served = axum::serve(socket, api::router(api)) => served.map_err(Into::into),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    agents.abort();
    endpoint.close(fleetwright_protocol::close::GOODBYE.into(), b"the coordinator is ending");
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), endpoint.wait_idle()).await;
    let _ = std::fs::remove_file(state_dir.socket());
    ended
}

/// Opens the journal, and says what was found wrong with it.
fn open_journal(state_dir: &StateDir, name: &FleetName) -> Result<(Journal<SqliteStore>, Fleet)> {
    let path = state_dir.journal();
    let (journal, fleet, opened, damaged) = journal::open_file(&path, name)?;
    if let Some(damaged) = damaged {
        let damaged = damaged.display();
        tracing::error!(%damaged, entries = journal.last(), "the journal was damaged: it goes on with its whole entries, and the damaged file is kept");
    }
    if opened.set_aside > 0 {
        tracing::warn!(
            entries = opened.set_aside,
            after = journal.last(),
            "the journal ended in torn entries: they were set aside"
        );
    }
    tracing::info!(entries = journal.last(), snapshot = opened.snapshot, folded = opened.folded, "the journal is open");
    Ok((journal, fleet))
}

/// Binds the port of this fleet. A fleet without one gets a free one, and keeps it: its agents know it.
fn bind(state_dir: &StateDir, name: FleetName, listen: &str) -> Result<(quinn::Endpoint, String)> {
    let address: SocketAddr = listen.parse().with_context(|| format!("`{listen}` is no address to listen on"))?;
    let config = endpoint::coordinator(&state_dir.tls()?)?;
    let endpoint = quinn::Endpoint::server(config, address)
        .with_context(|| format!("nothing can listen on {address} (UDP)\n  hint: see who does with `ss -lunp`, or change `listen` in fleet.json"))?;
    let bound = endpoint.local_addr()?.to_string();
    if bound != listen {
        state_dir.save_fleet(&FleetFile { name, listen: bound.clone() })?;
    }
    Ok((endpoint, bound))
}
