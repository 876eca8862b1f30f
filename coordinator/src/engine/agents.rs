//! What agents ask of the engine: to enrol, to connect, to be heard.

use std::net::IpAddr;

use anyhow::Result;
use fleetwright_certs::{Token, fingerprint};
use fleetwright_deploy::deployment::{DeploymentEvent, Order, OrderName};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::{FleetEvent, Introduction};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{DeploymentId, HostName, InstanceId};
use fleetwright_deploy::reported;
use fleetwright_deploy::time::{Length, Timestamp};
use fleetwright_protocol::enrol::Credentials;
use fleetwright_protocol::report::{CoordinatorReply, MetricsSample, SAMPLES_MAX};

use super::operators::failure_of;
use super::{Authorities, Engine, NotObeyed, Reply, Request};
use crate::sessions::SessionHandle;

/// How many samples of metrics are kept per host.
const SAMPLES_KEPT: usize = 360;

impl Engine {
    pub(super) fn host_connected(
        &mut self,
        host: HostName,
        view: HostView,
        session: SessionHandle,
        reply: Reply<CoordinatorReply>,
    ) {
        let connected = self.greeted(&host, view);
        if connected.is_ok() {
            let from = session.peer_address();
            let older = self.sessions.insert(host.clone(), session);
            let newest = self.sessions.get(&host).map(|session| session.id);
            // A host may greet again over the same connection.
            if let Some(older) = older.filter(|older| Some(older.id) != newest) {
                self.look_for_two(host.clone(), older.clone(), from);
                older.supersede();
            }
        }
        self.acknowledge(reply, connected);
        self.after_commit(move |engine, durable| {
            if durable.is_ok() {
                engine.send_missed(&host);
            }
        });
    }

    /// One certificate belongs to one host. Should its older connection still be used, from elsewhere, then two have it.
    fn look_for_two(&self, host: HostName, older: SessionHandle, newer_from: IpAddr) {
        let requests = self.handle.requests.clone();
        tokio::spawn(async move {
            if let Some(older_from) = older.still_used_elsewhere(newer_from).await {
                let addresses = [older_from, newer_from];
                // An engine that has ended tells nobody anything.
                let _ = requests.send(Request::HostSeenTwice { host, addresses }).await;
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
                return self.send_missed(&instance.host);
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

    pub(super) fn keep_samples(&mut self, host: HostName, mut new: Vec<MetricsSample>) {
        // Each server of the host once, and nothing else: what is kept is bounded by what the host is to run.
        let known_servers = self.fleet.servers_of(&host);
        for sample in &mut new {
            let mut known = known_servers.clone();
            sample.servers.retain(|metrics| known.remove(&metrics.server));
            sample.servers.shrink_to_fit();
        }
        let kept = self.samples.entry(host).or_default();
        // A batch whose acknowledgement was lost comes again.
        let known: Vec<Timestamp> = kept.iter().rev().take(SAMPLES_MAX).map(|sample| sample.at).collect();
        kept.extend(new.into_iter().filter(|sample| !known.contains(&sample.at)));
        let surplus = kept.len().saturating_sub(SAMPLES_KEPT);
        kept.drain(..surplus);
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
        let enrolled = self.event(FleetEvent::HostEnrolled { host: host.clone(), certificate_sha256, introduction });
        if let Some(session) = self.sessions.remove(&host) {
            session.revoke();
        }
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
