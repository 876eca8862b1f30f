//! Peers without a certificate: they may enrol, soon, and nothing else. Whoever says nothing holds nobody up: the oldest of
//! them goes for one that comes, and only a token that counts takes one of the places in which certificates are made.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use fleetwright_certs::Token;
use fleetwright_deploy::shares::{Network, WaitingRoom};
use fleetwright_protocol::enrol::{EnrolReply, EnrolRequest};
use fleetwright_protocol::frame::{ENROL_BYTES_MAX, MESSAGE_BYTES_MAX};
use fleetwright_protocol::{close, read_frame, write_frame};
use quinn::Connection;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{EXCHANGE_TIMEOUT, Serving};
use crate::engine::Request;

/// How long a peer without a certificate has to show its token, and then to read the answer.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(3);
/// How many peers without a certificate are connected at once.
const STRANGERS_MAX: usize = 64;
/// How many of them are of one network, once places are short.
const STRANGERS_PER_NETWORK_MAX: usize = 16;
/// How many hosts whose token counts enrol at once.
const ENROLLING_MAX: usize = 32;

/// Those that are connected, and the places of those that enrol.
pub(super) struct Strangers {
    waiting: Mutex<(WaitingRoom, BTreeMap<u64, Connection>)>,
    enrolling: Semaphore,
}

/// A stranger's place in the waiting room, left when it is dropped.
struct Waiting<'a> {
    strangers: &'a Strangers,
    id: u64,
}

impl Strangers {
    pub(super) fn new() -> Self {
        let room = WaitingRoom::new(STRANGERS_MAX, STRANGERS_PER_NETWORK_MAX);
        Self { waiting: Mutex::new((room, BTreeMap::new())), enrolling: Semaphore::new(ENROLLING_MAX) }
    }

    /// Lets a peer in. Gives the connections that must go for it.
    fn enter(&self, id: u64, connection: &Connection) -> (Waiting<'_>, Vec<Connection>) {
        let network = Network::of(connection.remote_address().ip());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (room, connections) = &mut *waiting;
        let gone = room.enter(id, network).iter().filter_map(|gone| connections.remove(gone)).collect();
        connections.insert(id, connection.clone());
        (Waiting { strangers: self, id }, gone)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.strangers.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (room, connections) = &mut *waiting;
        room.leave(self.id);
        connections.remove(&self.id);
    }
}

/// Serves a peer without a certificate: it enrols, or it goes.
pub(super) async fn serve(connection: &Connection, id: u64, serving: &Serving) {
    let (waiting, gone) = serving.strangers.enter(id, connection);
    for gone in gone {
        if let Some(unsaid) = serving.said.says("an idle peer", None) {
            let from = gone.remote_address();
            tracing::warn!(%from, unsaid, "a peer that did not enrol had to go for another");
        }
        gone.close(close::BUSY.into(), b"others want to enrol too");
    }
    if enrol(connection, waiting, serving).await.is_err() {
        connection.close(close::BAD_MESSAGE.into(), b"no enrolment");
    }
}

async fn enrol(connection: &Connection, waiting: Waiting<'_>, serving: &Serving) -> Result<()> {
    let request = async {
        let (send, mut receive) = connection.accept_bi().await?;
        anyhow::Ok((send, read_frame(&mut receive, ENROL_BYTES_MAX).await?))
    };
    let (mut send, EnrolRequest::V1 { token, request_der }) = timeout(TOKEN_TIMEOUT, request).await??;
    // What costs little comes first: most that is sent here by others is not even the shape of a token.
    let sha256 = Token::sha256(&token);
    let now = serving.clock.now();
    let counts = Token::is_shaped(&token) && serving.engine.read(|view| view.fleet.token(&sha256, now).is_some());
    // Whoever is not enrolled stays one of the strangers until it goes.
    let mut waiting = Some(waiting);
    let reply = if counts {
        let _place = timeout(EXCHANGE_TIMEOUT, serving.strangers.enrolling.acquire()).await??;
        match serving.engine.ask(|reply| Request::Enrol { token, request_der, reply }).await {
            Some(Ok(credentials)) => {
                waiting = None;
                EnrolReply::Enrolled(Box::new(credentials))
            }
            Some(Err(why)) => refused(connection, serving, why),
            None => EnrolReply::Refused("the coordinator is ending".to_owned()),
        }
    } else {
        refused(connection, serving, "the token is not valid: it is unknown, expired or used up".to_owned())
    };
    let answer = async {
        write_frame(&mut send, &reply, MESSAGE_BYTES_MAX).await?;
        // The peer closes once it has read the answer.
        connection.closed().await;
        anyhow::Ok(())
    };
    let answered = timeout(TOKEN_TIMEOUT, answer).await?;
    drop(waiting);
    answered
}

fn refused(connection: &Connection, serving: &Serving, why: String) -> EnrolReply {
    if let Some(unsaid) = serving.said.says("an enrolment", None) {
        tracing::warn!(from = %connection.remote_address(), why, unsaid, "an enrolment was refused");
    }
    EnrolReply::Refused(why)
}
