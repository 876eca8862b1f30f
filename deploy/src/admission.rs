//! Which commands a host obeys: each at most once, none that is older than what it has obeyed already, and none under
//! an intent that has not begun in time, or whose deployment has ended here.
//!
//! Signatures, the host that is meant and the time are checked before; this is what needs memory. What it
//! remembers is durable on the host together with what the command leads to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::ids::{CommandId, DeploymentId, Generation, ServerName};
use crate::mutant::{Mutant, is_active};
use crate::time::{Length, Timestamp};

/// How long the id of an obeyed command is kept, and that an intent was followed: far longer than either counts.
pub const OBEYED_KEPT: Length = Length::from_secs(7 * 24 * 3_600);
/// How long an operator's intent counts at most.
pub const INTENT_LIFETIME_MAX: Length = Length::from_secs(24 * 3_600);
/// How long an operator's intent may take to reach a host, besides what its plan waits for.
pub const BEGIN_WITHIN_MIN: Length = Length::from_secs(5 * 60);

/// What an operator has signed an intent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Purpose {
    /// To deploy. That it may be undone while it is under way is part of it.
    Deploy,
    /// To undo: nothing new is got ready or switched to.
    RollBack,
}

/// The place of an operator's intent among others, and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The deployment it is for.
    pub deployment: DeploymentId,
    /// The generation that the fleet rises to by it.
    pub generation: Generation,
    /// What it is for.
    pub purpose: Purpose,
    /// By when a host must have heard of it.
    pub begin_by: Timestamp,
}

/// What a command asks for, as far as an intent's time and purpose matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// To get something new ready, or to switch to it.
    Forward,
    /// To keep, test or tidy what was switched to.
    Keep,
    /// To undo what the deployment did.
    Undo,
    /// To take it that a person has put in order what is stuck.
    Resolve,
}

/// What a command says about its place among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its id.
    pub id: CommandId,
    /// The generation of the fleet when it was issued.
    pub generation: Generation,
    /// The server it is about.
    pub server: ServerName,
    /// What it asks for.
    pub asks: Asks,
    /// The operator's intent that it carries.
    pub intent: Signed,
}

/// What becomes of a command that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It is obeyed now.
    New,
    /// It was obeyed before: nothing happens again.
    Again,
}

/// Why a command is not obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It was issued before one that was obeyed.
    #[error("it is of generation {of}; this host has seen {seen}")]
    Older {
        /// Its generation.
        of: Generation,
        /// The highest that was obeyed.
        seen: Generation,
    },
    /// The operator has said something newer about the server.
    #[error("its intent is of generation {of}; for {server} this host has followed {followed}")]
    OlderIntent {
        /// The server.
        server: ServerName,
        /// The generation of its intent.
        of: Generation,
        /// The highest that was followed.
        followed: Generation,
    },
    /// The host has heard of the intent too late.
    #[error("the operator's intent for {deployment} had to reach this host by {begin_by}, and did not")]
    NotBegun {
        /// The deployment.
        deployment: DeploymentId,
        /// By when it had to.
        begin_by: Timestamp,
    },
    /// The intent has done what it was signed for.
    #[error("the operator's intent of generation {of} for {deployment} has been followed to its end on this host")]
    Spent {
        /// The deployment.
        deployment: DeploymentId,
        /// The generation of the intent.
        of: Generation,
    },
    /// The operator wants the deployment undone.
    #[error("the operator's intent is to undo {deployment}, and lets nothing be got ready or switched to")]
    OnlyUndone {
        /// The deployment.
        deployment: DeploymentId,
    },
}

/// The newest intent of a deployment that a host has heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Its generation.
    pub generation: Generation,
    /// Whether what it was signed for has ended.
    pub ended: bool,
    /// When the host heard last of it.
    pub at: Timestamp,
}

/// What a host remembers of the commands it has obeyed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    generation: Generation,
    intents: BTreeMap<ServerName, Generation>,
    obeyed: BTreeMap<CommandId, Timestamp>,
    followed: BTreeMap<DeploymentId, Followed>,
}

impl Admission {
    /// What was remembered durably.
    pub fn new(
        generation: Generation,
        intents: BTreeMap<ServerName, Generation>,
        obeyed: BTreeMap<CommandId, Timestamp>,
        followed: BTreeMap<DeploymentId, Followed>,
    ) -> Self {
        Self { generation, intents, obeyed, followed }
    }

    /// The highest generation of any command that was obeyed.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What the host has heard of the intents for a deployment.
    pub fn followed(&self, deployment: &DeploymentId) -> Option<Followed> {
        self.followed.get(deployment).copied()
    }

