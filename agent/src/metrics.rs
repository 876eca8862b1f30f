//! CPU, memory, disk and network of this host and its servers, by sysinfo.

use std::collections::BTreeMap;
use std::path::Path;

use fleetwright_deploy::ids::ServerName;
use fleetwright_protocol::report::{MetricsSample, ServerMetrics};
use sysinfo::{Disks, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::clock;

/// Takes samples. Processor use is measured between two of them.
pub(crate) struct Sampler {
    system: System,
    networks: Networks,
    disks: Disks,
}

impl Sampler {
    pub(crate) fn new() -> Result<Self, sysinfo::Error> {
        Ok(Self {
            system: System::new()?,
            networks: Networks::new_with_refreshed_list()?,
            disks: Disks::new_with_refreshed_list()?,
        })
    }

    /// One sample; `servers` are the processes that lead the servers' process groups.
    pub(crate) fn sample(&mut self, state_dir: &Path, servers: &BTreeMap<ServerName, i32>) -> MetricsSample {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory();
        self.system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
        self.networks.refresh(true);
        self.disks.refresh(true);
        let disk = self.disks.iter().filter(|disk| state_dir.starts_with(disk.mount_point()));
        let disk = disk.max_by_key(|disk| disk.mount_point().as_os_str().len());
        MetricsSample {
            at: clock::now(),
            cpu_permille: permille(self.system.global_cpu_usage()),
            memory_used_bytes: self.system.used_memory(),
            memory_total_bytes: self.system.total_memory(),
            disk_free_bytes: disk.map_or(0, |disk| disk.available_space()),
            disk_total_bytes: disk.map_or(0, |disk| disk.total_space()),
            network_received_bytes: self.networks.values().map(|network| network.total_received()).sum(),
            network_sent_bytes: self.networks.values().map(|network| network.total_transmitted()).sum(),
            servers: servers.iter().map(|(server, pid)| self.server(server, *pid)).collect(),
        }
    }

    /// A server is its first process and everything that descends from it.
    fn server(&self, server: &ServerName, pid: i32) -> ServerMetrics {
        let mut family = vec![Pid::from_u32(u32::try_from(pid).unwrap_or(0))];
        let mut metrics = ServerMetrics { server: server.clone(), cpu_permille: 0, memory_bytes: 0, processes: 0 };
        let mut next = 0;
        while let Some(pid) = family.get(next).copied() {
            next += 1;
            let Some(process) = self.system.process(pid) else { continue };
            metrics.cpu_permille += permille(process.cpu_usage());
            metrics.memory_bytes += process.memory();
            metrics.processes += 1;
            let children = self.system.processes().values().filter(|child| child.parent() == Some(pid));
            family.extend(children.filter(|child| child.thread_kind().is_none()).map(sysinfo::Process::pid));
        }
        metrics
    }
}

fn permille(percent: f32) -> u32 {
    // Percentages of processors are small and never negative.
    (percent * 10.0).max(0.0).round() as u32
}
