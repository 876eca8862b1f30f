//! The engine on a journal that has no room.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use fleetwright_certs::TrustedKeys;
use fleetwright_deploy::health::{CheckRun, HealthCheck};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::SnapshotId;
use fleetwright_deploy::instance::Switch;
use fleetwright_deploy::room::{Elsewhere, Held, Remembered, Used};
use fleetwright_deploy::time::Length;
use fleetwright_protocol::snapshot::{SnapshotSummary, SnapshotView};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::*;
use crate::machine::{Restore, Sampler, Work};

/// A host that does nothing but write down what it is asked for, and says that another server fills its disk.
#[derive(Default)]
struct Notes {
    taken: Mutex<Vec<String>>,
    /// Whether there is room.
    roomy: AtomicBool,
    /// What `greedy` may take of the disk, if there is a limit, in bytes.
    limit: Option<u64>,
    /// Whether there is a server `busy`, of which a snapshot is being taken until it may fail.
    is_busy: bool,
    may_fail: value::Sender<bool>,
    /// Whether no server can be stopped.
    hangs: AtomicBool,
    /// The servers that an operator has stopped.
    stopped: Mutex<BTreeSet<ServerName>>,
    /// What an agent before has kept, and what this one keeps.
    remembered: Mutex<Option<Remembered>>,
    /// What servers take, by looks: the last counts from then on. Without any, `greedy` takes nearly all.
    looks: Mutex<VecDeque<Vec<(&'static str, u64)>>>,
}

impl Notes {
    fn note(&self, what: impl Into<String>) -> Work {
        self.taken.lock().expect("not poisoned").push(what.into());
        std::future::ready(Ok(())).boxed()
    }

