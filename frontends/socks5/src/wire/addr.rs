//! RFC 1928 section 5: addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use kubevpn_target::{Host, TargetError};

use super::{Decoded, MessageError, Reader};

mod kind {
    pub(super) const IPV4: u8 = 1;
    pub(super) const DOMAIN: u8 = 3;
    pub(super) const IPV6: u8 = 4;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocksAddress<'a> {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    /// The name as sent, not validated.
    Domain(&'a [u8]),
}

impl<'a> SocksAddress<'a> {
    /// `ATYP ADDR`
    pub(crate) fn decode(input: &'a [u8]) -> Decoded<Self> {
        let mut input = Reader::new(input);
        let address = match input.byte() {
            None => return Ok(None),
            Some(kind::IPV4) => input.array::<4>().map(|ip| Self::V4(ip.into())),
            Some(kind::IPV6) => input.array::<16>().map(|ip| Self::V6(ip.into())),
            Some(kind::DOMAIN) => input.counted().map(Self::Domain),
            Some(other) => return Err(MessageError::AddressType(other)),
        };
        Ok(address.map(|address| (address, input.read())))
    }

    /// A name that contains an address is that address: some clients send addresses only in this form.
    pub(crate) fn host(self) -> Result<Host, TargetError> {
        match self {
            Self::V4(ip) => Ok(ip.into()),
            Self::V6(ip) => Ok(ip.into()),
            Self::Domain(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Host::parse(text),
                Err(e) => {
                    let bad = bytes.get(e.valid_up_to()).copied().unwrap_or_default();
                    Err(TargetError::BadByte(bad))
                }
            },
        }
    }

    #[cfg(test)]
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::V4(ip) => {
                out.push(kind::IPV4);
                out.extend(ip.octets());
            }
            Self::V6(ip) => {
                out.push(kind::IPV6);
                out.extend(ip.octets());
            }
            Self::Domain(name) => {
                out.extend([kind::DOMAIN, name.len() as u8]);
                out.extend(*name);
            }
        }
    }
}
