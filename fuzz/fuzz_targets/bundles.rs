#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| outgate::fuzz::bundles(data));