    fn taken(&self) -> Vec<String> {
        self.taken.lock().expect("not poisoned").clone()
    }
}

impl Machine for Notes {
    fn view(&self) -> BoxFuture<'static, HostView> {
        std::future::pending().boxed()
    }
    fn receive(&self, _: &ServerName, _: &ReleaseId, _: &[u8], _: &BTreeMap<String, String>) -> Result<(), Failure> {
        Ok(())
    }
    fn stage(&self, _: &ServerName, _: &ReleaseId, _: Option<Release>) -> Work {
        self.note("stage")
    }
    fn discard(&self, server: &ServerName, release: &ReleaseId, _: &[ReleaseId]) -> Result<(), Failure> {
        let what = if *release == ReleaseId::of(b"new") { "new" } else { "another" };
        drop(self.note(format!("discard {what} of {server}")));
        Ok(())
    }
    fn snapshot(&self, server: &ServerName, _: &Switch) -> Work {
        drop(self.note(format!("snapshot {server}")));
        let mut may_fail = self.may_fail.subscribe();
        async move {
            let _ = may_fail.wait_for(|may| *may).await;
            Err(Failure::new(FailureKind::ResourceError, "snapshot", "it fails"))
        }
        .boxed()
    }
    fn switch(&self, _: &ServerName, _: &Switch) -> Work {
        self.note("switch")
    }
    fn restore(&self, server: &ServerName, _: Restore) -> Work {
        self.note(format!("restore {server}"))
    }
    fn run(&self, _: &ServerName, _: Option<ReleaseId>) -> Work {
        self.note("run")
    }
    fn start(&self, server: &ServerName) -> Work {
        self.note(format!("start {server}"))
    }
    fn test(&self, _: &ServerName, _: Release) -> Work {
        self.note("test")
    }
    fn check(&self, _: &ServerName, _: Vec<HealthCheck>) -> BoxFuture<'static, Vec<CheckRun>> {
        std::future::ready(Vec::new()).boxed()
    }
    fn snapshots(&self, _: &ServerName) -> Work<Vec<SnapshotSummary>> {
        std::future::pending().boxed()
    }
    fn show_snapshot(&self, _: &ServerName, _: &SnapshotId, _: bool) -> Work<SnapshotView> {
        std::future::pending().boxed()
    }
    fn clean(&self, _: &ServerName, _: Vec<ReleaseId>, _: Vec<SnapshotId>) -> Work {
        self.note("clean")
    }
    fn watch(&self, _: &ServerName, _: &ReleaseId, _: Release, _: mpsc::Sender<Observation>) -> BoxFuture<'static, ()> {
        std::future::pending().boxed()
    }
    fn knows(&self, _: &ServerName) -> bool {
        true
    }
    fn current(&self, _: &ServerName) -> Option<ReleaseId> {
        Some(ReleaseId::of(b"new"))
    }
    fn release(&self, server: &ServerName, _: &ReleaseId) -> Option<Release> {
        let limit = self.limit.filter(|_| *server == name("greedy"))?;
        let mut release = Release::plain(server.clone(), vec!["serve".to_owned()]);
        release.run.resources.disk_bytes = Some(limit);
        Some(release)
    }
    fn output(&self, _: &ServerName, _: usize) -> Vec<String> {
        Vec::new()
    }
    fn output_of_this_run(&self, _: &ServerName, _: usize) -> Vec<String> {
        Vec::new()
    }
    fn room(&self, asked: &[ServerName]) -> BoxFuture<'static, Option<Room>> {
        let mut looks = self.looks.lock().expect("not poisoned");
        let look = if looks.len() > 1 && !asked.is_empty() { looks.pop_front() } else { looks.front().cloned() };
        let used = |bytes: u64| Used { bytes: bytes << 20, files: 1, ..Used::default() };
        let look = look.unwrap_or_else(|| vec![("greedy", 900)]).into_iter();
        let servers = look.map(|(server, bytes)| (name(server), used(bytes))).collect();
        let free_bytes = if self.roomy.load(Ordering::Relaxed) { 1 << 29 } else { 0 };
        std::future::ready(Some(Room { total_bytes: 1 << 30, free_bytes, servers, ..Room::default() })).boxed()
    }
    fn keep_reserve(&self) {
        drop(self.note("keep the reserve"));
    }
    fn lend_reserve(&self) {
        drop(self.note("lend the reserve"));
    }
    fn remember(&self, what: &Remembered) -> Result<(), Failure> {
        *self.remembered.lock().expect("not poisoned") = Some(what.clone());
        Ok(())
    }
    fn remembered(&self) -> Option<Remembered> {
        self.remembered.lock().expect("not poisoned").clone()
    }
    fn give_up_reserve(&self) {
        drop(self.note("give up the reserve"));
    }
    fn halt(&self, server: &ServerName) -> Work {
        drop(self.note(format!("halt {server}")));
        let hangs = self.hangs.load(Ordering::Relaxed);
        let outcome = Failure::new(FailureKind::ResourceError, "halt", "it does not end");
        std::future::ready(if hangs { Err(outcome) } else { Ok(()) }).boxed()
    }
    fn is_stopped(&self, server: &ServerName) -> bool {
        self.stopped.lock().expect("not poisoned").contains(server)
    }
    fn sampler(&self) -> Option<Box<dyn Sampler>> {
        None
    }
}

fn name(text: &str) -> ServerName {
    text.parse().expect("name")
}

/// An engine on a full disk: `late` was switched and its deadline has passed, `greedy` and `other` run.
struct Full {
    machine: Arc<Notes>,
    full: Arc<AtomicBool>,
    running: JoinHandle<Result<()>>,
    handle: Handle,
    folder: tempfile::TempDir,
}

impl Full {
    /// What fills the disk is known by what was there before.
    fn begin() -> Self {
        Self::with(Notes { remembered: Mutex::new(Some(with_room(&[]))), ..Notes::default() }, true)
    }

