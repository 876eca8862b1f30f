//! Fleetwright's coordinator and the `fleetwright` command.
//!
//! Decisions are [`fleetwright_deploy`]'s; this crate performs them. Everything that changes the fleet flows
//! through one bounded channel into `engine`, which makes an event durable before anything is done about it. Whoever only
//! reads asks `view`, which holds what is durable.

mod api;
mod artifacts;
pub mod cli;
mod client;
mod clock;
mod commands;
mod embedded;
mod engine;
mod externals;
pub mod journal;
mod local;
mod local_artifact;
mod lock;
mod operator_key;
mod project;
mod registry;
mod said;
mod samples;
mod secrets;
mod serve;
mod sessions;
mod state_dir;
mod view;

pub use embedded::{Coordinator, Operator};
pub use operator_key::OperatorKey;
