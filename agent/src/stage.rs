//! Staging: a release is fetched, installed and rendered beside the running one. Nothing that runs is touched.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use fleetwright_certs::store;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::ReleaseId;
use fleetwright_deploy::release::{BRIDGE_TOKEN_VARIABLE, MissingSecret, Release, RuntimeKind, reveal};

use crate::aside::aside;
use crate::beneath::{Place, remove};
use crate::durable;
use crate::facts::Known;
use crate::install::{self, Artifacts, file_failure};
use crate::layout::{ReleaseLayout, ServerLayout};
use crate::preflight;
use crate::runtime::users::User;
use crate::runtime::{self, environment_line, users};
use crate::{bridge, confine, container, handover, ownership};

const STEP: &str = "stage";
/// The permissions of the folders of rendered files: who may see them is decided by the release's folder.
const CONFIG_MODE: u32 = 0o755;

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
    facts: &Known,
) -> Result<(), Failure> {
    let layout = server.release(id);
    let incoming = server.incoming(id);
    if load(&layout).is_none() {
        let (release, secrets) = received(&incoming)?;
        preflight::check(&release, server, running, facts).await?;
        ownership::check_data(server, release.snapshot_data)?;
        install::end_leftover(&server.installer()).await?;
        remove_folder(layout.folder())?;
        // Nobody else may enter it before everything in it belongs to whom it is to belong.
        make_folder(layout.folder(), 0o700)?;
        make_folder(&layout.config(), CONFIG_MODE)?;
        install::install(&release, &layout, &server.installer(), (artifacts, facts), &secrets).await?;
        write_files(&release, &layout, &secrets)?;
        install::programs::check(&release, server, &layout)?;
        let owner = owner(&release).await?;
        let (of, to, image) = (server.clone(), layout.clone(), release.package.image().is_some());
        aside(move || hand_over(&of, &to, owner, image)).await?;
        share_with_current(server, &layout).await?;
        if runtime::chosen(&release)? == RuntimeKind::Agent {
            handover::check(server, &release, &layout).await?;
        }
        on_disk(&layout).await?;
        let bytes = fs::read(incoming.join("release.json")).map_err(|error| file_failure(&incoming, &error))?;
        store::write_private(&layout.manifest(), &bytes)
            .map_err(|error| Failure::new(FailureKind::ResourceError, STEP, error.to_string()))?;
    } else if let Some(release) = load(&layout) {
        preflight::check(&release, server, running, facts).await?;
    }
    remove_folder(&incoming)
}

