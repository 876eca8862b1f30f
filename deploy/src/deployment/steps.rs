//! The steps of a deployment, and what is counted of them, so that an event costs the same on ten hosts and on ten
//! thousand.
//!
//! [`Steps::set`] is the only way to put a step into a state. Everything else in an [`Index`] follows from the steps and
//! is made anew when they are read; [`Steps::disagreement`] compares the two.

mod index;
mod lane;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Serialize, Serializer};

use self::index::{Index, OfServer};
pub(super) use self::lane::Lane;
use super::step::{Step, StepState, StepStateName};
use crate::ids::{HostName, InstanceId, ServerName};
use crate::mutant::{Mutant, is_active};
use crate::plan::{Plan, StepAction};
use crate::time::{Length, Timestamp};

/// How much longer than a host's own dead-man deadline the coordinator waits for its word.
const HOST_GRACE: Length = Length::from_secs(30);

/// The steps of a deployment. Their numbers are their places in the plan.
#[derive(Clone, Debug)]
pub struct Steps {
    list: Vec<Entry>,
    index: Index,
}

/// A step, and where it belongs.
#[derive(Clone, Debug)]
struct Entry {
    id: InstanceId,
    step: Step,
    /// Its place among the steps of its group in the plan.
    planned: usize,
    lane: usize,
    /// Its place among those of its lane that change.
    place: usize,
    server: usize,
    /// Whether its host is not connected.
    away: bool,
    /// How long its host may take from the switch on.
    patience: Length,
}

impl Steps {
    /// The steps of a plan, of which nothing has been asked.
    pub(super) fn planned(plan: &Plan, away: &BTreeSet<HostName>) -> Self {
        Self::new(plan, |_| None, away)
    }

    /// The steps of a plan as they were kept.
    pub(super) fn kept(plan: &Plan, mut kept: BTreeMap<InstanceId, Step>, away: &BTreeSet<HostName>) -> Self {
        Self::new(plan, |id| kept.remove(id), away)
    }

    fn new(plan: &Plan, mut kept: impl FnMut(&InstanceId) -> Option<Step>, away: &BTreeSet<HostName>) -> Self {
        let mut steps = Self { list: Vec::new(), index: Index::default() };
        for (group, of_group) in plan.groups.iter().enumerate() {
            for (planned, step) in of_group.steps.iter().enumerate() {
                let pace = plan.pace(&step.instance.server);
                let server = steps.index.server(&step.instance.server);
                let lane = steps.index.lane(group, server, &step.instance.server, pace);
                let id = step.instance.clone();
                let step = kept(&id).unwrap_or_else(|| Step::new(group, step));
                steps.list.push(Entry {
                    planned,
                    lane,
                    place: steps.index.lanes[lane].add(steps.list.len(), &step),
                    server,
                    away: away.contains(&id.host),
                    patience: pace.healthy_deadline.plus(plan.rollout.confirm_timeout).plus(HOST_GRACE),
                    id,
                    step,
                });
            }
        }
        let list = &steps.list;
        let mut numbers: Vec<usize> = (0..list.len()).collect();
        numbers.sort_by(|a, b| list[*a].id.cmp(&list[*b].id));
        steps.index.by_id.clone_from(&numbers);
        numbers.sort_by(|a, b| list[*a].id.host.cmp(&list[*b].id.host));
        steps.index.by_host = numbers;
        steps.index.ranks = vec![0; list.len()];
        for (rank, number) in steps.index.by_id.iter().enumerate() {
            steps.index.ranks[*number] = rank;
        }
        for (number, entry) in list.iter().enumerate() {
            steps.index.count(number, entry, 1);
        }
        steps
    }

    fn number(&self, id: &InstanceId) -> Option<usize> {
        let found = self.index.by_id.binary_search_by(|number| self.list[*number].id.cmp(id)).ok()?;
        Some(self.index.by_id[found])
    }

    /// The step of an instance.
    pub fn get(&self, id: &InstanceId) -> Option<&Step> {
        Some(&self.list[self.number(id)?].step)
    }

