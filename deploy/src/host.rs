//! What is known about a host: its address, its labels, and the facts it reports about itself; and what may be said there.

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
    /// The size of the file system with the agent's state, in bytes; 0 when it is not known.
    #[serde(default)]
    pub disk_bytes: u64,
    /// The programs and engines found, with their versions: `python` (one entry per interpreter), `node`, `docker`, `podman`, `systemd`.
    /// What was asked and has not answered yet is in it with [`UNKNOWN_MARK`] before its name, and without a version.
    pub runtimes: BTreeMap<String, Vec<Version>>,
}

/// What stands before the name of a runtime of which it is not known whether it is there, or there in more versions; alone,
/// it says so of all of them. No name of a runtime has it, so to a coordinator of before it is a runtime that nobody needs.
pub const UNKNOWN_MARK: &str = "?";
/// The engines for containers.
const ENGINES: [&str; 2] = ["docker", "podman"];

impl Facts {
    /// Whether it has an engine for containers.
    pub fn runs_containers(&self) -> bool {
        ENGINES.iter().any(|engine| self.runtimes.contains_key(*engine))
    }

    /// Whether it may have an engine for containers, for all that is known.
    pub fn may_run_containers(&self) -> bool {
        self.runs_containers() || ENGINES.iter().any(|engine| self.is_unknown(engine))
    }

    /// Says that it is not known whether a runtime is there, or there in more versions.
    pub fn set_unknown(&mut self, runtime: &str) {
        self.runtimes.insert(format!("{UNKNOWN_MARK}{runtime}"), Vec::new());
    }

    /// Says that no runtime has been asked for yet.
    pub fn set_all_unknown(&mut self) {
        self.set_unknown("");
    }

    /// Whether no runtime has been asked for yet.
    pub fn are_unknown(&self) -> bool {
        self.runtimes.contains_key(UNKNOWN_MARK)
    }

    /// Whether it is not known of a runtime whether it is there, or there in more versions.
    pub fn is_unknown(&self, runtime: &str) -> bool {
        self.are_unknown() || self.runtimes.contains_key(&format!("{UNKNOWN_MARK}{runtime}"))
    }
}

/// Most labels of a host.
pub const LABELS_MAX: usize = 64;
/// Longest name, and longest value, of a label.
pub const LABEL_BYTES_MAX: usize = 256;
/// Longest address of a host.
pub const ADDRESS_BYTES_MAX: usize = 253;
/// The address of a host of which nobody, not even its agent, has said one.
pub const ADDRESS_UNSAID: &str = "127.0.0.1";

/// Whether these can be the labels of a host, or why not.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    if labels.len() > LABELS_MAX {
        return Err(format!("{} labels are too many: a host has at most {LABELS_MAX}", labels.len()));
    }
    let fits = |text: &str| text.len() <= LABEL_BYTES_MAX && !text.chars().any(char::is_control);
    for (key, value) in labels {
        let is_name = !key.is_empty() && !key.contains(['=', ',']) && !key.contains(char::is_whitespace);
        if !is_name || !fits(key) || !fits(value) {
            let label = format!("{key}={value}");
            let label: String = label.chars().take(40).flat_map(char::escape_debug).collect();
            return Err(format!(
                "`{label}` is no label: a name without spaces, `=` and `,`, and a value, of at most {LABEL_BYTES_MAX} bytes each"
            ));
        }
    }
    Ok(())
}

/// Whether this can be the address of a host, or why not. It becomes a part of URLs and of files, so no character in it
/// may mean anything else there.
pub fn check_address(address: &str) -> Result<(), String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if !address.is_empty() && address.len() <= ADDRESS_BYTES_MAX && address.chars().all(is_part) {
        return Ok(());
    }
    let shown: String = address.chars().take(40).flat_map(char::escape_debug).collect();
    Err(format!("`{shown}` is no address: write an IP address or a name, without a port"))
}

/// A kind of fact that an agent tells of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, strum::IntoStaticStr)]
#[cfg_attr(feature = "planning", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FactName {
    /// The operating system.
    Os,
    /// The processor architecture.
    Arch,
    /// How many processors it has.
    Cpus,
    /// How much memory it has.
    Memory,
    /// How large its disk is.
    Disk,
    /// Which programs and container engines it has.
    Runtimes,
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

