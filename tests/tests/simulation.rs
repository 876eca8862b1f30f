//! Simulated fleets: two thousand seeds, every invariant after every event.

use fleetwright_tests::sim::run_seed;

const SEEDS: u64 = 2_000;

#[test]
fn every_invariant_holds_after_every_event_of_two_thousand_simulated_fleets() {
    let half =
        |from: u64| (from..SEEDS).step_by(2).find_map(|seed| run_seed(seed).err().map(|violation| (seed, violation)));
    let other = std::thread::spawn(move || half(1));
    let violated = [half(0), other.join().expect("no panic")];
    if let Some((seed, violation)) = violated.into_iter().flatten().next() {
        let log = violation.log.join("\n");
        let replay = format!("cargo run -p fleetwright-tests --bin sim -- --seed {seed} --trace");
        panic!("{log}\nseed {seed}: {violation}\nreplay: {replay}");
    }
}

#[test]
fn a_seed_always_leads_to_the_same_run() {
    let log =
        |seed| fleetwright_tests::sim::run(&fleetwright_tests::sim::Scenario::from_seed(seed), true).map(|run| run.log);
    for seed in [1, 7, 23] {
        assert_eq!(log(seed), log(seed));
    }
}
