//! A whole fleet over real QUIC in virtual time: the real coordinator and real agents, with their real journals,
//! certificates and signatures, on a simulated network (turmoil) and simulated hosts. Links are cut, slowed and made
//! lossy, programs lose their power and start again, clocks jump.
//!
//! Randomness of TLS and of back-off is real, so a seed gives the same faults, not the same packets.

mod machine;
mod socket;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fleetwright::{Coordinator, Operator, OperatorKey};
use fleetwright_agent::{Agent, Enrolment, enroll};
use fleetwright_certs::COORDINATOR_DNS_NAME;
use fleetwright_deploy::deployment::{Options, Outcome};
use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::fleet::Fleet;
use fleetwright_deploy::ids::{DeploymentId, HostName, InstanceId, ReleaseId, ServerName};
use fleetwright_deploy::plan::{
    Group, Pace as ServerPace, Plan, RetryPolicy, RollbackPolicy, RollbackStrategy, Rollout,
};
use fleetwright_deploy::time::{Length, Timestamp};
use fleetwright_protocol::{Clock, endpoint};
use quinn::Connection;
use tokio::time::sleep;
use turmoil::Sim;

use crate::attacker;
use crate::sim::{release, step};

pub use machine::{Pace, SimMachine};

/// When simulated time begins, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_795_000_000_000;
/// Where the coordinator listens.
const PORT: u16 = 7_100;
/// How long a fleet may take for anything that a test waits for, in simulated time.
const PATIENCE: Duration = Duration::from_secs(900);
/// How often it is looked whether what a test waits for has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How long a run may be, in simulated time.
const RUN_MAX: Duration = Duration::from_secs(7_200);

/// The name of the coordinator's machine on the network.
pub const COORDINATOR: &str = "coordinator";

/// Something that only whoever drives the simulation can do.
enum Act {
    /// A machine loses its power.
    Crash(String),
    /// It has power again.
    Restart(String),
    /// Its link to the coordinator takes this long, each way.
    Slow(String, Duration),
}

struct Shared {
    folder: tempfile::TempDir,
    machines: BTreeMap<HostName, SimMachine>,
    /// How far each machine's clock is from true time, in milliseconds.
    offsets: BTreeMap<String, Arc<AtomicI64>>,
    operator: Mutex<Option<Operator>>,
    /// The operator's key, which no machine of the network has.
    operator_key_pem: String,
    acts: Mutex<Vec<Act>>,
}

/// The fleet, as a test sees it from within the simulation.
#[derive(Clone)]
pub struct Net(Arc<Shared>);

/// A network before anything happens on it.
pub struct Setup {
    /// Draws delays and losses.
    pub seed: u64,
    /// How many hosts there are.
    pub hosts: usize,
    /// The least and the most that a datagram takes.
    pub latency: (Duration, Duration),
    /// The part of all datagrams that is lost.
    pub loss: f64,
}

impl Default for Setup {
    fn default() -> Self {
        Self { seed: 7, hosts: 3, latency: (Duration::from_millis(20), Duration::from_millis(20)), loss: 0.0 }
    }
}

impl Setup {
    /// Runs a test on a fleet whose hosts enrol and connect by themselves.
    pub fn run<F>(self, test: impl FnOnce(Net) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(self.seed)
            .epoch(UNIX_EPOCH + Duration::from_millis(EPOCH_MS as u64))
            .tick_duration(Duration::from_millis(5))
            .simulation_duration(RUN_MAX)
            .min_message_latency(self.latency.0)
            .max_message_latency(self.latency.1)
            .fail_rate(self.loss)
            .repair_rate(if self.loss > 0.0 { 1.0 } else { 0.0 })
            .udp_capacity(4_096);
        let mut sim = builder.build();
        let net = Net::new(self.hosts);
        net.add_coordinator(&mut sim);
        for host in net.0.machines.keys() {
            net.add_agent(&mut sim, host);
        }
        let testing = test(net.clone());
        sim.client("test", async move {
            testing.await;
            Ok(())
        });
        while !sim.step().expect("nothing fails by itself") {
            let acts: Vec<Act> = net.0.acts.lock().expect("not poisoned").drain(..).collect();
            for act in acts {
                match act {
                    Act::Crash(who) => sim.crash(who),
                    Act::Restart(who) => sim.bounce(who),
                    Act::Slow(who, latency) => sim.set_link_latency(who, COORDINATOR, latency),
                }
            }
            assert!(sim.elapsed() < RUN_MAX, "the test does not come to its end");
        }
    }
}

