//! GOAWAY: the sender takes no new streams.

use bytes::{BufMut, BytesMut};

use super::{
    error::WireError,
    head::{FrameHead, take_u32},
    ids::{GoAwayStatus, StreamId},
};

/// The last stream taken, then the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GoAway {
    /// The last stream of the receiver that the sender took; later ones were never looked at.
    /// `None` if it took none.
    pub(crate) last_taken: Option<StreamId>,
    pub(crate) status: GoAwayStatus,
}

impl GoAway {
    pub(super) const KIND: u16 = 7;
    pub(super) const LEN: u32 = 8;

    pub(super) fn decode(mut body: &[u8]) -> Result<Self, WireError> {
        let last_taken = StreamId::new(take_u32(&mut body, "GOAWAY")? & StreamId::MAX);
        let status = GoAwayStatus::new(take_u32(&mut body, "GOAWAY")?);
        Ok(Self { last_taken, status })
    }

    pub(crate) fn encode(self, out: &mut BytesMut) {
        FrameHead::put_control(Self::KIND, 0, Self::LEN as usize, out);
        out.put_u32(self.last_taken.map_or(0, StreamId::get));
        out.put_u32(self.status.code());
    }
}
