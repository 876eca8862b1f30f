//! Staging: a release is fetched, installed and rendered beside the running one. Nothing that runs is touched.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use fleetwright_certs::store;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::ReleaseId;
use fleetwright_deploy::release::{MissingSecret, Release, RuntimeKind, reveal};

use crate::install::{self, Artifacts, file_failure};
use crate::layout::{ReleaseLayout, ServerLayout};
use crate::preflight;
use crate::runtime::users::User;
use crate::runtime::{self, environment_line, users};
use crate::snapshot::aside;
use crate::{confine, container, handover};

const STEP: &str = "stage";

/// Keeps what came with a stage order until the release is staged, so that a restarted agent can go on.
pub(crate) fn receive(
    server: &ServerLayout,
    id: &ReleaseId,
    release: &[u8],
    secrets: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let folder = server.incoming(id);
    let secrets = serde_json::to_vec(secrets).unwrap_or_default();
    let write = |name: &str, content: &[u8]| {
        store::write_private(&folder.join(name), content)
            .map_err(|error| Failure::new(FailureKind::ResourceError, STEP, error.to_string()))
    };
    write("secrets.json", &secrets)?;
    write("release.json", release)
}

/// Stages a release that was received. Doing it again, whole or after a crash, ends the same way.
pub(crate) async fn stage(
    server: &ServerLayout,
    id: &ReleaseId,
    running: Option<&Release>,
    artifacts: &Artifacts,
) -> Result<(), Failure> {
    let layout = server.release(id);
    let incoming = server.incoming(id);
    if load(&layout).is_none() {
        let (release, secrets) = received(&incoming)?;
        preflight::check(&release, server, running).await?;
        install::end_leftover(&server.installer()).await?;
        remove_folder(layout.folder())?;
        fs::create_dir_all(layout.config()).map_err(|error| file_failure(layout.folder(), &error))?;
        fs::create_dir_all(server.data()).map_err(|error| file_failure(&server.data(), &error))?;
        install::install(&release, &layout, &server.installer(), artifacts).await?;
        write_files(&release, &layout, &secrets)?;
        if let Some(image) = release.package.image() {
            if let Some(user) = container::user_of(&release, &image).await? {
                let (server, layout) = (server.clone(), layout.clone());
                aside(move || show(&server, &layout, user).map_err(|error| file_failure(layout.folder(), &error)))
                    .await?;
            }
        } else if let Some((name, own)) = confine::user_of(&release)? {
            let user = users::ensure(&name, own).await?;
            let (server, layout) = (server.clone(), layout.clone());
            aside(move || hand_over(&server, &layout, user).map_err(|error| file_failure(layout.folder(), &error)))
                .await?;
        }
        share_with_current(server, &layout).await?;
        if runtime::chosen(&release)? == RuntimeKind::Agent {
            handover::check(server, &release, &layout).await?;
        }
        let bytes = fs::read(incoming.join("release.json")).map_err(|error| file_failure(&incoming, &error))?;
        store::write_private(&layout.manifest(), &bytes)
            .map_err(|error| Failure::new(FailureKind::ResourceError, STEP, error.to_string()))?;
    } else if let Some(release) = load(&layout) {
        preflight::check(&release, server, running).await?;
    }
    remove_folder(&incoming)
}

/// Keeps on the disk only once what the new release and the current one have in common.
async fn share_with_current(server: &ServerLayout, layout: &ReleaseLayout) -> Result<(), Failure> {
    let Some(current) = runtime::current(server) else { return Ok(()) };
    let (before, fresh) = (server.release(&current).app(), layout.app());
    if !fresh.exists() || !before.exists() {
        return Ok(());
    }
    aside(move || {
        let bytes = install::share(&before, &fresh).map_err(|error| file_failure(&fresh, &error))?;
        tracing::debug!(bytes, "shared with the release before");
        Ok(())
    })
    .await
}

/// The server's user may read its package, owns its rendered files, and sees nothing of other servers.
fn hand_over(server: &ServerLayout, layout: &ReleaseLayout, user: User) -> std::io::Result<()> {
    let group_only = |path: &Path, mode| {
        std::os::unix::fs::chown(path, None, Some(user.gid))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    for folder in server.folder().ancestors().skip(1).take(2) {
        // Every server's user passes through; nobody may list them.
        let mode = fs::metadata(folder)?.permissions().mode();
        fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o111))?;
    }
    for folder in [server.folder(), &server.releases(), layout.folder()] {
        group_only(folder, 0o710)?;
    }
    if layout.app().exists() {
        users::let_group_read(&layout.app(), user)?;
    }
    users::give(&layout.config(), user)
}

/// Hands the data of a server that is stopped over to the user that its release runs as, where it is not its own yet;
/// and, with it, a release that an agent of before has staged for root.
pub(crate) async fn settle_ownership(server: &ServerLayout, release: &Release) -> Result<(), Failure> {
    let Some((name, own)) = confine::user_of(release)? else { return Ok(()) };
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let user = users::ensure(&name, own).await?;
    let layout = server.release(&release.id());
    let owns = |path: &Path| fs::metadata(path).is_ok_and(|found| found.uid() == user.uid && found.gid() == user.gid);
    if owns(&server.data()) && owns(&layout.config()) {
        return Ok(());
    }
    let server = server.clone();
    let all = move || {
        hand_over(&server, &layout, user)?;
        users::give(&server.data(), user)
    };
    aside(move || all().map_err(|error| file_failure(Path::new("data"), &error))).await
}

