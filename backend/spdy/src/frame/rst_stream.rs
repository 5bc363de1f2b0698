//! RST_STREAM: ends a stream at once, both ways.

use bytes::{BufMut, BytesMut};

use super::{
    error::WireError,
    head::{FrameHead, take_id, take_u32},
    ids::{ResetStatus, StreamId},
};

/// The stream id, then the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RstStream {
    pub(crate) stream: StreamId,
    pub(crate) status: ResetStatus,
}

impl RstStream {
    pub(super) const KIND: u16 = 3;
    pub(super) const LEN: u32 = 8;

    pub(super) fn decode(mut body: &[u8]) -> Result<Self, WireError> {
        let stream = take_id(&mut body, "RST_STREAM")?;
        let status = take_u32(&mut body, "RST_STREAM")?;
        // The draft, 2.6.3: 0 is not a valid status code.
        let status = ResetStatus::new(status).ok_or(WireError::ZeroStatus)?;
        Ok(Self { stream, status })
    }

    pub(crate) fn encode(self, out: &mut BytesMut) {
        FrameHead::put_control(Self::KIND, 0, Self::LEN as usize, out);
        out.put_u32(self.stream.get());
        out.put_u32(self.status.code());
    }
}
