//! State shared by the driver and all handles of a session.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

use tokio::{
    sync::{SetOnce, oneshot},
    time::Instant,
};

use crate::{
    Config,
    error::SessionError,
    frame::{Headers, StreamId},
    session::{Event, Machine, Role},
};

/// A session, shared by its driver and its handles. The lock is never held across an await, I/O, or the
/// waking of a stream's waker.
pub(crate) struct SharedSession {
    state: Mutex<LockedSession>,
    /// Set when no new streams can be opened.
    pub(crate) closing: SetOnce<()>,
    /// Set to the reason when the session has ended.
    pub(crate) closed: SetOnce<SessionError>,
}

/// The state behind the lock.
pub(crate) struct LockedSession {
    pub(crate) machine: Machine,
    /// Wakers by stream.
    pub(crate) slots: HashMap<StreamId, StreamWakers>,
    pub(crate) pings: HashMap<u32, PendingPing>,
    /// Streams the peer opened, for [`Incoming`](crate::Incoming).
    pub(crate) requests: VecDeque<PeerStream>,
    pub(crate) incoming: Option<Waker>,
    /// The driver's waker; `None` from its wake-up until it runs.
    pub(crate) driver: Option<Waker>,
    /// Number of [`Cork`](crate::Cork)s that hold writing back.
    pub(crate) corks: usize,
    /// Requests the end of the session, for this reason.
    pub(crate) ending: Option<SessionError>,
    /// Whether all handles were dropped.
    pub(crate) orphaned: bool,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) last_received: Instant,
    pub(crate) send_blocked: Option<Instant>,
}

/// The wakers of a stream.
#[derive(Default)]
pub(crate) struct StreamWakers {
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
    /// When the stream last began to hold up reading.
    pub(crate) full_since: Option<Instant>,
}

/// A PING whose echo is awaited.
pub(crate) struct PendingPing {
    pub(crate) sent: Instant,
    pub(crate) echo: oneshot::Sender<Duration>,
}

/// A stream the peer opened.
#[derive(Debug)]
pub(crate) struct PeerStream {
    pub(crate) stream: StreamId,
    pub(crate) headers: Headers,
    pub(crate) fin: bool,
}

/// Wakers to wake once the lock is released.
pub(crate) type Wakers = Vec<Waker>;

impl SharedSession {
    pub(crate) fn new(role: Role, config: Config) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(LockedSession {
                machine: Machine::new(role, config),
                slots: HashMap::new(),
                pings: HashMap::new(),
                requests: VecDeque::new(),
                incoming: None,
                driver: None,
                corks: 0,
                ending: None,
                orphaned: false,
                received: 0,
                sent: 0,
                last_received: Instant::now(),
                send_blocked: None,
            }),
            closing: SetOnce::new(),
            closed: SetOnce::new(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, LockedSession> {
        // No change behind the lock can be left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes the driver if there is something new to write, or room for reading.
    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut LockedSession) -> R) -> R {
        let mut state = self.lock();
        let before = state.work();
        let result = change(&mut state);
        let driver = if state.work().is_more_than(before) {
            state.driver.take()
        } else {
            None
        };
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        result
    }
}

/// Work for the driver.
#[derive(Clone, Copy)]
struct Work {
    output: bool,
    ends: bool,
    input: bool,
    ending: bool,
}

impl Work {
    /// The driver knows about earlier work: it was woken then, or waits for the socket.
    fn is_more_than(self, before: Self) -> bool {
        (self.output && !before.output)
            || (self.ends && !before.ends)
            || (self.input && !before.input)
            || (self.ending && !before.ending)
    }
}

impl LockedSession {
    fn work(&self) -> Work {
        Work {
            output: self.corks == 0 && self.machine.has_output(),
            ends: self.corks == 0 && self.machine.has_ends(),
            input: self.machine.wants_input(),
            ending: self.ending.is_some() || self.orphaned,
        }
    }

    /// Wakes the tasks that wait for the machine's events.
    pub(crate) fn dispatch(
        &mut self,
        shared: &SharedSession,
        events: &mut Vec<Event>,
        wakers: &mut Wakers,
    ) {
        for event in events.drain(..) {
            match event {
                Event::Readable(stream) => {
                    if let Some(slot) = self.slots.get_mut(&stream) {
                        wakers.extend(slot.reader.take());
                    }
                }
                Event::Writable(stream) => {
                    if let Some(slot) = self.slots.get_mut(&stream) {
                        wakers.extend(slot.writer.take());
                    }
                }
                Event::Full(stream) => {
                    if let Some(slot) = self.slots.get_mut(&stream) {
                        slot.full_since = Some(Instant::now());
                    }
                }
                Event::Request {
                    stream,
                    headers,
                    fin,
                } => {
                    self.slots.insert(stream, StreamWakers::default());
                    self.requests.push_back(PeerStream {
                        stream,
                        headers,
                        fin,
                    });
                    wakers.extend(self.incoming.take());
                }
                Event::Pong(id) => {
                    if let Some(PendingPing { sent, echo }) = self.pings.remove(&id) {
                        // The receiver is gone if the waiting future was just dropped.
                        let _ = echo.send(sent.elapsed());
                    }
                }
                Event::GoingAway => {
                    let _ = shared.closing.set(());
                }
            }
        }
    }

    /// Ends all streams, and collects all wakers.
    pub(crate) fn end(&mut self, error: &SessionError, wakers: &mut Wakers) {
        self.machine.end(error);
        self.pings.clear();
        self.requests.clear();
        wakers.extend(self.incoming.take());
        wakers.extend(self.driver.take());
        for slot in self.slots.values_mut() {
            wakers.extend(slot.reader.take());
            wakers.extend(slot.writer.take());
        }
    }

    /// Releases the handle of a stream. Drop the result after the lock is released: a waker's drop may run
    /// arbitrary code.
    pub(crate) fn release(&mut self, stream: StreamId) -> Option<StreamWakers> {
        self.machine.release(stream);
        self.slots.remove(&stream)
    }
}

/// Registers a waker.
pub(crate) fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

/// Held by everything that keeps a session alive.
pub(crate) struct SessionOwner(pub(crate) Arc<SharedSession>);

impl Drop for SessionOwner {
    fn drop(&mut self) {
        self.0.with(|state| state.orphaned = true);
    }
}

impl fmt::Debug for SessionOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner")
    }
}