    /// All steps, by the names of their instances.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&InstanceId, &Step)> {
        self.index.by_id.iter().map(|number| &self.list[*number]).map(|entry| (&entry.id, &entry.step))
    }

    /// All steps without their instances, by the names of these.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Step> {
        self.iter().map(|(_, step)| step)
    }

    fn of_host(&self, host: &HostName) -> &[usize] {
        let numbers = &self.index.by_host;
        let first = numbers.partition_point(|number| self.list[*number].id.host < *host);
        let end = first + numbers[first..].partition_point(|number| self.list[*number].id.host == *host);
        &numbers[first..end]
    }

    /// The steps on a host, by the names of their servers.
    pub fn on(&self, host: &HostName) -> impl Iterator<Item = (&InstanceId, &Step)> {
        self.of_host(host).iter().map(|number| (&self.list[*number].id, &self.list[*number].step))
    }

    /// Where the plan has the step of an instance: the number of its group, and its place among the steps of that.
    pub(super) fn place(&self, id: &InstanceId) -> Option<(usize, usize)> {
        let entry = &self.list[self.number(id)?];
        Some((entry.step.group, entry.planned))
    }

    /// Puts a step into a state.
    pub(super) fn set(&mut self, id: &InstanceId, state: StepState) {
        let Some(number) = self.number(id) else { return };
        self.change(number, |entry| {
            entry.step.touched |= state.is_touched();
            entry.step.state = state;
        });
    }

    /// Begins the next attempt at a step, which is in the state that it is in until it is set anew.
    pub(super) fn begin_attempt(&mut self, id: &InstanceId) -> Option<&Step> {
        let number = self.number(id)?;
        self.list[number].step.attempt += 1;
        Some(&self.list[number].step)
    }

    /// Remembers when a step failed first.
    pub(super) fn failed(&mut self, id: &InstanceId, now: Timestamp) {
        if let Some(number) = self.number(id) {
            self.list[number].step.failed_at.get_or_insert(now);
        }
    }

    /// Takes in that a host is connected, or that it is not.
    pub(super) fn set_away(&mut self, host: &HostName, away: bool) {
        for number in self.of_host(host).to_vec() {
            self.change(number, |entry| entry.away = away);
        }
    }

    fn change(&mut self, number: usize, change: impl FnOnce(&mut Entry)) {
        self.index.count(number, &self.list[number], -1);
        change(&mut self.list[number]);
        self.index.count(number, &self.list[number], 1);
    }

    /// How many are in certain states.
    pub(super) fn count(&self, which: impl Fn(StepStateName) -> bool) -> usize {
        self.index.by_state.iter().filter(|(name, _)| which(**name)).map(|(_, numbers)| numbers.len()).sum()
    }

    /// Whether any is in certain states.
    pub(super) fn any(&self, which: impl Fn(StepStateName) -> bool) -> bool {
        self.index.by_state.keys().any(|name| which(*name))
    }

    /// Those in certain states, the last of the plan first.
    pub(super) fn backwards(
        &self,
        which: impl Fn(StepStateName) -> bool,
    ) -> impl Iterator<Item = (&InstanceId, &Step)> {
        let sets = self.index.by_state.iter().filter(|(name, _)| which(**name));
        let sets: Vec<&BTreeSet<usize>> = sets.map(|(_, numbers)| numbers).collect();
        let mut end = self.list.len();
        std::iter::from_fn(move || {
            end = *sets.iter().filter_map(|numbers| numbers.range(..end).next_back()).max()?;
            let entry = &self.list[end];
            Some((&entry.id, &entry.step))
        })
    }

    /// Those in certain states, by their names.
    pub(super) fn ids_where(&self, which: impl Fn(StepStateName) -> bool) -> Vec<InstanceId> {
        let sets = self.index.by_state.iter().filter(|(name, _)| which(**name));
        let mut numbers: Vec<usize> = sets.flat_map(|(_, numbers)| numbers.iter().copied()).collect();
        numbers.sort_unstable_by_key(|number| self.index.ranks[*number]);
        numbers.into_iter().map(|number| self.list[number].id.clone()).collect()
    }

    /// The earliest deadline of any step; of several at once, the one of the first by name.
    pub(super) fn deadline(&self) -> Option<(Timestamp, &InstanceId, &Step)> {
        let (at, rank) = self.index.deadlines.first()?;
        let entry = &self.list[self.index.by_id[*rank]];
        Some((*at, &entry.id, &entry.step))
    }

    /// The confirmed steps of a group that stay healthy for the bake time of their server, while others of that are still to
    /// follow its canaries: each since when, and until when, if that is later than a moment.
    pub(super) fn baking(
        &self,
        group: usize,
        after: Timestamp,
    ) -> impl Iterator<Item = (&InstanceId, Timestamp, Timestamp)> {
        let lanes = self.lanes(group).filter(|lane| lane.pace.canary > 0 && self.index.servers[lane.of].staged > 0);
        lanes.flat_map(move |lane| {
            let until = move |since: &Timestamp| since.after(lane.pace.bake);
            let late = lane.confirmed.iter().rev().take_while(move |(since, _)| until(since) > after);
            late.map(move |(since, number)| (&self.list[*number].id, *since, until(since)))
        })
    }

    /// Until when the first of [`Self::baking`] does.
    pub(super) fn baked_at(&self, group: usize, after: Timestamp) -> Option<Timestamp> {
        let lanes = self.lanes(group).filter(|lane| lane.pace.canary > 0 && self.index.servers[lane.of].staged > 0);
        let first = |lane: &Lane| {
            let bake_ms = i64::try_from(lane.pace.bake.ms()).unwrap_or(i64::MAX);
            let from = Timestamp::from_unix_ms(after.unix_ms().saturating_sub(bake_ms));
            let late = lane.confirmed.range((from, 0)..).map(|(since, _)| since.after(lane.pace.bake));
            late.into_iter().find(|until| *until > after)
        };
        lanes.filter_map(first).min()
    }

    /// Until when a step may stay in the state that it is in.
    pub(super) fn deadline_of(&self, id: &InstanceId) -> Option<Timestamp> {
        self.list[self.number(id)?].deadline()
    }

    /// The first group of which not every step has come through.
    pub(super) fn first_behind(&self) -> Option<usize> {
        self.index.behind.keys().next().copied()
    }

    /// The numbers of the lanes of a group that have steps which are ready to be switched, in the order of the plan.
    pub(super) fn ready(&self, group: usize) -> impl Iterator<Item = usize> {
        self.index.ready.range((group, 0)..(group + 1, 0)).map(|(_, lane)| *lane)
    }

    /// A lane by its number.
    pub(super) fn lane(&self, lane: usize) -> &Lane {
        &self.index.lanes[lane]
    }

    /// The steps of a lane that change, from one place up to another, but for those that were left out.
    pub(super) fn in_lane<'a>(
        &'a self,
        lane: &'a Lane,
        places: Range<usize>,
    ) -> impl Iterator<Item = (&'a InstanceId, &'a Step)> {
        let counts = move |place: &usize| !lane.left_out.contains(place);
        let entries = places.filter(counts).map(|place| &self.list[lane.changing[place]]);
        entries.map(|entry| (&entry.id, &entry.step))
    }

    /// Those of the first places of a lane that are ready, and whose hosts are connected.
    pub(super) fn switchable<'a>(&'a self, lane: &'a Lane, end: usize) -> impl Iterator<Item = &'a InstanceId> {
        let staged = lane.staged.range(..end).map(|place| &self.list[lane.changing[*place]]);
        staged.filter(|entry| !entry.away).map(|entry| &entry.id)
    }

    fn of_server(&self, server: &ServerName) -> Option<&OfServer> {
        Some(&self.index.servers[*self.index.server_of.get(server)?])
    }

    /// How many instances of a server are out of service, or may be: in motion, failed, or on a host that cannot be
    /// reached. An instance that is still to be created was never in service.
    pub(super) fn unavailable(&self, server: &ServerName) -> usize {
        self.of_server(server).map_or(0, |of| of.unavailable)
    }

    /// Whether every instance of a server has been started, or has none to start.
    pub(super) fn is_started(&self, server: &ServerName) -> bool {
        self.of_server(server).is_none_or(|of| of.not_started == 0)
    }

    /// Whether a server has instances, all of which were left out.
    pub(super) fn is_left_out(&self, server: &ServerName) -> bool {
        self.of_server(server).is_some_and(|of| of.steps > 0 && of.left_out == of.steps)
    }

    /// The lanes of a group.
    pub(super) fn lanes(&self, group: usize) -> impl Iterator<Item = &Lane> {
        self.index.lane_of.range((group, 0)..(group + 1, 0)).map(|(_, lane)| &self.index.lanes[*lane])
    }

    /// In what the index differs from the steps, if it does.
    pub(super) fn disagreement(&self, plan: &Plan, away: &BTreeSet<HostName>) -> Option<String> {
        let kept = self.list.iter().map(|entry| (entry.id.clone(), entry.step.clone())).collect();
        let right = Self::kept(plan, kept, away);
        (right.index != self.index).then(|| format!("it has {:?}\nbut should have {:?}", self.index, right.index))
    }
}

