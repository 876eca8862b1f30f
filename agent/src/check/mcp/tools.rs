//! Listing the tools of a server, page by page, within limits.

use std::collections::BTreeSet;

use fleetwright_deploy::limits::{TOOLS_MAX, size};
use serde_json::{Map, Value};

use super::conversation::Conversation;
use super::demands;
use super::exchange::ALL_BYTES_MAX;
use super::fault::{Fault, shortened};
use reqwest::header::HeaderMap;

/// Most pages in which a server may list its tools.
const PAGES_MAX: usize = 100;

/// The tools of a server.
#[derive(Default)]
pub(super) struct Listed {
    /// Those that clients can use, by name.
    pub(super) usable: Vec<(String, Value)>,
    /// The others, each with the reason.
    pub(super) left_out: Vec<String>,
}

impl Listed {
    pub(super) fn names(&self) -> Vec<String> {
        self.usable.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn schema(&self, tool: &str) -> Option<&Value> {
        let found = self.usable.binary_search_by(|(name, _)| name.as_str().cmp(tool)).ok()?;
        self.usable.get(found)?.1.get("inputSchema")
    }
}

/// Lists them, in the order of their names.
pub(super) async fn list(conversation: &mut Conversation<'_>) -> Result<Listed, Fault> {
    let (mut listed, mut cursor) = (Listed::default(), None);
    let (mut seen, mut bytes) = (BTreeSet::new(), 0);
    for _ in 0..PAGES_MAX {
        let params: Map<String, Value> =
            cursor.take().map(|cursor| ("cursor".to_owned(), Value::String(cursor))).into_iter().collect();
        let result = conversation.ask("tools/list", params, HeaderMap::new()).await?;
        let (tools, next) = demands::page(result, conversation.era)?;
        for tool in tools {
            bytes += tool.to_string().len();
            let name = tool.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            let why = demands::unusable(&tool, conversation.era);
            match why.or_else(|| (!seen.insert(name.clone())).then(|| "another has its name".to_owned())) {
                None => listed.usable.push((name, tool)),
                Some(why) => listed.left_out.push(format!("{}: {why}", shown(&name))),
            }
        }
        if listed.usable.len() + listed.left_out.len() > TOOLS_MAX {
            return Err(Fault::Over(format!("lists more than {TOOLS_MAX} tools")));
        } else if bytes > ALL_BYTES_MAX {
            return Err(Fault::Over(format!("lists tools of more than {}", size(ALL_BYTES_MAX))));
        }
        cursor = next;
        if cursor.is_none() {
            listed.usable.sort_by(|a, b| a.0.cmp(&b.0));
            return Ok(listed);
        }
    }
    Err(Fault::Over(format!("lists its tools in more than {PAGES_MAX} pages")))
}

/// The name of a tool that is left out, as far as it has one.
fn shown(name: &str) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 40;
    match name {
        "" => "one without a name".to_owned(),
        name => shortened(name).chars().take(SHOWN_CHARACTERS_MAX).collect(),
    }
}
