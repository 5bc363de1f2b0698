//! What the fuzz targets run, so that every `cargo test` builds it and replays their corpus. Not part
//! of the API.

use bytes::{Buf, BufMut, BytesMut};

use crate::{
    Config, Unread,
    error::SessionError,
    frame::{
        self, DataHead, Deflater, Frame, GoAway, GoAwayStatus, Headers, HeadersFrame, Ping,
        ResetStatus, RstStream, StreamId, SynReply, SynStream, WindowUpdate,
    },
    session::{EndTiming, Event, Machine, Outbox, ReadOutcome, Role},
};

/// Decodes `data` as frames, one after the other. Each must survive its own encoding, and no
/// beginning of it may have been an error.
pub fn fuzz_frames(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((frame, used))) = frame::decode(rest) {
        let (whole, after) = rest.split_at(used);
        for len in (0..used).take(64) {
            assert_eq!(frame::decode(&whole[..len]), Ok(None));
        }
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        assert_eq!(frame::decode(&out), Ok(Some((frame, out.len()))));
        rest = after;
    }
}

/// Bounds small enough for a short input to reach.
const CONFIG: Config = Config {
    max_streams: 4,
    stream_buffer: 2048,
    session_buffer: 6 * 1024,
    unread: Unread::UNLIMITED,
    send_buffer: 4096,
    max_data_frame: 1024,
};

/// Plays `data` to one side of a session. The first byte picks the side; after that, a byte picks
/// what happens: the next bytes are received, or a frame made from them, or a handle does something.
/// The session must keep its bounds, and what it sends must be frames.
pub fn fuzz_session(mut data: &[u8]) {
    let Some(role) = take(&mut data) else { return };
    let role = if role % 2 == 0 {
        Role::Client
    } else {
        Role::Server
    };
    let mut machine = Machine::new(role, CONFIG);
    let mut player = Player {
        handles: Vec::new(),
        sent: BytesMut::new(),
        input: BytesMut::new(),
        peer: Deflater::default(),
    };
    while let Some(what) = take(&mut data) {
        if !player.play(&mut machine, what, &mut data) {
            break;
        }
        player.check(&mut machine);
    }
    machine.end(&SessionError::PeerClosed);
    for stream in player.handles.drain(..) {
        machine.release(stream);
    }
    let totals = machine.totals();
    assert_eq!((totals.live, totals.full), (0, 0));
    assert_eq!((totals.buffered, totals.queued), (0, 0));
}

struct Player {
    handles: Vec<StreamId>,
    /// Received bytes that were not consumed.
    input: BytesMut,
    /// Written bytes that were not decoded.
    sent: BytesMut,
    peer: Deflater,
}

impl Player {
    /// One thing that happens; false when the session has failed.
    fn play(&mut self, machine: &mut Machine, what: u8, data: &mut &[u8]) -> bool {
        let mut events = Vec::new();
        let mut good = true;
        let handle = self.handles.get(usize::from(what >> 4)).copied();
        match (what & 0x0f, handle) {
            (0..=5, _) if machine.wants_input() => {
                let len = usize::from(take(data).unwrap_or_default());
                if what.is_multiple_of(2) {
                    let (bytes, rest) = data.split_at(len.min(data.len()));
                    self.input.extend_from_slice(bytes);
                    *data = rest;
                } else {
                    self.frame(len, take(data).unwrap_or_default(), what >> 4);
                }
                good = machine.receive(&mut self.input, &mut events).is_ok();
                if !good {
                    machine.go_away(GoAwayStatus::PROTOCOL_ERROR);
                }
            }
            (6, _) => {
                let mut headers = Headers::new();
                headers.insert("port", "80").expect("a good header");
                self.handles.extend(machine.open(&headers, what >= 0x80));
            }
            (7, _) => {
                machine.ping();
            }
            (8, Some(stream)) => {
                let len = usize::from(take(data).unwrap_or_default()) * 32;
                // A stream that has failed or ended says so.
                let _ = machine.send(stream, &vec![b'x'; len]);
            }
            (9, Some(stream)) => {
                let _ = machine.finish(stream);
            }
            (13, Some(stream)) => {
                let _ = machine.finish_when(stream, EndTiming::Soon);
            }
            (10, Some(stream)) => {
                while let Ok(ReadOutcome::Chunk(_)) = machine.read(stream, 100) {}
            }
            (11, Some(stream)) => machine.reset(stream, ResetStatus::CANCEL),
            (12, Some(stream)) => {
                self.handles.retain(|held| *held != stream);
                machine.release(stream);
            }
            _ => {
                let mut out = Outbox::default();
                machine.transmit(&mut out, &mut events);
                while !out.is_empty() {
                    let len = out.front().len();
                    self.sent.extend_from_slice(out.front());
                    out.advance(len);
                }
            }
        }
        for event in events {
            if let Event::Request { stream, .. } = event {
                self.handles.push(stream);
                machine.accept(stream, &Headers::new(), false);
            }
        }
        good
    }

