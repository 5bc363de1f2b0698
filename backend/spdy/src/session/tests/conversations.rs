//! What goes well, and how streams end.

use proptest::prelude::*;

use super::*;

#[test]
fn a_stream_is_opened_accepted_and_ended_both_ways() {
    for client_first in [true, false] {
        let (mut client, mut server, stream) = pair();
        assert_eq!(client.send(stream, b"GET").unwrap(), 3);
        pass(&mut client, &mut server);
        assert_eq!(read_all(&mut server, stream), (b"GET".to_vec(), "wait"));
        server.send(stream, b"200").unwrap();
        pass(&mut server, &mut client);
        assert_eq!(read_all(&mut client, stream), (b"200".to_vec(), "wait"));

        let (first, second) = if client_first {
            (&mut client, &mut server)
        } else {
            (&mut server, &mut client)
        };
        first.finish(stream).unwrap();
        assert_eq!(pass(first, second), [Event::Readable(stream)]);
        assert_eq!(read_all(second, stream), (vec![], "end"));
        // The other direction goes on.
        second.send(stream, b"late").unwrap();
        pass(second, first);
        assert_eq!(read_all(first, stream), (b"late".to_vec(), "wait"));
        second.finish(stream).unwrap();
        pass(second, first);
        assert_eq!(read_all(first, stream), (vec![], "end"));

        for side in [first, second] {
            side.release(stream);
            assert!(!side.has_output(), "nothing is left to say");
            assert_empty(side);
        }
    }
}

#[test]
fn a_stream_can_end_with_the_frame_that_opens_it() {
    let (mut client, mut server) = (machine(Role::Client), machine(Role::Server));
    let stream = client.open(&headers(), true).unwrap();
    assert!(matches!(client.send(stream, b"x"), Err(StreamError::Ended)));
    assert_eq!(pass(&mut client, &mut server), [request(stream, true)]);
    assert_eq!(read_all(&mut server, stream), (vec![], "end"));
    server.accept(stream, &headers(), true);
    let bytes = written(&mut server);
    assert_eq!(frames(bytes.clone()), ["SYN_REPLY 1 fin=true"]);
    received(&mut client, &bytes).unwrap();
    assert_eq!(client.reply(stream).unwrap(), Some(&headers()));
    assert_eq!(read_all(&mut client, stream), (vec![], "end"));
    client.release(stream);
    server.release(stream);
    assert_empty(&client);
    assert_empty(&server);
}

#[test]
fn what_is_queued_becomes_one_frame_that_carries_the_end() {
    let (mut client, _, stream) = pair();
    for part in [&b"one "[..], b"two ", b"three"] {
        client.send(stream, part).unwrap();
    }
    client.finish(stream).unwrap();
    assert!(matches!(
        client.send(stream, b"four"),
        Err(StreamError::Ended)
    ));
    client.finish(stream).expect("once is enough");
    let bytes = written(&mut client);
    assert_eq!(bytes, data(stream, b"one two three", true));
    assert!(!client.has_output());
}

#[test]
fn an_end_that_may_wait_leaves_with_what_comes_next() {
    let (mut client, _, stream) = pair();
    written(&mut client);
    client.finish_when(stream, EndTiming::Soon).unwrap();
    assert!(!client.has_output() && client.has_ends());
    client.ping();
    let bytes = written(&mut client);
    assert_eq!(frames(bytes), ["PING 1", "DATA 1 len=0 fin=true"]);
    assert!(!client.has_output() && !client.has_ends());
    client.finish(stream).expect("once is enough");
    assert!(!client.has_output());

    // With something queued before it, it is that frame's.
    let (mut client, _, stream) = pair();
    client.send(stream, b"x").unwrap();
    client.finish_when(stream, EndTiming::Soon).unwrap();
    assert!(client.has_output());
    assert_eq!(written(&mut client), data(stream, b"x", true));

    // A stream whose handle goes meanwhile still ends before it is reset.
    let (mut client, _, stream) = pair();
    client.finish_when(stream, EndTiming::Soon).unwrap();
    client.release(stream);
    let bytes = written(&mut client);
    assert_eq!(
        frames(bytes),
        ["DATA 1 len=0 fin=true", "RST_STREAM 1 CANCEL"]
    );
    assert_empty(&client);
}

