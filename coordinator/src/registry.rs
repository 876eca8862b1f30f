//! Registries: of MCP servers, for an entry; and of packages, for what a package says of itself. What they answer is read
//! within limits of bytes and time, and what may be secret in their URLs is in no message.

use std::io::{Cursor, Read};
use std::process::Stdio;
use std::time::Duration;

use fleetwright_deploy::config::{ENTRY_BYTES_MAX, Found, ImportQuestion, without_secrets};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::index_name;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::ACCEPT;
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, StatusCode, Url};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;
use zip::ZipArchive;

use crate::lock::{self, Project};

/// How long a registry of servers has for its answer.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a registry of packages has for everything that it is asked.
const PACKAGE_TIMEOUT: Duration = Duration::from_secs(120);
/// Most redirections that are followed, all on the same host.
const REDIRECTS_MAX: usize = 3;
/// Largest list of the files of a distribution, in bytes.
const INDEX_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Largest wheel or bundle that is looked into, in bytes.
const PACKAGE_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Largest file of theirs that is read, and largest answer of npm, in bytes.
const INNER_BYTES_MAX: u64 = 1024 * 1024;
/// What a part of a path may hold as it is.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn failure(kind: FailureKind, message: String, hint: &str) -> Failure {
    Failure::new(kind, "import", message).hint(hint)
}

fn unreachable(shown: &str, why: &str) -> Failure {
    failure(
        FailureKind::NetworkError,
        format!("{shown}: {why}"),
        "see that the address is right and reachable from here; an entry in a file can be imported as well",
    )
}

/// The entry of a server in a registry (`/v0.1/servers/NAME/versions/VERSION`). Over plain HTTP only on this machine, unless
/// `plain_http` allows it.
pub(crate) async fn entry(registry: &str, wanted: &str, plain_http: bool) -> Result<(String, String), Failure> {
    let (name, version) = wanted.rsplit_once('@').unwrap_or((wanted, "latest"));
    if name.is_empty() || version.is_empty() {
        let what = if name.is_empty() { "name of a server" } else { "version after its `@`" };
        let hint = "write NAME or NAME@VERSION, such as io.github.example/server@1.0.0";
        return Err(failure(FailureKind::ConfigurationError, format!("`{wanted}` has no {what}"), hint));
    }
    let url = address(registry, name, version, plain_http)?;
    let shown = without_secrets(url.as_str());
    let same_host = || {
        let home = url.clone();
        Policy::custom(move |attempt| {
            let to = attempt.url();
            let stays = to.scheme() == home.scheme()
                && to.host_str() == home.host_str()
                && to.port_or_known_default() == home.port_or_known_default();
            if stays && attempt.previous().len() <= REDIRECTS_MAX { attempt.follow() } else { attempt.stop() }
        })
    };
    let asked = async {
        let http = client(|builder| builder.redirect(same_host()))?;
        let answer = http.get(url.clone()).header(ACCEPT, "application/json").send().await.map_err(said)?;
        let status = answer.status();
        let bytes = if status.is_success() { read(answer, ENTRY_BYTES_MAX).await? } else { Vec::new() };
        Ok::<_, String>((status, bytes))
    };
    let asked = timeout(ENTRY_TIMEOUT, asked).await;
    let asked = asked.unwrap_or_else(|_| Err(format!("nothing within {} s", ENTRY_TIMEOUT.as_secs())));
    let (status, bytes) = asked.map_err(|why| unreachable(&shown, &why))?;
    match status {
        status if status.is_success() => {}
        StatusCode::NOT_FOUND => {
            let hint = "names are written whole, such as io.github.example/server, and versions exactly";
            let message = format!("{shown}: the registry has no `{name}` in version {version}");
            return Err(failure(FailureKind::DependencyError, message, hint));
        }
        status if status.is_redirection() => {
            let hint = "give the address that it redirects to, if you trust it";
            let message = format!("{shown}: it redirects to another host ({status}), which is not followed");
            return Err(failure(FailureKind::PermissionError, message, hint));
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let hint = "credentials go into its URL, https://USER:PASSWORD@HOST; they are in no message";
            return Err(failure(FailureKind::PermissionError, format!("{shown}: it answers {status}"), hint));
        }
        status => return Err(unreachable(&shown, &format!("it answers {status}"))),
    }
    let text = String::from_utf8(bytes).map_err(|_| unreachable(&shown, "its answer is not UTF-8"))?;
    Ok((shown, text))
}

