//! Enrolment: a key is made here, and certified by the coordinator whose authority the operator named.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use fleetwright_certs::{COORDINATOR_DNS_NAME, PinnedAuthority, key_and_request};
use fleetwright_protocol::enrol::{EnrolReply, EnrolRequest};
use fleetwright_protocol::frame::MESSAGE_BYTES_MAX;
use fleetwright_protocol::{Clock, close, endpoint, read_frame, write_frame};
use quinn::{ConnectionError, Endpoint, TransportErrorCode};
use tokio::time::{Instant, sleep, timeout};

use crate::identity::AgentIdentity;
use crate::layout::Layout;
use crate::session::jittered;

/// How long a coordinator that does not answer is asked again, how long it has to answer, and the pause between.
const TRIES_TIME: Duration = Duration::from_secs(60);
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
const TRY_PAUSE: Duration = Duration::from_secs(2);

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
    let request = EnrolRequest::V1 { token: enrolment.token, request_der: made.request_der };
    let until = Instant::now() + TRIES_TIME;
    let reply = loop {
        let tried = timeout(EXCHANGE_TIMEOUT, ask(&client, to, &request)).await;
        let why = match tried {
            Ok(Ok(reply)) => break reply,
            Ok(Err(Unanswered::Final(error))) => {
                return Err(not_reached(error, &enrolment.coordinator));
            }
            Ok(Err(Unanswered::Lost(error))) => error,
            Err(_) => anyhow!("it does not answer"),
        };
        let pause = jittered(TRY_PAUSE);
        if Instant::now() + pause >= until {
            return Err(not_reached(why, &enrolment.coordinator));
        }
        tracing::debug!(error = format!("{why:#}"), "the coordinator did not answer; it is asked again");
        sleep(pause).await;
    };
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

/// Why a coordinator gave no answer.
enum Unanswered {
    /// Asking again changes nothing.
    Final(anyhow::Error),
    /// It had no place, or is not there now.
    Lost(anyhow::Error),
}

/// Asks once.
async fn ask(client: &Endpoint, to: SocketAddr, request: &EnrolRequest) -> Result<EnrolReply, Unanswered> {
    let connecting = client.connect(to, COORDINATOR_DNS_NAME).map_err(|error| Unanswered::Final(error.into()))?;
    let connection = connecting.await.map_err(|error| unanswered(Some(&error), error.clone().into()))?;
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        write_frame(&mut send, request, MESSAGE_BYTES_MAX).await?;
        anyhow::Ok(read_frame::<EnrolReply>(&mut receive, MESSAGE_BYTES_MAX).await?)
    };
    let reply = exchange.await.map_err(|error| unanswered(connection.close_reason().as_ref(), error))?;
    connection.close(close::GOODBYE.into(), b"enrolled");
    Ok(reply)
}

/// Tells a coordinator that cannot be asked now from one that must not be, or that does not want to be.
fn unanswered(closed: Option<&ConnectionError>, error: anyhow::Error) -> Unanswered {
    let is_lost = match closed {
        Some(ConnectionError::TimedOut | ConnectionError::Reset) => true,
        Some(ConnectionError::ApplicationClosed(closed)) => {
            [close::BUSY, close::GOODBYE].iter().any(|code| closed.error_code == (*code).into())
        }
        // It let go of the connection before there was one.
        Some(ConnectionError::ConnectionClosed(closed)) => {
            [TransportErrorCode::CONNECTION_REFUSED, TransportErrorCode::APPLICATION_ERROR].contains(&closed.error_code)
        }
        Some(_) | None => false,
    };
    if is_lost { Unanswered::Lost(error) } else { Unanswered::Final(error) }
}

fn not_reached(why: anyhow::Error, coordinator: &str) -> anyhow::Error {
    why.context(format!("no connection to the coordinator at {coordinator}"))
        .context("hint: check the address, and that --ca-fingerprint is the one that `fleetwright hosts token` printed")
}

/// The first address that a `HOST:PORT` stands for.
pub(crate) async fn resolve(coordinator: &str) -> Result<SocketAddr> {
    let mut found = tokio::net::lookup_host(coordinator)
        .await
        .with_context(|| format!("`{coordinator}` is no address of a coordinator: write HOST:PORT"))?;
    found.next().with_context(|| format!("`{coordinator}` has no address"))
}

#[cfg(test)]
mod tests {
    use quinn::{ApplicationClose, ConnectionClose};

    use super::*;

    #[test]
    fn a_coordinator_that_is_busy_or_away_is_asked_again_and_a_refusal_is_final() {
        let asks_again =
            |closed: &ConnectionError| matches!(unanswered(Some(closed), anyhow!("why")), Unanswered::Lost(_));
        let by_it = |code: u32| {
            ConnectionError::ApplicationClosed(ApplicationClose { error_code: code.into(), reason: Default::default() })
        };
        let in_handshake = |error_code| {
            ConnectionError::ConnectionClosed(ConnectionClose {
                error_code,
                frame_type: None,
                reason: Default::default(),
            })
        };
        for lost in [ConnectionError::TimedOut, ConnectionError::Reset, by_it(close::BUSY), by_it(close::GOODBYE)] {
            assert!(asks_again(&lost), "{lost}");
        }
        assert!(asks_again(&in_handshake(TransportErrorCode::CONNECTION_REFUSED)));
        for last in [by_it(close::NOT_PERMITTED), by_it(close::BAD_MESSAGE), ConnectionError::LocallyClosed] {
            assert!(!asks_again(&last), "{last}");
        }
        assert!(
            !asks_again(&in_handshake(TransportErrorCode::crypto(48))),
            "a certificate that is not the pinned one's"
        );
    }
}
