//! Room on the disk with the agent's state: how much there is, what servers use of it, and a reserve that is given up
//! first, so that a release can be put back on a full disk.

mod open_files;
mod reserve;
mod walk;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fleetwright_deploy::ids::ServerName;
use fleetwright_deploy::room::{Room, Used};

use self::open_files::Processes;
use crate::layout::{Layout, ServerLayout};
use crate::runtime::{self, unit};
use crate::stage;

pub(crate) use self::reserve::Reserve;

/// The room of the file system that something is on.
fn space(path: &Path) -> std::io::Result<Room> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(Room {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_files: stat.f_files,
        free_files: stat.f_favail,
        servers: BTreeMap::new(),
    })
}

/// The room on the file system with the state, without what servers use of it.
pub(crate) fn free(layout: &Layout) -> Option<Room> {
    space(layout.state_dir()).ok()
}

/// What is below a folder that a server may write; nothing where that is on another disk.
pub(crate) fn below(layout: &Layout, folder: &Path) -> Option<Used> {
    walk::used(folder, fs::metadata(layout.state_dir()).ok()?.dev(), Instant::now() + walk::PATIENCE)
}

/// The room, and what these servers use of it: what is below their folders, and what their processes hold open although
/// it has no name any more.
pub(crate) fn measure(layout: &Layout, servers: &[ServerName]) -> Option<Room> {
    let mut room = free(layout)?;
    if servers.is_empty() {
        return Some(room);
    }
    let device = fs::metadata(layout.state_dir()).ok()?.dev();
    let own: Vec<_> = servers.iter().map(|name| (name, layout.server(name))).collect();
    let users: Vec<Option<u32>> = own.iter().map(|(_, server)| open_files::own_user(&server.data())).collect();
    let processes = Processes::now();
    for ((name, server), user) in own.iter().zip(&users) {
        // A user that several servers share says nothing of any of them.
        let user = user.filter(|user| users.iter().filter(|other| **other == Some(*user)).count() == 1);
        let held = processes.unnamed_files(&processes.of(runtime::pid(server), user), device);
        let end = Instant::now() + walk::PATIENCE;
        let own = [server.data(), server.logs(), server.temporary()].into_iter();
        let below = own.chain(private_temporary(&unit::name(server))).chain(writable(server));
        let used = below.filter_map(|folder| walk::used(&folder, device, end)).chain([held]);
        let used = used.fold(Used::default(), Used::and);
        if used != Used::default() {
            room.servers.insert((*name).clone(), used);
        }
    }
    Some(room)
}

/// The folders that systemd has made for the temporary files of a unit alone (`PrivateTmp`, systemd.exec(5)).
fn private_temporary(unit: &str) -> Vec<PathBuf> {
    let is_units = |name: &str| {
        name.strip_prefix("systemd-private-").is_some_and(|rest| {
            rest.split_once('-').and_then(|(_, rest)| rest.strip_prefix(unit)).is_some_and(|end| end.starts_with('-'))
        })
    };
    let folders = ["/tmp", "/var/tmp"].into_iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    let of_unit = folders.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_units));
    // Whoever else makes a folder of that name has it counted for the unit, unless it must be root's.
    let of_root = of_unit.filter(|entry| entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == 0));
    of_root.map(|entry| entry.path().join("tmp")).collect()
}

/// What else of the host's a server's release may write.
fn writable(server: &ServerLayout) -> Vec<PathBuf> {
    let release = runtime::current(server).and_then(|id| stage::load(&server.release(&id)));
    release.map(|release| release.run.writable.iter().map(PathBuf::from).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_output_of_a_server_are_counted_and_links_are_not_followed() {
        let folder = tempfile::tempdir().expect("folder");
        let layout = Layout::new(folder.path());
        let name: ServerName = "web".parse().expect("name");
        let server = layout.server(&name);
        for folder in [server.data().join("deep"), server.logs()] {
            fs::create_dir_all(&folder).expect("folder");
            fs::write(folder.join("file"), vec![1; 1 << 20]).expect("file");
        }
        std::os::unix::fs::symlink("/", server.data().join("link")).expect("link");
        fs::hard_link(server.data().join("deep/file"), server.data().join("again")).expect("hard link");
        let room = measure(&layout, std::slice::from_ref(&name)).expect("room");
        let used = room.servers[&name];
        assert!((2 << 20..3 << 20).contains(&used.bytes), "{used:?}");
        assert_eq!(used.files, 6, "data, link, deep, its file with two names, logs, its file");
        assert!(!used.is_too_deep && !used.is_too_much);
    }

    #[test]
    fn what_is_too_deep_or_takes_too_long_is_more_than_can_be_counted() {
        let folder = tempfile::tempdir().expect("folder");
        let mut deep = folder.path().to_owned();
        for _ in 0..crate::beneath::DEPTH_MAX + 2 {
            deep.push("d");
            fs::create_dir(&deep).expect("folder");
        }
        fs::write(deep.join("fill"), vec![1; 1 << 20]).expect("write");
        let device = fs::metadata(folder.path()).expect("folder").dev();
        let used = |end| walk::used(folder.path(), device, end).expect("counted");
        assert!(used(Instant::now() + walk::PATIENCE).is_too_deep);
        fs::remove_dir_all(folder.path().join("d")).expect("remove");
        assert!(!used(Instant::now() + walk::PATIENCE).is_too_deep);
        fs::write(folder.path().join("file"), "").expect("write");
        let over = Instant::now();
        while Instant::now() == over {}
        assert!(used(over).is_too_much, "there is no time left");
    }

    #[test]
    fn what_a_unit_writes_to_its_own_temporary_files_is_its_own() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let unit = format!("fleetwright-count-{}.service", std::process::id());
        let own = PathBuf::from(format!("/var/tmp/systemd-private-0123456789abcdef-{unit}-AbCdEf"));
        let other = PathBuf::from(format!("/var/tmp/systemd-private-0123456789abcdef-{unit}x-AbCdEf"));
        for folder in [&own, &other] {
            fs::create_dir_all(folder.join("tmp")).expect("folder");
        }
        let found = private_temporary(&unit);
        for folder in [&own, &other] {
            fs::remove_dir_all(folder).expect("remove");
        }
        assert_eq!(found, [own.join("tmp")]);
    }
}
