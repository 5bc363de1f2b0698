//! Streams that the peer opens.

use std::task::{Context, Poll};

use crate::{
    frame::{Headers, ResetStatus, StreamId},
    stream::Stream,
};

/// The streams the client opens, in its order. Once dropped, further ones are refused.
#[derive(Debug)]
pub struct Incoming {
    _todo: (),
}

impl Incoming {
    /// The next stream; `None` when the session has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Request> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`next`](Self::next).
    pub fn poll_next(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Request>> {
        unimplemented!()
    }
}

/// A stream the client asks for. Dropping it refuses the stream with REFUSED_STREAM.
#[derive(Debug)]
pub struct Request {
    _todo: (),
}

impl Request {
    /// The stream's number.
    pub fn id(&self) -> StreamId {
        unimplemented!()
    }

    /// What the client sent with it.
    pub fn headers(&self) -> &Headers {
        unimplemented!()
    }

    /// Whether the client ended its side with the request itself.
    pub fn fin(&self) -> bool {
        unimplemented!()
    }

    /// Sends SYN_REPLY. With `fin` this side sends nothing else. A stream that the client has reset
    /// meanwhile is returned too, and says so when used.
    pub fn accept(self, _headers: &Headers, _fin: bool) -> Stream {
        unimplemented!()
    }

    /// Sends RST_STREAM.
    pub fn refuse(self, _status: ResetStatus) {
        unimplemented!()
    }
}
