//! The frontend with backends that stall, refuse or half-close, and with misbehaving clients.

use std::cell::RefCell;
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::task::{Context, Poll};
use std::time::Duration;

use kubevpn_conn::{ClientIo, Credentials, Drain, End, Gate, Limits, Listener, Relayed};
use kubevpn_socks5::{HandshakeError, ServeError, Settings, reply_code, serve_connection};
use kubevpn_target::table::{REFUSALS, RefusalRow};
use kubevpn_target::{Connect, ConnectError, Frontend, Target, TargetError};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::service_fn;

type Served = JoinHandle<Result<Relayed, ServeError>>;

const HELLO: &[u8] = b"\x05\x01\x00";
const ASK: &[u8] = b"\x05\x01\x00\x03\x08web.shop\x00\x50";
const GRANTED: &[u8] = b"\x05\x00\x00\x01\0\0\0\0\0\0";

fn opening() -> Vec<u8> {
    [HELLO, ASK].concat()
}

/// The client's bytes after a successful handshake.
fn welcome() -> Vec<u8> {
    [b"\x05\x00", GRANTED].concat()
}

fn serve_with(backend: impl Connect + 'static, settings: Settings) -> (DuplexStream, Served) {
    let (app, client) = duplex(1 << 20);
    let served = tokio::spawn(async move { serve_connection(client, backend, &settings).await });
    (app, served)
}

fn serve(backend: impl Connect + 'static) -> (DuplexStream, Served) {
    serve_with(backend, Settings::default())
}

/// A backend that passes its streams to the test.
fn backend() -> (
    impl Connect + Clone + 'static,
    mpsc::Receiver<(Target, DuplexStream)>,
) {
    let (give, servers) = mpsc::channel(16);
    let backend = service_fn(move |target: Target| {
        let give = give.clone();
        async move {
            let (stream, server) = duplex(64 * 1024);
            give.send((target, server))
                .await
                .map_err(io::Error::other)?;
            Ok::<_, io::Error>(stream)
        }
    });
    (backend, servers)
}

/// A backend that must not be called.
fn unreachable_backend() -> impl Connect + Clone + 'static {
    service_fn(|target: Target| async move {
        panic!("the service was asked for {target}");
        #[allow(unreachable_code)]
        Ok::<DuplexStream, io::Error>(duplex(1).0)
    })
}

async fn read_exactly(from: &mut (impl AsyncRead + Unpin), n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    from.read_exact(&mut bytes).await.unwrap();
    bytes
}

