//! Netlink messages (netlink(7), RFC 3549). A new network needs few of them, from two families.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

/// Size of a read; acknowledgements are small.
const ANSWER: usize = 32 * 1024;

const HEADER: usize = 16;
const ERROR: u16 = 2;
const NESTED: u16 = 0x8000;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

/// An attribute, padded.
pub(crate) fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + data.len()).expect("attributes of ours are short");
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that contains others.
pub(crate) fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

/// A string with its terminating zero.
pub(crate) fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// A number in network byte order, as in netfilter.
pub(crate) fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

/// A message: the family's header and attributes follow the netlink header.
pub(crate) fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("messages of ours are short");
    let mut bytes = [
        &length.to_ne_bytes()[..],
        &kind.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &sequence.to_ne_bytes(),
        &[0; 4],
        body,
    ]
    .concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A socket for queries about the sockets of this network (sock_diag(7)), also from a process outside.
pub(crate) fn of_sockets() -> io::Result<OwnedFd> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.as_fd().try_clone_to_owned()
}

/// Sends messages, of which `acks` request an acknowledgement, and reads these. Returns the first error.
pub(crate) fn talk(protocol: isize, messages: &[u8], acks: usize) -> io::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    // The kernel has answered by the time the messages are sent.
    socket.set_non_blocking(true)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(messages, 0)?;
    let mut left = acks;
    while left > 0 {
        let mut answer = Vec::with_capacity(ANSWER);
        socket.recv(&mut answer, 0)?;
        for code in answers(&answer)? {
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            left = left.saturating_sub(1);
        }
    }
    Ok(())
}

/// The codes of the acknowledgements in `bytes`.
fn answers(mut bytes: &[u8]) -> io::Result<Vec<i32>> {
    let mut codes = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let [a, b, c, d, kind_low, kind_high, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let kind = u16::from_ne_bytes([kind_low, kind_high]);
        let message = bytes
            .get(HEADER..length)
            .ok_or(io::ErrorKind::InvalidData)?;
        if kind == ERROR {
            let code = message.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
            codes.push(i32::from_ne_bytes(*code));
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        let bytes = text(3, "nat");
        assert_eq!(bytes.len(), 8);
        assert_eq!(
            bytes,
            [&8_u16.to_ne_bytes()[..], &3_u16.to_ne_bytes(), b"nat\0"].concat()
        );
        let bytes = attribute(1, &[7]);
        assert_eq!(bytes.len(), 8);
        assert_eq!(bytes[..2], 5_u16.to_ne_bytes());
        let outer = nested(4, &bytes);
        assert_eq!(outer[..2], 12_u16.to_ne_bytes());
        assert_eq!(outer[2..4], 0x8004_u16.to_ne_bytes());
    }

    #[test]
    fn codes_of_answers() {
        let error = |code: i32| message(ERROR, 0, 1, &[&code.to_ne_bytes()[..], &[0; 16]].concat());
        let bytes = [error(0), message(3, 0, 1, &[]), error(-1)].concat();
        assert_eq!(answers(&bytes).unwrap(), [0, -1]);
        assert_eq!(answers(&[]).unwrap(), [0; 0]);
        for length in 1..bytes.len() {
            // A truncated answer at any length yields no code that was not sent.
            let found = answers(&bytes[..length]).unwrap_or_default();
            assert!(found.len() < 2, "{length}");
        }
    }
}
