//! A stream that holds something for as long as it lives.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use kubevpn_target::{Stream, Via};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream with a guard that is dropped with it: a permit, a count. tower's own concurrency limit gives its
/// permit back when the call answers, which for a connection is when it begins.
///
/// ```
/// use kubevpn_stack::Held;
/// let (stream, _other_end) = tokio::io::duplex(64);
/// let permit = std::sync::Arc::new(());
/// let held = Held::new(stream, permit.clone());
/// assert_eq!(std::sync::Arc::strong_count(&permit), 2);
/// drop(held);
/// assert_eq!(std::sync::Arc::strong_count(&permit), 1);
/// ```
#[derive(Debug)]
pub struct Held<S, G> {
    stream: S,
    _guard: G,
}

impl<S, G> Held<S, G> {
    /// Keeps `guard` until the stream is dropped.
    pub fn new(stream: S, guard: G) -> Self {
        Self {
            stream,
            _guard: guard,
        }
    }
}

impl<S: Stream, G: Send + Unpin + 'static> Stream for Held<S, G> {
    fn via(&self) -> Via {
        self.stream.via()
    }

    fn no_reader(&mut self) {
        self.stream.no_reader();
    }
}

impl<S: AsyncRead + Unpin, G: Unpin> AsyncRead for Held<S, G> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin, G: Unpin> AsyncWrite for Held<S, G> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
