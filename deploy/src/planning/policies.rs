//! How carefully to proceed: what a server's entry says, else the manifest, else its environment, else the
//! defaults.

use std::collections::{BTreeMap, BTreeSet};

use super::Configuration;
use super::entries::Entries;
use crate::config::{PaceWritten, PauseWritten, Problem, RolloutWritten, Share};
use crate::ids::ServerName;
use crate::plan::{Group, OnTimeout, Pace, PauseAt, PausePoint, RetryPolicy, RollbackPolicy, Rollout};

/// What holds for the whole, pause points left out: these need the groups.
pub(super) fn rollout(configuration: &Configuration) -> Rollout {
    let (m, e) = (&configuration.manifest.1.rollout, &configuration.environment.1.rollout);
    let d = Rollout::default();
    let retry = RetryPolicy {
        attempts: m.retry.attempts.or(e.retry.attempts).unwrap_or(d.retry.attempts),
        base: m.retry.base.or(e.retry.base).unwrap_or(d.retry.base),
        max: m.retry.max.or(e.retry.max).unwrap_or(d.retry.max),
        total: m.retry.total.or(e.retry.total).unwrap_or(d.retry.total),
        kinds: e.retry.kinds.clone().into_iter().chain(m.retry.kinds.clone()).collect(),
    };
    Rollout {
        max_parallel: m.max_parallel.or(e.max_parallel).unwrap_or(d.max_parallel),
        bake: m.bake.or(e.bake).unwrap_or(d.bake),
        progress_deadline: m.progress_deadline.or(e.progress_deadline).unwrap_or(d.progress_deadline),
        confirm_timeout: m.confirm_timeout.or(e.confirm_timeout).unwrap_or(d.confirm_timeout),
        failure_threshold: m.failure_threshold.or(e.failure_threshold).unwrap_or(d.failure_threshold),
        on_failure: m.on_failure.or(e.on_failure).unwrap_or(d.on_failure),
        pauses: Vec::new(),
        retry,
    }
}

pub(super) fn rollback(configuration: &Configuration) -> RollbackPolicy {
    let (m, e) = (configuration.manifest.1.rollback, configuration.environment.1.rollback);
    let d = RollbackPolicy::default();
    RollbackPolicy {
        enabled: m.enabled.or(e.enabled).unwrap_or(d.enabled),
        strategy: m.strategy.or(e.strategy).unwrap_or(d.strategy),
        batch_size: m.batch_size.or(e.batch_size).unwrap_or(d.batch_size),
        deadline: m.deadline.or(e.deadline).unwrap_or(d.deadline),
    }
}

/// What is written about the pace of a server, the most particular first.
fn written<T>(
    configuration: &Configuration,
    own: Option<&PaceWritten>,
    of_server: impl Fn(&PaceWritten) -> Option<T>,
    of_rollout: impl Fn(&RolloutWritten) -> Option<T>,
) -> Option<T> {
    own.and_then(of_server)
        .or_else(|| of_rollout(&configuration.manifest.1.rollout))
        .or_else(|| of_rollout(&configuration.environment.1.rollout))
}

/// How fast the `instances` instances of a server are switched, of which its own entry says this.
pub(super) fn pace(configuration: &Configuration, own: Option<&PaceWritten>, instances: usize) -> Pace {
    let d = Pace::default();
    let share = |of_server: fn(&PaceWritten) -> Option<Share>, of_rollout: fn(&RolloutWritten) -> Option<Share>| {
        written(configuration, own, of_server, of_rollout)
    };
    Pace {
        canary: share(|w| w.canary, |w| w.canary).map_or(d.canary, |share| share.of_rounded_up(instances)),
        bake: written(configuration, own, |w| w.bake, |w| w.bake).unwrap_or(d.bake),
        batch: share(|w| w.batch, |w| w.batch).map_or(d.batch, |share| share.of_rounded_up(instances)),
        max_unavailable: share(|w| w.max_unavailable, |w| w.max_unavailable)
            .map_or(d.max_unavailable, |share| share.of_rounded_down(instances)),
        min_healthy_time: written(configuration, own, |w| w.min_healthy_time, |w| w.min_healthy_time)
            .unwrap_or(d.min_healthy_time),
        healthy_deadline: written(configuration, own, |w| w.healthy_deadline, |w| w.healthy_deadline)
            .unwrap_or(d.healthy_deadline),
    }
}

