//! The hosts of a fleet: what is believed of each, and what its agent says of itself.
//!
//! Labels decide which host gets a server and its secrets, and an address is written into the configuration of servers
//! on other hosts. So both are an operator's word, by a token or later; a host that was broken into cannot move itself.
//! What an agent says of them is a claim: it is kept and shown, and believed only where nobody has said anything yet,
//! which is so for the first address of a host whose token names none.

use core::net::IpAddr;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Effects, Fleet, Refused, note, one_note};
use crate::deployment::DeploymentEvent;
use crate::failure::{Failure, FailureKind};
use crate::host::{ADDRESS_UNSAID, HostView, check_address, check_labels};
use crate::ids::HostName;
use crate::time::{Length, Timestamp};

/// How long a host that was seen twice is not told of again.
pub const SEEN_TWICE_PAUSE: Length = Length::from_secs(3_600);
/// Most characters that are shown of what an agent says.
const CLAIM_CHARS_MAX: usize = 100;

/// What an operator says of a host with the token by which it enrols.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Who made the token.
    #[serde(default)]
    pub by: String,
    /// The labels of the host. Without any, a host that enrols anew keeps those that it has.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where its servers listen. Without it, a new host is believed what it says first, and one that enrols anew keeps
    /// the address that it has.
    #[serde(default)]
    pub address: Option<String>,
}

/// A host of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "KeptHost")]
pub struct Host {
    /// SHA-256 of the certificate it enrolled with, hexadecimal.
    pub certificate_sha256: String,
    /// Its labels, as operators have said.
    pub labels: BTreeMap<String, String>,
    /// Where its servers listen, as far as that is believed; nothing until somebody has said so.
    pub address: Option<String>,
    /// What it told when it last connected. Its labels and its address there are claims.
    pub view: Option<HostView>,
    /// What it claimed when an operator last said otherwise: that is no news any more.
    pub overruled: Claim,
    /// That two agents had its certificate at once, since it enrolled.
    pub seen_twice: Option<SeenTwice>,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Since when that is so.
    pub since: Timestamp,
}

/// What an agent says of itself that is not its to decide.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its address.
    pub address: String,
}

/// Two living connections with the certificate of one host, from two addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenTwice {
    /// When that was last so.
    pub at: Timestamp,
    /// From where the older connection came, and from where the newer.
    pub addresses: [IpAddr; 2],
    /// How often it was told, at most once in [`SEEN_TWICE_PAUSE`].
    pub times: u32,
}

/// A host as a snapshot holds it. Those of before know no beliefs: what a host told is what counted.
#[derive(Deserialize)]
struct KeptHost {
    certificate_sha256: String,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    address: Option<String>,
    view: Option<HostView>,
    #[serde(default)]
    overruled: Claim,
    #[serde(default)]
    seen_twice: Option<SeenTwice>,
    connected: bool,
    since: Timestamp,
}

impl From<KeptHost> for Host {
    fn from(kept: KeptHost) -> Self {
        let KeptHost { certificate_sha256, labels, address, view, overruled, seen_twice, connected, since } = kept;
        let (labels, address) = match (labels, &view) {
            (Some(labels), _) => (labels, address),
            (None, Some(view)) => (view.labels.clone(), Some(view.address.clone())),
            (None, None) => (BTreeMap::new(), None),
        };
        Self { certificate_sha256, labels, address, view, overruled, seen_twice, connected, since }
    }
}

impl Host {
    fn new(certificate_sha256: String, now: Timestamp) -> Self {
        Self {
            certificate_sha256,
            labels: BTreeMap::new(),
            address: None,
            view: None,
            overruled: Claim::default(),
            seen_twice: None,
            connected: false,
            since: now,
        }
    }

    /// The host as planning sees it: what it has in its own words, where and what it is in the operators'. Nothing while
    /// it has told nothing, or has no address that is believed.
    pub fn believed(&self) -> Option<HostView> {
        let view = self.view.clone()?;
        Some(HostView { labels: self.labels.clone(), address: self.address.clone()?, ..view })
    }

