//! Time limits: heads, waits, unused connections, clients that are gone.

use std::io;
use std::time::Duration;

use kubevpn_http_connect::{ServeError, Settings, serve_connection};
use kubevpn_target::{Refusal, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::{OK, Rig, get};

fn rig() -> Rig {
    Rig::refusing(Settings::default(), Refusal::Internal, "dialled")
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_given_up() {
    let rig = rig();
    let mut client = rig.client();
    let begun = Instant::now();
    let trickle = async {
        for byte in get("web").bytes() {
            client.send([byte]).await;
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = trickle => panic!("a head may take for ever"),
        () = sleep(Duration::from_millis(10_001)) => {}
    }
    let answer = client.answer().await;
    assert!(
        answer
            .assert_refused(408, "http_request_error")
            .contains("10s")
    );
    assert!(answer.closes() && client.peer.has_ended().await);
    assert!(begun.elapsed() < Duration::from_secs(11));
    assert!(matches!(
        client.served().await,
        Err(ServeError::Rejected(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_slow_second_head_too_but_not_the_pause_before_it() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server.send(OK).await;
    client.answer().await;
    sleep(Duration::from_secs(50)).await;
    client.send("GET http://we").await;
    let begun = Instant::now();
    client
        .answer()
        .await
        .assert_refused(408, "http_request_error");
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
}

/// Half a head that came with the request before it is a slow head too, counted from that request's answer.
#[tokio::test(start_paused = true)]
async fn a_pipelined_half_head_is_given_up() {
    let bodies = [
        "Host: web\r\n\r\n",
        "Host: web\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ];
    for body in bodies {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        let sent = format!("POST http://web/ HTTP/1.1\r\n{body}GET http://we");
        client.send(sent).await;
        let (_, mut server) = rig.server().await;
        server.head().await;
        sleep(Duration::from_secs(20)).await;
        server.send(OK).await;
        client.answer().await;
        let begun = Instant::now();
        let answer = client.answer().await;
        answer.assert_refused(408, "http_request_error");
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        assert!(client.peer.has_ended().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_ends_too_early() {
    let rig = rig();
    let mut client = rig.client();
    client.send("GET http://web/ HTTP/1.1\r\nHost: we").await;
    client.peer.end().await;
    let answer = client.answer().await;
    let sentence = answer.assert_refused(400, "http_request_error");
    assert!(
        sentence.contains("in the middle of the request's head"),
        "{sentence}"
    );
    assert!(client.peer.has_ended().await);
}

/// Browsers open connections before they need them: an unrequested answer would be read as the answer to a request.
#[tokio::test(start_paused = true)]
async fn a_silent_client_gets_no_answer() {
    let rig = rig();
    let mut client = rig.client();
    let begun = Instant::now();
    assert!(client.peer.has_ended().await);
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    assert!(matches!(client.served().await, Err(ServeError::Unused)));

    let client = rig.client();
    assert!(matches!(client.served().await, Err(ServeError::Unused)));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server.send(OK).await;
    client.answer().await;
    let begun = Instant::now();
    assert!(client.peer.has_ended().await);
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
    client.served().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn heads_have_bounds() {
    let line = |n| format!("x: {}\r\n", "y".repeat(n));
    let fields = "x: y\r\n".repeat(2000);
    for (head, status) in [
        (
            format!(
                "GET http://web/ HTTP/1.1\r\nHost: web\r\n{}\r\n",
                line(65_536)
            ),
            431,
        ),
        (
            format!("GET http://web/ HTTP/1.1\r\nHost: web\r\n{fields}\r\n"),
            431,
        ),
        (
            format!(
                "GET http://web/{} HTTP/1.1\r\nHost: web\r\n\r\n",
                "x".repeat(65_536)
            ),
            431,
        ),
        // Empty lines in front of a request are skipped, but not for ever.
        ("\r\n".repeat(40_000), 431),
    ] {
        let rig = rig();
        let client = rig.client();
        let (mut read, mut write) = tokio::io::split(client.peer.io);
        // It is not read to its end.
        let sending = tokio::spawn(async move {
            let _ = write.write_all(head.as_bytes()).await;
            write
        });
        let mut answer = Vec::new();
        read.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.contains("64 KiB or 1024 fields\n"), "{answer}");
        drop((read, sending.await.unwrap()));
    }
}

/// The limit does not depend on how a head is split, nor on whether it is a connection's first.
#[tokio::test(start_paused = true)]
async fn the_bound_of_a_head_is_one() {
    for (size, passes) in [(65_536, true), (65_537, false)] {
        for (piece, first) in [(1024, true), (70_000, true), (1024, false), (70_000, false)] {
            let mut rig = Rig::new(Settings::default());
            let mut client = rig.client();
            if !first {
                client
                    .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    .await;
                client.answer().await;
            }
            let empty = "GET http://web/ HTTP/1.1\r\nHost: web\r\nX: \r\n\r\n".len();
            let long = "x".repeat(size - empty);
            let head = format!("GET http://web/ HTTP/1.1\r\nHost: web\r\nX: {long}\r\n\r\n");
            for piece in head.as_bytes().chunks(piece) {
                client.send(piece).await;
                tokio::task::yield_now().await;
            }
            if passes {
                let (_, mut server) = rig.server().await;
                assert!(server.head().await.contains(&long));
            } else {
                client
                    .answer()
                    .await
                    .assert_refused(431, "http_request_error");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_below_the_bounds_passes() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    let fields = (0..900)
        .map(|i| format!("x-{i}: {}\r\n", "y".repeat(50)))
        .collect::<String>();
    client
        .send(format!(
            "GET http://web/ HTTP/1.1\r\nHost: web\r\n{fields}\r\n"
        ))
        .await;
    let (_, mut server) = rig.server().await;
    assert!(server.head().await.len() > 45_000);
}

/// A half-closed client cannot be distinguished from one that is gone. A silent server would keep both for ever.
#[tokio::test(start_paused = true)]
async fn a_half_closed_client_of_a_silent_server_is_given_up() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    client.peer.end().await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    let begun = Instant::now();
    assert!(server.has_ended().await);
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
    assert!(matches!(client.served().await, Err(ServeError::Idle)));

    // The limit counts from the end of file.
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    sleep(Duration::from_secs(600)).await;
    client.peer.end().await;
    sleep(Duration::from_secs(50)).await;
    server.send(OK).await;
    assert_eq!(client.answer().await.text(), "ok");

    // A server that still says something keeps it.
    let mut client = rig.client();
    client.send(get("web")).await;
    client.peer.end().await;
    // On the connection the last answer came on.
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\n\r\n").await;
    for _ in 0..10 {
        sleep(Duration::from_secs(50)).await;
        server.send("tick").await;
    }
    drop(server);
    let answer = client.answer().await;
    assert_eq!(answer.text(), "tick".repeat(10));
}

#[tokio::test(start_paused = true)]
async fn an_idle_limit_ends_a_request_that_stands_still() {
    let settings = Settings {
        idle_timeout: Some(Duration::from_secs(300)),
        ..Settings::default()
    };
    let mut rig = Rig::new(settings);
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    sleep(Duration::from_secs(250)).await;
    server.send("HTTP/1.1 200 OK\r\n\r\ntick").await;
    client.peer.head().await;
    let begun = Instant::now();
    assert!(server.has_ended().await);
    assert_eq!(begun.elapsed(), Duration::from_secs(300));
    assert!(matches!(client.served().await, Err(ServeError::Idle)));

    let mut client = rig.client();
    client
        .send("CONNECT web:22 HTTP/1.1\r\nHost: web:22\r\n\r\n")
        .await;
    let (_, mut server) = rig.server().await;
    let begun = Instant::now();
    assert!(server.has_ended().await);
    assert_eq!(begun.elapsed(), Duration::from_secs(300));
}

/// The client may read the end of an answer at any time: a pager, a breakpoint, Ctrl-Z.
#[tokio::test(start_paused = true)]
async fn a_client_that_pauses_near_the_end_gets_the_whole_answer() {
    const LENGTH: usize = 40_000;
    let body = "x".repeat(LENGTH);
    let head_11 = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
    for (request, head) in [
        (get("web"), head_11.as_str()),
        (
            "GET http://web/ HTTP/1.0\r\n\r\n".into(),
            "HTTP/1.1 200 OK\r\n\r\n",
        ),
        // Half a head behind it does not make it wait for that one.
        (format!("{}GET http://we", get("web")), head_11.as_str()),
    ] {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        client.send(request).await;
        let (_, mut server) = rig.server().await;
        server.head().await;
        server.send(head).await;
        server.send(&body).await;
        drop(server);
        sleep(Duration::from_secs(120)).await;
        client.peer.head().await;
        assert_eq!(client.peer.take(LENGTH).await.len(), LENGTH);
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_the_request_in_hand_finish() {
    let mut rig = Rig::new(Settings::default());
    let (mut busy, mut idle, mut fresh) = (rig.client(), rig.client(), rig.client());
    idle.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server.send(OK).await;
    idle.answer().await;
    busy.send(get("web")).await;
    server.head().await;

    rig.settings.drain.stop();
    assert!(idle.peer.has_ended().await && fresh.peer.has_ended().await);
    assert!(busy.peer.is_silent().await);
    server.send(OK).await;
    let answer = busy.answer().await;
    assert!(answer.text() == "ok" && answer.closes());
    assert!(busy.peer.has_ended().await);
    busy.served().await.unwrap();
}

/// Real sockets: a client that resets its connection cancels what it asked for at once.
#[tokio::test]
async fn a_reset_frees_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let servers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (proxy, target) = (
        listener.local_addr().unwrap(),
        servers.local_addr().unwrap(),
    );
    let dialer = tower::service_fn(move |_: Target| TcpStream::connect(target));
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(
                async move { serve_connection(client, dialer, &Settings::default()).await },
            );
        }
    });
    for early in ["", "POST http://web/ HTTP/1.1\r\nHo"] {
        let client = TcpStream::connect(proxy).await.unwrap();
        client.set_zero_linger().unwrap();
        let request = format!("{}{early}", get("web"));
        let mut client = client;
        client.write_all(request.as_bytes()).await.unwrap();
        let (mut server, _) = servers.accept().await.unwrap();
        let mut got = vec![0; 1024];
        assert!(server.read(&mut got).await.unwrap() > 0);
        drop(client);
        let ended = timeout(Duration::from_secs(30), server.read(&mut got)).await;
        assert_eq!(
            ended
                .expect("the server's connection is still open")
                .unwrap(),
            0
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_slow_clients_do_not_delay_a_good_one_and_are_gone_in_time() {
    let mut rig = Rig::new(Settings::default());
    let mut slow = Vec::new();
    for _ in 0..1000 {
        let mut client = rig.client();
        client.send("GET http://web/ HTTP/1.1\r\nHo").await;
        slow.push(client);
    }
    let begun = Instant::now();
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server.send(OK).await;
    assert_eq!(client.answer().await.text(), "ok");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    for client in slow {
        assert!(client.served().await.is_err());
    }
    assert!(begun.elapsed() <= Duration::from_secs(10));
}

/// The size of one connection's future, without hyper's buffers and the current request.
#[test]
fn a_connection_has_its_size() {
    let settings = Settings::default();
    let backend =
        tower::service_fn(|_: Target| async { Ok::<DuplexStream, io::Error>(duplex(1).0) });
    let size = size_of_val(&serve_connection(duplex(1).0, backend, &settings));
    assert!((512..=4096).contains(&size), "{size} bytes");
}