/// Waits until everything of a release is on the disk: once its manifest is, it counts as whole, also after a power cut.
async fn on_disk(layout: &ReleaseLayout) -> Result<(), Failure> {
    let folder = layout.folder().to_owned();
    aside(move || {
        let synced = fs::File::open(&folder).and_then(|opened| durable::disk_of(&opened, &folder));
        synced.map_err(|error| file_failure(&folder, &error))
    })
    .await
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

/// The user that what a release writes belongs to: the one that it runs as, which is made where it is a server's own.
/// Nothing where it is the agent's, or one that only the release's image knows.
async fn owner(release: &Release) -> Result<Option<User>, Failure> {
    match (release.package.image(), confine::user_of(release)?) {
        (Some(image), _) => container::user_of(release, &image).await,
        (None, Some((name, own))) => users::ensure(&name, own).await.map(Some),
        (None, None) => Ok(None),
    }
}

/// Makes the data of a server belong to the user that a release runs as, and the release as well, where it does not yet.
/// The server must be stopped.
pub(crate) async fn settle_data(server: &ServerLayout, id: &ReleaseId) -> Result<(), Failure> {
    let Some(release) = load(&server.release(id)) else { return Ok(()) };
    let owner = match owner(&release).await? {
        None if release.package.image().is_none() && rustix::process::geteuid().is_root() => {
            Some(ownership::own_user())
        }
        owner => owner,
    };
    let Some(owner) = owner else { return Ok(()) };
    let (server, layout, image) = (server.clone(), server.release(id), release.package.image().is_some());
    aside(move || {
        ownership::settle_data(&server, owner)?;
        // A release that an agent of before has staged for root is its server's from now on. One whose rendered files were
        // given to its server stays so: what that may have put in their place is given to nobody.
        let own = ownership::own_user();
        let is_roots = fs::metadata(layout.config())
            .is_ok_and(|config| config.uid() == own.uid && config.gid() != owner.gid && owner.uid != own.uid);
        if is_roots && !image {
            hand_over(&server, &layout, Some(owner), image)?;
        }
        if image { Ok(()) } else { let_in(&server, owner) }
    })
    .await
}

/// Makes everything in a release's folder belong to whom it is to belong, and then lets its user into that: it may read
/// its package and its rendered files, and owns its data. So what was staged is what is there when it is put back, whatever
/// the server has done. A container's user gets its files mounted, and enters nothing.
fn hand_over(server: &ServerLayout, layout: &ReleaseLayout, owner: Option<User>, image: bool) -> Result<(), Failure> {
    ownership::make_data(server, owner.unwrap_or_else(ownership::own_user))?;
    let Some(user) = owner else { return Ok(()) };
    if image {
        // Only it knows its groups.
        ownership::hand_over(&layout.config(), user)?;
        return if layout.secrets().exists() { ownership::hand_over(&layout.secrets(), user) } else { Ok(()) };
    }
    ownership::let_group_read(&layout.config(), user)?;
    ownership::let_group_read(&layout.app(), user)?;
    let_group_in(&[layout.folder()], user)
}

/// Lets the user of the release that is to run through to it: what is above the release's own folder is of one user at a
/// time, and while a server runs, of that one's.
fn let_in(server: &ServerLayout, user: User) -> Result<(), Failure> {
    for folder in server.folder().ancestors().skip(1).take(2) {
        // Every server's user passes through; nobody may list them.
        let opened = fs::metadata(folder).and_then(|found| {
            let mode = found.permissions().mode();
            fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o111))
        });
        opened.map_err(|error| file_failure(folder, &error))?;
    }
    let_group_in(&[server.folder(), &server.releases()], user)
}

/// Lets a group enter folders of root's, and nobody else.
fn let_group_in(folders: &[&Path], user: User) -> Result<(), Failure> {
    for folder in folders {
        let given = std::os::unix::fs::chown(folder, None, Some(user.gid))
            .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o710)));
        given.map_err(|error| file_failure(folder, &error))?;
    }
    Ok(())
}

/// Makes a folder with exactly these permissions, and those that it is in.
fn make_folder(folder: &Path, mode: u32) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode & 0o700).create(folder);
    let made = made.and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(mode)));
    made.map_err(|error| file_failure(folder, &error))
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
        for folder in path.ancestors().skip(1).take_while(|folder| *folder != layout.config()) {
            make_folder(folder, CONFIG_MODE)?;
        }
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = written.and_then(|mut written| {
            written.write_all(content.as_bytes())?;
            written.set_permissions(fs::Permissions::from_mode(file.mode & 0o777))
        });
        written.map_err(|error| file_failure(&path, &error))?;
    }
    let environment: Result<BTreeMap<&String, String>, _> =
        release.run.environment.iter().map(|(name, value)| Ok((name, reveal(value, secrets)?))).collect();
    let mut environment = environment.map_err(missing)?;
    if release.is_bridged() {
        bridge::hide_token(&mut environment).map_err(|error| {
            Failure::new(FailureKind::ConfigurationError, STEP, error.to_string()).hint("take a long random one")
        })?;
    }
    let private = |path: &Path, bytes: &[u8]| {
        store::write_private(path, bytes)
            .map_err(|error| Failure::new(FailureKind::ResourceError, STEP, error.to_string()))
    };
    // Values are written only where something reads them.
    let (image, runtime) = (release.package.image().is_some(), runtime::chosen(release)?);
    if runtime == RuntimeKind::Systemd && (!image || release.has_bridge_token()) {
        // That of an image is its container's, but for what its bridge needs.
        let of_unit = environment.iter().filter(|(name, _)| !image || name.as_str() == BRIDGE_TOKEN_VARIABLE);
        let lines: String = of_unit.map(|(name, value)| environment_line(name, value)).collect();
        private(&layout.systemd_environment(), lines.as_bytes())?;
    }
    if runtime == RuntimeKind::Systemd || image {
        for name in &release.secrets_of_server() {
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
    let Some(place) = Place::own(folder)? else { return Ok(()) };
    remove(&place.folder, &place.name).map_err(|error| file_failure(folder, &error))
}
