//! WINDOW_UPDATE: flow control, which Kubernetes does not use. Read and ignored: a sender that respected
//! windows would stop at 64 KiB, because Kubernetes never opens them.

use bytes::{BufMut, BytesMut};

use super::{
    error::WireError,
    head::{FrameHead, take_u32},
    ids::StreamId,
};

/// The stream id, then how much larger its window gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowUpdate {
    /// `None` is the window of the whole session, which SPDY/3.1 added.
    pub(crate) stream: Option<StreamId>,
    /// 31 bits, in bytes.
    pub(crate) delta: u32,
}

impl WindowUpdate {
    pub(super) const KIND: u16 = 9;
    pub(super) const LEN: u32 = 8;

    pub(super) fn decode(mut body: &[u8]) -> Result<Self, WireError> {
        let stream = StreamId::new(take_u32(&mut body, "WINDOW_UPDATE")? & StreamId::MAX);
        let delta = take_u32(&mut body, "WINDOW_UPDATE")? & 0x7fff_ffff;
        Ok(Self { stream, delta })
    }

    pub(crate) fn encode(self, out: &mut BytesMut) {
        FrameHead::put_control(Self::KIND, 0, Self::LEN as usize, out);
        out.put_u32(self.stream.map_or(0, StreamId::get));
        out.put_u32(self.delta);
    }
}
