//! The 8 bytes every frame starts with.

use bytes::{BufMut, BytesMut};

use super::{error::WireError, ids::StreamId};

/// Bytes before a frame's body.
pub(crate) const HEAD_LEN: usize = 8;

/// The version of SPDY/3.1 in control frames; the minor number is not on the wire.
const VERSION: u16 = 3;

/// Top bit of the first word: set in control frames.
const CONTROL: u32 = 0x8000_0000;

/// ```text
/// +----------------------------------+     +----------------------------------+
/// |1| version (15) |    type (16)    |     |0|        stream id (31)          |
/// +----------------------------------+     +----------------------------------+
/// | flags (8)  |     length (24)     |     | flags (8)  |     length (24)     |
/// +----------------------------------+     +----------------------------------+
///          a control frame                            a data frame
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameHead {
    Data { stream: u32, flags: u8, len: u32 },
    Control { kind: u16, flags: u8, len: u32 },
}

impl FrameHead {
    /// The largest length, which has 24 bits.
    pub(crate) const MAX_LEN: u32 = 0x00ff_ffff;

    /// The head and what follows it; `None` if it is not all there.
    pub(super) fn decode(input: &[u8]) -> Result<Option<(Self, &[u8])>, WireError> {
        let Some((&first, rest)) = input.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let first = u32::from_be_bytes(first);
        let control = first & CONTROL != 0;
        let version = (first >> 16) as u16 & 0x7fff;
        if control && version != VERSION {
            return Err(WireError::Version(version));
        }
        let Some((&second, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let second = u32::from_be_bytes(second);
        let (flags, len) = ((second >> 24) as u8, second & Self::MAX_LEN);
        let head = if control {
            let kind = first as u16;
            Self::Control { kind, flags, len }
        } else {
            let stream = first & StreamId::MAX;
            Self::Data { stream, flags, len }
        };
        Ok(Some((head, rest)))
    }

    /// The bytes of the head. The caller has bounded `len`.
    pub(crate) fn to_bytes(self) -> [u8; HEAD_LEN] {
        let (first, flags, len) = match self {
            Self::Data { stream, flags, len } => (stream, flags, len),
            Self::Control { kind, flags, len } => {
                let first = CONTROL | u32::from(VERSION) << 16 | u32::from(kind);
                (first, flags, len)
            }
        };
        debug_assert!(len <= Self::MAX_LEN);
        let second = u32::from(flags) << 24 | len;
        (u64::from(first) << 32 | u64::from(second)).to_be_bytes()
    }

    /// Appends a control frame's head.
    pub(super) fn put_control(kind: u16, flags: u8, len: usize, out: &mut BytesMut) {
        let len = len as u32;
        out.put_slice(&Self::Control { kind, flags, len }.to_bytes());
    }
}

/// Takes a number off the front of a frame's body.
pub(super) fn take_u32(body: &mut &[u8], frame: &'static str) -> Result<u32, WireError> {
    let Some((number, rest)) = body.split_first_chunk() else {
        return Err(WireError::Truncated { frame });
    };
    *body = rest;
    Ok(u32::from_be_bytes(*number))
}

/// Takes a stream id, whose top bit is reserved and not looked at, off the front of a body.
pub(super) fn take_id(body: &mut &[u8], frame: &'static str) -> Result<StreamId, WireError> {
    let id = take_u32(body, frame)? & StreamId::MAX;
    StreamId::new(id).ok_or(WireError::ZeroStreamId { frame })
}