async fn read_all(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// Sends everything, ends, and reads to the end.
async fn exchange(mut app: DuplexStream, bytes: &[u8]) -> Vec<u8> {
    app.write_all(bytes).await.unwrap();
    app.shutdown().await.unwrap();
    read_all(app).await
}

fn handshake_error(served: Result<Relayed, ServeError>) -> HandshakeError {
    match served {
        Err(ServeError::Handshake(error)) => error,
        other => panic!("{other:?}"),
    }
}

// === the end ===

/// Clients without a request do not delay a drain.
#[tokio::test]
async fn a_drain_ends_handshakes_at_once() {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let addr = listener.addr().to_string();
    let (gate, drain) = (Gate::new(Limits::default()), Drain::new());
    let serving = listener.serve(gate, drain.clone(), |client| async {
        let _ended = serve_connection(client, unreachable_backend(), &Settings::default()).await;
    });
    let serving = tokio::spawn(serving);
    let silent = TcpStream::connect(&addr).await.unwrap();
    let mut half = TcpStream::connect(&addr).await.unwrap();
    half.write_all(HELLO).await.unwrap();
    assert_eq!(read_exactly(&mut half, 2).await, b"\x05\x00");
    half.write_all(&ASK[..5]).await.unwrap();
    let drained = drain.drain(Duration::from_secs(5)).await;
    assert_eq!((drained.finished, drained.cut), (2, 0));
    serving.await.unwrap();
    drop((silent, half));
}

// === refusals ===

#[tokio::test]
async fn every_refusal_has_its_code() {
    for row in REFUSALS {
        let RefusalRow { refusal, reply, .. } = row;
        assert_eq!(reply_code(refusal), reply, "{row:?}");

        let backend = service_fn(move |_: Target| async move {
            Err::<DuplexStream, _>(ConnectError::new(refusal, row.sentence))
        });
        let (app, served) = serve(backend);
        let answer = exchange(app, &opening()).await;
        let said = [&[5, 0, 5, reply, 0, 1], &[0; 6][..]].concat();
        assert_eq!(answer, said, "{row:?}");
        match served.await.unwrap() {
            Err(ServeError::Refused(error)) => {
                assert_eq!(error.refusal(), refusal);
                assert_eq!(error.to_string(), row.sentence);
            }
            other => panic!("{row:?}: {other:?}"),
        }

        let (app, _) = serve(backend);
        let answer = exchange(app, b"\x04\x01\x00\x50\x0a\x60\x00\x01\0").await;
        assert_eq!(answer, b"\0\x5b\0\0\0\0\0\0", "{row:?}");
    }
}

/// A SOCKS reply has no room for the sentence, which is in the access record.
#[tokio::test]
async fn every_refusal_is_logged_with_its_reason() {
    for row in REFUSALS {
        let lines = logged(async {
            let backend = service_fn(move |_: Target| async move {
                Err::<DuplexStream, _>(ConnectError::new(row.refusal, row.sentence))
            });
            let (app, served) = serve(backend);
            exchange(app, &opening()).await;
            served.await.unwrap().unwrap_err();
        })
        .await;
        let [line] = &lines[..] else {
            panic!("not one line: {lines:?}")
        };
        let refusal = format!("refusal=\"{}\"", row.refusal);
        let error = format!("error={:?}", row.sentence);
        for part in ["end=\"refused\"", &refusal, &error] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
}

#[tokio::test]
async fn an_error_of_a_foreign_backend_is_classified() {
    let backend = service_fn(|_: Target| async {
        Err::<DuplexStream, _>(io::Error::from(io::ErrorKind::ConnectionRefused))
    });
    let (app, _) = serve(backend);
    assert_eq!(exchange(app, &opening()).await[3], 5);
}

// === dialing ===

#[tokio::test(start_paused = true)]
async fn success_is_sent_once_the_stream_exists() {
    let (open, opened) = oneshot::channel::<DuplexStream>();
    let opened = Arc::new(Mutex::new(Some(opened)));
    let backend = service_fn(move |_: Target| {
        let opened = opened.lock().unwrap().take().unwrap();
        async move { opened.await.map_err(io::Error::other) }
    });
    let (mut app, _served) = serve(backend);
    app.write_all(&opening()).await.unwrap();
    assert_eq!(read_exactly(&mut app, 2).await, b"\x05\x00");
    // Longer than the handshake's limit, which does not apply to the dial.
    let hour = tokio::time::timeout(Duration::from_secs(3600), app.read_u8()).await;
    assert!(hour.is_err(), "{hour:?}");
    open.send(duplex(64).0).unwrap();
    assert_eq!(read_exactly(&mut app, GRANTED.len()).await, GRANTED);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_only_ended_its_writing_is_dialled_for_and_answered() {
    let (open, opened) = oneshot::channel::<DuplexStream>();
    let opened = Arc::new(Mutex::new(Some(opened)));
    let backend = service_fn(move |_: Target| {
        let opened = opened.lock().unwrap().take().unwrap();
        async move { opened.await.map_err(io::Error::other) }
    });
    let (mut app, served) = serve(backend);
    app.write_all(&[&opening()[..], b"question"].concat())
        .await
        .unwrap();
    app.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!served.is_finished());

    let (stream, mut server) = duplex(64);
    open.send(stream).unwrap();
    let mut question = String::new();
    server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    assert_eq!(read_all(app).await, [&welcome()[..], b"answer"].concat());
    assert!(matches!(served.await.unwrap().unwrap().end, End::Eof));
}

#[tokio::test]
async fn a_client_that_resets_cancels_the_dial() {
    let (asked, mut was_asked) = mpsc::channel(1);
    let (held, given_up) = oneshot::channel::<()>();
    let held = Arc::new(Mutex::new(Some(held)));
    let backend = service_fn(move |_: Target| {
        let (asked, held) = (asked.clone(), held.lock().unwrap().take());
        async move {
            let _held = held;
            asked.send(()).await.map_err(io::Error::other)?;
            pending::<io::Result<DuplexStream>>().await
        }
    });
    let (mut app, client) = tcp_pair().await;
    let settings = Settings::default();
    let served = tokio::spawn(async move { serve_connection(client, backend, &settings).await });
    app.write_all(&opening()).await.unwrap();
    read_exactly(&mut app, 2).await;
    was_asked.recv().await.unwrap();
    app.reset_on_drop();
    drop(app);
    assert!(given_up.await.is_err(), "the dial was dropped");
    match served.await.unwrap() {
        Err(ServeError::Gone(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_target_has_its_origin() {
    let (backend, mut servers) = backend();
    let (mut app, client) = tcp_pair().await;
    let settings = Settings::default();
    tokio::spawn(async move { serve_connection(client, backend, &settings).await });
    app.write_all(&opening()).await.unwrap();
    let (target, _server) = servers.recv().await.unwrap();
    assert_eq!(target.to_string(), "web.shop:80");
    assert_eq!(target.origin.frontend, Frontend::Socks5);
    assert_eq!(target.origin.peer, app.local_addr().ok());
}

// === relaying ===

#[tokio::test]
async fn early_data_arrives_whole_and_first() {
    let (backend, mut servers) = backend();
    let (mut app, served) = serve(backend);
    let early: Vec<u8> = (0..64 * 1024).map(|i: u32| (i ^ (i >> 8)) as u8).collect();
    app.write_all(&[&opening()[..], &early].concat())
        .await
        .unwrap();
    let (_, mut server) = servers.recv().await.unwrap();
    assert!(read_exactly(&mut server, early.len()).await == early);
    app.write_all(b"later").await.unwrap();
    assert_eq!(read_exactly(&mut server, 5).await, b"later");
    drop((app, server));
    assert_eq!(served.await.unwrap().unwrap().up, 64 * 1024 + 5);
}

#[tokio::test]
async fn an_answer_only_after_the_end_of_file() {
    let (backend, mut servers) = backend();
    let (app, served) = serve(backend);
    let server = async {
        let (_, mut server) = servers.recv().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        server.write_all(b"answer").await.unwrap();
    };
    let bytes = [&opening()[..], b"question"].concat();
    let (answer, ()) = tokio::join!(exchange(app, &bytes), server);
    assert_eq!(answer, [&welcome()[..], b"answer"].concat());
    let relayed = served.await.unwrap().unwrap();
    assert_eq!((relayed.up, relayed.down), (8, 6));
}

#[tokio::test]
async fn a_backend_that_half_closes_still_gets_the_upload() {
    let (backend, mut servers) = backend();
    let (mut app, served) = serve(backend);
    app.write_all(&opening()).await.unwrap();
    let (_, mut server) = servers.recv().await.unwrap();
    server.write_all(b"greeting").await.unwrap();
    server.shutdown().await.unwrap();
    let mut got = welcome();
    got.extend(b"greeting");
    let mut all = vec![0; got.len()];
    app.read_exact(&mut all).await.unwrap();
    assert_eq!(all, got);
    assert_eq!(app.read(&mut all).await.unwrap(), 0, "the end came at once");
    app.write_all(b"upload").await.unwrap();
    app.shutdown().await.unwrap();
    assert_eq!(read_all(server).await, b"upload");
    assert!(matches!(served.await.unwrap().unwrap().end, End::Eof));
}

#[tokio::test(start_paused = true)]
async fn the_idle_timeout_is_the_relays() {
    let (backend, mut servers) = backend();
    let settings = Settings {
        idle_timeout: Some(Duration::from_secs(60)),
        ..Settings::default()
    };
    let (mut app, served) = serve_with(backend, settings);
    app.write_all(&opening()).await.unwrap();
    let _server = servers.recv().await.unwrap();
    assert!(matches!(served.await.unwrap().unwrap().end, End::Idle));
}

// === failed handshakes ===

#[tokio::test(start_paused = true)]
async fn a_handshake_has_ten_seconds() {
    let opening = opening();
    // Silent, stalled half-way, and dripping.
    for (sends, every) in [(0, 0), (5, 0), (9, 1)] {
        let (mut app, served) = serve(unreachable_backend());
        let started = Instant::now();
        for byte in &opening[..sends] {
            app.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(every)).await;
        }
        match served.await.unwrap() {
            Err(ServeError::Slow(limit)) => assert_eq!(limit, Duration::from_secs(10)),
            other => panic!("{other:?}"),
        }
        // The clock ticks in milliseconds.
        assert_eq!(started.elapsed().as_secs(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_replies_is_bounded_too() {
    let (app, client) = duplex(1);
    let settings = Settings::default();
    let backend = unreachable_backend();
    let served = tokio::spawn(async move { serve_connection(client, backend, &settings).await });
    let mut app = app;
    for byte in HELLO {
        app.write_all(&[*byte]).await.unwrap();
    }
    // One byte of the method's two fits; nobody reads it.
    assert!(matches!(served.await.unwrap(), Err(ServeError::Slow(_))));
}

#[tokio::test]
async fn an_opening_that_is_cut_short_at_any_byte() {
    let password = b"\x05\x01\x02\x01\x03ann\x06s3cret\x05\x01\x00\x03\x08web.shop\x00\x50";
    let openings = [
        (opening(), None),
        (password.to_vec(), Credentials::new("ann", "s3cret").ok()),
        (b"\x04\x01\x00\x50\0\0\0\x01ann\0web.shop\0".to_vec(), None),
    ];
    for (opening, credentials) in openings {
        for n in 0..opening.len() {
            let settings = Settings {
                credentials: credentials.clone(),
                ..Settings::default()
            };
            let (app, served) = serve_with(unreachable_backend(), settings);
            exchange(app, &opening[..n]).await;
            match served.await.unwrap() {
                Err(ServeError::Unused) if n == 0 => {}
                Err(ServeError::Truncated) if n > 0 => {}
                other => panic!("{n}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn an_opening_byte_by_byte() {
    let (backend, mut servers) = backend();
    let (mut app, _served) = serve(backend);
    for byte in opening() {
        app.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    servers.recv().await.unwrap();
    assert_eq!(read_exactly(&mut app, 12).await, welcome());
}

#[tokio::test]
async fn malformed_requests_do_not_reach_the_service() {
    for (ask, reply, why) in [
        (
            &b"\x05\x01\x00\x03\x03web\x00\x00"[..],
            1,
            HandshakeError::Target(TargetError::PortZero),
        ),
        (
            b"\x05\x01\x00\x03\x03a b\x00\x50",
            1,
            HandshakeError::Target(TargetError::BadByte(b' ')),
        ),
        (
            b"\x05\x02\x00\x03\x03web\x00\x50",
            7,
            HandshakeError::Command(2),
        ),
        (
            b"\x05\x03\x00\x01\0\0\0\0\0\0",
            7,
            HandshakeError::Command(3),
        ),
        (b"\x05\x01\x00\x05", 8, HandshakeError::AddressType(5)),
    ] {
        let (app, served) = serve(unreachable_backend());
        let answer = exchange(app, &[HELLO, ask].concat()).await;
        assert_eq!(answer, [&[5, 0, 5, reply, 0, 1], &[0; 6][..]].concat());
        assert_eq!(handshake_error(served.await.unwrap()), why);
    }
}

#[tokio::test]
async fn passwords() {
    let settings = || Settings {
        credentials: Credentials::new("ann", "s3cret").ok(),
        ..Settings::default()
    };
    let (app, _) = serve_with(unreachable_backend(), settings());
    assert_eq!(exchange(app, HELLO).await, b"\x05\xff");
    let (app, served) = serve_with(unreachable_backend(), settings());
    let wrong = [b"\x05\x01\x02\x01\x03ann\x05wrong", ASK].concat();
    assert_eq!(exchange(app, &wrong).await, b"\x05\x02\x01\x01");
    assert_eq!(
        handshake_error(served.await.unwrap()),
        HandshakeError::WrongPassword
    );

    let (backend, mut servers) = backend();
    let (mut app, _served) = serve_with(backend, settings());
    let right = [b"\x05\x01\x02\x01\x03ann\x06s3cret", ASK].concat();
    app.write_all(&right).await.unwrap();
    servers.recv().await.unwrap();
    assert_eq!(
        read_exactly(&mut app, 14).await,
        [b"\x05\x02\x01\x00", GRANTED].concat()
    );
}

#[tokio::test]
async fn socks4_is_served() {
    for ask in [
        &b"\x04\x01\x00\x50\x0a\x60\x00\x01ann\0"[..],
        b"\x04\x01\x00\x50\0\0\0\x01\0web.shop\0",
    ] {
        let (backend, mut servers) = backend();
        let (app, served) = serve(backend);
        let server = async {
            let (_, mut server) = servers.recv().await.unwrap();
            server.write_all(b"hello").await.unwrap();
        };
        let (answer, ()) = tokio::join!(exchange(app, ask), server);
        assert_eq!(answer, b"\0\x5a\0\0\0\0\0\0hello");
        assert_eq!(served.await.unwrap().unwrap().down, 5);
    }
}

#[tokio::test]
async fn http_gets_an_answer_it_can_read() {
    let (mut app, client) = tcp_pair().await;
    let settings = Settings::default();
    let served =
        tokio::spawn(
            async move { serve_connection(client, unreachable_backend(), &settings).await },
        );
    // More than is read before the answer, so that a careless close would reset.
    let request = format!(
        "GET http://web.shop/ HTTP/1.1\r\nCookie: {}\r\n\r\n",
        "x".repeat(8000)
    );
    app.write_all(request.as_bytes()).await.unwrap();
    app.shutdown().await.unwrap();
    let answer = String::from_utf8(read_all(app).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(
        answer.contains("SOCKS5") && answer.contains("--listen-http"),
        "{answer}"
    );
    assert_eq!(handshake_error(served.await.unwrap()), HandshakeError::Http);
}

// === what is logged ===

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes to the log of the thread: every test has one.
struct ThreadLog;

impl io::Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One subscriber for the process. Several, each for a moment, would race for what tracing caches about
/// who is interested in what.
fn subscribe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .without_time()
            .with_writer(|| ThreadLog)
            .init();
    });
}

async fn logged(body: impl Future<Output = ()>) -> Vec<String> {
    subscribe();
    LOG.take();
    body.await;
    let text = String::from_utf8(LOG.take()).unwrap();
    text.lines().map(Into::into).collect()
}

#[tokio::test]
async fn a_failed_handshake_is_one_sentence_in_the_log() {
    let settings = || Settings {
        credentials: Credentials::new("ann", "s3cret").ok(),
        ..Settings::default()
    };
    for (bytes, words) in [
        (&b"\x05\x01\x00"[..], "offers no user name and password"),
        (
            b"\x05\x01\x02\x01\x03ann\x06geheim",
            "user name or the password is wrong",
        ),
        (
            b"\x05\x01\x02\x01\x03ann\x06s3cret\x05\x02\x00\x01\0\0\0\0\0\0",
            "BIND",
        ),
        (
            b"\x05\x01\x02\x01\x03ann\x06s3cret\x05\x01\x00\x03\x03web\0\0",
            "port 0",
        ),
        (b"\x05\x01", "in the middle of its SOCKS handshake"),
        (b"\x16\x03\x01", "TLS"),
        (b"CONNECT web:80 HTTP/1.1\r\n\r\n", "HTTP"),
        (b"\x04\x01\x00\x50\x0a\x60\x00\x01ann\0", "SOCKS4"),
    ] {
        let lines = logged(async {
            let (app, served) = serve_with(unreachable_backend(), settings());
            exchange(app, bytes).await;
            served.await.unwrap().unwrap_err();
        })
        .await;
        let [line] = &lines[..] else {
            panic!("not one line: {lines:?}")
        };
        assert!(
            line.contains(" INFO access: ") && line.contains("end=\"rejected\""),
            "{line}"
        );
        assert!(line.contains(words), "{words} is not in {line}");
        assert!(
            !line.contains("geheim") && !line.contains("s3cret"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_served_connection_is_one_line_in_the_log() {
    let lines = logged(async {
        let (backend, mut servers) = backend();
        let (app, served) = serve(backend);
        let server = async {
            let (_, mut server) = servers.recv().await.unwrap();
            server.write_all(b"hello").await.unwrap();
        };
        let opening = opening();
        tokio::join!(exchange(app, &opening), server);
        served.await.unwrap().unwrap();
    })
    .await;
    let [line] = &lines[..] else {
        panic!("not one line: {lines:?}")
    };
    for part in [
        "frontend=\"socks5\"",
        "target=web.shop:80",
        "down=5",
        "end=\"eof\"",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

#[tokio::test]
async fn a_client_without_a_byte_is_not_worth_a_line() {
    let lines = logged(async {
        let (app, served) = serve(unreachable_backend());
        drop(app);
        served.await.unwrap().unwrap_err();
    })
    .await;
    assert!(lines.is_empty(), "{lines:?}");
}

// === cost ===

/// The size of one connection's future, most of the memory of an idle one. Let it grow only for a reason.
#[tokio::test]
async fn a_connection_fits_its_budget() {
    let backend = service_fn(|target: Target| TcpStream::connect(target.to_string()));
    let (_app, client) = tcp_pair().await;
    let settings = Settings::default();
    let future = serve_connection(kubevpn_conn::Client::from(client), backend, &settings);
    let size = size_of_val(&future);
    // 16 of them are the query for closed clients of another network namespace, 56 the observer.
    assert!((1024..=2656).contains(&size), "{size} bytes");
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (connected, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (connected.unwrap(), accepted.unwrap().0)
}

/// A client that records whether it was marked as authenticated.
struct Watched {
    io: DuplexStream,
    known: Arc<AtomicBool>,
}

impl ClientIo for Watched {
    fn authenticated(&mut self) {
        self.known.store(true, Ordering::Relaxed);
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_is_known_by_its_password_alone() {
    for (shown, is_known) in [
        (&b""[..], false),
        (b"\x01\x03ann\x05wrong", false),
        (b"\x01\x03ann\x06s3cret\x05\x01\x00\x03", false),
        (b"\x01\x03ann\x06s3cret\x05\x01\x00\x03\x01x\x00\x50", true),
    ] {
        let settings = Settings {
            credentials: Credentials::new("ann", "s3cret").ok(),
            ..Settings::default()
        };
        let (mut app, io) = duplex(1024);
        let known = Arc::<AtomicBool>::default();
        let client = Watched {
            io,
            known: Arc::clone(&known),
        };
        tokio::spawn(async move {
            let backend = service_fn(|_: Target| pending::<io::Result<DuplexStream>>());
            serve_connection(client, backend, &settings).await
        });
        app.write_all(&[b"\x05\x01\x02", shown].concat())
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(known.load(Ordering::Relaxed), is_known, "{shown:?}");
    }
}
