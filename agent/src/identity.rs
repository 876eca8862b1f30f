//! Who this agent is: what enrolment gave it, kept in files that only its user reads.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use fleetwright_certs::{TrustedKeys, store};
use fleetwright_deploy::ids::{FleetName, HostName};
use fleetwright_protocol::Verifier;
use fleetwright_protocol::command::{COMMAND_PURPOSE, INTENT_PURPOSE};
use fleetwright_protocol::endpoint::TlsIdentity;
use fleetwright_protocol::enrol::Credentials;
use serde::{Deserialize, Serialize};

/// What is remembered of an enrolment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentIdentity {
    pub(crate) fleet: FleetName,
    pub(crate) host: HostName,
    pub(crate) coordinator: String,
    certificate_pem: String,
    authority_pem: String,
    command_keys: Vec<String>,
    intent_keys: Vec<String>,
    /// The labels given to hosts that enrolled when hosts still chose them. The coordinator takes them for a claim.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// The address that servers listen on, as this host says; empty when it says none.
    pub(crate) address: String,
}

impl AgentIdentity {
    pub(crate) fn new(credentials: Credentials, coordinator: &str, address: String) -> Self {
        Self {
            fleet: credentials.fleet,
            host: credentials.host,
            coordinator: coordinator.to_owned(),
            certificate_pem: credentials.certificate_pem,
            authority_pem: credentials.authority_pem,
            command_keys: credentials.command_keys,
            intent_keys: credentials.intent_keys,
            labels: BTreeMap::new(),
            address,
        }
    }

    /// Keeps the identity and its private key.
    pub(crate) fn save(&self, folder: &Path, key_pem: &str) -> Result<()> {
        store::write_private(&folder.join("agent.key"), key_pem.as_bytes())?;
        store::write_private(&folder.join("agent.json"), &serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }

    /// The identity in a folder; nothing when this agent has not enrolled.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("agent.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = store::read(&path)?;
        Ok(Some(serde_json::from_str(&text).with_context(|| format!("{} cannot be read", path.display()))?))
    }

    pub(crate) fn tls(&self, folder: &Path) -> Result<TlsIdentity> {
        Ok(TlsIdentity {
            chain_pem: self.certificate_pem.clone(),
            key_pem: store::read(&folder.join("agent.key"))?,
            authority_pem: self.authority_pem.clone(),
        })
    }

    pub(crate) fn verifier(&self) -> Result<Verifier> {
        Ok(Verifier {
            fleet: self.fleet.clone(),
            host: self.host.clone(),
            command_keys: TrustedKeys::from_pems(self.command_keys.iter().map(String::as_str), COMMAND_PURPOSE)?,
            intent_keys: TrustedKeys::from_pems(self.intent_keys.iter().map(String::as_str), INTENT_PURPOSE)?,
        })
    }
}
