//! Counters of a forwarder, and lock-free counters of each of its connections.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::Wake;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use kubevpn_spdy::StreamId;
use tokio::time::Instant;

use crate::config::Transport;

/// A connection that moved more than this within [`BULK_WINDOW`] is bulk.
const BULK: u64 = 256 * 1024;
/// This much fits into socket buffers on the way even if the Pod does not read.
pub(crate) const MAY_BLOCK: u64 = 64 * 1024;
/// In milliseconds. A connection stays bulk for this long after its transfer stops.
const BULK_WINDOW: u64 = 2_000;

/// Counters of a forwarder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Sessions open now, by transport in the order of [`Transport::ALL`].
    pub sessions: [usize; Transport::ALL.len()],
    /// Connections open now, including lingering ones.
    pub streams: usize,
    /// Connections whose client has ended and whose Pod has not.
    pub lingering: usize,
    /// Bytes received on sessions that their clients have not read.
    pub unread: usize,
    /// Upgrades requested so far, including refused ones.
    pub upgrades: u64,
    /// Connections opened so far.
    pub opened: u64,
    /// Dials that the Pod's side refused.
    pub refused: u64,
    /// Sessions closed because they had stopped answering.
    pub evicted: u64,
    /// Sessions found wedged: they had stopped carrying some of their connections.
    pub wedged: u64,
    /// Connections reset because their client did not read while others waited.
    pub stalled: u64,
}

/// Origin of times in milliseconds: since the pool began, plus one, so that 0 means never.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epoch(Instant);

impl Epoch {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> u64 {
        self.of(Instant::now())
    }

    /// The result may be later than a `now` that was read before, as other threads run in between: use saturating subtraction.
    pub(crate) fn of(self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.0).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX - 1) + 1
    }

    pub(crate) fn at(self, mark: u64) -> Instant {
        self.0 + Duration::from_millis(mark.saturating_sub(1))
    }
}

/// Lock-free counters and flags of one connection.
///
/// The stream writes them, the keeper reads them. They order no other memory, hence `Relaxed`.
#[derive(Debug)]
pub(crate) struct ConnectionCounters {
    epoch: Epoch,
    /// The data stream, once there is one.
    id: OnceLock<StreamId>,
    /// When the connection was registered.
    pub(crate) began: u64,
    /// Since when the Pod has been silent with everything read; 0 while it is not.
    quiet_since: AtomicU64,
    /// The Pod sent something after the client's last write.
    answered: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
    /// How much of `written` the last PINGs followed.
    marked: AtomicU64,
    /// How much of `written` the session is known to have carried.
    proven: AtomicU64,
    last_write: AtomicU64,
    /// When the first bytes were written that are neither answered by the Pod nor known to be carried by the session.
    asked: AtomicU64,
    window_began: AtomicU64,
    window_moved: AtomicU64,
    bulk_until: AtomicU64,
    exempt: AtomicBool,
    client_ended: AtomicBool,
    /// The Pod sent something after the client had ended its side, and the client read it.
    reads_on: AtomicBool,
    /// When the client's end was sent to the Pod; 0 for not yet.
    passed_on: AtomicU64,
    /// When the forward's end was received, read or not; 0 where that is not known.
    forward_ended: AtomicU64,
    pod_ended: AtomicBool,
    cut: AtomicBool,
    failed: OnceLock<&'static str>,
    reader: AtomicWaker,
    ender: AtomicWaker,
}

impl ConnectionCounters {
    pub(crate) fn new(epoch: Epoch) -> Self {
        let now = epoch.now();
        Self {
            epoch,
            id: OnceLock::new(),
            began: now,
            quiet_since: AtomicU64::new(now),
            answered: AtomicBool::new(false),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            marked: AtomicU64::new(0),
            proven: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            window_began: AtomicU64::new(0),
            window_moved: AtomicU64::new(0),
            bulk_until: AtomicU64::new(0),
            exempt: AtomicBool::new(false),
            client_ended: AtomicBool::new(false),
            reads_on: AtomicBool::new(false),
            passed_on: AtomicU64::new(0),
            forward_ended: AtomicU64::new(0),
            pod_ended: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            failed: OnceLock::new(),
            reader: AtomicWaker::new(),
            ender: AtomicWaker::new(),
        }
    }

    pub(crate) fn named(&self, id: StreamId) {
        let _ = self.id.set(id);
    }

    pub(crate) fn id(&self) -> Option<StreamId> {
        self.id.get().copied()
    }

    // === what the stream reports ===

