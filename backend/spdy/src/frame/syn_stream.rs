//! SYN_STREAM: opens a stream.

use bytes::{BufMut, BytesMut};

use super::{
    error::WireError,
    head::{FrameHead, take_id, take_u32},
    ids::StreamId,
};

/// ```text
/// |X|           stream id (31)       |
/// |X|  associated-to stream id (31)  |
/// | pri (3) | unused (5) | slot (8)  |  then the header block
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SynStream<'a> {
    pub(crate) stream: StreamId,
    /// The stream that this one belongs to; Kubernetes has no use for it.
    pub(crate) associated: Option<StreamId>,
    /// 0 is the highest, 7 the lowest.
    pub(crate) priority: u8,
    /// Index of a client certificate; always 0.
    pub(crate) slot: u8,
    /// The opener sends nothing else.
    pub(crate) fin: bool,
    /// The other side sends nothing.
    pub(crate) unidirectional: bool,
    /// The compressed header block.
    pub(crate) block: &'a [u8],
}

impl<'a> SynStream<'a> {
    pub(super) const KIND: u16 = 1;
    pub(super) const MIN_LEN: u32 = 10;
    const FIN: u8 = 0x01;
    const UNIDIRECTIONAL: u8 = 0x02;

    pub(super) fn decode(flags: u8, mut body: &'a [u8]) -> Result<Self, WireError> {
        let frame = "SYN_STREAM";
        let stream = take_id(&mut body, frame)?;
        let associated = StreamId::new(take_u32(&mut body, frame)? & StreamId::MAX);
        let Some((&[priority, slot], block)) = body.split_first_chunk() else {
            return Err(WireError::Truncated { frame });
        };
        Ok(Self {
            stream,
            associated,
            priority: priority >> 5,
            slot,
            fin: flags & Self::FIN != 0,
            unidirectional: flags & Self::UNIDIRECTIONAL != 0,
            block,
        })
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let mut flags = 0;
        if self.fin {
            flags |= Self::FIN;
        }
        if self.unidirectional {
            flags |= Self::UNIDIRECTIONAL;
        }
        FrameHead::put_control(Self::KIND, flags, 10 + self.block.len(), out);
        out.put_u32(self.stream.get());
        out.put_u32(self.associated.map_or(0, StreamId::get));
        out.put_u8(self.priority << 5);
        out.put_u8(self.slot);
        out.put_slice(self.block);
    }
}
