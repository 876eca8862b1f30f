//! The vocabulary of a deployment: where it stands, what can happen to it, and what follows from that.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use strum::{EnumDiscriminants, IntoStaticStr};

use crate::failure::Failure;
use crate::health::HealthStatus;
use crate::ids::{DeploymentId, HostName, InstanceId, ReleaseId, ServerName};
use crate::instance::StepReport;
use crate::plan::{External, RollbackStrategy};
use crate::time::{Length, Timestamp};

/// What the operator chose besides the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Whether a failure puts everything back; `false` leaves the failed instances for a person to look at.
    pub rollback: bool,
    /// Who started it.
    pub started_by: String,
}

/// Where a deployment stands: its eight phases, and what may follow a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(
    name(PhaseName),
    derive(IntoStaticStr, Serialize, Deserialize),
    strum(serialize_all = "snake_case")
)]
#[strum_discriminants(serde(rename_all = "snake_case"))]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// The plan is checked against what runs.
    PreValidation,
    /// Groups are fixed, external dependencies answer.
    DependencyResolution,
    /// Every host gets every new release ready beside the old one.
    EnvironmentSetup,
    /// Group by group, instances are switched, checked and confirmed.
    ServerDeployment {
        /// The group at work, from 0.
        group: usize,
    },
    /// All checks of all servers hold together for the bake time.
    HealthValidation {
        /// Since when.
        since: Timestamp,
    },
    /// Tools are listed and called.
    IntegrationTesting,
    /// Continuous checks are armed.
    PostDeployment,
    /// Old releases and snapshots are pruned.
    Cleanup,
    /// What is in motion settles, nothing new starts, and nothing more is put back than has failed.
    Stopping {
        /// Why.
        cause: Failure,
        /// How it will have ended: failed with rollback off, or cancelled.
        outcome: Outcome,
    },
    /// Something failed, and a person is to decide what follows: nothing new starts until then.
    AwaitingOperator {
        /// What failed.
        cause: Failure,
        /// Since when.
        since: Timestamp,
        /// The phase to go on with.
        from: Box<Self>,
    },
    /// What was touched is being put back.
    RollingBack {
        /// Why.
        cause: Failure,
        /// Since when.
        since: Timestamp,
        /// In which order and manner.
        strategy: RollbackStrategy,
        /// Only these instances; all that were touched when it is empty.
        only: BTreeSet<InstanceId>,
    },
    /// It ended.
    Finished {
        /// How.
        outcome: Outcome,
        /// When.
        at: Timestamp,
        /// Why it did not succeed.
        cause: Option<Failure>,
    },
}

/// How a deployment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// Every instance runs the planned release and is healthy.
    Succeeded,
    /// Some instances failed and were left out: they run what they ran before.
    PartlySucceeded,
    /// Something failed and nothing was put back, as asked.
    Failed,
    /// A person ended it: what was confirmed by then stays.
    Cancelled,
    /// Everything touched is exactly as it was.
    RolledBack,
    /// Some instances are as they were; others could not be put back, or were not to be.
    PartlyRolledBack,
    /// Nothing could be put back: a person is needed.
    Stuck,
}

/// What can happen to a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(derive(strum::EnumIter, IntoStaticStr), strum(serialize_all = "snake_case"))]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum DeploymentEvent {
    /// It begins.
    Started,
    /// An agent tells about a step.
    StepReported {
        /// The instance.
        instance: InstanceId,
        /// The attempt it is about.
        attempt: u32,
        /// What it tells.
        report: StepReport,
    },
    /// The coordinator has asked something outside the fleet.
    ExternalReported {
        /// The external.
        name: ServerName,
        /// The attempt it is about.
        attempt: u32,
        /// Why it does not answer; nothing when it does.
        failure: Option<Failure>,
    },
    /// An agent does not obey an order, or it could not be sent as it is.
    OrderRefused {
        /// The instance.
        instance: InstanceId,
        /// The attempt it is about.
        attempt: u32,
        /// The order.
        order: OrderName,
        /// Why.
        failure: Failure,
    },
    /// The health of an instance changed.
    HealthChanged {
        /// The instance.
        instance: InstanceId,
        /// How it was.
        was: HealthStatus,
        /// How it is now.
        status: HealthStatus,
        /// Why, in words.
        reason: String,
        /// The last lines of its output.
        output: Vec<String>,
    },
    /// A host's agent connected.
    HostConnected {
        /// The host.
        host: HostName,
    },
    /// Hosts' agents are no longer connected.
    HostsDisconnected {
        /// The hosts: all that went at once, so that nothing is begun on one while another goes.
        hosts: BTreeSet<HostName>,
    },
    /// Nothing new is to start until it is resumed.
    Held(Hold),
    /// A hold is over.
    Released {
        /// Which.
        kind: HoldKind,
        /// Who says so.
        by: String,
    },
    /// A person lets it pass the point at which it waits.
    Approved {
        /// Who.
        by: String,
    },
    /// A person does not let it pass: it fails.
    Rejected {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// A person ends it: what is in motion settles, and what is confirmed stays.
    Cancelled {
        /// Who.
        by: String,
    },
    /// A person has failed instances tried again.
    RetryRequested {
        /// Which; all that have failed when it is empty.
        instances: BTreeSet<InstanceId>,
        /// Who.
        by: String,
    },
    /// A person has failed instances put back and left out.
    SkipRequested {
        /// Which; all that have failed when it is empty.
        instances: BTreeSet<InstanceId>,
        /// Who.
        by: String,
    },
    /// A person has put stuck instances in order by hand: they run what they ran before.
    ResolveRequested {
        /// Which; all that are stuck when it is empty.
        instances: BTreeSet<InstanceId>,
        /// Who.
        by: String,
    },
    /// A person asks to undo it.
    RollbackRequested {
        /// Who.
        by: String,
        /// In which order and manner; as the plan says when it is not said.
        strategy: Option<RollbackStrategy>,
        /// Only these instances; all that were touched when it is empty.
        only: BTreeSet<InstanceId>,
    },
    /// The time of [`super::Deployment::deadline`] has come.
    DeadlinePassed,
}

