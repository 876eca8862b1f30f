//! Asking: which programs there are to ask, what is asked of each, and how its answer is read.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fleetwright_deploy::host::Version;
use rustix::fs::{Access, access};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Command;

use super::kept::{Answer, Kept, Said, Stamp};
use super::{PATIENCE, RETRY_PAUSE_MAX};
use crate::container;
use crate::process::KillGroup;
use crate::runtime::systemd;

/// What this host calls its Python.
pub(super) const USUAL: &str = "python3";
/// What the container engine is kept under: it is asked over its socket.
pub(super) const ENGINE: &str = "engine";
/// Interpreters that are looked for on the search path.
const PYTHONS: [&str; 8] =
    [USUAL, "python3.14", "python3.13", "python3.12", "python3.11", "python3.10", "python3.9", "python"];
/// Most bytes of a program's answer.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;
/// What an interpreter is asked.
const QUESTION: &str =
    "import sys, venv, ensurepip; print(sys.executable); print('.'.join(map(str, sys.version_info[:3])))";

/// Something that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// An interpreter: a name on the search path, or a program.
    Python(PathBuf),
    Node,
    Npm,
    Systemd,
    Engine,
}

/// What became of asking.
pub(super) enum Told {
    /// It has answered.
    Said(Said),
    /// It could not be asked, or was ended before it had answered: nothing follows from that.
    Unknown(String),
}

impl Probe {
    /// What it is kept under.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Python(program) => program.display().to_string(),
            Self::Node => "node".to_owned(),
            Self::Npm => "npm".to_owned(),
            Self::Systemd => "systemctl".to_owned(),
            Self::Engine => ENGINE.to_owned(),
        }
    }

    /// The runtimes that are not known while what is kept under this key has not answered.
    pub(super) fn runtimes_of(key: &str) -> &'static [&'static str] {
        match key {
            "node" | "npm" => &["node"],
            "systemctl" => &["systemd"],
            ENGINE => &["docker", "podman"],
            USUAL => &["python", "python3"],
            _ => &["python"],
        }
    }
}

/// Where programs are looked for, and how long they may take.
#[derive(Clone, Debug)]
pub(super) struct Search {
    pub(super) path: OsString,
    /// Where pyenv keeps its interpreters.
    pub(super) pyenv: Option<PathBuf>,
    /// Whether the host's systemd and its container engine are asked, which are not found by the path.
    pub(super) engines: bool,
    pub(super) patience: Duration,
    pub(super) retry_pause_max: Duration,
}

/// A probe, the files that it would ask now (none where there is nothing to ask), and the answer that still counts.
type Looked = (Probe, Option<Vec<Stamp>>, Option<Answer>);

impl Search {
    pub(super) fn of_this_host() -> Self {
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv"));
        let pyenv = std::env::var_os("PYENV_ROOT").map(PathBuf::from).or(home);
        Self {
            path: std::env::var_os("PATH").unwrap_or_default(),
            pyenv: pyenv.map(|root| root.join("versions")),
            engines: true,
            patience: PATIENCE,
            retry_pause_max: RETRY_PAUSE_MAX,
        }
    }

    /// Whether there is nothing to ask: all that was answered still counts, and nothing has come that could be asked.
    pub(super) fn is_settled(&self, kept: &Kept, silent: impl Fn(&str, &[Stamp]) -> bool) -> bool {
        let looked = self.look(kept);
        let keys: BTreeSet<String> = looked.iter().map(|(probe, ..)| probe.key()).collect();
        let settled = |(probe, stamps, answer): &Looked| match (stamps, answer) {
            (_, Some(_)) => true,
            (None, None) => !kept.answers.contains_key(&probe.key()),
            (Some(stamps), None) => silent(&probe.key(), stamps),
        };
        looked.iter().all(settled) && kept.answers.keys().all(|key| keys.contains(key))
    }

    /// Looks at what there is to ask, and which answers still count. Starts nothing.
    pub(super) fn look(&self, kept: &Kept) -> Vec<Looked> {
        let looked = self.probes().into_iter().map(|probe| {
            let stamps = self.stamps(&probe);
            let answer = kept.answers.get(&probe.key());
            let counts = |answer: &&Answer| stamps.as_ref().is_some_and(|stamps| answer.is_of(stamps));
            let answer = answer.filter(counts).cloned();
            (probe, stamps, answer)
        });
        looked.collect()
    }

    fn probes(&self) -> Vec<Probe> {
        let mut probes: Vec<Probe> = PYTHONS.iter().map(|name| Probe::Python(PathBuf::from(name))).collect();
        let versions = self.pyenv.iter().filter_map(|versions| std::fs::read_dir(versions).ok()).flatten().flatten();
        let mut versions: Vec<PathBuf> = versions.map(|version| version.path().join("bin/python3")).collect();
        versions.sort();
        probes.extend(versions.into_iter().map(Probe::Python));
        probes.extend([Probe::Node, Probe::Npm]);
        if self.engines {
            probes.extend([Probe::Systemd, Probe::Engine]);
        }
        probes
    }

