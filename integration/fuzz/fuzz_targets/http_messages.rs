#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubevpn_http_connect::fuzzing::http_messages(data));
