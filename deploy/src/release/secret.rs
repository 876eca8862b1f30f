//! Secrets of a release: by name in its texts, with where their values are found; the values themselves are nowhere in it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantNames};

use super::is_default;

/// The character that [`MARKER_START`] begins with; it stands for nothing else.
pub const MARKER_SIGN: char = '\u{f8ff}';
/// What opens a secret's marker in a rendered text; the secret's name and [`MARKER_END`] follow.
pub const MARKER_START: &str = "\u{f8ff}secret:";
/// What closes a secret's marker.
pub const MARKER_END: char = '\u{f8fe}';

/// A secret that a release uses: where its value is found, and a digest that changes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    /// Where the coordinator finds the value when it sends the release.
    pub source: SecretSource,
    /// A digest of the value: [`SecretKey::digest`], which a host can check. Releases of before may hold another, that
    /// only the coordinator can; nothing when the plan was made without the value.
    pub digest: Option<String>,
    /// What is done to the value before it is put in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub encode: Option<SecretEncoding>,
}

/// What is done to a secret before it is put into a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr, EnumString, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum SecretEncoding {
    /// Base64 with padding (RFC 4648, section 4).
    Base64,
    /// Percent-encoding of everything but what is unreserved in URLs (RFC 3986, section 2.3).
    Url,
    /// As within a JSON string (RFC 8259, section 7), without the quotes.
    Json,
}

impl SecretUse {
    /// The name that the environment gives to the secret which a release uses by this one.
    pub fn declared_name<'a>(&self, name: &'a str) -> &'a str {
        match self.encode {
            Some(encode) => {
                name.strip_suffix(<&'static str>::from(encode)).map_or(name, |name| name.trim_end_matches('.'))
            }
            None => name,
        }
    }
}

/// What the digest of one secret is keyed with. It is derived from the fleet's own key and goes to the hosts that get the
/// value anyway: nobody else can try values against a digest, and no host can try those of others.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKey([u8; 32]);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

impl SecretKey {
    /// The key for the secret that is found at `source`.
    pub fn derive(fleet: &[u8; 32], source: &SecretSource) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(fleet);
        hasher.update(b"digest of one secret\0").update(serde_json::to_string(source).unwrap_or_default().as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// A key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest of a value, hexadecimal. Without the value, no other is found that has it too, whatever the key.
    pub fn digest(&self, value: &str) -> String {
        blake3::keyed_hash(&self.0, value.as_bytes()).to_hex().to_string()
    }
}

impl SecretEncoding {
    /// The value as it is put into a text.
    pub fn apply(self, value: &str) -> String {
        match self {
            Self::Base64 => STANDARD.encode(value),
            Self::Url => utf8_percent_encode(value, RESERVED).to_string(),
            Self::Json => {
                let quoted = serde_json::to_string(value).unwrap_or_default();
                quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default().to_owned()
            }
        }
    }
}

/// What is unreserved in URLs (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a value is not taken for that of a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnboundSecret {
    /// No value came with the release.
    #[error("the release names the secret `{0}`, and no value came with it")]
    Missing(String),
    /// The release does not name it.
    #[error("a value came for the secret `{0}`, which the release does not name")]
    Unknown(String),
    /// The release has no digest that a host can check.
    #[error("the release holds no digest of the secret `{0}` that its host can check")]
    NoDigest(String),
    /// It is another value than the one that was signed.
    #[error("the value of the secret `{0}` is not the one whose digest the release holds")]
    OtherValue(String),
}

impl SecretUse {
    /// The value as it is put into texts, if it is the one that the release was made with.
    pub fn check(&self, name: &str, value: &str, key: &SecretKey) -> Result<String, UnboundSecret> {
        let digest = self.digest.as_deref().filter(|digest| digest.len() == DIGEST_DIGITS);
        let digest = digest.ok_or_else(|| UnboundSecret::NoDigest(name.to_owned()))?;
        if key.digest(value) != digest {
            return Err(UnboundSecret::OtherValue(name.to_owned()));
        }
        Ok(self.encode.map_or_else(|| value.to_owned(), |encode| encode.apply(value)))
    }

    /// Whether it holds a digest that its host can check.
    pub fn is_bound(&self) -> bool {
        self.digest.as_ref().is_some_and(|digest| digest.len() == DIGEST_DIGITS)
    }
}

/// How many digits a digest has that a host can check.
const DIGEST_DIGITS: usize = 64;

/// Whether a secret may bear this name: it is also the name of a file on the host.
pub fn is_secret_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    !name.is_empty() && name.len() <= 64 && name.bytes().all(plain)
}

/// Where a secret's value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// An environment variable of the coordinator, then the file of the secret's name in its `secrets` folder.
    Named {
        /// The variable's name.
        variable: String,
        /// A value for environments in which no real one is needed; never a secret itself.
        fallback: Option<String>,
    },
    /// A file of the coordinator's, relative to its `secrets` folder.
    File {
        /// Its path.
        path: String,
    },
    /// A file encrypted with age (age-encryption.org/v1), relative to the coordinator's `secrets` folder, which also holds
    /// the identities that open it, in `age.key`.
    Age {
        /// Its path.
        path: String,
    },
    /// What a program prints that the coordinator runs.
    Command {
        /// The program and its arguments; no shell is involved.
        command: Vec<String>,
    },
    /// Derived from the fleet's own key: the same for the same fleet, environment, server and name.
    Generated {
        /// What it is derived from besides the key.
        context: String,
        /// Its length in characters.
        length: u32,
    },
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { variable, .. } => write!(f, "env {variable}"),
            Self::File { path } => write!(f, "file {path}"),
            Self::Age { path } => write!(f, "age {path}"),
            // Arguments may be long; the program says enough.
            Self::Command { command } => {
                write!(f, "command {}", command.first().map_or("", |program| program.as_str()))
            }
            Self::Generated { .. } => f.write_str("generated"),
        }
    }
}

