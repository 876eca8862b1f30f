//! The secrets that come with a release: taken only where the release that the operator has signed holds their digests.

use std::collections::BTreeMap;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::Release;
use fleetwright_protocol::command::SentSecret;

/// The values as they are put into texts. Nothing was written yet.
pub(super) fn open(
    release: &[u8],
    secrets: &BTreeMap<String, SentSecret>,
) -> Result<BTreeMap<String, String>, Failure> {
    let release: Release = serde_json::from_slice(release).map_err(|error| {
        Failure::new(FailureKind::ConfigurationError, "staging", format!("the release cannot be read: {error}"))
    })?;
    let sent = secrets.iter().map(|(name, secret)| (name.clone(), (secret.value.as_str(), secret.key)));
    release.take_secrets(&sent.collect()).map_err(|why| {
        Failure::new(FailureKind::PermissionError, "command", why.to_string())
            .hint("plan and deploy again; if nobody has changed the secret since the plan was made, somebody else has")
    })
}

/// Values that come with nothing to check them by are not taken.
pub(super) fn refuse_secrets(release: &[u8]) -> Result<(), Failure> {
    // What cannot be read has no secrets either, and is told where it is staged.
    let secrets = serde_json::from_slice::<Release>(release).map_or(0, |release| release.secrets.len());
    if secrets == 0 {
        return Ok(());
    }
    let message = "the values of its secrets come with nothing that this host could check them by";
    Err(Failure::new(FailureKind::PermissionError, "command", message).hint("install the coordinator's newer version"))
}
