//! Drives hyper, and watches what it does not: the clock, and a client nobody reads from.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::HttpService;
use kubevpn_conn::ClientIo;
use kubevpn_target::BoxError;
use tokio::time::{Instant, Sleep};

use super::HALF_CLOSED;
use crate::Settings;
use crate::reply::Reply;
use crate::tap::Tap;
use crate::turn::{Handover, Turn};

/// How often a client that nobody reads from is asked whether its connection is broken.
const CHECK: Duration = Duration::from_secs(1);

/// Why hyper is not driven any further.
pub(super) enum Over {
    /// It came to its own end.
    Http(hyper::Result<()>),
    /// The connection is no HTTP any more.
    Taken(Handover),
    /// The client's connection broke.
    Gone(io::Error),
    /// A head was not complete in time.
    Slow,
    /// Nothing was asked for in time.
    Kept,
    /// A request is open and no byte moved for too long.
    Idle,
}

pub(super) struct Driver<'d, C: ClientIo> {
    tap: &'d Tap<C>,
    turn: &'d Turn,
    settings: &'d Settings,
    stopped: bool,
    running: bool,
    wait: Option<Wait>,
    moved: u64,
    moved_at: Instant,
    /// When the client sent its end of file.
    ended_at: Option<Instant>,
    check_at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Waiting for a request.
struct Wait {
    since: Instant,
    /// Bytes hyper had been given when this began.
    given: u64,
    /// When the first byte of a head came.
    head: Option<Instant>,
}

enum Due {
    Check,
    Slow,
    Kept,
    Idle,
}

impl<'d, C: ClientIo> Driver<'d, C> {
    pub(super) fn new(tap: &'d Tap<C>, turn: &'d Turn, settings: &'d Settings) -> Self {
        Self {
            tap,
            turn,
            settings,
            stopped: false,
            running: false,
            wait: None,
            moved: 0,
            moved_at: Instant::now(),
            ended_at: None,
            check_at: None,
            timer: None,
        }
    }

    pub(super) async fn run<I, S>(
        &mut self,
        http: &mut http1::Connection<I, S>,
        mut stopping: Pin<&mut impl Future<Output = ()>>,
    ) -> Over
    where
        I: Read + Write + Unpin,
        S: HttpService<Incoming, ResBody = Reply>,
        S::Error: Into<BoxError>,
    {
        self.running = true;
        let over = poll_fn(|cx| {
            if !self.stopped && stopping.as_mut().poll(cx).is_ready() {
                self.stopped = true;
                Pin::new(&mut *http).graceful_shutdown();
            }
            self.tap.arm();
            if let Poll::Ready(ended) = Pin::new(&mut *http).poll(cx) {
                return Poll::Ready(Over::Http(ended));
            }
            // What hyper has not written yet would be lost with it.
            if self.tap.is_flushed()
                && let Some(handover) = self.turn.take_handover()
            {
                return Poll::Ready(Over::Taken(handover));
            }
            if let Poll::Ready(error) = self.tap.poll_watch(cx) {
                return Poll::Ready(Over::Gone(error));
            }
            self.poll_clock(cx)
        })
        .await;
        self.running = false;
        over
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            let now = Instant::now();
            let Some((at, due)) = self.due(now) else {
                return Poll::Pending;
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            // A timer that runs out early costs less than one that is moved with every request.
            if timer.deadline() > at {
                timer.as_mut().reset(at);
            }
            ready!(timer.as_mut().poll(cx));
            if at > Instant::now() {
                timer.as_mut().reset(at);
                continue;
            }
            match due {
                Due::Slow => return Poll::Ready(Over::Slow),
                Due::Kept => return Poll::Ready(Over::Kept),
                Due::Idle => return Poll::Ready(Over::Idle),
                Due::Check => self.check_at = None,
            }
            if let Some(error) = self.tap.broken() {
                return Poll::Ready(Over::Gone(error));
            }
        }
    }

    /// What is due next.
    fn due(&mut self, now: Instant) -> Option<(Instant, Due)> {
        let moved = self.tap.moved();
        if self.moved != moved {
            self.moved = moved;
            self.moved_at = now;
        }
        match self.is_answering() {
            true => self.due_of_answer(now),
            false => Some(self.due_of_request(now)),
        }
    }

    /// An answer is being made, or hyper still holds a part of it that the client does not take.
    fn is_answering(&self) -> bool {
        self.turn.answering() || !self.tap.is_flushed()
    }

    fn due_of_request(&mut self, now: Instant) -> (Instant, Due) {
        let given = self.tap.given();
        let wait = self.wait.get_or_insert(Wait {
            since: now,
            given,
            head: None,
        });
        if wait.head.is_none() && given > wait.given {
            wait.head = Some(now);
        }
        match wait.head {
            _ if self.turn.requests() == 0 => (wait.since + self.settings.head_timeout, Due::Slow),
            Some(head) => (head + self.settings.head_timeout, Due::Slow),
            None => (wait.since + self.settings.keep_alive, Due::Kept),
        }
    }

    fn due_of_answer(&mut self, now: Instant) -> Option<(Instant, Due)> {
        self.wait = None;
        let mut idle = self
            .settings
            .idle_timeout
            .map(|limit| self.moved_at + limit);
        if self.tap.has_ended() {
            let ended = *self.ended_at.get_or_insert(now);
            let limit = ended.max(self.moved_at) + HALF_CLOSED;
            idle = Some(idle.map_or(limit, |idle| idle.min(limit)));
        }
        let check = match self.tap.is_unwatched() {
            true => Some(*self.check_at.get_or_insert(now + CHECK)),
            false => {
                self.check_at = None;
                None
            }
        };
        match (idle, check) {
            (Some(idle), Some(check)) if idle > check => Some((check, Due::Check)),
            (Some(idle), _) => Some((idle, Due::Idle)),
            (None, Some(check)) => Some((check, Due::Check)),
            (None, None) => None,
        }
    }
}

impl<C: ClientIo> Drop for Driver<'_, C> {
    /// Cut in the middle of an answer: an orderly end could let what was sent so far pass for the whole.
    fn drop(&mut self) {
        if self.running && self.turn.answered() && self.is_answering() {
            self.tap.reset_on_drop();
        }
    }
}
