//! The relay: the two directions of an established connection.
//!
//! ```text
//!   client ──read──▶ [up]   ──write──▶ upstream
//!   client ◀─write── [down] ◀──read─── upstream
//!
//!   each direction:   Open ──end of file──▶ Ended ──all written──▶ Delivered ──▶ Closing ──shut down──▶ Done
//! ```
//!
//! A direction does not know the other. This file decides for both: when the relay is over, whose error it
//! was, and when the client is asked whether it is still there.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use kubevpn_target::Stream;
use tokio::time::{Instant, Sleep};

use self::direction::{Direction, IoOperation};
use crate::wait::{CHECK, ClientCheck, Gone};
use crate::{ClientIo, Traffic};

mod buffer;
mod direction;

/// How a relay behaves. The default has no idle limit.
#[derive(Clone, Debug, Default)]
pub struct RelayOptions {
    /// Ends a connection on which no byte was transferred for this long.
    pub idle: Option<Duration>,
    /// Updated while bytes flow; from [`Record::traffic`](crate::Record::traffic).
    pub traffic: Arc<Traffic>,
}

/// The result of a relay.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes taken from the client and written to the upstream.
    pub up: u64,
    /// Bytes taken from the upstream and written to the client.
    pub down: u64,
    /// When the last byte was transferred, or when the first side ended its stream.
    pub last: Instant,
    /// Why the relay ended.
    pub end: End,
}

/// Why a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both sides ended their stream, and each got everything the other had sent; or the client closed its socket, and
    /// the upstream got everything.
    Eof,
    /// One side broke.
    Failed {
        /// The side.
        side: Side,
        /// The error.
        error: io::Error,
    },
    /// The idle limit was reached.
    Idle,
    /// The drain began after the client had ended its stream, and whether it still reads is unknown.
    Cut,
}

impl End {
    /// The name in logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Eof => "eof",
            // The upstream's stream was cut.
            Self::Failed {
                side: Side::Upstream,
                error,
            } if error.kind() == io::ErrorKind::UnexpectedEof => "cut",
            Self::Failed { side, .. } => side.as_str(),
            Self::Idle => "idle",
            Self::Cut => "cut",
        }
    }
}

/// A side of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client that connected to us.
    Client,
    /// The target that we connected to.
    Upstream,
}

impl Side {
    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
        }
    }
}

/// Transfers bytes in both directions until both have ended.
///
/// - Each direction ends by itself: an end of file is passed on at once, by shutting down the other side's
///   writing, and the opposite direction continues.
/// - A slow shutdown of the upstream delays nothing: once the upstream's own end of file has been delivered,
///   the relay is over, whether or not the shutdown has finished.
/// - An error on one side ends both directions at once. Data that was read before is offered to the other side
///   once, without waiting. An error of a shutdown after both ends of file is ignored.
/// - A reset by the client ends the relay at once if the client is being read or written. If it is not, because the
///   upstream accepts no more or the client has sent its end of file, the reset ends it within a second
///   ([`ClientIo::broken`]).
/// - A client that has closed its socket, and not only ended its writing, ends the relay as soon as the upstream has
///   everything it sent: the upstream is told that nobody reads ([`Stream::no_reader`]), and shut down. If it is unknown
///   whether it closed ([`ClientIo::closed`]), a client that was answered last and receives nothing more returns its
///   permit ([`ClientIo::release`]) within a second or two, and is ended by the drain at once.
/// - Unless the relay ends with [`End::Eof`], the client's connection is reset and not closed orderly, so that a
///   truncated answer cannot look complete. The same applies if the future is dropped.
///
/// Memory: a direction holds a buffer only while it has bytes that cannot be written yet: 16 KiB at first, up to
/// 256 KiB under traffic. An idle connection holds none.
///
/// Cancellation: dropping the future drops both streams.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use kubevpn_conn::{End, RelayOptions, relay};
/// let (app, client) = tokio::io::duplex(64);
/// let (upstream, server) = tokio::io::duplex(64);
/// drop((app, server));
/// let relayed = relay(client, upstream, RelayOptions::default()).await;
/// assert!(matches!(relayed.end, End::Eof));
/// # }
/// ```
pub fn relay<C, U>(client: C, upstream: U, options: RelayOptions) -> impl Future<Output = Relayed>
where
    C: ClientIo,
    U: Stream,
{
    // Not an `async fn`, which would hold the memory of its arguments twice.
    let mut relay = Relay {
        client,
        upstream,
        up: Direction::pausing(),
        down: Direction::default(),
        traffic: options.traffic,
        counted: (0, 0),
        progress: 0,
        last: Instant::now(),
        is_answered: false,
        idle: options.idle.map(IdleLimit::new),
        check: ClientCheck::default(),
        leave: None,
    };
    // Set from the start, so that the kernel resets the connection if this process is killed.
    relay.client.reset_on_drop();
    poll_fn(move |cx| {
        let end = ready!(relay.poll(cx));
        if matches!(end, End::Eof) {
            relay.client.close_on_drop();
        }
        Poll::Ready(Relayed {
            up: relay.up.written,
            down: relay.down.written,
            last: relay.last,
            end,
        })
    })
}

