//! libFuzzer: an entry of the MCP registry.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetwright_fuzz::registry_entry(data));
