//! The `fleetwright-agent` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    fleetwright_agent::cli::main()
}
