//! Values of secrets: looked up when a plan is made or a release is sent, and never written down. A digest keyed with the
//! fleet's own key stands for a value wherever only a change of it matters.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::planning::{GENERATED_DIGEST, secret_key};
use fleetwright_deploy::release::{
    MissingSecret, Registry, Release, SecretKey, SecretSource, UnboundSecret, is_secret_name,
};
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::command::SentSecret;
use rustix::process::{Pid, Signal, kill_process_group};

/// Characters that generated values are drawn from: none needs quoting in a shell, a URL or YAML.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// How long a program may take to print a value.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest value, in bytes.
const VALUE_BYTES_MAX: u64 = 64 * 1024;
/// The file with the identities that open what is encrypted with age.
const IDENTITIES: &str = "age.key";

pub(crate) struct Secrets {
    folder: PathBuf,
    key: [u8; 32],
    /// What was looked up last where that takes long, by source. Only ever in memory.
    found: Mutex<HashMap<String, String>>,
    /// One value is looked up at a time: a thousand hosts need not mean a thousand programs.
    looking: Mutex<()>,
}

impl Secrets {
    pub(crate) fn new(folder: PathBuf, key: [u8; 32]) -> Self {
        Self { folder, key, found: Mutex::default(), looking: Mutex::default() }
    }

    /// The values that a release names, each with what its host checks it by. Those that take long to look up must have
    /// been looked up before.
    pub(crate) fn reveal(&self, release: &Release) -> Result<BTreeMap<String, SentSecret>, Failure> {
        let named = release.secrets.iter().map(|(name, secret)| {
            let declared = secret.declared_name(name);
            let value = self.value(declared, &secret.source).ok_or_else(|| missing(declared, &secret.source))?;
            let key = SecretKey::derive(&self.key, &secret.source);
            let message = match secret.check(name, &value, &key) {
                Ok(_) => return Ok((name.clone(), SentSecret { value, key })),
                Err(UnboundSecret::OtherValue(_)) => format!("secret `{declared}` has changed since the plan was made"),
                Err(why) => why.to_string(),
            };
            Err(Failure::new(FailureKind::ConfigurationError, "secrets", message).hint("plan and deploy again"))
        });
        named.collect()
    }

    /// The registry of a release's package, with the values put in that it names: for a client on this machine.
    pub(crate) fn of_registry(&self, release: &Release) -> Result<Option<Registry>, Failure> {
        let Some(registry) = release.package.registry() else { return Ok(None) };
        let mut values = BTreeMap::new();
        for name in registry.secrets() {
            let Some(used) = release.secrets.get(&name) else { continue };
            let declared = used.declared_name(&name);
            self.look_up(declared, &used.source)?;
            let value = self.value(declared, &used.source).ok_or_else(|| missing(declared, &used.source))?;
            values.insert(name, used.encode.map_or_else(|| value.clone(), |encode| encode.apply(&value)));
        }
        let wrong = |error: MissingSecret| Failure::new(FailureKind::ConfigurationError, "secrets", error.to_string());
        registry.revealed(&values).map(Some).map_err(wrong)
    }

