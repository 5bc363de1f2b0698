//! The body of a request, streamed to the target.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::exchange::SharedExchange;

/// How long a client with `Expect: 100-continue` waits for the server before its body is sent anyway: HTTP/1.0
/// servers never send 100.
const PATIENCE: Duration = Duration::from_secs(1);

/// A client's body, forwarded as it arrives.
pub(crate) struct Upload {
    /// `None` for a request without a body.
    body: Option<Incoming>,
    gate: Option<(GoAhead, Pin<Box<Sleep>>)>,
    exchange: Arc<SharedExchange>,
}

impl Upload {
    pub(crate) fn new(body: Option<Incoming>, exchange: Arc<SharedExchange>) -> Self {
        Self {
            body,
            gate: None,
            exchange,
        }
    }

    /// The body is not polled before the server asks for it. Polling makes hyper send "100 Continue" to the client, which
    /// therefore arrives when the server has sent it.
    pub(crate) fn wait_for_go_ahead(&mut self) -> GoAhead {
        let gate = GoAhead::default();
        self.gate = Some((gate.clone(), Box::pin(tokio::time::sleep(PATIENCE))));
        gate
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some((gate, patience)) = &mut self.gate {
            // The gate keeps no waker: it is changed by the task that polls this body.
            if !gate.poll_open(patience.as_mut(), cx) {
                return Poll::Pending;
            }
            self.gate = None;
        }
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self
                .exchange
                .count_up(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) => self.exchange.body_broke(),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// Whether a waiting client may send its body.
#[derive(Clone, Debug, Default)]
pub(crate) struct GoAhead(Arc<AtomicU8>);

const SHUT: u8 = 0;
const OPEN: u8 = 1;
const NEVER: u8 = 2;

impl GoAhead {
    /// Notes that the server sent "100 Continue".
    pub(crate) fn give(&self) {
        let _ = self
            .0
            .compare_exchange(SHUT, OPEN, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that the server has answered. Returns whether the body was requested before.
    pub(crate) fn settle(&self) -> bool {
        let settled = self
            .0
            .compare_exchange(SHUT, NEVER, Ordering::Relaxed, Ordering::Relaxed);
        settled.is_err()
    }

    fn poll_open(&self, patience: Pin<&mut Sleep>, cx: &mut Context<'_>) -> bool {
        if self.0.load(Ordering::Relaxed) == SHUT && patience.poll(cx).is_ready() {
            self.give();
        }
        self.0.load(Ordering::Relaxed) == OPEN
    }
}
