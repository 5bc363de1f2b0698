//! The handle of a stream.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
};

use crate::{
    error::StreamError,
    frame::{Headers, ResetStatus, StreamId},
    session::{EndTiming, ReadOutcome},
    shared::{LockedSession, SessionOwner, register},
};

/// One stream of a session: bytes both ways, each direction with its own end.
///
/// * Reading returns what the peer sent, then end of file at the peer's FLAG_FIN. After a reset by the
///   peer, or when the session dies, data that had arrived can still be read, then the error follows.
/// * Writing copies into the session's queue and waits only while that is full; `flush` does nothing.
///   `shutdown` queues FLAG_FIN with the last data, or on an empty DATA frame, and does not wait until it
///   is sent; reading continues.
/// * Dropping the stream sends RST_STREAM(CANCEL), unless both directions have ended. If this side has not
///   ended, it is sent at once and queued data is dropped; otherwise it is sent after the queued data.
///
/// Errors are [`io::Error`]s around a [`StreamError`].
pub struct SpdyStream {
    id: StreamId,
    owner: Arc<SessionOwner>,
}

impl SpdyStream {
    pub(crate) fn new(id: StreamId, owner: Arc<SessionOwner>) -> Self {
        Self { id, owner }
    }

    pub(crate) fn accept(&self, headers: &Headers, fin: bool) {
        self.owner
            .0
            .with(|state| state.machine.accept(self.id, headers, fin));
    }

    /// The stream's number in its session.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// Waits for the peer's SYN_REPLY; on the accepting side there is nothing to wait for.
    /// Cancel safe; later calls return the same headers.
    pub async fn replied(&mut self) -> Result<Headers, StreamError> {
        std::future::poll_fn(|cx| self.poll_replied(cx)).await
    }

    /// As [`replied`](Self::replied). Shares its waker with reading.
    pub fn poll_replied(&mut self, cx: &mut Context<'_>) -> Poll<Result<Headers, StreamError>> {
        let mut state = self.owner.0.lock();
        if let Some(headers) = state.machine.reply(self.id)? {
            return Poll::Ready(Ok(headers.clone()));
        }
        if let Some(slot) = state.slots.get_mut(&self.id) {
            register(&mut slot.reader, cx);
        }
        Poll::Pending
    }

    /// The next received bytes without a copy; empty at end of file. Cancel safe.
    pub async fn chunk(&mut self) -> io::Result<Bytes> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// As [`chunk`](Self::chunk).
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let coop = ready!(coop::poll_proceed(cx));
        let chunk = ready!(self.poll_next(cx, usize::MAX));
        coop.made_progress();
        Poll::Ready(chunk)
    }

    /// Ready when a read would not wait: bytes, end of file or an error are available. Reads nothing.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.owner.0.lock();
        if state.machine.is_readable(self.id) {
            return Poll::Ready(());
        }
        if let Some(slot) = state.slots.get_mut(&self.id) {
            register(&mut slot.reader, cx);
        }
        Poll::Pending
    }

    /// Ready when a read would not wait, with whether it would return end of file. Reads nothing: what has arrived stays
    /// counted in [`Stats::buffered`](crate::Stats::buffered). Errors as a read.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut state = self.owner.0.lock();
        if let Some(is_end) = state.machine.at_end(self.id)? {
            return Poll::Ready(Ok(is_end));
        }
        if let Some(slot) = state.slots.get_mut(&self.id) {
            register(&mut slot.reader, cx);
        }
        Poll::Pending
    }

    /// Whether a read would not wait. Registers no waker.
    pub fn is_readable(&self) -> bool {
        self.owner.0.lock().machine.is_readable(self.id)
    }

    /// Queues as much of `data` as fits without waiting, and returns how much.
    pub fn try_write(&mut self, data: &[u8]) -> io::Result<usize> {
        let sent = self.owner.0.with(|state| state.machine.send(self.id, data));
        Ok(sent?)
    }

    /// Sends FLAG_FIN, as `shutdown` does, without being asynchronous.
    pub fn finish(&mut self) -> io::Result<()> {
        self.end(EndTiming::Now)
    }

    /// As [`finish`](Self::finish), but delayed: FLAG_FIN is sent with the next frames of the session, of any stream, or
    /// after 10 ms.
    pub fn finish_soon(&mut self) -> io::Result<()> {
        self.end(EndTiming::Soon)
    }

    fn end(&mut self, when: EndTiming) -> io::Result<()> {
        let end = |state: &mut LockedSession| state.machine.finish_when(self.id, when);
        Ok(self.owner.0.with(end)?)
    }

    /// Sends RST_STREAM and forgets the stream; what is queued or unread is dropped.
    pub fn reset(self, status: ResetStatus) {
        self.owner
            .0
            .with(|state| state.machine.reset(self.id, status));
    }

    /// Payload bytes that have arrived so far, read or not.
    pub fn received(&self) -> u64 {
        self.owner.0.lock().machine.counts(self.id).0
    }

    /// Payload bytes that were queued so far, sent or not.
    pub fn sent(&self) -> u64 {
        self.owner.0.lock().machine.counts(self.id).1
    }

    /// At most `most` bytes; the rest of a chunk stays counted.
    fn poll_next(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<Bytes>> {
        let read = self.owner.0.with(|state| {
            let read = state.machine.read(self.id, most);
            if let Ok(ReadOutcome::Wait) = read
                && let Some(slot) = state.slots.get_mut(&self.id)
            {
                register(&mut slot.reader, cx);
            }
            read
        });
        match read {
            Ok(ReadOutcome::Chunk(chunk)) => Poll::Ready(Ok(chunk)),
            Ok(ReadOutcome::End) => Poll::Ready(Ok(Bytes::new())),
            Ok(ReadOutcome::Wait) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Queues as much of `parts` as fits.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let coop = ready!(coop::poll_proceed(cx));
        let sent = self.owner.0.with(|state| {
            let mut sent = 0;
            for part in parts {
                let taken = state.machine.send(self.id, part)?;
                sent += taken;
                if taken < part.len() {
                    break;
                }
            }
            if sent == 0
                && let Some(slot) = state.slots.get_mut(&self.id)
            {
                register(&mut slot.writer, cx);
            }
            Ok::<_, StreamError>(sent)
        })?;
        if sent == 0 && parts.iter().any(|part| !part.is_empty()) {
            return Poll::Pending;
        }
        coop.made_progress();
        Poll::Ready(Ok(sent))
    }
}

impl AsyncRead for SpdyStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let coop = ready!(coop::poll_proceed(cx));
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            let chunk = match self.poll_next(cx, buf.remaining()) {
                Poll::Ready(Ok(chunk)) => chunk,
                // Available data is returned first; an error is kept for the next call.
                _ if buf.filled().len() > before => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            if chunk.is_empty() {
                break;
            }
            buf.put_slice(&chunk);
        }
        coop.made_progress();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SpdyStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The driver was woken already, so there is nothing to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}

impl Drop for SpdyStream {
    fn drop(&mut self) {
        let slot = self.owner.0.with(|state| state.release(self.id));
        // Wakes a writer that waits on another half of a split stream.
        if let Some(writer) = slot.and_then(|slot| slot.writer) {
            writer.wake();
        }
    }
}

impl fmt::Debug for SpdyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("id", &self.id).finish()
    }
}
