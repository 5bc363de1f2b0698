//! The body of an answer on its way to the client.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use kubevpn_conn::End;
use kubevpn_target::Target;

use crate::Pool;
use crate::turn::Turn;
use crate::upstream::Upstream;

/// A text of ours, or the body of a target's answer. The turn is over when it is dropped.
pub(crate) struct Reply {
    kind: Kind,
    turn: Arc<Turn>,
}

enum Kind {
    Text(Option<Bytes>),
    Download(Box<Download>),
}

/// A target's answer, passed on as it arrives. Polling it drives the connection it comes from.
pub(crate) struct Download {
    pub(crate) body: Incoming,
    /// Until the body has ended.
    pub(crate) upstream: Option<Upstream>,
    pub(crate) target: Target,
    pub(crate) promised: Option<Duration>,
    pub(crate) pool: Pool,
}

impl Reply {
    pub(crate) fn text(answer: Response<Bytes>, turn: &Arc<Turn>) -> Response<Self> {
        answer.map(|body| Self {
            kind: Kind::Text(Some(body).filter(|body| !body.is_empty())),
            turn: Arc::clone(turn),
        })
    }

    pub(crate) fn download(download: Download, turn: &Arc<Turn>) -> Self {
        Self {
            kind: Kind::Download(Box::new(download)),
            turn: Arc::clone(turn),
        }
    }
}

impl Download {
    /// The answer is complete: its connection can serve again.
    pub(crate) fn complete(&mut self, cx: &mut Context<'_>, turn: &Turn) {
        if let Some(mut upstream) = self.upstream.take() {
            if upstream.is_free(cx) {
                self.pool.put(&self.target, upstream, self.promised);
            }
            turn.ended(End::Eof);
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        turn: &Turn,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(upstream) = &mut self.upstream {
            upstream.drive(cx);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                turn.count_down(frame.data_ref().map_or(0, Bytes::len));
                // hyper does not ask again when it knows that this was all.
                if frame.is_trailers() || self.body.is_end_stream() {
                    self.complete(cx, turn);
                }
            }
            Some(Err(error)) => {
                self.upstream = None;
                turn.upstream_failed(error);
            }
            None => self.complete(cx, turn),
        }
        Poll::Ready(frame)
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        match &mut this.kind {
            Kind::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::Download(download) => download.poll_frame(cx, &this.turn),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Text(text) => text.is_none(),
            Kind::Download(download) => download.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
            Kind::Download(download) => download.body.size_hint(),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.turn.close();
    }
}

/// What hyper's service answers with.
pub(crate) type Answered = Result<Response<Reply>, Infallible>;
