//! How many transitions of a fleet become durable in a second, and how long a coordinator takes to start.
//!
//! `cargo bench -p fleetwright --bench journal`. Transitions are those of real deployments: each is applied to the
//! fleet and made durable in a SQLite file, many in one commit as the engine does it; the baseline is one commit per
//! transition. Starting is opening a journal of a million entries, from its snapshot; the baseline folds them all.

#![expect(clippy::print_stdout, reason = "its output is for people")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use fleetwright::journal::{Journal, NewEntry, SqliteStore};
use fleetwright_deploy::actor::Actor;
use fleetwright_deploy::deployment::{DeploymentEvent, Options, Order};
use fleetwright_deploy::fleet::{Fleet, FleetEvent, Introduction};
use fleetwright_deploy::health::{HealthReport, HealthStatus};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{DeploymentId, FleetName, HostName, InstanceId, ServerName};
use fleetwright_deploy::instance::{RestoreCause, StepReport};
use fleetwright_deploy::plan::{Group, Pace, Plan, PlannedStep, RollbackPolicy, Rollout, StepAction};
use fleetwright_deploy::release::Release;
use fleetwright_deploy::time::Timestamp;

const HOSTS: usize = 20;
const SERVERS: usize = 10;
const DEPLOYMENTS: u64 = 10;
/// As many requests as the engine takes in at once.
const COMMIT: usize = 256;
const ENTRIES: u64 = 1_000_000;

fn main() {
    let name: FleetName = "bench".parse().expect("name");
    let events = deployments(&name);
    let count = events.len() as f64;
    let grouped = durable(&name, &events, COMMIT);
    // One commit per transition takes long: a part of them will do.
    let part = &events[..events.len().min(2_000)];
    let single = durable(&name, part, 1) / part.len() as f64 * count;
    println!("{count} transitions of {DEPLOYMENTS} deployments of {} instances", HOSTS * SERVERS);
    println!("  {COMMIT} in a commit: {:>8.0} durable transitions/s", count / grouped);
    println!("  1 in a commit:   {:>8.0} durable transitions/s (baseline)", count / single);
    println!("  ratio: {:.1}", single / grouped);
    start_up(&name, &events);
}

/// Applies events and makes them durable; gives the seconds it took.
fn durable(name: &FleetName, events: &[(Timestamp, FleetEvent)], commit: usize) -> f64 {
    let folder = tempfile::tempdir().expect("folder");
    let (mut journal, mut fleet) = open(name, &folder.path().join("journal.db"));
    let began = Instant::now();
    for chunk in events.chunks(commit) {
        append(&mut journal, &mut fleet, chunk.iter().cloned());
    }
    began.elapsed().as_secs_f64()
}

fn start_up(name: &FleetName, events: &[(Timestamp, FleetEvent)]) {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("journal.db");
    let (mut journal, mut fleet) = open(name, &path);
    for chunk in events.chunks(COMMIT) {
        append(&mut journal, &mut fleet, chunk.iter().cloned());
    }
    let instances: Vec<_> =
        fleet.instances().iter().map(|(id, record)| (id.clone(), record.release_id.clone())).collect();
    let mut n = journal.last();
    while n < ENTRIES {
        let chunk: Vec<(Timestamp, FleetEvent)> = (n..n + COMMIT as u64)
            .map(|n| {
                let (instance, release) = instances[(n as usize) % instances.len()].clone();
                let odd = (n as usize / instances.len()) % 2 == 1;
                let status = if odd { HealthStatus::Degraded } else { HealthStatus::Healthy };
                let report = HealthReport { status, restarts: (n / 1_000) as u32, ..HealthReport::default() };
                (at(n), FleetEvent::HealthReported { instance, release, report, output: Vec::new() })
            })
            .collect();
        n += COMMIT as u64;
        append(&mut journal, &mut fleet, chunk.into_iter());
        journal.snapshot_if_due(&fleet).expect("snapshot");
    }
    let entries = journal.last();
    drop(journal);
    let began = Instant::now();
    let (_, folded, opened) = Journal::open(SqliteStore::open(&path).expect("open"), name.clone()).expect("fold");
    let with = began.elapsed().as_secs_f64();
    assert_eq!(folded, fleet);
    rusqlite::Connection::open(&path).expect("open").execute("DELETE FROM snapshots", []).expect("delete");
    let began = Instant::now();
    let (_, folded, _) = Journal::open(SqliteStore::open(&path).expect("open"), name.clone()).expect("fold");
    let without = began.elapsed().as_secs_f64();
    assert_eq!(folded, fleet);
    println!("starting with {entries} entries");
    println!("  from the snapshot, {} entries folded: {with:>7.2} s", opened.folded);
    println!("  every entry folded:                   {without:>7.2} s (baseline)");
    println!("  ratio: {:.0}", without / with);
}

fn open(name: &FleetName, path: &Path) -> (Journal<SqliteStore>, Fleet) {
    let (journal, fleet, _) = Journal::open(SqliteStore::open(path).expect("open"), name.clone()).expect("fold");
    (journal, fleet)
}

