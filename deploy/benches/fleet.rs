//! The fold at scale: what one event costs, and how that grows with the number of hosts and with history.
//!
//! `cargo bench -p fleetwright-deploy --bench fleet`. One server runs on every host; a deployment gives all of them a new
//! release, and after it is undone. Everything is in memory: no journal, no TLS. `-- --hosts N,N…` chooses the sizes; the
//! first one is the baseline of the ratios.

#![expect(clippy::print_stdout, reason = "its output is for people")]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use fleetwright_deploy::deployment::{Action, DeploymentEvent, Options, Order};
use fleetwright_deploy::fleet::{Fleet, FleetEvent, Introduction, Retention};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{DeploymentId, HostName, InstanceId, ServerName};
use fleetwright_deploy::instance::{RestoreCause, StepReport};
use fleetwright_deploy::plan::{Group, Pace, Plan, PlannedStep, RollbackPolicy, Rollout, StepAction};
use fleetwright_deploy::release::Release;
use fleetwright_deploy::time::Timestamp;

/// As the coordinator has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many hosts the fleets have, unless others are chosen.
const HOSTS: [usize; 4] = [100, 1_000, 3_000, 10_000];
/// How often something is asked to find out how long that takes.
const ASKED: usize = 200;
/// After how many deployments it is looked what stays of them.
const PAST: [u32; 4] = [15, 30, 60, 120];
/// Of how many hosts that is looked at, at most: the past takes long to live through.
const PAST_HOSTS_MAX: usize = 1_000;
/// A day, in milliseconds.
const DAY: i64 = 24 * 3_600 * 1_000;

fn main() {
    let sizes = sizes();
    println!("one server on every host, all reports of a deployment and of its rollback; times are means of one core");
    println!(
        "{:>7} {:>12} {:>9} {:>12} {:>12} {:>11} {:>13} {:>13} {:>10}",
        "hosts", "per report", "ratio", "deployment", "rollback", "deadline", "outstanding", "  after 2nd", "snapshot"
    );
    let mut baseline = None;
    for hosts in sizes.iter().copied() {
        let of = run(hosts);
        let baseline = *baseline.get_or_insert(of.per_report);
        println!(
            "{hosts:>7} {:>9.1} µs {:>9.2} {:>10.3} s {:>10.3} s {:>8.1} µs {:>10.1} µs {:>10.1} µs {:>7} kB",
            micros(of.per_report),
            of.per_report.as_secs_f64() / baseline.as_secs_f64(),
            of.deployment.as_secs_f64(),
            of.rollback.as_secs_f64(),
            micros(of.deadline),
            micros(of.outstanding),
            micros(of.outstanding_after),
            of.snapshot / 1_000,
        );
    }
    past(sizes.last().copied().unwrap_or(1_000).min(PAST_HOSTS_MAX));
}

/// What stays of a long past: deployments of all hosts, one every second day, that go to the archive when they may.
fn past(hosts: usize) {
    println!("\nwhat stays of the past, with {hosts} hosts; the first line is the baseline of the ratio");
    println!("{:>11} {:>8} {:>14} {:>7} {:>20}", "deployments", "kept", "snapshot", "ratio", "look at the past");
    let mut story = Story::begin(hosts);
    let mut baseline = None;
    for n in 1..=*PAST.last().expect("some") {
        let id = story.start(n);
        story.finish(&id);
        story.now += 2 * DAY;
        let now = Timestamp::from_unix_ms(story.now);
        let began = Instant::now();
        let history = story.fleet.history(Retention::default(), now);
        let took = began.elapsed();
        if !history.is_empty() {
            story.tell(FleetEvent::DeploymentsArchived { deployments: history.into_iter().collect() });
        }
        if PAST.contains(&n) {
            let bytes = serde_json::to_vec(&story.fleet).expect("JSON").len();
            let baseline = *baseline.get_or_insert(bytes);
            println!(
                "{n:>11} {:>8} {:>11} kB {:>7.2} {:>17.1} ms",
                story.fleet.deployments().count(),
                bytes / 1_000,
                bytes as f64 / baseline as f64,
                took.as_secs_f64() * 1e3,
            );
        }
    }
}

