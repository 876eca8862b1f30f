//! Sharing another process's view of the host's files: what a check looks at is then what its server sees.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::runtime::users::Identity;

/// Goes where a process of this user is, if everything that is needed is there, too; whether this process is there now.
pub(super) fn share<'a>(pid: i32, user: &Identity, needed: impl Iterator<Item = &'a PathBuf>) -> bool {
    // The number may be that of another process by now: one of the same user sees nothing that is none of its business.
    let is_users = || fs::metadata(format!("/proc/{pid}")).is_ok_and(|found| found.uid() == user.uid);
    let of = |whose: &str| File::open(format!("/proc/{whose}/ns/mnt")).ok();
    let (Some(own), Some(other)) = (of("self"), of(&pid.to_string())) else { return false };
    if !is_users() {
        return false;
    }
    // What is there and is something else, as an empty folder in place of a closed one, is not what is needed.
    let known: Vec<_> = needed.filter_map(|path| Some((path, fs::metadata(path).ok()?))).collect();
    if !go(&other) {
        return false;
    }
    let is_there = |path: &PathBuf, then: &fs::Metadata| {
        fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (then.dev(), then.ino()))
    };
    known.iter().all(|(path, then)| is_there(path, then)) || !go(&own)
}

fn go(namespace: &File) -> bool {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).is_ok()
}