    /// What it says of itself that is not believed, in words.
    pub fn claims(&self) -> Vec<String> {
        let Some(view) = &self.view else { return Vec::new() };
        let mut claims = Vec::new();
        let said = !view.address.is_empty() && view.address != self.overruled.address;
        match &self.address {
            Some(believed) if said && *believed != view.address => {
                claims.push(format!("says it is at {}; believed {believed}", shown(&view.address)));
            }
            None => claims.push(format!("says it is at {}, which is no address", shown(&view.address))),
            Some(_) => {}
        }
        for (key, value) in &view.labels {
            let overruled = self.overruled.labels.get(key) == Some(value);
            if self.labels.get(key) != Some(value) && !overruled {
                let believed = self
                    .labels
                    .get(key)
                    .map_or_else(|| "it has no such label".to_owned(), |own| format!("believed {}", shown(own)));
                claims.push(format!("says it is {}={}; {believed}", shown(key), shown(value)));
            }
        }
        claims
    }

    /// What a person should look at.
    pub fn troubles(&self, name: &HostName) -> Vec<Failure> {
        let failure = |what: String, hint: String| {
            let failure = Failure::new(FailureKind::PermissionError, "host", format!("{name} {what}")).hint(hint);
            Failure { host: Some(name.clone()), ..failure }
        };
        let mut troubles = Vec::new();
        if let Some(SeenTwice { at, addresses, times }) = &self.seen_twice {
            let often = if *times > 1 { format!(", {times} times so far") } else { String::new() };
            let what = format!("was connected {} at once, last at {at}{often}", from(addresses));
            let hint = format!("its key may have been copied: enrol it anew, `fleetwright hosts token {name}`");
            troubles.push(failure(what, hint));
        }
        troubles.extend(self.claims().into_iter().map(|claim| {
            let hint = format!(
                "nothing follows from it; if it is right, say so: `fleetwright hosts address {name} ADDRESS`, \
                 `fleetwright hosts label {name} KEY=VALUE`"
            );
            failure(claim, hint)
        }));
        troubles
    }

    fn introduce(&mut self, introduction: Introduction) {
        let Introduction { by: _, labels, address } = introduction;
        if !labels.is_empty() {
            self.labels = labels;
        }
        if address.is_some() {
            self.address = address;
        }
    }
}

