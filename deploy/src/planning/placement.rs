//! Which hosts run which servers, and why the others do not.

use std::collections::{BTreeMap, BTreeSet};

use serde_saphyr::Spanned;

use super::{Circumstances, Configuration, Present, definition};
use crate::config::{ManifestServer, Problem, Problems, Server};
use crate::host::{HostView, bytes};
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
    /// The limits of what is on it, and the most that they may come to where that is known.
    given: Amounts,
    capacity: Option<Amounts>,
    /// What was placed on it and keeps apart from something.
    apart: Vec<&'a ManifestServer>,
    /// What was placed on it.
    placed: BTreeSet<&'a ServerName>,
    /// What runs on it and is not of this manifest.
    others: BTreeSet<&'a ServerName>,
}

/// Memory in bytes, and processor time in hundredths of a processor.
#[derive(Clone, Copy, Default)]
struct Amounts {
    memory: u64,
    cpu: u64,
}

impl Amounts {
    /// The limits of a definition; nothing where it has none.
    fn of(server: &Server) -> Self {
        let written = &server.resources;
        let memory = written.memory.as_ref().and_then(|memory| bytes(&memory.value).ok());
        let cpu = written.cpu.as_ref().and_then(|cpu| percent(&cpu.value));
        Self { memory: memory.unwrap_or(0), cpu: cpu.unwrap_or(0) }
    }

    /// The limits of what runs.
    fn of_present(present: &Present) -> Self {
        let resources = &present.release.run.resources;
        Self { memory: resources.memory_bytes.unwrap_or(0), cpu: resources.cpu_percent.unwrap_or(0).into() }
    }

    /// The most that the limits on a host may come to.
    fn capacity(configuration: &Configuration, view: &HostView) -> Option<Self> {
        let written = &configuration.environment.1.capacity;
        let part = |written: &Option<Spanned<String>>| {
            written.as_ref().and_then(|written| percent(&written.value)).unwrap_or(100)
        };
        let facts = view.facts.as_ref()?;
        let memory = u128::from(facts.memory_bytes) * u128::from(part(&written.memory)) / 100;
        let cpu = u64::from(facts.cpus) * part(&written.cpu);
        Some(Self { memory: u64::try_from(memory).unwrap_or(u64::MAX), cpu })
    }

    fn add(&mut self, other: Self) {
        self.memory = self.memory.saturating_add(other.memory);
        self.cpu = self.cpu.saturating_add(other.cpu);
    }
}

/// A part of a whole, such as `50%` or `200%`.
pub(super) fn percent(text: &str) -> Option<u64> {
    text.strip_suffix('%').and_then(|number| number.trim().parse().ok())
}

/// A server that looks for its hosts.
struct Wanted<'a> {
    entry: &'a ManifestServer,
    server: &'a Server,
    named: BTreeSet<&'a HostName>,
    port: Option<u16>,
    image: bool,
    limits: Amounts,
}

impl<'a> Wanted<'a> {
    fn new(entry: &'a ManifestServer, server: &'a Server) -> Self {
        Self {
            entry,
            server,
            named: entry.place.hosts.iter().map(|host| &host.value).collect(),
            port: server.run.port.as_ref().map(|port| port.value),
            image: server.package.as_ref().is_some_and(|package| package.value.oci.is_some()),
            limits: Amounts::of(server),
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
            given: Amounts::default(),
            // A host that does not say how much it has counts as having enough.
            capacity: Amounts::capacity(configuration, view).filter(|of| of.memory > 0 && of.cpu > 0),
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
                hosts[*number].given.add(Amounts::of_present(present));
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
            host.given.add(wanted.limits);
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

/// The entries of the manifest in the order in which they are placed, which does not depend on the order in which it
/// lists them: first what runs already, then what is only for some hosts, then the rest; each by group.
fn by_turn<'a>(
    configuration: &'a Configuration,
    circumstances: &Circumstances,
    order: &[Vec<ServerName>],
) -> Vec<&'a ManifestServer> {
    let manifest = &configuration.manifest.1;
    let running: BTreeSet<&ServerName> = circumstances.present.keys().map(|id| &id.server).collect();
    let turns: BTreeMap<&ServerName, usize> =
        order.iter().flatten().enumerate().map(|(n, server)| (server, n)).collect();
    let mut entries: Vec<&ManifestServer> = manifest.servers.iter().collect();
    entries.sort_by_cached_key(|entry| {
        let server = &entry.server.value;
        (!running.contains(server), entry.place.hosts.is_empty(), turns.get(server).copied())
    });
    entries
}

/// Places every server of the manifest. Hosts that run a server keep it; otherwise the host with the fewest servers is
/// taken, then the first by name.
pub(super) fn place(
    configuration: &Configuration,
    circumstances: &Circumstances,
    order: &[Vec<ServerName>],
) -> Result<Placed, Problems> {
    let source = &configuration.manifest.0;
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
    for entry in by_turn(configuration, circumstances, order) {
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

/// What is to be said of every host for one server, once the servers whose turn is before it have their places.
pub(super) fn verdicts(
    configuration: &Configuration,
    circumstances: &Circumstances,
    order: &[Vec<ServerName>],
    server: &ServerName,
) -> BTreeMap<HostName, String> {
    let mut board = Board::new(configuration, circumstances);
    for entry in by_turn(configuration, circumstances, order) {
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
    if let Some((port, other)) = wanted.port.and_then(|port| Some((port, host.ports.get(&port)?))) {
        return Some(format!("its port {port} is for `{other}`"));
    }
    let (capacity, given) = (host.capacity?, host.given);
    let (memory, cpu) = (wanted.limits.memory, wanted.limits.cpu);
    if memory > 0 && given.memory.saturating_add(memory) > capacity.memory {
        let [given, all, memory] = [given.memory, capacity.memory, memory].map(mebibytes);
        return Some(format!("{given} of its {all} of memory are given away, and {memory} are wanted"));
    }
    if cpu > 0 && given.cpu.saturating_add(cpu) > capacity.cpu {
        let (given, all) = (given.cpu, capacity.cpu);
        return Some(format!("{given}% of its {all}% of processor time are given away, and {cpu}% are wanted"));
    }
    None
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// A server on a host that keeps apart from another, or from which that other keeps apart.
fn too_near<'a>(host: &Place<'a>, entry: &'a ManifestServer) -> Option<&'a ServerName> {
    let mut own = entry.place.apart_from.iter().map(|server| &server.value);
    let there = own.find(|server| host.placed.contains(server) || host.others.contains(server));
    let keeps_apart =
        |other: &&ManifestServer| other.place.apart_from.iter().any(|server| server.value == entry.server.value);
    there.or_else(|| host.apart.iter().find(|other| keeps_apart(other)).map(|other| &other.server.value))
}
