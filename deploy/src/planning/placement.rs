//! Which hosts run which servers, and why the others do not.

use std::collections::{BTreeMap, BTreeSet};

use super::{Circumstances, Configuration, definition};
use crate::config::{ManifestServer, Problem, Problems, Server};
use crate::host::HostView;
use crate::ids::{HostName, InstanceId, ServerName};
use crate::plan::Skipped;

pub(super) struct Placed {
    pub(super) hosts: BTreeMap<ServerName, Vec<HostName>>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) warnings: Vec<String>,
}

/// The hosts by number, and what is on each of them: what runs now, and what was placed before.
struct Board<'a> {
    hosts: Vec<Place<'a>>,
    numbers: BTreeMap<&'a HostName, usize>,
    /// The hosts that run each server now.
    runs: BTreeMap<&'a ServerName, BTreeSet<usize>>,
}

/// A host, and what was placed on it.
struct Place<'a> {
    name: &'a HostName,
    view: &'a HostView,
    unreachable: bool,
    count: usize,
    ports: BTreeMap<u16, &'a ServerName>,
    /// What was placed on it and keeps apart from something.
    apart: Vec<&'a ManifestServer>,
    /// What was placed on it.
    placed: BTreeSet<&'a ServerName>,
    /// What runs on it and is not of this manifest.
    others: BTreeSet<&'a ServerName>,
}

/// A server that looks for its hosts.
struct Wanted<'a> {
    entry: &'a ManifestServer,
    server: &'a Server,
    named: BTreeSet<&'a HostName>,
    port: Option<u16>,
    image: bool,
}

impl<'a> Wanted<'a> {
    fn new(entry: &'a ManifestServer, server: &'a Server) -> Self {
        Self {
            entry,
            server,
            named: entry.place.hosts.iter().map(|host| &host.value).collect(),
            port: server.run.port.as_ref().map(|port| port.value),
            image: server.package.as_ref().is_some_and(|package| package.value.oci.is_some()),
        }
    }

    fn count(&self) -> usize {
        let named = self.named.len();
        self.entry.place.count.as_ref().map_or_else(|| named.max(1), |count| count.value as usize)
    }
}

impl<'a> Board<'a> {
    fn new(configuration: &Configuration, circumstances: &'a Circumstances) -> Self {
        let manifest = &configuration.manifest.1.name.value;
        let place = |(name, view): (&'a HostName, &'a HostView)| Place {
            name,
            view,
            unreachable: circumstances.unreachable.contains(name),
            count: 0,
            ports: BTreeMap::new(),
            apart: Vec::new(),
            placed: BTreeSet::new(),
            others: BTreeSet::new(),
        };
        let mut hosts: Vec<Place<'a>> = circumstances.hosts.iter().map(place).collect();
        let numbers: BTreeMap<&HostName, usize> = hosts.iter().enumerate().map(|(n, host)| (host.name, n)).collect();
        let mut runs: BTreeMap<&ServerName, BTreeSet<usize>> = BTreeMap::new();
        for (InstanceId { server, host }, present) in &circumstances.present {
            let Some(number) = numbers.get(host) else { continue };
            runs.entry(server).or_default().insert(*number);
            if present.manifest != *manifest {
                hosts[*number].others.insert(server);
            }
        }
        Self { hosts, numbers, runs }
    }

    fn keeps(&self, server: &ServerName, host: usize) -> bool {
        self.runs.get(server).is_some_and(|hosts| hosts.contains(&host))
    }

