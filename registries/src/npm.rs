//! Registries of npm's: what they say of a package (`packument`), with the tarballs of its versions.

use reqwest::Url;
use serde_json::Value;

use super::upstream::{Error, Upstream, is_web, read, shown};

/// Largest answer, in bytes.
const PACKUMENT_BYTES_MAX: usize = 64 * 1024 * 1024;
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
) -> Result<Vec<u8>, Error> {
    let mut missing = Error::Missing(name.to_owned());
    for base in upstream.bases(name) {
        let url = base.join(&name.replace('/', "%2f")).map_err(|_| Error::NoUrl(name.to_owned()))?;
        match upstream.get(&url, accept).await {
            Err(Error::Missing(url)) => missing = Error::Missing(url),
            Err(other) => return Err(other),
            Ok(answer) => {
                let at = answer.url().clone();
                let wrong = || Error::Unreachable { url: shown(&at), why: "it is no registry of npm's".to_owned() };
                let bytes = read(answer, PACKUMENT_BYTES_MAX).await?;
                let mut said: Value = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
                placed(&mut said, &at, &mut place);
                return serde_json::to_vec(&said).map_err(|_| wrong());
            }
        }
    }
    Err(missing)
}

/// Puts the tarballs of all versions where `place` says; a version without one is left out.
fn placed(said: &mut Value, at: &Url, place: &mut impl FnMut(Url) -> Option<String>) {
    let Some(versions) = said.get_mut("versions").and_then(Value::as_object_mut) else { return };
    versions.retain(|_, version| {
        let tarball = version.pointer_mut("/dist/tarball");
        let placed =
            tarball.as_ref().and_then(|tarball| at.join(tarball.as_str()?).ok()).filter(is_web).and_then(&mut *place);
        match (tarball, placed) {
            (Some(tarball), Some(placed)) => {
                *tarball = Value::String(placed);
                true
            }
            _ => false,
        }
    });
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
        let mut said = serde_json::json!({ "versions": {
            "1.0.0": { "dist": { "tarball": "https://cdn/a-1.0.0.tgz" } },
            "1.1.0": { "dist": { "tarball": "file:///etc/passwd" } },
            "1.2.0": { "dist": {} },
        }});
        let mut asked = Vec::new();
        placed(&mut said, &at, &mut |url| {
            asked.push(url.to_string());
            Some("http://127.0.0.1/1".to_owned())
        });
        assert_eq!(asked, ["https://cdn/a-1.0.0.tgz"]);
        assert_eq!(
            said,
            serde_json::json!({ "versions": { "1.0.0": { "dist": { "tarball": "http://127.0.0.1/1" } } } })
        );
    }
}
