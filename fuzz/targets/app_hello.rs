#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fdpassd::fuzzing::app_hello(input));
