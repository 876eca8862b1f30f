//! Making the signed command for an order: its id, its intent, and, for a release, its bytes and secrets.

use std::sync::Arc;

use fleetwright_certs::{Signer, TrustedKeys};
use fleetwright_deploy::deployment::{Deployment, Order, OrderName};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::Fleet;
use fleetwright_deploy::ids::{CommandId, DeploymentId, Generation, HostName, InstanceId, ServerName};
use fleetwright_deploy::limits::size;
use fleetwright_deploy::plan::Plan;
use fleetwright_deploy::time::{Length, Timestamp};
use fleetwright_protocol::command::{COMMAND_LIFETIME, Command, CommandBody, CommandV1, IntentV1, StepOrder};
use fleetwright_protocol::frame::{decode, encode};
use fleetwright_protocol::{Envelope, FrameError, Intent};

use crate::secrets::Secrets;

/// How long an operator's intent counts.
pub(crate) const INTENT_LIFETIME: Length = Length::from_secs(24 * 3_600);

/// Signs what the coordinator sends.
pub(crate) struct CommandMaker {
    pub(crate) signer: Signer,
    pub(crate) secrets: Arc<Secrets>,
}

impl CommandMaker {
    /// The command for an order to an instance. The same order of the same attempt always has the same id.
    pub(crate) fn step(
        &self,
        fleet: &Fleet,
        deployment: &Deployment,
        instance: &InstanceId,
        attempt: u32,
        order: &Order,
        now: Timestamp,
    ) -> Result<Envelope, Failure> {
        let failed = |why: String| {
            Failure::new(FailureKind::DeploymentError, "command", why).at(&instance.host, &instance.server)
        };
        let intent = fleet
            .intent(deployment.id(), &instance.host)
            .ok_or_else(|| failed("the operator has signed no intent for this host".to_owned()))?;
        let intent = open_text(intent).map_err(|error| failed(error.to_string()))?;
        let Intent::V1(meant) = decode(&intent.payload).map_err(|error| failed(error.to_string()))?;
        let name: &'static str = OrderName::from(order).into();
        let id = CommandId::of(deployment.id(), instance, attempt, name, meant.generation);
        let order = match order {
            Order::Stage { .. } => {
                let release = deployment
                    .planned_release(instance)
                    .ok_or_else(|| failed("the plan has no release for it".to_owned()))?;
                StepOrder::Stage { release: release.to_bytes(), secrets: self.secrets.reveal(release)? }
            }
            Order::Switch { target, confirm_within, healthy_deadline, min_healthy_time } => StepOrder::Switch {
                target: target.clone(),
                confirm_within: *confirm_within,
                healthy_deadline: *healthy_deadline,
                min_healthy_time: *min_healthy_time,
            },
            Order::Confirm => StepOrder::Confirm,
            Order::Restore { drain } => StepOrder::Restore { drain: *drain },
            Order::Resolve => StepOrder::Resolve,
            Order::Test => StepOrder::Test,
            Order::Clean => StepOrder::Clean,
        };
        let body = CommandBody::Step {
            deployment: deployment.id().clone(),
            server: instance.server.clone(),
            attempt,
            intent,
            order,
        };
        self.seal(fleet, &instance.host, id, body, now).map_err(|error| match error {
            FrameError::TooLarge { bytes, limit } => {
                let message =
                    format!("the release is too large for a command: {}, the limit is {}", size(bytes), size(limit));
                Failure::new(FailureKind::ConfigurationError, "command", message)
                    .hint("make its `files` smaller, or deploy them as an artifact: `package: { artifact: … }`")
                    .at(&instance.host, &instance.server)
            }
            other => failed(other.to_string()),
        })
    }

    /// A command that only looks.
    pub(crate) fn look(
        &self,
        fleet: &Fleet,
        host: &HostName,
        body: CommandBody,
        now: Timestamp,
    ) -> Result<Envelope, Failure> {
        let mut id = [0; 16];
        let failed = |why: String| Failure::new(FailureKind::DeploymentError, "command", why);
        getrandom::fill(&mut id).map_err(|error| failed(error.to_string()))?;
        self.seal(fleet, host, CommandId(id), body, now).map_err(|error| failed(error.to_string()))
    }

    fn seal(
        &self,
        fleet: &Fleet,
        host: &HostName,
        id: CommandId,
        body: CommandBody,
        now: Timestamp,
    ) -> Result<Envelope, FrameError> {
        let command = CommandV1 {
            fleet: fleet.name().clone(),
            host: host.clone(),
            id,
            generation: fleet.generation(),
            issued_at: now,
            not_after: now.after(COMMAND_LIFETIME),
            body,
        };
        Envelope::seal(&Command::V1(command), &self.signer)
    }
}

/// What an operator signs: for each host, which servers a plan lets run which release.
pub(crate) fn sign_intents(
    fleet: &fleetwright_deploy::ids::FleetName,
    deployment: &DeploymentId,
    plan: &Plan,
    generation: Generation,
    signer: &Signer,
    now: Timestamp,
) -> Result<std::collections::BTreeMap<HostName, String>, FrameError> {
    let plan_id = plan.id();
    let signed = plan.per_host().into_iter().map(|(host, servers)| {
        let intent = IntentV1 {
            fleet: fleet.clone(),
            host: host.clone(),
            deployment: deployment.clone(),
            plan: plan_id.clone(),
            generation,
            not_after: now.after(INTENT_LIFETIME),
            servers,
        };
        let envelope = Envelope::seal(&Intent::V1(intent), signer)?;
        Ok((host, hex::encode(encode(&envelope, usize::MAX)?)))
    });
    signed.collect()
}

/// Whether intents are what agents will accept: signed by the operator, for exactly this plan and generation.
pub(crate) fn check_intents(
    intents: &std::collections::BTreeMap<HostName, String>,
    plan: &Plan,
    generation: Generation,
    keys: &TrustedKeys,
) -> Result<(), String> {
    let (plan_id, wanted) = (plan.id(), plan.per_host());
    for (host, servers) in &wanted {
        let text = intents.get(host).ok_or_else(|| format!("there is no signed intent for host {host}"))?;
        let envelope = open_text(text).map_err(|error| error.to_string())?;
        keys.verify(&envelope.payload, &envelope.signature)
            .map_err(|error| format!("the intent for {host} is refused: {error}"))?;
        let Intent::V1(intent) = decode(&envelope.payload).map_err(|error| error.to_string())?;
        let same: Vec<(ServerName, Option<fleetwright_deploy::ids::ReleaseId>)> = intent.servers;
        if intent.host != *host || intent.plan != plan_id || same != *servers || intent.generation != generation {
            return Err(format!("the intent for {host} was signed for another plan or generation"));
        }
    }
    Ok(())
}

fn open_text(text: &str) -> Result<Envelope, FrameError> {
    let bytes = hex::decode(text).unwrap_or_default();
    decode(&bytes)
}
