//! The simulation sees what it is there to see: every known-bad change of the machines is caught.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fleetwright_deploy::mutant::{Mutant, activate};
use fleetwright_tests::sim::run_seed;
use strum::IntoEnumIterator;

const SEEDS: u64 = 2_000;

#[test]
fn every_known_bad_change_is_caught_within_two_thousand_seeds() {
    let mut missed = Vec::new();
    for mutant in Mutant::iter() {
        activate(Some(mutant));
        // A change that makes the machines contradict themselves may also end in a panic of the simulation.
        let caught = (0..SEEDS).find_map(|seed| match catch_unwind(AssertUnwindSafe(|| run_seed(seed))) {
            Ok(Ok(_)) => None,
            Ok(Err(violation)) => Some((seed, violation.to_string())),
            Err(_) => Some((seed, "a panic".to_owned())),
        });
        activate(None);
        match caught {
            Some((seed, violation)) => println!("{mutant:?}: seed {seed}: {violation}"),
            None => missed.push(mutant),
        }
    }
    assert!(missed.is_empty(), "not seen by the simulation: {missed:?}");
}
