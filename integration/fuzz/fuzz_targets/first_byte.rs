#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubevpn_conn::fuzzing::first_byte(data));
