//! What a session holds at most.

use super::*;
use crate::Unread;

const STREAM_BUFFER: usize = 64 * 1024;

fn bounded() -> (Machine, Machine, StreamId) {
    let (mut client, server, stream) = pair();
    client.config.stream_buffer = STREAM_BUFFER;
    (client, server, stream)
}

#[test]
fn a_stream_nobody_reads_stops_the_reading() {
    let (mut client, _, stream) = bounded();
    let chunk = data(stream, &[7; 16 * 1024], false);
    for _ in 0..4 {
        assert!(client.wants_input());
        assert_eq!(
            received(&mut client, &chunk),
            Ok(vec![Event::Readable(stream)])
        );
    }
    assert!(client.wants_input(), "exactly as much as allowed");
    let events = received(&mut client, &chunk).unwrap();
    assert_eq!(events, [Event::Readable(stream), Event::Full(stream)]);
    assert!(!client.wants_input());
    assert_eq!(client.full().collect::<Vec<_>>(), [(stream, 5 * 16 * 1024)]);

    assert!(matches!(
        client.read(stream, usize::MAX),
        Ok(ReadOutcome::Chunk(_))
    ));
    assert!(client.wants_input());
    assert_eq!(client.full().count(), 0);
    received(&mut client, &chunk).unwrap();
    assert!(!client.wants_input(), "and again");
}

/// A client with this many streams, on each of which its peer has sent `each` bytes as long as the client reads.
fn unread(config: Config, streams: usize, each: usize) -> (Machine, Vec<StreamId>) {
    let mut client = Machine::new(Role::Client, config);
    let mut server = machine(Role::Server);
    let streams: Vec<_> = (0..streams)
        .map(|_| client.open(&headers(), false).unwrap())
        .collect();
    pass(&mut client, &mut server);
    for &stream in &streams {
        server.accept(stream, &Headers::new(), false);
    }
    pass(&mut server, &mut client);
    for _ in 0..each / (20 * 1024) {
        for &stream in &streams {
            if client.wants_input() {
                received(&mut client, &data(stream, &[7; 20 * 1024], false)).unwrap();
            }
        }
    }
    (client, streams)
}

#[test]
fn a_session_holds_no_more_than_its_bound_however_many_do_not_read() {
    let config = Config::default();
    let most = config.session_buffer + 20 * 1024;
    let (mut client, streams) = unread(config, 64, 500 * 1024);
    let held = client.totals().buffered;
    assert!(held <= most, "{held}");
    assert!(!client.wants_input());
    // Those that hold it up are known, and when others have read they do no longer.
    let (full, _) = client.full().next().expect("somebody holds it up");
    for stream in streams.into_iter().filter(|stream| *stream != full).take(8) {
        read_all(&mut client, stream);
    }
    assert!(client.wants_input(), "{:?}", client.totals());
}

#[test]
fn only_what_arrives_stops_the_reading() {
    const KIB: usize = 1024;
    let act: [fn(&mut Machine, StreamId); 3] = [
        |client, stream| drop(client.read(stream, usize::MAX)),
        |client, stream| client.finish(stream).unwrap(),
        |client, stream| client.reset(stream, ResetStatus::CANCEL),
    ];
    for act in act {
        let config = Config {
            stream_buffer: 512 * KIB,
            session_buffer: 1024 * KIB,
            ..Config::default()
        };
        let (mut client, streams) = unread(config, 4, 0);
        for (stream, kib) in [(0, 350), (2, 200), (3, 150), (1, 100)] {
            for _ in 0..kib / 50 {
                let chunk = data(streams[stream], &[7; 50 * KIB], false);
                let events = received(&mut client, &chunk).unwrap();
                assert_eq!(events, [Event::Readable(streams[stream])]);
            }
        }
        act(&mut client, streams[0]);
        assert_eq!(client.full().count(), 0);
        assert!(client.wants_input());
    }
}

#[test]
fn ended_streams_count_towards_the_bound_of_the_session() {
    const EACH: usize = 100 * 1024;
    let config = Config {
        session_buffer: 2 << 20,
        ..Config::default()
    };
    let most = config.session_buffer + EACH;
    let (mut client, streams) = unread(config, 64, 0);
    let arrive = |client: &mut Machine| {
        let mut arrived = Vec::new();
        for &stream in &streams {
            if client.wants_input() && client.counts(stream).0 == 0 {
                client.finish(stream).unwrap();
                written(client);
                received(client, &data(stream, &[7; EACH], true)).unwrap();
                arrived.push(stream);
            }
        }
        arrived
    };
    let mut arrived = arrive(&mut client);
    let held = client.totals().buffered;
    assert!((most - EACH..=most).contains(&held), "{held}");
    // The last one holds it up, until it or another is read, or until it is reset.
    let last = arrived.pop().unwrap();
    assert_eq!(client.full().collect::<Vec<_>>(), [(last, EACH)]);
    assert_eq!(read_all(&mut client, arrived.pop().unwrap()).1, "end");
    assert!(client.wants_input());
    let last = arrive(&mut client).pop().unwrap();
    client.reset(last, ResetStatus::CANCEL);
    assert!(client.wants_input());
    assert_eq!(read_all(&mut client, last), (vec![], "reset here"));
    for stream in streams {
        client.release(stream);
    }
    written(&mut client);
    assert_empty(&client);
}

