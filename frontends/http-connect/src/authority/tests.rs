use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::fuzzing::http_authority;

fn tunnel_to(text: &str) -> Result<String, AuthorityError> {
    tunnel(text, Origin::default()).map(|t| t.to_string())
}

fn forward_to(text: &str) -> Result<String, AuthorityError> {
    forward("http", text, Origin::default()).map(|t| t.to_string())
}

#[test]
fn tunnels_need_a_port() {
    for (text, means) in [
        ("web:80", "web:80"),
        ("Web.Shop.svc:443", "web.shop.svc:443"),
        ("web.:65535", "web.:65535"),
        ("10.0.0.1:1", "10.0.0.1:1"),
        ("[fd00::1]:443", "[fd00::1]:443"),
        ("[FD00:0::1]:443", "[fd00::1]:443"),
        ("[::ffff:10.0.0.1]:443", "10.0.0.1:443"),
        ("web:00080", "web:80"),
    ] {
        assert_eq!(tunnel_to(text), Ok(means.into()), "{text}");
    }
    let target = AuthorityError::Target;
    for (text, error) in [
        ("web", target(TargetError::NoPort)),
        ("[fd00::1]", target(TargetError::NoPort)),
        ("10.0.0.1", target(TargetError::NoPort)),
        ("web:", target(TargetError::BadPort)),
        ("web:http", target(TargetError::BadPort)),
        ("web:+80", target(TargetError::BadPort)),
        ("web:-1", target(TargetError::BadPort)),
        ("web:65536", target(TargetError::BadPort)),
        ("web:000080", target(TargetError::BadPort)),
        ("web:4294967376", target(TargetError::BadPort)),
        ("web:0", target(TargetError::PortZero)),
        (":80", target(TargetError::EmptyHost)),
        ("fd00::1:80", target(TargetError::UnbracketedIpv6)),
        ("[fd00::1:80", target(TargetError::BadIpv6)),
        ("fd00::1]:80", target(TargetError::UnbracketedIpv6)),
        ("[10.0.0.1]:80", target(TargetError::BadIpv6)),
        ("[fe80::1%25eth0]:80", target(TargetError::BadIpv6)),
        ("[v1.fe80]:80", target(TargetError::BadIpv6)),
        ("we%62:80", target(TargetError::BadByte(b'%'))),
        ("web,db:80", target(TargetError::BadByte(b','))),
        ("web /x:80", target(TargetError::BadByte(b' '))),
        ("a..b:80", target(TargetError::EmptyLabel)),
        ("1.2.3:80", target(TargetError::NumericName)),
        ("0x7f.1:80", target(TargetError::NumericName)),
        ("user@web:80", AuthorityError::Userinfo),
        ("user:pass@web:80", AuthorityError::Userinfo),
        ("@web:80", AuthorityError::Userinfo),
    ] {
        assert_eq!(tunnel_to(text), Err(error), "{text}");
    }
}

#[test]
fn forwarding_has_a_default_port() {
    for (text, means) in [
        ("web", "web:80"),
        ("web:", "web:80"),
        ("web:80", "web:80"),
        ("web:8080", "web:8080"),
        ("[fd00::1]", "[fd00::1]:80"),
        ("[fd00::1]:", "[fd00::1]:80"),
        ("[fd00::1]:81", "[fd00::1]:81"),
        ("10.0.0.1", "10.0.0.1:80"),
        ("u@web", "web:80"),
        ("u:p@web:81", "web:81"),
        ("@web", "web:80"),
        ("a@b@web", "web:80"),
    ] {
        assert_eq!(forward_to(text), Ok(means.into()), "{text}");
    }
    let target = AuthorityError::Target;
    for (text, error) in [
        ("", target(TargetError::EmptyHost)),
        (":", target(TargetError::EmptyHost)),
        (":80", target(TargetError::EmptyHost)),
        ("web::", target(TargetError::UnbracketedIpv6)),
        ("fd00::1", target(TargetError::UnbracketedIpv6)),
        ("fd00:::", target(TargetError::UnbracketedIpv6)),
        ("web:0", target(TargetError::PortZero)),
        ("web:65536", target(TargetError::BadPort)),
    ] {
        assert_eq!(forward_to(text), Err(error), "{text}");
    }
}

#[test]
fn schemes() {
    let forward = |scheme| forward(scheme, "web", Origin::default()).map(|t| t.to_string());
    assert_eq!(forward("HTTP"), Ok("web:80".into()));
    assert_eq!(forward("https"), Err(AuthorityError::Https));
    for scheme in ["ftp", "ws", "httpx", "file", ""] {
        assert_eq!(forward(scheme), Err(AuthorityError::Scheme), "{scheme}");
    }
    assert!(AuthorityError::Https.to_string().contains("CONNECT"));
}

#[test]
fn the_host_field_has_one_form() {
    let value = |text| host_value(&host(text, Origin::default()).unwrap());
    assert_eq!(value("Web:080"), "web");
    assert_eq!(value("web:8080"), "web:8080");
    assert_eq!(value("[FD00::1]"), "[fd00::1]");
    assert_eq!(value("[fd00::1]:81"), "[fd00::1]:81");
    assert_eq!(value("10.0.0.1:"), "10.0.0.1");
}

proptest! {
    #[test]
    fn one_reading_only(text in "[a-zA-Z0-9@:.%_\\[\\]/?# -]{0,40}") {
        http_authority(text.as_bytes());
    }

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        http_authority(&bytes);
    }

    #[test]
    fn good_targets_come_back(name in "[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\\.[a-z]{1,5}){0,3}", port in 1..=u16::MAX) {
        let text = format!("{name}:{port}");
        prop_assert_eq!(tunnel_to(&text), Ok(text.clone()));
        prop_assert_eq!(forward_to(&text), Ok(text));
    }
}

#[test]
fn the_corpus_of_the_fuzzer() {
    let corpus =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/fuzz/corpus/http_authority");
    let mut files = 0;
    for file in std::fs::read_dir(&corpus).expect("the corpus is committed") {
        http_authority(&std::fs::read(file.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files >= 20, "{files} files in {}", corpus.display());
}
