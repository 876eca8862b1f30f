//! What the whole-system tests share: fleets of real processes in folders of their own, and the tools that some
//! tests need.

#![expect(clippy::print_stderr, reason = "tests speak to whoever runs them")]

pub mod attacker;
pub mod bridged;
pub mod conformance;
pub mod engine;
pub mod fleet;
pub mod impostor;
pub mod lab;
pub mod real_servers;
pub mod servers;
pub mod sim;
pub mod simnet;
pub mod strangers;
pub mod tools;