/// The paces of all servers of a plan: of those that have so many instances, by the numbers of their entries, and of
/// those that have none any more.
pub(super) fn paces(
    configuration: &Configuration,
    entries: &Entries<'_>,
    instances: impl Iterator<Item = (usize, usize)>,
    removals: &[Group],
) -> BTreeMap<ServerName, Pace> {
    let paces = instances.map(|(number, count)| {
        (entries.name(number).clone(), pace(configuration, Some(&entries.entry(number).rollout), count))
    });
    let mut paces: BTreeMap<ServerName, Pace> = paces.collect();
    for group in removals {
        for steps in group.steps.chunk_by(|a, b| a.instance.server == b.instance.server) {
            let server = &steps[0].instance.server;
            if !paces.contains_key(server) {
                let own = entries.number(server).map(|number| &entries.entry(number).rollout);
                paces.insert(server.clone(), pace(configuration, own, steps.len()));
            }
        }
    }
    paces
}

/// Where the deployment waits for people, in the order of the groups.
pub(super) fn pauses(
    configuration: &Configuration,
    entries: &Entries<'_>,
    groups: &[Group],
    paces: &BTreeMap<ServerName, Pace>,
) -> Vec<PausePoint> {
    let (m, e) = (&configuration.manifest.1.rollout, &configuration.environment.1.rollout);
    let group_of = |server: &ServerName| groups.iter().position(|group| group.servers.contains(server));
    let mut points: Vec<PausePoint> = Vec::new();
    for PauseWritten { before, after_canary, approvals, timeout, on_timeout } in
        m.pauses.iter().chain(&e.pauses).map(|pause| &pause.value)
    {
        // A server that was left out, or that another manifest has, is waited for by nobody.
        let at = match (before, after_canary) {
            (Some(server), _) => group_of(server).map(PauseAt::BeforeGroup),
            (None, Some(server)) => group_of(server).map(|_| PauseAt::AfterCanary(server.clone())),
            (None, None) => None,
        };
        let point = at.map(|at| PausePoint {
            at,
            approvals: approvals.unwrap_or(1),
            timeout: *timeout,
            on_timeout: *on_timeout,
        });
        points.extend(point);
    }
    let of_canary = |point: &PausePoint| match &point.at {
        PauseAt::AfterCanary(server) => Some(server.clone()),
        PauseAt::BeforeGroup(_) => None,
    };
    let said: BTreeSet<ServerName> = points.iter().filter_map(of_canary).collect();
    for server in paces.iter().filter(|(_, pace)| pace.canary > 0).map(|(server, _)| server) {
        let own = entries.number(server).map(|number| &entries.entry(number).rollout);
        let promoted = written(configuration, own, |w| w.auto_promote, |w| w.auto_promote).unwrap_or(true);
        if !promoted && !said.contains(server) {
            let at = PauseAt::AfterCanary(server.clone());
            points.push(PausePoint { at, approvals: 1, timeout: None, on_timeout: Default::default() });
        }
    }
    points
}

/// Whether people must approve before the first group, whatever time passes.
pub(super) fn waits_before(configuration: &Configuration, first: &[&ServerName]) -> bool {
    let (m, e) = (&configuration.manifest.1.rollout, &configuration.environment.1.rollout);
    m.pauses.iter().chain(&e.pauses).any(|pause| {
        let pause = &pause.value;
        let by_people = pause.approvals.unwrap_or(1) > 0 && pause.on_timeout != OnTimeout::Approve;
        by_people && pause.before.as_ref().is_some_and(|server| first.contains(&server))
    })
}

/// What is wrong with the pause points as they are written.
pub(super) fn pause_problems(configuration: &Configuration, entries: &Entries<'_>) -> Vec<Problem> {
    let (manifest_source, manifest) = &configuration.manifest;
    let (environment_source, environment) = &configuration.environment;
    let written = manifest.rollout.pauses.iter().map(|pause| (manifest_source, pause));
    let written = written.chain(environment.rollout.pauses.iter().map(|pause| (environment_source, pause)));
    let mut problems = Vec::new();
    for (source, pause) in written {
        let ((Some(server), None) | (None, Some(server))) = (&pause.value.before, &pause.value.after_canary) else {
            let problem = Problem::at(source, pause, "a pause is either `before` or `after_canary` a server");
            problems.push(problem.hint("for example `{ before: git, approvals: 1 }`"));
            continue;
        };
        if entries.number(server).is_none() && source.path == manifest_source.path {
            problems.push(Problem::at(source, pause, format!("the manifest has no server `{server}` to pause at")));
        }
        if pause.value.approvals == Some(0) && pause.value.timeout.is_none() {
            let problem = Problem::at(source, pause, "a pause that needs no approval needs a `timeout`");
            problems.push(problem.hint("with `on_timeout: approve` it goes on by itself then"));
        }
    }
    problems
}
