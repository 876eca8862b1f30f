//! Runs the simulation over many seeds, or traces one.

#![expect(clippy::print_stdout, reason = "its output is for people")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use fleetwright_tests::sim::{Scenario, Violation, minimise, run, run_seed};

/// Simulates whole fleets, each from one seed, and checks the invariants of the engine after every event.
#[derive(Parser)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many threads.
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Only this one.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens; for one seed.
    #[arg(long, requires = "seed")]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => one(seed, arguments.trace),
        None => many(&arguments),
    }
}

fn one(seed: u64, trace: bool) -> ExitCode {
    match run(&Scenario::from_seed(seed), trace) {
        Ok(done) => {
            done.log.iter().filter(|_| trace).for_each(|line| println!("{line}"));
            println!("seed {seed}: {} events, {} entries, {:?}", done.events, done.entries, done.outcomes);
            ExitCode::SUCCESS
        }
        Err(violation) if trace => {
            violation.log.iter().for_each(|line| println!("{line}"));
            println!("seed {seed}: {violation}");
            ExitCode::FAILURE
        }
        Err(violation) => {
            tell(seed, violation);
            ExitCode::FAILURE
        }
    }
}

fn many(arguments: &Arguments) -> ExitCode {
    let (next, failed) = (AtomicU64::new(arguments.from), AtomicBool::new(false));
    let (end, began) = (arguments.from + arguments.seeds, Instant::now());
    let (mut seeds, mut events) = (0, 0);
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    std::thread::scope(|scope| {
        let worker = || {
            let (mut seeds, mut events) = (0_u64, 0);
            let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end || failed.load(Ordering::Relaxed) {
                    return (seeds, events, outcomes);
                }
                match run_seed(seed) {
                    Ok(done) => {
                        seeds += 1;
                        events += done.events;
                        done.outcomes.into_iter().for_each(|(name, n)| *outcomes.entry(name).or_default() += n);
                    }
                    Err(violation) => {
                        if !failed.swap(true, Ordering::Relaxed) {
                            tell(seed, violation);
                        }
                    }
                }
            }
        };
        let workers: Vec<_> = (0..arguments.jobs).map(|_| scope.spawn(worker)).collect();
        for done in workers {
            let (ran, of_one, ended) = done.join().expect("a worker panicked");
            seeds += ran;
            events += of_one;
            ended.into_iter().for_each(|(name, n)| *outcomes.entry(name).or_default() += n);
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let (seeds_per_s, events_per_s) = (seeds as f64 / seconds, events as f64 / seconds);
    println!("{seeds} seeds, {events} events, {seeds_per_s:.0} seeds/s, {events_per_s:.0} events/s");
    println!("{outcomes:?}");
    if failed.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Tells a violation by its smallest scenario.
fn tell(seed: u64, violation: Violation) {
    println!("seed {seed}: {violation}");
    let (smallest, violated) = minimise(&Scenario::from_seed(seed), violation);
    println!("smallest: {} hosts, groups {:?}", smallest.hosts, smallest.groups);
    smallest.faults.iter().for_each(|(at, fault)| println!("  {at} ms: {fault:?}"));
    println!("its log:");
    violated.log.iter().for_each(|line| println!("{line}"));
    println!("{violated}\nreplay: cargo run -p fleetwright-tests --bin sim -- --seed {seed} --trace");
}
