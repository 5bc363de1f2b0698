//! The sending side: control frames first, then DATA of one stream after the other.

use bytes::{BufMut, BytesMut};
use tracing::trace;

use super::{
    Event, Machine, Outbox,
    state::{EndTiming, StreamState, StreamTransition},
    stream::StreamEntry,
};
use crate::{
    error::StreamError,
    frame::{DataHead, HEAD_LEN, ResetStatus, StreamId},
};

/// Payload that a stream without queued data may always queue.
const MIN_SHARE: usize = 16 * 1024;

/// Limit on the payload of one DATA frame, used when no other stream waits.
const MAX_GATHERED: usize = 256 * 1024;

/// Bytes after which no frame is added to one write, so that control frames queued meanwhile wait for
/// no more than this.
const BATCH: usize = 128 * 1024;

impl StreamEntry {
    /// Queued payload.
    pub(super) fn payload(&self) -> usize {
        self.frame.len().saturating_sub(HEAD_LEN)
    }

    /// The frame to be sent next.
    fn take_frame(&mut self, stream: StreamId) -> BytesMut {
        let data = DataHead {
            stream,
            fin: self.fin,
            len: self.payload() as u32,
        };
        let mut frame = std::mem::take(&mut self.frame);
        match frame.first_chunk_mut() {
            Some(head) => *head = data.head(),
            None => frame.put_slice(&data.head()),
        }
        frame
    }
}

impl Machine {
    /// Queues payload and returns how much. If it is less than all, try again at
    /// [`Event::Writable`].
    pub(crate) fn send(&mut self, stream: StreamId, payload: &[u8]) -> Result<usize, StreamError> {
        let limit = self.send_limit(stream);
        let Some(entry) = self.streams.get_mut(&stream) else {
            return Err(StreamError::Ended);
        };
        if let Some(error) = &entry.failed {
            return Err(error.clone());
        }
        if entry.state.local_ended() {
            return Err(StreamError::Ended);
        }
        let room = limit.saturating_sub(entry.payload());
        let Some(taken) = payload.get(..room.min(payload.len())) else {
            return Ok(0);
        };
        if taken.is_empty() {
            return Ok(0);
        }
        if entry.frame.is_empty() {
            entry.frame.reserve(HEAD_LEN + taken.len());
            entry.frame.put_bytes(0, HEAD_LEN);
        }
        entry.frame.extend_from_slice(taken);
        entry.sent += taken.len() as u64;
        self.totals.queued += taken.len();
        self.make_ready(stream);
        Ok(taken.len())
    }

    /// Ends our direction of a stream, after its queued data.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn finish(&mut self, stream: StreamId) -> Result<(), StreamError> {
        self.finish_when(stream, EndTiming::Now)
    }

    /// Ends our direction of a stream, after its queued data; a lone end may be delayed.
    pub(crate) fn finish_when(
        &mut self,
        stream: StreamId,
        when: EndTiming,
    ) -> Result<(), StreamError> {
        let Some(entry) = self.streams.get_mut(&stream) else {
            return Ok(());
        };
        if let Some(error) = &entry.failed {
            return Err(error.clone());
        }
        if entry.state.local_ended() {
            return Ok(());
        }
        entry.fin = true;
        match when {
            EndTiming::Soon if !entry.ready => {
                entry.ready = true;
                self.ends.push_back(stream);
            }
            EndTiming::Soon | EndTiming::Now => self.make_ready(stream),
        }
        self.step(stream, StreamTransition::SendEnd);
        Ok(())
    }

    /// Whether [`transmit`](Self::transmit) would add something that must not be delayed.
    pub(crate) fn has_output(&self) -> bool {
        !self.control.is_empty() || !self.ready.is_empty()
    }

    /// Whether it would add something that may be delayed.
    pub(crate) fn has_ends(&self) -> bool {
        !self.ends.is_empty()
    }

    /// Moves the next frames into `out`.
    pub(crate) fn transmit(&mut self, out: &mut Outbox, events: &mut Vec<Event>) {
        self.transmit_control(out);
        self.ready.append(&mut self.ends);
        while out.len() < BATCH
            && let Some(stream) = self.ready.pop_front()
        {
            let Some(entry) = self.streams.get_mut(&stream) else {
                continue;
            };
            entry.ready = false;
            if entry.failed.is_none() {
                self.totals.queued -= entry.payload();
                let frame = entry.take_frame(stream);
                trace!(%stream, fin = entry.fin, len = frame.len() - HEAD_LEN, "sending DATA");
                out.push(frame);
                events.push(Event::Writable(stream));
                if !entry.held_by_handle && entry.state == StreamState::LocalEnded {
                    self.reset(stream, ResetStatus::CANCEL);
                }
            }
            self.settle(stream);
        }
    }

    /// Moves control frames only into `out`.
    pub(crate) fn transmit_control(&mut self, out: &mut Outbox) {
        out.push(std::mem::take(&mut self.control));
        self.provoked = 0;
    }

    fn make_ready(&mut self, stream: StreamId) {
        if let Some(entry) = self.streams.get_mut(&stream)
            && !entry.ready
        {
            entry.ready = true;
            self.ready.push_back(stream);
        }
    }

    /// Limit on the queued payload of a stream.
    fn send_limit(&self, stream: StreamId) -> usize {
        let queued = self.streams.get(&stream).is_some_and(|entry| entry.ready);
        let senders = (self.ready.len() + usize::from(!queued)).max(1);
        let frame = if senders == 1 {
            MAX_GATHERED
        } else {
            self.config.max_data_frame.clamp(1, MAX_GATHERED)
        };
        (self.config.send_buffer / senders)
            .max(MIN_SHARE)
            .min(frame)
    }
}
