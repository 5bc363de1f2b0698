//! The handle of a session.

use std::{marker::PhantomData, time::Duration};

use tokio::time::Instant;

use crate::{
    error::{OpenError, SessionError},
    frame::{Headers, ResetStatus, StreamId},
    stream::Stream,
};

/// A handle of a session; clones are handles of the same one.
///
/// The session lives as long as any `Session`, [`Stream`] or [`Incoming`](crate::Incoming) of it.
/// When the last is gone, what is queued is still sent, then GOAWAY.
#[derive(Debug, Clone)]
pub struct Session {
    _todo: (),
}

impl Session {
    /// Opens a stream: queues SYN_STREAM and returns at once, without waiting for the peer's reply.
    /// With `fin` this side sends nothing but its headers.
    pub fn open(&self, _headers: &Headers, _fin: bool) -> Result<Stream, OpenError> {
        unimplemented!()
    }

    /// Holds back what is queued from now on until the guard is dropped, so that it leaves in one
    /// write. Reading goes on. The guard is not `Send`: hold it over no `await`.
    pub fn cork(&self) -> Cork<'_> {
        unimplemented!()
    }

    /// Sends PING and waits for its echo; says how long that took. There is no limit on the wait.
    /// Dropping the future forgets the PING.
    pub async fn ping(&self) -> Result<Duration, SessionError> {
        unimplemented!()
    }

    /// Resets a stream, for instance one whose reader has stalled. What it had received and not
    /// read is dropped, its handle reports [`StreamError::ResetHere`](crate::StreamError), and
    /// data that still arrives is thrown away and counted. Unknown and ended streams are left alone.
    pub fn reset(&self, _id: StreamId, _status: ResetStatus) {
        unimplemented!()
    }

    /// Ends the session at once: GOAWAY if the socket takes it without waiting, then the socket is
    /// closed. Streams keep what they have received; everything else of theirs fails.
    pub fn close(&self) {
        unimplemented!()
    }

    /// Whether new streams can be opened: neither ended nor told to go away.
    pub fn is_open(&self) -> bool {
        unimplemented!()
    }

    /// Waits for the session to end and says why it did.
    pub async fn closed(&self) -> SessionError {
        unimplemented!()
    }

    /// Waits until [`is_open`](Self::is_open) is false: at the peer's GOAWAY, while streams may
    /// live on, or at the end of the session.
    pub async fn closing(&self) {
        unimplemented!()
    }

    /// What the session holds at this moment.
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
}

/// See [`Session::cork`].
#[derive(Debug)]
pub struct Cork<'a> {
    _session: PhantomData<(&'a Session, *const ())>,
}

/// A look at a session; see [`Session::stats`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stats {
    /// Streams that are open, or have something left to send.
    pub streams: usize,
    /// Streams this side or the peer ever opened.
    pub opened: u64,
    /// Received bytes that wait for a reader, over all streams.
    pub buffered: usize,
    /// Payload bytes that wait for the socket, over all streams.
    pub queued: usize,
    /// Streams for whose sake the socket is not read, by id. While this is not empty, no stream of
    /// the session receives anything, nor does a PING's echo.
    pub stalled: Vec<Stalled>,
    /// Since when the socket has taken nothing although there is something to send.
    pub send_blocked: Option<Instant>,
    /// Bytes read from the connection.
    pub received: u64,
    /// Bytes written to the connection.
    pub sent: u64,
    /// Payload bytes that came for a stream already reset, and were thrown away.
    pub discarded: u64,
    /// When the last byte came; at first, when the session began.
    pub last_received: Instant,
}

/// A stream that holds up the reading of its session; see [`Stats::stalled`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Stalled {
    /// Which stream.
    pub stream: StreamId,
    /// How much waits for its reader, in bytes.
    pub buffered: usize,
    /// Since when it has held more than [`Config::stream_buffer`](crate::Config::stream_buffer).
    pub since: Instant,
}
