//! What operators ask of the engine: to start, undo, hold and decide; and to read a server's output.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fleetwright_deploy::admission::Purpose;
use fleetwright_deploy::deployment::{DeploymentEvent, Options};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::{FleetEvent, Refused};
use fleetwright_deploy::ids::{DeploymentId, HostName, InstanceId};
use fleetwright_deploy::plan::{Plan, RollbackStrategy};
use fleetwright_protocol::command::{CommandBody, CommandReply};
use tokio::sync::oneshot;

use super::{Engine, Reply};
use crate::commands::check_intents;
use crate::operator_key::concerns;
use crate::sessions::Outbound;

impl Engine {
    pub(super) fn start(
        &mut self,
        plan: Arc<Plan>,
        options: Options,
        intents: BTreeMap<HostName, String>,
        reply: Reply<Result<DeploymentId, Failure>>,
    ) {
        let keys = &self.authorities.operator_keys;
        let checked = self.fleet.may_start(&plan).map_err(|failure| *failure).and_then(|()| {
            check_intents(&intents, &plan, (Purpose::Deploy, plan.parent.next()), keys, |_| true)
                .map_err(|why| Failure::new(FailureKind::PermissionError, "pre_validation", why))
        });
        let started = checked.and_then(|()| {
            let id = DeploymentId::new(plan.parent.next(), &plan.id());
            let started = self.event(FleetEvent::DeploymentStarted { plan, options, intents });
            self.history_due |= started.is_ok();
            started.map(|()| id).map_err(failure_of)
        });
        self.answer(reply, started);
    }

    pub(super) fn roll_back(
        &mut self,
        deployment: DeploymentId,
        by: String,
        strategy: Option<RollbackStrategy>,
        only: BTreeSet<InstanceId>,
        mut intents: BTreeMap<HostName, String>,
        reply: Reply<Result<(), Failure>>,
    ) {
        // What is signed for others is of no use here, and was not looked at.
        intents.retain(|host, _| concerns(&only, host));
        let generation = self.fleet.generation().next();
        let keys = &self.authorities.operator_keys;
        let checked = match self.fleet.may_roll_back(&deployment, &only) {
            Ok(found) => check_intents(&intents, found.plan(), (Purpose::RollBack, generation), keys, |host| {
                concerns(&only, host)
            })
            .map_err(|why| Failure::new(FailureKind::PermissionError, "rollback", why)),
            Err(failure) => Err(*failure),
        };
        let rolled = checked.and_then(|()| {
            self.event(FleetEvent::RollbackRequested { deployment, by, strategy, only, intents }).map_err(failure_of)
        });
        self.answer(reply, rolled);
    }

    /// What an operator decides. One that does not fit is answered with what would.
    pub(super) fn control(
        &mut self,
        deployment: DeploymentId,
        event: DeploymentEvent,
        reply: Reply<Result<(), Failure>>,
    ) {
        let outcome = if self.fleet.deployment(&deployment).is_none() {
            let failure = Failure::new(
                FailureKind::ConfigurationError,
                "control",
                format!("there is no deployment {deployment}"),
            );
            Err(failure.hint("`fleetwright deploy list` shows the newest, `--before ID` older ones"))
        } else {
            let told = self.event(FleetEvent::Deployment { deployment: deployment.clone(), event });
            told.map_err(|refused| {
                let moves = self.fleet.deployment(&deployment).map(|found| found.moves()).unwrap_or_default();
                let failure = failure_of(refused);
                if moves.is_empty() { failure } else { failure.hint(format!("now you may: {}", moves.join(", "))) }
            })
        };
        self.answer(reply, outcome);
    }

    /// Asks an agent for something that changes nothing.
    pub(super) fn look_at(&self, host: &HostName, body: CommandBody, reply: Reply<Result<CommandReply, Failure>>) {
        let server = body.server().cloned();
        let failed = |kind, message: String| {
            let failure = Failure::new(kind, "look", message);
            if let Some(server) = &server { failure.at(host, server) } else { failure }
        };
        if !self.fleet.hosts().contains_key(host) {
            let failure = failed(FailureKind::ConfigurationError, format!("there is no host {host}"));
            let _ = reply.send(Err(failure.hint("`fleetwright hosts list` shows them")));
            return;
        }
        let Some(session) = self.sessions.get(host) else {
            let failure = failed(FailureKind::NetworkError, format!("{host} is not connected"));
            let _ = reply.send(Err(failure.hint("look at the agent on that host")));
            return;
        };
        match self.authorities.commands.look(&self.fleet, host, body, self.clock.now()) {
            Err(failure) => {
                let _ = reply.send(Err(failure));
            }
            Ok(envelope) => {
                let (command_reply, answer) = oneshot::channel();
                session.send(Outbound { envelope, reply: command_reply });
                let lost = failed(FailureKind::NetworkError, format!("{host} did not answer"));
                tokio::spawn(async move {
                    let _ = reply.send(match answer.await {
                        Ok(CommandReply::Refused(failure)) => Err(failure),
                        Ok(CommandReply::Accepted | CommandReply::Duplicate | CommandReply::Stale) | Err(_) => {
                            Err(lost)
                        }
                        Ok(looked) => Ok(looked),
                    });
                });
            }
        }
    }
}

/// What an operator is told about an event that was not taken.
pub(super) fn failure_of(refused: Refused) -> Failure {
    match refused {
        Refused::Failure(failure) => *failure,
        Refused::Deployment(_) | Refused::NoChange => {
            Failure::new(FailureKind::DeploymentError, "request", refused.to_string())
        }
    }
}
