//! What this host has: found by asking the programs themselves, since a name on the search path proves nothing.
//!
//! Asking is dear, so it is done once, in the background, and what was answered is kept on the disk. It counts for as long
//! as the search path leads to the same program (`kept`). What has not answered is unknown and never absent; it is asked
//! again, later and with more patience.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::host::{Facts, Requirement, Version};
use futures_util::{StreamExt, stream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use self::kept::{Answer, Kept, Said, Stamp};
use self::probe::{Probe, Search, Told};
use crate::confine;

mod kept;
mod probe;

/// How long a program may take to answer, the first time and at most: each time that it did not answer it has twice as
/// long the next time.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_MAX: Duration = Duration::from_secs(60);
/// How many programs are asked at once.
const ASKED_AT_ONCE: usize = 2;
/// The pause between two looks at whether programs have changed, which ask nothing where none has.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// The pause before what has not answered is asked again, the first time and at most.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(600);

/// A Python interpreter that answered and can make virtual environments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Python {
    pub(crate) program: PathBuf,
    pub(crate) version: Version,
    /// Whether it is what this host calls `python3`.
    pub(crate) is_usual: bool,
}

/// What is asked though an answer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Anew {
    /// What has changed since.
    Changed,
    /// What has not answered as well, and an engine that was not there.
    Silent,
    /// And the container engine, which may be another behind the same socket, and what has said no: what it lacks may have
    /// come beside it.
    Engine,
    /// Everything.
    All,
}

/// What is known of this host.
pub(crate) struct Known {
    search: Search,
    state_dir: PathBuf,
    file: PathBuf,
    now: Mutex<Now>,
    machine: OnceLock<Facts>,
    /// One looks at a time; whoever waits finds most of it answered.
    looking: tokio::sync::Mutex<()>,
    /// How often everything was asked anew: counted when that begins.
    refreshes: AtomicU64,
    wake: Notify,
    follows: AtomicBool,
    changed: watch::Sender<u64>,
}

/// What has been answered, and how often each of the others has not.
#[derive(Clone, Default)]
struct Now {
    kept: Kept,
    silent: BTreeMap<String, Silent>,
    /// Whether everything has been asked since the agent began, or before it did.
    asked: bool,
}

/// What has not answered: how often, and which files it was then.
#[derive(Clone, Default)]
struct Silent {
    times: u32,
    of: Vec<Stamp>,
}

impl Known {
    /// What was kept in this file, of the host with this state folder.
    pub(crate) fn new(state_dir: &Path, file: PathBuf) -> Arc<Self> {
        Self::by(Search::of_this_host(), state_dir, file)
    }

