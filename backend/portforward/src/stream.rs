//! An open connection to a Pod's port.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use kubevpn_target::{Stream, Via};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A byte stream to a port of a Pod. Dropping it frees everything behind it at once.
#[derive(Debug)]
pub struct PodStream {
    via: Via,
}

impl Stream for PodStream {
    fn via(&self) -> Via {
        self.via.clone()
    }
}

impl AsyncRead for PodStream {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PodStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