/// Who holds a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum HoldKind {
    /// This deployment was paused.
    Pause,
    /// The whole fleet was halted.
    Halt,
}

/// Why a deployment starts nothing new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// What kind of hold it is.
    pub kind: HoldKind,
    /// Who said so.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// What an agent is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(
    name(OrderName),
    derive(IntoStaticStr, Hash, Serialize, Deserialize),
    strum(serialize_all = "snake_case"),
    serde(rename_all = "snake_case")
)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Get the release ready beside the running one.
    Stage {
        /// The release.
        release: ReleaseId,
    },
    /// Switch to the target, check it, and wait to be confirmed.
    Switch {
        /// The release to run; nothing to remove the instance.
        target: Option<ReleaseId>,
        /// How long the host waits, from the switch on, before it puts itself back; nothing where it never does.
        confirm_within: Option<Length>,
        /// How long the release has to become healthy.
        healthy_deadline: Length,
        /// How long it must be healthy without a break.
        min_healthy_time: Length,
    },
    /// Keep what was switched to.
    Confirm,
    /// Undo what the deployment did.
    Restore {
        /// Whether the server gets its time to end before it is killed.
        drain: bool,
    },
    /// Take it that a person has put the stuck instance back by hand.
    Resolve,
    /// Speak to the server as a client would.
    Test,
    /// Prune old releases and snapshots.
    Clean,
}

/// What the coordinator must do, after the event that led to it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send an order to the agent of an instance's host.
    Send {
        /// The deployment whose order it is.
        deployment: DeploymentId,
        /// The instance.
        instance: InstanceId,
        /// The attempt.
        attempt: u32,
        /// The order.
        order: Order,
    },
    /// Ask something outside the fleet, and tell whether it answers.
    Ask {
        /// The deployment that needs it.
        deployment: DeploymentId,
        /// What to ask.
        external: External,
        /// The attempt.
        attempt: u32,
    },
    /// Tell the hosts of a deployment that its operator's intents are followed from now on, or that it has ended.
    Announce {
        /// The deployment.
        deployment: DeploymentId,
    },
    /// Remember what an instance runs from now on.
    Settled {
        /// The instance.
        instance: InstanceId,
        /// The release, or nothing when it is gone.
        release: Option<ReleaseId>,
        /// What is wrong with it, when a person should look.
        trouble: Option<Failure>,
    },
}

/// Something worth telling people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The deployment it concerns.
    pub deployment: Option<DeploymentId>,
    /// The instance it concerns.
    pub instance: Option<InstanceId>,
    /// What happened, in one stable word such as `staged` or `phase`.
    pub what: String,
    /// What happened, in a sentence.
    pub message: String,
    /// What went wrong, where something did.
    pub failure: Option<Failure>,
}

/// What follows from an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// What to do, in order.
    pub actions: Vec<Action>,
    /// What to tell, in order.
    pub notes: Vec<Note>,
}

/// An event that does not fit the state it came upon. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event} does not fit deployment {deployment}, which is in {phase}{detail}")]
pub struct IllegalEvent {
    pub(super) event: &'static str,
    pub(super) deployment: DeploymentId,
    pub(super) phase: &'static str,
    pub(super) detail: String,
}
