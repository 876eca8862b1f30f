//! What a run is made of: the fleet, its plans, and everything that goes wrong, all drawn from the seed.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use fleetwright_deploy::fleet::Fleet;
use fleetwright_deploy::ids::{HostName, InstanceId, ReleaseId, ServerName};
use fleetwright_deploy::plan::{
    External, ExternalEndpoint, Group, OnFailure, OnTimeout, Pace, PauseAt, PausePoint, Plan, PlannedStep, RetryPolicy,
    RollbackPolicy, RollbackStrategy, Rollout, StepAction,
};
use fleetwright_deploy::release::Release;
use fleetwright_deploy::time::Length;

/// How long things go wrong, in milliseconds.
pub(super) const CHAOS_MS: i64 = 240_000;

/// Something that goes wrong, or that a person does, at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Somebody deploys the next version of everything.
    Deploy {
        /// Chooses the policies of the plan.
        policies: u64,
    },
    /// The coordinator is killed, perhaps in the midst of a write, and starts again.
    CrashCoordinator {
        /// How long it is gone.
        for_ms: i64,
        /// Whether the last commit is torn.
        torn: bool,
    },
    /// A host loses power and starts again.
    CrashHost {
        /// Which.
        host: usize,
        /// How long it is gone.
        for_ms: i64,
    },
    /// A host and the coordinator cannot reach each other.
    Partition {
        /// Which.
        host: usize,
        /// How long.
        for_ms: i64,
    },
    /// The next message from or to a host is lost.
    Lose {
        /// Which.
        host: usize,
    },
    /// A host's clock jumps.
    Jump {
        /// Which; the coordinator's when there is no such host.
        host: usize,
        /// How far.
        by_ms: i64,
    },
    /// A server is unhealthy for a while.
    Flap {
        /// Which of those that run.
        which: usize,
    },
    /// The disk of a host lets the next work fail.
    Fail {
        /// Which.
        host: usize,
        /// Whether trying again helps.
        transient: bool,
    },
    /// A person does something to the newest deployment.
    Person {
        /// What.
        act: Act,
        /// Who.
        who: usize,
    },
}

/// What a person does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Pause,
    Resume,
    Approve,
    Reject,
    Cancel,
    Retry,
    Skip,
    Resolve,
    Rollback,
    RollbackPart,
    RollbackNow,
    Halt,
    Unhalt,
}

const ACTS: [Act; 13] = [
    Act::Pause,
    Act::Resume,
    Act::Approve,
    Act::Reject,
    Act::Cancel,
    Act::Retry,
    Act::Skip,
    Act::Resolve,
    Act::Rollback,
    Act::RollbackPart,
    Act::RollbackNow,
    Act::Halt,
    Act::Unhalt,
];

