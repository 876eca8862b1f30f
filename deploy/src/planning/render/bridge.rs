//! Rendering of what is told to the bridge of a server: the names and origins by which clients come, each checked as it
//! will be compared.

use serde_saphyr::Spanned;

use super::Templates;
use crate::config::{Problem, Problems, RunWritten, Source};
use crate::release::{BRIDGE_NAMES_MAX, Bridge, bridge_host_fault, bridge_origin_fault, has_marker};

/// The settings of the bridge of a server.
pub(super) fn rendered(source: &Source, written: &RunWritten, templates: &Templates<'_>) -> Result<Bridge, Problems> {
    let name = |text: &str| {
        let message = bridge_host_fault(text)?;
        Some((message, "write the name that clients use, in lower case: tools.example.com, or tools.example.com:8443"))
    };
    let origin = |text: &str| {
        let message = bridge_origin_fault(text)?;
        Some((message, "write what browsers send as Origin: https://chat.example.com, without a path"))
    };
    Ok(Bridge {
        sessions: written.sessions.as_ref().map(|sessions| sessions.value).unwrap_or_default(),
        sessions_max: written.sessions_max.as_ref().map(|most| most.value),
        hosts: names("hosts", source, &written.hosts, templates, name)?,
        origins: names("origins", source, &written.origins, templates, origin)?,
    })
}

/// Rendered names, each once. `fault` says what is wrong with one, and what would be right.
fn names(
    field: &str,
    source: &Source,
    written: &[Spanned<String>],
    templates: &Templates<'_>,
    fault: impl Fn(&str) -> Option<(&'static str, &'static str)>,
) -> Result<Vec<String>, Problems> {
    if let Some(beyond) = written.get(BRIDGE_NAMES_MAX) {
        let problem = Problem::at(source, beyond, format!("`run.{field}` has more than {BRIDGE_NAMES_MAX} entries"));
        return Err(problem
            .hint("clients that come by so many names go through one proxy that passes one of them")
            .into());
    }
    let (mut names, mut problems) = (Vec::with_capacity(written.len()), Vec::new());
    for entry in written {
        let text = templates.render(source, entry)?;
        if has_marker(&text) {
            let problem = Problem::at(source, entry, "a secret is no name: it would be seen in the list of processes");
            problems.push(problem.hint("where clients come from is no secret; what they present is a token"));
        } else if let Some((why, hint)) = fault(&text) {
            problems.push(Problem::at(source, entry, format!("`run.{field}`: `{text}` {why}")).hint(hint));
        } else if !names.contains(&text) {
            names.push(text);
        }
    }
    Problems::none_or(problems)?;
    Ok(names)
}
