//! Which servers come in which group: dependencies first, and every cycle named.

use std::collections::{BTreeMap, HashMap};

use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use crate::config::{Manifest, Problem, Problems, Source, near_miss};
use crate::ids::ServerName;

/// The servers of a manifest, group by group; inside a group by priority, the highest first, then by name.
pub(super) fn order(source: &Source, manifest: &Manifest) -> Result<Vec<Vec<ServerName>>, Problems> {
    let mut problems = Vec::new();
    let mut index: BTreeMap<&ServerName, usize> = BTreeMap::new();
    for (n, entry) in manifest.servers.iter().enumerate() {
        if index.insert(&entry.server.value, n).is_some() {
            problems.push(Problem::at(
                source,
                &entry.server,
                format!("server `{}` is listed twice", entry.server.value),
            ));
        }
    }
    let mut edges = Vec::new();
    for (n, entry) in manifest.servers.iter().enumerate() {
        for dependency in &entry.depends_on {
            match index.get(&dependency.value) {
                Some(on) => edges.push((n, *on)),
                None => {
                    let message = format!(
                        "`{}` depends on `{}`, which is not in this manifest",
                        entry.server.value, dependency.value
                    );
                    let problem = Problem::at(source, dependency, message);
                    let near = near_miss(dependency.value.as_str(), index.keys().map(|name| name.as_str()));
                    problems.push(match near {
                        Some(hint) => problem.hint(hint),
                        None => problem,
                    });
                }
            }
        }
    }
    Problems::none_or(problems)?;
    let levels = groups(manifest.servers.len(), &edges).map_err(|cycle| cycle_problem(source, manifest, &cycle))?;
    let named = levels.into_iter().map(|mut level| {
        level.sort_by_key(|n| (-i64::from(manifest.servers[*n].priority), &manifest.servers[*n].server.value));
        level.into_iter().map(|n| manifest.servers[n].server.value.clone()).collect()
    });
    Ok(named.collect())
}

fn cycle_problem(source: &Source, manifest: &Manifest, cycle: &[usize]) -> Problem {
    let names: Vec<&str> =
        cycle.iter().chain(cycle.first()).map(|n| manifest.servers[*n].server.value.as_str()).collect();
    let first = &manifest.servers[cycle[0]];
    let edge = first.depends_on.iter().find(|dependency| dependency.value.as_str() == names[1]);
    let problem =
        Problem::at(source, edge.unwrap_or(&first.server), format!("dependencies form a cycle: {}", names.join(" → ")));
    problem.hint("remove one of these dependencies")
}

/// The level of each of `count` nodes: every node comes after all that it depends on (`(node, dependency)`),
/// as early as that allows. Time and memory are linear in nodes and edges.
///
/// The error is one cycle, each node depending on the next and the last on the first.
pub fn groups(count: usize, edges: &[(usize, usize)]) -> Result<Vec<Vec<usize>>, Vec<usize>> {
    let mut graph = DiGraph::<(), ()>::with_capacity(count, edges.len());
    (0..count).for_each(|_| {
        graph.add_node(());
    });
    for (node, dependency) in edges {
        graph.add_edge(NodeIndex::new(*dependency), NodeIndex::new(*node), ());
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
            *next = (*next).max(own + 1);
        }
    }
    levels.iter_mut().for_each(|level| level.sort_unstable());
    Ok(levels)
}

/// A cycle inside the strongly connected component of a node that is on one.
fn find_cycle(graph: &DiGraph<(), ()>, on_cycle: NodeIndex) -> Vec<usize> {
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
