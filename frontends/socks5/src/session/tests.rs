use super::*;
use crate::fuzzing::socks5_handshake;

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

/// What a session makes of the bytes: the target or the error, what it sends before an answer, what is left.
type Made = (Result<Option<String>, HandshakeError>, Vec<u8>, Vec<u8>);

fn session(credentials: Option<&Credentials>, pieces: &[&[u8]]) -> Made {
    let mut session = Handshake::new(credentials, Origin::default());
    let (mut input, mut sent) = (BytesMut::new(), Vec::new());
    let mut result = Ok(None);
    for piece in pieces {
        input.extend_from_slice(piece);
        if let Ok(None) = result {
            result = session.receive(&mut input, &mut sent);
        }
    }
    (
        result.map(|target| target.map(|t| t.to_string())),
        sent,
        input.to_vec(),
    )
}

fn open(bytes: &[u8]) -> Made {
    session(None, &[bytes])
}

fn with_password(bytes: &[u8]) -> Made {
    let credentials = Credentials::new("ann", "s3cret").unwrap();
    session(Some(&credentials), &[bytes])
}

fn error(made: Made) -> (HandshakeError, Vec<u8>) {
    (made.0.unwrap_err(), made.1)
}

const REPLY_REST: &[u8] = b"\x00\x01\0\0\0\0\0\0";

/// `05 00`, then a reply of this code.
fn method_then_reply(code: u8) -> Vec<u8> {
    [&[5, 0, 5, code], REPLY_REST].concat()
}

/// Openings that succeed, what they ask for, and whether a password is asked for.
fn valid() -> Vec<(Vec<u8>, &'static str, bool)> {
    let greet = |request: &[u8]| [b"\x05\x01\x00", request].concat();
    let login = |request: &[u8]| [b"\x05\x02\x00\x02\x01\x03ann\x06s3cret", request].concat();
    vec![
        (
            greet(b"\x05\x01\x00\x01\x0a\x60\x00\x01\x00\x50"),
            "10.96.0.1:80",
            false,
        ),
        (
            greet(b"\x05\x01\x00\x04\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x17\x00\x50"),
            "[fd00::17]:80",
            false,
        ),
        (
            greet(b"\x05\x01\x00\x03\x08Web.Shop\x00\x50"),
            "web.shop:80",
            false,
        ),
        (
            greet(b"\x05\x01\x00\x03\x0910.96.0.1\x00\x50"),
            "10.96.0.1:80",
            false,
        ),
        (
            greet(b"\x05\x01\x00\x03\x08fd00::17\x00\x50"),
            "[fd00::17]:80",
            false,
        ),
        (
            b"\x05\x03\x02\x01\x00\x05\x01\x00\x03\x03web\xff\xff".into(),
            "web:65535",
            false,
        ),
        (
            login(b"\x05\x01\x00\x03\x08web.shop\x00\x50"),
            "web.shop:80",
            true,
        ),
        (
            b"\x04\x01\x00\x50\x0a\x60\x00\x01ann\0".into(),
            "10.96.0.1:80",
            false,
        ),
        (
            b"\x04\x01\x00\x50\0\0\0\x01\0web.shop\0".into(),
            "web.shop:80",
            false,
        ),
    ]
}

#[test]
fn openings_that_succeed_byte_by_byte_and_with_payload_behind() {
    let credentials = Credentials::new("ann", "s3cret").unwrap();
    for (bytes, asks_for, password) in valid() {
        let credentials = password.then_some(&credentials);
        let whole = session(credentials, &[&bytes]);
        assert_eq!(whole.0, Ok(Some(asks_for.into())), "{bytes:?}");
        assert_eq!(whole.2, b"");

        let singles: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(session(credentials, &singles), whole, "{bytes:?}");
        for n in 0..bytes.len() {
            let (front, back) = bytes.split_at(n);
            assert_eq!(
                session(credentials, &[front]).0,
                Ok(None),
                "{n} of {bytes:?}"
            );
            assert_eq!(
                session(credentials, &[front, back]),
                whole,
                "cut at {n}: {bytes:?}"
            );
        }

        let early = session(credentials, &[&[&bytes, &b"GET /"[..]].concat()]);
        assert_eq!((early.0, early.1), (whole.0, whole.1));
        assert_eq!(early.2, b"GET /", "{bytes:?}");
    }
}

#[test]
fn the_method_that_fits_is_taken() {
    assert_eq!(open(b"\x05\x01\x00").1, b"\x05\x00");
    assert_eq!(open(b"\x05\x02\x02\x00").1, b"\x05\x00");
    assert_eq!(with_password(b"\x05\x02\x00\x02").1, b"\x05\x02");
    for offered in [&b"\x05\x00"[..], b"\x05\x01\x01", b"\x05\x02\x80\xfe"] {
        let refused = (
            HandshakeError::NoMethod { password: false },
            b"\x05\xff".to_vec(),
        );
        assert_eq!(error(open(offered)), refused, "{offered:?}");
    }
    for offered in [&b"\x05\x00"[..], b"\x05\x01\x00", b"\x05\x02\x00\x01"] {
        let refused = (
            HandshakeError::NoMethod { password: true },
            b"\x05\xff".to_vec(),
        );
        assert_eq!(error(with_password(offered)), refused, "{offered:?}");
    }
}

