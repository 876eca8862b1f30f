//! What the kernel keeps a program from: system calls that no server needs (seccomp(2)), and files and processes that
//! are none of its business (landlock(7)).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, Scope, path_beneath_rules,
};
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

use super::{Files, Profile};

/// The newest version of Landlock whose rights are asked for. Older kernels give fewer.
const NEWEST: ABI = ABI::V6;
const VERSIONS: [(u32, ABI); 6] = [(6, ABI::V6), (5, ABI::V5), (4, ABI::V4), (3, ABI::V3), (2, ABI::V2), (1, ABI::V1)];

/// The version of Landlock that this host's kernel has, of those that are of use here.
pub(crate) fn landlock_version() -> Option<u32> {
    let has = |abi: ABI| {
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let ruleset = ruleset.handle_access(AccessFs::from_all(abi));
        match Scope::from_all(abi) {
            none if none.is_empty() => ruleset.and_then(Ruleset::create).is_ok(),
            scopes => ruleset.and_then(|ruleset| ruleset.scope(scopes)).and_then(Ruleset::create).is_ok(),
        }
    };
    VERSIONS.iter().find(|(_, abi)| has(*abi)).map(|(version, _)| *version)
}

/// Folders of the root with people's own things.
const HOMES: [&str; 2] = ["home", "root"];
/// Folders of the root with programs and their settings.
const SYSTEM: [&str; 14] =
    ["bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "nix", "opt", "proc", "run", "sbin", "sys", "usr"];
/// What everybody may write to, as far as the permissions of what is in it go.
const SHARED: [&str; 6] = ["/dev", "/proc", "/run", "/tmp", "/var/tmp", "/sys/fs/cgroup"];

/// Whether something is among the host's programs and their settings.
pub(super) fn is_of_system(path: &Path) -> bool {
    SYSTEM.iter().any(|name| path.starts_with(Path::new("/").join(name)))
}

/// The folders of the root that a program may read.
fn readable(files: Files) -> Vec<PathBuf> {
    let top =
        fs::read_dir("/").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let allowed = |name: &String| match files {
        Files::All => true,
        Files::Host => !HOMES.contains(&name.as_str()),
        Files::System => SYSTEM.contains(&name.as_str()),
    };
    top.filter(allowed).map(|name| Path::new("/").join(name)).collect()
}

/// The rules of a profile, while its paths can still be opened. `needed` is what its programs need besides.
pub(super) fn landlock(profile: &Profile, needed: &[PathBuf]) -> Result<RulesetCreated> {
    let (all, read) = (AccessFs::from_all(NEWEST), AccessFs::from_read(NEWEST));
    let ruleset = Ruleset::default().handle_access(all)?.scope(Scope::from_all(NEWEST))?.create()?;
    let ruleset = match profile.files {
        // Files are as they are; other processes are out of reach all the same.
        Files::All => return Ok(ruleset.add_rules(path_beneath_rules(["/"], all))?),
        Files::Host => ruleset.add_rules(path_beneath_rules(SHARED, all))?,
        Files::System => ruleset.add_rules(path_beneath_rules(["/dev"], all))?,
    };
    let ruleset = ruleset.add_rules(path_beneath_rules(readable(profile.files), read))?;
    let ruleset = ruleset.add_rules(path_beneath_rules(profile.read.iter().chain(needed), read))?;
    let ruleset = ruleset.add_rules(path_beneath_rules(["/proc/self/exe"], read))?;
    Ok(ruleset.add_rules(path_beneath_rules(&profile.write, all))?)
}

/// Puts the rules in force; the version that is, and whether the kernel has any.
pub(super) fn enforce(ruleset: RulesetCreated) -> Result<Option<u32>> {
    let status = ruleset.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => {
            Some(VERSIONS.iter().find(|(_, abi)| *abi <= effective_abi).map_or(1, |(version, _)| *version))
        }
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => None,
    })
}

/// System calls that change the machine, look into other processes, or reach parts of the kernel that no server needs.
const DENIED: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
];

/// System calls that programs try, and do without where a kernel does not have them. What clone3(2) is asked for cannot
/// be looked at by a filter; C libraries go on with clone(2), where it can.
const ABSENT: &[i64] =
    &[libc::SYS_clone3, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// Flags of clone(2) that make a namespace: CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET.
const NAMESPACES: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
/// Families of sockets that servers get: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK.
const FAMILIES: [u64; 4] = [1, 2, 10, 16];
/// Requests of ioctl(2) that type into somebody's terminal: TIOCSTI, TIOCLINUX.
const TERMINAL_REQUESTS: [u64; 2] = [0x5412, 0x541C];
/// What numbers of system calls have besides in the x32 interface, which has them all once more.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// The filters, ready to be put in force. 32-bit programs are ended.
pub(super) fn seccomp() -> Result<Vec<BpfProgram>> {
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let rule = |argument, op: SeccompCmpOp, value| -> Result<SeccompRule> {
        Ok(SeccompRule::new(vec![SeccompCondition::new(argument, Dword, op, value)?])?)
    };
    let clone = NAMESPACES.iter().map(|flag| rule(0, SeccompCmpOp::MaskedEq(*flag), *flag)).collect::<Result<_>>()?;
    denied.insert(libc::SYS_clone, clone);
    let other = FAMILIES.iter().map(|family| SeccompCondition::new(0, Dword, SeccompCmpOp::Ne, *family));
    denied.insert(libc::SYS_socket, vec![SeccompRule::new(other.collect::<Result<_, _>>()?)?]);
    let typed = TERMINAL_REQUESTS.iter().map(|request| rule(1, SeccompCmpOp::Eq, *request)).collect::<Result<_>>()?;
    denied.insert(libc::SYS_ioctl, typed);
    let absent: BTreeMap<i64, Vec<SeccompRule>> = ABSENT.iter().map(|call| (*call, Vec::new())).collect();
    Ok(vec![filter(absent, libc::ENOSYS)?, filter(denied, libc::EPERM)?])
}

fn filter(mut rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram> {
    #[cfg(target_arch = "x86_64")]
    {
        let again: Vec<_> = rules.iter().map(|(call, rules)| (call | X32, rules.clone())).collect();
        rules.extend(again);
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH).context("no filter for this processor")?;
    let errno = u32::try_from(errno)?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_not_of_the_host_and_only_programs_are_of_the_system() {
        let (all, host, system) = (readable(Files::All), readable(Files::Host), readable(Files::System));
        assert!(all.len() > host.len() && host.len() > system.len());
        for home in ["/root", "/home"].map(Path::new) {
            assert!(!host.iter().any(|path| path == home), "{host:?}");
        }
        assert!(
            system.iter().any(|path| path == Path::new("/usr")) && !system.iter().any(|path| path == Path::new("/var"))
        );
    }

    #[test]
    fn the_filters_can_be_made_for_this_processor() {
        let filters = seccomp().expect("filters");
        assert!(filters.len() == 2 && filters.iter().all(|filter| !filter.is_empty()));
    }
}
