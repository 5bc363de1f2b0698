//! The bounds of one session, and of all that share an [`Unread`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How much one session may hold.
///
/// Nothing here is negotiated with the peer: these are our own bounds.
///
/// Received bytes that nobody has read take at most, in memory,
///
/// * of one session: `session_buffer` + 2 MiB + 256 KiB. Up to 256 KiB are kept as parts of at least 16 KiB of the
///   buffers (128 KiB) they were read into, beyond that they are copied; one read may go over the bound.
/// * of all sessions that share an [`Unread`]: twice its limit + 256 KiB for each session. Nothing but copies is
///   kept once an eighth of the limit is taken.
#[derive(Debug, Clone)]
pub struct Config {
    /// Streams that may be open at once, whoever opened them. More are refused.
    pub max_streams: usize,
    /// Received bytes one stream may hold unread before its session's socket is no longer read.
    /// What is read at once (128 KiB) may go over it. SPDY as Kubernetes speaks it has no other brake; see
    /// [`Stats::stalled`](crate::Stats::stalled).
    pub stream_buffer: usize,
    /// The same for all streams of the session. A stream may hold no more than is left of it, so that the one
    /// that holds most is the one that stops the reading.
    pub session_buffer: usize,
    /// The same for all sessions that share it.
    pub unread: Unread,
    /// Outgoing bytes that may wait for the socket before writers wait, shared evenly by the
    /// streams that have some. A stream with nothing waiting may always queue 16 KiB.
    pub send_buffer: usize,
    /// Largest payload of a DATA frame while several streams have something to send. A stream
    /// alone sends what it has gathered, up to 256 KiB, in one frame.
    pub max_data_frame: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_streams: 1024,
            stream_buffer: 1024 * 1024,
            session_buffer: 8 * 1024 * 1024,
            unread: Unread::default(),
            send_buffer: 256 * 1024,
            max_data_frame: 64 * 1024,
        }
    }
}

/// Received bytes that nobody has read yet, of all sessions that were given a clone, and their limit.
#[derive(Debug, Clone, Default)]
pub struct Unread(Option<Arc<Limited>>);

#[derive(Debug)]
struct Limited {
    bytes: AtomicUsize,
    limit: usize,
}

impl Unread {
    /// No limit, and no count.
    pub const UNLIMITED: Self = Self(None);

    /// At most `limit` bytes.
    pub fn limited(limit: usize) -> Self {
        let bytes = AtomicUsize::new(0);
        Self(Some(Arc::new(Limited { bytes, limit })))
    }

    /// How much there is now.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |all| all.bytes.load(Relaxed))
    }

    /// What is left.
    pub(crate) fn room(&self) -> usize {
        let left = |all: &Arc<Limited>| all.limit.saturating_sub(all.bytes.load(Relaxed));
        self.0.as_ref().map_or(usize::MAX, left)
    }

    /// Whether so little is taken that it need not be exact.
    pub(crate) fn is_ample(&self) -> bool {
        let ample = |all: &Arc<Limited>| all.bytes.load(Relaxed) < all.limit / 8;
        self.0.as_ref().is_none_or(ample)
    }

    /// A session holds `now` and no longer `before`.
    pub(crate) fn change(&self, before: usize, now: usize) {
        if let Some(all) = &self.0 {
            all.bytes.fetch_add(now.wrapping_sub(before), Relaxed);
        }
    }
}
