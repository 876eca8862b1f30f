//! The steps of one server in one group: which go ahead, and which may follow.

use std::collections::BTreeSet;

use crate::deployment::step::Step;
use crate::ids::ServerName;
use crate::plan::{Pace, StepAction};
use crate::time::Timestamp;

/// The steps of one server in one group. Places count those that change, in the order of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::deployment) struct Lane {
    pub(super) group: usize,
    pub(super) server: ServerName,
    pub(super) of: usize,
    pub(super) pace: Pace,
    pub(super) changing: Vec<usize>,
    pub(super) left_out: BTreeSet<usize>,
    /// Those that are neither confirmed nor left out.
    pub(super) unconfirmed: BTreeSet<usize>,
    pub(super) staged: BTreeSet<usize>,
    /// Since when those are confirmed of which nothing came after that, and their numbers.
    pub(super) confirmed: BTreeSet<(Timestamp, usize)>,
}

impl Lane {
    /// Adds a step, and gives its place.
    pub(super) fn add(&mut self, number: usize, step: &Step) -> usize {
        let place = self.changing.len();
        if step.action != StepAction::Unchanged {
            self.changing.push(number);
        }
        place
    }

    /// The server.
    pub(in crate::deployment) fn server(&self) -> &ServerName {
        &self.server
    }

    /// How fast its instances are switched.
    pub(in crate::deployment) fn pace(&self) -> Pace {
        self.pace
    }

    /// How many steps change, but for those that were left out.
    pub(in crate::deployment) fn changing(&self) -> usize {
        self.changing.len() - self.left_out.len()
    }

    /// Whether any step changes.
    pub(in crate::deployment) fn changes(&self) -> bool {
        !self.changing.is_empty()
    }

    /// The place after so many steps that were not left out.
    pub(in crate::deployment) fn end_of(&self, steps: usize) -> usize {
        let mut end = steps;
        for place in &self.left_out {
            if *place < end {
                end += 1;
            } else {
                break;
            }
        }
        end.min(self.changing.len())
    }

    /// Whether every step of the first places is confirmed or was left out.
    pub(in crate::deployment) fn is_confirmed(&self, end: usize) -> bool {
        self.unconfirmed.first().is_none_or(|place| *place >= end)
    }

    /// How many steps are in the batches that have begun or may begin: those before the first batch that is not
    /// confirmed, and that batch.
    pub(in crate::deployment) fn open(&self, canaries: usize, batch: usize) -> usize {
        let all = self.changing();
        let after_canaries = self.end_of(canaries);
        let Some(first) = self.unconfirmed.range(after_canaries..).next().filter(|_| batch > 0) else { return all };
        let rank = first - self.left_out.range(..first).count();
        all.min(canaries + (rank.saturating_sub(canaries) / batch + 1) * batch)
    }
}
