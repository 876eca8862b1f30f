//! Room on the disk with the agent's state: how much there is, what servers use of it, and a reserve that is given up
//! first, so that a release can be put back on a full disk.

mod open_files;
mod reserve;
mod walk;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fleetwright_deploy::ids::ServerName;
use fleetwright_deploy::release::Release;
use fleetwright_deploy::room::{Elsewhere, Room, Used};
use rustix::fs::StatVfs;

use self::open_files::{OPEN_MAX, Processes};
use crate::beneath::{Folder, reach_folder};
use crate::layout::Layout;
use crate::runtime::{self, unit};
use crate::stage;

pub(crate) use self::reserve::Reserve;

/// The room of the file system that something is on.
fn space(path: &Path) -> std::io::Result<Room> {
    Ok(room_of(&rustix::fs::statvfs(path)?))
}

/// The room of a file system.
pub(crate) fn room_of(stat: &StatVfs) -> Room {
    Room {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_files: stat.f_files,
        free_files: stat.f_favail,
        ..Room::default()
    }
}

/// The room on the file system with the state, without what servers use of it.
pub(crate) fn free(layout: &Layout) -> Option<Room> {
    space(layout.state_dir()).ok()
}

/// What is below a folder that a server may write; nothing where that is on another disk.
pub(crate) fn below(layout: &Layout, folder: &Path) -> Option<Used> {
    let device = fs::metadata(layout.state_dir()).ok()?.dev();
    let found = walk::used(&Folder::open(folder).ok()?, device, Instant::now() + walk::PATIENCE)?;
    (found.device == device).then_some(found.used)
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
        let (mut held, is_more) = processes.unnamed_files(&processes.of(runtime::pid(server), user), OPEN_MAX);
        let end = Instant::now() + walk::PATIENCE;
        let own = [server.data(), server.logs(), server.temporary()].into_iter();
        let release = runtime::current(server).and_then(|id| stage::load(&server.release(&id)));
        let own = own.chain(private_temporary(&unit::name(server))).filter_map(|folder| Folder::open(&folder).ok());
        let mut used = held.remove(&device).unwrap_or_default();
        // Who holds more open than anybody looks at may hide anything there.
        used.is_too_much |= is_more;
        let mut elsewhere = Elsewhere::default();
        let (named, unmeasured) = release.as_ref().map(writable).unwrap_or_default();
        elsewhere.unmeasured.extend(unmeasured);
        let below: Vec<Folder> = own.chain(named).collect();
        for found in below.iter().filter_map(|folder| walk::used(folder, device, end)) {
            elsewhere.unmeasured.extend(found.unmeasured);
            if found.device == device {
                used = used.and(found.used);
                continue;
            }
            elsewhere.used = elsewhere.used.and(found.used).and(held.remove(&found.device).unwrap_or_default());
            elsewhere.is_low |= found.room.is_critical();
            elsewhere.lacks_enough |= !found.room.is_enough();
        }
        if release.is_some_and(|release| release.package.image().is_some()) {
            elsewhere.unmeasured.push("what its container writes is measured only below its data folder".to_owned());
        }
        if used != Used::default() {
            room.servers.insert((*name).clone(), used);
        }
        if elsewhere != Elsewhere::default() {
            room.elsewhere.insert((*name).clone(), elsewhere);
        }
    }
    Some(room)
}

