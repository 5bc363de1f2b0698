#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubevpn_stack::fuzzing::dns_answer(data));
