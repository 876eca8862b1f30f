//! Twenty real servers from npm and PyPI, which no shipped definition knows, come up, and an official client calls a tool
//! of each. Takes minutes and much of the network; five of them are in CI (`tests/tests/clients.rs`).
//!
//! `cargo build --workspace && ./target/debug/many_servers`

use std::process::ExitCode;

use clap::Parser;
use fleetwright_tests::real_servers::{SERVERS, call_all};

/// Brings real servers up and calls them.
#[derive(Parser)]
struct Arguments {
    /// How many are up at the same time.
    #[arg(long, default_value_t = 5)]
    at_once: usize,
}

#[expect(clippy::print_stdout, reason = "the result is for people")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut failed = 0;
    for servers in SERVERS.chunks(arguments.at_once.max(1)) {
        for called in call_all(servers) {
            match called.outcome {
                Ok((tools, answer)) => {
                    let line = answer.lines().next().unwrap_or_default().chars().take(60).collect::<String>();
                    println!("{}: up, {tools} tools, answered {line:?}", called.name);
                }
                Err(error) => {
                    failed += 1;
                    println!("{}: FAILED: {error}", called.name);
                }
            }
        }
    }
    println!("{} of {}", SERVERS.len() - failed, SERVERS.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
