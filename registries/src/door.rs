//! The door itself: a small server on this machine, for as long as a client needs it.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use reqwest::Url;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::simple::{self, Project};
use super::upstream::{Error, Kind, Registry, Upstream, Wanted};
use super::{npm, peer};

/// Most files that registries may name to one client, and most bytes that their URLs may have together.
const FILES_MAX: usize = 500_000;
const FILE_URLS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How many lists are held in memory at once: each may be large.
const LISTS_MAX: usize = 2;
/// How much of what went wrong is remembered.
const TROUBLES_MAX: usize = 32;

/// A door to a registry, open until it is dropped.
pub struct Door {
    url: String,
    shown: String,
    inside: Arc<Inside>,
    /// No request is answered any more once this is gone, on no connection.
    _open: watch::Sender<()>,
}

struct Inside {
    kind: Kind,
    upstream: Upstream,
    /// What begins every path: nobody else on this machine should know it.
    key: String,
    address: SocketAddr,
    origin: String,
    /// The user whose programs may come in, besides root's; everybody's until that is said.
    user: OnceLock<u32>,
    lists: Semaphore,
    said: Mutex<Said>,
}

/// What registries have said.
#[derive(Default)]
struct Said {
    files: Files,
    /// What went wrong, by what was asked of the door; what came through later is forgotten.
    troubles: Vec<(String, Error)>,
    /// Names that it does not have.
    missing: BTreeSet<String>,
    /// What was left out of what it lists, in words.
    left_out: Vec<String>,
}

/// The files that registries have named: nothing else is fetched.
#[derive(Default)]
struct Files {
    list: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, usize>,
    bytes: usize,
}

impl Files {
    /// The number of a file; each URL has one.
    fn number(&mut self, url: &Url) -> Option<usize> {
        if let Some(number) = self.numbers.get(url.as_str()) {
            return Some(*number);
        }
        if self.list.len() >= FILES_MAX || self.bytes + url.as_str().len() > FILE_URLS_BYTES_MAX {
            return None;
        }
        let (url, number) = (Arc::<str>::from(url.as_str()), self.list.len());
        self.bytes += url.len();
        self.list.push(url.clone());
        self.numbers.insert(url, number);
        Some(number)
    }
}

impl Door {
    /// Opens a door to a registry.
    pub async fn open(registry: &Registry) -> Result<Self, Error> {
        let upstream = Upstream::new(registry)?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| Error::Closed(error.to_string()))?;
        let key = hex::encode(random);
        let closed = |error: std::io::Error| Error::Closed(error.to_string());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(closed)?;
        let address = listener.local_addr().map_err(closed)?;
        let origin = format!("http://{address}/{key}");
        let inside = Arc::new(Inside {
            kind: registry.kind,
            upstream,
            key,
            address,
            origin: origin.clone(),
            user: OnceLock::new(),
            lists: Semaphore::new(LISTS_MAX),
            said: Mutex::default(),
        });
        let (open, until) = watch::channel(());
        let app = Router::new().fallback(answer).with_state((inside.clone(), until.clone()));
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move {
            tokio::select! {
                _ = axum::serve(listener, app).into_future() => {}
                () = closing(until) => {}
            }
        });
        let path = match registry.kind {
            Kind::Simple => "simple",
            Kind::Npm => "npm/",
        };
        let shown = registry.url.trim_end_matches('/').to_owned();
        Ok(Self { url: format!("{origin}/{path}"), shown, inside, _open: open })
    }

    /// What a client takes for the registry.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How a client is told of the one registry that it knows: by its environment, since everybody on the machine sees its
    /// command line. No file of settings names another; `none` is where there is no such file.
    pub fn settings(&self, none: &Path) -> Vec<(&'static str, OsString)> {
        match self.inside.kind {
            Kind::Simple => vec![("PIP_INDEX_URL", self.url().into()), ("PIP_CONFIG_FILE", "/dev/null".into())],
            Kind::Npm => vec![
                ("npm_config_registry", self.url().into()),
                ("npm_config_userconfig", none.into()),
                ("npm_config_globalconfig", none.with_extension("global").into()),
                // Where packages were is no part of a lock: next time it is somewhere else.
                ("npm_config_omit_lockfile_registry_resolved", "true".into()),
                // What the door says of where a file is is what counts.
                ("npm_config_replace_registry_host", "never".into()),
                // What comes from a repository is left out before; npm knows this from 11 on.
                ("npm_config_allow_git", "none".into()),
                // Between here and the door nothing is lost; what is beyond it must not keep a person waiting for minutes.
                ("npm_config_fetch_retry_mintimeout", "1000".into()),
                ("npm_config_fetch_retry_maxtimeout", "5000".into()),
            ],
        }
    }

    /// From now on only programs of this user may come in, besides root's: what a client has on its command line, others
    /// can read.
    pub fn only_for(&self, user: u32) {
        let _ = self.inside.user.set(user);
    }

    /// A text of a client's with the registry's own URL in it.
    pub fn cleaned(&self, text: &str) -> String {
        let text = text.replace(self.url.trim_end_matches('/'), &self.shown).replace(&self.inside.origin, &self.shown);
        // What clients write in parts.
        let (host, port) = (self.inside.address.ip(), self.inside.address.port());
        let text = text.replace(&format!("host='{host}', port={port}"), &format!("the door to {}", self.shown));
        text.replace(&format!("{host}:{port}"), &self.shown).replace(&format!("/{}", self.inside.key), "")
    }

    /// The registry's own URL.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether the public registry is asked for what this one does not have.
    pub fn asks_public(&self) -> bool {
        self.inside.upstream.asks_public()
    }

    /// Whether a URL is one that this door has given out.
    pub fn has_given(&self, url: &str) -> bool {
        url.strip_prefix(self.inside.origin.as_str()).is_some_and(|path| path.starts_with("/files/"))
    }

    /// What went wrong first between here and the registry, and did not come through when it was asked again.
    pub fn trouble(&self) -> Option<Error> {
        self.inside.said().troubles.first().map(|(_, error)| error.clone())
    }

    /// The names that were asked for and that the registry does not have.
    pub fn missing(&self) -> Vec<String> {
        self.inside.said().missing.iter().cloned().collect()
    }

    /// What was left out of what the registry lists, in words.
    pub fn left_out(&self) -> Vec<String> {
        self.inside.said().left_out.clone()
    }

    /// The files of a project of an index.
    pub async fn project(&self, name: &str) -> Result<Project, Error> {
        simple::project(&self.inside.upstream, name).await
    }
}