#[test]
fn sessions_hold_no_more_than_their_common_bound() {
    let limit = 4 << 20;
    let unread_of_all = Unread::limited(limit);
    let sessions: Vec<_> = (0..16)
        .map(|_| {
            let unread_of_all = unread_of_all.clone();
            let config = Config {
                unread: unread_of_all,
                ..Config::default()
            };
            unread(config, 4, 500 * 1024)
        })
        .collect();
    let held: usize = sessions.iter().map(|(m, _)| m.totals().buffered).sum();
    assert_eq!(held, unread_of_all.bytes());
    assert!(held <= limit + 16 * 20 * 1024, "{held}");
    drop(sessions);
    assert_eq!(unread_of_all.bytes(), 0);
}

#[test]
fn only_a_stream_that_still_receives_stops_the_reading() {
    let end: [fn(&mut Machine, StreamId); 4] = [
        |client, stream| client.reset(stream, ResetStatus::CANCEL),
        |client, stream| client.release(stream),
        |client, stream| {
            received(client, &data(stream, b"", true)).unwrap();
        },
        |client, stream| {
            received(client, &rst_stream(stream, ResetStatus::CANCEL)).unwrap();
        },
    ];
    for end in end {
        let (mut client, _, stream) = bounded();
        received(&mut client, &data(stream, &[7; STREAM_BUFFER + 1], false)).unwrap();
        assert!(!client.wants_input());
        end(&mut client, stream);
        assert!(client.wants_input());
    }
}

#[test]
fn tiny_frames_count_for_what_they_cost() {
    let (mut client, _, stream) = bounded();
    let mut frames = 0;
    while client.wants_input() {
        received(&mut client, &data(stream, b"x", false)).unwrap();
        frames += 1;
        assert!(frames <= STREAM_BUFFER, "no bound");
    }
    assert_eq!(frames, STREAM_BUFFER / 128 + 1);
    assert_eq!(client.totals().buffered, frames);
}

#[test]
fn a_few_bytes_do_not_keep_a_whole_buffer() {
    let (mut client, _, stream) = bounded();
    let mut input = BytesMut::with_capacity(64 * 1024);
    input.extend(data(stream, b"small", false));
    let buffer = input.as_ptr();
    client.receive(&mut input, &mut Vec::new()).unwrap();
    assert_eq!(client.totals().buffered, 5);
    assert!(input.try_reclaim(64 * 1024), "the buffer is free");
    assert_eq!(input.as_ptr(), buffer);

    // Large payload is not copied while it is read as it comes.
    input.extend(data(stream, &[1; 40 * 1024], false));
    client.receive(&mut input, &mut Vec::new()).unwrap();
    assert!(!input.try_reclaim(64 * 1024), "the buffer is in use");
    let read = read_all(&mut client, stream).0;
    assert_eq!(read.len(), 5 + 40 * 1024);
    assert!(input.try_reclaim(64 * 1024));
}

#[test]
fn what_is_not_read_keeps_no_buffers_it_was_read_into() {
    let (mut client, _, stream) = pair();
    let part = data(stream, &[1; 16 * 1024], false);
    let mut kept = 0;
    let mut input = BytesMut::new();
    for _ in 0..60 {
        input = BytesMut::with_capacity(128 * 1024);
        input.extend_from_slice(&part);
        client.receive(&mut input, &mut Vec::new()).unwrap();
        kept += usize::from(!input.try_reclaim(128 * 1024));
    }
    assert_eq!(client.totals().buffered, 60 * 16 * 1024);
    assert!(kept <= 16, "{kept} buffers of 128 KiB for less than 1 MiB");
    drop(input);
}

#[test]
fn answers_that_nobody_takes_stop_the_reading() {
    let (mut client, _, _) = pair();
    let ping = encode(&[Frame::Ping(Ping { id: 2 })]);
    let mut pings = 0;
    while client.wants_input() {
        received(&mut client, &ping).unwrap();
        pings += 1;
        assert!(pings <= MAX_PROVOKED, "no bound");
    }
    assert_eq!(pings, MAX_PROVOKED / ping.len() + 1);
    assert_eq!(written(&mut client).len(), pings * ping.len());
    assert!(client.wants_input());
}

