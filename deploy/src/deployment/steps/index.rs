//! What is counted of the steps of a deployment.

use std::collections::{BTreeMap, BTreeSet};

use super::Entry;
use super::lane::Lane;
use crate::deployment::step::{StepState, StepStateName};
use crate::ids::ServerName;
use crate::plan::{Pace, StepAction};
use crate::time::Timestamp;

/// What is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// The numbers of all steps, by the names of their instances. What is decided about several steps at once is decided in
    /// this order: recorded journals count on it.
    pub(super) by_id: Vec<usize>,
    /// The place of each step in that order.
    pub(super) ranks: Vec<usize>,
    /// The numbers of all steps, by host and then by name.
    pub(super) by_host: Vec<usize>,
    pub(super) by_state: BTreeMap<StepStateName, BTreeSet<usize>>,
    /// Until when a step may stay as it is, and its place by name.
    pub(super) deadlines: BTreeSet<(Timestamp, usize)>,
    pub(super) lanes: Vec<Lane>,
    pub(super) lane_of: BTreeMap<(usize, usize), usize>,
    pub(super) servers: Vec<OfServer>,
    pub(super) server_of: BTreeMap<ServerName, usize>,
    /// For each group, how many of its steps have not come through.
    pub(super) behind: BTreeMap<usize, usize>,
    /// The lanes of each group that have staged steps.
    pub(super) ready: BTreeSet<(usize, usize)>,
}

/// The steps of one server in all groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OfServer {
    pub(super) steps: usize,
    pub(super) left_out: usize,
    pub(super) staged: usize,
    pub(super) not_started: usize,
    pub(super) unavailable: usize,
}

impl Index {
    /// The number of a server.
    pub(super) fn server(&mut self, server: &ServerName) -> usize {
        if let Some(number) = self.server_of.get(server) {
            return *number;
        }
        let number = self.servers.len();
        self.servers.push(OfServer::default());
        self.server_of.insert(server.clone(), number);
        number
    }

    /// The number of the lane of a server in a group.
    pub(super) fn lane(&mut self, group: usize, server: usize, name: &ServerName, pace: Pace) -> usize {
        let next = self.lanes.len();
        let lane = *self.lane_of.entry((group, server)).or_insert(next);
        if lane == next {
            self.lanes.push(Lane {
                group,
                server: name.clone(),
                of: server,
                pace,
                changing: Vec::new(),
                left_out: BTreeSet::new(),
                unconfirmed: BTreeSet::new(),
                staged: BTreeSet::new(),
                confirmed: BTreeSet::new(),
            });
        }
        lane
    }

    /// Counts a step in as it is, or out.
    pub(super) fn count(&mut self, number: usize, entry: &Entry, by: isize) {
        let name = StepStateName::from(&entry.step.state);
        let (lane, of) = (&mut self.lanes[entry.lane], &mut self.servers[entry.server]);
        let same = self.by_state.entry(name).or_default();
        put(same, number, by);
        if same.is_empty() {
            self.by_state.remove(&name);
        }
        if let Some(at) = entry.deadline() {
            put(&mut self.deadlines, (at, self.ranks[number]), by);
        }
        if let StepState::Confirmed { since } = &entry.step.state {
            put(&mut lane.confirmed, (*since, number), by);
        }
        let left_out = name == StepStateName::LeftOut;
        let staged = name == StepStateName::Staged;
        if entry.step.action != StepAction::Unchanged {
            for (set, belongs) in [
                (&mut lane.left_out, left_out),
                (&mut lane.staged, staged),
                (&mut lane.unconfirmed, !left_out && !name.is_confirmed()),
            ] {
                if belongs {
                    put(set, entry.place, by);
                }
            }
        }
        if lane.staged.is_empty() {
            self.ready.remove(&(lane.group, entry.lane));
        } else {
            self.ready.insert((lane.group, entry.lane));
        }
        of.steps = of.steps.saturating_add_signed(by);
        for (count, counts) in [
            (&mut of.left_out, left_out),
            (&mut of.staged, staged),
            (&mut of.not_started, !name.has_started()),
            (&mut of.unavailable, entry.is_unavailable()),
        ] {
            *count = count.saturating_add_signed(if counts { by } else { 0 });
        }
        if !name.came_through() {
            let behind = self.behind.entry(lane.group).or_default();
            *behind = behind.saturating_add_signed(by);
            if *behind == 0 {
                self.behind.remove(&lane.group);
            }
        }
    }
}

fn put<T: Ord>(set: &mut BTreeSet<T>, value: T, by: isize) {
    if by > 0 {
        set.insert(value);
    } else {
        set.remove(&value);
    }
}
