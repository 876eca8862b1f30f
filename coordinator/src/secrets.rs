//! Values of secrets: looked up when a release is sent, and never kept. A digest keyed with the fleet's own key
//! stands for a value wherever only a change of it matters.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::{Release, SecretSource};

/// Characters that generated values are drawn from: none needs quoting in a shell, a URL or YAML.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

pub(crate) struct Secrets {
    folder: PathBuf,
    key: [u8; 32],
}

impl Secrets {
    pub(crate) fn new(folder: PathBuf, key: [u8; 32]) -> Self {
        Self { folder, key }
    }

    /// The values that a release names.
    pub(crate) fn reveal(&self, release: &Release) -> Result<BTreeMap<String, String>, Failure> {
        let named = release.secrets.iter().map(|(name, secret)| match self.value(name, &secret.source) {
            Some(value) => Ok((name.clone(), value)),
            None => Err(missing(name, &secret.source)),
        });
        named.collect()
    }

    /// A digest that changes with the value; nothing when there is no value.
    pub(crate) fn digest(&self, name: &str, source: &SecretSource) -> Option<String> {
        let value = self.value(name, source)?;
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"digest\0").update(name.as_bytes()).update(b"\0").update(value.as_bytes());
        Some(hasher.finalize().to_hex()[..32].to_owned())
    }

    fn value(&self, name: &str, source: &SecretSource) -> Option<String> {
        match source {
            SecretSource::Named { variable, fallback } => {
                std::env::var(variable).ok().or_else(|| self.file(name)).or_else(|| fallback.clone())
            }
            SecretSource::Generated { context, length } => Some(self.generated(context, *length)),
        }
    }

    /// Names come from configuration, so they are never taken for paths.
    fn file(&self, name: &str) -> Option<String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if name.is_empty() || !name.bytes().all(plain) {
            return None;
        }
        let text = std::fs::read_to_string(self.folder.join(name)).ok()?;
        Some(text.strip_suffix('\n').map_or_else(|| text.clone(), str::to_owned))
    }

    fn generated(&self, context: &str, length: u32) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"generated\0").update(context.as_bytes());
        let mut bytes = vec![0; length as usize];
        hasher.finalize_xof().fill(&mut bytes);
        bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 64)])).collect()
    }
}

fn missing(name: &str, source: &SecretSource) -> Failure {
    let failure = Failure::new(FailureKind::ConfigurationError, "secrets", format!("secret `{name}` has no value"));
    match source {
        SecretSource::Named { variable, .. } => failure.hint(format!(
            "start the coordinator with {variable} set, or write the value to the file `{name}` in its `secrets` folder"
        )),
        SecretSource::Generated { .. } => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(folder: &std::path::Path) -> Secrets {
        Secrets::new(folder.to_owned(), [7; 32])
    }

    #[test]
    fn a_generated_value_stays_the_same_and_differs_by_what_it_is_for() {
        let folder = tempfile::tempdir().expect("folder");
        let generated = |context: &str| {
            let source = SecretSource::Generated { context: context.to_owned(), length: 32 };
            secrets(folder.path()).value("x", &source).expect("value")
        };
        assert_eq!(generated("development/db/password"), generated("development/db/password"));
        assert_ne!(generated("development/db/password"), generated("production/db/password"));
        assert_eq!(generated("a").len(), 32);
    }

    #[test]
    fn a_value_is_read_from_its_file_and_a_name_is_never_a_path() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("api_key"), "s3cret\n").expect("write");
        std::fs::write(folder.path().parent().expect("parent").join("outside"), "no").ok();
        let source = SecretSource::Named { variable: "FLEETWRIGHT_TEST_UNSET".to_owned(), fallback: None };
        assert_eq!(secrets(folder.path()).value("api_key", &source).as_deref(), Some("s3cret"));
        assert_eq!(secrets(folder.path()).value("../outside", &source), None);
        let digest = secrets(folder.path()).digest("api_key", &source).expect("digest");
        assert!(!digest.contains("s3cret"));
        std::fs::write(folder.path().join("api_key"), "rotated\n").expect("write");
        assert_ne!(secrets(folder.path()).digest("api_key", &source), Some(digest));
    }
}
