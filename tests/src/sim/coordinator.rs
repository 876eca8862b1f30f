//! The coordinator: the real fleet over the real journal, on a simulated disk.

use std::collections::BTreeMap;

use fleetwright::journal::{Journal, NewEntry, Store, StoredEntry};
use fleetwright_deploy::actor::Actor;
use fleetwright_deploy::admission::{Purpose, Signed};
use fleetwright_deploy::deployment::{Action, DeploymentEvent, Order, OrderName};
use fleetwright_deploy::fleet::{Fleet, FleetEvent, Refused};
use fleetwright_deploy::ids::{CommandId, DeploymentId, FleetName, Generation, HostName, InstanceId};
use fleetwright_deploy::instance::StepKey;
use fleetwright_deploy::plan::External;
use fleetwright_deploy::time::{Length, Timestamp};

use super::check::Violation;
use super::disk::Disk;
use super::network::{Command, ConnectionId};

/// How long a command counts.
const COMMAND_LIFETIME: Length = Length::from_secs(60);
/// A snapshot every so many entries.
const SNAPSHOT_EVERY: u64 = 40;

/// How the coordinator ends at its next event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doom {
    pub(super) torn: bool,
    pub(super) for_ms: i64,
}

pub(super) struct Live {
    pub(super) fleet: Fleet,
    pub(super) journal: Journal<Disk>,
    pub(super) sessions: BTreeMap<HostName, ConnectionId>,
}

pub(super) struct Coordinator {
    pub(super) disk: Disk,
    pub(super) live: Option<Live>,
    pub(super) offset_ms: i64,
    pub(super) doom: Option<Doom>,
    /// How often it was started.
    pub(super) run: u64,
}

/// An external that is asked for a deployment.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) deployment: DeploymentId,
    pub(super) external: External,
    pub(super) attempt: u32,
}

/// What became of an event.
pub(super) enum Took {
    /// It is durable; these orders follow, these externals are asked, and hosts hear of these deployments.
    Orders(Vec<(DeploymentId, InstanceId, u32, Order)>, Vec<Question>, Vec<DeploymentId>),
    /// It does not fit.
    Refused(Refused),
    /// The coordinator ended in the midst of it.
    Crashed(Doom),
}

pub(super) fn fleet_name() -> FleetName {
    "sim".parse().expect("name")
}

impl Coordinator {
    pub(super) fn new() -> Self {
        Self { disk: Disk::default(), live: None, offset_ms: 0, doom: None, run: 0 }
    }

    pub(super) fn clock(&self, now: i64) -> Timestamp {
        Timestamp::from_unix_ms(now + self.offset_ms)
    }

    /// Starts over what is on disk. What was durable before must lead to the same state again.
    pub(super) fn start(&mut self, before: Option<&Fleet>) -> Result<(), Violation> {
        let opened = Journal::open(self.disk.clone(), fleet_name());
        let (journal, fleet, _) = opened.map_err(|error| Violation::new("journal", error.to_string()))?;
        if before.is_some_and(|before| *before != fleet) {
            return Err(Violation::new("fold", "the journal folds to another state than the one that lived"));
        }
        let journal = journal.with_snapshots_every(SNAPSHOT_EVERY);
        self.run += 1;
        self.live = Some(Live { fleet, journal, sessions: BTreeMap::new() });
        Ok(())
    }