#[test]
fn an_end_with_nothing_queued_is_an_empty_frame() {
    let (mut client, _, stream) = pair();
    client.send(stream, b"x").unwrap();
    written(&mut client);
    client.finish(stream).unwrap();
    assert_eq!(written(&mut client), data(stream, b"", true));
}

#[test]
fn ids_are_odd_for_the_client_and_even_for_the_server() {
    let mut client = machine(Role::Client);
    for expected in [1, 3, 5] {
        assert_eq!(client.open(&headers(), false).unwrap(), id(expected));
    }
    let mut server = machine(Role::Server);
    assert_eq!(server.open(&headers(), false).unwrap(), id(2));
    client.next_id = StreamId::MAX;
    assert_eq!(client.open(&headers(), false).unwrap().get(), StreamId::MAX);
    let exhausted = client.open(&headers(), false);
    assert!(matches!(exhausted, Err(StreamOpenError::IdsExhausted)));
}

#[test]
fn control_frames_go_first_and_streams_take_turns() {
    let (mut client, _, first) = pair();
    let second = client.open(&headers(), false).unwrap();
    client.send(first, &[1; 10]).unwrap();
    client.send(second, &[2; 20]).unwrap();
    client.ping();
    client.send(first, &[1; 10]).unwrap();
    let third = client.open(&headers(), true).unwrap();
    let bytes = written(&mut client);
    let expected = [
        "SYN_STREAM 3 fin=false",
        "PING 1",
        "SYN_STREAM 5 fin=true",
        "DATA 1 len=20 fin=false",
        "DATA 3 len=20 fin=false",
    ];
    assert_eq!(frames(bytes), expected);
    assert_eq!(third, id(5));
}

#[test]
fn a_released_stream_is_cancelled_unless_it_has_ended() {
    // Open, or ended by one side only: the peer is told.
    for ended in ["nobody", "local", "remote"] {
        let (mut client, mut server, stream) = pair();
        match ended {
            "local" => client.finish(stream).unwrap(),
            "remote" => server.finish(stream).unwrap(),
            _ => {}
        }
        pass(&mut client, &mut server);
        pass(&mut server, &mut client);
        client.send(stream, b"never sent").ok();
        client.release(stream);
        let bytes = written(&mut client);
        assert_eq!(frames(bytes.clone()), ["RST_STREAM 1 CANCEL"], "{ended}");
        assert_empty(&client);
        received(&mut server, &bytes).unwrap();
        assert!(server.send(stream, b"x").is_err());
        server.release(stream);
        assert_empty(&server);
    }
}

#[test]
fn a_stream_ended_both_ways_still_sends_what_is_queued_when_released() {
    let (mut client, mut server, stream) = pair();
    server.finish(stream).unwrap();
    pass(&mut server, &mut client);
    client.send(stream, b"last words").unwrap();
    client.finish(stream).unwrap();
    client.release(stream);
    assert_eq!(client.totals().live, 1, "not over before it is sent");
    pass(&mut client, &mut server);
    assert_eq!(
        read_all(&mut server, stream),
        (b"last words".to_vec(), "end")
    );
    assert_empty(&client);
}

#[test]
fn a_stream_ended_here_sends_what_is_queued_before_it_is_cancelled() {
    let (mut client, mut server, stream) = pair();
    client.send(stream, b"last words").unwrap();
    client.finish(stream).unwrap();
    server.send(stream, b"unread").unwrap();
    pass(&mut server, &mut client);
    client.release(stream);
    assert_eq!(client.totals().buffered, 0);
    // This is not read either.
    server.send(stream, b"unheard").unwrap();
    pass(&mut server, &mut client);
    assert_eq!(client.totals().discarded, 7);
    let bytes = written(&mut client);
    let expected = ["DATA 1 len=10 fin=true", "RST_STREAM 1 CANCEL"];
    assert_eq!(frames(bytes.clone()), expected);
    assert_empty(&client);
    received(&mut server, &bytes).unwrap();
    let read = read_all(&mut server, stream);
    assert_eq!(read, (b"last words".to_vec(), "end"));
}

#[test]
fn pings_come_back_to_who_sent_them() {
    let (mut client, mut server, _) = pair();
    assert_eq!((client.ping(), client.ping()), (1, 3));
    assert_eq!(server.ping(), 2);
    assert_eq!(pass(&mut client, &mut server), []);
    assert_eq!(
        pass(&mut server, &mut client),
        [Event::Pong(1), Event::Pong(3)]
    );
    assert_eq!(pass(&mut client, &mut server), [Event::Pong(2)]);
    client.next_ping = u32::MAX;
    assert_eq!((client.ping(), client.ping()), (u32::MAX, 1));
    server.next_ping = u32::MAX - 1;
    assert_eq!((server.ping(), server.ping()), (u32::MAX - 1, 2));
}

