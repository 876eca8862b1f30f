//! Tools that not every machine has. A test that lacks one says so and is skipped; with `FLEETWRIGHT_REQUIRE=all`
//! it fails.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Something that a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Root.
    Root,
    /// Python 3 with venv.
    Python,
    /// Packages from PyPI.
    Pypi,
    /// npm, and packages from its registry.
    Npm,
    /// Root, and everything that machines with a real systemd need: systemd-nspawn, debootstrap, network namespaces, and
    /// cargo-deb for the package that is installed on them.
    Machines,
    /// Root, and a container engine that can be started in a network namespace, with Compose.
    Engine,
    /// A registry of images, docker-registry.
    Registry,
    /// SQLite's command.
    Sqlite,
    /// PostgreSQL's programs, and the right to run them as nobody.
    Postgresql,
    /// The right to mount a small disk in memory.
    Mount,
    /// The proxy nginx.
    Nginx,
    /// The proxy HAProxy.
    Haproxy,
    /// A browser without a screen.
    Chromium,
}

/// Whether all these are there. If not, says what is missing, or panics where everything is required.
pub fn have(tools: &[Tool]) -> bool {
    let Some(missing) = tools.iter().find(|tool| !is_there(**tool)) else { return true };
    let text = format!("{missing:?} is missing on this machine");
    assert!(std::env::var("FLEETWRIGHT_REQUIRE").as_deref() != Ok("all"), "{text}, and FLEETWRIGHT_REQUIRE=all is set");
    eprintln!("SKIPPED: {text}");
    false
}

fn is_there(tool: Tool) -> bool {
    static PYTHON: OnceLock<bool> = OnceLock::new();
    static PYPI: OnceLock<bool> = OnceLock::new();
    static NPM: OnceLock<bool> = OnceLock::new();
    match tool {
        Tool::Root => rustix::process::geteuid().is_root(),
        Tool::Python => *PYTHON.get_or_init(|| succeeds("python3", &["-c", "import venv, ensurepip"])),
        Tool::Pypi => *PYPI.get_or_init(|| {
            let folder = std::env::temp_dir().join(format!("fleetwright-pypi-{}", std::process::id()));
            let path = folder.to_string_lossy().into_owned();
            let found = succeeds(
                "python3",
                &["-m", "pip", "download", "--quiet", "--no-deps", "--dest", &path, "mcp-server-time==2026.10.19"],
            );
            let _ = std::fs::remove_dir_all(folder);
            found
        }),
        Tool::Machines => {
            rustix::process::geteuid().is_root()
                && succeeds("systemd-nspawn", &["--version"])
                && succeeds("sh", &["-c", "command -v debootstrap && command -v nsenter && ip netns list"])
                && succeeds("cargo", &["deb", "--version"])
        }
        Tool::Engine => {
            rustix::process::geteuid().is_root()
                && succeeds("sh", &["-c", "command -v dockerd && command -v debootstrap && ip netns list"])
                && succeeds("docker-compose", &["version"])
        }
        Tool::Registry => succeeds("docker-registry", &["--version"]),
        Tool::Sqlite => succeeds("sqlite3", &["--version"]),
        Tool::Postgresql => {
            postgresql_programs().is_some()
                && succeeds("setpriv", &["--reuid=nobody", "--clear-groups", "--regid=nogroup", "true"])
        }
        Tool::Mount => {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().to_string_lossy().into_owned();
            succeeds("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", &path]) && succeeds("umount", &[&path])
        }
        Tool::Nginx => succeeds("nginx", &["-v"]),
        Tool::Haproxy => succeeds("haproxy", &["-v"]),
        Tool::Chromium => succeeds("chromium", &["--version"]),
        Tool::Npm => *NPM.get_or_init(|| succeeds("npm", &["view", "kubernetes-mcp-server@0.0.67", "version"])),
    }
}

/// The folder with PostgreSQL's programs: Debian keeps them off the search path.
pub fn postgresql_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    folders.into_iter().rev().find(|folder| folder.join("initdb").exists() && folder.join("psql").exists())
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