    /// On a host like this, whose journal has room or not.
    fn with(machine: Notes, is_full: bool) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let at = |ms| Timestamp::from_unix_ms(ms);
        let mut journal = Journal::open(&folder.path().join("journal.db")).expect("open");
        for server in [name("late"), name("greedy")] {
            let key = StepKey { deployment: "d1-aa".parse().expect("id"), attempt: 1 };
            let dead_man = (server == name("late")).then(|| at(2_000));
            let (healthy_deadline, min_healthy_time) = (Length::from_secs(1), Length::from_secs(1));
            let spec = SwitchSpec { target: Some(ReleaseId::of(b"new")), dead_man, healthy_deadline, min_healthy_time };
            for event in [
                InstanceEvent::StageRequested { key: key.clone(), release: ReleaseId::of(b"new") },
                InstanceEvent::StageSucceeded { key: key.clone() },
                InstanceEvent::SwitchRequested { key: key.clone(), spec: spec.clone() },
                InstanceEvent::SnapshotSucceeded { key: key.clone() },
                InstanceEvent::SwitchSucceeded { key: key.clone() },
            ] {
                let commit = Commit { event: Some((server.clone(), event)), ..Commit::default() };
                journal.commit(&commit, at(1_000)).expect("commit");
            }
        }
        let key = StepKey { deployment: "d1-aa".parse().expect("id"), attempt: 1 };
        let second = Length::from_secs(1);
        let (target, healthy_deadline, min_healthy_time) = (Some(ReleaseId::of(b"new")), second, second);
        for event in [
            InstanceEvent::StageRequested { key: key.clone(), release: ReleaseId::of(b"new") },
            InstanceEvent::StageSucceeded { key: key.clone() },
            InstanceEvent::SwitchRequested {
                key: key.clone(),
                spec: SwitchSpec { target, dead_man: None, healthy_deadline, min_healthy_time },
            },
        ] {
            let commit = Commit { event: Some((name("busy"), event)), ..Commit::default() };
            if machine.is_busy {
                journal.commit(&commit, at(1_000)).expect("commit");
            }
        }
        let full = journal.full.clone();
        full.store(is_full, Ordering::Relaxed);
        let machine = Arc::new(machine);
        let keys = || TrustedKeys::from_pems([], "none").expect("no keys");
        let (fleet, host) = ("local".parse().expect("name"), "host-1".parse().expect("name"));
        let verifier = Verifier { fleet, host, command_keys: keys(), intent_keys: keys() };
        let clock = || Clock::new(move || at(3_000));
        let (engine, handle) = Engine::open(journal, machine.clone(), verifier, clock(), clock()).expect("an engine");
        let running = tokio::spawn(engine.run());
        Self { machine, full, running, handle, folder }
    }

    async fn wait_for(&self, what: &str) {
        let noted = async {
            while !self.machine.taken().iter().any(|note| note == what) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, noted).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.machine.taken()));
    }

    /// Makes room, and waits until the engine goes on.
    async fn make_room(&mut self) {
        self.full.store(false, Ordering::Relaxed);
        self.machine.roomy.store(true, Ordering::Relaxed);
        let changed = tokio::time::timeout(PATIENCE, self.handle.again.changed());
        changed.await.expect("in time").expect("it goes on");
    }
}

/// What an agent remembers of a disk with room, on which these servers took so many MiB.
fn with_room(took: &[(&str, u64)]) -> Remembered {
    let used = |bytes: u64| Used { bytes: bytes << 20, files: 1, ..Used::default() };
    let servers = took.iter().map(|(server, bytes)| (name(server), used(*bytes))).collect();
    let before = Room { total_bytes: 1 << 30, free_bytes: 1 << 29, servers, ..Room::default() };
    Remembered { before: Some(before), held: BTreeMap::new() }
}

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_host_without_any_room_puts_itself_back_once_and_writes_it_down_when_there_is_room() {
    let mut host = Full::begin();
    host.wait_for("restore late").await;
    host.wait_for("give up the reserve").await;
    let notes = host.machine.taken();
    let position = |what: &str| notes.iter().position(|note| note == what).expect(what);
    assert!(position("halt greedy") < position("give up the reserve"), "{notes:?}");
    assert!(!notes.contains(&"halt late".to_owned()), "{notes:?}");
    assert!(!host.running.is_finished(), "the engine goes on");
    host.make_room().await;
    host.running.abort();
    let _ = host.running.await;
    let path = host.folder.path().join("journal.db");
    let restored = Journal::open(&path).expect("open").instances().expect("fold").remove(&name("late"));
    assert!(matches!(restored.expect("late").state(), InstanceState::Idle), "it is written down, all of it");
    let restores = host.machine.taken().iter().filter(|note| *note == "restore late").count();
    assert_eq!(restores, 1, "what was done ahead is not done again");
}

