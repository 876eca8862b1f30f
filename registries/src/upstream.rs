//! The registry itself, and the public one beside it.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url};

/// How long a connection may take, and how long nothing may arrive.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Most redirections that are followed.
const REDIRECTS_MAX: usize = 5;
/// Longest URL of a file, in bytes.
const URL_BYTES_MAX: usize = 8 * 1024;
/// Answers of a registry that is there, and may answer otherwise soon.
const PASSING: [StatusCode; 2] = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];

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

/// Why a registry gives nothing. No text of it holds a value of the environment, a user or a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its URL is none.
    #[error("`{0}` is not the URL of a registry")]
    NoUrl(String),
    /// The URL of the public registry, which comes from the environment, is none.
    #[error("the URL of the public registry is not the URL of a registry")]
    NoPublicUrl,
    /// Its credentials cannot be sent.
    #[error("{0}")]
    Unsendable(&'static str),
    /// The door itself cannot be opened on this machine.
    #[error("no port of this machine can be listened on: {0}")]
    Closed(String),
    /// It does not let whoever asks in.
    #[error("{url} answers {status}")]
    Refused {
        /// What was asked.
        url: String,
        /// Its answer.
        status: u16,
        /// Whether it was asked with credentials.
        with_credentials: bool,
    },
    /// It passes on to a place that is not it.
    #[error("{url} passes on to {to}")]
    PassesOn {
        /// What was asked.
        url: String,
        /// The host that it names.
        to: String,
    },
    /// What answers is something else than a registry.
    #[error("{url} {why}")]
    NoRegistry {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        why: String,
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
    kind: Kind,
    url: Url,
    public: Option<Url>,
    package: String,
    authorization: Option<HeaderValue>,
    /// For what it lists itself: goes nowhere else.
    at_home: Client,
    /// For files, and for the public registry.
    anywhere: Client,
    /// For what is on this machine, before which no proxy stands.
    here: Client,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// What there is of a name.
    List,
    /// A file that a list has named.
    File,
}

impl Upstream {
    pub(crate) fn new(registry: &Registry) -> Result<Self, Error> {
        let url = base(&registry.url).ok_or_else(|| Error::NoUrl(registry.url.clone()))?;
        let public = registry.public.as_deref().map(|text| base(text).ok_or(Error::NoPublicUrl)).transpose()?;
        let own_is_here = is_of_this_machine(&url);
        Ok(Self {
            kind: registry.kind,
            public,
            package: compared(registry.kind, &registry.package),
            authorization: registry.credentials.as_ref().map(authorization).transpose()?,
            at_home: client(true, own_is_here)?,
            anywhere: client(false, false)?,
            here: client(false, true)?,
            url,
        })
    }

    pub(crate) fn asks_public(&self) -> bool {
        self.public.is_some()
    }

    /// Where a name is asked for, in their order: the registry, and the public one where that may have it.
    pub(crate) fn bases(&self, name: &str) -> impl Iterator<Item = &Url> {
        let public = self.public.as_ref().filter(|_| compared(self.kind, name) != self.package);
        [Some(&self.url), public].into_iter().flatten()
    }

    /// Asks; only the registry itself hears the credentials. What it lists it must have itself: one that passes on what it
    /// does not have would bring packages of others under names of its own.
    pub(crate) async fn get(&self, url: &Url, accept: &str, wanted: Wanted) -> Result<Response, Error> {
        let own = is_of(url, &self.url);
        let http = match wanted {
            Wanted::List if own => &self.at_home,
            _ if is_of_this_machine(url) => &self.here,
            Wanted::List | Wanted::File => &self.anywhere,
        };
        let authorization = self.authorization.as_ref().filter(|_| own);
        let mut request = http.get(url.clone()).header(ACCEPT, accept);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let shown = shown(url);
        let answer = request.send().await.map_err(|error| unreachable(&shown, error))?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status if status.is_redirection() => {
                let to = answer.headers().get(LOCATION).and_then(|to| answer.url().join(to.to_str().ok()?).ok());
                let to = to.and_then(|to| to.host_str().map(str::to_owned));
                Err(Error::PassesOn { url: shown, to: to.unwrap_or_else(|| "nowhere".to_owned()) })
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Error::Missing(shown)),
            // It is there, and wants to be asked again.
            status if status.is_server_error() || PASSING.contains(&status) => {
                Err(Error::Unreachable { url: shown, why: format!("it answers {status}") })
            }
            status => {
                let with_credentials = authorization.is_some() && is_of(answer.url(), &self.url);
                Err(Error::Refused { url: shown, status: status.as_u16(), with_credentials })
            }
        }
    }
}