/// The name of a host, from 0.
pub fn host(n: usize) -> HostName {
    format!("h{n}").parse().expect("name")
}

/// The server that tests deploy.
pub fn server() -> ServerName {
    "web".parse().expect("name")
}

/// A version of it.
pub fn version(version: u64) -> ReleaseId {
    release(&server(), version).id()
}

impl Net {
    fn new(hosts: usize) -> Self {
        let machines: BTreeMap<HostName, SimMachine> = (0..hosts).map(|n| (host(n), SimMachine::default())).collect();
        let names = machines.keys().map(ToString::to_string).chain([COORDINATOR.to_owned()]);
        let offsets = names.map(|name| (name, Arc::default())).collect();
        let folder = tempfile::Builder::new().prefix("fleetwright-simnet-").tempdir().expect("a folder");
        let key = OperatorKey::generate().expect("a key");
        let (operator, operator_key_pem) = (Mutex::default(), key.to_pem().expect("PEM"));
        let shared = Shared { folder, machines, offsets, operator, operator_key_pem, acts: Mutex::default() };
        let (net, name) = (Self(Arc::new(shared)), "sim".parse().expect("name"));
        let (state_dir, public) = (net.state_dir(COORDINATOR), key.public_pem().expect("PEM"));
        Coordinator::create(&state_dir, &name, "0.0.0.0:7100", &public, &net.clock(COORDINATOR)).expect("made");
        net
    }

    fn operator_key(&self) -> OperatorKey {
        OperatorKey::from_pem(&self.0.operator_key_pem).expect("a key")
    }

    fn state_dir(&self, who: &str) -> PathBuf {
        self.0.folder.path().join(who)
    }

    /// A machine's clock: simulated time, and how far it is from that.
    fn clock(&self, who: &str) -> Clock {
        let (offset, last) = (self.0.offsets[who].clone(), AtomicI64::new(EPOCH_MS));
        Clock::new(move || {
            if let Some(since_epoch) = turmoil::since_epoch() {
                last.store(i64::try_from(since_epoch.as_millis()).expect("small"), Ordering::Relaxed);
            }
            Timestamp::from_unix_ms(last.load(Ordering::Relaxed) + offset.load(Ordering::Relaxed))
        })
    }

    /// A machine's steady clock, which no jump moves.
    fn steady(&self, who: &str) -> Clock {
        let (offset, clock) = (self.0.offsets[who].clone(), self.clock(who));
        Clock::new(move || Timestamp::from_unix_ms(clock.now().unix_ms() - offset.load(Ordering::Relaxed)))
    }

    fn add_coordinator(&self, sim: &mut Sim<'_>) {
        let net = self.clone();
        sim.host(COORDINATOR, move || {
            let net = net.clone();
            async move {
                let coordinator = Coordinator::open(&net.state_dir(COORDINATOR), net.clock(COORDINATOR))?;
                let endpoint = socket::endpoint(PORT, Some(coordinator.endpoint_config()?)).await?;
                *net.0.operator.lock().expect("not poisoned") = Some(coordinator.operator(net.operator_key()));
                coordinator.run(endpoint, std::future::pending()).await?;
                Ok(())
            }
        });
    }

    fn add_agent(&self, sim: &mut Sim<'_>, host: &HostName) {
        let (net, host) = (self.clone(), host.clone());
        sim.host(host.to_string(), move || {
            let (net, host) = (net.clone(), host.clone());
            async move {
                let state_dir = net.state_dir(host.as_str());
                let clock = net.clock(host.as_str());
                if Agent::identity(&state_dir)?.is_none() {
                    net.enrol(&host, &clock).await?;
                }
                let identity = Agent::identity(&state_dir)?.expect("it has enrolled");
                let machine = Arc::new(net.machine(&host));
                let client = socket::endpoint(0, None).await?;
                let steady = net.steady(host.as_str());
                Agent::open(&state_dir, identity, machine, client, clock, |_| Ok(steady))?.run().await?;
                Ok(())
            }
        });
    }

