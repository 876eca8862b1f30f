//! The official conformance suite over fixture servers of both SDKs, native and bridged: what it finds is what
//! `docs/mcp.md` says, and nothing is below native without a reason.

use fleetwright_tests::bridged::{Bridge, Fixture};
use fleetwright_tests::conformance::report::{complaints, passes, rows};
use fleetwright_tests::conformance::{Suite, Way, recorded, run};
use fleetwright_tests::tools::{Tool, have};

/// Runs every suite, and compares each row with what was written down.
#[track_caller]
fn as_recorded(fixture: Fixture, way: Way) {
    if !have(&[Tool::Python, Tool::Pypi, Tool::Npm]) {
        return;
    }
    let record = recorded();
    let served = way.serve(fixture, &Bridge::default());
    let mut different = Vec::new();
    for suite in Suite::ALL {
        // A child for each session costs; the scenarios of 2025-06-18 are among those of 2025-11-25.
        if way == Way::Own && suite == Suite::Next("2025-06-18") {
            continue;
        }
        let found = run(suite, &served.url(), None);
        let written: Vec<_> = rows(&record).filter(|row| row.0 == fixture && row.1 == suite).collect();
        for (_, _, scenario, ways) in &written {
            let faults = found.get(*scenario).cloned().unwrap_or_else(|| vec![String::from("was not run")]);
            if faults.is_empty() != passes(ways, way) {
                different.push(format!("{}, {scenario}: {faults:?}", suite.name()));
            }
        }
        assert_eq!(found.len(), written.len(), "{} has other scenarios", suite.name());
    }
    assert!(
        different.is_empty(),
        "other than recorded (`conformance --way {} --record` writes down what is):\n{}\n{}",
        way.name(),
        different.join("\n"),
        served.log()
    );
}

#[test]
fn a_server_of_both_eras_conforms_natively_as_recorded() {
    as_recorded(Fixture::Python, Way::Native);
}

#[test]
fn a_server_of_both_eras_conforms_when_it_is_shared_as_recorded() {
    as_recorded(Fixture::Python, Way::Shared);
}

#[test]
fn a_server_of_both_eras_conforms_with_children_of_their_own_as_recorded() {
    as_recorded(Fixture::Python, Way::Own);
}

#[test]
fn a_server_of_the_older_era_conforms_natively_as_recorded() {
    as_recorded(Fixture::TypeScript, Way::Native);
}

#[test]
fn a_server_of_the_older_era_conforms_when_it_is_shared_as_recorded() {
    as_recorded(Fixture::TypeScript, Way::Shared);
}

#[test]
fn a_server_of_the_older_era_conforms_with_children_of_their_own_as_recorded() {
    as_recorded(Fixture::TypeScript, Way::Own);
}

#[test]
fn nothing_that_passes_natively_fails_bridged_without_a_reason() {
    let record = recorded();
    assert!(rows(&record).count() > 200, "the record is not empty");
    let complaints = complaints(&record);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
