//! Reads from a socket in large pieces for a reader that asks for small ones.
//!
//! rustls reads 4 KiB at a time however much is available, which is five system calls for one full record.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Size of a read under traffic.
const LARGE: usize = 64 * 1024;
/// A shorter read ends reading ahead.
const SMALL: usize = 4 * 1024;

/// Passes reads through until one of them is filled, and reads ahead from then on until a read is short. So only a
/// connection under traffic has a buffer.
#[derive(Debug)]
pub struct ReadAhead<T> {
    io: T,
    ahead: Option<ReadAheadBuffer>,
}

#[derive(Debug)]
struct ReadAheadBuffer {
    buffer: Box<[u8]>,
    /// The part of the buffer that was read from the socket and not yet taken.
    start: usize,
    end: usize,
}

impl<T> ReadAhead<T> {
    pub(crate) fn new(io: T) -> Self {
        Self { io, ahead: None }
    }

    /// The socket, for its options.
    pub fn get_ref(&self) -> &T {
        &self.io
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, ahead: kept } = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Some(ahead) = kept else {
            ready!(Pin::new(io).poll_read(cx, buf))?;
            if buf.remaining() == 0 {
                *kept = Some(ReadAheadBuffer {
                    buffer: vec![0; LARGE].into(),
                    start: 0,
                    end: 0,
                });
            }
            return Poll::Ready(Ok(()));
        };
        if ahead.start == ahead.end {
            let mut room = ReadBuf::new(&mut ahead.buffer);
            ready!(Pin::new(io).poll_read(cx, &mut room))?;
            (ahead.start, ahead.end) = (0, room.filled().len());
        }
        let len = buf.remaining().min(ahead.end - ahead.start);
        buf.put_slice(&ahead.buffer[ahead.start..ahead.start + len]);
        ahead.start += len;
        if ahead.start == ahead.end && ahead.end < SMALL {
            *kept = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl<T: Connection> Connection for ReadAhead<T> {
    fn connected(&self) -> Connected {
        self.io.connected()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn reads_ahead_while_much_comes_and_no_longer() {
        let (mut far, near) = duplex(1 << 20);
        let mut near = ReadAhead::new(near);
        let sent: Vec<u8> = (0..150_000_u32).map(|n| (n % 251) as u8).collect();
        far.write_all(b"few").await.unwrap();
        let mut piece = [0; SMALL];
        assert_eq!(near.read(&mut piece).await.unwrap(), 3);
        assert!(near.ahead.is_none(), "little came");
        far.write_all(&sent).await.unwrap();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let n = near.read(&mut piece).await.unwrap();
            got.extend_from_slice(&piece[..n]);
            assert!(near.ahead.is_some() || got.len() == sent.len());
        }
        assert!(got == sent, "in order, and all of it");
        far.write_all(b"few").await.unwrap();
        assert_eq!(near.read(&mut piece).await.unwrap(), 3);
        assert!(near.ahead.is_none(), "and its buffer is gone");
        drop(far);
        assert_eq!(near.read(&mut piece).await.unwrap(), 0);
    }
}
