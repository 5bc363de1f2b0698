//! Drives hyper, and watches what hyper does not: time limits, and a client that is not being read.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::HttpService;
use kubevpn_conn::ClientIo;
use kubevpn_target::BoxError;
use tokio::time::{Instant, Sleep};

use super::HALF_CLOSED;
use crate::Settings;
use crate::client::ClientStream;
use crate::exchange::{ExchangePhase, Handover, SharedExchange};
use crate::problem::{Problem, framing};
use crate::reply::HttpReply;

/// Interval at which a client that is not being read is asked whether its connection is broken.
const CHECK: Duration = Duration::from_secs(1);

/// Why hyper is no longer driven.
pub(super) enum Over {
    /// The connection has ended, with all requests answered.
    Done,
    /// The connection does not speak HTTP any more.
    Handover(Handover),
    /// A head is invalid, or was not complete in time.
    Refused {
        problem: Problem,
        /// hyper refused it itself, after an answer that the client had not read yet.
        said: bool,
    },
    /// The client's connection broke, or the answer that it was receiving.
    Gone(io::Error),
    /// The idle limit was reached while a request is open.
    Idle,
}

pub(super) struct HttpDriver<'d, C: ClientIo> {
    client: &'d ClientStream<C>,
    exchange: &'d SharedExchange,
    settings: &'d Settings,
    stopped: bool,
    /// When the client sent its end of file.
    ended_at: Option<Instant>,
    check_at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

enum Due {
    Check,
    Slow,
    Kept,
    Idle,
}

impl<'d, C: ClientIo> HttpDriver<'d, C> {
    pub(super) fn new(
        client: &'d ClientStream<C>,
        exchange: &'d SharedExchange,
        settings: &'d Settings,
    ) -> Self {
        Self {
            client,
            exchange,
            settings,
            stopped: false,
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
        S: HttpService<Incoming, ResBody = HttpReply>,
        S::Error: Into<BoxError>,
    {
        poll_fn(|cx| {
            if !self.stopped && stopping.as_mut().poll(cx).is_ready() {
                self.stopped = true;
                Pin::new(&mut *http).graceful_shutdown();
            }
            self.client.arm();
            if let Poll::Ready(ended) = Pin::new(&mut *http).poll(cx) {
                return Poll::Ready(self.over(ended));
            }
            // Data that hyper has not written yet would be lost.
            if self.exchange.is_flushed() {
                if let Some(handover) = self.exchange.take_handover() {
                    return Poll::Ready(Over::Handover(handover));
                }
                if let Some(problem) = self.client.take_refused() {
                    return Poll::Ready(Over::Refused {
                        problem,
                        said: false,
                    });
                }
            }
            if let Poll::Ready(error) = self.client.poll_watch(cx) {
                return Poll::Ready(Over::Gone(error));
            }
            self.poll_clock(cx)
        })
        .await
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            let Some((at, due)) = self.due() else {
                return Poll::Pending;
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            // A timer that fires early costs less than one that is reset with every request.
            if timer.deadline() > at {
                timer.as_mut().reset(at);
            }
            ready!(timer.as_mut().poll(cx));
            if at > Instant::now() {
                timer.as_mut().reset(at);
                continue;
            }
            match due {
                Due::Slow => {
                    let problem = Problem::Slow(self.settings.head_timeout);
                    return Poll::Ready(Over::Refused {
                        problem,
                        said: false,
                    });
                }
                Due::Kept => return Poll::Ready(Over::Done),
                Due::Idle => return Poll::Ready(Over::Idle),
                Due::Check => self.check_at = None,
            }
            if let Some(error) = self.client.broken() {
                return Poll::Ready(Over::Gone(error));
            }
        }
    }

    /// The next time limit.
    fn due(&mut self) -> Option<(Instant, Due)> {
        match self.exchange.phase() {
            ExchangePhase::Head {
                begun: Some(begun), ..
            } => Some((begun + self.settings.head_timeout, Due::Slow)),
            ExchangePhase::Head { since, begun: None } => {
                Some((since + self.settings.keep_alive, Due::Kept))
            }
            ExchangePhase::Answering { .. } | ExchangePhase::Flushing => self.due_of_answer(),
        }
    }

    fn due_of_answer(&mut self) -> Option<(Instant, Due)> {
        let now = Instant::now();
        let moved_at = self.exchange.moved_at();
        let mut idle = self.settings.idle_timeout.map(|limit| moved_at + limit);
        if self.client.has_ended() {
            let ended = *self.ended_at.get_or_insert(now);
            let limit = ended.max(moved_at) + HALF_CLOSED;
            idle = Some(idle.map_or(limit, |idle| idle.min(limit)));
        }
        let check = match self.client.is_unwatched() {
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

impl<C: ClientIo> HttpDriver<'_, C> {
    /// Why hyper ended by itself.
    fn over(&self, ended: hyper::Result<()>) -> Over {
        match ended {
            Ok(()) => Over::Done,
            Err(error) if error.is_parse() || error.is_incomplete_message() => Over::Refused {
                problem: malformed(&error),
                said: error.is_parse() && !self.client.has_swallowed(),
            },
            Err(error) => Over::Gone(io::Error::other(error)),
        }
    }
}

fn malformed(error: &hyper::Error) -> Problem {
    let sentence = match framing(error) {
        Some(field) => format!("where the request ends is not clear: {field}"),
        // `head.rs` limits the head, so what is too large for hyper is the length.
        None if error.is_parse_too_large() => {
            "where the request ends is not clear: its Content-Length is beyond any body".into()
        }
        None => format!("this is no well-formed HTTP/1.1 request ({error})"),
    };
    Problem::Malformed {
        status: StatusCode::BAD_REQUEST,
        sentence,
    }
}