impl Inside {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a file is for the client.
    fn place(&self, url: &Url, name: &str) -> Option<String> {
        Some(format!("{}/files/{}/{name}", self.origin, self.said().files.number(url)?))
    }

    async fn index(&self, name: &str) -> Result<Response, Error> {
        let _place = self.lists.acquire().await;
        let project = simple::project(&self.upstream, name).await?;
        let page = simple::page(&project, |file| self.place(&file.url, &file.filename));
        Ok(([(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response())
    }

    async fn packument(&self, name: &str, accept: &str) -> Result<Response, Error> {
        let _place = self.lists.acquire().await;
        let packument = npm::packument(&self.upstream, name, accept, |url| self.place(&url, "package.tgz")).await?;
        let mut said = self.said();
        for (version, brings, wanted) in packument.elsewhere {
            let words =
                format!("{name} {version} was left out: it brings {brings} from {wanted}, which is no registry");
            if said.left_out.len() < TROUBLES_MAX && !said.left_out.contains(&words) {
                said.left_out.push(words);
            }
        }
        drop(said);
        Ok(([(CONTENT_TYPE, "application/json")], packument.said).into_response())
    }

    /// A file that was named before; `.metadata` after its name is for its metadata alone.
    async fn file(&self, path: &str) -> Result<Response, Error> {
        let missing = || Error::Missing(path.to_owned());
        let (number, name) = path.split_once('/').ok_or_else(missing)?;
        let number: usize = number.parse().map_err(|_| missing())?;
        let named = self.said().files.list.get(number).cloned().ok_or_else(missing)?;
        let mut url = Url::parse(&named).map_err(|_| missing())?;
        if name.ends_with(".metadata") {
            url.set_path(&format!("{}.metadata", url.path()));
        }
        let answer = self.upstream.get(&url, "*/*", Wanted::File).await?;
        let length = answer.headers().get(CONTENT_LENGTH).cloned();
        let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        if let Some(length) = length {
            response.headers_mut().insert(CONTENT_LENGTH, length);
        }
        Ok(response)
    }

    async fn found(&self, path: &str, accept: &str) -> Result<Response, Error> {
        let missing = || Error::Missing(path.to_owned());
        let rest = path.strip_prefix('/').and_then(|path| path.strip_prefix(self.key.as_str())?.strip_prefix('/'));
        match (rest.ok_or_else(missing)?.split_once('/').ok_or_else(missing)?, self.kind) {
            (("simple", name), Kind::Simple) => {
                let name = name.trim_end_matches('/');
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
                if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
                    return Err(missing());
                }
                self.index(name).await
            }
            (("npm", name), Kind::Npm) => self.packument(&npm::name(name).ok_or_else(missing)?, accept).await,
            (("files", file), _) => self.file(file).await,
            _ => Err(missing()),
        }
    }
}

/// Comes to its end when the door is dropped.
async fn closing(mut open: watch::Receiver<()>) {
    while open.changed().await.is_ok() {}
}

async fn answer(
    State((inside, open)): State<(Arc<Inside>, watch::Receiver<()>)>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    if let Some(user) = inside.user.get()
        && peer::user(from, inside.address).is_none_or(|of| of != 0 && of != *user)
    {
        return StatusCode::FORBIDDEN.into_response();
    }
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let path = request.uri().path();
    let found = tokio::select! {
        found = inside.found(path, accept) => found,
        () = closing(open) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
    };
    let mut said = inside.said();
    said.troubles.retain(|(of, _)| of != path);
    let error = match found {
        Ok(response) => return response,
        Err(error) => error,
    };
    let status = match &error {
        Error::Missing(_) | Error::PassesOn { .. } => StatusCode::NOT_FOUND,
        Error::Refused { status, .. } => StatusCode::from_u16(*status).unwrap_or(StatusCode::FORBIDDEN),
        // Clients ask again.
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    if status == StatusCode::NOT_FOUND {
        let name = path.rsplit_once("/simple/").or_else(|| path.rsplit_once("/npm/")).map(|(_, name)| name);
        if let Some(name) = name.filter(|_| said.missing.len() < TROUBLES_MAX) {
            said.missing.insert(name.trim_end_matches('/').replace("%2f", "/"));
        }
    } else if said.troubles.len() < TROUBLES_MAX {
        said.troubles.push((path.to_owned(), error));
    }
    // Nobody asks a person on this side of the door.
    status.into_response()
}

#[cfg(test)]
mod tests;
