//! Which commands a host obeys: each at most once, and none that is older than what it has obeyed already.
//!
//! Signatures, the host that is meant and the time are checked before; this is what needs memory. What it
//! remembers is durable on the host together with what the command leads to.

use std::collections::BTreeMap;

use crate::ids::{CommandId, Generation, ServerName};
use crate::mutant::{Mutant, is_active};
use crate::time::{Length, Timestamp};

/// How long the id of an obeyed command is kept: far longer than a command stays valid.
pub const OBEYED_KEPT: Length = Length::from_secs(7 * 24 * 3_600);

/// What a command says about its place among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its id.
    pub id: CommandId,
    /// The generation of the fleet when it was issued.
    pub generation: Generation,
    /// The server it is about, and the generation of the operator's intent that it carries.
    pub intent: (ServerName, Generation),
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
}

/// What a host remembers of the commands it has obeyed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    generation: Generation,
    intents: BTreeMap<ServerName, Generation>,
    obeyed: BTreeMap<CommandId, Timestamp>,
}

impl Admission {
    /// What was remembered durably.
    pub fn new(
        generation: Generation,
        intents: BTreeMap<ServerName, Generation>,
        obeyed: BTreeMap<CommandId, Timestamp>,
    ) -> Self {
        Self { generation, intents, obeyed }
    }

    /// The highest generation of any command that was obeyed.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether a command may be obeyed that needs no intent.
    pub fn admit_reading(&self, generation: Generation) -> Result<(), NotAdmitted> {
        if generation < self.generation && !is_active(Mutant::AcceptOlderGeneration) {
            return Err(NotAdmitted::Older { of: generation, seen: self.generation });
        }
        Ok(())
    }

    /// Whether a command is obeyed.
    pub fn admit(&self, stamp: &Stamp) -> Result<Admitted, NotAdmitted> {
        self.admit_reading(stamp.generation)?;
        let (server, of) = &stamp.intent;
        let followed = self.intents.get(server).copied().unwrap_or_default();
        if *of < followed && !is_active(Mutant::AcceptOlderGeneration) {
            return Err(NotAdmitted::OlderIntent { server: server.clone(), of: *of, followed });
        }
        let again = self.obeyed.contains_key(&stamp.id) && !is_active(Mutant::ObeyTwice);
        Ok(if again { Admitted::Again } else { Admitted::New })
    }

    /// Remembers a command that is obeyed.
    pub fn obey(&mut self, stamp: Stamp, now: Timestamp) {
        self.obeyed.retain(|_, at| now <= at.after(OBEYED_KEPT));
        self.obeyed.insert(stamp.id, now);
        self.generation = self.generation.max(stamp.generation);
        let (server, generation) = stamp.intent;
        let followed = self.intents.entry(server).or_default();
        *followed = (*followed).max(generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(id: u8, generation: u64, intent: u64) -> Stamp {
        let server = "time".parse().expect("name");
        Stamp { id: CommandId([id; 16]), generation: Generation(generation), intent: (server, Generation(intent)) }
    }

    #[test]
    fn a_command_is_obeyed_once_and_never_after_a_newer_one() {
        let now = Timestamp::from_unix_ms(0);
        let mut admission = Admission::default();
        assert_eq!(admission.admit(&stamp(1, 4, 3)), Ok(Admitted::New));
        admission.obey(stamp(1, 4, 3), now);
        assert_eq!(admission.admit(&stamp(1, 4, 3)), Ok(Admitted::Again));
        assert_eq!(admission.admit(&stamp(2, 4, 3)), Ok(Admitted::New));
        assert!(matches!(admission.admit(&stamp(3, 3, 3)), Err(NotAdmitted::Older { .. })));
        assert!(matches!(admission.admit(&stamp(3, 4, 2)), Err(NotAdmitted::OlderIntent { .. })));
        admission.obey(stamp(4, 5, 3), now.after(OBEYED_KEPT).after(Length::from_ms(1)));
        assert_eq!(admission.obeyed.len(), 1, "old ids are forgotten");
    }
}