    /// This many bytes of the Pod were read.
    pub(crate) fn heard(&self, bytes: usize) {
        self.quiet_since.store(0, Relaxed);
        self.answered.store(true, Relaxed);
        self.asked.store(0, Relaxed);
        if self.client_ended.load(Relaxed) {
            self.reads_on.store(true, Relaxed);
        }
        self.read.fetch_add(bytes as u64, Relaxed);
        self.moved(bytes);
    }

    /// All bytes of the Pod received so far were read.
    pub(crate) fn quiet(&self) {
        if self.quiet_since.load(Relaxed) == 0 {
            self.quiet_since.store(self.epoch.now(), Relaxed);
        }
    }

    /// The client sent this many bytes.
    pub(crate) fn wrote(&self, bytes: usize) {
        self.answered.store(false, Relaxed);
        let now = self.epoch.now();
        self.last_write.store(now, Relaxed);
        if self.asked.load(Relaxed) == 0 {
            self.asked.store(now, Relaxed);
        }
        self.written.fetch_add(bytes as u64, Relaxed);
        self.moved(bytes);
    }

    pub(crate) fn client_ended(&self) {
        self.client_ended.store(true, Relaxed);
    }

    /// The client's end was sent to the Pod: nothing can follow it.
    pub(crate) fn passed_on(&self) {
        self.passed_on.store(self.epoch.now(), Relaxed);
    }

    /// The forward has ended on the other side; its last data may still be unread.
    pub(crate) fn forward_ended(&self) {
        let now = self.epoch.now();
        let _ = self
            .forward_ended
            .compare_exchange(0, now, Relaxed, Relaxed);
    }

    /// Also wakes the task that waits to pass the client's end on.
    pub(crate) fn pod_ended(&self) {
        self.pod_ended.store(true, Relaxed);
        self.ender.wake();
    }

    fn moved(&self, bytes: usize) {
        let moved = self.window_moved.load(Relaxed) + bytes as u64;
        if moved < BULK {
            self.window_moved.store(moved, Relaxed);
            if self.window_began.load(Relaxed) == 0 {
                self.window_began.store(self.epoch.now(), Relaxed);
            }
            return;
        }
        // The clock is read once per window, not once per read.
        let now = self.epoch.now();
        if now - self.window_began.load(Relaxed).min(now) <= BULK_WINDOW {
            self.bulk_until.store(now + BULK_WINDOW, Relaxed);
        }
        self.window_began.store(now, Relaxed);
        self.window_moved.store(0, Relaxed);
    }

    // === what the pool asks ===

    pub(crate) fn is_bulk(&self, now: u64) -> bool {
        self.bulk_until.load(Relaxed) > now
    }

    /// Whether neither side has ended.
    pub(crate) fn is_live(&self) -> bool {
        !(self.client_ended.load(Relaxed) || self.has_pod_ended())
    }

    pub(crate) fn has_pod_ended(&self) -> bool {
        self.pod_ended.load(Relaxed)
    }

    /// Whether the Pod has sent anything.
    pub(crate) fn was_heard(&self) -> bool {
        self.read.load(Relaxed) > 0
    }

    /// When the client's end was sent to the Pod.
    pub(crate) fn passed_on_at(&self) -> Option<u64> {
        Some(self.passed_on.load(Relaxed)).filter(|&mark| mark != 0)
    }

    /// When the forward's end was received, if that is known.
    pub(crate) fn forward_ended_at(&self) -> Option<u64> {
        Some(self.forward_ended.load(Relaxed)).filter(|&mark| mark != 0)
    }

    /// Whether the client is known to read although it has ended its side, so that it is half-closed and not closed.
    pub(crate) fn reads_on(&self) -> bool {
        self.reads_on.load(Relaxed)
    }

    /// Since when the Pod has been silent with everything read.
    pub(crate) fn quiet_since(&self) -> Option<u64> {
        Some(self.quiet_since.load(Relaxed)).filter(|&mark| mark != 0)
    }

    /// Whether the Pod sent something after the client's last write.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    /// Whether much more of the Pod's data may be in flight than was read.
    pub(crate) fn is_behind(&self) -> bool {
        self.quiet_since().is_none() && self.read.load(Relaxed) >= BULK
    }

    /// Whether the client has sent so much that a Pod that does not read could hold up the session.
    pub(crate) fn is_upload(&self) -> bool {
        self.written.load(Relaxed) - self.proven.load(Relaxed) > MAY_BLOCK
    }

    /// Since when bytes of the client have been neither answered nor known to be carried.
    pub(crate) fn asked(&self) -> Option<u64> {
        Some(self.asked.load(Relaxed)).filter(|&mark| mark != 0)
    }

