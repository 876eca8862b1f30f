//! Enrolment: a key is made here, and certified by the coordinator whose authority the operator named.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use fleetwright_certs::{COORDINATOR_DNS_NAME, PinnedAuthority, key_and_request};
use fleetwright_protocol::enrol::{EnrolReply, EnrolRequest};
use fleetwright_protocol::frame::MESSAGE_BYTES_MAX;
use fleetwright_protocol::{Clock, close, endpoint, read_frame, write_frame};
use quinn::Endpoint;

use crate::identity::AgentIdentity;
use crate::layout::Layout;

/// What the operator gave on the command line.
pub struct Enrolment {
    /// The coordinator, `HOST:PORT`.
    pub coordinator: String,
    /// The token that was made for this host.
    pub token: String,
    /// The fingerprint of the fleet's authority, `sha256:HEX`.
    pub authority_fingerprint: String,
    /// The address that servers of this host listen on, where the host is to say one.
    pub address: Option<String>,
}

/// Enrols this host over an endpoint, unless it is enrolled already.
pub async fn enroll(
    state_dir: &Path,
    enrolment: Enrolment,
    mut client: Endpoint,
    clock: &Clock,
) -> Result<AgentIdentity> {
    let layout = Layout::new(state_dir);
    if let Some(identity) = AgentIdentity::load(&layout.identity())? {
        bail!(
            "this agent is enrolled already, as host {} of fleet {}\n  hint: to enrol it anew, stop it and remove {}",
            identity.host,
            identity.fleet,
            layout.identity().display()
        );
    }
    let pinned = PinnedAuthority::new(&enrolment.authority_fingerprint, endpoint::provider())?;
    client.set_default_client_config(endpoint::enrolling(pinned, clock)?);
    let to = resolve(&enrolment.coordinator).await?;
    // Before it dials: a coordinator waits for the token only for a moment.
    let made = key_and_request()?;
    let connection = client
        .connect(to, COORDINATOR_DNS_NAME)?
        .await
        .with_context(|| format!("no connection to the coordinator at {}", enrolment.coordinator))
        .context(
            "hint: check the address, and that --ca-fingerprint is the one that `fleetwright hosts token` printed",
        )?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let request = EnrolRequest::V1 { token: enrolment.token, request_der: made.request_der };
    write_frame(&mut send, &request, MESSAGE_BYTES_MAX).await?;
    let reply: EnrolReply = read_frame(&mut receive, MESSAGE_BYTES_MAX).await?;
    connection.close(close::GOODBYE.into(), b"enrolled");
    client.wait_idle().await;
    match reply {
        EnrolReply::Refused(why) => bail!(
            "the coordinator refused the enrolment: {why}\n  hint: make a new token with `fleetwright hosts token HOST`"
        ),
        EnrolReply::Enrolled(credentials) => {
            let address = enrolment.address.unwrap_or_default();
            let identity = AgentIdentity::new(*credentials, &enrolment.coordinator, address);
            identity.save(&layout.identity(), &made.key_pem)?;
            Ok(identity)
        }
    }
}

/// The first address that a `HOST:PORT` stands for.
pub(crate) async fn resolve(coordinator: &str) -> Result<SocketAddr> {
    let mut found = tokio::net::lookup_host(coordinator)
        .await
        .with_context(|| format!("`{coordinator}` is no address of a coordinator: write HOST:PORT"))?;
    found.next().with_context(|| format!("`{coordinator}` has no address"))
}
