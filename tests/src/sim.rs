//! A whole fleet in one thread, in virtual time, from one seed.
//!
//! What is real: the machines [`fleetwright_deploy::fleet::Fleet`] with its deployments,
//! [`fleetwright_deploy::instance::Instance`] and [`fleetwright_deploy::admission::Admission`], and the coordinator's
//! journal. What is simulated: disks, hosts with their servers, the network, clocks and people. After every event
//! the invariants in `sim/check.rs` are checked; when the faults are over, everything must settle.

mod check;
mod coordinator;
mod disk;
mod host;
mod minimise;
mod network;
mod people;
mod scenario;
mod world;

pub use check::Violation;
pub use minimise::minimise;
pub use scenario::{Fault, Scenario};
pub(crate) use scenario::{release, step};
pub use world::{Run, run};

/// Runs one seed; gives how much happened, or what was violated.
pub fn run_seed(seed: u64) -> Result<Run, Violation> {
    run(&Scenario::from_seed(seed), false)
}
