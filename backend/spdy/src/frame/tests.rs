//! Every frame type: its bytes, its truncation at every byte, and what is refused.

use proptest::prelude::*;

use super::{settings::Setting, *};

fn id(id: u32) -> StreamId {
    StreamId::new(id).unwrap()
}

/// Frames and their bytes, worked out by hand from sections 2.2 and 2.6 of the draft.
fn examples() -> Vec<(Frame<'static>, Vec<u8>)> {
    let settings = [
        1, 0, 0, 4, 0, 0, 0, 100, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    let settings: &'static [u8] = Box::leak(Box::new(settings));
    let with = |head: &[u8], rest: &[u8]| [head, rest].concat();
    vec![
        (
            Frame::Data(DataHead {
                stream: id(3),
                fin: false,
                len: 0x01_0203,
            }),
            vec![0, 0, 0, 3, 0, 1, 2, 3],
        ),
        (
            Frame::Data(DataHead {
                stream: id(0x7fff_ffff),
                fin: true,
                len: 0,
            }),
            vec![0x7f, 0xff, 0xff, 0xff, 1, 0, 0, 0],
        ),
        (
            Frame::SynStream(SynStream {
                stream: id(1),
                associated: None,
                priority: 0,
                slot: 0,
                fin: false,
                unidirectional: false,
                block: b"block",
            }),
            with(
                &[0x80, 3, 0, 1, 0, 0, 0, 15, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
                b"block",
            ),
        ),
        (
            Frame::SynStream(SynStream {
                stream: id(2),
                associated: Some(id(0x0102_0304)),
                priority: 7,
                slot: 9,
                fin: true,
                unidirectional: true,
                block: b"",
            }),
            vec![0x80, 3, 0, 1, 3, 0, 0, 10, 0, 0, 0, 2, 1, 2, 3, 4, 0xe0, 9],
        ),
        (
            Frame::SynReply(SynReply {
                stream: id(1),
                fin: true,
                block: b"abc",
            }),
            with(&[0x80, 3, 0, 2, 1, 0, 0, 7, 0, 0, 0, 1], b"abc"),
        ),
        (
            Frame::RstStream(RstStream {
                stream: id(5),
                status: ResetStatus::CANCEL,
            }),
            vec![0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 5],
        ),
        (
            Frame::Settings(SettingsFrame::decode(settings_body(settings)).unwrap()),
            with(&[0x80, 3, 0, 4, 0, 0, 0, 20, 0, 0, 0, 2], settings),
        ),
        (
            Frame::Ping(Ping { id: 0xdead_beef }),
            vec![0x80, 3, 0, 6, 0, 0, 0, 4, 0xde, 0xad, 0xbe, 0xef],
        ),
        (
            Frame::GoAway(GoAway {
                last_taken: None,
                status: GoAwayStatus::OK,
            }),
            vec![0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            Frame::GoAway(GoAway {
                last_taken: Some(id(257)),
                status: GoAwayStatus::PROTOCOL_ERROR,
            }),
            vec![0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 1, 1, 0, 0, 0, 1],
        ),
        (
            Frame::Headers(HeadersFrame {
                stream: id(1),
                fin: false,
                block: b"h",
            }),
            with(&[0x80, 3, 0, 8, 0, 0, 0, 5, 0, 0, 0, 1], b"h"),
        ),
        (
            Frame::WindowUpdate(WindowUpdate {
                stream: Some(id(7)),
                delta: 0x7fff_ffff,
            }),
            vec![
                0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 7, 0x7f, 0xff, 0xff, 0xff,
            ],
        ),
        (
            Frame::WindowUpdate(WindowUpdate {
                stream: None,
                delta: 1,
            }),
            vec![0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1],
        ),
        (
            Frame::Unknown {
                kind: 10,
                len: 0xff_ffff,
            },
            vec![0x80, 3, 0, 10, 0, 0xff, 0xff, 0xff],
        ),
    ]
}

/// The body that has these entries, with their number in front.
fn settings_body(entries: &[u8]) -> &'static [u8] {
    let count = u32::try_from(entries.len() / 8).unwrap();
    Box::leak([&count.to_be_bytes(), entries].concat().into_boxed_slice())
}

#[test]
fn frames_have_these_bytes() {
    for (frame, bytes) in examples() {
        assert_eq!(decode(&bytes), Ok(Some((frame, bytes.len()))));
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        assert_eq!(out, bytes, "{frame:?}");
    }
}

#[test]
fn no_beginning_of_a_frame_is_an_error() {
    for (frame, bytes) in examples() {
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), Ok(None), "{len} bytes of {frame:?}");
        }
    }
}

