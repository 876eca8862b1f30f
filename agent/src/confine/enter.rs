//! Going where a program is to be, and becoming it. Nothing here runs beside anything else: it is a process of its own,
//! with one thread.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::fs::Mode;
use rustix::process::{Gid, Resource, Rlimit, Uid, geteuid, getrlimit, setrlimit, umask};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::needs::Needs;
use super::passage::{self, Needed, Passage};
use super::route;
use super::{Confinement, Profile, rules};
use crate::runtime::users::Identity;

/// What root keeps that goes on as root: what it takes to work with files of others and ports below 1024.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// Becomes a program, confined as its profile says. Returns only when that fails.
pub(crate) fn enter(profile: &Profile, report: Option<&Path>, words: &[OsString]) -> Result<Infallible> {
    let (program, arguments) = words.split_first().context("the command is empty")?;
    let mut told = Confinement::default();
    let mut report = report.map(open_report).transpose()?;
    limit(profile);
    for group in &profile.groups {
        // Before anything of the program has run, so that nothing of it is outside.
        if let Err(error) = std::fs::write(group.join("cgroup.procs"), "0") {
            told.left_out.push(format!("the control group {}: {error}", group.display()));
        }
    }
    let user = profile.user.clone().filter(|_| geteuid().is_root());
    let needed = needed(profile, words);
    // Mount points are made with the permissions that they are given.
    umask(Mode::empty());
    let shares_view = match (profile.view_of, &user) {
        (Some(pid), Some(user)) => {
            super::view::share(pid, user, profile.read.iter().chain(&profile.write).chain(&needed))
        }
        _ => false,
    };
    let open = |user: &Identity| if shares_view { Ok(Passage::default()) } else { passage(profile, &needed, user) };
    let user = match user.map(|user| (open(&user), user)) {
        None => None,
        Some((Ok(passage), user)) => {
            told.passages = passage.folders;
            if let Some(error) = passage.shares_temporary {
                told.left_out.push(format!("it shares /tmp with others: {error}"));
            }
            Some(user)
        }
        Some((Err(error), user)) if profile.may_stay => {
            told.left_out
                .push(format!("it runs as root, for {} cannot be let through to what it needs: {error}", user.name));
            None
        }
        Some((Err(error), user)) => {
            return Err(error).with_context(|| format!("{} cannot be let through to what it needs", user.name));
        }
    };
    umask(Mode::from_raw_mode(profile.umask));
    let ruleset = rules::landlock(profile, &needed);
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, value) in std::env::vars_os() {
        if let Some(meant) = name.to_str().and_then(|name| name.strip_prefix(super::LATER)) {
            command.env_remove(&name).env(meant, value);
        }
    }
    if let Some(user) = &user {
        become_user(user).with_context(|| format!("this process cannot become {}", user.name))?;
        told.user.clone_from(&user.name);
        told.no_capabilities = true;
        command.env("USER", &user.name).env("LOGNAME", &user.name);
    } else {
        told.user = if geteuid().is_root() { "root".to_owned() } else { format!("{}", geteuid().as_raw()) };
        told.no_capabilities = !geteuid().is_root();
        if profile.user.is_some()
            && geteuid().is_root()
            && let Err(error) = keep(KEPT)
        {
            told.left_out.push(format!("its capabilities cannot be taken away: {error}"));
        }
    }
    rustix::thread::set_no_new_privs(true).context("no_new_privs")?;
    told.no_new_privs = true;
    match ruleset.and_then(rules::enforce) {
        Ok(Some(version)) => {
            told.landlock = Some(version);
            told.files = profile.files != super::Files::All;
        }
        Ok(None) => told.left_out.push("this host's kernel has no Landlock".to_owned()),
        Err(error) => told.left_out.push(format!("Landlock: {error:#}")),
    }
    std::env::set_current_dir(&profile.folder)
        .with_context(|| format!("{} cannot be entered by {}", profile.folder.display(), told.user))?;
    match rules::seccomp()
        .and_then(|filters| Ok(filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter))?))
    {
        Ok(()) => told.seccomp = true,
        Err(error) => told.left_out.push(format!("seccomp: {error:#}")),
    }
    if let Some(report) = &mut report {
        report.write_all(&serde_json::to_vec(&told)?).context("the report cannot be written")?;
    }
    let error = command.exec();
    Err(error).with_context(|| format!("`{}` could not be started", program.display()))
}

