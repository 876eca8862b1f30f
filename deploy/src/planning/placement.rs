//! Which hosts run which servers, and why the others do not.

use std::collections::{BTreeMap, BTreeSet};

use serde_saphyr::Spanned;

use super::entries::Entries;
use super::{Circumstances, Configuration, Present};
use crate::config::{Environment, ManifestServer, Problem, Problems, Server};
use crate::host::{FactName, Facts, HostView, Requirement, Version, bytes};
use crate::ids::{HostName, InstanceId, ServerName};
use crate::plan::Skipped;
use crate::release::interpreter::{self, Chosen, Interpreter, choose, locked_for};
use crate::release::{Package, Release};

/// Most servers that are named in one warning.
const NAMED_MAX: usize = 10;

pub(super) struct Placed<'a> {
    hosts: Vec<(&'a HostName, &'a HostView)>,
    /// The hosts of each entry of the manifest by their numbers, in order; none for one that was left out.
    chosen: Vec<Vec<usize>>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Placed<'a> {
    /// How many hosts an entry of the manifest has got.
    pub(super) fn count(&self, entry: usize) -> usize {
        self.chosen[entry].len()
    }

    /// The hosts of an entry of the manifest, by name.
    pub(super) fn of(&self, entry: usize) -> impl Iterator<Item = (&'a HostName, &'a HostView)> {
        self.chosen[entry].iter().map(|host| self.hosts[*host])
    }
}

/// The hosts by number, and what is on each of them: what runs now, and what was placed before.
struct Board<'a> {
    entries: &'a Entries<'a>,
    environment: &'a Environment,
    hosts: Vec<Place<'a>>,
    numbers: BTreeMap<&'a HostName, usize>,
    /// The hosts in the order in which they are looked at: by how many servers were placed on them.
    emptiest: BTreeSet<(usize, usize)>,
    /// The hosts that run each server now.
    runs: BTreeMap<&'a ServerName, BTreeSet<usize>>,
    /// The hosts that each entry has got, in order.
    chosen: Vec<Vec<usize>>,
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
        let environment = &configuration.environment.1;
        let written = &environment.capacity;
        let part = |written: &Option<Spanned<String>>| {
            written.as_ref().and_then(|written| percent(&written.value)).unwrap_or(100)
        };
        let facts = view.facts.as_ref()?;
        let memory = u128::from(facts.memory_bytes) * u128::from(part(&written.memory)) / 100;
        let cpu = u64::from(facts.cpus).saturating_mul(part(&written.cpu));
        // What a host says and is not trusted to say bounds nothing.
        let trusted = |fact, amount| if environment.trusts(fact) { amount } else { u64::MAX };
        Some(Self {
            memory: trusted(FactName::Memory, u64::try_from(memory).unwrap_or(u64::MAX)),
            cpu: trusted(FactName::Cpus, cpu),
        })
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
    number: usize,
    entry: &'a ManifestServer,
    server: &'a Server,
    named: BTreeSet<&'a HostName>,
    port: Option<u16>,
    image: bool,
    limits: Amounts,
}

