//! The session's state machine, without a socket, a clock or a task: bytes and calls in, bytes and events out.
//!
//! [`Machine`] holds the streams of one session and their queued data in both directions. Its owner
//! passes received bytes in ([`Machine::receive`]), takes bytes to write ([`Machine::transmit`]) and
//! calls it for the handles of streams. It never waits: a call that cannot continue says so, and an
//! [`Event`] reports when to try again.
//!
//! Bounds: streams by `max_streams`; what a stream has received by `stream_buffer`, all of them, ended ones included, by
//! `session_buffer` and `unread`, over which [`Machine::wants_input`] is false; what waits to be sent by `send_buffer`;
//! answers provoked by the peer by [`MAX_PROVOKED`], the rest of the control frames by [`MAX_CONTROL_QUEUE`]. A stream
//! that is over and has no handle leaves nothing behind but its number, which is below the next.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

mod outbox;
mod receive;
mod send;
mod state;
mod stream;

use std::collections::{HashMap, VecDeque};

use bytes::BytesMut;
use tracing::trace;

pub(crate) use self::outbox::Outbox;
pub(crate) use self::state::EndTiming;
pub(crate) use self::stream::{ReadOutcome, StreamTotals};
use self::{
    state::{StreamState, StreamTransition},
    stream::StreamEntry,
};
use crate::{
    Config,
    error::{SessionError, StreamError, StreamOpenError},
    frame::{
        DataHead, Deflater, GoAway, GoAwayStatus, Headers, Inflater, Ping, ResetStatus, RstStream,
        StreamId, SynReply, SynStream,
    },
};

/// Bytes of unsent control frames above which no streams are opened.
const MAX_CONTROL_QUEUE: usize = 256 * 1024;

/// Bytes of unsent answers to PINGs and bad frames above which nothing is read.
const MAX_PROVOKED: usize = 64 * 1024;

/// Which side of a session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

impl Role {
    /// The first id of this side's streams and PINGs.
    const fn first_id(self) -> u32 {
        match self {
            Self::Client => 1,
            Self::Server => 2,
        }
    }

    /// Whether this side gave out `id`.
    const fn gave(self, id: u32) -> bool {
        id % 2 == self.first_id() % 2
    }
}

/// Events that the owner of a [`Machine`] has to handle.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The peer opened a stream; answer with `accept` or `reset`.
    Request {
        stream: StreamId,
        headers: Headers,
        fin: bool,
    },
    /// A read of the stream, or a call for its reply, has a new result.
    Readable(StreamId),
    /// A write to the stream has a new result.
    Writable(StreamId),
    /// The stream has begun to hold up the reading of the session.
    Full(StreamId),
    /// Our PING came back.
    Pong(u32),
    /// The peer takes no new streams.
    GoingAway,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Machine {
    role: Role,
    config: Config,
    streams: HashMap<StreamId, StreamEntry>,
    totals: StreamTotals,
    /// Our next stream's id.
    next_id: u32,
    /// The last id the peer opened, or 0.
    last_peer_id: u32,
    next_ping: u32,
    deflater: Deflater,
    inflater: Inflater,
    /// Whether streams that the peer opens are accepted.
    accepting: bool,
    /// The DATA frame that is incomplete in the input, and its missing length.
    data: Option<DataHead>,
    /// The missing length of an unknown control frame.
    skip: u32,
    /// Encoded control frames to be sent.
    control: BytesMut,
    /// The part of `control` that answers the peer.
    provoked: usize,
    /// Streams with DATA to send, in order.
    ready: VecDeque<StreamId>,
    /// Streams whose lone end is sent along with the next frames.
    ends: VecDeque<StreamId>,
    gone_away: Option<GoAwayStatus>,
    ended: Option<SessionError>,
}

impl Machine {
    pub(crate) fn new(role: Role, config: Config) -> Self {
        Self {
            role,
            config,
            streams: HashMap::new(),
            totals: StreamTotals::default(),
            next_id: role.first_id(),
            last_peer_id: 0,
            next_ping: role.first_id(),
            deflater: Deflater::default(),
            inflater: Inflater::default(),
            accepting: role == Role::Server,
            data: None,
            skip: 0,
            control: BytesMut::new(),
            provoked: 0,
            ready: VecDeque::new(),
            ends: VecDeque::new(),
            gone_away: None,
            ended: None,
        }
    }