    /// Whether a command may be obeyed that needs no intent.
    pub fn admit_reading(&self, generation: Generation) -> Result<(), NotAdmitted> {
        if generation < self.generation && !is_active(Mutant::AcceptOlderGeneration) {
            return Err(NotAdmitted::Older { of: generation, seen: self.generation });
        }
        Ok(())
    }

    /// Whether a command is obeyed.
    pub fn admit(&self, stamp: &Stamp, now: Timestamp) -> Result<Admitted, NotAdmitted> {
        self.admit_reading(stamp.generation)?;
        let (server, of) = (&stamp.server, stamp.intent.generation);
        let followed = self.intents.get(server).copied().unwrap_or_default();
        if of < followed && !is_active(Mutant::AcceptOlderGeneration) {
            return Err(NotAdmitted::OlderIntent { server: server.clone(), of, followed });
        }
        if self.obeyed.contains_key(&stamp.id) && !is_active(Mutant::ObeyTwice) {
            return Ok(Admitted::Again);
        }
        self.admit_under(&stamp.intent, stamp.asks, now)?;
        Ok(Admitted::New)
    }

    /// Whether an intent still counts for what is asked.
    fn admit_under(&self, intent: &Signed, asks: Asks, now: Timestamp) -> Result<(), NotAdmitted> {
        let Signed { deployment, generation, purpose, begin_by } = intent.clone();
        // What a person has put in order is only what the host is to take for so: it may be said at the end, too.
        if asks == Asks::Resolve {
            return Ok(());
        }
        match self.followed(&deployment).filter(|followed| followed.generation >= generation) {
            Some(followed)
                if (followed.ended || followed.generation > generation) && !is_active(Mutant::ObeySpentIntent) =>
            {
                return Err(NotAdmitted::Spent { deployment, of: generation });
            }
            Some(_) => {}
            // A deployment that never began here has left nothing here that could be undone.
            None if now > begin_by && !(asks == Asks::Undo && purpose == Purpose::Deploy) => {
                return Err(NotAdmitted::NotBegun { deployment, begin_by });
            }
            None => {}
        }
        if purpose == Purpose::RollBack && asks == Asks::Forward && !is_active(Mutant::ObeySpentIntent) {
            return Err(NotAdmitted::OnlyUndone { deployment });
        }
        Ok(())
    }

    /// Remembers a command that is obeyed.
    pub fn obey(&mut self, stamp: Stamp, now: Timestamp) {
        self.obeyed.retain(|_, at| now <= at.after(OBEYED_KEPT));
        self.obeyed.insert(stamp.id, now);
        self.generation = self.generation.max(stamp.generation);
        let followed = self.intents.entry(stamp.server).or_default();
        *followed = (*followed).max(stamp.intent.generation);
        self.follow(&stamp.intent, false, now);
    }

    /// Whether a host takes note of an intent: that it is followed from now on, or that it has been, to its end.
    /// Nothing where it knows that already.
    pub fn hear(&self, intent: &Signed, ended: bool, now: Timestamp) -> Result<bool, NotAdmitted> {
        let known = self.followed(&intent.deployment).filter(|known| known.generation >= intent.generation);
        match known {
            Some(known) => Ok(ended && !known.ended && known.generation == intent.generation),
            None if !ended && now > intent.begin_by => {
                let (deployment, begin_by) = (intent.deployment.clone(), intent.begin_by);
                Err(NotAdmitted::NotBegun { deployment, begin_by })
            }
            None => Ok(true),
        }
    }

