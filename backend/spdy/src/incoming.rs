//! Streams that the peer opens.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    frame::{Headers, ResetStatus, StreamId},
    shared::{PeerStream, SessionOwner, register},
    stream::SpdyStream,
};

/// The streams the client opens, in its order. Once dropped, further ones are refused.
#[derive(Debug)]
pub struct Incoming {
    owner: Arc<SessionOwner>,
}

impl Incoming {
    pub(crate) fn new(owner: Arc<SessionOwner>) -> Self {
        Self { owner }
    }

    /// The next stream; `None` when the session has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<StreamRequest> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`next`](Self::next).
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<StreamRequest>> {
        let mut state = self.owner.0.lock();
        if let Some(opened) = state.requests.pop_front() {
            drop(state);
            let stream = SpdyStream::new(opened.stream, Arc::clone(&self.owner));
            let stream = Some(stream);
            return Poll::Ready(Some(StreamRequest { stream, opened }));
        }
        if state.machine.ended().is_some() {
            return Poll::Ready(None);
        }
        register(&mut state.incoming, cx);
        Poll::Pending
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.owner.0.with(|state| {
            state.machine.stop_accepting();
            for opened in std::mem::take(&mut state.requests) {
                let refused = ResetStatus::REFUSED_STREAM;
                state.machine.reset(opened.stream, refused);
                // No handle exists for this stream, so no task waits on it.
                state.release(opened.stream);
            }
        });
    }
}

/// A stream the client asks for. Dropping it refuses the stream with REFUSED_STREAM.
#[derive(Debug)]
pub struct StreamRequest {
    /// Taken by the answer.
    stream: Option<SpdyStream>,
    opened: PeerStream,
}

impl StreamRequest {
    /// The stream's number.
    pub fn id(&self) -> StreamId {
        self.opened.stream
    }

    /// The headers of the request.
    pub fn headers(&self) -> &Headers {
        &self.opened.headers
    }

    /// Whether the client ended its side with the request itself.
    pub fn fin(&self) -> bool {
        self.opened.fin
    }

    /// Sends SYN_REPLY. With `fin` this side sends nothing else. If the client has reset the stream
    /// meanwhile, its use returns that error.
    ///
    /// Headers of more than 32 KiB cannot be sent: the stream is reset with INTERNAL_ERROR.
    pub fn accept(mut self, headers: &Headers, fin: bool) -> SpdyStream {
        // `stream` is there until the request is consumed, by this or by its drop.
        let stream = self.stream.take().expect("an unanswered request");
        stream.accept(headers, fin);
        stream
    }

    /// Sends RST_STREAM.
    pub fn refuse(mut self, status: ResetStatus) {
        if let Some(stream) = self.stream.take() {
            stream.reset(status);
        }
    }
}

impl Drop for StreamRequest {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.reset(ResetStatus::REFUSED_STREAM);
        }
    }
}