    /// Opens a stream, for which the caller holds a handle from now on.
    pub(crate) fn open(
        &mut self,
        headers: &Headers,
        fin: bool,
    ) -> Result<StreamId, StreamOpenError> {
        if let Some(error) = &self.ended {
            return Err(StreamOpenError::Session(error.clone()));
        }
        if self.gone_away.is_some() {
            return Err(StreamOpenError::GoingAway);
        }
        if self.streams.len() >= self.config.max_streams {
            return Err(StreamOpenError::TooManyStreams(self.config.max_streams));
        }
        if self.control.len() > MAX_CONTROL_QUEUE {
            return Err(StreamOpenError::Congested);
        }
        let stream = StreamId::new(self.next_id).ok_or(StreamOpenError::IdsExhausted)?;
        let block = self
            .compress(headers)
            .ok_or(StreamOpenError::HeadersTooLarge)?;
        SynStream {
            stream,
            associated: None,
            priority: 0,
            slot: 0,
            fin,
            unidirectional: false,
            block: &block,
        }
        .encode(&mut self.control);
        trace!(%stream, fin, "sending SYN_STREAM");
        self.next_id += 2;
        let state = if fin {
            StreamState::LocalEnded
        } else {
            StreamState::Open
        };
        self.streams.insert(stream, StreamEntry::new(state, None));
        self.totals.live += 1;
        self.totals.opened += 1;
        Ok(stream)
    }

    /// Answers a [`Event::Request`] with SYN_REPLY.
    pub(crate) fn accept(&mut self, stream: StreamId, headers: &Headers, fin: bool) {
        if !self.streams.get(&stream).is_some_and(StreamEntry::is_live) {
            return;
        }
        let Some(block) = self.compress(headers) else {
            return self.reset(stream, ResetStatus::INTERNAL_ERROR);
        };
        SynReply {
            stream,
            fin,
            block: &block,
        }
        .encode(&mut self.control);
        trace!(%stream, fin, "sending SYN_REPLY");
        if fin {
            self.step(stream, StreamTransition::SendEnd);
        }
    }

    /// Sends RST_STREAM and drops the stream's queued data, if it is not over yet. Unread data is dropped in any case.
    pub(crate) fn reset(&mut self, stream: StreamId, status: ResetStatus) {
        let Some(entry) = self.streams.get_mut(&stream) else {
            return;
        };
        let is_live = entry.is_live();
        if !is_live && entry.buffered == 0 {
            return;
        }
        let before = self.totals.weight;
        entry.discard_received(&mut self.totals);
        if is_live {
            trace!(%stream, %status, "sending RST_STREAM");
            RstStream { stream, status }.encode(&mut self.control);
            self.fail(stream, StreamError::ResetHere(status));
        } else {
            entry.failed.get_or_insert(StreamError::ResetHere(status));
        }
        self.freed(before);
    }

    /// Releases the stream's handle. The stream is reset, unless both sides have ended.
    pub(crate) fn release(&mut self, stream: StreamId) {
        let Some(entry) = self.streams.get_mut(&stream) else {
            return;
        };
        entry.held_by_handle = false;
        let before = self.totals.weight;
        entry.discard_received(&mut self.totals);
        match entry.state {
            StreamState::Ended => {}
            // Data that was queued before its end is sent first.
            StreamState::LocalEnded if entry.ready => {}
            _ => self.reset(stream, ResetStatus::CANCEL),
        }
        self.freed(before);
        self.settle(stream);
    }

    /// Sends PING; its id comes back in [`Event::Pong`].
    pub(crate) fn ping(&mut self) -> u32 {
        let id = self.next_ping;
        self.next_ping = match id.checked_add(2) {
            Some(next) => next,
            None => self.role.first_id(),
        };
        Ping { id }.encode(&mut self.control);
        id
    }

    /// Queues GOAWAY.
    pub(crate) fn go_away(&mut self, status: GoAwayStatus) {
        let last_taken = StreamId::new(self.last_peer_id);
        trace!(?last_taken, %status, "sending GOAWAY");
        GoAway { last_taken, status }.encode(&mut self.control);
    }

    /// Refuses the streams the peer opens from now on.
    pub(crate) fn stop_accepting(&mut self) {
        self.accepting = false;
    }

