//! Decoders and encoders of messages.
//!
//! A decoder reads the front of the received bytes. `Ok(None)` means that more bytes are needed, and is the result
//! for every prefix of a valid message; `Ok(Some((message, n)))` means that the message is the first `n` bytes. The
//! content is not judged here: an unknown command is a value, not an error.

#![deny(clippy::indexing_slicing, clippy::unwrap_used)]

use std::fmt;

pub(crate) mod addr;
pub(crate) mod auth;
pub(crate) mod greeting;
pub(crate) mod http;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod socks4;

pub(crate) type Decoded<T> = Result<Option<(T, usize)>, MessageError>;

/// Why bytes are not a message, whatever follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageError {
    /// A wrong version byte.
    Version(u8),
    /// An address type of unknown length, so that the message's end cannot be found.
    AddressType(u8),
    /// A text of SOCKS4 without an end.
    Unterminated,
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(v) => write!(f, "unexpected version {v:#04x}"),
            Self::AddressType(t) => write!(f, "unknown address type {t:#04x}"),
            Self::Unterminated => f.write_str("a text does not end within 255 bytes"),
        }
    }
}

impl std::error::Error for MessageError {}

/// Reads a message field by field and counts its bytes. `None` if it ends too early.
struct Reader<'a> {
    rest: &'a [u8],
    whole: usize,
}

impl<'a> Reader<'a> {
    fn new(input: &'a [u8]) -> Self {
        Self {
            rest: input,
            whole: input.len(),
        }
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }

    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(bytes)
    }

    /// A text with a length prefix of one byte.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let n = self.byte()?;
        self.bytes(n.into())
    }

    fn port(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn read(&self) -> usize {
        self.whole - self.rest.len()
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests;
