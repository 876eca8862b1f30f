//! Why a server is in its group and on its hosts.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Circumstances, Configuration, graph, placement};
use crate::config::{Problem, Problems, near_miss};
use crate::ids::{HostName, ServerName};

/// Why a server is where it is in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The server.
    pub server: ServerName,
    /// Its group, from 1, and how many there are.
    pub group: (usize, usize),
    /// The dependencies that put it there, each of a group before: the server itself first.
    pub chain: Vec<(ServerName, usize)>,
    /// All it depends on directly, with their groups (0 for an external) and what they must be.
    pub depends_on: BTreeMap<ServerName, (usize, &'static str)>,
    /// What depends on it directly.
    pub needed_by: BTreeSet<ServerName>,
    /// Its priority.
    pub priority: i32,
    /// The servers of its group, in the order in which they start.
    pub beside: Vec<ServerName>,
    /// Every host with what was said of it.
    pub hosts: BTreeMap<HostName, String>,
}

/// Explains one server of a configuration.
pub fn explain(
    configuration: &Configuration,
    circumstances: &Circumstances,
    server: &ServerName,
) -> Result<Explanation, Problems> {
    let (source, manifest) = &configuration.manifest;
    let Some(entry) = manifest.servers.iter().find(|entry| entry.server.value == *server) else {
        let problem = Problem::in_file(source, format!("there is no server `{server}` in this manifest"));
        let names = manifest.servers.iter().map(|entry| entry.server.value.as_str());
        return Err(match near_miss(server.as_str(), names) {
            Some(hint) => problem.hint(hint).into(),
            None => problem.into(),
        });
    };
    let groups = graph::order(source, manifest)?.groups;
    let mut group_of: BTreeMap<&ServerName, usize> = BTreeMap::new();
    for (n, group) in groups.iter().enumerate() {
        group_of.extend(group.iter().map(|server| (server, n + 1)));
    }
    let group = |server: &ServerName| group_of.get(server).copied().unwrap_or(0);
    let dependencies: BTreeMap<&ServerName, Vec<&ServerName>> = manifest
        .servers
        .iter()
        .map(|entry| (&entry.server.value, entry.depends_on.iter().map(|on| &on.value.server).collect()))
        .collect();
    let mut chain = vec![(server.clone(), group(server))];
    while let Some((last, number)) = chain.last().cloned() {
        let before = dependencies.get(&last).into_iter().flatten().find(|on| group(on) + 1 == number);
        match before {
            Some(before) => chain.push(((*before).clone(), number - 1)),
            None => break,
        }
    }
    let needing = manifest.servers.iter().filter(|other| other.depends_on.iter().any(|on| on.value.server == *server));
    Ok(Explanation {
        server: server.clone(),
        group: (group(server), groups.len()),
        chain,
        depends_on: entry
            .depends_on
            .iter()
            .map(|on| (on.value.server.clone(), (group(&on.value.server), on.value.condition.into())))
            .collect(),
        needed_by: needing.map(|other| other.server.value.clone()).collect(),
        priority: entry.priority,
        hosts: placement::verdicts(configuration, circumstances, &groups, server),
        beside: groups.into_iter().find(|group| group.contains(server)).unwrap_or_default(),
    })
}
