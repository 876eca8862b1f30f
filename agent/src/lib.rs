//! Fleetwright's agent: what runs on every host. It stages, snapshots, switches, checks, restores and reports.
//!
//! Decisions are [`fleetwright_deploy::instance`]'s; this crate performs them. Everything flows through one
//! bounded channel into `engine`, which makes an event durable before anything is done about it.

mod aside;
mod beneath;
pub mod bridge;
mod check;
pub mod cli;
mod clock;
mod confine;
mod container;
mod durable;
mod embedded;
mod engine;
mod enroll;
mod facts;
mod handover;
mod identity;
mod install;
mod journal;
mod layout;
mod machine;
mod metrics;
mod notify;
mod output;
mod ownership;
mod pages;
mod preflight;
mod process;
mod room;
mod runtime;
mod session;
mod snapshot;
mod stage;
pub mod supervise;
mod this_host;
mod watch;

pub use embedded::Agent;
pub use enroll::{Enrolment, enroll};
pub use identity::AgentIdentity;
pub use install::unpack;
pub use machine::{Machine, Observation, Restore, Sampler, Work};
pub use this_host::ThisHost;
