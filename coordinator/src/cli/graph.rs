//! Drawing a plan's groups and dependencies.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::ValueEnum;
use fleetwright_deploy::config::{Condition, Manifest};
use fleetwright_deploy::plan::Plan;

/// What a graph is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Mermaid, as Markdown renderers draw it.
    Mermaid,
    /// Graphviz.
    Dot,
}

/// The servers of a plan, group by group, with an arrow from each to what it depends on.
pub(super) fn draw(format: Format, manifest: &Manifest, plan: &Plan) -> String {
    let mut text = match format {
        Format::Mermaid => "flowchart RL\n".to_owned(),
        Format::Dot => "digraph plan {\n  rankdir=RL;\n  node [shape=box];\n".to_owned(),
    };
    let mut drawn = BTreeSet::new();
    for (n, group) in plan.groups.iter().enumerate() {
        let _ = match format {
            Format::Mermaid => writeln!(text, "  subgraph g{}[\"group {}\"]", n + 1, n + 1),
            Format::Dot => writeln!(text, "  subgraph cluster_{} {{ label=\"group {}\";", n + 1, n + 1),
        };
        for server in &group.servers {
            let hosts = group.steps.iter().filter(|step| step.instance.server == *server).count();
            // Names hold nothing that either format would misread; ids of Mermaid hold no hyphen.
            let _ = match format {
                Format::Mermaid => writeln!(text, "    {}[\"{server} × {hosts}\"]", id(server.as_str())),
                Format::Dot => writeln!(text, "    \"{server}\" [label=\"{server} × {hosts}\"];"),
            };
            drawn.insert(server);
        }
        text.push_str(match format {
            Format::Mermaid => "  end\n",
            Format::Dot => "  }\n",
        });
    }
    for external in &plan.externals {
        let name = &external.name;
        let _ = match format {
            Format::Mermaid => writeln!(text, "  {}([\"{name}\"])", id(name.as_str())),
            Format::Dot => writeln!(text, "  \"{name}\" [shape=ellipse];"),
        };
        drawn.insert(name);
    }
    for entry in manifest.servers.iter().filter(|entry| drawn.contains(&entry.server.value)) {
        for on in entry.depends_on.iter().filter(|on| drawn.contains(&on.value.server)) {
            let (from, to) = (entry.server.value.as_str(), on.value.server.as_str());
            let condition: &'static str = on.value.condition.into();
            let is_usual = on.value.condition == Condition::default();
            let _ = match format {
                Format::Mermaid if is_usual => writeln!(text, "  {} --> {}", id(from), id(to)),
                Format::Mermaid => writeln!(text, "  {} -->|{condition}| {}", id(from), id(to)),
                Format::Dot if is_usual => writeln!(text, "  \"{from}\" -> \"{to}\";"),
                Format::Dot => writeln!(text, "  \"{from}\" -> \"{to}\" [label=\"{condition}\"];"),
            };
        }
    }
    if format == Format::Dot {
        text.push_str("}\n");
    }
    text
}

fn id(name: &str) -> String {
    format!("s_{}", name.replace('-', "_"))
}
