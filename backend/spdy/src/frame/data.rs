//! DATA: bytes of one stream.

use super::{HEAD_LEN, Head, StreamId, WireError};

/// The head of a DATA frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Data {
    pub(crate) stream: StreamId,
    /// The sender's last frame on the stream.
    pub(crate) fin: bool,
    /// Bytes of payload, at most [`Head::MAX_LEN`].
    pub(crate) len: u32,
}

impl Data {
    const FIN: u8 = 0x01;

    pub(super) fn decode(stream: u32, flags: u8, len: u32) -> Result<Self, WireError> {
        let stream = StreamId::new(stream).ok_or(WireError::ZeroStreamId { frame: "DATA" })?;
        let fin = flags & Self::FIN != 0;
        Ok(Self { stream, fin, len })
    }

    /// The bytes before the payload.
    pub(crate) fn head(self) -> [u8; HEAD_LEN] {
        let flags = if self.fin { Self::FIN } else { 0 };
        Head::Data {
            stream: self.stream.get(),
            flags,
            len: self.len,
        }
        .to_bytes()
    }
}