    /// When the client last sent something; 0 for never.
    pub(crate) fn last_write(&self) -> u64 {
        self.last_write.load(Relaxed)
    }

    /// Whether the client may still be waiting for data of the Pod.
    pub(crate) fn is_waiting(&self) -> bool {
        let satisfied = self.client_ended.load(Relaxed) && self.is_answered();
        let over = self.has_pod_ended() || self.is_cut() || self.failed().is_some();
        !satisfied && !over
    }

    // === what the pool decides ===

    /// The session's PINGs are sent now.
    pub(crate) fn mark(&self) {
        self.marked.store(self.written.load(Relaxed), Relaxed);
    }

    /// The PINGs that were sent at `until` have come back: the session has carried everything before them.
    pub(crate) fn prove(&self, until: u64) {
        self.proven.store(self.marked.load(Relaxed), Relaxed);
        if self.asked().is_some() {
            let later = Some(self.last_write()).filter(|&at| at > until);
            self.asked.store(later.unwrap_or(0), Relaxed);
        }
    }

    /// Allows further writes although the session is wedged: this connection is the one that holds it up.
    pub(crate) fn exempt(&self) {
        self.exempt.store(true, Relaxed);
    }

    pub(crate) fn is_exempt(&self) -> bool {
        self.exempt.load(Relaxed)
    }

    /// Passes the client's end on without further waiting.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Relaxed);
        self.ender.wake();
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Relaxed)
    }

    /// Ends the connection for this reason.
    pub(crate) fn fail(&self, reason: &'static str) {
        let _ = self.failed.set(reason);
        self.reader.wake();
        self.ender.wake();
    }

    pub(crate) fn failed(&self) -> Option<&'static str> {
        self.failed.get().copied()
    }

    /// Waker of the stream's read, used by [`ConnectionCounters::fail`].
    pub(crate) fn reader(&self) -> &AtomicWaker {
        &self.reader
    }

    /// Waker of the stream's shutdown, used by [`ConnectionCounters::cut`], [`ConnectionCounters::fail`] and at the Pod's end.
    pub(crate) fn ender(&self) -> &AtomicWaker {
        &self.ender
    }
}

/// The waker of the error stream, while nobody reads that: it has something to read when the forward has ended.
impl Wake for ConnectionCounters {
    fn wake(self: Arc<Self>) {
        self.forward_ended();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bulk_is_much_in_little_time() {
        let epoch = Epoch::new();
        let connection = ConnectionCounters::new(epoch);
        for _ in 0..100 {
            connection.heard(10 * 1024);
            advance(Duration::from_millis(100)).await;
        }
        assert!(!connection.is_bulk(epoch.now()), "100 KiB/s is not bulk");
        for _ in 0..20 {
            connection.heard(32 * 1024);
        }
        assert!(connection.is_bulk(epoch.now()));
        advance(Duration::from_millis(BULK_WINDOW)).await;
        assert!(!connection.is_bulk(epoch.now()), "it has calmed down");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_does_not_prove_bytes_sent_after_it() {
        let epoch = Epoch::new();
        let connection = ConnectionCounters::new(epoch);
        connection.wrote(1);
        let probe = epoch.now();
        connection.prove(probe);
        assert_eq!(connection.asked(), None);
        connection.wrote(1);
        advance(Duration::from_millis(5)).await;
        let probe = epoch.now();
        advance(Duration::from_millis(5)).await;
        connection.wrote(1);
        connection.prove(probe);
        assert_eq!(connection.asked(), Some(11));
        connection.heard(1);
        assert_eq!(connection.asked(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_does_not_prove_an_upload_sent_after_it() {
        let epoch = Epoch::new();
        let connection = ConnectionCounters::new(epoch);
        connection.wrote(200 * 1024);
        advance(Duration::from_millis(5)).await;
        let probe = epoch.now();
        connection.mark();
        connection.wrote(200 * 1024);
        connection.prove(probe);
        assert!(connection.is_upload());
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_begins_when_everything_was_read() {
        let epoch = Epoch::new();
        let connection = ConnectionCounters::new(epoch);
        connection.heard(1);
        assert_eq!(connection.quiet_since(), None);
        advance(Duration::from_secs(1)).await;
        connection.quiet();
        advance(Duration::from_secs(1)).await;
        connection.quiet();
        assert_eq!(connection.quiet_since(), Some(1_001));
        assert!(connection.is_answered());
        connection.wrote(1);
        assert!(!connection.is_answered());
    }
}