fn authorization(credentials: &Credentials) -> Result<HeaderValue, Error> {
    let text = match credentials {
        // RFC 7617, section 2: the first colon ends the user.
        Credentials::Basic { username, .. } if username.contains(':') => {
            return Err(Error::Unsendable("the user of the registry has a `:`, which no user may have"));
        }
        Credentials::Basic { username, password } => {
            format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
        }
        Credentials::Bearer(token) => format!("Bearer {token}"),
    };
    let unsendable = "the token of the registry has a line break or another sign that cannot be sent";
    let mut value = HeaderValue::from_str(&text).map_err(|_| Error::Unsendable(unsendable))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A body, up to so many bytes.
pub(crate) async fn read(mut answer: Response, bytes_max: usize) -> Result<Vec<u8>, Error> {
    let url = shown(answer.url());
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(&url, error))? {
        if bytes.len() + chunk.len() > bytes_max {
            return Err(Error::NoRegistry { url, why: format!("answers with more than {} KiB", bytes_max >> 10) });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn base(text: &str) -> Option<Url> {
    let url = Url::parse(&format!("{}/", text.trim_end_matches('/')));
    url.ok().filter(|url| url.has_host() && matches!(url.scheme(), "https" | "http"))
}

/// Whether a file may be where a list says that it is: nobody on the way may put another in its place, unless that was so
/// for the list already.
pub(crate) fn is_named_safely(url: &Url, list: &Url) -> bool {
    url.as_str().len() <= URL_BYTES_MAX
        && (url.scheme() == "https" || (url.scheme() == "http" && list.scheme() == "http"))
}

/// Whether a URL is of the machine that this runs on. No proxy stands before that.
fn is_of_this_machine(url: &Url) -> bool {
    match url.host_str().map(|host| host.trim_matches(['[', ']'])) {
        Some(host) => host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
        None => false,
    }
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

/// One that follows redirections, no further than to where it was sent if it stays `at_home`; `direct` is without a proxy.
fn client(at_home: bool, direct: bool) -> Result<Client, Error> {
    let builder = || -> ClientBuilder {
        let redirects = Policy::custom(move |attempt| {
            let from = attempt.previous().last();
            let falls = from.is_some_and(|from| from.scheme() == "https") && attempt.url().scheme() != "https";
            let leaves = at_home && from.is_some_and(|from| !is_of(attempt.url(), from));
            if falls || leaves || attempt.previous().len() > REDIRECTS_MAX { attempt.stop() } else { attempt.follow() }
        });
        let builder = Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(STALL_TIMEOUT);
        // Where somebody came from may hold a token.
        let builder = builder.redirect(redirects).referer(false);
        if direct { builder.no_proxy() } else { builder }
    };
    // Without certificates of authorities nobody is trusted, and plain HTTP can be asked all the same.
    let made = builder().build().or_else(|_| builder().tls_certs_only([]).build());
    made.map_err(|error| unreachable("the registry", error))
}

/// A name as indexes compare it (PEP 503), without extras.
pub(crate) fn normal(name: &str) -> String {
    let name = name.split('[').next().unwrap_or_default().trim().to_ascii_lowercase();
    let parts = name.split(['-', '_', '.']).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-")
}

/// A name as a registry of this kind tells it from others: npm does so sign by sign.
fn compared(kind: Kind, name: &str) -> String {
    match kind {
        Kind::Simple => normal(name),
        Kind::Npm => name.to_owned(),
    }
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
        for own in ["acme.tools", "acme__tools", "ACME-_tools", "acme-tools[cli]"] {
            assert_eq!(bases(own), ["https://own.example/simple/"], "{own}");
        }
        let with_extras = Registry { package: "acme-tools[cli]".to_owned(), ..registry.clone() };
        let upstream = Upstream::new(&with_extras).expect("an upstream");
        assert_eq!(upstream.bases("acme-tools").count(), 1);
        let npm = Registry { kind: Kind::Npm, package: "socket-io".to_owned(), ..registry };
        let upstream = Upstream::new(&npm).expect("an upstream");
        assert_eq!((upstream.bases("socket-io").count(), upstream.bases("socket.io").count()), (1, 2), "two packages");
    }

    #[test]
    fn what_cannot_be_sent_is_said_and_no_value_of_the_environment_is_told() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = Registry {
            kind: Kind::Simple,
            url: "https://own.example/simple".to_owned(),
            credentials: Some(Credentials::Bearer("hunter2\n".to_owned())),
            package: "acme".to_owned(),
            public: None,
        };
        let refused = |registry: &Registry| Upstream::new(registry).err().expect("refused").to_string();
        assert!(refused(&registry).contains("line break"), "{}", refused(&registry));
        let (username, password) = ("a:b".to_owned(), "hunter2".to_owned());
        let credentials = Some(Credentials::Basic { username, password });
        assert!(refused(&Registry { credentials, ..registry.clone() }).contains("no user may have"));
        let public = Some("https://deploy:hunter#2@nexus/simple".to_owned());
        let told = refused(&Registry { credentials: None, public, ..registry });
        assert!(!told.contains("hunter"), "{told}");
    }

    #[test]
    fn a_file_is_named_as_safely_as_its_list() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        for (file, list, fits) in [
            ("https://cdn/a", "https://h/", true),
            ("http://cdn/a", "https://h/", false),
            ("http://127.0.0.1/a", "http://127.0.0.1/", true),
            ("https://cdn/a", "http://127.0.0.1/", true),
            ("file:///etc/passwd", "http://127.0.0.1/", false),
        ] {
            assert_eq!(is_named_safely(&url(file), &url(list)), fits, "{file} of {list}");
        }
        assert!(!is_named_safely(&url(&format!("https://cdn/{}", "a".repeat(URL_BYTES_MAX))), &url("https://h/")));
        let here = ["http://127.0.0.1:1/", "http://[::1]/", "http://localhost/"];
        assert!(here.iter().all(|text| is_of_this_machine(&url(text))) && !is_of_this_machine(&url("http://h/")));
    }
}