    /// The secrets of a release that take long to look up, and have not been since the coordinator started.
    pub(crate) fn to_look_up(&self, release: &Release) -> Vec<(String, SecretSource)> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let lacking = release
            .secrets
            .iter()
            .filter(|(_, secret)| takes_long(&secret.source) && !found.contains_key(&secret_key(&secret.source)));
        lacking.map(|(name, secret)| (secret.declared_name(name).to_owned(), secret.source.clone())).collect()
    }

    /// Looks a value up that takes long and is not known yet, and remembers it.
    pub(crate) fn look_up(&self, name: &str, source: &SecretSource) -> Result<(), Failure> {
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.value(name, source).is_some() {
            return Ok(());
        }
        self.look_up_anew(name, source)
    }

    /// Looks a value up that takes long, and remembers it. What fails is logged, without the value.
    fn look_up_anew(&self, name: &str, source: &SecretSource) -> Result<(), Failure> {
        let looked_up = match source {
            SecretSource::Age { path } => self.decrypt(path),
            SecretSource::Command { command } => run(command),
            SecretSource::Named { .. } | SecretSource::File { .. } | SecretSource::Generated { .. } => return Ok(()),
        };
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match looked_up {
            Ok(value) => {
                found.insert(secret_key(source), value);
                Ok(())
            }
            Err(error) => {
                found.remove(&secret_key(source));
                tracing::warn!(secret = name, error = format!("{error:#}"), "a secret could not be looked up");
                Err(missing(name, source))
            }
        }
    }

    /// A digest that changes with the value; nothing when there is no value. May take long.
    pub(crate) fn digest(&self, name: &str, source: &SecretSource) -> Option<String> {
        if takes_long(source) {
            let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
            self.look_up_anew(name, source).ok()?;
        }
        Some(SecretKey::derive(&self.key, source).digest(&self.value(name, source)?))
    }

    /// The digest that versions before gave a value, once that is known.
    pub(crate) fn older_digest(&self, name: &str, source: &SecretSource) -> Option<String> {
        if matches!(source, SecretSource::Generated { .. }) {
            return Some(GENERATED_DIGEST.to_owned());
        }
        Some(self.digest_of(name, &self.value(name, source)?))
    }

    /// Whether there is no value but the stand-in that the environment names.
    pub(crate) fn is_stand_in(&self, name: &str, source: &SecretSource) -> bool {
        match source {
            SecretSource::Named { variable, fallback: Some(_) } => {
                std::env::var(variable).is_err() && self.file(name).is_none()
            }
            _ => false,
        }
    }

    /// When a value was written last that is in a file.
    pub(crate) fn written_at(&self, name: &str, source: &SecretSource) -> Option<Timestamp> {
        let path = match source {
            SecretSource::File { path } | SecretSource::Age { path } => path,
            SecretSource::Named { variable, .. } if std::env::var(variable).is_err() && is_secret_name(name) => name,
            SecretSource::Named { .. } | SecretSource::Command { .. } | SecretSource::Generated { .. } => return None,
        };
        let modified = std::fs::metadata(self.folder.join(path)).ok()?.modified().ok()?;
        let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(Timestamp::from_unix_ms(i64::try_from(since.as_millis()).ok()?))
    }

    fn digest_of(&self, name: &str, value: &str) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"digest\0").update(name.as_bytes()).update(b"\0").update(value.as_bytes());
        hasher.finalize().to_hex()[..32].to_owned()
    }

    fn value(&self, name: &str, source: &SecretSource) -> Option<String> {
        match source {
            SecretSource::Named { variable, fallback } => {
                std::env::var(variable).ok().or_else(|| self.file(name)).or_else(|| fallback.clone())
            }
            SecretSource::File { path } => read_value(std::fs::File::open(self.folder.join(path)).ok()?).ok(),
            SecretSource::Age { .. } | SecretSource::Command { .. } => {
                self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&secret_key(source)).cloned()
            }
            SecretSource::Generated { context, length } => Some(self.generated(context, *length)),
        }
    }

    fn decrypt(&self, path: &str) -> Result<String> {
        let identities = self.folder.join(IDENTITIES);
        let identities = age::IdentityFile::from_file(identities.display().to_string())
            .with_context(|| format!("{} cannot be read", identities.display()))?
            .into_identities()
            .context("the identities cannot be read")?;
        let path = self.folder.join(path);
        let file = std::fs::File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let decryptor =
            age::Decryptor::new_buffered(BufReader::new(age::armor::ArmoredReader::new(BufReader::new(file))))
                .with_context(|| format!("{} is not encrypted with age", path.display()))?;
        let content = decryptor
            .decrypt(identities.iter().map(|identity| identity.as_ref() as &dyn age::Identity))
            .with_context(|| format!("{} is not encrypted to an identity in {IDENTITIES}", path.display()))?;
        read_value(content).with_context(|| format!("{} cannot be read", path.display()))
    }

    /// Names come from configuration, so they are never taken for paths.
    fn file(&self, name: &str) -> Option<String> {
        if !is_secret_name(name) {
            return None;
        }
        let text = std::fs::read_to_string(self.folder.join(name)).ok()?;
        Some(text.strip_suffix('\n').map_or_else(|| text.clone(), str::to_owned))
    }

    fn generated(&self, context: &str, length: u32) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"generated\0").update(context.as_bytes());
        let mut bytes = vec![0; length as usize];
        hasher.finalize_xof().fill(&mut bytes);
        bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 64)])).collect()
    }
}

