//! Resets, GOAWAY, and peers that break the rules.

use flate2::{Compress, Compression, FlushCompress};

use super::*;

#[test]
fn a_peers_reset_comes_after_what_it_sent() {
    for flip in [false, true] {
        let (client, server, stream) = pair();
        let (mut us, mut peer) = if flip {
            (server, client)
        } else {
            (client, server)
        };
        peer.send(stream, b"before").unwrap();
        pass(&mut peer, &mut us);
        us.send(stream, b"never sent").unwrap();
        peer.reset(stream, ResetStatus::INTERNAL_ERROR);
        let events = pass(&mut peer, &mut us);
        assert_eq!(events, [Event::Readable(stream), Event::Writable(stream)]);
        assert_eq!(read_all(&mut us, stream), (b"before".to_vec(), "reset"));
        let error = us.send(stream, b"x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the peer reset the stream (INTERNAL_ERROR)"
        );
        assert!(us.finish(stream).is_err());
        assert_eq!(us.totals().queued, 0);
        assert_eq!(written(&mut us), "", "a reset is not answered");
        us.release(stream);
        peer.release(stream);
        assert_empty(&us);
        assert_empty(&peer);
    }
}

#[test]
fn a_reset_after_the_peers_end_leaves_the_end() {
    let (mut client, mut server, stream) = pair();
    server.send(stream, b"whole").unwrap();
    server.finish(stream).unwrap();
    pass(&mut server, &mut client);
    received(&mut client, &rst_stream(stream, ResetStatus::CANCEL)).unwrap();
    assert_eq!(read_all(&mut client, stream), (b"whole".to_vec(), "end"));
    assert!(matches!(
        client.send(stream, b"x"),
        Err(StreamError::Reset(_))
    ));
}

#[test]
fn our_reset_drops_what_is_there_and_what_still_comes() {
    let (mut client, mut server, stream) = pair();
    server.send(stream, &[1; 1000]).unwrap();
    pass(&mut server, &mut client);
    client.send(stream, b"never sent").unwrap();
    client.reset(stream, ResetStatus::CANCEL);
    assert_eq!(client.totals().buffered, 0);
    assert_eq!(read_all(&mut client, stream), (vec![], "reset here"));
    // On its way before the server heard of it.
    server.send(stream, &[2; 500]).unwrap();
    server.finish(stream).unwrap();
    assert_eq!(pass(&mut server, &mut client), []);
    assert_eq!(client.totals().discarded, 500);
    assert_eq!(frames(written(&mut client)), ["RST_STREAM 1 CANCEL"]);
    client.reset(stream, ResetStatus::CANCEL);
    assert!(!client.has_output(), "reset once");

    client.release(stream);
    assert_empty(&client);
    received(&mut client, &data(stream, &[3; 7], true)).unwrap();
    assert_eq!(client.totals().discarded, 507);
    assert!(!client.has_output(), "late data is not answered");
}

#[test]
fn our_reset_of_a_stream_that_ended_here_says_so() {
    let (mut client, mut server, stream) = pair();
    server.send(stream, b"unread").unwrap();
    server.finish(stream).unwrap();
    pass(&mut server, &mut client);
    client.reset(stream, ResetStatus::CANCEL);
    assert_eq!(
        read_all(&mut client, stream),
        (vec![], "reset here"),
        "not an end"
    );
}

#[test]
fn frames_for_streams_never_opened_are_answered() {
    let (mut client, mut server, _) = pair();
    let cases = [(&mut client, [3, 2]), (&mut server, [3, 2])];
    for (side, ids) in cases {
        for unknown in ids {
            let before = side.totals().discarded;
            assert_eq!(received(side, &data(id(unknown), b"abc", true)), Ok(vec![]));
            assert_eq!(side.totals().discarded, before + 3);
            let answer = frames(written(side));
            assert_eq!(answer, [format!("RST_STREAM {unknown} INVALID_STREAM")]);
            received(side, &rst_stream(id(unknown), ResetStatus::CANCEL)).unwrap();
            assert!(!side.has_output(), "a reset is not answered");
        }
    }
}

