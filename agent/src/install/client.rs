//! Package clients: pip and npm, with whatever they start. Each install runs as a user of the host that owns nothing and
//! is nobody else's meanwhile, with a folder for what it installs and one for what it throws away. When it is done,
//! whatever it has left running is ended, and what it has installed becomes root's. What it may use has bounds
//! ([`bounds`]).

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_registries::Door;
use rustix::process::Signal;
use tokio::io::AsyncRead;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::bounds::{self, BOUNDS, Kept, Watch};
use super::taken::take_over;
use super::user::{InstallUser, LEFTOVER_POLL, LEFTOVER_TIMEOUT, end_all_of};
use super::{STEP, file_failure, told, write};
use crate::aside::aside;
use crate::confine::{self, Profile};
use crate::layout::ReleaseLayout;
use crate::process::{KillGroup, Process, kill_group};
use crate::stage::remove_folder;
use crate::supervise::inherited_path;

/// How long one call of a package client may take.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long the output of a client may stay open once it has ended: something that it has left may hold it.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(5);
/// What package clients get of the agent's own environment, by how its name begins, whatever its case.
const SETTINGS: [&str; 13] = [
    "all_proxy",
    "ca_bundle",
    "curl_ca_",
    "http_proxy",
    "https_proxy",
    "lang",
    "lc_all",
    "no_proxy",
    "node_extra_ca_",
    "npm_config_",
    "pip_",
    "requests_ca_",
    "ssl_cert_",
];
/// Settings of clients that name places which an install has of its own.
const PLACES: [&str; 4] = ["npm_config_cache", "npm_config_prefix", "npm_config_userconfig", "pip_cache_dir"];
/// Settings of the agent's user, with which it reaches registries.
const SETTINGS_FILES: [&str; 4] = [".npmrc", ".netrc", ".config/pip/pip.conf", ".pip/pip.conf"];

/// The clients of one install.
pub(super) struct Client {
    user: Option<InstallUser>,
    app: PathBuf,
    scratch: PathBuf,
    installer: PathBuf,
    /// The way to the registry that everything comes from, where it is not the one that the host is set to.
    door: Option<Door>,
    /// The interpreter of the host's that what is installed runs in.
    interpreter: Option<PathBuf>,
}

impl Client {
    /// Makes an empty `app` with these files, and what an install needs besides. While a client is at work, `installer`
    /// names its process.
    pub(super) async fn prepare(
        layout: &ReleaseLayout,
        installer: &Path,
        files: &[(&str, &str)],
        door: Option<Door>,
    ) -> Result<Self, Failure> {
        let (app, scratch) = (layout.app(), layout.scratch());
        let user = InstallUser::take().await?;
        if let (Some(user), Some(door)) = (&user, &door) {
            door.only_for(user.identity.uid);
        }
        remove_folder(&scratch)?;
        for folder in [&app, &scratch] {
            fs::create_dir_all(folder).map_err(|error| file_failure(folder, &error))?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
                .map_err(|error| file_failure(folder, &error))?;
        }
        let client = Self { user, app, scratch, installer: installer.to_owned(), door, interpreter: None };
        for (name, content) in files {
            client.put(&client.app.join(name), content)?;
        }
        client.settings()?;
        for folder in [&client.app, &client.scratch] {
            client.own(folder)?;
        }
        Ok(client)
    }

    /// What is run from now on runs in this interpreter of the host's, through links of the install's own.
    pub(super) fn in_interpreter(mut self, program: &Path) -> Self {
        self.interpreter = Some(program.to_owned());
        self
    }

    /// What is thrown away once the install is done.
    pub(super) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Writes a file for a client to read. Nothing of a package has run by then.
    pub(super) fn give(&self, name: &str, content: &str) -> Result<(), Failure> {
        self.put(&self.scratch.join(name), content)
    }

