//! Why a server is in its group and on its hosts.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::entries::Entries;
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
    let entries = Entries::of(configuration);
    let Some(number) = entries.number(server) else {
        let problem = Problem::in_file(source, format!("there is no server `{server}` in this manifest"));
        let names = manifest.servers.iter().map(|entry| entry.server.value.as_str());
        return Err(match near_miss(server.as_str(), names) {
            Some(hint) => problem.hint(hint).into(),
            None => problem.into(),
        });
    };
    let entry = entries.entry(number);
    let groups = graph::order(source, manifest, &entries)?.groups;
    let mut group_of = vec![0; entries.len()];
    for (n, group) in groups.iter().enumerate() {
        group.iter().for_each(|number| group_of[*number] = n + 1);
    }
    let group = |server: &ServerName| entries.number(server).map_or(0, |number| group_of[number]);
    let mut chain = vec![(server.clone(), group(server))];
    while let Some((last, number)) = chain.last().cloned() {
        let depends_on = entries.number(&last).map(|last| &entries.entry(last).depends_on).into_iter().flatten();
        match depends_on.map(|on| &on.value.server).find(|on| group(on) + 1 == number) {
            Some(before) => chain.push((before.clone(), number - 1)),
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
        hosts: placement::verdicts(configuration, circumstances, &entries, &groups, number),
        beside: groups[group(server) - 1].iter().map(|number| entries.name(*number).clone()).collect(),
    })
}
