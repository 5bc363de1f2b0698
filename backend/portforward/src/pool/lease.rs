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

/// A connection that ended so long after its last write, in milliseconds, while nothing at all was heard on the session,
/// gives reason to doubt it: a client gave up waiting.
const UNHEARD: u64 = 500;

/// The container runtime ends a connection this long after it has read the end of either direction, in milliseconds.
const RUNTIME_CLOCK: u64 = 1_000;

/// A connection's place in the pool; counted until it is dropped.
///
/// Whether either side has ended is in the [`Connection`], which the pool's state shares, and nowhere else.
pub(crate) struct Lease {
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
        Self {
            pool: pool.clone(),
            pod: pod.clone(),
            port,
            connection,
            session,
        }
    }

    pub(crate) fn connection(&self) -> &Connection {
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

    /// The Pod sent this much, and it was read: its port is good.
    pub(crate) fn heard(&self, bytes: usize) {
        let first = !self.connection.was_heard();
        self.connection.heard(bytes);
        if first {
            self.remember();
        }
    }

    /// The port is good.
    pub(crate) fn remember(&self) {
        let now = self.pool.epoch.now();
        let mut state = self.pool.state();
        state
            .pod(&self.pod)
            .remember(self.port, now, &self.pool.config);
    }

    /// There is reason to doubt the session.
    pub(crate) fn suspect(&self) {
        if let Some(seat) = &self.session {
            self.pool.suspect(&self.pod, seat.id);
        }
    }

    /// The session refused or broke a new stream: no more of them.
    pub(crate) fn distrust(&self) {
        if let Some(entry) = self.entry(&mut self.pool.state()) {
            entry.retire();
        }
        self.suspect();
    }

    /// The client has ended its side; the stream may have to wait before it passes that on.
    pub(crate) fn client_ended(&self) {
        let mut state = self.pool.state();
        self.change(&mut state, Connection::client_ended);
        if !self.connection.has_pod_ended() {
            let lingering = &mut state.pod(&self.pod).lingering;
            lingering.push(self.connection.clone());
            trim(lingering, &self.pool.config);
        }
    }

    /// The Pod has ended its side; `failed` where its node gave a reason: nothing listened, or the Pod is gone.
    pub(crate) fn pod_ended(&self, failed: bool) {
        let mut state = self.pool.state();
        self.change(&mut state, Connection::pod_ended);
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

    /// Whether the Pod's end, seen now, may be due to the client's, which was passed on before it.
    ///
    /// The container runtime's clock ends a session's stream a second after it has read the client's end: an end
    /// before that is the Pod's own. A channel ends with the client's side.
    pub(crate) fn ended_by_the_clock(&self) -> bool {
        let Some(passed_on) = self.connection.passed_on_at() else {
            return false;
        };
        let since = self.pool.epoch.now().saturating_sub(passed_on);
        self.session.is_none() || since >= RUNTIME_CLOCK
    }

    /// Probes the session if what was written may not have been read.
    fn check_unread(&self) {
        let wrote = self.connection.last_write();
        if wrote != 0 && self.pool.epoch.now().saturating_sub(wrote) < UNREAD {
            self.suspect();
        }
    }

    /// Ends one side of the connection, and tells those who wait for a session.
    fn change(&self, state: &mut State, end: impl FnOnce(&Connection)) {
        let live = self.connection.is_live();
        end(&self.connection);
        if live {
            if let Some(entry) = self.entry(state) {
                entry.used = self.pool.epoch.now();
            }
            state.pod(&self.pod).wake();
        }
    }

    /// Its session, unless that has ended.
    fn entry<'a>(&self, state: &'a mut State) -> Option<&'a mut Entry> {
        state.entry(&self.pod, self.session.as_ref()?.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = self.pool.epoch.now();
        let connection = &self.connection;
        let over = connection.has_pod_ended();
        let mut state = self.pool.state();
        let others = |c: &Arc<Connection>| !Arc::ptr_eq(c, connection);
        let pod = state.pod(&self.pod);
        pod.lingering.retain(others);
        // A session that has ended left its connections with the channels.
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
            // Up to 120 MB of it would have to be received and thrown away first.
            tracing::debug!(pod = %self.pod, session = entry.id, "bulk was cut off, session retires");
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
            // The forward may have ended while the last of it was on its way.
            self.check_unread();
        }
    }
}
