//! Where things are in an agent's state folder.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fleetwright_deploy::ids::{ReleaseId, ServerName, SnapshotId};
use tokio::sync::{OwnedRwLockReadGuard, OwnedSemaphorePermit, RwLock, RwLockWriteGuard, Semaphore};
use tokio::time::timeout;

/// What is left of permissions: everything to the owner, and others pass through, or only the group does, or nobody.
const PASSABLE: u32 = 0o711;
const PASSABLE_FOR_GROUP: u32 = 0o710;
const PRIVATE: u32 = 0o700;

/// How many stopped servers are settled at once: each holds in memory what it lists.
const SETTLING_MAX: usize = 2;
/// How long work waits for memory that others use. They may hang on a disk that does not answer, and must not hold up everybody.
const PATIENCE: Duration = Duration::from_secs(30);

/// The state folder of one agent.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    state_dir: PathBuf,
    blobs_in_use: Arc<RwLock<()>>,
    taking: Arc<Semaphore>,
    settling: Arc<Semaphore>,
}

async fn turn(of: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    timeout(PATIENCE, of.clone().acquire_owned()).await.ok()?.ok()
}

impl Layout {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            blobs_in_use: Arc::default(),
            taking: Arc::new(Semaphore::new(1)),
            settling: Arc::new(Semaphore::new(SETTLING_MAX)),
        }
    }

    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Takes from others what they may do with what is here, as far as earlier versions have left them anything. That
    /// servers' users pass through stays.
    pub(crate) fn tighten(&self) -> io::Result<()> {
        let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
        lessen(&self.state_dir, PASSABLE)?;
        for entry in entries(&self.state_dir) {
            lessen(&entry.path(), if entry.path() == self.servers() { PASSABLE } else { PRIVATE })?;
        }
        for server in entries(&self.servers()) {
            lessen(&server.path(), PASSABLE_FOR_GROUP)?;
            // What is in it that its user may not do anything with at all; the rest is as its releases need it.
            let server = ServerLayout::at(&server.path());
            for folder in [server.snapshots(), server.logs(), server.all_incoming()] {
                lessen(&folder, PRIVATE)?;
            }
            lessen(&server.releases(), PASSABLE_FOR_GROUP)?;
        }
        Ok(())
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.state_dir.join("journal.db")
    }

    /// What the programs of this host have answered.
    pub(crate) fn facts(&self) -> PathBuf {
        self.state_dir.join("facts.json")
    }

    /// Room that is kept for a full disk.
    pub(crate) fn reserve(&self) -> PathBuf {
        self.state_dir.join("reserve")
    }

    /// What is still to be known of the disk after the agent was started again.
    pub(crate) fn remembered(&self) -> PathBuf {
        self.state_dir.join("room.json")
    }

    /// Files without content that are kept for a disk that has no more of them.
    pub(crate) fn reserved_files(&self) -> PathBuf {
        self.state_dir.join("reserved-files")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.state_dir.join("agent.lock")
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.state_dir.join("identity")
    }

    /// Which images were fetched, a file each.
    pub(crate) fn images(&self) -> PathBuf {
        self.state_dir.join("images")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.state_dir.join("blobs")
    }

    /// Keeps blobs from being removed: what a snapshot has just stored, pruning another must not take away.
    pub(crate) async fn use_blobs(&self) -> OwnedRwLockReadGuard<()> {
        self.blobs_in_use.clone().read_owned().await
    }

    /// The turn of taking a snapshot: what it lists is held in memory, so one is taken at a time. Without an end to the wait,
    /// one that hangs would hold up all others.
    pub(crate) async fn turn_to_take(&self) -> Option<OwnedSemaphorePermit> {
        turn(&self.taking).await
    }

    /// The turn of keeping what has changed of a server that is stopped, which does not wait until others are taken.
    pub(crate) async fn turn_to_settle(&self) -> Option<OwnedSemaphorePermit> {
        turn(&self.settling).await
    }

    /// Keeps everybody from storing blobs; nothing while somebody does.
    pub(crate) fn blobs_alone(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        self.blobs_in_use.try_write().ok()
    }

    pub(crate) fn servers(&self) -> PathBuf {
        self.state_dir.join("servers")
    }

    pub(crate) fn server(&self, server: &ServerName) -> ServerLayout {
        ServerLayout { folder: self.servers().join(server.as_str()) }
    }
}

/// Leaves of the permissions of a file or folder what is in `mask`; that nothing is there is no error.
fn lessen(path: &Path, mask: u32) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_symlink() || mode & !mask == 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode & mask))
}

/// The folder of one server.
#[derive(Clone, Debug)]
pub(crate) struct ServerLayout {
    folder: PathBuf,
}

impl ServerLayout {
    /// The layout of a server whose folder this is.
    pub(crate) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The identity of the agent that it belongs to.
    pub(crate) fn identity(&self) -> PathBuf {
        let state = self.folder.parent().and_then(Path::parent).unwrap_or(&self.folder);
        state.join("identity")
    }

    /// The release that runs, as a symbolic link.
    pub(crate) fn current(&self) -> PathBuf {
        self.folder.join("current")
    }

    pub(crate) fn releases(&self) -> PathBuf {
        self.folder.join("releases")
    }

    pub(crate) fn release(&self, release: &ReleaseId) -> ReleaseLayout {
        ReleaseLayout { folder: self.releases().join(release.as_str()) }
    }

