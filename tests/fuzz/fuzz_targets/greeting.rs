//! libFuzzer: a greeting of a host.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetwright_fuzz::greeting(data));
