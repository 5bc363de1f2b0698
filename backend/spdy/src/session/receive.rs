//! Received bytes: frames to steps of streams.

use bytes::{Buf, Bytes, BytesMut};
use tracing::trace;

use super::{
    Event, Machine,
    state::{StreamState, StreamTransition},
    stream::StreamEntry,
};
use crate::{
    error::StreamError,
    frame::{
        self, DataHead, Frame, GoAway, HeaderError, Headers, Ping, ResetStatus, RstStream,
        StreamId, SynStream, WireError,
    },
};

/// Payload from this size on is passed to its reader as a part of the buffer into which it was read;
/// smaller pieces are copied, because otherwise a few unread bytes could keep a whole buffer alive.
const MIN_SLICE: usize = 16 * 1024;

/// Unread bytes of a session above which everything is copied: a part of a buffer keeps all of it in memory,
/// which matters only if it is not read soon.
const MOST_SLICED: usize = 256 * 1024;

impl Machine {
    /// Removes whole frames, and the available payload of a DATA frame, from the front of `input`. After an
    /// error the session can only send GOAWAY.
    pub(crate) fn receive(
        &mut self,
        input: &mut BytesMut,
        events: &mut Vec<Event>,
    ) -> Result<(), WireError> {
        loop {
            if self.skip > 0 {
                let skipped = input.len().min(self.skip as usize);
                input.advance(skipped);
                self.skip -= skipped as u32;
            }
            if let Some(data) = self.data.take() {
                self.data = self.payload(data, input, events);
            }
            if self.skip > 0 || self.data.is_some() {
                return Ok(());
            }
            let Some((frame, used)) = frame::decode(input)? else {
                return Ok(());
            };
            self.frame(frame, events)?;
            input.advance(used);
        }
    }

    fn frame(&mut self, frame: Frame<'_>, events: &mut Vec<Event>) -> Result<(), WireError> {
        match frame {
            Frame::Data(data) => self.data_head(data, events),
            Frame::SynStream(frame) => {
                let headers = self.inflater.decode(frame.block)?;
                self.syn_stream(&frame, headers, events)?;
            }
            Frame::SynReply(frame) => {
                let headers = self.inflater.decode(frame.block)?;
                self.syn_reply(frame.stream, headers, frame.fin, events);
            }
            Frame::Headers(frame) => {
                let headers = self.inflater.decode(frame.block)?;
                self.headers(frame.stream, headers, frame.fin, events);
            }
            Frame::RstStream(frame) => self.rst_stream(frame, events),
            Frame::Ping(Ping { id }) if self.role.gave(id) => events.push(Event::Pong(id)),
            Frame::Ping(ping) => self.provoke(|control| ping.encode(control)),
            Frame::GoAway(frame) => self.goaway(frame, events),
            Frame::Settings(settings) => trace!(entries = settings.iter().len(), "SETTINGS"),
            Frame::WindowUpdate(frame) => trace!(?frame, "WINDOW_UPDATE"),
            Frame::Unknown { kind, len } => {
                trace!(kind, len, "skipping an unknown control frame");
                self.skip = len;
            }
        }
        Ok(())
    }

    /// The head of a DATA frame, whose payload follows.
    fn data_head(&mut self, data: DataHead, events: &mut Vec<Event>) {
        trace!(stream = %data.stream, fin = data.fin, len = data.len, "DATA");
        if let Some(entry) = self.peers_turn(data.stream) {
            let result = match (&entry.reply, entry.state.after(StreamTransition::Receive)) {
                // The draft, 2.2.2: the accepting side's first frame is its reply.
                (None, Ok(_)) => Err(ResetStatus::PROTOCOL_ERROR),
                (_, after) => after.map(|_| ()),
            };
            if let Err(status) = result {
                self.fault(data.stream, status, events);
            }
        }
        self.data = Some(data);
    }

    /// Takes the available payload of a DATA frame; returns the frame's missing length.
    fn payload(
        &mut self,
        mut data: DataHead,
        input: &mut BytesMut,
        events: &mut Vec<Event>,
    ) -> Option<DataHead> {
        let len = input.len().min(data.len as usize);
        if len > 0 {
            data.len -= len as u32;
            match self.streams.get_mut(&data.stream) {
                Some(entry) if entry.receives() => {
                    let exact = self.totals.weight >= MOST_SLICED || !self.config.unread.is_ample();
                    let chunk = if len < MIN_SLICE || exact {
                        let chunk = Bytes::copy_from_slice(input.get(..len).unwrap_or_default());
                        input.advance(len);
                        chunk
                    } else {
                        input.split_to(len).freeze()
                    };
                    let before = self.totals.weight;
                    entry.push(chunk, &mut self.totals);
                    self.config.unread.change(before, self.totals.weight);
                    events.push(Event::Readable(data.stream));
                    if entry.weigh(&self.config, &mut self.totals) {
                        events.push(Event::Full(data.stream));
                    }
                }
                _ => {
                    self.totals.discarded += len as u64;
                    input.advance(len);
                }
            }
        }
        if data.len > 0 {
            return Some(data);
        }
        if data.fin {
            self.remote_end(data.stream, events);
        }
        None
    }