/// Everything about a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Draws what is not in the scenario: delays, durations, how releases behave.
    pub seed: u64,
    /// How many hosts there are.
    pub hosts: usize,
    /// For each group, for each of its servers, how many instances it has.
    pub groups: Vec<Vec<usize>>,
    /// What goes wrong, and when, in milliseconds.
    pub faults: Vec<(i64, Fault)>,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let hosts = rng.usize(1..=4);
        let groups = (0..rng.usize(1..=3)).map(|_| (0..rng.usize(1..=2)).map(|_| rng.usize(1..=hosts)).collect());
        let groups = groups.collect();
        let mut faults = vec![(1_000, Fault::Deploy { policies: rng.u64(..) })];
        // Some runs are calm, so that what is only seen without faults is seen too.
        for _ in 0..rng.usize(0..40) {
            faults.push((rng.i64(1_000..CHAOS_MS), fault(&mut rng, hosts)));
        }
        faults.sort_by_key(|(at, _)| *at);
        Self { seed, hosts, groups, faults }
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = HostName> {
        (0..self.hosts).map(host)
    }

    /// A plan from what the fleet runs to the given version of everything; nothing when that changes nothing.
    pub(super) fn plan(&self, fleet: &Fleet, version: u64, policies: u64) -> Option<Plan> {
        let mut rng = Rng::with_seed(policies);
        let mut groups = Vec::new();
        let mut wanted = BTreeSet::new();
        // Half of the plans are about some servers only, so that several deployments are under way at once.
        let partial = rng.bool();
        for (g, servers) in self.groups.iter().enumerate() {
            let mut group = Group { servers: Vec::new(), steps: Vec::new() };
            for (s, count) in servers.iter().enumerate() {
                // Now and then a server is left out, so that it is removed; or stays as it is.
                if rng.u8(..) < if partial { 140 } else { 20 } {
                    continue;
                }
                let server: ServerName = format!("s{g}-{s}").parse().expect("name");
                let version = if rng.u8(..) < 30 { 1 } else { version };
                for n in 0..*count {
                    let instance = InstanceId::new(server.clone(), host(n));
                    group.steps.push(step(fleet, instance.clone(), Some(release(&server, version))));
                    wanted.insert(instance);
                }
                group.servers.push(server);
            }
            if !group.steps.is_empty() {
                groups.push(group);
            }
        }
        let gone = fleet.instances().keys().filter(|id| !partial && !wanted.contains(*id));
        let gone: Vec<InstanceId> = gone.cloned().collect();
        if !gone.is_empty() {
            let servers: BTreeSet<ServerName> = gone.iter().map(|id| id.server.clone()).collect();
            let steps = gone.into_iter().map(|id| step(fleet, id, None)).collect();
            groups.push(Group { servers: servers.into_iter().collect(), steps });
        }
        let paces = groups.iter().flat_map(|group| group.servers.iter().cloned());
        let paces = paces.map(|server| (server, pace(&mut rng))).collect();
        let rollout = rollout(&mut rng, &groups);
        let starts_after = starts_after(&mut rng, &groups);
        let externals = (0..if rng.u8(..) < 60 { rng.usize(1..3) } else { 0 }).map(external).collect();
        let plan = Plan {
            manifest: "sim".parse().expect("name"),
            environment: "sim".parse().expect("name"),
            parent: fleet.generation(),
            groups,
            skipped: Vec::new(),
            paces,
            rollout,
            rollback: RollbackPolicy {
                enabled: rng.u8(..) > 20,
                strategy: [
                    RollbackStrategy::Immediate,
                    RollbackStrategy::Batch,
                    RollbackStrategy::Graceful,
                    RollbackStrategy::Aggressive,
                    RollbackStrategy::Manual,
                ][rng.usize(..5)],
                batch_size: rng.u32(1..3),
                deadline: Length::from_secs(rng.u64(30..120)),
            },
            starts_after,
            externals,
            overrides: Vec::new(),
        };
        (plan.summary().changes() > 0).then_some(plan)
    }
}

/// The step that takes an instance from what the fleet runs to a release.
pub(crate) fn step(fleet: &Fleet, instance: InstanceId, release: Option<Release>) -> PlannedStep {
    let present = fleet.instances().get(&instance);
    let release_id = release.as_ref().map(Release::id);
    let action = match (present, &release_id) {
        (_, None) => StepAction::Remove,
        (None, Some(_)) => StepAction::Create,
        (Some(present), Some(id)) if present.release_id == *id && present.trouble.is_none() => StepAction::Unchanged,
        (Some(_), Some(_)) => StepAction::Update,
    };
    PlannedStep {
        instance,
        action,
        previous: present.map(|present| present.release_id.clone()),
        release: release.map(Into::into),
        release_id,
    }
}

/// Now and then the first server of a group starts after all others of it.
fn starts_after(rng: &mut Rng, groups: &[Group]) -> BTreeMap<ServerName, BTreeSet<ServerName>> {
    let mut after = BTreeMap::new();
    for group in groups.iter().filter(|_| rng.bool()) {
        if let [first, others @ ..] = group.servers.as_slice()
            && !others.is_empty()
        {
            after.insert(first.clone(), others.iter().cloned().collect());
        }
    }
    after
}

