//! Who made something happen, as the coordinator itself knows it: nobody says it of oneself.

use core::fmt;
use core::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::HostName;

/// Who made something happen. Written as `coordinator`, `host:NAME` or `uid:NUMBER`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Actor {
    /// The coordinator: its start, its clocks, what follows from what was asked before.
    Coordinator,
    /// A host, by its certificate or its token.
    Host(HostName),
    /// A user of the coordinator's machine, as its kernel says.
    User(u32),
}

/// What is no actor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no actor: it is `coordinator`, `host:NAME` or `uid:NUMBER`")]
pub struct InvalidActor(String);

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::Host(host) => write!(f, "host:{host}"),
            Self::User(uid) => write!(f, "uid:{uid}"),
        }
    }
}

impl FromStr for Actor {
    type Err = InvalidActor;

    fn from_str(text: &str) -> Result<Self, InvalidActor> {
        let invalid = || InvalidActor(text.to_owned());
        match text.split_once(':') {
            None if text == "coordinator" => Ok(Self::Coordinator),
            Some(("host", name)) => name.parse().map(Self::Host).map_err(|_| invalid()),
            Some(("uid", uid)) => uid.parse().map(Self::User).map_err(|_| invalid()),
            _ => Err(invalid()),
        }
    }
}

impl Serialize for Actor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Actor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_is_read_as_it_is_written() {
        for text in ["coordinator", "host:web-1", "uid:0", "uid:4294967295"] {
            let actor: Actor = text.parse().expect("an actor");
            assert_eq!(actor.to_string(), text);
            assert_eq!(serde_json::to_string(&actor).expect("JSON"), format!("\"{text}\""));
        }
        for text in ["", "Coordinator", "host:", "host:a/b", "uid:-1", "uid:x", "user:1"] {
            assert_eq!(text.parse::<Actor>(), Err(InvalidActor(text.to_owned())));
        }
    }
}