    /// Gets a host a certificate; its first one, or another.
    pub async fn enrol(&self, host: &HostName, clock: &Clock) -> anyhow::Result<()> {
        let operator = self.operator().await;
        let token = operator.issue_token(host.clone(), Length::from_secs(600)).await?;
        let enrolment = Enrolment {
            coordinator: format!("{}:{PORT}", turmoil::lookup(COORDINATOR)),
            token: token.reveal().to_owned(),
            authority_fingerprint: operator.authority_fingerprint().to_owned(),
            address: Some("127.0.0.1".to_owned()),
        };
        enroll(&self.state_dir(host.as_str()), enrolment, socket::endpoint(0, None).await?, clock).await?;
        Ok(())
    }

    /// One more host enrols, whose agent is the test's own: a connection with its certificate.
    pub async fn intruder(&self, name: &HostName) -> anyhow::Result<Connection> {
        let clock = self.clock(COORDINATOR);
        if !self.state_dir(name.as_str()).exists() {
            self.enrol(name, &clock).await?;
        }
        let identity = attacker::identity_in(&self.state_dir(name.as_str()));
        let mut client = socket::endpoint(0, None).await?;
        client.set_default_client_config(endpoint::agent(&identity, &clock)?);
        let to = SocketAddr::from((turmoil::lookup(COORDINATOR), PORT));
        Ok(client.connect(to, COORDINATOR_DNS_NAME)?.await?)
    }

    /// What stands for a host.
    pub fn machine(&self, host: &HostName) -> SimMachine {
        self.0.machines[host].clone()
    }

    /// Every host.
    pub fn hosts(&self) -> impl Iterator<Item = &HostName> {
        self.0.machines.keys()
    }

    /// Moves a machine's clock.
    pub fn jump(&self, who: &str, by: Duration) {
        let by = i64::try_from(by.as_millis()).expect("small");
        self.0.offsets[who].fetch_add(by, Ordering::Relaxed);
    }

    /// A machine loses its power: nothing of it says goodbye.
    pub fn crash(&self, who: &str) {
        if who == COORDINATOR {
            self.0.operator.lock().expect("not poisoned").take();
        }
        self.0.acts.lock().expect("not poisoned").push(Act::Crash(who.to_owned()));
    }

    /// It has power again, and starts what runs on it.
    pub fn restart(&self, who: &str) {
        self.0.acts.lock().expect("not poisoned").push(Act::Restart(who.to_owned()));
    }

    /// Every datagram between a host and the coordinator takes this long from now on.
    pub fn slow_link(&self, host: &HostName, latency: Duration) {
        self.0.acts.lock().expect("not poisoned").push(Act::Slow(host.to_string(), latency));
    }

    /// Cuts the link between a host and the coordinator.
    pub fn cut(&self, host: &HostName) {
        turmoil::partition(host.as_str(), COORDINATOR);
    }

    /// Nothing of a host reaches the coordinator; the other way all is well.
    pub fn mute(&self, host: &HostName) {
        turmoil::partition_oneway(host.as_str(), COORDINATOR);
    }

    /// Mends the link between a host and the coordinator.
    pub fn mend(&self, host: &HostName) {
        turmoil::repair(host.as_str(), COORDINATOR);
    }

