//! SETTINGS: numbers about the sender. Kubernetes sends none, and none concerns us.

use bytes::{BufMut, BytesMut};

use super::{
    error::WireError,
    head::{FrameHead, take_u32},
};

/// A count, then as many entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SettingsFrame<'a> {
    /// Whole entries of 8 bytes.
    entries: &'a [u8],
}

/// `| flags (8) | id (24) |`, then the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) flags: u8,
    pub(crate) id: u32,
    pub(crate) value: u32,
}

impl<'a> SettingsFrame<'a> {
    pub(super) const KIND: u16 = 4;
    pub(super) const MIN_LEN: u32 = 4;

    pub(super) fn decode(mut entries: &'a [u8]) -> Result<Self, WireError> {
        let frame = "SETTINGS";
        let length = entries.len() as u32;
        let count = take_u32(&mut entries, frame)?;
        if u64::from(count) * 8 == entries.len() as u64 {
            Ok(Self { entries })
        } else {
            Err(WireError::Length { frame, length })
        }
    }

    pub(crate) fn iter(self) -> impl ExactSizeIterator<Item = Setting> {
        let (entries, _) = self.entries.as_chunks();
        entries.iter().map(|&[flags, a, b, c, d, e, f, g]| Setting {
            flags,
            id: u32::from_be_bytes([0, a, b, c]),
            value: u32::from_be_bytes([d, e, f, g]),
        })
    }

    /// Appends a frame with these entries.
    pub(crate) fn encode(entries: impl ExactSizeIterator<Item = Setting>, out: &mut BytesMut) {
        FrameHead::put_control(Self::KIND, 0, 4 + 8 * entries.len(), out);
        out.put_u32(entries.len() as u32);
        for Setting { flags, id, value } in entries {
            out.put_u32(u32::from(flags) << 24 | id & FrameHead::MAX_LEN);
            out.put_u32(value);
        }
    }
}
