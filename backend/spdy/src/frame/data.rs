//! DATA: bytes of one stream.

use super::{
    error::WireError,
    head::{FrameHead, HEAD_LEN},
    ids::StreamId,
};

/// The head of a DATA frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataHead {
    pub(crate) stream: StreamId,
    /// The sender's last frame on the stream.
    pub(crate) fin: bool,
    /// Bytes of payload, at most [`FrameHead::MAX_LEN`].
    pub(crate) len: u32,
}

impl DataHead {
    const FIN: u8 = 0x01;

    pub(super) fn decode(stream: u32, flags: u8, len: u32) -> Result<Self, WireError> {
        let stream = StreamId::new(stream).ok_or(WireError::ZeroStreamId { frame: "DATA" })?;
        let fin = flags & Self::FIN != 0;
        Ok(Self { stream, fin, len })
    }

    /// The bytes before the payload.
    pub(crate) fn head(self) -> [u8; HEAD_LEN] {
        let flags = if self.fin { Self::FIN } else { 0 };
        FrameHead::Data {
            stream: self.stream.get(),
            flags,
            len: self.len,
        }
        .to_bytes()
    }
}
