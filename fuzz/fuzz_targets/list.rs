#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| simmim_fuzzing::list(data));
