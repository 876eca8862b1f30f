//! Control groups for servers without systemd: limits, and whatever leaves its process group. Version 2 of the
//! interface, or version 1 with its hierarchies beside each other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fleetwright_deploy::release::Resources;
use rustix::process::{Pid, Signal, kill_process};

use crate::layout::ServerLayout;

const ROOT: &str = "/sys/fs/cgroup";
/// The period over which processor time is counted, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// How often the processes of a group are killed: they may start others in between.
const KILL_ROUNDS: u32 = 20;
/// The hierarchies of version 1 that limits need.
const HIERARCHIES: [&str; 3] = ["memory", "cpu", "pids"];

/// The groups of one server: one in version 2, one in each hierarchy in version 1.
pub(crate) struct Cgroup {
    groups: Vec<PathBuf>,
    unified: bool,
}

impl Cgroup {
    /// The groups of a server, made where they are missing.
    pub(crate) fn of(server: &ServerLayout) -> io::Result<Self> {
        Self::named(&Self::name_of(server))
    }

    /// The groups of a server as they are, if they are there.
    pub(crate) fn existing(server: &ServerLayout) -> Self {
        Self::at(&Self::name_of(server))
    }

    fn name_of(server: &ServerLayout) -> String {
        // Servers of different agents on one host may have the same name.
        let hash = blake3::hash(server.folder().as_os_str().as_encoded_bytes()).to_hex();
        format!("{}-{}", server.name(), &hash[..8])
    }

    fn at(name: &str) -> Self {
        let name = format!("fleetwright/{name}");
        let unified = Path::new(ROOT).join("cgroup.controllers").exists();
        let groups = if unified {
            vec![Path::new(ROOT).join(name)]
        } else {
            HIERARCHIES.iter().map(|hierarchy| Path::new(ROOT).join(hierarchy).join(&name)).collect()
        };
        Self { groups, unified }
    }

    /// The groups of this name, made where they are missing.
    pub(crate) fn named(name: &str) -> io::Result<Self> {
        let found = Self::at(name);
        if found.unified {
            let parent = Path::new(ROOT).join("fleetwright");
            fs::create_dir_all(&parent)?;
            for folder in [Path::new(ROOT), &parent] {
                // Controllers that are on already are no reason to fail.
                let _ = fs::write(folder.join("cgroup.subtree_control"), "+memory +cpu +pids");
            }
        }
        found.groups.iter().try_for_each(fs::create_dir_all)?;
        Ok(found)
    }

    /// Sets the limits; those that are not given are lifted.
    pub(crate) fn limit(&self, resources: &Resources) -> io::Result<()> {
        let number = |value: Option<u64>, none: &str| value.map_or_else(|| none.to_owned(), |value| value.to_string());
        let cpu = resources.cpu_percent.map(|percent| u64::from(percent) * CPU_PERIOD_US / 100);
        let (memory, tasks) = (resources.memory_bytes, resources.tasks.map(u64::from));
        if self.unified {
            self.write("memory.max", &number(memory, "max"))?;
            self.write("cpu.max", &format!("{} {CPU_PERIOD_US}", number(cpu, "max")))?;
            return self.write("pids.max", &number(tasks, "max"));
        }
        self.write("memory.limit_in_bytes", &number(memory, "-1"))?;
        self.write("cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
        self.write("cpu.cfs_quota_us", &number(cpu, "-1"))?;
        self.write("pids.max", &number(tasks, "max"))
    }

    /// Takes in a process with all that it starts from now on.
    pub(crate) fn take(&self, pid: i32) -> io::Result<()> {
        self.groups.iter().try_for_each(|group| fs::write(group.join("cgroup.procs"), pid.to_string()))
    }

    /// Its folders: a process that writes 0 to `cgroup.procs` in each is in it.
    pub(crate) fn folders(&self) -> &[PathBuf] {
        &self.groups
    }

    /// How many processes in it the kernel has killed since it was made, for want of memory.
    pub(crate) fn killed_for_memory(&self) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let texts = self.groups.iter().filter_map(|group| fs::read_to_string(group.join(file)).ok());
        let killed = |text: String| -> u64 {
            text.lines().filter_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok()).sum()
        };
        texts.map(killed).sum()
    }

    /// Kills whatever is in it, and removes it.
    pub(crate) fn kill(&self) {
        self.kill_all();
        for group in &self.groups {
            let _ = fs::remove_dir(group);
        }
    }

    /// Kills whatever is in it.
    pub(crate) fn kill_all(&self) {
        for _ in 0..KILL_ROUNDS {
            let pids = self.pids();
            if pids.is_empty() {
                break;
            }
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn pids(&self) -> Vec<i32> {
        let text = self.groups.first().and_then(|group| fs::read_to_string(group.join("cgroup.procs")).ok());
        text.unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Writes a file in the one group that has it.
    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let hierarchy = file.split('.').next().unwrap_or_default();
        let fits = |group: &&PathBuf| self.unified || group.starts_with(Path::new(ROOT).join(hierarchy));
        let Some(group) = self.groups.iter().find(fits) else { return Err(io::ErrorKind::NotFound.into()) };
        let path = group.join(file);
        fs::write(&path, value).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }
}