#[cfg(feature = "planning")]
impl schemars::JsonSchema for Version {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Version".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "number"], "description": "A dotted numeric version such as 3.12.1." })
    }
}

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

/// Something a host must have: `python`, `python>=3.12`, `node>=20`, `docker`; `cpus>=4`, `memory>=2GiB`, `disk>=10GiB`
/// (of the file system with the agent's state, whether it is free or not); `os=linux`, `arch=x86_64`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Requirement {
    /// A program or an engine.
    Runtime {
        /// Its name, such as `python`.
        name: String,
        /// The least version of it, where one is asked for.
        at_least: Option<Version>,
    },
    /// At least as many processors.
    Cpus(u32),
    /// At least as much physical memory, in bytes.
    Memory(u64),
    /// At least as much space on the disk with the agent's state, in bytes.
    Disk(u64),
    /// This operating system.
    Os(String),
    /// This processor architecture.
    Arch(String),
}

#[cfg(feature = "planning")]
impl schemars::JsonSchema for Requirement {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Requirement".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "Something a host must have, such as python>=3.12, docker, memory>=2GiB or os=linux." })
    }
}

/// Why a text is no requirement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not something a host can have: write for example python>=3.12, memory>=2GiB, cpus>=2 or arch=x86_64")]
pub struct InvalidRequirement(String);

impl Requirement {
    /// Whether a host with these facts has it. What is not known of a host counts as met.
    pub fn is_met_by(&self, facts: &Facts) -> bool {
        let enough = |has: u64, least: u64| has == 0 || has >= least;
        match self {
            Self::Runtime { name, at_least } => match (facts.runtimes.get(name), at_least) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(found), Some(least)) => found.iter().any(|version| version >= least),
            },
            Self::Cpus(least) => enough(facts.cpus.into(), (*least).into()),
            Self::Memory(least) => enough(facts.memory_bytes, *least),
            Self::Disk(least) => enough(facts.disk_bytes, *least),
            Self::Os(os) => facts.os.is_empty() || facts.os == *os,
            Self::Arch(arch) => facts.arch.is_empty() || facts.arch == *arch,
        }
    }

    /// Whether a host with these facts may have it, though it has not been found there: what decides has not answered yet.
    pub fn is_unknown_of(&self, facts: &Facts) -> bool {
        !self.is_met_by(facts) && matches!(self, Self::Runtime { name, .. } if facts.is_unknown(name))
    }

    /// The kind of fact that decides whether a host has it.
    pub fn fact(&self) -> FactName {
        match self {
            Self::Runtime { .. } => FactName::Runtimes,
            Self::Cpus(_) => FactName::Cpus,
            Self::Memory(_) => FactName::Memory,
            Self::Disk(_) => FactName::Disk,
            Self::Os(_) => FactName::Os,
            Self::Arch(_) => FactName::Arch,
        }
    }

    /// The least version of a runtime, where it is asked for.
    pub fn least_version(&self, runtime: &str) -> Option<&Version> {
        match self {
            Self::Runtime { name, at_least } if name == runtime => at_least.as_ref(),
            _ => None,
        }
    }
}

impl TryFrom<String> for Requirement {
    type Error = InvalidRequirement;

    fn try_from(text: String) -> Result<Self, InvalidRequirement> {
        let parse = || {
            let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
            let is_word = |text: &str| !text.is_empty() && text.bytes().all(word);
            if let Some((name, least)) = text.split_once(">=") {
                let (name, least) = (name.trim(), least.trim());
                return match name {
                    "cpus" => least.parse().ok().map(Self::Cpus),
                    "memory" => bytes(least).ok().map(Self::Memory),
                    "disk" => bytes(least).ok().map(Self::Disk),
                    "os" | "arch" => None,
                    name if is_word(name) => {
                        let at_least = Some(Version::try_from(least.to_owned()).ok()?);
                        Some(Self::Runtime { name: name.to_owned(), at_least })
                    }
                    _ => None,
                };
            }
            if let Some((name, value)) = text.split_once('=') {
                let value = value.trim();
                return match name.trim() {
                    "os" if is_word(value) => Some(Self::Os(value.to_owned())),
                    "arch" if is_word(value) => Some(Self::Arch(value.to_owned())),
                    _ => None,
                };
            }
            let name = text.trim();
            let is_number = matches!(name, "cpus" | "memory" | "disk" | "os" | "arch");
            (is_word(name) && !is_number).then(|| Self::Runtime { name: name.to_owned(), at_least: None })
        };
        parse().ok_or_else(|| InvalidRequirement(text.clone()))
    }
}

