//! Looking for people: output, checks, snapshots. Nothing changes, and the engine waits for none of it.

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::HealthCheck;
use fleetwright_deploy::ids::ServerName;
use fleetwright_protocol::command::{CommandBody, CommandReply, LOG_LINES_MAX};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::Engine;

const STEP: &str = "look";

impl Engine {
    /// Answers a command that only looks, as soon as it can.
    pub(super) fn look(&self, body: CommandBody, reply: oneshot::Sender<CommandReply>) {
        let server = body.server().cloned();
        let place = |failure: Failure| match &server {
            Some(server) => failure.at(&self.verifier.host, server),
            None => failure,
        };
        let looking = self.looking(body).map_err(place);
        tokio::spawn(async move {
            let answer = match looking {
                Ok(looking) => looking.await,
                Err(failure) => CommandReply::Refused(failure),
            };
            let _ = reply.send(answer);
        });
    }

    fn looking(&self, body: CommandBody) -> Result<BoxFuture<'static, CommandReply>, Failure> {
        let machine = self.machine.clone();
        if !body.server().is_some_and(|server| machine.knows(server)) {
            return Err(Failure::new(FailureKind::ConfigurationError, STEP, "this host has no such server")
                .hint("`fleetwright servers list` shows what runs where"));
        }
        Ok(match body {
            CommandBody::Step { .. } | CommandBody::Intent { .. } => {
                return Err(Failure::new(FailureKind::PermissionError, STEP, "a step changes something"));
            }
            CommandBody::Logs { server, lines } => {
                let lines = lines.min(LOG_LINES_MAX) as usize;
                let reading = tokio::task::spawn_blocking(move || machine.output(&server, lines));
                reading.map(|lines| CommandReply::Logs(lines.unwrap_or_default())).boxed()
            }
            CommandBody::Check { server, tag } => {
                let checks = self.checks(&server, tag.as_deref())?;
                machine.check(&server, checks).map(CommandReply::Checks).boxed()
            }
            CommandBody::Snapshots { server } => machine.snapshots(&server).map(told(CommandReply::Snapshots)).boxed(),
            CommandBody::Snapshot { server, id, compare } => {
                let showing = machine.show_snapshot(&server, &id, compare);
                showing.map(told(|view| CommandReply::Snapshot(Box::new(view)))).boxed()
            }
        })
    }

    /// The checks of what runs that are meant.
    fn checks(&self, server: &ServerName, tag: Option<&str>) -> Result<Vec<HealthCheck>, Failure> {
        let Some(release) = self.running(server) else {
            return Err(Failure::new(FailureKind::ConfigurationError, STEP, "it does not run here"));
        };
        let mut checks = release.health_checks;
        let names: Vec<String> = checks.iter().map(|check| check.name.clone()).collect();
        checks.retain(|check| tag.is_none_or(|tag| check.is_tagged(tag)));
        match (checks.is_empty(), tag) {
            (false, _) => Ok(checks),
            (true, None) => Err(Failure::new(FailureKind::ConfigurationError, STEP, "it has no checks")
                .hint("give its definition `health_checks`")),
            (true, Some(tag)) => {
                let message = format!("none of its checks has the tag or group `{tag}`");
                let hint = format!("its checks are {}", names.join(", "));
                Err(Failure::new(FailureKind::ConfigurationError, STEP, message).hint(hint))
            }
        }
    }
}

fn told<T>(reply: impl FnOnce(T) -> CommandReply) -> impl FnOnce(Result<T, Failure>) -> CommandReply {
    |result| result.map_or_else(CommandReply::Refused, reply)
}
