#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nerve_fuzz::forwarded::run(data));
