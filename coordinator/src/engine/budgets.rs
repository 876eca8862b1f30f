//! How much hosts add to the journal by themselves: beyond its budget, a host's greetings are refused, and of the health of
//! its servers only the newest is kept, until there is room again. Steps of deployments are always taken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use fleetwright_deploy::actor::Actor;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::{FleetEvent, Refused};
use fleetwright_deploy::health::HealthReport;
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{HostName, InstanceId, ReleaseId};
use fleetwright_deploy::journal_budget::{JournalBudget, OverBudget};
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::report::CoordinatorReply;

use super::{Engine, Reply};

/// What an entry takes beside its event, in bytes: its hash, its times, and what people are told.
const ENTRY_BYTES: usize = 512;

/// The budgets of all hosts that have connected.
#[derive(Clone, Default)]
pub(crate) struct Budgets(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    budgets: BTreeMap<HostName, JournalBudget>,
    /// Those that were known when the coordinator was started, and have not come back yet.
    known: BTreeSet<HostName>,
}

/// A report of health that could not be taken yet.
pub(super) struct HeldBack {
    /// Since when a report of its instance waits; a newer one takes the place of the one before in the queue.
    pub(super) since: Timestamp,
    pub(super) release: ReleaseId,
    pub(super) report: HealthReport,
    pub(super) output: Vec<String>,
}

impl Budgets {
    fn of<T>(&self, host: &HostName, now: Timestamp, of: impl FnOnce(&mut JournalBudget) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let All { budgets, known } = &mut *all;
        of(budgets.entry(host.clone()).or_insert_with(|| {
            if known.remove(host) { JournalBudget::after_restart(now) } else { JournalBudget::new(now) }
        }))
    }

    /// Those of a coordinator that is started, and knows these hosts.
    pub(super) fn after_start(known: impl IntoIterator<Item = HostName>) -> Self {
        Self(Arc::new(Mutex::new(All { known: known.into_iter().collect(), ..All::default() })))
    }

    /// The hosts that have used theirs up of late.
    pub(crate) fn over(&self, now: Timestamp) -> BTreeMap<HostName, OverBudget> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.budgets.iter().filter_map(|(host, budget)| Some((host.clone(), budget.over(now)?.clone()))).collect()
    }
}

impl Engine {
    /// Takes a greeting in, if it says anything new and the host has not used up its budget.
    pub(super) fn greeted(&mut self, host: &HostName, view: HostView) -> Result<(), Refused> {
        // One that changes nothing is no event, unless nothing can be taken at all.
        if self.full.is_none() && !self.fleet.greeting_changes(host, &view) {
            return Ok(());
        }
        let event = FleetEvent::HostConnected { host: host.clone(), view, claimed: true };
        let (bytes, now) = (bytes_of(&event), self.clock.now());
        if self.fleet.hosts().contains_key(host) && !self.budgets.of(host, now, |of| of.takes_greeting(bytes, now)) {
            self.tell_over_budget(host);
            let message = format!("{host} has used up its share of the coordinator's journal by greetings");
            let failure = Failure::new(FailureKind::ResourceError, "connect", message).hint("it may come back later");
            return Err(Refused::Failure(Box::new(failure)));
        }
        self.event(event)
    }

    /// A host is no longer connected.
    pub(super) fn host_went(&mut self, host: HostName) {
        let event = FleetEvent::HostDisconnected { host: host.clone() };
        let (bytes, now) = (bytes_of(&event), self.clock.now());
        self.budgets.of(&host, now, |of| of.went(bytes, now));
        self.event(event).ok();
    }

    /// Takes a report of health in, now or later. It is acknowledged at once: after a restart the agent tells it again.
    pub(super) fn health_reported(&mut self, instance: InstanceId, mut new: HeldBack, reply: Reply<CoordinatorReply>) {
        // Whatever was held back is older than this.
        if let Some(older) = self.held_back.remove(&instance) {
            new.since = older.since;
        }
        if !self.fleet.health_changes(&instance, &new.release, &new.report) {
            return self.acknowledge(reply, Err(Refused::NoChange));
        }
        let host = instance.host.clone();
        let (event, now) = (new.event(&instance), self.clock.now());
        let bytes = bytes_of(&event);
        // Beyond its own share, nobody is served before those of the same host that wait already.
        let others_wait = self.held_back.keys().any(|waiting| waiting.host == host);
        let takes = |of: &mut JournalBudget| of.takes_health(&instance.server, bytes, others_wait, now);
        if self.full.is_none() && !self.budgets.of(&host, now, takes) {
            self.tell_over_budget(&host);
            self.held_back.insert(instance, new);
            return self.acknowledge(reply, Ok(()));
        }
        let outcome = self.event(event);
        self.acknowledge(reply, outcome);
    }

    /// Takes in what was held back, as far as its hosts have room again.
    pub(super) fn take_held_back(&mut self) {
        if self.full.is_some() {
            // Agents are let go then, and tell everything again.
            self.held_back.clear();
        }
        let now = self.clock.now();
        let mut waiting: Vec<(Timestamp, InstanceId)> =
            self.held_back.iter().map(|(instance, held)| (held.since, instance.clone())).collect();
        waiting.sort_unstable();
        for (_, instance) in waiting {
            if !self.budgets.of(&instance.host, now, |of| of.takes_health_again(&instance.server, now)) {
                continue;
            }
            let Some(held) = self.held_back.remove(&instance) else { continue };
            let event = held.event(&instance);
            let bytes = bytes_of(&event);
            self.budgets.of(&instance.host, now, |of| of.takes_health(&instance.server, bytes, false, now));
            // That it has become history meanwhile is fine.
            self.event_by(Actor::Host(instance.host.clone()), event).ok();
        }
    }

    fn tell_over_budget(&self, host: &HostName) {
        if let Some(unsaid) = self.said.says("over budget", Some(host)) {
            tracing::warn!(%host, unsaid, "a host has used up its share of the journal: what it says of itself waits or is refused");
        }
    }
}

impl HeldBack {
    fn event(&self, instance: &InstanceId) -> FleetEvent {
        let Self { since: _, release, report, output } = self;
        let (release, report, output) = (release.clone(), report.clone(), output.clone());
        FleetEvent::HealthReported { instance: instance.clone(), release, report, output }
    }
}

/// What an event takes in the journal, in bytes.
fn bytes_of(event: &FleetEvent) -> u32 {
    let text = serde_json::to_string(event).map_or(0, |text| text.len());
    u32::try_from(text + ENTRY_BYTES).unwrap_or(u32::MAX)
}
