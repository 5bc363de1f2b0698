//! One forwarded request, and its answer.

use std::time::Duration;

use kubevpn_http_connect::{ServeError, Settings};
use tokio::time::Instant;

use crate::harness::{OK, Rig, get};

#[tokio::test(start_paused = true)]
async fn an_answer_comes_back_with_what_may_pass() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (target, mut server) = rig.server().await;
    assert_eq!(target.to_string(), "web:80");
    server.head().await;
    server
        .send("HTTP/1.1 299 Quite Fine\r\nServer: x\r\nConnection: X-Hop\r\nX-Hop: 1\r\nDate: then\r\nVia: 1.0 a\r\nContent-Length: 2\r\n\r\nhi")
        .await;
    let head = client.peer.head().await;
    assert_eq!(
        head,
        "HTTP/1.1 299 Quite Fine\r\nServer: x\r\nDate: then\r\nVia: 1.0 a\r\nVia: 1.1 kubevpn\r\nContent-Length: 2\r\n\r\n"
    );
    assert_eq!(client.peer.take(2).await, b"hi");
    client.served().await.unwrap();
}

/// An existing trace gets this request; no trace is added to others.
#[tokio::test(start_paused = true)]
async fn a_trace_is_passed_on_and_never_made_up() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut rig = Rig::new(Settings::default());
    for (sent, field) in [
        (
            format!("traceparent: {PARENT}\r\ntracestate: a=b\r\n"),
            PARENT,
        ),
        // A malformed one is no parent of ours, but may be one for others.
        (
            "traceparent: 00-0-0-01\r\ntracestate: a=b\r\n".to_owned(),
            "00-0-0-01",
        ),
        (String::new(), ""),
    ] {
        let mut client = rig.client();
        client
            .send(format!(
                "POST http://web/ HTTP/1.1\r\nHost: web\r\n{sent}Content-Length: 0\r\n\r\n"
            ))
            .await;
        let (_, mut server) = rig.server().await;
        let head = server.head().await.to_ascii_lowercase();
        match field {
            "" => assert!(!head.contains("trace"), "{head}"),
            parent => {
                assert!(
                    head.contains(&format!("\r\ntraceparent: {parent}\r\n")),
                    "{head}"
                );
                assert!(head.contains("\r\ntracestate: a=b\r\n"), "{head}");
            }
        }
        server.send(OK).await;
        client.peer.head().await;
    }
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_body() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    let mut served = None;
    for (method, answer, length) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            "1000",
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "",
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", ""),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
            "",
        ),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "0"),
    ] {
        client
            .send(format!(
                "{method} http://web/ HTTP/1.1\r\nHost: web\r\n\r\n"
            ))
            .await;
        if served.is_none() {
            served = Some(rig.server().await.1);
        }
        let server = served.as_mut().unwrap();
        server.head().await;
        server.send(answer).await;
        let got = client.peer.answer(method == "HEAD").await;
        assert_eq!(got.field("content-length"), length, "{method} {answer}");
        assert!(client.peer.is_silent().await && client.peer.is_empty());
    }
    assert_eq!(rig.dials(), 1, "each left the connection fit for the next");
}