fn external(n: usize) -> External {
    let endpoint = ExternalEndpoint::Tcp { address: format!("e{n}:1") };
    External { name: format!("e{n}").parse().expect("name"), endpoint, timeout: Length::from_secs(5) }
}

fn pace(rng: &mut Rng) -> Pace {
    Pace {
        canary: rng.u32(0..3),
        bake: Length::from_secs(rng.u64(0..5)),
        batch: rng.u32(0..3),
        max_unavailable: rng.u32(1..3),
        min_healthy_time: Length::from_secs(1),
        healthy_deadline: Length::from_secs(rng.u64(5..20)),
    }
}

fn rollout(rng: &mut Rng, groups: &[Group]) -> Rollout {
    let mut pauses = Vec::new();
    if rng.u8(..) < 60 && !groups.is_empty() {
        pauses.push(PausePoint {
            at: match rng.bool() {
                true => PauseAt::BeforeGroup(rng.usize(0..groups.len())),
                false => PauseAt::AfterCanary(groups[0].servers[0].clone()),
            },
            approvals: rng.u32(1..3),
            timeout: rng.bool().then(|| Length::from_secs(rng.u64(5..40))),
            on_timeout: if rng.bool() { OnTimeout::Approve } else { OnTimeout::Reject },
        });
    }
    Rollout {
        max_parallel: rng.u32(1..6),
        bake: Length::from_secs(rng.u64(0..8)),
        progress_deadline: Length::from_secs(rng.u64(30..90)),
        confirm_timeout: Length::from_secs(rng.u64(5..20)),
        failure_threshold: if rng.u8(..) < 60 { 1 } else { 0 },
        on_failure: [OnFailure::Rollback, OnFailure::Rollback, OnFailure::Pause, OnFailure::Continue][rng.usize(..4)],
        pauses,
        retry: RetryPolicy { attempts: rng.u32(1..4), kinds: BTreeMap::new(), ..RetryPolicy::default() },
    }
}

fn fault(rng: &mut Rng, hosts: usize) -> Fault {
    let host = rng.usize(0..hosts);
    match rng.u8(0..23) {
        0..2 | 22 => Fault::Deploy { policies: rng.u64(..) },
        // Now and then a host is gone for longer than any deployment waits for it.
        2 => Fault::CrashHost { host, for_ms: rng.i64(300_000..900_000) },
        3..6 => Fault::CrashCoordinator { for_ms: rng.i64(100..20_000), torn: rng.bool() },
        6..8 => Fault::CrashHost { host, for_ms: rng.i64(100..30_000) },
        8..10 => Fault::Partition { host, for_ms: rng.i64(100..60_000) },
        10 => Fault::Lose { host },
        11 => Fault::Jump { host: rng.usize(0..=hosts), by_ms: rng.i64(-20_000..20_000) },
        12 => Fault::Flap { which: rng.usize(..) },
        13..15 => Fault::Fail { host, transient: rng.bool() },
        _ => Fault::Person { act: ACTS[rng.usize(..ACTS.len())], who: rng.usize(0..3) },
    }
}

/// The name of a host.
pub(super) fn host(n: usize) -> HostName {
    format!("h{n}").parse().expect("name")
}

/// A version of a server.
pub(crate) fn release(server: &ServerName, version: u64) -> Release {
    let mut release = Release::plain(server.clone(), vec![format!("v{version}")]);
    release.run.stop_timeout = Length::from_secs(1);
    release.snapshot_data = true;
    release
}

/// How a release behaves wherever it runs: most become healthy, some end at once, some never answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    Healthy,
    Ends,
    Mute,
}

pub(super) fn behaviour(seed: u64, release: &ReleaseId) -> Behaviour {
    let drawn = u64::from_str_radix(&release.as_str()[..8], 16).expect("hexadecimal") ^ seed;
    match Rng::with_seed(drawn).u8(..) {
        0..12 => Behaviour::Ends,
        12..20 => Behaviour::Mute,
        _ => Behaviour::Healthy,
    }
}