#[test]
fn header_blocks_are_read_even_when_nobody_wants_them() {
    // A peer that compresses refers back to blocks of streams we know nothing of.
    let mut zlib = Compress::new(Compression::best(), false);
    let mut block = |first: bool, text: &[u8]| {
        let mut out = if first { vec![0x78, 0x9c] } else { Vec::new() };
        out.reserve(1024);
        zlib.compress_vec(text, &mut out, FlushCompress::Sync)
            .unwrap();
        out
    };
    let text = b"\0\0\0\x01\0\0\0\x0fa-rather-long-h\0\0\0\x0fa-rather-long-v";
    let (one, two, three) = (block(true, text), block(false, text), block(false, text));
    assert!(two.len() < one.len() && three.len() < one.len());

    let mut client = machine(Role::Client);
    let gone = client.open(&headers(), false).unwrap();
    let stream = client.open(&headers(), false).unwrap();
    client.release(gone);
    written(&mut client);
    let fin = false;
    let bytes = encode(&[
        Frame::SynReply(SynReply {
            stream: id(99),
            fin,
            block: &one,
        }),
        Frame::SynReply(SynReply {
            stream: gone,
            fin,
            block: &two,
        }),
        Frame::SynReply(SynReply {
            stream,
            fin,
            block: &three,
        }),
    ]);
    assert_eq!(
        received(&mut client, &bytes),
        Ok(vec![Event::Readable(stream)])
    );
    let reply = client.reply(stream).unwrap().unwrap();
    assert_eq!(reply.get("a-rather-long-h"), Some("a-rather-long-v"));
    assert_eq!(
        frames(written(&mut client)),
        ["RST_STREAM 99 INVALID_STREAM"]
    );
}

#[test]
fn faults_of_one_stream_leave_the_others() {
    fn block(headers: &[u8]) -> Vec<u8> {
        let len = headers.len() as u16;
        let mut out = vec![0x78, 0x01, 0];
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(headers);
        out
    }
    let good = block(b"\0\0\0\0");
    let upper = block(b"\0\0\0\x01\0\0\0\x01A\0\0\0\0");
    let cut = block(b"\0\0\0\x02\0\0\0\x01a\0\0\0\0");
    let stream = id(1);
    let reply = |block| {
        Frame::SynReply(SynReply {
            stream,
            fin: false,
            block,
        })
    };
    let cases: [(&str, BytesMut, &str); 7] = [
        (
            "data before the reply",
            data(stream, b"x", false),
            "PROTOCOL_ERROR",
        ),
        (
            "an upper-case name",
            encode(&[reply(&upper)]),
            "PROTOCOL_ERROR",
        ),
        (
            "a block cut short",
            encode(&[reply(&cut)]),
            "PROTOCOL_ERROR",
        ),
        (
            "two replies",
            encode(&[reply(&good), reply(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0])]),
            "STREAM_IN_USE",
        ),
        (
            "headers after the end",
            encode(&[
                Frame::SynReply(SynReply {
                    stream,
                    fin: true,
                    block: &good,
                }),
                Frame::Headers(frame::HeadersFrame {
                    stream,
                    fin: false,
                    block: &[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0],
                }),
            ]),
            "STREAM_ALREADY_CLOSED",
        ),
        (
            "data after the end",
            [
                encode(&[Frame::SynReply(SynReply {
                    stream,
                    fin: true,
                    block: &good,
                })]),
                data(stream, b"x", false),
            ]
            .concat()[..]
                .into(),
            "STREAM_ALREADY_CLOSED",
        ),
        (
            "bad headers in HEADERS",
            encode(&[
                reply(&good),
                Frame::Headers(frame::HeadersFrame {
                    stream,
                    fin: false,
                    block: &[0, 1, 0, 0xfe, 0xff, 7],
                }),
            ]),
            "PROTOCOL_ERROR",
        ),
    ];
    for (what, bytes, status) in cases {
        let mut client = machine(Role::Client);
        client.open(&headers(), false).unwrap();
        let other = client.open(&headers(), false).unwrap();
        written(&mut client);
        let events = received(&mut client, &bytes).unwrap();
        assert!(
            events.ends_with(&[Event::Readable(stream), Event::Writable(stream)]),
            "{what}"
        );
        let answer = frames(written(&mut client));
        assert_eq!(answer, [format!("RST_STREAM 1 {status}")], "{what}");
        assert!(
            matches!(client.send(stream, b"x"), Err(StreamError::ResetHere(_))),
            "{what}"
        );
        assert_eq!(client.send(other, b"x").unwrap(), 1, "{what}");
    }
}

