//! Looking for people: output, checks, snapshots. Nothing changes, and the engine waits for none of it.

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::HealthCheck;
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::ServerName;
use fleetwright_protocol::command::{CommandBody, CommandReply, LOG_LINES_MAX, REFRESH_TIMEOUT};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Engine;
use crate::machine::Work;

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
        if matches!(body, CommandBody::Refresh) {
            return Ok(refreshed(machine.refresh()).boxed());
        }
        if !body.server().is_some_and(|server| machine.knows(server)) {
            return Err(Failure::new(FailureKind::ConfigurationError, STEP, "this host has no such server")
                .hint("`fleetwright servers list` shows what runs where"));
        }
        Ok(match body {
            CommandBody::Step { .. } | CommandBody::Intent { .. } | CommandBody::Refresh => {
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

/// What a host has, asked anew. Whatever takes longer than its answer may goes on, and is told by another greeting.
async fn refreshed(refreshing: Work<HostView>) -> CommandReply {
    let refreshing = tokio::spawn(refreshing);
    match timeout(REFRESH_TIMEOUT.into(), refreshing).await {
        Ok(Ok(Ok(view))) => CommandReply::View(Box::new(view)),
        Ok(Ok(Err(failure))) => CommandReply::Refused(failure),
        Ok(Err(error)) => CommandReply::Refused(Failure::new(FailureKind::DeploymentError, STEP, error.to_string())),
        Err(_) => {
            let message = format!("not everything on this host has answered within {REFRESH_TIMEOUT}");
            CommandReply::Refused(
                Failure::new(FailureKind::TimeoutError, STEP, message)
                    .hint("it is still being asked, and told when it has answered: `fleetwright hosts show HOST`"),
            )
        }
    }
}

fn told<T>(reply: impl FnOnce(T) -> CommandReply) -> impl FnOnce(Result<T, Failure>) -> CommandReply {
    |result| result.map_or_else(CommandReply::Refused, reply)
}