    pub(crate) fn current_release(&self) -> ReleaseLayout {
        ReleaseLayout { folder: self.current() }
    }

    /// What came with a stage order, until the release is staged.
    pub(crate) fn incoming(&self, release: &ReleaseId) -> PathBuf {
        self.all_incoming().join(release.as_str())
    }

    pub(crate) fn all_incoming(&self) -> PathBuf {
        self.folder.join("incoming")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Whose some of the data may be, while they change hands.
    pub(crate) fn changing_owner(&self) -> PathBuf {
        self.folder.join("changing-owner.json")
    }

    /// Where a server under a supervisor has its temporary files.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.folder.join("tmp")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.folder.join("snapshots")
    }

    pub(crate) fn snapshot(&self, snapshot: &SnapshotId) -> PathBuf {
        self.snapshots().join(snapshot.as_str())
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.logs().join("output.log")
    }

    /// What the supervisor says about itself and its server.
    pub(crate) fn status(&self) -> PathBuf {
        self.folder.join("supervisor.json")
    }

    /// How the server that a supervisor started last is confined.
    pub(crate) fn confinement(&self) -> PathBuf {
        self.folder.join("confinement.json")
    }

    /// Locked for as long as a supervisor lives.
    pub(crate) fn supervisor_lock(&self) -> PathBuf {
        self.folder.join("supervisor.lock")
    }

    /// The server's container, from before it is made until it is removed.
    pub(crate) fn container(&self) -> PathBuf {
        self.folder.join("container.json")
    }

    /// Which runtime started the server last.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.folder.join("runtime.json")
    }

    /// Names the release that was begun, of those that end by themselves: how it ended counts from then on.
    pub(crate) fn begun(&self) -> PathBuf {
        self.folder.join("begun")
    }

    /// Names the release that has done its work, of those that end by themselves.
    pub(crate) fn completed(&self) -> PathBuf {
        self.folder.join("completed")
    }

    /// The name of the server.
    pub(crate) fn name(&self) -> &str {
        self.folder.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The package client that is at work, should the agent end before it.
    pub(crate) fn installer(&self) -> PathBuf {
        self.folder.join("installer.json")
    }

    /// There while an operator has stopped the server by hand.
    pub(crate) fn stopped(&self) -> PathBuf {
        self.folder.join("stopped")
    }
}

/// The folder of one release.
#[derive(Clone, Debug)]
pub(crate) struct ReleaseLayout {
    folder: PathBuf,
}

impl ReleaseLayout {
    /// The layout of a release whose folder this is.
    pub(crate) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The installed package.
    pub(crate) fn app(&self) -> PathBuf {
        self.folder.join("app")
    }

    /// The rendered files.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// The values of its secrets, a file each, readable by the owner only.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.folder.join("secrets")
    }

    /// The values of the secrets that its checks present, readable by the owner only.
    pub(crate) fn checked_secrets(&self) -> PathBuf {
        self.folder.join("checked-secrets.json")
    }

    /// The server's environment with its secrets, readable by the owner only.
    pub(crate) fn environment(&self) -> PathBuf {
        self.folder.join("environment.json")
    }

    /// The same as systemd reads it.
    pub(crate) fn systemd_environment(&self) -> PathBuf {
        self.folder.join("environment")
    }

    /// What an installer has for itself while it works.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.folder.join("installing")
    }

    /// Every package that was installed, with its version.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.folder.join("installed.lock")
    }

    /// The name of the package's program that is started, where the definition leaves that to the package.
    pub(crate) fn program(&self) -> PathBuf {
        self.folder.join("program")
    }

    /// The chunks of the artifact that it was installed from, where it was one.
    pub(crate) fn chunks(&self) -> PathBuf {
        self.folder.join("chunks.json")
    }

    /// The release itself; written last, so a folder that has it is complete.
    pub(crate) fn manifest(&self) -> PathBuf {
        self.folder.join("release.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_long_for_others_goes_on_beside_them() {
        let layout = Layout::new(Path::new("/nowhere"));
        let (one, two) = (layout.turn_to_settle().await, layout.turn_to_settle().await);
        assert!(one.is_some() && two.is_some());
        assert!(layout.turn_to_settle().await.is_none(), "they may hang");
        assert!(layout.turn_to_take().await.is_some(), "that is no matter of theirs");
        drop(one);
        assert!(layout.turn_to_settle().await.is_some());
    }

    #[test]
    fn what_earlier_versions_left_open_is_closed_and_the_way_of_servers_users_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let layout = Layout::new(folder.path());
        let server = layout.server(&"s".parse().expect("name"));
        for made in [server.snapshots(), server.releases(), layout.blobs()] {
            fs::create_dir_all(made).expect("folder");
        }
        fs::write(layout.journal(), "").expect("write");
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
        set(&layout.journal(), 0o644);
        for open in [folder.path(), &layout.servers(), &layout.blobs(), &server.snapshots(), server.folder()] {
            set(open, 0o755);
        }
        set(&server.releases(), 0o710);
        layout.tighten().expect("tightened");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(folder.path()), mode(&layout.servers()), mode(&layout.blobs())), (0o711, 0o711, 0o700));
        assert_eq!((mode(server.folder()), mode(&server.releases())), (0o710, 0o710));
        assert_eq!((mode(&server.snapshots()), mode(&layout.journal())), (0o700, 0o600));
    }
}
