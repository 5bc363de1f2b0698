//! The client's stream while hyper speaks HTTP on it.
//!
//! hyper owns the stream it serves. This is a handle to it of which two exist: hyper reads and writes
//! through one; through the other we watch the client while hyper does not read, and keep hyper's own
//! bare answers to malformed heads from going out, so that ours can say why.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::StatusCode;
use kubevpn_conn::ClientIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::turn::Turn;

/// How much a client may send ahead of what hyper wants to read, so that its end or reset behind that is
/// noticed.
const AHEAD: usize = 4096;

pub(crate) struct Tap<C>(Arc<Mutex<State<C>>>);

struct State<C> {
    io: C,
    turn: Arc<Turn>,
    /// Read by [`Tap::poll_watch`] and not yet given to hyper.
    ahead: BytesMut,
    first: Option<u8>,
    ended: bool,
    /// hyper waits for the client to send something.
    reading: bool,
    /// hyper has nothing buffered.
    flushed: bool,
    /// So many requests were begun, and all of their answers are written: what hyper writes before the next
    /// one begins, it answers of its own.
    corked: Option<u64>,
    refused: Option<StatusCode>,
    given: u64,
    moved: u64,
}

impl<C: ClientIo> Tap<C> {
    /// Two handles to one stream.
    pub(crate) fn new(io: C, turn: Arc<Turn>) -> (Self, Self) {
        let tap = Self(Arc::new(Mutex::new(State {
            io,
            turn,
            ahead: BytesMut::new(),
            first: None,
            ended: false,
            reading: false,
            flushed: true,
            corked: Some(0),
            refused: None,
            given: 0,
            moved: 0,
        })));
        (Self(Arc::clone(&tap.0)), tap)
    }

    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before hyper is polled.
    pub(crate) fn arm(&self) {
        self.state().reading = false;
    }

    /// After hyper was polled: reads on where hyper does not. Ready with what broke the connection.
    pub(crate) fn poll_watch(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut state = self.state();
        let state = &mut *state;
        while !state.reading && !state.ended && state.ahead.len() < AHEAD {
            let mut chunk = [0; AHEAD];
            let mut chunk = ReadBuf::new(&mut chunk[..AHEAD - state.ahead.len()]);
            match ready!(Pin::new(&mut state.io).poll_read(cx, &mut chunk)) {
                Ok(()) if chunk.filled().is_empty() => state.ended = true,
                Ok(()) => state.ahead.extend_from_slice(chunk.filled()),
                Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Pending
    }

    /// Whether only asking tells of a broken connection: nobody waits for it to become readable.
    pub(crate) fn is_unwatched(&self) -> bool {
        let state = self.state();
        !state.reading && (state.ended || state.ahead.len() >= AHEAD)
    }

    pub(crate) fn broken(&self) -> Option<io::Error> {
        self.state().io.broken()
    }

    /// The client has sent its end of file.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().ended
    }

    /// The first byte the client sent.
    pub(crate) fn first(&self) -> Option<u8> {
        self.state().first
    }

    /// Bytes given to hyper.
    pub(crate) fn given(&self) -> u64 {
        self.state().given
    }

    /// Bytes read from and written to the client.
    pub(crate) fn moved(&self) -> u64 {
        self.state().moved
    }

    /// hyper has written all it had.
    pub(crate) fn is_flushed(&self) -> bool {
        self.state().flushed
    }

    /// Nothing of an answer has been written that is not complete.
    pub(crate) fn is_corked(&self) -> bool {
        self.state().is_corked()
    }

    /// The status hyper would have answered on its own, were it let.
    pub(crate) fn refused(&self) -> Option<StatusCode> {
        self.state().refused
    }

    pub(crate) fn reset_on_drop(&self) {
        self.state().io.reset_on_drop();
    }

    /// The stream, and what was read ahead. `None` while hyper has its handle.
    pub(crate) fn into_inner(self) -> Option<(C, BytesMut)> {
        let state = Arc::into_inner(self.0)?;
        let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        Some((state.io, state.ahead))
    }
}

impl<C: ClientIo> State<C> {
    fn is_corked(&self) -> bool {
        self.corked == Some(self.turn.requests())
    }

    /// Whether a write is hyper's own answer to a head it could not read; it goes nowhere.
    fn swallows(&mut self, start: &[u8]) -> bool {
        self.flushed = false;
        if !self.is_corked() {
            return false;
        }
        // "HTTP/1.1 400 Bad Request"
        let status = start.get(9..12);
        let status = status.and_then(|digits| StatusCode::from_bytes(digits).ok());
        self.refused = Some(status.unwrap_or(StatusCode::BAD_REQUEST));
        true
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = written {
            self.moved += n as u64;
        }
        written
    }
}

impl<C: ClientIo> AsyncRead for Tap<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state();
        let state = &mut *state;
        let before = buf.filled().len();
        if !state.ahead.is_empty() {
            let n = state.ahead.len().min(buf.remaining());
            buf.put_slice(&state.ahead[..n]);
            state.ahead.advance(n);
        } else if !state.ended {
            state.reading = true;
            ready!(Pin::new(&mut state.io).poll_read(cx, buf))?;
            state.reading = false;
        }
        let got = &buf.filled()[before..];
        state.first = state.first.or_else(|| got.first().copied());
        state.given += got.len() as u64;
        state.moved += got.len() as u64;
        Poll::Ready(Ok(()))
    }
}

impl<C: ClientIo> AsyncWrite for Tap<C> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        if state.swallows(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut state.io).poll_write(cx, buf);
        state.wrote(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        if state.swallows(bufs.first().map_or(&[], |buf| buf)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let written = Pin::new(&mut state.io).poll_write_vectored(cx, bufs);
        state.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.state().io.is_write_vectored()
    }

    /// hyper flushes when its own buffer is empty, and only then.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        ready!(Pin::new(&mut state.io).poll_flush(cx))?;
        state.flushed = true;
        state.corked = state.turn.answered_all();
        Poll::Ready(Ok(()))
    }

    /// Ending the stream is ours to do, when hyper is through.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
