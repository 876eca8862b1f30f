//! Endpoints outside the fleet: asked before anything is got ready, tried again as steps are.

use serde::{Deserialize, Serialize};

use super::step::Aside;
use super::{Action, Deployment, Effects, IllegalEvent, Phase, WaitKind, Waiting};
use crate::failure::{Failure, FailureKind};
use crate::ids::ServerName;
use crate::plan::External;

use crate::time::Timestamp;

/// Whether an external answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inquiry {
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// When it did not answer first.
    pub failed_at: Option<Timestamp>,
    /// Where it stands.
    pub state: InquiryState,
}

/// Where an inquiry stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum InquiryState {
    /// The coordinator is asking.
    Asked {
        /// Since when.
        since: Timestamp,
    },
    /// It did not answer; the next attempt begins after a pause.
    BackingOff {
        /// Since when.
        since: Timestamp,
        /// Until when.
        until: Timestamp,
    },
    /// It did not answer in all its attempts.
    Failed,
    /// It answered, or a person goes on without its answer.
    Over,
}

impl Deployment {
    /// Externals that are being asked, each with the attempt.
    pub fn questions(&self) -> impl Iterator<Item = (&External, u32)> {
        let open = matches!(self.phase, Phase::DependencyResolution | Phase::AwaitingOperator { .. });
        self.plan.externals.iter().filter_map(move |external| {
            let inquiry = self.externals.get(&external.name).filter(|_| open)?;
            matches!(inquiry.state, InquiryState::Asked { .. }).then_some((external, inquiry.attempt))
        })
    }

    /// Asks every external of the plan for the first time.
    pub(super) fn ask_all(&mut self, now: Timestamp, effects: &mut Effects) {
        for external in self.plan.externals.clone() {
            let state = InquiryState::Asked { since: now };
            self.externals.insert(external.name.clone(), Inquiry { attempt: 1, failed_at: None, state });
            effects.actions.push(Action::Ask { deployment: self.id.clone(), external, attempt: 1 });
        }
    }

    /// Whether every external has answered.
    pub(super) fn externals_are_there(&self) -> bool {
        self.externals.values().all(|inquiry| inquiry.state == InquiryState::Over)
    }

    /// Takes in what became of an attempt to reach an external.
    pub(super) fn external_reported(
        &mut self,
        name: &ServerName,
        attempt: u32,
        failure: Option<Failure>,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), IllegalEvent> {
        if !self.questions().any(|(external, of)| external.name == *name && of == attempt) {
            return Err(self.illegal("external_reported", format!("; {name} is not asked for the {attempt}. time")));
        }
        let Some(failure) = failure else {
            self.progress_at = now;
            effects.notes.push(self.note(None, "external_answers", format!("{name} answers")));
            self.set_inquiry(name, InquiryState::Over);
            return Ok(());
        };
        let policy = &self.plan.rollout.retry;
        let attempts = policy.attempts_for(&failure);
        let first = self.externals.get(name).and_then(|inquiry| inquiry.failed_at).unwrap_or(now);
        let until = now.after(policy.pause(&self.id, name.as_str(), attempt));
        let again = attempt < attempts && now <= first.after(policy.total);
        if let Some(inquiry) = self.externals.get_mut(name) {
            inquiry.failed_at = Some(first);
        }
        let (what, then) = if again { ("retry", "; it is asked again") } else { ("external_failed", "") };
        let message = format!("{name}: attempt {attempt} of {attempts} failed{then}");
        let mut note = self.note(None, what, message);
        note.failure = Some(failure.clone());
        effects.notes.push(note);
        self.failures.push(failure.clone());
        if again {
            self.set_inquiry(name, InquiryState::BackingOff { since: now, until });
        } else {
            self.set_inquiry(name, InquiryState::Failed);
            self.fail(failure, now, effects);
        }
        Ok(())
    }

    /// Asks those externals again whose pause is over.
    pub(super) fn ask_again(&mut self, now: Timestamp, effects: &mut Effects) {
        let due = |state: &InquiryState| matches!(state, InquiryState::BackingOff { until, .. } if *until <= now);
        self.ask_those(due, now, effects);
    }

    fn ask_those(&mut self, which: impl Fn(&InquiryState) -> bool, now: Timestamp, effects: &mut Effects) {
        for external in &self.plan.externals {
            let Some(inquiry) = self.externals.get_mut(&external.name).filter(|inquiry| which(&inquiry.state)) else {
                continue;
            };
            inquiry.attempt += 1;
            inquiry.state = InquiryState::Asked { since: now };
            let (deployment, attempt) = (self.id.clone(), inquiry.attempt);
            effects.actions.push(Action::Ask { deployment, external: external.clone(), attempt });
        }
        self.progress_at = now;
    }

    /// Whether a person has to decide about an external.
    pub(super) fn misses_externals(&self) -> bool {
        self.externals.values().any(|inquiry| inquiry.state == InquiryState::Failed)
    }

    /// A person has externals that do not answer asked again, or goes on without them.
    pub(super) fn decide_about_externals(&mut self, next: Aside, by: &str, now: Timestamp, effects: &mut Effects) {
        let failed: Vec<ServerName> = self
            .externals
            .iter()
            .filter(|(_, of)| of.state == InquiryState::Failed)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &failed {
            let (what, message) = match next {
                Aside::Retry => ("retry", format!("{name}: asked again, says {by}")),
                Aside::LeaveOut => ("left_out", format!("{name}: {by} goes on without its answer")),
            };
            effects.notes.push(self.note(None, what, message));
            if next == Aside::LeaveOut {
                self.set_inquiry(name, InquiryState::Over);
            }
        }
        if next == Aside::Retry {
            self.ask_those(|state| *state == InquiryState::Failed, now, effects);
        }
    }

    fn set_inquiry(&mut self, name: &ServerName, state: InquiryState) {
        if let Some(inquiry) = self.externals.get_mut(name) {
            inquiry.state = state;
        }
    }

    /// When the first of the externals that did not answer is asked again.
    pub(super) fn externals_asked_again(&self) -> Option<Timestamp> {
        let open = matches!(self.phase, Phase::DependencyResolution);
        let again = self.externals.values().filter_map(|inquiry| match inquiry.state {
            InquiryState::BackingOff { until, .. } => Some(until),
            InquiryState::Asked { .. } | InquiryState::Failed | InquiryState::Over => None,
        });
        again.min().filter(|_| open)
    }

    /// The externals that are waited for.
    pub(super) fn waiting_for_externals(&self) -> Vec<Waiting> {
        if !matches!(self.phase, Phase::DependencyResolution) {
            return Vec::new();
        }
        let waits = self.plan.externals.iter().filter_map(|external| {
            let unblock = format!("bring {} back", external.name);
            let waiting = match &self.externals.get(&external.name)?.state {
                InquiryState::Asked { since } => {
                    Waiting::new(WaitKind::External, format!("{external} to answer"), *since, None)
                }
                InquiryState::BackingOff { since, until } => {
                    Waiting::new(WaitKind::BackOff, format!("{external} to be asked again"), *since, Some(*until))
                }
                InquiryState::Failed | InquiryState::Over => return None,
            };
            Some(waiting.unblocked_by(unblock))
        });
        waits.collect()
    }
}

/// Why an external does not answer, as a failure of a deployment.
pub fn no_answer(external: &External, why: &str) -> Failure {
    let mut failure = Failure::new(
        FailureKind::DependencyError,
        "dependency_resolution",
        format!("{external} does not answer: {why}"),
    )
    .hint(format!("bring {} back, or mend `externals` in the manifest; nothing was touched", external.name));
    failure.transient = true;
    failure
}
