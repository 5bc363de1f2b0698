//! The one task that owns the socket.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep},
};
use tokio_util::io::poll_read_buf;
use tracing::debug;

use crate::{
    Config,
    error::SessionError,
    frame::GoAwayStatus,
    handle::Session,
    incoming::Incoming,
    session::{Event, Outbox, Role},
    shared::{SessionOwner, SharedSession, Wakers, register},
};

/// Turns after which the driver yields to other tasks.
const TURNS: usize = 32;

/// The smallest and the largest buffer for one read.
const READ: std::ops::RangeInclusive<usize> = 4 * 1024..=64 * 1024;

/// Upper bound on delaying a lone FLAG_FIN queued by `finish_soon`, so that it can share a write with other frames. A write
/// of its own costs every program on the way a read and a write.
const ENDS: Duration = Duration::from_millis(10);

/// Limit on pieces of one vectored write.
const PIECES: usize = 32;

/// A session in the client's role over `io`, which has been upgraded to SPDY already. Streams that
/// the server opens are refused.
pub fn client<T: AsyncRead + AsyncWrite + Unpin>(io: T, config: Config) -> (Session, Driver<T>) {
    let (driver, owner) = Driver::new(io, Role::Client, config);
    (Session::new(owner), driver)
}

/// A session in the server's role over `io`, which has been upgraded to SPDY already.
pub fn server<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    config: Config,
) -> (Session, Incoming, Driver<T>) {
    let (driver, owner) = Driver::new(io, Role::Server, config);
    let incoming = Incoming::new(Arc::clone(&owner));
    (Session::new(owner), incoming, driver)
}

/// Moves the session's bytes; resolves when the session has ended, to why. Spawn it: nothing moves
/// otherwise. Dropping it ends the session and closes the connection.
#[must_use = "a session does nothing until its driver is spawned"]
pub struct Driver<T> {
    /// `None` once the session has ended.
    io: Option<T>,
    shared: Arc<SharedSession>,
    /// Received bytes of an incomplete frame. Holds no memory while nothing is received.
    input: BytesMut,
    /// Size of the next read; grows with the traffic.
    read_size: usize,
    outbox: Outbox,
    /// Whether something was written since the last flush.
    unflushed: bool,
    /// Runs while there are delayed ends.
    ends: Option<Pin<Box<Sleep>>>,
    events: Vec<Event>,
    wakers: Wakers,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    fn new(io: T, role: Role, config: Config) -> (Self, Arc<SessionOwner>) {
        let shared = SharedSession::new(role, config);
        let driver = Self {
            io: Some(io),
            shared: Arc::clone(&shared),
            input: BytesMut::new(),
            read_size: *READ.start(),
            outbox: Outbox::default(),
            unflushed: false,
            ends: None,
            events: Vec::new(),
            wakers: Wakers::new(),
        };
        (driver, Arc::new(SessionOwner(shared)))
    }

    /// Writes once and reads once. Returns whether there may be more of either.
    fn turn(&mut self, io: &mut T, cx: &mut Context<'_>) -> Result<bool, SessionError> {
        let read = self.look(cx)?;
        let wrote = self.write(io, cx)?;
        let received = read && self.read(io, cx)?;
        Ok(wrote || received)
    }

    /// Fills the outbox, and returns whether to read.
    fn look(&mut self, cx: &mut Context<'_>) -> Result<bool, SessionError> {
        let mut state = self.shared.lock();
        if let Some(error) = &state.ending {
            return Err(error.clone());
        }
        if self.outbox.is_empty() {
            let due = state.corks == 0
                && (state.machine.has_output()
                    || state.machine.has_ends()
                        && (state.orphaned || poll_ends(&mut self.ends, cx).is_ready()));
            if due {
                self.ends = None;
                state.machine.transmit(&mut self.outbox, &mut self.events);
                state.dispatch(&self.shared, &mut self.events, &mut self.wakers);
            }
            if self.outbox.is_empty() && !self.unflushed && !state.machine.has_output() {
                let over = state.machine.totals().live == 0;
                match state.machine.gone_away() {
                    Some(status) if over => return Err(SessionError::GoAway { status }),
                    _ if state.orphaned => return Err(SessionError::Closed),
                    _ => {}
                }
            }
        }
        let read = state.machine.wants_input();
        drop(state);
        self.wake();
        Ok(read)
    }

