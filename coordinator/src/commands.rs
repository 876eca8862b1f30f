//! Making the signed command for an order: its id, its intent, and, for a release, its bytes and secrets.

use std::collections::BTreeMap;
use std::sync::Arc;

use fleetwright_certs::{Signer, TrustedKeys};
use fleetwright_deploy::admission::Purpose;
use fleetwright_deploy::deployment::{Deployment, Order, OrderName};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::Fleet;
use fleetwright_deploy::ids::{CommandId, Generation, HostName, InstanceId};
use fleetwright_deploy::limits::size;
use fleetwright_deploy::plan::Plan;
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::command::{COMMAND_LIFETIME, Command, CommandBody, CommandV1, StepOrder};
use fleetwright_protocol::frame::decode;
use fleetwright_protocol::{Envelope, FrameError, Intent};

use crate::secrets::Secrets;

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
        let meant = decode::<Intent>(&intent.payload).map_err(|error| failed(error.to_string()))?.meant();
        let name: &'static str = OrderName::from(order).into();
        let id = CommandId::of(deployment.id(), instance, attempt, name, meant.generation);
        let order = match order {
            Order::Stage { .. } => {
                let release = deployment
                    .planned_release(instance)
                    .ok_or_else(|| failed("the plan has no release for it".to_owned()))?;
                StepOrder::StageSealed { release: release.to_bytes(), secrets: self.secrets.reveal(release)? }
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

    /// The word to a host that an operator's intent is followed from now on, or that its deployment has ended.
    pub(crate) fn announce(
        &self,
        fleet: &Fleet,
        host: &HostName,
        (intent, ended): (&str, bool),
        now: Timestamp,
    ) -> Result<Envelope, Failure> {
        let failed = |why: String| Failure::new(FailureKind::DeploymentError, "command", why);
        let intent = open_text(intent).map_err(|error| failed(error.to_string()))?;
        self.look(fleet, host, CommandBody::Intent { intent, ended }, now)
    }

    /// A command that touches no server.
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

/// Whether intents are what agents will accept: signed by the operator, for exactly this plan, purpose and generation. There
/// must be one for each host that they are `meant` for.
pub(crate) fn check_intents(
    intents: &BTreeMap<HostName, String>,
    plan: &Plan,
    (purpose, generation): (Purpose, Generation),
    keys: &TrustedKeys,
    meant: impl Fn(&HostName) -> bool,
) -> Result<(), String> {
    let (plan_id, wanted) = (plan.id(), plan.per_host());
    for (host, servers) in wanted.iter().filter(|(host, _)| meant(host)) {
        let text = intents.get(host).ok_or_else(|| format!("there is no signed intent for host {host}"))?;
        let envelope = open_text(text).map_err(|error| error.to_string())?;
        keys.verify(&envelope.payload, &envelope.signature)
            .map_err(|error| format!("the intent for {host} is refused: {error}"))?;
        let intent = decode::<Intent>(&envelope.payload).map_err(|error| error.to_string())?.meant();
        let same = intent.host == *host && intent.plan == plan_id && intent.servers == *servers;
        if !same || intent.generation != generation || intent.purpose != purpose {
            return Err(format!("the intent for {host} was signed for another plan, purpose or generation"));
        }
    }
    Ok(())
}

fn open_text(text: &str) -> Result<Envelope, FrameError> {
    let bytes = hex::decode(text).unwrap_or_default();
    decode(&bytes)
}
