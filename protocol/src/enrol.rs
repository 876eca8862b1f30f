//! Enrolment: a token for a certificate. The only messages of a peer that has no certificate.

use fleetwright_deploy::ids::{FleetName, HostName};
use serde::{Deserialize, Serialize};

/// What an agent without a certificate may send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolRequest {
    /// The first shape.
    V1 {
        /// The token.
        token: String,
        /// The certificate signing request, in DER. Only its public key is used.
        request_der: Vec<u8>,
    },
}

/// What it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolReply {
    /// It is enrolled.
    Enrolled(Box<Credentials>),
    /// It is not, and should not try again with this token.
    Refused(String),
}

/// Everything an agent must know to take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The fleet.
    pub fleet: FleetName,
    /// The host that the token was made for.
    pub host: HostName,
    /// The agent's certificate, in PEM.
    pub certificate_pem: String,
    /// The authority's certificate, in PEM.
    pub authority_pem: String,
    /// Public keys (PEM) that may sign commands.
    pub command_keys: Vec<String>,
    /// Public keys (PEM) that may sign intents.
    pub intent_keys: Vec<String>,
}
