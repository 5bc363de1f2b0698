//! HEADERS: more headers for an open stream. Kubernetes sends none; they are read because every
//! header block continues the same zlib stream.

use bytes::{BufMut, BytesMut};

use super::{
    error::WireError,
    head::{FrameHead, take_id},
    ids::StreamId,
};

/// The stream id, then the header block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeadersFrame<'a> {
    pub(crate) stream: StreamId,
    /// The sender's last frame on the stream.
    pub(crate) fin: bool,
    /// The compressed header block.
    pub(crate) block: &'a [u8],
}

impl<'a> HeadersFrame<'a> {
    pub(super) const KIND: u16 = 8;
    pub(super) const MIN_LEN: u32 = 4;
    const FIN: u8 = 0x01;

    pub(super) fn decode(flags: u8, mut body: &'a [u8]) -> Result<Self, WireError> {
        Ok(Self {
            stream: take_id(&mut body, "HEADERS")?,
            fin: flags & Self::FIN != 0,
            block: body,
        })
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let flags = if self.fin { Self::FIN } else { 0 };
        FrameHead::put_control(Self::KIND, flags, 4 + self.block.len(), out);
        out.put_u32(self.stream.get());
        out.put_slice(self.block);
    }
}