    /// Ends all streams. Received data can still be read.
    pub(crate) fn end(&mut self, error: &SessionError) {
        self.ended = Some(error.clone());
        self.control = BytesMut::new();
        self.ready = VecDeque::new();
        self.ends = VecDeque::new();
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            self.fail(id, StreamError::Session(error.clone()));
        }
    }

    /// The next received bytes of a stream, up to `most`.
    pub(crate) fn read(
        &mut self,
        stream: StreamId,
        most: usize,
    ) -> Result<ReadOutcome, StreamError> {
        let Some(entry) = self.streams.get_mut(&stream) else {
            return Ok(ReadOutcome::End);
        };
        let before = self.totals.weight;
        let read = entry.read(most, &mut self.totals);
        self.freed(before);
        read
    }

    /// Subtracts read bytes, and re-evaluates the streams that hold up reading.
    fn freed(&mut self, before: usize) {
        if self.totals.weight != before {
            self.config.unread.change(before, self.totals.weight);
            self.reweigh();
        }
    }

    /// Re-evaluates the streams that hold up reading, for which this session or another may have made room.
    pub(crate) fn reweigh(&mut self) {
        if self.totals.full > 0 {
            for entry in self.streams.values_mut() {
                entry.relieve(&self.config, &mut self.totals);
            }
        }
    }

    /// Whether the next read returns the end; `None` if it would wait.
    pub(crate) fn at_end(&self, stream: StreamId) -> Result<Option<bool>, StreamError> {
        let entry = self.streams.get(&stream);
        entry.map_or(Ok(Some(true)), StreamEntry::at_end)
    }

    /// Whether a read would not wait.
    pub(crate) fn is_readable(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_none_or(StreamEntry::readable)
    }

    /// The headers of the SYN_REPLY, once it is there.
    pub(crate) fn reply(&self, stream: StreamId) -> Result<Option<&Headers>, StreamError> {
        match self.streams.get(&stream) {
            Some(StreamEntry {
                reply: Some(headers),
                ..
            }) => Ok(Some(headers)),
            Some(StreamEntry {
                failed: Some(error),
                ..
            }) => Err(error.clone()),
            _ => Ok(None),
        }
    }

    /// Whether more may be received.
    pub(crate) fn wants_input(&self) -> bool {
        self.totals.full == 0 && self.provoked <= MAX_PROVOKED
    }

    pub(crate) fn totals(&self) -> StreamTotals {
        self.totals
    }

    /// Streams that hold up reading, and how much each has received unread.
    pub(crate) fn full(&self) -> impl Iterator<Item = (StreamId, usize)> {
        let full = self.streams.iter().filter(|(_, entry)| entry.full);
        full.map(|(id, entry)| (*id, entry.buffered))
    }

    /// Payload of a stream that was received and that was queued to be sent, ever.
    pub(crate) fn counts(&self, stream: StreamId) -> (u64, u64) {
        let entry = self.streams.get(&stream);
        entry.map_or((0, 0), |entry| (entry.received, entry.sent))
    }

    /// The status of the peer's GOAWAY.
    pub(crate) fn gone_away(&self) -> Option<GoAwayStatus> {
        self.gone_away
    }

    pub(crate) fn ended(&self) -> Option<&SessionError> {
        self.ended.as_ref()
    }

    fn compress(&mut self, headers: &Headers) -> Option<BytesMut> {
        let mut block = BytesMut::new();
        self.deflater.encode(headers, &mut block).ok()?;
        Some(block)
    }

    /// Takes a step that is known to be allowed.
    fn step(&mut self, stream: StreamId, step: StreamTransition) {
        if let Some(entry) = self.streams.get_mut(&stream) {
            if let Ok(state) = entry.state.after(step) {
                entry.state = state;
            }
            self.settle(stream);
        }
    }

    /// Ends a stream that is not over yet, both ways.
    fn fail(&mut self, stream: StreamId, error: StreamError) {
        if let Some(entry) = self.streams.get_mut(&stream) {
            if entry.is_live() {
                entry.fail(error, &mut self.totals);
            }
            self.settle(stream);
        }
    }

    /// Updates the totals after a change of the stream's state, and forgets a stream that is over and has no
    /// handle.
    fn settle(&mut self, stream: StreamId) {
        let Some(entry) = self.streams.get_mut(&stream) else {
            return;
        };
        entry.relieve(&self.config, &mut self.totals);
        if !entry.is_live() && !entry.counted_out {
            entry.counted_out = true;
            self.totals.live -= 1;
        }
        if entry.counted_out && !entry.held_by_handle {
            let before = self.totals.weight;
            entry.discard_received(&mut self.totals);
            self.streams.remove(&stream);
            self.freed(before);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.config.unread.change(self.totals.weight, 0);
    }
}

#[cfg(test)]
mod tests;
