//! PING: the receiver returns it unchanged.

use bytes::{BufMut, BytesMut};

use super::{
    error::WireError,
    head::{FrameHead, take_u32},
};

/// Odd ids are the client's, even ones the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ping {
    pub(crate) id: u32,
}

impl Ping {
    pub(super) const KIND: u16 = 6;
    pub(super) const LEN: u32 = 4;

    pub(super) fn decode(mut body: &[u8]) -> Result<Self, WireError> {
        let id = take_u32(&mut body, "PING")?;
        Ok(Self { id })
    }

    pub(crate) fn encode(self, out: &mut BytesMut) {
        FrameHead::put_control(Self::KIND, 0, Self::LEN as usize, out);
        out.put_u32(self.id);
    }
}