/// Programs that know no other way than RFC 1929 are let in with whatever they say.
#[test]
fn a_password_that_nobody_asked_for_is_taken() {
    for said in [&b"\x01\x03ann\x06s3cret"[..], b"\x01\x00\x00"] {
        let asked = [b"\x05\x01\x02", said, b"\x05\x01\x00\x03\x03web\x00\x50"].concat();
        let (got, sent, rest) = open(&asked);
        assert_eq!(got, Ok(Some("web:80".into())));
        assert_eq!((&sent[..], &rest[..]), (&b"\x05\x02\x01\x00"[..], &b""[..]));
    }
    // Where no password will do as well, that is taken.
    assert_eq!(open(b"\x05\x02\x02\x00").1, b"\x05\x00");
}

#[test]
fn every_method_there_is() {
    for method in 0..=255 {
        let offer = [5, 1, method];
        let taken = |made: Made| made.0.is_ok() && made.1 == [5, method];
        let refused = |made: Made| made.0.is_err() && made.1 == [5, 0xff];
        match method {
            0 => assert!(taken(open(&offer)) && refused(with_password(&offer))),
            2 => assert!(taken(open(&offer)) && taken(with_password(&offer))),
            _ => assert!(
                refused(open(&offer)) && refused(with_password(&offer)),
                "{method}"
            ),
        }
        // Beside those we know it changes nothing, wherever it stands.
        for offer in [[5, 3, method, 2, 0], [5, 3, 0, method, 2]] {
            assert_eq!(open(&offer).1, [5, 0], "{method}");
            assert_eq!(with_password(&offer).1, [5, 2], "{method}");
        }
    }
    let all: Vec<u8> = [5, 255].into_iter().chain(0..=254).collect();
    assert_eq!(open(&all).1, [5, 0]);
    assert_eq!(with_password(&all).1, [5, 2]);
}

#[test]
fn passwords() {
    let right = with_password(b"\x05\x01\x02\x01\x03ann\x06s3cret");
    assert_eq!((right.0, right.1), (Ok(None), b"\x05\x02\x01\x00".to_vec()));
    for wrong in [
        &b"\x01\x03ann\x05wrong"[..],
        b"\x01\x03bob\x06s3cret",
        b"\x01\x00\x00",
    ] {
        let bytes = [b"\x05\x01\x02", wrong].concat();
        let refused = (HandshakeError::WrongPassword, b"\x05\x02\x01\x01".to_vec());
        assert_eq!(error(with_password(&bytes)), refused);
    }
    // A request in place of the password does not get past it.
    let skipped = with_password(b"\x05\x01\x02\x05\x01\x00\x03\x03web\x00\x50");
    assert_eq!(
        error(skipped),
        (HandshakeError::Version(5), b"\x05\x02\x01\x01".to_vec())
    );
}

#[test]
fn every_command_but_connect_is_answered_with_7() {
    for command in (0..=255).filter(|command| *command != 1) {
        for address in [&b"\x01\x0a\0\0\x01"[..], b"\x03\x03web"] {
            let bytes = [&[5, 1, 0, 5, command, 0], address, b"\x00\x50"].concat();
            let refused = (HandshakeError::Command(command), method_then_reply(7));
            assert_eq!(error(open(&bytes)), refused);
        }
        let bytes = [4, command, 0, 80, 10, 0, 0, 1, 0];
        let refused = (
            HandshakeError::Command(command),
            b"\0\x5b\0\0\0\0\0\0".to_vec(),
        );
        assert_eq!(error(open(&bytes)), refused);
    }
}

#[test]
fn every_unknown_address_type_is_answered_with_8() {
    for kind in (0..=255).filter(|kind| ![1, 3, 4].contains(kind)) {
        let bytes = [5, 1, 0, 5, 1, 0, kind];
        let refused = (HandshakeError::AddressType(kind), method_then_reply(8));
        assert_eq!(error(open(&bytes)), refused);
    }
}

#[test]
fn a_malformed_target_is_answered_with_1() {
    use TargetError as T;
    let long = [b"\x03\xff", &[b'x'; 255][..], b"\x00\x50"].concat();
    for (asked, why) in [
        (&b"\x01\x0a\0\0\x01\x00\x00"[..], T::PortZero),
        (b"\x03\x03web\x00\x00", T::PortZero),
        (b"\x03\x00\x00\x50", T::EmptyHost),
        (b"\x03\x04a..b\x00\x50", T::EmptyLabel),
        (b"\x03\x03a b\x00\x50", T::BadByte(b' ')),
        (b"\x03\x03a\0b\x00\x50", T::BadByte(0)),
        (b"\x03\x02a\xff\x00\x50", T::BadByte(0xff)),
        (b"\x03\x09300.1.1.1\x00\x50", T::NumericName),
        (&long, T::NameTooLong(255)),
    ] {
        let bytes = [b"\x05\x01\x00\x05\x01\x00", asked].concat();
        let refused = (HandshakeError::Target(why), method_then_reply(1));
        assert_eq!(error(open(&bytes)), refused, "{asked:?}");
    }
    let refused = (
        HandshakeError::Target(T::PortZero),
        b"\0\x5b\0\0\0\0\0\0".to_vec(),
    );
    assert_eq!(error(open(b"\x04\x01\0\0\x0a\0\0\x01\0")), refused);
}

