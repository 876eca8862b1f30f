//! The registry itself, and the public one beside it.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url};

/// How long a connection may take, and how long nothing may arrive.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Most redirections that are followed.
const REDIRECTS_MAX: usize = 5;

/// Whose packages it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A simple index (PEP 503, PEP 691).
    Simple,
    /// A registry of npm's.
    Npm,
}

/// What a registry is asked with.
#[derive(Clone)]
pub enum Credentials {
    /// RFC 7617.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// RFC 6750.
    Bearer(String),
}

impl Credentials {
    /// Of what is known: a token, or a user with a password.
    pub fn of(username: Option<&str>, password: Option<&str>, token: Option<&str>) -> Option<Self> {
        match (username, password, token) {
            (_, _, Some(token)) => Some(Self::Bearer(token.to_owned())),
            (Some(username), Some(password), None) => {
                Some(Self::Basic { username: username.to_owned(), password: password.to_owned() })
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// A registry.
#[derive(Clone, Debug)]
pub struct Registry {
    /// Whose packages it has.
    pub kind: Kind,
    /// Its URL, which holds nothing secret.
    pub url: String,
    /// What it is asked with.
    pub credentials: Option<Credentials>,
    /// The package that is wanted of it, which comes from nowhere else.
    pub package: String,
    /// The registry that has what this one does not.
    pub public: Option<String>,
}

/// Why a registry gives nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its URL is none.
    #[error("`{0}` is not the URL of a registry")]
    NoUrl(String),
    /// It does not let whoever asks in.
    #[error("{url} answers {status}")]
    Refused {
        /// What was asked.
        url: String,
        /// Its answer.
        status: u16,
    },
    /// It does not answer, or not as a registry does.
    #[error("{url}: {why}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What happened.
        why: String,
    },
    /// It has no such thing.
    #[error("{0} is not there")]
    Missing(String),
}

/// A registry that can be asked.
pub(crate) struct Upstream {
    pub(crate) url: Url,
    public: Option<Url>,
    package: String,
    authorization: Option<HeaderValue>,
    http: Client,
}

impl Upstream {
    pub(crate) fn new(registry: &Registry) -> Result<Self, Error> {
        let authorization = registry.credentials.as_ref().map(|credentials| {
            let text = match credentials {
                Credentials::Basic { username, password } => {
                    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
                }
                Credentials::Bearer(token) => format!("Bearer {token}"),
            };
            let mut value = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
            value.set_sensitive(true);
            value
        });
        Ok(Self {
            url: base(&registry.url)?,
            public: registry.public.as_deref().map(base).transpose()?,
            package: normal(&registry.package),
            authorization,
            http: client()?,
        })
    }

    /// Where a name is asked for, in their order: the registry, and the public one where that may have it.
    pub(crate) fn bases(&self, name: &str) -> impl Iterator<Item = &Url> {
        let public = self.public.as_ref().filter(|_| normal(name) != self.package);
        [Some(&self.url), public].into_iter().flatten()
    }

    /// Asks; only the registry itself hears the credentials.
    pub(crate) async fn get(&self, url: &Url, accept: &str) -> Result<Response, Error> {
        let mut request = self.http.get(url.clone()).header(ACCEPT, accept);
        if let Some(authorization) = self.authorization.as_ref().filter(|_| is_of(url, &self.url)) {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let shown = shown(url);
        let answer = request.send().await.map_err(|error| unreachable(&shown, error))?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Error::Missing(shown)),
            status if status.is_server_error() => {
                Err(Error::Unreachable { url: shown, why: format!("it answers {status}") })
            }
            status => Err(Error::Refused { url: shown, status: status.as_u16() }),
        }
    }
}

/// A body, up to so many bytes.
pub(crate) async fn read(mut answer: Response, bytes_max: usize) -> Result<Vec<u8>, Error> {
    let url = shown(answer.url());
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(&url, error))? {
        if bytes.len() + chunk.len() > bytes_max {
            let why = format!("its answer has more than {} KiB", bytes_max >> 10);
            return Err(Error::Unreachable { url, why });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn base(text: &str) -> Result<Url, Error> {
    let url = Url::parse(&format!("{}/", text.trim_end_matches('/')));
    url.ok().filter(|url| url.has_host() && is_web(url)).ok_or_else(|| Error::NoUrl(text.to_owned()))
}

pub(crate) fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "https" | "http")
}

/// Whether a URL is of the same origin (RFC 6454) as another.
fn is_of(url: &Url, other: &Url) -> bool {
    let origin = |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default());
    origin(url) == origin(other)
}

/// A URL for people: without what may be secret.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

fn unreachable(url: &str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let mut why = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        why = format!("{why}: {inner}");
        source = inner.source();
    }
    Error::Unreachable { url: url.to_owned(), why }
}

fn client() -> Result<Client, Error> {
    let builder = || -> ClientBuilder {
        let redirects = Policy::custom(|attempt| {
            let falls = attempt.previous().last().is_some_and(|from| from.scheme() == "https")
                && attempt.url().scheme() != "https";
            if falls || attempt.previous().len() > REDIRECTS_MAX { attempt.stop() } else { attempt.follow() }
        });
        Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(STALL_TIMEOUT).redirect(redirects)
    };
    // Without certificates of authorities nobody is trusted, and plain HTTP can be asked all the same.
    let made = builder().build().or_else(|_| builder().tls_certs_only([]).build());
    made.map_err(|error| unreachable("the registry", error))
}

/// A name as indexes compare it (PEP 503).
pub(crate) fn normal(name: &str) -> String {
    name.to_ascii_lowercase().replace(['_', '.'], "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_registry_itself_hears_its_credentials() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        let registry = url("https://pypi.example/simple/");
        assert!(is_of(&url("https://pypi.example:443/files/a.whl"), &registry));
        for other in [
            "http://pypi.example/a",
            "https://pypi.example:8443/a",
            "https://pypi.example.org/a",
            "https://a.pypi.example/",
        ] {
            assert!(!is_of(&url(other), &registry), "{other}");
        }
        assert_eq!(shown(&url("https://user:hunter2@h/a?token=hunter2#x")), "https://h/a");
        let credentials = Credentials::Bearer("hunter2".to_owned());
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }

    #[test]
    fn the_package_itself_is_never_asked_of_the_public_registry() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = Registry {
            kind: Kind::Simple,
            url: "https://own.example/simple".to_owned(),
            credentials: None,
            package: "Acme_Tools".to_owned(),
            public: Some("https://pypi.org/simple".to_owned()),
        };
        let upstream = Upstream::new(&registry).expect("an upstream");
        let bases = |name: &str| upstream.bases(name).map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(bases("requests"), ["https://own.example/simple/", "https://pypi.org/simple/"]);
        assert_eq!(bases("acme.tools"), ["https://own.example/simple/"]);
    }
}