/// The folders of the host that a release may write, and those that cannot be looked at, in words. An operator may have named a
/// link, which counts where the server could not have made it.
fn writable(release: &Release) -> (Vec<Folder>, Vec<String>) {
    let (mut folders, mut unmeasured) = (Vec::new(), Vec::new());
    for path in &release.run.writable {
        match reach_folder(Path::new(path)) {
            Ok(folder) => folders.extend(folder),
            Err(failure) => unmeasured.push(format!("not what is at {path}: {}", failure.message)),
        }
    }
    (folders, unmeasured)
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
        let opened = Folder::open(folder.path()).expect("opened");
        let used = |end| walk::used(&opened, device, end).expect("counted").used;
        assert!(used(Instant::now() + walk::PATIENCE).is_too_deep);
        fs::remove_dir_all(folder.path().join("d")).expect("remove");
        assert!(!used(Instant::now() + walk::PATIENCE).is_too_deep);
        fs::write(folder.path().join("file"), "").expect("write");
        let over = Instant::now();
        while Instant::now() == over {}
        assert!(used(over).is_too_much, "there is no time left");
    }

    #[test]
    fn what_a_link_of_the_host_leads_to_counts_and_what_cannot_be_looked_at_is_said() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |path: &str| folder.path().join(path);
        for path in ["real", "open"] {
            fs::create_dir(at(path)).expect("folder");
        }
        fs::write(at("real/file"), vec![1; 1 << 20]).expect("write");
        std::os::unix::fs::symlink(at("real"), at("link")).expect("link");
        std::os::unix::fs::symlink(at("real"), at("open/link")).expect("link");
        fs::set_permissions(at("open"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("mode");
        let release = |paths: [PathBuf; 4]| {
            let mut release = Release::plain("web".parse().expect("name"), Vec::new());
            release.run.writable = paths.map(|path| path.to_str().expect("text").to_owned()).into();
            release
        };
        let release = release([at("link"), at("open/link"), at("real/file"), at("missing")]);
        let (folders, untold) = writable(&release);
        let device = fs::metadata(folder.path()).expect("folder").dev();
        let end = Instant::now() + walk::PATIENCE;
        let used: Vec<u64> =
            folders.iter().filter_map(|folder| walk::used(folder, device, end)).map(|found| found.used.bytes).collect();
        assert!(matches!(used[..], [bytes] if bytes >= 1 << 20), "{used:?}");
        assert!(untold[0].contains("open/link") && untold[1].contains("real/file") && untold.len() == 2, "{untold:?}");
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

    #[test]
    fn what_is_on_another_disk_is_measured_there_and_what_cannot_be_is_said() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let layout = Layout::new(folder.path());
        let name: ServerName = "web".parse().expect("name");
        let server = layout.server(&name);
        let at = |data: &str| std::ffi::CString::new(format!("size={data}")).expect("text");
        let mount = |path: &Path, size: &str| {
            fs::create_dir_all(path).expect("folder");
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("none", path, "tmpfs", flags, Some(at(size).as_c_str())).is_ok()
        };
        if !mount(server.folder(), "64m") {
            // Not every host lets its root mount.
            return;
        }
        let unmount =
            |path: &Path| rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
        fs::create_dir(server.data()).expect("folder");
        fs::write(server.data().join("file"), vec![1; 40 << 20]).expect("write");
        let measured = || measure(&layout, std::slice::from_ref(&name)).expect("room");
        let (room, own) = (measured(), |room: &Room| room.elsewhere[&name].clone());
        let filled = fs::write(server.data().join("more"), vec![1; 30 << 20]).is_err();
        let full = measured();
        let inner = server.data().join("inner");
        fs::remove_file(server.data().join("more")).expect("remove");
        let is_mounted = mount(&inner, "1m");
        let mounted = measured();
        if is_mounted {
            unmount(&inner);
        }
        unmount(server.folder());
        assert!(!room.servers.contains_key(&name), "it takes nothing of the disk with the state");
        assert!((40 << 20..41 << 20).contains(&room.used_by(&name).bytes), "{room:?}");
        assert!(!own(&room).is_low && own(&room).unmeasured.is_empty() && !room.is_low_for(&name), "{room:?}");
        assert!(filled && own(&full).is_low && own(&full).lacks_enough && full.is_low_for(&name), "{full:?}");
        assert!(is_mounted && own(&mounted).unmeasured[0].contains("data/inner"), "{mounted:?}");
    }
}