#[test]
fn an_end_seen_before_a_fault_stands() {
    let (mut client, mut server, stream) = pair();
    server.send(stream, b"whole").unwrap();
    server.finish(stream).unwrap();
    pass(&mut server, &mut client);
    received(&mut client, &data(stream, b"too late", false)).unwrap();
    assert_eq!(read_all(&mut client, stream), (b"whole".to_vec(), "end"));
    assert_eq!(client.totals().discarded, 8);
}

#[test]
fn stream_ids_of_the_peer_grow() {
    let syn = |stream: u32| {
        let stream = id(stream);
        let mut block = BytesMut::new();
        Deflater::default().encode(&headers(), &mut block).unwrap();
        let mut out = BytesMut::new();
        SynStream {
            stream,
            associated: None,
            priority: 0,
            slot: 0,
            fin: false,
            unidirectional: false,
            block: &block,
        }
        .encode(&mut out);
        out
    };
    let mut server = machine(Role::Server);
    assert_eq!(
        received(&mut server, &syn(2)),
        Err(WireError::StreamIdOrder(2))
    );

    let mut server = machine(Role::Server);
    received(&mut server, &syn(5)).unwrap();
    // A second zlib header is no block: this peer starts anew each time, so a new inflater does too.
    server.inflater = Inflater::default();
    let events = received(&mut server, &syn(5)).unwrap();
    assert_eq!(events, [Event::Readable(id(5)), Event::Writable(id(5))]);
    assert_eq!(
        frames(written(&mut server)),
        ["RST_STREAM 5 PROTOCOL_ERROR"]
    );
    server.inflater = Inflater::default();
    assert_eq!(
        received(&mut server, &syn(3)),
        Err(WireError::StreamIdOrder(3))
    );
    server.inflater = Inflater::default();
    received(&mut server, &syn(7)).unwrap();
}

#[test]
fn a_client_refuses_streams_of_the_server() {
    let (mut client, mut server, _) = pair();
    let pushed = server.open(&headers(), false).unwrap();
    assert_eq!(
        pass(&mut server, &mut client),
        [Event::Readable(pushed), Event::Writable(pushed)]
    );
    let bytes = written(&mut client);
    assert_eq!(frames(bytes.clone()), ["RST_STREAM 2 REFUSED_STREAM"]);
    received(&mut server, &bytes).unwrap();
    assert_eq!(read_all(&mut server, pushed), (vec![], "reset"));
}

#[test]
fn what_breaks_the_session_is_an_error() {
    let cases = [
        (
            vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
            WireError::Version(2),
        ),
        (vec![0; 8], WireError::ZeroStreamId { frame: "DATA" }),
        (
            vec![0x80, 3, 0, 2, 0, 0, 0, 6, 0, 0, 0, 1, 0xff, 0xff],
            WireError::Compression,
        ),
    ];
    for (bytes, error) in cases {
        for role in [Role::Client, Role::Server] {
            let mut machine = machine(role);
            assert_eq!(received(&mut machine, &bytes), Err(error.clone()));
        }
    }
}

#[test]
fn goaway_fails_the_streams_the_peer_never_took() {
    let (mut client, mut server, taken) = pair();
    let untaken = client.open(&headers(), false).unwrap();
    server.go_away(GoAwayStatus::OK);
    let bytes = written(&mut server);
    assert_eq!(frames(bytes.clone()), ["GOAWAY 1 OK"]);
    let events = received(&mut client, &bytes).unwrap();
    let expected = [
        Event::GoingAway,
        Event::Readable(untaken),
        Event::Writable(untaken),
    ];
    assert_eq!(events, expected);
    assert_eq!(read_all(&mut client, untaken), (vec![], "not taken"));
    let refused = client.open(&headers(), false);
    assert!(matches!(refused, Err(StreamOpenError::GoingAway)));
    // What was taken lives on.
    client.send(taken, b"x").unwrap();
    server.send(taken, b"y").unwrap();
    pass(&mut server, &mut client);
    assert_eq!(read_all(&mut client, taken), (b"y".to_vec(), "wait"));
    assert_eq!(client.gone_away(), Some(GoAwayStatus::OK));
    assert_eq!(client.totals().live, 1);
}
