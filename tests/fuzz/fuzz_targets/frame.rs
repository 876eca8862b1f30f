//! libFuzzer: a frame of any kind of message.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetwright_fuzz::frame(data));