#[tokio::test]
async fn what_was_stopped_for_lack_of_room_is_started_again_unless_an_operator_has_stopped_it() {
    for by_hand in [false, true] {
        let mut host = Full::begin();
        host.wait_for("halt greedy").await;
        if by_hand {
            host.machine.stopped.lock().expect("not poisoned").insert(name("greedy"));
        }
        let before = host.machine.taken().len();
        host.make_room().await;
        // What the engine does once there is room ends with the reserve.
        host.wait_for("keep the reserve").await;
        let (answer, alive) = oneshot::channel();
        host.handle.inputs.send(Input::Alive(answer)).await.expect("it takes inputs");
        alive.await.expect("alive");
        let started = host.machine.taken()[before..].contains(&"start greedy".to_owned());
        assert_eq!(started, !by_hand, "{:?}", host.machine.taken());
        host.running.abort();
    }
}

#[tokio::test]
async fn what_takes_more_of_the_disk_than_it_is_to_is_stopped_when_the_disk_is_low_though_the_journal_has_room() {
    for (limit, stopped) in [(Some(100 << 20), true), (Some(1 << 30), false), (None, false)] {
        let host = Full::with(Notes { limit, roomy: true.into(), ..Notes::default() }, false);
        // The engine's own first look finds room, whatever is taken.
        host.wait_for("keep the reserve").await;
        let used = [(name("greedy"), Used { bytes: 200 << 20, files: 1, ..Used::default() })].into();
        let room = Room { total_bytes: 1 << 30, free_bytes: 0, servers: used, ..Room::default() };
        let (answer, alive) = oneshot::channel();
        for input in [Input::Room(Some(room)), Input::Alive(answer)] {
            host.handle.inputs.send(input).await.expect("it takes inputs");
        }
        alive.await.expect("alive");
        let halted = host.machine.taken().contains(&"halt greedy".to_owned());
        assert_eq!(halted, stopped, "{limit:?}: {:?}", host.machine.taken());
        host.running.abort();
    }
}

#[tokio::test]
async fn an_agent_that_starts_on_a_full_disk_stops_what_has_grown_since_there_was_room_not_what_is_largest() {
    let remembered = Mutex::new(Some(with_room(&[("late", 600)])));
    let looks = Mutex::new([vec![("late", 600), ("greedy", 300)]].into());
    let host = Full::with(Notes { remembered, looks, ..Notes::default() }, true);
    host.wait_for("halt greedy").await;
    host.wait_for("give up the reserve").await;
    let notes = host.machine.taken();
    assert!(!notes.contains(&"halt late".to_owned()) && !notes.contains(&"lend the reserve".to_owned()), "{notes:?}");
    host.running.abort();
}