/// What an agent says, short and without what a terminal would obey.
fn shown(claim: &str) -> String {
    let mut shown: String = claim.chars().take(CLAIM_CHARS_MAX).flat_map(char::escape_debug).collect();
    if claim.chars().nth(CLAIM_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn refused(kind: FailureKind, message: String, hint: &str) -> Refused {
    Refused::Failure(Box::new(Failure::new(kind, "hosts", message).hint(hint)))
}

pub(super) fn check_introduction(introduction: &Introduction) -> Result<(), Refused> {
    let address = introduction.address.as_deref().map_or(Ok(()), check_address);
    address.and_then(|()| check_labels(&introduction.labels)).map_err(wrong)
}

fn wrong(why: String) -> Refused {
    refused(FailureKind::ConfigurationError, why, "write for example `--label zone=a` or `--address 192.0.2.11`")
}

impl Fleet {
    fn host_mut(&mut self, name: &HostName) -> Result<&mut Host, Refused> {
        let missing = || {
            let message = format!("there is no host {name}");
            refused(FailureKind::ConfigurationError, message, "`fleetwright hosts list` shows those that there are")
        };
        self.hosts.get_mut(name).ok_or_else(missing)
    }

    pub(super) fn host_enrolled(
        &mut self,
        name: HostName,
        certificate_sha256: String,
        introduction: Introduction,
        now: Timestamp,
    ) -> Effects {
        self.tokens.retain(|_, token| token.host != name);
        let mut told = note("host_enrolled", format!("{name} enrolled"));
        if self.hosts.get(&name).is_some_and(|host| host.connected) {
            self.disconnected([name.clone()].into(), now, &mut told);
        }
        let mut host = Host::new(certificate_sha256, now);
        if let Some(before) = self.hosts.remove(&name) {
            (host.labels, host.address, host.view) = (before.labels, before.address, before.view);
            host.overruled = before.overruled;
        }
        host.introduce(introduction);
        self.hosts.insert(name, host);
        told
    }

    /// An agent connected. In journals of before, what it told of its labels and its address counted.
    pub(super) fn host_connected(
        &mut self,
        name: &HostName,
        view: HostView,
        claimed: bool,
        now: Timestamp,
    ) -> Result<Effects, Refused> {
        let Some(host) = self.hosts.get_mut(name) else {
            let failure = Failure::new(FailureKind::PermissionError, "connect", format!("host {name} is not enrolled"));
            return Err(Refused::Failure(Box::new(failure)));
        };
        let was_connected = host.connected;
        let claims_before = if host.view.is_some() { host.claims() } else { Vec::new() };
        let mut effects = note("host_connected", format!("{name} connected"));
        if !claimed {
            (host.labels, host.address) = (view.labels.clone(), Some(view.address.clone()));
        } else if host.address.is_none() {
            let said = if view.address.is_empty() { ADDRESS_UNSAID } else { &view.address };
            if check_address(said).is_ok() {
                host.address = Some(said.to_owned());
                let message = format!("{name} is believed to be at {said}, as nobody has said otherwise");
                effects.notes.push(one_note("host_address", message));
            }
        }
        host.view = Some(view);
        (host.connected, host.since) = (true, now);
        for claim in host.claims().into_iter().filter(|claim| !claims_before.contains(claim)) {
            effects.notes.push(one_note("host_claims", format!("{name} {claim}")));
        }
        if !was_connected {
            self.tell_all(&DeploymentEvent::HostConnected { host: name.clone() }, now, &mut effects);
        }
        Ok(effects)
    }

    pub(super) fn host_labelled(
        &mut self,
        name: &HostName,
        changes: BTreeMap<String, Option<String>>,
        by: &str,
    ) -> Result<Effects, Refused> {
        let host = self.host_mut(name)?;
        let mut labels = host.labels.clone();
        let mut told = Vec::new();
        for (key, value) in changes {
            match value {
                Some(value) => {
                    told.push(format!("{key}={value}"));
                    labels.insert(key, value);
                }
                None => {
                    told.push(format!("{key}-"));
                    labels.remove(&key);
                }
            }
        }
        check_labels(&labels).map_err(wrong)?;
        let claimed = host.view.as_ref().map(|view| view.labels.clone()).unwrap_or_default();
        if labels == host.labels && claimed == host.overruled.labels {
            return Err(Refused::NoChange);
        }
        (host.labels, host.overruled.labels) = (labels, claimed);
        Ok(note("host_labelled", format!("{name} was labelled {} by {by}", told.join(" "))))
    }

    pub(super) fn host_addressed(&mut self, name: &HostName, address: String, by: &str) -> Result<Effects, Refused> {
        check_address(&address).map_err(wrong)?;
        let host = self.host_mut(name)?;
        let claimed = host.view.as_ref().map(|view| view.address.clone()).unwrap_or_default();
        if host.address.as_ref() == Some(&address) && claimed == host.overruled.address {
            return Err(Refused::NoChange);
        }
        let before = host.address.as_ref().map(|before| format!(", no longer at {before}")).unwrap_or_default();
        let told = note("host_addressed", format!("{name} is at {address}{before}, says {by}"));
        (host.address, host.overruled.address) = (Some(address), claimed);
        Ok(told)
    }

    pub(super) fn host_seen_twice(
        &mut self,
        name: &HostName,
        addresses: [IpAddr; 2],
        now: Timestamp,
    ) -> Result<Effects, Refused> {
        let host = self.host_mut(name)?;
        let before = host.seen_twice.as_ref();
        if before.is_some_and(|before| now < before.at.after(SEEN_TWICE_PAUSE)) {
            return Err(Refused::NoChange);
        }
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        host.seen_twice = Some(SeenTwice { at: now, addresses, times });
        let message =
            format!("{name} is connected {} at once: its key may have been copied; enrol it anew", from(&addresses));
        Ok(note("host_seen_twice", message))
    }
}

/// From where two connections come, in words: behind a translation of addresses it is one.
fn from([older, newer]: &[IpAddr; 2]) -> String {
    if older == newer { format!("twice from {older}") } else { format!("from {older} and from {newer}") }
}