#[tokio::test(start_paused = true)]
async fn a_chunked_body_streams_both_ways() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client
        .send("POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let (_, mut server) = rig.server().await;
    let head = server.head().await;
    assert!(
        head.contains("\r\nTransfer-Encoding: chunked\r\n"),
        "{head}"
    );
    // The answer begins before the request is complete, and both continue in turn.
    server
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let head = client.peer.head().await;
    assert!(
        head.contains("\r\nTransfer-Encoding: chunked\r\n"),
        "{head}"
    );
    for word in ["one", "two", "six"] {
        client.send(format!("3\r\n{word}\r\n")).await;
        assert_eq!(server.text(8).await, format!("3\r\n{word}\r\n"));
        server.send(format!("3\r\n{word}\r\n")).await;
        assert_eq!(client.peer.text(8).await, format!("3\r\n{word}\r\n"));
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(server.text(5).await, "0\r\n\r\n");
    server.send("0\r\n\r\n").await;
    assert_eq!(client.peer.text(5).await, "0\r\n\r\n");
    client.send(get("web")).await;
    server.head().await;
    assert_eq!(rig.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn trailers_pass_both_ways() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client
        .send("POST http://web/ HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Up\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Up: 1\r\n\r\n")
        .await;
    let (_, mut server) = rig.server().await;
    let head = server.head().await;
    assert!(
        head.contains("\r\nTE: trailers\r\n") && head.contains("\r\nConnection: TE\r\n"),
        "{head}"
    );
    assert_eq!(server.chunks().await, (b"a".to_vec(), "X-Up: 1\r\n".into()));
    server
        .send("HTTP/1.1 200 OK\r\nTrailer: X-Down\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nX-Down: 2\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.text(), &*answer.trailers), ("b", "X-Down: 2\r\n"));

    // A client that does not accept trailers gets none, and none are announced to it.
    client.send(get("web")).await;
    let head = server.head().await;
    assert!(!head.contains("\r\nte:"), "{head}");
    server
        .send("HTTP/1.1 200 OK\r\nTrailer: X-Down\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nX-Down: 2\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.text(), &*answer.trailers), ("b", ""));
}

/// Server-sent events: each reaches the client before the next is sent.
#[tokio::test(start_paused = true)]
async fn events_are_not_held_back() {
    let mut rig = Rig::new(Settings::default());
    for framing in ["Transfer-Encoding: chunked\r\n", ""] {
        let mut client = rig.client();
        client.send(get("web")).await;
        let (_, mut server) = rig.server().await;
        server.head().await;
        server
            .send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n"
            ))
            .await;
        // The length is unknown: chunked for an HTTP/1.1 client.
        let head = client.peer.head().await;
        assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
        for i in 0..50 {
            let event = format!("data: {i:02}\n\n");
            match framing {
                "" => server.send(&event).await,
                _ => {
                    server
                        .send(format!("{:x}\r\n{event}\r\n", event.len()))
                        .await
                }
            }
            let chunk = format!("{:X}\r\n{event}\r\n", event.len());
            assert_eq!(client.peer.text(chunk.len()).await, chunk);
        }
        drop(server);
        let rest = client.peer.rest().await;
        match framing {
            "" => assert_eq!(rest, b"0\r\n\r\n"),
            // A truncated answer must not look complete.
            _ => assert_eq!(rest, b""),
        }
    }
}

/// The client gets "100 Continue" only after the server has sent it.
#[tokio::test(start_paused = true)]
async fn an_expectation_is_the_servers_to_answer() {
    let upload = "PUT http://web/ HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(upload).await;
    let (_, mut server) = rig.server().await;
    assert!(server.head().await.contains("\r\nExpect: 100-continue\r\n"));
    assert!(client.peer.is_silent().await, "told to go ahead by nobody");
    server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.peer.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body").await;
    assert_eq!(server.take(4).await, b"body");
    server.send(OK).await;
    let answer = client.answer().await;
    assert!(answer.status == 200 && !answer.closes());

    // One that refuses at once never sees the body, and the connection is not used again: whether the
    // client sends it now or not, it looks like a request.
    let mut client = rig.client();
    client.send(upload).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server
        .send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")
        .await;
    let answer = client.answer().await;
    assert!(answer.status == 417 && answer.closes(), "{answer:?}");
    assert!(client.peer.has_ended().await && server.has_ended().await);

    // A server that never sends it gets the body after a second.
    let mut client = rig.client();
    client.send(upload).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    let asked = Instant::now();
    assert_eq!(client.peer.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(asked.elapsed(), Duration::from_secs(1));
    client.send("body").await;
    assert_eq!(server.take(4).await, b"body");
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_does_not_wait_for_the_upload() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client
        .send("POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000\r\n\r\nbegin")
        .await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server
        .send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        .await;
    assert_eq!(client.answer().await.status, 413);
    assert!(client.peer.has_ended().await);
    server.rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_of_http_1_0() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send("GET http://web/ HTTP/1.0\r\n\r\n").await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!(
        (&*answer.version, answer.field("transfer-encoding")),
        ("HTTP/1.0", "")
    );
    assert_eq!(answer.text(), "hi");

    // One that keeps its connection can when the length is known.
    let mut client = rig.client();
    for _ in 0..2 {
        client
            .send("GET http://web/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            .await;
        server.head().await;
        server
            .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            .await;
        let answer = client.answer().await;
        assert_eq!(
            (answer.field("connection"), answer.text()),
            ("keep-alive", "hi")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_of_http_1_0() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server.send("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    drop(server);
    let answer = client.answer().await;
    assert_eq!(
        (&*answer.version, answer.field("via")),
        ("HTTP/1.1", "1.0 kubevpn")
    );
    assert_eq!(answer.text(), "until the end");
    // The client's connection is not the server's.
    client.send(get("web")).await;
    rig.server().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_does_not_look_complete() {
    for (head, part) in [
        ("Content-Length: 10", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
    ] {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        client.send(get("web")).await;
        let (_, mut server) = rig.server().await;
        server.head().await;
        server
            .send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{part}"))
            .await;
        let got = client.peer.head().await;
        assert!(got.contains(head), "{got}");
        drop(server);
        let rest = client.peer.rest().await;
        assert!(rest == part.as_bytes() || rest.is_empty(), "{rest:?}");
        let served = client.served().await;
        assert!(matches!(served, Err(ServeError::Gone(_))), "{served:?}");
    }
}

/// A client that sends a request and ends its writing, as `printf … | nc` does.
#[tokio::test(start_paused = true)]
async fn a_client_that_half_closes_gets_its_answer() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    client.peer.end().await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    server.send(OK).await;
    assert_eq!(client.answer().await.text(), "ok");
    assert!(client.peer.has_ended().await);
    client.served().await.unwrap();
}

/// A body that is larger than everything between client and server can hold.
#[tokio::test(start_paused = true)]
async fn large_bodies_pass_whole() {
    let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 249) as u8).collect();
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    let upload = format!(
        "POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(upload).await;
    let (_, mut server) = rig.server().await;
    let echo = tokio::spawn({
        let body = body.clone();
        async move {
            server.head().await;
            let got = server.take(body.len()).await;
            assert!(got == body, "the upload differs");
            server
                .send(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                ))
                .await;
            server.send(&body).await;
            server
        }
    });
    client.send(&body).await;
    client.peer.head().await;
    assert!(
        client.peer.take(body.len()).await == body,
        "the download differs"
    );
    echo.await.unwrap();
    client.served().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_websocket() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client
        .send("GET http://web/ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\nearly")
        .await;
    let (_, mut server) = rig.server().await;
    assert_eq!(
        server.head().await,
        "GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nVia: 1.1 kubevpn\r\n\r\n"
    );
    server
        .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: y\r\n\r\nfirst")
        .await;
    let head = client.peer.head().await;
    assert!(
        head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
        "{head}"
    );
    for field in [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Accept: y",
        "Via: 1.1 kubevpn",
    ] {
        assert!(head.contains(&format!("\r\n{field}\r\n")), "{head}");
    }
    assert_eq!(client.peer.take(5).await, b"first");
    assert_eq!(server.take(5).await, b"early");
    client.send("ping").await;
    assert_eq!(server.take(4).await, b"ping");
    client.peer.end().await;
    assert!(server.has_ended().await);
    server.send("pong").await;
    drop(server);
    assert_eq!(client.peer.rest().await, b"pong");
    client.served().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_server_need_not_take_the_offer() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send("GET http://web/ HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server.send("HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.field("upgrade")), (426, "other"));
    client.send(get("web")).await;
    server.head().await;
}

/// Answers that curl and browsers accept: RFC 9112 sections 5.1, 5.2, 6.1, and others outside any specification.
#[tokio::test(start_paused = true)]
async fn odd_answers_pass() {
    let many = (0..800)
        .map(|i| format!("X-{i}: y\r\n"))
        .collect::<String>();
    for (fields, name, value) in [
        ("X-A : 1\r\nContent-Length : 2\r\n", "x-a", "1"),
        (
            "X-A: 1\r\n 2\r\n\t3\r\nContent-Length: 2\r\n",
            "x-a",
            "1 2 3",
        ),
        ("X A: 1\r\nX-B: 2\r\nContent-Length: 2\r\n", "x-b", "2"),
        ("nonsense\r\nX-B: 2\r\nContent-Length: 2\r\n", "x-b", "2"),
        (
            "Transfer-Encoding: identity\r\nContent-Length: 2\r\n",
            "content-length",
            "2",
        ),
        (
            "Content-Length: 2\r\nContent-Length: 2\r\n",
            "content-length",
            "2",
        ),
        (&format!("{many}Content-Length: 2\r\n"), "x-799", "y"),
    ] {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        client.send(get("web")).await;
        let (_, mut server) = rig.server().await;
        server.head().await;
        // It stays open.
        server
            .send(format!("HTTP/1.1 200 OK\r\n{fields}\r\nok"))
            .await;
        let answer = client.answer().await;
        assert_eq!(
            (answer.text(), answer.field(name)),
            ("ok", value),
            "{fields}"
        );
        client
            .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await;
        assert_eq!(client.answer().await.status, 200, "{fields}");
    }
}

#[tokio::test(start_paused = true)]
async fn interim_answers_pass() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client.send(get("web")).await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server
        .send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: 1\r\n\r\n")
        .await;
    assert_eq!(client.answer().await.status, 102);
    let hints = client.answer().await;
    assert_eq!(
        (hints.status, hints.field("link"), hints.field("x")),
        (103, "</a>", "")
    );
    server
        .send(format!("HTTP/1.1 103 Early Hints\r\n\r\n{OK}"))
        .await;
    assert_eq!(client.answer().await.status, 103);
    assert_eq!(client.answer().await.text(), "ok");

    // HTTP/1.0 has none (RFC 9110 section 15.2).
    client.send("GET http://web/ HTTP/1.0\r\n\r\n").await;
    server.head().await;
    server
        .send(format!("HTTP/1.1 103 Early Hints\r\n\r\n{OK}"))
        .await;
    assert_eq!(client.answer().await.text(), "ok");
}
