//! What this host has: found by asking the programs themselves, since a name on the search path proves nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fleetwright_deploy::host::{Facts, Version};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::runtime::systemd;
use crate::{confine, container};

/// How long one program may take to tell its version.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a program's answer.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;
/// Interpreters that are looked for on the search path.
const PYTHONS: [&str; 8] =
    ["python3", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10", "python3.9", "python"];

/// A Python interpreter that answered and can make virtual environments.
#[derive(Clone, Debug)]
pub(crate) struct Python {
    pub(crate) program: PathBuf,
    pub(crate) version: Version,
    /// Whether it is what this host calls `python3`.
    pub(crate) is_usual: bool,
}

/// Asks everything on this host. The disk is the one with the agent's state.
pub(crate) async fn gather(state_dir: &Path) -> Facts {
    let mut runtimes: BTreeMap<String, Vec<Version>> = BTreeMap::new();
    let pythons = pythons().await;
    if let Some(usual) = pythons.iter().find(|python| python.is_usual) {
        runtimes.insert("python3".to_owned(), vec![usual.version.clone()]);
    }
    let mut versions: Vec<Version> = pythons.into_iter().map(|python| python.version).collect();
    versions.sort();
    versions.dedup();
    if !versions.is_empty() {
        runtimes.insert("python".to_owned(), versions);
    }
    if let (Some(node), Some(_)) = (node().await, version_of("npm", &["--version"]).await) {
        runtimes.insert("node".to_owned(), vec![node]);
    }
    if let Some((engine, version)) = container::engine_version().await {
        runtimes.insert(engine.to_owned(), vec![version]);
    }
    if let Some(systemd) = systemd_version().await {
        runtimes.insert("systemd".to_owned(), vec![systemd]);
    }
    if let Some(landlock) = confine::landlock_version() {
        runtimes.insert("landlock".to_owned(), vec![Version::from([landlock])]);
    }
    let memory_bytes = sysinfo::System::new().map_or(0, |mut system| {
        system.refresh_memory();
        system.total_memory()
    });
    Facts {
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes,
        disk_bytes: rustix::fs::statvfs(state_dir).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize)),
        runtimes,
    }
}

/// Every usable Python interpreter, on the search path and among those that pyenv installed.
pub(crate) async fn pythons() -> Vec<Python> {
    let mut programs: Vec<PathBuf> = PYTHONS.iter().map(PathBuf::from).collect();
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv"));
    if let Some(root) = std::env::var_os("PYENV_ROOT").map(PathBuf::from).or(home) {
        let versions = std::fs::read_dir(root.join("versions")).into_iter().flatten().flatten();
        programs.extend(versions.map(|version| version.path().join("bin/python3")));
    }
    let mut found: Vec<Python> = Vec::new();
    for program in programs {
        if let Some(python) = ask_python(&program).await
            && !found.iter().any(|other| other.program == python.program)
        {
            found.push(python);
        }
    }
    found
}

async fn ask_python(program: &Path) -> Option<Python> {
    const QUESTION: &str =
        "import sys, venv, ensurepip; print(sys.executable); print('.'.join(map(str, sys.version_info[:3])))";
    let text = ask(program, &["-I", "-c", QUESTION]).await?;
    let (executable, version) = text.trim().split_once('\n')?;
    let (executable, is_usual) = (PathBuf::from(executable), program == Path::new(PYTHONS[0]));
    Some(Python { program: executable, version: Version::try_from(version.to_owned()).ok()?, is_usual })
}

/// The version of this host's Node.
pub(crate) async fn node() -> Option<Version> {
    version_of("node", &["--version"]).await
}

async fn version_of(program: &str, arguments: &[&str]) -> Option<Version> {
    let text = ask(Path::new(program), arguments).await?;
    numbers(text.trim().trim_start_matches('v'))
}

/// The version of the host's systemd, where servers may be units of it.
async fn systemd_version() -> Option<Version> {
    if !systemd::is_there() {
        return None;
    }
    let text = ask(Path::new("systemctl"), &["--version"]).await?;
    numbers(text.strip_prefix("systemd ")?)
}

fn numbers(text: &str) -> Option<Version> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    Version::try_from(text[..end].trim_end_matches('.').to_owned()).ok()
}

async fn ask(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().ok()?;
    let stdout = child.stdout.take()?;
    let asking = async {
        let mut text = Vec::new();
        stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut text).await.ok()?;
        // A program that has more to say finds nobody who listens.
        child.wait().await.ok()?.success().then(|| String::from_utf8_lossy(&text).into_owned())
    };
    tokio::time::timeout(PROBE_TIMEOUT, asking).await.ok()?
}
