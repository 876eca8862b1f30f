//! Users of this host: finding them, and making one for a server that names none.

use std::fs;
use std::process::Stdio;

use fleetwright_deploy::failure::{Failure, FailureKind};
use tokio::process::Command;

/// Longest name of a user, in bytes.
const NAME_BYTES_MAX: usize = 31;

/// A user with its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The user of this name, if there is one.
pub(crate) fn find(name: &str) -> Option<User> {
    parse(&fs::read_to_string("/etc/passwd").ok()?, name)
}

fn parse(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        Some(User { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

/// The name of the user that a server gets when its definition names none. A long name is cut, and told apart from
/// others by a hash.
pub(crate) fn own_name(server: &str) -> String {
    let name = format!("fw-{server}");
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let hash = blake3::hash(server.as_bytes()).to_hex();
    format!("{}-{}", &name[..NAME_BYTES_MAX - 9], &hash[..8])
}

/// The user of this name, which is made when it is a server's own.
pub(crate) async fn ensure(name: &str, own: bool) -> Result<User, Failure> {
    if let Some(user) = find(name) {
        return Ok(user);
    }
    let missing = |why: String| Failure::new(FailureKind::DependencyError, "preflight", why);
    if !own {
        return Err(missing(format!("this host has no user `{name}`"))
            .hint("make it, or leave `run.user` out of the definition: the server gets a user of its own"));
    }
    let line = format!("u {name} - \"Fleetwright server\" /nonexistent");
    let made = Command::new("systemd-sysusers").args(["--inline", &line]).stdin(Stdio::null()).output().await;
    let output = made.map_err(|error| missing(format!("`systemd-sysusers` could not be started: {error}")))?;
    find(name).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        missing(format!("the user `{name}` could not be made: {said}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\nfw-time:x:998:997:Fleetwright server:/nonexistent:/sbin/nologin\n";
        assert_eq!(parse(passwd, "fw-time"), Some(User { uid: 998, gid: 997 }));
        assert_eq!(parse(passwd, "fw"), None);
    }

    #[test]
    fn a_long_name_is_cut_and_stays_apart_from_others() {
        let (a, b) = (own_name(&"a".repeat(63)), own_name(&format!("{}b", "a".repeat(62))));
        assert!(a.len() <= NAME_BYTES_MAX && b.len() <= NAME_BYTES_MAX && a != b, "{a} {b}");
        assert_eq!(own_name("time"), "fw-time");
    }
}
