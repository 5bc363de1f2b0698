//! The body of an answer, streamed to the client.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use kubevpn_target::Target;

use crate::UpstreamPool;
use crate::exchange::SharedExchange;
use crate::upstream::Upstream;

/// A text of ours, or the body of a target's answer. When it is dropped, hyper finishes the answer.
pub(crate) struct HttpReply {
    kind: ReplyKind,
    exchange: Arc<SharedExchange>,
}

enum ReplyKind {
    Text(Option<Bytes>),
    Download(Box<Download>),
}

/// A target's answer, passed on as it arrives. Polling it drives the connection it comes from.
pub(crate) struct Download {
    pub(crate) body: Incoming,
    /// `None` once the body has ended.
    pub(crate) upstream: Option<Upstream>,
    pub(crate) target: Target,
    pub(crate) promised: Option<Duration>,
    /// The end of the body, if hyper would otherwise read until the end of the connection.
    pub(crate) left: Option<u64>,
    pub(crate) pool: UpstreamPool,
}

impl HttpReply {
    pub(crate) fn text(answer: Response<Bytes>, exchange: &Arc<SharedExchange>) -> Response<Self> {
        answer.map(|body| Self {
            kind: ReplyKind::Text(Some(body).filter(|body| !body.is_empty())),
            exchange: Arc::clone(exchange),
        })
    }

    pub(crate) fn download(download: Download, exchange: &Arc<SharedExchange>) -> Self {
        Self {
            kind: ReplyKind::Download(Box::new(download)),
            exchange: Arc::clone(exchange),
        }
    }
}

impl Download {
    /// The answer is complete: its connection can be reused.
    pub(crate) fn complete(&mut self, cx: &mut Context<'_>, exchange: &SharedExchange) {
        if let Some(mut upstream) = self.upstream.take() {
            if !upstream.is_free(cx) {
                return;
            }
            match upstream.knows_client {
                true => exchange.keep(&self.target, upstream),
                false => self.pool.put(&self.target, upstream, self.promised),
            }
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &SharedExchange,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(upstream) = &mut self.upstream {
            upstream.drive(cx);
        }
        if self.left == Some(0) {
            self.upstream = None;
            return Poll::Ready(None);
        }
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(left), Some(Ok(data))) = (&mut self.left, &mut frame)
            && let Some(data) = data.data_mut()
        {
            data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= data.len() as u64;
        }
        match &frame {
            Some(Ok(frame)) => {
                exchange.count_down(frame.data_ref().map_or(0, Bytes::len));
                // hyper does not poll again if it knows that this was the end.
                if frame.is_trailers() || self.body.is_end_stream() {
                    self.complete(cx, exchange);
                }
            }
            Some(Err(error)) => {
                self.upstream = None;
                exchange.upstream_failed(error);
            }
            None => self.complete(cx, exchange),
        }
        Poll::Ready(frame)
    }
}

impl Body for HttpReply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        match &mut this.kind {
            ReplyKind::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            ReplyKind::Download(download) => download.poll_frame(cx, &this.exchange),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            ReplyKind::Text(text) => text.is_none(),
            ReplyKind::Download(download) => {
                download.left == Some(0) || download.body.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            ReplyKind::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64))
            }
            ReplyKind::Download(download) => download.body.size_hint(),
        }
    }
}

impl Drop for HttpReply {
    fn drop(&mut self) {
        self.exchange.finish();
    }
}

/// The result of hyper's service.
pub(crate) type ServiceResult = Result<Response<HttpReply>, Infallible>;
