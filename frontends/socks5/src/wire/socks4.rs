//! SOCKS4, and 4A, which puts a name after an impossible address.

use super::addr::SocksAddress;
use super::request::{SocksCommand, SocksRequest};
use super::{Decoded, MessageError, Reader};

pub(crate) const VERSION: u8 = 4;

/// The longest user ID or name.
const MAX_TEXT: usize = 255;

/// `VN CD DSTPORT DSTIP USERID NULL [NAME NULL]`. The user ID proves nothing and is skipped.
pub(crate) fn decode(input: &[u8]) -> Decoded<SocksRequest<'_>> {
    let mut reader = Reader::new(input);
    match reader.byte() {
        None => return Ok(None),
        Some(VERSION) => {}
        Some(other) => return Err(MessageError::Version(other)),
    }
    let (Some(command), Some(port), Some(ip)) = (reader.byte(), reader.port(), reader.array())
    else {
        return Ok(None);
    };
    if text(&mut reader)?.is_none() {
        return Ok(None);
    }
    let address = match ip {
        [0, 0, 0, last] if last != 0 => match text(&mut reader)? {
            Some(name) => SocksAddress::Domain(name),
            None => return Ok(None),
        },
        ip => SocksAddress::V4(ip.into()),
    };
    let request = SocksRequest {
        command: SocksCommand(command),
        address,
        port,
    };
    Ok(Some((request, reader.read())))
}

/// A text up to the zero byte that ends it.
fn text<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a [u8]>, MessageError> {
    match reader.rest.iter().take(MAX_TEXT + 1).position(|b| *b == 0) {
        Some(end) => {
            let text = reader.bytes(end);
            reader.byte();
            Ok(text)
        }
        None if reader.rest.len() > MAX_TEXT => Err(MessageError::Unterminated),
        None => Ok(None),
    }
}

#[cfg(test)]
pub(crate) fn encode(request: &SocksRequest<'_>, user: &[u8], out: &mut Vec<u8>) {
    out.extend([VERSION, request.command.0]);
    out.extend(request.port.to_be_bytes());
    match request.address {
        SocksAddress::V4(ip) => out.extend(ip.octets()),
        _ => out.extend([0, 0, 0, 1]),
    }
    out.extend(user);
    out.push(0);
    if let SocksAddress::Domain(name) = request.address {
        out.extend(name);
        out.push(0);
    }
}

/// `VN CD DSTPORT DSTIP`: granted or rejected; a reply has the version 0.
pub(crate) fn encode_reply(granted: bool, out: &mut Vec<u8>) {
    out.extend([0, if granted { 0x5a } else { 0x5b }, 0, 0, 0, 0, 0, 0]);
}