fn append(
    journal: &mut Journal<SqliteStore>,
    fleet: &mut Fleet,
    events: impl Iterator<Item = (Timestamp, FleetEvent)>,
) {
    let entries = events.map(|(at, event)| {
        let notes = fleet.apply(event.clone(), at).expect("it fits").notes;
        NewEntry { at, actor: Actor::Coordinator, event, notes }
    });
    let entries: Vec<NewEntry> = entries.collect();
    journal.append(&entries).expect("append");
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_unix_ms(i64::try_from(ms).expect("small"))
}

fn host(n: usize) -> HostName {
    format!("h{n}").parse().expect("name")
}

/// Everything that happens to a fleet that deploys everything anew several times, and undoes the last.
fn deployments(name: &FleetName) -> Vec<(Timestamp, FleetEvent)> {
    let mut story = Story { fleet: Fleet::new(name.clone()), events: Vec::new(), now: 0 };
    story.tell(FleetEvent::CoordinatorStarted);
    for n in 0..HOSTS {
        story.tell(FleetEvent::HostEnrolled {
            host: host(n),
            certificate_sha256: "aa".to_owned(),
            introduction: Introduction::default(),
        });
        let view =
            HostView { address: "h".to_owned(), state_dir: "d".to_owned(), labels: BTreeMap::new(), facts: None };
        story.tell(FleetEvent::HostConnected { host: host(n), view, claimed: true });
    }
    for version in 0..DEPLOYMENTS {
        story.deploy(version);
    }
    story.events
}

struct Story {
    fleet: Fleet,
    events: Vec<(Timestamp, FleetEvent)>,
    now: u64,
}

impl Story {
    fn tell(&mut self, event: FleetEvent) {
        self.now += 1;
        self.fleet.apply(event.clone(), at(self.now)).expect("it fits");
        self.events.push((at(self.now), event));
    }

    fn deploy(&mut self, version: u64) {
        let plan = plan(&self.fleet, version);
        let id = DeploymentId::new(plan.parent.next(), &plan.id());
        let options = Options { rollback: true, started_by: "bench".to_owned() };
        self.tell(FleetEvent::DeploymentStarted { plan: plan.into(), options, intents: BTreeMap::new() });
        while self.fleet.deployment(&id).is_some_and(|deployment| deployment.outcome().is_none()) {
            let orders: Vec<(InstanceId, u32, Order)> = (0..HOSTS)
                .flat_map(|n| {
                    let host = host(n);
                    let orders =
                        self.fleet.outstanding(&host).map(|(_, id, attempt, order)| (id.clone(), attempt, order));
                    orders.collect::<Vec<_>>()
                })
                .collect();
            if orders.is_empty() {
                let (deployment, due) = self.fleet.deadline().expect("something is waited for");
                self.now = self.now.max(u64::try_from(due.unix_ms()).expect("positive"));
                self.tell(FleetEvent::Deployment { deployment, event: DeploymentEvent::DeadlinePassed });
            }
            for (instance, attempt, order) in orders {
                let reports = match order {
                    Order::Stage { .. } => vec![StepReport::Staged],
                    Order::Switch { .. } => vec![StepReport::Switched, StepReport::Verified],
                    Order::Confirm => vec![StepReport::Confirmed],
                    Order::Restore { .. } | Order::Resolve => {
                        vec![StepReport::Restored { cause: RestoreCause::Commanded, running: None }]
                    }
                    Order::Test => vec![StepReport::Tested],
                    Order::Clean => vec![StepReport::Cleaned],
                };
                for report in reports {
                    let event = DeploymentEvent::StepReported { instance: instance.clone(), attempt, report };
                    self.tell(FleetEvent::Deployment { deployment: id.clone(), event });
                }
            }
        }
    }
}

fn plan(fleet: &Fleet, version: u64) -> Plan {
    let servers: Vec<ServerName> = (0..SERVERS).map(|n| format!("s{n}").parse().expect("name")).collect();
    let step = |instance: InstanceId| {
        let previous = fleet.instances().get(&instance).map(|record| record.release_id.clone());
        let release = release(&instance.server, version);
        let action = if previous.is_some() { StepAction::Update } else { StepAction::Create };
        PlannedStep { instance, action, previous, release_id: Some(release.id()), release: Some(release.into()) }
    };
    let groups = servers.chunks(2).map(|servers| Group {
        servers: servers.to_vec(),
        steps: servers
            .iter()
            .flat_map(|server| (0..HOSTS).map(move |n| InstanceId::new(server.clone(), host(n))))
            .map(step)
            .collect(),
    });
    let pace = Pace { max_unavailable: 4, ..Pace::default() };
    Plan {
        manifest: "bench".parse().expect("name"),
        environment: "bench".parse().expect("name"),
        parent: fleet.generation(),
        groups: groups.collect(),
        skipped: Vec::new(),
        paces: servers.iter().map(|server| (server.clone(), pace)).collect(),
        rollout: Rollout::default(),
        rollback: RollbackPolicy::default(),
        starts_after: BTreeMap::new(),
        externals: Vec::new(),
        overrides: Vec::new(),
    }
}

fn release(server: &ServerName, version: u64) -> Release {
    Release::plain(server.clone(), vec![format!("v{version}")])
}