#[test]
fn what_follows_a_frame_is_not_looked_at() {
    for (frame, mut bytes) in examples() {
        let len = bytes.len();
        bytes.extend([0xff; 20]);
        assert_eq!(decode(&bytes), Ok(Some((frame, len))));
    }
}

#[test]
fn reserved_bits_are_not_looked_at() {
    let ping = [0x80, 3, 0, 6, 0xff, 0, 0, 4, 0, 0, 0, 1];
    assert_eq!(decode(&ping), Ok(Some((Frame::Ping(Ping { id: 1 }), 12))));
    let reply = [0x80, 3, 0, 2, 0xfe, 0, 0, 4, 0x80, 0, 0, 1];
    let frame = Frame::SynReply(SynReply {
        stream: id(1),
        fin: false,
        block: b"",
    });
    assert_eq!(decode(&reply), Ok(Some((frame, 12))));
}

#[test]
fn settings_are_read() {
    let body = [0, 0, 0, 1, 2, 0, 1, 0, 0, 0, 0, 5];
    let settings = SettingsFrame::decode(&body).unwrap();
    let setting = Setting {
        flags: 2,
        id: 256,
        value: 5,
    };
    assert_eq!(settings.iter().collect::<Vec<_>>(), [setting]);
}

#[test]
fn bad_frames_are_refused_by_their_first_bytes() {
    let length = |frame, length| WireError::Length { frame, length };
    let zero = |frame| WireError::ZeroStreamId { frame };
    let cases: [(&[u8], WireError); 19] = [
        (&[0x80, 2, 0, 1], WireError::Version(2)),
        (&[0xff, 0xff, 0, 1], WireError::Version(0x7fff)),
        (&[0, 0, 0, 0, 0, 0, 0, 1], zero("DATA")),
        (&[0x80, 3, 0, 1, 0, 0, 0, 9], length("SYN_STREAM", 9)),
        (&[0x80, 3, 0, 1, 0, 1, 0, 1], length("SYN_STREAM", 65537)),
        (&[0x80, 3, 0, 2, 0, 0, 0, 3], length("SYN_REPLY", 3)),
        (&[0x80, 3, 0, 2, 0, 1, 0, 1], length("SYN_REPLY", 65537)),
        (&[0x80, 3, 0, 3, 0, 0, 0, 7], length("RST_STREAM", 7)),
        (&[0x80, 3, 0, 3, 0, 0, 0, 9], length("RST_STREAM", 9)),
        (&[0x80, 3, 0, 4, 0, 0, 0, 3], length("SETTINGS", 3)),
        (&[0x80, 3, 0, 6, 0, 0, 0, 5], length("PING", 5)),
        (&[0x80, 3, 0, 7, 0, 0, 0, 4], length("GOAWAY", 4)),
        (
            &[0x80, 3, 0, 8, 0, 0xff, 0xff, 0xff],
            length("HEADERS", 0xff_ffff),
        ),
        (&[0x80, 3, 0, 9, 0, 0, 0, 4], length("WINDOW_UPDATE", 4)),
        (
            &[
                0x80, 3, 0, 4, 0, 0, 0, 12, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
            length("SETTINGS", 12),
        ),
        (
            &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0],
            WireError::ZeroStatus,
        ),
        (
            &[0x80, 3, 0, 3, 0, 0, 0, 8, 0x80, 0, 0, 0, 0, 0, 0, 1],
            zero("RST_STREAM"),
        ),
        (&[0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, 0], zero("SYN_REPLY")),
        (&[0x80, 3, 0, 8, 0, 0, 0, 4, 0, 0, 0, 0], zero("HEADERS")),
    ];
    for (bytes, error) in cases {
        let error = Err(error);
        assert_eq!(decode(bytes), error, "{bytes:02x?}");
        let seen = (0..bytes.len()).map(|len| decode(&bytes[..len]));
        for result in seen {
            assert!(result == Ok(None) || result == error, "{result:?}");
        }
    }
}

