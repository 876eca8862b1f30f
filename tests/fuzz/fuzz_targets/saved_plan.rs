//! libFuzzer: a saved plan.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetwright_fuzz::saved_plan(data));
