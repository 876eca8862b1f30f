//! The metrics of hosts, as their agents told them: the newest of each, within a limit in bytes. They are in no journal, and
//! gone when the coordinator ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use fleetwright_deploy::ids::{HostName, ServerName};
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::report::MetricsSample;

/// How much is kept of one host, in bytes, beside its newest sample: an hour of a host with a few servers, and 160 MB of
/// ten thousand hosts.
const HOST_BYTES_MAX: usize = 16 * 1024;
/// What a kept sample takes beside its own bytes.
const PLACE_BYTES: usize = size_of::<(Timestamp, Box<[u8]>)>() + 16;

/// The samples of all hosts.
#[derive(Clone, Default)]
pub(crate) struct Samples(Arc<Mutex<BTreeMap<HostName, Kept>>>);

/// The samples of a host, the oldest first, each with its time: packed, since most of them are never looked at.
#[derive(Default)]
struct Kept {
    packed: VecDeque<(Timestamp, Box<[u8]>)>,
    bytes: usize,
}

impl Samples {
    /// Keeps samples of a host, of those servers that it has; each server once.
    pub(crate) fn keep(&self, host: &HostName, new: Vec<MetricsSample>, servers: &BTreeSet<ServerName>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.entry(host.clone()).or_default();
        for mut sample in new {
            let mut wanted = servers.clone();
            sample.servers.retain(|metrics| wanted.remove(&metrics.server));
            kept.add(&sample);
        }
    }

    /// The newest sample of each host.
    pub(crate) fn newest(&self) -> Vec<(HostName, MetricsSample)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(|(host, kept)| Some((host.clone(), kept.newest()?))).collect()
    }
}

impl Kept {
    fn add(&mut self, sample: &MetricsSample) {
        // A batch whose acknowledgement was lost comes again.
        let known = self.packed.iter().any(|(at, _)| *at == sample.at);
        let Ok(packed) = postcard::to_allocvec(sample) else { return };
        if known {
            return;
        }
        self.bytes += packed.len() + PLACE_BYTES;
        // What was delayed comes to its place.
        let after = self.packed.partition_point(|(at, _)| *at < sample.at);
        self.packed.insert(after, (sample.at, packed.into()));
        while self.bytes > HOST_BYTES_MAX && self.packed.len() > 1 {
            self.bytes -= self.packed.pop_front().map_or(0, |(_, oldest)| oldest.len() + PLACE_BYTES);
        }
    }

    fn newest(&self) -> Option<MetricsSample> {
        postcard::from_bytes(&self.packed.back()?.1).ok()
    }
}

#[cfg(test)]
mod tests {
    use fleetwright_protocol::report::ServerMetrics;

    use super::*;

    fn sample(at: i64, servers: &[&str]) -> MetricsSample {
        let servers = servers.iter().map(|name| ServerMetrics {
            server: name.parse().expect("name"),
            cpu_permille: 1,
            memory_bytes: 2,
            processes: 3,
        });
        MetricsSample { at: Timestamp::from_unix_ms(at), servers: servers.collect(), ..MetricsSample::default() }
    }

    fn host(n: usize) -> HostName {
        format!("h{n}").parse().expect("name")
    }

    #[test]
    fn only_the_servers_of_the_host_are_kept_and_each_once() {
        let samples = Samples::default();
        let servers = ["a", "b"].map(|name| name.parse().expect("name")).into();
        samples.keep(&host(1), vec![sample(1, &["a", "x", "a", "b"])], &servers);
        let kept = samples.newest();
        let names: Vec<String> = kept[0].1.servers.iter().map(|of| of.server.to_string()).collect();
        assert_eq!((kept[0].0.clone(), names), (host(1), vec!["a".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn a_host_takes_no_more_than_its_limit_and_nothing_from_others() {
        let samples = Samples::default();
        let servers = ["a"].map(|name| name.parse().expect("name")).into();
        samples.keep(&host(1), vec![sample(7, &["a"])], &servers);
        for at in 0..10_000 {
            samples.keep(&host(2), vec![sample(at, &["a"]), sample(at, &["a"])], &servers);
        }
        let all = samples.0.lock().expect("no other thread");
        let kept = &all[&host(2)];
        let bytes: usize = kept.packed.iter().map(|(_, packed)| packed.len() + PLACE_BYTES).sum();
        assert_eq!(kept.bytes, bytes);
        assert!(bytes <= HOST_BYTES_MAX && bytes > HOST_BYTES_MAX / 2, "{bytes}");
        let times: Vec<i64> = kept.packed.iter().map(|(at, _)| at.unix_ms()).collect();
        let first = 10_000 - i64::try_from(times.len()).expect("few");
        assert_eq!(times, (first..10_000).collect::<Vec<_>>(), "the newest, each once");
        assert_eq!(all[&host(1)].packed.len(), 1);
    }

    #[test]
    fn a_sample_that_was_delayed_is_not_the_newest() {
        let samples = Samples::default();
        samples.keep(&host(1), [3, 1, 2].map(|at| sample(at, &[])).into(), &BTreeSet::new());
        assert_eq!(samples.newest()[0].1.at, Timestamp::from_unix_ms(3));
    }

    #[test]
    fn of_a_host_with_very_many_servers_the_newest_sample_is_kept_alone() {
        let samples = Samples::default();
        let names: Vec<String> = (0..10_000).map(|n| format!("server-{n}")).collect();
        let servers = names.iter().map(|name| name.parse().expect("name")).collect();
        let large = sample(2, &names.iter().map(String::as_str).collect::<Vec<_>>());
        samples.keep(&host(1), vec![sample(1, &[]), large], &servers);
        let kept = &samples.0.lock().expect("no other thread")[&host(1)];
        assert_eq!(kept.packed.len(), 1);
        assert_eq!(kept.newest().expect("it is kept").servers.len(), names.len());
    }
}
