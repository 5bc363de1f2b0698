//! Both sides of a session, played against each other or against single frames: no runtime.

mod bounds;
mod conversations;
mod faults;
mod golden;

use bytes::Buf;

use super::*;
use crate::frame::{self, Frame, WireError};

fn id(id: u32) -> StreamId {
    StreamId::new(id).unwrap()
}

fn headers() -> Headers {
    Headers::try_from([("streamtype", "data"), ("port", "80")]).unwrap()
}

fn machine(role: Role) -> Machine {
    Machine::new(role, Config::default())
}

/// Everything that `machine` writes now, including delayed ends.
fn written(machine: &mut Machine) -> BytesMut {
    let mut bytes = BytesMut::new();
    while machine.has_output() || machine.has_ends() {
        let mut out = Outbox::default();
        machine.transmit(&mut out, &mut Vec::new());
        while !out.is_empty() {
            let len = out.front().len();
            bytes.extend_from_slice(out.front());
            out.advance(len);
        }
    }
    bytes
}

/// The result of `machine` receiving `bytes`.
fn received(machine: &mut Machine, bytes: &[u8]) -> Result<Vec<Event>, WireError> {
    let mut events = Vec::new();
    let mut input = BytesMut::from(bytes);
    machine.receive(&mut input, &mut events)?;
    assert!(input.is_empty(), "a frame cut short: {input:?}");
    Ok(events)
}

/// Passes what `from` writes to `to`.
fn pass(from: &mut Machine, to: &mut Machine) -> Vec<Event> {
    let bytes = written(from);
    received(to, &bytes).unwrap()
}

/// The frames in `bytes`, DATA with its payload, header blocks left out.
fn frames(mut bytes: BytesMut) -> Vec<String> {
    let mut list = Vec::new();
    while let Some((frame, used)) = frame::decode(&bytes).unwrap() {
        let (text, payload) = match frame {
            Frame::Data(data) => (
                format!("DATA {} len={} fin={}", data.stream, data.len, data.fin),
                data.len as usize,
            ),
            Frame::SynStream(frame) => {
                (format!("SYN_STREAM {} fin={}", frame.stream, frame.fin), 0)
            }
            Frame::SynReply(frame) => (format!("SYN_REPLY {} fin={}", frame.stream, frame.fin), 0),
            Frame::RstStream(frame) => (format!("RST_STREAM {} {}", frame.stream, frame.status), 0),
            Frame::Ping(ping) => (format!("PING {}", ping.id), 0),
            Frame::GoAway(frame) => (
                format!(
                    "GOAWAY {} {}",
                    frame.last_taken.map_or(0, StreamId::get),
                    frame.status
                ),
                0,
            ),
            other => (format!("{other:?}"), 0),
        };
        list.push(text);
        bytes.advance(used + payload);
    }
    assert!(bytes.is_empty());
    list
}

fn encode(frames: &[Frame<'_>]) -> BytesMut {
    let mut out = BytesMut::new();
    for frame in frames {
        frame.encode(&mut out);
    }
    out
}

fn data(stream: StreamId, payload: &[u8], fin: bool) -> BytesMut {
    let len = payload.len() as u32;
    let mut out = encode(&[Frame::Data(DataHead { stream, fin, len })]);
    out.extend_from_slice(payload);
    out
}

fn rst_stream(stream: StreamId, status: ResetStatus) -> BytesMut {
    encode(&[Frame::RstStream(RstStream { stream, status })])
}

/// A client and a server with one open and accepted stream.
fn pair() -> (Machine, Machine, StreamId) {
    let (mut client, mut server) = (machine(Role::Client), machine(Role::Server));
    let stream = client.open(&headers(), false).unwrap();
    let events = pass(&mut client, &mut server);
    assert_eq!(events, [request(stream, false)]);
    server.accept(stream, &Headers::new(), false);
    let events = pass(&mut server, &mut client);
    assert_eq!(events, [Event::Readable(stream)]);
    (client, server, stream)
}

fn request(stream: StreamId, fin: bool) -> Event {
    Event::Request {
        stream,
        headers: headers(),
        fin,
    }
}

/// All data that can be read now, and the result after it.
fn read_all(machine: &mut Machine, stream: StreamId) -> (Vec<u8>, &'static str) {
    let mut bytes = Vec::new();
    loop {
        match machine.read(stream, usize::MAX) {
            Ok(ReadOutcome::Chunk(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(ReadOutcome::End) => return (bytes, "end"),
            Ok(ReadOutcome::Wait) => return (bytes, "wait"),
            Err(StreamError::Reset(_)) => return (bytes, "reset"),
            Err(StreamError::ResetHere(_)) => return (bytes, "reset here"),
            Err(StreamError::NotTaken) => return (bytes, "not taken"),
            Err(StreamError::Ended) => return (bytes, "ended"),
            Err(StreamError::Session(_)) => return (bytes, "session"),
        }
    }
}

/// Asserts that nothing is left of any stream.
fn assert_empty(machine: &Machine) {
    assert_eq!(machine.streams.len(), 0, "{:?}", machine.streams);
    let StreamTotals {
        live,
        full,
        buffered,
        queued,
        ..
    } = machine.totals;
    assert_eq!((live, full, buffered, queued), (0, 0, 0, 0));
}
