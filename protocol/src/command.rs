//! Commands and intents, each in an envelope that is verified before a byte of it is decoded.
//!
//! An *intent* is the operator's: for one host, which server may run which release, to what purpose, until when. A
//! *command* is the coordinator's: do this now. An agent does only what both allow.

use std::collections::BTreeMap;

use fleetwright_certs::{BadSignature, Signature, Signer, TrustedKeys};
use fleetwright_deploy::admission::{Asks, INTENT_LIFETIME_MAX, Purpose, Signed};
use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::health::CheckRun;
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{
    CommandId, DeploymentId, FleetName, Generation, HostName, PlanId, ReleaseId, ServerName, SnapshotId,
};
use fleetwright_deploy::release::SecretKey;
use fleetwright_deploy::time::{Length, Timestamp};
use serde::{Deserialize, Serialize};

use crate::FrameError;
use crate::frame::{COMMAND_BYTES_MAX, decode, encode};
use crate::snapshot::{SnapshotSummary, SnapshotView};

/// What a coordinator's key signs.
pub const COMMAND_PURPOSE: &str = "command";
/// What an operator's key signs.
pub const INTENT_PURPOSE: &str = "intent";
/// How long a command may be on its way before it no longer counts.
pub const COMMAND_LIFETIME: Length = Length::from_secs(60);
/// How far ahead of the agent's clock a command may have been issued.
pub const CLOCK_SKEW_MAX: Length = Length::from_secs(60);
/// How long checks that a person asked for may take, all together.
pub const CHECK_RUN_TIMEOUT: Length = Length::from_secs(12);
/// How long a host that is asked anew what it has may take to answer.
pub const REFRESH_TIMEOUT: Length = Length::from_secs(12);
/// How an agent begins its refusal of a command that it does not know, being older.
pub const UNKNOWN_COMMAND_SAYS: &str = "the command is refused: malformed message";
/// What an envelope adds to what it holds, at most, in bytes: what is sealed fits its frame.
const ENVELOPE_BYTES: usize = 1024;
/// Most log lines that one command may ask for.
pub const LOG_LINES_MAX: u32 = 1_000;

/// Signed bytes. The bytes that were signed are the bytes that are decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The signed bytes.
    pub payload: Vec<u8>,
    /// Who signed them.
    pub signature: Signature,
}

impl Envelope {
    /// Signs a message.
    pub fn seal<T: Serialize>(message: &T, signer: &Signer) -> Result<Self, FrameError> {
        let payload = encode(message, COMMAND_BYTES_MAX - ENVELOPE_BYTES)?;
        let signature = signer.sign(&payload);
        Ok(Self { payload, signature })
    }
}

/// A command, by version of its shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first shape.
    V1(CommandV1),
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandV1 {
    /// The fleet it is for.
    pub fleet: FleetName,
    /// The host it is for.
    pub host: HostName,
    /// Its id.
    pub id: CommandId,
    /// The generation of the fleet when it was issued.
    pub generation: Generation,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it no longer counts.
    pub not_after: Timestamp,
    /// What to do.
    pub body: CommandBody,
}

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandBody {
    /// A step of a deployment.
    Step {
        /// The deployment.
        deployment: DeploymentId,
        /// The server.
        server: ServerName,
        /// The attempt at the step.
        attempt: u32,
        /// The operator's intent, an [`Intent`] in an [`Envelope`].
        intent: Envelope,
        /// What to do.
        order: StepOrder,
    },
    /// The last lines of a server's output. Reads only, so it needs no intent.
    Logs {
        /// The server.
        server: ServerName,
        /// How many lines, at most [`LOG_LINES_MAX`].
        lines: u32,
    },
    /// What the checks of the running release find now. Runs only what the release says, so it needs no intent.
    Check {
        /// The server.
        server: ServerName,
        /// Only the checks with this tag, or of this group.
        tag: Option<String>,
    },
    /// The snapshots of a server.
    Snapshots {
        /// The server.
        server: ServerName,
    },
    /// What is in a snapshot.
    Snapshot {
        /// The server.
        server: ServerName,
        /// Which.
        id: SnapshotId,
        /// Whether to compare it with what is there now.
        compare: bool,
    },
    /// What the host is to know about an intent. Does nothing to any server.
    Intent {
        /// The operator's intent, an [`Intent`] in an [`Envelope`].
        intent: Envelope,
        /// Whether its deployment has ended: from then on it lets nothing more be done. Without that, it is followed
        /// from now on.
        ended: bool,
    },
    /// Asks anew what the host has. Changes nothing, so it needs no intent. Agents of before refuse it as malformed.
    Refresh,
}

impl CommandBody {
    /// The server that it is about, where it is about one.
    pub fn server(&self) -> Option<&ServerName> {
        match self {
            Self::Step { server, .. }
            | Self::Logs { server, .. }
            | Self::Check { server, .. }
            | Self::Snapshots { server }
            | Self::Snapshot { server, .. } => Some(server),
            Self::Intent { .. } | Self::Refresh => None,
        }
    }

