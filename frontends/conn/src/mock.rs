//! A stream under a test's control: its reads, writes, back pressure and errors.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use kubevpn_target::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{ClientIo, Drain};

/// The stream; the other end is the [`MockControl`].
pub(crate) struct Mock(Arc<Mutex<MockState>>);

#[derive(Clone)]
pub(crate) struct MockControl(Arc<Mutex<MockState>>);

#[derive(Default)]
struct MockState {
    to_read: VecDeque<io::Result<Vec<u8>>>,
    written: Vec<u8>,
    write_sizes: Vec<usize>,
    /// How many more bytes it accepts; `None` for any number.
    room: Option<usize>,
    writes_held: usize,
    write_error: Option<io::ErrorKind>,
    hold_flush: bool,
    flushed: usize,
    hold_shutdown: bool,
    shutdown_error: Option<io::ErrorKind>,
    shutdown_asked: bool,
    broken: Option<io::ErrorKind>,
    asked_whether_broken: usize,
    closed: Option<bool>,
    reset: bool,
    dropped: bool,
    released: bool,
    no_reader: bool,
    shutdown_asked_for_a_reader: bool,
    drain: Drain,
    wakers: Vec<Waker>,
}

pub(crate) fn mock() -> (Mock, MockControl) {
    let state = Arc::new(Mutex::new(MockState::default()));
    (Mock(Arc::clone(&state)), MockControl(state))
}

impl MockControl {
    fn change(&self, change: impl FnOnce(&mut MockState)) {
        let mut state = self.0.lock().unwrap();
        change(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Queues bytes for reading; empty for end of file.
    pub(crate) fn give(&self, bytes: impl Into<Vec<u8>>) {
        self.change(|s| s.to_read.push_back(Ok(bytes.into())));
    }

    pub(crate) fn end(&self) {
        self.give([]);
    }

    pub(crate) fn fail_read(&self, kind: io::ErrorKind) {
        self.change(|s| s.to_read.push_back(Err(kind.into())));
    }

    pub(crate) fn room(&self, bytes: usize) {
        self.change(|s| s.room = Some(bytes));
    }

    pub(crate) fn fail_write(&self, kind: io::ErrorKind) {
        self.change(|s| s.write_error = Some(kind));
    }

    pub(crate) fn hold_flush(&self, hold: bool) {
        self.change(|s| s.hold_flush = hold);
    }

    pub(crate) fn hold_shutdown(&self, hold: bool) {
        self.change(|s| s.hold_shutdown = hold);
    }

    pub(crate) fn fail_shutdown(&self, kind: io::ErrorKind) {
        self.change(|s| s.shutdown_error = Some(kind));
    }

    /// Breaks the stream so that only `broken` reports it.
    pub(crate) fn break_quietly(&self, kind: io::ErrorKind) {
        self.0.lock().unwrap().broken = Some(kind);
    }

    /// Sets the answer of `closed`.
    pub(crate) fn close(&self, closed: bool) {
        self.0.lock().unwrap().closed = Some(closed);
    }

    pub(crate) fn drain(&self) -> Drain {
        self.state().drain.clone()
    }

    fn state(&self) -> MutexGuard<'_, MockState> {
        self.0.lock().unwrap()
    }

    pub(crate) fn written(&self) -> Vec<u8> {
        self.state().written.clone()
    }

    pub(crate) fn write_sizes(&self) -> Vec<usize> {
        self.state().write_sizes.clone()
    }

    /// Number of writes that found no room.
    pub(crate) fn writes_held(&self) -> usize {
        self.state().writes_held
    }

    /// Number of flushed bytes.
    pub(crate) fn flushed(&self) -> usize {
        self.state().flushed
    }

    pub(crate) fn shutdown_asked(&self) -> bool {
        self.state().shutdown_asked
    }

    pub(crate) fn asked_whether_broken(&self) -> usize {
        self.state().asked_whether_broken
    }

    pub(crate) fn all_read(&self) -> bool {
        self.state().to_read.is_empty()
    }

    pub(crate) fn was_reset(&self) -> bool {
        self.state().reset
    }

    pub(crate) fn was_released(&self) -> bool {
        self.state().released
    }

    pub(crate) fn has_no_reader(&self) -> bool {
        self.state().no_reader
    }

    /// Whether a shutdown was asked before it was said that nobody reads.
    pub(crate) fn shutdown_asked_for_a_reader(&self) -> bool {
        self.state().shutdown_asked_for_a_reader
    }

    pub(crate) fn dropped(&self) -> bool {
        self.state().dropped
    }
}

fn wait<T>(state: &mut MockState, cx: &Context<'_>) -> Poll<T> {
    state.wakers.push(cx.waker().clone());
    Poll::Pending
}

impl AsyncRead for Mock {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.lock().unwrap();
        match state.to_read.pop_front() {
            None => wait(&mut state, cx),
            Some(Err(error)) => Poll::Ready(Err(error)),
            Some(Ok(bytes)) => {
                let n = bytes.len().min(buf.remaining());
                buf.put_slice(&bytes[..n]);
                if n < bytes.len() {
                    state.to_read.push_front(Ok(bytes[n..].to_vec()));
                } else if bytes.is_empty() {
                    // An end of file stays.
                    state.to_read.push_front(Ok(Vec::new()));
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Mock {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock().unwrap();
        if let Some(kind) = state.write_error {
            return Poll::Ready(Err(kind.into()));
        }
        assert!(!state.shutdown_asked, "a write after the shutdown");
        let n = buf.len().min(state.room.unwrap_or(usize::MAX));
        if n == 0 {
            state.writes_held += 1;
            return wait(&mut state, cx);
        }
        state.room = state.room.map(|room| room - n);
        state.written.extend_from_slice(&buf[..n]);
        state.write_sizes.push(n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock().unwrap();
        if state.hold_flush {
            return wait(&mut state, cx);
        }
        state.flushed = state.written.len();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock().unwrap();
        state.shutdown_asked = true;
        state.shutdown_asked_for_a_reader |= !state.no_reader;
        if let Some(kind) = state.shutdown_error {
            return Poll::Ready(Err(kind.into()));
        }
        if state.hold_shutdown {
            return wait(&mut state, cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl ClientIo for Mock {
    fn broken(&self) -> Option<io::Error> {
        let mut state = self.0.lock().unwrap();
        state.asked_whether_broken += 1;
        state.broken.take().map(Into::into)
    }

    fn closed(&self) -> Option<bool> {
        self.0.lock().unwrap().closed
    }

    fn reset_on_drop(&mut self) {
        self.0.lock().unwrap().reset = true;
    }

    fn close_on_drop(&mut self) {
        self.0.lock().unwrap().reset = false;
    }

    fn drain(&self) -> Drain {
        self.0.lock().unwrap().drain.clone()
    }

    fn release(&mut self) {
        self.0.lock().unwrap().released = true;
    }
}

impl Stream for Mock {
    fn no_reader(&mut self) {
        self.0.lock().unwrap().no_reader = true;
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.0.lock().unwrap().dropped = true;
    }
}

/// Lets all other tasks run until none is ready. Needs a paused clock, which does not advance while a task
/// is ready.
pub(crate) async fn settle() {
    tokio::time::sleep(std::time::Duration::from_nanos(1)).await;
}