fn address(registry: &str, name: &str, version: &str, plain_http: bool) -> Result<Url, Failure> {
    let shown = without_secrets(registry);
    let wrong = |why: &str, hint: &str| failure(FailureKind::ConfigurationError, format!("{shown}: {why}"), hint);
    let hint = "write for example https://registry.modelcontextprotocol.io";
    let url = Url::parse(registry).map_err(|_| wrong("it is not the URL of a registry", hint))?;
    let loopback = match url.host_str().map(|host| host.trim_matches(['[', ']'])) {
        Some("localhost") => true,
        Some(host) => host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
        None => return Err(wrong("it is not the URL of a registry", hint)),
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback || plain_http => {}
        "http" => {
            let hint = "over plain HTTP anybody on the way can put another server in: use https, or say --plain-http";
            return Err(wrong("it is not https", hint));
        }
        _ => return Err(wrong("it is not the URL of a registry", hint)),
    }
    let mut url = url;
    url.set_query(None);
    url.set_fragment(None);
    let base = url.path().trim_end_matches('/').to_owned();
    let base = if base.ends_with("/v0.1") { base } else { format!("{base}/v0.1") };
    let part = |text: &str| utf8_percent_encode(text, PART).to_string();
    url.set_path(&format!("{base}/servers/{}/versions/{}", part(name), part(version)));
    Ok(url)
}

/// What a package says of itself; why it could not be asked, where it could not.
pub(crate) async fn ask(question: &ImportQuestion, python: &str) -> Result<Found, Failure> {
    let asked = async {
        match question {
            ImportQuestion::Npm { name, version, registry } => npm(name, version, registry.as_deref()).await,
            ImportQuestion::Pypi { name, version, registry } => {
                let index = match registry {
                    Some(registry) => registry.clone(),
                    None => lock::index(python).await,
                };
                pypi(name, version, &index).await
            }
            ImportQuestion::Bundle { url, sha256 } => bundle(url, sha256).await,
        }
    };
    match timeout(PACKAGE_TIMEOUT, asked).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(Unanswered::Refused(failure))) => Err(failure),
        Ok(Err(Unanswered::Why(why))) => Ok(Found::Unknown(why)),
        Err(_) => Ok(Found::Unknown(format!("the registry did not answer within {} s", PACKAGE_TIMEOUT.as_secs()))),
    }
}

/// Why there is no answer.
enum Unanswered {
    /// It cannot be known.
    Why(String),
    /// There is something wrong that no guess makes good.
    Refused(Failure),
}

impl From<String> for Unanswered {
    fn from(why: String) -> Self {
        Self::Why(why)
    }
}

fn missing(what: &str, registry: &str) -> Unanswered {
    let hint = "see that name and version are right, and that the registry is the one from which hosts install; \
                `--offline` asks nothing";
    Unanswered::Refused(failure(FailureKind::DependencyError, format!("{registry} has no {what}"), hint))
}

/// The names in a package's `bin`, by npm, which knows its registry, its scopes and its credentials.
async fn npm(name: &str, version: &str, registry: Option<&str>) -> Result<Found, Unanswered> {
    let mut npm = Command::new("npm");
    npm.args([
        "view",
        "--json",
        "--loglevel=silent",
        "--no-update-notifier",
        "--",
        &format!("{name}@{version}"),
        "name",
        "bin",
    ]);
    if let Some(registry) = registry {
        npm.env("npm_config_registry", registry);
    }
    npm.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut running = npm.spawn().map_err(|error| format!("npm could not be started on this machine ({error})"))?;
    let mut said = Vec::new();
    if let Some(stdout) = running.stdout.take() {
        stdout.take(INNER_BYTES_MAX).read_to_end(&mut said).await.map_err(|error| format!("npm failed ({error})"))?;
    }
    let status = running.wait().await.map_err(|error| format!("npm failed ({error})"))?;
    let answer: serde_json::Value = serde_json::from_slice(&said).unwrap_or_default();
    let code = answer["error"]["code"].as_str().unwrap_or_default();
    if matches!(code, "E404" | "ETARGET") || (status.success() && answer.is_null()) {
        return Err(missing(&format!("{name}@{version}"), registry.unwrap_or("npm's registry")));
    }
    if !status.success() {
        let code: String = code.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
        return Err(format!(
            "npm could not ask its registry ({})",
            if code.is_empty() { status.to_string() } else { code }
        )
        .into());
    }
    let own = name.rsplit('/').next().unwrap_or(name).to_owned();
    Ok(Found::Programs(match &answer["bin"] {
        serde_json::Value::Object(bin) => bin.keys().cloned().collect(),
        serde_json::Value::String(_) => vec![own],
        _ => Vec::new(),
    }))
}

