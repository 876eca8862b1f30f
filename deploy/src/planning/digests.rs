//! Digests of secrets in releases that versions before have planned: only the coordinator could check those.

use super::{Circumstances, GENERATED_DIGEST, Present, secret_key};
use crate::release::{Release, SecretSource, SecretUse};

/// A release as it runs already, if only its digests are of another kind than those that were made now. Nothing is
/// deployed anew for that.
pub(super) fn as_it_runs(made: Box<Release>, present: Option<&Present>, circumstances: &Circumstances) -> Box<Release> {
    let Some(present) = present.filter(|present| !present.in_trouble) else { return made };
    let older = present.release.secrets.values().any(|secret| !secret.is_bound());
    if !older || made.secrets.len() != present.release.secrets.len() {
        return made;
    }
    let mut same = made.clone();
    for (name, secret) in &mut same.secrets {
        let Some(runs) = present.release.secrets.get(name).filter(|runs| !runs.is_bound()) else { continue };
        if is_of_the_same_value(runs, circumstances) {
            secret.digest.clone_from(&runs.digest);
        }
    }
    if same.id() == present.release_id { same } else { made }
}

/// An older release, with digests that hosts can check in place of those that they cannot, where the value is still the
/// same.
pub(super) fn anew(mut release: Release, circumstances: &Circumstances) -> Release {
    let known = circumstances.secret_digests.as_ref();
    for secret in release.secrets.values_mut().filter(|secret| !secret.is_bound()) {
        let digest = known.and_then(|known| known.get(&secret_key(&secret.source)));
        if let Some(digest) = digest.filter(|_| is_of_the_same_value(secret, circumstances)) {
            secret.digest = Some(digest.clone());
        }
    }
    release
}

fn is_of_the_same_value(secret: &SecretUse, circumstances: &Circumstances) -> bool {
    if matches!(secret.source, SecretSource::Generated { .. }) {
        return secret.digest.as_deref() == Some(GENERATED_DIGEST);
    }
    let older = circumstances.older_digests.get(&secret_key(&secret.source));
    older.is_some() && older == secret.digest.as_ref()
}
