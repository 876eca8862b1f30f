//! What agents ask of the engine: to enrol, to connect, to be heard.

use std::net::SocketAddr;

use anyhow::Result;
use fleetwright_certs::{Token, fingerprint};
use fleetwright_deploy::actor::Actor;
use fleetwright_deploy::deployment::{DeploymentEvent, Order, OrderName};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::{FleetEvent, Introduction};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{DeploymentId, HostName, InstanceId};
use fleetwright_deploy::reported;
use fleetwright_deploy::time::Length;
use fleetwright_protocol::enrol::Credentials;
use fleetwright_protocol::report::CoordinatorReply;

use super::operators::failure_of;
use super::{Authorities, Engine, NotObeyed, Reply, Request};
use crate::sessions::SessionHandle;

impl Engine {
    pub(super) fn host_connected(
        &mut self,
        host: HostName,
        view: HostView,
        session: SessionHandle,
        reply: Reply<CoordinatorReply>,
    ) {
        // The host may have enrolled anew since this connection was made.
        let counts = session.certificate_sha256();
        if counts.is_none() || counts != self.fleet.hosts().get(&host).map(|host| host.certificate_sha256.clone()) {
            if let Some(unsaid) = self.said.says("replaced certificate", Some(&host)) {
                tracing::warn!(%host, unsaid, "a connection was closed: its certificate is not the one its host enrolled with");
            }
            session.revoke();
            let _ = reply
                .send(CoordinatorReply::Refused("the certificate is not the one its host enrolled with".to_owned()));
            return;
        }
        let connected = self.greeted(&host, view);
        // A host may greet again over the same connection, or one that was taken over from; it has missed nothing then.
        let older = self.superseded.get(&host).into_iter().flatten();
        let is_fresh = older.chain(self.sessions.get(&host)).all(|known| known.id != session.id);
        let takes_over = connected.is_ok() && is_fresh;
        if takes_over {
            self.take_over(&host, session);
        }
        self.acknowledge(reply, connected);
        self.after_commit(move |engine, durable| {
            if takes_over && durable.is_ok() {
                engine.send_missed(&host);
            }
        });
    }

    /// A fresh connection of a host takes over from the one before.
    fn take_over(&mut self, host: &HostName, session: SessionHandle) {
        let from = session.peer_address();
        self.keep_superseded(host, |_| true);
        if let Some(older) = self.sessions.insert(host.clone(), session) {
            self.look_for_two(host.clone(), older.clone(), from);
            self.superseded.entry(host.clone()).or_default().push(older.clone());
            older.supersede();
        }
    }

    /// Forgets those superseded connections of a host that are gone, and all that are not to be kept.
    pub(super) fn keep_superseded(&mut self, host: &HostName, keep: impl Fn(&SessionHandle) -> bool) {
        if let Some(superseded) = self.superseded.get_mut(host) {
            superseded.retain(|older| older.is_open() && keep(older));
            if superseded.is_empty() {
                self.superseded.remove(host);
            }
        }
    }

    /// One certificate belongs to one host. Should its older connection still be used, from elsewhere, then two have it.
    fn look_for_two(&self, host: HostName, older: SessionHandle, newer_from: SocketAddr) {
        let requests = self.handle.requests.clone();
        tokio::spawn(async move {
            if let Some(older_from) = older.still_used_elsewhere(newer_from).await {
                let addresses = [older_from, newer_from.ip()];
                // An engine that has ended tells nobody anything.
                let _ = requests.send(Request::HostSeenTwice { host, addresses }.into()).await;
            }
        });
    }

    /// The host may have missed what was sent to it, or found it stale; what it did not miss, it will not do again.
    pub(super) fn send_missed(&self, host: &HostName) {
        self.announce_to(host);
        let missed: Vec<(DeploymentId, InstanceId, u32, Order)> = self
            .fleet
            .outstanding(host)
            .map(|(deployment, id, attempt, order)| (deployment.id().clone(), id.clone(), attempt, order))
            .collect();
        let now = self.clock.now();
        for (deployment, instance, attempt, order) in missed {
            self.send(&deployment, &instance, attempt, &order, now);
        }
    }

