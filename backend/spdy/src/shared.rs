//! What the driver and all handles of a session share.

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

/// A session, between its driver and its handles. The lock is held for moments only, never while
/// something is waited for, written or read, nor while a stream's waker is woken.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Set when no new streams can be opened any more.
    pub(crate) closing: SetOnce<()>,
    /// Set when the session has ended, to why.
    pub(crate) closed: SetOnce<SessionError>,
}

/// What is behind the lock.
pub(crate) struct State {
    pub(crate) machine: Machine,
    /// Who waits on which stream.
    pub(crate) slots: HashMap<StreamId, Slot>,
    pub(crate) pings: HashMap<u32, Ping>,
    /// Streams the peer opened, for [`Incoming`](crate::Incoming).
    pub(crate) requests: VecDeque<Opened>,
    pub(crate) incoming: Option<Waker>,
    /// The driver; gone while it has been woken and has not looked yet.
    pub(crate) driver: Option<Waker>,
    /// How many [`Cork`](crate::Cork)s hold the writing back.
    pub(crate) corks: usize,
    /// The session is to end, for this reason.
    pub(crate) ending: Option<SessionError>,
    /// Nobody has a handle any more.
    pub(crate) orphaned: bool,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) last_received: Instant,
    pub(crate) send_blocked: Option<Instant>,
}

/// Who waits on a stream.
#[derive(Default)]
pub(crate) struct Slot {
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
    /// When the stream last began to hold up reading.
    pub(crate) full_since: Option<Instant>,
}

/// A PING under way.
pub(crate) struct Ping {
    pub(crate) sent: Instant,
    pub(crate) echo: oneshot::Sender<Duration>,
}

/// A stream the peer opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: StreamId,
    pub(crate) headers: Headers,
    pub(crate) fin: bool,
}

/// Tasks to be woken once the lock is free.
pub(crate) type Wakers = Vec<Waker>;

impl Shared {
    pub(crate) fn new(role: Role, config: Config) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
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

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing behind the lock panics half-way through a change that another would trip over.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something and wakes the driver if it has to look: there is something new to write, or
    /// room to read into.
    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
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

/// What there is for the driver to do.
#[derive(Clone, Copy)]
struct Work {
    output: bool,
    ends: bool,
    input: bool,
    ending: bool,
}

impl Work {
    /// What was there before, the driver knows of: it was woken then, or waits for the socket.
    fn is_more_than(self, before: Self) -> bool {
        (self.output && !before.output)
            || (self.ends && !before.ends)
            || (self.input && !before.input)
            || (self.ending && !before.ending)
    }
}

impl State {
    fn work(&self) -> Work {
        Work {
            output: self.corks == 0 && self.machine.has_output(),
            ends: self.corks == 0 && self.machine.has_ends(),
            input: self.machine.wants_input(),
            ending: self.ending.is_some() || self.orphaned,
        }
    }

    /// Hands the machine's events to those who wait for them.
    pub(crate) fn dispatch(
        &mut self,
        shared: &Shared,
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
                    self.slots.insert(stream, Slot::default());
                    self.requests.push_back(Opened {
                        stream,
                        headers,
                        fin,
                    });
                    wakers.extend(self.incoming.take());
                }
                Event::Pong(id) => {
                    if let Some(Ping { sent, echo }) = self.pings.remove(&id) {
                        // Nobody is there to hear it when the waiting future was just dropped.
                        let _ = echo.send(sent.elapsed());
                    }
                }
                Event::GoingAway => {
                    let _ = shared.closing.set(());
                }
            }
        }
    }

    /// Ends everything, and collects everybody who waits.
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

    /// Tells that the handle of a stream is gone. What is returned is to be dropped once the lock is
    /// free: nobody knows what a waker's drop sets off.
    pub(crate) fn release(&mut self, stream: StreamId) -> Option<Slot> {
        self.machine.release(stream);
        self.slots.remove(&stream)
    }
}

/// Remembers whom to wake.
pub(crate) fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

/// Held by everything that keeps a session alive.
pub(crate) struct Owner(pub(crate) Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.with(|state| state.orphaned = true);
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner")
    }
}