    /// The operator's intent, where one is needed: nothing that only looks needs one.
    fn intent(&self) -> Option<&Envelope> {
        match self {
            Self::Step { intent, .. } | Self::Intent { intent, .. } => Some(intent),
            Self::Logs { .. } | Self::Check { .. } | Self::Snapshots { .. } | Self::Snapshot { .. } => None,
            Self::Refresh => None,
        }
    }
}

/// What a step's command asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepOrder {
    /// Get a release ready beside the running one.
    Stage {
        /// The release, as the bytes whose hash is its id.
        release: Vec<u8>,
        /// The values of its secrets, by name.
        secrets: BTreeMap<String, String>,
    },
    /// Switch to a release that is ready.
    Switch {
        /// The release; nothing to remove the server.
        target: Option<ReleaseId>,
        /// How long the host waits to be confirmed before it puts itself back.
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
    /// Get a release ready beside the running one. Each value of its secrets comes with what it takes to see that it is
    /// the one whose digest the release holds.
    StageSealed {
        /// The release, as the bytes whose hash is its id.
        release: Vec<u8>,
        /// Its secrets, by name.
        secrets: BTreeMap<String, SentSecret>,
    },
}

/// The value of a secret, on its way to the host that needs it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentSecret {
    /// The value, before it is encoded.
    pub value: String,
    /// The key of the digest that the release holds of it.
    pub key: SecretKey,
}

impl std::fmt::Debug for SentSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SentSecret(..)")
    }
}

impl StepOrder {
    /// What it asks for, as far as an intent's time and purpose matter.
    pub fn asks(&self) -> Asks {
        match self {
            Self::Stage { .. } | Self::StageSealed { .. } | Self::Switch { .. } => Asks::Forward,
            Self::Confirm | Self::Test | Self::Clean => Asks::Keep,
            Self::Restore { .. } => Asks::Undo,
            Self::Resolve => Asks::Resolve,
        }
    }
}

/// An agent's answer to a command. The outcome of a step follows later, as a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandReply {
    /// It is durable on the host and will be done.
    Accepted,
    /// It was accepted before; nothing happens again.
    Duplicate,
    /// It is not done.
    Refused(Failure),
    /// It is not done: the host has seen a later generation. Issued anew, it may be.
    Stale,
    /// The lines that were asked for.
    Logs(Vec<String>),
    /// What the checks found.
    Checks(Vec<CheckRun>),
    /// The snapshots.
    Snapshots(Vec<SnapshotSummary>),
    /// The snapshot.
    Snapshot(Box<SnapshotView>),
    /// What the host has now.
    View(Box<HostView>),
}

/// The operator's intent for one host, by version of its shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// The first shape.
    V1(IntentV1),
    /// With its purpose, and by when it must have reached its host.
    V2(IntentV2),
}

impl Intent {
    /// What it says, whatever its shape. One of the first shape says what it is for by its generation alone: that of its
    /// deployment, or a later one to undo it.
    pub fn meant(self) -> IntentV2 {
        let of = match self {
            Self::V2(intent) => return intent,
            Self::V1(intent) => intent,
        };
        let deploys = of.deployment.generation() == Some(of.generation);
        IntentV2 {
            fleet: of.fleet,
            host: of.host,
            purpose: if deploys { Purpose::Deploy } else { Purpose::RollBack },
            deployment: of.deployment,
            plan: of.plan,
            generation: of.generation,
            begin_by: of.not_after,
            not_after: of.not_after,
            servers: of.servers,
        }
    }
}

/// The operator's intent for one host. That everything in it may also be undone is part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentV1 {
    /// The fleet.
    pub fleet: FleetName,
    /// The host.
    pub host: HostName,
    /// The deployment it is for.
    pub deployment: DeploymentId,
    /// The plan it was made from.
    pub plan: PlanId,
    /// The generation the fleet rises to by it.
    pub generation: Generation,
    /// When it no longer counts.
    pub not_after: Timestamp,
    /// Which server may run which release; nothing means that it may be removed.
    pub servers: Vec<(ServerName, Option<ReleaseId>)>,
}

/// The operator's intent for one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentV2 {
    /// The fleet.
    pub fleet: FleetName,
    /// The host.
    pub host: HostName,
    /// The deployment it is for.
    pub deployment: DeploymentId,
    /// What it is for.
    pub purpose: Purpose,
    /// The plan it was made from.
    pub plan: PlanId,
    /// The generation the fleet rises to by it.
    pub generation: Generation,
    /// By when the host must have heard of it.
    pub begin_by: Timestamp,
    /// When it no longer counts.
    pub not_after: Timestamp,
    /// Which server may run which release; nothing means that it may be removed.
    pub servers: Vec<(ServerName, Option<ReleaseId>)>,
}

impl IntentV2 {
    /// Its place among others.
    pub fn signed(&self) -> Signed {
        let Self { deployment, generation, purpose, begin_by, .. } = self.clone();
        Signed { deployment, generation, purpose, begin_by }
    }
}

