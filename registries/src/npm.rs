//! Registries of npm's: what they say of a package (`packument`), with the tarballs of its versions.

use std::borrow::Cow;
use std::fmt;

use reqwest::Url;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use super::upstream::{Error, Upstream, Wanted, is_named_safely, read, shown};

/// Largest answer, in bytes.
const PACKUMENT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most fields of one object: versions, and what comes with them.
const FIELDS_MAX: usize = 50_000;
/// What a version brings with it by itself.
const BROUGHT: [&str; 3] = ["dependencies", "optionalDependencies", "peerDependencies"];
/// Of how many versions it is told that they were left out, and how much of where.
const ELSEWHERE_MAX: usize = 8;
const WANTED_CHARS_MAX: usize = 200;
/// Longest name (npm's own limit), in bytes, with its scope encoded.
const NAME_BYTES_MAX: usize = 214 + 2;

/// The name of a package in the path of a request: `name`, `@scope/name` or `@scope%2fname`.
pub(crate) fn name(path: &str) -> Option<String> {
    let name = path.replace("%2f", "/").replace("%2F", "/").replace("%40", "@");
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
    };
    let fits = match name.strip_prefix('@') {
        Some(scoped) => scoped.split_once('/').is_some_and(|(scope, name)| plain(scope) && plain(name)),
        None => plain(&name),
    };
    (fits && name.len() <= NAME_BYTES_MAX).then_some(name)
}

/// What a registry says of a package, with the places of its tarballs as `place` gives them.
pub(crate) async fn packument(
    upstream: &Upstream,
    name: &str,
    accept: &str,
    mut place: impl FnMut(Url) -> Option<String>,
) -> Result<Packument, Error> {
    let mut missing = Error::Missing(name.to_owned());
    for base in upstream.bases(name) {
        let url = base.join(&name.replace('/', "%2f")).map_err(|_| Error::NoUrl(name.to_owned()))?;
        match upstream.get(&url, accept, Wanted::List).await {
            Err(not_here @ (Error::Missing(_) | Error::PassesOn { .. })) => missing = not_here,
            Err(other) => return Err(other),
            Ok(answer) => {
                let at = answer.url().clone();
                let why = || "is no registry of npm's".to_owned();
                let wrong = || Error::NoRegistry { url: shown(&at), why: why() };
                let bytes = read(answer, PACKUMENT_BYTES_MAX).await?;
                return placed(&bytes, &at, &mut place).ok_or_else(wrong);
            }
        }
    }
    Err(missing)
}

/// What is said of a package.
#[derive(Debug)]
pub(crate) struct Packument {
    /// JSON, as a client reads it.
    pub(crate) said: Vec<u8>,
    /// Versions that were left out since something that comes with them is of no registry: version, name, and where.
    pub(crate) elsewhere: Vec<(String, String, String)>,
}

/// The fields of an object in their order, each as it was written.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<Name<'de>>()? {
                    if fields.len() == FIELDS_MAX {
                        return Err(A::Error::custom("it has too many fields"));
                    }
                    fields.push((name.0, map.next_value()?));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Visit).map(Self)
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    /// The same with one field as `value` has it.
    fn with(&self, name: &str, value: impl FnOnce(&'a RawValue) -> Option<Box<RawValue>>) -> Option<Box<RawValue>> {
        let new = value(self.get(name)?)?;
        let fields = self.0.iter().map(|(known, old)| (known, if known == name { &*new } else { *old }));
        to_raw_value(&InOrder(fields)).ok()
    }
}

/// Fields as an object.
struct InOrder<I>(I);

impl<'a, I: Iterator<Item = (&'a Cow<'a, str>, &'a RawValue)> + Clone> Serialize for InOrder<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.clone())
    }
}

/// Puts the tarballs of all versions where `place` says; a version without one is left out, and so is one that brings
/// something which the client would fetch by itself, from wherever it is.
fn placed(bytes: &[u8], at: &Url, place: &mut impl FnMut(Url) -> Option<String>) -> Option<Packument> {
    let said: Fields<'_> = serde_json::from_slice(bytes).ok()?;
    let mut elsewhere = Vec::new();
    let mut kept: Vec<(Cow<'_, str>, Box<RawValue>)> = Vec::new();
    let Some(versions) = said.get("versions") else {
        return Some(Packument { said: bytes.to_vec(), elsewhere });
    };
    for (number, version) in &serde_json::from_str::<Fields<'_>>(versions.get()).ok()?.0 {
        let Ok(fields) = serde_json::from_str::<Fields<'_>>(version.get()) else { continue };
        if let Some((name, wanted)) = BROUGHT.iter().find_map(|list| of_no_registry(fields.get(list)?)) {
            if elsewhere.len() < ELSEWHERE_MAX {
                elsewhere.push((number.to_string(), name, wanted));
            }
            continue;
        }
        let with_tarball = fields.with("dist", |dist| {
            serde_json::from_str::<Fields<'_>>(dist.get()).ok()?.with("tarball", |tarball| {
                let url = at.join(&serde_json::from_str::<String>(tarball.get()).ok()?).ok()?;
                to_raw_value(&place(Some(url).filter(|url| is_named_safely(url, at))?)?).ok()
            })
        });
        kept.extend(with_tarball.map(|version| (number.clone(), version)));
    }
    let versions = to_raw_value(&InOrder(kept.iter().map(|(number, version)| (number, &**version)))).ok()?;
    let said = said.with("versions", |_| Some(versions))?;
    Some(Packument { said: String::from(Box::<str>::from(said)).into_bytes(), elsewhere })
}