    /// Applies an event, makes it durable, and says what follows.
    pub(super) fn event(&mut self, event: FleetEvent, now: i64) -> Result<Took, Violation> {
        let at = self.clock(now);
        let Some(live) = &mut self.live else { return Ok(Took::Refused(Refused::NoChange)) };
        let mut ahead = live.fleet.clone();
        let effects = match ahead.apply(event.clone(), at) {
            Ok(effects) => effects,
            Err(refused) => return Ok(Took::Refused(refused)),
        };
        if let Some(wrong) = ahead.disagreement() {
            return Err(Violation::new("what is counted is what there is", wrong));
        }
        let doom = self.doom.take();
        if let Some(doom) = doom.filter(|doom| doom.torn) {
            let (last, hash) = self.disk.head();
            let mut torn = StoredEntry {
                seq: last + 1,
                at,
                actor: Some(Actor::Coordinator.to_string()),
                event_type: <&'static str>::from(&event).to_owned(),
                event: serde_json::to_string(&event).expect("JSON"),
                notes: "[]".to_owned(),
                hash,
            };
            torn.hash = torn.chained_to(&hash);
            // Half of it is on disk; perhaps nothing is wrong with the half but that it is not all.
            if doom.for_ms % 2 == 0 {
                self.disk.tear(torn);
            } else {
                torn.event = serde_json::to_string(&FleetEvent::CoordinatorStarted).expect("JSON");
                self.disk.tear_whole(torn);
            }
            return Ok(Took::Crashed(doom));
        }
        live.fleet = ahead;
        let entry = NewEntry { at, actor: Actor::Coordinator, event, notes: effects.notes };
        live.journal.append(&[entry]).map_err(|error| Violation::new("journal", error.to_string()))?;
        live.journal.snapshot_if_due(&live.fleet).map_err(|error| Violation::new("journal", error.to_string()))?;
        if let Some(doom) = doom {
            return Ok(Took::Crashed(doom));
        }
        let (mut orders, mut questions, mut announced) = (Vec::new(), Vec::new(), Vec::new());
        for action in effects.actions {
            match action {
                Action::Send { deployment, instance, attempt, order } => {
                    orders.push((deployment, instance, attempt, order));
                }
                Action::Ask { deployment, external, attempt } => {
                    questions.push(Question { deployment, external, attempt });
                }
                Action::Announce { deployment } => announced.push(deployment),
                Action::Settled { .. } => {}
            }
        }
        Ok(Took::Orders(orders, questions, announced))
    }

    /// The command for an order, if the host is connected.
    pub(super) fn command(
        &self,
        deployment: &DeploymentId,
        instance: &InstanceId,
        attempt: u32,
        order: &Order,
        now: i64,
    ) -> Option<(ConnectionId, Command)> {
        let live = self.live.as_ref()?;
        let connection = *live.sessions.get(&instance.host)?;
        let intent = signed(deployment, live.fleet.intent(deployment, &instance.host)?);
        let name: &'static str = OrderName::from(order).into();
        let command = Command {
            id: CommandId::of(deployment, instance, attempt, name, intent.generation),
            generation: live.fleet.generation(),
            intent,
            not_after: self.clock(now).after(COMMAND_LIFETIME),
            server: instance.server.clone(),
            key: StepKey { deployment: deployment.clone(), attempt },
            order: order.clone(),
        };
        Some((connection, command))
    }

    /// The intents of a deployment, as the operator signs them: the generation, and by when hosts must hear of it.
    pub(super) fn intents(&self, generation: Generation, begin_by: Timestamp) -> BTreeMap<HostName, String> {
        let hosts = self.live.iter().flat_map(|live| live.fleet.hosts().keys());
        hosts.map(|host| (host.clone(), format!("{generation}/{}", begin_by.unix_ms()))).collect()
    }

    /// What a host is to know about intents, and the connection to it.
    pub(super) fn announcements(&self, host: &HostName, now: i64) -> Option<(ConnectionId, Vec<(Signed, bool)>)> {
        let live = self.live.as_ref()?;
        let told = live.fleet.announcements(host, self.clock(now));
        let told = told.map(|(deployment, intent, ended)| (signed(deployment, intent), ended));
        Some((*live.sessions.get(host)?, told.collect()))
    }

    pub(super) fn deadline(&self) -> Option<(DeploymentId, i64)> {
        let (deployment, at) = self.live.as_ref()?.fleet.deadline()?;
        Some((deployment, at.unix_ms() - self.offset_ms))
    }

    pub(super) fn deadline_passed(&mut self, now: i64) -> Result<Took, Violation> {
        let due = self.deadline().filter(|(_, at)| *at <= now);
        match due {
            Some((deployment, _)) => {
                self.event(FleetEvent::Deployment { deployment, event: DeploymentEvent::DeadlinePassed }, now)
            }
            None => Ok(Took::Refused(Refused::NoChange)),
        }
    }

    /// How many entries are durable.
    pub(super) fn entries(&self) -> usize {
        self.disk.read(0, usize::MAX).map_or(0, |entries| entries.len())
    }
}

/// What the text of an intent says.
fn signed(deployment: &DeploymentId, text: &str) -> Signed {
    let (generation, begin_by) = text.split_once('/').expect("two numbers");
    let generation = Generation(generation.parse().expect("a generation"));
    let begin_by = Timestamp::from_unix_ms(begin_by.parse().expect("a time"));
    let deploys = deployment.generation() == Some(generation);
    let purpose = if deploys { Purpose::Deploy } else { Purpose::RollBack };
    Signed { deployment: deployment.clone(), generation, purpose, begin_by }
}
