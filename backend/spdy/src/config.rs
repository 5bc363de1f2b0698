//! The bounds of one session, and of all that share an [`Unread`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How much one session may hold.
///
/// Nothing here is negotiated with the peer: these are our own bounds.
///
/// A received piece counts as unread until the [`SpdyStream`](crate::SpdyStream) has returned all of it, also after the stream
/// has ended. Unread bytes take at most, in memory,
///
/// * of one session: `session_buffer` + 2 MiB + 256 KiB. Up to 256 KiB are kept as parts of at least 16 KiB of the
///   buffers (128 KiB) they were read into, beyond that they are copied; one read may go over the bound.
/// * of all sessions that share an [`Unread`]: twice its limit + 256 KiB for each session. Nothing but copies is
///   kept once an eighth of the limit is taken.
#[derive(Debug, Clone)]
pub struct Config {
    /// Limit on open streams of either side. Further ones are refused.
    pub max_streams: usize,
    /// Unread bytes of one stream above which the session's socket is no longer read. One read (128 KiB) may exceed it.
    /// SPDY as Kubernetes speaks it has no other back pressure; see [`Stats::stalled`](crate::Stats::stalled).
    pub stream_buffer: usize,
    /// The same for all streams of the session, ended ones included. A stream may hold no more than the rest of it, so that
    /// the stream with the most unread bytes is the one that stops the reading.
    pub session_buffer: usize,
    /// The same for all sessions that share it. Room made by another session is noticed by
    /// [`Session::stats`](crate::Session::stats) only: call it regularly on each.
    pub unread: Unread,
    /// Queued outgoing bytes above which writers wait, shared evenly by the streams that have some. A stream with
    /// nothing queued may always queue 16 KiB.
    pub send_buffer: usize,
    /// Largest payload of a DATA frame while several streams have something to send. A single stream sends
    /// what it has gathered, up to 256 KiB, in one frame.
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

/// Unread bytes of all sessions that share a clone, and their limit.
#[derive(Debug, Clone, Default)]
pub struct Unread(Option<Arc<Limited>>);

#[derive(Debug)]
struct Limited {
    bytes: AtomicUsize,
    limit: usize,
}

impl Unread {
    /// No limit, and no counting.
    pub const UNLIMITED: Self = Self(None);

    /// At most `limit` bytes.
    pub fn limited(limit: usize) -> Self {
        let bytes = AtomicUsize::new(0);
        Self(Some(Arc::new(Limited { bytes, limit })))
    }

    /// Unread bytes now.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |all| all.bytes.load(Relaxed))
    }

    /// The rest of the limit.
    pub(crate) fn room(&self) -> usize {
        let left = |all: &Arc<Limited>| all.limit.saturating_sub(all.bytes.load(Relaxed));
        self.0.as_ref().map_or(usize::MAX, left)
    }

    /// Whether so little of the limit is used that the count need not be exact.
    pub(crate) fn is_ample(&self) -> bool {
        let ample = |all: &Arc<Limited>| all.bytes.load(Relaxed) < all.limit / 8;
        self.0.as_ref().is_none_or(ample)
    }

    /// Replaces a session's share `before` by `now`.
    pub(crate) fn change(&self, before: usize, now: usize) {
        if let Some(all) = &self.0 {
            all.bytes.fetch_add(now.wrapping_sub(before), Relaxed);
        }
    }
}