    fn syn_stream(
        &mut self,
        frame: &SynStream<'_>,
        headers: Result<Headers, HeaderError>,
        events: &mut Vec<Event>,
    ) -> Result<(), WireError> {
        let (stream, fin) = (frame.stream, frame.fin);
        let id = stream.get();
        trace!(%stream, fin, "SYN_STREAM");
        // The draft, 2.3.2: ids grow; a lower one ends the session, the same one its stream.
        if self.role.gave(id) || id < self.last_peer_id {
            return Err(WireError::StreamIdOrder(id));
        }
        if id == self.last_peer_id {
            self.fault(stream, ResetStatus::PROTOCOL_ERROR, events);
            return Ok(());
        }
        self.last_peer_id = id;
        let full = self.streams.len() >= self.config.max_streams;
        let headers = match headers {
            Ok(headers) if self.accepting && !full => headers,
            Ok(_) => {
                self.fault(stream, ResetStatus::REFUSED_STREAM, events);
                return Ok(());
            }
            Err(error) => {
                trace!(%stream, %error, "refusing");
                self.fault(stream, ResetStatus::PROTOCOL_ERROR, events);
                return Ok(());
            }
        };
        let state = match (frame.unidirectional, fin) {
            (false, false) => StreamState::Open,
            (false, true) => StreamState::RemoteEnded,
            (true, false) => StreamState::LocalEnded,
            (true, true) => StreamState::Ended,
        };
        let entry = StreamEntry::new(state, Some(Headers::new()));
        self.streams.insert(stream, entry);
        self.totals.live += 1;
        self.totals.opened += 1;
        events.push(Event::Request {
            stream,
            headers,
            fin,
        });
        self.settle(stream);
        Ok(())
    }

    fn syn_reply(
        &mut self,
        stream: StreamId,
        headers: Result<Headers, HeaderError>,
        fin: bool,
        events: &mut Vec<Event>,
    ) {
        trace!(%stream, fin, "SYN_REPLY");
        let ours = self.role.gave(stream.get());
        let Some(entry) = self.peers_turn(stream) else {
            return;
        };
        match headers {
            Ok(headers) if entry.reply.is_none() => {
                entry.reply = Some(headers);
                events.push(Event::Readable(stream));
                if fin {
                    self.remote_end(stream, events);
                }
            }
            // The draft, 2.3.3: a second reply is STREAM_IN_USE.
            Ok(_) if ours => self.fault(stream, ResetStatus::STREAM_IN_USE, events),
            Ok(_) | Err(_) => self.fault(stream, ResetStatus::PROTOCOL_ERROR, events),
        }
    }

    fn headers(
        &mut self,
        stream: StreamId,
        headers: Result<Headers, HeaderError>,
        fin: bool,
        events: &mut Vec<Event>,
    ) {
        trace!(%stream, fin, "HEADERS");
        let Some(entry) = self.peers_turn(stream) else {
            return;
        };
        match (headers, entry.state.after(StreamTransition::Receive)) {
            (_, Err(status)) => self.fault(stream, status, events),
            (Err(_), _) => self.fault(stream, ResetStatus::PROTOCOL_ERROR, events),
            (Ok(_), Ok(_)) if fin => self.remote_end(stream, events),
            (Ok(_), Ok(_)) => {}
        }
    }

    fn rst_stream(&mut self, frame: RstStream, events: &mut Vec<Event>) {
        let RstStream { stream, status } = frame;
        trace!(%stream, %status, "RST_STREAM");
        if self.streams.get(&stream).is_some_and(StreamEntry::is_live) {
            self.fail(stream, StreamError::Reset(status));
            events.extend([Event::Readable(stream), Event::Writable(stream)]);
        }
    }

    fn goaway(&mut self, frame: GoAway, events: &mut Vec<Event>) {
        trace!(?frame, "GOAWAY");
        self.gone_away.get_or_insert(frame.status);
        events.push(Event::GoingAway);
        let last_taken = frame.last_taken.map_or(0, StreamId::get);
        let untaken = |id: &&StreamId| self.role.gave(id.get()) && id.get() > last_taken;
        let untaken: Vec<StreamId> = self.streams.keys().filter(untaken).copied().collect();
        for stream in untaken {
            self.fail(stream, StreamError::NotTaken);
            events.extend([Event::Readable(stream), Event::Writable(stream)]);
        }
    }

    /// The stream of a frame, if it is not over. Frames for a stream that is over were in flight when it
    /// ended; those for one that was never opened are answered.
    fn peers_turn(&mut self, stream: StreamId) -> Option<&mut StreamEntry> {
        if !self.was_opened(stream) {
            self.provoke(|control| {
                RstStream {
                    stream,
                    status: ResetStatus::INVALID_STREAM,
                }
                .encode(control);
            });
        }
        let entry = self.streams.get_mut(&stream);
        entry.filter(|entry| entry.failed.is_none())
    }

    fn was_opened(&self, stream: StreamId) -> bool {
        let id = stream.get();
        if self.role.gave(id) {
            id < self.next_id
        } else {
            id <= self.last_peer_id
        }
    }

    /// Resets a stream on which the peer broke a rule, or that is refused.
    fn fault(&mut self, stream: StreamId, status: ResetStatus, events: &mut Vec<Event>) {
        trace!(%stream, %status, "sending RST_STREAM");
        self.provoke(|control| RstStream { stream, status }.encode(control));
        self.fail(stream, StreamError::ResetHere(status));
        events.extend([Event::Readable(stream), Event::Writable(stream)]);
    }

    fn remote_end(&mut self, stream: StreamId, events: &mut Vec<Event>) {
        let entry = self.streams.get(&stream);
        if entry.is_some_and(|entry| entry.failed.is_none() && !entry.state.remote_ended()) {
            self.step(stream, StreamTransition::ReceiveEnd);
            events.push(Event::Readable(stream));
        }
    }

    /// Queues an answer to the peer; their number is limited.
    fn provoke(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        let before = self.control.len();
        encode(&mut self.control);
        self.provoked += self.control.len() - before;
    }
}
