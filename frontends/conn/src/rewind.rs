//! A stream with bytes put back in front.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use kubevpn_target::{Stream, Via};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{ClientIo, Drain, Observed};

/// Reads some bytes first, then the stream. Writes go straight through.
///
/// For code that had to read ahead: a handshake that arrived together with the first payload, or a look at the
/// first byte to distinguish protocols.
///
/// ```
/// use kubevpn_conn::Rewind;
/// use tokio::io::AsyncReadExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let mut stream = Rewind::new(std::io::Cursor::new(b"world"), "hello ");
/// let mut all = String::new();
/// stream.read_to_string(&mut all).await?;
/// assert_eq!(all, "hello world");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Rewind<T> {
    front: Bytes,
    inner: T,
}

impl<T> Rewind<T> {
    /// Puts `front` before the data of `inner`. It may be empty, which costs nothing.
    pub fn new(inner: T, front: impl Into<Bytes>) -> Self {
        let front = front.into();
        Self {
            // An empty `Bytes` may keep the buffer into which it was read.
            front: if front.is_empty() {
                Bytes::new()
            } else {
                front
            },
            inner,
        }
    }

    /// The stream, and the unread part of the front.
    ///
    /// ```
    /// let (_stream, front) = kubevpn_conn::Rewind::new((), "unread").into_parts();
    /// assert_eq!(front, "unread");
    /// ```
    pub fn into_parts(self) -> (T, Bytes) {
        (self.inner, self.front)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewind<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.front.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let n = self.front.len().min(buf.remaining());
        // Split and not advanced: an empty `Bytes` would keep its memory until the end of the connection.
        buf.put_slice(&self.front.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Rewind<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<T: ClientIo> ClientIo for Rewind<T> {
    fn peer(&self) -> Option<SocketAddr> {
        self.inner.peer()
    }

    fn broken(&self) -> Option<io::Error> {
        self.inner.broken()
    }

    fn closed(&self) -> Option<bool> {
        self.inner.closed()
    }

    fn original_destination(&self) -> Option<SocketAddr> {
        self.inner.original_destination()
    }

    fn reset_on_drop(&mut self) {
        self.inner.reset_on_drop();
    }

    fn close_on_drop(&mut self) {
        self.inner.close_on_drop();
    }

    fn drain(&self) -> Drain {
        self.inner.drain()
    }

    fn release(&mut self) {
        self.inner.release();
    }

    fn authenticated(&mut self) {
        self.inner.authenticated();
    }

    fn observed(&self) -> Option<Observed> {
        self.inner.observed()
    }
}

impl<T: Stream> Stream for Rewind<T> {
    fn via(&self) -> Via {
        self.inner.via()
    }

    fn no_reader(&mut self) {
        self.inner.no_reader();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Buf as _;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn small_reads_get_every_byte_once_and_in_order() {
        let (mut other, end) = duplex(64);
        other.write_all(b"456789").await.unwrap();
        drop(other);
        let mut stream = Rewind::new(end, &b"0123"[..]);
        let mut all = Vec::new();
        let mut chunk = [0; 3];
        loop {
            match stream.read(&mut chunk).await.unwrap() {
                0 => break,
                n => all.extend_from_slice(&chunk[..n]),
            }
        }
        assert_eq!(all, b"0123456789");
    }

    #[tokio::test]
    async fn read_bytes_are_freed() {
        let front = Bytes::from(vec![b'x'; 8192]);
        let mut stream = Rewind::new(tokio::io::empty(), front.clone());
        let mut all = vec![0; 8192];
        stream.read_exact(&mut all[..100]).await.unwrap();
        assert!(!front.is_unique());
        stream.read_exact(&mut all[100..]).await.unwrap();
        assert!(front.is_unique());
        let mut none = front.clone();
        none.advance(8192);
        let stream = Rewind::new(stream, none);
        assert!(front.is_unique());
        drop(stream);
    }

    #[tokio::test]
    async fn writes_and_ends_pass_through_with_the_front_unread() {
        let (mut other, end) = duplex(64);
        let mut stream = Rewind::new(end, "front");
        stream.write_all(b"out").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut out = String::new();
        other.read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "out");
        assert_eq!(stream.into_parts().1, "front");
    }
}
