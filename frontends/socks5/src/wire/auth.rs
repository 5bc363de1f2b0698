//! RFC 1929: a user name and a password.

use super::{Decoded, MessageError, Reader};

/// The version of the negotiation, not of SOCKS.
pub(crate) const VERSION: u8 = 1;

#[derive(PartialEq, Eq)]
pub(crate) struct Auth<'a> {
    pub(crate) user: &'a [u8],
    pub(crate) password: &'a [u8],
}

impl<'a> Auth<'a> {
    /// `VER ULEN UNAME PLEN PASSWD`
    pub(crate) fn decode(input: &'a [u8]) -> Decoded<Self> {
        let mut input = Reader::new(input);
        match input.byte() {
            None => return Ok(None),
            Some(VERSION) => {}
            Some(other) => return Err(MessageError::Version(other)),
        }
        let mut fields = || {
            Some(Self {
                user: input.counted()?,
                password: input.counted()?,
            })
        };
        Ok(fields().map(|auth| (auth, input.read())))
    }

    #[cfg(test)]
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        for field in [self.user, self.password] {
            out.push(field.len() as u8);
            out.extend(field);
        }
    }
}

/// `VER STATUS`, where every status but 0 is a failure and the end.
pub(crate) fn encode_status(ok: bool, out: &mut Vec<u8>) {
    out.extend([VERSION, u8::from(!ok)]);
}

/// Hides the password.
impl std::fmt::Debug for Auth<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}
