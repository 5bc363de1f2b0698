//! RFC 1928 section 4: requests.

use std::fmt;

use super::addr::SocksAddress;
use super::greeting::VERSION;
use super::{Decoded, MessageError, Reader};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocksRequest<'a> {
    pub(crate) command: SocksCommand,
    pub(crate) address: SocksAddress<'a>,
    pub(crate) port: u16,
}

/// A command, known or not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocksCommand(pub(crate) u8);

impl SocksCommand {
    pub(crate) const CONNECT: Self = Self(1);
    pub(crate) const BIND: Self = Self(2);
    pub(crate) const UDP_ASSOCIATE: Self = Self(3);
}

impl fmt::Debug for SocksCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CONNECT => f.write_str("CONNECT"),
            Self::BIND => f.write_str("BIND"),
            Self::UDP_ASSOCIATE => f.write_str("UDP ASSOCIATE"),
            Self(other) => write!(f, "{other:#04x}"),
        }
    }
}

impl<'a> SocksRequest<'a> {
    /// `VER CMD RSV ATYP ADDR PORT`
    pub(crate) fn decode(input: &'a [u8]) -> Decoded<Self> {
        let mut reader = Reader::new(input);
        match reader.byte() {
            None => return Ok(None),
            Some(VERSION) => {}
            Some(other) => return Err(MessageError::Version(other)),
        }
        // RSV should be 0, but its value does not matter, so it is not checked.
        let Some([command, _reserved]) = reader.array() else {
            return Ok(None);
        };
        let Some((address, n)) = SocksAddress::decode(reader.rest)? else {
            return Ok(None);
        };
        let port = reader.bytes(n).and_then(|_| reader.port());
        Ok(port.map(|port| {
            let request = Self {
                command: SocksCommand(command),
                address,
                port,
            };
            (request, reader.read())
        }))
    }

    #[cfg(test)]
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend([VERSION, self.command.0, 0]);
        self.address.encode(out);
        out.extend(self.port.to_be_bytes());
    }
}
