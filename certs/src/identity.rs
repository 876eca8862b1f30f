//! The identity in a certificate: `spiffe://FLEET/ROLE/NAME`, its only URI subject alternative name.

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::CertsError;

/// The name under which agents expect every coordinator; only coordinators' certificates bear it.
pub const COORDINATOR_DNS_NAME: &str = "coordinator.fleetwright";

/// What a certificate lets its holder be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The agent of one host.
    Agent,
    /// A coordinator.
    Coordinator,
}

/// Who holds a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The fleet, which is the SPIFFE trust domain.
    pub fleet: String,
    /// What the holder may be.
    pub role: Role,
    /// The host of an agent, or the name of a coordinator.
    pub name: String,
}

impl Identity {
    /// The identity in a certificate whose chain has been verified.
    pub fn of(certificate_der: &[u8]) -> Result<Self, CertsError> {
        let refuse = |why: String| CertsError::Identity(why);
        let (_, certificate) =
            X509Certificate::from_der(certificate_der).map_err(|error| refuse(format!("cannot be read: {error}")))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| refuse(error.to_string()))?
            .ok_or_else(|| refuse("it has no subject alternative name".to_owned()))?;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Self::parse(uri),
            (None, _) => Err(refuse("it has no SPIFFE URI".to_owned())),
            (Some(_), Some(_)) => Err(refuse("it has more than one URI".to_owned())),
        }
    }

    /// The identity that this SPIFFE URI names.
    pub fn parse(uri: &str) -> Result<Self, CertsError> {
        let parts: Vec<&str> = uri.strip_prefix("spiffe://").unwrap_or_default().split('/').collect();
        let role = match parts.get(1) {
            Some(&"agent") => Role::Agent,
            Some(&"coordinator") => Role::Coordinator,
            _ => return Err(CertsError::Identity(format!("`{uri}` is no identity of a fleet"))),
        };
        match parts[..] {
            [fleet, _, name] if !fleet.is_empty() && !name.is_empty() => {
                Ok(Self { fleet: fleet.to_owned(), role, name: name.to_owned() })
            }
            _ => Err(CertsError::Identity(format!("`{uri}` is no identity of a fleet"))),
        }
    }

    /// The identity as a SPIFFE URI.
    pub fn uri(&self) -> String {
        let role = match self.role {
            Role::Agent => "agent",
            Role::Coordinator => "coordinator",
        };
        format!("spiffe://{}/{role}/{}", self.fleet, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_identities_of_known_roles_are_read() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://f",
            "spiffe://f/agent",
            "spiffe://f/agent/",
            "spiffe:///agent/h",
            "spiffe://f/root/h",
            "spiffe://f/agent/h/x",
            "http://f/agent/h",
        ] {
            assert!(Identity::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(Identity::parse("spiffe://f/agent/h.x").expect("identity").name, "h.x");
    }
}
