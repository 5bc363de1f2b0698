#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubevpn_portforward::fuzzing::pod_answers(data));