impl SecretSource {
    /// What a person does when there is no value.
    pub fn remedy(&self, name: &str) -> String {
        match self {
            Self::Named { variable, .. } => format!(
                "start the coordinator with the environment variable {variable} set, or write the value to the file `{name}` in its `secrets` folder"
            ),
            Self::File { path } => {
                format!("write it to {path} on the coordinator's machine, readable by the coordinator")
            }
            Self::Age { path } => format!(
                "put {path}, encrypted to the coordinator, and the identity that opens it (`age.key`) into the coordinator's `secrets` folder; its log says what failed"
            ),
            Self::Command { command } => format!(
                "run `{}` as the coordinator's user: it must print the value and exit with 0 within 30 s; the coordinator's log says what failed",
                command.join(" ")
            ),
            Self::Generated { .. } => "the fleet's own key must be there".to_owned(),
        }
    }
}

/// The marker for the secret of this name.
pub fn marker(name: &str) -> String {
    format!("{MARKER_START}{name}{MARKER_END}")
}

/// The secret that a text names but `values` lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the release names the secret `{0}`, and no value came with it")]
pub struct MissingSecret(pub String);

/// Whether a text has the marker of a secret in it.
pub fn has_marker(text: &str) -> bool {
    // Most texts do not even have the character, which is found sooner.
    text.find(MARKER_SIGN).is_some_and(|at| text[at..].contains(MARKER_START))
}

/// The names of the secrets that a text names.
pub(super) fn secrets_in(text: &str) -> Vec<String> {
    let after_each = text.split(MARKER_START).skip(1);
    after_each.filter_map(|after| Some(after.split_once(MARKER_END)?.0.to_owned())).collect()
}

/// The text with each marker replaced by its secret's value.
pub fn reveal(text: &str, values: &BTreeMap<String, String>) -> Result<String, MissingSecret> {
    let mut revealed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(MARKER_START) {
        let after = &rest[start + MARKER_START.len()..];
        let end = after.find(MARKER_END).ok_or_else(|| MissingSecret("(cut marker)".to_owned()))?;
        let name = &after[..end];
        revealed.push_str(&rest[..start]);
        revealed.push_str(values.get(name).ok_or_else(|| MissingSecret(name.to_owned()))?);
        rest = &after[end + MARKER_END.len_utf8()..];
    }
    revealed.push_str(rest);
    Ok(revealed)
}

/// The text as people see it: `(secret NAME)` in place of each marker.
pub fn masked(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(MARKER_START) {
        let after = &rest[start + MARKER_START.len()..];
        let Some(end) = after.find(MARKER_END) else { break };
        shown.push_str(&rest[..start]);
        shown.push_str(&format!("(secret {})", &after[..end]));
        rest = &after[end + MARKER_END.len_utf8()..];
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_replaced_by_its_value_and_a_missing_value_is_an_error() {
        let text = format!("url=postgres://u:{}@h/{}", marker("password"), marker("name"));
        let mut values = BTreeMap::from([("password".to_owned(), "s3".to_owned())]);
        assert_eq!(reveal(&text, &values), Err(MissingSecret("name".to_owned())));
        values.insert("name".to_owned(), "db".to_owned());
        assert_eq!(reveal(&text, &values).as_deref(), Ok("url=postgres://u:s3@h/db"));
        assert_eq!(masked(&text), "url=postgres://u:(secret password)@h/(secret name)");
    }

    #[test]
    fn a_value_is_taken_only_with_the_digest_that_the_release_holds() {
        let source = SecretSource::File { path: "key".to_owned() };
        let key = SecretKey::derive(&[7; 32], &source);
        assert_ne!(key, SecretKey::derive(&[8; 32], &source));
        let used = |digest: Option<String>| SecretUse { source: source.clone(), digest, encode: None };
        let bound = used(Some(key.digest("one")));
        assert_eq!(bound.check("key", "one", &key).as_deref(), Ok("one"));
        let other = Err(UnboundSecret::OtherValue("key".to_owned()));
        assert_eq!(bound.check("key", "two", &key), other);
        assert_eq!(bound.check("key", "one", &SecretKey::new([0; 32])), other);
        for digest in [None, Some("generated".to_owned()), Some("0".repeat(32))] {
            assert_eq!(used(digest).check("key", "one", &key), Err(UnboundSecret::NoDigest("key".to_owned())));
        }
        let encoded = SecretUse { encode: Some(SecretEncoding::Base64), ..bound };
        assert_eq!(encoded.check("key.base64", "one", &key).as_deref(), Ok("b25l"));
    }

    #[test]
    fn a_value_is_put_in_as_the_text_around_it_wants_it() {
        let value = "a b/\"c\"\\ä~";
        assert_eq!(SecretEncoding::Url.apply(value), "a%20b%2F%22c%22%5C%C3%A4~");
        assert_eq!(SecretEncoding::Json.apply(value), "a b/\\\"c\\\"\\\\ä~");
        assert_eq!(SecretEncoding::Base64.apply(value), "YSBiLyJjIlzDpH4=");
    }

    #[test]
    fn a_value_that_looks_like_a_marker_is_not_revealed_again() {
        let values = BTreeMap::from([("a".to_owned(), marker("b")), ("b".to_owned(), "no".to_owned())]);
        assert_eq!(reveal(&marker("a"), &values), Ok(marker("b")));
    }
}
