//! Leases: a connection's place in the pool, from the moment a dial takes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Waker;

use kubevpn_spdy::StreamId;
use tokio::time::Instant;

use crate::pod::PodId;
use crate::pool::Pool;
use crate::pool::linger::trim;
use crate::pool::state::{PoolState, SessionEntry};
use crate::stats::ConnectionCounters;

/// A connection that ended this soon after the client wrote may have left data unread on the session, in
/// milliseconds. The container runtime reports the Pod's end 1 s late.
const UNREAD: u64 = 3_000;

/// A session is suspected if a connection ends this long after its last write, in milliseconds, and nothing was received
/// on the session since: the client gave up waiting.
const UNHEARD: u64 = 500;

/// Time from the end of either direction until the container runtime ends the connection, in milliseconds.
const RUNTIME_CLOCK: u64 = 1_000;

/// A connection's place in the pool; counted until it is dropped.
///
/// Whether either side has ended is stored in the [`ConnectionCounters`] only, which the pool's state shares.
pub(crate) struct Lease {
    pool: Arc<Pool>,
    pod: Arc<PodId>,
    port: u16,
    connection: Arc<ConnectionCounters>,
    /// `None` for a channel.
    session: Option<Seat>,
}

struct Seat {
    id: u64,
    wedged: Arc<AtomicBool>,
}

impl Lease {
    /// For a connection that is already registered in the state, on this session or as a channel.
    pub(crate) fn new(
        pool: &Arc<Pool>,
        pod: &Arc<PodId>,
        port: u16,
        connection: Arc<ConnectionCounters>,
        session: Option<&SessionEntry>,
    ) -> Self {
        let session = session.map(|entry| Seat {
            id: entry.id,
            wedged: entry.wedged.clone(),
        });
        Self {
            pool: pool.clone(),
            pod: pod.clone(),
            port,
            connection,
            session,
        }
    }

    pub(crate) fn connection(&self) -> &ConnectionCounters {
        &self.connection
    }

    pub(crate) fn named(&self, id: StreamId) {
        self.connection.named(id);
    }

    /// Since when the Pod has been silent with everything read.
    pub(crate) fn quiet_since(&self) -> Option<Instant> {
        let since = self.connection.quiet_since();
        since.map(|mark| self.pool.epoch.at(mark))
    }

    /// Whether what is written now could be lost in the session.
    pub(crate) fn is_wedged(&self) -> bool {
        let seat = self.session.as_ref();
        seat.is_some_and(|s| s.wedged.load(Relaxed)) && !self.connection.is_exempt()
    }

    /// This many bytes of the Pod were read: its port is good.
    pub(crate) fn heard(&self, bytes: usize) {
        let first = !self.connection.was_heard();
        self.connection.heard(bytes);
        if first {
            self.remember();
        }
    }

    /// Marks the port as good.
    pub(crate) fn remember(&self) {
        let now = self.pool.epoch.now();
        let mut state = self.pool.state();
        state
            .pod(&self.pod)
            .remember(self.port, now, &self.pool.config);
    }

    /// Marks the session as suspect and has it probed.
    pub(crate) fn suspect(&self) {
        if let Some(seat) = &self.session {
            self.pool.suspect(&self.pod, seat.id);
        }
    }

    /// Retires the session: it refused or broke a new stream.
    pub(crate) fn distrust(&self) {
        if let Some(entry) = self.entry(&mut self.pool.state()) {
            entry.retire();
        }
        self.suspect();
    }

    /// The client has ended its side; the stream may have to hold the end back.
    pub(crate) fn client_ended(&self) {
        let mut state = self.pool.state();
        self.change(&mut state, ConnectionCounters::client_ended);
        if !self.connection.has_pod_ended() && !self.connection.is_cut() {
            let lingering = &mut state.pod(&self.pod).lingering;
            lingering.push(self.connection.clone());
            trim(lingering, &self.pool.config);
        }
    }