/// The programs that a wheel installs, from the index that pip asks.
async fn pypi(name: &str, version: &str, index: &str) -> Result<Found, Unanswered> {
    let normal = index_name(name);
    let (shown, base) = (without_secrets(index), format!("{index}/{normal}/"));
    let base = Url::parse(&base).map_err(|_| format!("pip's index {shown} is no URL"))?;
    let http = client(|builder| builder)?;
    let failed = |why: String| format!("the index {shown} could not be asked ({why})");
    let answer = http.get(base.clone()).header(ACCEPT, lock::SIMPLE_JSON).send().await.map_err(said).map_err(failed)?;
    if answer.status() == StatusCode::NOT_FOUND {
        return Err(missing(name, &format!("the index {shown}")));
    }
    let failed = |why: String| format!("the index {shown} could not be asked ({why})");
    let answer = answer.error_for_status().map_err(said).map_err(failed)?;
    let bytes = read(answer, INDEX_BYTES_MAX).await?;
    let project: Project =
        serde_json::from_slice(&bytes).map_err(|_| format!("the index {shown} does not answer with JSON (PEP 691)"))?;
    let mut of_version =
        project.files.iter().filter(|file| lock::version_of(&file.filename) == Some(version)).peekable();
    if of_version.peek().is_none() {
        return Err(missing(&format!("{name} in version {version}"), &format!("the index {shown}")));
    }
    // The programs of a version are the same in each of its wheels.
    let wheel = of_version.filter(|file| file.filename.ends_with(".whl"));
    let Some(wheel) = wheel.max_by_key(|file| file.filename.ends_with("-none-any.whl")) else {
        return Err("the package has no wheel, which would name its programs".to_owned().into());
    };
    let mut url = base.join(&wheel.url).map_err(|_| "the index names a file by no URL".to_owned())?;
    if url.host_str() == base.host_str() && url.username().is_empty() {
        let _ = url.set_username(base.username());
        let _ = url.set_password(base.password());
    }
    let file = fetched(&http, url, wheel.hashes.sha256.as_deref(), &wheel.filename).await?;
    let scripts = scripts(file).map_err(|why| format!("the wheel {} could not be read ({why})", wheel.filename))?;
    Ok(Found::Programs(scripts))
}

/// The `manifest.json` of a bundle, which is a ZIP archive.
async fn bundle(url: &str, sha256: &str) -> Result<Found, Unanswered> {
    let shown = without_secrets(url);
    let url = Url::parse(url).map_err(|_| format!("{shown} is no URL"))?;
    let file = fetched(&client(|builder| builder)?, url, Some(sha256), &shown).await?;
    let manifest = ZipArchive::new(Cursor::new(file)).map_err(|error| error.to_string()).and_then(|mut bundle| {
        let inner = bundle.by_name("manifest.json").map_err(|error| error.to_string())?;
        text_of(inner)
    });
    manifest.map(Found::Bundle).map_err(|why| format!("the bundle {shown} could not be read ({why})").into())
}

/// A file that must have a digest.
async fn fetched(http: &Client, url: Url, sha256: Option<&str>, shown: &str) -> Result<Vec<u8>, Unanswered> {
    let answer = http.get(url).send().await.and_then(reqwest::Response::error_for_status);
    let answer = answer.map_err(|error| format!("{shown} could not be fetched ({})", said(error)))?;
    let bytes = read(answer, PACKAGE_BYTES_MAX).await.map_err(|why| format!("{shown} could not be fetched ({why})"))?;
    if let Some(sha256) = sha256 {
        let found = hex::encode(Sha256::digest(&bytes));
        if !found.eq_ignore_ascii_case(sha256) {
            let message = format!("{shown} has the SHA-256 {found}, not {sha256}");
            let hint = "it is not what the entry means: do not deploy it before its publisher has explained that";
            return Err(Unanswered::Refused(failure(FailureKind::PermissionError, message, hint)));
        }
    }
    Ok(bytes)
}

