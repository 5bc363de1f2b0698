//! A stream into the cluster.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use kubevpn_target::{Connect, Stream, Via};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::cluster::TargetDialer;

/// A byte stream to a Pod, or to the API server itself.
///
/// The stream can be half-closed: `shutdown` ends the writing direction, and the answer can be read to its end. An end of stream
/// was sent by the server; a stream that was cut ends with an error. Dropping it closes the connection. Writes are not
/// buffered: use a `BufWriter` for small ones.
pub struct ClusterStream(<TargetDialer as Connect>::Stream);

impl ClusterStream {
    pub(crate) fn new(stream: <TargetDialer as Connect>::Stream) -> Self {
        Self(stream)
    }

    /// Namespace, Pod and port of the stream, and its transport, for logs.
    pub fn via(&self) -> Via {
        self.0.via()
    }
}

impl fmt::Debug for ClusterStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterStream")
            .field("via", &self.via())
            .finish_non_exhaustive()
    }
}

impl AsyncRead for ClusterStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClusterStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

impl Stream for ClusterStream {
    fn via(&self) -> Via {
        self.0.via()
    }

    fn no_reader(&mut self) {
        self.0.no_reader();
    }
}

/// For the pool of hyper's client.
impl Connection for ClusterStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
