//! What an agent tells over one stream, and the answer. What it says is cut to its limits here, before anybody acts on it.

use std::time::Duration;

use fleetwright_deploy::failure::{Failure, OUTPUT_LINES_MAX};
use fleetwright_deploy::health::HealthReport;
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{HostName, InstanceId, ReleaseId};
use fleetwright_deploy::limits::last_lines;
use fleetwright_deploy::reported;
use fleetwright_protocol::artifact::CHUNKS_BYTES_MAX;
use fleetwright_protocol::frame::{MESSAGE_BYTES_MAX, read_length, read_payload};
use fleetwright_protocol::report::{AgentMessage, AgentMessageV1, CoordinatorReply, MetricsSample, SAMPLES_MAX};
use fleetwright_protocol::{FrameError, write_frame};
use quinn::{RecvStream, SendStream};
use tokio::time::timeout;

use super::allowance::Allowance;
use super::{EXCHANGE_TIMEOUT, Serving, SessionHandle};
use crate::artifacts::{Artifacts, is_sha256};
use crate::engine::Request;

/// How long an answer with chunks may take: as long as agents wait for it.
const CHUNKS_TIMEOUT: Duration = Duration::from_secs(60);

/// Who tells it: a host, over one of its connections.
#[derive(Clone)]
pub(super) struct Teller<'a> {
    pub(super) host: &'a HostName,
    pub(super) session: SessionHandle,
    pub(super) allowance: &'a Allowance,
}

/// Takes one message, and answers it.
pub(super) async fn message(
    mut send: SendStream,
    mut receive: RecvStream,
    from: Teller<'_>,
    serving: &Serving,
) -> Result<(), FrameError> {
    let allowance = from.allowance;
    let read = async {
        let bytes = read_length(&mut receive, MESSAGE_BYTES_MAX).await?;
        let room = allowance.frame(bytes).await;
        Ok::<_, FrameError>((read_payload(&mut receive, bytes).await?, room))
    };
    // The room is the frame's until it is answered.
    let (AgentMessage::V1(message), _room) = match timeout(EXCHANGE_TIMEOUT, read).await {
        Ok(read) => read?,
        Err(_) => return Ok(()),
    };
    let chunks = matches!(message, AgentMessageV1::GetChunks { .. } | AgentMessageV1::ListChunks { .. });
    let answer = async {
        let _answering = if chunks { allowance.artifact_answer().await } else { None };
        match taken(message, from, serving).await {
            Some(reply @ CoordinatorReply::Chunks(_)) => write_frame(&mut send, &reply, CHUNKS_BYTES_MAX).await,
            Some(reply) => write_frame(&mut send, &reply, MESSAGE_BYTES_MAX).await,
            // Without an acknowledgement the agent tells it again.
            None => Ok(()),
        }
    };
    timeout(if chunks { CHUNKS_TIMEOUT } else { EXCHANGE_TIMEOUT }, answer).await.unwrap_or(Ok(()))
}

async fn taken(message: AgentMessageV1, from: Teller<'_>, serving: &Serving) -> Option<CoordinatorReply> {
    let (engine, host) = (&serving.engine, from.host);
    let greets = matches!(message, AgentMessageV1::Hello { .. } | AgentMessageV1::Greeting { .. });
    if !greets && !from.session.has_greeted() {
        return Some(CoordinatorReply::Refused("greet first".to_owned()));
    }
    let on_host = |server| InstanceId::new(server, host.clone());
    match message {
        AgentMessageV1::Hello { view, agent_version: _ } => connected(view.into(), from, serving).await,
        AgentMessageV1::Greeting { view, agent_version: _ } => connected(view, from, serving).await,
        AgentMessageV1::Step { deployment, server, attempt, report } => {
            let instance = on_host(server);
            let report = reported::step(report, &instance);
            engine.ask(|reply| Request::StepReported { instance, deployment, attempt, report, reply }).await
        }
        AgentMessageV1::Health { server, release, report, output } => {
            condition(serving, on_host(server), release, report.into(), output).await
        }
        AgentMessageV1::Condition { server, release, report, output } => {
            condition(serving, on_host(server), release, report, output).await
        }
        AgentMessageV1::Metrics(sample) => Some(take_samples(serving, host, vec![sample])),
        AgentMessageV1::MetricsBatch(samples) if samples.len() > SAMPLES_MAX => {
            Some(CoordinatorReply::Refused(format!("{} samples in one message are too many", samples.len())))
        }
        AgentMessageV1::MetricsBatch(samples) => Some(take_samples(serving, host, samples)),
        AgentMessageV1::ListChunks { sha256, from } => {
            artifact(serving, host, sha256, move |store, sha256| {
                store.listed(sha256, from).map(CoordinatorReply::Listed)
            })
            .await
        }
        AgentMessageV1::GetChunks { sha256, numbers } => {
            let chunks = move |store: &Artifacts, sha256: &str| store.packed(sha256, &numbers);
            artifact(serving, host, sha256, move |store, sha256| chunks(store, sha256).map(CoordinatorReply::Chunks))
                .await
        }
    }
}

/// How a server is doing, within limits.
async fn condition(
    serving: &Serving,
    instance: InstanceId,
    release: ReleaseId,
    report: HealthReport,
    output: Vec<String>,
) -> Option<CoordinatorReply> {
    let (report, output) = (report.bounded(), last_lines(output, OUTPUT_LINES_MAX));
    serving.engine.ask(|reply| Request::HealthReported { instance, release, report, output, reply }).await
}

async fn connected(view: HostView, from: Teller<'_>, serving: &Serving) -> Option<CoordinatorReply> {
    let Teller { host, session, .. } = from;
    let view = view.bounded();
    let connected = session.clone();
    let asked = serving.engine.ask(|reply| Request::HostConnected { host: host.clone(), view, session, reply });
    let answer = asked.await;
    if answer == Some(CoordinatorReply::Acknowledged) {
        connected.greeted();
    }
    answer
}

fn take_samples(serving: &Serving, host: &HostName, samples: Vec<MetricsSample>) -> CoordinatorReply {
    let servers = serving.engine.read(|view| view.fleet.servers_of(host).into_iter().cloned().collect());
    serving.engine.samples.keep(host, samples, &servers);
    CoordinatorReply::Acknowledged
}

/// Answers from an artifact, if it is part of what the host is to stage: nobody reads what is meant for others.
async fn artifact(
    serving: &Serving,
    host: &HostName,
    sha256: String,
    read: impl FnOnce(&Artifacts, &str) -> Result<CoordinatorReply, Failure> + Send + 'static,
) -> Option<CoordinatorReply> {
    if !is_sha256(&sha256) {
        return Some(CoordinatorReply::Refused("that is not the SHA-256 of an artifact".to_owned()));
    }
    if !serving.engine.read(|view| view.fleet.may_fetch(host, &sha256)) {
        if let Some(unsaid) = serving.said.says("an artifact", Some(host)) {
            tracing::warn!(%host, sha256, unsaid, "a host asked for an artifact that nothing it is to run is made of");
        }
        return Some(CoordinatorReply::Refused("nothing that this host is to run is made of that artifact".to_owned()));
    }
    let store = serving.artifacts.clone();
    let read = tokio::task::spawn_blocking(move || read(&store, &sha256)).await.ok()?;
    Some(read.unwrap_or_else(|failure| CoordinatorReply::Refused(failure.message)))
}
