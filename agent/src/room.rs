//! Room on the disk with the agent's state: how much there is, what servers use of it, and a reserve that is given up
//! first, so that a release can be put back on a full disk.

mod open_files;
mod reserve;
mod walk;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fleetwright_deploy::ids::ServerName;
use fleetwright_deploy::room::{Room, Used};

use self::open_files::Processes;
use crate::layout::Layout;
use crate::runtime;

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
    walk::used(folder, fs::metadata(layout.state_dir()).ok()?.dev())
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
        let below = [server.data(), server.logs(), server.temporary()];
        let used = below.iter().filter_map(|folder| walk::used(folder, device)).chain([held]).fold(
            Used::default(),
            |sum, used| Used {
                bytes: sum.bytes.saturating_add(used.bytes),
                files: sum.files.saturating_add(used.files),
            },
        );
        if used != Used::default() {
            room.servers.insert((*name).clone(), used);
        }
    }
    Some(room)
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
    }
}
