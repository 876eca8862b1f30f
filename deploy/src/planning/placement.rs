//! Which hosts run which servers, and why the others do not.

use std::collections::BTreeMap;

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

/// What is taken on a host by servers placed before.
#[derive(Default)]
struct Taken {
    ports: BTreeMap<HostName, BTreeMap<u16, ServerName>>,
    count: BTreeMap<HostName, usize>,
}

/// Places every server of the manifest, in the order in which it lists them. Hosts that run a server keep it;
/// otherwise the host with the fewest servers is taken, then the first by name.
pub(super) fn place(configuration: &Configuration, circumstances: &Circumstances) -> Result<Placed, Problems> {
    let (source, manifest) = &configuration.manifest;
    let mut placed = Placed { hosts: BTreeMap::new(), skipped: Vec::new(), warnings: Vec::new() };
    let mut problems = Vec::new();
    let mut taken = Taken::default();
    if circumstances.hosts.is_empty() {
        let problem = Problem::in_file(source, "there is no host to place servers on");
        return Err(problem.hint("list `hosts:` in the manifest, or enrol hosts with the coordinator").into());
    }
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
        match choose(entry, server, circumstances, &mut taken) {
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

fn choose(
    entry: &ManifestServer,
    server: &Server,
    circumstances: &Circumstances,
    taken: &mut Taken,
) -> Result<Vec<HostName>, String> {
    let name = &entry.server.value;
    let port = server.run.port.as_ref().map(|port| port.value);
    let mut refused = Vec::new();
    let mut candidates = Vec::new();
    for wanted in &entry.place.hosts {
        if !circumstances.hosts.contains_key(&wanted.value) {
            refused.push(format!("{}: no such host", wanted.value));
        }
    }
    for (host, view) in &circumstances.hosts {
        let keeps = circumstances.present.contains_key(&InstanceId::new(name.clone(), host.clone()));
        match refusal(host, view, entry, server, port, taken) {
            Some(reason) => refused.push(format!("{host}: {reason}")),
            None if circumstances.unreachable.contains(host) && !keeps => {
                refused.push(format!("{host}: not connected"))
            }
            None => candidates.push(host),
        }
    }
    let named = entry.place.hosts.len();
    let count = entry.place.count.as_ref().map_or_else(|| named.max(1), |count| count.value as usize);
    candidates.sort_by_key(|host| {
        let runs_it = circumstances.present.contains_key(&InstanceId::new(name.clone(), (*host).clone()));
        (!runs_it, taken.count.get(*host).copied().unwrap_or(0), *host)
    });
    if candidates.len() < count {
        return Err(format!("{count} wanted, {} possible ({})", candidates.len(), refused.join("; ")));
    }
    let mut chosen: Vec<HostName> = candidates.into_iter().take(count).cloned().collect();
    chosen.sort();
    for host in &chosen {
        *taken.count.entry(host.clone()).or_default() += 1;
        if let Some(port) = port {
            taken.ports.entry(host.clone()).or_default().insert(port, name.clone());
        }
    }
    Ok(chosen)
}

/// What is to be said of every host for one server, once the servers that the manifest lists before it have their places.
pub(super) fn verdicts(
    configuration: &Configuration,
    circumstances: &Circumstances,
    server: &ServerName,
) -> BTreeMap<HostName, String> {
    let mut taken = Taken::default();
    for entry in &configuration.manifest.1.servers {
        let Ok((_, definition)) = definition(configuration, &entry.server) else { continue };
        if entry.server.value != *server {
            let _ = choose(entry, definition, circumstances, &mut taken);
            continue;
        }
        let port = definition.run.port.as_ref().map(|port| port.value);
        let before: BTreeMap<HostName, (Option<String>, usize)> = circumstances
            .hosts
            .iter()
            .map(|(host, view)| {
                let refused = refusal(host, view, entry, definition, port, &taken);
                (host.clone(), (refused, taken.count.get(host).copied().unwrap_or(0)))
            })
            .collect();
        let chosen = choose(entry, definition, circumstances, &mut taken).unwrap_or_default();
        return before
            .into_iter()
            .map(|(host, (refused, count))| {
                let keeps = circumstances.present.contains_key(&InstanceId::new(server.clone(), host.clone()));
                let said = match refused {
                    Some(reason) => format!("refused: {reason}"),
                    None if circumstances.unreachable.contains(&host) && !keeps => "refused: not connected".to_owned(),
                    None if chosen.contains(&host) && keeps => "chosen: it runs there already".to_owned(),
                    None if chosen.contains(&host) => format!("chosen: it has {count} servers of this manifest"),
                    None => format!("not needed: it has {count} servers of this manifest"),
                };
                (host, said)
            })
            .collect();
    }
    BTreeMap::new()
}

/// Why a host will not do for a server.
fn refusal(
    host: &HostName,
    view: &HostView,
    entry: &ManifestServer,
    server: &Server,
    port: Option<u16>,
    taken: &Taken,
) -> Option<String> {
    if !entry.place.hosts.is_empty() && !entry.place.hosts.iter().any(|wanted| wanted.value == *host) {
        return Some("not among `hosts`".to_owned());
    }
    if let Some((key, value)) = entry.place.labels.iter().find(|(key, value)| view.labels.get(*key) != Some(*value)) {
        return Some(format!("no label {key}={value}"));
    }
    if let Some(facts) = &view.facts
        && let Some(missing) = server.requires.iter().find(|requirement| !requirement.is_met_by(facts))
    {
        return Some(format!("no {missing}"));
    }
    let image = server.package.as_ref().is_some_and(|package| package.value.oci.is_some());
    if image && view.facts.as_ref().is_some_and(|facts| !facts.runs_containers()) {
        return Some("no container engine (docker or podman)".to_owned());
    }
    let other = taken.ports.get(host)?.get(&port?)?;
    Some(format!("its port {} is for `{other}`", port?))
}
