#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubevpn_dns::fuzzing::dns_message(data));