    /// The files that an answer would be of, the program first; nothing where there is none.
    fn stamps(&self, probe: &Probe) -> Option<Vec<Stamp>> {
        let program = |name: &Path| Stamp::of(&self.resolve(name)?);
        match probe {
            Probe::Python(name) => Some(vec![program(name)?]),
            Probe::Node => Some(vec![program(Path::new("node"))?]),
            // It is a program of Node's.
            Probe::Npm => Some(vec![program(Path::new("npm"))?, program(Path::new("node"))?]),
            Probe::Systemd if systemd::is_there() => Some(vec![program(Path::new("systemctl"))?]),
            Probe::Systemd => None,
            Probe::Engine => {
                container::socket().map(|socket| socket.iter().filter_map(|path| Stamp::of(path)).collect())
            }
        }
    }

    /// The program that a name on the search path leads to.
    fn resolve(&self, name: &Path) -> Option<PathBuf> {
        // What this process may not run is passed over, as by whoever runs it by its name.
        let is_program = |path: &PathBuf| {
            std::fs::metadata(path).is_ok_and(|found| found.is_file()) && access(path, Access::EXEC_OK).is_ok()
        };
        if name.components().count() > 1 {
            return Some(name.to_owned()).filter(is_program);
        }
        std::env::split_paths(&self.path).map(|folder| folder.join(name)).find(is_program)
    }

    /// Asks one of them. `of` is what was found of it.
    pub(super) async fn ask(&self, probe: &Probe, of: &[Stamp]) -> Told {
        let Some(program) = of.first().map(|stamp| stamp.path.as_path()) else { return self.ask_engine().await };
        match probe {
            Probe::Engine => self.ask_engine().await,
            Probe::Python(_) => self.run(program, &["-I", "-c", QUESTION], python).await,
            Probe::Node | Probe::Npm => {
                let version = |text: &str| numbers(text.trim().trim_start_matches('v')).map(Said::Version);
                self.run(program, &["--version"], version).await
            }
            Probe::Systemd => {
                let version = |text: &str| numbers(text.strip_prefix("systemd ")?).map(Said::Version);
                self.run(program, &["--version"], version).await
            }
        }
    }

    async fn ask_engine(&self) -> Told {
        // Where nobody listens, or nobody is let in, there is no engine. One that is started later is asked then.
        for socket in container::socket().into_iter().flatten() {
            match UnixStream::connect(&socket).await {
                Err(error) if is_of_nobody(&error) => return Told::Said(Said::Nothing),
                Ok(_) | Err(_) => {}
            }
        }
        match container::engine_version().await {
            Ok((name, version)) => Told::Said(Said::Engine { name: name.to_owned(), version }),
            Err(why) => Told::Unknown(why),
        }
    }

    async fn run(&self, program: &Path, arguments: &[&str], read: impl FnOnce(&str) -> Option<Said>) -> Told {
        let mut command = Command::new(program);
        command.args(arguments).env("PATH", &self.path).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if is_of_no_use(&error) => return Told::Said(Said::Nothing),
            Err(error) => return Told::Unknown(error.to_string()),
        };
        // What it has started goes with it, also when it is no longer waited for.
        let _group = KillGroup::of(child.id());
        let Some(stdout) = child.stdout.take() else { return Told::Unknown("its output cannot be read".to_owned()) };
        let mut text = Vec::new();
        // A program that has more to say finds nobody who listens.
        if let Err(error) = stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut text).await {
            return Told::Unknown(error.to_string());
        }
        match child.wait().await {
            Ok(status) if status.success() => {
                Told::Said(read(&String::from_utf8_lossy(&text)).unwrap_or(Said::Nothing))
            }
            Ok(status) => match status.signal() {
                Some(signal) => Told::Unknown(format!("it was ended by signal {signal}")),
                None => Told::Said(Said::Nothing),
            },
            Err(error) => Told::Unknown(error.to_string()),
        }
    }
}

/// Whether nobody can be reached at a socket.
fn is_of_nobody(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::NotFound | Kind::NotADirectory | Kind::ConnectionRefused | Kind::PermissionDenied)
}

/// Whether an error says that a file is no program that can run here, whenever it is tried.
fn is_of_no_use(error: &io::Error) -> bool {
    let of_no_use = [libc::ENOENT, libc::ENOTDIR, libc::EACCES, libc::ENOEXEC, libc::ELOOP];
    error.raw_os_error().is_some_and(|number| of_no_use.contains(&number))
}

fn python(text: &str) -> Option<Said> {
    let (program, version) = text.trim().split_once('\n')?;
    Some(Said::Python { program: PathBuf::from(program), version: Version::try_from(version.to_owned()).ok()? })
}

fn numbers(text: &str) -> Option<Version> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    Version::try_from(text[..end].trim_end_matches('.').to_owned()).ok()
}
