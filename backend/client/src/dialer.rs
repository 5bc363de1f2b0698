//! Connections below all protocols: TCP, or made by the caller.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection made by a [`Dialer`].
trait DialedIo: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> DialedIo for T {}

type DialFuture = Pin<Box<dyn Future<Output = io::Result<DialedSocket>> + Send>>;

/// Replaces the TCP connections to the API server, or to the proxy before it. Clones are the same dialer.
#[derive(Clone)]
pub struct Dialer(Arc<dyn Fn(Uri) -> DialFuture + Send + Sync>);

impl Dialer {
    /// `dial` gets the `scheme://host:port` to connect to. TLS and the proxy's protocol run over its result; the connect
    /// time-out applies to it.
    pub fn new<F, Fut, T>(dial: F) -> Self
    where
        F: Fn(Uri) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<T>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
    {
        Self(Arc::new(move |to| {
            let dialing = dial(to);
            Box::pin(async move { Ok(DialedSocket(SocketKind::Given(Box::new(dialing.await?)))) })
        }))
    }

    pub(crate) fn dial(&self, to: Uri) -> DialFuture {
        (self.0)(to)
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

/// One connection below all protocols.
pub struct DialedSocket(SocketKind);

enum SocketKind {
    Tcp(TcpStream),
    Given(Box<dyn DialedIo>),
}

impl DialedSocket {
    /// The TCP connection, for its options; `None` for a connection of a [`Dialer`].
    pub fn tcp(&self) -> Option<&TcpStream> {
        match &self.0 {
            SocketKind::Tcp(tcp) => Some(tcp),
            SocketKind::Given(_) => None,
        }
    }
}

impl From<TcpStream> for DialedSocket {
    fn from(tcp: TcpStream) -> Self {
        Self(SocketKind::Tcp(tcp))
    }
}

impl fmt::Debug for DialedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            SocketKind::Tcp(tcp) => tcp.fmt(f),
            SocketKind::Given(_) => f.write_str("Given"),
        }
    }
}

impl Connection for DialedSocket {
    fn connected(&self) -> Connected {
        match &self.0 {
            SocketKind::Tcp(tcp) => tcp.connected(),
            SocketKind::Given(_) => Connected::new(),
        }
    }
}

impl AsyncRead for DialedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            SocketKind::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            SocketKind::Given(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for DialedSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            SocketKind::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            SocketKind::Given(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            SocketKind::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            SocketKind::Given(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            SocketKind::Tcp(tcp) => tcp.is_write_vectored(),
            SocketKind::Given(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            SocketKind::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            SocketKind::Given(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            SocketKind::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            SocketKind::Given(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