#[test]
fn frames_of_no_concern_are_skipped() {
    let (mut client, mut server, stream) = pair();
    let settings = [
        0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0x10, 0,
    ];
    let mut bytes = BytesMut::from(&settings[..]);
    for window in [Some(stream), Some(id(999)), None] {
        bytes.extend(encode(&[Frame::WindowUpdate(frame::WindowUpdate {
            stream: window,
            delta: 1,
        })]));
    }
    let unknown = Frame::Unknown {
        kind: 77,
        len: 100_000,
    };
    bytes.extend(encode(&[unknown]));
    bytes.extend(vec![0xff; 100_000]);
    bytes.extend(data(stream, b"x", false));
    for side in [&mut client, &mut server] {
        let events = received(side, &bytes).unwrap();
        assert_eq!(events, [Event::Readable(stream)]);
        assert!(!side.has_output());
    }
}

#[test]
fn a_conversation_may_be_cut_anywhere() {
    let mut client = machine(Role::Client);
    let first = client.open(&headers(), false).unwrap();
    let second = client.open(&headers(), true).unwrap();
    client.send(first, b"some payload").unwrap();
    client.ping();
    client.finish(first).unwrap();
    let bytes = written(&mut client);

    for cut in 0..=bytes.len() {
        let mut server = machine(Role::Server);
        let (mut input, mut events) = (BytesMut::new(), Vec::new());
        for part in [&bytes[..cut], &bytes[cut..]] {
            input.extend_from_slice(part);
            server.receive(&mut input, &mut events).unwrap();
        }
        assert!(input.is_empty());
        events.dedup();
        events.retain(|event| matches!(event, Event::Request { .. }));
        assert_eq!(events, [request(first, false), request(second, true)]);
        let read = read_all(&mut server, first);
        assert_eq!(read, (b"some payload".to_vec(), "end"), "cut at {cut}");
        assert_eq!(frames(written(&mut server)), ["PING 1"]);
    }

    let mut server = machine(Role::Server);
    let (mut input, mut events) = (BytesMut::new(), Vec::new());
    for byte in bytes {
        input.extend_from_slice(&[byte]);
        server.receive(&mut input, &mut events).unwrap();
    }
    let read = read_all(&mut server, first);
    assert_eq!(read, (b"some payload".to_vec(), "end"));
}

#[test]
fn the_sessions_end_fails_what_has_not_ended() {
    let (mut client, mut server, open) = pair();
    let whole = client.open(&headers(), false).unwrap();
    pass(&mut client, &mut server);
    server.accept(whole, &Headers::new(), false);
    server.send(whole, b"all of it").unwrap();
    server.finish(whole).unwrap();
    server.send(open, b"some of it").unwrap();
    pass(&mut server, &mut client);
    client.send(open, b"never sent").unwrap();

    client.end(&SessionError::PeerClosed);
    assert!(!client.has_output());
    let read = read_all(&mut client, open);
    assert_eq!(read, (b"some of it".to_vec(), "session"));
    let read = read_all(&mut client, whole);
    assert_eq!(read, (b"all of it".to_vec(), "end"));
    for stream in [open, whole] {
        let sent = client.send(stream, b"x");
        assert!(matches!(sent, Err(StreamError::Session(_))));
        client.release(stream);
    }
    assert!(matches!(
        client.open(&headers(), false),
        Err(StreamOpenError::Session(SessionError::PeerClosed))
    ));
    assert_empty(&client);
}

