//! The handle of a session.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    error::{SessionError, StreamOpenError},
    frame::{Headers, ResetStatus, StreamId},
    session::StreamTotals,
    shared::{LockedSession, PendingPing, SessionOwner, StreamWakers},
    stream::SpdyStream,
};

/// A handle of a session; clones are handles of the same one.
///
/// The session lives as long as any `Session`, [`SpdyStream`] or [`Incoming`](crate::Incoming) of it.
/// After the last is dropped, queued data is still sent, then GOAWAY.
#[derive(Debug, Clone)]
pub struct Session {
    owner: Arc<SessionOwner>,
}

impl Session {
    pub(crate) fn new(owner: Arc<SessionOwner>) -> Self {
        Self { owner }
    }

    /// Opens a stream: queues SYN_STREAM and returns at once, without waiting for the peer's reply.
    /// With `fin` this side sends nothing but its headers.
    pub fn open(&self, headers: &Headers, fin: bool) -> Result<SpdyStream, StreamOpenError> {
        let id = self.owner.0.with(|state| {
            if let Some(error) = &state.ending {
                return Err(StreamOpenError::Session(error.clone()));
            }
            let id = state.machine.open(headers, fin)?;
            state.slots.insert(id, StreamWakers::default());
            Ok(id)
        })?;
        Ok(SpdyStream::new(id, Arc::clone(&self.owner)))
    }

    /// Holds queued data back until the guard is dropped, so that it is sent in one write. Reading
    /// continues. The guard is not `Send`: do not hold it across an `await`.
    pub fn cork(&self) -> Cork<'_> {
        self.owner.0.with(|state| state.corks += 1);
        Cork {
            session: self,
            here: PhantomData,
        }
    }

    /// Sends PING, waits for its echo without a time limit, and returns the round-trip time. Cancellation: dropping
    /// the future forgets the PING.
    pub async fn ping(&self) -> Result<Duration, SessionError> {
        let (echo, echoed) = oneshot::channel();
        let id = self.owner.0.with(|state| {
            if let Some(error) = state.machine.ended() {
                return Err(error.clone());
            }
            let id = state.machine.ping();
            let sent = Instant::now();
            state.pings.insert(id, PendingPing { sent, echo });
            Ok(id)
        })?;
        let _forget = Forget { session: self, id };
        match echoed.await {
            Ok(duration) => Ok(duration),
            Err(_) => Err(self.closed().await),
        }
    }

    /// Resets a stream, for instance one whose reader has stalled. Its unread data is dropped, its handle
    /// reports [`StreamError::ResetHere`](crate::StreamError), and data that still arrives is discarded and
    /// counted. Of a stream that has ended, only unread data is dropped. Unknown streams are ignored.
    pub fn reset(&self, id: StreamId, status: ResetStatus) {
        let wakers = self.owner.0.with(|state| {
            state.machine.reset(id, status);
            let slot = state.slots.get_mut(&id);
            slot.map(|slot| [slot.reader.take(), slot.writer.take()])
        });
        for waker in wakers.into_iter().flatten().flatten() {
            waker.wake();
        }
    }

    /// Ends the session at once: GOAWAY if the socket accepts it without waiting, then the socket is
    /// closed. Streams keep what they have received; all other operations on them fail.
    pub fn close(&self) {
        // The error means that it was set before.
        let _ = self.owner.0.closing.set(());
        self.owner
            .0
            .with(|state| state.ending = Some(SessionError::Closed));
    }

    /// Whether new streams can be opened: neither ended nor told to go away.
    pub fn is_open(&self) -> bool {
        !self.owner.0.closing.initialized()
    }

    /// Waits until [`is_open`](Self::is_open) is false: at the peer's GOAWAY, while streams may
    /// live on, or at the end of the session. Cancel safe.
    pub async fn closing(&self) {
        self.owner.0.closing.wait().await;
    }

    /// Waits for the session to end, and returns the reason. Cancel safe.
    pub async fn closed(&self) -> SessionError {
        self.owner.0.closed.wait().await.clone()
    }

    /// Unread bytes of all streams; as [`Stats::buffered`].
    pub fn buffered(&self) -> usize {
        self.owner.0.lock().machine.totals().buffered
    }

    /// Counters of the session at this moment. If another session has made room (see [`Config::unread`](crate::Config)), this
    /// one is read on from here: nothing else tells it.
    pub fn stats(&self) -> Stats {
        self.owner.0.with(|state| {
            state.machine.reweigh();
            Self::stats_of(state)
        })
    }

    fn stats_of(state: &LockedSession) -> Stats {
        let StreamTotals {
            live,
            full: _,
            weight: _,
            buffered,
            queued,
            opened,
            discarded,
        } = state.machine.totals();
        let full = state.machine.full();
        let stalled = full.filter_map(|(stream, buffered)| {
            let since = state.slots.get(&stream)?.full_since?;
            Some(Stalled {
                stream,
                buffered,
                since,
            })
        });
        Stats {
            streams: live,
            opened,
            buffered,
            queued,
            stalled: stalled.collect(),
            send_blocked: state.send_blocked,
            received: state.received,
            sent: state.sent,
            discarded,
            last_received: state.last_received,
        }
    }
}

/// Removes a PING whose future was dropped.
struct Forget<'a> {
    session: &'a Session,
    id: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.session.owner.0.lock().pings.remove(&self.id);
    }
}

/// See [`Session::cork`].
#[derive(Debug)]
#[must_use = "nothing is held back once it is dropped"]
pub struct Cork<'a> {
    session: &'a Session,
    /// Makes the guard not `Send`: held across an `await`, it would stop the session.
    here: PhantomData<*const ()>,
}

impl Drop for Cork<'_> {
    fn drop(&mut self) {
        self.session.owner.0.with(|state| state.corks -= 1);
    }
}

/// Counters of a session; see [`Session::stats`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stats {
    /// Streams that are open, or have something left to send.
    pub streams: usize,
    /// Streams opened so far by either side.
    pub opened: u64,
    /// Unread bytes of all streams.
    pub buffered: usize,
    /// Queued payload bytes of all streams.
    pub queued: usize,
    /// Streams because of which the socket is not read, by ID. While this is not empty, no stream of
    /// the session receives anything, and no PING gets its echo.
    pub stalled: Vec<Stalled>,
    /// Since when the socket has accepted nothing although there is something to send.
    pub send_blocked: Option<Instant>,
    /// Bytes read from the connection.
    pub received: u64,
    /// Bytes written to the connection.
    pub sent: u64,
    /// Payload bytes that arrived for an ended stream and were discarded.
    pub discarded: u64,
    /// When the last byte was received; at first, when the session began.
    pub last_received: Instant,
}

/// A stream that holds up the reading of its session; see [`Stats::stalled`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Stalled {
    /// The stream.
    pub stream: StreamId,
    /// Its unread bytes.
    pub buffered: usize,
    /// Since when it has held more than [`Config`](crate::Config) allows.
    pub since: Instant,
}
