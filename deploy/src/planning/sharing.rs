//! Bridged servers whose clients would share what each of them should have alone.

use super::entries::Entries;
use crate::config::{Problem, Server, Source};
use crate::release::Transport;
use crate::stateful::kept_for_its_client;

/// What is worth a look: servers of a known kind whose definitions say nothing of their sessions.
pub(super) fn warnings(entries: &Entries<'_>) -> impl Iterator<Item = String> {
    entries
        .by_name()
        .filter_map(|number| entries.defined(number))
        .filter_map(|(source, server)| sharing_warning(source, server))
}

/// What is worth a look in one definition.
pub fn sharing_warning(source: &Source, server: &Server) -> Option<String> {
    if server.run.transport != Transport::Stdio || server.run.sessions.is_some() {
        return None;
    }
    let package = server.package.as_ref()?;
    let name = [package.value.pypi.as_deref(), package.value.npm.as_deref()].into_iter().flatten().next();
    let name = name.or_else(|| package.value.oci.as_ref().map(|image| image.value.as_str()))?;
    let keeps = kept_for_its_client(name)?;
    let place = Problem::at(source, package, "").place();
    Some(format!(
        "{place}: `{name}` keeps {keeps} for its client, and all clients share it: `run.sessions: own` gives each session a \
         process of its own, and `shared` says that this is meant"
    ))
}
