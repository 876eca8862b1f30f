//! libFuzzer: the parts of a list of chunks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetwright_fuzz::chunk_list(data));
