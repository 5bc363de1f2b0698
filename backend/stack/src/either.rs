//! One stream type for two ways to open one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use kubevpn_target::{Stream, Via};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that was opened one way or the other.
#[derive(Debug)]
pub enum Either<A, B> {
    /// The first type.
    A(A),
    /// The second type.
    B(B),
}

/// Calls the method on the contained stream.
macro_rules! either {
    ($either:expr, $stream:ident => $call:expr) => {
        match $either {
            Either::A($stream) => $call,
            Either::B($stream) => $call,
        }
    };
}

impl<A: Stream, B: Stream> Stream for Either<A, B> {
    fn via(&self) -> Via {
        either!(self, s => s.via())
    }

    fn no_reader(&mut self) {
        either!(self, s => s.no_reader());
    }
}

impl<A: AsyncRead + Unpin, B: AsyncRead + Unpin> AsyncRead for Either<A, B> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(&mut *self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl<A: AsyncWrite + Unpin, B: AsyncWrite + Unpin> AsyncWrite for Either<A, B> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(&mut *self, s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(&mut *self, s => Pin::new(s).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        either!(self, s => s.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut *self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut *self, s => Pin::new(s).poll_shutdown(cx))
    }
}