    /// The operator of the coordinator, as soon as there is one.
    pub async fn operator(&self) -> Operator {
        loop {
            let operator = self.0.operator.lock().expect("not poisoned").clone();
            if let Some(operator) = operator {
                return operator;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Looks at the fleet, also over a restart of the coordinator.
    pub async fn look<T>(&self, look: impl Fn(&Fleet) -> T) -> T {
        loop {
            if let Ok(seen) = self.operator().await.look(&look) {
                return seen;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until something is so.
    #[track_caller]
    pub fn until(
        &self,
        what: &'static str,
        is_so: impl Fn(&Fleet) -> bool + Clone + Send + 'static,
    ) -> impl Future<Output = ()> {
        let net = self.clone();
        async move {
            let began = turmoil::elapsed();
            while !net.look(is_so.clone()).await {
                if turmoil::elapsed() - began > PATIENCE {
                    panic!("not so in time: {what}\n{}", net.look(summary).await);
                }
                sleep(LOOK_INTERVAL).await;
            }
        }
    }

    /// Waits until every host is connected.
    pub async fn connected(&self) {
        let hosts = self.0.machines.len();
        let all = move |fleet: &Fleet| fleet.hosts().values().filter(|host| host.connected).count() == hosts;
        self.until("every host is connected", all).await;
    }

    /// Starts the deployment of a version on every host.
    pub async fn start(&self, version: u64) -> Result<DeploymentId, Failure> {
        let hosts: Vec<HostName> = self.0.machines.keys().cloned().collect();
        let plan = self.look(move |fleet| plan(fleet, &hosts, version)).await;
        let options = Options { rollback: true, started_by: "test".to_owned() };
        self.operator().await.start(plan, options).await
    }

    /// Deploys a version on every host, to the end.
    pub async fn deploy(&self, version: u64) -> Outcome {
        let id = self.start(version).await.expect("it may start");
        self.outcome(&id).await
    }

    /// How a deployment ended, when it has.
    pub async fn outcome(&self, id: &DeploymentId) -> Outcome {
        let outcome = {
            let id = id.clone();
            move |fleet: &Fleet| fleet.deployment(&id)?.outcome()
        };
        let ended = outcome.clone();
        self.until("the deployment ends", move |fleet| ended(fleet).is_some()).await;
        self.look(outcome).await.expect("it has ended")
    }

    /// Waits until a step of a deployment is in one of these states.
    pub async fn step_is(&self, id: &DeploymentId, host: &HostName, states: &'static [&'static str]) {
        let (id, instance) = (id.clone(), InstanceId::new(server(), host.clone()));
        let is_so = move |fleet: &Fleet| {
            let step = fleet.deployment(&id).and_then(|deployment| deployment.steps().get(&instance));
            step.is_some_and(|step| states.contains(&step.state.name()))
        };
        self.until("the step is under way", is_so).await;
    }

    /// What runs on each host, by what is on its disk.
    pub fn running(&self) -> Vec<Option<ReleaseId>> {
        self.0.machines.values().map(|machine| machine.folder(&server()).current).collect()
    }

    /// That every host runs this version, and nothing was switched to twice.
    #[track_caller]
    pub fn assert_all_run(&self, wanted: u64) {
        for (host, machine) in &self.0.machines {
            let folder = machine.folder(&server());
            assert_eq!(folder.current, Some(version(wanted)), "{host}");
            let switches = folder.switches.iter().filter(|release| **release == version(wanted)).count();
            assert_eq!(switches, 1, "{host} was switched {switches} times");
        }
    }
}

/// Where everything stands, for whoever reads a failed test.
fn summary(fleet: &Fleet) -> String {
    let hosts = fleet.hosts().iter().map(|(name, host)| format!("{name} connected: {}\n", host.connected));
    let deployments = fleet.deployments().map(|deployment| {
        let steps = deployment.steps().iter().map(|(id, step)| format!("  {id}: {:?}\n", step.state));
        let steps: String = steps.collect();
        format!("{} {:?} {:?}\n{steps}", deployment.id(), deployment.phase(), deployment.failures())
    });
    hosts.chain(deployments).collect()
}

fn plan(fleet: &Fleet, hosts: &[HostName], version: u64) -> Plan {
    let release = release(&server(), version);
    let steps =
        hosts.iter().map(|host| step(fleet, InstanceId::new(server(), host.clone()), Some(release.clone()))).collect();
    let pace = ServerPace {
        max_unavailable: u32::try_from(hosts.len()).expect("few"),
        healthy_deadline: Length::from_secs(20),
        ..ServerPace::default()
    };
    Plan {
        manifest: "sim".parse().expect("name"),
        environment: "sim".parse().expect("name"),
        parent: fleet.generation(),
        groups: vec![Group { servers: vec![server()], steps }],
        skipped: Vec::new(),
        paces: [(server(), pace)].into(),
        rollout: Rollout {
            bake: Length::from_secs(2),
            progress_deadline: Length::from_secs(120),
            confirm_timeout: Length::from_secs(15),
            retry: RetryPolicy { attempts: 1, ..RetryPolicy::default() },
            ..Rollout::default()
        },
        rollback: RollbackPolicy {
            enabled: true,
            strategy: RollbackStrategy::Immediate,
            batch_size: 1,
            deadline: Length::from_secs(120),
        },
        starts_after: BTreeMap::new(),
        externals: Vec::new(),
        overrides: Vec::new(),
    }
}