#[test]
fn streams_are_bounded_on_the_side_that_opens_them() {
    let mut client = machine(Role::Client);
    client.config.max_streams = 2;
    let first = client.open(&headers(), false).unwrap();
    client.open(&headers(), false).unwrap();
    let refused = client.open(&headers(), false);
    assert!(matches!(refused, Err(StreamOpenError::TooManyStreams(2))));
    client.release(first);
    client.open(&headers(), false).unwrap();
}

#[test]
fn a_socket_that_takes_nothing_bounds_what_is_opened() {
    let mut client = machine(Role::Client);
    let congested = (0..10_000).find_map(|_| match client.open(&headers(), false) {
        Ok(stream) => {
            client.release(stream);
            None
        }
        Err(error) => Some(error),
    });
    assert!(matches!(congested, Some(StreamOpenError::Congested)));
    assert!(client.control.len() < MAX_CONTROL_QUEUE + 200);
    written(&mut client);
    client.open(&headers(), false).unwrap();
}

#[test]
fn streams_are_bounded_on_the_side_that_accepts_them() {
    let (mut client, mut server) = (machine(Role::Client), machine(Role::Server));
    server.config.max_streams = 2;
    for _ in 0..3 {
        client.open(&headers(), false).unwrap();
    }
    let events = pass(&mut client, &mut server);
    assert_eq!(events[..2], [request(id(1), false), request(id(3), false)]);
    assert_eq!(
        frames(written(&mut server)),
        ["RST_STREAM 5 REFUSED_STREAM"]
    );
    server.stop_accepting();
    server.release(id(1));
    written(&mut server);
    client.open(&headers(), false).unwrap();
    pass(&mut client, &mut server);
    assert_eq!(
        frames(written(&mut server)),
        ["RST_STREAM 7 REFUSED_STREAM"]
    );
}

#[test]
fn streams_opened_and_reset_at_once_do_not_pile_up() {
    let (mut client, mut server) = (machine(Role::Client), machine(Role::Server));
    server.config.max_streams = 10;
    let mut requests = 0;
    for _ in 0..1000 {
        let stream = client.open(&headers(), false).unwrap();
        client.release(stream);
        let events = pass(&mut client, &mut server);
        let is_request = |event: &&Event| matches!(event, Event::Request { .. });
        requests += events.iter().filter(is_request).count();
    }
    assert_eq!(requests, 10, "as many as nobody has looked at yet");
    assert_eq!(server.streams.len(), 10);
    assert_eq!(server.totals().live, 0);
}

#[test]
fn one_sender_gathers_large_frames_and_several_share() {
    let (mut client, _, first) = pair();
    let second = client.open(&headers(), false).unwrap();
    let third = client.open(&headers(), false).unwrap();
    written(&mut client);
    let payload = vec![1; 1 << 20];
    assert_eq!(client.send(first, &payload).unwrap(), 256 * 1024, "alone");
    assert_eq!(client.send(first, &payload).unwrap(), 0, "wait");
    assert_eq!(
        client.send(second, &payload).unwrap(),
        64 * 1024,
        "beside another"
    );
    client.config.send_buffer = 1;
    assert_eq!(
        client.send(third, &payload).unwrap(),
        16 * 1024,
        "never less"
    );
    assert_eq!(client.totals().queued, (256 + 64 + 16) * 1024);

    let (mut out, mut events) = (Outbox::default(), Vec::new());
    client.transmit(&mut out, &mut events);
    assert_eq!(events, [Event::Writable(first)], "one batch is enough");
    out.advance(out.len());
    client.transmit(&mut out, &mut events);
    assert_eq!(
        events[1..],
        [Event::Writable(second), Event::Writable(third)]
    );
    assert_eq!(client.totals().queued, 0);
}

#[test]
fn headers_too_large_to_send_open_nothing() {
    let mut client = machine(Role::Client);
    let large = Headers::try_from([("a", "x".repeat(40_000).as_str())]).unwrap();
    let refused = client.open(&large, false);
    assert!(matches!(refused, Err(StreamOpenError::HeadersTooLarge)));
    assert!(!client.has_output());
    assert_empty(&client);

    let (mut client, mut server) = (machine(Role::Client), machine(Role::Server));
    let stream = client.open(&headers(), false).unwrap();
    pass(&mut client, &mut server);
    server.accept(stream, &large, false);
    assert_eq!(
        frames(written(&mut server)),
        ["RST_STREAM 1 INTERNAL_ERROR"]
    );
}

proptest::proptest! {
    #[test]
    fn nothing_a_peer_and_a_handle_do_breaks_the_bounds(
        script in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000)
    ) {
        crate::fuzzing::fuzz_session(&script);
    }
}