    /// Writes from the outbox once, and flushes when it is empty. Returns whether there was progress.
    fn write(&mut self, io: &mut T, cx: &mut Context<'_>) -> Result<bool, SessionError> {
        let mut got_on = false;
        if !self.outbox.is_empty() {
            let written = match self.write_outbox(Pin::new(io), cx) {
                Poll::Ready(Ok(0)) => return Err(failed(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(error)) => return Err(self.write_failed(io, error, cx)),
                Poll::Pending => 0,
            };
            let mut state = self.shared.lock();
            if written == 0 {
                state.send_blocked.get_or_insert_with(Instant::now);
                return Ok(false);
            }
            state.send_blocked = None;
            state.sent += written as u64;
            self.outbox.advance(written);
            self.unflushed = true;
            got_on = true;
        }
        if self.outbox.is_empty() && self.unflushed {
            match Pin::new(&mut *io).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.unflushed = false;
                    got_on = true;
                }
                Poll::Ready(Err(error)) => return Err(self.write_failed(io, error, cx)),
                Poll::Pending => {}
            }
        }
        Ok(got_on)
    }

    fn write_outbox(&mut self, io: Pin<&mut T>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if io.is_write_vectored() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let count = self.outbox.slices(&mut slices);
            io.poll_write_vectored(cx, &slices[..count])
        } else {
            io.poll_write(cx, self.outbox.front())
        }
    }

    /// A peer may have sent data before it closed: read all of it.
    fn write_failed(&mut self, io: &mut T, error: io::Error, cx: &mut Context<'_>) -> SessionError {
        while self.shared.lock().machine.wants_input() && self.read(io, cx).is_ok_and(|got| got) {}
        match self.shared.lock().machine.gone_away() {
            Some(status) => SessionError::GoAway { status },
            None => failed(error),
        }
    }

    /// Reads what is available, up to a limit. Returns whether there was progress.
    fn read(&mut self, io: &mut T, cx: &mut Context<'_>) -> Result<bool, SessionError> {
        let mut got = 0;
        // A TLS stream returns a record at a time. Handling several at once gives larger pieces of payload, which are
        // not copied, and fewer wake-ups.
        let mut broken = None;
        let mut closed = false;
        while got < *READ.end() {
            let space = self.input.capacity() - self.input.len();
            if space < self.read_size / 2 {
                self.input.reserve(self.read_size);
            }
            let space = self.input.capacity() - self.input.len();
            let len = match poll_read_buf(Pin::new(&mut *io), cx, &mut self.input) {
                Poll::Ready(Ok(0)) => {
                    closed = true;
                    break;
                }
                Poll::Ready(Ok(len)) => len,
                Poll::Ready(Err(error)) => {
                    broken = Some(failed(error));
                    break;
                }
                Poll::Pending => break,
            };
            got += len;
            if len == space {
                self.read_size = (self.read_size * 4).min(*READ.end());
            } else if len < self.read_size / 4 {
                self.read_size = (self.read_size / 2).max(*READ.start());
            }
        }
        if got > 0 {
            self.take_in(got)?;
        }
        match broken {
            Some(error) => Err(error),
            // The last bytes may contain the reason.
            None if closed => Err(self.peer_closed()),
            None => Ok(got > 0),
        }
    }

    /// Handles what was read.
    fn take_in(&mut self, len: usize) -> Result<(), SessionError> {
        let mut state = self.shared.lock();
        state.received += len as u64;
        state.last_received = Instant::now();
        let result = state.machine.receive(&mut self.input, &mut self.events);
        state.dispatch(&self.shared, &mut self.events, &mut self.wakers);
        drop(state);
        self.wake();
        result.map_err(SessionError::Protocol)
    }

    /// Frees the buffers of an idle session.
    fn settle_down(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        self.events.shrink_to(16);
        self.wakers.shrink_to(16);
    }

    fn wake(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }

    fn peer_closed(&self) -> SessionError {
        match self.shared.lock().machine.gone_away() {
            Some(status) => SessionError::GoAway { status },
            None => SessionError::PeerClosed,
        }
    }

    /// Sends GOAWAY after the queued data, as far as the socket accepts it without waiting, and closes the
    /// socket.
    fn hang_up(&mut self, mut io: T, error: &SessionError, cx: &mut Context<'_>) {
        let status = match error {
            SessionError::Closed => GoAwayStatus::OK,
            SessionError::Protocol(_) => GoAwayStatus::PROTOCOL_ERROR,
            _ => return,
        };
        let mut state = self.shared.lock();
        state.machine.go_away(status);
        state.machine.transmit_control(&mut self.outbox);
        drop(state);
        let mut io = pin!(&mut io);
        while !self.outbox.is_empty() {
            match io.as_mut().poll_write(cx, self.outbox.front()) {
                Poll::Ready(Ok(written)) if written > 0 => self.outbox.advance(written),
                _ => return,
            }
        }
        if let Poll::Ready(Ok(())) = io.as_mut().poll_flush(cx) {
            // The result does not matter: the socket is dropped next.
            let _ = io.as_mut().poll_shutdown(cx);
        }
    }
}

