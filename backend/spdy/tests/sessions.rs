//! Whole sessions over a pipe: bounds, fairness, liveness, and every way to end.

mod support;

use std::{io::ErrorKind, time::Duration};

use kubevpn_spdy::{
    Config, GoAwayStatus, Headers, ResetStatus, SessionError, SpdyStream, StreamError,
    StreamOpenError, Unread, WireError, client, server,
};
use support::{Counting, Pair, filler, headers, over, pair, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::Instant,
};

#[tokio::test]
async fn frames_queued_together_leave_in_one_write() {
    for vectored in [true, false] {
        let (near, far) = duplex(64 * 1024);
        let near = Counting::new(near, vectored);
        let writes = near.writes.clone();
        let mut pair = over(near, far, Config::default());
        let (error, mut data) = {
            let _cork = pair.client.cork();
            let error = pair.client.open(&headers(), true).unwrap();
            let mut data = pair.client.open(&headers(), false).unwrap();
            data.try_write(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            (error, data)
        };
        let first = pair.incoming.next().await.unwrap();
        let second = pair.incoming.next().await.unwrap();
        assert_eq!((first.id(), second.id()), (error.id(), data.id()));
        first.accept(&Headers::new(), false);
        let mut far = second.accept(&Headers::new(), false);
        assert_eq!(far.chunk().await.unwrap(), "GET / HTTP/1.1\r\n\r\n");
        data.replied().await.unwrap();
        let writes = writes.lock().unwrap();
        assert_eq!(writes.len(), 1, "{writes:?}");
        drop(error);
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_nobody_waits_for_waits_for_others() {
    let (near, far) = duplex(64 * 1024);
    let near = Counting::new(near, true);
    let writes = near.writes.clone();
    let mut pair = over(near, far, Config::default());
    let (mut one, mut far_one) = pair.stream().await;
    let (mut two, mut far_two) = pair.stream().await;
    let (mut three, mut far_three) = pair.stream().await;
    let before = writes.lock().unwrap().len();
    let since = || writes.lock().unwrap().len() - before;

    one.finish_soon().unwrap();
    let began = Instant::now();
    assert!(far_one.chunk().await.unwrap().is_empty(), "its end");
    assert_eq!(began.elapsed(), Duration::from_millis(10));
    assert_eq!(since(), 1);

    two.finish_soon().unwrap();
    let began = Instant::now();
    tokio::task::yield_now().await;
    three.write_all(b"x").await.unwrap();
    assert!(far_two.chunk().await.unwrap().is_empty());
    assert_eq!(far_three.chunk().await.unwrap(), "x");
    assert_eq!((began.elapsed(), since()), (Duration::ZERO, 2));

    // When the last handle is dropped, delayed ends are sent at once.
    three.finish_soon().unwrap();
    drop((one, two, three, pair.client));
    assert!(far_three.chunk().await.unwrap().is_empty());
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(matches!(pair.client_end.await, Ok(SessionError::Closed)));
}

/// While a cork is held, nothing is sent, whatever wakes the driver.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cork_holds_on_every_thread() {
    let (near, far) = duplex(64 * 1024);
    let near = Counting::new(near, true);
    let writes = near.writes.clone();
    let mut pair = over(near, far, Config::default());
    for round in 1..=200 {
        let streams = {
            let _outer = pair.client.cork();
            let first = pair.client.open(&headers(), false).unwrap();
            let _inner = pair.client.cork();
            // Received bytes wake the driver.
            drop(pair.server.open(&headers(), false));
            [first, pair.client.open(&headers(), true).unwrap()]
        };
        for mut stream in streams {
            let request = pair.incoming.next().await.unwrap();
            let far = request.accept(&Headers::new(), true);
            stream.replied().await.unwrap();
            drop(far);
        }
        pair.settle().await;
        let largest = writes.lock().unwrap().iter().copied().max().unwrap();
        assert!(largest >= 2 * 60, "round {round}: both in one write");
        writes.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn a_large_upload_leaves_in_large_writes() {
    let (near, far) = duplex(1 << 20);
    let near = Counting::new(near, true);
    let writes = near.writes.clone();
    let mut pair = over(near, far, Config::default());
    let (mut near, mut far) = pair.stream().await;
    let upload = tokio::spawn(async move {
        for i in 0..64 {
            near.write_all(&filler(i * 65536, 65536)).await.unwrap();
        }
        near.shutdown().await.unwrap();
    });
    let mut all = Vec::new();
    far.read_to_end(&mut all).await.unwrap();
    upload.await.unwrap();
    assert!(all == filler(0, 64 * 65536));
    let writes = writes.lock().unwrap();
    assert!(writes.len() < 64, "{} writes", writes.len());
}

#[tokio::test]
async fn a_reader_that_stops_holds_no_more_than_allowed() {
    let config = Config {
        stream_buffer: 256 * 1024,
        ..Config::default()
    };
    let mut pair = pair(config);
    let (mut near, far) = pair.stream().await;
    let id = near.id();
    let (mut other_near, mut other_far) = pair.stream().await;
    let upload = tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(far);
        let uploaded = write.write_all(&[7; 10 << 20]).await;
        drop(uploaded);
        read.read(&mut [0; 1]).await
    });
    until("stalled", || !pair.client.stats().stalled.is_empty()).await;
    let stats = pair.client.stats();
    assert_eq!(stats.stalled.len(), 1);
    assert_eq!(stats.stalled[0].stream, id);
    assert_eq!(stats.stalled[0].buffered, stats.buffered);
    let allowed = 256 * 1024..=256 * 1024 + 64 * 1024;
    assert!(
        allowed.contains(&stats.buffered),
        "{} bytes",
        stats.buffered
    );
    assert!(stats.stalled[0].since <= Instant::now());

    // Data from this side still arrives, although nothing is read here.
    other_near.write_all(b"up").await.unwrap();
    assert_eq!(other_far.chunk().await.unwrap(), "up");
    // Reading lets the session continue.
    near.read_exact(&mut vec![0; 2 << 20]).await.unwrap();
    until("stalled", || !pair.client.stats().stalled.is_empty()).await;
    // So does a reset; data in flight is discarded.
    pair.client.reset(id, ResetStatus::CANCEL);
    let error = near.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    other_far.write_all(b"down").await.unwrap();
    assert_eq!(other_near.chunk().await.unwrap(), "down");
    pair.settle().await;
    let stats = pair.client.stats();
    assert_eq!((stats.buffered, stats.stalled.len()), (0, 0));
    assert!(stats.discarded > 0);
    let error = upload.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn room_that_another_session_has_made_is_used() {
    let config = Config {
        unread: Unread::limited(1 << 20),
        ..Config::default()
    };
    let fill = |mut far: SpdyStream| {
        tokio::spawn(async move { far.write_all(&[7; 10 << 20]).await });
    };
    let mut first = pair(config.clone());
    let (near_first, far) = first.stream().await;
    fill(far);
    until("first", || !first.client.stats().stalled.is_empty()).await;
    let mut second = pair(config);
    let (_near, far) = second.stream().await;
    fill(far);
    until("second", || !second.client.stats().stalled.is_empty()).await;
    let before = second.client.buffered();
    drop(near_first);
    assert!(second.client.stats().stalled.is_empty(), "there is room");
    until("read on", || second.client.buffered() > before).await;
}

#[tokio::test]
async fn an_upload_nobody_reads_stops_its_writer_only() {
    let config = Config {
        stream_buffer: 64 * 1024,
        ..Config::default()
    };
    let mut pair = pair(config);
    let (mut near, mut far) = pair.stream().await;
    let (mut other_near, mut other_far) = pair.stream().await;
    let upload = tokio::spawn(async move {
        near.write_all(&filler(0, 4 << 20)).await.unwrap();
        near
    });
    until("blocked", || pair.client.stats().send_blocked.is_some()).await;
    let stats = pair.client.stats();
    assert!(stats.queued <= 256 * 1024, "{} bytes", stats.queued);
    // The socket is full; the other direction is not.
    other_far.write_all(b"down").await.unwrap();
    assert_eq!(other_near.chunk().await.unwrap(), "down");
    // Another may queue its share without waiting for the blocked one.
    other_near.write_all(&[1; 16 * 1024]).await.unwrap();
    assert!(!upload.is_finished());

    let mut all = vec![0; 4 << 20];
    far.read_exact(&mut all).await.unwrap();
    assert!(all == filler(0, 4 << 20));
    drop(upload.await.unwrap());
    other_far.read_exact(&mut vec![0; 16 * 1024]).await.unwrap();
    assert_eq!(pair.client.stats().send_blocked, None);
    assert_eq!(pair.client.stats().queued, 0);
}

#[tokio::test]
async fn pings_and_new_streams_pass_heavy_traffic() {
    let mut pair = pair(Config::default());
    let (mut near, mut far) = pair.stream().await;
    let upload = tokio::spawn(async move {
        let payload = vec![0; 1 << 20];
        while near.write_all(&payload).await.is_ok() {}
    });
    let download = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while far.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
    });
    for _ in 0..20 {
        let before = pair.server.stats().received;
        pair.client.ping().await.unwrap();
        let (mut near, mut far) = pair.stream().await;
        near.write_all(b"x").await.unwrap();
        assert_eq!(far.chunk().await.unwrap(), "x");
        let passed = pair.server.stats().received - before;
        // Each of the four waits for the data in flight, not for the upload's end.
        assert!(passed < 16 << 20, "{passed} bytes went first");
    }
    pair.client.close();
    upload.await.unwrap();
    download.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_ping_says_how_long_it_took() {
    let (near, far) = duplex(1024);
    let (client, client_driver) = client(near, Config::default());
    let (_server, _incoming, server_driver) = server(far, Config::default());
    tokio::spawn(client_driver);
    let pong = tokio::spawn({
        let client = client.clone();
        async move { client.ping().await }
    });
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(!pong.is_finished());
    tokio::spawn(server_driver);
    assert_eq!(pong.await.unwrap().unwrap(), Duration::from_millis(250));
    assert_eq!(client.stats().last_received, Instant::now());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(
        client.stats().last_received.elapsed(),
        Duration::from_secs(1)
    );
}

#[tokio::test]
async fn closing_tells_both_sides() {
    let mut pair = pair(Config::default());
    let (mut near, mut far) = pair.stream().await;
    near.write_all(b"last").await.unwrap();
    assert_eq!(far.chunk().await.unwrap(), "last");
    let waiting = tokio::spawn({
        let server = pair.server.clone();
        async move { server.closed().await }
    });
    let pinging = pair.client.ping();
    pair.client.close();
    assert!(!pair.client.is_open());
    let refused = pair.client.open(&headers(), false).unwrap_err();
    assert!(matches!(
        refused,
        StreamOpenError::Session(SessionError::Closed)
    ));
    assert!(matches!(pinging.await, Err(SessionError::Closed)));
    assert!(matches!(pair.client.closed().await, SessionError::Closed));
    assert!(matches!(pair.client_end.await, Ok(SessionError::Closed)));
    let goaway =
        |error| matches!(error, SessionError::GoAway { status } if status == GoAwayStatus::OK);
    assert!(goaway(pair.server_end.await.unwrap()));
    assert!(goaway(waiting.await.unwrap()));
    assert!(!pair.server.is_open());
    assert!(pair.incoming.next().await.is_none());
    for stream in [&mut near, &mut far] {
        let error = stream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert!(stream.write(b"x").await.is_err());
    }
}

#[tokio::test]
async fn closing_does_not_wait_for_a_full_socket() {
    let mut pair = pair(Config {
        stream_buffer: 1024,
        ..Config::default()
    });
    let (mut near, far) = pair.stream().await;
    let upload = tokio::spawn(async move { near.write_all(&[0; 1 << 20]).await });
    until("blocked", || pair.client.stats().send_blocked.is_some()).await;
    pair.client.close();
    assert!(matches!(pair.client_end.await, Ok(SessionError::Closed)));
    assert!(upload.await.unwrap().is_err());
    drop(far);
    assert!(is_closed(&pair.server_end.await.unwrap()));
}

/// Reading finds the end, or writing a broken pipe, whichever comes first.
fn is_closed(error: &SessionError) -> bool {
    match error {
        SessionError::PeerClosed => true,
        SessionError::Io(error) => error.kind() == ErrorKind::BrokenPipe,
        _ => false,
    }
}

/// A peer of raw bytes, without streams: collects everything that it receives.
async fn bytes_sent_to_a_peer_that_says(bytes: &[u8]) -> (SessionError, Vec<u8>) {
    let (near, mut far) = duplex(1024);
    let (session, driver) = client(near, Config::default());
    let end = tokio::spawn(driver);
    far.write_all(bytes).await.unwrap();
    let mut sent = Vec::new();
    far.read_to_end(&mut sent).await.unwrap();
    drop(session);
    (end.await.unwrap(), sent)
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told_so() {
    let version_2 = [0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    let (error, sent) = bytes_sent_to_a_peer_that_says(&version_2).await;
    let SessionError::Protocol(error) = error else {
        panic!("{error:?}")
    };
    assert_eq!(error, WireError::Version(2));
    assert_eq!(sent, [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
}

#[tokio::test]
async fn after_goaway_streams_run_on_and_the_last_one_ends_the_session() {
    let (near, mut far) = duplex(1024);
    let (session, driver) = client(near, Config::default());
    let end = tokio::spawn(driver);
    let mut taken = session.open(&headers(), false).unwrap();
    let mut untaken = session.open(&headers(), false).unwrap();
    let goaway = [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0];
    far.write_all(&goaway).await.unwrap();
    session.closing().await;
    assert!(!session.is_open());
    assert!(matches!(
        session.open(&headers(), false),
        Err(StreamOpenError::GoingAway)
    ));
    assert!(matches!(
        untaken.replied().await,
        Err(StreamError::NotTaken)
    ));

    let reply = [0x80, 3, 0, 2, 0, 0, 0, 6, 0, 0, 0, 1, 0x78, 0x01];
    let block = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let mut bytes = reply.to_vec();
    bytes[7] += block.len() as u8;
    bytes.extend(block);
    bytes.extend([0, 0, 0, 1, 1, 0, 0, 3]);
    bytes.extend(b"abc");
    far.write_all(&bytes).await.unwrap();
    assert_eq!(taken.replied().await.unwrap(), Headers::new());
    let mut text = String::new();
    taken.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "abc");
    assert!(!end.is_finished());
    taken.shutdown().await.unwrap();
    drop(taken);
    let status = GoAwayStatus::OK;
    assert!(matches!(end.await, Ok(SessionError::GoAway { status: s }) if s == status));
}

#[tokio::test]
async fn the_end_of_the_connection_ends_the_session() {
    let (near, far) = duplex(1024);
    let (session, driver) = client(near, Config::default());
    let end = tokio::spawn(driver);
    let mut stream = session.open(&headers(), false).unwrap();
    drop(far);
    let error = stream.replied().await.unwrap_err();
    assert!(matches!(error, StreamError::Session(_)), "{error:?}");
    assert!(is_closed(&end.await.unwrap()));
}

#[tokio::test]
async fn an_error_of_the_connection_is_everybodys() {
    let io = tokio_test::io::Builder::new()
        .read_error(ErrorKind::TimedOut.into())
        .build();
    let (session, driver) = client(io, Config::default());
    let mut stream = {
        // Nothing is written before the read fails.
        let _cork = session.cork();
        session.open(&headers(), false).unwrap()
    };
    let cork = session.cork();
    let error = driver.await;
    drop(cork);
    let SessionError::Io(error) = error else {
        panic!("{error:?}")
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(matches!(session.ping().await, Err(SessionError::Io(_))));
}

#[tokio::test]
async fn a_dropped_driver_wakes_everybody() {
    let mut pair = pair(Config {
        stream_buffer: 1024,
        ..Config::default()
    });
    let (near, far) = pair.stream().await;
    let (mut reader, mut writer) = tokio::io::split(near);
    let mut unanswered = pair.client.open(&headers(), false).unwrap();
    let reading = tokio::spawn(async move { reader.read(&mut [0; 1]).await.map(drop) });
    let writing = tokio::spawn(async move { writer.write_all(&[0; 1 << 20]).await });
    let replying = tokio::spawn(async move { unanswered.replied().await.map(drop) });
    let session = pair.client.clone();
    until("blocked", || session.stats().send_blocked.is_some()).await;
    let pinging = tokio::spawn(async move { session.ping().await.map(drop) });
    let session = pair.client.clone();
    let closing = tokio::spawn(async move { session.closed().await });
    tokio::task::yield_now().await;

    pair.client_end.abort();
    assert!(pair.client_end.await.unwrap_err().is_cancelled());
    for task in [reading, writing] {
        let error = task.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    }
    let error = replying.await.unwrap().unwrap_err();
    assert!(matches!(
        error,
        StreamError::Session(SessionError::DriverGone)
    ));
    let error = pinging.await.unwrap().unwrap_err();
    assert!(matches!(error, SessionError::DriverGone));
    assert!(matches!(closing.await.unwrap(), SessionError::DriverGone));
    drop(far);
    assert!(is_closed(&pair.server_end.await.unwrap()));
}

#[tokio::test]
async fn a_session_nobody_holds_says_what_is_left_and_goes() {
    let Pair {
        client,
        server,
        mut incoming,
        client_end,
        server_end,
    } = pair(Config::default());
    let mut near = client.open(&headers(), false).unwrap();
    drop(client);
    near.write_all(&filler(0, 200_000)).await.unwrap();
    let mut far = incoming.next().await.unwrap().accept(&Headers::new(), true);
    assert!(near.read(&mut [0; 1]).await.is_ok_and(|len| len == 0));
    near.shutdown().await.unwrap();
    assert!(!client_end.is_finished(), "a stream keeps its session");
    drop(near);
    let mut all = Vec::new();
    far.read_to_end(&mut all).await.unwrap();
    assert!(all == filler(0, 200_000));
    assert!(matches!(client_end.await, Ok(SessionError::Closed)));
    drop((far, server));
    assert!(matches!(server_end.await, Ok(SessionError::GoAway { .. })));
    assert!(incoming.next().await.is_none());
}