    /// Sends one order again, if it still is one.
    fn send_again(&self, deployment: &DeploymentId, instance: &InstanceId, attempt: u32, order: OrderName) {
        let is_it = |of: &DeploymentId, id: &InstanceId, at: u32, is: &Order| {
            of == deployment && id == instance && at == attempt && OrderName::from(is) == order
        };
        let found = self.fleet.outstanding(&instance.host).find(|(of, id, at, is)| is_it(of.id(), id, *at, is));
        if let Some((_, _, _, order)) = found {
            self.send(deployment, instance, attempt, &order, self.clock.now());
        }
    }

    /// A command that was signed before another deployment began is signed anew. One that is stale all the same comes
    /// from a coordinator that knows less than its hosts.
    pub(super) fn not_obeyed(
        &mut self,
        instance: InstanceId,
        deployment: DeploymentId,
        attempt: u32,
        order: OrderName,
        not_obeyed: NotObeyed,
    ) {
        let failure = match not_obeyed {
            NotObeyed::Stale(generation) if generation < self.fleet.generation() => {
                return self.send_again(&deployment, &instance, attempt, order);
            }
            NotObeyed::Stale(generation) => {
                let message = format!("{} has seen a later generation than {generation}", instance.host);
                Failure::new(FailureKind::PermissionError, "command", message)
                    .hint("was the coordinator's journal put back from an old backup? hosts obey no coordinator that knows less than they do")
            }
            NotObeyed::Refused(failure) => reported::failure(failure, &instance),
        };
        let event = DeploymentEvent::OrderRefused { instance, attempt, order, failure };
        self.event(FleetEvent::Deployment { deployment, event }).ok();
    }

    pub(super) fn issue_token(
        &mut self,
        host: HostName,
        lifetime: Length,
        introduction: Introduction,
        reply: Reply<Result<Token, Failure>>,
    ) {
        let issued = match Token::generate() {
            Err(error) => Err(Failure::new(FailureKind::ResourceError, "token", error.to_string())),
            Ok(token) => {
                let not_after = self.clock.now().after(lifetime);
                let token_sha256 = Token::sha256(token.reveal());
                let issued = self.event(FleetEvent::TokenIssued { host, token_sha256, not_after, introduction });
                issued.map(|()| token).map_err(failure_of)
            }
        };
        self.answer(reply, issued);
    }

    /// A certificate for the host that the token was made for. The token is used up before the certificate is out.
    pub(super) fn enrol(
        &mut self,
        token: &str,
        request_der: &[u8],
        reply: Reply<Result<Credentials, String>>,
    ) -> Result<()> {
        let Some(fleetwright_deploy::fleet::Token { host, introduction, .. }) =
            self.fleet.token(&Token::sha256(token), self.clock.now()).cloned()
        else {
            let _ = reply.send(Err("the token is not valid: it is unknown, expired or used up".to_owned()));
            return Ok(());
        };
        let Authorities { authority, commands, operator_public, .. } = &self.authorities;
        let certificate = match authority.issue_agent(host.as_str(), request_der, self.clock.now_unix_s()) {
            Ok(certificate) => certificate,
            Err(error) => {
                let _ = reply.send(Err(error.to_string()));
                return Ok(());
            }
        };
        let credentials = Credentials {
            fleet: self.fleet.name().clone(),
            host: host.clone(),
            certificate_pem: certificate.pem.clone(),
            authority_pem: authority.certificate().pem.clone(),
            command_keys: vec![commands.signer.public_pem()?],
            intent_keys: vec![operator_public.clone()],
        };
        let certificate_sha256 = fingerprint(&certificate.der);
        let actor = Actor::Host(host.clone());
        let enrolled =
            self.event_by(actor, FleetEvent::HostEnrolled { host: host.clone(), certificate_sha256, introduction });
        let superseded = self.superseded.remove(&host).unwrap_or_default();
        self.sessions.remove(&host).into_iter().chain(superseded).for_each(|session| session.revoke());
        let enrolled = enrolled.map(|()| credentials).map_err(|refused| refused.to_string());
        self.after_commit(move |_, durable| {
            let _ = reply.send(
                enrolled
                    .and_then(|credentials| durable.map(|()| credentials).map_err(|failure| failure.message.clone())),
            );
        });
        Ok(())
    }
}