struct Relay<C, U> {
    client: C,
    upstream: U,
    up: Direction,
    down: Direction,
    traffic: Arc<Traffic>,
    /// The parts of `up.written` and `down.written` that were added to `traffic`.
    counted: (u64, u64),
    /// Progress: bytes read and written, and whether a direction has ended.
    progress: u64,
    /// When the progress last changed.
    last: Instant,
    /// Whether the last bytes transferred were the upstream's.
    is_answered: bool,
    idle: Option<IdleLimit>,
    check: ClientCheck,
    /// Ready when the drain begins. Created once it matters.
    leave: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<C: ClientIo, U: Stream> Relay<C, U> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let mut up = self.up.poll(cx, &mut self.client, &mut self.upstream);
        let down = self.down.poll(cx, &mut self.upstream, &mut self.client);
        self.count();
        if self.up.is_before_shutdown() {
            // An upstream that is told that nobody reads has nothing to wait for.
            if !matches!(down, Poll::Ready(Err(_)))
                && let Poll::Ready(end) = self.poll_gone(cx)
            {
                return Poll::Ready(end);
            }
            up = self.up.poll(cx, &mut self.client, &mut self.upstream);
        }

        // The client is polled first: when it is gone, the upstream's reaction does not matter.
        let failed = match (up, down) {
            (Poll::Ready(Err((IoOperation::Read, error))), _) => Some((Side::Client, error)),
            (_, Poll::Ready(Err((IoOperation::Write, error)))) => Some((Side::Client, error)),
            (Poll::Ready(Err((IoOperation::Write, error))), _) => Some((Side::Upstream, error)),
            (_, Poll::Ready(Err((IoOperation::Read, error)))) => Some((Side::Upstream, error)),
            _ => None,
        };
        if let Some((side, error)) = failed {
            return Poll::Ready(if self.both_delivered() {
                End::Eof
            } else {
                End::Failed { side, error }
            });
        }
        if self.down.is_done() && self.up.is_delivered() {
            return Poll::Ready(End::Eof);
        }

        // A running timer is not stopped when reading continues: an upload may block and continue a thousand
        // times a second, and one needless wake-up is cheaper.
        if !self.up.is_reading()
            && let Poll::Ready(end) = self.poll_gone(cx)
        {
            return Poll::Ready(end);
        }
        if let Some(idle) = &mut self.idle {
            ready!(idle.poll(cx, self.last));
            return Poll::Ready(End::Idle);
        }
        Poll::Pending
    }

    /// Ready when the client is gone.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let ended = self.up.is_delivered();
        match self.check.poll(cx, &self.client, ended) {
            Poll::Ready(Gone::Broken(error)) => {
                let side = Side::Client;
                return Poll::Ready(End::Failed { side, error });
            }
            Poll::Ready(Gone::Closed) => {
                self.upstream.no_reader();
                if !self.up.is_done() {
                    // The result does not matter: the stream is dropped.
                    let _ = Pin::new(&mut self.upstream).poll_shutdown(cx);
                }
                return Poll::Ready(End::Eof);
            }
            Poll::Pending => {}
        }
        let has_its_answer = self.is_answered && self.down.is_reading();
        if !self.check.is_unknown() || !has_its_answer || self.last.elapsed() < CHECK {
            return Poll::Pending;
        }
        self.client.release();
        let leave = self.leave.get_or_insert_with(|| {
            let drain = self.client.drain();
            Box::pin(async move { drain.stopping().await })
        });
        leave.as_mut().poll(cx).map(|()| End::Cut)
    }

    /// Whether both sides have sent their end of file and each has received all bytes.
    fn both_delivered(&self) -> bool {
        self.up.is_delivered() && self.down.is_delivered()
    }

    fn count(&mut self) {
        let now = (self.up.written, self.down.written);
        if now.1 != self.counted.1 {
            self.traffic.add_down(now.1 - self.counted.1);
            self.is_answered = true;
        }
        if now.0 != self.counted.0 {
            self.traffic.add_up(now.0 - self.counted.0);
            self.is_answered = false;
        }
        self.counted = now;
        let ended = self.up.has_ended() || self.down.has_ended();
        let progress = now.0 + self.up.read + now.1 + self.down.read + u64::from(ended);
        if progress != self.progress {
            self.progress = progress;
            self.last = Instant::now();
        }
    }
}

/// The idle limit. Its timer is not reset with every byte: when it fires, it checks when the last byte was transferred.
struct IdleLimit {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

impl IdleLimit {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            timer: Box::pin(tokio::time::sleep(limit)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, moved_at: Instant) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let deadline = moved_at + self.limit;
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests;
