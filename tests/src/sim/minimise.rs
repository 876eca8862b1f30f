//! Making a failing scenario small: faults are left out for as long as the same invariant is still violated.

use super::check::Violation;
use super::scenario::Scenario;
use super::world::run;

/// The smallest scenario found that violates the same invariant, with what it violates.
pub fn minimise(scenario: &Scenario, violation: Violation) -> (Scenario, Violation) {
    let (mut smallest, mut violated) = (scenario.clone(), violation);
    let mut chunk = smallest.faults.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        let mut shrunk = false;
        while start < smallest.faults.len() {
            let mut trial = smallest.clone();
            trial.faults.drain(start..(start + chunk).min(trial.faults.len()));
            match run(&trial, false) {
                Err(again) if again.invariant == violated.invariant => {
                    (smallest, violated, shrunk) = (trial, again, true);
                }
                Ok(_) | Err(_) => start += chunk,
            }
        }
        if chunk == 1 && !shrunk {
            return (smallest, violated);
        }
        chunk = chunk.div_ceil(2).max(1);
    }
}
