use super::addr::SocksAddress;
use super::auth::Auth;
use super::greeting::{Greeting, encode_selection, method};
use super::reply::ReplyCode;
use super::request::{SocksCommand, SocksRequest};
use super::*;

use std::net::{Ipv4Addr, Ipv6Addr};

use kubevpn_target::{Host, TargetError};
use proptest::collection::vec;
use proptest::prelude::*;

const V4: SocksAddress<'_> = SocksAddress::V4(Ipv4Addr::new(10, 96, 0, 1));
const V6: SocksAddress<'_> = SocksAddress::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x17));

/// The bytes decode to the message, alone and with others behind; no part of them does, or is an error.
macro_rules! whole_only {
    ($decode:path, $bytes:expr, $message:expr) => {
        let bytes: &[u8] = $bytes;
        assert_eq!($decode(bytes), Ok(Some(($message, bytes.len()))));
        let more = [bytes, b"\x05more"].concat();
        assert_eq!($decode(&more), Ok(Some(($message, bytes.len()))));
        for n in 0..bytes.len() {
            assert_eq!($decode(&bytes[..n]), Ok(None), "{n} bytes of {bytes:?}");
        }
    };
}

fn request(command: SocksCommand, address: SocksAddress<'_>, port: u16) -> SocksRequest<'_> {
    SocksRequest {
        command,
        address,
        port,
    }
}

#[test]
fn greetings() {
    whole_only!(Greeting::decode, b"\x05\x00", Greeting { methods: b"" });
    whole_only!(
        Greeting::decode,
        b"\x05\x01\x00",
        Greeting { methods: b"\x00" }
    );
    whole_only!(
        Greeting::decode,
        b"\x05\x03\x00\x01\x02",
        Greeting {
            methods: b"\x00\x01\x02"
        }
    );
    let all: Vec<u8> = (0..=254).collect();
    let bytes = [b"\x05\xff", &*all].concat();
    whole_only!(Greeting::decode, &bytes, Greeting { methods: &all });
    assert_eq!(Greeting::decode(b"\x04"), Err(MessageError::Version(4)));
}

#[test]
fn passwords() {
    let auth = |user: &'static [u8], password: &'static [u8]| Auth { user, password };
    whole_only!(
        Auth::decode,
        b"\x01\x03ann\x06s3cret",
        auth(b"ann", b"s3cret")
    );
    whole_only!(Auth::decode, b"\x01\x00\x00", auth(b"", b""));
    let bytes = [b"\x01\xff", &[b'u'; 255][..], b"\xff", &[b'p'; 255]].concat();
    whole_only!(Auth::decode, &bytes, auth(&[b'u'; 255], &[b'p'; 255]));
    assert_eq!(Auth::decode(b"\x05"), Err(MessageError::Version(5)));
    assert!(!format!("{:?}", auth(b"ann", b"s3cret")).contains("s3cret"));
}

#[test]
fn requests() {
    whole_only!(
        SocksRequest::decode,
        b"\x05\x01\x00\x01\x0a\x60\x00\x01\x00\x50",
        request(SocksCommand::CONNECT, V4, 80)
    );
    whole_only!(
        SocksRequest::decode,
        b"\x05\x01\x00\x04\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x17\x23\x28",
        request(SocksCommand::CONNECT, V6, 9000)
    );
    whole_only!(
        SocksRequest::decode,
        b"\x05\x02\x00\x03\x08web.shop\xff\xff",
        request(SocksCommand::BIND, SocksAddress::Domain(b"web.shop"), 65535)
    );
    whole_only!(
        SocksRequest::decode,
        b"\x05\x77\x99\x03\x00\x00\x00",
        request(SocksCommand(0x77), SocksAddress::Domain(b""), 0)
    );
    let bytes = [b"\x05\x03\x00\x03\xff", &[b'n'; 255][..], b"\x00\x35"].concat();
    whole_only!(
        SocksRequest::decode,
        &bytes,
        request(
            SocksCommand::UDP_ASSOCIATE,
            SocksAddress::Domain(&[b'n'; 255]),
            53
        )
    );
    assert_eq!(
        SocksRequest::decode(b"\x04\x01"),
        Err(MessageError::Version(4))
    );
}

#[test]
fn every_other_address_type_is_an_error_as_soon_as_it_is_there() {
    for kind in (0..=255).filter(|kind| ![1, 3, 4].contains(kind)) {
        assert_eq!(
            SocksRequest::decode(&[5, 1, 0, kind]),
            Err(MessageError::AddressType(kind))
        );
    }
}

#[test]
fn requests_of_socks4() {
    whole_only!(
        socks4::decode,
        b"\x04\x01\x00\x50\x0a\x60\x00\x01ann\0",
        request(SocksCommand::CONNECT, V4, 80)
    );
    whole_only!(
        socks4::decode,
        b"\x04\x02\x00\x50\x0a\x60\x00\x01\0",
        request(SocksCommand::BIND, V4, 80)
    );
    whole_only!(
        socks4::decode,
        b"\x04\x01\x00\x50\0\0\0\x01ann\0web.shop\0",
        request(SocksCommand::CONNECT, SocksAddress::Domain(b"web.shop"), 80)
    );
    // 0.0.0.0 announces no name.
    whole_only!(
        socks4::decode,
        b"\x04\x01\x00\x50\0\0\0\0\0",
        request(
            SocksCommand::CONNECT,
            SocksAddress::V4(Ipv4Addr::UNSPECIFIED),
            80
        )
    );
    let bytes = [
        b"\x04\x01\x00\x50\0\0\0\x01",
        &[b'u'; 255][..],
        b"\0",
        &[b'n'; 255],
        b"\0",
    ]
    .concat();
    whole_only!(
        socks4::decode,
        &bytes,
        request(
            SocksCommand::CONNECT,
            SocksAddress::Domain(&[b'n'; 255]),
            80
        )
    );
    assert_eq!(socks4::decode(b"\x05"), Err(MessageError::Version(5)));
    for before in [&b""[..], b"ann\0"] {
        let endless = [b"\x04\x01\x00\x50\0\0\0\x01", before, &[b'x'; 256]].concat();
        assert_eq!(socks4::decode(&endless), Err(MessageError::Unterminated));
        assert_eq!(socks4::decode(&endless[..endless.len() - 1]), Ok(None));
    }
}

#[test]
fn answers() {
    let bytes = |encode: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        encode(&mut out);
        out
    };
    assert_eq!(
        bytes(&|o| encode_selection(method::NO_ACCEPTABLE, o)),
        b"\x05\xff"
    );
    assert_eq!(bytes(&|o| auth::encode_status(true, o)), b"\x01\x00");
    assert_eq!(bytes(&|o| auth::encode_status(false, o)), b"\x01\x01");
    assert_eq!(
        bytes(&|o| ReplyCode::Succeeded.encode(o)),
        b"\x05\x00\x00\x01\0\0\0\0\0\0"
    );
    assert_eq!(
        bytes(&|o| ReplyCode::TtlExpired.encode(o)),
        b"\x05\x06\x00\x01\0\0\0\0\0\0"
    );
    assert_eq!(
        bytes(&|o| socks4::encode_reply(true, o)),
        b"\0\x5a\0\0\0\0\0\0"
    );
    assert_eq!(
        bytes(&|o| socks4::encode_reply(false, o)),
        b"\0\x5b\0\0\0\0\0\0"
    );
}

