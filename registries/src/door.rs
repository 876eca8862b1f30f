//! The door itself: a small server on this machine, for as long as a client needs it.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use reqwest::Url;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::npm;
use super::simple::{self, Project};
use super::upstream::{Error, Kind, Registry, Upstream, is_web};

/// What begins the names of settings that a client may have in its environment already, and which lead past the door,
/// whatever their case.
pub const OTHER_SETTINGS: [&str; 6] = ["pip_", "npm_config_", "all_proxy", "http_proxy", "https_proxy", "no_proxy"];
/// Most files that registries may name to one client.
const FILES_MAX: usize = 500_000;

/// A door to a registry, open until it is dropped.
pub struct Door {
    url: String,
    shown: String,
    inside: Arc<Inside>,
    serving: JoinHandle<()>,
}

struct Inside {
    kind: Kind,
    upstream: Upstream,
    /// What begins every path: nobody else on this machine knows it.
    key: String,
    origin: String,
    /// The files that registries have named: nothing else is fetched.
    files: Mutex<Vec<Url>>,
    /// What went wrong first.
    trouble: Mutex<Option<Error>>,
}

impl Door {
    /// Opens a door to a registry.
    pub async fn open(registry: &Registry) -> Result<Self, Error> {
        let upstream = Upstream::new(registry)?;
        let closed = |why: String| Error::Unreachable { url: "127.0.0.1".to_owned(), why };
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| closed(error.to_string()))?;
        let key = hex::encode(random);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| closed(error.to_string()))?;
        let address = listener.local_addr().map_err(|error| closed(error.to_string()))?;
        let origin = format!("http://{address}/{key}");
        let inside = Arc::new(Inside {
            kind: registry.kind,
            upstream,
            key,
            origin: origin.clone(),
            files: Mutex::default(),
            trouble: Mutex::default(),
        });
        let app = Router::new().fallback(answer).with_state(inside.clone());
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        let path = match registry.kind {
            Kind::Simple => "simple",
            Kind::Npm => "npm/",
        };
        let shown = registry.url.trim_end_matches('/').to_owned();
        Ok(Self { url: format!("{origin}/{path}"), shown, inside, serving })
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
                // Between here and the door nothing is lost; what is beyond it must not keep a person waiting for minutes.
                ("npm_config_fetch_retry_mintimeout", "1000".into()),
                ("npm_config_fetch_retry_maxtimeout", "5000".into()),
            ],
        }
    }

    /// A text of a client's with the registry's own URL in it.
    pub fn cleaned(&self, text: &str) -> String {
        text.replace(self.url.trim_end_matches('/'), &self.shown).replace(&self.inside.origin, &self.shown)
    }

    /// The registry's own URL.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// What went wrong first between here and the registry.
    pub fn trouble(&self) -> Option<Error> {
        self.inside.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The files of a project of an index.
    pub async fn project(&self, name: &str) -> Result<Project, Error> {
        simple::project(&self.inside.upstream, name).await
    }

    /// A file of the registry's, whole.
    pub async fn file(&self, url: &Url, bytes_max: usize) -> Result<Vec<u8>, Error> {
        let answer = self.inside.upstream.get(url, "*/*").await?;
        super::upstream::read(answer, bytes_max).await
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Inside {
    /// Where a file is for the client.
    fn place(&self, url: Url, name: &str) -> Option<String> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= FILES_MAX || !is_web(&url) {
            return None;
        }
        files.push(url);
        Some(format!("{}/files/{}/{name}", self.origin, files.len() - 1))
    }

    async fn index(&self, name: &str) -> Result<Response, Error> {
        let project = simple::project(&self.upstream, name).await?;
        let page = simple::page(&project, |file| self.place(file.url.clone(), &file.filename).unwrap_or_default());
        Ok(([(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response())
    }

    async fn packument(&self, name: &str, accept: &str) -> Result<Response, Error> {
        let said = npm::packument(&self.upstream, name, accept, |url| self.place(url, "package.tgz")).await?;
        Ok(([(CONTENT_TYPE, "application/json")], said).into_response())
    }

    /// A file that was named before; `.metadata` after its name is for its metadata alone.
    async fn file(&self, path: &str) -> Result<Response, Error> {
        let missing = || Error::Missing(path.to_owned());
        let (number, name) = path.split_once('/').ok_or_else(missing)?;
        let number: usize = number.parse().map_err(|_| missing())?;
        let mut url = {
            let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.get(number).cloned().ok_or_else(missing)?
        };
        if name.ends_with(".metadata") {
            url.set_path(&format!("{}.metadata", url.path()));
        }
        let answer = self.upstream.get(&url, "*/*").await?;
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

async fn answer(State(inside): State<Arc<Inside>>, request: Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    match inside.found(request.uri().path(), accept).await {
        Ok(response) => response,
        Err(error) => {
            let status = match &error {
                Error::Missing(_) => StatusCode::NOT_FOUND,
                Error::Refused { status, .. } => StatusCode::from_u16(*status).unwrap_or(StatusCode::FORBIDDEN),
                Error::Unreachable { .. } | Error::NoUrl(_) => StatusCode::BAD_GATEWAY,
            };
            if !matches!(error, Error::Missing(_)) {
                inside.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            // Nobody asks a person on this side of the door.
            status.into_response()
        }
    }
}
