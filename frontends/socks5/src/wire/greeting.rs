//! RFC 1928 section 3: the offered methods, and the selected one.

use super::{Decoded, MessageError, Reader};

pub(crate) const VERSION: u8 = 5;

pub(crate) mod method {
    pub(crate) const NONE: u8 = 0x00;
    pub(crate) const PASSWORD: u8 = 0x02;
    /// No acceptable method; the client has to close.
    pub(crate) const NO_ACCEPTABLE: u8 = 0xff;
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Greeting<'a> {
    pub(crate) methods: &'a [u8],
}

impl<'a> Greeting<'a> {
    /// `VER NMETHODS METHODS`
    pub(crate) fn decode(input: &'a [u8]) -> Decoded<Self> {
        let mut input = Reader::new(input);
        match input.byte() {
            None => return Ok(None),
            Some(VERSION) => {}
            Some(other) => return Err(MessageError::Version(other)),
        }
        Ok(input
            .counted()
            .map(|methods| (Self { methods }, input.read())))
    }

    #[cfg(test)]
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend([VERSION, self.methods.len() as u8]);
        out.extend(self.methods);
    }
}

/// `VER METHOD`
pub(crate) fn encode_selection(method: u8, out: &mut Vec<u8>) {
    out.extend([VERSION, method]);
}