/// The user of a container owns what is mounted in it.
fn show(server: &ServerLayout, layout: &ReleaseLayout, user: User) -> std::io::Result<()> {
    users::give(&layout.config(), user)?;
    if layout.secrets().exists() {
        users::give(&layout.secrets(), user)?;
    }
    users::give(&server.data(), user)
}

/// Removes a release that will not run, unless it is one of `kept`, and what came with its order.
pub(crate) fn discard(server: &ServerLayout, id: &ReleaseId, kept: &[ReleaseId]) -> Result<(), Failure> {
    remove_folder(&server.incoming(id))?;
    if kept.contains(id) { Ok(()) } else { remove_folder(server.release(id).folder()) }
}

/// The release in a folder, if it is complete.
pub(crate) fn load(layout: &ReleaseLayout) -> Option<Release> {
    serde_json::from_slice(&fs::read(layout.manifest()).ok()?).ok()
}

/// The releases that were received and are not staged yet.
pub(crate) fn coming(server: &ServerLayout) -> Vec<Release> {
    let entries = fs::read_dir(server.all_incoming()).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(received(&entry.path()).ok()?.0)).collect()
}

/// The values of the secrets that the checks of a release present.
pub(crate) fn checked_secrets(layout: &ReleaseLayout) -> BTreeMap<String, String> {
    fs::read(layout.checked_secrets()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Removes the releases that neither run nor are needed to undo the last deployment.
pub(crate) fn prune(server: &ServerLayout, kept: &[ReleaseId]) -> Result<(), Failure> {
    let folder = server.releases();
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !kept.iter().any(|id| id.as_str() == name.to_string_lossy()) {
            remove_folder(&entry.path())?;
        }
    }
    Ok(())
}

fn received(incoming: &Path) -> Result<(Release, BTreeMap<String, String>), Failure> {
    let unreadable = |error: String| {
        Failure::new(FailureKind::ConfigurationError, STEP, format!("the release cannot be read: {error}"))
    };
    let read = |name: &str| fs::read(incoming.join(name)).map_err(|error| file_failure(&incoming.join(name), &error));
    let release = serde_json::from_slice(&read("release.json")?).map_err(|error| unreadable(error.to_string()))?;
    let secrets = serde_json::from_slice(&read("secrets.json")?).map_err(|error| unreadable(error.to_string()))?;
    Ok((release, secrets))
}

/// Writes the rendered files and the environment, with the secrets put in.
fn write_files(release: &Release, layout: &ReleaseLayout, secrets: &BTreeMap<String, String>) -> Result<(), Failure> {
    let missing = |error: MissingSecret| Failure::new(FailureKind::ConfigurationError, STEP, error.to_string());
    for file in &release.files {
        let path = layout.config().join(&file.path);
        let inside = Path::new(&file.path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !inside {
            let message = format!("`{}` is not a path below the release's config folder", file.path);
            return Err(Failure::new(FailureKind::PermissionError, STEP, message));
        }
        let content = reveal(&file.content, secrets).map_err(missing)?;
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder).map_err(|error| file_failure(folder, &error))?;
        let written = OpenOptions::new().write(true).create_new(true).mode(file.mode & 0o777).open(&path);
        written.and_then(|mut file| file.write_all(content.as_bytes())).map_err(|error| file_failure(&path, &error))?;
    }
    let environment: Result<BTreeMap<&String, String>, _> =
        release.run.environment.iter().map(|(name, value)| Ok((name, reveal(value, secrets)?))).collect();
    let environment = environment.map_err(missing)?;
    let private = |path: &Path, bytes: &[u8]| {
        store::write_private(path, bytes)
            .map_err(|error| Failure::new(FailureKind::ResourceError, STEP, error.to_string()))
    };
    // Values are written only where something reads them.
    let (image, runtime) = (release.package.image().is_some(), runtime::chosen(release)?);
    if runtime == RuntimeKind::Systemd && !image {
        let lines: String = environment.iter().map(|(name, value)| environment_line(name, value)).collect();
        private(&layout.systemd_environment(), lines.as_bytes())?;
    }
    if runtime == RuntimeKind::Systemd || image {
        for name in release.secrets.keys() {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None)) {
                let message = format!("`{name}` is not the name of a secret");
                return Err(Failure::new(FailureKind::PermissionError, STEP, message));
            }
            let value = secrets.get(name).ok_or_else(|| missing(MissingSecret(name.clone())))?;
            private(&layout.secrets().join(name), value.as_bytes())?;
        }
    }
    let mut checked = BTreeMap::new();
    for name in release.checked_secrets() {
        let value = secrets.get(&name).ok_or_else(|| missing(MissingSecret(name.clone())))?;
        checked.insert(name, value);
    }
    if !checked.is_empty() {
        private(&layout.checked_secrets(), &serde_json::to_vec(&checked).unwrap_or_default())?;
    }
    private(&layout.environment(), &serde_json::to_vec(&environment).unwrap_or_default())
}

/// Removes a folder with all its content; that it is not there is no error.
pub(crate) fn remove_folder(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(file_failure(folder, &error)),
    }
}
