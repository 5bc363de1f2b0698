//! The bounds of one session.

/// How much one session may hold.
///
/// Nothing here is negotiated with the peer: these are our own bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Streams that may be open at once, whoever opened them. More are refused.
    pub max_streams: usize,
    /// Received bytes one stream may hold unread before its session's socket is no longer read.
    /// What is read at once (128 KiB) may go over it. SPDY as Kubernetes speaks it has no other brake; see
    /// [`Stats::stalled`](crate::Stats::stalled).
    pub stream_buffer: usize,
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
            send_buffer: 256 * 1024,
            max_data_frame: 64 * 1024,
        }
    }
}
