//! The `fleetwright` command.

use std::process::ExitCode;

/// A plan is many small pieces of memory, made by all processors at once: that is what this allocator is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fleetwright::cli::main()
}