    fn put(&self, path: &Path, content: &str) -> Result<(), Failure> {
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder).map_err(|error| file_failure(folder, &error))?;
        write(path, content.as_bytes())?;
        self.own(folder)?;
        self.own(path)
    }

    fn own(&self, path: &Path) -> Result<(), Failure> {
        let Some(user) = &self.user else { return Ok(()) };
        let (uid, gid) = (user.identity.uid, user.identity.gid);
        lchown(path, Some(uid), Some(gid)).map_err(|error| file_failure(path, &error))
    }

    /// How the agent's user reaches registries; nothing of that where there is a door to the one registry.
    fn settings(&self) -> Result<(), Failure> {
        if self.door.is_some() {
            return Ok(());
        }
        let Some(home) = std::env::var_os("HOME").map(PathBuf::from) else { return Ok(()) };
        for name in SETTINGS_FILES {
            let Ok(content) = fs::read_to_string(home.join(name)) else { continue };
            let path = self.scratch.join(name);
            self.put(&path, &content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
                .map_err(|error| file_failure(&path, &error))?;
            for folder in path.ancestors().skip(1).take_while(|folder| *folder != self.scratch) {
                self.own(folder)?;
            }
        }
        Ok(())
    }

    /// Moves a file that root has fetched to where clients may read it.
    pub(super) fn take_in(&self, file: &Path) -> Result<PathBuf, Failure> {
        let to = self.scratch.join(file.file_name().unwrap_or_default());
        fs::rename(file, &to).map_err(|error| file_failure(file, &error))?;
        self.own(&to)?;
        Ok(to)
    }

    /// The door to the package's registry, where it is not the one that the host is set to.
    pub(super) fn door(&self) -> Option<&Door> {
        self.door.as_ref()
    }

    /// Runs a client to its end, and gives its standard output.
    pub(super) async fn run(&self, words: &[String], what: &str) -> Result<String, Failure> {
        let output = self.output(words, what).await?;
        self.judge(output, what)
    }

    /// The standard output of a client that has come through; else what went wrong.
    pub(super) fn judge(&self, output: Output, what: &str) -> Result<String, Failure> {
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let lines = told::lines(&self.door.as_ref().map_or_else(|| text.to_string(), |door| door.cleaned(&text)));
        let ran_out = self.user.as_ref().is_some_and(InstallUser::ran_out_of_memory);
        let failure = if ran_out || told::is_want_of_memory(&lines) {
            self.watch().too_much_memory()
        } else {
            let message = format!("`{what}` failed with {}", output.status);
            Failure::new(FailureKind::DeploymentError, STEP, message).hint("see its output")
        };
        Err(failure.output(lines.iter().map(String::as_str)))
    }

    fn watch(&self) -> Watch {
        let group = self.user.as_ref().and_then(|user| user.group.as_ref());
        Watch {
            bounds: BOUNDS,
            uid: self.user.as_ref().map(|user| user.identity.uid),
            counted: group.is_some(),
            folders: vec![self.app.clone(), self.scratch.clone()],
        }
    }

    /// Runs a client to its end, and gives how it ended and what it said.
    pub(super) async fn output(&self, words: &[String], what: &str) -> Result<Output, Failure> {
        let program = words.first().map_or("", String::as_str);
        let path = inherited_path();
        confine::find(program, &path).map_err(|error| not_started(what, &error))?;
        let profile =
            Profile::installer(self.user.as_ref().map(|user| user.identity.clone()), &self.app, &self.scratch);
        let group = self.user.as_ref().and_then(|user| user.group.as_ref());
        let groups = group.map(|group| group.folders().to_vec()).unwrap_or_default();
        let profile = profile.within(BOUNDS.memory_bytes, BOUNDS.tasks, groups);
        let programs = self.interpreter.iter().map(|program| program.display().to_string()).collect();
        let profile = profile.with_programs(programs);
        let mut command = profile.command(words, &path, None);
        command
            .envs(settings().filter(|(name, _)| self.door.is_none() || is_language(name)))
            .envs(self.door.as_ref().map(|door| door.settings(&self.scratch.join("no-settings"))).unwrap_or_default())
            .env("HOME", &self.scratch)
            .env("TMPDIR", &self.scratch)
            .env("npm_config_cache", self.scratch.join("npm"));
        to_end(&mut command, what, &self.installer, &self.watch()).await
    }

    /// Ends what clients have left running, throws away what is not kept, and makes the rest root's.
    pub(super) async fn finish(self) -> Result<(), Failure> {
        if let Some(user) = &self.user {
            end_all_of(user.identity.uid).await?;
        }
        let Self { user, app, scratch, .. } = self;
        aside(move || {
            remove_folder(&scratch)?;
            if let Some(user) = &user {
                bounds::remove_strays(user.identity.uid);
            }
            if let Some(user) = &user {
                take_over(&app, user.identity.uid).map_err(|error| file_failure(&app, &error))?;
            }
            Ok(())
        })
        .await
    }
}

/// The settings of package clients in the agent's own environment.
fn settings() -> impl Iterator<Item = (String, String)> {
    std::env::vars().filter(|(name, _)| is_setting(&name.to_ascii_lowercase()))
}

fn is_language(name: &str) -> bool {
    matches!(name.to_ascii_lowercase().as_str(), "lang" | "lc_all")
}

fn is_setting(name: &str) -> bool {
    !PLACES.contains(&name) && SETTINGS.iter().any(|setting| name.starts_with(setting))
}

