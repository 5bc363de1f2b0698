#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubevpn_spdy::fuzzing::fuzz_session(data));