impl<T> Driver<T> {
    /// Reports the end of the session to all handles.
    fn end(&mut self, error: &SessionError) {
        debug!(%error, "session ended");
        let mut state = self.shared.lock();
        state.end(error, &mut self.wakers);
        drop(state);
        // Only GOAWAY may have set these before.
        let _ = self.shared.closing.set(());
        let _ = self.shared.closed.set(error.clone());
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = SessionError;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(mut io) = this.io.take() else {
            let closed = this.shared.closed.get();
            return Poll::Ready(closed.cloned().unwrap_or(SessionError::DriverGone));
        };
        register(&mut this.shared.lock().driver, cx);
        for _ in 0..TURNS {
            match this.turn(&mut io, cx) {
                Ok(true) => {}
                Ok(false) => {
                    this.settle_down();
                    this.io = Some(io);
                    return Poll::Pending;
                }
                Err(error) => {
                    this.hang_up(io, &error, cx);
                    this.end(&error);
                    return Poll::Ready(error);
                }
            }
        }
        this.io = Some(io);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        // The socket is closed before the end is reported.
        self.io = None;
        if !self.shared.closed.initialized() {
            self.end(&SessionError::DriverGone);
        }
    }
}

impl<T> fmt::Debug for Driver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Driver")
    }
}

/// Ready when the delay of ends is over.
fn poll_ends(timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep(ENDS)));
    timer.as_mut().poll(cx)
}

fn failed(error: io::Error) -> SessionError {
    SessionError::Io(Arc::new(error))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::frame::Headers;

    /// Polls a driver until it has nothing to do.
    async fn idle<T: AsyncRead + AsyncWrite + Unpin>(driver: &mut Driver<T>) {
        let once = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *driver).poll(cx)));
        assert!(once.await.is_pending());
    }

    #[tokio::test]
    async fn an_idle_session_holds_no_buffers() {
        let (near, far) = duplex(1 << 20);
        let (session, mut near_driver) = client(near, Config::default());
        let (_server, mut incoming, mut far_driver) = server(far, Config::default());
        let mut near = session.open(&Headers::new(), false).unwrap();
        idle(&mut near_driver).await;
        idle(&mut far_driver).await;
        let request = incoming.next().await.unwrap();
        let mut far = request.accept(&Headers::new(), false);
        for _ in 0..8 {
            near.write_all(&[1; 64 * 1024]).await.unwrap();
            near.flush().await.unwrap();
            idle(&mut near_driver).await;
            idle(&mut far_driver).await;
            far.read_exact(&mut [0; 64 * 1024]).await.unwrap();
        }
        assert!(
            far_driver.read_size > *READ.start(),
            "grown with the traffic"
        );
        for driver in [&mut near_driver, &mut far_driver] {
            idle(driver).await;
            assert_eq!(driver.input.capacity(), 0);
            assert!(driver.outbox.is_empty());
            assert!(driver.events.capacity() <= 16 && driver.wakers.capacity() <= 16);
        }
        // The driver itself, with its socket left out.
        assert!(size_of_val(&near_driver) - size_of::<tokio::io::DuplexStream>() < 512);
    }
}
