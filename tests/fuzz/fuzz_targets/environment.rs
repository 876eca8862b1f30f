//! libFuzzer: an environment.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetwright_fuzz::environment(data));
