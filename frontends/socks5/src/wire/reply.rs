//! RFC 1928 section 6: replies.

use super::greeting::VERSION;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyCode {
    Succeeded = 0,
    GeneralFailure = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    ConnectionRefused = 5,
    TtlExpired = 6,
    CommandNotSupported = 7,
    AddressTypeNotSupported = 8,
}

impl ReplyCode {
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    /// `VER REP RSV ATYP BND.ADDR BND.PORT`. The bound address is 0.0.0.0:0: the client does not need it, and a
    /// port-forward has none.
    pub(crate) fn encode(self, out: &mut Vec<u8>) {
        out.extend([VERSION, self.code(), 0, 1, 0, 0, 0, 0, 0, 0]);
    }
}
