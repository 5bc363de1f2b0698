//! The client's stream while hyper speaks HTTP on it.
//!
//! hyper owns the stream that it serves. There are two handles to it: hyper reads and writes through one; through the other
//! we watch the client while hyper does not read, and send what hyper cannot. hyper gets one message at a time, with its
//! head as a whole.

use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, take};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use kubevpn_conn::ClientIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::content::MissingContent;
use crate::exchange::{ExchangePhase, SharedExchange};
use crate::head::{HeadReader, NoHead};
use crate::problem::Problem;

/// Limit on data that is read ahead of hyper, so that the client's end or reset behind it is noticed.
const AHEAD: usize = 4096;

pub(crate) struct ClientStream<C>(Arc<Mutex<ClientState<C>>>);

struct ClientState<C> {
    io: C,
    exchange: Arc<SharedExchange>,
    /// Bytes read from the client and not yet passed to hyper.
    ahead: BytesMut,
    /// The part of it that is a complete head, or the rest of one.
    ready: usize,
    /// The missing part of the current request's body.
    content: MissingContent,
    head: HeadReader,
    /// Why there is no next request head.
    refused: Option<Problem>,
    /// Whether the client has sent its end of file.
    ended: bool,
    /// Whether hyper waits for data.
    reading: bool,
    /// Interim (1xx) answers that are being written.
    interim: BytesMut,
    /// Whether hyper's own answer to an invalid head was suppressed.
    swallowed: bool,
    /// Whether dropping the stream resets it.
    resets: bool,
}

impl<C: ClientIo> ClientStream<C> {
    /// Two handles to one stream. `ahead` was read before and begins with a head of length `ready`.
    pub(crate) fn new(
        io: C,
        (ahead, ready): (BytesMut, usize),
        exchange: Arc<SharedExchange>,
    ) -> (Self, Self) {
        let state = Arc::new(Mutex::new(ClientState {
            io,
            exchange,
            ahead,
            ready,
            content: MissingContent::NONE,
            head: HeadReader::default(),
            refused: None,
            ended: false,
            reading: false,
            interim: BytesMut::new(),
            swallowed: false,
            resets: false,
        }));
        (Self(Arc::clone(&state)), Self(state))
    }

    fn state(&self) -> MutexGuard<'_, ClientState<C>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Call before hyper is polled.
    pub(crate) fn arm(&self) {
        self.state().reading = false;
    }

    /// Call after hyper was polled: sets how a dropped stream ends, writes interim answers, and reads if hyper does not.
    /// Ready with the error that broke the connection.
    pub(crate) fn poll_watch(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut state = self.state();
        let state = &mut *state;
        if state.exchange.is_authenticated() {
            state.io.authenticated();
        }
        // An answer that is already complete, as most are, costs no system call.
        if state.exchange.is_half_said() != state.resets {
            state.resets = !state.resets;
            match state.resets {
                true => state.io.reset_on_drop(),
                false => state.io.close_on_drop(),
            }
        }
        if let Poll::Ready(Err(error)) = state.poll_interim(cx) {
            return Poll::Ready(error);
        }
        while !state.reading && !state.ended && state.ahead.len() < AHEAD {
            let mut chunk = [MaybeUninit::uninit(); AHEAD];
            let mut chunk = ReadBuf::uninit(&mut chunk[..AHEAD - state.ahead.len()]);
            match ready!(Pin::new(&mut state.io).poll_read(cx, &mut chunk)) {
                Ok(()) if chunk.filled().is_empty() => state.ended = true,
                Ok(()) => state.ahead.extend_from_slice(chunk.filled()),
                Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Pending
    }

    /// Whether a broken connection can only be found by asking, because no task waits for it to become readable.
    pub(crate) fn is_unwatched(&self) -> bool {
        let state = self.state();
        !state.reading && (state.ended || state.ahead.len() >= AHEAD)
    }

    /// The error that ended the connection, if it can be found without reading; also for a client that has closed its socket
    /// and not only its writing.
    pub(crate) fn broken(&self) -> Option<io::Error> {
        let state = self.state();
        let broken = state.io.broken();
        if broken.is_none() && state.ended && state.io.closed() == Some(true) {
            return Some(io::ErrorKind::ConnectionAborted.into());
        }
        broken
    }

    /// Whether the client has sent its end of file.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().ended
    }

    /// Takes the reason why there is no next head.
    pub(crate) fn take_refused(&self) -> Option<Problem> {
        self.state().refused.take()
    }

    /// Whether hyper's own answer to an invalid head was suppressed.
    pub(crate) fn has_swallowed(&self) -> bool {
        self.state().swallowed
    }

    /// The stream, set to end orderly, and the bytes read ahead. `None` while hyper has its handle.
    pub(crate) fn into_inner(self) -> Option<(C, BytesMut)> {
        let state = Arc::into_inner(self.0)?;
        let mut state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if state.resets {
            state.io.close_on_drop();
        }
        Some((state.io, state.ahead))
    }
}

impl<C: ClientIo> ClientState<C> {
    /// Interim answers are written before hyper's bytes.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.interim.is_empty() {
            self.interim = self.exchange.take_interim();
        }
        while !self.interim.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.interim))?;
            self.interim.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    /// hyper writes. Without a request, it writes its own bare answer to an invalid head, which is discarded in favour of
    /// ours.
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        len: usize,
        write: impl FnOnce(Pin<&mut C>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if matches!(self.exchange.phase(), ExchangePhase::Head { .. }) {
            self.swallowed = true;
            return Poll::Ready(Ok(len));
        }
        ready!(self.poll_interim(cx))?;
        let written = write(Pin::new(&mut self.io), cx);
        self.exchange.writing(written.is_ready());
        written
    }
}

