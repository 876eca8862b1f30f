//! Runs the official conformance suite against the fixture servers, native and through a bridge.
//!
//! `cargo build --workspace && ./target/debug/conformance --way shared`; `--record` writes what was found down, for the
//! tables of `docs/mcp.md`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fleetwright_tests::bridged::{Bridge, Fixture};
use fleetwright_tests::conformance::{Suite, Way, recorded, run, write_down};

/// Judges a bridge.
#[derive(Parser)]
struct Arguments {
    /// The agent whose bridge is judged, if not the one beside this program.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// How the server is reached: native, shared, own, supergateway. All, if none is named.
    #[arg(long)]
    way: Vec<String>,
    /// The server: python (both eras) or typescript (the older). Both, if none is named.
    #[arg(long)]
    server: Option<String>,
    /// A revision, such as 2026-07-28. All, if none is named.
    #[arg(long)]
    revision: Option<String>,
    /// One scenario alone.
    #[arg(long)]
    scenario: Option<String>,
    /// Write down what was found.
    #[arg(long)]
    record: bool,
}

#[expect(clippy::print_stdout, reason = "the result is for people")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let bridge = arguments.agent.as_ref().map_or_else(Bridge::default, |agent| Bridge::of(agent));
    let mut record = recorded();
    let mut all_passed = true;
    let server = |fixture: &Fixture| {
        let wanted = arguments.server.as_ref();
        wanted.is_none_or(|name| fixture.name().to_lowercase().starts_with(&name.to_lowercase()))
    };
    for fixture in Fixture::ALL.into_iter().filter(server) {
        for way in Way::ALL {
            if !arguments.way.is_empty() && !arguments.way.iter().any(|name| name == way.name()) {
                continue;
            }
            let served = way.serve(fixture, &bridge);
            for suite in Suite::ALL {
                if arguments.revision.as_ref().is_some_and(|revision| !suite.name().ends_with(revision.as_str())) {
                    continue;
                }
                let found = run(suite, &served.url(), arguments.scenario.as_deref());
                let passed = found.values().filter(|faults| faults.is_empty()).count();
                println!("{}, {}, suite {}: {passed} of {}", fixture.name(), way.name(), suite.name(), found.len());
                for (row, faults) in found {
                    all_passed &= faults.is_empty();
                    for fault in &faults {
                        println!("  {row}: {fault}");
                    }
                    let ways = record.entry(fixture.name().to_owned()).or_default().entry(suite.name()).or_default();
                    ways.entry(row).or_default().insert(way.name().to_owned(), faults.is_empty());
                }
            }
        }
    }
    if arguments.record {
        write_down(&record).expect("the record is written");
    }
    if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
