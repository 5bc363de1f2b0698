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
trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Io for T {}

type Dialing = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send>>;

/// Replaces the TCP connections to the API server, or to the proxy before it. Clones are the same dialer.
#[derive(Clone)]
pub struct Dialer(Arc<dyn Fn(Uri) -> Dialing + Send + Sync>);

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
            Box::pin(async move { Ok(Socket(Kind::Given(Box::new(dialing.await?)))) })
        }))
    }

    pub(crate) fn dial(&self, to: Uri) -> Dialing {
        (self.0)(to)
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

/// One connection below all protocols.
pub struct Socket(Kind);

enum Kind {
    Tcp(TcpStream),
    Given(Box<dyn Io>),
}

impl Socket {
    /// The TCP connection, for its options; `None` for a connection of a [`Dialer`].
    pub fn tcp(&self) -> Option<&TcpStream> {
        match &self.0 {
            Kind::Tcp(tcp) => Some(tcp),
            Kind::Given(_) => None,
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Self {
        Self(Kind::Tcp(tcp))
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Tcp(tcp) => tcp.fmt(f),
            Kind::Given(_) => f.write_str("Given"),
        }
    }
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        match &self.0 {
            Kind::Tcp(tcp) => tcp.connected(),
            Kind::Given(_) => Connected::new(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Kind::Given(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Kind::Given(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Kind::Given(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Kind::Tcp(tcp) => tcp.is_write_vectored(),
            Kind::Given(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Kind::Given(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Kind::Given(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
