//! The handle of a session.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    error::{OpenError, SessionError},
    frame::{Headers, ResetStatus, StreamId},
    session::Totals,
    shared::{Owner, Ping, Slot},
    stream::Stream,
};

/// A handle of a session; clones are handles of the same one.
///
/// The session lives as long as any `Session`, [`Stream`] or [`Incoming`](crate::Incoming) of it.
/// When the last is gone, what is queued is still sent, then GOAWAY.
#[derive(Debug, Clone)]
pub struct Session {
    owner: Arc<Owner>,
}

impl Session {
    pub(crate) fn new(owner: Arc<Owner>) -> Self {
        Self { owner }
    }

    /// Opens a stream: queues SYN_STREAM and returns at once, without waiting for the peer's reply.
    /// With `fin` this side sends nothing but its headers.
    pub fn open(&self, headers: &Headers, fin: bool) -> Result<Stream, OpenError> {
        let id = self.owner.0.with(|state| {
            if let Some(error) = &state.ending {
                return Err(OpenError::Session(error.clone()));
            }
            let id = state.machine.open(headers, fin)?;
            state.slots.insert(id, Slot::default());
            Ok(id)
        })?;
        Ok(Stream::new(id, Arc::clone(&self.owner)))
    }

    /// Holds back what is queued from now on until the guard is dropped, so that it leaves in one
    /// write. Reading goes on. The guard is not `Send`: hold it over no `await`.
    pub fn cork(&self) -> Cork<'_> {
        self.owner.0.with(|state| state.corks += 1);
        Cork {
            session: self,
            here: PhantomData,
        }
    }

    /// Sends PING and waits for its echo; says how long that took. There is no limit on the wait.
    /// Dropping the future forgets the PING.
    pub async fn ping(&self) -> Result<Duration, SessionError> {
        let (echo, echoed) = oneshot::channel();
        let id = self.owner.0.with(|state| {
            if let Some(error) = state.machine.ended() {
                return Err(error.clone());
            }
            let id = state.machine.ping();
            let sent = Instant::now();
            state.pings.insert(id, Ping { sent, echo });
            Ok(id)
        })?;
        let _forget = Forget { session: self, id };
        match echoed.await {
            Ok(duration) => Ok(duration),
            Err(_) => Err(self.closed().await),
        }
    }

    /// Resets a stream, for instance one whose reader has stalled. What it had received and not
    /// read is dropped, its handle reports [`StreamError::ResetHere`](crate::StreamError), and
    /// data that still arrives is thrown away and counted. Unknown and ended streams are left alone.
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

    /// Ends the session at once: GOAWAY if the socket takes it without waiting, then the socket is
    /// closed. Streams keep what they have received; everything else of theirs fails.
    pub fn close(&self) {
        // Nobody minds when it was set before.
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

    /// Waits for the session to end and says why it did. Cancel safe.
    pub async fn closed(&self) -> SessionError {
        self.owner.0.closed.wait().await.clone()
    }

    /// Received bytes that wait for a reader, over all streams; as [`Stats::buffered`].
    pub fn buffered(&self) -> usize {
        self.owner.0.lock().machine.totals().buffered
    }

    /// What the session holds at this moment.
    pub fn stats(&self) -> Stats {
        let state = self.owner.0.lock();
        let Totals {
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

/// Takes back a PING that nobody waits for any more.
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
    /// Not to be held over an `await`: the session would stand still.
    here: PhantomData<*const ()>,
}

impl Drop for Cork<'_> {
    fn drop(&mut self) {
        self.session.owner.0.with(|state| state.corks -= 1);
    }
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
    /// Payload bytes that came for a stream already over, and were thrown away.
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