    /// The client has closed, before or after it ended its side: its end is not held back.
    pub(crate) fn no_reader(&self) {
        self.connection.cut();
        if !self.connection.is_live() {
            let others = |c: &Arc<ConnectionCounters>| !Arc::ptr_eq(c, &self.connection);
            let mut state = self.pool.state();
            state.pod(&self.pod).lingering.retain(others);
        }
    }

    /// The Pod has ended its side; `failed` if its node gave a reason: nothing listened, or the Pod is gone.
    pub(crate) fn pod_ended(&self, failed: bool) {
        let mut state = self.pool.state();
        self.change(&mut state, ConnectionCounters::pod_ended);
        let pod = state.pod(&self.pod);
        pod.lingering.retain(|c| !Arc::ptr_eq(c, &self.connection));
        if failed && !self.connection.was_heard() {
            pod.forget(self.port);
        }
        drop(state);
        if !self.ended_by_the_clock() {
            self.check_unread();
        }
    }

    /// A waker to note the end of the forward with.
    pub(crate) fn end_waker(&self) -> Waker {
        self.connection.clone().into()
    }

    /// Whether the Pod's end may be caused by the client's end that was passed on before.
    ///
    /// The container runtime ends a session's stream one second after it has read the client's end: an end that was
    /// received earlier is the Pod's own, whenever it is read. A channel ends with the client's side.
    pub(crate) fn ended_by_the_clock(&self) -> bool {
        let Some(passed_on) = self.connection.passed_on_at() else {
            return false;
        };
        let ended = self.connection.forward_ended_at();
        let ended = ended.unwrap_or_else(|| self.pool.epoch.now());
        let since = ended.saturating_sub(passed_on);
        self.session.is_none() || since >= RUNTIME_CLOCK
    }

    /// Probes the session if what was written may not have been read.
    fn check_unread(&self) {
        let wrote = self.connection.last_write();
        if wrote != 0 && self.pool.epoch.now().saturating_sub(wrote) < UNREAD {
            self.suspect();
        }
    }

    /// Ends one side of the connection, and wakes dials that wait for a session.
    fn change(&self, state: &mut PoolState, end: impl FnOnce(&ConnectionCounters)) {
        let live = self.connection.is_live();
        end(&self.connection);
        if live {
            if let Some(entry) = self.entry(state) {
                entry.used = self.pool.epoch.now();
            }
            state.pod(&self.pod).wake();
        }
    }

    /// The connection's session, unless it has ended.
    fn entry<'a>(&self, state: &'a mut PoolState) -> Option<&'a mut SessionEntry> {
        state.entry(&self.pod, self.session.as_ref()?.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = self.pool.epoch.now();
        let connection = &self.connection;
        let over = connection.has_pod_ended();
        let mut state = self.pool.state();
        let others = |c: &Arc<ConnectionCounters>| !Arc::ptr_eq(c, connection);
        let pod = state.pod(&self.pod);
        pod.lingering.retain(others);
        // The connections of an ended session were moved to the channels.
        pod.channels.retain(others);
        pod.wake();
        let Some(entry) = self.entry(&mut state) else {
            return;
        };
        entry.connections.retain(others);
        if connection.is_live() {
            entry.used = now;
        }
        if !over && (connection.is_bulk(now) || connection.is_behind()) {
            // Up to 120 MB of the transfer would have to be received and discarded first.
            tracing::debug!(pod = %self.pod, session = entry.id, "a large transfer was cut off, the session is retired");
            entry.retire();
        }
        entry.close_if_done();
        let cut_off = !over && connection.passed_on_at().is_none() && !entry.retired;
        let heard = self.pool.epoch.of(entry.handle.stats().last_received);
        let wrote = connection.last_write();
        let unheard = wrote != 0 && heard < wrote && now.saturating_sub(wrote) >= UNHEARD;
        drop(state);
        if unheard {
            self.suspect();
        } else if cut_off {
            // The forward may have ended while the last bytes were in flight.
            self.check_unread();
        }
    }
}
