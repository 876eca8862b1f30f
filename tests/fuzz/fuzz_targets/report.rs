//! libFuzzer: a report of an agent.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetwright_fuzz::report(data));
