//! Which servers come in which group: dependencies first, and every cycle named.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use super::entries::Entries;
use crate::config::{Condition, DependencyWritten, Manifest, ManifestServer, Problem, Problems, Source, near_miss};
use crate::ids::ServerName;

/// For so many unknown servers the one that may be meant is looked for: that takes a look at all servers.
const NEAR_MISSES_MAX: usize = 100;

/// The servers of a manifest in groups, each by the number of its entry.
pub(super) struct Order {
    /// The groups; inside a group by priority, the highest first, then by name.
    pub(super) groups: Vec<Vec<usize>>,
    /// Those of the same group that must have been started before a server begins.
    pub(super) starts_after: BTreeMap<ServerName, BTreeSet<ServerName>>,
}

/// Puts the servers of a manifest in groups.
pub(super) fn order(source: &Source, manifest: &Manifest, entries: &Entries<'_>) -> Result<Order, Problems> {
    let twice = |entry: &ManifestServer| {
        Problem::at(source, &entry.server, format!("server `{}` is listed twice", entry.server.value))
    };
    let mut problems: Vec<Problem> = entries.listed_twice().map(twice).collect();
    let externals: BTreeSet<&ServerName> = manifest.externals.iter().map(|external| &external.name.value).collect();
    let mut edges = Vec::with_capacity(entries.iter().map(|entry| entry.depends_on.len()).sum());
    for (n, entry) in entries.iter().enumerate() {
        for dependency in &entry.depends_on {
            let DependencyWritten { server, condition } = &dependency.value;
            match entries.number(server) {
                Some(on) => edges.push((n, on, usize::from(*condition != Condition::Started))),
                None if externals.contains(server) && *condition == Condition::Healthy => {}
                None if externals.contains(server) => {
                    let message = format!("`{server}` is an external: it answers, or it does not");
                    problems.push(Problem::at(source, dependency, message).hint("leave `condition` out"));
                }
                None => {
                    let message =
                        format!("`{}` depends on `{server}`, which is not in this manifest", entry.server.value);
                    let problem = Problem::at(source, dependency, message);
                    let servers = entries.iter().map(|entry| &entry.server.value);
                    let known = servers.chain(externals.iter().copied()).map(ServerName::as_str);
                    let meant = (problems.len() < NEAR_MISSES_MAX).then(|| near_miss(server.as_str(), known));
                    problems.push(match meant.flatten() {
                        Some(hint) => problem.hint(hint),
                        None => problem,
                    });
                }
            }
        }
    }
    Problems::none_or(problems)?;
    let mut levels = groups(entries.len(), &edges).map_err(|cycle| cycle_problem(source, manifest, &cycle))?;
    let mut level_of = vec![0; entries.len()];
    levels.iter().enumerate().for_each(|(level, nodes)| nodes.iter().for_each(|n| level_of[*n] = level));
    let mut starts_after: BTreeMap<ServerName, BTreeSet<ServerName>> = BTreeMap::new();
    for (n, on, _) in edges.iter().filter(|(n, on, _)| level_of[*n] == level_of[*on]) {
        starts_after.entry(entries.name(*n).clone()).or_default().insert(entries.name(*on).clone());
    }
    for level in &mut levels {
        level.sort_by_key(|n| (Reverse(entries.entry(*n).priority), entries.name(*n)));
    }
    Ok(Order { groups: levels, starts_after })
}

fn cycle_problem(source: &Source, manifest: &Manifest, cycle: &[usize]) -> Problem {
    let names: Vec<&str> =
        cycle.iter().chain(cycle.first()).map(|n| manifest.servers[*n].server.value.as_str()).collect();
    let first = &manifest.servers[cycle[0]];
    let message = format!("dependencies form a cycle: {}", names.join(" → "));
    let problem = match first.depends_on.iter().find(|dependency| dependency.value.server.as_str() == names[1]) {
        Some(edge) => Problem::at(source, edge, message),
        None => Problem::at(source, &first.server, message),
    };
    problem.hint("remove one of these dependencies")
}

/// The level of each of `count` nodes: every node comes after all that it depends on, as early as that allows. An edge
/// is a node, what that depends on, and how many levels must be between them: 0 where they may share one. Time and
/// memory are linear in nodes and edges.
///
/// The error is one cycle, each node depending on the next and the last on the first.
pub fn groups(count: usize, edges: &[(usize, usize, usize)]) -> Result<Vec<Vec<usize>>, Vec<usize>> {
    let mut graph = DiGraph::<(), usize>::with_capacity(count, edges.len());
    (0..count).for_each(|_| {
        graph.add_node(());
    });
    for (node, dependency, apart) in edges {
        graph.add_edge(NodeIndex::new(*dependency), NodeIndex::new(*node), *apart);
    }
    let sorted = petgraph::algo::toposort(&graph, None).map_err(|cycle| find_cycle(&graph, cycle.node_id()))?;
    let mut level = vec![0; count];
    let mut levels: Vec<Vec<usize>> = Vec::new();
    for node in sorted {
        let own = level[node.index()];
        if levels.len() <= own {
            levels.resize(own + 1, Vec::new());
        }
        levels[own].push(node.index());
        for edge in graph.edges(node) {
            let next = &mut level[edge.target().index()];
            *next = (*next).max(own + edge.weight());
        }
    }
    levels.iter_mut().for_each(|level| level.sort_unstable());
    Ok(levels)
}

/// A cycle inside the strongly connected component of a node that is on one.
fn find_cycle(graph: &DiGraph<(), usize>, on_cycle: NodeIndex) -> Vec<usize> {
    let components = petgraph::algo::tarjan_scc(graph);
    let component = components.into_iter().find(|nodes| nodes.contains(&on_cycle)).unwrap_or_default();
    let members: std::collections::HashSet<NodeIndex> = component.iter().copied().collect();
    let start = component.iter().min().copied().unwrap_or(on_cycle);
    let mut seen_at: HashMap<NodeIndex, usize> = HashMap::new();
    let mut path = Vec::new();
    let mut node = start;
    while !seen_at.contains_key(&node) {
        seen_at.insert(node, path.len());
        path.push(node.index());
        let dependencies = graph.neighbors_directed(node, petgraph::Direction::Incoming);
        match dependencies.filter(|next| members.contains(next)).min() {
            Some(next) => node = next,
            None => break,
        }
    }
    path.split_off(seen_at.get(&node).copied().unwrap_or(0))
}
