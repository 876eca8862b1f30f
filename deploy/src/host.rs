//! What is known about a host: its address, its labels, and the facts it reports about itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a host has, as its agent found it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The operating system, such as `linux`.
    pub os: String,
    /// The processor architecture, such as `x86_64`.
    pub arch: String,
    /// Logical processors.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// The programs and engines found, with their versions: `python` (one entry per interpreter), `node`, `docker`, `podman`, `systemd`.
    pub runtimes: BTreeMap<String, Vec<Version>>,
}

impl Facts {
    /// Whether it has an engine for containers.
    pub fn runs_containers(&self) -> bool {
        ["docker", "podman"].iter().any(|engine| self.runtimes.contains_key(*engine))
    }
}

/// A host as planning sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// The address its servers listen on.
    pub address: String,
    /// The agent's state folder on the host.
    pub state_dir: String,
    /// Labels that placement selects by.
    pub labels: BTreeMap<String, String>,
    /// What it reported; nothing when it is only named in a manifest and was never asked.
    pub facts: Option<Facts>,
}

/// A dotted numeric version such as `3.12.1`, compared number by number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(Vec<u32>);

/// Why a text is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a version of dotted numbers such as 3.12")]
pub struct InvalidVersion(String);

impl TryFrom<String> for Version {
    type Error = InvalidVersion;

    fn try_from(text: String) -> Result<Self, InvalidVersion> {
        let numbers: Result<Vec<u32>, _> = text.split('.').map(str::parse).collect();
        match numbers {
            Ok(numbers) if numbers.len() <= 4 => Ok(Self(numbers)),
            Ok(_) | Err(_) => Err(InvalidVersion(text)),
        }
    }
}

impl Version {
    /// Its first two numbers, such as `3.12` of `3.12.1`.
    pub fn series(&self) -> &[u32] {
        &self.0[..self.0.len().min(2)]
    }
}

impl<const N: usize> From<[u32; N]> for Version {
    fn from(numbers: [u32; N]) -> Self {
        Self(numbers.to_vec())
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.pad(&numbers.join("."))
    }
}

/// Something a host must have: `python`, `python>=3.12`, `docker`, `node>=20`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Requirement {
    /// The runtime that must be there.
    pub runtime: String,
    /// The least version of it, where one is asked for.
    pub at_least: Option<Version>,
}

impl Requirement {
    /// Whether a host with these facts has it.
    pub fn is_met_by(&self, facts: &Facts) -> bool {
        let Some(found) = facts.runtimes.get(&self.runtime) else { return false };
        match &self.at_least {
            None => true,
            Some(least) => found.iter().any(|version| version >= least),
        }
    }
}

impl TryFrom<String> for Requirement {
    type Error = InvalidVersion;

    fn try_from(text: String) -> Result<Self, InvalidVersion> {
        let (runtime, at_least) = match text.split_once(">=") {
            Some((runtime, version)) => (runtime.trim(), Some(Version::try_from(version.trim().to_owned())?)),
            None => (text.trim(), None),
        };
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if runtime.is_empty() || !runtime.bytes().all(known) {
            return Err(InvalidVersion(text));
        }
        Ok(Self { runtime: runtime.to_owned(), at_least })
    }
}

impl From<Requirement> for String {
    fn from(requirement: Requirement) -> Self {
        requirement.to_string()
    }
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.at_least {
            None => f.pad(&self.runtime),
            Some(version) => f.pad(&format!("{}>={version}", self.runtime)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(text: &str) -> Requirement {
        Requirement::try_from(text.to_owned()).expect(text)
    }

    #[test]
    fn a_requirement_compares_versions_by_number() {
        let version = |text: &str| Version::try_from(text.to_owned()).expect(text);
        let facts = Facts {
            runtimes: [("python".to_owned(), vec![version("3.9.1"), version("3.11.7")])].into(),
            ..Facts::default()
        };
        assert!(requirement("python").is_met_by(&facts));
        assert!(requirement("python>=3.11").is_met_by(&facts));
        assert!(!requirement("python>=3.12").is_met_by(&facts));
        assert!(!requirement("docker").is_met_by(&facts));
    }

    #[test]
    fn malformed_requirements_are_refused() {
        for bad in ["", ">=3", "python>=", "python>=x", "py thon", "Python"] {
            assert!(Requirement::try_from(bad.to_owned()).is_err(), "{bad:?} was accepted");
        }
    }
}
