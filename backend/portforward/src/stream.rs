//! An open connection to a Pod's port, and the rules of its end.
//!
//! ```text
//!            client ends                     linger over, Pod ended, or cut
//!   Open ──────────────────▶ Lingering ─────────────────────────────────────▶ Finishing ──▶ Finished
//!    └────────────── the Pod had ended first ────────────────────────────────────▲
//! ```
//!
//! The container runtime takes the end of either direction for the end of both, 1 s later. So the client's end is held
//! back until the Pod has been silent for [`Config::linger`]. The Pod's end is passed on once the error stream has ended
//! too, because its text says whether the end was orderly.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use kubevpn_target::{Stream, Via};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::config::{Config, Transport};
use crate::error::ConnectionFailure;
use crate::pair::Pair;
use crate::pod::PodPort;
use crate::pool::Lease;
use crate::transport::WebSocketChannel;

/// A byte stream to a port of a Pod.
///
/// * Reading returns what the Pod sends, then its end, or an error with the text of the Pod's node. The error is
///   [`io::ErrorKind::UnexpectedEof`] if the client's end was passed on first and may have caused the Pod's: the
///   answer may be incomplete.
/// * Writing fails once the Pod has ended: the data would not arrive.
/// * Shutting down waits until the Pod has been silent for [`Config::linger`], or has ended; reading goes on
///   meanwhile, on this task or another.
/// * Dropping the stream resets the connection and releases its place on the session at once.
pub struct PodStream {
    // Dropped before the lease: the pool counts the connection until its streams are gone.
    carrier: Carrier,
    lease: Lease,
    read: ReadState,
    write: Write,
    config: Arc<Config>,
    via: Via,
}

/// The streams that carry a connection.
pub(crate) enum Carrier {
    Pair(Pair),
    Channel(Box<WebSocketChannel>),
}

enum ReadState {
    Open,
    /// The data has ended, perhaps with an error; the error stream's text may still arrive.
    LastWords(Pin<Box<Sleep>>, Option<ConnectionFailure>),
    Ended,
    Failed(ConnectionFailure),
}

enum Write {
    Open,
    Lingering(Pin<Box<Sleep>>),
    Finishing,
    Finished,
}

impl PodStream {
    pub(crate) fn new(
        carrier: Carrier,
        lease: Lease,
        to: &PodPort,
        transport: Transport,
        config: Arc<Config>,
    ) -> Self {
        Self {
            carrier,
            lease,
            read: ReadState::Open,
            write: Write::Open,
            config,
            via: Via {
                to: to.to_string(),
                transport: transport.as_str(),
            },
        }
    }

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Option<ConnectionFailure>> {
        let connection = self.lease.connection();
        connection.reader().register(cx.waker());
        if let Some(reason) = connection.failed() {
            return Poll::Ready(Some(aborted(reason)));
        }
        let before = buf.filled().len();
        match self.carrier.poll_data(cx, buf) {
            Poll::Pending => {
                connection.quiet();
                Poll::Pending
            }
            Poll::Ready(Ok(())) => {
                let n = buf.filled().len() - before;
                if n > 0 {
                    self.lease.heard(n);
                }
                Poll::Ready(None)
            }
            Poll::Ready(Err(error)) => Poll::Ready(Some(ConnectionFailure::from(error))),
        }
    }

    /// The Pod has ended: for the reason that its node gave, else for this one.
    fn settle(&mut self, failure: Option<ConnectionFailure>) {
        let told = self.carrier.text().failure();
        let failed = told.is_some();
        let failure = match self.lease.connection().failed() {
            Some(reason) => Some(aborted(reason)),
            None => match &self.carrier {
                // A channel that no longer answers after its close has ended by the close.
                Carrier::Channel(_) => told.or_else(|| self.cut_short()).or(failure),
                Carrier::Pair(_) => told.or(failure).or_else(|| self.cut_short()),
            },
        };
        self.carrier.over();
        self.lease.pod_ended(failed);
        self.read = match failure {
            Some(failure) => {
                tracing::debug!(via = %self.via, error = %failure, "connection failed");
                ReadState::Failed(failure)
            }
            None => ReadState::Ended,
        };
    }

    /// The failure for a Pod's end that the client's own end may have caused: more of the answer may have been due, and
    /// the client must not take what it has for the whole.
    fn cut_short(&self) -> Option<ConnectionFailure> {
        let said = "the pod was silent too long after the client had ended its side, and was told of that end";
        self.lease.ended_by_the_clock().then(|| ConnectionFailure {
            kind: io::ErrorKind::UnexpectedEof,
            said: said.into(),
        })
    }