#[test]
fn hosts() {
    let domain = |bytes| {
        SocksAddress::Domain(bytes)
            .host()
            .map(|host: Host| host.to_string())
    };
    assert_eq!(V4.host().map(|h| h.to_string()), Ok("10.96.0.1".into()));
    assert_eq!(V6.host().map(|h| h.to_string()), Ok("fd00::17".into()));
    assert_eq!(domain(b"Web.Shop"), Ok("web.shop".into()));
    for (text, ip) in [
        (&b"10.96.0.1"[..], "10.96.0.1"),
        (b"fd00::17", "fd00::17"),
        (b"[fd00::17]", "fd00::17"),
    ] {
        let host = SocksAddress::Domain(text).host().unwrap();
        assert_eq!(host, Host::Ip(ip.parse().unwrap()));
    }
    let mapped = SocksAddress::V6(Ipv4Addr::new(10, 96, 0, 1).to_ipv6_mapped());
    assert_eq!(mapped.host(), V4.host());
    assert_eq!(domain(b""), Err(TargetError::EmptyHost));
    assert_eq!(domain(b"a b"), Err(TargetError::BadByte(b' ')));
    assert_eq!(domain(b"a\xff"), Err(TargetError::BadByte(0xff)));
    assert_eq!(domain(&[b'x'; 255]), Err(TargetError::NameTooLong(255)));
}