    /// The hosts that a server gets: those that run it, then those with the fewest servers, then the first by name. They
    /// are taken from then on.
    fn choose(&mut self, wanted: &Wanted<'a>) -> Result<Vec<HostName>, String> {
        let name = &wanted.entry.server.value;
        let runs_on = self.runs.get(name);
        let keeps = |host: usize| runs_on.is_some_and(|hosts| hosts.contains(&host));
        let may = |n: &usize| {
            let host = &self.hosts[*n];
            (!host.unreachable || keeps(*n)) && refusal(host, wanted).is_none()
        };
        let mut candidates: Vec<usize> = (0..self.hosts.len()).filter(may).collect();
        let count = wanted.count();
        if candidates.len() < count {
            return Err(self.too_few(wanted, count, candidates.len()));
        }
        if let Some(label) = &wanted.entry.place.spread {
            candidates = self.spread(label, candidates, count, keeps);
        } else if candidates.len() > count && count > 0 {
            candidates.select_nth_unstable_by_key(count - 1, |n| (!keeps(*n), self.hosts[*n].count, *n));
        }
        candidates.truncate(count);
        candidates.sort_unstable();
        for n in &candidates {
            let host = &mut self.hosts[*n];
            host.count += 1;
            host.ports.extend(wanted.port.map(|port| (port, name)));
            host.placed.insert(name);
            if !wanted.entry.place.apart_from.is_empty() {
                host.apart.push(wanted.entry);
            }
        }
        Ok(candidates.into_iter().map(|n| self.hosts[n].name.clone()).collect())
    }

    /// So many of the candidates, as evenly over the values of a label as can be. Those that run the server keep it.
    fn spread(
        &self,
        label: &str,
        mut candidates: Vec<usize>,
        count: usize,
        keeps: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let value = |n: usize| self.hosts[n].view.labels.get(label);
        let mut chosen: Vec<usize> = Vec::with_capacity(count);
        let mut used: BTreeMap<Option<&String>, usize> = BTreeMap::new();
        while chosen.len() < count {
            let key = |n: &usize| (!keeps(*n), used.get(&value(*n)).copied().unwrap_or(0), self.hosts[*n].count, *n);
            let Some((at, _)) = candidates.iter().enumerate().min_by_key(|(_, n)| key(n)) else { break };
            let next = candidates.swap_remove(at);
            *used.entry(value(next)).or_default() += 1;
            chosen.push(next);
        }
        chosen
    }

    /// Why there are too few hosts for a server.
    fn too_few(&self, wanted: &Wanted<'a>, count: usize, possible: usize) -> String {
        let unknown = wanted.named.iter().filter(|host| !self.numbers.contains_key(*host));
        let mut refused: Vec<String> = unknown.map(|host| format!("{host}: no such host")).collect();
        for (n, host) in self.hosts.iter().enumerate() {
            match refusal(host, wanted) {
                Some(reason) => refused.push(format!("{}: {reason}", host.name)),
                None if host.unreachable && !self.keeps(&wanted.entry.server.value, n) => {
                    refused.push(format!("{}: not connected", host.name));
                }
                None => {}
            }
        }
        format!("{count} wanted, {possible} possible ({})", refused.join("; "))
    }
}