    /// Notes when the forward's end comes, however late a slow client reads up to it.
    fn watch_end(&mut self) {
        // After that the reader itself waits for the error stream, which wakes one task.
        if !matches!(self.read, ReadState::Open) {
            return;
        }
        let waker = self.lease.end_waker();
        if self
            .carrier
            .poll_over(&mut Context::from_waker(&waker))
            .is_ready()
        {
            self.lease.connection().forward_ended();
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        let connection = self.lease.connection();
        match (&self.write, &self.read) {
            (Write::Open, ReadState::Open) => {}
            (Write::Open, ReadState::Failed(failure)) => return Err(failure.clone().into()),
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        if let Some(reason) = connection.failed() {
            return Err(aborted(reason).into());
        }
        if self.lease.is_wedged() {
            return Err(aborted(
                "the connection's session to the pod no longer carries what is sent",
            )
            .into());
        }
        Ok(())
    }

    /// Ready when the client's end has to be passed on.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let lease = &self.lease;
        let connection = lease.connection();
        connection.ender().register(cx.waker());
        let Write::Lingering(timer) = &mut self.write else {
            return Poll::Ready(());
        };
        if !matches!(self.read, ReadState::Open)
            || connection.is_cut()
            || connection.failed().is_some()
        {
            return Poll::Ready(());
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            // While there is something to read, the Pod is not silent.
            let now = Instant::now();
            let until = lease.quiet_since().unwrap_or(now) + self.config.linger;
            if until <= now {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }
}

fn aborted(reason: &str) -> ConnectionFailure {
    ConnectionFailure {
        kind: io::ErrorKind::ConnectionAborted,
        said: reason.into(),
    }
}

impl Stream for PodStream {
    fn via(&self) -> Via {
        self.via.clone()
    }

    fn no_reader(&mut self) {
        self.lease.no_reader();
    }
}

impl fmt::Debug for PodStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodStream")
            .field("via", &self.via)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for PodStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match &mut this.read {
                ReadState::Open => {
                    let before = buf.filled().len();
                    let failure = ready!(this.poll_data(cx, buf));
                    if buf.filled().len() > before {
                        return Poll::Ready(Ok(()));
                    }
                    let patience = sleep(this.config.last_words);
                    this.read = ReadState::LastWords(Box::pin(patience), failure);
                }
                ReadState::LastWords(timer, failure) => {
                    if this.carrier.poll_text(cx).is_pending() {
                        ready!(timer.as_mut().poll(cx));
                    }
                    let failure = failure.take();
                    this.settle(failure);
                }
                ReadState::Ended => return Poll::Ready(Ok(())),
                ReadState::Failed(failure) => return Poll::Ready(Err(failure.clone().into())),
            }
        }
    }
}

impl AsyncWrite for PodStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_writable()?;
        let n = ready!(this.carrier.poll_write(cx, buf))?;
        this.lease.connection().wrote(n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().carrier.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &this.write {
                Write::Open => {
                    this.lease.client_ended();
                    // Data written before is not held back.
                    if let Poll::Ready(Err(error)) = this.carrier.poll_flush(cx) {
                        tracing::trace!(via = %this.via, %error, "not flushed");
                    }
                    this.write = Write::Lingering(Box::pin(sleep(this.config.linger)));
                }
                Write::Lingering(_) => {
                    ready!(this.poll_linger(cx));
                    this.write = Write::Finishing;
                }
                Write::Finishing => {
                    // If the end cannot be sent, the peer is gone.
                    if let Err(error) = ready!(this.carrier.poll_finish(cx)) {
                        tracing::trace!(via = %this.via, %error, "already ended");
                    }
                    this.lease.connection().passed_on();
                    this.watch_end();
                    this.write = Write::Finished;
                }
                Write::Finished => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Carrier {
    fn poll_data(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Pair(pair) => pair.poll_data(cx, buf),
            Self::Channel(channel) => channel.poll_data(cx, buf),
        }
    }

    fn over(&mut self) {
        match self {
            Self::Pair(pair) => pair.over(),
            // The connection has ended.
            Self::Channel(_) => {}
        }
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Pair(pair) => pair.poll_over(cx),
            // Its end is the client's, whenever it comes.
            Self::Channel(_) => Poll::Pending,
        }
    }

    fn poll_text(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Pair(pair) => pair.poll_text(cx),
            // The data of a channel ends with its connection, which ends both channels.
            Self::Channel(_) => Poll::Ready(()),
        }
    }

    fn text(&self) -> &crate::error::ErrorText {
        match self {
            Self::Pair(pair) => pair.text(),
            Self::Channel(channel) => channel.text(),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Pair(pair) => pair.poll_write(cx, buf),
            Self::Channel(channel) => channel.poll_write(cx, buf),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Pair(pair) => pair.poll_flush(cx),
            Self::Channel(channel) => channel.poll_flush(cx),
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Pair(pair) => Poll::Ready(pair.finish()),
            Self::Channel(channel) => channel.poll_finish(cx),
        }
    }
}