fn sizes() -> Vec<usize> {
    let arguments: Vec<String> = std::env::args().collect();
    let given = arguments.iter().position(|argument| argument == "--hosts").and_then(|n| arguments.get(n + 1));
    given.map_or_else(|| HOSTS.to_vec(), |list| list.split(',').map(|n| n.parse().expect("a number")).collect())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

struct Took {
    per_report: Duration,
    deployment: Duration,
    rollback: Duration,
    deadline: Duration,
    outstanding: Duration,
    outstanding_after: Duration,
    snapshot: usize,
}

fn run(hosts: usize) -> Took {
    let mut story = Story::begin(hosts);
    let first = story.start(1);
    let began = Instant::now();
    let reports = story.finish(&first);
    let deployment = began.elapsed();
    let outstanding = story.asked(|fleet, host| fleet.outstanding(host).count());
    let second = story.start(2);
    let deadline = story.asked(|fleet, _| usize::from(fleet.deadline().is_some()));
    story.finish(&second);
    let outstanding_after = story.asked(|fleet, host| fleet.outstanding(host).count());
    let began = Instant::now();
    story.roll_back(&second);
    story.finish(&second);
    let rollback = began.elapsed();
    let snapshot = serde_json::to_vec(&story.fleet).expect("JSON").len();
    let per_report = deployment / u32::try_from(reports).expect("few");
    Took { per_report, deployment, rollback, deadline, outstanding, outstanding_after, snapshot }
}

fn host(n: usize) -> HostName {
    format!("h{n}").parse().expect("a name")
}

struct Story {
    fleet: Fleet,
    hosts: usize,
    orders: VecDeque<(InstanceId, u32, Order)>,
    now: i64,
}

impl Story {
    fn begin(hosts: usize) -> Self {
        let fleet = Fleet::new("bench".parse().expect("a name"));
        let mut story = Self { fleet, hosts, orders: VecDeque::new(), now: 0 };
        story.tell(FleetEvent::CoordinatorStarted);
        for host in (0..hosts).map(host) {
            let certificate_sha256 = "aa".repeat(32);
            let introduction = Introduction::default();
            story.tell(FleetEvent::HostEnrolled { host: host.clone(), certificate_sha256, introduction });
            let view = HostView {
                address: "192.0.2.1".to_owned(),
                state_dir: "/state".to_owned(),
                labels: BTreeMap::new(),
                facts: None,
            };
            story.tell(FleetEvent::HostConnected { host, view, claimed: true });
        }
        story
    }

    fn tell(&mut self, event: FleetEvent) {
        self.now += 1;
        let effects = self.fleet.apply(event, Timestamp::from_unix_ms(self.now)).expect("it fits");
        for action in effects.actions {
            if let Action::Send { instance, attempt, order, .. } = action {
                self.orders.push_back((instance, attempt, order));
            }
        }
    }

    fn start(&mut self, version: u32) -> DeploymentId {
        let plan = self.plan(version);
        let id = DeploymentId::new(plan.parent.next(), &plan.id());
        let options = Options { rollback: true, started_by: "bench".to_owned() };
        self.tell(FleetEvent::DeploymentStarted { plan: plan.into(), options, intents: BTreeMap::new() });
        id
    }

    fn plan(&self, version: u32) -> Plan {
        let server: ServerName = "web".parse().expect("a name");
        let step = |n: usize| {
            let instance = InstanceId::new(server.clone(), host(n));
            let release = Release::plain(server.clone(), vec![format!("--version={version}"), format!("--host=h{n}")]);
            let previous = self.fleet.instances().get(&instance).map(|record| record.release_id.clone());
            let action = if previous.is_some() { StepAction::Update } else { StepAction::Create };
            let release_id = Some(release.id());
            PlannedStep { instance, action, previous, release: Some(release.into()), release_id }
        };
        let steps = (0..self.hosts).map(step).collect();
        let tenth = u32::try_from(self.hosts / 10).expect("few");
        Plan {
            manifest: "bench".parse().expect("a name"),
            environment: "bench".parse().expect("a name"),
            parent: self.fleet.generation(),
            groups: vec![Group { servers: vec![server.clone()], steps }],
            skipped: Vec::new(),
            paces: BTreeMap::from([(server, Pace { max_unavailable: tenth, canary: 1, ..Pace::default() })]),
            rollout: Rollout { max_parallel: tenth, ..Rollout::default() },
            rollback: RollbackPolicy::default(),
            starts_after: BTreeMap::new(),
            externals: Vec::new(),
            overrides: Vec::new(),
        }
    }

    fn roll_back(&mut self, deployment: &DeploymentId) {
        self.tell(FleetEvent::RollbackRequested {
            deployment: deployment.clone(),
            by: "bench".to_owned(),
            strategy: None,
            only: std::collections::BTreeSet::new(),
            intents: BTreeMap::new(),
        });
    }

    /// Answers every order well until the deployment has ended; gives the number of reports.
    fn finish(&mut self, id: &DeploymentId) -> usize {
        let mut told = 0;
        while self.fleet.deployment(id).is_some_and(|deployment| deployment.outcome().is_none()) {
            let Some((instance, attempt, order)) = self.orders.pop_front() else {
                let (deployment, due) = self.fleet.deadline().expect("something is waited for");
                self.now = self.now.max(due.unix_ms());
                self.tell(FleetEvent::Deployment { deployment, event: DeploymentEvent::DeadlinePassed });
                continue;
            };
            let reports = match order {
                Order::Stage { .. } => vec![StepReport::Staged],
                Order::Switch { .. } => vec![StepReport::Switched, StepReport::Verified],
                Order::Confirm => vec![StepReport::Confirmed],
                Order::Restore { .. } | Order::Resolve => {
                    let deployment = self.fleet.deployment(id).expect("it is there");
                    let running = deployment.steps()[&instance].before.clone();
                    vec![StepReport::Restored { cause: RestoreCause::Commanded, running }]
                }
                Order::Test => vec![StepReport::Tested],
                Order::Clean => vec![StepReport::Cleaned],
            };
            for report in reports {
                told += 1;
                let event = DeploymentEvent::StepReported { instance: instance.clone(), attempt, report };
                self.tell(FleetEvent::Deployment { deployment: id.clone(), event });
                // As the engine does before it waits.
                std::hint::black_box(self.fleet.deadline());
            }
        }
        told
    }

    fn asked(&self, ask: impl Fn(&Fleet, &HostName) -> usize) -> Duration {
        let hosts: Vec<HostName> = (0..ASKED).map(|n| host(n * self.hosts / ASKED)).collect();
        let began = Instant::now();
        for host in &hosts {
            std::hint::black_box(ask(&self.fleet, host));
        }
        began.elapsed() / u32::try_from(ASKED).expect("few")
    }
}