/// The programs that a wheel installs: its console scripts, and the files that it puts among the programs.
fn scripts(wheel: Vec<u8>) -> Result<Vec<String>, String> {
    let mut wheel = ZipArchive::new(Cursor::new(wheel)).map_err(|error| error.to_string())?;
    let (mut programs, mut entry_points) = (Vec::new(), None);
    for path in wheel.file_names() {
        let path = path.map_err(|error| error.to_string())?.into_owned();
        match path.split('/').collect::<Vec<_>>().as_slice() {
            [folder, "entry_points.txt"] if folder.ends_with(".dist-info") => entry_points = Some(path.clone()),
            [folder, "scripts", program] if folder.ends_with(".data") => programs.push((*program).to_owned()),
            _ => {}
        }
    }
    if let Some(path) = entry_points {
        let text = text_of(wheel.by_name(&path).map_err(|error| error.to_string())?)?;
        programs.extend(console_scripts(&text));
    }
    Ok(programs)
}

fn text_of(inner: impl Read) -> Result<String, String> {
    let mut text = String::new();
    inner.take(INNER_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > INNER_BYTES_MAX { Err("it is too large".to_owned()) } else { Ok(text) }
}

/// The names under `[console_scripts]`.
fn console_scripts(entry_points: &str) -> Vec<String> {
    let (mut names, mut section) = (Vec::new(), "");
    for line in entry_points.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(heading) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = heading.trim();
        } else if let Some((name, _)) = line.split_once('=').filter(|_| section == "console_scripts") {
            names.push(name.trim().to_owned());
        }
    }
    names
}

/// A body, up to so many bytes.
async fn read(mut answer: reqwest::Response, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(said)? {
        if bytes.len() + chunk.len() > bytes_max {
            return Err(format!("its answer has more than {} KiB", bytes_max >> 10));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn client(with: impl Fn(ClientBuilder) -> ClientBuilder) -> Result<Client, String> {
    let builder = || with(Client::builder().timeout(PACKAGE_TIMEOUT));
    // Without certificates of authorities nobody is trusted, and plain HTTP can be asked all the same.
    builder().build().or_else(|_| builder().tls_certs_only([]).build()).map_err(said)
}

/// Why nothing was answered: the cause behind all others, without the URL, which may hold a password.
fn said(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    let error = error.without_url();
    if let Some(status) = error.status() {
        return format!("it answers {status}");
    }
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_registry_is_asked_over_https_or_on_this_machine() {
        let at = |registry: &str| address(registry, "io.github.a/b c", "latest", false).map(|url| url.to_string());
        assert_eq!(
            at("https://r.example/"),
            Ok("https://r.example/v0.1/servers/io.github.a%2Fb%20c/versions/latest".to_owned())
        );
        assert_eq!(
            at("http://127.0.0.2:1/x/v0.1").expect("a URL"),
            "http://127.0.0.2:1/x/v0.1/servers/io.github.a%2Fb%20c/versions/latest"
        );
        for refused in ["http://r.example", "ftp://r.example", "r.example", "http://127.0.0.1.example/"] {
            assert!(at(refused).is_err(), "{refused}");
        }
        let refused = at("http://user:hunter2@r.example?token=hunter2").expect_err("refused");
        assert!(!format!("{refused:?}").contains("hunter2"), "{refused:?}");
        assert!(address("http://r.example", "a/b", "1", true).is_ok());
        let hidden = address("https://h", "../..", "..", false).expect("a URL");
        assert!(hidden.path().starts_with("/v0.1/servers/"), "{hidden}");
    }

    #[test]
    fn the_programs_of_a_wheel_are_its_console_scripts_and_what_it_puts_among_the_programs() {
        let mut wheel = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (path, text) in [
            ("a/entry_points.txt", "[console_scripts]\nno = a:b\n"),
            ("a-1.dist-info/entry_points.txt", "[console_scripts]\nserve = a:b\n"),
            ("a-1.data/scripts/tool", "#!python\n"),
            ("a-1.data/scripts/deep/no", ""),
        ] {
            wheel.start_file(path, zip::write::SimpleFileOptions::default()).expect("a file");
            wheel.write_all(text.as_bytes()).expect("written");
        }
        let wheel = wheel.finish().expect("a wheel").into_inner();
        assert_eq!(scripts(wheel), Ok(vec!["tool".to_owned(), "serve".to_owned()]));
        assert!(scripts(b"PK no".to_vec()).is_err());
    }

    #[test]
    fn console_scripts_are_found_among_other_entry_points() {
        let text = "[gui_scripts]\nw = a:b\n[console_scripts]\n# c = d\nmcp-server-time = t:main\n  x=y:z [extra]\n\n[other]\nq = r\n";
        assert_eq!(console_scripts(text), ["mcp-server-time", "x"]);
    }
}