#[test]
fn http_at_the_wrong_door() {
    for request in [
        "GET / HTTP/1.1",
        "CONNECT web:80 HTTP/1.1",
        "PRI * HTTP/2.0",
        "POST http://x/",
    ] {
        assert_eq!(http::sniff(request.as_bytes()), Some(true), "{request}");
        let method = request.find(' ').unwrap();
        for n in 0..=method {
            assert_eq!(
                http::sniff(&request.as_bytes()[..n]),
                None,
                "{request}, {n}"
            );
        }
    }
    for other in [
        &b"SSH-2.0"[..],
        b"\x16\x03\x01",
        b"GETX",
        b"get /",
        b"\0",
        b"\xff",
    ] {
        assert_eq!(http::sniff(other), Some(false), "{other:?}");
    }
}

#[test]
fn the_answer_to_http_is_http() {
    let (head, body) = http::ANSWER.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 400 "));
    assert!(
        head.contains(&format!("Content-Length: {}\r\n", body.len())),
        "{}",
        body.len()
    );
    assert!(body.contains("SOCKS") && body.contains("--listen-http"));
}

fn address(kind: u8, ip: [u8; 16], name: &[u8]) -> SocksAddress<'_> {
    match kind {
        0 => SocksAddress::V4([ip[0], ip[1], ip[2], ip[3]].into()),
        1 => SocksAddress::V6(ip.into()),
        _ => SocksAddress::Domain(name),
    }
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_itself(
        (kind, ip) in (0u8..3, any::<[u8; 16]>()),
        (name, other) in (vec(any::<u8>(), 0..256), vec(any::<u8>(), 0..256)),
        (command, port) in any::<(u8, u16)>(),
    ) {
        let message = request(SocksCommand(command), address(kind, ip, &name), port);
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        whole_only!(SocksRequest::decode, &bytes, message);

        let auth = || Auth { user: &name, password: &other };
        bytes = Vec::new();
        auth().encode(&mut bytes);
        whole_only!(Auth::decode, &bytes, auth());

        let methods = &name[..];
        bytes = Vec::new();
        Greeting { methods }.encode(&mut bytes);
        whole_only!(Greeting::decode, &bytes, Greeting { methods });
    }

    #[test]
    fn what_is_encoded_for_socks4_decodes_to_itself(
        (name, user) in (vec(1u8.., 0..256), vec(1u8.., 0..256)),
        (is_name, mut ip, command, port) in any::<(bool, [u8; 4], u8, u16)>(),
    ) {
        ip[0] |= 1;
        let address = if is_name { SocksAddress::Domain(&name) } else { SocksAddress::V4(ip.into()) };
        let message = request(SocksCommand(command), address, port);
        let mut bytes = Vec::new();
        socks4::encode(&message, &user, &mut bytes);
        whole_only!(socks4::decode, &bytes, message);
    }

    #[test]
    fn arbitrary_bytes_are_a_value_or_an_error(bytes in vec(any::<u8>(), 0..600)) {
        let _ = Greeting::decode(&bytes);
        let _ = Auth::decode(&bytes);
        let _ = SocksRequest::decode(&bytes);
        let _ = socks4::decode(&bytes);
        let _ = http::sniff(&bytes);
    }
}