impl<'a> Wanted<'a> {
    fn new(number: usize, entry: &'a ManifestServer, server: &'a Server) -> Self {
        Self {
            number,
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
    fn new(configuration: &'a Configuration, circumstances: &'a Circumstances, entries: &'a Entries<'a>) -> Self {
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
        let emptiest = (0..hosts.len()).map(|n| (0, n)).collect();
        let environment = &configuration.environment.1;
        Self { entries, environment, hosts, numbers, emptiest, runs, chosen: vec![Vec::new(); entries.len()] }
    }

    fn keeps(&self, server: &ServerName, host: usize) -> bool {
        self.runs.get(server).is_some_and(|hosts| hosts.contains(&host))
    }

    /// The hosts that a server gets: those that run it, then those with the fewest servers, then the first by name. They
    /// are taken from then on.
    fn choose(&mut self, wanted: &Wanted<'a>) -> Result<&[usize], String> {
        let count = wanted.count();
        let mut chosen = match &wanted.entry.place.spread {
            Some(label) => self.spread(label, wanted, count),
            None => self.emptiest(wanted, count),
        };
        if chosen.len() < count {
            return Err(self.too_few(wanted, count));
        }
        chosen.sort_unstable();
        for n in &chosen {
            let host = &mut self.hosts[*n];
            self.emptiest.remove(&(host.count, *n));
            host.count += 1;
            self.emptiest.insert((host.count, *n));
            host.given.add(wanted.limits);
            host.ports.extend(wanted.port.map(|port| (port, &wanted.entry.server.value)));
            if !wanted.entry.place.apart_from.is_empty() {
                host.apart.push(wanted.entry);
            }
        }
        self.chosen[wanted.number] = chosen;
        Ok(&self.chosen[wanted.number])
    }

    fn may_have(&self, wanted: &Wanted<'a>, n: usize) -> bool {
        let reachable = !self.hosts[n].unreachable || self.keeps(&wanted.entry.server.value, n);
        reachable && self.refusal(n, wanted).is_none()
    }

    /// So many hosts that may have a server, or all that may if they are fewer: those that run it, then the emptiest. No
    /// more are looked at than are needed.
    fn emptiest(&self, wanted: &Wanted<'a>, count: usize) -> Vec<usize> {
        let running = self.runs.get(&wanted.entry.server.value);
        let runs = |n: &usize| running.is_some_and(|hosts| hosts.contains(n));
        let by_count = |hosts: &mut dyn Iterator<Item = usize>| {
            let mut hosts: Vec<(usize, usize)> = hosts.map(|n| (self.hosts[n].count, n)).collect();
            hosts.sort_unstable();
            hosts
        };
        let kept = by_count(&mut running.into_iter().flatten().copied());
        let kept = kept.into_iter().map(|(_, n)| n);
        let may = |n: &usize| self.may_have(wanted, *n);
        if wanted.named.is_empty() {
            let others = self.emptiest.iter().map(|(_, n)| *n).filter(|n| !runs(n));
            return kept.chain(others).filter(may).take(count).collect();
        }
        let named = wanted.named.iter().filter_map(|host| self.numbers.get(host).copied());
        let others = by_count(&mut named.filter(|n| !runs(n))).into_iter().map(|(_, n)| n);
        kept.chain(others).filter(may).take(count).collect()
    }

    /// So many hosts that may have a server, as evenly over the values of a label as can be. Those that run the server
    /// keep it.
    fn spread(&self, label: &str, wanted: &Wanted<'a>, count: usize) -> Vec<usize> {
        let mut values: BTreeMap<Option<&String>, Vec<(bool, usize, usize)>> = BTreeMap::new();
        for n in (0..self.hosts.len()).filter(|n| self.may_have(wanted, *n)) {
            let (host, is_new) = (&self.hosts[n], !self.keeps(&wanted.entry.server.value, n));
            values.entry(host.view.labels.get(label)).or_default().push((is_new, host.count, n));
        }
        let in_order = values.into_values().map(|mut hosts| {
            hosts.sort_unstable();
            hosts.into_iter()
        });
        let mut values: Vec<_> = in_order.collect();
        // Of each value the host that is next, and with it how often the value was used.
        let mut heads = BTreeSet::new();
        for (value, hosts) in values.iter_mut().enumerate() {
            heads.extend(hosts.next().map(|(is_new, count, n)| (is_new, 0_usize, count, n, value)));
        }
        let mut chosen = Vec::new();
        while chosen.len() < count
            && let Some((_, used, _, n, value)) = heads.pop_first()
        {
            chosen.push(n);
            heads.extend(values[value].next().map(|(is_new, count, n)| (is_new, used + 1, count, n, value)));
        }
        chosen
    }

    /// Why there are too few hosts for a server.
    fn too_few(&self, wanted: &Wanted<'a>, count: usize) -> String {
        let possible = (0..self.hosts.len()).filter(|n| self.may_have(wanted, *n)).count();
        let unknown = wanted.named.iter().filter(|host| !self.numbers.contains_key(*host));
        let mut refused: Vec<String> = unknown.map(|host| format!("{host}: no such host")).collect();
        for (n, host) in self.hosts.iter().enumerate() {
            match self.refusal(n, wanted) {
                Some(reason) => refused.push(format!("{}: {reason}", host.name)),
                None if host.unreachable && !self.keeps(&wanted.entry.server.value, n) => {
                    refused.push(format!("{}: not connected", host.name));
                }
                None => {}
            }
        }
        format!("{count} wanted, {possible} possible ({})", refused.join("; "))
    }

    /// Why a host will not do for a server.
    fn refusal(&self, n: usize, wanted: &Wanted<'a>) -> Option<String> {
        let host = &self.hosts[n];
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
        if let Some(near) = self.too_near(n, wanted.entry) {
            return Some(format!("`{near}` is there, and they stay apart"));
        }
        if let Some(facts) = &view.facts {
            let trusts = |fact| trusts(self.environment, wanted.server, fact);
            // What runs there already does not go because something has not answered.
            let keeps = self.keeps(&wanted.entry.server.value, n);
            let mut known = wanted.server.requires.iter().filter(|requirement| trusts(requirement.fact()));
            let enough = |needed: &Requirement| needed.is_met_by(facts) || keeps && needed.is_unknown_of(facts);
            if let Some(missing) = known.find(|needed| !enough(needed)) {
                let unknown = missing.is_unknown_of(facts);
                return Some(if unknown { unknown_of(host.name, facts, missing) } else { format!("no {missing}") });
            }
            if wanted.image && trusts(FactName::Runtimes) && !facts.runs_containers() {
                let engine = "container engine (docker or podman)";
                match facts.may_run_containers() {
                    false => return Some(format!("no {engine}")),
                    true if keeps => {}
                    true => return Some(unknown_of(host.name, facts, &format!("a {engine}"))),
                }
            }
        }
        if let Some((port, other)) = wanted.port.and_then(|port| Some((port, host.ports.get(&port)?))) {
            return Some(format!("its port {port} is for `{other}`"));
        }
        // A host that says it has more than others must not get it for that.
        let (capacity, given) = (host.capacity.filter(|_| !wanted.server.sensitive)?, host.given);
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

    /// A server on a host that keeps apart from another, or from which that other keeps apart.
    fn too_near(&self, n: usize, entry: &'a ManifestServer) -> Option<&'a ServerName> {
        let host = &self.hosts[n];
        let was_placed = |server: &ServerName| {
            self.entries.number(server).is_some_and(|number| self.chosen[number].binary_search(&n).is_ok())
        };
        let mut own = entry.place.apart_from.iter().map(|server| &server.value);
        let there = own.find(|server| was_placed(server) || host.others.contains(server));
        let keeps_apart =
            |other: &&ManifestServer| other.place.apart_from.iter().any(|server| server.value == entry.server.value);
        there.or_else(|| host.apart.iter().copied().find(keeps_apart).map(|other| &other.server.value))
    }
}

/// The entries of the manifest in the order in which they are placed, which does not depend on the order in which it
/// lists them: first what runs already, then what is only for some hosts, then the rest; each by group.
fn by_turn(circumstances: &Circumstances, entries: &Entries<'_>, order: &[Vec<usize>]) -> Vec<usize> {
    let running: BTreeSet<&ServerName> = circumstances.present.keys().map(|id| &id.server).collect();
    let mut turns: Vec<usize> = order.iter().flatten().copied().collect();
    turns.sort_by_key(|n| (!running.contains(entries.name(*n)), entries.entry(*n).place.hosts.is_empty()));
    turns
}

/// Places every server of the manifest. Hosts that run a server keep it; otherwise the host with the fewest servers is
/// taken, then the first by name.
pub(super) fn place<'a>(
    configuration: &'a Configuration,
    circumstances: &'a Circumstances,
    entries: &'a Entries<'a>,
    order: &[Vec<usize>],
) -> Result<Placed<'a>, Problems> {
    let source = &configuration.manifest.0;
    let hosts = circumstances.hosts.iter().collect();
    let mut placed = Placed { hosts, chosen: Vec::new(), skipped: Vec::new(), warnings: Vec::new() };
    let mut problems = Vec::new();
    if circumstances.hosts.is_empty() {
        let problem = Problem::in_file(source, "there is no host to place servers on");
        return Err(problem.hint("list `hosts:` in the manifest, or enrol hosts with the coordinator").into());
    }
    let mut board = Board::new(configuration, circumstances, entries);
    let unknown: Vec<&str> =
        circumstances.hosts.iter().filter(|(_, host)| host.facts.is_none()).map(|(name, _)| name.as_str()).collect();
    if !unknown.is_empty() {
        placed
            .warnings
            .push(format!("what these hosts have is not known, so their needs count as met: {}", unknown.join(", ")));
    }
    placed.warnings.extend(unlooked_at(configuration, entries));
    for number in by_turn(circumstances, entries, order) {
        let (_, server) = match entries.definition(number) {
            Ok(found) => found,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        let entry = entries.entry(number);
        match board.choose(&Wanted::new(number, entry, server)) {
            Ok(_) => {}
            Err(reason) if entry.optional => {
                placed.skipped.push(Skipped { server: entry.server.value.clone(), reason });
            }
            Err(reason) => {
                let problem =
                    Problem::at(source, &entry.server, format!("`{}` cannot be placed: {reason}", entry.server.value));
                problems.push(
                    problem.hint(
                        "change `place`, give a host what is missing, or mark the server `optional: true`; what has been installed beside a program is seen by `fleetwright hosts refresh HOST`",
                    ),
                );
            }
        }
    }
    Problems::none_or(problems)?;
    placed.chosen = board.chosen;
    Ok(placed)
}

/// That it is not known whether a host has something, and what a person can do.
fn unknown_of(host: &HostName, facts: &Facts, what: &dyn std::fmt::Display) -> String {
    if facts.are_unknown() {
        return format!(
            "the facts of {host} are not known yet, {what} among them: its agent is asking; plan again in a moment"
        );
    }
    format!(
        "it is not known whether it has {what}: that has not answered; ask again with `fleetwright hosts refresh {host}`"
    )
}

/// Whether what hosts say of this may decide where a server goes.
fn trusts(environment: &Environment, server: &Server, fact: FactName) -> bool {
    !server.sensitive && environment.trusts(fact)
}

/// The needs that are left to hosts themselves, since the facts that they go by are not trusted.
fn unlooked_at(configuration: &Configuration, entries: &Entries<'_>) -> Option<String> {
    let environment = &configuration.environment.1;
    let servers = (0..entries.len()).filter_map(|number| {
        let (_, server) = entries.defined(number)?;
        let image = server.package.as_ref().is_some_and(|package| package.value.oci.is_some());
        let trusts = |fact| trusts(environment, server, fact);
        let engine = image && !trusts(FactName::Runtimes);
        let left = engine || server.requires.iter().any(|requirement| !trusts(requirement.fact()));
        left.then(|| server.name.value.as_str())
    });
    let mut servers: Vec<&str> = servers.collect();
    servers.sort_unstable();
    let more = servers.len().saturating_sub(NAMED_MAX);
    servers.truncate(NAMED_MAX);
    let (named, name) = (servers.join(", "), &environment.name.value);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!named.is_empty()).then(|| {
        format!("what hosts say they have decides nothing here for {named}{more} (environment {name}, `sensitive`): each host looks itself at their needs")
    })
}

/// The interpreter that a package will be installed for on a host, as far as that can be known before it is asked.
fn installs_for(definition: &Server, view: &HostView) -> Option<String> {
    definition.package.as_ref()?.value.pypi.as_ref()?;
    let (version, why) = interpreter_of(&definition.requires, definition.lock.as_deref(), view)?;
    Some(in_words(&version, why))
}

/// The same for a release, where it is not what the host calls `python3`.
pub fn unusual_interpreter(release: &Release, view: &HostView) -> Option<String> {
    let Package::Pypi { lock, .. } = release.package.itself() else { return None };
    let (version, why) = interpreter_of(&release.requires, lock.as_deref(), view)?;
    (why != Chosen::Usual).then(|| in_words(&version, why))
}

fn interpreter_of(requires: &[Requirement], lock: Option<&str>, view: &HostView) -> Option<(Version, Chosen)> {
    let runtimes = &view.facts.as_ref()?.runtimes;
    // Hosts that do not say which is theirs are not guessed at.
    let usual = runtimes.get("python3")?.first()?;
    let interpreter = |version: &Version| Interpreter { version: version.clone(), is_usual: version == usual };
    let all: Vec<Interpreter> = runtimes.get("python")?.iter().map(interpreter).collect();
    let least = requires.iter().find_map(|requirement| requirement.least_version("python"));
    let locked_for = lock.and_then(locked_for);
    let (number, why) = choose(&all, interpreter::Wanted { least, locked_for: locked_for.as_ref(), of_package: None })?;
    Some((all[number].version.clone(), why))
}

fn in_words(version: &Version, why: Chosen) -> String {
    format!("installed for Python {version}, {why}, unless the package asks for another")
}

/// What is to be said of every host for one server, once the servers whose turn is before it have their places.
pub(super) fn verdicts(
    configuration: &Configuration,
    circumstances: &Circumstances,
    entries: &Entries<'_>,
    order: &[Vec<usize>],
    server: usize,
) -> BTreeMap<HostName, String> {
    let mut board = Board::new(configuration, circumstances, entries);
    for number in by_turn(circumstances, entries, order) {
        let Some((_, definition)) = entries.defined(number) else { continue };
        let wanted = Wanted::new(number, entries.entry(number), definition);
        if number != server {
            let _ = board.choose(&wanted);
            continue;
        }
        let before: Vec<(Option<String>, usize)> =
            board.hosts.iter().enumerate().map(|(n, host)| (board.refusal(n, &wanted), host.count)).collect();
        let chosen = board.choose(&wanted).map(<[usize]>::to_vec).unwrap_or_default();
        let said = before.into_iter().enumerate().map(|(n, (refused, count))| {
            let (host, keeps) = (&board.hosts[n], board.keeps(entries.name(server), n));
            let said = match refused {
                Some(reason) => format!("refused: {reason}"),
                None if host.unreachable && !keeps => "refused: not connected".to_owned(),
                None if chosen.contains(&n) && keeps => "chosen: it runs there already".to_owned(),
                None if chosen.contains(&n) => format!("chosen: it has {count} servers of this manifest"),
                None => format!("not needed: it has {count} servers of this manifest"),
            };
            let view = circumstances.hosts.get(host.name).filter(|_| chosen.contains(&n));
            let python = view.and_then(|view| installs_for(definition, view));
            (host.name.clone(), python.map_or_else(|| said.clone(), |python| format!("{said}; {python}")))
        });
        return said.collect();
    }
    BTreeMap::new()
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