/// The first of what comes with a version that is not of a registry: a URL, a repository, a folder.
fn of_no_registry(brought: &RawValue) -> Option<(String, String)> {
    let fields: Fields<'_> = serde_json::from_str(brought.get()).ok()?;
    let wanted =
        fields.0.iter().filter_map(|(name, wanted)| Some((name, serde_json::from_str::<String>(wanted.get()).ok()?)));
    let elsewhere = |wanted: &str| !wanted.starts_with("npm:") && wanted.contains(['/', ':']);
    let found = wanted.into_iter().find(|(_, wanted)| elsewhere(wanted));
    found.map(|(name, wanted)| (name.to_string(), wanted.chars().take(WANTED_CHARS_MAX).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_packages_and_nothing_else() {
        for (path, wanted) in [
            ("is-number", Some("is-number")),
            ("@a%2fb", Some("@a/b")),
            ("@a/b", Some("@a/b")),
            ("%40a%2Fb", Some("@a/b")),
            ("-/npm/v1/security/advisories/bulk", None),
            ("a/b", None),
            ("@a/b/c", None),
            ("..", None),
            ("@a%2f..", None),
            ("a?b", None),
        ] {
            assert_eq!(name(path).as_deref(), wanted, "{path}");
        }
    }

    #[test]
    fn every_tarball_is_fetched_by_the_door_or_not_at_all() {
        let at = Url::parse("https://h/a").expect("a URL");
        let said = serde_json::json!({ "name": "a", "dist-tags": { "latest": "1.0.0" }, "versions": {
            "1.0.0": { "bin": "x", "dist": { "tarball": "https://cdn/a-1.0.0.tgz", "integrity": "i" } },
            "1.1.0": { "dist": { "tarball": "file:///etc/passwd" } },
            "1.1.1": { "dist": { "tarball": "http://cdn/a-1.1.1.tgz" } },
            "1.2.0": { "dist": {} },
            "1.3.0": "nothing",
        }});
        let mut asked = Vec::new();
        let packument = placed(said.to_string().as_bytes(), &at, &mut |url| {
            asked.push(url.to_string());
            Some("http://127.0.0.1/1".to_owned())
        });
        assert_eq!(asked, ["https://cdn/a-1.0.0.tgz"]);
        let told: serde_json::Value = serde_json::from_slice(&packument.expect("a packument").said).expect("JSON");
        let dist = serde_json::json!({ "tarball": "http://127.0.0.1/1", "integrity": "i" });
        assert_eq!(
            told,
            serde_json::json!({
                "name": "a", "dist-tags": { "latest": "1.0.0" }, "versions": { "1.0.0": { "bin": "x", "dist": dist } }
            })
        );
    }

    #[test]
    fn what_would_be_fetched_past_the_door_leaves_its_version_out() {
        let at = Url::parse("https://h/a").expect("a URL");
        let version = |wanted: &str| {
            let dist = serde_json::json!({ "tarball": "https://h/a.tgz" });
            serde_json::json!({ "dependencies": { "x": wanted }, "dist": dist })
        };
        for (wanted, stays) in [
            ("^1.0.0 || >=2 <3", true),
            ("npm:@scope/other@1", true),
            ("latest", true),
            ("https://elsewhere/x.tgz", false),
            ("git+ssh://git@elsewhere/x", false),
            ("github:a/b", false),
            ("a/b", false),
            ("file:../x", false),
        ] {
            let said = serde_json::json!({ "versions": { "1.0.0": version(wanted) } }).to_string();
            let packument = placed(said.as_bytes(), &at, &mut |_| Some("here".to_owned())).expect("a packument");
            let told: serde_json::Value = serde_json::from_slice(&packument.said).expect("JSON");
            assert_eq!(told["versions"]["1.0.0"].is_object(), stays, "{wanted}");
            assert_eq!(packument.elsewhere.len(), usize::from(!stays), "{wanted}");
        }
    }

    #[test]
    fn an_answer_that_is_all_fields_is_none() {
        let at = Url::parse("https://h/a").expect("a URL");
        let many: Vec<String> = (0..=FIELDS_MAX).map(|n| format!("\"{n}\":0")).collect();
        let said = format!("{{{}}}", many.join(","));
        assert!(placed(said.as_bytes(), &at, &mut |_| None).is_none());
        assert!(placed(b"[0,0,0]", &at, &mut |_| None).is_none());
    }
}
