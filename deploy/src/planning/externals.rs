//! Endpoints outside the fleet: what is wrong with how they are written, and which of them a plan needs.

use std::collections::BTreeSet;

use super::entries::Entries;
use crate::config::{ExternalWritten, Manifest, Problem, Source};
use crate::plan::{EXTERNAL_TIMEOUT_MAX, EXTERNALS_MAX, External, ExternalEndpoint};
use crate::time::Length;

/// How long one attempt may take, unless it is said.
const TIMEOUT: Length = Length::from_secs(5);

/// What is wrong with the externals of a manifest.
pub(super) fn problems(source: &Source, manifest: &Manifest, entries: &Entries<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    if manifest.externals.len() > EXTERNALS_MAX {
        let message = format!("there are {} externals; at most {EXTERNALS_MAX} are asked", manifest.externals.len());
        problems.push(Problem::at_field(source, "externals", message));
    }
    let mut names = BTreeSet::new();
    for external in &manifest.externals {
        let name = &external.name.value;
        if !names.insert(name) || entries.number(name).is_some() {
            let problem = Problem::at(source, &external.name, format!("`{name}` is there already"));
            problems.push(problem.hint("servers and externals are told apart by their names alone"));
        }
        if let Err(problem) = endpoint(source, external) {
            problems.push(problem);
        }
        if let Some(timeout) = external.timeout.as_ref()
            && (timeout.value == Length::ZERO || timeout.value > EXTERNAL_TIMEOUT_MAX)
        {
            problems.push(Problem::at(source, timeout, format!("an attempt takes 1 ms to {EXTERNAL_TIMEOUT_MAX}")));
        }
    }
    problems
}

fn endpoint(source: &Source, written: &ExternalWritten) -> Result<ExternalEndpoint, Problem> {
    if let Some(status) = written.status.as_ref().filter(|_| written.http.is_none()) {
        return Err(Problem::at(source, status, "`status` belongs to `http`"));
    }
    match (&written.tcp, &written.http) {
        (Some(address), None) => {
            let parts = address.value.rsplit_once(':');
            let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
            if !parts.is_some_and(|(host, port)| !host.is_empty() && !host.contains(['/', '@', ' ']) && is_port(port)) {
                let problem = Problem::at(source, address, format!("`{}` is not HOST:PORT", address.value));
                return Err(problem.hint("write for example db.internal:5432"));
            }
            Ok(ExternalEndpoint::Tcp { address: address.value.clone() })
        }
        (None, Some(url)) => {
            let rest = ["http://", "https://"].iter().find_map(|scheme| url.value.strip_prefix(scheme));
            let authority = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
            if authority.contains('@') {
                let problem =
                    Problem::at(source, url, "a URL with a user or a password would be in plans and journals");
                return Err(problem.without_excerpt().hint("ask an endpoint that needs none"));
            }
            if authority.is_empty() || url.value.contains(char::is_whitespace) {
                let problem = Problem::at(source, url, format!("`{}` is not a URL", url.value));
                return Err(problem.hint("write for example https://vault.internal/v1/sys/health"));
            }
            let statuses = written.status.as_ref().map_or_else(|| vec![200], |status| status.value.clone());
            if statuses.is_empty() || statuses.iter().any(|status| !(100..600).contains(status)) {
                return Err(match &written.status {
                    Some(status) => Problem::at(source, status, "statuses are numbers from 100 to 599"),
                    None => Problem::at(source, url, "statuses are numbers from 100 to 599"),
                });
            }
            Ok(ExternalEndpoint::Http { url: url.value.clone(), statuses })
        }
        (None, None) | (Some(_), Some(_)) => {
            let message = format!("external `{}` needs one of `tcp` and `http`", written.name.value);
            Err(Problem::at(source, &written.name, message).hint("for example `{ name: db, tcp: db.internal:5432 }`"))
        }
    }
}

/// The externals that must answer where these servers change: those that they depend on, and those that the manifest as
/// a whole needs, since no server names them.
pub(super) fn needed(
    source: &Source,
    manifest: &Manifest,
    entries: &Entries<'_>,
    changes: impl Fn(usize) -> bool,
) -> Vec<External> {
    if manifest.externals.is_empty() || !(0..entries.len()).any(&changes) {
        return Vec::new();
    }
    let (mut named, mut by_changing) = (BTreeSet::new(), BTreeSet::new());
    for (number, entry) in entries.iter().enumerate() {
        let on = entry.depends_on.iter().map(|on| &on.value.server).filter(|on| entries.number(on).is_none());
        for external in on {
            named.insert(external);
            if changes(number) {
                by_changing.insert(external);
            }
        }
    }
    let needed = manifest.externals.iter().filter(|external| {
        let name = &external.name.value;
        by_changing.contains(name) || !named.contains(name)
    });
    let mut externals: Vec<External> = needed
        .filter_map(|written| {
            let timeout = written.timeout.as_ref().map_or(TIMEOUT, |timeout| timeout.value);
            let endpoint = endpoint(source, written).ok()?;
            Some(External { name: written.name.value.clone(), endpoint, timeout })
        })
        .collect();
    externals.sort_by(|a, b| a.name.cmp(&b.name));
    externals
}