/// Opened while its folder can be. It is closed when the program starts.
fn open_report(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path);
    opened.with_context(|| path.display().to_string())
}

/// Cores of processes hold their secrets.
fn limit(profile: &Profile) {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    let _ = setrlimit(Resource::Nofile, open_files(getrlimit(Resource::Nofile)));
    if let Some(bytes) = profile.file_bytes_max {
        let _ = setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) });
    }
    // Not the address space: V8 reserves far more of that than it uses.
    if let Some(bytes) = profile.data_bytes_max {
        let _ = setrlimit(Resource::Data, Rlimit { current: Some(bytes), maximum: Some(bytes) });
    }
    // Of a user that is shared with others, their processes would count as well.
    if let Some(tasks) = profile.tasks_max.filter(|_| profile.user.is_some() && geteuid().is_root()) {
        let _ = setrlimit(Resource::Nproc, Rlimit { current: Some(tasks), maximum: Some(tasks) });
    }
}

/// What the program needs of places that are closed to its user.
fn needed(profile: &Profile, words: &[OsString]) -> Vec<PathBuf> {
    let Some(user) = &profile.user else { return Vec::new() };
    let path = std::env::var("PATH").unwrap_or_default();
    let mut needs = Needs::of(user, &path, profile.files == super::Files::System);
    for program in
        words.first().and_then(|word| word.to_str()).into_iter().chain(profile.programs.iter().map(String::as_str))
    {
        needs.program(program);
    }
    words.iter().for_each(|word| needs.named(word));
    needs.environment();
    let given: Vec<PathBuf> =
        profile.read.iter().chain(&profile.write).filter_map(|path| path.canonicalize().ok()).collect();
    let found = needs.found().into_iter();
    found.filter(|path| !given.iter().any(|given| path.starts_with(given))).collect()
}

/// Lets the program through to everything that it needs.
fn passage(profile: &Profile, needed: &[PathBuf], user: &Identity) -> Result<Passage> {
    // Its own folders are in one of root's; of what else is named, a link of the user's own leads nowhere.
    let real = |path: &PathBuf| route::resolve(path, user).map(|route| route.end);
    let read = profile.read.iter().chain(needed).filter_map(real).map(|path| Needed { path, writable: false });
    let write = profile.write.iter().filter_map(real).map(|path| Needed { path, writable: true });
    // What lies in something else comes after it, and so is mounted over it.
    let all: BTreeSet<Needed> = read.chain(write).collect();
    Ok(passage::open(&all, user, profile.temporary.as_deref())?)
}

/// Becomes a user for good, without any capability.
fn become_user(user: &Identity) -> rustix::io::Result<()> {
    bound(CapabilitySet::empty())?;
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    set(CapabilitySet::empty())
}

/// Keeps these capabilities and no others.
fn keep(kept: CapabilitySet) -> rustix::io::Result<()> {
    bound(kept)?;
    let held = rustix::thread::capabilities(None)?.permitted;
    set(kept & held)
}

fn bound(kept: CapabilitySet) -> rustix::io::Result<()> {
    for one in CapabilitySet::all().difference(kept).iter_names().map(|(_, one)| one) {
        // A kernel does not know those that came after it.
        if rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false) {
            rustix::thread::remove_capability_from_bounding_set(one)?;
        }
    }
    let _ = rustix::thread::clear_ambient_capability_set();
    Ok(())
}

fn set(kept: CapabilitySet) -> rustix::io::Result<()> {
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

/// Most files that a program has open at once: enough for any server, and not too many to look at.
pub(crate) const OPEN_FILES_MAX: u64 = 65_536;

/// The limit of open files, where it was this.
fn open_files(was: Rlimit) -> Rlimit {
    let most = was.maximum.map_or(OPEN_FILES_MAX, |maximum| maximum.min(OPEN_FILES_MAX));
    Rlimit { current: Some(most), maximum: Some(most) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_no_more_files_open_than_can_be_looked_at() {
        let limit = |maximum| open_files(Rlimit { current: Some(1_024), maximum });
        for (was, is) in [(None, 65_536), (Some(1 << 20), 65_536), (Some(4_096), 4_096)] {
            assert_eq!(limit(was), Rlimit { current: Some(is), maximum: Some(is) });
        }
    }
}
