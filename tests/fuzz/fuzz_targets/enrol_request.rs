//! libFuzzer: a request to enrol.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetwright_fuzz::enrol_request(data));
