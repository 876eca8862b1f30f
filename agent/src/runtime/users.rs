//! Users of this host: finding them, and making one for a server that names none.

use std::fs;
use std::process::Stdio;

use fleetwright_deploy::failure::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

/// Longest name of a user, in bytes.
const NAME_BYTES_MAX: usize = 31;

/// A user with its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A user with everything that a process has of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The groups that the host's administrator has put it into.
    pub(crate) groups: Vec<u32>,
}

/// The user of this name with its groups, if there is one.
pub(crate) fn identity(name: &str) -> Option<Identity> {
    let user = find(name)?;
    let groups = groups(&fs::read_to_string("/etc/group").unwrap_or_default(), name);
    Some(Identity { name: name.to_owned(), uid: user.uid, gid: user.gid, groups })
}

/// The groups that name a user among their members.
fn groups(group: &str, name: &str) -> Vec<u32> {
    let of = |line: &str| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == name).then_some(gid)
    };
    group.lines().filter_map(of).collect()
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
    let sysusers = run("systemd-sysusers", &["--inline", &line]).await;
    // It leaves alone whatever another agent of this host has just made.
    if let Some(user) = find(name) {
        return Ok(user);
    }
    let arguments = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell"];
    let useradd =
        run("useradd", &[&arguments[..], &["/usr/sbin/nologin", "--comment", "Fleetwright", name]].concat()).await;
    find(name).ok_or_else(|| {
        missing(format!("the user `{name}` could not be made: {sysusers}; {useradd}")).hint(
            "install `systemd-sysusers` or `useradd` on the host, or name a user of it in the definition: `run.user`",
        )
    })
}

/// Runs a program that makes users; what it said.
async fn run(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).stdin(Stdio::null()).output().await {
        Ok(output) if output.status.success() => format!("`{program}` has made none"),
        Ok(output) => format!("`{program}`: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => format!("`{program}` could not be started: {error}"),
    }
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
    fn groups_are_those_that_name_the_user_among_their_members() {
        let group = "docker:x:999:a,fw-time\nfw-time:x:998:\nusers:x:100:fw-time-2\nbroken\n";
        assert_eq!(groups(group, "fw-time"), [999]);
    }

    #[test]
    fn a_long_name_is_cut_and_stays_apart_from_others() {
        let (a, b) = (own_name(&"a".repeat(63)), own_name(&format!("{}b", "a".repeat(62))));
        assert!(a.len() <= NAME_BYTES_MAX && b.len() <= NAME_BYTES_MAX && a != b, "{a} {b}");
        assert_eq!(own_name("time"), "fw-time");
    }
}
