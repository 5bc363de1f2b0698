//! A connection's place in the pool, from the moment a dial takes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use kubevpn_spdy::StreamId;
use tokio::time::Instant;

use crate::pod::PodId;
use crate::pool::Pool;
use crate::pool::linger::trim;
use crate::pool::state::{Entry, State};
use crate::stats::Connection;

/// A connection that ended this soon after the client wrote may have left data unread on the session, in
/// milliseconds. The container runtime reports the Pod's end 1 s late.
const UNREAD: u64 = 3_000;

/// The container runtime ends a connection this long after it has read the end of either direction, in milliseconds.
const RUNTIME_CLOCK: u64 = 1_000;

/// Counts a connection until it is dropped.
pub(crate) struct Lease {
    place: Place,
    /// Neither side has ended.
    live: bool,
    /// The Pod's end was seen.
    over: bool,
    /// The Pod has sent something.
    heard: bool,
    /// When the client's end was passed on; 0 for not yet.
    passed_on: u64,
}

/// Where it is counted.
struct Place {
    pool: Arc<Pool>,
    pod: Arc<PodId>,
    port: u16,
    connection: Arc<Connection>,
    /// `None` for a channel.
    session: Option<Seat>,
}

struct Seat {
    id: u64,
    wedged: Arc<AtomicBool>,
}

impl Lease {
    /// For a connection that the state knows already, on this session or as a channel.
    pub(crate) fn new(
        pool: &Arc<Pool>,
        pod: &Arc<PodId>,
        port: u16,
        connection: Arc<Connection>,
        session: Option<&Entry>,
    ) -> Self {
        let session = session.map(|entry| Seat {
            id: entry.id,
            wedged: entry.wedged.clone(),
        });
        let place = Place {
            pool: pool.clone(),
            pod: pod.clone(),
            port,
            connection,
            session,
        };
        Self {
            place,
            live: true,
            over: false,
            heard: false,
            passed_on: 0,
        }
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.place.connection
    }

    pub(crate) fn named(&self, id: StreamId) {
        self.place.connection.named(id);
    }

    /// Since when the Pod has been silent with everything read.
    pub(crate) fn quiet_since(&self) -> Option<Instant> {
        let since = self.place.connection.quiet_since();
        since.map(|mark| self.place.pool.epoch.at(mark))
    }

    /// Whether what is written now could be lost in the session.
    pub(crate) fn is_wedged(&self) -> bool {
        let seat = self.place.session.as_ref();
        seat.is_some_and(|s| s.wedged.load(Relaxed)) && !self.place.connection.is_exempt()
    }

    /// The Pod sent something: its port is good.
    pub(crate) fn heard(&mut self) {
        if !std::mem::replace(&mut self.heard, true) {
            self.remember();
        }
    }

    /// The port is good.
    pub(crate) fn remember(&self) {
        let Place {
            pool, pod, port, ..
        } = &self.place;
        let now = pool.epoch.now();
        pool.state().pod(pod).remember(*port, now, &pool.config);
    }

    /// There is reason to doubt the session.
    pub(crate) fn suspect(&self) {
        self.place.suspect();
    }

    /// The session refused or broke a new stream: no more of them.
    pub(crate) fn distrust(&self) {
        self.place.retire(&mut self.place.pool.state());
        self.suspect();
    }

    /// The client has ended its side; the stream may have to wait before it passes that on.
    pub(crate) fn client_ended(&mut self) {
        let Place {
            pool,
            pod,
            connection,
            ..
        } = &self.place;
        connection.client_ended();
        let mut state = pool.state();
        self.place.leave(&mut state, &mut self.live);
        if !self.over {
            let lingering = &mut state.pod(pod).lingering;
            lingering.push(connection.clone());
            trim(lingering, &pool.config);
        }
    }

    /// The client's end has left for the Pod: nothing can follow it.
    pub(crate) fn passed_on(&mut self) {
        self.passed_on = self.place.pool.epoch.now();
    }

    /// The Pod has ended its side; `failed` where its node gave a reason: nothing listened, or the Pod is gone.
    pub(crate) fn pod_ended(&mut self, failed: bool) {
        self.over = true;
        let Place {
            pool,
            pod,
            connection,
            ..
        } = &self.place;
        connection.pod_ended();
        let mut state = pool.state();
        self.place.leave(&mut state, &mut self.live);
        let entry = state.pod(pod);
        entry.lingering.retain(|l| !Arc::ptr_eq(l, connection));
        if failed && !self.heard {
            entry.forget(self.place.port);
        }
        drop(state);
        if !self.read_to_the_end() {
            self.place.check_unread();
        }
    }

    /// Whether the Pod's end shows that everything the client wrote was read: the runtime's clock was started by the
    /// client's end, which came after it. Had the Pod closed before that, we would have heard of it earlier.
    fn read_to_the_end(&self) -> bool {
        let since = self.place.pool.epoch.now().saturating_sub(self.passed_on);
        self.passed_on != 0 && since >= RUNTIME_CLOCK
    }
}

impl Place {
    /// Probes the session if what was written may not have been read.
    fn check_unread(&self) {
        let wrote = self.connection.last_write();
        if wrote != 0 && self.pool.epoch.now().saturating_sub(wrote) < UNREAD {
            self.suspect();
        }
    }

    fn suspect(&self) {
        if let Some(seat) = &self.session {
            self.pool.suspect(&self.pod, seat.id);
        }
    }

    /// It no longer counts as live.
    fn leave(&self, state: &mut State, live: &mut bool) {
        if !std::mem::take(live) {
            return;
        }
        if let Some(entry) = self.entry(state) {
            entry.live -= 1;
            entry.used = self.pool.epoch.now();
        }
        state.pod(&self.pod).wake();
    }

    fn retire(&self, state: &mut State) {
        if let Some(entry) = self.entry(state) {
            entry.retire();
        }
    }

    /// Its session, unless that has ended.
    fn entry<'a>(&self, state: &'a mut State) -> Option<&'a mut Entry> {
        state.entry(&self.pod, self.session.as_ref()?.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let place = &self.place;
        let now = place.pool.epoch.now();
        let mut state = place.pool.state();
        place.leave(&mut state, &mut self.live);
        let others = |l: &Arc<Connection>| !Arc::ptr_eq(l, &place.connection);
        let pod = state.pod(&place.pod);
        pod.lingering.retain(others);
        // A session that has ended left its connections with the channels.
        pod.channels.retain(others);
        let Some(entry) = place.entry(&mut state) else {
            return;
        };
        entry.connections.retain(others);
        if !self.over && (place.connection.is_bulk(now) || place.connection.is_behind()) {
            // Up to 120 MB of it would have to be received and thrown away first.
            tracing::debug!(pod = %place.pod, session = entry.id, "bulk was cut off, session retires");
            entry.retire();
        }
        entry.close_if_done();
        let cut_off = !self.over && self.passed_on == 0 && !entry.retired;
        drop(state);
        if cut_off {
            // The forward may have ended while the last of it was on its way.
            place.check_unread();
        }
    }
}