    fn by(search: Search, state_dir: &Path, file: PathBuf) -> Arc<Self> {
        let kept = Kept::read(&file);
        let (asked, kept) = (kept.is_some(), kept.unwrap_or_default());
        let silent = kept.silent.iter().map(|key| (key.clone(), Silent::default())).collect();
        let now = Mutex::new(Now { asked, kept, silent });
        Arc::new(Self {
            search,
            state_dir: state_dir.to_owned(),
            file,
            now,
            machine: OnceLock::new(),
            looking: tokio::sync::Mutex::default(),
            refreshes: AtomicU64::new(0),
            wake: Notify::new(),
            follows: AtomicBool::new(false),
            changed: watch::Sender::new(0),
        })
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says when what is known has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What is known, without asking anything.
    pub(crate) fn facts(&self) -> Facts {
        let now = self.now().clone();
        let mut facts = self.machine.get_or_init(machine).clone();
        facts.disk_bytes =
            rustix::fs::statvfs(&self.state_dir).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
        facts.runtimes.extend(now.runtimes());
        if now.asked {
            now.silent.keys().flat_map(|key| Probe::runtimes_of(key)).for_each(|runtime| facts.set_unknown(runtime));
        } else {
            facts.set_all_unknown();
        }
        facts
    }

    /// Looks from now on in the background: at once, again whenever this is called, and now and then.
    pub(crate) fn follow(self: &Arc<Self>) {
        if !self.follows.swap(true, Ordering::Relaxed) {
            tokio::spawn(follow(Arc::downgrade(self)));
        } else {
            self.wake.notify_one();
        }
    }

    /// Asks everything again, for a person who waits.
    pub(crate) async fn refresh(&self) -> Facts {
        self.look(Anew::All).await;
        self.facts()
    }

    /// Whether a look at what has changed would ask nothing. What is being asked again meanwhile is not waited for.
    async fn is_settled(&self) -> bool {
        let (search, Now { kept, silent, asked }) = (self.search.clone(), self.now().clone());
        let is_silent = move |key: &str, stamps: &[Stamp]| silent.get(key).is_some_and(|silent| silent.of == stamps);
        let settled = tokio::task::spawn_blocking(move || search.is_settled(&kept, is_silent)).await;
        asked && settled.unwrap_or(false)
    }

    /// Whether this host has what a release needs; a failure names what it lacks. Nothing is asked of which the answer is
    /// known; only before something is found to be lacking it is asked once more.
    pub(crate) async fn check(&self, needs: &[Requirement], step: &str) -> Result<(), Failure> {
        let unmet = |facts: &Facts| needs.iter().find(|needed| !needed.is_met_by(facts)).cloned();
        if needs.is_empty() {
            return Ok(());
        }
        self.look(Anew::Changed).await;
        if unmet(&self.facts()).is_none() {
            return Ok(());
        }
        self.look(Anew::All).await;
        let facts = self.facts();
        let Some(missing) = unmet(&facts) else { return Ok(()) };
        if missing.is_unknown_of(&facts) {
            return Err(unknown(&missing, step));
        }
        Err(Failure::new(FailureKind::DependencyError, step, format!("this host has no {missing}"))
            .hint("install it on the host, or place the server elsewhere"))
    }

    /// Every usable Python interpreter, on the search path and among those that pyenv installed.
    pub(crate) async fn pythons(&self) -> Vec<Python> {
        self.look(Anew::Changed).await;
        self.now().pythons()
    }

    /// The version of this host's Node, where it is known.
    pub(crate) async fn node(&self) -> Option<Version> {
        self.look(Anew::Changed).await;
        self.now().version("node")
    }

    /// Asks once more what has not answered where that may be the Python that this host calls its own: another one must not be
    /// taken in its place only because it was slow.
    pub(crate) async fn settle_python(&self, step: &str) -> Result<(), Failure> {
        self.look(Anew::Changed).await;
        if self.facts().is_unknown("python3") {
            self.look(Anew::Silent).await;
        }
        if self.facts().is_unknown("python3") {
            let python = Requirement::Runtime { name: "python3".to_owned(), at_least: None };
            return Err(unknown(&python, step));
        }
        Ok(())
    }

    /// A failure for want of an interpreter, unless one that has not answered may be what is wanted.
    pub(crate) fn lacks_python(&self, lacking: Failure) -> Failure {
        let python = Requirement::Runtime { name: "python".to_owned(), at_least: None };
        match self.facts().is_unknown("python") {
            true => unknown(&python, &lacking.step),
            false => lacking,
        }
    }

    /// Asks what has to be asked, keeps what is answered, and says so where that changes anything.
    async fn look(&self, anew: Anew) {
        if anew == Anew::Changed && self.is_settled().await {
            return;
        }
        let begun = self.refreshes.load(Ordering::Relaxed);
        let _alone = self.looking.lock().await;
        if anew == Anew::All {
            // Somebody else has had everything asked since: once is enough for all who waited.
            if self.refreshes.load(Ordering::Relaxed) > begun {
                return;
            }
            self.refreshes.fetch_add(1, Ordering::Relaxed);
        }
        let before = self.facts();
        let (search, Now { kept, silent, .. }) = (self.search.clone(), self.now().clone());
        // A search path may lead to a folder that does not answer.
        let looked = tokio::task::spawn_blocking(move || search.look(&kept)).await;
        let Ok(probes) = looked else { return };
        let mut kept = Kept::default();
        let (mut ask, mut still) = (Vec::new(), Vec::new());
        for (probe, stamps, answer) in probes {
            // What a program lacks may have come beside it.
            let says_no = |answer: &Answer| answer.said == Said::Nothing;
            let says_no = answer.as_ref().is_some_and(says_no);
            let again = match anew {
                Anew::All => true,
                Anew::Engine => probe == Probe::Engine || says_no,
                Anew::Silent => probe == Probe::Engine && says_no,
                Anew::Changed => false,
            };
            match (stamps, answer) {
                (None, _) => {}
                (Some(_), Some(answer)) if !again => {
                    kept.answers.insert(probe.key(), answer);
                }
                (Some(stamps), answer) => {
                    let silent = silent.get(&probe.key()).filter(|silent| anew == Anew::Changed && silent.of == stamps);
                    match silent {
                        Some(silent) => still.push((probe.key(), silent.clone())),
                        None => ask.push((probe, stamps, answer)),
                    }
                }
            }
        }
        let asked = ask.into_iter().map(async |(probe, stamps, before)| {
            let (key, answer) = self.ask(probe, stamps).await;
            // What the same program has said counts until it says something else.
            (key, answer.or_else(|silent| before.ok_or(silent)))
        });
        let answers: Vec<(String, Result<Answer, Silent>)> =
            stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
        let changed = {
            let mut now = self.now();
            for (key, answer) in answers {
                match answer {
                    Ok(answer) => drop(kept.answers.insert(key, answer)),
                    Err(silent) => still.push((key, silent)),
                }
            }
            now.silent = still.into_iter().collect();
            kept.silent = now.silent.keys().cloned().collect();
            let changed = now.kept != kept || !now.asked;
            (now.kept, now.asked) = (kept, true);
            changed.then(|| now.kept.clone())
        };
        if let Some(kept) = changed {
            let file = self.file.clone();
            let written = tokio::task::spawn_blocking(move || kept.write(&file)).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, "what this host has could not be kept; it is asked again after a restart");
            }
        }
        // How large the disk is changes with its use where file systems share one.
        if self.facts().runtimes != before.runtimes {
            self.changed.send_modify(|times| *times += 1);
        }
    }

    async fn ask(&self, probe: Probe, mut of: Vec<Stamp>) -> (String, Result<Answer, Silent>) {
        let key = probe.key();
        let times = self.now().silent.get(&key).map_or(0, |silent| silent.times);
        let patience = self.search.patience.saturating_mul(1 << times.min(16)).min(PATIENCE_MAX);
        let silent = Silent { times: times.saturating_add(1), of: of.clone() };
        match timeout(patience, self.search.ask(&probe, &of)).await {
            Ok(Told::Said(said)) => {
                if let Said::Python { program, .. } = &said {
                    of.extend(Stamp::of(program));
                }
                (key, Ok(Answer { of, said }))
            }
            Ok(Told::Unknown(why)) => {
                tracing::warn!(program = key, why, "could not be asked; that is not known until it is asked again");
                (key, Err(silent))
            }
            Err(_) => {
                let seconds = patience.as_secs();
                tracing::warn!(program = key, seconds, "has not answered; that is not known until it is asked again");
                (key, Err(silent))
            }
        }
    }
}