impl From<Requirement> for String {
    fn from(requirement: Requirement) -> Self {
        requirement.to_string()
    }
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Runtime { name, at_least: None } => f.pad(name),
            Self::Runtime { name, at_least: Some(version) } => f.pad(&format!("{name}>={version}")),
            Self::Cpus(least) => f.pad(&format!("cpus>={least}")),
            Self::Memory(least) => f.pad(&format!("memory>={}", size(*least))),
            Self::Disk(least) => f.pad(&format!("disk>={}", size(*least))),
            Self::Os(os) => f.pad(&format!("os={os}")),
            Self::Arch(arch) => f.pad(&format!("arch={arch}")),
        }
    }
}

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A size such as `100MiB` or `2GiB`, in bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let factor = match unit {
        "" | "B" => Some(1),
        _ => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor),
    };
    let size = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor));
    size.ok_or_else(|| format!("`{text}` is not a size: write for example 100MiB or 2GiB"))
}

/// A size in the largest unit that it is a whole number of.
fn size(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| format!("{bytes}B"), |(name, factor)| format!("{}{name}", bytes / factor))
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
    fn what_has_not_answered_is_unknown_and_not_absent() {
        let version = |text: &str| Version::try_from(text.to_owned()).expect(text);
        let mut facts = Facts { runtimes: [("python".to_owned(), vec![version("3.11")])].into(), ..Facts::default() };
        facts.set_unknown("python");
        assert!(requirement("python>=3.11").is_met_by(&facts) && !requirement("python>=3.11").is_unknown_of(&facts));
        assert!(requirement("python>=3.12").is_unknown_of(&facts), "another interpreter has not answered");
        assert!(!requirement("node").is_unknown_of(&facts) && !requirement("node").is_met_by(&facts));
        assert!(!facts.may_run_containers() && !facts.are_unknown());
        facts.set_all_unknown();
        assert!(requirement("node").is_unknown_of(&facts) && facts.may_run_containers() && facts.are_unknown());
        let facts = facts.bounded();
        assert!(requirement("node").is_unknown_of(&facts), "also when it has come over the wire");
        assert!(Requirement::try_from(format!("{UNKNOWN_MARK}node")).is_err(), "no runtime has such a name");
    }

    #[test]
    fn facts_are_compared_and_what_is_not_known_counts_as_met() {
        let facts = Facts {
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            cpus: 4,
            memory_bytes: 8 << 30,
            disk_bytes: 100 << 30,
            ..Facts::default()
        };
        for met in ["cpus>=4", "memory>=8GiB", "memory >= 100MiB", "disk>=100GiB", "os=linux", "arch=x86_64"] {
            assert!(requirement(met).is_met_by(&facts), "{met}");
            assert!(requirement(met).is_met_by(&Facts::default()), "{met}");
        }
        for unmet in ["cpus>=5", "memory>=9GiB", "disk>=1TiB", "os=freebsd", "arch=aarch64"] {
            assert!(!requirement(unmet).is_met_by(&facts), "{unmet}");
        }
        for text in ["cpus>=4", "memory>=8GiB", "disk>=1500MiB", "arch=x86_64", "python>=3.12", "node", "memory>=7B"] {
            assert_eq!(requirement(text).to_string(), text);
        }
    }

    #[test]
    fn malformed_requirements_are_refused() {
        for bad in
            ["", ">=3", "python>=", "python>=x", "py thon", "Python", "cpus", "memory>=much", "os>=5", "arch=", "x=1"]
        {
            assert!(Requirement::try_from(bad.to_owned()).is_err(), "{bad:?} was accepted");
        }
    }
}