    /// Remembers an intent that the host has heard of.
    pub fn follow(&mut self, intent: &Signed, ended: bool, now: Timestamp) {
        self.followed.retain(|_, followed| now <= followed.at.after(OBEYED_KEPT));
        let new = Followed { generation: intent.generation, ended, at: now };
        let followed = self.followed.entry(intent.deployment.clone()).or_insert(new);
        if followed.generation < new.generation {
            *followed = new;
        } else if followed.generation == new.generation {
            (followed.ended, followed.at) = (followed.ended || ended, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(generation: u64, purpose: Purpose) -> Signed {
        let begin_by = Timestamp::from_unix_ms(60_000);
        let deployment = "d3-aaaaaaaa".parse().expect("id");
        Signed { deployment, generation: Generation(generation), purpose, begin_by }
    }

    fn stamp(id: u8, generation: u64, intent: u64) -> Stamp {
        Stamp {
            id: CommandId([id; 16]),
            generation: Generation(generation),
            server: "time".parse().expect("name"),
            asks: Asks::Forward,
            intent: signed(intent, Purpose::Deploy),
        }
    }

    fn asks(id: u8, asks: Asks, intent: Signed) -> Stamp {
        Stamp { asks, intent, ..stamp(id, 9, 0) }
    }

    #[test]
    fn an_intent_that_is_heard_of_too_late_begins_nothing() {
        let (early, late) = (Timestamp::from_unix_ms(60_000), Timestamp::from_unix_ms(60_001));
        let mut admission = Admission::default();
        let begin = stamp(1, 3, 3);
        assert_eq!(admission.admit(&begin, early), Ok(Admitted::New));
        assert!(matches!(admission.admit(&begin, late), Err(NotAdmitted::NotBegun { .. })));
        assert!(matches!(admission.hear(&begin.intent, false, late), Err(NotAdmitted::NotBegun { .. })));
        // Nothing of it is here, so it is as good as undone; a rollback that nobody heard of in time is none.
        assert_eq!(admission.admit(&asks(2, Asks::Undo, begin.intent.clone()), late), Ok(Admitted::New));
        let undo = asks(2, Asks::Undo, signed(5, Purpose::RollBack));
        assert!(matches!(admission.admit(&undo, late), Err(NotAdmitted::NotBegun { .. })));
        assert_eq!(admission.hear(&begin.intent, false, early), Ok(true));
        admission.follow(&begin.intent, false, early);
        assert_eq!(admission.hear(&begin.intent, false, late), Ok(false));
        assert_eq!(admission.admit(&begin, late), Ok(Admitted::New), "it was heard of in time");
    }

    #[test]
    fn an_intent_is_spent_when_its_deployment_has_ended_and_only_a_newer_one_undoes_it() {
        let now = Timestamp::from_unix_ms(0);
        let mut admission = Admission::default();
        let (deploy, undo) = (signed(3, Purpose::Deploy), signed(4, Purpose::RollBack));
        admission.obey(stamp(1, 3, 3), now);
        assert_eq!(admission.admit(&asks(2, Asks::Undo, deploy.clone()), now), Ok(Admitted::New), "it is under way");
        assert_eq!(admission.hear(&deploy, true, now), Ok(true));
        admission.follow(&deploy, true, now);
        assert_eq!(admission.hear(&deploy, true, now), Ok(false));
        for of in [Asks::Forward, Asks::Keep, Asks::Undo] {
            let refused = admission.admit(&asks(2, of, deploy.clone()), now);
            assert!(matches!(refused, Err(NotAdmitted::Spent { .. })), "{of:?}: {refused:?}");
        }
        assert_eq!(admission.admit(&asks(2, Asks::Resolve, deploy.clone()), now), Ok(Admitted::New));
        assert_eq!(admission.admit(&stamp(1, 3, 3), now), Ok(Admitted::Again), "what was obeyed is only repeated");
        assert_eq!(admission.admit(&asks(2, Asks::Undo, undo.clone()), now), Ok(Admitted::New));
        assert!(matches!(
            admission.admit(&asks(2, Asks::Forward, undo.clone()), now),
            Err(NotAdmitted::OnlyUndone { .. })
        ));
        admission.follow(&undo, false, now);
        admission.follow(&deploy, false, now);
        let refused = admission.admit(&asks(3, Asks::Undo, deploy), now);
        assert!(matches!(refused, Err(NotAdmitted::Spent { .. })), "a newer one has taken its place: {refused:?}");
        admission.follow(&undo, true, now);
        assert!(matches!(admission.admit(&asks(3, Asks::Undo, undo), now), Err(NotAdmitted::Spent { .. })));
    }

    #[test]
    fn a_command_is_obeyed_once_and_never_after_a_newer_one() {
        let now = Timestamp::from_unix_ms(0);
        let mut admission = Admission::default();
        assert_eq!(admission.admit(&stamp(1, 4, 3), now), Ok(Admitted::New));
        admission.obey(stamp(1, 4, 3), now);
        assert_eq!(admission.admit(&stamp(1, 4, 3), now), Ok(Admitted::Again));
        assert_eq!(admission.admit(&stamp(2, 4, 3), now), Ok(Admitted::New));
        assert!(matches!(admission.admit(&stamp(3, 3, 3), now), Err(NotAdmitted::Older { .. })));
        assert!(matches!(admission.admit(&stamp(3, 4, 2), now), Err(NotAdmitted::OlderIntent { .. })));
        admission.obey(stamp(4, 5, 3), now.after(OBEYED_KEPT).after(Length::from_ms(1)));
        assert_eq!(admission.obeyed.len(), 1, "old ids are forgotten");
    }
}