impl Entry {
    fn deadline(&self) -> Option<Timestamp> {
        match &self.step.state {
            StepState::BackingOff { until, .. } => Some(*until),
            StepState::Switching { since } | StepState::Verifying { since } | StepState::Confirming { since } => {
                Some(since.after(self.patience))
            }
            StepState::Unchanged
            | StepState::Pending
            | StepState::Staging { .. }
            | StepState::Staged
            | StepState::Confirmed { .. }
            | StepState::Testing
            | StepState::Tested
            | StepState::Cleaning
            | StepState::Done
            | StepState::Failed { .. }
            | StepState::SettingAside { .. }
            | StepState::LeftOut { .. }
            | StepState::Restoring { .. }
            | StepState::Resolving { .. }
            | StepState::Untouched
            | StepState::Restored
            | StepState::Stuck { .. }
            | StepState::Superseded { .. } => None,
        }
    }

    fn is_unavailable(&self) -> bool {
        let name = StepStateName::from(&self.step.state);
        let existed = self.step.action != StepAction::Create || name.is_confirmed();
        let failed = matches!(name, StepStateName::Failed | StepStateName::Stuck);
        name.is_in_motion() || failed || (existed && self.away && !is_active(Mutant::ForgetUnreachable))
    }
}

impl PartialEq for Steps {
    /// What is counted follows from the steps.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Steps {}

impl std::ops::Index<&InstanceId> for Steps {
    type Output = Step;

    fn index(&self, id: &InstanceId) -> &Step {
        #[expect(clippy::expect_used, reason = "as with the maps of the standard library")]
        self.get(id).expect("the instance has a step")
    }
}

impl Serialize for Steps {
    /// As a map, by the names of the instances.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.index.by_id.iter().map(|number| &self.list[*number]).map(|of| (&of.id, &of.step)))
    }
}