#[tokio::test]
async fn where_nobody_knows_how_the_disk_was_the_reserve_is_kept_until_one_is_seen_to_grow() {
    // At first nobody can grow: there is no room. Once a part of the reserve is there, it is taken.
    let before = vec![("late", 600), ("greedy", 300)];
    let looks = [before.clone(), before, vec![("late", 600), ("greedy", 308)]];
    let host = Full::with(Notes { looks: Mutex::new(looks.into()), ..Notes::default() }, true);
    host.wait_for("give up the reserve").await;
    let notes = host.machine.taken();
    let position = |what: &str| notes.iter().position(|note| note == what).expect(what);
    assert!(position("lend the reserve") < position("halt greedy"), "{notes:?}");
    assert!(position("halt greedy") < position("give up the reserve"), "{notes:?}");
    assert!(!notes.contains(&"halt late".to_owned()), "{notes:?}");
    host.running.abort();
}

#[tokio::test]
async fn the_reserve_is_not_given_up_for_nothing_where_nobody_is_known_to_fill_the_disk() {
    let remembered = Mutex::new(Some(with_room(&[("greedy", 300)])));
    let looks = Mutex::new([vec![("greedy", 300)]].into());
    let host = Full::with(Notes { remembered, looks, ..Notes::default() }, true);
    host.wait_for("lend the reserve").await;
    host.wait_for("restore late").await;
    // A few looks later.
    let looked = async {
        while host.machine.taken().iter().filter(|note| *note == "lend the reserve").count() < 4 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.expect("it looks again");
    let notes = host.machine.taken();
    let none = ["give up the reserve", "halt greedy"].iter().all(|what| !notes.contains(&(*what).to_owned()));
    assert!(none, "{notes:?}");
    host.running.abort();
}

#[tokio::test]
async fn what_was_stopped_for_lack_of_room_stays_so_when_the_agent_is_started_again_and_another_release_does_not() {
    for (release, stays) in [(Some(ReleaseId::of(b"new")), true), (Some(ReleaseId::of(b"another")), false)] {
        let held = [(name("greedy"), Held { release, reason: "it fills the disk".to_owned() })].into();
        let remembered = Mutex::new(Some(Remembered { held, ..with_room(&[("greedy", 900)]) }));
        let mut host = Full::with(Notes { remembered, ..Notes::default() }, true);
        host.wait_for("restore late").await;
        let notes = host.machine.taken();
        assert_eq!(notes.contains(&"start greedy".to_owned()), !stays, "{notes:?}");
        assert_eq!(notes.contains(&"halt greedy".to_owned()), stays, "{notes:?}");
        let is_held = || host.machine.remembered().expect("kept").held.contains_key(&name("greedy"));
        assert!(is_held() || !stays);
        host.make_room().await;
        host.wait_for("start greedy").await;
        let forgotten = async {
            while host.machine.remembered().expect("kept").held.contains_key(&name("greedy")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, forgotten).await.expect("what is started is not held any more");
        host.running.abort();
    }
}

#[tokio::test]
async fn what_was_stopped_is_not_started_over_work_on_it_but_once_that_has_ended() {
    let held = [(name("busy"), Held { release: None, reason: "it fills the disk".to_owned() })].into();
    let remembered = Mutex::new(Some(Remembered { held, ..with_room(&[]) }));
    let host = Full::with(Notes { remembered, is_busy: true, roomy: true.into(), ..Notes::default() }, false);
    host.wait_for("snapshot busy").await;
    host.wait_for("keep the reserve").await;
    let (answer, alive) = oneshot::channel();
    host.handle.inputs.send(Input::Alive(answer)).await.expect("it takes inputs");
    alive.await.expect("alive");
    let notes = host.machine.taken();
    assert!(!notes.contains(&"start busy".to_owned()), "its snapshot is being taken: {notes:?}");
    host.machine.may_fail.send_replace(true);
    host.wait_for("start busy").await;
    host.running.abort();
}

#[tokio::test]
async fn what_takes_too_much_of_another_disk_is_stopped_when_that_is_low_and_started_when_that_has_room() {
    let host = Full::with(Notes { limit: Some(100 << 20), roomy: true.into(), ..Notes::default() }, false);
    host.wait_for("keep the reserve").await;
    let look = async |is_low| {
        let used = Used { bytes: 200 << 20, files: 1, ..Used::default() };
        let elsewhere = Elsewhere { used, is_low, lacks_enough: is_low, unmeasured: Vec::new() };
        let elsewhere = [(name("greedy"), elsewhere)].into();
        let room = Room { total_bytes: 1 << 30, free_bytes: 1 << 29, elsewhere, ..Room::default() };
        let (answer, alive) = oneshot::channel();
        for input in [Input::Room(Some(room)), Input::Alive(answer)] {
            host.handle.inputs.send(input).await.expect("it takes inputs");
        }
        alive.await.expect("alive");
        let notes = host.machine.taken();
        ["halt greedy", "start greedy"].map(|what| notes.iter().filter(|note| *note == what).count())
    };
    let [_, at_first] = look(false).await;
    assert_eq!(look(false).await, [0, at_first], "it is degraded, and runs");
    assert_eq!(look(true).await, [1, at_first]);
    assert_eq!(look(true).await, [1, at_first], "the disk with the state has room, its own does not");
    assert_eq!(look(false).await, [1, at_first + 1]);
    host.running.abort();
}

#[tokio::test]
async fn a_release_that_has_come_into_motion_again_is_not_removed_by_what_was_ended_before() {
    let host = Full::with(Notes { roomy: true.into(), is_busy: true, ..Notes::default() }, false);
    let (answer, alive) = oneshot::channel();
    let discard = |release: &[u8]| Input::Discard { server: name("busy"), release: ReleaseId::of(release) };
    for input in [discard(b"new"), discard(b"another"), Input::Alive(answer)] {
        host.handle.inputs.send(input).await.expect("it takes inputs");
    }
    alive.await.expect("alive");
    let notes = host.machine.taken();
    let discarded: Vec<_> = notes.iter().filter(|note| note.starts_with("discard")).collect();
    assert_eq!(discarded, ["discard another of busy"]);
    host.running.abort();
}

#[tokio::test]
async fn while_the_server_that_fills_the_disk_is_worked_on_the_reserve_is_kept() {
    let remembered = Mutex::new(Some(with_room(&[("busy", 300)])));
    let looks = Mutex::new(vec![vec![("busy", 900)]; 4].into());
    let host = Full::with(Notes { remembered, looks, is_busy: true, ..Notes::default() }, true);
    host.wait_for("snapshot busy").await;
    let looked = async {
        while host.machine.looks.lock().expect("not poisoned").len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.expect("it looks again and again");
    let notes = host.machine.taken();
    let none = ["halt busy", "give up the reserve"].iter().all(|what| !notes.contains(&(*what).to_owned()));
    assert!(none, "{notes:?}");
    host.machine.may_fail.send_replace(true);
    host.wait_for("give up the reserve").await;
    let notes = host.machine.taken();
    let position = |what: &str| notes.iter().position(|note| note == what).expect(what);
    assert!(position("halt busy") < position("give up the reserve"), "{notes:?}");
    host.running.abort();
}

#[tokio::test]
async fn who_does_not_stop_again_after_a_restart_is_not_started_and_is_tried_again() {
    let held =
        [(name("greedy"), Held { release: Some(ReleaseId::of(b"new")), reason: "it fills the disk".to_owned() })];
    let remembered = Mutex::new(Some(Remembered { held: held.into(), ..with_room(&[("greedy", 300)]) }));
    let host = Full::with(Notes { remembered, hangs: true.into(), ..Notes::default() }, true);
    host.wait_for("restore late").await;
    let tried = async {
        while host.machine.taken().iter().filter(|note| *note == "halt greedy").count() < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, tried).await.expect("it is tried again");
    let notes = host.machine.taken();
    let none = ["start greedy", "give up the reserve"].iter().all(|what| !notes.contains(&(*what).to_owned()));
    assert!(none, "{notes:?}");
    assert!(host.machine.remembered().expect("kept").held.contains_key(&name("greedy")));
    host.running.abort();
}
