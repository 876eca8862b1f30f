//! Hosts: what is known of them, tokens for new ones, and what operators say of their labels and addresses.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{ConnectInfo, Path as UrlPath, State};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::{FleetEvent, Introduction};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{HostName, InvalidId};
use fleetwright_deploy::time::Length;
use fleetwright_protocol::command::{CommandBody, CommandReply, UNKNOWN_COMMAND_SAYS};
use serde::{Deserialize, Serialize};

use super::look::unexpected;
use super::views::HostRow;
use super::{Answer, Api, Peer, Queried, Refusal, check_words, decide, ending, not_found};
use crate::clock;
use crate::engine::Request;

/// How long a token is valid unless the request says otherwise, and the longest it may be.
const TOKEN_LIFETIME: Length = Length::from_secs(3_600);
const TOKEN_LIFETIME_MAX: Length = Length::from_secs(7 * 24 * 3_600);

/// A token, and all that enrolling with it takes.
#[derive(Serialize, Deserialize)]
pub(crate) struct TokenView {
    pub(crate) host: HostName,
    pub(crate) token: String,
    pub(crate) coordinator: String,
    pub(crate) ca_fingerprint: String,
    pub(crate) expires_in: Length,
}

/// Labels of a host that change, and who says so. Those without a value are taken away.
#[derive(Serialize, Deserialize)]
pub(crate) struct LabelRequest {
    pub(crate) by: String,
    pub(crate) labels: BTreeMap<String, Option<String>>,
}

/// Where the servers of a host listen, and who says so.
#[derive(Serialize, Deserialize)]
pub(crate) struct AddressRequest {
    pub(crate) by: String,
    pub(crate) address: String,
}

#[derive(Deserialize)]
pub(super) struct TokenQuery {
    expires_in: Option<Length>,
}

pub(super) async fn list(State(api): State<Api>) -> Json<Vec<HostRow>> {
    let over = api.engine.budgets.over(clock::now());
    Json(api.engine.read(|view| HostRow::all(&view.fleet, &over)))
}

/// Without a body nothing is said of the host.
pub(super) async fn token(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    UrlPath(host): UrlPath<String>,
    Queried(query): Queried<TokenQuery>,
    introduction: Option<Json<Option<Introduction>>>,
) -> Answer<TokenView> {
    let host = name(&host)?;
    let introduction = introduction.and_then(|Json(introduction)| introduction).unwrap_or_default();
    check_words(&introduction.by, "")?;
    let lifetime = query.expires_in.unwrap_or(TOKEN_LIFETIME);
    if lifetime > TOKEN_LIFETIME_MAX || lifetime == Length::ZERO {
        return Err(not_found(format!("a token is valid for at most {TOKEN_LIFETIME_MAX}")));
    }
    let of = host.clone();
    let issued =
        api.engine.ask_as(peer.0, |reply| Request::IssueToken { host: of, lifetime, introduction, reply }).await;
    let token = issued.ok_or_else(ending)?.map_err(Refusal)?;
    Ok(Json(TokenView {
        host,
        token: token.reveal().to_owned(),
        coordinator: api.listen,
        ca_fingerprint: api.authority_fingerprint,
        expires_in: lifetime,
    }))
}

pub(super) async fn label(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    UrlPath(host): UrlPath<String>,
    Json(request): Json<LabelRequest>,
) -> Answer<HostRow> {
    let (host, LabelRequest { by, labels }) = (name(&host)?, request);
    check_words(&by, "")?;
    decide_about(&api, peer, host.clone(), FleetEvent::HostLabelled { host, labels, by }).await
}

pub(super) async fn address(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    UrlPath(host): UrlPath<String>,
    Json(request): Json<AddressRequest>,
) -> Answer<HostRow> {
    let (host, AddressRequest { by, address }) = (name(&host)?, request);
    check_words(&by, "")?;
    decide_about(&api, peer, host.clone(), FleetEvent::HostAddressed { host, address, by }).await
}

/// Has something decided about a host, and gives the host as it is then.
async fn decide_about(api: &Api, peer: Peer, host: HostName, event: FleetEvent) -> Answer<HostRow> {
    decide(api, peer, event).await?;
    let over = api.engine.budgets.over(clock::now());
    let row = api.engine.read(|view| HostRow::one(&view.fleet, &host, &over));
    row.map(Json).ok_or_else(|| not_found(format!("there is no host {host}")))
}

/// Has a host find out anew what it has. That changes nothing but what is known, and the host tells it like any news.
pub(super) async fn refresh(State(api): State<Api>, UrlPath(host): UrlPath<String>) -> Answer<HostView> {
    let host = name(&host)?;
    let of = host.clone();
    let asked = api.engine.ask(|reply| Request::LookAt { host: of, body: CommandBody::Refresh, reply }).await;
    match asked.ok_or_else(ending)? {
        Ok(CommandReply::View(view)) => Ok(Json(view.bounded())),
        Ok(_) => Err(unexpected(&host)),
        Err(failure) if failure.message.starts_with(UNKNOWN_COMMAND_SAYS) => {
            let message = format!("the agent of {host} does not know this command: it is older than the coordinator");
            let failure =
                Failure { host: Some(host), ..Failure::new(FailureKind::DependencyError, "refresh", message) };
            Err(Refusal(
                failure.hint(
                    "deploy the agent of this version; until then, one that is started anew asks everything anew",
                ),
            ))
        }
        Err(failure) => Err(Refusal(Failure { host: Some(host), ..failure })),
    }
}

fn name(host: &str) -> Result<HostName, Refusal> {
    host.parse().map_err(|error: InvalidId| not_found(error.to_string()))
}
