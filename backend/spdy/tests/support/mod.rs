//! Two sessions, back to back.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its part of this module"
)]

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use kubevpn_spdy::{Config, Headers, Incoming, Session, SessionError, SpdyStream, client, server};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    task::JoinHandle,
};

/// A client and a server whose drivers run.
pub struct Pair {
    pub client: Session,
    pub server: Session,
    pub incoming: Incoming,
    pub client_end: JoinHandle<SessionError>,
    pub server_end: JoinHandle<SessionError>,
}

/// A pair over a pipe that holds 64 KiB each way.
pub fn pair(config: Config) -> Pair {
    let (near, far) = duplex(64 * 1024);
    over(near, far, config)
}

pub fn over<A, B>(near: A, far: B, config: Config) -> Pair
where
    A: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (client, client_driver) = client(near, config.clone());
    let (server, incoming, server_driver) = server(far, config);
    Pair {
        client,
        server,
        incoming,
        client_end: tokio::spawn(client_driver),
        server_end: tokio::spawn(server_driver),
    }
}

impl Pair {
    /// A stream, at both ends.
    pub async fn stream(&mut self) -> (SpdyStream, SpdyStream) {
        let mut near = self.client.open(&headers(), false).unwrap();
        let request = self.incoming.next().await.unwrap();
        let far = request.accept(&Headers::new(), false);
        near.replied().await.unwrap();
        (near, far)
    }

    /// Waits until everything both sides have written has been received.
    pub async fn settle(&self) {
        self.client.ping().await.unwrap();
        self.server.ping().await.unwrap();
    }
}

pub fn headers() -> Headers {
    Headers::try_from([("streamtype", "data"), ("port", "80")]).unwrap()
}

/// A pipe's end that notes the size of each write.
pub struct Counting {
    io: DuplexStream,
    pub vectored: bool,
    pub writes: Arc<Mutex<Vec<usize>>>,
}

impl Counting {
    pub fn new(io: DuplexStream, vectored: bool) -> Self {
        Self {
            io,
            vectored,
            writes: Arc::default(),
        }
    }

    fn note(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(len)) = written {
            self.writes.lock().unwrap().push(*len);
        }
    }
}

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        assert!(self.vectored);
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Bytes that are known by their place.
pub fn filler(from: u64, len: usize) -> Vec<u8> {
    (from..).take(len).map(|at| (at % 251) as u8).collect()
}

/// Lets the other tasks run until `done`; fails if it never is.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if done() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("never: {what}");
}