fn missing(name: &str, source: &SecretSource) -> Failure {
    Failure::new(FailureKind::ConfigurationError, "secrets", format!("secret `{name}` has no value"))
        .hint(source.remedy(name))
}

/// Whether somebody should wait for it beside everything else.
fn takes_long(source: &SecretSource) -> bool {
    matches!(source, SecretSource::Age { .. } | SecretSource::Command { .. })
}

/// A value without the line break that editors and programs end it with.
fn read_value(from: impl Read) -> Result<String> {
    let mut text = String::new();
    from.take(VALUE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > VALUE_BYTES_MAX {
        bail!("the value has more than {} KiB", VALUE_BYTES_MAX >> 10);
    }
    Ok(text.strip_suffix('\n').map_or_else(|| text.clone(), str::to_owned))
}

/// What a program prints. Its standard error may say why it failed, and goes to the log; the value does not.
fn run(command: &[String]) -> Result<String> {
    let (program, arguments) = command.split_first().context("the command is empty")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("`{program}` could not be started"))?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // What it leaves behind would keep its output open, and everybody waiting.
    let end_all = || group.map(|group| kill_process_group(group, Signal::KILL));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let value = std::thread::spawn(move || stdout.map(read_value));
    let said = std::thread::spawn(move || {
        let mut said = Vec::new();
        stderr.map(|stderr| stderr.take(4 * 1024).read_to_end(&mut said));
        String::from_utf8_lossy(&said).into_owned()
    });
    let (ended, end) = mpsc::sync_channel(1);
    // It ends with the program, which is killed where nobody waits for it any more.
    std::thread::spawn(move || ended.send(child.wait()));
    let outcome = end.recv_timeout(COMMAND_TIMEOUT);
    end_all();
    let Ok(status) = outcome else {
        bail!("`{program}` has not ended within {} s", COMMAND_TIMEOUT.as_secs());
    };
    let status = status?;
    if !status.success() {
        bail!("`{program}` failed with {status}: {}", said.join().unwrap_or_default().trim());
    }
    let value = value.join().ok().flatten().context("nothing was printed")??;
    if value.is_empty() { bail!("`{program}` printed nothing") } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(folder: &std::path::Path) -> Secrets {
        Secrets::new(folder.to_owned(), [7; 32])
    }

    #[test]
    fn a_generated_value_stays_the_same_and_differs_by_what_it_is_for() {
        let folder = tempfile::tempdir().expect("folder");
        let generated = |context: &str| {
            let source = SecretSource::Generated { context: context.to_owned(), length: 32 };
            secrets(folder.path()).value("x", &source).expect("value")
        };
        assert_eq!(generated("development/db/password"), generated("development/db/password"));
        assert_ne!(generated("development/db/password"), generated("production/db/password"));
        assert_eq!(generated("a").len(), 32);
    }

    #[test]
    fn a_value_is_read_from_its_file_and_a_name_is_never_a_path() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("api_key"), "s3cret\n").expect("write");
        std::fs::write(folder.path().parent().expect("parent").join("outside"), "no").ok();
        let source = SecretSource::Named { variable: "FLEETWRIGHT_TEST_UNSET".to_owned(), fallback: None };
        assert_eq!(secrets(folder.path()).value("api_key", &source).as_deref(), Some("s3cret"));
        assert_eq!(secrets(folder.path()).value("../outside", &source), None);
        let with =
            SecretSource::Named { variable: "FLEETWRIGHT_TEST_UNSET".to_owned(), fallback: Some("demo".to_owned()) };
        assert!(!secrets(folder.path()).is_stand_in("api_key", &with), "its file has a value");
        assert!(secrets(folder.path()).is_stand_in("another", &with));
        assert!(!secrets(folder.path()).is_stand_in("another", &source), "it has no value at all");
        let digest = secrets(folder.path()).digest("api_key", &source).expect("digest");
        assert!(!digest.contains("s3cret"));
        std::fs::write(folder.path().join("api_key"), "rotated\n").expect("write");
        assert_ne!(secrets(folder.path()).digest("api_key", &source), Some(digest));
    }

    #[test]
    fn a_program_and_an_encrypted_file_give_values_that_are_remembered_until_the_next_plan() {
        let folder = tempfile::tempdir().expect("folder");
        let secrets = secrets(folder.path());
        let count = folder.path().join("count");
        let script = format!("echo x >> {}; wc -l < {0}", count.display());
        let command = |script: &str| SecretSource::Command { command: vec!["sh".into(), "-c".into(), script.into()] };
        let source = command(&script);
        assert_eq!(secrets.value("a", &source), None, "nothing is run while somebody waits");
        let first = secrets.digest("a", &source).expect("digest");
        assert_eq!(secrets.value("a", &source).as_deref(), Some("1"));
        secrets.look_up("a", &source).expect("it is known");
        assert_eq!(secrets.value("a", &source).as_deref(), Some("1"));
        assert_ne!(secrets.digest("a", &source), Some(first), "a new plan looks again");
        secrets.digest("a", &command("sleep 1000 & echo x")).expect("what is left behind holds nobody up");
        for fails in ["exit 3", "true", "head -c 70000 /dev/zero | tr '\\0' x"] {
            assert_eq!(secrets.digest("a", &command(fails)), None, "{fails}");
        }

        let identity = age::x25519::Identity::generate();
        use age::secrecy::ExposeSecret;
        std::fs::write(folder.path().join(IDENTITIES), identity.to_string().expose_secret()).expect("write");
        let sealed = age::encrypt_and_armor(&identity.to_public(), b"from-age\n").expect("encrypted");
        std::fs::write(folder.path().join("db.age"), sealed).expect("write");
        let source = SecretSource::Age { path: "db.age".to_owned() };
        secrets.digest("b", &source).expect("digest");
        assert_eq!(secrets.value("b", &source).as_deref(), Some("from-age"));
        let other = age::encrypt(&age::x25519::Identity::generate().to_public(), b"no").expect("encrypted");
        std::fs::write(folder.path().join("other.age"), other).expect("write");
        let failure = secrets.look_up("c", &SecretSource::Age { path: "other.age".to_owned() }).expect_err("refused");
        assert!(failure.to_string().contains("has no value"), "{failure}");
    }

    #[test]
    fn a_value_that_changed_after_the_plan_is_not_sent() {
        let folder = tempfile::tempdir().expect("folder");
        let secrets = secrets(folder.path());
        let file = folder.path().join("key");
        std::fs::write(&file, "one").expect("write");
        let source = SecretSource::File { path: "key".to_owned() };
        let digest = secrets.digest("key", &source);
        let mut release = Release::plain("time".parse().expect("name"), vec!["true".to_owned()]);
        release
            .secrets
            .insert("key".to_owned(), fleetwright_deploy::release::SecretUse { source, digest, encode: None });
        assert_eq!(secrets.reveal(&release).expect("values")["key"].value, "one");
        std::fs::write(&file, "two").expect("write");
        let failure = secrets.reveal(&release).expect_err("refused");
        assert!(failure.message.contains("has changed since the plan was made"), "{failure}");
    }
}
