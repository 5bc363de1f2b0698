//! Forwarded connections over the three transports, with the clock held.

mod common;

use std::time::Duration;

use common::{SPDY, ask, portforward, websocket, within};
use futures_util::{SinkExt, StreamExt};
use kubevpn_sim::{Sim, SimTransport, StreamFault};
use kubevpn_spdy::{Config, Headers, Session, SpdyStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

async fn sample() -> Sim {
    Sim::builder().plain().sample().start().await.unwrap()
}

/// A SPDY session with a pod, over a connection in memory.
async fn session(sim: &Sim, pod: &str) -> Session {
    let io = sim.connect().unwrap();
    let (answer, io) = ask(io, "POST", &portforward(pod), &SPDY).await;
    assert_eq!(answer.status, "101 Switching Protocols");
    let (session, driver) = kubevpn_spdy::client(io, Config::default());
    tokio::spawn(driver);
    session
}

fn headers(kind: &str, port: u16, request: usize) -> Headers {
    let (port, request) = (port.to_string(), request.to_string());
    let fields = [
        ("streamtype", kind),
        ("port", &port),
        ("requestid", &request),
    ];
    Headers::try_from(fields).unwrap()
}

/// Both streams of a new connection: error and data.
fn open(session: &Session, port: u16, request: usize) -> (SpdyStream, SpdyStream) {
    let error = session
        .open(&headers("error", port, request), true)
        .unwrap();
    let data = session
        .open(&headers("data", port, request), false)
        .unwrap();
    (error, data)
}

async fn read_all(stream: &mut SpdyStream) -> String {
    let mut text = String::new();
    within(stream.read_to_string(&mut text)).await.unwrap();
    text
}

#[tokio::test(start_paused = true)]
async fn http_over_spdy() {
    let sim = sample().await;
    let pod = sim.pods("default", "reviews").remove(0);
    let session = session(&sim, &pod).await;
    let (mut error, mut data) = open(&session, 9080, 0);
    data.write_all(b"GET /x?y HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    error.replied().await.unwrap();
    data.replied().await.unwrap();
    let answer = read_all(&mut data).await;
    let body = answer.split("\r\n\r\n").nth(1).unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["hostname"], *pod);
    assert_eq!(body["service"], "reviews");
    assert_eq!(body["host"], "web");
    assert_eq!(body["path"], "/x?y");
    assert_eq!(body["local"], "127.0.0.1:9080");
    assert_eq!(read_all(&mut error).await, "");
    let sessions = sim.sessions();
    assert_eq!((sessions.len(), sessions[0].total), (1, 1));
    assert_eq!(
        (&*sessions[0].pod, sessions[0].transport),
        (&*pod, SimTransport::Spdy)
    );
}

#[tokio::test(start_paused = true)]
async fn a_big_answer_comes_whole_and_right() {
    let sim = sample().await;
    let pod = sim.pods("default", "reviews").remove(0);
    let session = session(&sim, &pod).await;
    let (_error, mut data) = open(&session, 9080, 0);
    data.write_all(b"GET /bytes?n=3000001 HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    let mut all = Vec::new();
    within(data.read_to_end(&mut all)).await.unwrap();
    let head = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let body = &all[head..];
    assert_eq!(body.len(), 3_000_001);
    let right = |(i, b): (usize, &u8)| *b == ((i % 65_536) * 7 + ((i % 65_536) >> 8)) as u8;
    assert!(body.iter().enumerate().all(right));
}

/// A client that ends its side has one second for the answer, and the pod never hears of its end.
#[tokio::test(start_paused = true)]
async fn a_half_close_starts_the_clock() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let session = session(&sim, &pod).await;
    for (ms, whole) in [(700, true), (1500, false)] {
        let (mut error, mut data) = open(&session, 8080, ms);
        let request = format!("GET /slow?ms={ms} HTTP/1.0\r\n\r\n");
        data.write_all(request.as_bytes()).await.unwrap();
        let start = Instant::now();
        data.shutdown().await.unwrap();
        let answer = read_all(&mut data).await;
        assert_eq!(answer.contains(&format!("slept {ms}")), whole, "{answer:?}");
        // An answer that came in time is ended by the pod; else the clock has run out.
        let took = if whole { 700 } else { 1000 };
        assert_eq!(start.elapsed().as_millis(), took);
        assert_eq!(read_all(&mut error).await, "");
    }
    // A program that waits for the end never gets to answer.
    let (_error, mut data) = open(&session, 7000, 9);
    data.write_all(b"hello").await.unwrap();
    data.shutdown().await.unwrap();
    assert_eq!(read_all(&mut data).await, "");
}

#[tokio::test(start_paused = true)]
async fn the_pods_end_is_heard_of_a_second_later() {
    let sim = sample().await;
    let pod = sim.pods("default", "reviews").remove(0);
    let session = session(&sim, &pod).await;
    let (_error, mut data) = open(&session, 9080, 0);
    let start = Instant::now();
    data.write_all(b"GET /slow?ms=1500 HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    assert!(read_all(&mut data).await.ends_with("slept 1500\n"));
    assert_eq!(start.elapsed(), Duration::from_millis(2500));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_comes_after_the_replies() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let session = session(&sim, &pod).await;
    let start = Instant::now();
    let (mut error, mut data) = open(&session, 9999, 0);
    data.replied().await.unwrap();
    error.replied().await.unwrap();
    assert_eq!(read_all(&mut data).await, "");
    let text = read_all(&mut error).await;
    assert!(
        text.starts_with("error forwarding port 9999 to pod "),
        "{text}"
    );
    assert!(
        text.contains("dial tcp4 127.0.0.1:9999: connect: connection refused"),
        "{text}"
    );
    assert_eq!(start.elapsed(), Duration::ZERO);
    // The session lives on.
    let (_error, mut data) = open(&session, 2525, 1);
    let mut greeting = [0; 4];
    data.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ");
}

/// The frames of a refusal in the order of the wire.
#[tokio::test(start_paused = true)]
async fn a_refusal_frame_by_frame() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let io = sim.connect().unwrap();
    let (_, io) = ask(io, "POST", &portforward(&pod), &SPDY).await;
    let (mut from_server, mut to_server) = tokio::io::split(io);
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (session, driver) = kubevpn_spdy::client(theirs, Config::default());
    tokio::spawn(driver);
    let (mut from_client, mut to_client) = tokio::io::split(ours);
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let (mut error, _data) = open(&session, 9999, 0);
    let text = tokio::spawn(async move { read_all(&mut error).await });
    let mut seen = Vec::new();
    while !seen.iter().any(|f| f == "data 1 fin") {
        let mut head = [0; 8];
        within(from_server.read_exact(&mut head)).await.unwrap();
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
        let mut payload = vec![0; length as usize];
        from_server.read_exact(&mut payload).await.unwrap();
        to_client.write_all(&head).await.unwrap();
        to_client.write_all(&payload).await.unwrap();
        let end = if head[4] & 1 == 1 { " fin" } else { "" };
        let number = u32::from_be_bytes([head[0] & 0x7f, head[1], head[2], head[3]]);
        if head[0] & 0x80 == 0 {
            let size = if length > 0 && end.is_empty() {
                " text"
            } else {
                ""
            };
            seen.push(format!("data {number}{size}{end}"));
        } else {
            let stream = u32::from_be_bytes(payload[..4].try_into().unwrap());
            seen.push(format!("control {} {stream}{end}", number & 0xffff));
        }
    }
    let wanted = [
        "control 2 1",
        "control 2 3",
        "data 3 fin",
        "data 1 text",
        "data 1 fin",
    ];
    // The text and its end may share a frame.
    let joined: Vec<_> = wanted.iter().filter(|f| **f != "data 1 text").collect();
    assert!(seen == wanted || seen.iter().eq(joined), "{seen:?}");
    assert!(text.await.unwrap().contains("connection refused"));
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_told_after_a_second() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let session = session(&sim, &pod).await;
    let (mut error, mut data) = open(&session, 7666, 0);
    data.write_all(b"x").await.unwrap();
    let start = Instant::now();
    assert_eq!(read_all(&mut data).await, "");
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    let text = read_all(&mut error).await;
    assert!(
        text.ends_with(":7666: read: connection reset by peer"),
        "{text}"
    );
    assert_eq!(start.elapsed(), Duration::from_secs(1));

    // A client that has ended its side hears of it at once.
    let (mut error, mut data) = open(&session, 7666, 1);
    data.write_all(b"x").await.unwrap();
    data.shutdown().await.unwrap();
    let start = Instant::now();
    assert!(
        read_all(&mut error)
            .await
            .ends_with("connection reset by peer")
    );
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_reset_stream_frees_the_pod_after_a_second() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let (ended, mut gone) = tokio::sync::mpsc::channel(1);
    sim.listen("default", &pod, 4000, move |mut io| {
        let ended = ended.clone();
        async move {
            // Silent, until its connection ends.
            let end = io.read(&mut [0; 16]).await;
            let _ = ended.send(end.unwrap()).await;
        }
    })
    .unwrap();
    let session = session(&sim, &pod).await;
    let (_error, data) = open(&session, 4000, 0);
    session.ping().await.unwrap();
    assert_eq!(sim.sessions()[0].open, 1);
    let start = Instant::now();
    drop(data);
    assert_eq!(within(gone.recv()).await, Some(0));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn many_connections_share_a_session() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let session = session(&sim, &pod).await;
    let mut pairs = Vec::new();
    for n in 0..500 {
        let (error, mut data) = open(&session, 7007, n);
        data.write_all(&(n as u32).to_be_bytes()).await.unwrap();
        pairs.push((error, data));
    }
    for (n, (_error, data)) in pairs.iter_mut().enumerate() {
        let mut echo = [0; 4];
        within(data.read_exact(&mut echo)).await.unwrap();
        assert_eq!(u32::from_be_bytes(echo), n as u32);
    }
    let now = &sim.sessions()[0];
    assert_eq!((now.open, now.total), (500, 500));
    drop(pairs);
    // A second after their end they are gone from the pod, and the session is as before.
    tokio::time::sleep(Duration::from_millis(1001)).await;
    assert_eq!(sim.sessions()[0].open, 0);
    session.ping().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn headers_that_mean_nothing_are_refused() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let session = session(&sim, &pod).await;
    for fields in [
        vec![("streamtype", "data")],
        vec![("port", "80")],
        vec![("streamtype", "both"), ("port", "80")],
        vec![("streamtype", "data"), ("port", "0")],
        vec![("streamtype", "data"), ("port", "70000")],
    ] {
        let mut headers = Headers::new();
        for (name, value) in &fields {
            headers.insert(name, value).unwrap();
        }
        let mut stream = session.open(&headers, false).unwrap();
        let reply = within(stream.replied()).await;
        assert!(reply.is_err(), "{fields:?}: {reply:?}");
    }
    // Half a pair is given up after 30 seconds.
    let start = Instant::now();
    let mut error = session.open(&headers("error", 80, 9), false).unwrap();
    assert_eq!(read_all(&mut error).await, "timed out waiting for streams");
    assert_eq!(start.elapsed(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn the_tunnel_carries_the_same() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let io = sim.connect().unwrap();
    let protocol = websocket("SPDY/3.1+portforward.k8s.io");
    let (answer, io) = ask(io, "GET", &portforward(&pod), &protocol).await;
    assert_eq!(answer.status, "101 Switching Protocols");
    let socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    let (mut sink, mut source) = socket.split();
    // The bytes of a session, between its driver and the messages.
    let (ours, driven) = tokio::io::duplex(64 * 1024);
    let (session, driver) = kubevpn_spdy::client(driven, Config::default());
    tokio::spawn(driver);
    let (mut from_driver, mut to_driver) = tokio::io::split(ours);
    tokio::spawn(async move {
        let mut piece = vec![0; 4096];
        while let Ok(n @ 1..) = from_driver.read(&mut piece).await {
            let message = Message::binary(piece[..n].to_vec());
            sink.send(message).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            to_driver.write_all(&message.into_data()).await.unwrap();
        }
    });
    let (_error, mut data) = open(&session, 7007, 0);
    data.write_all(b"echo").await.unwrap();
    let mut echo = [0; 4];
    within(data.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"echo");
    assert_eq!(sim.sessions()[0].transport, SimTransport::Tunnel);
}

/// A `v4.channel.k8s.io` socket to some ports of a pod.
async fn channels(
    sim: &Sim,
    pod: &str,
    query: &str,
) -> WebSocketStream<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> {
    let path = portforward(pod) + query;
    let io = sim.connect().unwrap();
    let (answer, io) = ask(io, "GET", &path, &websocket("v4.channel.k8s.io")).await;
    assert_eq!(answer.status, "101 Switching Protocols");
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

async fn message<T>(socket: &mut WebSocketStream<T>) -> Vec<u8>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let message = within(socket.next()).await.unwrap().unwrap();
    assert!(message.is_binary(), "{message:?}");
    message.into_data().to_vec()
}

#[tokio::test(start_paused = true)]
async fn channel_bytes() {
    let sim = sample().await;
    let pod = sim.pods("default", "productpage").remove(0);
    for query in ["?ports=9080&ports=7007", "?ports=9080,7007"] {
        let mut socket = channels(&sim, &pod, query).await;
        assert_eq!(message(&mut socket).await, b"\x00x#");
        assert_eq!(message(&mut socket).await, b"\x01x#");
        assert_eq!(message(&mut socket).await, b"\x02_\x1b");
        assert_eq!(message(&mut socket).await, b"\x03_\x1b");
        // What is sent on error channels, or on none, goes nowhere.
        for data in [&b"\x01a"[..], b"\x03b", b"\x09c", b"", b"\x02echo"] {
            socket.send(Message::binary(data.to_vec())).await.unwrap();
        }
        assert_eq!(message(&mut socket).await, b"\x02echo");
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_socket_closes_when_its_forwards_are_over() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let mut socket = channels(&sim, &pod, "?ports=9999").await;
    assert_eq!(message(&mut socket).await, b"\x00\x0f'");
    assert_eq!(message(&mut socket).await, b"\x01\x0f'");
    let refusal = message(&mut socket).await;
    assert!(refusal.starts_with(b"\x01error forwarding port 9999 to pod "));
    let close = within(socket.next()).await.unwrap().unwrap();
    assert!(close.is_close(), "{close:?}");

    // The pod's end, a second, the close.
    let mut socket = channels(&sim, &pod, "?ports=8080").await;
    message(&mut socket).await;
    message(&mut socket).await;
    let request = Message::binary(b"\x00GET /slow?ms=0 HTTP/1.0\r\n\r\n".to_vec());
    socket.send(request).await.unwrap();
    let start = Instant::now();
    assert!(message(&mut socket).await.ends_with(b"slept 0\n"));
    let close = within(socket.next()).await.unwrap().unwrap();
    assert!(close.is_close(), "{close:?}");
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_client_ends_its_forwards() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let (ended, mut gone) = tokio::sync::mpsc::channel(4);
    sim.listen("default", &pod, 4000, move |mut io| {
        let ended = ended.clone();
        async move {
            let end = io.read(&mut [0; 16]).await;
            let _ = ended.send(end.unwrap()).await;
        }
    })
    .unwrap();
    let start = Instant::now();
    let mut socket = channels(&sim, &pod, "?ports=4000").await;
    message(&mut socket).await;
    drop(socket);
    assert_eq!(within(gone.recv()).await, Some(0));
    assert_eq!(start.elapsed(), Duration::from_secs(1));

    let session = session(&sim, &pod).await;
    let _pair = open(&session, 4000, 0);
    session.ping().await.unwrap();
    let start = Instant::now();
    assert!(sim.kill_session(sim.sessions()[0].id));
    assert!(sim.sessions().is_empty());
    assert_eq!(within(gone.recv()).await, Some(0));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    session.closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_closes_refuses_and_goes() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let session = session(&sim, &pod).await;
    let (_error, mut data) = open(&session, 7007, 0);
    data.write_all(b"x").await.unwrap();
    data.read_exact(&mut [0]).await.unwrap();
    sim.delete_pod("default", &pod).unwrap();
    let start = Instant::now();
    // Its programs ended: nothing listens any more.
    let (mut error, _data) = open(&session, 7007, 1);
    assert!(read_all(&mut error).await.contains("connection refused"));
    assert_eq!(read_all(&mut data).await, "");
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    // By now the sandbox is gone too.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let (mut error, _data) = open(&session, 7007, 2);
    let text = read_all(&mut error).await;
    assert!(text.ends_with(" is closed"), "{text}");
    assert!(sim.get("Pod", "default", &pod).is_none());
}

#[tokio::test(start_paused = true)]
async fn streams_fail_on_command() {
    let sim = sample().await;
    let pod = sim.pods("default", "multi").remove(0);
    let session = session(&sim, &pod).await;
    sim.faults().streams(StreamFault::Refuse);
    let (mut error, _data) = open(&session, 7007, 0);
    assert!(within(error.replied()).await.is_err());

    sim.faults().streams(StreamFault::Silent);
    let (mut error, _data) = open(&session, 7007, 1);
    let patience = tokio::time::timeout(Duration::from_secs(60), error.replied());
    assert!(patience.await.is_err(), "it was answered");
    session.ping().await.unwrap();

    sim.faults().streams(StreamFault::None);
    sim.faults().slow_pods(Duration::from_secs(5));
    let (_error, mut data) = open(&session, 2525, 2);
    let start = Instant::now();
    data.read_exact(&mut [0; 4]).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}