#[test]
fn a_request_of_another_version_is_answered_with_1() {
    let refused = (HandshakeError::Version(4), method_then_reply(1));
    assert_eq!(error(open(b"\x05\x01\x00\x04\x01")), refused);
}

#[test]
fn socks4_cannot_get_around_a_password() {
    let refused = (
        HandshakeError::Socks4HasNoPassword,
        b"\0\x5b\0\0\0\0\0\0".to_vec(),
    );
    assert_eq!(
        error(with_password(b"\x04\x01\x00\x50\x0a\x60\x00\x01ann\0")),
        refused
    );
}

#[test]
fn other_protocols() {
    let refused = (HandshakeError::Http, http::ANSWER.as_bytes().to_vec());
    assert_eq!(error(open(b"GET http://web/ HTTP/1.1\r\n")), refused);
    assert_eq!(open(b"GE").0, Ok(None));
    for (bytes, first) in [(&b"\x16\x03\x01"[..], 0x16), (b"SSH-2.0", b'S'), (b"\0", 0)] {
        assert_eq!(
            error(open(bytes)),
            (HandshakeError::NotSocks(first), vec![])
        );
    }
}

#[test]
fn answers_speak_the_clients_version_and_once() {
    for (opening, granted, refused) in [
        (
            &b"\x05\x01\x00\x05\x01\x00\x03\x03web\x00\x50"[..],
            [&[5, 0], REPLY_REST].concat(),
            [&[5, 4], REPLY_REST].concat(),
        ),
        (
            b"\x04\x01\x00\x50\x0a\x60\x00\x01\0",
            b"\0\x5a\0\0\0\0\0\0".into(),
            b"\0\x5b\0\0\0\0\0\0".into(),
        ),
    ] {
        for (dialled, expected) in [(Ok(()), granted), (Err(Refusal::NameNotFound), refused)] {
            let mut session = Handshake::new(None, Origin::default());
            let mut out = Vec::new();
            session.answer(dialled, &mut out);
            assert_eq!(out, b"", "nothing was asked");
            let asked = session.receive(&mut BytesMut::from(opening), &mut out);
            assert!(asked.unwrap().is_some());
            out.clear();
            session.answer(dialled, &mut out);
            assert_eq!(out, expected);
            session.answer(dialled, &mut out);
            assert_eq!(out, expected, "answered twice");
        }
    }
}

#[test]
fn after_an_error_nothing_more_happens() {
    let mut session = Handshake::new(None, Origin::default());
    let mut out = Vec::new();
    session
        .receive(&mut BytesMut::from("\0"), &mut out)
        .unwrap_err();
    let mut input = BytesMut::from(&b"\x05\x01\x00"[..]);
    assert_eq!(session.receive(&mut input, &mut out), Ok(None));
    session.answer(Ok(()), &mut out);
    assert_eq!(out, b"");
}

#[test]
fn sentences_name_what_to_do_and_no_payload() {
    for (error, words) in [
        (HandshakeError::Http, "--listen-http"),
        (HandshakeError::NotSocks(0x16), "TLS"),
        (HandshakeError::NotSocks(0), "0x00"),
        (HandshakeError::Command(2), "BIND"),
        (HandshakeError::Command(3), "UDP ASSOCIATE"),
        (HandshakeError::Command(9), "0x09"),
        (HandshakeError::NoMethod { password: true }, "asks for"),
        (
            HandshakeError::NoMethod { password: false },
            "set it to none",
        ),
    ] {
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn the_corpus_of_the_fuzzer() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../integration/fuzz/corpus/socks5_handshake");
    let mut files = 0;
    for file in std::fs::read_dir(&corpus).expect("the corpus is committed") {
        let path = file.unwrap().path();
        socks5_handshake(&std::fs::read(&path).unwrap());
        files += 1;
    }
    assert!(files >= 20, "{files} files in {}", corpus.display());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..1500)) {
        socks5_handshake(&bytes);
    }

    /// Arbitrary bytes hardly ever get past the first: these are valid openings with some bytes changed.
    #[test]
    fn bent_openings_never_panic(
        which in any::<prop::sample::Index>(),
        bent in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        tail in vec(any::<u8>(), 0..600),
    ) {
        let openings = valid();
        let mut bytes = [&*which.get(&openings).0, &*tail].concat();
        for (at, byte) in bent {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        socks5_handshake(&bytes);
    }
}
