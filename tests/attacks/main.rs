//! Attacks: each test here is one that worked once. A server, a host, whoever reaches the port, a package, a stolen key:
//! what each of them tries, and what happens instead. `docs/security.md` has the table.

#![expect(clippy::print_stderr, reason = "what was measured is told beside the outcome")]

mod confinement;
mod data_folder;
mod exhaustion;
mod host_claims;
mod installs;
mod leftovers;
mod network;
mod packages;
mod stolen_keys;
mod terminal;