/// A frame of any type from any numbers.
fn frame(kind: u8, a: u32, b: u32, flag: bool, block: &[u8]) -> Frame<'_> {
    let stream = id((a & StreamId::MAX).max(1));
    let maybe = StreamId::new(b & StreamId::MAX);
    let fin = flag;
    match kind {
        0 => Frame::Data(DataHead {
            stream,
            fin,
            len: b & FrameHead::MAX_LEN,
        }),
        1 => Frame::SynStream(SynStream {
            stream,
            associated: maybe,
            priority: (b % 8) as u8,
            slot: b as u8,
            fin,
            unidirectional: b.is_multiple_of(2),
            block,
        }),
        2 => Frame::SynReply(SynReply { stream, fin, block }),
        3 => Frame::RstStream(RstStream {
            stream,
            status: ResetStatus::new(b.max(1)).unwrap(),
        }),
        4 => Frame::Ping(Ping { id: a }),
        5 => Frame::GoAway(GoAway {
            last_taken: maybe,
            status: GoAwayStatus::new(b),
        }),
        6 => Frame::Headers(HeadersFrame { stream, fin, block }),
        7 => Frame::WindowUpdate(WindowUpdate {
            stream: maybe,
            delta: a & 0x7fff_ffff,
        }),
        _ => Frame::Unknown {
            kind: (a as u16).max(10),
            len: b & FrameHead::MAX_LEN,
        },
    }
}

proptest! {
    #[test]
    fn every_frame_survives_its_encoding(
        (kind, a, b, flag) in (0..9u8, any::<u32>(), any::<u32>(), any::<bool>()),
        block in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let frame = frame(kind, a, b, flag, &block);
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        prop_assert_eq!(decode(&out), Ok(Some((frame, out.len()))));
        for len in 0..out.len() {
            prop_assert_eq!(decode(&out[..len]), Ok(None));
        }
    }

    #[test]
    fn settings_survive_their_encoding(list in proptest::collection::vec(any::<(u8, u32, u32)>(), 0..50)) {
        let entries: Vec<Setting> = list
            .iter()
            .map(|&(flags, id, value)| Setting { flags, id: id & FrameHead::MAX_LEN, value })
            .collect();
        let mut out = BytesMut::new();
        SettingsFrame::encode(entries.iter().copied(), &mut out);
        let Ok(Some((Frame::Settings(settings), used))) = decode(&out) else {
            panic!("no SETTINGS");
        };
        prop_assert_eq!(used, out.len());
        prop_assert_eq!(settings.iter().collect::<Vec<_>>(), entries);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        crate::fuzzing::fuzz_frames(&bytes);
    }

    #[test]
    fn arbitrary_bodies_never_panic(kind in 0..12u16, flags: u8, body in proptest::collection::vec(any::<u8>(), 0..100)) {
        let len = body.len() as u32;
        let mut bytes = FrameHead::Control { kind, flags, len }.to_bytes().to_vec();
        bytes.extend(body);
        crate::fuzzing::fuzz_frames(&bytes);
    }
}