/// Looks until nobody wants to know any more.
async fn follow(known: Weak<Known>) {
    let mut retries = 0_u32;
    let mut anew = Anew::Engine;
    loop {
        let Some(of) = known.upgrade() else { return };
        of.look(anew).await;
        let retry = if of.now().silent.is_empty() {
            retries = 0;
            LOOK_INTERVAL
        } else {
            let pause = RETRY_PAUSE.saturating_mul(1 << retries.min(16)).min(RETRY_PAUSE_MAX);
            retries = retries.saturating_add(1);
            pause.min(of.search.retry_pause_max)
        };
        let retry_at = Instant::now() + retry;
        anew = loop {
            let next = retry_at.min(Instant::now() + LOOK_INTERVAL);
            tokio::select! {
                () = sleep_until(next) => {}
                () = of.wake.notified() => break Anew::Engine,
            }
            if next == retry_at {
                break Anew::Silent;
            }
            // What has changed is seen meanwhile.
            of.look(Anew::Changed).await;
        };
    }
}

/// What stays as it is until the machine is started anew.
fn machine() -> Facts {
    let memory_bytes = sysinfo::System::new().map_or(0, |mut system| {
        system.refresh_memory();
        system.total_memory()
    });
    let landlock = confine::landlock_version().map(|version| ("landlock".to_owned(), vec![Version::from([version])]));
    Facts {
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes,
        disk_bytes: 0,
        runtimes: landlock.into_iter().collect(),
    }
}

fn unknown(what: &Requirement, step: &str) -> Failure {
    let message = format!("it is not known whether this host has {what}: it was asked, and has not answered");
    Failure::new(FailureKind::TimeoutError, step, message)
        .hint("a busy host answers later, and it is asked again; `fleetwright hosts refresh HOST` asks at once")
}

impl Now {
    fn pythons(&self) -> Vec<Python> {
        let mut found: Vec<Python> = Vec::new();
        for (key, answer) in &self.kept.answers {
            let Said::Python { program, version } = &answer.said else { continue };
            let python = Python { program: program.clone(), version: version.clone(), is_usual: key == probe::USUAL };
            match found.iter_mut().find(|other| other.program == python.program) {
                Some(other) => other.is_usual |= python.is_usual,
                None => found.push(python),
            }
        }
        found
    }

    fn version(&self, key: &str) -> Option<Version> {
        match &self.kept.answers.get(key)?.said {
            Said::Version(version) => Some(version.clone()),
            Said::Python { .. } | Said::Engine { .. } | Said::Nothing => None,
        }
    }

    fn runtimes(&self) -> BTreeMap<String, Vec<Version>> {
        let mut runtimes: BTreeMap<String, Vec<Version>> = BTreeMap::new();
        let pythons = self.pythons();
        if let Some(usual) = pythons.iter().find(|python| python.is_usual) {
            runtimes.insert("python3".to_owned(), vec![usual.version.clone()]);
        }
        let versions: BTreeSet<Version> = pythons.into_iter().map(|python| python.version).collect();
        if !versions.is_empty() {
            runtimes.insert("python".to_owned(), versions.into_iter().collect());
        }
        if let (Some(node), Some(_)) = (self.version("node"), self.version("npm")) {
            runtimes.insert("node".to_owned(), vec![node]);
        }
        if let Some(systemd) = self.version("systemctl") {
            runtimes.insert("systemd".to_owned(), vec![systemd]);
        }
        if let Some(Said::Engine { name, version }) = self.kept.answers.get(probe::ENGINE).map(|answer| &answer.said) {
            runtimes.insert(name.clone(), vec![version.clone()]);
        }
        runtimes
    }
}

#[cfg(test)]
mod tests;
