#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubevpn_socks5::fuzzing::socks5_handshake(data));
