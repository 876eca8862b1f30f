//! libFuzzer: a rule in CEL.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetwright_fuzz::rule(data));
