//! What Fleetwright decides: configuration, planning, and the two state machines that carry a plan out.
//!
//! This crate is pure. It opens no socket or file, reads no clock and draws no random number: times, texts
//! and keys come in as arguments, effects go out as values for the coordinator and the agent to perform.

pub mod actor;
pub mod admission;
#[cfg(feature = "planning")]
pub mod config;
pub mod deployment;
pub mod failure;
pub mod fleet;
pub mod health;
pub mod host;
pub mod ids;
pub mod instance;
pub mod journal_budget;
pub mod limits;
pub mod mutant;
pub mod pace;
pub mod plan;
#[cfg(feature = "planning")]
pub mod planning;
pub mod printable;
pub mod release;
pub mod reported;
pub mod room;
pub mod shares;
#[cfg(feature = "planning")]
pub mod stateful;
pub mod time;
pub mod wording;