impl<C: ClientIo> ClientState<C> {
    /// hyper reads the next head. A refused head is not passed to it.
    fn poll_head(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ready == 0 {
            if self.refused.is_some() {
                return Poll::Pending;
            }
            let before = self.ahead.len();
            let (io, ended, ahead) = (&mut self.io, &mut self.ended, &mut self.ahead);
            let read = self.head.poll(cx, io, ended, ahead);
            self.reading = read.is_pending();
            match self.ahead.len() {
                0 => {}
                n if n > before => self.exchange.received(),
                _ => self.exchange.head_begun(),
            }
            match ready!(read) {
                Ok(length) => self.ready = length,
                Err(NoHead::Gone(error)) => return Poll::Ready(Err(error)),
                Err(NoHead::Refused(problem)) => {
                    self.refused = Some(problem);
                    return Poll::Pending;
                }
                Err(NoHead::Unused) => {}
            }
        }
        let n = self.ready.min(buf.remaining());
        self.give(n, buf);
        self.ready -= n;
        Poll::Ready(Ok(()))
    }

    /// hyper reads a body.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if !self.ahead.is_empty() {
            let n = self.ahead.len().min(buf.remaining());
            let n = self.content.take(&self.ahead[..n]);
            self.give(n, buf);
        } else if !self.ended {
            self.reading = true;
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            self.reading = false;
            let taken = before + self.content.take(&buf.filled()[before..]);
            self.ahead.extend_from_slice(&buf.filled()[taken..]);
            buf.set_filled(taken);
        }
        if buf.filled().len() > before {
            self.exchange.received();
        }
        Poll::Ready(Ok(()))
    }

    fn give(&mut self, n: usize, buf: &mut ReadBuf<'_>) {
        // Split and not advanced, and never left empty: it would keep its memory until the end of the connection.
        match n == self.ahead.len() {
            true => buf.put_slice(&take(&mut self.ahead)),
            false => buf.put_slice(&self.ahead.split_to(n)),
        }
    }
}

impl<C: ClientIo> AsyncRead for ClientStream<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state();
        if let Some(content) = state.exchange.take_content() {
            state.content = content;
        }
        match state.content.is_over() {
            true => state.poll_head(cx, buf),
            false => state.poll_body(cx, buf),
        }
    }
}

impl<C: ClientIo> AsyncWrite for ClientStream<C> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        state.poll_write_with(cx, buf.len(), |io, cx| io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        let len = bufs.iter().map(|buf| buf.len()).sum();
        state.poll_write_with(cx, len, |io, cx| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.state().io.is_write_vectored()
    }

    /// hyper flushes only when its own buffer is empty.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        ready!(Pin::new(&mut state.io).poll_flush(cx))?;
        state.exchange.flushed();
        if !state.ahead.is_empty() {
            state.exchange.head_begun();
        }
        Poll::Ready(Ok(()))
    }

    /// We end the stream ourselves after hyper is done.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
