//! What a manifest needs and does not deploy: endpoints outside the fleet that must answer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::ServerName;
use crate::time::Length;

/// Most externals that a manifest may name.
pub const EXTERNALS_MAX: usize = 100;

/// How long one attempt to reach one may take at most.
pub const EXTERNAL_TIMEOUT_MAX: Length = Length::from_secs(60);

/// An endpoint outside the fleet that must answer before anything is got ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Its name, by which servers depend on it.
    pub name: ServerName,
    /// What must answer.
    pub endpoint: ExternalEndpoint,
    /// How long one attempt may take.
    pub timeout: Length,
}

/// What must answer, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExternalEndpoint {
    /// A connection is accepted.
    Tcp {
        /// `HOST:PORT`.
        address: String,
    },
    /// A GET request is answered with one of these statuses.
    Http {
        /// The URL.
        url: String,
        /// The statuses.
        statuses: Vec<u16>,
    },
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            ExternalEndpoint::Tcp { address } => write!(f, "{} ({address})", self.name),
            ExternalEndpoint::Http { url, .. } => write!(f, "{} ({url})", self.name),
        }
    }
}