    /// Receives a valid frame, possibly at the wrong time.
    fn frame(&mut self, len: usize, id: u8, what: u8) {
        let stream = StreamId::new(u32::from(id % 16 + 1)).expect("not 0");
        let fin = id >= 0x80;
        let mut block = BytesMut::new();
        if what <= 2 {
            let mut headers = Headers::new();
            let value = "v".repeat(len);
            headers.insert("name", &value).expect("a good header");
            let fits = self.peer.encode(&headers, &mut block);
            fits.expect("a small header");
        }
        let block = &block[..];
        let frame = match what {
            0 => Frame::SynStream(SynStream {
                stream,
                associated: None,
                priority: 0,
                slot: 0,
                fin,
                unidirectional: len.is_multiple_of(3),
                block,
            }),
            1 => Frame::SynReply(SynReply { stream, fin, block }),
            2 => Frame::Headers(HeadersFrame { stream, fin, block }),
            3 => Frame::RstStream(RstStream {
                stream,
                status: ResetStatus::CANCEL,
            }),
            4 => Frame::Ping(Ping { id: id.into() }),
            5 => Frame::GoAway(GoAway {
                last_taken: Some(stream),
                status: GoAwayStatus::OK,
            }),
            6 => Frame::WindowUpdate(WindowUpdate {
                stream: Some(stream),
                delta: 1,
            }),
            _ => Frame::Data(DataHead {
                stream,
                fin,
                len: len as u32,
            }),
        };
        frame.encode(&mut self.input);
        if matches!(frame, Frame::Data(_)) {
            self.input.put_bytes(what, len);
        }
    }

    fn check(&mut self, machine: &mut Machine) {
        while let Some((frame, used)) = frame::decode(&self.sent).expect("own frames") {
            let payload = match frame {
                Frame::Data(data) => data.len as usize,
                Frame::Unknown { .. } => panic!("an unknown frame"),
                _ => 0,
            };
            assert!(self.sent.len() >= used + payload, "DATA cut short");
            self.sent.advance(used + payload);
        }
        let totals = machine.totals();
        assert!(self.handles.len() <= CONFIG.max_streams);
        assert!(totals.live <= CONFIG.max_streams);
        // One input of at most 255 bytes may go over each bound.
        assert!(totals.buffered <= CONFIG.max_streams * (CONFIG.stream_buffer + 255));
        assert!(totals.weight <= CONFIG.session_buffer + 255);
        assert!(totals.queued <= CONFIG.max_streams * 16 * 1024);
        assert_eq!(totals.full, machine.full().count());
    }
}

fn take(data: &mut &[u8]) -> Option<u8> {
    let (first, rest) = data.split_first()?;
    *data = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn replay(target: &str, body: fn(&[u8])) {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/fuzz");
        let wrapper = fuzz.join("fuzz_targets").join(target).with_extension("rs");
        assert!(wrapper.is_file(), "{} is gone", wrapper.display());
        let corpus = fs::read_dir(fuzz.join("corpus").join(target)).unwrap();
        let files: Vec<_> = corpus.map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 10, "only {} files for {target}", files.len());
        for file in files {
            let data = fs::read(&file).unwrap();
            let result = std::panic::catch_unwind(|| body(&data));
            assert!(result.is_ok(), "{}", file.display());
        }
    }

    #[test]
    fn the_corpus_of_frames() {
        replay("spdy_frames", fuzz_frames);
    }

    #[test]
    fn the_corpus_of_sessions() {
        replay("spdy_session", fuzz_session);
    }
}
