//! The wire format: bytes to frames and back, nothing remembered in between.
//!
//! A frame starts with 8 bytes ([`FrameHead`]); one file per frame type has the rest, and its rule from
//! the draft as a comment where there is one to check. [`decode`] leaves two things to the caller:
//! the payload of DATA and the body of unknown control frames follow their head in the input and
//! need not be there yet; header blocks stay compressed, since only the session knows the zlib
//! stream they continue ([`header_block`]).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

mod data;
mod dictionary;
mod error;
mod goaway;
mod head;
mod header_block;
mod headers;
mod ids;
mod ping;
mod rst_stream;
mod settings;
mod syn_reply;
mod syn_stream;
mod window_update;

pub(crate) use self::{
    data::DataHead,
    goaway::GoAway,
    head::{FrameHead, HEAD_LEN},
    header_block::{Deflater, Inflater},
    headers::HeadersFrame,
    ping::Ping,
    rst_stream::RstStream,
    settings::SettingsFrame,
    syn_reply::SynReply,
    syn_stream::SynStream,
    window_update::WindowUpdate,
};
pub use self::{
    error::WireError,
    header_block::{HeaderError, Headers},
    ids::{GoAwayStatus, ResetStatus, StreamId},
};

use bytes::BytesMut;

/// The largest body of a control frame that is taken, in bytes. The draft asks for 8 KiB at least.
pub(crate) const MAX_CONTROL: u32 = 64 * 1024;

/// One frame, header blocks still compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// The head alone: `len` bytes of payload follow.
    Data(DataHead),
    SynStream(SynStream<'a>),
    SynReply(SynReply<'a>),
    RstStream(RstStream),
    Settings(SettingsFrame<'a>),
    Ping(Ping),
    GoAway(GoAway),
    Headers(HeadersFrame<'a>),
    WindowUpdate(WindowUpdate),
    /// A control frame of a type we do not know: `len` bytes follow, to be skipped.
    Unknown {
        kind: u16,
        len: u32,
    },
}

impl Frame<'_> {
    /// Appends the frame; of DATA and unknown frames the head alone.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match *self {
            Self::Data(data) => out.extend_from_slice(&data.head()),
            Self::SynStream(frame) => frame.encode(out),
            Self::SynReply(frame) => frame.encode(out),
            Self::RstStream(frame) => frame.encode(out),
            Self::Settings(settings) => SettingsFrame::encode(settings.iter(), out),
            Self::Ping(ping) => ping.encode(out),
            Self::GoAway(frame) => frame.encode(out),
            Self::Headers(frame) => frame.encode(out),
            Self::WindowUpdate(frame) => frame.encode(out),
            Self::Unknown { kind, len } => FrameHead::put_control(kind, 0, len as usize, out),
        }
    }
}

/// The frame at the start of `input`, and how many bytes of it that used; `None` if more bytes are
/// needed to tell.
pub(crate) fn decode(input: &[u8]) -> Result<Option<(Frame<'_>, usize)>, WireError> {
    let Some((head, rest)) = FrameHead::decode(input)? else {
        return Ok(None);
    };
    let (kind, flags, len) = match head {
        FrameHead::Data { stream, flags, len } => {
            return Ok(Some((
                Frame::Data(DataHead::decode(stream, flags, len)?),
                HEAD_LEN,
            )));
        }
        FrameHead::Control { kind, flags, len } => (kind, flags, len),
    };
    // What the head alone can show wrong is said before the body is waited for.
    match kind {
        SynStream::KIND => at_least(len, SynStream::MIN_LEN, "SYN_STREAM")?,
        SynReply::KIND => at_least(len, SynReply::MIN_LEN, "SYN_REPLY")?,
        RstStream::KIND => exactly(len, RstStream::LEN, "RST_STREAM")?,
        SettingsFrame::KIND => at_least(len, SettingsFrame::MIN_LEN, "SETTINGS")?,
        Ping::KIND => exactly(len, Ping::LEN, "PING")?,
        GoAway::KIND => exactly(len, GoAway::LEN, "GOAWAY")?,
        HeadersFrame::KIND => at_least(len, HeadersFrame::MIN_LEN, "HEADERS")?,
        WindowUpdate::KIND => exactly(len, WindowUpdate::LEN, "WINDOW_UPDATE")?,
        _ => return Ok(Some((Frame::Unknown { kind, len }, HEAD_LEN))),
    }
    let Some(body) = rest.get(..len as usize) else {
        return Ok(None);
    };
    let frame = match kind {
        SynStream::KIND => Frame::SynStream(SynStream::decode(flags, body)?),
        SynReply::KIND => Frame::SynReply(SynReply::decode(flags, body)?),
        RstStream::KIND => Frame::RstStream(RstStream::decode(body)?),
        SettingsFrame::KIND => Frame::Settings(SettingsFrame::decode(body)?),
        Ping::KIND => Frame::Ping(Ping::decode(body)?),
        GoAway::KIND => Frame::GoAway(GoAway::decode(body)?),
        HeadersFrame::KIND => Frame::Headers(HeadersFrame::decode(flags, body)?),
        _ => Frame::WindowUpdate(WindowUpdate::decode(body)?),
    };
    Ok(Some((frame, HEAD_LEN + body.len())))
}

fn exactly(length: u32, want: u32, frame: &'static str) -> Result<(), WireError> {
    if length == want {
        Ok(())
    } else {
        Err(WireError::Length { frame, length })
    }
}

fn at_least(length: u32, min: u32, frame: &'static str) -> Result<(), WireError> {
    if (min..=MAX_CONTROL).contains(&length) {
        Ok(())
    } else {
        Err(WireError::Length { frame, length })
    }
}

#[cfg(test)]
mod tests;
