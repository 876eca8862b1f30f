//! The steps of a plan's instances. Many are made by all processors together, which changes nothing of what they are.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::{Planning, Present, Warnings, render, secret_sources};
use crate::config::{Problem, Problems};
use crate::host::HostView;
use crate::ids::{HostName, InstanceId, ReleaseId, ServerName};
use crate::plan::{PlanHash, PlannedStep, StepAction, add_step, begin_group};
use crate::release::{Release, SecretSource};

/// How many steps a processor makes before it asks for more.
const PART: usize = 100;
/// After so many problems nothing more is looked at.
const PROBLEMS_MAX: usize = 100;

/// Where an instance goes: the server by the number of its entry, and the host.
#[derive(Clone, Copy)]
pub(super) struct Location<'a> {
    /// The number of its group, where it is the first of it.
    pub(super) begins: Option<usize>,
    pub(super) entry: usize,
    pub(super) host: &'a HostName,
    pub(super) view: &'a HostView,
}

/// Steps that were made, or what is wrong with them.
#[derive(Default)]
struct Made {
    steps: Vec<PlannedStep>,
    problems: Vec<Problem>,
    warnings: Warnings,
}

/// The hash of a plan, to which parts are added in their order, however they come.
struct InOrder {
    hash: PlanHash,
    next: usize,
    waiting: BTreeMap<usize, Vec<u8>>,
}

impl InOrder {
    /// Adds a part, and gives back the memory of its JSON where that is not needed any more.
    fn add(&mut self, number: usize, mut json: Vec<u8>) -> Vec<u8> {
        if number != self.next {
            self.waiting.insert(number, json);
            return Vec::new();
        }
        loop {
            self.hash.add(&json);
            self.next += 1;
            match self.waiting.remove(&self.next) {
                Some(waiting) => json = waiting,
                None => break,
            }
        }
        json.clear();
        json
    }
}

/// The steps of instances, in their order and in parts, and the hash of their plan with all of them added. `groups` are
/// the servers of its groups.
pub(super) fn of_all(
    planning: Planning<'_>,
    locations: &[Location<'_>],
    groups: &[Vec<ServerName>],
    hash: PlanHash,
    warnings: &mut Warnings,
) -> Result<(Vec<Vec<PlannedStep>>, PlanHash), Problems> {
    let declared = secret_sources(&planning.configuration.environment.1);
    let parts: Vec<&[Location<'_>]> = locations.chunks(PART).collect();
    let processors = thread::available_parallelism().map_or(1, usize::from).min(parts.len());
    let next = AtomicUsize::new(0);
    let hash = Mutex::new(InOrder { hash, next: 0, waiting: BTreeMap::new() });
    let work = || some_parts(planning, &parts, groups, &next, &hash, &declared);
    let mut made: Vec<(usize, Made)> = thread::scope(|scope| {
        let others: Vec<_> = (1..processors).map(|_| scope.spawn(work)).collect();
        let mut made = work();
        for other in others {
            made.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        made
    });
    made.sort_unstable_by_key(|(number, _)| *number);
    let mut steps = Vec::with_capacity(made.len());
    let mut problems = Vec::new();
    for (_, part) in made {
        steps.push(part.steps);
        part.warnings.told.into_iter().for_each(|warning| warnings.add(warning));
        problems.extend(part.problems);
    }
    let mut told = Vec::new();
    problems.into_iter().take(PROBLEMS_MAX).for_each(|problem| tell(&mut told, problem));
    Problems::none_or(told)?;
    Ok((steps, hash.into_inner().unwrap_or_else(PoisonError::into_inner).hash))
}

/// What is wrong on every host is told once.
fn tell(told: &mut Vec<Problem>, problem: Problem) {
    if !told.contains(&problem) {
        told.push(problem);
    }
}

/// Makes one part after the other, as long as there are any that no other thread has taken. Who has found enough problems
/// stops: all parts before those are taken then, so that the first problems are the same whoever takes which part.
fn some_parts<'a>(
    planning: Planning<'a>,
    parts: &[&[Location<'a>]],
    groups: &[Vec<ServerName>],
    next: &AtomicUsize,
    hash: &Mutex<InOrder>,
    declared: &BTreeMap<String, SecretSource>,
) -> Vec<(usize, Made)> {
    let circumstances = planning.circumstances;
    let mut templates = render::Templates::new(&circumstances.variables, declared, &circumstances.files);
    let (mut made, mut json) = (Vec::new(), Vec::new());
    let mut problems = 0;
    while problems < PROBLEMS_MAX {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(locations) = parts.get(number) else { break };
        let part = one_part(planning, locations, groups, &mut templates, &mut json);
        problems += part.problems.len();
        json = hash.lock().unwrap_or_else(PoisonError::into_inner).add(number, json);
        made.push((number, part));
    }
    made
}

/// Makes one part, and appends its JSON.
fn one_part<'a>(
    planning: Planning<'a>,
    locations: &[Location<'a>],
    groups: &[Vec<ServerName>],
    templates: &mut render::Templates<'a>,
    json: &mut Vec<u8>,
) -> Made {
    let Planning { circumstances, entries, .. } = planning;
    let mut made = Made { steps: Vec::with_capacity(locations.len()), ..Made::default() };
    let mut written = Vec::new();
    for location in locations {
        let id = InstanceId::new(entries.name(location.entry).clone(), location.host.clone());
        match render::release(planning, *location, &id, templates, &mut made.warnings) {
            Ok(release) => {
                written.clear();
                release.write(&mut written);
                let present = circumstances.present.get(&id);
                let step = step(id, release, ReleaseId::of(&written), present);
                if let Some(group) = location.begins {
                    begin_group(json, group == 0, groups[group].iter());
                }
                add_step(json, location.begins.is_some(), &step, Some(&written));
                let why = step.release.as_ref().and_then(|release| release.irreversible.as_ref());
                if let Some(why) = why.filter(|_| step.action != StepAction::Unchanged) {
                    let server = &step.instance.server;
                    made.warnings.add(format!("{server} cannot be undone once it has run: {why}"));
                }
                made.steps.push(step);
            }
            Err(problems) => problems.0.into_iter().for_each(|problem| tell(&mut made.problems, problem)),
        }
        if made.problems.len() >= PROBLEMS_MAX {
            break;
        }
    }
    made
}

/// What becomes of an instance that runs `present` and is to run `release`.
pub(super) fn step(
    instance: InstanceId,
    release: Box<Release>,
    release_id: ReleaseId,
    present: Option<&Present>,
) -> PlannedStep {
    let action = match present {
        None => StepAction::Create,
        Some(present) if present.release_id == release_id && !present.in_trouble => StepAction::Unchanged,
        Some(_) => StepAction::Update,
    };
    let previous = present.map(|present| present.release_id.clone());
    PlannedStep { instance, action, previous, release: Some(release.into()), release_id: Some(release_id) }
}
