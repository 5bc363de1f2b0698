//! The two directions of a connection that is through.
//!
//! ```text
//!   client ──read──▶ [up]   ──write──▶ upstream
//!   client ◀─write── [down] ◀──read─── upstream
//!
//!   each direction:   Open ──end of file──▶ Ended ──all written──▶ Closing ──shut down──▶ Done
//! ```
//!
//! A direction knows nothing of the other. Their meeting points are here: when the whole is over, whose
//! error it was, who is asked whether it is still there.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use kubevpn_target::Stream;
use tokio::time::{Instant, Sleep};

use self::direction::{At, Direction};
use crate::wait::{CHECK, Check, Gone};
use crate::{ClientIo, Traffic};

mod buffer;
mod direction;

/// How a relay behaves. The default has no idle limit.
#[derive(Clone, Debug, Default)]
pub struct RelayOptions {
    /// Ends a connection on which no byte moved for this long.
    pub idle: Option<Duration>,
    /// Counts along while bytes flow; [`Record::traffic`](crate::Record::traffic) has them.
    pub traffic: Arc<Traffic>,
}

/// How it went.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes taken from the client and written to the upstream.
    pub up: u64,
    /// Bytes taken from the upstream and written to the client.
    pub down: u64,
    /// When the last byte moved, or the first of the two ended its stream.
    pub last: Instant,
    /// Why it is over.
    pub end: End,
}

/// Why a relay is over.
#[derive(Debug)]
pub enum End {
    /// Both sides ended their stream, and each got all the other had sent; or the client closed its socket, and the
    /// upstream got all.
    Eof,
    /// One side broke.
    Failed {
        /// Which.
        side: Side,
        /// How.
        error: io::Error,
    },
    /// The idle limit.
    Idle,
    /// The drain began after the client had ended its stream, and nobody knows whether it still reads.
    Cut,
}

impl End {
    /// The name in logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Eof => "eof",
            // The upstream's stream ended where its end was not.
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
    /// Who connected to us.
    Client,
    /// Where we connected to.
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

/// Carries bytes both ways until both ways are at their end.
///
/// - Each direction ends on its own: an end of file is passed on at once, by shutting down the other
///   side's writing direction, and the opposite direction goes on.
/// - An upstream whose shutdown takes long holds nothing up: when the upstream's own end of file has been
///   delivered, the relay is over whether or not that shutdown is.
/// - An error on one side ends both at once. What had been read by then is offered to the other side once,
///   without waiting. An error of a shutdown after both ends of file is none.
/// - A client that is reset ends it at once, if it is being read or written; one that is neither,
///   because the upstream takes no more or the client has sent its end of file, within a second
///   ([`ClientIo::broken`]).
/// - A client that has closed its socket, and not only ended its writing, ends it as soon as the upstream has all it
///   sent: the upstream is told that nobody reads ([`Stream::no_reader`]), and shut down. Where nobody knows
///   ([`ClientIo::closed`]), one that was answered last and hears no more gives its place back
///   ([`ClientIo::release`]) within a second or two, and is ended by the drain at once.
/// - Unless it ends with [`End::Eof`], the client's connection is reset and not closed in order, so that a
///   truncated answer cannot pass for a whole one. The same when the future is dropped.
///
/// Memory: a direction holds a buffer only while it has bytes that cannot be written yet; 16 KiB at first,
/// up to 256 KiB under traffic. An idle connection holds none.
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
    // No `async fn`: that would keep room for its arguments beside the place they are moved to.
    let mut relay = Relay {
        client,
        upstream,
        up: Direction::default(),
        down: Direction::default(),
        traffic: options.traffic,
        counted: (0, 0),
        progress: 0,
        last: Instant::now(),
        is_answered: false,
        idle: options.idle.map(Idle::new),
        check: Check::default(),
        leave: None,
    };
    // From now on, so that a process that is killed resets it too.
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
    /// What of `up.written` and `down.written` is in `traffic` already.
    counted: (u64, u64),
    /// Bytes that were read or written, and whether one has ended.
    progress: u64,
    /// When that last changed.
    last: Instant,
    /// The last bytes that moved were the upstream's.
    is_answered: bool,
    idle: Option<Idle>,
    check: Check,
    /// Ready when the drain begins. There once it is of interest.
    leave: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<C: ClientIo, U: Stream> Relay<C, U> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let up = self.up.poll(cx, &mut self.client, &mut self.upstream);
        let down = self.down.poll(cx, &mut self.upstream, &mut self.client);
        self.count();

        // The client first: when it is gone, what the upstream says to that does not matter.
        let failed = match (up, down) {
            (Poll::Ready(Err((At::Read, error))), _) => Some((Side::Client, error)),
            (_, Poll::Ready(Err((At::Write, error)))) => Some((Side::Client, error)),
            (Poll::Ready(Err((At::Write, error))), _) => Some((Side::Upstream, error)),
            (_, Poll::Ready(Err((At::Read, error)))) => Some((Side::Upstream, error)),
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

        // A timer that is running is not stopped when reading goes on: an upload may block and go on a
        // thousand times a second, and one needless wake-up is cheaper.
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

    /// Ready when the client is not there any more.
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
                    // Whether it comes through makes no difference: the stream is dropped.
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

    /// Both sides have sent their end of file and neither lacks a byte of the other's.
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

/// The idle limit. Its timer is not moved with every byte: when it runs out, it looks when the last one was.
struct Idle {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
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
