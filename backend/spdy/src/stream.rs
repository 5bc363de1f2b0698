//! The handle of a stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    error::StreamError,
    frame::{Headers, ResetStatus, StreamId},
};

/// One stream of a session: bytes both ways, each direction with its own end.
///
/// * Reading gives what the peer sent, then end of file at the peer's FLAG_FIN. After a reset, or
///   when the session dies, what had arrived can still be read, then comes the error.
/// * Writing copies into the session's queue and waits only when that is full; `flush` has nothing
///   to do. `shutdown` sends FLAG_FIN on the last data, or on an empty DATA frame, and does not wait
///   for it to leave; reading goes on.
/// * Dropping it sends RST_STREAM(CANCEL), unless both directions have ended.
///
/// Errors are [`io::Error`]s around a [`StreamError`].
#[derive(Debug)]
pub struct Stream {
    _todo: (),
}

impl Stream {
    /// The stream's number in its session.
    pub fn id(&self) -> StreamId {
        unimplemented!()
    }

    /// Waits for the peer's SYN_REPLY; on the accepting side there is nothing to wait for.
    /// Cancel safe; later calls return the same headers.
    pub async fn replied(&mut self) -> Result<Headers, StreamError> {
        std::future::poll_fn(|cx| self.poll_replied(cx)).await
    }

    /// As [`replied`](Self::replied). Shares its waker with reading.
    pub fn poll_replied(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Headers, StreamError>> {
        unimplemented!()
    }

    /// The next received bytes, as they came, without a copy; empty at end of file. Cancel safe.
    pub async fn chunk(&mut self) -> io::Result<Bytes> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// As [`chunk`](Self::chunk).
    pub fn poll_chunk(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        unimplemented!()
    }

    /// Ready when a read would not wait: bytes, end of file or an error are there. Takes nothing.
    pub fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        unimplemented!()
    }

    /// Queues as much of `data` as fits without waiting, and says how much that was.
    pub fn try_write(&mut self, _data: &[u8]) -> io::Result<usize> {
        unimplemented!()
    }

    /// Sends FLAG_FIN, as `shutdown` does, from where nothing can be awaited.
    pub fn finish(&mut self) -> io::Result<()> {
        unimplemented!()
    }

    /// Sends RST_STREAM and forgets the stream; what is queued or unread is dropped.
    pub fn reset(self, _status: ResetStatus) {
        unimplemented!()
    }

    /// Payload bytes that have arrived so far, read or not.
    pub fn received(&self) -> u64 {
        unimplemented!()
    }

    /// Payload bytes that were queued so far, sent or not.
    pub fn sent(&self) -> u64 {
        unimplemented!()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        unimplemented!()
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        unimplemented!()
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }
}
