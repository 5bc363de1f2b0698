//! Errors of a session, of a stream, and of opening a stream.

use std::{io, sync::Arc};

use crate::frame::{GoAwayStatus, ResetStatus, WireError};

/// Why a session ended. Cheap to clone: every stream of the session reports it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// [`Session::close`](crate::Session::close) was called, or every handle was dropped.
    #[error("the session was closed on this side")]
    Closed,
    /// The connection reached its end.
    #[error("the peer closed the connection")]
    PeerClosed,
    /// The peer sent GOAWAY, and the last stream has ended.
    #[error("the peer ended the session ({status})")]
    GoAway {
        /// The peer's reason.
        status: GoAwayStatus,
    },
    /// Reading or writing the connection failed.
    #[error("the connection failed")]
    Io(#[source] Arc<io::Error>),
    /// The peer broke the protocol in a way that leaves the session unusable.
    #[error("the peer broke the protocol")]
    Protocol(#[source] WireError),
    /// The [`Driver`](crate::Driver) was dropped before the session ended.
    #[error("the task that drives the session is gone")]
    DriverGone,
}

/// Why a stream cannot be used any longer. Stream I/O returns it inside an [`io::Error`]:
/// `error.get_ref()` downcasts to it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The peer sent RST_STREAM.
    #[error("the peer reset the stream ({0})")]
    Reset(ResetStatus),
    /// This side sent RST_STREAM, by [`Session::reset`](crate::Session::reset) or because the peer
    /// broke the protocol on this stream.
    #[error("the stream was reset on this side ({0})")]
    ResetHere(ResetStatus),
    /// The peer's GOAWAY excludes this stream: it was not processed, and can be retried elsewhere.
    #[error("the peer ended the session before it took this stream")]
    NotTaken,
    /// A write after shutdown.
    #[error("the stream was already ended on this side")]
    Ended,
    /// The whole session ended.
    #[error("the session of the stream ended")]
    Session(#[source] SessionError),
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match &error {
            StreamError::Reset(_) | StreamError::ResetHere(_) => io::ErrorKind::ConnectionReset,
            StreamError::Ended => io::ErrorKind::BrokenPipe,
            StreamError::Session(SessionError::Io(cause)) => cause.kind(),
            StreamError::NotTaken | StreamError::Session(_) => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

/// Why a stream could not be opened. Nothing was sent.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StreamOpenError {
    /// The session has ended.
    #[error("the session ended")]
    Session(#[source] SessionError),
    /// The peer takes no new streams: it sent GOAWAY.
    #[error("the peer takes no new streams")]
    GoingAway,
    /// The limit [`Config::max_streams`](crate::Config::max_streams) is reached, counting ended streams that are still held.
    #[error("the session has {0} streams, the most it may have")]
    TooManyStreams(usize),
    /// The socket accepts nothing, and too many frames are queued.
    #[error("the connection takes no more bytes")]
    Congested,
    /// Every stream ID of this side was used.
    #[error("the session has no stream ids left")]
    IdsExhausted,
    /// The headers are larger than peers have to accept.
    #[error("the stream's headers are too large")]
    HeadersTooLarge,
}
