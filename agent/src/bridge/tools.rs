//! Which arguments of which tools their calls repeat in headers. The server is asked for its tools once, when the first is
//! called in the modern era, and again where a call contradicts what is known.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::headers::{Repeated, check_arguments, repeated};
use super::message::{Raw, fields, raw, text};
use super::server::{Era, Server, own_meta};

/// How long a page of tools is waited for.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Most pages of tools that are read.
const PAGES_MAX: usize = 64;
/// Most tools whose arguments are known.
const TOOLS_MAX: usize = 4096;

/// How long a list counts at least.
const LIST_AGE_MIN: Duration = Duration::from_secs(5);

/// The tools that have such arguments, and when they were listed.
#[derive(Default)]
pub(super) struct Tools(Mutex<Option<Known>>);

struct Known {
    tools: BTreeMap<String, Repeated>,
    since: Instant,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    tools: Vec<Tool>,
    #[serde(default)]
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tool {
    name: String,
    #[serde(default)]
    input_schema: Value,
}

impl Tools {
    /// Checks the headers of a call of a tool.
    pub(super) async fn check(
        &self,
        server: &Server,
        headers: &HeaderMap,
        params: Option<&RawValue>,
    ) -> Result<(), Raw> {
        let Some(name) = fields(params).and_then(|params| text(&params, "name")) else { return Ok(()) };
        let mut known = self.0.lock().await;
        let of = |known: &Option<Known>| {
            let repeated = known.as_ref().and_then(|known| known.tools.get(&name)).cloned().unwrap_or_default();
            check_arguments(headers, params, &repeated)
        };
        let fresh = known.as_ref().is_some_and(|known| known.since.elapsed() < LIST_AGE_MIN);
        if known.is_some() && (fresh || of(&known).is_ok()) {
            return of(&known);
        }
        // What could not be listed now is asked for again.
        *known = list(server).await.map(|tools| Known { tools, since: Instant::now() });
        of(&known)
    }
}

/// The tools that have such arguments; `None` where the server does not list them all.
async fn list(server: &Server) -> Option<BTreeMap<String, Repeated>> {
    let (mut all, mut cursor) = (BTreeMap::new(), None::<String>);
    for _ in 0..PAGES_MAX {
        let mut params = json!({});
        if let Some(cursor) = &cursor {
            params["cursor"] = json!(cursor);
        }
        if server.era == Era::Modern {
            params["_meta"] = own_meta();
        }
        let page = timeout(LIST_TIMEOUT, server.child.ask_plainly("tools/list", Some(raw(&params)))).await;
        let Ok(Ok(Ok(page))) = page else { return None };
        let page = serde_json::from_str::<Page>(page.get()).ok()?;
        let annotated = page.tools.into_iter().map(|tool| (tool.name, repeated(&tool.input_schema)));
        all.extend(annotated.filter(|(_, repeated)| !repeated.is_empty()).take(TOOLS_MAX));
        cursor = page.next_cursor;
        if cursor.is_none() || all.len() >= TOOLS_MAX {
            break;
        }
    }
    Some(all)
}