/// What the two ends of a stream do in [`bytes_arrive_as_they_were_sent`].
#[derive(Debug, Clone)]
enum Act {
    Open,
    Send {
        side: usize,
        stream: usize,
        len: usize,
    },
    Read {
        side: usize,
        stream: usize,
    },
    Finish {
        side: usize,
        stream: usize,
        when: EndTiming,
    },
    Write {
        side: usize,
    },
    Deliver {
        side: usize,
        len: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let which = (0..2usize, 0..6usize);
    prop_oneof![
        Just(Act::Open),
        (which.clone(), 0..40_000usize).prop_map(|((side, stream), len)| Act::Send {
            side,
            stream,
            len
        }),
        which
            .clone()
            .prop_map(|(side, stream)| Act::Read { side, stream }),
        (
            which,
            prop_oneof![Just(EndTiming::Now), Just(EndTiming::Soon)]
        )
            .prop_map(|((side, stream), when)| Act::Finish { side, stream, when }),
        (0..2usize).prop_map(|side| Act::Write { side }),
        (0..2usize, 1..70_000usize).prop_map(|(side, len)| Act::Deliver { side, len }),
    ]
}

/// One direction of one stream.
#[derive(Default)]
struct Way {
    sent: u64,
    read: u64,
    finished: bool,
    ended: bool,
}

/// Bytes that are known by their place.
fn filler(from: u64, len: usize) -> Vec<u8> {
    (from..).take(len).map(|at| (at % 251) as u8).collect()
}

proptest! {
    #[test]
    fn bytes_arrive_as_they_were_sent(acts in proptest::collection::vec(act(), 1..120)) {
        let config = Config { stream_buffer: 32 * 1024, send_buffer: 32 * 1024, ..Config::default() };
        let mut sides = [Machine::new(Role::Client, config.clone()), Machine::new(Role::Server, config)];
        let mut wires = [BytesMut::new(), BytesMut::new()];
        let mut inputs = [BytesMut::new(), BytesMut::new()];
        let mut streams: Vec<StreamId> = Vec::new();
        let mut accepted = 0;
        // By stream, then by sender.
        let mut ways: Vec<[Way; 2]> = Vec::new();

        // What was begun at random is then brought to its end in order.
        let end = (0..200).flat_map(|_| {
            let streams = (0..6).flat_map(|stream| (0..2).flat_map(move |side| {
                [Act::Finish { side, stream, when: EndTiming::Now }, Act::Read { side, stream }]
            }));
            let both = (0..2).flat_map(|side| {
                [Act::Write { side }, Act::Deliver { side, len: 1 << 20 }]
            });
            streams.chain(both)
        });
        for act in acts.into_iter().chain(end) {
            match act {
                Act::Open if streams.len() < 6 => {
                    streams.push(sides[0].open(&headers(), false).unwrap());
                    ways.push(Default::default());
                }
                Act::Send { side, stream, len }
                    if stream < if side == 0 { streams.len() } else { accepted } =>
                {
                    let way = &mut ways[stream][side];
                    if !way.finished {
                        let payload = filler(way.sent, len);
                        way.sent += sides[side].send(streams[stream], &payload).unwrap() as u64;
                    }
                }
                Act::Finish { side, stream, when }
                    if stream < if side == 0 { streams.len() } else { accepted } =>
                {
                    sides[side].finish_when(streams[stream], when).unwrap();
                    ways[stream][side].finished = true;
                }
                Act::Read { side, stream }
                    if stream < if side == 0 { streams.len() } else { accepted } =>
                {
                    let way = &mut ways[stream][1 - side];
                    match sides[side].read(streams[stream], usize::MAX).unwrap() {
                        ReadOutcome::Chunk(chunk) => {
                            prop_assert!(!way.ended);
                            prop_assert!(chunk == filler(way.read, chunk.len()));
                            way.read += chunk.len() as u64;
                        }
                        ReadOutcome::End => way.ended = true,
                        ReadOutcome::Wait => {}
                    }
                }
                Act::Write { side } => {
                    let bytes = written(&mut sides[side]);
                    wires[side].extend(bytes);
                }
                Act::Deliver { side, len } if sides[1 - side].wants_input() => {
                    let len = len.min(wires[side].len());
                    let bytes = wires[side].split_to(len);
                    inputs[side].extend(bytes);
                    let mut events = Vec::new();
                    sides[1 - side].receive(&mut inputs[side], &mut events).unwrap();
                    for event in events {
                        if let Event::Request { stream, .. } = event {
                            prop_assert_eq!(stream, streams[accepted]);
                            accepted += 1;
                            sides[1].accept(stream, &Headers::new(), false);
                        }
                    }
                }
                _ => {}
            }
        }
        for way in ways.iter().flatten() {
            prop_assert!(way.ended);
            prop_assert_eq!(way.read, way.sent);
        }
        for side in &mut sides {
            for stream in &streams {
                side.release(*stream);
            }
            prop_assert!(!side.has_output());
            assert_empty(side);
        }
    }
}
