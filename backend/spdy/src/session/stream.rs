//! One stream of a [`Machine`](super::Machine).

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::state::StreamState;
use crate::{Config, error::StreamError, frame::Headers};

/// Minimum weight of a chunk against `stream_buffer`, its overhead. Without it, frames of one byte
/// would take a hundred times the memory for which they count.
const MIN_WEIGHT: usize = 128;

/// Result of a read.
#[derive(Debug)]
pub(crate) enum ReadOutcome {
    Chunk(Bytes),
    End,
    Wait,
}

/// Sums over all streams, kept as they change.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamTotals {
    /// Streams that are not over.
    pub(crate) live: usize,
    /// Streams that hold up reading.
    pub(crate) full: usize,
    /// Unread payload.
    pub(crate) buffered: usize,
    /// Unread payload, including the overhead of small pieces, and what was read of a chunk that has a rest.
    pub(crate) weight: usize,
    /// Payload to be sent.
    pub(crate) queued: usize,
    /// Streams ever opened by either side.
    pub(crate) opened: u64,
    /// Payload discarded because its stream was over.
    pub(crate) discarded: u64,
}

/// A stream that is not over, or that has a handle.
#[derive(Debug)]
pub(super) struct StreamEntry {
    pub(super) state: StreamState,
    /// Why the stream is over, if not because both sides ended it.
    pub(super) failed: Option<StreamError>,
    /// The peer's reply; present from the start on a stream that the peer opened.
    pub(super) reply: Option<Headers>,
    /// Whether a handle exists.
    pub(super) held_by_handle: bool,
    /// Whether it is no longer counted in [`StreamTotals::live`].
    pub(super) counted_out: bool,
    /// Unread chunks.
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    pub(super) buffered: usize,
    weight: usize,
    /// Weight of the first chunk if a part of it was read: all of its memory is held until it is read to its end.
    begun: Option<usize>,
    /// Whether received data may have been discarded.
    discarded: bool,
    /// Whether it holds up the reading of the session.
    pub(super) full: bool,
    pub(super) received: u64,
    /// The DATA frame to be sent next: space for its head, then payload. Empty if there is none.
    pub(super) frame: BytesMut,
    /// Whether the next frame, even if empty, is the last.
    pub(super) fin: bool,
    /// Whether it is in the queue of streams with something to send.
    pub(super) ready: bool,
    pub(super) sent: u64,
}

impl StreamEntry {
    pub(super) fn new(state: StreamState, reply: Option<Headers>) -> Self {
        Self {
            state,
            failed: None,
            reply,
            held_by_handle: true,
            counted_out: false,
            chunks: VecDeque::new(),
            buffered: 0,
            weight: 0,
            begun: None,
            discarded: false,
            full: false,
            received: 0,
            frame: BytesMut::new(),
            fin: false,
            ready: false,
            sent: 0,
        }
    }

    /// Whether frames of the stream may still be sent or received.
    pub(super) fn is_live(&self) -> bool {
        self.failed.is_none() && (self.state != StreamState::Ended || self.ready)
    }

    /// Whether received payload can still be read.
    pub(super) fn receives(&self) -> bool {
        self.failed.is_none() && !self.state.remote_ended() && self.held_by_handle
    }

    pub(super) fn push(&mut self, chunk: Bytes, totals: &mut StreamTotals) {
        self.received += chunk.len() as u64;
        self.buffered += chunk.len();
        totals.buffered += chunk.len();
        let weight = chunk.len().max(MIN_WEIGHT);
        self.weight += weight;
        totals.weight += weight;
        self.chunks.push_back(chunk);
    }

    /// Returns chunks of at most `most` bytes first, then the end, then the failure: data before a reset is not lost.
    pub(super) fn read(
        &mut self,
        most: usize,
        totals: &mut StreamTotals,
    ) -> Result<ReadOutcome, StreamError> {
        if let Some(chunk) = self.chunks.front_mut() {
            let weight = self.begun.unwrap_or_else(|| chunk.len().max(MIN_WEIGHT));
            // Split and not advanced: an empty rest would hold the buffer it was read into.
            let read = chunk.split_to(chunk.len().min(most));
            self.buffered -= read.len();
            totals.buffered -= read.len();
            self.begun = Some(weight);
            if chunk.is_empty() {
                self.begun = None;
                self.weight -= weight;
                totals.weight -= weight;
                self.chunks.pop_front();
            }
            if self.chunks.is_empty() {
                self.chunks = VecDeque::new();
            }
            return Ok(ReadOutcome::Chunk(read));
        }
        Ok(match self.at_end()? {
            Some(true) => ReadOutcome::End,
            Some(false) | None => ReadOutcome::Wait,
        })
    }

    /// Whether the next read returns the end; `None` if it would wait.
    pub(super) fn at_end(&self) -> Result<Option<bool>, StreamError> {
        match &self.failed {
            _ if !self.chunks.is_empty() => Ok(Some(false)),
            // An orderly end counts, whatever came after it.
            _ if self.state.remote_ended() && !self.discarded => Ok(Some(true)),
            Some(error) => Err(error.clone()),
            None => Ok(None),
        }
    }

    /// Whether a read would not wait.
    pub(super) fn readable(&self) -> bool {
        !self.chunks.is_empty() || self.failed.is_some() || self.state.remote_ended()
    }

    /// Discards data that will not be read.
    pub(super) fn discard_received(&mut self, totals: &mut StreamTotals) {
        self.discarded = true;
        totals.buffered -= self.buffered;
        totals.weight -= self.weight;
        self.chunks = VecDeque::new();
        self.buffered = 0;
        self.weight = 0;
        self.begun = None;
    }

    pub(super) fn fail(&mut self, error: StreamError, totals: &mut StreamTotals) {
        totals.queued -= self.payload();
        self.frame = BytesMut::new();
        self.failed = Some(error);
    }

    /// Decides, after something was received, whether the stream holds up reading; true if it has just begun to.
    pub(super) fn weigh(&mut self, config: &Config, totals: &mut StreamTotals) -> bool {
        let began = !self.full && self.weight > self.limit(config, totals);
        if began {
            self.full = true;
            totals.full += 1;
        }
        began
    }

    /// Decides whether a stream that holds up reading does so no longer.
    pub(super) fn relieve(&mut self, config: &Config, totals: &mut StreamTotals) {
        if self.full && self.weight <= self.limit(config, totals) {
            self.full = false;
            totals.full -= 1;
        }
    }

    /// Unread weight above which the stream holds up reading. A stream that has ended will not grow: it matters once
    /// there is no room at all.
    fn limit(&self, config: &Config, totals: &StreamTotals) -> usize {
        let left = config.session_buffer.saturating_sub(totals.weight);
        let room = left.min(config.unread.room());
        match self.receives() {
            true => config.stream_buffer.min(room),
            false if room > 0 => usize::MAX,
            false => 0,
        }
    }
}
