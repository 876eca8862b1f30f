//! The coordinator's state folder: what makes a fleet this fleet. Readable by its owner only.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fleetwright_certs::{Authority, Signer, TrustedKeys, fingerprint, store};
use fleetwright_deploy::ids::FleetName;
use fleetwright_protocol::Clock;
use fleetwright_protocol::command::{COMMAND_PURPOSE, INTENT_PURPOSE};
use fleetwright_protocol::endpoint::TlsIdentity;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// How long the lock of the coordinator is asked for.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// The name of a state folder, when it is looked for in the present folder and those above it.
pub(crate) const STATE_DIR_NAME: &str = ".fleetwright";
/// The file with the public half of the operator's key.
pub(crate) const OPERATOR_PUBLIC: &str = "operator.pub";

/// What is remembered of a fleet besides its keys and its journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FleetFile {
    pub(crate) name: FleetName,
    /// Where the coordinator listens for agents (UDP).
    pub(crate) listen: String,
}

/// What is left of permissions: everything to the owner, and others pass through, or nobody does.
const PASSABLE: u32 = 0o711;
const PRIVATE: u32 = 0o700;

/// A coordinator's state folder.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    folder: PathBuf,
}

impl StateDir {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let folder = std::path::absolute(folder).with_context(|| format!("`{}` is no path", folder.display()))?;
        Ok(Self { folder })
    }

    /// The state folder of the present folder or of one above it.
    pub(crate) fn find() -> Result<Option<Self>> {
        let here = std::env::current_dir().context("the present folder cannot be found")?;
        let found = here.ancestors().map(|folder| folder.join(STATE_DIR_NAME)).find(|folder| folder.is_dir());
        found.map(|folder| Self::new(&folder)).transpose()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn exists(&self) -> bool {
        self.fleet_file().exists()
    }

    fn fleet_file(&self) -> PathBuf {
        self.folder.join("fleet.json")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.join("journal.db")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("api.sock")
    }

    pub(crate) fn secrets(&self) -> PathBuf {
        self.folder.join("secrets")
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.folder.join("artifacts")
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.folder.join("coordinator.lock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("coordinator.log")
    }

    /// The state folders of agents that `up` started.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.folder.join("hosts")
    }

    /// Makes the folder itself, for its owner alone.
    pub(crate) fn make_folder(&self) -> Result<()> {
        let failed = || format!("the state folder {} cannot be made", self.folder.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).with_context(failed)?;
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700)).with_context(failed)
    }

    /// Makes a fleet: its authority, its coordinator's certificate, and the key that signs commands. Of the operator's key
    /// it gets the public half.
    pub(crate) fn create(&self, name: &FleetName, listen: &str, operator_public: &str, clock: &Clock) -> Result<()> {
        TrustedKeys::from_pems([operator_public], INTENT_PURPOSE)
            .context("the operator's public key cannot be read")?;
        self.make_folder()?;
        let failed = || format!("the state folder {} cannot be made", self.folder.display());
        fs::create_dir_all(self.secrets()).with_context(failed)?;
        let now = clock.now_unix_s();
        let authority = Authority::create(name.as_str(), now)?;
        let (certificate, key_pem) = authority.issue_coordinator("coordinator", now)?;
        // The chain ends in the authority itself, for agents that only know its fingerprint.
        let chain_pem = format!("{}{}", certificate.pem, authority.certificate().pem);
        self.write("authority.pem", &authority.certificate().pem)?;
        self.write("authority.key", authority.key_pem())?;
        self.write("coordinator.pem", &chain_pem)?;
        self.write("coordinator.key", &key_pem)?;
        self.write("command.key", &Signer::generate(COMMAND_PURPOSE)?.to_pem()?)?;
        self.save_operator_public(operator_public)?;
        self.write("values.key", fleetwright_certs::Token::generate()?.reveal())?;
        // Last, since it is what makes the folder a fleet's.
        self.save_fleet(&FleetFile { name: name.clone(), listen: listen.to_owned() })
    }

    /// Takes from others what they may do with what is here, as far as earlier versions have left them anything. That
    /// the users of servers pass through to the agents that `up` started stays.
    pub(crate) fn tighten(&self) -> Result<()> {
        let failed = || format!("the state folder {} cannot be made private", self.folder.display());
        lessen(&self.folder, PASSABLE).with_context(failed)?;
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            lessen(&entry.path(), if entry.path() == self.hosts() { PASSABLE } else { PRIVATE })
                .with_context(failed)?;
        }
        Ok(())
    }

    /// Makes the folder of the agents that `up` starts. Where root does, the users of their servers pass through.
    pub(crate) fn make_hosts(&self) -> Result<()> {
        let made = fs::create_dir_all(self.hosts());
        made.with_context(|| format!("{} cannot be made", self.hosts().display()))?;
        if rustix::process::geteuid().is_root() {
            for folder in [self.path(), &self.hosts()] {
                fs::set_permissions(folder, fs::Permissions::from_mode(PASSABLE))?;
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        Ok(store::write_private(&self.folder.join(name), content.as_bytes())?)
    }

    fn read(&self, name: &str) -> Result<String> {
        Ok(store::read(&self.folder.join(name))?)
    }

    pub(crate) fn save_fleet(&self, fleet: &FleetFile) -> Result<()> {
        Ok(store::write_private(&self.fleet_file(), &serde_json::to_vec_pretty(fleet)?)?)
    }

    pub(crate) fn fleet(&self) -> Result<FleetFile> {
        let path = self.fleet_file();
        if !path.exists() {
            bail!("there is no fleet in {}\n  hint: `fleetwright up MANIFEST` makes one", self.folder.display());
        }
        serde_json::from_str(&store::read(&path)?).with_context(|| format!("{} cannot be read", path.display()))
    }

    pub(crate) fn authority(&self, fleet: &FleetName) -> Result<Authority> {
        Ok(Authority::load(fleet.as_str(), &self.read("authority.pem")?, &self.read("authority.key")?)?)
    }

    /// The fingerprint that agents know the authority by.
    pub(crate) fn authority_fingerprint(&self) -> Result<String> {
        let certificate = fleetwright_certs::Certificate::from_pem(&self.read("authority.pem")?)?;
        Ok(format!("sha256:{}", fingerprint(&certificate.der)))
    }

    pub(crate) fn tls(&self) -> Result<TlsIdentity> {
        Ok(TlsIdentity {
            chain_pem: self.read("coordinator.pem")?,
            key_pem: self.read("coordinator.key")?,
            authority_pem: self.read("authority.pem")?,
        })
    }

    /// The key that signs commands.
    pub(crate) fn command_signer(&self) -> Result<Signer> {
        Ok(Signer::from_pem(&self.read("command.key")?, COMMAND_PURPOSE)?)
    }

    /// Where the operator's key lies, unless it is kept elsewhere. Only commands read it.
    pub(crate) fn operator_key_file(&self) -> PathBuf {
        self.folder.join("operator.key")
    }

    /// Keeps the public half of the operator's key.
    pub(crate) fn save_operator_public(&self, pem: &str) -> Result<()> {
        self.write(OPERATOR_PUBLIC, pem)
    }

    /// Whether the public half of the operator's key is here.
    pub(crate) fn has_operator_public(&self) -> bool {
        self.folder.join(OPERATOR_PUBLIC).exists()
    }

    /// The public half of the operator's key, as a PEM text.
    pub(crate) fn operator_public(&self) -> Result<String> {
        if !self.has_operator_public() {
            bail!(
                "{} lacks {OPERATOR_PUBLIC}, the public half of the operator's key\n  hint: `fleetwright operator-key export --state-dir {}` writes it, where operator.key is",
                self.folder.display(),
                self.folder.display()
            );
        }
        self.read(OPERATOR_PUBLIC)
    }

    /// The keys that may sign intents.
    pub(crate) fn operator_keys(&self) -> Result<TrustedKeys> {
        Ok(TrustedKeys::from_pems([self.operator_public()?.as_str()], INTENT_PURPOSE)?)
    }

    /// What generated values and digests of secrets are derived from.
    pub(crate) fn values_key(&self) -> Result<[u8; 32]> {
        Ok(blake3::derive_key(
            "fleetwright 2026 generated values and digests of secrets",
            self.read("values.key")?.as_bytes(),
        ))
    }

    /// What tokens of stateless resets are derived from.
    pub(crate) fn reset_key(&self) -> Result<[u8; 32]> {
        Ok(blake3::derive_key("fleetwright 2026 stateless resets", self.read("coordinator.key")?.as_bytes()))
    }

    /// Takes the lock of the coordinator; it holds the number of this process.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(self.lock_file())?;
        // Whoever looks whether a coordinator lives takes the lock for a moment, so one refusal proves nothing.
        let deadline = Instant::now() + LOCK_PATIENCE;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            bail!(
                "another coordinator works on {}\n  hint: stop it first, or give this one another --state-dir",
                self.folder.display()
            );
        }
        file.set_len(0)?;
        write!(file, "{}", std::process::id())?;
        Ok(file)
    }
}

/// The process that holds a lock file, if one does.
pub(crate) fn lock_holder(lock: &Path) -> Option<i32> {
    let file = OpenOptions::new().read(true).write(true).open(lock).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return None;
    }
    fs::read_to_string(lock).ok()?.trim().parse().ok()
}
/// Leaves of the permissions of a file or folder what is in `mask`.
fn lessen(path: &Path, mask: u32) -> std::io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_symlink() || mode & !mask == 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode & mask))
}
