#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| podshm_fuzz::region(data));
