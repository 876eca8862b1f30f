//! The engine on a journal that has no room.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use fleetwright_certs::TrustedKeys;
use fleetwright_deploy::health::{CheckRun, HealthCheck};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::SnapshotId;
use fleetwright_deploy::instance::Switch;
use fleetwright_deploy::time::Length;
use fleetwright_protocol::snapshot::{SnapshotSummary, SnapshotView};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::*;
use crate::machine::{Restore, Sampler, Work};

/// A host that does nothing but write down what it is asked for, and says that another server fills its disk.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn note(&self, what: impl Into<String>) -> Work {
        self.0.lock().expect("not poisoned").push(what.into());
        std::future::ready(Ok(())).boxed()
    }

    fn taken(&self) -> Vec<String> {
        self.0.lock().expect("not poisoned").clone()
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
    fn discard(&self, _: &ServerName, _: &ReleaseId, _: &[ReleaseId]) -> Result<(), Failure> {
        Ok(())
    }
    fn snapshot(&self, _: &ServerName, _: &Switch) -> Work {
        self.note("snapshot")
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
    fn release(&self, _: &ServerName, _: &ReleaseId) -> Option<Release> {
        None
    }
    fn output(&self, _: &ServerName, _: usize) -> Vec<String> {
        Vec::new()
    }
    fn output_of_this_run(&self, _: &ServerName, _: usize) -> Vec<String> {
        Vec::new()
    }
    fn room(&self, _: &[ServerName]) -> BoxFuture<'static, Option<Room>> {
        let servers = [(name("greedy"), 900 << 20)].into();
        std::future::ready(Some(Room { total_bytes: 1 << 30, free_bytes: 0, servers })).boxed()
    }
    fn give_up_reserve(&self) {
        drop(self.note("give up the reserve"));
    }
    fn halt(&self, server: &ServerName) -> Work {
        self.note(format!("halt {server}"))
    }
    fn sampler(&self) -> Option<Box<dyn Sampler>> {
        None
    }
}

fn name(text: &str) -> ServerName {
    text.parse().expect("name")
}

#[tokio::test]
async fn a_host_without_any_room_puts_itself_back_once_and_writes_it_down_when_there_is_room() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("journal.db");
    let at = |ms| Timestamp::from_unix_ms(ms);
    let mut journal = Journal::open(&path).expect("open");
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
    let full = journal.full.clone();
    full.store(true, Ordering::Relaxed);
    let machine = Arc::new(Notes::default());
    let keys = || TrustedKeys::from_pems([], "none").expect("no keys");
    let (fleet, host) = ("local".parse().expect("name"), "host-1".parse().expect("name"));
    let verifier = Verifier { fleet, host, command_keys: keys(), intent_keys: keys() };
    let clock = || Clock::new(move || at(3_000));
    let (engine, handle) = Engine::open(journal, machine.clone(), verifier, clock(), clock()).expect("an engine");
    let running = tokio::spawn(engine.run());
    let waits = |what: &'static str| {
        let machine = machine.clone();
        async move {
            while !machine.taken().iter().any(|note| note == what) {
                tokio::task::yield_now().await;
            }
        }
    };
    let patience = Duration::from_secs(30);
    tokio::time::timeout(patience, waits("restore late")).await.expect("it is put back without the journal");
    tokio::time::timeout(patience, waits("give up the reserve")).await.expect("room is made");
    let notes = machine.taken();
    let position = |what: &str| notes.iter().position(|note| note == what).expect(what);
    assert!(position("halt greedy") < position("give up the reserve"), "{notes:?}");
    assert!(!notes.contains(&"halt late".to_owned()), "{notes:?}");
    assert!(!running.is_finished(), "the engine goes on");
    full.store(false, Ordering::Relaxed);
    let mut again = handle.again;
    tokio::time::timeout(patience, again.changed()).await.expect("in time").expect("it goes on");
    running.abort();
    let _ = running.await;
    let restored = Journal::open(&path).expect("open").instances().expect("fold").remove(&name("late"));
    assert!(matches!(restored.expect("late").state(), InstanceState::Idle), "it is written down, all of it");
    let restores = machine.taken().iter().filter(|note| *note == "restore late").count();
    assert_eq!(restores, 1, "what was done ahead is not done again");
}