/// Runs a client to its end, in a process group of its own, or until it uses more than it may. While it is at work,
/// `installer` names its process.
async fn to_end(command: &mut Command, what: &str, installer: &Path, watch: &Watch) -> Result<Output, Failure> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| not_started(what, &error))?;
    let _group = KillGroup::of(child.id());
    if let Some(process) = child.id().and_then(|pid| Process::find(i32::try_from(pid).ok()?)) {
        write(installer, &serde_json::to_vec(&process).unwrap_or_default())?;
    }
    let (stdout, stderr) = (reading(child.stdout.take()), reading(child.stderr.take()));
    let ended = tokio::select! {
        ended = timeout(CLIENT_TIMEOUT, child.wait()) => Ok(ended),
        failure = watch.exceeded() => Err(failure),
    };
    let _ = fs::remove_file(installer);
    let status = match ended? {
        Err(_) => {
            let message = format!("`{what}` did not end within {} s", CLIENT_TIMEOUT.as_secs());
            return Err(Failure::new(FailureKind::TimeoutError, STEP, message)
                .hint("check the host's connection to the registry"));
        }
        Ok(status) => status.map_err(|error| file_failure(Path::new(what), &error))?,
    };
    // What was written last is looked at as well: it may have ended before anybody did.
    let last = watch.clone();
    aside(move || last.look()).await?;
    let (stdout, stderr) = tokio::join!(text_of(stdout), text_of(stderr));
    Ok(Output { status, stdout, stderr })
}

/// An output that is read beside everything else, so that whoever writes it is never held up.
struct Reading {
    kept: Arc<Mutex<Kept>>,
    ended: JoinHandle<std::io::Result<()>>,
}

fn reading(from: Option<impl AsyncRead + Unpin + Send + 'static>) -> Option<Reading> {
    let kept = Arc::<Mutex<Kept>>::default();
    let to = kept.clone();
    from.map(|from| Reading { kept, ended: tokio::spawn(async move { bounds::keep(from, &to).await }) })
}

/// What was said, by an output that may stay open for somebody else.
async fn text_of(reading: Option<Reading>) -> Vec<u8> {
    let Some(mut reading) = reading else { return Vec::new() };
    if timeout(OUTPUT_TIMEOUT, &mut reading.ended).await.is_err() {
        reading.ended.abort();
    }
    reading.kept.lock().unwrap_or_else(PoisonError::into_inner).text()
}

fn not_started(what: &str, error: &std::io::Error) -> Failure {
    let message = format!("`{what}` could not be started: {error}");
    Failure::new(FailureKind::DependencyError, STEP, message).hint("install it on the host")
}

/// Ends a package client that an agent which was killed has left behind: two at work on one folder spoil it.
pub(crate) async fn end_leftover(installer: &Path) -> Result<(), Failure> {
    let left = fs::read(installer).ok().and_then(|bytes| serde_json::from_slice::<Process>(&bytes).ok());
    if let Some(left) = left.filter(|left| left.is_alive()) {
        kill_group(left.pid, Signal::KILL);
        let deadline = Instant::now() + LEFTOVER_TIMEOUT;
        while left.is_alive() {
            if Instant::now() > deadline {
                let message =
                    format!("package client {} of an earlier run does not end although it was killed", left.pid);
                return Err(Failure::new(FailureKind::TimeoutError, STEP, message)
                    .hint("look for what it waits for on the host, for example a disk"));
            }
            sleep(LEFTOVER_POLL).await;
        }
    }
    let _ = fs::remove_file(installer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_clients_are_passed_on_and_secrets_and_places_are_not() {
        for passed in ["pip_index_url", "npm_config_registry", "https_proxy", "ssl_cert_file"] {
            assert!(is_setting(passed), "{passed}");
        }
        for kept in ["aws_secret_access_key", "fleetwright_token", "npm_config_cache", "home", "path", "pip_cache_dir"]
        {
            assert!(!is_setting(kept), "{kept}");
        }
    }

    #[tokio::test]
    async fn what_a_client_leaves_running_does_not_hold_up_its_end() {
        let folder = tempfile::tempdir().expect("folder");
        let watch = Watch { bounds: BOUNDS, uid: None, counted: false, folders: vec![folder.path().to_owned()] };
        let mut client = Command::new("sh");
        client.args(["-c", "echo said; sleep 1000 & exit 3"]);
        let begun = Instant::now();
        let output = to_end(&mut client, "sh", &folder.path().join("installer"), &watch).await.expect("it ends");
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"said\n"[..]));
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_client_that_a_killed_agent_left_behind_is_ended_with_all_it_started() {
        let folder = tempfile::tempdir().expect("folder");
        let installer = folder.path().join("installer.json");
        let mut left = Command::new("sh");
        let mut left = left.args(["-c", "sleep 1000 & wait"]).process_group(0).spawn().expect("spawn");
        let process = Process::find(i32::try_from(left.id().expect("pid")).expect("pid")).expect("a process");
        fs::write(&installer, serde_json::to_vec(&process).expect("JSON")).expect("write");
        end_leftover(&installer).await.expect("it ends");
        assert!(!process.is_alive() && !installer.exists());
        left.wait().await.expect("wait");
        end_leftover(&installer).await.expect("nothing is left");
    }
}