/// Places every server of the manifest, in the order in which it lists them. Hosts that run a server keep it;
/// otherwise the host with the fewest servers is taken, then the first by name.
pub(super) fn place(configuration: &Configuration, circumstances: &Circumstances) -> Result<Placed, Problems> {
    let (source, manifest) = &configuration.manifest;
    let mut placed = Placed { hosts: BTreeMap::new(), skipped: Vec::new(), warnings: Vec::new() };
    let mut problems = Vec::new();
    if circumstances.hosts.is_empty() {
        let problem = Problem::in_file(source, "there is no host to place servers on");
        return Err(problem.hint("list `hosts:` in the manifest, or enrol hosts with the coordinator").into());
    }
    let mut board = Board::new(configuration, circumstances);
    let unknown: Vec<&str> =
        circumstances.hosts.iter().filter(|(_, host)| host.facts.is_none()).map(|(name, _)| name.as_str()).collect();
    if !unknown.is_empty() {
        placed
            .warnings
            .push(format!("what these hosts have is not known, so their needs count as met: {}", unknown.join(", ")));
    }
    for entry in &manifest.servers {
        let (_, server) = match definition(configuration, &entry.server) {
            Ok(found) => found,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        match board.choose(&Wanted::new(entry, server)) {
            Ok(hosts) => {
                placed.hosts.insert(entry.server.value.clone(), hosts);
            }
            Err(reason) if entry.optional => {
                placed.skipped.push(Skipped { server: entry.server.value.clone(), reason });
            }
            Err(reason) => {
                let problem =
                    Problem::at(source, &entry.server, format!("`{}` cannot be placed: {reason}", entry.server.value));
                problems.push(
                    problem.hint("change `place`, give a host what is missing, or mark the server `optional: true`"),
                );
            }
        }
    }
    Problems::none_or(problems)?;
    Ok(placed)
}

/// What is to be said of every host for one server, once the servers that the manifest lists before it have their places.
pub(super) fn verdicts(
    configuration: &Configuration,
    circumstances: &Circumstances,
    server: &ServerName,
) -> BTreeMap<HostName, String> {
    let mut board = Board::new(configuration, circumstances);
    for entry in &configuration.manifest.1.servers {
        let Ok((_, definition)) = definition(configuration, &entry.server) else { continue };
        let wanted = Wanted::new(entry, definition);
        if entry.server.value != *server {
            let _ = board.choose(&wanted);
            continue;
        }
        let before: Vec<(Option<String>, usize)> =
            board.hosts.iter().map(|host| (refusal(host, &wanted), host.count)).collect();
        let chosen = board.choose(&wanted).unwrap_or_default();
        let said = before.into_iter().enumerate().map(|(n, (refused, count))| {
            let (host, keeps) = (&board.hosts[n], board.keeps(server, n));
            let said = match refused {
                Some(reason) => format!("refused: {reason}"),
                None if host.unreachable && !keeps => "refused: not connected".to_owned(),
                None if chosen.contains(host.name) && keeps => "chosen: it runs there already".to_owned(),
                None if chosen.contains(host.name) => format!("chosen: it has {count} servers of this manifest"),
                None => format!("not needed: it has {count} servers of this manifest"),
            };
            (host.name.clone(), said)
        });
        return said.collect();
    }
    BTreeMap::new()
}

/// Why a host will not do for a server.
fn refusal<'a>(host: &Place<'a>, wanted: &Wanted<'a>) -> Option<String> {
    let (view, place) = (host.view, &wanted.entry.place);
    if !wanted.named.is_empty() && !wanted.named.contains(host.name) {
        return Some("not among `hosts`".to_owned());
    }
    if let Some((key, value)) = place.labels.iter().find(|(key, value)| view.labels.get(*key) != Some(*value)) {
        return Some(format!("no label {key}={value}"));
    }
    if let Some(label) = place.spread.as_ref().filter(|label| !view.labels.contains_key(*label)) {
        return Some(format!("no label {label} to spread over"));
    }
    if let Some(near) = too_near(host, wanted.entry) {
        return Some(format!("`{near}` is there, and they stay apart"));
    }
    if let Some(facts) = &view.facts {
        if let Some(missing) = wanted.server.requires.iter().find(|requirement| !requirement.is_met_by(facts)) {
            return Some(format!("no {missing}"));
        }
        if wanted.image && !facts.runs_containers() {
            return Some("no container engine (docker or podman)".to_owned());
        }
    }
    let other = host.ports.get(&wanted.port?)?;
    Some(format!("its port {} is for `{other}`", wanted.port?))
}

/// A server on a host that keeps apart from another, or from which that other keeps apart.
fn too_near<'a>(host: &Place<'a>, entry: &'a ManifestServer) -> Option<&'a ServerName> {
    let mut own = entry.place.apart_from.iter().map(|server| &server.value);
    let there = own.find(|server| host.placed.contains(server) || host.others.contains(server));
    let keeps_apart =
        |other: &&ManifestServer| other.place.apart_from.iter().any(|server| server.value == entry.server.value);
    there.or_else(|| host.apart.iter().find(|other| keeps_apart(other)).map(|other| &other.server.value))
}