/// Why a command is not done.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// The command's signature does not count.
    #[error("the command is refused: {0}")]
    CommandSignature(BadSignature),
    /// The intent's signature does not count.
    #[error("the operator's intent is refused: {0}")]
    IntentSignature(BadSignature),
    /// It is not what it should be.
    #[error("the command is refused: {0}")]
    Malformed(#[from] FrameError),
    /// It is for somebody else.
    #[error("the command is for {0}, not for this host")]
    OtherTarget(String),
    /// It came too late.
    #[error("the {what} expired at {at}")]
    Expired {
        /// Command or intent.
        what: &'static str,
        /// When.
        at: Timestamp,
    },
    /// It was signed for longer than intents count.
    #[error("the operator's intent counts until {0}, which is longer than any may")]
    LastsTooLong(Timestamp),
    /// It was issued in the future.
    #[error("the command was issued at {0}, which is in the future")]
    FromTheFuture(Timestamp),
    /// The operator's intent does not cover it.
    #[error("the operator's intent does not allow it: {0}")]
    NotIntended(String),
}

/// A command that was verified, with the intent that allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedCommand {
    /// The command.
    pub command: CommandV1,
    /// The intent, where the command needs one.
    pub intent: Option<IntentV2>,
}

/// Verifies commands on behalf of one host.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// The fleet.
    pub fleet: FleetName,
    /// The host.
    pub host: HostName,
    /// Keys that may sign commands.
    pub command_keys: TrustedKeys,
    /// Keys that may sign intents.
    pub intent_keys: TrustedKeys,
}

impl Verifier {
    /// Opens a command: signature, target and time first, then the intent in the same way, then whether the
    /// intent covers the command. Generation and repetition are the caller's to check: they need memory.
    pub fn open(&self, envelope: &Envelope, now: Timestamp) -> Result<VerifiedCommand, Rejection> {
        self.command_keys.verify(&envelope.payload, &envelope.signature).map_err(Rejection::CommandSignature)?;
        let Command::V1(command) = decode(&envelope.payload)?;
        self.check_target(&command.fleet, &command.host)?;
        if command.not_after <= now || now.since(command.issued_at) > COMMAND_LIFETIME.plus(CLOCK_SKEW_MAX) {
            return Err(Rejection::Expired { what: "command", at: command.not_after });
        }
        if command.issued_at.since(now) > CLOCK_SKEW_MAX {
            return Err(Rejection::FromTheFuture(command.issued_at));
        }
        let intent = command.body.intent().map(|intent| self.open_intent(intent, now)).transpose()?;
        if let Some(intent) = &intent {
            check_intended(&command.body, intent)?;
        }
        Ok(VerifiedCommand { command, intent })
    }

    fn open_intent(&self, envelope: &Envelope, now: Timestamp) -> Result<IntentV2, Rejection> {
        self.intent_keys.verify(&envelope.payload, &envelope.signature).map_err(Rejection::IntentSignature)?;
        let intent = decode::<Intent>(&envelope.payload)?.meant();
        self.check_target(&intent.fleet, &intent.host)?;
        if intent.not_after <= now {
            return Err(Rejection::Expired { what: "operator's intent", at: intent.not_after });
        }
        if intent.not_after.since(now) > INTENT_LIFETIME_MAX.plus(CLOCK_SKEW_MAX) {
            return Err(Rejection::LastsTooLong(intent.not_after));
        }
        Ok(intent)
    }

    fn check_target(&self, fleet: &FleetName, host: &HostName) -> Result<(), Rejection> {
        if *fleet == self.fleet && *host == self.host {
            Ok(())
        } else {
            Err(Rejection::OtherTarget(format!("host {host} of fleet {fleet}")))
        }
    }
}

fn check_intended(body: &CommandBody, intent: &IntentV2) -> Result<(), Rejection> {
    let CommandBody::Step { deployment, server, order, .. } = body else { return Ok(()) };
    let refuse = |why: String| Err(Rejection::NotIntended(why));
    if intent.deployment != *deployment {
        return refuse(format!("it is for deployment {}", intent.deployment));
    }
    let Some((_, allowed)) = intent.servers.iter().find(|(name, _)| name == server) else {
        return refuse(format!("it does not name the server {server}"));
    };
    let asked = match order {
        StepOrder::Stage { release, .. } | StepOrder::StageSealed { release, .. } => Some(ReleaseId::of(release)),
        StepOrder::Switch { target, .. } => target.clone(),
        StepOrder::Confirm | StepOrder::Restore { .. } | StepOrder::Resolve | StepOrder::Test | StepOrder::Clean => {
            return Ok(());
        }
    };
    if asked == *allowed {
        return Ok(());
    }
    let word = |id: &Option<ReleaseId>| id.as_ref().map_or_else(|| "nothing".to_owned(), |id| id.short().to_owned());
    refuse(format!("{server} may run {}, not {}", word(allowed), word(&asked)))
}
