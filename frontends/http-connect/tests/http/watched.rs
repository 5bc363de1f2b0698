//! Calls on the client's socket: how it ends when it is dropped, and that the client is authenticated.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use kubevpn_conn::{ClientIo, Credentials};
use kubevpn_http_connect::{ServeError, Settings, serve_connection};
use kubevpn_target::Target;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::harness::{OK, Peer, get};

/// A client that sends the required credentials.
struct Watched {
    io: DuplexStream,
    reset: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
    known: Arc<AtomicBool>,
}

impl ClientIo for Watched {
    fn authenticated(&mut self) {
        self.known.store(true, Ordering::Relaxed);
    }

    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    fn broken(&self) -> Option<io::Error> {
        let broken = self.broken.load(Ordering::Relaxed);
        broken.then(|| io::ErrorKind::ConnectionReset.into())
    }

    fn reset_on_drop(&mut self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    fn close_on_drop(&mut self) {
        self.reset.store(false, Ordering::Relaxed);
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

/// A recorded client with an open request, and its server.
struct Asked {
    client: Peer,
    server: Peer,
    reset: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
    served: tokio::task::JoinHandle<Result<(), ServeError>>,
}

async fn asked(request: &str) -> Asked {
    let (near, far) = duplex(4096);
    let (reset, broken) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
    let watched = Watched {
        io: far,
        reset: Arc::clone(&reset),
        broken: Arc::clone(&broken),
        known: Arc::default(),
    };
    let (streams, mut dials) = mpsc::channel(1);
    let backend = tower::service_fn(move |_: Target| {
        let streams = streams.clone();
        async move {
            let (near, far) = duplex(4096);
            streams.send(far).await.unwrap();
            Ok::<_, io::Error>(near)
        }
    });
    let served =
        tokio::spawn(async move { serve_connection(watched, backend, &Settings::default()).await });
    let mut client = Peer::new(near);
    client.send(request).await;
    let mut server = Peer::new(dials.recv().await.unwrap());
    server.head().await;
    Asked {
        client,
        server,
        reset,
        broken,
        served,
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_is_known_by_its_password_alone() {
    let settings = Arc::new(Settings {
        credentials: Credentials::new("ann", "s3:cret").ok(),
        ..Settings::default()
    });
    for request in ["GET http://web/", "CONNECT web:80", "GET /", "OPTIONS *"] {
        for (shown, is_known) in [
            ("", false),
            ("Proxy-Authorization: Basic eDp5\r\n", false),
            ("Proxy-Authorization: Basic YW5uOnMzOmNyZXQ=\r\n", true),
        ] {
            let (near, far) = duplex(4096);
            let watched = Watched {
                io: far,
                reset: Arc::default(),
                broken: Arc::default(),
                known: Arc::default(),
            };
            let known = Arc::clone(&watched.known);
            let backend =
                tower::service_fn(|_: Target| std::future::pending::<io::Result<DuplexStream>>());
            let settings = Arc::clone(&settings);
            tokio::spawn(async move { serve_connection(watched, backend, &settings).await });
            let mut client = Peer::new(near);
            client
                .send(format!(
                    "{request} HTTP/1.1\r\nHost: localhost\r\n{shown}\r\n"
                ))
                .await;
            sleep(Duration::from_secs(1)).await;
            // Our own pages need no credentials on this machine.
            let is_known = is_known && request.contains("web");
            assert_eq!(known.load(Ordering::Relaxed), is_known, "{request} {shown}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_answer_resets_the_client_and_a_whole_one_does_not() {
    for (rest, whole) in [("", false), ("ello", true)] {
        let mut it = asked("GET http://web/ HTTP/1.0\r\n\r\n").await;
        it.server
            .send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh")
            .await;
        it.server.send(rest).await;
        drop(it.server);
        it.client.rest().await;
        drop(it.client);
        assert_eq!(it.served.await.unwrap().is_ok(), whole);
        assert_eq!(it.reset.load(Ordering::Relaxed), !whole);
    }
}

/// For an HTTP/1.0 client the end of the connection is the end of the answer: only a reset shows a truncated one.
#[tokio::test(start_paused = true)]
async fn cutting_an_answer_resets_the_client_and_cutting_a_wait_does_not() {
    let mut it = asked("GET http://web/ HTTP/1.0\r\n\r\n").await;
    it.server.send("HTTP/1.1 200 OK\r\n\r\nhalf").await;
    it.client.head().await;
    it.served.abort();
    assert!(it.served.await.unwrap_err().is_cancelled());
    assert!(it.reset.load(Ordering::Relaxed));
    assert!(it.server.has_ended().await);

    // The server has sent everything, and a part of it is still buffered here.
    let mut it = asked("GET http://web/ HTTP/1.0\r\n\r\n").await;
    it.server.send("HTTP/1.1 200 OK\r\n\r\n").await;
    it.server.send("x".repeat(10_000)).await;
    drop(it.server);
    sleep(Duration::from_secs(1)).await;
    it.served.abort();
    assert!(it.served.await.unwrap_err().is_cancelled());
    assert!(it.reset.load(Ordering::Relaxed));

    let mut it = asked(&get("web")).await;
    it.server.send(OK).await;
    it.client.answer(false).await;
    it.served.abort();
    assert!(it.served.await.unwrap_err().is_cancelled());
    assert!(!it.reset.load(Ordering::Relaxed));
}

/// After its end of file a reset cannot be read any more, only queried.
#[tokio::test(start_paused = true)]
async fn a_half_closed_client_that_breaks_is_noticed_within_a_second() {
    let mut it = asked(&get("web")).await;
    it.client.end().await;
    sleep(Duration::from_secs(5)).await;
    let begun = Instant::now();
    it.broken.store(true, Ordering::Relaxed);
    assert!(it.server.has_ended().await);
    assert!(begun.elapsed() <= Duration::from_secs(1));
    assert!(matches!(it.served.await.unwrap(), Err(ServeError::Gone(_))));
}
