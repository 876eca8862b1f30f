//! libFuzzer: an archive.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetwright_fuzz::archive(data));
